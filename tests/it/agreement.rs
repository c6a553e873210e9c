//! Whatever happens to invites, in whatever order: our table and the XMPP server's never disagree on what is still good, and
//! uses are counted exactly.
//!
//! Sequences of steps are drawn from a seed. We make and take back over HTTP and prune from the shell; the XMPP server's part
//! is played with the statements that it runs. A failing sequence prints its seed and its steps.

use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::{Value, json};

use crate::harness::{Folder, PATIENCE, Reply, Server, done};

const HOST: &str = "example.com";
const SEQUENCES: u64 = 120;
const STEPS: usize = 14;
const KINDS: [&str; 4] = ["account", "contact", "account-and-contact", "reset"];

/// Numbers that look random and are the same in each run (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

/// The XMPP server whose part is played.
#[derive(Clone, Copy, PartialEq)]
enum Peer {
    Prosody,
    Ejabberd,
}

/// What has to be true of an invite.
struct Known {
    token: String,
    kind: &'static str,
    uses: usize,
    /// By whom it was used.
    used: Vec<String>,
    /// Its time is over, whether or not anybody has noticed.
    expired: bool,
    /// `used`, `revoked` or `expired`, once somebody has noticed.
    ended: Option<&'static str>,
}

impl Known {
    fn is_good(&self) -> bool {
        self.ended.is_none() && !self.expired
    }

    fn state(&self) -> &'static str {
        self.ended.unwrap_or(if self.expired { "expired" } else { "pending" })
    }
}

/// A server, and both tables.
struct Tables {
    peer: Peer,
    folder: Folder,
    server: Server,
    conn: Connection,
    key: String,
}

impl Tables {
    /// `before` is run on the database before the setting `server` is set.
    fn start(peer: Peer, before: &str) -> Tables {
        let folder = Folder::new();
        let allow = "account,contact,reset,uses:3";
        let key = done(&folder.db(), &["create", HOST, "--allow", allow]).trim_end().to_owned();
        let conn = Connection::open(folder.db()).unwrap();
        conn.busy_timeout(PATIENCE).unwrap();
        // What is played here need not survive a power cut.
        conn.execute_batch("PRAGMA synchronous = OFF").unwrap();
        conn.execute_batch(before).unwrap();
        if peer == Peer::Ejabberd {
            done(&folder.db(), &["set", HOST, "server", "ejabberd"]);
        }
        let server = Server::start(&folder.db());
        Tables { peer, folder, server, conn, key }
    }

    fn ask(&self, method: &str, target: &str, body: &str) -> Reply {
        let bearer = format!("Bearer {}", self.key);
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        self.server.send(method, target, &headers, body.as_bytes())
    }

    fn create(&self, kind: &'static str, uses: usize) -> Known {
        let mut wish = json!({ "kind": kind, "uses": uses });
        if kind != "account" {
            wish["username"] = json!("ana");
        }
        let reply = self.ask("POST", "/invites_api", &wish.to_string());
        assert_eq!(reply.status, 201, "{reply:?}");
        Known { token: reply.token(), kind, uses, used: Vec::new(), expired: false, ended: None }
    }

    /// As the XMPP server does it when somebody comes with the token: only if its own table says that it is good.
    fn use_up(&self, known: &mut Known, guest: &str) {
        if !self.server_says_good(known) {
            return;
        }
        match self.peer {
            // util.invites of Prosody, 0.12 and 13: first the user's row, then the host's; a transaction for each.
            Peer::Prosody => {
                let user = if known.kind.contains("contact") { Some("ana") } else { None };
                for user in user.into_iter().chain([""]) {
                    let sql = r#"DELETE FROM "prosody" WHERE "host" = ?1 AND "user" = ?2 AND "store" = 'invite_token' AND "key" = ?3"#;
                    assert_eq!(self.conn.execute(sql, [HOST, user, &known.token]).unwrap(), 1, "a row was not there");
                }
                known.used.push(String::new());
            }
            Peer::Ejabberd => {
                let address = format!("{guest}@{HOST}");
                let sql = "UPDATE invite_token SET invitee = ?2, account_name = ?3 WHERE token = ?1 AND invitee = ''";
                assert_eq!(self.conn.execute(sql, [&known.token, &address, guest]).unwrap(), 1);
                // A contact may be of another host, so that its whole address is kept.
                known.used.push(if known.kind == "contact" { address } else { guest.to_owned() });
            }
        }
        if known.used.len() == known.uses {
            known.ended = Some("used");
        }
    }

