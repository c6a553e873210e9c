//! The rows of `invited_key`.

use rusqlite::{OptionalExtension as _, params};

use super::{Store, Tx};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::invite::{Allow, Invite};
use crate::key::Digest;

/// An API key as it is listed.
#[derive(Debug)]
pub struct KeyRow {
    /// The public half.
    pub id: String,
    /// What the admin calls it.
    pub name: Option<String>,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds; none: for ever.
    pub expires_at: Option<i64>,
    /// What it may make.
    pub allow: String,
    /// Invites in any 24 hours; none: no limit.
    pub per_day: Option<u32>,
    /// Invites that it has made, but for those that are forgotten.
    pub invites: i64,
    /// When it made the last one, in Unix seconds.
    pub last_used_at: Option<i64>,
}

/// What a request that brings a key is checked against.
pub struct KeyCheck {
    /// The host for which the key makes invites.
    pub host: String,
    /// What is kept of its secret.
    pub digest: Digest,
    /// Unix seconds; none: for ever.
    pub expires_at: Option<i64>,
    /// What it may make.
    pub allow: Allow,
    /// Invites in any 24 hours; none: no limit.
    pub per_day: Option<u32>,
}

/// A key on its way into the store.
pub struct KeyLimits {
    /// Unix seconds; none: for ever.
    pub expires_at: Option<i64>,
    /// What it may make.
    pub allow: Allow,
    /// Invites in any 24 hours; none: no limit.
    pub per_day: Option<u32>,
}

impl Store {
    /// What a request with this key id is checked against; none if there is no such key.
    pub fn key_check(&self, id: &str) -> Result<Option<KeyCheck>> {
        let mut query = self
            .conn
            .prepare_cached("SELECT host, digest, expires_at, allow, per_day FROM invited_key WHERE id = ?1")?;
        let row = query.query_row([id], |row| {
            let digest = Digest::from_bytes(row.get(1)?);
            Ok((row.get(0)?, digest, row.get(2)?, row.get::<_, String>(3)?, row.get(4)?))
        });
        let Some((host, digest, expires_at, allow, per_day)) = row.optional()? else {
            return Ok(None);
        };
        Ok(Some(KeyCheck { host, digest, expires_at, allow: Allow::parse(&allow)?, per_day }))
    }

    /// The keys of a host, oldest first.
    pub fn keys(&self, host: &Host) -> Result<Vec<KeyRow>> {
        let mut query = self.conn.prepare(
            // All of the inner part is in an index.
            "SELECT id, name, created_at, expires_at, allow, per_day, invites,
                    (SELECT created_at FROM invited_invite WHERE number = newest)
               FROM (SELECT k.*, count(i.number) AS invites, max(i.number) AS newest
                       FROM invited_key AS k LEFT JOIN invited_invite AS i ON i.source = 'api/token/' || k.id
                      WHERE k.host = ?1 GROUP BY k.number) ORDER BY number",
        )?;
        let rows = query.query_map([host.name()], |row| {
            Ok(KeyRow {
                id: row.get(0)?,
                name: row.get(1)?,
                created_at: row.get(2)?,
                expires_at: row.get(3)?,
                allow: row.get(4)?,
                per_day: row.get(5)?,
                invites: row.get(6)?,
                last_used_at: row.get(7)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

impl Tx<'_> {
    /// Adds a key.
    pub fn add_key(
        &self,
        host: &Host,
        id: &str,
        digest: &Digest,
        name: Option<&str>,
        limits: &KeyLimits,
        now: i64,
    ) -> Result<()> {
        self.conn.execute(
            "INSERT INTO invited_key (id, host, digest, name, created_at, expires_at, allow, per_day)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                id,
                host.name(),
                digest.as_bytes(),
                name,
                now,
                limits.expires_at,
                limits.allow.text(),
                limits.per_day
            ],
        )?;
        Ok(())
    }

    /// Removes a key of this host; it is of no use from the next request on.
    pub fn delete_key(&self, host: &Host, id: &str) -> Result<()> {
        let deleted = self.conn.execute("DELETE FROM invited_key WHERE id = ?1 AND host = ?2", [id, host.name()])?;
        if deleted == 0 {
            return Err(Error::not_found(format!(
                "{host} has no key '{}' (`invited list {host}` shows those that there are)",
                id.escape_debug()
            )));
        }
        Ok(())
    }

    /// Whether a key is still there, now that nobody can delete it until this transaction ends.
    pub fn has_key(&self, id: &str) -> Result<bool> {
        let mut query = self.conn.prepare_cached("SELECT 1 FROM invited_key WHERE id = ?1")?;
        Ok(query.exists([id])?)
    }

    /// In how many seconds a source may make its next invite, given its limit in any 24 hours; none: at once.
    pub fn wait_secs(&self, source: &str, per_day: u32, now: i64) -> Result<Option<i64>> {
        // The invite that is as many back as there may be: unless it is a day old, the limit is reached. One of the far future
        // was made before the clock was set right.
        let mut query = self.conn.prepare_cached(
            "SELECT created_at FROM invited_invite
              WHERE source = ?1 AND nth <= 1 - ?2 +
                    (SELECT max(nth) FROM invited_invite WHERE source = ?1 AND nth IS NOT NULL)
              ORDER BY nth DESC LIMIT 1",
        )?;
        let created_at: Option<i64> = query.query_row(params![source, per_day], |row| row.get(0)).optional()?;
        let created_at = created_at.filter(|created_at| *created_at <= now.saturating_add(86_400));
        let wait = created_at.map_or(0, |created_at| created_at.saturating_add(86_400).saturating_sub(now));
        Ok((wait > 0).then(|| wait.min(86_400)))
    }

    /// Counts a new invite for [`Tx::wait_secs`].
    pub fn count_invite(&self, invite: &Invite) -> Result<()> {
        let mut count = self.conn.prepare_cached(
            "UPDATE invited_invite
                SET nth = 1 + coalesce((SELECT max(nth) FROM invited_invite WHERE source = ?1 AND nth IS NOT NULL), 0)
              WHERE token = ?2",
        )?;
        count.execute([&invite.source, &invite.token])?;
        Ok(())
    }
}
