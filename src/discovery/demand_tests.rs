//! The manager alone: scopes with their tables, and what requests ask for.

use std::sync::Arc;

use outrigger_control_api::client::{Cause, Rejection, Resource, Update};
use outrigger_control_api::load_resource;
use outrigger_control_api::pb::envoy::config::core::v3::Node;
use serde_json::{json, Value};
use tokio::sync::{mpsc, oneshot};

use super::effects::{Effect, CDS, ECDS, LDS, RDS, SRDS, VHDS};
use super::manager::Manager;
use super::sources::StreamId;
use super::Serving;
use crate::config::compile::resource::Compiler;
use crate::config::demand::{Ask, ClusterSource, OnDemandClusters, Want, CLUSTER_PATIENCE};
use crate::config::discovery::{ConfigSource, DiscoveryConfig, Source};
use crate::config::http::{HttpConnectionManager, HttpFilter, Routes};
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

fn listener(routes: &Value, filters: &Value) -> Resource {
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
        let config = DiscoveryConfig {
            node: Node::default(),
            ads: None,
            lds: Some(lds),
            cds: None,
            rtds: Vec::new(),
            load_stats: None,
        };
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
            received: None,
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
    world.good(LDS, &[listener(&scoped(), &json!([]))], &[]);
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
    world.good(LDS, &[listener(&scoped(), &json!([]))], &[]);
    world.manager.timed_out(world.stream, SRDS, None, &mut world.served);
    assert_eq!((world.served.0.len(), world.find("1")), (1, None));
    let mut world = World::new();
    world.good(LDS, &[listener(&scoped(), &json!([]))], &[]);
    world.good(SRDS, &[scope("one", "1", "t1", false)], &[]);
    world.manager.timed_out(world.stream, RDS, Some("t1"), &mut world.served);
    assert_eq!((world.served.0.len(), world.find("1")), (1, found("one", false)));
}

#[test]
fn two_scopes_with_one_key_are_refused_by_both_their_names() {
    let mut world = World::new();
    world.good(LDS, &[listener(&scoped(), &json!([]))], &[]);
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
    world.good(LDS, &[listener(&scoped(), &on_demand())], &[]);
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
    world.good(LDS, &[listener(&scoped(), &on_demand())], &[]);
    world.good(SRDS, &[scope("none", "2", "n", true)], &[]);
    let slot = world.compiler.route_slot(&Source::Ads, "n");
    let mut answer = world.ask(Want::Table(slot));
    assert!(answer.try_recv().is_err());
    world.good(RDS, &[], &["n"]);
    assert_eq!((answer.try_recv(), world.find("2")), (Ok(()), found("none", false)));
}

fn by_rds() -> Value {
    json!({"rds": {"route_config_name": "t", "config_source": {"resource_api_version": "V3", "ads": {}}}})
}

fn host(name: &str, domain: &str) -> Resource {
    let route = json!({"match": {"prefix": "/"}, "direct_response": {"status": 200}});
    resource(name, "route.v3.VirtualHost", json!({"name": name, "domains": [domain], "routes": [route]}))
}

fn table_with_hosts(hosts: &[&str]) -> Resource {
    let route = json!({"match": {"prefix": "/"}, "direct_response": {"status": 200}});
    let own = |domain: &&str| json!({"name": domain, "domains": [domain], "routes": [route]});
    let hosts: Vec<_> = hosts.iter().map(own).collect();
    let source = json!({"resource_api_version": "V3", "ads": {}});
    let value = json!({"name": "t", "virtual_hosts": hosts, "vhds": {"config_source": source}});
    resource("t", "route.v3.RouteConfiguration", value)
}

impl World {
    /// The names of the virtual hosts in force.
    fn hosts(&self) -> Vec<String> {
        let Routes::Table(slot) = &self.served.0.last().expect("one serves").routes else { panic!("scopes") };
        slot.get().iter().flat_map(|table| table.virtual_hosts()).map(|host| host.name.to_string()).collect()
    }

    fn ask_host(&mut self, host: &str) -> oneshot::Receiver<()> {
        let table = self.compiler.route_slot(&Source::Ads, "t");
        self.ask(Want::VirtualHost { table, host: host.into() })
    }
}

