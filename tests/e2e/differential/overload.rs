//! Requests that are refused to spare an upstream: maintenance, shares that are dropped, admission control, and limits
//! that follow from how long requests take.

use super::bootstrap::Bootstrap;
use super::case::{case, Case};
use super::filters::{check, filter, host};
use super::{run_side, Side};
use crate::harness::client::Client;
use crate::harness::http1::Message;
use crate::harness::origin::Answer;
use crate::harness::proxy::Kind;
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Semaphore;

fn to(path: &str, cluster: &str, more: &str) -> String {
    format!("- {{ match: {{ prefix: {path} }}, route: {{ cluster: {cluster} }}{more} }}\n")
}

#[tokio::test]
async fn maintenance_mode() {
    let routes = [
        to("/all", "a-all", ""),
        to("/more", "a-more", ""),
        to("/none", "a-none", ""),
        to("/text", "a-text", ""),
        to(
            "/headers",
            "a-all",
            ", response_headers_to_add: [ { header: { key: x-route, value: '%RESPONSE_FLAGS%' } } ]",
        ),
        to("/dropped", "a-drop", ""),
        to("/", "a", ""),
    ]
    .concat();
    let mut bootstrap = Bootstrap::new().listener("main", "", &host("", &routes));
    for cluster in ["a-all", "a-more", "a-none", "a-text"] {
        bootstrap = bootstrap.origin(cluster, "");
    }
    // All are dropped by the endpoints' policy, none by what runtime allows of it.
    let dropping = "type: STATIC\nload_assignment:\n  cluster_name: static\n  policy: { drop_overloads: [ { category: x, \
         drop_percentage: { numerator: 100 } } ] }\n  endpoints: [ { lb_endpoints: [ { endpoint: { address: { \
         socket_address: { address: 127.0.0.1, port_value: @origin:a@ } } } } ] } ]";
    let bootstrap = bootstrap.cluster("a-drop", dropping).more(
        "layered_runtime: { layers: [ { name: one, static_layer: { \
         upstream.maintenance_mode.a-all: 100, upstream.maintenance_mode.a-more: 250, \
         upstream.maintenance_mode.a-none: 0, upstream.maintenance_mode.a-text: 'on', \
         load_balancing_policy.drop_overload_limit: 0 } } ] }",
    );
    let get = |name, path: &str| case("main", name).get(path, "");
    let cases = vec![
        get("all", "/all"),
        case("main", "with a body").send("POST", "/all", "", "hello"),
        case("main", "HEAD").send("HEAD", "/all", "", "").answers_head(),
        case("main", "gRPC").get("/all", "Content-Type: application/grpc\r\n"),
        get("more than all", "/more"),
        get("none", "/none"),
        get("no number", "/text"),
        get("headers of the route", "/headers"),
        get("the limit of what is dropped", "/dropped"),
        get("another cluster", "/"),
    ];
    let rooms: Vec<String> = ["all", "more", "none", "text", "drop"]
        .iter()
        .flat_map(|cluster| {
            ["maintenance_mode", "completed", "503", "5xx", "total", "200"]
                .map(|stat| format!("cluster.a-{cluster}.upstream_rq_{stat}"))
        })
        .collect();
    let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
    check(bootstrap, cases, &rooms).await;
}

const ADMISSION: &str = "admission_control.v3.AdmissionControl";
/// After one failure practically everything is refused: chance has no part in it.
const CERTAIN: &str = "sampling_window: 600s, aggression: { default_value: 1000000 }, \
                       sr_threshold: { default_value: { value: 100 } }, \
                       max_rejection_probability: { default_value: { value: 100 } }";

