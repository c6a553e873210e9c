//! The pages that people see, and the answers around them.
//!
//! With its folder the only one that names askama; the templates escape every value. Knows no SQL and no sockets.

pub mod apps;
pub mod assets;
mod form;
mod guest;
pub mod lang;
mod look;

use std::sync::Arc;

use askama::Template;

use crate::http::{Request, Response};
use crate::{key, random};
use apps::{App, Group};
use lang::{Catalogue, Languages};
use look::Look;

pub use form::{Form, Wrong, closed, done, form};
pub use guest::{
    Found, Missing, Visit, get, home, invite, logo, look_up, look_up_any, makes, nowhere, other_link, setup,
};

/// The media type of every page.
const HTML: &str = "text/html; charset=utf-8";

const CSS: &str = include_str!("page/style.css");

/// The one script that there is: it lets guests see the password that they type. All works without it.
const SCRIPT: &str = include_str!("page/form.js");

/// More than most pages have.
const PAGE_BYTES: usize = 24 * 1024;

/// The texts and apps, read once at the start.
pub struct Pages {
    languages: Languages,
    apps: Vec<Arc<App>>,
    css_hash: String,
    script_hash: String,
}

/// Where a page is, seen from which its links lead on, and in which language it speaks.
struct Scene<'a> {
    language: &'a Catalogue,
    look: Option<&'a Look>,
    /// The way back to the base address, such as `../../`.
    root: &'static str,
}

#[derive(Template)]
#[template(path = "message.html", config = ".askama.toml")]
struct Message<'a> {
    scene: &'a Scene<'a>,
    t: &'a Catalogue,
    title: &'a str,
    text: &'a str,
    /// Of the invite whose page the way leads back to.
    token: Option<&'a str>,
    /// Apps to log in with.
    groups: Vec<Group<'a>>,
}

impl<'a> Message<'a> {
    fn new(scene: &'a Scene<'a>, title: &'a str, text: &'a str) -> Message<'a> {
        Message { scene, t: scene.language, title, text, token: None, groups: Vec::new() }
    }
}

impl Pages {
    /// Reads what is embedded in the binary.
    pub fn load() -> Pages {
        Pages {
            languages: Languages::load(),
            apps: apps::embedded().into_iter().map(Arc::new).collect(),
            css_hash: hash(CSS),
            script_hash: hash(SCRIPT),
        }
    }

    /// A page with a title and a line of text, in English and without a host, for errors of programs.
    pub fn message(&self, status: u16, title: &str, text: &str) -> Response {
        let scene = Scene { language: self.languages.choose(None), look: None, root: "" };
        self.notice(&scene, status, title, text)
    }

    fn notice(&self, scene: &Scene, status: u16, title: &str, text: &str) -> Response {
        self.notice_back(scene, status, title, text, None)
    }

    /// The same with the way back to the page of an invite.
    fn notice_back(&self, scene: &Scene, status: u16, title: &str, text: &str, token: Option<&str>) -> Response {
        let page = Message { token, ..Message::new(scene, title, text) };
        self.respond(scene, status, write(&page))
    }

    /// Headers for every page: nothing from elsewhere, no script, no form, no frame around it, no trace of the address that
    /// holds the token.
    fn respond(&self, scene: &Scene, status: u16, page: String) -> Response {
        self.respond_with(scene, status, page, "form-action 'none'")
    }

    /// The same for a page with a form and our one script.
    fn respond_form(&self, scene: &Scene, status: u16, page: String) -> Response {
        self.respond_with(scene, status, page, &format!("form-action 'self'; script-src '{}'", self.script_hash))
    }

    fn respond_with(&self, scene: &Scene, status: u16, page: String, more: &str) -> Response {
        let own = scene.look.filter(|look| !look.css.is_empty()).map(|look| format!(" '{}'", hash(&look.css)));
        let policy = format!(
            "default-src 'none'; style-src '{}'{}; img-src 'self'; base-uri 'none'; frame-ancestors 'none'; {more}",
            self.css_hash,
            own.unwrap_or_default()
        );
        Response::new(status)
            .with("Cache-Control", "no-store")
            .with("Content-Security-Policy", policy)
            .with("Referrer-Policy", "no-referrer")
            .with("X-Content-Type-Options", "nosniff")
            .with_body(HTML, page)
    }

    fn language(&self, request: &Request) -> &Catalogue {
        self.languages.choose(request.header("accept-language"))
    }
}

/// The page as text.
fn write(page: &impl Template) -> String {
    let mut text = String::with_capacity(PAGE_BYTES);
    let written = page.render_into(&mut text);
    debug_assert!(written.is_ok(), "neither a String nor what is shown in it can fail");
    text
}

/// A style sheet or script as a policy names it (Content Security Policy level 3, section 2.3.1).
fn hash(text: &str) -> String {
    format!("sha256-{}", random::base64(key::Digest::of_bytes(text.as_bytes()).as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped() {
        let pages = Pages::load();
        let response = pages.message(404, "<script>", "a & b \"c\"");
        let body = String::from_utf8(response.body).unwrap();
        assert!(body.contains("&#60;script&#62;") && !body.contains("<script>"), "{body}");
    }
}
