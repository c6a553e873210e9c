//! `serve` and `try`.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{create_key, print};
use crate::cli::{DEFAULT_PORT, Listen, Serve as Options};
use crate::client::Clients;
use crate::error::{Error, Kind, Result};
use crate::gate::{self, Door, Listener, Upstream};
use crate::harden;
use crate::host::Host;
use crate::invite::Allow;
use crate::limit::Limiter;
use crate::log::{self, Level};
use crate::metrics::Metrics;
use crate::page::Pages;
use crate::private::{DATABASE, PrivateFolder, SOCKET};
use crate::random;
use crate::register::Desk;
use crate::routes::App;
use crate::secret::Secret;
use crate::server;
use crate::store::{KeyLimits, Readers, Store, Writer, as_owner_io};
use crate::supervise::{self, Inetd};
use crate::thread::spawn;
use crate::views::Views;

/// The most workers that may wait for the XMPP server.
const MOST: usize = server::WORKERS - 8;

/// So many workers that wait for a lock are a crowd, and wait for less long: with those that wait for the XMPP server they
/// leave some for everybody else.
const CROWD: usize = 6;

/// The connections on which requests read: a read takes well under a millisecond, so that a few are enough for all workers.
const READERS: usize = 4;

/// The access mode of Unix sockets unless told otherwise: for the proxy's group.
const SOCKET_MODE: u32 = 0o660;

/// The stack of the threads beside the server, in bytes.
const STACK: usize = 1024 * 1024;

/// How often expired invites are taken from the server's tables.
const PRUNE_EVERY: Duration = Duration::from_secs(3_600);

/// How often used invites are deleted from ejabberd's table.
const CLEAR_EVERY: Duration = Duration::from_secs(60);

/// How often the counts of page views go into the file.
const VIEWS_EVERY: Duration = Duration::from_secs(5);

/// How often it is looked whether the database is still in its place.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// How long a process that inetd has started with a listening socket waits for the next connection.
const INETD_IDLE: Duration = Duration::from_secs(60);

/// Serves as the command line says.
pub fn run(db: &Path, options: &Options) -> Result<()> {
    log::start(options.log_level, supervise::stderr_is_journal());
    if options.inetd {
        if supervise::stderr_is_stdin() {
            log::mute();
        }
        return match supervise::inetd()? {
            Inetd::Connection(connection) => {
                let copy = connection.try_clone().map_err(failed("cannot copy the connection"))?;
                let served = Store::open(db).and_then(|store| serve_one(&store, connection, options.trust_proxy));
                // The client hears that it did not work; why is for the admin, who sees the exit code.
                served.inspect_err(|_| gate::refuse_one(copy, gate::LIMITS))
            }
            Inetd::Listener(listener) => {
                let idle_exit = options.idle_exit.unwrap_or(INETD_IDLE);
                let options = Options { idle_exit: Some(idle_exit), ..options.clone() };
                serve(&Store::open(db)?, vec![listener], &options, |_| Ok(()))
            }
        };
    }
    let mut listeners = supervise::activated()?;
    for listen in &options.listen {
        listeners.push(bind(listen, options.socket_mode, Door::Guests)?);
    }
    if listeners.iter().all(|listener| listener.door == Door::Admin) {
        let default = Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)));
        listeners.push(bind(&default, options.socket_mode, Door::Guests)?);
    }
    for listen in &options.admin_listen {
        listeners.push(bind(listen, options.socket_mode, Door::Admin)?);
    }
    serve(&Store::open(db)?, listeners, options, |_| Ok(()))
}

/// Listens on this address; port 0 takes a free one.
pub fn bind(listen: &Listen, socket_mode: Option<u32>, door: Door) -> Result<Listener> {
    let (name, listener) = match listen {
        Listen::Tcp(address) => (address.to_string(), Listener::tcp(*address, door)),
        Listen::Unix(path) => {
            let make = || Listener::unix(path, socket_mode.unwrap_or(SOCKET_MODE), door);
            // The owner of the folder counts, and not that of what has the name already.
            let new = path.with_file_name(random::base64url::<9>()?);
            (format!("unix:{}", path.display()), as_owner_io(&new, make))
        }
    };
    let option = match (door, listen) {
        (Door::Admin, Listen::Tcp(_)) => "--admin-listen ADDR:PORT",
        (Door::Admin, Listen::Unix(_)) => "--admin-listen unix:PATH",
        (Door::Guests, Listen::Tcp(_)) => "--listen ADDR:PORT",
        (Door::Guests, Listen::Unix(_)) => "--listen unix:PATH",
    };
    listener.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::new(
            Kind::CannotCreate,
            format!("cannot listen on {name}: there is no such folder (make it, or choose with {option})"),
        ),
        io::ErrorKind::AddrInUse => Error::unavailable(format!(
            "cannot listen on {name}: another program does (end it, or choose with {option})"
        )),
        io::ErrorKind::PermissionDenied => Error::new(
            Kind::Permission,
            format!(
                "cannot listen on {name}: permission denied (choose with {option} a port above 1023 or another folder)"
            ),
        ),
        _ => Error::new(Kind::CannotCreate, format!("cannot listen on {name}: {error} (choose with {option})")),
    })
}

