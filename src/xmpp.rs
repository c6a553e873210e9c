//! A blocking XMPP client that registers an account, or sets a new password, with a token; and [`Probe`], which only looks
//! at what a server offers, and whether it knows a token.
//!
//! A TCP connection with STARTTLS (RFC 6120 section 5) or with TLS from the start (XEP-0368), the token (XEP-0445 section
//! 4), the registration (XEP-0077 section 3.1), and the end of the stream: what any client would do, so that the server's
//! own rules hold. Knows no HTTP and no SQL. No error of this module holds the token or the password.

mod probe;
pub mod stream;

use std::fmt;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::secret::{Secret, concat};
use crate::user::{Password, Username};
use crate::wire::Wire;
pub use probe::{Probe, Shown};
use stream::{Element, Stream, escape};

/// The most bytes that a server may send in one registration, those of TLS included: features and three short answers are
/// some 3 KB, a chain of certificates some 6.
const BYTES: usize = 128 * 1024;

/// The longest text of a server's that is passed on, in characters.
const TEXT_MAX: usize = 200;

/// How the text of an error begins that ejabberd has wrapped into another one.
const WRAPPED: &str = "Unexpected error condition: {stanza_error,";

/// How many of the fields that a server wants are named, and how many characters of each.
const FIELDS_MAX: usize = 5;
const FIELD_MAX: usize = 30;

const CLIENT: &str = "jabber:client";
const REGISTER: &str = "jabber:iq:register";
const DATA_FORMS: &str = "jabber:x:data";
const STREAMS: &str = "http://etherx.jabber.org/streams";
const STANZA_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
const STARTTLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";

/// Where a host's XMPP server takes clients: `HOST:PORT`, or `tls:HOST:PORT` where TLS comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    direct_tls: bool,
    host: String,
    port: u16,
}

impl Address {
    /// Reads an address as the setting `xmpp` has it; an IPv6 address stands in brackets.
    pub fn parse(text: &str) -> std::result::Result<Address, String> {
        let (direct_tls, rest) = match text.strip_prefix("tls:") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let form = || "it must be HOST:PORT or tls:HOST:PORT, such as 127.0.0.1:5222".to_owned();
        let (host, port) = rest.rsplit_once(':').ok_or_else(form)?;
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| *port != 0 && is_number).ok_or_else(form)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().map_err(|_| form())?.to_string(),
            None => Host::parse(host).map_err(|_| form())?.ascii().to_owned(),
        };
        Ok(Address { direct_tls, host, port })
    }
}

impl Default for Address {
    fn default() -> Address {
        Address { direct_tls: false, host: "127.0.0.1".to_owned(), port: 5222 }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.direct_tls { "tls:" } else { "" };
        match self.host.contains(':') {
            true => write!(f, "{tls}[{}]:{}", self.host, self.port),
            false => write!(f, "{tls}{}:{}", self.host, self.port),
        }
    }
}

/// What is to be registered.
pub struct Account<'a> {
    /// The XMPP host.
    pub host: &'a Host,
    /// The invite.
    pub token: &'a str,
    /// Its new user, or the one whose password is to be set.
    pub username: &'a Username,
    /// The new password.
    pub password: &'a Password,
}

/// Why a server refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Somebody has the name.
    NameTaken,
    /// The server does not take such a name.
    Name,
    /// The server does not take such a password.
    Password,
    /// The token is not, or no longer, good.
    Invite,
    /// It wants more of a new user than a name and a password, such as an answer to a picture.
    More,
    /// Too many registrations for now.
    TooMany,
    /// Registration is closed, or another rule of the server.
    Closed,
    /// It did not answer: what was asked may have been done all the same.
    Lost,
}

/// A refusal of the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// What it comes down to.
    pub why: Why,
    /// The server's own words, for the log and as a hint; untrusted, and without the password.
    pub text: Option<String>,
}

/// Registers an account, or sets a new password where the token is of such an invite.
///
/// Ends at the deadline. An error of the kind `Unavailable` says, for the log, why the server could not be asked: no account
/// is made then. Where one may have been, the refusal is [`Why::Lost`].
pub fn register(address: &Address, account: &Account, deadline: Instant) -> Result<std::result::Result<(), Refused>> {
    let talk = || {
        let wire = connect(address, deadline).map_err(|error| {
            Error::unavailable(format!("{error} (start it, or say with `invited set HOST xmpp HOST:PORT` where it is)"))
        })?;
        let mut stream = open(wire, address.direct_tls, account.host, true)?.stream;
        let outcome = ask(&mut stream, account)?;
        // A server that answers first and then uses the invite up has done both when it ends the stream.
        stream.close();
        Ok(outcome)
    };
    talk().map_err(|error: Error| error.context(format_args!("cannot register at the XMPP server {address}")))
}

