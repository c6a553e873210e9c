//! `invited` hands out invites to an XMPP server.
//!
//! Parses, runs, prints the error, sets the exit code: 0 done, 1 failed, 2 wrong usage; of `serve`, that of sysexits.h.

mod admin;
mod api;
mod cli;
mod client;
mod commands;
mod create;
mod doctor;
mod duration;
mod error;
mod gate;
mod harden;
mod host;
mod http;
mod http_client;
mod invite;
mod json;
mod key;
mod limit;
mod log;
mod lua;
mod metrics;
mod page;
mod private;
mod qr;
mod random;
mod register;
mod routes;
mod secret;
mod server;
mod settings;
mod setup;
mod store;
mod supervise;
mod thread;
mod user;
mod views;
mod wire;
mod xmpp;

/// What holds for any input: for `cargo fuzz` and for the tests.
#[cfg(any(test, fuzzing))]
#[path = "../tests/fuzz/checks.rs"]
pub mod fuzz;

use std::ffi::OsString;
use std::process::ExitCode;

/// One heap for all threads. The C library keeps up to eight for each processor, and what a burst of requests leaves in them.
#[cfg(not(fuzzing))]
#[global_allocator]
static HEAP: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Has the last lines of the log written, however `main` ends.
struct FlushLog;

impl Drop for FlushLog {
    fn drop(&mut self) {
        log::flush();
    }
}

fn main() -> ExitCode {
    harden::forbid_dumps();
    let _flush = FlushLog;
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let for_supervisor = args.first().is_some_and(|command| command == "serve");
    let outcome = cli::parse(args, std::env::var_os("INVITED_DB")).and_then(commands::run);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::message(&format!("{}invited: {error}", log::priority(log::Level::Error)));
            ExitCode::from(error.exit_code(for_supervisor))
        }
    }
}
