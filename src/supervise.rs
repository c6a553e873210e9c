//! What supervisors hand over and want to hear: sockets on which they listen for us (sd_listen_fds(3), inetd), and notes on
//! how it goes (sd_notify(3)). The only file that names listenfd.

use std::env;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use listenfd::ListenFd;
use rustix::fs::fstat;
use rustix::net::sockopt::socket_acceptconn;

use crate::error::{Error, Kind, Result};
use crate::gate::{Door, Listener};

/// The sockets that a supervisor has handed over in `LISTEN_FDS`. One that is named `admin` in `LISTEN_FDNAMES` is for the
/// admin's programs.
pub fn activated() -> Result<Vec<Listener>> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    let mut handed_over = ListenFd::from_env();
    let mut listeners = Vec::new();
    for number in 0..handed_over.len() {
        let door = if names.get(number) == Some(&"admin") { Door::Admin } else { Door::Guests };
        let taken = match handed_over.take_tcp_listener(number) {
            Ok(listener) => Ok(listener.map(OwnedFd::from)),
            Err(_) => handed_over.take_unix_listener(number).map(|listener| listener.map(OwnedFd::from)),
        };
        let listener = taken.and_then(|fd| fd.map(|fd| Listener::inherited(fd, door)).transpose());
        listeners.extend(listener.map_err(|error| {
            Error::config(format!(
                "the supervisor's socket {} can't be used: {error} (hand over stream sockets)",
                number + 3
            ))
        })?);
    }
    Ok(listeners)
}

/// What inetd has put on stdin.
pub enum Inetd {
    /// A listening socket (`wait`).
    Listener(Listener),
    /// One connection (`nowait`).
    Connection(OwnedFd),
}

/// Takes what is on stdin.
pub fn inetd() -> Result<Inetd> {
    let wrong = |error: io::Error| {
        Error::new(Kind::Config, format!("stdin is no socket: {error} (--inetd is for inetd, which hands one over)"))
    };
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(wrong)?;
    match socket_acceptconn(&stdin).map_err(|error| wrong(error.into()))? {
        true => Ok(Inetd::Listener(Listener::inherited(stdin, Door::Guests).map_err(wrong)?)),
        false => Ok(Inetd::Connection(stdin)),
    }
}

/// Whether stderr is the very socket that is on stdin.
pub fn stderr_is_stdin() -> bool {
    match (fstat(io::stdin().as_fd()), fstat(io::stderr().as_fd())) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

/// Whether what is written to stderr goes to systemd's journal: `JOURNAL_STREAM` is inherited, stderr may lead elsewhere.
pub fn stderr_is_journal() -> bool {
    let Ok(stderr) = fstat(io::stderr().as_fd()) else { return false };
    env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// Tells the supervisor how it goes, if it wants to hear: `READY=1`, `STOPPING=1`, `WATCHDOG=1`.
pub fn notify(text: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    let bytes = path.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    // A supervisor that does not listen is no reason to end.
    let _ = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address));
}

/// How often the supervisor wants a sign of life: twice within the time after which it would start us anew.
pub fn watchdog() -> Option<Duration> {
    let is_for_us = env::var("WATCHDOG_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let is_for_all = env::var_os("WATCHDOG_PID").is_none();
    let micros: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (is_for_us || is_for_all).then(|| Duration::from_micros(micros / 2)).filter(|pause| !pause.is_zero())
}
