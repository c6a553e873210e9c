//! Accounts and passwords made in the browser, with the real Prosody, both releases as in `prosody.rs`.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{PROGRAM, Server, create_key, done};
use crate::kinds;
use crate::prosody::{Prosody, Release, Site, password, with_both_releases};
use crate::register::{
    JSON, PASSWORD, assert_all_are_let_in, assert_error, assert_no_secret_is_in, at_once, fields, form, input, names,
    problem, register, send_json, set_xmpp, show,
};

with_both_releases! {
    an_account_is_made_and_the_invite_is_used_by_its_name
    a_program_gets_the_address_as_json
    a_fixed_name_is_binding
    a_name_kept_for_a_guest_is_refused_to_all_others
    a_taken_name_costs_a_guest_nothing_but_another_try
    a_fixed_name_that_somebody_has_already_is_refused
    a_guest_who_tries_one_taken_name_after_the_other_has_to_wait
    a_reset_sets_a_new_password_in_place_of_the_old_one
    guest_and_contact_have_each_other
    three_guests_one_after_the_other_use_an_invite_for_three
    three_guests_at_once_use_an_invite_for_three
    of_twenty_guests_at_once_exactly_one_gets_an_account
    the_same_form_twenty_times_at_once_makes_one_account
    the_same_form_again_gets_the_same_answer
    after_ten_guesses_at_what_a_guest_has_sent_nothing_tells_the_right_one
    of_two_invites_for_one_name_the_first_that_comes_gets_it
    a_name_of_an_invite_of_prosodys_own_is_kept_too
    a_server_that_is_stopped_leaves_the_invite_good
    a_server_that_reads_another_file_is_told_in_the_log
    the_longest_name_that_fits_is_taken
    a_name_from_right_to_left_can_log_in
    a_password_with_all_that_xml_escapes_can_log_in
}

fn an_account_is_made_and_the_invite_is_used_by_its_name(release: Release) {
    let (site, prosody, server) = start(release);
    let token = kinds::invite(&site, &[]);
    assert_eq!(form(&server, &token).status, 200);
    let reply = register(&server, &token, " Ada ", PASSWORD);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert!(
        reply.body.contains("<bdi>ada<span>@</span>example.com</bdi>") && !reply.body.contains(PASSWORD),
        "{}",
        reply.body
    );
    assert!(can_log_in(&prosody, "ada", PASSWORD));
    let shown = show(&site.db(), &token);
    assert_eq!((&shown["state"], &shown["used"][0]["username"]), (&json!("used"), &json!("ada")));
    for target in [format!("/invite?{token}"), format!("/register?t={token}")] {
        assert_eq!(server.get(&target).status, 410, "{target}");
    }
    assert_no_secret_is_in(&server.log_with("reason=registered"), &token);
}

fn a_program_gets_the_address_as_json(release: Release) {
    let (site, prosody, server) = start(release);
    let token = kinds::invite(&site, &[]);
    let reply = send_json(&server, &json!({ "token": token, "username": "ada", "password": PASSWORD }));
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(serde_json::from_str::<Value>(&reply.body).unwrap(), json!({ "jid": "ada@example.com" }));
    assert!(can_log_in(&prosody, "ada", PASSWORD));

    let token = kinds::invite(&site, &[]);
    let reply = send_json(&server, &json!({ "token": token, "user": "ada", "password": PASSWORD }));
    assert_error(&reply, 409, "name-taken", json!("user"));
}

fn a_fixed_name_is_binding(release: Release) {
    let (site, prosody, server) = start(release);
    for (token, typed) in
        [(kinds::invite(&site, &["--user", "bob"]), ""), (kinds::invite(&site, &["--user", "eve"]), "EVE")]
    {
        let name = if typed.is_empty() { "bob" } else { "eve" };
        let shown = form(&server, &token).body;
        assert!(input(&shown, "user").contains(&format!("value=\"{name}\"")), "{shown}");
        assert!(input(&shown, "user").ends_with(" readonly"), "{shown}");
        let other = register(&server, &token, "mallory", PASSWORD);
        assert_eq!(other.status, 400);
        assert!(problem(&other, "user").contains(name), "{}", other.body);
        assert_eq!(show(&site.db(), &token)["state"], "pending");
        assert_eq!(register(&server, &token, typed, PASSWORD).status, 200);
        assert_eq!(show(&site.db(), &token)["used"][0]["username"], name);
    }
    assert_eq!(accounts(&site), ["bob", "eve"]);
    assert!(can_log_in(&prosody, "bob", PASSWORD));
}

