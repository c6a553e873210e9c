//! Every kind of invite through the real Prosody, and what Prosody itself makes brought in; both releases, as in `prosody.rs`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::Connection;
use serde_json::Value;

use crate::harness::{Server, create_key, done, fails};
use crate::prosody::{
    Client, Prosody, Release, Site, assert_done, assert_refused, column, make_invite, now, password, prosody_has,
    state, with_both_releases,
};

with_both_releases! {
    an_account_with_a_fixed_name_is_made_under_that_name
    a_reset_changes_the_password_of_its_user_and_of_nobody_else
    an_account_and_contact_invite_puts_each_into_the_others_roster
    a_contact_invite_is_approved_without_asking_and_makes_no_account
    prosody_0_12_needs_the_hosts_row_of_a_contact_invite
    a_role_is_given_whether_prosody_has_opened_the_file_before_or_not
    groups_lie_in_the_row_as_mod_invites_groups_reads_them
    an_invite_for_three_uses_makes_exactly_three_accounts
    an_account_and_contact_invite_for_two_uses_makes_two_contacts
    a_contact_invite_for_two_uses_is_approved_twice
    a_revoked_invite_is_refused_at_once
    pruning_takes_expired_invites_from_prosody
    invites_made_in_a_client_are_known_and_used_like_our_own
    an_invite_made_in_a_client_can_be_revoked_before_we_have_read_it
}

// ---- Kinds that we make. ----

fn an_account_with_a_fixed_name_is_made_under_that_name(release: Release) {
    let (site, prosody) = start(release);
    let token = invite(&site, &["--user", "bob"]);
    prosody.make_account(&token, "bob");
    assert_used(&site, &token);
}

fn a_reset_changes_the_password_of_its_user_and_of_nobody_else(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana", "bob"]);
    let token = invite(&site, &["--reset", "ana"]);

    let mut other = prosody.client();
    assert_done(&other.preauth(&token));
    let answer = other.request(&new_password("bob", "stolen"));
    assert!(answer.contains("type='error'"), "{answer}");
    assert!(!prosody.client().log_in_with("bob", "stolen").contains("<success"));
    assert_eq!(state(&site, &token), "pending");

    let mut client = prosody.client();
    assert_done(&client.preauth(&token));
    assert_done(&client.request(&new_password("ana", "a new one")));
    client.close();
    assert_used(&site, &token);
    assert!(prosody.client().log_in("ana").contains("<not-authorized"));
    assert!(prosody.client().log_in_with("ana", "a new one").starts_with("<success"));
    assert_refused(&prosody.client().preauth(&token), "forbidden");
}

fn an_account_and_contact_invite_puts_each_into_the_others_roster(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana"]);
    let token = invite(&site, &["--contact", "ana", "--register"]);
    assert_eq!(rows(&site, &token), 2);
    prosody.make_account(&token, "bob");
    assert_used(&site, &token);
    assert_eq!(subscription(&prosody, "ana", "bob").as_deref(), Some("both"));
    assert_eq!(subscription(&prosody, "bob", "ana").as_deref(), Some("both"));

    // Who has an account already only becomes a contact with such an invite, and that is its use.
    let token = invite(&site, &["--contact", "ana", "--register"]);
    make_accounts(&site, &prosody, &["carol"]);
    subscribe(&prosody, "carol", "ana", &token);
    assert_eq!(subscription(&prosody, "ana", "carol").as_deref(), Some("from"));
    assert_used(&site, &token);
    assert_refused(&prosody.client().preauth(&token), "forbidden");
}

fn a_contact_invite_is_approved_without_asking_and_makes_no_account(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana", "carol", "dan"]);
    let token = invite(&site, &["--contact", "ana"]);

    let mut guest = prosody.client();
    assert_refused(&guest.preauth(&token), "forbidden");
    assert_refused(&guest.register("mallory"), "not-acceptable");
    // It is a token of ana's and of nobody else's.
    subscribe(&prosody, "carol", "dan", &token);
    assert_ne!(subscription(&prosody, "dan", "carol").as_deref(), Some("from"));
    assert_eq!(state(&site, &token), "pending");

    subscribe(&prosody, "carol", "ana", &token);
    assert_eq!(subscription(&prosody, "ana", "carol").as_deref(), Some("from"));
    assert_used(&site, &token);
    subscribe(&prosody, "dan", "ana", &token);
    assert_ne!(subscription(&prosody, "ana", "dan").as_deref(), Some("from"));
    assert_refused(&prosody.client().preauth(&token), "forbidden");
}

