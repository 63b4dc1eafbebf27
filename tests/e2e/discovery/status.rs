//! What metrics and the admin port say of discovery.

use serde_json::Value;

use super::clients::{ask, named};
use super::mesh::{ControlPlane, Mesh};
use super::misbehaviour::impatient;
use crate::harness::ports::free_port;
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, DEADLINE};

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

async fn page(proxy: &Proxy) -> Value {
    serde_json::from_str(&proxy.admin("/discovery?format=json").await).expect("JSON")
}

fn of_type<'a>(page: &'a Value, url: &str) -> &'a Value {
    let types = page["streams"][0]["types"].as_array().map(Vec::as_slice).unwrap_or_default();
    types.iter().find(|status| status["type_url"] == url).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn the_admin_port_and_metrics_tell_how_old_content_is_what_was_refused_and_why_streams_end() {
    let one = named("one").await;
    let port = free_port();
    let mut mesh = Mesh::simple(port, &[one.port()]);
    let control = ControlPlane::start(&mesh).await;
    let place = control.port;
    let proxy = Proxy::outrigger(&impatient(true), &[("control", place.to_string())]).await;
    assert_eq!(ask(port).await.as_deref(), Ok("one"));
    let there = || async { of_type(&page(&proxy).await, CDS)["accepted"] == 1 };
    assert!(eventually(DEADLINE, there).await, "{}", page(&proxy).await);
    let first = page(&proxy).await;
    assert_eq!(first["streams"].as_array().map(Vec::len), Some(1));
    assert_eq!(first["streams"][0]["source"], "ads");
    assert_eq!(first["streams"][0]["connected"], true);
    assert_eq!(of_type(&first, CDS)["resources"], 1);
    assert_eq!(of_type(&first, CDS)["wildcard"], true);
    // Ages grow while nothing comes, those of the types and that of the cluster that was called.
    let ages = [
        "control_plane.cds.content_age_ms",
        "control_plane.eds.content_age_ms",
        "control_plane.lds.content_age_ms",
        "control_plane.rds.content_age_ms",
        "http.main.rds.main.content_age_ms",
        "cluster.web.content_age_ms",
    ];
    let old = || async {
        let stats = proxy.stats().await;
        ages.iter().all(|name| stats.get(*name).is_some_and(|age| *age > 2000))
    };
    assert!(eventually(DEADLINE, old).await, "{:?}", proxy.stats().await);
    // What is read once a second may be a second late.
    let stats = proxy.stats().await;
    assert!(stats["control_plane.silence_ms"] < 3500, "keepalives are answered: {stats:?}");

    // An update makes one type young again.
    mesh.services.insert("web".into(), vec![one.port(), one.port() + 1]);
    control.set(&mesh);
    let young = || async {
        let stats = proxy.stats().await;
        stats["cluster.web.content_age_ms"] < 2000 && stats["control_plane.eds.content_age_ms"] < 2000
    };
    assert!(eventually(DEADLINE, young).await, "{:?}", proxy.stats().await);
    assert!(proxy.stats().await["control_plane.cds.content_age_ms"] > 2000);
    let times = proxy.admin("/stats?filter=control_plane.eds.time_to_effect_us").await;
    assert!(times.contains("P99("), "{times}");

    // A refusal.
    mesh.services.insert("web".into(), vec![one.port()]);
    mesh.cluster_extra.insert("web".into(), "connection_pool_per_downstream_connection: true".into());
    control.set(&mesh);
    let refused = || async { of_type(&page(&proxy).await, CDS)["refused"] == 1 };
    assert!(eventually(DEADLINE, refused).await, "{}", page(&proxy).await);
    let message = of_type(&page(&proxy).await, CDS)["last_refused"]["message"].to_string();
    assert!(message.contains("connection_pool_per_downstream_connection"), "{message}");
    let text = proxy.admin("/discovery").await;
    assert!(text.starts_with("ads: connected, last heard "), "{text}");
    assert!(
        text.contains("last refused: ") && text.contains("connection_pool_per_downstream_connection"),
        "{text}"
    );
    let dump = proxy.admin("/config_dump").await;
    assert!(dump.contains("\"client_status\": \"NACKED\""), "{dump}");

    // The end of a stream.
    drop(control);
    let lost = || async {
        let page = page(&proxy).await;
        page["streams"][0]["connected"] == false && page["streams"][0]["last_end"]["reason"].is_string()
    };
    assert!(eventually(DEADLINE, lost).await, "{}", page(&proxy).await);
    assert!(proxy.admin("/discovery").await.contains("ads: not connected"));
    let stats = proxy.stats().await;
    assert_eq!(stats["control_plane.connected_state"], 0);
    assert!(stats["cluster_manager.cds.update_failure"] >= 1);
    assert_eq!(stats["cluster_manager.cds.update_rejected"], 1);
    assert_eq!(ask(port).await.as_deref(), Ok("one"));
}
