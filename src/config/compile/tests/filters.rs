//! Filters that ask services and providers.

use super::*;

const FILTERS: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters";

/// The base with this filter before the router.
fn filtered(kind: &str, mut options: Value) -> (&'static str, Value) {
    options["@type"] = typed(kind).into();
    (FILTERS, json!([{"name": "it", "typed_config": options}, router()]))
}

fn oauth(changes: &[(&str, Value)]) -> (&'static str, Value) {
    let mut config = json!({
        "token_endpoint": {"uri": "http://login.test/token", "cluster": "origin", "timeout": "1s"},
        "authorization_endpoint": "https://login.test/auth",
        "redirect_uri": "https://a.test/callback",
        "redirect_path_matcher": {"path": {"exact": "/callback"}},
        "signout_path": {"path": {"exact": "/signout"}},
        "credentials": {"client_id": "me", "token_secret": {"name": "token"}, "hmac_secret": {"name": "hmac"}},
    });
    for (pointer, value) in changes {
        set(&mut config, pointer, value.clone());
    }
    filtered("extensions.filters.http.oauth2.v3.OAuth2", json!({"config": config}))
}

fn secrets() -> (&'static str, Value) {
    let secret = |name: &str| json!({"name": name, "generic_secret": {"secret": {"inline_string": "x"}}});
    ("/static_resources/secrets", json!([secret("token"), secret("hmac")]))
}

#[test]
fn logins_have_what_they_need() {
    let path = format!("{HCM_PATH}.http_filters[0].typed_config.config");
    assert!(try_compile(&with(&[oauth(&[]), secrets()])).is_ok());
    let refuses = |changes: &[(&str, Value)], at: &str, why: &str| {
        let found = try_compile(&with(&[oauth(changes), secrets()])).unwrap_err();
        assert_eq!(found, [format!("{path}.{at}: {why}")]);
    };
    refuses(
        &[("/authorization_endpoint", json!("login.test/auth"))],
        "authorization_endpoint",
        "\"login.test/auth\" is no absolute URL",
    );
    refuses(
        &[("/end_session_endpoint", json!("https://login.test/out"))],
        "end_session_endpoint",
        "is for OpenID Connect only: auth_scopes lacks openid",
    );
    refuses(
        &[("/credentials/hmac_secret", json!({"name": "nothing"}))],
        "credentials.hmac_secret.name",
        "there is no static secret \"nothing\"",
    );
    refuses(&[("/token_endpoint", Value::Null)], "token_endpoint", "is required");
    refuses(&[("/token_cookie_chunking", json!({}))], "token_cookie_chunking", "a token is in one cookie");
}

#[test]
fn calls_are_tried_again_as_config_says() {
    let service = |policy: Value| {
        let options = json!({"transport_api_version": "V3", "http_service": {
            "server_uri": {"uri": "http://authz.test", "cluster": "origin", "timeout": "1s"},
            "retry_policy": policy,
        }});
        with(&[filtered("extensions.filters.http.ext_authz.v3.ExtAuthz", options)])
    };
    let path = format!("{HCM_PATH}.http_filters[0].typed_config.http_service.retry_policy");
    assert!(try_compile(&service(json!({"retry_on": "5xx,unavailable", "num_retries": 2}))).is_ok());
    let back_off = json!({"retry_back_off": {"base_interval": "2s", "max_interval": "1s"}});
    let found = try_compile(&service(back_off)).unwrap_err();
    assert_eq!(found, [format!("{path}.retry_back_off.max_interval: must not be less than base_interval")]);
    let priority = json!({"retry_priority": {"name": "it"}});
    let found = try_compile(&service(priority)).unwrap_err();
    assert_eq!(found, [format!("{path}.retry_priority: the host of each try is chosen alike")]);
}

