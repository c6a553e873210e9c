//! Invites from the shell: made, listed, shown, taken back and pruned, and every way in which that is refused.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Folder, Server, available, create_key, done, fails, run};

const HOST: &str = "example.com";
const DAY: i64 = 86_400;

/// A database that has a key, as any has.
fn database() -> Folder {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    folder
}

/// `invite HOST` with these options, as JSON.
fn invite(folder: &Folder, options: &[&str]) -> Value {
    parse(&done(&folder.db(), &[&["invite", HOST, "--json"], options].concat()))
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn token(invite: &Value) -> &str {
    invite["token"].as_str().unwrap()
}

fn show(folder: &Folder, token: &str) -> Value {
    parse(&done(&folder.db(), &["show", HOST, token, "--json"]))
}

/// The tokens of a list in its JSON form.
fn listed(folder: &Folder, options: &[&str]) -> Vec<String> {
    let list = parse(&done(&folder.db(), &[&["invites", HOST, "--json"], options].concat()));
    list.as_array().unwrap().iter().map(|invite| token(invite).to_owned()).collect()
}

fn sql(folder: &Folder, sql: &str) {
    let changed = Connection::open(folder.db()).unwrap().execute(sql, []).unwrap();
    assert!(changed > 0, "{sql} changed nothing");
}

fn rows(folder: &Folder, token: &str) -> i64 {
    let sql = r#"SELECT count(*) FROM "prosody" WHERE "store" = 'invite_token' AND "key" = ?1"#;
    Connection::open(folder.db()).unwrap().query_row(sql, [token], |row| row.get(0)).unwrap()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

#[test]
fn each_option_has_its_effect_on_the_invite() {
    let folder = database();
    for (options, uri, ttl, expected) in [
        (&[][..], "xmpp:example.com?register;preauth=TOKEN", 7 * DAY, json!({})),
        (&["--user", "Bob"], "xmpp:bob@example.com?register;preauth=TOKEN", 7 * DAY, json!({ "username": "bob" })),
        (
            &["--contact", "bob"],
            "xmpp:bob@example.com?roster;preauth=TOKEN",
            7 * DAY,
            json!({ "kind": "contact", "username": "bob" }),
        ),
        (
            &["--contact", "JÜRGEN", "--register"],
            "xmpp:j%C3%BCrgen@example.com?roster;preauth=TOKEN;ibr=y",
            7 * DAY,
            json!({ "kind": "account-and-contact", "username": "jürgen" }),
        ),
        (
            &["--reset", "bob"],
            "xmpp:bob@example.com?register;preauth=TOKEN",
            DAY,
            json!({ "kind": "reset", "username": "bob" }),
        ),
        (
            &["--reset", "bob", "--ttl", "30min"],
            "xmpp:bob@example.com?register;preauth=TOKEN",
            1_800,
            json!({ "kind": "reset", "username": "bob" }),
        ),
        (&["--ttl", "2w"], "xmpp:example.com?register;preauth=TOKEN", 14 * DAY, json!({})),
        (&["--uses", "20"], "xmpp:example.com?register;preauth=TOKEN", 7 * DAY, json!({ "uses": 20 })),
        (
            &["--role", "prosody:admin", "--role", "x", "--group", "g 1", "--group", "g2", "--note", "for Ana's class"],
            "xmpp:example.com?register;preauth=TOKEN",
            7 * DAY,
            json!({ "roles": ["prosody:admin", "x"], "groups": ["g 1", "g2"], "note": "for Ana's class" }),
        ),
    ] {
        let found = invite(&folder, options);
        let (token, created_at) = (token(&found), found["created_at"].as_i64().unwrap());
        assert!((now() - 60..=now()).contains(&created_at), "{found}");
        let mut whole = json!({
            "token": token, "uri": uri.replace("TOKEN", token), "url": format!("https://example.com/invite?{token}"),
            "host": HOST, "kind": "account", "username": null, "roles": [], "groups": [], "note": null, "source": "cli",
            "created_at": created_at, "expires": created_at + ttl, "uses": 1, "uses_left": 1, "state": "pending",
            "ended_at": null, "opened": 0, "app": null, "used": [],
        });
        for (name, value) in expected.as_object().unwrap() {
            whole[name] = value.clone();
        }
        whole["uses_left"] = whole["uses"].clone();
        assert_eq!(found, whole, "{options:?}");
        assert_eq!(show(&folder, token), whole);
        assert!(rows(&folder, token) > 0);
    }
    assert_eq!(listed(&folder, &[]).len(), 9);
}

#[test]
fn without_options_the_link_alone_is_printed() {
    let folder = database();
    let link = done(&folder.db(), &["invite", "Example.COM"]);
    let token = link.strip_prefix("https://example.com/invite?").unwrap().strip_suffix('\n').unwrap();
    assert_eq!(listed(&folder, &[]), [token]);
    assert_eq!(token.len(), 16);
}

#[test]
fn the_qr_code_leads_to_the_link_above_it() {
    let folder = database();
    done(&folder.db(), &["set", HOST, "page", "https://i.example.com/#{uri}"]);
    for options in [&[][..], &["--contact", "jürgen", "--register"]] {
        let printed = done(&folder.db(), &[&["invite", HOST, "--qr"], options].concat());
        let (link, code) = printed.split_once('\n').unwrap();
        assert!(link.starts_with("https://i.example.com/#xmpp:"), "{link}");
        if !available("zbar", Command::new("zbarimg").arg("--version").output().is_ok()) {
            return;
        }
        let image = folder.file("code.pgm");
        write_image(&image, code);
        let args = ["--quiet", "--raw", "-Sdisable", "-Sqrcode.enable"];
        let output = Command::new("zbarimg").args(args).arg(&image).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), link, "{printed}");
    }
}

