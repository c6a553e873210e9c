//! Accounts and passwords made in the browser, with the real ejabberd, as in `ejabberd.rs`.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use serde_json::json;

use crate::ejabberd::{self, Ejabberd, Site};
use crate::harness::Server;
use crate::register::{
    PASSWORD, assert_all_are_let_in, assert_no_secret_is_in, at_once, fields, form, input, names, problem, register,
    set_xmpp,
};
use crate::register_wire::{has_openssl, make_certificate};

#[test]
fn an_account_is_made_and_the_invite_is_used_by_its_name() {
    let Some((site, ejabberd, server)) = start() else { return };
    let token = site.invite(&[]);
    let reply = register(&server, &token, "Ada@Example.com", PASSWORD);
    assert_eq!((reply.status, reply.header("cache-control")), (200, Some("no-store")), "{reply:?}");
    assert!(reply.body.contains("<bdi>ada<span>@</span>example.com</bdi>"), "{}", reply.body);
    assert!(ejabberd.client().log_in("ada", PASSWORD));
    let shown = site.show(&token);
    assert_eq!((names(&shown), &shown["state"]), (vec!["ada"], &json!("used")));
    for target in [format!("/invite?{token}"), format!("/register?t={token}")] {
        assert_eq!(server.get(&target).status, 410, "{target}");
    }
    assert_no_secret_is_in(&server.log_with("reason=registered"), &token);
}

#[test]
fn a_fixed_name_is_binding_and_kept_for_its_guest() {
    let Some((site, ejabberd, server)) = start() else { return };
    let theirs = ejabberd.api("generate_invite_with_username", json!({ "username": "bea", "host": "example.com" }));
    let theirs = theirs["invite_uri"].as_str().unwrap().split_once("preauth=").unwrap().1.to_owned();
    let free = site.invite(&[]);
    for (token, name) in [(site.invite(&["--user", "ana"]), "ana"), (theirs, "bea")] {
        assert!(input(&form(&server, &token).body, "user").ends_with(" readonly"));
        assert_eq!(register(&server, &token, "mallory", PASSWORD).status, 400);
        let reply = register(&server, &free, name, PASSWORD);
        assert_eq!((reply.status, problem(&reply, "user").contains(name)), (409, true), "{}", reply.body);
        assert!(!ejabberd.has_account("mallory") && !ejabberd.has_account(name));
        assert_eq!(register(&server, &token, "", PASSWORD).status, 200);
        assert_eq!(names(&site.show(&token)), [name]);
    }
    assert_eq!(site.show(&free)["state"], "pending");
}

#[test]
fn a_taken_name_costs_a_guest_nothing_but_another_try() {
    let Some((site, ejabberd, server)) = start() else { return };
    ejabberd.api("register", json!({ "user": "ada", "host": "example.com", "password": "old" }));
    let token = site.invite(&[]);
    let reply = register(&server, &token, "ada", PASSWORD);
    assert_eq!(reply.status, 409);
    assert!(problem(&reply, "user").contains("ada") && !reply.body.contains(PASSWORD), "{}", reply.body);
    assert_eq!(site.show(&token)["state"], "pending");
    assert!(ejabberd.client().log_in("ada", "old"));
    assert_eq!(register(&server, &token, "bob", PASSWORD).status, 200);
    assert_eq!(names(&site.show(&token)), ["bob"]);
}

#[test]
fn a_policy_of_ejabberd_for_passwords_holds() {
    let Some(mut site) = Site::new() else { return };
    let allowed = "allow_modules: [mod_invites]";
    site.changes = vec![(allowed, format!("{allowed}\n        password_strength: 100"))];
    let (ejabberd, server) = start_on(&site);
    let token = site.invite(&[]);
    let reply = register(&server, &token, "ada", "aaaaaaaaaaaa");
    assert_eq!(reply.status, 400, "{reply:?}");
    assert!(problem(&reply, "password").contains("too weak"), "{}", reply.body);
    server.log_with("reason=password-refused");
    assert!(!ejabberd.has_account("ada"));
    assert_eq!(site.show(&token)["state"], "pending");
    assert_eq!(register(&server, &token, "ada", PASSWORD).status, 200);
}

