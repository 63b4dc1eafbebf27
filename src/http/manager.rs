//! What the connection manager does to heads on their way in and out
//! (envoyproxy.io: http_conn_man/headers, header_sanitizing).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::detection::{detect, is_list};
use super::h1::Refusal;
use super::head::{RequestHead, ResponseHead};
use super::path::{normalize, Normalized};
use super::worker::Worker;
use crate::config::http::{EscapedSlashes, HttpConnectionManager, ServerHeader, StripPort};
use crate::config::{Known, KnownSet, RequestView};
use crate::telemetry::stream_info::{ConnectionInfo, StreamInfo};
use std::time::Instant;

/// Why a request goes no further than the connection manager.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// A bad message: status text as body, flag DPE, close.
    Refuse(Refusal),
    /// An empty answer; `close` says whether the connection ends.
    Answer {
        /// The status.
        status: u16,
        /// `response_code_details`.
        details: &'static str,
        /// Whether the connection is closed.
        close: bool,
    },
    /// A redirect to the normalised path.
    Redirect(Vec<u8>),
}

const HOP_BY_HOP: KnownSet = Known::Connection.bit()
    | Known::KeepAlive.bit()
    | Known::ProxyConnection.bit()
    | Known::TransferEncoding.bit()
    | Known::Upgrade.bit()
    | Known::Http2Settings.bit();

/// Removed from requests of external clients.
const EXTERNAL: KnownSet = Known::XEnvoyMaxRetries.bit()
    | Known::XEnvoyRetryOn.bit()
    | Known::XEnvoyRetryGrpcOn.bit()
    | Known::XEnvoyRetriableStatusCodes.bit()
    | Known::XEnvoyRetriableHeaderNames.bit()
    | Known::XEnvoyUpstreamAltStatName.bit()
    | Known::XEnvoyUpstreamRqTimeoutAltResponse.bit()
    | Known::XEnvoyUpstreamRqTimeoutMs.bit()
    | Known::XEnvoyUpstreamRqPerTryTimeoutMs.bit()
    | Known::XEnvoyUpstreamStreamDurationMs.bit()
    | Known::XEnvoyHedgeOnPerTryTimeout.bit()
    | Known::XEnvoyExpectedRqTimeoutMs.bit()
    | Known::XEnvoyForceTrace.bit()
    | Known::XEnvoyIpTags.bit()
    | Known::XEnvoyOriginalUrl.bit();

/// Removed as well where the client is at the edge of the mesh.
const EDGE: KnownSet = Known::XEnvoyDecoratorOperation.bit()
    | Known::XEnvoyDownstreamServiceCluster.bit()
    | Known::XEnvoyDownstreamServiceNode.bit()
    | Known::XEnvoyOriginalPath.bit()
    | Known::XEnvoyOriginalHost.bit();

/// Checks and rewrites a request head before routing.
///
/// # Errors
/// [`Stop`] when the request must not be routed.
pub fn prepare_request(
    manager: &HttpConnectionManager,
    head: &mut RequestHead,
    info: &StreamInfo,
    worker: &Worker,
) -> Result<(), Stop> {
    let connection = &*info.connection;
    if head.authority().is_empty() {
        return Err(Stop::Answer { status: 400, details: "missing_host_header", close: true });
    }
    check_path(manager, head)?;
    for early in &manager.early {
        early.change_request(head, info);
    }
    strip_hop_by_hop(head)?;
    client_address(manager, head, connection, worker)?;
    strip_authority(manager, head, connection);
    if let Some(via) = &manager.via {
        append_list(head, Known::Via, via);
    }
    Ok(())
}

/// As [`prepare_request`], of what was redirected here: what it says of its client was settled the first time.
///
/// # Errors
/// [`Stop`] when the request must not be routed.
pub fn prepare_again(
    manager: &HttpConnectionManager,
    head: &mut RequestHead,
    info: &StreamInfo,
) -> Result<(), Stop> {
    check_path(manager, head)?;
    strip_authority(manager, head, &info.connection);
    Ok(())
}

