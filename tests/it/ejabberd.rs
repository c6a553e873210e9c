//! The whole path through the real ejabberd of Debian sid, which lies in a folder that is entered with chroot, see
//! `tests/peers/sid.sh`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Folder, PATIENCE, PROGRAM, Server, available, connect, describe, done, exchange, wait_until};

/// What a self-hoster adds to the end of ejabberd's configuration: what `invited setup` prints for a database at this place.
fn snippet(database: &str) -> String {
    done(Path::new(database), &["setup", "ejabberd", "example.com"])
}

/// A time zone without the files of tzdata, which may be missing here or there: New York's.
const NEW_YORK: &str = "EST5EDT,M3.2.0,M11.1.0";

#[test]
fn an_invite_becomes_one_account_and_is_used_up() {
    let Some(site) = Site::new() else { return };
    let key = site.set_up();
    let server = site.serve();
    let ejabberd = Ejabberd::start(&site);

    let request = format!("GET /invites_api?key={key} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let reply = exchange(server.addr, request.as_bytes());
    assert_eq!(reply.status, 201, "{reply:?}");
    let token = reply.token();
    assert_eq!(server.get(&format!("/invite?{token}")).status, 200);
    assert_eq!(ejabberd.listed(&token).unwrap()["valid"], "true");

    ejabberd.make_account(&token, "ada");
    let invite = site.show(&token);
    assert_eq!((&invite["state"], &invite["used"][0]["username"]), (&json!("used"), &json!("ada")));
    let ended_at = invite["ended_at"].as_i64().unwrap();
    assert!((now() - ended_at).abs() <= 30, "ended_at is {ended_at}");
    assert!(site.done(&["show", "example.com", &token]).contains(" by ada\n"));
    assert_eq!(server.get(&format!("/invite?{token}")).status, 410);

    let mut again = ejabberd.client();
    assert_refused(&again.preauth(&token), "item-not-found");
    assert_refused(&again.register("bob", "secret"), "forbidden");
    assert_refused(&ejabberd.client().register("bob", "secret"), "forbidden");
    assert!(!ejabberd.has_account("bob"));
}

/// ejabberd holds this by itself; with Prosody it takes the lines of `setup`, see `one_link.rs`.
#[test]
fn one_link_makes_one_account_on_one_connection_and_on_several() {
    let Some(site) = Site::new() else { return };
    site.set_up();
    let ejabberd = Ejabberd::start(&site);
    let token = site.invite(&[]);
    let mut clients: Vec<Client> = std::iter::repeat_with(|| {
        let mut client = ejabberd.client();
        assert_done(&client.preauth(&token));
        client
    })
    .take(3)
    .collect();
    assert_done(&clients[0].register("ada", "secret"));
    for client in &mut clients {
        assert!(client.register("bob", "secret").contains("type='error'"));
    }
    assert!(ejabberd.has_account("ada") && !ejabberd.has_account("bob"));
    assert_eq!(site.show(&token)["used"][0]["username"], "ada");

    let revoked = site.invite(&["--uses", "3"]);
    let mut client = ejabberd.client();
    assert_done(&client.preauth(&revoked));
    site.done(&["revoke", "example.com", &revoked]);
    assert!(client.register("bob", "secret").contains("type='error'"));
    assert!(!ejabberd.has_account("bob"));
}

#[test]
fn an_invite_with_a_fixed_name_registers_no_other() {
    let Some(site) = Site::new() else { return };
    site.set_up();
    let ejabberd = Ejabberd::start(&site);
    let ours = site.invite(&["--user", "Ana"]);
    let theirs = ejabberd.api("generate_invite_with_username", json!({ "username": "bea", "host": "example.com" }));
    let theirs = token_of(&theirs["invite_uri"]);
    let free = site.invite(&[]);
    for (token, name) in [(ours, "ana"), (theirs, "bea")] {
        let mut client = ejabberd.client();
        assert_done(&client.preauth(&token));
        assert_refused(&client.register("eve", "secret"), "conflict");
        assert!(!ejabberd.has_account("eve"));
        assert_eq!(site.show(&token)["state"], "pending");
        // Meanwhile nobody else gets the name.
        let mut other = ejabberd.client();
        assert_done(&other.preauth(&free));
        assert_refused(&other.register(name, "secret"), "not-allowed");

        ejabberd.make_account(&token, name);
        let invite = site.show(&token);
        assert_eq!((&invite["state"], &invite["used"][0]["username"]), (&json!("used"), &json!(name)));
    }
}

#[test]
fn a_reset_sets_a_new_password_in_place_of_the_old_one() {
    let Some(site) = Site::new() else { return };
    site.set_up();
    let ejabberd = Ejabberd::start(&site);
    ejabberd.api("register", json!({ "user": "ana", "host": "example.com", "password": "old" }));
    ejabberd.api("register", json!({ "user": "bob", "host": "example.com", "password": "old" }));

    let token = site.invite(&["--reset", "ana"]);
    let listed = ejabberd.listed(&token).unwrap();
    assert_eq!((&listed["valid"], &listed["type"]), (&json!("true"), &json!("reset_token")));
    let mut client = ejabberd.client();
    assert_done(&client.preauth(&token));
    assert_refused(&client.register("bob", "new"), "not-allowed");
    assert_done(&client.register("ana", "new"));
    assert!(client.log_in("ana", "new"));
    assert!(!ejabberd.client().log_in("ana", "old"));
    assert!(ejabberd.client().log_in("bob", "old"));
    let invite = site.show(&token);
    assert_eq!((&invite["state"], &invite["used"][0]["username"]), (&json!("used"), &json!("ana")));
    assert_refused(&ejabberd.client().preauth(&token), "item-not-found");
}

#[test]
fn an_account_and_contact_invite_fills_both_rosters() {
    let Some(site) = Site::new() else { return };
    site.set_up();
    let ejabberd = Ejabberd::start(&site);
    ejabberd.api("register", json!({ "user": "ana", "host": "example.com", "password": "secret of ana" }));
    let token = site.invite(&["--contact", "ana", "--register"]);
    assert_eq!(ejabberd.listed(&token).unwrap()["type"], "account_subscription");
    ejabberd.make_account(&token, "bob");
    ejabberd.wait_for_contacts("ana", "bob");
    ejabberd.wait_for_contacts("bob", "ana");
    assert_eq!(site.show(&token)["used"][0]["username"], "bob");
}

#[test]
fn a_contact_invite_makes_contacts_and_no_account() {
    let Some(site) = Site::new() else { return };
    site.set_up();
    let ejabberd = Ejabberd::start(&site);
    ejabberd.api("register", json!({ "user": "ana", "host": "example.com", "password": "secret of ana" }));
    ejabberd.api("register", json!({ "user": "bob", "host": "example.com", "password": "secret of bob" }));
    let token = site.invite(&["--contact", "ana"]);
    let listed = ejabberd.listed(&token).unwrap();
    assert_eq!((&listed["valid"], &listed["type"]), (&json!("true"), &json!("roster_only")));
    assert_refused(&ejabberd.client().preauth(&token), "item-not-found");

    // Both are there, as their clients would be.
    let [_ana, mut bob] = ["ana", "bob"].map(|name| {
        let mut client = ejabberd.session(name);
        client.send("<presence/>");
        client
    });
    bob.send(&format!(
        "<presence type='subscribe' to='ana@example.com'><preauth xmlns='urn:xmpp:pars:0' token='{token}'/></presence>"
    ));
    wait_until("the invite is used", || site.show(&token)["state"] == "used");
    assert_eq!(site.show(&token)["used"][0]["username"], "bob@example.com");
    wait_until("ana has bob as a contact", || ejabberd.roster("ana").contains("bob@example.com"));
    wait_until("bob has ana as a contact", || ejabberd.roster("bob").contains("ana@example.com"));
}

#[test]
fn an_invite_for_three_makes_three_accounts_and_no_fourth() {
    let Some(site) = Site::new() else { return };
    site.set_up();
    let ejabberd = Ejabberd::start(&site);
    let token = site.invite(&["--uses", "3"]);
    for (name, left) in [("ada", 2), ("bob", 1), ("carol", 0)] {
        ejabberd.make_account(&token, name);
        assert_eq!(site.show(&token)["uses_left"], left);
    }
    let invite = site.show(&token);
    let names: Vec<&str> =
        invite["used"].as_array().unwrap().iter().map(|used| used["username"].as_str().unwrap()).collect();
    assert_eq!((names.as_slice(), &invite["state"]), (["ada", "bob", "carol"].as_slice(), &json!("used")));
    assert_refused(&ejabberd.client().preauth(&token), "item-not-found");
}

#[test]
fn what_either_takes_back_is_refused_at_once_and_known_to_the_other() {
    let Some(site) = Site::new() else { return };
    site.set_up();
    let ejabberd = Ejabberd::start(&site);
    let [ours, deleted, expired] = [(); 3].map(|()| site.invite(&[]));
    let theirs = token_of(&ejabberd.api("generate_invite", json!({ "host": "example.com" }))["invite_uri"]);

    // A guest who has shown the token already gets no account either.
    let mut early = ejabberd.client();
    assert_done(&early.preauth(&ours));
    site.done(&["revoke", "example.com", &ours]);
    site.done(&["revoke", "example.com", &theirs]);
    assert!(ejabberd.listed(&ours).is_none() && ejabberd.listed(&theirs).is_none());
    assert_refused(&early.register("ada", "secret"), "conflict");

    ejabberd.api("delete_invite_by_token", json!({ "host": "example.com", "token": deleted }));
    ejabberd.api("expire_invite_by_token", json!({ "host": "example.com", "token": expired }));
    for (token, state) in [(&ours, "revoked"), (&theirs, "revoked"), (&deleted, "revoked"), (&expired, "expired")] {
        assert_eq!(site.show(token)["state"], state);
        assert_refused(&ejabberd.client().preauth(token), "item-not-found");
    }
    assert!(!ejabberd.has_account("ada"));
    assert_eq!(site.done(&["invites", "example.com"]), "");

    // What ejabberd then cleans up stays expired.
    ejabberd.api("cleanup_expired_invite_tokens", json!({}));
    assert!(ejabberd.listed(&expired).is_none());
    assert_eq!(site.show(&expired)["state"], "expired");
}

#[test]
fn an_expired_invite_is_refused_and_pruned() {
    let Some(site) = Site::new() else { return };
    site.set_up();
    let ejabberd = Ejabberd::start(&site);
    let token = site.invite(&["--ttl", "1s"]);
    wait_until("the invite is expired", || site.show(&token)["state"] == "expired");
    assert_eq!(ejabberd.listed(&token).unwrap()["valid"], "false");
    assert_refused(&ejabberd.client().preauth(&token), "item-not-found");
    site.done(&["prune"]);
    assert!(ejabberd.listed(&token).is_none());
    assert_eq!(site.show(&token)["state"], "expired");
}

#[test]
fn invites_made_inside_ejabberd_are_listed_whatever_the_time_zone() {
    let Some(mut site) = Site::new() else { return };
    site.zone = NEW_YORK;
    site.set_up();
    let ejabberd = Ejabberd::start(&site);
    ejabberd.api("register", json!({ "user": "ana", "host": "example.com", "password": "secret of ana" }));
    let made = |command: &str, args: Value| token_of(&ejabberd.api(command, args)["invite_uri"]);
    let named = json!({ "username": "bea", "host": "example.com" });
    let mut ana = ejabberd.session("ana");
    let form = |subscribe: u8| {
        format!(
            "<x xmlns='jabber:x:data' type='submit'><field var='roster-subscription'><value>{subscribe}</value></field></x>"
        )
    };
    let made = [
        (made("generate_invite", json!({ "host": "example.com" })), "account", json!(null), "server"),
        (made("generate_invite_with_username", named), "account", json!("bea"), "server"),
        (
            made("generate_reset_token", json!({ "username": "ana", "host": "example.com" })),
            "reset",
            json!("ana"),
            "server",
        ),
        (ana.ad_hoc("invite", ""), "contact", json!("ana"), "ana@example.com"),
        (ana.ad_hoc("create-account", &form(0)), "account", json!(null), "ana@example.com"),
        (ana.ad_hoc("create-account", &form(1)), "account-and-contact", json!("ana"), "ana@example.com"),
    ];
    let list: Vec<Value> = serde_json::from_str(&site.done(&["invites", "example.com", "--json"])).unwrap();
    assert_eq!(list.len(), made.len(), "{list:?}");
    for (token, kind, username, source) in &made {
        let invite = list.iter().find(|invite| invite["token"] == **token).expect("it is listed");
        assert_eq!((&invite["kind"], &invite["username"], &invite["source"]), (&json!(kind), username, &json!(source)));
        let [created_at, expires] = ["created_at", "expires"].map(|name| invite[name].as_i64().unwrap());
        assert!((now() - created_at).abs() <= 30, "{invite}");
        // ejabberd adds five days in UTC and compares the outcome with the local time: four or five hours more here.
        let more = expires - created_at - 5 * 86_400;
        assert!((4 * 3_600..=5 * 3_600).contains(&more), "{invite}");
    }
    // And the other way round: what is made here runs out at the right second for ejabberd.
    let short = site.invite(&["--ttl", "3s"]);
    assert_done(&ejabberd.client().preauth(&short));
    ejabberd.make_account(&made[0].0, "ada");
    ejabberd.make_account(&made[4].0, "carl");
    assert_eq!(site.show(&made[0].0)["used"][0]["username"], "ada");
    wait_until("ejabberd refuses it", || ejabberd.client().preauth(&short).contains("<item-not-found "));
    // We take the very second of the expiry as good, ejabberd does not.
    wait_until("it is expired here", || site.show(&short)["state"] == "expired");
}

#[test]
fn ejabberd_may_start_first_on_a_missing_file() {
    let Some(site) = Site::new() else { return };
    let ejabberd = Ejabberd::start(&site);
    let earlier = token_of(&ejabberd.api("generate_invite", json!({ "host": "example.com" }))["invite_uri"]);
    site.set_up();
    let token = site.invite(&[]);
    ejabberd.make_account(&token, "ada");
    assert_eq!(site.show(&token)["used"][0]["username"], "ada");
    // What was there before is known, and works on.
    assert_eq!(site.show(&earlier)["state"], "pending");
    ejabberd.make_account(&earlier, "bob");
    assert_eq!(site.show(&earlier)["used"][0]["username"], "bob");
}

#[test]
fn invited_may_start_first_on_a_missing_file_and_either_may_restart() {
    let Some(site) = Site::new() else { return };
    site.set_up();
    let token = site.invite(&[]);
    let kept = site.invite(&[]);
    let ejabberd = Ejabberd::start(&site);
    ejabberd.make_account(&token, "ada");
    assert_eq!(site.show(&token)["used"][0]["username"], "ada");
    drop(ejabberd); // kills it
    let ejabberd = Ejabberd::start(&site);
    ejabberd.make_account(&kept, "bob");
    assert_eq!(site.show(&kept)["used"][0]["username"], "bob");
}

#[test]
fn the_multihost_schema_is_filled_in_with_the_host() {
    let Some(mut site) = Site::new() else { return };
    site.more = "sql_schema_multihost: true\n";
    let ejabberd = Ejabberd::start(&site);
    // So it makes its tables only when it needs them, and must come first.
    let earlier = token_of(&ejabberd.api("generate_invite", json!({ "host": "example.com" }))["invite_uri"]);
    site.set_up();
    let token = site.invite(&[]);
    ejabberd.make_account(&token, "ada");
    assert_eq!(site.show(&token)["used"][0]["username"], "ada");
    let theirs = token_of(&ejabberd.api("generate_invite", json!({ "host": "example.com" }))["invite_uri"]);
    let invite = site.show(&theirs);
    assert_eq!((&invite["host"], &invite["state"]), (&json!("example.com"), &json!("pending")));
    assert_eq!(site.show(&earlier)["state"], "pending");
    let host: String = site
        .connection()
        .query_row("SELECT server_host FROM invite_token WHERE token = ?1", [&token], |row| row.get(0))
        .unwrap();
    assert_eq!(host, "example.com");
}

#[test]
fn a_registration_on_a_locked_file_is_refused_and_leaves_the_invite_good() {
    let Some(site) = Site::new() else { return };
    site.set_up();
    let ejabberd = Ejabberd::start(&site);
    let token = site.invite(&[]);
    let mut client = ejabberd.client();
    assert_done(&client.preauth(&token));
    let lock = site.connection();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    // The invite can't be marked; so ejabberd takes the guest for one without, whom `allow_modules` keeps out.
    assert_refused(&client.register("ada", "secret"), "forbidden");
    lock.execute_batch("ROLLBACK").unwrap();
    assert!(!ejabberd.has_account("ada"));
    assert_eq!(site.show(&token)["state"], "pending");
    ejabberd.make_account(&token, "ada");
    assert_eq!(site.show(&token)["state"], "used");
}

/// What these tests run with is what the README says to paste.
#[test]
fn the_readme_shows_the_very_lines_that_ejabberd_runs_with() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let snippet = snippet("/var/lib/invited/invited.sqlite");
    let (comment, lines) = snippet.split_once("\n\n").unwrap();
    assert!(comment.lines().all(|line| line.starts_with("# ")), "{comment}");
    assert!(readme.contains(&format!("```yaml\n{lines}```\n")), "{lines}");
}

