//! A real load generator through the proxy to a real server: no error, and nothing counted twice or not at all.

use crate::differential::bootstrap::{origins, Bootstrap};
use crate::harness::client::get;
use crate::harness::proxy::Proxy;
use crate::harness::{alone, eventually, DEADLINE};
use crate::peers;
use crate::peers::servers::Server;

/// A number that stands before `word` in a text.
fn number_before(text: &str, word: &str) -> Option<u64> {
    text.split(word).next()?.split_whitespace().last()?.parse().ok()
}

/// Requests that this nginx has answered, without the question itself.
async fn answered(nginx: &Server) -> u64 {
    let page = get(nginx.port, "/status").await.expect("nginx's status page").text();
    // "server accepts handled requests" and below it the three numbers.
    let numbers = page.lines().nth(2).unwrap_or("");
    numbers.split_whitespace().nth(2).and_then(|n| n.parse::<u64>().ok()).expect("nginx's count")
}

#[tokio::test]
async fn wrk_sees_no_error_and_every_request_is_counted() {
    if !peers::have(&["wrk", "nginx"]) {
        return;
    }
    let _alone = alone().await;
    let nginx = Server::nginx("hello", None).await;
    let template = Bootstrap::new().plain("main", "").render();
    let proxy = Proxy::outrigger(&template, &origins(nginx.port, nginx.port)).await;
    let before = answered(&nginx).await;
    let seconds = "10";
    let output = tokio::process::Command::new(peers::find("wrk").expect("wrk"))
        .args(["-t1", "-c64", "--timeout", "5s", "-d", seconds])
        .arg(format!("http://127.0.0.1:{}/", proxy.port("main")))
        .output()
        .await
        .expect("wrk");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{report}");
    assert!(!report.contains("Socket errors"), "{report}");
    assert!(!report.contains("Non-2xx"), "{report}");
    let counted =
        number_before(&report, "requests in").unwrap_or_else(|| panic!("cannot read wrk: {report}"));
    assert!(counted > 1_000, "{report}");

    // wrk leaves its last requests unfinished; when they are over, proxy and server must agree to the request.
    let idle = || async { proxy.stats().await.get("http.main.downstream_rq_active") == Some(&0) };
    assert!(eventually(DEADLINE, idle).await, "requests are still active after wrk has gone");
    let stats = proxy.stats().await;
    let stat = |name: &str| *stats.get(name).unwrap_or_else(|| panic!("no stat {name}"));
    let received = answered(&nginx).await - before - 1;
    assert!((counted..=counted + 64).contains(&received), "wrk counted {counted}, nginx {received}");
    assert_eq!(
        stat("http.main.downstream_rq_total"),
        received,
        "requests from the client, requests at nginx"
    );
    assert_eq!(stat("cluster.a.upstream_rq_total"), received);
    assert_eq!(stat("http.main.downstream_rq_5xx"), 0);
    assert_eq!(stat("cluster.a.upstream_cx_connect_fail"), 0);
}
