//! What to paste into the configuration of other programs, filled in.
//!
//! The texts are the files in `setup/`. Does no input or output: what it needs to know comes in as [`Facts`]. Knows of each
//! program how it quotes, and refuses what that program can't be told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::cli::{DEFAULT_PORT, Listen};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::invite::Landing;
use crate::user::RefusedNames;

/// Where `serve` listens unless told otherwise.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_PORT);

/// The version of the lines for Prosody. It goes up when they change, so that `doctor` can tell an older set.
pub const PROSODY_LINES: i64 = 1;

/// What those lines say of an invite that ended after it was shown.
pub const INVITE_ENDED: &str = "This invite is no longer valid";

/// A program for which there is something to paste.
#[derive(Debug)]
pub struct Program {
    /// Its name on the command line.
    pub name: &'static str,
    text: &'static str,
    quoting: Quoting,
}

/// How a value is written so that the program reads it as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quoting {
    Lua,
    Yaml,
    Systemd,
    Shell,
    /// A shell's line within a variable that a shell evaluates once more.
    OpenRc,
    /// A shell's line in which `%` would end it.
    Cron,
    /// There is no way to quote.
    Plain,
}

/// All programs, in the order of the help.
pub const PROGRAMS: &[Program] = &[
    Program { name: "prosody", text: include_str!("setup/prosody.lua"), quoting: Quoting::Lua },
    Program { name: "ejabberd", text: include_str!("setup/ejabberd.yml"), quoting: Quoting::Yaml },
    Program { name: "systemd", text: include_str!("setup/systemd.service"), quoting: Quoting::Systemd },
    Program { name: "openrc", text: include_str!("setup/openrc"), quoting: Quoting::OpenRc },
    Program { name: "runit", text: include_str!("setup/runit"), quoting: Quoting::Shell },
    Program { name: "inetd", text: include_str!("setup/inetd.conf"), quoting: Quoting::Plain },
    Program { name: "nginx", text: include_str!("setup/nginx.conf"), quoting: Quoting::Plain },
    Program { name: "caddy", text: include_str!("setup/Caddyfile"), quoting: Quoting::Plain },
    Program { name: "apache", text: include_str!("setup/apache.conf"), quoting: Quoting::Plain },
    Program { name: "cron", text: include_str!("setup/cron"), quoting: Quoting::Cron },
    Program { name: "fail2ban", text: include_str!("setup/fail2ban.conf"), quoting: Quoting::Plain },
];

/// The program of this name.
pub fn find(name: &str) -> Result<&'static Program> {
    PROGRAMS.iter().find(|program| program.name == name).ok_or_else(|| {
        let names: Vec<_> = PROGRAMS.iter().map(|program| program.name).collect();
        let name = name.escape_debug();
        Error::usage(format!("there is nothing to set up for '{name}' (there are: {})", names.join(", ")))
    })
}

/// What is filled in.
pub struct Facts {
    /// Where this program lies.
    pub program: PathBuf,
    /// Where the database is, absolute.
    pub db: PathBuf,
    /// The XMPP host.
    pub host: Host,
    /// Who owns the database: names, or two numbers.
    pub user: String,
    /// The group, likewise.
    pub group: String,
    /// Where `serve` listens.
    pub listen: Listen,
    /// The XMPP server, by the value of the setting `server`.
    pub server: String,
    /// The public base address, as the setting `url` has it.
    pub url: String,
    /// The address of an external page, as the setting `page` has it.
    pub page: Option<String>,
    /// The names that guests can't choose, as the setting `names-refuse` has them.
    pub names_refuse: Option<String>,
}

