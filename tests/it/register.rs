//! Accounts and passwords made in the browser: what is refused before any XMPP server is asked, and what the tests with one
//! share; these are in `register_prosody.rs`, `register_ejabberd.rs` and `register_wire.rs`.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Barrier;

use serde_json::{Value, json};

use crate::harness::{Folder, Reply, Server, create_key, done};

/// A password that is good wherever none is asked for in particular.
pub const PASSWORD: &str = "correct horse battery";

#[test]
fn weak_passwords_are_refused_beside_their_field() {
    let site = Unasked::start();
    let token = site.invite(&[]);
    for (weak, why) in [
        ("", "Choose a password"),
        ("ninechars", "at least 10 characters"),
        ("I am ANNA, hello", "must not be part"),
        ("with emoji 😀 in it", "not every app"),
        ("with a tab\tin it", "not every app"),
        (&" ".repeat(10), "Choose a password"),
        (&"\u{a0}".repeat(10), "Choose a password"),
        ("\u{2003} nine char \u{3000}", "at least 10 characters"),
        ("with a zero\0in it", "not every app"),
        (&"x".repeat(1_024), "too long"),
    ] {
        let reply = register(&site.server, &token, "anna", weak);
        assert_eq!(reply.status, 400, "{weak}");
        assert!(problem(&reply, "password").contains(why), "{weak}: {}", reply.body);
        assert!(weak.is_empty() || !reply.body.contains(weak), "{weak} is in the page");
    }
    site.assert_unasked(&token);
}

#[test]
fn the_setting_password_min_is_followed() {
    let site = Unasked::start();
    let token = site.invite(&[]);
    assert!(input(&form(&site.server, &token).body, "password").contains("minlength=\"10\""));
    site.set("password-min", "30");
    let shown = form(&site.server, &token).body;
    assert!(
        input(&shown, "password").contains("minlength=\"30\"") && shown.contains("At least 30 characters"),
        "{shown}"
    );
    let reply = register(&site.server, &token, "ada", PASSWORD);
    assert_eq!(reply.status, 400);
    assert!(problem(&reply, "password").contains("at least 30 characters"), "{}", reply.body);
    site.assert_unasked(&token);
}

#[test]
fn names_that_no_server_takes_are_refused_beside_their_field() {
    let site = Unasked::start();
    let token = site.invite(&[]);
    for (name, why) in [
        ("", "Choose a name"),
        (" ", "Choose a name"),
        ("😀", "can't be used"),
        ("a b", "can't be used"),
        ("a\0b", "can't be used"),
        ("<script>", "can't be used"),
        ("ada@example.org", "without the @"),
        (&"n".repeat(241), "too long"),
    ] {
        let reply = register(&site.server, &token, name, PASSWORD);
        assert_eq!(reply.status, 400, "{name:?}");
        assert!(problem(&reply, "user").contains(why), "{name:?}: {}", reply.body);
    }
    site.assert_unasked(&token);
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let site = Unasked::start();
    let reply = register(&site.server, &site.invite(&[]), "a b", "short");
    assert_eq!(reply.status, 400);
    assert!(!problem(&reply, "user").is_empty() && !problem(&reply, "password").is_empty());
    assert!(!reply.body.contains("password-again"), "{}", reply.body);
    // A password that was good is not sent back, and that has to be said.
    let reply = register(&site.server, &site.invite(&[]), "a b", PASSWORD);
    assert!(reply.body.contains("<p id=\"password-again\">Enter the password once more."), "{}", reply.body);
    assert!(input(&reply.body, "password").contains("\"password-hint password-again\""), "{}", reply.body);
}

