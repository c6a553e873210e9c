//! Invites and keys as JSON, the same for the shell and for HTTP; and JSON read into plain values.
//!
//! With `store/prosody.rs` the only file that names serde_json. Times are Unix seconds.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
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

/// The most texts of a list that are kept, more than any field may have.
const TEXTS_MAX: usize = 64;

/// The most characters of an unknown name that are kept.
const NAME_MAX: usize = 64;

/// An object of a request.
#[derive(Debug, Default)]
pub struct Fields {
    /// The fields that were looked for and found. Of several with one name, the last.
    pub known: Vec<(&'static str, Field)>,
    /// The beginning of the first name that was not looked for.
    pub unknown: Option<String>,
    /// The name of one that is there more than once.
    pub doubled: Option<&'static str>,
}

impl Fields {
    /// Notes that there is a field of an unknown name.
    pub fn add_unknown(&mut self, name: &str) {
        self.unknown.get_or_insert_with(|| name.chars().take(NAME_MAX).collect());
    }
}

/// Reads the fields of these names from an object, and keeps nothing of the others; none if the text is no JSON object.
pub fn fields(text: &str, names: &'static [&'static str]) -> Option<Fields> {
    let mut json = serde_json::Deserializer::from_str(text);
    let fields = FieldsOf(names).deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some(fields)
}

struct FieldsOf(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for FieldsOf {
    type Value = Fields;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Fields, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldsOf {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        while let Some(name) = map.next_key::<String>()? {
            match self.0.iter().find(|known| **known == name) {
                Some(name) => {
                    let field = map.next_value()?;
                    if fields.known.iter().any(|(found, _)| found == name) {
                        fields.doubled = Some(name);
                        fields.known.retain(|(found, _)| found != name);
                    }
                    fields.known.push((name, field));
                }
                None => {
                    fields.add_unknown(&name);
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Field, D::Error> {
        deserializer.deserialize_any(AnyField)
    }
}

struct AnyField;

impl<'de> Visitor<'de> for AnyField {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field::Nothing)
    }

    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        Ok(Field::Text(text.to_owned()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Field, E> {
        Ok(Field::Number(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Field, E> {
        Ok(i64::try_from(number).map_or(Field::Other, Field::Number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Field, A::Error> {
        let mut texts = Some(Vec::new());
        while let Some(field) = list.next_element()? {
            match (field, &mut texts) {
                (Field::Text(text), Some(texts)) if texts.len() < TEXTS_MAX => texts.push(text),
                (Field::Text(_), _) => {}
                _ => texts = None,
            }
        }
        Ok(texts.map_or(Field::Other, Field::Texts))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_looked_for_is_kept_whatever_else_is_there() {
        let text = r#"{"b": {"a": [1]}, "a": 1, "c": null, "a": ["x", "y"], "d": [[["z"]]]}"#;
        let fields = fields(text, &["a", "c", "d", "e"]).unwrap();
        let texts = Field::Texts(vec!["x".to_owned(), "y".to_owned()]);
        assert_eq!(fields.known, [("c", Field::Nothing), ("a", texts), ("d", Field::Other)]);
        assert_eq!(fields.unknown.as_deref(), Some("b"));
        assert_eq!(fields.doubled, Some("a"));
    }

    #[test]
    fn values_are_what_they_are_in_json() {
        for (text, expected) in [
            ("null", Field::Nothing),
            ("\"\\u00e9\"", Field::Text("\u{e9}".to_owned())),
            ("-9223372036854775808", Field::Number(i64::MIN)),
            ("9223372036854775807", Field::Number(i64::MAX)),
            ("9223372036854775808", Field::Other),
            ("1.0", Field::Other),
            ("1e2", Field::Other),
            ("true", Field::Other),
            ("[]", Field::Texts(Vec::new())),
            ("[\"x\",1]", Field::Other),
            ("[[\"x\"]]", Field::Other),
            ("{\"a\":{}}", Field::Other),
        ] {
            let fields = fields(&format!("{{\"a\":{text}}}"), &["a"]).unwrap();
            assert_eq!(fields.known, [("a", expected)], "{text}");
        }
        for text in ["", "[]", "null", "{", "{}{}", "{\"a\":}", "{\"x\":[}", "{\"a\":1,}", "{\"x\":\"\t\"}", "{1:2}"] {
            assert!(fields(text, &["a"]).is_none(), "{text}");
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(1_000), "]".repeat(1_000));
        assert!(fields(&deep, &["a"]).is_none(), "a stack has an end");
        assert!(fields(&deep, &["b"]).is_some());
    }

    #[test]
    fn a_long_list_is_not_kept_whole() {
        let fields = fields(&format!("{{\"a\":[{}\"\"]}}", "\"\",".repeat(10_000)), &["a"]).unwrap();
        assert_eq!(fields.known, [("a", Field::Texts(vec![String::new(); TEXTS_MAX]))]);
    }
}
