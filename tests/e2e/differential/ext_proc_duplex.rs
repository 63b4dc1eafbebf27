//! `envoy.filters.http.ext_proc` with bodies that the processor takes and gives as it likes: what passes does not depend on
//! how they come in pieces. Messages are not counted.

use super::bootstrap::{endpoints, Bootstrap};
use super::case::{case, Case};
use super::ext_proc::{body, changes, header, immediate, of_trailers, processor, said, seen, Does};
use super::ext_proc_streams::{origin, TRAILERS, TRAILERS_UPSTREAM};
use super::filters::{check_but, filter};
use super::grpc_service::HTTP2;
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{settled, DEADLINE};
use crate::peers;
use bytes::Bytes;
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Ask;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Says;
use tokio::net::{TcpListener, TcpStream};

/// Pieces of a swarm.
pub const SWARM: usize = 120_000;

/// What a processor has been given of one side.
#[derive(Default)]
pub(super) struct Given {
    head: Option<pb::HttpHeaders>,
    body: Vec<u8>,
    of_response: bool,
    ended: bool,
}

impl Given {
    /// What it does with a message: the path tells.
    pub(super) fn answers(&mut self, path: &str, ask: &Ask) -> Vec<Does> {
        let word = path.split(['/', '?']).nth(1).unwrap_or_default();
        let (head, piece, trailers) = match ask {
            Ask::RequestHeaders(head) | Ask::ResponseHeaders(head) => (Some(head), None, None),
            Ask::RequestBody(piece) | Ask::ResponseBody(piece) => (None, Some(piece), None),
            Ask::RequestTrailers(trailers) | Ask::ResponseTrailers(trailers) => (None, None, Some(trailers)),
        };
        self.of_response |=
            matches!(ask, Ask::ResponseHeaders(_) | Ask::ResponseBody(_) | Ask::ResponseTrailers(_));
        let ends = piece.is_some_and(|piece| piece.end_of_stream);
        let done = ends || trailers.is_some();
        self.body.extend(piece.iter().flat_map(|piece| &piece.body));
        if let Some(head) = head {
            self.head = Some(head.clone());
        }
        let with_trailers = |mut all: Vec<Does>, this: &Self| {
            all.extend(trailers.map(|trailers| this.trailers(word, trailers)));
            all
        };
        match word {
            "hold" if head.is_some_and(|head| !head.end_of_stream) => Vec::new(),
            "hold" if done => {
                let whole = self.body.to_ascii_uppercase();
                with_trailers(vec![self.head(None), self.piece(&whole, ends)], self)
            }
            "early" if head.is_some_and(|head| !head.end_of_stream) => vec![self.piece(b"early", false)],
            "replace" if head.is_some() => {
                vec![self.head(Some(("instead", pb::common_response::ResponseStatus::ContinueAndReplace)))]
            }
            "deny-head" if head.is_some() => vec![said(immediate(418, None, "teapot"))],
            "deny" if piece.is_some() => vec![said(immediate(418, None, "teapot"))],
            "deny-late" if done => vec![said(immediate(418, None, "teapot"))],
            "end-head" if head.is_some() => vec![Does::Ends(0)],
            "fail-head" if head.is_some() => vec![Does::Ends(13)],
            "stall" if piece.is_some() => vec![Does::Waits],
            "end" if piece.is_some() => vec![Does::Ends(0)],
            "fail" if piece.is_some() => vec![Does::Ends(13)],
            "ordinary" if piece.is_some() => vec![self.body(body("ordinary"))],
            "nothing" if piece.is_some() => vec![self.body(None)],
            "again" if piece.is_some() => vec![self.head(None)],
            _ if head.is_some() => vec![self.head(None)],
            "hold" | "rewrite" | "swallow" | "swarm" | "trailers" | "deny-late" if !done => Vec::new(),
            "rewrite" => {
                let text = format!("{} bytes", self.body.len());
                with_trailers(
                    vec![self.piece(text.as_bytes(), false), self.piece(b", rewritten", ends)],
                    self,
                )
            }
            // More messages than a library keeps for who does not read them.
            "swarm" => {
                let mut all: Vec<Does> = (0..SWARM).map(|_| self.piece(b"0123456789", false)).collect();
                all.push(self.piece(b"", true));
                all
            }
            "swallow" => with_trailers(vec![self.piece(b"", ends)], self),
            "trailers" if ends => vec![self.piece(b"", true)],
            "split" => {
                let piece = piece.map(|piece| piece.body.clone()).unwrap_or_default();
                let mut all: Vec<Does> =
                    piece.chunks((piece.len() / 5).max(2)).map(|part| self.piece(part, false)).collect();
                if ends {
                    all.push(self.piece(b"", true));
                }
                with_trailers(all, self)
            }
            "enough" if !self.ended && piece.is_some_and(|piece| !piece.body.is_empty()) => {
                self.ended = true;
                vec![self.piece(b"enough", true)]
            }
            "enough" => Vec::new(),
            _ => {
                let echo = piece.map(|piece| self.piece(&piece.body, ends));
                with_trailers(echo.into_iter().collect(), self)
            }
        }
    }

