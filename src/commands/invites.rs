//! `invite`, `invites`, `show` and `revoke`.

use std::fmt::Write as _;

use super::{note, print};
use crate::cli::Output;
use crate::create::{HostSettings, Prepared, addresses};
use crate::duration;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::invite::{Kind, USES_MAX, Wish};
use crate::json;
use crate::log::{self, utc};
use crate::page::apps::{self, App};
use crate::qr;
use crate::store::{InviteRow, Of, Revoked, State, Store};

/// Invites that are read at a time, so that a long list takes no memory.
const PAGE: usize = 500;

/// Makes an invite and prints its link, once it is safe on disk.
pub fn invite(store: &mut Store, host: &Host, wish: Wish, output: Output) -> Result<()> {
    let now = log::now();
    let settings = HostSettings::read(store, host)?;
    wish.check(settings.server).map_err(|bad| {
        let option = bad.field.strip_suffix('s').filter(|_| bad.field != "uses").unwrap_or(bad.field);
        Error::usage(format!("--{option}: {} (see `invited invite --help`)", bad.why))
    })?;
    let prepared = Prepared::new(store, &settings, host, wish, "cli", now)?;
    store.write(|tx| tx.add_invite(&prepared.invite, &prepared.rows))?;
    match output {
        Output::Link => print(&format!("{}\n", prepared.url)),
        Output::Qr => {
            let code = qr::terminal(&prepared.url);
            if code.is_none() {
                note(format_args!("this link is too long for a QR code"));
            }
            print(&format!("{}\n{}", prepared.url, code.unwrap_or_default()))
        }
        Output::Json => {
            let row = find(store, host, &prepared.invite.token)?;
            print(&format!("{}\n", json::invite(&row, &prepared.uri, &prepared.url, &[], now)))
        }
    }
}

/// Prints the invites of a host, one a line or as a JSON array.
pub fn list(store: &mut Store, host: &Host, all: bool, json: bool) -> Result<()> {
    store.catch_up()?;
    let now = log::now();
    let settings = HostSettings::read(store, host)?;
    let apps = apps::embedded();
    let (mut after, mut first) = (0, true);
    loop {
        let page = store.invites(Of::Host(host), all, after, PAGE, now)?;
        let mut text = String::new();
        for invite in &page.invites {
            if json {
                let (uri, url) = addresses(&settings, invite)?;
                let value = json::invite(invite, &uri, &url, &store.uses(&invite.token)?, now);
                let _ = write!(text, "{}{value}", if first { "[\n" } else { ",\n" });
            } else {
                let _ = writeln!(text, "{}", line(store, invite, &apps, now)?);
            }
            first = false;
        }
        print(&text)?;
        match page.next {
            Some((number, _)) => after = number,
            None => break,
        }
    }
    if json { print(if first { "[]\n" } else { "\n]\n" }) } else { Ok(()) }
}

/// Prints all that is known of an invite.
pub fn show(store: &Store, host: &Host, token: &str, json: bool) -> Result<()> {
    let now = log::now();
    let invite = find(store, host, token)?;
    let (uri, url) = addresses(&HostSettings::read(store, host)?, &invite)?;
    let uses = store.uses(&invite.token)?;
    if json {
        return print(&format!("{}\n", json::invite(&invite, &uri, &url, &uses, now)));
    }
    let mut text = String::new();
    let mut put = |name: &str, value: &str| {
        // What the XMPP server wrote may hold anything.
        let value = value.replace(crate::key::is_control, "\u{fffd}");
        let _ = writeln!(text, "{name:<12} {value}");
    };
    put("Invite", &what(&invite));
    put("Host", &invite.host);
    put("State", &when(&invite, now));
    match invite.uses {
        USES_MAX => put("Uses", "any number until it expires"),
        uses => put("Uses", &format!("{} of {uses} left", invite.uses_left)),
    }
    put("Link", &url);
    put("XMPP URI", &uri);
    put("Made by", &invite.source);
    put("Created", &utc(invite.created_at));
    put("Expires", &utc(invite.expires_at));
    if let Some(opened) = opened(&invite, &apps::embedded()) {
        put("Page", &opened);
    }
    for (name, values) in [("Role", &invite.roles), ("Group", &invite.groups)] {
        for value in values {
            put(name, value);
        }
    }
    if let Some(note) = &invite.note {
        put("Note", note);
    }
    for used in uses {
        let by = used.username.map_or_else(String::new, |name| format!(" by {name}"));
        put("Used", &format!("{}{by}", utc(used.used_at)));
    }
    print(&text)
}

