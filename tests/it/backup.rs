//! Copies of the database: complete although all goes on, and put back without a loss, or not at all.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rusqlite::Connection;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::harness::{Folder, PATIENCE, PROGRAM, Server, available, create_key, done, fails, run};

/// Every file of a folder with its content.
fn files(folder: &Folder) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.metadata().unwrap().is_file());
    files.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect()
}

fn tokens(db: &Path, sql: &str) -> HashSet<String> {
    let conn = Connection::open(db).unwrap();
    let check: String = conn.query_row("PRAGMA quick_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok", "{}", db.display());
    let mut query = conn.prepare(sql).unwrap();
    query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

const OURS: &str = "SELECT token FROM invited_invite";
const PROSODYS: &str = "SELECT key FROM prosody WHERE store = 'invite_token'";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn make_invite(db: &Path) -> String {
    let link = done(db, &["invite", "example.com"]);
    link.trim_end().split_once('?').unwrap().1.to_owned()
}

#[test]
fn a_backup_under_load_has_all_that_was_answered_before_it_began_and_holds_nobody_up() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "example.com");
    // So many that the copy takes more than one step.
    let conn = Connection::open(folder.db()).unwrap();
    conn.execute_batch(
        "PRAGMA synchronous = OFF;
         INSERT INTO invited_invite (token, host, kind, source, created_at, expires_at, note)
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         SELECT 'old-' || i, 'other.example', 'account', 'cli', 1, 9999999999, hex(randomblob(40)) FROM n;
         INSERT INTO prosody SELECT host, '', 'invite_token', token, 'json', '{}' FROM invited_invite",
    )
    .unwrap();
    let server = Server::start(&folder.db());
    let answered = Mutex::new(HashSet::new());
    let (stop, failed) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match server.get(&format!("/invites_api?key={key}")) {
                        reply if reply.status == 201 => drop(answered.lock().unwrap().insert(reply.token())),
                        _ => drop(failed.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            });
        }
        let deadline = Instant::now() + PATIENCE;
        for round in 1..=4 {
            while answered.lock().unwrap().len() < 50 * round && Instant::now() < deadline {
                std::thread::yield_now();
            }
            let before = answered.lock().unwrap().clone();
            let copy = folder.file(&format!("copy-{round}"));
            assert_eq!(done(&folder.db(), &["backup", text(&copy)]), "");
            let during = answered.lock().unwrap().len() - before.len();
            let (ours, prosodys) = (tokens(&copy, OURS), tokens(&copy, PROSODYS));
            assert!(before.is_subset(&ours), "{} are missing", before.difference(&ours).count());
            assert!(ours == prosodys, "the copy is of two moments");
            eprintln!("round {round}: {} invites in the copy, {during} made meanwhile", ours.len());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(failed.into_inner(), 0);
    assert!(!files(&folder).keys().any(|name| name.contains(".part")), "{:?}", files(&folder).keys());
}

#[test]
fn a_backup_touches_no_file_that_is_there_and_leaves_nothing_half_done() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let taken = folder.file("taken");
    std::fs::write(&taken, "precious").unwrap();
    symlink("nowhere", folder.file("link")).unwrap();
    std::fs::create_dir(folder.file("folder")).unwrap();
    let before = files(&folder);
    for (name, why) in [
        ("taken", "choose another name"),
        ("link", "choose another name"),
        ("folder", "it is a folder"),
        ("no/such/copy", "no/such"),
        ("invited.sqlite", "choose another name"),
    ] {
        let stderr = fails(&folder.db(), 1, &["backup", text(&folder.file(name))]);
        assert!(stderr.contains(why) && stderr.contains(name), "{stderr}");
    }
    assert_eq!(files(&folder), before);
    let stderr = fails(&folder.file("missing"), 1, &["backup", text(&folder.file("copy"))]);
    assert!(stderr.contains("missing") && !folder.file("copy").exists(), "{stderr}");
}

#[test]
fn a_backup_is_for_its_owner_alone_and_one_plain_file() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let copy = folder.file("copy");
    let script = format!("umask 0; exec {PROGRAM} backup {} --db {}", copy.display(), folder.db().display());
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let conn = Connection::open(&copy).unwrap();
    let mode: String = conn.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "delete");
    let names: Vec<String> = files(&folder).into_keys().filter(|name| name.starts_with("copy")).collect();
    assert_eq!(names, ["copy"]);
}

