//! Which handler answers what: one `match` on method and path, and the one map from errors to statuses.
//!
//! A key is checked here, and handlers that need one take it as an argument. Knows no SQL and no tiny_http.

use std::sync::Arc;

use crate::admin;
use crate::api::{self, Key};
use crate::error::{Error, Kind, Result};
use crate::gate::DOOR;
use crate::http::{Answer, Request, Response};
use crate::limit::{Limiter, What};
use crate::metrics::Metrics;
use crate::page::{self, Pages, Visit};
use crate::register::{self, Desk};
use crate::store::{Readers, Writer};
use crate::views::Views;

/// What all requests share.
pub struct App {
    /// The templates.
    pub pages: Pages,
    /// The way to read.
    pub readers: Readers,
    /// The way to write.
    pub writer: Writer,
    /// What guests looked at.
    pub views: Arc<Views>,
    /// Who tried too many tokens or keys.
    pub limiter: Limiter,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who registers.
    pub desk: Desk,
}

/// Answers one request. `now` is in Unix seconds.
pub fn answer(app: &App, request: &Request, now: i64) -> Answer {
    let pages = &app.pages;
    if request.header(DOOR).is_some() {
        return match (request.method.as_str(), request.path.as_str()) {
            ("GET" | "HEAD", "/healthz") => admin::health(app),
            ("GET" | "HEAD", "/metrics") => admin::metrics(app).unwrap_or_else(|error| failed(pages, request, &error)),
            _ => nothing_here(pages, request),
        };
    }
    // A file that was moved or replaced while it is open has answers to nothing.
    let answer = app.readers.check_place().and_then(|()| route(app, request, now));
    let answer = answer.unwrap_or_else(|error| failed(pages, request, &error));
    if request.path == "/invites_api" || request.path.starts_with("/invites_api/") {
        return Answer { response: api::with_cors(&request.path, answer.response), ..answer };
    }
    answer
}

fn route(app: &App, request: &Request, now: i64) -> Result<Answer> {
    let pages = &app.pages;
    match (request.method.as_str(), request.path.as_str()) {
        ("GET" | "HEAD", "/") => Ok(page::home(pages, request)),
        ("GET" | "HEAD", "/favicon.ico") => Ok(page::assets::favicon()),
        ("GET" | "HEAD", "/robots.txt") => Ok(page::assets::robots()),
        ("GET" | "HEAD", "/invite") => page::invite(&visit(app, request, now)),
        ("GET" | "HEAD", "/invite/card.png") => Ok(page::assets::card()),
        ("GET" | "HEAD", path) if path.starts_with("/invite/") => answer_invite(app, request, path, now),
        ("GET" | "HEAD", "/register") => register::form(&visit(app, request, now)),
        ("POST", "/register") => register::submit(&visit(app, request, now), &app.writer, &app.desk),
        (_, "/register") => Ok(method(pages, request, "GET, HEAD, POST", "There is a form here.")),
        (_, "/invite") => Ok(method(pages, request, "GET, HEAD", "This page can only be looked at.")),
        (_, "/invites_api") => answer_api(app, request, now),
        (_, path) if path.starts_with("/invites_api/") => answer_api(app, request, now),
        _ => Ok(nothing_here(pages, request)),
    }
}

fn visit<'a>(app: &'a App, request: &'a Request, now: i64) -> Visit<'a> {
    Visit { pages: &app.pages, readers: &app.readers, views: &app.views, limiter: &app.limiter, request, now }
}

/// The addresses below `/invite/`.
fn answer_invite(app: &App, request: &Request, path: &str, now: i64) -> Result<Answer> {
    if let Some(id) = path.strip_prefix("/invite/setup/") {
        return page::setup(&visit(app, request, now), id);
    }
    if let Some(rest) = path.strip_prefix("/invite/get/") {
        return page::get(&visit(app, request, now), rest);
    }
    match path.strip_prefix("/invite/logo/") {
        Some(host) => page::logo(&app.pages, &app.readers, request, host),
        None => Ok(nothing_here(&app.pages, request)),
    }
}