#[tokio::test]
async fn admission_control() {
    let any = "success_criteria: {}";
    let filters = [
        ("main", format!("{CERTAIN}, {any}")),
        ("own", format!("{CERTAIN}, success_criteria: {{ http_criteria: {{ http_success_status: [ {{ start: 200, end: 300 }}, {{ start: 404, end: 405 }} ] }} }}")),
        ("grpc", format!("{CERTAIN}, {any}")),
        ("codes", format!("{CERTAIN}, success_criteria: {{ grpc_criteria: {{ grpc_success_status: [ 0, 14 ] }} }}")),
        ("rate", format!("{CERTAIN}, {any}, rps_threshold: {{ default_value: 100000 }}")),
        ("capped", CERTAIN.replace("max_rejection_probability: { default_value: { value: 100 } }", "max_rejection_probability: { default_value: { value: 0 } }") + ", " + any),
        ("disabled", format!("{CERTAIN}, {any}, enabled: {{ default_value: false }}")),
        ("runtime", format!("{CERTAIN}, {any}, enabled: {{ default_value: true, runtime_key: admission.on }}")),
        ("absent", format!("{CERTAIN}, {any}, enabled: {{ default_value: true, runtime_key: admission.absent }}")),
        ("key", format!("{CERTAIN}, {any}, rps_threshold: {{ default_value: 0, runtime_key: admission.rate }}")),
    ];
    let routes = [
        "- { match: { prefix: /direct }, direct_response: { status: 503 } }\n".to_owned(),
        to("/refused", "refused", ""),
        to("/", "a", ""),
    ]
    .concat();
    let mut bootstrap = Bootstrap::new();
    for (name, options) in &filters {
        bootstrap = bootstrap
            .listener(name, "", &host("", &routes))
            .filters(name, &filter("admission", ADMISSION, options));
    }
    let bootstrap = bootstrap.more(
        "layered_runtime: { layers: [ { name: one, static_layer: { admission.on: false, admission.rate: 100000 } } ] }",
    );
    let status = |listener, name, status: u16| {
        case(listener, name).get("/x", "").answers(Answer::status(status, "Whatever", "x"))
    };
    let grpc = |listener, name, status: &str| {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: {status}\r\ncontent-length: 0\r\n\r\n"
        );
        let request = "Content-Type: application/grpc\r\nTE: trailers\r\n";
        case(listener, name).get("/x", request).answers(Answer::raw(head))
    };
    let mut cases: Vec<Case> = vec![
        status("main", "a success", 200),
        status("main", "a client's failure is none", 404),
        status("main", "a failure", 500),
        status("main", "refused", 200),
        case("main", "refused, a body").send("POST", "/x", "", "hello"),
        case("main", "refused, HEAD").send("HEAD", "/x", "", "").answers_head(),
        grpc("main", "refused, gRPC", "0"),
        status("own", "a listed success", 404),
        status("own", "an unlisted one", 302),
        status("own", "refused after it", 200),
        grpc("grpc", "OK", "0"),
        grpc("grpc", "NOT_FOUND speaks not against it", "5"),
        grpc("grpc", "UNAVAILABLE does", "14"),
        grpc("grpc", "refused after UNAVAILABLE", "0"),
        grpc("codes", "UNAVAILABLE, listed", "14"),
        grpc("codes", "NOT_FOUND, not listed", "5"),
        grpc("codes", "refused after NOT_FOUND", "0"),
        case("absent", "a failure to connect").get("/refused", ""),
        status("absent", "refused after that", 200),
    ];
    for listener in ["rate", "capped", "disabled", "runtime", "key"] {
        for name in ["a failure", "not refused"] {
            let name = Box::leak(format!("{listener}: {name}").into_boxed_str());
            cases.push(status(listener, name, 500));
        }
    }
    let rooms: Vec<String> =
        filters.iter().map(|(name, _)| format!("http.{name}.admission_control.")).collect();
    let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
    check(bootstrap, cases, &rooms).await;
}

/// A response of the proxy's own counts too.
#[tokio::test]
async fn admission_control_and_answers_of_the_proxy() {
    let routes =
        ["- { match: { prefix: /direct }, direct_response: { status: 503 } }\n".to_owned(), to("/", "a", "")]
            .concat();
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", &routes))
        .filters("main", &filter("admission", ADMISSION, &format!("{CERTAIN}, success_criteria: {{}}")));
    let cases = vec![
        case("main", "direct").get("/direct", ""),
        case("main", "after it").get("/x", ""),
        case("main", "direct, after it").get("/direct", ""),
    ];
    check(bootstrap, cases, &["http.main.admission_control."]).await;
}

const CONCURRENCY: &str = "adaptive_concurrency.v3.AdaptiveConcurrency";