#[test]
fn what_processors_see_goes_together() {
    let processor =
        |options: Value| with(&[filtered("extensions.filters.http.ext_proc.v3.ExternalProcessor", options)]);
    let path = format!("{HCM_PATH}.http_filters[0].typed_config");
    let grpc = json!({"envoy_grpc": {"cluster_name": "origin"}});
    let http = json!({"http_service": {"http_uri": {"uri": "http://proc.test/", "cluster": "origin", "timeout": "1s"}}});
    let duplex = |trailers: &str| json!({"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": trailers});
    for accepted in [
        json!({"grpc_service": grpc, "processing_mode": duplex("SEND")}),
        json!({"grpc_service": grpc, "processing_mode": duplex("SEND"), "failure_mode_allow": true}),
        json!({"grpc_service": grpc, "allowed_override_modes": [duplex("SKIP")]}),
        json!({"grpc_service": grpc, "observability_mode": true, "deferred_close_timeout": "1s"}),
        json!({"http_service": http}),
    ] {
        assert_eq!(try_compile(&processor(accepted)).err(), None);
    }
    for (refused, wanted) in [
        (
            json!({"grpc_service": grpc, "processing_mode": duplex("SKIP")}),
            "processing_mode.request_trailer_mode: must be SEND where request_body_mode is FULL_DUPLEX_STREAMED",
        ),
        (
            json!({"grpc_service": grpc, "processing_mode": {"response_body_mode": "GRPC"}}),
            "processing_mode.response_body_mode: bodies are not sent to processors in this way",
        ),
        (
            json!({"http_service": http, "grpc_service": grpc}),
            "http_service: there is a grpc_service as well: one of them is enough",
        ),
        (
            json!({"http_service": http, "processing_mode": {"request_body_mode": "STREAMED"}}),
            "processing_mode: a service that is asked over HTTP sees neither bodies nor trailers",
        ),
        (
            json!({"http_service": http, "observability_mode": true}),
            "observability_mode: a service that is asked over HTTP cannot only watch",
        ),
    ] {
        assert_eq!(try_compile(&processor(refused)).unwrap_err(), [format!("{path}.{wanted}")]);
    }
}

#[test]
fn services_that_decide_on_connections_are_named() {
    let chain = "/static_resources/listeners/0/filter_chains/0/filters";
    let path = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config";
    let authz = |service: Value| {
        let kind = typed("extensions.filters.network.ext_authz.v3.ExtAuthz");
        let mut options = json!({"@type": kind, "stat_prefix": "a", "transport_api_version": "V3"});
        options["grpc_service"] = service;
        with(&[(chain, json!([{"name": "authz", "typed_config": options}, tcp_proxy("origin")]))])
    };
    assert!(try_compile(&authz(json!({"envoy_grpc": {"cluster_name": "origin"}}))).is_ok());
    let google = json!({"google_grpc": {"target_uri": "a.test", "stat_prefix": "g"}});
    let found = try_compile(&authz(google)).unwrap_err();
    assert_eq!(
        found,
        [format!("{path}.grpc_service.google_grpc: filters ask services of clusters: use envoy_grpc")]
    );
}

#[test]
fn filters_of_clusters_are_named_and_end_with_the_codec() {
    let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let with_filters = |filters: Value| {
        let options = json!({key: {
            "@type": typed("extensions.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": {"http_protocol_options": {}},
            "http_filters": filters,
        }});
        with(&[("/static_resources/clusters/0/typed_extension_protocol_options", options)])
    };
    let filter = |kind: &str| json!({"name": kind, "typed_config": {"@type": typed(kind)}});
    let codec = filter("extensions.filters.http.upstream_codec.v3.UpstreamCodec");
    let mutation = filter("extensions.filters.http.header_mutation.v3.HeaderMutation");
    assert!(try_compile(&with_filters(json!([mutation, codec]))).is_ok());
    let path = format!("static_resources.clusters[0].typed_extension_protocol_options[\"{key}\"]");
    let found = try_compile(&with_filters(json!([mutation]))).unwrap_err();
    let why = "must end with the codec (envoy.filters.http.upstream_codec)";
    assert_eq!(found, [format!("{path}.http_filters: {why}")]);
    let trailers = json!({"name": "hm", "typed_config": {
        "@type": typed("extensions.filters.http.header_mutation.v3.HeaderMutation"),
        "mutations": {"response_trailers_mutations": [{"remove": "x"}]},
    }});
    let found = try_compile(&with_filters(json!([trailers, codec]))).unwrap_err();
    let why = "filters of clusters see no trailers; those of a connection manager do";
    assert_eq!(
        found,
        [format!("{path}.http_filters[0].typed_config.mutations.response_trailers_mutations: {why}")]
    );
    let cors = filter("extensions.filters.http.cors.v3.Cors");
    let found = try_compile(&with_filters(json!([cors, codec]))).unwrap_err();
    let why = "envoy.extensions.filters.http.cors.v3.Cors is no filter that a cluster can have yet";
    assert_eq!(found, [format!("{path}.http_filters[0].typed_config: {why}")]);
}
