//! Support of the HTTP filters that decide on requests or change heads, and of what routes say to them.

use outrigger_control_api::support::MessageSupport;

use super::whole;

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
];
