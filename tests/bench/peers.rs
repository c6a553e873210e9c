//! Everything that is measured, started on loopback and brought to a known number of invites.

use std::any::Any;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::ejabberd::{self, Ejabberd};
use crate::harness::{Folder, PATIENCE, PROGRAM, create_key, done};
use crate::load::{Load, Outcome, run};
use crate::prosody::{self, Prosody, Release};
use crate::table::{BARE, EJABBERD, INVITED, POOL, PROSODY, PROSODY_SQLITE};
use crate::{Plan, random};

pub const HOST: &str = "example.com";

/// A server that makes invites, and maybe shows them.
pub struct Peer {
    pub name: &'static str,
    pub addr: SocketAddr,
    /// The request that makes an invite, and the status of its answer.
    pub invite: Vec<u8>,
    pub status: u16,
    /// The most invites that it makes before it must be reset.
    pub limit: usize,
    /// Where pages are, up to the token.
    pub page: &'static str,
    pub pid: Option<u32>,
    /// The SQLite file, if it has one.
    pub db: Option<PathBuf>,
    /// Takes it back to the number of invites that it should have.
    reset: Box<dyn Fn()>,
    running: Box<dyn Any>,
}

impl Peer {
    fn new(name: &'static str, addr: SocketAddr, invite: Vec<u8>, running: impl Any) -> Peer {
        let (reset, running) = (Box::new(|| {}), Box::new(running));
        Peer { name, addr, invite, status: 201, limit: usize::MAX, page: "", pid: None, db: None, reset, running }
    }

    /// Makes invites as fast as it can with this many connections.
    pub fn invites(&self, plan: &Plan, connections: usize) -> Outcome {
        (self.reset)();
        run(&self.load(plan, connections))
    }

    pub fn load(&self, plan: &Plan, connections: usize) -> Load {
        Load {
            addr: self.addr,
            requests: vec![self.invite.clone()],
            status: self.status,
            connections,
            time: plan.time,
            limit: self.limit,
            pace: None,
        }
    }

    /// Opens the pages of these invites as fast as it can.
    pub fn pages(&self, plan: &Plan, connections: usize, tokens: &[String]) -> Load {
        let requests = tokens.iter().map(|token| get(&format!("{}?{token}", self.page))).collect();
        Load { requests, status: 200, limit: usize::MAX, ..self.load(plan, connections) }
    }

    /// Some hundred invites that are pending, from all over the file; makes one if there is none.
    pub fn tokens(&self, plan: &Plan) -> Vec<String> {
        if self.name == PROSODY {
            let folder = self.running.downcast_ref::<(Prosody, prosody::Site)>().unwrap().1.folder.file("data");
            let text = std::fs::read_to_string(folder.join(DEFAULT_STORE)).unwrap();
            let quoted = text.split("[\"").filter_map(|rest| rest.split_once("\"] = {"));
            return quoted
                .map(|(token, _)| token.to_owned())
                .filter(|key| key != "additional_data")
                .take(500)
                .collect();
        }
        run(&Load { limit: 1, ..self.load(plan, 1) });
        let conn = Connection::open(self.db.as_ref().unwrap()).unwrap();
        let mut query = conn
            .prepare("SELECT key FROM prosody WHERE store = 'invite_token' AND key <> '' ORDER BY random() LIMIT 500")
            .unwrap();
        query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// The same `invited`, started anew.
    pub fn restart(self) -> Peer {
        let mut running = self.running.downcast::<Running>().unwrap();
        let folder = running.folder.take().unwrap();
        drop(running);
        let command = serve(&folder.db());
        invited_at(folder, self.invite, command)
    }

    /// A figure of `/proc/PID/status` in MB, such as `VmRSS` or `VmHWM` (the most there ever was).
    pub fn memory(&self, name: &str) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid?)).ok()?;
        let line = status.lines().find(|line| line.starts_with(name))?;
        Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
    }
}

