//! `setup`: finds out what the texts of [`crate::setup`] are filled in with, and prints one.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{note, print};
use crate::cli::Listen;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::setup::{self, Facts, Program};
use crate::store::Store;

/// Prints what to paste into the configuration of a program.
pub fn setup(db: &Path, program: &Program, host: Host, listen: Listen) -> Result<()> {
    if matches!(listen, Listen::Tcp(address) if address.port() == 0) {
        return Err(Error::usage("--listen needs the port on which `serve` is to listen"));
    }
    let db = absolute(db)?;
    let settings = if db.exists() { Store::open(&db)?.settings(&host)? } else { Vec::new() };
    let setting = |name: &str| settings.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
    let is_server = matches!(program.name, "prosody" | "ejabberd");
    let server = setting("server").unwrap_or_else(|| {
        // Before there is a database, the server that is being set up is the one to be.
        if is_server && settings.is_empty() && !db.exists() { program.name.to_owned() } else { "prosody".to_owned() }
    });
    if !db.exists() {
        note(format_args!("there is no database {} yet: filled in with defaults", db.display()));
    }
    if is_server && server != program.name {
        note(format_args!("{host} is set up for {server} (`invited set {host} server {}` changes that)", program.name));
    }
    let (user, group) = owner(&db).unwrap_or_else(|| (server.clone(), server.clone()));
    if user == "root" {
        note(format_args!(
            "{} belongs to root: give it to the user of the XMPP server, and invited runs as that user",
            db.display()
        ));
    }
    let (page, names_refuse) = (setting("page"), setting("names-refuse"));
    let url = setting("url").unwrap_or_else(|| format!("https://{}", host.ascii()));
    let program_path = std::env::current_exe()
        .map_err(|error| Error::internal(format!("cannot tell where this program lies: {error}")))?;
    print(&setup::text(
        program,
        &Facts { program: program_path, db, host, user, group, listen, server, url, page, names_refuse },
    )?)
}

/// The path from the root on, without links as far as it exists: some programs follow none.
fn absolute(db: &Path) -> Result<PathBuf> {
    let whole =
        std::path::absolute(db).map_err(|error| Error::usage(format!("'{}' can't be --db: {error}", db.display())))?;
    if let Ok(found) = whole.canonicalize() {
        return Ok(found);
    }
    let (folder, name) = (whole.parent().and_then(|folder| folder.canonicalize().ok()), whole.file_name());
    Ok(folder.zip(name).map_or(whole.clone(), |(folder, name)| folder.join(name)))
}

/// User and group of the file, else of its folder: both by their names, or both by their numbers.
fn owner(db: &Path) -> Option<(String, String)> {
    let found = db.metadata().or_else(|_| db.parent().unwrap_or(Path::new("/")).metadata()).ok()?;
    let names = name_of("/etc/passwd", found.uid()).zip(name_of("/etc/group", found.gid()));
    Some(names.unwrap_or_else(|| (found.uid().to_string(), found.gid().to_string())))
}

/// The name with this number in `/etc/passwd` or `/etc/group`, if it is a usual one.
fn name_of(file: &str, id: u32) -> Option<String> {
    let lines = fs::read_to_string(file).ok()?;
    let mut names = lines.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then_some(name)
    });
    let is_usual = |name: &&str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    names.find(is_usual).map(str::to_owned)
}