#[test]
fn markup_in_any_field_is_shown_as_text_or_not_at_all() {
    const MARKUP: &str = "\"><script>alert(1)</script>'&{{ 7 * 7 }}";
    let site = Unasked::start();
    let token = site.invite(&[]);
    let good = [("token", token.as_str()), ("user", ""), ("password", PASSWORD), ("app_id", "monal")];
    for field in good.map(|(name, _)| name) {
        let fields = good.map(|(name, value)| (name, if name == field { MARKUP } else { value }));
        let reply = submit(&site.server, &fields);
        assert_eq!(reply.status, if field == "token" { 404 } else { 400 }, "{field}");
        assert!(!reply.body.contains("<script>alert") && !reply.body.contains("49"), "{field}: {}", reply.body);
        assert_eq!(reply.body.contains("&#60;script&#62;alert"), field == "user", "{field}: {}", reply.body);
        assert_eq!(reply.body.contains("name=\"app_id\""), field == "user" || field == "password", "{field}");
    }
    let app = site.server.get(&format!("/register?t={token}&c=%22%3E%3Cscript%3Ealert(1)"));
    assert!(app.status == 200 && !app.body.contains("<script>alert"), "{}", app.body);
    site.assert_unasked(&token);
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let site = Unasked::start();
    let token = site.invite(&[]);
    for (body, status) in [
        (format!("token={token}&user=%ff%fe&password=correct+horse"), 400),
        (format!("token={token}&user=ada&password=correct+horse+%c3%28"), 400),
        // A token is found whatever is around it.
        (format!("token={token}%ff&user=ada&password="), 400),
        (format!("token={token}%00&user=ada&password="), 400),
        (format!("token=x{token}&user=ada&password=correct+horse"), 404),
        (format!("token={token}&user=&password=correct+horse&app_id=%ff%00%0d%0a"), 400),
    ] {
        let reply = send(&site.server, FORM, body.as_bytes());
        assert_eq!(reply.status, status, "{body}: {}", reply.body);
    }
    let json =
        [format!("{{\"token\":\"{token}\",\"user\":\"").as_bytes(), b"\xff\",\"password\":\"correct horse\"}"].concat();
    assert_error(&send(&site.server, JSON, &json), 400, "bad-body", Value::Null);
    site.assert_unasked(&token);
}

#[test]
fn programs_hear_what_is_wrong_as_json() {
    let site = Unasked::start();
    let token = site.invite(&[]);
    let fixed = site.invite(&["--user", "bob"]);
    for (body, status, word, field) in [
        (json!({ "token": token, "password": PASSWORD }), 400, "name-missing", json!("user")),
        (json!({ "token": token, "user": "a b", "password": PASSWORD }), 400, "name-characters", json!("user")),
        (json!({ "token": token, "username": "a@b", "password": PASSWORD }), 400, "name-host", json!("user")),
        (json!({ "token": fixed, "username": "ada", "password": PASSWORD }), 400, "name-fixed", json!("user")),
        (json!({ "token": token, "username": "bob", "password": PASSWORD }), 409, "name-taken", json!("user")),
        (json!({ "token": token, "user": "ada" }), 400, "password-missing", json!("password")),
        (json!({ "token": token, "user": "ada", "password": "short" }), 400, "password-short", json!("password")),
        (
            json!({ "token": token, "user": "ada", "password": 12345678901_u64 }),
            400,
            "password-missing",
            json!("password"),
        ),
        (json!({ "user": "ada", "password": PASSWORD }), 404, "token-missing", json!("token")),
        (json!({ "token": "unknown", "user": "ada", "password": PASSWORD }), 404, "token-unknown", json!("token")),
        (json!({ "token": ["x"] }), 404, "token-missing", json!("token")),
    ] {
        assert_error(&send_json(&site.server, &body), status, word, field);
    }
    for body in ["", "{", "[]", "null", "\"x\"", "token=x"] {
        assert_error(&send(&site.server, JSON, body.as_bytes()), 400, "bad-body", Value::Null);
    }
    site.assert_unasked(&token);
}

#[test]
fn other_media_types_are_refused_and_a_form_without_a_token_leads_nowhere() {
    let site = Unasked::start();
    for media_type in ["text/plain", "multipart/form-data; boundary=x", "application/xml", ""] {
        assert_eq!(send(&site.server, media_type, b"token=x").status, 415, "{media_type}");
    }
    for body in ["", "user=ada&password=correct+horse", "token=&user=ada"] {
        assert_eq!(send(&site.server, FORM, body.as_bytes()).status, 404, "{body}");
    }
    for target in ["/register", "/register?t=", "/register?t=unknown"] {
        assert_eq!(site.server.get(target).status, 404, "{target}");
    }
}

#[test]
fn the_token_may_be_in_the_address_of_the_form() {
    let site = Unasked::start();
    let token = site.invite(&[]);
    let headers = [("Content-Type", FORM), ("Accept", HTML)];
    let reply = site.server.send("POST", &format!("/register?t={token}"), &headers, b"user=ada&password=short");
    assert_eq!(reply.status, 400);
    assert!(!problem(&reply, "password").is_empty());
}

#[test]
fn an_admin_can_leave_it_to_the_apps() {
    let site = Unasked::start();
    let token = site.invite(&[]);
    assert!(site.server.get(&format!("/invite?{token}")).body.contains("href=\"register?t="));
    site.set("register", "off");
    site.assert_closed(&token);
    site.assert_unasked(&token);
}

