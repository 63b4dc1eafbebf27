//! What clusters and unified matchers look at of a request, as in [`super::filters`].

use super::bootstrap::Bootstrap;
use super::case::case;
use super::filters::{check, filter, host, route, says};

/// The body of a cluster with the origins `a` and `b`, each hashed by a name of its own.
fn ring(policies: &str) -> String {
    let host = |origin: &str| {
        format!("{{ metadata: {{ filter_metadata: {{ envoy.lb: {{ hash_key: {origin} }} }} }}, endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: '@origin:{origin}@' }} }} }} }}")
    };
    format!(
        "type: STATIC\nlb_policy: RING_HASH\nload_assignment: {{ cluster_name: ring, endpoints: [ {{ lb_endpoints: [ {}, {} ] }} ] }}\n\
         typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{ http_protocol_options: {{}} }}, hash_policy: [ {policies} ] }} }}",
        host("a"),
        host("b")
    )
}

#[tokio::test]
async fn hash_policies_of_clusters() {
    let header = |name: &str| format!("{{ header: {{ header_name: {name} }} }}");
    let routes = [
        format!(
            "- {{ match: {{ prefix: /both }}, route: {{ cluster: own, hash_policy: [ {} ] }} }}\n",
            header("x-route")
        ),
        format!(
            "- {{ match: {{ prefix: /none }}, route: {{ cluster: none, hash_policy: [ {} ] }} }}\n",
            header("x-route")
        ),
        "- { match: { prefix: /two }, route: { cluster: two } }\n".to_string(),
        "- { match: { prefix: / }, route: { cluster: own } }\n".to_string(),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .cluster("own", &ring(&header("x-cluster")))
        .cluster(
            "two",
            &ring(&format!("{}, {{ connection_properties: {{ source_ip: true }} }}", header("x-cluster"))),
        )
        .cluster("none", &ring(""))
        .listener("main", "", &host("", &routes));
    let mut cases = Vec::new();
    for number in 0..6 {
        for path in ["/both", "/own", "/none", "/two"] {
            let headers = format!("X-Cluster: c{number}\r\nX-Route: r{number}\r\n");
            cases.push(case("main", path).get(path, &headers));
        }
    }
    check(bootstrap, cases, &["cluster.own.upstream_rq_2", "cluster.none.upstream_rq_2"]).await;
}

#[tokio::test]
async fn metadata_in_unified_matchers() {
    const PER_ROUTE: &str = "extensions.filters.http.rbac.v3.RBACPerRoute";
    let look = |path: &[&str], value: &str, more: &str| {
        let keys: Vec<_> = path.iter().map(|key| format!("{{ key: {key} }}")).collect();
        format!(
            "{{ single_predicate: {{ input: {{ name: i, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput, filter: one, path: [ {} ] }} }}, \
             custom_match: {{ name: m, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.matching.input_matchers.metadata.v3.Metadata, value: {{ {value} }}{more} }} }} }} }}",
            keys.join(", ")
        )
    };
    let action = |name: &str| {
        format!("{{ action: {{ name: {name}, typed_config: {{ '@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: {name}, action: {} }} }} }}", name.to_uppercase())
    };
    let tree = |predicate: String| {
        says("rbac", PER_ROUTE, &format!(
            "rbac: {{ matcher: {{ matcher_list: {{ matchers: [ {{ predicate: {predicate}, on_match: {} }} ] }}, on_no_match: {} }} }}",
            action("allow"), action("deny")
        ))
    };
    let one = |path: &[&str], value: &str| look(path, value, "");
    let not = "not_matcher:";
    let rows: Vec<(&'static str, String)> = vec![
        ("/text", one(&["text"], "string_match: { exact: x }")),
        ("/other-text", one(&["text"], "string_match: { exact: z }")),
        ("/inner", one(&["inner", "list"], "list_match: { one_of: { string_match: { prefix: ad } } }")),
        ("/list-is-no-text", one(&["inner", "list"], "string_match: { prefix: ad }")),
        ("/number", one(&["number"], "double_match: { range: { start: 2, end: 4 } }")),
        ("/bool", one(&["truth"], "bool_match: true")),
        ("/null", one(&["nothing"], "null_match: {}")),
        ("/missing", one(&["none"], "null_match: {}")),
        ("/present", one(&["inner"], "present_match: true")),
        ("/absent", one(&["none"], "present_match: true")),
        ("/inverted", look(&["text"], "string_match: { exact: x }", ", invert: true")),
        ("/inverted-missing", look(&["none"], "string_match: { exact: x }", ", invert: true")),
        ("/not", format!("{{ {not} {} }}", one(&["none"], "present_match: true"))),
        (
            "/or",
            format!(
                "{{ or_matcher: {{ predicate: [ {}, {} ] }} }}",
                one(&["none"], "present_match: true"),
                one(&["text"], "string_match: { exact: x }")
            ),
        ),
        (
            "/and",
            format!(
                "{{ and_matcher: {{ predicate: [ {}, {} ] }} }}",
                one(&["none"], "present_match: true"),
                one(&["text"], "string_match: { exact: x }")
            ),
        ),
        ("/through-a-text", one(&["text", "x"], "present_match: true")),
    ];
    let mut routes: String =
        rows.iter().map(|(path, predicate)| route(path, &[tree(predicate.clone())])).collect();
    routes += "- { match: { prefix: / }, route: { cluster: a } }\n";
    let noted = "metadata: [ { metadata_namespace: one, value: { text: x, number: 3, truth: true, nothing: null, inner: { list: [ user, admin ] } } } ]";
    let mut bootstrap = Bootstrap::new();
    for (name, note) in [("main", true), ("bare", false)] {
        let mut chain = if note { filter("set", "set_metadata.v3.Config", noted) } else { String::new() };
        chain += &filter("rbac", "rbac.v3.RBAC", "");
        bootstrap = bootstrap.listener(name, "", &host("", &routes)).filters(name, &chain);
    }
    let cases = rows
        .iter()
        .flat_map(|(path, _)| ["main", "bare"].map(|name| case(name, path).get(path, "")))
        .collect();
    check(bootstrap, cases, &["http.main.rbac.", "http.bare.rbac."]).await;
}
