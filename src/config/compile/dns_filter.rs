//! The DNS filter: `envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig` in, a [`DnsFilter`] out.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::{accesslog::v3::AccessLog, core::v3 as core};
use outrigger_control_api::pb::envoy::data::dns::v3::{dns_table as table, DnsTable as Table};
use outrigger_control_api::pb::envoy::extensions::filters::udp::dns_filter::v3 as pb;
use outrigger_control_api::{load, load_value, message_to_json, Format};

use super::{dns, duration, duration_or, rooms, Environment};
use crate::config::dns_filter::{
    DnsFilter, DnsTable, Endpoint, Forward, Service, Target, DEFAULT_TTL, QUERY_METADATA,
};
use crate::config::problems::Problems;
use crate::telemetry::metrics::Scope;
use crate::telemetry::stats::DnsFilterStats;

/// Envoy's default of one try to ask others.
const RESOLVER_TIMEOUT: Duration = Duration::from_millis(500);

/// Compiles the filter. `None` when a problem was reported.
pub(super) fn compile(
    config: &pb::DnsFilterConfig,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<DnsFilter> {
    use pb::dns_filter_config::server_context_config::ConfigSource;
    let before = problems.count();
    let source = config.server_config.as_ref().and_then(|server| server.config_source.as_ref());
    let mut known = DnsTable::new(config.case_insensitive);
    let mut retries = 0;
    problems.at("server_config", |problems| {
        let mut take = |table: &Table, problems: &mut Problems| {
            retries = table.external_retry_count;
            fill(&mut known, table, environment, problems);
        };
        match source {
            Some(ConfigSource::InlineDnsTable(table)) => {
                problems.at("inline_dns_table", |problems| take(table, problems));
            }
            Some(ConfigSource::ExternalDnsTable(source)) => problems.at("external_dns_table", |problems| {
                if let Some(table) = read(source, problems) {
                    take(&table, problems);
                }
            }),
            // A proxy that only forwards.
            None => {}
        }
    });
    let forward = config.client_config.as_ref().map(|client| {
        problems.at("client_config", |problems| {
            let resolver = dns::resolver(
                client.typed_dns_resolver_config.as_ref(),
                client.dns_resolution_config.as_ref(),
                &[],
                false,
                problems,
            );
            Forward {
                dns: resolver.unwrap_or_default().dns(),
                timeout: duration_or(
                    &client.resolver_timeout,
                    RESOLVER_TIMEOUT,
                    "resolver_timeout",
                    problems,
                ),
                retries,
                max_pending: client.max_pending_lookups,
            }
        })
    });
    let logs: Vec<_> = config.access_log.iter().map(with_query).collect();
    let access_logs = rooms::access_logs(&logs, "access_log", environment, problems);
    (problems.count() == before).then(|| DnsFilter {
        table: known,
        forward,
        access_logs,
        stats: DnsFilterStats::new(&Scope::dns_filter(&config.stat_prefix)),
    })
}

/// Operators that only logs of queries have, and where they read.
const OPERATORS: [(&str, &str); 6] = [
    ("%QUERY_NAME%", "query_name"),
    ("%QUERY_TYPE%", "query_type"),
    ("%QUERY_CLASS%", "query_class"),
    ("%ANSWER_COUNT%", "answer_count"),
    ("%RESPONSE_CODE%", "response_code"),
    ("%PARSE_STATUS%", "parse_status"),
];

/// A log whose formats read the query. Of other operators Envoy takes none here.
fn with_query(log: &AccessLog) -> AccessLog {
    let mut value = message_to_json(log);
    replace_operators(&mut value);
    load_value(&value).map_or_else(|_| log.clone(), |loaded| loaded.message)
}

fn replace_operators(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => {
            for (operator, key) in OPERATORS {
                if text.contains(operator) {
                    *text = text.replace(operator, &format!("%DYNAMIC_METADATA({QUERY_METADATA}:{key})%"));
                }
            }
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(replace_operators),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(replace_operators),
        _ => {}
    }
}

/// Reads a table that is in a file; what it holds is by its name's extension. As in Envoy a file that cannot be read
/// leaves the table empty: names are forwarded then, or not found.
fn read(source: &core::DataSource, problems: &mut Problems) -> Option<Table> {
    let Some(core::data_source::Specifier::Filename(path)) = &source.specifier else {
        problems.report("must be a filename");
        return None;
    };
    let format = match Path::new(path).extension().and_then(|extension| extension.to_str()) {
        Some("json") => Format::Json,
        _ => Format::Yaml,
    };
    let why = match std::fs::read(path) {
        Ok(text) => match load::<Table>(&text, format) {
            Ok(loaded) => return Some(loaded.message),
            Err(found) => found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        },
        Err(error) => error.to_string(),
    };
    tracing::warn!("the DNS table {path} cannot be read, and is taken for empty: {why}");
    None
}

/// Adds the virtual domains of `config`.
fn fill(known: &mut DnsTable, config: &Table, environment: &Environment<'_>, problems: &mut Problems) {
    use table::dns_endpoint::EndpointConfig;
    for (index, domain) in config.virtual_domains.iter().enumerate() {
        problems.at_index("virtual_domains", index, |problems| {
            let name = spelled(&domain.name, known);
            let key = DnsTable::key(&name).to_owned();
            match domain.endpoint.as_ref().and_then(|endpoint| endpoint.endpoint_config.as_ref()) {
                Some(EndpointConfig::AddressList(list)) => {
                    let addresses =
                        problems.at("endpoint.address_list", |problems| addresses(&list.address, problems));
                    known.insert(&key, &key, Endpoint::Addresses(addresses));
                }
                Some(EndpointConfig::ClusterName(cluster)) => {
                    environment.check_reserved(cluster, "endpoint.cluster_name", problems);
                    known.insert(&key, &key, Endpoint::Cluster(environment.compiler.clusters.slot(cluster)));
                }
                Some(EndpointConfig::ServiceList(list)) => {
                    for service in &list.services {
                        let Some(protocol) = protocol(service.protocol.as_ref()) else { continue };
                        let full = spelled(&service_name(&service.service_name, &protocol, &name), known);
                        let service = self::service(service, known, environment, problems);
                        known.insert(&key, &full, Endpoint::Service(service));
                    }
                }
                // Breaks a field rule.
                None => {}
            }
            let ttl = duration(&domain.answer_ttl, "answer_ttl", problems);
            known.insert_ttl(&key, ttl.map_or(DEFAULT_TTL, seconds));
        });
    }
}

/// A name as the table keeps it.
fn spelled(name: &str, table: &DnsTable) -> String {
    if table.case_insensitive {
        name.to_ascii_lowercase()
    } else {
        name.to_owned()
    }
}

fn seconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX)
}

