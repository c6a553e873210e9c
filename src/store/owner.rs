//! Whose rights root uses. Another user that owns a folder can swap its files for links at any moment, and so lead root astray:
//! there, root works as that user, and so reaches nothing that this user could not reach anyway.
//!
//! Rights are those of the calling thread, so that all of this comes before any other thread.

use std::fs::{self, File, Metadata};
use std::io;
use std::iter::successors;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf, absolute};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, ResolveFlags, accessat, openat2};
use rustix::process::{Gid, Uid, getegid, geteuid, getgroups};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::place::{folder, open_file, with_suffix};
use crate::error::{Error, Kind, Result};

/// The most links of a path, as many as the kernel follows.
const HOPS: usize = 41;

/// A user other than root, with its groups; the first one is its own.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    uid: u32,
    groups: Vec<u32>,
}

/// The user that can swap the file at this path, or a link on the way to it, where this process is root and that user is not.
pub fn other(path: &Path) -> Option<User> {
    if !geteuid().is_root() {
        return None;
    }
    // The name, what it leads to, and each link between can be in somebody's folder.
    hops(path).find_map(|path| owner(&path)).map(User::of)
}

/// A path as the kernel resolves it: with one link fewer each time.
fn hops(path: &Path) -> impl Iterator<Item = PathBuf> {
    let next = |path: &PathBuf| {
        let link = first_link(path)?;
        let to = folder(&link).join(fs::read_link(&link).ok()?);
        let rest = path.strip_prefix(&link).ok()?;
        Some(if rest.as_os_str().is_empty() { to } else { to.join(rest) })
    };
    successors(absolute(path).ok(), next).take(HOPS)
}

fn first_link(path: &Path) -> Option<PathBuf> {
    path.ancestors().filter(|above| above.is_symlink()).last().map(Path::to_owned)
}

fn owner(path: &Path) -> Option<Metadata> {
    let around = folder(path);
    let is_shared = around.metadata().is_ok_and(|found| found.mode() & 0o022 != 0);
    let file = path.metadata().ok().filter(|_| is_shared);
    let folders = around.ancestors().filter_map(|folder| folder.metadata().ok());
    let links = path.ancestors().filter_map(|link| link.symlink_metadata().ok()).filter(Metadata::is_symlink);
    folders.chain(file).chain(links).find(|found| found.uid() != 0 && exists(found.uid()))
}

/// Whether there is such a user here. In a container (a user namespace), files of users from outside have an owner that nobody
/// in it can be; to them, its root is any user.
fn exists(uid: u32) -> bool {
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else { return true };
    let is_in = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap_or(u64::MAX));
        let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
        let ids = first.unwrap_or(0)..first.unwrap_or(0).saturating_add(count.unwrap_or(u64::MAX));
        ids.contains(&u64::from(uid))
    };
    map.lines().any(is_in)
}

impl User {
    /// The owner of a file or folder, with the groups that the system's own lists give it.
    fn of(found: Metadata) -> User {
        let list = |path| fs::read_to_string(path).unwrap_or_default();
        let (users, groups) = (list("/etc/passwd"), list("/etc/group"));
        let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
        let users = users.lines().map(fields);
        let user = users.into_iter().find(|user| user.len() > 3 && user[2] == found.uid().to_string());
        let (name, gid) = match &user {
            Some(user) => (user[0].as_str(), user[3].parse().unwrap_or(found.gid())),
            None => ("", found.gid()),
        };
        let has_it =
            |group: &Vec<String>| !name.is_empty() && group.len() > 3 && group[3].split(',').any(|of| of == name);
        let others = groups.lines().map(fields).filter(has_it).filter_map(|group| group[2].parse().ok());
        User { uid: found.uid(), groups: [gid].into_iter().chain(others).collect() }
    }

    fn cannot(&self, error: rustix::io::Errno) -> Error {
        let (uid, error) = (self.uid, io::Error::from(error));
        Error::new(
            Kind::Permission,
            format!("root cannot work as user {uid}, the owner of the folder: {error} (run as that user)"),
        )
    }

