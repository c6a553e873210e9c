-- ejabberd's table of invites, as its schema for SQLite makes it: ejabberd looks for it in a file that is there already, but
-- makes its tables only in a file that is not. Times are in the local time zone of the server.
CREATE TABLE IF NOT EXISTS invite_token (
    token text NOT NULL,
    username text NOT NULL,
    invitee text NOT NULL DEFAULT '',
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    expires timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    type character(1) NOT NULL,
    account_name text NOT NULL,
    PRIMARY KEY (token)
);
CREATE INDEX IF NOT EXISTS i_invite_token_username ON invite_token(username);
CREATE INDEX IF NOT EXISTS i_invite_token_invitee ON invite_token(invitee);
