//! The guest's pages over plain HTTP: what each kind of invite shows, to whom, in which language, and what it never does.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rusqlite::Connection;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::doctor_peers::address_of_this_machine;
use crate::harness::{Folder, PROGRAM, Reply, Server, create_key, done, fails, run};

const HOST: &str = "example.com";
const SITE: &str = "Ana's place";

const ANDROID: &str = "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/125.0 Mobile Safari/537.36";
const IPHONE: &str = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 Mobile Safari/604.1";
const MAC: &str = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/17.4 Safari/605.1.15";
const WINDOWS: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:126.0) Gecko/20100101 Firefox/126.0";
const LINUX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:126.0) Gecko/20100101 Firefox/126.0";

const LANGUAGES: [&str; 10] = ["en", "de", "fr", "es", "it", "nl", "pt", "pl", "ru", "uk"];

/// Every kind of invite, as arguments of `invited invite`.
const KINDS: [(&str, &[&str]); 5] = [
    ("account", &[]),
    ("account of a fixed name", &["--user", "bob"]),
    ("contact", &["--contact", "ana"]),
    ("account and contact", &["--contact", "ana", "--register"]),
    ("reset", &["--reset", "ana"]),
];

/// A server with a host that has a name, in a folder of its own.
struct Site {
    server: Server,
    folder: Folder,
}

impl Site {
    fn start() -> Site {
        Site::start_with(&[])
    }

    fn start_with(args: &[&str]) -> Site {
        Site::start_on("127.0.0.1:0", args)
    }

    fn start_on(listen: &str, args: &[&str]) -> Site {
        let folder = Folder::new();
        create_key(&folder.db(), HOST);
        done(&folder.db(), &["set", HOST, "site-name", SITE]);
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--listen", listen, "--db"]).arg(folder.db()).args(args);
        let server = Server::spawn(command.env("TMPDIR", folder.path()));
        Site { server, folder }
    }

    fn set(&self, name: &str, value: &str) {
        done(&self.folder.db(), &["set", HOST, name, value]);
    }

    fn unset(&self, name: &str) {
        done(&self.folder.db(), &["unset", HOST, name]);
    }

    /// Sets a setting whose value comes from a file.
    fn set_file(&self, name: &str, content: &[u8]) {
        self.set(name, &self.write(content));
    }

    /// What the program says to a file that is not good for a setting.
    fn refuses_file(&self, name: &str, content: &[u8]) -> String {
        fails(&self.folder.db(), 2, &["set", HOST, name, &self.write(content)])
    }

    fn write(&self, content: &[u8]) -> String {
        let path = self.folder.file("setting");
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// Makes an invite and returns its token.
    fn invite(&self, args: &[&str]) -> String {
        token_of(&done(&self.folder.db(), &[&["invite", HOST], args].concat()))
    }

    fn page(&self, token: &str) -> Reply {
        self.server.get(&format!("/invite?{token}"))
    }

    /// The page as a browser with these headers gets it.
    fn page_for(&self, token: &str, headers: &[(&str, &str)]) -> Reply {
        self.server.request("GET", &format!("/invite?{token}"), headers)
    }

    fn sql(&self) -> Connection {
        open(&self.folder.db())
    }

    /// What `invited show` tells of an invite once the server has ended and all counts are in the file.
    fn counted(mut self, token: &str) -> (i64, Value) {
        self.server.signal("TERM");
        assert_eq!(self.server.wait(), Some(0));
        let shown: Value = serde_json::from_str(&done(&self.folder.db(), &["show", HOST, token, "--json"])).unwrap();
        (shown["opened"].as_i64().unwrap(), shown["app"].clone())
    }
}

fn open(db: &Path) -> Connection {
    let conn = Connection::open(db).unwrap();
    conn.busy_timeout(crate::harness::PATIENCE).unwrap();
    conn
}

fn token_of(link: &str) -> String {
    link.trim_end().split_once("/invite?").unwrap_or_else(|| panic!("no link: {link:?}")).1.to_owned()
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let rest = text.split_once(start).unwrap_or_else(|| panic!("no {start} in {text}")).1;
    rest.split_once(end).unwrap_or_else(|| panic!("no {end} after {start} in {text}")).0
}

/// What a browser would show of a text.
fn unescape(text: &str) -> String {
    [("&#60;", "<"), ("&#62;", ">"), ("&#34;", "\""), ("&#39;", "'"), ("&amp;", "&"), ("&#38;", "&")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn title(page: &Reply) -> String {
    unescape(between(&page.body, "<title>", "</title>"))
}

/// The values of an attribute, in their order.
fn attributes(body: &str, name: &str) -> Vec<String> {
    body.split(&format!(" {name}=\"")).skip(1).map(|rest| unescape(rest.split('"').next().unwrap())).collect()
}

/// The ids of apps that lead somewhere on a page, in their order; up to the apps for other devices if `first` is set.
fn apps(page: &Reply, first: bool) -> Vec<String> {
    let body = if first { page.body.split("<details").next().unwrap() } else { &page.body };
    let mut ids: Vec<String> = Vec::new();
    for link in attributes(body, "href") {
        let path = link.split('?').next().unwrap().to_owned();
        if let Some(rest) = path.strip_prefix("invite/get/").or_else(|| path.strip_prefix("invite/setup/")) {
            let id = rest.split('/').next().unwrap().to_owned();
            if ids.last() != Some(&id) {
                ids.push(id);
            }
        }
    }
    ids
}

#[track_caller]
fn assert_headers_of_every_page(reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
    assert_policy_names_exactly_the_styles(reply);
}

/// Nothing but the very style blocks of this page, as a browser reads them, may style it.
#[track_caller]
fn assert_policy_names_exactly_the_styles(page: &Reply) {
    let policy = page.header("content-security-policy").unwrap();
    assert!(!policy.contains("unsafe"), "{policy}");
    for rule in ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"] {
        assert!(policy.split("; ").any(|found| found == rule), "{rule} is not in {policy}");
    }
    let allowed: Vec<&str> = between(policy, "style-src ", ";").split(' ').collect();
    let styles = page.body.split("<style>").skip(1).map(|rest| rest.split("</style>").next().unwrap());
    // A browser reads CR LF and CR as LF before it takes the digest.
    let styles = styles.map(|css| css.replace("\r\n", "\n").replace('\r', "\n"));
    let hashes: Vec<String> = styles.map(|css| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(css)))).collect();
    assert_eq!(allowed, hashes);
    assert!(!page.body.contains(" style=\"") && !page.body.contains("<script"), "{}", page.body);
}

// ---- The page of an invite. ----

