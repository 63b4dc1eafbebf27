//! Support of `envoy.config.listener.v3` and of the listener and network filters without a room of
//! their own.

use outrigger_control_api::support::MessageSupport;

use super::whole;

const BALANCE: &str = "the kernel spreads connections over the workers";

pub(super) const MESSAGES: &[MessageSupport] = &[
    MessageSupport {
        message: "envoy.config.listener.v3.Listener",
        implemented: &[
            "name",
            "address",
            "stat_prefix",
            "filter_chains",
            "default_filter_chain",
            "per_connection_buffer_limit_bytes",
            "listener_filters",
            "listener_filters_timeout",
            "continue_on_listener_filters_timeout",
            "traffic_direction",
            "enable_reuse_port",
            "access_log",
            "tcp_backlog_size",
            "bind_to_port",
            "drain_type",
            "connection_balance_config",
            "ignore_global_conn_limit",
            "bypass_overload_manager",
            "use_original_dst",
            "transparent",
            "freebind",
            "socket_options",
            "tcp_fast_open_queue_length",
            "udp_listener_config",
            "internal_listener",
        ],
        observe: &[
            ("metadata", "metadata is not used yet"),
            ("drain_type=MODIFY_ONLY", "a drain concerns every listener"),
            ("reuse_port", "enable_reuse_port decides"),
            ("max_connections_to_accept_per_socket_event", "a worker accepts one connection at a time"),
        ],
        rejected: &[
            ("additional_addresses", "a listener has one address so far"),
            ("filter_chain_matcher", "the filter chain matcher is not supported yet"),
            ("deprecated_v1", "use bind_to_port"),
            ("enable_mptcp", "multipath TCP is not supported"),
            ("api_listener", "API listeners are not supported"),
        ],
    },
    whole("envoy.config.listener.v3.Listener.InternalListenerConfig"),
    whole("envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport"),
    whole("envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport.MetadataValueSource"),
    MessageSupport {
        message: "envoy.config.listener.v3.Listener.ConnectionBalanceConfig",
        implemented: &[],
        observe: &[("exact_balance", BALANCE)],
        rejected: &[("extend_balance", BALANCE)],
    },
    MessageSupport {
        message: "envoy.config.listener.v3.ListenerFilter",
        implemented: &["name", "typed_config", "filter_disabled"],
        observe: &[],
        rejected: &[("config_discovery", "discovery from a control plane is not supported yet")],
    },
    whole("envoy.config.listener.v3.ListenerFilterChainMatchPredicate"),
    whole("envoy.config.listener.v3.ListenerFilterChainMatchPredicate.MatchSet"),
    whole("envoy.type.v3.Int32Range"),
    whole("envoy.config.core.v3.SocketOption"),
    whole("envoy.config.core.v3.SocketOption.SocketType"),
    whole("envoy.config.core.v3.SocketOption.SocketType.Stream"),
    whole("envoy.config.core.v3.SocketOption.SocketType.Datagram"),
    MessageSupport {
        message: "envoy.config.listener.v3.FilterChain",
        implemented: &[
            "filter_chain_match",
            "filters",
            "transport_socket",
            "transport_socket_connect_timeout",
            "name",
        ],
        observe: &[("metadata", "metadata is not used yet")],
        rejected: &[
            ("use_proxy_proto", "the PROXY protocol is not supported yet"),
            ("on_demand_configuration", "filter chains are always ready"),
        ],
    },
    MessageSupport {
        message: "envoy.config.listener.v3.Filter",
        implemented: &["name", "typed_config"],
        observe: &[],
        rejected: &[("config_discovery", "discovery from a control plane is not supported yet")],
    },
    MessageSupport {
        message: "envoy.config.listener.v3.FilterChainMatch",
        implemented: &[
            "destination_port",
            "prefix_ranges",
            "direct_source_prefix_ranges",
            "source_type",
            "source_prefix_ranges",
            "source_ports",
            "server_names",
            "transport_protocol",
            "application_protocols",
        ],
        observe: &[],
        rejected: &[
            ("address_suffix", "Envoy does not implement it either"),
            ("suffix_len", "Envoy does not implement it either"),
        ],
    },
    MessageSupport {
        message: "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        implemented: &[],
        observe: &[
            ("enable_ja3_fingerprinting", "fingerprints are not computed; logs show `-` for them"),
            ("enable_ja4_fingerprinting", "fingerprints are not computed; logs show `-` for them"),
            ("initial_read_buffer_size", "a ClientHello is read in one go"),
            ("max_client_hello_size", "the limit is 64 KiB"),
        ],
        rejected: &[(
            "close_connection_on_client_hello_parsing_errors",
            "a connection without a ClientHello counts as plain text",
        )],
    },
    whole("envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"),
    whole("envoy.extensions.filters.listener.original_dst.v3.OriginalDst"),
    whole("envoy.extensions.filters.listener.original_src.v3.OriginalSrc"),
    MessageSupport {
        message: "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        implemented: &[
            "rules",
            "allow_requests_without_proxy_protocol",
            "disallowed_versions",
            "stat_prefix",
            "tlv_location",
        ],
        observe: &[],
        rejected: &[
            ("pass_through_tlvs", "fields of a header are not passed on"),
            ("tlv_location=FILTER_STATE", "fields of a header are noted as dynamic metadata only"),
        ],
    },
    whole("envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol.Rule"),
    whole("envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol.KeyValuePair"),
    MessageSupport {
        message: "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        implemented: &["config", "transport_socket"],
        observe: &[("tlv_as_pool_key", "no fields are sent")],
        rejected: &[("allow_unspecified_address", "an unspecified address makes the header one of our own")],
    },
    MessageSupport {
        message: "envoy.config.core.v3.ProxyProtocolConfig",
        implemented: &["version"],
        observe: &[],
        rejected: &[
            ("pass_through_tlvs", "fields of a header are not passed on"),
            ("added_tlvs", "no fields are sent"),
        ],
    },
    whole("envoy.extensions.filters.network.echo.v3.Echo"),
    whole("envoy.extensions.filters.network.direct_response.v3.Config"),
];
