//! Reads the head of a request strictly and writes it anew for the loop behind the gate.
//!
//! Pure: bytes in, a verdict out. What has two readings is refused, so that nobody behind can take it for something else
//! (request smuggling, RFC 9112 section 11.2). The only file that names httparse.

use std::fmt::Write as _;

use super::socket::Door;
use super::{DOOR, PEER};
use crate::client::PROXY_HEADERS;
use crate::secret::Secret;

/// The most header lines of a request.
const HEADERS: usize = 64;

/// The headers that handlers may see, all others end here: the fewer get through, the fewer can do harm.
const PASSED: &[&str] = &[
    "host",
    "authorization",
    "accept",
    "accept-language",
    "content-type",
    "user-agent",
    "idempotency-key",
    "sec-ch-ua-platform",
    "sec-purpose",
    "purpose",
    "x-purpose",
    "x-moz",
    "sec-fetch-site",
    "content-encoding",
];

/// Room for the lines that the gate adds to a head.
const COMPLETION: usize = 256;

/// Why a request is refused: the status of the answer, and a word for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code.
    pub status: u16,
    /// The word to search the log for.
    pub reason: &'static str,
}

const fn refuse(status: u16, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

/// The client took longer than it may.
pub const TOO_SLOW: Refusal = refuse(408, "gate-timeout");
/// The head is larger than it may be.
pub const HEAD_TOO_LARGE: Refusal = refuse(431, "gate-head-too-large");
/// The body is larger than it may be.
pub const BODY_TOO_LARGE: Refusal = refuse(413, "gate-body-too-large");
/// The body is not what chunks look like.
pub const BAD_CHUNK: Refusal = refuse(400, "gate-chunk");

/// A head that was found good.
#[derive(Debug)]
pub struct Head {
    /// Written anew for the loop behind the gate; whole once it is [`Head::completed`].
    pub rewritten: Secret<String>,
    /// Bytes of body that follow; of one that comes in chunks, none until it has been read.
    pub body: usize,
    /// Whether the body comes in chunks (RFC 9112 section 7.1).
    pub is_chunked: bool,
    /// Whether the answer to it has no body, its method being `HEAD`.
    pub is_head: bool,
    /// Whether the client is able and willing to send another request on the same connection.
    pub keep_alive: bool,
    /// Whether the client waits for a word before it sends the body (RFC 9110 section 10.1.1).
    pub expects_continue: bool,
}

/// Where the head ends, counted from the start of `bytes`; none if it is not all there.
///
/// `seen` bytes were looked at before. Refuses at the first byte that can't belong to a request.
pub fn end(bytes: &[u8], seen: usize) -> Result<Option<usize>, Refusal> {
    match bytes.first() {
        None => return Ok(None),
        // A letter begins every method: this refuses TLS and binary protocols at once instead of after a timeout.
        Some(first) if !first.is_ascii_alphabetic() => return Err(refuse(400, "gate-not-http")),
        Some(_) => {}
    }
    for at in seen..bytes.len() {
        match bytes[at] {
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => return Err(refuse(400, "gate-bare-lf")),
            b'\n' if bytes[..at - 1].ends_with(b"\r\n") => return Ok(Some(at + 1)),
            b'\n' => {}
            0 => return Err(refuse(400, "gate-nul")),
            _ if at > 0 && bytes[at - 1] == b'\r' => return Err(refuse(400, "gate-bare-cr")),
            _ => {}
        }
    }
    Ok(None)
}

/// Reads a whole head. `body_max` is the most bytes of body that are taken.
pub fn read(bytes: &[u8], body_max: usize) -> Result<Head, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(refuse(400, "gate-malformed")),
        Err(httparse::Error::TooManyHeaders) => return Err(refuse(431, "gate-too-many-headers")),
        Err(httparse::Error::Version) => return Err(refuse(505, "gate-version")),
        Err(_) => return Err(refuse(400, "gate-malformed")),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(refuse(400, "gate-malformed"));
    };
    let is_new = version == 1;
    let headers = Headers(request.headers);
    if headers.count("host") > 1 || (is_new && headers.count("host") == 0) {
        return Err(refuse(400, "gate-host"));
    }
    let is_chunked = is_chunked(&headers, is_new)?;
    let (body, expects_continue) = body(&headers, body_max, is_chunked)?;
    // With room for all that came, so that it does not grow, and leave copies of keys behind.
    let mut rewritten = Secret::new(String::with_capacity(bytes.len() + COMPLETION));
    let room = rewritten.capacity();
    let _ = write!(rewritten, "{method} {} HTTP/1.1\r\n", origin_form(method, target)?);
    let mut pass = |name: &str, value: &[u8]| {
        // tiny_http takes ASCII alone; a byte of another script must not make the header disappear, nor turn it into
        // one that is good. (ASCII has a control character for just that: SUB.)
        let ascii = |byte: &u8| if byte.is_ascii() { char::from(*byte) } else { '\u{1a}' };
        rewritten.extend([name, ": "]);
        rewritten.extend(value.trim_ascii().iter().map(ascii));
        rewritten.push_str("\r\n");
    };
    // Several of one name are one list, whose last entry is the nearest proxy's.
    for name in PROXY_HEADERS {
        if let Some(value) = headers.all(name).last() {
            pass(name, value);
        }
    }
    for name in PASSED {
        if let Some(value) = headers.single(name)? {
            pass(name, value);
        }
    }
    let has = |word: &str| headers.has_word("connection", word);
    debug_assert_eq!(rewritten.capacity(), room);
    Ok(Head {
        rewritten,
        body,
        is_chunked,
        is_head: method == "HEAD",
        keep_alive: if is_new { !has("close") } else { has("keep-alive") },
        expects_continue: expects_continue && is_new,
    })
}

