//! `envoy.filters.http.jwt_authn`: the same tokens to both, as in [`super::filters`].

pub mod issuer;

use super::bootstrap::Bootstrap;
use super::case::{case, Case};
use super::filters::{check, filter, host, route, says};
use crate::harness::http1::Message;
use crate::harness::origin::Answer;
use issuer::{encoded, Issuer};
use serde_json::{json, Value};
use std::time::{SystemTime, UNIX_EPOCH};

const KIND: &str = "jwt_authn.v3.JwtAuthentication";
const PER_ROUTE: &str = "extensions.filters.http.jwt_authn.v3.PerRouteConfig";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// Claims as an OIDC provider makes them.
fn claims() -> Value {
    let now = now();
    json!({
        "iss": "https://issuer.test", "sub": "248289761001", "aud": ["api.test", "other.test"], "azp": "client-1",
        "iat": now, "exp": now + 3600, "auth_time": now, "nonce": "n-0S6_WzA2Mj", "scope": "openid email",
        "email": "jane@example.com", "email_verified": true, "level": 3, "ratio": 1.5, "debt": -2,
        "realm_access": { "roles": ["user", "admin"], "name": "staff" }, "groups": ["a", "b"], "odd": ["?>~?>~", 1, 1.5, null, true, { "x": "\u{fc}" }],
    })
}

