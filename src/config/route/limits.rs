//! What rate limits are counted by (`rate_limits` of routes, virtual hosts and filters).
//!
//! Comes in: lists of policies, compiled once, and the facts of a request. Goes out: descriptors, one for each policy all
//! of whose actions have something to say.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::core::v3::Metadata;
use outrigger_control_api::pb::envoy::config::route::v3 as pb;
use outrigger_control_api::pb::envoy::config::route::v3::rate_limit::action::{meta_data, ActionSpecifier};
use outrigger_control_api::pb::envoy::r#type::metadata::v3::{metadata_key, MetadataKey};
use outrigger_control_api::pb::google::protobuf::{value::Kind, Struct};
use smallvec::SmallVec;

use crate::config::compile::{bool_or, u32_or};
use crate::config::headers::{HeaderKey, RequestView};
use crate::config::matcher::{query_value, HeaderMatcher, QueryParameterMatcher};
use crate::config::problems::Problems;
use crate::telemetry::stream_info::{read_dynamic_metadata, DynamicMetadata};

/// The policies of one level.
#[derive(Debug, Default)]
pub struct RateLimits(Box<[Policy]>);

/// The policies that count for a route.
#[derive(Debug)]
pub struct RouteLimits {
    /// Its own.
    pub own: Option<Arc<RateLimits>>,
    /// Its virtual host's.
    pub host: Option<Arc<RateLimits>>,
    /// Both count (`include_vh_rate_limits`).
    pub both: bool,
}

#[derive(Debug)]
struct Policy {
    stage: u32,
    /// The runtime key that turns it off.
    key: Option<Box<str>>,
    actions: Box<[Action]>,
    hits: Option<u64>,
}

#[derive(Debug)]
enum Action {
    SourceCluster,
    DestinationCluster,
    Header {
        header: HeaderKey,
        key: Box<str>,
        skip: bool,
    },
    RemoteAddress,
    MaskedAddress {
        v4: u8,
        v6: u8,
    },
    Fixed {
        key: Box<str>,
        value: Box<str>,
    },
    HeaderMatch {
        key: Box<str>,
        value: Box<str>,
        expect: bool,
        headers: Box<[HeaderMatcher]>,
    },
    QueryMatch {
        key: Box<str>,
        value: Box<str>,
        expect: bool,
        parameters: Box<[QueryParameterMatcher]>,
    },
    Query {
        name: Box<str>,
        key: Box<str>,
        skip: bool,
    },
    Metadata {
        key: Box<str>,
        namespace: Box<str>,
        path: Box<[Box<str>]>,
        default: Box<str>,
        route: bool,
        skip: bool,
    },
}

/// What a request is counted by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Keys and values, in order.
    pub entries: SmallVec<[(Box<str>, Box<str>); 2]>,
    /// How often it counts; `None` = as the filter says.
    pub hits: Option<u64>,
}

/// What descriptors are made of.
pub struct LimitFacts<'a, R> {
    /// The request.
    pub request: &'a R,
    /// The client.
    pub remote: Option<SocketAddr>,
    /// This proxy's service.
    pub source: &'a [u8],
    /// The cluster that the request goes to.
    pub destination: &'a str,
    /// What filters have left.
    pub dynamic: Option<&'a DynamicMetadata>,
    /// Metadata of its route.
    pub route: Option<&'a Metadata>,
}

impl RateLimits {
    /// Compiles the list in `field`; `None` without one, or when a problem was reported.
    pub fn compile(list: &[pb::RateLimit], field: &str, problems: &mut Problems) -> Option<Arc<Self>> {
        let before = problems.count();
        let policies: Box<[_]> = (list.iter().enumerate())
            .filter_map(|(index, config)| {
                problems.at_index(field, index, |problems| policy(config, problems))
            })
            .collect();
        (problems.count() == before && !policies.is_empty()).then(|| Arc::new(Self(policies)))
    }

    /// As [`RateLimits::compile`], for a route or a virtual host, whose policies say less.
    pub fn compile_of_route(list: &[pb::RateLimit], problems: &mut Problems) -> Option<Arc<Self>> {
        for (index, config) in list.iter().enumerate() {
            if config.hits_addend.is_some() {
                problems.at_index("rate_limits", index, |problems| {
                    problems.report_at("hits_addend", "only policies of filters have it, in Envoy too");
                });
            }
        }
        Self::compile(list, "rate_limits", problems)
    }

