-- Version 5. No work grows with the data while the write lock is held, and no request reads more than it shows.

-- The number of an invite among those of its key, from 1, where the key has a limit per day: the invite that is as many back
-- as the limit allows is found by it, however many that are.
ALTER TABLE invited_invite ADD COLUMN nth INTEGER;
CREATE INDEX invited_invite_nth ON invited_invite (source, nth) WHERE nth IS NOT NULL;

UPDATE invited_invite SET nth = counted.nth
  FROM (SELECT i.number, row_number() OVER (PARTITION BY i.source ORDER BY i.number) AS nth
          FROM invited_key AS k JOIN invited_invite AS i ON i.source = 'api/token/' || k.id
         WHERE k.per_day IS NOT NULL) AS counted
 WHERE counted.number = invited_invite.number;

-- In place of the index on the source alone: the pending ones of a key, without the others.
DROP INDEX invited_invite_source;
CREATE INDEX invited_invite_source ON invited_invite (source, state);
-- For what is over: what has expired, what ended long ago, answers that can't come again.
CREATE INDEX invited_invite_expires ON invited_invite (expires_at) WHERE state = 'pending';
CREATE INDEX invited_invite_ended ON invited_invite (ended_at) WHERE state <> 'pending';
CREATE INDEX invited_request_created ON invited_request (created_at);
-- With the expiry, so that invites for a name that have expired are not looked at.
DROP INDEX invited_invite_name;
CREATE INDEX invited_invite_name ON invited_invite (host, username, expires_at)
    WHERE kind = 'account' AND state = 'pending' AND username IS NOT NULL;
-- For the use whose name is not known yet: each registration looks for it, however often its invite has been used.
CREATE INDEX invited_use_unnamed ON invited_use (token) WHERE username IS NULL;

-- The lines of `invited setup prosody` tell who used an invite: Prosody writes a row of the store invited_use, with the
-- new user as user and the token as key, after it has deleted the rows of the invite. This takes the name over and deletes the row.
CREATE TRIGGER invited_prosody_told AFTER INSERT ON "prosody"
WHEN NEW."store" = 'invited_use' AND NEW."user" <> '' AND NEW."key" <> ''
BEGIN
    -- Prosody may have failed to delete the rows, since it does not wait long for a lock. The account exists, so the invite is
    -- used: the trigger on these deletions counts that, in Prosody's own order. Only an invite that Prosody calls reusable keeps
    -- its rows.
    DELETE FROM "prosody"
     WHERE "host" = NEW."host" AND "user" = (SELECT nullif(username, '') FROM invited_invite WHERE token = NEW."key")
       AND "store" = 'invite_token' AND "key" = NEW."key"
       AND NOT EXISTS (SELECT 1 FROM invited_use WHERE token = NEW."key" AND username IS NULL)
       AND EXISTS (SELECT 1 FROM "prosody" AS h
                    WHERE h."host" = NEW."host" AND h."user" = '' AND h."store" = 'invite_token' AND h."key" = NEW."key"
                      AND instr(h."value", '"reusable":true') = 0);
    DELETE FROM "prosody"
     WHERE "host" = NEW."host" AND "user" = '' AND "store" = 'invite_token' AND "key" = NEW."key"
       AND NOT EXISTS (SELECT 1 FROM invited_use WHERE token = NEW."key" AND username IS NULL)
       AND instr("value", '"reusable":true') = 0;
    INSERT INTO invited_use (token, used_at)
    SELECT token, CAST(strftime('%s', 'now') AS INTEGER)
      FROM invited_invite
     WHERE token = NEW."key" AND host = NEW."host"
       AND NOT EXISTS (SELECT 1 FROM invited_use WHERE token = NEW."key" AND username IS NULL);
    UPDATE invited_use SET username = NEW."user"
     WHERE number = (SELECT max(number) FROM invited_use WHERE token = NEW."key" AND username IS NULL)
       AND EXISTS (SELECT 1 FROM invited_invite WHERE token = NEW."key" AND host = NEW."host");
    DELETE FROM "prosody"
     WHERE "host" = NEW."host" AND "user" = NEW."user" AND "store" = NEW."store" AND "key" = NEW."key";
END;
