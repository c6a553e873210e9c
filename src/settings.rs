//! The settings of a host: which there are, and what values they take.
//!
//! Kept in the database, so that the command line, the server and a backup all see the same. The only file that names url.

use url::Url;

use crate::error::{Error, Result};
use crate::page::{apps, assets};
use crate::xmpp::Address;
use crate::{duration, invite};

/// A setting that a host can have.
pub struct Setting {
    /// Its name on the command line and in the database.
    pub name: &'static str,
    /// What it does, in a few words.
    pub help: &'static str,
    /// How its value is given and checked.
    pub value: Value,
}

/// How the value of a setting is given. A check gives back what is stored.
pub enum Value {
    /// On the command line.
    Text(fn(&str) -> Checked),
    /// In a file that is named there, of [`FILE_MAX`] bytes at most.
    File(fn(&[u8]) -> Checked),
}

type Checked = std::result::Result<String, String>;

/// The largest file whose content can be a setting, in bytes.
pub const FILE_MAX: u64 = 64 * 1024;

/// All settings that there are.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "url",
        help: "public base address of the invite pages (default https://HOST)",
        value: Value::Text(check_url),
    },
    Setting {
        name: "page",
        help: "address of an external page instead of ours, with {uri}, {token} or {host} in it",
        value: Value::Text(check_page),
    },
    Setting {
        name: "ttl",
        help: "how long invites are good for unless told otherwise (default 7d; resets 1d)",
        value: Value::Text(check_ttl),
    },
    Setting {
        name: "site-name",
        help: "what the pages call the host (default HOST)",
        value: Value::Text(check_site_name),
    },
    Setting {
        name: "accent",
        help: "colour of buttons on the pages, #rrggbb, dark enough for white text",
        value: Value::Text(check_accent),
    },
    Setting {
        name: "logo",
        help: "FILE: PNG or SVG of 64 KiB at most, shown above the pages",
        value: Value::File(assets::check_logo),
    },
    Setting { name: "style", help: "FILE: CSS that comes after that of the pages", value: Value::File(check_style) },
    Setting { name: "terms-url", help: "address of the terms, linked below the pages", value: Value::Text(check_link) },
    Setting { name: "privacy-url", help: "address of the privacy statement, likewise", value: Value::Text(check_link) },
    Setting {
        name: "web-client",
        help: "address of a web client, shown among the apps",
        value: Value::Text(check_link),
    },
    Setting { name: "apps", help: "FILE: JSON array of further apps, see the README", value: Value::File(check_apps) },
    Setting {
        name: "apps-show",
        help: "ids of the only apps to show, with commas, in this order",
        value: Value::Text(check_ids),
    },
    Setting { name: "apps-hide", help: "ids of apps not to show, with commas", value: Value::Text(check_ids) },
    Setting {
        name: "register",
        help: "whether accounts can be made in the browser: on (default) or off",
        value: Value::Text(check_register),
    },
    Setting {
        name: "password-min",
        help: "how many characters a password made in the browser needs (default 10)",
        value: Value::Text(check_password_min),
    },
    Setting {
        name: "names-refuse",
        help: "further names that guests can't choose, with commas, or none for no name at all",
        value: Value::Text(crate::user::check_names),
    },
    Setting {
        name: "xmpp",
        help: "[tls:]HOST:PORT at which the XMPP server takes clients (default 127.0.0.1:5222)",
        value: Value::Text(check_xmpp),
    },
    Setting {
        name: "server",
        help: "the XMPP server that reads the file: prosody (default) or ejabberd",
        value: Value::Text(check_server),
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
fn check_url(text: &str) -> Checked {
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
fn check_page(text: &str) -> Checked {
    invite::check_template(text)?;
    let filled = invite::PLACEHOLDERS.iter().fold(text.to_owned(), |text, placeholder| text.replace(placeholder, "x"));
    let end = filled.find(['?', '#']).unwrap_or(filled.len());
    check_url(&filled[..end])?;
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic() || "\"<>\\^`|".contains(*c)) {
        return Err(format!("'{}' can't be in it (write it percent-encoded)", bad.escape_debug()));
    }
    Ok(text.to_owned())
}

fn check_ttl(text: &str) -> Checked {
    duration::parse(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn check_site_name(text: &str) -> Checked {
    let length = text.chars().count();
    if length == 0 || length > 100 || text.chars().any(crate::key::is_control) {
        return Err("it must be one line of 1 to 100 characters".to_owned());
    }
    Ok(text.to_owned())
}

/// `#rrggbb`, against which white text has the contrast that WCAG 2.2 asks for (success criterion 1.4.3, level AA: 4.5).
fn check_accent(text: &str) -> Checked {
    let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6);
    let number =
        digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).ok_or("it must be of the form #rrggbb")?;
    let linear = |shift: u32| {
        let part = f64::from((number >> shift) & 0xff) / 255.0;
        if part <= 0.040_45 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
    };
    let luminance = 0.2126 * linear(16) + 0.7152 * linear(8) + 0.0722 * linear(0);
    let contrast = 1.05 / (luminance + 0.05);
    if contrast < 4.5 {
        return Err(format!(
            "white text on it has a contrast of {contrast:.1} to 1 (at least 4.5: choose a darker one)"
        ));
    }
    Ok(text.to_ascii_lowercase())
}

/// CSS; what it must not do, the policy of the pages forbids anyway.
fn check_style(bytes: &[u8]) -> Checked {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    // It stands within the element `style` of the page, which nothing else ends (HTML, section 13.2.5.14).
    if text.to_ascii_lowercase().contains("</style") {
        return Err("'</style' can't be in it (it would end the style within the page)".to_owned());
    }
    // A browser reads all ends of lines as LF before it compares a style with the digest in the policy.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    if let Some(bad) = text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t' | '\x0c')) {
        return Err(format!("'{}' can't be in it", bad.escape_debug()));
    }
    Ok(text)
}

