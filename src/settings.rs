//! The settings of a host: which there are, and what values they take.
//!
//! Kept in the database, so that the command line, the server and a backup all see the same. The only file that names url.

use url::Url;

use crate::error::{Error, Result};

/// A setting that a host can have.
pub struct Setting {
    /// Its name on the command line and in the database.
    pub name: &'static str,
    /// What it does, in a few words.
    pub help: &'static str,
    /// Checks a value as typed and gives back what is stored.
    pub check: fn(&str) -> std::result::Result<String, String>,
}

/// All settings that there are.
pub const SETTINGS: &[Setting] = &[Setting {
    name: "url",
    help: "public base address of the invite pages (default https://HOST)",
    check: check_url,
}];

/// The setting of this name.
pub fn find(name: &str) -> Result<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name).ok_or_else(|| {
        let names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
        Error::usage(format!("there is no setting '{}' (there are: {})", name.escape_debug(), names.join(", ")))
    })
}

/// An absolute `http:` or `https:` address without user, query or fragment. What is stored is ASCII, without a slash at its end.
fn check_url(text: &str) -> std::result::Result<String, String> {
    // The parser repairs what browsers repair; a setting should be right as it stands.
    if let Some(bad) = text.chars().find(|c| c.is_whitespace() || c.is_control() || "\"<>\\^`{|}".contains(*c)) {
        return Err(format!("'{}' can't be in it", bad.escape_debug()));
    }
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    if rest.ok_or("it must begin with https:// or http://")?.starts_with('/') {
        return Err("it names no host".to_owned());
    }
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("it must have no query and no fragment, since the token is added to it".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it must not name a user".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_only_if_a_token_can_be_added_to_it() {
        for (typed, stored) in [
            ("https://example.com", "https://example.com"),
            ("https://example.com/", "https://example.com"),
            ("http://127.0.0.1:8642/chat/", "http://127.0.0.1:8642/chat"),
            ("http://[::1]:8642", "http://[::1]:8642"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]"),
        ] {
            assert_eq!(check_url(typed).as_deref(), Ok(stored));
        }
        for bad in [
            "",
            "example.com",
            "ftp://example.com",
            "https://",
            "https:///x",
            "https://example.com?x",
            "https://example.com/#x",
            "https://me@example.com",
            "https://example.com:70000",
            "https://example.com:x",
            "https://exa mple.com",
            "https://example.com/\r\nX: y",
            "https://[::1",
            "https://[x]",
            "https://example.com/<script>",
            "javascript:alert(1)",
        ] {
            assert!(check_url(bad).is_err(), "{bad:?} was taken");
        }
    }
}
