//! Support of `envoy.config.cluster.v3`, of endpoints, and of the extensions in clusters.

use outrigger_control_api::support::MessageSupport;

use super::{observed, refused, whole};
use crate::config::compile::{LOCALITY, SLOW_START};

const HTTP3: &str = "HTTP/3 upstream is not supported";
const LEDS: &str = "endpoint discovery by locality is not supported";
const OUTLIER: &str = "outlier detection goes by statuses";
const HEALTH_TLS: &str = "health checks do not use TLS yet";
const SUBSETS: &str = "subset load balancing is not supported yet";
const HASH: &str = "consistent hashing is not supported yet";
const METADATA: &str = "metadata is not used yet";
const METADATA_FRAMES: &str = "METADATA frames are not passed on";
const OF_ENVOYS_CODEC: &str = "it concerns Envoy's codecs";
const STREAM_ERRORS: &str = "an invalid message resets its stream, never the connection";

pub(super) const MESSAGES: &[MessageSupport] = &[
    MessageSupport {
        message: "envoy.config.cluster.v3.Cluster",
        implemented: &[
            "name",
            "alt_stat_name",
            "type",
            "cluster_type",
            "connect_timeout",
            "per_connection_buffer_limit_bytes",
            "http2_protocol_options",
            "protocol_selection",
            "lb_policy",
            "load_assignment",
            "eds_cluster_config",
            "max_requests_per_connection",
            "circuit_breakers",
            "common_http_protocol_options",
            "http_protocol_options",
            "typed_extension_protocol_options",
            "dns_refresh_rate",
            "dns_failure_refresh_rate",
            "respect_dns_ttl",
            "dns_lookup_family",
            "dns_resolvers",
            "use_tcp_for_dns_lookups",
            "dns_resolution_config",
            "typed_dns_resolver_config",
            "cleanup_interval",
            "upstream_bind_config",
            "original_dst_lb_config",
            "least_request_lb_config",
            "round_robin_lb_config",
            "common_lb_config",
            "transport_socket",
            "transport_socket_matches",
            "upstream_http_protocol_options",
            "upstream_connection_options",
            "load_balancing_policy",
            "health_checks",
            "outlier_detection",
            "ignore_health_on_host_removal",
        ],
        observe: &[
            ("dns_jitter", "refreshes are not spread"),
            ("wait_for_warm_on_init", "starting never waits for a cluster"),
            ("metadata", METADATA),
            ("lrs_server", "loads are reported to load_stats_config of the bootstrap, as in Envoy"),
            (
                "close_connections_on_host_health_failure",
                "requests do not use the pooled connections of a host that failed, but what is open goes on",
            ),
            ("track_timeout_budgets", "timeout budgets are not tracked"),
            ("track_cluster_stats", "timeout budgets and sizes are not tracked"),
            ("ring_hash_lb_config", "it belongs to another lb_policy"),
            ("maglev_lb_config", "it belongs to another lb_policy"),
        ],
        rejected: &[
            ("lb_policy=RING_HASH", HASH),
            ("lb_policy=MAGLEV", HASH),
            ("lb_subset_config", SUBSETS),
            ("filters", "upstream network filters are not supported yet"),
            ("upstream_config", "custom upstreams are not supported"),
            ("preconnect_policy", "connecting ahead is not supported"),
            ("connection_pool_per_downstream_connection", "pools are shared by downstream connections"),
        ],
    },
    MessageSupport {
        message: "envoy.config.cluster.v3.Cluster.CustomClusterType",
        implemented: &["name", "typed_config"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.clusters.dns.v3.DnsCluster",
        implemented: &[
            "dns_refresh_rate",
            "dns_failure_refresh_rate",
            "respect_dns_ttl",
            "typed_dns_resolver_config",
            "dns_lookup_family",
            "all_addresses_in_single_endpoint",
        ],
        observe: &[
            ("dns_jitter", "refreshes are not spread"),
            ("dns_min_refresh_rate", "dns_refresh_rate alone decides"),
        ],
        rejected: &[],
    },
    whole("envoy.extensions.clusters.dns.v3.DnsCluster.RefreshRate"),
    MessageSupport {
        message: "envoy.extensions.clusters.original_dst.v3.OriginalDstCluster",
        implemented: &["use_http_header", "http_header_name", "upstream_port_override"],
        observe: &[],
        rejected: &[("metadata_key", METADATA)],
    },
    MessageSupport {
        message: "envoy.config.cluster.v3.Cluster.OriginalDstLbConfig",
        implemented: &["use_http_header", "http_header_name", "upstream_port_override"],
        observe: &[],
        rejected: &[("metadata_key", METADATA)],
    },
    whole("envoy.config.cluster.v3.Cluster.RefreshRate"),
    MessageSupport {
        message: "envoy.config.cluster.v3.Cluster.RoundRobinLbConfig",
        implemented: &[],
        observe: &[],
        rejected: &[("slow_start_config", SLOW_START)],
    },
    MessageSupport {
        message: "envoy.config.cluster.v3.Cluster.LeastRequestLbConfig",
        implemented: &["choice_count", "active_request_bias"],
        observe: &[],
        rejected: &[("slow_start_config", SLOW_START)],
    },
    MessageSupport {
        message: "envoy.config.cluster.v3.Cluster.CommonLbConfig",
        implemented: &["healthy_panic_threshold", "zone_aware_lb_config", "ignore_new_hosts_until_first_hc"],
        observe: &[
            ("update_merge_window", "an update changes only its own cluster, so none waits"),
            ("override_host_status", "hosts cannot be overridden yet"),
            ("consistent_hashing_lb_config", HASH),
        ],
        rejected: &[
            ("locality_weighted_lb_config", LOCALITY),
            ("close_connections_on_host_set_change", "connections outlive changes of other hosts"),
        ],
    },
    MessageSupport {
        message: "envoy.config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig",
        implemented: &["fail_traffic_on_panic"],
        observe: &[("routing_enabled", LOCALITY), ("min_cluster_size", LOCALITY)],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.cluster.v3.CircuitBreakers",
        implemented: &["thresholds", "per_host_thresholds"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.cluster.v3.CircuitBreakers.Thresholds",
        implemented: &[
            "priority",
            "max_connections",
            "max_pending_requests",
            "max_requests",
            "max_retries",
            "retry_budget",
            "track_remaining",
        ],
        observe: &[("max_connection_pools", "a worker has one pool for each host, however many there are")],
        rejected: &[],
    },
    whole("envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget"),
    MessageSupport {
        message: "envoy.config.cluster.v3.UpstreamConnectionOptions",
        implemented: &["tcp_keepalive"],
        observe: &[
            ("set_local_interface_name_on_upstream_connections", "the interface name is not logged"),
            ("happy_eyeballs_config", "connections go to the first address only"),
        ],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.endpoint.v3.ClusterLoadAssignment",
        implemented: &["cluster_name", "endpoints", "named_endpoints", "policy"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy",
        implemented: &["overprovisioning_factor", "endpoint_stale_after"],
        observe: &[],
        rejected: &[
            ("drop_overloads", "dropping a share of requests is not supported yet"),
            ("weighted_priority_health", "weighted priority health is not supported yet"),
        ],
    },
    MessageSupport {
        message: "envoy.config.endpoint.v3.LocalityLbEndpoints",
        implemented: &["locality", "lb_endpoints", "priority"],
        observe: &[("load_balancing_weight", LOCALITY), ("proximity", LOCALITY), ("metadata", METADATA)],
        rejected: &[
            ("load_balancer_endpoints", "only lb_endpoints is supported"),
            ("leds_cluster_locality_config", LEDS),
        ],
    },
    MessageSupport {
        message: "envoy.config.endpoint.v3.LbEndpoint",
        implemented: &["endpoint", "endpoint_name", "health_status", "load_balancing_weight"],
        observe: &[("metadata", "only envoy.transport_socket_match is used")],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.endpoint.v3.Endpoint",
        implemented: &["address", "hostname", "health_check_config"],
        observe: &[("additional_addresses", "connections go to the first address only")],
        rejected: &[],
    },
    whole("envoy.config.endpoint.v3.Endpoint.HealthCheckConfig"),
    MessageSupport {
        message: "envoy.config.cluster.v3.OutlierDetection",
        implemented: &["*", "always_eject_one_host", "detect_degraded_hosts"],
        observe: &[],
        rejected: &[("monitors", "monitors that are extensions are not supported")],
    },
    MessageSupport {
        message: "envoy.config.core.v3.HealthCheck",
        implemented: &["*"],
        observe: &[
            ("alt_port", "health_check_config of an endpoint sets its port"),
            ("tls_options", HEALTH_TLS),
            ("transport_socket_match_criteria", HEALTH_TLS),
            ("name", "there is one health check"),
        ],
        rejected: &[
            ("event_service", "events are logged to files only"),
            ("custom_health_check", "HTTP, gRPC and TCP are supported"),
        ],
    },
    MessageSupport {
        message: "envoy.config.core.v3.HealthCheck.HttpHealthCheck",
        implemented: &["*"],
        observe: &[("use_alpn_protocol", HEALTH_TLS)],
        rejected: &[("codec_client_type=HTTP3", HTTP3)],
    },
    whole("envoy.config.core.v3.HealthCheck.GrpcHealthCheck"),
    MessageSupport {
        message: "envoy.config.core.v3.HealthCheck.TcpHealthCheck",
        implemented: &["*"],
        observe: &[],
        rejected: &[("proxy_protocol_config", "checks do not send the PROXY protocol")],
    },
    whole("envoy.config.core.v3.HealthCheck.Payload"),
    whole("envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink"),
    MessageSupport {
        message: "envoy.config.core.v3.HttpProtocolOptions",
        implemented: &[
            "idle_timeout",
            "max_connection_duration",
            "max_headers_count",
            "max_stream_duration",
            "headers_with_underscores_action",
            "max_requests_per_connection",
        ],
        observe: &[],
        rejected: &[("max_response_headers_kb", "the limit of response heads is fixed")],
    },
    MessageSupport {
        message: "envoy.config.core.v3.Http1ProtocolOptions",
        implemented: &[
            "allow_absolute_url",
            "accept_http_10",
            "default_host_for_http_10",
            "header_key_format",
            "enable_trailers",
            "allow_chunked_length",
            "allow_custom_methods",
        ],
        observe: &[
            ("use_balsa_parser", "there is one HTTP/1 parser"),
            (
                "override_stream_error_on_invalid_http_message",
                "a connection is closed after an invalid message",
            ),
        ],
        rejected: &[("send_fully_qualified_url", "absolute request targets are not supported")],
    },
    whole("envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat"),
    whole("envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat.ProperCaseWords"),
    MessageSupport {
        message: "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig",
        implemented: &["formatter_type_on_envoy_headers"],
        observe: &[],
        rejected: &[
            ("forward_reason_phrase", "reason phrases are not forwarded"),
            ("formatter_type_on_envoy_headers=PROPER_CASE", "headers that the proxy adds are in lower case"),
        ],
    },
    MessageSupport {
        message: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        implemented: &[
            "common_http_protocol_options",
            "explicit_http_config",
            "use_downstream_protocol_config",
            "auto_config",
            "upstream_http_protocol_options",
        ],
        observe: &[],
        rejected: &[
            ("http_filters", "upstream HTTP filters are not supported yet"),
            ("header_validation_config", "there is one header validator"),
            ("outlier_detection", OUTLIER),
        ],
    },
    MessageSupport {
        message: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
        implemented: &["http_protocol_options", "http2_protocol_options"],
        observe: &[],
        rejected: &[("http3_protocol_options", HTTP3)],
    },
    MessageSupport {
        message: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig",
        implemented: &["http_protocol_options", "http2_protocol_options"],
        observe: &[("http3_protocol_options", HTTP3)],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig",
        implemented: &["http_protocol_options", "http2_protocol_options"],
        observe: &[],
        rejected: &[
            ("http3_protocol_options", HTTP3),
            ("alternate_protocols_cache_options", "what an upstream announces is not followed"),
        ],
    },
    observed(
        "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions",
        &[("idle_timeout", "connections of TCP sessions are not kept for others")],
    ),
    whole("envoy.config.core.v3.TcpProtocolOptions"),
    // The list of policies: the compiler takes the first that it knows, as Envoy does.
    MessageSupport {
        message: "envoy.config.cluster.v3.LoadBalancingPolicy",
        implemented: &["policies"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.cluster.v3.LoadBalancingPolicy.Policy",
        implemented: &["typed_extension_config"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
        implemented: &[],
        observe: &[],
        rejected: &[("slow_start_config", SLOW_START), ("locality_lb_config", LOCALITY)],
    },
    MessageSupport {
        message: "envoy.extensions.load_balancing_policies.random.v3.Random",
        implemented: &[],
        observe: &[],
        rejected: &[("locality_lb_config", LOCALITY)],
    },
    MessageSupport {
        message: "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
        implemented: &["choice_count", "active_request_bias", "selection_method"],
        observe: &[],
        rejected: &[
            ("slow_start_config", SLOW_START),
            ("locality_lb_config", LOCALITY),
            ("enable_full_scan", "a full scan is not supported yet"),
            ("selection_method=FULL_SCAN", "a full scan is not supported yet"),
        ],
    },
    whole("envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided"),
    refused("envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash", &[("*", HASH)]),
    refused("envoy.extensions.load_balancing_policies.maglev.v3.Maglev", &[("*", HASH)]),
    refused("envoy.extensions.load_balancing_policies.subset.v3.Subset", &[("*", SUBSETS)]),
    MessageSupport {
        message: "envoy.config.core.v3.Http2ProtocolOptions",
        implemented: &[
            "hpack_table_size",
            "max_concurrent_streams",
            "initial_stream_window_size",
            "initial_connection_window_size",
            "allow_connect",
            "max_outbound_control_frames",
            "max_consecutive_inbound_frames_with_empty_payload",
            "max_inbound_priority_frames_per_stream",
            "max_inbound_window_update_frames_per_data_frame_sent",
            "connection_keepalive",
        ],
        observe: &[
            ("max_outbound_frames", "frames that wait are bounded by their bytes"),
            ("stream_error_on_invalid_http_messaging", STREAM_ERRORS),
            ("override_stream_error_on_invalid_http_message", STREAM_ERRORS),
            ("use_oghttp2_codec", OF_ENVOYS_CODEC),
            ("enable_huffman_encoding", OF_ENVOYS_CODEC),
            ("max_metadata_size", METADATA_FRAMES),
            ("max_header_field_size_kb", "only all fields together are limited"),
            ("disallow_obs_text", "values may have any bytes but control characters"),
            ("stream_reset_burst", "resets are limited by their share of all streams"),
            ("stream_reset_rate", "resets are limited by their share of all streams"),
        ],
        rejected: &[
            ("allow_metadata", METADATA_FRAMES),
            ("custom_settings_parameters", "the settings are those of the fields above"),
        ],
    },
    MessageSupport {
        message: "envoy.config.core.v3.KeepaliveSettings",
        implemented: &["interval", "timeout", "interval_jitter"],
        observe: &[("connection_idle_interval", "a connection that idled is not asked before it is used")],
        rejected: &[],
    },
];