fn a_name_kept_for_a_guest_is_refused_to_all_others(release: Release) {
    let (site, _prosody, server) = start(release);
    let kept = kinds::invite(&site, &["--user", "bob"]);
    let free = kinds::invite(&site, &[]);
    let reply = register(&server, &free, "Bob", PASSWORD);
    assert_eq!(reply.status, 409);
    assert!(problem(&reply, "user").contains("bob"), "{}", reply.body);
    assert_eq!(accounts(&site), [""; 0]);
    done(&site.db(), &["revoke", "example.com", &kept]);
    assert_eq!(register(&server, &free, "Bob", PASSWORD).status, 200);
}

fn a_taken_name_costs_a_guest_nothing_but_another_try(release: Release) {
    let (site, prosody, server) = start(release);
    kinds::make_accounts(&site, &prosody, &["ada"]);
    let token = kinds::invite(&site, &[]);
    let reply = register(&server, &token, "Ada", PASSWORD);
    assert_eq!(reply.status, 409);
    assert!(problem(&reply, "user").contains("ada"), "{}", reply.body);
    assert!(input(&reply.body, "user").contains("value=\"Ada\""), "what was typed is gone: {}", reply.body);
    assert!(!reply.body.contains(PASSWORD) && !input(&reply.body, "password").contains("value="), "{}", reply.body);
    assert_eq!(show(&site.db(), &token)["state"], "pending");
    assert!(!can_log_in(&prosody, "ada", PASSWORD) && can_log_in(&prosody, "ada", &password("ada")));
    assert_eq!(register(&server, &token, "bob", PASSWORD).status, 200);
    assert_eq!(show(&site.db(), &token)["used"][0]["username"], "bob");
}

fn a_fixed_name_that_somebody_has_already_is_refused(release: Release) {
    let (site, prosody, server) = start(release);
    let token = kinds::invite(&site, &["--user", "bob"]);
    kinds::make_accounts(&site, &prosody, &["bob"]);
    let reply = send_json(&server, &json!({ "token": token, "password": PASSWORD }));
    assert_error(&reply, 409, "account-there", Value::Null);
    assert!(!can_log_in(&prosody, "bob", PASSWORD));
    assert_eq!(show(&site.db(), &token)["state"], "pending");
}

fn behind_a_proxy(site: &Site) -> Server {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "127.0.0.1:0", "--trust-proxy", "--db"]).arg(site.db());
    Server::spawn(command.env("TMPDIR", site.folder.path()))
}

fn a_guest_who_tries_one_taken_name_after_the_other_has_to_wait(release: Release) {
    let site = Site::new(release);
    let (prosody, _) = start_on(&site);
    kinds::make_accounts(&site, &prosody, &["ada"]);
    let token = kinds::invite(&site, &[]);
    let server = behind_a_proxy(&site);
    let from = |address: &str, token: &str| {
        let body = json!({ "token": token, "user": "ada", "password": PASSWORD }).to_string();
        let headers = [("Content-Type", JSON), ("X-Forwarded-For", address)];
        server.send("POST", "/register", &headers, body.as_bytes())
    };
    for _ in 0..30 {
        assert_error(&from("192.0.2.7", &token), 409, "name-taken", json!("user"));
    }
    let limited = from("192.0.2.7", &token);
    assert_error(&limited, 429, "name-tries", json!("user"));
    assert!(limited.header("retry-after").is_some());
    // A guest who shares the address still sees an own invite.
    let page = server.request("GET", &format!("/invite?{token}"), &[("X-Forwarded-For", "192.0.2.7")]);
    assert_eq!(page.status, 200);
    // Neither another address nor another invite is a way around; with both, it is somebody else.
    let other = kinds::invite(&site, &[]);
    for (address, token, status) in [("192.0.2.8", &token, 429), ("192.0.2.7", &other, 429), ("192.0.2.8", &other, 409)]
    {
        assert_eq!(from(address, token).status, status, "{address}");
    }
}

