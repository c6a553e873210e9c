//! The public listener: lets only whole, bounded, well-formed requests through to the tiny_http loop.
//!
//! A thread with a small stack serves each connection, at most [`Limits::connections`] of them; when all are taken, one that
//! waits for its client gives way to the new one (`gate/places.rs`). A request is read whole under a deadline, checked
//! strictly (`gate/head.rs`), handed on over one of the private connections (`gate/upstream.rs`), and the answer is written
//! under a deadline. Knows no routes and no store.

mod connection;
pub mod head;
mod places;
pub mod socket;
mod upstream;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::log::{self, Level};
use crate::metrics::Metrics;

use places::{Places, Quota};
use socket::Stream;
pub use socket::{Door, Listener, UNIX_PEER, network};
pub use upstream::Upstream;

/// The header in which the gate tells the handlers the client's address; a client's own copy of it never gets through.
pub const PEER: &str = "x-invited-peer";

/// The header in which the gate tells the handlers that a request came by the admin's door.
pub const DOOR: &str = "x-invited-door";

/// The stack of a connection's thread. What it reads and writes is on the heap, and a fraction of this is ever touched. The
/// C library keeps 40 MB of stacks of threads that have ended: the larger they are, the less memory that is.
const STACK: usize = 512 * 1024;

/// The most connections that wait to be accepted; the system has a bound of its own.
const BACKLOG: i32 = 4096;

/// The most dismissed connections that may still be there beside [`Limits::connections`].
const LEAVING: usize = 64;

/// How long a client may take to send a large request while others wait for its share.
const GRACE: Duration = Duration::from_secs(1);

/// How long at the end the first request of a new connection is waited for.
pub const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// What a client may take.
pub struct Limits {
    /// Connections at the same time.
    pub connections: usize,
    /// Bytes of a request's line and headers.
    pub head: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// Bytes of a head, a body or an answer that each connection may have; larger ones share the following two.
    pub small: usize,
    /// Bytes of all large heads and bodies.
    pub requests: usize,
    /// Bytes of all large answers that clients have not taken.
    pub answers: usize,
    /// From the first byte of a request to its last.
    pub request: Duration,
    /// Between requests.
    pub idle: Duration,
    /// For a client to take its answer.
    pub answer: Duration,
    /// For a worker to become free.
    pub worker: Duration,
    /// For the requests that run at the end.
    pub drain: Duration,
}

/// The limits of `serve`.
pub const LIMITS: Limits = Limits {
    connections: 512,
    head: 16 * 1024,
    body: 64 * 1024,
    small: 4 * 1024,
    requests: 1024 * 1024,
    answers: 2 * 1024 * 1024,
    request: Duration::from_secs(10),
    idle: Duration::from_secs(15),
    answer: Duration::from_secs(10),
    worker: Duration::from_secs(2),
    // A registration that runs takes up to eight and a half seconds, and its guest should hear how it ended.
    drain: Duration::from_secs(12),
};

/// The connections that there are.
struct Gate {
    limits: Limits,
    upstream: Upstream,
    metrics: Arc<Metrics>,
    open: Mutex<Places>,
    changed: Condvar,
}

/// Raises the limit of open files as far as it goes: a connection takes one, and the database some more.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Accepts connections until `stop` becomes readable, or until there was none for as long as `idle_exit`; then lets the
/// requests that run end, for [`Limits::drain`] at most. `stopping` is called once that begins.
pub fn run(
    listeners: &[Listener],
    stop: BorrowedFd,
    upstream: Upstream,
    metrics: &Arc<Metrics>,
    limits: Limits,
    idle_exit: Option<Duration>,
    stopping: impl FnOnce(),
) -> io::Result<()> {
    for listener in listeners {
        listener.set_nonblocking()?;
        listener.bound_buffers()?;
        // The standard library lets 128 connections queue up. Where a burst finds no room, its clients try again a second later.
        rustix::net::listen(listener, BACKLOG)?;
    }
    let gate = Gate::new(limits, upstream, metrics);
    loop {
        let mut fds = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        fds.extend(listeners.iter().map(|listener| PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)));
        let wait = idle_exit.map(|limit| gate.idle_left(limit));
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        match poll(&mut fds, wait.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        // Whoever comes now finds the socket open still, held by the supervisor, and waits there for the next process.
        if idle_exit
            .is_some_and(|limit| fds.iter().all(|fd| fd.revents().is_empty()) && gate.idle_left(limit).is_zero())
        {
            stopping();
            return Ok(());
        }
        let is_over = !fds[0].revents().is_empty();
        // Those that the system has already let in are served even at the end.
        for listener in listeners {
            accept_all(&gate, listener);
        }
        if is_over {
            stopping();
            gate.drain();
            return Ok(());
        }
    }
}

/// Serves one connection to its end, as inetd starts a process for each.
pub fn run_one(connection: OwnedFd, upstream: Upstream, metrics: &Arc<Metrics>, limits: Limits) -> io::Result<()> {
    let gate = Gate::new(limits, upstream, metrics);
    let stream = Arc::new(Stream::inherited(connection)?);
    let id = gate.enter(&mut gate.lock(), &stream);
    connection::serve(&gate, id, &stream, Door::Guests);
    Ok(())
}

