//! Invites and keys as JSON, the same for the shell and for HTTP; and JSON read into plain values.
//!
//! With `store/prosody.rs` the only file that names serde_json. Times are Unix seconds.

use serde_json::{Map, Value, json};

use crate::store::{InviteRow, KeyRow, Use};

/// A JSON value; it prints itself.
pub type Json = Value;

/// An invite with all that is known of it. A value that is not there is `null`.
pub fn invite(invite: &InviteRow, uri: &str, url: &str, uses: &[Use], now: i64) -> Json {
    let used: Vec<Value> =
        uses.iter().map(|used| json!({ "used_at": used.used_at, "username": used.username })).collect();
    json!({
        "token": invite.token,
        "uri": uri,
        "url": url,
        "host": invite.host,
        "kind": invite.kind.word(),
        "username": invite.username,
        "roles": invite.roles,
        "groups": invite.groups,
        "note": invite.note,
        "source": invite.source,
        "created_at": invite.created_at,
        "expires": invite.expires_at,
        "uses": invite.uses,
        "uses_left": invite.uses_left,
        "state": invite.state(now).word(),
        "ended_at": invite.ended_at,
        "opened": invite.opened,
        "app": invite.app,
        "used": used,
    })
}

/// A key with all that is known of it; its secret is not.
pub fn key(key: &KeyRow) -> Json {
    json!({
        "id": key.id,
        "name": key.name,
        "created_at": key.created_at,
        "expires": key.expires_at,
        "allow": key.allow.split(',').collect::<Vec<_>>(),
        "per_day": key.per_day,
        "invites": key.invites,
        "last_used_at": key.last_used_at,
    })
}

/// A new user.
pub fn registered(address: &str) -> Json {
    json!({ "jid": address })
}

/// A page of a list, and where the next one begins.
pub fn page(invites: Vec<Json>, next: Option<&str>) -> Json {
    json!({ "invites": invites, "next": next })
}

/// An error: a word for programs, a sentence for people, and the field that is to blame.
pub fn error(word: &str, message: &str, field: Option<&str>) -> Json {
    let mut object = Map::new();
    object.insert("error".to_owned(), json!(word));
    object.insert("message".to_owned(), json!(message));
    if let Some(field) = field {
        object.insert("field".to_owned(), json!(field));
    }
    Value::Object(object)
}

/// What a check of `doctor` found.
pub fn finding(check: &str, level: &str, text: &str, help: Option<&str>) -> Json {
    let mut object = json!({ "check": check, "level": level, "text": text });
    if let Some(help) = help {
        object["help"] = json!(help);
    }
    object
}

/// Several values as one array.
pub fn array(values: Vec<Json>) -> Json {
    Value::Array(values)
}

/// Reads any JSON; the error says at which line and column the text is no JSON.
pub fn parse(text: &str) -> Result<Json, String> {
    serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))
}

/// What a field of a request can be.
#[derive(Debug, PartialEq)]
pub enum Field {
    /// `null`, or nothing.
    Nothing,
    /// A text.
    Text(String),
    /// A whole number.
    Number(i64),
    /// A list of texts.
    Texts(Vec<String>),
    /// Anything else: true, a fraction, an object, a list of something else.
    Other,
}

/// Reads an object into its fields; none if the text is no JSON object.
pub fn fields(text: &str) -> Option<Vec<(String, Field)>> {
    let Ok(Value::Object(object)) = serde_json::from_str(text) else {
        return None;
    };
    let field = |value: Value| match value {
        Value::Null => Field::Nothing,
        Value::String(text) => Field::Text(text),
        Value::Number(number) => number.as_i64().map_or(Field::Other, Field::Number),
        Value::Array(values) => {
            let texts: Option<Vec<String>> = values.iter().map(|value| value.as_str().map(str::to_owned)).collect();
            texts.map_or(Field::Other, Field::Texts)
        }
        Value::Bool(_) | Value::Object(_) => Field::Other,
    };
    Some(object.into_iter().map(|(name, value)| (name, field(value))).collect())
}