fn a_reset_sets_a_new_password_in_place_of_the_old_one(release: Release) {
    let (site, prosody, server) = start(release);
    kinds::make_accounts(&site, &prosody, &["ana", "bob"]);
    let token = kinds::invite(&site, &["--reset", "ana"]);
    assert!(input(&form(&server, &token).body, "user").ends_with(" readonly"));
    for other in ["bob", "mallory"] {
        let reply = register(&server, &token, other, PASSWORD);
        assert_eq!((reply.status, problem(&reply, "user").contains("ana")), (400, true), "{}", reply.body);
    }
    let reply = register(&server, &token, "ana", PASSWORD);
    assert_eq!(reply.status, 200);
    assert!(reply.body.contains("ana<span>@</span>example.com"), "{}", reply.body);
    assert!(!can_log_in(&prosody, "ana", &password("ana")) && can_log_in(&prosody, "ana", PASSWORD));
    assert!(can_log_in(&prosody, "bob", &password("bob")));
    assert_eq!(show(&site.db(), &token)["used"][0]["username"], "ana");
    assert_eq!(accounts(&site), ["ana", "bob"]);
}

fn guest_and_contact_have_each_other(release: Release) {
    let (site, prosody, server) = start(release);
    kinds::make_accounts(&site, &prosody, &["ana"]);
    let token = kinds::invite(&site, &["--contact", "ana", "--register"]);
    // So short a name may be in the password, which is the one that the test's client logs in with.
    let reply = register(&server, &token, "bo", &password("bo"));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(kinds::subscription(&prosody, "ana", "bo").as_deref(), Some("both"));
    assert_eq!(kinds::subscription(&prosody, "bo", "ana").as_deref(), Some("both"));
    assert_eq!(show(&site.db(), &token)["used"][0]["username"], "bo");
}

fn three_guests_one_after_the_other_use_an_invite_for_three(release: Release) {
    let (site, _prosody, server) = start(release);
    let token = kinds::invite(&site, &["--uses", "3"]);
    for (name, left) in [("ada", 2), ("bob", 1), ("carol", 0)] {
        assert_eq!(register(&server, &token, name, PASSWORD).status, 200, "{name}");
        assert_eq!(show(&site.db(), &token)["uses_left"], left);
    }
    assert_eq!(register(&server, &token, "dan", PASSWORD).status, 410);
    assert_eq!(accounts(&site), ["ada", "bob", "carol"]);
    assert_eq!(names(&show(&site.db(), &token)), ["ada", "bob", "carol"]);
}

fn three_guests_at_once_use_an_invite_for_three(release: Release) {
    let (site, _prosody, server) = start(release);
    let token = kinds::invite(&site, &["--uses", "3"]);
    let guests = ["ada", "bob", "carol"].map(|name| fields(&token, name));
    assert_all_are_let_in(&server, &guests);
    assert_eq!(accounts(&site), ["ada", "bob", "carol"]);
    let shown = show(&site.db(), &token);
    assert_eq!((names(&shown), &shown["state"]), (vec!["ada", "bob", "carol"], &json!("used")));
}

fn of_twenty_guests_at_once_exactly_one_gets_an_account(release: Release) {
    let (site, _prosody, server) = start(release);
    let token = kinds::invite(&site, &[]);
    let guests: Vec<_> = (0..20).map(|number| fields(&token, &format!("guest{number}"))).collect();
    let replies = at_once(&server, &guests);
    assert!(replies.iter().all(|reply| [200, 409, 410, 503].contains(&reply.status)), "{replies:?}");
    let mut happy = replies.iter().enumerate().filter(|(_, reply)| reply.status == 200);
    let (number, _) = happy.next().expect("a guest that got the account");
    assert_eq!(happy.count(), 0, "{replies:?}");
    let name = format!("guest{number}");
    assert_eq!(accounts(&site), [name.as_str()]);
    let shown = show(&site.db(), &token);
    assert_eq!((names(&shown), &shown["state"]), (vec![name.as_str()], &json!("used")));
}

fn the_same_form_twenty_times_at_once_makes_one_account(release: Release) {
    let (site, _prosody, server) = start(release);
    let token = kinds::invite(&site, &["--uses", "2"]);
    let guests = vec![fields(&token, "ada"); 20];
    for reply in at_once(&server, &guests) {
        // More than may wait at a time are sent away, and come again.
        assert!([200, 503].contains(&reply.status), "{reply:?}");
        assert_eq!(
            reply.status == 200,
            reply.body.contains("<bdi>ada<span>@</span>example.com</bdi>"),
            "{}",
            reply.body
        );
    }
    assert_eq!(accounts(&site), ["ada"]);
    let shown = show(&site.db(), &token);
    assert_eq!((names(&shown), &shown["uses_left"]), (vec!["ada"], &json!(1)));
}

