//! `doctor` names what is wrong, each thing by its word; says nothing where all is well; and leaves no trace.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::Value;

use crate::doctor_peers::{
    OnAnswer, OnRequest, Web, address_of_this_machine, has_openssl, make_certificate, play_xmpp, with_tls,
};
use crate::ejabberd::{self, Ejabberd};
use crate::harness::{Folder, PROGRAM, Server, available, create_key, describe, done, fails, run};
use crate::prosody::{Prosody, Release, Site, now, with_both_releases};

with_both_releases! {
    all_is_well
    a_prosody_that_reads_another_file_is_found
    lines_that_are_missing_older_or_without_effect_are_found
    a_prosody_without_the_modules_is_found
    a_prosody_that_has_a_host_in_ascii_is_found
    a_certificate_of_another_name_or_authority_is_found
    a_certificate_that_ends_soon_is_found
    a_certificate_of_another_machine_must_be_good
}

const HOST: &str = "example.com";

/// All words that there are, as the README lists them.
const CHECKS: [&str; 32] = [
    "clock",
    "file",
    "mode",
    "folder",
    "disk",
    "wal",
    "sqlite",
    "schema",
    "journal",
    "lock",
    "settings",
    "triggers",
    "sandbox",
    "xmpp",
    "tls",
    "certificate",
    "features",
    "made-up",
    "invite",
    "fields",
    "lines",
    "zone",
    "server",
    "ttl",
    "register",
    "url",
    "https",
    "api",
    "redirect",
    "unknown",
    "page",
    "proxy",
];

// ---- All is well. ----

fn all_is_well(release: Release) {
    if !has_openssl() {
        return;
    }
    let mut site = Site::new(release);
    let folder = site.folder.path();
    make_certificate(folder, "ca", "", 100);
    make_certificate(folder, "xmpp", HOST, 90);
    make_certificate(folder, "web", "localhost", 90);
    create_key(&site.db(), HOST);
    let server = serve(&site.folder, "127.0.0.1:0", &["--trust-proxy"]);
    let web = Web::start_with(server.addr, Some((folder, "web")), forwarded, same);
    site.changes = with_tls(&site, "xmpp");
    let prosody = Prosody::start(&site);
    done(&site.db(), &["set", HOST, "xmpp", &prosody.addr.to_string()]);
    done(&site.db(), &["set", HOST, "url", &format!("https://localhost:{}", web.addr.port())]);
    let kept = done(&site.db(), &["invite", HOST]);
    let before = contents(&site.db());

    let found = Found::with_authority(&site.db(), site.folder.path());
    let found_checks: Vec<&str> = found.findings.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    assert!(found.all("ok"), "{found:?}");
    assert_eq!(found.code, Some(0));
    let expected = [
        "clock",
        "file",
        "mode",
        "folder",
        "disk",
        "sqlite",
        "schema",
        "journal",
        "lock",
        "triggers",
        "xmpp",
        "certificate",
        "features",
        "made-up",
        "invite",
        "fields",
        "lines",
        "server",
        "ttl",
        "register",
        "url",
        "https",
        "api",
        "unknown",
        "page",
        "proxy",
        "form",
    ];
    assert_eq!(found_checks, expected);
    let version = if matches!(release, Release::OfThisMachine) { "0.12" } else { "13" };
    found.has("ok", "server", version);

    // The lines say the same, and neither leaves a trace or tells a secret.
    let output = command(&site.db(), &[]).env("SSL_CERT_FILE", site.folder.file("ca.pem")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{text}");
    assert_eq!(text.lines().count(), expected.len(), "{text}");
    assert!(text.lines().all(|line| line.starts_with("ok       ")), "{text}");
    assert_eq!(contents(&site.db()), before);
    assert!(!text.contains(kept.trim_end().split_once('?').unwrap().1));
    assert!(server.log().contains("reason=shown"));
}

#[test]
fn all_is_well_with_ejabberd_but_for_the_certificate() {
    let Some(site) = ejabberd::Site::new() else { return };
    site.set_up();
    let server = site.serve();
    let ejabberd = Ejabberd::start(&site);
    site.done(&["set", HOST, "xmpp", &ejabberd.xmpp.to_string()]);
    site.done(&["set", HOST, "url", &format!("http://{}", server.addr)]);
    let before = contents(&site.db());
    let found = Found::of(&mut command(&site.db(), &["--json"]));
    assert_eq!(found.code, Some(0), "{found:?}");
    found.has("warning", "tls", "no TLS");
    let others = found.findings.iter().filter(|finding| finding["check"] != "tls");
    for finding in others {
        assert_eq!(finding["level"], "ok", "{finding}");
    }
    found.has("ok", "server", "ejabberd");
    found.has("ok", "invite", "reads this file");
    assert_eq!(contents(&site.db()), before);
}

#[test]
fn the_words_are_in_the_readme_and_in_the_help() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let section = readme.split_once("\n## When something is wrong: doctor\n").unwrap().1.split_once("\n## ").unwrap().0;
    let source: String = ["doctor.rs", "doctor/clock.rs", "doctor/file.rs", "doctor/web.rs", "doctor/xmpp.rs"]
        .map(|name| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name)).unwrap())
        .concat();
    for word in CHECKS.iter().chain(&["form", "elsewhere"]) {
        assert!(section.contains(&format!("| `{word}` |")), "{word}");
        assert!(source.contains(&format!("\"{word}\"")), "{word}");
    }
    let rows = section.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, CHECKS.len() + 2);
    assert!(done(Path::new("x"), &["doctor", "--help"]).contains("--json"));
}

