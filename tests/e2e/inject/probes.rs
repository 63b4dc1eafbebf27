//! Probes of the application, answered by the sidecar with what the application says.

use crate::differential::bootstrap::{origins, Bootstrap};
use crate::harness::client::get;
use crate::harness::origin::{Answer, Origin};
use crate::harness::ports::free_port;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::tls::certs::Certs;
use serde_json::json;
use std::ffi::OsString;

#[tokio::test]
async fn kubelet_hears_from_the_sidecar_what_the_application_says() {
    let application = Origin::with(false, |message| match message.target() {
        "/live?full=1" if message.header("x-probe") == Some("yes") => Answer::ok("fine"),
        "/moved" => Answer::raw("HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n"),
        "/starting" => {
            Answer::raw("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        }
        _ => Answer::raw("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"),
    })
    .await;
    let (port, closed) = (application.port(), free_port());
    let grpc = crate::health::checks::http2_origin().await;
    let certs = Certs::new();
    let secured = secured(&certs).await;
    let http = |path: &str| json!({"httpGet": {"path": path, "port": port}, "timeoutSeconds": 2});
    let mut live = http("/live?full=1");
    live["httpGet"]["httpHeaders"] = json!([{"name": "X-Probe", "value": "yes"}]);
    let table = json!({
        "app/livez": live,
        "app/readyz": http("/not"),
        "app/startupz": http("/starting"),
        "other/livez": http("/moved"),
        "tcp/livez": {"tcpSocket": {"port": port}, "timeoutSeconds": 1},
        "tcp/readyz": {"tcpSocket": {"port": closed}, "timeoutSeconds": 1},
        "grpc/livez": {"grpc": {"port": closed, "service": ""}, "timeoutSeconds": 1},
        "grpc/readyz": {"grpc": {"port": grpc, "service": ""}, "timeoutSeconds": 1},
        "grpc/startupz": {"grpc": {"port": grpc, "service": "sick"}, "timeoutSeconds": 1},
        "unknown/livez": {"grpc": {"port": grpc, "service": "none"}, "timeoutSeconds": 1},
        "tls/livez": {"httpGet": {"path": "/", "port": secured.port(), "scheme": "HTTPS"}, "timeoutSeconds": 2},
        "odd/livez": http("/a b"),
    });
    let template = Bootstrap::new().plain("main", "").render();
    let values = origins(port, port);
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    let variable = format!("OUTRIGGER_APP_PROBES={table}");
    let program = ["env", &variable, env!("CARGO_BIN_EXE_outrigger"), "run"];
    plan.program = Some(program.map(OsString::from).to_vec());
    let ours = free_port();
    let number = ours.to_string();
    let flags = ["--probe-port", &number];
    plan.arguments = &flags;
    let _proxy = Proxy::start(plan).await;
    for (path, wanted, says) in [
        ("app/livez", 200, "200"),
        ("app/readyz", 500, "the application said 500"),
        ("app/startupz", 200, "200"),
        ("other/livez", 200, "302"),
        ("tcp/livez", 200, "200"),
        ("tcp/readyz", 503, "refused"),
        ("grpc/livez", 503, "refused"),
        ("grpc/readyz", 200, "200"),
        ("grpc/startupz", 503, "not SERVING"),
        ("unknown/livez", 503, "gRPC status 5"),
        ("tls/livez", 200, "200"),
        ("odd/livez", 503, "cannot be asked for"),
        ("app/nothing", 404, "no probe"),
    ] {
        let answer = get(ours, &format!("/app-health/{path}")).await.expect("an answer");
        assert_eq!(answer.status(), wanted, "{path}: {}", answer.text());
        assert!(answer.text().contains(says), "{path}: {}", answer.text());
    }
}

/// An application that speaks TLS: a second proxy.
async fn secured(certs: &Certs) -> Secured {
    use crate::tls::config::{http, Config, OK};
    let socket = r#"transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {tls_certificates: [{certificate_chain: {filename: "@certs@/server.pem"}, private_key: {filename: "@certs@/server.key"}}]}}}"#;
    let chain = format!("[{{filters: [{}], {socket}}}]", http("secured", "", OK));
    let config = Config::default().listener("secured", "[]", &chain);
    Secured(Proxy::outrigger(&config.template(), &config.values(certs.path())).await)
}

struct Secured(Proxy);

impl Secured {
    fn port(&self) -> u16 {
        self.0.port("secured")
    }
}