/// The folder that ejabberd takes for the root of the file system.
pub fn root() -> PathBuf {
    std::env::var_os("INVITED_TEST_SID").unwrap_or(OsString::from("/var/cache/invited-test/sid")).into()
}

/// User and group of ejabberd's packages, by numbers, which differ from those of this machine.
fn user_and_group() -> (u32, u32) {
    let users = std::fs::read_to_string(root().join("etc/passwd")).unwrap();
    let user = users.lines().find(|line| line.starts_with("ejabberd:")).expect("a user ejabberd");
    let numbers: Vec<u32> = user.split(':').skip(2).take(2).map(|number| number.parse().unwrap()).collect();
    (numbers[0], numbers[1])
}

/// A folder that both ejabberd and `invited` reach, and the database in it.
pub struct Site {
    pub folder: Folder,
    /// The time zone of both.
    zone: &'static str,
    /// More lines of configuration.
    more: &'static str,
    /// What a test has otherwise in the configuration: pieces of it, and what stands in their places.
    pub changes: Vec<(&'static str, String)>,
}

impl Site {
    /// None where there is no ejabberd.
    pub fn new() -> Option<Site> {
        let is_root = rustix::process::geteuid().is_root();
        if !available("sid", is_root && root().join("usr/sbin/ejabberdctl").exists()) {
            return None;
        }
        let folder = Folder::within(&root().join("srv"));
        let (user, group) = user_and_group();
        chown(folder.path(), Some(user), Some(group)).unwrap();
        Some(Site { folder, zone: "UTC", more: "", changes: Vec::new() })
    }

