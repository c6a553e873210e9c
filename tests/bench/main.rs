//! How fast `invited` is, beside those it stands in for and what it can't be faster than: `cargo bench`.
//!
//! `cargo bench -- --quick` for a look whether all works, `cargo bench -- ROW…` for some of the rows. Peers that are not
//! installed are left out.

// Here a failure is meant to be a panic, and the result goes to stdout. What is shared with the program and its tests is
// not used as a whole.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, dead_code, unused_imports, unused_macros)]

#[path = "../it/ejabberd.rs"]
mod ejabberd;
#[path = "../it/harness.rs"]
mod harness;
#[path = "../it/prosody.rs"]
mod prosody;

/// The parts of the program that the pool without a store is made of. They are linted where they belong.
#[allow(clippy::all)]
#[path = "../../src"]
mod src {
    pub mod client;
    pub mod error;
    pub mod gate;
    pub mod http;
    pub mod key;
    pub mod limit;
    pub mod log;
    pub mod metrics;
    pub mod private;
    pub mod random;
    pub mod secret;
    pub mod server;
    pub mod thread;
}
use pool::routes;
use src::{client, error, gate, http, key, limit, log, metrics, private, random, secret, server, thread};

mod disk;
mod load;
mod machine;
mod peers;
mod pool;
mod rows;
mod small;
mod table;

use std::time::Duration;

use table::Table;

/// How long and how often to measure.
struct Plan {
    /// How often all is measured.
    rounds: usize,
    /// How long each time.
    time: Duration,
    /// Invites of the largest file.
    million: usize,
    /// Only to see whether all works.
    quick: bool,
}

type Row = (&'static str, fn(&Plan, &mut Table));

const ROWS: [Row; 8] = [
    ("invites", rows::invites),
    ("pages", rows::pages),
    ("pending", rows::pending),
    ("commands", small::commands),
    ("start", small::start),
    ("lock", disk::lock),
    ("slow", disk::slow),
    ("growth", disk::growth),
];

fn main() {
    // Cargo itself passes `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve-pool", addr] => return pool::serve(addr.parse().unwrap()),
        ["serve-bare", addr] => return pool::serve_bare(addr.parse().unwrap()),
        _ => {}
    }
    let quick = args.iter().any(|arg| arg == "--quick");
    let wanted: Vec<&String> = args.iter().filter(|arg| *arg != "--quick").collect();
    let names = ROWS.map(|(name, _)| name);
    assert!(wanted.iter().all(|row| names.contains(&row.as_str())), "the rows are {}", names.join(", "));
    let plan = if quick {
        Plan { rounds: 1, time: Duration::from_millis(300), million: 20_000, quick }
    } else {
        Plan { rounds: 3, time: Duration::from_secs(2), million: 1_000_000, quick }
    };
    let mut table = Table::default();
    let machine = machine::describe();
    for (name, run) in ROWS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|row| row == name)) {
        let start = std::time::Instant::now();
        run(&plan, &mut table);
        eprintln!("{name}: done in {:.0} s", start.elapsed().as_secs_f64());
    }
    println!("{table}\n{machine}");
}
