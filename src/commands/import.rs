//! `import`: finds out what kind of file it is given, and of which host.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read as _};
use std::path::Path;

use super::{note, print};
use crate::error::{Error, Result};
use crate::key;
use crate::log;
use crate::lua;
use crate::store::{Item, Store, open_file, read_sqlite};

/// The largest file of Prosody's that is read, in bytes.
const DAT_MAX: u64 = 256 * 1024 * 1024;

/// The most invites whose addresses are looked at.
const ADDRESSES_MAX: usize = 1_000;

/// Brings in what was [`read`].
pub fn write(items: &[Item], source: &Path, store: &mut Store) -> Result<()> {
    let imported = store.import(items, log::now()).map_err(|error| error.context(source.display()))?;
    store.catch_up()?;
    print(&format!("{} keys, {} invites, {} skipped\n", imported.keys, imported.invites, imported.skipped))?;
    for address in addresses(items) {
        note(format_args!(
            "invites were given out as {address}: let the web server at that address pass them on to `invited serve`, as \
             `invited setup nginx HOST` shows for its own"
        ));
    }
    Ok(())
}

/// Where the pages of these invites are, with `TOKEN` in the place of each token; no more than a handful.
fn addresses(items: &[Item]) -> BTreeSet<String> {
    let page = |item: &Item| Some(item.value["landing_page"].as_str()?.replace(&item.key, "TOKEN"));
    let pages = items.iter().filter_map(page).map(|page| page.replace(key::is_control, "\u{fffd}"));
    pages.take(ADDRESSES_MAX).collect()
}

/// Reads a file, or all files of a folder in which Prosody keeps a host's data. Comes before the database `db` is opened: it
/// could be the very file, and closing that by hand would drop our locks on it.
pub fn read(source: &Path, db: &Path) -> Result<Vec<Item>> {
    if !source.is_dir() {
        return if is_sqlite(source)? { read_sqlite(source, db) } else { read_dat(source) };
    }
    let cannot = |path: &Path, error: &io::Error| Error::internal(format!("cannot read {}: {error}", path.display()));
    let mut files = Vec::new();
    for name in ["invite_api_keys.dat", "invite_token.dat"] {
        let file = source.join(name);
        if file.try_exists().map_err(|error| cannot(&file, &error))? {
            files.push(file);
        }
    }
    let users = source.join("invite_token");
    match std::fs::read_dir(&users) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(cannot(&users, &error)),
        Ok(entries) => {
            for entry in entries {
                let file = entry.map_err(|error| cannot(&users, &error))?.path();
                // Editors leave copies such as `ana.dat~` behind.
                if file.extension().is_some_and(|ending| ending == "dat") {
                    files.push(file);
                }
            }
        }
    }
    if files.is_empty() {
        return Err(Error::not_found(format!(
            "there is no invite_api_keys.dat and no invite_token.dat in {} (give Prosody's folder of one host)",
            source.display()
        )));
    }
    let mut items = Vec::new();
    for file in files {
        items.extend(read_dat(&file)?);
    }
    Ok(items)
}

fn is_sqlite(file: &Path) -> Result<bool> {
    let mut head = Vec::new();
    open_file(file)
        .and_then(|file| file.take(16).read_to_end(&mut head))
        .map_err(|error| Error::internal(format!("cannot read {}: {error}", file.display())))?;
    Ok(head == b"SQLite format 3\0")
}

/// Reads `…/HOST/STORE.dat` or `…/HOST/invite_token/USER.dat`; names are percent-encoded in Prosody's manner.
fn read_dat(file: &Path) -> Result<Vec<Item>> {
    let name = file.display().to_string().replace(key::is_control, "\u{fffd}");
    let cannot = |why: &str| Error::internal(format!("cannot import {name}: {why}"));
    let absolute = file.canonicalize().map_err(|error| cannot(&error.to_string()))?;
    let mut names = absolute.iter().rev().map(|name| decode(&name.to_string_lossy()));
    let (last, folder) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
    let stem = last.strip_suffix(".dat").ok_or_else(|| {
        cannot("it is neither an SQLite database nor a file of Prosody's (HOST/invite_api_keys.dat, HOST/invite_token.dat)")
    })?;
    let (host, user, store) = match (folder.as_str(), stem) {
        (_, "invite_api_keys" | "invite_token") => (folder, String::new(), stem.to_owned()),
        ("invite_token", user) => (names.next().unwrap_or_default(), user.to_owned(), folder.clone()),
        _ => return Err(cannot("its name is not invite_api_keys.dat or invite_token.dat")),
    };
    let mut text = String::new();
    let read = open_file(file).and_then(|file| file.take(DAT_MAX + 1).read_to_string(&mut text));
    if read.map_err(|error| cannot(&error.to_string()))? as u64 > DAT_MAX {
        return Err(cannot("it is larger than 256 MiB"));
    }
    items(&text, &host, &user, &store).map_err(|why| cannot(&why))
}

/// The items in the text of a file; the error names the line.
pub fn items(text: &str, host: &str, user: &str, store: &str) -> std::result::Result<Vec<Item>, String> {
    let table = lua::read(text).map_err(|bad| format!("line {}: {}", bad.line, bad.why))?;
    // An empty store is an empty table.
    let fields = table.as_object().ok_or("line 1: expected a table with names")?;
    // Prosody's serializer begins each entry on a line of its own.
    let mut lines = HashMap::new();
    for (at, line) in text.lines().enumerate() {
        if let Some((key, _)) = line.trim_start().strip_prefix("[\"").and_then(|rest| rest.split_once("\"]")) {
            lines.entry(key).or_insert(at + 1);
        }
    }
    let items = fields.iter().map(|(key, value)| {
        let line = lines.get(key.as_str()).copied().unwrap_or(1);
        let place = format!("line {line}");
        Item {
            host: host.to_owned(),
            user: user.to_owned(),
            store: store.to_owned(),
            key: key.clone(),
            value: value.clone(),
            place,
        }
    });
    Ok(items.collect())
}

/// Prosody's escape of file names: `%` and two hexadecimal digits.
fn decode(name: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
