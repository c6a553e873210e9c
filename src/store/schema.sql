-- Version 1. Read by us, and by the SQLite inside Prosody and ejabberd, which may be as old as 3.34: no STRICT tables, no
-- generated columns, and in triggers only functions that 3.34 has. Names of ours start with invited_.
-- Times are Unix seconds, UTC.

-- The version of this schema, so that an older program refuses a newer file. (PRAGMA user_version belongs to the whole
-- file, hence also to the XMPP server.)
CREATE TABLE invited_meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- The keys of the HTTP API.
CREATE TABLE invited_key (
    number       INTEGER PRIMARY KEY,   -- counts up: the order in which `list` shows them
    id           TEXT NOT NULL UNIQUE,  -- the public half of ID/SECRET
    host         TEXT NOT NULL,         -- the one XMPP host for which it makes invites
    digest       BLOB NOT NULL,         -- SHA-256 of SECRET; the secret itself is nowhere
    name         TEXT,                  -- what the admin calls it; may be missing
    created_at   INTEGER NOT NULL,
    uses         INTEGER NOT NULL DEFAULT 0,
    last_used_at INTEGER                -- missing until its first use
);

-- Each invite that there ever was. Outlives the XMPP server's own row, which goes when the invite is used.
CREATE TABLE invited_invite (
    token      TEXT PRIMARY KEY,
    host       TEXT NOT NULL,
    kind       TEXT NOT NULL,                    -- account
    source     TEXT NOT NULL,                    -- who made it: api/token/KEYID
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,                 -- still good at this very second
    state      TEXT NOT NULL DEFAULT 'pending',  -- pending, or used
    ended_at   INTEGER                           -- when it was used
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

-- Prosody deletes an invite's row when it was used, and this runs inside that very transaction of Prosody's.
CREATE TRIGGER invited_prosody_deleted AFTER DELETE ON "prosody"
WHEN OLD."store" = 'invite_token' AND OLD."user" = ''
BEGIN
    UPDATE invited_invite
       SET state = 'used', ended_at = CAST(strftime('%s', 'now') AS INTEGER)
     WHERE token = OLD."key" AND host = OLD."host" AND state = 'pending';
END;
