//! What can happen to a machine, and to the file: a full disk, a lock, a kill, a power cut, a file that goes away, a clock
//! that is set. Whatever was answered with 201 is there, nothing is half there, and nothing wrong is ever said.

use std::collections::HashMap;
use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::Value;

use crate::harness::{
    Folder, PATIENCE, PROGRAM, Reply, Server, available, connect, done, fails, read_reply, run, wait_until,
};

const HOST: &str = "example.com";

/// What is asked for, and how many rows Prosody reads of it.
const KINDS: [(&str, &str, i64); 4] = [
    ("account", r#"{"kind":"account"}"#, 1),
    ("contact", r#"{"kind":"contact","username":"ana"}"#, 2),
    ("account-and-contact", r#"{"kind":"account-and-contact","username":"ana"}"#, 2),
    ("reset", r#"{"kind":"reset","username":"ana"}"#, 1),
];

fn create_key(db: &Path) -> String {
    done(db, &["create", HOST, "--allow", "account,contact,reset"]).trim_end().to_owned()
}

/// A request for an invite of this kind, on a connection that lasts.
fn post(key: &str, kind: usize) -> String {
    let body = KINDS[kind % KINDS.len()].1;
    let length = body.len();
    format!(
        "POST /invites_api HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn try_ask(stream: &mut BufReader<TcpStream>, request: &str) -> std::io::Result<Reply> {
    stream.get_mut().write_all(request.as_bytes())?;
    read_reply(stream, false)
}

/// Asks for one invite.
fn create(server: &Server, key: &str, kind: usize) -> Reply {
    try_ask(&mut BufReader::new(connect(server.addr)), &post(key, kind)).unwrap()
}

/// All 201s that arrived whole: the kind by the token. And the other answers by their status.
#[derive(Default)]
struct Answers {
    made: Mutex<HashMap<String, usize>>,
    others: Mutex<HashMap<u16, usize>>,
    stop: AtomicBool,
}

impl Answers {
    /// Asks for invites of all kinds until it is told to stop or the server goes; what does not get through is tried again.
    fn ask_on(&self, addr: SocketAddr, key: &str, first: usize) {
        let open = || -> std::io::Result<BufReader<TcpStream>> {
            let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            Ok(BufReader::new(stream))
        };
        let mut kind = first;
        while let (false, Ok(mut stream)) = (self.stop.load(Ordering::Relaxed), open()) {
            while !self.stop.load(Ordering::Relaxed) {
                kind = (kind + 1) % KINDS.len();
                let Ok(reply) = try_ask(&mut stream, &post(key, kind)) else { break };
                if reply.status == 201 {
                    assert!(self.made.lock().unwrap().insert(reply.token(), kind).is_none(), "a token came twice");
                } else {
                    *self.others.lock().unwrap().entry(reply.status).or_default() += 1;
                }
            }
        }
    }

    fn count(&self) -> usize {
        self.made.lock().unwrap().len()
    }

    fn wait_for(&self, count: usize) {
        wait_until("invites to be made", || self.count() >= count);
    }

    fn others(&self) -> HashMap<u16, usize> {
        self.others.lock().unwrap().clone()
    }
}

/// So many clients ask for invites while this is done.
fn under_load<T>(addrs: &[SocketAddr], key: &str, clients: usize, answers: &Answers, body: impl FnOnce() -> T) -> T {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    answers.stop.store(false, Ordering::Relaxed);
    thread::scope(|scope| {
        for client in 0..clients {
            let addr = addrs[client % addrs.len()];
            scope.spawn(move || answers.ask_on(addr, key, client));
        }
        let _stop = Stop(&answers.stop);
        body()
    })
}

/// Every answered invite is there with all that the XMPP server reads, no other is half there, and the file is sound.
fn assert_whole(db: &Path, answers: &Answers) {
    let conn = Connection::open(db).unwrap();
    conn.busy_timeout(PATIENCE).unwrap();
    let check: String = conn.query_row("PRAGMA quick_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    // In one transaction: others may go on writing.
    conn.execute_batch("BEGIN").unwrap();
    let mut query = conn.prepare("SELECT token, kind FROM invited_invite").unwrap();
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let stored: HashMap<String, String> = rows.map(Result::unwrap).collect();
    let mut query = conn.prepare("SELECT key, count(*) FROM prosody WHERE key <> '' GROUP BY key").unwrap();
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let served: HashMap<String, i64> = rows.map(Result::unwrap).collect();
    for (token, kind) in &stored {
        let expected = KINDS.iter().find(|(name, _, _)| name == kind).unwrap().2;
        assert_eq!(served.get(token), Some(&expected), "{token}, {kind}, is half there");
    }
    assert_eq!(served.len(), stored.len(), "there are rows of Prosody's that we do not know");
    for (token, kind) in &*answers.made.lock().unwrap() {
        let stored = stored.get(token).unwrap_or_else(|| panic!("{token} was answered and is not there"));
        assert_eq!(stored, KINDS[*kind].0);
    }
}

fn run_quietly(program: &str, args: &[&str]) -> bool {
    let command = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    command.is_ok_and(|status| status.success())
}

fn is_root() -> bool {
    available("root", rustix::process::geteuid().is_root())
}

/// A file system of its own, taken away when this is dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(folder: &Folder, args: &[&str]) -> Option<Mount> {
        let at = folder.file("disk");
        std::fs::create_dir(&at).unwrap();
        let at_text = at.to_str().unwrap().to_owned();
        run_quietly("mount", &[args, &[&at_text]].concat()).then(|| Mount(at))
    }

    fn db(&self) -> PathBuf {
        self.0.join("invited.sqlite")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run_quietly("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

/// Writes until there is no room left.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    for size in [65_536, 4_096, 512, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

/// A server whose private socket is not in the folder of its database.
fn start_apart(folder: &Folder, db: &Path) -> Server {
    let args = ["serve", "--listen", "127.0.0.1:0", "--db"];
    Server::spawn(Command::new(PROGRAM).args(args).arg(db).env("TMPDIR", folder.path()))
}

#[test]
fn a_full_disk_refuses_invites_for_as_long_as_it_is_full_and_breaks_nothing() {
    let folder = Folder::new();
    if !is_root() {
        return;
    }
    let mount = Mount::new(&folder, &["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).expect("a small disk");
    let db = mount.db();
    let key = create_key(&db);
    let server = start_apart(&folder, &db);
    let token = create(&server, &key, 0).token();
    let answers = Answers::default();
    let filler = mount.0.join("filler");
    let mut keys = 1;
    for round in 0..3 {
        under_load(&[server.addr], &key, 8, &answers, || {
            answers.wait_for(answers.count() + 20);
            fill(&filler);
            wait_until("a refusal", || answers.others().get(&503).is_some_and(|count| *count > 20 * (round + 1)));
            assert_eq!(server.get(&format!("/invite?{token}")).status, 200);
        });
        assert!(answers.others().keys().all(|status| *status == 503), "{:?}", answers.others());
        let refused = create(&server, &key, 1);
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
        assert!(server.log_with("reason=unavailable").contains("the disk is full"));
        let stderr = fails(&db, 1, &["backup", mount.0.join("copy").to_str().unwrap()]);
        assert!(stderr.contains("the disk is full (make room"), "{stderr}");
        // There may be room for this one in the log.
        let created = run(&db, &["create", HOST]);
        keys += usize::from(created.status.success());
        let stderr = String::from_utf8(created.stderr).unwrap();
        assert!(created.status.success() || stderr.contains("the disk is full (make room"), "{stderr}");
        let names = std::fs::read_dir(&mount.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names: Vec<String> = names.filter(|name| name.contains("copy")).collect();
        assert!(names.is_empty(), "{names:?}");
        std::fs::remove_file(&filler).unwrap();
        assert_eq!(create(&server, &key, 2).status, 201);
        assert_whole(&db, &answers);
    }
    assert_eq!(done(&db, &["list", HOST]).lines().count(), keys, "a key was made that nobody saw");
}

#[test]
fn while_another_process_keeps_the_file_locked_pages_work_and_each_wish_is_refused_in_time() {
    let folder = Folder::new();
    let key = create_key(&folder.db());
    let server = Server::start(&folder.db());
    let token = create(&server, &key, 0).token();
    let answers = Answers::default();
    let threads = server.status_figure("Threads");
    let holder = Connection::open(folder.db()).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    // One who asks alone is given time; the second comes while the first waits, and does not wait for twice as long.
    let start = Instant::now();
    thread::scope(|scope| {
        for pause in [0, 2] {
            let (server, key) = (&server, &key);
            scope.spawn(move || {
                thread::sleep(Duration::from_secs(pause));
                assert_eq!(create(server, key, 0).status, 503);
            });
        }
    });
    assert!(start.elapsed() < Duration::from_secs(9), "refused after {:?}", start.elapsed());
    // A crowd is answered earlier, and leaves room for those who only look.
    under_load(&[server.addr], &key, 60, &answers, || {
        let mut longest = Duration::ZERO;
        for _ in 0..40 {
            let start = Instant::now();
            assert_eq!(server.get(&format!("/invite?{token}")).status, 200);
            longest = longest.max(start.elapsed());
        }
        eprintln!("the slowest page took {longest:?}, {:?} wishes were refused", answers.others());
        wait_until("refusals", || answers.others().get(&503).is_some_and(|count| *count > 60));
        holder.execute_batch("ROLLBACK").unwrap();
        answers.wait_for(200);
    });
    assert!(answers.others().keys().all(|status| *status == 503), "{:?}", answers.others());
    assert!(server.log().contains("another process keeps it locked"));
    assert_whole(&folder.db(), &answers);
    wait_until("threads to end", || server.status_figure("Threads") <= threads);
}

/// Something is done to the file under a running server: from then on there is no answer but 503, and the log says why.
fn taken_away(what: &str, act: impl FnOnce(&Path), log: &str) -> (Folder, PathBuf, Server, String, Answers) {
    let folder = Folder::new();
    std::fs::create_dir(folder.file("sub")).unwrap();
    let db = folder.file("sub/invited.sqlite");
    let key = create_key(&db);
    let server = start_apart(&folder, &db);
    let answers = Answers::default();
    let token = create(&server, &key, 0).token();
    let (counted, refused) = under_load(&[server.addr], &key, 4, &answers, || {
        answers.wait_for(40);
        act(&db);
        // These began after the deed.
        let replies = [create(&server, &key, 0), server.get(&format!("/invite?{token}"))];
        // Whatever was on its way has arrived when each client has heard of it.
        (answers.count(), replies)
    });
    for reply in refused {
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")), "{what}");
    }
    // At most one answer of each client was on its way.
    assert!(answers.count() <= counted + 4, "{what}: {} and {counted}", answers.count());
    assert!(answers.others().keys().all(|status| *status == 503), "{what}: {:?}", answers.others());
    let found = server.log_with("reason=unavailable");
    assert!(found.contains(log), "{what}: {found}");
    (folder, db, server, key, answers)
}

fn with(db: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", db.display()))
}

#[test]
fn nothing_is_answered_from_a_file_that_was_removed() {
    let remove = |db: &Path, suffixes: &[&str]| {
        for suffix in suffixes {
            std::fs::remove_file(with(db, suffix)).unwrap();
        }
    };
    for (what, suffixes) in [("the database", &[""][..]), ("all", &["", "-wal", "-shm"])] {
        let (.., mut server, _, _) = taken_away(what, |db| remove(db, suffixes), "has gone while it was open");
        assert!(server.is_alive());
    }
    let (.., mut server, _, _) =
        taken_away("its folder", |db| std::fs::remove_dir_all(db.parent().unwrap()).unwrap(), "has gone");
    assert!(server.is_alive());
}

#[test]
fn no_invite_is_answered_whose_log_was_removed() {
    let folder = Folder::new();
    let key = create_key(&folder.db());
    let server = Server::start(&folder.db());
    assert_eq!(create(&server, &key, 0).status, 201);
    std::fs::remove_file(with(&folder.db(), "-wal")).unwrap();
    assert_eq!(create(&server, &key, 0).status, 503);
    // Not even where another has come in its place.
    std::fs::write(with(&folder.db(), "-wal"), "").unwrap();
    assert_eq!(create(&server, &key, 0).status, 503);
    assert!(server.log_with("reason=unavailable").contains("-wal has gone"), "{}", server.log());
}

#[test]
fn a_file_that_was_moved_away_can_come_back() {
    let away = |db: &Path| std::fs::rename(db, with(db, ".away")).unwrap();
    let (_folder, db, server, key, answers) = taken_away("moved", away, "has gone while it was open");
    std::fs::rename(with(&db, ".away"), &db).unwrap();
    assert_eq!(create(&server, &key, 0).status, 201);
    assert_whole(&db, &answers);
}

#[test]
fn a_server_ends_when_another_file_has_taken_the_place_of_its_own() {
    // One that was brought by hand, and one on which somebody works already, so that it has a log of its own.
    for used in [false, true] {
        let replace = |db: &Path| {
            let copy = with(db, ".copy");
            done(db, &["backup", copy.to_str().unwrap()]);
            std::fs::rename(copy, db).unwrap();
            if used {
                for suffix in ["-wal", "-shm"] {
                    std::fs::remove_file(with(db, suffix)).unwrap();
                }
                done(db, &["create", HOST]);
            }
        };
        let (folder, db, mut server, key, _) = taken_away("replaced", replace, "another file has taken the place of");
        assert_eq!(server.wait(), Some(75));
        let log = server.log();
        assert!(log.lines().last().unwrap().starts_with("invited: another file has taken the place of"), "{log}");
        // As its supervisor does.
        let server = start_apart(&folder, &db);
        assert_eq!(create(&server, &key, 0).status, 201);
    }
}

#[test]
fn a_mode_that_forbids_writing_stops_nobody_who_writes_already_and_is_named_to_others() {
    let folder = Folder::new();
    if !is_root() {
        return;
    }
    let nobody = AsUser::new(&folder, 64_001);
    let db = nobody.home.join("invited.sqlite");
    let key = nobody.create_key(&db);
    let mode = |mode: u32| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&db, mode).unwrap();
    };
    let server = Server::spawn(&mut nobody.serve(&db));
    mode(0o444);
    let answers = Answers::default();
    under_load(&[server.addr], &key, 4, &answers, || answers.wait_for(50));
    assert!(answers.others().is_empty(), "{:?}", answers.others());
    assert_whole(&db, &answers);
    let refused = nobody.command(&["create", HOST, "--db", db.to_str().unwrap()]).output().unwrap();
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(stderr.contains("permission denied (run as a user"), "{stderr}");
    // Nobody may so much as look into the folder.
    mode(0o600);
    let locked = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    std::fs::set_permissions(&nobody.home, locked).unwrap();
    assert_eq!(create(&server, &key, 0).status, 503);
    assert!(server.log_with("reason=unavailable").contains("give access to its folder"), "{}", server.log());
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&nobody.home, open).unwrap();
    assert_eq!(create(&server, &key, 0).status, 201);
}

/// The program as a user of its own, in a folder of that user's.
struct AsUser {
    id: String,
    program: PathBuf,
    home: PathBuf,
}

impl AsUser {
    fn new(folder: &Folder, id: u32) -> AsUser {
        let (program, home) = (folder.file("program"), folder.file("home"));
        // Another process makes the copy: see `cli.rs`.
        assert!(Command::new("cp").arg(PROGRAM).arg(&program).status().unwrap().success());
        std::fs::create_dir(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(id), Some(id)).unwrap();
        AsUser { id: id.to_string(), program, home }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &self.id, "--regid", &self.id, "--clear-groups"]).arg(&self.program).args(args);
        command.env("TMPDIR", &self.home);
        command
    }

    fn create_key(&self, db: &Path) -> String {
        let args = ["create", HOST, "--allow", "account,contact,reset", "--db", db.to_str().unwrap()];
        String::from_utf8(self.command(&args).output().unwrap().stdout).unwrap().trim_end().to_owned()
    }

    fn serve(&self, db: &Path) -> Command {
        self.command(&["serve", "--listen", "127.0.0.1:0", "--db", db.to_str().unwrap()])
    }
}

#[test]
fn a_disk_that_takes_no_more_writes_refuses_invites_and_has_all_that_were_answered() {
    let folder = Folder::new();
    if !is_root() {
        return;
    }
    let image = folder.file("image");
    std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let image = image.to_str().unwrap();
    let mount = run_quietly("mkfs.ext4", &["-q", "-F", image]).then(|| Mount::new(&folder, &["-o", "loop", image]));
    let Some(mount) = mount.flatten() else {
        eprintln!("skipped: needs a loop device, which is not there");
        return;
    };
    let db = mount.db();
    let key = create_key(&db);
    let server = start_apart(&folder, &db);
    let answers = Answers::default();
    under_load(&[server.addr], &key, 4, &answers, || answers.wait_for(60));
    // As if a write had failed: ext4 then takes no more. (Between two loads: a sync in the very moment of this is the kernel's to answer.)
    assert!(run_quietly("mount", &["-o", "remount,abort", mount.0.to_str().unwrap()]));
    let made = answers.made.lock().unwrap().len();
    under_load(&[server.addr], &key, 4, &answers, || {
        wait_until("a refusal", || answers.others().get(&503).is_some_and(|count| *count > 20));
    });
    assert!(answers.others().keys().all(|status| *status == 503), "{:?}", answers.others());
    assert_eq!(answers.made.lock().unwrap().len(), made, "answered by a disk that takes nothing");
    let log = server.log_with("reason=unavailable");
    assert!(log.contains("look at the disk") || log.contains("must be writable"), "{log}");
    drop(server);
    // The machine is started anew: what the disk has is all there is.
    assert!(run_quietly("umount", &[mount.0.to_str().unwrap()]));
    assert!(run_quietly("mount", &["-o", "loop", image, mount.0.to_str().unwrap()]));
    assert_whole(&db, &answers);
}

/// Fills the file from this page on with what SQLite has not written there. (By hand, since this process has no connection to it.)
fn damage(db: &Path, from_page: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(db).unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    assert!(pages > from_page + 10, "{pages} pages");
    for page in from_page..pages {
        file.write_all_at(&[0x5a; 4096], page * 4096).unwrap();
    }
}

#[test]
fn a_damaged_file_is_called_so_and_gives_no_wrong_answer() {
    for running in [false, true] {
        let folder = Folder::new();
        let db = folder.db();
        let key = create_key(&db);
        // The schema and the roots of all tables, without which the file can't be opened.
        let whole = db.metadata().unwrap().len() / 4096;
        let server = Server::start(&db);
        let answers = Answers::default();
        under_load(&[server.addr], &key, 4, &answers, || answers.wait_for(300));
        let made: Vec<String> = answers.made.lock().unwrap().keys().cloned().collect();
        drop(server);
        // Nothing is left in the log.
        done(&db, &["list", HOST]);
        if !running {
            damage(&db, whole);
        }
        let mut server = Server::start(&db);
        if running {
            assert_eq!(create(&server, &key, 0).status, 201);
            damage(&db, whole);
        }
        let mut damaged = 0;
        for token in &made {
            let page = server.get(&format!("/invite?{token}"));
            assert!(matches!(page.status, 200 | 500), "{page:?}");
            assert!(page.status == 500 || page.body.contains(token.as_str()), "{page:?}");
            damaged += usize::from(page.status == 500);
        }
        for kind in 0..40 {
            let reply = create(&server, &key, kind);
            assert!(matches!(reply.status, 201 | 500), "{reply:?}");
            if reply.status == 201 {
                assert_eq!(server.get(&format!("/invite?{}", reply.token())).status, 200);
            }
            damaged += usize::from(reply.status == 500);
        }
        assert!(damaged > 0, "nobody has noticed (running: {running})");
        let log = server.log_with("it is damaged (restore a backup)");
        assert!(server.is_alive() && !log.contains("panicked"), "{log}");
        let stderr = fails(&db, 1, &["backup", folder.file("copy").to_str().unwrap()]);
        assert!(stderr.contains("damaged"), "{stderr}");
    }
}

#[test]
fn a_kill_at_any_moment_loses_nothing_that_was_answered_and_leaves_nothing_half_done() {
    let folder = Folder::new();
    let db = folder.db();
    let key = create_key(&db);
    let answers = Answers::default();
    for round in 0..50_u64 {
        let mut server = Server::start(&db);
        let before = answers.count();
        under_load(&[server.addr], &key, 6, &answers, || {
            answers.wait_for(before + 1);
            // Different each time, and the same in each run of the tests.
            thread::sleep(Duration::from_micros((round * 7_919) % 40_000));
            server.signal("KILL");
            server.wait();
        });
        if round % 5 == 4 {
            assert_whole(&db, &answers);
        }
    }
    assert!(answers.others().is_empty(), "{:?}", answers.others());
    eprintln!("{} invites were answered in 50 lives", answers.count());
}

#[test]
fn no_answer_leaves_before_the_disk_has_what_it_says() {
    if !available("strace", run_quietly("strace", &["-V"])) {
        return;
    }
    let folder = Folder::new();
    let db = folder.db();
    let key = create_key(&db);
    let trace = folder.file("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-s", "6000", "-e", "trace=pwrite64,fdatasync,write,sendto", "-e", "signal=none", "-o"]);
    command.arg(&trace).arg(PROGRAM).args(["serve", "--listen", "127.0.0.1:0", "--db"]).arg(&db);
    let mut server = Server::spawn(command.env("TMPDIR", folder.path()));
    let answers = Answers::default();
    under_load(&[server.addr], &key, 6, &answers, || answers.wait_for(60));
    // strace passes on what ends it only to itself.
    let child = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.id())).unwrap();
    assert!(run_quietly("kill", &["-TERM", child.trim()]));
    server.wait();
    let trace = std::fs::read_to_string(trace).unwrap();
    let order = Order::read(&trace);
    for token in answers.made.lock().unwrap().keys() {
        order.check(token);
    }
}

/// What strace has seen, in its order.
struct Order<'a> {
    lines: Vec<&'a str>,
    /// Syncs of the log that went well: the lines at which each began and ended.
    syncs: Vec<(usize, usize)>,
}

impl<'a> Order<'a> {
    fn read(trace: &'a str) -> Order<'a> {
        let lines: Vec<&str> = trace.lines().collect();
        let mut began: HashMap<&str, usize> = HashMap::new();
        let mut syncs = Vec::new();
        for (at, line) in lines.iter().enumerate() {
            let (process, call) = line.split_once(' ').unwrap();
            let call = call.trim_start();
            if call.starts_with("fdatasync(") && call.contains("-wal>") {
                if call.ends_with("= 0") {
                    syncs.push((at, at));
                } else {
                    began.insert(process, at);
                }
            } else if call.starts_with("<... fdatasync resumed>")
                && let (Some(start), true) = (began.remove(process), call.ends_with("= 0"))
            {
                syncs.push((start, at));
            }
        }
        assert!(!syncs.is_empty(), "no sync was seen: {}", lines[..lines.len().min(20)].join("\n"));
        Order { lines, syncs }
    }

    fn check(&self, token: &str) {
        let says = |line: &str| line.contains("HTTP/1.1 201") && line.contains(token);
        let answered = self.lines.iter().position(|line| says(line)).expect("an answer");
        let writes = |line: &str| line.contains(" pwrite64(") && line.contains("-wal>") && line.contains(token);
        let seen = |end: usize| self.lines[..end].iter().rposition(|line| writes(line));
        // The first time that it was written to the log; later ones belong to pages that changed again.
        let first = self.lines.iter().position(|line| writes(line)).expect("a write to the log");
        assert!(first < answered && seen(answered).is_some(), "{token} was answered before it was written");
        // Its own commit ends with the last page that is written before the sync that comes next.
        let covered = self.syncs.iter().any(|(start, end)| *start > first && *end < answered);
        assert!(covered, "{token} was answered (line {answered}) without a sync after it was written (line {first})");
    }
}

#[test]
fn a_copy_of_file_and_log_at_any_moment_has_every_invite_that_was_answered_before() {
    let folder = Folder::new();
    let db = folder.db();
    let key = create_key(&db);
    let server = Server::start(&db);
    let answers = Answers::default();
    under_load(&[server.addr], &key, 4, &answers, || {
        for moment in 1..=40 {
            answers.wait_for(moment * 5);
            let then = Answers { made: Mutex::new(answers.made.lock().unwrap().clone()), ..Answers::default() };
            let copy = folder.file(&format!("copy-{moment}"));
            // The two are no copy of one moment if the log has started over between them, which its first bytes tell.
            let log_of = |db: &Path| std::fs::read(with(db, "-wal")).unwrap()[..32].to_vec();
            loop {
                let log = log_of(&db);
                for suffix in ["", "-wal"] {
                    // By another process, as everything that opens the file by hand.
                    let (from, to) = (with(&db, suffix), with(&copy, suffix));
                    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
                }
                if log_of(&copy) == log {
                    break;
                }
                eprintln!("the log started over");
            }
            assert_whole(&copy, &then);
        }
    });
    assert!(answers.others().is_empty());
}

#[test]
fn two_servers_on_one_file_under_load_lose_nothing() {
    let folder = Folder::new();
    let db = folder.db();
    let key = create_key(&db);
    let (one, two) = (Server::start(&db), Server::start(&db));
    let answers = Answers::default();
    under_load(&[one.addr, two.addr], &key, 12, &answers, || {
        answers.wait_for(600);
        done(&db, &["prune"]);
        done(&db, &["backup", folder.file("copy").to_str().unwrap()]);
        answers.wait_for(1_200);
    });
    assert!(answers.others().is_empty(), "{:?}", answers.others());
    assert_whole(&db, &answers);
    for server in [&one, &two] {
        assert!(server.log().matches("status=201").count() > 100, "one of them did nothing");
    }
}

#[test]
fn a_machine_without_files_to_open_is_survived() {
    let folder = Folder::new();
    let key = create_key(&folder.db());
    let mut server = Server::start(&folder.db());
    let token = create(&server, &key, 0).token();
    let answers = Answers::default();
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().count();
    // The soft limit alone, which can be raised again.
    let limit = |files: usize| {
        assert!(run_quietly("prlimit", &["--pid", &server.id().to_string(), &format!("--nofile={files}:")]));
    };
    let idle: Vec<TcpStream> = (0..30).map(|_| connect(server.addr)).collect();
    limit(open + 12);
    let missed = AtomicUsize::new(0);
    under_load(&[server.addr], &key, 20, &answers, || {
        for _ in 0..40 {
            // A connection may have to give way, but the next one gets through.
            let request = format!("GET /invite?{token} HTTP/1.1\r\nHost: test\r\n\r\n");
            match try_ask(&mut BufReader::new(connect(server.addr)), &request) {
                Ok(reply) => assert!(matches!(reply.status, 200 | 503), "{reply:?}"),
                Err(_) => drop(missed.fetch_add(1, Ordering::Relaxed)),
            }
        }
        limit(1_024);
        answers.wait_for(answers.count() + 50);
    });
    drop(idle);
    assert!(server.is_alive());
    let statuses = answers.others();
    assert!(statuses.keys().all(|status| matches!(status, 500 | 503)), "{statuses:?}");
    eprintln!("{} made, others {statuses:?}, {missed:?} of 40 pages got no answer", answers.count());
    assert_eq!(server.get(&format!("/invite?{token}")).status, 200);
    assert!(!server.log().contains("panicked"), "{}", server.log());
    assert_whole(&folder.db(), &answers);
}

#[test]
fn a_machine_without_threads_to_start_is_survived() {
    let folder = Folder::new();
    if !is_root() {
        return;
    }
    // The limit counts all threads of a user: one whom nobody else has.
    let nobody = AsUser::new(&folder, 64_002);
    let db = nobody.home.join("invited.sqlite");
    let key = nobody.create_key(&db);
    let mut server = Server::spawn(&mut nobody.serve(&db));
    let threads = server.status_figure("Threads");
    // Set by that user itself, which needs no right that root may lack.
    let limit = |threads: u64| {
        let (user, process) = (nobody.id.as_str(), server.id().to_string());
        let user = ["--reuid", user, "--regid", user, "--clear-groups", "prlimit"];
        assert!(run_quietly("setpriv", &[&user[..], &["--pid", &process, &format!("--nproc={threads}:")]].concat()));
    };
    let answers = Answers::default();
    limit(threads + 4);
    under_load(&[server.addr], &key, 30, &answers, || {
        answers.wait_for(100);
        wait_until("a thread that can't be started", || server.log().contains("event=thread-failed"));
        limit(4_096);
        answers.wait_for(answers.count() + 100);
    });
    assert!(server.is_alive() && !server.log().contains("panicked"), "{}", server.log());
    assert!(answers.others().keys().all(|status| *status == 503), "{:?}", answers.others());
    assert_eq!(create(&server, &key, 0).status, 201);
    assert_whole(&db, &answers);
}

#[test]
fn a_server_that_was_stopped_for_a_while_goes_on() {
    let folder = Folder::new();
    let key = create_key(&folder.db());
    let server = Server::start(&folder.db());
    let answers = Answers::default();
    under_load(&[server.addr], &key, 8, &answers, || {
        answers.wait_for(50);
        server.signal("STOP");
        thread::sleep(Duration::from_secs(5));
        // It may have the write lock at that moment, but not for ever: others get it afterwards.
        server.signal("CONT");
        answers.wait_for(answers.count() + 50);
    });
    assert!(answers.others().is_empty(), "{:?}", answers.others());
    assert_whole(&folder.db(), &answers);
}

#[test]
fn a_flood_does_not_end_a_server_whose_memory_is_limited() {
    let folder = Folder::new();
    let key = create_key(&folder.db());
    let mut command = Command::new("prlimit");
    command.args(["--as=4000000000", PROGRAM, "serve", "--listen", "127.0.0.1:0", "--db"]).arg(folder.db());
    let mut server = Server::spawn(command.env("TMPDIR", folder.path()));
    let answers = Answers::default();
    let idle: Vec<TcpStream> = (0..600).map(|_| connect(server.addr)).collect();
    under_load(&[server.addr], &key, 100, &answers, || answers.wait_for(1_000));
    drop(idle);
    assert!(server.is_alive() && !server.log().contains("panicked"), "{}", server.log());
    assert!(answers.others().keys().all(|status| *status == 503), "{:?}", answers.others());
    assert_eq!(create(&server, &key, 0).status, 201);
    assert_whole(&folder.db(), &answers);
}

/// Debian's package libfaketime.
pub fn faketime() -> Option<PathBuf> {
    let found = std::fs::read_dir("/usr/lib").ok()?.filter_map(Result::ok);
    let mut found = found.map(|entry| entry.path().join("faketime/libfaketime.so.1")).filter(|path| path.exists());
    let found = found.next();
    available("faketime", found.is_some()).then_some(found).flatten()
}

#[test]
fn a_clock_that_is_set_by_years_upsets_nothing() {
    let Some(library) = faketime() else { return };
    let folder = Folder::new();
    let db = folder.db();
    let offset = folder.file("offset");
    let set = |text: &str| {
        std::fs::write(folder.file("next"), text).unwrap();
        std::fs::rename(folder.file("next"), &offset).unwrap();
    };
    set("+0");
    let limited = done(&db, &["create", HOST, "--per-day", "2"]).trim_end().to_owned();
    let key = create_key(&db);
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "127.0.0.1:0", "--db"]).arg(&db).env("TMPDIR", folder.path());
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &offset).env("FAKETIME_NO_CACHE", "1");
    let mut server = Server::spawn(command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1"));
    let shown = |token: &str| -> Value {
        let bearer = format!("Bearer {key}");
        let reply = server.request("GET", &format!("/invites_api/invites/{token}"), &[("Authorization", &bearer)]);
        serde_json::from_str(&reply.body).unwrap_or_else(|_| panic!("{reply:?}"))
    };
    let page = |token: &str| server.get(&format!("/invite?{token}")).status;
    let limit = |statuses: [u16; 3]| {
        for status in statuses {
            assert_eq!(create(&server, &limited, 0).status, status);
        }
    };
    let today = create(&server, &key, 0).token();
    assert_eq!((page(&today), shown(&today)["state"].as_str()), (200, Some("pending")));
    limit([201, 201, 429]);
    // Ten years on: what was made has expired, what is made is good, and the limit of the day starts over.
    set("+10y");
    assert_eq!((page(&today), shown(&today)["state"].as_str()), (410, Some("expired")));
    let then = create(&server, &key, 1).token();
    assert_eq!(page(&then), 200);
    limit([201, 201, 429]);
    // Back again, to the day after the next: the invite of the future is good, and nobody waits for ten years.
    set("+2d");
    assert_eq!(page(&today), 200);
    assert_eq!(page(&then), 200);
    limit([201, 201, 429]);
    // A machine that has lost its clock.
    set("@1970-01-02 00:00:00");
    assert_eq!(create(&server, &key, 2).status, 201);
    limit([201, 201, 429]);
    set("+0");
    assert_eq!(create(&server, &key, 3).status, 201);
    assert!(server.is_alive() && !server.log().contains("panicked"), "{}", server.log());
    assert_whole(&db, &Answers::default());
}
