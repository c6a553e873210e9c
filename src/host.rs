//! An XMPP host: a domain name, checked once at the edge.
//!
//! XMPP servers keep an internationalised name in its Unicode form, HTTP wants the ASCII one (RFC 7622 section 3.2,
//! RFC 5891): a [`Host`] has both. The only file that names idna; knows nothing of what a host is used for.

use std::borrow::Cow;
use std::fmt;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use crate::error::{Error, Result};

/// A domain name in lower case, in both of its forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    name: String,
    ascii: String,
}

impl Host {
    /// Reads a domain name as typed, in its Unicode or its A-label form, with or without the root's dot.
    ///
    /// Fails for anything that is not a domain name alone: an address with a port, a path or an `@` is refused.
    pub fn parse(text: &str) -> Result<Host> {
        let refuse = || {
            Error::usage(format!(
                "'{}' is not a domain name (give the host alone, such as example.com)",
                text.escape_debug()
            ))
        };
        let bare = text.strip_suffix('.').unwrap_or(text);
        let uts46 = Uts46::new();
        let to_ascii = |name: &str| {
            uts46
                .to_ascii(name.as_bytes(), AsciiDenyList::STD3, Hyphens::CheckFirstLast, DnsLength::Verify)
                .map(Cow::into_owned)
                .map_err(|_| refuse())
        };
        let ascii = to_ascii(bare)?;
        let (name, valid) = uts46.to_unicode(ascii.as_bytes(), AsciiDenyList::STD3, Hyphens::CheckFirstLast);
        valid.map_err(|_| refuse())?;
        // An A-label can hold what looks like an A-label and is none, so that there is no way back.
        if to_ascii(&name)? != ascii {
            return Err(refuse());
        }
        Ok(Host { name: name.into_owned(), ascii })
    }

    /// The Unicode form, as XMPP servers store it and people read it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ASCII form (A-labels), for `https:` addresses.
    pub fn ascii(&self) -> &str {
        &self.ascii
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_one_name_are_one_host() {
        let typed = Host::parse("BÜCHER.example").unwrap();
        assert_eq!(typed, Host::parse("xn--bcher-kva.example").unwrap());
        assert_eq!(typed.name(), "bücher.example");
        assert_eq!(typed.ascii(), "xn--bcher-kva.example");
        assert_eq!(Host::parse("Example.COM.").unwrap().name(), "example.com");
        assert_eq!(Host::parse("localhost").unwrap().name(), "localhost");
    }

    #[test]
    fn what_is_no_domain_name_is_refused() {
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = format!("{}example", "abcdefgh.".repeat(30));
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "example.com:5222",
            "example.com/x",
            "me@example.com",
            "exa mple.com",
            "a_b.example",
            "-a.example",
            "a-.example",
            "xn--a.example",
            "xn--xn--xmmmkv-n--bzhk-er7v.example",
            "[::1]",
            "exa\0mple",
            "example.com\n",
            "%41.example",
            &long_label,
            &long_name,
        ] {
            assert!(Host::parse(text).is_err(), "{text:?} was taken");
        }
    }
}
