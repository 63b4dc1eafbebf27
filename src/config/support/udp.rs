//! Support of UDP listeners.

use outrigger_control_api::support::MessageSupport;

use super::whole;

const LOGS: &str = "UDP sessions are not logged";

pub(super) const MESSAGES: &[MessageSupport] = &[
    MessageSupport {
        message: "envoy.config.listener.v3.UdpListenerConfig",
        implemented: &["downstream_socket_config"],
        observe: &[],
        rejected: &[
            ("quic_options", "QUIC is not supported"),
            ("udp_packet_packet_writer_config", "datagrams are written one by one"),
        ],
    },
    MessageSupport {
        message: "envoy.config.core.v3.UdpSocketConfig",
        implemented: &["max_rx_datagram_size"],
        observe: &[("prefer_gro", "the kernel is always asked for several datagrams at a time")],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig",
        implemented: &[
            "stat_prefix",
            "cluster",
            "matcher",
            "idle_timeout",
            "use_original_src_ip",
            "hash_policies",
            "upstream_socket_config",
        ],
        observe: &[("access_log", LOGS), ("proxy_access_log", LOGS), ("access_log_options", LOGS)],
        rejected: &[
            ("use_per_packet_load_balancing", "a client's datagrams go to one host"),
            ("session_filters", "sessions have no filters"),
            ("tunneling_config", "UDP is not tunnelled over HTTP"),
        ],
    },
    whole("envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig.HashPolicy"),
    whole("envoy.extensions.filters.udp.udp_proxy.v3.Route"),
];
