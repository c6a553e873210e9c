//! The pages that people see, and the answers around them.
//!
//! The only file that names minijinja; its templates escape every value. Knows no SQL and no sockets.

use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::http::{Answer, Request, Response};
use crate::invite;
use crate::store::{State, Store};

/// The media type of every page.
const HTML: &str = "text/html; charset=utf-8";

/// The templates, read once at the start.
pub struct Pages {
    templates: Environment<'static>,
}

impl Pages {
    /// Reads the templates that are embedded in the binary.
    pub fn load() -> Result<Pages> {
        let mut templates = Environment::new();
        templates.set_auto_escape_callback(|_| AutoEscape::Html);
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        for (name, source) in [
            ("base.html", include_str!("page/base.html")),
            ("invite.html", include_str!("page/invite.html")),
            ("message.html", include_str!("page/message.html")),
        ] {
            templates.add_template(name, source).map_err(|error| broken(name, &error))?;
        }
        Ok(Pages { templates })
    }

    fn render(&self, name: &str, values: Value) -> Result<String> {
        let page = self.templates.get_template(name).and_then(|template| template.render(values));
        page.map_err(|error| broken(name, &error))
    }

    /// A page with a title and a line of text, under this status.
    pub fn message(&self, status: u16, title: &str, text: &str) -> Response {
        match self.render("message.html", context! { title, text }) {
            Ok(page) => secured(Response::new(status).with_body(HTML, page)),
            Err(_) => Response::new(500).with_body("text/plain; charset=utf-8", "the page could not be made\n"),
        }
    }
}

/// `GET` and `HEAD /invite?TOKEN`: what the invite is, and the `xmpp:` URI to accept it with. Looking never uses it up.
///
/// A good invite is announced in a `Link` header too: Conversations reads it after scanning the page's address as a QR code.
/// 404 where there is no such invite, 410 where it was used or has expired.
pub fn invite(pages: &Pages, store: &Store, request: &Request, now: i64) -> Result<Answer> {
    let Some(token) = token(request) else {
        return Ok(Answer::new("token-missing", unknown(pages)));
    };
    let Some(found) = store.invite(&token)? else {
        return Ok(Answer::new("token-unknown", unknown(pages)));
    };
    let ended = match found.state(now) {
        State::Pending => None,
        State::Used => Some((
            "token-used",
            "This invite has been used",
            "It was good for a number of uses, and all are taken. Ask whoever sent it to you for a new one.",
        )),
        State::Revoked => Some((
            "token-revoked",
            "This invite has been taken back",
            "Whoever made it did not want it to be used any more. Ask for a new one.",
        )),
        State::Expired => Some((
            "token-expired",
            "This invite has expired",
            "Invites are good for some days only, and this one came to its end. Ask whoever sent it to you for a new one.",
        )),
    };
    if let Some((reason, title, text)) = ended {
        return Ok(Answer::new(reason, pages.message(410, title, text)));
    }
    let host = Host::parse(&found.host)?;
    let uri = invite::uri(&host, found.kind, found.username.as_deref(), &token);
    let site = store.setting(&host, "site-name")?.unwrap_or_else(|| host.name().to_owned());
    let name = found.username.as_deref();
    let kind = found.kind.word();
    let page = pages.render("invite.html", context! { site, uri => &uri, kind, name })?;
    let response = Response::new(200)
        .with("Link", format!("<{uri}>; rel=\"alternate\""))
        .with("Access-Control-Allow-Origin", "*")
        .with("Access-Control-Expose-Headers", "Link")
        .with_body(HTML, page);
    Ok(Answer::new("shown", secured(response)))
}

/// The token is the whole query. What messengers and mailers add to links that they pass on is not part of it.
fn token(request: &Request) -> Option<String> {
    let query = request.query.as_deref()?;
    let token = query.split('&').next().unwrap_or_default().trim_end_matches('=');
    (!token.is_empty()).then(|| token.to_owned())
}

fn unknown(pages: &Pages) -> Response {
    let text = "Check that the link is complete, or ask whoever sent it to you for a new one.";
    pages.message(404, "There is no such invite", text)
}

/// Headers for every page: nothing from elsewhere, no frame around it, no trace of the address that holds the token.
fn secured(response: Response) -> Response {
    response
        .with("Cache-Control", "no-store")
        .with(
            "Content-Security-Policy",
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        .with("Referrer-Policy", "no-referrer")
        .with("X-Content-Type-Options", "nosniff")
}

fn broken(name: &str, error: &minijinja::Error) -> Error {
    Error::internal(format!("the template {name} can't be rendered: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_and_a_missing_value_is_an_error() {
        let pages = Pages::load().unwrap();
        let response = pages.message(404, "<script>", "a & b \"c\"");
        assert!(response.body.contains("&lt;script&gt;"), "{}", response.body);
        assert!(!response.body.contains("<script>"));
        assert!(pages.render("invite.html", context! { host => "example.com" }).is_err());
    }

    #[test]
    fn what_is_added_to_a_link_is_not_part_of_its_token() {
        let token_of = |target: &str| token(&Request::new("GET", target, Vec::new()));
        assert_eq!(token_of("/invite?T-_1").as_deref(), Some("T-_1"));
        assert_eq!(token_of("/invite?T=").as_deref(), Some("T"));
        assert_eq!(token_of("/invite?T&fbclid=x").as_deref(), Some("T"));
        assert_eq!(token_of("/invite?"), None);
        assert_eq!(token_of("/invite"), None);
    }
}
