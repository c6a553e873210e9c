//! Gives up, once all is open, what a server does not need: new privileges (setuid programs), and all files but those of the
//! database and what the system's resolver and certificates need for reading. The only file that names landlock and
//! openssl_probe, which tells where rustls_native_certs looks.
//!
//! Where the kernel has no Landlock, or an older one, as much of it as there is. Restricts the calling thread and those that
//! it starts from then on, so that it has to come before any thread.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::error::{Error, Result};
use crate::store::folder;

/// What name resolution, time zones and certificates are read from. The two stores hold the whole system where there are such,
/// and no secrets.
const SYSTEM: [&str; 8] = ["/etc", "/usr", "/lib", "/lib64", "/run", "/nix/store", "/gnu/store", "/dev/null"];

/// Single files for name resolution and time zones, which can be links to a place outside of all these.
const FILES: [&str; 7] = [
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/localtime",
];

/// The most files of a folder that is allowed as a whole for the sake of one that a link leads to.
const PUBLIC_MAX: u32 = 2_000;

/// Keeps what is in memory, keys for one, out of core dumps and from debuggers of the same user. Where the kernel refuses, all
/// goes on without.
pub fn forbid_dumps() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Restricts this process to the folder of the database, and to its own private folder if it has one. In `sockets`, files may be
/// removed: those folders hold Unix sockets that go at the end. Returns how far the kernel goes along.
pub fn restrict(db: &Path, private: Option<&Path>, sockets: &[PathBuf]) -> Result<&'static str> {
    // Where the database is reached by a symbolic link, it is at the other end.
    let real = db.canonicalize().unwrap_or_else(|_| db.to_owned());
    let rules = || -> std::result::Result<RulesetStatus, RulesetError> {
        let abi = ABI::V5;
        let (read, all) = (AccessFs::from_read(abi), AccessFs::from_all(abi));
        let mut rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(all)?.create()?;
        let (files, folders) = certificates();
        let files: Vec<PathBuf> = FILES.iter().map(PathBuf::from).chain(files).collect();
        for path in SYSTEM.iter().map(PathBuf::from).chain(targets(&files, &folders)) {
            rules = allow(rules, &path, read)?;
        }
        for path in [folder(db), folder(&real)].into_iter().chain(private) {
            rules = allow(rules, path, all)?;
        }
        if let Some(private) = private {
            rules = allow(rules, folder(private), AccessFs::RemoveDir.into())?;
        }
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

/// The files and folders of certificates that are looked for when a server is asked; and the folder of time zones.
fn certificates() -> (Vec<PathBuf>, Vec<PathBuf>) {
    let found = openssl_probe::probe();
    let named = ["SSL_CERT_DIR", "TZDIR"].into_iter().filter_map(env::var_os);
    let named = named.flat_map(|list| env::split_paths(&list).collect::<Vec<_>>());
    let folders: BTreeSet<PathBuf> = named.chain(found.cert_dir).collect();
    (found.cert_file.into_iter().collect(), folders.into_iter().collect())
}

/// What has to be allowed for these files and folders, and for the links in the folders, outside of the system's own folders.
///
/// A link is followed. All of the folder that it leads to is allowed if everybody may read all of it, so that another file can
/// take the place of this one, as when the authorities are brought up to date; otherwise the file alone.
fn targets(files: &[PathBuf], folders: &[PathBuf]) -> BTreeSet<PathBuf> {
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    // A link to a file beside it, as most of those are that have a digest for a name, leads nowhere else.
    let leads_away = |link: &PathBuf| fs::read_link(link).is_ok_and(|to| to.parent() != Some(Path::new("")));
    let links = entries.map(|entry| entry.path()).filter(leads_away);
    let all = files.iter().chain(folders).cloned().chain(links);
    // Most links of a folder lead to one and the same other folder.
    let mut known = BTreeMap::new();
    let mut follow = |path: &Path| {
        let Ok(link) = fs::read_link(path) else { return path.canonicalize().ok() };
        let to = folder(path).join(link);
        let around = folder(&to).to_owned();
        let around = known.entry(around).or_insert_with_key(|around| around.canonicalize().ok()).clone()?;
        let real = around.join(to.file_name()?);
        if real.is_symlink() { real.canonicalize().ok() } else { Some(real) }
    };
    let real = all.filter_map(|path| Some((follow(&path)?, path)));
    let outside = real.filter(|(real, _)| !SYSTEM.iter().any(|system| real.starts_with(system)));
    let mut targets = BTreeSet::new();
    for (real, path) in outside {
        let around = real.parent().filter(|around| real != path && (targets.contains(*around) || is_public(around)));
        targets.insert(around.unwrap_or(&real).to_owned());
    }
    targets
}

/// Whether everybody may read all that is in a folder, and that is no more than some authorities would be.
fn is_public(folder: &Path) -> bool {
    fn all_is_public(folder: &Path, left: &mut u32) -> bool {
        let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        entries.is_ok_and(|entries| {
            entries.iter().all(|entry| {
                *left = left.saturating_sub(1);
                let Ok(found) = entry.metadata() else { return false };
                let mode = found.mode() & 0o007;
                *left > 0
                    && match found.is_dir() {
                        true => mode == 0o005 && all_is_public(&entry.path(), left),
                        false => found.is_symlink() || mode & 0o004 != 0,
                    }
            })
        })
    }
    let mode = |path: &Path| path.metadata().map_or(0, |found| found.mode() & 0o007);
    mode(folder) == 0o005
        && folder.ancestors().all(|above| mode(above) & 0o001 != 0)
        && all_is_public(folder, &mut { PUBLIC_MAX })
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
    use std::os::unix::fs::PermissionsExt as _;
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
            let level = restrict(&db, Some(&private), &[]).unwrap();
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

    #[test]
    fn links_to_certificates_may_be_followed_to_where_they_lead_and_no_further() {
        let root = env::temp_dir().join(format!("invited-links-{}", std::process::id()));
        let [certs, ca, closed, chain] = ["certs", "ca", "closed", "chain"].map(|name| root.join(name));
        for folder in [&certs, &ca, &closed, &chain] {
            fs::create_dir_all(folder).unwrap();
        }
        for file in
            [ca.join("a.pem"), ca.join("later.pem"), closed.join("b.pem"), closed.join("key"), certs.join("c.pem")]
        {
            fs::write(file, "x").unwrap();
        }
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        for (to, link) in [
            (ca.join("a.pem"), chain.join("a.pem")),
            (PathBuf::from("../chain/a.pem"), certs.join("a.pem")),
            (closed.join("b.pem"), certs.join("b.pem")),
            (PathBuf::from("c.pem"), certs.join("0123abcd.0")),
            (PathBuf::from("/usr/share/zoneinfo/UTC"), certs.join("system")),
            (PathBuf::from("/nowhere/at/all"), certs.join("broken")),
            (certs.clone(), root.join("link")),
        ] {
            std::os::unix::fs::symlink(to, link).unwrap();
        }
        let found = targets(&[chain.join("a.pem"), closed.join("key")], &[root.join("link")]);
        assert_eq!(found, BTreeSet::from([ca, closed.join("b.pem"), closed.join("key"), certs]));
        fs::remove_dir_all(&root).unwrap();
    }
}
