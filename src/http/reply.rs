//! An answer of our own, before the connection manager's rules and its head are applied.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::route::Route;

/// An answer of our own.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) details: Cow<'static, str>,
    pub(super) body: Bytes,
    pub(super) location: Option<Vec<u8>>,
    pub(super) route: Option<Arc<Route>>,
    pub(super) overloaded: bool,
    pub(super) grpc_status: Option<&'static str>,
    pub(super) attempts: Option<u32>,
}

impl Reply {
    pub(super) fn new(status: u16, details: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            details: details.into(),
            body: Bytes::new(),
            location: None,
            route: None,
            overloaded: false,
            grpc_status: None,
            attempts: None,
        }
    }

    pub(super) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Bytes::copy_from_slice(body.as_ref());
        self
    }

    pub(super) fn location(mut self, location: Vec<u8>) -> Self {
        self.location = Some(location);
        self
    }

    pub(super) fn route(mut self, route: Arc<Route>) -> Self {
        self.route = Some(route);
        self
    }

    /// The gRPC status when it is not that of the HTTP status.
    pub(super) fn grpc_status(mut self, code: Option<&'static str>) -> Self {
        self.grpc_status = code;
        self
    }

    /// How often the request was tried, when the client is to know.
    pub(super) fn attempts(mut self, attempts: Option<u32>) -> Self {
        self.attempts = attempts;
        self
    }

    pub(super) fn overloaded(mut self, overloaded: bool) -> Self {
        self.overloaded = overloaded;
        self
    }
}
