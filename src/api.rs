//! `/invites_api`: makes invites for whoever brings a good key, and shows and takes back what that key made.
//!
//! `GET` with only a key is the contract of Prosody's `mod_invites_api`, so that bookmarks and scripts written for it go on
//! working; the differences are listed in the README. Knows no sockets and no SQL.

pub mod body;
mod invites;

use crate::create::{HostSettings, Prepared, addresses};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::http::{Answer, Request, Response};
use crate::invite::{Allow, Wish};
use crate::json;
use crate::key::{self, Digest, Presented};
use crate::page::Pages;
use crate::secret::{Secret, concat};
use crate::store::{Readers, Writer};
use body::BadBody;

pub use invites::{list, one, revoke};

/// The description of this API for programs: OpenAPI 3.1.
const OPENAPI: &str = include_str!("api/openapi.json");

const JSON: &str = "application/json";

/// The longest `Idempotency-Key`.
const REQUEST_NAME_MAX: usize = 200;

/// A key that was found good.
pub struct Key {
    id: String,
    host: Host,
    allow: Allow,
    per_day: Option<u32>,
}

impl Key {
    /// The public half.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How invites of this key are marked, as in Prosody's `additional_data.source`.
    fn source(&self) -> String {
        key::source(&self.id)
    }
}

/// The key of a request, or the word for why it has no good one. The answer to the client is the same for all of these.
///
/// A header `Authorization` that is there decides alone; only without one the query's `key` counts.
pub fn authenticate(readers: &Readers, request: &Request, now: i64) -> Result<std::result::Result<Key, &'static str>> {
    let text = match request.header("authorization") {
        Some(value) => match bearer(value) {
            Some(token) => concat(&[token]),
            None => return Ok(Err("key-no-bearer")),
        },
        None => match request.query_value("key") {
            Some(value) => Secret::new(value),
            None => return Ok(Err("key-missing")),
        },
    };
    let Some(presented) = Presented::parse(&text) else {
        return Ok(Err("key-malformed"));
    };
    let Some(check) = readers.take().key_check(&presented.id)? else {
        return Ok(Err("key-unknown"));
    };
    if !check.digest.matches(&presented.digest) {
        return Ok(Err("key-wrong-secret"));
    }
    if check.expires_at.is_some_and(|expires_at| expires_at < now) {
        return Ok(Err("key-expired"));
    }
    let host = Host::parse(&check.host)?;
    Ok(Ok(Key { id: presented.id, host, allow: check.allow, per_day: check.per_day }))
}

/// The token of `Bearer TOKEN`, the scheme in any case (RFC 9110 section 11.1, RFC 6750 section 2.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ')).then_some(token)
}

/// How the write of a new invite ended.
enum Made {
    /// It is there.
    New,
    /// An earlier request with the same Idempotency-Key made the one with this token.
    Before(String),
    /// An earlier request with the same Idempotency-Key asked for something else.
    AnotherRequest,
    /// The key was deleted in the meantime.
    NoKey,
    /// The key has reached its limit for this many seconds.
    Wait(i64),
}

/// `GET` and `POST`: makes an invite and answers with its address, once it would survive a power cut.
///
/// 201 with `Location`; 303 where the query has a pair `redirect` that is not `false`, `0` or `no`. A `POST` says in its
/// body what it wants and gets the invite as JSON if it likes.
pub fn create(
    pages: &Pages,
    readers: &Readers,
    writer: &Writer,
    request: &Request,
    key: &Key,
    now: i64,
) -> Result<Answer> {
    let settings = HostSettings::read(&readers.take(), &key.host)?;
    let wish = match read_wish(request, &settings) {
        Ok(wish) => wish,
        Err(bad) => return Ok(bad_body(pages, request, &bad)),
    };
    if let Some(why) = key.allow.refuses(&wish) {
        return Ok(problem(pages, request, 403, "not-allowed", &why, None));
    }
    let repeatable = match request_name(request) {
        Ok(name) => name.map(|name| (name, request_digest(request))),
        Err(why) => return Ok(problem(pages, request, 400, "bad-field", why, Some("Idempotency-Key"))),
    };
    let prepared = Prepared::new(&readers.take(), &settings, &key.host, wish, &key.source(), now)?;
    let (token, url) = (prepared.invite.token.clone(), prepared.url.clone());
    match write(writer, key, prepared, repeatable, now)? {
        Made::New => created(readers, &settings, request, &token, Some(url), now, "created"),
        Made::Before(token) => created(readers, &settings, request, &token, None, now, "repeated"),
        Made::NoKey => Ok(refuse(pages, request, "key-unknown")),
        Made::AnotherRequest => {
            let why = "this Idempotency-Key came with another request before";
            Ok(problem(pages, request, 422, "another-request", why, Some("Idempotency-Key")))
        }
        Made::Wait(seconds) => {
            let why = "this key has made as many invites as it may in 24 hours";
            let answer = problem(pages, request, 429, "key-limit", why, None);
            Ok(Answer { response: answer.response.with("Retry-After", seconds.to_string()), ..answer })
        }
    }
}