// ---- The file. ----

#[test]
fn a_file_that_is_not_there_or_not_ours_is_named() {
    let folder = Folder::new();
    check(&folder.db(), "error", "file", "no database");
    check(folder.path(), "error", "file", "not a file");
    std::fs::write(folder.db(), "some text, and long enough to be taken for a header of something else. ".repeat(20))
        .unwrap();
    check(&folder.db(), "error", "sqlite", "not an SQLite database");
    std::fs::remove_file(folder.db()).unwrap();
    Connection::open(folder.db()).unwrap().execute_batch("CREATE TABLE x (y)").unwrap();
    check(&folder.db(), "error", "schema", "no tables");
}

#[test]
fn a_file_or_folder_of_another_user_is_named() {
    if !available("root", rustix::process::geteuid().is_root()) {
        return;
    }
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    // The program may lie where that user can't go, so that a copy runs; another process makes it, see `prosody.rs`.
    let elsewhere = Folder::new();
    let copy = elsewhere.file("invited");
    assert!(Command::new("cp").arg(PROGRAM).arg(&copy).status().unwrap().success());
    let as_nobody = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
        Found::of(command.args(["doctor", HOST, "--json"]).env("INVITED_DB", folder.db()))
    };
    chown(folder.path(), Some(65534), Some(65534)).unwrap();
    let found = as_nobody();
    found.has("error", "file", "can't be read and written");
    // Who made the key was root, in the folder of another user.
    found.has("warning", "mode", "belongs to user root");
    assert_eq!(found.code, Some(1));

    chown(folder.db(), Some(65534), Some(65534)).unwrap();
    assert!(as_nobody().level("file") == ["ok"] && as_nobody().level("mode") == ["ok"]);
    chown(folder.path(), Some(0), Some(0)).unwrap();
    as_nobody().has("error", "folder", "not writable");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
    as_nobody().has("error", "file", "can't be looked at");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    chown(folder.path(), Some(65534), Some(65534)).unwrap();

    // Another user's -wal, as it is left where the groups are not shared.
    let holder = Connection::open(folder.db()).unwrap();
    holder.query_row("SELECT count(*) FROM invited_key", [], |_| Ok(())).unwrap();
    let wal = folder.file("invited.sqlite-wal");
    chown(&wal, Some(0), Some(0)).unwrap();
    std::fs::set_permissions(&wal, Permissions::from_mode(0o600)).unwrap();
    as_nobody().has("error", "wal", "can't be read and written");
}

#[test]
fn a_file_that_everybody_can_read_or_write_is_named() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    let with_modes = |of_folder, of_file| {
        std::fs::set_permissions(folder.path(), Permissions::from_mode(of_folder)).unwrap();
        std::fs::set_permissions(folder.db(), Permissions::from_mode(of_file)).unwrap();
    };
    with_modes(0o755, 0o644);
    check(&folder.db(), "warning", "mode", "can read the file");
    with_modes(0o755, 0o666);
    check(&folder.db(), "error", "mode", "can write to the file");
    with_modes(0o777, 0o640);
    check(&folder.db(), "error", "mode", "file's folder");
    // Nobody comes that far.
    with_modes(0o750, 0o666);
    check(&folder.db(), "ok", "mode", "belongs to");
}

#[test]
fn a_damaged_file_is_named() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    for _ in 0..50 {
        done(&folder.db(), &["invite", HOST]);
    }
    let mut file = OpenOptions::new().write(true).open(folder.db()).unwrap();
    file.seek(SeekFrom::Start(4096 * 2)).unwrap();
    file.write_all(&[0x5a; 4096 * 12]).unwrap();
    drop(file);
    check(&folder.db(), "error", "sqlite", "damaged");
}

#[test]
fn a_schema_of_another_version_is_named_and_left_as_it_is() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    for (version, level, piece) in
        [("99", "error", "newer"), ("2", "warning", "older"), ("x", "error", "no schema version")]
    {
        sql(&folder.db(), &format!("UPDATE invited_meta SET value = '{version}' WHERE name = 'schema'"));
        check(&folder.db(), level, "schema", piece);
        let conn = Connection::open(folder.db()).unwrap();
        let stored: String = conn.query_row("SELECT value FROM invited_meta", [], |row| row.get(0)).unwrap();
        assert_eq!(stored, version);
    }
}

#[test]
fn a_file_without_a_write_ahead_log_is_named_and_left_as_it_is() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    sql(&folder.db(), "PRAGMA journal_mode = DELETE");
    check(&folder.db(), "error", "journal", "journal mode delete");
    let conn = Connection::open(folder.db()).unwrap();
    let mode: String = conn.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "delete");
}

#[test]
fn a_lock_that_is_held_is_named() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    let holder = Connection::open(folder.db()).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let found = Found::of(&mut command(&folder.db(), &["--json"]));
    found.has("error", "lock", "locked");
    // It goes on with what can be looked at.
    found.has("ok", "triggers", "");
    assert_eq!(found.level("xmpp").len(), 1);
}

#[test]
fn a_write_ahead_log_that_has_grown_is_named() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    let holder = Connection::open(folder.db()).unwrap();
    holder.query_row("SELECT count(*) FROM invited_key", [], |_| Ok(())).unwrap();
    File::options().write(true).open(folder.file("invited.sqlite-wal")).unwrap().set_len(200 << 20).unwrap();
    check(&folder.db(), "warning", "wal", "200 MB");
}

