//! Work that grows with the data: done in small transactions, and taken up again where it was interrupted.
//!
//! A trigger that fails at one row plays the interruption. In one transaction nothing would be done then; in steps, all but
//! the few rows of the last step are.

use std::path::Path;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Folder, PATIENCE, Server, done, fails, old_file};

const HOST: &str = "example.com";

/// The rows of each sort; the interruption comes at [`STOP`].
const COUNT: usize = 600;
const STOP: usize = 500;

/// A transaction changes fewer than this.
const STEP: usize = 200;

fn open(db: &Path) -> Connection {
    let conn = Connection::open(db).unwrap();
    conn.busy_timeout(PATIENCE).unwrap();
    conn.execute_batch("PRAGMA synchronous = OFF").unwrap();
    conn
}

fn count(conn: &Connection, from: &str) -> usize {
    conn.query_row(&format!("SELECT count(*) FROM {from}"), [], |row| row.get::<_, u32>(0)).unwrap() as usize
}

/// Makes an invite over and over in SQL, with Prosody's row for it. Its token is `t` and a number from 1.
fn fill(conn: &Connection, source: &str) {
    conn.execute_batch(&format!(
        "BEGIN;
         CREATE TEMP TABLE n AS
           WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {COUNT}) SELECT i, 't' || i AS token FROM n;
         INSERT INTO invited_invite (token, host, kind, source, created_at, expires_at)
         SELECT token, '{HOST}', 'account', '{source}', strftime('%s', 'now'), strftime('%s', 'now') + 9999 FROM n;
         INSERT INTO prosody (host, user, store, key, type, value)
         SELECT '{HOST}', '', 'invite_token', token, 'json', '{{}}' FROM n;
         COMMIT"
    ))
    .unwrap();
}

/// Runs a command that fails at one row, which leaves the most part done, and then again. `left` counts what is to do, `stop`
/// is the event and the condition of that row.
fn interrupted(db: &Path, args: &[&str], left: &str, stop: &str) -> String {
    let conn = open(db);
    let (event, condition) = stop.split_once(" WHEN ").unwrap();
    conn.execute_batch(&format!(
        "CREATE TRIGGER stop BEFORE {event} WHEN {condition} BEGIN SELECT RAISE(ABORT, 'stop'); END"
    ))
    .unwrap();
    fails(db, 1, args);
    let undone = count(&conn, left);
    assert!(undone > COUNT - STOP && undone < COUNT - STOP + STEP, "{args:?}: {undone} of {COUNT} were left");
    conn.execute_batch("DROP TRIGGER stop").unwrap();
    let text = done(db, args);
    assert_eq!(count(&conn, left), 0, "{args:?}");
    text
}

#[test]
fn an_interrupted_delete_leaves_no_key_and_goes_on_with_its_invites() {
    let folder = Folder::new();
    let db = folder.db();
    let key = done(&db, &["create", HOST]);
    let id = key.split_once('/').unwrap().0;
    let conn = open(&db);
    fill(&conn, &format!("api/token/{id}"));
    // Somebody has used one of these, and another has expired: neither is taken back, nor does it keep the key's id known.
    conn.execute_batch("UPDATE invited_invite SET uses = 2 WHERE token = 't7'").unwrap();
    conn.execute_batch("UPDATE invited_invite SET expires_at = 1 WHERE token = 't8'").unwrap();
    let left = "invited_invite WHERE state = 'pending' AND token NOT IN ('t7', 't8')";
    let stop = format!("UPDATE OF state ON invited_invite WHEN OLD.token = 't{STOP}'");
    let args = ["delete", HOST, id, "--revoke-unused"];
    let conn = open(&db);
    let is_there = |conn: &Connection| count(conn, "invited_key");
    assert_eq!(is_there(&conn), 1);
    assert_eq!(interrupted(&db, &args, left, &stop), "");
    assert_eq!((is_there(&conn), count(&conn, "prosody WHERE key <> ''")), (0, 2));
    // There is nothing left to go on with.
    let refused = fails(&db, 1, &args);
    assert!(refused.contains("has no key"), "{refused}");
}