    fn head(&self, replaced: Option<(&str, pb::common_response::ResponseStatus)>) -> Does {
        let name = if self.of_response { "x-seen-too" } else { "x-seen" };
        let seen = self.head.as_ref().map(seen).unwrap_or_default();
        let mut common = pb::CommonResponse {
            header_mutation: changes(vec![header(name, &seen)], &[]),
            ..pb::CommonResponse::default()
        };
        if let Some((text, status)) = replaced {
            (common.status, common.body_mutation) = (status.into(), body(text));
        }
        let headers = pb::HeadersResponse { response: Some(common) };
        said(if self.of_response { Says::ResponseHeaders(headers) } else { Says::RequestHeaders(headers) })
    }

    fn body(&self, body_mutation: Option<pb::BodyMutation>) -> Does {
        let common = pb::CommonResponse { body_mutation, ..pb::CommonResponse::default() };
        let body = pb::BodyResponse { response: Some(common) };
        said(if self.of_response { Says::ResponseBody(body) } else { Says::RequestBody(body) })
    }

    fn piece(&self, body: &[u8], end_of_stream: bool) -> Does {
        let piece = pb::StreamedBodyResponse { body: body.to_vec(), end_of_stream };
        self.body(Some(pb::BodyMutation { mutation: Some(Mutation::StreamedResponse(piece)) }))
    }

    fn trailers(&self, word: &str, trailers: &pb::HttpTrailers) -> Does {
        let answer = of_trailers(if word == "split" { "trail" } else { word }, trailers);
        said(if self.of_response { Says::ResponseTrailers(answer) } else { Says::RequestTrailers(answer) })
    }
}

