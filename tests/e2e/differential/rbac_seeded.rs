//! Policies of role-based access control drawn from a seed (`OUTRIGGER_SEED` repeats a run), decided by both proxies.

use super::rbac::{
    ask, connect, http, http_rbac, listener, ok, per_route, same_counts, side, template, typed, Side,
    CLIENTS, REQUESTS,
};
use super::set;
use crate::harness::proxy::Kind;
use crate::peers;
use crate::tls::certs::Certs;
use serde_json::{json, Value};

fn text(random: &mut fastrand::Rng, values: &[&str]) -> Value {
    let value = values[random.usize(..values.len())];
    let part = &value[..random.usize(1..=value.len())];
    let end = &value[random.usize(..value.len())..];
    let mut matcher = match random.u8(..8) {
        0..=2 => json!({"exact": value}),
        3 | 4 => json!({"prefix": part}),
        5 => json!({"suffix": end}),
        6 => json!({"contains": end}),
        _ => return json!({"safe_regex": {"regex": format!("{}.*", part.replace('.', "\\."))}}),
    };
    if random.u8(..5) == 0 {
        matcher["ignore_case"] = true.into();
    }
    matcher
}

fn range(random: &mut fastrand::Rng) -> Value {
    let ips = ["127.0.0.1", "10.1.2.3", "192.168.7.7", "fd00::7", "10.1.0.0", "::1"];
    let ip = ips[random.usize(..ips.len())];
    json!({"address_prefix": ip, "prefix_len": random.u8(..if ip.contains(':') { 129 } else { 33 })})
}

fn header(random: &mut fastrand::Rng) -> Value {
    let mut matcher = match random.u8(..6) {
        0 => json!({"name": ":method", "string_match": text(random, &["GET", "POST", "OPTIONS"])}),
        1 => json!({"name": ":authority", "string_match": text(random, &["t.test"])}),
        2 => json!({"name": "x-count", "range_match": {"start": random.i32(0..6).to_string(), "end": "12"}}),
        3 => json!({"name": "X-User", "present_match": random.bool()}),
        _ => json!({"name": "x-user", "string_match": text(random, &["alice", "bob", "alice,bob"])}),
    };
    if random.u8(..4) == 0 {
        matcher["invert_match"] = true.into();
    }
    if random.u8(..4) == 0 {
        matcher["treat_missing_header_as_empty"] = true.into();
    }
    matcher
}

fn url_path(random: &mut fastrand::Rng) -> Value {
    json!({"path": text(random, &["/api/v1/items", "/admin", "/static/a.png", "/api/v2/items/7", "/"])})
}

/// A permission or a principal; `depth` more levels may follow.
fn rule(random: &mut fastrand::Rng, who: bool, depth: u8) -> Value {
    let (and, or, not, list) = match who {
        true => ("and_ids", "or_ids", "not_id", "ids"),
        false => ("and_rules", "or_rules", "not_rule", "rules"),
    };
    if depth > 0 {
        let several = |random: &mut fastrand::Rng| -> Vec<Value> {
            (0..random.usize(1..4)).map(|_| rule(random, who, depth - 1)).collect()
        };
        match random.u8(..8) {
            0 | 1 => return json!({and: {list: several(random)}}),
            2..=4 => return json!({or: {list: several(random)}}),
            5 => return json!({not: rule(random, who, depth - 1)}),
            _ => {}
        }
    }
    let names = [
        "spiffe://mesh.test/client",
        "spiffe://evil.test/client",
        "client.mesh.test",
        "CN=client,O=Mesh\\, Inc",
    ];
    match (random.u8(..12), who) {
        (0, _) => json!({"any": true}),
        (1 | 2, _) => json!({"header": header(random)}),
        (3, _) => json!({"url_path": url_path(random)}),
        (4, _) => {
            let value = json!({"filter": "none", "path": [{"key": "k"}], "value": {"present_match": random.bool()},
                "invert": random.bool()});
            match random.u8(..3) {
                0 => json!({"sourced_metadata": {"metadata_matcher": value, "metadata_source": "ROUTE"}}),
                _ => json!({"metadata": value}),
            }
        }
        (5 | 6, false) => json!({"url_path": url_path(random)}),
        (7, false) => json!({"destination_ip": range(random)}),
        (8, false) => {
            let port = ["@port:plain@", "@port:tls@", "80"][random.usize(..3)];
            json!({"destination_port": port})
        }
        (9, false) => {
            let start = random.u32(..60000);
            json!({"destination_port_range": {"start": start, "end": start + 1 + random.u32(..65536 - start)}})
        }
        (_, false) => json!({"requested_server_name": text(random, &["server.mesh.test"])}),
        (5, true) => json!({"source_ip": range(random)}),
        (6, true) => json!({"direct_remote_ip": range(random)}),
        (7, true) => json!({"remote_ip": range(random)}),
        (8, true) => json!({"authenticated": {}}),
        (9, true) => {
            let kind = "extensions.rbac.principals.mtls_authenticated.v3.Config";
            let config = match random.u8(..3) {
                0 => json!({"any_validated_client_certificate": true}),
                1 => json!({"san_matcher": {"san_type": "URI", "matcher": text(random, &names[..2])}}),
                _ => json!({"san_matcher": {"san_type": "DNS", "matcher": {"exact": names[2]}}}),
            };
            json!({"custom": {"name": "envoy.rbac.principals.mtls_authenticated", "typed_config": typed(kind, config)}})
        }
        (_, true) => json!({"authenticated": {"principal_name": text(random, &names)}}),
    }
}

