//! The XMPP server: reached, encrypted, offering registration, and reading this very file; and the settings about it.

use std::time::Instant;

use super::{CERTIFICATE_SECS, PATIENCE, Report, Settings, Trial};
use crate::duration;
use crate::error::Result;
use crate::host::Host;
use crate::invite::Server;
use crate::log::utc;
use crate::random;
use crate::setup::{INVITE_ENDED, PROSODY_LINES};
use crate::store::Store;
use crate::wire::Certificate;
use crate::xmpp::{Address, Probe, Shown};

/// What clients must find on offer to register with a token; the last is that of older clients, which Prosody has as well.
const IQ_REGISTER: &str = "http://jabber.org/features/iq-register";
const TOKEN: &str = "urn:xmpp:ibr-token:0";
const OLD_TOKEN: &str = "urn:xmpp:invite";

/// Invites that end sooner than this are hardly meant so, in seconds: an hour.
const TTL_SHORT: i64 = 3_600;

/// The most that the clocks of two time zones are apart, in seconds, and a little more.
const ZONES_SECS: i64 = 27 * 3_600;

/// What the checks of settings need to know.
pub struct Seen {
    /// A stream could be opened.
    is_reached: bool,
    /// It took an invite of ours, and nothing else.
    reads_file: bool,
}

/// Speaks with the server as a client would, and shows it our invite where that is safe.
pub fn check(report: &mut Report, host: &Host, settings: &Settings, trial: Option<&mut Trial>, now: i64) -> Seen {
    let mut seen = Seen { is_reached: false, reads_file: false };
    let address = &settings.xmpp;
    let mut probe = match Probe::open(address, host, Instant::now() + PATIENCE) {
        Ok(probe) => probe,
        Err(error) => {
            let why = error.to_string();
            let help = if why.contains("TLS failed") {
                format!("give it a certificate for {host}, as with `prosodyctl cert import {host}`; its log says more")
            } else if is_in_ascii(address, host) {
                format!(
                    "write the host as {host} in its configuration: it has the ASCII form {}, which clients don't send",
                    host.ascii()
                )
            } else {
                format!(
                    "start it, see that it serves {host}, or say with `invited set {host} xmpp HOST:PORT` where it is"
                )
            };
            report.error("xmpp", format!("the XMPP server {address} can't be asked about {host}: {why}"), help);
            return seen;
        }
    };
    seen.is_reached = true;
    report.ok("xmpp", format!("the XMPP server {address} serves {host}"));
    let is_safe = check_tls(report, &probe, host, now) || probe.is_local();
    check_features(report, &probe, settings.server);
    match trial {
        Some(trial) if is_safe => match check_tokens(report, &mut probe, host, settings, trial, now) {
            Ok(reads_file) => seen.reads_file = reads_file,
            Err(error) => {
                let text = format!("the XMPP server {address} does not answer to a token: {error}");
                report.error("invite", text, "its log says more");
            }
        },
        Some(_) => report.warning(
            "invite",
            "no invite is shown to the XMPP server over such a connection",
            "mend the TLS first",
        ),
        None => {}
    }
    probe.close();
    seen
}

/// Whether the server knows the host by its ASCII form alone.
fn is_in_ascii(address: &Address, host: &Host) -> bool {
    host.ascii() != host.name() && Probe::knows_ascii(address, host, Instant::now() + PATIENCE).is_ok_and(|knows| knows)
}

/// Whether a token would be safe even if somebody were in between.
fn check_tls(report: &mut Report, probe: &Probe, host: &Host, now: i64) -> bool {
    // Where it is on this machine, we take any certificate; other people's clients do not.
    let bad = |report: &mut Report, check, text: String, help: &str| match probe.is_local() {
        true => report.warning(check, text, help),
        false => report.error(check, text, help),
    };
    let help = format!(
        "give it one for {host}, such as Let's Encrypt's, with all certificates between it and the authority's"
    );
    match probe.certificate(host, now, now + CERTIFICATE_SECS) {
        Ok(None) => {
            bad(
                report,
                "tls",
                "the XMPP server offers no TLS, which clients insist on".to_owned(),
                "give it a certificate",
            );
            return false;
        }
        Ok(Some(Certificate::Good)) => {
            report.ok("certificate", format!("the XMPP server's certificate is good for {host}"))
        }
        Ok(Some(Certificate::Ends(end))) => {
            let text = format!("the XMPP server's certificate is good until {} only", utc(end));
            report.warning("certificate", text, "renew it, and see that the XMPP server takes the new one up");
        }
        Ok(Some(Certificate::Bad(why))) => {
            let text = format!("the XMPP server's certificate is not good for {host}: {why}");
            bad(report, "certificate", text, &help);
            return false;
        }
        Err(error) => {
            let text = format!("the XMPP server's certificate can't be judged: {error}");
            report.warning("certificate", text, "see to it that this machine has a list of authorities");
            return false;
        }
    }
    true
}

