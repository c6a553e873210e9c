//! One link makes one account, however a client goes about it: with the lines of `invited setup prosody`, on both releases.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Server, connect, create_key, done, wait_until};
use crate::kinds::{
    assert_used, assert_used_as_often, execute, field, in_client, invite, make_accounts, new_password, start,
    subscription,
};
use crate::prosody::{
    Client, Prosody, Release, Site, assert_done, assert_refused, column, password, state, with_both_releases,
};
use crate::register::{PASSWORD, register, set_xmpp, show};

with_both_releases! {
    one_connection_registers_once_with_a_token
    of_connections_that_have_shown_a_token_one_registers
    a_link_that_is_revoked_after_it_was_shown_registers_nobody
    a_link_that_is_used_in_the_browser_after_it_was_shown_registers_nobody
    a_fixed_name_is_binding_in_apps
    a_reset_makes_no_new_account
    an_invite_for_three_uses_makes_three_accounts_on_one_connection
    a_name_that_is_taken_costs_no_use
    a_name_that_passes_for_anothers_is_refused_in_apps_too
    each_use_has_the_name_of_its_user
    invites_made_in_a_client_have_a_page_and_tell_their_user
    an_invite_that_prosody_calls_reusable_tells_every_user
    the_lines_hold_after_the_configuration_was_reloaded
    two_hosts_have_their_lines_each
    an_error_in_another_module_does_not_keep_a_link_valid
    a_registration_that_could_not_delete_its_invite_has_used_it
    another_host_names_no_use
    an_invite_is_for_its_own_host_alone
    a_lock_is_waited_for_and_a_long_one_registers_nobody
    a_module_that_waits_lets_nobody_else_register
    nobody_registers_without_the_module_for_invites
    prosody_starts_without_its_driver_for_sqlite
}

/// Why Prosody refuses, as the lines word it.
const NO_LONGER_VALID: &str = "This invite is no longer valid";

fn one_connection_registers_once_with_a_token(release: Release) {
    let (site, prosody) = start(release);
    let token = invite(&site, &["--role", "prosody:admin"]);
    let mut client = prosody.client();
    assert_done(&client.preauth(&token));
    assert_done(&client.register("ada"));
    let again = client.register("bob");
    assert!(again.contains(NO_LONGER_VALID), "{again}");
    for user in ["bob", "carol", "dan"] {
        assert_refused(&client.register(user), "not-acceptable");
        assert!(!exists(&prosody, user));
    }
    assert!(exists(&prosody, "ada"));
    assert_used(&site, &token);
}

fn of_connections_that_have_shown_a_token_one_registers(release: Release) {
    let (site, prosody) = start(release);
    let token = invite(&site, &[]);
    let mut clients = shown(&prosody, &token, 3);
    let answers: Vec<String> =
        clients.iter_mut().zip(["ada", "bob", "carol"]).map(|(c, user)| c.register(user)).collect();
    assert_done(&answers[0]);
    assert!(answers[1..].iter().all(|answer| answer.contains(NO_LONGER_VALID)), "{answers:?}");
    assert!(!exists(&prosody, "bob") && !exists(&prosody, "carol"));
    assert_used(&site, &token);
}

fn a_link_that_is_revoked_after_it_was_shown_registers_nobody(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana"]);
    for options in [&[][..], &["--uses", "5"], &["--user", "eve"], &["--contact", "ana", "--register"]] {
        let token = invite(&site, options);
        let mut clients = shown(&prosody, &token, 2);
        done(&site.db(), &["revoke", "example.com", &token]);
        for client in &mut clients {
            let answer = client.register("eve");
            assert!(answer.contains(NO_LONGER_VALID), "{options:?}: {answer}");
        }
        assert_eq!(state(&site, &token), "revoked");
    }
    let token = invite(&site, &["--reset", "ana"]);
    let mut client = shown(&prosody, &token, 1).remove(0);
    done(&site.db(), &["revoke", "example.com", &token]);
    assert!(client.request(&new_password("ana", "stolen")).contains(NO_LONGER_VALID));
    assert!(!exists(&prosody, "eve") && prosody.client().log_in("ana").starts_with("<success"));
}

