//! The one writer for all requests: a thread that owns a connection and commits in groups.
//!
//! Requests hand it a job and wait. It takes all jobs that have queued up, runs them in one short transaction, gives the
//! write lock back, syncs the log once, and answers all. So nothing is answered before it would survive a power cut, and
//! the more callers wait, the more of them share a sync. Knows nothing of what the jobs are for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::ErrorCode;

use super::{BUSY_TIMEOUT, Store, Tx};
use crate::error::{Error, Result};
use crate::thread::spawn;

/// The stack of the two threads, in bytes: SQLite wants some.
const STACK: usize = 1024 * 1024;

/// The most jobs of one transaction, so that the write lock stays short.
const BATCH: usize = 128;

/// A log of this many pages (16 MiB) is copied back into the database. Each time that the log starts over, SQLite syncs
/// its head under the write lock, so that it should do so rarely.
const CHECKPOINT_PAGES: i32 = 4096;

/// How long the lock is waited for while callers crowd, and how long from then on, until it was had once.
const CROWDED_WAIT: Duration = Duration::from_secs(1);
const LOCKED_WAIT: Duration = Duration::from_millis(100);

/// How often the lock is asked for. SQLite itself would wait longer from time to time, up to 100 ms, and so miss the short
/// pauses of housekeeping.
const LOCK_POLL: Duration = Duration::from_millis(1);

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
    /// Callers that wait.
    waiting: Arc<AtomicUsize>,
}

impl Writer {
    /// Starts the thread on a connection of its own. So many callers that wait at the same time are a crowd.
    pub fn start(mut store: Store, crowd: usize) -> Result<Writer> {
        let (queue, jobs) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        // The lock is asked for again and again, see below.
        store.conn.busy_timeout(Duration::ZERO)?;
        let pages = Arc::new(AtomicI32::new(0));
        let seen = Arc::clone(&pages);
        // This replaces SQLite's own automatic checkpoint, which would make requests wait.
        store.conn.wal_hook(Some(move |_: &mut _, pages| {
            seen.store(pages, Ordering::Relaxed);
            Ok(())
        }))?;
        let checkpoint = start_checkpointer(store.another()?)?;
        let lock = Lock { crowd, waiting: Arc::clone(&waiting), failed: false };
        spawn("writer", STACK, move || run(store, &jobs, lock, &pages, &checkpoint))?;
        Ok(Writer { queue, waiting })
    }

    /// Runs a job within a write transaction and returns when what it wrote would survive a power cut.
    ///
    /// A job that fails leaves nothing behind and does not disturb the others of its transaction.
    pub fn write<T: Send + 'static>(&self, job: impl FnOnce(&Tx) -> Result<T> + Send + 'static) -> Result<T> {
        self.queue(job).answer.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// Queues a job, which runs in its turn whether or not anybody waits for it.
    pub fn queue<T: Send + 'static>(&self, job: impl FnOnce(&Tx) -> Result<T> + Send + 'static) -> Queued<T> {
        let (reply, answer) = sync_channel(1);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Where the thread has ended, the job goes, and with it the way to answer.
        let _ = self.queue.send(Box::new(move |tx| run_job(tx, job, reply)));
        Queued { answer, waiting: Arc::clone(&self.waiting) }
    }

    /// Jobs that have not ended.
    pub fn queued(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// A job that was queued, and its caller, who counts as waiting until this is dropped.
pub struct Queued<T> {
    answer: Receiver<Result<T>>,
    waiting: Arc<AtomicUsize>,
}

impl<T> Queued<T> {
    /// Its outcome, as soon as what it wrote would survive a power cut; none if that takes longer. The job goes on then.
    pub fn wait_until(self, deadline: Instant) -> Result<Option<T>> {
        match self.answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(outcome) => outcome.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

impl<T> Drop for Queued<T> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn gone() -> Error {
    Error::internal("the thread that writes has ended")
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
            return Err(Error::unavailable("the transaction that this write shared was taken back"));
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

fn run(store: Store, jobs: &Receiver<Job>, mut lock: Lock, pages: &AtomicI32, checkpoint: &Checkpointer) {
    let mut unsynced = false;
    while let Ok(first) = jobs.recv() {
        let batch: Vec<Job> = std::iter::once(first).chain(jobs.try_iter()).take(BATCH).collect();
        let mut replies = Vec::new();
        let safe = commit(&store, &mut lock, batch, jobs, &mut replies).and_then(|()| {
            // The system tells of a failed sync only once, and takes the next for done. What it may have lost is then
            // copied into the database, which is synced with it.
            if unsynced {
                store.checkpoint_all()?;
            }
            let synced = store.place.sync();
            unsynced = synced.is_err();
            synced
        });
        let safe =
            safe.map_err(|error| error.context(format_args!("cannot write to {}", store.place.path().display())));
        for reply in replies {
            (reply.tell)(safe.clone());
        }
        checkpoint.step(&store, pages.load(Ordering::Relaxed));
    }
}

/// Runs the jobs in one transaction, which is over when this returns. If there is none, those that have queued up since fail too.
fn commit(
    store: &Store,
    lock: &mut Lock,
    batch: Vec<Job>,
    jobs: &Receiver<Job>,
    replies: &mut Vec<Reply>,
) -> Result<()> {
    let shared = batch.len() > 1;
    let execute = |sql| -> Result<()> { Ok(store.conn.prepare_cached(sql)?.execute([]).map(|_| ())?) };
    match lock.take(store) {
        Ok(()) => {
            replies.extend(batch.into_iter().map(|job| job(Ok((&Tx { conn: &store.conn }, shared)))));
            // A job that has the transaction to itself needs no savepoint: what it wrote goes with the transaction.
            let is_kept = shared || replies.iter().all(|reply| !reply.failed);
            let kept = if is_kept { execute("COMMIT") } else { Ok(()) };
            if store.conn.is_autocommit() {
                return kept;
            }
            // What could not be written must not be written later, with what comes then.
            kept.and(execute("ROLLBACK"))
        }
        Err(error) => {
            replies.extend(batch.into_iter().chain(jobs.try_iter()).map(|job| job(Err(error.clone()))));
            Err(error)
        }
    }
}

/// How long the write lock is waited for.
struct Lock {
    crowd: usize,
    waiting: Arc<AtomicUsize>,
    /// Whether the last try was in vain.
    failed: bool,
}

impl Lock {
    /// Begins a transaction with the lock.
    fn take(&mut self, store: &Store) -> Result<()> {
        // Where even taking a transaction back has failed, it still has the lock.
        if !store.conn.is_autocommit() {
            store.conn.execute_batch("ROLLBACK")?;
        }
        let start = Instant::now();
        let crowded_wait = if self.failed { LOCKED_WAIT } else { CROWDED_WAIT };
        loop {
            let taken = store.conn.prepare_cached("BEGIN IMMEDIATE").and_then(|mut begin| begin.execute([]));
            let is_locked = matches!(&taken, Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy));
            let is_crowd = self.waiting.load(Ordering::Relaxed) >= self.crowd;
            let wait = if is_crowd { crowded_wait } else { BUSY_TIMEOUT };
            if !is_locked || start.elapsed() >= wait {
                self.failed = is_locked;
                return Ok(taken.map(|_| ())?);
            }
            thread::sleep(LOCK_POLL);
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
