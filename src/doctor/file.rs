//! The file: there, whole, ours, writable, with room, and not held by anybody.

use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access, statvfs};
use rustix::process::geteuid;

use super::{Report, clock};
use crate::invite::Server;
use crate::store::{Schema, Store, folder};

/// With less room on the disk than this, in bytes, it is time to make some.
const ROOM: u64 = 100 * 1024 * 1024;

/// With less than this, SQLite can't write any more, or not for long.
const NO_ROOM: u64 = 1024 * 1024;

/// A write-ahead log of more than this, in bytes, does not start over any more.
const WAL_MAX: u64 = 128 * 1024 * 1024;

/// How long the write lock is waited for. Nobody who behaves holds it for more than some milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// A file that can be read.
pub struct Found {
    /// A connection to it.
    pub store: Store,
    /// Whether an invite can be written to it.
    pub can_write: bool,
}

/// Checks all that concerns the file alone; none where the rest makes no sense.
pub fn check(report: &mut Report, db: &Path, now: i64) -> Option<Found> {
    let shown = db.display();
    let metadata = match db.metadata() {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => {
            report.error("file", format!("{shown} is not a file"), "pass --db FILE");
            return None;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let help = "`invited create HOST` makes it together with a first key, or pass --db FILE";
            report.error("file", format!("there is no database {shown}"), help);
            return None;
        }
        Err(error) => {
            let help = "run as a user or in a group that may read it, or pass --db FILE";
            report.error("file", format!("{shown} can't be looked at: {error}"), help);
            return None;
        }
    };
    let folder = folder(db);
    // No connection of this process is open yet: closing this descriptor drops its locks on the file.
    let opened = OpenOptions::new().read(true).write(true).open(db);
    match &opened {
        Ok(_) if geteuid().is_root() => {
            let text = "is there; root may do anything with it: run this as the user of `invited serve` to see what that one may";
            report.ok("file", format!("{shown} {text}"));
        }
        Ok(_) => report.ok("file", format!("{shown} is there, readable and writable for this user")),
        Err(error) => {
            let help =
                "run as a user or in a group that may write it, such as `runuser -u prosody -- invited doctor HOST`";
            report.error("file", format!("{shown} can't be read and written by this user: {error}"), help);
        }
    }
    let is_open = opened.is_ok();
    drop(opened);
    check_modes(report, &metadata, folder);
    check_folder(report, folder);
    check_disk(report, folder);
    check_wal(report, db);
    if !is_open {
        return None;
    }
    check_inside(report, db, now)
}

/// Whether others can read tokens or make invites, and whether the owner is the one that the folder is made for.
fn check_modes(report: &mut Report, file: &Metadata, folder: &Path) {
    let Ok(around) = folder.metadata() else { return };
    let owner = format!("user {}, group {}", name("/etc/passwd", file.uid()), name("/etc/group", file.gid()));
    let mode = file.mode() & 0o7777;
    // Who can't go into the folder does not come to the file.
    let others = if around.mode() & 0o001 == 0 { 0 } else { mode & 0o006 };
    if around.mode() & 0o1002 == 0o002 {
        let help = format!("chmod o-w {}", folder.display());
        report.error(
            "mode",
            "every user of this machine can write to the file's folder, and put another in its place",
            help,
        );
    } else if others & 0o002 != 0 {
        let help = "chmod 660, or 640, of the file";
        report.error(
            "mode",
            format!("every user of this machine can write to the file (mode {mode:04o}), and make invites"),
            help,
        );
    } else if others & 0o004 != 0 {
        let help = "chmod 660, or 640, of the file";
        report.warning(
            "mode",
            format!("every user of this machine can read the file (mode {mode:04o}), and use its invites"),
            help,
        );
    } else if around.uid() != 0 && file.uid() != around.uid() && (file.gid() != around.gid() || mode & 0o020 == 0) {
        let folders = name("/etc/passwd", around.uid());
        report.warning(
            "mode",
            format!("the file belongs to {owner} (mode {mode:04o}), its folder to user {folders}, who can't write to the file"),
            format!("run `invited` as {folders}, or give it the file with chown; see \"Another user for invited\" in the README"),
        );
    } else {
        report.ok("mode", format!("the file belongs to {owner} (mode {mode:04o})"));
    }
}