/// A request without a body.
pub fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\nAccept: text/html,*/*\r\n\r\n").into_bytes()
}

/// A process that is killed when it is dropped.
pub struct Running {
    pub child: Child,
    /// What it works in.
    pub folder: Option<Folder>,
}

impl Running {
    /// Starts a command that listens there, and waits until it does.
    pub fn start(command: &mut Command, addr: SocketAddr, folder: Option<Folder>) -> Running {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let running = Running { child, folder };
        wait_for(addr);
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(addr: SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(addr).is_err() {
        assert!(Instant::now() < deadline, "nothing listens on {addr}");
        sleep(Duration::from_micros(200));
    }
}

pub fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// `invited`, with this many invites.
pub fn invited(invites: usize) -> Peer {
    invited_with(invites, |_| {})
}

/// The same with something else in its environment.
pub fn invited_with(invites: usize, change: impl Fn(&mut Command)) -> Peer {
    let folder = Folder::new();
    let key = create_key(&folder.db(), HOST);
    if invites > 0 {
        done(&folder.db(), &["invite", HOST]);
        multiply(&folder.db(), invites);
    }
    let mut command = serve(&folder.db());
    change(&mut command);
    invited_at(folder, get(&format!("/invites_api?key={key}")), command)
}

/// The command that serves this file, but for the address.
pub fn serve(db: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("serve").arg("--db").arg(db).env("TMPDIR", db.parent().unwrap());
    command
}

fn invited_at(folder: Folder, invite: Vec<u8>, mut command: Command) -> Peer {
    let (addr, db) = (free_address(), folder.db());
    let running = Running::start(command.args(["--listen", &addr.to_string()]), addr, Some(folder));
    let pid = Some(running.child.id());
    Peer { pid, page: "/invite", db: Some(db), ..Peer::new(INVITED, addr, invite, running) }
}

/// The gate and the pool without a store, and tiny_http alone.
pub fn limits() -> [Peer; 2] {
    [(POOL, "serve-pool"), (BARE, "serve-bare")].map(|(name, what)| {
        let addr = free_address();
        let folder = Folder::new();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([what, &addr.to_string()]).env("TMPDIR", folder.path());
        let running = Running::start(&mut command, addr, Some(folder));
        let pid = Some(running.child.id());
        // As long as a request for an invite.
        let invite = get(&format!("/invites_api?key={}", "x".repeat(41)));
        Peer { pid, ..Peer::new(name, addr, invite, running) }
    })
}

/// Prosody with its own modules, with this many invites; none where there is no Prosody.
pub fn prosody(name: &'static str, invites: usize) -> Option<Peer> {
    if !Release::OfThisMachine.is_there() {
        return None;
    }
    let (site, addr) = prosody_site(name);
    let prosody = Prosody::start(&site);
    wait_for(addr);
    let key = prosody_key(&site);
    let invite = get(&format!("/invites_api?key={key}"));
    let pid = std::fs::read_to_string(site.folder.file("prosody.pid")).unwrap().trim().parse().ok();
    let (db, store) = (site.db(), site.folder.file("data").join(DEFAULT_STORE));
    let peer = Peer { pid, page: "/invites_page", ..Peer::new(name, addr, invite.clone(), (prosody, site)) };
    if name == PROSODY {
        let text = default_store(invites);
        return Some(Peer { reset: Box::new(move || write_default_store(&store, &text)), ..peer });
    }
    let clear = "DELETE FROM prosody WHERE store = 'invite_token'";
    let shared = db.clone();
    let reset: Box<dyn Fn()> = match invites {
        0 => Box::new(move || {
            open(&shared).execute(clear, []).unwrap();
        }),
        // What a run adds to many is no matter.
        _ => Box::new(|| {}),
    };
    let peer = Peer { db: Some(db.clone()), reset, ..peer };
    if invites > 0 {
        peer.tokens(&Plan { rounds: 1, time: PATIENCE, million: 0, quick: true });
        multiply(&db, invites);
    }
    Some(peer)
}

/// A folder with a configuration for Prosody's own modules, and the address that they will have.
pub fn prosody_site(name: &str) -> (prosody::Site, SocketAddr) {
    let addr = free_address();
    let mut site = prosody::Site::new(Release::OfThisMachine);
    let storage = if name == PROSODY_SQLITE { "storage = \"sql\"" } else { "storage = \"internal\"" };
    site.changes = vec![
        ("storage = { invite_token = \"sql\" }", storage.to_owned()),
        ("\"register_ibr\" }", "\"register_ibr\"; \"invites_api\"; \"invites_page\"; \"register_apps\" }".to_owned()),
        ("http_ports = { }", format!("http_ports = {{ {} }}\nhttp_interfaces = {{ \"127.0.0.1\" }}", addr.port())),
    ];
    (site, addr)
}

pub fn prosodyctl(site: &prosody::Site) -> Command {
    let mut command = Command::new("prosodyctl");
    command.arg("--config").arg(site.folder.file("prosody.cfg.lua")).stdin(Stdio::null());
    command
}

pub fn prosody_key(site: &prosody::Site) -> String {
    let output = prosodyctl(site).args(["mod_invites_api", "create", HOST, "bench"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let key = text.lines().find(|line| line.contains('/') && !line.contains(' '));
    key.unwrap_or_else(|| panic!("no key: {text}")).to_owned()
}

/// ejabberd with an SQLite file of its own; none where there is none.
pub fn ejabberd() -> Option<Peer> {
    let site = ejabberd::Site::new()?;
    let ejabberd = Ejabberd::start(&site);
    let (addr, db) = (ejabberd.http, site.db());
    let body = format!("{{\"host\": \"{HOST}\"}}");
    let head = format!("Host: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    let invite = format!("POST /api/generate_invite HTTP/1.1\r\n{head}\r\n\r\n{body}").into_bytes();
    let pid = process_with(site.folder.path().file_name().unwrap().to_str().unwrap());
    let reset = Box::new(move || {
        open(&db).execute("DELETE FROM invite_token", []).unwrap();
    });
    Some(Peer { status: 200, limit: 950, pid, reset, ..Peer::new(EJABBERD, addr, invite, (ejabberd, site)) })
}

/// The Erlang machine that has this in its command line.
fn process_with(text: &str) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut ids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    ids.find(|id| {
        let read = |name| std::fs::read(format!("/proc/{id}/{name}")).unwrap_or_default();
        read("comm").starts_with(b"beam") && String::from_utf8_lossy(&read("cmdline")).contains(text)
    })
}

pub fn open(db: &Path) -> Connection {
    let conn = Connection::open(db).unwrap();
    conn.busy_timeout(PATIENCE).unwrap();
    conn
}

/// Copies the newest invite until there are this many. The way of `invited`, or of Prosody, with its rows and triggers.
fn multiply(db: &Path, invites: usize) {
    let conn = open(db);
    conn.execute_batch("PRAGMA cache_size = -1000000; PRAGMA synchronous = OFF; PRAGMA temp_store = MEMORY").unwrap();
    let sql = "SELECT key FROM prosody WHERE store = 'invite_token' AND key <> '' ORDER BY rowid DESC LIMIT 1";
    let model: String = conn.query_row(sql, [], |row| row.get(0)).unwrap();
    let ours = "INSERT INTO invited_invite (token, host, kind, source, created_at, expires_at)
                SELECT fresh.token, host, kind, source, created_at, expires_at
                  FROM fresh, invited_invite AS model WHERE model.token = 'MODEL';";
    let sql = "BEGIN;
        CREATE TEMP TABLE fresh AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < COUNT)
                                   SELECT lower(hex(randomblob(8))) AS token FROM n;
        OURS
        INSERT INTO prosody (host, user, store, key, type, value)
        SELECT host, user, store, fresh.token, type, replace(value, 'MODEL', fresh.token)
          FROM fresh, prosody AS model WHERE model.store = 'invite_token' AND model.key = 'MODEL';
        COMMIT";
    let is_ours = conn.prepare("SELECT 1 FROM invited_invite").is_ok();
    let sql = sql.replace("OURS", if is_ours { ours } else { "" });
    conn.execute_batch(&sql.replace("COUNT", &invites.to_string()).replace("MODEL", &model)).unwrap();
    conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    // Or the first sync of whoever is measured would take what is left to write of this.
    drop(conn);
    std::fs::File::open(db).unwrap().sync_all().unwrap();
}

/// Where Prosody's default store keeps the invites of the host.
const DEFAULT_STORE: &str = "example%2ecom/invite_token.dat";

/// What is in it, as Prosody writes it.
fn default_store(invites: usize) -> String {
    let now = prosody::now();
    let mut text = "return {\n".to_owned();
    for _ in 0..invites {
        let token = random::base64url::<9>().unwrap();
        text.push_str(&format!(
            "\t[\"{token}\"] = {{\n\t\t[\"allow_registration\"] = true;\n\t\t[\"type\"] = \"register\";\n\
             \t\t[\"jid\"] = \"{HOST}\";\n\t\t[\"token\"] = \"{token}\";\n\
             \t\t[\"uri\"] = \"xmpp:{HOST}?register;preauth={token}\";\n\
             \t\t[\"landing_page\"] = \"http://{HOST}:5280/invites_page?{token}\";\n\
             \t\t[\"additional_data\"] = {{\n\t\t\t[\"source\"] = \"api/token/0123456789ab\";\n\t\t}};\n\
             \t\t[\"created_at\"] = {now};\n\t\t[\"expires\"] = {};\n\t}};\n",
            now + 604_800
        ));
    }
    text + "};\n"
}

fn write_default_store(file: &Path, text: &str) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, text).unwrap();
}
