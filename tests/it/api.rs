//! The API over HTTP: every kind of invite, every bad value by the name of its field, lists, repeated requests, and the
//! limits of keys.
//!
//! After each test the log of its server is searched: neither a token nor the secret of a key may be in it.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Folder, PATIENCE, Reply, Server, done};

const HOST: &str = "example.com";
const ENDPOINT: &str = "/invites_api";
const INVITES: &str = "/invites_api/invites";
const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

/// All that a key can be allowed here.
const ALL: &str = "account,contact,reset,role:prosody:member,role:x,group:g1,group:g2,uses:1000000";

/// A server, and a key that may do everything.
struct Api {
    folder: Folder,
    server: Server,
    key: String,
    secrets: Mutex<Vec<String>>,
}

impl Api {
    fn start() -> Api {
        let folder = Folder::new();
        let key = done(&folder.db(), &["create", HOST, "all", "--allow", ALL]).trim_end().to_owned();
        let server = Server::start(&folder.db());
        let secrets = Mutex::new(vec![secret(&key)]);
        Api { folder, server, key, secrets }
    }

    /// Another key, with these options.
    fn key(&self, options: &[&str]) -> String {
        let key = self.run(&[&["create", HOST, "another"], options].concat()).trim_end().to_owned();
        self.secrets.lock().unwrap().push(secret(&key));
        key
    }

    /// The shell.
    fn run(&self, args: &[&str]) -> String {
        done(&self.folder.db(), args)
    }

    /// A request with a key.
    fn ask(&self, key: &str, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let bearer = format!("Bearer {key}");
        let headers = [&[("Authorization", bearer.as_str())], headers].concat();
        if method == "POST" {
            self.server.send(method, target, &headers, body)
        } else {
            self.server.request(method, target, &headers)
        }
    }

    fn get(&self, target: &str) -> Reply {
        self.ask(&self.key, "GET", target, &[], b"")
    }

    /// `POST` of JSON with the first key.
    fn post(&self, body: &Value) -> Reply {
        self.post_as(&self.key, &[], body)
    }

    fn post_as(&self, key: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        let headers = [&[("Content-Type", JSON)], headers].concat();
        self.ask(key, "POST", ENDPOINT, &headers, body.to_string().as_bytes())
    }

    /// `POST` of a form with the first key, by a client that accepts JSON.
    fn post_form(&self, body: &str) -> Reply {
        let headers = [("Content-Type", FORM), ("Accept", JSON)];
        self.ask(&self.key, "POST", ENDPOINT, &headers, body.as_bytes())
    }

    fn db(&self) -> Connection {
        let conn = Connection::open(self.folder.db()).unwrap();
        conn.busy_timeout(PATIENCE).unwrap();
        conn
    }

    /// Changes the database behind the server's back, as time or an XMPP server does.
    fn sql(&self, sql: &str) {
        let changed = self.db().execute(sql, []).unwrap();
        assert!(changed > 0, "{sql} changed nothing");
    }

    fn count(&self) -> i64 {
        self.db().query_row("SELECT count(*) FROM invited_invite", [], |row| row.get(0)).unwrap()
    }

