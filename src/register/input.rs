//! What is sent to `/register`, and whether its fields are as they must be: before any server is asked.

use std::borrow::Cow;

use crate::host::Host;
use crate::http::Request;
use crate::json::{self, Field};
use crate::key::Digest;
use crate::secret::Secret;
use crate::user::{self, Password, Username};

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
        let mut input = Input::default();
        match request.media_type().as_str() {
            "application/x-www-form-urlencoded" => request.form().for_each(|(name, value)| input.set(&name, value)),
            "application/json" => {
                let fields = std::str::from_utf8(&request.body).ok().and_then(|text| json::fields(text, &FIELDS));
                for (name, field) in fields.ok_or((400, "bad-body", "the body is not a JSON object"))?.known {
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
        Digest::of(&Secret::new(format!("{}\n{token}\n{}\n{}", token.len(), self.user, *self.password)))
    }
}

/// The prepared name, or the word for what is wrong with it. Where the invite is for a fixed one, it must be that, or nothing.
pub fn check_name(typed: &str, fixed: Option<&str>, host: &Host) -> std::result::Result<Username, &'static str> {
    // The keyboards of phones add a space, and some people write their whole address.
    let typed = typed.trim();
    let typed = match typed.split_once('@') {
        Some((name, other)) if Host::parse(other).is_ok_and(|other| other == *host) => name,
        Some(_) => return Err("name-host"),
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
    let name = Username::parse(name).map_err(|_| "name-characters")?;
    match fixed {
        Some(fixed) if name.as_str() != fixed => Err("name-fixed"),
        None if name.is_too_long() => Err("name-long"),
        _ => Ok(name),
    }
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
    // As it is stored: SASLprep leaves some characters out.
    if password.as_str().chars().count() < min {
        return Err("password-short");
    }
    let name = name.map(Username::as_str).filter(|name| name.chars().count() >= NAME_IN_PASSWORD);
    match name {
        Some(name) if password.as_str().to_lowercase().contains(name) => Err("password-name"),
        _ => Ok(password),
    }
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
        assert_eq!(name("", Some("ana")), Ok("ana".to_owned()));
        assert_eq!(name("ANA", Some("ana")), Ok("ana".to_owned()));
        for (typed, fixed, word) in [
            ("", None, "name-missing"),
            ("  ", None, "name-missing"),
            ("ana@example.org", None, "name-host"),
            ("@example.com", None, "name-missing"),
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
        for (typed, word) in [
            ("", "password-missing"),
            ("123456789", "password-short"),
            ("i am ANA, hello", "password-name"),
            ("with emoji \u{1f600}", "password-characters"),
            ("with a tab\tin it", "password-characters"),
            (&"x".repeat(2_000), "password-long"),
        ] {
            assert_eq!(password(typed, &ana), Err(word), "{typed:?}");
        }
    }
}
