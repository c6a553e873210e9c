//! The command line: arguments in, a [`Command`] out, checked to the last value.
//!
//! The only file that names lexopt. Does no input or output and knows neither the store nor HTTP.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use lexopt::prelude::*;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::key;
use crate::settings::{self, Setting};

/// Where the database is unless told otherwise.
pub const DEFAULT_DB: &str = "/var/lib/invited/invited.sqlite";

/// Where `serve` listens unless told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8642";

/// What to do.
pub enum Command {
    /// Print this text.
    Help(String),
    /// Print the version.
    Version,
    /// Make a key.
    Create { db: PathBuf, host: Host, name: Option<String> },
    /// Print the keys of a host.
    List { db: PathBuf, host: Host },
    /// Delete a key.
    Delete { db: PathBuf, host: Host, id: String },
    /// Serve the API and the pages.
    Serve { db: PathBuf, listen: SocketAddr },
    /// Serve a throw-away instance.
    Try { host: Host },
    /// Set a setting; the value has been checked.
    Set { db: PathBuf, host: Host, name: &'static str, value: String },
    /// Print one setting or all.
    Get { db: PathBuf, host: Host, name: Option<&'static str> },
    /// Take a setting back to its default.
    Unset { db: PathBuf, host: Host, name: &'static str },
}

const OVERVIEW: &str = "\
invited - hands out invites to an XMPP server

Usage: invited COMMAND [ARGUMENTS]

  create HOST [NAME]       make an API key and print it, once
  list HOST                print the API keys of a host
  delete HOST ID           delete an API key
  serve                    serve the API and the invite pages
  try [HOST]               a throw-away server with a key, to look around

  set HOST NAME VALUE      set a setting of a host
  get HOST [NAME]          print one setting, or all that are set
  unset HOST NAME          take a setting back to its default

Options: --db FILE (else $INVITED_DB, else /var/lib/invited/invited.sqlite),
         --help, --version. `invited COMMAND --help` says more.

Exit codes: 0 done, 1 failed, 2 wrong usage. Results go to stdout, all else to stderr.
";

const CREATE: &str = "\
Usage: invited create HOST [NAME] [--db FILE]

Makes an API key for the XMPP host HOST and prints it as ID/SECRET. This is the only time that
the secret is shown: just a digest of it is kept. NAME is for you, to know the key by.
A missing database is made (mode 0660 less the umask), a missing folder is not.

  invited create example.com 'front desk'
";

const LIST: &str = "\
Usage: invited list HOST [--db FILE]

Prints the API keys of HOST, oldest first, one a line: ID, a tab, NAME (<unknown> without one).
";

const DELETE: &str = "\
Usage: invited delete HOST ID [--db FILE]

Deletes the API key ID of HOST. It is of no use from the next request on, also on a running server.
Invites that were made with it stay good. Prints nothing; exit code 1 if there is no such key.
";

const SERVE: &str = "\
Usage: invited serve [--listen ADDR:PORT] [--db FILE]

Serves the API and the invite pages until SIGTERM or SIGINT, in the foreground. Listens on
127.0.0.1:8642 unless told otherwise; port 0 takes a free one. When the socket is open, the line
`listening on http://ADDR:PORT` is printed on stderr, and one line of log a request from then on.

It speaks plain HTTP: put a proxy with TLS before it, as the README shows.
";

const TRY: &str = "\
Usage: invited try [HOST]

Makes a throw-away database with a key for HOST (default example.com), serves it on a free port of
this machine, and prints the lines to try it with. Ctrl-C ends it and leaves nothing behind.
";

const SET: &str = "\
Usage: invited set HOST NAME VALUE [--db FILE]

Sets a setting of HOST. A running server follows at once.
";

const GET: &str = "\
Usage: invited get HOST [NAME] [--db FILE]

Prints the value of a setting of HOST; exit code 1 if it is not set.
Without NAME, prints all that are set, one a line: NAME, a tab, VALUE.
";

const UNSET: &str = "\
Usage: invited unset HOST NAME [--db FILE]

Takes a setting of HOST back to its default. A running server follows at once.
";

/// Reads the arguments, without the program's name. `db` is the value of `$INVITED_DB`.
pub fn parse(args: impl IntoIterator<Item = OsString>, db: Option<OsString>) -> Result<Command> {
    let mut parser = lexopt::Parser::from_args(args);
    let name = match parser.next().map_err(wrong)? {
        None => return Err(Error::usage("no command given (`invited --help` lists them)")),
        Some(Short('h') | Long("help")) => return Ok(Command::Help(OVERVIEW.to_owned())),
        Some(Short('V') | Long("version")) => return Ok(Command::Version),
        Some(Value(name)) => name.string().map_err(wrong)?,
        Some(option) => return Err(wrong(option.unexpected())),
    };
    let help = match name.as_str() {
        "help" => return Ok(Command::Help(OVERVIEW.to_owned())),
        "create" => CREATE.to_owned(),
        "list" => LIST.to_owned(),
        "delete" => DELETE.to_owned(),
        "serve" => SERVE.to_owned(),
        "try" => TRY.to_owned(),
        "set" => SET.to_owned() + &settings_help(),
        "get" => GET.to_owned() + &settings_help(),
        "unset" => UNSET.to_owned() + &settings_help(),
        _ => {
            return Err(Error::usage(format!(
                "there is no command '{}' (`invited --help` lists them)",
                name.escape_debug()
            )));
        }
    };
    let see = |error: Error| Error::usage(format!("{error} (see `invited {name} --help`)"));

    // The options of all commands; which of them a command takes is looked at afterwards.
    let mut values = Vec::new();
    let mut file = None;
    let mut listen = None;
    while let Some(arg) = parser.next().map_err(wrong).map_err(see)? {
        match arg {
            Short('h') | Long("help") => return Ok(Command::Help(help)),
            Long("db") if name != "try" => file = Some(PathBuf::from(parser.value().map_err(wrong).map_err(see)?)),
            Long("listen") if name == "serve" => {
                listen = Some(parser.value().and_then(|value| value.string()).map_err(wrong).map_err(see)?);
            }
            Value(value) => values.push(value.string().map_err(wrong).map_err(see)?),
            option => return Err(see(wrong(option.unexpected()))),
        }
    }
    let db = file.or(db.filter(|db| !db.is_empty()).map(PathBuf::from)).unwrap_or_else(|| PathBuf::from(DEFAULT_DB));
    let mut words = Words { values: values.into_iter(), command: &name };
    let command = match name.as_str() {
        "create" => {
            let (host, label) = (words.host()?, words.optional());
            if let Some(label) = &label {
                key::check_name(label)?;
            }
            Command::Create { db, host, name: label }
        }
        "list" => Command::List { db, host: words.host()? },
        "delete" => Command::Delete { db, host: words.host()?, id: words.required("ID")? },
        "serve" => Command::Serve { db, listen: address(listen.as_deref().unwrap_or(DEFAULT_LISTEN))? },
        "try" => Command::Try { host: Host::parse(words.optional().as_deref().unwrap_or("example.com"))? },
        "set" => {
            let (host, setting, value) = (words.host()?, words.setting()?, words.required("VALUE")?);
            let value = (setting.check)(&value).map_err(|why| {
                Error::usage(format!("'{}' can't be the {} of {host}: {why}", value.escape_debug(), setting.name))
            })?;
            Command::Set { db, host, name: setting.name, value }
        }
        "get" => {
            let host = words.host()?;
            let name = words.optional().map(|name| settings::find(&name)).transpose()?.map(|setting| setting.name);
            Command::Get { db, host, name }
        }
        _ => Command::Unset { db, host: words.host()?, name: words.setting()?.name },
    };
    words.end()?;
    Ok(command)
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

fn settings_help() -> String {
    let mut text = "\nSettings:\n".to_owned();
    for setting in settings::SETTINGS {
        text.push_str(&format!("  {:<12} {}\n", setting.name, setting.help));
    }
    text
}

fn address(text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| {
        Error::usage(format!(
            "'{}' is no address to listen on (give ADDR:PORT, such as 127.0.0.1:8642 or [::1]:8642)",
            text.escape_debug()
        ))
    })
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
        for words in [&["--help"][..], &["create", "--help"], &["serve", "-h"], &["set", "--help"], &["get", "--help"]]
        {
            let Ok(Command::Help(text)) = parse_words(words) else { panic!("{words:?}") };
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
        ] {
            match parse_words(words) {
                Err(error) => assert!(error.to_string().contains(object), "{words:?}: {error}"),
                Ok(_) => panic!("{words:?} was taken"),
            }
        }
    }
}
