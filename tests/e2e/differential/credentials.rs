//! `envoy.filters.http.credential_injector`, as in [`super::filters`].

use super::bootstrap::{Bootstrap, ALL_TO_A};
use super::case::case;
use super::filters::{check, filter, host};
use crate::harness::origin::Answer;

const TYPE: &str = "credential_injector.v3.CredentialInjector";

#[tokio::test]
async fn a_secret_goes_with_requests() {
    let generic = |more: &str| {
        format!("credential: {{ name: envoy.http.injected_credentials.generic, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic, {more} }} }}")
    };
    let token = "credential: { name: token }";
    let empty = "credential: { name: empty }";
    let mut bootstrap = Bootstrap::new().secret("token", "s3cr=t").secret("empty", "");
    for (name, options) in [
        ("main", generic(token)),
        (
            "over",
            "overwrite: true, ".to_owned()
                + &generic(&format!("{token}, header: X-Cred, header_value_prefix: 'Bearer '")),
        ),
        ("none", generic(empty)),
        ("open", "allow_request_without_credential: true, ".to_owned() + &generic(empty)),
        ("all", "overwrite: true, allow_request_without_credential: true, ".to_owned() + &generic(empty)),
    ] {
        bootstrap = bootstrap.listener(name, "", ALL_TO_A).filters(name, &filter("inject", TYPE, &options));
    }
    let get =
        |listener: &'static str, name: &'static str, headers: &str| case(listener, name).get("/x", headers);
    let cases = vec![
        get("main", "injected", ""),
        get("main", "there already", "Authorization: mine\r\n"),
        get("main", "there, but empty", "Authorization:\r\n"),
        case("main", "with a body").send("POST", "/x", "", "hello"),
        get("over", "with a prefix", ""),
        get("over", "in place of another", "X-Cred: mine\r\nX-Cred: ours\r\nAuthorization: kept\r\n"),
        get("none", "no secret", ""),
        get("none", "no secret, gRPC", "Content-Type: application/grpc\r\n"),
        get("none", "no secret is needed", "Authorization: mine\r\n"),
        get("open", "without a secret", ""),
        get("all", "nothing in place of another", "Authorization: mine\r\n"),
    ];
    let rooms =
        ["main", "over", "none", "open", "all"].map(|name| format!("http.{name}.credential_injector."));
    check(bootstrap, cases, &rooms.each_ref().map(String::as_str)).await;
}

/// As a filter of a cluster it sees each try.
#[tokio::test]
async fn a_cluster_has_a_secret() {
    let cluster = |secret: &str| {
        format!("typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    explicit_http_config: {{ http_protocol_options: {{}} }}\n    http_filters:\n    - {{ name: inject, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.{TYPE}, credential: {{ name: generic, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic, credential: {{ name: {secret} }} }} }} }} }}\n    - {{ name: codec, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec }} }}")
    };
    let routes = "- { match: { prefix: /none }, route: { cluster: a-none, timeout: 0s, retry_policy: { retry_on: 'retriable-status-codes', retriable_status_codes: [401] } } }\n\
        - { match: { prefix: / }, route: { cluster: a-one, timeout: 0s, retry_policy: { retry_on: 5xx, retry_back_off: { base_interval: 0.001s } } } }\n";
    let bootstrap = Bootstrap::new()
        .secret("token", "s3cr=t")
        .secret("empty", "")
        .origin("a-one", &cluster("token"))
        .origin("a-none", &cluster("empty"))
        .listener("main", "", &host("  include_request_attempt_count: true\n", routes));
    let cases = vec![
        case("main", "injected").get("/x", ""),
        case("main", "tried again").get("/x", "").script(|request| {
            match request.header("x-envoy-attempt-count") {
                Some("1") => Answer::status(503, "Busy", ""),
                _ => Answer::ok("ok"),
            }
        }),
        case("main", "there already").get("/x", "Authorization: mine\r\n"),
        case("main", "no secret").get("/none", ""),
    ];
    check(bootstrap, cases, &["cluster.a-one.credential_injector.", "cluster.a-none.credential_injector."])
        .await;
}
