//! What holds for any input, one function for each fuzz target; `cargo test` runs them on the corpus.

// Here a failure is meant to be a panic.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fmt::Write as _;
use std::io::{self, BufReader};

use crate::api::body;
use crate::commands::import;
use crate::duration::{self, LONGEST_SECS};
use crate::gate::{PEER, head};
use crate::host::Host;
use crate::http::Request;
use crate::invite::{Server, Wish};
use crate::json::{self, Json};
use crate::key;
use crate::log;
use crate::lua;
use crate::page::{apps, assets};
use crate::store::{Of, State, Store};
use crate::user::{Password, Username};
use crate::xmpp::stream::{Element, Elements};

/// What comes before the first line break, and what comes after it.
fn first_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    (&bytes[..at], bytes.get(at + 1..).unwrap_or_default())
}

/// A connection's bytes, one request after the other.
pub fn gate(bytes: &[u8]) {
    const BODY_MAX: usize = 64;
    let mut rest = bytes;
    while !rest.is_empty() {
        let whole = head::end(rest, 0);
        let mut in_pieces = Ok(None);
        for read in 1..=rest.len() {
            in_pieces = head::end(&rest[..read], read - 1);
            if in_pieces != Ok(None) {
                break;
            }
        }
        assert_eq!(whole, in_pieces);
        let Ok(Some(end)) = whole else { return };
        let Ok(head) = head::read(&rest[..end], BODY_MAX) else { return };
        assert!(head.body <= BODY_MAX);
        let original = Plain::read(&rest[..end]);
        let codings = original.all("transfer-encoding").count();
        assert_eq!(codings, usize::from(head.is_chunked));
        let length = original.all("content-length").collect::<Vec<_>>();
        match length[..] {
            [] => assert_eq!(head.body, 0),
            [length] if !head.is_chunked => assert_eq!(std::str::from_utf8(length).unwrap().parse(), Ok(head.body)),
            _ => panic!("two lengths"),
        }
        let Some(body) = rest.get(end..end + head.body) else { return };
        if head.is_chunked {
            chunks(&rest[end..]);
            return rewritten(head, &original);
        }
        rewritten(head, &original);
        rest = &rest[end + body.len()..];
        rest = rest.strip_prefix(b"\r\n").unwrap_or(rest);
    }
}

/// A chunk begins where a line ends, whatever pieces of it come first.
fn chunks(mut rest: &[u8]) {
    while let Ok(Some((taken, size))) = head::chunk(rest) {
        assert!(taken > 1 && rest[..taken].ends_with(b"\n"));
        assert!((1..taken).all(|end| head::chunk(&rest[..end]) == Ok(None)));
        let Some(next) = usize::try_from(size).ok().and_then(|size| rest.get(taken..)?.get(size..)) else { return };
        rest = next.strip_prefix(b"\r\n").unwrap_or(next);
        if size == 0 {
            return;
        }
    }
}

/// What goes on to the loop says the same as what came, and is one request.
fn rewritten(head: head::Head, original: &Plain) {
    let body = head.body;
    let head = head.completed("192.0.2.1", crate::gate::Door::Guests);
    let written = head.rewritten.as_bytes();
    let again = Plain::read(written);
    assert_eq!(again.method, original.method);
    let target = match original.target.split_once("://") {
        _ if original.target.starts_with('/') => original.target,
        _ if original.target == "*" => "/*",
        Some((scheme, rest)) if ["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) => {
            rest.find('/').map_or("/", |at| &rest[at..])
        }
        _ => panic!("a strange target"),
    };
    assert_eq!((again.is_new, again.target), (true, target));
    for (name, value) in &again.headers {
        assert_eq!(again.all(name).count(), 1, "{name} is there twice");
        match name.as_str() {
            PEER => assert_eq!(*value, b"192.0.2.1"),
            "content-length" => assert_eq!(*value, body.to_string().as_bytes()),
            _ => {
                let ascii = |byte: &u8| if byte.is_ascii() { *byte } else { 0x1a };
                // Of a header that proxies add to, the last line counts.
                let is_list = crate::client::PROXY_HEADERS.contains(&name.as_str());
                let line = if is_list { original.all(name).last() } else { original.all(name).next() };
                let line: Vec<u8> = line.unwrap().iter().map(ascii).collect();
                assert_eq!(*value, line, "{name}");
            }
        }
    }
    // A parser of somebody else's, to which the mark for a byte of another script is no character at all.
    let marked: Vec<u8> = written.iter().map(|byte| if *byte == 0x1a { b'?' } else { *byte }).collect();
    let mut headers = [httparse::EMPTY_HEADER; 80];
    let mut request = httparse::Request::new(&mut headers);
    assert_eq!(request.parse(&marked), Ok(httparse::Status::Complete(written.len())));
    assert_eq!((request.method, request.path), (Some(again.method), Some(again.target)));
    assert_eq!(request.headers.len(), again.headers.len());
}

