//! `envoy.filters.http.api_key_auth`, as in [`super::filters`].

use super::bootstrap::Bootstrap;
use super::case::case;
use super::filters::{check, filter, host, route, says};

#[tokio::test]
async fn keys() {
    const KIND: &str = "api_key_auth.v3.ApiKeyAuth";
    const PER_ROUTE: &str = "extensions.filters.http.api_key_auth.v3.ApiKeyAuthPerRoute";
    let said = |options: &str| says("keys", PER_ROUTE, options);
    let all = "key_sources: [ { cookie: key }, { query: key }, { header: x-key } ]";
    let routes = [
        route("/own", &[said("credentials: [ { key: own, client: other } ]")]),
        route("/query", &[said("key_sources: [ { query: key } ]")]),
        route("/cookie", &[said("key_sources: [ { cookie: key } ]")]),
        route("/any", &[said(all)]),
        route("/allowed", &[said("allowed_clients: [ one ]")]),
        route(
            "/hidden",
            &[said(&format!("{all}, forwarding: {{ header: x-client, hide_credentials: true }}"))],
        ),
        route("/silent", &[said("forwarding: {}")]),
        route("/off", &[says("keys", "config.route.v3.FilterConfig", "disabled: true")]),
        "- { match: { prefix: / }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let credentials = "credentials: [ { key: first, client: one }, { key: second, client: two }, { key: 'a b', client: spaced } ]";
    let sources = "key_sources: [ { header: x-key }, { header: authorization } ]";
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", &routes))
        .filters(
            "main",
            &filter("keys", KIND, &format!("{credentials}, {sources}, forwarding: {{ header: x-client }}")),
        )
        .listener("bare", "", &host("", &routes))
        .filters("bare", &filter("keys", KIND, ""))
        .listener("keyless", "", &host("", &routes))
        .filters("keyless", &filter("keys", KIND, sources));
    let get = |name, path: &str, headers: &str| case("main", name).get(path, headers);
    let cases = vec![
        get("a header", "/x", "X-Key: first\r\nX-Client: forged\r\n"),
        get("another header", "/x", "Authorization: Bearer second\r\n"),
        get("no scheme", "/x", "Authorization: second\r\n"),
        get("another scheme", "/x", "Authorization: bearer second\r\n"),
        get("the first counts", "/x", "X-Key: first\r\nAuthorization: Bearer second\r\n"),
        get("an empty one does not", "/x", "X-Key:\r\nAuthorization: Bearer second\r\n"),
        get("two values", "/x", "X-Key: first\r\nX-Key: second\r\n"),
        get("none", "/x", ""),
        get("unknown", "/x", "X-Key: third\r\n"),
        get("none, gRPC", "/x", "Content-Type: application/grpc\r\n"),
        get("of a route", "/own", "X-Key: own\r\n"),
        get("not of that route", "/own", "X-Key: first\r\n"),
        get("a parameter", "/query?a=1&key=first&b=2", "X-Key: second\r\n"),
        get("a parameter with escapes", "/query?key=a%20b", ""),
        get("two parameters", "/query?key=second&key=first", ""),
        get("a cookie", "/cookie", "Cookie: a=b; key=first; c=d\r\n"),
        get("two cookies", "/cookie", "Cookie: key=second; key=first\r\n"),
        get("a quoted cookie", "/cookie", "Cookie: key=\"first\"\r\n"),
        get("any place", "/any?key=second", "X-Key: first\r\n"),
        get("an allowed client", "/allowed", "X-Key: first\r\n"),
        get("a client that is not", "/allowed", "X-Key: second\r\n"),
        get("hidden header", "/hidden", "X-Key: first\r\nX-Key: again\r\n"),
        get("hidden parameter", "/hidden?z=1&key=first&a=2&key=x", ""),
        get("hidden only parameter", "/hidden?key=first", ""),
        get("hidden cookie", "/hidden", "Cookie: a=b; key=first; c=d\r\n"),
        get("hidden only cookie", "/hidden", "Cookie: key=first\r\n"),
        get("silent", "/silent", "X-Key: first\r\nX-Client: forged\r\n"),
        get("off", "/off", ""),
        case("bare", "nothing is known").get("/x", "X-Key: first\r\n"),
        case("bare", "a route knows").get("/own", "X-Key: own\r\n"),
        case("keyless", "no keys").get("/x", "X-Key: first\r\n"),
    ];
    let rooms = ["http.main.api_key_auth.", "http.bare.api_key_auth.", "http.keyless.api_key_auth."];
    check(bootstrap, cases, &rooms).await;
}
