//! `doctor`: what is wrong with the file, the settings, the XMPP server and the public address, and what helps.
//!
//! Each check is a line: a level, a word that stays the same, what was found, and the way out. Goes on after an error as far
//! as that makes sense. Prints nothing, and leaves nothing behind: its invite goes when it is dropped.

mod clock;
mod file;
mod trial;
mod web;
mod xmpp;

use std::path::Path;
use std::time::Duration;

use crate::error::Result;
use crate::harden;
use crate::host::Host;
use crate::invite::Server;
use crate::key;
use crate::store::Store;
use crate::xmpp::Address;
use trial::Trial;

/// How long each of the two servers is asked at most. All else takes some seconds, so that the whole is over in half a minute.
const PATIENCE: Duration = Duration::from_secs(9);

/// A certificate that ends within this time is reported, in seconds: two weeks.
const CERTIFICATE_SECS: i64 = 14 * 86_400;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// All is well.
    Ok,
    /// It works, but not for everybody or not for long.
    Warning,
    /// It does not work.
    Error,
}

impl Level {
    /// The word that is shown.
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// What one check found.
#[derive(Debug)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// The word of the check.
    pub check: &'static str,
    /// What was found, in one line.
    pub text: String,
    /// The way out.
    pub help: Option<String>,
}

/// Takes the findings, one after the other.
pub struct Report<'a> {
    tell: &'a mut dyn FnMut(Finding) -> Result<()>,
    /// What must not be shown, whoever says it.
    secrets: Vec<String>,
    /// What went wrong with telling.
    failed: Result<()>,
}

impl<'a> Report<'a> {
    fn add(&mut self, level: Level, check: &'static str, text: &str, help: Option<&str>) {
        if self.failed.is_err() {
            return;
        }
        // Servers put into their words whatever they like.
        let clean = |text: &str| {
            let text = self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "…"));
            text.replace(key::is_control, " ")
        };
        let finding = Finding { level, check, text: clean(text), help: help.map(clean) };
        self.failed = (self.tell)(finding);
    }

    fn ok(&mut self, check: &'static str, text: impl AsRef<str>) {
        self.add(Level::Ok, check, text.as_ref(), None);
    }

    fn warning(&mut self, check: &'static str, text: impl AsRef<str>, help: impl AsRef<str>) {
        self.add(Level::Warning, check, text.as_ref(), Some(help.as_ref()));
    }

    fn error(&mut self, check: &'static str, text: impl AsRef<str>, help: impl AsRef<str>) {
        self.add(Level::Error, check, text.as_ref(), Some(help.as_ref()));
    }
}

/// The settings of a host that are looked at.
struct Settings {
    server: Server,
    url: Option<String>,
    page: Option<String>,
    ttl: Option<String>,
    register: bool,
    xmpp: Address,
}

impl Settings {
    fn read(store: &Store, host: &Host) -> Result<Settings> {
        let mut values: std::collections::HashMap<String, String> = store.settings(host)?.into_iter().collect();
        Ok(Settings {
            server: Server::from_setting(values.get("server").map(String::as_str)),
            url: values.remove("url"),
            page: values.remove("page"),
            ttl: values.remove("ttl"),
            register: values.get("register").is_none_or(|value| value != "off"),
            xmpp: values.get("xmpp").and_then(|value| Address::parse(value).ok()).unwrap_or_default(),
        })
    }
}

/// Looks at everything and tells of each check. `now` is in Unix seconds. Fails only where telling does.
pub fn examine(db: &Path, host: &Host, now: i64, tell: &mut dyn FnMut(Finding) -> Result<()>) -> Result<()> {
    let mut report = Report { tell, secrets: Vec::new(), failed: Ok(()) };
    clock::check_year(&mut report, now);
    if let Some(found) = file::check(&mut report, db, now) {
        look_further(&mut report, found, host, now);
    }
    report.failed
}

/// What needs a file that can be read.
fn look_further(report: &mut Report, found: file::Found, host: &Host, now: i64) {
    let file::Found { store, can_write } = found;
    let settings = match Settings::read(&store, host) {
        Ok(settings) => settings,
        Err(error) => return report.error("settings", error.to_string(), "restore a backup of the file"),
    };
    file::check_triggers(report, &store, settings.server);
    let mut trial = None;
    if can_write {
        match Trial::start(&store, host, now) {
            Ok(started) => trial = Some(started),
            Err(error) => report.error("invite", format!("no invite can be made: {error}"), "see the lines above"),
        }
    }
    if let Some(trial) = &trial {
        report.secrets = vec![trial.token.clone(), trial.made_up.clone()];
    }
    // So that the servers are seen as `serve` sees them: with the same files for certificates and names, and no others.
    if let Err(error) = harden::restrict(store.path(), None, &[]) {
        report.error("sandbox", error.to_string(), "see the log of `invited serve`, which can't start either");
    }
    let seen = xmpp::check(report, host, &settings, trial.as_mut(), now);
    xmpp::check_settings(report, &store, host, &settings, &seen);
    web::check(report, host, &settings, trial.as_ref(), now);
    if let Some(trial) = trial
        && let Err(error) = trial.end()
    {
        let help = "it expires within two minutes, and `invited prune` or `invited serve` then removes it";
        report.warning("invite", format!("the invite of this check could not be taken back: {error}"), help);
    }
}
