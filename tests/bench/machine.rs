//! What it ran on, for whoever reads the table later.

use std::path::Path;
use std::process::Command;

/// The machine, the date and the programs, in some lines.
pub fn describe() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let speed = cpuinfo.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(": "));
    let speed = speed.map_or("?", |(_, speed)| speed.split('.').next().unwrap());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let folder = std::env::temp_dir();
    let disk = said(Command::new("df").args(["--output=source,fstype"]).arg(&folder), 1);
    let date = said(Command::new("date").args(["-u", "+%F %H:%M UTC"]), 0);
    let sid = std::env::var("INVITED_TEST_SID").unwrap_or("/var/cache/invited-test/sid".to_owned());
    let package = "${Package} ${Version}\n";
    let mut programs = vec![
        format!("invited {} with SQLite {}", env!("CARGO_PKG_VERSION"), rusqlite::version()),
        said(Command::new("rustc").arg("--version"), 0),
    ];
    if Path::new("/usr/bin/prosody").exists() {
        programs.push(said(Command::new("dpkg-query").args(["-W", "-f", package, "prosody"]), 0));
        programs.push(said(Command::new("dpkg-query").args(["-W", "-f", package, "prosody-modules"]), 0));
    }
    if Path::new(&sid).join("usr/sbin/ejabberdctl").exists() {
        programs.push(said(Command::new("chroot").arg(&sid).args(["dpkg-query", "-W", "-f", package, "ejabberd"]), 0));
    }
    format!(
        "{date}; {model} at {speed} MHz, {cores} cores; Linux {}; {} on {}; load average at the start {}.\n{}.",
        kernel.trim(),
        folder.display(),
        disk.split_whitespace().collect::<Vec<_>>().join(", "),
        load.split(' ').next().unwrap_or("?"),
        programs.join("; ")
    )
}

/// A line of what a command says.
fn said(command: &mut Command, line: usize) -> String {
    let output =
        command.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    output.lines().nth(line).unwrap_or("?").trim().to_owned()
}
