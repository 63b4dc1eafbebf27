//! From protobuf to the compiled model.
//!
//! In: xDS resources that were read without a syntax problem. Out: the immutable values of
//! [`crate::config`], or every problem found, each with its field path. Three checks run over a
//! resource, and all of them report before anything is given up: the support table
//! ([`crate::config::support`]), the field rules of Envoy's own .proto files
//! ([`crate::config::support::rules`]), and what is compiled here. What one of them reports, the
//! others do not repeat.

// Fields that Envoy has deprecated are still in use.
#![allow(deprecated)]

mod balancing;
pub mod bootstrap;
pub mod canonical;
pub(crate) mod cel;
mod check;
pub mod cluster;
mod cluster_tls;
mod compression;
mod control;
mod control_clusters;
pub(crate) mod control_tls;
mod custom_response;
mod discovery;
mod dns;
mod dns_filter;
mod endpoints;
mod ext_authz;
mod ext_proc;
mod first_look;
mod generic_secret;
pub mod hcm;
mod health_check;
pub(crate) mod http_filters;
mod http_options;
mod istio;
mod jwt_authn;
mod known_clusters;
pub mod listener;
mod listener_filters;
pub(crate) mod local_reply;
mod lua;
pub(in crate::config) mod metadata;
mod network_filters;
mod oauth2;
pub(crate) mod on_demand;
mod orca;
mod outlier;
mod overload;
mod ratelimit;
pub(crate) mod rbac;
mod rbac_tree;
pub mod resource;
pub(crate) mod rooms;
pub mod runtime;
pub mod scoped;
mod sinks;
mod socket_options;
pub mod spiffe;
mod tls;
mod tls_certificate;
pub(crate) mod tracing;
mod udp;
mod upstream_filters;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use outrigger_control_api::pb::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
use outrigger_control_api::pb::google::protobuf::{self as wkt, Any};
use outrigger_control_api::{unpack, UnpackError};
use prost::{Message, Name};

pub use bootstrap::{bootstrap, CompiledBootstrap};
pub use resource::{Assignment, Compiled, Compiler, Environment, Needs, RouteNeed, ScopesNeed};

use super::cluster::Keepalive;
use super::problems::Problems;
use super::regex::{Regex, Substitution};
use crate::policy::rbac::Networks;

/// The message of type `M` in `any`, which stands in `field` (empty: the current path).
pub(crate) fn extension<M: Message + Name + Default>(
    any: &Any,
    field: &str,
    problems: &mut Problems,
) -> Option<M> {
    match unpack(any) {
        Ok(message) => Some(message),
        // Malformed content was reported when the support table was consulted.
        Err(UnpackError::Malformed { .. } | UnpackError::Unfit { .. }) => None,
        Err(error) => {
            match field {
                "" => problems.report(error),
                field => problems.report_at(field, error),
            }
            None
        }
    }
}

/// A matcher of paths that is an extension.
pub(crate) fn path_template(config: &core::TypedExtensionConfig, problems: &mut Problems) -> Option<Regex> {
    // Demanded by a field rule.
    let any = config.typed_config.as_ref()?;
    problems.at("typed_config", |problems| {
        let config: UriTemplateMatchConfig = extension(any, "", problems)?;
        problems.at("path_template", |problems| {
            problems.take(crate::config::path_template::compile(&config.path_template))
        })
    })
}

/// What becomes of the paths of a route whose template is `matched`, by an extension that writes them anew.
pub(crate) fn path_rewriting(
    matched: Option<&core::TypedExtensionConfig>,
    config: &core::TypedExtensionConfig,
    problems: &mut Problems,
) -> Option<Substitution> {
    let Some(matched) = matched else {
        problems.report("needs a path_match_policy by a template");
        return None;
    };
    // What is wrong with it was reported.
    let matched: UriTemplateMatchConfig = unpack(matched.typed_config.as_ref()?).ok()?;
    crate::config::path_template::compile(&matched.path_template).ok()?;
    let any = config.typed_config.as_ref()?;
    problems.at("typed_config", |problems| {
        let config: UriTemplateRewriteConfig = extension(any, "", problems)?;
        problems.at("path_template_rewrite", |problems| {
            let (template, rewrite) = (&matched.path_template, &config.path_template_rewrite);
            problems.take(crate::config::path_template::rewriting(template, rewrite))
        })
    })
}

/// The duration in `field`, if it is set. Negative ones are reported.
pub(crate) fn duration(
    value: &Option<wkt::Duration>,
    field: &str,
    problems: &mut Problems,
) -> Option<Duration> {
    let value = value.as_ref()?;
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Some(Duration::new(seconds, nanos)),
        _ => {
            problems.report_at(field, "must not be negative");
            None
        }
    }
}

