//! The log: one line of `name=value` pairs per event, to stderr; before it its priority where that is the journal
//! (sd-daemon(3)).
//!
//! A server never waits for its log: lines go into a bounded queue, and one thread writes them. Callers make sure that no
//! key, token or query string is among the values. The only writer to stderr while serving.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::mem;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{Error, Result};
use crate::thread::spawn;

/// The most bytes that wait to be written; as many more may be with the thread that writes.
const QUEUE_BYTES: usize = 128 * 1024;

/// The longest value that is written whole, in bytes. A line is shorter than what a pipe takes in one piece (PIPE_BUF).
const VALUE_BYTES: usize = 1024;

/// How long the end of the process waits for the last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The stack of the thread that writes, in bytes.
const WRITER_STACK: usize = 64 * 1024;

static QUEUE: Queue = Queue {
    lines: Mutex::new(Lines { text: Vec::new(), dropped: 0, writer: Writer::NotStarted }),
    came: Condvar::new(),
    written: Condvar::new(),
};
static IS_QUEUED: AtomicBool = AtomicBool::new(false);
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

/// The lines that wait for the thread that writes.
struct Queue {
    lines: Mutex<Lines>,
    /// The writer has something to do.
    came: Condvar,
    /// The writer has nothing to do.
    written: Condvar,
}

struct Lines {
    /// Whole lines, the oldest first.
    text: Vec<u8>,
    /// Lines that came after these and found no room.
    dropped: u64,
    writer: Writer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    NotStarted,
    Idle,
    Writing,
}

/// Sets what is written from now on, and whether each line begins with its priority. Lines are queued from here on, panics
/// among them.
pub fn start(level: Level, with_priorities: bool) {
    LEVEL.store(level as u8, Ordering::Relaxed);
    HAS_PRIORITIES.store(with_priorities, Ordering::Relaxed);
    IS_QUEUED.store(true, Ordering::Relaxed);
    panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("-");
        event(Level::Error, &[("event", &"panic"), ("thread", &thread), ("detail", &info)]);
    }));
}

/// Starts the thread that writes the queue. Call it once the process is sandboxed: the thread inherits that.
pub fn start_writer() -> Result<()> {
    let mut lines = QUEUE.lock();
    if lines.writer == Writer::NotStarted {
        spawn("log", WRITER_STACK, write_queued)?;
        lines.writer = Writer::Idle;
    }
    Ok(())
}

/// Waits until all lines are written, for [`FLUSH_TIMEOUT`] at most.
pub fn flush() {
    let is_done = |lines: &mut Lines| lines.is_empty() && lines.writer != Writer::Writing;
    if is_done(&mut QUEUE.lock()) || start_writer().is_err() {
        return;
    }
    let _ = QUEUE.written.wait_timeout_while(QUEUE.lock(), FLUSH_TIMEOUT, |lines| !is_done(lines));
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &str) {
        let mut lines = self.lock();
        lines.push(line);
        if lines.writer == Writer::Idle {
            self.came.notify_one();
        }
    }
}

impl Lines {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.dropped == 0
    }

    /// Once a line is dropped, so are all others until the writer comes: the order stays, and they are counted in their place.
    fn push(&mut self, line: &str) {
        if self.dropped > 0 || self.text.len() + line.len() > QUEUE_BYTES {
            self.dropped += 1;
        } else {
            self.text.extend_from_slice(line.as_bytes());
        }
    }

    /// All lines that wait, and after them one that counts the dropped ones.
    fn take(&mut self) -> Vec<u8> {
        let mut text = mem::take(&mut self.text);
        let dropped = mem::take(&mut self.dropped);
        if dropped > 0 {
            let pairs: [(&str, &dyn Display); 2] = [("event", &"log-dropped"), ("count", &dropped)];
            text.extend_from_slice(line(priority(Level::Error), now(), &pairs).as_bytes());
        }
        text
    }
}

fn write_queued() {
    let mut lines = QUEUE.lock();
    loop {
        if lines.is_empty() {
            lines.writer = Writer::Idle;
            QUEUE.written.notify_all();
            lines = QUEUE.came.wait(lines).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        lines.writer = Writer::Writing;
        let text = lines.take();
        drop(lines);
        text.split_inclusive(|byte| *byte == b'\n').for_each(write);
        lines = QUEUE.lock();
    }
}

/// Writes one line with one write, if the system takes it whole. A stderr that has been closed is no reason to stop serving.
fn write(mut line: &[u8]) {
    let stderr = io::stderr();
    while !line.is_empty() {
        match stderr.lock().write(line) {
            Ok(written) => line = &line[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another program that has the same pipe open can have made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None);
            }
            Err(_) => return,
        }
    }
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

/// Writes one line: the time, and then these pairs.
pub fn event(level: Level, pairs: &[(&str, &dyn Display)]) {
    if level as u8 <= LEVEL.load(Ordering::Relaxed) {
        push(&line(priority(level), now(), pairs));
    }
}

/// Writes a message to a person, or to a program that waits for exactly this line.
pub fn message(text: &str) {
    push(&format!("{text}\n"));
}

/// Started by inetd, stderr is the client's connection, and messages go nowhere. A command that does not serve waits for its
/// terminal as any other program does.
fn push(line: &str) {
    if IS_MUTE.load(Ordering::Relaxed) {
    } else if IS_QUEUED.load(Ordering::Relaxed) {
        QUEUE.push(line);
    } else {
        write(line.as_bytes());
    }
}

/// A value that could be taken for more than one is in quotes, with escapes: nobody can write a line, or a pair, of his own.
fn line(priority: &str, now: i64, pairs: &[(&str, &dyn Display)]) -> String {
    let mut line = format!("{priority}time={}", utc(now));
    for (name, value) in pairs {
        let value = value.to_string();
        let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '=' && c != '\\';
        if (1..=VALUE_BYTES).contains(&value.len()) && value.chars().all(plain) {
            line.extend([" ", name, "=", &value]);
        } else {
            line.extend([" ", name, "=\"", &escape(&value), "\""]);
        }
    }
    line.push('\n');
    line
}

/// As in JSON, which is how readers of logfmt take what is in quotes; nothing but visible ASCII is left. A value that is too
/// long ends in dots.
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len().min(VALUE_BYTES) + 8);
    for c in value.chars() {
        if escaped.len() >= VALUE_BYTES {
            escaped.push_str("...");
            break;
        }
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
    use super::*;

    /// Strictly in order, and none is missing without being counted.
    #[test]
    fn lines_that_find_no_room_are_counted_where_they_would_stand() {
        let mut lines = Lines { text: Vec::new(), dropped: 0, writer: Writer::NotStarted };
        let long = "x".repeat(QUEUE_BYTES - 10);
        for line in [format!("{long}\n").as_str(), "too long for it\n", "short\n"] {
            lines.push(line);
        }
        let text = String::from_utf8(lines.take()).unwrap();
        let rest = text.strip_prefix(&long).unwrap();
        assert!(rest.starts_with("\ntime=") && rest.ends_with(" event=log-dropped count=2\n"), "{rest}");
        lines.push("later\n");
        assert_eq!(lines.take(), b"later\n");
        assert!(lines.is_empty());
    }

    #[test]
    fn a_long_value_is_cut_and_its_line_fits_into_a_pipe_whole() {
        for value in ["x", "\u{1f600}", "\"", " "] {
            let line = line("<3>", 0, &[("path", &value.repeat(5_000)), ("detail", &value.repeat(5_000)), ("us", &1)]);
            assert!(line.len() < 4_096 && line.ends_with("...\" us=1\n"), "{line}");
        }
    }

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