    pub fn db(&self) -> PathBuf {
        self.folder.db()
    }

    fn connection(&self) -> Connection {
        Connection::open(self.db()).unwrap()
    }

    /// A key, and the setting, as the README says. Returns the key.
    pub fn set_up(&self) -> String {
        let key = self.done(&["create", "example.com"]).trim_end().to_owned();
        self.done(&["set", "example.com", "server", "ejabberd"]);
        // The tests run as root, whose SQLite gives -wal and -shm to the user that has the file.
        let (user, group) = user_and_group();
        chown(self.db(), Some(user), Some(group)).unwrap();
        key
    }

    /// The program, on this database and in this time zone.
    fn invited(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args).env("INVITED_DB", self.db()).env("TZ", self.zone).stdin(Stdio::null());
        command
    }

    /// Runs the program, expects it to succeed, and returns its stdout.
    pub fn done(&self, args: &[&str]) -> String {
        let output = self.invited(args).output().unwrap();
        assert!(output.status.success(), "{}", describe(args, &output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn serve(&self) -> Server {
        let mut command = self.invited(&["serve", "--listen", "127.0.0.1:0"]);
        Server::spawn(command.env("TMPDIR", self.folder.path()))
    }

    /// Makes an invite and returns its token.
    pub fn invite(&self, args: &[&str]) -> String {
        let link = self.done(&[&["invite", "example.com"], args].concat());
        link.trim_end().split_once('?').expect("a link with a token").1.to_owned()
    }

    /// All that is known of an invite.
    pub fn show(&self, token: &str) -> Value {
        serde_json::from_str(&self.done(&["show", "example.com", token, "--json"])).unwrap()
    }

    /// A file of the folder by the name that ejabberd knows it by.
    pub fn seen_by_ejabberd(&self, name: &str) -> String {
        let file = self.folder.file(name);
        let seen = Path::new("/").join(file.strip_prefix(root()).unwrap());
        seen.into_os_string().into_string().unwrap()
    }

    /// A configuration with what ejabberd needs in order to run, and the lines of [`snippet`].
    fn config(&self, xmpp: u16, http: u16) -> String {
        let snippet = snippet(&self.seen_by_ejabberd("invited.sqlite"));
        let config = format!(
            r#"hosts: [example.com]
loglevel: info
auth_method: internal
acl: {{local: {{user_regexp: ""}}}}
access_rules: {{local: {{allow: local}}}}
listen:
  - {{port: {xmpp}, ip: "127.0.0.1", module: ejabberd_c2s}}
  - {{port: {http}, ip: "127.0.0.1", module: ejabberd_http, request_handlers: {{/api: mod_http_api}}}}
modules:
  mod_adhoc: {{}}
  mod_admin_extra: {{}}
  mod_disco: {{}}
  mod_roster: {{}}
api_permissions:
  local: {{from: [mod_http_api], who: {{access: {{allow: [{{ip: "127.0.0.0/8"}}]}}}}, what: "*"}}
{more}{snippet}"#,
            more = self.more,
        );
        self.changes.iter().fold(config, |config, (from, to)| {
            assert!(config.contains(from), "{from} is not in {config}");
            config.replace(from, to)
        })
    }
}

/// An ejabberd in the foreground; killed when it is dropped.
pub struct Ejabberd {
    child: Child,
    pub xmpp: SocketAddr,
    pub http: SocketAddr,
    log: PathBuf,
}

impl Ejabberd {
    /// Starts it and waits until clients can connect.
    pub fn start(site: &Site) -> Ejabberd {
        for _ in 0..3 {
            if let Some(ejabberd) = Ejabberd::try_start(site) {
                return ejabberd;
            }
        }
        panic!("ejabberd finds no free ports");
    }

    /// None if another program took a port in the meantime.
    fn try_start(site: &Site) -> Option<Ejabberd> {
        let (user, group) = user_and_group();
        let free = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let [xmpp, http, erlang] = free.each_ref().map(|listener| listener.local_addr().unwrap());
        std::fs::write(site.folder.file("ejabberd.yml"), site.config(xmpp.port(), http.port())).unwrap();
        // With a port of its own for Erlang's distribution, it needs no epmd, which would go on running.
        let options = "-env ERL_CRASH_DUMP_BYTES 0 -kernel inet_dist_use_interface {127,0,0,1}";
        let control = format!("ERL_DIST_PORT={}\nERL_OPTIONS=\"{options}\"\n", erlang.port());
        std::fs::write(site.folder.file("ejabberdctl.cfg"), control).unwrap();
        for name in ["logs", "spool"] {
            let folder = site.folder.file(name);
            std::fs::create_dir_all(&folder).unwrap();
            chown(&folder, Some(user), Some(group)).unwrap();
        }
        let log = site.folder.file("ejabberd.out");
        let output = File::create(&log).unwrap();
        let seen = |name| site.seen_by_ejabberd(name);
        let mut command = Command::new("unshare");
        // ejabberdctl starts Erlang as its child. In a namespace of their own, all of them end with the first process,
        // and this one is a shell that stays root: who changes users does not die with his parent.
        command.args(["--pid", "--fork", "--kill-child", "--mount"]);
        command.arg(format!("--mount-proc={}", root().join("proc").display()));
        command.args(["sh", "-c", "\"$@\"; exit $?", "sh", "chroot"]);
        command.args([format!("--userspec={user}:{group}"), format!("--groups={group}")]);
        command.arg(root()).args(["env", &format!("HOME={}", seen(".")), &format!("TZ={}", site.zone), "ejabberdctl"]);
        command.args(["--config", &seen("ejabberd.yml"), "--ctl-config", &seen("ejabberdctl.cfg")]);
        command.args(["--logs", &seen("logs"), "--spool", &seen("spool")]);
        // The spool remembers the name of its node.
        let node = site.folder.path().file_name().unwrap().to_str().unwrap();
        command.args(["--node", &format!("{node}@localhost"), "foreground"]);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        drop(free);
        let child = command.spawn().unwrap();
        let mut ejabberd = Ejabberd { child, xmpp, http, log };
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let log = ejabberd.log();
            if log.contains("eaddrinuse") {
                return None;
            }
            let listens = |addr: SocketAddr| {
                log.contains(&format!("Start accepting TCP connections at {addr} ")) && TcpStream::connect(addr).is_ok()
            };
            if listens(xmpp) && listens(http) {
                return Some(ejabberd);
            }
            let ended = ejabberd.child.try_wait().unwrap();
            assert!(ended.is_none(), "ejabberd has ended: {ended:?}");
            sleep(Duration::from_millis(20));
        }
        panic!("ejabberd does not listen");
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.xmpp)
    }

    /// A client of a user that is logged in and can send stanzas.
    fn session(&self, user: &str) -> Client {
        let mut client = self.client();
        assert!(client.log_in(user, &password(user)));
        client.open_stream();
        assert_done(&client.request("<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>test</resource></bind>"));
        client
    }

    /// Registers with a token and logs in, all of which must succeed.
    fn make_account(&self, token: &str, user: &str) {
        let mut client = self.client();
        assert_done(&client.preauth(token));
        assert_done(&client.register(user, &password(user)));
        assert!(client.log_in(user, &password(user)), "{user} can't log in");
    }

    /// One of ejabberd's commands, which must succeed.
    pub fn api(&self, command: &str, args: Value) -> Value {
        let body = args.to_string();
        let request = format!(
            "POST /api/{command} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let reply = exchange(self.http, request.as_bytes());
        assert_eq!(reply.status, 200, "{command} {body}: {reply:?}");
        serde_json::from_str(&reply.body).unwrap()
    }

    /// An invite as ejabberd sees it, if it does.
    fn listed(&self, token: &str) -> Option<Value> {
        let list = self.api("list_invites", json!({ "host": "example.com" }));
        list.as_array().unwrap().iter().find(|invite| invite["token"] == token).cloned()
    }

    pub fn has_account(&self, user: &str) -> bool {
        let users = self.api("registered_users", json!({ "host": "example.com" }));
        users.as_array().unwrap().iter().any(|found| found == user)
    }

    /// The roster of a user, as text.
    fn roster(&self, user: &str) -> String {
        self.api("get_roster", json!({ "user": user, "host": "example.com" })).to_string()
    }

    /// Waits until a user has another in the roster, with presence both ways.
    pub fn wait_for_contacts(&self, user: &str, contact: &str) {
        wait_until(&format!("{user} has {contact} as a contact"), || {
            let roster = self.api("get_roster", json!({ "user": user, "host": "example.com" }));
            let address = format!("{contact}@example.com");
            roster.as_array().unwrap().iter().any(|item| item["jid"] == *address && item["subscription"] == "both")
        });
    }
}

impl Drop for Ejabberd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The rest of the namespace ends after its parent; until then it could write to the test's folder.
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.xmpp).is_ok() && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
        if std::thread::panicking() {
            eprintln!("log of ejabberd:\n{}", self.log());
        }
    }
}