#[test]
fn what_was_restored_is_served_and_the_old_file_is_kept_with_its_owner_and_mode() {
    let folder = Folder::new();
    let db = folder.db();
    let key = create_key(&db, "example.com");
    let early = make_invite(&db);
    let copy = folder.file("copy");
    done(&db, &["backup", text(&copy)]);
    // Some of it is still in the log when the old file is kept, as after a kill.
    let mut server = Server::start(&db);
    let late = server.get(&format!("/invites_api?key={key}")).token();
    server.signal("KILL");
    server.wait();
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        chown(&db, Some(65_533), Some(65_532)).unwrap();
    }
    std::fs::set_permissions(&db, std::fs::Permissions::from_mode(0o664)).unwrap();

    let printed = done(&db, &["restore", text(&copy)]);
    let kept = folder.file("invited.sqlite.before-restore");
    assert_eq!(printed, format!("the old database is kept as {}\n", kept.display()));
    assert_eq!(tokens(&kept, OURS), HashSet::from([early.clone(), late.clone()]));
    let found = db.metadata().unwrap();
    assert_eq!(found.mode() & 0o777, 0o664);
    if is_root {
        assert_eq!((found.uid(), found.gid()), (65_533, 65_532));
    }
    assert_eq!(copy.metadata().unwrap().mode() & 0o777, 0o600);

    let server = Server::start(&db);
    assert_eq!(server.get(&format!("/invite?{early}")).status, 200);
    assert_eq!(server.get(&format!("/invite?{late}")).status, 404);
    let new = server.get(&format!("/invites_api?key={key}")).token();
    // The triggers have come along: what Prosody deletes was used.
    let conn = Connection::open(&db).unwrap();
    conn.busy_timeout(PATIENCE).unwrap();
    assert_eq!(conn.execute("DELETE FROM prosody WHERE key = ?1", [&early]).unwrap(), 1);
    assert_eq!(server.get(&format!("/invite?{early}")).status, 410);
    assert_eq!(server.get(&format!("/invite?{new}")).status, 200);
    drop((server, conn));

    // A second time: nothing that is kept is written over.
    assert!(done(&db, &["restore", text(&copy)]).ends_with(".before-restore-2\n"));
    assert_eq!(tokens(&kept, OURS), HashSet::from([early.clone(), late]));
    assert_eq!(tokens(&folder.file("invited.sqlite.before-restore-2"), OURS), HashSet::from([early.clone(), new]));
    assert_eq!(tokens(&db, OURS), HashSet::from([early]));
    assert!(!files(&folder).keys().any(|name| name.contains(".part")), "{:?}", files(&folder).keys());
}

