//! A user name on an XMPP host, prepared as the servers prepare it.
//!
//! The only file that names stringprep; knows nothing of what a name is used for.

use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, Result};

/// The part of an XMPP address before the `@` (RFC 7622 section 3.3), in the form in which servers store it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Username(String);

impl Username {
    /// Prepares a name as typed with nodeprep (RFC 6122 appendix A), which both servers use: `Ana` becomes `ana`.
    ///
    /// Fails for a whole address, for what nodeprep forbids (spaces, `"&'/:<>@`), and for more than 1023 bytes.
    pub fn parse(text: &str) -> Result<Username> {
        let refuse = |why: &str| Error::usage(format!("'{}' can't be a user name: {why}", text.escape_debug()));
        if text.contains('@') {
            return Err(refuse("give the part before the @ alone"));
        }
        let prepared = stringprep::nodeprep(text).map(Cow::into_owned);
        match prepared {
            Ok(name) if name.is_empty() => Err(refuse("it is empty")),
            Ok(name) if name.len() > 1023 => Err(refuse("it is longer than 1023 bytes")),
            Ok(name) => Ok(Username(name)),
            Err(_) => Err(refuse("it holds a character that XMPP servers refuse")),
        }
    }

    /// The prepared name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_prepared_as_servers_do() {
        for (typed, stored) in
            [("Bob", "bob"), ("ana.maria-2", "ana.maria-2"), ("JÜRGEN", "jürgen"), ("ß", "ss"), ("ｂｏｂ", "bob")]
        {
            assert_eq!(Username::parse(typed).unwrap().as_str(), stored);
        }
        let long = "x".repeat(1024);
        for bad in [
            "",
            "a b",
            "a@example.com",
            "a/b",
            "a\"b",
            "a&b",
            "<a>",
            "a:b",
            "a'b",
            "a\nb",
            "a\0b",
            "\u{200b}",
            "\u{202e}a",
            &long,
        ] {
            assert!(Username::parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