#[test]
fn every_kind_of_invite_names_who_invites_and_what_to_open() {
    let site = Site::start();
    for (kind, args) in KINDS {
        let made: Value =
            serde_json::from_str(&done(&site.folder.db(), &[&["invite", HOST, "--json"], args].concat())).unwrap();
        let token = made["token"].as_str().unwrap_or_else(|| panic!("{made}"));
        let page = site.page(token);
        assert_headers_of_every_page(&page, 200);
        let uri = match kind {
            "account" => format!("xmpp:{HOST}?register;preauth={token}"),
            "account of a fixed name" => format!("xmpp:bob@{HOST}?register;preauth={token}"),
            "contact" => format!("xmpp:ana@{HOST}?roster;preauth={token}"),
            "account and contact" => format!("xmpp:ana@{HOST}?roster;preauth={token};ibr=y"),
            _ => format!("xmpp:ana@{HOST}?register;preauth={token}"),
        };
        assert_eq!(page.header("link"), Some(format!("<{uri}>; rel=\"alternate\"").as_str()), "{kind}");
        assert_eq!(page.header("access-control-allow-origin"), Some("*"));
        assert_eq!(page.header("access-control-expose-headers"), Some("Link"));
        assert!(attributes(&page.body, "href").contains(&uri), "{kind}: no {uri} in {}", page.body);
        assert!(unescape(&page.body).contains(&format!("<code>{uri}</code>")), "{kind}: it can't be read");
        let lead = unescape(between(&page.body, "<p class=\"lead\">", "</p>"));
        let (heading, title) = (unescape(between(&page.body, "<h1>", "</h1>")), title(&page));
        assert_eq!(heading, title, "{kind}");
        if kind != "contact" {
            assert!(format!("{title} {lead}").contains(SITE), "{kind}: {title}; {lead}");
        }
        if kind == "account of a fixed name" {
            assert!(lead.contains("bob"), "{lead}");
        } else if kind != "account" {
            assert!(title.contains("ana") && lead.contains("ana"), "{kind}: {title}; {lead}");
        }
    }
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let site = Site::start();
    let mut targets = vec!["/".to_owned(), "/favicon.ico".to_owned(), "/invite?unknown".to_owned()];
    for (_, args) in KINDS {
        let token = site.invite(args);
        targets.push(format!("/invite?{token}"));
        targets.push(format!("/invite/setup/conversations?{token}"));
        targets.push(format!("/invite/get/conversations/0?{token}"));
    }
    for target in targets {
        let (get, head) = (site.server.get(&target), site.server.request("HEAD", &target, &[]));
        let headers =
            |reply: &Reply| -> Vec<_> { reply.headers.iter().filter(|(name, _)| name != "date").cloned().collect() };
        assert_eq!((get.status, headers(&get)), (head.status, headers(&head)), "{target}");
        assert!(head.body.is_empty());
    }
}

#[test]
fn the_apps_of_the_device_come_first_and_all_others_are_there_too() {
    let site = Site::start();
    let token = site.invite(&[]);
    let everything: HashSet<String> = apps(&site.page(&token), false).into_iter().collect();
    assert!(everything.len() >= 14, "{everything:?}");
    for (agent, hint, first) in [
        (ANDROID, None, &["conversations", "cheogram", "monocles", "yaxim"][..]),
        (IPHONE, None, &["monal", "siskin-im"]),
        // Safari: it can be an iPad.
        (MAC, None, &["monal-macos", "beagle-im", "gajim", "monal", "siskin-im"]),
        (WINDOWS, None, &["gajim"]),
        (LINUX, None, &["gajim", "dino", "kaidan"]),
        // "Desktop site" of a browser on Android.
        (LINUX, Some("\"Android\""), &["conversations", "cheogram", "monocles", "yaxim"]),
        (LINUX, Some("\"Windows\""), &["gajim"]),
        (ANDROID, Some("\"Android\""), &["conversations", "cheogram", "monocles", "yaxim"]),
        ("", Some("\"macOS\""), &["monal-macos", "beagle-im", "gajim"]),
        (LINUX, Some("nonsense"), &["gajim", "dino", "kaidan"]),
    ] {
        let mut headers = vec![("User-Agent", agent)];
        headers.extend(hint.map(|hint| ("Sec-CH-UA-Platform", hint)));
        let page = site.page_for(&token, &headers);
        assert_eq!(apps(&page, true), first, "{headers:?}");
        let all: HashSet<String> = apps(&page, false).into_iter().collect();
        assert_eq!(all, everything, "{headers:?}");
    }
    for agent in ["curl/8", "", "Mozilla/5.0 (PlayStation 5)"] {
        let page = site.page_for(&token, &[("User-Agent", agent)]);
        assert!(!page.body.contains("<details") && apps(&page, true).len() >= 14, "{agent}");
    }
}

#[test]
fn a_device_whose_apps_cannot_open_invites_is_sent_to_a_phone() {
    let site = Site::start();
    site.set("register", "off");
    let phone = "Open this page on a phone";
    for args in [&[][..], &["--user", "bob"], &["--contact", "ana", "--register"]] {
        let token = site.invite(args);
        for (agent, sent) in [(LINUX, true), (WINDOWS, true), (ANDROID, false), (IPHONE, false), (MAC, false)] {
            let page = site.page_for(&token, &[("User-Agent", agent)]);
            assert_eq!(page.body.contains(phone), sent, "{args:?} {agent}: {}", page.body);
        }
    }
    // Where the account can be made in the browser, no phone is needed.
    site.unset("register");
    for (agent, sent) in [(LINUX, true), (WINDOWS, true), (ANDROID, false), (IPHONE, false), (MAC, false)] {
        let token = site.invite(&[]);
        let page = site.page_for(&token, &[("User-Agent", agent)]);
        assert!(!page.body.contains(phone), "{agent}");
        assert_eq!(page.body.contains("id=\"make\""), sent, "{agent}: {}", page.body);
        assert!(attributes(&page.body, "href").contains(&format!("register?t={token}")), "{agent}: {}", page.body);
    }
    // Any app can add a contact, and a password is changed where the app is already.
    for args in [&["--contact", "ana"], &["--reset", "ana"]] {
        let token = site.invite(args);
        assert!(!site.page_for(&token, &[("User-Agent", LINUX)]).body.contains(phone));
    }
}

#[test]
fn a_reset_offers_no_apps_to_install() {
    let site = Site::start();
    let page = site.page_for(&site.invite(&["--reset", "ana"]), &[("User-Agent", ANDROID)]);
    assert_eq!(apps(&page, false), Vec::<String>::new());
    assert!(page.body.contains("password") && !page.body.contains("Get an app"), "{}", page.body);
}

