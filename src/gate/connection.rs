//! One client's connection: reads a request whole, has it answered, writes the answer, and again.

use std::fmt::Display;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::head::{self, HEAD_TOO_LARGE, Head, Refusal, TOO_SLOW};
use super::places::Quota;
use super::socket::{Door, Stream};
use super::upstream::BUSY;
use super::{Gate, Limits};
use crate::log::{self, Level};
use crate::metrics::Metrics;
use crate::secret::{Secret, wipe};

/// How long, and for how many bytes, the rest of a refused request is read and thrown away: closing a connection with
/// unread bytes would reset it, and the client would never see why it was refused.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 256 * 1024);

/// By how many bytes the buffer of a connection grows.
const STEP: usize = 1024;

/// Serves a connection to its end.
pub fn serve(gate: &Gate, id: u64, stream: &Stream, door: Door) {
    stream.set_nodelay();
    let peer = stream.peer();
    let mut client = Client::new(stream);
    let mut patience = gate.limits.request;
    loop {
        let (head, body) = match client.read_request(gate, id, patience) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(refusal) => return client.refuse(&gate.metrics, refusal, &peer, gate.limits.answer),
        };
        if !gate.set_waiting(id, false) {
            // It had to give way in the meantime: nobody would hear what came of the request, so that nothing must.
            return;
        }
        let Head { rewritten, is_head, keep_alive, .. } = head.completed(&peer, door);
        let may_keep = |bytes| {
            let deadline = Instant::now() + gate.limits.worker;
            bytes <= gate.limits.small || gate.reserve(id, Quota::AnswerBytes, bytes, deadline)
        };
        let answer = match gate.upstream.exchange((rewritten, body), is_head, gate.limits.worker, may_keep) {
            Ok(answer) => answer,
            Err(refusal) => {
                gate.set_waiting(id, true);
                return client.refuse(&gate.metrics, refusal, &peer, gate.limits.answer);
            }
        };
        // From here on it waits for its client again: who doesn't take an answer gives way like who doesn't send a request.
        let keep_alive = gate.set_waiting(id, true) && keep_alive;
        let (head, body) = answer.parts(if keep_alive { "keep-alive" } else { "close" });
        let written = client.write(&mut [IoSlice::new(&head), IoSlice::new(&body)], gate.limits.answer);
        if body.len() > gate.limits.small {
            drop(body);
            gate.release(id, Quota::AnswerBytes);
        }
        if written.is_err() {
            return;
        }
        if !keep_alive {
            return client.linger();
        }
        patience = gate.limits.idle;
    }
}

/// Answers whatever comes on a connection with a refusal.
pub fn refuse(stream: &Stream, refusal: Refusal, limits: &Limits) {
    Client::new(stream).refuse(&Metrics::default(), refusal, &stream.peer(), limits.answer);
}

/// Tells a new client that there is no place, without waiting for it.
pub fn turn_away(mut stream: &Stream, metrics: &Metrics) {
    // Nothing was sent on this connection, so that the system takes this at once.
    let _ = stream.write(refusal_text(metrics, BUSY, &stream.peer()).as_bytes());
}

/// A request that has been read whole: its head and its body.
type Whole = (Head, Secret<Vec<u8>>);

struct Client<'a> {
    stream: &'a Stream,
    /// What has been read and not been used.
    unread: Secret<Vec<u8>>,
    /// The timeout that the socket has for reading, so as to set it only when it changes.
    timeout: Option<Duration>,
}

