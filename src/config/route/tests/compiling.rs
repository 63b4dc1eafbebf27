//! What compiling refuses, and what routes inherit.

use std::time::Duration;

use super::*;

#[test]
fn every_problem_is_reported_with_its_path() {
    let (table, problems, _) = try_table(json!({
        "request_headers_to_add": [{"header": {"key": ":path", "value": "/"}}],
        "response_headers_to_remove": ["Host"],
        "virtual_hosts": [
            {"name": "a", "domains": ["a.b", "*"], "routes": [
                {"match": {"safe_regex": {"regex": "("}}, "route": {"cluster": "c", "prefix_rewrite": "/",
                    "regex_rewrite": {"pattern": {"regex": "a"}, "substitution": r"\1"}}},
                {"match": {"prefix": "/", "headers": [{"name": "x", "string_match": {"safe_regex": {"regex": "(?=x)"}}}]},
                    "direct_response": {"status": 200, "body": {"inline_string": "x".repeat(4097)}}},
                {"match": {"prefix": "/"}, "redirect": {"port_redirect": 70000}},
                {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [
                    {"name": "a", "cluster_header": "b", "weight": 1}, {"name": "a", "weight": 1}]}}},
                {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 0}]}}},
                {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a"}, {"name": "b", "weight": 1}]}}},
                {"match": {"prefix": "/"}, "route": {"cluster": "a", "timeout": "-1s", "upgrade_configs": [
                    {"upgrade_type": "websocket"}, {"upgrade_type": "WebSocket"}]}},
                {"match": {"prefix": "/"}, "route": {"cluster": "a", "request_mirror_policies": [{}],
                    "retry_policy": {"retry_back_off": {"base_interval": "1s", "max_interval": "0.5s"}}}},
            ]},
            {"name": "a", "domains": ["A.b", "*"], "routes": [
                {"match": {"prefix": "/"}, "non_forwarding_action": {}, "request_headers_to_add": [
                    {"header": {"key": "x", "value": "%NOPE%"}},
                    {"header": {"key": "x", "value": "1"}, "append": true, "append_action": "ADD_IF_ABSENT"}]}]},
        ],
    }));
    assert!(table.is_none());
    let wanted = [
        "request_headers_to_add[0].header.key: \":path\": pseudo headers and host cannot be changed",
        "response_headers_to_remove[0]: \"Host\": pseudo headers and host cannot be removed",
        "virtual_hosts[0].routes[0].match.safe_regex.regex: regular expression \"(\": ",
        "virtual_hosts[0].routes[0].route.regex_rewrite: prefix_rewrite and regex_rewrite cannot both be set",
        "virtual_hosts[0].routes[0].route.regex_rewrite: substitution \"\\\\1\": ",
        "virtual_hosts[0].routes[1].match.headers[0].string_match.safe_regex.regex: regular expression \"(?=x)\": ",
        "virtual_hosts[0].routes[1].direct_response.body: the body has 4097 bytes, max_direct_response_body_size_bytes allows 4096",
        "virtual_hosts[0].routes[2].redirect.port_redirect: 70000 is no port",
        "virtual_hosts[0].routes[3].route.weighted_clusters.clusters[0]: needs either name or cluster_header",
        "virtual_hosts[0].routes[4].route.weighted_clusters.clusters: the sum of all weights must be between 1",
        "virtual_hosts[0].routes[5].route.weighted_clusters.clusters[0].weight: is required",
        "virtual_hosts[0].routes[6].route.timeout: must not be negative",
        "virtual_hosts[0].routes[6].route.upgrade_configs[1].upgrade_type: \"websocket\" occurs twice",
        "virtual_hosts[0].routes[7].route.retry_policy.retry_back_off.max_interval: 500ms is less than base_interval, 1s",
        "virtual_hosts[0].routes[7].route.request_mirror_policies[0]: needs either cluster or cluster_header",
        "virtual_hosts[1].domains[0]: the domain \"a.b\" occurs twice",
        "virtual_hosts[1].domains[1]: the domain \"*\" occurs twice",
        "virtual_hosts[1].routes[0].request_headers_to_add[0].header.value: ",
        "virtual_hosts[1].routes[0].request_headers_to_add[1].append: append and append_action cannot both be set",
    ];
    for (problem, wanted) in problems.iter().zip(wanted) {
        assert!(problem.starts_with(wanted), "{problem}\n{wanted}");
    }
    assert_eq!(problems.len(), wanted.len(), "{problems:#?}");
}

