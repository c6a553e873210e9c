//! Housekeeping: what has expired goes from the server's tables, what is long over from ours.
//!
//! In small transactions, so that the write lock is never held for long: the XMPP server does not wait for it.

use super::invite::State;
use super::{Store, Tx};
use crate::error::Result;
use crate::host::Host;

/// How long an invite is remembered after its end, in seconds: a year.
const HISTORY_SECS: i64 = 365 * 86_400;

/// Invites of one transaction.
const STEP: usize = 32;

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Invites that had expired, and went from the server's table.
    pub expired: usize,
    /// Invites that ended more than a year ago, and went from ours.
    pub forgotten: usize,
}

impl Store {
    /// Reads what the XMPP server has written since the last time, so that it is listed and pruned like our own.
    pub fn catch_up(&mut self) -> Result<()> {
        loop {
            let unread = self.unread(STEP)?;
            if unread.is_empty() {
                return Ok(());
            }
            self.write(|tx| unread.iter().try_for_each(|invite| tx.keep_read(invite)))?;
        }
    }

    /// Prunes one host, or all.
    pub fn prune(&mut self, host: Option<&Host>, now: i64) -> Result<Pruned> {
        self.catch_up()?;
        let expired = self.step_through(
            |store, after| store.overdue(host, after, STEP, now),
            |tx, _, token| tx.end(token, State::Expired, now),
        )?;
        let forgotten = self.step_through(
            |store, after| store.ended_before(after, STEP, now - HISTORY_SECS),
            |tx, number, token| tx.forget(number, token),
        )?;
        self.write(|tx| {
            tx.forget_requests(now)?;
            tx.erase_left_behind(now)
        })?;
        Ok(Pruned { expired, forgotten })
    }

    fn step_through(
        &mut self,
        find: impl Fn(&Store, i64) -> Result<Vec<(i64, String)>>,
        job: impl Fn(&Tx, i64, &str) -> Result<()>,
    ) -> Result<usize> {
        let (mut after, mut count) = (0, 0);
        loop {
            let found = find(self, after)?;
            let Some((last, _)) = found.last() else {
                return Ok(count);
            };
            after = *last;
            count += found.len();
            self.write(|tx| found.iter().try_for_each(|(number, token)| job(tx, *number, token)))?;
        }
    }
}
