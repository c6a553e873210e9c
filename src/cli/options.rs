//! The options of the command line, each with the check of its value.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::duration;
use crate::error::{Error, Result};
use crate::invite::{Allow, Kind, USES_MAX, Wish};
use crate::log::Level;
use crate::user::Username;

/// The options of all commands; which of them a command takes is known before they are read.
#[derive(Default)]
pub struct Options {
    pub file: Option<PathBuf>,
    pub listen: Vec<Listen>,
    pub admin_listen: Vec<Listen>,
    pub socket_mode: Option<u32>,
    pub inetd: bool,
    pub idle_exit: Option<i64>,
    pub log_level: Option<Level>,
    pub allow: Option<Allow>,
    pub expires: Option<i64>,
    pub per_day: Option<u32>,
    pub json: bool,
    pub qr: bool,
    pub all: bool,
    pub revoke_unused: bool,
    pub user: Option<Username>,
    pub contact: Option<Username>,
    pub reset: Option<Username>,
    pub register: bool,
    pub trust_proxy: bool,
    pub ttl: Option<i64>,
    pub uses: Option<u32>,
    pub roles: Vec<String>,
    pub groups: Vec<String>,
    pub note: Option<String>,
    pub new_host: bool,
}

impl Options {
    /// Reads an option; `value` gives its value, and is called if it has one.
    pub fn read(&mut self, option: &str, mut value: impl FnMut() -> Result<OsString>) -> Result<()> {
        if option == "db" {
            self.file = Some(PathBuf::from(value()?));
            return Ok(());
        }
        let mut text = || {
            let not_text = |value: OsString| Error::usage(format!("{value:?} can't be --{option}: it is not UTF-8"));
            value()?.into_string().map_err(not_text)
        };
        match option {
            "listen" => self.listen.push(Listen::parse(&text()?)?),
            "admin-listen" => self.admin_listen.push(Listen::parse(&text()?)?),
            "socket-mode" => self.socket_mode = Some(socket_mode(&text()?)?),
            "inetd" => self.inetd = true,
            "idle-exit" => self.idle_exit = Some(duration::parse(&text()?)?),
            "log-level" => self.log_level = Some(Level::parse(&text()?)?),
            "allow" => self.allow = Some(Allow::parse(&text()?)?),
            "expires" => self.expires = Some(duration::parse(&text()?)?),
            "per-day" => self.per_day = Some(number(option, &text()?, u32::MAX)?),
            "user" => self.user = Some(Username::parse(&text()?)?),
            "contact" => self.contact = Some(Username::parse(&text()?)?),
            "reset" => self.reset = Some(Username::parse(&text()?)?),
            "ttl" => self.ttl = Some(duration::parse(&text()?)?),
            "uses" => self.uses = Some(number(option, &text()?, USES_MAX)?),
            "role" => self.roles.push(text()?),
            "group" => self.groups.push(text()?),
            "note" => self.note = Some(text()?),
            "register" => self.register = true,
            "trust-proxy" => self.trust_proxy = true,
            "new-host" => self.new_host = true,
            "json" => self.json = true,
            "qr" => self.qr = true,
            "all" => self.all = true,
            "revoke-unused" => self.revoke_unused = true,
            _ => return Err(Error::internal(format!("the option --{option} is not read"))),
        }
        Ok(())
    }

    /// The invite that these options ask for.
    pub fn wish(self) -> Result<Wish> {
        let (kind, username) = match (self.user, self.contact, self.reset) {
            (user, None, None) => (Kind::Account, user),
            (None, Some(contact), None) if self.register => (Kind::AccountAndContact, Some(contact)),
            (None, Some(contact), None) => (Kind::Contact, Some(contact)),
            (None, None, Some(user)) => (Kind::Reset, Some(user)),
            _ => return Err(Error::usage("only one of --user, --contact and --reset can be given")),
        };
        if self.register && kind != Kind::AccountAndContact {
            return Err(Error::usage("--register goes with --contact: it lets the guest make an account first"));
        }
        Ok(Wish {
            kind,
            username,
            roles: self.roles,
            groups: self.groups,
            uses: self.uses.unwrap_or(1),
            ttl_secs: self.ttl,
            note: self.note,
        })
    }
}

fn number(option: &str, text: &str, max: u32) -> Result<u32> {
    let number = duration::whole_number(text).and_then(|number| u32::try_from(number).ok());
    number.filter(|number| (1..=max).contains(number)).ok_or_else(|| {
        let text = text.escape_debug();
        Error::usage(format!("'{text}' can't be --{option}: it must be a whole number from 1 to {max}"))
    })
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP port of an address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Listen {
    fn parse(text: &str) -> Result<Listen> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Listen::Unix(PathBuf::from(path)));
        }
        text.parse().map(Listen::Tcp).map_err(|_| {
            Error::usage(format!(
                "'{}' is no address to listen on (give ADDR:PORT, such as 127.0.0.1:8642 or [::1]:8642, or unix:PATH)",
                text.escape_debug()
            ))
        })
    }
}

/// The access mode of a Unix socket, such as `660`.
fn socket_mode(text: &str) -> Result<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| {
        Error::usage(format!("'{}' can't be --socket-mode: it must be octal, such as 660", text.escape_debug()))
    })
}
