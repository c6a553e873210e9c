//! A user name on an XMPP host and a password, prepared as the servers prepare them.
//!
//! The only file that names stringprep and unicode_security; knows nothing of what they are used for.

use std::borrow::Cow;
use std::fmt;

use unicode_security::MixedScript as _;

use crate::error::{Error, Result};
use crate::secret::Secret;

/// The part of an XMPP address before the `@` (RFC 7622 section 3.3), in the form in which servers store it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Username(String);

/// The longest name of a file, less the `.dat` and what stands there while it is written.
const NAME_IN_FILE_MAX: usize = 240;

impl Username {
    /// Prepares a name as typed with nodeprep (RFC 6122 appendix A), which both servers use: `Ana` becomes `ana`.
    ///
    /// Fails for a whole address, for what nodeprep forbids (spaces, `"&'/:<>@`), and for more than 1023 bytes.
    pub fn parse(text: &str) -> Result<Username> {
        let refuse = |why: &str| Error::usage(format!("'{}' can't be a user name: {why}", text.escape_debug()));
        if text.contains('@') {
            return Err(refuse("give the part before the @ alone"));
        }
        if has_unassigned(text) {
            return Err(refuse("it holds a character that XMPP servers refuse"));
        }
        let prepared = stringprep::nodeprep(text).map(Cow::into_owned);
        match prepared {
            Ok(name) if name.is_empty() => Err(refuse("it is empty")),
            Ok(name) if name.len() > 1023 => Err(refuse("it is longer than 1023 bytes")),
            Ok(name) => Ok(Username(name)),
            Err(_) => Err(refuse("it holds a character that XMPP servers refuse")),
        }
    }

    /// Whether it is longer than servers can take in practice: Prosody keeps accounts in files of their names, in which all
    /// but ASCII letters and digits take three bytes.
    pub fn is_too_long(&self) -> bool {
        let bytes = self.0.bytes().map(|byte| if byte.is_ascii_alphanumeric() { 1 } else { 3 });
        bytes.sum::<usize>() > NAME_IN_FILE_MAX
    }

    /// Whether it has letters of several scripts that are not used together (UTS 39 section 5.1): one with a Cyrillic `а` looks
    /// like another user's.
    pub fn is_mixed(&self) -> bool {
        !self.0.as_str().is_single_script()
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

/// Whether a name has a letter of a script that is written from right to left (RFC 3454 appendix D.1).
pub fn is_right_to_left(name: &str) -> bool {
    name.chars().any(stringprep::tables::bidi_r_or_al)
}

/// The names that guests can't choose, since others would take their holder for the admin: those of RFC 2142, and a few more.
const REFUSED: [&str; 16] = [
    "abuse",
    "admin",
    "administrator",
    "help",
    "hostmaster",
    "info",
    "moderator",
    "noreply",
    "operator",
    "postmaster",
    "root",
    "security",
    "support",
    "sysadmin",
    "system",
    "webmaster",
];

/// The word of the setting `names-refuse` that empties the list.
const NO_NAMES: &str = "none";

/// The names that guests of a host can't choose.
pub struct RefusedNames(Vec<String>);

impl RefusedNames {
    /// The list of a host by its setting `names-refuse`: names with commas between are added, `none` leaves no name.
    pub fn of(setting: Option<&str>) -> RefusedNames {
        let added = setting.filter(|text| *text != NO_NAMES).unwrap_or_default();
        let added = added.split(',').filter(|name| !name.is_empty()).map(bare);
        let common = REFUSED.iter().filter(|_| setting != Some(NO_NAMES)).map(|name| bare(name));
        RefusedNames(common.chain(added).collect())
    }

    /// Whether a guest can't choose this name. Dots, hyphens and underscores make no other name of one.
    pub fn has(&self, name: &Username) -> bool {
        self.0.contains(&bare(name.as_str()))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl Default for RefusedNames {
    fn default() -> RefusedNames {
        RefusedNames::of(None)
    }
}

/// Checks the setting `names-refuse`.
pub fn check_names(text: &str) -> std::result::Result<String, String> {
    if text == NO_NAMES {
        return Ok(text.to_owned());
    }
    let names = text.split(',').map(|name| Username::parse(name.trim()).map_err(|error| error.to_string()));
    let names: Vec<Username> = names.collect::<std::result::Result<_, _>>()?;
    Ok(names.iter().map(Username::as_str).collect::<Vec<_>>().join(","))
}

fn bare(name: &str) -> String {
    name.replace(['.', '-', '_'], "")
}

/// The password of an XMPP account. It does not print itself.
pub struct Password(Secret<String>);

/// The longest password, in bytes, which is that of every part of an XMPP address.
pub const PASSWORD_MAX: usize = 1023;

impl Password {
    /// Prepares a password as typed with SASLprep (RFC 4013), as apps do when they log in; none if it has a character that
    /// this forbids, or that was not in Unicode yet when it was written (such as an emoji), or if it is empty or too long.
    pub fn parse(text: &str) -> Option<Password> {
        if has_unassigned(text) {
            return None;
        }
        let prepared = Secret::new(stringprep::saslprep(text).ok()?.into_owned());
        (1..=PASSWORD_MAX).contains(&prepared.len()).then_some(Password(prepared))
    }

    /// The prepared password.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether there is a character that was not in Unicode yet when stringprep was written (RFC 3454 section 7). The crate looks
/// for those at the end alone, when some of them have become others: a letter in a square, for one, is a capital letter then.
fn has_unassigned(text: &str) -> bool {
    text.chars().any(stringprep::tables::unassigned_code_point)
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
            "\u{1f110}",
            &long,
        ] {
            assert!(Username::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn names_that_pass_for_others_are_told() {
        let name = |text: &str| Username::parse(text).unwrap();
        for plain in ["anna", "анна", "άννα", "דוד", "jürgen", "ana-2", "山田たろう", "김철수", "søren"]
        {
            assert!(!name(plain).is_mixed(), "{plain}");
        }
        for mixed in ["\u{430}nna", "ann\u{430}", "αnna", "pаypal", "ann\u{561}"] {
            assert!(name(mixed).is_mixed(), "{mixed}");
        }
        let list = RefusedNames::default();
        for refused in ["admin", "Admin", "ad.min", "_root_", "no-reply", "ｒｏｏｔ"] {
            assert!(list.has(&name(refused)), "{refused}");
        }
        assert!(!list.has(&name("anna")) && !list.has(&name("administratorin")));
        let added = RefusedNames::of(Some("boss,café"));
        assert!(["admin", "boss", "CAFÉ"].iter().all(|refused| added.has(&name(refused))));
        assert!(!RefusedNames::of(Some("none")).has(&name("admin")));
        assert_eq!(check_names("Boss, CAFÉ").as_deref(), Ok("boss,café"));
        for bad in ["", "a b", "a@example.com", "a,,b"] {
            assert!(check_names(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn passwords_are_prepared_as_apps_do() {
        let prepared = |text: &str| Password::parse(text).map(|password| password.as_str().to_owned());
        assert_eq!(prepared("Correct horse"), Some("Correct horse".to_owned()));
        assert_eq!(prepared("p\u{a0}q"), Some("p q".to_owned()));
        assert_eq!(prepared("e\u{301}\u{fb01}"), Some("\u{e9}fi".to_owned()));
        for bad in ["", "a\tb", "a\0b", "a\u{fffd}", "\u{1f600}", "\u{1f110}", &"x".repeat(1_024)] {
            assert_eq!(prepared(bad), None, "{bad:?}");
        }
    }
}
