//! The connections of the gate, and which of them gives way when a quota is used up.
//!
//! The network with the largest share gives way, and of its connections the one that has waited longest for its client. A
//! network never gains at the cost of one with a smaller share.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Shutdown};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::socket::Stream;

/// A quota that all connections share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// Connections at the same time.
    Connections,
    /// Bytes of large heads and bodies.
    RequestBytes,
    /// Bytes of large answers.
    AnswerBytes,
}

/// The network of a client, by which it is counted; none on a Unix socket.
pub type Network = Option<IpAddr>;

/// All connections.
pub struct Places {
    next: u64,
    connections: HashMap<u64, Connection>,
    /// Set at the end: no connection is kept for another request.
    pub draining: bool,
    /// When the last connection came or went.
    pub active: Instant,
    /// The accepting loop waits for a place.
    pub admitting: bool,
}

/// One of them.
pub struct Connection {
    stream: Arc<Stream>,
    /// Where its client is.
    pub network: Network,
    /// Since when it waits for its client, to send or to take; none while a worker has its request.
    pub waiting: Option<Instant>,
    /// It was told to give way and is about to go.
    pub dismissed: bool,
    /// Its first request has not come yet.
    pub fresh: bool,
    request: usize,
    answer: usize,
}

impl Connection {
    /// Its share of a quota.
    fn share(&self, quota: Quota) -> usize {
        match quota {
            Quota::Connections => 1,
            Quota::RequestBytes => self.request,
            Quota::AnswerBytes => self.answer,
        }
    }

    /// Makes its share larger.
    pub fn add(&mut self, quota: Quota, bytes: usize) {
        match quota {
            Quota::Connections => {}
            Quota::RequestBytes => self.request += bytes,
            Quota::AnswerBytes => self.answer += bytes,
        }
    }

    /// Gives its share back. Returns whether it had any.
    pub fn clear(&mut self, quota: Quota) -> bool {
        let share = match quota {
            Quota::Connections => return false,
            Quota::RequestBytes => &mut self.request,
            Quota::AnswerBytes => &mut self.answer,
        };
        std::mem::take(share) > 0
    }
}

impl Places {
    /// None yet.
    pub fn new() -> Places {
        Places { next: 0, connections: HashMap::new(), draining: false, active: Instant::now(), admitting: false }
    }

    /// Adds a connection that waits for its client, and returns its number.
    pub fn add(&mut self, stream: Arc<Stream>, network: Network) -> u64 {
        let id = self.next;
        self.next += 1;
        let now = Instant::now();
        self.active = now;
        let connection =
            Connection { stream, network, waiting: Some(now), dismissed: false, fresh: true, request: 0, answer: 0 };
        self.connections.insert(id, connection);
        id
    }

    /// Takes a connection out. Returns whether it was there.
    pub fn remove(&mut self, id: u64) -> bool {
        self.active = Instant::now();
        self.connections.remove(&id).is_some()
    }

