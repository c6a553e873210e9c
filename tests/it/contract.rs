//! The contract of `/invites_api`: one table of requests, sent to `invited` and to the original, Prosody's `mod_invites_api`.
//!
//! Each row says what we answer and, where that differs on purpose, what the original answers and why we do not. So each
//! run shows anew that scripts and bookmarks made for the original go on working. The page of an invite is here too, as
//! the place that the `Location` leads to.

use std::io::{BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rusqlite::Connection;
use serde_json::Value;

use crate::harness::{Folder, PATIENCE, Reply, Server, available, connect, create_key, done, read_reply, wait_until};

/// The XMPP host of all tests here that need only one.
const HOST: &str = "example.com";

/// The endpoint itself. Whatever comes after it in a path is no longer the endpoint.
const ENDPOINT: &str = "/invites_api";

/// In the column of the original: it closes the connection without an answer.
const NO_ANSWER: u16 = 0;

/// One request, and how it is answered.
struct Row {
    /// What the row shows, as a claim about us.
    claim: &'static str,
    method: &'static str,
    /// The request target; see [`fill`] for what stands in braces.
    target: &'static str,
    /// Filled in as well.
    headers: Vec<(&'static str, &'static str)>,
    /// Our status.
    ours: u16,
    /// The original's status.
    original: u16,
    /// Why the two differ; empty where they do not.
    reason: &'static str,
}

impl Row {
    /// The same with a header.
    fn with(mut self, name: &'static str, value: &'static str) -> Row {
        self.headers.push((name, value));
        self
    }

    /// The same, where the original has another status than ours, and why.
    fn original(mut self, status: u16, reason: &'static str) -> Row {
        assert!(status != self.ours && !reason.is_empty(), "{}: that is no difference", self.claim);
        (self.original, self.reason) = (status, reason);
        self
    }

    /// Whether the status says that an invite was made.
    fn makes_an_invite(&self) -> bool {
        matches!(self.ours, 201 | 303)
    }

    /// Whether the endpoint itself answers, rather than the gate before it or the router beside it.
    fn reaches_the_endpoint(&self) -> bool {
        let path = self.target.split('?').next().unwrap().trim_start_matches("http://example.com");
        path == ENDPOINT && self.ours != 400
    }
}

fn ask(method: &'static str, claim: &'static str, target: &'static str, ours: u16) -> Row {
    Row { claim, method, target, headers: Vec::new(), ours, original: ours, reason: "" }
}

fn get(claim: &'static str, target: &'static str, ours: u16) -> Row {
    ask("GET", claim, target, ours)
}

/// The table.
#[rustfmt::skip]
fn rows() -> Vec<Row> {
    const NO_QUERY: &str = "it crashes on a request without a query";
    const ONLY_GET: &str = "it routes GET alone, though its keys allow POST; a POST that makes something is good HTTP";
    const NO_SUCH_METHOD: &str = "405 with Allow says more than 404";
    const PASTED: &str = "what is pasted along with a key is no part of it";
const FALSE_IS_FALSE: &str = "it takes any pair named redirect for a yes";
    const AS_IT_STANDS: &str = "it decodes paths; ours is compared as it stands, so that it has one reading";
    const SPACES: &str = "RFC 9110: spaces around a value are not part of it, and one or more follow the scheme";
    vec![
        // The key in the query.
        get("a good key makes an invite", "/invites_api?key={KEY}", 201),
        get("the slash of a key may be escaped", "/invites_api?key={KEY_ESCAPED}", 201),
        get("the escape may be in lower case", "/invites_api?key={ID}%2f{SECRET}", 201),
        get("a request without query is refused", "/invites_api", 403).original(500, NO_QUERY),
        get("an empty query is refused", "/invites_api?", 403).original(500, NO_QUERY),
        get("a query without a key is refused", "/invites_api?x=1", 403),
        get("the bare word key is no key", "/invites_api?key", 403),
        get("an empty key is refused", "/invites_api?key=", 403),
        get("a key without a slash is refused", "/invites_api?key={ID}", 403),
        get("a slash alone is refused", "/invites_api?key=/", 403),
        get("an id without a secret is refused", "/invites_api?key={ID}/", 403),
        get("a secret without an id is refused", "/invites_api?key=/{SECRET}", 403),
        get("a wrong secret is refused", "/invites_api?key={ID}/wrong", 403),
        get("an unknown id is refused", "/invites_api?key=unknown/{SECRET}", 403),
        get("the id counts in its own case", "/invites_api?key={ID_OTHER_CASE}/{SECRET}", 403),
        get("the secret counts in its own case", "/invites_api?key={ID}/{SECRET_OTHER_CASE}", 403),
        get("text after a key spoils it", "/invites_api?key={KEY}x", 403),
        get("a slash after a key spoils it", "/invites_api?key={KEY}/", 403),
        get("a slash before a key spoils it", "/invites_api?key=/{KEY}", 403),
        get("two slashes in a key spoil it", "/invites_api?key={ID}//{SECRET}", 403),
        get("a second equals sign is part of the key", "/invites_api?key=={KEY}", 403),
        get("a fragment is no part of a target", "/invites_api?key={KEY}#top", 400)
            .original(403, "RFC 9112: a target has no fragment, so that it is refused before the endpoint"),
        get("an escaped fragment sign is part of the key", "/invites_api?key={KEY}%23top", 403),
        get("an escaped question mark begins no query", "/invites_api%3Fkey={KEY}", 404).original(500, AS_IT_STANDS),
        // What else can be in a query.
        get("the last of two keys counts, if it is good", "/invites_api?key=a/b&key={KEY}", 201),
        get("the last of two keys counts, if it is bad", "/invites_api?key={KEY}&key=a/b", 403),
        get("an empty last key counts too", "/invites_api?key={KEY}&key=", 403),
        get("a bare word after the key does not count", "/invites_api?key={KEY}&key", 201),
        get("unknown parameters are overlooked", "/invites_api?utm_source=x&key={KEY}&fbclid=y", 201),
        get("empty pairs are overlooked", "/invites_api?&&key={KEY}&", 201),
        get("a pair without a name is overlooked", "/invites_api?=x&key={KEY}", 201),
        get("a semicolon after the key does not end it", "/invites_api?key={KEY};x=1", 403),
        get("a semicolon before the key does not begin it", "/invites_api?x=1;key={KEY}", 403),
        get("a name in upper case is another name", "/invites_api?KEY={KEY}", 403),
        get("a name may be escaped", "/invites_api?k%65y={KEY}", 201),
        get("an escaped equals sign makes no pair", "/invites_api?key%3D{KEY}", 403),
        get("an escaped ampersand does not end the key", "/invites_api?key={KEY}%26x=1", 403),
        get("a plus after the key is a space, which is no part of it", "/invites_api?key={KEY}+", 201).original(403, PASTED),
        get("a plus before the key is a space, which is no part of it", "/invites_api?key=+{KEY}", 201)
            .original(403, PASTED),
        get("a line break after the key is no part of it", "/invites_api?key={KEY}%0d%0a", 201).original(403, PASTED),
        get("a plus in the name is another name", "/invites_api?key+={KEY}", 403),
        get("an escape that is none spoils the key", "/invites_api?key={KEY}%zz", 403),
        get("half an escape spoils the key", "/invites_api?key={KEY}%2", 403),
        get("an escaped null byte spoils the key", "/invites_api?key={KEY}%00", 403),
        get("an escaped line break spoils the key", "/invites_api?key={KEY}%0d%0aX:%20y", 403),
        get("escapes that are none do no harm elsewhere", "/invites_api?x=%zz&y=%2&z=%00&%=%&key={KEY}", 201),
        get("escaped letters of other scripts are no key", "/invites_api?key=%C3%BC/%E6%97%A5", 403),
        get("escaped bytes that are no text are no key", "/invites_api?key={ID}/%ff%fe", 403),
        get("bytes that are no text do no harm elsewhere", "/invites_api?x=%ff%fe&key={KEY}", 201),
        get("a very long id is refused", "/invites_api?key={LONG}/x", 403),
        get("a very long secret is refused", "/invites_api?key={ID}/{LONG}", 403),
        get("a very long parameter does no harm", "/invites_api?x={LONG}&key={KEY}", 201),
        // A redirect instead of 201.
        get("redirect=true redirects", "/invites_api?key={KEY}&redirect=true", 303),
        get("redirect=1 redirects", "/invites_api?key={KEY}&redirect=1", 303),
        get("an empty redirect redirects", "/invites_api?key={KEY}&redirect=", 303),
        get("redirect with any other value redirects", "/invites_api?key={KEY}&redirect=maybe", 303),
        get("redirect may come before the key", "/invites_api?redirect=true&key={KEY}", 303),
        get("the bare word redirect does not redirect", "/invites_api?key={KEY}&redirect", 201),
        get("redirect=false does not redirect", "/invites_api?key={KEY}&redirect=false", 201).original(303, FALSE_IS_FALSE),
        get("redirect=0 does not redirect", "/invites_api?key={KEY}&redirect=0", 201).original(303, FALSE_IS_FALSE),
        get("redirect=no does not redirect", "/invites_api?key={KEY}&redirect=no", 201).original(303, FALSE_IS_FALSE),
        get("the last of two redirects counts", "/invites_api?key={KEY}&redirect=false&redirect=true", 303),
        get("without a good key nothing redirects", "/invites_api?key=a/b&redirect=true", 403),
        // The key in a header.
        get("a key as Bearer needs no query", "/invites_api", 201).with("Authorization", "Bearer {KEY}").original(500, NO_QUERY),
        get("a key as Bearer goes with any query", "/invites_api?x=1", 201).with("Authorization", "Bearer {KEY}"),
        get("a key as Bearer goes with a bare word", "/invites_api?x", 201).with("Authorization", "Bearer {KEY}"),
        get("a key as Bearer can redirect", "/invites_api?redirect=true", 303).with("Authorization", "Bearer {KEY}"),
        get("the name of the header counts in any case", "/invites_api?x=1", 201).with("aUTHORIZATION", "Bearer {KEY}"),
        get("the scheme counts in any case", "/invites_api?x=1", 201).with("Authorization", "bearer {KEY}")
            .original(403, "RFC 9110: schemes are matched in any case"),
        get("two spaces after the scheme are fine", "/invites_api?x=1", 201).with("Authorization", "Bearer  {KEY}").original(403, SPACES),
        get("a space after the key is fine", "/invites_api?x=1", 201).with("Authorization", "Bearer {KEY} ").original(403, SPACES),
        get("a tab after the scheme is not", "/invites_api?x=1", 403).with("Authorization", "Bearer\t{KEY}")
            .original(201, "RFC 9110: spaces alone follow the scheme"),
        get("a wrong key as Bearer needs no query either", "/invites_api", 403).with("Authorization", "Bearer a/b").original(500, NO_QUERY),
        get("a wrong key as Bearer outweighs a good one", "/invites_api?key={KEY}", 403).with("Authorization", "Bearer a/b"),
        get("a good key as Bearer outweighs a wrong one", "/invites_api?key=a/b", 201).with("Authorization", "Bearer {KEY}"),
        get("another scheme outweighs a good key", "/invites_api?key={KEY}", 403).with("Authorization", "Basic dTpw"),
        get("a header without a scheme outweighs a good key", "/invites_api?key={KEY}", 403).with("Authorization", "{KEY}"),
        get("an empty header outweighs a good key", "/invites_api?key={KEY}", 403).with("Authorization", ""),
        get("a scheme alone is refused", "/invites_api?key={KEY}", 403).with("Authorization", "Bearer"),
        get("text after the key in a header is refused", "/invites_api?x=1", 403).with("Authorization", "Bearer {KEY} x"),
        get("a key in a header is taken as it stands", "/invites_api?x=1", 403).with("Authorization", "Bearer {KEY_ESCAPED}"),
        get("a header of other scripts is refused", "/invites_api?key={KEY}", 403).with("Authorization", "Bearer ü/日"),
        get("other scripts after a good key are refused", "/invites_api?x=1", 403).with("Authorization", "Bearer {KEY}ü"),
        get("a very long header is refused", "/invites_api?key={KEY}", 403).with("Authorization", "Bearer {ID}/{LONG}"),
        get("two headers are refused", "/invites_api?x=1", 400).with("Authorization", "Bearer {KEY}").with("Authorization", "Bearer {KEY}")
            .original(403, "a request that has two readings is refused before the endpoint"),
        get("a cookie is no key", "/invites_api?x=1", 403).with("Cookie", "key={KEY}"),
        // Who asks.
        get("a browser is refused with a page", "/invites_api?key=a/b", 403).with("Accept", "text/html,*/*;q=0.8"),
        get("a browser gets an invite without a page", "/invites_api?key={KEY}", 201).with("Accept", "text/html,*/*;q=0.8"),
        get("a page of another site may ask", "/invites_api?key={KEY}", 201).with("Origin", "https://other.example"),
        // Methods.
        ask("HEAD", "HEAD never makes an invite", "/invites_api?key={KEY}", 405),
        ask("HEAD", "HEAD with a bad key has the same answer", "/invites_api?key=a/b", 405).original(403, "it looks at the key first"),
        ask("HEAD", "HEAD without a query has the same answer", "/invites_api", 405).original(500, NO_QUERY),
        ask("POST", "POST makes an invite", "/invites_api?key={KEY}", 201).original(404, ONLY_GET),
        ask("POST", "POST takes the key as Bearer", "/invites_api", 201).with("Authorization", "Bearer {KEY}").original(404, ONLY_GET),
        ask("POST", "POST can redirect", "/invites_api?key={KEY}&redirect=true", 303).original(404, ONLY_GET),
        ask("POST", "POST without a key is refused", "/invites_api", 403).original(404, ONLY_GET),
        ask("PUT", "PUT is not allowed", "/invites_api?key={KEY}", 405).original(404, NO_SUCH_METHOD),
        ask("PATCH", "PATCH is not allowed", "/invites_api?key={KEY}", 405).original(404, NO_SUCH_METHOD),
        ask("DELETE", "DELETE is not allowed", "/invites_api?key={KEY}", 405).original(404, NO_SUCH_METHOD),
        ask("BREW", "a method that nobody knows is not allowed", "/invites_api?key={KEY}", 405).original(404, NO_SUCH_METHOD),
        ask("get", "a method counts in its own case", "/invites_api?key={KEY}", 405).original(404, NO_SUCH_METHOD),
        ask("M-SEARCH", "a method may have a hyphen", "/invites_api?key={KEY}", 405).original(NO_ANSWER, "it reads letters and digits alone"),
        ask("OPTIONS", "OPTIONS needs no key", "/invites_api", 200),
        ask("OPTIONS", "OPTIONS makes no invite", "/invites_api?key={KEY}", 200),
        ask("OPTIONS", "a browser may ask beforehand", "/invites_api?key={KEY}", 200)
            .with("Origin", "https://other.example").with("Access-Control-Request-Method", "GET")
            .with("Access-Control-Request-Headers", "authorization"),
        // Paths.
        get("a slash at the end is another path", "/invites_api/?key={KEY}", 404),
        get("there is nothing below", "/invites_api/x?key={KEY}", 404),
        get("a path counts in its own case", "/Invites_api?key={KEY}", 404),
        get("a key in the path is no key", "/invites_api/{KEY}", 404),
        get("an absolute target is the same target", "http://example.com/invites_api?key={KEY}", 201),
        get("several slashes are one", "//invites_api?key={KEY}", 201),
        get("an escaped path is another path", "/invites%5Fapi?key={KEY}", 404).original(201, AS_IT_STANDS),
    ]
}

/// Puts a key, or a part of it, where its name stands in braces.
fn fill(text: &str, key: &str) -> String {
    let (id, secret) = key.split_once('/').unwrap();
    text.replace("{KEY}", key)
        .replace("{KEY_ESCAPED}", &format!("{id}%2F{secret}"))
        .replace("{ID}", id)
        .replace("{SECRET}", secret)
        .replace("{ID_OTHER_CASE}", &other_case(id))
        .replace("{SECRET_OTHER_CASE}", &other_case(secret))
        .replace("{LONG}", &"x".repeat(8_000))
}

fn other_case(text: &str) -> String {
    let turn = |c: char| if c.is_ascii_uppercase() { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() };
    text.chars().map(turn).collect()
}

/// Sends a row's request; none where the connection is closed without an answer.
fn send(addr: SocketAddr, row: &Row, key: &str) -> Option<Reply> {
    let mut request =
        format!("{} {} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n", row.method, fill(row.target, key));
    for (name, value) in &row.headers {
        request.push_str(&format!("{name}: {}\r\n", fill(value, key)));
    }
    request.push_str("\r\n");
    let mut stream = connect(addr);
    stream.write_all(request.as_bytes()).unwrap();
    read_reply(&mut BufReader::new(stream), row.method == "HEAD").ok()
}

/// Sends the whole table, and hands each row with its answer to `check`. The statuses that are not as expected come at the
/// end all together.
fn send_all(addr: SocketAddr, key: &str, expected: fn(&Row) -> u16, mut check: impl FnMut(&Row, &Reply)) {
    let mut surprises = Vec::new();
    for row in rows() {
        let reply = send(addr, &row, key);
        let status = reply.as_ref().map_or(NO_ANSWER, |reply| reply.status);
        if status != expected(&row) {
            surprises.push(format!("{}: {status} instead of {} {}", row.claim, expected(&row), row.reason));
        } else if let Some(reply) = reply {
            check(&row, &reply);
        }
    }
    assert!(surprises.is_empty(), "\n{}", surprises.join("\n"));
}

/// What holds for both: a new invite has no body, and its address ends in the token and nothing else; nothing else has one.
fn check_location(row: &Row, reply: &Reply) {
    if !matches!(reply.status, 201 | 303) {
        assert_eq!(reply.header("location"), None, "{}", row.claim);
        return;
    }
    assert!(is_token(&reply.token()), "{}: {reply:?}", row.claim);
    assert_eq!((reply.header("content-length"), reply.body.as_str()), (Some("0"), ""), "{}", row.claim);
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// What holds for every answer of our endpoint.
fn check_headers(row: &Row, reply: &Reply) {
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, POST, OPTIONS"),
        ("access-control-allow-headers", "Authorization, Content-Type, Idempotency-Key"),
        ("access-control-max-age", "7200"),
        ("access-control-expose-headers", "Location, Retry-After"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{}: {name}", row.claim);
    }
    if matches!(reply.status, 200 | 405) {
        assert_eq!(reply.header("allow"), Some("GET, POST, OPTIONS"), "{}", row.claim);
    }
}

/// An error is one short line, or a page for a browser.
fn check_error(row: &Row, reply: &Reply) {
    let is_browser = row.headers.iter().any(|(name, value)| *name == "Accept" && value.contains("text/html"));
    if is_browser {
        assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"), "{}", row.claim);
        assert!(reply.body.starts_with("<!doctype html>"), "{}: {}", row.claim, reply.body);
        return;
    }
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"), "{}", row.claim);
    if row.method != "HEAD" {
        let body = &reply.body;
        assert!(body.ends_with('\n') && body.lines().count() == 1 && body.len() <= 100, "{}: {body:?}", row.claim);
    }
}

fn open(folder: &Folder) -> Connection {
    let conn = Connection::open(folder.db()).unwrap();
    conn.busy_timeout(PATIENCE).unwrap();
    conn
}

fn count_invites(conn: &Connection) -> i64 {
    conn.query_row("SELECT count(*) FROM invited_invite", [], |row| row.get(0)).unwrap()
}

#[test]
fn invited_answers_each_row_as_the_table_says_and_logs_no_secret() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), HOST);
    let server = Server::start(&folder.db());
    let conn = open(&folder);
    let mut before = count_invites(&conn);
    let mut tokens = Vec::new();
    let mut refusals = Vec::new();
    let check = |row: &Row, reply: &Reply| {
        let after = count_invites(&conn);
        assert_eq!(after - before, i64::from(row.makes_an_invite()), "{}: invites made", row.claim);
        before = after;
        check_location(row, reply);
        if row.reaches_the_endpoint() {
            check_headers(row, reply);
        }
        if row.makes_an_invite() {
            let location = reply.header("location").unwrap();
            assert_eq!(location, format!("https://{HOST}/invite?{}", reply.token()), "{}", row.claim);
            tokens.push(reply.token());
        } else if reply.status == 200 {
            assert_eq!(reply.body, "", "{}", row.claim);
        } else {
            check_error(row, reply);
        }
        if reply.status == 403 && reply.header("content-type").unwrap().starts_with("text/plain") {
            refusals.push(reply.body.clone());
        }
    };
    send_all(server.addr, &key, |row| row.ours, check);
    refusals.dedup();
    assert_eq!(refusals.len(), 1, "refusals tell apart what was wrong: {refusals:?}");

    // The page of an invite has its token in the address; and a link that was taken apart may have it in the path.
    assert_eq!(server.get(&format!("/invite?{}", tokens[0])).status, 200);
    assert_eq!(server.get(&format!("/invite/{}", tokens[0])).status, 303);
    // Lines come in the order of the requests, so that all are there when the last one is.
    server.get("/invite");
    wait_until("the last request is in the log", || server.log().contains("reason=token-missing"));
    let log = server.log();
    let secret = key.split_once('/').unwrap().1;
    for told in tokens.iter().map(String::as_str).chain([secret, &other_case(secret), "?", "key=a/b"]) {
        let line = log.lines().find(|line| line.contains(told));
        assert_eq!(line, None, "the log tells {told:?}");
    }
    let refused = ["key-missing", "key-malformed", "key-unknown", "key-wrong-secret", "key-no-bearer"];
    for reason in refused.into_iter().chain(["created", "created-redirect"]) {
        assert!(log.contains(&format!(" reason={reason} ")), "the log lacks {reason}:\n{log}");
    }
}