/// The list, from anywhere in it on: proxies that were given the same list do not all name the same address first.
fn addresses(list: &[String], problems: &mut Problems) -> Vec<IpAddr> {
    let mut found = Vec::with_capacity(list.len());
    for (index, text) in list.iter().enumerate() {
        match text.parse::<IpAddr>() {
            Ok(address) => found.push(address),
            // Breaks a field rule.
            Err(_) if text.chars().count() < 3 => {}
            Err(_) => problems.at_index("address", index, |problems| {
                problems.report(format!("{text:?} is not an IP address"));
            }),
        }
    }
    if !found.is_empty() {
        let start = fastrand::usize(..found.len());
        found.rotate_left(start);
    }
    found
}

/// The protocol's name; a service of one that has no well-known name is left out, as in Envoy.
fn protocol(config: Option<&table::DnsServiceProtocol>) -> Option<String> {
    use table::dns_service_protocol::ProtocolConfig;
    match config?.protocol_config.as_ref()? {
        ProtocolConfig::Name(name) if name.is_empty() => None,
        ProtocolConfig::Name(name) => Some(name.clone()),
        ProtocolConfig::Number(6) => Some("tcp".to_owned()),
        ProtocolConfig::Number(17) => Some("udp".to_owned()),
        ProtocolConfig::Number(_) => None,
    }
}

/// `_service._protocol.domain`; the underscores may be there already.
fn service_name(service: &str, protocol: &str, domain: &str) -> String {
    let [service, protocol] = [service, protocol].map(|part| part.strip_prefix('_').unwrap_or(part));
    format!("_{service}._{protocol}.{domain}")
}

fn service(
    config: &table::DnsService,
    known: &DnsTable,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Service {
    use table::dns_service_target::EndpointType;
    let mut targets: Vec<Target> = Vec::with_capacity(config.targets.len());
    for target in &config.targets {
        let (name, cluster) = match &target.endpoint_type {
            Some(EndpointType::HostName(name)) => (spelled(name, known), None),
            Some(EndpointType::ClusterName(name)) => {
                environment.check_reserved(name, "endpoint.service_list", problems);
                (name.clone(), Some(environment.compiler.clusters.slot(name)))
            }
            // Breaks a field rule.
            None => continue,
        };
        if targets.iter().any(|known| *known.name == *name) {
            continue;
        }
        // Field rules keep them below 65,536.
        let [priority, weight, port] = [target.priority, target.weight, target.port]
            .map(|value| u16::try_from(value).unwrap_or(u16::MAX));
        targets.push(Target { name: name.into(), cluster, priority, weight, port });
    }
    let ttl = duration(&config.ttl, "endpoint.service_list", problems);
    Service { ttl: ttl.map_or(0, seconds), targets }
}