    /// A connection by its number.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Connection> {
        self.connections.get_mut(&id)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.connections.len()
    }

    /// The sum of all shares.
    pub fn used(&self, quota: Quota) -> usize {
        self.connections.values().map(|connection| connection.share(quota)).sum()
    }

    /// The sum of all shares without those of dismissed connections.
    pub fn staying(&self, quota: Quota) -> usize {
        self.connections.values().filter(|c| !c.dismissed).map(|connection| connection.share(quota)).sum()
    }

    /// Whether all come from this network.
    pub fn are_all_from(&self, network: Network) -> bool {
        self.connections.values().all(|connection| connection.network == network)
    }

    /// Dismisses a connection for the sake of one of `network` that needs `more`. Returns false if there is none to dismiss: it
    /// must have waited for its client for at least `waited`, and no network with a smaller share gives way.
    pub fn dismiss_one(&mut self, quota: Quota, network: Network, more: usize, waited: Duration) -> bool {
        // The share of each network, and the connection of it that has waited longest.
        let mut networks: HashMap<Network, (usize, Option<(Instant, u64)>)> = HashMap::new();
        for (id, connection) in self.connections.iter().filter(|(_, connection)| !connection.dismissed) {
            let share = connection.share(quota);
            let (total, longest) = networks.entry(connection.network).or_default();
            *total += share;
            if share > 0
                && let Some(since) = connection.waiting
                && since.elapsed() >= waited
                && longest.is_none_or(|longest| (since, *id) < longest)
            {
                *longest = Some((since, *id));
            }
        }
        let own = networks.get(&network).map_or(0, |(total, _)| *total) + more;
        let candidates = networks.into_iter().filter(|(other, (total, _))| *total >= own || *other == network);
        let candidates = candidates.filter_map(|(_, (total, longest))| Some((total, Reverse(longest?))));
        let Some((_, Reverse((_, id)))) = candidates.max() else { return false };
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        connection.dismissed = true;
        let _ = connection.stream.shutdown(Shutdown::Both);
        true
    }

    /// Ends those that wait for their client. What has arrived by now can still be read, and is answered.
    pub fn end_waiting(&self, which: impl Fn(&Connection) -> bool) {
        for connection in self.connections.values().filter(|c| c.waiting.is_some() && which(c)) {
            let _ = connection.stream.shutdown(Shutdown::Read);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// One connection for each letter, the first of which has waited longest; a capital one is with a worker.
    fn places(networks: &str) -> Places {
        let mut places = Places::new();
        let now = Instant::now() - Duration::from_secs(60);
        for (number, letter) in networks.chars().enumerate() {
            let stream = Arc::new(Stream::Unix(UnixStream::pair().unwrap().0));
            let id = places.add(stream, network(letter.to_ascii_lowercase()));
            let connection = places.get_mut(id).unwrap();
            connection.waiting = letter.is_lowercase().then(|| now + Duration::from_secs(number as u64));
        }
        places
    }

    fn network(letter: char) -> Network {
        Some(IpAddr::from([192, 0, 2, letter as u8]))
    }

    fn dismissed(places: &Places) -> Vec<u64> {
        let mut ids: Vec<u64> = places.connections.iter().filter(|(_, c)| c.dismissed).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn the_network_with_the_largest_share_gives_way_and_never_one_with_less_than_the_newcomer() {
        for (networks, newcomer, expected) in [
            ("abbb", 'a', Some(1)),
            ("abbb", 'b', Some(1)),
            ("abbb", 'c', Some(1)),
            ("abBb", 'a', Some(1)),
            ("aBbb", 'a', Some(2)),
            // All of the crowd are being answered: others are not to suffer for one more of it.
            ("aaBBB", 'b', None),
            ("aaBBB", 'c', Some(0)),
            ("abc", 'd', Some(0)),
            ("Abc", 'd', Some(1)),
            ("bbbb", 'b', Some(0)),
            ("BBbB", 'b', Some(2)),
            ("BBBB", 'b', None),
            ("aab", 'b', Some(0)),
            ("ab", 'b', Some(1)),
        ] {
            let mut places = places(networks);
            assert_eq!(
                places.dismiss_one(Quota::Connections, network(newcomer), 1, Duration::ZERO),
                expected.is_some(),
                "{networks}"
            );
            assert_eq!(dismissed(&places), Vec::from_iter(expected), "{newcomer} comes to {networks}");
        }
    }

    #[test]
    fn dismissed_connections_are_not_counted() {
        let mut places = places("bbaa");
        for _ in 0..2 {
            assert!(places.dismiss_one(Quota::Connections, network('c'), 1, Duration::ZERO));
        }
        assert_eq!(dismissed(&places), [0, 2]);
        assert_eq!((places.count(), places.staying(Quota::Connections)), (4, 2));
    }

    #[test]
    fn a_connection_without_a_share_is_not_dismissed() {
        let mut places = places("aab");
        places.get_mut(1).unwrap().add(Quota::AnswerBytes, 10);
        places.get_mut(2).unwrap().add(Quota::RequestBytes, 10);
        assert!(!places.dismiss_one(Quota::AnswerBytes, network('c'), 10, Duration::from_secs(600)), "not yet");
        assert!(!places.dismiss_one(Quota::AnswerBytes, network('c'), 11, Duration::ZERO), "less than it wants itself");
        assert!(places.dismiss_one(Quota::AnswerBytes, network('c'), 10, Duration::ZERO));
        assert_eq!(dismissed(&places), [1]);
        assert_eq!((places.used(Quota::AnswerBytes), places.used(Quota::RequestBytes)), (10, 10));
        assert!(places.get_mut(1).unwrap().clear(Quota::AnswerBytes));
        assert!(!places.get_mut(1).unwrap().clear(Quota::AnswerBytes));
    }
}
