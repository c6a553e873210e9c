//! `/invite` and what lies below it: what a guest sees of an invite. Looking never uses it up.

use std::sync::Arc;

use askama::Template;

use super::apps::{self, App, Group};
use super::lang::Catalogue;
use super::look::Look;
use super::{Message, Pages, Scene, assets, write};
use crate::client::CLIENT_HEADER;
use crate::create::{HostSettings, addresses};
use crate::error::Result;
use crate::host::Host;
use crate::http::{Answer, Request, Response};
use crate::invite::{Kind, escape, tokens_in};
use crate::limit::{Limiter, What};
use crate::qr::{self, Svg};
use crate::store::{InviteRow, Readers, SOURCE, State};
use crate::views::Views;

/// A request of a guest, with all that it takes to answer it.
pub struct Visit<'a> {
    /// Texts and apps.
    pub pages: &'a Pages,
    /// For reading.
    pub readers: &'a Readers,
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
    /// The texts in the language that the guest likes best.
    pub fn language(&self) -> &Catalogue {
        self.pages.language(self.request)
    }

    /// Whether it is a guest who looks, rather than a program that checks or previews the link.
    pub fn counts(&self) -> bool {
        self.request.method == "GET" && !self.request.is_prefetch() && !apps::is_preview_bot(self.request)
    }
}

/// An invite, and all that its pages need.
pub struct Found {
    /// Its token.
    pub token: String,
    /// The invite.
    pub invite: InviteRow,
    /// Its host.
    pub host: Host,
    /// The settings of the host that are set, without the files that the look is made of.
    pub settings: Vec<(String, String)>,
    /// How the pages of its host look.
    pub look: Look,
    uri: String,
    url: String,
}

#[derive(Template)]
#[template(path = "invite.html", config = ".askama.toml")]
struct InvitePage<'a> {
    scene: &'a Scene<'a>,
    t: &'a Catalogue,
    title: String,
    lead: String,
    hint: String,
    found: &'a Found,
    kind: Kind,
    name: &'a str,
    makes: bool,
    needs_phone: bool,
    /// How many of the groups are for this device; they come first.
    fitting: usize,
    groups: Vec<Group<'a>>,
    /// None where the address of the page is too long for one.
    code: Option<Svg>,
    /// The address of the picture for previews, which goes into the page as it is.
    picture: String,
    ends: String,
}

#[derive(Template)]
#[template(path = "setup.html", config = ".askama.toml")]
struct SetupPage<'a> {
    scene: &'a Scene<'a>,
    t: &'a Catalogue,
    title: String,
    hint: &'a str,
    found: &'a Found,
    kind: Kind,
    app: &'a App,
    makes: bool,
}

/// `GET` and `HEAD /invite?TOKEN`: what the invite is, the apps for this device, and the `xmpp:` URI to accept it with.
///
/// A good invite is announced in a `Link` header too: Conversations reads it after scanning the page's address as a QR code.
/// 404 where there is no such invite, 410 where it has ended.
pub fn invite(visit: &Visit) -> Result<Answer> {
    let Visit { pages, views, request, .. } = *visit;
    let t = pages.language(request);
    let found = match find(visit, "")? {
        Ok(found) => found,
        Err(answer) => return Ok(answer),
    };
    if visit.counts() {
        views.opened(&found.token);
    }
    let (look, invite) = (&found.look, &found.invite);
    let name = invite.username.as_deref().unwrap_or_default();
    let text = |key: &str| t.text_with(key, &[("site", &look.site), ("name", name)]);
    let kind = invite.kind.word();
    let lead = match (invite.kind, &invite.username) {
        (Kind::Account, Some(_)) => text("lead.account-name"),
        (Kind::Reset, _) if makes(&found) => text("lead.reset-here"),
        _ => text(&format!("lead.{kind}")),
    };
    let platforms = apps::platforms(request);
    let elsewhere = platforms.first().filter(|_| platforms.iter().all(|p| needs_phone(&look.apps, p, invite.kind)));
    let (fitting, groups) = apps::groups(&look.apps, platforms);
    let scene = Scene { language: t, look: Some(look), root: "" };
    let page = InvitePage {
        scene: &scene,
        t,
        title: text(&format!("title.{kind}")),
        lead,
        hint: match elsewhere {
            Some(_) if makes(&found) => text(make_text(invite)),
            Some(platform) => {
                let platform = format!("platform.{platform}");
                t.text_with("accept.hint-phone", &[("platform", t.text(&platform)), ("host", &invite.host)])
            }
            None => hint(t, invite).to_owned(),
        },
        found: &found,
        kind: invite.kind,
        name,
        makes: makes(&found),
        needs_phone: elsewhere.is_some(),
        fitting,
        groups,
        code: qr::svg(&found.url),
        // The setting is a checked address without quotes and angle brackets; those who read this tag often know no entities.
        picture: format!("{}/invite/card.png", look.base),
        ends: ends(t, invite.expires_at - visit.now),
    };
    let response = pages
        .respond(&scene, 200, write(&page))
        .with("Link", format!("<{}>; rel=\"alternate\"", found.uri))
        .with("Access-Control-Allow-Origin", "*")
        .with("Access-Control-Expose-Headers", "Link");
    // `invited doctor` alone knows the token of such an invite, and asks how the web server passes its address on.
    let response = match invite.source == SOURCE {
        true => response.with(CLIENT_HEADER, visit.limiter.client(request).word()),
        false => response,
    };
    Ok(Answer::new("shown", response))
}