/// An XMPP client over plain TCP that knows just enough for invites.
pub struct Client {
    stream: TcpStream,
}

impl Client {
    /// Opens a stream, on which the server must offer registration (XEP-0077) and with a token (XEP-0445).
    fn connect(addr: SocketAddr) -> Client {
        let mut client = Client { stream: connect(addr) };
        let features = client.open_stream();
        for feature in ["http://jabber.org/features/iq-register", "urn:xmpp:ibr-token:0"] {
            assert!(features.contains(feature), "{feature} is not among the features: {features}");
        }
        client
    }

    fn open_stream(&mut self) -> String {
        self.send(
            "<?xml version='1.0'?><stream:stream to='example.com' version='1.0' xmlns='jabber:client' \
             xmlns:stream='http://etherx.jabber.org/streams'>",
        );
        self.read_until(|text| text.ends_with("</stream:features>"))
    }

    /// Shows a token and returns the answer.
    fn preauth(&mut self, token: &str) -> String {
        self.request(&format!("<preauth xmlns='urn:xmpp:pars:0' token='{token}'/>"))
    }

    /// Registers an account, or sets its password, and returns the answer.
    fn register(&mut self, user: &str, password: &str) -> String {
        let fields = format!("<username>{user}</username><password>{password}</password>");
        self.request(&format!("<query xmlns='jabber:iq:register'>{fields}</query>"))
    }