/// Few apps can open such a link, and every browser can.
#[test]
fn the_first_way_of_a_reset_is_the_browser() {
    let site = Site::start();
    let token = site.invite(&["--reset", "ana"]);
    let main = |page: &Reply| page.body.split("class=\"button\"").nth(1).unwrap().split('>').next().unwrap().to_owned();
    let page = site.page(&token);
    assert_eq!(main(&page), format!(" href=\"register?t={token}\" rel=\"nofollow\""));
    assert!(page.body.contains("here in the browser") && page.body.contains("Open in my app"), "{}", page.body);
    site.set("register", "off");
    let page = site.page(&token);
    assert!(main(&page).starts_with(" href=\"xmpp:"), "{}", page.body);
    assert!(!page.body.contains("browser"), "{}", page.body);
}

#[test]
fn a_contact_invite_comes_to_the_point_first_and_says_that_an_account_is_needed() {
    let site = Site::start();
    let page = site.page(&site.invite(&["--contact", "ana"]));
    let (accept, install) = (page.body.find("id=\"accept\""), page.body.find("id=\"install\""));
    assert!(accept.unwrap() < install.unwrap(), "{}", page.body);
    assert!(page.body.contains("Ask ana for an invite that comes with an account"), "{}", page.body);
}

#[test]
fn every_page_is_one_request_of_less_than_40_kb() {
    let site = Site::start();
    for (kind, args) in KINDS {
        let token = site.invite(args);
        for language in LANGUAGES {
            let page = site.page_for(&token, &[("Accept-Language", language)]);
            assert!(page.body.len() < 40 * 1024, "{kind} in {language}: {} bytes", page.body.len());
            assert!(!page.body.contains(" src=") && !page.body.contains("<link") && !page.body.contains("url("));
            for link in attributes(&page.body, "href") {
                let ours = ["invite/get/", "invite/setup/", "register?t=", "xmpp:"]
                    .iter()
                    .any(|start| link.starts_with(start));
                assert!(ours, "{kind} in {language} leads to {link}");
            }
        }
    }
}

// ---- Below it: setting up an app, and on to the stores. ----

#[test]
fn an_app_is_set_up_in_two_steps_and_an_unknown_one_is_not_found() {
    let site = Site::start();
    let token = site.invite(&[]);
    let uri = format!("xmpp:{HOST}?register;preauth={token}");
    site.set("register", "off");
    for id in apps(&site.page(&token), false) {
        let page = site.server.get(&format!("/invite/setup/{id}?{token}"));
        assert_headers_of_every_page(&page, 200);
        assert_eq!(page.header("link"), None);
        let links = attributes(&page.body, "href");
        assert!(links.contains(&format!("../../invite/get/{id}/0?{token}")), "{links:?}");
        assert!(links.contains(&format!("../../invite?{token}")), "{links:?}");
        assert_eq!(page.body.contains("with another app first"), !unescape(&page.body).contains(&uri), "{}", page.body);
    }
    for id in ["unknown", "", "Conversations", "conversations/", "..", "%63onversations", "<script>"] {
        let page = site.server.get(&format!("/invite/setup/{id}?{token}"));
        assert_headers_of_every_page(&page, 404);
        assert_eq!(page.header("link"), None);
        assert!(!page.body.contains(&token) && !page.body.contains("<script"), "{}", page.body);
    }
    for target in ["/invite/setup/monal", "/invite/setup/monal?unknown", "/invite/setup/", "/invite/setup"] {
        assert_eq!(site.server.get(target).status, 404, "{target}");
    }
}

#[test]
fn an_app_that_cannot_open_invites_is_set_up_by_way_of_another() {
    let site = Site::start();
    let token = site.invite(&[]);
    let page = site.server.get(&format!("/invite/setup/dino?{token}"));
    let form = format!("../../register?t={token}&c=dino");
    assert!(attributes(&page.body, "href").contains(&form), "{}", page.body);
    assert!(!page.body.contains("with another app first"), "{}", page.body);
    site.set("register", "off");
    let page = site.server.get(&format!("/invite/setup/dino?{}", site.invite(&["--contact", "ana", "--register"])));
    assert!(page.body.contains("with another app first") && page.body.contains(&format!("@{HOST}")), "{}", page.body);
    assert!(!attributes(&page.body, "href").iter().any(|link| link.starts_with("xmpp:")), "{}", page.body);
    let page = site.server.get(&format!("/invite/setup/dino?{}", site.invite(&["--contact", "ana"])));
    assert!(attributes(&page.body, "href").iter().any(|link| link.starts_with("xmpp:ana@")), "{}", page.body);
}

#[test]
fn the_invite_goes_along_to_the_store_where_the_app_can_take_it_from_there() {
    let site = Site::start();
    let token = site.invite(&["--contact", "ana", "--register"]);
    let to = |button: &str| {
        let reply = site.server.get(&format!("/invite/get/{button}?{token}"));
        assert_eq!((reply.status, reply.header("link")), (303, None), "{button}");
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
        reply.header("location").unwrap().to_owned()
    };
    let escaped = format!("xmpp%3Aana%40{HOST}%3Froster%3Bpreauth%3D{token}%3Bibr%3Dy");
    let play = "https://play.google.com/store/apps/details?id=";
    assert_eq!(to("conversations/0"), format!("{play}eu.siacs.conversations&referrer={escaped}"));
    assert_eq!(to("conversations/1"), "https://f-droid.org/packages/eu.siacs.conversations/");
    assert_eq!(to("yaxim/0"), format!("{play}org.yaxim.androidclient&referrer={escaped}"));
    for button in ["monal/0", "monal-macos/0", "dino/0", "gajim/0", "conversejs/0", "renga/0"] {
        let address = to(button);
        assert!(address.starts_with("https://") && !address.contains(&token), "{address}");
    }
    for bad in ["conversations/2", "conversations/-1", "conversations/x", "unknown/0", "", "/", "conversations/0/0"] {
        let reply = site.server.get(&format!("/invite/get/{bad}?{token}"));
        assert_eq!((reply.status, reply.header("location"), reply.header("link")), (404, None, None), "{bad}");
    }
    for target in ["/invite/get/monal/0", "/invite/get/monal/0?unknown"] {
        assert_eq!(site.server.get(target).status, 404, "{target}");
    }
}

#[test]
fn an_ended_invite_leads_to_no_app() {
    let site = Site::start();
    let token = site.invite(&[]);
    done(&site.folder.db(), &["revoke", HOST, &token]);
    for target in ["/invite/setup/conversations", "/invite/get/conversations/0"] {
        let reply = site.server.get(&format!("{target}?{token}"));
        assert_headers_of_every_page(&reply, 410);
        assert_eq!(reply.header("location"), None);
    }
}

// ---- Invites that have ended, and addresses that lead nowhere. ----

