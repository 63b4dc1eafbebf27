//! A bundle as both proxies are served it, and what of it matters for what they are asked.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{json, Value};

use super::super::corpus::{Bundle, Corpus};

/// What is logged of each stream; the first field tells whose it is.
const LOG: &str = "peer=%DOWNSTREAM_DIRECT_REMOTE_ADDRESS% to=%DOWNSTREAM_LOCAL_ADDRESS%\\tprotocol=%PROTOCOL%\\tcode=%RESPONSE_CODE%\\tflags=%RESPONSE_FLAGS%\\tdetails=%RESPONSE_CODE_DETAILS%\\tcluster=%UPSTREAM_CLUSTER%\\troute=%ROUTE_NAME%\\tattempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT%\\tname=%REQUESTED_SERVER_NAME%\\tidentity=%DOWNSTREAM_PEER_URI_SAN%\\treceived=%BYTES_RECEIVED%\\tsent=%BYTES_SENT%\\tend=%CONNECTION_TERMINATION_DETAILS%\\n";

/// A bundle that can be served.
pub struct Prepared {
    pub resources: Vec<Value>,
    /// Identities that a client could have.
    pub principals: Vec<String>,
    /// Identities that servers are expected to have.
    pub servers: Vec<String>,
    /// Paths that policies speak of.
    pub paths: Vec<String>,
    /// Secrets: whether they are certificates.
    pub secrets: BTreeSet<(String, bool)>,
}

fn is_list_of_filters(key: &str) -> bool {
    matches!(key, "httpFilters" | "filters" | "listenerFilters")
}

/// Filters that only Istio's own build of Envoy has.
fn is_of_istio(filter: &Value) -> bool {
    let config = &filter["typedConfig"];
    let kind = config["typeUrl"].as_str().or(config["@type"].as_str()).unwrap_or_default();
    let name = kind.rsplit('/').next().unwrap_or_default();
    ["istio.", "io.istio.", "stats.PluginConfig", "envoy.tcp.metadataexchange."]
        .iter()
        .any(|start| name.starts_with(start))
}

impl Prepared {
    /// Prepares `bundle`; logs are written to `log`.
    pub fn of(corpus: &Corpus, bundle: &Bundle, log: &str) -> Prepared {
        let mut prepared = Prepared {
            resources: Vec::new(),
            principals: Vec::new(),
            servers: Vec::new(),
            paths: Vec::new(),
            secrets: BTreeSet::new(),
        };
        for file in &bundle.files {
            let mut value = corpus.value(file).clone();
            if let Some(fields) = value.as_object_mut() {
                fields.shift_remove("accessLog");
            }
            prepared.rewrite(&mut value, log);
            if file.contains("/clusters/") {
                settle(&mut value);
            }
            prepared.resources.push(value);
        }
        prepared.resources.extend(corpus.missing_clusters(bundle));
        prepared
    }

    /// All resources of this kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> + 'a {
        self.resources
            .iter()
            .filter(move |value| value["@type"].as_str().is_some_and(|name| name.ends_with(kind)))
    }

    fn rewrite(&mut self, value: &mut Value, log: &str) {
        match value {
            Value::Array(list) => list.iter_mut().for_each(|value| self.rewrite(value, log)),
            Value::Object(fields) => {
                let kind = fields.get("@type").and_then(Value::as_str).unwrap_or_default();
                if kind.ends_with(".HttpConnectionManager") || kind.ends_with(".TcpProxy") {
                    fields.insert("accessLog".to_owned(), json!([file_log(log)]));
                }
                if let Some(clusters) = fields.get_mut("weightedClusters") {
                    first_takes_all(clusters);
                }
                for (key, value) in fields.iter_mut() {
                    match (key.as_str(), &mut *value) {
                        ("tlsCertificateSdsSecretConfigs" | "tls_certificate_sds_secret_configs", list) => {
                            let one = |one: &Value| one["name"].as_str().map(|name| (name.to_owned(), true));
                            self.secrets.extend(list.as_array().into_iter().flatten().filter_map(one));
                        }
                        (
                            "validationContextSdsSecretConfig" | "validation_context_sds_secret_config",
                            one,
                        ) => {
                            self.secrets.extend(one["name"].as_str().map(|name| (name.to_owned(), false)));
                        }
                        ("percentage", part) if part.get("numerator").is_some() => {
                            *part = json!({"numerator": 100, "denominator": "HUNDRED"});
                        }
                        (name, Value::Array(list)) if is_list_of_filters(name) => {
                            list.retain(|filter| !is_of_istio(filter));
                        }
                        ("exact" | "prefix" | "suffix", Value::String(text)) => {
                            if text.starts_with("spiffe://") {
                                let names = if text.ends_with('/') {
                                    format!("{text}ns/other/sa/other")
                                } else {
                                    text.clone()
                                };
                                self.servers.push(names.clone());
                                self.principals.push(names);
                            } else if text.starts_with('/') {
                                self.paths.push(text.clone());
                            }
                        }
                        _ => {}
                    }
                    self.rewrite(value, log);
                }
            }
            _ => {}
        }
    }
}

fn file_log(path: &str) -> Value {
    json!({"name": "envoy.access_loggers.file", "typedConfig": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": path, "logFormat": {"textFormatSource": {"inlineString": LOG.replace("\\t", "\t").replace("\\n", "\n")}}}})
}

/// Of clusters between which chance decides, the first is always chosen.
fn first_takes_all(clusters: &mut Value) {
    let Some(list) = clusters.get_mut("clusters").and_then(Value::as_array_mut) else { return };
    let sum: u64 = list.iter().filter_map(|one| one["weight"].as_u64()).sum();
    for (index, one) in list.iter_mut().enumerate() {
        one["weight"] = if index == 0 { sum.into() } else { 0.into() };
    }
}

/// A cluster whose hosts have names gets addresses for them.
fn settle(cluster: &mut Value) {
    if !matches!(cluster["type"].as_str(), Some("STRICT_DNS" | "LOGICAL_DNS")) {
        return;
    }
    cluster["type"] = "STATIC".into();
    for field in ["dnsLookupFamily", "typedDnsResolverConfig", "respectDnsTtl", "dnsRefreshRate", "dnsJitter"]
    {
        cluster.as_object_mut().expect("an object").shift_remove(field);
    }
    let mut number = 0;
    each_address(cluster, &mut |socket| {
        let named = socket["address"].as_str().is_none_or(|text| text.parse::<Ipv4Addr>().is_err());
        if named {
            number += 1;
            socket["address"] = format!("10.201.0.{number}").into();
        }
    });
}

/// Calls `each` with every address of a socket in `value`.
pub fn each_address(value: &mut Value, each: &mut impl FnMut(&mut Value)) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                match key.as_str() {
                    "socketAddress" => each(value),
                    "upstreamBindConfig" => {}
                    _ => each_address(value, each),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| each_address(value, each)),
        _ => {}
    }
}