/// Links that invites were given out under elsewhere, or that somebody has changed, such as `/invites_page?TOKEN` and
/// `/invite/TOKEN/`: on to the page of the invite. `rest` is the end of the path. None where there can be no token.
pub fn other_link(request: &Request, rest: &str) -> Option<Answer> {
    let mut tokens = tokens_in(request.query.as_deref().unwrap_or_default());
    tokens.extend(tokens_in(rest));
    if tokens.is_empty() {
        return None;
    }
    let up = "../".repeat(request.path.matches('/').count() - 1);
    let response = Response::new(303)
        .with("Location", format!("{up}invite?{}", tokens.join("&")))
        .with("Cache-Control", "no-store")
        .with("Referrer-Policy", "no-referrer");
    Some(Answer::new("sent-on", response))
}

/// `GET /invite/setup/APP?TOKEN`: install this app, come back, accept.
pub fn setup(visit: &Visit, id: &str) -> Result<Answer> {
    let Visit { pages, views, request, .. } = *visit;
    let t = pages.language(request);
    let found = match find(visit, "../../")? {
        Ok(found) => found,
        Err(answer) => return Ok(answer),
    };
    let scene = Scene { language: t, look: Some(&found.look), root: "../../" };
    let Some(app) = found.look.apps.iter().find(|app| app.id == id) else {
        return Ok(Answer::new("app-unknown", unknown_app(pages, &scene)));
    };
    if visit.counts() {
        views.chose(&found.token, &app.id);
    }
    let page = SetupPage {
        scene: &scene,
        t,
        title: t.text_with("setup.title", &[("site", &found.look.site), ("app", &app.name)]),
        hint: hint(t, &found.invite),
        found: &found,
        kind: found.invite.kind,
        app,
        makes: makes(&found),
    };
    Ok(Answer::new("shown", pages.respond(&scene, 200, write(&page))))
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
pub fn logo(pages: &Pages, readers: &Readers, request: &Request, host: &str) -> Result<Answer> {
    let value = match Host::parse(host) {
        Ok(host) => readers.take().setting(&host, "logo")?,
        Err(_) => None,
    };
    match value.as_deref().and_then(assets::read_logo) {
        Some((media_type, bytes)) => Ok(Answer::new("asset", assets::respond(media_type, bytes))),
        None => Ok(nowhere(pages, request)),
    }
}

/// `GET /`: what this is.
pub fn home(pages: &Pages, request: &Request) -> Answer {
    let scene = Scene { language: pages.language(request), look: None, root: "" };
    Answer::new("home", says(pages, &scene, 200, "home"))
}

/// What guests get at an address where nothing is.
pub fn nowhere(pages: &Pages, request: &Request) -> Answer {
    let scene = Scene { language: pages.language(request), look: None, root: "" };
    let t = scene.language;
    Answer::new("no-route", pages.notice(&scene, 404, t.text("nowhere.title"), t.text("unknown.text")))
}

/// Why there is no pending invite to show.
pub enum Missing {
    /// No token came with the request.
    NoToken,
    /// The token is unknown, and this client has tried too many of those; it has to wait for this many seconds.
    Limit(i64),
    /// Nobody knows the token.
    Unknown,
    /// The invite has ended.
    Ended(State, Box<Found>),
}

impl Missing {
    /// The status of the answer.
    pub fn status(&self) -> u16 {
        match self {
            Missing::NoToken | Missing::Unknown => 404,
            Missing::Limit(_) => 429,
            Missing::Ended(..) => 410,
        }
    }

    /// The word for the log and for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Missing::NoToken => "token-missing",
            Missing::Limit(_) => "token-limit",
            Missing::Unknown => "token-unknown",
            Missing::Ended(State::Revoked, _) => "token-revoked",
            Missing::Ended(State::Expired, _) => "token-expired",
            Missing::Ended(..) => "token-used",
        }
    }

    /// Title and text for people.
    pub fn texts(&self, language: &Catalogue) -> (String, String) {
        let (title, text, host) = match self {
            Missing::NoToken | Missing::Unknown => ("unknown.title", "unknown.text", ""),
            Missing::Limit(_) => ("limit.title", "limit.text", ""),
            Missing::Ended(state, found) => {
                let is_reset = found.invite.kind == Kind::Reset;
                let (title, text) = match state {
                    State::Revoked if is_reset => ("ended.revoked-reset.title", "ended.revoked-reset.text"),
                    State::Revoked => ("ended.revoked.title", "ended.revoked.text"),
                    State::Expired if is_reset => ("ended.expired-reset.title", "ended.expired-reset.text"),
                    State::Expired => ("ended.expired.title", "ended.expired.text"),
                    _ if is_reset => ("ended.used-reset.title", "ended.used-reset.text"),
                    _ if found.invite.kind.makes_account() => ("ended.used.title", "ended.used-account.text"),
                    _ => ("ended.used.title", "ended.used.text"),
                };
                (title, text, found.invite.host.as_str())
            }
        };
        (language.text(title).to_owned(), language.text_with(text, &[("host", host)]))
    }

    /// The page that says so, seen from `root`.
    pub fn page(&self, visit: &Visit, root: &'static str) -> Answer {
        let language = visit.pages.language(visit.request);
        let (title, text) = self.texts(language);
        let found = if let Missing::Ended(_, found) = self { Some(&**found) } else { None };
        let scene = Scene { language, look: found.map(|found| &found.look), root };
        // Perhaps the guest has just made the account, and comes back to see how to go on.
        let goes_on =
            |found: &&Found| matches!(self, Missing::Ended(State::Used, _)) && found.invite.kind.makes_account();
        let platforms = apps::platforms(visit.request);
        let groups = found.filter(goes_on).map(|found| apps::for_device(&found.look.apps, platforms));
        let page = Message { groups: groups.unwrap_or_default(), ..Message::new(&scene, &title, &text) };
        let response = visit.pages.respond(&scene, self.status(), write(&page));
        let response = match self {
            Missing::Limit(seconds) => response.with("Retry-After", seconds.to_string()),
            _ => response,
        };
        Answer::new(self.reason(), response)
    }
}

