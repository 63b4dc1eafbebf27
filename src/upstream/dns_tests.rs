use std::collections::HashMap;
use std::net::UdpSocket;
use std::time::Instant;

use super::*;
use crate::config::cluster::HostTemplate;
use crate::config::fixtures;
use crate::telemetry::metrics::snapshot;

/// What the server answers to a name: addresses of either family, or a response code.
#[derive(Clone)]
enum Zone {
    Has(Vec<IpAddr>),
    Code(u8),
}

type Zones = Arc<Mutex<HashMap<&'static str, Zone>>>;

/// A name server on loopback with a TTL of one hour, and what it answers.
fn name_server() -> (SocketAddr, Zones) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let zones = Zones::default();
    let mine = zones.clone();
    // Ends with the test process.
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let reply = reply(&buffer[..length], &mine.lock().unwrap());
            let _ = socket.send_to(&reply, peer);
        }
    });
    (address, zones)
}

fn reply(query: &[u8], zones: &HashMap<&'static str, Zone>) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8(query[at + 1..end].to_vec()).unwrap());
        at = end;
    }
    let question = &query[12..at + 5];
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let (code, addresses) = match zones.get(labels.join(".").as_str()) {
        Some(Zone::Has(addresses)) => (0, addresses.clone()),
        Some(Zone::Code(code)) => (*code, Vec::new()),
        None => (NXDOMAIN, Vec::new()),
    };
    let fitting: Vec<_> = addresses.iter().filter(|ip| ip.is_ipv4() == (kind == 1)).collect();
    let mut reply = [&query[..2], &[0x81, 0x80 | code, 0, 1, 0, fitting.len() as u8, 0, 0, 0, 0]].concat();
    reply.extend_from_slice(question);
    for ip in fitting {
        reply.extend_from_slice(&[0xc0, 12]);
        reply.extend_from_slice(&kind.to_be_bytes());
        reply.extend_from_slice(&[0, 1, 0, 0, 0x0e, 0x10]);
        let bytes = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        reply.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
        reply.extend_from_slice(&bytes);
    }
    reply
}

const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
const REFUSED: u8 = 5;

fn has(addresses: &[&str]) -> Zone {
    Zone::Has(addresses.iter().map(|ip| ip.parse().unwrap()).collect())
}

fn dns(server: SocketAddr, names: &[&str]) -> Dns {
    let names = names.iter().map(|host| DnsName {
        host: (*host).into(),
        port: 80,
        template: HostTemplate { hostname: (*host).into(), weight: 1, ..HostTemplate::default() },
    });
    Dns {
        names: names.collect(),
        refresh: Duration::from_millis(2),
        failure_refresh: None,
        respect_ttl: false,
        family: DnsFamily::V4Only,
        resolvers: vec![server],
        tcp: false,
        no_search_domain: true,
    }
}

fn cluster(name: &str, discovery: Discovery) -> Arc<Cluster> {
    Arc::new(fixtures::cluster(name, discovery))
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    cluster.hosts.load().all.iter().map(|host| host.address_text.to_string()).collect()
}

fn stat(cluster: &Cluster, name: &str) -> i64 {
    snapshot().number(&format!("cluster.{}.{name}", cluster.name)).unwrap_or(0)
}

#[track_caller]
fn expired(deadline: Instant, cluster: &Cluster) {
    assert!(Instant::now() < deadline, "waited in vain; hosts: {:?}", addresses(cluster));
}

/// Lets the resolver run until `condition` holds.
async fn until(cluster: &Cluster, condition: impl Fn(&Cluster) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition(cluster) {
        expired(deadline, cluster);
        tokio::task::yield_now().await;
    }
}

async fn until_hosts(cluster: &Cluster, expected: &[&str]) {
    until(cluster, |cluster| addresses(cluster) == expected).await;
}

/// Lets `count` more answers of the kind `stat_name` come in.
async fn more(cluster: &Cluster, stat_name: &str, count: i64) {
    let enough = stat(cluster, stat_name) + count;
    until(cluster, |cluster| stat(cluster, stat_name) >= enough).await;
}