fn failed(what: &str) -> impl Fn(io::Error) -> Error {
    move |error| Error::internal(format!("{what}: {error}"))
}

/// What all requests share.
fn app(readers: Readers, writer: &Writer, views: &Arc<Views>, metrics: &Arc<Metrics>, trust_proxy: bool) -> App {
    App {
        pages: Pages::load(),
        readers,
        writer: writer.clone(),
        views: Arc::clone(views),
        limiter: Limiter::new(Clients { trust_proxy }),
        metrics: Arc::clone(metrics),
        desk: Desk::new(MOST),
    }
}

/// Serves the one connection that inetd has accepted, to its end.
fn serve_one(store: &Store, connection: OwnedFd, trust_proxy: bool) -> Result<()> {
    let (views, metrics) = (Arc::default(), Arc::default());
    let folder = PrivateFolder::make()?;
    harden::restrict(store.path(), Some(folder.path()), &[])?;
    log::start_writer()?;
    let writer = Writer::start(store.another()?, CROWD)?;
    let socket = folder.path().join(SOCKET);
    server::start(&socket, app(Readers::open(store, 1)?, &writer, &views, &metrics, trust_proxy), 1)?;
    let upstream = Upstream::open(socket, 1).map_err(failed("cannot reach the loop of workers"))?;
    gate::run_one(connection, upstream, &metrics, gate::LIMITS).map_err(failed("cannot serve the connection"))?;
    write_views(&writer, &views);
    Ok(())
}

/// Serves on these sockets until SIGTERM or SIGINT. `ready` is called with the first TCP address once requests are answered.
fn serve(
    store: &Store,
    listeners: Vec<Listener>,
    options: &Options,
    ready: impl FnOnce(Option<SocketAddr>) -> Result<()>,
) -> Result<()> {
    // Signals come as bytes on a socket, which the accepting loop waits for beside its listeners.
    let (stop, signals) = UnixStream::pair().map_err(failed("cannot make a socket for signals"))?;
    let hangup = options.ends_on_hangup.then_some(SIGHUP);
    for signal in [SIGTERM, SIGINT].into_iter().chain(hangup) {
        let signals = signals.try_clone().map_err(failed("cannot copy the socket for signals"))?;
        signal_hook::low_level::pipe::register(signal, signals).map_err(failed("cannot wait for signals"))?;
    }
    // There is nothing to open anew: settings are read for each request, and the log is stderr.
    signal_hook::flag::register(SIGHUP, Arc::default()).map_err(failed("cannot wait for signals"))?;
    let wake = signals.try_clone().map_err(failed("cannot copy the socket for signals"))?;
    gate::raise_file_limit();
    let folder = PrivateFolder::make()?;
    let sockets: Vec<PathBuf> = listeners.iter().filter_map(Listener::path).collect();
    let level = harden::restrict(store.path(), Some(folder.path()), &sockets)?;
    log::start_writer()?;
    log::event(Level::Info, &[("event", &"hardened"), ("landlock", &level)]);
    let (views, metrics) = (Arc::default(), Arc::default());
    let writer = Writer::start(store.another()?, CROWD)?;
    keep_views(writer.clone(), Arc::clone(&views))?;
    keep_house(store.another()?)?;
    watch(store.another()?, wake)?;
    let socket = folder.path().join(SOCKET);
    server::start(
        &socket,
        app(Readers::open(store, READERS)?, &writer, &views, &metrics, options.trust_proxy),
        server::WORKERS,
    )?;
    let unreachable = failed("cannot reach the loop of workers");
    let upstream = Upstream::open(socket.clone(), server::WORKERS).map_err(&unreachable)?;
    if let Some(pause) = supervise::watchdog() {
        keep_awake(Upstream::open(socket, 1).map_err(&unreachable)?, pause)?;
    }
    for listener in &listeners {
        // Whoever starts this waits for exactly this line.
        let what = if listener.door == Door::Admin { "listening for the admin on" } else { "listening on" };
        log::message(&format!("{what} {listener}"));
    }
    supervise::notify("READY=1");
    ready(listeners.iter().find_map(Listener::address))?;
    let stopping = || supervise::notify("STOPPING=1");
    gate::run(&listeners, stop.as_fd(), upstream, &metrics, gate::LIMITS, options.idle_exit, stopping)
        .map_err(failed("cannot accept connections"))?;
    if store.is_replaced() {
        return store.check_place();
    }
    write_views(&writer, &views);
    // What a registration has left to the writer is behind it when this one is done.
    let _ = writer.write(|_| Ok(()));
    store.checkpoint();
    Ok(())
}