#[test]
fn lost_triggers_are_named() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    sql(&folder.db(), "DROP TRIGGER invited_prosody_deleted");
    check(&folder.db(), "error", "triggers", "invited_prosody_deleted");
    done(&folder.db(), &["set", HOST, "server", "ejabberd"]);
    check(&folder.db(), "ok", "triggers", "");
    sql(&folder.db(), "DROP TRIGGER invited_ejabberd_used");
    check(&folder.db(), "error", "triggers", "invited_ejabberd_used");
}

#[test]
fn a_disk_without_room_is_named() {
    if !available("root", rustix::process::geteuid().is_root()) {
        return;
    }
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    let mount = folder.file("disk");
    std::fs::create_dir(&mount).unwrap();
    for (fill, level, piece) in
        [("true", "warning", "nearly full"), ("head -c 20M /dev/zero > rest || true", "error", "is full")]
    {
        let script = format!(
            "mount -t tmpfs -o size=8m tmpfs disk && cp invited.sqlite disk && cd disk && ({fill}) 2> /dev/null; \
             exec \"$0\" doctor {HOST} --json --db \"$PWD/invited.sqlite\""
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, PROGRAM]).current_dir(folder.path());
        Found::of(&mut command).has(level, "disk", piece);
    }
}

// ---- Clock and settings. ----

#[test]
fn invites_of_the_future_are_named() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    done(&folder.db(), &["invite", HOST]);
    sql(&folder.db(), &format!("UPDATE invited_invite SET created_at = {}", now() + 3_600));
    check(&folder.db(), "warning", "clock", "1 invites from later");
}

#[test]
fn settings_that_do_not_fit_are_named() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    let closed = closed_port();
    done(&folder.db(), &["set", HOST, "xmpp", &closed.to_string()]);
    done(&folder.db(), &["set", HOST, "ttl", "5min"]);
    let found = Found::of(&mut command(&folder.db(), &["--json"]));
    found.has("warning", "ttl", "5min");
    found.has("error", "xmpp", &closed.to_string());
    found.has("error", "register", "in the browser");
    found.has("warning", "server", "not opened the file yet");
    done(&folder.db(), &["set", HOST, "register", "off"]);
    check(&folder.db(), "ok", "register", "not made");
    sql(&folder.db(), "CREATE TABLE schema_version (x)");
    check(&folder.db(), "error", "server", "ejabberd has opened");
    done(&folder.db(), &["set", HOST, "server", "ejabberd"]);
    sql(&folder.db(), "DROP TABLE schema_version; CREATE TABLE prosodyarchive (x)");
    check(&folder.db(), "error", "server", "prosody has opened");
    sql(&folder.db(), "INSERT INTO invited_setting (host, name, value) VALUES ('b.example', 'server', 'ejabberd')");
    check(&folder.db(), "error", "server", "several hosts");
    sql(
        &folder.db(),
        &format!(
            "UPDATE invited_setting SET value = 'x' WHERE name = 'xmpp'; INSERT INTO invited_setting VALUES ('{HOST}', 'url', 'x')"
        ),
    );
    check(&folder.db(), "error", "url", "can't be read");
    sql(&folder.db(), "ALTER TABLE invited_setting RENAME TO y");
    check(&folder.db(), "error", "settings", "invited_setting");
}

// ---- The XMPP server. ----

fn lines_that_are_missing_older_or_without_effect_are_found(release: Release) {
    for (from, to, why) in [
        ("process_type == \"prosody\"", "process_type == \"none\"", "has none of the lines"),
        ("shown.token, 1)", "shown.token, 0)", "has an older set of the lines"),
        ("refuse(event, \"not-acceptable\"", "lua.pcall(refuse, nil", "made the account invited-doctor-"),
    ] {
        let mut site = Site::new(release);
        site.changes = vec![(from, to.to_owned())];
        create_key(&site.db(), HOST);
        let prosody = Prosody::start(&site);
        done(&site.db(), &["set", HOST, "xmpp", &prosody.addr.to_string()]);
        let before = contents(&site.db());
        let found = Found::of(&mut command(&site.db(), &["--json"]));
        found.has("error", "lines", why);
        assert_eq!(contents(&site.db()), before);
    }
}

fn a_prosody_that_reads_another_file_is_found(release: Release) {
    let mut site = Site::new(release);
    create_key(&site.db(), HOST);
    site.changes = vec![("storage = { invite_token = \"sql\"; invited_use = \"sql\" }", String::new())];
    let prosody = Prosody::start(&site);
    done(&site.db(), &["set", HOST, "xmpp", &prosody.addr.to_string()]);
    let before = contents(&site.db());
    let found = Found::of(&mut command(&site.db(), &["--json"]));
    found.has("error", "invite", "reads another file");
    found.has("ok", "made-up", "");
    found.has("warning", "server", "not opened");
    found.has("warning", "tls", "no TLS");
    assert_eq!(contents(&site.db()), before);
}