#[test]
fn the_original_answers_each_row_as_the_table_says() {
    let Some(original) = Original::start() else { return };
    send_all(original.addr, &original.key, |row| row.original, check_location);
}

#[test]
fn a_deleted_key_is_refused_at_once_by_a_running_server() {
    let folder = Folder::new();
    let (key, other) = (create_key(&folder.db(), HOST), create_key(&folder.db(), HOST));
    let server = Server::start(&folder.db());
    assert_eq!(server.get(&format!("/invites_api?key={key}")).status, 201);
    done(&folder.db(), &["delete", HOST, key.split_once('/').unwrap().0]);
    assert_eq!(server.get(&format!("/invites_api?key={key}")).status, 403);
    assert_eq!(server.get(&format!("/invites_api?key={other}")).status, 201);
    assert_eq!(count_invites(&open(&folder)), 2);
}

#[test]
fn a_new_key_is_good_at_once_on_a_running_server() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    let server = Server::start(&folder.db());
    let key = create_key(&folder.db(), "other.example");
    let reply = server.get(&format!("/invites_api?key={key}"));
    assert_eq!(reply.header("location"), Some(format!("https://other.example/invite?{}", reply.token()).as_str()));
}

#[test]
fn the_url_of_a_host_is_followed_at_once_by_a_running_server() {
    let folder = Folder::new();
    let (key, other) = (create_key(&folder.db(), HOST), create_key(&folder.db(), "other.example"));
    let server = Server::start(&folder.db());
    let base = |key: &str| {
        let reply = server.get(&format!("/invites_api?key={key}"));
        reply.header("location").unwrap().split_once("/invite?").unwrap().0.to_owned()
    };
    assert_eq!(base(&key), "https://example.com");
    done(&folder.db(), &["set", HOST, "url", "https://chat.example.com/join/"]);
    assert_eq!(base(&key), "https://chat.example.com/join");
    assert_eq!(base(&other), "https://other.example");
    done(&folder.db(), &["unset", HOST, "url"]);
    assert_eq!(base(&key), "https://example.com");
}

