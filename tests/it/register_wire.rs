//! The way from the form to the XMPP server: servers that stall, lie or echo, played by the tests; and TLS with the real
//! Prosody, on this very machine and as if it were another one.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, sleep};
use std::time::Duration;

use rusqlite::Connection;

use crate::harness::{Folder, PATIENCE, PROGRAM, Reply, Server, available, create_key, done, wait_until};
use crate::kinds;
use crate::prosody::{Prosody, Release, Site, with_both_releases};
use crate::register::{PASSWORD, assert_no_secret_is_in, form, invite, names, problem, register, set_xmpp, show};
use crate::register_prosody::{accounts, can_log_in};

with_both_releases! {
    any_certificate_will_do_on_this_very_machine
    to_another_machine_only_a_good_certificate_will_do
}

/// How many registrations go on at a time, as the README says.
const AT_A_TIME: usize = 16;

/// How many of them with one invite.
const OF_ONE_INVITE: usize = 8;

/// How a server begins.
pub const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
                      xmlns:stream='http://etherx.jabber.org/streams' id='1' version='1.0'>";

/// What a server offers that has no TLS.
pub const PLAIN: &str = "<stream:features><register xmlns='http://jabber.org/features/iq-register'/></stream:features>";

/// What a server offers that has it.
const STARTTLS: &str = "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>";

// ---- Servers that the tests play. ----

/// What a bad server goes on with after its first words.
#[derive(Clone, Copy)]
enum Then {
    /// It waits until it is left.
    Silence,
    /// It closes the connection.
    Close,
    /// This, as fast as it is taken.
    Flood(&'static str),
    /// This, now and then.
    Drip(&'static str),
}

#[test]
fn a_server_that_stalls_or_talks_nonsense_is_given_up() {
    use Then::{Close, Drip, Flood, Silence};
    let features = format!("{HEADER}<stream:features>");
    let cases: [(&str, Then, &str); 12] = [
        ("", Silence, "in time"),
        ("<?xml version='1.0'?><stream:str", Silence, "in time"),
        (&format!("{HEADER}<stream:features><mechanis"), Silence, "in time"),
        (HEADER, Drip(" "), "in time"),
        ("", Close, "closes the connection"),
        (HEADER, Flood(" "), "more than 128 KiB"),
        (&features, Flood("text"), "more than 128 KiB"),
        (&features, Flood("<a>"), "too large"),
        ("<!DOCTYPE x [<!ENTITY a 'aaaa'>]>", Silence, "forbids"),
        ("HTTP/1.1 400 Bad Request\r\n\r\n", Close, "no XMPP"),
        ("\0\u{1}\u{2}<", Close, "no"),
        (
            &format!(
                "{HEADER}<stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>"
            ),
            Close,
            "host-unknown",
        ),
    ];
    let folder = Folder::new();
    let db = folder.db();
    let played = cases.each_ref().map(|case| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        // A host of its own for each, since the address is a setting of the host.
        let host = format!("port{}.example", address.port());
        create_key(&db, &host);
        done(&db, &["set", &host, "xmpp", &address.to_string()]);
        let link = done(&db, &["invite", &host]);
        (case, listener, link.trim_end().split_once('?').unwrap().1.to_owned())
    });
    let server = Server::start(&db);
    thread::scope(|scope| {
        for ((first, then, why), listener, token) in &played {
            scope.spawn(move || misbehave(listener, first, *then));
            let server = &server;
            scope.spawn(move || {
                let reply = register(server, token, "ada", PASSWORD);
                assert_eq!(reply.status, 503, "{first}: {reply:?}");
                assert!(reply.header("retry-after").is_some());
                let log = server.log_with(&format!("XMPP server {}:", listener.local_addr().unwrap()));
                let at = format!("{}:", listener.local_addr().unwrap());
                let line = log.lines().find(|line| line.contains(&at)).unwrap();
                assert!(line.contains("reason=server") && line.contains(why), "{first}: {line}");
                assert_no_secret_is_in(&log, token);
                // Nothing is left behind that would hold the invite back.
                assert_eq!(form(server, token).status, 200);
            });
        }
    });
}

fn misbehave(listener: &TcpListener, first: &str, then: Then) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut write = |text: &str| stream.write_all(text.as_bytes());
    if write(first).is_err() {
        return;
    }
    match then {
        Then::Silence => drop(heard_until_the_end(stream)),
        Then::Close => {
            // Bytes that nobody has read would reset the connection.
            stream.shutdown(Shutdown::Write).unwrap();
            drop(heard_until_the_end(stream));
        }
        Then::Flood(text) => while write(&text.repeat(100)).is_ok() {},
        Then::Drip(text) => {
            while write(text).is_ok() {
                sleep(Duration::from_millis(200));
            }
        }
    }
}

