//! The server as a process: nothing answered is lost, a locked file is survived, and `try` leaves nothing behind.

use std::collections::HashSet;
use std::fs::Permissions;
use std::io::{BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rusqlite::Connection;

use crate::harness::{Folder, PATIENCE, PROGRAM, Server, available, connect, create_key, done, fails, read_reply};

/// The tokens in our table and in Prosody's.
fn stored(db: &Path) -> (HashSet<String>, HashSet<String>) {
    let conn = Connection::open(db).unwrap();
    let tokens = |sql| {
        let mut query = conn.prepare(sql).unwrap();
        let rows = query.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    (tokens("SELECT token FROM invited_invite"), tokens("SELECT key FROM prosody WHERE store = 'invite_token'"))
}

/// Eight clients that make invites on kept connections until the server goes; the tokens of all 201s that arrived whole.
fn load_until_gone(server: &Server, key: &str, enough: usize, then: impl FnOnce()) -> HashSet<String> {
    let tokens = Mutex::new(HashSet::new());
    let reached = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut stream = BufReader::new(connect(server.addr));
                let request = format!("GET /invites_api?key={key} HTTP/1.1\r\nHost: test\r\n\r\n");
                while stream.get_mut().write_all(request.as_bytes()).is_ok() {
                    let Ok(reply) = read_reply(&mut stream, false) else { return };
                    assert_eq!(reply.status, 201);
                    let mut tokens = tokens.lock().unwrap();
                    assert!(tokens.insert(reply.token()), "a token came twice");
                    reached.store(tokens.len() >= enough, Ordering::Relaxed);
                }
            });
        }
        let deadline = Instant::now() + PATIENCE;
        while !reached.load(Ordering::Relaxed) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        then();
    });
    tokens.into_inner().unwrap()
}

#[test]
fn nothing_answered_is_lost_when_the_server_is_killed() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "example.com");
    let mut all = HashSet::new();
    for round in 1..=5 {
        let mut server = Server::start(&folder.db());
        all.extend(load_until_gone(&server, &key, 100 * round, || server.signal("KILL")));
        assert_eq!(server.wait(), None);
        let (ours, prosodys) = stored(&folder.db());
        assert!(all.is_subset(&ours), "{} answered invites are lost", all.difference(&ours).count());
        assert_eq!(ours, prosodys, "the two tables disagree");
    }
    assert!(all.len() >= 500);
}

#[test]
fn a_server_that_is_told_to_end_answers_what_it_has_taken_and_exits_0() {
    for signal in ["TERM", "INT"] {
        let folder = Folder::new();
        let key = create_key(&folder.db(), "example.com");
        let mut server = Server::start(&folder.db());
        let answered = load_until_gone(&server, &key, 100, || server.signal(signal));
        assert_eq!(server.wait(), Some(0));
        assert_eq!(answered, stored(&folder.db()).0, "an invite was made that nobody heard of, or the other way round");
    }
}

#[test]
fn two_servers_on_one_file_work() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "example.com");
    let (one, two) = (Server::start(&folder.db()), Server::start(&folder.db()));
    let target = format!("/invites_api?key={key}");
    for _ in 0..20 {
        for (maker, reader) in [(&one, &two), (&two, &one)] {
            let token = maker.get(&target).token();
            assert_eq!(reader.get(&format!("/invite?{token}")).status, 200);
        }
    }
}

#[test]
fn a_locked_file_is_answered_with_503_and_all_is_well_afterwards() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "example.com");
    let server = Server::start(&folder.db());
    let target = format!("/invites_api?key={key}");
    let token = server.get(&target).token();
    let holder = Connection::open(folder.db()).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| server.get(&target));
        // Looking does not wait for a writer.
        assert_eq!(server.get(&format!("/invite?{token}")).status, 200);
        assert!(start.elapsed().as_secs() < 5, "the page waited for the lock");
        let refused = refused.join().unwrap();
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
        assert_eq!(refused.header("access-control-allow-origin"), Some("*"));
    });
    let log = server.log_with("reason=unavailable");
    assert!(log.contains("locked"), "{log}");
    holder.execute_batch("ROLLBACK").unwrap();
    assert_eq!(server.get(&target).status, 201);
    assert_eq!(stored(&folder.db()).0.len(), 2);
}

#[test]
fn an_address_in_use_is_named_with_the_way_out() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let server = Server::start(&folder.db());
    let stderr = fails(&folder.db(), 75, &["serve", "--listen", &server.addr.to_string()]);
    assert!(stderr.contains(&server.addr.to_string()) && stderr.contains("--listen"), "{stderr}");
}

#[test]
fn the_log_of_the_database_starts_over_under_a_lasting_load() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "example.com");
    let mut server = Server::start(&folder.db());
    let answered = load_until_gone(&server, &key, 8_000, || server.signal("TERM"));
    assert_eq!(server.wait(), Some(0));
    let mut wal = folder.db().into_os_string();
    wal.push("-wal");
    let size = std::fs::metadata(wal).unwrap().len();
    // Without checkpoints, this many invites make a log of more than 100 MB.
    assert!(size < 40 << 20, "the log has {size} bytes after {} invites", answered.len());
    assert_eq!(stored(&folder.db()).0, answered);
}

