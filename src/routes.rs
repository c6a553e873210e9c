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

const CORS: &str = "Access-Control-Allow-Origin";

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
    /// Who tried too many tokens, keys or names.
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
    // Scripts of any site can read the answer to a link, errors included: a client that has the link can open it anyway.
    let is_told = request.path == "/register" || answer.response.headers.iter().any(|(name, _)| *name == CORS);
    let response = if is_told { answer.response } else { answer.response.with(CORS, "*") };
    Answer { response, ..answer }
}

fn route(app: &App, request: &Request, now: i64) -> Result<Answer> {
    let pages = &app.pages;
    let visit = visit(app, request, now);
    let place = Place::of(&request.path);
    match (request.method.as_str(), place) {
        (_, Place::Api | Place::ApiInvites | Place::ApiInvite(_) | Place::OpenApi) => {
            answer_api(app, request, place, now)
        }
        ("GET" | "HEAD", Place::Home) => Ok(page::home(pages, request)),
        ("GET" | "HEAD", Place::Favicon) => Ok(page::assets::favicon()),
        ("GET" | "HEAD", Place::Robots) => Ok(page::assets::robots()),
        ("GET" | "HEAD", Place::Card) => Ok(page::assets::card()),
        ("GET" | "HEAD", Place::Invite) => page::invite(&visit),
        ("GET" | "HEAD", Place::OtherLink(rest)) => {
            Ok(page::other_link(request, rest).unwrap_or_else(|| nothing_here(pages, request)))
        }
        ("GET" | "HEAD", Place::Setup(id)) => page::setup(&visit, id),
        ("GET" | "HEAD", Place::Get(rest)) => page::get(&visit, rest),
        ("GET" | "HEAD", Place::Logo(host)) => page::logo(pages, &app.readers, request, host),
        ("GET" | "HEAD", Place::Register) => register::form(&visit),
        ("POST", Place::Register) => register::submit(&visit, &app.writer, &app.desk),
        (_, Place::Register) => Ok(method(pages, request, "GET, HEAD, POST", "There is a form here.")),
        (_, Place::Invite) => Ok(method(pages, request, "GET, HEAD", "This page can only be looked at.")),
        _ => Ok(nothing_here(pages, request)),
    }
}

fn visit<'a>(app: &'a App, request: &'a Request, now: i64) -> Visit<'a> {
    Visit { pages: &app.pages, readers: &app.readers, views: &app.views, limiter: &app.limiter, request, now }
}

/// The API. All but the description need a key, which is looked at before anything else.
fn answer_api(app: &App, request: &Request, place: Place, now: i64) -> Result<Answer> {
    let (pages, readers) = (&app.pages, &app.readers);
    let with_key = |handler: &dyn Fn(&Key) -> Result<Answer>| match api::authenticate(readers, request, now)? {
        Ok(key) => {
            let answer = handler(&key)?;
            Ok(Answer { key: answer.key.or(Some(key.id().to_owned())), ..answer })
        }
        Err(reason) => Ok(refuse_key(app, request, reason)),
    };
    // A browser that loads ahead what somebody may open makes no invite from a bookmark.
    if place == Place::Api && request.method == "GET" && request.is_prefetch() {
        let text = "Nothing is loaded ahead here.";
        let response = api::error(pages, request, 503, "Service unavailable", "prefetch", text, None);
        return Ok(Answer::new("prefetch", response));
    }
    match (request.method.as_str(), place) {
        ("GET" | "POST", Place::Api) => with_key(&|key| api::create(pages, readers, &app.writer, request, key, now)),
        ("GET", Place::ApiInvites) => with_key(&|key| api::list(pages, &readers.take(), request, key, now)),
        ("GET", Place::ApiInvite(token)) => with_key(&|key| api::one(pages, &readers.take(), request, key, token, now)),
        ("DELETE", Place::ApiInvite(token)) => {
            with_key(&|key| api::revoke(pages, &app.writer, request, key, token, now))
        }
        ("GET", Place::OpenApi) => Ok(api::openapi()),
        ("OPTIONS", _) => Ok(api::options(&request.path)),
        _ => Ok(api::method_not_allowed(pages, request)),
    }
}

/// The answer to a key that is not good. Only these are counted and made to wait: a good key always works, whoever else
/// shares its address.
fn refuse_key(app: &App, request: &Request, reason: &'static str) -> Answer {
    // Who brings none does not try any.
    if reason == "key-missing" {
        return api::refuse(&app.pages, request, reason);
    }
    if let Some(seconds) = app.limiter.wait_secs(What::Key, request) {
        return api::too_many(&app.pages, request, seconds);
    }
    app.limiter.strike(What::Key, request);
    api::refuse(&app.pages, request, reason)
}

