//! `envoy.filters.http.ext_proc`: the same processor, asked by both, as in [`super::filters`]. What it sees of a head it
//! writes into a header of it, so that this is compared too.

use super::bootstrap::{endpoints, Bootstrap};
use super::case::{case, Case};
use super::ext_proc_duplex::Given;
use super::filters::{check_but, filter, host, route, says};
use super::grpc_service::HTTP2;
use crate::harness::http1::Message;
use crate::harness::origin::Answer;
use bytes::{Buf, BufMut, BytesMut};
use outrigger_control_api::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use outrigger_control_api::pb::envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
use outrigger_control_api::pb::envoy::r#type::v3::HttpStatus;
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Ask;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Says;
use outrigger_control_api::pb::google::protobuf::{value::Kind, BoolValue, Duration, Struct, Value};
use prost::Message as _;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

/// What the processor does with a message.
pub(super) enum Does {
    Says(Box<pb::ProcessingResponse>),
    /// It says nothing for ever.
    Waits,
    /// It ends the call with this status.
    Ends(u16),
}

/// What was told in each call to a processor that only watches.
pub(super) type Told = Arc<Mutex<Vec<String>>>;

/// Starts a processor; it ends with the runtime.
pub async fn processor() -> u16 {
    noting(Told::default()).await
}

/// The same; what it is told without being asked it notes.
pub(super) async fn noting(told: Told) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(process(request, respond, told.clone()));
                }
            });
        }
    });
    port
}

async fn process(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<bytes::Bytes>,
    noted: Told,
) -> Option<()> {
    let who = request.headers().iter().filter(|(name, _)| name.as_str().starts_with("x-who"));
    let who: Vec<String> = who.map(|(name, value)| format!("{name}={value:?}")).collect();
    let mut body = request.into_body();
    let head = http::Response::builder().header("content-type", "application/grpc");
    let mut stream = respond.send_response(head.body(()).ok()?, false).ok()?;
    let (mut input, mut path) = (BytesMut::new(), String::new());
    let (mut duplex, mut given, mut place) = ([false; 2], [Given::default(), Given::default()], None);
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
        input.extend_from_slice(&piece);
        while input.len() >= 5 {
            let length = (&input[1..5]).get_u32() as usize;
            if input.len() < length + 5 {
                break;
            }
            input.advance(5);
            let question = pb::ProcessingRequest::decode(input.split_to(length)).expect("a question");
            if let Some(protocol) = question.protocol_config {
                duplex = [protocol.request_body_mode, protocol.response_body_mode].map(|mode| mode == 4);
            }
            let watches = question.observability_mode;
            let ask = question.request?;
            if let Ask::RequestHeaders(headers) = &ask {
                path = value(headers, ":path");
            }
            if watches {
                note(&noted, &mut place, &ask);
            }
            let mut does = Vec::new();
            if path == "/longer" && matches!(ask, Ask::RequestHeaders(_)) {
                let wanted = Duration { seconds: 2, nanos: 0 };
                does.push(Does::Says(Box::new(pb::ProcessingResponse {
                    override_message_timeout: Some(wanted),
                    ..Default::default()
                })));
            }
            let mut told = question.attributes.get("envoy.filters.http.ext_proc").map(attributes_seen);
            if !who.is_empty() && matches!(ask, Ask::RequestHeaders(_)) {
                let spaces = question.metadata_context.unwrap_or_default().filter_metadata;
                let spaces: BTreeSet<_> = spaces.into_keys().collect();
                let attributes = told.unwrap_or_default();
                told = Some(format!("{} {spaces:?} {attributes}", who.join(" ")));
            }
            if matches!(&ask, Ask::RequestBody(piece) if piece.body == b"late") {
                tokio::time::sleep(std::time::Duration::from_millis(700)).await;
            }
            let of_response =
                matches!(ask, Ask::ResponseHeaders(_) | Ask::ResponseBody(_) | Ask::ResponseTrailers(_));
            let side = usize::from(of_response);
            if duplex[side] {
                if path.contains("slow") && matches!(ask, Ask::RequestHeaders(_)) {
                    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
                }
                does = given[side].answers(&path, &ask);
            } else {
                does.push(answer(&path, &ask, told));
            }
            for does in does {
                let message = match does {
                    Does::Says(message) => message,
                    Does::Waits => return std::future::pending().await,
                    Does::Ends(status) => {
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", status.into());
                        return stream.send_trailers(trailers).ok();
                    }
                };
                let mut framed = BytesMut::new();
                framed.put_u8(0);
                framed.put_u32(message.encoded_len() as u32);
                message.encode(&mut framed).ok()?;
                stream.send_data(framed.freeze(), false).ok()?;
                if path == "/longer" {
                    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
                }
            }
        }
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", 0.into());
    stream.send_trailers(trailers).ok()
}

