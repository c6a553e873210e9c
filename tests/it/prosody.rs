//! The whole path through the real Prosody: the one of this machine (Debian 12 has 0.12) and the one of Debian sid (13),
//! which lies in a folder that is entered with chroot, see `tests/peers/sid.sh`.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use crate::harness::{Folder, PATIENCE, PROGRAM, Server, available, connect, create_key, done, exchange, wait_until};

/// What a self-hoster adds to Prosody's configuration: what `invited setup` prints for a database at this place.
fn snippet(database: &str) -> String {
    done(Path::new(database), &["setup", "prosody", "example.com"])
}

/// Runs each of these tests with both releases of Prosody.
macro_rules! with_both_releases {
    ($($test:ident)*) => {
        mod of_this_machine {
            $(#[test] fn $test() { $crate::prosody::Release::OfThisMachine.run(super::$test); })*
        }
        mod of_sid {
            $(#[test] fn $test() { $crate::prosody::Release::OfSid.run(super::$test); })*
        }
    };
}
pub(crate) use with_both_releases;

with_both_releases! {
    an_invite_becomes_one_account_and_is_used_up
    an_expired_invite_is_refused
    prosody_may_start_first_on_a_missing_file
    invited_may_start_first_on_a_missing_file
    users_that_share_a_group_may_share_the_file_whoever_starts_first
    either_may_restart_under_the_other
    registrations_use_up_their_invites_while_others_are_made
}

fn an_invite_becomes_one_account_and_is_used_up(release: Release) {
    let site = Site::new(release);
    let key = create_key(&site.db(), "example.com");
    let server = Server::start(&site.db());
    let prosody = Prosody::start(&site);

    let token = make_invite(&server, &key);
    assert_eq!(server.get(&format!("/invite?{token}")).status, 200);
    assert_eq!((state(&site, &token).as_str(), prosody_has(&site, &token)), ("pending", true));
    prosody.make_account(&token, "ada");
    // Prosody deletes its row in a transaction of its own, within which our trigger writes the rest.
    assert_eq!((state(&site, &token).as_str(), prosody_has(&site, &token)), ("used", false));
    let ended_at: i64 = column(&site, "SELECT ended_at FROM invited_invite WHERE token = ?1", &token);
    assert!((now() - ended_at).abs() <= 30, "ended_at is {ended_at}");
    assert_eq!(server.get(&format!("/invite?{token}")).status, 410);

    let mut again = prosody.client();
    assert_refused(&again.preauth(&token), "forbidden");
    assert_refused(&again.register("bob"), "not-acceptable");
    let mut without_token = prosody.client();
    assert_refused(&without_token.register("bob"), "not-acceptable");
    assert!(prosody.client().log_in("bob").contains("<not-authorized"));
}

fn an_expired_invite_is_refused(release: Release) {
    let site = Site::new(release);
    let key = create_key(&site.db(), "example.com");
    let server = Server::start(&site.db());
    let prosody = Prosody::start(&site);

    let token = make_invite(&server, &key);
    let past = now() - 1;
    let conn = site.connection();
    conn.execute("UPDATE invited_invite SET expires_at = ?1 WHERE token = ?2", (past, &token)).unwrap();
    let in_prosody = "UPDATE prosody SET value = json_set(value, '$.expires', ?1) WHERE key = ?2";
    assert_eq!(conn.execute(in_prosody, (past, &token)).unwrap(), 1);
    assert_eq!(server.get(&format!("/invite?{token}")).status, 410);
    let mut client = prosody.client();
    assert_refused(&client.preauth(&token), "forbidden");
    assert_refused(&client.register("ada"), "not-acceptable");
}

fn prosody_may_start_first_on_a_missing_file(release: Release) {
    let site = Site::new(release);
    let prosody = Prosody::start(&site);
    // Prosody opens the file, and makes its tables in it, when it looks for the first token.
    assert_refused(&prosody.client().preauth("no-such-token"), "forbidden");
    assert!(site.db().exists());
    let key = create_key(&site.db(), "example.com");
    let server = Server::start(&site.db());
    invite_and_use(&server, &key, &prosody, &site, "ada");
}

fn invited_may_start_first_on_a_missing_file(release: Release) {
    let site = Site::new(release);
    let key = create_key(&site.db(), "example.com");
    let server = Server::start(&site.db());
    let token = make_invite(&server, &key);
    let prosody = Prosody::start(&site);
    prosody.make_account(&token, "ada");
    assert_eq!(state(&site, &token), "used");
    invite_and_use(&server, &key, &prosody, &site, "bob");
}

fn users_that_share_a_group_may_share_the_file_whoever_starts_first(release: Release) {
    if !available("root", rustix::process::geteuid().is_root()) {
        return;
    }
    for prosody_first in [false, true] {
        let mut site = Site::new(release);
        let (user, group) = release.user_and_group();
        site.user = Some((user, group));
        chown(site.folder.path(), Some(NOBODY), Some(group)).unwrap();
        std::fs::set_permissions(site.folder.path(), Permissions::from_mode(0o2770)).unwrap();
        // The program may lie where that user can't go, so that a copy runs. Another process makes it: a descriptor that
        // is open for writing could be inherited by the child of another test, and Linux runs no file that is being written.
        let copy = site.folder.file("invited");
        assert!(Command::new("cp").arg(PROGRAM).arg(&copy).status().unwrap().success());
        let invited = |args: &str| {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={NOBODY}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
            command.args(["sh", "-c", &format!("umask 007; exec {} {args}", copy.display())]);
            command.env("INVITED_DB", site.db());
            command
        };

        let created = invited("create example.com").output().unwrap();
        assert!(created.status.success(), "{created:?}");
        let key = String::from_utf8(created.stdout).unwrap().trim_end().to_owned();
        // Whoever is first makes the files -wal and -shm: they went when `create` ended.
        let start_prosody = || {
            let prosody = Prosody::start(&site);
            assert_refused(&prosody.client().preauth("no-such-token"), "forbidden");
            prosody
        };
        let start_server = || Server::spawn(&mut invited("serve --listen 127.0.0.1:0"));
        let (server, prosody);
        if prosody_first {
            prosody = start_prosody();
            server = start_server();
        } else {
            server = start_server();
            prosody = start_prosody();
        }
        invite_and_use(&server, &key, &prosody, &site, "ada");
    }
}

fn either_may_restart_under_the_other(release: Release) {
    let site = Site::new(release);
    let key = create_key(&site.db(), "example.com");
    let mut server = Server::start(&site.db());
    let prosody = Prosody::start(&site);
    invite_and_use(&server, &key, &prosody, &site, "ada");

    let kept = make_invite(&server, &key);
    server.signal("TERM");
    server.wait();
    drop(server);
    let server = Server::start(&site.db());
    prosody.make_account(&kept, "bob");
    invite_and_use(&server, &key, &prosody, &site, "carol");

    let kept = make_invite(&server, &key);
    drop(server); // kills it
    let server = Server::start(&site.db());
    prosody.make_account(&kept, "dan");
    invite_and_use(&server, &key, &prosody, &site, "eve");

    let kept = make_invite(&server, &key);
    drop(prosody); // kills it
    let prosody = Prosody::start(&site);
    prosody.make_account(&kept, "frank");
    invite_and_use(&server, &key, &prosody, &site, "grace");
}

/// A Prosody that does not wait for locks fails to delete the row of a used invite where the file is locked at that moment:
/// the account is made and the invite stays good. Worse, in 0.12 the failed statement lingers and makes it refuse every
/// token from then on. So both must wait, and this counts where they did not.
fn registrations_use_up_their_invites_while_others_are_made(release: Release) {
    const REGISTRATIONS: usize = 300;
    const STREAMS_AT_A_TIME: usize = 3;
    const PERIOD: Duration = Duration::from_millis(10);

    let site = Site::new(release);
    let key = create_key(&site.db(), "example.com");
    let server = Server::start(&site.db());
    let prosody = Prosody::start(&site);
    let tokens: Vec<String> = (0..REGISTRATIONS).map(|_| make_invite(&server, &key)).collect();

    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let made = std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            let mut made = 0;
            while !stop.load(Ordering::Relaxed) {
                make_invite(&server, &key);
                made += 1;
                sleep((PERIOD * made).saturating_sub(start.elapsed()));
            }
            made
        });
        let guests = tokens.chunks(REGISTRATIONS.div_ceil(STREAMS_AT_A_TIME)).enumerate().map(|(number, tokens)| {
            let prosody = &prosody;
            scope.spawn(move || {
                for (count, token) in tokens.iter().enumerate() {
                    let mut client = prosody.client();
                    if client.preauth(token).contains("type='result'") {
                        assert_done(&client.register(&format!("guest-{number}-{count}")));
                    }
                    // Prosody answers first and then deletes the row; the end of the stream comes after both.
                    client.close();
                }
            })
        });
        let guests: Vec<_> = guests.collect();
        let ends: Vec<_> = guests.into_iter().map(|guest| guest.join()).collect();
        stop.store(true, Ordering::Relaxed);
        let made = maker.join().unwrap();
        assert!(ends.iter().all(Result::is_ok), "a registration failed");
        made
    });
    let elapsed = start.elapsed().as_secs_f64();
    let failed = tokens.iter().filter(|token| state(&site, token) != "used" || prosody_has(&site, token)).count();
    println!(
        "{release:?}: {failed} of {REGISTRATIONS} registrations failed or left their invite good, in {elapsed:.1} s, beside {:.0} new invites a second",
        f64::from(made) / elapsed
    );
    let log = prosody.log();
    assert!(!log.contains("database is locked") && !log.contains("commit failed"), "{log}");
    assert_eq!(failed, 0, "of {REGISTRATIONS} registrations");
}

