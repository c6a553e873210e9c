//! One function for each subcommand. The only writer to stdout; knows no SQL and no sockets' contents.

mod doctor;
pub mod import;
mod invites;
mod serve;
mod setup;

use std::fmt::{Display, Write as _};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use crate::cli::{Command, NewValue};
use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::json;
use crate::key::{self, NewKey};
use crate::log;
use crate::page::apps;
use crate::secret::concat;
use crate::settings::{self, FILE_MAX, Setting};
use crate::store::{self, KeyLimits, Store};

/// Does what was asked for.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Help(text) => print(&text),
        Command::Version => print(concat!("invited ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Create { db, host, name, allow, ttl_secs, per_day } => {
            let expires_at = ttl_secs.map(|seconds| log::now() + seconds);
            let limits = KeyLimits { expires_at, allow, per_day };
            let key = create_key(&mut Store::create(&db)?, &host, name.as_deref(), &limits)?;
            print(&concat(&[&key.text(), "\n"]))
        }
        Command::List { db, host, json } => list(&open(&db, &host)?, &host, json),
        Command::Delete { db, host, id, revoke_unused } => delete(&mut open(&db, &host)?, &host, &id, revoke_unused),
        Command::Invite { db, host, new_host, wish, output } => {
            let mut store = if new_host { Store::open(&db)? } else { open_or_hint(&db, &host)? };
            invites::invite(&mut store, &host, wish, output)
        }
        Command::Invites { db, host, all, json } => invites::list(&mut open(&db, &host)?, &host, all, json),
        Command::Show { db, host, token, json } => invites::show(&open(&db, &host)?, &host, &token, json),
        Command::Revoke { db, host, token } => invites::revoke(&mut open(&db, &host)?, &host, &token),
        Command::Prune { db, host } => {
            let mut store = match &host {
                Some(host) => open(&db, host)?,
                None => Store::open(&db)?,
            };
            let pruned = store.prune(host.as_ref(), log::now())?;
            print(&format!("{} expired, {} forgotten\n", pruned.expired, pruned.forgotten))
        }
        Command::Import { db, source } => {
            let items = store::as_owner(&source, || import::read(&source, &db))?;
            import::write(&items, &source, &mut Store::create(&db)?)
        }
        Command::Serve { db, serve } => serve::run(&db, &serve),
        Command::Setup { db, program, host, listen } => setup::setup(&db, program, host, listen),
        Command::Doctor { db, host, json } => doctor::doctor(&db, &host, json),
        Command::Backup { db, to } => store::backup(&db, &to),
        Command::Restore { db, from } => match store::restore(&db, &from)? {
            Some(kept) => print(&format!("the old database is kept as {}\n", kept.display())),
            None => Ok(()),
        },
        Command::Try { host } => serve::try_out(&host),
        Command::Set { db, host, new_host, name, value } => set(&db, &host, new_host, name, value),
        Command::Get { db, host, name: Some(name) } => match open(&db, &host)?.setting(&host, name)? {
            Some(value) => print(&format!("{value}\n")),
            None => Err(Error::not_found(format!(
                "{name} is not set for {host} (`invited set {host} {name} VALUE` sets it)"
            ))),
        },
        Command::Get { db, host, name: None } => {
            let mut lines = String::new();
            for (name, value) in open(&db, &host)?.settings(&host)? {
                let is_file = matches!(settings::find(&name), Ok(Setting { value: settings::Value::File(_), .. }));
                let value = if is_file { format!("({} bytes)", value.len()) } else { value };
                let _ = writeln!(lines, "{name}\t{value}");
            }
            print(&lines)
        }
        Command::Unset { db, host, name } => open(&db, &host)?.write(|tx| {
            tx.unset(&host, name)?;
            if name == "server" { tx.release_ejabberd() } else { Ok(()) }
        }),
    }
}

/// Opens a database that knows this host, or none at all yet: a typing error must not pass for another host.
fn open(db: &Path, host: &Host) -> Result<Store> {
    open_for(db, host, &format!("`invited create {host}` adds it"))
}

/// The same for the commands that can add a host.
fn open_or_hint(db: &Path, host: &Host) -> Result<Store> {
    open_for(db, host, "--new-host adds it")
}

fn open_for(db: &Path, host: &Host, way_out: &str) -> Result<Store> {
    let store = Store::open(db)?;
    let known = store.hosts()?;
    if known.is_empty() || known.iter().any(|known| known == host.name()) {
        return Ok(store);
    }
    let known = known.join(", ");
    Err(Error::not_found(format!("{} does not know the host {host}, but {known} ({way_out})", db.display())))
}

