//! Copies of the database: taken while all runs, and put back.
//!
//! A copy is made under another name beside its place, synced, and renamed: whatever has the right name is whole. Locks that
//! belong to connections of this process are safe: files are opened by hand only where none is open on them.
//!
//! Root works in another user's folder as that user. What it does there with rights of its own, it does through descriptors.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, fcntl_lock, linkat, openat, renameat, unlinkat};
use rustix::process::{Flock, FlockType, fcntl_getlk};

use super::owner::{as_owner, become_owner, open_beside, open_folder_of, open_source, other};
use super::place::{folder as folder_of, with_suffix};
use super::{MIGRATIONS, Store, cannot_create, use_wal, version};
use crate::error::{Error, Result};
use crate::random;

/// Pages that are copied at a time.
const STEP: i32 = 256;

/// How every SQLite database begins.
const HEAD: &[u8] = b"SQLite format 3\0";

/// The files that SQLite keeps beside a database, and that hold what is not in it yet.
const LOGS: [&str; 2] = ["-wal", "-journal"];

/// Copies the database as it is at this moment to a new file, for its owner alone, while others go on writing.
pub fn backup(db: &Path, to: &Path) -> Result<()> {
    let cannot = |error: Error| error.context(format_args!("cannot back up to {}", to.display()));
    refuse_existing(to).map_err(cannot)?;
    let part = Part::make(to, 0o600)?;
    // SQLite opens files by their names alone. Where another user could change what a name means, the copy is made with the
    // rights of the database's owner and beside it, and goes on as bytes.
    let is_direct = other(db).is_none() && other(to).is_none();
    as_owner(db, || {
        let store = Store::open(db)?;
        // A file of its own, without a log: it can be read from anywhere, by anything.
        let copy = |to: &Path| store.copy(to).and_then(|()| check(to, "delete")).map_err(cannot);
        if is_direct {
            return copy(&part.path);
        }
        let beside = Part::make(&fs::canonicalize(db).unwrap_or_else(|_| db.to_owned()), 0o600)?;
        copy(&beside.path)?;
        let copied = io::copy(&mut &beside.file, &mut &part.file);
        copied.map(drop).map_err(|error| cannot(Error::internal(error.to_string())))
    })?;
    refuse_existing(to).map_err(cannot)?;
    part.publish(to, Existing::Keep).map_err(cannot)
}

impl Store {
    /// The readers' lock of one transaction, held throughout, keeps the copy consistent and nobody waiting. Without it the
    /// copying would start over with each write of somebody else.
    fn copy(&self, to: &Path) -> Result<()> {
        let mut copy = connect(to)?;
        copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
        let snapshot = self.conn.unchecked_transaction()?;
        version(&snapshot)?;
        let backup = Backup::new(&snapshot, &mut copy)?;
        loop {
            match backup.step(STEP)? {
                StepResult::Done => return Ok(()),
                StepResult::More => {}
                _ => return Err(Error::internal("SQLite can't go on with the copy (try again)")),
            }
        }
    }
}

