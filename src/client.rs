//! Who a client is: the address of its connection, or the one that a proxy tells (`X-Forwarded-For`; `Forwarded`, RFC 7239).
//!
//! Pure. A proxy is believed where the admin says so, and only from this machine or a private network, and then only in its
//! last entry: clients can send all the others. The address of a proxy is never taken for that of a client.

use std::iter;
use std::net::{IpAddr, SocketAddr};

use crate::gate::{PEER, UNIX_PEER};
use crate::http::Request;

/// The headers of proxies: with one of these, a request was forwarded, or says so.
pub const PROXY_HEADERS: &[&str] = &["x-forwarded-for", "forwarded", "x-real-ip", "via"];

/// The header that tells `invited doctor` what is known of a client, see [`Client::word`].
pub const CLIENT_HEADER: &str = "X-Invited-Client";

/// What is known of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// The address of its connection.
    Direct(IpAddr),
    /// The address that a trusted proxy tells.
    Forwarded(IpAddr),
    /// It connects from this machine and names no proxy, so that it can be one itself.
    Local,
    /// A proxy forwards its requests, and no proxy is trusted.
    Untrusted,
    /// A proxy forwards its requests, from an address outside of all private networks.
    Far,
    /// A trusted proxy forwards its requests and tells no address.
    Untold,
}

impl Client {
    /// The address, if it is known.
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Client::Direct(address) | Client::Forwarded(address) => Some(address),
            Client::Local | Client::Untrusted | Client::Far | Client::Untold => None,
        }
    }

    /// The word for it in the answer to `invited doctor`.
    pub fn word(self) -> &'static str {
        match self {
            Client::Direct(_) => "direct",
            Client::Forwarded(_) => "forwarded",
            Client::Local => "local",
            Client::Untrusted => "untrusted",
            Client::Far => "far",
            Client::Untold => "untold",
        }
    }
}

/// Tells who clients are.
#[derive(Clone, Copy)]
pub struct Clients {
    /// A proxy stands before us.
    pub trust_proxy: bool,
}

impl Clients {
    /// Who sent a request.
    pub fn identify(self, request: &Request) -> Client {
        let peer = request.header(PEER).unwrap_or(UNIX_PEER).parse().ok();
        // Over a Unix socket there is no address.
        let is_local = peer.is_none_or(|peer: IpAddr| peer.is_loopback());
        if !PROXY_HEADERS.iter().any(|name| request.header(name).is_some()) {
            return peer.filter(|_| !is_local).map_or(Client::Local, Client::Direct);
        }
        if !self.trust_proxy {
            return Client::Untrusted;
        }
        if !is_local && !peer.is_some_and(is_private) {
            return Client::Far;
        }
        // A client could send `Forwarded` itself, past a proxy that writes `X-Forwarded-For` alone: this one comes first.
        let told = match (request.header("x-forwarded-for"), request.header("forwarded")) {
            (Some(list), _) => list.rsplit(',').next().and_then(|last| node(last.trim())),
            (None, Some(list)) => forwarded(list),
            (None, None) => None,
        };
        told.map_or(Client::Untold, Client::Forwarded)
    }
}

/// Whether an address is of a private network (RFC 1918, RFC 4193).
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_private(),
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

/// The address in the last element of a `Forwarded` list (RFC 7239 section 4).
fn forwarded(list: &str) -> Option<IpAddr> {
    // From the end, so that nothing before the last element can change how it is read.
    let last = rsplit_quoted(list, ',').next()?;
    let mut found = rsplit_quoted(last, ';').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim())
    });
    let value = found.next().filter(|_| found.next().is_none())?;
    // In quotes stands what has colons or brackets. No address needs a backslash.
    node(value.strip_prefix('"').map_or(Some(value), |value| value.strip_suffix('"'))?)
}

