-- HOST stands for the host of a row: the column server_host where the table has one.
-- ejabberd writes created_at in UTC, but expires is what it compares with the local time.

-- An invite that is not ours was made inside ejabberd (XEP-0401, or one of its commands).
CREATE TRIGGER IF NOT EXISTS invited_ejabberd_inserted AFTER INSERT ON invite_token
WHEN NOT EXISTS (SELECT 1 FROM invited_invite WHERE token = NEW.token)
BEGIN
    INSERT INTO invited_invite (token, host, kind, username, source, created_at, expires_at)
    VALUES (NEW.token, {NEW.HOST},
            CASE NEW.type WHEN 'R' THEN 'contact' WHEN 'S' THEN 'account-and-contact' WHEN 'T' THEN 'reset' ELSE 'account' END,
            nullif(CASE WHEN NEW.type IN ('R', 'S') THEN NEW.username ELSE NEW.account_name END, ''),
            CASE NEW.username WHEN '' THEN 'server' ELSE NEW.username || '@' || {NEW.HOST} END,
            coalesce(CAST(strftime('%s', NEW.created_at) AS INTEGER), 0),
            coalesce(CAST(strftime('%s', NEW.expires, 'utc') AS INTEGER), 0));
END;

-- ejabberd keeps a fixed name from other invites, but lets this one register any name. It marks the invite before it makes
-- the account: where the mark does not come about, it answers `conflict` and makes none.
CREATE TRIGGER IF NOT EXISTS invited_ejabberd_other_name BEFORE UPDATE OF invitee ON invite_token
WHEN OLD.type IN ('A', 'S') AND OLD.account_name <> '' AND NEW.invitee <> ''
 AND substr(NEW.invitee, 1, instr(NEW.invitee, '@') - 1) <> OLD.account_name
BEGIN
    SELECT RAISE(IGNORE);
END;

-- ejabberd writes the address of the new user into an invite that was used, and this runs inside that very transaction of
-- ejabberd's. While uses are left, the address is taken out again. A new contact can be of another host; all others are ours.
CREATE TRIGGER IF NOT EXISTS invited_ejabberd_used AFTER UPDATE OF invitee ON invite_token
WHEN OLD.invitee = '' AND NEW.invitee <> ''
BEGIN
    INSERT INTO invited_use (token, used_at, username)
    SELECT token, CAST(strftime('%s', 'now') AS INTEGER),
           CASE NEW.type WHEN 'R' THEN NEW.invitee ELSE substr(NEW.invitee, 1, instr(NEW.invitee, '@') - 1) END
      FROM invited_invite WHERE token = NEW.token AND state = 'pending';
    UPDATE invite_token SET invitee = '', account_name = OLD.account_name
     WHERE token = NEW.token
       AND EXISTS (SELECT 1 FROM invited_invite WHERE token = NEW.token AND state = 'pending' AND uses_left > 1);
    UPDATE invited_invite
       SET uses_left = uses_left - 1,
           state = CASE WHEN uses_left > 1 THEN 'pending' ELSE 'used' END,
           ended_at = CASE WHEN uses_left > 1 THEN NULL ELSE CAST(strftime('%s', 'now') AS INTEGER) END
     WHERE token = NEW.token AND state = 'pending';
END;

-- ejabberd's commands can let an invite expire, or delete it.
CREATE TRIGGER IF NOT EXISTS invited_ejabberd_expires AFTER UPDATE OF expires ON invite_token
BEGIN
    UPDATE invited_invite SET expires_at = coalesce(CAST(strftime('%s', NEW.expires, 'utc') AS INTEGER), expires_at)
     WHERE token = NEW.token AND state = 'pending';
END;

CREATE TRIGGER IF NOT EXISTS invited_ejabberd_deleted AFTER DELETE ON invite_token
BEGIN
    UPDATE invited_invite
       SET state = CASE WHEN expires_at < CAST(strftime('%s', 'now') AS INTEGER) THEN 'expired' ELSE 'revoked' END,
           ended_at = CAST(strftime('%s', 'now') AS INTEGER)
     WHERE token = OLD.token AND state = 'pending';
END;
