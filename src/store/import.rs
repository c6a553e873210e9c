//! Keys and invites from Prosody's own stores, `invite_api_keys` and `invite_token`, into our file.
//!
//! What can't be read, and what does not fit, is found before anything is written. The writing is done in steps: where it is
//! interrupted, the same import again goes on.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::{InviteRow, ServerRows, Store, Tx};
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::host::Host;
use crate::invite::{Allow, Invite, Kind, Server, Wish};
use crate::json::Json;
use crate::key::{self, Digest};
use crate::user::Username;

/// One row of a store of Prosody's.
pub struct Item {
    /// The host.
    pub host: String,
    /// The user; empty for what belongs to the host.
    pub user: String,
    /// `invite_api_keys` or `invite_token`.
    pub store: String,
    /// The id of the key, or the token.
    pub key: String,
    /// The value.
    pub value: Json,
    /// Where it was found, for messages.
    pub place: String,
}

/// What came of an import.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Keys that are new here.
    pub keys: usize,
    /// Invites that are new here.
    pub invites: usize,
    /// Keys and invites that were here already, and invites that have expired.
    pub skipped: usize,
}

/// Reads the two stores from an SQLite database of Prosody's, all hosts. It may be the very one that we are to keep all in,
/// but no other of ours: our own keys would not come along.
pub fn read_sqlite(path: &Path, db: &Path) -> Result<Vec<Item>> {
    let read = || -> Result<Vec<Item>> {
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let is_db = path.canonicalize().is_ok_and(|path| db.canonicalize().is_ok_and(|db| path == db));
        if !is_db && conn.table_exists(None, "invited_meta")? {
            return Err(Error::refused(
                "it is a database of invited's own (`invited restore` puts a backup in its place)",
            ));
        }
        if !conn.table_exists(None, "prosody")? {
            return Err(Error::not_found(
                "it has no table 'prosody' (give the file that Prosody's option `sql` names)",
            ));
        }
        let mut query = conn.prepare(
            r#"SELECT "host", "user", "store", "key", "type", "value", rowid FROM "prosody"
                WHERE "store" IN ('invite_api_keys', 'invite_token') AND "key" <> '' ORDER BY "user" <> '', rowid"#,
        )?;
        let mut rows = query.query([])?;
        let mut items = Vec::new();
        while let Some(row) = rows.next()? {
            let (kind, text): (String, String) = (row.get(4)?, row.get(5)?);
            let number: i64 = row.get(6)?;
            let place = format!("row {number}");
            let value = super::prosody::deserialize(&kind, &text)
                .ok_or_else(|| Error::internal(format!("{place}: the value is not of the type {kind}")))?;
            items.push(Item {
                host: row.get(0)?,
                user: row.get(1)?,
                store: row.get(2)?,
                key: row.get(3)?,
                value,
                place,
            });
        }
        Ok(items)
    };
    read().map_err(|error| {
        // The way out for a database of ours is another one.
        let error = match error.kind {
            ErrorKind::Io => Error::new(ErrorKind::Io, "it is damaged (copy it anew while Prosody is stopped)"),
            _ => error,
        };
        error.context(format_args!("cannot import {}", path.display()))
    })
}

impl Store {
    /// Brings items in: keys with the digests of their secrets, so that bookmarks go on working, and pending invites.
    pub fn import(&mut self, items: &[Item], now: i64) -> Result<Imported> {
        let mut jobs = Vec::with_capacity(items.len());
        for item in items {
            if item.user.is_empty() && item.value["allow_registration"].as_bool() == Some(false) {
                // This goes with a contact invite's row of its user, which says it all.
                continue;
            }
            let job = Job::read(item, now).and_then(|job| self.for_server(job, now));
            jobs.push(job.map_err(|why| Error::internal(format!("{}: {why}", item.place)))?);
        }
        self.check_keys(&jobs)?;
        let mut imported = Imported::default();
        self.in_steps(&jobs, |tx, job| tx.import(job, &mut imported))?;
        Ok(imported)
    }

    /// The same job where ejabberd reads the file: an invite goes into its table.
    fn for_server<'a>(&self, job: Job<'a>, now: i64) -> std::result::Result<Job<'a>, String> {
        let Job::Invite { host, user, token, value, .. } = &job else { return Ok(job) };
        let server = self.setting(host, "server").map_err(|error| error.to_string())?;
        if Server::from_setting(server.as_deref()) == Server::Prosody {
            return Ok(job);
        }
        let contact = super::prosody::contact(host, user, value);
        let raw = if user.is_empty() { value } else { &contact };
        let invite = InviteRow::of_prosody(host, token, raw, now).ok_or("the invite is no JSON object")?;
        if !invite.roles.is_empty() || !invite.groups.is_empty() {
            return Err(format!(
                "the invite '{}' gives roles or groups, which ejabberd does not have",
                token.escape_debug()
            ));
        }
        let username =
            invite.username.as_deref().map(Username::parse).transpose().map_err(|error| error.to_string())?;
        let wish = Wish { kind: invite.kind, username, note: invite.note, ..Wish::account() };
        let (token, source) = ((*token).to_owned(), invite.source);
        let (created_at, expires_at) = (invite.created_at, invite.expires_at);
        Ok(Job::Ejabberd(Box::new(Invite { token, host: host.clone(), wish, source, created_at, expires_at })))
    }

    /// Fails if one id would be that of two keys.
    fn check_keys(&self, jobs: &[Job]) -> Result<()> {
        let mut seen: HashMap<&str, (&Host, &Digest)> = HashMap::new();
        for job in jobs {
            let Job::Key { host, id, digest, .. } = job else { continue };
            let is_other = |(its_host, its_digest): (&Host, &Digest)| its_host != host || !its_digest.matches(digest);
            let found = find_key(&self.conn, host, id, digest)?;
            if found == Found::Other || seen.insert(id, (host, digest)).is_some_and(is_other) {
                return Err(Error::refused(format!(
                    "another key has the id '{}' already; nothing was imported (`invited delete` it first)",
                    id.escape_debug()
                )));
            }
        }
        Ok(())
    }
}

