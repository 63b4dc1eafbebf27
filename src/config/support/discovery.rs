//! Support of config sources, of gRPC services, and of the clusters that serve discovery.

use outrigger_control_api::support::MessageSupport;

use super::{observed, whole};

const CREDENTIALS: &str = "only ssl_credentials and local_credentials are supported";
const CONNECTION: &str = "the connection to a control plane has fixed limits";
const ENDPOINTS: &str = "all addresses are tried in an order of this process, and one that works is kept";
const HOSTS: &str = "the host of each try is chosen alike";
const CHANNEL: &str = "there is no gRPC library to tune";
const TLS: &str = "it is not supported towards a control plane";
const SECRETS: &str =
    "secrets for control planes must be in the bootstrap, in a file, or come from another one";
const SUITES: &str = "the TLS library's defaults are used";

pub(super) const MESSAGES: &[MessageSupport] = &[
    MessageSupport {
        message: "envoy.config.bootstrap.v3.Bootstrap.DynamicResources",
        implemented: &["lds_config", "cds_config", "ads_config"],
        observe: &[],
        rejected: &[
            ("lds_resources_locator", "xdstp collections are not supported"),
            ("cds_resources_locator", "xdstp collections are not supported"),
        ],
    },
    whole("envoy.config.bootstrap.v3.RuntimeLayer.RtdsLayer"),
    MessageSupport {
        message: "envoy.config.core.v3.ConfigSource",
        implemented: &[
            "path",
            "path_config_source",
            "api_config_source",
            "ads",
            "self",
            "initial_fetch_timeout",
            "resource_api_version",
        ],
        observe: &[],
        rejected: &[("authorities", "xdstp names are not supported")],
    },
    MessageSupport {
        message: "envoy.config.core.v3.PathConfigSource",
        implemented: &["path", "watched_directory"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.core.v3.WatchedDirectory",
        implemented: &["path"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.core.v3.ApiConfigSource",
        implemented: &[
            "api_type",
            "transport_api_version",
            "cluster_names",
            "grpc_services",
            "refresh_delay",
            "request_timeout",
            "rate_limit_settings",
            "set_node_on_first_message_only",
        ],
        observe: &[],
        rejected: &[("config_validators", "there are no configuration validators")],
    },
    whole("envoy.config.core.v3.AggregatedConfigSource"),
    MessageSupport {
        message: "envoy.config.core.v3.SelfConfigSource",
        implemented: &[],
        observe: &[("transport_api_version", "it is that of the source meant")],
        rejected: &[],
    },
    whole("envoy.config.core.v3.RateLimitSettings"),
    MessageSupport {
        message: "envoy.config.core.v3.GrpcService",
        implemented: &["envoy_grpc", "google_grpc", "initial_metadata", "timeout", "retry_policy"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.core.v3.GrpcService.EnvoyGrpc",
        implemented: &["cluster_name", "authority", "retry_policy", "max_receive_message_length"],
        observe: &[("skip_envoy_headers", "a control plane is sent no x-envoy headers")],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.core.v3.RetryPolicy",
        implemented: &["retry_back_off", "num_retries", "retry_on"],
        observe: &[("host_selection_retry_max_attempts", HOSTS)],
        rejected: &[("retry_priority", HOSTS), ("retry_host_predicate", HOSTS)],
    },
    whole("envoy.config.core.v3.BackoffStrategy"),
    MessageSupport {
        message: "envoy.config.core.v3.GrpcService.GoogleGrpc",
        implemented: &["target_uri", "channel_credentials"],
        observe: &[
            ("stat_prefix", "control planes have statistics of their own"),
            ("per_stream_buffer_limit_bytes", CONNECTION),
            ("channel_args", CHANNEL),
        ],
        rejected: &[
            ("call_credentials", CREDENTIALS),
            ("credentials_factory_name", CREDENTIALS),
            ("config", CREDENTIALS),
            ("channel_credentials_plugin", CREDENTIALS),
            ("call_credentials_plugin", CREDENTIALS),
        ],
    },
    MessageSupport {
        message: "envoy.config.core.v3.GrpcService.GoogleGrpc.ChannelCredentials",
        implemented: &["ssl_credentials", "local_credentials"],
        observe: &[],
        rejected: &[("google_default", CREDENTIALS)],
    },
    whole("envoy.config.core.v3.GrpcService.GoogleGrpc.SslCredentials"),
    whole("envoy.config.core.v3.GrpcService.GoogleGrpc.GoogleLocalCredentials"),
    MessageSupport {
        message: "envoy.config.cluster.v3.Cluster.EdsClusterConfig",
        implemented: &["eds_config", "service_name"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.Rds",
        implemented: &["config_source", "route_config_name"],
        observe: &[],
        rejected: &[],
    },
];

/// What differs for a cluster that a gRPC service of the bootstrap names, and that no request uses.
pub(super) const CONTROL: &[MessageSupport] = &[
    MessageSupport {
        message: "envoy.config.cluster.v3.Cluster",
        implemented: &[
            "name",
            "type",
            "cluster_type",
            "connect_timeout",
            "load_assignment",
            "http2_protocol_options",
            "typed_extension_protocol_options",
            "dns_lookup_family",
            "dns_resolvers",
            "dns_resolution_config",
            "typed_dns_resolver_config",
            "upstream_bind_config",
            "transport_socket",
            "upstream_connection_options",
        ],
        observe: &[
            ("alt_stat_name", "a control plane has statistics of its own"),
            ("per_connection_buffer_limit_bytes", CONNECTION),
            ("lb_policy", ENDPOINTS),
            ("load_balancing_policy", ENDPOINTS),
            ("round_robin_lb_config", ENDPOINTS),
            ("least_request_lb_config", ENDPOINTS),
            ("common_lb_config", ENDPOINTS),
            ("circuit_breakers", CONNECTION),
            ("max_requests_per_connection", CONNECTION),
            ("common_http_protocol_options", CONNECTION),
            ("http_protocol_options", "gRPC needs HTTP/2"),
            ("upstream_http_protocol_options", "the TLS context alone decides"),
            ("protocol_selection", "gRPC needs HTTP/2"),
            ("dns_refresh_rate", "names are resolved before each connection"),
            ("dns_failure_refresh_rate", "names are resolved before each connection"),
            ("dns_jitter", "names are resolved before each connection"),
            ("respect_dns_ttl", "names are resolved before each connection"),
            ("use_tcp_for_dns_lookups", "names are resolved before each connection"),
            ("cleanup_interval", "it belongs to another type"),
            ("wait_for_warm_on_init", "starting never waits for a cluster"),
            ("metadata", "metadata is not used yet"),
            ("track_timeout_budgets", "timeout budgets are not tracked"),
            ("track_cluster_stats", "timeout budgets and sizes are not tracked"),
            ("close_connections_on_host_health_failure", "nothing checks health yet"),
            ("ignore_health_on_host_removal", "nothing checks health yet"),
        ],
        rejected: &[
            ("health_checks", "control planes are not health-checked"),
            ("outlier_detection", "control planes are not health-checked"),
            ("transport_socket_matches", TLS),
        ],
    },
    MessageSupport {
        message: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        implemented: &["explicit_http_config"],
        observe: &[
            ("common_http_protocol_options", CONNECTION),
            ("upstream_http_protocol_options", "the TLS context alone decides"),
        ],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
        implemented: &["http2_protocol_options"],
        observe: &[],
        rejected: &[("http_protocol_options", "gRPC needs HTTP/2")],
    },
    MessageSupport {
        message: "envoy.config.core.v3.Http2ProtocolOptions",
        implemented: &["connection_keepalive"],
        observe: &[
            ("hpack_table_size", CONNECTION),
            ("max_concurrent_streams", CONNECTION),
            ("initial_stream_window_size", CONNECTION),
            ("initial_connection_window_size", CONNECTION),
            ("allow_connect", CONNECTION),
            ("allow_metadata", CONNECTION),
            ("max_outbound_frames", CONNECTION),
            ("max_outbound_control_frames", CONNECTION),
            ("max_consecutive_inbound_frames_with_empty_payload", CONNECTION),
            ("max_inbound_priority_frames_per_stream", CONNECTION),
            ("max_inbound_window_update_frames_per_data_frame_sent", CONNECTION),
            ("stream_error_on_invalid_http_messaging", CONNECTION),
            ("override_stream_error_on_invalid_http_message", CONNECTION),
            ("use_oghttp2_codec", CONNECTION),
            ("max_metadata_size", CONNECTION),
        ],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.core.v3.KeepaliveSettings",
        implemented: &["interval", "timeout"],
        observe: &[("interval_jitter", CONNECTION), ("connection_idle_interval", CONNECTION)],
        rejected: &[],
    },
    observed("envoy.config.cluster.v3.CircuitBreakers", &[("*", CONNECTION)]),
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        implemented: &["common_tls_context", "sni", "auto_sni_san_validation"],
        observe: &[
            ("max_session_keys", SUITES),
            ("allow_renegotiation", "connections are never renegotiated"),
            ("enforce_rsa_key_usage", "it is always enforced"),
        ],
        rejected: &[("auto_host_sni", "set sni")],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext",
        implemented: &[
            "tls_params",
            "tls_certificates",
            "tls_certificate_sds_secret_configs",
            "validation_context",
            "validation_context_sds_secret_config",
            "combined_validation_context",
        ],
        observe: &[("alpn_protocols", "gRPC asks for h2")],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.TlsParameters",
        implemented: &["tls_minimum_protocol_version", "tls_maximum_protocol_version"],
        observe: &[("cipher_suites", SUITES), ("ecdh_curves", SUITES), ("signature_algorithms", SUITES)],
        rejected: &[("compliance_policies", TLS)],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.TlsCertificate",
        implemented: &["certificate_chain", "private_key"],
        observe: &[("watched_directory", "files are read before each connection")],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
        implemented: &[
            "trusted_ca",
            "system_root_certs",
            "match_typed_subject_alt_names",
            "match_subject_alt_names",
        ],
        observe: &[("watched_directory", "files are read before each connection")],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig",
        implemented: &["name", "sds_config"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.core.v3.ConfigSource",
        implemented: &[
            "path",
            "path_config_source",
            "api_config_source",
            "initial_fetch_timeout",
            "resource_api_version",
        ],
        observe: &[],
        rejected: &[("ads", SECRETS), ("self", SECRETS), ("authorities", "xdstp names are not supported")],
    },
    MessageSupport {
        message: "envoy.config.core.v3.PathConfigSource",
        implemented: &["path"],
        observe: &[("watched_directory", "files are read before each connection")],
        rejected: &[],
    },
];
