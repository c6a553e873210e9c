//! Counts misses by client address, so that nobody tries tokens by the thousand. In memory alone, and bounded.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use crate::gate::PEER;
use crate::http::Request;

/// Misses that an address may have within [`WINDOW_SECS`].
const MISSES: u32 = 30;
const WINDOW_SECS: i64 = 600;

/// The most addresses that are remembered.
const ADDRESSES: usize = 10_000;

/// The misses of each address within its window.
pub struct Limiter {
    trust_proxy: bool,
    misses: Mutex<HashMap<IpAddr, (i64, u32)>>,
}

impl Limiter {
    /// `trust_proxy` says that a proxy stands before us, and that the last address of its `X-Forwarded-For` is the client's.
    pub fn new(trust_proxy: bool) -> Limiter {
        Limiter { trust_proxy, misses: Mutex::new(HashMap::new()) }
    }

    /// How long the client of this request has to wait until its next try; none: not at all.
    pub fn wait_secs(&self, request: &Request, now: i64) -> Option<i64> {
        let address = self.address(request)?;
        let misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = misses.get(&address)?;
        let left = since + WINDOW_SECS - now;
        // A clock that was set back must not lock anybody out for longer.
        (*count >= MISSES && (1..=WINDOW_SECS).contains(&left)).then_some(left)
    }

    /// Counts a miss.
    pub fn strike(&self, request: &Request, now: i64) {
        let Some(address) = self.address(request) else { return };
        let mut misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        if misses.len() >= ADDRESSES && !misses.contains_key(&address) {
            misses.retain(|_, (since, _)| *since + WINDOW_SECS > now);
            if misses.len() >= ADDRESSES {
                // So many at once is an attack from many addresses: forgetting them all is better than growing.
                misses.clear();
            }
        }
        let entry = misses.entry(address).or_insert((now, 0));
        if !(0..WINDOW_SECS).contains(&(now - entry.0)) {
            *entry = (now, 0);
        }
        entry.1 += 1;
    }

    /// The client's address as the proxy says, if it is trusted and says it.
    pub fn forwarded(&self, request: &Request) -> Option<IpAddr> {
        let list = request.header("x-forwarded-for").filter(|_| self.trust_proxy)?;
        let last = list.rsplit(',').next().unwrap_or_default().trim();
        // Some proxies add the port.
        let with_port = |text: &str| text.parse::<SocketAddr>().map(|address| address.ip());
        last.parse().or_else(|_| with_port(last)).ok()
    }

    /// The address to count by; an IPv6 one by its network (/64). None behind a proxy that is not trusted: all clients
    /// would share its address, and one of them could lock out the others.
    fn address(&self, request: &Request) -> Option<IpAddr> {
        let peer: IpAddr = request.header(PEER)?.parse().ok()?;
        let address = match self.forwarded(request) {
            Some(address) => address,
            // The proxy did not say, or is not trusted: all clients would share its address.
            None if peer.is_loopback() => return None,
            None => peer,
        };
        Some(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::from([a, b, c, d, 0, 0, 0, 0])
            }
            address => address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(peer: &str, forwarded: Option<&str>) -> Request {
        let mut headers = vec![(PEER.to_owned(), peer.to_owned())];
        headers.extend(forwarded.map(|list| ("x-forwarded-for".to_owned(), list.to_owned())));
        Request::new("GET", "/invite?T", headers)
    }

    #[test]
    fn an_address_waits_after_its_misses_and_others_do_not() {
        let limiter = Limiter::new(false);
        let (one, other) = (from("192.0.2.1", None), from("192.0.2.2", None));
        for _ in 0..MISSES {
            assert_eq!(limiter.wait_secs(&one, 1_000), None);
            limiter.strike(&one, 1_000);
        }
        assert_eq!(limiter.wait_secs(&one, 1_000), Some(WINDOW_SECS));
        assert_eq!(limiter.wait_secs(&other, 1_000), None);
        assert_eq!(limiter.wait_secs(&one, 1_000 + WINDOW_SECS), None);
        assert_eq!(limiter.wait_secs(&one, 1), None, "the clock was set back");
    }

    #[test]
    fn a_network_is_one_client_and_a_proxy_is_believed_only_if_it_is_trusted() {
        let limiter = Limiter::new(false);
        assert_eq!(limiter.address(&from("2001:db8::1", None)), limiter.address(&from("2001:db8::ffff", None)));
        assert_eq!(limiter.address(&from("192.0.2.1", Some("6.6.6.6"))), Some(IpAddr::from([192, 0, 2, 1])));
        assert_eq!(limiter.address(&from("127.0.0.1", Some("6.6.6.6"))), None);
        let trusting = Limiter::new(true);
        let last = trusting.address(&from("127.0.0.1", Some("6.6.6.6, 192.0.2.9")));
        assert_eq!(last, Some(IpAddr::from([192, 0, 2, 9])));
        let with_port = trusting.address(&from("127.0.0.1", Some("192.0.2.9:4711")));
        assert_eq!(with_port, Some(IpAddr::from([192, 0, 2, 9])));
        assert_eq!(trusting.address(&from("127.0.0.1", None)), None);
        assert_eq!(trusting.address(&from("127.0.0.1", Some("unknown"))), None);
    }

    #[test]
    fn memory_is_bounded() {
        let limiter = Limiter::new(false);
        for number in 0..(ADDRESSES as u32 * 2) {
            let [a, b, c, d] = (0x0a00_0000 + number).to_be_bytes();
            limiter.strike(&from(&format!("{a}.{b}.{c}.{d}"), None), 1_000);
            assert!(limiter.misses.lock().unwrap().len() <= ADDRESSES);
        }
    }
}