fn check_features(report: &mut Report, probe: &Probe, server: Server) {
    let wanted: &[&str] = match server {
        Server::Prosody => &[IQ_REGISTER, TOKEN, OLD_TOKEN],
        Server::Ejabberd => &[IQ_REGISTER, TOKEN],
    };
    let missing: Vec<&str> = wanted.iter().copied().filter(|feature| !probe.offers(feature)).collect();
    if missing.is_empty() {
        return report.ok("features", "the XMPP server tells clients that it takes registrations with tokens");
    }
    report.warning(
        "features",
        format!("the XMPP server does not tell clients that it takes registrations with tokens: {} missing", missing.join(", ")),
        match server {
            Server::Prosody => {
                "for this host: modules_enabled = { \"invites\"; \"invites_register\"; \"register_ibr\" } and allow_registration = true"
            }
            Server::Ejabberd => {
                "for this host: mod_invites with access_create_account, and mod_register with allow_modules: [mod_invites]"
            }
        },
    );
}

/// Whether the server takes our invite, and only that.
fn check_tokens(
    report: &mut Report,
    probe: &mut Probe,
    host: &Host,
    settings: &Settings,
    trial: &mut Trial,
    now: i64,
) -> Result<bool> {
    // ejabberd hears of no further token once it has taken one. So those that it must not take come first.
    match probe.show(host, &trial.made_up)? {
        Shown::Refused => report.ok("made-up", "the XMPP server refuses a token that nobody has made"),
        Shown::Taken => {
            let help = "see which other modules for invites or registration it has, and its log";
            report.error("made-up", "the XMPP server takes a token that nobody has made", help);
            return Ok(false);
        }
        Shown::Odd(condition) => {
            let help = "it lacks its modules for invites, see the README";
            report.error("invite", format!("the XMPP server answers {condition} to a token"), help);
            return Ok(false);
        }
    }
    let is_ejabberd = settings.server == Server::Ejabberd;
    if is_ejabberd && probe.show(host, &trial.another(-1, now)?)? == Shown::Taken {
        report.error("zone", "ejabberd still takes an invite that has expired", ZONE_HELP);
        return Ok(true);
    }
    if probe.show(host, &trial.token)? == Shown::Taken {
        report.ok("invite", "the XMPP server takes an invite that was made for it just now: it reads this file");
        check_fields(report, host, &probe.further_fields(host)?);
        if settings.server == Server::Prosody {
            // What Prosody writes at the first token is there once it has answered to the next.
            probe.show(host, &trial.made_up)?;
            check_lines(report, host, settings, trial, now)?;
        }
        return Ok(true);
    }
    if is_ejabberd && probe.show(host, &trial.another(ZONES_SECS, now)?)? == Shown::Taken {
        report.error("zone", "ejabberd takes invites for expired that are still good", ZONE_HELP);
        return Ok(true);
    }
    report.error(
        "invite",
        "the XMPP server refuses an invite that was made in this file just now: it reads another file, or none",
        match settings.server {
            Server::Prosody => {
                "for this host: storage = { invite_token = \"sql\" } and sql = { driver = \"SQLite3\"; database = \"FILE\" } with \
                 this very file, which Prosody's user must be able to write; then restart Prosody, whose log says more"
            }
            Server::Ejabberd => {
                "sql_type: sqlite and sql_database with this very file, which ejabberd's user must be able to write, and \
                 mod_invites with db_type: sql; then restart ejabberd, whose log says more"
            }
        },
    );
    Ok(false)
}

/// Whether a name and a password are all that the server wants of a new user.
fn check_fields(report: &mut Report, host: &Host, further: &[String]) {
    if further.is_empty() {
        report.ok("fields", "the XMPP server wants no more of a new user than a name and a password");
        return;
    }
    let text = format!(
        "the XMPP server also wants {} of a new user, which the page in the browser cannot give",
        further.join(", ")
    );
    let help = format!(
        "make it want no more (ejabberd: captcha_protected: false in mod_register), or `invited set {host} register off`"
    );
    report.error("fields", text, help);
}