fn a_prosody_without_the_modules_is_found(release: Release) {
    let mut site = Site::new(release);
    create_key(&site.db(), HOST);
    site.changes = vec![(
        "modules_enabled = { \"invites\"; \"invites_register\"; \"register_ibr\" }",
        "modules_enabled = { \"register_ibr\" }".to_owned(),
    )];
    let prosody = Prosody::start(&site);
    done(&site.db(), &["set", HOST, "xmpp", &prosody.addr.to_string()]);
    let found = Found::of(&mut command(&site.db(), &["--json"]));
    found.has("error", "invite", "answers");
    found.has("warning", "features", "urn:xmpp:ibr-token:0, urn:xmpp:invite missing");
    assert!(found.help("features").contains("invites_register"));
    // A host that it does not serve.
    done(&site.db(), &["set", "other.example", "xmpp", &prosody.addr.to_string(), "--new-host"]);
    let output = run(&site.db(), &["doctor", "other.example"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("host-unknown"), "{}", describe(&[], &output));
}

fn a_prosody_that_has_a_host_in_ascii_is_found(release: Release) {
    let mut site = Site::new(release);
    create_key(&site.db(), "bücher.example");
    site.changes = vec![("VirtualHost \"example.com\"", "VirtualHost \"xn--bcher-kva.example\"".to_owned())];
    let prosody = Prosody::start(&site);
    done(&site.db(), &["set", "bücher.example", "xmpp", &prosody.addr.to_string()]);
    let output = run(&site.db(), &["doctor", "bücher.example"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("write the host as bücher.example in its configuration"), "{text}");
}

/// What the sandbox keeps from `serve`, such as certificates in an unusual place, is kept from the checks as well.
#[test]
fn servers_are_looked_at_from_within_the_sandbox_of_serve() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    done(&folder.db(), &["set", HOST, "xmpp", &listener.local_addr().unwrap().to_string()]);
    let mut doctor = command(&folder.db(), &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let connection = listener.accept().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", doctor.id())).unwrap();
    assert!(status.contains("\nNoNewPrivs:\t1\n"), "{status}");
    drop((connection, listener));
    assert_eq!(doctor.wait().unwrap().code(), Some(1));
}

fn a_certificate_of_another_name_or_authority_is_found(release: Release) {
    let Some((mut site, _)) = site_with_authority(release) else { return };
    make_certificate(site.folder.path(), "other", "other.example", 90);
    make_certificate(site.folder.path(), "good", HOST, 90);
    for (name, authority, why) in [("other", "ca.pem", "another name"), ("good", "other.pem", "no authority")] {
        site.changes = with_tls(&site, name);
        let prosody = Prosody::start(&site);
        done(&site.db(), &["set", HOST, "xmpp", &prosody.addr.to_string()]);
        let found = Found::of(command(&site.db(), &["--json"]).env("SSL_CERT_FILE", site.folder.file(authority)));
        // We ourselves take any on this machine.
        found.has("warning", "certificate", why);
        found.has("ok", "invite", "");
    }
}

fn a_certificate_that_ends_soon_is_found(release: Release) {
    let Some((mut site, _)) = site_with_authority(release) else { return };
    make_certificate(site.folder.path(), "soon", HOST, 10);
    site.changes = with_tls(&site, "soon");
    let direct = closed_port();
    site.changes.push((
        "c2s_direct_tls_ports = { }",
        format!("c2s_direct_tls_ports = {{ {} }}\nc2s_direct_tls_interfaces = {{ \"127.0.0.1\" }}", direct.port()),
    ));
    let _prosody = Prosody::start(&site);
    done(&site.db(), &["set", HOST, "xmpp", &format!("tls:{direct}")]);
    let found = Found::with_authority(&site.db(), site.folder.path());
    found.has("warning", "certificate", "good until 20");
    found.has("ok", "invite", "");
}

fn a_certificate_of_another_machine_must_be_good(release: Release) {
    let Some(ip) = address_of_this_machine() else { return };
    let Some((mut site, _)) = site_with_authority(release) else { return };
    make_certificate(site.folder.path(), "other", "other.example", 90);
    site.changes = with_tls(&site, "other");
    site.changes
        .push(("c2s_interfaces = { \"127.0.0.1\" }", format!("c2s_interfaces = {{ \"127.0.0.1\", \"{ip}\" }}")));
    let prosody = Prosody::start(&site);
    done(&site.db(), &["set", HOST, "xmpp", &SocketAddr::new(ip, prosody.addr.port()).to_string()]);
    let found = Found::with_authority(&site.db(), site.folder.path());
    found.has("error", "certificate", "another name");
    found.has("warning", "invite", "no invite is shown");
    drop(prosody);
    site.changes.retain(|(piece, _)| piece.starts_with("c2s_interfaces"));
    let prosody = Prosody::start(&site);
    done(&site.db(), &["set", HOST, "xmpp", &SocketAddr::new(ip, prosody.addr.port()).to_string()]);
    let found = Found::with_authority(&site.db(), site.folder.path());
    found.has("error", "tls", "no TLS");
    found.has("warning", "invite", "no invite is shown");
}

/// How a server begins that offers registration, and neither TLS nor tokens.
const BEGINNING: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
                         xmlns:stream='http://etherx.jabber.org/streams' id='1' version='1.0'><stream:features>\
                         <register xmlns='http://jabber.org/features/iq-register'/></stream:features>";

/// As Prosody does where it has no certificate for the host.
#[test]
fn a_server_that_offers_tls_and_fails_at_it_needs_a_certificate() {
    let offer = BEGINNING.replace("<register", "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><register");
    // A fatal alert, handshake_failure (RFC 8446 section 6).
    let proceed = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>".to_owned();
    let alert = "\u{15}\u{3}\u{3}\0\u{2}\u{2}\u{28}".to_owned();
    let addr = play_xmpp(vec![("version=", offer), ("<starttls", proceed), ("\u{16}\u{3}", alert)]);
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    done(&folder.db(), &["set", HOST, "xmpp", &addr.to_string()]);
    let found = Found::of(&mut command(&folder.db(), &["--json"]));
    found.has("error", "xmpp", "TLS failed");
    assert!(found.help("xmpp").contains("a certificate for example.com"), "{found:#?}");
}

#[test]
fn a_server_that_takes_any_token_is_found() {
    let taken = || "<iq type='result' id='probe'/>".to_owned();
    let addr = play_xmpp(vec![("version=", BEGINNING.to_owned()), ("</iq>", taken()), ("</iq>", taken())]);
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    done(&folder.db(), &["set", HOST, "xmpp", &addr.to_string()]);
    check(&folder.db(), "error", "made-up", "nobody has made");
}

#[test]
fn a_server_that_hangs_is_given_up_and_the_invite_taken_back() {
    let addr = play_xmpp(vec![("version=", BEGINNING.to_owned())]);
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    done(&folder.db(), &["set", HOST, "xmpp", &addr.to_string()]);
    let silent = play_xmpp(vec![("no such text", String::new())]);
    done(&folder.db(), &["set", HOST, "url", &format!("http://{silent}")]);
    let start = Instant::now();
    let found = Found::of(&mut command(&folder.db(), &["--json"]));
    found.has("error", "invite", "in time");
    found.has("error", "url", "in time");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(done(&folder.db(), &["invites", HOST, "--all"]), "");
}

#[test]
fn an_ejabberd_of_another_time_zone_is_found() {
    let Some(site) = ejabberd::Site::new() else { return };
    site.set_up();
    let ejabberd = Ejabberd::start(&site);
    site.done(&["set", HOST, "xmpp", &ejabberd.xmpp.to_string()]);
    let before = contents(&site.db());
    for (zone, piece) in [("EST5", "expired that are still good"), ("CET-1", "still takes an invite")] {
        Found::of(command(&site.db(), &["--json"]).env("TZ", zone)).has("error", "zone", piece);
    }
    assert_eq!(contents(&site.db()), before);
}

#[test]
fn an_ejabberd_whose_accounts_are_in_sql_is_found() {
    let Some(mut site) = ejabberd::Site::new() else { return };
    site.changes = vec![("auth_method: internal", "auth_method: sql".to_owned())];
    site.set_up();
    let ejabberd = Ejabberd::start(&site);
    site.done(&["set", HOST, "xmpp", &ejabberd.xmpp.to_string()]);
    let found = Found::of(&mut command(&site.db(), &["--json"]));
    found.has("error", "server", "its accounts in this file, and there are none");
    let account = serde_json::json!({ "user": "ana", "host": HOST, "password": "old" });
    ejabberd.api("register", account);
    Found::of(&mut command(&site.db(), &["--json"])).has("ok", "server", "ejabberd");
}

#[test]
fn an_ejabberd_that_reads_another_file_is_found() {
    let Some(mut site) = ejabberd::Site::new() else { return };
    site.set_up();
    site.changes = vec![("db_type: sql", "db_type: mnesia".to_owned())];
    let ejabberd = Ejabberd::start(&site);
    site.done(&["set", HOST, "xmpp", &ejabberd.xmpp.to_string()]);
    let found = Found::of(&mut command(&site.db(), &["--json"]));
    found.has("error", "invite", "reads another file");
}

// ---- The public address. ----

#[test]
fn a_web_server_that_is_not_there_is_named_with_what_was_tried() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    let closed = closed_port();
    done(&folder.db(), &["set", HOST, "url", &format!("http://{closed}")]);
    check(&folder.db(), "error", "url", &format!("refused (os error 111) at {closed}"));
    done(&folder.db(), &["set", HOST, "url", "https://no-such-host.invalid"]);
    check(&folder.db(), "error", "url", "https://no-such-host.invalid");
}

#[test]
fn what_a_web_server_gets_wrong_is_named() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    let server = Server::start(&folder.db());
    let cases: [(OnRequest, OnAnswer, &str, &str, &str); 20] = [
        (|_| Err("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n".to_owned()), same, "error", "api", "502"),
        (|_| Err("SSH-2.0-x\r\n\r\n".to_owned()), same, "error", "url", "does not answer as a web server"),
        (
            |_| Err("HTTP/1.1 301 Moved\r\nLocation: https://example.com/invites_api?x=y\r\n\r\n".to_owned()),
            same,
            "error",
            "redirect",
            "leads on to https://example.com/invites_api",
        ),
        (|request| only(request, "/invites_api"), same, "error", "page", "404"),
        (|request| only(request, "/invite"), same, "error", "api", "/invites_api"),
        (|request| without(request, "/register"), same, "error", "form", "/register"),
        (|request| at_invite(request, "200 OK"), same, "error", "page", "another program's"),
        (|request| at_invite(request, "429 Too Many"), same, "warning", "unknown", "too many"),
        (|request| at_invite(request, "429 Too Many"), same, "warning", "page", "too many"),
        (|request| at_invite(request, "502 Bad Gateway"), same, "error", "page", "answers 502"),
        (|request| at_invite(request, "500 Internal"), same, "error", "page", "answers 500"),
        // A token in it is not shown, wherever it stands.
        (
            |request| at_invite(request, "301 Moved\r\nLocation: /x/TOKEN?TOKEN"),
            same,
            "error",
            "redirect",
            "on to /x/…",
        ),
        (
            |request| if request.contains("T /invite?") { Err(String::new()) } else { keep(request) },
            same,
            "error",
            "page",
            "closes",
        ),
        (
            |request| {
                if request.starts_with("HEAD") { Err("HTTP/1.1 405 No\r\n\r\n".to_owned()) } else { keep(request) }
            },
            same,
            "error",
            "page",
            "HEAD answers 405",
        ),
        (|request| Ok(request.replace(" /invite?", " /chat/invite?")), same, "error", "page", "another path"),
        (keep, |answer| answer.replace("Link: ", "X-Link: "), "error", "page", "Link"),
        (
            keep,
            |answer| answer.replacen("\r\n", "\r\nAccess-Control-Allow-Origin: *\r\n", 1),
            "error",
            "page",
            "Access-Control",
        ),
        (
            keep,
            |answer| answer.replace("Cache-Control: no-store", "Cache-Control: max-age=60"),
            "error",
            "page",
            "Cache-Control",
        ),
        (
            keep,
            |answer| match answer.starts_with("HTTP/1.1 404") {
                true => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_owned(),
                false => answer,
            },
            "error",
            "unknown",
            "answers 200",
        ),
        (
            keep,
            |answer| {
                let (head, rest) = answer.split_once("Date: ").unwrap();
                format!("{head}Date: Sun, 06 Nov 1994 08:49:37 GMT{}", &rest[rest.find('\r').unwrap()..])
            },
            "warning",
            "clock",
            "behind",
        ),
    ];
    for (on_request, on_answer, level, word, piece) in cases {
        let web = Web::start_with(server.addr, None, on_request, on_answer);
        done(&folder.db(), &["set", HOST, "url", &format!("http://{}", web.addr)]);
        check(&folder.db(), level, word, piece);
    }
    // With a page elsewhere, nobody needs ours.
    let web = Web::start_with(server.addr, None, |request| without(request, "/register"), same);
    done(&folder.db(), &["set", HOST, "url", &format!("http://{}", web.addr)]);
    done(&folder.db(), &["set", HOST, "page", &format!("http://{}/elsewhere#{{uri}}", web.addr)]);
    check(&folder.db(), "warning", "form", "/register");
    check(&folder.db(), "error", "elsewhere", "404");
    done(&folder.db(), &["set", HOST, "page", &format!("http://{}/?x={{token}}", web.addr)]);
    check(&folder.db(), "ok", "elsewhere", "is there");
    assert_eq!(done(&folder.db(), &["invites", HOST, "--all"]), "");
}

