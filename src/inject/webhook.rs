//! `outrigger webhook`: a mutating admission webhook that injects pods (kubernetes.io: Dynamic Admission Control).
//!
//! Comes in: `AdmissionReview`s over TLS. Goes out: their answers, with a JSON Patch (RFC 6902) of what a pod gets.
//! A pod whose annotations are wrong is refused with the reason. Certificates that change on disk are used from the next
//! connection on.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{header, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::Router;
use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use clap::Args;
use serde_json::{json, Value};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::mpsc;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_rustls::TlsAcceptor;

use super::pod;
use super::{InjectError, Settings};

/// Largest review: the API server's own limit for an object is about 3 MiB, and a review has two.
const MAX_REVIEW: usize = 8 << 20;
/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that wait to be served.
const BACKLOG: usize = 64;

/// The flags of `outrigger webhook`.
#[derive(Debug, Clone, Args)]
pub struct WebhookFlags {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9443")]
    pub listen: SocketAddr,
    /// The certificate chain, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: PathBuf,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_key: PathBuf,
    /// What is injected; annotations of a pod override it.
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot.
pub fn run(flags: &WebhookFlags) -> Result<(), InjectError> {
    let failed = |error: io::Error| InjectError::Webhook(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let webhook = Webhook::bind(flags).await?;
        tracing::info!(address = %webhook.address, "admission reviews are answered");
        let told = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        webhook.serve(told).await
    })
}

/// A webhook that listens.
#[derive(Debug)]
pub struct Webhook {
    listener: Handshakes,
    settings: Arc<Settings>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Webhook {
    /// Binds, and reads the certificate.
    ///
    /// # Errors
    /// Either fails.
    pub async fn bind(flags: &WebhookFlags) -> Result<Self, InjectError> {
        let settings = Arc::new(super::command::settings(flags.settings.as_deref())?);
        let mut identity = Identity { flags: flags.clone(), read: None };
        identity.acceptor().map_err(InjectError::Webhook)?;
        let listen = flags.listen;
        let failed = |error: io::Error| InjectError::Webhook(format!("{listen}: {error}"));
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (ready, shaken) = mpsc::channel(BACKLOG);
        tokio::spawn(accept(listener, identity, ready));
        Ok(Self { listener: Handshakes { shaken, address }, settings, address })
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// Serving has ended otherwise.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), InjectError> {
        let router = Router::new()
            .route("/inject", post(review))
            .route("/healthz", get(|| async { "ok\n" }))
            .layer(DefaultBodyLimit::max(MAX_REVIEW))
            .with_state(self.settings);
        let served = axum::serve(self.listener, router).with_graceful_shutdown(shutdown).await;
        served.map_err(|error| InjectError::Webhook(error.to_string()))
    }
}

/// Connections whose handshake is done.
#[derive(Debug)]
struct Handshakes {
    shaken: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl axum::serve::Listener for Handshakes {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.shaken.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn accept(
    listener: TcpListener,
    mut identity: Identity,
    ready: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("no connection accepted: {error}");
                // Out of descriptors, mostly; others must end first.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let acceptor = match identity.acceptor() {
            Ok(acceptor) => acceptor,
            Err(reason) => {
                tracing::error!("the certificate cannot be used: {reason}");
                continue;
            }
        };
        let ready = ready.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                // Nobody waits for it once the webhook stops.
                Ok(Ok(secured)) => drop(ready.send((secured, peer)).await),
                Ok(Err(error)) => tracing::info!(%peer, "no TLS: {error}"),
                Err(_) => tracing::info!(%peer, "no TLS in {HANDSHAKE:?}"),
            }
        });
    }
}

/// The certificate as it is on disk.
struct Identity {
    flags: WebhookFlags,
    read: Option<([SystemTime; 2], TlsAcceptor)>,
}

impl Identity {
    /// With the files as they are; with the last good ones if they cannot be used.
    fn acceptor(&mut self) -> Result<TlsAcceptor, String> {
        match (self.changed(), &self.read) {
            (Ok(times), Some((known, acceptor))) if times == *known => Ok(acceptor.clone()),
            (Ok(times), _) => match self.load() {
                Ok(acceptor) => {
                    self.read = Some((times, acceptor.clone()));
                    Ok(acceptor)
                }
                Err(reason) => self.last(reason),
            },
            (Err(reason), _) => self.last(reason),
        }
    }

    fn last(&self, reason: String) -> Result<TlsAcceptor, String> {
        let Some((_, acceptor)) = &self.read else { return Err(reason) };
        tracing::warn!("the last good certificate stays: {reason}");
        Ok(acceptor.clone())
    }

    fn changed(&self) -> Result<[SystemTime; 2], String> {
        let of = |path: &PathBuf| {
            let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
            modified.map_err(|error| format!("{}: {error}", path.display()))
        };
        Ok([of(&self.flags.tls_cert)?, of(&self.flags.tls_key)?])
    }

    fn load(&self) -> Result<TlsAcceptor, String> {
        let (cert, key) = (&self.flags.tls_cert, &self.flags.tls_key);
        let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| format!("{}: {error}", cert.display()))?;
        let secret =
            PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
            .map_err(|error| format!("{}: {error}", cert.display()))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

async fn review(State(settings): State<Arc<Settings>>, body: Bytes) -> impl IntoResponse {
    let json = [(header::CONTENT_TYPE, "application/json")];
    match answer(&settings, &body) {
        Ok(answer) => (StatusCode::OK, json, answer.to_string()),
        Err(reason) => (StatusCode::BAD_REQUEST, json, json!({"error": reason}).to_string()),
    }
}

/// The answer to a review.
///
/// # Errors
/// It is no review.
pub fn answer(settings: &Settings, body: &[u8]) -> Result<Value, String> {
    let review: Value =
        serde_json::from_slice(body).map_err(|error| format!("no AdmissionReview: {error}"))?;
    let version = review.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if version != "admission.k8s.io/v1" {
        return Err(format!("AdmissionReview of {version:?}, which is not \"admission.k8s.io/v1\""));
    }
    let request = review.get("request").ok_or("an AdmissionReview without a request")?;
    let uid = request.get("uid").and_then(Value::as_str).ok_or("a request without a uid")?;
    let before = request.get("object").ok_or("a request without an object")?;
    let namespace = request.get("namespace").and_then(Value::as_str).unwrap_or_default();
    let name = ["name", "generateName"].iter().find_map(|key| before.get("metadata")?.get(*key)?.as_str());
    let object = format!("Pod/{}", name.unwrap_or_default());
    let mut after = before.clone();
    let response = match pod::inject(&mut after, &object, namespace, settings) {
        Ok(outcome) => {
            tracing::info!(namespace, object, ?outcome, "reviewed");
            let patch = json_patch::diff(before, &after);
            let mut response = json!({"uid": uid, "allowed": true});
            if !patch.0.is_empty() {
                let text = serde_json::to_string(&patch).map_err(|error| error.to_string())?;
                response["patchType"] = json!("JSONPatch");
                response["patch"] = json!(STANDARD.encode(text));
            }
            response
        }
        Err(error) => {
            tracing::warn!(namespace, object, "refused: {error}");
            let status =
                json!({"code": 422, "reason": "Invalid", "message": format!("sidecar injection: {error}")});
            json!({"uid": uid, "allowed": false, "status": status})
        }
    };
    Ok(json!({"apiVersion": version, "kind": "AdmissionReview", "response": response}))
}
