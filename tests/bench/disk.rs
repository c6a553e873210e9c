//! What the disk has to do with it: locks that others see, a slow disk, and a large file.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::Plan;
use crate::harness::{Folder, PROGRAM};
use crate::load::{Load, Outcome, run, run_until};
use crate::peers::{Peer, free_address, invited, invited_with, open, serve};
use crate::small::peak_memory;
use crate::table::{Better, INVITED, Table, median, number};

/// What a slow disk takes longer for each sync.
const SLOWER: Duration = Duration::from_millis(20);

/// How often one who does not wait finds the file locked.
pub fn lock(plan: &Plan, table: &mut Table) {
    let peer = invited(0);
    for rate in [10, 100, 1_000] {
        let share = locked_share(plan, &peer, rate);
        table.say(&format!("found locked at {} invites a second", rate), &share);
    }
}

/// Asks for the write lock without waiting for it, as Prosody 0.12 does, while invites are made at this pace.
fn locked_share(plan: &Plan, peer: &Peer, rate: u32) -> String {
    let pace = Some(Duration::from_secs(1) / rate);
    let load = Load { pace, time: plan.time * 4, ..peer.load(plan, 16) };
    let db = peer.db.clone().unwrap();
    let over = AtomicBool::new(false);
    let (outcome, (tries, refused)) = scope(|scope| {
        let locker = scope.spawn(|| {
            let conn = Connection::open(&db).unwrap();
            conn.busy_timeout(Duration::ZERO).unwrap();
            let (mut tries, mut refused) = (0_u32, 0_u32);
            while !over.load(Ordering::Relaxed) {
                tries += 1;
                match conn.execute_batch("BEGIN IMMEDIATE") {
                    Ok(()) => conn.execute_batch("ROLLBACK").unwrap(),
                    Err(_) => refused += 1,
                }
                // Without a pause it would hold the lock itself most of the time.
                sleep(Duration::from_micros(100));
            }
            (tries, refused)
        });
        let outcome = run(&load);
        over.store(true, Ordering::Relaxed);
        (outcome, locker.join().unwrap())
    });
    eprintln!("{refused} of {tries} at {:.0} a second, {} failed", outcome.rate, outcome.failures);
    format!("{:.2} %", 100.0 * f64::from(refused) / f64::from(tries))
}

/// The same with a disk that takes longer for each sync.
pub fn slow(plan: &Plan, table: &mut Table) {
    let folder = Folder::new();
    let library = folder.file("slow.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/slow.c");
    let made = Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).args([source, "-ldl"]).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: needs cc, which is not there");
        return;
    }
    let peer = invited_with(0, |command| {
        command.env("LD_PRELOAD", &library).env("INVITED_BENCH_SYNC", SLOWER.as_micros().to_string());
    });
    let mut rates = [1, 8, 64].map(|connections| (connections, Vec::new()));
    let (mut views, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        for (connections, rates) in &mut rates {
            let outcome = peer.invites(plan, *connections);
            table.note(INVITED, &outcome);
            rates.push(outcome.rate);
        }
        let pages = peer.pages(plan, 8, &peer.tokens(plan));
        let invites = peer.load(plan, 8);
        let (seen, made) = scope(|scope| {
            let seen = scope.spawn(|| run(&pages));
            let made = run(&invites);
            (seen.join().unwrap(), made)
        });
        views.push(seen.rate);
        beside.push(made.rate);
    }
    for (connections, rates) in rates {
        let what =
            format!("slow disk: invites a second, {connections} client{}", if connections == 1 { "" } else { "s" });
        table.add(&what, Better::More, &[(INVITED, rates)]);
    }
    let what =
        format!("slow disk: page views a second, 8 clients, beside {} invites a second", number(median(&beside)));
    table.add(&what, Better::More, &[(INVITED, views)]);
    for rate in [10, 100] {
        let share = locked_share(plan, &peer, rate);
        table.say(&format!("slow disk: found locked at {rate} invites a second"), &share);
    }
}