/// Whether Prosody has the lines that make it look an invite up again at each registration. Only where they say so is a
/// registration tried: without them, Prosody would make the account.
fn check_lines(report: &mut Report, host: &Host, settings: &Settings, trial: &mut Trial, now: i64) -> Result<()> {
    let help =
        format!("paste what `invited setup prosody {host}` prints in place of the lines there, and restart Prosody");
    match trial.lines_version()? {
        Some(version) if version >= PROSODY_LINES => {}
        found => {
            let set = if found.is_some() { "an older set" } else { "none" };
            let text = format!(
                "Prosody has {set} of the lines that look an invite up again at each registration: one link can make several \
                 accounts"
            );
            report.error("lines", text, help);
            return Ok(());
        }
    }
    let token = trial.another(TRY_SECS, now)?;
    let mut probe = Probe::open(&settings.xmpp, host, Instant::now() + PATIENCE)?;
    probe.show(host, &token)?;
    trial.revoke(&token)?;
    let name = format!("invited-doctor-{}", random::base64url::<9>()?.to_lowercase());
    match probe.register(host, &name, &random::base64url::<24>()?)? {
        None => {
            let text = format!(
                "Prosody made the account {name}@{host} with an invite that was revoked after it had been shown"
            );
            report.error("lines", text, format!("delete that account, and {help}"));
        }
        Some(reason) if reason == INVITE_ENDED => {
            report.ok("lines", "Prosody looks an invite up again at each registration: one link makes one account");
        }
        Some(reason) => {
            let text = format!("Prosody refused a revoked invite for another reason than that: {reason}");
            report.warning("lines", text, "try again in some minutes");
        }
    }
    probe.close();
    Ok(())
}

/// How long the invite of that try is valid, in seconds, should it not be revoked.
const TRY_SECS: i64 = 60;

const ZONE_HELP: &str =
    "run both in the same time zone: ejabberd counts in local time, and one of them has a TZ of its own";

/// Whether the settings fit what there is.
pub fn check_settings(report: &mut Report, store: &Store, host: &Host, settings: &Settings, seen: &Seen) {
    if let Err(error) = check_server(report, store, host, settings, seen) {
        report.error("server", error.to_string(), "see the lines above");
    }
    let ttl = settings.ttl.as_deref().and_then(|ttl| Some((ttl, duration::parse(ttl).ok()?)));
    match ttl {
        Some((ttl, seconds)) if seconds < TTL_SHORT => {
            let help = format!("`invited set {host} ttl 7d`, for guests who read their messages in the evening");
            report.warning("ttl", format!("invites are good for {ttl} only"), help);
        }
        _ => report.ok("ttl", format!("invites are good for {}", settings.ttl.as_deref().unwrap_or("7d"))),
    }
    match (settings.register, seen.is_reached) {
        (true, false) => report.error(
            "register",
            "accounts can't be made in the browser, as guests are told, while the XMPP server is not reached",
            format!("see the line `xmpp`; `invited set {host} register off` leaves it to the apps"),
        ),
        (true, true) => report.ok("register", "accounts can be made in the browser"),
        (false, _) => report.ok("register", "accounts are not made in the browser, as the setting `register` says"),
    }
}

/// Whether the setting `server` agrees with the tables that the servers make.
fn check_server(report: &mut Report, store: &Store, host: &Host, settings: &Settings, seen: &Seen) -> Result<()> {
    let (prosody, ejabberd) = (store.prosody_is_old()?, store.has_ejabberd()?);
    let (name, other, is_mine, is_others) = match settings.server {
        Server::Prosody => ("prosody", "ejabberd", prosody.is_some(), ejabberd),
        Server::Ejabberd => ("ejabberd", "prosody", ejabberd, prosody.is_some()),
    };
    if settings.server == Server::Ejabberd && store.ejabberd_hosts()? > 1 {
        let help = "give each host its own --db, or use sql_schema_multihost";
        report.error("server", "the file is of several hosts of ejabberd's, whose tables can't tell them apart", help);
    } else if settings.server == Server::Ejabberd && store.ejabberd_has_no_accounts()? {
        let help = "auth_method: internal, or whatever it was; where it was sql, see the README on ejabberd";
        report.error("server", "ejabberd looks for its accounts in this file, and there are none", help);
    } else if is_others && !is_mine && !seen.reads_file {
        let help = format!("`invited set {host} server {other}`, or let {name} open the file");
        report.error("server", format!("the setting `server` says {name}, but {other} has opened the file"), help);
    } else if !is_mine && !seen.reads_file {
        let help = format!(
            "configure {name} as the README shows, and restart it; it opens the file when it looks for the first token"
        );
        report.warning("server", format!("{name} has not opened the file yet"), help);
    } else {
        let release = match (settings.server, prosody) {
            (Server::Prosody, Some(true)) => " 0.12",
            (Server::Prosody, Some(false)) => " 13 or newer",
            _ => "",
        };
        report.ok("server", format!("{name}{release} has opened the file, as the setting `server` says"));
    }
    Ok(())
}
