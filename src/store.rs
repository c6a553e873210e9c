//! The SQLite file: opened, brought up to date, read and written through typed functions.
//!
//! [`Store`] is one connection: the command line has one, and so has each worker of the server, for reading. [`Tx`] is what
//! can be done inside one write transaction. [`Writer`] is the only way for requests to write; housekeeping writes in small steps of its own. This file and its folder are the
//! only ones that name rusqlite; they know nothing of HTTP or of what is shown to whom.
//!
//! Two rules protect the XMPP server, which shares the file and does not wait for locks. The write lock is never held
//! across a sync: transactions commit with `synchronous=NORMAL` in WAL mode, and the `-wal` file is synced after the lock
//! has gone. And the database and `-shm` files are never opened by hand while a connection is open: closing such a
//! descriptor would drop this process's locks on them (POSIX, fcntl).

mod backup;
mod check;
mod claim;
mod ejabberd;
#[cfg(test)]
mod growth;
mod import;
mod invite;
mod key;
mod owner;
mod place;
mod prosody;
mod prune;
mod readers;
mod request;
mod steps;
mod watch;
mod writer;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, TransactionBehavior};

use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::invite::{Invite, Server};
use place::Place;

pub use backup::{backup, restore};
pub use check::{SOURCE, Schema};
pub use claim::{Claimed, Outcome};
pub use import::{Item, read_sqlite};
pub use invite::{InviteRow, Of, Revoked, State, Use};
pub use key::{KeyLimits, KeyRow};
pub use owner::{as_owner, as_owner_io, become_owner, open_source};
pub use place::{folder, open_file};
pub use readers::Readers;
pub use writer::Writer;

/// How long a connection of ours waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Each step from one schema version to the next, the first one making version 1. Only ever appended to.
const MIGRATIONS: &[&str] = &[
    include_str!("store/schema.sql"),
    include_str!("store/schema-2.sql"),
    include_str!("store/schema-3.sql"),
    include_str!("store/schema-4.sql"),
    include_str!("store/schema-5.sql"),
];

/// One connection to the file.
pub struct Store {
    conn: Connection,
    place: Place,
}