#[test]
fn as_many_guests_as_may_wait_do_and_nobody_else_has_to() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, IpAddr::V4(Ipv4Addr::LOCALHOST));
    let tokens: Vec<String> = (0..=AT_A_TIME).map(|_| invite(&folder.db(), &[])).collect();
    let (next, waiting) = tokens.split_first().unwrap();
    thread::scope(|scope| {
        let guests = waiting.iter().map(|token| {
            let server = &server;
            scope.spawn(move || register(server, token, "ada", PASSWORD))
        });
        let guests: Vec<_> = guests.collect();
        let asked: Vec<_> = waiting.iter().map(|_| listener.accept().unwrap()).collect();

        for target in ["/".to_owned(), format!("/invite?{next}"), format!("/register?t={next}")] {
            assert_eq!(server.get(&target).status, 200, "{target}");
        }
        let reply = register(&server, next, "ada", PASSWORD);
        assert_eq!(reply.status, 503);
        assert!(reply.header("retry-after").is_some() && reply.body.contains("in a few seconds"), "{}", reply.body);
        server.log_with("reason=busy");
        // What is wrong with the form can be said all the same.
        assert_eq!(register(&server, next, "ada", "short").status, 400);

        drop(asked);
        for guest in guests {
            assert_eq!(guest.join().unwrap().status, 503);
        }
    });
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "one guest too many was let through");
}

#[test]
fn one_invite_does_not_take_all_places() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, IpAddr::V4(Ipv4Addr::LOCALHOST));
    let greedy = invite(&folder.db(), &["--uses", "50"]);
    let other = invite(&folder.db(), &[]);
    thread::scope(|scope| {
        let guests: Vec<_> = (0..AT_A_TIME)
            .map(|number| {
                let (server, greedy) = (&server, &greedy);
                scope.spawn(move || register(server, greedy, &format!("guest{number}"), PASSWORD))
            })
            .collect();
        let asked: Vec<_> = (0..OF_ONE_INVITE).map(|_| listener.accept().unwrap()).collect();
        scope.spawn(|| register(&server, &other, "ada", PASSWORD));
        // Whoever comes with another invite is let through at once.
        drop(listener.accept().unwrap());
        drop(asked);
        // What of the greedy ones comes later finds nobody who speaks with it.
        listener.set_nonblocking(true).unwrap();
        while guests.iter().any(|guest| !guest.is_finished()) {
            drop(listener.accept());
            thread::yield_now();
        }
    });
}

