//! The log: how much of it, with which priority, and that nobody else can write a line of it.

use std::io::{BufRead as _, BufReader, ErrorKind, PipeReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use rusqlite::Connection;
use rustix::io::ioctl_fionbio;

use crate::harness::{Folder, PATIENCE, PROGRAM, Server, connect, create_key, exchange, fails, read_reply, wait_until};

struct Site {
    server: Server,
    key: String,
    folder: Folder,
}

impl Site {
    fn start(args: &[&str]) -> Site {
        Site::spawn(&mut Command::new(PROGRAM), args)
    }

    fn spawn(command: &mut Command, args: &[&str]) -> Site {
        let folder = Folder::new();
        let key = create_key(&folder.db(), "example.com");
        command.args(["serve", "--listen", "127.0.0.1:0", "--db"]).arg(folder.db()).args(args);
        let server = Server::spawn(command.env("TMPDIR", folder.path()));
        Site { server, key, folder }
    }

    /// An answer that is well, one that is refused, one that the gate refuses, and one that fails; then its log.
    fn log_of_all_sorts(&self) -> Vec<String> {
        assert_eq!(self.server.get("/").status, 200);
        assert_eq!(self.server.get("/invites_api?key=a").status, 403);
        assert_eq!(exchange(self.server.addr, b"GET / HTTP/1.1\r\n\r\n").status, 400);
        let holder = Connection::open(self.folder.db()).unwrap();
        holder.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(self.server.get(&format!("/invites_api?key={}", self.key)).status, 503);
        let log = self.server.log_with("status=503");
        log.lines()
            .filter(|line| !line.contains("listening") && !line.contains("event=hardened"))
            .map(str::to_owned)
            .collect()
    }
}

/// Reads a line strictly: names and values, those in quotes as JSON; none where it is not well-formed.
fn pairs(line: &str) -> Option<Vec<(String, String)>> {
    let (mut rest, mut pairs) = (line, Vec::new());
    loop {
        let (name, after) = rest.split_once('=')?;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase());
        let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
        let (value, end) = if after.starts_with('"') {
            (values.next()?.ok()?, values.byte_offset())
        } else {
            let end = after.find(' ').unwrap_or(after.len());
            (after[..end].to_owned(), end)
        };
        let is_plain =
            after.starts_with('"') || value.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"=\\".contains(&byte));
        if !is_name || !is_plain || !line.is_ascii() {
            return None;
        }
        pairs.push((name.to_owned(), value));
        match after[end..].strip_prefix(' ') {
            Some(more) => rest = more,
            None => return after[end..].is_empty().then_some(pairs),
        }
    }
}

/// What leads nowhere can hold a key or a token; so it is while the database is away, when nobody looks where it leads.
#[test]
fn a_path_that_leads_nowhere_is_in_no_log() {
    let site = Site::start(&[]);
    let astray = ["/invite/T0ken", "/invites_api%3Fkey=T0ken/x", "/invites_api/invites/T0ken/x", "/invite/logo/T0ken"];
    let found = ["/invites_api/invites/T0ken", "/invite/setup/T0ken", "/invite/get/T0ken"];
    let ask = |status: &[u16]| {
        for target in astray.iter().chain(&found) {
            let reply = site.server.get(target);
            assert!(status.contains(&reply.status), "{target}: {}", reply.status);
        }
    };
    ask(&[403, 404]);
    std::fs::rename(site.folder.db(), site.folder.file("away")).unwrap();
    ask(&[503]);
    let log = site.server.log_with("path=/invite/get/- status=503");
    assert!(!log.contains("T0ken"), "{log}");
    for line in ["path=- status=404", "path=- status=503", "path=/invites_api/invites/- status=503"] {
        assert!(log.contains(line), "{line} is not in {log}");
    }
}