fn a_link_that_is_used_in_the_browser_after_it_was_shown_registers_nobody(release: Release) {
    let (site, prosody) = start(release);
    set_xmpp(&site.db(), &prosody.addr.to_string());
    let server = Server::start(&site.db());
    let token = invite(&site, &[]);
    let mut client = shown(&prosody, &token, 1).remove(0);
    let reply = register(&server, &token, "ada", PASSWORD);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(client.register("bob").contains(NO_LONGER_VALID));
    assert_eq!(names(&site, &token), ["ada"]);
}

fn a_fixed_name_is_binding_in_apps(release: Release) {
    let (site, prosody) = start(release);
    let token = invite(&site, &["--user", "bob"]);
    let mut client = shown(&prosody, &token, 1).remove(0);
    assert_refused(&client.register("mallory"), "not-allowed");
    assert!(!exists(&prosody, "mallory"));
    assert_eq!(state(&site, &token), "pending");
    assert_done(&client.register("BOB"));
    assert!(prosody.client().log_in_with("bob", &password("BOB")).starts_with("<success"));
    assert_used(&site, &token);
}

fn a_reset_makes_no_new_account(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana", "bob"]);
    let token = invite(&site, &["--reset", "ana"]);
    let mut client = shown(&prosody, &token, 1).remove(0);
    for user in ["mallory", "bob"] {
        assert!(client.request(&new_password(user, "stolen")).contains("type='error'"));
    }
    assert!(!exists(&prosody, "mallory") && prosody.client().log_in("bob").starts_with("<success"));
    assert_eq!(state(&site, &token), "pending");
    assert_done(&client.request(&new_password("ana", "a new one")));
    assert!(prosody.client().log_in_with("ana", "a new one").starts_with("<success"));
    assert_used(&site, &token);
    assert_eq!(names(&site, &token), ["ana"]);
    // On the same connection, the password is set once.
    assert!(client.request(&new_password("ana", "another")).contains("type='error'"));
    // A user that does not exist has no password to reset.
    let token = invite(&site, &["--reset", "gone"]);
    let mut client = shown(&prosody, &token, 1).remove(0);
    assert!(client.register("gone").contains("type='error'"));
    assert!(!exists(&prosody, "gone"));
}

fn an_invite_for_three_uses_makes_three_accounts_on_one_connection(release: Release) {
    let (site, prosody) = start(release);
    let token = invite(&site, &["--uses", "3"]);
    let mut client = shown(&prosody, &token, 1).remove(0);
    for user in ["ada", "bob", "carol"] {
        assert_done(&client.register(user));
    }
    assert!(client.register("dan").contains(NO_LONGER_VALID));
    assert_used_as_often(&site, &token, 3);
    assert_eq!(names(&site, &token), ["ada", "bob", "carol"]);
}

fn a_name_that_is_taken_costs_no_use(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana"]);
    let token = invite(&site, &[]);
    let mut client = shown(&prosody, &token, 1).remove(0);
    assert_refused(&client.register("ana"), "conflict");
    assert_eq!((state(&site, &token).as_str(), names(&site, &token).len()), ("pending", 0));
    assert_done(&client.register("bob"));
    assert_eq!(names(&site, &token), ["bob"]);
}

fn a_name_that_passes_for_anothers_is_refused_in_apps_too(release: Release) {
    let (site, prosody) = start(release);
    let token = invite(&site, &[]);
    let mut client = shown(&prosody, &token, 1).remove(0);
    for name in ["admin", "Root", "post-master", "\u{430}nna", "ann\u{430}"] {
        assert_refused(&client.register(name), "not-allowed");
    }
    assert_eq!(state(&site, &token), "pending");
    assert_done(&client.register("анна"));
    // The admin may give such a name away.
    prosody.make_account(&invite(&site, &["--user", "support"]), "support");
}

fn each_use_has_the_name_of_its_user(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana"]);
    let both = invite(&site, &["--contact", "ana", "--register", "--uses", "2"]);
    for user in ["bob", "carol"] {
        prosody.make_account(&both, user);
        assert_eq!(subscription(&prosody, "ana", user).as_deref(), Some("both"));
    }
    assert_used_as_often(&site, &both, 2);
    assert_eq!(names(&site, &both), ["bob", "carol"]);
    let printed = done(&site.db(), &["show", "example.com", &both]);
    assert!(printed.contains("carol"), "{printed}");
    // Nothing of it is left in Prosody's table.
    assert_eq!(column::<i64>(&site, "SELECT count(*) FROM prosody WHERE key = ?1 OR store = 'invited_use'", &both), 0);
}

