//! Support of the TCP proxy's messages.

use outrigger_control_api::support::MessageSupport;

use super::whole;

const TLVS: &str = "the PROXY protocol is not supported yet";

const RESPONSE: &str = "nothing reads what the response that opens a tunnel says";
const REQUEST_ID: &str = "the request for a tunnel has no number";

/// The TCP proxy.
pub const TCP: &[MessageSupport] = &[
    MessageSupport {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        implemented: &[
            "stat_prefix",
            "cluster",
            "weighted_clusters",
            "idle_timeout",
            "access_log",
            "max_connect_attempts",
            "max_downstream_connection_duration",
            "max_downstream_connection_duration_jitter_percentage",
            "access_log_flush_interval",
            "flush_access_log_on_connected",
            "access_log_options",
            "upstream_connect_mode",
            "hash_policy",
            "metadata_match",
            "tunneling_config",
        ],
        observe: &[],
        rejected: &[
            ("on_demand", "clusters are not discovered on demand yet"),
            ("downstream_idle_timeout", "Envoy does not implement it either; use idle_timeout"),
            ("upstream_idle_timeout", "Envoy does not implement it either; use idle_timeout"),
            ("backoff_options", "attempts follow each other without a pause so far"),
            ("proxy_protocol_tlvs", TLVS),
            ("proxy_protocol_tlv_merge_policy", TLVS),
            ("upstream_connect_mode=ON_DOWNSTREAM_DATA", "the upstream is connected at once"),
            ("upstream_connect_mode=ON_DOWNSTREAM_TLS_HANDSHAKE", "the upstream is connected at once"),
            ("max_early_data_bytes", "the upstream is connected at once"),
            ("check_drain_close", "connections are cut at the end of a drain only"),
        ],
    },
    MessageSupport {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TunnelingConfig",
        implemented: &["hostname", "use_post", "headers_to_add", "post_path"],
        observe: &[],
        rejected: &[
            ("propagate_response_headers", RESPONSE),
            ("propagate_response_trailers", RESPONSE),
            ("request_id_extension", REQUEST_ID),
            ("request_id_header", REQUEST_ID),
            ("request_id_metadata_key", REQUEST_ID),
            ("formatters", "there are no formatters beside the built-in operators"),
        ],
    },
    MessageSupport {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster",
        implemented: &["clusters"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight",
        implemented: &["name", "weight", "metadata_match"],
        observe: &[],
        rejected: &[],
    },
    whole("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TcpAccessLogOptions"),
    MessageSupport {
        message: "envoy.type.v3.HashPolicy",
        implemented: &["source_ip", "filter_state"],
        observe: &[],
        rejected: &[],
    },
    whole("envoy.type.v3.HashPolicy.FilterState"),
    whole("envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit"),
    MessageSupport {
        message: "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
        implemented: &[
            "stat_prefix",
            "grpc_service",
            "failure_mode_allow",
            "include_peer_certificate",
            "transport_api_version",
            "filter_enabled_metadata",
            "include_tls_session",
            "metadata_context_namespaces",
            "shadow_mode",
        ],
        observe: &[],
        rejected: &[
            ("bootstrap_metadata_labels_key", "not supported yet"),
            ("send_tls_alert_on_denial", "the TLS library sends only alerts of its own"),
            ("typed_metadata_context_namespaces", "typed metadata is not supported"),
        ],
    },
    whole("envoy.extensions.filters.network.sni_cluster.v3.SniCluster"),
    MessageSupport {
        message: "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
        implemented: &["stat_prefix", "token_bucket", "runtime_enabled"],
        observe: &[],
        rejected: &[("share_key", "each filter chain has a bucket of its own")],
    },
    MessageSupport {
        message: "envoy.extensions.filters.network.set_filter_state.v3.Config",
        implemented: &["on_new_connection", "on_downstream_tls_handshake"],
        observe: &[],
        rejected: &[("on_downstream_data", "objects are set before the client is heard")],
    },
    MessageSupport {
        message: "envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue",
        implemented: &["object_key", "factory_key", "format_string", "shared_with_upstream", "skip_if_empty"],
        observe: &[("read_only", "objects can be set anew, as in Envoy, which has deprecated it")],
        rejected: &[],
    },
    whole("envoy.extensions.filters.http.set_filter_state.v3.Config"),
    whole("envoy.type.v3.HashPolicy.SourceIp"),
];
