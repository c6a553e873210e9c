//! The public listener: lets only whole, bounded, well-formed requests through to the tiny_http loop.
//!
//! A thread with a small stack serves each connection, at most [`Limits::connections`] of them; when all are taken, the
//! connection that has waited longest for its client gives way to the new one. A request is read whole under a deadline,
//! checked strictly (`gate/head.rs`), handed on over one of the private connections (`gate/upstream.rs`), and the answer is
//! written under a deadline. Knows no routes and no store.

mod connection;
pub mod head;
mod upstream;

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::log;

pub use upstream::Upstream;

/// The header in which the gate tells the handlers the client's address; a client's own copy of it never gets through.
pub const PEER: &str = "x-invited-peer";

/// The stack of a connection's thread. What it reads and writes is on the heap.
const STACK: usize = 128 * 1024;

/// The most connections that wait to be accepted; the system has a bound of its own.
const BACKLOG: i32 = 4096;

/// What a client may take.
pub struct Limits {
    /// Connections at the same time.
    pub connections: usize,
    /// Bytes of a request's line and headers.
    pub head: usize,
    /// Bytes of a request's body.
    pub body: usize,
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
    request: Duration::from_secs(10),
    idle: Duration::from_secs(15),
    answer: Duration::from_secs(10),
    worker: Duration::from_secs(2),
    drain: Duration::from_secs(5),
};

/// The connections that there are.
struct Gate {
    limits: Limits,
    upstream: Upstream,
    open: Mutex<Open>,
    changed: Condvar,
}

struct Open {
    next: u64,
    connections: HashMap<u64, Connection>,
    /// Set at the end: no connection is kept for another request.
    draining: bool,
}

struct Connection {
    stream: Arc<TcpStream>,
    /// Since when it waits for its client, to send or to take; none while a worker has its request.
    waiting: Option<Instant>,
    /// It was told to give way and is about to go.
    dismissed: bool,
}

/// Raises the limit of open files as far as it goes: a connection takes one, and the database some more.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Accepts connections until `stop` becomes readable, then lets the requests that run end, for [`Limits::drain`] at most.
pub fn run(listener: &TcpListener, stop: BorrowedFd, upstream: Upstream, limits: Limits) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    // The standard library lets 128 connections queue up. Where a burst finds no room, its clients try again a second later.
    rustix::net::listen(listener, BACKLOG)?;
    let gate = Arc::new(Gate {
        limits,
        upstream,
        open: Mutex::new(Open { next: 0, connections: HashMap::new(), draining: false }),
        changed: Condvar::new(),
    });
    loop {
        let mut fds =
            [PollFd::from_borrowed_fd(stop, PollFlags::IN), PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let stopping = !fds[0].revents().is_empty();
        // Those that the system has already let in are served even at the end.
        accept_all(&gate, listener);
        if stopping {
            gate.drain();
            return Ok(());
        }
    }
}

fn accept_all(gate: &Arc<Gate>, listener: &TcpListener) {
    // A bound, so that a flood of connections can't keep the loop from seeing that it should stop.
    for _ in 0..1024 {
        match listener.accept() {
            Ok((stream, _)) => gate.admit(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // No more files, most likely: one connection less, a short pause, and on.
                log::event(&[("event", &"accept-failed"), ("detail", &error)]);
                gate.dismiss_one(&mut gate.lock());
                thread::sleep(Duration::from_millis(50));
                return;
            }
        }
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a new connection its thread, as soon as there is a place.
    fn admit(self: &Arc<Self>, stream: TcpStream) {
        let stream = Arc::new(stream);
        let mut open = self.lock();
        while open.connections.len() >= self.limits.connections {
            self.dismiss_one(&mut open);
            // Where all are being answered, the new one waits for the first that ends.
            open =
                self.changed.wait_timeout(open, Duration::from_millis(100)).unwrap_or_else(PoisonError::into_inner).0;
        }
        let id = open.next;
        open.next += 1;
        let entry = Connection { stream: Arc::clone(&stream), waiting: Some(Instant::now()), dismissed: false };
        open.connections.insert(id, entry);
        drop(open);
        let gate = Arc::clone(self);
        let thread = thread::Builder::new().name("connection".to_owned()).stack_size(STACK);
        let started = thread.spawn(move || {
            let _place = Place { gate: &gate, id };
            connection::serve(&gate, id, &stream);
        });
        if let Err(error) = started {
            // This connection alone is lost; the closure that held it has been dropped.
            log::event(&[("event", &"thread-failed"), ("detail", &error)]);
            self.leave(id);
        }
    }

    /// Lets the connection go that has waited longest for its client, if one waits.
    fn dismiss_one(&self, open: &mut Open) {
        let waiting = open.connections.values_mut().filter(|connection| !connection.dismissed);
        let longest = waiting.filter_map(|c| c.waiting.map(|since| (since, c))).min_by_key(|(since, _)| *since);
        let Some((_, connection)) = longest else { return };
        connection.dismissed = true;
        let _ = connection.stream.shutdown(Shutdown::Both);
    }

    /// Notes that a connection waits for its client, or no longer does. False when it should end instead.
    fn set_waiting(&self, id: u64, waiting: bool) -> bool {
        let mut open = self.lock();
        let draining = open.draining;
        let Some(connection) = open.connections.get_mut(&id) else {
            return false;
        };
        connection.waiting = waiting.then(Instant::now);
        !(connection.dismissed || (waiting && draining))
    }

    fn leave(&self, id: u64) {
        self.lock().connections.remove(&id);
        self.changed.notify_all();
    }

    /// Ends the connections that wait, and gives the others their time.
    fn drain(&self) {
        let deadline = Instant::now() + self.limits.drain;
        let mut open = self.lock();
        open.draining = true;
        for connection in open.connections.values().filter(|connection| connection.waiting.is_some()) {
            // What has arrived by now can still be read, and is answered.
            let _ = connection.stream.shutdown(Shutdown::Read);
        }
        while !open.connections.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                log::event(&[("event", &"drain-timeout"), ("connections", &open.connections.len())]);
                return;
            }
            open = self.changed.wait_timeout(open, left).unwrap_or_else(PoisonError::into_inner).0;
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
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopper) = UnixStream::pair().unwrap();
        let limits = Limits { connections: 4, answer: Duration::from_secs(600), ..LIMITS };
        let gate = thread::spawn(move || run(&listener, stop.as_fd(), upstream, limits));
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
