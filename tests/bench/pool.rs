//! What `invited` can't be faster than: its own gate and pool of workers, with handlers that answer 201 and store nothing;
//! and tiny_http alone. Each runs in a process of its own, which is this very program.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use crate::gate::{self, Door, Listener, Upstream};
use crate::private::{PrivateFolder, SOCKET};
use crate::server;

/// In place of the program's own routes.
pub mod routes {
    use std::sync::Arc;

    use crate::client::Clients;
    use crate::http::{Answer, Request, Response};
    use crate::limit::Limiter;
    use crate::metrics::Metrics;
    use crate::random;

    pub struct App {
        pub metrics: Arc<Metrics>,
        pub limiter: Limiter,
    }

    impl App {
        pub fn new() -> App {
            App { metrics: Arc::default(), limiter: Limiter::new(Clients { trust_proxy: false }) }
        }
    }

    pub fn endpoint(_: &Request, _: &Answer) -> &'static str {
        "/invites_api"
    }

    pub fn answer(_: &App, _: &Request, _: i64) -> Answer {
        let token = random::base64url::<12>().expect("random bytes");
        let response = Response::new(201)
            .with("Location", format!("https://example.com/invite?{token}"))
            .with("Cache-Control", "no-store")
            .with("Access-Control-Allow-Origin", "*");
        Answer::new("created", response)
    }

    pub fn panicked() -> Answer {
        Answer::new("panic", Response::new(500))
    }

    pub fn logged_path<'a>(request: &'a Request, _: &Answer) -> &'a str {
        &request.path
    }
}

/// Serves on the gate and the pool until it is killed.
pub fn serve(addr: SocketAddr) {
    gate::raise_file_limit();
    let folder = PrivateFolder::make().expect("a folder");
    let socket = folder.path().join(SOCKET);
    let app = routes::App::new();
    let metrics = app.metrics.clone();
    server::start(&socket, app, server::WORKERS).expect("a pool");
    let upstream = Upstream::open(socket, server::WORKERS).expect("connections to the pool");
    let listener = Listener::tcp(addr, Door::Guests).expect("a free address");
    let (stop, _stopper) = UnixStream::pair().expect("a socket");
    gate::run(&[listener], stop.as_fd(), upstream, &metrics, gate::LIMITS, None, || {}).expect("connections");
}

/// Serves with tiny_http alone until it is killed.
pub fn serve_bare(addr: SocketAddr) {
    let server = tiny_http::Server::http(addr).expect("a free address");
    for request in server.incoming_requests() {
        let _ = request.respond(tiny_http::Response::empty(201));
    }
}
