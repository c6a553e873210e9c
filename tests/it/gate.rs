//! The gate before the loop: what neither hostile nor clumsy clients can do to the server.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Folder, PATIENCE, Reply, Server, connect, connect_from, create_key, read_reply};

/// Requests that the program works on at the same time.
const WORKERS: usize = 24;

/// An honest request; there is nothing there, and the answer says so.
const HONEST: &str = "GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n";

/// The longest that an honest request may take while others do their worst. The aim is a second; machines are noisy.
const HONEST_LIMIT: Duration = Duration::from_secs(5);

/// The most memory that the server may ever have taken, in kB.
const MEMORY_KB: u64 = 64 * 1024;

/// A server on a database with one key.
fn serving() -> (Folder, Server, String) {
    let folder = Folder::new();
    let key = create_key(&folder.db(), "example.com");
    let server = Server::start(&folder.db());
    (folder, server, key)
}

fn open(addr: SocketAddr) -> BufReader<TcpStream> {
    BufReader::new(connect(addr))
}

/// Sends a request on a connection that may have answered others before.
fn ask(connection: &mut BufReader<TcpStream>, request: &str) -> Reply {
    connection.get_mut().write_all(request.as_bytes()).unwrap();
    read_reply(connection, false).unwrap_or_else(|error| panic!("no answer to {request:?}: {error}"))
}

/// Reads the last answer of a connection: it says so, and nothing but the end comes after it.
fn last_reply(connection: &mut BufReader<TcpStream>) -> Reply {
    let reply = read_reply(connection, false).unwrap_or_else(|error| panic!("no answer: {error}"));
    assert_eq!(reply.header("connection"), Some("close"), "{reply:?}");
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest).unwrap();
    assert_eq!(String::from_utf8_lossy(&rest), "");
    reply
}

/// Sends exactly these bytes on a connection of their own; the server closes it after its answer.
fn last_status(addr: SocketAddr, bytes: &[u8]) -> u16 {
    let mut connection = open(addr);
    connection.get_mut().write_all(bytes).unwrap();
    last_reply(&mut connection).status
}

/// Sends that many honest requests, each on a connection of its own, and returns the longest time that one took.
fn honest(server: &Server, count: usize) -> Duration {
    let longest = (0..count).map(|_| {
        let start = Instant::now();
        assert_eq!(server.get("/nothing").status, 404);
        start.elapsed()
    });
    let longest = longest.max().unwrap();
    assert!(longest < HONEST_LIMIT, "an honest request took {longest:?}");
    longest
}

/// The server lives, answers, and has never taken more memory than it may.
fn assert_sound(server: &mut Server, what: &str) {
    assert!(server.is_alive());
    let longest = honest(server, 1);
    let memory = server.status_figure("VmHWM");
    eprintln!("{what}: at most {memory} kB, an honest request after it took {longest:?}");
    assert!(memory < MEMORY_KB, "{what}: the server has taken {memory} kB");
    assert!(!server.log().contains("panic"), "a thread of the server has panicked");
}

/// That many connections opened at the same moment, each of which sends some requests, one after the other.
fn burst(addr: SocketAddr, connections: usize, requests: usize) {
    let together = Barrier::new(connections);
    thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                together.wait();
                let mut connection = open(addr);
                for _ in 0..requests {
                    let reply = ask(&mut connection, HONEST);
                    assert_eq!((reply.status, reply.header("connection")), (404, Some("keep-alive")));
                }
            });
        }
    });
}

/// Connections on which a request begins and does not go on.
fn stalled(addr: SocketAddr, count: usize, beginning: &str) -> Vec<BufReader<TcpStream>> {
    let begin = |_| {
        let mut connection = open(addr);
        connection.get_mut().write_all(beginning.as_bytes()).unwrap();
        connection
    };
    (0..count).map(begin).collect()
}

/// The address of those that do their worst.
const CROWD: [u8; 4] = [127, 0, 0, 2];

/// Connections with half a head on each. The server may have closed any of them by the time that this returns.
fn half_open(source: [u8; 4], addr: SocketAddr, count: usize) -> Vec<TcpStream> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let begin = |_| {
        let mut stream = connect_from(source, addr);
        let _ = stream.write_all(b"GET /nothing HTTP/1.1\r\nHost: a\r\nX: ");
        stream
    };
    (0..count).map(begin).collect()
}

