//! Keys and settings from the shell, and every way in which that can go wrong.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::harness::{Folder, PROGRAM, create_key, done, fails, run};

#[test]
fn create_prints_the_key_alone_and_list_shows_id_and_name_oldest_first() {
    let folder = Folder::new();
    let named = done(&folder.db(), &["create", "Example.com", "My test key"]);
    let (id, secret) = named.strip_suffix('\n').unwrap().split_once('/').unwrap();
    assert_eq!((id.len(), secret.len()), (8, 32));
    let url_safe = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    assert!(id.chars().all(url_safe) && secret.chars().all(url_safe), "{named}");
    let nameless = create_key(&folder.db(), "example.com");
    let (nameless_id, _) = nameless.split_once('/').unwrap();
    assert_eq!(done(&folder.db(), &["list", "example.com"]), format!("{id}\tMy test key\n{nameless_id}\t<unknown>\n"));
}

#[test]
fn the_secret_is_nowhere_in_the_files() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "example.com");
    let secret = key.split_once('/').unwrap().1;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

#[test]
fn delete_is_silent_and_an_unknown_id_is_an_error() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "example.com");
    let id = key.split_once('/').unwrap().0;
    assert_eq!(done(&folder.db(), &["delete", "example.com", id]), "");
    assert_eq!(done(&folder.db(), &["list", "example.com"]), "");
    assert!(fails(&folder.db(), 1, &["delete", "example.com", id]).contains(id));
}

#[test]
fn a_key_of_one_host_cannot_be_listed_or_deleted_through_another() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "a.example");
    let id = key.split_once('/').unwrap().0;
    let other = create_key(&folder.db(), "b.example");
    assert_eq!(
        done(&folder.db(), &["list", "b.example"]),
        format!("{}\t<unknown>\n", other.split_once('/').unwrap().0)
    );
    fails(&folder.db(), 1, &["delete", "b.example", id]);
    assert!(done(&folder.db(), &["list", "a.example"]).starts_with(id));
}

/// An invite to a host that nobody serves is of no use, and its maker would not notice.
#[test]
fn a_mistyped_host_is_refused_by_a_file_that_knows_others() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "example.com");
    let id = key.split_once('/').unwrap().0;
    const TYPO: &str = "exampel.com";
    for args in [
        &["invite", TYPO][..],
        &["invites", TYPO],
        &["list", TYPO],
        &["delete", TYPO, id],
        &["show", TYPO, "T"],
        &["revoke", TYPO, "T"],
        &["prune", TYPO],
        &["set", TYPO, "ttl", "2d"],
        &["get", TYPO],
        &["get", TYPO, "ttl"],
        &["unset", TYPO, "ttl"],
    ] {
        let stderr = fails(&folder.db(), 1, args);
        assert!(stderr.contains("does not know the host exampel.com, but example.com"), "{args:?}: {stderr}");
    }
    assert!(fails(&folder.db(), 1, &["invite", TYPO]).contains("--new-host adds it"));
    done(&folder.db(), &["set", "other.example", "ttl", "2d", "--new-host"]);
    done(&folder.db(), &["invite", "other.example"]);
    done(&folder.db(), &["invite", "third.example", "--new-host"]);
    assert_eq!(done(&folder.db(), &["invites", "third.example"]).lines().count(), 1);
}

#[test]
fn both_forms_of_an_international_host_are_the_same_host() {
    let folder = Folder::new();
    create_key(&folder.db(), "Bücher.example");
    assert_eq!(done(&folder.db(), &["list", "xn--bcher-kva.example"]).lines().count(), 1);
}