/// Snikket's app tests take the token out of the `Location` like this and make the URI themselves.
#[test]
fn the_token_is_what_known_callers_take_for_it() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), HOST);
    let server = Server::start(&folder.db());
    for query in ["", "&redirect=true"] {
        let reply = server.get(&format!("/invites_api?key={key}{query}"));
        let parts: Vec<_> = reply.header("location").unwrap().split('?').collect();
        assert_eq!(parts.len(), 2, "{reply:?}");
        let page = server.get(&format!("/invite?{}", parts[1]));
        assert!(page.body.contains(&format!("xmpp:{HOST}?register;preauth={}", parts[1])), "{}", page.body);
    }
}

#[test]
fn the_row_for_prosody_says_what_prosody_would_have_written() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), HOST);
    done(&folder.db(), &["set", HOST, "url", "https://chat.example.com"]);
    let server = Server::start(&folder.db());
    let reply = server.get(&format!("/invites_api?key={key}"));
    let token = reply.token();
    let sql = r#"SELECT "host", "user", "store", "type", "value" FROM "prosody" WHERE "key" = ?1"#;
    let columns: [String; 5] = open(&folder)
        .query_row(sql, [&token], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?]))
        .unwrap();
    assert_eq!(columns[..4], [HOST, "", "invite_token", "json"]);
    let value: Value = serde_json::from_str(&columns[4]).unwrap();
    assert_eq!(value["type"], "register");
    assert_eq!(value["jid"], HOST);
    assert_eq!(value["token"], token.as_str());
    assert_eq!(value["allow_registration"], true);
    assert_eq!(value["additional_data"]["source"], format!("api/token/{}", key.split_once('/').unwrap().0));
    assert_eq!(value["uri"], format!("xmpp:{HOST}?register;preauth={token}"));
    assert_eq!(value["landing_page"], reply.header("location").unwrap());
    let (created_at, expires) = (value["created_at"].as_i64().unwrap(), value["expires"].as_i64().unwrap());
    assert_eq!(expires - created_at, 604_800);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!((now - 60..=now).contains(&created_at), "{created_at} is not now, {now}");
}

