//! What rate limits are counted by (`rate_limits` of routes, virtual hosts and filters).
//!
//! Comes in: lists of policies, compiled once, and the facts of a request. Goes out: descriptors, one for each policy all
//! of whose actions have something to say.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::route::v3 as pb;
use outrigger_control_api::pb::envoy::config::route::v3::rate_limit::action::{meta_data, ActionSpecifier};
use outrigger_control_api::pb::envoy::config::route::v3::rate_limit::r#override::OverrideSpecifier;
use outrigger_control_api::pb::envoy::config::route::v3::rate_limit::XRateLimitOption;
use outrigger_control_api::pb::envoy::r#type::metadata::v3::{metadata_key, MetadataKey};
use outrigger_control_api::pb::envoy::r#type::v3::RateLimitUnit;
use outrigger_control_api::pb::google::protobuf::{value::Kind, Struct};
use smallvec::SmallVec;

use crate::config::compile::{bool_or, networks, u32_or};
use crate::config::headers::{HeaderKey, RequestView};
use crate::config::matcher::{query_value, HeaderMatcher, QueryParameterMatcher};
use crate::config::problems::Problems;
use crate::policy::rbac::Networks;
use crate::telemetry::format::{Format, FormatContext, Style};
use crate::telemetry::stream_info::{read_dynamic_metadata, DynamicMetadata, StreamInfo};

/// The policies of one level.
#[derive(Debug, Default)]
pub struct RateLimits(Box<[Policy]>);

/// Whose policies they are, which decides what they may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitsOf {
    /// A route's or a virtual host's, for any filter.
    Route,
    /// Those of a filter that asks a service.
    Service,
    /// Those of a filter that keeps limits itself.
    Process,
}

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
    hits: Hits,
    /// They are given back.
    refunds: bool,
    limit: Limit,
    /// It counts requests when they are over.
    done: bool,
    /// Answers tell its limit, or do not; `None` = as the filter says.
    tell: Option<bool>,
}

/// How often a request counts.
#[derive(Debug)]
enum Hits {
    /// As the filter says.
    Unsaid,
    Number(u64),
    /// As often as this says; where it says no number there is no descriptor.
    Format(Format),
}

/// What a descriptor may be limited to, in place of what the service knows.
#[derive(Debug)]
enum Limit {
    Unsaid,
    Fixed(u32, RateLimitUnit),
    /// `requests_per_unit` and `unit` of what is here in dynamic metadata.
    Metadata(Box<str>, Box<[Box<str>]>),
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
    AddressMatch {
        key: Box<str>,
        value: Format,
        default: Box<str>,
        networks: Networks,
        expect: bool,
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

/// Keys and values of a descriptor.
pub type DescriptorEntries = SmallVec<[(Box<str>, Box<str>); 2]>;

/// What a request is counted by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Keys and values, in order.
    pub entries: DescriptorEntries,
    /// How often it counts; `None` = as the filter says.
    pub hits: Option<u64>,
    /// So often is given back instead.
    pub refunds: bool,
    /// What it is limited to; `None` = as the service knows.
    pub limit: Option<(u32, RateLimitUnit)>,
    /// Whether answers tell its limit; `None` = as the filter says.
    pub tell: Option<bool>,
}

/// What descriptors are made of.
pub struct LimitFacts<'a, R> {
    /// The request.
    pub request: &'a R,
    /// What else is known of it.
    pub info: &'a StreamInfo,
    /// The client.
    pub remote: Option<SocketAddr>,
    /// This proxy's service.
    pub source: &'a [u8],
    /// The cluster that the request goes to.
    pub destination: &'a str,
    /// What filters have left.
    pub dynamic: Option<&'a DynamicMetadata>,
    /// Metadata of its route.
    pub route: Option<&'a DynamicMetadata>,
}

impl RateLimits {
    /// Compiles the list in `rate_limits`; `None` without one, or when a problem was reported.
    pub fn compile(list: &[pb::RateLimit], of: LimitsOf, problems: &mut Problems) -> Option<Arc<Self>> {
        let before = problems.count();
        let policies: Box<[_]> = (list.iter().enumerate())
            .filter_map(|(index, config)| {
                problems.at_index("rate_limits", index, |problems| policy(config, of, problems))
            })
            .collect();
        (problems.count() == before && !policies.is_empty()).then(|| Arc::new(Self(policies)))
    }