/// The name of a user or group in the system's own list, or the number.
fn name(list: &str, id: u32) -> String {
    let text = std::fs::read_to_string(list).unwrap_or_default();
    let line = text.lines().find(|line| line.split(':').nth(2).is_some_and(|field| field == id.to_string()));
    line.and_then(|line| line.split(':').next()).map_or_else(|| id.to_string(), str::to_owned)
}

fn check_folder(report: &mut Report, folder: &Path) {
    let shown = folder.display();
    match access(folder, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => report.ok("folder", format!("{shown} is writable for this user, as -wal and -shm need it")),
        Err(error) => report.error(
            "folder",
            format!(
                "{shown} is not writable for this user ({}), and SQLite keeps -wal and -shm there",
                io::Error::from(error)
            ),
            "make it so: install -d -m 2770 -o prosody -g prosody, or whichever user runs `invited`",
        ),
    }
}

fn check_disk(report: &mut Report, folder: &Path) {
    if let Some(kind) = network(folder) {
        let help = "move the file to a local disk: SQLite's locks and its write-ahead log don't work over a network";
        report.error("disk", format!("{} is on a network file system ({kind})", folder.display()), help);
    }
    let Ok(found) = statvfs(folder) else { return };
    let room = found.f_bavail.saturating_mul(found.f_frsize);
    let shown = format!("{} MB of room", room / 1024 / 1024);
    if room < NO_ROOM || found.f_files > 0 && found.f_favail == 0 {
        report.error("disk", format!("the disk of {} is full ({shown})", folder.display()), "make room");
    } else if room < ROOM {
        report.warning("disk", format!("the disk of {} is nearly full ({shown})", folder.display()), "make room");
    } else {
        report.ok("disk", format!("{shown} on the disk"));
    }
}

/// What network file system it is on, if it is on one.
#[cfg(target_os = "linux")]
fn network(folder: &Path) -> Option<&'static str> {
    network_name(rustix::fs::statfs(folder).ok()?.f_type as u32)
}

/// The name of a network file system by its number in statfs(2).
#[cfg(target_os = "linux")]
fn network_name(kind: u32) -> Option<&'static str> {
    Some(match kind {
        0x6969 => "NFS",
        0x517b => "SMB",
        0xff53_4d42 => "CIFS",
        0xfe53_4d42 => "SMB2",
        0x5346_414f => "AFS",
        0x00c3_6400 => "Ceph",
        0x0102_1997 => "9P",
        0x7375_7245 => "Coda",
        _ => return None,
    })
}

#[cfg(not(target_os = "linux"))]
fn network(_folder: &Path) -> Option<&'static str> {
    None
}

fn check_wal(report: &mut Report, db: &Path) {
    for end in ["-wal", "-shm"] {
        let mut path = db.as_os_str().to_owned();
        path.push(end);
        let path = PathBuf::from(path);
        let Ok(found) = path.metadata() else { continue };
        if let Err(error) = access(&path, Access::READ_OK | Access::WRITE_OK) {
            report.error(
                "wal",
                format!("{} can't be read and written by this user: {}", path.display(), io::Error::from(error)),
                "another user has made it: let both be in one group, with umask 007 for `invited`, or give it away with chown",
            );
        } else if end == "-wal" && found.len() > WAL_MAX {
            report.warning(
                "wal",
                format!("the write-ahead log {} has grown to {} MB", path.display(), found.len() / 1024 / 1024),
                "a program reads the file without an end, or was killed: restart `invited serve` and the XMPP server",
            );
        }
    }
}