#[test]
fn wrong_usage_exits_2_and_makes_no_database() {
    let folder = Folder::new();
    let long = "x".repeat(201);
    for args in [
        &[][..],
        &["bogus", "example.com"],
        &["create"],
        &["create", "example.com:5222"],
        &["create", "https://example.com/"],
        &["create", "me@example.com"],
        &["create", "example.com", "tab\tin it"],
        &["create", "example.com", "line\nin it"],
        &["create", "example.com", &long],
        &["create", "example.com", "two", "words"],
        &["create", "example.com", "--bogus"],
        &["create", "example.com", "--db"],
        &["delete", "example.com"],
        &["set", "example.com", "url", "example.com/no-scheme"],
        &["set", "example.com", "bogus", "x"],
    ] {
        let stderr = fails(&folder.db(), 2, args);
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    assert!(!folder.db().exists());
}

/// Whether a text has this as a whole word: `--all` is not in `--allow`.
fn names(text: &str, word: &str) -> bool {
    let goes_on = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.match_indices(word).any(|(at, _)| !text[at + word.len()..].starts_with(goes_on))
}

const COMMANDS: [&str; 18] = [
    "invite", "invites", "show", "revoke", "prune", "create", "list", "delete", "serve", "setup", "doctor", "backup",
    "restore", "try", "import", "set", "get", "unset",
];

#[test]
fn help_and_version_go_to_stdout() {
    let folder = Folder::new();
    let overview = done(&folder.db(), &["--help"]);
    for command in COMMANDS {
        assert!(overview.contains(&format!("\n  {command} ")), "{command} is not in the overview");
        assert!(done(&folder.db(), &[command, "--help"]).starts_with(&format!("Usage: invited {command} ")));
    }
    assert_eq!(done(&folder.db(), &["--version"]), format!("invited {}\n", env!("CARGO_PKG_VERSION")));
}

/// Each command and option of the help is in the README, so that neither is ahead of the other.
#[test]
fn what_the_help_names_is_in_the_readme() {
    let folder = Folder::new();
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    // In a table the vertical line needs an escape.
    let readme = readme.replace("\\|", "|");
    for command in COMMANDS {
        let help = done(&folder.db(), &[command, "--help"]);
        let usage = help.lines().next().unwrap().strip_prefix("Usage: ").unwrap().replace(" [--db FILE]", "");
        assert!(readme.contains(&format!("`{usage}`")), "the README lacks `{usage}`");
        // Options are set off by spaces or brackets.
        for option in help.split([' ', '[', ']', ',', '\n']).filter(|word| word.starts_with("--") && word.len() > 2) {
            assert!(names(&readme, option), "the README lacks {option} of {command}");
        }
    }
    for option in ["--db", "--listen", "--help", "--version", "INVITED_DB"] {
        assert!(names(&readme, option), "the README lacks {option}");
    }
}

#[test]
fn settings_are_set_read_and_unset() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    assert!(fails(&folder.db(), 1, &["get", "example.com", "url"]).contains("url"));
    assert_eq!(done(&folder.db(), &["set", "example.com", "url", "https://i.example.com/x/"]), "");
    assert_eq!(done(&folder.db(), &["get", "example.com", "url"]), "https://i.example.com/x\n");
    assert_eq!(done(&folder.db(), &["get", "example.com"]), "url\thttps://i.example.com/x\n");
    create_key(&folder.db(), "other.example");
    assert_eq!(done(&folder.db(), &["get", "other.example"]), "");
    assert_eq!(done(&folder.db(), &["unset", "example.com", "url"]), "");
    assert_eq!(done(&folder.db(), &["get", "example.com"]), "");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let folder = Folder::new();
    for _ in 0..3 {
        create_key(&folder.db(), "example.com");
    }
    let mut child = Command::new(PROGRAM)
        .args(["list", "example.com"])
        .env("INVITED_DB", folder.db())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_new_file_is_for_its_user_and_group_as_the_umask_lets_it() {
    let folder = Folder::new();
    for (umask, mode) in [("007", 0o660), ("022", 0o640), ("077", 0o600)] {
        let db = folder.file(umask);
        let script = format!("umask {umask}; exec {PROGRAM} create example.com --db {}", db.display());
        assert!(Command::new("sh").args(["-c", &script]).output().unwrap().status.success());
        assert_eq!(db.metadata().unwrap().permissions().mode() & 0o777, mode, "umask {umask}");
    }
}

#[test]
fn a_missing_file_or_folder_is_named_with_the_way_out() {
    let folder = Folder::new();
    for args in [&["list", "example.com"][..], &["delete", "example.com", "x"], &["get", "example.com"]] {
        let stderr = fails(&folder.db(), 1, args);
        assert!(stderr.contains(folder.db().to_str().unwrap()) && stderr.contains("invited create"), "{stderr}");
    }
    let deep = folder.file("no/such/invited.sqlite");
    let stderr = fails(&deep, 1, &["create", "example.com"]);
    assert!(stderr.contains("there is no folder") && stderr.contains("no/such"), "{stderr}");
    assert!(!folder.file("no").exists());
}

#[test]
fn what_is_no_database_is_left_as_it_is() {
    let folder = Folder::new();
    let text = "just some text, ".repeat(100);
    std::fs::write(folder.db(), &text).unwrap();
    let stderr = fails(&folder.db(), 1, &["create", "example.com"]);
    assert!(stderr.contains("not an SQLite database") && stderr.contains("--db"), "{stderr}");
    assert_eq!(std::fs::read_to_string(folder.db()).unwrap(), text);
    let stderr = fails(folder.path(), 1, &["create", "example.com"]);
    assert!(stderr.contains("not a file"), "{stderr}");
}

#[test]
fn a_newer_schema_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let conn = Connection::open(folder.db()).unwrap();
    conn.execute("UPDATE invited_meta SET value = '9999' WHERE name = 'schema'", []).unwrap();
    let stderr = fails(&folder.db(), 1, &["create", "example.com"]);
    assert!(stderr.contains("9999") && stderr.contains("newer"), "{stderr}");
    let keys: i64 = conn.query_row("SELECT count(*) FROM invited_key", [], |row| row.get(0)).unwrap();
    assert_eq!(keys, 1);
}

