//! nghttp2's load generator: many streams on few connections, few on many, over HTTP/2 on both sides.

use super::matrix::speaks;
use crate::differential::bootstrap::Bootstrap;
use crate::harness::proxy::Proxy;
use crate::harness::{alone, eventually, DEADLINE};
use crate::peers;
use crate::peers::servers::Server;

/// How many seconds a run lasts: `OUTRIGGER_H2LOAD_SECONDS`, else few.
fn seconds() -> u64 {
    std::env::var("OUTRIGGER_H2LOAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

/// The number before `word` in the line that begins with `line`.
fn number(report: &str, line: &str, word: &str) -> u64 {
    let line = report.lines().find(|l| l.starts_with(line)).unwrap_or("");
    let part = line.split(", ").find(|part| part.ends_with(word)).unwrap_or("");
    let number = part.split_whitespace().rev().nth(1).and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no {word} in {report}"))
}

#[tokio::test]
async fn h2load_sees_no_failed_stream() {
    if !peers::have(&["h2load", "nginx"]) {
        return;
    }
    let _alone = alone().await;
    let nginx = Server::nginx("hello", None).await;
    // Two hops in one process: HTTP/2 in, HTTP/2 between them, HTTP/1 to the server.
    let hop = "- name: all
  domains: ['*']
  routes:
  - { match: { prefix: / }, route: { cluster: h2 } }";
    let template = Bootstrap::new()
        .cluster("h2", &speaks("h2").replace("@h2@", "@port:second@"))
        .listener("first", "", hop)
        .plain("second", "")
        .render();
    let values = [("origin:a", nginx.port.to_string()), ("origin:b", nginx.port.to_string())];
    let proxy = Proxy::outrigger(&template, &values).await;
    let mut done = 0;
    for (connections, streams) in [("8", "16"), ("100", "10")] {
        let output = tokio::process::Command::new(peers::find("h2load").expect("h2load"))
            .args(["-c", connections, "-m", streams, "-t", "1", "-D", &seconds().to_string()])
            .arg(format!("http://127.0.0.1:{}/", proxy.port("first")))
            .output()
            .await
            .expect("h2load");
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{report}");
        assert_eq!(number(&report, "requests:", "failed"), 0, "{report}");
        assert_eq!(number(&report, "requests:", "errored"), 0, "{report}");
        assert_eq!(number(&report, "requests:", "timeout"), 0, "{report}");
        assert_eq!(number(&report, "status codes:", "5xx"), 0, "{report}");
        assert_eq!(number(&report, "status codes:", "4xx"), 0, "{report}");
        let good = number(&report, "status codes:", "2xx");
        eprintln!("{connections} connections, {streams} streams each: {good} requests");
        assert!(good > 500, "{report}");
        done += good;
    }
    let idle = || async { proxy.stats().await.get("http.first.downstream_rq_active") == Some(&0) };
    assert!(eventually(DEADLINE, idle).await, "requests are still active");
    let stats = proxy.stats().await;
    assert_eq!(stats["http.first.downstream_cx_http2_total"], 108);
    assert!(stats["http.first.downstream_rq_2xx"] >= done);
    assert_eq!(stats["http.first.downstream_rq_5xx"], 0);
    // What its clients leave behind does not cost a connection that others share.
    assert_eq!(stats["cluster.h2.upstream_cx_destroy_remote"], 0);
    assert_eq!(stats["cluster.h2.upstream_cx_protocol_error"], 0);
    assert!(stats["http.second.downstream_rq_http2_total"] >= done);
    let between = stats["cluster.h2.upstream_cx_http2_total"];
    assert!(between <= 16, "{between} connections between the hops");
}
