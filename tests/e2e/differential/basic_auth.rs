//! `envoy.filters.http.basic_auth`, as in [`super::filters`].

use super::bootstrap::Bootstrap;
use super::case::{case, Case};
use super::filters::{check, filter, host, route, says};
use base64::{engine::general_purpose::STANDARD, Engine};

const PER_ROUTE: &str = "extensions.filters.http.basic_auth.v3.BasicAuthPerRoute";

/// `joe:secret`, `ann:a:b` and `bob:`, as htpasswd has them.
const USERS: &str = "joe:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\\nann:{SHA}3OptnM09ILoVSfbZtd3mB0IViII=\\nbob:{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk=\\n";

#[tokio::test]
async fn names_and_passwords() {
    let users = |text: &str| format!("users: {{ inline_string: \"{text}\" }}");
    let all = users(USERS);
    let zoe = "zoe:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=";
    let bytes = format!("users: {{ inline_bytes: {} }}", STANDARD.encode(zoe));
    let routes = [
        route("/zoe", &[says("ba", PER_ROUTE, &bytes)]),
        route("/realm", &[says("ba", PER_ROUTE, &format!("{}, realm: 'a \"b\\c'", users(zoe)))]),
        route("/nobody", &[says("ba", PER_ROUTE, &users(""))]),
        route("/off", &[says("ba", "config.route.v3.FilterConfig", "disabled: true")]),
        "- { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }\n"
            .to_string(),
        "- { match: { prefix: / }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let noted = filter(
        "hm",
        "header_mutation.v3.HeaderMutation",
        "mutations: { request_mutations: [ { append: { header: { key: x-noted, value: '%DYNAMIC_METADATA(ba)%' } } } ] }",
    );
    let mut bootstrap = Bootstrap::new();
    for (name, options) in [
        ("main", all.clone()),
        ("told", format!("{all}, forward_username_header: X-User, emit_dynamic_metadata: true, realm: here")),
        ("other", format!("{all}, authentication_header: X-Auth")),
        (
            "lax",
            format!(
                "{all}, allow_missing: true, forward_username_header: x-user, emit_dynamic_metadata: true"
            ),
        ),
    ] {
        let chain = [filter("ba", "basic_auth.v3.BasicAuth", &options), noted.clone()].concat();
        bootstrap = bootstrap.listener(name, "", &host("", &routes)).filters(name, &chain);
    }
    let sent = |listener: &'static str, name: &'static str, path: &str, who: &str| -> Case {
        let encoded = STANDARD.encode(who);
        case(listener, name).get(path, &format!("Authorization: Basic {encoded}\r\nX-User: theirs\r\n"))
    };
    let raw = |listener: &'static str, name: &'static str, value: &str| {
        case(listener, name).get("/x?y=1", &format!("Authorization: {value}\r\n"))
    };
    let mut cases = vec![
        case("main", "nothing").get("/some/path?with=query", ""),
        case("main", "nothing, a long path").get(&format!("/{}", "x".repeat(400)), ""),
        case("main", "nothing, gRPC").get("/x", "Content-Type: application/grpc\r\n"),
        case("main", "a body").send("POST", "/x", "", "hello"),
        sent("main", "right", "/x", "joe:secret"),
        sent("main", "a colon in the password", "/x", "ann:a:b"),
        sent("main", "no password", "/x", "bob:"),
        sent("main", "wrong", "/x", "joe:Secret"),
        sent("main", "nobody of that name", "/x", "eve:secret"),
        sent("main", "no name", "/x", ":secret"),
        sent("main", "no colon", "/x", "joe"),
        raw("main", "another scheme", "Bearer x"),
        raw("main", "no scheme", "x"),
        raw("main", "only the scheme", "Basic"),
        raw("main", "only the scheme and a space", "Basic "),
        raw("main", "in capitals", &format!("BASIC {}", STANDARD.encode("joe:secret"))),
        raw("main", "two spaces", &format!("Basic  {}", STANDARD.encode("joe:secret"))),
        raw("main", "not base64", "Basic !!!!"),
        raw("main", "no padding", "Basic Ym9iOg"),
        raw("main", "padding", "Basic Ym9iOg=="),
        raw("main", "half of the padding", "Basic Ym9iOg="),
        raw("main", "for URLs", "Basic am9lOnNlY3Jl_A=="),
        case("main", "twice").get(
            "/x",
            &format!("Authorization: Basic {}\r\nAuthorization: Bearer x\r\n", STANDARD.encode("joe:secret")),
        ),
        sent("main", "of a route", "/zoe", "zoe:secret"),
        sent("main", "not of a route", "/zoe", "joe:secret"),
        sent("main", "realm", "/realm", "joe:secret"),
        sent("main", "nobody", "/nobody", "joe:secret"),
        case("main", "off").get("/off", ""),
        case("main", "direct").get("/direct", ""),
        sent("main", "direct, right", "/direct", "joe:secret"),
        sent("told", "forwarded", "/x", "joe:secret"),
        sent("told", "not forwarded", "/x", "joe:other"),
        case("told", "its realm").get("/x", ""),
        case("told", "its realm, at a route").get("/zoe", ""),
        sent("other", "another header", "/x", "joe:secret"),
        case("other", "in another header")
            .get("/x", &format!("X-Auth: Basic {}\r\n", STANDARD.encode("joe:secret"))),
    ];
    cases.extend([
        case("lax", "missing").get("/x", "X-User: theirs\r\n"),
        sent("lax", "not missing", "/x", "joe:secret"),
        sent("lax", "not missing, wrong", "/x", "joe:wrong"),
    ]);
    check(bootstrap, cases, &["http.main.basic_auth.", "http.lax.basic_auth.", "http.told.basic_auth."])
        .await;
}
