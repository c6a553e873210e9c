//! Invites as ejabberd's `mod_invites` keeps them in its table `invite_token`.
//!
//! One row for each. It expires in the local time zone of the server, which must be ours too; it was created in UTC. It is
//! used when `invitee` is not empty. Checked against ejabberd 26.07. Decides nothing.

use rusqlite::{Connection, params};

use super::steps::STEP;
use super::{Store, Tx};
use crate::error::{Error, Result};
use crate::invite::{Invite, Kind};

const TABLE: &str = include_str!("ejabberd.sql");
const TRIGGERS: &str = include_str!("ejabberd_triggers.sql");
const COPY: &str = include_str!("ejabberd_copy.sql");

/// The row of `invited_meta` that is there until all of ejabberd's earlier invites are taken over.
const UNCOPIED: &str = "ejabberd-uncopied";

impl Tx<'_> {
    /// Sees to it that ejabberd's table and our triggers on it are there, whoever of the two comes first. What is in the
    /// table already is for [`Store::copy_ejabberd`].
    pub fn prepare_ejabberd(&self) -> Result<()> {
        if !exists(self.conn, "invite_token")? {
            self.conn.execute_batch(TABLE)?;
        }
        if !has_server_host(self.conn)? && hosts(self.conn)? > 1 {
            return Err(Error::refused(
                "this file is of another host of ejabberd's already (give each its own --db, or use sql_schema_multihost)",
            ));
        }
        self.conn.execute_batch(&TRIGGERS.replace("{NEW.HOST}", host_of_row(self.conn)?))?;
        self.conn.execute("INSERT OR REPLACE INTO invited_meta (name, value) VALUES (?1, '')", [UNCOPIED])?;
        Ok(())
    }
}

impl Store {
    /// Takes over what was in ejabberd's table before us, unless that is done: a step at a time, and again when the file is
    /// opened should this be interrupted.
    pub fn copy_ejabberd(&mut self) -> Result<()> {
        if !self.conn.prepare_cached("SELECT 1 FROM invited_meta WHERE name = ?1")?.exists([UNCOPIED])? {
            return Ok(());
        }
        let copy = COPY.replace("{NEW.HOST}", host_of_row(&self.conn)?);
        self.step_through(
            |store, last: Option<&String>| {
                let mut query = store.conn.prepare_cached(
                    "SELECT token FROM invite_token WHERE token > ?1 AND invitee = '' ORDER BY token LIMIT ?2",
                )?;
                let last = last.map_or("", String::as_str);
                let rows = query.query_map(params![last, STEP as i64], |row| row.get(0))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            },
            |tx, token| {
                tx.conn.prepare_cached(&copy)?.execute([token])?;
                Ok(())
            },
        )?;
        self.write(|tx| tx.set_copied())
    }
}

/// The host of a row of ejabberd's table, in SQL.
fn host_of_row(conn: &Connection) -> Result<&'static str> {
    // Without the column the whole table is of one host: the one that says so.
    Ok(if has_server_host(conn)? {
        "NEW.server_host"
    } else {
        "(SELECT host FROM invited_setting WHERE name = 'server' AND value = 'ejabberd')"
    })
}

impl Tx<'_> {
    /// Takes our triggers off ejabberd's table once no host is ejabberd's any more: they would not know whose rows there are.
    pub fn release_ejabberd(&self) -> Result<()> {
        if hosts(self.conn)? > 0 {
            return Ok(());
        }
        let mut triggers = self.conn.prepare(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'invited\\_ejabberd\\_%' ESCAPE '\\'",
        )?;
        let names: Vec<String> = triggers.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        for name in names {
            self.conn.execute_batch(&format!("DROP TRIGGER {name}"))?;
        }
        self.set_copied()
    }

    fn set_copied(&self) -> Result<()> {
        self.conn.execute("DELETE FROM invited_meta WHERE name = ?1", [UNCOPIED])?;
        Ok(())
    }
}

/// Whether [`Tx::prepare_ejabberd`] has work to do: a host is ejabberd's and a trigger is missing.
pub fn is_unprepared(conn: &Connection) -> Result<bool> {
    let triggers: i64 = conn.query_row(
        "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'invited\\_ejabberd\\_%' ESCAPE '\\'",
        [],
        |row| row.get(0),
    )?;
    Ok(triggers < 5 && hosts(conn)? > 0)
}

/// How many hosts say that ejabberd reads this file.
pub fn hosts(conn: &Connection) -> Result<i64> {
    let sql = "SELECT count(*) FROM invited_setting WHERE name = 'server' AND value = 'ejabberd'";
    Ok(conn.query_row(sql, [], |row| row.get(0))?)
}

/// Writes the row of an invite.
pub fn insert(conn: &Connection, invite: &Invite) -> Result<()> {
    let wish = &invite.wish;
    let name = wish.username().unwrap_or_default();
    // Whose contact the guest becomes, and the name that the account must have.
    let (kind, inviter, account_name) = match wish.kind {
        Kind::Account => ("A", "", name),
        Kind::Reset => ("T", "", name),
        // Without a name in it, ejabberd would let the guest register an account too. The user's own is taken already.
        Kind::Contact => ("R", name, name),
        Kind::AccountAndContact => ("S", name, ""),
    };
    let column = if has_server_host(conn)? { ("server_host, ", "?7, ") } else { ("", "") };
    let mut insert = conn.prepare_cached(&format!(
        "INSERT INTO invite_token (token, username, {}created_at, expires, type, account_name)
         VALUES (?1, ?2, {}datetime(?3, 'unixepoch'), datetime(?4, 'unixepoch', 'localtime'), ?5, ?6)",
        column.0, column.1
    ))?;
    let (created_at, expires_at) = (invite.created_at, invite.expires_at);
    if column.0.is_empty() {
        insert.execute(params![invite.token, inviter, created_at, expires_at, kind, account_name])?;
    } else {
        let host = invite.host.name();
        insert.execute(params![invite.token, inviter, created_at, expires_at, kind, account_name, host])?;
    }
    Ok(())
}

/// Deletes the row of an invite, if ejabberd reads this file.
pub fn delete(conn: &Connection, token: &str) -> Result<()> {
    if exists(conn, "invite_token")? {
        conn.prepare_cached("DELETE FROM invite_token WHERE token = ?1")?.execute([token])?;
    }
    Ok(())
}

/// Whether there is a table of ejabberd's invites.
pub fn has_invites(conn: &Connection) -> Result<bool> {
    exists(conn, "invite_token")
}

/// Whether there is a table of ejabberd's accounts without any.
pub fn has_no_accounts(conn: &Connection) -> Result<bool> {
    Ok(exists(conn, "users")? && !conn.prepare("SELECT 1 FROM users LIMIT 1")?.exists([])?)
}

fn exists(conn: &Connection, table: &str) -> Result<bool> {
    Ok(conn.prepare_cached("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1")?.exists([table])?)
}

/// Whether ejabberd itself has made tables in the file.
pub fn is_its_own(conn: &Connection) -> Result<bool> {
    exists(conn, "schema_version")
}

/// Whether ejabberd runs with `sql_schema_multihost`.
pub fn has_server_host(conn: &Connection) -> Result<bool> {
    let mut query =
        conn.prepare_cached("SELECT 1 FROM pragma_table_info('invite_token') WHERE name = 'server_host'")?;
    Ok(query.exists([])?)
}
