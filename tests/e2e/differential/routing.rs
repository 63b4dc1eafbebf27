//! Which route is taken: virtual hosts, matchers of every kind, redirects and direct responses.

use super::bootstrap::Bootstrap;
use super::case::{case, Case};
use super::Group;

/// A virtual host whose every request is answered with its own name.
fn named(name: &str, domains: &str) -> String {
    format!(
        "- name: {name}\n  domains: [{domains}]\n  routes:\n  - match: {{ prefix: / }}\n    direct_response: {{ status: 200, body: {{ inline_string: {name} }} }}\n"
    )
}

/// A route that answers with `name` where `matcher` (fields of RouteMatch) holds.
fn answer(name: &str, matcher: &str) -> String {
    format!(
        "  - name: {name}\n    match: {{ {matcher} }}\n    direct_response: {{ status: 200, body: {{ inline_string: '{name}' }} }}\n"
    )
}

const REDIRECTS: &str = r"- name: redirects
  domains: ['*']
  routes:
  - { match: { path: /host }, redirect: { host_redirect: new.test } }
  - { match: { path: /port }, redirect: { port_redirect: 8443 } }
  - { match: { path: /path }, redirect: { path_redirect: /other } }
  - { match: { path: /path-query }, redirect: { path_redirect: '/other?fixed=1' } }
  - { match: { prefix: /prefix }, redirect: { prefix_rewrite: /changed } }
  - { match: { prefix: /regex }, redirect: { regex_rewrite: { pattern: { regex: '^/regex/(\w+)' }, substitution: '/\1/done' } } }
  - { match: { path: /https }, redirect: { https_redirect: true } }
  - { match: { path: /scheme }, redirect: { scheme_redirect: https } }
  - { match: { path: /strip }, redirect: { strip_query: true, path_redirect: /bare } }
  - { match: { path: /302 }, redirect: { response_code: FOUND } }
  - { match: { path: /303 }, redirect: { path_redirect: /x, response_code: SEE_OTHER } }
  - { match: { path: /307 }, redirect: { path_redirect: /x, response_code: TEMPORARY_REDIRECT } }
  - { match: { path: /308 }, redirect: { path_redirect: /x, response_code: PERMANENT_REDIRECT } }
  - match: { path: /with-headers }
    redirect: { path_redirect: /x }
    response_headers_to_add: [ { header: { key: x-added, value: 'yes' } } ]
  - { match: { path: /empty }, direct_response: { status: 204 } }
  - { match: { path: /teapot }, direct_response: { status: 418, body: { inline_string: short and stout } } }
  - { match: { path: /html }, direct_response: { status: 200, body: { inline_string: '<b>' } }, response_headers_to_add: [ { header: { key: content-type, value: text/html }, append_action: OVERWRITE_IF_EXISTS_OR_ADD } ] }
  - { match: { path: /503 }, direct_response: { status: 503, body: { inline_string: down } } }
  - { match: { path: /nothing-to-do }, non_forwarding_action: {} }
";

