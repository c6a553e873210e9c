//! Counts failed attempts at tokens, keys and names by client address, and those at names by invite as well. The counts
//! are bounded, and kept in memory alone.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::client::{Client, Clients};
use crate::gate::network;
use crate::http::Request;
use crate::key::Digest;

/// Misses of one sort that an address, or an invite, may have within [`WINDOW`].
const MISSES: u32 = 30;
const WINDOW: Duration = Duration::from_secs(600);

/// The most addresses and invites that are remembered for each sort.
const REMEMBERED: usize = 10_000;

/// What is tried. Each sort counts for itself: a forgotten bookmark with an old key must not keep guests from their invites.
#[derive(Clone, Copy)]
pub enum What<'a> {
    /// Tokens of invites.
    Token,
    /// Keys of the API.
    Key,
    /// Names that may be taken, with the invite of this token.
    Name(&'a Digest),
}

/// What misses are counted by.
#[derive(PartialEq, Eq, Hash)]
enum Counted {
    /// The address of the client, see [`network`].
    Network(IpAddr),
    /// The digest of the token.
    Invite([u8; 32]),
}

/// Since when how many misses there were, on a clock that is never set.
type Misses = HashMap<Counted, (Instant, u32)>;

/// The misses of each address and invite within its window.
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

    /// What is known of a client. One without an address is not counted: it shares what is known with all others.
    pub fn client(&self, request: &Request) -> Client {
        self.clients.identify(request)
    }

    /// How many seconds it takes until the next try is let through; none: not one.
    pub fn wait_secs(&self, what: What, request: &Request) -> Option<i64> {
        self.wait_at(what, request, Instant::now())
    }

    /// Counts a miss.
    pub fn strike(&self, what: What, request: &Request) {
        self.strike_at(what, request, Instant::now());
    }

    fn wait_at(&self, what: What, request: &Request, now: Instant) -> Option<i64> {
        let misses = self.misses(what);
        let wait = |counted: Counted| {
            let (since, count) = misses.get(&counted)?;
            let left = WINDOW.saturating_sub(now.saturating_duration_since(*since));
            (*count >= MISSES && !left.is_zero()).then(|| left.as_millis().div_ceil(1_000) as i64)
        };
        self.counted(what, request).filter_map(wait).max()
    }

    fn strike_at(&self, what: What, request: &Request, now: Instant) {
        let mut misses = self.misses(what);
        let is_over = |since: Instant| now.saturating_duration_since(since) >= WINDOW;
        for counted in self.counted(what, request) {
            if misses.len() >= REMEMBERED && !misses.contains_key(&counted) {
                misses.retain(|_, (since, _)| !is_over(*since));
                if misses.len() >= REMEMBERED {
                    // So many at once is an attack from many addresses: forgetting them all is better than growing.
                    misses.clear();
                }
            }
            let entry = misses.entry(counted).or_insert((now, 0));
            if is_over(entry.0) {
                *entry = (now, 0);
            }
            entry.1 += 1;
        }
    }

    fn counted(&self, what: What, request: &Request) -> impl Iterator<Item = Counted> {
        let network = self.client(request).address().map(|address| Counted::Network(network(address)));
        let invite = match what {
            What::Name(token) => Some(Counted::Invite(*token.as_bytes())),
            What::Token | What::Key => None,
        };
        network.into_iter().chain(invite)
    }

    fn misses(&self, what: What) -> MutexGuard<'_, Misses> {
        let misses = match what {
            What::Token => &self.tokens,
            What::Key => &self.keys,
            What::Name(_) => &self.names,
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
        let now = Instant::now();
        let (one, other) = (from("192.0.2.1"), from("192.0.2.2"));
        for _ in 0..MISSES {
            assert_eq!(limiter.wait_at(What::Token, &one, now), None);
            limiter.strike_at(What::Token, &one, now);
        }
        assert_eq!(limiter.wait_at(What::Token, &one, now), Some(600));
        assert_eq!(limiter.wait_at(What::Key, &one, now), None);
        assert_eq!(limiter.wait_at(What::Token, &other, now), None);
        assert_eq!(limiter.wait_at(What::Token, &one, now + WINDOW - Duration::from_millis(1)), Some(1));
        assert_eq!(limiter.wait_at(What::Token, &one, now + WINDOW), None);
        limiter.strike_at(What::Token, &one, now + WINDOW);
        assert_eq!(limiter.wait_at(What::Token, &one, now + WINDOW), None, "a new window begins with one miss");
    }

    #[test]
    fn a_network_is_one_client() {
        let limiter = limiter();
        let now = Instant::now();
        for number in 0..MISSES {
            limiter.strike_at(What::Key, &from(&format!("2001:db8::{number:x}")), now);
        }
        assert!(limiter.wait_at(What::Key, &from("2001:db8::ffff"), now).is_some());
        assert_eq!(limiter.wait_at(What::Key, &from("2001:db8:0:1::1"), now), None);
    }

    #[test]
    fn names_are_counted_by_invite_whatever_address_they_come_from() {
        let limiter = limiter();
        let now = Instant::now();
        let (invite, other) = (Digest::of("one"), Digest::of("other"));
        for number in 0..MISSES {
            let peer = if number % 2 == 0 { "127.0.0.1".to_owned() } else { format!("192.0.2.{number}") };
            assert_eq!(limiter.wait_at(What::Name(&invite), &from(&peer), now), None);
            limiter.strike_at(What::Name(&invite), &from(&peer), now);
        }
        for peer in ["127.0.0.1", "192.0.2.200"] {
            assert!(limiter.wait_at(What::Name(&invite), &from(peer), now).is_some(), "{peer}");
            assert_eq!(limiter.wait_at(What::Name(&other), &from(peer), now), None, "{peer}");
        }
        for number in 0..MISSES {
            limiter.strike_at(What::Name(&Digest::of(&number.to_string())), &from("192.0.2.1"), now);
        }
        assert!(
            limiter.wait_at(What::Name(&other), &from("192.0.2.1"), now).is_some(),
            "many invites are no way around"
        );
    }

    #[test]
    fn memory_is_bounded() {
        let limiter = limiter();
        let now = Instant::now();
        for number in 0..(REMEMBERED as u32 * 2) {
            let [a, b, c, d] = (0x0a00_0000 + number).to_be_bytes();
            let token = Digest::of_bytes(&number.to_be_bytes());
            for what in [What::Token, What::Key, What::Name(&token)] {
                limiter.strike_at(what, &from(&format!("{a}.{b}.{c}.{d}")), now);
                assert!(limiter.misses(what).len() <= REMEMBERED);
            }
        }
    }
}
