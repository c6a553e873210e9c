//! The rows of `invited_invite` and its neighbours: every invite, whoever made it.
//!
//! An invite that was made inside Prosody lies there as Prosody's JSON at first (kind `unread`); whoever reads it here sees
//! it read, and [`Tx::keep_read`] writes it down so.

use rusqlite::{OptionalExtension as _, Row, params};

use super::{Store, Tx, ejabberd, prosody};
use crate::error::Result;
use crate::host::Host;
use crate::invite::{Invite, Kind, tokens_in};
use crate::user::Username;
use crate::views::Seen;

/// The most invites that are looked at for one page, however few of them are shown: a request must not read for long.
const SCAN: usize = 1_000;

/// The most uses of an invite that are shown.
const USES_SHOWN: usize = 1_000;

/// What has become of an invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It can be used.
    Pending,
    /// It was used as often as it could be.
    Used,
    /// It was taken back.
    Revoked,
    /// Its time is over.
    Expired,
}

impl State {
    /// All of them.
    const ALL: [State; 4] = [State::Pending, State::Used, State::Revoked, State::Expired];

    /// The word that is stored and shown.
    pub fn word(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Used => "used",
            State::Revoked => "revoked",
            State::Expired => "expired",
        }
    }
}

/// An invite as it is stored.
#[derive(Clone, Debug)]
pub struct InviteRow {
    /// Counts up: the order in which invites were made.
    pub number: i64,
    /// The token.
    pub token: String,
    /// The host that it invites to.
    pub host: String,
    /// What it is for.
    pub kind: Kind,
    /// The fixed name of the new account, or whose contact, or whose password.
    pub username: Option<String>,
    /// Roles of the new account.
    pub roles: Vec<String>,
    /// Groups of the new account.
    pub groups: Vec<String>,
    /// The maker's own words.
    pub note: Option<String>,
    /// Who made it: `api/token/KEYID`, `cli`, or what the XMPP server says.
    pub source: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds; still good at this very second.
    pub expires_at: i64,
    /// Registrations that it is for.
    pub uses: u32,
    /// Registrations that are left.
    pub uses_left: u32,
    /// When it stopped being pending, in Unix seconds.
    pub ended_at: Option<i64>,
    /// How often its page was opened.
    pub opened: u32,
    /// The app that a guest chose last.
    pub app: Option<String>,
    stored_state: State,
    /// Whether it lies there as Prosody's JSON.
    unread: bool,
    /// Whether it could be read from that.
    is_readable: bool,
}

impl InviteRow {
    /// An invite of Prosody's that is not in our file, from its JSON; none if that can't be read.
    pub(super) fn of_prosody(host: &Host, token: &str, raw: &str, now: i64) -> Option<InviteRow> {
        let mut invite = InviteRow {
            number: 0,
            token: token.to_owned(),
            host: host.name().to_owned(),
            kind: Kind::Account,
            username: None,
            roles: Vec::new(),
            groups: Vec::new(),
            note: None,
            source: "server".to_owned(),
            created_at: now,
            expires_at: 0,
            uses: 1,
            uses_left: 1,
            ended_at: None,
            opened: 0,
            app: None,
            stored_state: State::Pending,
            unread: true,
            is_readable: true,
        };
        prosody::read(raw, &mut invite).then_some(invite)
    }

    /// The name that is the only one for it: of the new account, or of the user whose password it sets.
    pub fn fixed_name(&self) -> Option<&str> {
        self.username.as_deref().filter(|_| matches!(self.kind, Kind::Account | Kind::Reset))
    }

    /// What has become of it by `now`: one that nobody has pruned yet is expired all the same.
    pub fn state(&self, now: i64) -> State {
        match self.stored_state {
            State::Pending if self.expires_at < now => State::Expired,
            state => state,
        }
    }
}

/// One use of an invite.
#[derive(Clone, Debug)]
pub struct Use {
    /// Unix seconds.
    pub used_at: i64,
    /// By whom, where the server tells.
    pub username: Option<String>,
}

