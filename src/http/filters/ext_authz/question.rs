//! What the service is asked.

use std::collections::HashMap;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::service::auth::v3 as pb;
use outrigger_control_api::pb::envoy::service::auth::v3::attribute_context as context;

use super::{any, Buffering, Config, HttpService, PerRoute};
use crate::config::discovery::SanKind;
use crate::config::route::RouteFilter;
use crate::config::{Known, RequestView};
use crate::http::call;
use crate::http::exchange::Exchange;
use crate::http::filters::chain::At;
use crate::http::head::RequestHead;
use crate::telemetry::stream_info::{ConnectionInfo, Protocol};
use crate::telemetry::told::{socket, timestamp, utf8};
use crate::tls::peer::Facts;

/// Says whether what the service sees of a body is not all of it.
const PARTIAL: &str = "x-envoy-auth-partial-body";

impl Config {
    /// The body that the service sees, and whether it is cut.
    fn body(&self, ex: &Exchange<'_>, buffering: Option<Buffering>) -> Option<(Bytes, bool)> {
        let buffering = buffering?;
        let body = ex.filters.as_ref()?.body.clone()?;
        let cut = body.len() > buffering.most;
        Some((body.slice(..body.len().min(buffering.most)), cut))
    }

    /// Calls `each` with every header that the service may see.
    fn visible(&self, request: &RequestHead, mut each: impl FnMut(&str, &[u8])) {
        let pseudo = [
            (":authority", request.authority()),
            (":path", request.path()),
            (":method", request.method()),
            (":scheme", request.scheme()),
        ];
        let pseudo = pseudo.into_iter().filter(|(_, value)| !value.is_empty());
        let pseudo = pseudo.map(|(name, value)| (name.as_bytes(), value));
        for (name, value) in pseudo.chain(request.fields.iter().map(|(_, name, value)| (name, value))) {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            let hidden = name == PARTIAL
                || any(&self.disallowed, name.as_bytes())
                || self.allowed.as_ref().is_some_and(|allowed| !any(allowed, name.as_bytes()));
            if !hidden {
                each(&name, value);
            }
        }
    }

