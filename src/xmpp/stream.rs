//! An XML stream (RFC 6120 section 4): its header, and then one element after the other, in whatever pieces they come.
//!
//! The only file that names quick_xml.

use std::io::{BufRead, BufReader, Write as _};

use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;
use quick_xml::{NsReader, XmlVersion};

use super::STREAMS;
use crate::error::{Error, Result};
use crate::wire::Wire;

/// How deep elements may be within each other, and how many may be within one that is read.
const DEPTH: usize = 16;
const CHILDREN: usize = 1_000;

/// The longest namespace, in bytes: each element has a copy of its own, so that a long one would take a multiple of the memory.
const NAMESPACE: usize = 256;

/// Text as it can stand in an element or between quotes of an attribute.
pub fn escape(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}

/// An element with all that is in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// Its namespace.
    pub namespace: String,
    /// Its name without a prefix.
    pub name: String,
    /// Its attributes without a prefix.
    pub attributes: Vec<(String, String)>,
    /// The text that is directly in it.
    pub text: String,
    /// The elements that are directly in it.
    pub children: Vec<Element>,
}

impl Element {
    /// Whether it has this namespace and name.
    pub fn is(&self, namespace: &str, name: &str) -> bool {
        self.namespace == namespace && self.name == name
    }

    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The first child of this namespace and name.
    pub fn child(&self, namespace: &str, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.is(namespace, name))
    }
}

/// A stream that is open in both directions.
pub struct Stream(Elements<BufReader<Wire>>);

impl Stream {
    /// Begins a stream to a host, and waits for the server's own.
    pub fn begin(mut wire: Wire, host: &str) -> Result<Stream> {
        let header = format!(
            "<?xml version='1.0'?><stream:stream to='{}' version='1.0' xml:lang='en' xmlns='jabber:client' \
             xmlns:stream='{STREAMS}'>",
            escape(host)
        );
        wire.write_all(header.as_bytes()).map_err(|error| lost(&wire, &error.to_string()))?;
        let mut stream = Stream(Elements::new(BufReader::with_capacity(4096, wire)));
        let begun = stream.0.begin();
        stream.check(begun)?;
        Ok(stream)
    }

    /// The connection that it goes over.
    pub fn wire(&self) -> &Wire {
        self.0.reader.get_ref().get_ref()
    }

    /// Sends XML as it is.
    pub fn send(&mut self, xml: &str) -> Result<()> {
        let wire = self.0.reader.get_mut().get_mut();
        let sent = wire.write_all(xml.as_bytes()).and_then(|()| wire.flush());
        sent.map_err(|error| lost(wire, &error.to_string()))
    }

    /// Waits for the next element.
    pub fn next(&mut self) -> Result<Element> {
        let element = self.0.next();
        self.check(element)?.ok_or_else(|| Error::unavailable("it ends the stream"))
    }

    /// Gives the connection back, for another layer on it.
    ///
    /// Fails where the server has sent more already: that would be taken for something that came over the new layer.
    pub fn into_wire(self) -> Result<Wire> {
        let reader = self.0.reader.into_inner();
        match reader.buffer() {
            [] => Ok(reader.into_inner()),
            _ => Err(Error::unavailable("it goes on without TLS after agreeing to start it")),
        }
    }

    /// Ends the stream, and waits until the server has ended it too. What goes wrong now does not matter.
    pub fn close(mut self) {
        if self.send("</stream:stream>").is_ok() {
            while let Ok(Some(_)) = self.0.next() {}
        }
    }

    fn check<T>(&mut self, outcome: std::result::Result<T, String>) -> Result<T> {
        outcome.map_err(|why| lost(self.0.reader.get_mut().get_mut(), &why))
    }
}

fn lost(wire: &Wire, why: &str) -> Error {
    if wire.is_over() { Error::unavailable("it does not answer in time") } else { Error::unavailable(why) }
}

/// Reads the elements of a stream from wherever its bytes come.
pub struct Elements<R> {
    reader: NsReader<R>,
}

type Read<T> = std::result::Result<T, String>;

/// A piece of a stream; whatever means nothing in XMPP is an error before it comes to this.
enum Piece {
    Start(Element),
    End,
    Text(String),
}

impl<R: BufRead> Elements<R> {
    /// A stream that has not begun yet.
    pub fn new(reader: R) -> Elements<R> {
        let mut reader = NsReader::from_reader(reader);
        reader.config_mut().expand_empty_elements = true;
        Elements { reader }
    }

    /// Waits for the header of the stream.
    pub fn begin(&mut self) -> Read<()> {
        loop {
            match self.piece()? {
                Some(Piece::Text(text)) if text.trim().is_empty() => {}
                Some(Piece::Start(element)) if element.is(STREAMS, "stream") => return Ok(()),
                None => return Err("it closes the connection".to_owned()),
                Some(_) => return Err("it speaks no XMPP".to_owned()),
            }
        }
    }

    /// Waits for the next element; none at the end of the stream.
    pub fn next(&mut self) -> Read<Option<Element>> {
        // The elements that have begun, from the outermost to the innermost.
        let mut open: Vec<Element> = Vec::new();
        let mut count = 0;
        loop {
            match (self.piece()?, open.last_mut()) {
                (Some(Piece::Start(element)), _) => {
                    count += 1;
                    if open.len() >= DEPTH || count > CHILDREN {
                        return Err(too_large());
                    }
                    open.push(element);
                }
                (Some(Piece::Text(text)), Some(inner)) => inner.text.push_str(&text),
                // Between elements there are spaces alone, to keep the connection open.
                (Some(Piece::Text(_)), None) => {}
                (Some(Piece::End), Some(_)) => {
                    let whole = open.pop().unwrap_or_default();
                    match open.last_mut() {
                        Some(outer) => outer.children.push(whole),
                        None => return Ok(Some(whole)),
                    }
                }
                (Some(Piece::End) | None, None) => return Ok(None),
                (None, Some(_)) => return Err("it closes the connection within an element".to_owned()),
            }
        }
    }

