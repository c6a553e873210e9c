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