impl Store {
    /// Opens the file, making it if there is none: mode 0660 less the umask, so that a group can share it with the XMPP
    /// server. A missing folder is not made. In another user's folder, root works as that user from here on.
    pub fn create(path: &Path) -> Result<Store> {
        become_owner(path)?;
        let made = OpenOptions::new().write(true).create_new(true).mode(0o660).open(path);
        match made {
            Ok(file) => {
                // The folder is synced so that a power cut can't take the file's name away from under answered invites.
                drop(file);
                let folder = folder(path);
                File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| {
                    Error::internal(format!("cannot sync the folder {}: {error}", folder.display()))
                })?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot_create(path, &error, "pass --db FILE")),
        }
        Store::open(path)
    }

    /// Opens a file that is there, and brings it up to date. In another user's folder, root works as that user from here on.
    pub fn open(path: &Path) -> Result<Store> {
        become_owner(path)?;
        match path.metadata() {
            Ok(found) if found.is_file() => {}
            Ok(_) => {
                return Err(Error::config(format!(
                    "cannot open {}: it is not a file (pass --db FILE)",
                    path.display()
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::not_found(format!(
                    "there is no database {} (`invited create HOST` makes it together with a first key, or pass --db FILE)",
                    path.display()
                )));
            }
            Err(error) => return Err(cannot_open(path, &error)),
        }
        // SQLite opens read-only what it may not write and complains at the first write; this says it at once.
        // (No connection of this process is open on the file when the command line comes here; the server's own
        // connections are opened by `another`.)
        if let Err(error) = OpenOptions::new().read(true).write(true).open(path) {
            return Err(cannot_open(path, &error));
        }
        let mut store = Store::connect(path)?;
        store.migrate().map_err(|error| error.context(format_args!("cannot open {}", path.display())))?;
        if ejabberd::is_unprepared(&store.conn)? {
            store.write(|tx| tx.prepare_ejabberd())?;
        }
        store.copy_ejabberd()?;
        Ok(store)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Another connection to the file that this one has open.
    pub fn another(&self) -> Result<Store> {
        let store = Store::connect(self.place.path())?;
        if store.place == self.place { Ok(store) } else { Err(self.place.lost()) }
    }

    /// Fails unless the file at the place of the database is still the one that this connection has open.
    pub fn check_place(&self) -> Result<()> {
        self.place.check()
    }

    /// Whether another file has taken the place of the database.
    pub fn is_replaced(&self) -> bool {
        self.place.is_replaced()
    }

    fn connect(path: &Path) -> Result<Store> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connect = || -> Result<Connection> {
            let conn = Connection::open_with_flags(path, flags)?;
            conn.busy_timeout(BUSY_TIMEOUT)?;
            // Prepared statements stay as they are, rather than being planned anew for each value.
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
            let mode: String = conn.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
            if mode != "wal" {
                let mode = use_wal(&conn)?;
                if mode != "wal" {
                    return Err(Error::config(format!(
                        "SQLite's write-ahead log can't be used there (journal mode {mode}); the file must be on a local disk"
                    )));
                }
            }
            // With the first read its log is opened, which stays until the last connection of all goes.
            conn.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
            // A cache of 256 KiB: lookups touch a handful of pages, and there are several connections.
            // The log starts over rarely, since SQLite syncs its head under the write lock then; the limit is as many pages.
            conn.execute_batch(
                "PRAGMA synchronous = NORMAL; PRAGMA cache_size = -256; PRAGMA temp_store = MEMORY;
                 PRAGMA wal_autocheckpoint = 4096; PRAGMA journal_size_limit = 16777216",
            )?;
            Ok(conn)
        };
        let cannot = |error: Error| error.context(format_args!("cannot open {}", path.display()));
        let conn = connect().map_err(cannot)?;
        let place = Place::look(path).map_err(|error| cannot(Error::unavailable(error.to_string())))?;
        Ok(Store { conn, place })
    }

    /// Copies the write-ahead log back into the database as far as it goes without taking the write lock.
    pub fn checkpoint(&self) {
        // What is not copied now is copied later: a copy that fails, or stops short since somebody reads, loses nothing.
        let _ = self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    }

    /// Copies all of the log back into the database, and syncs that.
    fn checkpoint_all(&self) -> Result<()> {
        let copied =
            |row: &rusqlite::Row| Ok(row.get::<_, i64>(0)? == 0 && row.get::<_, i64>(1)? == row.get::<_, i64>(2)?);
        if self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], copied)? {
            return Ok(());
        }
        Err(Error::unavailable("a sync has failed, and the log can't be copied into the database yet"))
    }

    fn migrate(&mut self) -> Result<()> {
        if version(&self.conn)? == MIGRATIONS.len() {
            return Ok(());
        }
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = version(&tx)?;
        if found > MIGRATIONS.len() {
            return Err(Error::config(format!(
                "its schema has version {found}, this program knows {} (use the newer invited that wrote it)",
                MIGRATIONS.len()
            )));
        }
        for step in &MIGRATIONS[found..] {
            tx.execute_batch(step)?;
        }
        let newest = MIGRATIONS.len().to_string();
        tx.execute("INSERT OR REPLACE INTO invited_meta (name, value) VALUES ('schema', ?1)", [newest])?;
        tx.commit()?;
        self.place.sync()
    }

    /// Runs one write transaction and returns when what it wrote would survive a power cut.
    pub fn write<T>(&mut self, job: impl FnOnce(&Tx) -> Result<T>) -> Result<T> {
        let outcome = self.commit(job)?;
        self.sync()?;
        Ok(outcome)
    }

    /// Runs one write transaction, of which a power cut leaves all or nothing until [`Store::sync`].
    fn commit<T>(&mut self, job: impl FnOnce(&Tx) -> Result<T>) -> Result<T> {
        let commit = || -> Result<T> {
            let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let outcome = job(&Tx { conn: &tx })?;
            tx.commit()?;
            Ok(outcome)
        };
        commit().map_err(|error| self.cannot_write(error))
    }

    fn sync(&self) -> Result<()> {
        self.place.sync().map_err(|error| self.cannot_write(error))
    }

    fn cannot_write(&self, error: Error) -> Error {
        match error.kind {
            Kind::NotFound | Kind::Refused | Kind::Usage => error,
            _ => error.context(format_args!("cannot write to {}", self.place.path().display())),
        }
    }

    /// The value of a host's setting, if it is set.
    pub fn setting(&self, host: &Host, name: &str) -> Result<Option<String>> {
        let mut query = self.conn.prepare_cached("SELECT value FROM invited_setting WHERE host = ?1 AND name = ?2")?;
        Ok(query.query_row([host.name(), name], |row| row.get(0)).optional()?)
    }

    /// The hosts that the file knows: those with a key, a setting or an invite.
    pub fn hosts(&self) -> Result<Vec<String>> {
        let mut query = self.conn.prepare(
            "SELECT host FROM invited_key UNION SELECT host FROM invited_setting UNION SELECT host FROM invited_tally",
        )?;
        let hosts = query.query_map([], |row| row.get(0))?;
        Ok(hosts.collect::<rusqlite::Result<_>>()?)
    }

    /// All settings of a host that are set, by name.
    pub fn settings(&self, host: &Host) -> Result<Vec<(String, String)>> {
        let mut query =
            self.conn.prepare_cached("SELECT name, value FROM invited_setting WHERE host = ?1 ORDER BY name")?;
        let rows = query.query_map([host.name()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

/// What can be done inside one write transaction.
pub struct Tx<'a> {
    conn: &'a Connection,
}

impl Tx<'_> {
    /// Sets a host's setting.
    pub fn set(&self, host: &Host, name: &str, value: &str) -> Result<()> {
        self.conn.execute(
            "INSERT OR REPLACE INTO invited_setting (host, name, value) VALUES (?1, ?2, ?3)",
            [host.name(), name, value],
        )?;
        Ok(())
    }

    /// Takes a host's setting back to its default.
    pub fn unset(&self, host: &Host, name: &str) -> Result<()> {
        self.conn.execute("DELETE FROM invited_setting WHERE host = ?1 AND name = ?2", [host.name(), name])?;
        Ok(())
    }
}

/// What the XMPP server reads of one invite.
pub enum ServerRows {
    /// Rows of Prosody's table.
    Prosody(prosody::Rows),
    /// A row of ejabberd's.
    Ejabberd,
}

impl ServerRows {
    /// Renders the rows, outside of any transaction. `store` is asked which version of the server reads them.
    pub fn new(store: &Store, server: Server, invite: &Invite, uri: &str, landing_page: &str) -> Result<ServerRows> {
        Ok(match server {
            Server::Prosody => {
                let old = if invite.wish.roles.is_empty() { None } else { store.prosody_is_old()? };
                ServerRows::Prosody(prosody::Rows::new(invite, uri, landing_page, old))
            }
            Server::Ejabberd => ServerRows::Ejabberd,
        })
    }

    fn insert(&self, conn: &Connection, invite: &Invite) -> Result<()> {
        match self {
            ServerRows::Prosody(rows) => rows.insert(conn, invite),
            ServerRows::Ejabberd => ejabberd::insert(conn, invite),
        }
    }
}

/// Switches to the write-ahead log and returns the journal mode that this led to. SQLite itself does not wait for others here.
fn use_wal(conn: &Connection) -> Result<String> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            outcome => return Ok(outcome?),
        }
    }
}

