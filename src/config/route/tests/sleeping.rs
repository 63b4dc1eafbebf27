//! Virtual hosts that sleep: found like others, compiled by the first request, asleep again when told.

use super::*;

/// So many virtual hosts, each with a route to a cluster of its own.
fn hosts(count: usize) -> Value {
    let host = |index: usize| {
        json!({"name": format!("h{index}"), "domains": [format!("s{index}.local")],
            "request_headers_to_add": [{"header": {"key": "x-host", "value": format!("{index}")}}],
            "routes": [{"name": format!("r{index}"), "match": {"prefix": "/"},
                "route": {"cluster": format!("c{index}")}}]})
    };
    json!({"name": "t", "virtual_hosts": (0..count).map(host).collect::<Vec<_>>()})
}

#[test]
fn a_request_wakes_its_virtual_host_and_no_other() {
    let table = encoded_table(&hosts(1000)).1.unwrap();
    assert_eq!((table.len(), table.awake()), (1000, 0));
    assert_eq!(found(&table, &Request::get("elsewhere", "/"), 0), "-");
    assert_eq!(table.awake(), 0);
    assert_eq!(found(&table, &Request::get("s999.local", "/"), 0), "r999");
    assert_eq!(found(&table, &Request::get("S999.local", "/a"), 0), "r999");
    assert_eq!(table.awake(), 1);
    // The same value each time.
    let request = Request::get("s999.local", "/");
    assert!(std::ptr::eq(the_route(&table, &request), the_route(&table, &request)));
    let rested = table.rested();
    assert_eq!((rested.awake(), table.awake()), (0, 1));
    assert_eq!(found(&rested, &request, 0), "r999");
}

#[test]
fn asleep_or_not_a_table_says_the_same() {
    let config = hosts(40);
    let (eager, lazy) = (table(config.clone()), encoded_table(&config).1.unwrap());
    for index in [0, 17, 39, 40] {
        let request = Request::get(&format!("s{index}.local"), "/");
        assert_eq!(found(&eager, &request, 0), found(&lazy, &request, 0));
    }
    let request = Request::get("s7.local", "/");
    let ops = |table: &RouteTable| format!("{:?}", the_route(table, &request).request_headers);
    assert_eq!(ops(&eager), ops(&lazy));
    let names = |table: &RouteTable| table.virtual_hosts().map(|host| host.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&eager), names(&lazy));
    assert_eq!(lazy.awake(), 4, "those that were asked for; to list them wakes nobody");
}

#[test]
fn clusters_that_sleeping_hosts_name_are_referred_to() {
    let table = encoded_table(&hosts(40)).1.unwrap();
    let request = Request::get("s5.local", "/");
    let Target::Cluster(slot) = &the_forward(&table, &request).target else { panic!("a cluster") };
    // The route's, the directory's, and the table's own.
    assert_eq!(Arc::strong_count(slot), 3);
}

#[test]
fn every_problem_of_every_virtual_host_is_found_on_arrival() {
    let mut config = hosts(40);
    config["virtual_hosts"][38]["routes"][0]["match"] = json!({"safe_regex": {"regex": "("}});
    config["virtual_hosts"][39]["domains"] = json!(["s0.local"]);
    let problems = encoded_table(&config).1.unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].starts_with("virtual_hosts[38].routes[0].match.safe_regex.regex: "), "{problems:?}");
    assert!(problems[1].starts_with("virtual_hosts[39].domains[0]: "), "{problems:?}");
}

#[test]
fn a_virtual_host_with_content_of_a_file_never_sleeps() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "as it was").unwrap();
    let mut config = hosts(40);
    config["virtual_hosts"][3]["routes"] = json!([{"match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"filename": file.path()}}}]);
    let table = encoded_table(&config).1.unwrap();
    drop(file);
    let table = table.rested();
    match &the_route(&table, &Request::get("s3.local", "/")).action {
        Action::Direct(direct) => assert_eq!(&direct.body[..], b"as it was"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_that_are_no_table_are_told_from_a_table() {
    let (body, _) = encoded_table(&hosts(3));
    let parts = split(&body).unwrap();
    assert_eq!(parts.hosts.len(), 3);
    for cut in 1..body.len() {
        // A cut between two fields leaves a table.
        if let Some(parts) = split(&body[..cut]) {
            assert!(parts.hosts.len() < 3 && parts.hosts.iter().all(|place| place.end <= cut));
        }
    }
    assert!(split(&[0xff; 12]).is_none());
}

#[test]
fn what_counts_requests_stays_when_its_virtual_host_could_sleep() {
    let mut config = hosts(40);
    config["virtual_hosts"][5]["name"] = json!("stays");
    config["virtual_hosts"][5]["virtual_clusters"] =
        json!([{"name": "all", "headers": [{"name": ":path", "string_match": {"prefix": "/"}}]}]);
    config["virtual_hosts"][6]["name"] = json!("stays:too");
    config["virtual_hosts"][6]["routes"][0]["stat_prefix"] = json!("main");
    let counts = |name: &str| crate::telemetry::metrics::snapshot().number(name);
    let table = encoded_table(&config).1.unwrap();
    let (counted, name) = the_route(&table, &Request::get("s5.local", "/"))
        .counted
        .as_ref()
        .unwrap()
        .of(&Request::get("s5.local", "/"));
    assert_eq!(name.map(|name| &*name.0), Some("all"));
    counted.each(|stats| stats.count(204));
    drop((table.rested(), table));
    assert_eq!(counts("vhost.stays.vcluster.all.upstream_rq_204"), None, "nothing refers to it any more");
    let table = encoded_table(&config).1.unwrap().rested();
    for name in ["stays.vcluster.all", "stays.vcluster.other", "stays:too.route.main"] {
        assert_eq!(counts(&format!("vhost.{name}.upstream_rq_total")), Some(0), "{name}");
    }
    assert_eq!(table.awake(), 0);
}