#[test]
fn paths_that_match_templates_are_rewritten_by_templates_or_expressions() {
    let of = |kind: &str, field: &str, text: &str| {
        let kind = format!("type.googleapis.com/envoy.extensions.path.{kind}");
        json!({"name": "template", "typed_config": {"@type": kind, field: text}})
    };
    let problem = |matched: Value, action: (&str, Value)| {
        let route = json!({"match": matched, action.0: action.1});
        let (_, problems, _) =
            try_table(json!({"virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [route]}]}));
        problems.join("; ")
    };
    let template = json!({"path_match_policy": of("match.uri_template.v3.UriTemplateMatchConfig", "path_template", "/{x}")});
    let rewrite =
        |text: &str| of("rewrite.uri_template.v3.UriTemplateRewriteConfig", "path_template_rewrite", text);
    let regex = json!({"pattern": {"regex": "a"}, "substitution": "b"});
    let at = "virtual_hosts[0].routes[0].";
    for (matched, action, wanted) in [
        (&template, ("route", json!({"cluster": "c", "path_rewrite_policy": rewrite("/{x}")})), ""),
        (&template, ("route", json!({"cluster": "c", "regex_rewrite": regex})), ""),
        (&template, ("redirect", json!({"regex_rewrite": regex})), ""),
        (&template, ("redirect", json!({"prefix_rewrite": "/a"})), "redirect.prefix_rewrite: cannot be set with"),
        (&template, ("route", json!({"cluster": "c", "prefix_rewrite": "/a"})), "route.prefix_rewrite: cannot be set with"),
        (&json!({"prefix": "/"}), ("route", json!({"cluster": "c", "path_rewrite_policy": rewrite("/a")})), "route.path_rewrite_policy: needs a path_match_policy"),
        (&template, ("route", json!({"cluster": "c", "regex_rewrite": regex, "path_rewrite_policy": rewrite("/a")})), "route.path_rewrite_policy: only one of"),
        (&template, ("route", json!({"cluster": "c", "path_rewrite_policy": rewrite("/{y}")})), "route.path_rewrite_policy.typed_config.path_template_rewrite: path template \"/{y}\": it has a variable"),
    ] {
        let problem = problem(matched.clone(), action.clone());
        match wanted {
            "" => assert_eq!(problem, "", "{action:?}"),
            wanted => assert!(problem.starts_with(&format!("{at}{wanted}")), "{action:?}: {problem}"),
        }
    }
}

#[test]
fn timeouts() {
    let forward = |mut action: Value| {
        action["cluster"] = "c".into();
        let table = table_with(json!({"prefix": "/"}), ("route", action));
        let forward = the_forward(&table, &Request::get("h", "/"));
        (forward.timeout, forward.idle_timeout, forward.max_stream_duration, forward.grpc_timeout)
    };
    let s = Duration::from_secs;
    let grpc = |limits, max, offset| Some(GrpcTimeout { limits, max, offset });
    assert_eq!(forward(json!({})), (Some(s(15)), None, None, None));
    assert_eq!(forward(json!({"timeout": "0s", "idle_timeout": "0s"})), (None, Some(None), None, None));
    assert_eq!(
        forward(json!({"timeout": "3s", "idle_timeout": "4s"})),
        (Some(s(3)), Some(Some(s(4))), None, None)
    );
    assert_eq!(
        forward(json!({"timeout": "3s", "max_stream_duration": {"max_stream_duration": "5s"}})),
        (None, None, Some(Some(s(5))), None)
    );
    assert_eq!(
        forward(json!({"max_stream_duration": {"max_stream_duration": "0s", "grpc_timeout_header_max": "9s",
            "grpc_timeout_header_offset": "1s"}})),
        (None, None, Some(None), grpc(GrpcTimeoutLimits::Stream, Some(s(9)), s(1)))
    );
    assert_eq!(
        forward(json!({"max_grpc_timeout": "0s"})),
        (Some(s(15)), None, None, grpc(GrpcTimeoutLimits::Route, None, s(0)))
    );
}

#[test]
fn mirrors_and_limits_are_inherited() {
    let mirror = |cluster: &str| json!([{"cluster": cluster}]);
    let config = |host: Value| {
        let mut all = json!({"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/own"}, "per_request_buffer_limit_bytes": 10,
                "route": {"cluster": "c", "request_mirror_policies": mirror("route")}},
            {"match": {"prefix": "/"}, "route": {"cluster": "c"}}]});
        all.as_object_mut().unwrap().extend(host.as_object().unwrap().clone());
        table(json!({"request_mirror_policies": mirror("table"), "virtual_hosts": [all]}))
    };
    let mirrors =
        |table: &RouteTable, path: &str| match &the_forward(table, &Request::get("h", path)).mirrors[..] {
            [Mirror {
                cluster: ClusterRef::Slot(slot),
                host: MirrorHost::Suffixed,
                headers: None,
                sampled: None,
                fraction,
            }] => {
                assert!(fraction.holds(u64::MAX));
                slot.name().to_string()
            }
            other => panic!("{other:?}"),
        };
    let limit = |table: &RouteTable, path: &str| the_route(table, &Request::get("h", path)).buffer_limit;
    let plain = config(json!({}));
    assert_eq!((mirrors(&plain, "/own"), mirrors(&plain, "/")), ("route".into(), "table".into()));
    assert_eq!((limit(&plain, "/own"), limit(&plain, "/")), (Some(10), None));
    let own = config(json!({"request_mirror_policies": mirror("host"), "per_request_buffer_limit_bytes": 20,
        "include_request_attempt_count": true, "include_attempt_count_in_response": true}));
    assert_eq!((mirrors(&own, "/own"), mirrors(&own, "/")), ("route".into(), "host".into()));
    assert_eq!((limit(&own, "/own"), limit(&own, "/")), (Some(10), Some(20)));
    let forward = the_forward(&own, &Request::get("h", "/"));
    assert!(forward.include_request_attempt_count && forward.include_attempt_count_in_response);
    assert!(!forward.include_is_timeout_retry_header);
}