fn invites_made_in_a_client_have_a_page_and_tell_their_user(release: Release) {
    let mut site = Site::new(release);
    site.changes = in_client();
    create_key(&site.db(), "example.com");
    let prosody = Prosody::start(&site);
    make_accounts(&site, &prosody, &["ana", "boss"]);
    for (maker, node) in [
        ("ana", "urn:xmpp:invite#invite"),
        ("boss", "urn:xmpp:invite#invite"),
        ("boss", "urn:xmpp:invite#create-account"),
    ] {
        let answer = execute(&prosody, maker, node);
        let (uri, page) = (field(&answer, "uri"), field(&answer, "landing-url"));
        let token = uri.split("preauth=").nth(1).unwrap().split(';').next().unwrap();
        assert_eq!(page, format!("https://example.com/invite?{token}"));
        if maker == "boss" {
            let user = format!("guest-{}", node.len());
            prosody.make_account(token, &user);
            assert_eq!(names(&site, token), [user]);
        }
    }
}

/// Such an invite keeps its rows: Prosody makes it for a group and a time.
fn an_invite_that_prosody_calls_reusable_tells_every_user(release: Release) {
    let (site, prosody) = start(release);
    let token = invite(&site, &[]);
    let reusable = "UPDATE prosody SET value = json_set(value, '$.reusable', json('true')) WHERE key = ?1";
    assert_eq!(site.connection().execute(reusable, [&token]).unwrap(), 1);
    for user in ["ada", "bob"] {
        prosody.make_account(&token, user);
    }
    assert_eq!(state(&site, &token), "pending");
    assert_eq!(names(&site, &token), ["ada", "bob"]);
}

fn the_lines_hold_after_the_configuration_was_reloaded(release: Release) {
    let mut site = Site::new(release);
    site.changes = in_client();
    create_key(&site.db(), "example.com");
    let prosody = Prosody::start(&site);
    make_accounts(&site, &prosody, &["boss"]);
    let token = invite(&site, &[]);
    let mut clients = shown(&prosody, &token, 2);
    site.changes.push(("https://example.com/invite?", "https://i.example.com/invite?".to_owned()));
    for round in 1..=2 {
        prosody.reload(&site, round);
    }
    wait_until("the new address is used", || {
        let page = field(&execute(&prosody, "boss", "urn:xmpp:invite#create-account"), "landing-url");
        page.starts_with("https://i.example.com/invite?")
    });
    assert_done(&clients[0].register("ada"));
    assert!(clients[1].register("bob").contains(NO_LONGER_VALID));
    assert_eq!(names(&site, &token), ["ada"]);
}

fn two_hosts_have_their_lines_each(release: Release) {
    const OTHER: &str = "other.example";
    let mut site = Site::new(release);
    for host in ["example.com", OTHER] {
        create_key(&site.db(), host);
    }
    let lines = done(std::path::Path::new(&site.seen_by_prosody("invited.sqlite")), &["setup", "prosody", OTHER]);
    std::fs::write(site.folder.file("other.cfg.lua"), lines).unwrap();
    let plain = "allow_unencrypted_plain_auth = true\n";
    let include = format!("{plain}Include \"{}\"\n", site.seen_by_prosody("other.cfg.lua"));
    site.changes.push((plain, include));
    let prosody = Prosody::start(&site);
    let link = done(&site.db(), &["invite", OTHER]);
    let other = link.trim_end().split_once('?').unwrap().1.to_owned();
    let own = invite(&site, &[]);
    for (host, token, foreign) in [(OTHER, &other, &own), ("example.com", &own, &other)] {
        let mut client = prosody.client_of(host);
        assert_refused(&client.preauth(foreign), "forbidden");
        assert_done(&client.preauth(token));
        assert_done(&client.register("ada"));
        assert_refused(&client.register("bob"), "not-acceptable");
        let user: String = column(&site, "SELECT username FROM invited_use WHERE token = ?1", token);
        assert_eq!(user, "ada");
    }
}

