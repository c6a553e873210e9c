//! The admin's door: health that a write has proven, metrics that a strict reader takes, and nothing else.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use rusqlite::Connection;

use crate::harness::{Folder, PROGRAM, Reply, Server, connect, create_key, done, exchange, old_file};

const HOST: &str = "example.com";

/// A server with a door for the admin.
struct Site {
    server: Server,
    admin: SocketAddr,
    key: String,
    folder: Folder,
}

impl Site {
    fn start() -> Site {
        let folder = Folder::new();
        let key = create_key(&folder.db(), HOST);
        Site::serve(folder, key, &mut Command::new(PROGRAM))
    }

    /// `command` takes the arguments of the program.
    fn serve(folder: Folder, key: String, command: &mut Command) -> Site {
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--db"]).arg(folder.db());
        let server = Server::spawn(command.env("TMPDIR", folder.path()));
        let before = "listening for the admin on http://";
        let log = server.log_with(before);
        let admin = log.split_once(before).unwrap().1.lines().next().unwrap().parse().unwrap();
        Site { server, admin, key, folder }
    }

    fn ask(&self, method: &str, target: &str) -> Reply {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        exchange(self.admin, request.as_bytes())
    }

    fn make(&self) -> Reply {
        self.server.get(&format!("/invites_api?key={}", self.key))
    }

    fn db(&self) -> Connection {
        Connection::open(self.folder.db()).unwrap()
    }

    fn metrics(&self) -> Metrics {
        let reply = self.ask("GET", "/metrics");
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        Metrics::parse(&reply.body)
    }
}

/// Samples by their name and labels, sorted: `x{a="b"}`.
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads the text format strictly: every family once, with help and type before its samples, no sample twice.
    fn parse(text: &str) -> Metrics {
        let is_name = |name: &str| {
            let mut chars = name.chars();
            chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
                && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        assert!(text.ends_with('\n'));
        let (mut samples, mut families) = (BTreeMap::new(), HashSet::new());
        let mut family = (String::new(), String::new());
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(is_name(name) && !help.contains('\\') && help.ends_with('.'), "{line}");
                let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(families.insert(name.to_owned()), "{name} comes twice");
                family = (name.to_owned(), kind.to_owned());
                continue;
            }
            let (name, labels, value) = sample(line);
            assert!(is_name(&name) && labels.iter().all(|(name, _)| is_name(name)), "{line}");
            let suffix = name.strip_prefix(&family.0).unwrap_or_else(|| panic!("{line} is not of {}", family.0));
            let is_histogram = family.1 == "histogram";
            assert!(if is_histogram { ["_bucket", "_sum", "_count"].contains(&suffix) } else { suffix.is_empty() });
            assert_eq!(labels.iter().any(|(name, _)| name == "le"), suffix == "_bucket", "{line}");
            let value: f64 = value.parse().unwrap();
            assert!(value >= 0.0, "{line}");
            assert!(samples.insert(show(&name, labels), value).is_none(), "{line} comes twice");
        }
        let metrics = Metrics(samples);
        metrics.check_histograms();
        metrics
    }

    /// Buckets never fall, and the last one holds all.
    fn check_histograms(&self) {
        let mut buckets: HashMap<String, Vec<(f64, f64)>> = HashMap::new();
        for (name, value) in self.0.iter().filter(|(name, _)| name.contains("_bucket{")) {
            let (_, labels, _) = sample(&format!("{name} 0"));
            let bound = labels.iter().find(|(name, _)| name == "le").unwrap().1.replace("+Inf", "inf");
            let others = labels.into_iter().filter(|(name, _)| name != "le").collect();
            let of = show(name.split_once("_bucket{").unwrap().0, others);
            buckets.entry(of).or_default().push((bound.parse().unwrap(), *value));
        }
        for (of, mut buckets) in buckets {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.is_sorted_by_key(|(_, count)| *count), "{of}: {buckets:?}");
            let (bound, count) = buckets.last().unwrap();
            let name = of.replacen('{', "_count{", 1);
            assert_eq!((*bound, Some(count)), (f64::INFINITY, self.0.get(&name)), "{name}");
        }
    }

    fn get(&self, name: &str) -> f64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no {name} in {:#?}", self.0))
    }
}

