-- Version 1. Read by us, and by the SQLite inside Prosody and ejabberd, which may be as old as 3.34: no STRICT tables, no
-- generated columns, and in triggers only functions that 3.34 has. Names of ours start with invited_.
-- Times are Unix seconds, UTC.

-- The version of this schema, so that an older program refuses a newer file. (PRAGMA user_version belongs to the whole
-- file, hence also to the XMPP server.)
CREATE TABLE invited_meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- The keys of the HTTP API. When and how often a key was used is not here: invited_invite tells.
CREATE TABLE invited_key (
    number     INTEGER PRIMARY KEY,   -- counts up: the order in which `list` shows them
    id         TEXT NOT NULL UNIQUE,  -- the public half of ID/SECRET
    host       TEXT NOT NULL,         -- the one XMPP host for which it makes invites
    digest     BLOB NOT NULL,         -- SHA-256 of SECRET; the secret itself is nowhere
    name       TEXT,                  -- what the admin calls it; may be missing
    created_at INTEGER NOT NULL,
    expires_at INTEGER,               -- still good at this very second; missing: for ever
    allow      TEXT NOT NULL,         -- what it may make: words separated by commas, such as account,role:NAME
    per_day    INTEGER                -- invites in any 24 hours; missing: no limit
);

-- Each invite that there ever was, ours and those made inside the XMPP server. Outlives the server's own row, which goes
-- when the invite is used.
CREATE TABLE invited_invite (
    number     INTEGER PRIMARY KEY,  -- counts up
    token      TEXT NOT NULL UNIQUE,
    host       TEXT NOT NULL,
    kind       TEXT NOT NULL,        -- account, contact, account-and-contact, reset; unread: see raw
    username   TEXT,                 -- the fixed name of the new account, or whose contact, or whose password
    roles      TEXT,                 -- for the new account, separated by line feeds (a role can't hold one)
    groups     TEXT,                 -- likewise
    note       TEXT,                 -- the admin's own words
    source     TEXT NOT NULL,        -- who made it: api/token/KEYID, cli, or what the XMPP server says
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,     -- still good at this very second
    uses       INTEGER NOT NULL DEFAULT 1,         -- registrations that it is for
    uses_left  INTEGER NOT NULL DEFAULT 1,
    state      TEXT NOT NULL DEFAULT 'pending',    -- pending, used, revoked, expired
    ended_at   INTEGER,              -- when it stopped being pending
    raw        TEXT                  -- Prosody's JSON of an invite made there, until we have read it: kind is `unread`
);
-- For what a key made: its list, its limit, its last use.
CREATE INDEX invited_invite_source ON invited_invite (source);
CREATE INDEX invited_invite_unread ON invited_invite (number) WHERE kind = 'unread';

-- Each use of an invite, and by whom where the server tells.
CREATE TABLE invited_use (
    number   INTEGER PRIMARY KEY,
    token    TEXT NOT NULL,
    used_at  INTEGER NOT NULL,
    username TEXT
);
CREATE INDEX invited_use_token ON invited_use (token);

-- Answers to requests that may come again: Idempotency-Key of the HTTP API. Kept for a day.
CREATE TABLE invited_request (
    source     TEXT NOT NULL,   -- api/token/KEYID
    name       TEXT NOT NULL,   -- the Idempotency-Key
    digest     BLOB NOT NULL,   -- SHA-256 of the request, to tell a repetition from a mistake
    token      TEXT NOT NULL,   -- the invite that was made
    created_at INTEGER NOT NULL,
    PRIMARY KEY (source, name)
) WITHOUT ROWID;

-- Settings of a host, so that the command line, the server and a backup all see the same.
CREATE TABLE invited_setting (
    host  TEXT NOT NULL,
    name  TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (host, name)
) WITHOUT ROWID;

-- Prosody's own table, as its mod_storage_sql makes it; whoever comes first makes it. Prosody 13 wants the unique index
-- under this name for its upserts; 0.12 adds an index of its own and does not mind this one.
CREATE TABLE IF NOT EXISTS "prosody" (
    "host"  TEXT NOT NULL,
    "user"  TEXT NOT NULL,
    "store" TEXT NOT NULL,
    "key"   TEXT NOT NULL,
    "type"  TEXT NOT NULL,
    "value" TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS "prosody_unique_index" ON "prosody" ("host", "user", "store", "key");

-- An invite that is not ours was made inside Prosody (XEP-0401, or its shell). Its JSON is read later, by us: the SQLite in
-- Prosody may have no JSON functions. A contact invite that makes no account has no JSON, only the row of its user; Prosody
-- 0.12 stumbles over it when it is used unless the host has a row too, so it gets one, with which nobody can register.
CREATE TRIGGER invited_prosody_inserted AFTER INSERT ON "prosody"
WHEN NEW."store" = 'invite_token' AND NEW."key" <> ''
 AND NOT EXISTS (SELECT 1 FROM invited_invite WHERE token = NEW."key")
BEGIN
    INSERT INTO invited_invite (token, host, kind, username, source, created_at, expires_at, raw)
    VALUES (NEW."key", NEW."host",
            CASE NEW."user" WHEN '' THEN 'unread' ELSE 'contact' END,
            nullif(NEW."user", ''),
            CASE NEW."user" WHEN '' THEN 'server' ELSE NEW."user" || '@' || NEW."host" END,
            CAST(strftime('%s', 'now') AS INTEGER),
            CASE NEW."user" WHEN '' THEN 0 ELSE CAST(NEW."value" AS INTEGER) END,
            CASE NEW."user" WHEN '' THEN NEW."value" END);
    INSERT INTO "prosody" ("host", "user", "store", "key", "type", "value")
    SELECT NEW."host", '', NEW."store", NEW."key", 'json', '{"type":"roster","allow_registration":false,"expires":0}'
     WHERE NEW."user" <> '';
END;

-- Prosody deletes an invite's rows when it was used, and this runs inside that very transaction of Prosody's. The row that
-- counts is the user's for a contact invite that makes no account, and the host's (user '') for all others. While uses are
-- left, what was deleted comes back.
CREATE TRIGGER invited_prosody_deleted AFTER DELETE ON "prosody"
WHEN OLD."store" = 'invite_token' AND OLD."key" <> ''
BEGIN
    INSERT INTO "prosody" ("host", "user", "store", "key", "type", "value")
    SELECT OLD."host", OLD."user", OLD."store", OLD."key", OLD."type", OLD."value"
      FROM invited_invite
     WHERE token = OLD."key" AND host = OLD."host" AND state = 'pending'
       -- The other row of a contact invite goes after the one that counts, hence when its use has been counted already.
       AND uses_left > CASE WHEN kind = 'contact' AND OLD."user" = '' THEN 0 ELSE 1 END;
    INSERT INTO invited_use (token, used_at)
    SELECT token, CAST(strftime('%s', 'now') AS INTEGER)
      FROM invited_invite
     WHERE token = OLD."key" AND host = OLD."host" AND state = 'pending' AND (kind = 'contact') = (OLD."user" <> '');
    UPDATE invited_invite
       SET uses_left = uses_left - 1,
           state = CASE WHEN uses_left > 1 THEN 'pending' ELSE 'used' END,
           ended_at = CASE WHEN uses_left > 1 THEN NULL ELSE CAST(strftime('%s', 'now') AS INTEGER) END
     WHERE token = OLD."key" AND host = OLD."host" AND state = 'pending' AND (kind = 'contact') = (OLD."user" <> '');
END;

-- Invites that were there before us.
INSERT INTO invited_invite (token, host, kind, source, created_at, expires_at, raw)
SELECT "key", "host", 'unread', 'server', CAST(strftime('%s', 'now') AS INTEGER), 0, "value"
  FROM "prosody" WHERE "store" = 'invite_token' AND "key" <> '' AND "user" = '';
INSERT OR IGNORE INTO invited_invite (token, host, kind, username, source, created_at, expires_at)
SELECT "key", "host", 'contact', "user", "user" || '@' || "host", CAST(strftime('%s', 'now') AS INTEGER), CAST("value" AS INTEGER)
  FROM "prosody" WHERE "store" = 'invite_token' AND "key" <> '' AND "user" <> '';
INSERT INTO "prosody" ("host", "user", "store", "key", "type", "value")
SELECT host, '', 'invite_token', token, 'json', '{"type":"roster","allow_registration":false,"expires":0}'
  FROM invited_invite WHERE kind = 'contact';