#[test]
fn a_file_that_may_not_be_written_is_named_with_the_way_out() {
    // root may write everything, so that the program runs as another user here.
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let as_nobody = |args: &[&str]| {
        let is_root = folder.path().metadata().map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).unwrap() == 0;
        let mut command = if is_root {
            // The program may lie where that user can't go; a copy can be reached.
            let copy = folder.file("invited");
            if !copy.exists() {
                // Another process makes it: a descriptor that is open for writing could be inherited by the child of another
                // test, and Linux runs no file that is being written.
                assert!(Command::new("cp").arg(PROGRAM).arg(&copy).status().unwrap().success());
            }
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
            command
        } else {
            Command::new(PROGRAM)
        };
        command.args(args).env("INVITED_DB", folder.db()).output().unwrap()
    };
    let set_mode = |mode| std::fs::set_permissions(folder.db(), std::fs::Permissions::from_mode(mode)).unwrap();
    set_mode(0o444);
    let output = as_nobody(&["create", "example.com"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("permission denied") && stderr.contains("--db"), "{stderr}");
    set_mode(0o666);
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    let output = as_nobody(&["create", "example.com"]);
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("folder must be writable"), "{stderr}");
}

#[test]
fn a_locked_database_is_given_up_after_its_time_with_nothing_half_done() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let holder = Connection::open(folder.db()).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let start = Instant::now();
    let stderr = fails(&folder.db(), 1, &["create", "example.com"]);
    assert!(start.elapsed() >= Duration::from_secs(5), "it gave up too early");
    assert!(stderr.contains("locked") && stderr.contains(folder.db().to_str().unwrap()), "{stderr}");
    holder.execute_batch("ROLLBACK").unwrap();
    assert_eq!(done(&folder.db(), &["list", "example.com"]).lines().count(), 1);
}

#[test]
fn processes_that_create_at_the_same_time_all_succeed_on_a_new_file() {
    let folder = Folder::new();
    let db = folder.db();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(run(&db, &["create", "example.com"]).status.success()));
        }
    });
    assert_eq!(done(&db, &["list", "example.com"]).lines().count(), 8);
}
