//! A connection to a server: TCP, and TLS on it, with a limit for its whole time and for what may come in.
//!
//! The only file that names rustls and rustls_native_certs. Knows nothing of what is said on the connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};

use crate::error::{Error, Result};
use crate::thread::spawn;

/// A connection, plain or encrypted.
pub enum Wire {
    /// As it is before STARTTLS.
    Plain(Timed),
    /// With TLS.
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

impl Wire {
    /// Connects to a server by name or IP address; the deadline is for all that happens on the connection, and `bytes` for
    /// all that the server may send, TLS included.
    pub fn connect(host: &str, port: u16, deadline: Instant, bytes: usize) -> Result<Wire> {
        let mut last = None;
        let addresses = resolve(host, port, deadline)?;
        for (at, address) in addresses.iter().enumerate() {
            // One that is mute (IPv6 that leads nowhere) leaves time for the others.
            let left = deadline.saturating_duration_since(Instant::now()) / (addresses.len() - at) as u32;
            let left = left.max(Duration::from_millis(1));
            match TcpStream::connect_timeout(address, left) {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(Wire::Plain(Timed { stream, deadline, bytes, limit: bytes }));
                }
                Err(error) => last = Some(format!("{error} at {address}")),
            }
        }
        Err(Error::unavailable(last.unwrap_or_else(|| "the name has no address".to_owned())))
    }

    /// Whether the server is on this very machine.
    pub fn is_local(&self) -> bool {
        self.timed().stream.peer_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback())
    }

    /// Does the TLS handshake, for this protocol (ALPN). Where `trust` is wanted, the certificate must be good for the name
    /// and signed by an authority that this machine trusts; otherwise any will do, and [`Wire::certificate`] judges it.
    pub fn with_tls(self, name: &str, protocol: &[u8], trust: bool) -> Result<Wire> {
        let Wire::Plain(mut timed) = self else {
            return Err(Error::internal("TLS was started twice"));
        };
        let failed = |error: rustls::Error| Error::unavailable(format!("TLS failed: {error}"));
        let mut config = if trust { checked()? } else { unchecked()? };
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = server_name(name)?;
        let mut connection = ClientConnection::new(Arc::new(config), name).map_err(failed)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut timed).map_err(|error| match timed.is_over() {
                true => Error::unavailable("it does not answer in time"),
                false => Error::unavailable(format!("TLS failed: {error}")),
            })?;
        }
        Ok(Wire::Tls(Box::new(StreamOwned::new(connection, timed))))
    }

    /// What is to be said of the server's certificate, for this name and at this time and a while later, in Unix seconds; none
    /// where there is no TLS.
    pub fn certificate(&self, name: &str, now: i64, later: i64) -> Result<Option<Certificate>> {
        let Wire::Tls(tls) = self else { return Ok(None) };
        let Some([end, between @ ..]) = tls.conn.peer_certificates() else { return Ok(None) };
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(authorities()?), provider()).build();
        let verifier = verifier.map_err(|error| Error::internal(format!("cannot set TLS up: {error}")))?;
        let name = server_name(name)?;
        let at = |seconds: i64| {
            let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds.max(0).unsigned_abs()));
            verifier.verify_server_cert(end, between, &name, &[], time)
        };
        if let Err(error) = at(now) {
            return Ok(Some(Certificate::Bad(in_words(&error))));
        }
        Ok(Some(match at(later) {
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
                Certificate::Ends(i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX))
            }
            _ => Certificate::Good,
        }))
    }

    /// Whether the time for this connection has run out.
    pub fn is_over(&self) -> bool {
        self.timed().is_over()
    }

    fn timed(&self) -> &Timed {
        match self {
            Wire::Plain(timed) => timed,
            Wire::Tls(tls) => &tls.sock,
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(timed) => timed.read(buffer),
            Wire::Tls(tls) => match tls.read(buffer) {
                // The connection ended without TLS saying so first; the end of the XML stream is what counts.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                outcome => outcome,
            },
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(timed) => timed.write(bytes),
            Wire::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(timed) => timed.flush(),
            Wire::Tls(tls) => tls.flush(),
        }
    }
}

/// How good a certificate is.
#[derive(Debug, PartialEq, Eq)]
pub enum Certificate {
    /// Clients take it.
    Good,
    /// Clients take it until this time, in Unix seconds, which is soon.
    Ends(i64),
    /// Clients refuse it, for this reason.
    Bad(String),
}

fn in_words(error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(why) = error else { return error.to_string() };
    match why {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => "it is for another name",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet",
        CertificateError::UnknownIssuer => "no authority that this machine trusts has signed it",
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "it is signed by itself"
        }
        _ => return error.to_string(),
    }
    .to_owned()
}

fn server_name(name: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| Error::unavailable(format!("{name} can't be the name of a certificate")))
}

/// A socket that gives up at a point in time, and after so many bytes.
pub struct Timed {
    stream: TcpStream,
    deadline: Instant,
    /// How many bytes may still come in.
    bytes: usize,
    /// How many there were to come in at most.
    limit: usize,
}

impl Timed {
    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// The time that is left; an error where there is none.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes == 0 {
            return Err(io::Error::other(format!("it sends more than {} KiB", self.limit / 1024)));
        }
        self.stream.set_read_timeout(self.left()?)?;
        let room = buffer.len().min(self.bytes);
        let read = self.stream.read(&mut buffer[..room])?;
        self.bytes -= read;
        Ok(read)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The addresses of a name, on a thread of its own: the system's resolver keeps no deadline.
fn resolve(host: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (found, addresses) = sync_channel(1);
    let name = host.to_owned();
    spawn("resolver", 256 * 1024, move || {
        let _ = found.send((name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>));
    })?;
    match addresses.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(Error::unavailable(format!("its name can't be resolved: {error}"))),
        Err(_) => Err(Error::unavailable("its name can't be resolved in time")),
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn cannot(error: rustls::Error) -> Error {
    Error::internal(format!("cannot set TLS up: {error}"))
}

/// TLS with a certificate that an authority of this machine has signed, read anew each time: authorities change.
fn checked() -> Result<ClientConfig> {
    let roots = authorities()?;
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(cannot)?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn authorities() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(Error::unavailable(
            "this machine trusts no certificate authority (install the package ca-certificates)",
        ));
    }
    Ok(roots)
}

/// TLS with whatever certificate there is.
fn unchecked() -> Result<ClientConfig> {
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(cannot)?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider()))).with_no_client_auth())
}

/// Takes every certificate; that the server has its key is checked all the same.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
