//! `/register`: an account, or a new password, in the browser, for guests whose app can't open invites.
//!
//! What is sent is checked here first, field by field; then the XMPP server is asked as any client would ask it, and its
//! rules hold. Knows no sockets and no SQL. A password is in no answer, no log and no error.

mod desk;

use std::time::Duration;

use crate::api;
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::host::Host;
use crate::http::{Answer, Request, Response};
use crate::invite::Kind;
use crate::json::{self, Field};
use crate::key::Digest;
use crate::limit::What;
use crate::page::{self, Form, Found, Missing, Visit, Wrong};
use crate::store::{Claimed, State, Store, Writer};
use crate::user::{self, Password, Username};
use crate::xmpp::{self, Account, Address, Why};

pub use desk::Desk;
use desk::Entry;

/// How long a password has to be unless the setting `password-min` says otherwise, in characters.
pub const PASSWORD_MIN: usize = 10;

/// A name of fewer characters than this may be in the password: too many words hold it.
const NAME_IN_PASSWORD: usize = 3;

/// How long the same request for a second time waits for the first one.
const PATIENCE: Duration = Duration::from_secs(12);

/// The settings of a host for this.
struct Rules {
    open: bool,
    password_min: usize,
    xmpp: Address,
}

impl Rules {
    fn read(store: &Store, host: &Host) -> Result<Rules> {
        let mut rules = Rules { open: true, password_min: PASSWORD_MIN, xmpp: Address::default() };
        for (name, value) in store.settings(host)? {
            match name.as_str() {
                "register" => rules.open = value != "off",
                "password-min" => rules.password_min = value.parse().unwrap_or(PASSWORD_MIN),
                "xmpp" => rules.xmpp = Address::parse(&value).unwrap_or_default(),
                _ => {}
            }
        }
        Ok(rules)
    }
}

/// What somebody sends.
#[derive(Default)]
struct Input {
    token: Option<String>,
    user: String,
    password: String,
    app: Option<String>,
}

impl Input {
    /// Reads a form or a JSON object, both with the fields `token`, `user`, `password` and `app_id`; JSON with `username` too,
    /// as `mod_invites_register_api` has it. What else is there means nothing. The token may be in the query as well.
    fn read(request: &Request) -> std::result::Result<Input, (u16, &'static str, &'static str)> {
        let pairs = match request.media_type().as_str() {
            "application/x-www-form-urlencoded" => request.form(),
            "application/json" => {
                let fields = std::str::from_utf8(&request.body).ok().and_then(json::fields);
                let fields = fields.ok_or((400, "bad-body", "the body is not a JSON object"))?;
                fields
                    .into_iter()
                    .filter_map(|(name, field)| match field {
                        Field::Text(text) => Some((name, text)),
                        _ => None,
                    })
                    .collect()
            }
            _ => return Err((415, "media-type", "send application/x-www-form-urlencoded or application/json")),
        };
        let mut input = Input::default();
        for (name, value) in pairs {
            match name.as_str() {
                "token" => input.token = Some(value),
                "user" | "username" => input.user = value,
                "password" => input.password = value,
                "app_id" => input.app = Some(value),
                _ => {}
            }
        }
        input.token = input.token.or_else(|| request.query_value("t")).filter(|token| !token.is_empty());
        Ok(input)
    }

    /// What makes two requests the same.
    fn digest(&self) -> Digest {
        let token = self.token.as_deref().unwrap_or_default();
        Digest::of(&format!("{}\n{token}\n{}\n{}", token.len(), self.user, self.password))
    }
}

/// What is wrong with a registration: one word for the log, for programs, and for the text in the catalogues.
struct Problem {
    status: u16,
    word: &'static str,
    field: Option<&'static str>,
    /// What the guest is told, in the guest's language.
    text: String,
    retry_secs: Option<u32>,
    /// For the log alone.
    detail: Option<String>,
}

/// Makes a [`Problem`] of a word, with the values that its text has.
fn wrong(visit: &Visit, status: u16, word: &'static str, values: &[(&str, &str)]) -> Problem {
    let field = ["name", "password"].into_iter().find(|field| word.starts_with(field));
    let field = field.map(|field| if field == "name" { "user" } else { field });
    let text = visit.language().text(&format!("wrong.{word}"), values);
    Problem { status, word, field, text, retry_secs: None, detail: None }
}

