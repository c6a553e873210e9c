//! The blocking tiny_http loop and its pool of workers, behind a private socket.
//!
//! tiny_http 0.12 must not meet bytes from outside (the README says why), so that it listens on a Unix socket in a folder of
//! this process's own, where only the gate connects. The only file that names tiny_http; knows nothing of the world
//! outside, nor what a route means.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tiny_http::{Header, Server, StatusCode};

use crate::error::{Error, Result};
use crate::http::{Answer, Request};
use crate::log::{self, Level};
use crate::routes::{self, App};
use crate::thread::spawn;

/// Workers, and hence requests that are answered at the same time. They mostly wait for the disk, so that more of them than
/// processors let more invites share a sync.
pub const WORKERS: usize = 24;

/// The stack of a worker, in bytes.
const STACK: usize = 512 * 1024;

/// Starts the loop on the socket and its workers.
///
/// Should the loop ever end, the process ends with exit code 1, for its supervisor to start it again: deaf is worse than dead.
pub fn start(socket: &Path, app: App, workers: usize) -> Result<()> {
    let server = Server::http_unix(socket)
        .map_err(|error| Error::internal(format!("cannot listen on {}: {error}", socket.display())))?;
    let server = Arc::new(server);
    let app = Arc::new(app);
    for number in 0..workers {
        let (server, app) = (Arc::clone(&server), Arc::clone(&app));
        spawn(&format!("worker {number}"), STACK, move || {
            while let Ok(request) = server.recv() {
                serve(&app, request);
            }
            log::event(Level::Error, &[("event", &"loop-ended")]);
            log::flush();
            std::process::exit(1);
        })?;
    }
    Ok(())
}

fn serve(app: &App, mut incoming: tiny_http::Request) {
    // The gate asks this once for each connection that it opens, to see that it is served.
    if incoming.url() == "*" {
        let _ = incoming.respond(tiny_http::Response::empty(204));
        return;
    }
    let start = Instant::now();
    let headers = incoming.headers().iter();
    let headers = headers.map(|header| (header.field.as_str().as_str().to_ascii_lowercase(), header.value.to_string()));
    let mut request = Request::new(incoming.method().as_str(), incoming.url(), headers.collect());
    // The gate has bounded the body. It is read even where nobody wants it, or it would be taken for the next request.
    // A buffer that grows would leave pieces of it behind.
    request.body.reserve_exact(incoming.body_length().unwrap_or(0));
    let _ = incoming.as_reader().read_to_end(&mut request.body);
    let answer = catch_unwind(AssertUnwindSafe(|| routes::answer(app, &request, log::now())))
        .unwrap_or_else(|_| routes::panicked());
    let took = start.elapsed();
    app.metrics.answered(routes::endpoint(&request, &answer), answer.response.status, answer.reason, took);
    write_log(app, &request, &answer, took);
    let response = answer.response;
    let mut out = tiny_http::Response::new(
        StatusCode(response.status),
        Vec::with_capacity(response.headers.len()),
        Cursor::new(&response.body),
        Some(response.body.len()),
        None,
    )
    .with_chunked_threshold(usize::MAX);
    for (name, value) in &response.headers {
        if let Ok(header) = Header::from_bytes(*name, value.as_str()) {
            out.add_header(header);
        }
    }
    // Only the gate can have gone, and it logs that itself.
    let _ = incoming.respond(out);
}

fn write_log(app: &App, request: &Request, answer: &Answer, took: Duration) {
    let micros = took.as_micros();
    let status = answer.response.status;
    let path = routes::logged_path(request, answer);
    let peer = request.header(crate::gate::PEER).unwrap_or("-");
    // No method that there is has a longer name.
    let method = if request.method.len() > 16 { "-" } else { request.method.as_str() };
    let level = Level::of_status(status);
    let mut pairs: Vec<(&str, &dyn std::fmt::Display)> = vec![
        ("method", &method),
        ("path", &path),
        ("status", &status),
        ("reason", &answer.reason),
        ("peer", &peer),
        ("us", &micros),
    ];
    // Whose program did something wrong is worth knowing; who looked at an invite is not.
    let client = if level == Level::Warning { app.limiter.client(request).address() } else { None };
    if let Some(client) = &client {
        pairs.push(("client", client));
    }
    if let Some(key) = &answer.key {
        pairs.push(("key", key));
    }
    if let Some(detail) = &answer.detail {
        pairs.push(("detail", detail));
    }
    log::event(level, &pairs);
}
