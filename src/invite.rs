//! What an invite is: its kind, its times, its `xmpp:` URI and the address of its page.
//!
//! Pure: time and randomness are passed in. Knows nothing of HTTP or the database.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::user::Username;

/// How long an invite is good for unless told otherwise, in seconds: 7 days.
pub const TTL_SECS: i64 = 7 * 86_400;

/// How long a password reset is good for unless told otherwise, in seconds: 1 day.
pub const RESET_TTL_SECS: i64 = 86_400;

/// The most registrations of one invite.
pub const USES_MAX: u32 = 1_000_000;

/// The longest note, in characters.
pub const NOTE_MAX: usize = 1_000;

/// The most roles, and the most groups, of one invite.
pub const ROLES_MAX: usize = 32;

/// What an invite lets its holder do. The words are the field's own, in the database and in JSON too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Register an account, with a name of one's own choice or with a fixed one.
    Account,
    /// Become a contact of the user, with an account anywhere.
    Contact,
    /// Register an account and become a contact of the user.
    AccountAndContact,
    /// Set a new password for the user.
    Reset,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 4] = [Kind::Account, Kind::Contact, Kind::AccountAndContact, Kind::Reset];

    /// The word that is stored and shown.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Account => "account",
            Kind::Contact => "contact",
            Kind::AccountAndContact => "account-and-contact",
            Kind::Reset => "reset",
        }
    }

    /// Reads the word.
    pub fn from_word(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// Whether an account is made with it.
    pub fn makes_account(self) -> bool {
        matches!(self, Kind::Account | Kind::AccountAndContact)
    }

    /// How long an invite of this kind is good for unless told otherwise, in seconds; `host_ttl` is the host's setting.
    pub fn ttl_secs(self, host_ttl: Option<i64>) -> i64 {
        match self {
            Kind::Reset => RESET_TTL_SECS,
            _ => host_ttl.unwrap_or(TTL_SECS),
        }
    }
}

/// What somebody wants of a new invite; [`Wish::check`] says whether it makes sense.
#[derive(Clone, Debug)]
pub struct Wish {
    /// What it is for.
    pub kind: Kind,
    /// The fixed name of the new account, or whose contact, or whose password.
    pub username: Option<Username>,
    /// Roles of the new account.
    pub roles: Vec<String>,
    /// Groups of the new account.
    pub groups: Vec<String>,
    /// How many registrations it is for.
    pub uses: u32,
    /// How long it is good for, in seconds.
    pub ttl_secs: Option<i64>,
    /// The maker's own words.
    pub note: Option<String>,
}

/// A wish that can't be granted: the field that is to blame, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreasonable {
    /// The name of the field, as in JSON.
    pub field: &'static str,
    /// Why it can't be.
    pub why: String,
}

impl Wish {
    /// An invite for one account with a free name.
    pub fn account() -> Wish {
        Wish {
            kind: Kind::Account,
            username: None,
            roles: Vec::new(),
            groups: Vec::new(),
            uses: 1,
            ttl_secs: None,
            note: None,
        }
    }

    /// The user name as text.
    pub fn username(&self) -> Option<&str> {
        self.username.as_ref().map(Username::as_str)
    }

    /// Refuses what contradicts itself or what no server could do.
    pub fn check(&self, server: Server) -> std::result::Result<(), Unreasonable> {
        let refuse = |field, why: &str| Err(Unreasonable { field, why: why.to_owned() });
        if self.kind != Kind::Account && self.username.is_none() {
            return refuse("username", "this kind of invite needs a user");
        }
        if self.uses == 0 || self.uses > USES_MAX {
            return refuse("uses", &format!("it must be from 1 to {USES_MAX}"));
        }
        if self.uses > 1 && self.kind == Kind::Account && self.username.is_some() {
            return refuse("uses", "an account with a fixed name can be registered only once");
        }
        if self.uses > 1 && self.kind == Kind::Reset {
            return refuse("uses", "a password reset is good for one use");
        }
        for (field, names) in [("roles", &self.roles), ("groups", &self.groups)] {
            if names.is_empty() {
                continue;
            }
            if !self.kind.makes_account() {
                return refuse(field, "only an invite that makes an account can give them");
            }
            if server == Server::Ejabberd {
                return refuse(field, "ejabberd's invites can't give them");
            }
            if names.len() > ROLES_MAX {
                return refuse(field, &format!("there can be {ROLES_MAX} at most"));
            }
            if let Some(bad) = names.iter().find(|name| !is_name(name)) {
                return refuse(
                    field,
                    &format!("'{}' is not a name of 1 to 64 characters in one line", bad.escape_debug()),
                );
            }
        }
        if let Some(note) = &self.note
            && (note.chars().count() > NOTE_MAX || note.chars().any(crate::key::is_control))
        {
            return refuse("note", &format!("it must be one line of {NOTE_MAX} characters at most"));
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.chars().count()) && !name.chars().any(crate::key::is_control)
}

/// The XMPP server that reads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Prosody 0.12 or newer.
    Prosody,
    /// ejabberd 26.01 or newer.
    Ejabberd,
}