/// With a used link, the password that its guest has taken could be found out, by sending one after the other.
fn after_ten_guesses_at_what_a_guest_has_sent_nothing_tells_the_right_one(release: Release) {
    let (site, prosody, server) = start(release);
    kinds::make_accounts(&site, &prosody, &["ana"]);
    for (token, user) in [(kinds::invite(&site, &[]), "ada"), (kinds::invite(&site, &["--reset", "ana"]), "ana")] {
        assert_eq!(register(&server, &token, user, PASSWORD).status, 200);
        assert_eq!(register(&server, &token, user, PASSWORD).status, 200);
        for guess in 0..10 {
            assert_eq!(register(&server, &token, user, &format!("guess number {guess}")).status, 410);
        }
        assert_eq!(register(&server, &token, user, PASSWORD).status, 410);
    }
}

fn of_two_invites_for_one_name_the_first_that_comes_gets_it(release: Release) {
    let (site, prosody, server) = start(release);
    let [one, two] = [(); 2].map(|()| kinds::invite(&site, &["--user", "nina"]));
    assert_eq!(register(&server, &two, "nina", PASSWORD).status, 200);
    assert!(can_log_in(&prosody, "nina", PASSWORD));
    assert_eq!(register(&server, &one, "nina", "another long word").status, 409);
    assert!(can_log_in(&prosody, "nina", PASSWORD));
}

/// One that was made inside Prosody lies there as Prosody wrote it until somebody reads it.
fn a_name_of_an_invite_of_prosodys_own_is_kept_too(release: Release) {
    let (site, _prosody, server) = start(release);
    let value = json!({ "type": "register", "jid": "vera@example.com", "token": "theirs", "allow_registration": true,
        "created_at": crate::prosody::now(), "expires": crate::prosody::now() + 3_600 });
    let insert = "INSERT INTO prosody VALUES ('example.com', '', 'invite_token', 'theirs', 'json', ?1)";
    site.connection().execute(insert, [value.to_string()]).unwrap();
    let token = kinds::invite(&site, &[]);
    assert_eq!(register(&server, &token, "vera", PASSWORD).status, 409);
}

fn the_same_form_again_gets_the_same_answer(release: Release) {
    let (site, _prosody, server) = start(release);
    let token = kinds::invite(&site, &[]);
    let first = register(&server, &token, "ada", PASSWORD);
    let second = register(&server, &token, "ada", PASSWORD);
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(first.body, second.body);
    assert_eq!(names(&show(&site.db(), &token)), ["ada"]);
    assert_eq!(register(&server, &token, "ada", "another long word").status, 410);
    assert_eq!(register(&server, &token, "eve", PASSWORD).status, 410);
}

fn a_server_that_is_stopped_leaves_the_invite_good(release: Release) {
    let (site, prosody, server) = start(release);
    let token = kinds::invite(&site, &[]);
    drop(prosody); // kills it
    let reply = register(&server, &token, "ada", PASSWORD);
    assert_eq!(reply.status, 503);
    assert!(reply.header("retry-after").is_some_and(|value| value.parse::<u32>().is_ok()), "{reply:?}");
    assert!(input(&reply.body, "user").contains("value=\"ada\"") && !reply.body.contains(PASSWORD), "{}", reply.body);
    assert_eq!(show(&site.db(), &token)["state"], "pending");
    let log = server.log_with("status=503");
    assert!(log.contains("reason=server") && log.contains("refused"), "{log}");
    assert_no_secret_is_in(&log, &token);

    let prosody = Prosody::start(&site);
    set_xmpp(&site.db(), &prosody.addr.to_string());
    assert_eq!(register(&server, &token, "ada", PASSWORD).status, 200);
    assert!(can_log_in(&prosody, "ada", PASSWORD));
}

fn a_server_that_reads_another_file_is_told_in_the_log(release: Release) {
    let mut site = Site::new(release);
    // Where Prosody has its own storage for invites.
    site.changes = vec![("storage = { invite_token = \"sql\"; invited_use = \"sql\" }", String::new())];
    let (_prosody, server) = start_on(&site);
    let token = kinds::invite(&site, &[]);
    let reply = register(&server, &token, "ada", PASSWORD);
    assert_eq!((reply.status, show(&site.db(), &token)["state"].as_str()), (503, Some("pending")));
    let log = server.log_with("reason=server");
    assert!(log.contains("this very file"), "{log}");
    assert_no_secret_is_in(&log, &token);
}

