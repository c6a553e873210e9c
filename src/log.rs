//! The log: one line of `name=value` pairs per event, to stderr.
//!
//! Callers see to it that no key, token or query string is among the values. The only writer to stderr while serving.

use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

static IS_MUTE: AtomicBool = AtomicBool::new(false);

/// How much is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What needs somebody's attention.
    Error,
    /// Also what was refused.
    Warning,
    /// Everything: a line a request.
    #[default]
    Info,
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
}

/// Writes one line: the time, and then these pairs. A stderr that has been closed is no reason to stop serving.
pub fn event(pairs: &[(&str, &dyn Display)]) {
    let mut line = format!("time={}", utc(now()));
    for (name, value) in pairs {
        let value = value.to_string();
        let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '=' && c != '\\';
        if !value.is_empty() && value.chars().all(plain) {
            line.push_str(&format!(" {name}={value}"));
        } else {
            line.push_str(&format!(" {name}=\"{}\"", value.escape_default()));
        }
    }
    line.push('\n');
    let _ = stderr().write_all(line.as_bytes());
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
    use super::utc;

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