    /// Adds the descriptors of the policies of `stage` to `out`: of those that count requests when they are `done`, or of
    /// the others. `on` says whether a runtime key leaves one on.
    pub fn describe<R: RequestView>(
        &self,
        (stage, done): (u32, bool),
        facts: &LimitFacts<'_, R>,
        on: impl Fn(&str) -> bool,
        out: &mut Vec<Descriptor>,
    ) {
        for policy in self.0.iter().filter(|policy| policy.stage == stage && policy.done == done) {
            if policy.key.as_ref().is_some_and(|key| !on(key)) {
                continue;
            }
            let mut descriptor =
                Descriptor { tell: policy.tell, refunds: policy.refunds, ..Descriptor::default() };
            if policy.actions.iter().all(|action| action.add(facts, &mut descriptor)) {
                match &policy.hits {
                    Hits::Unsaid => {}
                    Hits::Number(number) => descriptor.hits = Some(*number),
                    Hits::Format(format) => match hits(format, facts) {
                        Some(hits) => descriptor.hits = Some(hits),
                        None => continue,
                    },
                }
                descriptor.limit = policy.limit.now(facts.dynamic);
                out.push(descriptor);
            }
        }
    }

    /// Whether some count requests of `stage` when they are over.
    pub fn count_later(&self, stage: u32) -> bool {
        self.0.iter().any(|policy| policy.stage == stage && policy.done)
    }
}

fn policy(config: &pb::RateLimit, of: LimitsOf, problems: &mut Problems) -> Option<Policy> {
    let actions: Vec<_> = (config.actions.iter().enumerate())
        .map(|(index, config)| problems.at_index("actions", index, |problems| action(config, problems)))
        .collect();
    let mut hits = Hits::Unsaid;
    if let Some(config) = &config.hits_addend {
        problems.at("hits_addend", |problems| {
            if of == LimitsOf::Route {
                problems.report("only policies of filters have it, in Envoy too");
            }
            match (&config.number, config.format.as_str()) {
                (Some(number), "") => hits = Hits::Number(number.value),
                (None, "") => problems.report("needs a number or a format"),
                (Some(_), _) => problems.report_at("format", "number is set, too: one of them is allowed"),
                (None, text) => match Format::parse_as(text, Style::Header) {
                    Ok(format) if format.is_one_operator() => hits = Hits::Format(format),
                    Ok(_) => problems.report_at("format", format!("{text:?} is not a single operator")),
                    Err(error) => problems.report_at("format", error),
                },
            }
        });
    }
    if config.apply_on_stream_done && of == LimitsOf::Process {
        problems.report_at(
            "apply_on_stream_done",
            "a filter that keeps limits itself counts requests as they come",
        );
    }
    let limit = match config.limit.as_ref().and_then(|limit| limit.override_specifier.as_ref()) {
        None => Limit::Unsaid,
        Some(_) if of == LimitsOf::Process => {
            problems.report_at("limit", "limits are those of the filter's descriptors, in Envoy too");
            Limit::Unsaid
        }
        Some(OverrideSpecifier::RateLimit(config)) => Limit::Fixed(config.requests_per_unit, config.unit()),
        Some(OverrideSpecifier::DynamicMetadata(config)) => {
            read_dynamic_metadata();
            let (namespace, path) = path_of(config.metadata_key.as_ref());
            Limit::Metadata(namespace, path)
        }
    };
    Some(Policy {
        refunds: config.hits_addend.as_ref().is_some_and(|hits| hits.is_negative_hits),
        stage: u32_or(config.stage, 0),
        key: (!config.disable_key.is_empty())
            .then(|| format!("ratelimit.{}.http_filter_enabled", config.disable_key).into()),
        actions: actions.into_iter().collect::<Option<_>>()?,
        hits,
        limit,
        done: config.apply_on_stream_done,
        tell: match config.x_ratelimit_option() {
            XRateLimitOption::Unspecified => None,
            XRateLimitOption::Off => Some(false),
            XRateLimitOption::DraftVersion03 => Some(true),
        },
    })
}

