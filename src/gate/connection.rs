//! One client's connection: reads a request whole, has it answered, writes the answer, and again.

use std::fmt::Display;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::head::{self, HEAD_TOO_LARGE, Head, Refusal, TOO_SLOW};
use super::socket::{Door, Stream};
use super::{Gate, Limits};
use crate::log::{self, Level};
use crate::metrics::Metrics;
use crate::secret::{Secret, reserve};

/// How long, and for how many bytes, the rest of a refused request is read and thrown away: closing a connection with
/// unread bytes would reset it, and the client would never see why it was refused.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 256 * 1024);

/// How many bytes are read at a time.
const READ: usize = 4096;

/// Serves a connection to its end.
pub fn serve(gate: &Gate, id: u64, stream: &Stream, door: Door) {
    stream.set_nodelay();
    let peer = stream.peer();
    let mut client = Client { stream, unread: Secret::default(), timeout: None };
    let mut patience = gate.limits.request;
    loop {
        let (head, body) = match client.read_request(gate, patience) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(refusal) => return client.refuse(&gate.metrics, refusal, &peer, gate.limits.answer),
        };
        if !gate.set_waiting(id, false) {
            // It had to give way in the meantime: nobody would hear what came of the request, so that nothing must.
            return;
        }
        let request = head::rewrite(&head, &peer, door, &body);
        let answer = match gate.upstream.exchange(&request, head.is_head, gate.limits.worker) {
            Ok(answer) => answer,
            Err(refusal) => {
                gate.set_waiting(id, true);
                return client.refuse(&gate.metrics, refusal, &peer, gate.limits.answer);
            }
        };
        // From here on it waits for its client again: who doesn't take an answer gives way like who doesn't send a request.
        let keep_alive = gate.set_waiting(id, true) && head.keep_alive;
        let bytes = answer.bytes(if keep_alive { "keep-alive" } else { "close" });
        if client.write(&bytes, gate.limits.answer).is_err() {
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
    Client { stream, unread: Secret::default(), timeout: None }.refuse(
        &Metrics::default(),
        refusal,
        &stream.peer(),
        limits.answer,
    );
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
    /// The next request with its body; none when the client has gone or keeps silent.
    ///
    /// `patience` is for its first byte; from there on the limit for a whole request counts.
    fn read_request(&mut self, gate: &Gate, patience: Duration) -> Result<Option<Whole>, Refusal> {
        let limits = &gate.limits;
        let mut deadline = Instant::now() + limits.request;
        let mut seen = 0;
        // Some clients send an empty line after a body (RFC 9112 section 2.2): one is overlooked.
        let mut empty_lines = 0;
        let end = loop {
            if empty_lines == 0 && self.unread.starts_with(b"\r\n") {
                self.unread.drain(..2);
                empty_lines += 1;
            }
            if self.unread.as_slice() != b"\r" {
                if let Some(end) = head::end(&self.unread, seen)? {
                    if end > limits.head {
                        return Err(HEAD_TOO_LARGE);
                    }
                    break end;
                }
                seen = self.unread.len();
            }
            if self.unread.len() >= limits.head {
                return Err(HEAD_TOO_LARGE);
            }
            let read = if self.unread.is_empty() {
                match self.read(patience) {
                    // The client said nothing, so that nothing needs to be said to it.
                    Err(_) | Ok(0) => return Ok(None),
                    Ok(read) => {
                        deadline = Instant::now() + limits.request;
                        read
                    }
                }
            } else {
                self.read_until(deadline)?
            };
            if read == 0 {
                return Ok(None);
            }
        };
        let head = head::read(&self.unread[..end], limits.body)?;
        let whole = end + head.body;
        if head.expects_continue && self.unread.len() < whole {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n", limits.answer).map_err(|_| TOO_SLOW)?;
        }
        let missing = whole.saturating_sub(self.unread.len());
        reserve(&mut self.unread, missing + READ);
        while self.unread.len() < whole {
            if self.read_until(deadline)? == 0 {
                return Ok(None);
            }
        }
        let body = Secret::new(self.unread[end..whole].to_vec());
        self.unread = Secret::new(self.unread[whole..].to_vec());
        Ok(Some((head, body)))
    }

    fn read_until(&mut self, deadline: Instant) -> Result<usize, Refusal> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(TOO_SLOW);
        }
        match self.read(left) {
            Ok(read) => Ok(read),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Err(TOO_SLOW),
            Err(_) => Ok(0),
        }
    }

    /// Reads some bytes, waiting no longer than this; 0 when the client has closed its side.
    fn read(&mut self, wait: Duration) -> io::Result<usize> {
        if self.timeout != Some(wait) {
            // A timeout of zero would mean none at all.
            self.stream.set_read_timeout(wait.max(Duration::from_millis(1)))?;
            self.timeout = Some(wait);
        }
        let unread = self.unread.len();
        reserve(&mut self.unread, READ);
        self.unread.resize(unread + READ, 0);
        let read = loop {
            match { self.stream }.read(&mut self.unread[unread..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.unread.truncate(unread + *read.as_ref().unwrap_or(&0));
        read
    }

    /// Writes all bytes within this time.
    fn write(&mut self, mut bytes: &[u8], limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        self.stream.set_write_timeout(limit)?;
        while !bytes.is_empty() {
            match { self.stream }.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if bytes.is_empty() {
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
        let answer = format!(
            "HTTP/1.1 {status} {title}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{retry}\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        if self.write(answer.as_bytes(), limit).is_ok() {
            self.linger();
        }
    }

    fn linger(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let deadline = Instant::now() + LINGER.0;
        let mut thrown_away = 0;
        while thrown_away < LINGER.1 {
            self.unread.clear();
            match self.read_until(deadline) {
                Ok(read) if read > 0 => thrown_away += read,
                _ => return,
            }
        }
    }
}