#[test]
fn used_expired_revoked_and_unknown_are_told_apart() {
    let site = Site::start();
    let (used, expired, revoked) = (site.invite(&[]), site.invite(&[]), site.invite(&[]));
    let sql = site.sql();
    sql.execute("DELETE FROM prosody WHERE key = ?1", [&used]).unwrap();
    sql.execute("UPDATE invited_invite SET expires_at = 1 WHERE token = ?1", [&expired]).unwrap();
    done(&site.folder.db(), &["revoke", HOST, &revoked]);
    let mut titles = HashSet::new();
    for (token, status, word) in [
        (used.as_str(), 410, "used"),
        (&expired, 410, "expired"),
        (&revoked, 410, "taken back"),
        ("unknown", 404, "no such invite"),
    ] {
        for language in LANGUAGES {
            let page = site.page_for(token, &[("Accept-Language", language)]);
            assert_headers_of_every_page(&page, status);
            assert_eq!(page.header("link"), None);
            assert!(!page.body.contains("xmpp:") && !page.body.contains(token), "{}", page.body);
            assert!(titles.insert(title(&page)), "two pages have the title {}", title(&page));
            assert!(language != "en" || title(&page).contains(word), "{}", title(&page));
        }
    }
}

/// Who has just made the account comes back to see how to go on.
#[test]
fn a_used_invite_shows_where_to_log_in_and_no_other_ended_one_does() {
    let site = Site::start();
    let kinds: [&[&str]; 4] = [&[], &["--contact", "ana", "--register"], &["--contact", "ana"], &["--reset", "ana"]];
    for (kind, shows) in kinds.into_iter().zip([true, true, false, false]) {
        let [used, revoked] = [site.invite(kind), site.invite(kind)];
        site.sql().execute("DELETE FROM prosody WHERE key = ?1", [&used]).unwrap();
        done(&site.folder.db(), &["revoke", HOST, &revoked]);
        for (token, shows) in [(&used, shows), (&revoked, false)] {
            let page = site.page_for(token, &[("User-Agent", ANDROID)]);
            assert_eq!(page.status, 410);
            let has = |text: &str| page.body.contains(text);
            assert_eq!(has("Its address is your name, then @example.com"), shows, "{kind:?}: {}", page.body);
            let parts = [has("For Android"), has("https://play.google.com/"), has("Log in"), has(">Dino<")];
            assert_eq!(parts, [shows, shows, shows, false], "{kind:?}: {}", page.body);
        }
        let is_reset = kind.contains(&"--reset");
        assert_eq!(site.page(&used).body.contains("The new password is set"), is_reset, "{kind:?}");
        assert_eq!(site.page(&revoked).body.contains("The old password is still good"), is_reset, "{kind:?}");
    }
}

#[test]
fn a_guest_who_goes_astray_is_told_where_in_their_language() {
    let site = Site::start();
    for target in ["/", "/invit", "/register/x", "/invite/T0k"] {
        let headers = [("Accept", "text/html"), ("Accept-Language", "de")];
        let page = site.server.request("GET", target, &headers);
        assert_headers_of_every_page(&page, if target == "/" { 200 } else { 404 });
        assert!(page.body.contains("<html lang=\"de\""), "{}", page.body);
        assert_eq!(page.body.contains("Diese Seite gibt es nicht"), target != "/", "{}", page.body);
        let page = site.server.request("GET", target, &[("Accept", "application/json")]);
        assert_eq!(page.body.contains("no-route"), target != "/", "{}", page.body);
    }
}

#[test]
fn the_addresses_beside_the_invites_answer() {
    let site = Site::start();
    let home = site.server.get("/");
    assert_headers_of_every_page(&home, 200);
    assert!(home.body.contains("If someone gave you an invite"), "{}", home.body);
    for (target, media_type, start) in [
        ("/favicon.ico", "image/x-icon", "\0\0\u{1}\0"),
        ("/robots.txt", "text/plain; charset=utf-8", "User-agent: *\nDisallow: /\n"),
        ("/invite/card.png", "image/png", "\u{fffd}PNG\r\n"),
    ] {
        let reply = site.server.get(target);
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(media_type)), "{target}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert!(reply.body.starts_with(start), "{target}: {:?}", reply.body.chars().take(20).collect::<String>());
    }
    for target in ["/invite/", "/invite/nothing", "/invite/card.png/", "/invites", "/style.css", "/invite/logo/"] {
        assert_eq!(site.server.get(target).status, 404, "{target}");
    }
}

// ---- Previews, and what is counted. ----

#[test]
fn a_preview_has_words_and_a_picture_and_no_token() {
    let site = Site::start();
    site.set("url", "https://chat.example.com/join");
    for (kind, args) in KINDS {
        let token = site.invite(args);
        for agent in ["facebookexternalhit/1.1", "WhatsApp/2.23.20.0", "TelegramBot (like TwitterBot)", ANDROID] {
            let page = site.page_for(&token, &[("User-Agent", agent)]);
            assert_headers_of_every_page(&page, 200);
            let tags: Vec<&str> = page.body.lines().filter(|line| line.starts_with("<meta ")).collect();
            let of = |name: &str| {
                let tag = tags.iter().find(|tag| tag.contains(&format!("\"{name}\"")));
                unescape(between(tag.unwrap_or_else(|| panic!("{kind}: no {name}")), "content=\"", "\""))
            };
            assert_eq!(of("og:title"), title(&page));
            assert_eq!(of("twitter:title"), title(&page));
            assert_eq!(of("og:site_name"), SITE);
            assert_eq!(of("og:image"), "https://chat.example.com/join/invite/card.png");
            assert_eq!(of("twitter:image"), of("og:image"));
            assert_eq!(of("og:type"), "website");
            assert_eq!(of("twitter:card"), "summary_large_image");
            assert!(!of("og:description").is_empty() && of("robots").contains("noindex"));
            assert!(!tags.iter().any(|tag| tag.contains(&token) || tag.contains("xmpp:")), "{tags:?}");
            assert!(!title(&page).contains(&token));
        }
    }
}

#[test]
fn guests_are_counted_and_their_last_app_is_kept() {
    let site = Site::start();
    let token = site.invite(&[]);
    site.page_for(&token, &[("User-Agent", ANDROID)]);
    site.page(&token);
    site.server.get(&format!("/invite/setup/monal?{token}"));
    site.server.get(&format!("/invite/get/conversations/1?{token}"));
    site.server.get(&format!("/invite/get/unknown/1?{token}"));
    let db = site.folder.db();
    site.server.signal("TERM");
    let Site { mut server, folder } = site;
    assert_eq!(server.wait(), Some(0));
    for args in [&["show", HOST, &token][..], &["invites", HOST]] {
        let shown = done(&db, args);
        assert!(shown.contains("opened twice, chose Conversations"), "{shown}");
    }
    drop(folder);
}

