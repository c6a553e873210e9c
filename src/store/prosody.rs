//! Invites as Prosody's `mod_invites` keeps them in the table of its `mod_storage_sql`.
//!
//! An account invite is one row: user `''`, store `invite_token`, the token as key, and the invite as JSON. Checked
//! against Prosody 0.12 and 13. Decides nothing.

use rusqlite::{Connection, params};
use serde_json::json;

use crate::error::Result;
use crate::invite::{self, Invite, Kind};

/// The JSON value of an account invite's row.
pub fn value(invite: &Invite, landing_page: &str) -> String {
    let host = invite.host.name();
    let (action, jid) = match invite.kind {
        Kind::Account => ("register", host),
    };
    json!({
        "type": action,
        "jid": jid,
        "token": invite.token,
        "allow_registration": true,
        "additional_data": { "source": invite.source },
        "uri": invite::uri(&invite.host, invite.kind, &invite.token),
        "landing_page": landing_page,
        "created_at": invite.created_at,
        "expires": invite.expires_at,
    })
    .to_string()
}

/// Writes the row of an account invite.
pub fn insert(conn: &Connection, host: &str, token: &str, value: &str) -> Result<()> {
    let mut insert = conn.prepare_cached(
        r#"INSERT INTO "prosody" ("host", "user", "store", "key", "type", "value")
           VALUES (?1, '', 'invite_token', ?2, 'json', ?3)"#,
    )?;
    insert.execute(params![host, token, value])?;
    Ok(())
}
