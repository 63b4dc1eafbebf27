//! Templates of paths beside Envoy's: as matches of routes, as permissions of RBAC, and as what routes write paths anew by.

use super::rbac::typed;
use crate::harness::client::Client;
use crate::harness::json;
use crate::harness::origin::Origin;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::peers;
use serde_json::{json, Value};
use std::collections::BTreeSet;

const TEMPLATES: &[&str] = &[
    "/",
    "/a",
    "/a/",
    "/*",
    "/**",
    "/a/*",
    "/a/*/",
    "/a/**",
    "/a/*/b",
    "/a/**/b",
    "/*.m4s",
    "/**.mpd",
    "/**/",
    "/*/*",
    "/*/**",
    "/{x}",
    "/{x}a",
    "/{x=**}/a",
    "/{x=a/*/b}/c",
    "/{x=*}.m4s",
    "/{x=*}/{y=**}",
    "/a/{x}/b/*/c",
    "/a%20",
    "/a=b",
    "/a+b",
    "/~",
];
const PATHS: &[&str] = &[
    "/",
    "//",
    "/a",
    "/A",
    "/b",
    "/a/",
    "/a/b",
    "/a/b/",
    "/a//b",
    "/a/b/c",
    "/a/x/b",
    "/a/x/y/b",
    "/x.m4s",
    "/.m4s",
    "/a/x.m4s",
    "/x.m4sy",
    "/m.mpd",
    "/a/b.mpd",
    "/.mpd",
    "/aa",
    "/xa",
    "/x/y/a",
    "/a/a",
    "/a/x/b/c",
    "/a/x/b/y/c",
    "/a*",
    "/a%20",
    "/a=b",
    "/a?x=b",
    "/a/b?c/d",
    "/a;b",
    "/a+b",
    "/a.b",
    "/a@b",
    "/~",
    "/a|b",
    "/a\"b",
    "/a[b]",
    "/a{b}",
    "/a^b",
    "/%zz",
    "/a/%2F/b",
];

fn extension(template: &str) -> Value {
    json!({"name": "envoy.path.match.uri_template.uri_template_matcher", "typed_config":
        typed("extensions.path.match.uri_template.v3.UriTemplateMatchConfig", json!({"path_template": template}))})
}

/// A host for each template and use.
fn template() -> String {
    let answer = json!({"status": 200, "body": {"inline_string": "ok"}});
    let mut hosts = Vec::new();
    for (index, template) in TEMPLATES.iter().enumerate() {
        hosts.push(
            json!({"name": format!("route-{index}"), "domains": [format!("route-{index}.test")], "routes": [
            {"match": {"path_match_policy": extension(template)}, "direct_response": answer}]}),
        );
        let policy =
            json!({"permissions": [{"uri_template": extension(template)}], "principals": [{"any": true}]});
        let own = typed(
            "extensions.filters.http.rbac.v3.RBACPerRoute",
            json!({"rbac": {"rules": {"policies": {"p": policy}}}}),
        );
        hosts.push(json!({"name": format!("rbac-{index}"), "domains": [format!("rbac-{index}.test")],
            "typed_per_filter_config": {"rbac": own},
            "routes": [{"match": {"prefix": "/"}, "direct_response": answer}]}));
    }
    let mut manager = json::manager("%RESPONSE_CODE%\n", &[]);
    manager["route_config"] = json!({"name": "all", "virtual_hosts": hosts});
    let filters = manager["http_filters"].as_array_mut().expect("a list");
    filters.insert(
        0,
        json!({"name": "rbac", "typed_config": typed("extensions.filters.http.rbac.v3.RBAC", json!({}))}),
    );
    json::template(&json::bootstrap("templates", &manager, &[]))
}

