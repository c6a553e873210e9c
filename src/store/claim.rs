//! Registrations on our own page while they are under way: who may go on to the XMPP server, and what came of it.
//!
//! An invite is used when the XMPP server uses it. But of those who come with one token at the same moment, as many as it
//! has uses left go on and no more; and afterwards it is known who they were, which Prosody does not tell.

use rusqlite::{OptionalExtension as _, params};
use rustix::time::{ClockId, clock_gettime};

use super::{Store, Tx, prosody};
use crate::error::Result;
use crate::invite::Kind;
use crate::store::{InviteRow, State};
use crate::user::Username;

/// A registration takes less than half of this, in nanoseconds. What is older was left behind by a process that was killed.
const CLAIM_NANOS: i64 = 30_000_000_000;

/// The kernel's monotonic clock, in nanoseconds: the same in all processes, and nobody can set it. A registration keeps its
/// own deadline by it, so that none outlasts its claim, not even where the machine sleeps in between. It begins anew with
/// each boot: a claim of an earlier one is of the future, or gone half a minute later at most.
fn monotonic() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// One registration that may go on.
#[derive(Clone, Debug)]
pub struct Claim {
    number: i64,
    token: String,
    host: String,
    /// Whose row the server has beside that of the host.
    contact: Option<String>,
    username: String,
    /// With the number, this is the identity of a claim: a number comes again once its row has gone.
    claimed_at: i64,
    /// The last use of the invite that was counted before.
    last_use: i64,
}

/// How an attempt to begin a registration ended.
pub enum Claimed {
    /// It may go on; [`Tx::settle`] ends it.
    Done(Claim),
    /// As many as may are under way.
    InUse,
    /// The name is kept for the guest of another invite.
    NameReserved,
    /// The invite has ended.
    Ended,
}

/// How a registration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The account is there, or the password is set.
    Done,
    /// It is not.
    Refused,
    /// The answer was lost: if the server has counted a use, it was this one.
    Unknown,
}

impl Store {
    /// Whether [`Tx::claim`] would end otherwise than with [`Claimed::InUse`].
    pub fn may_claim(&self, token: &str) -> Result<bool> {
        let mut query = self.conn.prepare_cached(
            "SELECT state <> 'pending' OR uses_left > (SELECT count(*) FROM invited_claim WHERE token = ?1)
               FROM invited_invite WHERE token = ?1",
        )?;
        Ok(query.query_row([token], |row| row.get(0)).optional()?.unwrap_or(true))
    }
}

impl Tx<'_> {
    /// Begins a registration with an invite under this name, which is the one of the invite where that has one.
    pub fn claim(&self, invite: &InviteRow, username: &Username, now: i64) -> Result<Claimed> {
        self.keep_read(invite)?;
        let left = self.conn.prepare_cached(
            "SELECT uses_left FROM invited_invite WHERE token = ?1 AND state = 'pending' AND (expires_at >= ?2 OR kind = 'unread')",
        )?.query_row(params![invite.token, now], |row| row.get::<_, i64>(0)).optional()?;
        let Some(left) = left.filter(|_| invite.state(now) == State::Pending) else {
            return Ok(Claimed::Ended);
        };
        let claimed_at = monotonic();
        self.conn
            .prepare_cached("DELETE FROM invited_claim WHERE claimed_at NOT BETWEEN ?1 AND ?2")?
            .execute([claimed_at - CLAIM_NANOS, claimed_at])?;
        let under_way: i64 = self
            .conn
            .prepare_cached("SELECT count(*) FROM invited_claim WHERE token = ?1")?
            .query_row([&invite.token], |row| row.get(0))?;
        if under_way >= left {
            return Ok(Claimed::InUse);
        }
        // Of two invites for one name, the first that comes gets it.
        if invite.kind.makes_account() && invite.fixed_name().is_none() {
            self.read_some()?;
            let mut others = self.conn.prepare_cached(
                "SELECT 1 FROM invited_invite WHERE host = ?1 AND username = ?2 AND kind = 'account' AND state = 'pending'
                    AND username IS NOT NULL AND expires_at >= ?3 AND token <> ?4",
            )?;
            if others.exists(params![invite.host, username.as_str(), now, invite.token])? {
                return Ok(Claimed::NameReserved);
            }
        }
        let mut insert = self.conn.prepare_cached("INSERT INTO invited_claim (token, claimed_at) VALUES (?1, ?2)")?;
        insert.execute(params![invite.token, claimed_at])?;
        Ok(Claimed::Done(Claim {
            number: self.conn.last_insert_rowid(),
            last_use: self.last_use(&invite.token)?,
            token: invite.token.clone(),
            host: invite.host.clone(),
            contact: (invite.kind == Kind::AccountAndContact).then(|| invite.username.clone()).flatten(),
            username: username.as_str().to_owned(),
            claimed_at,
        }))
    }

    /// Ends a registration. Where the server has taken it, the use of the invite gets the name of the user.
    pub fn settle(&self, claim: &Claim, outcome: Outcome) -> Result<()> {
        let is_named = outcome != Outcome::Refused && self.name_use(claim)?;
        if outcome == Outcome::Unknown && !is_named {
            // The server may still be at it: until the claim is over, nobody else begins.
            return Ok(());
        }
        let mut delete = self.conn.prepare_cached("DELETE FROM invited_claim WHERE number = ?1 AND claimed_at = ?2")?;
        delete.execute([claim.number, claim.claimed_at])?;
        if outcome == Outcome::Refused || is_named {
            return Ok(());
        }
        // Prosody has made the account and could not use the invite up, as happens where it does not wait for locks.
        prosody::delete(self.conn, &claim.host, claim.contact.as_deref(), &claim.token)?;
        self.name_use(claim)?;
        Ok(())
    }

    /// Writes the name into the use that the server has counted; false if there is none. ejabberd's has it already.
    fn name_use(&self, claim: &Claim) -> Result<bool> {
        let mut named =
            self.conn.prepare_cached("SELECT 1 FROM invited_use WHERE token = ?1 AND username = ?2 AND number > ?3")?;
        if named.exists(params![claim.token, claim.username, claim.last_use])? {
            return Ok(true);
        }
        let mut name = self.conn.prepare_cached(
            "UPDATE invited_use SET username = ?2 WHERE number =
               (SELECT min(number) FROM invited_use WHERE token = ?1 AND username IS NULL AND number > ?3)",
        )?;
        Ok(name.execute(params![claim.token, claim.username, claim.last_use])? > 0)
    }

    /// The number of the last use of an invite, 0 if there is none. Its uses are there as long as it is, so that those to come
    /// have larger ones.
    fn last_use(&self, token: &str) -> Result<i64> {
        let mut query =
            self.conn.prepare_cached("SELECT coalesce(max(number), 0) FROM invited_use WHERE token = ?1")?;
        Ok(query.query_row([token], |row| row.get(0))?)
    }
}