    fn revoke(&self, known: &mut Known) {
        let reply = self.ask("DELETE", &format!("/invites_api/invites/{}", known.token), "");
        assert_eq!(reply.status, if known.is_good() { 204 } else { 410 }, "{reply:?}");
        if known.is_good() {
            known.ended = Some("revoked");
        }
    }

    /// Its time goes by, in both tables.
    fn expire(&self, known: &mut Known) {
        if known.ended.is_some() {
            return;
        }
        known.expired = true;
        match self.peer {
            Peer::Prosody => {
                let token = &known.token;
                let ours = "UPDATE invited_invite SET expires_at = 1 WHERE token = ?1";
                assert_eq!(self.conn.execute(ours, [token]).unwrap(), 1);
                let numbers = r#"UPDATE "prosody" SET "value" = '1' WHERE "key" = ?1 AND "type" = 'number'"#;
                self.conn.execute(numbers, [token]).unwrap();
                let json = r#"UPDATE "prosody" SET "value" = json_set("value", '$.expires', 1) WHERE "key" = ?1 AND "type" = 'json'"#;
                self.conn.execute(json, [token]).unwrap();
            }
            // As the command expire_invite_tokens does; our table follows by itself.
            Peer::Ejabberd => {
                let sql = "UPDATE invite_token SET expires = '1970-01-03 00:00:00' WHERE token = ?1";
                assert_eq!(self.conn.execute(sql, [&known.token]).unwrap(), 1);
            }
        }
    }

    /// The XMPP server deletes it. (Prosody never does that to what is not used.)
    fn delete_in_server(&self, known: &mut Known) {
        if self.peer == Peer::Ejabberd {
            self.conn.execute("DELETE FROM invite_token WHERE token = ?1", [&known.token]).unwrap();
            known.ended = Some(known.state()).filter(|state| *state != "pending").or(Some("revoked"));
        }
    }

    fn prune(&self, known: &mut [Known]) {
        done(&self.folder.db(), &["prune", HOST]);
        for known in known {
            known.ended = Some(known.state()).filter(|state| *state != "pending");
            let left = self.server_rows(&known.token);
            let expected = match (self.peer, known.ended) {
                // ejabberd keeps what was used, with the name of the new user.
                (Peer::Ejabberd, Some("used")) => left,
                (_, Some(_)) => 0,
                (Peer::Prosody, None) if known.kind.contains("contact") => 2,
                (_, None) => 1,
            };
            assert_eq!(left, expected, "rows of the server after prune of one that is {}", known.state());
        }
    }

    fn server_rows(&self, token: &str) -> i64 {
        let sql = match self.peer {
            Peer::Prosody => r#"SELECT count(*) FROM "prosody" WHERE "key" = ?1"#,
            Peer::Ejabberd => "SELECT count(*) FROM invite_token WHERE token = ?1",
        };
        self.conn.prepare_cached(sql).unwrap().query_row([token], |row| row.get(0)).unwrap()
    }

    /// Whether the server would take the token, by its own table alone.
    fn server_says_good(&self, known: &Known) -> bool {
        match self.peer {
            Peer::Prosody => {
                let value = |user: &str| -> Option<String> {
                    let sql = r#"SELECT "value" FROM "prosody" WHERE "host" = ?1 AND "user" = ?2 AND "store" = 'invite_token' AND "key" = ?3"#;
                    let mut query = self.conn.prepare_cached(sql).unwrap();
                    query.query_row([HOST, user, &known.token], |row| row.get(0)).optional().unwrap()
                };
                let registers = value("").is_some_and(|value| {
                    let value: Value = serde_json::from_str(&value).unwrap();
                    value["expires"].as_i64().unwrap() >= now() && value["allow_registration"] == true
                });
                let befriends = value("ana").is_some_and(|value| value.parse::<i64>().unwrap() >= now());
                match known.kind {
                    "contact" => {
                        assert!(!registers, "a contact invite makes an account");
                        befriends
                    }
                    "account-and-contact" => {
                        assert_eq!(registers, befriends, "the two rows disagree");
                        registers
                    }
                    _ => {
                        assert!(!befriends);
                        registers
                    }
                }
            }
            Peer::Ejabberd => {
                let sql = "SELECT 1 FROM invite_token WHERE token = ?1 AND invitee = '' AND expires >= datetime('now', 'localtime')";
                self.conn.prepare_cached(sql).unwrap().exists([&known.token]).unwrap()
            }
        }
    }

