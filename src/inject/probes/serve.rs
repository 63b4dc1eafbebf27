//! The sidecar's side: kubelet's questions, and those of `outrigger ready`.

use std::future::Future;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::Router;
use tokio::net::TcpListener;

use super::ask::ask;
use super::Table;

/// Why probes cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The table is none.
    #[error("the application's probes: {0}")]
    Table(serde_json::Error),
    /// The port is not free.
    #[error("the port for probes, {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
}

/// Binds `port` on all addresses and answers there with what the application says to the probes in `table` (JSON of a
/// [`Table`]), until `shutdown`. Port 0 is any that is free; which one it is, is returned.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(
    table: &str,
    port: u16,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<SocketAddr, ServeError> {
    let table: Arc<Table> = Arc::new(serde_json::from_str(table).map_err(ServeError::Table)?);
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = match TcpListener::bind(any).await {
        Ok(listener) => listener,
        // A pod without IPv6.
        Err(_) => {
            let any = SocketAddr::from(([0, 0, 0, 0], port));
            TcpListener::bind(any).await.map_err(|error| ServeError::Listen(any, error))?
        }
    };
    let bound = listener.local_addr().map_err(|error| ServeError::Listen(any, error))?;
    let router = Router::new().route("/app-health/{container}/{probe}", get(answer)).with_state(table);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(shutdown).await {
            tracing::error!("probes are no longer answered: {error}");
        }
    });
    Ok(bound)
}

async fn answer(
    State(table): State<Arc<Table>>,
    Path((container, probe)): Path<(String, String)>,
) -> (StatusCode, String) {
    let key = format!("{container}/{probe}");
    let Some(original) = table.get(&key) else {
        return (StatusCode::NOT_FOUND, format!("no probe {key:?}\n"));
    };
    match ask(original).await {
        // A redirect is good for kubelet; it must not follow it past us.
        Ok(status @ 200..=399) => (StatusCode::OK, format!("{status}\n")),
        Ok(status) => {
            let said = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (said, format!("the application said {status}\n"))
        }
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
