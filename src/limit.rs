//! Counts misses by client address, so that nobody tries tokens or keys by the thousand. In memory alone, and bounded.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::client::Clients;
use crate::gate::network;
use crate::http::Request;

/// Misses of one sort that an address may have within [`WINDOW_SECS`].
const MISSES: u32 = 30;
const WINDOW_SECS: i64 = 600;

/// The most addresses that are remembered for each sort.
const ADDRESSES: usize = 10_000;

/// What is tried. Each sort counts for itself: a forgotten bookmark with an old key must not keep guests from their invites.
#[derive(Clone, Copy)]
pub enum What {
    /// Tokens of invites.
    Token,
    /// Keys of the API.
    Key,
    /// Names that may be taken, and passwords of those who have just made an account.
    Name,
}

/// Since when each address has how many misses.
type Misses = HashMap<IpAddr, (i64, u32)>;

/// The misses of each address within its window.
pub struct Limiter {
    clients: Clients,
    tokens: Mutex<Misses>,
    keys: Mutex<Misses>,
    names: Mutex<Misses>,
}

impl Limiter {
    /// `clients` tells who is counted.
    pub fn new(clients: Clients) -> Limiter {
        Limiter { clients, tokens: Mutex::default(), keys: Mutex::default(), names: Mutex::default() }
    }

    /// The address of a client, if it is known.
    pub fn client(&self, request: &Request) -> Option<IpAddr> {
        self.clients.address(request)
    }

    /// How long the client of this request has to wait until its next try; none: not at all.
    pub fn wait_secs(&self, what: What, request: &Request, now: i64) -> Option<i64> {
        let address = network(self.client(request)?);
        let misses = self.misses(what);
        let (since, count) = misses.get(&address)?;
        let left = since + WINDOW_SECS - now;
        // A clock that was set back must not lock anybody out for longer.
        (*count >= MISSES && (1..=WINDOW_SECS).contains(&left)).then_some(left)
    }

    /// Counts a miss.
    pub fn strike(&self, what: What, request: &Request, now: i64) {
        let Some(address) = self.client(request).map(network) else { return };
        let mut misses = self.misses(what);
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

    fn misses(&self, what: What) -> MutexGuard<'_, Misses> {
        let misses = match what {
            What::Token => &self.tokens,
            What::Key => &self.keys,
            What::Name => &self.names,
        };
        misses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::PEER;

    fn from(peer: &str) -> Request {
        Request::new("GET", "/invite?T", vec![(PEER.to_owned(), peer.to_owned())])
    }

    fn limiter() -> Limiter {
        Limiter::new(Clients { trust_proxy: false })
    }

    #[test]
    fn an_address_waits_after_its_misses_and_others_do_not() {
        let limiter = limiter();
        let (one, other) = (from("192.0.2.1"), from("192.0.2.2"));
        for _ in 0..MISSES {
            assert_eq!(limiter.wait_secs(What::Token, &one, 1_000), None);
            limiter.strike(What::Token, &one, 1_000);
        }
        assert_eq!(limiter.wait_secs(What::Token, &one, 1_000), Some(WINDOW_SECS));
        assert_eq!(limiter.wait_secs(What::Key, &one, 1_000), None);
        assert_eq!(limiter.wait_secs(What::Token, &other, 1_000), None);
        assert_eq!(limiter.wait_secs(What::Token, &one, 1_000 + WINDOW_SECS), None);
        assert_eq!(limiter.wait_secs(What::Token, &one, 1), None, "the clock was set back");
    }

    #[test]
    fn a_network_is_one_client() {
        let limiter = limiter();
        for number in 0..MISSES {
            limiter.strike(What::Key, &from(&format!("2001:db8::{number:x}")), 1_000);
        }
        assert!(limiter.wait_secs(What::Key, &from("2001:db8::ffff"), 1_000).is_some());
        assert_eq!(limiter.wait_secs(What::Key, &from("2001:db8:0:1::1"), 1_000), None);
    }

    #[test]
    fn memory_is_bounded() {
        let limiter = limiter();
        for what in [What::Token, What::Key] {
            for number in 0..(ADDRESSES as u32 * 2) {
                let [a, b, c, d] = (0x0a00_0000 + number).to_be_bytes();
                limiter.strike(what, &from(&format!("{a}.{b}.{c}.{d}")), 1_000);
                assert!(limiter.misses(what).len() <= ADDRESSES);
            }
        }
    }
}
