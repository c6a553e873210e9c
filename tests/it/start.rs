//! The ways to be started: several sockets of either kind, those of a supervisor, inetd; and what a supervisor hears.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Folder, PATIENCE, PROGRAM, Server, available, connect, create_key, done, fails, run};

/// `invited serve` with these arguments, on this database.
fn serve(db: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--db"]).arg(db).args(args).env("TMPDIR", db.parent().unwrap());
    command
}

/// `invited serve` with a socket handed over as systemd does.
fn activated(db: &Path, listener: impl Into<OwnedFd>, args: &str) -> Command {
    let mut command = Command::new("sh");
    // The process keeps its id, which LISTEN_PID has to name, when the program takes the shell's place.
    let script = format!("export LISTEN_PID=$$ LISTEN_FDS=1; exec {PROGRAM} serve {args} 3<&0 0</dev/null");
    command.args(["-c", &script]).env("INVITED_DB", db).env("TMPDIR", db.parent().unwrap());
    command.stdin(Stdio::from(listener.into()));
    command
}

/// Waits for the end and returns the exit code.
fn wait(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    panic!("it does not end");
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
}

/// The first line of the answer to a request on this connection; empty if there is none.
fn status_line(stream: impl std::io::Read + std::io::Write, target: &str) -> String {
    let mut stream = BufReader::new(stream);
    let request = format!("GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let mut line = String::new();
    if stream.get_mut().write_all(request.as_bytes()).is_ok() {
        let _ = stream.read_line(&mut line);
    }
    line.trim_end().to_owned()
}

fn unix(path: &Path) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                return stream;
            }
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK";

#[test]
fn every_listed_address_is_served_and_a_unix_socket_goes_at_the_end() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let [one, two] = ["one", "two"].map(|name| folder.file(name));
    let listen = [one.display(), two.display()].map(|path| format!("unix:{path}"));
    let args = ["--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--listen", &listen[0], "--listen", &listen[1]];
    // What a server that was killed has left there.
    drop(UnixListener::bind(&one).unwrap());
    let mut server = Server::spawn(&mut serve(&folder.db(), &[&args[..], &["--socket-mode", "600"]].concat()));
    let log = server.log_with("two");
    let second = log.lines().find_map(|line| line.strip_prefix("listening on http://[::1]:")).unwrap();
    assert_eq!(server.get("/").status, 200);
    assert_eq!(status_line(connect(format!("[::1]:{second}").parse().unwrap()), "/"), OK);
    for path in [&one, &two] {
        assert_eq!(status_line(unix(path), "/"), OK);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    let taken = fails(&folder.db(), 75, &["serve", "--listen", &listen[0]]);
    assert!(taken.contains(&listen[0]) && taken.contains("another program"), "{taken}");
    assert_eq!(status_line(unix(&one), "/"), OK, "the socket of a living server is taken away");
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    assert!(!one.exists() && !two.exists());
}

/// A mode that came later would leave a moment in which everybody can connect.
#[test]
fn a_unix_socket_has_its_mode_from_the_start() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let sockets = Folder::new();
    let [guests, admin] = ["guests", "admin"].map(|name| format!("unix:{}", sockets.file(name).display()));
    for (umask, mode, option) in [("000", 0o660, &[][..]), ("077", 0o666, &["--socket-mode", "666"])] {
        let seen = inotify::init(CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&seen, sockets.path(), WatchFlags::CREATE | WatchFlags::ATTRIB).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh", PROGRAM, "serve", "--listen", "127.0.0.1:0"]);
        command.args(["--listen", &guests, "--admin-listen", &admin]).args(option);
        let mut server = Server::spawn(command.env("INVITED_DB", folder.db()).env("TMPDIR", folder.path()));
        server.log_with("admin on");
        for name in ["guests", "admin"] {
            assert_eq!(sockets.file(name).metadata().unwrap().permissions().mode() & 0o777, mode);
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&seen, &mut buffer);
        let mut created = 0;
        while let Ok(event) = events.next() {
            assert!(event.events() == ReadFlags::CREATE, "{event:?}");
            created += 1;
        }
        assert_eq!(created, 2);
        server.signal("TERM");
        assert_eq!(server.wait(), Some(0));
    }
}