/// The pending invite of a page's address, or the answer where there is none.
fn find(visit: &Visit, root: &'static str) -> Result<std::result::Result<Found, Answer>> {
    // The token is the whole query, but for what was done to the link on its way.
    let found = look_up(visit, visit.request.query.as_deref().filter(|query| !query.is_empty()))?;
    Ok(found.map_err(|missing| missing.page(visit, root)))
}

/// The pending invite with this token, or why there is none.
pub fn look_up(visit: &Visit, token: Option<&str>) -> Result<std::result::Result<Found, Missing>> {
    Ok(look_up_any(visit, token)?.and_then(|found| match found.invite.state(visit.now) {
        State::Pending => Ok(found),
        ended => Err(Missing::Ended(ended, Box::new(found))),
    }))
}

/// The invite with this token, pending or not. Counts the unknown tokens of each client, and makes it wait for more of them
/// alone: an invite that is there is shown to everybody who shares its address.
pub fn look_up_any(visit: &Visit, token: Option<&str>) -> Result<std::result::Result<Found, Missing>> {
    let Visit { pages, readers, limiter, request, .. } = *visit;
    let Some(token) = token else {
        return Ok(Err(Missing::NoToken));
    };
    let store = readers.take();
    let Some(invite) = store.invite_of_link(token)? else {
        if let Some(seconds) = limiter.wait_secs(What::Token, request) {
            return Ok(Err(Missing::Limit(seconds)));
        }
        limiter.strike(What::Token, request);
        return Ok(Err(Missing::Unknown));
    };
    let host = Host::parse(&invite.host)?;
    let mut settings = store.settings(&host)?;
    drop(store);
    let look = Look::of(&settings, &host, &pages.apps);
    // They can be large, and many pages are made at the same time.
    settings.retain(|(name, _)| !matches!(name.as_str(), "logo" | "style" | "apps"));
    let (uri, url) = addresses(&HostSettings::of(&settings), &invite)?;
    Ok(Ok(Found { token: invite.token.clone(), invite, host, settings, look, uri, url }))
}

fn unknown_app(pages: &Pages, scene: &Scene) -> Response {
    says(pages, scene, 404, "unknown-app")
}

/// A page that says no more than the title and the text of this name.
fn says(pages: &Pages, scene: &Scene, status: u16, name: &str) -> Response {
    let t = scene.language;
    pages.notice(scene, status, t.text(&format!("{name}.title")), t.text(&format!("{name}.text")))
}

/// Whether the guest can make the account, or set the password, in the browser.
pub fn makes(found: &Found) -> bool {
    found.look.register && found.invite.kind != Kind::Contact
}

/// The name of the text that says how to make the account in the browser.
fn make_text(invite: &InviteRow) -> &'static str {
    match (invite.kind, &invite.username) {
        (Kind::Account, Some(_)) => "make.text-name",
        _ => "make.text",
    }
}

fn hint(language: &Catalogue, invite: &InviteRow) -> &'static str {
    let key = match (invite.kind, &invite.username) {
        (Kind::Account, Some(_)) => "accept.hint-name",
        (Kind::Account | Kind::AccountAndContact, _) => "accept.hint",
        (Kind::Contact, _) => "accept.hint-contact",
        (Kind::Reset, _) => "accept.hint-reset",
    };
    language.text(key)
}

/// For how long the invite is still good, in days or hours, rounded.
fn ends(language: &Catalogue, seconds: i64) -> String {
    match seconds {
        ..3_600 => language.text("expires.soon").to_owned(),
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
