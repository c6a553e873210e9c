//! What can be told of a file by looking: is it whole, is it ours and up to date, who has opened it, who holds it.
//!
//! For `doctor`, which makes an invite of its own and takes it back without a trace. Changes nothing else.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, params};

use super::invite::State;
use super::place::Place;
use super::{BUSY_TIMEOUT, MIGRATIONS, Store, Tx, ejabberd, prosody, version};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::invite::Server;

/// Who makes the invites that leave no trace.
pub const SOURCE: &str = "doctor";

/// Our triggers on the tables of each server.
const PROSODY_TRIGGERS: &[&str] = &["invited_prosody_inserted", "invited_prosody_deleted", "invited_prosody_told"];
const EJABBERD_TRIGGERS: &[&str] = &[
    "invited_ejabberd_inserted",
    "invited_ejabberd_other_name",
    "invited_ejabberd_used",
    "invited_ejabberd_expires",
    "invited_ejabberd_deleted",
];

/// How the version of the schema in a file compares with the one of this program.
#[derive(Debug, PartialEq, Eq)]
pub enum Schema {
    /// The file is none of ours yet.
    Missing,
    /// The next command brings it up to date.
    Old(usize),
    /// It is this one.
    Current(usize),
    /// A newer program has written it.
    New(usize),
}

impl Store {
    /// Opens a file that is there as it is, without bringing anything up to date.
    pub fn examine(path: &Path) -> Result<Store> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        conn.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY")?;
        // The log of a database is there once it has been read.
        let _ = conn.query_row("PRAGMA schema_version", [], |_| Ok(()));
        let place = Place::look_without_log(path);
        let place = place.map_err(|error| Error::unavailable(format!("cannot open {}: {error}", path.display())))?;
        Ok(Store { conn, place })
    }

    /// How SQLite keeps the file's transactions apart: `wal` in a file of ours.
    pub fn journal_mode(&self) -> Result<String> {
        Ok(self.conn.query_row("PRAGMA journal_mode", [], |row| row.get(0))?)
    }

    /// What SQLite finds to be damaged, at first sight; none if the file is whole.
    pub fn damage(&self) -> Result<Option<String>> {
        let first: std::result::Result<String, _> = self.conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
        match first {
            Ok(text) => Ok((text != "ok").then_some(text)),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => Ok(Some(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// The version of the schema.
    pub fn schema(&self) -> Result<Schema> {
        Ok(match version(&self.conn)? {
            0 => Schema::Missing,
            found if found < MIGRATIONS.len() => Schema::Old(found),
            found if found > MIGRATIONS.len() => Schema::New(found),
            found => Schema::Current(found),
        })
    }

    /// The triggers that ought to be on the server's tables and are not.
    pub fn missing_triggers(&self, server: Server) -> Result<Vec<&'static str>> {
        let mut query = self.conn.prepare("SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = ?1")?;
        let wanted = match server {
            Server::Prosody => PROSODY_TRIGGERS,
            Server::Ejabberd => EJABBERD_TRIGGERS,
        };
        let mut missing = Vec::new();
        for name in wanted {
            if !query.exists([name])? {
                missing.push(*name);
            }
        }
        Ok(missing)
    }

    /// Whether the write lock can be had within this time. It is given back at once.
    pub fn can_lock(&self, patience: Duration) -> Result<bool> {
        self.conn.busy_timeout(patience)?;
        let outcome = self.conn.execute_batch("BEGIN IMMEDIATE; ROLLBACK");
        self.conn.busy_timeout(BUSY_TIMEOUT)?;
        match outcome {
            Ok(()) => Ok(true),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether ejabberd itself has made tables in the file: that of its invites can be ours.
    pub fn has_ejabberd(&self) -> Result<bool> {
        ejabberd::is_its_own(&self.conn)
    }

    /// Whether ejabberd keeps its accounts in the file, and has none there.
    pub fn ejabberd_has_no_accounts(&self) -> Result<bool> {
        ejabberd::has_no_accounts(&self.conn)
    }

    /// How many hosts say that ejabberd reads this file, where the file can be of one host alone.
    pub fn ejabberd_hosts(&self) -> Result<i64> {
        if ejabberd::has_server_host(&self.conn)? {
            return Ok(1);
        }
        ejabberd::hosts(&self.conn)
    }

    /// What the lines in Prosody's configuration have written for an invite of [`SOURCE`] that was shown: their version.
    pub fn prosody_lines(&self, host: &Host, token: &str) -> Result<Option<i64>> {
        let mut query = self.conn.prepare(
            r#"SELECT CAST("value" AS INTEGER) FROM "prosody"
                WHERE "host" = ?1 AND "user" = '' AND "store" = 'invited_use' AND "key" = ?2"#,
        )?;
        Ok(query.query_row([host.name(), token], |row| row.get(0)).optional()?)
    }

    /// How many invites were made after this time.
    pub fn made_after(&self, seconds: i64) -> Result<i64> {
        let sql = "SELECT count(*) FROM invited_invite WHERE created_at > ?1";
        Ok(self.conn.query_row(sql, [seconds], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// Takes an invite of [`SOURCE`] back, and from our history too, whatever has become of it.
    pub fn erase(&self, host: &Host, token: &str, now: i64) -> Result<()> {
        self.end(token, State::Revoked, now)?;
        self.conn.execute("DELETE FROM invited_use WHERE token = ?1", [token])?;
        let sql = "DELETE FROM invited_invite WHERE token = ?1 AND source = ?2";
        self.conn.execute(sql, params![token, SOURCE])?;
        prosody::delete(self.conn, host.name(), None, token)?;
        prosody::delete_told(self.conn, host.name(), token)?;
        ejabberd::delete(self.conn, token)
    }

    /// Does so with those that a killed `doctor` left behind.
    pub fn erase_left_behind(&self, now: i64) -> Result<()> {
        let mut query =
            self.conn.prepare("SELECT token, host FROM invited_invite WHERE source = ?1 AND expires_at < ?2")?;
        let found = query.query_map(params![SOURCE, now], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let found: Vec<(String, String)> = found.collect::<rusqlite::Result<_>>()?;
        for (token, host) in found {
            let host = Host::parse(&host).map_err(|error| Error::internal(error.to_string()))?;
            self.erase(&host, &token, now)?;
        }
        Ok(())
    }
}