/// How often `format` says that a request counts.
fn hits<R: RequestView>(format: &Format, facts: &LimitFacts<'_, R>) -> Option<u64> {
    /// More are refused in numbers, too.
    const MOST: f64 = 1e9;
    let text = rendered(format, facts);
    let number: f64 = text.parse().ok()?;
    // Within the range of a u64, so the fraction alone is lost.
    (0.0..=MOST).contains(&number).then_some(number as u64)
}

fn rendered<R: RequestView>(format: &Format, facts: &LimitFacts<'_, R>) -> Box<str> {
    let mut out = Vec::new();
    format.render(&mut out, &FormatContext::new(facts.info).with_request(facts.request));
    String::from_utf8_lossy(&out).into()
}

impl Limit {
    fn now(&self, dynamic: Option<&DynamicMetadata>) -> Option<(u32, RateLimitUnit)> {
        match self {
            Limit::Unsaid => None,
            Limit::Fixed(count, unit) => Some((*count, *unit)),
            Limit::Metadata(namespace, path) => {
                let Some(Kind::StructValue(found)) = at(dynamic?.get(&**namespace)?, path) else {
                    return None;
                };
                let field = |name: &str| found.fields.get(name).and_then(|value| value.kind.as_ref());
                let (Some(Kind::NumberValue(count)), Some(Kind::StringValue(unit))) =
                    (field("requests_per_unit"), field("unit"))
                else {
                    return None;
                };
                // `as` saturates.
                Some((*count as u32, RateLimitUnit::from_str_name(unit)?))
            }
        }
    }
}

fn or(text: &str, default: &str) -> Box<str> {
    if text.is_empty() { default } else { text }.into()
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
        // As in Envoy, this is no format unless a runtime flag says so.
        ActionSpecifier::GenericKey(config) => Action::Fixed {
            key: or(&config.descriptor_key, "generic_key"),
            value: config.descriptor_value.as_str().into(),
        },
        ActionSpecifier::HeaderValueMatch(config) => problems.at("header_value_match", |problems| {
            Some(Action::HeaderMatch {
                key: or(&config.descriptor_key, "header_match"),
                value: config.descriptor_value.as_str().into(),
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
                    value: config.descriptor_value.as_str().into(),
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
        ActionSpecifier::RemoteAddressMatch(config) => problems.at("remote_address_match", |problems| {
            // Demanded by a field rule.
            let matcher = config.address_matcher.as_ref()?;
            let networks = problems.at("address_matcher", |problems| networks(&matcher.ranges, problems));
            let format = Format::parse_as(&config.descriptor_value, Style::Header);
            let value = problems.at("descriptor_value", |problems| problems.take(format));
            Some(Action::AddressMatch {
                key: or(&config.descriptor_key, "remote_address_match"),
                value: value?,
                default: config.default_value.as_str().into(),
                networks: networks?,
                expect: !matcher.invert_match,
            })
        })?,
        // Refused by the support table.
        ActionSpecifier::Extension(_) => return None,
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
            Action::AddressMatch { key, value, default, networks, expect } => {
                let inside = facts.remote.map(|remote| networks.contains(remote.ip()));
                if inside != Some(*expect) {
                    return false;
                }
                let value = rendered(value, facts);
                match if value.is_empty() { default.clone() } else { value } {
                    value if value.is_empty() => return false,
                    value => entry(key, value),
                }
            }
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
                    facts.route.and_then(|all| all.get(&**namespace))
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
    match at(metadata, path)? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// What is at `path`.
fn at<'m>(metadata: &'m Struct, path: &[Box<str>]) -> Option<&'m Kind> {
    let (first, rest) = path.split_first()?;
    match (metadata.fields.get(&**first)?.kind.as_ref()?, rest) {
        (found, []) => Some(found),
        (Kind::StructValue(next), rest) => at(next, rest),
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
