//! Invites as Prosody's `mod_invites` keeps them in the table of its `mod_storage_sql`.
//!
//! What makes an account or resets a password is a row of the host (user `''`), store `invite_token`, the token as key, and
//! the invite as JSON. A contact invite has a row of the user, type `number`, the expiry as value. Checked against Prosody
//! 0.12 and 13. Decides nothing.

use rusqlite::{Connection, params};
use serde_json::{Map, Value, json};

use super::Store;
use super::invite::InviteRow;
use crate::error::Result;
use crate::host::Host;
use crate::invite::{Invite, Kind, USES_MAX};

/// The rows of one invite.
pub struct Rows {
    host: String,
    user: Option<String>,
}

impl Rows {
    /// Renders the rows. `old` says whether Prosody 0.12 reads them, see [`Store::prosody_is_old`].
    pub fn new(invite: &Invite, uri: &str, landing_page: &str, old: Option<bool>) -> Rows {
        let contact = matches!(invite.wish.kind, Kind::Contact | Kind::AccountAndContact);
        // Prosody 0.12 stumbles over a contact invite without a row of the host; one that has expired lets nobody register.
        let host = if invite.wish.kind == Kind::Contact {
            value(invite, uri, landing_page, 0, old)
        } else {
            value(invite, uri, landing_page, invite.expires_at, old)
        };
        Rows { host, user: contact.then(|| invite.expires_at.to_string()) }
    }

    /// Writes the rows.
    pub fn insert(&self, conn: &Connection, invite: &Invite) -> Result<()> {
        let mut insert = conn.prepare_cached(
            r#"INSERT INTO "prosody" ("host", "user", "store", "key", "type", "value")
               VALUES (?1, ?2, 'invite_token', ?3, ?4, ?5)"#,
        )?;
        let username = invite.wish.username().unwrap_or_default();
        insert.execute(params![invite.host.name(), "", invite.token, "json", self.host])?;
        if let Some(value) = &self.user {
            insert.execute(params![invite.host.name(), username, invite.token, "number", value])?;
        }
        Ok(())
    }
}

/// The JSON value of a host's row.
fn value(invite: &Invite, uri: &str, landing_page: &str, expires: i64, old: Option<bool>) -> String {
    let wish = &invite.wish;
    let host = invite.host.name();
    let action = match wish.kind {
        Kind::Account | Kind::Reset => "register",
        Kind::Contact | Kind::AccountAndContact => "roster",
    };
    let username = wish.username();
    let mut data = json!({ "source": invite.source });
    if wish.kind == Kind::Reset {
        data["allow_reset"] = json!(username);
    }
    if !wish.roles.is_empty() {
        // 0.12 wants a set, 13 a list whose first is the role of the account and the others secondary ones. What is both in
        // one, as Prosody's util.json writes such tables, works with either, but 0.12 keeps it with the account as it is,
        // and there the command that brings roles from 0.12 to 13 stumbles over it. So it is for those who can't tell.
        let mut set: Map<String, Value> = wish.roles.iter().map(|role| (role.clone(), json!(true))).collect();
        data["roles"] = match old {
            Some(true) => Value::Object(set),
            Some(false) => json!(wish.roles),
            None => {
                set.insert("__array".to_owned(), json!(wish.roles));
                Value::Object(set)
            }
        };
    }
    if !wish.groups.is_empty() {
        data["groups"] = json!(wish.groups);
    }
    if let Some(note) = &wish.note {
        data["note"] = json!(note);
    }
    json!({
        "type": action,
        "jid": username.map_or_else(|| host.to_owned(), |username| format!("{username}@{host}")),
        "token": invite.token,
        "allow_registration": wish.kind != Kind::Contact,
        "additional_data": data,
        "uri": uri,
        "landing_page": landing_page,
        "created_at": invite.created_at,
        "expires": expires,
    })
    .to_string()
}

/// A contact invite that makes no account, of which Prosody keeps only whose it is and when it expires, as the JSON of others.
pub fn contact(host: &Host, user: &str, expires: &str) -> String {
    let expires = expires.parse::<i64>().ok();
    json!({ "type": "roster", "allow_registration": false, "jid": format!("{user}@{host}"), "expires": expires })
        .to_string()
}

