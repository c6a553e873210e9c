//! `/invite` and what lies below it: what a guest sees of an invite. Looking never uses it up.

use std::sync::Arc;

use minijinja::{Value, context};

use super::apps::{self, App, PLATFORMS};
use super::lang::Catalogue;
use super::look::Look;
use super::{Pages, Scene, assets};
use crate::create::{HostSettings, addresses};
use crate::error::Result;
use crate::host::Host;
use crate::http::{Answer, Request, Response};
use crate::invite::{Kind, escape};
use crate::limit::Limiter;
use crate::qr;
use crate::store::{InviteRow, State, Store};
use crate::views::Views;

/// A request of a guest, with all that it takes to answer it.
pub struct Visit<'a> {
    /// Templates, texts and apps.
    pub pages: &'a Pages,
    /// For reading.
    pub store: &'a Store,
    /// Where it is counted.
    pub views: &'a Views,
    /// Who tried too many tokens.
    pub limiter: &'a Limiter,
    /// The request itself.
    pub request: &'a Request,
    /// Unix seconds.
    pub now: i64,
}

impl Visit<'_> {
    /// Whether it is a guest who looks, rather than a program that checks or previews the link.
    fn counts(&self) -> bool {
        self.request.method == "GET" && !apps::is_preview_bot(self.request)
    }
}

/// A pending invite, and all that its pages need.
struct Found {
    token: String,
    invite: InviteRow,
    look: Look,
    uri: String,
    url: String,
}

/// `GET` and `HEAD /invite?TOKEN`: what the invite is, the apps for this device, and the `xmpp:` URI to accept it with.
///
/// A good invite is announced in a `Link` header too: Conversations reads it after scanning the page's address as a QR code.
/// 404 where there is no such invite, 410 where it has ended.
pub fn invite(visit: &Visit) -> Result<Answer> {
    let Visit { pages, views, request, .. } = *visit;
    let language = pages.language(request);
    let found = match find(visit, "")? {
        Ok(found) => found,
        Err(answer) => return Ok(answer),
    };
    if visit.counts() {
        views.opened(&found.token);
    }
    let (look, invite) = (&found.look, &found.invite);
    let name = invite.username.as_deref().unwrap_or_default();
    let text = |key: &str| language.text(key, &[("site", &look.site), ("name", name)]);
    let kind = invite.kind.word();
    let lead = match (invite.kind, &invite.username) {
        (Kind::Account, Some(_)) => text("lead.account-name"),
        _ => text(&format!("lead.{kind}")),
    };
    let platform = apps::platform(request);
    let elsewhere = platform.filter(|platform| needs_phone(&look.apps, platform, invite.kind));
    let (here, others) = groups(&look.apps, platform);
    let (size, path) = qr::svg(&found.url)?;
    // The setting is a checked address without quotes and angle brackets; those who read this tag often know no entities.
    let picture = format!("{}/invite/card.png", look.base);
    let values = context! {
        kind, lead, here, others, picture, name, needs_phone => elsewhere.is_some(),
        hint => match elsewhere {
            Some(platform) => {
                let platform = language.text(&format!("platform.{platform}"), &[]);
                language.text("accept.hint-phone", &[("platform", &platform), ("host", &invite.host)])
            }
            None => hint(language, invite),
        },
        token => &found.token, uri => &found.uri, url => &found.url,
        qr => context! { size, path },
        ends => ends(language, invite.expires_at - visit.now),
    };
    let scene = Scene { language, look: Some(look), root: "" };
    let page = pages.page(&scene, "invite.html", &text(&format!("title.{kind}")), values)?;
    let response = pages
        .respond(&scene, 200, page)
        .with("Link", format!("<{}>; rel=\"alternate\"", found.uri))
        .with("Access-Control-Allow-Origin", "*")
        .with("Access-Control-Expose-Headers", "Link");
    Ok(Answer::new("shown", response))
}