#[test]
fn a_deleted_key_has_its_invites_taken_back_through_its_own_host_alone_and_only_where_asked() {
    let folder = Folder::new();
    let db = folder.db();
    let key = done(&db, &["create", HOST]);
    done(&db, &["create", "other.example"]);
    let id = key.split_once('/').unwrap().0;
    let conn = open(&db);
    fill(&conn, &format!("api/token/{id}"));
    assert_eq!(done(&db, &["delete", HOST, id]), "");
    for args in [&["delete", HOST, id][..], &["delete", "other.example", id, "--revoke-unused"]] {
        let refused = fails(&db, 1, args);
        assert!(refused.contains("has no key"), "{refused}");
    }
    assert_eq!(count(&conn, "invited_invite WHERE state = 'pending'"), COUNT);
    assert_eq!(done(&db, &["delete", HOST, id, "--revoke-unused"]), "");
    assert_eq!(count(&conn, "invited_invite WHERE state = 'pending'"), 0);
}

#[test]
fn an_interrupted_prune_goes_on() {
    let folder = Folder::new();
    let db = folder.db();
    done(&db, &["create", HOST]);
    let conn = open(&db);
    fill(&conn, "cli");
    conn.execute_batch(
        "INSERT INTO invited_request SELECT 'api/token/x', token, zeroblob(32), token, i FROM n; UPDATE invited_invite SET expires_at = number",
    )
    .unwrap();
    let stop = format!("UPDATE OF state ON invited_invite WHEN OLD.token = 't{STOP}'");
    let expired = interrupted(&db, &["prune"], "invited_invite WHERE state = 'pending'", &stop);
    assert!(expired.ends_with(" expired, 0 forgotten\n"), "{expired}");
    // The requests went with the run that was not interrupted.
    assert_eq!((count(&conn, "prosody WHERE key <> ''"), count(&conn, "invited_request")), (0, 0));

    conn.execute_batch("INSERT INTO invited_request SELECT 'api/token/x', token, zeroblob(32), token, i FROM n")
        .unwrap();
    let stop = format!("DELETE ON invited_request WHEN OLD.name = 't{STOP}'");
    assert_eq!(interrupted(&db, &["prune"], "invited_request", &stop), "0 expired, 0 forgotten\n");

    // One invite with very many uses ended long ago.
    conn.execute_batch(
        "UPDATE invited_invite SET ended_at = 1 WHERE token = 't1';
         INSERT INTO invited_use (number, token, used_at) SELECT i, 't1', i FROM n",
    )
    .unwrap();
    let stop = format!("DELETE ON invited_use WHEN OLD.number = {STOP}");
    assert_eq!(interrupted(&db, &["prune"], "invited_use", &stop), "0 expired, 1 forgotten\n");

    conn.execute_batch("UPDATE invited_invite SET ended_at = number").unwrap();
    let stop = format!("DELETE ON invited_invite WHEN OLD.token = 't{STOP}'");
    let forgotten = interrupted(&db, &["prune"], "invited_invite", &stop);
    assert!(forgotten.starts_with("0 expired, "), "{forgotten}");
}

/// A file of Prosody's with this many invites for accounts, and its keys.
fn prosodys(folder: &Folder, invites: usize, keys: &[(&str, &str, &str)]) -> std::path::PathBuf {
    let path = folder.file("prosodys.sqlite");
    let _ = std::fs::remove_file(&path);
    let conn = open(&path);
    conn.execute_batch("CREATE TABLE prosody (host, user, store, key, type, value); BEGIN").unwrap();
    let mut insert = conn.prepare("INSERT INTO prosody VALUES (?1, '', ?2, ?3, 'json', ?4)").unwrap();
    for (host, id, secret) in keys {
        insert.execute([*host, "invite_api_keys", id, &json!({ "token": secret }).to_string()]).unwrap();
    }
    for number in 1..=invites {
        let value = json!({ "type": "register", "expires": 9_999_999_999_i64, "additional_data": { "source": "api/token/old" } });
        insert.execute([HOST, "invite_token", &format!("t{number}"), &value.to_string()]).unwrap();
    }
    conn.execute_batch("COMMIT").unwrap();
    path
}

