//! How much memory hundreds of hostile clients cost the server.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Folder, PROGRAM, Server, available, connect_from, create_key, done};

/// Hostile connections at the same time: as many as the server takes.
const HOSTILE: usize = 512;

/// The most memory that they may cost, in kB. An optimised build takes a third less, and 9 MB by itself: 32 MB in all.
const COST_KB: u64 = 32 * 1024;

/// The longest that an honest request may take meanwhile.
const HONEST_LIMIT: Duration = Duration::from_secs(10);

const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";

/// A host with a large logo and style, and an invite for it.
struct Site {
    folder: Folder,
    key: String,
    token: String,
}

impl Site {
    fn new() -> Site {
        let folder = Folder::new();
        let key = create_key(&folder.db(), "example.com");
        let logo = [&b"\x89PNG\r\n\x1a\n"[..], &[7; 65_000]].concat();
        fs::write(folder.file("logo"), logo).unwrap();
        fs::write(folder.file("style"), "a{color:red}".repeat(5_000)).unwrap();
        for name in ["logo", "style"] {
            let file = folder.file(name).display().to_string();
            done(&folder.db(), &["set", "example.com", name, &file]);
        }
        let link = done(&folder.db(), &["invite", "example.com"]);
        let token = link.trim().split_once('?').unwrap().1.to_owned();
        Site { folder, key, token }
    }

    /// All kinds of hostile requests.
    fn kinds(&self) -> Vec<Kind> {
        let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        let post = |target: &str, media_type: &str, body: &str| {
            let head = format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Type: {media_type}\r\n");
            format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
        };
        let members: String = (0..5_000).map(|number| format!("\"{number:x}\":0,")).collect();
        let api = format!("/invites_api?key={}", self.key);
        let page = format!("/invite?{}", self.token);
        let html = "Accept: text/html\r\n";
        let half = |request: String| request[..request.len() - 10].to_owned();
        let reading = [
            ("a form of many empty fields", post("/register", FORM, &"a&".repeat(32_767))),
            ("a form of many roles", post(&api, FORM, &"roles=x&".repeat(8_000))),
            ("JSON of many members", post("/register", JSON, &format!("{{{members}\"\":0}}"))),
            ("JSON of a long list", post(&api, JSON, &format!("{{\"roles\":[{}\"\"]}}", "\"\",".repeat(21_000)))),
            ("JSON of many brackets", post("/register", JSON, &"[".repeat(65_000))),
            ("JSON of many nested brackets", post("/register", JSON, &format!("{{\"a\":{}", "[".repeat(65_000)))),
            ("many pairs", get(&format!("/invites_api?{}", "a=b&".repeat(3_900)), "")),
            (
                "many pairs with a good key",
                get(&format!("/invites_api/invites?key={}&{}", self.key, "a=b&".repeat(3_800)), ""),
            ),
            ("a long token", get(&format!("/invite?{}", "T".repeat(15_000)), html)),
            ("many slashes", get(&"/".repeat(16_000), html)),
            ("many languages", get("/", &format!("{html}Accept-Language: {}\r\n", "a,".repeat(7_800)))),
            ("many commas", get(&page, &format!("{html}Forwarded: {}\r\n", ",".repeat(15_800)))),
            ("many semicolons", get(&page, &format!("{html}Forwarded: {}\r\n", ";".repeat(15_800)))),
            ("many words", get(&page, &format!("{html}Connection: {}\r\n", "a,".repeat(7_800)))),
            ("a large page", get(&page, html)),
            ("a large logo", get("/invite/logo/example.com", "")),
        ];
        let deaf = [
            ("a body that does not end", half(post("/register", FORM, &"a".repeat(65_536)))),
            ("a small body that does not end", half(post("/register", FORM, &"a".repeat(4_096)))),
            ("a head that does not end", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(16_000))),
            ("pages that nobody takes", get(&page, html).repeat(60)),
            ("logos that nobody takes", get("/invite/logo/example.com", "").repeat(60)),
        ];
        let kind = |is_deaf| move |(name, request)| Kind { name, request, is_deaf };
        reading.into_iter().map(kind(false)).chain(deaf.into_iter().map(kind(true))).collect()
    }

    fn serve(&self, before: &mut Command) -> Server {
        before.args(["serve", "--listen", "127.0.0.1:0", "--trust-proxy", "--log-level", "error", "--db"]);
        Server::spawn(before.arg(self.folder.db()).env("TMPDIR", self.folder.path()))
    }
}