/// `GET /register?t=TOKEN[&c=APP]`: the form.
pub fn form(visit: &Visit) -> Result<Answer> {
    let token = visit.request.query_value("t").filter(|token| !token.is_empty());
    let found = match page::look_up(visit, token.as_deref())? {
        Ok(found) => found,
        Err(missing) => return Ok(missing.page(visit, "")),
    };
    let rules = Rules::read(visit.store, &Host::parse(&found.invite.host)?)?;
    if !rules.open || found.invite.kind == Kind::Contact {
        // Here is nothing to do, but there is.
        let response = Response::new(303).with("Location", format!("invite?{}", found.token));
        return Ok(Answer::new("register-closed", response.with("Cache-Control", "no-store")));
    }
    let app = visit.request.query_value("c");
    let app = app.filter(|id| found.look.apps.iter().any(|app| app.id == *id));
    if let Some(app) = &app
        && visit.counts()
    {
        visit.views.chose(&found.token, app);
    }
    let form = Form { user: "", app: app.as_deref(), password_min: rules.password_min, wrong: &[] };
    Ok(Answer::new("shown", page::form(visit, &found, &form, 200)?))
}

/// `POST /register`: makes the account, or sets the password.
///
/// 200 with a page, or with `{"jid": …}` for a program; a 4xx with what is wrong; 503 where the XMPP server can't be asked.
pub fn submit(visit: &Visit, writer: &Writer, desk: &Desk) -> Result<Answer> {
    let input = match Input::read(visit.request) {
        Ok(input) => input,
        Err((status, word, why)) => {
            let response = api::error(visit.pages, visit.request, status, "Bad request", word, why, None);
            return Ok(Answer::new(word, response));
        }
    };
    // Before the invite is looked at: one that was used by this very request is no longer pending.
    let turn = match desk.enter(input.digest(), PATIENCE) {
        Entry::First(turn) => Some(turn),
        Entry::Done => return again(visit, &input),
        Entry::Busy => None,
    };
    let found = match page::look_up(visit, input.token.as_deref())? {
        Ok(found) => found,
        Err(missing) => return Ok(refuse(visit, &missing)),
    };
    let host = Host::parse(&found.invite.host)?;
    let rules = Rules::read(visit.store, &host)?;
    if !rules.open || found.invite.kind == Kind::Contact {
        return Ok(closed(visit, &found));
    }
    let (username, password) = match check(visit, &input, &found, &host, &rules) {
        Ok(checked) => checked,
        Err(problems) => return show(visit, &input, &found, &rules, problems),
    };
    let Some(turn) = turn else {
        let busy = wrong(visit, 503, "busy", &[]);
        return show(visit, &input, &found, &rules, vec![Problem { retry_secs: Some(5), ..busy }]);
    };
    match register(visit, writer, &found, &host, &rules.xmpp, &username, &password)? {
        Ok(detail) => {
            turn.done();
            let answer = registered(visit, &found, username.as_str(), input.app.as_deref())?;
            Ok(Answer { detail, ..answer })
        }
        Err(problem) => match visit.store.invite(&found.token)?.map(|invite| invite.state(visit.now)) {
            Some(State::Pending) => show(visit, &input, &found, &rules, vec![problem]),
            // Whatever the server made of it, this is why.
            Some(ended) => Ok(refuse(visit, &Missing::Ended(ended, Box::new(found.look)))),
            None => Ok(refuse(visit, &Missing::Unknown)),
        },
    }
}

/// Checks the fields; all that is wrong is said at once.
fn check(
    visit: &Visit,
    input: &Input,
    found: &Found,
    host: &Host,
    rules: &Rules,
) -> std::result::Result<(Username, Password), Vec<Problem>> {
    let mut problems = Vec::new();
    let name = check_name(&input.user, found.invite.username.as_deref().filter(|_| is_fixed(found)), host);
    let name = name.map_err(|word| {
        let fixed = found.invite.username.as_deref().unwrap_or_default();
        problems.push(wrong(visit, 400, word, &[("name", fixed)]));
    });
    let password = check_password(&input.password, name.as_ref().ok(), rules.password_min);
    let password = password.map_err(|word| {
        let mut problem = wrong(visit, 400, word, &[]);
        if word == "password-short" {
            problem.text = visit.language().plural("wrong.password-short", rules.password_min as i64);
        }
        problems.push(problem);
    });
    match (name, password) {
        (Ok(name), Ok(password)) => Ok((name, password)),
        _ => Err(problems),
    }
}

/// Whether the invite says which name it is for.
fn is_fixed(found: &Found) -> bool {
    matches!(found.invite.kind, Kind::Account | Kind::Reset) && found.invite.username.is_some()
}

