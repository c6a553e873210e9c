//! What an invite is: its token, its times, its `xmpp:` URI and the address of its page.
//!
//! Pure: time and randomness are passed in. Knows nothing of HTTP or the database.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::host::Host;

/// How long an invite is good for unless told otherwise, in seconds: 7 days.
pub const TTL_SECS: i64 = 7 * 86_400;

/// What an invite lets its holder do. The words are the field's own, in the column `invited_invite.kind` too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Register an account with a name of one's own choice.
    Account,
}

impl Kind {
    /// The word that is stored and shown.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Account => "account",
        }
    }

    /// Reads the stored word.
    pub fn from_word(word: &str) -> Option<Kind> {
        match word {
            "account" => Some(Kind::Account),
            _ => None,
        }
    }
}

/// An invite on its way into the store.
#[derive(Clone, Debug)]
pub struct Invite {
    /// Random, URL-safe without escaping.
    pub token: String,
    /// The XMPP host that it invites to.
    pub host: Host,
    /// What it is for.
    pub kind: Kind,
    /// Who made it, in the manner of Prosody's `additional_data.source`: `api/token/KEYID`.
    pub source: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds; still good at this very second.
    pub expires_at: i64,
}

/// The URI that hands an invite to an XMPP client: `xmpp:HOST?register;preauth=TOKEN` (XEP-0445 section 3, XEP-0401).
///
/// Always ASCII (RFC 3987 section 3.1): an internationalised host is percent-encoded as UTF-8.
pub fn uri(host: &Host, kind: Kind, token: &str) -> String {
    match kind {
        Kind::Account => format!("xmpp:{}?register;preauth={token}", escape(host.name())),
    }
}

/// The address of an invite's page: the base and `/invite?TOKEN`, the token being the whole query.
///
/// `base` is the setting `url`; without one it is `https://HOST`.
pub fn landing_page(base: Option<&str>, host: &Host, token: &str) -> String {
    match base {
        Some(base) => format!("{}/invite?{token}", base.trim_end_matches('/')),
        None => format!("https://{}/invite?{token}", host.ascii()),
    }
}

/// Everything but the unreserved characters of a URI (RFC 3986 section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn escape(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, RESERVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_and_addresses_are_ascii_and_end_in_the_token() {
        let host = Host::parse("example.com").unwrap();
        assert_eq!(uri(&host, Kind::Account, "T-_1"), "xmpp:example.com?register;preauth=T-_1");
        assert_eq!(landing_page(None, &host, "T"), "https://example.com/invite?T");
        assert_eq!(landing_page(Some("https://i.example.com/a/"), &host, "T"), "https://i.example.com/a/invite?T");

        let idn = Host::parse("bücher.example").unwrap();
        assert_eq!(uri(&idn, Kind::Account, "T"), "xmpp:b%C3%BCcher.example?register;preauth=T");
        assert_eq!(landing_page(None, &idn, "T"), "https://xn--bcher-kva.example/invite?T");
    }
}
