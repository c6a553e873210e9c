//! The log: one line of `name=value` pairs per event, to stderr; before it its priority where that is the journal
//! (sd-daemon(3)).
//!
//! Callers see to it that no key, token or query string is among the values. The only writer to stderr while serving.

use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

static IS_MUTE: AtomicBool = AtomicBool::new(false);
static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
static HAS_PRIORITIES: AtomicBool = AtomicBool::new(false);

/// How much is written.
///
/// The numbers are the priorities of syslog(3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What needs somebody's attention.
    Error = 3,
    /// Also what was refused.
    Warning = 4,
    /// Everything: a line a request.
    #[default]
    Info = 6,
}

impl Level {
    /// Reads the word of `--log-level`.
    pub fn parse(text: &str) -> Result<Level> {
        match text {
            "error" => Ok(Level::Error),
            "warning" => Ok(Level::Warning),
            "info" => Ok(Level::Info),
            _ => {
                let text = text.escape_debug();
                Err(Error::usage(format!("'{text}' is no log level (there are error, warning and info)")))
            }
        }
    }

    /// How much an answer with this status matters.
    pub fn of_status(status: u16) -> Level {
        match status {
            500.. => Level::Error,
            400.. => Level::Warning,
            _ => Level::Info,
        }
    }
}

/// Says what is written from now on, and whether each line begins with its priority.
pub fn start(level: Level, with_priorities: bool) {
    LEVEL.store(level as u8, Ordering::Relaxed);
    HAS_PRIORITIES.store(with_priorities, Ordering::Relaxed);
}

/// What a line of this level begins with.
pub fn priority(level: Level) -> &'static str {
    match level {
        _ if !HAS_PRIORITIES.load(Ordering::Relaxed) => "",
        Level::Error => "<3>",
        Level::Warning => "<4>",
        Level::Info => "<6>",
    }
}

/// Writes one line: the time, and then these pairs. A stderr that has been closed is no reason to stop serving.
pub fn event(level: Level, pairs: &[(&str, &dyn Display)]) {
    if level as u8 <= LEVEL.load(Ordering::Relaxed) {
        let _ = stderr().write_all(line(priority(level), now(), pairs).as_bytes());
    }
}

/// A value that could be taken for more than one is in quotes, with escapes: nobody can write a line, or a pair, of his own.
fn line(priority: &str, now: i64, pairs: &[(&str, &dyn Display)]) -> String {
    let mut line = format!("{priority}time={}", utc(now));
    for (name, value) in pairs {
        let value = value.to_string();
        let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '=' && c != '\\';
        if !value.is_empty() && value.chars().all(plain) {
            line.extend([" ", name, "=", &value]);
        } else {
            line.extend([" ", name, "=\"", &escape(&value), "\""]);
        }
    }
    line.push('\n');
    line
}

/// As in JSON, which is how readers of logfmt take what is in quotes; nothing but visible ASCII is left.
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len() + 8);
    for c in value.chars() {
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            ' '..='~' => escaped.push(c),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    escaped
}

/// Where messages go. Started by inetd, stderr is the client's connection, and messages go nowhere.
pub fn stderr() -> Box<dyn Write> {
    if IS_MUTE.load(Ordering::Relaxed) { Box::new(std::io::sink()) } else { Box::new(std::io::stderr().lock()) }
}

/// Writes nothing from now on.
pub fn mute() {
    IS_MUTE.store(true, Ordering::Relaxed);
}

/// The current time in Unix seconds.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// Unix seconds as `2026-11-22T18:30:00Z` (RFC 3339).
pub fn utc(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years of this count start in March, so that the leap day is the last: 400 of them have 146,097 days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::{line, utc};

    #[test]
    fn no_value_can_forge_a_line_or_a_pair() {
        for (value, expected) in [
            ("/invite", "/invite"),
            ("", r#""""#),
            ("a b", r#""a b""#),
            ("a=b", r#""a=b""#),
            ("a\nevent=forged", r#""a\nevent=forged""#),
            ("a\r\n<3>b", r#""a\r\n<3>b""#),
            (r#"a" status="200"#, r#""a\" status=\"200""#),
            ("a\\", r#""a\\""#),
            ("\u{1b}[2J\0", r#""\u001b[2J\u0000""#),
            ("M\u{fc}\u{2028}", r#""M\u00fc\u2028""#),
        ] {
            let line = line("<4>", 0, &[("path", &value), ("status", &404)]);
            assert_eq!(line, format!("<4>time=1970-01-01T00:00:00Z path={expected} status=404\n"));
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(utc(1_798_761_599), "2026-12-31T23:59:59Z");
        assert_eq!(utc(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