    /// Adds the descriptors of the policies of `stage` to `out`; `on` says whether a runtime key leaves one on.
    pub fn describe<R: RequestView>(
        &self,
        stage: u32,
        facts: &LimitFacts<'_, R>,
        on: impl Fn(&str) -> bool,
        out: &mut Vec<Descriptor>,
    ) {
        for policy in self.0.iter().filter(|policy| policy.stage == stage) {
            if policy.key.as_ref().is_some_and(|key| !on(key)) {
                continue;
            }
            let mut descriptor = Descriptor { hits: policy.hits, ..Descriptor::default() };
            if policy.actions.iter().all(|action| action.add(facts, &mut descriptor)) {
                out.push(descriptor);
            }
        }
    }
}

fn policy(config: &pb::RateLimit, problems: &mut Problems) -> Option<Policy> {
    let actions: Vec<_> = (config.actions.iter().enumerate())
        .map(|(index, config)| problems.at_index("actions", index, |problems| action(config, problems)))
        .collect();
    let hits = config.hits_addend.as_ref().and_then(|hits| hits.number).map(|number| number.value);
    Some(Policy {
        stage: u32_or(config.stage, 0),
        key: (!config.disable_key.is_empty())
            .then(|| format!("ratelimit.{}.http_filter_enabled", config.disable_key).into()),
        actions: actions.into_iter().collect::<Option<_>>()?,
        hits,
    })
}

fn or(text: &str, default: &str) -> Box<str> {
    if text.is_empty() { default } else { text }.into()
}

fn fixed(text: &str, problems: &mut Problems) -> Box<str> {
    if text.contains('%') {
        problems.report_at("descriptor_value", "formats are not supported in descriptors");
    }
    text.into()
}

fn path_of(key: Option<&MetadataKey>) -> (Box<str>, Box<[Box<str>]>) {
    let Some(key) = key else { return Default::default() };
    let segment = |segment: &metadata_key::PathSegment| match &segment.segment {
        Some(metadata_key::path_segment::Segment::Key(key)) => Some(Box::from(key.as_str())),
        // Refused by the support table.
        Some(_) | None => None,
    };
    (key.key.as_str().into(), key.path.iter().filter_map(segment).collect())
}

fn action(config: &pb::rate_limit::Action, problems: &mut Problems) -> Option<Action> {
    // Demanded by a field rule.
    Some(match config.action_specifier.as_ref()? {
        ActionSpecifier::SourceCluster(_) => Action::SourceCluster,
        ActionSpecifier::DestinationCluster(_) => Action::DestinationCluster,
        ActionSpecifier::RequestHeaders(config) => Action::Header {
            header: HeaderKey::new(&config.header_name),
            key: config.descriptor_key.as_str().into(),
            skip: config.skip_if_absent,
        },
        ActionSpecifier::RemoteAddress(_) => Action::RemoteAddress,
        ActionSpecifier::MaskedRemoteAddress(config) => Action::MaskedAddress {
            // Their field rules bound them.
            v4: u8::try_from(u32_or(config.v4_prefix_mask_len, 32)).unwrap_or(32),
            v6: u8::try_from(u32_or(config.v6_prefix_mask_len, 128)).unwrap_or(128),
        },
        ActionSpecifier::GenericKey(config) => problems.at("generic_key", |problems| Action::Fixed {
            key: or(&config.descriptor_key, "generic_key"),
            value: fixed(&config.descriptor_value, problems),
        }),
        ActionSpecifier::HeaderValueMatch(config) => problems.at("header_value_match", |problems| {
            Some(Action::HeaderMatch {
                key: or(&config.descriptor_key, "header_match"),
                value: fixed(&config.descriptor_value, problems),
                expect: bool_or(config.expect_match, true),
                headers: HeaderMatcher::compile_all(&config.headers, "headers", problems)?,
            })
        })?,
        ActionSpecifier::QueryParameterValueMatch(config) => {
            problems.at("query_parameter_value_match", |problems| {
                let parameters: Vec<_> = (config.query_parameters.iter().enumerate())
                    .map(|(index, config)| {
                        problems.at_index("query_parameters", index, |problems| {
                            QueryParameterMatcher::compile(config, problems)
                        })
                    })
                    .collect();
                Some(Action::QueryMatch {
                    key: or(&config.descriptor_key, "query_match"),
                    value: fixed(&config.descriptor_value, problems),
                    expect: bool_or(config.expect_match, true),
                    parameters: parameters.into_iter().collect::<Option<_>>()?,
                })
            })?
        }
        ActionSpecifier::QueryParameters(config) => Action::Query {
            name: config.query_parameter_name.as_str().into(),
            key: config.descriptor_key.as_str().into(),
            skip: config.skip_if_absent,
        },
        #[allow(deprecated)] // Still in use.
        ActionSpecifier::DynamicMetadata(config) => {
            read_dynamic_metadata();
            let (namespace, path) = path_of(config.metadata_key.as_ref());
            let (key, default) =
                (config.descriptor_key.as_str().into(), config.default_value.as_str().into());
            Action::Metadata { key, namespace, path, default, route: false, skip: false }
        }
        ActionSpecifier::Metadata(config) => {
            read_dynamic_metadata();
            let (namespace, path) = path_of(config.metadata_key.as_ref());
            Action::Metadata {
                key: config.descriptor_key.as_str().into(),
                namespace,
                path,
                default: config.default_value.as_str().into(),
                route: config.source() == meta_data::Source::RouteEntry,
                skip: config.skip_if_absent,
            }
        }
        // Refused by the support table.
        ActionSpecifier::Extension(_) | ActionSpecifier::RemoteAddressMatch(_) => return None,
    })
}