/// Takes an invite back.
pub fn revoke(store: &mut Store, host: &Host, link: &str) -> Result<()> {
    let found = store.invite_of_link(link)?;
    let token = found.as_ref().map_or(link, |invite| &invite.token);
    match store.write(|tx| tx.revoke(host, token, None, log::now()))? {
        Revoked::Done => Ok(()),
        Revoked::Unknown => Err(unknown(host, token)),
        Revoked::Ended(state) => Err(Error::refused(format!(
            "the invite '{}' of {host} is {} already (`invited show {host} {}` says more)",
            token.escape_debug(),
            state.word(),
            token.escape_debug()
        ))),
    }
}

/// The invite with this token, which can also be given as the link or the URI that it came in.
fn find(store: &Store, host: &Host, link: &str) -> Result<InviteRow> {
    let invite = store.invite_of_link(link)?.filter(|invite| invite.host == host.name());
    invite.ok_or_else(|| unknown(host, link))
}

fn unknown(host: &Host, token: &str) -> Error {
    Error::not_found(format!(
        "{host} has no invite '{}' (`invited invites {host} --all` shows those that there are)",
        token.escape_debug()
    ))
}

/// One line of the list: values with tabs between, none of which holds a tab.
fn line(store: &Store, invite: &InviteRow, apps: &[App], now: i64) -> Result<String> {
    let by: Vec<String> = store.uses(&invite.token)?.into_iter().filter_map(|used| used.username).collect();
    let mut end = when(invite, now);
    if !by.is_empty() {
        let _ = write!(end, " by {}", by.join(", "));
    }
    let state = invite.state(now).word();
    let mut end = end.strip_prefix(state).unwrap_or(&end).trim_start_matches([',', ' ']).to_owned();
    if let Some(opened) = opened(invite, apps) {
        let _ = write!(end, ", {opened}");
    }
    let values = [
        invite.token.as_str(),
        state,
        &end,
        &what(invite),
        &invite.source,
        &format!("{}/{}", invite.uses_left, invite.uses),
        invite.note.as_deref().unwrap_or_default(),
    ];
    // What Prosody wrote may hold anything.
    let clean = values.map(|value| value.replace(crate::key::is_control, "\u{fffd}"));
    Ok(clean.join("\t").trim_end_matches('\t').to_owned())
}

/// What guests did with its page: `opened twice, chose Conversations`; none if nobody has been there.
fn opened(invite: &InviteRow, apps: &[App]) -> Option<String> {
    let times = match (invite.opened, &invite.app) {
        (0, None) => return None,
        (0, Some(_)) => "not opened".to_owned(),
        (1, _) => "opened once".to_owned(),
        (2, _) => "opened twice".to_owned(),
        (times, _) => format!("opened {times} times"),
    };
    let Some(id) = &invite.app else { return Some(times) };
    let name = apps.iter().find(|app| app.id == *id).map_or(id, |app| &app.name);
    Some(format!("{times}, chose {name}"))
}

/// The state and its time: how long it is still pending, or since when it is not.
fn when(invite: &InviteRow, now: i64) -> String {
    match invite.state(now) {
        State::Pending => format!("pending, {} left", duration::show(invite.expires_at - now)),
        State::Expired => format!("expired {}", utc(invite.expires_at)),
        state => format!("{} {}", state.word(), utc(invite.ended_at.unwrap_or(invite.created_at))),
    }
}

/// What an invite is for, in some words.
fn what(invite: &InviteRow) -> String {
    let name = invite.username.as_deref().unwrap_or("?");
    match invite.kind {
        Kind::Account => match &invite.username {
            Some(name) => format!("account {name}"),
            None => "account".to_owned(),
        },
        Kind::Contact => format!("contact of {name}"),
        Kind::AccountAndContact => format!("account and contact of {name}"),
        Kind::Reset => format!("password reset of {name}"),
    }
}