/// Puts a copy in the place of the database, and returns where the old file is kept, if there was one.
pub fn restore(db: &Path, from: &Path) -> Result<Option<PathBuf>> {
    let cannot = |error: Error| error.context(format_args!("cannot restore {}", from.display()));
    let source = Source::open(from);
    become_owner(db)?;
    // The file itself is replaced, not a link to it.
    let place = fs::canonicalize(db).unwrap_or_else(|_| db.to_owned());
    let old = match place.metadata() {
        Ok(found) if found.is_file() => Some(found),
        Ok(_) => return Err(Error::internal(format!("{} is not a file (pass --db FILE)", db.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(super::cannot_open(db, &error)),
    };
    refuse_in_use(&place)?;
    let part = Part::make(&place, if old.is_some() { 0o600 } else { 0o660 })?;
    let taken = source.and_then(|source| source.copy(&place, &part));
    taken.and_then(|()| check(&part.path, "wal")).map_err(cannot)?;
    if let Some(old) = &old {
        part.give_to(old.uid(), old.gid(), old.mode() & 0o777).map_err(cannot)?;
        fold_in(&place);
    }
    // From here on nobody else can read or write it; while somebody has it open, this fails.
    let _locked = refuse_in_use(&place)?;
    let kept = keep(&place).map_err(|error| cannot(Error::internal(format!("the old file can't be kept: {error}"))))?;
    part.publish(&place, Existing::Replace).map_err(cannot)?;
    Ok(old.map(|_| kept))
}

/// What becomes of a file that has the name already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Keep,
    Replace,
}

/// A file that is being made beside its place. What is left of it when this is dropped is removed.
///
/// Its name may mean another file at any moment: all but SQLite works on the descriptors.
struct Part {
    folder: File,
    name: OsString,
    file: File,
    path: PathBuf,
}

impl Part {
    fn make(place: &Path, mode: u32) -> Result<Part> {
        let cannot = |error: io::Error| cannot_create(place, &error, "give another FILE");
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", random::base64url::<6>()?));
        let folder = open_folder_of(place).map_err(cannot)?;
        let around = fs::canonicalize(folder_of(place)).map_err(cannot)?;
        let file = create_in(&folder, &name, mode).map_err(cannot)?;
        Ok(Part { path: around.join(&name), folder, name, file })
    }

    fn with_suffix(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }

    fn give_to(&self, uid: u32, gid: u32, mode: u32) -> Result<()> {
        let give = || {
            let is = self.file.metadata()?;
            if (is.uid(), is.gid()) != (uid, gid) {
                fchown(&self.file, Some(uid), Some(gid))?;
            }
            self.file.set_permissions(Permissions::from_mode(mode))
        };
        give().map_err(|error| {
            Error::internal(format!(
                "it can't be given to the owner of the old file: {error} (run as that user, or move the old file away)"
            ))
        })
    }

    /// Gives it its name, when all of it is on the disk.
    fn publish(self, place: &Path, existing: Existing) -> Result<()> {
        let publish = || {
            self.file.sync_all()?;
            let (folder, name) = (&self.folder, place.file_name().unwrap_or_default());
            let rename = || renameat(folder, &self.name, folder, name);
            match existing {
                Existing::Replace => rename()?,
                Existing::Keep => {
                    linkat(folder, &self.name, folder, name, AtFlags::empty()).or_else(|error| match error {
                        rustix::io::Errno::EXIST => Err(error),
                        // A file system without links.
                        _ => rename(),
                    })?;
                }
            }
            let is =
                File::from(openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?);
            let (is, made) = (is.metadata()?, self.file.metadata()?);
            if (is.dev(), is.ino()) != (made.dev(), made.ino()) {
                return Err(io::Error::other("somebody else has put another file in its place"));
            }
            folder.sync_all()
        };
        publish().map_err(|error| Error::internal(error.to_string()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        for suffix in ["", "-shm"].iter().chain(&LOGS) {
            let _ = unlinkat(&self.folder, self.with_suffix(suffix), AtFlags::empty());
        }
    }
}

/// A new file in a folder, to write and to read.
fn create_in(folder: &File, name: &OsString, mode: u32) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(folder, name, flags, Mode::from_raw_mode(mode))?.into())
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    Connection::open_with_flags(path, flags)
}

fn refuse_existing(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => Err(Error::refused("it is a folder (name a new file in it)")),
        Ok(_) => Err(Error::refused("there is such a file already (choose another name, or remove it)")),
        Err(_) => Ok(()),
    }
}

/// Looks a copy over: an undamaged database of ours, of a version that we know. Leaves it in this journal mode, in one file.
fn check(path: &Path, journal_mode: &str) -> Result<()> {
    let conn = connect(path)?;
    conn.execute_batch("PRAGMA synchronous = OFF")?;
    match version(&conn)? {
        0 => return Err(Error::refused("it is no database of invited's (it has no table invited_meta)")),
        found if found > MIGRATIONS.len() => {
            return Err(Error::refused(format!(
                "its schema has version {found}, this program knows {} (use the newer invited that wrote it)",
                MIGRATIONS.len()
            )));
        }
        _ => {}
    }
    let found: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(Error::internal(format!("it is damaged: {found} (restore an older backup)")));
    }
    let mode = match journal_mode {
        "wal" => use_wal(&conn)?,
        _ => conn.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0))?,
    };
    if mode != journal_mode {
        return Err(Error::internal(format!("the journal mode of the copy is {mode}")));
    }
    conn.close().map_err(|(_, error)| error.into())
}