impl Action {
    /// Adds what it says; false when there is to be no descriptor.
    fn add<R: RequestView>(&self, facts: &LimitFacts<'_, R>, out: &mut Descriptor) -> bool {
        let text = |bytes: &[u8]| -> Box<str> { String::from_utf8_lossy(bytes).into() };
        let mut entry = |key: &str, value: Box<str>| out.entries.push((key.into(), value));
        match self {
            Action::SourceCluster => entry("source_cluster", text(facts.source)),
            Action::DestinationCluster => entry("destination_cluster", facts.destination.into()),
            Action::Header { header, key, skip } => match facts.request.first(header) {
                Some(value) => entry(key, text(value)),
                None => return *skip,
            },
            Action::RemoteAddress => match facts.remote {
                Some(remote) => entry("remote_address", remote.ip().to_string().into()),
                None => return false,
            },
            Action::MaskedAddress { v4, v6 } => match facts.remote.map(|remote| remote.ip()) {
                Some(address) => entry("masked_remote_address", masked(address, *v4, *v6).into()),
                None => return false,
            },
            Action::Fixed { key, value } => entry(key, value.clone()),
            Action::HeaderMatch { key, value, expect, headers } => {
                if headers.iter().all(|matcher| matcher.matches(facts.request)) != *expect {
                    return false;
                }
                entry(key, value.clone());
            }
            Action::QueryMatch { key, value, expect, parameters } => {
                let path = facts.request.path();
                if parameters.iter().all(|matcher| matcher.matches(path)) != *expect {
                    return false;
                }
                entry(key, value.clone());
            }
            Action::Query { name, key, skip } => {
                match query_value(facts.request.path(), name.as_bytes()).filter(|value| !value.is_empty()) {
                    Some(value) => entry(key, text(value)),
                    None => return *skip,
                }
            }
            Action::Metadata { key, namespace, path, default, route, skip } => {
                let found = if *route {
                    facts.route.and_then(|all| all.filter_metadata.get(&**namespace))
                } else {
                    facts.dynamic.and_then(|all| all.get(&**namespace))
                };
                let found = found.and_then(|found| inner(found, path)).filter(|text| !text.is_empty());
                match found.unwrap_or(default) {
                    "" => return *skip,
                    value => entry(key, value.into()),
                }
            }
        }
        true
    }
}

/// The text at `path`.
fn inner<'m>(metadata: &'m Struct, path: &[Box<str>]) -> Option<&'m str> {
    let (first, rest) = path.split_first()?;
    match (&metadata.fields.get(&**first)?.kind, rest) {
        (Some(Kind::StringValue(text)), []) => Some(text),
        (Some(Kind::StructValue(next)), rest) => inner(next, rest),
        _ => None,
    }
}

/// The network that an address is in.
fn masked(address: IpAddr, v4: u8, v6: u8) -> String {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(v4.min(32))).unwrap_or(0);
            format!("{}/{v4}", std::net::Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6.min(128))).unwrap_or(0);
            format!("{}/{v6}", std::net::Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}