#[tokio::test]
async fn every_address_is_a_host_and_staying_ones_stay() {
    let (server, zones) = name_server();
    zones.lock().unwrap().insert("a.test", has(&["127.0.0.2", "127.0.0.1"]));
    let cluster = cluster("dns_strict", Discovery::StrictDns(dns(server, &["a.test", "127.0.0.9"])));
    let task = tokio::spawn(follow(cluster.clone()));
    until_hosts(&cluster, &["127.0.0.1:80", "127.0.0.2:80", "127.0.0.9:80"]).await;
    assert_eq!(stat(&cluster, "membership_total"), 3);
    assert_eq!(stat(&cluster, "membership_healthy"), 3);
    let before = cluster.hosts.load_full();
    assert_eq!(&*before.all[0].template.hostname, "a.test");
    assert_eq!(before.load[0].healthy, 100);

    // Another order is not another answer.
    let changes = stat(&cluster, "membership_change");
    zones.lock().unwrap().insert("a.test", has(&["127.0.0.1", "127.0.0.2"]));
    more(&cluster, "update_success", 3).await;
    assert!(Arc::ptr_eq(&before, &cluster.hosts.load_full()));

    // One goes, one comes, one stays.
    zones.lock().unwrap().insert("a.test", has(&["127.0.0.2", "127.0.0.3"]));
    until_hosts(&cluster, &["127.0.0.2:80", "127.0.0.3:80", "127.0.0.9:80"]).await;
    let after = cluster.hosts.load_full();
    assert!(Arc::ptr_eq(&before.all[1], &after.all[0]));
    assert!(Arc::ptr_eq(&before.all[2], &after.all[2]));
    assert_eq!(stat(&cluster, "membership_change"), changes + 1);
    assert_eq!(stat(&cluster, "membership_total"), 3);
    assert!(stat(&cluster, "update_attempt") >= stat(&cluster, "update_success"));
    assert_eq!(stat(&cluster, "update_failure"), 0);
    task.abort();
}

#[tokio::test]
async fn failures_keep_the_last_good_hosts_but_an_empty_answer_counts() {
    let (server, zones) = name_server();
    zones.lock().unwrap().insert("a.test", has(&["127.0.0.1"]));
    let mut dns = dns(server, &["a.test"]);
    dns.failure_refresh = Some((Duration::from_millis(1), Duration::from_millis(4)));
    let cluster = cluster("dns_failing", Discovery::StrictDns(dns));
    let task = tokio::spawn(follow(cluster.clone()));
    until_hosts(&cluster, &["127.0.0.1:80"]).await;
    let before = cluster.hosts.load_full();
    for code in [SERVFAIL, REFUSED] {
        zones.lock().unwrap().insert("a.test", Zone::Code(code));
        more(&cluster, "update_failure", 3).await;
        // Only a good answer can leave the hosts as they were.
        let unchanged = stat(&cluster, "update_no_rebuild");
        more(&cluster, "update_failure", 3).await;
        assert_eq!(stat(&cluster, "update_no_rebuild"), unchanged);
        assert!(Arc::ptr_eq(&before, &cluster.hosts.load_full()), "{code}");
    }
    for nobody in [has(&[]), Zone::Code(NXDOMAIN)] {
        zones.lock().unwrap().insert("a.test", nobody);
        until_hosts(&cluster, &[]).await;
        let failed = stat(&cluster, "update_failure");
        more(&cluster, "update_success", 2).await;
        assert_eq!((stat(&cluster, "update_failure"), stat(&cluster, "update_empty")), (failed, 0));
        assert_eq!(stat(&cluster, "membership_total"), 0);
        zones.lock().unwrap().insert("a.test", has(&["127.0.0.1"]));
        until_hosts(&cluster, &["127.0.0.1:80"]).await;
    }
    task.abort();
}

#[tokio::test]
async fn a_logical_host_follows_the_first_address() {
    let (server, zones) = name_server();
    zones.lock().unwrap().insert("a.test", has(&["127.0.0.2", "127.0.0.1"]));
    let cluster = cluster("dns_logical", Discovery::LogicalDns(dns(server, &["a.test"])));
    let task = tokio::spawn(follow(cluster.clone()));
    until_hosts(&cluster, &["127.0.0.2:80"]).await;
    let before = cluster.hosts.load_full();
    zones.lock().unwrap().insert("a.test", has(&["127.0.0.2", "127.0.0.3"]));
    more(&cluster, "update_success", 3).await;
    assert!(Arc::ptr_eq(&before, &cluster.hosts.load_full()));
    // No address is a failure here.
    zones.lock().unwrap().insert("a.test", has(&[]));
    more(&cluster, "update_failure", 2).await;
    assert!(Arc::ptr_eq(&before, &cluster.hosts.load_full()));
    zones.lock().unwrap().insert("a.test", has(&["127.0.0.3", "127.0.0.2"]));
    until_hosts(&cluster, &["127.0.0.3:80"]).await;
    assert_eq!(stat(&cluster, "membership_change"), 2);
    task.abort();
}