/// Tells the client of a connection that it can't be served.
pub fn refuse_one(connection: OwnedFd, limits: Limits) {
    if let Ok(stream) = Stream::inherited(connection) {
        connection::refuse(&stream, upstream::BUSY, &limits);
    }
}

fn accept_all(gate: &Arc<Gate>, listener: &Listener) {
    // A bound, so that a flood of connections can't keep the loop from seeing that it should stop.
    for _ in 0..1024 {
        match listener.accept() {
            // A thread for each of a flood of these would delay the clients that come after them.
            Ok(stream) if stream.is_closed_by_client() => {}
            Ok(stream) => gate.admit(stream, listener.door),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // No more files, most likely: one connection less, a short pause, and on.
                log::event(Level::Error, &[("event", &"accept-failed"), ("detail", &error)]);
                gate.lock().dismiss_one(Quota::Connections, None, 0, Duration::ZERO);
                thread::sleep(Duration::from_millis(50));
                return;
            }
        }
    }
}

impl Gate {
    fn new(limits: Limits, upstream: Upstream, metrics: &Arc<Metrics>) -> Arc<Gate> {
        let (open, metrics) = (Mutex::new(Places::new()), Arc::clone(metrics));
        Arc::new(Gate { limits, upstream, metrics, open, changed: Condvar::new() })
    }

