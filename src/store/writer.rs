//! The one writer for all requests: a thread that owns a connection and commits in groups.
//!
//! Requests hand it a job and wait. It takes all jobs that have queued up, runs them in one short transaction, gives the
//! write lock back, syncs the log once, and answers all. So nothing is answered before it would survive a power cut, and
//! the more callers wait, the more of them share a sync. Knows nothing of what the jobs are for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use rusqlite::TransactionBehavior;

use super::{Store, Tx, sync_wal};
use crate::error::{Error, Kind, Result};
use crate::thread::spawn;

/// The stack of the two threads, in bytes: SQLite wants some.
const STACK: usize = 1024 * 1024;

/// The most jobs of one transaction, so that the write lock stays short.
const BATCH: usize = 128;

/// A log of this many pages (16 MiB) is copied back into the database. Each time that the log starts over, SQLite syncs
/// its head under the write lock, so that it should do so rarely.
const CHECKPOINT_PAGES: i32 = 4096;

/// A job as it is queued. It is given the transaction and whether others share it, or why there is none.
type Job = Box<dyn FnOnce(Result<(&Tx, bool)>) -> Reply + Send>;

/// How a job ended, and the way to tell its caller: the argument is whether the transaction was committed and synced.
struct Reply {
    failed: bool,
    tell: Box<dyn FnOnce(Result<()>) + Send>,
}

/// How far the copying of the log back into the database is; shared with the thread that does it.
const IDLE: u8 = 0;
const COPYING: u8 = 1;
const COPIED: u8 = 2;

/// A handle to the writer thread; clones share it. The thread ends when the last one has gone.
#[derive(Clone)]
pub struct Writer {
    queue: Sender<Job>,
    queued: Arc<AtomicUsize>,
}

impl Writer {
    /// Starts the thread on a connection of its own.
    pub fn start(mut store: Store) -> Result<Writer> {
        let (queue, jobs) = channel();
        let pages = Arc::new(AtomicI32::new(0));
        let seen = Arc::clone(&pages);
        // This replaces SQLite's own automatic checkpoint, which would make requests wait.
        store.conn.wal_hook(Some(move |_: &mut _, pages| {
            seen.store(pages, Ordering::Relaxed);
            Ok(())
        }))?;
        let checkpoint = start_checkpointer(store.another()?)?;
        spawn("writer", STACK, move || run(store, &jobs, &pages, &checkpoint))?;
        Ok(Writer { queue, queued: Arc::default() })
    }

    /// Runs a job within a write transaction and returns when what it wrote would survive a power cut.
    ///
    /// A job that fails leaves nothing behind and does not disturb the others of its transaction.
    pub fn write<T: Send + 'static>(&self, job: impl FnOnce(&Tx) -> Result<T> + Send + 'static) -> Result<T> {
        let gone = || Error::internal("the thread that writes has ended");
        let (reply, answer) = sync_channel(1);
        self.queued.fetch_add(1, Ordering::Relaxed);
        let sent = self.queue.send(Box::new(move |tx| run_job(tx, job, reply)));
        let answer = sent.ok().and_then(|()| answer.recv().ok());
        self.queued.fetch_sub(1, Ordering::Relaxed);
        answer.ok_or_else(gone)?
    }

    /// Jobs that have not ended.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }
}

/// Runs one job, under a savepoint if others share its transaction, and keeps its outcome until the whole is safe.
fn run_job<T: Send + 'static>(
    tx: Result<(&Tx, bool)>,
    job: impl FnOnce(&Tx) -> Result<T>,
    reply: SyncSender<Result<T>>,
) -> Reply {
    let attempt = |(tx, shared): (&Tx, bool)| {
        // SQLite itself takes a transaction back on a full disk or a failed read: what comes after must not be written alone.
        if tx.conn.is_autocommit() {
            return Err(Error::new(Kind::Unavailable, "the transaction that this write shared was taken back"));
        }
        let savepoint = |sql| -> Result<()> {
            if shared {
                tx.conn.prepare_cached(sql)?.execute([])?;
            }
            Ok(())
        };
        savepoint("SAVEPOINT job")?;
        let outcome =
            catch_unwind(AssertUnwindSafe(|| job(tx))).unwrap_or_else(|_| Err(Error::internal("a write panicked")));
        if outcome.is_err() {
            savepoint("ROLLBACK TO job")?;
        }
        savepoint("RELEASE job")?;
        outcome
    };
    let outcome = tx.and_then(attempt);
    Reply {
        failed: outcome.is_err(),
        tell: Box::new(move |safe| {
            // A caller that has gone does not need the answer.
            let _ = reply.send(safe.and(outcome));
        }),
    }
}

fn run(mut store: Store, jobs: &Receiver<Job>, pages: &AtomicI32, checkpoint: &Checkpointer) {
    while let Ok(first) = jobs.recv() {
        let batch: Vec<Job> = std::iter::once(first).chain(jobs.try_iter()).take(BATCH).collect();
        let mut replies = Vec::new();
        let safe = commit(&mut store, batch, &mut replies)
            .and_then(|()| sync_wal(&store.path))
            .map_err(|error| error.context(format_args!("cannot write to {}", store.path.display())));
        for reply in replies {
            (reply.tell)(safe.clone());
        }
        checkpoint.step(&store, pages.load(Ordering::Relaxed));
    }
}

/// Runs the jobs in one transaction, which is over when this returns.
fn commit(store: &mut Store, batch: Vec<Job>, replies: &mut Vec<Reply>) -> Result<()> {
    let shared = batch.len() > 1;
    match store.conn.transaction_with_behavior(TransactionBehavior::Immediate) {
        Ok(tx) => {
            replies.extend(batch.into_iter().map(|job| job(Ok((&Tx { conn: &tx }, shared)))));
            // A job that has the transaction to itself needs no savepoint: what it wrote goes with the transaction.
            if !shared && replies.iter().any(|reply| reply.failed) {
                return Ok(tx.rollback()?);
            }
            Ok(tx.commit()?)
        }
        Err(error) => {
            let error = Error::from(error);
            replies.extend(batch.into_iter().map(|job| job(Err(error.clone()))));
            Err(error)
        }
    }
}

/// Copies the log back into the database, with passive checkpoints alone: the others take the write lock.
///
/// A thread does so beside the writer, and hence can't reach the end of a log that grows meanwhile. So the writer copies the
/// short rest between two transactions, and then the log can start over.
struct Checkpointer {
    wake: SyncSender<()>,
    state: Arc<AtomicU8>,
}

impl Checkpointer {
    /// Called by the writer after each transaction, with the length of the log.
    fn step(&self, store: &Store, pages: i32) {
        match self.state.load(Ordering::Acquire) {
            IDLE if pages >= CHECKPOINT_PAGES => {
                self.state.store(COPYING, Ordering::Release);
                if self.wake.try_send(()).is_err() {
                    self.state.store(IDLE, Ordering::Release);
                }
            }
            COPIED => {
                store.checkpoint();
                self.state.store(IDLE, Ordering::Release);
            }
            _ => {}
        }
    }
}

fn start_checkpointer(store: Store) -> Result<Checkpointer> {
    let (wake, wakes) = sync_channel(1);
    let state = Arc::new(AtomicU8::new(IDLE));
    let shared = Arc::clone(&state);
    spawn("checkpoint", STACK, move || {
        while wakes.recv().is_ok() {
            store.checkpoint();
            shared.store(COPIED, Ordering::Release);
        }
    })?;
    Ok(Checkpointer { wake, state })
}
