//! The command line: arguments in, a [`Command`] out, checked to the last value.
//!
//! The only file that names lexopt. Does no input or output and knows neither the store nor HTTP.

mod help;
mod options;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::invite::{Allow, Wish};
use crate::key;
use crate::log::Level;
use crate::settings::{self, Setting};
use crate::setup::{self, Program};
pub use options::Listen;
use options::Options;

/// Where the database is unless told otherwise.
pub const DEFAULT_DB: &str = "/var/lib/invited/invited.sqlite";

/// The port of 127.0.0.1 where `serve` listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 8642;

/// What to do.
pub enum Command {
    /// Print this text.
    Help(String),
    /// Print the version.
    Version,
    /// Make a key.
    Create { db: PathBuf, host: Host, name: Option<String>, allow: Allow, ttl_secs: Option<i64>, per_day: Option<u32> },
    /// Print the keys of a host.
    List { db: PathBuf, host: Host, json: bool },
    /// Delete a key, and perhaps take back what it made.
    Delete { db: PathBuf, host: Host, id: String, revoke_unused: bool },
    /// Make an invite and print its link.
    Invite { db: PathBuf, host: Host, new_host: bool, wish: Wish, output: Output },
    /// Print the invites of a host.
    Invites { db: PathBuf, host: Host, all: bool, json: bool },
    /// Print all that is known of an invite.
    Show { db: PathBuf, host: Host, token: String, json: bool },
    /// Take an invite back.
    Revoke { db: PathBuf, host: Host, token: String },
    /// Remove what has expired.
    Prune { db: PathBuf, host: Option<Host> },
    /// Bring in keys and invites of Prosody's own.
    Import { db: PathBuf, source: PathBuf },
    /// Serve the API and the pages.
    Serve { db: PathBuf, serve: Serve },
    /// Print what to paste into the configuration of another program.
    Setup { db: PathBuf, program: &'static Program, host: Host, listen: Listen },
    /// Look for what is wrong.
    Doctor { db: PathBuf, host: Host, json: bool },
    /// Copy the database.
    Backup { db: PathBuf, to: PathBuf },
    /// Put a copy in the place of the database.
    Restore { db: PathBuf, from: PathBuf },
    /// Serve a throw-away instance.
    Try { host: Host },
    /// Set a setting.
    Set { db: PathBuf, host: Host, new_host: bool, name: &'static str, value: NewValue },
    /// Print one setting or all.
    Get { db: PathBuf, host: Host, name: Option<&'static str> },
    /// Take a setting back to its default.
    Unset { db: PathBuf, host: Host, name: &'static str },
}

/// How to serve.
#[derive(Clone, Default)]
pub struct Serve {
    /// Where guests come; nowhere means where a supervisor says, else the default.
    pub listen: Vec<Listen>,
    /// Where the admin's programs come.
    pub admin_listen: Vec<Listen>,
    /// The access mode of Unix sockets.
    pub socket_mode: Option<u32>,
    /// Serve what is on stdin.
    pub inetd: bool,
    /// End after so long without a connection.
    pub idle_exit: Option<Duration>,
    /// Believe the proxy's word for who the client is.
    pub trust_proxy: bool,
    /// How much is logged.
    pub log_level: Level,
    /// End with the terminal, which only `try` does.
    pub ends_on_hangup: bool,
}

/// The new value of a setting.
pub enum NewValue {
    /// A text that has been checked.
    Text(String),
    /// The content of a file, and its check.
    File(PathBuf, fn(&[u8]) -> std::result::Result<String, String>),
}

/// How a new invite is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Its link.
    Link,
    /// Its link, and that as a QR code.
    Qr,
    /// All of it as JSON.
    Json,
}

/// Reads the arguments, without the program's name. `db` is the value of `$INVITED_DB`.
pub fn parse(args: impl IntoIterator<Item = OsString>, db: Option<OsString>) -> Result<Command> {
    let mut parser = lexopt::Parser::from_args(args);
    let name = match parser.next().map_err(wrong)? {
        None => return Err(Error::usage("no command given (`invited --help` lists them)")),
        Some(Short('h') | Long("help")) => return Ok(Command::Help(help::OVERVIEW.to_owned())),
        Some(Short('V') | Long("version")) => return Ok(Command::Version),
        Some(Value(name)) => name.string().map_err(wrong)?,
        Some(option) => {
            let option = wrong(option.unexpected());
            return Err(Error::usage(format!("{option} (options come after the command, see `invited --help`)")));
        }
    };
    let (help, takes) = match name.as_str() {
        "help" => {
            return match parser.next().map_err(wrong)? {
                Some(Value(name)) if name != "help" => parse([name, "--help".into()], None),
                Some(Value(_) | Short('h') | Long("help")) | None => Ok(Command::Help(help::OVERVIEW.to_owned())),
                Some(option) => Err(wrong(option.unexpected())),
            };
        }
        "create" => (help::CREATE.to_owned(), &["db", "allow", "expires", "per-day"][..]),
        "list" => (help::LIST.to_owned(), &["db", "json"][..]),
        "delete" => (help::DELETE.to_owned(), &["db", "revoke-unused"][..]),
        "invite" => (
            help::INVITE.to_owned(),
            &[
                "db", "user", "contact", "register", "reset", "ttl", "uses", "role", "group", "note", "new-host", "qr",
                "json",
            ][..],
        ),
        "invites" => (help::INVITES.to_owned(), &["db", "all", "json"][..]),
        "show" => (help::SHOW.to_owned(), &["db", "json"][..]),
        "revoke" => (help::REVOKE.to_owned(), &["db"][..]),
        "prune" => (help::PRUNE.to_owned(), &["db"][..]),
        "import" => (help::IMPORT.to_owned(), &["db"][..]),
        "serve" => (
            help::SERVE.to_owned(),
            &["db", "listen", "admin-listen", "socket-mode", "inetd", "idle-exit", "trust-proxy", "log-level"][..],
        ),
        "setup" => (help::SETUP.to_owned(), &["db", "listen"][..]),
        "doctor" => (help::DOCTOR.to_owned(), &["db", "json"][..]),
        "backup" => (help::BACKUP.to_owned(), &["db"][..]),
        "restore" => (help::RESTORE.to_owned(), &["db"][..]),
        "try" => (help::TRY.to_owned(), &[][..]),
        "set" => (help::SET.to_owned() + &help::settings(), &["db", "new-host"][..]),
        "get" => (help::GET.to_owned() + &help::settings(), &["db"][..]),
        "unset" => (help::UNSET.to_owned() + &help::settings(), &["db"][..]),
        _ => {
            return Err(Error::usage(format!(
                "there is no command '{}' (`invited --help` lists them)",
                name.escape_debug()
            )));
        }
    };
    let see = |error: Error| Error::usage(format!("{error} (see `invited {name} --help`)"));

    let mut words = Vec::new();
    let mut options = Options::default();
    let takes_id = matches!(name.as_str(), "delete" | "show" | "revoke");
    loop {
        // The id of an imported key and a token of Prosody's may begin with a dash: where one is due, it is no option.
        if takes_id && words.len() == 1 {
            let id = parser.try_raw_args().and_then(|mut args| args.next_if(is_dashed_id));
            if let Some(id) = id {
                words.push(id.string().map_err(wrong).map_err(see)?);
                continue;
            }
        }
        let Some(arg) = parser.next().map_err(wrong).map_err(see)? else { break };
        match arg {
            Short('h') | Long("help") => return Ok(Command::Help(help)),
            Value(word) => words.push(word.string().map_err(wrong).map_err(see)?),
            Long(option) if takes.contains(&option) => {
                let option = option.to_owned();
                options.read(&option, || parser.value().map_err(wrong)).map_err(see)?;
            }
            option => return Err(see(wrong(option.unexpected()))),
        }
    }
    let db = options.file.take().or(db.filter(|db| !db.is_empty()).map(PathBuf::from));
    let db = db.unwrap_or_else(|| PathBuf::from(DEFAULT_DB));
    let mut words = Words { values: words.into_iter(), command: &name };
    let command = match name.as_str() {
        "create" => {
            let (host, label) = (words.host()?, words.optional());
            if let Some(label) = &label {
                key::check_name(label)?;
            }
            let allow = options.allow.unwrap_or_else(Allow::default_words);
            Command::Create { db, host, name: label, allow, ttl_secs: options.expires, per_day: options.per_day }
        }
        "list" => Command::List { db, host: words.host()?, json: options.json },
        "delete" => {
            // Whoever has the whole key at hand pastes it; its secret must not come back in a message.
            let (host, key) = (words.host()?, words.required("ID")?);
            let id = key.split('/').next().unwrap_or_default().to_owned();
            Command::Delete { db, host, id, revoke_unused: options.revoke_unused }
        }
        "invite" => {
            let host = words.host()?;
            let output = match (options.qr, options.json) {
                (true, true) => return Err(see(Error::usage("--qr and --json can't be combined"))),
                (true, false) => Output::Qr,
                (false, true) => Output::Json,
                (false, false) => Output::Link,
            };
            let new_host = options.new_host;
            Command::Invite { db, host, new_host, wish: options.wish().map_err(see)?, output }
        }
        "invites" => Command::Invites { db, host: words.host()?, all: options.all, json: options.json },
        "show" => Command::Show { db, host: words.host()?, token: words.required("TOKEN")?, json: options.json },
        "revoke" => Command::Revoke { db, host: words.host()?, token: words.required("TOKEN")? },
        "prune" => Command::Prune { db, host: words.optional().map(|host| Host::parse(&host)).transpose()? },
        "import" => Command::Import { db, source: PathBuf::from(words.required("FILE")?) },
        "serve" => {
            if options.inetd && !(options.listen.is_empty() && options.admin_listen.is_empty()) {
                let why = "--inetd serves what is on stdin: --listen and --admin-listen can't go with it";
                return Err(see(Error::usage(why)));
            }
            let serve = Serve {
                listen: options.listen,
                admin_listen: options.admin_listen,
                socket_mode: options.socket_mode,
                inetd: options.inetd,
                idle_exit: options.idle_exit.map(|seconds| Duration::from_secs(seconds.unsigned_abs())),
                trust_proxy: options.trust_proxy,
                log_level: options.log_level.unwrap_or(Level::Info),
                ends_on_hangup: false,
            };
            Command::Serve { db, serve }
        }
        "setup" => {
            let (program, host) = (setup::find(&words.required("WHAT")?)?, words.host()?);
            if options.listen.len() > 1 {
                return Err(see(Error::usage("--listen can be given only once")));
            }
            let listen = options.listen.pop().unwrap_or(Listen::Tcp(setup::DEFAULT_LISTEN));
            Command::Setup { db, program, host, listen }
        }
        "doctor" => Command::Doctor { db, host: words.host()?, json: options.json },
        "backup" => Command::Backup { db, to: PathBuf::from(words.required("FILE")?) },
        "restore" => Command::Restore { db, from: PathBuf::from(words.required("FILE")?) },
        "try" => Command::Try { host: Host::parse(words.optional().as_deref().unwrap_or("example.com"))? },
        "set" => {
            let (host, setting, value) = (words.host()?, words.setting()?, words.required("VALUE")?);
            let value = match setting.value {
                settings::Value::Text(check) => NewValue::Text(check(&value).map_err(|why| {
                    Error::usage(format!("'{}' can't be the {} of {host}: {why}", value.escape_debug(), setting.name))
                })?),
                settings::Value::File(check) => NewValue::File(PathBuf::from(value), check),
            };
            Command::Set { db, host, new_host: options.new_host, name: setting.name, value }
        }
        "get" => {
            let host = words.host()?;
            let name = words.optional().map(|name| settings::find(&name)).transpose()?.map(|setting| setting.name);
            Command::Get { db, host, name }
        }
        "unset" => Command::Unset { db, host: words.host()?, name: words.setting()?.name },
        _ => return Err(Error::internal(format!("the command {name} is not read"))),
    };
    words.end()?;
    Ok(command)
}

/// Whether an argument is an id that begins with one dash; the only option of that shape is `-h`.
fn is_dashed_id(arg: &OsStr) -> bool {
    arg.to_str().is_some_and(|text| text.len() > 2 && text.starts_with('-') && !text.starts_with("--"))
}

/// The arguments that are not options, taken one after the other.
struct Words<'a> {
    values: std::vec::IntoIter<String>,
    command: &'a str,
}

impl Words<'_> {
    fn optional(&mut self) -> Option<String> {
        self.values.next()
    }

    fn required(&mut self, what: &str) -> Result<String> {
        self.optional()
            .ok_or_else(|| Error::usage(format!("{what} is missing (see `invited {} --help`)", self.command)))
    }

    fn host(&mut self) -> Result<Host> {
        Host::parse(&self.required("HOST")?)
    }

    fn setting(&mut self) -> Result<&'static Setting> {
        settings::find(&self.required("NAME")?)
    }

