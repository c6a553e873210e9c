//! A blocking HTTP/1.1 client for `GET` and `HEAD`, one request a connection, with or without TLS.
//!
//! Takes what servers send as it is, within limits, and follows nothing. Knows no routes. No error holds the target.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::wire::{Certificate, Wire};

/// The most bytes that a server may send for one answer, TLS included: a page is some 20 KB, with a logo and a style more.
const BYTES: usize = 512 * 1024;

/// Where a server is: the parts of an address `http://HOST:PORT/PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Whether it is `https`.
    pub tls: bool,
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What comes before all paths; without a slash at its end.
    path: String,
}

impl Base {
    /// Reads an address as the setting `url` has it, without a query.
    pub fn parse(url: &str) -> Option<Base> {
        let (tls, rest) = match url.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, url.strip_prefix("http://")?),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let default = if tls { 443 } else { 80 };
        let bracketed = authority.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (host, port) = match bracketed {
            Some((host, "")) => (host, default),
            Some((host, port)) => (host, port.strip_prefix(':')?.parse().ok()?),
            None => match authority.split_once(':') {
                Some((host, port)) => (host, port.parse().ok()?),
                None => (authority, default),
            },
        };
        let path = path.trim_end_matches('/').to_owned();
        (!host.is_empty()).then(|| Base { tls, host: host.to_owned(), port, path })
    }

    /// The same without TLS, at the usual port.
    pub fn without_tls(&self) -> Base {
        Base { tls: false, port: 80, ..self.clone() }
    }

    /// Whether it is on the port that everybody tries.
    pub fn has_usual_port(&self) -> bool {
        self.port == if self.tls { 443 } else { 80 }
    }

    /// The name with the port where that is not the usual one.
    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.has_usual_port() { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// A connection for one request.
pub struct Client<'a> {
    wire: Wire,
    base: &'a Base,
}