#[test]
fn an_invite_for_contacts_alone_makes_no_account() {
    let site = Unasked::start();
    let token = site.invite(&["--contact", "ana"]);
    site.assert_closed(&token);
    site.assert_unasked(&token);
}

#[test]
fn an_invite_that_ends_while_the_form_is_filled_in_is_refused() {
    let site = Unasked::start();
    let token = site.invite(&[]);
    assert_eq!(form(&site.server, &token).status, 200);
    done(&site.folder.db(), &["revoke", "example.com", &token]);
    let reply = register(&site.server, &token, "ada", PASSWORD);
    assert_eq!(reply.status, 410);
    assert!(reply.body.contains("This invite was taken back"), "{}", reply.body);
    let reply = send_json(&site.server, &json!({ "token": token, "user": "ada", "password": PASSWORD }));
    assert_error(&reply, 410, "token-revoked", json!("token"));
    site.assert_unasked_by_anybody();
}

#[test]
fn other_methods_are_refused_by_name() {
    let site = Unasked::start();
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS"] {
        let reply = site.server.request(method, "/register", &[]);
        assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD, POST")), "{method}");
    }
    let token = site.invite(&[]);
    let head = site.server.request("HEAD", &format!("/register?t={token}"), &[]);
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[test]
fn what_is_wrong_is_said_in_the_guests_language() {
    let site = Unasked::start();
    let token = site.invite(&[]);
    let body = format!("token={token}&user=a+b&password=short");
    let headers = [("Content-Type", FORM), ("Accept", HTML), ("Accept-Language", "de")];
    let reply = site.server.send("POST", "/register", &headers, body.as_bytes());
    assert_eq!(reply.status, 400);
    assert!(problem(&reply, "user").contains("Dieser Name geht nicht"), "{}", reply.body);
    assert!(problem(&reply, "password").contains("mindestens 10 Zeichen"), "{}", reply.body);
    assert!(reply.body.contains("<html lang=\"de\""), "{}", reply.body);
}