#[test]
fn each_level_writes_what_it_says() {
    const ALL: [&str; 4] = ["reason=home", "reason=key-malformed", "reason=gate-host", "reason=unavailable"];
    std::thread::scope(|scope| {
        for (args, expected) in [
            (&[][..], &ALL[..]),
            (&["--log-level", "info"], &ALL),
            (&["--log-level", "warning"], &ALL[1..]),
            (&["--log-level", "error"], &ALL[3..]),
        ] {
            // Each waits some seconds for a lock.
            scope.spawn(move || {
                let log = Site::start(args).log_of_all_sorts();
                assert_eq!(log.len(), expected.len(), "{args:?}: {log:#?}");
                for (line, reason) in log.iter().zip(expected) {
                    assert!(line.starts_with("time=") && line.contains(reason), "{args:?}: {line}");
                }
            });
        }
    });
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let stderr = fails(&folder.db(), 64, &["serve", "--log-level", "debug"]);
    assert!(stderr.contains("'debug'") && stderr.contains("warning"), "{stderr}");
}

#[test]
fn lines_have_priorities_where_stderr_is_the_journal_and_only_there() {
    let with = r#"JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$@""#;
    let log = Site::spawn(Command::new("sh").args(["-c", with, "sh", PROGRAM]), &[]).log_of_all_sorts();
    let priorities: Vec<&str> = log.iter().map(|line| &line[..8]).collect();
    assert_eq!(priorities, ["<6>time=", "<4>time=", "<4>time=", "<3>time="], "{log:#?}");
    for other in ["1:1", "", "journal"] {
        let site = Site::spawn(Command::new(PROGRAM).env("JOURNAL_STREAM", other), &[]);
        site.server.get("/");
        let log = site.server.log_with("reason=home");
        assert!(log.lines().last().unwrap().starts_with("time="), "{log}");
    }
}

#[test]
fn a_refused_key_is_logged_with_the_clients_address_whatever_the_proxy_speaks() {
    let site = Site::start(&["--trust-proxy"]);
    for (number, (name, value)) in [
        ("X-Forwarded-For", "6.6.6.6, 192.0.2.0"),
        ("Forwarded", "for=6.6.6.6, for=192.0.2.1;proto=https"),
        ("Forwarded", "for=\"6.6.6.6\r\nForwarded: for=\"192.0.2.2:4711\""),
    ]
    .into_iter()
    .enumerate()
    {
        let reply = site.server.request("GET", "/invites_api", &[(name, value), ("Authorization", "Bearer a")]);
        assert_eq!(reply.status, 403);
        let log = site.server.log_with(&format!("client=192.0.2.{number}"));
        let line = log.lines().last().unwrap();
        assert!(line.contains("reason=key-malformed peer=127.0.0.1 "), "{line}");
    }
    let headers = [("X-Forwarded-For", "192.0.2.9")];
    site.server.request("GET", "/", &headers);
    assert!(!site.server.log_with("reason=home").contains("192.0.2.9"), "who was not refused is nobody's business");
    let site = Site::start(&[]);
    site.server.request("GET", "/invites_api?key=a", &headers);
    assert!(!site.server.log_with("reason=key-malformed").contains("client="), "{}", site.server.log());
}

#[test]
fn no_client_can_forge_a_line_or_a_pair() {
    let site = Site::start(&["--trust-proxy"]);
    let nasty = "\"\\status=200\\n<3>event=forged";
    let mut sent = 0;
    for method in ["GET", "POST", "X'|~event"] {
        for before in [
            "/",
            "/invite?",
            "/invite/logo/",
            "/invite/get/",
            "/invite/setup/",
            "/invites_api/invites/",
            "/invites_api?key=",
            "/%0a",
        ] {
            let headers = [
                ("X-Forwarded-For", nasty),
                ("Forwarded", nasty),
                ("User-Agent", nasty),
                ("X-Invited-Peer", "6.6.6.6 event=forged"),
                ("Authorization", "Bearer a\"\t\\n/b=c"),
            ];
            site.server.request(method, &format!("{before}{nasty}"), &headers[..4]);
            site.server.request(method, &format!("{before}{nasty}"), &headers);
            sent += 2;
        }
    }
    site.server.get("/");
    let log = site.server.log_with("reason=home");
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(" method=")).collect();
    assert_eq!(lines.len(), sent + 1);
    for line in lines {
        let pairs = pairs(line).unwrap_or_else(|| panic!("not logfmt: {line}"));
        let names: Vec<&str> = pairs.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.starts_with(&["time", "method", "path", "status", "reason", "peer", "us"]), "{line}");
        assert!(names.len() == 7 && pairs[5].1 == "127.0.0.1", "{line}");
    }
}

