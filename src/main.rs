//! `invited` hands out invites to an XMPP server.
//!
//! Parses, runs, prints the error, sets the exit code: 0 done, 1 failed, 2 wrong usage.

mod api;
mod cli;
mod commands;
mod create;
mod duration;
mod error;
mod gate;
mod host;
mod http;
mod invite;
mod json;
mod key;
mod limit;
mod log;
mod lua;
mod page;
mod qr;
mod random;
mod register;
mod routes;
mod server;
mod settings;
mod store;
mod thread;
mod user;
mod views;
mod xmpp;

/// What holds for any input: for `cargo fuzz` and for the tests.
#[cfg(any(test, fuzzing))]
#[path = "../tests/fuzz/checks.rs"]
pub mod fuzz;

use std::io::Write as _;
use std::process::ExitCode;

use error::Kind;

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1);
    let outcome = cli::parse(args, std::env::var_os("INVITED_DB")).and_then(commands::run);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "invited: {error}");
            ExitCode::from(if error.kind == Kind::Usage { 2 } else { 1 })
        }
    }
}
