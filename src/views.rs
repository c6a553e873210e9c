//! Counts how often guests open an invite's page and which app they choose, without an address or a time.
//!
//! A page view never waits for a writer: counts gather here and go into the file every few seconds. Those of the last
//! seconds are lost if the process is killed, which is no harm.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The most invites whose counts are gathered at a time.
const INVITES: usize = 10_000;

/// What was seen of one invite since the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How often its page was opened.
    pub opened: u32,
    /// The app that was chosen last.
    pub app: Option<String>,
}

/// The counts that are not in the file yet, by token.
#[derive(Default)]
pub struct Views(Mutex<HashMap<String, Seen>>);

impl Views {
    /// A guest opened the page of this invite.
    pub fn opened(&self, token: &str) {
        self.note(token, |seen| seen.opened = seen.opened.saturating_add(1));
    }

    /// A guest chose an app.
    pub fn chose(&self, token: &str, app: &str) {
        self.note(token, |seen| seen.app = Some(app.to_owned()));
    }

    /// What was gathered, to be written.
    pub fn take(&self) -> HashMap<String, Seen> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, token: &str, change: impl FnOnce(&mut Seen)) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < INVITES || seen.contains_key(token) {
            change(seen.entry(token.to_owned()).or_default());
        }
    }
}