/// The account may be there: to say that the invite is still good would be a lie.
#[test]
fn a_lost_answer_is_told_as_what_it_is() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, IpAddr::V4(Ipv4Addr::LOCALHOST));
    for uses in ["1", "2"] {
        let token = invite(&folder.db(), &["--uses", uses]);
        let reply = thread::scope(|scope| {
            scope.spawn(|| {
                let steps = [
                    ("<stream:stream", format!("{HEADER}{PLAIN}")),
                    ("</iq>", "<iq type='result' id='1'/>".to_owned()),
                    ("</iq>", "</stream:stream>".to_owned()),
                ];
                // As Prosody does, having made the account.
                let conn = Connection::open(folder.db()).unwrap();
                conn.busy_timeout(PATIENCE).unwrap();
                let delete = || conn.execute("DELETE FROM prosody WHERE key = ?1", [&token]).unwrap();
                talk_then(&listener, &steps, delete);
            });
            register(&server, &token, "ada", PASSWORD)
        });
        assert_eq!(reply.status, 503, "{reply:?}");
        assert!(reply.body.contains("try to log in as ada") && !reply.body.contains("still good"), "{}", reply.body);
        assert_eq!(names(&show(&folder.db(), &token)), ["ada"]);
    }
    server.log_with("reason=lost");
}

#[test]
fn a_condition_of_the_servers_own_is_not_logged() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, IpAddr::V4(Ipv4Addr::LOCALHOST));
    let token = invite(&folder.db(), &[]);
    let word = PASSWORD.replace(' ', "-");
    let stanza = format!("<error type='cancel'><{word} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>");
    let stream = format!("<stream:error><{word} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>");
    for answer in [format!("<iq type='error' id='1'>{stanza}</iq>"), stream] {
        let steps = [("<stream:stream", format!("{HEADER}{PLAIN}")), ("</iq>", answer)];
        let reply = thread::scope(|scope| {
            scope.spawn(|| talk(&listener, &steps));
            register(&server, &token, "ada", PASSWORD)
        });
        assert_eq!(reply.status, 503);
    }
    let log = server.log_with("reason=server");
    assert!(!log.contains(&word), "{log}");
}

#[test]
fn what_a_server_echoes_is_not_logged_where_it_is_secret() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, IpAddr::V4(Ipv4Addr::LOCALHOST));
    let token = invite(&folder.db(), &[]);
    let answers = [
        format!("the password {PASSWORD} is bad"),
        format!("the password with {token} is bad"),
        // What is cut off must not leave a half of it.
        format!("the password is bad {}{PASSWORD}", "x".repeat(175)),
        "the password is bad\n<&>\u{7f}".to_owned(),
    ];
    for text in &answers {
        let reply = thread::scope(|scope| {
            scope.spawn(|| talk(&listener, &refusing("not-acceptable", text)));
            register(&server, &token, "ada", PASSWORD)
        });
        assert_eq!(reply.status, 400);
        assert!(problem(&reply, "password").contains("too weak") && !reply.body.contains(text), "{}", reply.body);
    }
    let log = server.log_with("the password is bad<&>");
    assert_eq!(log.matches("reason=password-refused").count(), answers.len());
    assert_no_secret_is_in(&log, &token);
    assert!(!log.contains(&PASSWORD[..5]), "{log}");
}

#[test]
fn a_server_in_trouble_leaves_the_invite_good() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, IpAddr::V4(Ipv4Addr::LOCALHOST));
    let token = invite(&folder.db(), &[]);
    for (condition, status) in [("internal-server-error", 503), ("resource-constraint", 429), ("forbidden", 403)] {
        let reply = thread::scope(|scope| {
            scope.spawn(|| talk(&listener, &refusing(condition, "so it is")));
            register(&server, &token, "ada", PASSWORD)
        });
        assert_eq!(reply.status, status, "{condition}: {reply:?}");
        assert_eq!(reply.header("retry-after").is_some(), status != 403, "{condition}");
        assert_eq!(show(&folder.db(), &token)["state"], "pending");
    }
}

