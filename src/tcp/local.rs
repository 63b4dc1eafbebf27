//! The terminal filters that need no upstream: echo and direct response.

use std::io;
use std::time::Duration;

use bytes::BytesMut;

use crate::policy::gate::Gate;
use crate::runtime::Stream;

/// How long a finished connection is still read, so that closing it does not reset what the client
/// has not read yet. Envoy's delayed close.
const LINGER: Duration = Duration::from_secs(1);

/// Room for one read.
const READ: usize = 16 << 10;

/// Sends everything back, `prefix` first, until the client ends its side or the gate refuses.
pub async fn echo(stream: &Stream, mut prefix: BytesMut, gate: Option<&Gate>) -> io::Result<()> {
    if let Some(gate) = gate.filter(|_| !prefix.is_empty()) {
        gate.decided().await;
        if !gate.admits() {
            gate.linger(stream).await;
            return Ok(());
        }
    }
    loop {
        stream.write_all(&prefix).await?;
        prefix.clear();
        // Wait before making room: an idle connection holds no buffer.
        if prefix.capacity() > 0 {
            prefix = BytesMut::new();
        }
        stream.readable().await?;
        prefix.reserve(READ);
        let count = stream.read_buf(&mut prefix).await?;
        if let Some(gate) = gate {
            gate.decided().await;
            if !gate.admits() {
                gate.linger(stream).await;
                return Ok(());
            }
        }
        if count == 0 {
            return stream.shutdown_write();
        }
    }
}

/// Sends `response` and closes.
pub async fn direct_response(stream: &Stream, response: &[u8]) -> io::Result<()> {
    stream.write_all(response).await?;
    stream.shutdown_write()?;
    let drain = async {
        let mut rest = BytesMut::with_capacity(1024);
        while stream.read_buf(&mut rest).await? > 0 {
            rest.clear();
        }
        Ok(())
    };
    tokio::time::timeout(LINGER, drain).await.unwrap_or(Ok(()))
}
