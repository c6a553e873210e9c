//! What all tests share: folders, the program, a running server, and a client that sends exactly the bytes it is given.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The longest that anything may take here before a test is taken to hang.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_invited");

/// Asks again and again until it is so; fails where that takes too long.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for this: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A folder of one test's own, removed at its end.
pub struct Folder(PathBuf);

impl Folder {
    /// A new folder in the one for temporary files.
    pub fn new() -> Folder {
        Folder::within(&std::env::temp_dir())
    }

    /// A new folder within another.
    pub fn within(parent: &Path) -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("invited-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where a test keeps its database.
    pub fn db(&self) -> PathBuf {
        self.file("invited.sqlite")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the program on a database and returns whatever comes of it.
pub fn run(db: &Path, args: &[&str]) -> Output {
    let output = Command::new(PROGRAM).args(args).env("INVITED_DB", db).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("cannot run {PROGRAM}: {error}"))
}

/// Runs the program, expects it to succeed, and returns its stdout.
pub fn done(db: &Path, args: &[&str]) -> String {
    let output = run(db, args);
    assert!(output.status.success(), "{}", describe(args, &output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program, expects it to fail with this exit code and nothing on stdout, and returns its stderr.
pub fn fails(db: &Path, code: i32, args: &[&str]) -> String {
    let output = run(db, args);
    assert_eq!(output.status.code(), Some(code), "{}", describe(args, &output));
    assert!(output.stdout.is_empty(), "{}", describe(args, &output));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("invited: ") && stderr.ends_with('\n'), "{stderr:?}");
    stderr
}

/// A command and what came of it, for the message of a failing test.
pub fn describe(args: &[&str], output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("invited {}\n{}\nstdout: {out}\nstderr: {err}", args.join(" "), output.status)
}

/// Makes a key for a host, making the database if there is none.
pub fn create_key(db: &Path, host: &str) -> String {
    done(db, &["create", host]).trim_end().to_owned()
}

/// Makes a file as this version of the schema left it, with the key `key/secret` of example.com.
pub fn old_file(db: &Path, version: usize) -> rusqlite::Connection {
    let conn = rusqlite::Connection::open(db).unwrap();
    conn.busy_timeout(PATIENCE).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    for step in 1..=version {
        let name = if step == 1 { "schema.sql".to_owned() } else { format!("schema-{step}.sql") };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store").join(name);
        conn.execute_batch(&std::fs::read_to_string(path).unwrap()).unwrap();
    }
    conn.execute("INSERT INTO invited_meta VALUES ('schema', ?1)", [version.to_string()]).unwrap();
    conn.execute_batch(
        "INSERT INTO invited_key (id, host, digest, created_at, allow) VALUES
         ('key', 'example.com', X'2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b', 1, 'account')",
    )
    .unwrap();
    conn
}

/// `invited serve` on a free port of this machine; killed when it is dropped.
pub struct Server {
    child: Child,
    pub addr: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts it and waits until it listens.
    pub fn start(db: &Path) -> Server {
        // A server that is killed leaves the folder of its private socket behind; so that goes with the test's folder.
        let folder = db.parent().unwrap();
        Server::spawn(
            Command::new(PROGRAM).args(["serve", "--listen", "127.0.0.1:0", "--db"]).arg(db).env("TMPDIR", folder),
        )
    }

    /// Starts a command that prints `listening on http://ADDR` on stderr, and waits for that line.
    pub fn spawn(command: &mut Command) -> Server {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&log);
        let (found, address) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).is_ok_and(|read| read > 0) {
                if let Some(address) = line.trim_end().strip_prefix("listening on http://") {
                    let _ = found.send(address.parse::<SocketAddr>().unwrap());
                }
                shared.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        match address.recv_timeout(PATIENCE) {
            Ok(addr) => Server { child, addr, log },
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the server does not listen; its stderr: {}", log.lock().unwrap());
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// What it has written to stderr, once this text is in it: a line is written before its answer, but read by a thread.
    pub fn log_with(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "the log has no {text}: {}", self.log());
            std::thread::yield_now();
        }
        self.log()
    }

    /// `GET` of a target, with nothing but a Host.
    pub fn get(&self, target: &str) -> Reply {
        self.request("GET", target, &[])
    }

    /// A request without a body, on a connection of its own.
    pub fn request(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Reply {
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        exchange(self.addr, text.as_bytes())
    }

    /// A request with a body, on a connection of its own.
    pub fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        exchange(self.addr, &[text.as_bytes(), body].concat())
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill -{name} failed");
    }

    /// Waits for its end and returns its exit code; none if a signal ended it.
    pub fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the server does not end; its stderr: {}", self.log());
    }

    /// Whether it is still running.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// A figure of `/proc/PID/status`, such as `VmRSS` (in kB), `VmHWM` (in kB) or `Threads`.
    pub fn status_figure(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("stderr of the server:\n{}", self.log());
        }
    }
}

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    /// The one value of a header, if it is there.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let first = values.next();
        assert!(values.next().is_none(), "{name} is there more than once: {self:?}");
        first
    }

    /// The token in the Location of a new invite.
    pub fn token(&self) -> String {
        let location = self.header("location").unwrap_or_else(|| panic!("no Location: {self:?}"));
        location.split_once('?').unwrap_or_else(|| panic!("no query: {location}")).1.to_owned()
    }
}

/// Connects with limits on reading and writing, so that no test hangs.
pub fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Connects from an address of this machine, all of which begin with 127.
pub fn connect_from(source: [u8; 4], addr: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    bind(&socket, &SocketAddr::from((source, 0))).unwrap();
    connect(&socket, &addr).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends exactly these bytes on a connection of their own and reads the first answer.
pub fn exchange(addr: SocketAddr, bytes: &[u8]) -> Reply {
    let mut stream = connect(addr);
    stream.write_all(bytes).unwrap();
    let is_head = bytes.starts_with(b"HEAD ");
    read_reply(&mut BufReader::new(stream), is_head)
        .unwrap_or_else(|error| panic!("no answer to {:?}: {error}", String::from_utf8_lossy(bytes)))
}

/// Reads one answer; an error where the connection ends or stalls before it is whole.
pub fn read_reply(stream: &mut BufReader<TcpStream>, is_head: bool) -> std::io::Result<Reply> {
    let ended = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(ended());
        }
        let line = line.strip_suffix("\r\n").expect("a line of a head ends in CRLF");
        if line.is_empty() {
            break;
        }
        lines.push(line.to_owned());
    }
    let status = lines[0].split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    let headers: Vec<(String, String)> = lines[1..]
        .iter()
        .map(|line| {
            let (name, value) = line.split_once(':').expect("a header line");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        })
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").map(|(_, value)| value.parse().unwrap());
    let mut body = Vec::new();
    match length {
        _ if is_head => {}
        Some(length) => {
            body.resize(length, 0);
            stream.read_exact(&mut body)?;
        }
        None => {
            stream.read_to_end(&mut body)?;
        }
    }
    Ok(Reply { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

/// Whether a program that a test needs is there. Where it is not, the test says so and skips, unless it is required.
pub fn available(name: &str, found: bool) -> bool {
    let required = std::env::var("INVITED_TEST_REQUIRE").unwrap_or_default();
    if !found && required.split(',').any(|word| word.trim() == name) {
        panic!("{name} is required by INVITED_TEST_REQUIRE and is not there");
    }
    if !found {
        eprintln!("skipped: needs {name}, which is not there");
    }
    found
}
