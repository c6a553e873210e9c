//! Invites and pages a second, with few and with many invites, and the memory that they take.

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::Plan;
use crate::harness::Folder;
use crate::load::{Outcome, run};
use crate::peers::{self, Peer, invited, open};
use crate::table::{Better, PROSODY, PROSODY_SQLITE, SYNC, Samples, Table, number};

/// The connections of most measurements.
const CONNECTIONS: [usize; 3] = [1, 8, 64];

/// The connections that look at pages.
const READERS: usize = 8;

/// As many invites as Prosody's default store has in most measurements.
const SOME: usize = 1_000;

/// Outcomes by what was measured, for a function that takes a figure out of each.
struct Runs {
    names: Vec<&'static str>,
    outcomes: Vec<Vec<Outcome>>,
}

impl Runs {
    fn new(peers: &[Peer]) -> Runs {
        let names: Vec<_> = peers.iter().map(|peer| peer.name).collect();
        Runs { outcomes: names.iter().map(|_| Vec::new()).collect(), names }
    }

    fn samples(&self, figure: impl Fn(&Outcome) -> f64) -> Vec<Samples> {
        let figures = self.outcomes.iter().map(|outcomes| outcomes.iter().map(&figure).collect());
        self.names.iter().copied().zip(figures).collect()
    }
}

/// Durable invites a second, and how long one client waits.
pub fn invites(plan: &Plan, table: &mut Table) {
    let mut peers = vec![invited(0)];
    peers.extend(peers::prosody(PROSODY_SQLITE, 0));
    peers.extend(peers::prosody(PROSODY, SOME));
    peers.extend(peers::ejabberd());
    peers.extend(peers::limits());
    let empty = pages_of_file(&peers[0]);
    let warm = Plan { time: Duration::from_millis(300), ..*plan };
    peers.iter().for_each(|peer| drop(peer.invites(&warm, 1)));
    let idle = memory(&peers, "VmRSS");
    let folder = Folder::new();

    let mut runs = CONNECTIONS.map(|_| Runs::new(&peers));
    let mut syncs = Vec::new();
    for _ in 0..plan.rounds {
        for (runs, connections) in runs.iter_mut().zip(CONNECTIONS) {
            for (peer, outcomes) in peers.iter().zip(&mut runs.outcomes) {
                let outcome = peer.invites(plan, connections);
                table.note(peer.name, &outcome);
                outcomes.push(outcome);
            }
        }
        syncs.push(sync_alone(&folder, plan.time));
    }
    for (runs, connections) in runs.iter().zip(CONNECTIONS) {
        let mut samples = runs.samples(|outcome| outcome.rate);
        if connections == 1 {
            samples.push((SYNC, syncs.iter().map(|outcome| outcome.rate).collect()));
        }
        table.add(&format!("invites a second, {}", clients(connections)), Better::More, &samples);
    }
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let mut samples = runs[0].samples(|outcome| outcome.percentile(share));
        samples.push((SYNC, syncs.iter().map(|outcome| outcome.percentile(share)).collect()));
        table.add(&format!("one client's request, {name}, ms"), Better::Less, &samples);
    }
    table.add("memory when idle, MB", Better::Less, &idle);
    table.add("memory under load, at most, MB", Better::Less, &memory(&peers, "VmHWM"));
    let conn = open(peers[0].db.as_ref().unwrap());
    let made: f64 = conn.query_row("SELECT count(*) FROM invited_invite", [], |row| row.get(0)).unwrap();
    let bytes = (pages_of_file(&peers[0]) - empty) * 4096.0 / made;
    table.say("bytes in the file for each invite", &format!("{bytes:.0}"));
    let size = std::fs::metadata(crate::harness::PROGRAM).unwrap().len() as f64 / 1e6;
    table.say("size of the program, MB", &format!("{size:.1}"));
}

fn clients(connections: usize) -> String {
    if connections == 1 { "1 client".to_owned() } else { format!("{connections} clients") }
}