fn check_path(manager: &HttpConnectionManager, head: &mut RequestHead) -> Result<(), Stop> {
    if head.is_method(b"CONNECT") {
        return Ok(());
    }
    if head.path().first() != Some(&b'/') {
        manager.stats.downstream_rq_non_relative_path.increment(1);
        return Err(Stop::Answer { status: 404, details: "absolute_path_rejected", close: false });
    }
    let refused = || Stop::Answer { status: 400, details: "path_normalization_failed", close: true };
    if memchr::memchr(b'#', head.path()).is_some() {
        manager.stats.downstream_rq_failed_path_normalization.increment(1);
        return Err(refused());
    }
    if !manager.normalize_path && !manager.merge_slashes && manager.escaped_slashes == EscapedSlashes::Keep {
        return Ok(());
    }
    match normalize(head.path(), manager.normalize_path, manager.merge_slashes, manager.escaped_slashes) {
        Normalized::Unchanged => Ok(()),
        Normalized::Changed(path) => {
            head.set_path(&path);
            Ok(())
        }
        Normalized::Redirect(path) => {
            manager.stats.downstream_rq_redirected_with_normalized_path.increment(1);
            head.set_path(&path);
            Err(Stop::Redirect(path))
        }
        Normalized::Refused(path) => {
            if let Some(path) = path {
                head.set_path(&path);
            }
            manager.stats.downstream_rq_failed_path_normalization.increment(1);
            Err(refused())
        }
    }
}

/// Removes what concerns only this hop, including what `Connection` names (RFC 9110 §7.6.1). A client
/// must not be able to take away what proxies before us have said, or its own identity.
fn strip_hop_by_hop(head: &mut RequestHead) -> Result<(), Stop> {
    if head.fields.has(Known::Connection) {
        let mut named: Vec<Vec<u8>> = Vec::new();
        for value in head.fields.all(Known::Connection) {
            for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if is_usual_option(option) {
                    continue;
                }
                named.push(option.to_ascii_lowercase());
            }
        }
        for name in named {
            match Known::of(&name) {
                Known::Te | Known::TransferEncoding => {}
                Known::Authorization
                | Known::Cookie
                | Known::Host
                | Known::XRequestId
                | Known::XForwardedFor
                | Known::XForwardedHost
                | Known::XForwardedProto
                | Known::XForwardedPort
                | Known::XForwardedClientCert => return Err(Stop::Refuse(Refusal::CONNECTION)),
                _ if name.starts_with(b":") || name.starts_with(b"x-envoy-") => {
                    return Err(Stop::Refuse(Refusal::CONNECTION))
                }
                Known::Other => {
                    head.fields.remove_where(|field| field.eq_ignore_ascii_case(&name));
                }
                known => {
                    head.fields.remove_known(known);
                }
            }
        }
    }
    let upgrade = head.upgrade().filter(|_| !head.is_method(b"CONNECT"));
    // `h2c` is never passed on: the request goes on as HTTP/1.1.
    let accepted = upgrade.filter(|kind| *kind != b"h2c").is_some();
    if accepted {
        let keep = Known::Connection.bit() | Known::Upgrade.bit();
        head.fields.remove_set(HOP_BY_HOP & !keep);
    } else {
        if upgrade.is_some() {
            head.clear_upgrade();
        }
        head.fields.remove_set(HOP_BY_HOP);
    }
    if head.fields.has(Known::Te) {
        let trailers = head
            .fields
            .all(Known::Te)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"));
        head.fields.remove_known(Known::Te);
        if trailers {
            head.fields.push_known(Known::Te, b"trailers");
        }
    }
    // Statistics by a name of the client's choice are not kept; the wish ends here as in Envoy.
    head.fields.remove_set(Known::XEnvoyInternal.bit() | Known::XEnvoyUpstreamAltStatName.bit());
    Ok(())
}

fn is_usual_option(option: &[u8]) -> bool {
    match option.len() {
        0 => true,
        5 => option.eq_ignore_ascii_case(b"close"),
        7 => option.eq_ignore_ascii_case(b"upgrade"),
        10 => option.eq_ignore_ascii_case(b"keep-alive"),
        _ => false,
    }
}

