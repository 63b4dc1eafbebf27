//! Support of the HTTP connection manager and the router filter.

use outrigger_control_api::support::MessageSupport;

use super::{observed, whole};

const SCOPED: &str = "scoped routes are not supported";
const UPSTREAM_LOG: &str = "there are no logs of single tries yet";
const TRACING: &str = "requests are not traced yet";
const TLS: &str = "without TLS there is no client certificate";

pub(super) const MESSAGES: &[MessageSupport] = &[
    MessageSupport {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        implemented: &[
            "codec_type",
            "stat_prefix",
            "route_config",
            "rds",
            "http_filters",
            "add_user_agent",
            "common_http_protocol_options",
            "http_protocol_options",
            "http2_protocol_options",
            "server_name",
            "server_header_transformation",
            "scheme_header_transformation",
            "max_request_headers_kb",
            "stream_idle_timeout",
            "request_timeout",
            "request_headers_timeout",
            "delayed_close_timeout",
            "drain_timeout",
            "access_log",
            "access_log_options",
            "use_remote_address",
            "xff_num_trusted_hops",
            "original_ip_detection_extensions",
            "internal_address_config",
            "skip_xff_append",
            "via",
            "generate_request_id",
            "preserve_external_request_id",
            "always_set_request_id_in_response",
            "forward_client_cert_details",
            "proxy_100_continue",
            "upgrade_configs",
            "normalize_path",
            "merge_slashes",
            "path_with_escaped_slashes_action",
            "request_id_extension",
            "local_reply_config",
            "strip_matching_host_port",
            "strip_any_host_port",
            "strip_trailing_host_dot",
            "append_x_forwarded_port",
        ],
        observe: &[
            ("tracing", TRACING),
            ("stream_error_on_invalid_http_message", "a connection is closed after an invalid message"),
            ("set_current_client_cert_details", TLS),
            ("http3_protocol_options", "HTTP/3 is not supported"),
            ("append_local_overload", "there is no overload manager"),
            ("add_proxy_protocol_connection_state", "the PROXY protocol is not supported yet"),
        ],
        rejected: &[
            ("codec_type=HTTP3", "HTTP/3 is not supported"),
            ("scoped_routes", SCOPED),
            ("access_log_flush_interval", "access logs are written when a stream ends"),
            ("flush_access_log_on_new_request", "access logs are written when a stream ends"),
            ("early_header_mutation_extensions", "headers are changed by routes only"),
            ("represent_ipv4_remote_address_as_ipv4_mapped_ipv6", "IPv4 addresses are written as such"),
            ("path_normalization_options", "use normalize_path and merge_slashes"),
            ("proxy_status_config", "the Proxy-Status header is not supported"),
            ("typed_header_validation_config", "there is one header validator"),
        ],
    },
    MessageSupport {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.HcmAccessLogOptions",
        implemented: &[],
        observe: &[],
        rejected: &[
            ("access_log_flush_interval", "access logs are written when a stream ends"),
            ("flush_access_log_on_new_request", "access logs are written when a stream ends"),
            ("flush_log_on_tunnel_successfully_established", "access logs are written when a stream ends"),
        ],
    },
    whole("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.InternalAddressConfig"),
    MessageSupport {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig",
        implemented: &["upgrade_type", "enabled"],
        observe: &[],
        rejected: &[("filters", "an upgrade uses the filters of the connection manager")],
    },
    MessageSupport {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        implemented: &["name", "typed_config", "is_optional", "disabled"],
        observe: &[],
        rejected: &[("config_discovery", "discovery from a control plane is not supported yet")],
    },
    whole("envoy.extensions.filters.http.grpc_web.v3.GrpcWeb"),
    MessageSupport {
        message: "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config",
        implemented: &[],
        observe: &[],
        rejected: &[
            ("upgrade_protobuf_to_grpc", "only requests that are gRPC already are bridged"),
            ("ignore_query_parameters", "it belongs to upgrade_protobuf_to_grpc"),
        ],
    },
    MessageSupport {
        message: "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
        implemented: &[
            "individual_method_stats_allowlist",
            "stats_for_all_methods",
            "enable_upstream_stats",
            "replace_dots_in_grpc_service_name",
        ],
        observe: &[("emit_filter_state", "there is no filter state yet")],
        rejected: &[],
    },
    whole("envoy.config.core.v3.GrpcMethodList"),
    whole("envoy.config.core.v3.GrpcMethodList.Service"),
    whole("envoy.extensions.filters.network.http_connection_manager.v3.RequestIDExtension"),
    whole("envoy.extensions.filters.network.http_connection_manager.v3.LocalReplyConfig"),
    whole("envoy.extensions.filters.network.http_connection_manager.v3.ResponseMapper"),
    MessageSupport {
        message: "envoy.config.core.v3.SchemeHeaderTransformation",
        implemented: &["scheme_to_overwrite"],
        observe: &[],
        rejected: &[("match_upstream", "the scheme cannot follow the upstream yet")],
    },
    MessageSupport {
        message: "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig",
        implemented: &["xff_num_trusted_hops", "skip_xff_append"],
        observe: &[],
        rejected: &[("xff_trusted_cidrs", "trusted networks are not supported, only a number of hops")],
    },
    MessageSupport {
        message: "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
        implemented: &[],
        observe: &[("pack_trace_reason", TRACING), ("use_request_id_for_trace_sampling", TRACING)],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.filters.http.router.v3.Router",
        implemented: &[
            "suppress_envoy_headers",
            "strict_check_headers",
            "respect_expected_rq_timeout",
            "upstream_http_filters",
        ],
        observe: &[
            ("dynamic_stats", "per-code statistics are always kept"),
            ("start_child_span", TRACING),
            ("suppress_grpc_request_failure_code_stats", "gRPC failures are not counted apart"),
        ],
        rejected: &[("upstream_log", UPSTREAM_LOG), ("upstream_log_options", UPSTREAM_LOG)],
    },
    observed(
        "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
        &[("*", "every upstream has a codec")],
    ),
];
