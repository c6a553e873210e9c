//! `/invites_api/invites`: what a key has made, and taking it back. A key sees nothing else.

use super::{JSON, Key, problem};
use crate::create::{HostSettings, addresses};
use crate::duration::whole_number;
use crate::error::Result;
use crate::http::{Answer, Request, Response};
use crate::json;
use crate::page::Pages;
use crate::store::{InviteRow, Of, Revoked, Store, Use, Writer};

/// Invites of one page of the list, and the most that there can be.
const PAGE: (usize, usize) = (50, 200);

/// A page ends early once its invites have been used so often: each use is shown.
const USES: usize = 1_000;

/// `GET /invites_api/invites`: the pending ones, oldest first; with `all=true` the others too.
///
/// `limit` is the most on a page, `after` the token with which the page before ended, from `next`: that alone tells whether
/// there are more.
pub fn list(pages: &Pages, store: &Store, request: &Request, key: &Key, now: i64) -> Result<Answer> {
    let bad = |field, why: &str| Ok(problem(pages, request, 400, "bad-field", why, Some(field)));
    let limit = match request
        .query_value("limit")
        .map(|limit| whole_number(&limit).and_then(|limit| usize::try_from(limit).ok()))
    {
        None => PAGE.0,
        Some(Some(limit)) if (1..=PAGE.1).contains(&limit) => limit,
        Some(_) => return bad("limit", &format!("it must be from 1 to {}", PAGE.1)),
    };
    let all = match request.query_value("all").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return bad("all", "it must be true or false"),
    };
    let after = match request.query_value("after") {
        None => 0,
        Some(token) => match own(store, key, &token)? {
            Some(invite) => invite.number,
            None => return bad("after", "this key has made no invite with this token"),
        },
    };
    let settings = HostSettings::read(store, &key.host)?;
    let source = key.source();
    let found = store.invites(Of::Source(&source), all, after, limit, now)?;
    let (mut invites, mut uses, mut next) = (Vec::with_capacity(found.invites.len()), 0, found.next);
    for invite in &found.invites {
        let used = store.uses(&invite.token)?;
        uses += used.len();
        invites.push(show(&settings, invite, &used, now)?);
        if uses >= USES && invites.len() < found.invites.len() {
            next = Some((invite.number, invite.token.clone()));
            break;
        }
    }
    let next = next.map(|(_, token)| token);
    let body = json::page(invites, next.as_deref());
    Ok(Answer::new("listed", Response::new(200).with_body(JSON, format!("{body}\n"))))
}

/// `GET /invites_api/invites/TOKEN`.
pub fn one(pages: &Pages, store: &Store, request: &Request, key: &Key, token: &str, now: i64) -> Result<Answer> {
    let Some(invite) = own(store, key, token)? else {
        return Ok(unknown(pages, request));
    };
    let settings = HostSettings::read(store, &key.host)?;
    let body = show(&settings, &invite, &store.uses(&invite.token)?, now)?;
    Ok(Answer::new("listed", Response::new(200).with_body(JSON, format!("{body}\n"))))
}

/// `DELETE /invites_api/invites/TOKEN`: takes a pending invite back, at once and on the XMPP server too.
pub fn revoke(pages: &Pages, writer: &Writer, request: &Request, key: &Key, token: &str, now: i64) -> Result<Answer> {
    let (host, source, wanted) = (key.host.clone(), key.source(), token.to_owned());
    let revoked = writer.write(move |tx| tx.revoke(&host, &wanted, Some(&source), now))?;
    Ok(match revoked {
        Revoked::Done => Answer::new("revoked", Response::new(204)),
        Revoked::Unknown => unknown(pages, request),
        Revoked::Ended(state) => {
            let why = format!("this invite is {} already", state.word());
            problem(pages, request, 410, "ended", &why, None)
        }
    })
}

fn own(store: &Store, key: &Key, token: &str) -> Result<Option<InviteRow>> {
    Ok(store.invite(token)?.filter(|invite| invite.source == key.source()))
}

fn show(settings: &HostSettings, invite: &InviteRow, uses: &[Use], now: i64) -> Result<json::Json> {
    let (uri, url) = addresses(settings, invite)?;
    Ok(json::invite(invite, &uri, &url, uses, now))
}

fn unknown(pages: &Pages, request: &Request) -> Answer {
    problem(pages, request, 404, "token-unknown", "this key has made no invite with this token", None)
}