fn policy(random: &mut fastrand::Rng) -> Value {
    let mut several =
        |who: bool| -> Vec<Value> { (0..random.usize(1..3)).map(|_| rule(random, who, 2)).collect() };
    json!({"permissions": several(false), "principals": several(true)})
}

/// Runs every request of every client by every route, and says what was answered.
async fn evaluate(side: &Side, certs: &Certs, policies: usize) -> Vec<String> {
    let mut answers = Vec::new();
    for (listener, own) in CLIENTS {
        let mut stream = connect(side.proxy.port(listener), *own, certs).await;
        for (case, (method, target, headers)) in REQUESTS.iter().enumerate() {
            for policy in 0..=policies {
                let request = format!(
                    "{method} {target} HTTP/1.1\r\nhost: t.test\r\nx-case: {listener}-{own:?}-{case}\r\nx-policy: {policy}\r\n{headers}\r\n"
                );
                let answer = ask(&mut stream, &request).await;
                answers.push(format!(
                    "{method} {target} {headers:?} by {listener} {own:?}, policy {policy}: {answer}"
                ));
            }
        }
    }
    answers
}

/// Policies by the hundred, one to a route, and all of them together.
#[tokio::test]
async fn rbac_policies_from_a_seed() {
    if !peers::have(&["envoy"]) {
        return;
    }
    const POLICIES: usize = 200;
    let seed = set("OUTRIGGER_SEED").and_then(|seed| seed.parse().ok()).unwrap_or(20_261_121);
    println!("OUTRIGGER_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let policies: Vec<Value> = (0..POLICIES).map(|_| policy(&mut random)).collect();
    let all: serde_json::Map<String, Value> =
        policies.iter().enumerate().map(|(number, policy)| (format!("p{number}"), policy.clone())).collect();
    let mut routes: Vec<Value> = (policies.iter().enumerate())
        .map(|(number, policy)| {
            let action = ["ALLOW", "DENY"][number % 2];
            let rules = json!({"action": action, "policies": {format!("alone {number}"): policy}});
            let mut route =
                ok("/", &per_route(json!({"rbac": {"rules": rules, "track_per_rule_stats": true}})));
            route["match"]["headers"] =
                json!([{"name": "x-policy", "string_match": {"exact": number.to_string()}}]);
            route
        })
        .collect();
    routes.push(ok("/", &json!({})));
    // Few of the policies are met by a request, so that not always the first one decides.
    let some: serde_json::Map<String, Value> = all
        .iter()
        .filter(|(name, _)| name.ends_with(['3', '7']))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let filters = [http_rbac(json!({"rules": {"action": "DENY", "policies": some},
        "shadow_rules": {"policies": all}, "shadow_rules_stat_prefix": "dry", "track_per_rule_stats": true}))];
    let listeners: Vec<_> = [("plain", false), ("tls", true)]
        .map(|(name, tls)| listener(name, &json!([http(name, &filters, &json!(routes))]), tls))
        .into();
    let template = template(&listeners);
    let certs = Certs::new();
    let (envoy, ours) = tokio::join!(
        side(Kind::Envoy, &template, certs.path()),
        side(Kind::Outrigger, &template, certs.path())
    );
    let (theirs, mine) = tokio::join!(evaluate(&envoy, &certs, POLICIES), evaluate(&ours, &certs, POLICIES));
    let total = theirs.len();
    let allowed = theirs.iter().filter(|line| line.contains(" 200 OK")).count();
    println!("{total} decisions, {allowed} allowed");
    let wrong: Vec<_> = theirs.iter().zip(&mine).filter(|(theirs, mine)| theirs != mine).take(20).collect();
    for (theirs, _) in &wrong {
        let number =
            theirs.split("policy ").nth(1).and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
        println!("{}", number.and_then(|number| policies.get(number)).unwrap_or(&Value::Null));
    }
    assert!(wrong.is_empty(), "seed {seed}: left is Envoy's\n{wrong:#?}");
    assert!(allowed > total / 5 && allowed < total * 4 / 5, "a poor seed: {allowed} of {total} allowed");
    let (theirs, mine) = tokio::join!(envoy.lines(total), ours.lines(total));
    let wrong: Vec<_> = theirs.iter().zip(&mine).filter(|(theirs, mine)| theirs != mine).take(10).collect();
    assert!(wrong.is_empty() && theirs.len() == mine.len(), "seed {seed}: left is Envoy's\n{wrong:#?}");
    same_counts(&envoy, &ours).await;
}
