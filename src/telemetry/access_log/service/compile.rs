//! From the configuration of a logger that writes to a service to a [`ServiceLog`].

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::extensions::access_loggers::grpc::v3 as grpc;
use outrigger_control_api::pb::envoy::extensions::access_loggers::open_telemetry::v3 as otlp;
use outrigger_control_api::pb::google::protobuf as wkt;
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::pb::opentelemetry::proto::resource::v1::Resource;
use outrigger_control_api::{type_of, unpack};
use prost::Message;

use super::common::Common;
use super::entry::Additional;
use super::otlp::{Record, Template};
use super::{field_of, message_of, Frame, Service, ServiceLog, Target, What};
use crate::config::compile::{duration_or, tracing, u32_or};
use crate::config::local_node::LocalNode;
use crate::config::problems::Problems;
use crate::config::services::{http_service, GrpcTarget};
use crate::config::{Cluster, Directory, HeaderKey};
use crate::telemetry::access_log::compile::formatters;
use crate::telemetry::metrics::Scope;
use crate::telemetry::otlp::pair;
use crate::telemetry::stream_info::read_dynamic_metadata;

const HTTP: &str = "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig";
const TCP: &str = "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig";
const OTLP: &str = "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig";

/// `buffer_flush_interval` where config says none.
const INTERVAL: Duration = Duration::from_secs(1);
/// `buffer_size_bytes` where config says none.
const ENOUGH: u32 = 16 * 1024;

/// Whether loggers of this type write to a service.
pub(in crate::telemetry::access_log) fn is_service(kind: &str) -> bool {
    [HTTP, TCP, OTLP].contains(&kind)
}

