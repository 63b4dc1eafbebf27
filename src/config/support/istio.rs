//! Support of what Istio's control plane configures beside Envoy's own extensions.

use outrigger_control_api::support::MessageSupport;

use super::{observed, whole};

/// Whose task tokens are.
const VERIFIED: &str = "jwt_authn verifies tokens";
const BUILT_IN: &str = "only for plug-ins that are built in, which need none";

pub(super) const MESSAGES: &[MessageSupport] = &[
    MessageSupport {
        message: "stats.PluginConfig",
        implemented: &["disable_host_header_fallback", "tcp_reporting_duration", "metrics", "reporter"],
        observe: &[
            ("definitions", "there are no metrics but the standard ones"),
            ("rescoping_duration", "series that are not used are forgotten by their number, not by time"),
            (
                "scope_grace_period_duration",
                "series that are not used are forgotten by their number, not by time",
            ),
        ],
        rejected: &[],
    },
    MessageSupport {
        message: "stats.MetricConfig",
        implemented: &["dimensions", "name", "tags_to_remove", "drop"],
        observe: &[("match", "it has no effect, as in Istio's proxy")],
        rejected: &[],
    },
    observed(
        "envoy.tcp.metadataexchange.config.MetadataExchange",
        &[("*", "istio-peer-exchange is never agreed on, so there is nothing to exchange")],
    ),
    MessageSupport {
        message: "istio.envoy.config.filter.http.authn.v2alpha1.FilterConfig",
        implemented: &["policy", "skip_validate_trust_domain", "disable_clear_route_cache"],
        observe: &[("jwt_output_payload_locations", "claims are where jwt_authn leaves them")],
        rejected: &[("allowed_trust_domains", "the trust domain is one's own or any")],
    },
    MessageSupport {
        message: "istio.authentication.v1alpha1.Policy",
        implemented: &["peers", "peer_is_optional", "origins", "origin_is_optional", "principal_binding"],
        observe: &[("targets", "the control plane has chosen the policy")],
        rejected: &[],
    },
    whole("istio.authentication.v1alpha1.PeerAuthenticationMethod"),
    whole("istio.authentication.v1alpha1.OriginAuthenticationMethod"),
    whole("istio.authentication.v1alpha1.StringMatch"),
    MessageSupport {
        message: "istio.authentication.v1alpha1.MutualTls",
        implemented: &["mode"],
        observe: &[("allow_tls", "mode decides")],
        rejected: &[],
    },
    MessageSupport {
        message: "istio.authentication.v1alpha1.Jwt",
        implemented: &["issuer", "jwt_headers", "trigger_rules"],
        observe: &[
            ("audiences", VERIFIED),
            ("jwks_uri", VERIFIED),
            ("jwks", VERIFIED),
            ("jwt_params", VERIFIED),
        ],
        rejected: &[],
    },
    whole("istio.authentication.v1alpha1.Jwt.TriggerRule"),
    whole("istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"),
    whole("istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.AlpnOverride"),
    MessageSupport {
        message: "io.istio.http.peer_metadata.Config",
        implemented: &[
            "downstream_discovery",
            "upstream_discovery",
            "downstream_propagation",
            "upstream_propagation",
        ],
        observe: &[
            ("shared_with_upstream", "there are no internal listeners"),
            ("additional_labels", "only standard labels are read"),
        ],
        rejected: &[],
    },
    MessageSupport {
        message: "io.istio.http.peer_metadata.Config.DiscoveryMethod",
        implemented: &["istio_headers"],
        observe: &[
            ("workload_discovery", "workloads are known by what they and their endpoints tell"),
            ("baggage", "workloads are known by what they and their endpoints tell"),
        ],
        rejected: &[],
    },
    whole("io.istio.http.peer_metadata.Config.PropagationMethod"),
    whole("io.istio.http.peer_metadata.Config.IstioHeaders"),
    MessageSupport {
        message: "envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy",
        implemented: &[],
        observe: &[
            ("stat_prefix", "messages of MongoDB are not counted"),
            ("access_log", "messages of MongoDB are not logged"),
            ("emit_dynamic_metadata", "nothing reads metadata of connections"),
            ("commands", "messages of MongoDB are not counted"),
            ("max_bson_depth", "messages of MongoDB are not looked at"),
        ],
        rejected: &[("delay", "messages of MongoDB are not held up")],
    },
    whole("envoy.extensions.filters.http.wasm.v3.Wasm"),
    whole("envoy.extensions.filters.network.wasm.v3.Wasm"),
    MessageSupport {
        message: "envoy.extensions.wasm.v3.PluginConfig",
        implemented: &["vm_config"],
        observe: &[
            ("name", BUILT_IN),
            ("root_id", BUILT_IN),
            ("configuration", "only what standard metrics are told in it has an effect"),
            ("fail_open", BUILT_IN),
            ("failure_policy", BUILT_IN),
            ("reload_config", BUILT_IN),
            ("capability_restriction_config", BUILT_IN),
            ("allow_on_headers_stop_iteration", BUILT_IN),
        ],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.wasm.v3.VmConfig",
        implemented: &["runtime", "code"],
        observe: &[
            ("vm_id", BUILT_IN),
            ("configuration", BUILT_IN),
            ("allow_precompiled", BUILT_IN),
            ("nack_on_code_cache_miss", BUILT_IN),
            ("environment_variables", BUILT_IN),
            ("capability_restriction_config", BUILT_IN),
        ],
        rejected: &[],
    },
    whole("envoy.config.core.v3.AsyncDataSource"),
    MessageSupport {
        message: "envoy.config.core.v3.RemoteDataSource",
        implemented: &[],
        observe: &[],
        rejected: &[("*", "plug-ins that have code cannot be run here")],
    },
];
