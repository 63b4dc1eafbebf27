//! The sidecar's side: kubelet's questions, and those of `outrigger ready`.

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::Router;

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
    /// Its socket cannot be used.
    #[error("the port for probes: {0}")]
    Use(std::io::Error),
}

/// Binds `port` on all addresses.
///
/// # Errors
/// [`ServeError::Listen`].
pub fn listen(port: u16) -> Result<TcpListener, ServeError> {
    let bind = |any: SocketAddr| TcpListener::bind(any).map_err(|error| ServeError::Listen(any, error));
    // A pod may be without IPv6.
    bind((Ipv6Addr::UNSPECIFIED, port).into()).or_else(|_| bind((Ipv4Addr::UNSPECIFIED, port).into()))
}

/// Answers on `listener` with what the application says to the probes in `table` (JSON of a [`Table`]), until
/// `shutdown`. Where it listens is returned.
///
/// # Errors
/// [`ServeError`].
pub fn serve(
    table: &str,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<SocketAddr, ServeError> {
    let table: Arc<Table> = Arc::new(serde_json::from_str(table).map_err(ServeError::Table)?);
    let bound = listener.local_addr().map_err(ServeError::Use)?;
    listener.set_nonblocking(true).map_err(ServeError::Use)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(ServeError::Use)?;
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