/// A server with one invite, to look at its page.
struct Shown {
    server: Server,
    folder: Folder,
    token: String,
}

impl Shown {
    fn start() -> Shown {
        let folder = Folder::new();
        let key = create_key(&folder.db(), HOST);
        let server = Server::start(&folder.db());
        let token = server.get(&format!("/invites_api?key={key}")).token();
        Shown { server, folder, token }
    }

    /// The page of the invite, which is the same for `HEAD` apart from the body.
    fn page(&self) -> Reply {
        self.look(&self.token)
    }

    /// What comes of any query to the page.
    fn look(&self, query: &str) -> Reply {
        let target = format!("/invite?{query}");
        let (page, head) = (self.server.get(&target), self.server.request("HEAD", &target, &[]));
        let without_date =
            |reply: &Reply| reply.headers.iter().filter(|(name, _)| name != "date").cloned().collect::<Vec<_>>();
        assert_eq!((page.status, without_date(&page)), (head.status, without_date(&head)), "HEAD differs from GET");
        page
    }
}

#[track_caller]
fn assert_is_a_safe_page(reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
    let policy = reply.header("content-security-policy").unwrap();
    for rule in ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"] {
        assert!(policy.contains(rule), "{policy}");
    }
    assert!(!reply.body.contains("<script"), "{}", reply.body);
    if status != 200 {
        assert_eq!(reply.header("link"), None);
    }
}