fn check_name(typed: &str, fixed: Option<&str>, host: &Host) -> std::result::Result<Username, &'static str> {
    // The keyboards of phones add a space, and some people write their whole address.
    let typed = typed.trim();
    let typed = match typed.split_once('@') {
        Some((name, other)) if Host::parse(other).is_ok_and(|other| other == *host) => name,
        Some(_) => return Err("name-host"),
        None => typed,
    };
    let name = match (typed, fixed) {
        ("", Some(fixed)) => fixed,
        ("", None) => return Err("name-missing"),
        _ => typed,
    };
    let name = Username::parse(name).map_err(|_| "name-characters")?;
    match fixed {
        Some(fixed) if name.as_str() != fixed => Err("name-fixed"),
        None if name.is_too_long() => Err("name-long"),
        _ => Ok(name),
    }
}

fn check_password(typed: &str, name: Option<&Username>, min: usize) -> std::result::Result<Password, &'static str> {
    if typed.is_empty() {
        return Err("password-missing");
    }
    if typed.chars().count() < min {
        return Err("password-short");
    }
    if typed.len() > user::PASSWORD_MAX {
        return Err("password-long");
    }
    let password = Password::parse(typed).ok_or("password-characters")?;
    let name = name.map(Username::as_str).filter(|name| name.chars().count() >= NAME_IN_PASSWORD);
    match name {
        Some(name) if password.as_str().to_lowercase().contains(name) => Err("password-name"),
        _ => Ok(password),
    }
}

/// Asks the XMPP server, for at most as many guests at a time as the invite has uses left. If all is well, there may still be
/// something for the log.
fn register(
    visit: &Visit,
    writer: &Writer,
    found: &Found,
    host: &Host,
    address: &Address,
    username: &Username,
    password: &Password,
) -> Result<std::result::Result<Option<String>, Problem>> {
    let (invite, name, now) = (found.invite.clone(), username.clone(), visit.now);
    let values = [("name", username.as_str())];
    let claim = match writer.write(move |tx| tx.claim(&invite, &name, now))? {
        Claimed::Done(claim) => claim,
        Claimed::InUse | Claimed::Ended => return Ok(Err(wrong(visit, 409, "in-use", &[]))),
        Claimed::NameReserved => return Ok(Err(wrong(visit, 409, "name-taken", &values))),
    };
    let account = Account { host, token: &found.token, username, password };
    let outcome = xmpp::register(address, &account);
    let is_done = matches!(outcome, Ok(Ok(())));
    let settled = writer.write(move |tx| tx.settle(&claim, is_done));
    let refused = match outcome {
        // The account is there, whatever became of our own note of it.
        Ok(Ok(())) => return Ok(Ok(settled.err().map(|error| error.to_string()))),
        Ok(Err(refused)) => refused,
        Err(error) => return Ok(Err(unreachable(visit, &error))),
    };
    let mut problem = match refused.why {
        Why::NameTaken | Why::Name if is_fixed(found) => wrong(visit, 409, "refused", &[]),
        Why::NameTaken => {
            // Who tries one name after the other learns who has an account here.
            visit.limiter.strike(What::Token, visit.request, now);
            wrong(visit, 409, "name-taken", &values)
        }
        Why::Name => wrong(visit, 400, "name-refused", &[]),
        Why::Password => wrong(visit, 400, "password-refused", &[]),
        Why::TooMany => Problem { retry_secs: Some(60), ..wrong(visit, 429, "too-many", &[]) },
        Why::Closed => wrong(visit, 403, "refused", &[]),
        // The caller has seen to those that have ended meanwhile, so that the server does not read our file.
        Why::Invite => unreachable(
            visit,
            &Error::internal(format!(
                "the XMPP server {address} does not know an invite that is in the database (does it read this very file?)"
            )),
        ),
    };
    if problem.detail.is_none() {
        problem.detail = refused.text.map(|text| format!("the XMPP server says: {text}"));
    }
    Ok(Err(problem))
}

/// The server could not be asked: the guest hears that, and the log hears why.
fn unreachable(visit: &Visit, error: &Error) -> Problem {
    debug_assert!(matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Internal));
    Problem { retry_secs: Some(30), detail: Some(error.to_string()), ..wrong(visit, 503, "server", &[]) }
}

/// The form again, with what is wrong beside each field; for a program the first problem.
fn show(visit: &Visit, input: &Input, found: &Found, rules: &Rules, problems: Vec<Problem>) -> Result<Answer> {
    let Some(first) = problems.first() else {
        return Err(Error::internal("a registration was refused for no reason"));
    };
    let mut response = if visit.request.wants_json() {
        api::error(visit.pages, visit.request, first.status, "", first.word, &first.text, first.field)
    } else {
        let wrong: Vec<_> =
            problems.iter().map(|problem| Wrong { field: problem.field, text: problem.text.clone() }).collect();
        let app = input.app.as_deref().filter(|id| found.look.apps.iter().any(|app| app.id == *id));
        let form = Form { user: &input.user, app, password_min: rules.password_min, wrong: &wrong };
        page::form(visit, found, &form, first.status)?
    };
    if let Some(seconds) = first.retry_secs {
        response = response.with("Retry-After", seconds.to_string());
    }
    let (reason, detail) = (first.word, first.detail.clone());
    Ok(Answer { detail, ..Answer::new(reason, response) })
}

