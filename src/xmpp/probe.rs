//! A look at an XMPP server as a client sees it: what it offers, its certificate, and what it says to a token.
//!
//! Decides nothing, but says whether a token would be safe on this connection.

use std::time::Instant;

use super::{Address, Opened, REGISTER, STREAMS, StanzaError, Stream, connect, escape, exchange, further_fields, open};
use crate::error::Result;
use crate::host::Host;
use crate::wire::Certificate;

/// A stream that is open, encrypted wherever the server can, whatever its certificate.
pub struct Probe(Opened);

/// What a server says to a token.
#[derive(Debug, PartialEq, Eq)]
pub enum Shown {
    /// One could register with it.
    Taken,
    /// It knows tokens, and this one is not good.
    Refused,
    /// It answers with this condition, and hence knows no tokens.
    Odd(String),
}

impl Probe {
    /// Connects and begins a stream to the host. The deadline is for all that comes after as well.
    pub fn open(address: &Address, host: &Host, deadline: Instant) -> Result<Probe> {
        open(connect(address, deadline)?, address.direct_tls, host, false).map(Probe)
    }

    /// Whether the server knows the host by its ASCII form, as one does whose configuration has that.
    pub fn knows_ascii(address: &Address, host: &Host, deadline: Instant) -> Result<bool> {
        let mut wire = connect(address, deadline)?;
        if address.direct_tls {
            wire = wire.with_tls(host.ascii(), b"xmpp-client", false)?;
        }
        Ok(Stream::begin(wire, host.ascii())?.next()?.is(STREAMS, "features"))
    }

    /// Whether the server is on this very machine.
    pub fn is_local(&self) -> bool {
        self.0.stream.wire().is_local()
    }

    /// Whether it offers something of this namespace.
    pub fn offers(&self, namespace: &str) -> bool {
        self.0.features.children.iter().any(|feature| feature.namespace == namespace)
    }

    /// What is to be said of its certificate, see [`crate::wire::Wire::certificate`]; none where it offers no TLS.
    pub fn certificate(&self, host: &Host, now: i64, later: i64) -> Result<Option<Certificate>> {
        self.0.stream.wire().certificate(host.ascii(), now, later)
    }

    /// Shows it a token (XEP-0445 section 4). This uses nothing up.
    pub fn show(&mut self, host: &Host, token: &str) -> Result<Shown> {
        let content = format!("<preauth xmlns='urn:xmpp:pars:0' token='{}'/>", escape(token));
        let answer = exchange(&mut self.0.stream, host, "set", "probe", &content)?;
        if answer.attribute("type") == Some("result") {
            return Ok(Shown::Taken);
        }
        Ok(match StanzaError::read(&answer).condition.as_str() {
            // The latter is the condition of XEP-0445, the former Prosody's.
            "forbidden" | "item-not-found" => Shown::Refused,
            other => Shown::Odd(other.to_owned()),
        })
    }

    /// Registers an account (XEP-0077) with the token that was shown last: the server's reason where it refuses, which can be
    /// empty, or none where it made the account.
    pub fn register(&mut self, host: &Host, username: &str, password: &str) -> Result<Option<String>> {
        let fields = format!("<username>{}</username><password>{}</password>", escape(username), escape(password));
        let content = format!("<query xmlns='{REGISTER}'>{fields}</query>");
        let answer = exchange(&mut self.0.stream, host, "set", "register", &content)?;
        if answer.attribute("type") == Some("result") {
            return Ok(None);
        }
        Ok(Some(StanzaError::read(&answer).text.unwrap_or_default()))
    }

    /// The fields that it wants in a registration besides a name and a password.
    pub fn further_fields(&mut self, host: &Host) -> Result<Vec<String>> {
        further_fields(&mut self.0.stream, host)
    }

    /// Ends the stream.
    pub fn close(self) {
        self.0.stream.close();
    }
}