#[test]
fn the_page_of_an_invite_shows_its_uri_and_announces_it_in_a_link_header() {
    let shown = Shown::start();
    let page = shown.page();
    assert_is_a_safe_page(&page, 200);
    let uri = format!("xmpp:{HOST}?register;preauth={}", shown.token);
    assert_eq!(page.header("link"), Some(format!("<{uri}>; rel=\"alternate\"").as_str()));
    assert!(page.body.contains(&format!("href=\"{uri}\"")), "{}", page.body);
}

#[test]
fn looking_at_an_invite_never_uses_it_up() {
    let shown = Shown::start();
    let rows = || {
        let sql = r#"SELECT (SELECT count(*) FROM "prosody"), (SELECT state FROM invited_invite)"#;
        open(&shown.folder).query_row(sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))).unwrap()
    };
    for _ in 0..20 {
        assert_eq!(shown.page().status, 200);
    }
    assert_eq!(rows(), (1, "pending".to_owned()));
}

#[test]
fn an_expired_invite_is_gone_and_one_in_its_last_hour_is_not() {
    let shown = Shown::start();
    let expire = |at: &str| {
        let changed = open(&shown.folder).execute(&format!("UPDATE invited_invite SET expires_at = {at}"), []);
        assert_eq!(changed.unwrap(), 1);
    };
    expire("CAST(strftime('%s', 'now') AS INTEGER) - 1");
    let page = shown.page();
    assert_is_a_safe_page(&page, 410);
    assert!(page.body.contains("expired") && !page.body.contains("xmpp:"), "{}", page.body);
    expire("CAST(strftime('%s', 'now') AS INTEGER) + 3600");
    assert_is_a_safe_page(&shown.page(), 200);
}