/// What the web server adds in earnest.
fn forwarded(request: &str) -> Result<String, String> {
    Ok(request.replacen("\r\n", "\r\nX-Forwarded-For: 192.0.2.9\r\n", 1))
}

fn serve(folder: &Folder, listen: &str, args: &[&str]) -> Server {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", listen, "--db"]).arg(folder.db()).args(args).env("TMPDIR", folder.path());
    Server::spawn(&mut command)
}

#[test]
fn a_proxy_that_hides_its_clients_is_found() {
    let Some(ip) = address_of_this_machine().filter(|_| has_openssl()) else { return };
    let folder = Folder::new();
    make_certificate(folder.path(), "ca", "", 100);
    make_certificate(folder.path(), "web", "localhost", 90);
    create_key(&folder.db(), HOST);
    let (trust, here, elsewhere) = (&["--trust-proxy"][..], "127.0.0.1:0", format!("{ip}:0"));
    let unreadable: OnRequest = |request| Ok(request.replacen("\r\n", "\r\nForwarded: for=unknown\r\n", 1));
    let is_private = match ip {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    };
    let cases: [(&str, &[&str], OnRequest, &str, &str); 8] = [
        (here, trust, forwarded, "ok", "tells the client's address"),
        (here, &[], forwarded, "warning", "does not believe the web server, which"),
        (here, trust, keep, "warning", "does not tell"),
        (here, &[], keep, "warning", "does not tell"),
        (here, trust, unreadable, "warning", "tells no address"),
        (&elsewhere, &[], forwarded, "warning", "does not believe the web server, which"),
        (&elsewhere, &[], keep, "warning", "for that of all clients"),
        (&elsewhere, trust, forwarded, if is_private { "ok" } else { "warning" }, "the web server"),
    ];
    for (listen, args, on_request, level, piece) in cases {
        let server = serve(&folder, listen, args);
        let web = Web::start_with(server.addr, Some((folder.path(), "web")), on_request, same);
        done(&folder.db(), &["set", HOST, "url", &format!("https://localhost:{}", web.addr.port())]);
        let found = Found::with_authority(&folder.db(), folder.path());
        found.has(level, "proxy", piece);
        found.has("ok", "page", "of this file");
        if level == "warning" {
            assert!(found.help("proxy").contains("--trust-proxy"), "{found:#?}");
        }
        // Nobody else is told.
        let token = done(&folder.db(), &["invite", HOST]);
        let page = server.get(&format!("/invite?{}", token.trim_end().split_once('?').unwrap().1));
        assert_eq!((page.status, page.header("x-invited-client")), (200, None));
    }
    // Without TLS there need be no web server at all.
    let server = serve(&folder, here, &[]);
    done(&folder.db(), &["set", HOST, "url", &format!("http://{}", server.addr)]);
    check(&folder.db(), "ok", "proxy", "no web server");
}

