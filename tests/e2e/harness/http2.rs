//! An HTTP/2 origin server in the test's own process, and clusters that speak HTTP/2.

use std::future::Future;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::RecvStream;
use http::Request;
use tokio::net::TcpListener;

/// What makes a cluster speak HTTP/2, as text of the cluster, without indentation.
pub const OPTIONS: &str = r#"typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: { http2_protocol_options: {} }
"#;

/// An entry of `clusters` in a bootstrap: one endpoint at `port` of loopback, spoken to in HTTP/2.
pub fn cluster(name: &str, port: &str) -> String {
    let options = OPTIONS.lines().map(|line| format!("    {line}\n")).collect::<String>();
    format!(
        "  - name: {name}\n    type: STATIC\n    connect_timeout: 1s\n{options}    load_assignment:\n      \
         cluster_name: {name}\n      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: \
         {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}]\n"
    )
}

/// Serves each stream with `each`, and returns the port.
pub async fn serve<F, Fut>(each: F) -> u16
where
    F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let each = each.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(each(request, respond));
                }
            });
        }
    });
    port
}