/// A head, read with no tolerance at all.
struct Plain<'a> {
    method: &'a str,
    target: &'a str,
    is_new: bool,
    headers: Vec<(String, &'a [u8])>,
}

impl<'a> Plain<'a> {
    fn read(bytes: &'a [u8]) -> Plain<'a> {
        let lines = bytes.strip_suffix(b"\r\n\r\n").unwrap();
        assert!(!lines.contains(&0), "a NUL");
        let mut lines = lines.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let breaks = |sign: u8| bytes.iter().filter(|byte| **byte == sign).count();
        assert_eq!(breaks(b'\r'), breaks(b'\n'), "half a line break");
        assert_eq!(bytes.windows(2).filter(|two| two == b"\r\n").count(), breaks(b'\n'), "half a line break");
        let first: Vec<_> = std::str::from_utf8(lines.next().unwrap()).unwrap().split(' ').collect();
        let [method, target, version] = first[..] else { panic!("not three words: {first:?}") };
        assert!(!target.is_empty() && target.bytes().all(|byte| byte.is_ascii_graphic()));
        let token = |name: &[u8]| {
            !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
        };
        assert!(token(method.as_bytes()) && ["HTTP/1.0", "HTTP/1.1"].contains(&version));
        let headers = lines.map(|line| {
            let at = line.iter().position(|byte| *byte == b':').unwrap();
            assert!(token(&line[..at]), "a bad name of a header");
            (String::from_utf8_lossy(&line[..at]).to_ascii_lowercase(), line[at + 1..].trim_ascii())
        });
        Plain { method, target, is_new: version == "HTTP/1.1", headers: headers.collect() }
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(found, _)| found == name).map(|(_, value)| *value)
    }
}

/// A target in its first line, a media type in the second, and a form.
pub fn query(bytes: &[u8]) {
    let (target, rest) = first_line(bytes);
    let (media_type, form) = first_line(rest);
    let target = String::from_utf8_lossy(target);
    let media_type = String::from_utf8_lossy(media_type);
    let mut request = Request::new("GET", &target, vec![("content-type".to_owned(), media_type.into_owned())]);
    request.body = form.to_vec();
    assert!(!request.path.contains('?') && !request.path.contains("//"));
    let media_type = request.media_type();
    assert!(!media_type.contains(';') && media_type == media_type.trim().to_ascii_lowercase());
    let _ = (request.wants_json(), request.wants_html(), apps::platforms(&request), apps::is_preview_bot(&request));

    let all = pairs(request.query.as_deref().unwrap_or_default().as_bytes());
    for (name, _, _) in &all {
        let last = all.iter().rfind(|(found, is_pair, _)| found == name && *is_pair).map(|(_, _, value)| value);
        assert_eq!(request.query_value(name).as_ref(), last);
    }
    let expected: Vec<_> = pairs(form).into_iter().map(|(name, _, value)| (name, value)).collect();
    let found: Vec<_> = request.form().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    assert_eq!(found, expected);
}

/// Each name and value of a form, and whether there is a `=`; decoded by hand.
fn pairs(text: &[u8]) -> Vec<(String, bool, String)> {
    let decode = |text: &[u8]| {
        let mut bytes = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let hex = |at: usize| text.get(at).and_then(|digit| char::from(*digit).to_digit(16));
            match (text[at], hex(at + 1), hex(at + 2)) {
                (b'%', Some(high), Some(low)) => {
                    bytes.push((high * 16 + low) as u8);
                    at += 2;
                }
                (b'+', _, _) => bytes.push(b' '),
                (byte, _, _) => bytes.push(byte),
            }
            at += 1;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=');
            let value = at.map_or(&b""[..], |at| &pair[at + 1..]);
            (decode(&pair[..at.unwrap_or(pair.len())]), at.is_some(), decode(value))
        })
        .collect()
}

