//! The load generator, one for all: a thread that keeps some connections busy and notes how long each answer took.
//!
//! Of our own rather than wrk, since it must stop after so many requests (ejabberd), keep to a pace, and wait for what is
//! still in flight, so that the next in turn finds an idle machine. Like wrk, it is one thread that polls its connections:
//! a thread each would cost a switch for each answer, on the very processors that the servers need.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a server may keep silent before what is still in flight is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to send, and how.
#[derive(Clone)]
pub struct Load {
    pub addr: SocketAddr,
    /// Whole requests, sent in turn.
    pub requests: Vec<Vec<u8>>,
    /// The status that a good answer has.
    pub status: u16,
    pub connections: usize,
    pub time: Duration,
    /// The most requests to send.
    pub limit: usize,
    /// Send one as often as this, whether or not the last was answered; otherwise a connection sends when it has its answer.
    pub pace: Option<Duration>,
}

/// What came of it.
pub struct Outcome {
    /// Good answers a second.
    pub rate: f64,
    /// Other answers, connections that broke, and requests that were never answered.
    pub failures: usize,
    /// Of each good answer, in microseconds, in order of length.
    pub latencies: Vec<u32>,
    /// How much of one processor the load generator took.
    pub share: f64,
}

impl Outcome {
    /// The latency that this share of answers kept to, in milliseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.latencies.get(at).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
    }
}

struct Connection {
    stream: TcpStream,
    /// When the request that is under way was sent, or was due; none while there is none.
    since: Option<Instant>,
    answer: Vec<u8>,
    /// The length of the whole answer, once its head is there.
    whole: Option<usize>,
}

impl Connection {
    fn open(addr: SocketAddr) -> Connection {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE).expect("the server takes connections");
        stream.set_nodelay(true).expect("a socket");
        stream.set_nonblocking(true).expect("a socket");
        Connection { stream, since: None, answer: Vec::new(), whole: None }
    }

    fn send(&mut self, request: &[u8], since: Instant) {
        self.since = Some(since);
        // A connection that has ended is noticed when it is read.
        let _ = self.stream.write_all(request);
    }

    /// Reads what is there. The status of an answer that is whole; 0 where the connection has broken.
    fn read(&mut self, buffer: &mut [u8]) -> Option<u16> {
        let read = match self.stream.read(buffer) {
            Ok(0) => return Some(0),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return None,
            Err(_) => return Some(0),
        };
        self.answer.extend_from_slice(&buffer[..read]);
        if self.whole.is_none() {
            let end = self.answer.windows(4).position(|four| four == b"\r\n\r\n")?;
            self.whole = Some(end + 4 + content_length(&self.answer[..end]));
        }
        if self.answer.len() < self.whole? {
            return None;
        }
        let status = std::str::from_utf8(self.answer.get(9..12)?).ok()?.parse().ok()?;
        self.answer.clear();
        self.whole = None;
        Some(status)
    }
}

fn content_length(head: &[u8]) -> usize {
    let name = b"content-length:";
    let at = head.windows(name.len()).position(|found| found.eq_ignore_ascii_case(name));
    let digits = at.map_or(&[][..], |at| &head[at + name.len()..]);
    let digits = digits.iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

/// Runs a load to its end.
pub fn run(load: &Load) -> Outcome {
    run_until(load, &AtomicBool::new(false))
}

/// The same, which ends before that when it is told to.
pub fn run_until(load: &Load, stop: &AtomicBool) -> Outcome {
    let mut connections: Vec<Connection> = (0..load.connections).map(|_| Connection::open(load.addr)).collect();
    let mut requests = load.requests.iter().cycle();
    let mut outcome = Outcome { rate: 0.0, failures: 0, latencies: Vec::new(), share: 0.0 };
    let mut buffer = vec![0; 64 * 1024];
    let mut due = VecDeque::new();
    let (start, started) = (Instant::now(), processor_time());
    let end = start + load.time;
    let (mut sent, mut last) = (0, start);
    loop {
        let now = Instant::now();
        let over = now >= end || sent >= load.limit || stop.load(Ordering::Relaxed);
        if let Some(pace) = load.pace {
            while !over && start + pace * (sent + due.len()) as u32 <= now {
                due.push_back(start + pace * (sent + due.len()) as u32);
            }
        }
        for connection in connections.iter_mut().filter(|connection| connection.since.is_none()) {
            let since = if load.pace.is_some() { due.pop_front() } else { (!over && sent < load.limit).then_some(now) };
            let Some(since) = since else { break };
            connection.send(requests.next().expect("a request"), since);
            sent += 1;
        }
        let busy = connections.iter().any(|connection| connection.since.is_some());
        if (over && !busy) || now > last.max(end) + PATIENCE {
            break;
        }
        let longest = Duration::from_millis(100);
        let next = load.pace.filter(|_| !over).map(|pace| start + pace * (sent + due.len()) as u32);
        wait(&connections, next.map_or(longest, |next| next.saturating_duration_since(now).min(longest)));
        for connection in connections.iter_mut().filter(|connection| connection.since.is_some()) {
            let Some(status) = connection.read(&mut buffer) else { continue };
            let (since, now) = (connection.since.take().expect("a request"), Instant::now());
            // What comes after the end was sent before it, and still shows how long a client waits.
            if status == load.status {
                outcome.latencies.push(now.duration_since(since).as_micros() as u32);
            } else {
                outcome.failures += 1;
            }
            last = now;
            if status == 0 {
                *connection = Connection::open(load.addr);
            }
        }
    }
    // Who has no answer by now gets none.
    let lost = connections.iter().filter(|connection| connection.since.is_some()).count();
    outcome.failures += lost;
    outcome.latencies.sort_unstable();
    let elapsed = last.duration_since(start).as_secs_f64();
    outcome.rate = outcome.latencies.len() as f64 / elapsed;
    outcome.share = processor_time().saturating_sub(started).as_secs_f64() / elapsed;
    outcome
}

fn wait(connections: &[Connection], longest: Duration) {
    let busy = connections.iter().filter(|connection| connection.since.is_some());
    let mut fds: Vec<PollFd> = busy.map(|connection| PollFd::new(&connection.stream, PollFlags::IN)).collect();
    let longest = Timespec::try_from(longest).ok();
    let _ = poll(&mut fds, longest.as_ref());
}

/// What this thread has had of the processors.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or_default())
}