/// A handler that fails stops those after it, so that Prosody may not get as far as using the invite up.
fn an_error_in_another_module_does_not_keep_a_link_valid(release: Release) {
    let mut site = Site::new(release);
    create_key(&site.db(), "example.com");
    let fails = "run_as_root = true\n(Lua or _G).prosody.events.add_handler(\"host-activated\", function (host)\n\
        (Lua or _G).prosody.hosts[host].events.add_handler(\"user-registered\", function ()\n\
        (Lua or _G).error(\"a module that fails\") end, 100) end)\n";
    site.changes.push(("run_as_root = true\n", fails.to_owned()));
    let prosody = Prosody::start(&site);
    let token = invite(&site, &[]);
    let mut client = shown(&prosody, &token, 1).remove(0);
    assert_done(&client.register("ada"));
    let mut other = prosody.client();
    assert_refused(&other.preauth(&token), "forbidden");
    assert!(prosody.log().contains("a module that fails"), "{}", prosody.log());
    assert_used(&site, &token);
    assert_eq!(names(&site, &token), ["ada"]);
}

/// What Prosody does where the file was locked while it wanted to delete the rows, and no longer is when it tells the user.
fn a_registration_that_could_not_delete_its_invite_has_used_it(release: Release) {
    let (site, _prosody) = start(release);
    let told = r#"INSERT INTO prosody VALUES ('example.com', 'bob', 'invited_use', ?1, 'number', '1')"#;
    for (options, left) in [
        (&[][..], 0),
        (&["--uses", "2"], 1),
        (&["--contact", "ana", "--register"], 0),
        (&["--contact", "ana", "--register", "--uses", "2"], 1),
    ] {
        let token = invite(&site, options);
        let rows: i64 = column(&site, "SELECT count(*) FROM prosody WHERE key = ?1", &token);
        site.connection().execute(told, [&token]).unwrap();
        assert_eq!(names(&site, &token), ["bob"], "{options:?}");
        let found: i64 = column(&site, "SELECT uses_left FROM invited_invite WHERE token = ?1", &token);
        assert_eq!(found, left, "{options:?}");
        let kept: i64 = column(&site, "SELECT count(*) FROM prosody WHERE key = ?1", &token);
        assert_eq!(kept, if left > 0 { rows } else { 0 }, "{options:?}");
    }
}

fn another_host_names_no_use(release: Release) {
    let (site, _prosody) = start(release);
    let token = invite(&site, &["--uses", "2"]);
    let conn = site.connection();
    conn.execute("DELETE FROM prosody WHERE key = ?1", [&token]).unwrap();
    for (host, user, expected) in [("other.example", "eve", "?"), ("example.com", "bob", "bob")] {
        let told = "INSERT INTO prosody VALUES (?1, ?2, 'invited_use', ?3, 'number', '1')";
        conn.execute(told, [host, user, &token]).unwrap();
        assert_eq!(names(&site, &token), [expected]);
    }
    assert_eq!(state(&site, &token), "pending");
}

/// Prosody keeps a shown invite with the connection, and takes stanzas to each of its hosts before a login.
fn an_invite_is_for_its_own_host_alone(release: Release) {
    const OTHER: &str = "other.example";
    let mut site = Site::new(release);
    create_key(&site.db(), "example.com");
    let options =
        "modules_enabled = { \"invites\"; \"invites_register\"; \"register_ibr\" }\nallow_registration = true\n";
    let plain = "allow_unencrypted_plain_auth = true\n";
    // This one is without our lines.
    site.changes.push((plain, format!("{plain}VirtualHost \"{OTHER}\"\n{options}")));
    let prosody = Prosody::start(&site);
    make_accounts(&site, &prosody, &["ana"]);
    for options in [&[][..], &["--uses", "5"], &["--reset", "ana"]] {
        let token = invite(&site, options);
        for stream in ["example.com", OTHER] {
            let mut client = prosody.client_of(stream);
            let mut ask = |to: &str, content: &str| {
                client.send(&format!("<iq type='set' id='1' to='{to}'>{content}</iq>"));
                client.read_until(|text| text.ends_with("</iq>") || text.ends_with("/>"))
            };
            assert_done(&ask("example.com", &format!("<preauth xmlns='urn:xmpp:pars:0' token='{token}'/>")));
            assert_refused(&ask(OTHER, &new_password("ana", "stolen")), "not-acceptable");
        }
        assert_eq!(state(&site, &token), "pending");
    }
}

