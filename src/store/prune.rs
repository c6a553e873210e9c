//! Invites whose time has come: what has expired goes from the server's tables, what is long over from ours, and what a
//! deleted key made is taken back.
//!
//! In steps, so that the write lock is never held for long: the XMPP server does not wait for it.

use rusqlite::{Row, params};

use super::invite::State;
use super::steps::STEP;
use super::{Store, Tx, ejabberd};
use crate::error::Result;
use crate::host::Host;

/// How long an invite is remembered after its end, in seconds: a year.
const HISTORY_SECS: i64 = 365 * 86_400;

/// How long ejabberd keeps a used invite, in seconds. With one that makes an account and a contact, the app of the new user may
/// still ask for the latter.
const USED_SECS: i64 = 60;
const CONTACT_SECS: i64 = 3_600;

/// An invite whose time has come.
struct Due {
    number: i64,
    token: String,
    /// When it expired or ended, in Unix seconds.
    at: i64,
}

impl Due {
    fn read(row: &Row) -> rusqlite::Result<Due> {
        Ok(Due { number: row.get(0)?, token: row.get(1)?, at: row.get(2)? })
    }
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Invites that had expired, and went from the server's table.
    pub expired: usize,
    /// Invites that ended more than a year ago, and went from ours.
    pub forgotten: usize,
}

impl Store {
    /// Deletes used invites from ejabberd's table: it never does so itself, and while they are there it refuses the invites that
    /// their users make.
    pub fn clear_ejabberd(&mut self, now: i64) -> Result<()> {
        self.step_through(|store, _| store.used_in_ejabberd(now), |tx, token| tx.delete_used_in_ejabberd(token))?;
        Ok(())
    }

