//! Lengths of time as people write them: `30min`, `12h`, `7d`.
//!
//! The spellings are those of Prosody's shell. Knows nothing of what they are for.

use crate::error::{Error, Result};

/// The longest that anything here can last, in seconds: ten years.
pub const LONGEST_SECS: i64 = 10 * 365 * 86_400;

const UNITS: &[(&[&str], i64)] = &[
    (&["s", "sec", "secs", "second", "seconds"], 1),
    (&["min", "mins", "minute", "minutes"], 60),
    (&["h", "hour", "hours"], 3_600),
    (&["d", "day", "days"], 86_400),
    (&["w", "week", "weeks"], 7 * 86_400),
    (&["mon", "month", "months"], 30 * 86_400),
    (&["y", "year", "years"], 365 * 86_400),
];

/// Reads a number and its unit, with or without a space between, as seconds. At least a second, at most ten years.
///
/// A bare number is refused, and so is `m`, which could mean minutes or months.
pub fn parse(text: &str) -> Result<i64> {
    let refuse = || {
        Error::usage(format!(
            "'{}' is no length of time (give a whole number and a unit: 30min, 12h, 7d, 2w, 3mon or 1y; at most 10y)",
            text.escape_debug()
        ))
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(refuse)?;
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start_matches(' ');
    let (_, unit_secs) = UNITS.iter().find(|(names, _)| names.contains(&unit)).ok_or_else(refuse)?;
    if number.is_empty() {
        return Err(refuse());
    }
    // Digits alone, so that it can only be too large.
    let seconds = number.parse().ok().and_then(|number: i64| number.checked_mul(*unit_secs));
    match seconds.filter(|seconds| *seconds <= LONGEST_SECS) {
        Some(0) => Err(Error::usage(format!("'{text}' is too short (at least 1s)"))),
        Some(seconds) => Ok(seconds),
        None => Err(Error::usage(format!("'{text}' is too long (at most 10y)"))),
    }
}

/// A whole number as people write it: digits alone, without a sign.
pub fn whole_number(text: &str) -> Option<i64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Seconds in their largest whole unit, two units at most: `6d 23h`.
pub fn show(seconds: i64) -> String {
    if seconds <= 0 {
        return "0s".to_owned();
    }
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let first = units.iter().position(|(_, secs)| seconds >= *secs).unwrap_or(3);
    let (name, secs) = units[first];
    let mut text = format!("{}{name}", seconds / secs);
    if let Some((name, smaller)) = units.get(first + 1) {
        let rest = seconds % secs / smaller;
        if rest > 0 {
            text.push_str(&format!(" {rest}{name}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_are_needed() {
        for (text, seconds) in [
            ("90s", 90),
            ("30min", 1_800),
            ("12h", 43_200),
            ("7d", 604_800),
            ("2 weeks", 1_209_600),
            ("3mon", 7_776_000),
            ("1y", 31_536_000),
        ] {
            assert_eq!(parse(text).unwrap(), seconds);
        }
        for bad in
            ["", "10", "1m", "d", "-1d", "1.5h", "0d", "11y", "99999999999999999999d", "1d2h", "1 d ", "1D", "٣d"]
        {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn two_units_are_enough_to_show() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (59, "59s"),
            (60, "1min"),
            (61, "1min 1s"),
            (604_800, "7d"),
            (604_799, "6d 23h"),
            (3_599, "59min 59s"),
        ] {
            assert_eq!(show(seconds), text);
        }
    }
}
