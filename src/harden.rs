//! Gives up, once all is open, what a server does not need: new privileges (setuid programs), and all files but those of the
//! database and what the system's resolver and certificates need for reading. The only file that names landlock.
//!
//! Where the kernel has no Landlock, or an older one, as much of it as there is. Restricts the calling thread and those that
//! it starts from then on, so that it has to come before any thread.

use std::env;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus,
};

use crate::error::{Error, Result};
use crate::store::folder;

/// What name resolution, time zones and certificates are read from.
const SYSTEM: [&str; 6] = ["/etc", "/usr", "/lib", "/lib64", "/run", "/dev/null"];

/// Restricts this process to the folder of the database, and to its own private folder. In `sockets`, files may be removed:
/// those folders hold Unix sockets that go at the end. Returns how far the kernel goes along.
pub fn restrict(db: &Path, private: &Path, sockets: &[PathBuf]) -> Result<&'static str> {
    // Where the database is reached by a symbolic link, it is at the other end.
    let real = db.canonicalize().unwrap_or_else(|_| db.to_owned());
    let rules = || -> std::result::Result<RulesetStatus, RulesetError> {
        let abi = ABI::V5;
        let (read, all) = (AccessFs::from_read(abi), AccessFs::from_all(abi));
        let mut rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(all)?.create()?;
        for path in SYSTEM.iter().map(PathBuf::from).chain(certificates()) {
            rules = allow(rules, &path, read)?;
        }
        for path in [folder(db), folder(&real), private] {
            rules = allow(rules, path, all)?;
        }
        rules = allow(rules, folder(private), AccessFs::RemoveDir.into())?;
        for path in sockets {
            rules = allow(rules, folder(path), AccessFs::RemoveFile.into())?;
        }
        Ok(rules.restrict_self()?.ruleset)
    };
    match rules() {
        Ok(RulesetStatus::FullyEnforced) => Ok("full"),
        Ok(RulesetStatus::PartiallyEnforced) => Ok("partial"),
        Ok(RulesetStatus::NotEnforced) => Ok("none"),
        Err(error) => Err(Error::internal(format!("cannot give up what is not needed: {error}"))),
    }
}

/// Where the admin has put certificates of authorities.
fn certificates() -> impl Iterator<Item = PathBuf> {
    ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(env::var_os).map(PathBuf::from)
}

/// Allows access below a path; nothing if there is no such path.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: landlock::BitFlags<AccessFs>,
) -> std::result::Result<RulesetCreated, RulesetError> {
    let Ok(fd) = PathFd::new(path) else { return Ok(rules) };
    // A file takes no right that is for folders.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(ABI::V5) };
    rules.add_rule(PathBeneath::new(fd, access))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::thread;

    use super::*;

    #[test]
    fn nothing_is_left_but_the_folder_of_the_database() {
        let outside = env::temp_dir().join(format!("invited-harden-{}", std::process::id()));
        let (inside, private) = (outside.join("db"), outside.join("private/own"));
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir_all(&private).unwrap();
        fs::write(outside.join("secret"), "x").unwrap();
        let db = inside.join("invited.sqlite");
        let paths = (outside.clone(), private.clone());
        // Landlock holds for a thread and its children, so that the other tests go free.
        let outcome = thread::spawn(move || {
            let (outside, private) = paths;
            let level = restrict(&db, &private, &[]).unwrap();
            fs::write(&db, "x").unwrap();
            fs::remove_file(&db).unwrap();
            fs::remove_dir(&private).unwrap();
            assert!(File::open("/etc/passwd").is_ok());
            let forbidden = [
                File::open(outside.join("secret")).map(|_| ()),
                fs::write(outside.join("new"), "x"),
                fs::remove_file(outside.join("secret")),
                fs::write("/etc/invited-test", "x"),
            ];
            (level, forbidden.iter().all(|outcome| outcome.is_err()))
        });
        let (level, is_kept_out) = outcome.join().unwrap();
        assert!(is_kept_out || level == "none", "{level}");
        fs::remove_dir_all(&outside).unwrap();
    }
}