/// A stream, and what the server offers on it.
struct Opened {
    stream: Stream,
    features: Element,
}

fn connect(address: &Address, deadline: Instant) -> Result<Wire> {
    Wire::connect(&address.host, address.port, deadline, BYTES)
}

/// Opens a stream that is encrypted wherever the server can. With `strict`, it must be unless the server is on
/// this machine, and the certificate must be good for the host (RFC 6120 section 13.7.2.1): there nobody can come between.
fn open(wire: Wire, direct_tls: bool, host: &Host, strict: bool) -> Result<Opened> {
    let is_strict = strict && !wire.is_local();
    let with_tls = |wire: Wire| wire.with_tls(host.ascii(), b"xmpp-client", is_strict);
    if direct_tls {
        return begin(with_tls(wire)?, host);
    }
    let mut opened = begin(wire, host)?;
    if opened.features.child(STARTTLS, "starttls").is_none() {
        if !is_strict {
            return Ok(opened);
        }
        return Err(Error::unavailable("it offers no TLS (give it a certificate)"));
    }
    opened.stream.send(&format!("<starttls xmlns='{STARTTLS}'/>"))?;
    let answer = opened.stream.next()?;
    if !answer.is(STARTTLS, "proceed") {
        return Err(Error::unavailable("it refuses to start the TLS that it offers"));
    }
    begin(with_tls(opened.stream.into_wire()?)?, host)
}

/// Begins a stream (RFC 6120 section 4.2) and waits for what the server offers on it.
fn begin(wire: Wire, host: &Host) -> Result<Opened> {
    let mut stream = Stream::begin(wire, host.name())?;
    let features = stream.next()?;
    if features.is(STREAMS, "features") {
        return Ok(Opened { stream, features });
    }
    Err(match stream_error(&features) {
        Some(condition) => Error::unavailable(format!("it ends the stream to {host} with {condition}")),
        None => Error::unavailable("it does not say what it offers"),
    })
}

/// Shows the token and registers.
fn ask(stream: &mut Stream, account: &Account) -> Result<std::result::Result<(), Refused>> {
    let token = escape(account.token);
    if let Some(error) = request(stream, account, "1", &format!("<preauth xmlns='urn:xmpp:pars:0' token='{token}'/>"))?
    {
        return match error.condition.as_str() {
            // The latter is the condition of XEP-0445, the former Prosody's.
            "forbidden" | "item-not-found" => Ok(Err(Refused { why: Why::Invite, text: error.hint(account) })),
            condition => Err(Error::unavailable(format!(
                "it answers {} to the token (does it have the modules for invites, see the README?)",
                known(condition)
            ))),
        };
    }
    let (username, password) = (escape(account.username.as_str()), Secret::new(escape(account.password.as_str())));
    let before = format!("<query xmlns='{REGISTER}'><username>{username}</username><password>");
    let query = concat(&[&before, &password, "</password></query>"]);
    let answer = match request(stream, account, "2", &query) {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(Refused { why: Why::Lost, text: Some(error.to_string()) })),
    };
    match answer {
        None => Ok(Ok(())),
        Some(error) => match error.why() {
            Some(why @ (Why::Name | Why::Password | Why::Closed)) => {
                let more = further_fields(stream, account.host).unwrap_or_default();
                if more.is_empty() {
                    return Ok(Err(Refused { why, text: error.hint(account) }));
                }
                Ok(Err(Refused {
                    why: Why::More,
                    text: Some(format!("it wants {} of a new user as well", more.join(", "))),
                }))
            }
            Some(why) => Ok(Err(Refused { why, text: error.hint(account) })),
            None => {
                let hint = error.hint(account).map_or_else(String::new, |hint| format!(" ({hint})"));
                Err(Error::unavailable(format!("it answers {} to the registration{hint}", error.condition)))
            }
        },
    }
}

/// Sends a request and waits for its answer: an error, or none.
fn request(stream: &mut Stream, account: &Account, id: &str, content: &str) -> Result<Option<StanzaError>> {
    let answer = exchange(stream, account.host, "set", id, content)?;
    Ok((answer.attribute("type") == Some("error")).then(|| StanzaError::read(&answer)))
}