impl Head {
    /// Adds what the gate knows: who the client is, by which door it came, and how long the body is.
    pub fn completed(mut self, peer: &str, door: Door) -> Head {
        if door == Door::Admin {
            let _ = write!(self.rewritten, "{DOOR}: admin\r\n");
        }
        let _ = write!(self.rewritten, "{PEER}: {peer}\r\ncontent-length: {}\r\n\r\n", self.body);
        self
    }
}

/// The target as path and query, whichever legal form it came in (RFC 9112 section 3.2).
fn origin_form<'a>(method: &str, target: &'a str) -> Result<&'a str, Refusal> {
    let target_is_bad = refuse(400, "gate-target");
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(target_is_bad);
    }
    let path = if target.starts_with('/') {
        target
    } else if target == "*" && method == "OPTIONS" {
        // The loop behind the gate keeps `*` for the gate.
        "/*"
    } else {
        let scheme = target.get(..8).filter(|s| s.eq_ignore_ascii_case("https://")).map(str::len);
        let scheme = scheme.or_else(|| target.get(..7).filter(|s| s.eq_ignore_ascii_case("http://")).map(str::len));
        let rest = target.get(scheme.ok_or(target_is_bad)?..).unwrap_or_default();
        let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let path = &rest[at..];
        if path.is_empty() { "/" } else { path }
    };
    if path.starts_with('/') && !path.contains('#') { Ok(path) } else { Err(target_is_bad) }
}

/// The length of the body, and whether the client waits to be told to send it.
fn body(headers: &Headers, body_max: usize, is_chunked: bool) -> Result<(usize, bool), Refusal> {
    let length = match headers.single("content-length").map_err(|_| refuse(400, "gate-two-lengths"))? {
        None => 0,
        Some(value) => {
            let digits = value.trim_ascii();
            if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                return Err(refuse(400, "gate-length"));
            }
            // A number that does not fit is too large as well.
            let length = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
            length.filter(|length| *length <= body_max).ok_or(BODY_TOO_LARGE)?
        }
    };
    let expects_continue = match headers.single("expect")? {
        None => false,
        Some(value) if value.trim_ascii().eq_ignore_ascii_case(b"100-continue") => length > 0 || is_chunked,
        Some(_) => return Err(refuse(417, "gate-expectation")),
    };
    Ok((length, expects_continue))
}

/// Whether the body comes in chunks. Any other coding of its transfer is refused, and so is a length beside it: somebody on the
/// way could have read the other one.
fn is_chunked(headers: &Headers, is_new: bool) -> Result<bool, Refusal> {
    let mut codings = headers.all("transfer-encoding");
    let Some(coding) = codings.next() else { return Ok(false) };
    if headers.count("content-length") > 0 {
        return Err(refuse(400, "gate-two-lengths"));
    }
    let is_known = coding.trim_ascii().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
    if is_known && is_new { Ok(true) } else { Err(refuse(400, "gate-transfer-coding")) }
}

/// The beginning of a chunk: how many bytes it takes, and how many bytes of body follow it; none if it is not all there.
pub fn chunk(bytes: &[u8]) -> Result<Option<(usize, u64)>, Refusal> {
    let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
    // What is not a size, or an extension of it, can belong to no chunk.
    match httparse::parse_chunk_size(&bytes[..end]) {
        Ok(httparse::Status::Complete(found)) => Ok(Some(found)),
        Ok(httparse::Status::Partial) if end == bytes.len() && bytes.len() < CHUNK_LINE => Ok(None),
        _ => Err(BAD_CHUNK),
    }
}

