//! Where registrations queue: how many go on at a time, and what came of one that is sent twice.
//!
//! In memory alone, and bounded.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::key::Digest;

/// For how long a registration is remembered once it is done: somebody reloads the page, or comes back to it.
const REMEMBER: Duration = Duration::from_secs(600);

/// The most registrations that are remembered.
const REMEMBERED: usize = 256;

/// The most places that one invite may take, so that its guests can't take them all.
const OF_ONE_INVITE: usize = 8;

/// Other requests with the same invite, of which nothing comes, until a registration is forgotten: each can be a guess at the
/// password that its guest has sent.
const GUESSES: usize = 10;

/// The registrations of this process.
pub struct Desk {
    at_once: usize,
    forms: Mutex<Forms>,
    changed: Condvar,
}

/// Each by the digest of all that was sent, so that a name or a password is not kept.
#[derive(Default)]
struct Forms {
    /// Requests that have come in and are not answered, by the digest of their token.
    busy: Vec<Digest>,
    under_way: Vec<Digest>,
    done: Vec<Done>,
}

/// A registration of which all was well.
struct Done {
    request: Digest,
    token: Digest,
    at: Instant,
    guesses: usize,
}

impl Forms {
    fn is_done(&self, digest: &Digest) -> bool {
        self.done.iter().any(|done| done.request.matches(digest))
    }

    fn leave(&mut self, token: &Digest) {
        if let Some(at) = self.busy.iter().position(|other| other.matches(token)) {
            self.busy.swap_remove(at);
        }
    }

    fn is_under_way(&self, digest: &Digest) -> bool {
        self.under_way.iter().any(|other| other.matches(digest))
    }
}

/// How a request may go on.
pub enum Entry<'a> {
    /// It does the registration.
    First(Turn<'a>),
    /// The very same request was here before, and all was well.
    Done,
    /// Too many are under way, or the very same one takes too long.
    Busy,
}

/// A registration under way; it failed unless it is said to be [`Turn::done`].
pub struct Turn<'a> {
    desk: &'a Desk,
    digest: Digest,
    token: Digest,
}

impl Desk {
    /// At most `at_once` requests are under way at a time.
    pub fn new(at_once: usize) -> Desk {
        Desk { at_once, forms: Mutex::default(), changed: Condvar::new() }
    }