/// The version of the schema in the file; 0 where there is none yet.
fn version(conn: &Connection) -> Result<usize> {
    let known: bool =
        conn.query_row("SELECT count(*) FROM sqlite_master WHERE name = 'invited_meta'", [], |row| row.get(0))?;
    if !known {
        return Ok(0);
    }
    let text: Option<String> =
        conn.query_row("SELECT value FROM invited_meta WHERE name = 'schema'", [], |row| row.get(0)).optional()?;
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::internal("the table invited_meta holds no schema version (restore a backup of the file)"))
}

fn cannot_open(path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => Error::new(
            Kind::Permission,
            format!(
                "cannot open {path}: permission denied (run as a user or in a group that may write it, or pass --db FILE)"
            ),
        ),
        io::ErrorKind::ReadOnlyFilesystem => Error::new(
            Kind::Io,
            format!("cannot open {path}: the file system is read-only (mount it for writing, or pass --db FILE)"),
        ),
        _ => Error::new(Kind::Io, format!("cannot open {path}: {error}")),
    }
}

/// `otherwise` is how to name another file.
fn cannot_create(path: &Path, error: &io::Error, otherwise: &str) -> Error {
    let (path, folder) = (path.display(), folder(path).display());
    Error::new(
        Kind::CannotCreate,
        match error.kind() {
            io::ErrorKind::NotFound => {
                format!("cannot create {path}: there is no folder {folder} (make it, or {otherwise})")
            }
            io::ErrorKind::PermissionDenied => format!(
                "cannot create {path}: permission denied in {folder} (run as the user that owns the folder, or {otherwise})"
            ),
            _ => format!("cannot create {path}: {error}"),
        },
    )
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        let Some(code) = error.sqlite_error_code() else {
            use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
            return Error::internal(match error {
                // What is read is not what was written.
                FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..) => {
                    format!("it is damaged: {error} (restore a backup)")
                }
                _ => error.to_string(),
            });
        };
        match code {
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
                Error::unavailable("another process keeps it locked (end that process, or try again)")
            }
            ErrorCode::DiskFull => Error::unavailable("the disk is full (make room, and try again)"),
            ErrorCode::NotADatabase => Error::config("it is not an SQLite database (pass --db with another FILE)"),
            ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied => Error::new(
                Kind::Permission,
                format!(
                    "SQLite can't {} it (the file, its -wal and -shm and their folder must be writable for this user)",
                    if code == ErrorCode::ReadOnly { "write" } else { "open" }
                ),
            ),
            ErrorCode::SystemIoFailure => Error::unavailable(format!(
                "the system fails to read or write it: {error} (look at the disk and at the system's log)"
            )),
            ErrorCode::DatabaseCorrupt => Error::new(Kind::Io, "it is damaged (restore a backup)"),
            _ => Error::internal(error.to_string()),
        }
    }
}