fn the_longest_name_that_fits_is_taken(release: Release) {
    let (site, prosody, server) = start(release);
    let long = "n".repeat(72);
    assert_eq!(register(&server, &kinds::invite(&site, &[]), &long, PASSWORD).status, 200);
    assert!(can_log_in(&prosody, &long, PASSWORD));
    // In the name of a file, each of these letters is six bytes long.
    let (fits, too_long) = ("д".repeat(40), "д".repeat(41));
    let token = kinds::invite(&site, &[]);
    let reply = register(&server, &token, &too_long, PASSWORD);
    assert_eq!(reply.status, 400);
    assert!(!problem(&reply, "user").is_empty());
    assert_eq!(register(&server, &token, &fits, PASSWORD).status, 200);
    assert!(can_log_in(&prosody, &fits, PASSWORD));
}

fn a_name_from_right_to_left_can_log_in(release: Release) {
    let (site, prosody, server) = start(release);
    let token = kinds::invite(&site, &[]);
    let reply = register(&server, &token, "דוד", PASSWORD);
    assert_eq!(reply.status, 200);
    assert!(reply.body.contains("<bdi>דוד<span>@</span>example.com</bdi>"), "{}", reply.body);
    assert!(can_log_in(&prosody, "דוד", PASSWORD));
    assert_eq!(show(&site.db(), &token)["used"][0]["username"], "דוד");
}

fn a_password_with_all_that_xml_escapes_can_log_in(release: Release) {
    let (site, prosody, server) = start(release);
    let strange = "\"quotes' & <b>Größe</b> пароль ]]> &amp;";
    let token = kinds::invite(&site, &[]);
    assert_eq!(register(&server, &token, "ada", strange).status, 200);
    assert!(can_log_in(&prosody, "ada", strange));
}

/// Debian 12 has no such module.
#[test]
fn a_policy_of_prosody_13_for_passwords_holds() {
    Release::OfSid.run(|release| {
        let mut site = Site::new(release);
        let policy = "\"register_ibr\"; \"password_policy\" }\n    password_policy = { length = 30 }";
        site.changes = vec![("\"register_ibr\" }", policy.to_owned())];
        let (prosody, server) = start_on(&site);
        let token = kinds::invite(&site, &[]);
        let reply = register(&server, &token, "ada", PASSWORD);
        assert_eq!(reply.status, 400);
        assert!(problem(&reply, "password").contains("too weak"), "{}", reply.body);
        assert_eq!((accounts(&site).len(), show(&site.db(), &token)["state"].as_str()), (0, Some("pending")));
        let log = server.log_with("reason=password-refused");
        assert!(log.contains("minimum 30 characters"), "{log}");
        assert_no_secret_is_in(&log, &token);
        let long = "thirty characters are a lot of them";
        assert_eq!(register(&server, &token, "ada", long).status, 200);
        assert!(can_log_in(&prosody, "ada", long));
    });
}

// ---- What the tests share. ----

/// A Prosody with its database, and a server that knows where it is.
fn start(release: Release) -> (Site, Prosody, Server) {
    let site = Site::new(release);
    let (prosody, server) = start_on(&site);
    (site, prosody, server)
}

/// The same on a site that a test has changed.
pub fn start_on(site: &Site) -> (Prosody, Server) {
    create_key(&site.db(), "example.com");
    let prosody = Prosody::start(site);
    set_xmpp(&site.db(), &prosody.addr.to_string());
    (prosody, Server::start(&site.db()))
}

/// The names of the accounts that Prosody has, in the order of the alphabet.
pub fn accounts(site: &Site) -> Vec<String> {
    let Ok(files) = std::fs::read_dir(site.folder.file("data/example%2ecom/accounts")) else { return Vec::new() };
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.map(|name| name.strip_suffix(".dat").expect("a .dat").to_owned()).collect();
    names.sort_unstable();
    names
}

pub fn can_log_in(prosody: &Prosody, user: &str, password: &str) -> bool {
    prosody.client().log_in_with(user, password).starts_with("<success")
}