/// Prosody 0.12 looks for its table before it makes an index for it. A commit of ours between the two would leave it with a
/// transaction that fails for ever.
#[test]
fn an_invite_that_is_made_while_prosody_012_opens_the_file_does_not_upset_it() {
    if !Release::OfThisMachine.is_there() {
        return;
    }
    let mut site = Site::new(Release::OfThisMachine);
    let key = create_key(&site.db(), "example.com");
    let in_between = format!(
        r#"run_as_root = true
local util_sql = require "util.sql"
local create_engine = util_sql.create_engine
function util_sql.create_engine(...)
    local engine = create_engine(...)
    local create_index = engine._create_index
    function engine:_create_index(index)
        if index.name == "prosody_index" then
            -- Without the lock the invite is written within the second; with it, it waits for this transaction.
            os.execute("{PROGRAM} invite example.com --db {} & sleep 1")
        end
        return create_index(self, index)
    end
    return engine
end
"#,
        site.db().display()
    );
    site.changes.push(("run_as_root = true\n", in_between));
    let prosody = Prosody::start(&site);
    // It opens the file when it looks for the first token.
    assert_refused(&prosody.client().preauth("no-such-token"), "forbidden");
    wait_until("an invite is made", || {
        column::<i64>(&site, "SELECT count(*) FROM invited_invite WHERE token <> ?1", "") == 1
    });
    let server = Server::start(&site.db());
    invite_and_use(&server, &key, &prosody, &site, "ada");
    let log = prosody.log();
    assert!(!log.contains("database is locked") && !log.contains("commit failed"), "{log}");
}