#[test]
fn a_server_of_another_file_is_found_and_so_is_a_base_path() {
    let (folder, other) = (Folder::new(), Folder::new());
    create_key(&folder.db(), HOST);
    create_key(&other.db(), HOST);
    let server = Server::start(&other.db());
    done(&folder.db(), &["set", HOST, "url", &format!("http://{}", server.addr)]);
    check(&folder.db(), "error", "page", "another file");
    let server = Server::start(&folder.db());
    let web = Web::start_with(server.addr, None, |request| Ok(request.replace(" /chat/", " /")), same);
    done(&folder.db(), &["set", HOST, "url", &format!("http://{}/chat", web.addr)]);
    check(&folder.db(), "ok", "page", "of this file");
    check(&folder.db(), "ok", "api", "");
}

#[test]
fn a_bad_certificate_of_the_web_server_is_named_and_no_token_is_sent() {
    if !has_openssl() {
        return;
    }
    let folder = Folder::new();
    make_certificate(folder.path(), "ca", "", 100);
    make_certificate(folder.path(), "other", "other.example", 90);
    make_certificate(folder.path(), "soon", "localhost", 10);
    create_key(&folder.db(), HOST);
    let server = Server::start(&folder.db());
    for (name, level, piece) in [("other", "error", "another name"), ("soon", "warning", "good until 20")] {
        let web = Web::start(server.addr, Some((folder.path(), name)));
        done(&folder.db(), &["set", HOST, "url", &format!("https://localhost:{}", web.addr.port())]);
        let found = Found::with_authority(&folder.db(), folder.path());
        found.has(level, "https", piece);
        found.has("ok", "api", "");
        match name {
            "other" => found.has("warning", "page", "no invite is shown"),
            _ => found.has("ok", "page", "of this file"),
        }
        assert_eq!(server.log().contains("reason=shown"), name == "soon");
        let page = format!("https://localhost:{}/?x={{token}}", web.addr.port());
        done(&folder.db(), &["set", HOST, "page", &page]);
        let level = if name == "other" { "error" } else { "ok" };
        Found::with_authority(&folder.db(), folder.path()).has(level, "elsewhere", "https://localhost");
        done(&folder.db(), &["unset", HOST, "page"]);
    }
}