    /// The next piece; none at the end of the connection.
    fn piece(&mut self) -> Read<Option<Piece>> {
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            let failed = |error: quick_xml::Error| match error {
                quick_xml::Error::Io(error) => error.to_string(),
                _ => "it sends no well-formed XML".to_owned(),
            };
            let (namespace, event) = self.reader.read_resolved_event_into(&mut buffer).map_err(failed)?;
            return Ok(Some(match event {
                Event::Start(start) | Event::Empty(start) => Piece::Start(element(namespace, &start)?),
                Event::End(_) => Piece::End,
                Event::Text(text) => Piece::Text(text.xml10_content().into_owned()),
                Event::CData(text) => Piece::Text(text.xml10_content().into_owned()),
                Event::GeneralRef(name) => {
                    let c = name.resolve_char_ref().map_err(|_| "it sends no character".to_owned())?;
                    match c.map(String::from).or_else(|| resolve_predefined_entity(&name).map(str::to_owned)) {
                        Some(text) => Piece::Text(text),
                        None => return Err("it sends an entity that XMPP does not have".to_owned()),
                    }
                }
                Event::Decl(_) => continue,
                Event::Eof => return Ok(None),
                // RFC 6120 section 11.1.
                Event::Comment(_) | Event::PI(_) | Event::DocType(_) => {
                    return Err("it sends XML that XMPP forbids".to_owned());
                }
            }));
        }
    }
}

fn too_large() -> String {
    "it sends an element that is too large".to_owned()
}

fn element(namespace: ResolveResult, start: &BytesStart) -> Read<Element> {
    let malformed = || "it sends no well-formed XML".to_owned();
    let mut attributes = Vec::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|_| malformed())?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|_| malformed())?;
        attributes.push((attribute.key.into_inner().to_owned(), value.into_owned()));
    }
    let namespace = match namespace {
        ResolveResult::Bound(namespace) if namespace.into_inner().len() > NAMESPACE => return Err(too_large()),
        ResolveResult::Bound(namespace) => namespace.into_inner().to_owned(),
        ResolveResult::Unbound => String::new(),
        ResolveResult::Unknown(_) => return Err(malformed()),
    };
    let name = start.local_name().into_inner().to_owned();
    Ok(Element { namespace, name, attributes, ..Element::default() })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Gives its bytes one at a time, as slow a network as can be.
    struct Trickle<'a>(&'a [u8]);

    impl io::Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
            buffer[0] = *first;
            self.0 = rest;
            Ok(1)
        }
    }

    const HEADER: &str =
        "<?xml version='1.0'?><s:stream xmlns='jabber:client' xmlns:s='http://etherx.jabber.org/streams' id='1'>";

    fn read(text: &str) -> Read<Vec<Element>> {
        let mut elements = Elements::new(BufReader::new(Trickle(text.as_bytes())));
        elements.begin()?;
        let mut all = Vec::new();
        while let Some(element) = elements.next()? {
            all.push(element);
        }
        Ok(all)
    }

    #[test]
    fn elements_are_read_in_any_legal_form() {
        let text = format!(
            "\n{HEADER} \n<s:features><starttls xmlns=\"urn:ietf:params:xml:ns:xmpp-tls\"><required/></starttls></s:features>\
             <iq id=\"a&amp;b&#x27;\" type='error'>x<![CDATA[<y>]]>&lt;&#122;</iq></s:stream>"
        );
        let all = read(&text).unwrap();
        assert!(all[0].is(STREAMS, "features"));
        let starttls = all[0].child("urn:ietf:params:xml:ns:xmpp-tls", "starttls").unwrap();
        assert_eq!(starttls.children[0].name, "required");
        assert!(all[1].is("jabber:client", "iq"));
        assert_eq!(all[1].attribute("id"), Some("a&b'"));
        assert_eq!(all[1].text, "x<y><z");
    }

    #[test]
    fn what_xmpp_does_not_have_is_refused() {
        for bad in [
            "",
            "HTTP/1.1 400 Bad Request\r\n\r\n",
            "<stream>",
            "<html>",
            "<!DOCTYPE x [<!ENTITY a 'b'>]><s:stream xmlns:s='http://etherx.jabber.org/streams'>",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        for bad in
            ["<!-- x -->", "<?x y?>", "<a>&b;</a>", "<a></b>", "<a b='1' b='2'/>", "<a", "<a>", "<x:a/>", "<a>&#0;</a>"]
        {
            assert!(read(&format!("{HEADER}{bad}")).is_err(), "{bad}");
        }
        let deep = format!("{HEADER}{}", "<a>".repeat(DEPTH + 1));
        let many = format!("{HEADER}<a>{}", "<b/>".repeat(CHILDREN));
        let long = format!("{HEADER}<a xmlns='{}'>", "x".repeat(NAMESPACE + 1));
        for large in [deep, many, long] {
            assert!(read(&large).unwrap_err().contains("too large"));
        }
    }

    #[test]
    fn what_is_sent_is_escaped() {
        assert_eq!(escape("<a b='c'>\"&"), "&lt;a b=&apos;c&apos;&gt;&quot;&amp;");
    }
}
