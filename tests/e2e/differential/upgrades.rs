//! WebSocket and CONNECT: accepted, refused, and not offered at all.

use super::bootstrap::Bootstrap;
use super::case::{case, After, Case, Step};
use super::Group;
use crate::harness::origin::{Answer, Then};

const CONNECT: &str = r"- name: connect
  domains: ['*']
  routes:
  - { match: { connect_matcher: {} }, route: { cluster: a, upgrade_configs: [ { upgrade_type: CONNECT } ] } }
  - { match: { prefix: / }, route: { cluster: a } }
";

const TERMINATE: &str = r"- name: terminate
  domains: ['*']
  routes:
  - { match: { connect_matcher: {}, headers: [ { name: x-to, string_match: { exact: refused } } ] }, route: { cluster: refused, upgrade_configs: [ { upgrade_type: CONNECT, connect_config: {} } ] } }
  - { match: { connect_matcher: {}, headers: [ { name: x-to, string_match: { exact: empty } } ] }, route: { cluster: empty, upgrade_configs: [ { upgrade_type: CONNECT, connect_config: {} } ] } }
  - { match: { connect_matcher: {} }, route: { cluster: a, upgrade_configs: [ { upgrade_type: CONNECT, connect_config: {} } ] } }
  - { match: { prefix: / }, route: { cluster: a } }
";

const PER_ROUTE: &str = r"- name: routes
  domains: ['*']
  routes:
  - { match: { prefix: /off }, route: { cluster: a, upgrade_configs: [ { upgrade_type: websocket, enabled: false } ] } }
  - { match: { prefix: / }, route: { cluster: a } }
";

pub fn group() -> Group {
    let bootstrap = Bootstrap::new()
        .plain("plain", "")
        .listener("websocket", "upgrade_configs: [ { upgrade_type: websocket } ]", PER_ROUTE)
        .listener("connect", "", CONNECT)
        .listener("terminate", "", TERMINATE);
    Group { bootstrap, cases: cases() }
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn accepted() -> Answer {
    Answer::raw(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    )
    .then(Then::Echo)
}

fn cases() -> Vec<Case> {
    vec![
        case("websocket", "upgrade accepted")
            .get("/ws", UPGRADE)
            .answers(accepted())
            .step(Step::Tunnel(b"\x81\x05hello\0\r\n\r\n".to_vec()))
            .step(Step::Finish)
            .after(After::Close),
        case("websocket", "upgrade in other cases")
            .get("/ws", "connection: keep-alive, UPGRADE\r\nupgrade: WebSocket\r\n")
            .answers(accepted())
            .step(Step::Tunnel(b"hello".to_vec()))
            .step(Step::Finish)
            .after(After::Close),
        case("websocket", "upgrade refused by the origin").get("/ws", UPGRADE).answers(Answer::status(
            403,
            "Forbidden",
            "no",
        )),
        case("websocket", "upgrade answered with 200").get("/ws", UPGRADE),
        case("websocket", "upgrade that is off for the route").get("/off", UPGRADE),
        case("websocket", "upgrade of another type").get("/x", "Connection: Upgrade\r\nUpgrade: other\r\n"),
        case("websocket", "upgrade without a connection header").get("/x", "Upgrade: websocket\r\n"),
        case("websocket", "connection: upgrade without an upgrade").get("/x", "Connection: Upgrade\r\n"),
        case("plain", "upgrade that is not offered").get("/ws", UPGRADE),
        case("plain", "tls upgrade that is not offered")
            .get("/", "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n"),
        case("websocket", "upgrade with a body")
            .send("POST", "/ws", UPGRADE, "hello")
            .answers(Answer::status(403, "Forbidden", "no").at_head().then(Then::Close))
            .after(After::Nothing),
        case("connect", "connect passed on")
            .raw("CONNECT t.test:443 HTTP/1.1\r\nHost: t.test:443\r\n\r\n")
            .answers(Answer::raw("HTTP/1.1 200 OK\r\n\r\n").then(Then::Echo))
            .answers_head()
            .step(Step::Tunnel(b"hello".to_vec()))
            .step(Step::Finish)
            .after(After::Close),
        case("connect", "connect refused by the origin")
            .raw("CONNECT t.test:443 HTTP/1.1\r\nHost: t.test:443\r\n\r\n")
            .answers(Answer::status(403, "Forbidden", "no")),
        case("terminate", "connect ended here, with its payload at once")
            .raw("CONNECT t.test:443 HTTP/1.1\r\nHost: t.test:443\r\n\r\nGET /early HTTP/1.1\r\nhost: x\r\n")
            .answers_head()
            .step(Step::Tunnel(b"x-pad: 12345678901234567890123456789\r\n\r\n".to_vec()))
            .after(After::Nothing)
            .lines(0),
        case("terminate", "connect ended here, the host refuses")
            .raw("CONNECT t.test:443 HTTP/1.1\r\nHost: t.test:443\r\nx-to: refused\r\n\r\n"),
        case("terminate", "connect ended here, no host")
            .raw("CONNECT t.test:443 HTTP/1.1\r\nHost: t.test:443\r\nx-to: empty\r\n\r\n"),
        case("terminate", "another method where connect ends").get("/x", ""),
        // The last: what it leaves unfinished is noted by the origin when its connection ends.
        case("terminate", "connect ended here")
            .raw("CONNECT t.test:443 HTTP/1.1\r\nHost: t.test:443\r\n\r\n")
            .answers_head()
            .step(Step::Tunnel(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP".to_vec()))
            .after(After::Nothing)
            .lines(0),
    ]
}