    /// Both tables say of this invite what has to be true of it.
    fn check(&self, known: &Known) {
        let sql = "SELECT state, expires_at, uses_left, ended_at FROM invited_invite WHERE token = ?1";
        let (state, expires_at, uses_left, ended_at): (String, i64, u32, Option<i64>) = self
            .conn
            .prepare_cached(sql)
            .unwrap()
            .query_row([&known.token], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .unwrap();
        let we_say_good = state == "pending" && expires_at >= now();
        let about = format!("{} ({}, {} of {} used)", known.token, known.kind, known.used.len(), known.uses);
        assert_eq!(we_say_good, known.is_good(), "our table is wrong about {about}: {state}");
        assert_eq!(self.server_says_good(known), known.is_good(), "the server's table is wrong about {about}: {state}");
        assert_eq!(state, known.ended.unwrap_or("pending"), "{about}");
        assert_eq!(ended_at.is_some(), known.ended.is_some(), "{about}");
        assert_eq!(uses_left as usize, known.uses - known.used.len(), "{about}");
        if self.peer == Peer::Ejabberd && known.is_good() {
            // The name of the last guest must not be the fixed name of the next.
            let sql = "SELECT account_name FROM invite_token WHERE token = ?1";
            let name: String = self.conn.query_row(sql, [&known.token], |row| row.get(0)).unwrap();
            assert_eq!(name, if matches!(known.kind, "reset" | "contact") { "ana" } else { "" }, "{about}");
        }
        let sql = "SELECT ifnull(username, '') FROM invited_use WHERE token = ?1 ORDER BY number";
        let mut query = self.conn.prepare_cached(sql).unwrap();
        let used = query.query_map(params![known.token], |row| row.get::<_, String>(0)).unwrap();
        assert_eq!(used.map(Result::unwrap).collect::<Vec<_>>(), known.used, "{about}");
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// What has been done so far, for the message of a failing test.
struct Steps {
    seed: u64,
    done: Vec<String>,
}

impl Drop for Steps {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}, steps: {:#?}", self.seed, self.done);
        }
    }
}

fn run_sequences(tables: &Tables) {
    let mut uses = 0;
    for seed in 0..SEQUENCES {
        let mut numbers = Numbers(seed);
        let mut steps = Steps { seed, done: Vec::new() };
        let mut known: Vec<Known> = Vec::new();
        for step in 0..STEPS {
            let choice = if known.is_empty() { 0 } else { numbers.below(16) };
            let which = if known.is_empty() { 0 } else { numbers.below(known.len()) };
            let mut note = |what: &str| steps.done.push(format!("{what} {which}"));
            match choice {
                0..4 => {
                    let kind = KINDS[numbers.below(4)];
                    let count = if kind == "reset" { 1 } else { 1 + numbers.below(3) };
                    note(&format!("create {kind} for {count}, then there was no"));
                    known.push(tables.create(kind, count));
                }
                4..10 => {
                    note("use");
                    tables.use_up(&mut known[which], &format!("guest{step}"));
                }
                10..12 => {
                    note("revoke");
                    tables.revoke(&mut known[which]);
                }
                12..14 => {
                    note("expire");
                    tables.expire(&mut known[which]);
                }
                14 => {
                    note("delete in the server");
                    tables.delete_in_server(&mut known[which]);
                }
                _ => {
                    note("prune, of");
                    tables.prune(&mut known);
                }
            }
            known.iter().for_each(|known| tables.check(known));
        }
        for known in &known {
            let reply = tables.ask("GET", &format!("/invites_api/invites/{}", known.token), "");
            let shown: Value = serde_json::from_str(&reply.body).unwrap();
            assert_eq!(shown["state"], known.state());
            assert_eq!(shown["uses_left"], known.uses - known.used.len());
            assert_eq!(shown["used"].as_array().unwrap().len(), known.used.len());
            uses += known.used.len();
        }
    }
    assert!(uses > 100, "only {uses} uses: do these sequences still do what they are for?");
}

#[test]
fn our_table_and_prosodys_never_disagree() {
    run_sequences(&Tables::start(Peer::Prosody, ""));
}

#[test]
fn our_table_and_ejabberds_never_disagree() {
    run_sequences(&Tables::start(Peer::Ejabberd, ""));
}

#[test]
fn our_table_and_ejabberds_for_several_hosts_never_disagree() {
    // The schema of ejabberd with sql_schema_multihost.
    let table = "CREATE TABLE invite_token (
        token text NOT NULL, username text NOT NULL, server_host text NOT NULL, invitee text NOT NULL DEFAULT '',
        created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, expires timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
        type character(1) NOT NULL, account_name text NOT NULL, PRIMARY KEY (token))";
    run_sequences(&Tables::start(Peer::Ejabberd, table));
}
