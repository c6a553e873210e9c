-- Takes over an invite of ejabberd's that was there before us, unless it was used meanwhile or is known. HOST stands for the
-- host of a row, as in the triggers; NEW is a row of the table here.
INSERT OR IGNORE INTO invited_invite (token, host, kind, username, source, created_at, expires_at)
SELECT NEW.token, {NEW.HOST},
       CASE NEW.type WHEN 'R' THEN 'contact' WHEN 'S' THEN 'account-and-contact' WHEN 'T' THEN 'reset' ELSE 'account' END,
       nullif(CASE WHEN NEW.type IN ('R', 'S') THEN NEW.username ELSE NEW.account_name END, ''),
       CASE NEW.username WHEN '' THEN 'server' ELSE NEW.username || '@' || {NEW.HOST} END,
       CAST(strftime('%s', NEW.created_at) AS INTEGER),
       CAST(strftime('%s', NEW.expires, 'utc') AS INTEGER)
  FROM invite_token AS NEW WHERE NEW.token = ?1 AND NEW.invitee = '';