fn set(db: &Path, host: &Host, new_host: bool, name: &str, value: NewValue) -> Result<()> {
    // Before the database is opened, from when on root may have no rights but those of its owner.
    let value = match value {
        NewValue::Text(text) => text,
        NewValue::File(path, check) => {
            let cannot = |why: String| Error::usage(format!("{} can't be the {name} of {host}: {why}", path.display()));
            let mut bytes = Vec::new();
            let unreadable = |error: io::Error| Error::internal(format!("cannot read {}: {error}", path.display()));
            let file = store::open_source(&path).map_err(unreadable)?;
            // A byte more than it may have tells that it is too large.
            file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
            if bytes.len() as u64 > FILE_MAX {
                return Err(cannot(format!("it has more than {FILE_MAX} bytes")));
            }
            check(&bytes).map_err(cannot)?
        }
    };
    let mut store = if new_host { Store::open(db)? } else { open_or_hint(db, host)? };
    if matches!(name, "apps-show" | "apps-hide") {
        check_app_ids(&store, host, name, &value)?;
    }
    store.write(|tx| {
        tx.set(host, name, &value)?;
        match (name, value.as_str()) {
            ("server", "ejabberd") => tx.prepare_ejabberd(),
            ("server", _) => tx.release_ejabberd(),
            _ => Ok(()),
        }
    })?;
    store.copy_ejabberd()
}

/// A typing error here would show guests what the admin did not mean.
fn check_app_ids(store: &Store, host: &Host, name: &str, ids: &str) -> Result<()> {
    let own = store.setting(host, "apps")?.and_then(|text| apps::read(&text).ok()).unwrap_or_default();
    let mut known: Vec<String> = own.into_iter().map(|app| app.id).collect();
    let ours: Vec<String> = apps::embedded().into_iter().map(|app| app.id).filter(|id| !known.contains(id)).collect();
    known.extend(ours);
    let is_known = |id: &&str| *id == apps::WEB_CLIENT || known.iter().any(|known| known == id);
    // Together with the other of the two settings.
    let (show, hide) = match name {
        "apps-show" => (Some(ids.to_owned()), store.setting(host, "apps-hide")?),
        _ => (store.setting(host, "apps-show")?, Some(ids.to_owned())),
    };
    let names = |list: &Option<String>, id: &str| list.as_deref().map(|list| list.split(',').any(|word| word == id));
    let has_web_client = store.setting(host, "web-client")?.is_some() && names(&hide, apps::WEB_CLIENT) != Some(true);
    let is_shown = |id: &String| names(&show, id) != Some(false) && names(&hide, id) != Some(true);
    let leaves_none = !has_web_client && !known.iter().any(is_shown);
    match ids.split(',').find(|id| !is_known(id)) {
        None if leaves_none => Err(Error::usage(format!(
            "this can't be {name} of {host}: it would leave guests without any app (a `web-client` would be one)"
        ))),
        None => Ok(()),
        Some(id) => Err(Error::usage(format!(
            "'{id}' can't be in {name} of {host}: there is no such app (there are {}; further ones come with `invited set {host} apps FILE`)",
            known.join(", ")
        ))),
    }
}

fn list(store: &Store, host: &Host, json: bool) -> Result<()> {
    let keys = store.keys(host)?;
    if json {
        return print(&format!("{}\n", json::array(keys.iter().map(json::key).collect())));
    }
    let mut lines = String::new();
    for key in keys {
        let _ = writeln!(lines, "{}\t{}", key.id, key.name.as_deref().unwrap_or("<unknown>"));
    }
    print(&lines)
}

/// Deletes a key, then revokes its unused invites. After an interruption, a second call continues.
fn delete(store: &mut Store, host: &Host, id: &str, revoke_unused: bool) -> Result<()> {
    let (source, now) = (key::source(id), log::now());
    let deleted = store.write(|tx| tx.delete_key(host, id));
    if !revoke_unused {
        return deleted;
    }
    store.catch_up()?;
    match deleted {
        Err(error) if error.kind != Kind::NotFound || !store.has_unused(host, &source, now)? => Err(error),
        _ => store.revoke_unused(host, &source, now),
    }
}

/// Makes a key; once this returns it is safe on disk.
fn create_key(store: &mut Store, host: &Host, name: Option<&str>, limits: &KeyLimits) -> Result<NewKey> {
    let key = NewKey::make()?;
    store.write(|tx| tx.add_key(host, &key.id, &key.digest(), name, limits, log::now()))?;
    Ok(key)
}

/// Says something on stderr that is no result and no failure.
fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "invited: {text}");
}

/// Writes a result. A reader that has gone, as in `invited list HOST | head -1`, is no failure.
fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::internal(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}