#[test]
fn a_server_that_takes_tls_back_hears_no_secret() {
    let folder = Folder::new();
    let (server, listener) = start(&folder, IpAddr::V4(Ipv4Addr::LOCALHOST));
    let token = invite(&folder.db(), &[]);
    let tls = "urn:ietf:params:xml:ns:xmpp-tls";
    for (answer, why) in [
        (format!("<failure xmlns='{tls}'/></stream:stream>"), "refuses to start the TLS"),
        // What came before TLS would be taken for an answer that came after it.
        (format!("<proceed xmlns='{tls}'/><iq type='result' id='1'/>"), "goes on without TLS"),
    ] {
        let steps = [("<stream:stream", format!("{HEADER}{STARTTLS}")), ("<starttls", answer)];
        let (reply, heard) = thread::scope(|scope| {
            let heard = scope.spawn(|| talk(&listener, &steps));
            (register(&server, &token, "ada", PASSWORD), heard.join().unwrap())
        });
        assert_eq!(reply.status, 503, "{why}");
        assert!(server.log_with(why).contains("reason=server"));
        assert_no_secret_is_in(&heard, &token);
    }
}

#[test]
fn another_machine_without_tls_hears_no_secret() {
    let Some(ip) = address_of_this_machine() else { return };
    let folder = Folder::new();
    let (server, listener) = start(&folder, ip);
    let token = invite(&folder.db(), &[]);
    let steps = [("<stream:stream", format!("{HEADER}{PLAIN}"))];
    let (reply, heard) = thread::scope(|scope| {
        let heard = scope.spawn(|| talk(&listener, &steps));
        (register(&server, &token, "ada", PASSWORD), heard.join().unwrap())
    });
    assert_eq!(reply.status, 503);
    assert!(heard.contains("to='example.com'") && !heard.contains("<iq"), "{heard}");
    assert_no_secret_is_in(&heard, &token);
    assert!(server.log_with("reason=server").contains("offers no TLS"), "{}", server.log());
    assert_eq!(show(&folder.db(), &token)["state"], "pending");
}

// ---- TLS with the real Prosody. ----

fn any_certificate_will_do_on_this_very_machine(release: Release) {
    if !has_openssl() {
        return;
    }
    let mut site = Site::new(release);
    make_certificate(site.folder.path(), "own", "another.example", None);
    let direct = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    site.changes = with_tls(&site, "own");
    site.changes.push((
        "c2s_direct_tls_ports = { }",
        format!("c2s_direct_tls_ports = {{ {} }}\nc2s_direct_tls_interfaces = {{ \"127.0.0.1\" }}", direct.port()),
    ));
    create_key(&site.db(), "example.com");
    let prosody = Prosody::start(&site);
    let server = Server::start(&site.db());
    for (name, address) in [("ada", format!("localhost:{}", prosody.addr.port())), ("bob", format!("tls:{direct}"))] {
        set_xmpp(&site.db(), &address);
        let reply = register(&server, &kinds::invite(&site, &[]), name, PASSWORD);
        assert_eq!(reply.status, 200, "{address}: {reply:?}");
    }
    assert_eq!(accounts(&site), ["ada", "bob"]);
    // The test's own client has no TLS.
    drop(prosody);
    site.changes.clear();
    let prosody = Prosody::start(&site);
    assert!(can_log_in(&prosody, "ada", PASSWORD) && can_log_in(&prosody, "bob", PASSWORD));
}