#[test]
fn virtual_hosts_that_are_pushed_join_those_of_the_table() {
    let mut world = World::new();
    world.good(LDS, &[listener(&by_rds(), &json!([]))], &[]);
    world.good(RDS, &[table_with_hosts(&["own"])], &[]);
    assert_eq!((world.wanted(VHDS), world.served.0.len()), (vec!["*"], 0), "the first ones are waited for");
    // Those of another table, which may come later, are kept.
    world.good(VHDS, &[host("t/b", "b"), host("other/c", "c"), host("t/d", "d")], &[]);
    assert_eq!(world.hosts(), ["own", "t/b", "t/d"]);
    world.good(VHDS, &[host("t/b", "b2")], &["t/d"]);
    assert_eq!(world.hosts(), ["own", "t/b"]);
    // One that takes the domain of another is refused, the others are taken.
    let refused = world.update(VHDS, &[host("t/e", "own"), host("t/f", "f"), host("nowhere", "n")], &[]);
    let text = |refused: &Rejection| (refused.name.clone(), refused.message.clone());
    let refused: Vec<_> = refused.iter().map(text).collect();
    assert_eq!(refused[0], ("nowhere".into(), "name: is not TABLE/HOST".into()));
    assert!(refused[1].0 == "t/e" && refused[1].1.contains("\"own\" occurs twice"), "{refused:?}");
    assert_eq!((refused.len(), world.hosts()), (2, vec!["own".into(), "t/b".into(), "t/f".into()]));
    // A problem has the path within the virtual host.
    let wrong = resource("t/w", "route.v3.VirtualHost", json!({"name": "t/w", "domains": []}));
    assert_eq!(world.update(VHDS, &[wrong], &[])[0].message, "domains: is empty");
    // They outlast a change of the table.
    world.good(RDS, &[table_with_hosts(&["new"])], &[]);
    assert_eq!(world.hosts(), ["new", "t/b", "t/f"]);
    world.good(RDS, &[table("t")], &[]);
    assert_eq!((world.hosts(), world.wanted(VHDS)), (vec![], vec![]));
    world.good(RDS, &[table_with_hosts(&["new"])], &[]);
    assert_eq!((world.hosts(), world.wanted(VHDS)), (vec!["new".into()], vec!["*"]));
    world.good(LDS, &[], &["l"]);
    assert_eq!((world.wanted(VHDS), world.wanted(RDS)), (vec![], vec![]));
}

#[test]
fn a_virtual_host_is_asked_for_by_the_authority_of_a_request() {
    let mut world = World::new();
    world.good(LDS, &[listener(&by_rds(), &on_demand())], &[]);
    world.good(RDS, &[table_with_hosts(&["own"])], &[]);
    world.manager.timed_out(world.stream, VHDS, None, &mut world.served);
    assert_eq!(world.hosts(), ["own"], "it serves when the time is over");
    let (mut one, mut two) = (world.ask_host("a.test"), world.ask_host("a.test"));
    let mut other = world.ask_host("b.test");
    assert_eq!(world.wanted(VHDS), ["*", "t/a.test", "t/b.test"], "once for two requests");
    let mut found = host("t/all", "*.test");
    found.aliases = vec!["t/a.test".into()];
    world.good(VHDS, &[found], &[]);
    assert_eq!(
        (one.try_recv(), two.try_recv(), world.hosts()),
        (Ok(()), Ok(()), vec!["own".into(), "t/all".into()])
    );
    assert!(other.try_recv().is_err());
    // There is none: the next request asks again.
    world.good(VHDS, &[], &["t/b.test"]);
    assert_eq!((other.try_recv(), world.wanted(VHDS)), (Ok(()), vec!["*", "t/a.test"]));
    let mut late = world.ask_host("late.test");
    assert!(late.try_recv().is_err() && world.wanted(VHDS).contains(&"t/late.test"));
    world.manager.timed_out(world.stream, VHDS, Some("t/late.test"), &mut world.served);
    world.act();
    assert_eq!((late.try_recv(), world.wanted(VHDS)), (Ok(()), vec!["*", "t/a.test"]));
}