impl Server {
    /// Reads the value of the setting `server`; Prosody where it is not set.
    pub fn from_setting(value: Option<&str>) -> Server {
        if value == Some("ejabberd") { Server::Ejabberd } else { Server::Prosody }
    }
}

/// An invite on its way into the store.
#[derive(Clone, Debug)]
pub struct Invite {
    /// Random, URL-safe without escaping.
    pub token: String,
    /// The XMPP host that it invites to.
    pub host: Host,
    /// What was wished for.
    pub wish: Wish,
    /// Who made it, in the manner of Prosody's `additional_data.source`: `api/token/KEYID`, or `cli`.
    pub source: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds; still good at this very second.
    pub expires_at: i64,
}

/// The URI that hands an invite to an XMPP client.
///
/// `xmpp:HOST?register;preauth=TOKEN` or `xmpp:USER@HOST?register;preauth=TOKEN` to register (XEP-0445 section 3),
/// `xmpp:USER@HOST?roster;preauth=TOKEN` to become a contact (XEP-0379), with `;ibr=y` where an account may be made
/// first (XEP-0401). Always ASCII (RFC 3987 section 3.1).
pub fn uri(host: &Host, kind: Kind, username: Option<&str>, token: &str) -> String {
    let address = match username {
        Some(username) => format!("{}@{}", escape(username), escape(host.name())),
        None => escape(host.name()).to_string(),
    };
    match kind {
        Kind::Account | Kind::Reset => format!("xmpp:{address}?register;preauth={token}"),
        Kind::Contact => format!("xmpp:{address}?roster;preauth={token}"),
        Kind::AccountAndContact => format!("xmpp:{address}?roster;preauth={token};ibr=y"),
    }
}

/// The placeholders of a `page` template.
pub const PLACEHOLDERS: [&str; 3] = ["{uri}", "{token}", "{host}"];

/// Checks the template of an external page: a token or URI has to come in.
pub fn check_template(text: &str) -> std::result::Result<(), String> {
    let mut rest = text.to_owned();
    for placeholder in PLACEHOLDERS {
        rest = rest.replace(placeholder, "");
    }
    if rest.contains(['{', '}']) {
        return Err(format!("it has another placeholder than {}", PLACEHOLDERS.join(", ")));
    }
    if !text.contains("{uri}") && !text.contains("{token}") {
        return Err("it needs {uri} or {token}, or every invite would have the same page".to_owned());
    }
    Ok(())
}

/// Where the page of an invite is.
pub struct Landing<'a> {
    /// The setting `url`: the base of our own pages. Without it, `https://HOST`.
    pub url: Option<&'a str>,
    /// The setting `page`: the template of a page elsewhere.
    pub page: Option<&'a str>,
}

impl Landing<'_> {
    /// The address of an invite's page. Our own is the base and `/invite?TOKEN`, the token being the whole query.
    pub fn page(&self, host: &Host, uri: &str, token: &str) -> String {
        match (self.page, self.url) {
            (Some(page), _) => page.replace("{uri}", uri).replace("{token}", token).replace("{host}", host.ascii()),
            (None, Some(base)) => format!("{}/invite?{token}", base.trim_end_matches('/')),
            (None, None) => format!("https://{}/invite?{token}", host.ascii()),
        }
    }
}

/// Everything but the unreserved characters of a URI (RFC 3986 section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A text as a part of a URI.
pub fn escape(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, RESERVED)
}

/// The shortest token that is looked for within a longer text. Ours have 16 characters, ejabberd's and Prosody's more.
const TOKEN_MIN: usize = 8;

/// The most tokens that are looked for in one text.
const TOKENS_MAX: usize = 4;

/// What can be the token of a link that mailers, messengers, people and proxies have changed: the longest pieces of the
/// characters that tokens have, once the text is decoded. `utm_source=x&T`, `T%20`, `/invite/T/` and
/// `xmpp:ana@example.com?roster;preauth=T;ibr=y` all have T among them.
pub fn tokens_in(text: &str) -> Vec<String> {
    let text = percent_decode_str(text).decode_utf8_lossy();
    let is_outside = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let mut pieces: Vec<&str> = text.split(is_outside).filter(|piece| piece.len() >= TOKEN_MIN).collect();
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.len()));
    pieces.dedup();
    pieces.into_iter().take(TOKENS_MAX).map(str::to_owned).collect()
}