#[test]
fn the_form_is_never_kept_and_runs_nothing_but_our_script() {
    let site = Unasked::start();
    let token = site.invite(&[]);
    for reply in [form(&site.server, &token), register(&site.server, &token, "a b", PASSWORD)] {
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("form-action 'self'"), "{policy}");
        assert!(policy.contains("script-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    }
}

#[test]
fn the_chosen_app_stays_chosen() {
    let site = Unasked::start();
    let token = site.invite(&[]);
    let shown = site.server.get(&format!("/register?t={token}&c=monal"));
    assert!(shown.body.contains("name=\"app_id\" value=\"monal\""), "{}", shown.body);
    let fields = [("token", token.as_str()), ("user", "a b"), ("password", PASSWORD), ("app_id", "monal")];
    let again = submit(&site.server, &fields);
    assert!(again.body.contains("name=\"app_id\" value=\"monal\""), "{}", again.body);
}

// ---- What the tests share. ----

pub const FORM: &str = "application/x-www-form-urlencoded";
pub const JSON: &str = "application/json";
pub const HTML: &str = "text/html,*/*;q=0.8";

pub fn set_xmpp(db: &Path, address: &str) {
    done(db, &["set", "example.com", "xmpp", address]);
}

/// A server whose XMPP server listens and must never be asked.
struct Unasked {
    server: Server,
    xmpp: TcpListener,
    folder: Folder,
}

impl Unasked {
    fn start() -> Unasked {
        let folder = Folder::new();
        create_key(&folder.db(), "example.com");
        let xmpp = TcpListener::bind("127.0.0.1:0").unwrap();
        xmpp.set_nonblocking(true).unwrap();
        set_xmpp(&folder.db(), &xmpp.local_addr().unwrap().to_string());
        Unasked { server: Server::start(&folder.db()), xmpp, folder }
    }

    fn set(&self, name: &str, value: &str) {
        done(&self.folder.db(), &["set", "example.com", name, value]);
    }

    fn invite(&self, options: &[&str]) -> String {
        invite(&self.folder.db(), options)
    }

    /// Nothing leads to the form, and it is neither shown nor taken.
    #[track_caller]
    fn assert_closed(&self, token: &str) {
        assert!(!self.server.get(&format!("/invite?{token}")).body.contains("register?t="));
        let sent_on = form(&self.server, token);
        assert_eq!((sent_on.status, sent_on.header("location")), (303, Some(format!("invite?{token}").as_str())));
        let reply = register(&self.server, token, "ada", PASSWORD);
        assert_eq!(reply.status, 403);
        assert!(reply.body.contains("Open it in an app instead"), "{}", reply.body);
        let body = json!({ "token": token, "user": "ada", "password": PASSWORD });
        assert_error(&send_json(&self.server, &body), 403, "register-closed", Value::Null);
    }

    /// The XMPP server was not asked, and the invite is as good as before.
    #[track_caller]
    fn assert_unasked(&self, token: &str) {
        self.assert_unasked_by_anybody();
        assert_eq!(show(&self.folder.db(), token)["state"], "pending");
    }

    #[track_caller]
    fn assert_unasked_by_anybody(&self) {
        let asked = self.xmpp.accept();
        assert!(asked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "the XMPP server was asked");
    }
}

/// Makes an invite and returns its token.
pub fn invite(db: &Path, options: &[&str]) -> String {
    let link = done(db, &[&["invite", "example.com"], options].concat());
    link.trim_end().split_once('?').unwrap().1.to_owned()
}

/// The page with the form.
pub fn form(server: &Server, token: &str) -> Reply {
    server.get(&format!("/register?t={token}"))
}

/// The fields of the form with the usual password.
pub fn fields(token: &str, name: &str) -> [(&'static str, String); 3] {
    [("token", token.to_owned()), ("user", name.to_owned()), ("password", PASSWORD.to_owned())]
}

/// Fills in the form and sends it.
pub fn register(server: &Server, token: &str, name: &str, password: &str) -> Reply {
    submit(server, &[("token", token), ("user", name), ("password", password)])
}

/// Sends the form as a browser does.
pub fn submit(server: &Server, fields: &[(&str, impl AsRef<str>)]) -> Reply {
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    send(server, FORM, body.as_bytes())
}

/// Sends all these forms at the same time, and returns the answers in their order.
pub fn at_once(server: &Server, forms: &[[(&'static str, String); 3]]) -> Vec<Reply> {
    let together = Barrier::new(forms.len());
    std::thread::scope(|scope| {
        let guests = forms.iter().map(|form| {
            let together = &together;
            scope.spawn(move || {
                together.wait();
                submit(server, form)
            })
        });
        let guests: Vec<_> = guests.collect();
        guests.into_iter().map(|guest| guest.join().unwrap()).collect()
    })
}

/// All who send these forms at the same time get their accounts.
#[track_caller]
pub fn assert_all_are_let_in(server: &Server, forms: &[[(&'static str, String); 3]]) {
    for reply in at_once(server, forms) {
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

fn send(server: &Server, media_type: &str, body: &[u8]) -> Reply {
    let accept = if media_type == JSON { "*/*" } else { HTML };
    server.send("POST", "/register", &[("Content-Type", media_type), ("Accept", accept)], body)
}

pub fn send_json(server: &Server, body: &Value) -> Reply {
    send(server, JSON, body.to_string().as_bytes())
}

#[track_caller]
pub fn assert_error(reply: &Reply, status: u16, word: &str, field: Value) {
    assert_eq!(reply.status, status, "{reply:?}");
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!((&body["error"], &body["field"]), (&json!(word), &field), "{body}");
    assert!(body["message"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
    assert!(!reply.body.contains(PASSWORD), "{body}");
}

/// What is written beside a field of the form; empty if all is well with it.
pub fn problem(reply: &Reply, field: &str) -> String {
    let start = format!("<p class=\"wrong\" id=\"{field}-wrong\">");
    let text = reply.body.split_once(&start).map_or("", |(_, rest)| rest.split('<').next().unwrap());
    assert_eq!(input(&reply.body, field).contains("aria-invalid"), !text.is_empty(), "{}", reply.body);
    text.replace("&#39;", "'")
}

/// The tag of a field of the form, without its end.
pub fn input<'a>(page: &'a str, field: &str) -> &'a str {
    let start = format!("<input id=\"{field}\"");
    let rest = page.split_once(&start).unwrap_or_else(|| panic!("no field {field}: {page}")).1;
    rest.split('>').next().unwrap()
}

/// All that is known of an invite.
pub fn show(db: &Path, token: &str) -> Value {
    serde_json::from_str(&done(db, &["show", "example.com", token, "--json"])).unwrap()
}

/// Who has used an invite, in the order of the alphabet.
pub fn names(shown: &Value) -> Vec<&str> {
    let used = shown["used"].as_array().unwrap();
    let mut names: Vec<&str> = used.iter().map(|used| used["username"].as_str().expect("a name")).collect();
    names.sort_unstable();
    names
}

#[track_caller]
pub fn assert_no_secret_is_in(log: &str, token: &str) {
    assert!(!log.contains(token) && !log.contains(PASSWORD), "{log}");
}
