//! The settings of a host: which there are, and what values they take.
//!
//! Kept in the database, so that the command line, the server and a backup all see the same. The only file that names url.

use url::Url;

use crate::error::{Error, Result};
use crate::{duration, invite};

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
pub const SETTINGS: &[Setting] = &[
    Setting { name: "url", help: "public base address of the invite pages (default https://HOST)", check: check_url },
    Setting {
        name: "page",
        help: "address of an external page instead of ours, with {uri}, {token} or {host} in it",
        check: check_page,
    },
    Setting { name: "ttl", help: "how long invites are good for (default 7d; resets always 1d)", check: check_ttl },
    Setting { name: "site-name", help: "what the pages call the host (default HOST)", check: check_site_name },
    Setting {
        name: "server",
        help: "the XMPP server that reads the file: prosody (default) or ejabberd",
        check: check_server,
    },
];

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

/// An address as for `url`, with placeholders; what follows them may be query or fragment.
fn check_page(text: &str) -> std::result::Result<String, String> {
    invite::check_template(text)?;
    let filled = invite::PLACEHOLDERS.iter().fold(text.to_owned(), |text, placeholder| text.replace(placeholder, "x"));
    let end = filled.find(['?', '#']).unwrap_or(filled.len());
    check_url(&filled[..end])?;
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic() || "\"<>\\^`|".contains(*c)) {
        return Err(format!("'{}' can't be in it (write it percent-encoded)", bad.escape_debug()));
    }
    Ok(text.to_owned())
}

fn check_ttl(text: &str) -> std::result::Result<String, String> {
    duration::parse(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn check_site_name(text: &str) -> std::result::Result<String, String> {
    let length = text.chars().count();
    if length == 0 || length > 100 || text.chars().any(crate::key::is_control) {
        return Err("it must be one line of 1 to 100 characters".to_owned());
    }
    Ok(text.to_owned())
}

fn check_server(text: &str) -> std::result::Result<String, String> {
    match text {
        "prosody" | "ejabberd" => Ok(text.to_owned()),
        _ => Err("there are prosody and ejabberd".to_owned()),
    }
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

    #[test]
    fn the_other_settings_take_what_makes_sense() {
        for (check, good, bad) in [
            (
                check_page as fn(&str) -> std::result::Result<String, String>,
                &["https://i.example.com/#{uri}", "https://i.example.com/{host}/?t={token}"][..],
                &[
                    "https://i.example.com/",
                    "i.example.com/{token}",
                    "https://x/{token} y",
                    "https://x/{bogus}{token}",
                    "{uri}",
                ][..],
            ),
            (check_ttl, &["7d", "12h"], &["7", "0d", "", "1m"]),
            (check_site_name, &["Ana's place", "日本"], &["", "a\nb", "\u{202e}x"]),
            (check_server, &["prosody", "ejabberd"], &["", "Prosody", "openfire"]),
        ] {
            for text in good {
                assert!(check(text).is_ok(), "{text:?}");
            }
            for text in bad {
                assert!(check(text).is_err(), "{text:?} was taken");
            }
        }
    }
}
