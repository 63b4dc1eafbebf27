//! Names that applications ask for: captured, and answered by their sidecar or by those it asks.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::TokioResolver;

use super::mesh::{Mesh, Pod};
use super::sidecar::{Plan, Sidecar};
use super::user::as_root;
use crate::harness::dns::{NameServer, Says};
use crate::harness::DEADLINE;
use crate::tls::certs::Certs;

/// A name server in a pod that knows every name outside of the mesh.
fn name_server(pod: &Pod, port: u16) -> NameServer {
    let at = SocketAddr::from((pod.v4, port));
    NameServer::on(pod.namespace.within(move || UdpSocket::bind(at).expect("a port")), |name| {
        match name.ends_with(".mesh.test") {
            true => Says::Addresses(vec![IpAddr::from([192, 0, 2, 7])]),
            false => Says::NoSuchName,
        }
    })
}

/// A sidecar's bootstrap: what listens for names, and clusters.
fn bootstrap(filter: &str, clusters: &str) -> String {
    format!(
        "admin:\n  address: {{ socket_address: {{ address: 127.0.0.1, port_value: 15000 }} }}\nstatic_resources:\n  listeners:\n  - name: dns\n    address: {{ socket_address: {{ protocol: UDP, address: 0.0.0.0, port_value: 15053 }} }}\n    listener_filters:\n    - {{ name: filter, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.udp.{filter} }} }}\n  clusters:\n{clusters}"
    )
}

fn cluster(name: &str, pod: &Pod) -> String {
    format!(
        "  - name: {name}\n    type: STATIC\n    load_assignment: {{ cluster_name: {name}, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: 5300 }} }} }} }} ] }} ] }}\n",
        pod.v4
    )
}

/// What an application in the pod finds, whose name server is at an address that nobody has.
fn resolve(pod: &Pod, name: &'static str) -> Result<Vec<String>, String> {
    pod.namespace.within(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let nowhere = Ipv4Addr::new(10, 77, 0, 222).into();
        let server = NameServerConfig::new(nowhere, true, vec![ConnectionConfig::udp()]);
        let config = ResolverConfig::from_parts(None, vec![], vec![server]);
        runtime.block_on(async move {
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4Only;
            let resolver = builder.build().expect("a resolver");
            let found = resolver.lookup_ip(name).await.map_err(|error| error.to_string())?;
            Ok(found.iter().map(|ip| ip.to_string()).collect())
        })
    })
}

#[test]
fn names_are_resolved_by_way_of_the_sidecar() {
    as_root!();
    let mesh = Mesh::new(2);
    let certs = Certs::new();
    let [client, server] = mesh.pods.as_slice() else { panic!("two pods") };
    let _names = name_server(server, 5300);
    let text = bootstrap(
        "udp_proxy.v3.UdpProxyConfig, stat_prefix: dns, cluster: resolver",
        &cluster("resolver", server),
    );
    let state = tempfile::tempdir().expect("a directory");
    let arguments = ["--state-dir", state.path().to_str().expect("a path")];
    let plan = Plan { bootstrap: Some(&text), arguments: &arguments, ..Plan::PLAIN };
    let sidecar = Sidecar::start(client, &plan, &certs);
    client.init(&["--redirect-dns", "--capture-all-dns"]);
    assert_eq!(resolve(client, "web.mesh.test."), Ok(vec!["192.0.2.7".to_owned()]));
    assert_eq!(client.counter("udp.dns.downstream_sess_total"), 1);
    // Also while the sidecar is replaced.
    let _successor = crate::upgrade::upgraded(&arguments);
    assert_eq!(resolve(client, "other.mesh.test."), Ok(vec!["192.0.2.7".to_owned()]));
    let end = Instant::now() + DEADLINE;
    while client.counter("udp.dns.downstream_sess_total") != 1 {
        assert!(Instant::now() < end);
    }
    drop(sidecar);
}

#[test]
fn the_sidecar_answers_for_the_mesh_and_asks_for_the_rest() {
    as_root!(really: "a sidecar's own questions from others, by its group");
    let mesh = Mesh::new(2);
    let certs = Certs::new();
    let [client, server] = mesh.pods.as_slice() else { panic!("two pods") };
    let names = name_server(server, 53);
    let table = "virtual_domains: [ { name: fixed.cluster.local, endpoint: { address_list: { address: [ 10.96.0.9 ] } } }, { name: \"*.web.cluster.local\", endpoint: { cluster_name: web } } ]";
    let asked = format!("resolvers: [ {{ socket_address: {{ address: {}, port_value: 53 }} }} ]", server.v4);
    let text = bootstrap(
        &format!("dns_filter.v3.DnsFilterConfig, stat_prefix: mesh, server_config: {{ inline_dns_table: {{ {table} }} }}, client_config: {{ resolver_timeout: 5s, max_pending_lookups: 16, typed_dns_resolver_config: {{ name: cares, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, {asked}, dns_resolver_options: {{ no_default_search_domain: true }} }} }} }}"),
        &cluster("web", server),
    );
    let plan = Plan { bootstrap: Some(&text), ..Plan::PLAIN };
    let _sidecar = Sidecar::start(client, &plan, &certs);
    client.init(&["--redirect-dns", "--capture-all-dns"]);
    assert_eq!(resolve(client, "fixed.cluster.local."), Ok(vec!["10.96.0.9".to_owned()]));
    assert_eq!(resolve(client, "any.web.cluster.local."), Ok(vec![server.v4.to_string()]));
    assert_eq!(names.asked(), Vec::<String>::new());
    // What the table has nothing of is asked for, and the sidecar's own question is not captured.
    assert_eq!(resolve(client, "out.mesh.test."), Ok(vec!["192.0.2.7".to_owned()]));
    assert!(resolve(client, "nowhere.cluster.local.").is_err());
    let mut asked = names.asked();
    // A server that is slow is asked again.
    asked.dedup();
    assert_eq!(asked, ["out.mesh.test A", "nowhere.cluster.local A"]);
    for (counter, wanted) in [
        ("downstream_rx_queries", 4),
        ("local_a_record_answers", 1),
        ("cluster_a_record_answers", 1),
        ("external_a_record_answers", 1),
        ("externally_resolved_queries", 2),
        ("unanswered_queries", 1),
    ] {
        assert_eq!(client.counter(&format!("dns_filter.mesh.{counter}")), wanted, "{counter}");
    }
}