#[test]
fn a_guest_of_an_ejabberd_that_wants_a_captcha_hears_to_use_an_app() {
    let Some(mut site) = Site::new() else { return };
    let allowed = "allow_modules: [mod_invites]";
    let picture = site.folder.file("picture");
    std::fs::write(&picture, "#!/bin/sh\nprintf '\\211PNG\\r\\n\\032\\n'\n").unwrap();
    std::fs::set_permissions(&picture, std::fs::Permissions::from_mode(0o755)).unwrap();
    let inside = picture.strip_prefix(ejabberd::root()).unwrap().display().to_string();
    site.changes = vec![
        (allowed, format!("{allowed}\n        captcha_protected: true")),
        (
            "api_permissions:",
            format!("captcha_cmd: /{inside}\ncaptcha_url: http://localhost/captcha\napi_permissions:"),
        ),
    ];
    let (ejabberd, server) = start_on(&site);
    let token = site.invite(&[]);
    let reply = register(&server, &token, "ada", PASSWORD);
    assert_eq!(reply.status, 403, "{reply:?}");
    assert!(reply.body.contains("Install one of the apps"), "{}", reply.body);
    let line = server.log_with("reason=more-wanted");
    assert!(line.contains("it wants"), "{line}");
    assert!(!ejabberd.has_account("ada"));
    assert_eq!(site.show(&token)["state"], "pending");
}

#[test]
fn a_reset_sets_a_new_password_in_place_of_the_old_one() {
    let Some((site, ejabberd, server)) = start() else { return };
    for user in ["ana", "bob"] {
        ejabberd.api("register", json!({ "user": user, "host": "example.com", "password": "old" }));
    }
    let token = site.invite(&["--reset", "ana"]);
    assert_eq!(register(&server, &token, "bob", PASSWORD).status, 400);
    assert_eq!(register(&server, &token, "ana", PASSWORD).status, 200);
    assert!(!ejabberd.client().log_in("ana", "old") && ejabberd.client().log_in("ana", PASSWORD));
    assert!(ejabberd.client().log_in("bob", "old"));
    assert_eq!(names(&site.show(&token)), ["ana"]);
}

#[test]
fn guest_and_contact_have_each_other() {
    let Some((site, ejabberd, server)) = start() else { return };
    ejabberd.api("register", json!({ "user": "ana", "host": "example.com", "password": "old" }));
    let token = site.invite(&["--contact", "ana", "--register"]);
    assert_eq!(register(&server, &token, "bob", PASSWORD).status, 200);
    ejabberd.wait_for_contacts("ana", "bob");
    ejabberd.wait_for_contacts("bob", "ana");
    assert_eq!(names(&site.show(&token)), ["bob"]);
}

#[test]
fn an_invite_for_three_makes_three_accounts_and_no_fourth() {
    let Some((site, ejabberd, server)) = start() else { return };
    let all = ["ada", "bob", "carol"];
    let [one_by_one, together] = [(); 2].map(|()| site.invite(&["--uses", "3"]));
    for (name, left) in all.into_iter().zip([2, 1, 0]) {
        assert_eq!(register(&server, &one_by_one, name, PASSWORD).status, 200, "{name}");
        assert_eq!(site.show(&one_by_one)["uses_left"], left);
    }
    let others = ["dan", "eve", "frank"];
    assert_all_are_let_in(&server, &others.map(|name| fields(&together, name)));
    for (token, used_by) in [(one_by_one, all), (together, others)] {
        assert_eq!(register(&server, &token, "grace", PASSWORD).status, 410);
        assert_eq!(names(&site.show(&token)), used_by);
        assert!(used_by.iter().all(|name| ejabberd.has_account(name)));
    }
    assert!(!ejabberd.has_account("grace"));
}

#[test]
fn of_twenty_guests_at_once_exactly_one_gets_an_account() {
    let Some((site, ejabberd, server)) = start() else { return };
    let token = site.invite(&[]);
    let guests: Vec<_> = (0..20).map(|number| fields(&token, &format!("guest{number}"))).collect();
    let replies = at_once(&server, &guests);
    assert!(replies.iter().all(|reply| [200, 409, 410, 503].contains(&reply.status)), "{replies:?}");
    assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1, "{replies:?}");
    let users = ejabberd.api("registered_users", json!({ "host": "example.com" }));
    let shown = site.show(&token);
    assert_eq!((json!(names(&shown)), &shown["state"]), (users, &json!("used")));
}