/// Some invites of a list.
pub struct InvitePage {
    /// The invites, oldest first.
    pub invites: Vec<InviteRow>,
    /// Where the next page begins: after the invite of this number and token. None: this is the last one.
    pub next: Option<(i64, String)>,
}

/// Whose invites are looked at.
#[derive(Clone, Copy)]
pub enum Of<'a> {
    /// All of a host.
    Host(&'a Host),
    /// Those of one maker.
    Source(&'a str),
}

/// How an attempt to take an invite back ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Revoked {
    /// It is of no use any more.
    Done,
    /// There is none with this token, or it is somebody else's.
    Unknown,
    /// It was of no use already.
    Ended(State),
}

const COLUMNS: &str = "number, token, host, kind, username, roles, groups, note, source, created_at, expires_at, uses, \
                       uses_left, state, ended_at, raw, opened, app";

/// Names as they are stored: a line each, none where there are none.
fn to_lines(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| names.join("\n"))
}

fn from_lines(text: Option<String>) -> Vec<String> {
    text.map(|text| text.split('\n').map(str::to_owned).collect()).unwrap_or_default()
}

fn read(row: &Row) -> rusqlite::Result<InviteRow> {
    let kind: String = row.get(3)?;
    let state: String = row.get(13)?;
    let stored_state = State::ALL.into_iter().find(|found| found.word() == state);
    let mut invite = InviteRow {
        number: row.get(0)?,
        token: row.get(1)?,
        host: row.get(2)?,
        kind: Kind::from_word(&kind).unwrap_or(Kind::Account),
        username: row.get(4)?,
        roles: from_lines(row.get(5)?),
        groups: from_lines(row.get(6)?),
        note: row.get(7)?,
        source: row.get(8)?,
        created_at: row.get(9)?,
        expires_at: row.get(10)?,
        uses: row.get(11)?,
        uses_left: row.get(12)?,
        ended_at: row.get(14)?,
        opened: row.get(16)?,
        app: row.get(17)?,
        stored_state: stored_state.unwrap_or(State::Pending),
        unread: kind == "unread",
        is_readable: true,
    };
    if invite.unread {
        let raw: Option<String> = row.get(15)?;
        invite.is_readable = prosody::read(raw.as_deref().unwrap_or_default(), &mut invite);
    }
    Ok(invite)
}

impl Store {
    /// The invite with exactly this token.
    pub fn invite(&self, token: &str) -> Result<Option<InviteRow>> {
        let sql = format!("SELECT {COLUMNS} FROM invited_invite WHERE token = ?1");
        Ok(self.conn.prepare_cached(&sql)?.query_row([token], read).optional()?)
    }

    /// The invite that a link, a URI or a bare token leads to, whatever became of it on its way. Where what finds links in texts
    /// has left out the marks at the end of a token, it is the one pending invite whose token goes on so.
    pub fn invite_of_link(&self, text: &str) -> Result<Option<InviteRow>> {
        let tokens = tokens_in(text);
        for token in std::iter::once(text).chain(tokens.iter().map(String::as_str)) {
            if let Some(invite) = self.invite(token)? {
                return Ok(Some(invite));
            }
        }
        for token in &tokens {
            if let Some(invite) = self.invite_cut_short(token)? {
                return Ok(Some(invite));
            }
        }
        Ok(None)
    }

