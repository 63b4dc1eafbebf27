//! Runs every case of the table over every pair of protocols, through Outrigger and through the real Envoy with the
//! same bootstrap, and compares what the client heard, what the origin saw and what was logged.
//!
//! For working on it: the variables of [`crate::differential`] hold here too; a case's name ends with its pair, as in
//! `cookies h1>h2`.

use super::cases::{cases, Case};
use super::client::{self, shown};
use super::origin::Origin;
use crate::differential::bootstrap::{endpoints, Bootstrap};
use crate::differential::observe::{log, Mask, Observation};
use crate::differential::{set, Side};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::peers;

/// The upstream protocols, which are names of clusters and listeners.
const UPSTREAMS: [&str; 2] = ["h1", "h2"];
const DOWNSTREAMS: [&str; 2] = ["h1", "h2"];

const OPTIONS: &str = "http_protocol_options: { enable_trailers: true }
http2_protocol_options: { allow_connect: true }
upgrade_configs: [ { upgrade_type: websocket } ]";

const LOG: &str = "- name: envoy.access_loggers.file
  typed_config:
    \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: \"@dir@/matrix.log\"
    log_format: { text_format_source: { inline_string: \"FORMAT\" } }";

const FIELDS: &str = "peer=%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%\\thost=%REQ(:AUTHORITY)%\\tcode=%RESPONSE_CODE%\
    \\tflags=%RESPONSE_FLAGS%\\tdetails=%RESPONSE_CODE_DETAILS%\\tprotocol=%PROTOCOL%\\tmethod=%REQ(:METHOD)%\
    \\tpath=%REQ(:PATH)%\\treceived=%BYTES_RECEIVED%\\tsent=%BYTES_SENT%\\tupstream-protocol=%UPSTREAM_PROTOCOL%\
    \\tgrpc=%GRPC_STATUS%\\ttrailer=%TRAILER(x-late)%\\tfailure=%UPSTREAM_TRANSPORT_FAILURE_REASON%\
    \\tattempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT%\\tupstream=%UPSTREAM_HOST%\\n";

pub fn hosts(cluster: &str) -> String {
    format!(
        "- name: terminate
  domains: ['terminate.test:443']
  routes:
  - {{ match: {{ connect_matcher: {{}} }}, route: {{ cluster: h1, upgrade_configs: [ {{ upgrade_type: CONNECT, connect_config: {{}} }} ] }} }}
- name: all
  domains: ['t.test', 't.test:443']
  routes:
  - {{ match: {{ connect_matcher: {{}} }}, route: {{ cluster: {cluster}, upgrade_configs: [ {{ upgrade_type: CONNECT }} ] }} }}
  - {{ match: {{ prefix: /timeout }}, route: {{ cluster: {cluster}, timeout: 0.25s }} }}
  - {{ match: {{ prefix: /duration }}, route: {{ cluster: {cluster}, max_stream_duration: {{ max_stream_duration: 0.25s }} }} }}
  - {{ match: {{ prefix: /idle }}, route: {{ cluster: {cluster}, idle_timeout: 0.25s }} }}
  - {{ match: {{ prefix: /empty }}, route: {{ cluster: empty }} }}
  - {{ match: {{ prefix: /refused }}, route: {{ cluster: refused }} }}
  - {{ match: {{ prefix: /direct }}, direct_response: {{ status: 200, body: {{ inline_string: hi }} }} }}
  - {{ match: {{ prefix: /retry }}, route: {{ cluster: {cluster}, retry_policy: {{ retry_on: 'refused-stream,reset', num_retries: 2 }} }} }}
  - {{ match: {{ prefix: / }}, route: {{ cluster: {cluster} }} }}"
    )
}

/// The options of a cluster that speaks this protocol.
pub fn speaks(protocol: &str) -> String {
    let options = match protocol {
        "h2" => "http2_protocol_options: {}",
        _ => "http_protocol_options: { enable_trailers: true }",
    };
    format!(
        "{}\ntyped_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \
         \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    \
         explicit_http_config: {{ {options} }}",
        endpoints(&[&format!("@{protocol}@")])
    )
}

pub fn bootstrap() -> Bootstrap {
    let mut bootstrap = Bootstrap::new();
    for upstream in UPSTREAMS {
        bootstrap = bootstrap.cluster(upstream, &speaks(upstream));
        for (name, more) in [("to", ""), ("interim", "\nproxy_100_continue: true")] {
            let name = format!("{name}-{upstream}");
            bootstrap = bootstrap
                .listener(&name, &format!("{OPTIONS}{more}"), &hosts(upstream))
                .access_logs(&name, &LOG.replace("FORMAT", FIELDS));
        }
    }
    bootstrap
}

/// One proxy and its origin.
pub struct End {
    pub side: Side,
    pub origin: Origin,
}

pub async fn start(kind: Kind, template: &str) -> End {
    let origin = Origin::start().await;
    let values = [
        ("h1", origin.http1.to_string()),
        ("h2", origin.http2.to_string()),
        // Clusters of the common bootstrap that nothing uses here.
        ("origin:a", "1".to_string()),
        ("origin:b", "1".to_string()),
    ];
    let proxy = Proxy::start(Plan::new(kind, template, &values)).await;
    End { side: Side { proxy, origins: vec![] }, origin }
}

async fn observe(end: &End, case: &Case, downstream: &str, upstream: &str) -> Observation {
    let End { side, origin } = end;
    origin.plan(case.plan.clone());
    let file = "matrix.log";
    let logged = std::fs::metadata(side.proxy.file(file)).map_or(0, |m| m.len());
    let name = if case.interim { "interim" } else { "to" };
    let port = side.proxy.port(&format!("{name}-{upstream}"));
    let heard = match downstream {
        "h1" => client::http1(port, &case.ask, origin).await,
        _ => client::http2(port, &case.ask, origin).await,
    };
    let mut mask = Mask::new(side, heard.port);
    mask.also(&format!(":{}", origin.http1), ":<origin>");
    mask.also(&format!(":{}", origin.http2), ":<origin>");
    let mut lines = Vec::new();
    for (key, value) in heard.lines {
        let value = match key.split_once(".header.") {
            Some((_, name)) => mask.header(name, &value, ""),
            None => mask.text(&value),
        };
        lines.push((key, value));
    }
    for (i, seen) in origin.settled().await.into_iter().enumerate() {
        lines.push((format!("origin[{i}].line"), seen.line));
        for (name, value) in seen.headers {
            let mut value = mask.header(&name, &value, "");
            if i > 0 && name == "x-envoy-expected-rq-timeout-ms" {
                // What is left of it.
                value = "<milliseconds>".to_string();
            }
            lines.push((format!("origin[{i}].header.{name}"), value));
        }
        lines.push((format!("origin[{i}].body"), shown(&seen.body)));
        for (name, value) in seen.trailers {
            lines.push((format!("origin[{i}].trailer.{}", name.to_ascii_lowercase()), value));
        }
        lines.push((format!("origin[{i}].end"), given_up(side, seen.end)));
        if let Some(after) = seen.after {
            lines.push((format!("origin[{i}].after"), given_up(side, after)));
        }
    }
    log(&mut lines, &mask, side, file, (logged, heard.port), 1).await;
    lines.sort();
    Observation::new(lines)
}

/// How a stream was given up towards an origin, with Envoy's code for it in place of ours: see [`GIVEN_UP`].
fn given_up(side: &Side, end: String) -> String {
    match side.proxy.kind() {
        Kind::Outrigger if end == "reset CANCEL" => "reset INTERNAL_ERROR".to_string(),
        Kind::Envoy if end == "reset CANCEL" => "reset CANCEL by Envoy".to_string(),
        _ => end,
    }
}

/// The entry of `docs/differences.md` on codes of streams that are given up.
const GIVEN_UP: &str = "given-up-streams";

/// Whether a pattern such as `*>h2` names this pair.
fn names(pattern: &str, downstream: &str, upstream: &str) -> bool {
    let (one, other) = pattern.split_once('>').expect("a pair");
    (one == "*" || one == downstream) && (other == "*" || other == upstream)
}

#[tokio::test]
async fn every_shape_over_every_pair() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = bootstrap().render();
    let envoy = start(Kind::Envoy, &template).await;
    let ours = match set("OUTRIGGER_E2E_ENVOY_ONLY") {
        Some(_) => None,
        None => Some(start(Kind::Outrigger, &template).await),
    };
    let show = set("OUTRIGGER_E2E_SHOW").is_some();
    let only = set("OUTRIGGER_E2E_CASE").unwrap_or_default();
    let (mut failures, mut count) = (Vec::new(), 0);
    for case in cases() {
        for (downstream, upstream) in DOWNSTREAMS.iter().flat_map(|one| UPSTREAMS.map(|other| (*one, other)))
        {
            let name = format!("{} {downstream}>{upstream}", case.name);
            if !name.contains(&only) || !names(case.pairs, downstream, upstream) {
                continue;
            }
            count += 1;
            let Some(ours) = &ours else {
                println!("=== {name}\n{}", observe(&envoy, &case, downstream, upstream).await);
                continue;
            };
            let (theirs, mine) = tokio::join!(
                observe(&envoy, &case, downstream, upstream),
                observe(ours, &case, downstream, upstream)
            );
            if show {
                println!("=== {name}\n--- Envoy\n{theirs}--- Outrigger\n{mine}");
            }
            let accepted = case.differences.iter().filter(|d| names(d.pairs, downstream, upstream));
            let accepted: Vec<_> = accepted.collect();
            let keys: Vec<&str> = accepted.iter().flat_map(|d| d.keys.iter().copied()).collect();
            let mut complaint = theirs.compare(&mine, &keys);
            for difference in &accepted {
                // Without this one, does it still fail?
                let others = accepted.iter().filter(|d| d.id != difference.id);
                let others: Vec<&str> = others.flat_map(|d| d.keys.iter().copied()).collect();
                if complaint.is_none() && !difference.maybe && theirs.compare(&mine, &others).is_none() {
                    complaint = Some(format!("  the difference {} is not needed here\n", difference.id));
                }
            }
            for (key, value) in accepted.iter().flat_map(|d| d.ours) {
                if mine.get(key) != Some(value) {
                    let found = mine.get(key).unwrap_or("nothing");
                    complaint.get_or_insert_default().push_str(&format!("  {key} is {found}, not {value}\n"));
                }
            }
            if let Some(complaint) = complaint {
                failures.push(format!("=== {name}\n{complaint}"));
            }
        }
    }
    println!("{count} cells");
    assert!(failures.is_empty(), "{} of {count} cells differ\n{}", failures.len(), failures.join("\n"));
}

/// The entries of `docs/differences.md` that the table uses.
pub fn differences() -> Vec<&'static str> {
    let used = cases().into_iter().flat_map(|case| case.differences.into_iter().map(|d| d.id));
    used.chain([GIVEN_UP]).collect()
}