#[test]
fn an_address_without_tls_on_the_way_is_named() {
    let Some(ip) = address_of_this_machine() else { return };
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", &SocketAddr::new(ip, 0).to_string(), "--db"]).arg(folder.db());
    let server = Server::spawn(command.env("TMPDIR", folder.path()));
    done(&folder.db(), &["set", HOST, "url", &format!("http://{}", server.addr)]);
    let found = Found::of(&mut self::command(&folder.db(), &["--json"]));
    found.has("warning", "url", "without TLS");
    found.has("warning", "page", "no invite is shown");
}

#[test]
fn whether_http_leads_to_https_is_told() {
    // An address of the loopback that no other run of the tests has.
    let [.., high, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, high, low, 77);
    let listeners = [80, 443].map(|port| TcpListener::bind((ip, port)));
    if !available("root", listeners.iter().all(Result::is_ok)) || !has_openssl() {
        return;
    }
    let [plain, tls] = listeners.map(Result::unwrap);
    let folder = Folder::new();
    make_certificate(folder.path(), "ca", "", 100);
    make_certificate(folder.path(), "web", &ip.to_string(), 90);
    create_key(&folder.db(), HOST);
    let server = Server::start(&folder.db());
    done(&folder.db(), &["set", HOST, "url", &format!("https://{ip}")]);
    Web::start_on(tls, server.addr, Some((folder.path(), "web")), keep, same);
    // The first time nobody leads on, the second time somebody does.
    static LEADS_ON: AtomicBool = AtomicBool::new(false);
    let on_request: OnRequest = |request| match LEADS_ON.load(Ordering::Relaxed) {
        true => Err("HTTP/1.1 301 Moved\r\nLocation: https://example.com/invite\r\n\r\n".to_owned()),
        false => keep(request),
    };
    Web::start_on(plain, server.addr, None, on_request, same);
    let found = || Found::with_authority(&folder.db(), folder.path());
    found().has("warning", "redirect", "answers 404");
    LEADS_ON.store(true, Ordering::Relaxed);
    found().has("ok", "redirect", "https");
    found().has("ok", "https", "");
}

// ---- Leaving no trace. ----