/// The most bytes of the line that begins a chunk.
const CHUNK_LINE: usize = 256;

struct Headers<'a>(&'a [httparse::Header<'a>]);

impl Headers<'_> {
    fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s [u8]> {
        self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    fn count(&self, name: &str) -> usize {
        self.all(name).count()
    }

    /// The value of a header that may be there once; for those that may be repeated, the first.
    fn single<'s>(&'s self, name: &'s str) -> Result<Option<&'s [u8]>, Refusal> {
        let repeatable = matches!(name, "accept" | "accept-language" | "user-agent");
        let mut values = self.all(name);
        let first = values.next();
        if !repeatable && values.next().is_some() {
            return Err(refuse(400, "gate-repeated-header"));
        }
        Ok(first)
    }

    /// Whether a list has this word, in any case.
    fn has_word(&self, name: &str, word: &str) -> bool {
        let mut words = self.all(name).flat_map(|list| list.split(|byte| *byte == b','));
        words.any(|found| found.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::copies_in_memory;

    fn status(request: &str) -> u16 {
        match end(request.as_bytes(), 0) {
            Err(refusal) => refusal.status,
            Ok(None) => 0,
            Ok(Some(at)) => read(&request.as_bytes()[..at], 100).map_or_else(|refusal| refusal.status, |_| 200),
        }
    }

    #[test]
    fn only_requests_with_one_reading_get_through() {
        for (expected, request) in [
            (200, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (200, "GET / HTTP/1.0\r\n\r\n"),
            (200, "POST /x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"),
            (200, "GET http://a.example/x HTTP/1.1\r\nHost: a\r\n\r\n"),
            (200, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
            (0, "GET / HTTP/1.1\r\nHost: a\r\n"),
            (400, "GET / HTTP/1.1\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
            (400, "GET / HTTP/1.1\nHost: a\n\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"),
            (400, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "GET x HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "\u{16}\u{3}\u{1}"),
            (400, "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (505, "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
            (505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            (200, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked \r\n\r\n"),
            (400, "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n"),
            (413, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n"),
            (413, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n"),
            (417, "POST / HTTP/1.1\r\nHost: a\r\nExpect: cake\r\nContent-Length: 1\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n"),
        ] {
            assert_eq!(status(request), expected, "{request:?}");
        }
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(100));
        assert_eq!(status(&many), 431);
    }

    #[test]
    fn what_goes_on_is_written_anew_and_holds_nothing_of_ours_from_outside() {
        let request = b"POST http://a.example?x HTTP/1.1\r\nHost: a\r\nX-Invited-Peer: 1.2.3.4\r\nTE: chunked\r\n\
            Connection: close\r\nUser-Agent:  M\xc3\xbc \r\nContent-Length: 3\r\n\r\n";
        assert!(read(request, 100).is_err(), "a query without a path has no origin form");
        let request = String::from_utf8_lossy(request).replace("example?x", "example/?x");
        let head = read(request.as_bytes(), 100).unwrap();
        assert!(!head.keep_alive);
        assert_eq!(
            head.completed("::1", Door::Guests).rewritten.as_str(),
            "POST /?x HTTP/1.1\r\nhost: a\r\nuser-agent: M\u{1a}\u{1a}\r\nx-invited-peer: ::1\r\ncontent-length: 3\r\n\r\n"
        );
    }

    #[test]
    fn no_copy_of_a_key_outlives_its_request() {
        let key = Secret::new(crate::random::base64url::<48>().unwrap());
        // The first bytes of freed memory are used for other things.
        let turned: Vec<u8> = key.bytes().skip(32).map(|byte| !byte).collect();
        let pieces = ["GET /x?key=", &key, " HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ", &key, "\r\n\r\n"];
        let request = crate::secret::concat(&pieces);
        assert_eq!(copies_in_memory(&turned), 3);
        let head = read(request.as_bytes(), 100).unwrap();
        let rewritten = head.completed("::1", Door::Guests).rewritten;
        assert_eq!(copies_in_memory(&turned), 5);
        drop((request, rewritten, key));
        assert_eq!(copies_in_memory(&turned), 0);
    }

    #[test]
    fn a_connection_is_kept_as_its_version_says() {
        let keep = |request: &str| read(request.as_bytes(), 0).unwrap().keep_alive;
        assert!(keep("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(!keep("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n"));
        assert!(!keep("GET / HTTP/1.0\r\n\r\n"));
        assert!(keep("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
    }
}
