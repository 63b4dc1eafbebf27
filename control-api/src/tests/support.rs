//! The support table.

use serde_json::json;

use super::*;
use crate::support::{Findings, MessageSupport, SupportTable};

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

static CORE: &[MessageSupport] = &[
    MessageSupport {
        message: "envoy.config.cluster.v3.Cluster",
        implemented: &[
            "name",
            "lb_policy",
            "type",
            "metadata",
            "typed_extension_protocol_options",
            "load_assignment",
        ],
        observe: &[
            ("alt_stat_name", "stat names cannot be changed"),
            ("lb_policy=RANDOM", "taken for round robin"),
        ],
        rejected: &[
            ("lb_subset_config", "use locality weights"),
            ("lb_policy=MAGLEV", "no consistent hashing | yet"),
        ],
    },
    MessageSupport {
        message: "envoy.config.core.v3.Metadata",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.config.endpoint.v3.ClusterLoadAssignment",
        implemented: &["*"],
        observe: &[],
        rejected: &[("policy", "no overprovisioning")],
    },
    MessageSupport {
        message: "envoy.config.endpoint.v3.LocalityLbEndpoints",
        implemented: &["*"],
        observe: &[],
        rejected: &[],
    },
];

static EXTENSIONS: &[MessageSupport] = &[
    MessageSupport {
        message: "stats.PluginConfig",
        implemented: &[],
        observe: &[("*", "has no effect")],
        rejected: &[],
    },
    MessageSupport { message: "a.B", implemented: &[], observe: &[("*", "is only noted")], rejected: &[] },
    MessageSupport { message: ROUTER, implemented: &["*"], observe: &[], rejected: &[("*", "not here")] },
];

fn table() -> SupportTable {
    SupportTable::new(&[CORE, EXTENSIONS])
}

fn check(fields: Value) -> Findings {
    let resource = crate::load_resource(&any("envoy.config.cluster.v3.Cluster", fields)).unwrap();
    table().check(&resource.dynamic, "clusters[0]")
}

fn lines(problems: &[crate::Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn only_what_is_named_passes() {
    let findings = check(json!({
        "name": "a",
        "alt_stat_name": "b",
        "metadata": { "filter_metadata": { "x": { "y": 1 } } },
    }));
    assert_eq!(lines(&findings.rejected), [""; 0]);
    assert_eq!(lines(&findings.observed), ["clusters[0].alt_stat_name: stat names cannot be changed"]);

    let findings =
        check(json!({ "lb_subset_config": {}, "dns_lookup_family": "V4_ONLY", "connect_timeout": "1s" }));
    assert_eq!(
        lines(&findings.rejected),
        [
            "clusters[0].connect_timeout: the field is not supported",
            "clusters[0].dns_lookup_family: the field is not supported",
            "clusters[0].lb_subset_config: use locality weights",
        ]
    );
}

#[test]
fn one_value_of_an_enum_can_be_refused_or_observed() {
    let findings = check(json!({ "lb_policy": "MAGLEV" }));
    assert_eq!(lines(&findings.rejected), ["clusters[0].lb_policy: no consistent hashing | yet"]);
    let findings = check(json!({ "lb_policy": "RANDOM" }));
    assert_eq!(lines(&findings.observed), ["clusters[0].lb_policy: taken for round robin"]);
    assert_eq!(check(json!({ "lb_policy": "LEAST_REQUEST" })), Findings::default());
}

#[test]
fn extensions_are_looked_into() {
    let upstream = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let findings = check(json!({ "typed_extension_protocol_options": {
        "a": any("stats.PluginConfig", json!({})),
        "b": any(upstream, json!({})),
        "c": any("xds.type.v3.TypedStruct", json!({ "type_url": "t/a.B" })),
        "d": any("xds.type.v3.TypedStruct", json!({ "type_url": "t/c.D" })),
        "e": any("udpa.type.v1.TypedStruct", json!({ "type_url": format!("t/{upstream}"), "value": {} })),
        "f": any(ROUTER, json!({})),
        "g": any("google.protobuf.StringValue", json!({ "value": "x" })),
        "h": {},
    } }));
    let path = "clusters[0].typed_extension_protocol_options";
    assert_eq!(
        lines(&findings.rejected),
        [
            format!("{path}[\"b\"]: the extension type {upstream} is known but not supported"),
            format!("{path}[\"d\"]: unknown type c.D"),
            format!("{path}[\"e\"]: the extension type {upstream} is known but not supported"),
            format!("{path}[\"f\"]: not here"),
        ]
    );
    assert_eq!(
        lines(&findings.observed),
        [format!("{path}[\"a\"]: has no effect"), format!("{path}[\"c\"]: is only noted")]
    );
}

#[test]
fn nested_messages_need_an_entry_of_their_own() {
    let findings = check(json!({ "load_assignment": {
        "policy": {},
        "endpoints": [
            { "priority": 1 },
            { "lb_endpoints": [{ "endpoint": {} }] },
            // Newer than the Rust type, so a wildcard does not cover it.
            { "metadata": {} },
        ],
    } }));
    assert_eq!(
        lines(&findings.rejected),
        [
            "clusters[0].load_assignment.endpoints[1].lb_endpoints[0]: envoy.config.endpoint.v3.LbEndpoint is not \
             supported",
            "clusters[0].load_assignment.endpoints[2].metadata: the field is not supported",
            "clusters[0].load_assignment.policy: no overprovisioning",
        ]
    );
}

#[test]
fn the_table_is_checked_against_the_descriptors() {
    static WRONG: &[MessageSupport] = &[
        MessageSupport {
            message: "envoy.config.cluster.v3.Cluster",
            implemented: &["nam"],
            observe: &[("lb_policy=FOO", "")],
            rejected: &[("name=X", "")],
        },
        MessageSupport { message: "not.Known", implemented: &["*"], observe: &[], rejected: &[] },
    ];
    assert_eq!(table().mistakes(), [""; 0]);
    assert_eq!(
        SupportTable::new(&[WRONG]).mistakes(),
        [
            "envoy.config.cluster.v3.Cluster has no field nam",
            "envoy.config.cluster.v3.Cluster has no field lb_policy=FOO",
            "envoy.config.cluster.v3.Cluster has no field name=X",
            "not.Known is no known message",
        ]
    );
}

#[test]
fn the_table_is_shown_with_what_it_leaves_out() {
    let markdown = table().to_markdown();
    let row =
        |name: &str| markdown.lines().find(|l| l.starts_with(&format!("| `{name}` |"))).unwrap().to_owned();
    let cluster = row("envoy.config.cluster.v3.Cluster");
    assert!(cluster.contains("| `name`, `type`, "), "{cluster}");
    assert!(cluster.contains("`alt_stat_name` (stat names cannot be changed)"));
    assert!(cluster.contains("`lb_policy=MAGLEV` (no consistent hashing \\| yet)"));
    assert!(cluster.contains("`connect_timeout`") && cluster.contains("`dns_jitter`"));
    assert_eq!(row("stats.PluginConfig"), "| `stats.PluginConfig` |  | everything (has no effect) |  |");
    assert!(row("envoy.config.endpoint.v3.LocalityLbEndpoints").ends_with("|  | `metadata` |"));
    assert_eq!(row("a.B"), "| `a.B` |  | everything (is only noted) |  |");
}
