//! The permanent private connections between the gate and the loop behind it.
//!
//! As many as the loop has workers, opened one after the other, each only once the one before is served: tiny_http 0.12
//! strands connections that come in a burst. One that dies is opened anew when it is next needed.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::head::Refusal;
use crate::secret::Secret;

/// How long a worker may take for an answer. The store itself gives up earlier.
const ANSWER: Duration = Duration::from_secs(30);

/// How long a new connection may take to be served.
const OPEN: Duration = Duration::from_secs(1);

/// So many bytes are read at a time until the head of an answer is whole. Most have fewer.
const HEAD_STEP: usize = 1024;

/// What a worker answers at once.
const PROBE: &str = "OPTIONS * HTTP/1.1\r\n\r\n";

/// There is nobody to answer it now.
pub const BUSY: Refusal = Refusal { status: 503, reason: "gate-busy" };
const WORKER_TOO_SLOW: Refusal = Refusal { status: 504, reason: "gate-worker-timeout" };
const BROKEN: Refusal = Refusal { status: 500, reason: "gate-upstream" };

/// The connections that are free; one that has died stays in its place as none.
pub struct Upstream {
    socket: PathBuf,
    free: Mutex<Vec<Option<UnixStream>>>,
    freed: Condvar,
    /// Held while a connection is opened: one at a time.
    opening: Mutex<()>,
}

/// The answer of the loop behind the gate.
pub struct Answer {
    head: String,
    body: Vec<u8>,
}

impl Answer {
    /// Head and body of the answer as the client gets it.
    pub fn parts(mut self, connection: &str) -> (Vec<u8>, Vec<u8>) {
        self.head.extend(["Connection: ", connection, "\r\n\r\n"]);
        (self.head.into_bytes(), self.body)
    }
}

/// A request as the loop gets it: its head and its body.
pub type Request = (Secret<String>, Secret<Vec<u8>>);

impl Upstream {
    /// Opens this many connections to the socket.
    pub fn open(socket: PathBuf, count: usize) -> io::Result<Upstream> {
        let upstream =
            Upstream { socket, free: Mutex::new(Vec::new()), freed: Condvar::new(), opening: Mutex::new(()) };
        for _ in 0..count {
            let stream = upstream.open_one()?;
            upstream.lock().push(Some(stream));
        }
        Ok(upstream)
    }

    /// Has a request answered: waits this long at most for a free connection, and hence for a worker. `may_keep` is asked, with
    /// the length of the answer's body, whether there is room for it.
    pub fn exchange(
        &self,
        request: Request,
        is_head: bool,
        wait: Duration,
        may_keep: impl FnOnce(usize) -> bool,
    ) -> Result<Answer, Refusal> {
        let stream = self.take(wait).ok_or(BUSY)?;
        // From here on its place is given back, however this ends.
        let mut taken = Taken { upstream: self, stream: None };
        let mut stream = match stream {
            Some(stream) => stream,
            None => self.open_one().map_err(|_| BROKEN)?,
        };
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => WORKER_TOO_SLOW,
            _ => BROKEN,
        };
        stream.write_all(request.0.as_bytes()).and_then(|()| stream.write_all(&request.1)).map_err(failed)?;
        // The worker has a copy of its own.
        drop(request);
        let answer = receive(&mut stream, is_head, may_keep).map_err(failed)?.ok_or(BUSY)?;
        taken.stream = Some(stream);
        Ok(answer)
    }

    /// Whether a worker answers.
    pub fn is_served(&self) -> bool {
        self.exchange((Secret::new(PROBE.to_owned()), Secret::default()), false, ANSWER, |_| true).is_ok()
    }

    fn take(&self, wait: Duration) -> Option<Option<UnixStream>> {
        let deadline = Instant::now() + wait;
        let mut free = self.lock();
        loop {
            if let Some(stream) = free.pop() {
                return Some(stream);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            free = self.freed.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<UnixStream>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a connection and sees that it is served; tries again when it was stranded.
    fn open_one(&self) -> io::Result<UnixStream> {
        let _one_at_a_time = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = io::Error::from(io::ErrorKind::TimedOut);
        for _ in 0..5 {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_write_timeout(Some(ANSWER))?;
            stream.set_read_timeout(Some(OPEN))?;
            match stream.write_all(PROBE.as_bytes()).and_then(|()| receive(&mut stream, false, |_| true)) {
                Ok(_) => {
                    stream.set_read_timeout(Some(ANSWER))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// A place of the pool that is in use; given back with its connection, or empty if that did not end well.
struct Taken<'a> {
    upstream: &'a Upstream,
    stream: Option<UnixStream>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.upstream.lock().push(self.stream.take());
        self.upstream.freed.notify_one();
    }
}

/// Reads an answer, which always has a `Content-Length` if it has a body. None if there is no room for that.
fn receive(stream: &mut UnixStream, is_head: bool, may_keep: impl FnOnce(usize) -> bool) -> io::Result<Option<Answer>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        let length = bytes.len();
        bytes.resize(length + HEAD_STEP, 0);
        let read = match stream.read(&mut bytes[length..]) {
            // A read with a time limit ends so when the process was stopped and goes on (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            outcome => outcome?,
        };
        bytes.truncate(length + read);
    };
    let (head, length) = answer_head(&bytes[..end])?;
    let mut body = bytes.split_off(end + 4);
    let length = if is_head { 0 } else { length };
    if body.len() > length {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if !may_keep(length) {
        return Ok(None);
    }
    body.reserve_exact(length - body.len());
    stream.take((length - body.len()) as u64).read_to_end(&mut body)?;
    if body.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Answer { head, body }))
}

/// The head as it goes on to the client, and the length of the body.
fn answer_head(bytes: &[u8]) -> io::Result<(String, usize)> {
    let text = std::str::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut head = String::with_capacity(text.len() + 2);
    let mut length = 0;
    for (number, line) in text.split("\r\n").enumerate() {
        if number > 0 {
            let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
            if name.eq_ignore_ascii_case("server") || name.eq_ignore_ascii_case("connection") {
                continue;
            }
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
            }
        }
        head.push_str(line);
        head.push_str("\r\n");
    }
    Ok((head, length))
}
