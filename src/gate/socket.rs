//! Listening sockets and their connections: TCP and Unix alike, made here or handed over by a supervisor.

use std::fmt;
use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size, socket_domain};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, getsockname, recv, socket_with,
};
use rustix::process::umask;

/// What the log and the handlers are told of a client that came over a Unix socket.
pub const UNIX_PEER: &str = "unix";

/// The system's buffer for an unread answer, in bytes: a page without a style of its own fits.
const SEND_BUFFER: usize = 64 * 1024;

/// The system's buffer for an unread request, in bytes.
const RECEIVE_BUFFER: usize = 32 * 1024;

/// Who comes in by a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Everybody.
    Guests,
    /// The admin's programs.
    Admin,
}

/// A socket that takes connections.
pub struct Listener {
    socket: Socket,
    /// Who comes here.
    pub door: Door,
}

enum Socket {
    Tcp(TcpListener),
    /// Its path where this process has made it, with the device and inode by which to know it again.
    Unix(UnixListener, Option<(PathBuf, u64, u64)>),
}

impl Listener {
    /// Listens on an address; port 0 takes a free one.
    pub fn tcp(address: SocketAddr, door: Door) -> io::Result<Listener> {
        Ok(Listener { socket: Socket::Tcp(TcpListener::bind(address)?), door })
    }

    /// Listens on a path, with this access mode. Takes the place of a socket on which nobody listens any more.
    ///
    /// The socket has its mode from the start: it is never open to more than that, and its name, which may mean another file by
    /// then, is not used to change it. The umask is the whole process's, so that this comes before any thread.
    pub fn unix(path: &Path, mode: u32, door: Door) -> io::Result<Listener> {
        let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
        if is_socket && is_abandoned(path)? {
            fs::remove_file(path)?;
        }
        let before = umask(Mode::from_raw_mode(!mode & 0o777));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound?;
        let found = path.symlink_metadata()?;
        Ok(Listener { socket: Socket::Unix(listener, Some((path.to_owned(), found.dev(), found.ino()))), door })
    }

    /// A socket that somebody else has made and listens on.
    pub fn inherited(fd: OwnedFd, door: Door) -> io::Result<Listener> {
        let socket = match socket_domain(&fd)? {
            AddressFamily::UNIX => Socket::Unix(fd.into(), None),
            AddressFamily::INET | AddressFamily::INET6 => Socket::Tcp(fd.into()),
            _ => return Err(io::Error::other("it is neither TCP nor a Unix socket")),
        };
        Ok(Listener { socket, door })
    }

    /// The next connection.
    pub fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Socket::Unix(listener, _) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
        }
    }

    /// Whether accepting waits for a connection.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(listener) => listener.set_nonblocking(true),
            Socket::Unix(listener, _) => listener.set_nonblocking(true),
        }
    }

    /// Bounds the system's buffers of each connection, which otherwise grow to some megabytes for a client that never reads.
    /// Connections inherit this from a TCP listener; buffers of Unix sockets are small by themselves.
    pub fn bound_buffers(&self) -> io::Result<()> {
        if let Socket::Tcp(listener) = &self.socket {
            set_socket_send_buffer_size(listener, SEND_BUFFER)?;
            set_socket_recv_buffer_size(listener, RECEIVE_BUFFER)?;
        }
        Ok(())
    }

    /// Where a Unix socket is that goes at the end.
    pub fn path(&self) -> Option<PathBuf> {
        match &self.socket {
            Socket::Unix(_, Some((path, ..))) => Some(path.clone()),
            _ => None,
        }
    }

    /// The address of a TCP socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }
}

/// Whether nobody listens on a Unix socket. Connecting would wait for a program that hangs and has its queue full.
fn is_abandoned(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(connect(&probe, &SocketAddrUnix::new(path)?) == Err(Errno::CONNREFUSED))
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.socket {
            Socket::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "http://{address}"),
                Err(error) => write!(f, "({error})"),
            },
            Socket::Unix(listener, _) => match listener.local_addr() {
                Ok(address) => write!(f, "unix:{}", address.as_pathname().unwrap_or(Path::new("-")).display()),
                Err(error) => write!(f, "({error})"),
            },
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, Some((path, device, inode))) = &self.socket {
            // Another process may have put its own there.
            let is_ours = path.symlink_metadata().is_ok_and(|found| (found.dev(), found.ino()) == (*device, *inode));
            if is_ours {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// A client's connection.
pub enum Stream {
    /// Over the network.
    Tcp(TcpStream),
    /// From this machine.
    Unix(UnixStream),
}

impl Stream {
    /// A connection that somebody else has accepted.
    pub fn inherited(fd: OwnedFd) -> io::Result<Stream> {
        match getsockname(&fd)?.address_family() {
            AddressFamily::UNIX => Ok(Stream::Unix(fd.into())),
            _ => Ok(Stream::Tcp(fd.into())),
        }
    }

    /// The client's address without its port, or [`UNIX_PEER`].
    pub fn peer(&self) -> String {
        match self {
            Stream::Tcp(_) => self.address().map_or_else(|| "-".to_owned(), |address| address.to_string()),
            Stream::Unix(_) => UNIX_PEER.to_owned(),
        }
    }

    /// The network that the client is in; none if it is this machine's own socket.
    pub fn network(&self) -> Option<IpAddr> {
        self.address().map(network)
    }

    fn address(&self) -> Option<IpAddr> {
        match self {
            Stream::Tcp(stream) => stream.peer_addr().ok().map(|peer| peer.ip().to_canonical()),
            Stream::Unix(_) => None,
        }
    }

    /// Sends small answers at once.
    pub fn set_nodelay(&self) {
        if let Stream::Tcp(stream) = self {
            let _ = stream.set_nodelay(true);
        }
    }

    /// How long reading waits.
    pub fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(timeout)),
        }
    }

    /// How long writing waits.
    pub fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_write_timeout(Some(timeout)),
            Stream::Unix(stream) => stream.set_write_timeout(Some(timeout)),
        }
    }

    /// Whether the client has closed the connection, or its sending side, and left no byte to read.
    pub fn is_closed_by_client(&self) -> bool {
        let fd = match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        };
        let peeked = recv(fd, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Ok((0, _)) | Err(Errno::CONNRESET))
    }

    /// Ends one direction or both.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(how),
            Stream::Unix(stream) => stream.shutdown(how),
        }
    }
}

/// What an address is counted by: one of IPv6 by its network (/64), of which a client has all addresses.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        address => address,
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).read(buffer),
            Stream::Unix(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).write(bytes),
            Stream::Unix(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).write_vectored(pieces),
            Stream::Unix(stream) => (&mut &*stream).write_vectored(pieces),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