/// `GET /invite/setup/APP?TOKEN`: install this app, come back, accept.
pub fn setup(visit: &Visit, id: &str) -> Result<Answer> {
    let Visit { pages, views, request, .. } = *visit;
    let language = pages.language(request);
    let found = match find(visit, "../../")? {
        Ok(found) => found,
        Err(answer) => return Ok(answer),
    };
    let scene = Scene { language, look: Some(&found.look), root: "../../" };
    let Some(app) = found.look.apps.iter().find(|app| app.id == id) else {
        return Ok(Answer::new("app-unknown", unknown_app(pages, &scene)));
    };
    if visit.counts() {
        views.chose(&found.token, &app.id);
    }
    let title = language.text("setup.title", &[("site", &found.look.site), ("app", &app.name)]);
    let values = context! {
        app => show(app), host => &found.invite.host, kind => found.invite.kind.word(),
        hint => hint(language, &found.invite), token => &found.token, uri => &found.uri,
    };
    let page = pages.page(&scene, "setup.html", &title, values)?;
    Ok(Answer::new("shown", pages.respond(&scene, 200, page)))
}

/// `GET /invite/get/APP/NUMBER?TOKEN`: on to the place where the app is to be had; the invite goes along where it can.
pub fn get(visit: &Visit, path: &str) -> Result<Answer> {
    let Visit { pages, views, request, .. } = *visit;
    let found = match find(visit, "../../../")? {
        Ok(found) => found,
        Err(answer) => return Ok(answer),
    };
    let scene = Scene { language: pages.language(request), look: Some(&found.look), root: "../../../" };
    let (id, number) = path.split_once('/').unwrap_or((path, "0"));
    let app = found.look.apps.iter().find(|app| app.id == id);
    let button = number.parse().ok().and_then(|number: usize| app?.buttons.get(number));
    let (Some(app), Some(button)) = (app, button) else {
        return Ok(Answer::new("app-unknown", unknown_app(pages, &scene)));
    };
    if visit.counts() {
        views.chose(&found.token, &app.id);
    }
    let to = match &button.magic_link_format {
        Some(format) => format.replace("{uri}", &escape(&found.uri).to_string()),
        None => button.url.clone(),
    };
    let response = Response::new(303)
        .with("Location", to)
        .with("Cache-Control", "no-store")
        .with("Referrer-Policy", "no-referrer");
    Ok(Answer::new("sent-on", response))
}

/// `GET /invite/logo/HOST`.
pub fn logo(pages: &Pages, store: &Store, request: &Request, host: &str) -> Result<Answer> {
    let value = match Host::parse(host) {
        Ok(host) => store.setting(&host, "logo")?,
        Err(_) => None,
    };
    match value.as_deref().and_then(assets::read_logo) {
        Some((media_type, bytes)) => Ok(Answer::new("asset", assets::respond(media_type, bytes))),
        None => {
            let scene = Scene { language: pages.language(request), look: None, root: "../../" };
            let text = |key| scene.language.text(key, &[]);
            Ok(Answer::new("no-route", pages.notice(&scene, 404, &text("home.title"), &text("home.text"))))
        }
    }
}

/// `GET /`: what this is.
pub fn home(pages: &Pages, request: &Request) -> Answer {
    let scene = Scene { language: pages.language(request), look: None, root: "" };
    let text = |key| scene.language.text(key, &[]);
    Answer::new("home", pages.notice(&scene, 200, &text("home.title"), &text("home.text")))
}

/// The pending invite of a request, or the answer where there is none.
fn find(visit: &Visit, root: &'static str) -> Result<std::result::Result<Found, Answer>> {
    let Visit { pages, store, limiter, request, now, .. } = *visit;
    let language = pages.language(request);
    let text = |key: &str| language.text(key, &[]);
    let nowhere = Scene { language, look: None, root };
    let unknown = || pages.notice(&nowhere, 404, &text("unknown.title"), &text("unknown.text"));
    let Some(token) = token(request) else {
        return Ok(Err(Answer::new("token-missing", unknown())));
    };
    if let Some(seconds) = limiter.wait_secs(request, now) {
        // The invite may be a good one: whoever shares an address with someone who tries must not hear otherwise.
        let response = pages.notice(&nowhere, 429, &text("limit.title"), &text("limit.text"));
        return Ok(Err(Answer::new("token-limit", response.with("Retry-After", seconds.to_string()))));
    }
    let Some(invite) = store.invite(&token)? else {
        limiter.strike(request, now);
        return Ok(Err(Answer::new("token-unknown", unknown())));
    };
    let host = Host::parse(&invite.host)?;
    let look = Look::read(store, &host, &pages.apps)?;
    let ended = match invite.state(now) {
        State::Pending => None,
        State::Used => Some(("token-used", "used")),
        State::Revoked => Some(("token-revoked", "revoked")),
        State::Expired => Some(("token-expired", "expired")),
    };
    if let Some((reason, word)) = ended {
        let scene = Scene { language, look: Some(&look), root };
        let (title, text) = (text(&format!("ended.{word}.title")), text(&format!("ended.{word}.text")));
        return Ok(Err(Answer::new(reason, pages.notice(&scene, 410, &title, &text))));
    }
    let (uri, url) = addresses(&HostSettings::read(store, &host)?, &invite)?;
    Ok(Ok(Found { token, invite, look, uri, url }))
}

