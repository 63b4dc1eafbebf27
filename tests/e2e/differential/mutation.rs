//! What is changed on the way: rewrites of path and host, headers added and removed, formatters, mirroring.

use super::bootstrap::Bootstrap;
use super::case::{case, Case};
use super::Group;
use crate::harness::origin::Answer;

const HOSTS: &str = r#"- name: rewrites
  domains: [rewrite.test]
  routes:
  - { match: { prefix: /prefix/ }, route: { cluster: a, prefix_rewrite: / } }
  - { match: { prefix: /slash }, route: { cluster: a, prefix_rewrite: /other } }
  - { match: { path: /exact }, route: { cluster: a, prefix_rewrite: /changed } }
  - { match: { path: /same }, route: { cluster: a, prefix_rewrite: /same } }
  - { match: { path: /same-host }, route: { cluster: a, host_rewrite_literal: t.test, append_x_forwarded_host: true } }
  - { match: { prefix: /regex }, route: { cluster: a, regex_rewrite: { pattern: { regex: '/(\w+)/(\w+)' }, substitution: '/\2/\1' } } }
  - { match: { safe_regex: { regex: '/all/.*' } }, route: { cluster: a, regex_rewrite: { pattern: { regex: '.' }, substitution: 'x' } } }
  - { match: { path_separated_prefix: /sep }, route: { cluster: a, prefix_rewrite: /new } }
  - { match: { prefix: /Loose, case_sensitive: false }, route: { cluster: a, prefix_rewrite: /tight } }
  - { match: { path: /host }, route: { cluster: a, host_rewrite_literal: new.test } }
  - { match: { path: /host-header }, route: { cluster: a, host_rewrite_header: x-to } }
  - { match: { path: /host-auto }, route: { cluster: named, auto_host_rewrite: true } }
  - { match: { prefix: /host-path }, route: { cluster: a, host_rewrite_path_regex: { pattern: { regex: '^/host-path/(.+)/.*' }, substitution: '\1.test' } } }
  - { match: { path: /host-append }, route: { cluster: a, host_rewrite_literal: new.test, append_x_forwarded_host: true } }
- name: headers
  domains: [headers.test]
  request_headers_to_remove: [x-vhost-gone]
  request_headers_to_add:
  - { header: { key: x-level, value: vhost } }
  response_headers_to_remove: [x-origin-vhost]
  response_headers_to_add:
  - { header: { key: x-level, value: vhost } }
  routes:
  - match: { path: /add }
    request_headers_to_remove: [x-gone, X-Case]
    request_headers_to_add:
    - { header: { key: x-level, value: route } }
    - { header: { key: X-Append, value: mine }, append_action: APPEND_IF_EXISTS_OR_ADD }
    - { header: { key: x-if-absent, value: mine }, append_action: ADD_IF_ABSENT }
    - { header: { key: x-overwrite, value: mine }, append_action: OVERWRITE_IF_EXISTS_OR_ADD }
    - { header: { key: x-overwrite-only, value: mine }, append_action: OVERWRITE_IF_EXISTS }
    - { header: { key: x-empty, value: '' } }
    - { header: { key: x-empty-kept, value: '' }, keep_empty_value: true }
    response_headers_to_remove: [x-origin, server]
    response_headers_to_add:
    - { header: { key: x-level, value: route } }
    - { header: { key: x-append, value: mine }, append_action: APPEND_IF_EXISTS_OR_ADD }
    - { header: { key: x-if-absent, value: mine }, append_action: ADD_IF_ABSENT }
    - { header: { key: x-overwrite, value: mine }, append_action: OVERWRITE_IF_EXISTS_OR_ADD }
    - { header: { key: x-overwrite-only, value: mine }, append_action: OVERWRITE_IF_EXISTS }
    route:
      weighted_clusters:
        clusters:
        - name: a
          weight: 1
          request_headers_to_add: [ { header: { key: x-level, value: cluster } } ]
          response_headers_to_add: [ { header: { key: x-level, value: cluster } } ]
  - match: { path: /format }
    request_headers_to_add:
    - { header: { key: x-f-protocol, value: '%PROTOCOL%' } }
    - { header: { key: x-f-remote, value: '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%' } }
    - { header: { key: x-f-direct, value: '%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%' } }
    - { header: { key: x-f-local, value: '%DOWNSTREAM_LOCAL_ADDRESS%' } }
    - { header: { key: x-f-local-port, value: 'a%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%b' } }
    - { header: { key: x-f-req, value: '%REQ(X-From)%' } }
    - { header: { key: x-f-req-missing, value: '%REQ(x-not-there)%' } }
    - { header: { key: x-f-req-alternative, value: '%REQ(x-not-there?x-from)%' } }
    - { header: { key: x-f-req-cut, value: '%REQ(x-from):3%' } }
    - { header: { key: x-f-path, value: '%REQ(:PATH)%' } }
    - { header: { key: x-f-method, value: '%REQ(:method)%' } }
    - { header: { key: x-f-authority, value: '%REQ(:AUTHORITY)%' } }
    - { header: { key: x-f-percent, value: '100%%' } }
    - { header: { key: x-f-route, value: '%ROUTE_NAME%' } }
    - { header: { key: x-f-cluster, value: '%UPSTREAM_CLUSTER%' } }
    - { header: { key: x-f-two, value: '%PROTOCOL%-%REQ(:method)%' } }
    response_headers_to_add:
    - { header: { key: x-f-code, value: '%RESPONSE_CODE%' } }
    - { header: { key: x-f-flags, value: '[%RESPONSE_FLAGS%]' } }
    - { header: { key: x-f-host, value: '%UPSTREAM_HOST%' } }
    - { header: { key: x-f-resp, value: '%RESP(x-origin)%' } }
    - { header: { key: x-f-req, value: '%REQ(x-from)%' } }
    name: the-route
    route: { cluster: a }
  - match: { path: /direct }
    direct_response: { status: 200, body: { inline_string: direct } }