/// A hostile request.
struct Kind {
    name: &'static str,
    request: String,
    /// It reads nothing.
    is_deaf: bool,
}

/// That many connections at the same time, all from one address; meanwhile honest clients are served.
fn attack(server: &Server, kinds: &[Kind]) {
    const EACH: usize = 8;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let honest = scope.spawn(|| {
            let mut served = 0;
            while !is_over.load(Ordering::SeqCst) {
                let start = Instant::now();
                // Where all workers are busy for long, it is told to try again.
                while server.get("/nothing").status != 404 {
                    assert!(start.elapsed() < HONEST_LIMIT, "an honest request is refused");
                }
                let took = start.elapsed();
                assert!(took < HONEST_LIMIT, "an honest request took {took:?}");
                served += 1;
            }
            served
        });
        let some = |first: usize| {
            move || (first..first + EACH).map(|number| hostile(server.addr, &kinds[number % kinds.len()])).collect()
        };
        let crowd: Vec<_> = (0..HOSTILE).step_by(EACH).map(|first| scope.spawn(some(first))).collect();
        // None is closed before all are there.
        let held: Vec<Vec<TcpStream>> = crowd.into_iter().map(|some| some.join().unwrap()).collect();
        is_over.store(true, Ordering::SeqCst);
        drop(held);
        assert!(honest.join().unwrap() > 0);
    });
}

/// A connection that has sent its request, and has seen an answer come unless it is deaf. The server may have cut it off.
fn hostile(addr: SocketAddr, kind: &Kind) -> TcpStream {
    let mut stream = connect_from([127, 0, 0, 2], addr);
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let is_sent = stream.write_all(kind.request.as_bytes()).is_ok();
    if is_sent && !kind.is_deaf {
        let _ = stream.peek(&mut [0]);
    }
    stream
}

/// One kind after the other, so that what each leaves behind counts for the next.
#[test]
fn no_kind_of_request_costs_much_memory_however_many_send_it() {
    let site = Site::new();
    let mut server = site.serve(&mut Command::new(PROGRAM));
    let before = server.status_figure("VmRSS");
    for kind in site.kinds() {
        let name = kind.name;
        attack(&server, &[kind]);
        let cost = server.status_figure("VmHWM") - before;
        eprintln!("{name}: {before} kB at first, {cost} kB more at most");
        assert!(server.is_alive());
        assert!(cost < COST_KB, "{name} costs {cost} kB");
    }
}

/// A new cgroup with a limit on its memory, of version 1 or 2; none if it can't be created.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(limit: &str) -> Option<Cgroup> {
        let name = format!("invited-test-{}", std::process::id());
        for (folder, file) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let group = Cgroup(Path::new(folder).join(&name));
            if fs::create_dir(&group.0).is_ok() {
                if fs::write(group.0.join(file), limit).is_ok() {
                    return Some(group);
                }
                drop(group);
            }
        }
        None
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn it_lives_on_64_mib_whatever_512_clients_send() {
    let group = Cgroup::new("67108864");
    if !available("cgroup", group.is_some()) {
        return;
    }
    let group = group.unwrap();
    let site = Site::new();
    let within = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
    let mut server = site.serve(Command::new("sh").args(["-c", within]).arg(&group.0).arg(PROGRAM));
    let kinds = site.kinds();
    for _ in 0..3 {
        attack(&server, &kinds);
        assert!(server.is_alive(), "it was killed");
    }
    eprintln!("all kinds at once: {} kB at most", server.status_figure("VmHWM"));
    drop(server);
}
