//! Rewrites and redirects.

use super::*;

#[test]
fn paths_are_rewritten_and_keep_their_query() {
    let regex = |pattern: &str, substitution: &str| json!({"regex_rewrite": {"pattern": {"regex": pattern}, "substitution": substitution}});
    let prefix = |to: &str| json!({"prefix_rewrite": to});
    for (matched, rewrite, path, wanted) in [
        (json!({"prefix": "/a"}), prefix("/b"), "/a/x?q=/a", "/b/x?q=/a"),
        (json!({"prefix": "/a/"}), prefix("/"), "/a/x", "/x"),
        (json!({"prefix": "/"}), prefix("/b"), "/x", "/bx"),
        (json!({"path": "/a"}), prefix("/b/c"), "/a?q", "/b/c?q"),
        (json!({"path_separated_prefix": "/a"}), prefix("/b"), "/a/x", "/b/x"),
        (json!({"prefix": "/A", "case_sensitive": false}), prefix("/b"), "/ax", "/bx"),
        (json!({"safe_regex": {"regex": "/a/.*"}}), prefix("/b"), "/a/x?q", "/b?q"),
        (
            json!({"prefix": "/"}),
            regex("^/service/([^/]+)(/.*)$", r"\2/instance/\1"),
            "/service/foo/v1/api?q=/service/x/y",
            "/v1/api/instance/foo?q=/service/x/y",
        ),
        (json!({"prefix": "/"}), regex("one", "two"), "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
        (json!({"prefix": "/"}), regex("(?i)/xxx/", "/yyy/"), "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
    ] {
        let mut action = rewrite;
        action["cluster"] = "c".into();
        let table = table_with(matched, ("route", action));
        let request = Request::get("h", path);
        let route = the_route(&table, &request);
        let rewritten = the_forward(&table, &request).rewritten_path(&route.matched, path.as_bytes());
        assert_eq!(rewritten.map(text).as_deref(), Some(wanted));
    }
    let table = table_with(json!({"prefix": "/"}), ("route", json!({"cluster": "c", "prefix_rewrite": ""})));
    let forward = the_forward(&table, &Request::get("h", "/"));
    assert!(forward.rewritten_path(&the_route(&table, &Request::get("h", "/")).matched, b"/").is_none());
}

#[test]
fn hosts_are_rewritten() {
    let request = Request::get("h", "/user-1/x?q").with("x-host", "from-header").with("x-host", "second");
    for (rewrite, wanted) in [
        (json!({"host_rewrite_literal": "literal:80"}), Some("literal:80")),
        (json!({"host_rewrite_header": "x-host"}), Some("from-header")),
        (json!({"host_rewrite_header": "x-none"}), None),
        (
            json!({"host_rewrite_path_regex": {"pattern": {"regex": "^/([^/]+)/.*"}, "substitution": r"\1.local"}}),
            Some("user-1.local"),
        ),
        (json!({"host_rewrite_path_regex": {"pattern": {"regex": ".*"}, "substitution": ""}}), None),
        (json!({"auto_host_rewrite": true}), None),
        (json!({}), None),
    ] {
        let mut action = rewrite.clone();
        action["cluster"] = "c".into();
        let table = table_with(json!({"prefix": "/"}), ("route", action));
        let forward = the_forward(&table, &request);
        assert_eq!(forward.rewritten_host(&request).map(text).as_deref(), wanted, "{rewrite}");
        assert_eq!(forward.auto_host_rewrite(), rewrite.get("auto_host_rewrite").is_some());
    }
}

fn location(prefix: &str, action: Value, request: &Request) -> String {
    let table = table_with(json!({"prefix": prefix}), ("redirect", action));
    let route = the_route(&table, request);
    let Action::Redirect(redirect) = &route.action else { panic!("{:?}", route.action) };
    text(redirect.location(&route.matched, request))
}

#[test]
fn redirects_replace_what_they_are_told_to() {
    for (action, wanted) in [
        (json!({}), "http://main/r/x/y?a=b"),
        (json!({"https_redirect": true}), "https://main/r/x/y?a=b"),
        (json!({"https_redirect": false}), "http://main/r/x/y?a=b"),
        (json!({"scheme_redirect": "HTTPS"}), "HTTPS://main/r/x/y?a=b"),
        (json!({"host_redirect": "new.example"}), "http://new.example/r/x/y?a=b"),
        (json!({"port_redirect": 8443}), "http://main:8443/r/x/y?a=b"),
        (
            json!({"host_redirect": "new.example:99", "port_redirect": 8443}),
            "http://new.example:99:8443/r/x/y?a=b",
        ),
        (json!({"path_redirect": "/p"}), "http://main/p?a=b"),
        (json!({"path_redirect": "/p", "strip_query": true}), "http://main/p"),
        (json!({"path_redirect": "/p?x=1"}), "http://main/p?x=1"),
        (json!({"path_redirect": "/p?x=1", "strip_query": true}), "http://main/p?x=1"),
        (json!({"prefix_rewrite": "/new"}), "http://main/newx/y?a=b"),
        (json!({"prefix_rewrite": "/new", "strip_query": true}), "http://main/newx/y"),
        (json!({"https_redirect": true, "strip_query": true}), "https://main/r/x/y"),
        (
            json!({"regex_rewrite": {"pattern": {"regex": "^/(r)/(.*)$"}, "substitution": r"/\2/\1"}}),
            "http://main/x/y/r?a=b",
        ),
    ] {
        assert_eq!(location("/r/", action.clone(), &Request::get("main", "/r/x/y?a=b")), wanted, "{action}");
    }
}

#[test]
fn redirects_drop_the_port_of_the_scheme_they_leave() {
    let https = json!({"https_redirect": true});
    let upper = json!({"scheme_redirect": "HTTPS"});
    let port = json!({"port_redirect": 8443});
    let keep = json!({});
    for (action, host, proto, wanted) in [
        (&https, "main:80", "http", "https://main"),
        (&https, "main:80", "https", "https://main:80"),
        (&https, "main:443", "http", "https://main:443"),
        (&https, "main:8080", "http", "https://main:8080"),
        (&https, "[::2]:80", "http", "https://[::2]"),
        (&https, "[::2]", "http", "https://[::2]"),
        (&upper, "main:443", "https", "HTTPS://main"),
        (&port, "main:80", "http", "http://main:8443"),
        (&port, "[::2]:80", "http", "http://[::2]:8443"),
        (&port, "[::2]", "http", "http://[::2]:8443"),
        (&keep, "main:80", "http", "http://main:80"),
    ] {
        let request = Request::get(host, "/x").replace(":scheme", proto).replace("x-forwarded-proto", proto);
        assert_eq!(location("/", action.clone(), &request), format!("{wanted}/x"), "{action} {host} {proto}");
    }
}

#[test]
fn redirects_have_a_status() {
    for (code, wanted) in [
        ("MOVED_PERMANENTLY", 301),
        ("FOUND", 302),
        ("SEE_OTHER", 303),
        ("TEMPORARY_REDIRECT", 307),
        ("PERMANENT_REDIRECT", 308),
    ] {
        let table = table_with(json!({"prefix": "/"}), ("redirect", json!({"response_code": code})));
        let route = the_route(&table, &Request::get("h", "/"));
        assert!(matches!(&route.action, Action::Redirect(redirect) if redirect.status == wanted));
    }
}

#[test]
fn direct_responses() {
    let action = json!({"status": 418, "body": {"inline_string": "short and stout"}});
    let table = table_with(json!({"prefix": "/"}), ("direct_response", action));
    let request = Request::get("h:1", "/x?y");
    let Action::Direct(reply) = &the_route(&table, &request).action else { panic!() };
    assert_eq!((reply.status, text(&reply.body).as_str()), (418, "short and stout"));
    assert_eq!(text(own_location(&request)), "http://h:1/x?y");
}