/// Adds a message to what a call was told, in which pieces of a body are one.
fn note(noted: &Told, place: &mut Option<usize>, ask: &Ask) {
    let mut all = noted.lock().expect("nobody panics with it");
    let place = *place.get_or_insert_with(|| {
        all.push(String::new());
        all.len() - 1
    });
    let text = &mut all[place];
    let (side, body) = match ask {
        Ask::RequestHeaders(headers) => return *text += &format!("[request {}]", seen(headers)),
        Ask::ResponseHeaders(headers) => return *text += &format!("[response {}]", seen(headers)),
        Ask::RequestTrailers(trailers) => return *text += &format!("[request {}]", seen_trailers(trailers)),
        Ask::ResponseTrailers(trailers) => {
            return *text += &format!("[response {}]", seen_trailers(trailers))
        }
        Ask::RequestBody(body) => ("request", body),
        Ask::ResponseBody(body) => ("response", body),
    };
    let open = format!("[{side} body ");
    if !text.rsplit('[').next().is_some_and(|last| format!("[{last}").starts_with(&open)) {
        *text += &open;
    } else {
        text.pop();
    }
    *text += &format!("{}{}]", body.body.escape_ascii(), if body.end_of_stream { "." } else { "" });
}

fn seen_trailers(trailers: &pb::HttpTrailers) -> String {
    seen(&pb::HttpHeaders { headers: trailers.trailers.clone(), ..Default::default() })
}

fn value(headers: &pb::HttpHeaders, name: &str) -> String {
    let all = headers.headers.as_ref().map(|map| &*map.headers).unwrap_or_default();
    let found = all.iter().find(|header| header.key == name);
    found.map(|header| String::from_utf8_lossy(&header.raw_value).into_owned()).unwrap_or_default()
}

/// All of a head that does not change from run to run.
pub(super) fn seen(headers: &pb::HttpHeaders) -> String {
    let all = headers.headers.as_ref().map(|map| &*map.headers).unwrap_or_default();
    let mut lines: Vec<String> = all
        .iter()
        .filter(|header| !matches!(&*header.key, "x-request-id" | "x-envoy-upstream-service-time" | "date"))
        .map(|header| {
            format!("{}={}{}", header.key, header.value, String::from_utf8_lossy(&header.raw_value))
        })
        .collect();
    lines.sort();
    format!("{} ends={}", lines.join(" "), headers.end_of_stream)
}

/// Attributes, in order of their names.
fn attributes_seen(told: &Struct) -> String {
    let mut all: Vec<_> =
        told.fields.iter().map(|(name, value)| format!("{name}={:?}", value.kind)).collect();
    all.sort();
    all.join(" ")
}

pub(super) fn header(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: key.into(), raw_value: value.into(), ..Default::default() }),
        ..Default::default()
    }
}

fn added(key: &str, value: &str) -> HeaderValueOption {
    #[allow(deprecated)]
    HeaderValueOption { append: Some(BoolValue { value: true }), ..header(key, value) }
}

pub(super) fn changes(set: Vec<HeaderValueOption>, remove: &[&str]) -> Option<pb::HeaderMutation> {
    let remove_headers = remove.iter().map(ToString::to_string).collect();
    Some(pb::HeaderMutation { set_headers: set, remove_headers })
}

pub(super) fn body(text: &str) -> Option<pb::BodyMutation> {
    Some(pb::BodyMutation { mutation: Some(Mutation::Body(text.into())) })
}

pub(super) fn immediate(status: i32, headers: Option<pb::HeaderMutation>, body: &str) -> Says {
    Says::ImmediateResponse(pb::ImmediateResponse {
        status: Some(HttpStatus { code: status }),
        headers,
        body: body.into(),
        details: "as it  wants".into(),
        ..Default::default()
    })
}