impl Client<'_> {
    fn new(stream: &Stream) -> Client<'_> {
        Client { stream, unread: Secret::default(), timeout: None }
    }

    /// The next request with its body; none when the client has gone or keeps silent.
    ///
    /// `patience` is for its first byte; from there on the limit for a whole request counts. A large one waits within that
    /// time for its share of what all connections have.
    fn read_request(&mut self, gate: &Gate, id: u64, patience: Duration) -> Result<Option<Whole>, Refusal> {
        let limits = &gate.limits;
        let mut deadline = Instant::now() + limits.request;
        let mut seen = 0;
        // Some clients send an empty line after a body (RFC 9112 section 2.2): one is overlooked.
        let mut empty_lines = 0;
        let mut head_max = limits.small;
        let end = loop {
            if empty_lines == 0 && self.unread.starts_with(b"\r\n") {
                self.unread.drain(..2);
                empty_lines += 1;
            }
            if self.unread.as_slice() != b"\r" {
                if let Some(end) = head::end(&self.unread, seen)? {
                    break end;
                }
                seen = self.unread.len();
            }
            if self.unread.len() >= limits.head {
                return Err(HEAD_TOO_LARGE);
            }
            if self.unread.len() >= head_max {
                if !gate.reserve(id, Quota::RequestBytes, limits.head - limits.small, deadline) {
                    return Err(BUSY);
                }
                head_max = limits.head;
            }
            let most = head_max - self.unread.len();
            let read = if self.unread.is_empty() {
                match self.read(patience, most) {
                    // The client said nothing, so that nothing needs to be said to it.
                    Err(_) | Ok(0) => return Ok(None),
                    Ok(read) => {
                        deadline = Instant::now() + limits.request;
                        read
                    }
                }
            } else {
                self.read_until(deadline, most)?
            };
            if read == 0 {
                return Ok(None);
            }
        };
        let head = head::read(&self.unread[..end], limits.body)?;
        wipe(&mut self.unread[..end]);
        self.unread.drain(..end);
        self.unread.shrink_to(limits.small);
        let length = head.body;
        if length > limits.small && !gate.reserve(id, Quota::RequestBytes, length, deadline) {
            return Err(BUSY);
        }
        let missing = length.saturating_sub(self.unread.len());
        if head.expects_continue && missing > 0 {
            self.write(&mut [IoSlice::new(b"HTTP/1.1 100 Continue\r\n\r\n")], limits.answer).map_err(|_| TOO_SLOW)?;
        }
        self.unread.reserve_exact(missing);
        while self.unread.len() < length {
            if self.read_until(deadline, length - self.unread.len())? == 0 {
                return Ok(None);
            }
        }
        if length == 0 {
            return Ok(Some((head, Secret::default())));
        }
        // What came after it begins the next request.
        let rest = self.unread.split_off(length);
        let body = std::mem::replace(&mut self.unread, Secret::new(rest));
        Ok(Some((head, body)))
    }

    fn read_until(&mut self, deadline: Instant, most: usize) -> Result<usize, Refusal> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(TOO_SLOW);
        }
        match self.read(left, most) {
            Ok(read) => Ok(read),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Err(TOO_SLOW),
            Err(_) => Ok(0),
        }
    }

    /// Reads some bytes, but not more than `most`, waiting no longer than this; 0 when the client has closed its side.
    fn read(&mut self, wait: Duration, most: usize) -> io::Result<usize> {
        if self.timeout != Some(wait) {
            // A timeout of zero would mean none at all.
            self.stream.set_read_timeout(wait.max(Duration::from_millis(1)))?;
            self.timeout = Some(wait);
        }
        // Straight into the buffer, and no more than fits: the stack of each connection stays small, and the buffer does not
        // double.
        let length = self.unread.len();
        if self.unread.capacity() == length {
            self.unread.reserve_exact(STEP);
        }
        let capacity = self.unread.capacity();
        self.unread.resize(capacity.min(length + most), 0);
        let outcome = loop {
            match { self.stream }.read(&mut self.unread[length..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
        };
        self.unread.truncate(length + outcome.as_ref().map_or(0, |read| *read));
        outcome
    }

    /// Writes all bytes within this time.
    fn write(&mut self, mut pieces: &mut [IoSlice], limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        self.stream.set_write_timeout(limit)?;
        // Empty ones at the beginning are passed over.
        IoSlice::advance_slices(&mut pieces, 0);
        while !pieces.is_empty() {
            match { self.stream }.write_vectored(pieces) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut pieces, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if pieces.is_empty() {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_write_timeout(left)?;
        }
        Ok(())
    }

    /// Answers a request that does not get through, and ends.
    fn refuse(&mut self, metrics: &Metrics, refusal: Refusal, peer: &str, limit: Duration) {
        let text = refusal_text(metrics, refusal, peer);
        if self.write(&mut [IoSlice::new(text.as_bytes())], limit).is_ok() {
            self.linger();
        }
    }

    fn linger(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let deadline = Instant::now() + LINGER.0;
        let mut thrown_away = 0;
        while thrown_away < LINGER.1 {
            self.unread.clear();
            match self.read_until(deadline, STEP) {
                Ok(read) if read > 0 => thrown_away += read,
                _ => return,
            }
        }
    }
}

/// The answer to a request that does not get through, which is counted and logged.
fn refusal_text(metrics: &Metrics, refusal: Refusal, peer: &str) -> String {
    let Refusal { status, reason } = refusal;
    metrics.refused(status, reason);
    let pairs: [(&str, &dyn Display); 4] =
        [("event", &"refused"), ("status", &status), ("reason", &reason), ("peer", &peer)];
    log::event(Level::of_status(status), &pairs);
    let (title, text) = match status {
        408 => ("Request Timeout", "the request took too long to arrive"),
        411 => ("Length Required", "send the body with a Content-Length"),
        413 => ("Content Too Large", "the body is too large"),
        417 => ("Expectation Failed", "only 100-continue can be expected"),
        431 => ("Request Header Fields Too Large", "the head of the request is too large"),
        503 => ("Service Unavailable", "busy, try again in some seconds"),
        504 => ("Gateway Timeout", "the request took too long to be answered"),
        505 => ("HTTP Version Not Supported", "this server speaks HTTP/1.1"),
        500 => ("Internal Server Error", "the request could not be answered"),
        _ => ("Bad Request", "the request is malformed"),
    };
    let body = format!("{title}: {text}\n");
    let retry = if status == 503 { "Retry-After: 5\r\n" } else { "" };
    format!(
        "HTTP/1.1 {status} {title}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{retry}\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