/// Gives the supervisor signs of life, as long as a worker can be reached.
fn keep_awake(upstream: Upstream, pause: Duration) -> Result<()> {
    let body = move || {
        loop {
            if upstream.is_served() {
                supervise::notify("WATCHDOG=1");
            }
            thread::sleep(pause);
        }
    };
    spawn("watchdog", STACK, body)
}

/// Ends the server when another file has taken the place of its database: its supervisor starts it again, on that file. One
/// that is merely gone may come back, and until then nobody could start.
fn watch(store: Store, stop: UnixStream) -> Result<()> {
    let body = move || {
        while !store.is_replaced() {
            thread::sleep(WATCH_EVERY);
        }
        let _ = (&stop).write_all(b"x");
    };
    spawn("watch", STACK, body)
}

/// Prunes all hosts now and once an hour, on a thread of its own.
fn keep_house(mut store: Store) -> Result<()> {
    let body = move || {
        loop {
            match store.prune(None, log::now()) {
                Ok(pruned) if pruned.expired + pruned.forgotten > 0 => {
                    let (expired, forgotten) = (&pruned.expired, &pruned.forgotten);
                    log::event(Level::Info, &[("event", &"pruned"), ("expired", expired), ("forgotten", forgotten)]);
                }
                Ok(_) => {}
                Err(error) => log::event(Level::Error, &[("event", &"prune-failed"), ("detail", &error)]),
            }
            // ejabberd refuses the invites of users whose own one it still has.
            for _ in 0..PRUNE_EVERY.as_secs() / CLEAR_EVERY.as_secs() {
                thread::sleep(CLEAR_EVERY);
                if let Err(error) = store.clear_ejabberd(log::now()) {
                    log::event(Level::Error, &[("event", &"prune-failed"), ("detail", &error)]);
                }
            }
        }
    };
    spawn("housekeeping", STACK, body)
}

/// Writes down every few seconds what guests looked at.
fn keep_views(writer: Writer, views: Arc<Views>) -> Result<()> {
    let body = move || {
        loop {
            thread::sleep(VIEWS_EVERY);
            write_views(&writer, &views);
        }
    };
    spawn("views", STACK, body)
}

fn write_views(writer: &Writer, views: &Views) {
    // In small transactions, for the sake of whoever waits for the write lock.
    let seen: Vec<_> = views.take().into_iter().collect();
    for some in seen.chunks(32).map(<[_]>::to_vec) {
        if let Err(error) =
            writer.write(move |tx| some.iter().try_for_each(|(token, seen)| tx.count_views(token, seen)))
        {
            log::event(Level::Error, &[("event", &"views-failed"), ("detail", &error)]);
        }
    }
}

/// A key, a server and the lines to paste, in a folder that goes when it ends.
pub fn try_out(host: &Host) -> Result<()> {
    log::start(Level::default(), false);
    let folder = PrivateFolder::make()?;
    let mut store = Store::create(&folder.path().join(DATABASE))?;
    let limits = KeyLimits { expires_at: None, allow: Allow::default_words(), per_day: None };
    let key = create_key(&mut store, host, Some("try"), &limits)?.text();
    let listener = bind(&Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))), None, Door::Guests)?;
    let address = listener.address().ok_or_else(|| Error::internal("cannot tell the address of the socket"))?;
    store.write(|tx| tx.set(host, "url", &format!("http://{address}")))?;
    let db = folder.path().join(DATABASE);
    serve(&store, vec![listener], &Options { ends_on_hangup: true, ..Options::default() }, move |_| {
        let key = key.as_str();
        print(&Secret::new(format!(
            "\
A throw-away server for {host}, until Ctrl-C. Make an invite; its link is in the line `Location`:

  curl -i 'http://{address}/invites_api?key={key}'
  curl -i -H 'Authorization: Bearer {key}' http://{address}/invites_api

The same as a bookmark that leads straight to the new invite's page:

  http://{address}/invites_api?key={key}&redirect=true
  curl -sL 'http://{address}/invites_api?key={key}&redirect=true'

There is no XMPP server behind it: an account can't be made. Other commands find this database with
--db {}

",
            db.display()
        )))
    })
}
