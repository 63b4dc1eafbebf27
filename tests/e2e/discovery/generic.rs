//! Generic secrets that a control plane sends after a route wants them: until then nobody logs in.

use super::mesh::{bootstrap, snapshot, ControlPlane, Mesh};
use super::secrets::indented;
use crate::harness::client::get;
use crate::harness::origin::Origin;
use crate::harness::ports::free_port;
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, DEADLINE};
use outrigger_control_api::server::ResourceType;

const OAUTH2: &str = "type.googleapis.com/envoy.extensions.filters.http.oauth2.v3";

/// A route table whose routes log in with secrets of the stream that it came by.
fn resources(port: u16, origin: u16, secrets: &[(&str, &str)]) -> Vec<String> {
    let mesh = Mesh::simple(port, &[origin]);
    let mut resources = mesh.resources();
    let sds = "sds_config: { resource_api_version: V3, ads: {}, initial_fetch_timeout: 0s }";
    for text in &mut resources {
        if text.contains("listener.v3.Listener") {
            let filter = format!("      http_filters:\n      - name: oauth\n        typed_config: {{ \"@type\": {OAUTH2}.OAuth2 }}\n");
            *text = text.replace("      http_filters:\n", &filter);
        }
        if text.contains("RouteConfiguration") {
            *text += &format!(
                "    typed_per_filter_config: {{ oauth: {{ \"@type\": {OAUTH2}.OAuth2PerRoute, config: {{ token_endpoint: {{ uri: 'http://login.test/token', cluster: web, timeout: 1s }}, authorization_endpoint: 'https://login.test/auth', redirect_uri: 'https://a.test/callback', redirect_path_matcher: {{ path: {{ exact: /callback }} }}, signout_path: {{ path: {{ exact: /signout }} }}, credentials: {{ client_id: me, token_secret: {{ name: token, {sds} }}, hmac_secret: {{ name: hmac, {sds} }} }} }} }} }}\n"
            );
        }
    }
    resources.extend(secrets.iter().map(|(name, text)| {
        format!(
            "\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\nname: {name}\ngeneric_secret:\n  secret:\n    inline_string: |\n{}",
            indented(text)
        )
    }));
    resources
}

async fn status(port: u16) -> u16 {
    get(port, "/").await.map_or(0, |answer| answer.status())
}

async fn secrets_of_routes(delta: bool) {
    let origin = Origin::start().await;
    let port = free_port();
    let of = |secrets: &[(&str, &str)]| snapshot(&resources(port, origin.port(), secrets));
    let control = ControlPlane::on(0, of(&[])).await;
    let proxy = Proxy::outrigger(&bootstrap(delta), &[("control", control.port.to_string())]).await;
    let waits = eventually(DEADLINE * 2, || async { status(port).await == 503 }).await;
    assert!(waits, "{} {:?}", proxy.output(), control.refused());
    control.cache.set("sidecar", of(&[("token", "first")]));
    assert!(control.settled(&ResourceType::SECRET).await);
    assert_eq!(status(port).await, 503, "one of two");
    control.cache.set("sidecar", of(&[("token", "first"), ("hmac", "very-secret")]));
    let served = eventually(DEADLINE, || async { status(port).await == 302 }).await;
    assert!(served, "{} {:?}", proxy.output(), control.refused());
    let dump = proxy.admin("/config_dump").await;
    assert!(dump.contains("[redacted]") && !dump.contains("very-secret"), "{dump}");
    assert!(!proxy.output().contains("very-secret"));
    assert_eq!(control.refused(), []);
}

#[tokio::test]
async fn secrets_of_routes_come_delta() {
    secrets_of_routes(true).await;
}

#[tokio::test]
async fn secrets_of_routes_come_state_of_the_world() {
    secrets_of_routes(false).await;
}
