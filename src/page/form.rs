//! The form at `/register`, and the page after it: where an account is made, or a new password set.

use askama::Template;

use super::apps::{self, App, Group};
use super::guest::{Found, Visit};
use super::lang::Catalogue;
use super::{Scene, write};
use crate::http::Response;
use crate::invite::{Kind, escape};

/// What stands in the form.
pub struct Form<'a> {
    /// The name as typed.
    pub user: &'a str,
    /// The id of the app that the guest has chosen.
    pub app: Option<&'a str>,
    /// How long a password has to be, in characters.
    pub password_min: usize,
    /// What is wrong with what was sent before.
    pub wrong: &'a [Wrong],
}

/// Something that is wrong.
pub struct Wrong {
    /// With which field, if it is one.
    pub field: Option<&'static str>,
    /// What is wrong, in the guest's language.
    pub text: String,
}

#[derive(Template)]
#[template(path = "form.html", config = ".askama.toml")]
struct FormPage<'a> {
    scene: &'a Scene<'a>,
    t: &'a Catalogue,
    title: String,
    lead: String,
    found: &'a Found,
    is_reset: bool,
    is_fixed: bool,
    app: Option<&'a str>,
    user: &'a str,
    password_min: usize,
    password_hint: String,
    is_wrong: bool,
    wrong: WrongFields<'a>,
}

/// What is wrong with each of the fields, or with none of them.
struct WrongFields<'a> {
    all: Option<&'a str>,
    user: Option<&'a str>,
    password: Option<&'a str>,
}

#[derive(Template)]
#[template(path = "done.html", config = ".askama.toml")]
struct DonePage<'a> {
    scene: &'a Scene<'a>,
    t: &'a Catalogue,
    title: String,
    lead: String,
    username: &'a str,
    host: &'a str,
    is_reset: bool,
    /// Who is in the contacts already.
    contact: Option<&'a str>,
    /// The host's own web client.
    web: Option<&'a str>,
    /// The app that the guest has chosen, and where it can be logged in to with one tap.
    app: Option<&'a App>,
    login: Option<String>,
    groups: Vec<Group<'a>>,
}

/// The form.
pub fn form(visit: &Visit, found: &Found, form: &Form, status: u16) -> Response {
    let t = visit.language();
    let (look, invite) = (&found.look, &found.invite);
    let name = invite.username.as_deref().unwrap_or_default();
    let is_reset = invite.kind == Kind::Reset;
    let is_fixed = invite.fixed_name().is_some();
    let text = |key: &str| t.text_with(key, &[("site", &look.site), ("name", name)]);
    let (title, lead) = match invite.kind {
        Kind::Reset => (text("title.reset"), text("register.lead-reset")),
        Kind::AccountAndContact => (text("register.title"), text("register.lead-contact")),
        _ if is_fixed => (text("register.title"), text("register.lead-name")),
        _ => (text("register.title"), text("register.lead")),
    };
    let of =
        |field: Option<&str>| form.wrong.iter().find(|wrong| wrong.field == field).map(|wrong| wrong.text.as_str());
    let scene = Scene { language: t, look: Some(look), root: "" };
    let page = FormPage {
        scene: &scene,
        t,
        title,
        lead,
        found,
        is_reset,
        is_fixed,
        app: form.app,
        user: if is_fixed { name } else { form.user },
        password_min: form.password_min,
        password_hint: t.plural("register.password-hint", form.password_min as i64),
        is_wrong: !form.wrong.is_empty(),
        wrong: WrongFields { all: of(None), user: of(Some("user")), password: of(Some("password")) },
    };
    visit.pages.respond_form(&scene, status, write(&page))
}

/// The page after all went well: the address, and how to log in with it.
pub fn done(visit: &Visit, found: &Found, username: &str, address: &str, app: Option<&str>) -> Response {
    let t = visit.language();
    let (look, invite) = (&found.look, &found.invite);
    let is_reset = invite.kind == Kind::Reset;
    let text = |key: &str| t.text_with(key, &[("site", &look.site)]);
    let title = text(if is_reset { "done.title-reset" } else { "done.title" });
    let find = |id: &str| look.apps.iter().find(|app| app.id == id).map(|app| &**app);
    let app = app.and_then(find);
    let scene = Scene { language: t, look: Some(look), root: "" };
    let page = DonePage {
        scene: &scene,
        t,
        title,
        lead: text(if is_reset { "done.lead-reset" } else { "done.lead" }),
        username,
        host: &invite.host,
        is_reset,
        contact: invite.username.as_deref().filter(|_| invite.kind == Kind::AccountAndContact),
        web: find(apps::WEB_CLIENT).map(|app| app.link.as_str()),
        app,
        login: app.and_then(|app| login_link(app, username, address, &invite.host)),
        groups: apps::for_device(&look.apps, apps::platforms(visit.request)),
    };
    visit.pages.respond(&scene, 200, write(&page))
}

/// A title and a line of text, and the way back to the invite, if there is one.
pub fn closed(visit: &Visit, found: Option<&Found>, status: u16, title: &str, text: &str) -> Response {
    let scene = Scene { language: visit.language(), look: found.map(|found| &found.look), root: "" };
    visit.pages.notice_back(&scene, status, title, text, found.map(|found| found.token.as_str()))
}

/// Where the new user can log in with one tap, for an app that has such addresses.
fn login_link(app: &App, username: &str, address: &str, host: &str) -> Option<String> {
    let format = app.login_link_format.as_ref()?;
    let pairs = [("{jid}", address), ("{username}", username), ("{host}", host)];
    Some(pairs.iter().fold(format.clone(), |link, (name, value)| link.replace(name, &escape(value).to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_link_holds_the_address_escaped() {
        let mut app = apps::embedded().remove(0);
        assert_eq!(login_link(&app, "ü", "ü@example.com", "example.com"), None);
        app.login_link_format = Some("https://chat.example/?u={username}&at={host}#{jid}".to_owned());
        assert_eq!(
            login_link(&app, "ü", "ü@example.com", "example.com").as_deref(),
            Some("https://chat.example/?u=%C3%BC&at=example.com#%C3%BC%40example.com")
        );
    }
}