/// A media type in its first line, and a body that says what invite it wants.
pub fn body(bytes: &[u8]) {
    let (media_type, body) = first_line(bytes);
    let wish = |media_type: &[u8], body: &[u8]| {
        let media_type = String::from_utf8_lossy(media_type).into_owned();
        let mut request = Request::new("POST", "/invites_api", vec![("content-type".to_owned(), media_type)]);
        request.body = body.to_vec();
        body::wish(&request)
    };
    if let Ok(text) = std::str::from_utf8(body) {
        let fields = json::fields(text, &["kind", "roles"]);
        match json::parse(text) {
            Ok(Json::Object(object)) => {
                let fields = fields.unwrap();
                assert_eq!(fields.known.len(), ["kind", "roles"].iter().filter(|n| object.contains_key(**n)).count());
                assert_eq!(fields.unknown.is_some(), object.len() > fields.known.len());
            }
            Ok(_) => assert!(fields.is_none()),
            // What is not looked for may be deeper, or a larger number, than what is kept.
            Err(_) => assert!(fields.is_none() || text.trim_start().starts_with('{')),
        }
    }
    let Ok(first) = wish(media_type, body) else { return };
    let _ = (first.check(Server::Prosody), first.check(Server::Ejabberd));
    assert!(first.ttl_secs.is_none_or(|seconds| (1..=LONGEST_SECS).contains(&seconds)));
    let Wish { kind, roles, groups, uses, ttl_secs, note, .. } = &first;
    let text = |text: &str| Json::from(text).to_string();
    let texts = |texts: &[String]| Json::from(texts).to_string();
    let again = format!(
        r#"{{"kind":"{}","username":{},"roles":{},"groups":{},"uses":{uses},"ttl":{},"note":{}}}"#,
        kind.word(),
        first.username().map_or("null".to_owned(), text),
        texts(roles),
        texts(groups),
        ttl_secs.map_or("null".to_owned(), |seconds| seconds.to_string()),
        note.as_deref().map_or("null".to_owned(), text)
    );
    let second = wish(b"application/json", again.as_bytes()).unwrap();
    assert_eq!(format!("{first:?}"), format!("{second:?}"));
}

