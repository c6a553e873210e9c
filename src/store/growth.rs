//! Tests that the work for one request, and for one step of housekeeping, does not grow with the file.
//!
//! Work is counted in steps of SQLite's virtual machine, not in time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rusqlite::StatementStatus;
use rusqlite::trace::{TraceEvent, TraceEventCodes};

use super::{Claimed, KeyLimits, Of, ServerRows, Store};
use crate::host::Host;
use crate::invite::{Allow, Invite, Server, Wish};
use crate::key::Digest;
use crate::user::Username;

const NOW: i64 = 1_800_000_000;
const SOURCE: &str = "api/token/key";

/// Rows of each sort, made in SQL. `bob` is the name of invites that have expired and are not pruned.
const FILL: &str = "
    CREATE TEMP TABLE n AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < COUNT) SELECT i FROM n;
    INSERT INTO invited_invite (token, host, kind, source, created_at, expires_at, state, ended_at, nth)
    SELECT 'ended' || i, 'example.com', 'account', 'api/token/key', NOW, NOW + 9999, 'revoked', NOW, i FROM n;
    INSERT INTO invited_invite (token, host, kind, username, source, created_at, expires_at)
    SELECT 'bob' || i, 'example.com', 'account', 'bob', 'api/token/other', NOW - 9999, NOW - 1 FROM n;
    INSERT INTO invited_invite (token, host, kind, source, created_at, expires_at)
    SELECT 'cli' || i, 'example.com', 'account', 'cli', NOW, NOW + 9999 FROM n;
    INSERT INTO invited_request SELECT 'api/token/key', 'n' || i, zeroblob(32), 'ended' || i, NOW FROM n;
    INSERT INTO invited_use (token, used_at, username) SELECT 'fresh', NOW, 'user' || i FROM n;";

struct File {
    store: Store,
    folder: std::path::PathBuf,
    host: Host,
    invite: Invite,
}

impl File {
    fn new(count: u32) -> File {
        let name = format!("invited-growth-{}", crate::random::base64url::<6>().unwrap());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let mut store = Store::create(&folder.join("invited.sqlite")).unwrap();
        let host = Host::parse("example.com").unwrap();
        let limits = KeyLimits { expires_at: None, allow: Allow::default_words(), per_day: Some(count) };
        store.write(|tx| tx.add_key(&host, "key", &Digest::of("secret"), None, &limits, NOW)).unwrap();
        let fill = FILL.replace("COUNT", &count.to_string()).replace("NOW", &NOW.to_string());
        store.conn.execute_batch(&format!("BEGIN; {fill} COMMIT")).unwrap();
        let invite = Invite {
            token: "fresh".to_owned(),
            host: host.clone(),
            wish: Wish::account(),
            source: "cli".to_owned(),
            created_at: NOW,
            expires_at: NOW + 9_999,
        };
        let rows = ServerRows::new(&store, Server::Prosody, &invite, "xmpp:", "https://").unwrap();
        store.write(|tx| tx.add_invite(&invite, &rows)).unwrap();
        File { store, folder, host, invite }
    }

