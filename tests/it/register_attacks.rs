//! `/register` under attack and on bad days: guesses at passwords and names, forms of other sites, a clock that is set, and
//! an XMPP server or a disk that takes its time. The XMPP servers are played by the tests.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::bad_days::faketime;
use crate::harness::{Folder, PROGRAM, Reply, Server, available, create_key, done};
use crate::register::{
    FORM, HTML, JSON, PASSWORD, assert_error, at_once, fields, form, input, invite, names, problem, register,
    send_json, set_xmpp, show,
};
use crate::register_wire::{HEADER, PLAIN, accept, refusing, start, talk, talk_then};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A server that makes the account, and leaves it to us to use the invite up.
fn taking() -> [(&'static str, String); 4] {
    [
        ("<stream:stream", format!("{HEADER}{PLAIN}")),
        ("</iq>", "<iq type='result' id='1'/>".to_owned()),
        ("</iq>", "<iq type='result' id='2'/>".to_owned()),
        ("</stream:stream>", "</stream:stream>".to_owned()),
    ]
}

/// Registers at a server that makes the account.
fn register_well(server: &Server, listener: &TcpListener, token: &str, name: &str, password: &str) -> Reply {
    std::thread::scope(|scope| {
        scope.spawn(|| talk(listener, &taking()));
        register(server, token, name, password)
    })
}

#[track_caller]
fn assert_not_asked(listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let asked = listener.accept();
    assert!(asked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "the XMPP server was asked");
    listener.set_nonblocking(false).unwrap();
}

// ---- Guesses. ----

/// No address is known here, so that nothing is counted by address.
#[test]
fn after_ten_guesses_at_a_password_even_the_right_one_is_told_nothing() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, LOCAL);
    let [token, other] = [(); 2].map(|()| invite(&folder.db(), &[]));
    for token in [&token, &other] {
        assert_eq!(register_well(&server, &listener, token, "ada", PASSWORD).status, 200);
        assert_eq!(register(&server, token, "ada", PASSWORD).status, 200, "a second tap gets the same answer");
    }
    let wrong = register(&server, &token, "ada", "guess number zero");
    assert_eq!(wrong.status, 410);
    for number in 1..10 {
        let name = ["ada", "Ada", " ada", "ada@example.com", "bob"][number % 5];
        assert_eq!(register(&server, &token, name, &format!("guess number {number}")).status, 410);
    }
    for _ in 0..3 {
        let right = register(&server, &token, "ada", PASSWORD);
        assert_eq!((right.status, &right.body), (410, &wrong.body));
    }
    let right = send_json(&server, &json!({ "token": token, "user": "ada", "password": PASSWORD }));
    assert_error(&right, 410, "token-used", json!("token"));
    assert_eq!(register(&server, &other, "ada", PASSWORD).status, 200, "the guest of another invite loses nothing");
    assert_not_asked(&listener);
}

/// With an invite that has uses left: where the admin leaves accounts to the apps by now, and where nothing can be written.
#[test]
fn guesses_that_come_to_nothing_on_our_side_are_counted_too() {
    for (is_closed, status) in [(true, 403), (false, 500)] {
        let folder = Folder::new();
        let (server, listener) = start(&folder, LOCAL);
        let token = invite(&folder.db(), &["--uses", "50"]);
        assert_eq!(register_well(&server, &listener, &token, "ada", PASSWORD).status, 200);
        if is_closed {
            done(&folder.db(), &["set", "example.com", "register", "off"]);
        } else {
            let broken =
                "CREATE TRIGGER broken BEFORE INSERT ON invited_claim BEGIN SELECT raise(ABORT, 'broken'); END";
            Connection::open(folder.db()).unwrap().execute_batch(broken).unwrap();
        }
        for number in 0..10 {
            assert_eq!(register(&server, &token, "ada", &format!("guess number {number}")).status, status);
        }
        assert_eq!(register(&server, &token, "ada", PASSWORD).status, status);
    }
}