#[tokio::test]
async fn processor_that_takes_and_gives() {
    let port = processor().await;
    let options =
        |more: &str| format!("grpc_service: {{ envoy_grpc: {{ cluster_name: proc }}, timeout: 5s }}{more}");
    let request = "request_body_mode: FULL_DUPLEX_STREAMED, request_trailer_mode: SEND";
    let response = "response_body_mode: FULL_DUPLEX_STREAMED, response_trailer_mode: SEND";
    let routes = "[ { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: 'ten bytes!' } } }, { match: { prefix: / }, route: { cluster: a-t } } ]";
    let hosts = format!("- {{ name: all, domains: ['*'], routes: {routes} }}");
    let mut bootstrap = Bootstrap::new()
        .cluster("proc", &format!("{}\n{HTTP2}", endpoints(&[&port.to_string()])))
        .origin("a-t", TRAILERS_UPSTREAM);
    for (name, more) in [
        ("request", format!(", processing_mode: {{ {request}, response_header_mode: SKIP }}")),
        ("response", format!(", processing_mode: {{ {response}, request_header_mode: SKIP }}")),
        ("both", format!(", processing_mode: {{ {request}, {response} }}, allow_mode_override: true")),
        ("bodies", format!(", processing_mode: {{ {request}, {response}, request_header_mode: SKIP, response_header_mode: SKIP }}")),
        ("open", format!(", failure_mode_allow: true, processing_mode: {{ {request}, {response} }}")),
    ] {
        bootstrap = bootstrap
            .listener(name, TRAILERS, &hosts)
            .filters(name, &filter("proc", "ext_proc.v3.ExternalProcessor", &options(&more)));
    }
    let mut cases: Vec<Case> = Vec::new();
    let post = |listener: &'static str, path: &str| {
        case(listener, format!("{listener}, {path}").leak())
            .send("POST", path, "", "ten bytes?")
            .script(origin)
    };
    let chunks = |listener: &'static str, path: &str| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: t.test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let rest = "3\r\nabc\r\n2\r\nde\r\n0\r\nx-t: old\r\nx-gone: 1\r\n\r\n";
        case(listener, format!("{listener}, chunks, {path}").leak())
            .raw(format!("{head}{rest}"))
            .script(origin)
    };
    for listener in ["request", "response", "both", "bodies", "open"] {
        for word in ["x", "hold", "rewrite", "swallow", "split"] {
            if word == "hold" && listener == "bodies" {
                continue;
            }
            cases.push(post(listener, &format!("/{word}?plain")));
            cases.push(post(listener, &format!("/{word}?trailers")));
            cases.push(chunks(listener, &format!("/{word}?trailers")));
            cases.push(chunks(listener, &format!("/{word}?plain")));
            cases.push(post(listener, &format!("/{word}?empty")));
            cases.push(
                case(listener, format!("{listener}, no body, {word}").leak())
                    .get(&format!("/{word}?plain"), "")
                    .script(origin),
            );
        }
        for word in [
            "replace",
            "deny-head",
            "deny",
            "deny-late",
            "end-head",
            "fail-head",
            "end",
            "fail",
            "ordinary",
            "nothing",
            "again",
            "early",
            "enough",
        ] {
            if listener == "bodies"
                && ["replace", "deny-head", "end-head", "fail-head", "again", "early"].contains(&word)
            {
                continue;
            }
            // Whether a response is given what a request's processor said too late is a matter of time.
            if listener == "open" && word == "replace" {
                continue;
            }
            cases.push(post(listener, &format!("/{word}?plain")));
        }
        if listener != "bodies" {
            cases.push(post(listener, "/x?plain-slow"));
        }
        cases.push(case(listener, format!("{listener}, direct").leak()).get("/direct", ""));
    }
    let large = "abcdefghij".repeat(300_000);
    for path in ["/x?plain", "/split?plain", "/rewrite?plain"] {
        cases.push(
            case("both", format!("large, {path}").leak()).send("POST", path, "", &large).script(origin),
        );
    }
    let rooms = [
        "http.request.ext_proc.",
        "http.response.ext_proc.",
        "http.both.ext_proc.",
        "http.bodies.ext_proc.",
        "http.open.ext_proc.",
    ];
    let uncounted = ["server_half_closed", "streams_closed", "stream_msgs_sent", "stream_msgs_received"];
    check_but(bootstrap, cases, &rooms, &uncounted).await;
}

/// Who does not read holds the origin back: a client, or the processor itself.
#[tokio::test]
async fn what_nobody_takes_is_not_held() {
    const SIZE: usize = 48 << 20;
    const HELD: usize = 8 << 20;
    let processor = processor().await;
    let options = "grpc_service: { envoy_grpc: { cluster_name: proc } }, processing_mode: { response_body_mode: FULL_DUPLEX_STREAMED, response_trailer_mode: SEND }";
    let bootstrap = Bootstrap::new()
        .cluster("proc", &format!("{}\n{HTTP2}", endpoints(&[&processor.to_string()])))
        .plain("main", "")
        .filters("main", &filter("proc", "ext_proc.v3.ExternalProcessor", options));
    let origin = Origin::with(false, |request| match request.target() {
        "/warm" => Answer::ok("ok"),
        _ => Answer::raw(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n")).flood(SIZE),
    })
    .await;
    let proxy =
        Proxy::outrigger(&bootstrap.render(), &super::bootstrap::origins(origin.port(), origin.port())).await;
    let mut client = Client::connect(proxy.port("main")).await.expect("a connection");
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: t.test\r\n\r\n");
    assert_eq!(client.exchange(get("/warm").as_bytes()).await.expect("an answer").status(), 200);
    for path in ["/x", "/stall"] {
        let (before, flooded) = (proxy.resident(), origin.flooded());
        let mut slow = Client::connect(proxy.port("main")).await.expect("a connection");
        slow.send(get(path).as_bytes()).await.expect("it is taken");
        let written = settled(|| origin.flooded()).await - flooded;
        assert!(written > 0 && written < SIZE / 2, "{path}: the origin could write {written} bytes");
        let held = proxy.resident().saturating_sub(before);
        assert!(held < HELD, "{path}: {held} bytes are held");
        if path == "/x" {
            let answer =
                slow.response_within(false, DEADLINE * 3).await.expect("in time").expect("an answer");
            assert_eq!((answer.status(), answer.body.len(), answer.complete), (200, SIZE, true));
        }
    }
}

/// An origin over HTTP/2 that sends back each piece as it comes, and the trailers.
async fn echo() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        let mut back = respond.send_response(http::Response::new(()), false).ok()?;
                        while let Some(Ok(piece)) = body.data().await {
                            let _ = body.flow_control().release_capacity(piece.len());
                            back.send_data(piece, false).ok()?;
                        }
                        back.send_trailers(body.trailers().await.ok()?.unwrap_or_default()).ok()
                    });
                }
            });
        }
    });
    port
}

