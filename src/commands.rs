//! One function for each subcommand. The only writer to stdout; knows no SQL and no sockets' contents.

mod doctor;
pub mod import;
mod invites;
mod serve;
mod setup;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Write as _};

use crate::cli::{Command, NewValue};
use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::json;
use crate::key::{self, NewKey};
use crate::log;
use crate::page::apps;
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
            print(&format!("{}\n", key.text()))
        }
        Command::List { db, host, json } => list(&Store::open(&db)?, &host, json),
        Command::Delete { db, host, id, revoke_unused } => delete(&mut Store::open(&db)?, &host, &id, revoke_unused),
        Command::Invite { db, host, wish, output } => invites::invite(&mut Store::open(&db)?, &host, wish, output),
        Command::Invites { db, host, all, json } => invites::list(&mut Store::open(&db)?, &host, all, json),
        Command::Show { db, host, token, json } => invites::show(&Store::open(&db)?, &host, &token, json),
        Command::Revoke { db, host, token } => invites::revoke(&mut Store::open(&db)?, &host, &token),
        Command::Prune { db, host } => {
            let pruned = Store::open(&db)?.prune(host.as_ref(), log::now())?;
            print(&format!("{} expired, {} forgotten\n", pruned.expired, pruned.forgotten))
        }
        Command::Import { db, source } => {
            import::write(&import::read(&source, &db)?, &source, &mut Store::create(&db)?)
        }
        Command::Serve { db, serve } => serve::run(&db, &serve),
        Command::Setup { db, program, host, listen } => setup::setup(&db, program, host, listen),
        Command::Doctor { db, host, json } => doctor::doctor(&db, &host, json),
        Command::Backup { db, to } => Store::open(&db)?.backup(&to),
        Command::Restore { db, from } => match store::restore(&db, &from)? {
            Some(kept) => print(&format!("the old database is kept as {}\n", kept.display())),
            None => Ok(()),
        },
        Command::Try { host } => serve::try_out(&host),
        Command::Set { db, host, name, value } => set(&mut Store::open(&db)?, &host, name, value),
        Command::Get { db, host, name: Some(name) } => match Store::open(&db)?.setting(&host, name)? {
            Some(value) => print(&format!("{value}\n")),
            None => Err(Error::not_found(format!(
                "{name} is not set for {host} (`invited set {host} {name} VALUE` sets it)"
            ))),
        },
        Command::Get { db, host, name: None } => {
            let mut lines = String::new();
            for (name, value) in Store::open(&db)?.settings(&host)? {
                let is_file = matches!(settings::find(&name), Ok(Setting { value: settings::Value::File(_), .. }));
                let value = if is_file { format!("({} bytes)", value.len()) } else { value };
                let _ = writeln!(lines, "{name}\t{value}");
            }
            print(&lines)
        }
        Command::Unset { db, host, name } => Store::open(&db)?.write(|tx| {
            tx.unset(&host, name)?;
            if name == "server" { tx.release_ejabberd() } else { Ok(()) }
        }),
    }
}

fn set(store: &mut Store, host: &Host, name: &str, value: NewValue) -> Result<()> {
    let value = match value {
        NewValue::Text(text) => text,
        NewValue::File(path, check) => {
            let cannot = |why: String| Error::usage(format!("{} can't be the {name} of {host}: {why}", path.display()));
            let mut bytes = Vec::new();
            let unreadable = |error: io::Error| Error::internal(format!("cannot read {}: {error}", path.display()));
            let file = File::open(&path).map_err(unreadable)?;
            // A byte more than it may have tells that it is too large.
            file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
            if bytes.len() as u64 > FILE_MAX {
                return Err(cannot(format!("it has more than {FILE_MAX} bytes")));
            }
            check(&bytes).map_err(cannot)?
        }
    };
    if matches!(name, "apps-show" | "apps-hide") {
        check_app_ids(store, host, name, &value)?;
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
    let mut shown: Vec<&str> = known.iter().map(String::as_str).collect();
    shown.extend(store.setting(host, "web-client")?.map(|_| apps::WEB_CLIENT));
    let leaves_none = name == "apps-hide" && shown.iter().all(|shown| ids.split(',').any(|id| id == *shown));
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

/// Deletes a key, and then takes back what it made: where that is interrupted, the same again goes on.
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
