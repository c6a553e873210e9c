//! The guest's pages in Chromium, by `tests/peers/browser.mjs`: layout, keyboard, contrast, print, and the QR code; and the
//! way to an account through the form, by `tests/peers/form.mjs`.

use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Folder, Server, available, create_key, done};
use crate::prosody::{Prosody, Release, Site};

const HOST: &str = "example.com";

/// A plain one, one with all that can be set, and one where accounts are made in apps alone.
const HOSTS: [&str; 3] = [HOST, "long.example", "apps.example"];

const LONG_NAME: &str =
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft für alle von hier";

/// Where `tests/peers/browser.sh` puts what the script needs; none where that or a program is not there.
fn node_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("INVITED_TEST_NODE").map_or("/var/cache/invited-test/node".into(), PathBuf::from);
    let parts = ["/usr/bin/chromium".as_ref(), "/usr/bin/zbarimg".as_ref(), folder.join(".invited-whole").as_path()]
        .map(Path::exists);
    let found = parts.iter().all(|part| *part) && Command::new("node").arg("--version").output().is_ok();
    available("browser", found).then_some(folder)
}

/// The pages to look at, of hosts that are plain, and of one that is not.
fn pages(folder: &Folder, server: &Server) -> Vec<Value> {
    let db = folder.db();
    let base = format!("http://{}", server.addr);
    for host in HOSTS {
        done(&db, &["set", host, "url", &base]);
    }
    done(&db, &["set", "apps.example", "register", "off"]);
    let invite = |host: &str, args: &[&str]| {
        let link = done(&db, &[&["invite", host], args].concat());
        link.trim_end().to_owned()
    };
    let token = |link: &str| link.split_once('?').unwrap().1.to_owned();
    let page = |name: &str, url: String, status: u16, invite: bool| json!({ "name": name, "url": url, "status": status, "invite": invite });

    let account = invite(HOST, &[]);
    let (used, expired, revoked) = (invite(HOST, &[]), invite(HOST, &[]), invite(HOST, &[]));
    let sql = Connection::open(&db).unwrap();
    sql.execute("DELETE FROM prosody WHERE key = ?1", [token(&used)]).unwrap();
    sql.execute("UPDATE invited_invite SET expires_at = 1 WHERE token = ?1", [token(&expired)]).unwrap();
    done(&db, &["revoke", HOST, &token(&revoked)]);

    let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 400 100\"><path fill=\"#357\" d=\"M0 0h400v100H0z\"/></svg>";
    let (logo, style) = (folder.file("logo.svg"), folder.file("style.css"));
    std::fs::write(&logo, svg).unwrap();
    std::fs::write(&style, "h1 { letter-spacing: .01em }\r\nh2 { letter-spacing: .01em }\r\n").unwrap();
    for (setting, value) in [
        ("site-name", LONG_NAME),
        ("accent", "#7a1fa2"),
        ("logo", logo.to_str().unwrap()),
        ("style", style.to_str().unwrap()),
        ("terms-url", "https://long.example/terms"),
        ("privacy-url", "https://long.example/privacy"),
        ("web-client", "https://long.example/chat"),
    ] {
        done(&db, &["set", "long.example", setting, value]);
    }
    let user = "wwwwwwww".repeat(8);
    let setup = |app: &str| format!("{base}/invite/setup/{app}?{}", token(&account));
    let register = |link: &str, more: &str| format!("{base}/register?t={}{more}", token(link));
    vec![
        page("account", account.clone(), 200, true),
        page("account-in-apps", invite("apps.example", &[]), 200, true),
        page("account-name", invite(HOST, &["--user", "bob"]), 200, true),
        page("contact", invite(HOST, &["--contact", "ana"]), 200, true),
        page("account-and-contact", invite(HOST, &["--contact", "ana", "--register"]), 200, true),
        page("reset", invite(HOST, &["--reset", "ana"]), 200, true),
        page("long", invite("long.example", &["--contact", &user, "--register"]), 200, true),
        page("long-contact", invite("long.example", &["--contact", &user]), 200, true),
        page("setup", setup("conversations"), 200, false),
        page("setup-by-another", setup("dino"), 200, false),
        page("setup-unknown", setup("unknown"), 404, false),
        page("register", register(&account, "&c=dino"), 200, false),
        page("register-name", register(&invite(HOST, &["--user", "bob"]), ""), 200, false),
        page("register-reset", register(&invite(HOST, &["--reset", &user]), ""), 200, false),
        page("register-long", register(&invite("long.example", &["--contact", &user, "--register"]), ""), 200, false),
        page("used", used, 410, false),
        page("expired", expired, 410, false),
        page("revoked", revoked, 410, false),
        page("unknown", format!("{base}/invite?unknown"), 404, false),
        page("home", format!("{base}/"), 200, false),
    ]
}