fn method(pages: &Pages, request: &Request, allowed: &'static str, text: &str) -> Answer {
    let response = api::error(pages, request, 405, "Method not allowed", "method", text, None);
    Answer::new("method", response.with("Allow", allowed))
}

fn nothing_here(pages: &Pages, request: &Request) -> Answer {
    let is_guest = request.header(DOOR).is_none() && !request.path.starts_with("/invites_api");
    if is_guest && request.wants_html() && !request.wants_json() {
        return page::nowhere(pages, request);
    }
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
    match Place::of(&request.path) {
        _ if answer.reason == "no-route" => "-",
        // Where the database is away, nothing gets as far as that.
        Place::Nowhere | Place::OtherLink(_) => "-",
        Place::Logo(_) if answer.reason != "asset" => "/invite/logo/-",
        Place::ApiInvite(_) => "/invites_api/invites/-",
        // Only an app that was found is known to be one; anything else can be a token (`/invite/setup/monal%3FTOKEN`).
        Place::Setup(_) if answer.reason != "shown" => "/invite/setup/-",
        Place::Get(_) if answer.reason != "sent-on" => "/invite/get/-",
        _ => &request.path,
    }
}

/// What is counted together: the address of a request without what differs from one invite, app or host to the next.
pub fn endpoint(request: &Request, answer: &Answer) -> &'static str {
    if answer.reason == "no-route" { "other" } else { Place::of(&request.path).name() }
}

/// The addresses that there are, each with the part that differs from one invite, app or host to the next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place<'a> {
    Home,
    Favicon,
    Robots,
    Invite,
    /// Other forms of a link to an invite, with what comes after their beginning.
    OtherLink(&'a str),
    Card,
    Setup(&'a str),
    Get(&'a str),
    Logo(&'a str),
    Register,
    Api,
    ApiInvites,
    ApiInvite(&'a str),
    OpenApi,
    Health,
    Metrics,
    Nowhere,
}

impl Place<'_> {
    fn of(path: &str) -> Place<'_> {
        const EXACT: [Place; 11] = [
            Place::Home,
            Place::Favicon,
            Place::Robots,
            Place::Invite,
            Place::Card,
            Place::Register,
            Place::Api,
            Place::ApiInvites,
            Place::OpenApi,
            Place::Health,
            Place::Metrics,
        ];
        if let Some(place) = EXACT.into_iter().find(|place| place.name() == path) {
            return place;
        }
        let below = |place: Place| path.strip_prefix(place.name());
        if let Some(id) = below(Place::Setup("")) {
            return Place::Setup(id);
        }
        if let Some(rest) = below(Place::Get("")) {
            return Place::Get(rest);
        }
        if let Some(host) = below(Place::Logo("")) {
            return Place::Logo(host);
        }
        match below(Place::ApiInvite("")) {
            Some(token) if !token.is_empty() && !token.contains('/') => return Place::ApiInvite(token),
            _ => {}
        }
        // Snikket's, ejabberd's, and those of Prosody's mod_invites_page.
        let beginnings = ["/invite/", "/invites/", "/invites_page/"];
        if path == "/invites_page" {
            return Place::OtherLink("");
        }
        beginnings.iter().find_map(|beginning| path.strip_prefix(beginning)).map_or(Place::Nowhere, Place::OtherLink)
    }

    /// The path, or what all paths of this kind begin with; `other` where there is nothing.
    fn name(self) -> &'static str {
        match self {
            Place::Home => "/",
            Place::Favicon => "/favicon.ico",
            Place::Robots => "/robots.txt",
            Place::Invite => "/invite",
            Place::OtherLink(_) => "/invites_page",
            Place::Card => "/invite/card.png",
            Place::Setup(_) => "/invite/setup/",
            Place::Get(_) => "/invite/get/",
            Place::Logo(_) => "/invite/logo/",
            Place::Register => "/register",
            Place::Api => "/invites_api",
            Place::ApiInvites => "/invites_api/invites",
            Place::ApiInvite(_) => "/invites_api/invites/",
            Place::OpenApi => "/invites_api/openapi.json",
            Place::Health => "/healthz",
            Place::Metrics => "/metrics",
            Place::Nowhere => "other",
        }
    }
}

/// The answer where a handler panicked: the worker lives on.
pub fn panicked() -> Answer {
    let response =
        Response::new(500).with_body("text/plain; charset=utf-8", "Internal error: The log of the server says more.\n");
    Answer::new("panic", response)
}