/// What the processor does: the path tells.
fn answer(path: &str, ask: &Ask, told: Option<String>) -> Does {
    let mut common = pb::CommonResponse::default();
    let mut more = pb::ProcessingResponse::default();
    let word = path.split(['/', '?']).nth(1).unwrap_or_default();
    let (mut set, mut removed): (_, &[&str]) = match ask {
        Ask::RequestHeaders(headers) => (vec![header("x-seen", &seen(headers))], &[]),
        Ask::ResponseHeaders(headers) => (vec![header("x-seen-too", &seen(headers))], &[]),
        // Whether a head goes on before it was told of a piece of the body is a matter of time.
        Ask::ResponseBody(_) if path.contains("pieces") => (Vec::new(), &[]),
        Ask::RequestBody(body) | Ask::ResponseBody(body) => {
            (vec![header("x-seen-body", &format!("{} {}", body.body.len(), body.end_of_stream))], &[])
        }
        _ => (Vec::new(), &[]),
    };
    if let Some(told) = told {
        set.push(header("x-told", &told));
    }
    let of_request = matches!(ask, Ask::RequestHeaders(_));
    let of_response = matches!(ask, Ask::ResponseHeaders(_));
    let of_body = matches!(ask, Ask::RequestBody(_) | Ask::ResponseBody(_));
    match word {
        "change" if of_request => {
            set.extend([
                header("x-have", "new"),
                header("X-Upper", "v"),
                added("x-list", "two"),
                added("x-new", "one"),
                header(":path", "/changed"),
                header("x-envoy-mine", "1"),
                header("host", "evil.test"),
                header(":authority", "evil.test"),
                header(":method", "PUT"),
                header(":scheme", "https"),
            ]);
            removed = &["x-gone", "host", ":path", "x-envoy-kept"];
        }
        "change" if of_response => {
            set.extend([header("x-have", "new"), added("x-list", "two"), header("x-envoy-mine", "1")]);
            removed = &["x-gone", ":status"];
        }
        "status" if of_response => set.push(header(":status", "299")),
        "old" if of_request => set.push(HeaderValueOption {
            header: Some(HeaderValue { key: "x-old".into(), value: "text".into(), ..Default::default() }),
            ..Default::default()
        }),
        "bad" if of_request => set.push(header("x-bad", "a\nb")),
        "forbidden" if of_request => set.push(header("x-fixed", "1")),
        "forbidden-too" if of_request => removed = &["x-fixed"],
        "deny" if of_request => {
            let more = vec![
                header("x-why", "because"),
                header("x-envoy-why", "no"),
                header("content-type", "text/html"),
            ];
            return said(immediate(403, changes(more, &[]), "denied"));
        }
        "deny-status" if of_request => return said(immediate(99, None, "odd")),
        "deny-empty" if of_request => {
            return said(Says::ImmediateResponse(pb::ImmediateResponse {
                details: "why".into(),
                ..Default::default()
            }))
        }
        "deny-grpc" if of_request => {
            return said(Says::ImmediateResponse(pb::ImmediateResponse {
                status: Some(HttpStatus { code: 401 }),
                grpc_status: Some(pb::GrpcStatus { status: 7 }),
                body: "no".into(),
                details: "why".into(),
                ..Default::default()
            }))
        }
        "deny-response" if of_response => return said(immediate(418, None, "teapot")),
        "deny-body" if of_body => return said(immediate(418, None, "teapot")),
        "body" if of_body => common.body_mutation = body("another body"),
        "streamed" if of_body => {
            let piece = pb::StreamedBodyResponse { body: "ten bytes!".into(), end_of_stream: true };
            common.body_mutation =
                Some(pb::BodyMutation { mutation: Some(Mutation::StreamedResponse(piece)) });
        }
        "same" if of_body => common.body_mutation = body("SAME BODY!"),
        "upper" => {
            if let Ask::RequestBody(piece) | Ask::ResponseBody(piece) = ask {
                let upper = piece.body.to_ascii_uppercase();
                common.body_mutation = Some(pb::BodyMutation { mutation: Some(Mutation::Body(upper)) });
            }
        }
        "override" if of_request => {
            more.mode_override = Some(ProcessingMode {
                request_body_mode: 1,
                response_body_mode: 1,
                request_trailer_mode: 1,
                response_trailer_mode: 1,
                ..Default::default()
            });
        }
        "clear" if of_body => {
            common.body_mutation = Some(pb::BodyMutation { mutation: Some(Mutation::ClearBody(true)) });
        }
        "unsized" if of_request || of_response => removed = &["content-length"],
        "unsized" if of_body => common.body_mutation = body("a body without its length"),
        "sized" if of_request || of_response => set.push(header("content-length", "12")),
        "sized" if of_body => common.body_mutation = body("twelve bytes"),
        "replace" if of_request => (common.status, common.body_mutation) = (1, body("instead")),
        "replace-response" if of_response => (common.status, common.body_mutation) = (1, body("instead")),
        "replace-empty" if of_request || of_response => common.status = 1,
        "ignored" if of_request => common.body_mutation = body("ignored"),
        "early" if of_request => return said(Says::ResponseHeaders(pb::HeadersResponse::default())),
        "nothing" if of_request => return Does::Says(Box::default()),
        "reroute" if of_request => {
            set.push(header(":path", "/elsewhere"));
            common.clear_route_cache = true;
        }
        "reroute" if of_response => common.clear_route_cache = true,
        "mode" if of_request => {
            more.mode_override =
                Some(ProcessingMode { response_header_mode: 2, request_body_mode: 2, ..Default::default() });
        }
        "mode-unset" if of_request => {
            more.mode_override = Some(ProcessingMode { request_body_mode: 2, ..Default::default() });
        }
        "metadata" if of_request => {
            let text = Value { kind: Some(Kind::StringValue("jane".into())) };
            let inner = Struct { fields: HashMap::from([("user".to_string(), text)]) };
            let of = |inner: &Struct| Value { kind: Some(Kind::StructValue(inner.clone())) };
            let fields = HashMap::from([("mine".to_string(), of(&inner)), ("other".to_string(), of(&inner))]);
            more.dynamic_metadata = Some(Struct { fields });
        }
        "slow" if of_request => return Does::Waits,
        "slow-response" if of_response => return Does::Waits,
        "slow-body" if of_body => return Does::Waits,
        "end-body" if of_body => return Does::Ends(0),
        "fail-body" if of_body => return Does::Ends(13),
        "early-body" if of_body => return said(Says::RequestHeaders(pb::HeadersResponse::default())),
        "end" if of_request => return Does::Ends(0),
        "end-response" if of_response => return Does::Ends(0),
        "fail" if of_request => return Does::Ends(13),
        "fail-response" if of_response => return Does::Ends(9),
        _ => {}
    }
    common.header_mutation = changes(set, removed);
    let headers = || pb::HeadersResponse { response: Some(common.clone()) };
    let body = || pb::BodyResponse { response: Some(common.clone()) };
    more.response = Some(match ask {
        Ask::RequestHeaders(_) => Says::RequestHeaders(headers()),
        Ask::ResponseHeaders(_) => Says::ResponseHeaders(headers()),
        Ask::RequestBody(_) => Says::RequestBody(body()),
        Ask::ResponseBody(_) => Says::ResponseBody(body()),
        Ask::RequestTrailers(trailers) => Says::RequestTrailers(of_trailers(word, trailers)),
        Ask::ResponseTrailers(trailers) => Says::ResponseTrailers(of_trailers(word, trailers)),
    });
    Does::Says(Box::new(more))
}

