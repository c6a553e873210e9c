//! The pages that people see, and the answers around them.
//!
//! With its folder the only one that names minijinja; the templates escape every value. Knows no SQL and no sockets.

pub mod apps;
pub mod assets;
mod form;
mod guest;
pub mod lang;
mod look;

use std::sync::Arc;

use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};

use crate::error::{Error, Result};
use crate::http::{Request, Response};
use crate::{key, random};
use apps::App;
use lang::{Catalogue, Languages};
use look::Look;

pub use form::{Form, Wrong, closed, done, form};
pub use guest::{Found, Missing, Visit, get, home, invite, logo, look_up, look_up_any, makes, setup};

/// The media type of every page.
const HTML: &str = "text/html; charset=utf-8";

const CSS: &str = include_str!("page/style.css");

/// The one script that there is: it lets guests see the password that they type. All works without it.
const SCRIPT: &str = include_str!("page/form.js");

/// The templates, texts and apps, read once at the start.
pub struct Pages {
    templates: Environment<'static>,
    languages: Languages,
    apps: Vec<Arc<App>>,
    css_hash: String,
    script_hash: String,
}

/// Where a page is, seen from which its links lead on, and in which language it speaks.
struct Scene<'a> {
    language: &'a Arc<Catalogue>,
    look: Option<&'a Look>,
    /// The way back to the base address, such as `../../`.
    root: &'static str,
}

impl Pages {
    /// Reads what is embedded in the binary.
    pub fn load() -> Result<Pages> {
        let mut templates = Environment::new();
        templates.set_auto_escape_callback(|_| AutoEscape::Html);
        templates.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        for (name, source) in [
            ("base.html", include_str!("page/base.html")),
            ("card.html", include_str!("page/card.html")),
            ("done.html", include_str!("page/done.html")),
            ("form.html", include_str!("page/form.html")),
            ("invite.html", include_str!("page/invite.html")),
            ("message.html", include_str!("page/message.html")),
            ("setup.html", include_str!("page/setup.html")),
            ("tile.html", include_str!("page/tile.html")),
        ] {
            templates.add_template(name, source).map_err(|error| broken(name, &error))?;
        }
        Ok(Pages {
            templates,
            languages: Languages::load(),
            apps: apps::embedded().into_iter().map(Arc::new).collect(),
            css_hash: hash(CSS),
            script_hash: hash(SCRIPT),
        })
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
        match self.page(scene, "message.html", title, context! { text, token }) {
            Ok(page) => self.respond(scene, status, page),
            Err(_) => Response::new(500).with_body("text/plain; charset=utf-8", "the page could not be made\n"),
        }
    }

    fn page(&self, scene: &Scene, name: &str, title: &str, values: Value) -> Result<String> {
        let catalogue = Arc::clone(scene.language);
        let t = Value::from_function(move |name: String, values: Kwargs| {
            let mut pairs: Vec<(String, String)> = Vec::new();
            for key in values.args() {
                pairs.push((key.to_owned(), values.get::<Value>(key)?.to_string()));
            }
            let pairs: Vec<(&str, &str)> = pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            values.assert_all_used()?;
            Ok(catalogue.text(&name, &pairs))
        });
        let look = scene.look.map(|look| {
            context! {
                host => &look.host, site => &look.site, css => &look.css, logo => look.logo,
                terms => &look.terms, privacy => &look.privacy,
            }
        });
        let common = context! { lang => scene.language.code, css => CSS, root => scene.root, title, t, look };
        let page =
            self.templates.get_template(name).and_then(|template| template.render(context! { ..values, ..common }));
        page.map_err(|error| broken(name, &error))
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

    fn language(&self, request: &Request) -> &Arc<Catalogue> {
        self.languages.choose(request.header("accept-language"))
    }
}

/// A style sheet or script as a policy names it (Content Security Policy level 3, section 2.3.1).
fn hash(text: &str) -> String {
    format!("sha256-{}", random::base64(key::Digest::of_bytes(text.as_bytes()).as_bytes()))
}

fn broken(name: &str, error: &minijinja::Error) -> Error {
    Error::internal(format!("the template {name} can't be rendered: {error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped() {
        let pages = Pages::load().unwrap();
        let response = pages.message(404, "<script>", "a & b \"c\"");
        let body = String::from_utf8(response.body).unwrap();
        assert!(body.contains("&lt;script&gt;") && !body.contains("<script>"), "{body}");
    }
}
