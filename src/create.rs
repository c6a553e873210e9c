//! From a wish to an invite that is ready to be written: the same way for the shell and for HTTP.
//!
//! Reads the host's settings, draws the token, renders what the XMPP server reads. Writes nothing.

use crate::duration;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::invite::{self, Invite, Landing, Server, Wish};
use crate::random;
use crate::store::{InviteRow, ServerRows, Store};

/// The settings of a host that new invites depend on.
pub struct HostSettings {
    /// Which XMPP server reads the file.
    pub server: Server,
    url: Option<String>,
    page: Option<String>,
    ttl_secs: Option<i64>,
}

impl HostSettings {
    /// Reads them as they are now.
    pub fn read(store: &Store, host: &Host) -> Result<HostSettings> {
        Ok(HostSettings::of(&store.settings(host)?))
    }

    /// Takes them from all settings of the host.
    pub fn of(values: &[(String, String)]) -> HostSettings {
        let mut settings = HostSettings { server: Server::Prosody, url: None, page: None, ttl_secs: None };
        for (name, value) in values {
            match name.as_str() {
                "server" => settings.server = Server::from_setting(Some(value)),
                "url" => settings.url = Some(value.clone()),
                "page" => settings.page = Some(value.clone()),
                "ttl" => settings.ttl_secs = duration::parse(value).ok(),
                _ => {}
            }
        }
        settings
    }

    /// Where the page of an invite is.
    pub fn landing_page(&self, host: &Host, uri: &str, token: &str) -> String {
        Landing { url: self.url.as_deref(), page: self.page.as_deref() }.page(host, uri, token)
    }
}

/// An invite that needs only be written.
pub struct Prepared {
    /// The invite.
    pub invite: Invite,
    /// What the XMPP server reads of it.
    pub rows: ServerRows,
    /// Its `xmpp:` URI.
    pub uri: String,
    /// The address of its page.
    pub url: String,
}

impl Prepared {
    /// Prepares an invite from a wish that [`Wish::check`] has found reasonable.
    pub fn new(
        store: &Store,
        settings: &HostSettings,
        host: &Host,
        wish: Wish,
        source: &str,
        now: i64,
    ) -> Result<Prepared> {
        let ttl_secs = wish.ttl_secs.unwrap_or_else(|| wish.kind.ttl_secs(settings.ttl_secs));
        let invite = Invite {
            token: random::base64url::<12>()?,
            host: host.clone(),
            wish,
            source: source.to_owned(),
            created_at: now,
            expires_at: now + ttl_secs,
        };
        let username = invite.wish.username();
        let uri = invite::uri(host, invite.wish.kind, username, &invite.token);
        let url = settings.landing_page(host, &uri, &invite.token);
        let rows = ServerRows::new(store, settings.server, &invite, &uri, &url)?;
        Ok(Prepared { invite, rows, uri, url })
    }
}

/// The `xmpp:` URI and the page of an invite that is in the store.
pub fn addresses(settings: &HostSettings, invite: &InviteRow) -> Result<(String, String)> {
    let host = Host::parse(&invite.host).map_err(|error| Error::internal(error.to_string()))?;
    let uri = invite::uri(&host, invite.kind, invite.username.as_deref(), &invite.token);
    let url = settings.landing_page(&host, &uri, &invite.token);
    Ok((uri, url))
}