#[test]
fn the_same_form_twenty_times_at_once_makes_one_account() {
    let Some((site, ejabberd, server)) = start() else { return };
    let token = site.invite(&["--uses", "2"]);
    for reply in at_once(&server, &vec![fields(&token, "ada"); 20]) {
        assert!([200, 503].contains(&reply.status), "{reply:?}");
        assert_eq!(
            reply.status == 200,
            reply.body.contains("<bdi>ada<span>@</span>example.com</bdi>"),
            "{}",
            reply.body
        );
    }
    assert_eq!(ejabberd.api("registered_users", json!({ "host": "example.com" })), json!(["ada"]));
    let shown = site.show(&token);
    assert_eq!((names(&shown), &shown["uses_left"]), (vec!["ada"], &json!(1)));
}

#[test]
fn a_server_that_is_not_there_yet_leaves_the_invite_good() {
    let Some(site) = Site::new() else { return };
    site.set_up();
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    set_xmpp(&site.db(), &closed.to_string());
    let server = site.serve();
    let token = site.invite(&[]);
    let reply = register(&server, &token, "ada", PASSWORD);
    assert_eq!((reply.status, reply.header("retry-after").is_some()), (503, true));
    assert_eq!(site.show(&token)["state"], "pending");
    assert_no_secret_is_in(&server.log_with("reason=server"), &token);
    let ejabberd = Ejabberd::start(&site);
    set_xmpp(&site.db(), &ejabberd.xmpp.to_string());
    assert_eq!(register(&server, &token, "ada", PASSWORD).status, 200);
    assert!(ejabberd.client().log_in("ada", PASSWORD));
}

#[test]
fn any_certificate_will_do_on_this_very_machine() {
    let Some(mut site) = Site::new().filter(|_| has_openssl()) else { return };
    make_certificate(site.folder.path(), "own", "another.example", None);
    let owner = std::fs::metadata(site.folder.path()).unwrap();
    let [key, certificate] = ["own.key", "own.pem"].map(|name| {
        chown(site.folder.file(name), Some(owner.uid()), Some(owner.gid())).unwrap();
        std::fs::read_to_string(site.folder.file(name)).unwrap()
    });
    std::fs::write(site.folder.file("own.pem"), certificate + &key).unwrap();
    let direct = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    site.changes = vec![
        ("loglevel: info", format!("loglevel: info\ncertfiles: [{}]", site.seen_by_ejabberd("own.pem"))),
        (
            "ejabberd_c2s}",
            format!(
                "ejabberd_c2s, starttls_required: true}}\n  - {{port: {}, ip: \"127.0.0.1\", module: ejabberd_c2s, tls: true}}",
                direct.port()
            ),
        ),
    ];
    let (ejabberd, server) = start_on(&site);
    for (name, address) in [("ada", ejabberd.xmpp.to_string()), ("bob", format!("tls:{direct}"))] {
        set_xmpp(&site.db(), &address);
        let reply = register(&server, &site.invite(&[]), name, PASSWORD);
        assert_eq!(reply.status, 200, "{address}: {reply:?}");
        // The test's own client has no TLS to log in with.
        let check = json!({ "user": name, "host": "example.com", "password": PASSWORD });
        assert_eq!(ejabberd.api("check_password", check), json!(0), "{name}");
    }
}

#[test]
fn names_and_passwords_of_all_scripts_can_log_in() {
    let Some((site, ejabberd, server)) = start() else { return };
    let long = "n".repeat(72);
    for (name, password) in [(long.as_str(), PASSWORD), ("דוד", "\"quotes' & <b>Größe</b> пароль ]]> &amp;")]
    {
        let token = site.invite(&[]);
        assert_eq!(register(&server, &token, name, password).status, 200, "{name}");
        assert!(ejabberd.client().log_in(name, password), "{name}");
        assert_eq!(names(&site.show(&token)), [name]);
    }
}

/// An ejabberd with its database, and a server that knows where it is; none where there is no ejabberd.
fn start() -> Option<(Site, Ejabberd, Server)> {
    let site = Site::new()?;
    let (ejabberd, server) = start_on(&site);
    Some((site, ejabberd, server))
}

/// The same on a site that a test has changed.
fn start_on(site: &Site) -> (Ejabberd, Server) {
    site.set_up();
    let ejabberd = Ejabberd::start(site);
    set_xmpp(&site.db(), &ejabberd.xmpp.to_string());
    (ejabberd, site.serve())
}