#[test]
fn what_a_killed_doctor_leaves_behind_goes_with_the_next_one_or_with_pruning() {
    for next in [&["doctor", HOST][..], &["prune"]] {
        let folder = Folder::new();
        create_key(&folder.db(), HOST);
        let addr = play_xmpp(vec![("version=", BEGINNING.to_owned())]);
        done(&folder.db(), &["set", HOST, "xmpp", &addr.to_string()]);
        let mut killed = command(&folder.db(), &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let conn = Connection::open(folder.db()).unwrap();
        let count = || -> i64 { conn.query_row("SELECT count(*) FROM invited_invite", [], |row| row.get(0)).unwrap() };
        let deadline = Instant::now() + Duration::from_secs(10);
        while count() == 0 {
            assert!(Instant::now() < deadline, "doctor makes no invite");
            std::thread::yield_now();
        }
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert_eq!(count(), 1);
        sql(&folder.db(), "UPDATE invited_invite SET expires_at = 1000");
        done(&folder.db(), &["set", HOST, "xmpp", &closed_port().to_string()]);
        run(&folder.db(), next);
        assert_eq!(count(), 0);
        let rows: i64 = conn.query_row("SELECT count(*) FROM prosody", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 0);
    }
}

#[test]
fn the_exit_code_says_whether_something_is_wrong() {
    let folder = Folder::new();
    let output = run(&folder.db(), &["doctor", HOST]);
    assert_eq!(output.status.code(), Some(1));
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(out.contains("\nerror    file         there is no database"), "{out}");
    assert_eq!(err, "invited: something is wrong with example.com: 1 error\n");
    fails(&folder.db(), 2, &["doctor"]);
    fails(&folder.db(), 2, &["doctor", HOST, "--bogus"]);
}

// ---- What the tests share. ----

/// What a run found.
#[derive(Debug)]
struct Found {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Found {
    fn of(command: &mut Command) -> Found {
        let output: Output = command.output().unwrap();
        let findings = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", describe(&[], &output)));
        let found = Found { code: output.status.code(), findings };
        let errors = found.findings.iter().any(|finding| finding["level"] == "error");
        assert_eq!(found.code, Some(i32::from(errors)), "{found:?}");
        for finding in &found.findings {
            let word = finding["check"].as_str().unwrap();
            assert!(CHECKS.contains(&word) || ["form", "elsewhere"].contains(&word), "{word}");
            // What is not well has a way out.
            assert_eq!(finding["level"] == "ok", finding.get("help").is_none(), "{finding}");
        }
        found
    }

    /// With an authority of the test's own in place of those of the system.
    fn with_authority(db: &Path, folder: &Path) -> Found {
        Found::of(command(db, &["--json"]).env("SSL_CERT_FILE", folder.join("ca.pem")).env_remove("SSL_CERT_DIR"))
    }

    #[track_caller]
    fn has(&self, level: &str, check: &str, piece: &str) {
        let text = |finding: &&Value| finding["text"].as_str().unwrap().contains(piece);
        let mut these = self.findings.iter().filter(|finding| finding["check"] == check && finding["level"] == level);
        assert!(these.any(|finding| text(&finding)), "no {level} {check} with {piece}: {self:#?}");
    }

    fn level(&self, check: &str) -> Vec<&str> {
        let these = self.findings.iter().filter(|finding| finding["check"] == check);
        these.map(|finding| finding["level"].as_str().unwrap()).collect()
    }

    fn help(&self, check: &str) -> &str {
        let finding = self.findings.iter().find(|finding| finding["check"] == check).unwrap();
        finding["help"].as_str().unwrap()
    }

    fn all(&self, level: &str) -> bool {
        self.findings.iter().all(|finding| finding["level"] == level)
    }
}

fn command(db: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["doctor", HOST]).args(more).env("INVITED_DB", db).stdin(Stdio::null());
    command
}

#[track_caller]
fn check(db: &Path, level: &str, check: &str, piece: &str) {
    Found::of(&mut command(db, &["--json"])).has(level, check, piece);
}

fn sql(db: &Path, sql: &str) {
    Connection::open(db).unwrap().execute_batch(sql).unwrap();
}

/// All that the file holds of invites and settings, in both tables; what it leaves as it was.
fn contents(db: &Path) -> Vec<String> {
    let conn = Connection::open(db).unwrap();
    let mut rows = Vec::new();
    for sql in [
        "SELECT token || state || expires_at || uses_left FROM invited_invite",
        "SELECT token FROM invited_use",
        "SELECT key || value FROM prosody",
        "SELECT host || name || value FROM invited_setting",
    ] {
        let mut query = conn.prepare(sql).unwrap();
        rows.extend(query.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap));
    }
    if let Ok(mut query) = conn.prepare("SELECT token FROM invite_token") {
        rows.extend(query.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap));
    }
    rows
}

/// A port of this machine on which nobody listens.
fn closed_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// A site with a database, and an authority in its folder.
fn site_with_authority(release: Release) -> Option<(Site, String)> {
    if !has_openssl() {
        return None;
    }
    let site = Site::new(release);
    make_certificate(site.folder.path(), "ca", "", 100);
    let key = create_key(&site.db(), HOST);
    Some((site, key))
}

fn keep(request: &str) -> Result<String, String> {
    Ok(request.to_owned())
}

fn same(answer: String) -> String {
    answer
}

/// Passes one path on, and nothing else.
fn only(request: &str, path: &str) -> Result<String, String> {
    let is_it = [" ", "?"].iter().any(|end| request.contains(&format!(" {path}{end}")));
    if is_it { keep(request) } else { not_found() }
}

/// Answers all requests for pages of invites with this, in which TOKEN stands for theirs.
fn at_invite(request: &str, answer: &str) -> Result<String, String> {
    match request.split_once(" /invite?").and_then(|(_, rest)| rest.split_once(' ')) {
        Some((token, _)) => Err(format!("HTTP/1.1 {}\r\nContent-Length: 0\r\n\r\n", answer.replace("TOKEN", token))),
        None => keep(request),
    }
}

/// Passes on all but one path.
fn without(request: &str, path: &str) -> Result<String, String> {
    let is_it = [" ", "?"].iter().any(|end| request.contains(&format!(" {path}{end}")));
    if is_it || request.contains("/elsewhere") { not_found() } else { keep(request) }
}

fn not_found() -> Result<String, String> {
    Err("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned())
}
