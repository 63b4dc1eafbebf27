//! Access loggers and the formats they share with local replies.

use super::whole;
use outrigger_control_api::support::MessageSupport;

/// What is supported of access logs.
pub const ACCESS_LOG: &[MessageSupport] = &[
    MessageSupport {
        message: "envoy.config.accesslog.v3.AccessLog",
        implemented: &["name", "filter", "typed_config"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.AccessLogFilter",
        implemented: &[
            "status_code_filter",
            "duration_filter",
            "not_health_check_filter",
            "traceable_filter",
            "runtime_filter",
            "and_filter",
            "or_filter",
            "response_flag_filter",
            "grpc_status_filter",
            "log_type_filter",
            "header_filter",
            "extension_filter",
            "metadata_filter",
        ],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.ExtensionFilter",
        implemented: &["name", "typed_config"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.MetadataFilter",
        implemented: &["matcher", "match_if_key_not_found"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
        implemented: &["expression"],
        observe: &[],
        rejected: &[("cel_config", "what Envoy switches off in CEL stays off")],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.StatusCodeFilter",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.DurationFilter",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.ComparisonFilter",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.NotHealthCheckFilter",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.TraceableFilter",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.RuntimeFilter",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.AndFilter",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.OrFilter",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.HeaderFilter",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.ResponseFlagFilter",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.GrpcStatusFilter",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.accesslog.v3.LogTypeFilter",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.access_loggers.stream.v3.StderrAccessLog",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
        implemented: &[
            "common_config",
            "http_service",
            "grpc_service",
            "disable_builtin_labels",
            "resource_attributes",
            "body",
            "attributes",
            "stat_prefix",
            "formatters",
            "log_name",
            "buffer_flush_interval",
            "buffer_size_bytes",
            "filter_state_objects_to_log",
            "custom_tags",
        ],
        observe: &[("resource_detectors", "the resource is what the configuration says")],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.access_loggers.grpc.v3.CommonGrpcAccessLogConfig",
        implemented: &[
            "log_name",
            "grpc_service",
            "transport_api_version",
            "buffer_flush_interval",
            "buffer_size_bytes",
            "filter_state_objects_to_log",
            "custom_tags",
        ],
        observe: &[(
            "grpc_stream_retry_policy",
            "a stream that fails is begun anew with the next entries, after a pause",
        )],
        rejected: &[],
    },
    MessageSupport {
        message: "opentelemetry.proto.common.v1.AnyValue",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "opentelemetry.proto.common.v1.ArrayValue",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "opentelemetry.proto.common.v1.KeyValueList",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "opentelemetry.proto.common.v1.KeyValue",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.core.v3.HttpService",
        implemented: &["http_uri", "request_headers_to_add"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.core.v3.SubstitutionFormatString",
        implemented: &[
            "text_format",
            "json_format",
            "text_format_source",
            "omit_empty_values",
            "content_type",
            "json_format_options",
            "formatters",
        ],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    // %METADATA% and %CEL% are known without them.
    whole("envoy.extensions.formatter.metadata.v3.Metadata"),
    MessageSupport {
        message: "envoy.extensions.formatter.cel.v3.Cel",
        implemented: &[],
        observe: &[],
        rejected: &[("cel_config", "what Envoy switches off in CEL stays off")],
    },
    MessageSupport {
        message: "envoy.config.core.v3.JsonFormatOptions",
        implemented: &[],
        observe: &[("sort_properties", "keys are always sorted")],
        rejected: &[],
    },
];

#[cfg(test)]
mod tests {
    use outrigger_control_api::support::SupportTable;

    use super::ACCESS_LOG;

    #[test]
    fn names_are_those_of_the_messages() {
        assert_eq!(SupportTable::new(&[ACCESS_LOG]).mistakes(), Vec::<String>::new());
    }
}
