//! Support of the HTTP filters that decide on requests or change heads, and of what routes say to them.

use outrigger_control_api::support::MessageSupport;

use super::whole;

const NO_DESCRIPTORS: &str = "there are no descriptors yet";
const TRAILERS: &str = "trailers are not changed yet";

pub(super) const MESSAGES: &[MessageSupport] = &[
    whole("envoy.config.route.v3.FilterConfig"),
    whole("envoy.config.route.v3.CorsPolicy"),
    whole("envoy.extensions.filters.http.on_demand.v3.PerRouteConfig"),
    whole("envoy.extensions.filters.http.cors.v3.Cors"),
    whole("envoy.extensions.filters.http.cors.v3.CorsPolicy"),
    MessageSupport {
        message: "envoy.extensions.filters.http.fault.v3.HTTPFault",
        implemented: &[
            "delay",
            "abort",
            "upstream_cluster",
            "headers",
            "downstream_nodes",
            "max_active_faults",
            "delay_percent_runtime",
            "abort_percent_runtime",
            "delay_duration_runtime",
            "abort_http_status_runtime",
            "max_active_faults_runtime",
            "abort_grpc_status_runtime",
            "disable_downstream_cluster_stats",
            "filter_metadata",
        ],
        observe: &[("response_rate_limit_percent_runtime", "responses are not slowed down")],
        rejected: &[("response_rate_limit", "responses are not slowed down yet")],
    },
    whole("envoy.extensions.filters.http.fault.v3.FaultAbort"),
    whole("envoy.extensions.filters.http.fault.v3.FaultAbort.HeaderAbort"),
    whole("envoy.extensions.filters.common.fault.v3.FaultDelay"),
    whole("envoy.extensions.filters.common.fault.v3.FaultDelay.HeaderDelay"),
    whole("envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"),
    whole("envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute"),
    MessageSupport {
        message: "envoy.extensions.filters.http.header_mutation.v3.Mutations",
        implemented: &["request_mutations", "response_mutations", "query_parameter_mutations"],
        observe: &[],
        rejected: &[
            ("response_trailers_mutations", TRAILERS),
            ("request_trailers_mutations", TRAILERS),
            ("formatters", "formatter extensions are not supported"),
        ],
    },
    MessageSupport {
        message: "envoy.config.common.mutation_rules.v3.HeaderMutation",
        implemented: &["remove", "append", "remove_on_match"],
        observe: &[],
        rejected: &[],
    },
    whole("envoy.config.common.mutation_rules.v3.HeaderMutation.RemoveOnMatch"),
    whole("envoy.config.core.v3.KeyValueMutation"),
    MessageSupport {
        message: "envoy.config.core.v3.KeyValueAppend",
        implemented: &["record", "action"],
        observe: &[],
        rejected: &[("entry", "use record")],
    },
    whole("envoy.config.core.v3.KeyValuePair"),
    MessageSupport {
        message: "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        implemented: &[
            "stat_prefix",
            "status",
            "token_bucket",
            "filter_enabled",
            "filter_enforced",
            "request_headers_to_add_when_not_enforced",
            "response_headers_to_add",
            "enable_x_ratelimit_headers",
            "rate_limited_as_resource_exhausted",
        ],
        observe: &[
            ("stage", NO_DESCRIPTORS),
            ("vh_rate_limits", NO_DESCRIPTORS),
            ("always_consume_default_token_bucket", NO_DESCRIPTORS),
            ("max_dynamic_descriptors", NO_DESCRIPTORS),
        ],
        rejected: &[
            ("descriptors", "not supported yet; there is one bucket"),
            ("rate_limits", "not supported yet; there is one bucket"),
            (
                "local_rate_limit_per_downstream_connection",
                "limits of single connections are not supported yet",
            ),
            ("local_cluster_rate_limit", "limits are not shared with other proxies yet"),
            ("enable_retry_after_header", "not supported yet; x-ratelimit-reset is"),
        ],
    },
    whole("envoy.type.v3.TokenBucket"),
    whole("envoy.type.v3.HttpStatus"),
    whole("envoy.extensions.filters.http.admission_control.v3.AdmissionControl"),
    whole("envoy.extensions.filters.http.admission_control.v3.AdmissionControl.SuccessCriteria"),
    whole("envoy.extensions.filters.http.admission_control.v3.AdmissionControl.SuccessCriteria.HttpCriteria"),
    whole("envoy.extensions.filters.http.admission_control.v3.AdmissionControl.SuccessCriteria.GrpcCriteria"),
    whole("envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency"),
    whole("envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig"),
    whole(
        "envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig.ConcurrencyLimitCalculationParams",
    ),
    whole(
        "envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig.MinimumRTTCalculationParams",
    ),
    whole("envoy.extensions.filters.http.csrf.v3.CsrfPolicy"),
    whole("envoy.extensions.filters.http.buffer.v3.Buffer"),
    whole("envoy.extensions.filters.http.buffer.v3.BufferPerRoute"),
    whole("envoy.extensions.filters.http.health_check.v3.HealthCheck"),
    whole("envoy.type.v3.Percent"),
    MessageSupport {
        message: "envoy.extensions.filters.http.set_metadata.v3.Config",
        implemented: &["metadata_namespace", "value", "metadata"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.filters.http.set_metadata.v3.Metadata",
        implemented: &["metadata_namespace", "allow_overwrite", "value"],
        observe: &[],
        rejected: &[("typed_value", "typed metadata is not supported")],
    },
    MessageSupport {
        message: "envoy.extensions.filters.http.header_to_metadata.v3.Config",
        implemented: &["request_rules", "response_rules"],
        observe: &[("stat_prefix", "rules are not counted")],
        rejected: &[],
    },
    whole("envoy.extensions.filters.http.header_to_metadata.v3.Config.Rule"),
    whole("envoy.extensions.filters.http.header_to_metadata.v3.Config.KeyValuePair"),
];
