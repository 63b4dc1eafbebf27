//! The manager alone: scopes with their tables, and what requests ask for.

use std::sync::Arc;

use outrigger_control_api::client::{Cause, Rejection, Resource, Update};
use outrigger_control_api::load_resource;
use outrigger_control_api::pb::envoy::config::core::v3::Node;
use serde_json::{json, Value};
use tokio::sync::{mpsc, oneshot};

use super::effects::{Effect, LDS, RDS, SRDS};
use super::manager::Manager;
use super::sources::StreamId;
use super::Serving;
use crate::config::compile::resource::Compiler;
use crate::config::demand::{Ask, Want};
use crate::config::discovery::{ConfigSource, DiscoveryConfig, Source};
use crate::config::http::{HttpConnectionManager, Routes};
use crate::config::listener::{Listener, Terminal};

/// Keeps the connection managers that serve.
#[derive(Default)]
struct Served(Vec<Arc<HttpConnectionManager>>);

impl Serving for Served {
    fn update(&mut self, _removed: &[&str], added: Vec<Listener>) -> Vec<Result<(), String>> {
        for listener in &added {
            match &listener.chains[0].terminal {
                Terminal::Http(manager) => self.0.push(manager.clone()),
                _ => panic!("no connection manager"),
            }
        }
        added.iter().map(|_| Ok(())).collect()
    }

    fn set_warming(&mut self, _listeners: usize) {}
}

