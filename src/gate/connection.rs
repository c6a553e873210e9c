//! One client's connection: reads a request whole, has it answered, writes the answer, and again.

use std::fmt::Display;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::head::{self, BAD_CHUNK, BODY_TOO_LARGE, HEAD_TOO_LARGE, Head, Refusal, TOO_SLOW};
use super::places::Quota;
use super::socket::{Door, Stream};
use super::upstream::BUSY;
use super::{Gate, Limits};
use crate::log::{self, Level};
use crate::metrics::Metrics;
use crate::secret::{Secret, reserve};

/// How long, and for how many bytes, the rest of a refused request is read and thrown away: closing a connection with
/// unread bytes would reset it, and the client would never see why it was refused.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 256 * 1024);

/// The most bytes that are read at a time.
const PIECE: usize = 4096;

/// What tells a client to send its body (RFC 9110 section 15.2.1).
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

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
        let mut head = head::read(&self.unread[..end], limits.body)?;
        self.forget(end);
        if head.is_chunked {
            if head.expects_continue && self.unread.is_empty() {
                self.write(&mut [IoSlice::new(CONTINUE)], limits.answer).map_err(|_| TOO_SLOW)?;
            }
            let Some(body) = self.read_chunks(gate, id, deadline)? else { return Ok(None) };
            head.body = body.len();
            return Ok(Some((head, body)));
        }
        let length = head.body;
        if length > limits.small && !gate.reserve(id, Quota::RequestBytes, length, deadline) {
            return Err(BUSY);
        }
        let missing = length.saturating_sub(self.unread.len());
        if head.expects_continue && missing > 0 {
            self.write(&mut [IoSlice::new(CONTINUE)], limits.answer).map_err(|_| TOO_SLOW)?;
        }
        reserve(&mut self.unread, missing);
        while self.unread.len() < length {
            if self.read_until(deadline, length - self.unread.len())? == 0 {
                return Ok(None);
            }
        }
        if length == 0 {
            return Ok(Some((head, Secret::default())));
        }
        // What came after it begins the next request.
        let rest = Secret::new(self.unread[length..].to_vec());
        let mut body = std::mem::replace(&mut self.unread, rest);
        body.truncate(length);
        Ok(Some((head, body)))
    }

    /// A body that comes in chunks (RFC 9112 section 7.1); none when the client has gone. Extensions and trailers mean nothing
    /// here, and together with the sizes they take no more than a head.
    fn read_chunks(&mut self, gate: &Gate, id: u64, deadline: Instant) -> Result<Option<Secret<Vec<u8>>>, Refusal> {
        let limits = &gate.limits;
        let mut body = Secret::new(Vec::new());
        let (mut around, mut is_large) = (0, false);
        loop {
            let (start, size) = loop {
                if let Some(found) = head::chunk(&self.unread)? {
                    break found;
                }
                if self.read_until(deadline, PIECE)? == 0 {
                    return Ok(None);
                }
            };
            self.forget(start);
            around += start;
            let size = usize::try_from(size).ok().filter(|size| body.len().saturating_add(*size) <= limits.body);
            let size = size.filter(|_| around <= limits.head).ok_or(BODY_TOO_LARGE)?;
            if size == 0 {
                break;
            }
            if body.len() + size > limits.small && !is_large {
                if !gate.reserve(id, Quota::RequestBytes, limits.body, deadline) {
                    return Err(BUSY);
                }
                is_large = true;
            }
            let room = (body.len() + size).next_multiple_of(PIECE) - body.len();
            reserve(&mut body, room);
            let mut left = size;
            while left > 0 {
                if self.unread.is_empty() && self.read_until(deadline, PIECE)? == 0 {
                    return Ok(None);
                }
                let taken = left.min(self.unread.len());
                body.extend_from_slice(&self.unread[..taken]);
                self.forget(taken);
                left -= taken;
            }
            match self.read_line(deadline)? {
                Some(line) if line.is_empty() => around += 2,
                Some(_) => return Err(BAD_CHUNK),
                None => return Ok(None),
            }
        }
        loop {
            match self.read_line(deadline)? {
                Some(line) if line.is_empty() => return Ok(Some(body)),
                Some(line) => around += line.len() + 2,
                None => return Ok(None),
            }
            if around > limits.head {
                return Err(BODY_TOO_LARGE);
            }
        }
    }

    /// A line of a body without its end; none when the client has gone.
    fn read_line(&mut self, deadline: Instant) -> Result<Option<Secret<Vec<u8>>>, Refusal> {
        loop {
            if let Some(at) = self.unread.iter().position(|byte| *byte == b'\n') {
                let mut line = Secret::new(self.unread[..at].to_vec());
                self.forget(at + 1);
                return if line.pop() == Some(b'\r') { Ok(Some(line)) } else { Err(BAD_CHUNK) };
            }
            if self.unread.len() > PIECE {
                return Err(BAD_CHUNK);
            }
            if self.read_until(deadline, PIECE)? == 0 {
                return Ok(None);
            }
        }
    }

    /// Drops the first bytes of those that have been read and not been used.
    fn forget(&mut self, bytes: usize) {
        self.unread = Secret::new(self.unread[bytes..].to_vec());
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
            reserve(&mut self.unread, STEP);
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
            match self.read_until(deadline, PIECE) {
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
         Cache-Control: no-store\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
