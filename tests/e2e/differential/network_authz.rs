//! `envoy.filters.network.ext_authz`: connections that a service allows or denies, and what it is asked.

use super::grpc_service::{asked_by_both, GrpcService, Said, HTTP2};
use super::tcp::{case, chain_with, hello, listener, observe, rendered, send, side, Act, Case, Side};
use crate::harness::proxy::Kind;
use crate::peers;
use outrigger_control_api::pb::envoy::config::core::v3::{address, socket_address::PortSpecifier, Address};
use outrigger_control_api::pb::envoy::service::auth::v3 as pb;
use outrigger_control_api::pb::google::protobuf::{value::Kind as Is, Struct, Value};
use outrigger_control_api::pb::google::rpc::Status;

const NAMESPACE: &str = "envoy.filters.network.ext_authz";

fn filter(cluster: &str, prefix: &str, options: &str) -> String {
    format!(
        "      - name: authz\n        typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz, stat_prefix: {prefix}, transport_api_version: V3, grpc_service: {{ envoy_grpc: {{ cluster_name: {cluster} }}, timeout: 0.3s }}{options} }}\n"
    )
}

/// Who answers how, by the name of the cluster.
const SERVICES: [&str; 4] = ["allows", "denies", "fails", "silent"];

fn template(ports: &[u16]) -> String {
    let inspector = "    listener_filters:\n    - name: envoy.filters.listener.tls_inspector\n      typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector }\n";
    let with = |name: &str, options: &str, before: &str| {
        listener(name, options, &[chain_with(name, "", before, "cluster: good")])
    };
    let meant = format!(
        ", filter_enabled_metadata: {{ filter: {NAMESPACE}, path: [ {{ key: user }} ], value: {{ string_match: {{ exact: jane }} }} }}"
    );
    let told = format!(", metadata_context_namespaces: [ {NAMESPACE} ]{meant}");
    let second = [filter("allows", "first", ""), filter("allows", "second", &told)].concat();
    let denied = [filter("allows", "third", ""), filter("denies", "fourth", &told)].concat();
    let shown = ", include_tls_session: true, include_peer_certificate: true";
    let mut text = rendered(&[
        with("allowed", "", &filter("allows", "allowed", "")),
        with("denied", "", &filter("denies", "denied", "")),
        with("failed", "", &filter("fails", "failed", "")),
        with("open", "", &filter("fails", "open", ", failure_mode_allow: true")),
        with("unreached", "", &filter("refused", "unreached", "")),
        with("unknown", "", &filter("nowhere", "unknown", "")),
        with("slow", "", &filter("silent", "slow", "")),
        with("second", "", &second),
        with("fourth", "", &denied),
        with("unmeant", "", &filter("denies", "unmeant", &meant)),
        with("shadowed", "", &filter("denies", "shadowed", ", shadow_mode: true")),
        with(
            "shadowed-lost",
            "",
            &filter("fails", "shadowed-lost", ", shadow_mode: true, failure_mode_allow: true"),
        ),
        with("named", inspector, &filter("allows", "named", shown)),
    ]);
    for (name, port) in SERVICES.iter().zip(ports) {
        text += &format!(
            "  - name: {name}\n    connect_timeout: 1s\n    type: STATIC\n    load_assignment: {{ cluster_name: {name}, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }} ] }} ] }}\n    {HTTP2}\n"
        );
    }
    text
}

fn answer(name: &str) -> Said<pb::CheckResponse> {
    let mut metadata = Struct::default();
    metadata.fields.insert("user".into(), Value { kind: Some(Is::StringValue("jane".into())) });
    let with = |code| {
        Said::Message(pb::CheckResponse {
            status: Some(Status { code, ..Status::default() }),
            dynamic_metadata: Some(metadata.clone()),
            ..pb::CheckResponse::default()
        })
    };
    match name {
        "allows" => with(0),
        "denies" => with(7),
        "fails" => Said::Status(14),
        _ => Said::Nothing,
    }
}

/// The question without what differs from one connection to another.
fn masked(question: &pb::CheckRequest) -> String {
    let mut question = question.clone();
    let mask = |address: &mut Option<Address>| {
        if let Some(Address { address: Some(address::Address::SocketAddress(socket)) }) = address {
            socket.port_specifier = Some(PortSpecifier::PortValue(0));
        }
    };
    if let Some(all) = &mut question.attributes {
        for peer in [&mut all.source, &mut all.destination].into_iter().flatten() {
            mask(&mut peer.address);
        }
        if let Some(seen) = &mut all.metadata_context {
            for noted in seen.filter_metadata.values_mut() {
                let duration = noted.fields.remove("ext_authz_duration");
                assert!(duration.is_none_or(|it| matches!(it.kind, Some(Is::NumberValue(_)))));
            }
        }
    }
    format!("{question:?}")
}

async fn told(side: &Side) -> String {
    let speaks = |listener, reaches| {
        let acts = match reaches {
            true => vec![send("echo\nx"), Act::Read(1), Act::Finish, Act::End],
            false => vec![send("echo\nx"), Act::End],
        };
        let mut case: Case = case("speaks", listener, acts);
        if !reaches {
            // Its connection to the upstream is there already; how far that has come is a race.
            (case.reaches, case.ignore) = (false, &["reset", "upstream", "cluster"]);
        }
        case
    };
    let mut text = String::new();
    for (listener, passes) in [
        ("allowed", true),
        ("denied", false),
        ("failed", false),
        ("open", true),
        ("unreached", false),
        ("unknown", false),
        ("slow", false),
        ("second", true),
        ("fourth", false),
        ("unmeant", true),
        ("shadowed", true),
        ("shadowed-lost", true),
    ] {
        text += &format!("--- {listener}\n{}", observe(side, &speaks(listener, passes)).await);
        if !passes {
            assert_ne!(side.origin.end().await, "");
        }
    }
    // What the server says first is passed on; the client is decided on when it ends.
    let mut case = case("silent", "allowed", vec![Act::Finish, Act::End]);
    case.ignore = &["origin"];
    text += &format!("--- no word\n{}", observe(side, &case).await);
    let bytes = hello("a.test", &["h2"]);
    let count = bytes.len();
    let acts = vec![Act::Send(bytes), Act::Read(count), Act::Finish, Act::End];
    text += &format!("--- named\n{}", observe(side, &super::tcp::case("named", "named", acts)).await);
    for (name, value) in side.proxy.stats().await {
        if name.starts_with("ext_authz.") {
            text += &format!("{name}: {value}\n");
        }
    }
    text
}

#[tokio::test]
async fn connections_are_allowed_or_denied() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let mut services = Vec::new();
    for name in SERVICES {
        services.push(GrpcService::start(move |_: &pb::CheckRequest| answer(name)).await);
    }
    let ports: Vec<u16> = services.iter().map(GrpcService::port).collect();
    let template = template(&ports);
    let theirs = told(&side(Kind::Envoy, &template).await).await;
    let ours = told(&side(Kind::Outrigger, &template).await).await;
    assert!(theirs == ours, "\n--- Envoy\n{theirs}\n--- Outrigger\n{ours}");
    for service in &services {
        asked_by_both(service.take().iter().map(masked));
    }
}
