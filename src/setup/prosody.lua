-- Prosody 0.12 or newer. As /etc/prosody/conf.d/invited.cfg.lua, or in prosody.cfg.lua below the line of the host; then:
--   apt install lua-dbi-sqlite3
--   systemctl restart prosody
-- `storage` replaces the global one for this host: copy the entries of a global `storage` table into it.
-- If the host's own block has modules_enabled, storage or sql already, one of the two is dropped without a word: add ours to
-- those there, and leave them out here.
-- invited must be able to write the same file: run it as the user prosody, or as one that shares a group with it.

-- Prosody 0.12 must be told to wait for locks, and to take the lock before it looks for its table; 13 needs neither.
if not Lua then
    local util_sql = require "util.sql"
    local create_engine = util_sql.create_engine
    function util_sql.create_engine(self, params, onconnect)
        if params.driver ~= "SQLite3" then return create_engine(self, params, onconnect) end
        return create_engine(self, params, function (engine)
            for _ in engine:select("PRAGMA busy_timeout = 5000") do end
            engine.conn:rollback()
            engine.conn:autocommit(true)
            engine:execute("BEGIN IMMEDIATE")
            engine.conn:autocommit(false)
            if onconnect then return onconnect(engine) end
        end)
    end
end

VirtualHost "{host}"
    modules_enabled = { "invites"; "invites_register"; "register_ibr" }
    allow_registration = true
    registration_invite_only = true
    storage = { invite_token = "sql" }
    sql = { driver = "SQLite3"; database = {db} }