/// There is no invite that could be used.
fn refuse(visit: &Visit, missing: &Missing) -> Answer {
    if !visit.request.wants_json() {
        return missing.page(visit, "");
    }
    let (title, _) = missing.texts(visit.language());
    let mut response =
        api::error(visit.pages, visit.request, missing.status(), "", missing.reason(), &title, Some("token"));
    if let Missing::Limit(seconds) = missing {
        response = response.with("Retry-After", seconds.to_string());
    }
    Answer::new(missing.reason(), response)
}

/// The admin does not want accounts to be made here, or the invite makes none.
fn closed(visit: &Visit, found: &Found) -> Answer {
    let text = |name: &str| visit.language().text(&format!("register.closed.{name}"), &[]);
    let response = if visit.request.wants_json() {
        api::error(visit.pages, visit.request, 403, "", "register-closed", &text("text"), None)
    } else {
        page::notice(visit, &found.look, 403, &text("title"), &text("text"))
    };
    Answer::new("register-closed", response)
}

/// The answer to the same request as one that has made an account already.
fn again(visit: &Visit, input: &Input) -> Result<Answer> {
    let found = match page::look_up_any(visit, input.token.as_deref())? {
        Ok(found) => found,
        Err(missing) => return Ok(refuse(visit, &missing)),
    };
    let host = Host::parse(&found.invite.host)?;
    let fixed = found.invite.username.as_deref().filter(|_| is_fixed(&found));
    match check_name(&input.user, fixed, &host) {
        Ok(username) => registered(visit, &found, username.as_str(), input.app.as_deref()),
        Err(_) => Ok(refuse(visit, &Missing::Ended(State::Used, Box::new(found.look)))),
    }
}

fn registered(visit: &Visit, found: &Found, username: &str, app: Option<&str>) -> Result<Answer> {
    let reason = if found.invite.kind == Kind::Reset { "password-set" } else { "registered" };
    let address = format!("{username}@{}", found.invite.host);
    let response = if visit.request.wants_json() {
        let body = json::registered(&address);
        Response::new(200).with("Cache-Control", "no-store").with_body("application/json", format!("{body}\n"))
    } else {
        page::done(visit, found, username, &address, app)?
    };
    Ok(Answer::new(reason, response))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_the_server_is_asked() {
        let host = Host::parse("example.com").unwrap();
        let name = |typed: &str, fixed| check_name(typed, fixed, &host).map(|name| name.as_str().to_owned());
        assert_eq!(name(" Ana ", None), Ok("ana".to_owned()));
        assert_eq!(name("ana@EXAMPLE.com", None), Ok("ana".to_owned()));
        assert_eq!(name("דוד", None), Ok("דוד".to_owned()));
        assert_eq!(name("", Some("ana")), Ok("ana".to_owned()));
        assert_eq!(name("ANA", Some("ana")), Ok("ana".to_owned()));
        for (typed, fixed, word) in [
            ("", None, "name-missing"),
            ("  ", None, "name-missing"),
            ("ana@example.org", None, "name-host"),
            ("@example.com", None, "name-missing"),
            ("a b", None, "name-characters"),
            ("\u{1f600}", None, "name-characters"),
            ("<b>", None, "name-characters"),
            ("bob", Some("ana"), "name-fixed"),
            (&"x".repeat(300), None, "name-long"),
        ] {
            assert_eq!(name(typed, fixed), Err(word), "{typed:?}");
        }
    }

    #[test]
    fn passwords_are_checked_before_the_server_is_asked() {
        let ana = Username::parse("ana").unwrap();
        let bo = Username::parse("bo").unwrap();
        let password = |typed: &str, name| check_password(typed, Some(name), 10).map(|_| ());
        assert_eq!(password("correct horse", &ana), Ok(()));
        assert_eq!(password("my bottle is full", &bo), Ok(()));
        assert_eq!(password("пароль из слов", &ana), Ok(()));
        for (typed, word) in [
            ("", "password-missing"),
            ("123456789", "password-short"),
            ("i am ANA, hello", "password-name"),
            ("with emoji \u{1f600}", "password-characters"),
            ("with a tab\tin it", "password-characters"),
            (&"x".repeat(2_000), "password-long"),
        ] {
            assert_eq!(password(typed, &ana), Err(word), "{typed:?}");
        }
    }
}