/// What is there under the id of a key.
#[derive(PartialEq)]
enum Found {
    Nothing,
    /// The very same key.
    Same,
    Other,
}

fn find_key(conn: &Connection, host: &Host, id: &str, digest: &Digest) -> Result<Found> {
    let mut query = conn.prepare_cached("SELECT digest, host FROM invited_key WHERE id = ?1")?;
    let found = query.query_row([id], |row| Ok((Digest::from_bytes(row.get(0)?), row.get::<_, String>(1)?)));
    Ok(match found.optional()? {
        None => Found::Nothing,
        Some((earlier, its_host)) if earlier.matches(digest) && its_host == host.name() => Found::Same,
        Some(_) => Found::Other,
    })
}

enum Job<'a> {
    Key { host: Host, id: &'a str, digest: Digest, name: Option<String>, created_at: i64 },
    Invite { host: Host, user: &'a str, token: &'a str, kind: &'static str, value: String },
    Ejabberd(Box<Invite>),
    Expired,
}

impl Job<'_> {
    fn read(item: &Item, now: i64) -> std::result::Result<Job<'_>, String> {
        let host = Host::parse(&item.host).map_err(|error| error.to_string())?;
        let seconds = |value: &Json| value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64));
        if item.store == "invite_api_keys" {
            let secret = item.value["token"].as_str().filter(|secret| !secret.is_empty());
            let secret = secret.ok_or_else(|| format!("the key '{}' has no secret", item.key.escape_debug()))?;
            if item.key.contains(['/', '\t', '\n']) {
                return Err(format!("'{}' can't be the id of a key", item.key.escape_debug()));
            }
            // A name that would spoil the list comes without what would spoil it.
            let name = item.value["name"].as_str().map(|name| name.replace(key::is_control, " "));
            let name = name.filter(|name| !name.is_empty());
            let created_at = seconds(&item.value["created_at"]).unwrap_or(now);
            return Ok(Job::Key { host, id: &item.key, digest: Digest::of(secret), name, created_at });
        }
        let (kind, expires, value) = if item.user.is_empty() {
            let expires = seconds(&item.value["expires"]);
            let expires = expires.ok_or_else(|| format!("the invite '{}' does not expire", item.key.escape_debug()))?;
            ("json", expires, item.value.to_string())
        } else {
            let expires = seconds(&item.value);
            let expires = expires.ok_or_else(|| format!("the invite '{}' is no number", item.key.escape_debug()))?;
            ("number", expires, expires.to_string())
        };
        if expires < now {
            return Ok(Job::Expired);
        }
        Ok(Job::Invite { host, user: &item.user, token: &item.key, kind, value })
    }
}

impl Tx<'_> {
    fn import(&self, job: &Job, imported: &mut Imported) -> Result<()> {
        match job {
            Job::Expired => imported.skipped += 1,
            Job::Key { host, id, digest, name, created_at } => match find_key(self.conn, host, id, digest)? {
                Found::Nothing => {
                    let limits = super::KeyLimits { expires_at: None, allow: Allow::default_words(), per_day: None };
                    self.add_key(host, id, digest, name.as_deref(), &limits, *created_at)?;
                    imported.keys += 1;
                }
                Found::Same => imported.skipped += 1,
                Found::Other => {
                    return Err(Error::refused(format!(
                        "another key got the id '{}' just now (`invited delete` it, and import again)",
                        id.escape_debug()
                    )));
                }
            },
            Job::Ejabberd(invite) => {
                let mut known = self.conn.prepare_cached("SELECT 1 FROM invited_invite WHERE token = ?1")?;
                if known.exists([&invite.token])? {
                    // The second row of an invite that makes an account and a contact has been counted.
                    imported.skipped += usize::from(invite.wish.kind != Kind::Contact);
                } else {
                    self.add_invite(invite, &ServerRows::Ejabberd)?;
                    imported.invites += 1;
                }
            }
            Job::Invite { host, user, token, kind, value } => {
                let mut query = self.conn.prepare_cached("SELECT kind FROM invited_invite WHERE token = ?1")?;
                let known: Option<String> = query.query_row([token], |row| row.get(0)).optional()?;
                let mut insert = self.conn.prepare_cached(
                    r#"INSERT OR IGNORE INTO "prosody" ("host", "user", "store", "key", "type", "value")
                       SELECT ?1, ?2, 'invite_token', ?3, ?4, ?5
                        WHERE NOT EXISTS (SELECT 1 FROM invited_invite WHERE token = ?3 AND state <> 'pending')"#,
                )?;
                // The trigger on Prosody's table does the rest, as for invites that Prosody itself makes there.
                insert.execute(params![host.name(), user, token, kind, value])?;
                match known.as_deref() {
                    None => imported.invites += 1,
                    Some(kind) if user.is_empty() || kind == "contact" => imported.skipped += 1,
                    // The second row of an invite that has been counted.
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }
}