/// A call whose client waits for each piece before it sends the next: what came back.
async fn call(port: u16) -> Result<String, Box<dyn std::error::Error>> {
    let (client, connection) = h2::client::handshake(TcpStream::connect(("127.0.0.1", port)).await?).await?;
    tokio::spawn(connection);
    let request = http::Request::post("http://t.test/x").header("te", "trailers").body(())?;
    let (response, mut send) = client.ready().await?.send_request(request, false)?;
    send.send_data(Bytes::from_static(b"one"), false)?;
    let response = response.await?;
    let mut seen = response.status().to_string();
    let mut body = response.into_body();
    for next in ["two", "three", ""] {
        let piece = body.data().await.ok_or("no piece")??;
        body.flow_control().release_capacity(piece.len())?;
        seen += &format!(" {}", piece.escape_ascii());
        if !next.is_empty() {
            send.send_data(Bytes::from_static(next.as_bytes()), false)?;
        }
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-t", "old".parse()?);
    send.send_trailers(trailers)?;
    while let Some(piece) = body.data().await {
        seen += &format!(" {}", piece?.escape_ascii());
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    let mut trailers: Vec<_> = trailers.iter().map(|(name, value)| format!(" {name}={value:?}")).collect();
    trailers.sort();
    Ok(seen + &trailers.concat())
}

/// Nothing waits for an end: pieces go back and forth between a client and an origin that wait for each other.
#[tokio::test]
async fn calls_go_on_in_both_directions() {
    let (processor, echo) = (processor().await, echo().await);
    let options = "grpc_service: { envoy_grpc: { cluster_name: proc } }, processing_mode: { request_body_mode: FULL_DUPLEX_STREAMED, request_trailer_mode: SEND, response_body_mode: FULL_DUPLEX_STREAMED, response_trailer_mode: SEND }";
    let cluster = |port: u16| format!("{}\n{HTTP2}", endpoints(&[&port.to_string()]));
    let template = Bootstrap::new()
        .cluster("proc", &cluster(processor))
        .cluster("echo", &cluster(echo))
        .listener(
            "main",
            "",
            "- { name: all, domains: ['*'], routes: [ { match: { prefix: / }, route: { cluster: echo } } ] }",
        )
        .filters("main", &filter("proc", "ext_proc.v3.ExternalProcessor", options))
        .render();
    let mut kinds = vec![Kind::Outrigger];
    kinds.extend(peers::have(&["envoy"]).then_some(Kind::Envoy));
    let mut told = Vec::new();
    for kind in kinds {
        let proxy = Proxy::start(Plan::new(kind, &template, &super::bootstrap::origins(1, 1))).await;
        let seen = tokio::time::timeout(DEADLINE, call(proxy.port("main"))).await;
        told.push(seen.expect("in time").expect("a call"));
    }
    assert!(told[0].starts_with("200 OK one two three x-"), "{told:?}");
    assert!(told.iter().all(|of| *of == told[0]), "{told:#?}");
}