/// The addresses below `/invites_api`. All but the description need a key, which is looked at before anything else.
fn answer_api(app: &App, request: &Request, now: i64) -> Result<Answer> {
    let (pages, readers) = (&app.pages, &app.readers);
    let token =
        request.path.strip_prefix("/invites_api/invites/").filter(|token| !token.is_empty() && !token.contains('/'));
    let with_key = |handler: &dyn Fn(&Key) -> Result<Answer>| match api::authenticate(readers, request, now)? {
        Ok(key) => {
            let answer = handler(&key)?;
            Ok(Answer { key: answer.key.or(Some(key.id().to_owned())), ..answer })
        }
        Err(reason) => Ok(refuse_key(app, request, reason, now)),
    };
    match (request.method.as_str(), request.path.as_str(), token) {
        ("GET" | "POST", "/invites_api", _) => {
            with_key(&|key| api::create(pages, readers, &app.writer, request, key, now))
        }
        ("GET", "/invites_api/invites", _) => with_key(&|key| api::list(pages, &readers.take(), request, key, now)),
        ("GET", _, Some(token)) => with_key(&|key| api::one(pages, &readers.take(), request, key, token, now)),
        ("DELETE", _, Some(token)) => with_key(&|key| api::revoke(pages, &app.writer, request, key, token, now)),
        ("GET", "/invites_api/openapi.json", _) => Ok(api::openapi()),
        ("OPTIONS", "/invites_api" | "/invites_api/invites" | "/invites_api/openapi.json", _)
        | ("OPTIONS", _, Some(_)) => Ok(api::options(&request.path)),
        (_, "/invites_api" | "/invites_api/invites" | "/invites_api/openapi.json", _) | (_, _, Some(_)) => {
            Ok(api::method_not_allowed(pages, request))
        }
        _ => Ok(nothing_here(pages, request)),
    }
}

/// The answer to a key that is not good. Only these are counted and made to wait: a good key always works, whoever else
/// shares its address.
fn refuse_key(app: &App, request: &Request, reason: &'static str, now: i64) -> Answer {
    // Who brings none does not try any.
    if reason == "key-missing" {
        return api::refuse(&app.pages, request, reason);
    }
    if let Some(seconds) = app.limiter.wait_secs(What::Key, request, now) {
        return api::too_many(&app.pages, request, seconds);
    }
    app.limiter.strike(What::Key, request, now);
    api::refuse(&app.pages, request, reason)
}

fn method(pages: &Pages, request: &Request, allowed: &'static str, text: &str) -> Answer {
    let response = api::error(pages, request, 405, "Method not allowed", "method", text, None);
    Answer::new("method", response.with("Allow", allowed))
}

fn nothing_here(pages: &Pages, request: &Request) -> Answer {
    let text = "There is nothing at this address.";
    Answer::new("no-route", api::error(pages, request, 404, "Not found", "no-route", text, None))
}

/// What a client hears of an error of ours; the error itself is for the log alone.
fn failed(pages: &Pages, request: &Request, error: &Error) -> Answer {
    let (status, reason, title, text) = match error.kind {
        Kind::Unavailable | Kind::Permission => {
            (503, "unavailable", "Service unavailable", "Try again in some seconds.")
        }
        _ => (500, "internal", "Internal error", "The log of the server says more."),
    };
    let mut response = api::error(pages, request, status, title, reason, text, None);
    if status == 503 {
        response = response.with("Retry-After", "5");
    }
    Answer { detail: Some(error.to_string()), ..Answer::new(reason, response) }
}

/// The path of a request without what must not be in a log. One that leads nowhere can hold anything, a key or a token
/// too: `/invites_api%3Fkey=…`, `/invite/TOKEN`.
pub fn logged_path<'a>(request: &'a Request, answer: &Answer) -> &'a str {
    match request.path.as_str() {
        _ if answer.reason == "no-route" => "-",
        path if path.starts_with("/invites_api/invites/") => "/invites_api/invites/-",
        // Only an app that was found is known to be one; anything else can be a token (`/invite/setup/monal%3FTOKEN`).
        path if path.starts_with("/invite/setup/") && answer.reason != "shown" => "/invite/setup/-",
        path if path.starts_with("/invite/get/") && answer.reason != "sent-on" => "/invite/get/-",
        path => path,
    }
}

/// What is counted together: the address of a request without what differs from one invite, app or host to the next.
pub fn endpoint(request: &Request, answer: &Answer) -> &'static str {
    const EXACT: &[&str] = &[
        "/",
        "/favicon.ico",
        "/healthz",
        "/invite",
        "/invite/card.png",
        "/invites_api",
        "/invites_api/invites",
        "/invites_api/openapi.json",
        "/metrics",
        "/register",
        "/robots.txt",
    ];
    const BELOW: &[&str] = &["/invite/get/", "/invite/logo/", "/invite/setup/", "/invites_api/invites/"];
    let path = request.path.as_str();
    let exact = EXACT.iter().find(|known| path == **known);
    let known = exact.or_else(|| BELOW.iter().find(|known| path.starts_with(**known)));
    known.filter(|_| answer.reason != "no-route").copied().unwrap_or("other")
}

/// The answer where a handler panicked: the worker lives on.
pub fn panicked() -> Answer {
    let response =
        Response::new(500).with_body("text/plain; charset=utf-8", "Internal error: The log of the server says more.\n");
    Answer::new("panic", response)
}