/// Those claims with others in their place; null takes one away.
fn with(changes: Value) -> Value {
    let mut all = claims();
    let (Some(fields), Value::Object(changes)) = (all.as_object_mut(), changes) else { panic!("no objects") };
    for (name, value) in changes {
        match value {
            Value::Null => fields.remove(&name),
            value => fields.insert(name, value),
        };
    }
    all
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// A route with a requirement of its own, which shows what metadata and headers there are.
fn demands(path: &str, name: &str) -> String {
    route(path, &[says("jwt", PER_ROUTE, &format!("requirement_name: {name}"))])
}

#[tokio::test]
async fn local_keys() {
    let issuer = Issuer::new();
    let stranger = Issuer::new();
    let keys = issuer.keys().to_string();
    let local = |more: &str| {
        format!("{{ issuer: 'https://issuer.test', local_jwks: {{ inline_string: '{keys}' }}{more} }}")
    };
    let providers = [
        format!("plain: {}", local("")),
        format!("kept: {}", local(", forward: true, audiences: [ 'https://api.test/' ]")),
        format!("anyone: {{ local_jwks: {{ inline_string: '{keys}' }} }}"),
        format!("told: {}", local(", forward_payload_header: x-payload, payload_in_metadata: payload, header_in_metadata: header, normalize_payload_in_metadata: { space_delimited_claims: [ scope ] }, claim_to_headers: [ { header_name: x-sub, claim_name: sub }, { header_name: x-level, claim_name: level }, { header_name: x-ratio, claim_name: ratio }, { header_name: x-debt, claim_name: debt }, { header_name: x-verified, claim_name: email_verified }, { header_name: x-groups, claim_name: groups }, { header_name: x-none, claim_name: none }, { header_name: x-odd, claim_name: odd }, { header_name: x-roles, claim_name: realm_access.roles }, { header_name: x-realm, claim_name: realm_access.name } ]")),
        format!("padded: {}", local(", forward_payload_header: x-payload, pad_forward_payload_header: true")),
        format!("places: {}", local(", from_headers: [ { name: x-token, value_prefix: 'jwt ' }, { name: x-bare } ], from_params: [ token ], from_cookies: [ session ]")),
        format!("expiring: {}", local(", require_expiration: true, clock_skew_seconds: 10")),
        format!("brief: {}", local(", max_lifetime: 600s")),
        format!("subjects: {}", local(", subjects: { prefix: 'spiffe://' }")),
        format!("cached: {}", local(", jwt_cache_config: { jwt_cache_size: 10 }")),
        format!("failed: {}", local(", failed_status_in_metadata: why")),
        format!("two: {{ issuer: 'https://two.test', from_headers: [ {{ name: x-two }} ], local_jwks: {{ inline_string: '{keys}' }} }}"),
    ]
    .join(", ");
    let named = [
        "plain", "kept", "anyone", "told", "padded", "places", "expiring", "brief", "subjects", "cached",
        "failed",
    ];
    let mut requirements: Vec<String> =
        named.iter().map(|name| format!("{name}: {{ provider_name: {name} }}")).collect();
    requirements.extend([
        "audience: { provider_and_audiences: { provider_name: plain, audiences: [ special.test ] } }".to_string(),
        "any: { requires_any: { requirements: [ { provider_name: plain }, { provider_name: two } ] } }".to_string(),
        "all: { requires_all: { requirements: [ { provider_name: plain }, { provider_name: two } ] } }".to_string(),
        "optional: { requires_any: { requirements: [ { provider_name: plain }, { allow_missing: {} } ] } }".to_string(),
        "lenient: { requires_any: { requirements: [ { provider_name: plain }, { allow_missing_or_failed: {} } ] } }".to_string(),
        "nothing: {}".to_string(),
    ]);
    let rules = [
        "{ match: { path: /rule/exact }, requires: { provider_name: plain } }",
        "{ match: { prefix: /rule/header, headers: [ { name: x-strict, present_match: true } ] }, requires: { provider_name: plain } }",
        "{ match: { prefix: /rule/query, query_parameters: [ { name: strict, present_match: true } ] }, requirement_name: kept }",
        "{ match: { safe_regex: { regex: '/rule/[0-9]+' } }, requires: { provider_name: plain } }",
        "{ match: { path_separated_prefix: /rule/part }, requires: { provider_name: plain } }",
        "{ match: { prefix: /rule/open } }",
        "{ match: { prefix: /RULE/Case, case_sensitive: false }, requires: { provider_name: plain } }",
    ]
    .join(", ");
    let config = format!("providers: {{ {providers} }}, requirement_map: {{ {} }}, rules: [ {rules} ], bypass_cors_preflight: true", requirements.join(", "));
    let names: Vec<&str> = requirements.iter().filter_map(|entry| entry.split(':').next()).collect();
    let mut routes: String = names.iter().map(|name| demands(&format!("/{name}/"), name)).collect();
    routes += &demands("/unknown/", "unknown");
    routes += &route("/disabled/", &[says("jwt", PER_ROUTE, "disabled: true")]);
    routes += "- { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } }, typed_per_filter_config: { jwt: { '@type': type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig, requirement_name: plain } } }\n";
    routes += "- { match: { prefix: / }, route: { cluster: a } }\n";
    let metadata = |name: &str| {
        format!("{{ header: {{ key: x-md-{}, value: '%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:{name})%' }} }}", name.replace([':', '_'], "-"))
    };
    let shown = format!(
        "  request_headers_to_add: [ {} ]\n",
        [
            "payload:sub",
            "payload:scope",
            "payload:level",
            "header:alg",
            "header:kid",
            "why:code",
            "why:message"
        ]
        .map(metadata)
        .join(", ")
    );
    let terse = format!("providers: {{ plain: {} }}, requirement_map: {{ only_missing: {{ allow_missing: {{}} }}, only_failed: {{ allow_missing_or_failed: {{}} }}, alone: {{ requires_all: {{ requirements: [ {{ allow_missing: {{}} }}, {{}} ] }} }} }}, rules: [ {{ match: {{ prefix: /rule }}, requires: {{ provider_name: plain }} }} ], strip_failure_response: true, stat_prefix: short", local(""));
    let terse_routes = demands("/only_missing", "only_missing")
        + &demands("/only_failed", "only_failed")
        + &demands("/alone", "alone")
        + "- { match: { prefix: / }, route: { cluster: a } }\n";
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host(&shown, &routes))
        .filters("main", &filter("jwt", KIND, &config))
        .listener("terse", "", &host("", &terse_routes))
        .filters("terse", &filter("jwt", KIND, &terse));
    let good = issuer.token(&claims());
    let tampered = {
        let mut parts: Vec<&str> = good.split('.').collect();
        let other = encoded(with(json!({ "sub": "root" })).to_string());
        parts[1] = &other;
        parts.join(".")
    };
    let two = issuer.token(&with(json!({ "iss": "https://two.test" })));
    let get = |name: &'static str, path: &str, headers: &str| case("main", name).get(path, headers);
    let token = |name: &'static str, path: &str, token: &str| case("main", name).get(path, &bearer(token));
    let of = |changes: Value| issuer.token(&with(changes));
    let mut cases: Vec<Case> = vec![
        token("good", "/plain/", &good),
        get("missing", "/plain/", ""),
        get("missing, with a query", "/plain/x?y=1", ""),
        get("missing, a long path", &format!("/plain/{}", "x".repeat(400)), ""),
        get("another scheme", "/plain/", "Authorization: Basic abc\r\n"),
        get("lower-case bearer", "/plain/", &format!("Authorization: bearer {good}\r\n")),
        get("more spaces", "/plain/", &format!("Authorization: Bearer   {good}\r\n")),
        get("something before", "/plain/", &format!("Authorization: Some Bearer {good}\r\n")),
        get("bearer of nothing", "/plain/", "Authorization: Bearer \r\n"),
        get("bearer of no token", "/plain/", "Authorization: Bearer ,;\r\n"),
        token("no dots", "/plain/", "abc"),
        token("two parts", "/plain/", "abc.def"),
        token("an empty part", "/plain/", "abc..def"),
        token("four parts", "/plain/", "a.b.c.d"),
        token("header no base64", "/plain/", "a$.b.c"),
        token("header no JSON", "/plain/", &format!("{}.e30.c2ln", encoded("nothing"))),
        token("header a list", "/plain/", &format!("{}.e30.c2ln", encoded("[]"))),
        token("no alg", "/plain/", &format!("{}.e30.c2ln", encoded("{}"))),
        token("alg a number", "/plain/", &format!("{}.e30.c2ln", encoded("{\"alg\":1}"))),
        token(
            "alg none",
            "/plain/",
            &format!("{}.{}.c2ln", encoded("{\"alg\":\"none\"}"), encoded(claims().to_string())),
        ),
        token("alg unknown", "/plain/", &format!("{}.e30.c2ln", encoded("{\"alg\":\"XX1\"}"))),
        token("kid a number", "/plain/", &format!("{}.e30.c2ln", encoded("{\"alg\":\"RS256\",\"kid\":1}"))),
        token("payload no base64", "/plain/", &format!("{}.e$.c2ln", encoded("{\"alg\":\"RS256\"}"))),
        token(
            "payload no JSON",
            "/plain/",
            &format!("{}.{}.c2ln", encoded("{\"alg\":\"RS256\"}"), encoded("x")),
        ),
        token(
            "signature no base64",
            "/plain/",
            &format!("{}.{}.c$", encoded("{\"alg\":\"RS256\"}"), encoded("{}")),
        ),
        token("tampered with", "/plain/", &tampered),
        token("signed by a stranger", "/plain/", &stranger.token(&claims())),
        token("iss a number", "/plain/", &of(json!({ "iss": 1 }))),
        token("sub a number", "/plain/", &of(json!({ "sub": 1 }))),
        token("iat text", "/plain/", &of(json!({ "iat": "x" }))),
        token("nbf text", "/plain/", &of(json!({ "nbf": "x" }))),
        token("exp text", "/plain/", &of(json!({ "exp": "x" }))),
        token("exp negative", "/plain/", &of(json!({ "exp": -1 }))),
        token("nbf negative", "/plain/", &of(json!({ "nbf": -1 }))),
        token("iat negative", "/plain/", &of(json!({ "iat": -1 }))),
        token("exp huge", "/plain/", &of(json!({ "exp": 1e30 }))),
        token("exp fraction", "/plain/", &of(json!({ "exp": now() as f64 + 100.5 }))),
        token("jti a number", "/plain/", &of(json!({ "jti": 1 }))),
        token("aud a number", "/plain/", &of(json!({ "aud": 1 }))),
        token("aud a list of numbers", "/plain/", &of(json!({ "aud": [1] }))),
        token("another issuer", "/plain/", &of(json!({ "iss": "https://evil.test" }))),
        token("no issuer", "/plain/", &of(json!({ "iss": null }))),
        token("expired", "/plain/", &of(json!({ "exp": now() - 1000 }))),
        token("expired, within the skew", "/plain/", &of(json!({ "exp": now() - 30 }))),
        token("not yet valid", "/plain/", &of(json!({ "nbf": now() + 1000 }))),
        token("not yet valid, within the skew", "/plain/", &of(json!({ "nbf": now() + 30 }))),
        token("for ever", "/plain/", &of(json!({ "exp": null }))),
        token("exp of zero", "/plain/", &of(json!({ "exp": 0 }))),
        token(
            "unknown key",
            "/plain/",
            &issuer.signed("RS256", &json!({ "alg": "RS256", "kid": "other" }), &claims()),
        ),
        token("no key id", "/plain/", &issuer.signed("RS256", &json!({ "alg": "RS256" }), &claims())),
        token(
            "HS256 with the RSA key",
            "/plain/",
            &issuer.signed("HS256", &json!({ "alg": "HS256", "kid": "rsa" }), &claims()),
        ),
        token("kept", "/kept/", &good),
        token("kept, wrong audience", "/kept/", &of(json!({ "aud": "third.test" }))),
        token("kept, audience as a URL", "/kept/", &of(json!({ "aud": "http://api.test" }))),
        token("kept, no audience", "/kept/", &of(json!({ "aud": null }))),
        token("own audience", "/audience/", &of(json!({ "aud": "special.test" }))),
        token("own audience, another", "/audience/", &good),
        token("anyone's", "/anyone/", &of(json!({ "iss": "https://whoever.test" }))),
        token("told", "/told/", &good),
        case("main", "told, forged headers").get(
            "/told/",
            &format!("{}X-Payload: forged\r\nX-Sub: forged\r\nX-None: forged\r\n", bearer(&good)),
        ),
        token("padded", "/padded/", &of(json!({ "x": "" }))),
        token("padded, other length", "/padded/", &of(json!({ "x": "1" }))),
        token("padded, third length", "/padded/", &of(json!({ "x": "12" }))),
        get("prefixed", "/places/", &format!("X-Token: jwt {good}\r\n")),
        get("bare", "/places/", &format!("X-Bare: {good}\r\n")),
        get("default place is off", "/places/", &bearer(&good)),
        get("parameter", &format!("/places/x?z=1&token={good}&a=b&flag"), ""),
        get("parameter alone", &format!("/places/x?token={good}"), ""),
        get("default parameter", &format!("/plain/x?access_token={good}"), ""),
        get("cookie", "/places/", &format!("Cookie: a=b; session={good}; c=d\r\n")),
        get("two good ones", "/places/", &format!("X-Bare: {good}\r\nX-Token: jwt {good}\r\n")),
        get("a good and a bad one", "/places/", &format!("X-Bare: {good}\r\nX-Token: jwt {tampered}\r\n")),
        get("a header twice", "/places/", &format!("X-Bare: {good}\r\nX-Bare: {tampered}\r\n")),
        get("prefixed, twice", "/places/", &format!("X-Token: jwt {good}\r\nX-Token: jwt {tampered}\r\n")),
        get("two authorizations, bad last", "/plain/", &(bearer(&good) + &bearer(&tampered))),
        get("two authorizations, bad first", "/plain/", &(bearer(&tampered) + &bearer(&good))),
        get("two authorizations, both good", "/plain/", &(bearer(&good) + &bearer(&good))),
        get("two authorizations, both kept", "/kept/", &(bearer(&good) + &bearer(&good))),
        get(
            "two authorizations, another scheme first",
            "/plain/",
            &format!("Authorization: Basic YTpi\r\n{}", bearer(&good)),
        ),
        get(
            "two authorizations, another scheme last",
            "/plain/",
            &format!("{}Authorization: Basic YTpi\r\n", bearer(&good)),
        ),
        get(
            "two authorizations, an empty one first",
            "/plain/",
            &format!("Authorization:\r\n{}", bearer(&good)),
        ),
        get(
            "three authorizations",
            "/plain/",
            &format!("Authorization: Basic YTpi\r\n{}Authorization: x\r\n", bearer(&good)),
        ),
        get(
            "two authorizations in one",
            "/plain/",
            &format!("Authorization: Bearer {good},Bearer {good}\r\n"),
        ),
        get(
            "two authorizations in one, apart",
            "/plain/",
            &format!("Authorization: Bearer {good}, Bearer {tampered}\r\n"),
        ),
        token("must expire, does", "/expiring/", &good),
        token("must expire, does not", "/expiring/", &of(json!({ "exp": null }))),
        token("small skew", "/expiring/", &of(json!({ "exp": now() - 30 }))),
        token("brief enough", "/brief/", &of(json!({ "exp": now() + 500 }))),
        token("too long", "/brief/", &good),
        token("too long and for ever", "/brief/", &of(json!({ "exp": null }))),
        token("brief, expired", "/brief/", &of(json!({ "exp": now() - 1000 }))),
        token("wrong subject", "/subjects/", &good),
        token("right subject", "/subjects/", &of(json!({ "sub": "spiffe://x/y" }))),
        token("wrong subject and expired", "/subjects/", &of(json!({ "exp": now() - 1000 }))),
        token("cached, first", "/cached/", &good),
        token("cached, second", "/cached/", &good),
        token("cached, bad", "/cached/", &tampered),
        get("any, none", "/any/", ""),
        token("any, first", "/any/", &good),
        get("any, second", "/any/", &format!("X-Two: {two}\r\n")),
        get("any, second is bad", "/any/", &format!("X-Two: {tampered}\r\n")),
        get("any, both bad", "/any/", &format!("X-Two: {tampered}\r\n{}", bearer(&tampered))),
        get("any, expired and missing", "/any/", &bearer(&of(json!({ "exp": 1 })))),
        get("all, one", "/all/", &bearer(&good)),
        get("all, both", "/all/", &format!("X-Two: {two}\r\n{}", bearer(&good))),
        get("all, the second is bad", "/all/", &format!("X-Two: {good}\r\n{}", bearer(&good))),
        get("optional, none", "/optional/", ""),
        token("optional, good", "/optional/", &good),
        token("optional, bad", "/optional/", &tampered),
        token("optional, another issuer", "/optional/", &two),
        get("lenient, none", "/lenient/", ""),
        token("lenient, good", "/lenient/", &good),
        token("lenient, bad", "/lenient/", &tampered),
        case("terse", "only missing, none").get("/only_missing/", ""),
        case("terse", "only missing, good").get("/only_missing/", &bearer(&good)),
        case("terse", "only missing, bad").get("/only_missing/", &bearer(&tampered)),
        case("terse", "only failed, none").get("/only_failed/", ""),
        case("terse", "only failed, good").get("/only_failed/", &bearer(&good)),
        case("terse", "only failed, bad").get("/only_failed/", &bearer(&tampered)),
        case("terse", "alone among others, none").get("/alone/", ""),
        case("terse", "alone among others, bad").get("/alone/", &bearer(&tampered)),
        token("failure in metadata, good", "/failed/", &good),
        token("failure in metadata, bad", "/failed/", &tampered),
        get("nothing demanded", "/nothing/", ""),
        get("unknown requirement", "/unknown/", ""),
        get("disabled", "/disabled/", ""),
        get("direct, none", "/direct", ""),
        token("direct, good", "/direct", &good),
        get("no rule", "/other", ""),
        get("rule, exact", "/rule/exact", ""),
        get("rule, exact with a query", "/rule/exact?x=1", ""),
        get("rule, longer", "/rule/exact/more", ""),
        get("rule, header", "/rule/header", "X-Strict: 1\r\n"),
        get("rule, without the header", "/rule/header", ""),
        get("rule, query", "/rule/query?strict=1", ""),
        get("rule, without the query", "/rule/query", ""),
        get("rule, regex", "/rule/17", ""),
        get("rule, no regex", "/rule/x17", ""),
        get("rule, part", "/rule/part/x", ""),
        get("rule, no part", "/rule/party", ""),
        get("rule, open", "/rule/open", ""),
        get("rule, case", "/rule/case", ""),
        case("main", "preflight").send(
            "OPTIONS",
            "/plain/",
            "Origin: http://a.test\r\nAccess-Control-Request-Method: GET\r\n",
            "",
        ),
        case("main", "no preflight").send("OPTIONS", "/plain/", "Origin: http://a.test\r\n", ""),
        case("main", "a body").send("POST", "/plain/", &bearer(&good), "hello"),
        case("main", "a body, refused").send("POST", "/plain/", &bearer(&tampered), "hello"),
        case("main", "gRPC, refused").send("POST", "/plain/", "Content-Type: application/grpc\r\n", ""),
        case("main", "HEAD, refused").send("HEAD", "/plain/", "", "").answers_head(),
        case("terse", "terse, missing").get("/rule", ""),
        case("terse", "terse, bad").get("/rule", &bearer(&tampered)),
        case("terse", "terse, good").get("/rule", &bearer(&good)),
    ];
    for (name, kid) in [
        ("RS256", "rsa"),
        ("RS384", "rsa"),
        ("RS512", "rsa"),
        ("PS256", "rsa"),
        ("PS384", "rsa"),
        ("PS512", "rsa"),
        ("ES256", "p256"),
        ("ES384", "p384"),
        ("ES512", "p521"),
        ("HS256", "secret"),
        ("HS384", "secret"),
        ("HS512", "secret"),
        ("EdDSA", "ed"),
    ] {
        cases.push(token(
            name,
            "/plain/",
            &issuer.signed(name, &json!({ "alg": name, "kid": kid }), &claims()),
        ));
    }
    check(bootstrap, cases, &["http.main.jwt_authn.", "http.terse.jwt_authn."]).await;
}