fn memory(peers: &[Peer], name: &str) -> Vec<Samples> {
    peers.iter().map(|peer| (peer.name, peer.memory(name).into_iter().collect())).collect()
}

fn pages_of_file(peer: &Peer) -> f64 {
    open(peer.db.as_ref().unwrap()).query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap()
}

/// Appends 4 KiB and syncs, again and again: what the disk can do.
pub fn sync_alone(folder: &Folder, time: Duration) -> Outcome {
    let mut file = File::create(folder.file("sync")).unwrap();
    let (start, mut latencies) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let since = Instant::now();
        file.write_all(&[7; 4096]).unwrap();
        file.sync_data().unwrap();
        latencies.push(since.elapsed().as_micros() as u32);
    }
    latencies.sort_unstable();
    let rate = latencies.len() as f64 / start.elapsed().as_secs_f64();
    Outcome { rate, failures: 0, latencies, share: 0.0 }
}

/// Page views a second.
pub fn pages(plan: &Plan, table: &mut Table) {
    let mut peers = vec![invited(SOME)];
    peers.extend(peers::prosody(PROSODY_SQLITE, SOME));
    peers.extend(peers::prosody(PROSODY, SOME));
    // Its file is written by the first invite.
    let warm = Plan { time: Duration::from_millis(100), ..*plan };
    peers.iter().for_each(|peer| drop(peer.invites(&warm, 1)));
    let loads: Vec<_> = peers.iter().map(|peer| peer.pages(plan, READERS, &peer.tokens(plan))).collect();
    let mut runs = Runs::new(&peers);
    for _ in 0..plan.rounds {
        for ((peer, load), outcomes) in peers.iter().zip(&loads).zip(&mut runs.outcomes) {
            let outcome = run(load);
            table.note(peer.name, &outcome);
            outcomes.push(outcome);
        }
    }
    table.add("page views a second, 8 clients", Better::More, &runs.samples(|outcome| outcome.rate));
}

/// The same with many invites that are pending.
pub fn pending(plan: &Plan, table: &mut Table) {
    let sizes = [0, 10_000, plan.million];
    let make = |size: usize| {
        let mut peers = vec![invited(size)];
        peers.extend(peers::prosody(PROSODY_SQLITE, size));
        // It reads and writes all of its file for each: a million would take minutes for one.
        peers.extend((size <= 10_000).then(|| peers::prosody(PROSODY, size)).flatten());
        peers
    };
    let all: Vec<Vec<Peer>> = sizes.into_iter().map(make).collect();
    let connections = |peer: &Peer, most: usize| if peer.name == PROSODY { 1 } else { most };
    let mut made: Vec<Runs> = all.iter().map(|peers| Runs::new(peers)).collect();
    let mut seen: Vec<Runs> = all.iter().map(|peers| Runs::new(peers)).collect();
    let most = all.iter().map(Vec::len).max().unwrap_or_default();
    for _ in 0..plan.rounds {
        for number in 0..most {
            for (size, peers) in all.iter().enumerate() {
                let Some(peer) = peers.get(number) else { continue };
                let outcome = peer.invites(plan, connections(peer, 64));
                table.note(peer.name, &outcome);
                made[size].outcomes[number].push(outcome);
                let outcome = run(&peer.pages(plan, connections(peer, READERS), &peer.tokens(plan)));
                table.note(peer.name, &outcome);
                seen[size].outcomes[number].push(outcome);
            }
        }
    }
    let with = sizes.map(|size| match size {
        0 => "no others pending".to_owned(),
        _ => format!("{} pending", number(size as f64)),
    });
    for (runs, with) in made.iter().zip(&with) {
        table.add(&format!("invites a second, 64 clients, {with}"), Better::More, &runs.samples(|o| o.rate));
    }
    for (runs, with) in seen.iter().zip(&with) {
        table.add(&format!("page views a second, 8 clients, {with}"), Better::More, &runs.samples(|o| o.rate));
    }
    let samples = memory(all.last().unwrap(), "VmHWM");
    table.add(&format!("memory with {}, at most, MB", with[2]), Better::Less, &samples);
}
