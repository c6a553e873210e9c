//! What is sent to `/register`, and whether its fields are as they must be: before any server is asked.

use std::borrow::Cow;

use crate::host::Host;
use crate::http::Request;
use crate::json::{self, Field};
use crate::key::Digest;
use crate::secret::Secret;
use crate::user::{self, Password, Username, is_right_to_left};

/// A name of fewer characters than this may be in the password: too many words hold it.
const NAME_IN_PASSWORD: usize = 3;

/// The fields that mean something.
const FIELDS: [&str; 5] = ["token", "user", "username", "password", "app_id"];

/// What somebody sends.
#[derive(Default)]
pub struct Input {
    /// The invite.
    pub token: Option<String>,
    /// The name as typed.
    pub user: String,
    /// The password as typed.
    pub password: Secret<String>,
    /// The id of the app that was chosen.
    pub app: Option<String>,
}

impl Input {
    /// Reads a form or a JSON object, both with the fields `token`, `user`, `password` and `app_id`; JSON with `username` too,
    /// as `mod_invites_register_api` has it. What else is there means nothing. The token may be in the query as well.
    pub fn read(request: &Request) -> std::result::Result<Input, (u16, &'static str, &'static str)> {
        if request.content_coding().is_some() {
            return Err((415, "media-type", "send the body as it is, without Content-Encoding"));
        }
        let mut input = Input::default();
        match request.media_type().as_str() {
            "application/x-www-form-urlencoded" => request.form().for_each(|(name, value)| input.set(&name, value)),
            "application/json" => {
                let fields = std::str::from_utf8(&request.body).ok().and_then(|text| json::fields(text, &FIELDS));
                let fields = fields.ok_or((400, "bad-body", "the body is not a JSON object"))?;
                if fields.doubled.is_some() {
                    return Err((400, "bad-body", "a field of the JSON object is there more than once"));
                }
                for (name, field) in fields.known {
                    if let Field::Text(text) = field {
                        input.set(name, text.into());
                    }
                }
            }
            _ => return Err((415, "media-type", "send application/x-www-form-urlencoded or application/json")),
        }
        let is_there = |token: &String| !token.is_empty();
        input.token = input.token.filter(is_there).or_else(|| request.query_value("t")).filter(is_there);
        Ok(input)
    }

    fn set(&mut self, name: &str, value: Cow<str>) {
        match name {
            "token" => self.token = Some(value.into_owned()),
            "user" | "username" => self.user = value.into_owned(),
            "password" => self.password = Secret::new(value.into_owned()),
            "app_id" => self.app = Some(value.into_owned()),
            _ => {}
        }
    }

    /// What makes two requests the same.
    pub fn digest(&self) -> Digest {
        let token = self.token.as_deref().unwrap_or_default();
        let (length, user) = (token.len().to_string(), self.user.as_str());
        Digest::of_pieces(&[&length, "\n", token, "\n", user, "\n", &self.password].map(str::as_bytes))
    }
}

/// The prepared name, or the word for what is wrong with it. Where the invite is for a fixed one, it must be that, or nothing.
pub fn check_name(typed: &str, fixed: Option<&str>, host: &Host) -> std::result::Result<Username, &'static str> {
    // The keyboards of phones add a space, and some people paste their whole address, with what apps put around it.
    let typed: String = typed.chars().filter(|c| !is_invisible(*c)).collect();
    let typed = typed.trim_matches(|c: char| c.is_whitespace() || c == ',' || c == ';');
    let in_brackets = typed.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    let typed = in_brackets.filter(|address| address.contains('@')).unwrap_or(typed);
    let typed = match typed.get(..5) {
        Some(scheme) if scheme.eq_ignore_ascii_case("xmpp:") => &typed[5..],
        _ => typed,
    };
    let typed = match typed.split_once('@') {
        Some((name, other)) => {
            let other = other.split(['/', '?']).next().unwrap_or_default();
            if !Host::parse(other).is_ok_and(|other| other == *host) {
                return Err("name-host");
            }
            name
        }
        None => typed,
    };
    // What the XMPP server has written may not be prepared.
    let fixed =
        fixed.map(|fixed| Username::parse(fixed).map_or_else(|_| fixed.to_owned(), |name| name.as_str().to_owned()));
    let fixed = fixed.as_deref();
    let name = match (typed, fixed) {
        ("", Some(fixed)) => fixed,
        ("", None) => return Err("name-missing"),
        _ => typed,
    };
    let word = if is_right_to_left(name) { "name-direction" } else { "name-characters" };
    let name = Username::parse(name).map_err(|_| word)?;
    match fixed {
        Some(fixed) if name.as_str() != fixed => Err("name-fixed"),
        None if name.is_too_long() => Err("name-long"),
        _ => Ok(name),
    }
}