    fn used_in_ejabberd(&self, now: i64) -> Result<Vec<String>> {
        if !ejabberd::has_invites(&self.conn)? {
            return Ok(Vec::new());
        }
        let mut query = self.conn.prepare_cached(
            "SELECT t.token FROM invite_token AS t JOIN invited_invite AS i ON i.token = t.token
              WHERE t.invitee > '' AND i.state <> 'pending'
                AND i.ended_at < ?1 - iif(i.kind = 'account-and-contact', ?2, ?3) LIMIT ?4",
        )?;
        let rows = query.query_map(params![now, CONTACT_SECS, USED_SECS, STEP as i64], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Reads what the XMPP server has written since the last time, so that it is listed and pruned like our own.
    pub fn catch_up(&mut self) -> Result<()> {
        self.step_through(|store, _| store.unread(STEP), |tx, invite| tx.keep_read(invite))?;
        Ok(())
    }

    /// Prunes one host, or all.
    pub fn prune(&mut self, host: Option<&Host>, now: i64) -> Result<Pruned> {
        self.catch_up()?;
        let expired = self.step_through(
            |store, last| store.overdue(host, last, now),
            |tx, invite| tx.end(&invite.token, State::Expired, now),
        )?;
        let forgotten = self.forget_ended(host, now - HISTORY_SECS)?;
        self.clear_ejabberd(now)?;
        self.step_through(
            |store, _| store.old_requests(now),
            |tx, (source, name)| tx.forget_request(source, name, now),
        )?;
        self.write(|tx| tx.erase_left_behind(now))?;
        Ok(Pruned { expired, forgotten })
    }

    /// Deletes the invites that ended before a time from our history, and returns their number. Their uses go first, in steps
    /// of their own: one invite can have very many.
    fn forget_ended(&mut self, host: Option<&Host>, before: i64) -> Result<usize> {
        let mut count = 0;
        loop {
            let ended = self.ended_before(host, before)?;
            if ended.is_empty() {
                return Ok(count);
            }
            self.step_through(|store, _| store.uses_of(&ended), |tx, number| tx.forget_use(*number))?;
            self.in_steps(&ended, |tx, invite| tx.forget(invite.number, &invite.token))?;
            count += ended.len();
        }
    }

    /// The numbers of some uses of these invites.
    fn uses_of(&self, invites: &[Due]) -> Result<Vec<i64>> {
        let mut query = self.conn.prepare_cached("SELECT number FROM invited_use WHERE token = ?1 LIMIT ?2")?;
        let mut numbers = Vec::new();
        for invite in invites {
            let room = STEP - numbers.len();
            if room == 0 {
                break;
            }
            let rows = query.query_map(params![invite.token, room as i64], |row| row.get(0))?;
            numbers.extend(rows.collect::<rusqlite::Result<Vec<i64>>>()?);
        }
        Ok(numbers)
    }

    /// Some invites that have expired without being marked so, of one host or of all, after this one.
    fn overdue(&self, host: Option<&Host>, after: Option<&Due>, now: i64) -> Result<Vec<Due>> {
        let mut query = self.conn.prepare_cached(
            "SELECT number, token, expires_at FROM invited_invite
              WHERE state = 'pending' AND kind NOT IN ('unread', 'unreadable') AND expires_at < ?1 AND (expires_at, number) > (?2, ?3)
                AND (?4 IS NULL OR host = ?4) ORDER BY expires_at, number LIMIT ?5",
        )?;
        let (at, number) = after.map_or((i64::MIN, 0), |invite| (invite.at, invite.number));
        let rows = query.query_map(params![now, at, number, host.map(Host::name), STEP as i64], Due::read)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Some invites that ended before a time, of one host or of all.
    fn ended_before(&self, host: Option<&Host>, before: i64) -> Result<Vec<Due>> {
        let mut query = self.conn.prepare_cached(
            "SELECT number, token, ended_at FROM invited_invite
              WHERE state <> 'pending' AND ended_at < ?1 AND (?2 IS NULL OR host = ?2) ORDER BY ended_at LIMIT ?3",
        )?;
        let rows = query.query_map(params![before, host.map(Host::name), STEP as i64], Due::read)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Some invites of a source that nobody has used, after this one.
    fn unused(&self, host: &Host, source: &str, after: Option<&Due>, now: i64) -> Result<Vec<Due>> {
        let mut query = self.conn.prepare_cached(
            "SELECT number, token, expires_at FROM invited_invite
              WHERE source = ?1 AND state = 'pending' AND number > ?2 AND host = ?3 AND uses_left = uses AND expires_at >= ?4
              ORDER BY number LIMIT ?5",
        )?;
        let after = after.map_or(0, |invite| invite.number);
        let rows = query.query_map(params![source, after, host.name(), now, STEP as i64], Due::read)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether [`Store::revoke_unused`] would find any.
    pub fn has_unused(&self, host: &Host, source: &str, now: i64) -> Result<bool> {
        Ok(!self.unused(host, source, None, now)?.is_empty())
    }

    /// Takes back what a source made and nobody has used.
    pub fn revoke_unused(&mut self, host: &Host, source: &str, now: i64) -> Result<()> {
        self.step_through(
            |store, last| store.unused(host, source, last, now),
            |tx, invite| tx.end_unused(&invite.token, now),
        )?;
        Ok(())
    }
}

impl Tx<'_> {
    fn forget_use(&self, number: i64) -> Result<()> {
        self.conn.prepare_cached("DELETE FROM invited_use WHERE number = ?1")?.execute([number])?;
        Ok(())
    }

    fn delete_used_in_ejabberd(&self, token: &str) -> Result<()> {
        ejabberd::delete(self.conn, token)
    }

    /// Takes an invite back unless somebody has used it meanwhile.
    fn end_unused(&self, token: &str, now: i64) -> Result<()> {
        let mut unused =
            self.conn.prepare_cached("SELECT 1 FROM invited_invite WHERE token = ?1 AND uses_left = uses")?;
        if unused.exists([token])? { self.end(token, State::Revoked, now) } else { Ok(()) }
    }
}