#[test]
fn a_file_that_is_no_socket_is_left_where_it_is() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let path = folder.file("precious");
    std::fs::write(&path, "precious").unwrap();
    fails(&folder.db(), 75, &["serve", "--listen", &format!("unix:{}", path.display())]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn sockets_of_a_supervisor_are_served_tcp_and_unix() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let mut child = activated(&folder.db(), tcp.try_clone().unwrap(), "").spawn().unwrap();
    assert_eq!(status_line(connect(address), "/"), OK);
    signal(&child, "TERM");
    assert_eq!(wait(&mut child), Some(0));

    let path = folder.file("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = activated(&folder.db(), listener.try_clone().unwrap(), "").spawn().unwrap();
    assert_eq!(status_line(unix(&path), "/"), OK);
    signal(&child, "TERM");
    assert_eq!(wait(&mut child), Some(0));
    assert!(path.exists(), "the supervisor's socket was removed");

    let datagram = UnixDatagram::bind(folder.file("datagram")).unwrap();
    let output = activated(&folder.db(), OwnedFd::from(datagram), "").output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{output:?}");
}

/// The socket stays with the supervisor, so that clients that come between two processes wait and are served by the next.
#[test]
fn a_restart_with_a_socket_of_a_supervisor_refuses_nobody_under_load() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let start = || activated(&folder.db(), listener.try_clone().unwrap(), "").stderr(Stdio::null()).spawn().unwrap();
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let client = || {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let line = status_line(connect(address), "/");
                    assert_eq!(line, OK, "after {} requests", served.load(Ordering::Relaxed));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let clients = [client(), client(), client(), client()];
        for round in 1..=8 {
            let mut child = start();
            let deadline = Instant::now() + PATIENCE;
            while served.load(Ordering::Relaxed) < round * 100 && Instant::now() < deadline {
                std::thread::yield_now();
            }
            signal(&child, "TERM");
            assert_eq!(wait(&mut child), Some(0));
        }
        let mut last = start();
        stop.store(true, Ordering::Relaxed);
        // Those that wait still are served: each client ends with an answer.
        let deadline = Instant::now() + PATIENCE;
        while clients.iter().any(|client| !client.is_finished()) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        signal(&last, "TERM");
        assert_eq!(wait(&mut last), Some(0));
    });
    assert!(served.load(Ordering::Relaxed) >= 800);
}

#[test]
fn nothing_stays_resident_with_idle_exit_and_the_next_client_is_served_by_the_next_process() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for _ in 0..2 {
        let client = connect(address);
        let mut child = activated(&folder.db(), listener.try_clone().unwrap(), "--idle-exit 1s").spawn().unwrap();
        assert_eq!(status_line(client, "/"), OK);
        assert_eq!(wait(&mut child), Some(0));
    }
    // One that is open is not idle.
    let mut client = connect(address);
    let mut child = activated(&folder.db(), listener.try_clone().unwrap(), "--idle-exit 1s").spawn().unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(child.try_wait().unwrap().is_none(), "it ends while a client is connected");
    assert_eq!(status_line(client, "/"), OK);
    assert_eq!(wait(&mut child), Some(0));
}

/// A connection as inetd hands it over: both ends.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = connect(listener.local_addr().unwrap());
    (client, listener.accept().unwrap().0)
}

/// Starts the program as inetd does without `wait`: the connection is stdin, stdout and stderr.
fn with_connection(db: &Path, args: &[&str], connection: &TcpStream) -> Child {
    let fd = || Stdio::from(OwnedFd::from(connection.try_clone().unwrap()));
    serve(db, &[&["--inetd"], args].concat()).stdin(fd()).stdout(fd()).stderr(fd()).spawn().unwrap()
}

#[test]
fn inetd_without_wait_serves_one_connection_and_ends() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "example.com");
    let (mut client, theirs) = connection();
    let mut child = with_connection(&folder.db(), &[], &theirs);
    drop(theirs);
    client
        .write_all(format!("GET /invites_api?key={key} HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.0\r\n\r\n").as_bytes())
        .unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    // Nothing of the log is among the answers.
    assert!(all.starts_with("HTTP/1.1 201 Created\r\n") && all.ends_with("</html>"), "{all}");
    assert!(all.contains("\r\n\r\nHTTP/1.1 200 OK\r\n") && !all.contains("time="), "{all}");
    assert_eq!(wait(&mut child), Some(0));
    assert_eq!(done(&folder.db(), &["invites", "example.com"]).lines().count(), 1);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count(), 0);
}