fn write(
    writer: &Writer,
    key: &Key,
    prepared: Prepared,
    repeatable: Option<(String, Digest)>,
    now: i64,
) -> Result<Made> {
    let (id, source, per_day) = (key.id.clone(), key.source(), key.per_day);
    writer.write(move |tx| {
        if !tx.has_key(&id)? {
            return Ok(Made::NoKey);
        }
        if let Some((name, digest)) = &repeatable {
            match tx.earlier_request(&source, name, now)? {
                Some((token, earlier)) if earlier.matches(digest) => return Ok(Made::Before(token)),
                Some(_) => return Ok(Made::AnotherRequest),
                None => {}
            }
        }
        let wait = per_day.map(|per_day| tx.wait_secs(&source, per_day, now)).transpose()?.flatten();
        if let Some(seconds) = wait {
            return Ok(Made::Wait(seconds));
        }
        if let Some((name, digest)) = &repeatable {
            tx.remember_request(&source, name, digest, &prepared.invite.token, now)?;
        }
        tx.add_invite(&prepared.invite, &prepared.rows)?;
        if per_day.is_some() {
            tx.count_invite(&prepared.invite)?;
        }
        Ok(Made::New)
    })
}

fn created(
    readers: &Readers,
    settings: &HostSettings,
    request: &Request,
    token: &str,
    url: Option<String>,
    now: i64,
    reason: &'static str,
) -> Result<Answer> {
    let redirect = request.query_value("redirect").is_some_and(|value| !matches!(value.as_str(), "false" | "0" | "no"));
    let with_body = request.method == "POST" && request.wants_json();
    let url = match url {
        Some(url) if redirect || !with_body => url,
        _ => {
            let store = readers.take();
            let found = store.invite(token)?;
            let invite = found.ok_or_else(|| Error::internal("an invite that was just written is not there"))?;
            let (uri, url) = addresses(settings, &invite)?;
            if with_body && !redirect {
                let body = json::invite(&invite, &uri, &url, &store.uses(token)?, now);
                let response = Response::new(201).with("Location", url).with_body(JSON, format!("{body}\n"));
                return Ok(Answer::new(reason, response));
            }
            url
        }
    };
    let (status, reason) = match (redirect, reason) {
        (true, "created") => (303, "created-redirect"),
        (true, reason) => (303, reason),
        (false, reason) => (201, reason),
    };
    Ok(Answer::new(reason, Response::new(status).with("Location", url)))
}

fn read_wish(request: &Request, settings: &HostSettings) -> std::result::Result<Wish, BadBody> {
    // A body that comes with GET means nothing (RFC 9110 section 9.3.1).
    let wish = if request.method == "POST" { body::wish(request)? } else { Wish::account() };
    wish.check(settings.server)?;
    Ok(wish)
}

/// The name under which a `POST` can be repeated safely, from the header `Idempotency-Key`.
fn request_name(request: &Request) -> std::result::Result<Option<String>, &'static str> {
    match request.header("idempotency-key") {
        Some(name) if request.method == "POST" => {
            let good = (1..=REQUEST_NAME_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
            if good { Ok(Some(name.to_owned())) } else { Err("it must be 1 to 200 visible ASCII characters") }
        }
        _ => Ok(None),
    }
}

/// What makes two requests the same: the media type and the body.
fn request_digest(request: &Request) -> Digest {
    let media_type = request.header("content-type").unwrap_or_default();
    Digest::of_pieces(&[media_type.as_bytes(), b"\n", &request.body])
}

fn bad_body(pages: &Pages, request: &Request, bad: &BadBody) -> Answer {
    match bad {
        BadBody::MediaType => {
            let why = match request.media_type().as_str() {
                "multipart/form-data" => {
                    "multipart/form-data is not read here: send application/json or application/x-www-form-urlencoded"
                }
                _ => "send application/json or application/x-www-form-urlencoded",
            };
            problem(pages, request, 415, "media-type", why, None)
        }
        BadBody::Coding(coding) => {
            let why = format!("a body with Content-Encoding: {coding} is not read here: send it as it is");
            problem(pages, request, 415, "media-type", &why, None)
        }
        BadBody::Malformed(why) => problem(pages, request, 400, "bad-body", why, None),
        BadBody::Field { name, why } => problem(pages, request, 400, "bad-field", why, Some(name)),
    }
}