#[test]
fn an_invite_whose_row_prosody_has_deleted_is_used() {
    let shown = Shown::start();
    open(&shown.folder).execute(r#"DELETE FROM "prosody" WHERE "key" = ?1"#, [&shown.token]).unwrap();
    let page = shown.page();
    assert_is_a_safe_page(&page, 410);
    assert!(page.body.contains("used") && !page.body.contains("xmpp:"), "{}", page.body);
}

#[test]
fn what_is_no_token_is_not_found_and_never_shown_back() {
    let shown = Shown::start();
    let token = &shown.token;
    for query in [
        "unknown",
        "",
        "t=x",
        &format!("x{token}"),
        &format!("{token}x"),
        &token.to_ascii_lowercase(),
        "%",
        "%zz%ff",
        "<script>alert(1)</script>",
        "%3Cscript%3Ealert(1)%3C/script%3E",
        "\"><img/src=x/onerror=alert(1)>",
        "{{7*7}}",
        &"x".repeat(8_000),
    ] {
        let page = shown.look(query);
        assert_is_a_safe_page(&page, 404);
        assert!(!page.body.contains("alert") && !page.body.contains("49"), "{query}: {}", page.body);
    }
    assert_is_a_safe_page(&shown.server.get("/invite"), 404);
    // A link leads to its invite whatever is around its token, and what that is is not shown either.
    for query in [
        format!("t={token}"),
        format!("{token}%00"),
        format!("{token}'%20OR%20'1'='1"),
        format!("{token}%3Cscript%3Ealert"),
    ] {
        let page = shown.look(&query);
        assert_is_a_safe_page(&page, 200);
        assert!(!page.body.contains("alert") && !page.body.contains("OR "), "{query}: {}", page.body);
    }
    assert_eq!(shown.page().status, 200);
}

#[test]
fn a_page_can_only_be_looked_at() {
    let shown = Shown::start();
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let reply = shown.server.request(method, &format!("/invite?{}", shown.token), &[]);
        assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    assert_eq!(shown.page().status, 200);
}

#[test]
fn an_international_host_is_ascii_in_location_and_link_and_itself_on_the_page() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "bücher.example");
    let server = Server::start(&folder.db());
    let reply = server.get(&format!("/invites_api?key={key}"));
    let token = reply.token();
    assert_eq!(reply.header("location"), Some(format!("https://xn--bcher-kva.example/invite?{token}").as_str()));
    let page = server.get(&format!("/invite?{token}"));
    let link = format!("<xmpp:b%C3%BCcher.example?register;preauth={token}>; rel=\"alternate\"");
    assert_eq!(page.header("link"), Some(link.as_str()));
    assert!(page.body.contains("invited to bücher.example"), "{}", page.body);
}

