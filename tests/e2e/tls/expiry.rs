//! What is told of certificates that expire, beside Envoy with the same ones.

use std::collections::BTreeMap;

use serde_json::Value;

use super::certs::{put, Certs};
use super::config::{mesh, own, spiffe, trust_domain, upstream, Config};
use super::origin::{Manner, TlsOrigin};
use crate::harness::client::get;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::peers;

#[derive(Debug, PartialEq)]
struct Told {
    certificates: Vec<Value>,
    gauges: BTreeMap<String, u64>,
}

async fn told(certs: &Certs, kind: Kind, config: &Config) -> Told {
    let proxy = Proxy::start(Plan::new(kind, &config.template(), &config.values(certs.path()))).await;
    assert_eq!(get(proxy.port("good"), "/").await.expect("an answer").status(), 200);
    let page: Value = serde_json::from_str(&proxy.admin("/certs").await).expect("JSON");
    let mut certificates = page["certificates"].as_array().expect("a list").clone();
    for context in &mut certificates {
        let context = context.as_object_mut().expect("an object");
        for list in ["ca_cert", "cert_chain"] {
            let list = context.entry(list).or_insert_with(|| Value::Array(Vec::new()));
            list.as_array_mut().expect("a list").sort_by_key(Value::to_string);
        }
    }
    certificates.sort_by_key(Value::to_string);
    let gauges = proxy.stats().await.into_iter();
    let gauges = gauges.filter(|(name, _)| name.contains("expir") && !name.contains("ocsp")).collect();
    Told { certificates, gauges }
}

#[tokio::test]
async fn certificates_in_use_are_told_as_by_envoy() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let certs = Certs::new();
    // This one is the first to expire of all.
    let soon = certs.ca.issue("soon", "spiffe://mesh.test/soon", &["soon.mesh.test"], (2020, 2101), 21);
    put(certs.path(), "soon", &soon);
    let origin = TlsOrigin::start(certs.path(), "server", Manner::default()).await;
    let domain = spiffe(&format!("trust_domains: [{}]", trust_domain("mesh.test", "ca.pem")), "");
    let config = Config::default()
        .ends("strict", "", &mesh(), "require_client_certificate: true,")
        .ends("workload", "", &domain, "")
        .cluster("good", origin.port, &upstream(&format!("{} {}", own("soon"), mesh()), ""), "");
    let (ours, theirs) =
        tokio::join!(told(&certs, Kind::Outrigger, &config), told(&certs, Kind::Envoy, &config));
    assert!(ours.gauges["server.days_until_first_cert_expiring"] > 10_000, "{ours:?}");
    assert_eq!(ours, theirs, "left is ours, right Envoy's");
}