/// Sends a beginning and then the same bytes over and over, until the connection breaks; returns the status of the answer.
fn endless(addr: SocketAddr, beginning: &str, more: &str) -> u16 {
    const LIMIT: usize = 20_000_000;
    let mut connection = open(addr);
    let chunk = more.repeat(64 * 1024 / more.len());
    let mut sent = 0;
    let mut text = beginning;
    while sent < LIMIT && connection.get_mut().write_all(text.as_bytes()).is_ok() {
        sent += text.len();
        text = &chunk;
    }
    assert!(sent < LIMIT, "the server has taken {sent} bytes of a head");
    read_reply(&mut connection, false).unwrap_or_else(|error| panic!("no answer: {error}")).status
}

/// Sends that many requests without waiting, and expects the answers one after the other in the same order.
fn pipelined(addr: SocketAddr, count: usize) {
    let kinds = [("GET /nothing", 404), ("GET /invites_api", 403), ("PUT /invites_api", 405)];
    // Not the same three over and over, so that an answer in the wrong place shows.
    let kind = |number: usize| kinds[number % 7 % 3];
    let text: String = (0..count).map(|number| format!("{} HTTP/1.1\r\nHost: a\r\n\r\n", kind(number).0)).collect();
    let mut connection = open(addr);
    let mut writer = connection.get_ref().try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || writer.write_all(text.as_bytes()).unwrap());
        for number in 0..count {
            let reply = read_reply(&mut connection, false);
            let reply = reply.unwrap_or_else(|error| panic!("no answer to request {number}: {error}"));
            assert_eq!(reply.status, kind(number).1, "request {number}");
        }
    });
}

/// Connections that are reset while the server waits for a body, or while it answers: closing a socket that holds
/// unread bytes resets its connection.
fn resets(addr: SocketAddr, count: usize) {
    let expecting = "POST /invites_api HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n";
    let twice = HONEST.repeat(2);
    for number in 0..count {
        let mut stream = connect(addr);
        let text = if number % 2 == 0 { expecting } else { &twice };
        stream.write_all(text.as_bytes()).unwrap();
        assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
    }
}