fn show(name: &str, mut labels: Vec<(String, String)>) -> String {
    labels.sort();
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) }
}

/// A line as name, labels and value.
fn sample(line: &str) -> (String, Vec<(String, String)>, String) {
    let at = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(at);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap();
            let (mut value, mut chars) = (String::new(), after.char_indices());
            let end = loop {
                match chars.next().unwrap() {
                    (at, '"') => break at + 1,
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        c => panic!("\\{c} in {line}"),
                    }),
                    (_, c) => value.push(c),
                }
            };
            labels.push((label.to_owned(), value));
            match after[end..].chars().next().unwrap() {
                ',' => rest = &after[end + 1..],
                '}' => {
                    rest = &after[end + 1..];
                    break;
                }
                c => panic!("{c} in {line}"),
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    assert!(!value.contains(' '), "{line}");
    (name.to_owned(), labels, value.to_owned())
}

#[test]
fn health_is_good_only_while_a_write_succeeds() {
    let site = Site::start();
    for method in ["GET", "HEAD"] {
        let reply = site.ask(method, "/healthz");
        assert_eq!((reply.status, reply.header("cache-control")), (200, Some("no-store")));
    }
    let holder = site.db();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let reply = site.ask("GET", "/healthz");
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")));
    assert!(reply.body.contains("locked") && reply.body.contains("invited.sqlite"), "{}", reply.body);
    assert!(site.server.log_with("reason=unavailable").contains("path=/healthz status=503"));
    holder.execute_batch("ROLLBACK").unwrap();
    assert_eq!(site.ask("GET", "/healthz").body, "ok\n");
    let made: i64 = site.db().query_row("SELECT count(*) FROM invited_invite", [], |row| row.get(0)).unwrap();
    assert_eq!(made, 0, "health is found out without an invite");
}

#[test]
fn health_is_bad_when_nothing_more_can_be_written_even_though_the_file_can_be_opened_and_locked() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), HOST);
    // Half a megabyte for each file, and no signal that would end the process beyond it.
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap '' XFSZ; ulimit -f 1024; exec "$@""#, "sh", PROGRAM]);
    let site = Site::serve(folder, key, &mut command);
    assert_eq!(site.ask("GET", "/healthz").status, 200);
    let made = (0..2_000).take_while(|_| site.make().status == 201).count();
    assert!(made < 2_000, "the limit was never reached");
    let reply = site.ask("GET", "/healthz");
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")), "{}", reply.body);
    assert!(reply.body.starts_with("cannot write to "), "{}", reply.body);
    assert_eq!(
        site.metrics().get(r#"invited_requests_total{endpoint="/healthz",reason="unavailable",status="503"}"#),
        1.0
    );
}

