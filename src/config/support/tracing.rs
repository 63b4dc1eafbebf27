//! Support of tracing.

use outrigger_control_api::support::MessageSupport;

use super::{observed, whole};

const NO_SPANS: &str = "no spans are sent to it";

pub(super) const MESSAGES: &[MessageSupport] = &[
    whole("envoy.config.trace.v3.Tracing"),
    whole("envoy.config.trace.v3.Tracing.Http"),
    MessageSupport {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing",
        implemented: &[
            "client_sampling",
            "random_sampling",
            "overall_sampling",
            "max_path_tag_length",
            "custom_tags",
            "provider",
            "spawn_upstream_span",
            "operation",
            "upstream_operation",
        ],
        observe: &[
            ("verbose", "spans have no events"),
            ("no_context_propagation", "contexts are always told"),
        ],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.route.v3.Tracing",
        implemented: &[
            "client_sampling",
            "random_sampling",
            "overall_sampling",
            "custom_tags",
            "operation",
            "upstream_operation",
        ],
        observe: &[],
        rejected: &[],
    },
    whole("envoy.config.route.v3.Decorator"),
    MessageSupport {
        message: "envoy.config.trace.v3.OpenTelemetryConfig",
        implemented: &["grpc_service", "http_service", "service_name", "max_cache_size"],
        observe: &[
            ("exporter", "spans go to grpc_service or http_service"),
            ("resource_detectors", "the resource is the service alone"),
            ("sampler", "the connection manager's shares decide"),
            ("set_telemetry_sdk_resource_attributes", "they are always told"),
            ("set_service_name_resource_attribute", "it is always told"),
            ("set_instrumentation_scope", "it is always told"),
        ],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.trace.v3.ZipkinConfig",
        implemented: &[
            "collector_cluster",
            "collector_endpoint",
            "collector_endpoint_version",
            "collector_hostname",
            "trace_id_128bit",
            "shared_span_context",
            "split_spans_for_request",
        ],
        observe: &[
            ("trace_context_option", "contexts are told as B3"),
            ("collector_service", "spans go to collector_cluster"),
            ("timestamp_trace_ids", "numbers of traces are random"),
        ],
        rejected: &[],
    },
    observed("envoy.config.trace.v3.DatadogConfig", &[("*", NO_SPANS)]),
    observed("envoy.config.trace.v3.SkyWalkingConfig", &[("*", NO_SPANS)]),
    observed("envoy.config.trace.v3.LightstepConfig", &[("*", NO_SPANS)]),
    observed("envoy.config.trace.v3.XRayConfig", &[("*", NO_SPANS)]),
    observed("envoy.config.trace.v3.DynamicOtConfig", &[("*", NO_SPANS)]),
    whole("envoy.type.tracing.v3.CustomTag"),
    whole("envoy.type.tracing.v3.CustomTag.Literal"),
    whole("envoy.type.tracing.v3.CustomTag.Environment"),
    whole("envoy.type.tracing.v3.CustomTag.Header"),
    whole("envoy.type.tracing.v3.CustomTag.Metadata"),
    whole("envoy.type.metadata.v3.MetadataKind"),
    whole("envoy.type.metadata.v3.MetadataKind.Request"),
    whole("envoy.type.metadata.v3.MetadataKind.Route"),
    whole("envoy.type.metadata.v3.MetadataKind.Cluster"),
    whole("envoy.type.metadata.v3.MetadataKind.Host"),
];
