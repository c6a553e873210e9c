//! The invites that are made to be looked at: good for two minutes at most, and gone without a trace when this is dropped.

use crate::create::{HostSettings, Prepared};
use crate::error::Result;
use crate::host::Host;
use crate::invite::Wish;
use crate::log;
use crate::random;
use crate::store::{SOURCE, Store};

/// How long such an invite is good for, in seconds, should nobody take it back.
const TTL_SECS: i64 = 120;

/// An invite, and a token that nobody has made.
pub struct Trial {
    store: Store,
    host: Host,
    /// The token of the invite.
    pub token: String,
    /// Its `xmpp:` URI.
    pub uri: String,
    /// The address of its page, which may be elsewhere.
    pub url: String,
    /// A token like ours that is not one.
    pub made_up: String,
    /// The tokens of all that is to be taken back.
    made: Vec<String>,
}

impl Trial {
    /// Makes an invite for an account.
    pub fn start(store: &Store, host: &Host, now: i64) -> Result<Trial> {
        let mut store = store.another()?;
        let made_up = random::base64url::<12>()?;
        let Prepared { invite, uri, url, .. } = write(&mut store, host, TTL_SECS, now)?;
        let made = vec![invite.token.clone()];
        Ok(Trial { store, host: host.clone(), token: invite.token, uri, url, made_up, made })
    }

    /// Makes another one, that is good for so many seconds from `now`, and gives its token.
    pub fn another(&mut self, ttl_secs: i64, now: i64) -> Result<String> {
        let token = write(&mut self.store, &self.host, ttl_secs, now)?.invite.token;
        self.made.push(token.clone());
        Ok(token)
    }

    /// Revokes one of them, which [`Trial::end`] then removes.
    pub fn revoke(&mut self, token: &str) -> Result<()> {
        let (host, now) = (&self.host, log::now());
        self.store.write(|tx| tx.revoke(host, token, None, now)).map(|_| ())
    }

    /// The version of the lines in Prosody's configuration, which they write down when the first of these invites is shown.
    pub fn lines_version(&self) -> Result<Option<i64>> {
        self.store.prosody_lines(&self.host, &self.token)
    }

    /// Takes all of it back.
    pub fn end(mut self) -> Result<()> {
        self.erase()
    }

    fn erase(&mut self) -> Result<()> {
        let (host, now, made) = (&self.host, log::now(), std::mem::take(&mut self.made));
        if made.is_empty() {
            return Ok(());
        }
        self.store.write(|tx| made.iter().try_for_each(|token| tx.erase(host, token, now)))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // Where this fails, housekeeping sees to it once the invite has expired.
        let _ = self.erase();
    }
}

fn write(store: &mut Store, host: &Host, ttl_secs: i64, now: i64) -> Result<Prepared> {
    let settings = HostSettings::read(store, host)?;
    let wish = Wish { ttl_secs: Some(ttl_secs), note: Some("made by `invited doctor`".to_owned()), ..Wish::account() };
    let prepared = Prepared::new(store, &settings, host, wish, SOURCE, now)?;
    store.write(|tx| {
        tx.erase_left_behind(now)?;
        tx.add_invite(&prepared.invite, &prepared.rows)
    })?;
    Ok(prepared)
}