/// What these tests run with ends with the options that the README shows.
#[test]
fn the_readme_shows_the_very_options_that_these_tests_run_with() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let snippet = snippet("/var/lib/invited/invited.sqlite");
    let (lines, options) = snippet.split_once("\nVirtualHost ").unwrap();
    assert!(lines.starts_with("-- ") && lines.contains("user-registering"), "{lines}");
    assert!(readme.contains(&format!("```lua\nVirtualHost {options}```\n")), "{options}");
}

/// The user of `invited` where it is not Prosody's.
const NOBODY: u32 = 65534;

#[derive(Clone, Copy, Debug)]
pub enum Release {
    OfThisMachine,
    OfSid,
}

impl Release {
    pub fn run(self, test: fn(Release)) {
        if self.is_there() {
            test(self);
        }
    }

    pub fn is_there(self) -> bool {
        match self {
            Release::OfThisMachine => available("prosody", Path::new("/usr/bin/prosody").exists()),
            Release::OfSid => {
                let is_root = rustix::process::geteuid().is_root();
                available("sid", is_root && self.root().join("usr/bin/prosody").exists())
            }
        }
    }

    /// The folder that this Prosody takes for the root of the file system.
    fn root(self) -> PathBuf {
        match self {
            Release::OfThisMachine => PathBuf::from("/"),
            Release::OfSid => {
                std::env::var_os("INVITED_TEST_SID").unwrap_or(OsString::from("/var/cache/invited-test/sid")).into()
            }
        }
    }