/// An address for a link: https or http.
fn check_link(text: &str) -> Checked {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "https" | "http") && url.has_host());
    let url = url.filter(|_| !text.contains(|c: char| c.is_whitespace() || c.is_control()));
    url.map(|url| url.to_string())
        .ok_or_else(|| "it must be an address that begins with https:// or http://".to_owned())
}

fn check_apps(bytes: &[u8]) -> Checked {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    apps::read(text)?;
    Ok(text.to_owned())
}

fn check_ids(text: &str) -> Checked {
    let ids: Vec<&str> = text.split(',').map(str::trim).collect();
    let good =
        |id: &&str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    match ids.iter().find(|id| !good(id)) {
        Some(bad) => Err(format!("'{}' is no id of an app (such as conversations,monal)", bad.escape_debug())),
        None => Ok(ids.join(",")),
    }
}

fn check_server(text: &str) -> Checked {
    match text {
        "prosody" | "ejabberd" => Ok(text.to_owned()),
        _ => Err("there are prosody and ejabberd".to_owned()),
    }
}

fn check_register(text: &str) -> Checked {
    match text {
        "on" | "off" => Ok(text.to_owned()),
        _ => Err("there are on and off".to_owned()),
    }
}

fn check_password_min(text: &str) -> Checked {
    let number = text.parse().ok().filter(|number| (1..=128).contains(number));
    number.map(|number: u32| number.to_string()).ok_or_else(|| "it must be a number from 1 to 128".to_owned())
}

fn check_xmpp(text: &str) -> Checked {
    Address::parse(text).map(|address| address.to_string())
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
                check_page as fn(&str) -> Checked,
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
            (check_accent, &["#0b57a8", "#000000"], &["#ffffff", "#FFD700", "0b57a8", "#0b57a", "red"]),
            (
                check_link,
                &["https://example.com/terms?x#y"],
                &["", "example.com", "javascript:alert(1)", "https://", "https://a b"],
            ),
            (check_ids, &["conversations, monal-macos"], &["", "a,,b", "A", "a b"]),
            (check_register, &["on", "off"], &["", "yes", "ON"]),
            (check_password_min, &["1", "12", "128"], &["", "0", "129", "-1", "ten"]),
            (check_xmpp, &["127.0.0.1:5222", "tls:xmpp.example.com:443", "[::1]:5222"], &["", "example.com", ":5222"]),
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