fn to_another_machine_only_a_good_certificate_will_do(release: Release) {
    let Some(ip) = address_of_this_machine().filter(|_| has_openssl()) else { return };
    let mut site = Site::new(release);
    let folder = site.folder.path();
    make_certificate(folder, "ca", "", None);
    make_certificate(folder, "other-ca", "", None);
    make_certificate(folder, "good", "example.com", Some("ca"));
    make_certificate(folder, "other-name", "another.example", Some("ca"));
    create_key(&site.db(), "example.com");
    let token = kinds::invite(&site, &[]);
    let start = |site: &mut Site, certificate: &str, authority: &str| -> (Server, Prosody) {
        site.changes = with_tls(site, certificate);
        let interfaces = format!("c2s_interfaces = {{ \"127.0.0.1\", \"{ip}\" }}");
        site.changes.push(("c2s_interfaces = { \"127.0.0.1\" }", interfaces));
        let prosody = Prosody::start(site);
        set_xmpp(&site.db(), &SocketAddr::new(ip, prosody.addr.port()).to_string());
        let mut command = with_authority(site.folder.path(), authority, &["serve", "--listen", "127.0.0.1:0"]);
        (Server::spawn(&mut command), prosody)
    };
    let attempt = |site: &mut Site, certificate: &str, authority: &str| -> (Reply, String) {
        let (server, _prosody) = start(site, certificate, authority);
        let reply = register(&server, &token, "ada", PASSWORD);
        (reply, server.log_with("/register"))
    };
    for (certificate, authority, why) in
        [("other-name", "ca", "certificate not valid for name"), ("good", "other-ca", "UnknownIssuer")]
    {
        let (reply, log) = attempt(&mut site, certificate, authority);
        assert_eq!(reply.status, 503, "{certificate}: {reply:?}");
        assert!(
            log.contains("reason=server") && log.contains("invalid peer certificate") && log.contains(why),
            "{log}"
        );
        assert_eq!(accounts(&site), [""; 0]);
    }
    let (reply, log) = attempt(&mut site, "good", "ca");
    assert_eq!(reply.status, 200, "{log}");
    assert_eq!(accounts(&site), ["ada"]);

    // A folder of authorities whose files lie elsewhere, as on some systems: the server and `doctor` both find them.
    let elsewhere = Folder::new();
    std::fs::rename(site.folder.file("ca.pem"), elsewhere.file("ca.pem")).unwrap();
    std::fs::create_dir(site.folder.file("certs")).unwrap();
    symlink(elsewhere.file("ca.pem"), site.folder.file("certs/ca.pem")).unwrap();
    let token = kinds::invite(&site, &[]);
    let (server, _prosody) = start(&mut site, "good", "certs");
    let reply = register(&server, &token, "bob", PASSWORD);
    assert_eq!(reply.status, 200, "{}", server.log());
    let mut doctor = with_authority(site.folder.path(), "certs", &["doctor", "example.com"]);
    let found = String::from_utf8(doctor.output().unwrap().stdout).unwrap();
    // It is good, if not for long.
    let is_it = |line: &str| line.starts_with("warning  certificate ") && line.contains("is good until");
    assert!(found.lines().any(is_it), "{found}");
    // Another file in the place of that one, as when the authorities are brought up to date, is read as well.
    std::fs::copy(elsewhere.file("ca.pem"), elsewhere.file("new")).unwrap();
    std::fs::rename(elsewhere.file("new"), elsewhere.file("ca.pem")).unwrap();
    let token = kinds::invite(&site, &[]);
    assert_eq!(register(&server, &token, "cleo", PASSWORD).status, 200, "{}", server.log());
}

// ---- What the tests share. ----

/// A server whose XMPP server is a listener of the test's own.
pub fn start(folder: &Folder, ip: IpAddr) -> (Server, TcpListener) {
    create_key(&folder.db(), "example.com");
    let listener = TcpListener::bind((ip, 0)).unwrap();
    set_xmpp(&folder.db(), &listener.local_addr().unwrap().to_string());
    (Server::start(&folder.db()), listener)
}

/// Takes one connection; waits for each of these texts and then says what belongs to it, until the other side is gone.
/// Returns all that it has heard.
pub fn talk(listener: &TcpListener, steps: &[(&str, String)]) -> String {
    talk_then(listener, steps, || 0)
}

/// The same, and does something before the last answer.
pub fn talk_then(listener: &TcpListener, steps: &[(&str, String)], then: impl Fn() -> usize) -> String {
    let mut stream = accept(listener);
    let mut heard = String::new();
    for (number, (awaited, answer)) in steps.iter().enumerate() {
        let mut piece = String::new();
        let mut bytes = [0; 4096];
        while !piece.contains(awaited) {
            match stream.read(&mut bytes).unwrap() {
                0 => return heard + &piece,
                length => piece.push_str(&String::from_utf8_lossy(&bytes[..length])),
            }
        }
        if number + 1 == steps.len() {
            then();
        }
        stream.write_all(answer.as_bytes()).unwrap();
        heard.push_str(&piece);
    }
    heard + &heard_until_the_end(stream)
}

