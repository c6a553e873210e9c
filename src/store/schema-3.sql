-- Version 3. Registrations on our page that are under way, so that an invite is not used more often than it may be by those
-- who come at the same moment: the XMPP server alone does not see to that. A row is there for some seconds. claimed_at is
-- no Unix time, but nanoseconds of the kernel's monotonic clock, which nobody can set.
CREATE TABLE invited_claim (
    number     INTEGER PRIMARY KEY,
    token      TEXT NOT NULL,
    claimed_at INTEGER NOT NULL
);

-- For the question whether a name is kept for the guest of another invite.
CREATE INDEX invited_invite_name ON invited_invite (host, username)
    WHERE kind = 'account' AND state = 'pending' AND username IS NOT NULL;
