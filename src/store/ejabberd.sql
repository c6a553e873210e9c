-- ejabberd's table of invites, as its schema for SQLite makes it without sql_schema_multihost: ejabberd takes it as its own
-- where it comes second. An invite expires in the local time zone of the server.
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