#[test]
fn inetd_without_wait_tells_the_client_alone_that_it_cannot_serve() {
    let folder = Folder::new();
    let (mut client, theirs) = connection();
    let mut child = with_connection(&folder.db(), &[], &theirs);
    drop(theirs);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{all}");
    assert!(!all.contains("sqlite"), "{all}");
    assert_eq!(wait(&mut child), Some(66));
}

#[test]
fn inetd_with_wait_hands_over_the_listening_socket() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for _ in 0..2 {
        let waiting = connect(address);
        let stdin = OwnedFd::from(listener.try_clone().unwrap());
        let mut child = serve(&folder.db(), &["--inetd", "--idle-exit", "1s"]).stdin(stdin).spawn().unwrap();
        assert_eq!(status_line(waiting, "/"), OK);
        assert_eq!(status_line(connect(address), "/"), OK);
        assert_eq!(wait(&mut child), Some(0));
    }
    let stderr = fails(&folder.db(), 78, &["serve", "--inetd"]);
    assert!(stderr.contains("stdin is no socket"), "{stderr}");
}

#[test]
fn the_supervisor_hears_of_readiness_of_life_and_of_the_end() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    for path in [folder.file("notify").display().to_string(), format!("@invited-test-{}", std::process::id())] {
        let notes = match path.strip_prefix('@') {
            Some(name) => {
                use std::os::linux::net::SocketAddrExt as _;
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
                UnixDatagram::bind_addr(&address).unwrap()
            }
            None => UnixDatagram::bind(&path).unwrap(),
        };
        notes.set_read_timeout(Some(PATIENCE)).unwrap();
        let next = || {
            let mut bytes = [0; 256];
            let length = notes.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        };
        let mut command = serve(&folder.db(), &["--listen", "127.0.0.1:0"]);
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
        let mut server = Server::spawn(&mut command);
        let mut heard: Vec<String> = (0..6).map(|_| next()).collect();
        assert!(heard.contains(&"READY=1".to_owned()), "{heard:?}");
        assert!(heard.iter().filter(|note| *note == "WATCHDOG=1").count() >= 3, "{heard:?}");
        server.signal("TERM");
        while heard.last().unwrap() != "STOPPING=1" {
            heard.push(next());
        }
        assert_eq!(server.wait(), Some(0));
    }
}

#[test]
fn sighup_loses_nothing() {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "example.com");
    let mut server = Server::start(&folder.db());
    for _ in 0..20 {
        server.signal("HUP");
        assert_eq!(server.get(&format!("/invites_api?key={key}")).status, 201);
    }
    assert!(server.is_alive());
    assert_eq!(done(&folder.db(), &["invites", "example.com"]).lines().count(), 20);
}

#[test]
fn the_exit_code_of_serve_tells_a_supervisor_what_is_wrong_and_other_commands_keep_theirs() {
    let folder = Folder::new();
    let serves = |code: i32, args: &[&str]| fails(&folder.db(), code, &[&["serve"], args].concat());
    serves(64, &["--bogus"]);
    serves(64, &["--listen", "nowhere"]);
    serves(66, &[]);
    fails(&folder.db(), 1, &["list", "example.com"]);
    fails(&folder.db(), 2, &["list"]);
    create_key(&folder.db(), "example.com");
    serves(73, &["--listen", "unix:/no/such/folder/socket"]);
    let server = Server::start(&folder.db());
    serves(75, &["--listen", &server.addr.to_string()]);
    drop(server);
    let no_folder = serve(&folder.db(), &[]).env("TMPDIR", "/no/such/folder").output().unwrap();
    assert_eq!(no_folder.status.code(), Some(73), "{no_folder:?}");

    let conn = Connection::open(folder.db()).unwrap();
    conn.execute("UPDATE invited_meta SET value = '9999' WHERE name = 'schema'", []).unwrap();
    drop(conn);
    serves(78, &[]);
    assert_eq!(run(&folder.db(), &["list", "example.com"]).status.code(), Some(1));
    std::fs::write(folder.db(), "just some text, ".repeat(100)).unwrap();
    serves(78, &[]);
    if available("root", rustix::process::geteuid().is_root()) {
        std::fs::set_permissions(folder.db(), std::fs::Permissions::from_mode(0o600)).unwrap();
        let copy = folder.file("invited");
        assert!(Command::new("cp").arg(PROGRAM).arg(&copy).status().unwrap().success());
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).arg("serve");
        let output = command.env("INVITED_DB", folder.db()).output().unwrap();
        assert_eq!(output.status.code(), Some(77), "{output:?}");
    }
}