#[test]
fn neither_head_nor_previews_nor_misses_are_counted() {
    let site = Site::start();
    let token = site.invite(&[]);
    for target in ["/invite", "/invite/setup/monal", "/invite/get/monal/0"] {
        let target = format!("{target}?{token}");
        site.server.request("HEAD", &target, &[("User-Agent", ANDROID)]);
        for bot in ["facebookexternalhit/1.1", "WhatsApp/2.23.20.0 A", "Slackbot-LinkExpanding 1.0", "Googlebot/2.1"] {
            site.server.request("GET", &target, &[("User-Agent", bot)]);
        }
    }
    site.page("unknown");
    assert_eq!(site.counted(&token), (0, Value::Null));
}

#[test]
fn no_address_of_a_guest_is_in_the_file() {
    let site = Site::start_with(&["--trust-proxy"]);
    let token = site.invite(&[]);
    let headers = [("User-Agent", ANDROID), ("X-Forwarded-For", "192.0.2.77"), ("Accept-Language", "uk")];
    for target in ["/invite", "/invite/setup/monal", "/invite/get/monal/0"] {
        site.server.request("GET", &format!("{target}?{token}"), &headers);
    }
    site.page_for("unknown", &headers);
    let Site { mut server, folder } = site;
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    let mut seen = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            for trace in ["192.0.2", "127.0.0.1", "Pixel", "\u{c0}\u{0}\u{2}\u{4d}"] {
                assert!(!text.contains(trace), "{trace} is in {}", path.display());
            }
            seen += usize::from(text.contains(&token));
        }
    }
    assert!(seen > 0, "the token itself was not found: does this test look in the right place?");
}

#[test]
fn looking_fifty_times_never_uses_an_invite_up() {
    let site = Site::start();
    for (kind, args) in KINDS {
        let token = site.invite(args);
        for _ in 0..50 {
            assert_eq!(site.page(&token).status, 200, "{kind}");
        }
        let sql = "SELECT state, uses_left, (SELECT count(*) FROM prosody WHERE key = token) FROM invited_invite WHERE token = ?1";
        let row = site.sql().query_row(sql, [&token], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        });
        let (state, left, rows) = row.unwrap();
        assert!(state == "pending" && left == 1 && rows >= 1, "{kind}: {state}, {left} left, {rows} rows");
    }
}

// ---- Hostile values. ----

#[test]
fn markup_in_names_is_shown_and_does_nothing() {
    let site = Site::start();
    let evil = "<script>alert(1)</script>\"><img src=x onerror='alert(2)'>{{7*7}}{site}{name}";
    site.set("site-name", evil);
    for (kind, args) in KINDS {
        let token = site.invite(&[args, &["--note", evil]].concat());
        for target in ["/invite", "/invite/setup/conversations", "/invite/setup/dino"] {
            let page = site.server.get(&format!("{target}?{token}"));
            assert_headers_of_every_page(&page, 200);
            for sign in ["<script", "<img", "alert(1)</script"] {
                assert!(!page.body.contains(sign), "{kind}: {sign} in {}", page.body);
            }
            if kind != "contact" {
                assert!(unescape(&page.body).contains("{{7*7}}{site}{name}"), "{kind}: {}", page.body);
            }
        }
        if kind == "account" {
            assert!(title(&site.page(&token)).contains("<script>alert(1)</script>"));
        }
    }
    // The web client is called after the site.
    site.set("web-client", "https://chat.example.com/?a='\"><script>");
    let page = site.page(&site.invite(&[]));
    assert!(apps(&page, false).contains(&"web-client".to_owned()));
    assert!(!page.body.contains("<script") && !page.body.contains("<img"), "{}", page.body);
}

#[test]
fn hostile_names_of_people_hosts_and_sites_are_refused() {
    let site = Site::start();
    let db = site.folder.db();
    for name in ["<b>", "a\"b", "a'b", "a&b", "a/b", "javascript:x", "\u{202e}ana", "an\u{200f}a", "a b", "a\nb", ""] {
        for flag in ["--user", "--contact", "--reset"] {
            let stderr = fails(&db, 2, &["invite", HOST, flag, name]);
            assert!(!stderr.contains('\u{202e}') && !stderr.contains('\u{200f}'), "{stderr:?}");
        }
    }
    for host in ["<b>.example", "javascript:x", "a\u{202e}b.example", "x\".example", "x/y", "x?y"] {
        fails(&db, 2, &["invite", host]);
    }
    for name in ["\u{202e}evil", "a\u{2066}b", "a\nb", "a\u{0}b".trim_end_matches("\u{0}b").repeat(101).as_str(), ""] {
        fails(&db, 2, &["set", HOST, "site-name", name]);
    }
    for setting in ["terms-url", "privacy-url", "web-client"] {
        for address in ["javascript:alert(1)", "JAVASCRIPT:alert(1)", "data:text/html,x", "//x", "https://", "x y"] {
            fails(&db, 2, &["set", HOST, setting, address]);
        }
    }
}

/// What an XMPP server has written is not checked by us: it comes as it is.
#[test]
fn a_name_that_the_xmpp_server_wrote_is_escaped_too() {
    let site = Site::start();
    let token = site.invite(&["--contact", "ana", "--register"]);
    let evil = "<img src=x onerror=alert(1)>\r\nX-Evil: 1";
    site.sql().execute("UPDATE invited_invite SET username = ?1 WHERE token = ?2", [evil, &token]).unwrap();
    for target in ["/invite", "/invite/setup/monal", "/invite/get/conversations/0"] {
        let reply = site.server.get(&format!("{target}?{token}"));
        assert!(!reply.body.contains("<img"), "{}", reply.body);
        assert_eq!(reply.header("x-evil"), None);
    }
}

#[test]
fn markup_in_a_token_is_harmless() {
    let site = Site::start();
    for token in ["<script>alert(1)</script>", "%3Cscript%3E", "\"><img/src=x>", "javascript:alert(1)", "%0d%0aX:1"] {
        for target in ["/invite", "/invite/setup/monal", "/invite/get/monal/0"] {
            let page = site.server.get(&format!("{target}?{token}"));
            assert_headers_of_every_page(&page, 404);
            assert!(!page.body.contains("alert") && !page.body.contains("<img"), "{}", page.body);
        }
    }
}

// ---- Settings. ----

#[test]
fn the_policy_follows_accent_and_style() {
    let site = Site::start();
    let token = site.invite(&[]);
    assert_headers_of_every_page(&site.page(&token), 200);
    site.set("accent", "#7A1FA2");
    let page = site.page(&token);
    assert_headers_of_every_page(&page, 200);
    assert!(page.body.contains("--accent:#7a1fa2"), "{}", page.body);
    // As an editor on Windows writes it.
    site.set_file("style", b"h1 { color: #333 }\r\nh2::before { content: \"\\201C & '\" }\r\n/* \xc3\xbc */\n");
    let page = site.page(&token);
    assert_headers_of_every_page(&page, 200);
    assert!(page.body.contains("--accent:#7a1fa2") && page.body.contains("content: \"\\201C & '\""), "{}", page.body);
    site.unset("accent");
    assert_headers_of_every_page(&site.page(&token), 200);
    assert_headers_of_every_page(&site.page("unknown"), 404);
    // A range in a media query (Media Queries level 4).
    site.set_file("style", b"@media (400px <= width < 900px) { h1 { color: #333 } }");
    let page = site.page(&token);
    assert_headers_of_every_page(&page, 200);
    assert!(page.body.contains("(400px <= width < 900px)"), "{}", page.body);
    for bad in [&b"</style><script>"[..], b"</STYLE >", b"\xff", b"a\0b"] {
        site.refuses_file("style", bad);
    }
}