#[tokio::test]
async fn paths_match_templates_as_envoys() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = template();
    let mut matched = Vec::new();
    for kind in [Kind::Envoy, Kind::Outrigger] {
        let proxy = Proxy::start(Plan::new(kind, &template, &[])).await;
        let mut client = Client::connect(proxy.port("main")).await.expect("a connection");
        let mut yes = BTreeSet::new();
        for (index, template) in TEMPLATES.iter().enumerate() {
            for (what, no) in [("route", 404), ("rbac", 403)] {
                for path in PATHS {
                    let request = format!("GET {path} HTTP/1.1\r\nhost: {what}-{index}.test\r\n\r\n");
                    let answer = client.exchange(request.as_bytes()).await.expect("an answer");
                    match answer.status() {
                        200 => drop(yes.insert(format!("{what} {template} {path}"))),
                        status => assert_eq!(status, no, "{kind:?}: {what} {template} {path}"),
                    }
                }
            }
        }
        matched.push(yes);
    }
    let differences: Vec<_> = matched[0].symmetric_difference(&matched[1]).collect();
    assert!(differences.is_empty(), "{differences:#?}");
    assert!(matched[0].len() > TEMPLATES.len() * 4, "{} matches", matched[0].len());
}

/// Templates, what is made of their paths, and a path that may be one of them.
const WRITTEN: &[(&str, &str, &[&str])] = &[
    ("/{x}/{y=**}", "/{y}/of/{x}", &["/a/b/c", "/a/", "/a/b?c=/d/e", "/a/b#c"]),
    ("/{x}/z", "/{x}{x}.", &["/a/z", "/a/z?", "/%2F/z"]),
    ("/{x=a/*}.m4s", "/{x}", &["/a/b.m4s", "/a/b.m4s.m4s"]),
    ("/a(1)+/{x}", "/$1*=/", &["/a(1)+/y?{x}"]),
    ("/{x=**}", "/{x}", &["/", "//", "/a//b", "/a?b=c"]),
    ("/{x=**}/y", "/{x}/", &["//y", "/a/b/y"]),
    ("/*/{x}/**", "/in/{x}", &["/a/b/", "/a/b/c/d?e"]),
    ("/z", "/", &["/z", "/z?a=b"]),
    ("/{abcdefghijklmnop}", "/{abcdefghijklmnop}/{abcdefghijklmnop}", &["/a'b"]),
];

#[tokio::test]
async fn paths_are_written_anew_as_envoys() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let origin = Origin::start().await;
    let routes: Vec<Value> = (WRITTEN.iter().enumerate())
        .map(|(index, (template, rewrite, _))| {
            let rewriter = json!({"name": "envoy.path.rewrite.uri_template.uri_template_rewriter", "typed_config":
                typed("extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig", json!({"path_template_rewrite": rewrite}))});
            json!({"name": format!("host-{index}"), "domains": [format!("host-{index}.test")], "routes": [
                {"match": {"path_match_policy": extension(template)}, "route": {"cluster": "a", "path_rewrite_policy": rewriter}}]})
        })
        .collect();
    let mut manager = json::manager("%REQ(:PATH)% %REQ(X-ENVOY-ORIGINAL-PATH)%\n", &[]);
    manager["route_config"] = json!({"name": "all", "virtual_hosts": routes});
    let endpoint = json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": origin.port()}}}});
    let cluster = json!({"name": "a", "load_assignment": {"cluster_name": "a", "endpoints": [{"lb_endpoints": [endpoint]}]}});
    let template = json::template(&json::bootstrap("templates", &manager, &[cluster]));
    let mut written = Vec::new();
    for kind in [Kind::Envoy, Kind::Outrigger] {
        let proxy = Proxy::start(Plan::new(kind, &template, &[])).await;
        let mut seen = Vec::new();
        for (index, (template, rewrite, paths)) in WRITTEN.iter().enumerate() {
            for path in *paths {
                let request = format!("GET {path} HTTP/1.1\r\nhost: host-{index}.test\r\n\r\n");
                let mut client = Client::connect(proxy.port("main")).await.expect("a connection");
                let status = client.exchange(request.as_bytes()).await.expect("an answer").status();
                let came = origin.take().pop().map(|request| {
                    format!("{} was {:?}", request.target(), request.header("x-envoy-original-path"))
                });
                seen.push(format!("{template} {rewrite} {path}: {status} {came:?}"));
            }
        }
        written.push(seen);
    }
    let differences: Vec<_> =
        written[0].iter().zip(&written[1]).filter(|(one, other)| one != other).collect();
    assert!(differences.is_empty(), "left: Envoy\n{differences:#?}");
    assert!(written[0].iter().filter(|line| line.contains("200")).count() > WRITTEN.len(), "{written:#?}");
}
