-- Version 5. The lines of `invited setup prosody` tell who used an invite: Prosody writes a row of the store invited_use, with the
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