/// Compiles a logger for which [`is_service`] holds.
pub(in crate::telemetry::access_log) fn service_log(
    any: &Any,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<ServiceLog> {
    match type_of(any) {
        HTTP => {
            let config = problems.take(unpack::<grpc::HttpGrpcAccessLogConfig>(any))?;
            let keys = |names: &[String]| names.iter().map(|name| HeaderKey::new(name)).collect();
            let more = Additional {
                request: keys(&config.additional_request_headers_to_log),
                response: keys(&config.additional_response_headers_to_log),
                trailers: keys(&config.additional_response_trailers_to_log),
            };
            let (service, common) = streamed(config.common_config.as_ref(), 2, clusters, problems)?;
            Some(ServiceLog { service, what: What::Http(common, more) })
        }
        TCP => {
            let config = problems.take(unpack::<grpc::TcpGrpcAccessLogConfig>(any))?;
            let (service, common) = streamed(config.common_config.as_ref(), 3, clusters, problems)?;
            Some(ServiceLog { service, what: What::Tcp(common) })
        }
        _ => {
            let config = problems.take(unpack::<otlp::OpenTelemetryAccessLogConfig>(any))?;
            open_telemetry(&config, clusters, problems)
        }
    }
}

/// The service and the common part of a logger of `StreamAccessLogs`, the entries of which are in the field `field`.
fn streamed(
    config: Option<&grpc::CommonGrpcAccessLogConfig>,
    field: u32,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<(Arc<Service>, Common)> {
    // Demanded by a field rule.
    let config = config?;
    problems.at("common_config", |problems| {
        let before = problems.count();
        version(config, problems);
        read_dynamic_metadata();
        let common = Common {
            objects: names(&config.filter_state_objects_to_log),
            tags: tracing::custom_tags(&config.custom_tags, problems),
        };
        let interval =
            duration_or(&config.buffer_flush_interval, INTERVAL, "buffer_flush_interval", problems);
        let target = problems.at("grpc_service", |problems| {
            GrpcTarget::compile_stream(config.grpc_service.as_ref()?, clusters, problems)
        });
        (problems.count() == before).then_some(())?;
        // The stream lasts, whatever a call may take.
        let target = GrpcTarget { timeout: None, ..target? };
        let identity = identity(u8::try_from(field).unwrap_or_default(), &target.cluster, config);
        let service = shared(identity, || {
            let node = LocalNode::current();
            let (mut own, mut identifier) = (Vec::new(), Vec::new());
            // Identifier: node = 1, log_name = 2; it is the field 1 itself.
            field_of(1, &node.told, &mut own);
            field_of(2, config.log_name.as_bytes(), &mut own);
            field_of(1, &own, &mut identifier);
            let frame = Frame::Stream(identifier.into(), field);
            let scope = Scope::raw("access_logs.grpc_access_log");
            Service::new(Target::Stream(target), interval, enough(config.buffer_size_bytes), frame, &scope)
        });
        Some((service, common))
    })
}

fn version(config: &grpc::CommonGrpcAccessLogConfig, problems: &mut Problems) {
    if config.transport_api_version() == core::ApiVersion::V2 {
        problems.report_at("transport_api_version", "only V3 is spoken");
    }
}

fn names(list: &[String]) -> Box<[Box<str>]> {
    list.iter().map(|name| name.as_str().into()).collect()
}

fn enough(bytes: Option<wkt::UInt32Value>) -> usize {
    u32_or(bytes, ENOUGH) as usize
}

fn open_telemetry(
    config: &otlp::OpenTelemetryAccessLogConfig,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<ServiceLog> {
    let before = problems.count();
    read_dynamic_metadata();
    formatters(&config.formatters, problems);
    let none = grpc::CommonGrpcAccessLogConfig::default();
    let common = config.common_config.as_ref().unwrap_or(&none);
    if config.common_config.is_some() {
        problems.at("common_config", |problems| version(common, problems));
    }
    // As in Envoy, of these only what stands beside `common_config` counts.
    for (field, set) in [
        ("filter_state_objects_to_log", !common.filter_state_objects_to_log.is_empty()),
        ("custom_tags", !common.custom_tags.is_empty()),
    ] {
        if set {
            problems.note(format_args!("common_config.{field}"), "only the logger's own field has an effect");
        }
    }
    let tags = tracing::custom_tags(&config.custom_tags, problems);
    let body = config.body.as_ref().and_then(|body| {
        let empty = body.value.is_none();
        (!empty).then(|| problems.at("body", |problems| Template::compile(body, problems)))?
    });
    let attributes = config.attributes.as_ref();
    let attributes = attributes
        .map(|list| problems.at("attributes", |problems| Template::map(list, problems)))
        .unwrap_or(Some(Vec::new()));
    let interval = match &config.buffer_flush_interval {
        None => duration_or(
            &common.buffer_flush_interval,
            INTERVAL,
            "common_config.buffer_flush_interval",
            problems,
        ),
        own => duration_or(own, INTERVAL, "buffer_flush_interval", problems),
    };
    let size = enough(config.buffer_size_bytes.or(common.buffer_size_bytes));
    let (target, cluster) = target(config, common, clusters, problems)?;
    (problems.count() == before).then_some(())?;
    let record = Record {
        body,
        attributes: attributes?,
        common: Common { objects: names(&config.filter_state_objects_to_log), tags },
    };
    let log_name = if config.log_name.is_empty() { &common.log_name } else { &config.log_name };
    let service = shared(identity(0, &cluster, config), || {
        let mut resource = Vec::new();
        message_of(1, &self::resource(config, log_name), &mut resource);
        let mut scope = "access_logs.open_telemetry_access_log".to_owned();
        if !config.stat_prefix.is_empty() {
            scope = format!("{scope}.{}", config.stat_prefix);
        }
        Service::new(target, interval, size, Frame::Otlp(resource.into()), &Scope::raw(&scope))
    });
    Some(ServiceLog { service, what: What::Otlp(Box::new(record)) })
}

fn target(
    config: &otlp::OpenTelemetryAccessLogConfig,
    common: &grpc::CommonGrpcAccessLogConfig,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<(Target, Arc<crate::config::Slot<Cluster>>)> {
    if let Some(config) = &config.http_service {
        let (target, fields) =
            problems.at("http_service", |problems| http_service(config, clusters, problems))?;
        let cluster = target.cluster.clone();
        return Some((Target::Http(target, fields), cluster));
    }
    let (service, field) = match &config.grpc_service {
        Some(own) => (own, "grpc_service"),
        None => match &common.grpc_service {
            Some(old) => (old, "common_config.grpc_service"),
            None => {
                problems.report("needs grpc_service, http_service or common_config.grpc_service");
                return None;
            }
        },
    };
    let target = problems.at(field, |problems| GrpcTarget::compile(service, clusters, problems))?;
    let cluster = target.cluster.clone();
    Some((Target::Calls(Arc::new(target)), cluster))
}

/// What all records have in common.
fn resource(config: &otlp::OpenTelemetryAccessLogConfig, log_name: &str) -> Resource {
    let node = LocalNode::current();
    let mut attributes = Vec::new();
    if !config.disable_builtin_labels {
        attributes.extend([
            pair("log_name", log_name.to_owned()),
            pair("zone_name", node.zone.to_string()),
            pair("cluster_name", node.cluster.to_string()),
            pair("node_name", node.id.to_string()),
        ]);
    }
    attributes.extend(config.resource_attributes.iter().flat_map(|list| list.values.iter().cloned()));
    Resource { attributes, dropped_attributes_count: 0 }
}

/// What makes a service the same as another: how it is spoken to, its cluster's slot, and its configuration.
type Identity = (u8, usize, Vec<u8>);

fn identity<T>(form: u8, cluster: &Arc<T>, config: &impl Message) -> Identity {
    (form, Arc::as_ptr(cluster) as usize, config.encode_to_vec())
}

/// The service that is known under this identity, or a new one.
fn shared(identity: Identity, make: impl FnOnce() -> Service) -> Arc<Service> {
    static KNOWN: LazyLock<Mutex<HashMap<Identity, Weak<Service>>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(service) = known.get(&identity).and_then(Weak::upgrade) {
        return service;
    }
    known.retain(|_, service| service.strong_count() > 0);
    let service = Arc::new(make());
    known.insert(identity, Arc::downgrade(&service));
    service
}
