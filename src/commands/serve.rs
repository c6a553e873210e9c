//! `serve` and `try`.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

use super::{create_key, print};
use crate::error::{Error, Result};
use crate::gate::{self, Upstream};
use crate::host::Host;
use crate::invite::Allow;
use crate::limit::Limiter;
use crate::log;
use crate::page::Pages;
use crate::register::Desk;
use crate::routes::App;
use crate::server::{self, PrivateFolder};
use crate::store::{KeyLimits, Store, Writer};
use crate::thread::spawn;
use crate::views::Views;

/// The stack of the threads beside the server, in bytes.
const STACK: usize = 1024 * 1024;

/// How often expired invites are taken from the server's tables.
const PRUNE_EVERY: Duration = Duration::from_secs(3_600);

/// How often the counts of page views go into the file.
const VIEWS_EVERY: Duration = Duration::from_secs(5);

/// How often it is looked whether the database is still in its place.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Listens on this address; port 0 takes a free one.
pub fn bind(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).map_err(|error| {
        Error::internal(match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("cannot listen on {listen}: another program does (end it, or choose with --listen ADDR:PORT)")
            }
            _ => format!("cannot listen on {listen}: {error} (choose with --listen ADDR:PORT)"),
        })
    })
}

/// Serves on this socket until SIGTERM or SIGINT. `ready` is called with its address once requests are answered.
pub fn serve(
    store: &Store,
    listener: &TcpListener,
    trust_proxy: bool,
    ready: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Error::internal(format!("{what}: {error}"))
    };
    // Signals come as bytes on a socket, which the accepting loop waits for beside its listener.
    let (stop, signals) = UnixStream::pair().map_err(failed("cannot make a socket for signals"))?;
    for signal in [SIGTERM, SIGINT] {
        let signals = signals.try_clone().map_err(failed("cannot copy the socket for signals"))?;
        signal_hook::low_level::pipe::register(signal, signals).map_err(failed("cannot wait for signals"))?;
    }
    watch(store.another()?, signals)?;
    gate::raise_file_limit();
    let views = Arc::new(Views::default());
    // Workers that are left for those who only look, and for everybody else while the XMPP server takes its time.
    let most = server::WORKERS - 4;
    let writer = Writer::start(store.another()?, most)?;
    let app = App {
        pages: Pages::load()?,
        writer: writer.clone(),
        views: Arc::clone(&views),
        limiter: Limiter::new(trust_proxy),
        desk: Desk::new(most),
    };
    keep_views(writer.clone(), Arc::clone(&views))?;
    keep_house(store.another()?)?;
    let folder = PrivateFolder::make()?;
    let socket = folder.path().join(server::SOCKET);
    server::start(&socket, app, store)?;
    let upstream = Upstream::open(socket, server::WORKERS).map_err(failed("cannot reach the loop of workers"))?;
    let address = listener.local_addr().map_err(failed("cannot tell the address of the socket"))?;
    // Whoever starts this waits for exactly this line.
    let _ = writeln!(io::stderr(), "listening on http://{address}");
    ready(address)?;
    gate::run(listener, stop.as_fd(), upstream, gate::LIMITS).map_err(failed("cannot accept connections"))?;
    if store.is_replaced() {
        return store.check_place();
    }
    write_views(&writer, &views);
    store.checkpoint();
    Ok(())
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
                    log::event(&[("event", &"pruned"), ("expired", expired), ("forgotten", forgotten)]);
                }
                Ok(_) => {}
                Err(error) => log::event(&[("event", &"prune-failed"), ("detail", &error)]),
            }
            thread::sleep(PRUNE_EVERY);
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
            log::event(&[("event", &"views-failed"), ("detail", &error)]);
        }
    }
}

/// A key, a server and the lines to paste, in a folder that goes when it ends.
pub fn try_out(host: &Host) -> Result<()> {
    let folder = PrivateFolder::make()?;
    let mut store = Store::create(&folder.path().join("invited.sqlite"))?;
    let limits = KeyLimits { expires_at: None, allow: Allow::default_words(), per_day: None };
    let key = create_key(&mut store, host, Some("try"), &limits)?.text();
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address =
        listener.local_addr().map_err(|error| Error::internal(format!("cannot tell the address: {error}")))?;
    store.write(|tx| tx.set(host, "url", &format!("http://{address}")))?;
    let db = folder.path().join("invited.sqlite");
    serve(&store, &listener, false, |address| {
        print(&format!(
            "\
A throw-away server for {host}, until Ctrl-C. Make an invite; its link is in the line `Location`:

  curl -i 'http://{address}/invites_api?key={key}'
  curl -i -H 'Authorization: Bearer {key}' http://{address}/invites_api

The same as a bookmark that leads straight to the new invite's page:

  http://{address}/invites_api?key={key}&redirect=true
  curl -sL 'http://{address}/invites_api?key={key}&redirect=true'

Other commands find this database with --db {}

",
            db.display()
        ))
    })
}
