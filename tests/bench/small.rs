//! What runs for a moment: commands as whole processes, and the time from a start to the first invite.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Plan;
use crate::ejabberd::{self, Ejabberd};
use crate::harness::{Folder, PATIENCE, PROGRAM, create_key, exchange};
use crate::peers::{self, HOST, Running, free_address, prosody_key, prosody_site, prosodyctl};
use crate::prosody::{Prosody, Release};
use crate::table::{Better, EJABBERD, INVITED, PROSODY, Samples, Table};

/// The commands that make a key and an invite, beside Prosody's. Theirs need a running server, so there is one of ours too.
pub fn commands(plan: &Plan, table: &mut Table) {
    let runs = if plan.quick { 2 } else { 15 };
    let folder = Folder::new();
    let peer = peers::invited(0);
    let ours = |name: &str| {
        let mut command = Command::new(PROGRAM);
        command.args([name, HOST]).env("INVITED_DB", peer.db.clone().unwrap());
        command
    };
    let site = Release::OfThisMachine.is_there().then(|| prosody_site(PROSODY).0);
    // Only a start writes the configuration.
    let _running = site.as_ref().map(Prosody::start);
    for (name, theirs) in [("create", ["mod_invites_api", "create"]), ("invite", ["mod_invites", "generate"])] {
        let mut commands = vec![(INVITED, ours(name))];
        commands.extend(site.as_ref().map(|site| {
            let mut command = prosodyctl(site);
            command.args(theirs).arg(HOST);
            if name == "create" {
                command.arg("bench");
            }
            (PROSODY, command)
        }));
        let none = || commands.iter().map(|(name, _)| (*name, Vec::new())).collect::<Vec<Samples>>();
        let (mut times, mut memory) = (none(), none());
        for _ in 0..runs {
            for (number, (_, command)) in commands.iter_mut().enumerate() {
                let start = Instant::now();
                let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
                times[number].1.push(start.elapsed().as_secs_f64() * 1000.0);
                assert!(status.unwrap().success(), "{command:?}");
            }
        }
        for (number, (_, command)) in commands.iter().enumerate() {
            memory[number].1.extend(peak_memory(command, &folder.file("peak")));
        }
        table.add(&format!("`{name}` as a command, ms"), Better::Less, &times);
        table.add(&format!("`{name}`, memory at most, MB"), Better::Less, &memory);
    }
}

/// The most memory that a command takes, in MB; none without GNU time.
pub fn peak_memory(command: &Command, file: &Path) -> Option<f64> {
    // A process starts with the peak of the one that forks it; that of `time` is small.
    let mut timed = Command::new("/usr/bin/time");
    timed.args(["-f", "%M", "-o"]).arg(file).arg(command.get_program()).args(command.get_args());
    timed.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let status = timed.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
    assert!(status.success(), "{timed:?}");
    let kilobytes: f64 = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}

/// From the start of a server to its first invite.
pub fn start(plan: &Plan, table: &mut Table) {
    let mut samples: Vec<Samples> = Vec::new();
    let folder = Folder::new();
    let invite = peers::get(&format!("/invites_api?key={}", create_key(&folder.db(), HOST)));
    let ours = (0..if plan.quick { 2 } else { 15 }).map(|_| {
        let addr = free_address();
        let mut command = peers::serve(&folder.db());
        let start = Instant::now();
        let _running = Running::start(command.args(["--listen", &addr.to_string()]), addr, None);
        first(addr, &invite, 201, start)
    });
    samples.push((INVITED, ours.collect()));
    if Release::OfThisMachine.is_there() {
        let (site, addr) = prosody_site(PROSODY);
        drop(Prosody::start(&site));
        let invite = peers::get(&format!("/invites_api?key={}", prosody_key(&site)));
        let theirs = (0..if plan.quick { 1 } else { 5 }).map(|_| {
            let start = Instant::now();
            let _running = Prosody::start(&site);
            first(addr, &invite, 201, start)
        });
        samples.push((PROSODY, theirs.collect()));
    }
    if let (Some(site), false) = (ejabberd::Site::new(), plan.quick) {
        let start = Instant::now();
        let ejabberd = Ejabberd::start(&site);
        ejabberd.api("generate_invite", serde_json::json!({ "host": HOST }));
        samples.push((EJABBERD, vec![start.elapsed().as_secs_f64() * 1000.0]));
    }
    table.add("from the start to the first invite, ms", Better::Less, &samples);
}

/// Makes the first invite as soon as it can, and tells how long that took, in ms.
fn first(addr: SocketAddr, invite: &[u8], status: u16, start: Instant) -> f64 {
    while TcpStream::connect(addr).is_err() {
        assert!(start.elapsed() < PATIENCE, "nothing listens on {addr}");
        sleep(Duration::from_micros(200));
    }
    let text = String::from_utf8_lossy(invite).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    assert_eq!(exchange(addr, text.as_bytes()).status, status);
    start.elapsed().as_secs_f64() * 1000.0
}