    /// The user `prosody` of its packages, by numbers, which differ between the two roots.
    fn user_and_group(self) -> (u32, u32) {
        let users = std::fs::read_to_string(self.root().join("etc/passwd")).unwrap();
        let user = users.lines().find(|line| line.starts_with("prosody:")).expect("a user prosody");
        let numbers: Vec<u32> = user.split(':').skip(2).take(2).map(|number| number.parse().unwrap()).collect();
        (numbers[0], numbers[1])
    }
}

/// A folder that both Prosody and `invited` reach, and the database in it.
pub struct Site {
    pub release: Release,
    pub folder: Folder,
    /// User and group of Prosody where they are not the test's own.
    user: Option<(u32, u32)>,
    /// What a test has otherwise in the configuration: pieces of it, and what stands in their places.
    pub changes: Vec<(&'static str, String)>,
    /// Whether the lines of [`snippet`] are in a file of their own, as they come in Debian's `conf.d`.
    pub in_file: bool,
}

impl Site {
    pub fn new(release: Release) -> Site {
        let folder = match release {
            Release::OfThisMachine => Folder::new(),
            Release::OfSid => Folder::within(&release.root().join("srv")),
        };
        Site { release, folder, user: None, changes: Vec::new(), in_file: false }
    }

    pub fn db(&self) -> PathBuf {
        self.folder.db()
    }

    pub fn connection(&self) -> Connection {
        Connection::open(self.db()).unwrap()
    }

    /// A file of the folder by the name that Prosody knows it by.
    pub fn seen_by_prosody(&self, name: &str) -> String {
        let file = self.folder.file(name);
        let seen = Path::new("/").join(file.strip_prefix(self.release.root()).unwrap());
        seen.into_os_string().into_string().unwrap()
    }

    /// A configuration with what Prosody needs in order to run, and the lines of [`snippet`].
    fn config(&self, port: u16) -> String {
        let snippet = snippet(&self.seen_by_prosody("invited.sqlite"));
        let include = format!("Include \"{}\"", self.seen_by_prosody("invited.cfg.lua"));
        std::fs::write(self.folder.file("invited.cfg.lua"), &snippet).unwrap();
        let config = format!(
            r#"
pidfile = "{pidfile}"
data_path = "{data}"
run_as_root = true
log = {{ info = "*console" }}
modules_enabled = {{ "disco"; "posix"; "roster"; "saslauth" }}
authentication = "internal_hashed"
c2s_ports = {{ {port} }}
c2s_interfaces = {{ "127.0.0.1" }}
c2s_direct_tls_ports = {{ }}
s2s_ports = {{ }}
http_ports = {{ }}
https_ports = {{ }}
c2s_require_encryption = false
allow_unencrypted_plain_auth = true
VirtualHost "example.com"
{snippet}
"#,
            pidfile = self.seen_by_prosody("prosody.pid"),
            data = self.seen_by_prosody("data"),
            snippet = if self.in_file { &include } else { &snippet },
        );
        self.changes.iter().fold(config, |config, (from, to)| {
            assert!(config.contains(from), "{from} is not in {config}");
            config.replace(from, to)
        })
    }
}

/// A Prosody in the foreground; killed when it is dropped.
pub struct Prosody {
    child: Child,
    pub addr: SocketAddr,
    log: PathBuf,
}

impl Prosody {
    /// Starts it and waits until clients can connect.
    pub fn start(site: &Site) -> Prosody {
        for _ in 0..3 {
            if let Some(prosody) = Prosody::try_start(site) {
                return prosody;
            }
        }
        panic!("Prosody finds no free port");
    }