/// The pieces of a list whose separators do not count within quotes, from its end.
fn rsplit_quoted(list: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut rest = Some(list);
    iter::from_fn(move || {
        let list = rest.take()?;
        let mut is_quoted = false;
        for (at, found) in list.char_indices().rev() {
            if found == '"' {
                let backslashes = list.as_bytes()[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
                is_quoted ^= backslashes % 2 == 0;
            } else if found == separator && !is_quoted {
                rest = Some(&list[..at]);
                return Some(list[at + 1..].trim());
            }
        }
        Some(list.trim())
    })
}

/// An address with or without brackets and port; none for `unknown` and for a hidden one such as `_proxy` (RFC 7239
/// section 6).
fn node(text: &str) -> Option<IpAddr> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        return (port.is_empty() || port.starts_with(':')).then(|| address.parse().ok())?;
    }
    let with_port = || text.parse::<SocketAddr>().map(|address| address.ip());
    text.parse().or_else(|_| with_port()).ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(trust_proxy: bool, peer: &str, headers: &[(&str, &str)]) -> Option<String> {
        let own = [(PEER, peer)];
        let headers = headers.iter().chain(&own);
        let headers = headers.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let request = Request::new("GET", "/invite?T", headers);
        Clients { trust_proxy }.identify(&request).address().map(|address| address.to_string())
    }

    #[test]
    fn a_proxy_is_believed_only_where_it_is_trusted_and_near() {
        let told = [("x-forwarded-for", "6.6.6.6, 192.0.2.9")];
        for near in ["127.0.0.1", "::1", "unix", "10.1.2.3", "172.31.0.1", "192.168.1.1", "fd00::1"] {
            assert_eq!(address(true, near, &told).as_deref(), Some("192.0.2.9"), "{near}");
        }
        for far in ["198.51.100.1", "2001:db8::1", "172.32.0.1"] {
            assert_eq!(address(true, far, &[]).as_deref(), Some(far));
        }
        for local in ["127.0.0.1", "::1", "unix"] {
            assert_eq!(address(false, local, &told), None);
            assert_eq!(address(true, local, &[]), None);
        }
        // A client of the private network itself.
        assert_eq!(address(true, "10.1.2.3", &[]).as_deref(), Some("10.1.2.3"));
        // A proxy that does not say: all its clients would share its address.
        assert_eq!(address(true, "10.1.2.3", &[("x-forwarded-for", "unknown")]), None);
    }

    #[test]
    fn the_address_of_a_proxy_is_never_taken_for_that_of_its_clients() {
        for peer in ["127.0.0.1", "unix", "10.1.2.3", "fd00::1", "198.51.100.1", "2001:db8::1"] {
            let is_far = ["198.51.100.1", "2001:db8::1"].contains(&peer);
            for name in PROXY_HEADERS {
                for value in ["192.0.2.9", "for=192.0.2.9", "1.1 proxy", "unknown", "10.9.9.9", ""] {
                    let known = |trust_proxy| address(trust_proxy, peer, &[(name, value)]);
                    assert_eq!(known(false), None, "{peer} {name}: {value}");
                    assert_ne!(known(true).as_deref(), Some(peer), "{peer} {name}: {value}");
                    assert!(!is_far || known(true).is_none(), "{peer} {name}: {value}");
                }
            }
        }
    }

    #[test]
    fn the_last_entry_is_read_in_all_its_forms_and_nothing_before_it_counts() {
        for (list, expected) in [
            ("192.0.2.9", Some("192.0.2.9")),
            ("192.0.2.9:4711", Some("192.0.2.9")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[2001:db8::1]:80", Some("2001:db8::1")),
            ("::ffff:192.0.2.9", Some("192.0.2.9")),
            ("", None),
            ("192.0.2.9,", None),
            ("a.example", None),
        ] {
            let found = address(true, "::1", &[("x-forwarded-for", list)]);
            assert_eq!(found.as_deref(), expected, "{list}");
        }
        for (list, expected) in [
            ("for=192.0.2.9", Some("192.0.2.9")),
            ("For=192.0.2.9;proto=https;by=203.0.113.43", Some("192.0.2.9")),
            ("for=6.6.6.6, for=192.0.2.9", Some("192.0.2.9")),
            (r#"for="192.0.2.9:4711""#, Some("192.0.2.9")),
            (r#"for="[2001:db8::1]""#, Some("2001:db8::1")),
            (r#"proto=http; FOR="[2001:db8::1]:_port""#, Some("2001:db8::1")),
            ("for=unknown", None),
            ("for=_hidden", None),
            (r#"for="_x:80""#, None),
            ("proto=https", None),
            ("for=192.0.2.9;for=6.6.6.6", None),
            // Of these, all but the last element is what a client has made up.
            (r#"for="6.6.6.6, for=192.0.2.9"#, Some("192.0.2.9")),
            (r#"for=6.6.6.6", for=192.0.2.9;host="a, for=6.6.6.6""#, Some("192.0.2.9")),
            (r#"for=192.0.2.9;host="a\", for=6.6.6.6;x=\"b""#, Some("192.0.2.9")),
            (r#"for=192.0.2.9;host="a;for=6.6.6.6;b=""#, Some("192.0.2.9")),
        ] {
            let found = address(true, "::1", &[("forwarded", list)]);
            assert_eq!(found.as_deref(), expected, "{list}");
        }
        let both = [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "192.0.2.9")];
        assert_eq!(address(true, "::1", &both).as_deref(), Some("192.0.2.9"));
    }
}