/// The fields that the server wants in a registration besides the name and the password (XEP-0077 section 3.1, its form of
/// section 4 included); none where it does not say.
fn further_fields(stream: &mut Stream, host: &Host) -> Result<Vec<String>> {
    let answer = exchange(stream, host, "get", "fields", &format!("<query xmlns='{REGISTER}'/>"))?;
    let Some(query) = answer.child(REGISTER, "query") else {
        return Ok(Vec::new());
    };
    let names: Vec<&str> = match query.child(DATA_FORMS, "x") {
        Some(form) => {
            let required = form.children.iter().filter(|field| field.child(DATA_FORMS, "required").is_some());
            required.filter_map(|field| field.attribute("var")).collect()
        }
        None => {
            let fields = query.children.iter().filter(|child| child.namespace == REGISTER);
            fields.map(|field| field.name.as_str()).collect()
        }
    };
    let known = ["username", "password", "instructions", "registered", "key", "FORM_TYPE"];
    let further = names.into_iter().filter(|name| !known.contains(name)).take(FIELDS_MAX);
    Ok(further.map(|name| name.chars().filter(|c| !c.is_control()).take(FIELD_MAX).collect()).collect())
}

/// Sends a request of the type `get` or `set`, and waits for its answer, of the type `result` or `error`.
fn exchange(stream: &mut Stream, host: &Host, kind: &str, id: &str, content: &str) -> Result<Element> {
    let host = escape(host.name());
    stream.send(&concat(&[&format!("<iq type='{kind}' id='{id}' to='{host}'>"), content, "</iq>"]))?;
    loop {
        let answer = stream.next()?;
        if let Some(condition) = stream_error(&answer) {
            return Err(Error::unavailable(format!("it ends the stream with {condition}")));
        }
        let is_answer = answer.is(CLIENT, "iq") && answer.attribute("id") == Some(id);
        if is_answer && matches!(answer.attribute("type"), Some("result" | "error")) {
            return Ok(answer);
        }
    }
}

/// The condition of a stream error (RFC 6120 section 4.9.3); none if it is something else.
fn stream_error(element: &Element) -> Option<&str> {
    let is_error = element.is(STREAMS, "error");
    is_error.then(|| {
        element.children.iter().find(|child| child.namespace == STREAM_ERRORS).map_or("error", |c| known(&c.name))
    })
}

/// A condition as it may be logged: the ones that there are (RFC 6120 sections 4.9.3 and 8.3.3) are short words, and what is
/// not can hold what was sent.
fn known(condition: &str) -> &str {
    const WORDS: &[&str] = &[
        "bad-request",
        "conflict",
        "feature-not-implemented",
        "forbidden",
        "host-unknown",
        "internal-server-error",
        "item-not-found",
        "jid-malformed",
        "not-acceptable",
        "not-allowed",
        "not-authorized",
        "policy-violation",
        "registration-required",
        "remote-server-not-found",
        "remote-server-timeout",
        "resource-constraint",
        "service-unavailable",
        "system-shutdown",
        "undefined-condition",
        "unexpected-request",
        "connection-timeout",
        "host-gone",
        "improper-addressing",
        "not-well-formed",
        "reset",
        "see-other-host",
        "unsupported-version",
    ];
    WORDS.iter().find(|word| **word == condition).copied().unwrap_or("an error")
}

/// An error of a stanza (RFC 6120 section 8.3).
struct StanzaError {
    /// Such as `wait`: try again later.
    kind: String,
    /// Such as `conflict`.
    condition: String,
    text: Option<String>,
}

impl StanzaError {
    fn read(answer: &Element) -> StanzaError {
        let mut found = StanzaError { kind: String::new(), condition: "an error".to_owned(), text: None };
        let Some(error) = answer.child(CLIENT, "error") else {
            return found;
        };
        found.kind = error.attribute("type").unwrap_or_default().to_owned();
        for child in error.children.iter().filter(|child| child.namespace == STANZA_ERRORS) {
            if child.name == "text" {
                found.text = Some(child.text.clone()).filter(|text| !text.trim().is_empty());
            } else {
                found.condition.clone_from(&child.name);
            }
        }
        found.unwrapped()
    }

    /// ejabberd 26 wraps the errors of a registration with an invite into another one, as Erlang writes them:
    /// `internal-server-error` with the text `Unexpected error condition: {stanza_error,cancel,undefined,conflict,…}`.
    fn unwrapped(mut self) -> StanzaError {
        let inner = self.text.as_deref().and_then(|text| text.strip_prefix(WRAPPED));
        let mut parts = inner.into_iter().flat_map(|inner| inner.split(',')).map(|part| part.trim_matches('\''));
        if let (Some(kind), Some(_), Some(condition)) = (parts.next(), parts.next(), parts.next()) {
            (self.kind, self.condition) = (kind.to_owned(), condition.to_owned());
        }
        self
    }

