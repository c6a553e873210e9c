//! The connections on which requests read.
//!
//! A few for all workers: a read is short, and each connection takes memory. Knows nothing of what is read, and never waits
//! for the writer.

use std::ops::Deref;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::Store;
use super::place::Place;
use crate::error::Result;

/// Connections for reading, lent to whoever reads. Nobody keeps one while waiting for anything else.
pub struct Readers {
    place: Place,
    free: Mutex<Vec<Store>>,
    freed: Condvar,
}

impl Readers {
    /// Opens so many on the file that this one has open. Each has a cache and the whole schema in memory.
    pub fn open(store: &Store, count: usize) -> Result<Readers> {
        let free = (0..count).map(|_| store.another()).collect::<Result<_>>()?;
        Ok(Readers { place: store.place.clone(), free: Mutex::new(free), freed: Condvar::new() })
    }

    /// One of them, as soon as one is free.
    pub fn take(&self) -> Reader<'_> {
        let mut free = self.lock();
        loop {
            if let Some(store) = free.pop() {
                return Reader { readers: self, store: Some(store) };
            }
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Fails unless the file at the place of the database is still the one that is open.
    pub fn check_place(&self) -> Result<()> {
        self.place.check()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Store>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that somebody reads on; goes back when it is dropped.
pub struct Reader<'a> {
    readers: &'a Readers,
    store: Option<Store>,
}

impl Deref for Reader<'_> {
    type Target = Store;

    fn deref(&self) -> &Store {
        // It is there until this is dropped.
        self.store.as_ref().unwrap_or_else(|| unreachable!())
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.readers.lock().extend(self.store.take());
        self.readers.freed.notify_one();
    }
}