/// The text to paste.
pub fn text(program: &Program, facts: &Facts) -> Result<String> {
    let mut out = String::with_capacity(program.text.len() + 512);
    let mut rest = program.text;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let name = rest[1..].split('}').next().unwrap_or_default();
        // Braces of the program's own stand for themselves.
        match facts.value(name, program)? {
            Some(value) => {
                out.push_str(&value);
                rest = &rest[name.len() + 2..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

impl Facts {
    /// What stands in a place of this name, as the program wants it written; none if there is no such place.
    fn value(&self, place: &str, program: &Program) -> Result<Option<String>> {
        let (web, prefix) = self.web_and_prefix();
        let quote = |what: &str, path: &Path| program.quote(what, path);
        let (user, group) = (&self.user, &self.group);
        let is_nameless = user.starts_with(|c: char| c.is_ascii_digit());
        let value = match place {
            "user" | "group" if is_nameless && matches!(program.name, "inetd" | "cron") => {
                return Err(Error::refused(format!(
                    "{} knows users by their names alone, and the owner of {} has none: {user}",
                    program.name,
                    self.db.display()
                )));
            }
            "user" => user.clone(),
            "group" => group.clone(),
            "chpst_user" if is_nameless => format!(":{user}:{group}"),
            "chpst_user" => format!("{user}:{group}"),
            "program" if program.quoting == Quoting::OpenRc => {
                shell(&shell(&program.text_of("path of this program", &self.program)?))
            }
            // Systemd looks for no variables in the name of a program, so that a dollar sign can't be doubled there.
            "program" if program.quoting == Quoting::Systemd && self.program.to_string_lossy().contains('$') => {
                return Err(cannot(program.name, "path of this program", &self.program, '$'));
            }
            "program" => quote("path of this program", &self.program)?,
            "program_name" => "invited".to_owned(),
            "db" => quote("path of the database", &self.db)?,
            "db_option" => format!("--db {}", quote("path of the database", &self.db)?),
            "folder" => {
                let folder = self.db.parent().unwrap_or(Path::new("/"));
                let quoted = quote("folder of the database", folder)?;
                // Only a command's line has variables.
                if program.quoting == Quoting::Systemd { quoted.replace("$$", "$") } else { quoted }
            }
            "serve" => self.serve(program)?,
            "no_trust" if self.is_local() => String::new(),
            "no_trust" => include_str!("setup/no_trust").replace("ADDRESS", &self.address(program)?.to_string()),
            "host" => self.host.name().to_owned(),
            "host_key" => yaml_key(self.host.name()),
            "url" => self.url.clone(),
            "landing_page" => {
                let landing = Landing { url: Some(&self.url), page: self.page.as_deref() };
                double(&landing.page(&self.host, "{uri}", "{token}"))
            }
            "refused_names" => {
                let names = RefusedNames::of(self.names_refuse.as_deref());
                let names: Vec<String> = names.iter().map(|name| format!("[{}] = true", double(name))).collect();
                format!("{{ {} }}", names.join("; "))
            }
            "invite_ended" => double(INVITE_ENDED),
            "lines_version" => PROSODY_LINES.to_string(),
            "server" => self.server.clone(),
            "web" => web.to_owned(),
            "prefix" => plain_prefix(prefix)?.to_owned(),
            "prefix_regex" => plain_prefix(prefix)?.replace('.', "\\."),
            "nginx_strip" if prefix.is_empty() => String::new(),
            "nginx_strip" => format!("    rewrite ^{}(/.*)$ $1 break;\n", plain_prefix(prefix)?.replace('.', "\\.")),
            "caddy_strip" if prefix.is_empty() => String::new(),
            "caddy_strip" => format!("    uri strip_prefix {}\n", plain_prefix(prefix)?),
            "nginx_upstream" => self.upstream(program, "http://", "http://unix:", ":")?,
            "caddy_upstream" => self.upstream(program, "", "unix/", "")?,
            "apache_upstream" => self.upstream(program, "http://", "unix:", "|http://localhost")?,
            "listen_stream" => match &self.listen {
                Listen::Tcp(address) => address.to_string(),
                // The one that systemd makes is open to everybody unless it is told otherwise.
                Listen::Unix(path) => format!(
                    "{}\n#: SocketMode=0660\n#: SocketUser={}\n#: SocketGroup={}",
                    plain("path of the socket", path)?,
                    self.user,
                    self.group
                ),
            },
            "inetd_address" => self.address(program)?.to_string(),
            "tcp" => if self.address(program)?.is_ipv4() { "tcp" } else { "tcp6" }.to_owned(),
            "xinetd_flags" => if self.address(program)?.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
            "address" => self.address(program)?.ip().to_string(),
            "port" => self.address(program)?.port().to_string(),
            "protect_home" => {
                let below_home = ["/home", "/root", "/run/user"].iter().any(|home| self.lies_below(home));
                if below_home { "read-only" } else { "yes" }.to_owned()
            }
            "private_tmp" => {
                let below_tmp = ["/tmp", "/var/tmp"].iter().any(|tmp| self.lies_below(tmp));
                if below_tmp { "no" } else { "yes" }.to_owned()
            }
            _ => return Ok(None),
        };
        Ok(Some(value))
    }

    /// Whether this machine alone reaches `serve`. Elsewhere anybody could come past the proxy, and claim any address.
    fn is_local(&self) -> bool {
        match &self.listen {
            Listen::Tcp(address) => address.ip().is_loopback(),
            Listen::Unix(_) => true,
        }
    }

    /// The arguments of `invited serve`.
    fn serve(&self, program: &Program) -> Result<String> {
        let mut words = vec!["serve".to_owned()];
        if program.name == "inetd" {
            words.push("--inetd".to_owned());
        }
        if self.is_local() {
            words.push("--trust-proxy".to_owned());
        }
        match &self.listen {
            _ if program.name == "inetd" => {}
            Listen::Tcp(address) if *address == DEFAULT_LISTEN => {}
            Listen::Tcp(address) => words.push(format!("--listen {address}")),
            Listen::Unix(path) => words.push(format!("--listen unix:{}", plain("path of the socket", path)?)),
        }
        words.push(format!("--db {}", program.quote("path of the database", &self.db)?));
        let words = words.join(" ");
        Ok(if program.quoting == Quoting::OpenRc { shell(&words) } else { words })
    }

    /// Where the proxy finds `serve`.
    fn upstream(&self, program: &Program, tcp: &str, unix: &str, unix_end: &str) -> Result<String> {
        match &self.listen {
            Listen::Unix(path) => Ok(format!("{unix}{}{unix_end}", plain("path of the socket", path)?)),
            Listen::Tcp(_) => {
                let mut address = self.address(program)?;
                if address.ip().is_unspecified() {
                    let is_ipv4 = address.is_ipv4();
                    address.set_ip(if is_ipv4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
                }
                Ok(format!("{tcp}{address}"))
            }
        }
    }

    /// The address of `serve` where that must be a TCP one.
    fn address(&self, program: &Program) -> Result<SocketAddr> {
        match &self.listen {
            Listen::Tcp(address) => Ok(*address),
            Listen::Unix(path) => Err(Error::usage(format!(
                "{} can't be told unix:{} (give --listen ADDR:PORT)",
                program.name,
                path.display()
            ))),
        }
    }

    /// The public address without scheme and path, and its path, which has no slash at its end.
    fn web_and_prefix(&self) -> (&str, &str) {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        rest.split_at(rest.find('/').unwrap_or(rest.len()))
    }

    fn lies_below(&self, folder: &str) -> bool {
        self.db.starts_with(folder) || self.program.starts_with(folder)
    }
}

impl Program {
    /// The path as one word of this program's configuration.
    fn quote(&self, what: &str, path: &Path) -> Result<String> {
        let text = self.text_of(what, path)?;
        Ok(match self.quoting {
            Quoting::Lua => double(&text),
            Quoting::Yaml if !text.is_ascii() => double(&text),
            _ if is_plain(&text) => text,
            Quoting::Yaml => double(&text),
            Quoting::Systemd => double(&text).replace('%', "%%").replace('$', "$$"),
            Quoting::Shell | Quoting::OpenRc => shell(&text),
            Quoting::Cron => shell(&text).replace('%', "\\%"),
            Quoting::Plain => {
                let bad = text.chars().find(|c| !is_plain_char(*c)).unwrap_or(' ');
                return Err(cannot(self.name, what, path, bad));
            }
        })
    }

    /// The path as text, which must be one line.
    fn text_of(&self, what: &str, path: &Path) -> Result<String> {
        let text = path.to_str().ok_or_else(|| {
            Error::refused(format!("{} can't be told the {what}: {} is not UTF-8", self.name, path.display()))
        })?;
        match text.chars().find(|c| c.is_control()) {
            Some(bad) => Err(cannot(self.name, what, path, bad)),
            None => Ok(text.to_owned()),
        }
    }
}

fn cannot(name: &str, what: &str, path: &Path, bad: char) -> Error {
    let path = path.display().to_string();
    Error::refused(format!(
        "{name} can't be told the {what}, '{}', since '{}' is in it (choose another place)",
        path.escape_debug(),
        bad.escape_debug()
    ))
}

/// A path that needs no quotes anywhere.
fn plain(what: &str, path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| is_plain(text) && text.starts_with('/'));
    text.map(str::to_owned).ok_or_else(|| {
        let path = path.display().to_string();
        let path = path.escape_debug();
        Error::refused(format!(
            "the {what} can't be '{path}' (give an absolute one of letters, digits, '.', '_' and '-')"
        ))
    })
}

fn is_plain(text: &str) -> bool {
    text.chars().all(is_plain_char)
}

/// Whether a character has no meaning in any of the languages.
fn is_plain_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | ',' | '@')
}

/// The path of the public address, if it can stand in patterns.
fn plain_prefix(prefix: &str) -> Result<&str> {
    match prefix.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '/' | '.' | '_' | '-' | '~')) {
        None => Ok(prefix),
        Some(bad) => Err(Error::refused(format!(
            "the setting url leads to {}, and '{}' can't be in a path that a web server strips",
            prefix.escape_debug(),
            bad.escape_debug()
        ))),
    }
}