/// What is refused, and with which status.
fn malformed() -> Vec<(u16, Vec<u8>)> {
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut cases = vec![(400, hello.to_vec())];
    for (status, text) in [
        (400, "GET / HTTP/1.1\nHost: a\n\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n"),
        (400, "GET /\r\n\r\n"),
        (400, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET nothing HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nx"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nx"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        (400, "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxyz\r\n0\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx0\r\n\r\n"),
        (413, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10001\r\n"),
        (413, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"),
        (413, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n"),
        (417, "POST / HTTP/1.1\r\nHost: a\r\nExpect: cake\r\nContent-Length: 1\r\n\r\nx"),
        (505, "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
        (505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ] {
        cases.push((status, text.as_bytes().to_vec()));
    }
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(99));
    cases.push((431, many.into_bytes()));
    cases
}

fn assert_malformed_is_refused(server: &Server) {
    for (status, bytes) in malformed() {
        assert_eq!(last_status(server.addr, &bytes), status, "{:?}", String::from_utf8_lossy(&bytes));
        honest(server, 1);
    }
}

fn assert_huge_bodies_are_refused(addr: SocketAddr) {
    for length in ["40000000000", "9223372036854775808", "18446744073709551616"] {
        let head = format!("POST /invites_api HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        assert_eq!(last_status(addr, head.as_bytes()), 413, "{length}");
    }
}

fn assert_endless_heads_are_refused(addr: SocketAddr) {
    let head = "GET /nothing HTTP/1.1\r\nHost: a\r\n";
    assert_eq!(endless(addr, &format!("{head}X: "), "x"), 431);
    assert_eq!(endless(addr, head, "X: y\r\n"), 431);
    assert_eq!(endless(addr, "GET /", "x"), 431);
    assert_eq!(endless(addr, "", "x"), 431);
}

#[test]
fn each_of_64_connections_that_come_at_once_is_answered() {
    let (_folder, mut server, _) = serving();
    for _ in 0..5 {
        burst(server.addr, 64, 4);
    }
    assert_sound(&mut server, "5 bursts of 64 connections");
}

#[test]
fn a_body_that_claims_to_be_huge_is_refused_unread() {
    let (_folder, mut server, _) = serving();
    assert_huge_bodies_are_refused(server.addr);
    assert_sound(&mut server, "huge bodies");
}

#[test]
fn the_largest_body_is_taken() {
    let (_folder, server, key) = serving();
    let body = format!("{{}}{}", " ".repeat(64 * 1024 - 2));
    let head = format!(
        "POST /invites_api?key={key} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    assert_eq!(ask(&mut open(server.addr), &(head + &body)).status, 201);
}

/// As many connections that stall as there are workers, twice, and one that sends a byte a second: a request has ten seconds
/// in all, and nobody else waits for it.
/// What clients send that do not know the length beforehand.
#[test]
fn a_body_in_chunks_is_the_same_as_one_with_a_length() {
    let (_folder, server, key) = serving();
    let head = format!(
        "POST /invites_api HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nAccept: application/json\r\n\
         Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    );
    let body = format!(r#"{{"note":"{}"}}"#, "n".repeat(900));
    let chunks = |size: usize| -> String {
        body.as_bytes()
            .chunks(size)
            .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap()))
            .collect()
    };
    let mut connection = open(server.addr);
    // Several on one connection, so that one that was read too far would spoil the next.
    for (size, end) in [(1, "0\r\n\r\n"), (7, "000\r\n\r\n"), (912, "0;x=\"y\"\r\nTrailer: z\r\nAnother: z\r\n\r\n")] {
        let reply = ask(&mut connection, &format!("{head}\r\n{}{end}", chunks(size)));
        assert_eq!(reply.status, 201, "{size}: {reply:?}");
        assert!(reply.body.contains(&"n".repeat(900)), "{reply:?}");
    }
    // Larger than what each connection has of its own, with all pieces of the connection at odds with those of the body.
    let long = format!(r#"{{"kind":"account"{}}}"#, " ".repeat(60_000));
    let chunked: String = long
        .as_bytes()
        .chunks(1_500)
        .map(|chunk| format!("{:X}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap()))
        .collect();
    assert_eq!(ask(&mut connection, &format!("{head}\r\n{chunked}0\r\n\r\n")).status, 201);
    let mut slow = open(server.addr);
    slow.get_mut().write_all(format!("{head}Expect: 100-continue\r\n\r\n").as_bytes()).unwrap();
    let mut line = String::new();
    slow.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 100 Continue\r\n");
    slow.read_line(&mut line).unwrap();
    for byte in format!("{}0\r\n\r\n", chunks(400)).bytes() {
        slow.get_mut().write_all(&[byte]).unwrap();
    }
    assert_eq!(read_reply(&mut slow, false).unwrap().status, 201);
    // What only surrounds a body has a bound as well.
    let many = format!("{head}\r\n{}", "1\r\nx\r\n".repeat(20_000));
    assert_eq!(last_status(server.addr, many.as_bytes()), 413);
    let trailers = format!("{head}\r\n0\r\n{}", "X: y\r\n".repeat(10_000));
    assert_eq!(last_status(server.addr, trailers.as_bytes()), 413);
}

/// A script of a web page would otherwise hear no more than that it failed.
#[test]
fn scripts_of_other_sites_can_read_why_they_are_refused() {
    let (_folder, server, _) = serving();
    for target in ["/invite?unknown", "/nothing", "/invites_api?key=a/b", "/robots.txt"] {
        assert_eq!(server.get(target).header("access-control-allow-origin"), Some("*"), "{target}");
    }
    assert_eq!(server.get("/register?t=unknown").header("access-control-allow-origin"), None);
    let refused = server.send("POST", "/invites_api", &[("Content-Length", "1")], b"xx");
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (400, Some("*")));
}

#[test]
fn stalled_requests_time_out_and_hold_nobody_up() {
    assert!(include_str!("../../src/server.rs").contains(&format!("pub const WORKERS: usize = {WORKERS};")));
    let (_folder, mut server, _) = serving();
    let start = Instant::now();
    let head = "POST /invites_api HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n";
    let connections = stalled(server.addr, 2 * WORKERS, head);
    thread::scope(|scope| {
        let slow = scope.spawn(|| trickle(server.addr));
        let longest = honest(&server, 30);
        eprintln!("{} stalled bodies: the slowest of 30 honest requests took {longest:?}", 2 * WORKERS);
        for mut connection in connections {
            assert_eq!(last_reply(&mut connection).status, 408);
        }
        assert_eq!(slow.join().unwrap(), 408);
    });
    let took = start.elapsed();
    eprintln!("{} stalled bodies and one slow head: all timed out after {took:?}", 2 * WORKERS);
    assert!(took >= Duration::from_secs(9), "they were given up after {took:?}");
    assert!(took < Duration::from_secs(20), "they were given up only after {took:?}");
    assert_sound(&mut server, "stalled requests");
}

/// Sends a head at one byte a second, and returns the status of the answer.
fn trickle(addr: SocketAddr) -> u16 {
    let mut connection = open(addr);
    connection.get_ref().set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    for byte in HONEST.bytes() {
        connection.get_mut().write_all(&[byte]).unwrap();
        // Waiting in vain for an answer is what takes the second.
        match connection.fill_buf() {
            Ok(_) => return last_reply(&mut connection).status,
            Err(error) => assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}"),
        }
    }
    panic!("the server waited for the whole head");
}

#[test]
fn a_head_without_end_is_refused_and_costs_no_memory() {
    let (_folder, mut server, _) = serving();
    assert_endless_heads_are_refused(server.addr);
    assert_sound(&mut server, "endless heads");
}

#[test]
fn pipelined_requests_are_answered_one_after_the_other() {
    let (_folder, mut server, _) = serving();
    pipelined(server.addr, 20_000);
    assert_sound(&mut server, "20,000 pipelined requests");
}

#[test]
fn a_malformed_request_is_refused_and_its_connection_closed() {
    let (_folder, mut server, _) = serving();
    assert_malformed_is_refused(&server);
    assert_sound(&mut server, "malformed requests");
}

#[test]
fn a_target_with_a_host_means_the_same_as_one_without() {
    let (_folder, server, key) = serving();
    let mut connection = open(server.addr);
    for before in ["", "http://example.com", "HTTPS://other.example:8443"] {
        let request = format!("POST {before}/invites_api?key={key} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(ask(&mut connection, &request).status, 201, "{request}");
    }
}

#[test]
fn a_body_that_looks_like_a_request_is_none() {
    let (_folder, server, key) = serving();
    let inner = format!("POST /invites_api?key={key} HTTP/1.1\r\nHost: a\r\n\r\n");
    let outer = format!("POST /smuggler HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}", inner.len());
    let mut connection = open(server.addr);
    // Both at once, so that what is left of the first would be taken for the second.
    let reply =
        ask(&mut connection, &format!("{outer}GET /invites_api HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
    assert_eq!((reply.status, reply.header("connection")), (404, Some("keep-alive")));
    assert_eq!(last_reply(&mut connection).status, 403);
    assert!(!server.log().contains("status=201"), "the body was taken for a request");
}

#[test]
fn who_asks_first_is_told_to_send_the_body() {
    let (_folder, server, key) = serving();
    let mut connection = open(server.addr);
    let head = |length| {
        let target = format!("/invites_api?key={key}");
        format!(
            "POST {target} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nExpect: 100-Continue\r\n\
             Content-Length: {length}\r\n\r\n"
        )
    };
    for _ in 0..2 {
        connection.get_mut().write_all(head(5).as_bytes()).unwrap();
        let mut interim = String::new();
        connection.read_line(&mut interim).unwrap();
        connection.read_line(&mut interim).unwrap();
        assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(ask(&mut connection, "{}   ").status, 201);
    }
    // Who wants to send too much hears so at once.
    connection.get_mut().write_all(head(1_000_000).as_bytes()).unwrap();
    assert_eq!(last_reply(&mut connection).status, 413);
}

#[test]
fn a_client_cannot_say_where_it_comes_from() {
    let (_folder, server, _) = serving();
    let mut connection = open(server.addr);
    let forged = ["X-Invited-Peer: 6.6.6.6", "x-invited-peer:6.6.6.6", "Connection: X-Invited-Peer"];
    for header in forged {
        let request = format!("GET /nothing HTTP/1.1\r\nHost: a\r\n{header}\r\nX-INVITED-PEER: 6.6.6.6\r\n\r\n");
        assert_eq!(ask(&mut connection, &request).status, 404);
    }
    // The log is written before the answer, but read by a thread of this process.
    let deadline = Instant::now() + PATIENCE;
    while server.log().matches("peer=127.0.0.1").count() < forged.len() {
        assert!(Instant::now() < deadline, "the log lacks the address of the client");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(!server.log().contains("6.6.6.6"));
}

#[test]
fn honest_requests_find_a_place_among_thousands_of_half_open_ones() {
    let (_folder, mut server, _) = serving();
    // As behind a proxy, all come from one address.
    let (during, after) = thread::scope(|scope| {
        let flood = scope.spawn(|| half_open([127, 0, 0, 1], server.addr, 2_000));
        let during = honest(&server, 30);
        let _held = flood.join().unwrap();
        (during, honest(&server, 30))
    });
    eprintln!("2,000 half-open: the slowest of 30 honest requests took {during:?} meanwhile and {after:?} afterwards");
    assert_sound(&mut server, "2,000 half-open connections");
}

/// Phones that have sent half of a request have waited longer for their client than anybody of the crowd that comes after them.
#[test]
fn a_crowd_from_one_address_takes_nobody_elses_place() {
    let (_folder, mut server, _) = serving();
    let addr = server.addr;
    let (beginning, end) = HONEST.split_at(20);
    let mut phones: Vec<_> = (0..24).map(|number| BufReader::new(connect_from([127, 0, 1, number], addr))).collect();
    for phone in &mut phones {
        phone.get_mut().write_all(beginning.as_bytes()).unwrap();
    }
    let crowd = half_open(CROWD, addr, 700);
    // Those who come later find a place too, and the crowd goes on coming.
    let (late, _more) = thread::scope(|scope| {
        let more = scope.spawn(|| half_open(CROWD, addr, 700));
        let late = (24..48).map(|number| {
            let mut connection = BufReader::new(connect_from([127, 0, 1, number], addr));
            assert_eq!(ask(&mut connection, HONEST).status, 404);
            connection
        });
        (late.collect::<Vec<_>>(), more.join().unwrap())
    });
    for phone in &mut phones {
        assert_eq!(ask(phone, end).status, 404);
    }
    for mut phone in late {
        assert_eq!(ask(&mut phone, HONEST).status, 404);
    }
    let held = crowd.len();
    assert_sound(&mut server, &format!("a crowd of {held} from one address"));
}

#[test]
fn connections_that_are_reset_do_no_harm() {
    let (_folder, mut server, _) = serving();
    resets(server.addr, 200);
    assert_sound(&mut server, "200 resets");
}

/// As many clients as there are workers.
#[test]
fn clients_that_never_read_hold_nobody_up() {
    let (_folder, mut server, _) = serving();
    let requests = "GET /invite HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n".repeat(500);
    thread::scope(|scope| {
        let deaf = || {
            let mut stream = connect(server.addr);
            stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            // This ends when the server reads no more, since it can't get rid of its answers.
            let sent = (0..200).take_while(|_| stream.write_all(requests.as_bytes()).is_ok()).count();
            assert!(sent < 200, "the server has read all requests");
            stream
        };
        let clients: Vec<_> = (0..WORKERS).map(|_| scope.spawn(deaf)).collect();
        let during = honest(&server, 30);
        let _held: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        let after = honest(&server, 30);
        eprintln!(
            "{WORKERS} deaf: the slowest of 30 honest requests took {during:?} meanwhile and {after:?} afterwards"
        );
    });
    assert_sound(&mut server, "clients that never read");
}

#[test]
fn an_old_client_needs_no_host_and_its_connection_is_kept_if_it_asks() {
    let (_folder, server, _) = serving();
    assert_eq!(last_status(server.addr, b"GET /nothing HTTP/1.0\r\n\r\n"), 404);
    let mut connection = open(server.addr);
    for _ in 0..2 {
        let reply = ask(&mut connection, "GET /nothing HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        assert_eq!((reply.status, reply.header("connection")), (404, Some("keep-alive")));
    }
    connection.get_mut().write_all(b"GET /nothing HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(last_reply(&mut connection).status, 404);
}

#[test]
fn sigterm_ends_it_after_the_requests_that_run() {
    ends_in_order("TERM");
}

#[test]
fn sigint_ends_it_after_the_requests_that_run() {
    ends_in_order("INT");
}

/// Whoever gets an answer gets a whole one, whatever was made was answered, and nobody who keeps silent delays the end.
fn ends_in_order(signal: &str) {
    let (folder, mut server, key) = serving();
    let addr = server.addr;
    let _half = stalled(addr, 1, "GET /nothing HTTP/1.1\r\nHo");
    let mut idle = open(addr);
    assert_eq!(ask(&mut idle, HONEST).status, 404);
    let request = format!("POST /invites_api?key={key} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let stopping = AtomicBool::new(false);
    let deadline = Instant::now() + 2 * PATIENCE;
    let (answered, tokens) = mpsc::channel();
    let mut made: Vec<String> = thread::scope(|scope| {
        for _ in 0..8 {
            let (answered, request, stopping) = (answered.clone(), &request, &stopping);
            scope.spawn(move || {
                while Instant::now() < deadline {
                    match one_answer(addr, request) {
                        Some(reply) => {
                            assert_eq!(reply.status, 201);
                            answered.send(reply.token()).unwrap();
                        }
                        None => return assert!(stopping.load(Ordering::SeqCst), "no answer while it should serve"),
                    }
                }
            });
        }
        drop(answered);
        // All of them are at it by now.
        let mut made: Vec<String> = tokens.iter().take(100).collect();
        stopping.store(true, Ordering::SeqCst);
        let start = Instant::now();
        server.signal(signal);
        assert_eq!(server.wait(), Some(0));
        let took = start.elapsed();
        eprintln!("SIG{signal}: it ended after {took:?}");
        assert!(took < Duration::from_secs(6), "it ended only after {took:?}");
        made.extend(tokens.iter());
        made
    });
    assert!(!server.log().contains("drain-timeout"));
    made.sort();
    let conn = Connection::open(folder.db()).unwrap();
    let mut query = conn.prepare("SELECT token FROM invited_invite ORDER BY token").unwrap();
    let stored: Vec<String> = query.query_map([], |row| row.get(0)).unwrap().map(|row| row.unwrap()).collect();
    assert_eq!(made, stored);
}

/// The answer to a request, which must be whole; none where the connection ends without one.
fn one_answer(addr: SocketAddr, request: &str) -> Option<Reply> {
    let mut connection = BufReader::new(TcpStream::connect_timeout(&addr, PATIENCE).ok()?);
    connection.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    connection.get_mut().write_all(request.as_bytes()).ok()?;
    match connection.fill_buf() {
        Ok([_, ..]) => Some(read_reply(&mut connection, false).expect("an answer that begins is whole")),
        Ok([]) => None,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            None
        }
    }
}

#[test]
fn all_of_it_together_leaves_nothing_behind() {
    let (_folder, mut server, _) = serving();
    let addr = server.addr;
    let before = server.status_figure("Threads");
    assert_huge_bodies_are_refused(addr);
    assert_endless_heads_are_refused(addr);
    assert_malformed_is_refused(&server);
    burst(addr, 64, 2);
    pipelined(addr, 2_000);
    resets(addr, 100);
    let held = stalled(addr, 64, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n");
    let flood = half_open([127, 0, 0, 1], addr, 1_000);
    let busy = server.status_figure("Threads");
    honest(&server, 10);
    drop((held, flood));
    let deadline = Instant::now() + PATIENCE;
    while server.status_figure("Threads") > before + 2 {
        assert!(Instant::now() < deadline, "{} threads of {busy} are left", server.status_figure("Threads"));
        thread::sleep(Duration::from_millis(50));
    }
    eprintln!("all together: {before} threads, then {busy}, then {}", server.status_figure("Threads"));
    assert_sound(&mut server, "all together");
}