/// What is to be restored, with the logs that lie beside it.
struct Source {
    file: File,
    logs: Vec<(&'static str, File)>,
}

impl Source {
    fn open(from: &Path) -> Result<Source> {
        let open = || {
            let file = open_source(from)?;
            let mut logs = Vec::new();
            for suffix in LOGS {
                match open_beside(from, suffix) {
                    Ok(log) => logs.push((suffix, log)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(Source { file, logs })
        };
        open().map_err(unreadable)
    }

    /// Copies it to a part of a database in this place.
    fn copy(mut self, place: &Path, to: &Part) -> Result<()> {
        let is = self.file.metadata().map_err(unreadable)?;
        if place.metadata().is_ok_and(|place| (place.dev(), place.ino()) == (is.dev(), is.ino())) {
            return Err(Error::refused("it is the database itself"));
        }
        if let Some(holder) = holder(&self.file) {
            return Err(Error::refused(format!(
                "it is a database that {holder} has open (`invited backup` copies it)"
            )));
        }
        if !is_sqlite(&mut self.file).map_err(unreadable)? {
            return Err(Error::refused("it is not an SQLite database"));
        }
        self.file.rewind().map_err(unreadable)?;
        io::copy(&mut self.file, &mut &to.file).map_err(unreadable)?;
        for (suffix, mut log) in self.logs {
            // It holds tokens, as the file itself does.
            let made = create_in(&to.folder, &to.with_suffix(suffix), 0o600);
            made.and_then(|mut to| io::copy(&mut log, &mut to)).map_err(unreadable)?;
        }
        Ok(())
    }
}

fn unreadable(error: io::Error) -> Error {
    Error::internal(format!("it can't be copied: {error}"))
}

/// Locks a database against everybody, or says who has it open: in WAL mode each connection keeps a lock all the time. The
/// lock lasts as long as the file that is returned, provided that this process opens and closes no connection meanwhile.
fn refuse_in_use(path: &Path) -> Result<Option<File>> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(super::cannot_open(path, &error)),
    };
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(error) => Err(match holder(&file) {
            Some(holder) => Error::refused(format!(
                "{} is open in {holder} (stop invited and the XMPP server first, and start them again afterwards)",
                path.display()
            )),
            None => Error::internal(format!("cannot lock {}: {error}", path.display())),
        }),
    }
}

/// Who holds a lock on a file, if anybody does.
fn holder(file: &File) -> Option<String> {
    let lock = fcntl_getlk(file, &Flock::from(FlockType::WriteLock)).ok()??;
    Some(lock.pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {}", pid.as_raw_nonzero())))
}

/// Brings the log of the old file into it, as SQLite does when the last connection ends. Where that can't be done, since the
/// file is damaged, the log is kept beside it: SQLite would remove that of a file that is no database.
fn fold_in(place: &Path) {
    if File::open(place).is_ok_and(|mut file| is_sqlite(&mut file).unwrap_or(false)) {
        let _ = connect(place).and_then(|conn| conn.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(())));
    }
}

/// Whether a file, of which nothing has been read, begins as every SQLite database does.
fn is_sqlite(file: &mut File) -> io::Result<bool> {
    let mut head = Vec::new();
    file.take(HEAD.len() as u64).read_to_end(&mut head)?;
    Ok(head == HEAD)
}

/// Gives the old file, if there is one, a second name beside its own, and moves its logs along: the new one must not meet them.
fn keep(place: &Path) -> io::Result<PathBuf> {
    let names = (1..).map(|number| match number {
        1 => with_suffix(place, ".before-restore"),
        _ => with_suffix(place, &format!(".before-restore-{number}")),
    });
    let is_free = |kept: &PathBuf| [""].iter().chain(&LOGS).all(|suffix| !with_suffix(kept, suffix).exists());
    let kept = names.into_iter().find(is_free).ok_or(io::ErrorKind::AlreadyExists)?;
    let absent_is_fine = |done: io::Result<()>| match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    };
    absent_is_fine(fs::hard_link(place, &kept))?;
    for suffix in LOGS {
        absent_is_fine(fs::rename(with_suffix(place, suffix), with_suffix(&kept, suffix)))?;
    }
    absent_is_fine(fs::remove_file(with_suffix(place, "-shm")))?;
    Ok(kept)
}