    /// The steps that a job takes.
    fn work(&mut self, job: impl FnOnce(&mut Store, &Host, &Invite)) -> i32 {
        let steps = Arc::new(AtomicI32::new(0));
        let (shared, mut earlier) = (Arc::clone(&steps), HashMap::new());
        let count = move |event: TraceEvent| {
            if let TraceEvent::Profile(statement, _) = event {
                // The count of a statement that is kept goes on from where it was.
                let count = statement.get_status(StatementStatus::VmStep);
                let before = earlier.insert(statement.sql().into_owned(), count).filter(|before| *before <= count);
                shared.fetch_add(count - before.unwrap_or(0), Ordering::Relaxed);
            }
        };
        self.store.conn.flush_prepared_statement_cache();
        self.store.conn.trace_v2(TraceEventCodes::SQLITE_TRACE_PROFILE, Some(count)).unwrap();
        job(&mut self.store, &self.host, &self.invite);
        self.store.conn.trace_v2(TraceEventCodes::empty(), None::<fn(TraceEvent)>).unwrap();
        steps.load(Ordering::Relaxed)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A name, and the work.
type Job = (&'static str, fn(&mut Store, &Host, &Invite));

const JOBS: &[Job] = &[
    ("limit of a key", |store, _, _| {
        let count: u32 = store.conn.query_row("SELECT per_day FROM invited_key", [], |row| row.get(0)).unwrap();
        assert_eq!(store.write(|tx| tx.wait_secs(SOURCE, count, NOW)).unwrap(), Some(86_400));
    }),
    ("new invite", |store, _, invite| {
        let invite = Invite { token: "another".to_owned(), source: SOURCE.to_owned(), ..invite.clone() };
        let rows = ServerRows::new(store, Server::Prosody, &invite, "xmpp:", "https://").unwrap();
        store.write(|tx| tx.add_invite(&invite, &rows).and_then(|()| tx.count_invite(&invite))).unwrap();
    }),
    ("pending invites of a key", |store, _, _| {
        assert_eq!(store.invites(Of::Source(SOURCE), false, 0, 50, NOW).unwrap().invites.len(), 1);
    }),
    ("all invites of a key", |store, _, _| {
        assert_eq!(store.invites(Of::Source(SOURCE), true, 0, 50, NOW).unwrap().invites.len(), 50);
    }),
    ("a page of expired invites", |store, _, _| {
        let page = store.invites(Of::Source("api/token/other"), false, 0, 50, NOW).unwrap();
        assert!(page.invites.is_empty() && page.next.is_some());
    }),
    ("a page of a host", |store, host, _| {
        let page = store.invites(Of::Host(host), false, 0, 50, NOW).unwrap();
        assert!(page.invites.is_empty() && page.next.is_some());
    }),
    ("unused invites", |store, host, _| {
        assert!(!store.has_unused(host, "api/token/none", NOW).unwrap());
    }),
    ("registration", |store, _, invite| {
        let invite = store.invite(&invite.token).unwrap().unwrap();
        let bob = Username::parse("bob").unwrap();
        assert!(matches!(store.write(|tx| tx.claim(&invite, &bob, NOW)).unwrap(), Claimed::Done(_)));
    }),
    ("a request once more", |store, _, _| {
        assert!(store.write(|tx| tx.earlier_request(SOURCE, "n7", NOW)).unwrap().is_some());
    }),
    ("revoking", |store, host, _| {
        store.write(|tx| tx.revoke(host, "cli1", None, NOW)).unwrap();
    }),
    ("a use that Prosody tells of", |store, _, invite| {
        let tell = r#"INSERT INTO "prosody" VALUES ('example.com', 'carl', 'invited_use', ?1, 'json', '1')"#;
        store.conn.execute(tell, [&invite.token]).unwrap();
        let last = "SELECT username FROM invited_use WHERE token = ?1 ORDER BY number DESC LIMIT 1";
        assert_eq!(store.conn.query_row(last, [&invite.token], |row| row.get(0)), Ok("carl".to_owned()));
    }),
    ("uses of an invite", |store, _, invite| {
        let uses = store.uses(&invite.token).unwrap();
        let last = uses.last().unwrap().username.as_deref();
        assert_eq!((uses.len(), last), (1_000, Some("carl")));
    }),
    ("tallies", |store, _, _| assert_eq!(store.tallies().unwrap().len(), 1)),
];

#[test]
fn no_request_works_more_in_a_larger_file() {
    let (mut small, mut large) = (File::new(2_000), File::new(20_000));
    for (name, job) in JOBS {
        let (few, many) = (small.work(job), large.work(job));
        assert!(many <= few + few / 2 + 50, "{name}: {few} steps in the smaller file, {many} in the larger one");
    }
}

#[test]
fn housekeeping_that_finds_nothing_does_not_read_the_file() {
    let [few, many] = [2_000, 20_000].map(|count| {
        let mut file = File::new(count);
        file.store.conn.execute_batch("UPDATE invited_invite SET expires_at = created_at + 99999").unwrap();
        file.work(|store, _, _| assert_eq!(store.prune(None, NOW).unwrap(), super::prune::Pruned::default()))
    });
    assert!(many <= few + few / 2 + 50, "{few} steps in the smaller file, {many} in the larger one");
}

#[test]
fn what_is_over_is_found_without_reading_the_rest() {
    let [few, many] = [2_000, 20_000].map(|count| {
        let mut file = File::new(count);
        // As many are over in either file.
        let keep = "UPDATE invited_invite SET expires_at = created_at + 99999 WHERE username = 'bob' AND number % (SELECT count(*) / 60 FROM invited_invite) > 0";
        file.store.conn.execute_batch(keep).unwrap();
        file.work(|store, _, _| assert!((15..25).contains(&store.prune(None, NOW).unwrap().expired)))
    });
    assert!(many <= few + few / 2 + 50, "{few} steps in the smaller file, {many} in the larger one");
}