    /// Takes this user's rights, for good or until [`as_owner`] takes root's back.
    fn assume(&self, for_good: bool) -> Result<()> {
        let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), groups[0]);
        let assumed = set_thread_groups(&groups).and_then(|()| match for_good {
            true => set_thread_res_gid(gid, gid, gid).and_then(|()| set_thread_res_uid(uid, uid, uid)),
            false => set_thread_res_gid(None, gid, None).and_then(|()| set_thread_res_uid(None, uid, None)),
        });
        assumed.map_err(|error| self.cannot(error))
    }
}

/// Gives root's rights up for those of the user that can swap the file at this path, if that is another.
pub fn become_owner(path: &Path) -> Result<()> {
    other(path).map_or(Ok(()), |user| user.assume(true))
}

/// Does some work with the rights of the user that can swap the file at this path, if that is another than root.
pub fn as_owner<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(user) = other(path) else { return work() };
    let (gid, groups) = (getegid(), getgroups().map_err(|error| user.cannot(error))?);
    let done = user.assume(false).and_then(|()| work());
    let back = set_thread_res_uid(None, Uid::ROOT, None)
        .and_then(|()| set_thread_res_gid(None, gid, None))
        .and_then(|()| set_thread_groups(&groups));
    back.map_err(|error| Error::internal(format!("root's rights can't be taken back: {}", io::Error::from(error))))?;
    done
}

/// As [`as_owner`], for work that fails as the system does.
pub fn as_owner_io<T>(path: &Path, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    as_owner(path, || Ok(work())).unwrap_or_else(|error| Err(io::Error::other(error.to_string())))
}

/// Opens a file for reading that an admin has named. In another user's folder root reads what that user may read, and besides
/// only files of root's own that no link leads to.
pub fn open_source(path: &Path) -> io::Result<File> {
    open_beside(path, "")
}

/// Opens what SQLite keeps beside such a file, with the same rights, wherever a link leads.
pub fn open_beside(path: &Path, suffix: &str) -> io::Result<File> {
    let opened = as_owner_io(path, || match suffix {
        "" => open_file(path),
        // It is beside the file itself, not beside a link to it.
        _ => open_file(&with_suffix(&fs::canonicalize(path)?, suffix)),
    });
    or_of_root(path, opened, || {
        // Beside a link there is no such file, which tells nothing.
        open_without_links(path, OFlags::PATH)?;
        let file = open_without_links(&with_suffix(path, suffix), OFlags::NONBLOCK)?;
        let is = file.metadata()?;
        Ok((is.is_file() && is.uid() == 0 && is.nlink() == 1).then_some(file))
    })
}

/// Opens the folder in which root makes this file with rights of its own. In another user's folder that is one in which the user
/// could make it too, or one of root's own that no link leads to.
pub fn open_folder_of(path: &Path) -> io::Result<File> {
    let opened = as_owner_io(path, || {
        let around = File::open(folder(path))?;
        accessat(&around, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?;
        Ok(around)
    });
    or_of_root(path, opened, || {
        let around = open_without_links(folder(path), OFlags::DIRECTORY)?;
        Ok((around.metadata()?.uid() == 0).then_some(around))
    })
}

/// Where another user may not open it, what root opens instead, if anything.
fn or_of_root(
    path: &Path,
    opened: io::Result<File>,
    open: impl FnOnce() -> io::Result<Option<File>>,
) -> io::Result<File> {
    match opened {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && other(path).is_some() => open()?.ok_or(error),
        opened => opened,
    }
}

/// Follows links only where nobody but root can change them.
fn open_without_links(path: &Path, flags: OFlags) -> io::Result<File> {
    let is_others = |link: PathBuf| owner(&link).is_some();
    let path = hops(path).find(|path| first_link(path).is_none_or(is_others)).ok_or(io::ErrorKind::NotFound)?;
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(openat2(CWD, &path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?.into())
}