#[test]
fn a_cluster_is_asked_for_once_however_many_requests_wait() {
    let mut world = World::new();
    let source = ConfigSource { source: Source::Ads, initial_fetch_timeout: None };
    let from = Arc::new(OnDemandClusters { source, timeout: CLUSTER_PATIENCE });
    let want = |name: &str| Want::Cluster { from: ClusterSource::Filter(from.clone()), name: name.into() };
    let cluster =
        |name: &str, kind: &str| resource(name, "cluster.v3.Cluster", json!({"name": name, "type": kind}));
    let (mut one, mut two, mut none) = (world.ask(want("c")), world.ask(want("c")), world.ask(want("n")));
    let subscribed = world.wanted.iter().filter(|(kind, _)| *kind == CDS).count();
    assert_eq!((subscribed, world.wanted(CDS)), (2, vec!["c", "n"]));
    world.good(CDS, &[cluster("other", "STATIC")], &[]);
    assert!(one.try_recv().is_err() && none.try_recv().is_err(), "that is another one");
    world.good(CDS, &[cluster("c", "STATIC")], &[]);
    assert_eq!((one.try_recv(), two.try_recv()), (Ok(()), Ok(())));
    assert!(world.compiler.clusters.find("c").unwrap().is_filled() && none.try_recv().is_err());
    world.good(CDS, &[], &["n"]);
    assert_eq!((none.try_recv(), world.wanted(CDS)), (Ok(()), vec!["c"]), "asked for again by the next");
    // One that is there needs no asking, and one that is no good is not waited for.
    let mut there = world.ask(want("c"));
    assert_eq!((there.try_recv(), world.wanted(CDS)), (Ok(()), vec!["c"]));
    let mut bad = world.ask(want("bad"));
    assert_eq!(world.update(CDS, &[cluster("bad", "ORIGINAL_DST")], &[]).len(), 1);
    assert_eq!(bad.try_recv(), Ok(()));
    let mut late = world.ask(want("late"));
    world.manager.timed_out(world.stream, CDS, Some("late"), &mut world.served);
    world.act();
    assert_eq!((late.try_recv(), world.wanted(CDS)), (Ok(()), vec!["bad", "c"]));
}

#[test]
fn a_listener_waits_for_the_configuration_of_its_filters() {
    const BRIDGE: &str = "type.googleapis.com/envoy.extensions.filters.http.grpc_http1_bridge.v3.Config";
    let extension = |kind: &str| {
        let value = json!({"name": "f", "typed_config": {"@type": kind}});
        resource("f", "core.v3.TypedExtensionConfig", value)
    };
    let filters = json!([{"name": "f", "config_discovery": {
        "config_source": {"resource_api_version": "V3", "ads": {}}, "type_urls": [BRIDGE]}}]);
    let mut world = World::new();
    world.good(LDS, &[listener(&json!({"route_config": {"name": "t"}}), &filters)], &[]);
    assert_eq!((world.served.0.len(), world.wanted(ECDS)), (0, vec!["f"]));
    let refused = world.update(
        ECDS,
        &[extension("type.googleapis.com/envoy.extensions.filters.http.router.v3.Router")],
        &[],
    );
    assert!(refused[0].message.starts_with("typed_config: is of type"), "{refused:?}");
    assert_eq!(world.served.0.len(), 1, "it will not come soon");
    let current = |world: &World| match &world.served.0.last().unwrap().filters[0].filter {
        HttpFilter::Discovered(filter) => filter.current().is_some(),
        other => panic!("{other:?}"),
    };
    assert!(!current(&world));
    world.good(ECDS, &[extension(BRIDGE)], &[]);
    assert!(current(&world));
    // Another version of the listener has it at once.
    let table = json!({"route_config": {"name": "u"}});
    world.good(LDS, &[listener(&table, &filters)], &[]);
    assert_eq!((world.served.0.len(), current(&world)), (2, true));
    world.good(ECDS, &[], &["f"]);
    assert!(!current(&world));
    world.good(LDS, &[], &["l"]);
    assert_eq!(world.wanted(ECDS), Vec::<&str>::new());
}
