//! Requests and responses as the handlers see them: plain values, whole and bounded.
//!
//! Knows no sockets, no tiny_http and no routes.

use std::borrow::Cow;
use std::time::Instant;

use form_urlencoded::parse;

use crate::secret::wipe;

/// Headers that say why a browser asks.
pub const PURPOSES: [&str; 4] = ["sec-purpose", "purpose", "x-purpose", "x-moz"];

/// A request that the gate has let through.
pub struct Request {
    /// The method as sent, such as `GET`.
    pub method: String,
    /// What comes before the first `?` of the target, as sent.
    pub path: String,
    /// What comes after it; none if there is no `?`.
    pub query: Option<String>,
    /// Header names in lower case, each with its value; only those that [`crate::gate`] lets through.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
    /// When a worker took it.
    pub arrived: Instant,
}

impl Request {
    /// Splits a request target in origin form (RFC 9112 section 3.2.1).
    pub fn new(method: &str, target: &str, headers: Vec<(String, String)>) -> Request {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        // As in Prosody, several slashes are one: a base address that ends in a slash, put before a path, makes two.
        let mut path = path.to_owned();
        while path.contains("//") {
            path = path.replace("//", "/");
        }
        Request { method: method.to_owned(), path, query, headers, body: Vec::new(), arrived: Instant::now() }
    }

    /// The value of a header, by its name in lower case. The gate lets each through once at most.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The decoded value of a pair in the query; where there are several, the last one counts.
    ///
    /// As in Prosody, a bare word is not a pair: `?a` has no `a`, `?a=` has an empty one.
    pub fn query_value(&self, name: &str) -> Option<String> {
        let mut pairs = self.query.as_deref()?.split('&').filter_map(|pair| Some((pair.split_once('=')?.0, pair)));
        // Only the value that is asked for is decoded, and so copied: another one could be a key.
        let is_it = |key: &str| parse(key.as_bytes()).next().map_or(name.is_empty(), |(key, _)| key == name);
        let (_, pair) = pairs.rfind(|(key, _)| is_it(key))?;
        parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned())
    }

    /// The media type of the body in lower case, without parameters; empty if there is none.
    pub fn media_type(&self) -> String {
        let value = self.header("content-type").unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    /// The decoded pairs of a body that is a form, one after the other: there can be thousands.
    pub fn form(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        parse(&self.body)
    }

    /// Whether a program asks that would rather have JSON: it says so, or it sent JSON and says nothing else.
    pub fn wants_json(&self) -> bool {
        self.accepts("application/json")
            || (self.media_type() == "application/json" && (self.header("accept").is_none() || self.accepts("*/*")))
    }

    /// Whether a media type is named among those that are accepted, and not as one that is not (`q=0`, RFC 9110 section 12.5.1).
    fn accepts(&self, media_type: &str) -> bool {
        self.header("accept").unwrap_or_default().split(',').any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let is_it = parts.next().is_some_and(|found| found.eq_ignore_ascii_case(media_type));
            let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
            is_it && weight.and_then(|weight| weight.parse::<f32>().ok()) != Some(0.0)
        })
    }

    /// The coding of the body's content, such as `gzip`; none where it comes as it is.
    pub fn content_coding(&self) -> Option<&str> {
        self.header("content-encoding").map(str::trim).filter(|coding| !coding.eq_ignore_ascii_case("identity"))
    }

    /// Whether a browser loads this ahead, since somebody may open it (`Sec-Purpose`, and the headers that came before it).
    pub fn is_prefetch(&self) -> bool {
        PURPOSES.iter().any(|name| {
            self.header(name).is_some_and(|value| {
                let value = value.to_ascii_lowercase();
                ["prefetch", "prerender", "preview"].iter().any(|purpose| value.contains(purpose))
            })
        })
    }

    /// Whether a person's browser asks, rather than a program: it names `text/html` among what it accepts.
    pub fn wants_html(&self) -> bool {
        self.accepts("text/html")
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // A key can be in the query or in a header, a token in the path, a password in the body.
        wipe(&mut self.body);
        wipe(&mut self.path);
        wipe(&mut self.query);
        self.headers.iter_mut().for_each(|(_, value)| wipe(value));
    }
}

/// A response on its way out.
#[derive(Debug)]
pub struct Response {
    /// The status code (RFC 9110 section 15).
    pub status: u16,
    /// Names and values, all of them ASCII without line breaks.
    pub headers: Vec<(&'static str, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Response {
    /// A response without headers or body.
    pub fn new(status: u16) -> Response {
        Response { status, headers: Vec::new(), body: Vec::new() }
    }

    /// The same with one more header.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Response {
        self.headers.push((name, value.into()));
        self
    }

    /// The same with a body of this media type.
    pub fn with_body(mut self, media_type: &'static str, body: impl Into<Vec<u8>>) -> Response {
        self.body = body.into();
        self.with("Content-Type", media_type)
    }
}

/// A response, and what the log says of it.
#[derive(Debug)]
pub struct Answer {
    /// What the client gets.
    pub response: Response,
    /// One word that says why, to search the log for.
    pub reason: &'static str,
    /// The id of the key that the request was made with, once it is known to be a key of ours.
    pub key: Option<String>,
    /// For the log alone: what went wrong inside.
    pub detail: Option<String>,
}

impl Answer {
    /// An answer without a key.
    pub fn new(reason: &'static str, response: Response) -> Answer {
        Answer { response, reason, key: None, detail: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(query: &str, name: &str) -> Option<String> {
        Request::new("GET", &format!("/x?{query}"), Vec::new()).query_value(name)
    }

    #[test]
    fn the_last_pair_counts_and_a_bare_word_is_none() {
        assert_eq!(value("key=a&key=b", "key").as_deref(), Some("b"));
        assert_eq!(value("key=a%2Fb", "key").as_deref(), Some("a/b"));
        assert_eq!(value("key=a/b=c", "key").as_deref(), Some("a/b=c"));
        assert_eq!(value("k%65y=x", "key").as_deref(), Some("x"));
        assert_eq!(value("redirect", "redirect"), None);
        assert_eq!(value("redirect=", "redirect").as_deref(), Some(""));
        assert_eq!(value("", "key"), None);
        assert_eq!(value("key=%zz%f", "key").as_deref(), Some("%zz%f"));
    }

    #[test]
    fn what_is_accepted_with_no_weight_is_not_wished_for() {
        let wants = |headers: &[(&str, &str)]| {
            let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let request = Request::new("POST", "/x", headers);
            (request.wants_json(), request.wants_html())
        };
        for (accept, json, html) in [
            ("application/json", true, false),
            ("Application/JSON;q=0.5, text/html", true, true),
            ("text/html,application/json;q=0", false, true),
            ("text/html; q=0.0, application/json; q=0", false, false),
            ("application/json-seq", false, false),
            ("*/*", false, false),
            ("", false, false),
        ] {
            assert_eq!(wants(&[("accept", accept)]), (json, html), "{accept}");
        }
        assert_eq!(wants(&[("content-type", "application/json; charset=utf-8")]), (true, false));
        assert_eq!(wants(&[("content-type", "application/json"), ("accept", "*/*")]), (true, false));
        assert_eq!(wants(&[("content-type", "application/json"), ("accept", "*/*;q=0")]), (false, false));
    }

    #[test]
    fn a_target_splits_at_its_first_question_mark() {
        let request = Request::new("GET", "/invite?a?b", Vec::new());
        assert_eq!((request.path.as_str(), request.query.as_deref()), ("/invite", Some("a?b")));
        assert_eq!(Request::new("GET", "/invite", Vec::new()).query, None);
    }
}
