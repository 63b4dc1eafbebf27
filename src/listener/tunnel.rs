//! TCP sessions through HTTP: a host is asked for a tunnel, and the session goes on inside.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{ready, Poll};

use bytes::{Buf, BytesMut};

use super::dialler::Open;
use crate::config::cluster::UpstreamProtocol;
use crate::http::h1::{self, ResponseLimits};
use crate::http::h2::client::{ClientStream, Heard};
use crate::http::h2::tunnel::TunnelStream;
use crate::http::h2::Outgoing;
use crate::http::head::RequestHead;
use crate::http::io::{poll_read, FIRST_READ};
use crate::runtime::Stream;
use crate::tcp::Dialed;
use crate::telemetry::stream_info::Protocol;
use crate::upstream::{HostPool, RequestPermit, UpstreamConnection, UpstreamError};

/// Heads before the final one, at most.
const MAX_INTERIM: u32 = 100;

/// Why there is no tunnel.
pub(super) enum Closed {
    /// There is no connection.
    Upstream(UpstreamError),
    /// The host did not open it; with the status that it answered, if it did.
    Refused(Option<u16>),
    /// This host cannot be asked so.
    Unspeakable,
}

impl Closed {
    /// Envoy's transport failure reason; empty where it has none.
    pub(super) fn details(&self) -> String {
        match self {
            Self::Refused(Some(status)) => format!("tunnel response:{status}"),
            Self::Unspeakable => "a tunnel by POST needs HTTP/2".to_owned(),
            Self::Refused(None) | Self::Upstream(_) => String::new(),
        }
    }
}

impl From<UpstreamError> for Closed {
    fn from(error: UpstreamError) -> Self {
        Self::Upstream(error)
    }
}

/// Asks the host of `pool` for a tunnel.
pub(super) async fn open(pool: &Rc<HostPool>, head: &RequestHead) -> Result<Dialed<Open>, Closed> {
    let http2 = match pool.cluster().http.protocol {
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Http1 | UpstreamProtocol::Downstream => false,
        UpstreamProtocol::Auto => match pool.speaks_http2() {
            Some(known) => known,
            None => pool.find_out(0).await?,
        },
    };
    if http2 {
        on_stream(pool, head).await
    } else if !head.is_method(b"CONNECT") {
        // It would have to be a body in chunks.
        Err(Closed::Unspeakable)
    } else {
        on_connection(pool, head).await
    }
}

fn permit(pool: &HostPool) -> Result<RequestPermit, UpstreamError> {
    RequestPermit::take(pool.cluster(), 0, &pool.host).ok_or(UpstreamError::Overflow("max_requests"))
}

async fn on_stream(pool: &Rc<HostPool>, head: &RequestHead) -> Result<Dialed<Open>, Closed> {
    let slot = pool.stream(0).await?;
    let permit = permit(pool)?;
    let connection = slot.connection().clone();
    let mut out = Outgoing::default();
    let mut stream = ClientStream::send(slot, head, true, &mut out).map_err(|_| Closed::Refused(None))?;
    let max_fields = pool.cluster().http.max_headers_count as usize;
    let mut interim = 0;
    let status = poll_fn(|context| loop {
        match ready!(stream.poll_head(max_fields, context)) {
            Ok(Heard::Final(parsed)) => return Poll::Ready(Some(parsed.head.status)),
            Ok(Heard::Interim(_)) if interim < MAX_INTERIM => interim += 1,
            Ok(Heard::Interim(_)) | Err(_) => return Poll::Ready(None),
        }
    })
    .await;
    // One that ends with the head leads nowhere.
    if !opens(status) || stream.incoming.is_end() {
        return Err(Closed::Refused(status));
    }
    Ok(Dialed {
        stream: Stream::of(TunnelStream::new(stream, out)),
        id: connection.id(),
        host: pool.host.clone(),
        tls: connection.tls().cloned(),
        first: BytesMut::new(),
        protocol: Some(Protocol::Http2),
        permit: Open::Tunnel { _connection: None, _request: permit },
    })
}

async fn on_connection(pool: &Rc<HostPool>, head: &RequestHead) -> Result<Dialed<Open>, Closed> {
    loop {
        let mut connection = pool.connection(0).await?;
        let permit = permit(pool)?;
        let status = ask(&mut connection, head).await;
        if status.is_none() && connection.reused && connection.input.is_empty() {
            // It was closed while it was idle.
            connection.note_remote_close();
            continue;
        }
        if !opens(status) {
            return Err(Closed::Refused(status));
        }
        let (id, tls) = (connection.id, connection.tls.clone());
        let first = std::mem::take(&mut connection.input);
        let (stream, connection) = connection.split();
        return Ok(Dialed {
            stream,
            id,
            host: pool.host.clone(),
            tls,
            first,
            protocol: Some(Protocol::Http11),
            permit: Open::Tunnel { _connection: Some(connection), _request: permit },
        });
    }
}

/// Sends the request and reads the response's head, whose status is returned; what follows stays in the input.
async fn ask(connection: &mut UpstreamConnection, head: &RequestHead) -> Option<u16> {
    let http = &connection.pool().cluster().http;
    let (case, limits) = (http.http1.header_case, ResponseLimits::of(http));
    let mut wire = Vec::new();
    h1::write::request_head(&mut wire, head, case, b"");
    connection.stream.write_all(&wire).await.ok()?;
    let mut interim = 0;
    loop {
        let UpstreamConnection { stream, input, .. } = &mut *connection;
        if !input.is_empty() {
            if let Some(parsed) = h1::parse_response(input, &limits, false, true).ok()? {
                input.advance(parsed.consumed);
                if parsed.head.status >= 200 {
                    return Some(parsed.head.status);
                }
                interim += 1;
                if interim > MAX_INTERIM || parsed.head.status == 101 {
                    return None;
                }
                continue;
            }
        }
        let count = poll_fn(|context| poll_read(stream, input, FIRST_READ, context)).await.ok()?;
        if count == 0 {
            return None;
        }
    }
}

fn opens(status: Option<u16>) -> bool {
    status.is_some_and(|status| (200..300).contains(&status))
}
