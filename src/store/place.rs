//! Where the database is, and whether the file there is still the one that a connection has open.
//!
//! A file can be moved, removed or replaced while it is open: what is written then goes where nobody finds it. So the two
//! files are known by their inodes, and looked at again before anything is answered. The database itself is only ever
//! looked at by its name: opening it by hand would drop our locks on it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, StatVfsMountFlags, fstatvfs};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Opens a file for reading; what is no file, such as a pipe that nobody fills, is an error at once.
pub fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a file")) }
}

/// The folder that a file is in.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file on this machine, whatever its name: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id(u64, u64);

impl Id {
    fn of(found: &Metadata) -> Id {
        Id(found.dev(), found.ino())
    }
}

/// The database and its log, as they were when a connection was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: PathBuf,
    file: Id,
    wal_path: PathBuf,
    wal: Id,
}

impl Place {
    /// Looks at the files of a database on which a connection is open and has read: from then on its log stays.
    pub fn look(path: &Path) -> io::Result<Place> {
        // SQLite follows links, and puts the log beside the file that they lead to.
        let wal_path = with_suffix(&fs::canonicalize(path)?, "-wal");
        let (file, wal) = (Id::of(&path.metadata()?), Id::of(&wal_path.metadata()?));
        Ok(Place { path: path.to_owned(), file, wal_path, wal })
    }

    /// Looks at the files of a database that may have no log, since it is none of ours or not in use yet.
    pub fn look_without_log(path: &Path) -> io::Result<Place> {
        let wal_path = with_suffix(&fs::canonicalize(path)?, "-wal");
        let file = Id::of(&path.metadata()?);
        let wal = wal_path.metadata().map_or(Id(0, 0), |found| Id::of(&found));
        Ok(Place { path: path.to_owned(), file, wal_path, wal })
    }

    /// The name that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its log is.
    pub fn wal_path(&self) -> &Path {
        &self.wal_path
    }

    /// Makes everything that was committed so far survive a power cut, and sees that it went where it will be found.
    ///
    /// The `-wal` file carries no locks, so that opening and closing it here is safe.
    pub fn sync(&self) -> Result<()> {
        let synced = File::open(&self.wal_path).and_then(|wal| {
            wal.sync_data()?;
            // After an error of the disk, ext4 is read-only: writes still seem to work, and a sync that does nothing as well.
            if fstatvfs(&wal)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
                return Err(io::ErrorKind::ReadOnlyFilesystem.into());
            }
            wal.metadata()
        });
        match synced {
            Ok(found) if Id::of(&found) == self.wal => self.check(),
            Ok(_) => Err(self.lost()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.lost()),
            Err(error) => {
                let wal = self.wal_path.display();
                let open_files = [Errno::MFILE, Errno::NFILE].map(|error| Some(error.raw_os_error()));
                let help = if open_files.contains(&error.raw_os_error()) {
                    "raise the limit of open files"
                } else {
                    "look at the disk"
                };
                Err(Error::unavailable(format!("cannot sync {wal}: {error} ({help})")))
            }
        }
    }

    /// Fails unless the file at this place is still the one that was opened.
    pub fn check(&self) -> Result<()> {
        match self.path.metadata() {
            Ok(found) if Id::of(&found) == self.file => Ok(()),
            Ok(_) => Err(Error::unavailable(format!(
                "another file has taken the place of {} (start invited again)",
                self.path.display()
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.gone()),
            Err(error) => {
                let path = self.path.display();
                Err(Error::unavailable(format!("cannot look at {path}: {error} (give access to its folder)")))
            }
        }
    }

    /// Whether there is another file at this place.
    pub fn is_replaced(&self) -> bool {
        self.path.metadata().is_ok_and(|found| Id::of(&found) != self.file)
    }

    /// What is to be said where the two files are not those that were opened.
    pub fn lost(&self) -> Error {
        self.check().err().unwrap_or_else(|| self.gone())
    }

    fn gone(&self) -> Error {
        let path = self.path.display();
        Error::unavailable(format!(
            "{path} or its -wal has gone while it was open (put them back, or stop invited and `invited restore` a backup)"
        ))
    }
}

/// The name of a file that goes with another, such as `-wal`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
