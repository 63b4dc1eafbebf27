//! Generic secrets that a control plane sends after a route or a filter wants them: until then nobody logs in.

use super::mesh::{bootstrap, snapshot, ControlPlane, Mesh};
use super::secrets::indented;
use crate::harness::client::get;
use crate::harness::origin::Origin;
use crate::harness::ports::free_port;
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, DEADLINE};
use outrigger_control_api::server::ResourceType;

const OAUTH2: &str = "type.googleapis.com/envoy.extensions.filters.http.oauth2.v3";

/// Where secrets are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Route,
    /// A virtual host that comes by itself.
    VirtualHost,
    /// A filter that comes by itself.
    Filter,
}

/// A listener waits this long for the secrets of its filters.
const SOURCE: &str = "{ resource_api_version: V3, ads: {}, initial_fetch_timeout: 1s }";

/// A mesh in which something logs in with secrets of the stream that it came by.
fn resources(place: Place, port: u16, origin: u16, secrets: &[(&str, &str)]) -> Vec<String> {
    let mesh = Mesh::simple(port, &[origin]);
    let mut resources = mesh.resources();
    let config = format!(
        "config: {{ token_endpoint: {{ uri: 'http://login.test/token', cluster: web, timeout: 1s }}, authorization_endpoint: 'https://login.test/auth', redirect_uri: 'https://a.test/callback', redirect_path_matcher: {{ path: {{ exact: /callback }} }}, signout_path: {{ path: {{ exact: /signout }} }}, credentials: {{ client_id: me, token_secret: {{ name: token, sds_config: {SOURCE} }}, hmac_secret: {{ name: hmac, sds_config: {SOURCE} }} }} }}"
    );
    let route =
        format!("typed_per_filter_config: {{ oauth: {{ \"@type\": {OAUTH2}.OAuth2PerRoute, {config} }} }}\n");
    for text in &mut resources {
        if text.contains("listener.v3.Listener") {
            let own = match place {
                Place::Filter => {
                    format!("config_discovery: {{ config_source: {SOURCE}, type_urls: [{OAUTH2}.OAuth2] }}")
                }
                _ => format!("typed_config: {{ \"@type\": {OAUTH2}.OAuth2 }}"),
            };
            let filter = format!("      http_filters:\n      - name: oauth\n        {own}\n");
            *text = text.replace("      http_filters:\n", &filter);
        }
        if text.contains("RouteConfiguration") {
            match place {
                Place::Route => *text += &format!("    {route}"),
                Place::VirtualHost => {
                    *text = format!(
                        "\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\nname: main\nvhds: {{ config_source: {SOURCE} }}\n"
                    );
                }
                Place::Filter => {}
            }
        }
    }
    match place {
        Place::Route => {}
        Place::VirtualHost => resources.push(format!(
            "\"@type\": type.googleapis.com/envoy.config.route.v3.VirtualHost\nname: main/all\ndomains: [\"*\"]\nroutes:\n- match: {{ prefix: / }}\n  route: {{ cluster: web }}\n  {route}"
        )),
        Place::Filter => resources.push(format!(
            "\"@type\": type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig\nname: oauth\ntyped_config: {{ \"@type\": {OAUTH2}.OAuth2, {config} }}\n"
        )),
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

async fn secrets_come_later(place: Place, delta: bool) {
    let origin = Origin::start().await;
    let port = free_port();
    let of = |secrets: &[(&str, &str)]| snapshot(&resources(place, port, origin.port(), secrets));
    let control = ControlPlane::on(0, of(&[])).await;
    let proxy = Proxy::outrigger(&bootstrap(delta), &[("control", control.port.to_string())]).await;
    let asked = || async {
        let streams = control.cache.streams();
        let asked = streams.iter().flat_map(|stream| &stream.types).find(|t| t.kind == ResourceType::SECRET);
        asked.is_some() && status(port).await == 503
    };
    let waits = eventually(DEADLINE * 2, asked).await;
    assert!(waits, "{place:?}: {} {} {:?}", status(port).await, proxy.output(), control.refused());
    control.cache.set("sidecar", of(&[("token", "first")]));
    assert!(control.settled(&ResourceType::SECRET).await);
    assert_eq!(status(port).await, 503, "one of two");
    control.cache.set("sidecar", of(&[("token", "first"), ("hmac", "very-secret")]));
    let served = eventually(DEADLINE, || async { status(port).await == 302 }).await;
    assert!(served, "{place:?}: {} {:?}", proxy.output(), control.refused());
    let dump = proxy.admin("/config_dump").await;
    assert!(dump.contains("[redacted]") && !dump.contains("very-secret"), "{dump}");
    assert!(!proxy.output().contains("very-secret"));
    assert_eq!(control.refused(), []);
}

#[tokio::test]
async fn secrets_of_routes_come_delta() {
    secrets_come_later(Place::Route, true).await;
}

#[tokio::test]
async fn secrets_of_routes_come_state_of_the_world() {
    secrets_come_later(Place::Route, false).await;
}

#[tokio::test]
async fn secrets_of_virtual_hosts_that_come_by_themselves_come() {
    secrets_come_later(Place::VirtualHost, true).await;
}

#[tokio::test]
async fn secrets_of_filters_that_come_by_themselves_come() {
    for delta in [true, false] {
        secrets_come_later(Place::Filter, delta).await;
    }
}