#[tokio::test]
async fn families() {
    let (server, zones) = name_server();
    zones.lock().unwrap().extend([
        ("both.test", has(&["127.0.0.1", "::1"])),
        ("four_only.test", has(&["127.0.0.1"])),
        ("six.test", has(&["::1"])),
    ]);
    let (four, six) = ("127.0.0.1:80", "[::1]:80");
    for (family, expected) in [
        (DnsFamily::Auto, [&[six][..], &[four], &[six]]),
        (DnsFamily::V4Preferred, [&[four], &[four], &[six]]),
        (DnsFamily::All, [&[four, six], &[four], &[six]]),
        (DnsFamily::V4Only, [&[four], &[four], &[]]),
        (DnsFamily::V6Only, [&[six], &[], &[six]]),
    ] {
        for (name, expected) in ["both.test", "four_only.test", "six.test"].iter().zip(expected) {
            let dns = Dns { family, ..dns(server, &[name]) };
            let cluster = cluster("dns_families", Discovery::StrictDns(dns));
            let (tell, told) = oneshot::channel();
            let task = tokio::spawn(follow_announcing(cluster.clone(), tell));
            assert!(first_resolution(told).await);
            until_hosts(&cluster, expected).await;
            task.abort();
        }
    }
}

#[tokio::test]
async fn the_ttl_counts_only_when_asked_for() {
    let (server, zones) = name_server();
    zones.lock().unwrap().insert("a.test", has(&["127.0.0.1"]));
    let mut target = Target {
        name: dns(server, &["a.test"]).names.remove(0),
        addresses: Vec::new(),
        answered: false,
        failing: false,
        step: None,
        task: None,
    };
    for (respect_ttl, expected) in [(true, Duration::from_secs(3600)), (false, Duration::from_millis(2))] {
        let dns = Dns { respect_ttl, ..dns(server, &["a.test"]) };
        let cluster = cluster("dns_ttl", Discovery::StrictDns(dns.clone()));
        let resolver = Resolver { dns: dns.clone(), current: Mutex::default() };
        let answer = resolver.resolve(&"a.test".into()).await;
        assert_eq!(take_answer(&cluster, &dns, false, &mut target, answer), expected);
    }
}

#[test]
fn failures_back_off_up_to_the_cap() {
    let server = SocketAddr::from(([127, 0, 0, 1], 53));
    let mut dns = dns(server, &["a.test"]);
    let mut target = Target {
        name: dns.names.remove(0),
        addresses: Vec::new(),
        answered: false,
        failing: false,
        step: None,
        task: None,
    };
    assert_eq!(target.after_failure(&dns), dns.refresh);
    dns.failure_refresh = Some((Duration::from_millis(10), Duration::from_millis(35)));
    for bound in [10, 20, 35, 35] {
        let delay = target.after_failure(&dns);
        assert!(delay <= Duration::from_millis(bound) && !delay.is_zero(), "{delay:?}");
    }
}

#[tokio::test]
async fn start_up_hears_of_failures_too_and_literals_end_the_task() {
    let (server, _zones) = name_server();
    let failing = cluster("dns_first", Discovery::StrictDns(dns(server, &["", "not a name"])));
    let (tell, told) = oneshot::channel();
    let task = tokio::spawn(follow_announcing(failing.clone(), tell));
    assert!(first_resolution(told).await);
    assert!(stat(&failing, "update_failure") >= 2);
    task.abort();

    let literal = cluster("dns_literal", Discovery::LogicalDns(dns(server, &["::1"])));
    follow(literal.clone()).await;
    assert_eq!(addresses(&literal), ["[::1]:80"]);
    let fixed = cluster("dns_static", Discovery::Static);
    follow(fixed).await;
}

#[tokio::test(start_paused = true)]
async fn start_up_waits_five_seconds_at_most() {
    let (tell, told) = oneshot::channel();
    let start = tokio::time::Instant::now();
    assert!(!first_resolution(told).await);
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    drop(tell);
}

#[tokio::test]
async fn the_hosts_file_and_localhost_need_no_name_server() {
    // Nothing listens there.
    let server = SocketAddr::from(([127, 0, 0, 1], 1));
    let cluster = cluster("dns_localhost", Discovery::StrictDns(dns(server, &["localhost"])));
    let task = tokio::spawn(follow(cluster.clone()));
    until_hosts(&cluster, &["127.0.0.1:80"]).await;
    task.abort();
}