/// Where this fails for 0.12, the row can go from `store/prosody.rs` and from the trigger.
fn prosody_0_12_needs_the_hosts_row_of_a_contact_invite(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana", "carol"]);
    let token = invite(&site, &["--contact", "ana"]);
    let conn = site.connection();
    conn.execute_batch("DROP TRIGGER invited_prosody_deleted").unwrap();
    assert_eq!(conn.execute("DELETE FROM prosody WHERE key = ?1 AND user = ''", [&token]).unwrap(), 1);
    subscribe(&prosody, "carol", "ana", &token);
    let is_approved = subscription(&prosody, "ana", "carol").as_deref() == Some("from");
    assert_eq!(is_approved, matches!(release, Release::OfSid));
    assert_eq!(prosody.log().contains("attempt to index a nil value (local 'token_info')"), !is_approved);
}

fn a_role_is_given_whether_prosody_has_opened_the_file_before_or_not(release: Release) {
    let mut site = Site::new(release);
    site.changes = in_client();
    create_key(&site.db(), "example.com");
    let role = ["--role", "prosody:admin"];
    let before = invite(&site, &role);
    let plain = invite(&site, &[]);
    let prosody = Prosody::start(&site);
    prosody.make_account(&before, "ada");
    let after = invite(&site, &role);
    let roles = "SELECT json_extract(value, '$.additional_data.roles') FROM prosody WHERE key = ?1";
    let own_form = match release {
        Release::OfThisMachine => r#"{"prosody:admin":true}"#,
        Release::OfSid => r#"["prosody:admin"]"#,
    };
    assert_eq!(column::<String>(&site, roles, &after), own_form);
    prosody.make_account(&after, "bob");
    prosody.make_account(&plain, "carol");
    assert!(is_admin(&prosody, "ada"), "{}", prosody.log());
    assert!(is_admin(&prosody, "bob"), "{}", prosody.log());
    assert!(!is_admin(&prosody, "carol"));
}

