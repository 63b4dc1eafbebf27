//! Decisions, from configuration to answer.

use std::cell::Cell;
use std::rc::Rc;

use outrigger_control_api::load_value;
use outrigger_control_api::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpConfig;
use outrigger_control_api::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkConfig;
use serde_json::{json, Value};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::*;
use crate::config::compile::rbac;
use crate::config::problems::Problems;
use crate::config::{HeaderKey, HeaderView, RequestView};
use crate::telemetry::fixtures::{connection, Head};
use crate::telemetry::metrics::{snapshot, Scope};
use crate::telemetry::stream_info::ConnectionInfo;
use crate::tls::{Peer, TlsInfo};

/// A request: a path and headers.
struct Request {
    path: &'static str,
    head: Head,
}

fn request(path: &'static str, fields: &[(&'static str, &str)]) -> Request {
    Request { path, head: Head::new(fields) }
}

impl HeaderView for Request {
    fn values(&self, key: &HeaderKey, each: &mut dyn FnMut(&[u8])) {
        self.head.values(key, each);
    }
    fn first(&self, key: &HeaderKey) -> Option<&[u8]> {
        self.head.first(key)
    }
    fn byte_size(&self) -> usize {
        0
    }
}

impl RequestView for Request {
    fn method(&self) -> &[u8] {
        b"GET"
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn authority(&self) -> &[u8] {
        b"t.test"
    }
    fn scheme(&self) -> &[u8] {
        b"http"
    }
    fn upgrade(&self) -> Option<&[u8]> {
        None
    }
    fn is_grpc(&self) -> bool {
        false
    }
    fn remote_address(&self) -> Option<std::net::SocketAddr> {
        "203.0.113.7:1000".parse().ok()
    }
}

/// A client at 10.0.0.9 that meant to reach 127.0.0.1:8080, with the names of a certificate: `None` without TLS,
/// nothing without a certificate.
fn client(names: Option<&[&str]>) -> ConnectionInfo {
    let mut info = connection("10.0.0.9:4444".parse().ok(), "127.0.0.1:8080".parse().ok());
    let Some(names) = names else { return info };
    let peer = (!names.is_empty()).then(|| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "the subject");
        for name in names {
            let text = (*name).try_into().unwrap();
            let uri = name.contains(':');
            params.subject_alt_names.push(if uri {
                rcgen::SanType::URI(text)
            } else {
                rcgen::SanType::DnsName(text)
            });
        }
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        Peer::of(&[CertificateDer::from(certificate.der().to_vec())]).unwrap()
    });
    let tls = TlsInfo { version: "", cipher: "", group: "", peer, local: None, lenient: false };
    info.tls = Some(Rc::new(tls));
    info
}

fn compile(config: &Value) -> Result<Filter, String> {
    let loaded = load_value::<HttpConfig>(config).unwrap();
    let mut problems = Problems::new();
    let filter = rbac::http(&loaded.message, &Scope::raw("unit"), &mut problems);
    filter.filter(|_| problems.is_empty()).ok_or_else(|| problems.to_string())
}

fn engine(config: &Value) -> Engine {
    compile(&json!({"rules": config})).unwrap().rules.enforced.unwrap()
}

/// Rules with one policy.
fn one(permission: &Value, principal: &Value) -> Engine {
    engine(&json!({"policies": {"p": {"permissions": [permission], "principals": [principal]}}}))
}

fn facts<'a>(connection: &'a ConnectionInfo, request: &'a Request) -> Facts<'a> {
    Facts { request: Some(request), ..Facts::of_connection(connection) }
}