    pub(super) fn question(
        &self,
        ex: &Exchange<'_>,
        at: &At<'_>,
        buffering: Option<Buffering>,
    ) -> pb::CheckRequest {
        let Some(request) = &ex.request else { return pb::CheckRequest::default() };
        let connection = &ex.info.connection;
        let service = request.fields.get(Known::XEnvoyDownstreamServiceCluster);
        let (mut source, destination) = peers(connection, self.peer_certificate);
        source.service = service.map(utf8).unwrap_or_default();
        let mut extensions = HashMap::new();
        for level in at.levels().iter().rev() {
            if let RouteFilter::ExtAuthz(PerRoute::Settings { extensions: own, .. }) = &**level {
                extensions.extend(own.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
        }
        let attributes = pb::AttributeContext {
            source: Some(source),
            destination: Some(destination),
            request: Some(context::Request {
                time: Some(timestamp(ex.info.start_time())),
                http: Some(self.http(ex, request, buffering)),
            }),
            context_extensions: extensions,
            metadata_context: Some(self.metadata(ex)),
            route_metadata_context: Some(self.route_metadata(at)),
            tls_session: self.tls_session.then(|| session(connection)),
        };
        pb::CheckRequest { attributes: Some(attributes) }
    }

    fn http(
        &self,
        ex: &Exchange<'_>,
        request: &RequestHead,
        buffering: Option<Buffering>,
    ) -> context::HttpRequest {
        let mut http = context::HttpRequest {
            id: ex.worker.random().to_string(),
            method: utf8(request.method()),
            path: utf8(request.path()),
            host: utf8(request.authority()),
            scheme: utf8(request.scheme()),
            size: i64::try_from(ex.upload.bytes).unwrap_or(i64::MAX),
            protocol: ex.info.protocol.unwrap_or(Protocol::Http11).name().to_owned(),
            ..context::HttpRequest::default()
        };
        let raw = |name: &str, value: &[u8]| core::HeaderValue {
            key: name.to_owned(),
            raw_value: value.to_vec(),
            ..core::HeaderValue::default()
        };
        let mut map = core::HeaderMap::default();
        self.visible(request, |name, value| {
            if self.raw_headers {
                map.headers.push(raw(name, value));
            } else if let Some(before) = http.headers.get_mut(name) {
                before.push(',');
                before.push_str(&utf8(value));
            } else {
                http.headers.insert(name.to_owned(), utf8(value));
            }
        });
        if let Some((body, cut)) = self.body(ex, buffering) {
            let partial = if cut { "true" } else { "false" };
            if self.raw_headers {
                map.headers.push(raw(PARTIAL, partial.as_bytes()));
            } else {
                http.headers.insert(PARTIAL.to_owned(), partial.to_owned());
            }
            if self.bytes {
                http.raw_body = body.to_vec();
            } else {
                http.body = utf8(&body);
            }
        }
        http.header_map = self.raw_headers.then_some(map);
        http
    }

    fn metadata(&self, ex: &Exchange<'_>) -> core::Metadata {
        let mut seen = core::Metadata::default();
        if let Some(all) = ex.info.metadata.as_ref().filter(|_| !self.namespaces.is_empty()) {
            for name in &self.namespaces {
                if let Some(found) = all.get(&**name) {
                    seen.filter_metadata.insert(name.to_string(), found.clone());
                }
            }
        }
        if let Some(all) = ex.info.typed_metadata.as_ref() {
            let found = self.typed_namespaces.iter().filter_map(|name| all.get_key_value(&**name));
            seen.typed_filter_metadata.extend(found.map(|(name, value)| (name.clone(), value.clone())));
        }
        seen
    }

    fn route_metadata(&self, at: &At<'_>) -> core::Metadata {
        let mut seen = core::Metadata::default();
        let all = at.course.route().and_then(|route| route.metadata.as_ref());
        for name in &self.route_namespaces {
            if let Some(found) = all.and_then(|all| all.get(&**name)) {
                seen.filter_metadata.insert(name.to_string(), found.clone());
            }
        }
        seen
    }

    /// The request to an HTTP service, and its body.
    pub(super) fn http_question(
        &self,
        service: &HttpService,
        ex: &Exchange<'_>,
        buffering: Option<Buffering>,
    ) -> Option<(RequestHead, Bytes)> {
        let request = ex.request.as_ref()?;
        let mut path = service.path_prefix.to_vec();
        if service.path_override.is_empty() {
            path.extend_from_slice(request.path());
        } else {
            path = service.path_override.to_vec();
        }
        let body = self.body(ex, buffering);
        let mut head = call::head(request.method(), request.authority(), &path, request.scheme());
        let length = body.as_ref().map_or(0, |(body, _)| body.len());
        let mut digits = itoa::Buffer::new();
        head.fields.push_known(Known::ContentLength, digits.format(length).as_bytes());
        let mut seen: HashMap<String, Vec<u8>> = HashMap::new();
        let mut order = Vec::new();
        self.visible(request, |name, value| {
            if name.starts_with(':') || name == "content-length" || name == "transfer-encoding" {
                return;
            }
            match seen.get_mut(name) {
                Some(before) => {
                    before.push(b',');
                    before.extend_from_slice(value);
                }
                None => {
                    seen.insert(name.to_owned(), value.to_vec());
                    order.push(name.to_owned());
                }
            }
        });
        for name in order {
            if let Some(value) = seen.get(&name) {
                head.fields.push(name.as_bytes(), value);
            }
        }
        if let Some((_, cut)) = &body {
            head.fields.push(PARTIAL.as_bytes(), if *cut { b"true" } else { b"false" });
        }
        service.headers.apply_to_request(&mut head, &ex.info);
        let timeout = service.target.timeout;
        let per_try = service.retries.and_then(|retries| retries.per_try(timeout));
        call::sign_only(&mut head, per_try.or(timeout));
        Some((head, body.map(|(body, _)| body).unwrap_or_default()))
    }
}

/// The client and this end of its connection; the client with its certificate where that is wanted.
pub fn peers(connection: &ConnectionInfo, certificate: bool) -> (context::Peer, context::Peer) {
    let tls = connection.tls.as_ref();
    let peer = tls.and_then(|tls| tls.peer.as_ref());
    let source = context::Peer {
        address: connection.remote.map(socket),
        principal: peer.map(|peer| principal(peer.facts())).unwrap_or_default(),
        certificate: match peer {
            Some(peer) if certificate => peer.pem().to_owned(),
            _ => String::new(),
        },
        ..context::Peer::default()
    };
    let destination = context::Peer {
        address: connection.local.map(socket),
        principal: tls.and_then(|tls| tls.local_facts()).map(principal).unwrap_or_default(),
        ..context::Peer::default()
    };
    (source, destination)
}

/// The name of a certificate's owner.
fn principal(facts: &Facts) -> String {
    let first = |kind| facts.of_kind(kind).next().map(str::to_owned);
    first(SanKind::Uri).or_else(|| first(SanKind::Dns)).unwrap_or_else(|| facts.subject.clone())
}

/// The name that the client asked for.
pub fn session(connection: &ConnectionInfo) -> context::TlsSession {
    context::TlsSession { sni: connection.server_name.as_deref().unwrap_or_default().to_owned() }
}