/// A letter for the store, and the text of a file of Prosody's.
pub fn import(bytes: &[u8]) {
    let Some((store, text)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(text);
    match lua::read(&text) {
        Ok(value) => {
            let value = lists(value);
            let mut written = String::from("return ");
            write_lua(&value, &mut written);
            assert_eq!(lua::read(&written).map(lists).as_ref(), Ok(&value), "{written}");
        }
        Err(bad) => assert!((1..=text.split('\n').count()).contains(&bad.line)),
    }
    let (user, store) = match store {
        b'k' => ("", "invite_api_keys"),
        b'u' => ("ana", "invite_token"),
        _ => ("", "invite_token"),
    };
    let Ok(items) = import::items(&text, "example.com", user, store) else { return };
    if items.is_empty() {
        return;
    }
    let folder = std::env::temp_dir().join(format!("invited-check-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut store = Store::create(&folder.join("invited.sqlite")).unwrap();
    let now = log::now();
    let host = Host::parse("example.com").unwrap();
    if store.import(&items, now).is_ok() {
        store.catch_up().unwrap();
        for invite in store.invites(Of::Host(&host), true, 0, 1_000, now).unwrap().invites {
            if invite.state(now) == State::Pending {
                let _ = duration::show(invite.expires_at - now);
            }
            let _ = (log::utc(invite.created_at), log::utc(invite.expires_at));
            let _ = store.write(|tx| tx.wait_secs(&invite.source, 1, now)).unwrap();
            let _ = json::invite(&invite, "", "", &store.uses(&invite.token).unwrap(), now);
        }
        for key in store.keys(&host).unwrap() {
            let _ = (json::key(&key), log::utc(key.created_at));
            assert!(!key.name.is_some_and(|name| name.chars().any(key::is_control)));
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Objects whose names count from 1 are lists, in whatever order they stand.
fn lists(value: Json) -> Json {
    match value {
        Json::Array(values) => Json::Array(values.into_iter().map(lists).collect()),
        Json::Object(mut fields) => {
            let names: Vec<_> = (1..=fields.len()).map(|at| at.to_string()).collect();
            if !names.is_empty() && names.iter().all(|name| fields.contains_key(name)) {
                return names.iter().map(|name| lists(fields.remove(name).unwrap())).collect();
            }
            Json::Object(fields.into_iter().map(|(name, value)| (name, lists(value))).collect())
        }
        _ => value,
    }
}

fn write_lua(value: &Json, to: &mut String) {
    let text = |text: &str, to: &mut String| {
        to.push('"');
        for byte in text.bytes() {
            let _ = write!(to, "\\{byte:03}");
        }
        to.push('"');
    };
    match value {
        Json::Null => to.push_str("nil"),
        Json::String(value) => text(value, to),
        Json::Array(values) => {
            to.push('{');
            for value in values {
                write_lua(value, to);
                to.push(',');
            }
            to.push('}');
        }
        Json::Object(fields) => {
            to.push_str("{\n");
            for (name, value) in fields {
                to.push('[');
                text(name, to);
                to.push_str("] = ");
                write_lua(value, to);
                to.push_str(";\n");
            }
            to.push('}');
        }
        Json::Bool(_) | Json::Number(_) => to.push_str(&value.to_string()),
    }
}

/// Two bytes for the size of the pieces, and an XML stream.
pub fn xmpp(bytes: &[u8]) {
    let Some((seed, stream)) = bytes.split_at_checked(2) else { return };
    // Whether the mark of the byte order is skipped depends on the pieces; no server of XMPP sends one.
    if stream.starts_with(b"\xef") {
        return;
    }
    let seed = u64::from(seed[0]) << 8 | u64::from(seed[1]);
    let whole = read_stream(stream, u64::MAX, 4096);
    assert_eq!(whole, read_stream(stream, seed, 4096));
    assert_eq!(whole, read_stream(stream, 0, 4096));
    let (count, size) = whole.0.iter().map(weigh).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(size <= stream.len() + count * 512, "{} bytes become {count} elements of {size}", stream.len());
}

fn read_stream(bytes: &[u8], seed: u64, buffer: usize) -> (Vec<Element>, Result<(), String>) {
    let mut elements = Elements::new(BufReader::with_capacity(buffer, Pieces { bytes, seed }));
    let mut all = Vec::new();
    let mut outcome = elements.begin();
    while outcome.is_ok() {
        match elements.next() {
            Ok(Some(element)) => all.push(element),
            Ok(None) => break,
            Err(why) => outcome = Err(why),
        }
    }
    (all, outcome)
}

/// How many elements, and bytes in them.
fn weigh(element: &Element) -> (usize, usize) {
    let own = element.namespace.len() + element.name.len() + element.text.len();
    let attributes = element.attributes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    let children = element.children.iter().map(weigh);
    children.fold((1, own + attributes), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

/// Gives its bytes in pieces of 1 to 16 bytes: all of one byte with the seed 0, and the whole at once with the last one.
struct Pieces<'a> {
    bytes: &'a [u8],
    seed: u64,
}

impl io::Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = match self.seed {
            0 => 1,
            u64::MAX => buffer.len(),
            _ => {
                self.seed =
                    self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 1;
                (self.seed >> 40) as usize % 16 + 1
            }
        };
        let size = size.min(buffer.len()).min(self.bytes.len());
        buffer[..size].copy_from_slice(&self.bytes[..size]);
        self.bytes = &self.bytes[size..];
        Ok(size)
    }
}

/// A host, a user, a password or a length of time as typed.
pub fn text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(host) = Host::parse(&text) {
        assert_eq!(Host::parse(host.name()).unwrap(), host);
        assert_eq!(Host::parse(host.ascii()).unwrap(), host);
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        assert!(host.ascii().bytes().all(plain) && host.ascii().len() <= 253);
    }
    if let Ok(name) = Username::parse(&text) {
        assert_eq!(Username::parse(name.as_str()).unwrap(), name);
        assert!(!name.as_str().contains(|c: char| c.is_control() || c.is_whitespace() || "\"&'/:<>@".contains(c)));
    }
    if let Some(password) = Password::parse(&text) {
        let again = Password::parse(password.as_str()).map(|again| again.as_str().to_owned());
        assert_eq!(again.as_deref(), Some(password.as_str()));
    }
    if let Ok(seconds) = duration::parse(&text) {
        assert!((1..=LONGEST_SECS).contains(&seconds));
        let shown = duration::show(seconds);
        let parts = shown.split(' ').map(|part| duration::parse(part).unwrap());
        assert!(parts.sum::<i64>() <= seconds);
    }
}

/// A list of apps.
pub fn apps(bytes: &[u8]) {
    let Ok(list) = apps::read(&String::from_utf8_lossy(bytes)) else { return };
    for app in &list {
        assert_eq!(list.iter().filter(|other| other.id == app.id).count(), 1);
        assert!(!app.letters().contains(['<', '&', '"']));
        let buttons = app.buttons.iter().flat_map(|button| [Some(&button.url), button.magic_link_format.as_ref()]);
        for address in buttons.chain([Some(&app.link), app.login_link_format.as_ref()]).flatten() {
            assert!(address.starts_with("https://") && !address.contains(['"', '<', '>', ' ']));
        }
        let texts = app.buttons.iter().map(|button| &button.text).chain([&app.id, &app.name, &app.colour]);
        assert!(texts.into_iter().all(|text| !text.is_empty() && !text.chars().any(key::is_control)));
    }
}

/// A picture.
pub fn logo(bytes: &[u8]) {
    let Ok(stored) = assets::check_logo(bytes) else { return };
    let (media_type, again) = assets::read_logo(&stored).unwrap();
    assert_eq!(again, bytes);
    if media_type == "image/svg+xml" {
        harmless(std::str::from_utf8(bytes).unwrap());
    }
}

/// Reads an SVG as a browser would, as far as it is well-formed.
fn harmless(svg: &str) {
    use quick_xml::Reader;
    use quick_xml::events::Event;
    // The reader takes more for a name than XML does.
    let is_name =
        |name: &str| !name.contains(|c: char| c.is_ascii() && !c.is_ascii_alphanumeric() && !":-_.".contains(c));
    let mut reader = Reader::from_str(svg);
    loop {
        match reader.read_event() {
            Ok(Event::Start(start) | Event::Empty(start)) => {
                if !is_name(start.name().into_inner()) {
                    return;
                }
                let name = start.local_name().into_inner().to_ascii_lowercase();
                assert!(!["script", "foreignobject", "iframe"].contains(&name.as_str()), "{name} gets through");
                for attribute in start.attributes().map_while(Result::ok) {
                    let name = attribute.key.local_name().into_inner().to_ascii_lowercase();
                    if !is_name(&name) {
                        return;
                    }
                    assert!(!name.starts_with("on"), "{name} gets through");
                    let value = attribute.value.trim().to_ascii_lowercase();
                    let inside = ["#", "data:image/png", "data:image/jpeg"].iter().any(|sign| value.starts_with(sign));
                    assert!(name != "href" || inside, "{name}={value} gets through");
                }
            }
            Ok(Event::DocType(_)) => panic!("a document type gets through"),
            Ok(Event::Eof) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    type Check = fn(&[u8]);

    #[test]
    fn the_corpus_holds() {
        let targets: [(&str, Check); 8] = [
            ("gate", super::gate),
            ("query", super::query),
            ("body", super::body),
            ("import", super::import),
            ("xmpp", super::xmpp),
            ("text", super::text),
            ("apps", super::apps),
            ("logo", super::logo),
        ];
        for (target, check) in targets {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
            let mut count = 0;
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                // Which file it was stands in the output of a test that fails.
                eprintln!("{}", path.display());
                check(&std::fs::read(path).unwrap());
                count += 1;
            }
            assert!(count > 0, "{target} has no corpus");
        }
    }
}