    fn invite_cut_short(&self, token: &str) -> Result<Option<InviteRow>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM invited_invite WHERE state = 'pending'
                AND token IN (?1 || '-', ?1 || '_', ?1 || '--', ?1 || '-_', ?1 || '_-', ?1 || '__') LIMIT 2"
        );
        let mut query = self.conn.prepare_cached(&sql)?;
        let mut found: Vec<InviteRow> = query.query_map([token], read)?.collect::<rusqlite::Result<_>>()?;
        Ok(found.pop().filter(|_| found.is_empty()))
    }

    /// Invites that were made after the one of this number (0: from the first one), oldest first: `limit` of them, or those
    /// among the next [`SCAN`] candidates. `all` includes those that are no longer pending by `now`.
    pub fn invites(&self, of: Of, all: bool, after: i64, limit: usize, now: i64) -> Result<InvitePage> {
        let select = |condition: &str| format!("SELECT {COLUMNS} FROM invited_invite WHERE number > ?1{condition}");
        let of_state = |state: &State| select(&format!(" AND source = ?2 AND state = '{}'", state.word()));
        let sql = match of {
            Of::Host(_) => select(""),
            Of::Source(_) if !all => of_state(&State::Pending),
            // Those of each state come in order from the index, and SQLite merges them.
            Of::Source(_) => State::ALL.each_ref().map(of_state).join(" UNION ALL "),
        };
        let mut query = self.conn.prepare_cached(&format!("{sql} ORDER BY number"))?;
        let mut rows = match of {
            Of::Host(_) => query.query([after])?,
            Of::Source(source) => query.query(params![after, source])?,
        };
        let mut page = InvitePage { invites: Vec::new(), next: None };
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            let number: i64 = row.get(0)?;
            seen += 1;
            let is_wanted = match of {
                Of::Host(host) => row.get_ref(2)?.as_str().is_ok_and(|its_host| its_host == host.name()),
                Of::Source(_) => true,
            };
            // Of those that have ended no more is read.
            let is_pending = row.get_ref(13)?.as_str().is_ok_and(|state| state == State::Pending.word());
            if is_wanted && (all || is_pending) {
                let invite = read(row)?;
                if all || invite.unread || invite.state(now) == State::Pending {
                    page.invites.push(invite);
                }
            }
            if page.invites.len() == limit || seen == SCAN {
                page.next = Some((number, row.get(1)?));
                break;
            }
        }
        Ok(page)
    }

    /// The latest uses of an invite, [`USES_SHOWN`] at most, oldest first.
    pub fn uses(&self, token: &str) -> Result<Vec<Use>> {
        let mut query = self.conn.prepare_cached(
            "SELECT used_at, username FROM invited_use WHERE token = ?1 ORDER BY number DESC LIMIT ?2",
        )?;
        let rows = query.query_map(params![token, USES_SHOWN as i64], |row| {
            // ejabberd writes the name as the client sent it, and keeps the account under the prepared one.
            let username: Option<String> = row.get(1)?;
            let username = username.map(|name| Username::parse(&name).map_or(name, |name| name.as_str().to_owned()));
            Ok(Use { used_at: row.get(0)?, username })
        })?;
        let mut uses = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        uses.reverse();
        Ok(uses)
    }

    /// At most `limit` invites that lie there as Prosody's JSON.
    pub(super) fn unread(&self, limit: usize) -> Result<Vec<InviteRow>> {
        let sql = format!("SELECT {COLUMNS} FROM invited_invite WHERE kind = 'unread' ORDER BY number LIMIT ?1");
        let mut query = self.conn.prepare_cached(&sql)?;
        let rows = query.query_map([limit as i64], read)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

impl Tx<'_> {
    /// Adds an invite to our history and to what the XMPP server reads.
    ///
    /// `rows` are the server's, from [`super::ServerRows::new`]: rendered before, so that the lock is short.
    pub fn add_invite(&self, invite: &Invite, rows: &super::ServerRows) -> Result<()> {
        let mut insert = self.conn.prepare_cached(
            "INSERT INTO invited_invite
               (token, host, kind, username, roles, groups, note, source, created_at, expires_at, uses, uses_left)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11)",
        )?;
        let wish = &invite.wish;
        insert.execute(params![
            invite.token,
            invite.host.name(),
            wish.kind.word(),
            wish.username(),
            to_lines(&wish.roles),
            to_lines(&wish.groups),
            wish.note,
            invite.source,
            invite.created_at,
            invite.expires_at,
            wish.uses,
        ])?;
        rows.insert(self.conn, invite)
    }

    /// Takes an invite of this host back, in our history and in what the server reads. With a source, only one of its own.
    pub fn revoke(&self, host: &Host, token: &str, source: Option<&str>, now: i64) -> Result<Revoked> {
        let sql = format!("SELECT {COLUMNS} FROM invited_invite WHERE token = ?1 AND host = ?2");
        let found = self.conn.prepare_cached(&sql)?.query_row([token, host.name()], read).optional()?;
        let Some(invite) = found.filter(|invite| source.is_none_or(|source| invite.source == source)) else {
            return Ok(Revoked::Unknown);
        };
        match invite.state(now) {
            State::Pending => {}
            state => return Ok(Revoked::Ended(state)),
        }
        if invite.unread {
            // Only then is it known whose row goes with it.
            self.keep_read(&invite)?;
        }
        self.end(&invite.token, State::Revoked, now)?;
        Ok(Revoked::Done)
    }

    /// Marks a pending invite as ended, unless it should expire and is valid still, and takes it from the server. The mark comes first: the triggers on the server's
    /// tables take a row that goes while its invite is pending for a use.
    pub(super) fn end(&self, token: &str, state: State, now: i64) -> Result<()> {
        let mut update = self.conn.prepare_cached(
            "UPDATE invited_invite SET state = ?2, ended_at = ?3 WHERE token = ?1 AND state = 'pending' AND (?2 <> 'expired' OR expires_at < ?3)
             RETURNING host, username",
        )?;
        let ended = update.query_row(params![token, state.word(), now], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?))
        });
        if let Some((host, username)) = ended.optional()? {
            prosody::delete(self.conn, &host, username.as_deref(), token)?;
            ejabberd::delete(self.conn, token)?;
        }
        Ok(())
    }

    /// Adds what was seen of an invite's page to its counts.
    pub fn count_views(&self, token: &str, seen: &Seen) -> Result<()> {
        let mut update = self.conn.prepare_cached(
            "UPDATE invited_invite SET opened = opened + ?2, app = coalesce(?3, app) WHERE token = ?1",
        )?;
        update.execute(params![token, seen.opened, seen.app])?;
        Ok(())
    }

    /// Removes an ended invite from our history.
    pub(super) fn forget(&self, number: i64, token: &str) -> Result<()> {
        self.conn.prepare_cached("DELETE FROM invited_use WHERE token = ?1")?.execute([token])?;
        self.conn.prepare_cached("DELETE FROM invited_invite WHERE number = ?1")?.execute([number])?;
        // ejabberd keeps the rows of used invites for ever.
        ejabberd::delete(self.conn, token)
    }

    /// Reads some of the invites that lie there as Prosody's JSON; housekeeping reads the rest.
    pub(super) fn read_some(&self) -> Result<()> {
        let sql = format!("SELECT {COLUMNS} FROM invited_invite WHERE kind = 'unread' ORDER BY number LIMIT 32");
        let mut query = self.conn.prepare_cached(&sql)?;
        let invites: Vec<InviteRow> = query.query_map([], read)?.collect::<rusqlite::Result<_>>()?;
        invites.iter().try_for_each(|invite| self.keep_read(invite))
    }

    /// Writes an invite that lay there as Prosody's JSON down in columns. One that can't be read is left alone, there and here:
    /// its kind is `unreadable` from then on.
    pub(super) fn keep_read(&self, invite: &InviteRow) -> Result<()> {
        if !invite.is_readable {
            let sql = "UPDATE invited_invite SET kind = 'unreadable' WHERE number = ?1 AND kind = 'unread'";
            self.conn.prepare_cached(sql)?.execute([invite.number])?;
            return Ok(());
        }
        let mut update = self.conn.prepare_cached(
            "UPDATE invited_invite SET kind = ?2, username = ?3, roles = ?4, groups = ?5, note = ?6, source = ?7,
                    created_at = ?8, expires_at = ?9, raw = NULL, uses = ?10,
                    uses_left = CASE WHEN state = 'pending' THEN ?11 ELSE uses_left END
              WHERE number = ?1 AND kind = 'unread'",
        )?;
        update.execute(params![
            invite.number,
            invite.kind.word(),
            invite.username,
            to_lines(&invite.roles),
            to_lines(&invite.groups),
            invite.note,
            invite.source,
            invite.created_at,
            invite.expires_at,
            invite.uses,
            invite.uses_left,
        ])?;
        Ok(())
    }
}