/// An invite for many lets one guess on: the name is taken then.
#[test]
fn guesses_with_an_invite_that_has_uses_left_are_told_nothing_either() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, LOCAL);
    let token = invite(&folder.db(), &["--uses", "50"]);
    let kept = invite(&folder.db(), &["--user", "ada"]);
    done(&folder.db(), &["revoke", "example.com", &kept]);
    assert_eq!(register_well(&server, &listener, &token, "ada", PASSWORD).status, 200);
    let taken = |password: &str| {
        std::thread::scope(|scope| {
            scope.spawn(|| talk(&listener, &refusing("conflict", "")));
            register(&server, &token, "ada", password)
        })
    };
    for number in 0..10 {
        assert_eq!(taken(&format!("guess number {number}")).status, 409);
    }
    assert_eq!(taken(PASSWORD).status, 409);
}

#[test]
fn names_are_counted_by_invite_where_no_address_is_known() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, LOCAL);
    let [token, other] = [(); 2].map(|()| invite(&folder.db(), &[]));
    invite(&folder.db(), &["--user", "bob"]);
    for number in 0..29 {
        let name = ["bob", "BOB", " Bob", "bob@example.com"][number % 4];
        assert_eq!(register(&server, &token, name, PASSWORD).status, 409, "{number}");
    }
    // What the XMPP server says counts as well.
    let taken = std::thread::scope(|scope| {
        scope.spawn(|| talk(&listener, &refusing("conflict", "")));
        register(&server, &token, "ada", PASSWORD)
    });
    assert_eq!(taken.status, 409);
    let limited = register(&server, &token, "eve", PASSWORD);
    assert_eq!(limited.status, 429);
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=600).contains(&wait) && limited.body.contains("Too many names were tried"), "{limited:?}");
    assert_not_asked(&listener);
    // The page goes on, and so does every other invite.
    assert_eq!(form(&server, &token).status, 200);
    assert_eq!(register_well(&server, &listener, &other, "eve", PASSWORD).status, 200);
}

// ---- Other sites. ----

#[test]
fn a_form_of_another_site_is_refused_and_all_others_go_on() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, LOCAL);
    let token = invite(&folder.db(), &[]);
    let send = |token: &str, accept: &str, site: &str| {
        let body = format!("token={token}&user=ada&password=short");
        let line = format!("text/plain\r\n{site}");
        let headers = [("Content-Type", FORM), ("Accept", accept), ("X-Other", line.as_str())];
        server.send("POST", "/register", &headers, body.as_bytes())
    };
    for site in ["X-Y: z", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: none", "Sec-Fetch-Site: same-site"] {
        let reply = send(&token, HTML, site);
        assert_eq!((reply.status, problem(&reply, "password").is_empty()), (400, false), "{site}");
    }
    for site in ["Sec-Fetch-Site: cross-site", "sec-fetch-site:  CROSS-SITE "] {
        let reply = send(&token, HTML, site);
        assert_eq!(reply.status, 403, "{site}");
        assert!(reply.body.contains("another website"), "{}", reply.body);
        assert!(reply.body.contains(&format!("href=\"invite?{token}\"")), "no way back: {}", reply.body);
        assert_error(&send(&token, JSON, site), 403, "cross-site", Value::Null);
        for unknown in ["", "unknown"] {
            let reply = send(unknown, HTML, site);
            assert!(reply.status == 403 && !reply.body.contains("href=\"invite?"), "{}", reply.body);
        }
    }
    assert_eq!(send(&token, HTML, "Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site").status, 400);
    server.log_with("status=403 reason=cross-site");
    assert_eq!(show(&folder.db(), &token)["state"], "pending");
    assert_not_asked(&listener);
    // A link from another site leads to the form all the same.
    let shown = server.request("GET", &format!("/register?t={token}"), &[("Sec-Fetch-Site", "cross-site")]);
    assert!(shown.status == 200 && !input(&shown.body, "password").is_empty(), "{shown:?}");
}

// ---- A clock that is set. ----

