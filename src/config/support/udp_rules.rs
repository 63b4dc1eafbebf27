//! Envoy's rules for messages of UDP listeners, which this project's own .proto files define.

use super::rules::{Check, FieldRule};

const NAMED: &[Check] = &[Check::MinChars(1)];
/// Names in a DNS table.
const DNS_NAME: &[Check] = &[Check::MinChars(1), Check::HeaderName { strict: true }];
/// What has 16 bits on the wire.
const SHORT: &[Check] = &[Check::Below(65536.0)];

/// As [`super::rules`] has them.
pub(super) static UDP: &[(&str, &[FieldRule])] = &[
    (
        "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig",
        &[
            FieldRule::Field(1, NAMED),
            FieldRule::OneOf("route_specifier"),
            FieldRule::Field(2, NAMED),
            FieldRule::Field(5, &[Check::MaxItems(1)]),
        ],
    ),
    (
        "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig.HashPolicy",
        &[
            FieldRule::OneOf("policy_specifier"),
            FieldRule::Field(1, &[Check::Bool(true)]),
            FieldRule::Field(2, NAMED),
        ],
    ),
    ("envoy.extensions.filters.udp.udp_proxy.v3.Route", &[FieldRule::Field(1, NAMED)]),
    ("envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig", &[FieldRule::Field(1, NAMED)]),
    (
        "envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig.ServerContextConfig",
        &[FieldRule::OneOf("config_source")],
    ),
    (
        "envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig.ClientContextConfig",
        &[FieldRule::Field(1, &[Check::AtLeast(1.0)]), FieldRule::Field(3, &[Check::AtLeast(1.0)])],
    ),
    ("envoy.data.dns.v3.DnsTable", &[FieldRule::Field(1, &[Check::AtMost(3.0)])]),
    (
        "envoy.data.dns.v3.DnsTable.AddressList",
        &[FieldRule::Field(1, &[Check::MinItems(1), Check::Each(&[Check::MinChars(3)])])],
    ),
    (
        "envoy.data.dns.v3.DnsTable.DnsServiceProtocol",
        &[
            FieldRule::OneOf("protocol_config"),
            FieldRule::Field(1, &[Check::Below(255.0)]),
            FieldRule::Field(2, DNS_NAME),
        ],
    ),
    (
        "envoy.data.dns.v3.DnsTable.DnsServiceTarget",
        &[
            FieldRule::OneOf("endpoint_type"),
            FieldRule::Field(1, DNS_NAME),
            FieldRule::Field(2, DNS_NAME),
            FieldRule::Field(3, SHORT),
            FieldRule::Field(4, SHORT),
            FieldRule::Field(5, SHORT),
        ],
    ),
    (
        "envoy.data.dns.v3.DnsTable.DnsService",
        &[
            FieldRule::Field(1, DNS_NAME),
            FieldRule::Field(3, &[Check::AtLeast(1.0)]),
            FieldRule::Field(4, &[Check::MinItems(1)]),
        ],
    ),
    ("envoy.data.dns.v3.DnsTable.DnsServiceList", &[FieldRule::Field(1, &[Check::MinItems(1)])]),
    ("envoy.data.dns.v3.DnsTable.DnsEndpoint", &[FieldRule::OneOf("endpoint_config")]),
    (
        "envoy.data.dns.v3.DnsTable.DnsVirtualDomain",
        &[FieldRule::Field(1, DNS_NAME), FieldRule::Field(3, &[Check::AtLeast(30.0)])],
    ),
];