/// What a key may make: the value of `create --allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    words: Vec<String>,
}

impl Allow {
    /// Accounts with one use each, without roles or groups: what a bookmark needs.
    pub fn default_words() -> Allow {
        Allow { words: vec!["account".to_owned()] }
    }

    /// Reads words separated by commas: `account`, `contact`, `reset`, `role:NAME`, `group:NAME`, `uses:N`.
    pub fn parse(text: &str) -> Result<Allow> {
        let words: Vec<String> = text.split(',').map(|word| word.trim().to_owned()).collect();
        for word in &words {
            let good = match word.split_once(':') {
                None => matches!(word.as_str(), "account" | "contact" | "reset"),
                Some(("role" | "group", name)) => is_name(name),
                Some(("uses", number)) => number.parse().is_ok_and(|number: u32| (1..=USES_MAX).contains(&number)),
                Some(_) => false,
            };
            if !good {
                return Err(Error::usage(format!(
                    "a key can't be allowed '{}' (there are account, contact, reset, role:NAME, group:NAME, uses:N, \
                     separated by commas)",
                    word.escape_debug()
                )));
            }
        }
        Ok(Allow { words })
    }

    /// As it is stored and shown.
    pub fn text(&self) -> String {
        self.words.join(",")
    }

    fn has(&self, word: &str) -> bool {
        self.words.iter().any(|found| found == word)
    }