/// Who the client is, and what that means for the headers that only trusted peers may set.
fn client_address(
    manager: &HttpConnectionManager,
    head: &mut RequestHead,
    connection: &ConnectionInfo,
    worker: &Worker,
) -> Result<(), Stop> {
    let peer = connection.remote;
    let had_forwarded_for = head.fields.has(Known::XForwardedFor);
    let hops = manager.xff_num_trusted_hops;
    let (client, internal) = if manager.use_remote_address {
        let client = if hops == 0 { None } else { nth_from_right(head, hops as usize - 1) };
        let internal = !had_forwarded_for
            && match peer {
                Some(peer) => is_internal(manager, peer.ip()),
                // Without an address of our own, it is a Unix socket and no peer that is gone.
                None => manager.internal_unix && connection.direct_local.is_none(),
            };
        if let (Some(peer), false) = (peer, manager.skip_xff_append) {
            append_peer(head, peer.ip(), worker);
        }
        (client.map(with_port_0).or(peer), internal)
    } else if !manager.detections.is_empty() {
        let found = detect(&manager.detections, head, peer.map(|peer| peer.ip())).map_err(|status| {
            manager.stats.downstream_rq_rejected_via_ip_detection.increment(1);
            Stop::Answer { status, details: "rejecting_because_detection_failed", close: false }
        })?;
        if let Some(peer) = peer.filter(|_| found.append) {
            append_peer(head, peer.ip(), worker);
        }
        let internal = found.trusted && found.address.is_some_and(|ip| is_internal(manager, ip));
        (found.address.map(with_port_0).or(peer), internal)
    } else {
        let client = nth_from_right(head, hops as usize);
        let single = client.is_some() && !is_list(head);
        let internal = single && client.is_some_and(|ip| is_internal(manager, ip));
        (client.map(with_port_0).or(peer), internal)
    };
    head.client = client;

    let edge = manager.use_remote_address && !internal;
    if internal {
        head.fields.push_known(Known::XEnvoyInternal, b"true");
    } else {
        if edge {
            head.fields.remove_set(EDGE | EXTERNAL);
        } else {
            head.fields.remove_set(EXTERNAL);
        }
    }
    if edge {
        if let Some(client) = client {
            let mut text = [0u8; 48];
            let text = ip_text(client.ip(), &mut text);
            head.fields.set_known(Known::XEnvoyExternalAddress, text);
        }
    }
    forwarded_proto(manager, head, hops, connection.tls.is_some());
    // As with the proto: ours to set at the edge, believed elsewhere.
    let overwrite_port = manager.use_remote_address && hops == 0;
    if manager.append_x_forwarded_port && (overwrite_port || !head.fields.has(Known::XForwardedPort)) {
        if let Some(local) = connection.local {
            let mut digits = itoa::Buffer::new();
            head.fields.set_known(Known::XForwardedPort, digits.format(local.port()).as_bytes());
        }
    }
    if head.fields.has(Known::XForwardedClientCert) || connection.tls.is_some() {
        super::client_cert::forward(manager.client_cert, head, connection);
    }
    if manager.add_user_agent {
        let (cluster, node) = &manager.service;
        if !cluster.is_empty() {
            head.fields.set_known(Known::XEnvoyDownstreamServiceCluster, cluster);
            if !head.fields.has(Known::UserAgent) {
                head.fields.push_known(Known::UserAgent, cluster);
            }
        }
        if !node.is_empty() {
            head.fields.set_known(Known::XEnvoyDownstreamServiceNode, node);
        }
    }
    request_id(manager, head, worker, edge);
    Ok(())
}

/// Says in `x-forwarded-for` where the request comes from.
fn append_peer(head: &mut RequestHead, peer: IpAddr, worker: &Worker) {
    if is_canonical_loopback(peer) {
        // Loopback means nothing to who reads this elsewhere: this machine stands for it.
        append_forwarded_for(head, worker.own_address.as_bytes());
    } else {
        let mut text = [0u8; 48];
        let text = ip_text(peer, &mut text);
        append_forwarded_for(head, text);
    }
}

