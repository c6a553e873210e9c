//! `/register`: an account, or a new password, in the browser, for guests whose app can't open invites.
//!
//! What is sent is checked here first, field by field; then the XMPP server is asked as any client would ask it, and its
//! rules hold. Knows no sockets and no SQL. A password is in no answer, no log and no error.

mod desk;
mod input;

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::api;
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::http::{Answer, Response};
use crate::invite::Kind;
use crate::json;
use crate::key::Digest;
use crate::limit::What;
use crate::log;
use crate::page::{self, Form, Found, Missing, Visit, Wrong};
use crate::store::{Claimed, Outcome, State, Writer};
use crate::user::{Password, RefusedNames, Username};
use crate::xmpp::{self, Account, Address, Why};

pub use desk::Desk;
use desk::{Entry, Turn};
use input::{Input, check_name, check_password};

/// How long a password has to be unless the setting `password-min` says otherwise, in characters.
const PASSWORD_MIN: usize = 10;

/// Until when a request waits for anything, counted from its arrival. With what the gate may have waited for it and for a
/// worker, this is less than the gate waits at the end, so that the guest hears what came of it.
const WHOLE: Duration = Duration::from_millis(8_500);

/// Until when the XMPP server is asked, and until when that begins: a server that is well takes a second or less.
const ASK_UNTIL: Duration = Duration::from_secs(8);
const ASK_FROM: Duration = Duration::from_secs(5);

/// How long a registration waits for another one with the same invite.
const IN_USE: Duration = Duration::from_secs(3);

/// The settings of a host for this.
struct Rules {
    password_min: usize,
    names_refuse: RefusedNames,
    xmpp: Address,
}

