//! What `doctor` is tested with: certificates, and a web server before `invited serve` that can get things wrong.

use std::io::{Read as _, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::harness::{PATIENCE, available, connect};
use crate::prosody::Site;

/// What a web server makes of a request (its whole head): passes on another one, or answers by itself.
pub type OnRequest = fn(&str) -> Result<String, String>;

/// What it makes of the answer.
pub type OnAnswer = fn(String) -> String;

/// A web server on a free port of this machine, with TLS if it has a certificate. Its thread ends with the test.
pub struct Web {
    pub addr: SocketAddr,
}

impl Web {
    /// One that passes all on as it is.
    pub fn start(upstream: SocketAddr, certificate: Option<(&Path, &str)>) -> Web {
        Web::start_with(upstream, certificate, |request| Ok(request.to_owned()), |answer| answer)
    }

    /// One that changes what it passes on. The certificate is a folder, and a name of [`make_certificate`].
    pub fn start_with(
        upstream: SocketAddr,
        certificate: Option<(&Path, &str)>,
        on_request: OnRequest,
        on_answer: OnAnswer,
    ) -> Web {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Web::start_on(listener, upstream, certificate, on_request, on_answer)
    }

    /// One on a socket that is there.
    pub fn start_on(
        listener: TcpListener,
        upstream: SocketAddr,
        certificate: Option<(&Path, &str)>,
        on_request: OnRequest,
        on_answer: OnAnswer,
    ) -> Web {
        let addr = listener.local_addr().unwrap();
        let config = certificate.map(|(folder, name)| Arc::new(server_config(folder, name)));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, config) = (stream.unwrap(), config.clone());
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                // A client that looks at the certificate alone says nothing; that is no reason to stop.
                std::thread::spawn(move || match config {
                    Some(config) => {
                        let tls = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
                        pass_on(tls, upstream, on_request, on_answer);
                    }
                    None => pass_on(stream, upstream, on_request, on_answer),
                });
            }
        });
        Web { addr }
    }
}

fn pass_on(mut client: impl std::io::Read + Write, upstream: SocketAddr, on_request: OnRequest, on_answer: OnAnswer) {
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    while !head.ends_with(b"\r\n\r\n") {
        match client.read(&mut piece) {
            Ok(length) if length > 0 => head.extend_from_slice(&piece[..length]),
            _ => return,
        }
    }
    let answer = match on_request(std::str::from_utf8(&head).unwrap()) {
        Ok(request) => {
            let mut stream = connect(upstream);
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            on_answer(answer)
        }
        Err(answer) => answer,
    };
    let _ = client.write_all(answer.as_bytes()).and_then(|()| client.flush());
}

fn server_config(folder: &Path, name: &str) -> ServerConfig {
    let certificate = CertificateDer::from_pem_file(folder.join(format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key"))).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    builder.with_single_cert(vec![certificate], key).unwrap()
}

/// Whether there is what certificates are made with.
pub fn has_openssl() -> bool {
    available("openssl", Command::new("openssl").arg("version").output().is_ok())
}

/// Makes `NAME.pem` and `NAME.key`: a certificate for a host, good for so many days and signed by `ca` of the folder; an
/// authority if there is no host.
pub fn make_certificate(folder: &Path, name: &str, host: &str, days: u32) {
    std::fs::write(folder.join("openssl.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(["req", "-config", "openssl.cnf", "-x509", "-nodes", "-days", &days.to_string()]);
    command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", &format!("/CN={name}")]);
    command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
    if host.is_empty() {
        command.args(["-addext", "basicConstraints=critical,CA:TRUE"]);
    } else {
        let kind = if host.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" };
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        command.args(["-addext", &format!("subjectAltName={kind}:{host}"), "-CA", "ca.pem", "-CAkey", "ca.key"]);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// What makes Prosody demand TLS, with this certificate.
pub fn with_tls(site: &Site, certificate: &str) -> Vec<(&'static str, String)> {
    let [key, certificate] = ["key", "pem"].map(|kind| site.seen_by_prosody(&format!("{certificate}.{kind}")));
    let ssl = format!("ssl = {{ key = \"{key}\", certificate = \"{certificate}\" }}");
    vec![
        ("\"saslauth\" }", "\"saslauth\"; \"tls\" }".to_owned()),
        ("c2s_require_encryption = false", format!("c2s_require_encryption = true\n{ssl}")),
    ]
}

/// An address of this machine that is not its loopback. No packet is sent for it.
pub fn address_of_this_machine() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    let found = socket.connect("198.51.100.1:9").and_then(|()| socket.local_addr());
    let ip = found.ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback());
    available("network", ip.is_some());
    ip
}

/// An XMPP server that says these texts, each once the one before it has been answered, and then waits to be left.
pub fn play_xmpp(steps: Vec<(&'static str, String)>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _): (TcpStream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = [0; 4096];
        for (awaited, answer) in steps {
            let mut heard = String::new();
            while !heard.contains(awaited) {
                match stream.read(&mut bytes) {
                    Ok(length) if length > 0 => heard.push_str(&String::from_utf8_lossy(&bytes[..length])),
                    _ => return,
                }
            }
            stream.write_all(answer.as_bytes()).unwrap();
        }
        while stream.read(&mut bytes).is_ok_and(|length| length > 0) {}
    });
    addr
}
