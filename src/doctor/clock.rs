//! The clock: whether it can be right, and whether it agrees with the file and with the web server.

use super::Report;
use crate::log::utc;
use crate::store::Store;

/// The beginning of 2026: no program of this name ran before.
const BEGINNING: i64 = 1_767_225_600;

/// How far two clocks may be apart, in seconds.
const APART: i64 = 60;

/// Whether the year can be right at all.
pub fn check_year(report: &mut Report, now: i64) {
    if now < BEGINNING {
        report.error(
            "clock",
            format!("the clock of this machine says {}, which is long past", utc(now)),
            "set it, and keep it right with a time service such as systemd-timesyncd",
        );
    } else {
        report.ok("clock", format!("the clock of this machine says {}", utc(now)));
    }
}

/// Whether invites in the file were made in what is the future by this clock.
pub fn check_file(report: &mut Report, store: &Store, now: i64) {
    match store.made_after(now + APART) {
        Ok(0) => {}
        Ok(count) => report.warning(
            "clock",
            format!("the file has {count} invites from later than the clock says that it is ({})", utc(now)),
            "set the clock: it was ahead when they were made, or is behind now; such invites end at another time than meant",
        ),
        Err(error) => report.error("clock", error.to_string(), "see the lines above"),
    }
}

/// Whether the web server has the same time.
pub fn check_date(report: &mut Report, date: Option<&str>, now: i64) {
    let Some(theirs) = date.and_then(parse) else { return };
    let apart = theirs - now;
    if apart.abs() > APART {
        let side = if apart > 0 { "ahead of" } else { "behind" };
        report.warning(
            "clock",
            format!("the web server's clock is {} s {side} the one of this machine", apart.abs()),
            "set whichever is wrong, and keep it right with a time service such as systemd-timesyncd",
        );
    }
}

/// Reads `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7) as Unix seconds.
fn parse(date: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = date.split_once(", ")?.1.split(' ');
    let day: i64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let year: i64 = words.next()?.parse().ok()?;
    let mut time = words.next()?.split(':').map(|part| part.parse::<i64>().ok());
    let [hour, minute, second] = [(); 3].map(|()| time.next().flatten());
    // Years that start in March have the leap day at their end, as in `log::utc`.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some(days * 86_400 + hour? * 3_600 + minute? * 60 + second?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Finding, Level};

    fn found(check: impl Fn(&mut Report)) -> Vec<(Level, String)> {
        let mut findings = Vec::new();
        let mut tell = |finding: Finding| {
            findings.push((finding.level, finding.text));
            Ok(())
        };
        check(&mut Report { tell: &mut tell, secrets: Vec::new(), failed: Ok(()) });
        findings
    }

    #[test]
    fn a_clock_that_was_never_set_is_found() {
        assert_eq!(found(|report| check_year(report, 1_000))[0].0, Level::Error);
        assert_eq!(found(|report| check_year(report, BEGINNING - 1))[0].0, Level::Error);
        assert_eq!(found(|report| check_year(report, BEGINNING))[0].0, Level::Ok);
    }

    #[test]
    fn dates_of_http_are_those_of_the_calendar() {
        for (date, seconds) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Thu, 29 Feb 2024 23:59:59 GMT", 1_709_251_199),
            ("Fri, 01 Mar 2024 00:00:00 GMT", 1_709_251_200),
            ("Thu, 31 Dec 2026 23:59:59 GMT", 1_798_761_599),
        ] {
            assert_eq!(parse(date), Some(seconds), "{date}");
        }
        for bad in ["", "Sun, 06 Nov", "x, y z 1 2:3:4 GMT", "Sunday, 06-Nov-94 08:49:37 GMT"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn clocks_that_are_apart_are_found() {
        let date = Some("Thu, 31 Dec 2026 23:59:59 GMT");
        assert!(found(|report| check_date(report, date, 1_798_761_599 + APART)).is_empty());
        let (level, text) = found(|report| check_date(report, date, 1_798_761_599 + APART + 1)).remove(0);
        assert!(level == Level::Warning && text.contains("61 s behind"), "{text}");
        assert!(found(|report| check_date(report, None, 0)).is_empty());
    }
}
