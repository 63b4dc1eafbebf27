//! The request's body on its way upstream, and the pieces kept for another try.

use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;

use super::{Attempts, Failure};
use crate::http::exchange::Exchange;
use crate::http::io::OutBuf;
use crate::http::pump::PumpError;
use crate::upstream::UpstreamConnection;

impl Attempts<'_> {
    pub(super) fn can_replay(&self, ex: &Exchange<'_>) -> bool {
        ex.upload.bytes == 0 || self.kept.is_some()
    }

    /// Moves the request's body on; an upstream that takes no more of it may still answer.
    pub(super) fn poll_upload(
        &mut self,
        ex: &mut Exchange<'_>,
        connection: &UpstreamConnection,
        out: &mut OutBuf,
        context: &mut Context<'_>,
    ) -> Result<(), Failure> {
        let Exchange { upload, down, info, .. } = ex;
        let was_received = upload.is_received();
        if was_received && out.is_empty() {
            return Ok(());
        }
        let (kept, kept_bytes) = (&mut self.kept, &mut self.kept_bytes);
        let limit = self
            .route
            .buffer_limit
            .map_or(self.cluster.cluster.per_connection_buffer_limit, |limit| limit as usize);
        let keep = |piece: &[u8]| {
            if let Some(pieces) = kept {
                *kept_bytes += piece.len();
                if *kept_bytes > limit {
                    *kept = None;
                } else {
                    pieces.push(Bytes::copy_from_slice(piece));
                }
            }
        };
        let polled = upload.poll((&down.stream, &mut down.input), (&connection.stream, out), keep, context);
        let progress = std::mem::take(&mut upload.progress);
        if !was_received && upload.is_received() {
            let now = Instant::now();
            info.times.request_complete = Some(now.saturating_duration_since(info.start));
            self.deadlines.request_complete(now);
        }
        if progress {
            self.deadlines.touch();
        }
        match polled {
            Poll::Pending | Poll::Ready(Ok(())) => Ok(()),
            Poll::Ready(Err(PumpError::SinkIo(_))) => {
                out.clear();
                Ok(())
            }
            Poll::Ready(Err(PumpError::Source(refusal))) => Err(Failure::Refused(refusal)),
            Poll::Ready(Err(PumpError::SourceClosed | PumpError::SourceIo(_))) => Err(Failure::Gone),
        }
    }
}