/// The one answer to every request without a good key: no hint as to what was wrong with it.
pub fn refuse(pages: &Pages, request: &Request, reason: &'static str) -> Answer {
    let text = "This needs an API key that is good for making invites.";
    Answer::new(reason, error(pages, request, 403, "Forbidden", "forbidden", text, None))
}

/// The answer to a key that is not good, from where there were many of them.
pub fn too_many(pages: &Pages, request: &Request, seconds: i64) -> Answer {
    let text = "There were too many keys from here that are not good.";
    let response = error(pages, request, 429, "Too many requests", "key-tries", text, None);
    Answer::new("key-tries", response.with("Retry-After", seconds.to_string()))
}

/// `OPTIONS`: what is possible here, for browsers that ask before they send (the CORS preflight of the Fetch standard).
pub fn options(path: &str) -> Answer {
    Answer::new("options", Response::new(200).with("Allow", methods(path)))
}

/// Any other method, `HEAD` included: a program that only looks must not make an invite.
pub fn method_not_allowed(pages: &Pages, request: &Request) -> Answer {
    let allowed = methods(&request.path);
    let text = format!("Here there are {allowed}.");
    let response = error(pages, request, 405, "Method not allowed", "method", &text, None);
    Answer::new("method", response.with("Allow", allowed))
}

/// `GET /invites_api/openapi.json`.
pub fn openapi() -> Answer {
    Answer::new("openapi", Response::new(200).with_body(JSON, OPENAPI))
}

/// Something is wrong with what a good key asks for: the word is for programs and for the log.
fn problem(
    pages: &Pages,
    request: &Request,
    status: u16,
    word: &'static str,
    why: &str,
    field: Option<&str>,
) -> Answer {
    let title = match status {
        403 => "Forbidden",
        404 => "Not found",
        410 => "Gone",
        415 => "Unsupported media type",
        422 => "Unprocessable content",
        429 => "Too many requests",
        _ => "Bad request",
    };
    Answer::new(word, error(pages, request, status, title, word, why, field))
}

/// An error as JSON for programs that like it or that sent something, as a small page for a browser, else as a line of text.
pub fn error(
    pages: &Pages,
    request: &Request,
    status: u16,
    title: &str,
    word: &str,
    text: &str,
    field: Option<&str>,
) -> Response {
    if request.wants_json() || field.is_some() {
        let body = json::error(word, text, field);
        return Response::new(status).with("Cache-Control", "no-store").with_body(JSON, format!("{body}\n"));
    }
    if request.wants_html() {
        return pages.message(status, title, text);
    }
    Response::new(status)
        .with("Cache-Control", "no-store")
        .with_body("text/plain; charset=utf-8", format!("{title}: {text}\n"))
}

/// The methods of an address below `/invites_api`, as `Allow` and CORS name them.
fn methods(path: &str) -> &'static str {
    match path {
        "/invites_api" => "GET, POST, OPTIONS",
        "/invites_api/invites" | "/invites_api/openapi.json" => "GET, OPTIONS",
        _ => "GET, DELETE, OPTIONS",
    }
}

/// What every answer of this endpoint carries: any web page may use it, given a key, and may read where the invite is.
pub fn with_cors(path: &str, response: Response) -> Response {
    let uncached = response.headers.iter().any(|(name, _)| *name == "Cache-Control");
    let response = if uncached { response } else { response.with("Cache-Control", "no-store") };
    response
        .with("Access-Control-Allow-Origin", "*")
        .with("Access-Control-Allow-Methods", methods(path))
        .with("Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key")
        .with("Access-Control-Expose-Headers", "Location, Retry-After")
        .with("Access-Control-Max-Age", "7200")
}

#[cfg(test)]
mod tests {
    use super::bearer;

    #[test]
    fn the_scheme_is_matched_in_any_case_and_alone() {
        assert_eq!(bearer("Bearer a/b"), Some("a/b"));
        assert_eq!(bearer("bEARER  a/b "), Some("a/b"));
        for value in ["", "Bearer", "Bearer ", "Basic a/b", "Bearer a b", "a/b", "Bearera/b"] {
            assert_eq!(bearer(value), None, "{value:?}");
        }
    }
}
