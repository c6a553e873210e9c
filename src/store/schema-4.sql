-- Version 4. How many invites of each host there ever were, kept by triggers inside whatever transaction makes or ends one:
-- to count them anew takes long where there are many, and forgets those that we forget.
CREATE TABLE invited_tally (
    host    TEXT PRIMARY KEY,
    made    INTEGER NOT NULL DEFAULT 0,
    used    INTEGER NOT NULL DEFAULT 0,
    expired INTEGER NOT NULL DEFAULT 0,
    revoked INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

INSERT INTO invited_tally (host, made, used, expired, revoked)
SELECT host, count(*), sum(state = 'used'), sum(state = 'expired'), sum(state = 'revoked') FROM invited_invite GROUP BY host;

-- No OR IGNORE here: what a conflict does is up to the statement that set the trigger off, and that is another program's.
-- What `doctor` makes to look whether all works, and takes back, is no invite.
CREATE TRIGGER invited_tally_made AFTER INSERT ON invited_invite
WHEN NEW.source <> 'doctor'
BEGIN
    INSERT INTO invited_tally (host)
    SELECT NEW.host WHERE NOT EXISTS (SELECT 1 FROM invited_tally WHERE host = NEW.host);
    UPDATE invited_tally SET made = made + 1 WHERE host = NEW.host;
END;

CREATE TRIGGER invited_tally_ended AFTER UPDATE OF state ON invited_invite
WHEN OLD.state = 'pending' AND NEW.state <> 'pending' AND NEW.source <> 'doctor'
BEGIN
    UPDATE invited_tally
       SET used = used + (NEW.state = 'used'),
           expired = expired + (NEW.state = 'expired'),
           revoked = revoked + (NEW.state = 'revoked')
     WHERE host = NEW.host;
END;