impl Rules {
    fn of(found: &Found) -> Rules {
        let mut rules =
            Rules { password_min: PASSWORD_MIN, names_refuse: RefusedNames::default(), xmpp: Address::default() };
        for (name, value) in &found.settings {
            match name.as_str() {
                "password-min" => rules.password_min = value.parse().unwrap_or(PASSWORD_MIN),
                "names-refuse" => rules.names_refuse = RefusedNames::of(Some(value)),
                "xmpp" => rules.xmpp = Address::parse(value).unwrap_or_default(),
                _ => {}
            }
        }
        rules
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
    let text = visit.language().text_with(&format!("wrong.{word}"), values);
    Problem { status, word, field, text, retry_secs: None, detail: None }
}

/// `GET /register?t=TOKEN[&c=APP]`: the form.
pub fn form(visit: &Visit) -> Result<Answer> {
    let token = visit.request.query_value("t").filter(|token| !token.is_empty());
    let found = match page::look_up(visit, token.as_deref())? {
        Ok(found) => found,
        Err(missing) => return Ok(missing.page(visit, "")),
    };
    if !page::makes(&found) {
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
    let form = Form { user: "", app: app.as_deref(), password_min: Rules::of(&found).password_min, wrong: &[] };
    Ok(Answer::new("shown", page::form(visit, &found, &form, 200)))
}

/// `POST /register`: makes the account, or sets the password.
///
/// 200 with a page, or with `{"jid": …}` for a program; a 4xx with what is wrong; 503 where the XMPP server can't be asked.
/// Takes [`WHOLE`] at most, whatever waits for whom.
pub fn submit(visit: &Visit, writer: &Writer, desk: &Desk) -> Result<Answer> {
    let input = match Input::read(visit.request) {
        Ok(input) => input,
        Err((status, word, why)) => {
            let response = api::error(visit.pages, visit.request, status, "Bad request", word, why, None);
            return Ok(Answer::new(word, response));
        }
    };
    if is_from_another_site(visit) {
        return from_another_site(visit, &input);
    }
    let token = Digest::of(input.token.as_deref().unwrap_or_default());
    if let Some(seconds) = visit.limiter.wait_secs(What::Name(&token), visit.request) {
        return wait(visit, &input, seconds);
    }
    // Before the invite is looked at: one that was used by this very request is no longer pending.
    let turn = match desk.enter(input.digest(), token, visit.request.arrived + WHOLE) {
        Entry::First(turn) => Some(turn),
        Entry::Done => return again(visit, &input),
        Entry::Busy => None,
    };
    let found = match page::look_up(visit, input.token.as_deref())? {
        Ok(found) => found,
        Err(missing) => {
            if let (Missing::Ended(..), Some(turn)) = (&missing, &turn) {
                turn.count_guess();
            }
            return Ok(refuse(visit, &missing));
        }
    };
    let rules = Rules::of(&found);
    if !page::makes(&found) {
        turn.iter().for_each(Turn::count_guess);
        return Ok(closed(visit, &found));
    }
    let (username, password) = match check(visit, &input, &found, &rules) {
        Ok(checked) => checked,
        Err(problems) => return show(visit, &input, &found, &rules, problems),
    };
    let Some(turn) = turn else {
        return show(visit, &input, &found, &rules, vec![busy(visit)]);
    };
    // A database that can't be written would else leave any number of guesses.
    let outcome = register(visit, writer, &found, &rules.xmpp, &username, &password);
    match outcome.inspect_err(|_| turn.count_guess())? {
        Ok(detail) => {
            turn.done();
            let answer = registered(visit, &found, username.as_str(), input.app.as_deref());
            Ok(Answer { detail, ..answer })
        }
        // The invite may have been used for it.
        Err(problem) if problem.word == "lost" => show(visit, &input, &found, &rules, vec![problem]),
        Err(problem) => {
            turn.count_guess();
            let invite = visit.readers.take().invite(&found.token)?;
            match invite.map(|invite| invite.state(visit.now)) {
                Some(State::Pending) => show(visit, &input, &found, &rules, vec![problem]),
                // Whatever the server made of it, this is why.
                Some(ended) => Ok(refuse(visit, &Missing::Ended(ended, Box::new(found)))),
                None => Ok(refuse(visit, &Missing::Unknown)),
            }
        }
    }
}

/// Checks the fields; all that is wrong is said at once.
fn check(
    visit: &Visit,
    input: &Input,
    found: &Found,
    rules: &Rules,
) -> std::result::Result<(Username, Password), Vec<Problem>> {
    let mut problems = Vec::new();
    let name = check_name(&input.user, found.invite.fixed_name(), &found.host);
    // A fixed name is the admin's choice.
    let name = name.and_then(|name| match found.invite.fixed_name() {
        None if name.is_mixed() => Err("name-mixed"),
        None if rules.names_refuse.has(&name) => Err("name-refused"),
        _ => Ok(name),
    });
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

/// Asks the XMPP server, for at most as many guests at a time as the invite has uses left. If all is well, there may still be
/// something for the log.
fn register(
    visit: &Visit,
    writer: &Writer,
    found: &Found,
    address: &Address,
    username: &Username,
    password: &Password,
) -> Result<std::result::Result<Option<String>, Problem>> {
    let values = [("name", username.as_str())];
    let arrived = visit.request.arrived;
    // A client that tries many names learns which accounts exist.
    let strike = || visit.limiter.strike(What::Name(&Digest::of(&found.token)), visit.request);
    let claim = match claim(visit, writer, found, username)? {
        Some(Claimed::Done(claim)) => claim,
        Some(Claimed::InUse | Claimed::Ended) => return Ok(Err(wrong(visit, 409, "in-use", &[]))),
        Some(Claimed::NameReserved) => {
            strike();
            return Ok(Err(wrong(visit, 409, "name-taken", &values)));
        }
        None => return Ok(Err(busy(visit))),
    };
    let account = Account { host: &found.host, token: &found.token, username, password };
    let outcome = xmpp::register(address, &account, arrived + ASK_UNTIL);
    let ended = match &outcome {
        Ok(Ok(())) => Outcome::Done,
        Ok(Err(refused)) if refused.why == Why::Lost => Outcome::Unknown,
        _ => Outcome::Refused,
    };
    let settled = writer.queue(move |tx| tx.settle(&claim, ended)).wait_until(arrived + WHOLE);
    let refused = match outcome {
        // The account is there, whatever became of our own note of it.
        Ok(Ok(())) => {
            return Ok(Ok(match settled {
                Ok(Some(())) => None,
                Ok(None) => Some("the use of the invite is not in the database yet".to_owned()),
                Err(error) => Some(error.to_string()),
            }));
        }
        Ok(Err(refused)) => refused,
        Err(error) => return Ok(Err(unreachable(visit, &error))),
    };
    let mut problem = match refused.why {
        Why::NameTaken | Why::Name if found.invite.fixed_name().is_some() => {
            strike();
            wrong(visit, 409, "account-there", &values)
        }
        Why::NameTaken => {
            strike();
            wrong(visit, 409, "name-taken", &values)
        }
        Why::Name => {
            strike();
            wrong(visit, 400, "name-refused", &[])
        }
        Why::Password => wrong(visit, 400, "password-refused", &[]),
        Why::TooMany => Problem { retry_secs: Some(60), ..wrong(visit, 429, "too-many", &[]) },
        Why::Closed => wrong(visit, 403, "refused", &[]),
        Why::More => wrong(visit, 403, "more-wanted", &[]),
        Why::Lost => Problem { retry_secs: Some(30), ..wrong(visit, 503, "lost", &values) },
        // The caller has seen to those that have ended meanwhile, so that the server does not read our file.
        Why::Invite => unreachable(
            visit,
            &Error::internal(format!(
                "the XMPP server {address} does not know an invite that is in the database (does it read this very file?)"
            )),
        ),
    };
    if problem.detail.is_none() {
        let says = if refused.why == Why::Lost { "its answer was lost" } else { "the XMPP server says" };
        problem.detail = refused.text.map(|text| format!("{says}: {text}"));
    }
    Ok(Err(problem))
}

/// Begins the registration; none where it is too late for that. Where as many are under way as the invite has uses left, the
/// first of them is waited for: it may fail, or be counted already.
fn claim(visit: &Visit, writer: &Writer, found: &Found, username: &Username) -> Result<Option<Claimed>> {
    let begin = visit.request.arrived + ASK_FROM;
    let patience = begin.min(Instant::now() + IN_USE);
    while Instant::now() < begin {
        // The request itself may be some seconds old.
        let (invite, name, now) = (found.invite.clone(), username.clone(), log::now());
        let made = Arc::new(OnceLock::new());
        let maker = Arc::clone(&made);
        let claimed = writer.queue(move |tx| {
            let claimed = tx.claim(&invite, &name, now)?;
            if let Claimed::Done(claim) = &claimed {
                let _ = maker.set(claim.clone());
            }
            Ok(claimed)
        });
        match claimed.wait_until(begin)? {
            // Only looking takes no lock.
            Some(Claimed::InUse) if Instant::now() < patience => {
                while Instant::now() < patience && !visit.readers.take().may_claim(&found.token)? {
                    thread::sleep(Duration::from_millis(50));
                }
            }
            Some(claimed) => return Ok(Some(claimed)),
            None => {
                // It comes to nothing, should it still be made: this job is behind that one.
                writer.queue(move |tx| made.get().map_or(Ok(()), |claim| tx.settle(claim, Outcome::Refused)));
                return Ok(None);
            }
        }
    }
    Ok(None)
}

/// Too many go on at once, or it took too long until this one could begin.
fn busy(visit: &Visit) -> Problem {
    Problem { retry_secs: Some(5), ..wrong(visit, 503, "busy", &[]) }
}

/// Whether a page of another site has made a browser send the form: browsers say so (Fetch Metadata, section 2.3).
fn is_from_another_site(visit: &Visit) -> bool {
    visit.request.header("sec-fetch-site").is_some_and(|site| site.eq_ignore_ascii_case("cross-site"))
}

/// Nothing that a guest of this site has filled in: the way back leads to the page of the invite.
fn from_another_site(visit: &Visit, input: &Input) -> Result<Answer> {
    let language = visit.language();
    let (title, text) = (language.text("wrong.again"), language.text("register.cross-site"));
    let response = if visit.request.wants_json() {
        api::error(visit.pages, visit.request, 403, "", "cross-site", text, None)
    } else {
        match page::look_up_any(visit, input.token.as_deref())? {
            Ok(found) => page::closed(visit, Some(&found), 403, title, text),
            Err(_) => page::closed(visit, None, 403, title, text),
        }
    };
    Ok(Answer::new("cross-site", response))
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
        page::form(visit, found, &form, first.status)
    };
    if let Some(seconds) = first.retry_secs {
        response = response.with("Retry-After", seconds.to_string());
    }
    let (reason, detail) = (first.word, first.detail.clone());
    Ok(Answer { detail, ..Answer::new(reason, response) })
}

/// From this client, or with this invite, too many names were tried. Invites and their pages are as good as before.
fn wait(visit: &Visit, input: &Input, seconds: i64) -> Result<Answer> {
    let found = match page::look_up(visit, input.token.as_deref())? {
        Ok(found) => found,
        Err(missing) => return Ok(refuse(visit, &missing)),
    };
    let rules = Rules::of(&found);
    let problem = wrong(visit, 429, "name-tries", &[]);
    show(visit, input, &found, &rules, vec![Problem { retry_secs: u32::try_from(seconds).ok(), ..problem }])
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
    let (title, text) = (visit.language().text("register.closed.title"), visit.language().text("register.closed.text"));
    let response = if visit.request.wants_json() {
        api::error(visit.pages, visit.request, 403, "", "register-closed", text, None)
    } else {
        page::closed(visit, Some(found), 403, title, text)
    };
    Answer::new("register-closed", response)
}

/// The answer to the same request as one that has made an account already.
fn again(visit: &Visit, input: &Input) -> Result<Answer> {
    let found = match page::look_up_any(visit, input.token.as_deref())? {
        Ok(found) => found,
        Err(missing) => return Ok(refuse(visit, &missing)),
    };
    match check_name(&input.user, found.invite.fixed_name(), &found.host) {
        Ok(username) => Ok(registered(visit, &found, username.as_str(), input.app.as_deref())),
        Err(_) => Ok(refuse(visit, &Missing::Ended(State::Used, Box::new(found)))),
    }
}

fn registered(visit: &Visit, found: &Found, username: &str, app: Option<&str>) -> Answer {
    let reason = if found.invite.kind == Kind::Reset { "password-set" } else { "registered" };
    let address = format!("{username}@{}", found.invite.host);
    let response = if visit.request.wants_json() {
        let body = json::registered(&address);
        Response::new(200).with("Cache-Control", "no-store").with_body("application/json", format!("{body}\n"))
    } else {
        page::done(visit, found, username, &address, app)
    };
    Answer::new(reason, response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{FIRST_REQUEST, LIMITS};

    #[test]
    fn a_request_that_has_come_before_the_end_is_answered_before_it() {
        assert!(FIRST_REQUEST + LIMITS.worker + WHOLE < LIMITS.drain);
        assert!(ASK_FROM + IN_USE <= ASK_UNTIL && ASK_UNTIL < WHOLE);
    }
}