/// Runs a script of `tests/peers` with a task, which must go well.
fn run(folder: &Folder, script: &str, mut task: Value) {
    let pictures = std::env::var("INVITED_TEST_PICTURES").ok();
    if let Some(pictures) = &pictures {
        std::fs::create_dir_all(pictures).unwrap();
    }
    task["pictures"] = json!(pictures);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(script);
    let output = Command::new("node").arg(script).arg(task.to_string()).env("TMPDIR", folder.path()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}");
    assert!(output.status.success(), "{stdout}{stderr}");
}

#[test]
fn the_pages_are_good_in_a_browser() {
    let Some(node) = node_folder() else { return };
    let folder = Folder::new();
    for host in HOSTS {
        create_key(&folder.db(), host);
    }
    let server = Server::start(&folder.db());
    let pages = pages(&folder, &server);
    run(&folder, "browser.mjs", json!({ "node": node, "pages": pages, "folder": folder.path() }));

    let read = Command::new("zbarimg").args(["--raw", "--quiet"]).arg(folder.file("qr.png")).output().unwrap();
    let text = String::from_utf8_lossy(&read.stdout);
    assert_eq!(text.trim_end(), pages[0]["url"], "the QR code in the page says something else than its address");
}

#[test]
fn guests_make_an_account_in_the_browser() {
    let Some(node) = node_folder() else { return };
    let release = Release::OfThisMachine;
    if release.is_there() {
        make_accounts(release, &node);
    }
}

fn make_accounts(release: Release, node: &Path) {
    let site = Site::new(release);
    let db = site.db();
    // No server has this host, and nothing listens at that address.
    let down = "down.example";
    for host in [HOST, down] {
        create_key(&db, host);
    }
    let prosody = Prosody::start(&site);
    let server = Server::start(&db);
    let token = |host: &str, args: &[&str]| {
        let link = done(&db, &[&["invite", host], args].concat());
        link.trim_end().split_once('?').unwrap().1.to_owned()
    };
    done(&db, &["set", HOST, "xmpp", &prosody.addr.to_string()]);
    done(&db, &["set", down, "xmpp", "127.0.0.1:1"]);
    done(&db, &["set", down, "site-name", LONG_NAME]);
    prosody.make_account(&token(HOST, &[]), "ana");

    let names =
        ["android true", "android false", "linux true", "linux false", "dino", "double", "double-plain", "twice"];
    let mut tokens: Value = names.iter().map(|name| (name.to_string(), json!(token(HOST, &[])))).collect();
    tokens["name"] = json!(token(HOST, &["--user", "bob"]));
    tokens["reset"] = json!(token(HOST, &["--reset", "ana"]));
    tokens["contact"] = json!(token(HOST, &["--contact", "ana"]));
    tokens["down"] = json!(token(down, &[]));
    tokens["long"] = json!(token(HOST, &[]));

    let mut made: Vec<(String, String)> = Vec::new();
    for long in [false, true] {
        if long {
            done(&db, &["set", HOST, "site-name", LONG_NAME]);
            done(&db, &["set", HOST, "web-client", "https://chat.example/"]);
        }
        let file = site.folder.file("made.json");
        let base = format!("http://{}", server.addr);
        let task = json!({ "node": node, "base": base, "taken": "ana", "tokens": tokens, "long": long, "made": file });
        run(&site.folder, "form.mjs", task);
        made.extend(serde_json::from_slice::<Vec<(String, String)>>(&std::fs::read(file).unwrap()).unwrap());
    }
    assert_eq!(made.len(), 11);
    for (name, password) in &made {
        let outcome = prosody.client().log_in_with(name, password);
        assert!(outcome.starts_with("<success"), "{name}: {outcome}");
    }
    let accounts = std::fs::read_dir(site.folder.file("data/example%2ecom/accounts")).unwrap().count();
    assert_eq!(accounts, made.len(), "an account was made twice, or without being asked for");
    assert!(!server.log().contains("four words"), "a password is in the log");
}
