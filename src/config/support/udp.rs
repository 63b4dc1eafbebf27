//! Support of UDP listeners.

use outrigger_control_api::support::MessageSupport;

use super::whole;

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
            "use_per_packet_load_balancing",
            "access_log",
            "proxy_access_log",
            "access_log_options",
        ],
        observe: &[],
        rejected: &[
            ("session_filters", "sessions have no filters"),
            ("tunneling_config", "UDP is not tunnelled over HTTP"),
        ],
    },
    whole("envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig.HashPolicy"),
    MessageSupport {
        message: "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig.UdpAccessLogOptions",
        implemented: &["access_log_flush_interval"],
        observe: &[("flush_access_log_on_tunnel_connected", "UDP is not tunnelled over HTTP")],
        rejected: &[],
    },
    whole("envoy.extensions.filters.udp.udp_proxy.v3.Route"),
    whole("envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig"),
    whole("envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig.ServerContextConfig"),
    MessageSupport {
        message: "envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig.ClientContextConfig",
        implemented: &[
            "resolver_timeout",
            "dns_resolution_config",
            "typed_dns_resolver_config",
            "max_pending_lookups",
        ],
        observe: &[("upstream_resolvers", "Envoy does not read it either")],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.data.dns.v3.DnsTable",
        implemented: &["external_retry_count", "virtual_domains"],
        observe: &[("known_suffixes", "the suffixes are those of the virtual domains, as in Envoy")],
        rejected: &[],
    },
    whole("envoy.data.dns.v3.DnsTable.AddressList"),
    whole("envoy.data.dns.v3.DnsTable.DnsServiceProtocol"),
    whole("envoy.data.dns.v3.DnsTable.DnsServiceTarget"),
    whole("envoy.data.dns.v3.DnsTable.DnsService"),
    whole("envoy.data.dns.v3.DnsTable.DnsServiceList"),
    whole("envoy.data.dns.v3.DnsTable.DnsEndpoint"),
    whole("envoy.data.dns.v3.DnsTable.DnsVirtualDomain"),
];