pub fn group() -> Group {
    let hosts = [
        named("exact", "www.exact.test"),
        named("with-port", "'port.test:8080'"),
        named("suffix", "'*.suffix.test'"),
        named("long-suffix", "'*.long.suffix.test', '*-dash.test'"),
        named("prefix", "'prefix.*'"),
        named("long-prefix", "'prefix.long.*'"),
        named("upper", "UPPER.test"),
        named("any", "'*'"),
    ]
    .concat();
    let only = named("only", "only.test");
    let matchers = [
        "- name: m\n  domains: ['*']\n  routes:\n".to_string(),
        answer("exact-path", "path: /exact"),
        answer("exact-path-insensitive", "path: /Insensitive, case_sensitive: false"),
        answer("prefix", "prefix: /prefix"),
        answer("prefix-insensitive", "prefix: /Loose, case_sensitive: false"),
        answer("separated", "path_separated_prefix: /sep"),
        answer("regex", r"safe_regex: { regex: '/re/\d+(/x)?' }"),
        answer("h-present", "prefix: /h/present, headers: [ { name: x-h, present_match: true } ]"),
        answer("h-absent", "prefix: /h/absent, headers: [ { name: x-h, present_match: false } ]"),
        answer("h-present-inverted", "prefix: /h/inverted, headers: [ { name: x-h, present_match: true, invert_match: true } ]"),
        answer("h-exact", "prefix: /h/exact, headers: [ { name: X-H, string_match: { exact: One } } ]"),
        answer("h-ignore-case", "prefix: /h/icase, headers: [ { name: x-h, string_match: { exact: ONE, ignore_case: true } } ]"),
        answer("h-prefix", "prefix: /h/prefix, headers: [ { name: x-h, string_match: { prefix: 'On' } } ]"),
        answer("h-suffix", "prefix: /h/suffix, headers: [ { name: x-h, string_match: { suffix: ne } } ]"),
        answer("h-contains", "prefix: /h/contains, headers: [ { name: x-h, string_match: { contains: 'n' } } ]"),
        answer("h-regex", "prefix: /h/regex, headers: [ { name: x-h, string_match: { safe_regex: { regex: 'O.e' } } } ]"),
        answer("h-range", "prefix: /h/range, headers: [ { name: x-h, range_match: { start: -5, end: 10 } } ]"),
        answer("h-invert", "prefix: /h/not, headers: [ { name: x-h, string_match: { exact: One }, invert_match: true } ]"),
        answer("h-missing-empty", "prefix: /h/missing, headers: [ { name: x-h, string_match: { exact: One }, invert_match: true, treat_missing_header_as_empty: true } ]"),
        answer("h-method", "prefix: /h/method, headers: [ { name: ':method', string_match: { exact: POST } } ]"),
        answer("h-authority", "prefix: /h/authority, headers: [ { name: ':authority', string_match: { exact: t.test } } ]"),
        answer("h-path", "prefix: /h/path, headers: [ { name: ':path', string_match: { suffix: 'q=1' } } ]"),
        answer("h-and", "prefix: /h/and, headers: [ { name: x-h, present_match: true }, { name: x-i, present_match: true } ]"),
        answer("q-exact", "prefix: /q/exact, query_parameters: [ { name: a, string_match: { exact: '1' } } ]"),
        answer("q-present", "prefix: /q/present, query_parameters: [ { name: a, present_match: true } ]"),
        answer("q-regex", r"prefix: /q/regex, query_parameters: [ { name: a, string_match: { safe_regex: { regex: '\d+' } } } ]"),
        answer("q-only-name", "prefix: /q/name, query_parameters: [ { name: a } ]"),
        answer("cookie", "prefix: /cookie, cookies: [ { name: c, string_match: { exact: v } } ]"),
        answer("fraction-0", "prefix: /fraction, runtime_fraction: { default_value: { numerator: 0 } }"),
        answer("fraction-100", "prefix: /fraction, runtime_fraction: { default_value: { numerator: 100 }, runtime_key: some.key }"),
        answer("grpc", "prefix: /grpc, grpc: {}"),
        answer("first", "prefix: /twice"),
        answer("second", "prefix: /twice"),
        answer("rest-of-h", "prefix: /h/"),
        answer("rest-of-q", "prefix: /q/"),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .listener("hosts", "", &hosts)
        .listener("only", "", &only)
        .listener("matchers", "", &matchers)
        .listener("redirects", "", REDIRECTS)
        .listener("strip-any", "strip_any_host_port: true", &hosts)
        .listener("strip-matching", "strip_matching_host_port: true", &hosts)
        .listener("strip-dot", "strip_trailing_host_dot: true", &hosts);
    let mut cases = hosts_cases();
    cases.extend(matcher_cases());
    cases.extend(redirect_cases());
    Group { bootstrap, cases }
}

fn hosts_cases() -> Vec<Case> {
    vec![
        case("hosts", "host exact").host("www.exact.test", "/"),
        case("hosts", "host in another case").host("WWW.Exact.TEST", "/"),
        case("hosts", "domain configured in upper case").host("upper.test", "/"),
        case("hosts", "host with a port that is configured").host("port.test:8080", "/"),
        case("hosts", "host with another port").host("port.test:8081", "/"),
        case("hosts", "host exact with a port not configured").host("www.exact.test:80", "/"),
        case("hosts", "host by suffix").host("a.suffix.test", "/"),
        case("hosts", "host by suffix, two labels").host("a.b.suffix.test", "/"),
        case("hosts", "host by the longer suffix").host("a.long.suffix.test", "/"),
        case("hosts", "host by suffix with a dash").host("a-dash.test", "/"),
        case("hosts", "host that is only the suffix").host(".suffix.test", "/"),
        case("hosts", "host by prefix").host("prefix.com", "/"),
        case("hosts", "host by the longer prefix").host("prefix.long.com", "/"),
        case("hosts", "host by prefix with a port").host("prefix.com:1234", "/"),
        case("hosts", "host that nothing names").host("unknown.test", "/"),
        case("hosts", "host with a trailing dot").host("www.exact.test.", "/"),
        case("only", "no virtual host").host("unknown.test", "/"),
        case("strip-any", "any port is stripped").host("www.exact.test:1234", "/"),
        case("strip-matching", "another port is kept").host("www.exact.test:1234", "/"),
        case("strip-dot", "trailing dot is stripped").host("www.exact.test.", "/"),
        case("strip-dot", "trailing dot before a port is stripped").host("port.test.:8080", "/"),
    ]
}

fn matcher_cases() -> Vec<Case> {
    let get = |name, target: &str, headers: &str| case("matchers", name).get(target, headers);
    vec![
        get("path", "/exact", ""),
        get("path with a query", "/exact?x=1", ""),
        get("path too long", "/exact/", ""),
        get("path in another case", "/EXACT", ""),
        get("path insensitive", "/iNSENSITIVE", ""),
        get("prefix", "/prefixed", ""),
        get("prefix in another case", "/PREFIX", ""),
        get("prefix insensitive", "/lOOSE/x", ""),
        get("separated prefix itself", "/sep", ""),
        get("separated prefix with a path", "/sep/x", ""),
        get("separated prefix with a query", "/sep?x", ""),
        get("separated prefix of a longer word", "/separate", ""),
        get("regex", "/re/123", ""),
        get("regex with a query", "/re/123/x?y", ""),
        get("regex matches the whole path", "/re/123/y", ""),
        get("header present", "/h/present", "x-h: 1\r\n"),
        get("header present but empty", "/h/present", "x-h:\r\n"),
        get("header not present", "/h/present", ""),
        get("header absent", "/h/absent", ""),
        get("header absent fails", "/h/absent", "x-h: 1\r\n"),
        get("header present inverted", "/h/inverted", ""),
        get("header exact", "/h/exact", "x-h: One\r\n"),
        get("header exact in another case", "/h/exact", "x-h: one\r\n"),
        get("header exact among two", "/h/exact", "x-h: One\r\nx-h: Two\r\n"),
        get("header exact, the two joined", "/h/regex", "x-h: O\r\nx-h: e\r\n"),
        get("header ignoring case", "/h/icase", "x-h: oNe\r\n"),
        get("header prefix", "/h/prefix", "x-h: Only\r\n"),
        get("header suffix", "/h/suffix", "x-h: One\r\n"),
        get("header contains", "/h/contains", "x-h: one\r\n"),
        get("header regex", "/h/regex", "x-h: One\r\n"),
        get("header regex matches the whole value", "/h/regex", "x-h: xOne\r\n"),
        get("header range, lower end", "/h/range", "x-h: -5\r\n"),
        get("header range, upper end is out", "/h/range", "x-h: 10\r\n"),
        get("header range of no number", "/h/range", "x-h: 1x\r\n"),
        get("header inverted", "/h/not", "x-h: Two\r\n"),
        get("header inverted fails", "/h/not", "x-h: One\r\n"),
        get("header inverted and missing", "/h/not", ""),
        get("header inverted and missing as empty", "/h/missing", ""),
        case("matchers", "header :method").send("POST", "/h/method", "", ""),
        get("header :authority", "/h/authority", ""),
        get("header :path", "/h/path?q=1", ""),
        get("two headers", "/h/and", "x-h: 1\r\nx-i: 1\r\n"),
        get("two headers, one missing", "/h/and", "x-h: 1\r\n"),
        get("query exact", "/q/exact?b=2&a=1", ""),
        get("query exact fails", "/q/exact?a=2", ""),
        get("query exact, first of two", "/q/exact?a=2&a=1", ""),
        get("query present without a value", "/q/present?a", ""),
        get("query not present", "/q/present?ab=1", ""),
        get("query regex", "/q/regex?a=42", ""),
        get("query escaped", "/q/exact?a=%31", ""),
        get("query by name only", "/q/name?a=x", ""),
        get("cookie", "/cookie", "Cookie: b=1; c=v\r\n"),
        get("cookie fails", "/cookie", "Cookie: c=w\r\n"),
        get("runtime fraction", "/fraction", ""),
        get("grpc by content-type", "/grpc", "content-type: application/grpc+proto\r\n"),
        get("not grpc", "/grpc", "content-type: application/json\r\n"),
        get("first of two equal routes", "/twice", ""),
        get("no route", "/none", ""),
        case("matchers", "no route for a post with a body").send("POST", "/none", "", "hello"),
        case("matchers", "no route for a grpc request").send(
            "POST",
            "/none",
            "content-type: application/grpc\r\nte: trailers\r\n",
            "",
        ),
        case("matchers", "direct response to a post with a body").send("POST", "/twice", "", "hello"),
        case("matchers", "direct response to head").send("HEAD", "/twice", "", "").answers_head(),
        case("matchers", "direct response and connection: close").get("/twice", "Connection: close\r\n"),
    ]
}

fn redirect_cases() -> Vec<Case> {
    let get = |name, target: &str| case("redirects", name).get(target, "");
    vec![
        get("redirect to a host", "/host?x=1"),
        case("redirects", "redirect to a host keeps the port away").host("t.test:8080", "/host"),
        get("redirect to a port", "/port?x=1"),
        case("redirects", "redirect to a port replaces it").host("t.test:8080", "/port"),
        get("redirect to a path", "/path?x=1"),
        get("redirect to a path with a query", "/path-query?x=1"),
        get("redirect of a prefix", "/prefix/more?x=1"),
        get("redirect by regex", "/regex/abc/d?x=1"),
        get("redirect to https", "/https?x=1"),
        case("redirects", "redirect to https from port 80").host("t.test:80", "/https"),
        case("redirects", "redirect to https from another port").host("t.test:8080", "/https"),
        get("redirect to a scheme", "/scheme"),
        get("redirect strips the query", "/strip?x=1"),
        get("redirect with 302", "/302"),
        get("redirect with 303", "/303"),
        get("redirect with 307", "/307"),
        get("redirect with 308", "/308"),
        get("redirect with headers", "/with-headers"),
        case("redirects", "redirect trusts no x-forwarded-proto")
            .get("/host", "X-Forwarded-Proto: https\r\n"),
        case("redirects", "redirect of a post with a body").send("POST", "/path", "", "hello"),
        case("redirects", "redirect of an absolute target")
            .raw("GET http://abs.test/path HTTP/1.1\r\nHost: abs.test\r\n\r\n"),
        get("direct response 204", "/empty"),
        get("direct response 418", "/teapot"),
        get("direct response with a content-type", "/html"),
        get("direct response 503", "/503"),
    ]
}