#[test]
fn a_copy_that_is_broken_newer_or_none_of_ours_is_refused_and_nothing_changes() {
    let folder = Folder::new();
    let db = folder.db();
    create_key(&db, "example.com");
    for _ in 0..40 {
        make_invite(&db);
    }
    let good = folder.file("good");
    done(&db, &["backup", text(&good)]);
    let bytes = std::fs::read(&good).unwrap();
    // All but the head and the schema.
    let mut broken = bytes.clone();
    broken[8 * 4096..].fill(0x5a);
    std::fs::write(folder.file("broken"), broken).unwrap();
    std::fs::write(folder.file("short"), &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(folder.file("text"), "no database").unwrap();
    std::fs::write(folder.file("empty"), "").unwrap();
    std::fs::copy(&good, folder.file("newer")).unwrap();
    let newer = Connection::open(folder.file("newer")).unwrap();
    newer.execute("UPDATE invited_meta SET value = '9999' WHERE name = 'schema'", []).unwrap();
    drop(newer);
    let other = Connection::open(folder.file("other")).unwrap();
    other.execute_batch("CREATE TABLE prosody (host, user, store, key, type, value)").unwrap();
    drop(other);
    let before = files(&folder);
    for (name, why) in [
        ("broken", "damaged"),
        ("short", "damaged"),
        ("text", "not an SQLite database"),
        ("empty", "not an SQLite database"),
        ("newer", "9999"),
        ("other", "no database of invited's"),
        ("missing", "No such file"),
        ("invited.sqlite", "the database itself"),
        (".", "not a file"),
    ] {
        let stderr = fails(&db, 1, &["restore", text(&folder.file(name))]);
        assert!(stderr.contains(why) && stderr.contains(name), "{name}: {stderr}");
        assert!(files(&folder) == before, "restoring {name} has changed something");
    }
}

#[test]
fn nothing_is_restored_while_somebody_has_the_database_open() {
    let folder = Folder::new();
    let db = folder.db();
    let key = create_key(&db, "example.com");
    let copy = folder.file("copy");
    done(&db, &["backup", text(&copy)]);
    let server = Server::start(&db);
    let token = server.get(&format!("/invites_api?key={key}")).token();
    let stderr = fails(&db, 1, &["restore", text(&copy)]);
    assert!(stderr.contains(&format!("process {}", server.id())), "{stderr}");
    assert!(stderr.contains("stop invited and the XMPP server"), "{stderr}");
    assert_eq!(server.get(&format!("/invite?{token}")).status, 200);
    // Nor is a database in use taken for a backup.
    let stderr = fails(&folder.file("another"), 1, &["restore", text(&db)]);
    assert!(stderr.contains("invited backup") && !folder.file("another").exists(), "{stderr}");
    drop(server);

    // As an XMPP server that has nothing to do at the moment.
    let conn = Connection::open(&db).unwrap();
    conn.query_row("SELECT count(*) FROM prosody", [], |_| Ok(())).unwrap();
    let stderr = fails(&db, 1, &["restore", text(&copy)]);
    assert!(stderr.contains("stop invited and the XMPP server"), "{stderr}");
    drop(conn);
    assert!(done(&db, &["restore", text(&copy)]).contains("is kept as"));
}

#[test]
fn a_backup_takes_the_place_of_a_damaged_file_or_of_none() {
    let folder = Folder::new();
    let db = folder.db();
    create_key(&db, "example.com");
    let token = make_invite(&db);
    let copy = folder.file("copy");
    done(&db, &["backup", text(&copy)]);
    std::fs::write(&db, "x".repeat(20_000)).unwrap();
    std::fs::write(folder.file("invited.sqlite-wal"), "y".repeat(5_000)).unwrap();
    assert!(done(&db, &["restore", text(&copy)]).contains("is kept as"));
    assert!(std::fs::read(folder.file("invited.sqlite.before-restore")).unwrap().starts_with(b"xxx"));
    assert!(std::fs::read(folder.file("invited.sqlite.before-restore-wal")).unwrap().starts_with(b"yyy"));
    assert_eq!(tokens(&db, OURS), HashSet::from([token.clone()]));

    let new = folder.file("new.sqlite");
    assert_eq!(done(&new, &["restore", text(&copy)]), "");
    assert_eq!(tokens(&new, OURS), HashSet::from([token]));
    assert_eq!(Server::start(&new).get("/").status, 200);
}

#[test]
fn a_damaged_database_is_not_backed_up_as_if_it_were_whole() {
    let folder = Folder::new();
    let db = folder.db();
    create_key(&db, "example.com");
    for _ in 0..40 {
        make_invite(&db);
    }
    let mut bytes = std::fs::read(&db).unwrap();
    bytes[8 * 4096..].fill(0x5a);
    std::fs::write(&db, bytes).unwrap();
    let stderr = fails(&db, 1, &["backup", text(&folder.file("copy"))]);
    assert!(stderr.contains("damaged") && !folder.file("copy").exists(), "{stderr}");
}

#[test]
fn a_database_behind_a_link_is_the_one_that_the_link_leads_to() {
    let folder = Folder::new();
    std::fs::create_dir(folder.file("real")).unwrap();
    symlink("real/invited.sqlite", folder.db()).unwrap();
    std::fs::write(folder.file("real/invited.sqlite"), "").unwrap();
    create_key(&folder.db(), "example.com");
    let token = make_invite(&folder.db());
    let copy = folder.file("copy");
    done(&folder.db(), &["backup", text(&copy)]);
    assert!(done(&folder.db(), &["restore", text(&copy)]).contains("real/invited.sqlite.before-restore"));
    assert!(folder.db().is_symlink());
    assert_eq!(tokens(&folder.file("real/invited.sqlite"), OURS), HashSet::from([token]));
}

/// A pipe that nobody fills would be waited for until the end of days.
#[test]
fn what_is_no_file_is_refused_at_once() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let copy = folder.file("copy.sqlite");
    done(&folder.db(), &["backup", copy.to_str().unwrap()]);
    let pipes = ["pipe", "copy.sqlite-wal"].map(|name| folder.file(name));
    assert!(Command::new("mkfifo").args(&pipes).status().unwrap().success());
    let other = folder.file("other.sqlite");
    for args in [
        ["restore", pipes[0].to_str().unwrap()],
        ["import", pipes[0].to_str().unwrap()],
        ["restore", copy.to_str().unwrap()],
    ] {
        let stderr = fails(&other, 1, &args);
        assert!(stderr.contains("it is not a file"), "{stderr}");
    }
    assert!(!other.exists());
}