pub(super) fn of_trailers(word: &str, trailers: &pb::HttpTrailers) -> pb::TrailersResponse {
    let seen = seen_trailers(trailers);
    let mut set = vec![header("x-seen-trailers", &seen)];
    let mut removed: &[&str] = &[];
    if word == "trail" {
        set.extend([header("x-t", "new"), added("x-more", "1")]);
        removed = &["x-gone"];
    }
    pb::TrailersResponse { header_mutation: changes(set, removed) }
}

pub(super) fn said(says: Says) -> Does {
    Does::Says(Box::new(pb::ProcessingResponse { response: Some(says), ..Default::default() }))
}

fn origin(request: &Message) -> Answer {
    let path = request.target();
    if path.starts_with("/chunked") {
        return Answer::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    }
    if path.starts_with("/none") {
        return Answer::raw("HTTP/1.1 204 No Content\r\n\r\n");
    }
    Answer::raw(
        "HTTP/1.1 200 OK\r\nx-have: old\r\nx-list: one\r\nx-gone: 1\r\ncontent-length: 10\r\n\r\nten bytes!",
    )
}

#[tokio::test]
async fn processor_of_heads_and_bodies() {
    const KIND: &str = "ext_proc.v3.ExternalProcessor";
    const PER_ROUTE: &str = "extensions.filters.http.ext_proc.v3.ExtProcPerRoute";
    let port = processor().await;
    let shown = "  request_headers_to_add: [ { header: { key: x-md, value: '%DYNAMIC_METADATA(mine:user)% %DYNAMIC_METADATA(other:user)%' } } ]\n";
    let routes = [
        "- { match: { prefix: /elsewhere }, direct_response: { status: 203, body: { inline_string: elsewhere } } }\n".to_string(),
        route("/off", &[says("proc", PER_ROUTE, "disabled: true")]),
        route("/heads", &[says("proc", PER_ROUTE, "overrides: { processing_mode: { response_header_mode: SKIP } }")]),
        "- { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: 'ten bytes!' } } }\n".to_string(),
        "- { match: { prefix: / }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let options =
        |more: &str| format!("grpc_service: {{ envoy_grpc: {{ cluster_name: proc }}, timeout: 5s }}{more}");
    let bodies = ", processing_mode: { request_body_mode: BUFFERED, response_body_mode: BUFFERED }";
    let mut bootstrap =
        Bootstrap::new().cluster("proc", &format!("{}\n{HTTP2}", endpoints(&[&port.to_string()])));
    for (name, options) in [
        ("main", options(", metadata_options: { receiving_namespaces: { untyped: [ mine ] } }, max_message_timeout: 5s")),
        ("bodies", options(bodies)),
        ("strict", options(&format!("{bodies}, allow_mode_override: true, status_on_error: {{ code: 502 }}, mutation_rules: {{ disallow_is_error: true, disallow_expression: {{ regex: 'x-fix.*' }} }}, route_cache_action: RETAIN"))),
        ("open", options(", failure_mode_allow: true, stat_prefix: mine, disable_immediate_response: true, forward_rules: { allowed_headers: { patterns: [ { prefix: ':' }, { prefix: x- } ] }, disallowed_headers: { patterns: [ { exact: x-gone } ] } }")),
        ("told", options(", request_attributes: [ request.path, request.size, request.headers, 'request.headers[\"x-have\"]', connection.mtls, nothing.at.all, request.protocol, 'request.size > 3' ], response_attributes: [ response.code, 'response.code == 200u' , xds.cluster_name, request.method ]")),
        ("lax", options(&format!("{bodies}, failure_mode_allow: true"))),
        ("responses", options(", processing_mode: { request_header_mode: SKIP, response_body_mode: BUFFERED }")),
        ("closed", options(", disable_immediate_response: true")),
        ("skips", options(", allow_mode_override: true, processing_mode: { response_header_mode: SKIP, response_trailer_mode: SEND }")),
        ("partial", options(", processing_mode: { request_body_mode: BUFFERED_PARTIAL, response_header_mode: SKIP }")),
    ] {
        bootstrap = bootstrap.listener(name, "", &host(shown, &routes)).filters(name, &filter("proc", KIND, &options));
    }
    let given = "X-Have: old\r\nX-List: one\r\nX-Gone: 1\r\nX-Envoy-Kept: 1\r\n";
    let get = |listener: &'static str, name: &'static str, path: &str| {
        case(listener, name).get(path, given).script(origin)
    };
    let post = |listener: &'static str, name: &'static str, path: &str| {
        case(listener, name).send("POST", path, given, "ten bytes?").script(origin)
    };
    let chunks = |listener: &'static str, name: &'static str, path: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n");
        case(listener, name).raw(format!("{head}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")).script(origin)
    };
    let mut cases: Vec<Case> = Vec::new();
    for (name, path) in [
        ("plain", "/x"),
        ("change", "/change"),
        ("status", "/status"),
        ("value", "/old"),
        ("bad", "/bad"),
        ("deny", "/deny"),
        ("deny, status", "/deny-status"),
        ("deny, empty", "/deny-empty"),
        ("deny, gRPC", "/deny-grpc"),
        ("deny, response", "/deny-response"),
        ("replace", "/replace"),
        ("replace, response", "/replace-response"),
        ("replace, empty", "/replace-empty"),
        ("ignored", "/ignored"),
        ("early", "/early"),
        ("nothing", "/nothing"),
        ("reroute", "/reroute"),
        ("mode", "/mode"),
        ("metadata", "/metadata"),
        ("slow", "/slow"),
        ("slow response", "/slow-response"),
        ("longer", "/longer"),
        ("end", "/end"),
        ("end, response", "/end-response"),
        ("off", "/off"),
        ("only requests", "/heads"),
        ("direct", "/direct"),
        ("no content", "/none"),
    ] {
        cases.push(get("main", name, path));
    }
    cases.push(post("main", "a body", "/x"));
    cases.push(post("main", "a body, denied", "/deny"));
    cases
        .push(case("main", "deny, a client of gRPC").get("/deny-grpc", "Content-Type: application/grpc\r\n"));
    cases.push(case("main", "to head").send("HEAD", "/x", "", "").answers_head().script(origin));
    for (name, path) in [
        ("bodies", "/x"),
        ("bodies, other", "/body"),
        ("bodies, as long", "/same"),
        ("bodies, cleared", "/clear"),
        ("bodies, as of another mode", "/streamed"),
        ("bodies, unsized", "/unsized"),
        ("bodies, sized", "/sized"),
        ("bodies, denied", "/deny-body"),
        ("bodies, replaced", "/replace"),
        ("bodies, response replaced", "/replace-response"),
        ("bodies, slow", "/slow-body"),
        ("bodies, response chunked", "/chunked"),
        ("bodies, none", "/none"),
        ("bodies, direct", "/direct"),
    ] {
        cases.push(post("bodies", name, path));
    }
    cases.push(chunks("bodies", "chunks", "/x"));
    cases.push(chunks("bodies", "chunks, as of another mode", "/streamed"));
    cases.push(get("bodies", "response as of another mode", "/streamed"));
    cases.push(get("bodies", "no request body", "/x"));
    cases.push(case("bodies", "bodies, to head").send("HEAD", "/x", "", "").answers_head().script(origin));
    for (name, path) in [
        ("strict", "/x"),
        ("strict, forbidden", "/forbidden"),
        ("strict, forbidden to remove", "/forbidden-too"),
        ("strict, mode", "/mode"),
        ("strict, bad", "/bad"),
        ("strict, mode without heads", "/mode-unset"),
        ("strict, body", "/body"),
        ("strict, slow", "/slow"),
        ("strict, reroute", "/reroute"),
        ("strict, early", "/early"),
        ("strict, as of another mode", "/streamed"),
    ] {
        cases.push(post("strict", name, path));
    }
    cases.push(get("closed", "closed, denied", "/deny"));
    cases.push(get("closed", "closed, response denied", "/deny-response"));
    for (name, path) in [
        ("open", "/x"),
        ("open, fail", "/fail"),
        ("open, slow", "/slow"),
        ("open, slow response", "/slow-response"),
        ("open, fail response", "/fail-response"),
        ("open, bad", "/bad"),
    ] {
        cases.push(get("open", name, path));
    }
    for (name, path) in [
        ("responses", "/x"),
        ("responses, other", "/body"),
        ("responses, same", "/same"),
        ("responses, direct", "/direct"),
    ] {
        cases.push(get("responses", name, path));
    }
    cases.push(post("skips", "mode without heads", "/mode-unset"));
    cases.push(post("told", "told", "/x"));
    cases.push(post("partial", "partial", "/x"));
    cases.push(post("partial", "partial, as of another mode", "/streamed"));
    cases.push(get("lax", "lax, as of another mode", "/streamed"));
    cases.push(post("lax", "lax, as of another mode, request", "/streamed"));
    cases.push(chunks("partial", "partial, chunks", "/body"));
    let rooms = [
        "http.closed.ext_proc.",
        "http.main.ext_proc.",
        "http.bodies.ext_proc.",
        "http.strict.ext_proc.",
        "http.open.ext_proc.",
        "http.lax.ext_proc.",
        "http.responses.ext_proc.",
        "http.partial.ext_proc.",
    ];
    check_but(bootstrap, cases, &rooms, &["server_half_closed", "streams_closed"]).await;
}

/// A call that cannot be made: what is told of it is Envoy's own.
#[tokio::test]
async fn no_processor() {
    let options = |more: &str| {
        format!("grpc_service: {{ envoy_grpc: {{ cluster_name: refused }}, timeout: 5s }}{more}")
    };
    let mut bootstrap = Bootstrap::new();
    for (name, options) in [("shut", options("")), ("open", options(", failure_mode_allow: true"))] {
        bootstrap = bootstrap
            .plain(name, "")
            .filters(name, &filter("proc", "ext_proc.v3.ExternalProcessor", &options));
    }
    // Envoy's details tell why, in its own words.
    let cases = vec![case("open", "open").get("/x", "").script(origin)];
    check_but(bootstrap, cases, &["http.open.ext_proc."], &["server_half_closed", "streams_closed"]).await;
}
