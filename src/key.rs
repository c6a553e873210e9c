//! API keys: made, read, digested and compared.
//!
//! A key is `ID/SECRET`. The secret is shown once, when the key is made; from then on only its SHA-256 digest exists.
//! A plain digest is enough, since a secret holds 192 random bits: there is nothing to guess. The only file that names
//! sha2 and subtle; knows nothing of HTTP or the database.

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::{Error, Result};
use crate::random;
use crate::secret::{Secret, concat};

/// The longest name of a key, in characters.
pub const NAME_MAX: usize = 200;

/// SHA-256 of a key's secret, which is all of it that is ever kept; or of a request.
#[derive(Clone)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of a secret.
    pub fn of(secret: &str) -> Digest {
        Digest::of_bytes(secret.as_bytes())
    }

    /// The digest of any bytes.
    pub fn of_bytes(bytes: &[u8]) -> Digest {
        Digest::of_pieces(&[bytes])
    }

    /// The digest of some pieces as if they were one, without such a copy.
    pub fn of_pieces(pieces: &[&[u8]]) -> Digest {
        let mut digest = Sha256::new();
        pieces.iter().for_each(|piece| digest.update(piece));
        Digest(digest.finalize().into())
    }

    /// A digest as it was stored.
    pub fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// The bytes to store.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether the two are equal, in a time that does not depend on where they differ.
    pub fn matches(&self, other: &Digest) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// A key that was just made; the one moment at which its secret is known.
pub struct NewKey {
    /// The public half, by which the key is listed and deleted.
    pub id: String,
    secret: Secret<String>,
}

impl NewKey {
    /// Makes a key: 6 random bytes of id, 24 of secret.
    pub fn make() -> Result<NewKey> {
        Ok(NewKey { id: random::base64url::<6>()?, secret: Secret::new(random::base64url::<24>()?) })
    }

    /// `ID/SECRET`, to be shown once.
    pub fn text(&self) -> Secret<String> {
        concat(&[&self.id, "/", &self.secret])
    }

    /// What is kept of the secret.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.secret)
    }
}

/// A key as a request brought it: not yet known to be any good.
pub struct Presented {
    /// The id that it claims.
    pub id: String,
    /// The digest of the secret that came with it.
    pub digest: Digest,
}

impl Presented {
    /// Reads `ID/SECRET`, split at the first slash; no length and no alphabet is assumed, as keys may come from elsewhere. What
    /// is pasted along with a key at either end, such as a line break, is no part of it.
    pub fn parse(text: &str) -> Option<Presented> {
        let (id, secret) = text.trim_matches(is_blank).split_once('/')?;
        if id.is_empty() || secret.is_empty() {
            return None;
        }
        Some(Presented { id: id.to_owned(), digest: Digest::of(secret) })
    }
}

/// How invites of a key are marked, as in Prosody's `additional_data.source`.
pub fn source(id: &str) -> String {
    format!("api/token/{id}")
}

/// Checks the name of a key: one line of at most [`NAME_MAX`] characters, since `list` prints it after a tab.
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::usage("the name of the key is empty (leave it out for a key without a name)"));
    }
    let length = name.chars().count();
    if length > NAME_MAX {
        return Err(Error::usage(format!("the name of the key has {length} characters (at most {NAME_MAX})")));
    }
    if name.chars().any(is_control) {
        return Err(Error::usage(format!(
            "the name of the key '{}' has a control character in it (tabs and line breaks would spoil the list)",
            name.escape_debug()
        )));
    }
    Ok(())
}

/// Whether a character is white space or has no width.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
}

/// Whether a character would spoil a line: control characters, and the separators and direction marks that make it show as something that it is not.
pub fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_reads_back_as_itself() {
        let key = NewKey::make().unwrap();
        let presented = Presented::parse(&key.text()).unwrap();
        assert_eq!(presented.id, key.id);
        assert!(presented.digest.matches(&key.digest()));
        assert!(!presented.digest.matches(&Digest::of("another")));
    }

    #[test]
    fn the_first_slash_splits_and_both_halves_must_be_there() {
        let presented = Presented::parse("a/b/c").unwrap();
        assert_eq!(presented.id, "a");
        assert!(presented.digest.matches(&Digest::of("b/c")));
        for text in ["a/b\r\n", " a/b", "\u{feff}a/b\u{200b}", "a/b\u{a0}", "\ta/b\n"] {
            let presented = Presented::parse(text).unwrap();
            assert!(presented.id == "a" && presented.digest.matches(&Digest::of("b")), "{text:?}");
        }
        for text in ["", "a", "/", "a/", "/b", "a/\n", "\n/b"] {
            assert!(Presented::parse(text).is_none(), "{text:?} was taken");
        }
    }

    #[test]
    fn names_that_would_spoil_the_list_are_refused() {
        assert!(check_name("Ana's bookmark ✓ 日本").is_ok());
        assert!(check_name(&"é".repeat(200)).is_ok());
        let long = "é".repeat(201);
        for name in ["", "a\tb", "a\nb", "a\rb", "a\0b", "a\u{7f}b", "a\u{85}b", "a\u{2028}b", "a\u{202e}b", &long] {
            assert!(check_name(name).is_err(), "{name:?} was taken");
        }
    }
}