#[test]
fn an_accent_that_white_text_can_not_be_read_on_is_refused() {
    let site = Site::start();
    for bad in ["#ffffff", "#ffd700", "#00bcd4", "#808080", "red", "#fff", "#12345g", "", "#0b57a8;}", "0b57a8"] {
        fails(&site.folder.db(), 2, &["set", HOST, "accent", bad]);
    }
    let why = fails(&site.folder.db(), 2, &["set", HOST, "accent", "#ffd700"]);
    assert!(why.contains("contrast") && why.contains("4.5"), "{why}");
    for good in ["#000000", "#0b57a8", "#757575", "#B71C1C"] {
        site.set("accent", good);
    }
}

/// The smallest PNG there is: one pixel.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89\0\0\0\rIDATx\x9cc\xf8\xff\xff?\0\x05\xfe\x02\xfe\xa75\x81\x84\0\0\0\0IEND\xaeB`\x82";

#[test]
fn a_logo_is_served_by_ourselves_and_can_do_nothing() {
    let site = Site::start();
    let token = site.invite(&[]);
    let target = format!("/invite/logo/{HOST}");
    assert_eq!(site.server.get(&target).status, 404);
    let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1 1\"><path d=\"M0 0h1v1z\"/></svg>";
    for (content, media_type) in [(PNG, "image/png"), (svg.as_bytes(), "image/svg+xml")] {
        site.set_file("logo", content);
        let reply = site.server.get(&target);
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(media_type)));
        assert_eq!(reply.header("content-length"), Some(content.len().to_string().as_str()));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.ends_with("sandbox"), "{policy}");
        let page = site.page(&token);
        assert_eq!(attributes(&page.body, "src"), [target.trim_start_matches('/')]);
        assert_eq!(attributes(&page.body, "alt"), [SITE]);
        let setup = site.server.get(&format!("/invite/setup/monal?{token}"));
        assert_eq!(attributes(&setup.body, "src"), [format!("../../invite/logo/{HOST}")]);
        assert!(page.header("content-security-policy").unwrap().contains("img-src 'self'"));
    }
    for host in ["other.example", "..", "%3Cscript%3E", ""] {
        assert_eq!(site.server.get(&format!("/invite/logo/{host}")).status, 404, "{host}");
    }
    site.unset("logo");
    assert_eq!(site.server.get(&target).status, 404);
    assert!(!site.page(&token).body.contains("<img"));
}

#[test]
fn a_logo_that_is_no_harmless_picture_is_refused() {
    let site = Site::start();
    let svg = |inner: &str| format!("<svg xmlns=\"http://www.w3.org/2000/svg\">{inner}</svg>").into_bytes();
    for bad in [
        b"GIF89a".to_vec(),
        b"<html><script>alert(1)</script></html>".to_vec(),
        b"\x89PNG\r\n\x1a\n".iter().copied().chain(std::iter::repeat_n(0, 70_000)).collect(),
        svg("<script>alert(1)</script>"),
        svg("<path onload='alert(1)'/>"),
        svg("<image href='https://evil.example/x.png'/>"),
        svg("<a href='javascript:alert(1)'>x</a>"),
        svg("<foreignObject><body/></foreignObject>"),
        Vec::new(),
    ] {
        site.refuses_file("logo", &bad);
    }
    assert_eq!(site.server.get(&format!("/invite/logo/{HOST}")).status, 404);
}

#[test]
fn which_apps_are_shown_is_followed_at_once() {
    let site = Site::start();
    let token = site.invite(&[]);
    let shown = || apps(&site.page(&token), false);
    let android = || apps(&site.page_for(&token, &[("User-Agent", ANDROID)]), true);
    site.set("apps-hide", "conversations, dino");
    assert!(!shown().contains(&"conversations".to_owned()) && !shown().contains(&"dino".to_owned()));
    assert_eq!(site.server.get(&format!("/invite/setup/dino?{token}")).status, 404);
    assert_eq!(site.server.get(&format!("/invite/get/conversations/0?{token}")).status, 404);
    site.unset("apps-hide");
    let refused = fails(&site.folder.db(), 2, &["set", HOST, "apps-hide", "conversation"]);
    assert!(
        refused.contains("'conversation' can't be in apps-hide") && refused.contains("conversations, "),
        "{refused}"
    );
    let all = shown().join(",");
    assert!(fails(&site.folder.db(), 2, &["set", HOST, "apps-hide", &all]).contains("without any app"));
    site.set("web-client", "https://web.example.com/");
    site.set("apps-hide", &all);
    assert_eq!(shown(), ["web-client"]);
    site.unset("web-client");
    site.unset("apps-hide");
    site.set("apps-show", "yaxim,conversations,monal");
    assert_eq!(android(), ["yaxim", "conversations"]);
    assert_eq!(shown().len(), 3);
    site.unset("apps-show");
    site.set("web-client", "https://web.example.com/chat?x=1");
    let reply = site.server.get(&format!("/invite/get/web-client/0?{token}"));
    assert_eq!((reply.status, reply.header("location")), (303, Some("https://web.example.com/chat?x=1")));
    assert!(shown().contains(&"web-client".to_owned()));
    site.set_file("apps", app().to_string().replace("\"house\"", "\"conversations\"").as_bytes());
    assert_eq!(android()[0], "conversations", "a host's own entry comes first and replaces ours");
    assert!(site.page(&token).body.contains("House &#38; Garden"));
    site.set_file("apps", app().to_string().as_bytes());
    assert_eq!(android()[..2], ["house", "conversations"]);
    let reply = site.server.get(&format!("/invite/get/house/0?{token}"));
    let escaped = format!("xmpp%3A{HOST}%3Fregister%3Bpreauth%3D{token}");
    assert_eq!(reply.header("location"), Some(format!("https://house.example/get?i={escaped}#x").as_str()));
    for (name, text) in [("terms-url", "Terms"), ("privacy-url", "Privacy")] {
        let address = format!("https://example.com/{name}?a=1&b=2");
        assert!(!site.page(&token).body.contains(&format!(">{text}</a>")));
        site.set(name, &address);
        for target in ["/invite", "/invite/setup/monal"] {
            let page = site.server.get(&format!("{target}?{token}"));
            assert!(attributes(&page.body, "href").contains(&address), "{}", page.body);
            assert!(page.body.contains(&format!(">{text}</a>")));
        }
        site.unset(name);
        assert!(!site.page(&token).body.contains(&format!(">{text}</a>")));
    }
}