fn groups_lie_in_the_row_as_mod_invites_groups_reads_them(release: Release) {
    let (site, prosody) = start(release);
    let token = invite(&site, &["--group", "family", "--group", "friends"]);
    let groups = "SELECT json_extract(value, '$.additional_data.groups') FROM prosody WHERE key = ?1";
    assert_eq!(column::<String>(&site, groups, &token), r#"["family","friends"]"#);
    prosody.make_account(&token, "ada");
    assert_used(&site, &token);
}

fn an_invite_for_three_uses_makes_exactly_three_accounts(release: Release) {
    let (site, prosody) = start(release);
    let token = invite(&site, &["--uses", "3"]);
    for (left, user) in [(2, "ada"), (1, "bob"), (0, "carol")] {
        prosody.make_account(&token, user);
        assert_uses(&site, &token, left, 3 - left);
    }
    assert_used_as_often(&site, &token, 3);
    let mut fourth = prosody.client();
    assert_refused(&fourth.preauth(&token), "forbidden");
    assert_refused(&fourth.register("dan"), "not-acceptable");
    assert_uses(&site, &token, 0, 3);
}

fn an_account_and_contact_invite_for_two_uses_makes_two_contacts(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana"]);
    let token = invite(&site, &["--contact", "ana", "--register", "--uses", "2"]);
    for (left, user) in [(1, "bob"), (0, "carol")] {
        prosody.make_account(&token, user);
        assert_uses(&site, &token, left, 2 - left);
        assert_eq!(rows(&site, &token), if left > 0 { 2 } else { 0 });
        assert_eq!(subscription(&prosody, "ana", user).as_deref(), Some("both"));
        assert_eq!(subscription(&prosody, user, "ana").as_deref(), Some("both"));
    }
    assert_used_as_often(&site, &token, 2);
    assert_refused(&prosody.client().preauth(&token), "forbidden");

    // A use is a use, by somebody with an account or by somebody who gets one.
    let token = invite(&site, &["--contact", "ana", "--register", "--uses", "2"]);
    make_accounts(&site, &prosody, &["dan"]);
    subscribe(&prosody, "dan", "ana", &token);
    assert_eq!(subscription(&prosody, "ana", "dan").as_deref(), Some("from"));
    assert_uses(&site, &token, 1, 1);
    prosody.make_account(&token, "eve");
    assert_used_as_often(&site, &token, 2);
}

fn a_contact_invite_for_two_uses_is_approved_twice(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana", "bob", "carol", "dan"]);
    let token = invite(&site, &["--contact", "ana", "--uses", "2"]);
    for (left, user) in [(1, "bob"), (0, "carol")] {
        subscribe(&prosody, user, "ana", &token);
        assert_eq!(subscription(&prosody, "ana", user).as_deref(), Some("from"));
        assert_uses(&site, &token, left, 2 - left);
        assert_eq!(rows(&site, &token), if left > 0 { 2 } else { 0 });
    }
    assert_used_as_often(&site, &token, 2);
    subscribe(&prosody, "dan", "ana", &token);
    assert_ne!(subscription(&prosody, "ana", "dan").as_deref(), Some("from"));
}

fn a_revoked_invite_is_refused_at_once(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana", "carol"]);
    let account = invite(&site, &["--uses", "2"]);
    let contact = invite(&site, &["--contact", "ana"]);
    let both = invite(&site, &["--contact", "ana", "--register"]);
    assert_done(&prosody.client().preauth(&account));
    for token in [&account, &contact, &both] {
        done(&site.db(), &["revoke", "example.com", token]);
        assert_eq!((state(&site, token).as_str(), rows(&site, token)), ("revoked", 0));
        assert_refused(&prosody.client().preauth(token), "forbidden");
        subscribe(&prosody, "carol", "ana", token);
        assert_ne!(subscription(&prosody, "ana", "carol").as_deref(), Some("from"));
        let again = fails(&site.db(), 1, &["revoke", "example.com", token]);
        assert!(again.contains("is revoked already"), "{again}");
    }
}

fn pruning_takes_expired_invites_from_prosody(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana", "carol"]);
    let kept = invite(&site, &[]);
    let expired = [&[][..], &["--uses", "2"], &["--contact", "ana"], &["--contact", "ana", "--register"]]
        .map(|kind| invite(&site, kind));
    let past = now() - 1;
    for token in &expired {
        let conn = site.connection();
        conn.execute("UPDATE invited_invite SET expires_at = ?1 WHERE token = ?2", (past, token)).unwrap();
        let of_the_host = "UPDATE prosody SET value = json_set(value, '$.expires', ?1) WHERE key = ?2 AND user = ''";
        conn.execute(of_the_host, (past, token)).unwrap();
        conn.execute("UPDATE prosody SET value = ?1 WHERE key = ?2 AND user <> ''", (past, token)).unwrap();
        assert_refused(&prosody.client().preauth(token), "forbidden");
        subscribe(&prosody, "carol", "ana", token);
    }
    assert_ne!(subscription(&prosody, "ana", "carol").as_deref(), Some("from"));
    done(&site.db(), &["prune"]);
    for token in &expired {
        assert_eq!((state(&site, token).as_str(), rows(&site, token)), ("expired", 0));
    }
    prosody.make_account(&kept, "bob");
}

// ---- Invites that Prosody makes. ----

fn invites_made_in_a_client_are_known_and_used_like_our_own(release: Release) {
    let mut site = Site::new(release);
    site.changes = in_client();
    create_key(&site.db(), "example.com");
    let server = Server::start(&site.db());
    let prosody = Prosody::start(&site);
    make_accounts(&site, &prosody, &["ana", "boss", "carol"]);

    let refused = execute(&prosody, "ana", "urn:xmpp:invite#create-account");
    assert_refused(&refused, "forbidden");
    let made = [
        ("ana", "urn:xmpp:invite#invite", "contact", Some("ana")),
        ("boss", "urn:xmpp:invite#invite", "account-and-contact", Some("boss")),
        ("boss", "urn:xmpp:invite#create-account", "account", None),
    ]
    .map(|(maker, node, kind, name)| {
        let answer = execute(&prosody, maker, node);
        assert!(answer.contains("status='completed'"), "{answer}");
        let (uri, expire) = (field(&answer, "uri"), field(&answer, "expire"));
        let token = uri.split("preauth=").nth(1).unwrap().split(';').next().unwrap().to_owned();
        let page = server.get(&format!("/invite?{token}"));
        assert_eq!(page.status, 200, "{page:?}");
        let link = format!("<{uri}>; rel=\"alternate\"");
        assert_eq!(page.header("link"), Some(link.as_str()));
        (maker, token, uri, expire, kind, name)
    });

    let list: Value = serde_json::from_str(&done(&site.db(), &["invites", "example.com", "--json"])).unwrap();
    for (maker, token, uri, expire, kind, name) in &made {
        let invites = list.as_array().unwrap();
        let found = invites.iter().find(|invite| invite["token"] == token.as_str()).unwrap();
        let source = format!("{maker}@example.com");
        let fields = ["kind", "username", "source", "uri", "state"].map(|name| found[name].as_str());
        assert_eq!(fields, [Some(*kind), *name, Some(source.as_str()), Some(uri.as_str()), Some("pending")]);
        let expires: i64 = found["expires"].as_i64().unwrap();
        assert_eq!(timestamp(expires), *expire);
        let created_at = found["created_at"].as_i64().unwrap();
        // Prosody and our trigger look at the clock one after the other, which may be in two seconds.
        let ttl_secs = expires - created_at;
        assert!((now() - created_at).abs() < 60 && (7 * 86_400 - 1..=7 * 86_400).contains(&ttl_secs), "{found}");
    }

    let [(_, contact, ..), (_, both, ..), (_, account, ..)] = &made;
    subscribe(&prosody, "carol", "ana", contact);
    assert_eq!(subscription(&prosody, "ana", "carol").as_deref(), Some("from"), "{}", prosody.log());
    prosody.make_account(both, "dan");
    assert_eq!(subscription(&prosody, "boss", "dan").as_deref(), Some("both"));
    prosody.make_account(account, "eve");
    for token in [contact, both, account] {
        assert_used(&site, token);
        assert_eq!(server.get(&format!("/invite?{token}")).status, 410);
    }
}

fn an_invite_made_in_a_client_can_be_revoked_before_we_have_read_it(release: Release) {
    let mut site = Site::new(release);
    site.changes = in_client();
    create_key(&site.db(), "example.com");
    let prosody = Prosody::start(&site);
    make_accounts(&site, &prosody, &["ana", "boss", "carol"]);
    for maker in ["ana", "boss"] {
        let uri = field(&execute(&prosody, maker, "urn:xmpp:invite#invite"), "uri");
        let token = uri.split("preauth=").nth(1).unwrap().split(';').next().unwrap();
        done(&site.db(), &["revoke", "example.com", token]);
        assert_eq!((state(&site, token).as_str(), rows(&site, token)), ("revoked", 0));
        subscribe(&prosody, "carol", maker, token);
        assert_ne!(subscription(&prosody, maker, "carol").as_deref(), Some("from"));
        assert_refused(&prosody.client().preauth(token), "forbidden");
    }
}

/// Prosody's tokens are base64url: one of 64 begins so.
#[test]
fn a_token_that_begins_with_a_dash_is_no_option() {
    let (folder, _) = dat_file();
    let insert = "INSERT INTO prosody VALUES ('example.com', 'ana', 'invite_token', ?1, 'number', '4000000000')";
    for token in ["-sn3-m-az0de6fhy", "-help", "--n3-m-az0de6fhy"] {
        Connection::open(folder.db()).unwrap().execute(insert, [token]).unwrap();
        // After `--`, nothing is an option; with two dashes that is needed.
        let plain = !token.starts_with("--");
        let id: &[&str] = if plain { &[token] } else { &["--", token] };
        let shown = done(&folder.db(), &[&["show", "example.com"], id].concat());
        assert!(shown.contains("contact of ana"), "{shown}");
        done(&folder.db(), &[&["revoke", "example.com"], id].concat());
        let again = fails(&folder.db(), 1, &[&["revoke", "example.com"], id].concat());
        assert!(again.contains("is revoked already"), "{again}");
    }
    let help = done(&folder.db(), &["revoke", "example.com", "-h"]);
    assert!(help.starts_with("Usage: "), "{help}");
}

// ---- Import of what the original modules have kept. ----

#[test]
fn a_folder_of_prosodys_is_imported_and_what_is_out_goes_on_working() {
    Release::OfThisMachine.run(|release| {
        let mut site = original(release, "");
        let (key, tokens) = make_with_the_original(&site);
        import_and_use(&mut site, &key, &tokens, |site| vec![site.folder.file("data/example%2ecom")]);
    });
}

#[test]
fn the_files_of_prosodys_are_imported_one_by_one() {
    Release::OfThisMachine.run(|release| {
        let mut site = original(release, "");
        let (key, tokens) = make_with_the_original(&site);
        import_and_use(&mut site, &key, &tokens, |site| {
            ["invite_api_keys.dat", "invite_token.dat", "invite_token/ana.dat"]
                .map(|name| site.folder.file("data/example%2ecom").join(name))
                .to_vec()
        });
    });
}

#[test]
fn an_sqlite_file_of_prosodys_is_imported() {
    Release::OfThisMachine.run(|release| {
        let mut site = original(
            release,
            "    storage = { accounts = \"internal\"; roster = \"internal\"; \
                                          invite_token = \"sql\"; invite_api_keys = \"sql\" }\n",
        );
        let (key, tokens) = make_with_the_original(&site);
        assert!(!site.folder.file("data/example%2ecom/invite_token.dat").exists());
        import_and_use(&mut site, &key, &tokens, |site| vec![site.folder.file("original.sqlite")]);
    });
}

/// Prosody knows one SQLite file only: who keeps everything there lets `invited` work on that file.
#[test]
fn invited_can_move_into_the_file_that_prosody_keeps_everything_in() {
    Release::OfThisMachine.run(|release| {
        let mut site = original(release, "    storage = \"sql\"\n");
        site.changes.retain(|(from, _)| *from != "invited.sqlite");
        let (key, tokens) = make_with_the_original(&site);
        let db = site.db();
        let own_key = create_key(&db, "example.com");
        assert_eq!(done(&db, &["import", db.to_str().unwrap()]), "1 keys, 0 invites, 2 skipped\n");
        let server = Server::start(&db);
        let prosody = Prosody::start(&site);
        for key in [&key, &own_key] {
            prosody.make_account(&make_invite(&server, key), &format!("with-{}", key.len()));
        }
        use_tokens(&site, &prosody, &tokens);
    });
}

#[test]
fn a_file_that_prosody_did_not_write_is_refused_by_its_line_and_nothing_is_imported() {
    let (folder, dat) = dat_file();
    let good = "return {\n\t[\"aaaa\"] = {\n\t\t[\"id\"] = \"aaaa\";\n\t\t[\"token\"] = \"secret\";\n\t};\n";
    std::fs::write(&dat, format!("{good}\t[\"bbbb\"] = os.execute(\"true\");\n}};\n")).unwrap();
    for source in [&dat, dat.parent().unwrap()] {
        let refused = fails(&folder.db(), 1, &["import", source.to_str().unwrap()]);
        assert!(refused.contains("invite_api_keys.dat: line 6: "), "{refused}");
    }
    // Likewise a key without a secret, which is good Lua.
    std::fs::write(&dat, format!("{good}\t[\"bbbb\"] = {{\n\t}};\n}};\n")).unwrap();
    let refused = fails(&folder.db(), 1, &["import", dat.to_str().unwrap()]);
    assert!(refused.contains("line 6: the key 'bbbb' has no secret"), "{refused}");
    assert!(fails(&folder.db(), 1, &["list", "example.com"]).contains("does not know the host example.com"));
}

#[test]
fn a_key_whose_id_is_taken_by_another_one_stops_the_whole_import() {
    let (folder, dat) = dat_file();
    let file = |keys: &[(&str, &str)]| {
        let keys =
            keys.iter().map(|(id, secret)| format!("\t[\"{id}\"] = {{\n\t\t[\"token\"] = \"{secret}\";\n\t}};\n"));
        format!("return {{\n{}}};\n", keys.collect::<String>())
    };
    let path = dat.to_str().unwrap();
    std::fs::write(&dat, file(&[("same", "one")])).unwrap();
    assert_eq!(done(&folder.db(), &["import", path]), "1 keys, 0 invites, 0 skipped\n");
    std::fs::write(&dat, file(&[("aaaa", "new"), ("same", "two"), ("zzzz", "new")])).unwrap();
    let refused = fails(&folder.db(), 1, &["import", path]);
    assert!(refused.contains("another key has the id 'same' already; nothing was imported"), "{refused}");
    assert_eq!(done(&folder.db(), &["list", "example.com"]), "same\t<unknown>\n");
}

#[test]
fn an_sqlite_file_that_is_not_prosodys_is_refused_in_plain_words() {
    let (folder, _) = dat_file();
    let other = folder.file("other.sqlite");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE something (x)").unwrap();
    let refused = fails(&folder.db(), 1, &["import", other.to_str().unwrap()]);
    assert!(refused.contains("other.sqlite") && refused.contains("no table 'prosody'"), "{refused}");
    // One of our own has keys that would not come along.
    create_key(&folder.db(), "example.com");
    let copy = folder.file("copy.sqlite");
    done(&folder.db(), &["backup", copy.to_str().unwrap()]);
    let refused = fails(&folder.file("new.sqlite"), 1, &["import", copy.to_str().unwrap()]);
    assert!(refused.contains("copy.sqlite") && refused.contains("invited restore"), "{refused}");
    // What is damaged is the source, for which none of our backups helps.
    let whole = std::fs::read(&copy).unwrap();
    std::fs::write(&other, &whole[..5_000]).unwrap();
    let refused = fails(&folder.db(), 1, &["import", other.to_str().unwrap()]);
    assert!(refused.contains("other.sqlite: it is damaged (copy it anew"), "{refused}");
}

/// A folder with a database, and the name of a file of Prosody's in it.
fn dat_file() -> (crate::harness::Folder, PathBuf) {
    let folder = crate::harness::Folder::new();
    done(&folder.db(), &["create", "other.example"]);
    let host = folder.file("data/example%2ecom");
    std::fs::create_dir_all(&host).unwrap();
    let dat = host.join("invite_api_keys.dat");
    (folder, dat)
}

/// A site where Prosody still runs with `mod_invites_api`, and keeps things as these lines of its configuration say.
fn original(release: Release, storage: &str) -> Site {
    let mut site = Site::new(release);
    site.changes = in_client();
    site.changes.push(("\"register_ibr\" }", "\"register_ibr\"; \"http\"; \"invites_api\" }".to_owned()));
    site.changes.push(("    storage = { invite_token = \"sql\"; invited_use = \"sql\" }\n", storage.to_owned()));
    site.changes.push(("invited.sqlite", "original.sqlite".to_owned()));
    site
}

/// The tokens of an account invite, and of a contact invite of ana's.
struct Tokens {
    account: String,
    contact: String,
}

/// Makes a key with the original's own command, the account ana with an invite, and two more invites.
fn make_with_the_original(site: &Site) -> (String, Tokens) {
    std::fs::create_dir_all(site.folder.file("data")).unwrap();
    let prosody = Prosody::start(site);
    // Prosody makes its tables when it first looks for something.
    assert_refused(&prosody.client().preauth("no-such-token"), "forbidden");
    let prosodyctl = |args: &[&str]| {
        let config = site.folder.file("prosody.cfg.lua");
        let mut command = Command::new("prosodyctl");
        let output = command.arg("--config").arg(config).args(args).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned()
    };
    let generate =
        || prosodyctl(&["mod_invites", "generate", "example.com"]).split("preauth=").nth(1).unwrap().to_owned();
    let key = prosodyctl(&["mod_invites_api", "create", "example.com", "a \"bot\", größer"]);
    assert!(key.contains('/'), "{key}");
    prosody.make_account(&generate(), "ana");
    let contact = field(&execute(&prosody, "ana", "urn:xmpp:invite#invite"), "uri");
    let contact = contact.split("preauth=").nth(1).unwrap().to_owned();
    (key, Tokens { account: generate(), contact })
}

/// Imports what the original has made, twice, and uses it all.
fn import_and_use(site: &mut Site, key: &str, tokens: &Tokens, sources: fn(&Site) -> Vec<PathBuf>) {
    let db = site.db();
    done(&db, &["create", "other.example"]);
    let count = |words: &[String]| {
        let numbers =
            |line: &String| line.split(", ").map(|part| part.split(' ').next().unwrap().parse().unwrap()).collect();
        let lines: Vec<Vec<u32>> = words.iter().map(numbers).collect();
        [0, 1, 2].map(|column| lines.iter().map(|line| line[column]).sum::<u32>())
    };
    let import = |site: &Site| -> Vec<String> {
        sources(site)
            .iter()
            .map(|source| done(&db, &["import", source.to_str().unwrap()]).trim_end().to_owned())
            .collect()
    };
    assert_eq!(count(&import(site)), [1, 2, 0]);
    assert_eq!(count(&import(site)), [0, 0, 3]);
    let id = key.split('/').next().unwrap();
    assert_eq!(done(&db, &["list", "example.com"]), format!("{id}\ta \"bot\", größer\n"));

    site.changes.clear();
    let server = Server::start(&db);
    let prosody = Prosody::start(site);
    prosody.make_account(&make_invite(&server, key), "with-key");
    assert_eq!(server.get(&format!("/invite?{}", tokens.account)).status, 200);
    use_tokens(site, &prosody, tokens);
    // What was used does not come back with another import.
    assert_eq!(count(&import(site)), [0, 0, 3]);
    assert!(!prosody_has(site, &tokens.account) && !prosody_has(site, &tokens.contact));
}

fn use_tokens(site: &Site, prosody: &Prosody, tokens: &Tokens) {
    prosody.make_account(&tokens.account, "bob");
    assert_used(site, &tokens.account);
    subscribe(prosody, "bob", "ana", &tokens.contact);
    assert_eq!(subscription(prosody, "ana", "bob").as_deref(), Some("from"), "{}", prosody.log());
    assert_used(site, &tokens.contact);
}

// ---- What the tests share. ----

/// A site with a database, and its Prosody.
pub fn start(release: Release) -> (Site, Prosody) {
    let site = Site::new(release);
    create_key(&site.db(), "example.com");
    let prosody = Prosody::start(&site);
    (site, prosody)
}

/// What lets people make invites in their clients, and who is an admin.
pub fn in_client() -> Vec<(&'static str, String)> {
    vec![(
        "\"saslauth\" }",
        "\"saslauth\"; \"adhoc\"; \"invites_adhoc\" }\nadmins = { \"boss@example.com\" }".to_owned(),
    )]
}

/// Makes an invite with the command line and returns its token.
pub fn invite(site: &Site, options: &[&str]) -> String {
    let args = [&["invite", "example.com"], options].concat();
    done(&site.db(), &args).trim_end().split_once('?').unwrap().1.to_owned()
}

pub fn make_accounts(site: &Site, prosody: &Prosody, users: &[&str]) {
    for user in users {
        prosody.make_account(&invite(site, &[]), user);
    }
}

pub fn new_password(user: &str, password: &str) -> String {
    format!("<query xmlns='jabber:iq:register'><username>{user}</username><password>{password}</password></query>")
}

/// The number of Prosody's rows of an invite.
fn rows(site: &Site, token: &str) -> i64 {
    column(site, "SELECT count(*) FROM prosody WHERE key = ?1", token)
}

fn assert_uses(site: &Site, token: &str, left: i64, used: i64) {
    let found: i64 = column(site, "SELECT uses_left FROM invited_invite WHERE token = ?1", token);
    let counted: i64 = column(site, "SELECT count(*) FROM invited_use WHERE token = ?1", token);
    assert_eq!((found, counted), (left, used), "uses left and uses");
}

pub fn assert_used(site: &Site, token: &str) {
    assert_used_as_often(site, token, 1);
}

/// Used, with as many uses as it was for, and gone from Prosody.
pub fn assert_used_as_often(site: &Site, token: &str, uses: i64) {
    assert_eq!((state(site, token).as_str(), rows(site, token)), ("used", 0));
    assert_uses(site, token, 0, uses);
}

/// Asks to become a contact with a token (XEP-0379), and returns when the server has dealt with it.
pub fn subscribe(prosody: &Prosody, user: &str, contact: &str, token: &str) {
    let mut client = session(prosody, user);
    client.send(&format!(
        "<presence type='subscribe' to='{contact}@example.com'><preauth xmlns='urn:xmpp:pars:0' token='{token}'/></presence>"
    ));
    client.iq("get", None, "<query xmlns='jabber:iq:roster'/>");
}

/// The subscription of a contact in a user's roster; none if it is not there.
pub fn subscription(prosody: &Prosody, user: &str, contact: &str) -> Option<String> {
    let roster = session(prosody, user).iq("get", None, "<query xmlns='jabber:iq:roster'/>");
    let jid = format!("jid='{contact}@example.com'");
    let item = roster.split("<item ").map(|item| item.split('>').next().unwrap()).find(|item| item.contains(&jid))?;
    Some(item.split("subscription='").nth(1).unwrap().split('\'').next().unwrap().to_owned())
}

/// Whether a user is offered a command that is for admins alone.
fn is_admin(prosody: &Prosody, user: &str) -> bool {
    let commands = "http://jabber.org/protocol/commands";
    let query = format!("<query xmlns='http://jabber.org/protocol/disco#items' node='{commands}'/>");
    let items = session(prosody, user).iq("get", Some("example.com"), &query);
    assert!(items.contains("urn:xmpp:invite#invite"), "{items}");
    items.contains("urn:xmpp:invite#create-account")
}

/// Executes a command (XEP-0050) and returns the answer.
pub fn execute(prosody: &Prosody, user: &str, node: &str) -> String {
    let command = format!("<command xmlns='http://jabber.org/protocol/commands' node='{node}' action='execute'/>");
    session(prosody, user).iq("set", Some("example.com"), &command)
}

/// The value of a field of a form.
pub fn field(answer: &str, name: &str) -> String {
    let var = format!("var='{name}'");
    let field =
        answer.split("<field").find(|field| field.contains(&var)).unwrap_or_else(|| panic!("no {name}: {answer}"));
    field.split("<value>").nth(1).unwrap().split('<').next().unwrap().to_owned()
}

/// A time as XMPP writes it (XEP-0082).
fn timestamp(seconds: i64) -> String {
    let conn = Connection::open_in_memory().unwrap();
    conn.query_row("SELECT strftime('%Y-%m-%dT%H:%M:%SZ', ?1, 'unixepoch')", [seconds], |row| row.get(0)).unwrap()
}

/// A client that is logged in.
fn session(prosody: &Prosody, user: &str) -> Client {
    let mut client = prosody.client();
    let outcome = client.log_in_with(user, &password(user));
    assert!(outcome.starts_with("<success"), "{user}: {outcome}");
    client.open();
    assert_done(&client.iq("set", None, "<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/>"));
    client
}

impl Client {
    /// Asks something and returns the answer, whatever else comes before or after it.
    fn iq(&mut self, kind: &str, to: Option<&str>, content: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("id='iq-{}'", COUNT.fetch_add(1, Ordering::Relaxed));
        let to = to.map_or_else(String::new, |to| format!(" to='{to}'"));
        self.send(&format!("<iq type='{kind}' {id}{to}>{content}</iq>"));
        let text = self.read_until(|text| answer(text, &id).is_some());
        answer(&text, &id).unwrap_or_else(|| panic!("the stream ends: {text}")).to_owned()
    }
}

/// The whole answer with this id, if it is there.
fn answer<'a>(text: &'a str, id: &str) -> Option<&'a str> {
    let is_it = |start: &usize| text[*start..].split('>').next().is_some_and(|tag| tag.contains(id));
    let start = text.match_indices("<iq ").map(|(start, _)| start).find(is_it)?;
    let text = &text[start..];
    let tag = text.find('>')? + 1;
    if text[..tag].ends_with("/>") { Some(&text[..tag]) } else { text.find("</iq>").map(|end| &text[..end + 5]) }
}