/// The user `nobody`.
const NOBODY: u32 = 65_534;

/// Whose a file is, what its mode is, and what is in it.
fn state(path: &Path) -> (u32, u32, u32, Vec<u8>) {
    let found = path.symlink_metadata().unwrap();
    (found.uid(), found.gid(), found.mode(), std::fs::read(path).unwrap())
}

/// A folder of `nobody` with a database, as the user of an XMPP server has one; and one of root's, with a backup and with a
/// database that none of this concerns.
struct Shared {
    folder: Folder,
    copy: std::path::PathBuf,
    victim: std::path::PathBuf,
}

impl Shared {
    fn new() -> Option<Shared> {
        if !available("root", rustix::process::geteuid().is_root()) {
            return None;
        }
        let folder = Folder::new();
        let [copy, victim] = ["copy", "victim.sqlite"].map(|name| folder.file(name));
        std::fs::create_dir(folder.file("shared")).unwrap();
        create_key(&folder.db(), "example.com");
        make_invite(&folder.db());
        done(&folder.db(), &["backup", text(&copy)]);
        done(&folder.db(), &["backup", text(&victim)]);
        let shared = Shared { copy, victim, folder };
        done(&shared.db(), &["restore", text(&shared.copy)]);
        chown(shared.folder.file("shared"), Some(NOBODY), Some(NOBODY)).unwrap();
        chown(shared.db(), Some(NOBODY), Some(NOBODY)).unwrap();
        Some(shared)
    }

    fn db(&self) -> std::path::PathBuf {
        self.folder.file("shared/invited.sqlite")
    }