/// A large file: what commands and housekeeping take, and how long requests wait meanwhile.
pub fn growth(plan: &Plan, table: &mut Table) {
    let mut peer = invited(plan.million);
    let db = peer.db.clone().unwrap();
    let name = number(plan.million as f64);
    // As many expire before each of two measurements; others are looked at.
    let some = plan.million as i64 / 10;
    let tokens: Vec<String> = {
        let conn = open(&db);
        let sql = "SELECT token FROM invited_invite WHERE number > ?1 AND number % 1601 = 0 LIMIT 500";
        let mut query = conn.prepare(sql).unwrap();
        query.query_map([some * 2], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let peak = Folder::new();
    let mut say = |what: &str, took: f64, memory: Option<f64>, worst: Worst| {
        let memory = memory.map_or("?".to_owned(), number);
        let text = format!("{} s; {memory} MB; {} ms; {} ms", number(took), number(worst.page), number(worst.invite));
        table.say(&format!("{name} invites, {what}: time; memory at most; worst page view; worst invite"), &text);
    };
    let command = |args: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(args).env("INVITED_DB", &db);
        command
    };

    let (took, (), worst) = meanwhile(plan, &peer, &tokens, || sleep(plan.time * 2));
    say("nothing else", took, peer.memory("VmHWM"), worst);
    for words in [&["invites", "example.com"][..], &["invites", "example.com", "--json"]] {
        let (took, memory, worst) =
            meanwhile(plan, &peer, &tokens, || peak_memory(&command(words), &peak.file("peak")));
        say(&format!("`{}`", words.join(" ").replace(" example.com", "")), took, memory, worst);
    }
    let overdue = expire(&db, 1, some);
    let (took, memory, worst) =
        meanwhile(plan, &peer, &tokens, || peak_memory(&command(&["prune"]), &peak.file("peak")));
    say(&format!("`prune` of {}", number(overdue as f64)), took, memory, worst);

    // Housekeeping begins when the server does.
    let overdue = expire(&db, some + 1, some * 2);
    peer = peer.restart();
    let (took, (), worst) = meanwhile(plan, &peer, &tokens, || {
        let conn = open(&db);
        let sql = "SELECT state <> 'pending' FROM invited_invite WHERE number = ?1";
        while !conn.query_row(sql, [some * 2], |row| row.get::<_, bool>(0)).unwrap() {
            sleep(Duration::from_millis(20));
        }
    });
    say(&format!("housekeeping of {}", number(overdue as f64)), took, peer.memory("VmHWM"), worst);
}

/// Lets these invites expire, and tells how many they are.
fn expire(db: &Path, first: i64, last: i64) -> usize {
    let sql = "UPDATE invited_invite SET expires_at = 1 WHERE number BETWEEN ?1 AND ?2";
    open(db).execute(sql, [first, last]).unwrap()
}

/// The longest waits, in ms.
struct Worst {
    page: f64,
    invite: f64,
}

/// Does something while a few clients look at pages and make invites. Also returns how many seconds it took.
fn meanwhile<T>(plan: &Plan, peer: &Peer, tokens: &[String], job: impl FnOnce() -> T) -> (f64, T, Worst) {
    let paced =
        |load: Load, rate| Load { pace: Some(Duration::from_secs(1) / rate), time: Duration::from_secs(600), ..load };
    let pages = paced(peer.pages(plan, 8, tokens), 200);
    let invites = paced(peer.load(plan, 8), 50);
    let over = AtomicBool::new(false);
    scope(|scope| {
        let pages = scope.spawn(|| run_until(&pages, &over));
        let invites = scope.spawn(|| run_until(&invites, &over));
        let start = Instant::now();
        let outcome = job();
        let took = start.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        let [page, invite] = [pages, invites].map(|load| load.join().unwrap()).map(|outcome: Outcome| {
            assert_eq!(outcome.failures, 0, "requests failed");
            outcome.percentile(1.0)
        });
        (took, outcome, Worst { page, invite })
    })
}