#[test]
fn try_prints_lines_that_work_and_leaves_nothing_behind() {
    if !available("curl", Command::new("curl").arg("--version").output().is_ok()) {
        return;
    }
    let folder = Folder::new();
    let mut command = Command::new(PROGRAM);
    let out = std::fs::File::create(folder.file("out")).unwrap();
    let mut server = Server::spawn(command.arg("try").env("TMPDIR", folder.path()).stdout(out));
    let deadline = Instant::now() + PATIENCE;
    let printed = loop {
        let printed = std::fs::read_to_string(folder.file("out")).unwrap();
        if printed.contains("--db") {
            break printed;
        }
        assert!(Instant::now() < deadline, "try prints nothing");
        std::thread::yield_now();
    };
    let lines: Vec<_> = printed.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(lines.len(), 3, "{printed}");
    for line in lines {
        let output = Command::new("sh").args(["-c", line]).stderr(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.starts_with("HTTP/1.1 201 ") || text.contains("xmpp:example.com?register;preauth="),
            "{line}: {text}"
        );
        assert!(!text.contains("https://example.com"), "the link leads nowhere: {text}");
    }
    server.signal("INT");
    assert_eq!(server.wait(), Some(0));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["out"]);
    // Whoever closes the terminal is done with it.
    let mut server = Server::spawn(Command::new(PROGRAM).arg("try").env("TMPDIR", folder.path()).stdout(Stdio::null()));
    server.signal("HUP");
    assert_eq!(server.wait(), Some(0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_server_takes_what_has_expired_from_the_xmpp_servers_table_by_itself() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    done(&folder.db(), &["invite", "example.com"]);
    done(&folder.db(), &["invite", "example.com", "--contact", "ana"]);
    let conn = Connection::open(folder.db()).unwrap();
    conn.execute("UPDATE invited_invite SET expires_at = 1000", []).unwrap();
    let server = Server::start(&folder.db());
    let deadline = Instant::now() + PATIENCE;
    while !stored(&folder.db()).1.is_empty() {
        assert!(Instant::now() < deadline, "{}", server.log());
        std::thread::yield_now();
    }
    let states: String =
        conn.query_row("SELECT group_concat(DISTINCT state) FROM invited_invite", [], |row| row.get(0)).unwrap();
    assert_eq!(states, "expired");
}

/// The private folders of processes in a folder.
fn private_folders(folder: &Folder) -> Vec<String> {
    let names =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("invited-")).collect()
}

#[test]
fn what_a_killed_server_left_behind_is_removed_by_the_next_one() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let mut killed = Server::start(&folder.db());
    killed.signal("KILL");
    killed.wait();
    let stale = private_folders(&folder);
    assert_eq!(stale.len(), 1);
    // A folder of the user's own, with a socket that nobody listens on and something else.
    let own = folder.file("invited-notes");
    std::fs::create_dir(&own).unwrap();
    std::fs::set_permissions(&own, Permissions::from_mode(0o700)).unwrap();
    drop(UnixListener::bind(own.join("loop")).unwrap());
    std::fs::write(own.join("precious"), "precious").unwrap();
    for path in [own.as_path(), &folder.file(&stale[0])] {
        assert!(Command::new("touch").args(["-d", "1 hour ago"]).arg(path).status().unwrap().success());
    }
    let running = Server::start(&folder.db());
    assert!(!private_folders(&folder).contains(&stale[0]) && private_folders(&folder).len() == 2);
    let _next = Server::start(&folder.db());
    assert_eq!(private_folders(&folder).len(), 3, "the folder of a running server is removed");
    assert_eq!(running.get("/").status, 200);
    assert!(own.join("precious").exists() && own.join("loop").symlink_metadata().is_ok());
}

#[test]
fn what_a_killed_try_left_behind_is_removed_by_the_next_one_and_a_running_one_keeps_its_own() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let start = || Server::spawn(Command::new(PROGRAM).arg("try").stdout(Stdio::null()).env("TMPDIR", folder.path()));
    let databases = || {
        let mut found = private_folders(&folder);
        found.retain(|name| folder.file(name).join("invited.sqlite").exists());
        found
    };
    let mut killed = start();
    killed.signal("KILL");
    killed.wait();
    let left = databases();
    assert_eq!(left.len(), 1);
    let mut running = start();
    let own = databases();
    assert!(own.len() == 1 && own != left, "{own:?} {left:?}");
    let _another = start();
    let _server = Server::start(&folder.db());
    assert!(databases().contains(&own[0]) && databases().len() == 2);
    assert_eq!(running.get("/").status, 200);
    running.signal("TERM");
    assert_eq!(running.wait(), Some(0));
    assert!(!folder.file(&own[0]).exists());
}

/// Nothing that was in its memory is to be found on the disk, or is shown to another process of the user.
#[test]
fn a_server_leaves_no_core_and_shows_its_memory_to_nobody() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited; exec \"$@\"", "sh", PROGRAM, "serve", "--listen", "127.0.0.1:0", "--db"]);
    let server = Server::spawn(command.arg(folder.db()).env("TMPDIR", folder.path()));
    let of_server = format!("/proc/{}", server.id());
    let limits = std::fs::read_to_string(format!("{of_server}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
    // What root has started belongs to root in any case.
    if !available("root", rustix::process::geteuid().is_root()) {
        return;
    }
    let copy = folder.file("invited");
    assert!(Command::new("cp").arg(PROGRAM).arg(&copy).status().unwrap().success());
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    std::fs::set_permissions(folder.db(), Permissions::from_mode(0o666)).unwrap();
    drop(server);
    for name in ["invited.sqlite-wal", "invited.sqlite-shm"] {
        let _ = std::fs::remove_file(folder.file(name));
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
    command.args(["serve", "--listen", "127.0.0.1:0", "--db"]).arg(folder.db()).env("TMPDIR", folder.path());
    let server = Server::spawn(&mut command);
    assert_eq!(server.get("/").status, 200);
    let memory = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "head", "-c", "1"])
        .arg(format!("/proc/{}/maps", server.id()))
        .output()
        .unwrap();
    assert!(!memory.status.success() && memory.stdout.is_empty(), "{memory:?}");
}
