//! Questions that the service has not begun with are sent again: nobody is denied because a connection was closed.

use super::super::bootstrap::{endpoints, origins, Bootstrap};
use super::super::filters::{filter, host};
use super::super::grpc_service::HTTP2;
use super::{plain, KIND};
use crate::harness::client::Client;
use crate::harness::http2;
use crate::harness::origin::{Answer, Origin, Then};
use crate::harness::proxy::Proxy;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

/// The statuses of `n` requests, one after the other.
async fn statuses(options: &str, options_of_cluster: &str, service: u16, n: usize) -> Vec<u16> {
    let template = Bootstrap::new()
        .cluster("authz", &format!("{}\n{options_of_cluster}", endpoints(&["@origin:b@"])))
        .listener("main", "", &host("", &plain("/")))
        .filters("main", &filter("authz", KIND, options))
        .render();
    let a = Origin::start().await;
    let proxy = Proxy::outrigger(&template, &origins(a.port(), service)).await;
    let mut client = Client::connect(proxy.port("main")).await.expect("a connection");
    let mut statuses = Vec::new();
    for _ in 0..n {
        let answer = client.exchange(b"GET / HTTP/1.1\r\nHost: t.test\r\n\r\n").await.expect("an answer");
        statuses.push(answer.status());
    }
    statuses
}

#[tokio::test]
async fn kept_connection_is_closed() {
    let service = Origin::start().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    service.answer(move |_| match counted.fetch_add(1, Ordering::Relaxed) {
        // As a server that closes an idle connection just when the next question is on its way.
        1 => Answer::raw("").then(Then::Close),
        _ => Answer::ok("fine"),
    });
    let options = "http_service: { server_uri: { uri: 'http://authz.test', cluster: authz, timeout: 5s } }";
    assert_eq!(statuses(options, "", service.port(), 2).await, [200, 200]);
    assert_eq!(asked.load(Ordering::Relaxed), 3, "the second was asked twice");
}

#[tokio::test]
async fn stream_is_refused() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let port = http2::serve(move |request, mut respond| {
        let first = counted.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            if first {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                return;
            }
            let mut body = request.into_body();
            while let Some(Ok(piece)) = body.data().await {
                let _ = body.flow_control().release_capacity(piece.len());
            }
            let head = http::Response::builder().header("content-type", "application/grpc");
            let Ok(mut stream) = respond.send_response(head.body(()).expect("a head"), false) else { return };
            // A CheckResponse without fields: status 0, which allows.
            let _ = stream.send_data(bytes::Bytes::from_static(&[0; 5]), false);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            let _ = stream.send_trailers(trailers);
        }
    })
    .await;
    let options = "grpc_service: { envoy_grpc: { cluster_name: authz }, timeout: 5s }";
    assert_eq!(statuses(options, HTTP2, port, 1).await, [200]);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}