#[tokio::test]
async fn remote_keys() {
    let issuer = Issuer::new();
    let keys = issuer.keys().to_string();
    let remote = |path: &str, cluster: &str, more: &str| {
        format!("{{ issuer: 'https://issuer.test', remote_jwks: {{ http_uri: {{ uri: 'https://keys.test{path}', cluster: {cluster}, timeout: 1s }}{more} }} }}")
    };
    let providers = [
        format!("found: {}", remote("/keys", "b", ", cache_duration: 300s")),
        format!("missing: {}", remote("/missing", "b", "")),
        format!("broken: {}", remote("/broken", "b", "")),
        format!("late: {}", remote("/error", "b", "")),
        format!("refused: {}", remote("/keys", "refused", "")),
        format!("empty: {}", remote("/keys", "empty", "")),
        format!("twice: {}", remote("/twice", "b", ", cache_duration: 0.001s")),
    ]
    .join(", ");
    let names = ["found", "missing", "broken", "late", "refused", "empty", "twice"];
    let requirements: Vec<String> =
        names.iter().map(|name| format!("{name}: {{ provider_name: {name} }}")).collect();
    let routes: String = names.iter().map(|name| demands(&format!("/{name}/"), name)).collect();
    let config = format!("providers: {{ {providers} }}, requirement_map: {{ {} }}", requirements.join(", "));
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", &routes))
        .filters("main", &filter("jwt", KIND, &config));
    let good = issuer.token(&claims());
    let script = move |message: &Message| match message.target() {
        "/keys" | "/twice" => Answer::ok(&keys),
        "/missing" => Answer::status(404, "Not Found", "no"),
        "/broken" => Answer::ok("{ }"),
        "/error" => Answer::status(503, "Service Unavailable", "no"),
        _ => Answer::ok("ok"),
    };
    let get = |name: &'static str, path: &str, token: &str| {
        case("main", name).get(path, &bearer(token)).script(script.clone())
    };
    let expired = issuer.token(&with(json!({ "exp": 1 })));
    let cases = vec![
        get("expired: no keys are fetched", "/found/", &expired),
        get("keys are fetched", "/found/", &good),
        get("keys are here", "/found/", &good),
        case("main", "a body waits").send("POST", "/twice/", &bearer(&good), "hello").script(script.clone()),
        get("no such keys", "/missing/", &good),
        get("keys that are none", "/broken/", &good),
        get("a service that fails", "/late/", &good),
        get("a service that is down", "/refused/", &good),
        get("a service without hosts", "/empty/", &good),
    ];
    check(bootstrap, cases, &["http.main.jwt_authn."]).await;
}

