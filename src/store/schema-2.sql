-- Version 2. What guests did with the page of an invite; no address and no time.
ALTER TABLE invited_invite ADD COLUMN opened INTEGER NOT NULL DEFAULT 0;  -- how often it was opened
ALTER TABLE invited_invite ADD COLUMN app TEXT;                           -- the app that was chosen last