#[test]
fn the_admins_door_answers_two_addresses_and_the_others_do_not_know_them() {
    let site = Site::start();
    let token = site.make().token();
    assert_eq!((site.ask("GET", "/healthz").status, site.ask("GET", "/metrics").status), (200, 200));
    let api = format!("/invites_api?key={}", site.key);
    let page = format!("/invite?{token}");
    for target in
        ["/", "/invite", &page, &api, "/register", "/robots.txt", "/metrics/", "/nothing", "/invites_api/openapi.json"]
    {
        assert_eq!(site.ask("GET", target).status, 404, "{target}");
    }
    for method in ["POST", "PUT", "OPTIONS"] {
        assert_eq!(site.ask(method, "/metrics").status, 404, "{method}");
    }
    let made: i64 = site.db().query_row("SELECT count(*) FROM invited_invite", [], |row| row.get(0)).unwrap();
    assert_eq!(made, 1);
    for headers in [&[][..], &[("X-Invited-Door", "admin")], &[("Accept", "application/json")]] {
        let unknown = site.server.request("GET", "/nothing", headers);
        for target in ["/healthz", "/metrics"] {
            let reply = site.server.request("GET", target, headers);
            let but_date = |reply: &Reply| -> Vec<_> {
                reply.headers.iter().filter(|(name, _)| name != "date").cloned().collect()
            };
            assert_eq!((reply.status, &reply.body, but_date(&reply)), (404, &unknown.body, but_date(&unknown)));
        }
    }
    let log = site.server.log();
    assert!(!log.lines().any(|line| line.contains("path=/metrics") && line.contains("status=404")), "{log}");
}