/// A list with one good app.
fn app() -> Value {
    json!([{
        "id": "house", "name": "House & Garden", "colour": "#123456", "platforms": ["android", "web"], "preauth": true,
        "link": "https://house.example/",
        "buttons": [{
            "text": "Get it", "url": "https://house.example/get", "magic_link_format": "https://house.example/get?i={uri}#x"
        }]
    }])
}

#[test]
fn a_bad_list_of_apps_names_the_entry_and_the_field() {
    let site = Site::start();
    let bad = |field: &str, value: Value| {
        let mut list = app();
        let mut second = list[0].clone();
        second["id"] = json!("second");
        match field.strip_prefix("button.") {
            Some(field) => second["buttons"][0][field] = value,
            None => second[field] = value,
        }
        list.as_array_mut().unwrap().push(second);
        let why = site.refuses_file("apps", list.to_string().as_bytes());
        let name = field.trim_start_matches("button.");
        assert!(why.contains("app 2") && why.contains(name), "{field}: {why}");
        assert!(!why.contains('\u{202e}'), "{why:?}");
    };
    for value in [json!(""), json!("A B"), json!(1), json!("<b>"), json!("x".repeat(41))] {
        bad("id", value);
    }
    for value in [json!(""), json!("\u{202e}x"), json!(null), json!("a\nb")] {
        bad("name", value.clone());
        bad("button.text", value);
    }
    for value in [json!("javascript:alert(1)"), json!("http://x.example"), json!("https://x\"y"), json!(1)] {
        bad("link", value.clone());
        bad("button.url", value.clone());
        bad("button.magic_link_format", value);
    }
    bad("button.magic_link_format", json!("https://x.example/"));
    for value in [json!("red"), json!("#12345"), json!(1)] {
        bad("colour", value);
    }
    for value in [json!([]), json!("android"), json!(["amiga"]), json!(["android", 1])] {
        bad("platforms", value);
    }
    bad("preauth", json!("yes"));
    bad("buttons", json!([]));
    bad("button.magic-link", json!("https://x.example/{uri}"));
    bad("bogus", json!(1));
    assert!(site.refuses_file("apps", b"{").contains("JSON"));
    assert_eq!(run(&site.folder.db(), &["get", HOST, "apps"]).status.code(), Some(1), "a refused list was kept");
}

// ---- Languages. ----

#[test]
fn every_language_is_spoken_to_those_who_ask_for_it() {
    let site = Site::start();
    for (kind, args) in KINDS {
        let token = site.invite(args);
        let english = title(&site.page(&token));
        for language in LANGUAGES {
            let page = site.page_for(&token, &[("Accept-Language", language)]);
            assert!(page.body.contains(&format!("<html lang=\"{language}\" dir=\"ltr\">")), "{language}");
            assert_eq!(title(&page) == english, language == "en", "{kind} in {language}: {}", title(&page));
            let text = unescape(&page.body);
            // A name of a text where the text should be, or a placeholder that nobody filled.
            for sign in
                ["{site}", "{name}", "{app}", "{n}", "{host}", "{platform}", ">apps.", ">step.", ">accept.", ">qr."]
            {
                assert!(!text.contains(sign), "{kind} in {language}: {sign} in {text}");
            }
        }
    }
}

#[test]
fn the_language_that_is_liked_best_is_chosen() {
    let site = Site::start();
    let token = site.invite(&[]);
    for (accept, language) in [
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("en;q=0.5, fr;q=0.7, xx;q=0.9", "fr"),
        ("pt-BR", "pt"),
        ("PL", "pl"),
        ("ja, zh;q=0.9", "en"),
        ("de;q=0, es;q=0.1", "es"),
        ("uk,ru", "uk"),
        ("*", "en"),
        (";;,q=1,de;q=x", "de"),
    ] {
        let page = site.page_for(&token, &[("Accept-Language", accept)]);
        assert!(page.body.contains(&format!("<html lang=\"{language}\"")), "{accept} did not give {language}");
    }
    assert!(site.page(&token).body.contains("<html lang=\"en\""));
}

// ---- Limits and size. ----

#[test]
fn many_unknown_tokens_from_one_address_have_to_wait_and_a_valid_one_never_has() {
    let site = Site::start_with(&["--trust-proxy"]);
    let token = site.invite(&[]);
    let from = |address: &str, token: &str| site.page_for(token, &[("X-Forwarded-For", address)]);
    for number in 0..30 {
        assert_eq!(from("192.0.2.7", &format!("unknown{number}")).status, 404);
    }
    let limited = from("192.0.2.7", "unknown30");
    assert_headers_of_every_page(&limited, 429);
    let wait: i64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=600).contains(&wait), "{wait}");
    assert!(title(&limited).contains("Too many") && limited.body.contains("nowhere either"), "{}", limited.body);
    let ended = site.invite(&[]);
    done(&site.folder.db(), &["revoke", HOST, &ended]);
    for method in ["GET", "HEAD"] {
        for (target, status) in
            [("/invite?", 200), ("/invite/setup/monal?", 200), ("/invite/get/monal/0?", 303), ("/register?t=", 200)]
        {
            for (token, status) in [("unknown", 429), (&token, status), (&ended, 410)] {
                let target = format!("{target}{token}");
                let reply = site.server.request(method, &target, &[("X-Forwarded-For", "192.0.2.7")]);
                assert_eq!(reply.status, status, "{method} {target}");
            }
        }
    }
    for (token, status) in [("unknown", 429), (&token, 400), (&ended, 410)] {
        let body = format!("token={token}&user=ada&password=short");
        let headers = [("Content-Type", "application/x-www-form-urlencoded"), ("X-Forwarded-For", "192.0.2.7")];
        assert_eq!(site.server.send("POST", "/register", &headers, body.as_bytes()).status, status, "{token}");
    }
    // Only the last address is the proxy's word.
    assert_eq!(from("6.6.6.6, 192.0.2.7", "unknown").status, 429);
    assert_eq!(from("192.0.2.7, 192.0.2.8", "unknown").status, 404);
    assert_eq!(site.page("unknown").status, 404);
}

