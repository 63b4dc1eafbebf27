//! An origin that speaks TLS with another library: it answers every request with 200 and the length of its body.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{version, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

/// What an origin demands.
#[derive(Clone, Copy, Default)]
pub struct Manner {
    /// A client certificate of the mesh's CA.
    pub demands: bool,
    /// TLS 1.2 only.
    pub old: bool,
}

pub struct TlsOrigin {
    pub port: u16,
    task: AbortHandle,
}

impl Drop for TlsOrigin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An origin's configuration with the certificate `name`.
pub fn server_config(certs: &Path, name: &str, manner: Manner) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let file = |kind: &str| certs.join(format!("{name}.{kind}"));
    let chain =
        CertificateDer::pem_file_iter(file("pem")).expect("a file").collect::<Result<_, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_file(file("key")).expect("a key");
    let versions: &[_] = if manner.old { &[&version::TLS12] } else { &[&version::TLS12, &version::TLS13] };
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).expect("TLS");
    let builder = if manner.demands {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certs.join("ca.pem")).expect("the CA")).expect("a root");
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().expect("roots");
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    builder.with_single_cert(chain, key).expect("a pair")
}

impl TlsOrigin {
    pub async fn start(certs: &Path, name: &str, manner: Manner) -> TlsOrigin {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(certs, name, manner)));
        TlsOrigin::with(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut held = Vec::new();
                let mut part = vec![0; 1 << 16];
                while let Ok(count @ 1..) = stream.read(&mut part).await {
                    held.extend_from_slice(&part[..count]);
                    let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&held[..end]).to_ascii_lowercase();
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    let length: usize = length.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
                    if held.len() < end + 4 + length {
                        continue;
                    }
                    let body = if head.starts_with("get /big") {
                        "b".repeat(3_000_000)
                    } else {
                        format!("origin {length}")
                    };
                    held.drain(..end + 4 + length);
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await
    }

    /// An origin that does `serve` with each connection.
    pub async fn with<F>(serve: impl Fn(tokio::net::TcpStream) -> F + Send + 'static) -> TlsOrigin
    where
        F: std::future::Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        TlsOrigin { port, task: task.abort_handle() }
    }
}