/// Where Prosody could not use the invite up, it must not make the account. Afterwards it works as before.
fn a_lock_is_waited_for_and_a_long_one_registers_nobody(release: Release) {
    let (site, prosody) = start(release);
    make_accounts(&site, &prosody, &["ana"]);
    let token = invite(&site, &[]);
    let mut clients = shown(&prosody, &token, 2);
    let lock = site.connection();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let answer = clients[0].register("bob");
    assert_refused(&answer, "internal-server-error");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| clients[1].register("carol"));
        // Less than Prosody waits, and more than Prosody 13 waits of its own accord.
        std::thread::sleep(Duration::from_secs(2));
        lock.execute_batch("ROLLBACK").unwrap();
        assert_done(&waiting.join().unwrap());
    });
    assert!(!exists(&prosody, "bob"));
    assert_used(&site, &token);
    assert_eq!(names(&site, &token), ["carol"]);
    prosody.make_account(&invite(&site, &[]), "dan");
    assert!(!prosody.log().contains("commit failed"), "{}", prosody.log());
}

fn a_module_that_waits_lets_nobody_else_register(release: Release) {
    let mut site = Site::new(release);
    create_key(&site.db(), "example.com");
    // It waits until the one named `last` has tried as well.
    let waits = "run_as_root = true\ndo\nlocal lua, wake = Lua or _G, nil\n\
        lua.prosody.events.add_handler(\"host-activated\", function (host)\n\
        local events = lua.prosody.hosts[host].events\n\
        events.add_handler(\"user-registered\", function ()\n\
        local wait, done = lua.require(Lua and \"prosody.util.async\" or \"util.async\").waiter()\n\
        wake = done\nwait() end, 100)\n\
        events.add_handler(\"user-registering\", function (event)\n\
        if event.username == \"last\" then wake() end end, 100) end)\nend\n";
    site.changes.push(("run_as_root = true\n", waits.to_owned()));
    let prosody = Prosody::start(&site);
    for (uses, other) in [("1", "bob"), ("2", "carol")] {
        let token = invite(&site, &["--uses", uses]);
        let mut clients = shown(&prosody, &token, 2);
        assert_done(&clients[0].register(&format!("first-{uses}")));
        assert_refused(&clients[1].register(other), "resource-constraint");
        assert!(!exists(&prosody, other));
        prosody.client().register("last");
        wait_until("the first is told", || names(&site, &token) == [format!("first-{uses}")]);
    }
}

/// As where another `modules_enabled` takes the place of ours: without that module, Prosody would register anybody.
fn nobody_registers_without_the_module_for_invites(release: Release) {
    let mut site = Site::new(release);
    create_key(&site.db(), "example.com");
    site.changes.push(("\"invites\"; \"invites_register\"; \"register_ibr\"", "\"register_ibr\"".to_owned()));
    let prosody = Prosody::start(&site);
    let mut stream = connect(prosody.addr);
    let header = "<stream:stream to='example.com' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";
    let query = "<query xmlns='jabber:iq:register'><username>eve</username><password>secret</password></query>";
    write!(stream, "{header}<iq type='set' id='1' to='example.com'>{query}</iq></stream:stream>").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("<internal-server-error "), "{answer}");
}

/// The other hosts go on, and nobody registers here.
fn prosody_starts_without_its_driver_for_sqlite(release: Release) {
    let mut site = Site::new(release);
    create_key(&site.db(), "example.com");
    let missing =
        "run_as_root = true\n(Lua or _G).package.preload.DBI = function () (Lua or _G).error(\"no driver\") end\n";
    site.changes.push(("run_as_root = true\n", missing.to_owned()));
    let prosody = Prosody::start(&site);
    let token = invite(&site, &[]);
    let mut client = prosody.client();
    assert_refused(&client.preauth(&token), "forbidden");
    assert_refused(&client.register("eve"), "not-acceptable");
}

/// Clients that have shown a token.
fn shown(prosody: &Prosody, token: &str, count: usize) -> Vec<Client> {
    let client = || {
        let mut client = prosody.client();
        assert_done(&client.preauth(token));
        client
    };
    std::iter::repeat_with(client).take(count).collect()
}

/// Whether an account exists that was registered by these tests.
fn exists(prosody: &Prosody, user: &str) -> bool {
    prosody.client().log_in(user).starts_with("<success")
}

/// The users of an invite, in the order of its uses.
fn names(site: &Site, token: &str) -> Vec<String> {
    let shown: Value = show(&site.db(), token);
    let uses = shown["used"].as_array().unwrap();
    uses.iter().map(|used| used["username"].as_str().unwrap_or("?").to_owned()).collect()
}
