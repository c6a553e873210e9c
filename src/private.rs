//! A folder of one process's own among the temporary files: for the socket of its loop, and for the database of `try`.
//!
//! Its process holds a lock on it, which ends with the process however that ends. So the next one can remove what a killed one
//! left: only folders that are made as these are, only the files that belong in them, and never by way of a link.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, openat, unlinkat};
use rustix::process::geteuid;

use crate::error::{Error, Kind, Result};
use crate::random;

/// The socket of the loop in such a folder.
pub const SOCKET: &str = "loop";

/// The database of `try` in such a folder. SQLite, backups and restores give names that begin with it.
pub const DATABASE: &str = "invited.sqlite";

/// Such folders are called this and some random characters.
const PREFIX: &str = "invited-";

/// The bytes of those, as many as 16 characters.
const RANDOM: usize = 12;

/// For the user alone; with the sticky bit, which changes nothing there, so that no folder of the user's own looks like it.
const MODE: u32 = 0o1700;

/// The longest path of the parent, in bytes: the address of a Unix socket has room for 107.
const PARENT_MAX: usize = 60;

/// A folder that only this user can enter, removed when this is dropped.
pub struct PrivateFolder {
    path: PathBuf,
    /// Locked for as long as this lives.
    folder: File,
}

impl PrivateFolder {
    /// Makes a folder with a random name in the one that systemd provides, or in that for temporary files. Removes those that
    /// processes of this user left there when they were killed.
    pub fn make() -> Result<PrivateFolder> {
        let provided = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
        let mut failed = None;
        for parent in provided.into_iter().chain([std::env::temp_dir()]) {
            let parent = if parent.as_os_str().len() > PARENT_MAX { PathBuf::from("/tmp") } else { parent };
            match make_in(&parent) {
                Ok(folder) => return Ok(folder),
                Err(error) => failed = failed.or(Some((parent, error))),
            }
        }
        let (parent, error) = failed.unwrap_or_else(|| (PathBuf::new(), io::ErrorKind::NotFound.into()));
        Err(Error::new(
            Kind::CannotCreate,
            format!("cannot make a folder in {}: {error} (set TMPDIR to a writable folder)", parent.display()),
        ))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        empty(&self.folder);
        let _ = fs::remove_dir(&self.path);
    }
}

fn make_in(parent: &Path) -> io::Result<PrivateFolder> {
    remove_stale(parent);
    loop {
        let name = random::base64url::<RANDOM>().map_err(|error| io::Error::other(error.to_string()))?;
        let path = parent.join(format!("{PREFIX}{name}"));
        DirBuilder::new().mode(MODE).create(&path)?;
        // Before it is locked, another process may take it for a stale one; then it is gone, or about to go.
        let folder = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() && folder.metadata()?.nlink() > 0 {
            return Ok(PrivateFolder { path, folder });
        }
    }
}

/// Removes what processes of this user left behind when they were killed.
fn remove_stale(parent: &Path) {
    let is_name = |name: &str| {
        let random = name.strip_prefix(PREFIX).unwrap_or_default();
        random.len() == RANDOM * 4 / 3 && random.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let Ok(around) = File::open(parent) else { return };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(is_name) {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(folder) = openat(&around, &name, flags, Mode::empty()).map(File::from) else { continue };
        // The folder around may hand its group on, with the bit for that.
        let is_made_here = |found: fs::Metadata| (found.uid(), found.mode() & 0o5777) == (geteuid().as_raw(), MODE);
        if folder.metadata().is_ok_and(is_made_here) && flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            empty(&folder);
            // Fails where something else is in it.
            let _ = unlinkat(&around, &name, AtFlags::REMOVEDIR);
        }
    }
}

/// Removes the files that belong in such a folder.
fn empty(folder: &File) {
    for entry in Dir::read_from(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_bytes();
        if name == SOCKET.as_bytes() || name.starts_with(DATABASE.as_bytes()) {
            let _ = unlinkat(folder, entry.file_name(), AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A folder as a killed process leaves it.
    fn leave(parent: &Path, name: &str, mode: u32) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir(&path).unwrap();
        drop(UnixListener::bind(path.join(SOCKET)).unwrap());
        fs::write(path.join("invited.sqlite"), "x").unwrap();
        fs::write(path.join("invited.sqlite-wal"), "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn only_what_killed_processes_left_is_removed() {
        let parent = std::env::temp_dir().join(format!("invited-private-{}", std::process::id()));
        fs::create_dir_all(&parent).unwrap();
        let stale = leave(&parent, "invited-0123456789abcdef", MODE);
        let precious = leave(&parent, "notes", 0o700);
        let mut kept = vec![
            leave(&parent, "invited-notes", MODE),
            leave(&parent, "invited-0123456789abcde", MODE),
            leave(&parent, "invited-0123456789abcdefg", MODE),
            leave(&parent, "invited-0123456789abcde.", MODE),
            leave(&parent, "invited-my-own-notes-202", 0o700),
            precious.clone(),
        ];
        let letter = leave(&parent, "invited-with-something__", MODE).join("letter");
        fs::write(&letter, "dear").unwrap();
        symlink(&precious, parent.join("invited-link-link-link-l")).unwrap();
        let linked = parent.join("invited-0123456789abcdeL");
        fs::create_dir(&linked).unwrap();
        symlink(precious.join("invited.sqlite"), linked.join("invited.sqlite")).unwrap();
        fs::set_permissions(&linked, fs::Permissions::from_mode(MODE)).unwrap();
        // Of another process that runs, and of this one.
        let running = leave(&parent, "invited-runningrunningru", MODE);
        let lock = File::open(&running).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let own = make_in(&parent).unwrap();
        fs::write(own.path().join(DATABASE), "x").unwrap();
        kept.push(running);
        let second = make_in(&parent).unwrap();
        for path in &kept {
            assert!(
                ["loop", "invited.sqlite", "invited.sqlite-wal"]
                    .iter()
                    .all(|name| path.join(name).symlink_metadata().is_ok()),
                "{path:?}"
            );
        }
        assert!(letter.exists() && !letter.with_file_name(DATABASE).exists());
        assert!(!stale.exists() && !linked.exists());
        assert!(own.path().join(DATABASE).exists() && second.path().exists());
        let (own_path, second_path) = (own.path().to_owned(), second.path().to_owned());
        drop((own, second));
        assert!(!own_path.exists() && !second_path.exists());
        drop(lock);
        fs::remove_dir_all(&parent).unwrap();
    }

    #[test]
    fn many_that_start_at_once_each_keep_their_own() {
        let parent = std::env::temp_dir().join(format!("invited-privates-{}", std::process::id()));
        fs::create_dir_all(&parent).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let own = make_in(&parent).unwrap();
                        fs::write(own.path().join(DATABASE), "x").unwrap();
                        assert!(own.path().join(DATABASE).exists());
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
        fs::remove_dir_all(&parent).unwrap();
    }
}
