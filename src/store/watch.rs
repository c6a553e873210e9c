//! What monitoring asks of the file: whether it can be written, how large it is, and how many invites there ever were.

use std::fs;
use std::path::Path;

use super::{Store, Tx};
use crate::error::Result;

/// How many invites of a host there ever were. None of the counts goes down, even when invites are forgotten.
pub struct Tally {
    /// The XMPP host.
    pub host: String,
    /// All that were made.
    pub made: i64,
    /// Used as often as they could be.
    pub used: i64,
    /// Not used in time, and pruned since.
    pub expired: i64,
    /// Taken back.
    pub revoked: i64,
}

impl Tally {
    /// Those that have not ended.
    pub fn pending(&self) -> i64 {
        self.made - self.used - self.expired - self.revoked
    }
}

impl Store {
    /// The tally of each host, by name. Costs the same however many invites there are.
    pub fn tallies(&self) -> Result<Vec<Tally>> {
        let mut query =
            self.conn.prepare_cached("SELECT host, made, used, expired, revoked FROM invited_tally ORDER BY host")?;
        let rows = query.query_map([], |row| {
            Ok(Tally {
                host: row.get(0)?,
                made: row.get(1)?,
                used: row.get(2)?,
                expired: row.get(3)?,
                revoked: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The bytes of the database and of its write-ahead log; 0 for what is not there.
    pub fn sizes(&self) -> (u64, u64) {
        let size = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
        (size(self.place.path()), size(self.place.wal_path()))
    }
}

impl Tx<'_> {
    /// Changes a row that nobody reads: only a write tells whether the next one would succeed. It takes more pages than an
    /// invite, or there could be room for this and not for that; and all of it is new each time, since SQLite does not write
    /// a page that does not change.
    pub fn probe(&self) -> Result<()> {
        let mut write = self.conn.prepare_cached(
            "INSERT OR REPLACE INTO invited_meta (name, value) VALUES ('probe', hex(randomblob(16384)))",
        )?;
        write.execute([])?;
        Ok(())
    }
}
