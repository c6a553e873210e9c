//! The body of a `POST`: a JSON object or a form, read into a wish field by field.

use crate::duration::{self, LONGEST_SECS, whole_number};
use crate::http::Request;
use crate::invite::{Kind, ROLES_MAX, Unreasonable, Wish};
use crate::json::{self, Field, Fields};
use crate::user::Username;

/// The fields that there are.
const FIELDS: [&str; 7] = ["kind", "username", "ttl", "uses", "roles", "groups", "note"];

/// Why a body can't be read.
#[derive(Debug, PartialEq, Eq)]
pub enum BadBody {
    /// Its media type is neither of the two.
    MediaType,
    /// It is compressed, or otherwise coded, in this way.
    Coding(String),
    /// It is not what its media type says.
    Malformed(&'static str),
    /// A field is unknown, there twice, or has a bad value.
    Field {
        /// Its name as sent.
        name: String,
        /// Why it is bad.
        why: String,
    },
}

impl From<Unreasonable> for BadBody {
    fn from(unreasonable: Unreasonable) -> BadBody {
        BadBody::Field { name: unreasonable.field.to_owned(), why: unreasonable.why }
    }
}

/// Reads what the body asks for. No body at all asks for an account with a free name.
pub fn wish(request: &Request) -> Result<Wish, BadBody> {
    if request.body.is_empty() {
        return Ok(Wish::account());
    }
    if let Some(coding) = request.content_coding() {
        return Err(BadBody::Coding(coding.chars().take(40).collect()));
    }
    let fields = match request.media_type().as_str() {
        "application/json" => {
            let fields = std::str::from_utf8(&request.body).ok().and_then(|text| json::fields(text, &FIELDS));
            fields.ok_or(BadBody::Malformed("the body is not a JSON object"))?
        }
        "application/x-www-form-urlencoded" => form(request)?,
        _ => return Err(BadBody::MediaType),
    };
    if let Some(name) = fields.doubled {
        return Err(BadBody::Field { name: name.to_owned(), why: "duplicate field".to_owned() });
    }
    if let Some(name) = fields.unknown {
        // What `curl -d` sends is a form unless it is told otherwise.
        if name.trim_start().starts_with('{') {
            return Err(BadBody::Malformed("the body looks like JSON: send it with Content-Type: application/json"));
        }
        return Err(BadBody::Field { name, why: format!("unknown field (the fields are {})", FIELDS.join(", ")) });
    }
    let mut wish = Wish::account();
    for (name, field) in fields.known {
        let bad = |why: &str| BadBody::Field { name: name.to_owned(), why: why.to_owned() };
        match (name, field) {
            (_, Field::Nothing) => {}
            ("kind", Field::Text(word)) => {
                let words = Kind::ALL.map(Kind::word).join(", ");
                wish.kind = Kind::from_word(&word).ok_or_else(|| bad(&format!("there are {words}")))?;
            }
            ("username", Field::Text(name)) => {
                wish.username = Some(Username::parse(&name).map_err(|error| bad(&error.to_string()))?);
            }
            ("ttl", Field::Number(seconds)) => {
                if !(1..=LONGEST_SECS).contains(&seconds) {
                    return Err(bad(&format!("it must be from 1 to {LONGEST_SECS} seconds")));
                }
                wish.ttl_secs = Some(seconds);
            }
            ("ttl", Field::Text(text)) => {
                // A form has no numbers, only their digits.
                let seconds = whole_number(&text).filter(|seconds| (1..=LONGEST_SECS).contains(seconds));
                let seconds = seconds.map_or_else(|| duration::parse(&text), Ok);
                wish.ttl_secs = Some(seconds.map_err(|error| bad(&error.to_string()))?);
            }
            ("uses", Field::Number(uses)) => {
                wish.uses = u32::try_from(uses).map_err(|_| bad("it must be a positive number"))?;
            }
            ("roles", Field::Texts(roles)) => wish.roles = roles,
            ("groups", Field::Texts(groups)) => wish.groups = groups,
            ("note", Field::Text(note)) => wish.note = Some(note),
            ("kind" | "username" | "note", _) => return Err(bad("it must be a text")),
            ("ttl", _) => return Err(bad("it must be a whole number of seconds, or a text such as 7d")),
            ("uses", _) => return Err(bad("it must be a whole number")),
            _ => return Err(bad("it must be a list of texts")),
        }
    }
    Ok(wish)
}

/// The fields of a form; `roles` and `groups` may be there more than once.
fn form(request: &Request) -> Result<Fields, BadBody> {
    let mut fields = Fields::default();
    for (name, value) in request.form() {
        let Some(name) = FIELDS.into_iter().find(|known| *known == name) else {
            fields.add_unknown(&name);
            break;
        };
        let earlier = fields.known.iter_mut().find(|(found, _)| *found == name);
        match (name, earlier) {
            // One more than it may be is enough to be refused.
            ("roles" | "groups", Some((_, Field::Texts(texts)))) if texts.len() > ROLES_MAX => {}
            ("roles" | "groups", Some((_, Field::Texts(texts)))) => texts.push(value.into_owned()),
            (_, Some(_)) => return Err(BadBody::Field { name: name.to_owned(), why: "duplicate field".to_owned() }),
            // An input that was left empty.
            (_, None) if value.is_empty() => fields.known.push((name, Field::Nothing)),
            ("roles" | "groups", None) => fields.known.push((name, Field::Texts(vec![value.into_owned()]))),
            ("uses", None) => fields.known.push((name, whole_number(&value).map_or(Field::Other, Field::Number))),
            (_, None) => fields.known.push((name, Field::Text(value.into_owned()))),
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(media_type: &str, body: &str) -> Result<Wish, BadBody> {
        let mut request =
            Request::new("POST", "/invites_api", vec![("content-type".to_owned(), media_type.to_owned())]);
        request.body = body.as_bytes().to_vec();
        wish(&request)
    }

    fn bad_field(media_type: &str, body: &str) -> String {
        match read(media_type, body) {
            Err(BadBody::Field { name, .. }) => name,
            other => panic!("{body}: {other:?}"),
        }
    }

    const JSON: &str = "application/json; charset=utf-8";
    const FORM: &str = "application/x-www-form-urlencoded";

    #[test]
    fn json_and_form_say_the_same() {
        let json = read(
            JSON,
            r#"{"kind":"account","username":"Ana","ttl":3600,"uses":1,"roles":["a","b"],"groups":[],"note":"x y"}"#,
        );
        let form = read(FORM, "kind=account&username=Ana&ttl=3600&uses=1&roles=a&roles=b&note=x+y");
        for wish in [json.unwrap(), form.unwrap()] {
            assert_eq!(wish.kind, Kind::Account);
            assert_eq!(wish.username.unwrap().as_str(), "ana");
            assert_eq!((wish.ttl_secs, wish.uses), (Some(3600), 1));
            assert_eq!(wish.roles, ["a", "b"]);
            assert_eq!(wish.note.as_deref(), Some("x y"));
        }
        assert_eq!(read(JSON, r#"{"ttl":"2d"}"#).unwrap().ttl_secs, Some(172_800));
        assert_eq!(read(FORM, "ttl=2d&username=").unwrap().ttl_secs, Some(172_800));
        assert_eq!(read("", "").unwrap().kind, Kind::Account);
        assert_eq!(read(JSON, "{}").unwrap().uses, 1);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        for (field, body) in [
            ("bogus", r#"{"bogus":1}"#),
            ("kind", r#"{"kind":"admin"}"#),
            ("kind", r#"{"kind":1}"#),
            ("username", r#"{"username":"a b"}"#),
            ("username", r#"{"username":["a"]}"#),
            ("ttl", r#"{"ttl":0}"#),
            ("ttl", r#"{"ttl":-1}"#),
            ("ttl", r#"{"ttl":1.5}"#),
            ("ttl", r#"{"ttl":"1m"}"#),
            ("ttl", r#"{"ttl":"+5"}"#),
            ("ttl", r#"{"ttl":"-5"}"#),
            ("ttl", r#"{"ttl":60,"ttl":120}"#),
            ("note", r#"{"note":"a","note":null}"#),
            ("ttl", r#"{"ttl":99999999999}"#),
            ("uses", r#"{"uses":-1}"#),
            ("uses", r#"{"uses":"1"}"#),
            ("uses", r#"{"uses":99999999999}"#),
            ("roles", r#"{"roles":"a"}"#),
            ("roles", r#"{"roles":[1]}"#),
            ("note", r#"{"note":{}}"#),
        ] {
            assert_eq!(bad_field(JSON, body), field);
        }
        for (field, body) in [
            ("uses", "uses=x"),
            ("kind", "kind=account&kind=reset"),
            ("x", "x=1"),
            ("ttl", "ttl=0"),
            ("uses", "uses=%2B5"),
            ("ttl", "ttl=%2B5"),
        ] {
            assert_eq!(bad_field(FORM, body), field);
        }
        assert_eq!(read(FORM, r#"{"kind":"account"}"#).unwrap_err(), read(FORM, r#" {"kind": "x&y=z"}"#).unwrap_err());
        assert!(
            matches!(read(FORM, r#"{"kind":"account"}"#), Err(BadBody::Malformed(why)) if why.contains("Content-Type"))
        );
        for body in ["[]", "null", "{", "\"x\"", "{}{}"] {
            assert!(matches!(read(JSON, body), Err(BadBody::Malformed(_))), "{body}");
        }
        assert_eq!(read("text/plain", "x").unwrap_err(), BadBody::MediaType);
        assert_eq!(read("", "x").unwrap_err(), BadBody::MediaType);
    }
}