/// Whether a character has neither width nor meaning in a name, and comes along when it is pasted.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The prepared password, or the word for what is wrong with it.
pub fn check_password(typed: &str, name: Option<&Username>, min: usize) -> std::result::Result<Password, &'static str> {
    if typed.is_empty() {
        return Err("password-missing");
    }
    if typed.len() > user::PASSWORD_MAX {
        return Err("password-long");
    }
    let password = Password::parse(typed).ok_or("password-characters")?;
    // As it is stored: SASLprep leaves some characters out, and makes spaces of others.
    match visible_length(password.as_str()) {
        0 => return Err("password-missing"),
        length if length < min => return Err("password-short"),
        _ => {}
    }
    // Clients differ in whether they prepare what is typed at the login, and would then send another password than this one.
    if password.as_str() != typed {
        return Err("password-characters");
    }
    let name = name.map(Username::as_str).filter(|name| name.chars().count() >= NAME_IN_PASSWORD);
    match name {
        Some(name) if Secret::new(password.as_str().to_lowercase()).contains(name) => Err("password-name"),
        _ => Ok(password),
    }
}

/// How many characters a password has, without those at its ends that nobody sees; several in a row count as one.
fn visible_length(password: &str) -> usize {
    let words = password.split(is_blank).filter(|word| !word.is_empty());
    words.fold(0, |length, word| length + usize::from(length > 0) + word.chars().count())
}

/// Whether a character that SASLprep lets through is white or shows nothing: spaces, the fillers of Hangul, the inherent vowels
/// of Khmer, the empty pattern of Braille, and a note without a head.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{2800}' | '\u{1d159}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_the_server_is_asked() {
        let host = Host::parse("example.com").unwrap();
        let name = |typed: &str, fixed| check_name(typed, fixed, &host).map(|name| name.as_str().to_owned());
        assert_eq!(name(" Ana ", None), Ok("ana".to_owned()));
        assert_eq!(name("ana@EXAMPLE.com", None), Ok("ana".to_owned()));
        assert_eq!(name("דוד", None), Ok("דוד".to_owned()));
        for pasted in [
            "xmpp:ana@example.com",
            "XMPP:Ana@example.com?message",
            "ana@example.com/phone",
            "ana@example.com/",
            "<ana@example.com>,",
            "\u{feff}ana\u{200b}@example.com\u{a0}",
            "\u{2068}ana\u{2069}",
            "a\u{ad}na",
            "xmpp:ana",
        ] {
            assert_eq!(name(pasted, None), Ok("ana".to_owned()), "{pasted}");
        }
        assert_eq!(name("", Some("ana")), Ok("ana".to_owned()));
        assert_eq!(name("ANA", Some("ana")), Ok("ana".to_owned()));
        for (typed, fixed, word) in [
            ("", None, "name-missing"),
            ("  ", None, "name-missing"),
            ("ana@example.org", None, "name-host"),
            ("@example.com", None, "name-missing"),
            ("ana@example.org/phone", None, "name-host"),
            ("xmpp:ana@example.org", None, "name-host"),
            ("דוד1", None, "name-direction"),
            ("דוד ב", None, "name-direction"),
            ("davidדוד", None, "name-direction"),
            ("a b", None, "name-characters"),
            ("\u{1f600}", None, "name-characters"),
            ("<b>", None, "name-characters"),
            ("bob", Some("ana"), "name-fixed"),
            (&"x".repeat(300), None, "name-long"),
        ] {
            assert_eq!(name(typed, fixed), Err(word), "{typed:?}");
        }
    }

    #[test]
    fn passwords_are_checked_before_the_server_is_asked() {
        let ana = Username::parse("ana").unwrap();
        let bo = Username::parse("bo").unwrap();
        let password = |typed: &str, name| check_password(typed, Some(name), 10).map(|_| ());
        assert_eq!(password("correct horse", &ana), Ok(()));
        assert_eq!(password("my bottle is full", &bo), Ok(()));
        assert_eq!(password("пароль из слов", &ana), Ok(()));
        assert_eq!(password("  two words  ", &bo), Err("password-short"));
        assert_eq!(password("  two  words of  it  ", &bo), Ok(()));
        for (typed, word) in [
            ("", "password-missing"),
            ("123456789", "password-short"),
            (" 123456789 ", "password-short"),
            ("\u{a0}\u{3000}123456789", "password-short"),
            ("1            2", "password-short"),
            ("1\u{200b}\u{200b}2\u{ad}\u{ad}\u{ad}\u{ad}\u{ad}\u{ad}", "password-short"),
            (&" ".repeat(10), "password-missing"),
            (&"\u{a0}".repeat(10), "password-missing"),
            (&" \u{1680}\u{2003}\u{202f}\u{205f}\u{3000}".repeat(10), "password-missing"),
            (&"\u{3164}\u{115f}\u{ffa0}\u{2800}\u{17b4}".repeat(10), "password-missing"),
            (&"\u{200b}\u{ad}\u{2060}".repeat(10), "password-missing"),
            (&"\u{ad}\u{2060}".repeat(10), "password-characters"),
            ("i am ANA, hello", "password-name"),
            ("with emoji \u{1f600}", "password-characters"),
            ("with a tab\tin it", "password-characters"),
            // Not every client prepares these at the login.
            ("no\u{a0}break space", "password-characters"),
            ("cafe\u{301} au lait", "password-characters"),
            ("wide letters \u{ff21}", "password-characters"),
            ("a soft\u{ad}hyphen", "password-characters"),
            (&"x".repeat(2_000), "password-long"),
        ] {
            assert_eq!(password(typed, &ana), Err(word), "{typed:?}");
        }
    }
}
