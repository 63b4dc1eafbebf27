//! Redirects, and the locations they send clients to.

use std::sync::LazyLock;

use bytes::Bytes;

use super::path::PathMatch;
use super::rewrite::PathRewrite;
use crate::config::headers::{HeaderKey, Known, RequestView};

static FORWARDED_PROTO: LazyLock<HeaderKey> = LazyLock::new(|| Known::XForwardedProto.into());

/// A redirect (`RedirectAction`).
#[derive(Debug, Clone)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// New scheme; `None` = the request's.
    pub scheme: Option<Bytes>,
    /// New host, possibly with a port; `None` = the request's.
    pub host: Option<Bytes>,
    /// New port.
    pub port: Option<u16>,
    /// New path.
    pub path: RedirectPath,
    /// Leave out the query (unless the new path brings its own).
    pub strip_query: bool,
}

/// The path of a redirect.
#[derive(Debug, Clone, Default)]
pub enum RedirectPath {
    /// The request's.
    #[default]
    Keep,
    /// This one; the request's query is added if it has none.
    Replace(Bytes),
    /// The request's, rewritten.
    Rewrite(PathRewrite),
}

impl Redirect {
    /// Value of `location` for `request`, which `matched` let through.
    pub fn location<R: RequestView>(&self, matched: &PathMatch, request: &R) -> Vec<u8> {
        let rewritten = self.rewritten_path(matched, request.path());
        let path = rewritten.as_deref().unwrap_or(request.path());
        let scheme = self.scheme.as_deref().unwrap_or(request.scheme());
        let mut out = Vec::with_capacity(request.authority().len() + path.len() + 32);
        out.extend_from_slice(scheme);
        out.extend_from_slice(b"://");
        match &self.host {
            Some(host) => out.extend_from_slice(host),
            None => out.extend_from_slice(self.kept_host(scheme, request)),
        }
        if let Some(port) = self.port {
            out.push(b':');
            out.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
        }
        let (path, query) = split_query(path);
        match &self.path {
            RedirectPath::Replace(new) => {
                out.extend_from_slice(new);
                let has_query = new.contains(&b'?');
                if !has_query && !self.strip_query {
                    out.extend_from_slice(query);
                }
            }
            RedirectPath::Keep | RedirectPath::Rewrite(_) => {
                out.extend_from_slice(path);
                if !self.strip_query {
                    out.extend_from_slice(query);
                }
            }
        }
        out
    }

    /// The request's path after the redirect's rewrite, as logs show it; `None` = unchanged.
    pub fn rewritten_path(&self, matched: &PathMatch, original: &[u8]) -> Option<Vec<u8>> {
        match &self.path {
            RedirectPath::Rewrite(rewrite) => Some(rewrite.apply(matched, original)),
            RedirectPath::Keep | RedirectPath::Replace(_) => None,
        }
    }

    /// The request's authority, without a port that the new port replaces or that was the default of
    /// the scheme that is left.
    fn kept_host<'r, R: RequestView>(&self, scheme: &[u8], request: &'r R) -> &'r [u8] {
        let authority = request.authority();
        let port = if authority.starts_with(b"[") {
            memchr::memmem::rfind(authority, b"]:").map(|bracket| bracket + 1)
        } else {
            memchr::memrchr(b':', authority)
        };
        let Some((host, port)) = port.and_then(|port| authority.split_at_checked(port)) else {
            return authority;
        };
        let left = forwarded_proto(request);
        let was_default = (left == b"https" && port == b":443") || (left == b"http" && port == b":80");
        if self.port.is_some() || (scheme != left && was_default) {
            host
        } else {
            authority
        }
    }
}

/// Value of `location` of the 301 that `require_tls` answers plain-text requests with.
pub fn tls_location<R: RequestView>(request: &R) -> Vec<u8> {
    [b"https://", request.authority(), request.path()].concat()
}

/// The request's own URL, which direct responses with a status of 201 or 3xx name in `location`.
pub fn own_location<R: RequestView>(request: &R) -> Vec<u8> {
    [request.scheme(), b"://", request.authority(), request.path()].concat()
}

/// The scheme the client used, as far as we were told.
pub(super) fn forwarded_proto<R: RequestView>(request: &R) -> &[u8] {
    request.first(&FORWARDED_PROTO).filter(|value| !value.is_empty()).unwrap_or(request.scheme())
}

fn split_query(path: &[u8]) -> (&[u8], &[u8]) {
    let query = memchr::memchr(b'?', path).unwrap_or(path.len());
    path.split_at_checked(query).unwrap_or((path, b""))
}