/// `invited serve` with a clock of its own, which is set in this file.
fn serve_with_clock(folder: &Folder, library: &Path) -> Server {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "127.0.0.1:0", "--db"]).arg(folder.db()).env("TMPDIR", folder.path());
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", folder.file("offset"));
    Server::spawn(command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1"))
}

fn set_clock(folder: &Folder, text: &str) {
    std::fs::write(folder.file("next"), text).unwrap();
    std::fs::rename(folder.file("next"), folder.file("offset")).unwrap();
}

#[test]
fn a_clock_that_is_set_during_a_registration_lets_no_second_one_begin() {
    let Some(library) = faketime() else { return };
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    set_xmpp(&folder.db(), &listener.local_addr().unwrap().to_string());
    set_clock(&folder, "+0");
    // Two processes that share the file, and of which one clock is right.
    let (server, right) = (serve_with_clock(&folder, &library), Server::start(&folder.db()));
    for step in ["+60", "-60", "+2d"] {
        set_clock(&folder, "+0");
        let token = invite(&folder.db(), &[]);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| register(&server, &token, "ada", PASSWORD));
            let asked = accept(&listener);
            set_clock(&folder, step);
            for server in [&server, &right] {
                let second = register(server, &token, "eve", PASSWORD);
                assert_eq!(second.status, 409, "{step}: {second:?}");
            }
            assert_not_asked(&listener);
            drop(asked);
            assert_eq!(first.join().unwrap().status, 503);
        });
        set_clock(&folder, "+0");
        assert_eq!(register_well(&server, &listener, &token, "ada", PASSWORD).status, 200, "{step}");
    }
}

/// The XMPP server counts the use by its own clock.
#[test]
fn a_use_is_found_whatever_the_clocks_say() {
    let Some(library) = faketime() else { return };
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    set_xmpp(&folder.db(), &listener.local_addr().unwrap().to_string());
    for (step, name) in [("+1h", "ada"), ("-1h", "bob")] {
        let token = invite(&folder.db(), &["--uses", "3"]);
        set_clock(&folder, step);
        let server = serve_with_clock(&folder, &library);
        let reply = std::thread::scope(|scope| {
            scope.spawn(|| {
                // As Prosody does, having made the account.
                let conn = Connection::open(folder.db()).unwrap();
                talk_then(&listener, &taking(), || {
                    conn.execute("DELETE FROM prosody WHERE key = ?1", [&token]).unwrap()
                });
            });
            register(&server, &token, name, PASSWORD)
        });
        assert_eq!(reply.status, 200, "{step}");
        let shown = show(&folder.db(), &token);
        assert_eq!((names(&shown), &shown["uses_left"]), (vec![name], &json!(2)), "{step}");
    }
}

#[test]
fn a_claim_of_an_earlier_boot_holds_nobody_back() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, LOCAL);
    let conn = Connection::open(folder.db()).unwrap();
    // One of our own clock comes before: they may have the same number.
    for claimed_at in [i64::MAX, 0, -1, 1_800_000_000] {
        let token = invite(&folder.db(), &[]);
        // The last is what an older program has written, in seconds: it is of the future in none of our clocks.
        conn.execute("INSERT INTO invited_claim (token, claimed_at) VALUES (?1, ?2)", (&token, claimed_at)).unwrap();
        assert_eq!(register_well(&server, &listener, &token, "ada", PASSWORD).status, 200, "{claimed_at}");
    }
}

/// The server may be at it still: a second account would come of the same invite.
#[test]
fn after_a_lost_answer_nobody_else_begins_at_once() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, LOCAL);
    let token = invite(&folder.db(), &[]);
    let mut steps = taking();
    // It hears the registration and closes the connection.
    steps[2].1 = "</stream:stream>".to_owned();
    let lost = std::thread::scope(|scope| {
        scope.spawn(|| talk(&listener, &steps[..3]));
        register(&server, &token, "ada", PASSWORD)
    });
    assert_eq!((lost.status, lost.header("retry-after")), (503, Some("30")));
    server.log_with("reason=lost");
    assert_eq!(register(&server, &token, "eve", PASSWORD).status, 409);
    assert_not_asked(&listener);
}

