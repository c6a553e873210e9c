//! `/invites_api`: makes an invite for whoever brings a good key.
//!
//! The contract is that of Prosody's `mod_invites_api`, so that bookmarks and scripts written for it go on working; the
//! differences are listed in the README. Knows no sockets and no SQL.

use crate::error::Result;
use crate::host::Host;
use crate::http::{Answer, Request, Response};
use crate::invite::{self, Invite, Kind, TTL_SECS};
use crate::key::Presented;
use crate::page::Pages;
use crate::random;
use crate::store::{self, Store, Writer};

/// The methods of this endpoint, as `Allow` and CORS name them.
pub const METHODS: &str = "GET, POST, OPTIONS";

/// A key that was found good.
pub struct Key {
    id: String,
    host: Host,
}

/// The key of a request, or the word for why it has no good one. The answer to the client is the same for all of these.
///
/// A header `Authorization` that is there decides alone; only without one the query's `key` counts.
pub fn authenticate(store: &Store, request: &Request) -> Result<std::result::Result<Key, &'static str>> {
    let text = match request.header("authorization") {
        Some(value) => match bearer(value) {
            Some(token) => token.to_owned(),
            None => return Ok(Err("key-no-bearer")),
        },
        None => match request.query_value("key") {
            Some(value) => value,
            None => return Ok(Err("key-missing")),
        },
    };
    let Some(presented) = Presented::parse(&text) else {
        return Ok(Err("key-malformed"));
    };
    let Some(check) = store.key_check(&presented.id)? else {
        return Ok(Err("key-unknown"));
    };
    if !check.digest.matches(&presented.digest) {
        return Ok(Err("key-wrong-secret"));
    }
    Ok(Ok(Key { id: presented.id, host: Host::parse(&check.host)? }))
}

/// The token of `Bearer TOKEN`, the scheme in any case (RFC 9110 section 11.1, RFC 6750 section 2.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ')).then_some(token)
}

/// Makes an account invite and answers with its address, once it would survive a power cut.
///
/// 201 with `Location`; 303 where the query has a pair `redirect` that is not `false`, `0` or `no`.
pub fn create(pages: &Pages, store: &Store, writer: &Writer, request: &Request, key: Key, now: i64) -> Result<Answer> {
    let invite = Invite {
        token: random::base64url::<12>()?,
        host: key.host,
        kind: Kind::Account,
        source: format!("api/token/{}", key.id),
        created_at: now,
        expires_at: now + TTL_SECS,
    };
    let base = store.setting(&invite.host, "url")?;
    let address = invite::landing_page(base.as_deref(), &invite.host, &invite.token);
    let prosody = store::prosody_row(&invite, &address);
    let id = key.id.clone();
    let still_there = writer.write(move |tx| {
        let still_there = tx.use_key(&id, now)?;
        if still_there {
            tx.add_invite(&invite, &prosody)?;
        }
        Ok(still_there)
    })?;
    if !still_there {
        return Ok(refuse(pages, request, "key-unknown"));
    }
    let redirect = request.query_value("redirect").is_some_and(|value| !matches!(value.as_str(), "false" | "0" | "no"));
    let (status, reason) = if redirect { (303, "created-redirect") } else { (201, "created") };
    let response = Response::new(status).with("Location", address);
    Ok(Answer { key: Some(key.id), ..Answer::new(reason, response) })
}

/// The one answer to every request without a good key: no hint as to what was wrong with it.
pub fn refuse(pages: &Pages, request: &Request, reason: &'static str) -> Answer {
    let response = error(pages, request, 403, "Forbidden", "This needs an API key that is good for making invites.");
    Answer::new(reason, response)
}

/// `OPTIONS`: what is possible here, for browsers that ask before they send (the CORS preflight of the Fetch standard).
pub fn options() -> Answer {
    Answer::new("options", Response::new(200).with("Allow", METHODS))
}

/// Any other method, `HEAD` included: a program that only looks must not make an invite.
pub fn method_not_allowed(pages: &Pages, request: &Request) -> Answer {
    let text = "Invites are made with GET or POST.";
    let response = error(pages, request, 405, "Method not allowed", text).with("Allow", METHODS);
    Answer::new("method", response)
}

/// An error as one line of text, or as a small page for a browser.
pub fn error(pages: &Pages, request: &Request, status: u16, title: &str, text: &str) -> Response {
    if request.wants_html() {
        pages.message(status, title, text)
    } else {
        Response::new(status)
            .with("Cache-Control", "no-store")
            .with_body("text/plain; charset=utf-8", format!("{title}: {text}\n"))
    }
}

/// What every answer of this endpoint carries: any web page may use it, given a key, and may read where the invite is.
pub fn with_cors(response: Response) -> Response {
    let uncached = response.headers.iter().any(|(name, _)| *name == "Cache-Control");
    let response = if uncached { response } else { response.with("Cache-Control", "no-store") };
    response
        .with("Access-Control-Allow-Origin", "*")
        .with("Access-Control-Allow-Methods", METHODS)
        .with("Access-Control-Allow-Headers", "Authorization, Content-Type")
        .with("Access-Control-Expose-Headers", "Location")
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