    /// Logs in with SASL PLAIN; whether that succeeds.
    pub fn log_in(&mut self, user: &str, password: &str) -> bool {
        use base64::Engine as _;
        let message = base64::prelude::BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
        self.send(&format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{message}</auth>"));
        let outcome = self.read_until(|text| text.starts_with("<success") || text.ends_with("</failure>"));
        outcome.starts_with("<success")
    }

    /// Makes an invite as users do in their clients (XEP-0401) and returns its token.
    fn ad_hoc(&mut self, command: &str, form: &str) -> String {
        let node = format!("urn:xmpp:invite#{command}");
        let execute = |sid: &str, form: &str| {
            format!(
                "<command xmlns='http://jabber.org/protocol/commands' node='{node}' action='execute'{sid}>{form}</command>"
            )
        };
        let mut answer = self.request(&execute("", ""));
        if !form.is_empty() {
            let sid =
                answer.split_once("sessionid='").and_then(|(_, rest)| rest.split_once('\'')).expect("a session").0;
            answer = self.request(&execute(&format!(" sessionid='{sid}'"), form));
        }
        assert_done(&answer);
        let rest = answer.split_once("preauth=").unwrap_or_else(|| panic!("no token: {answer}")).1;
        rest.chars().take_while(char::is_ascii_alphanumeric).collect()
    }

    fn request(&mut self, content: &str) -> String {
        self.send(&format!("<iq type='set' id='1' to='example.com'>{content}</iq>"));
        let is_empty_and_whole = |text: &str| text.ends_with("/>") && text.find('>') == Some(text.len() - 1);
        self.read_until(|text| text.ends_with("</iq>") || is_empty_and_whole(text))
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    /// Collects what the server sends until it is whole or the stream ends.
    fn read_until(&mut self, is_whole: impl Fn(&str) -> bool) -> String {
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

/// The password of a user wherever a test does not care.
fn password(user: &str) -> String {
    format!("secret of {user}")
}

fn assert_done(answer: &str) {
    assert!(answer.contains("type='result'"), "{answer}");
}

fn assert_refused(answer: &str, condition: &str) {
    assert!(answer.contains("type='error'") && answer.contains(&format!("<{condition} ")), "{answer}");
}

/// The token in an `xmpp:` URI of ejabberd's.
fn token_of(uri: &Value) -> String {
    uri.as_str().unwrap().split_once("preauth=").expect("a token").1.to_owned()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}
