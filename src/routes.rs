//! Which handler answers what: one `match` on method and path, and the one map from errors to statuses.
//!
//! A key is checked here, and handlers that need one take it as an argument. Knows no SQL and no tiny_http.

use crate::api;
use crate::error::{Error, Kind};
use crate::http::{Answer, Request, Response};
use crate::page::{self, Pages};
use crate::store::{Store, Writer};

/// What all requests share.
pub struct App {
    /// The templates.
    pub pages: Pages,
    /// The way to write.
    pub writer: Writer,
}

/// Answers one request. `store` is the caller's own connection, for reading; `now` is in Unix seconds.
pub fn answer(app: &App, store: &Store, request: &Request, now: i64) -> Answer {
    let pages = &app.pages;
    let answer = match (request.method.as_str(), request.path.as_str()) {
        ("GET" | "POST", "/invites_api") => match api::authenticate(store, request) {
            Ok(Ok(key)) => api::create(pages, store, &app.writer, request, key, now),
            Ok(Err(reason)) => Ok(api::refuse(pages, request, reason)),
            Err(error) => Err(error),
        },
        ("OPTIONS", "/invites_api") => Ok(api::options()),
        (_, "/invites_api") => Ok(api::method_not_allowed(pages, request)),
        ("GET" | "HEAD", "/invite") => page::invite(pages, store, request, now),
        (_, "/invite") => {
            let text = "This page can only be looked at.";
            let response = api::error(pages, request, 405, "Method not allowed", text).with("Allow", "GET, HEAD");
            Ok(Answer::new("method", response))
        }
        _ => {
            let text = "There is nothing at this address.";
            Ok(Answer::new("no-route", api::error(pages, request, 404, "Not found", text)))
        }
    };
    let answer = answer.unwrap_or_else(|error| failed(pages, request, &error));
    if request.path == "/invites_api" {
        return Answer { response: api::with_cors(answer.response), ..answer };
    }
    answer
}

/// What a client hears of an error of ours; the error itself is for the log alone.
fn failed(pages: &Pages, request: &Request, error: &Error) -> Answer {
    let (status, reason, title, text) = match error.kind {
        Kind::Unavailable => (503, "unavailable", "Service unavailable", "Try again in some seconds."),
        Kind::Usage | Kind::NotFound | Kind::Internal => {
            (500, "internal", "Internal error", "The log of the server says more.")
        }
    };
    let mut response = api::error(pages, request, status, title, text);
    if status == 503 {
        response = response.with("Retry-After", "5");
    }
    Answer { detail: Some(error.to_string()), ..Answer::new(reason, response) }
}

/// The answer where a handler panicked: the worker lives on.
pub fn panicked() -> Answer {
    let response =
        Response::new(500).with_body("text/plain; charset=utf-8", "Internal error: The log of the server says more.\n");
    Answer::new("panic", response)
}