#[test]
fn an_interrupted_import_goes_on_and_brings_each_invite_once() {
    let folder = Folder::new();
    let db = folder.db();
    done(&db, &["create", "other.example"]);
    let source = prosodys(&folder, COUNT, &[(HOST, "old", "secret")]);
    let args = ["import", source.to_str().unwrap()];
    // It is interrupted where rows are written, and where they are read into columns.
    let conn = open(&db);
    conn.execute_batch(&format!(
        "CREATE TRIGGER stop BEFORE INSERT ON prosody WHEN NEW.key = 't{STOP}' BEGIN SELECT RAISE(ABORT, 'stop'); END"
    ))
    .unwrap();
    let here = format!("invited_invite WHERE host = '{HOST}'");
    fails(&db, 1, &args);
    let imported = count(&conn, &here);
    assert!(imported < STOP && imported > STOP - STEP, "{imported}");
    conn.execute_batch("DROP TRIGGER stop").unwrap();
    let left = "invited_invite WHERE kind = 'unread'";
    let text = interrupted(&db, &args, left, &format!("UPDATE OF kind ON invited_invite WHEN OLD.token = 't{STOP}'"));
    assert_eq!(text, format!("0 keys, 0 invites, {} skipped\n", COUNT + 1));
    assert_eq!(count(&conn, &here), COUNT);
    let keys: Value = serde_json::from_str(&done(&db, &["list", HOST, "--json"])).unwrap();
    assert_eq!((&keys[0]["id"], &keys[0]["invites"]), (&json!("old"), &json!(COUNT)));
    assert!(keys[0]["last_used_at"].is_i64(), "{keys}");
}

#[test]
fn two_keys_of_one_id_in_a_source_stop_the_whole_import() {
    let folder = Folder::new();
    done(&folder.db(), &["create", "other.example"]);
    for keys in [[(HOST, "same", "one"), (HOST, "same", "two")], [(HOST, "same", "one"), ("b.example", "same", "one")]]
    {
        let source = prosodys(&folder, 3, &keys);
        let refused = fails(&folder.db(), 1, &["import", source.to_str().unwrap()]);
        assert!(refused.contains("another key has the id 'same' already; nothing was imported"), "{refused}");
        let conn = open(&folder.db());
        assert_eq!((count(&conn, "invited_key"), count(&conn, "invited_invite")), (1, 0));
    }
}

#[test]
fn what_ejabberd_had_before_is_taken_over_in_steps_and_by_the_next_command_where_that_is_interrupted() {
    let folder = Folder::new();
    let db = folder.db();
    done(&db, &["create", HOST]);
    let conn = open(&db);
    conn.execute_batch(&format!(
        "{};
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {COUNT})
         INSERT INTO invite_token (token, username, expires, type, account_name)
         SELECT printf('t%04d', i), '', datetime('now', '+7 days'), 'A', '' FROM n;
         UPDATE invite_token SET invitee = 'ana@example.com' WHERE token = 't0003';
         CREATE TRIGGER stop BEFORE INSERT ON invited_invite WHEN NEW.token = 't0{STOP}' BEGIN SELECT RAISE(ABORT, 'stop'); END",
        include_str!("../../src/store/ejabberd.sql")
    ))
    .unwrap();
    let set = ["set", HOST, "server", "ejabberd"];
    fails(&db, 1, &set);
    let copied = count(&conn, "invited_invite");
    assert!(copied < STOP && copied > STOP - STEP, "{copied}");
    // What is used before it is taken over is no invite of ours, and what is made meanwhile is one.
    conn.execute_batch(
        "UPDATE invite_token SET invitee = 'bob@example.com' WHERE token = 't0599';
         INSERT INTO invite_token (token, username, expires, type, account_name)
         VALUES ('fresh', '', datetime('now', '+7 days'), 'A', '');
         DROP TRIGGER stop",
    )
    .unwrap();
    assert_eq!(done(&db, &["invites", HOST]).lines().count(), COUNT - 1);
    let conn = open(&db);
    assert_eq!(count(&conn, "invited_meta WHERE name LIKE 'ejabberd%'"), 0);
    assert_eq!(count(&conn, "invited_invite WHERE token IN ('t0003', 't0599')"), 0);
}

/// A key of a new database, whose invites those of [`fill`] are.
fn filled_by_a_key(db: &Path) -> (String, Connection) {
    let key = done(db, &["create", HOST]).trim_end().to_owned();
    let conn = open(db);
    fill(&conn, &format!("api/token/{}", key.split_once('/').unwrap().0));
    (key, conn)
}

