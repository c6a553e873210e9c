//! One function for each subcommand. The only writer to stdout; knows no SQL and no sockets' contents.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::cli::Command;
use crate::error::{Error, Result};
use crate::gate::{self, Upstream};
use crate::host::Host;
use crate::key::NewKey;
use crate::log;
use crate::page::Pages;
use crate::routes::App;
use crate::server::{self, PrivateFolder};
use crate::store::{Store, Writer};

/// Does what was asked for.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Help(text) => print(&text),
        Command::Version => print(concat!("invited ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Create { db, host, name } => {
            let key = create_key(&mut Store::create(&db)?, &host, name.as_deref())?;
            print(&format!("{}\n", key.text()))
        }
        Command::List { db, host } => {
            let mut lines = String::new();
            for key in Store::open(&db)?.keys(&host)? {
                let _ = writeln!(lines, "{}\t{}", key.id, key.name.as_deref().unwrap_or("<unknown>"));
            }
            print(&lines)
        }
        Command::Delete { db, host, id } => Store::open(&db)?.write(|tx| tx.delete_key(&host, &id)),
        Command::Serve { db, listen } => serve(&Store::open(&db)?, &bind(listen)?, |_| Ok(())),
        Command::Try { host } => try_out(&host),
        Command::Set { db, host, name, value } => Store::open(&db)?.write(|tx| tx.set(&host, name, &value)),
        Command::Get { db, host, name: Some(name) } => match Store::open(&db)?.setting(&host, name)? {
            Some(value) => print(&format!("{value}\n")),
            None => Err(Error::not_found(format!(
                "{name} is not set for {host} (`invited set {host} {name} VALUE` sets it)"
            ))),
        },
        Command::Get { db, host, name: None } => {
            let mut lines = String::new();
            for (name, value) in Store::open(&db)?.settings(&host)? {
                let _ = writeln!(lines, "{name}\t{value}");
            }
            print(&lines)
        }
        Command::Unset { db, host, name } => Store::open(&db)?.write(|tx| tx.unset(&host, name)),
    }
}

/// Makes a key; once this returns it is safe on disk.
fn create_key(store: &mut Store, host: &Host, name: Option<&str>) -> Result<NewKey> {
    let key = NewKey::make()?;
    store.write(|tx| tx.add_key(host, &key.id, &key.digest(), name, log::now()))?;
    Ok(key)
}

fn bind(listen: SocketAddr) -> Result<TcpListener> {
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
fn serve(store: &Store, listener: &TcpListener, ready: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
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
    gate::raise_file_limit();
    let app = App { pages: Pages::load()?, writer: Writer::start(store.another()?)? };
    let folder = PrivateFolder::make()?;
    let socket = folder.path().join("loop");
    server::start(&socket, app, store)?;
    let upstream = Upstream::open(socket, server::WORKERS).map_err(failed("cannot reach the loop of workers"))?;
    let address = listener.local_addr().map_err(failed("cannot tell the address of the socket"))?;
    // Whoever starts this waits for exactly this line.
    let _ = writeln!(io::stderr(), "listening on http://{address}");
    ready(address)?;
    gate::run(listener, stop.as_fd(), upstream, gate::LIMITS).map_err(failed("cannot accept connections"))?;
    store.checkpoint();
    Ok(())
}

/// A key, a server and the lines to paste, in a folder that goes when it ends.
fn try_out(host: &Host) -> Result<()> {
    let folder = PrivateFolder::make()?;
    let mut store = Store::create(&folder.path().join("invited.sqlite"))?;
    let key = create_key(&mut store, host, Some("try"))?.text();
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address =
        listener.local_addr().map_err(|error| Error::internal(format!("cannot tell the address: {error}")))?;
    store.write(|tx| tx.set(host, "url", &format!("http://{address}")))?;
    let db = folder.path().join("invited.sqlite");
    serve(&store, &listener, |address| {
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

/// Writes a result. A reader that has gone, as in `invited list HOST | head -1`, is no failure.
fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::internal(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}