#[test]
fn what_is_not_needed_is_given_up() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let server = Server::start(&folder.db());
    assert_eq!(server.status_figure("NoNewPrivs"), 1);
    // How far the kernel goes along; that it does what it should is a test of its own.
    let log = server.log_with("event=hardened");
    assert!(["full", "partial", "none"].iter().any(|level| log.contains(&format!("landlock={level}\n"))), "{log}");
}

/// What strangers send, at once and each on a connection of its own; `connect` opens one. Those that are half open stay so
/// until the end. None may keep an honest client, by the same way in, from its answer.
fn assert_withstands<S: std::io::Read + std::io::Write>(way: &str, connect: impl Fn() -> S) {
    let long_head = format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "a: b\r\n".repeat(5_000));
    let hostile: [&[u8]; 10] = [
        b"",
        b"G",
        b"POST /invites_api HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n{",
        b"POST /invites_api HTTP/1.1\r\nHost: a\r\nContent-Length: 40000000000\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        long_head.as_bytes(),
    ];
    let mut open = Vec::new();
    for round in 0..100 {
        for bytes in hostile {
            let mut stream = connect();
            // It may be refused, or have to give way, before all is sent.
            let _ = stream.write_all(bytes);
            open.push(stream);
        }
        if round % 25 == 0 {
            assert_eq!(status_line(connect(), "/"), OK, "{way}, after {} hostile ones", open.len());
        }
    }
    assert_eq!(status_line(connect(), "/"), OK, "{way}, at the end");
}

#[test]
fn a_thousand_hostile_clients_are_withstood_by_every_way_in() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();

    let path = folder.file("socket");
    let listen = format!("unix:{}", path.display());
    let mut server = Server::spawn(&mut serve(&folder.db(), &["--listen", "127.0.0.1:0", "--listen", &listen]));
    assert_withstands("a Unix socket", || unix(&path));
    assert_eq!(server.get("/").status, 200, "the other socket is shut by what comes in by the first");
    assert!(server.is_alive() && server.status_figure("VmHWM") < 64 * 1024);
    drop(server);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut child = activated(&folder.db(), listener.try_clone().unwrap(), "").stderr(Stdio::null()).spawn().unwrap();
    assert_withstands("a supervisor's socket", || connect(address));
    signal(&child, "TERM");
    assert_eq!(wait(&mut child), Some(0));

    let stdin = OwnedFd::from(listener.try_clone().unwrap());
    let mut inetd = serve(&folder.db(), &["--inetd"]).stdin(stdin).stderr(Stdio::null()).spawn().unwrap();
    assert_withstands("inetd's socket", || connect(address));
    signal(&inetd, "TERM");
    assert_eq!(wait(&mut inetd), Some(0));

    // A process for each: each has one hostile client alone, and ends with it.
    for bytes in [&b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 40000000000\r\n\r\n"[..], b"\0\0\0", b""] {
        let (mut client, theirs) = connection();
        let mut child = with_connection(&folder.db(), &[], &theirs);
        drop(theirs);
        client.write_all(bytes).unwrap();
        drop(client);
        assert_eq!(wait(&mut child), Some(0), "{bytes:?}");
    }
}

/// As when another server is suspended, and its clients wait.
#[test]
fn a_socket_whose_queue_is_full_is_not_waited_for() {
    let folder = Folder::new();
    create_key(&folder.db(), "example.com");
    let path = folder.file("socket");
    let socket = |flags| {
        rustix::net::socket_with(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, flags, None)
    };
    let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
    let busy = socket(rustix::net::SocketFlags::CLOEXEC).unwrap();
    rustix::net::bind(&busy, &address).unwrap();
    rustix::net::listen(&busy, 0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = socket(rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC).unwrap();
        if rustix::net::connect(&client, &address).is_err() {
            break;
        }
        waiting.push(client);
    }
    let listen = format!("unix:{}", path.display());
    let stderr = fails(&folder.db(), 75, &["serve", "--listen", &listen]);
    assert!(stderr.contains("another program does"), "{stderr}");
    assert!(path.exists());
}