    /// Why this wish is beyond the key; none if it may be granted.
    pub fn refuses(&self, wish: &Wish) -> Option<String> {
        let needed: &[&str] = match wish.kind {
            Kind::Account => &["account"],
            Kind::Contact => &["contact"],
            Kind::AccountAndContact => &["account", "contact"],
            Kind::Reset => &["reset"],
        };
        if needed.iter().any(|word| !self.has(word)) {
            return Some(format!("this key may not make invites of the kind {}", wish.kind.word()));
        }
        if let Some(role) = wish.roles.iter().find(|role| !self.has(&format!("role:{role}"))) {
            return Some(format!("this key may not give the role {}", role.escape_debug()));
        }
        if let Some(group) = wish.groups.iter().find(|group| !self.has(&format!("group:{group}"))) {
            return Some(format!("this key may not give the group {}", group.escape_debug()));
        }
        let uses = self.words.iter().filter_map(|word| word.strip_prefix("uses:")?.parse().ok()).max().unwrap_or(1);
        (wish.uses > uses).then(|| format!("this key may not make invites with more uses than {uses}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(url: Option<&str>, page: Option<&str>, host: &str) -> String {
        let host = Host::parse(host).unwrap();
        Landing { url, page }.page(&host, &uri(&host, Kind::Account, None, "T-_1"), "T-_1")
    }

    #[test]
    fn a_token_is_found_in_what_became_of_its_link() {
        const T: &str = "Zx9-_abcDEFgh123";
        for text in [
            T.to_owned(),
            format!("utm_source=newsletter&{T}"),
            format!("{T}&fbclid=IwAR0abc"),
            format!("{T}="),
            format!("{T}%20"),
            format!("%20{T}%0D%0A"),
            format!("{T}*"),
            format!("*{T}*"),
            format!("\"{T}\"),"),
            format!("\u{200b}{T}\u{a0}"),
            format!("%E2%80%8B{T}"),
            format!("t={T}&c=gajim"),
            format!("https://example.com/invite?{T}"),
            format!("https://example.com/invite/{T}/"),
            format!("<https://i.example.com/a/invites_page?{T}>"),
            format!("xmpp:example.com?register;preauth={T}"),
            format!("xmpp:ana@example.com?roster;preauth={T};ibr=y"),
            format!("xmpp:ana@example.com?roster%3Bpreauth%3D{T}%3Bibr%3Dy"),
        ] {
            assert!(tokens_in(&text).iter().any(|token| token == T), "{text}: {:?}", tokens_in(&text));
        }
        assert!(tokens_in("").is_empty() && tokens_in("?a=b&c").is_empty());
        assert_eq!(tokens_in(&"abcdefgh&".repeat(2_000)).len(), 1);
        assert_eq!(tokens_in(&(0..2_000).map(|n| format!("token-{n:04}&")).collect::<String>()).len(), TOKENS_MAX);
    }

    #[test]
    fn uris_are_ascii_and_say_what_they_are_for() {
        let host = Host::parse("example.com").unwrap();
        let uri_of = |kind, user| uri(&host, kind, user, "T");
        assert_eq!(uri_of(Kind::Account, None), "xmpp:example.com?register;preauth=T");
        assert_eq!(uri_of(Kind::Account, Some("ana")), "xmpp:ana@example.com?register;preauth=T");
        assert_eq!(uri_of(Kind::Reset, Some("ana")), "xmpp:ana@example.com?register;preauth=T");
        assert_eq!(uri_of(Kind::Contact, Some("ana")), "xmpp:ana@example.com?roster;preauth=T");
        assert_eq!(uri_of(Kind::AccountAndContact, Some("ana")), "xmpp:ana@example.com?roster;preauth=T;ibr=y");
        let idn = Host::parse("bücher.example").unwrap();
        assert_eq!(uri(&idn, Kind::Account, Some("é?"), "T"), "xmpp:%C3%A9%3F@b%C3%BCcher.example?register;preauth=T");
    }

    #[test]
    fn a_page_is_ours_unless_a_template_says_otherwise() {
        assert_eq!(page(None, None, "example.com"), "https://example.com/invite?T-_1");
        assert_eq!(page(None, None, "bücher.example"), "https://xn--bcher-kva.example/invite?T-_1");
        assert_eq!(page(Some("https://i.example.com/a/"), None, "example.com"), "https://i.example.com/a/invite?T-_1");
        assert_eq!(
            page(Some("https://x"), Some("https://i.example/{host}/#{uri}"), "example.com"),
            "https://i.example/example.com/#xmpp:example.com?register;preauth=T-_1"
        );
        assert!(check_template("https://x/{token}").is_ok());
        for bad in
            ["https://x/", "https://x/{host}", "https://x/{token}{bogus}", "https://x/{token", "https://x/{{token}}"]
        {
            assert!(check_template(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wishes_that_contradict_themselves_are_refused_by_field() {
        let ana = Username::parse("ana").unwrap();
        let base = Wish::account();
        let reset = Wish { kind: Kind::Reset, username: Some(ana.clone()), ..base.clone() };
        for (field, wish) in [
            ("username", Wish { kind: Kind::Contact, ..base.clone() }),
            ("username", Wish { kind: Kind::Reset, ..base.clone() }),
            ("uses", Wish { uses: 0, ..base.clone() }),
            ("uses", Wish { uses: 2, username: Some(ana), ..base.clone() }),
            ("uses", Wish { uses: 2, ..reset.clone() }),
            ("roles", Wish { roles: vec!["x".to_owned()], ..reset }),
            ("roles", Wish { roles: vec!["a\nb".to_owned()], ..base.clone() }),
            ("groups", Wish { groups: vec![String::new()], ..base.clone() }),
            ("note", Wish { note: Some("a\nb".to_owned()), ..base.clone() }),
            ("note", Wish { note: Some("x".repeat(1_001)), ..base.clone() }),
        ] {
            assert_eq!(wish.check(Server::Prosody).unwrap_err().field, field, "{wish:?}");
        }
        let roles = Wish { roles: vec!["prosody:admin".to_owned()], ..base.clone() };
        assert_eq!(roles.check(Server::Prosody), Ok(()));
        assert_eq!(roles.check(Server::Ejabberd).unwrap_err().field, "roles");
        assert_eq!(base.check(Server::Ejabberd), Ok(()));
    }

    #[test]
    fn a_key_makes_what_it_is_allowed_and_nothing_more() {
        let ana = || Some(Username::parse("ana").unwrap());
        let may = |words: &str, wish: &Wish| Allow::parse(words).unwrap().refuses(wish).is_none();
        let account = Wish::account();
        let both = Wish { kind: Kind::AccountAndContact, username: ana(), ..account.clone() };
        let reset = Wish { kind: Kind::Reset, username: ana(), ..account.clone() };
        let admin = Wish { roles: vec!["prosody:admin".to_owned()], ..account.clone() };
        let many = Wish { uses: 5, ..account.clone() };
        assert!(Allow::default_words().refuses(&account).is_none());
        for wish in [&both, &reset, &admin, &many] {
            assert!(Allow::default_words().refuses(wish).is_some());
        }
        assert!(may("account, contact", &both) && !may("contact", &both));
        assert!(may("reset", &reset) && !may("reset", &account));
        assert!(may("account,role:prosody:admin", &admin) && !may("account,role:prosody", &admin));
        assert!(may("account,uses:5", &many) && !may("account,uses:4", &many));
        for bad in ["", "bogus", "role:", "uses:0", "uses:x", "account,", "account;contact"] {
            assert!(Allow::parse(bad).is_err(), "{bad:?}");
        }
    }
}