/// What SQLite says.
fn check_inside(report: &mut Report, db: &Path, now: i64) -> Option<Found> {
    let store = match Store::examine(db) {
        Ok(store) => store,
        Err(error) => {
            report.error("sqlite", format!("{} can't be opened: {error}", db.display()), "see the lines above");
            return None;
        }
    };
    // A writer that does not let go holds readers up as well where the file has no write-ahead log yet.
    let mode = match store.journal_mode() {
        Ok(mode) => mode,
        Err(error) => {
            report.error(
                "sqlite",
                format!("{} can't be read: {error}", db.display()),
                "restore a backup, or pass --db with another FILE",
            );
            return None;
        }
    };
    match store.damage() {
        Ok(None) => report.ok("sqlite", "SQLite finds the file whole"),
        Ok(Some(damage)) => {
            report.error("sqlite", format!("the file is damaged: {damage}"), "stop what uses it and restore a backup");
            return None;
        }
        Err(error) => {
            report.error(
                "sqlite",
                format!("the file can't be checked: {error}"),
                "restore a backup, or pass --db with another FILE",
            );
            return None;
        }
    }
    let is_current = check_schema(report, &store)?;
    if mode == "wal" {
        report.ok("journal", "SQLite's write-ahead log is on");
    } else {
        let help = "any other command of `invited` turns it on, where the disk is a local one";
        report.error("journal", format!("the file has no write-ahead log (journal mode {mode})"), help);
    }
    let is_free = check_lock(report, &store);
    if !is_current {
        return None;
    }
    clock::check_file(report, &store, now);
    Some(Found { store, can_write: mode == "wal" && is_free })
}

/// Whether the schema is ours, or else an older one; none where the file can't be read with it.
fn check_schema(report: &mut Report, store: &Store) -> Option<bool> {
    match store.schema() {
        Ok(Schema::Current(version)) => {
            report.ok("schema", format!("the tables have version {version}, as this program has"));
            return Some(true);
        }
        Ok(Schema::Old(version)) => {
            let help = "any other command brings them up to date, or restart `invited serve`";
            report.warning("schema", format!("the tables have the older version {version}"), help);
            return Some(false);
        }
        Ok(Schema::New(version)) => {
            let help = "use the newer `invited` that wrote it";
            report.error(
                "schema",
                format!("the tables have version {version}, which is newer than this program"),
                help,
            );
        }
        Ok(Schema::Missing) => {
            let help = "`invited create HOST` makes them, or pass --db with another FILE";
            report.error("schema", "the file has no tables of `invited`", help);
        }
        Err(error) => report.error("schema", error.to_string(), "restore a backup"),
    }
    None
}

fn check_lock(report: &mut Report, store: &Store) -> bool {
    match store.can_lock(LOCK_PATIENCE) {
        Ok(true) => {
            report.ok("lock", "the file can be locked for writing at once");
            return true;
        }
        Ok(false) => report.error(
            "lock",
            format!("another process has kept the file locked for more than {} s", LOCK_PATIENCE.as_secs()),
            "end it: `fuser -v FILE` shows who has the file open",
        ),
        Err(error) => {
            report.error("lock", format!("the file can't be locked for writing: {error}"), "see the lines above")
        }
    }
    false
}

/// Whether what tells us of used invites is still there.
pub fn check_triggers(report: &mut Report, store: &Store, server: Server) {
    match store.missing_triggers(server) {
        Ok(missing) if missing.is_empty() => report.ok("triggers", "the triggers on the XMPP server's table are there"),
        Ok(missing) => report.error(
            "triggers",
            format!("the XMPP server's table has lost {}: used invites are not noticed", missing.join(", ")),
            match server {
                Server::Prosody => "restore a backup of the file, and let no other program change its tables",
                Server::Ejabberd => {
                    "any other command of `invited` makes them again; let no other program change its tables"
                }
            },
        ),
        Err(error) => report.error("triggers", error.to_string(), "restore a backup of the file"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_network_file_system_is_told_from_a_local_one() {
        assert_eq!(network_name(0x6969), Some("NFS"));
        // ext4, XFS, Btrfs, tmpfs, overlayfs.
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630] {
            assert_eq!(network_name(local), None);
        }
        assert_eq!(network(Path::new("/")), None);
    }
}