/// A server whose log nobody reads unless a test does so, as with a stopped journald or a log driver that hangs.
struct Unread {
    child: Child,
    addr: SocketAddr,
    stderr: BufReader<PipeReader>,
    _folder: Folder,
}

impl Unread {
    fn start() -> Unread {
        let folder = Folder::new();
        create_key(&folder.db(), "example.com");
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--listen", "127.0.0.1:0", "--db"]).arg(folder.db()).env("TMPDIR", folder.path());
        let child = command.stdin(Stdio::null()).stderr(writer).spawn().unwrap();
        drop(command);
        let mut stderr = BufReader::new(reader);
        let mut line = String::new();
        while !line.starts_with("listening on") {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it has ended");
        }
        let addr = line.trim_end().strip_prefix("listening on http://").unwrap().parse().unwrap();
        Unread { child, addr, stderr, _folder: folder }
    }

    /// Sends requests of the methods `M0`, `M1` and so on, one after the other, each of which is answered.
    fn ask(&self, numbers: std::ops::Range<usize>) {
        let mut connection = BufReader::new(connect(self.addr));
        for number in numbers {
            write!(connection.get_mut(), "M{number} /nothing HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            assert_eq!(read_reply(&mut connection, false).unwrap().status, 404);
        }
    }

    /// The exit code, once it has ended.
    fn ended(&mut self) -> Option<i32> {
        wait_until("it ends", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Much more than fits into a pipe and into the queue before it.
const REQUESTS: usize = 5_000;

#[test]
fn a_log_that_nobody_reads_holds_nobody_up_and_what_it_lacks_is_counted_in_its_place() {
    let mut server = Unread::start();
    server.ask(0..REQUESTS);
    let mut next = 0;
    let mut dropped = 0;
    let mut line = String::new();
    while dropped == 0 {
        line.clear();
        server.stderr.read_line(&mut line).unwrap();
        let pairs = pairs(line.trim_end()).unwrap_or_else(|| panic!("not logfmt: {line}"));
        match &pairs[1] {
            (name, value) if name == "method" => {
                assert_eq!(*value, format!("M{next}"));
                next += 1;
            }
            (name, value) if name == "event" && value == "log-dropped" => dropped = pairs[2].1.parse().unwrap(),
            _ => panic!("{line}"),
        }
    }
    assert_eq!(next + dropped, REQUESTS);
    server.ask(REQUESTS..REQUESTS + 1);
    line.clear();
    server.stderr.read_line(&mut line).unwrap();
    assert!(line.contains(&format!(" method=M{REQUESTS} ")), "{line}");
}

#[test]
fn a_log_that_nobody_reads_does_not_hold_up_the_end() {
    let mut server = Unread::start();
    server.ask(0..REQUESTS);
    Command::new("kill").arg(server.child.id().to_string()).status().unwrap();
    assert_eq!(server.ended(), Some(0));
}

#[test]
fn a_server_that_cannot_start_ends_even_if_nobody_reads_why() {
    for is_nonblocking in [false, true] {
        let folder = Folder::new();
        let (_reader, mut writer) = std::io::pipe().unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        while match writer.write(&[b'x'; 4096]) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        } {}
        ioctl_fionbio(&writer, is_nonblocking).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--listen", "127.0.0.1:0", "--db"]).arg(folder.db()).stderr(writer);
        let mut child = command.spawn().unwrap();
        let mut code = None;
        let deadline = std::time::Instant::now() + PATIENCE;
        while code.is_none() && std::time::Instant::now() < deadline {
            code = child.try_wait().unwrap().map(|status| status.code());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        assert_eq!(code, Some(Some(66)), "it waits for somebody to read why");
    }
}

/// The last lines of a server often say why it has ended.
#[test]
fn the_last_lines_are_written_before_the_end() {
    let mut server = Unread::start();
    server.ask(0..300);
    Command::new("kill").arg(server.child.id().to_string()).status().unwrap();
    assert_eq!(server.ended(), Some(0));
    let lines = server.stderr.by_ref().lines().map_while(Result::ok);
    assert_eq!(lines.filter(|line| line.contains(" method=M")).count(), 300);
}