struct World {
    compiler: Arc<Compiler>,
    manager: Manager,
    stream: StreamId,
    served: Served,
    asks: mpsc::UnboundedReceiver<Ask>,
    version: usize,
    /// Names subscribed to by type, `*` for all.
    wanted: Vec<(&'static str, String)>,
}

fn resource(name: &str, kind: &str, mut value: Value) -> Resource {
    value["@type"] = format!("type.googleapis.com/envoy.config.{kind}").into();
    let body = load_resource(&value).unwrap().any.value.into();
    Resource { name: name.to_owned(), version: "1".to_owned(), aliases: Vec::new(), body }
}

fn scope(name: &str, key: &str, table: &str, on_demand: bool) -> Resource {
    let key = json!({"fragments": [{"string_key": key}]});
    let value = json!({"name": name, "route_configuration_name": table, "key": key, "on_demand": on_demand});
    resource(name, "route.v3.ScopedRouteConfiguration", value)
}

fn table(name: &str) -> Resource {
    resource(name, "route.v3.RouteConfiguration", json!({"name": name}))
}

fn listener(routes: &Value, filters: Value) -> Resource {
    const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let mut list = vec![];
    list.extend(filters.as_array().unwrap().iter().cloned());
    list.push(json!({"name": "router", "typed_config":
        {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}));
    let mut manager = json!({
        "@type": format!("type.googleapis.com/{HCM}"), "stat_prefix": "demand", "http_filters": list,
    });
    for (field, value) in routes.as_object().unwrap() {
        manager[field] = value.clone();
    }
    let value = json!({
        "name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    });
    resource("l", "listener.v3.Listener", value)
}

fn scoped() -> Value {
    let ads = json!({"resource_api_version": "V3", "ads": {}});
    json!({"scoped_routes": {
        "name": "s", "rds_config_source": ads, "scoped_rds": {"scoped_rds_config_source": ads},
        "scope_key_builder": {"fragments": [{"header_value_extractor": {"name": "x-scope", "index": 0}}]},
    }})
}

fn on_demand() -> Value {
    json!([{"name": "envoy.filters.http.on_demand", "typed_config":
        {"@type": "type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand"}}])
}

impl World {
    #[allow(clippy::field_reassign_with_default)] // It has private fields.
    fn new() -> Self {
        let mut compiler = Compiler::default();
        compiler.has_ads = true;
        compiler.ads_is_delta = true;
        let compiler = Arc::new(compiler);
        let lds = ConfigSource { source: Source::Ads, initial_fetch_timeout: None };
        let config =
            DiscoveryConfig { node: Node::default(), ads: None, lds: Some(lds), cds: None, rtds: Vec::new() };
        let manager = Manager::new(&compiler, &config, &[]);
        let stream = manager.lds.as_ref().unwrap().stream;
        let asks = compiler.demand.take_asks().unwrap();
        Self { compiler, manager, stream, served: Served::default(), asks, version: 0, wanted: Vec::new() }
    }

    fn update(&mut self, type_url: &str, added: &[Resource], removed: &[&str]) -> Vec<Rejection> {
        self.version += 1;
        let mut added = added.to_vec();
        added.iter_mut().for_each(|resource| resource.version = self.version.to_string());
        let update = Update {
            id: 0,
            type_url: type_url.to_owned(),
            version: self.version.to_string(),
            cause: Cause::Response,
            added,
            removed: removed.iter().map(ToString::to_string).collect(),
            flawed: false,
        };
        let refused = self.manager.update(self.stream, &update, &mut self.served);
        self.act();
        refused
    }

    fn good(&mut self, type_url: &str, added: &[Resource], removed: &[&str]) {
        assert_eq!(self.update(type_url, added, removed), []);
    }

    fn act(&mut self) {
        for effect in self.manager.take_effects() {
            match effect {
                Effect::Subscribe { type_url, name, .. } => self.wanted.push((type_url, name.to_string())),
                Effect::SubscribeAll { type_url, .. } => self.wanted.push((type_url, "*".to_owned())),
                Effect::Unsubscribe { type_url, name, .. } => {
                    self.wanted.retain(|(kind, other)| (*kind, other.as_str()) != (type_url, &*name));
                }
                Effect::UnsubscribeAll { type_url, .. } => {
                    self.wanted.retain(|(kind, other)| (*kind, other.as_str()) != (type_url, "*"));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn wanted(&self, type_url: &str) -> Vec<&str> {
        let mut names: Vec<_> =
            self.wanted.iter().filter(|(kind, _)| *kind == type_url).map(|(_, name)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// The table of the scope with this key, and whether it is there.
    fn find(&self, key: &str) -> Option<(String, bool)> {
        let Routes::Scoped(scoped) = &self.served.0.last()?.routes else { panic!("no scopes") };
        let scopes = scoped.scopes.get()?;
        let scope = scopes.find(&[key.as_bytes()])?;
        Some((scope.name.to_string(), scope.routes.is_filled()))
    }

    /// A request asks.
    fn ask(&mut self, want: Want) -> oneshot::Receiver<()> {
        let answer = self.compiler.demand.ask(want).expect("a place");
        let ask = self.asks.try_recv().expect("one");
        self.manager.asked(ask);
        self.act();
        answer
    }
}

fn found(name: &str, there: bool) -> Option<(String, bool)> {
    Some((name.to_owned(), there))
}

#[test]
fn a_listener_waits_for_its_scopes_and_their_tables() {
    let mut world = World::new();
    world.good(LDS, &[listener(&scoped(), json!([]))], &[]);
    assert_eq!((world.wanted(SRDS), world.served.0.len()), (vec!["*"], 0));
    world.good(SRDS, &[scope("one", "1", "t1", false), scope("lazy", "2", "t2", true)], &[]);
    assert_eq!(
        (world.wanted(RDS), world.served.0.len()),
        (vec!["t1"], 0),
        "one that is on demand is not asked for"
    );
    world.good(RDS, &[table("t1")], &[]);
    assert_eq!(world.served.0.len(), 1);
    assert_eq!(
        (world.find("1"), world.find("2"), world.find("3")),
        (found("one", true), found("lazy", false), None)
    );
    // What comes later serves when its table is there; what goes takes its table along.
    world.good(SRDS, &[scope("three", "3", "t3", false)], &["one"]);
    assert_eq!(
        (world.wanted(RDS), world.find("1"), world.find("3")),
        (vec!["t3"], None, found("three", false))
    );
    world.good(RDS, &[table("t3")], &[]);
    assert_eq!(world.find("3"), found("three", true));
    world.good(LDS, &[], &["l"]);
    assert_eq!((world.wanted(SRDS), world.wanted(RDS)), (vec![], vec![]));
}

#[test]
fn without_scopes_or_tables_a_listener_serves_when_the_time_is_over() {
    let mut world = World::new();
    world.good(LDS, &[listener(&scoped(), json!([]))], &[]);
    world.manager.timed_out(world.stream, SRDS, None, &mut world.served);
    assert_eq!((world.served.0.len(), world.find("1")), (1, None));
    let mut world = World::new();
    world.good(LDS, &[listener(&scoped(), json!([]))], &[]);
    world.good(SRDS, &[scope("one", "1", "t1", false)], &[]);
    world.manager.timed_out(world.stream, RDS, Some("t1"), &mut world.served);
    assert_eq!((world.served.0.len(), world.find("1")), (1, found("one", false)));
}

#[test]
fn two_scopes_with_one_key_are_refused_by_both_their_names() {
    let mut world = World::new();
    world.good(LDS, &[listener(&scoped(), json!([]))], &[]);
    let refused = world.update(
        SRDS,
        &[scope("a", "1", "t", false), scope("b", "1", "t", false), scope("c", "2", "t", false)],
        &[],
    );
    let text = "key: scope key conflict: the scopes \"a\" and \"b\" have the same key";
    assert_eq!(refused, [Rejection { name: "b".into(), message: text.into() }]);
    world.good(RDS, &[table("t")], &[]);
    assert_eq!(
        (world.find("1"), world.find("2")),
        (found("a", true), found("c", true)),
        "its siblings are taken"
    );
    // Keys may change places, and one that is given up may be taken.
    world.good(SRDS, &[scope("a", "2", "t", false), scope("c", "1", "t", false)], &[]);
    assert_eq!((world.find("1"), world.find("2")), (found("c", true), found("a", true)));
    world.good(SRDS, &[scope("b", "1", "t", false)], &["c"]);
    assert_eq!(world.find("1"), found("b", true));
    // One that cannot have what it wants keeps what it had, and so does who wanted that.
    let refused = world.update(SRDS, &[scope("a", "1", "t", false), scope("d", "2", "t", false)], &[]);
    assert_eq!(refused.iter().map(|refused| refused.name.as_str()).collect::<Vec<_>>(), ["a", "d"]);
    assert_eq!((world.find("1"), world.find("2")), (found("b", true), found("a", true)));
    // A scope without a table.
    let wrong = resource(
        "w",
        "route.v3.ScopedRouteConfiguration",
        json!({"name": "w", "key": {"fragments": [{"string_key": "9"}]}}),
    );
    let refused = world.update(SRDS, &[wrong], &[]);
    assert_eq!(
        refused[0].message,
        "route_configuration_name: is required where there is no route_configuration"
    );
}

#[test]
fn the_table_of_a_scope_on_demand_is_asked_for_once_a_request_wants_it() {
    let mut world = World::new();
    world.good(LDS, &[listener(&scoped(), on_demand())], &[]);
    world.good(SRDS, &[scope("lazy", "1", "t", true), scope("none", "2", "n", true)], &[]);
    assert_eq!((world.served.0.len(), world.wanted(RDS)), (1, vec![]));
    let slot = |world: &World, name: &str| world.compiler.route_slot(&Source::Ads, name);
    let mut answer = world.ask(Want::Table(slot(&world, "t")));
    assert_eq!(world.wanted(RDS), ["t"]);
    assert!(answer.try_recv().is_err(), "it waits");
    world.good(RDS, &[table("t")], &[]);
    assert_eq!((answer.try_recv(), world.find("1")), (Ok(()), found("lazy", true)));
    // With the scope goes its table.
    world.good(SRDS, &[], &["lazy"]);
    assert_eq!((world.wanted(RDS), world.find("1")), (vec![], None));
}

#[test]
fn a_request_for_a_table_that_does_not_exist_is_answered_too() {
    let mut world = World::new();
    world.good(LDS, &[listener(&scoped(), on_demand())], &[]);
    world.good(SRDS, &[scope("none", "2", "n", true)], &[]);
    let slot = world.compiler.route_slot(&Source::Ads, "n");
    let mut answer = world.ask(Want::Table(slot));
    assert!(answer.try_recv().is_err());
    world.good(RDS, &[], &["n"]);
    assert_eq!((answer.try_recv(), world.find("2")), (Ok(()), found("none", false)));
}