    /// Waits until the log has this many lines of requests, and returns them.
    fn log_lines(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.server.log();
            let lines: Vec<String> = log.lines().filter(|line| line.contains(" reason=")).map(str::to_owned).collect();
            if lines.len() >= count || Instant::now() > deadline {
                return lines;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.server.signal("TERM");
        assert_eq!(self.server.wait(), Some(0));
        let log = self.server.log();
        let conn = self.db();
        let mut query = conn.prepare("SELECT token FROM invited_invite").unwrap();
        let tokens: Vec<String> = query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        for word in tokens.iter().chain(self.secrets.lock().unwrap().iter()) {
            assert!(!log.contains(word.as_str()), "{word} is in the log:\n{log}");
        }
    }
}

fn secret(key: &str) -> String {
    key.split_once('/').unwrap().1.to_owned()
}

fn id(key: &str) -> &str {
    key.split_once('/').unwrap().0
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

#[track_caller]
fn body(reply: &Reply) -> Value {
    assert_eq!(reply.header("content-type"), Some(JSON), "{reply:?}");
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{reply:?}");
    serde_json::from_str(&reply.body).unwrap_or_else(|error| panic!("{error}: {reply:?}"))
}

/// An error as JSON; its field, or nothing.
#[track_caller]
fn assert_error(reply: &Reply, status: u16, word: &str, field: Option<&str>) {
    let error = body(reply);
    assert_eq!((reply.status, error["error"].as_str()), (status, Some(word)), "{reply:?}");
    assert_eq!(error.get("field").and_then(Value::as_str), field, "{reply:?}");
    assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{reply:?}");
}

fn tokens(page: &Value) -> Vec<String> {
    page["invites"].as_array().unwrap().iter().map(|invite| invite["token"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_kind_is_made_from_json_and_from_a_form_with_the_same_answer() {
    let api = Api::start();
    let day = 86_400;
    for (json, form, uri, ttl, expected) in [
        (json!({}), "kind=", "xmpp:example.com?register;preauth=TOKEN", 7 * day, json!({ "kind": "account" })),
        (
            json!({ "kind": "account", "username": "Ana", "ttl": 3600, "note": "for Ana", "roles": ["prosody:member", "x"],
                    "groups": ["g1", "g2"] }),
            "kind=account&username=Ana&ttl=3600&note=for+Ana&roles=prosody:member&roles=x&groups=g1&groups=g2&uses=1",
            "xmpp:ana@example.com?register;preauth=TOKEN",
            3600,
            json!({ "kind": "account", "username": "ana", "note": "for Ana", "roles": ["prosody:member", "x"],
                    "groups": ["g1", "g2"] }),
        ),
        (
            json!({ "uses": 20, "ttl": "2d", "note": null, "roles": null }),
            "uses=20&ttl=2d&note=",
            "xmpp:example.com?register;preauth=TOKEN",
            2 * day,
            json!({ "kind": "account", "uses": 20 }),
        ),
        (
            json!({ "kind": "contact", "username": "jürgen" }),
            "kind=contact&username=J%C3%BCrgen",
            "xmpp:j%C3%BCrgen@example.com?roster;preauth=TOKEN",
            7 * day,
            json!({ "kind": "contact", "username": "jürgen" }),
        ),
        (
            json!({ "kind": "account-and-contact", "username": "ana", "uses": 3 }),
            "kind=account-and-contact&username=ana&uses=3",
            "xmpp:ana@example.com?roster;preauth=TOKEN;ibr=y",
            7 * day,
            json!({ "kind": "account-and-contact", "username": "ana", "uses": 3 }),
        ),
        (
            json!({ "kind": "reset", "username": "ana" }),
            "kind=reset&username=ana",
            "xmpp:ana@example.com?register;preauth=TOKEN",
            day,
            json!({ "kind": "reset", "username": "ana" }),
        ),
    ] {
        for reply in [api.post(&json), api.post_form(form)] {
            assert_eq!(reply.status, 201, "{json}: {reply:?}");
            let (token, found) = (reply.token(), body(&reply));
            let created_at = found["created_at"].as_i64().unwrap();
            assert!((now() - 60..=now()).contains(&created_at), "{found}");
            let mut whole = json!({
                "token": token, "uri": uri.replace("TOKEN", &token), "url": reply.header("location"), "host": HOST,
                "username": null, "roles": [], "groups": [], "note": null, "source": format!("api/token/{}", id(&api.key)),
                "created_at": created_at, "expires": created_at + ttl, "uses": 1, "uses_left": expected["uses"],
                "state": "pending", "ended_at": null, "opened": 0, "app": null, "used": [],
            });
            for (name, value) in expected.as_object().unwrap() {
                whole[name] = value.clone();
            }
            whole["uses_left"] = whole["uses"].clone();
            assert_eq!(found, whole);
            assert_eq!(body(&api.get(&format!("{INVITES}/{token}"))), whole);
            assert_eq!(whole["url"], format!("https://example.com/invite?{token}"));
        }
    }
}

#[test]
fn only_a_post_of_a_client_that_accepts_json_is_answered_with_a_body() {
    let api = Api::start();
    let ask = |method, headers: &[(&str, &str)], text: &str| {
        let reply = api.ask(&api.key, method, ENDPOINT, headers, text.as_bytes());
        assert_eq!(reply.status, 201, "{reply:?}");
        assert!(reply.header("location").is_some(), "{reply:?}");
        !reply.body.is_empty()
    };
    assert!(ask("POST", &[("Accept", JSON)], ""));
    assert!(ask("POST", &[("Accept", "text/html, Application/JSON;q=0.5")], ""));
    assert!(ask("POST", &[("Content-Type", JSON)], "{}"));
    assert!(ask("POST", &[("Content-Type", JSON), ("Accept", "*/*")], "{}"));
    assert!(!ask("POST", &[("Content-Type", JSON), ("Accept", "text/html")], "{}"));
    assert!(!ask("POST", &[("Content-Type", FORM)], "uses=1"));
    assert!(!ask("POST", &[], ""));
    for accept in [JSON, "*/*", "text/html"] {
        assert!(!ask("GET", &[("Accept", accept)], ""));
    }
}

#[test]
fn what_comes_in_the_body_of_a_get_means_nothing() {
    let api = Api::start();
    let headers = [("Authorization", format!("Bearer {}", api.key)), ("Content-Type", JSON.to_owned())];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let reply = api.server.send("GET", ENDPOINT, &headers, br#"{"kind":"reset","username":"ana"}"#);
    assert_eq!((reply.status, reply.body.as_str(), reply.header("content-type")), (201, "", None));
    assert_eq!(body(&api.get(&format!("{INVITES}/{}", reply.token())))["kind"], "account");
}

#[test]
fn a_bad_value_is_refused_with_the_name_of_its_field_and_nothing_is_made() {
    let api = Api::start();
    let long = "x".repeat(1_024);
    for (field, wish) in [
        ("bogus", json!({ "bogus": 1 })),
        ("Kind", json!({ "Kind": "account" })),
        ("", json!({ "": null })),
        ("kind", json!({ "kind": "admin" })),
        ("kind", json!({ "kind": 1 })),
        ("kind", json!({ "kind": "" })),
        ("username", json!({ "username": "a b" })),
        ("username", json!({ "username": "ana@example.com" })),
        ("username", json!({ "username": "" })),
        ("username", json!({ "username": long })),
        ("username", json!({ "username": ["a"] })),
        ("username", json!({ "kind": "contact" })),
        ("username", json!({ "kind": "account-and-contact" })),
        ("username", json!({ "kind": "reset" })),
        ("ttl", json!({ "ttl": 0 })),
        ("ttl", json!({ "ttl": -1 })),
        ("ttl", json!({ "ttl": 1.5 })),
        ("ttl", json!({ "ttl": true })),
        ("ttl", json!({ "ttl": "1m" })),
        ("ttl", json!({ "ttl": "" })),
        ("ttl", json!({ "ttl": "11y" })),
        ("ttl", json!({ "ttl": 315_360_001 })),
        ("ttl", json!({ "ttl": u64::MAX })),
        ("uses", json!({ "uses": 0 })),
        ("uses", json!({ "uses": -1 })),
        ("uses", json!({ "uses": "1" })),
        ("uses", json!({ "uses": 1_000_001 })),
        ("uses", json!({ "uses": u64::MAX })),
        ("uses", json!({ "uses": 2, "username": "ana" })),
        ("uses", json!({ "uses": 2, "kind": "reset", "username": "ana" })),
        ("roles", json!({ "roles": "x" })),
        ("roles", json!({ "roles": [1] })),
        ("roles", json!({ "roles": [""] })),
        ("roles", json!({ "roles": ["a\nb"] })),
        ("roles", json!({ "roles": vec!["x"; 33] })),
        ("roles", json!({ "roles": ["x"], "kind": "contact", "username": "ana" })),
        ("groups", json!({ "groups": { "g1": true } })),
        ("groups", json!({ "groups": ["x".repeat(65)] })),
        ("groups", json!({ "groups": ["g1"], "kind": "reset", "username": "ana" })),
        ("note", json!({ "note": {} })),
        ("note", json!({ "note": "a\nb" })),
        ("note", json!({ "note": "x".repeat(1_001) })),
    ] {
        assert_error(&api.post(&wish), 400, "bad-field", Some(field));
    }
    for (field, form) in [
        ("bogus", "bogus=1"),
        ("kind", "kind=account&kind=account"),
        ("username", "username=ana&username=bob"),
        ("username", "kind=contact&username="),
        ("username", "username=%00"),
        ("ttl", "ttl=0"),
        ("ttl", "ttl=x"),
        ("ttl", "ttl=1d&ttl=1d"),
        ("uses", "uses=x"),
        ("uses", "uses=1.0"),
        ("uses", "uses=99999999999999999999"),
        ("note", "note=x&note="),
        ("roles", "roles=&roles=x"),
    ] {
        // The field is named as JSON whatever the client accepts, as long as it is no browser that is refused.
        assert_error(&api.post_form(form), 400, "bad-field", Some(field));
        let reply = api.ask(&api.key, "POST", ENDPOINT, &[("Content-Type", FORM)], form.as_bytes());
        assert_error(&reply, 400, "bad-field", Some(field));
    }
    assert_eq!(api.count(), 0);
}

#[test]
fn a_role_that_ejabberd_cannot_give_is_refused_by_its_field() {
    let api = Api::start();
    api.run(&["set", HOST, "server", "ejabberd"]);
    assert_error(&api.post(&json!({ "roles": ["x"] })), 400, "bad-field", Some("roles"));
    assert_error(&api.post(&json!({ "groups": ["g1"] })), 400, "bad-field", Some("groups"));
    assert_eq!(api.post(&json!({})).status, 201);
}

#[test]
fn what_is_no_json_object_is_refused_and_nothing_is_made() {
    let api = Api::start();
    let deep = "[".repeat(60_000);
    let deep_value = format!("{{\"note\":{}1{}}}", "[".repeat(1_000), "]".repeat(1_000));
    for text in
        ["[]", "null", "1", "\"x\"", "{", "{}{}", "{\"kind\":}", "{'kind':1}", " ", "kind=reset", &deep, &deep_value]
    {
        let reply = api.ask(&api.key, "POST", ENDPOINT, &[("Content-Type", JSON)], text.as_bytes());
        assert_error(&reply, 400, "bad-body", None);
    }
    let reply = api.ask(&api.key, "POST", ENDPOINT, &[("Content-Type", JSON)], b"{\"note\":\"\xff\"}");
    assert_error(&reply, 400, "bad-body", None);
    assert_eq!(api.count(), 0);
}

#[test]
fn a_body_over_64_kib_is_too_large_and_one_of_another_media_type_is_not_read() {
    let api = Api::start();
    for (length, status) in [(65_536, 400), (65_537, 413), (1_000_000, 413)] {
        let text = format!("note={}", "x".repeat(length - 5));
        let reply = api.post_form(&text);
        assert_eq!(reply.status, status, "{length}: {reply:?}");
    }
    for media_type in ["text/plain", "multipart/form-data; boundary=x", "application/jsonp", "application/xml", "json"]
    {
        let headers = [("Content-Type", media_type), ("Accept", JSON)];
        assert_error(&api.ask(&api.key, "POST", ENDPOINT, &headers, b"{}"), 415, "media-type", None);
    }
    let reply = api.ask(&api.key, "POST", ENDPOINT, &[("Accept", JSON)], b"{}");
    assert_error(&reply, 415, "media-type", None);
    assert_eq!(api.count(), 0);
    for media_type in ["Application/JSON", "application/json;charset=utf-8", " application/json ; charset=UTF-8"] {
        let reply = api.ask(&api.key, "POST", ENDPOINT, &[("Content-Type", media_type)], b"{}");
        assert_eq!(reply.status, 201, "{media_type}");
    }
}

#[test]
fn a_post_leads_to_the_page_where_redirect_says_so() {
    let api = Api::start();
    for (query, status) in [("redirect=true", 303), ("redirect=", 303), ("redirect=no", 201), ("redirect", 201)] {
        let target = format!("{ENDPOINT}?{query}");
        let reply =
            api.ask(&api.key, "POST", &target, &[("Content-Type", JSON)], br#"{"kind":"contact","username":"ana"}"#);
        assert_eq!((reply.status, reply.body.is_empty()), (status, status == 303), "{query}: {reply:?}");
        assert_eq!(reply.header("location"), Some(format!("https://example.com/invite?{}", reply.token()).as_str()));
        assert_eq!(body(&api.get(&format!("{INVITES}/{}", reply.token())))["kind"], "contact");
    }
}

#[test]
fn a_repeated_request_gets_the_same_answer_and_makes_no_second_invite() {
    let api = Api::start();
    let other = api.key(&["--allow", "account,contact"]);
    let wish = json!({ "kind": "contact", "username": "ana", "note": "x" });
    let named = [("Idempotency-Key", "order-1")];
    let first = api.post_as(&api.key, &named, &wish);
    assert_eq!(first.status, 201);
    for _ in 0..3 {
        let again = api.post_as(&api.key, &named, &wish);
        assert_eq!((again.status, &again.body), (201, &first.body));
        assert_eq!(again.header("location"), first.header("location"));
    }
    assert_eq!(api.count(), 1);
    // Another body, or another media type, is another request.
    let reply = api.post_as(&api.key, &named, &json!({ "kind": "contact", "username": "bob" }));
    assert_error(&reply, 422, "another-request", Some("Idempotency-Key"));
    let text = wish.to_string();
    let headers = [("Content-Type", "application/json; charset=utf-8"), named[0]];
    assert_eq!(api.ask(&api.key, "POST", ENDPOINT, &headers, text.as_bytes()).status, 422);
    assert_eq!(api.count(), 1);
    // Another name, another key, or no name makes another invite.
    for (key, name) in [(&api.key, "order-2"), (&other, "order-1")] {
        assert_ne!(api.post_as(key, &[("Idempotency-Key", name)], &wish).token(), first.token());
    }
    api.post(&wish);
    assert_eq!(api.count(), 4);
    // The answer is kept for a day.
    api.sql("UPDATE invited_request SET created_at = created_at - 86401");
    assert_ne!(api.post_as(&api.key, &named, &wish).token(), first.token());
    assert_eq!(api.count(), 5);
}

#[test]
fn a_repeated_request_follows_its_redirect_and_get_is_never_taken_for_one() {
    let api = Api::start();
    let named = [("Idempotency-Key", "a")];
    let target = format!("{ENDPOINT}?redirect=1");
    let first = api.ask(&api.key, "POST", &target, &named, b"");
    let again = api.ask(&api.key, "POST", &target, &named, b"");
    assert_eq!((first.status, again.status), (303, 303));
    assert_eq!(first.token(), again.token());
    assert_ne!(api.ask(&api.key, "GET", ENDPOINT, &named, b"").token(), first.token());
    assert_ne!(api.ask(&api.key, "GET", ENDPOINT, &named, b"").token(), first.token());
    assert_eq!(api.count(), 3);
}

#[test]
fn twenty_repeats_at_the_same_time_make_one_invite() {
    let api = Api::start();
    let wish = json!({ "uses": 3 });
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let post = || api.post_as(&api.key, &[("Idempotency-Key", "a")], &wish);
        let threads: Vec<_> = (0..20).map(|_| scope.spawn(post)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(replies.iter().all(|reply| reply.status == 201));
    let bodies: HashSet<&str> = replies.iter().map(|reply| reply.body.as_str()).collect();
    assert_eq!((bodies.len(), api.count()), (1, 1));
}

#[test]
fn an_idempotency_key_is_visible_ascii_or_refused() {
    let api = Api::start();
    let long = "x".repeat(201);
    for name in ["", "a b", "a\tb", "é", "ø", &long] {
        let reply = api.post_as(&api.key, &[("Idempotency-Key", name)], &json!({}));
        assert_error(&reply, 400, "bad-field", Some("Idempotency-Key"));
    }
    assert_eq!(api.count(), 0);
    assert_eq!(api.post_as(&api.key, &[("Idempotency-Key", &long[1..])], &json!({})).status, 201);
    let twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")];
    assert_eq!(api.post_as(&api.key, &twice, &json!({})).status, 400);
    assert_eq!(api.count(), 1);
}

#[test]
fn the_list_is_paged_oldest_first_and_shows_what_has_ended_only_when_asked() {
    let api = Api::start();
    let made: Vec<String> = (0..120).map(|number| api.post(&json!({ "note": format!("{number}") })).token()).collect();
    let walk = |query: &str| {
        let (mut found, mut sizes, mut after) = (Vec::new(), Vec::new(), String::new());
        loop {
            let page = body(&api.get(&format!("{INVITES}?{query}{after}")));
            let page_tokens = tokens(&page);
            sizes.push(page_tokens.len());
            found.extend(page_tokens);
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return (found, sizes),
            }
        }
    };
    let (found, sizes) = walk("");
    assert_eq!((&found, sizes), (&made, vec![50, 50, 20]));
    assert_eq!(walk("limit=200").1, [120]);
    assert_eq!(walk("limit=7").0, made);
    assert_eq!(walk("limit=1").0, made);
    for token in &made[10..20] {
        assert_eq!(api.ask(&api.key, "DELETE", &format!("{INVITES}/{token}"), &[], b"").status, 204);
    }
    api.sql(&format!("UPDATE invited_invite SET expires_at = 1 WHERE token = '{}'", made[0]));
    let pending = [&made[1..10], &made[20..]].concat();
    assert_eq!(walk("limit=9").0, pending);
    assert_eq!(walk("limit=9&all=false").0, pending);
    assert_eq!(walk("limit=9&all=true").0, made);
    // A page can begin after one that has ended.
    assert_eq!(tokens(&body(&api.get(&format!("{INVITES}?limit=2&after={}", made[15])))), made[20..22]);
    let page = body(&api.get(&format!("{INVITES}?all=true&limit=1")));
    assert_eq!((&page["invites"][0]["state"], &page["invites"][0]["note"]), (&json!("expired"), &json!("0")));
}

#[test]
fn a_list_asked_for_wrongly_is_refused_with_the_name_of_the_parameter() {
    let api = Api::start();
    let other = api.key(&[]);
    let foreign = api.post_as(&other, &[], &json!({})).token();
    for (field, query) in [
        ("limit", "limit=0"),
        ("limit", "limit=201"),
        ("limit", "limit="),
        ("limit", "limit=x"),
        ("limit", "limit=-1"),
        ("limit", "limit=99999999999999999999999"),
        ("all", "all=yes"),
        ("all", "all="),
        ("all", "all=True"),
        ("after", "after=unknown"),
        ("after", "after="),
        ("after", &format!("after={foreign}")),
    ] {
        assert_error(&api.get(&format!("{INVITES}?{query}")), 400, "bad-field", Some(field));
    }
    assert_eq!(body(&api.get(INVITES)), json!({ "invites": [], "next": null }));
}

#[test]
fn a_key_sees_and_takes_back_what_it_made_and_nothing_else() {
    let api = Api::start();
    let other = api.key(&[]);
    let own = api.post(&json!({})).token();
    let foreign = api.post_as(&other, &[], &json!({})).token();
    let link = api.run(&["invite", HOST]);
    let shell = link.trim_end().split_once('?').unwrap().1.to_owned();
    let elsewhere = {
        let key = api.run(&["create", "other.example"]).trim_end().to_owned();
        api.secrets.lock().unwrap().push(secret(&key));
        api.post_as(&key, &[], &json!({})).token()
    };
    assert_eq!(tokens(&body(&api.get(INVITES))), [own.as_str()]);
    let list = body(&api.ask(&other, "GET", INVITES, &[], b""));
    assert_eq!(tokens(&list), [foreign.as_str()]);
    for token in [&foreign, &shell, &elsewhere, "unknown", "a%00b", &own.to_ascii_lowercase(), "%F0%9F"] {
        for method in ["GET", "DELETE"] {
            let target = format!("{INVITES}/{token}");
            let reply = api.ask(&api.key, method, &target, &[("Accept", JSON)], b"");
            assert_error(&reply, 404, "token-unknown", None);
        }
    }
    assert_eq!(api.run(&["invites", HOST]).lines().count(), 3);
    assert_eq!(api.run(&["invites", "other.example"]).lines().count(), 1);
}

#[test]
fn an_invite_is_taken_back_once_and_at_once() {
    let api = Api::start();
    let rows = |token: &str| -> i64 {
        api.db().query_row(r#"SELECT count(*) FROM "prosody" WHERE "key" = ?1"#, [token], |row| row.get(0)).unwrap()
    };
    let delete = |token: &str| api.ask(&api.key, "DELETE", &format!("{INVITES}/{token}"), &[("Accept", JSON)], b"");
    for wish in [json!({}), json!({ "kind": "contact", "username": "ana", "uses": 3 })] {
        let token = api.post(&wish).token();
        assert!(rows(&token) > 0);
        let reply = delete(&token);
        assert_eq!((reply.status, reply.body.as_str(), rows(&token)), (204, "", 0), "{reply:?}");
        assert_eq!(api.server.get(&format!("/invite?{token}")).status, 410);
        assert_error(&delete(&token), 410, "ended", None);
        let invite = body(&api.get(&format!("{INVITES}/{token}")));
        assert_eq!((&invite["state"], &invite["used"]), (&json!("revoked"), &json!([])));
        assert!(invite["ended_at"].as_i64().is_some_and(|at| at <= now()));
    }
    let (used, expired) = (api.post(&json!({})).token(), api.post(&json!({})).token());
    api.sql(&format!(r#"DELETE FROM "prosody" WHERE "key" = '{used}'"#));
    api.sql(&format!("UPDATE invited_invite SET expires_at = 1 WHERE token = '{expired}'"));
    assert!(body(&delete(&used))["message"].as_str().unwrap().contains("used"));
    assert!(body(&delete(&expired))["message"].as_str().unwrap().contains("expired"));
    let invite = body(&api.get(&format!("{INVITES}/{used}")));
    assert_eq!((&invite["state"], &invite["uses_left"]), (&json!("used"), &json!(0)));
    assert_eq!(invite["used"].as_array().unwrap().len(), 1);
}

#[test]
fn other_methods_are_refused_with_those_that_there_are() {
    let api = Api::start();
    let token = api.post(&json!({})).token();
    let one = format!("{INVITES}/{token}");
    for (target, methods) in [
        (ENDPOINT, "GET, POST, OPTIONS"),
        (INVITES, "GET, OPTIONS"),
        ("/invites_api/openapi.json", "GET, OPTIONS"),
        (&one, "GET, DELETE, OPTIONS"),
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"] {
            if methods.contains(method) {
                continue;
            }
            let reply = api.ask(&api.key, method, target, &[("Accept", JSON)], b"");
            assert_eq!((reply.status, reply.header("allow")), (405, Some(methods)), "{method} {target}");
            assert_eq!(reply.header("access-control-allow-methods"), Some(methods));
        }
        let reply = api.server.request("OPTIONS", target, &[]);
        assert_eq!((reply.status, reply.header("allow")), (200, Some(methods)), "{target}");
        assert_eq!(reply.header("access-control-allow-headers"), Some("Authorization, Content-Type, Idempotency-Key"));
    }
    for target in ["/invites_api/", "/invites_api/x", "/invites_api/invites/", &format!("{one}/x"), &format!("{one}/")]
    {
        assert_eq!(api.get(target).status, 404, "{target}");
    }
    assert_eq!((api.count(), api.server.get(&format!("/invite?{token}")).status), (1, 200));
}

#[test]
fn nothing_below_the_endpoint_answers_without_a_key_but_its_description() {
    let api = Api::start();
    let token = api.post(&json!({})).token();
    let one = format!("{INVITES}/{token}");
    let refused = api.server.get(ENDPOINT);
    for (method, target) in [("GET", INVITES), ("GET", one.as_str()), ("DELETE", &one), ("POST", ENDPOINT)] {
        for key in ["", "x", &format!("{}x", api.key), &format!("{}/x", id(&api.key)), &api.key.replace('/', "")] {
            let reply = api.ask(key, method, target, &[], b"");
            assert_eq!((reply.status, &reply.body), (403, &refused.body), "{method} {target} {key}");
        }
        assert_eq!(api.server.request(method, target, &[]).body, refused.body);
    }
    let reply = api.server.get("/invites_api/openapi.json");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some(JSON)));
    assert_eq!(reply.body, include_str!("../../src/api/openapi.json"));
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    // The query has a key as well as the header does.
    let reply = api.server.get(&format!("{INVITES}?key={}&limit=1", api.key));
    assert_eq!(tokens(&body(&reply)), [token]);
}

#[test]
fn a_key_makes_what_it_is_allowed_and_is_told_why_not_more() {
    let api = Api::start();
    let ana = |kind: &str| json!({ "kind": kind, "username": "ana" });
    let wishes = [
        ("account", json!({})),
        ("fixed", ana("account")),
        ("contact", ana("contact")),
        ("account-and-contact", ana("account-and-contact")),
        ("reset", ana("reset")),
        ("prosody:admin", json!({ "roles": ["prosody:admin"] })),
        ("team", json!({ "groups": ["team"] })),
        ("5", json!({ "uses": 5 })),
        ("6", json!({ "uses": 6 })),
    ];
    for (allow, granted) in [
        (None, &["account", "fixed"][..]),
        (Some("contact"), &["contact"]),
        (Some("reset"), &["reset"]),
        (Some("account,contact"), &["account", "fixed", "contact", "account-and-contact"]),
        (Some("account,uses:5"), &["account", "fixed", "5"]),
        (Some("account, role:prosody:admin"), &["account", "fixed", "prosody:admin"]),
        (Some("account,group:team,uses:6"), &["account", "fixed", "team", "5", "6"]),
    ] {
        let options = allow.map_or(vec![], |allow| vec!["--allow", allow]);
        let key = api.key(&options);
        for (name, wish) in &wishes {
            let reply = api.post_as(&key, &[], wish);
            if granted.contains(name) {
                assert_eq!(reply.status, 201, "{allow:?} {name}: {reply:?}");
            } else {
                assert_error(&reply, 403, "not-allowed", None);
                let uses = if allow == Some("account,uses:5") { "5" } else { "1" };
                let why = match *name {
                    "5" | "6" if granted.contains(&"account") => uses,
                    _ if !granted.contains(&"account") && wish.get("kind").is_none() => "account",
                    "fixed" => "account",
                    name => name,
                };
                assert!(reply.body.contains(why), "{allow:?} {name}: {reply:?}");
            }
        }
        let reply = api.ask(&key, "GET", ENDPOINT, &[], b"");
        assert_eq!(reply.status, if granted.contains(&"account") { 201 } else { 403 }, "{allow:?}");
    }
}

#[test]
fn an_expired_key_is_refused_like_one_that_never_was() {
    let api = Api::start();
    let key = api.key(&["--expires", "7d"]);
    let lasting: i64 = api
        .db()
        .query_row("SELECT expires_at - created_at FROM invited_key WHERE id = ?1", [id(&key)], |row| row.get(0))
        .unwrap();
    assert_eq!(lasting, 604_800);
    let token = api.post_as(&key, &[], &json!({})).token();
    api.sql(&format!("UPDATE invited_key SET expires_at = {} WHERE id = '{}'", now() - 1, id(&key)));
    for accept in [JSON, "text/html", "*/*"] {
        let headers = [("Accept", accept)];
        let (expired, unknown) =
            (api.ask(&key, "GET", ENDPOINT, &headers, b""), api.ask("unknown/unknown", "GET", ENDPOINT, &headers, b""));
        assert_eq!((expired.status, &expired.body), (403, &unknown.body));
    }
    for (method, target) in [("GET", INVITES), ("DELETE", &format!("{INVITES}/{token}"))] {
        assert_eq!(api.ask(&key, method, target, &[], b"").status, 403);
    }
    // What it has made stays good.
    assert_eq!(api.server.get(&format!("/invite?{token}")).status, 200);
}

#[test]
fn a_key_waits_when_it_has_made_its_invites_of_the_day_and_the_shell_never_does() {
    let api = Api::start();
    let key = api.key(&["--per-day", "3"]);
    let named = [("Idempotency-Key", "a")];
    let first = api.post_as(&key, &named, &json!({}));
    assert_eq!(api.ask(&key, "GET", ENDPOINT, &[], b"").status, 201);
    assert_eq!(api.post_as(&key, &[], &json!({})).status, 201);
    let waits = || {
        let reply = api.post_as(&key, &[], &json!({}));
        assert_error(&reply, 429, "key-limit", None);
        let wait: i64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=86_400).contains(&wait), "{wait}");
        let reply = api.ask(&key, "GET", ENDPOINT, &[], b"");
        assert_eq!((reply.status, reply.header("retry-after").is_some()), (429, true));
        wait
    };
    assert!(waits() > 86_000);
    // A request that was granted can be repeated, the list can be read, and nobody else is limited.
    assert_eq!(api.post_as(&key, &named, &json!({})).body, first.body);
    assert_eq!(api.ask(&key, "GET", INVITES, &[], b"").status, 200);
    assert_eq!(api.post(&json!({})).status, 201);
    for _ in 0..5 {
        api.run(&["invite", HOST]);
    }
    // Taking one back does not make room: it was made.
    assert_eq!(api.ask(&key, "DELETE", &format!("{INVITES}/{}", first.token()), &[], b"").status, 204);
    waits();
    let back = |token: &str, secs: i64| {
        api.sql(&format!("UPDATE invited_invite SET created_at = created_at - {secs} WHERE token = '{token}'"));
    };
    back(&first.token(), 80_000);
    assert!(waits() <= 6_400);
    back(&first.token(), 6_400);
    assert_eq!(api.post_as(&key, &[], &json!({})).status, 201);
    waits();
}

#[test]
fn requests_at_the_same_time_do_not_get_past_the_limit() {
    let api = Api::start();
    let key = api.key(&["--per-day", "5"]);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..20).map(|_| scope.spawn(|| api.post_as(&key, &[], &json!({})).status)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 5, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 15, "{statuses:?}");
    assert_eq!(api.count(), 5);
}

#[test]
fn a_key_can_be_deleted_together_with_what_nobody_has_used() {
    let api = Api::start();
    let key = api.key(&["--allow", "account,contact,uses:3"]);
    let make = |wish: Value| api.post_as(&key, &[], &wish).token();
    let (used, begun, unused) = (make(json!({})), make(json!({ "uses": 3 })), make(json!({})));
    let (contact, expired) = (make(json!({ "kind": "contact", "username": "ana" })), make(json!({})));
    let foreign = api.post(&json!({})).token();
    for token in [&used, &begun] {
        api.sql(&format!(r#"DELETE FROM "prosody" WHERE "key" = '{token}'"#));
    }
    api.sql(&format!("UPDATE invited_invite SET expires_at = 1 WHERE token = '{expired}'"));
    let id = id(&key);
    assert_eq!(api.run(&["delete", HOST, id, "--revoke-unused"]), "");
    assert_eq!(api.post_as(&key, &[], &json!({})).status, 403);
    for (token, state, rows) in [
        (&used, "used", 0),
        (&begun, "pending", 1),
        (&unused, "revoked", 0),
        (&contact, "revoked", 0),
        (&expired, "expired", 1),
        (&foreign, "pending", 1),
    ] {
        let invite: Value = serde_json::from_str(&api.run(&["show", HOST, token, "--json"])).unwrap();
        assert_eq!(invite["state"], state, "{invite}");
        let sql = r#"SELECT count(*) FROM "prosody" WHERE "key" = ?1"#;
        let found: i64 = api.db().query_row(sql, [token], |row| row.get(0)).unwrap();
        assert_eq!(found, rows, "{state}");
    }
    // Without the option, all of it stays good.
    let key = api.key(&[]);
    let token = api.post_as(&key, &[], &json!({})).token();
    api.run(&["delete", HOST, key.split_once('/').unwrap().0]);
    assert_eq!(api.server.get(&format!("/invite?{token}")).status, 200);
}

#[test]
fn the_json_list_of_keys_tells_limits_and_last_use_and_no_secret() {
    let api = Api::start();
    let key = api.key(&["--allow", "account, role:x,uses:5", "--expires", "1y", "--per-day", "20"]);
    for _ in 0..2 {
        api.post_as(&key, &[], &json!({}));
    }
    let text = api.run(&["list", HOST, "--json"]);
    for secret in api.secrets.lock().unwrap().iter() {
        assert!(!text.contains(secret.as_str()));
    }
    let keys: Value = serde_json::from_str(&text).unwrap();
    let (first, second) = (&keys[0], &keys[1]);
    assert_eq!(keys.as_array().unwrap().len(), 2);
    assert_eq!((&first["id"], &first["name"]), (&json!(id(&api.key)), &json!("all")));
    for name in ["expires", "per_day", "last_used_at"] {
        assert_eq!(first[name], Value::Null, "{name}");
    }
    assert_eq!(first["allow"], json!(ALL.split(',').collect::<Vec<_>>()));
    assert_eq!(second["allow"], json!(["account", "role:x", "uses:5"]));
    assert_eq!((&second["per_day"], &second["invites"], &first["invites"]), (&json!(20), &json!(2), &json!(0)));
    let created_at = second["created_at"].as_i64().unwrap();
    assert_eq!(second["expires"], created_at + 365 * 86_400);
    assert!(second["last_used_at"].as_i64().is_some_and(|at| (created_at..=now()).contains(&at)), "{second}");
    // The plain form is for eyes, and has not changed.
    assert_eq!(api.run(&["list", HOST]), format!("{}\tall\n{}\tanother\n", id(&api.key), id(&key)));
    api.run(&["set", "other.example", "ttl", "2d", "--new-host"]);
    assert_eq!(api.run(&["list", "other.example", "--json"]), "[]\n");
}

#[test]
fn the_log_has_one_line_a_request_with_its_reason_and_no_token() {
    let api = Api::start();
    let (limited, expired) = (api.key(&["--per-day", "1"]), api.key(&["--expires", "1d"]));
    api.sql(&format!("UPDATE invited_key SET expires_at = 1 WHERE id = '{}'", id(&expired)));
    let token = api.post(&json!({})).token();
    let one = format!("{INVITES}/{token}");
    let redirect = format!("{ENDPOINT}?redirect=1&key={}", api.key);
    let named = [("Idempotency-Key", "a"), ("Content-Type", JSON)];
    let wrong = format!("{}/{}", id(&api.key), "x".repeat(32));
    for (key, method, target, headers, text) in [
        (&*api.key, "GET", redirect.as_str(), &[][..], ""),
        (&api.key, "POST", ENDPOINT, &named, "{}"),
        (&api.key, "POST", ENDPOINT, &named, "{}"),
        (&api.key, "POST", ENDPOINT, &named, "{ }"),
        (&api.key, "POST", ENDPOINT, &[("Content-Type", JSON)], "{\"x\":1}"),
        (&api.key, "POST", ENDPOINT, &[("Content-Type", JSON)], "x"),
        (&api.key, "POST", ENDPOINT, &[("Content-Type", "x/y")], "x"),
        (&limited, "POST", ENDPOINT, &[("Content-Type", FORM)], "kind=reset&username=ana"),
        (&limited, "POST", ENDPOINT, &[], ""),
        (&limited, "POST", ENDPOINT, &[], ""),
        (&expired, "GET", INVITES, &[], ""),
        ("unknown/unknown", "GET", &one, &[], ""),
        (&wrong, "DELETE", &one, &[], ""),
        ("x", "DELETE", &one, &[], ""),
        (&limited, "DELETE", &one, &[], ""),
        (&api.key, "GET", INVITES, &[], ""),
        (&api.key, "GET", &one, &[], ""),
        (&api.key, "PUT", &one, &[], ""),
        (&api.key, "OPTIONS", &one, &[], ""),
        (&api.key, "DELETE", &one, &[], ""),
        (&api.key, "DELETE", &one, &[], ""),
        (&api.key, "GET", &format!("{one}/x"), &[], ""),
        (&api.key, "GET", "/invites_api/openapi.json", &[], ""),
    ] {
        api.ask(key, method, target, headers, text.as_bytes());
    }
    let (none, masked) = ("-", "/invites_api/invites/-");
    let expected = [
        ("created", 201, ENDPOINT, &*api.key),
        ("created-redirect", 303, ENDPOINT, &api.key),
        ("created", 201, ENDPOINT, &api.key),
        ("repeated", 201, ENDPOINT, &api.key),
        ("another-request", 422, ENDPOINT, &api.key),
        ("bad-field", 400, ENDPOINT, &api.key),
        ("bad-body", 400, ENDPOINT, &api.key),
        ("media-type", 415, ENDPOINT, &api.key),
        ("not-allowed", 403, ENDPOINT, &limited),
        ("created", 201, ENDPOINT, &limited),
        ("key-limit", 429, ENDPOINT, &limited),
        ("key-expired", 403, INVITES, ""),
        ("key-unknown", 403, masked, ""),
        ("key-wrong-secret", 403, masked, ""),
        ("key-malformed", 403, masked, ""),
        ("token-unknown", 404, masked, &limited),
        ("listed", 200, INVITES, &api.key),
        ("listed", 200, masked, &api.key),
        ("method", 405, masked, ""),
        ("options", 200, masked, ""),
        ("revoked", 204, masked, &api.key),
        ("ended", 410, masked, &api.key),
        ("no-route", 404, none, ""),
        ("openapi", 200, "/invites_api/openapi.json", ""),
    ];
    let lines = api.log_lines(expected.len());
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, (reason, status, path, key)) in lines.iter().zip(expected) {
        for pair in [format!(" reason={reason} "), format!(" status={status} "), format!(" path={path} ")] {
            assert!(line.contains(&pair), "{line} has no{pair}");
        }
        let key = key.split('/').next().unwrap();
        let found = line.split_once(" key=").map_or("", |(_, id)| id);
        assert_eq!(found, key, "{line}");
    }
}
