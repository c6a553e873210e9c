//! Work that grows with the data: in small transactions, with pauses in which others get the write lock.
//!
//! The XMPP server may not wait for the lock at all, and requests should not notice. What is to be done is found outside of
//! any transaction, so that each job looks again whether it still applies. A failure, or a kill, leaves the steps before
//! it done: the same work again goes on from there.

use std::thread;
use std::time::{Duration, Instant};

use super::{Store, Tx};
use crate::error::Result;

/// Rows that are found at a time, and the most that one transaction changes.
pub(super) const STEP: usize = 128;

/// A transaction begins no further job after this time: on a slow disk, a few rows can take as long as many elsewhere.
const HOLD: Duration = Duration::from_millis(1);

/// The pause after each transaction: longer than the server's writer waits until it asks for the lock once more.
const PAUSE: Duration = Duration::from_millis(2);

impl Store {
    /// Does a job for each item, in as many transactions as it takes, and syncs once.
    pub(super) fn in_steps<T>(&mut self, items: &[T], mut job: impl FnMut(&Tx, &T) -> Result<()>) -> Result<()> {
        let mut rest = items;
        while !rest.is_empty() {
            let done = self.commit(|tx| {
                let start = Instant::now();
                let mut done = 0;
                for item in rest.iter().take(STEP) {
                    job(tx, item)?;
                    done += 1;
                    if start.elapsed() >= HOLD {
                        break;
                    }
                }
                Ok(done)
            })?;
            rest = &rest[done..];
            thread::sleep(PAUSE);
        }
        self.sync()
    }

    /// Does a job for all that `find` finds, some at a time; `find` is given the last item of the time before. Returns
    /// their number.
    pub(super) fn step_through<T>(
        &mut self,
        find: impl Fn(&Store, Option<&T>) -> Result<Vec<T>>,
        job: impl Fn(&Tx, &T) -> Result<()>,
    ) -> Result<usize> {
        let (mut last, mut count) = (None, 0);
        loop {
            let mut found = find(self, last.as_ref())?;
            count += found.len();
            if found.is_empty() {
                return Ok(count);
            }
            self.in_steps(&found, &job)?;
            last = found.pop();
        }
    }
}