// ---- A server or a disk that takes its time. ----

#[test]
fn a_double_tap_at_a_mute_server_is_answered_even_if_we_are_told_to_end() {
    let folder = Folder::new();
    let (mut server, listener) = start(&folder, LOCAL);
    let token = invite(&folder.db(), &[]);
    std::thread::scope(|scope| {
        let guests = scope.spawn(|| at_once(&server, &[fields(&token, "ada"), fields(&token, "ada")]));
        let _mute = accept(&listener);
        server.signal("TERM");
        for reply in guests.join().unwrap() {
            assert_eq!(reply.status, 503, "{reply:?}");
            assert!(reply.header("retry-after").is_some(), "{reply:?}");
        }
        // The second tap has not begun anew what would have gone on after its answer.
        assert_not_asked(&listener);
    });
    assert_eq!(server.wait(), Some(0));
    assert!(!server.log().contains("drain-timeout"), "{}", server.log());
    assert_eq!(show(&folder.db(), &token)["state"], "pending");
}

/// The disk takes six seconds for what comes before the XMPP server is asked: then it is not asked any more.
#[test]
fn what_is_too_late_to_begin_does_not_begin_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let Some((server, listener)) = start_on_slow_disk(&folder, 1, 6) else { return };
    let token = invite(&folder.db(), &[]);
    let busy = register(&server.0, &token, "ada", PASSWORD);
    assert_eq!(busy.status, 503, "{busy:?}");
    server.0.log_with("reason=busy");
    assert_not_asked(&listener);
    assert_eq!(register_well(&server.0, &listener, &token, "ada", PASSWORD).status, 200);
    assert_eq!(names(&show(&folder.db(), &token)), ["ada"]);
}

/// The disk takes 13 seconds for our own note of it, and meanwhile we are told to end.
#[test]
fn an_account_that_is_made_is_answered_as_such_while_its_note_is_written() {
    let folder = Folder::new();
    let Some((mut server, listener)) = start_on_slow_disk(&folder, 2, 13) else { return };
    let token = invite(&folder.db(), &[]);
    let reply = std::thread::scope(|scope| {
        scope.spawn(|| {
            let terminate = || usize::from(server.signal("-TERM"));
            talk_then(&listener, &taking(), terminate);
        });
        register(&server.0, &token, "ada", PASSWORD)
    });
    assert!(reply.status == 200 && reply.body.contains("<bdi>ada<span>@</span>example.com</bdi>"), "{reply:?}");
    assert_eq!(server.0.wait(), Some(0));
    let log = server.0.log();
    assert!(log.contains("reason=registered") && !log.contains("drain-timeout"), "{log}");
    assert_eq!(names(&show(&folder.db(), &token)), ["ada"]);
}

/// A server with so many seconds for the first or second sync of each of its threads; none where strace is not there.
fn start_on_slow_disk(folder: &Folder, sync: u32, seconds: u32) -> Option<(Strace, TcpListener)> {
    if !available("strace", Command::new("strace").arg("-V").output().is_ok()) {
        return None;
    }
    create_key(&folder.db(), "example.com");
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    set_xmpp(&folder.db(), &listener.local_addr().unwrap().to_string());
    let slow = format!("inject=fdatasync:delay_exit={seconds}000000:when={sync}");
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", &slow]);
    command.arg(PROGRAM).args(["serve", "--listen", "127.0.0.1:0", "--db"]).arg(folder.db());
    Some((Strace(Server::spawn(command.env("TMPDIR", folder.path()))), listener))
}

/// A server under strace, which passes on what ends it only to itself.
struct Strace(Server);

impl Strace {
    /// Sends a signal to the server itself.
    fn signal(&self, name: &str) -> bool {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.0.id()));
        let children = children.unwrap_or_default();
        let child = children.split_whitespace().next();
        child
            .is_some_and(|child| Command::new("kill").args([name, child]).status().is_ok_and(|status| status.success()))
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        self.signal("-KILL");
    }
}
