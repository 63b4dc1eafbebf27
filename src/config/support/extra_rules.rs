//! Rules of messages defined by this project's own .proto files, which carry no options, but for those of filters.

use super::rules::{Check, FieldRule};

const NAMED: &[Check] = &[Check::MinChars(1)];

/// Rules of messages defined by this project's own .proto files, which carry no options.
pub(super) static EXTRA: &[(&str, &[FieldRule])] = &[
    (
        "envoy.config.route.v3.CookieMatcher",
        &[FieldRule::Field(1, NAMED), FieldRule::Field(2, &[Check::Required])],
    ),
    // A key may be left out: then runtime has no say.
    ("envoy.config.core.v3.RuntimeDouble", &[]),
    ("envoy.config.core.v3.RuntimePercent", &[]),
    ("envoy.config.core.v3.RuntimeUInt32", &[]),
    ("envoy.config.core.v3.RuntimeFeatureFlag", &[FieldRule::Field(1, &[Check::Required])]),
    // `record` has taken the place of `entry`, which was demanded.
    ("envoy.config.core.v3.KeyValueAppend", &[FieldRule::Field(2, &[Check::DefinedOnly])]),
    ("envoy.extensions.access_loggers.file.v3.FileAccessLog", &[FieldRule::Field(1, NAMED)]),
    (
        "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
        &[FieldRule::Field(1, &[Check::AtLeast(1.0), Check::AtMost(8192.0)])],
    ),
    ("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TunnelingConfig", &[FieldRule::Field(1, NAMED)]),
    (
        "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        &[FieldRule::Field(3, &[Check::Required])],
    ),
    (
        "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport.MetadataValueSource",
        &[FieldRule::Field(1, &[Check::Required]), FieldRule::Field(2, NAMED)],
    ),
    (
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        &[FieldRule::Field(1, &[Check::Required])],
    ),
    (
        "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
        &[FieldRule::Field(1, &[Check::Required])],
    ),
    (
        "envoy.extensions.access_loggers.grpc.v3.CommonGrpcAccessLogConfig",
        &[
            FieldRule::Field(1, NAMED),
            FieldRule::Field(2, &[Check::Required]),
            FieldRule::Field(3, &[Check::Above(0.0)]),
        ],
    ),
    ("envoy.extensions.filters.http.on_demand.v3.OnDemandCds", &[FieldRule::Field(1, &[Check::Required])]),
    ("envoy.extensions.clusters.dns.v3.DnsCluster.RefreshRate", &[FieldRule::Field(1, &[Check::Required])]),
    (
        "envoy.extensions.filters.http.fault.v3.FaultAbort",
        &[FieldRule::OneOf("error_type"), FieldRule::Field(2, &[Check::AtLeast(200.0), Check::Below(600.0)])],
    ),
    (
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        &[FieldRule::Field(1, NAMED), FieldRule::Field(18, &[Check::AtLeast(1.0)])],
    ),
    (
        "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig",
        &[FieldRule::Field(1, &[Check::MinChars(1), Check::HeaderName { strict: true }])],
    ),
    // A value may be left open.
    ("envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.Entry", &[FieldRule::Field(1, NAMED)]),
    (
        "envoy.config.route.v3.RateLimit.HitsAddend",
        &[
            FieldRule::Field(1, &[Check::AtMost(1_000_000_000.0)]),
            FieldRule::Field(2, &[Check::UnlessEmpty(&[Check::Prefix("%"), Check::Suffix("%")])]),
        ],
    ),
    (
        "envoy.config.route.v3.RateLimit.Action.RemoteAddressMatch",
        &[FieldRule::Field(1, NAMED), FieldRule::Field(4, &[Check::Required])],
    ),
    (
        "envoy.extensions.filters.http.admission_control.v3.AdmissionControl",
        &[FieldRule::OneOf("evaluation_criteria")],
    ),
    (
        "envoy.extensions.filters.http.admission_control.v3.AdmissionControl.SuccessCriteria.HttpCriteria",
        &[FieldRule::Field(1, &[Check::MinItems(1)])],
    ),
    (
        "envoy.extensions.filters.http.admission_control.v3.AdmissionControl.SuccessCriteria.GrpcCriteria",
        &[FieldRule::Field(1, &[Check::MinItems(1)])],
    ),
    (
        "envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency",
        &[FieldRule::OneOf("concurrency_controller_config")],
    ),
    (
        "envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig",
        &[FieldRule::Field(2, &[Check::Required]), FieldRule::Field(3, &[Check::Required])],
    ),
    (
        "envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig.ConcurrencyLimitCalculationParams",
        &[
            FieldRule::Field(2, &[Check::Above(0.0)]),
            FieldRule::Field(3, &[Check::Required, Check::Above(0.0)]),
        ],
    ),
    (
        "envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig.MinimumRTTCalculationParams",
        &[
            FieldRule::Field(1, &[Check::AtLeast(0.001)]),
            FieldRule::Field(2, &[Check::Above(0.0)]),
            FieldRule::Field(4, &[Check::Above(0.0)]),
            FieldRule::Field(6, &[Check::Above(0.0)]),
        ],
    ),
    (
        "envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute",
        &[FieldRule::OneOf("override"), FieldRule::Field(1, &[Check::Bool(true)])],
    ),
    (
        "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState",
        &[FieldRule::Field(1, &[Check::Required])],
    ),
    (
        "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState",
        &[FieldRule::Field(1, NAMED)],
    ),
    ("envoy.extensions.filters.http.csrf.v3.CsrfPolicy", &[FieldRule::Field(1, &[Check::Required])]),
    (
        "envoy.extensions.filters.http.buffer.v3.Buffer",
        &[FieldRule::Field(1, &[Check::Required, Check::Above(0.0)])],
    ),
    ("envoy.extensions.filters.http.buffer.v3.BufferPerRoute", &[FieldRule::OneOf("override")]),
    ("envoy.extensions.filters.http.health_check.v3.HealthCheck", &[FieldRule::Field(1, &[Check::Required])]),
    ("envoy.extensions.filters.http.set_metadata.v3.Metadata", &[FieldRule::Field(1, NAMED)]),
    (
        "envoy.extensions.load_balancing_policies.common.v3.OrcaOobReportingConfig",
        &[FieldRule::Field(1, &[Check::AtMost(65535.0)])],
    ),
    (
        "envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue",
        &[FieldRule::OneOf("key"), FieldRule::OneOf("value"), FieldRule::Field(1, NAMED)],
    ),
    (
        "envoy.extensions.filters.http.header_to_metadata.v3.Config.KeyValuePair",
        &[FieldRule::Field(2, NAMED)],
    ),
    (
        "envoy.extensions.filters.common.fault.v3.FaultDelay",
        &[FieldRule::OneOf("fault_delay_secifier"), FieldRule::Field(3, &[Check::Above(0.0)])],
    ),
    (
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        &[
            FieldRule::Field(1, NAMED),
            FieldRule::Field(7, &[Check::AtLeast(1.0)]),
            FieldRule::Field(11, &[Check::MaxItems(1)]),
            FieldRule::Field(13, &[Check::AtLeast(0.001)]),
            FieldRule::OneOf("cluster_specifier"),
        ],
    ),
    (
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster",
        &[FieldRule::Field(1, &[Check::MinItems(1)])],
    ),
    (
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight",
        &[FieldRule::Field(1, NAMED), FieldRule::Field(2, &[Check::AtLeast(1.0)])],
    ),
    (
        "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
        &[FieldRule::Field(1, NAMED), FieldRule::Field(2, &[Check::Required, Check::AtLeast(1.0)])],
    ),
    (
        "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
        &[FieldRule::Field(1, NAMED), FieldRule::Field(2, &[Check::Required])],
    ),
    ("envoy.extensions.filters.network.ext_authz.v3.ExtAuthz", &[FieldRule::Field(1, NAMED)]),
    ("envoy.extensions.filters.network.rbac.v3.RBAC", &[FieldRule::Field(3, NAMED)]),
    (
        "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput",
        &[FieldRule::Field(1, NAMED), FieldRule::Field(2, &[Check::MinItems(1)])],
    ),
    (
        "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput.PathSegment",
        &[FieldRule::OneOf("segment"), FieldRule::Field(1, NAMED)],
    ),
    (
        "envoy.extensions.matching.input_matchers.metadata.v3.Metadata",
        &[FieldRule::Field(1, &[Check::Required])],
    ),
    (
        "envoy.extensions.matching.input_matchers.ip.v3.Ip",
        &[FieldRule::Field(1, &[Check::MinItems(1)]), FieldRule::Field(2, NAMED)],
    ),
    ("envoy.config.rbac.v3.SourcedMetadata", &[FieldRule::Field(1, &[Check::Required])]),
    (
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
        &[FieldRule::Field(1, &[Check::AtLeast(2.0)])],
    ),
    (
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        &[FieldRule::OneOf("upstream_protocol_options")],
    ),
    (
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
        &[FieldRule::OneOf("protocol_config")],
    ),
];
