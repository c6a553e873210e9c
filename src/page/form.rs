//! The form at `/register`, and the page after it: where an account is made, or a new password set.

use minijinja::context;

use super::Scene;
use super::apps::{self, App};
use super::guest::{Found, Visit, groups, show};
use crate::error::Result;
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

/// The form.
pub fn form(visit: &Visit, found: &Found, form: &Form, status: u16) -> Result<Response> {
    let language = visit.language();
    let (look, invite) = (&found.look, &found.invite);
    let name = invite.username.as_deref().unwrap_or_default();
    let is_reset = invite.kind == Kind::Reset;
    let is_fixed = invite.fixed_name().is_some();
    let text = |key: &str| language.text(key, &[("site", &look.site), ("name", name)]);
    let (title, lead) = match invite.kind {
        Kind::Reset => (text("title.reset"), text("register.lead-reset")),
        Kind::AccountAndContact => (text("register.title"), text("register.lead-contact")),
        _ if is_fixed => (text("register.title"), text("register.lead-name")),
        _ => (text("register.title"), text("register.lead")),
    };
    let of = |field: Option<&str>| form.wrong.iter().find(|wrong| wrong.field == field).map(|wrong| &wrong.text);
    let values = context! {
        lead, is_reset, is_fixed,
        token => &found.token, host => &invite.host, app => form.app,
        user => if is_fixed { name } else { form.user },
        password_min => form.password_min,
        password_hint => language.plural("register.password-hint", form.password_min as i64),
        is_wrong => !form.wrong.is_empty(),
        wrong => context! { all => of(None), user => of(Some("user")), password => of(Some("password")) },
        script => super::SCRIPT,
    };
    let scene = Scene { language, look: Some(look), root: "" };
    let page = visit.pages.page(&scene, "form.html", &title, values)?;
    Ok(visit.pages.respond_form(&scene, status, page))
}

/// The page after all went well: the address, and how to log in with it.
pub fn done(visit: &Visit, found: &Found, username: &str, address: &str, app: Option<&str>) -> Result<Response> {
    let language = visit.language();
    let (look, invite) = (&found.look, &found.invite);
    let is_reset = invite.kind == Kind::Reset;
    let text = |key: &str| language.text(key, &[("site", &look.site)]);
    let title = text(if is_reset { "done.title-reset" } else { "done.title" });
    let chosen = app.and_then(|id| look.apps.iter().find(|app| app.id == id));
    let (here, others) = groups(&look.apps, apps::platform(visit.request));
    let groups: Vec<_> = here.map_or(others, |here| vec![here]);
    let web = look.apps.iter().find(|app| app.id == apps::WEB_CLIENT).map(|app| &app.link);
    let values = context! {
        is_reset, address, groups, web,
        lead => text(if is_reset { "done.lead-reset" } else { "done.lead" }),
        contact => invite.username.as_deref().filter(|_| invite.kind == Kind::AccountAndContact),
        app => chosen.map(|app| show(app)),
        login => chosen.and_then(|app| login_link(app, username, address, &invite.host)),
    };
    let scene = Scene { language, look: Some(look), root: "" };
    let page = visit.pages.page(&scene, "done.html", &title, values)?;
    Ok(visit.pages.respond(&scene, 200, page))
}

/// A title and a line of text, and the way back to the invite.
pub fn closed(visit: &Visit, found: &Found, status: u16, title: &str, text: &str) -> Response {
    let scene = Scene { language: visit.language(), look: Some(&found.look), root: "" };
    visit.pages.notice_back(&scene, status, title, text, Some(&found.token))
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