/// A value of Prosody's `mod_storage_sql` by its type; none if the two do not agree.
pub fn deserialize(kind: &str, text: &str) -> Option<Value> {
    match kind {
        "json" => serde_json::from_str(text).ok(),
        "number" => serde_json::from_str(text).ok().filter(Value::is_number),
        "string" => Some(Value::from(text)),
        "boolean" => Some(Value::from(text == "true")),
        _ => None,
    }
}

/// Fills an invite in from the JSON that Prosody wrote; false if it is none. What is not there, or is not as expected, stays as
/// it is.
pub fn read(raw: &str, invite: &mut InviteRow) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(raw) else {
        return false;
    };
    if !value.is_object() {
        return false;
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let data = &value["additional_data"];
    let reset = text(&data["allow_reset"]);
    let name = value["jid"].as_str().and_then(|jid| jid.split_once('@')).map(|(name, _)| name.to_owned());
    invite.kind = match (value["type"].as_str(), value["allow_registration"].as_bool()) {
        _ if reset.is_some() => Kind::Reset,
        (Some("roster"), Some(false)) => Kind::Contact,
        (Some("roster"), _) => Kind::AccountAndContact,
        _ => Kind::Account,
    };
    invite.username = reset.or(name);
    // A set or a list or both, see above.
    invite.roles = match &data["roles"] {
        Value::Array(roles) => roles.iter().filter_map(text).collect(),
        Value::Object(roles) => roles.keys().filter(|role| !role.starts_with("__")).cloned().collect(),
        _ => Vec::new(),
    };
    invite.groups =
        data["groups"].as_array().map(|groups| groups.iter().filter_map(text).collect()).unwrap_or_default();
    invite.note = text(&data["note"]);
    if let Some(source) = text(&data["source"]) {
        // Of an address, the part that tells whose device it was is left out.
        invite.source = match source.split_once('/') {
            Some((user, _)) if user.contains('@') => user.to_owned(),
            _ => source,
        };
    } else if invite.kind == Kind::AccountAndContact {
        invite.source = text(&value["jid"]).unwrap_or_default();
    }
    let time = |value: &Value| value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64));
    invite.created_at = time(&value["created_at"]).unwrap_or(invite.created_at);
    invite.expires_at = time(&value["expires"]).unwrap_or(invite.expires_at);
    // Prosody never uses such an invite up: it registers anybody until it expires.
    if value["reusable"].as_bool() == Some(true) {
        (invite.uses, invite.uses_left) = (USES_MAX, USES_MAX);
    }
    true
}

/// Deletes the rows of an invite.
pub fn delete(conn: &Connection, host: &str, username: Option<&str>, token: &str) -> Result<()> {
    let mut delete = conn.prepare_cached(
        r#"DELETE FROM "prosody" WHERE "host" = ?1 AND "user" = ?2 AND "store" = 'invite_token' AND "key" = ?3"#,
    )?;
    delete.execute([host, "", token])?;
    if let Some(username) = username {
        delete.execute([host, username, token])?;
    }
    Ok(())
}

/// Deletes what the lines in Prosody's configuration have written about the host's own use of a token.
pub fn delete_told(conn: &Connection, host: &str, token: &str) -> Result<()> {
    let sql = r#"DELETE FROM "prosody" WHERE "host" = ?1 AND "user" = '' AND "store" = 'invited_use' AND "key" = ?2"#;
    conn.prepare_cached(sql)?.execute([host, token])?;
    Ok(())
}

impl Store {
    /// Whether Prosody 0.12 reads the file; none where no Prosody has opened it yet. Either makes the table
    /// `prosodyarchive` at first, and 0.12 an index that 13 removes.
    pub fn prosody_is_old(&self) -> Result<Option<bool>> {
        let mut query = self.conn.prepare_cached("SELECT 1 FROM sqlite_master WHERE name = ?1")?;
        let is_old = query.exists(["prosody_index"])?;
        Ok((is_old || query.exists(["prosodyarchive"])?).then_some(is_old))
    }
}
