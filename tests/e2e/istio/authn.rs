//! Istio's `istio_authn` between `jwt_authn` and authorization: certificates and tokens of real clients.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{json, Value};

use super::typed;
use crate::differential::jwt::issuer::Issuer;
use crate::harness::client::get;
use crate::harness::proxy::Proxy;
use crate::tls::certs::{self, Certs, NOW};
use crate::tls::config::{downstream, Config, CA, INSPECT};
use crate::tls::{curl, with_cert};

const HTTP: &str = "envoy.extensions.filters.http";
const WEB: &str = "mesh.test/ns/shop/sa/web";

/// A connection manager with a policy of authentication, and one of authorization that reads what it finds out.
fn manager(name: &str, keys: &Value, policy: &Value) -> Value {
    let provider = json!({"issuer": "https://issuer.test", "local_jwks": {"inline_string": keys.to_string()},
        "payload_in_metadata": "https://issuer.test"});
    let tokens = json!({"providers": {"p": provider}, "rules": [{"match": {"prefix": "/"},
        "requires": {"requires_any": {"requirements": [{"provider_name": "p"}, {"allow_missing": {}}]}}}]});
    let known = |key: &[&str], value: Value| {
        let path: Vec<Value> = key.iter().map(|key| json!({"key": key})).collect();
        json!({"metadata": {"filter": "istio_authn", "path": path, "value": value}})
    };
    let group = json!({"list_match": {"one_of": {"string_match": {"exact": "staff"}}}});
    let only = |path: &str, principal: Value| json!({"permissions": [{"url_path": {"path": {"exact": path}}}], "principals": [principal]});
    let policies = json!({
        "any": {"permissions": [{"url_path": {"path": {"prefix": "/open"}}}], "principals": [{"any": true}]},
        "user": only("/user", known(&["request.auth.principal"], json!({"string_match": {"exact": "https://issuer.test/joe"}}))),
        "group": only("/group", known(&["request.auth.claims", "groups"], group)),
        "peer": only("/peer", known(&["source.namespace"], json!({"string_match": {"exact": "shop"}}))),
    });
    let filters = [
        typed(&format!("{HTTP}.jwt_authn.v3.JwtAuthentication"), tokens),
        typed("istio.envoy.config.filter.http.authn.v2alpha1.FilterConfig", json!({"policy": policy})),
        typed(&format!("{HTTP}.rbac.v3.RBAC"), json!({"rules": {"policies": policies}})),
        typed(&format!("{HTTP}.router.v3.Router"), json!({})),
    ];
    let filters: Vec<Value> =
        filters.into_iter().map(|config| json!({"name": "one", "typed_config": config})).collect();
    let told = [
        "source.principal",
        "source.user",
        "source.namespace",
        "request.auth.principal",
        "request.auth.audiences",
    ];
    let told: Vec<String> =
        told.iter().map(|name| format!("%DYNAMIC_METADATA(istio_authn:{name})%")).collect();
    let routes = json!([
        // Only what the filter has noted leads here: the route is found anew after it.
        {"match": {"path": "/open/known", "dynamic_metadata": [{"filter": "istio_authn",
            "path": [{"key": "source.namespace"}], "value": {"present_match": true}}]},
            "direct_response": {"status": 200, "body": {"inline_string": "known"}}},
        {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ok"}}},
    ]);
    let options = json!({"stat_prefix": name, "http_filters": filters, "route_config": {"virtual_hosts": [
        {"name": "all", "domains": ["*"], "routes": routes,
            "response_headers_to_add": [{"header": {"key": "x-told", "value": told.join("!")}}]}]}});
    json!({"name": "http", "typed_config":
        typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", options)})
}

struct Mesh {
    certs: Certs,
    proxy: Proxy,
}

impl Mesh {
    /// What a client with this certificate and token gets from a listener: the body, what was noted, and the status.
    async fn ask(&self, listener: &str, path: &str, cert: &str, token: Option<&str>) -> String {
        let mut arguments = vec!["--request-target".to_owned(), path.to_owned(), "--http1.1".to_owned()];
        arguments.extend(["-w".to_owned(), "|%header{x-told}|%{http_code}".to_owned()]);
        if !cert.is_empty() {
            arguments.extend(with_cert(self.certs.path(), cert));
        }
        if let Some(token) = token {
            arguments.extend(["-H".to_owned(), format!("Authorization: Bearer {token}")]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let port = self.proxy.port(listener);
        curl(self.certs.path(), "https", port, &arguments).await.text
    }
}

#[tokio::test]
async fn authn_tells_authorization_who_the_peer_and_the_user_are() {
    let certs = Certs::new();
    let web = certs.ca.issue("web", &format!("spiffe://{WEB}"), &[], NOW, 70);
    certs::put(certs.path(), "web", &web);
    let issuer = Issuer::new();
    let origin = json!({"issuer": "https://issuer.test"});
    let on_paths = json!({"issuer": "https://issuer.test",
        "trigger_rules": [{"excluded_paths": [{"prefix": "/open"}], "included_paths": [{"prefix": "/"}]}]});
    let policies = [
        (
            "strict",
            json!({"peers": [{"mtls": {}}], "origins": [{"jwt": on_paths}], "principal_binding": "USE_ORIGIN"}),
        ),
        (
            "permissive",
            json!({"peers": [{"mtls": {"mode": "PERMISSIVE"}}], "origins": [{"jwt": origin}], "origin_is_optional": true}),
        ),
        ("optional", json!({"peers": [{"mtls": {}}], "peer_is_optional": true})),
    ];
    let mut config = Config::default();
    for (name, policy) in &policies {
        let filter = manager(name, &issuer.keys(), policy);
        let tls = downstream(&format!("validation_context: {{{CA}}}"), "");
        let chains = format!(
            "[{{filter_chain_match: {{transport_protocol: tls}}, filters: [{filter}], {tls}}}, \
             {{filter_chain_match: {{transport_protocol: raw_buffer}}, filters: [{filter}]}}]"
        );
        config = config.listener(name, INSPECT, &chains);
    }
    let proxy = Proxy::outrigger(&config.template(), &config.values(certs.path())).await;
    let mesh = Mesh { certs, proxy };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let token = |sub: &str, groups: Value| {
        issuer.token(&json!({"iss": "https://issuer.test", "sub": sub, "aud": ["one", "two"], "groups": groups, "exp": now + 600}))
    };
    let (joe, ann) = (token("joe", json!(["staff"])), token("ann", json!([])));
    let who = format!("{WEB}!{WEB}!shop");
    let of_joe = format!("{who}!https://issuer.test/joe!one");
    let denied = "RBAC: access denied||403".to_owned();
    let no_peer = "||401";
    for (listener, path, cert, token, wanted) in [
        ("strict", "/open", "web", None, format!("ok|{who}!!|200")),
        ("strict", "/open/known", "web", None, format!("known|{who}!!|200")),
        ("strict", "/peer", "web", Some(&joe), format!("ok|{of_joe}|200")),
        ("strict", "/user", "web", Some(&joe), format!("ok|{of_joe}|200")),
        ("strict", "/group", "web", Some(&joe), format!("ok|{of_joe}|200")),
        ("strict", "/user", "web", Some(&ann), denied.clone()),
        ("strict", "/group", "web", Some(&ann), denied.clone()),
        ("strict", "/user", "web", None, format!("Origin authentication failed.{no_peer}")),
        ("strict", "/open", "", Some(&joe), format!("Peer authentication failed.{no_peer}")),
        // Of another trust domain, by the same authority.
        ("strict", "/open", "wrong", Some(&joe), format!("Peer authentication failed.{no_peer}")),
        ("permissive", "/open", "", None, "ok|!!!!|200".to_owned()),
        ("permissive", "/open", "wrong", None, format!("Peer authentication failed.{no_peer}")),
        ("permissive", "/user", "web", Some(&joe), denied.clone()),
        ("permissive", "/open/known", "", None, "ok|!!!!|200".to_owned()),
        ("optional", "/open", "wrong", None, "ok|!!!!|200".to_owned()),
        ("optional", "/peer", "web", None, format!("ok|{who}!{WEB}!|200")),
    ] {
        let got = mesh.ask(listener, path, cert, token.map(String::as_str)).await;
        assert_eq!(got, wanted, "{listener} {path} {cert} {}", token.is_some());
    }
    for (listener, status) in [("strict", 401), ("permissive", 200)] {
        let answer = get(mesh.proxy.port(listener), "/open").await.expect("an answer");
        assert_eq!(answer.status(), status, "{listener} in plain text");
    }
}