/// One word of a shell's line.
fn shell(text: &str) -> String {
    if is_plain(text) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Between double quotes.
fn double(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A host as a key. One that could be taken for a number or a word of YAML's own gets quotes.
fn yaml_key(host: &str) -> String {
    let is_text = host.is_ascii() && host.contains('.') && host.starts_with(|c: char| c.is_ascii_alphabetic());
    if is_text { host.to_owned() } else { format!("\"{host}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            program: PathBuf::from("/usr/local/bin/invited"),
            db: PathBuf::from("/var/lib/invited/invited.sqlite"),
            host: Host::parse("example.com").unwrap(),
            user: "prosody".to_owned(),
            group: "prosody".to_owned(),
            listen: Listen::Tcp(DEFAULT_LISTEN),
            server: "prosody".to_owned(),
            url: "https://example.com".to_owned(),
            page: None,
            names_refuse: None,
        }
    }

    fn text_for(name: &str, facts: &Facts) -> String {
        text(find(name).unwrap(), facts).unwrap()
    }

    #[test]
    fn a_path_is_one_word_to_each_program() {
        let facts = Facts { db: PathBuf::from(r#"/a b'c"d$e%f\g/x"#), ..facts() };
        for (name, word) in [
            ("prosody", r#"database = "/a b'c\"d$e%f\\g/x" }"#),
            ("ejabberd", r#"sql_database: "/a b'c\"d$e%f\\g/x""#),
            ("systemd", r#"serve --trust-proxy --db "/a b'c\"d$$e%%f\\g/x""#),
            ("systemd", r#"ReadWritePaths="/a b'c\"d$e%%f\\g""#),
            ("runit", r#"serve --trust-proxy --db '/a b'\''c"d$e%f\g/x'"#),
            ("openrc", r#"command_args='serve --trust-proxy --db '\''/a b'\''\'\'''\''c"d$e%f\g/x'\'''"#),
            ("cron", r#"prune --db '/a b'\''c"d$e\%f\g/x' > /dev/null"#),
        ] {
            let text = text_for(name, &facts);
            assert!(text.contains(&format!("{word}\n")), "{name}: {text}");
        }
        let facts = Facts { program: PathBuf::from("/a$b/invited"), ..facts };
        assert!(text(find("systemd").unwrap(), &facts).is_err());
    }

    #[test]
    fn a_web_server_finds_serve_wherever_it_listens() {
        for (listen, nginx, caddy, apache) in [
            ("0.0.0.0:80", "http://127.0.0.1:80;", "127.0.0.1:80\n", "\"http://127.0.0.1:80/invite\""),
            ("[::]:80", "http://[::1]:80;", "[::1]:80\n", "\"http://[::1]:80/invite\""),
            ("/run/a/b", "http://unix:/run/a/b:;", "unix//run/a/b\n", "\"unix:/run/a/b|http://localhost/invite\""),
        ] {
            let address = listen.parse().map(Listen::Tcp);
            let facts = Facts { listen: address.unwrap_or(Listen::Unix(PathBuf::from(listen))), ..facts() };
            for (name, part) in [("nginx", nginx), ("caddy", caddy), ("apache", apache)] {
                assert!(text_for(name, &facts).contains(part), "{part}");
            }
        }
    }

    #[test]
    fn the_proxy_is_believed_only_where_nobody_comes_past_it() {
        for (listen, trusted) in
            [("127.0.0.1:1", true), ("[::1]:1", true), ("0.0.0.0:1", false), ("192.0.2.1:1", false)]
        {
            let facts = Facts { listen: Listen::Tcp(listen.parse().unwrap()), ..facts() };
            let unit = text_for("systemd", &facts);
            assert_eq!(unit.contains(" serve --trust-proxy "), trusted, "{listen}");
            assert!(unit.contains(&format!("--listen {listen} --db ")));
            for name in ["systemd", "openrc", "runit", "inetd", "nginx", "caddy", "apache", "fail2ban"] {
                let text = text_for(name, &facts);
                assert_eq!(text.contains("leaves --trust-proxy out"), !trusted, "{name} {listen}: {text}");
            }
        }
    }

    #[test]
    fn prosody_gives_its_own_invites_the_page_of_the_settings() {
        for (page, line) in [
            (None, r#""https://example.com/invite?{token}""#),
            (Some("https://i.example/{host}/#{uri}"), r#""https://i.example/example.com/#{uri}""#),
        ] {
            let text = text_for("prosody", &Facts { page: page.map(str::to_owned), ..facts() });
            assert!(text.contains(&format!("\"example.com\", {line}\n")), "{text}");
        }
    }

    #[test]
    fn a_user_without_a_name_is_a_number_where_that_is_understood() {
        let facts = Facts { user: "1234".to_owned(), group: "50".to_owned(), ..facts() };
        assert!(text_for("systemd", &facts).contains("\nUser=1234\nGroup=50\n"));
        assert!(text_for("runit", &facts).contains(" -u :1234:50 "));
        for name in ["inetd", "cron"] {
            assert!(text(find(name).unwrap(), &facts).is_err());
        }
    }

    #[test]
    fn systemd_closes_no_folder_that_is_needed() {
        let unit = text_for("systemd", &Facts { db: PathBuf::from("/home/a/x/invited.sqlite"), ..facts() });
        assert!(unit.contains("\nProtectHome=read-only\nPrivateTmp=yes\n"), "{unit}");
        let unit = text_for("systemd", &Facts { program: PathBuf::from("/tmp/invited"), ..facts() });
        assert!(unit.contains("\nProtectHome=yes\nPrivateTmp=no\n"), "{unit}");
    }

    #[test]
    fn no_place_is_left_open() {
        for program in PROGRAMS {
            let text = text(program, &facts()).unwrap();
            let names = text.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name);
            // The lines for Prosody fill a token in themselves.
            let is_place = |name: &&str| {
                !matches!(*name, "" | "token") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            };
            assert_eq!(names.filter(is_place).collect::<Vec<_>>(), [""; 0], "{}", program.name);
        }
    }
}