/// The token is the whole query. What messengers and mailers add to links that they pass on is not part of it.
fn token(request: &Request) -> Option<String> {
    let query = request.query.as_deref()?;
    let token = query.split('&').next().unwrap_or_default().trim_end_matches('=');
    (!token.is_empty()).then(|| token.to_owned())
}

fn unknown_app(pages: &Pages, scene: &Scene) -> Response {
    let text = |key| scene.language.text(key, &[]);
    pages.notice(scene, 404, &text("unknown-app.title"), &text("unknown-app.text"))
}

fn hint(language: &Catalogue, invite: &InviteRow) -> String {
    let key = match (invite.kind, &invite.username) {
        (Kind::Account, Some(_)) => "accept.hint-name",
        (Kind::Account | Kind::AccountAndContact, _) => "accept.hint",
        (Kind::Contact, _) => "accept.hint-contact",
        (Kind::Reset, _) => "accept.hint-reset",
    };
    language.text(key, &[])
}

/// For how long the invite is still good, in days or hours, rounded.
fn ends(language: &Catalogue, seconds: i64) -> String {
    match seconds {
        ..3_600 => language.text("expires.soon", &[]),
        3_600..172_800 => language.plural("expires.hours", (seconds + 1_800) / 3_600),
        172_800.. => language.plural("expires.days", (seconds + 43_200) / 86_400),
    }
}

/// Whether an account has to be made on a phone first: of the apps for this computer, none can open an invite.
fn needs_phone(apps: &[Arc<App>], platform: &str, kind: Kind) -> bool {
    let mut fitting = apps.iter().filter(|app| app.platforms.iter().any(|word| word == platform)).peekable();
    let makes_account = matches!(kind, Kind::Account | Kind::AccountAndContact);
    let is_phone = matches!(platform, "android" | "ios");
    makes_account && !is_phone && fitting.peek().is_some() && fitting.all(|app| !app.preauth)
}

/// The apps for this platform, and those for the others by platform.
fn groups(apps: &[Arc<App>], here: Option<&str>) -> (Option<Value>, Vec<Value>) {
    let group = |platform: &str| {
        let fitting: Vec<Value> =
            apps.iter().filter(|app| app.platforms.iter().any(|word| word == platform)).map(|app| show(app)).collect();
        (!fitting.is_empty()).then(|| context! { platform, apps => fitting })
    };
    let mine = here.and_then(group);
    let rest = PLATFORMS.iter().filter(|platform| mine.is_none() || Some(**platform) != here);
    let others = rest.filter_map(|platform| group(platform)).collect();
    (mine, others)
}

fn show(app: &App) -> Value {
    let buttons: Vec<Value> = app.buttons.iter().map(|button| context! { text => &button.text }).collect();
    context! {
        id => &app.id, name => &app.name, colour => &app.colour, preauth => app.preauth, letters => app.letters(),
        magic => app.buttons.iter().any(|button| button.magic_link_format.is_some()), buttons,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_to_a_link_is_not_part_of_its_token() {
        let token_of = |target: &str| token(&Request::new("GET", target, Vec::new()));
        assert_eq!(token_of("/invite?T-_1").as_deref(), Some("T-_1"));
        assert_eq!(token_of("/invite?T=").as_deref(), Some("T"));
        assert_eq!(token_of("/invite?T&fbclid=x").as_deref(), Some("T"));
        assert_eq!(token_of("/invite?"), None);
        assert_eq!(token_of("/invite"), None);
    }

    #[test]
    fn the_apps_of_the_device_come_first_and_nobody_is_lost() {
        let apps: Vec<Arc<App>> = apps::embedded().into_iter().map(Arc::new).collect();
        let (here, others) = groups(&apps, Some("android"));
        assert!(here.is_some());
        assert_eq!(others.len(), PLATFORMS.len() - 1);
        let (here, others) = groups(&apps, None);
        assert!(here.is_none());
        assert_eq!(others.len(), PLATFORMS.len());
    }
}