#[test]
fn a_list_with_many_expired_invites_comes_in_short_pages_and_is_whole() {
    let folder = Folder::new();
    let db = folder.db();
    let (key, conn) = filled_by_a_key(&db);
    // They have expired and are not pruned yet, since the server does that first of all.
    let server = Server::start(&db);
    let bearer = format!("Bearer {key}");
    let get = |query: &str| -> Value {
        let reply = server.request("GET", &format!("/invites_api/invites?{query}"), &[("Authorization", &bearer)]);
        assert_eq!(reply.status, 200, "{reply:?}");
        serde_json::from_str(&reply.body).unwrap()
    };
    conn.execute_batch(
        "UPDATE invited_invite SET expires_at = 1;
         INSERT INTO invited_invite (token, host, kind, source, created_at, expires_at)
         SELECT a.token || '-' || b.i, a.host, a.kind, a.source, a.created_at, 1 FROM invited_invite AS a, n AS b WHERE b.i <= 4;
         UPDATE invited_invite SET expires_at = 9999999999 WHERE token IN ('t1', 't1-1', 't600-4')",
    )
    .unwrap();
    let (mut found, mut pages, mut after) = (Vec::new(), 0, String::new());
    loop {
        let page = get(&format!("limit=50{after}"));
        found.extend(
            page["invites"].as_array().unwrap().iter().map(|invite| invite["token"].as_str().unwrap().to_owned()),
        );
        pages += 1;
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(found, ["t1", "t1-1", "t600-4"]);
    assert!((3..=6).contains(&pages), "{pages} pages");
    assert_eq!(done(&db, &["invites", HOST]).lines().count(), 3);
}

#[test]
fn a_page_of_the_list_ends_where_it_shows_very_many_uses() {
    let folder = Folder::new();
    let db = folder.db();
    let (key, conn) = filled_by_a_key(&db);
    conn.execute_batch(
        "INSERT INTO invited_use (token, used_at) SELECT a.token, 1 FROM n AS a, n AS b WHERE a.i <= 10",
    )
    .unwrap();
    let server = Server::start(&db);
    let (mut sizes, mut after, bearer) = (Vec::new(), String::new(), format!("Bearer {key}"));
    while sizes.iter().sum::<usize>() < 200 {
        let target = format!("/invites_api/invites?limit=100{after}");
        let page: Value =
            serde_json::from_str(&server.request("GET", &target, &[("Authorization", &bearer)]).body).unwrap();
        let invites = page["invites"].as_array().unwrap();
        assert_eq!(page["next"], invites.last().unwrap()["token"]);
        sizes.push(invites.len());
        after = format!("&after={}", page["next"].as_str().unwrap());
    }
    assert_eq!(sizes, [2, 2, 2, 2, 2, 100, 100]);
}

/// A file as the version before this one has left it.
#[test]
fn a_limit_per_day_still_counts_what_was_made_before_an_upgrade() {
    let folder = Folder::new();
    let db = folder.db();
    let conn = old_file(&db, 4);
    conn.execute_batch(
        "INSERT INTO invited_key (id, host, digest, created_at, allow, per_day)
         SELECT 'three', host, digest, created_at, allow, 3 FROM invited_key",
    )
    .unwrap();
    for (token, source, hours) in [("a", "three", 30), ("b", "key", 9), ("c", "three", 20), ("d", "three", 10)] {
        let sql = "INSERT INTO invited_invite (token, host, kind, source, created_at, expires_at)
                   VALUES (?1, 'example.com', 'account', 'api/token/' || ?2, strftime('%s', 'now') - ?3 * 3600, 9999999999)";
        conn.execute(sql, rusqlite::params![token, source, hours]).unwrap();
    }
    drop(conn);
    let keys: Value = serde_json::from_str(&done(&db, &["list", HOST, "--json"])).unwrap();
    assert_eq!((&keys[0]["invites"], &keys[1]["invites"]), (&json!(1), &json!(3)), "{keys}");
    let server = Server::start(&db);
    let create = |id: &str| server.get(&format!("/invites_api?key={id}/secret"));
    assert_eq!(create("three").status, 201);
    let refused = create("three");
    let wait: i64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert_eq!((refused.status, (14_000..=14_400).contains(&wait)), (429, true), "{wait}");
    for _ in 0..4 {
        assert_eq!(create("key").status, 201);
    }
}