/// The next connection, which must come in time.
pub fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    wait_until("the XMPP server is asked", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    listener.set_nonblocking(false).unwrap();
    let (stream, _) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn heard_until_the_end(mut stream: TcpStream) -> String {
    let (mut heard, mut answered) = (Vec::new(), false);
    let mut bytes = [0; 4096];
    // A client that gives up may reset the connection.
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        heard.extend_from_slice(&bytes[..length]);
        if !answered && String::from_utf8_lossy(&heard).contains("<iq type='get' id='fields'") {
            answered = true;
            let _ = stream.write_all(b"<iq type='result' id='fields'><query xmlns='jabber:iq:register'/></iq>");
        }
    }
    String::from_utf8_lossy(&heard).into_owned()
}

/// A server that takes the token and refuses the registration.
pub fn refusing(condition: &str, text: &str) -> [(&'static str, String); 4] {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let xmlns = "xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'";
    let error = format!("<error type='modify'><{condition} {xmlns}/><text {xmlns}>{text}</text></error>");
    [
        ("<stream:stream", format!("{HEADER}{PLAIN}")),
        ("</iq>", "<iq type='result' id='1'/>".to_owned()),
        ("</iq>", format!("<iq type='error' id='2'>{error}</iq>")),
        ("</stream:stream>", "</stream:stream>".to_owned()),
    ]
}

/// An address of this machine that is not its loopback. No packet is sent for it.
fn address_of_this_machine() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    let found = socket.connect("198.51.100.1:9").and_then(|()| socket.local_addr());
    let ip = found.ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback());
    available("network", ip.is_some());
    ip
}

pub fn has_openssl() -> bool {
    available("openssl", Command::new("openssl").arg("version").output().is_ok())
}

/// Makes `NAME.pem` and `NAME.key`: a certificate for a host, signed by another one of the folder or by itself; an authority
/// if there is no host.
pub fn make_certificate(folder: &Path, name: &str, host: &str, issuer: Option<&str>) {
    std::fs::write(folder.join("openssl.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(["req", "-config", "openssl.cnf", "-x509", "-nodes", "-days", "2"]);
    command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", &format!("/CN={name}")]);
    command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
    if host.is_empty() {
        command.args(["-addext", "basicConstraints=critical,CA:TRUE"]);
    } else {
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        command.args(["-addext", &format!("subjectAltName=DNS:{host}")]);
    }
    if let Some(issuer) = issuer {
        command.args(["-CA", &format!("{issuer}.pem"), "-CAkey", &format!("{issuer}.key")]);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// What makes Prosody demand TLS, with this certificate.
fn with_tls(site: &Site, certificate: &str) -> Vec<(&'static str, String)> {
    let [key, certificate] = ["key", "pem"].map(|kind| site.seen_by_prosody(&format!("{certificate}.{kind}")));
    let ssl = format!("ssl = {{ key = \"{key}\", certificate = \"{certificate}\" }}");
    vec![
        ("\"saslauth\" }", "\"saslauth\"; \"tls\" }".to_owned()),
        ("c2s_require_encryption = false", format!("c2s_require_encryption = true\n{ssl}")),
    ]
}

/// `invited` that trusts one authority alone, or those of a folder.
fn with_authority(folder: &Path, authority: &str, args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args).env("INVITED_DB", folder.join("invited.sqlite")).env("TMPDIR", folder);
    let several = folder.join(authority);
    match several.is_dir() {
        true => command.env("SSL_CERT_DIR", several).env_remove("SSL_CERT_FILE"),
        false => command.env("SSL_CERT_FILE", several.with_extension("pem")).env_remove("SSL_CERT_DIR"),
    };
    command
}