/// What a side answers while one request is on its way, and what it counts then and afterwards.
async fn crowded(side: &Side, listener: &str) -> (Vec<Message>, [BTreeMap<String, u64>; 2]) {
    let gate = Arc::new(Semaphore::new(0));
    let answer = Answer::ok("late").gated(&gate);
    let (_, origin) = side.origins.iter().find(|(name, _)| *name == "a").expect("it is there");
    origin.answer(move |_| answer.clone());
    let before = origin.requests();
    let port = side.proxy.port(listener);
    let mut first = Client::connect(port).await.expect("a connection");
    first.send(b"GET /first HTTP/1.1\r\nHost: t.test\r\n\r\n").await.expect("sent");
    assert!(eventually(DEADLINE, || async { origin.requests() > before }).await, "{:?}", side.proxy.kind());
    let mut answers = Vec::new();
    for headers in ["", "Content-Type: application/grpc\r\n"] {
        let mut second = Client::connect(port).await.expect("a connection");
        let request = format!("GET /second HTTP/1.1\r\nHost: t.test\r\n{headers}\r\n");
        answers.push(second.exchange(request.as_bytes()).await.expect("an answer"));
    }
    let stats = || async {
        let mut stats = side.proxy.stats().await;
        stats.retain(|name, _| name.starts_with(&format!("http.{listener}.adaptive_concurrency.")));
        stats
    };
    let during = stats().await;
    gate.add_permits(100);
    assert_eq!(first.response().await.text(), "late");
    answers.push(first.exchange(b"GET /third HTTP/1.1\r\nHost: t.test\r\n\r\n").await.expect("an answer"));
    origin.answer(|_| Answer::ok("ok"));
    (answers, [during, stats().await])
}

#[tokio::test]
async fn adaptive_concurrency() {
    if !peers::have(&["envoy"]) {
        return;
    }
    // One more than the least as soon as there is a sample of the ideal time; none before the end of the test.
    let config = |rtt: &str, more: &str| {
        format!(
            "gradient_controller_config: {{ concurrency_limit_params: {{ concurrency_update_interval: 1000s }}, \
             min_rtt_calc_params: {{ min_concurrency: 1, {rtt} }} }}{more}"
        )
    };
    let measured = "interval: 1000s, request_count: 1";
    let filters = [
        ("main", config(measured, "")),
        ("status", config(measured, ", concurrency_limit_exceeded_status: { code: 429 }")),
        ("success", config(measured, ", concurrency_limit_exceeded_status: { code: 202 }")),
        ("fixed", config("fixed_value: 0.02s", "")),
        ("disabled", config(measured, ", enabled: { default_value: false }")),
        ("runtime", config(measured, ", enabled: { default_value: true, runtime_key: concurrency.on }")),
    ];
    let mut bootstrap = Bootstrap::new()
        .more("layered_runtime: { layers: [ { name: one, static_layer: { concurrency.on: false } } ] }");
    for (name, options) in &filters {
        bootstrap = bootstrap.plain(name, "").filters(name, &filter("concurrency", CONCURRENCY, options));
    }
    let template = bootstrap.render();
    let envoy = run_side(Kind::Envoy, &template).await;
    let ours = run_side(Kind::Outrigger, &template).await;
    for (name, _) in &filters {
        let disabled = matches!(*name, "disabled" | "runtime");
        if disabled {
            // Nobody waits there.
            for side in [&envoy, &ours] {
                let stats = side.proxy.stats().await;
                let limit = format!("http.{name}.adaptive_concurrency.gradient_controller.concurrency_limit");
                assert_eq!(stats.get(&limit), Some(&1), "{:?} {name}", side.proxy.kind());
                let mut client = Client::connect(side.proxy.port(name)).await.expect("a connection");
                let answer = client.exchange(b"GET / HTTP/1.1\r\nHost: t.test\r\n\r\n").await;
                assert_eq!(answer.expect("an answer").status(), 200);
            }
            continue;
        }
        let ((theirs, their_stats), (mine, my_stats)) =
            tokio::join!(crowded(&envoy, name), crowded(&ours, name));
        let told = |answers: &[Message]| -> Vec<_> {
            let one = |answer: &Message| {
                let names =
                    ["content-type", "content-length", "grpc-status", "grpc-message", "x-envoy-overloaded"];
                let fields = names.map(|name| answer.header(name).map(str::to_owned));
                (answer.status(), fields, answer.text())
            };
            answers.iter().map(one).collect()
        };
        assert_eq!(told(&mine), told(&theirs), "{name}");
        assert_ne!(theirs[0].status(), 200, "{name}: it was over the limit");
        assert_eq!(theirs[2].status(), 200, "{name}");
        for (mut theirs, mut mine) in their_stats.into_iter().zip(my_stats) {
            let names = |of: &BTreeMap<String, u64>| of.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(&mine), names(&theirs), "{name}");
            if *name != "fixed" {
                // What it is depends on the machine.
                let time = format!("http.{name}.adaptive_concurrency.gradient_controller.min_rtt_msecs");
                theirs.remove(&time);
                mine.remove(&time);
            }
            assert_eq!(mine, theirs, "{name}");
        }
    }
}
