//! The rows of `invited_request`: what an `Idempotency-Key` made, for when the request comes again.

use rusqlite::{OptionalExtension as _, params};

use super::steps::STEP;
use super::{Store, Tx};
use crate::error::Result;
use crate::key::Digest;

/// How long the answer to a repeatable request is kept, in seconds: a day.
const REQUEST_SECS: i64 = 86_400;

impl Store {
    /// The names of some requests that can't come again, each with its source.
    pub(super) fn old_requests(&self, now: i64) -> Result<Vec<(String, String)>> {
        let mut query = self.conn.prepare_cached(
            "SELECT source, name FROM invited_request WHERE created_at <= ?1 ORDER BY created_at LIMIT ?2",
        )?;
        let rows = query.query_map([now - REQUEST_SECS, STEP as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

impl Tx<'_> {
    /// The invite that a request of this name made within the last day, and the digest of that request.
    pub fn earlier_request(&self, source: &str, name: &str, now: i64) -> Result<Option<(String, Digest)>> {
        let mut query = self.conn.prepare_cached(
            "SELECT token, digest FROM invited_request WHERE source = ?1 AND name = ?2 AND created_at > ?3",
        )?;
        let row = query.query_row(params![source, name, now - REQUEST_SECS], |row| {
            Ok((row.get(0)?, Digest::from_bytes(row.get(1)?)))
        });
        Ok(row.optional()?)
    }

    /// Keeps what a request made, for when it comes again.
    pub fn remember_request(&self, source: &str, name: &str, digest: &Digest, token: &str, now: i64) -> Result<()> {
        let mut insert = self.conn.prepare_cached(
            "INSERT OR REPLACE INTO invited_request (source, name, digest, token, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        insert.execute(params![source, name, digest.as_bytes(), token, now])?;
        Ok(())
    }

    /// Removes what is kept of a request that can't come again.
    pub(super) fn forget_request(&self, source: &str, name: &str, now: i64) -> Result<()> {
        let mut delete = self
            .conn
            .prepare_cached("DELETE FROM invited_request WHERE source = ?1 AND name = ?2 AND created_at <= ?3")?;
        delete.execute(params![source, name, now - REQUEST_SECS])?;
        Ok(())
    }
}