#[test]
fn clusters_share_their_slots() {
    let clusters = Arc::new(Directory::<Cluster>::default());
    let config = json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
        {"match": {"prefix": "/a"}, "route": {"cluster": "c", "priority": "HIGH", "cluster_not_found_response_code": "NOT_FOUND"}},
        {"match": {"prefix": "/"}, "route": {"cluster_header": "x-c"}}]}]});
    let loaded = load_value(&config).unwrap();
    let table = compile(&loaded.message, &clusters, &mut Problems::new()).unwrap();
    let request = Request::get("h", "/a");
    let forward = the_forward(&table, &request);
    assert_eq!((forward.priority, forward.cluster_not_found_code), (1, 404));
    assert!(matches!(&forward.target, Target::Cluster(slot) if Arc::ptr_eq(slot, &clusters.slot("c"))));
    let request = Request::get("h", "/").with("x-c", "named");
    let (chosen, weighted) = the_forward(&table, &request).target.choose(&request, 0);
    assert!(matches!(chosen, Chosen::Named(Some(b"named"))) && weighted.is_none());
}

#[test]
fn hash_policies_are_read() {
    let action = json!({"cluster": "c", "hash_policy": [
        {"header": {"header_name": "X-User"}, "terminal": true},
        {"cookie": {"name": "sid", "ttl": "0s", "path": "/"}},
        {"connection_properties": {"source_ip": true}},
        {"connection_properties": {"source_ip": false}},
        {"query_parameter": {"name": "q"}}]});
    let table = table_with(json!({"prefix": "/"}), ("route", action));
    let policies = &the_forward(&table, &Request::get("h", "/")).hash_policies;
    assert_eq!(policies.len(), 4);
    assert!(
        policies[0].terminal
            && matches!(&policies[0].input, HashInput::Header(key, None) if key.name() == "x-user")
    );
    assert!(matches!(&policies[1].input, HashInput::Cookie(cookie) if cookie.ttl == Some(Duration::ZERO)));
    assert!(matches!(&policies[2].input, HashInput::SourceIp));
    assert!(matches!(&policies[3].input, HashInput::QueryParameter(name) if &**name == "q"));
}