#[test]
fn metrics_count_what_happened_and_no_label_is_a_clients() {
    let site = Site::start();
    let tokens: Vec<String> = (0..5).map(|_| site.make().token()).collect();
    assert_eq!(site.server.get("/invites_api?key=x").status, 403);
    assert_eq!(site.server.get("/invite?unknown").status, 404);
    assert_eq!(site.server.get(&format!("/invite?{}", tokens[0])).status, 200);
    for target in
        ["/secret-path", "/invite/get/secret-app/0", "/invites_api/invites/secret-token", "/invite/logo/secret.host"]
    {
        site.server.get(target);
    }
    assert_eq!(exchange(site.server.addr, b"GET / HTTP/1.1\r\n\r\n").status, 400);
    done(&site.folder.db(), &["revoke", HOST, &tokens[1]]);
    let db = site.db();
    db.execute("DELETE FROM prosody WHERE key = ?1", [&tokens[2]]).unwrap();
    db.execute("UPDATE invited_invite SET expires_at = 1000 WHERE token = ?1", [&tokens[3]]).unwrap();
    done(&site.folder.db(), &["prune"]);
    done(&site.folder.db(), &["invite", "other.example", "--new-host"]);
    // What is in the file need not be ours.
    let odd = "a\"b\\c\nd";
    let insert = "INSERT INTO invited_invite (token, host, kind, source, created_at, expires_at) VALUES ('t', ?1, 'account', 'x', 1, 2)";
    db.execute(insert, [odd]).unwrap();

    let metrics = site.metrics();
    for (name, value) in [
        (r#"invited_requests_total{endpoint="/invites_api",reason="created",status="201"}"#, 5.0),
        (r#"invited_requests_total{endpoint="/invites_api",reason="key-malformed",status="403"}"#, 1.0),
        (r#"invited_requests_total{endpoint="/invite",reason="token-unknown",status="404"}"#, 1.0),
        (r#"invited_requests_total{endpoint="/invite",reason="shown",status="200"}"#, 1.0),
        (r#"invited_requests_total{endpoint="other",reason="no-route",status="404"}"#, 2.0),
        (r#"invited_request_duration_seconds_count{endpoint="/invites_api"}"#, 6.0),
        (r#"invited_request_duration_seconds_bucket{endpoint="/invites_api",le="+Inf"}"#, 6.0),
        (r#"invited_gate_refused_total{reason="gate-host",status="400"}"#, 1.0),
        (r#"invited_invites_made_total{host="example.com"}"#, 5.0),
        (r#"invited_invites_made_total{host="other.example"}"#, 1.0),
        (&format!("invited_invites_made_total{{host={odd:?}}}"), 1.0),
        (r#"invited_invites_ended_total{host="example.com",state="used"}"#, 1.0),
        (r#"invited_invites_ended_total{host="example.com",state="expired"}"#, 1.0),
        (r#"invited_invites_ended_total{host="example.com",state="revoked"}"#, 1.0),
        (r#"invited_invites_pending{host="example.com"}"#, 2.0),
        ("invited_registrations_under_way", 0.0),
        ("invited_writer_queue", 0.0),
        (&format!("invited_build_info{{version={:?}}}", env!("CARGO_PKG_VERSION")), 1.0),
    ] {
        assert_eq!(metrics.get(name), value, "{name}");
    }
    let (database, sum) = (
        metrics.get("invited_database_bytes"),
        metrics.get(r#"invited_request_duration_seconds_sum{endpoint="/invites_api"}"#),
    );
    assert!(database >= 4096.0 && metrics.get("invited_database_wal_bytes") >= 4096.0);
    assert!(sum > 0.0 && sum < 30.0, "seconds: {sum}");
    assert!(metrics.0.keys().all(|name| !name.contains("secret") && tokens.iter().all(|token| !name.contains(token))));
    // The question itself was counted by now.
    let again = site.metrics().get(r#"invited_requests_total{endpoint="/metrics",reason="metrics",status="200"}"#);
    assert_eq!(again, 1.0);
}

#[test]
fn open_connections_and_waiting_writes_are_counted_and_counted_down() {
    let site = Site::start();
    let before = site.metrics().get("invited_open_connections");
    let held: Vec<_> = (0..5).map(|_| connect(site.server.addr)).collect();
    let wait_for = |name: &str, value: f64| {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while site.metrics().get(name) != value {
            assert!(std::time::Instant::now() < deadline, "{name} is not {value}");
        }
    };
    wait_for("invited_open_connections", before + 5.0);
    drop(held);
    wait_for("invited_open_connections", before);
    let holder = site.db();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        let made: Vec<_> = (0..3).map(|_| scope.spawn(|| site.make().status)).collect();
        wait_for("invited_writer_queue", 3.0);
        holder.execute_batch("ROLLBACK").unwrap();
        assert!(made.into_iter().all(|made| made.join().unwrap() == 201));
    });
    assert_eq!(site.metrics().get("invited_writer_queue"), 0.0);
}

#[test]
fn tallies_do_not_go_down_when_invites_are_forgotten() {
    let site = Site::start();
    let token = site.make().token();
    done(&site.folder.db(), &["revoke", HOST, &token]);
    site.db().execute("UPDATE invited_invite SET ended_at = 1000", []).unwrap();
    assert!(done(&site.folder.db(), &["prune"]).contains("1 forgotten"));
    let metrics = site.metrics();
    assert_eq!(metrics.get(r#"invited_invites_made_total{host="example.com"}"#), 1.0);
    assert_eq!(metrics.get(r#"invited_invites_ended_total{host="example.com",state="revoked"}"#), 1.0);
    assert_eq!(metrics.get(r#"invited_invites_pending{host="example.com"}"#), 0.0);
}

#[test]
fn tallies_of_a_file_from_before_them_begin_with_what_is_there() {
    let folder = Folder::new();
    let db = old_file(&folder.db(), 3);
    db.execute_batch(
        "INSERT INTO invited_invite (token, host, kind, source, created_at, expires_at, state, ended_at) VALUES
         ('a', 'example.com', 'account', 'cli', 1, 9999999999, 'revoked', 9999999999),
         ('b', 'example.com', 'account', 'cli', 1, 9999999999, 'pending', NULL),
         ('c', 'example.com', 'account', 'cli', 1, 9999999999, 'pending', NULL)",
    )
    .unwrap();
    drop(db);
    let key = "key/secret".to_owned();
    let site = Site::serve(folder, key, &mut Command::new(PROGRAM));
    site.make();
    let metrics = site.metrics();
    assert_eq!(metrics.get(r#"invited_invites_made_total{host="example.com"}"#), 4.0);
    assert_eq!(metrics.get(r#"invited_invites_ended_total{host="example.com",state="revoked"}"#), 1.0);
    assert_eq!(metrics.get(r#"invited_invites_pending{host="example.com"}"#), 3.0);
}