    /// Lets a request in. The same request for a second time (a double tap on a button) waits for the first one until the
    /// deadline, and does it all again where that failed, so that it gets the same answer.
    pub fn enter(&self, digest: Digest, token: Digest, deadline: Instant) -> Entry<'_> {
        let mut forms = self.lock();
        forms.done.retain(|done| done.at.elapsed() < REMEMBER);
        // This comes first: a guess for which there is no place must not be told whether it was right.
        let same = forms.busy.iter().filter(|other| other.matches(&token)).count();
        if forms.busy.len() >= self.at_once || same >= OF_ONE_INVITE {
            return Entry::Busy;
        }
        if forms.is_done(&digest) {
            return Entry::Done;
        }
        forms.busy.push(token.clone());
        let patience = deadline.saturating_duration_since(Instant::now());
        let wait = self.changed.wait_timeout_while(forms, patience, |forms| forms.is_under_way(&digest));
        let (mut forms, _) = wait.unwrap_or_else(PoisonError::into_inner);
        if forms.is_done(&digest) {
            forms.leave(&token);
            return Entry::Done;
        }
        if forms.is_under_way(&digest) {
            forms.leave(&token);
            return Entry::Busy;
        }
        forms.under_way.push(digest.clone());
        Entry::First(Turn { desk: self, digest, token })
    }

    /// Requests that are under way.
    pub fn busy(&self) -> usize {
        self.lock().busy.len()
    }

    fn lock(&self) -> MutexGuard<'_, Forms> {
        self.forms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Remembers that all was well.
    pub fn done(self) {
        let mut forms = self.desk.lock();
        if forms.done.len() >= REMEMBERED {
            forms.done.remove(0);
        }
        let (request, token) = (self.digest.clone(), self.token.clone());
        forms.done.push(Done { request, token, at: Instant::now(), guesses: 0 });
    }

    /// Counts a request of which nothing came, though all of its fields were good, as a guess.
    pub fn count_guess(&self) {
        let mut forms = self.desk.lock();
        forms.done.retain_mut(|done| {
            done.guesses += usize::from(done.token.matches(&self.token));
            done.guesses < GUESSES
        });
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut forms = self.desk.lock();
        forms.leave(&self.token);
        forms.under_way.retain(|other| !other.matches(&self.digest));
        self.desk.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_same_request_waits_for_the_first_one_and_others_go_on_up_to_the_limit() {
        let desk = Desk::new(3);
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|text| move || Digest::of(text));
        let patience = Instant::now() + Duration::from_secs(30);
        let Entry::First(first) = desk.enter(a(), a(), patience) else { panic!() };
        let Entry::First(other) = desk.enter(b(), b(), patience) else { panic!() };
        thread::scope(|scope| {
            let second = scope.spawn(|| matches!(desk.enter(a(), a(), patience), Entry::Done));
            while desk.lock().busy.len() < 3 {
                thread::yield_now();
            }
            assert!(matches!(desk.enter(c(), c(), patience), Entry::Busy));
            first.done();
            assert!(second.join().unwrap());
        });
        drop(other);
        assert!(matches!(desk.enter(a(), a(), patience), Entry::Done));
        assert!(matches!(desk.enter(b(), b(), patience), Entry::First(_)), "a failed one can be tried again");
        assert!(desk.lock().busy.is_empty());
        let Entry::First(_stalled) = desk.enter(d(), d(), patience) else { panic!() };
        assert!(matches!(desk.enter(d(), d(), Instant::now()), Entry::Busy));
    }

    #[test]
    fn a_registration_is_forgotten_after_ten_guesses_with_its_invite_and_no_other() {
        let desk = Desk::new(3);
        let [right, token, other] = ["right", "token", "other"].map(|text| move || Digest::of(text));
        let register = |request: Digest, token: Digest| {
            let Entry::First(turn) = desk.enter(request, token, Instant::now()) else { panic!() };
            turn.done();
        };
        let guess = |number: usize, token: Digest| {
            let entry = desk.enter(Digest::of(&number.to_string()), token, Instant::now());
            let Entry::First(turn) = entry else { panic!() };
            turn.count_guess();
        };
        register(right(), token());
        for number in 0..100 {
            guess(number, other());
        }
        for number in 0..GUESSES {
            assert!(matches!(desk.enter(right(), token(), Instant::now()), Entry::Done), "{number}");
            guess(number, token());
        }
        assert!(matches!(desk.enter(right(), token(), Instant::now()), Entry::First(_)));
        assert!(desk.lock().done.is_empty());
    }

    #[test]
    fn a_guess_for_which_there_is_no_place_is_not_told_whether_it_is_right() {
        let desk = Desk::new(1);
        let Entry::First(turn) = desk.enter(Digest::of("right"), Digest::of("token"), Instant::now()) else { panic!() };
        turn.done();
        let Entry::First(_slow) = desk.enter(Digest::of("slow"), Digest::of("x"), Instant::now()) else { panic!() };
        for guess in ["right", "wrong"] {
            assert!(matches!(desk.enter(Digest::of(guess), Digest::of("token"), Instant::now()), Entry::Busy));
        }
    }

    #[test]
    fn memory_is_bounded() {
        let desk = Desk::new(1);
        for number in 0..(REMEMBERED * 2) {
            let entry = desk.enter(Digest::of(&number.to_string()), Digest::of(""), Instant::now());
            let Entry::First(turn) = entry else { panic!() };
            turn.done();
        }
        assert_eq!(desk.lock().done.len(), REMEMBERED);
    }
}