/// A service that fails first is asked again, and requests before and after wait for it.
#[tokio::test]
async fn keys_are_asked_for_again() {
    let issuer = Issuer::new();
    let keys = issuer.keys().to_string();
    let config = "providers: { one: { issuer: 'https://issuer.test', remote_jwks: { http_uri: { uri: 'https://keys.test/keys', cluster: b, timeout: 1s }, retry_policy: { num_retries: 2, retry_back_off: { base_interval: 0.01s } } } }, ahead: { issuer: 'https://ahead.test', remote_jwks: { http_uri: { uri: 'https://keys.test/ahead', cluster: b, timeout: 1s }, async_fetch: { fast_listener: true } } } }, rules: [ { match: { prefix: / }, requires: { provider_name: one } } ]";
    let template = Bootstrap::new().plain("main", "").filters("main", &filter("jwt", KIND, config)).render();
    let side = super::run_side(crate::harness::proxy::Kind::Outrigger, &template).await;
    let asked = std::sync::atomic::AtomicUsize::new(0);
    side.origins[1].1.answer(move |message| {
        let first =
            message.target() == "/keys" && asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2;
        if first {
            Answer::status(503, "Service Unavailable", "no")
        } else {
            Answer::ok(&keys)
        }
    });
    let mut client =
        crate::harness::client::Client::connect(side.proxy.port("main")).await.expect("a connection");
    let request = format!("GET / HTTP/1.1\r\nHost: t.test\r\n{}\r\n", bearer(&issuer.token(&claims())));
    let answer = client.exchange(request.as_bytes()).await.expect("an answer");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let fetched = crate::harness::eventually(crate::harness::DEADLINE, || async {
        side.proxy.stats().await.get("http.main.jwt_authn.jwks_fetch_success") == Some(&2)
    });
    assert!(fetched.await, "keys are fetched ahead, too");
    assert!(!side.proxy.output().contains("eyJ"), "no token is logged");
}
