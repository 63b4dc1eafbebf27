//! Scoped routes and the on-demand filter, compiled.

use super::resources::encoded;
use super::*;
use crate::config::compile::{Compiled, Compiler};
use crate::config::demand::OnDemandClusters;
use crate::config::discovery::Source;
use crate::config::http::{HttpConnectionManager, Routes};
use crate::config::listener::{Listener, Terminal};
use std::sync::Arc;

const ODCDS: &str = "type.googleapis.com/envoy.extensions.filters.http.on_demand.v3";

fn ads() -> Value {
    json!({"resource_api_version": "V3", "ads": {}})
}

/// A listener with these fields in its connection manager, and what it warns about.
fn compiled(delta: bool, fields: &Value) -> Result<Compiled<Listener>, Vec<String>> {
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "p",
        "http_filters": [{"name": "router", "typed_config":
            {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    });
    for (field, value) in fields.as_object().unwrap() {
        match field.as_str() {
            "filter" => manager["http_filters"].as_array_mut().unwrap().insert(0, value.clone()),
            _ => manager[field] = value.clone(),
        }
    }
    let listener = json!({
        "name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    });
    let compiler = Compiler { has_ads: true, ads_is_delta: delta, ..Compiler::default() };
    let compiled = compiler.listener(&encoded("listener.v3.Listener", listener), &|_| true);
    let own = |problem: &crate::config::Problem| {
        problem.to_string().replace("filter_chains[0].filters[0].typed_config.", "")
    };
    compiled.map_err(|problems| problems.iter().map(own).collect())
}

fn manager(listener: &Listener) -> Arc<HttpConnectionManager> {
    match &listener.chains[0].terminal {
        Terminal::Http(manager) => manager.clone(),
        _ => panic!("no connection manager"),
    }
}

fn scope(name: &str, key: &str) -> Value {
    json!({"name": name, "route_configuration_name": "t", "key": {"fragments": [{"string_key": key}]}})
}

fn scoped(scopes: &[Value]) -> Value {
    json!({"scoped_routes": {
        "name": "s", "rds_config_source": ads(),
        "scope_key_builder": {"fragments": [{"header_value_extractor": {"name": "x", "index": 0}}]},
        "scoped_route_configurations_list": {"scoped_route_configurations": scopes},
    }})
}

#[test]
fn scopes_in_a_list_have_tables_of_their_own_or_by_name() {
    let mut inline = scope("inline", "1");
    inline.as_object_mut().unwrap().remove("route_configuration_name");
    inline["route_configuration"] = json!({"name": "here"});
    let mut lazy = scope("lazy", "2");
    lazy["on_demand"] = true.into();
    lazy["route_configuration_name"] = "lazy".into();
    let compiled = compiled(true, &scoped(&[inline, lazy, scope("a", "3"), scope("b", "4")])).unwrap();
    let names = |needs: &[crate::config::compile::RouteNeed]| {
        needs.iter().map(|need| need.name.to_string()).collect::<Vec<_>>()
    };
    let needs = &compiled.needs;
    assert_eq!(
        (names(&needs.route_tables), names(&needs.lazy_tables)),
        (vec!["t".into()], vec!["lazy".into()])
    );
    let Routes::Scoped(scoped) = &manager(&compiled.value).routes else { panic!("no scopes") };
    let scopes = scoped.scopes.get().unwrap();
    let find = |key: &str| {
        scopes.find(&[key.as_bytes()]).map(|scope| (scope.on_demand, scope.routes.get().is_some()))
    };
    assert_eq!(
        (find("1"), find("2"), find("3")),
        (Some((false, true)), Some((true, false)), Some((false, false)))
    );
    assert_eq!((find("5"), scopes.len()), (None, 4));
}

#[test]
fn wrong_scopes_are_refused() {
    const LIST: &str = "scoped_routes.scoped_route_configurations_list";
    const BUILDER: &str = "scoped_routes.scope_key_builder.fragments[0].header_value_extractor";
    let both = {
        let mut both = scope("a", "1");
        both["route_configuration"] = json!({"name": "here"});
        both
    };
    for (fields, expected) in [
        (
            scoped(&[scope("a", "1"), scope("b", "1")]),
            format!("{LIST}: scope key conflict: the scopes \"a\" and \"b\" have the same key"),
        ),
        (
            scoped(&[scope("a", "1"), scope("a", "2")]),
            format!("{LIST}.scoped_route_configurations[1].name: there are two scopes \"a\""),
        ),
        (
            scoped(&[both]),
            format!(
                "{LIST}.scoped_route_configurations[0].route_configuration: excludes route_configuration_name: \
                 set one of them"
            ),
        ),
    ] {
        assert_eq!(compiled(true, &fields).unwrap_err(), [expected]);
    }
    for (pointer, value, expected) in [
        ("/index", json!(1), format!("{BUILDER}.index: is 1, must be 0 without element_separator")),
        ("/index", Value::Null, format!("{BUILDER}: needs index or element")),
    ] {
        let mut fields = scoped(&[scope("a", "1")]);
        let place =
            "/scoped_routes/scope_key_builder/fragments/0/header_value_extractor".to_owned() + pointer;
        set(&mut fields, &place, value);
        let problems = compiled(true, &fields).unwrap_err();
        assert!(problems.contains(&expected), "{problems:?}");
    }
    let mut fields = scoped(&[scope("a", "1")]);
    fields["scoped_routes"].as_object_mut().unwrap().remove("rds_config_source");
    let expected = format!(
        "{LIST}.scoped_route_configurations[0].route_configuration_name: needs rds_config_source, which is not set"
    );
    assert_eq!(compiled(true, &fields).unwrap_err(), [expected]);
}

fn filter(odcds: &Value) -> Value {
    json!({
        "route_config": {"name": "r"},
        "filter": {"name": "od", "typed_config": {"@type": format!("{ODCDS}.OnDemand"), "odcds": odcds}},
    })
}

#[test]
fn the_filter_says_where_clusters_are_asked_for() {
    let compiled_filter = compiled(true, &filter(&json!({"source": ads(), "timeout": "1s"}))).unwrap();
    assert!(compiled_filter.needs.on_demand);
    let manager = manager(&compiled_filter.value);
    let filter_of = manager.on_demand.as_ref().unwrap();
    let OnDemandClusters { source, timeout } = &**filter_of.clusters.as_ref().unwrap();
    assert_eq!((&*filter_of.name, &source.source, timeout.as_secs()), ("od", &Source::Ads, 1));
    const AT: &str = "http_filters[0].typed_config.odcds";
    for (delta, odcds, expected) in [
        (
            false,
            json!({"source": ads()}),
            format!("{AT}.source: clusters on demand need a delta stream (DELTA_GRPC)"),
        ),
        (true, json!({}), format!("{AT}.source: is required")),
        (
            true,
            json!({"source": ads(), "resources_locator": "xdstp://a"}),
            format!("{AT}.resources_locator: xdstp collections are not supported"),
        ),
    ] {
        let problems = compiled(delta, &filter(&odcds)).unwrap_err();
        assert_eq!(problems, [expected]);
    }
}

#[test]
fn options_of_routes_are_checked_with_the_table() {
    let table = |delta: bool, odcds: Value| {
        let options = json!({"od": {"@type": format!("{ODCDS}.PerRouteConfig"), "odcds": odcds}});
        let route =
            json!({"match": {"prefix": "/"}, "route": {"cluster": "c"}, "typed_per_filter_config": options});
        let value =
            json!({"name": "t", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]});
        let compiler = Compiler { has_ads: true, ads_is_delta: delta, ..Compiler::default() };
        let body = encoded("route.v3.RouteConfiguration", value).into();
        let compiled = compiler.route_table(&body, &|_| true);
        compiled.map(|compiled| compiled.value).map_err(|problems| problems[0].to_string())
    };
    let good = table(true, json!({"source": ads(), "timeout": "3s"})).unwrap();
    let host = good.virtual_hosts().next().unwrap();
    let own = host.routes()[0].on_demand.clone().unwrap();
    assert_eq!((&*own.filter, own.timeout.as_secs(), own.clusters.is_some()), ("od", 3, true));
    let at = "virtual_hosts[0].routes[0].typed_per_filter_config[\"od\"].odcds";
    let text = format!("{at}.source: clusters on demand need a delta stream (DELTA_GRPC)");
    assert_eq!(table(false, json!({"source": ads()})).unwrap_err(), text);
    assert_eq!(table(true, json!({})).unwrap_err(), format!("{at}.source: is required"));
}

#[test]
fn virtual_hosts_one_by_one_need_a_delta_stream() {
    let table = |delta: bool| {
        let value = json!({"name": "t", "vhds": {"config_source": ads()}});
        let compiler = Compiler { has_ads: true, ads_is_delta: delta, ..Compiler::default() };
        let compiled = compiler.route_table(&encoded("route.v3.RouteConfiguration", value).into(), &|_| true);
        compiled.map(|compiled| compiled.needs.virtual_hosts).map_err(|problems| problems[0].to_string())
    };
    assert_eq!(table(true).unwrap().unwrap().source, Source::Ads);
    assert_eq!(
        table(false).unwrap_err(),
        "vhds.config_source: virtual hosts need a delta stream (DELTA_GRPC)"
    );
    let problems = compiled(true, &json!({"route_config": {"name": "r", "vhds": {"config_source": ads()}}}));
    assert_eq!(problems.unwrap_err(), ["route_config.vhds: needs a table that comes by RDS"]);
}