    /// The server's own words for the log; none where it echoes what we must not write down.
    fn hint(&self, account: &Account) -> Option<String> {
        let text: String = self.text.as_deref()?.chars().filter(|c| !c.is_control()).collect();
        let is_secret = text.contains(account.password.as_str()) || text.contains(account.token);
        (!is_secret).then(|| text.chars().take(TEXT_MAX).collect())
    }

    /// What the answer to a registration comes down to, with Prosody 0.12 and 13 and ejabberd 26; none if the server itself
    /// is in trouble.
    fn why(&self) -> Option<Why> {
        let says = |words: &[&str]| {
            let text = self.text.as_deref().unwrap_or_default().to_lowercase();
            words.iter().any(|word| text.contains(word))
        };
        Some(match self.condition.as_str() {
            "conflict" => Why::NameTaken,
            "jid-malformed" => Why::Name,
            // Of ejabberd: too many from one address. Of Prosody's mod_register_limits: type wait.
            "resource-constraint" => Why::TooMany,
            "internal-server-error" | "remote-server-timeout" | "remote-server-not-found" => return None,
            _ if self.kind == "wait" => Why::TooMany,
            // Prosody says so of a name, of a password, and of a lost invite alike: the text tells them apart.
            "not-acceptable" | "policy-violation" | "bad-request" => {
                if says(&["password"]) {
                    Why::Password
                } else if says(&["invit"]) {
                    Why::Invite
                } else if says(&["too many", "quickly"]) {
                    Why::TooMany
                } else {
                    Why::Name
                }
            }
            // Of ejabberd: a reserved name.
            "not-allowed" => Why::Name,
            _ => Why::Closed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_shown() {
        for text in
            ["127.0.0.1:5222", "tls:xmpp.example.com:5223", "[::1]:5222", "tls:[2001:db8::1]:443", "localhost:5222"]
        {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Address::default().to_string(), "127.0.0.1:5222");
        for bad in [
            "",
            "5222",
            "example.com",
            "example.com:",
            "example.com:0",
            "example.com:70000",
            "::1:5222",
            "[x]:1",
            "a b:1",
            "tls:",
            "http://x:1",
            "me@example.com:5222",
            "example.com:+5",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_answers_of_both_servers_are_told_apart() {
        for (kind, condition, text, why) in [
            ("cancel", "conflict", "The requested username already exists.", Some(Why::NameTaken)),
            ("modify", "not-acceptable", "The requested username is invalid.", Some(Why::Name)),
            ("modify", "not-acceptable", "Password is too short (minimum 12 characters)", Some(Why::Password)),
            ("modify", "not-acceptable", "Registration on this server is through invitation only", Some(Why::Invite)),
            ("modify", "not-acceptable", "The password is too weak", Some(Why::Password)),
            ("modify", "jid-malformed", "Malformed username", Some(Why::Name)),
            (
                "wait",
                "resource-constraint",
                "Users are not allowed to register accounts so quickly",
                Some(Why::TooMany),
            ),
            ("wait", "not-acceptable", "Too many registrations from this IP address recently.", Some(Why::TooMany)),
            ("wait", "policy-violation", "", Some(Why::TooMany)),
            ("auth", "forbidden", "Access denied by service policy", Some(Why::Closed)),
            ("cancel", "not-allowed", "Not allowed", Some(Why::Name)),
            ("cancel", "service-unavailable", "", Some(Why::Closed)),
            ("wait", "internal-server-error", "Database failure", None),
            (
                "wait",
                "internal-server-error",
                "Unexpected error condition: {stanza_error,cancel,undefined,conflict,\n [{text,<<\"en\">>,<<\"User already exists\">>}],\n []}",
                Some(Why::NameTaken),
            ),
            (
                "wait",
                "internal-server-error",
                "Unexpected error condition: {stanza_error,modify,undefined,'not-acceptable',\n [{text,<<\"en\">>,<<\"The password is too weak\">>}],[]}",
                Some(Why::Password),
            ),
        ] {
            let error =
                StanzaError { kind: kind.to_owned(), condition: condition.to_owned(), text: Some(text.to_owned()) };
            assert_eq!(error.unwrapped().why(), why, "{condition}: {text}");
        }
    }
}