    /// None if another program took the port in the meantime.
    fn try_start(site: &Site) -> Option<Prosody> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = free.local_addr().unwrap();
        let [config, data, log] = ["prosody.cfg.lua", "data", "prosody.log"].map(|name| site.folder.file(name));
        std::fs::write(&config, site.config(addr.port())).unwrap();
        std::fs::create_dir_all(&data).unwrap();
        if let Some((user, group)) = site.user {
            chown(&data, Some(user), Some(group)).unwrap();
        }
        let output = File::create(&log).unwrap();
        let mut command = match (site.release, site.user) {
            (Release::OfThisMachine, None) => Command::new("prosody"),
            (Release::OfThisMachine, Some((user, group))) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
                command.arg("prosody");
                command
            }
            (Release::OfSid, user) => {
                let mut command = Command::new("chroot");
                if let Some((user, group)) = user {
                    command.args([format!("--userspec={user}:{group}"), format!("--groups={group}")]);
                }
                command.arg(site.release.root()).arg("prosody");
                command
            }
        };
        command.args(["-F", "--config", &site.seen_by_prosody("prosody.cfg.lua")]);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        drop(free);
        let child = command.spawn().unwrap();
        let mut prosody = Prosody { child, addr, log };
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let log = prosody.log();
            if log.contains("Failed to open server port") {
                return None;
            }
            if log.contains("Activated service 'c2s'") && TcpStream::connect(addr).is_ok() {
                return Some(prosody);
            }
            let ended = prosody.child.try_wait().unwrap();
            assert!(ended.is_none(), "Prosody has ended: {ended:?}");
            sleep(Duration::from_millis(20));
        }
        panic!("Prosody does not listen");
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn client(&self) -> Client {
        self.client_of("example.com")
    }

    /// A client of this host.
    pub fn client_of(&self, host: &'static str) -> Client {
        Client::connect(self.addr, host)
    }

    /// Has it read its configuration again, with what `setup` prints now; `times` counts the calls.
    pub fn reload(&self, site: &Site, times: usize) {
        std::fs::write(site.folder.file("prosody.cfg.lua"), site.config(self.addr.port())).unwrap();
        let status = Command::new("kill").args(["-HUP", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill -HUP failed");
        wait_until("Prosody begins to read its configuration", || {
            self.log().matches("Reloading configuration file").count() == times
        });
    }

    /// Registers with a token and logs in, all of which must succeed.
    pub fn make_account(&self, token: &str, user: &str) {
        let mut client = self.client();
        assert_done(&client.preauth(token));
        assert_done(&client.register(user));
        let outcome = client.log_in(user);
        assert!(outcome.starts_with("<success"), "{outcome}");
    }
}

impl Drop for Prosody {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of Prosody:\n{}", self.log());
        }
    }
}

/// An XMPP client over plain TCP that knows just enough to get an account; `kinds.rs` has what it can do when logged in.
pub struct Client {
    stream: TcpStream,
    host: &'static str,
}

impl Client {
    /// Opens a stream, on which the server must offer registration (XEP-0077) and with a token (XEP-0445).
    fn connect(addr: SocketAddr, host: &'static str) -> Client {
        let mut client = Client { stream: connect(addr), host };
        let features = client.open();
        for feature in ["http://jabber.org/features/iq-register", "urn:xmpp:ibr-token:0"] {
            assert!(features.contains(feature), "{feature} is not among the features: {features}");
        }
        client
    }