- name: mirror
  domains: [mirror.test]
  routes:
  - match: { path: /none }
    route: { cluster: a, request_mirror_policies: [ { cluster: b, runtime_fraction: { default_value: { numerator: 0 } } } ] }
  - match: { prefix: / }
    route: { cluster: a, request_mirror_policies: [ { cluster: b } ] }
- name: hashing
  domains: [hash.test]
  routes:
  - match: { prefix: / }
    route: { cluster: a, hash_policy: [ { header: { header_name: x-h } }, { cookie: { name: c, ttl: 0s } }, { connection_properties: { source_ip: true } } ] }
- name: all
  domains: ['*']
  routes:
  - match: { prefix: / }
    route: { cluster: a }
"#;

const TABLE: &str = "request_headers_to_add: [ { header: { key: x-level, value: table } } ]
response_headers_to_add: [ { header: { key: x-level, value: table } } ]
request_headers_to_remove: [x-table-gone]";

const NAMED: &str = "type: STRICT_DNS
load_assignment:
  cluster_name: named
  endpoints:
  - lb_endpoints:
    - endpoint: { hostname: auto.test, address: { socket_address: { address: localhost, port_value: @origin:a@ } } }
dns_lookup_family: V4_ONLY";

pub fn group() -> Group {
    let bootstrap = Bootstrap::new()
        .cluster("named", NAMED)
        .listener("main", "", HOSTS)
        .listener("specific", "", &format!("{HOSTS}# most specific first\n"))
        .route_options("main", TABLE)
        .route_options("specific", &format!("{TABLE}\nmost_specific_header_mutations_wins: true"));
    let mut cases = rewrites();
    cases.extend(headers());
    cases.extend(mirrors());
    Group { bootstrap, cases }
}

fn rewrites() -> Vec<Case> {
    let get = |name, target: &str| case("main", name).host("rewrite.test", target);
    let with = |name, target: &str, headers: &str| {
        case("main", name).raw(format!("GET {target} HTTP/1.1\r\nHost: rewrite.test\r\n{headers}\r\n"))
    };
    vec![
        get("prefix rewrite", "/prefix/a/b?x=1"),
        get("prefix rewrite without a slash", "/slashed/a"),
        get("prefix rewrite of an exact path", "/exact?x=1"),
        get("a rewrite to the same path", "/same"),
        get("a rewrite to the same host", "/same-host"),
        get("prefix rewrite of a separated prefix", "/sep/a?x=1"),
        get("prefix rewrite of a separated prefix alone", "/sep?x=1"),
        get("prefix rewrite in another case", "/LOOSE/a"),
        get("regex rewrite", "/regex/one/two/three?q=/a/b"),
        get("regex rewrite of every letter", "/all/ab?q=abc"),
        get("host rewrite", "/host"),
        with("host rewrite from a header", "/host-header", "x-to: from-header.test\r\n"),
        get("host rewrite from a missing header", "/host-header"),
        get("host rewrite from the endpoint", "/host-auto"),
        get("host rewrite from the path", "/host-path/one/two?x=1"),
        get("host rewrite with x-forwarded-host", "/host-append"),
    ]
}

fn headers() -> Vec<Case> {
    let sent = "x-gone: 1\r\nx-case: 1\r\nx-vhost-gone: 1\r\nx-table-gone: 1\r\nx-append: theirs\r\n\
                x-if-absent: theirs\r\nx-overwrite: 1\r\nx-overwrite: 2\r\nx-from: a value\r\n";
    let answered = Answer::raw(
        "HTTP/1.1 200 OK\r\nx-origin: o\r\nx-origin-vhost: o\r\nx-append: theirs\r\nx-if-absent: theirs\r\n\
         x-overwrite: 1\r\nx-overwrite: 2\r\ncontent-length: 2\r\n\r\nok",
    );
    let request = |listener, name, target: &str, headers: &str| {
        case(listener, name)
            .raw(format!("GET {target} HTTP/1.1\r\nHost: headers.test\r\n{headers}\r\n"))
            .answers(answered.clone())
    };
    vec![
        request("main", "headers added and removed", "/add", sent),
        request("main", "headers added where nothing is", "/add", "").answers(Answer::ok("ok")),
        request("main", "headers with overwrite-only present", "/add", "x-overwrite-only: theirs\r\n"),
        request("specific", "headers, most specific last", "/add", sent),
        request("main", "formatters", "/format?x=1", "X-From: a value\r\n"),
        request("main", "formatters without their sources", "/format", "").answers(Answer::ok("ok")),
        request("main", "headers of a direct response", "/direct", ""),
        request("main", "headers and no route", "/none", ""),
    ]
}

fn mirrors() -> Vec<Case> {
    vec![
        case("main", "mirrored").host("mirror.test", "/x?y=1").mirrored(2),
        case("main", "mirrored with a port in the host").host("mirror.test:8080", "/x"),
        case("main", "mirrored with a body")
            .raw("POST /x HTTP/1.1\r\nHost: mirror.test\r\nContent-Length: 5\r\n\r\nhello")
            .mirrored(2),
        case("main", "mirrored never").host("mirror.test", "/none"),
        case("main", "hash policies on round robin").host("hash.test", "/x"),
    ]
}