// ---- The original: a Prosody of one test's own. ----

/// Prosody with its own `mod_invites_api`; killed when it is dropped.
struct Original {
    child: Child,
    addr: SocketAddr,
    /// A good key, made by its own command.
    key: String,
    folder: Folder,
}

impl Original {
    /// Starts it and waits until it answers; none where it is not installed.
    fn start() -> Option<Original> {
        let parts = ["/usr/bin/prosody", "/usr/bin/prosodyctl", "/usr/lib/prosody/modules/mod_invites_api"];
        if !available("prosody", parts.iter().all(|part| Path::new(part).exists())) {
            return None;
        }
        let folder = Folder::new();
        let addr = free_port();
        let config = folder.file("prosody.cfg.lua");
        std::fs::write(&config, configuration(&folder, addr.port())).unwrap();
        let command = ["mod_invites_api", "create", HOST, "contract"];
        let output = Command::new("prosodyctl").arg("--config").arg(&config).args(command).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let key = stdout.lines().last().unwrap_or_default().to_owned();
        assert!(output.status.success() && key.contains('/'), "prosodyctl made no key: {output:?}");
        let child = Command::new("prosody")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut original = Original { child, addr, key, folder };
        let ready = ask("OPTIONS", "Prosody serves the module", ENDPOINT, 200);
        wait_until("Prosody answers", || {
            assert!(original.child.try_wait().unwrap().is_none(), "Prosody has ended: {}", original.log());
            TcpStream::connect(addr).is_ok()
                && send(addr, &ready, &original.key).is_some_and(|reply| reply.status == 200)
        });
        Some(original)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.file("prosody.log")).unwrap_or_default()
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of Prosody:\n{}", self.log());
        }
    }
}

/// A port of this machine that was free a moment ago.
fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn configuration(folder: &Folder, port: u16) -> String {
    let path = folder.path().display();
    format!(
        r#"
pidfile = "{path}/prosody.pid"
data_path = "{path}"
log = {{ info = "{path}/prosody.log" }}
run_as_root = true
daemonize = false
plugin_paths = {{ "/usr/lib/prosody/modules" }}
modules_enabled = {{ "http", "invites", "invites_api", "invites_page", "register_apps" }}
modules_disabled = {{ "s2s" }}
c2s_ports = {{ }}
http_ports = {{ {port} }}
http_interfaces = {{ "127.0.0.1" }}
https_ports = {{ }}
storage = "internal"
VirtualHost "{HOST}"
"#
    )
}