    fn end(&mut self) -> Result<()> {
        match self.values.next() {
            None => Ok(()),
            Some(more) => Err(Error::usage(format!(
                "'{}' is one argument too many (see `invited {} --help`; a name with spaces needs quotes)",
                more.escape_debug(),
                self.command
            ))),
        }
    }
}

fn wrong(error: lexopt::Error) -> Error {
    Error::usage(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Command> {
        parse(words.iter().map(OsString::from), None)
    }

    #[test]
    fn every_help_fits_a_screen() {
        let commands = help::OVERVIEW.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        let commands: Vec<&str> = commands.filter(|word| !word.is_empty() && !word.starts_with('-')).collect();
        assert_eq!(commands.len(), 18, "{commands:?}");
        for words in [&["help"][..], &["help", "help"], &["help", "--help"], &["-h"]] {
            assert!(matches!(parse_words(words), Ok(Command::Help(text)) if text == help::OVERVIEW), "{words:?}");
        }
        for words in commands.iter().map(|command| vec![*command, "--help"]).chain([vec!["--help"]]) {
            let words = &words[..];
            let Ok(Command::Help(text)) = parse_words(words) else { panic!("{words:?}") };
            if let [command, _] = words {
                assert!(matches!(parse_words(&["help", command]), Ok(Command::Help(same)) if same == text));
            }
            assert!(text.lines().count() <= 24, "{words:?}");
            assert!(text.lines().all(|line| line.chars().count() <= 100), "{words:?}");
        }
    }

    #[test]
    fn the_option_beats_the_environment_beats_the_default() {
        let db = |words: &[&str], env: Option<&str>| match parse(
            words.iter().map(OsString::from),
            env.map(OsString::from),
        ) {
            Ok(Command::List { db, .. }) => db.display().to_string(),
            _ => panic!("{words:?}"),
        };
        assert_eq!(db(&["list", "a.example", "--db", "x"], Some("y")), "x");
        assert_eq!(db(&["list", "a.example"], Some("y")), "y");
        assert_eq!(db(&["list", "a.example"], Some("")), DEFAULT_DB);
        assert_eq!(db(&["list", "a.example"], None), DEFAULT_DB);
    }

    #[test]
    fn wrong_usage_is_refused_with_its_object() {
        for (words, object) in [
            (&[][..], "no command"),
            (&["bogus"], "'bogus'"),
            (&["create"], "HOST"),
            (&["create", "a.example", "b", "c"], "'c'"),
            (&["create", "a.example", "a\tb"], "a\\tb"),
            (&["create", "a:5222"], "a:5222"),
            (&["delete", "a.example"], "ID"),
            (&["list", "a.example", "--bogus"], "bogus"),
            (&["list", "a.example", "--listen", "127.0.0.1:1"], "listen"),
            (&["serve", "--listen", "8642"], "8642"),
            (&["serve", "x"], "'x'"),
            (&["set", "a.example", "bogus", "x"], "url"),
            (&["set", "a.example", "url", "ftp://x"], "https://"),
            (&["try", "--db", "x"], "db"),
            (&["help", "bogus"], "'bogus'"),
            (&["--db", "x", "list", "a.example"], "after the command"),
            (&["create", "a.example", "--per-day", "99999999999"], "to 4294967295"),
            (&["create", "a.example", "--expires", "11y"], "too long"),
            (&["setup"], "WHAT"),
            (&["setup", "bogus"], "nginx, caddy, apache"),
            (&["setup", "nginx"], "HOST"),
        ] {
            match parse_words(words) {
                Err(error) => assert!(error.to_string().contains(object), "{words:?}: {error}"),
                Ok(_) => panic!("{words:?} was taken"),
            }
        }
    }
}