fn request_id(manager: &HttpConnectionManager, head: &mut RequestHead, worker: &Worker, edge: bool) {
    if !manager.generate_request_id {
        return;
    }
    let keep = !edge || manager.preserve_external_request_id;
    match head.fields.get(Known::XRequestId) {
        Some(id) if keep && !id.is_empty() => {}
        Some(_) => head.fields.set_known(Known::XRequestId, &worker.uuid()),
        None => head.fields.push_known(Known::XRequestId, &worker.uuid()),
    }
}

/// `x-forwarded-proto` is ours to set at the edge; elsewhere it is believed if it is there.
fn forwarded_proto(manager: &HttpConnectionManager, head: &mut RequestHead, hops: u32, tls: bool) {
    let scheme: &[u8] = if tls { b"https" } else { b"http" };
    let overwrite = manager.use_remote_address && hops == 0;
    match head.fields.get(Known::XForwardedProto) {
        Some(_) if overwrite => head.fields.set_known(Known::XForwardedProto, scheme),
        Some(_) => {}
        None => head.fields.push_known(Known::XForwardedProto, scheme),
    }
    let believed: Option<&'static [u8]> = match head.fields.get(Known::XForwardedProto) {
        Some(value) if value.eq_ignore_ascii_case(b"https") => Some(b"https"),
        _ => None,
    };
    if let Some(overwrite) = &manager.scheme_overwrite {
        head.set_scheme(overwrite);
        head.fields.set_known(Known::XForwardedProto, overwrite);
    } else if let Some(believed) = believed {
        head.set_scheme(believed);
    } else if head.scheme() != b"http" {
        head.set_scheme(b"http");
    }
}

#[inline]
fn strip_authority(manager: &HttpConnectionManager, head: &mut RequestHead, connection: &ConnectionInfo) {
    if manager.strip_port == StripPort::None && !manager.strip_trailing_host_dot {
        return;
    }
    let authority = head.authority();
    let colon = authority
        .iter()
        .rposition(|byte| *byte == b':')
        .filter(|at| authority.get(*at..).is_some_and(|port| !port.contains(&b']')));
    let (host, port) = authority.split_at(colon.unwrap_or(authority.len()));
    let keep_port = match manager.strip_port {
        StripPort::None => true,
        // CONNECT needs its port.
        _ if head.is_method(b"CONNECT") => true,
        StripPort::Any => false,
        StripPort::Matching => {
            let number = std::str::from_utf8(port.get(1..).unwrap_or_default()).ok();
            let number = number.and_then(|text| text.parse::<u16>().ok());
            number.is_none() || number != connection.local.map(|local| local.port())
        }
    };
    let host = match host.strip_suffix(b".") {
        Some(host) if manager.strip_trailing_host_dot => host,
        _ => host,
    };
    let mut stripped = host.to_vec();
    if keep_port {
        stripped.extend_from_slice(port);
    }
    if stripped != authority {
        head.set_authority(&stripped);
    }
}