/// On another machine, or in a container: its address is not that of its clients.
#[test]
fn a_proxy_elsewhere_that_is_not_believed_is_not_taken_for_its_clients() {
    let Some(ip) = address_of_this_machine() else { return };
    // Of all that there is, only this address and those of the loopback can be had: it is in no private network, or in one.
    for args in [&[][..], &["--trust-proxy"]] {
        let site = Site::start_on(&format!("{ip}:0"), args);
        let token = site.invite(&[]);
        for name in ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"] {
            for number in 0..40 {
                let page = site.page_for(&format!("unknown{number}"), &[(name, "unknown")]);
                assert_eq!(page.status, 404, "{name} {number}");
                let key = site.server.request("GET", "/invites_api?key=un/known", &[(name, "unknown")]);
                assert_eq!(key.status, 403, "{name} {number}");
            }
            assert_eq!(site.page_for(&token, &[(name, "unknown")]).status, 200);
        }
        assert!(!site.server.log_with("status=200").contains("client="), "{}", site.server.log());
        // Without a proxy it is the client's own address.
        site.page("unknown");
        site.server.log_with(&format!("client={ip}"));
    }
}

#[test]
fn a_proxy_that_is_not_trusted_is_not_limited_for_all_its_clients() {
    let site = Site::start();
    let token = site.invite(&[]);
    for number in 0..40 {
        let page = site.page_for(&format!("unknown{number}"), &[("X-Forwarded-For", "192.0.2.7")]);
        assert_eq!(page.status, 404);
    }
    assert_eq!(site.page(&token).status, 200);
}

#[test]
fn who_brings_many_bad_keys_has_to_wait_and_a_good_key_never_has() {
    let site = Site::start_with(&["--trust-proxy"]);
    let good = create_key(&site.folder.db(), HOST);
    let from = |address: &str, key: &str, accept: &str| {
        let headers = [("X-Forwarded-For", address), ("Accept", accept)];
        site.server.request("GET", &format!("/invites_api?key={key}"), &headers)
    };
    let bad = format!("{}{}", &good[..good.len() - 1], if good.ends_with('x') { 'y' } else { 'x' });
    for number in 0..30 {
        // One with a known id is no better than one without, and no key at all is no try.
        let key = if number % 2 == 0 { &bad } else { "un/known" };
        assert_eq!(from("192.0.2.7", key, "*/*").status, 403);
        let without = site.server.request("GET", "/invites_api?x", &[("X-Forwarded-For", "192.0.2.7")]);
        assert_eq!(without.status, 403);
    }
    for (accept, media_type, text) in [
        ("*/*", "text/plain; charset=utf-8", "Too many requests: "),
        ("application/json", "application/json", "{\"error\":\"key-tries\""),
        ("text/html", "text/html; charset=utf-8", "<title>Too many requests"),
    ] {
        let limited = from("192.0.2.7", &bad, accept);
        assert_eq!((limited.status, limited.header("content-type")), (429, Some(media_type)));
        let wait: i64 = limited.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=600).contains(&wait) && limited.body.contains(text), "{wait} {}", limited.body);
        assert_eq!(limited.header("access-control-allow-origin"), Some("*"));
        assert_eq!(limited.body, from("192.0.2.7", "un/known", accept).body, "no hint as to which key is known");
    }
    let made = from("192.0.2.7", &good, "*/*");
    assert_eq!(made.status, 201, "a good key works from the same address");
    let page = site.page_for(&made.token(), &[("X-Forwarded-For", "192.0.2.7")]);
    assert_eq!(page.status, 200, "keys and tokens are counted apart");
    assert_eq!(from("192.0.2.8", &bad, "*/*").status, 403);
    // Its network is what counts of an IPv6 address, and a proxy may say it in the standard's own way.
    for number in 0..31 {
        let forwarded = format!("for=192.0.2.{number}, For=\"[2001:db8::{number:x}]:4711\";proto=https");
        let headers = [("Forwarded", forwarded.as_str()), ("Authorization", "Bearer un/known")];
        let reply = site.server.request("GET", "/invites_api/invites", &headers);
        assert_eq!(reply.status, if number < 30 { 403 } else { 429 }, "{number}");
    }
    assert_eq!(done(&site.folder.db(), &["list", HOST]).lines().count(), 2, "the shell is not limited");
}

#[test]
fn many_bad_keys_without_a_proxy_that_says_from_whom_hold_nobody_back() {
    for args in [&[][..], &["--trust-proxy"]] {
        let site = Site::start_with(args);
        for _ in 0..40 {
            assert_eq!(site.server.get("/invites_api?key=un/known").status, 403);
        }
    }
}

#[test]
fn a_page_costs_the_same_with_a_hundred_thousand_invites() {
    let site = Site::start();
    let token = site.invite(&[]);
    let mut conn = site.sql();
    let tx = conn.transaction().unwrap();
    let made = tx.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
         INSERT INTO invited_invite (token, host, kind, source, created_at, expires_at)
         SELECT 'token' || i, 'example.com', 'account', 'cli', 1, 4000000000 FROM n",
        [],
    );
    assert_eq!(made.unwrap(), 100_000);
    tx.commit().unwrap();
    assert_eq!(site.page(&token).status, 200);
    assert_eq!(site.page("token99999").status, 200);
    assert_eq!(site.page("token100001").status, 404);
    // The lookups of a page view, as src/store words them.
    let source = |file: &str| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(root.join(file)).unwrap()
    };
    assert!(source("src/store/invite.rs").contains("FROM invited_invite WHERE token = ?1\""));
    assert!(source("src/store/invite.rs").contains("UPDATE invited_invite SET opened = opened + ?2"));
    for sql in [
        "SELECT * FROM invited_invite WHERE token = 'x'",
        "UPDATE invited_invite SET opened = opened + 1 WHERE token = 'x'",
        "SELECT name, value FROM invited_setting WHERE host = 'x'",
    ] {
        let mut query = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps: Vec<String> =
            query.query_map([], |row| row.get::<_, String>("detail")).unwrap().map(Result::unwrap).collect();
        assert_eq!(steps.len(), 1, "{sql}: {steps:?}");
        let by_index = steps[0].starts_with("SEARCH") && steps[0].contains("INDEX") | steps[0].contains("PRIMARY KEY");
        assert!(by_index, "{sql}: {steps:?}");
    }
}

/// What a mailer makes of a link when it escapes the question mark, and other ways in which a token gets into a path.
#[test]
fn a_token_in_the_path_is_not_logged() {
    let site = Site::start();
    let token = site.invite(&[]);
    for target in [
        format!("/invite/setup/conversations%3F{token}"),
        format!("/invite/get/conversations/0%3F{token}"),
        format!("/invite/setup/{token}?{token}"),
        format!("/invite/get/{token}/0?{token}"),
        format!("/invite/logo/{token}"),
    ] {
        assert_eq!(site.server.get(&target).status, 404, "{target}");
    }
    assert_eq!(site.server.get(&format!("/invite/{token}")).status, 303);
    site.server.get("/robots.txt");
    let log = site.server.log_with("/robots.txt");
    assert!(!log.contains(&token), "{log}");
}