    /// Opens a stream, also anew after a login, and returns what the server offers.
    pub fn open(&mut self) -> String {
        self.send(&format!(
            "<?xml version='1.0'?><stream:stream to='{}' version='1.0' xmlns='jabber:client' \
             xmlns:stream='http://etherx.jabber.org/streams'>",
            self.host
        ));
        self.read_until(|text| text.ends_with("</stream:features>"))
    }

    /// Shows a token and returns the answer.
    pub fn preauth(&mut self, token: &str) -> String {
        self.request(&format!("<preauth xmlns='urn:xmpp:pars:0' token='{token}'/>"))
    }

    /// Registers an account and returns the answer.
    pub fn register(&mut self, user: &str) -> String {
        let fields = format!("<username>{user}</username><password>{}</password>", password(user));
        self.request(&format!("<query xmlns='jabber:iq:register'>{fields}</query>"))
    }

    /// Logs in with SASL PLAIN and returns the answer.
    pub fn log_in(&mut self, user: &str) -> String {
        self.log_in_with(user, &password(user))
    }

    /// Logs in with another password than the user's first one.
    pub fn log_in_with(&mut self, user: &str, password: &str) -> String {
        use base64::Engine as _;
        let message = base64::prelude::BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
        self.send(&format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{message}</auth>"));
        self.read_until(|text| text.starts_with("<success") || text.ends_with("</failure>"))
    }

    /// Ends the stream and waits until the server has ended it too, having done all that came before.
    pub fn close(mut self) {
        self.send("</stream:stream>");
        self.read_until(|text| text.ends_with("</stream:stream>"));
    }

    pub fn request(&mut self, content: &str) -> String {
        self.send(&format!("<iq type='set' id='1' to='{}'>{content}</iq>", self.host));
        let is_empty_and_whole = |text: &str| text.ends_with("/>") && text.find('>') == Some(text.len() - 1);
        self.read_until(|text| text.ends_with("</iq>") || is_empty_and_whole(text))
    }

    pub fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    /// Collects what the server sends until it is whole or the stream ends.
    pub fn read_until(&mut self, is_whole: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut text = String::new();
        let mut piece = [0; 4096];
        while !is_whole(&text) {
            assert!(Instant::now() < deadline, "the XMPP server sends no end: {text}");
            match self.stream.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => text.push_str(std::str::from_utf8(&piece[..length]).unwrap()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("no answer from the XMPP server: {error}; so far: {text}"),
            }
        }
        text
    }
}

pub fn password(user: &str) -> String {
    format!("secret of {user}")
}

pub fn assert_done(answer: &str) {
    assert!(answer.contains("type='result'"), "{answer}");
}

pub fn assert_refused(answer: &str, condition: &str) {
    assert!(answer.contains("type='error'") && answer.contains(&format!("<{condition} ")), "{answer}");
}

/// Makes an invite with a request and returns its token.
pub fn make_invite(server: &Server, key: &str) -> String {
    let request = format!("GET /invites_api?key={key} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let reply = exchange(server.addr, request.as_bytes());
    assert_eq!(reply.status, 201, "{reply:?}");
    reply.token()
}

/// The whole path in short: an invite is made, becomes an account, and is used up on both sides.
fn invite_and_use(server: &Server, key: &str, prosody: &Prosody, site: &Site, user: &str) {
    let token = make_invite(server, key);
    prosody.make_account(&token, user);
    assert_eq!((state(site, &token).as_str(), prosody_has(site, &token)), ("used", false));
    assert_eq!(server.get(&format!("/invite?{token}")).status, 410);
}

/// The state of an invite in our history.
pub fn state(site: &Site, token: &str) -> String {
    column(site, "SELECT state FROM invited_invite WHERE token = ?1", token)
}

/// Whether Prosody's own row of an invite is there.
pub fn prosody_has(site: &Site, token: &str) -> bool {
    column::<i64>(site, "SELECT count(*) FROM prosody WHERE key = ?1", token) > 0
}

pub fn column<T: rusqlite::types::FromSql>(site: &Site, sql: &str, token: &str) -> T {
    site.connection().query_row(sql, [token], |row| row.get(0)).unwrap()
}

pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}