/// Finishes a response head: what only this hop may say.
pub fn finish_response(
    manager: &HttpConnectionManager,
    head: &mut ResponseHead,
    request: Option<&RequestHead>,
    proxied: bool,
    worker: &Worker,
    now: Instant,
) {
    if head.fields.has(Known::Connection) && head.status != 101 {
        let mut named: Vec<Vec<u8>> = Vec::new();
        for value in head.fields.all(Known::Connection) {
            let options = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            let named_here = options.filter(|option| !is_usual_option(option));
            named.extend(named_here.map(<[u8]>::to_ascii_lowercase));
        }
        for name in named {
            if !matches!(Known::of(&name), Known::ContentLength | Known::Date | Known::Server) {
                head.fields.remove_where(|field| field.eq_ignore_ascii_case(&name));
            }
        }
    }
    if head.status == 101 {
        head.fields.remove_set(HOP_BY_HOP & !(Known::Connection.bit() | Known::Upgrade.bit()));
    } else {
        head.fields.remove_set(HOP_BY_HOP);
    }
    if let Some(via) = &manager.via {
        match head.fields.get(Known::Via).map(|theirs| [theirs, b", ", via].concat()) {
            Some(both) => head.fields.set_known(Known::Via, &both),
            None => head.fields.push_known(Known::Via, via),
        }
    }
    // Who forces a trace (only internal clients can) wants to find it.
    let traced = |request: &&RequestHead| {
        manager.always_set_request_id_in_response || request.fields.has(Known::XEnvoyForceTrace)
    };
    if let Some(id) = request.filter(traced).and_then(|request| request.fields.get(Known::XRequestId)) {
        head.fields.set_known(Known::XRequestId, id);
    }
    if !head.fields.has(Known::Date) {
        head.fields.push_known(Known::Date, &worker.clock.date(now));
    }
    match manager.server_header {
        ServerHeader::Overwrite => {
            head.fields.set_known(Known::Server, &manager.server_name);
        }
        ServerHeader::AppendIfAbsent if !head.fields.has(Known::Server) => {
            head.fields.push_known(Known::Server, &manager.server_name);
        }
        ServerHeader::PassThrough if !proxied => {
            head.fields.set_known(Known::Server, &manager.server_name);
        }
        _ => {}
    }
}

/// `127.0.0.1` or `::1`. Other addresses of 127.0.0.0/8 tell senders apart (a sidecar's own
/// traffic comes from one) and are written as they are.
fn is_canonical_loopback(ip: IpAddr) -> bool {
    ip == IpAddr::V4(Ipv4Addr::LOCALHOST) || ip == IpAddr::V6(Ipv6Addr::LOCALHOST)
}

fn is_internal(manager: &HttpConnectionManager, ip: IpAddr) -> bool {
    manager.internal_networks.iter().any(|(network, bits)| in_network(ip, *network, *bits))
}

fn in_network(ip: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            let shift = 32 - u32::from(bits.min(32));
            (u64::from(ip.to_bits()) >> shift) == (u64::from(network.to_bits()) >> shift)
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) => {
            let shift = 128 - u32::from(bits.min(128));
            ip.to_bits().checked_shr(shift) == network.to_bits().checked_shr(shift)
        }
        _ => false,
    }
}

/// The `n`th address from the right of `x-forwarded-for`, counting from 0.
pub(super) fn nth_from_right(head: &RequestHead, n: usize) -> Option<IpAddr> {
    if !head.fields.has(Known::XForwardedFor) {
        return None;
    }
    let lines = head.fields.all(Known::XForwardedFor).rev();
    let address = lines.flat_map(|value| value.rsplit(|byte| *byte == b',')).nth(n)?;
    std::str::from_utf8(address).ok()?.trim().parse().ok()
}

/// Appends an address to `x-forwarded-for`, all lines joined into one.
pub(super) fn append_forwarded_for(head: &mut RequestHead, address: &[u8]) {
    append_list_with(head, Known::XForwardedFor, address, b",");
}

fn append_list(head: &mut RequestHead, known: Known, value: &[u8]) {
    append_list_with(head, known, value, b", ");
}

fn append_list_with(head: &mut RequestHead, known: Known, value: &[u8], separator: &[u8]) {
    if !head.fields.has(known) {
        head.fields.push_known(known, value);
        return;
    }
    let mut joined = Vec::new();
    for line in head.fields.all(known).chain([value]) {
        if !joined.is_empty() {
            joined.extend_from_slice(separator);
        }
        joined.extend_from_slice(line);
    }
    head.fields.set_known(known, &joined);
}

fn with_port_0(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 0)
}

/// Formats an address without allocating; 48 bytes hold any.
fn ip_text(ip: IpAddr, buffer: &mut [u8; 48]) -> &[u8] {
    use std::io::Write;
    let mut rest = &mut buffer[..];
    let _ = write!(rest, "{ip}");
    let used = 48 - rest.len();
    buffer.get(..used).unwrap_or_default()
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