impl<'a> Client<'a> {
    /// Connects; the deadline is for the answer as well. Where `trust` is wanted, a certificate must be good, see
    /// [`Wire::with_tls`].
    pub fn connect(base: &'a Base, deadline: Instant, trust: bool) -> Result<Client<'a>> {
        let wire = Wire::connect(&base.host, base.port, deadline, BYTES)?;
        let wire = if base.tls { wire.with_tls(&base.host, b"http/1.1", trust)? } else { wire };
        Ok(Client { wire, base })
    }

    /// What is to be said of the certificate, see [`Wire::certificate`]; none without TLS.
    pub fn certificate(&self, now: i64, later: i64) -> Result<Option<Certificate>> {
        self.wire.certificate(&self.base.host, now, later)
    }

    /// Whether the server is on this very machine.
    pub fn is_local(&self) -> bool {
        self.wire.is_local()
    }

    /// Sends a request and reads its answer. The target comes after the path of the base, and begins with a slash.
    pub fn request(mut self, method: &str, target: &str) -> Result<Reply> {
        let head = format!(
            "{method} {}{target} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            self.base.path,
            self.base.authority(),
            concat!("invited-doctor/", env!("CARGO_PKG_VERSION")),
        );
        let mut bytes = Vec::new();
        let sent = self.wire.write_all(head.as_bytes()).and_then(|()| self.wire.flush());
        let outcome = sent.and_then(|()| read(&mut self.wire, &mut bytes, method == "HEAD"));
        match outcome {
            // An answer that came before the connection broke off is one.
            Err(error) if parse(&bytes, method == "HEAD").is_none() => Err(match self.wire.is_over() {
                true => Error::unavailable("it does not answer in time"),
                false => Error::unavailable(error.to_string()),
            }),
            _ => parse(&bytes, method == "HEAD").ok_or_else(|| {
                Error::unavailable(if bytes.is_empty() {
                    "it closes the connection"
                } else {
                    "it answers with something other than HTTP/1.1"
                })
            }),
        }
    }
}

/// Reads until the answer is whole, or the connection ends.
fn read(wire: &mut Wire, bytes: &mut Vec<u8>, is_head: bool) -> std::io::Result<()> {
    let mut piece = [0; 8192];
    loop {
        match wire.read(&mut piece)? {
            0 => return Ok(()),
            length => bytes.extend_from_slice(&piece[..length]),
        }
        if is_whole(bytes, is_head) {
            return Ok(());
        }
    }
}

/// Whether nothing more is to come, for servers that don't close the connection.
fn is_whole(bytes: &[u8], is_head: bool) -> bool {
    let bytes = after_interim(bytes);
    let Some(end) = head_end(bytes) else { return false };
    let Some(reply) = parse(bytes, true) else { return false };
    match reply.header("content-length").and_then(|length| length.parse::<usize>().ok()) {
        _ if is_head || matches!(reply.status, 204 | 304) => true,
        _ if reply.is_chunked() => unchunk(&bytes[end..]).1,
        Some(length) => bytes.len() - end >= length,
        None => false,
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// The status in the first line of an answer.
fn status(line: &str) -> Option<u16> {
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

/// What comes after the heads that say that the real one is still to come (RFC 9110 section 15.2).
fn after_interim(mut bytes: &[u8]) -> &[u8] {
    while let Some(end) = head_end(bytes) {
        let line = bytes[..end].split(|byte| *byte == b'\r').next().unwrap_or_default();
        match status(&String::from_utf8_lossy(line)) {
            Some(100..200) => bytes = &bytes[end..],
            _ => break,
        }
    }
    bytes
}

/// Reads an answer; none where it is none.
fn parse(bytes: &[u8], is_head: bool) -> Option<Reply> {
    let bytes = after_interim(bytes);
    let end = head_end(bytes)?;
    let head = String::from_utf8_lossy(&bytes[..end - 4]).into_owned();
    let mut lines = head.split("\r\n");
    let status = status(lines.next()?)?;
    let headers = lines
        .map(|line| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())));
    let mut reply = Reply { status, headers: headers.collect::<Option<_>>()?, body: Vec::new() };
    if !is_head {
        reply.body = if reply.is_chunked() { unchunk(&bytes[end..]).0 } else { bytes[end..].to_vec() };
    }
    Some(reply)
}

/// The content of a body in chunks (RFC 9112 section 7.1), as far as it has come, and whether that is all.
fn unchunk(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let size = size.split(';').next().and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
        match size {
            Some(0) => return (body, true),
            Some(size) if bytes.len() - end - 2 >= size => {
                body.extend_from_slice(&bytes[end + 2..end + 2 + size]);
                bytes = bytes.get(end + 4 + size..).unwrap_or_default();
            }
            _ => break,
        }
    }
    (body, false)
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a header, by its name in lower case; the first one where there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// All values of a header.
    pub fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().ends_with("chunked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_shown() {
        for (url, host, port) in [
            ("https://example.com", "example.com", 443),
            ("http://127.0.0.1:8642/chat", "127.0.0.1", 8642),
            ("https://[::1]:8443", "::1", 8443),
            ("http://[2001:db8::1]/a", "2001:db8::1", 80),
        ] {
            let base = Base::parse(url).unwrap();
            assert_eq!((base.host.as_str(), base.port, base.to_string().as_str()), (host, port, url));
        }
        for bad in ["", "example.com", "ftp://x", "https://", "https://x:y", "https://[::1", "https:///x"] {
            assert_eq!(Base::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn any_number_of_interim_answers_is_passed_over() {
        let text = format!(
            "{}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(10_000)
        );
        assert!(is_whole(text.as_bytes(), false));
        assert_eq!(parse(text.as_bytes(), false).unwrap().body, b"ok");
    }

    #[test]
    fn answers_are_read_in_any_of_their_forms() {
        for (text, is_head, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\nhi", false, "hi"),
            ("HTTP/1.0 200 OK\r\nx:y\r\n\r\nhi", false, "hi"),
            (
                "HTTP/1.1 200\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
                false,
                "hi",
            ),
            ("HTTP/1.1 103 Early\r\nX: z\r\n\r\nHTTP/1.1 200 OK\r\nX: y\r\n\r\nhi", false, "hi"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\n", true, ""),
        ] {
            let reply = parse(text.as_bytes(), is_head).unwrap();
            assert_eq!((reply.status, reply.header("x"), reply.text().as_str()), (200, Some("y"), body), "{text}");
        }
        for bad in ["", "HTTP/1.1 200 OK\r\n", "HTTP/2 200\r\n\r\n", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 x\r\n\r\n"] {
            assert!(parse(bad.as_bytes(), false).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_end_of_an_answer_is_known_on_a_connection_that_stays() {
        for (text, is_head) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", true),
            ("HTTP/1.1 204 No Content\r\n\r\n", false),
        ] {
            assert!(is_whole(text.as_bytes(), is_head), "{text}");
            assert!(!is_whole(&text.as_bytes()[..text.len() - 3], is_head), "{text}");
        }
    }
}