/// Draws what a terminal shows as a picture: each character is two modules, one above the other.
fn write_image(path: &Path, code: &str) {
    const SCALE: usize = 4;
    let mut lines = Vec::new();
    for line in code.lines() {
        // Black on bright white, whatever the colours of the terminal are.
        let line = line.strip_prefix("\x1b[30;107m").unwrap().strip_suffix("\x1b[0m").unwrap();
        for upper in [true, false] {
            let dark = |c: char| match c {
                '█' => true,
                '▀' => upper,
                '▄' => !upper,
                ' ' => false,
                other => panic!("{other:?} is no part of a QR code"),
            };
            lines.push(line.chars().map(|c| if dark(c) { 0 } else { 255 }).collect::<Vec<u8>>());
        }
    }
    let (width, height) = (lines[0].len(), lines.len());
    let mut bytes = format!("P5 {} {} 255\n", width * SCALE, height * SCALE).into_bytes();
    for line in lines {
        let wide: Vec<u8> = line.iter().flat_map(|pixel| [*pixel; SCALE]).collect();
        bytes.extend(wide.repeat(SCALE));
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn an_empty_list_is_nothing_or_an_empty_array() {
    let folder = database();
    for options in [&[][..], &["--all"]] {
        assert_eq!(done(&folder.db(), &[&["invites", HOST], options].concat()), "");
        assert_eq!(listed(&folder, options), [""; 0]);
    }
}

#[test]
fn the_list_shows_each_invite_on_a_line_with_what_became_of_it() {
    let folder = database();
    let made: Vec<Value> = [
        &["--note", "pending one", "--uses", "3"][..],
        &["--contact", "ana"],
        &["--reset", "ana"],
        &["--user", "bob"],
        &["--contact", "ana", "--register"],
    ]
    .iter()
    .map(|options| invite(&folder, options))
    .collect();
    let tokens: Vec<&str> = made.iter().map(token).collect();
    sql(&folder, &format!(r#"DELETE FROM "prosody" WHERE "key" = '{}'"#, tokens[0]));
    done(&folder.db(), &["revoke", HOST, tokens[1]]);
    sql(&folder, &format!("UPDATE invited_invite SET expires_at = 0 WHERE token = '{}'", tokens[2]));
    sql(&folder, &format!(r#"DELETE FROM "prosody" WHERE "key" = '{}'"#, tokens[3]));
    let lines = |options: &[&str]| -> Vec<Vec<String>> {
        let text = done(&folder.db(), &[&["invites", HOST], options].concat());
        text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
    };
    let pending = lines(&[]);
    assert_eq!(pending.iter().map(|line| line[0].as_str()).collect::<Vec<_>>(), [tokens[0], tokens[4]]);
    let all = lines(&["--all"]);
    let states: Vec<&str> = all.iter().map(|line| line[1].as_str()).collect();
    assert_eq!(states, ["pending", "revoked", "expired", "used", "pending"]);
    assert_eq!(all.iter().map(|line| line[0].as_str()).collect::<Vec<_>>(), tokens);
    let whats: Vec<&str> = all.iter().map(|line| line[3].as_str()).collect();
    let expected = ["account", "contact of ana", "password reset of ana", "account bob", "account and contact of ana"];
    assert_eq!(whats, expected);
    assert!(all.iter().all(|line| line[4] == "cli"));
    let left: Vec<&str> = all.iter().map(|line| line[5].as_str()).collect();
    assert_eq!(left, ["2/3", "1/1", "1/1", "0/1", "1/1"]);
    assert_eq!(all[0][6], "pending one");
    assert_eq!(all[2][2], "1970-01-01T00:00:00Z");
    assert!(all[0][2].ends_with(" left") && all[1][2].ends_with('Z'), "{all:?}");
    assert_eq!(listed(&folder, &["--all"]), tokens);
}

#[test]
fn a_long_list_is_whole_and_in_order() {
    let folder = database();
    let key = create_key(&folder.db(), HOST);
    let server = Server::start(&folder.db());
    let made: Vec<String> = (0..600).map(|_| server.get(&format!("/invites_api?key={key}")).token()).collect();
    let lines = |options: &[&str]| -> Vec<String> {
        let text = done(&folder.db(), &[&["invites", HOST], options].concat());
        text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    };
    assert_eq!(lines(&[]), made);
    assert_eq!(listed(&folder, &[]), made);
    // With gaps in the first page, and exactly one page.
    sql(&folder, r#"DELETE FROM "prosody" WHERE rowid IN (SELECT rowid FROM "prosody" ORDER BY rowid LIMIT 100)"#);
    assert_eq!(lines(&[]), made[100..]);
    assert_eq!(listed(&folder, &[]), made[100..]);
    assert_eq!(listed(&folder, &["--all"]), made);
    // One that is listed through the API on another page is the same.
    assert_eq!(show(&folder, &made[599])["source"], format!("api/token/{}", key.split_once('/').unwrap().0));
}

#[test]
fn show_prints_what_is_known_with_its_uses() {
    let folder = database();
    let options = ["--uses", "2", "--role", "x", "--group", "g", "--note", "for the class", "--ttl", "1h"];
    let made = invite(&folder, &options);
    let token = token(&made);
    sql(&folder, &format!(r#"DELETE FROM "prosody" WHERE "key" = '{token}'"#));
    let text = done(&folder.db(), &["show", HOST, token]);
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {text}"));
        line[name.len()..].trim_start().to_owned()
    };
    assert_eq!(value("Invite"), "account");
    assert_eq!(value("Host"), HOST);
    assert!(["pending, 1h left", "pending, 59min"].iter().any(|left| value("State").starts_with(left)), "{text}");
    assert_eq!(value("Uses"), "1 of 2 left");
    assert_eq!(value("Link"), made["url"]);
    assert_eq!(value("XMPP URI"), made["uri"]);
    assert_eq!(value("Made by"), "cli");
    assert_eq!((value("Role"), value("Group"), value("Note")), ("x".into(), "g".into(), "for the class".into()));
    assert!(value("Created").ends_with('Z') && value("Expires").ends_with('Z') && value("Used ").ends_with('Z'));
    let used = show(&folder, token)["used"].clone();
    assert_eq!((used.as_array().unwrap().len(), &used[0]["username"]), (1, &Value::Null));
}

#[test]
fn an_invite_is_taken_back_once_silently_and_on_the_server_too() {
    let folder = database();
    for options in [&[][..], &["--contact", "ana", "--uses", "3"], &["--contact", "ana", "--register"]] {
        let made = invite(&folder, options);
        let token = token(&made);
        assert_eq!(done(&folder.db(), &["revoke", HOST, token]), "");
        assert_eq!(rows(&folder, token), 0);
        let ended = show(&folder, token);
        assert_eq!(
            (&ended["state"], &ended["used"], &ended["uses_left"]),
            (&json!("revoked"), &json!([]), &made["uses"])
        );
        let stderr = fails(&folder.db(), 1, &["revoke", HOST, token]);
        assert!(stderr.contains("is revoked already") && stderr.contains(token), "{stderr}");
    }
    let (used, expired) = (invite(&folder, &[]), invite(&folder, &[]));
    sql(&folder, &format!(r#"DELETE FROM "prosody" WHERE "key" = '{}'"#, token(&used)));
    sql(&folder, &format!("UPDATE invited_invite SET expires_at = 1 WHERE token = '{}'", token(&expired)));
    assert!(fails(&folder.db(), 1, &["revoke", HOST, token(&used)]).contains("is used already"));
    assert!(fails(&folder.db(), 1, &["revoke", HOST, token(&expired)]).contains("is expired already"));
    // What an admin has at hand is the link.
    for address in ["url", "uri"] {
        let made = invite(&folder, &[]);
        assert_eq!(done(&folder.db(), &["revoke", HOST, made[address].as_str().unwrap()]), "");
        assert_eq!(show(&folder, token(&made))["state"], "revoked");
    }
}

#[test]
fn an_invite_is_found_by_its_exact_token_and_host_alone() {
    let folder = database();
    create_key(&folder.db(), "other.example");
    let made = invite(&folder, &[]);
    let token = token(&made);
    let other = token.to_ascii_lowercase();
    for (host, token) in [("other.example", token), (HOST, "unknown"), (HOST, other.as_str()), (HOST, "")] {
        for command in ["show", "revoke"] {
            let stderr = fails(&folder.db(), 1, &[command, host, token]);
            assert!(stderr.contains(&format!("{host} has no invite '{token}'")), "{stderr}");
        }
    }
    assert_eq!(done(&folder.db(), &["invites", "other.example", "--all"]), "");
    assert_eq!(show(&folder, token)["state"], "pending");
}

/// Ours never do, but those of an XMPP server may.
#[test]
fn a_token_that_begins_with_a_dash_is_no_option() {
    let folder = database();
    let made = invite(&folder, &[]);
    sql(&folder, &format!("UPDATE invited_invite SET token = '-dash' WHERE token = '{}'", token(&made)));
    for args in [&["show", HOST, "-dash"][..], &["show", HOST, "--", "-dash"]] {
        assert!(done(&folder.db(), args).contains("pending"));
    }
    assert_eq!(done(&folder.db(), &["revoke", HOST, "--", "-dash"]), "");
}

#[test]
fn prune_takes_what_has_expired_and_forgets_what_is_long_over() {
    let folder = database();
    let (fresh, old) = (invite(&folder, &[]), invite(&folder, &["--contact", "ana"]));
    let (ended, elsewhere) = (invite(&folder, &[]), done(&folder.db(), &["invite", "other.example", "--new-host"]));
    let elsewhere = elsewhere.trim_end().split_once('?').unwrap().1;
    done(&folder.db(), &["revoke", HOST, token(&ended)]);
    assert_eq!(done(&folder.db(), &["prune"]), "0 expired, 0 forgotten\n");
    for token in [token(&old), elsewhere] {
        sql(&folder, &format!("UPDATE invited_invite SET expires_at = 1 WHERE token = '{token}'"));
    }
    let long_ago = now() - 365 * DAY - 1;
    sql(&folder, &format!("UPDATE invited_invite SET ended_at = {long_ago} WHERE token = '{}'", token(&ended)));
    assert!(rows(&folder, token(&old)) > 0);
    assert_eq!(done(&folder.db(), &["prune", HOST]), "1 expired, 1 forgotten\n");
    assert_eq!((rows(&folder, token(&old)), rows(&folder, token(&fresh)), rows(&folder, elsewhere)), (0, 1, 1));
    assert_eq!(show(&folder, token(&old))["state"], "expired");
    assert_eq!(show(&folder, token(&fresh))["state"], "pending");
    fails(&folder.db(), 1, &["show", HOST, token(&ended)]);
    assert_eq!(done(&folder.db(), &["prune"]), "1 expired, 0 forgotten\n");
    assert_eq!((rows(&folder, elsewhere), done(&folder.db(), &["prune"])), (0, "0 expired, 0 forgotten\n".to_owned()));
}

#[test]
fn settings_are_followed_at_once_by_the_shell_and_by_a_running_server() {
    let folder = database();
    let key = create_key(&folder.db(), HOST);
    let server = Server::start(&folder.db());
    let set = |name: &str, value: &str| done(&folder.db(), &["set", HOST, name, value]);
    let unset = |name: &str| done(&folder.db(), &["unset", HOST, name]);
    let link = || server.get(&format!("/invites_api?key={key}")).header("location").unwrap().to_owned();
    let lasts = |invite: &Value| invite["expires"].as_i64().unwrap() - invite["created_at"].as_i64().unwrap();

    set("page", "https://i.example.com/{host}/#{uri}");
    let page = link();
    let token_of = page.rsplit_once('=').unwrap().1;
    assert_eq!(page, format!("https://i.example.com/example.com/#xmpp:example.com?register;preauth={token_of}"));
    assert_eq!(show(&folder, token_of)["url"], page);
    let made = invite(&folder, &["--contact", "ana", "--register"]);
    assert_eq!(made["url"], format!("https://i.example.com/example.com/#{}", made["uri"].as_str().unwrap()));
    unset("page");
    assert!(link().starts_with("https://example.com/invite?"));

    set("ttl", "12h");
    assert_eq!(lasts(&invite(&folder, &[])), DAY / 2);
    assert_eq!(lasts(&invite(&folder, &["--ttl", "3d"])), 3 * DAY);
    assert_eq!(lasts(&invite(&folder, &["--reset", "ana"])), DAY);
    assert_eq!(lasts(&show(&folder, link().split_once('?').unwrap().1)), DAY / 2);
    unset("ttl");
    assert_eq!(lasts(&show(&folder, link().split_once('?').unwrap().1)), 7 * DAY);

    let page = format!("/invite?{}", token(&invite(&folder, &[])));
    assert!(!server.get(&page).body.contains("Ana&#39;s place"));
    set("site-name", "Ana's place");
    let body = server.get(&page).body;
    assert!(body.contains("Ana&#39;s place"), "{body}");
    unset("site-name");
    assert!(!server.get(&page).body.contains("Ana&#39;s place"));

    set("server", "ejabberd");
    let over_http = link();
    let tokens = [over_http.split_once('?').unwrap().1.to_owned(), token(&invite(&folder, &[])).to_owned()];
    for token in &tokens {
        let conn = Connection::open(folder.db()).unwrap();
        let sql = "SELECT count(*) FROM invite_token WHERE token = ?1 AND type = 'A'";
        let found: i64 = conn.query_row(sql, [token], |row| row.get(0)).unwrap();
        assert_eq!((found, rows(&folder, token)), (1, 0));
    }
    unset("server");
    assert_eq!(rows(&folder, link().split_once('?').unwrap().1), 1);
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason_and_nothing_is_made() {
    let folder = database();
    let (long, long_name) = ("x".repeat(1_001), "x".repeat(1_024));
    let roles = ["--role", "x"].repeat(33);
    for (reason, options) in [
        ("only one of --user, --contact and --reset", &["--user", "a", "--contact", "b"][..]),
        ("only one of --user, --contact and --reset", &["--user", "a", "--reset", "a"]),
        ("only one of --user, --contact and --reset", &["--contact", "a", "--reset", "a", "--register"]),
        ("--register goes with --contact", &["--register"]),
        ("--register goes with --contact", &["--register", "--user", "a"]),
        ("--register goes with --contact", &["--register", "--reset", "a"]),
        ("--qr and --json can't be combined", &["--qr", "--json"]),
        ("registered only once", &["--user", "a", "--uses", "2"]),
        ("good for one use", &["--reset", "a", "--uses", "2"]),
        ("'0' can't be --uses", &["--uses", "0"]),
        ("'x' can't be --uses", &["--uses", "x"]),
        ("--uses: it must be a whole number from 1 to 1000000", &["--uses", "1000001"]),
        ("--role: only an invite that makes an account", &["--role", "x", "--contact", "a"]),
        ("--group: only an invite that makes an account", &["--group", "x", "--reset", "a"]),
        ("--role: there can be 32 at most", &roles.iter().map(|word| &**word).collect::<Vec<_>>()),
        ("--role: '' is not a name", &["--role", ""]),
        ("--group: 'a\\nb' is not a name", &["--group", "a\nb"]),
        ("--note: it must be one line", &["--note", "a\nb"]),
        ("--note: it must be one line of 1000 characters", &["--note", &long]),
        ("'7' is no length of time", &["--ttl", "7"]),
        ("'11y' is too long", &["--ttl", "11y"]),
        ("'a b' can't be a user name", &["--user", "a b"]),
        ("give the part before the @ alone", &["--contact", "a@example.com"]),
        ("it is empty", &["--reset", ""]),
        ("longer than 1023 bytes", &["--user", &long_name]),
        ("--bogus", &["--bogus"]),
        ("'x' is one argument too many", &["x"]),
    ] {
        let stderr = fails(&folder.db(), 2, &[&["invite", HOST], options].concat());
        assert!(stderr.contains(reason), "{options:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    done(&folder.db(), &["set", HOST, "server", "ejabberd"]);
    let stderr = fails(&folder.db(), 2, &["invite", HOST, "--role", "x"]);
    assert!(stderr.contains("ejabberd's invites can't give them"), "{stderr}");
    assert_eq!(listed(&folder, &["--all"]), [""; 0]);
    for (missing, args) in [
        ("HOST", &["invite"][..]),
        ("HOST", &["invites"]),
        ("TOKEN", &["show", HOST]),
        ("TOKEN", &["revoke", HOST]),
        ("qr", &["invites", HOST, "--qr"]),
        ("all", &["invite", HOST, "--all"]),
        ("json", &["revoke", HOST, "x", "--json"]),
        ("'x'", &["prune", HOST, "x"]),
        ("a b", &["prune", "a b"]),
        ("bogus", &["create", HOST, "--allow", "account,bogus"]),
        ("per-day", &["create", HOST, "--per-day", "0"]),
        ("'7'", &["create", HOST, "--expires", "7"]),
        ("twice", &["set", HOST, "page", "https://x/twice"]),
        ("there are prosody and ejabberd", &["set", HOST, "server", "openfire"]),
    ] {
        let stderr = fails(&folder.db(), 2, args);
        assert!(stderr.contains(missing), "{args:?}: {stderr}");
    }
}

#[test]
fn names_are_prepared_as_servers_do() {
    let folder = database();
    for (typed, stored) in [("Bob", "bob"), ("JÜRGEN", "jürgen"), ("Straße", "strasse"), ("ｂｏｂ", "bob")] {
        for option in ["--user", "--contact", "--reset"] {
            assert_eq!(invite(&folder, &[option, typed])["username"], stored);
        }
    }
}

#[test]
fn without_a_database_the_way_to_one_is_shown() {
    let folder = Folder::new();
    for args in [&["invite", HOST][..], &["invites", HOST], &["show", HOST, "x"], &["revoke", HOST, "x"], &["prune"]] {
        assert!(fails(&folder.db(), 1, args).contains("invited create"), "{args:?}");
    }
    // What is wrong with the arguments is said first.
    assert_eq!(run(&folder.db(), &["invite", HOST, "--register"]).status.code(), Some(2));
    assert!(!folder.db().exists());
}

/// Prosody's rows can be written by other modules of it, with anything in them.
#[test]
fn what_the_server_wrote_cannot_speak_to_the_terminal() {
    let folder = database();
    let value = r#"{"type":"register","jid":"example.com","expires":9999999999,"created_at":1,"additional_data":{"source":"x\u001b]0;y\u0007","note":"hi\nState used\u001b[31m","roles":["a\u001b[1m"]}}"#;
    sql(&folder, &format!("INSERT INTO prosody VALUES ('{HOST}', '', 'invite_token', 'EVIL', 'json', '{value}')"));
    for args in [&["show", HOST, "EVIL"][..], &["invites", HOST]] {
        let out = done(&folder.db(), args);
        assert!(!out.contains('\u{1b}') && !out.contains("\nState used") && out.contains('\u{fffd}'), "{out:?}");
    }
}

#[test]
fn a_second_host_of_ejabberd_without_a_column_for_it_is_refused() {
    let folder = database();
    done(&folder.db(), &["set", HOST, "server", "ejabberd"]);
    let stderr = fails(&folder.db(), 1, &["set", "b.example", "server", "ejabberd", "--new-host"]);
    assert!(stderr.contains("another host") && stderr.contains("--db"), "{stderr}");
    fails(&folder.db(), 1, &["get", "b.example", "server"]);
}

#[test]
fn a_source_that_is_not_there_or_not_readable_is_an_error_and_makes_no_database() {
    let folder = Folder::new();
    let stderr = fails(&folder.db(), 1, &["import", "/no/such/file.dat"]);
    assert!(stderr.contains("/no/such/file.dat"), "{stderr}");
    let empty = folder.file("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(fails(&folder.db(), 1, &["import", empty.to_str().unwrap()]).contains("invite_api_keys.dat"));
    assert!(!folder.db().exists());
}

#[test]
fn a_link_that_is_too_long_for_a_qr_code_is_printed_without_one() {
    let folder = database();
    done(&folder.db(), &["set", HOST, "page", &format!("https://i.example.com/{}#{{uri}}", "x".repeat(2_500))]);
    let output = run(&folder.db(), &["invite", HOST, "--qr"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(out.starts_with("https://i.example.com/xxx") && out.lines().count() == 1, "{out}");
    assert!(err.contains("too long for a QR code"), "{err}");
    let token = out.trim_end().rsplit_once('=').unwrap().1;
    let server = Server::start(&folder.db());
    let page = server.get(&format!("/invite?{token}"));
    assert!(page.status == 200 && !page.body.contains("<svg class=\"code\""), "{page:?}");
}

#[test]
fn a_reusable_invite_of_prosodys_has_no_limit_and_what_cannot_be_read_stays() {
    let folder = database();
    let expires = now() + DAY;
    for (token, value) in [
        (
            "again",
            format!(r#"{{"type":"register","token":"again","reusable":true,"created_at":1,"expires":{expires}}}"#),
        ),
        ("broken", r#"{"type":"#.to_owned()),
        ("list", "[1]".to_owned()),
    ] {
        Connection::open(folder.db())
            .unwrap()
            .execute(
                r#"INSERT INTO "prosody" VALUES (?1, '', 'invite_token', ?2, 'json', ?3)"#,
                [HOST, token, value.as_str()],
            )
            .unwrap();
    }
    assert_eq!(done(&folder.db(), &["prune"]), "0 expired, 0 forgotten\n");
    let again = show(&folder, "again");
    assert_eq!((&again["state"], &again["uses_left"]), (&json!("pending"), &json!(1_000_000)));
    assert!(done(&folder.db(), &["show", HOST, "again"]).contains("any number until it expires"));
    assert_eq!(["again", "broken", "list"].map(|token| rows(&folder, token)), [1, 1, 1]);
}

#[test]
fn prune_forgets_the_history_of_the_named_host_alone() {
    let folder = database();
    let here = invite(&folder, &[]);
    let there = parse(&done(&folder.db(), &["invite", "other.example", "--new-host", "--json"]));
    for (host, invite) in [(HOST, &here), ("other.example", &there)] {
        done(&folder.db(), &["revoke", host, token(invite)]);
    }
    sql(&folder, "UPDATE invited_invite SET ended_at = 1");
    assert_eq!(done(&folder.db(), &["prune", HOST]), "0 expired, 1 forgotten\n");
    assert!(done(&folder.db(), &["show", "other.example", token(&there)]).contains("revoked"));
}

#[test]
fn a_used_invite_leaves_ejabberds_table_after_a_minute_and_keeps_its_prepared_name() {
    let folder = database();
    done(&folder.db(), &["set", HOST, "server", "ejabberd"]);
    let (used, fresh) = (invite(&folder, &[]), invite(&folder, &[]));
    let left = || -> Vec<String> {
        let conn = Connection::open(folder.db()).unwrap();
        let mut query = conn.prepare("SELECT token FROM invite_token ORDER BY rowid").unwrap();
        query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    sql(&folder, &format!("UPDATE invite_token SET invitee = 'Nb.Ä@{HOST}' WHERE token = '{}'", token(&used)));
    done(&folder.db(), &["prune"]);
    assert_eq!(left(), [token(&used), token(&fresh)]);
    sql(&folder, &format!("UPDATE invited_invite SET ended_at = ended_at - 61 WHERE token = '{}'", token(&used)));
    done(&folder.db(), &["prune"]);
    assert_eq!(left(), [token(&fresh)]);
    let shown = show(&folder, token(&used));
    assert_eq!((&shown["state"], &shown["used"][0]["username"]), (&json!("used"), &json!("nb.ä")));
}

#[test]
fn an_import_for_a_host_of_ejabberds_goes_into_its_table() {
    let folder = database();
    done(&folder.db(), &["set", HOST, "server", "ejabberd"]);
    let (source, expires) = (folder.file("source.sqlite"), now() + DAY);
    let write = |token: &str, data: &str| {
        let value = format!(
            r#"{{"type":"register","token":"{token}","created_at":1,"expires":{expires},"additional_data":{data}}}"#
        );
        let conn = Connection::open(&source).unwrap();
        conn.execute_batch(
            r#"CREATE TABLE IF NOT EXISTS "prosody" (host TEXT, user TEXT, store TEXT, key TEXT, type TEXT, value TEXT)"#,
        )
        .unwrap();
        conn.execute(
            "INSERT INTO prosody VALUES (?1, '', 'invite_token', ?2, 'json', ?3)",
            [HOST, token, value.as_str()],
        )
        .unwrap();
    };
    write("plain", "{}");
    let import = ["import", source.to_str().unwrap()];
    assert!(done(&folder.db(), &import).starts_with("0 keys, 1 invites, 0 skipped\n"));
    assert!(done(&folder.db(), &import).starts_with("0 keys, 0 invites, 1 skipped\n"));
    let conn = Connection::open(folder.db()).unwrap();
    let of = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table} WHERE token = 'plain'");
        conn.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!((of("invite_token"), of("invited_invite"), rows(&folder, "plain")), (1, 1, 0));
    write("roles", r#"{"roles":{"admin":true}}"#);
    let refused = fails(&folder.db(), 1, &import);
    assert!(refused.contains("'roles' gives roles or groups, which ejabberd does not have"), "{refused}");
}