    /// Does something again and again while `nobody` puts links to the victim in the place of each new file of the folder.
    fn while_files_are_swapped(&self, mut work: impl FnMut(usize)) {
        let stop = AtomicBool::new(false);
        let swapped = AtomicUsize::new(0);
        let shared = self.folder.file("shared");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Rights are those of a thread.
                let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
                set_thread_groups(&[gid]).unwrap();
                set_thread_res_gid(gid, gid, gid).unwrap();
                set_thread_res_uid(uid, uid, uid).unwrap();
                let link = shared.join("link");
                while !stop.load(Ordering::Relaxed) {
                    for entry in std::fs::read_dir(&shared).unwrap().flatten() {
                        let name = entry.file_name().into_string().unwrap();
                        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
                        if name.ends_with(".part") && !is_link {
                            let _ = symlink(&self.victim, &link);
                            if std::fs::rename(&link, entry.path()).is_ok() {
                                swapped.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
            for round in 0..40 {
                work(round);
            }
            stop.store(true, Ordering::Relaxed);
        });
        eprintln!("{} files were swapped", swapped.into_inner());
        for entry in std::fs::read_dir(&shared).unwrap().flatten().filter(|entry| entry.path().is_symlink()) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn root_gives_nothing_of_its_own_away_while_the_owner_of_the_folder_swaps_files() {
    let Some(shared) = Shared::new() else { return };
    let before = state(&shared.victim);
    shared.while_files_are_swapped(|_| {
        run(&shared.db(), &["restore", text(&shared.copy)]);
        // A link that took the name at the last moment leads nowhere that its owner could not go.
        if shared.db().is_symlink() {
            std::fs::remove_file(shared.db()).unwrap();
        }
    });
    assert!(state(&shared.victim) == before, "{:?}", &shared.victim.metadata());
    // Left alone, it is as it should be.
    let _ = std::fs::remove_file(shared.db());
    done(&shared.db(), &["restore", text(&shared.copy)]);
    assert_eq!(shared.db().metadata().unwrap().uid(), NOBODY);
    assert_eq!(tokens(&shared.db(), OURS), tokens(&shared.copy, OURS));

    // A backup that root makes in such a folder, and one that it makes of such a database.
    let wal_or_delete = state(&shared.copy);
    shared.while_files_are_swapped(|round| {
        let to = shared.folder.file(&format!("shared/backup-{round}"));
        run(&shared.folder.db(), &["backup", text(&to)]);
    });
    let of_shared = shared.folder.file("of-shared");
    shared.while_files_are_swapped(|_| {
        if run(&shared.db(), &["backup", text(&of_shared)]).status.success() {
            std::fs::remove_file(&of_shared).unwrap();
        }
    });
    assert!(state(&shared.victim) == before && state(&shared.copy) == wal_or_delete);
    done(&shared.db(), &["backup", text(&of_shared)]);
    assert_eq!((of_shared.metadata().unwrap().uid(), of_shared.metadata().unwrap().mode() & 0o777), (0, 0o600));
    assert_eq!(tokens(&of_shared, OURS), tokens(&shared.copy, OURS));
}

/// The owner of the folder puts links to root's files in it.
#[test]
fn root_reads_and_writes_in_another_users_folder_what_that_user_could() {
    let Some(shared) = Shared::new() else { return };
    let before = state(&shared.victim);
    // The database itself, a backup or its log, a file of a setting: each a link to what is root's.
    let in_shared = |name: &str| shared.folder.file(&format!("shared/{name}"));
    std::fs::rename(shared.db(), in_shared("real")).unwrap();
    symlink(&shared.victim, shared.db()).unwrap();
    for args in [&["create", "example.com"][..], &["prune"], &["list", "example.com"], &["restore", text(&shared.copy)]]
    {
        assert!(!run(&shared.db(), args).status.success(), "{args:?}");
    }
    std::fs::remove_file(shared.db()).unwrap();
    std::fs::rename(in_shared("real"), shared.db()).unwrap();
    symlink(&shared.victim, in_shared("backup")).unwrap();
    fails(&shared.db(), 1, &["restore", text(&in_shared("backup"))]);
    symlink(&shared.victim, in_shared("style.css")).unwrap();
    std::fs::write(&shared.victim, "secret { }").unwrap();
    fails(&shared.db(), 1, &["set", "example.com", "style", text(&in_shared("style.css"))]);
    std::fs::copy(&shared.copy, in_shared("copy")).unwrap();
    symlink(&shared.victim, in_shared("copy-wal")).unwrap();
    fails(&shared.db(), 1, &["restore", text(&in_shared("copy"))]);
    std::fs::remove_file(in_shared("copy-wal")).unwrap();
    assert_eq!(state(&shared.victim).0, before.0);

    // What root itself has put there for itself alone, and no link leads to, it can restore.
    std::fs::set_permissions(in_shared("copy"), std::fs::Permissions::from_mode(0o600)).unwrap();
    done(&shared.db(), &["restore", text(&in_shared("copy"))]);
    // Files that a command of root's creates belong to the owner of the folder, and can be used by that user.
    done(&shared.db(), &["create", "example.com"]);
    let new = in_shared("new.sqlite");
    done(&new, &["create", "example.com"]);
    for entry in std::fs::read_dir(shared.folder.file("shared")).unwrap().flatten() {
        let is_links_or_copy = entry.path().is_symlink() || entry.file_name() == "copy";
        assert!(is_links_or_copy || entry.metadata().unwrap().uid() == NOBODY, "{entry:?}");
    }
    // `serve` that root starts goes on as that user, and so do files that it is told to read as root.
    std::fs::write(shared.folder.file("own.css"), "p { }").unwrap();
    std::fs::set_permissions(shared.folder.file("own.css"), std::fs::Permissions::from_mode(0o600)).unwrap();
    done(&shared.db(), &["set", "example.com", "style", text(&shared.folder.file("own.css"))]);
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "127.0.0.1:0", "--db"]).arg(shared.db());
    let server = Server::spawn(command.env("TMPDIR", shared.folder.file("shared")));
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.status_figure("Uid"), u64::from(NOBODY));
    assert_eq!(server.status_figure("Gid"), u64::from(NOBODY));
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
    assert_eq!(groups.trim(), NOBODY.to_string());
}

/// Its files and folders belong to a user that is none there.
#[test]
fn root_of_a_container_works_with_the_rights_that_it_has() {
    let Some(shared) = Shared::new() else { return };
    let is_there = Command::new("unshare").args(["--user", "--map-root-user", "true"]).output();
    if !available("unshare", is_there.is_ok_and(|output| output.status.success())) {
        return;
    }
    let of_outside = shared.folder.file("of-outside");
    std::fs::create_dir(&of_outside).unwrap();
    chown(&of_outside, Some(1_234), Some(1_234)).unwrap();
    std::fs::set_permissions(&of_outside, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", PROGRAM, "create", "example.com", "--db"]);
    let output = command.arg(of_outside.join("invited.sqlite")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Where root's own link leads to another user's folder, that user's links lead no further either.
#[test]
fn root_is_not_led_on_by_another_users_link_behind_its_own() {
    let Some(shared) = Shared::new() else { return };
    let root = shared.folder.file("root");
    std::fs::create_dir(&root).unwrap();
    let [precious, css] = ["precious", "own.css"].map(|name| root.join(name));
    for file in [&precious, &css] {
        std::fs::write(file, "p { }").unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let in_shared = |name: &str| shared.folder.file(&format!("shared/{name}"));
    // What nobody's links lead to, by way of a link of root's to the link itself or to the folder.
    for (name, target) in [("theirs", &precious), ("own.css", &css)] {
        symlink(target, in_shared(name)).unwrap();
        lchown(in_shared(name), Some(NOBODY), Some(NOBODY)).unwrap();
        symlink(in_shared(name), root.join(format!("to-{name}"))).unwrap();
    }
    symlink(&root, in_shared("folder")).unwrap();
    symlink(in_shared("folder"), root.join("to-folder")).unwrap();
    for place in [root.join("to-theirs"), root.join("to-folder/precious"), in_shared("folder/precious")] {
        fails(&place, 1, &["restore", text(&shared.copy)]);
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "p { }", "{place:?}");
    }
    for file in [root.join("to-own.css"), root.join("to-folder/own.css"), in_shared("folder/own.css")] {
        fails(&shared.db(), 1, &["set", "example.com", "style", text(&file)]);
    }
    // Links of root's own may lead anywhere.
    symlink(&root, shared.folder.file("roots")).unwrap();
    done(&shared.db(), &["set", "example.com", "style", text(&shared.folder.file("roots/own.css"))]);
}

#[test]
fn root_copies_no_log_from_beside_a_file_that_another_users_link_leads_to() {
    let Some(shared) = Shared::new() else { return };
    std::fs::set_permissions(&shared.copy, std::fs::Permissions::from_mode(0o644)).unwrap();
    let link = shared.folder.file("shared/backup");
    symlink(&shared.copy, &link).unwrap();
    for suffix in ["-wal", "-journal"] {
        let log = shared.folder.file(&format!("copy{suffix}"));
        std::fs::write(&log, "secret").unwrap();
        std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o600)).unwrap();
        fails(&shared.db(), 1, &["restore", text(&link)]);
        std::fs::remove_file(&log).unwrap();
    }
    done(&shared.db(), &["restore", text(&link)]);
}

#[test]
fn root_makes_backups_and_sockets_in_no_folder_that_another_users_link_leads_to() {
    let Some(shared) = Shared::new() else { return };
    let root = shared.folder.file("root");
    std::fs::create_dir(&root).unwrap();
    let stale = root.join("socket");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let before = stale.symlink_metadata().unwrap().ino();
    symlink(&root, shared.folder.file("shared/folder")).unwrap();
    fails(&shared.db(), 1, &["backup", text(&shared.folder.file("shared/folder/backup"))]);
    let socket = format!("unix:{}", text(&shared.folder.file("shared/folder/socket")));
    fails(&shared.db(), 75, &["serve", "--listen", &socket]);
    let left: Vec<_> = std::fs::read_dir(&root).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["socket"]);
    assert_eq!(stale.symlink_metadata().unwrap().ino(), before);

    // A folder of root's own is one, if no link leads there.
    let own = shared.folder.file("shared/own");
    std::fs::create_dir(&own).unwrap();
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o700)).unwrap();
    done(&shared.db(), &["backup", text(&own.join("backup"))]);
    assert_eq!(own.join("backup").metadata().unwrap().uid(), 0);
    symlink(&own, shared.folder.file("shared/to-own")).unwrap();
    fails(&shared.db(), 1, &["backup", text(&shared.folder.file("shared/to-own/second"))]);
}