    /// How long there may be no connection from now on; all of it while there is one.
    fn idle_left(&self, limit: Duration) -> Duration {
        let open = self.lock();
        if open.count() == 0 { limit.saturating_sub(open.active.elapsed()) } else { limit }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a new connection its thread, as soon as there is a place.
    fn admit(self: &Arc<Self>, stream: Stream, door: Door) {
        let network = stream.network();
        let deadline = Instant::now() + self.limits.worker;
        let mut open = self.lock();
        while open.count() >= self.limits.connections {
            let is_made = open.staying(Quota::Connections) < self.limits.connections
                || open.dismiss_one(Quota::Connections, network, 1, Duration::ZERO);
            // A dismissed connection ends at once. Waiting for each would make a flood starve everybody in the queue.
            if is_made && open.count() < self.limits.connections + LEAVING {
                break;
            }
            // A crowd whose requests are all being answered has its share: others in the queue must not wait for it. If all
            // come from one address, as behind a proxy, the new one waits for the first that ends.
            if !is_made && (!open.are_all_from(network) || Instant::now() >= deadline) {
                drop(open);
                return connection::turn_away(&stream, &self.metrics);
            }
            open.admitting = true;
            open = self.wait(open, Duration::from_millis(100));
            open.admitting = false;
        }
        let stream = Arc::new(stream);
        let id = self.enter(&mut open, &stream);
        drop(open);
        let gate = Arc::clone(self);
        let thread = thread::Builder::new().name("connection".to_owned()).stack_size(STACK);
        let started = thread.spawn(move || {
            let _place = Place { gate: &gate, id };
            connection::serve(&gate, id, &stream, door);
        });
        if let Err(error) = started {
            // This connection alone is lost; the closure that held it has been dropped.
            log::event(Level::Error, &[("event", &"thread-failed"), ("detail", &error)]);
            self.leave(id);
        }
    }

    fn enter(&self, open: &mut Places, stream: &Arc<Stream>) -> u64 {
        self.metrics.came();
        open.add(Arc::clone(stream), stream.network())
    }

    fn wait<'a>(&self, open: MutexGuard<'a, Places>, limit: Duration) -> MutexGuard<'a, Places> {
        self.changed.wait_timeout(open, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Notes that a connection waits for its client, or no longer does. False when it should end instead.
    fn set_waiting(&self, id: u64, waiting: bool) -> bool {
        let mut open = self.lock();
        let draining = open.draining;
        let Some(connection) = open.get_mut(id) else {
            return false;
        };
        connection.waiting = waiting.then(Instant::now);
        connection.fresh = false;
        let goes_on = !(connection.dismissed || (waiting && draining));
        // Its request has been handed over by now, and its buffer has gone.
        let made_room = waiting && connection.clear(Quota::RequestBytes);
        if made_room || open.admitting {
            self.changed.notify_all();
        }
        goes_on
    }

    /// Reserves bytes of a quota for a connection, and waits for them until the deadline; others may have to give way. Returns
    /// false if there are none, or if the connection itself was dismissed.
    fn reserve(&self, id: u64, quota: Quota, bytes: usize, deadline: Instant) -> bool {
        let limit = if quota == Quota::AnswerBytes { self.limits.answers } else { self.limits.requests };
        // An answer above the limit needs all of it.
        let bytes = bytes.min(limit);
        // An answer waits at a worker's expense, a request only at that of its client.
        let grace = if quota == Quota::AnswerBytes { Duration::ZERO } else { GRACE };
        let mut open = self.lock();
        loop {
            let room = limit.saturating_sub(open.used(quota));
            let room_soon = limit.saturating_sub(open.staying(quota));
            let Some(connection) = open.get_mut(id) else { return false };
            if connection.dismissed {
                return false;
            }
            if bytes <= room {
                connection.add(quota, bytes);
                // Until now it has not waited for its client.
                connection.waiting = connection.waiting.map(|_| Instant::now());
                return true;
            }
            let network = connection.network;
            if bytes > room_soon {
                open.dismiss_one(quota, network, bytes, grace);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            open = self.wait(open, left.min(GRACE / 4));
        }
    }

    /// Gives back the bytes that were reserved for a connection.
    fn release(&self, id: u64, quota: Quota) {
        if self.lock().get_mut(id).is_some_and(|connection| connection.clear(quota)) {
            self.changed.notify_all();
        }
    }

    fn leave(&self, id: u64) {
        if self.lock().remove(id) {
            self.metrics.went();
        }
        self.changed.notify_all();
    }

    /// Ends the connections that wait for another request, and gives the others their time. A client that has only just
    /// connected is about to send, and does not try again by itself: its first request is waited for, if not for long.
    fn drain(&self) {
        let start = Instant::now();
        let mut open = self.lock();
        open.draining = true;
        open.end_waiting(|connection| !connection.fresh);
        let mut is_patient = true;
        while open.count() > 0 {
            let waited = start.elapsed();
            if waited >= self.limits.drain {
                let count = open.count();
                log::event(Level::Error, &[("event", &"drain-timeout"), ("connections", &count)]);
                return;
            }
            if is_patient && waited >= FIRST_REQUEST {
                is_patient = false;
                open.end_waiting(|_| true);
            }
            let next = if is_patient { FIRST_REQUEST } else { self.limits.drain };
            open = self.wait(open, next.saturating_sub(waited));
        }
    }
}

/// Gives a connection's place back, however its thread ends.
struct Place<'a> {
    gate: &'a Gate,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.gate.leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// A loop that answers `OPTIONS` with nothing and everything else with this many bytes.
    fn answer_all(stream: &mut UnixStream, length: usize) -> io::Result<()> {
        let mut bytes = [0; 4096];
        loop {
            let read = stream.read(&mut bytes)?;
            let length = if bytes.starts_with(b"OPTIONS ") { 0 } else { length };
            if read == 0 {
                return Ok(());
            }
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{}", "x".repeat(length))?;
        }
    }

    #[test]
    fn a_connection_that_is_closed_before_it_is_accepted_takes_no_place() {
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), Door::Guests).unwrap();
        listener.set_nonblocking().unwrap();
        let address = listener.address().unwrap();
        let gate = Gate::new(LIMITS, Upstream::open("unused".into(), 0).unwrap(), &Arc::default());
        for _ in 0..10 {
            drop(TcpStream::connect(address).unwrap());
        }
        accept_all(&gate, &listener);
        let (stream, _client) = UnixStream::pair().unwrap();
        let first = gate.enter(&mut gate.lock(), &Arc::new(Stream::Unix(stream)));
        assert_eq!(first, 0, "connections are numbered from 0, and the closed ones got no number");
    }

    #[test]
    fn a_client_that_waits_or_has_sent_a_request_is_served() {
        let (stream, mut client) = UnixStream::pair().unwrap();
        let stream = Stream::Unix(stream);
        assert!(!stream.is_closed_by_client());
        client.write_all(b"G").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!stream.is_closed_by_client(), "a request that has been sent is answered");
        assert_eq!((&stream).read(&mut [0; 2]).unwrap(), 1);
        assert!(stream.is_closed_by_client());
    }

    #[test]
    fn clients_that_take_no_answers_give_way_even_if_they_have_all_places() {
        let folder = std::env::temp_dir().join(format!("invited-gate-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("loop");
        let behind = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || {
            for mut stream in behind.incoming().map_while(Result::ok) {
                // More than the system keeps for a client that does not read.
                thread::spawn(move || answer_all(&mut stream, 16 * 1024 * 1024));
            }
        });
        let upstream = Upstream::open(socket, 2).unwrap();
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), Door::Guests).unwrap();
        let address = listener.address().unwrap();
        let (stop, stopper) = UnixStream::pair().unwrap();
        let limits = Limits { connections: 4, answers: usize::MAX, answer: Duration::from_secs(600), ..LIMITS };
        let gate =
            thread::spawn(move || run(&[listener], stop.as_fd(), upstream, &Arc::default(), limits, None, || {}));
        let deaf = || {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            // Its answer is on the way.
            client.peek(&mut [0]).unwrap();
            client
        };
        let clients: Vec<TcpStream> = (0..4).map(|_| deaf()).collect();
        let mut honest = TcpStream::connect(address).unwrap();
        honest.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        honest.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut status = [0; 15];
        honest.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 200 OK");
        drop((clients, honest, stopper));
        gate.join().unwrap().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
