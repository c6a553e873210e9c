-- Prosody 0.12 or newer. As /etc/prosody/conf.d/invited.cfg.lua, or in prosody.cfg.lua below the line of the host; then:
--   apt install lua-dbi-sqlite3
--   systemctl restart prosody
-- `storage` replaces the global one for this host: copy the entries of a global `storage` table into it.
-- If the host's own block has modules_enabled, storage or sql already, Prosody silently ignores one of the two: add ours to
-- those there, and leave them out here.
-- invited must be able to write the same file: run it as the user prosody, or as one that shares a group with it.

-- Prosody waits for locks too briefly, and after a statement that has failed it can neither commit nor let go of the file
-- until it is restarted. 0.12 must also take the lock before it looks for its table.
do
    local lua, is_old = Lua or _G, not Lua
    local is_there, util_sql = lua.pcall(lua.require, is_old and "util.sql" or "prosody.util.sql")
    if is_there then
        local create_engine = util_sql.invited_create_engine or util_sql.create_engine
        util_sql.invited_create_engine = create_engine
        function util_sql.create_engine(self, params, onconnect, ...)
            if params.driver ~= "SQLite3" then return create_engine(self, params, onconnect, ...) end
            local engine = create_engine(self, params, is_old and function (engine)
                for _ in engine:select("PRAGMA busy_timeout = 5000") do end
                engine.conn:rollback()
                engine.conn:autocommit(true)
                engine:execute("BEGIN IMMEDIATE")
                engine.conn:autocommit(false)
                if onconnect then return onconnect(engine) end
            end or onconnect, ...)
            local transaction = engine.transaction
            function engine:transaction(...)
                local ok, result, b, c = transaction(self, ...)
                if not ok and self.conn then
                    for _, statement in lua.pairs(self.prepared) do statement:close() end
                    self.prepared = {}
                    self.conn:rollback()
                end
                return ok, result, b, c
            end
            return engine
        end
    end
end

-- Prosody alone looks an invite up when a client shows its token, and not again when the client registers. These lines do:
-- one link makes one account, or as many as it is for; a revoked link makes none; a fixed name is binding. They also tell
-- invited the name of each new user, and give invites that are made in a client the address of their page.
do
    local lua = Lua or _G
    local prosody, host, page = lua.prosody, "{host}", {landing_page}

    local function store(name)
        return lua.require(Lua and "prosody.core.storagemanager" or "core.storagemanager").open(host, name, "map")
    end

    -- The setting `names-refuse`; and names that have Latin letters beside Greek, Cyrillic or Armenian ones.
    local refused_names = {refused_names}
    local function is_refused(name)
        return refused_names[(name:gsub("[._-]", ""))] or name:find("[a-z]") and name:find("[\205-\214]")
    end

    local function refuse(event, condition, reason)
        event.allowed, event.error, event.error_type = false, nil, "cancel"
        event.error_condition, event.reason = condition, reason
    end

    local function shown_invite(event)
        local session = event.session or {}
        return event.validated_invite or session.invited_shown or session.validated_invite
    end

    -- Each host of this Prosody takes the invite of a connection for one of its own. So the one that was shown to this host is
    -- there only while the handlers of this host run.
    local function run(handlers, name, event)
        local session = event.session or {}
        session.validated_invite = session.invited_shown or session.validated_invite
        local ok, result = lua.pcall(handlers, name, event)
        session.invited_shown, session.validated_invite = session.validated_invite, nil
        return ok, result
    end

    -- A module can wait for something before the invite of a new account is used. Nobody else registers with it meanwhile.
    local in_use = {}

    -- Each of these wraps all other handlers of its event, so that it has the last word.
    local wrappers = {}

    wrappers["user-registering"] = function (handlers, name, event)
        local ok, result = run(handlers, name, event)
        if not ok then lua.error(result, 0) end
        local session = prosody.hosts[host]
        if event.allowed == false then return result end
        local shown = shown_invite(event)
        if not session.modules.invites_register then
            -- It alone keeps those out who have no invite.
            refuse(event, "internal-server-error", "Invites can't be used now")
        end
        if not shown or event.allowed == false then return result end
        local current = session.modules.invites.get(shown.token)
        local stored = current and session.modules.invites.get_account_invite_info(shown.token)
        if event.session then event.session.invited_shown = current or nil end
        if not stored then
            refuse(event, "not-acceptable", {invite_ended})
            return result
        end
        local reset = stored.additional_data and stored.additional_data.allow_reset
        local user = reset or stored.type ~= "roster" and stored.jid:match("^([^@]+)@")
        if user and user ~= event.username or reset and not session.users.user_exists(reset) then
            refuse(event, "not-allowed", "This invite is for another username")
        elseif not user and is_refused(event.username) then
            refuse(event, "not-allowed", "This username can't be chosen")
        elseif in_use[shown.token] then
            refuse(event, "resource-constraint", "This invite is in use at this moment, try again")
        elseif not store("invite_token"):set(nil, "none", nil) then
            -- There is no such token. Where it can't be deleted, the invite could not be used up either.
            refuse(event, "internal-server-error", "Invites can't be used now, try again later")
        end
        return result
    end

    local function tell_user(handlers, name, event)
        local token = (shown_invite(event) or {}).token
        if token then in_use[token] = true end
        local ok, result = run(handlers, name, event)
        if token then
            in_use[token] = nil
            store("invited_use"):set(event.username, token, lua.os.time())
        end
        if not ok then lua.error(result, 0) end
        return result
    end
    wrappers["user-registered"], wrappers["user-password-reset"] = tell_user, tell_user

    wrappers["invite-created"] = function (handlers, name, invite)
        local result = handlers(name, invite)
        invite.landing_page = page:gsub("{(%l+)}", { token = invite.token, uri = invite.uri })
        return result
    end

    -- `invited doctor` shows an invite of its own to see that these lines are in place: this is their version.
    wrappers["stanza/iq/urn:xmpp:pars:0:preauth"] = function (handlers, name, event)
        local result = handlers(name, event)
        local session = event.origin
        local shown = session.validated_invite
        session.invited_shown, session.validated_invite = shown or session.invited_shown, nil
        local data = (shown or {}).additional_data
        if data and data.source == "doctor" then store("invited_use"):set(nil, shown.token, {lines_version}) end
        return result
    end

    -- The configuration can be read again, and a host be activated again, while Prosody runs.
    local function install(session)
        for event, wrapper in lua.pairs(session.invited or {}) do session.events.remove_wrapper(event, wrapper) end
        for event, wrapper in lua.pairs(wrappers) do session.events.add_wrapper(event, wrapper) end
        session.invited = wrappers
    end
    if prosody and prosody.process_type == "prosody" then
        if not prosody.invited then
            prosody.invited = {}
            prosody.events.add_handler("host-activated", function (activated)
                if prosody.invited[activated] then prosody.invited[activated](prosody.hosts[activated]) end
            end)
        end
        prosody.invited[host] = install
        if lua.rawget(prosody.hosts, host) then install(prosody.hosts[host]) end
    end
end

VirtualHost "{host}"
    modules_enabled = { "invites"; "invites_register"; "register_ibr" }
    allow_registration = true
    registration_invite_only = true
    storage = { invite_token = "sql"; invited_use = "sql" }
    sql = { driver = "SQLite3"; database = {db} }
    sqlite_busy_timeout_ms = 5000