/// The duration in `field`, or `default`.
pub(crate) fn duration_or(
    value: &Option<wkt::Duration>,
    default: Duration,
    field: &str,
    problems: &mut Problems,
) -> Duration {
    duration(value, field, problems).unwrap_or(default)
}

/// A timeout that 0 turns off.
pub(crate) fn idle(
    value: &Option<wkt::Duration>,
    default: Option<Duration>,
    field: &str,
    problems: &mut Problems,
) -> Option<Duration> {
    match duration(value, field, problems) {
        Some(Duration::ZERO) => None,
        Some(set) => Some(set),
        None => default,
    }
}

pub(crate) fn u32_or(value: Option<wkt::UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

/// `per_connection_buffer_limit_bytes`. Envoy takes 0 for "no limit"; what we hold then is limited by the
/// same 1 MiB that counts when config does not speak of it.
pub(crate) fn buffer_limit(value: Option<wkt::UInt32Value>) -> usize {
    match u32_or(value, 0) {
        0 => 1 << 20,
        limit => limit as usize,
    }
}

pub(crate) fn bool_or(value: Option<wkt::BoolValue>, default: bool) -> bool {
    value.map_or(default, |value| value.value)
}

pub(crate) fn keepalive(value: Option<&core::TcpKeepalive>) -> Option<Keepalive> {
    let seconds =
        |value: Option<wkt::UInt32Value>| value.map(|value| Duration::from_secs(value.value.into()));
    value.map(|value| Keepalive {
        probes: value.keepalive_probes.map(|probes| probes.value),
        time: seconds(value.keepalive_time),
        interval: seconds(value.keepalive_interval),
    })
}

/// The port of a socket address; its field rule bounds it. Named ports are refused by the support
/// table.
pub(crate) fn port(address: &core::SocketAddress, _problems: &mut Problems) -> Option<u16> {
    match address.port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        _ => None,
    }
}

/// An address that must be an IP address and a port.
pub(crate) fn ip_address(address: &core::Address, problems: &mut Problems) -> Option<SocketAddr> {
    match address.address.as_ref()? {
        core::address::Address::SocketAddress(socket) => {
            let port = port(socket, problems)?;
            match socket.address.parse::<IpAddr>() {
                Ok(ip) => Some(SocketAddr::new(ip, port)),
                Err(_) if socket.address.is_empty() => None, // Breaks a field rule.
                Err(_) => {
                    let message = format!("{:?} is not an IP address", socket.address);
                    problems.report_at("socket_address.address", message);
                    None
                }
            }
        }
        core::address::Address::Pipe(_) => {
            problems.report_at("pipe", "an IP address is needed here");
            None
        }
        core::address::Address::EnvoyInternalAddress(_) => {
            problems.report_at("envoy_internal_address", "an IP address is needed here");
            None
        }
    }
}

/// A network: address and prefix length.
pub(crate) fn cidr(range: &core::CidrRange, problems: &mut Problems) -> Option<(IpAddr, u8)> {
    let Ok(ip) = range.address_prefix.parse::<IpAddr>() else {
        if !range.address_prefix.is_empty() {
            problems.report_at("address_prefix", format!("{:?} is not an IP address", range.address_prefix));
        }
        return None;
    };
    // Longer than the address counts as the whole address, as in Envoy.
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    Some((ip, u8::try_from(u32_or(range.prefix_len, 0)).map_or(bits, |length| length.min(bits))))
}

/// The networks of an `AddressMatcher`, its field `ranges`.
pub(crate) fn networks(
    ranges: &[outrigger_control_api::pb::xds::core::v3::CidrRange],
    problems: &mut Problems,
) -> Option<Networks> {
    let mut networks = Networks::default();
    for (index, range) in ranges.iter().enumerate() {
        let range =
            core::CidrRange { address_prefix: range.address_prefix.clone(), prefix_len: range.prefix_len };
        let (ip, length) = problems.at_index("ranges", index, |problems| cidr(&range, problems))?;
        networks.extend(Networks::one(ip, length));
    }
    Some(networks)
}

/// The bytes that a data source names, read now.
pub(crate) fn data_source(source: &core::DataSource, problems: &mut Problems) -> Option<Bytes> {
    use core::data_source::Specifier;
    match source.specifier.as_ref()? {
        Specifier::InlineString(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
        Specifier::InlineBytes(bytes) => Some(Bytes::copy_from_slice(bytes)),
        Specifier::Filename(path) => match std::fs::read(path) {
            Ok(content) => Some(content.into()),
            Err(error) => {
                problems.report_at("filename", format!("cannot read {path}: {error}"));
                None
            }
        },
        Specifier::EnvironmentVariable(name) => match std::env::var_os(name) {
            Some(value) => Some(Bytes::copy_from_slice(value.as_encoded_bytes())),
            None => {
                problems.report_at("environment_variable", format!("the variable {name} is not set"));
                None
            }
        },
    }
}

#[cfg(test)]
pub(crate) mod tests;