#[test]
fn permissions() {
    let any = json!({"any": true});
    let plain = client(None);
    let get = request("/a/b?q#f", &[("x-h", "one"), ("x-h", "two")]);
    let bare = request("", &[]);
    for (permission, with, without) in [
        (json!({"any": true}), true, true),
        (json!({"url_path": {"path": {"exact": "/a/b"}}}), true, false),
        (json!({"url_path": {"path": {"exact": "/a/b?q"}}}), false, false),
        (json!({"url_path": {"path": {"prefix": "/a"}}}), true, false),
        (json!({"url_path": {"path": {"suffix": "/B", "ignore_case": true}}}), true, false),
        (json!({"url_path": {"path": {"safe_regex": {"regex": "/[a-z]"}}}}), false, false),
        (json!({"not_rule": {"url_path": {"path": {"prefix": "/a"}}}}), false, true),
        (json!({"header": {"name": "X-H", "string_match": {"exact": "two"}}}), true, false),
        (
            json!({"header": {"name": "x-h", "string_match": {"exact": "two"}, "invert_match": true}}),
            false,
            false,
        ),
        (json!({"header": {"name": "x-h", "present_match": false}}), false, true),
        (json!({"destination_ip": {"address_prefix": "127.0.0.0", "prefix_len": 8}}), true, true),
        (json!({"destination_ip": {"address_prefix": "::", "prefix_len": 0}}), false, false),
        (json!({"destination_port": 8080}), true, true),
        (json!({"destination_port": 8081}), false, false),
        (json!({"destination_port_range": {"start": 8080, "end": 8081}}), true, true),
        (json!({"destination_port_range": {"start": 8000, "end": 8080}}), false, false),
        (json!({"requested_server_name": {"safe_regex": {"regex": ""}}}), true, true),
        (json!({"requested_server_name": {"prefix": "a"}}), false, false),
        (
            json!({"and_rules": {"rules": [{"destination_port": 8080}, {"url_path": {"path": {"prefix": "/a"}}}]}}),
            true,
            false,
        ),
        (
            json!({"or_rules": {"rules": [{"destination_port": 1}, {"url_path": {"path": {"prefix": "/a"}}}]}}),
            true,
            false,
        ),
        // Without metadata an inverted matcher passes; without a route nothing does.
        (
            json!({"metadata": {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": true}}}),
            false,
            false,
        ),
        (
            json!({"metadata": {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": true}, "invert": true}}),
            true,
            true,
        ),
        (
            json!({"sourced_metadata": {"metadata_source": "ROUTE", "metadata_matcher": {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": true}, "invert": true}}}),
            false,
            false,
        ),
    ] {
        let engine = one(&permission, &any);
        assert_eq!(engine.decide(&facts(&plain, &get)).allowed, with, "{permission}");
        assert_eq!(engine.decide(&facts(&plain, &bare)).allowed, without, "{permission} of a bare request");
    }
}

#[test]
fn principals() {
    let any = json!({"any": true});
    let get = request("/", &[]);
    let mesh = client(Some(&["spiffe://td/ns/a/sa/b", "b.a.svc", "spiffe://td/other"]));
    let anonymous = client(Some(&[]));
    let plain = client(None);
    let name = |matcher: Value| json!({"authenticated": {"principal_name": matcher}});
    let mtls = |config: Value| {
        let mut config = config;
        config["@type"] =
            "type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config".into();
        json!({"custom": {"name": "m", "typed_config": config}})
    };
    for (principal, wanted) in [
        (json!({"authenticated": {}}), [true, true, false]),
        (name(json!({"exact": "spiffe://td/ns/a/sa/b"})), [true, false, false]),
        (name(json!({"exact": "spiffe://td/other"})), [true, false, false]),
        (name(json!({"exact": "b.a.svc"})), [true, false, false]),
        (name(json!({"exact": "CN=the subject"})), [true, false, false]),
        (name(json!({"prefix": "spiffe://td/ns/a/"})), [true, false, false]),
        (name(json!({"suffix": "/sa/b"})), [true, false, false]),
        (name(json!({"contains": "/ns/x/"})), [false, false, false]),
        // Whoever has TLS and no certificate has an empty subject.
        (name(json!({"safe_regex": {"regex": ".*"}})), [true, true, false]),
        (json!({"not_id": name(json!({"prefix": "spiffe://td/"}))}), [false, true, true]),
        (mtls(json!({"any_validated_client_certificate": true})), [true, false, false]),
        (
            mtls(json!({"san_matcher": {"san_type": "URI", "matcher": {"prefix": "spiffe://td/"}}})),
            [true, false, false],
        ),
        (
            mtls(json!({"san_matcher": {"san_type": "DNS", "matcher": {"prefix": "spiffe://td/"}}})),
            [false, false, false],
        ),
        (json!({"source_ip": {"address_prefix": "10.0.0.0", "prefix_len": 24}}), [true, true, true]),
        (json!({"direct_remote_ip": {"address_prefix": "10.0.0.9", "prefix_len": 32}}), [true, true, true]),
        (json!({"remote_ip": {"address_prefix": "10.0.0.9", "prefix_len": 32}}), [false, false, false]),
        (json!({"remote_ip": {"address_prefix": "203.0.113.0", "prefix_len": 24}}), [true, true, true]),
        (
            json!({"and_ids": {"ids": [{"authenticated": {}}, {"not_id": name(json!({"exact": "b.a.svc"}))}]}}),
            [false, true, false],
        ),
        (
            json!({"or_ids": {"ids": [name(json!({"exact": "x"})), name(json!({"exact": "b.a.svc"}))]}}),
            [true, false, false],
        ),
    ] {
        let engine = one(&any, &principal);
        let found = [&mesh, &anonymous, &plain].map(|client| engine.decide(&facts(client, &get)).allowed);
        assert_eq!(found, wanted, "{principal}");
    }
    // A certificate that was not verified proves nothing.
    let engine = one(&any, &mtls(json!({"any_validated_client_certificate": true})));
    let mut lenient = client(Some(&["spiffe://td/ns/a/sa/b"]));
    let tls = Rc::into_inner(lenient.tls.take().unwrap()).unwrap();
    lenient.tls = Some(Rc::new(TlsInfo { lenient: true, ..tls }));
    assert!(!engine.decide(&facts(&lenient, &get)).allowed);
}

#[test]
fn actions_and_the_order_of_policies() {
    let plain = client(None);
    let policy = |path: &str| json!({"permissions": [{"url_path": {"path": {"prefix": path}}}], "principals": [{"any": true}]});
    let policies = json!({"b": policy("/x"), "a": policy("/x/y"), "Z": policy("/z")});
    let decide = |action: &str, path: &'static str| {
        let engine = engine(&json!({"action": action, "policies": policies}));
        let request = request(path, &[]);
        let decision = engine.decide(&facts(&plain, &request));
        (decision.allowed, decision.policy.map(str::to_owned), decision.log)
    };
    assert_eq!(decide("ALLOW", "/x/y"), (true, Some("a".into()), None));
    assert_eq!(decide("ALLOW", "/x"), (true, Some("b".into()), None));
    assert_eq!(decide("ALLOW", "/"), (false, None, None));
    assert_eq!(decide("DENY", "/z"), (false, Some("Z".into()), None));
    assert_eq!(decide("DENY", "/"), (true, None, None));
    assert_eq!(decide("LOG", "/z"), (true, Some("Z".into()), Some(true)));
    assert_eq!(decide("LOG", "/"), (true, None, Some(false)));
    // Rules without policies decide too.
    let empty = |action: &str| engine(&json!({"action": action}));
    let request = request("/", &[]);
    assert!(!empty("ALLOW").decide(&facts(&plain, &request)).allowed);
    assert!(empty("DENY").decide(&facts(&plain, &request)).allowed);
}

/// Many policies of every kind decide as a walk over all of them does.
#[test]
fn the_index_changes_no_decision() {
    let seed = std::env::var("OUTRIGGER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut random = fastrand::Rng::with_seed(seed);
    let names = ["spiffe://td/ns/a/sa/b", "spiffe://td/ns/a/sa/c", "b.a.svc"];
    let clients = [client(None), client(Some(&[])), client(Some(&names[..1])), client(Some(&names[1..]))];
    let requests = [
        request("/a", &[("x-h", "one")]),
        request("/a/b", &[("x-h", "one"), ("x-h", "two")]),
        request("/c?x", &[]),
        request("", &[]),
    ];
    for round in 0..60 {
        let random_text = |texts: &[&str], random: &mut fastrand::Rng| {
            let kind = ["exact", "prefix", "suffix", "contains"][random.usize(0..4)];
            json!({kind: texts[random.usize(0..texts.len())]})
        };
        let leaf = |random: &mut fastrand::Rng, who: bool| match random.u8(0..6) {
            0 | 1 if who => {
                let texts = [names[0], names[1], names[2], "spiffe://td/", "/sa/c", "CN=the subject"];
                json!({"authenticated": {"principal_name": random_text(&texts, random)}})
            }
            0 => json!({"destination_port": 8079 + u32::from(random.u8(0..3))}),
            1 => {
                let start = 8070 + u32::from(random.u8(0..20));
                json!({"destination_port_range": {"start": start, "end": start + 1 + u32::from(random.u8(0..10))}})
            }
            2 => {
                let field = if who { "remote_ip" } else { "destination_ip" };
                let ip = ["203.0.113.7", "127.0.0.1", "10.0.0.9", "::1"][random.usize(0..4)];
                json!({field: {"address_prefix": ip, "prefix_len": random.u8(0..33)}})
            }
            3 => {
                json!({"header": {"name": "x-h", "string_match": random_text(&["one", "two", "o"], random)}})
            }
            _ => json!({"url_path": {"path": random_text(&["/a", "/a/b", "/c", "b"], random)}}),
        };
        let tree = |random: &mut fastrand::Rng, who: bool| {
            let (and, or, not, list) = match who {
                true => ("and_ids", "or_ids", "not_id", "ids"),
                false => ("and_rules", "or_rules", "not_rule", "rules"),
            };
            match random.u8(0..6) {
                0 => json!({"any": true}),
                1 => json!({not: leaf(random, who)}),
                2 => json!({and: {list: [leaf(random, who), leaf(random, who)]}}),
                3 => json!({or: {list: [leaf(random, who), leaf(random, who), leaf(random, who)]}}),
                _ => leaf(random, who),
            }
        };
        let count = if round % 2 == 0 { 40 } else { 9 };
        let policies: serde_json::Map<String, Value> = (0..count)
            .map(|number| {
                let policy = json!({"permissions": [tree(&mut random, false), tree(&mut random, false)],
                    "principals": [tree(&mut random, true)]});
                (format!("p{number:02}"), policy)
            })
            .collect();
        let engine = engine(&json!({"policies": policies}));
        let Engine::Policies { policies: compiled, index, .. } = &engine else { unreachable!() };
        for client in &clients {
            for request in &requests {
                let facts = facts(client, request);
                let walked = compiled.iter().position(|policy| policy.condition.matches(&facts));
                let looked = Cell::new(0);
                let found = index.first(&facts, |number| {
                    looked.set(looked.get() + 1);
                    compiled[number as usize].condition.matches(&facts)
                });
                assert_eq!(found, walked.map(|at| at as u32), "seed {seed}, round {round}: {policies:?}");
                assert!(looked.get() <= count);
            }
        }
    }
}

#[test]
fn who_cannot_match_is_not_looked_at() {
    let policies: serde_json::Map<String, Value> = (0..1000)
        .map(|number| {
            let name = format!("spiffe://td/ns/n{number}/sa/s");
            let policy = json!({"permissions": [{"header": {"name": ":method", "string_match": {"exact": "GET"}}}],
                "principals": [{"authenticated": {"principal_name": {"exact": name}}}]});
            (format!("p{number:04}"), policy)
        })
        .collect();
    let engine = engine(&json!({"policies": policies}));
    let Engine::Policies { index, .. } = &engine else { unreachable!() };
    let looked = Cell::new(0);
    let (mesh, get) = (client(Some(&["spiffe://td/ns/n7/sa/s"])), request("/", &[]));
    let _ = index.first(&facts(&mesh, &get), |_| {
        looked.set(looked.get() + 1);
        false
    });
    assert_eq!(looked.get(), 1);
}

fn tree(matcher: &Value) -> Engine {
    compile(&json!({"matcher": matcher})).unwrap().rules.enforced.unwrap()
}

fn act(name: &str, action: &str) -> Value {
    json!({"action": {"name": "a", "typed_config": {
        "@type": "type.googleapis.com/envoy.config.rbac.v3.Action", "name": name, "action": action}}})
}

fn input(kind: &str) -> Value {
    let kind = format!("type.googleapis.com/envoy.extensions.matching.common_inputs.{kind}");
    json!({"name": "i", "typed_config": {"@type": kind}})
}

#[test]
fn trees() {
    let single =
        |kind: &str, text: Value| json!({"single_predicate": {"input": input(kind), "value_match": text}});
    let uri = "ssl.v3.UriSanInput";
    let list = tree(&json!({
        "matcher_list": {"matchers": [
            {"predicate": single(uri, json!({"exact": "spiffe://td/ns/a/sa/bad"})), "on_match": act("bad", "DENY")},
            {"predicate": {"and_matcher": {"predicate": [
                single(uri, json!({"prefix": "spiffe://td/"})),
                {"not_matcher": single("network.v3.DestinationPortInput", json!({"exact": "1"}))}]}},
             "on_match": {"matcher": {"matcher_tree": {"input": input("network.v3.SourceIPInput"),
                "exact_match_map": {"map": {"203.0.113.7": act("mesh", "ALLOW")}}}}}},
        ]},
        "on_no_match": act("rest", "DENY")}));
    let get = request("/", &[]);
    let decide = |engine: &Engine, names: Option<&[&str]>| {
        let client = client(names);
        let decision = engine.decide(&facts(&client, &get));
        (decision.allowed, decision.policy.map(str::to_owned))
    };
    assert_eq!(decide(&list, Some(&["spiffe://td/ns/a/sa/bad"])), (false, Some("bad".into())));
    assert_eq!(decide(&list, Some(&["spiffe://td/ns/a/sa/b"])), (true, Some("mesh".into())));
    // Several names are one text.
    assert_eq!(
        decide(&list, Some(&["spiffe://td/x", "spiffe://td/ns/a/sa/bad"])),
        (true, Some("mesh".into()))
    );
    assert_eq!(decide(&list, Some(&[])), (false, Some("rest".into())));
    // Without TLS nothing is known of certificates, and nothing further is looked at.
    assert_eq!(decide(&list, None), (false, None));

    // The longest beginning that leads somewhere counts.
    let prefixes = tree(&json!({"matcher_tree": {"input": input(uri), "prefix_match_map": {"map": {
        "spiffe://td/": act("td", "ALLOW"),
        "spiffe://td/ns/a/": {"matcher": {"matcher_tree": {"input": input("network.v3.ServerNameInput"),
            "exact_match_map": {"map": {"a.test": act("a", "ALLOW")}}}}},
        "spiffe://td/ns/b/": act("b", "DENY")}}}}));
    assert_eq!(decide(&prefixes, Some(&["spiffe://td/ns/a/sa/b"])), (true, Some("td".into())));
    assert_eq!(decide(&prefixes, Some(&["spiffe://td/ns/b/sa/b"])), (false, Some("b".into())));
    // Nothing found is denied.
    assert_eq!(decide(&prefixes, Some(&["spiffe://other/"])), (false, None));
    assert_eq!(decide(&tree(&json!({})), None), (false, None));

    let mut kept = act("kept", "DENY");
    kept["keep_matching"] = true.into();
    let keeps = tree(&json!({"matcher_list": {"matchers": [
        {"predicate": single("network.v3.DestinationPortInput", json!({"exact": "8080"})), "on_match": kept},
        {"predicate": {"single_predicate": {"input": input("network.v3.DirectSourceIPInput"), "custom_match": {
            "name": "ip", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.matching.input_matchers.ip.v3.Ip",
                "cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}], "stat_prefix": "s"}}}},
         "on_match": act("near", "LOG")}]}}));
    let plain = client(None);
    let decision = keeps.decide(&facts(&plain, &get));
    assert_eq!((decision.allowed, decision.policy, decision.log), (true, Some("near"), Some(true)));
}

#[test]
fn what_is_counted_and_told() {
    let policy = |path: &str| json!({"permissions": [{"url_path": {"path": {"prefix": path}}}], "principals": [{"any": true}]});
    let config = load_value::<HttpConfig>(&json!({
        "rules": {"action": "DENY", "policies": {"no way in": policy("/no")}},
        "rules_stat_prefix": "own_",
        "shadow_rules": {"policies": {"yes": policy("/yes")}},
        "shadow_rules_stat_prefix": "dry_",
        "track_per_rule_stats": true}))
    .unwrap();
    let scope = Scope::raw("counted");
    let filter = rbac::http(&config.message, &scope, &mut Problems::new()).unwrap();
    let plain = client(None);
    let judge = |path: &'static str, tell: bool| {
        let request = request(path, &[]);
        filter.judge_own(&facts(&plain, &request), tell)
    };
    let verdict = judge("/no", true);
    assert!(!verdict.allowed);
    assert_eq!(verdict.details, "rbac_access_denied_matched_policy[no_way_in]");
    let told: Vec<_> = verdict.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(
        told,
        [
            "dry_shadow_engine_result=denied",
            "own_enforced_effective_policy_id=no way in",
            "own_enforced_engine_result=denied"
        ]
    );
    assert!(judge("/yes", false).allowed);
    let found = snapshot();
    for (name, wanted) in [
        ("own_.allowed", Some(1)),
        ("own_.denied", Some(1)),
        ("dry_.shadow_allowed", Some(1)),
        ("dry_.shadow_denied", Some(1)),
        ("own_.policy.no way in.denied", Some(1)),
        ("dry_.policy.yes.shadow_allowed", Some(1)),
        // What was never counted is not there.
        ("own_.policy.no way in.allowed", None),
    ] {
        assert_eq!(found.number(&format!("counted.rbac.{name}")), wanted, "{name}");
    }
    // Without rules nothing is counted and everything passes.
    assert!(filter.judge(&Rules::default(), &facts(&plain, &request("/no", &[])), true).metadata.is_empty());
    assert_eq!(snapshot().number("counted.rbac.own_.denied"), Some(1));
}

#[test]
fn what_cannot_be_done_is_refused_by_its_path() {
    let policy = |permission: Value, principal: Value| json!({"rules": {"policies": {"p": {"permissions": [permission], "principals": [principal]}}}});
    let any = || json!({"any": true});
    let at = "rules.policies[\"p\"].";
    for (config, wanted) in [
        (
            policy(json!({"destination_port_range": {"start": 5, "end": 5}}), any()),
            format!("{at}permissions[0].destination_port_range: starts at 5 and ends before 5"),
        ),
        (
            policy(json!({"destination_port_range": {"start": 5, "end": 70000}}), any()),
            format!("{at}permissions[0].destination_port_range.end: is 70000, must be from 0 to 65536"),
        ),
        (
            policy(json!({"and_rules": {"rules": [any(), {"not_rule": {"url_path": {"path": {"safe_regex": {"regex": "("}}}}}]}}), any()),
            format!("{at}permissions[0].and_rules.rules[1].not_rule.url_path.path.safe_regex.regex: "),
        ),
        (
            policy(any(), json!({"source_ip": {"address_prefix": "ten"}})),
            format!("{at}principals[0].source_ip.address_prefix: \"ten\" is not an IP address"),
        ),
        (
            json!({"matcher": {"matcher_tree": {"input": input("network.v3.SourceTypeInput"), "exact_match_map": {"map": {"a": act("a", "ALLOW")}}}}}),
            "matcher.matcher_tree.input.typed_config: the input envoy.extensions.matching.common_inputs.network.v3.SourceTypeInput is not supported here".to_owned(),
        ),
    ] {
        let problem = compile(&config).unwrap_err();
        assert!(problem.starts_with(&wanted), "{problem}\nwanted {wanted}");
    }
    let network = |config: Value| {
        let loaded = load_value::<NetworkConfig>(&config).unwrap();
        let mut problems = Problems::new();
        let _ = rbac::network(&loaded.message, &mut problems);
        problems.to_string()
    };
    let header = json!({"header": {"name": "x", "present_match": true}});
    assert_eq!(
        network(policy(json!({"not_rule": header}), any())),
        format!("{at}permissions[0].not_rule.header: a connection has no headers to look at")
    );
    assert_eq!(network(policy(json!({"url_path": {"path": {"exact": "/"}}}), any())), "");
}