#[test]
fn rate_limits_are_refused_with_their_paths() {
    let address = |options: Value| json!({"actions": [{"remote_address_match": options}]});
    let near = json!({"ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]});
    let fixed = json!([{"generic_key": {"descriptor_value": "100%"}}]);
    let local = |options: Value| {
        let mut config = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "s", "token_bucket": {"max_tokens": 1, "fill_interval": "1s"}});
        config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        json!({"limit": config})
    };
    let service = |limits: Value| {
        json!({"limit": {"@type": "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute",
            "rate_limits": limits}})
    };
    let any = json!({"entries": [{"key": "user"}], "token_bucket": {"max_tokens": 1, "fill_interval": "1s"}});
    let fast =
        json!({"entries": [{"key": "user"}], "token_bucket": {"max_tokens": 1, "fill_interval": "0.01s"}});
    let per = |said: Value| json!({"route": {"cluster": "a"}, "typed_per_filter_config": said});
    let of_route = |limits: Value| json!({"route": {"cluster": "a", "rate_limits": limits}});
    const SAID: &str = "typed_per_filter_config[\"limit\"]";
    for (route, wanted) in [
        (of_route(json!([address(json!({"descriptor_value": "%NOPE%", "address_matcher": near}))])),
         "route.rate_limits[0].actions[0].remote_address_match.descriptor_value: unknown operator %NOPE%".to_owned()),
        (of_route(json!([address(json!({"descriptor_value": "x",
            "address_matcher": {"ranges": [{"address_prefix": "x", "prefix_len": 8}]}}))])),
         "route.rate_limits[0].actions[0].remote_address_match.address_matcher.ranges[0].address_prefix: \"x\" is not an IP address".into()),
        (of_route(json!([{"actions": fixed, "hits_addend": {"number": 3}}])),
         "route.rate_limits[0].hits_addend: only policies of filters have it, in Envoy too".into()),
        (per(service(json!([{"actions": fixed, "hits_addend": {"format": "%PROTOCOL%%PROTOCOL%"}}]))),
         format!("{SAID}.rate_limits[0].hits_addend.format: \"%PROTOCOL%%PROTOCOL%\" is not a single operator")),
        (per(service(json!([{"actions": fixed, "hits_addend": {"number": 1, "format": "%PROTOCOL%"}}]))),
         format!("{SAID}.rate_limits[0].hits_addend.format: number is set, too: one of them is allowed")),
        (per(local(json!({"rate_limits": [{"actions": fixed, "apply_on_stream_done": true}]}))),
         format!("{SAID}.rate_limits[0].apply_on_stream_done: a filter that keeps limits itself counts requests as they come")),
        (per(local(json!({"rate_limits": [{"actions": fixed, "limit": {"rate_limit": {"requests_per_unit": 1, "unit": "HOUR"}}}]}))),
         format!("{SAID}.rate_limits[0].limit: limits are those of the filter's descriptors, in Envoy too")),
        (per(local(json!({"descriptors": [any, any]}))),
         format!("{SAID}.descriptors[1].entries: another descriptor has the same")),
        (per(local(json!({"descriptors": [fast]}))),
         format!("{SAID}.descriptors[0].token_bucket.fill_interval: must be at least 0.05s")),
    ] {
        let mut route = route;
        route["match"] = json!({"prefix": "/"});
        let (table, problems, _) = try_table(json!({"virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [route]}]}));
        assert!(table.is_none());
        assert_eq!(problems, [format!("virtual_hosts[0].routes[0].{wanted}")]);
    }
}

#[test]
fn basic_auth_is_refused_with_its_line() {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.basic_auth.v3.BasicAuthPerRoute";
    let said = json!({"auth": {"@type": kind, "users": {"inline_string": "joe:secret"}}});
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "a"}, "typed_per_filter_config": said});
    let (table, problems, _) =
        try_table(json!({"virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [route]}]}));
    assert!(table.is_none());
    assert_eq!(
        problems,
        ["virtual_hosts[0].routes[0].typed_per_filter_config[\"auth\"].users: line 1: the password is to be a digest \
          that begins with {SHA}"]
    );
}

#[test]
fn a_virtual_cluster_needs_headers() {
    let (table, problems, _) = try_table(json!({"virtual_hosts": [{"name": "a", "domains": ["*"],
        "virtual_clusters": [{"name": "all"}], "routes": []}]}));
    assert!(table.is_none());
    assert_eq!(problems, ["virtual_hosts[0].virtual_clusters[0].headers: is required"]);
}
