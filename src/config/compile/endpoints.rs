//! Endpoints of a load assignment: hosts with addresses, or names to resolve.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use outrigger_control_api::pb::envoy::config::{core::v3 as core, endpoint::v3 as endpoint};
use outrigger_control_api::pb::envoy::r#type::v3::fractional_percent::DenominatorType as FractionalDenominator;

use super::{duration, health_check, port, u32_or};
use crate::config::balancing::HostMetadata;
use crate::config::cluster::{Address, DnsName, HealthStatus, HostTemplate, InternalAddress, Locality};
use crate::config::drops::DropOverload;
use crate::config::problems::Problems;
use crate::config::Host;
use crate::telemetry::istio::workload;

/// Highest priority of endpoints, by Envoy's field rules.
const MAX_PRIORITY: u32 = 128;

/// The names of a DNS cluster; `None` when a problem was reported.
pub(super) fn dns_names(
    assignment: Option<&endpoint::ClusterLoadAssignment>,
    problems: &mut Problems,
) -> Option<Vec<DnsName>> {
    let before = problems.count();
    let mut names = Vec::new();
    endpoints(assignment, problems, |address, template, problems| match address {
        // Envoy accepts it, and asks for a name that no resolver knows.
        None => {
            problems.note("socket_address", "an endpoint without an address never has a host");
            names.push(DnsName { host: "".into(), port: 0, template });
        }
        Some(core::address::Address::SocketAddress(socket)) => {
            let host: Arc<str> = socket.address.as_str().into();
            let hostname =
                if template.hostname.is_empty() { host.clone() } else { template.hostname.clone() };
            let port = port(socket, problems).unwrap_or_default();
            names.push(DnsName { host, port, template: HostTemplate { hostname, ..template } });
        }
        _ => problems.report("a DNS cluster needs host names (socket_address)"),
    });
    (problems.count() == before).then_some(names)
}

/// The hosts of a static cluster.
pub(super) fn static_hosts(
    assignment: Option<&endpoint::ClusterLoadAssignment>,
    problems: &mut Problems,
) -> Vec<Arc<Host>> {
    if assignment.and_then(|a| a.policy.as_ref()).is_some_and(|policy| policy.endpoint_stale_after.is_some())
    {
        problems.note("policy.endpoint_stale_after", "static endpoints do not grow stale");
    }
    let mut hosts = Vec::new();
    endpoints(assignment, problems, |address, template, problems| {
        hosts.extend(fixed_address(address, problems).map(|address| Host::new(address, template)));
    });
    hosts
}

/// The hosts of an assignment from a control plane; of several endpoints with one address the first
/// counts, as in Envoy. Those of `previous` that are still meant stay what they are.
pub(super) fn eds_hosts(
    assignment: &endpoint::ClusterLoadAssignment,
    previous: &[Arc<Host>],
    problems: &mut Problems,
) -> Vec<Arc<Host>> {
    let known: HashMap<&Address, &Arc<Host>> = previous.iter().map(|host| (&host.address, host)).collect();
    let mut seen = HashSet::new();
    let mut hosts = Vec::new();
    endpoints(Some(assignment), problems, |address, template, problems| {
        let Some(address) = fixed_address(address, problems) else { return };
        if !seen.insert(address.clone()) {
            return;
        }
        hosts.push(match known.get(&address) {
            Some(host) if host.template == template => (*host).clone(),
            Some(host) if host.is_same_endpoint(&template) => host.described(template),
            _ => Host::new(address, template),
        });
    });
    hosts
}

/// The share of requests to refuse, at most `limit` percent.
pub(super) fn drop_overload(
    assignment: &endpoint::ClusterLoadAssignment,
    limit: Option<f64>,
    problems: &mut Problems,
) -> Option<DropOverload> {
    let given = &assignment.policy.as_ref()?.drop_overloads;
    let first = given.first()?;
    problems.at("policy", |problems| {
        if given.len() > 1 {
            let message = format!("has {} categories; one is supported, as in Envoy", given.len());
            problems.report_at("drop_overloads", message);
            return None;
        }
        problems.at("drop_overloads[0]", |problems| {
            let percentage = first.drop_percentage.as_ref()?;
            let parts = match FractionalDenominator::try_from(percentage.denominator) {
                Ok(FractionalDenominator::Hundred) => 10_000,
                Ok(FractionalDenominator::TenThousand) => 100,
                Ok(FractionalDenominator::Million) => 1,
                Err(_) => {
                    let message = format!("{} is no denominator", percentage.denominator);
                    problems.report_at("drop_percentage.denominator", message);
                    return None;
                }
            };
            match percentage.numerator.checked_mul(parts).filter(|share| *share <= DropOverload::ALL) {
                Some(share) => {
                    let limit = limit.unwrap_or(100.0);
                    if !(0.0..=100.0).contains(&limit) {
                        let message = format!("runtime limits it to {limit}, which is not within 0 and 100");
                        problems.report_at("drop_percentage", message);
                        return None;
                    }
                    let share = share.min((limit * 10_000.0) as u32);
                    Some(DropOverload { category: first.category.as_str().into(), share })
                }
                None => {
                    let message = format!("{} is more than all", percentage.numerator);
                    problems.report_at("drop_percentage.numerator", message);
                    None
                }
            }
        })
    })
}

/// Checks an assignment from a control plane: after which time it is stale, and how many endpoints it
/// lists. `None` when a problem was reported.
pub(super) fn check(
    assignment: &endpoint::ClusterLoadAssignment,
    problems: &mut Problems,
) -> Option<(Option<Duration>, usize)> {
    let before = problems.count();
    let mut count = 0;
    endpoints(Some(assignment), problems, |address, _, problems| {
        count += usize::from(fixed_address(address, problems).is_some());
    });
    let stale = assignment.policy.as_ref().and_then(|policy| {
        problems.at("policy", |p| duration(&policy.endpoint_stale_after, "endpoint_stale_after", p))
    });
    drop_overload(assignment, None, problems);
    (problems.count() == before).then_some((stale, count))
}

/// An address that needs no resolver.
pub(super) fn fixed_address(
    address: Option<&core::address::Address>,
    problems: &mut Problems,
) -> Option<Address> {
    let Some(address) = address else {
        problems.report("is required");
        return None;
    };
    match address {
        core::address::Address::SocketAddress(socket) => {
            let Ok(ip) = socket.address.parse::<IpAddr>() else {
                let message = format!(
                    "{:?} is not an IP address; a cluster with host names needs type STRICT_DNS or LOGICAL_DNS",
                    socket.address
                );
                problems.report_at("socket_address.address", message);
                return None;
            };
            Some(Address::Ip(SocketAddr::new(ip, port(socket, problems)?)))
        }
        core::address::Address::Pipe(pipe) => Some(Address::Pipe(pipe.path.as_str().into())),
        core::address::Address::EnvoyInternalAddress(internal) => {
            let Some(AddressNameSpecifier::ServerListenerName(name)) = &internal.address_name_specifier
            else {
                problems.report_at("envoy_internal_address.server_listener_name", "is required");
                return None;
            };
            Some(Address::Internal(Arc::new(InternalAddress {
                listener: name.as_str().into(),
                endpoint_id: internal.endpoint_id.as_str().into(),
            })))
        }
    }
}

/// Calls `each` with every endpoint's address, if it has one, and what else is said of it.
fn endpoints(
    assignment: Option<&endpoint::ClusterLoadAssignment>,
    problems: &mut Problems,
    mut each: impl FnMut(Option<&core::address::Address>, HostTemplate, &mut Problems),
) {
    let Some(assignment) = assignment else { return };
    for (index, group) in assignment.endpoints.iter().enumerate() {
        problems.at_index("endpoints", index, |problems| {
            if group.priority > MAX_PRIORITY {
                let message = format!("is {}, must be at most {MAX_PRIORITY}", group.priority);
                return problems.report_at("priority", message);
            }
            let locality = group.locality.as_ref().map(locality).unwrap_or_default();
            let group = Group {
                priority: group.priority,
                locality: Arc::new(locality),
                weight: u32_or(group.load_balancing_weight, 0),
                lb_endpoints: &group.lb_endpoints,
                last_workload: RefCell::default(),
            };
            for (index, entry) in group.lb_endpoints.iter().enumerate() {
                problems.at_index("lb_endpoints", index, |problems| {
                    endpoint(entry, &group, assignment, problems, &mut each);
                });
            }
        });
    }
}

/// What endpoints of one list have in common.
struct Group<'a> {
    priority: u32,
    locality: Arc<Locality>,
    weight: u32,
    lb_endpoints: &'a [endpoint::LbEndpoint],
    /// That of the endpoint before: those of one workload stand together and share it.
    last_workload: RefCell<Option<Arc<str>>>,
}

impl Group<'_> {
    fn workload(&self, encoded: Option<&str>) -> Option<Arc<str>> {
        let encoded = encoded?;
        let mut last = self.last_workload.borrow_mut();
        if last.as_deref() != Some(encoded) {
            *last = Some(encoded.into());
        }
        last.clone()
    }
}

fn endpoint(
    entry: &endpoint::LbEndpoint,
    group: &Group<'_>,
    assignment: &endpoint::ClusterLoadAssignment,
    problems: &mut Problems,
    each: &mut impl FnMut(Option<&core::address::Address>, HostTemplate, &mut Problems),
) {
    use endpoint::lb_endpoint::HostIdentifier;

    let default = endpoint::Endpoint::default();
    let target = match &entry.host_identifier {
        Some(HostIdentifier::Endpoint(target)) => target,
        Some(HostIdentifier::EndpointName(name)) => match assignment.named_endpoints.get(name) {
            Some(target) => target,
            None => {
                return problems.report_at("endpoint_name", format!("there is no named endpoint {name:?}"))
            }
        },
        None => &default,
    };
    problems.at("endpoint", |problems| {
        let address = target.address.as_ref().map(|address| address.address.as_ref());
        // An `address` without content breaks a rule of its own message.
        let Some(address) = address.map_or(Some(None), |content| content.map(Some)) else { return };
        let template = HostTemplate {
            hostname: target.hostname.as_str().into(),
            weight: u32_or(entry.load_balancing_weight, 1),
            priority: group.priority,
            locality: group.locality.clone(),
            locality_weight: group.weight,
            status: status(entry.health_status()),
            socket_match: super::cluster_tls::socket_match(entry.metadata.as_ref()),
            check: health_check::host_check(target.health_check_config.as_ref(), problems),
            metadata: HostMetadata::of(
                entry.metadata.as_ref().and_then(|metadata| metadata.filter_metadata.get("envoy.lb")),
            ),
            workload: group.workload(workload::of_endpoint(entry.metadata.as_ref())),
            noted: super::metadata::noted(entry.metadata.as_ref()),
        };
        problems.at("address", |problems| each(address, template, problems));
    });
}

pub(super) fn status(status: core::HealthStatus) -> HealthStatus {
    match status {
        core::HealthStatus::Unknown => HealthStatus::Unknown,
        core::HealthStatus::Healthy => HealthStatus::Healthy,
        core::HealthStatus::Unhealthy => HealthStatus::Unhealthy,
        core::HealthStatus::Draining => HealthStatus::Draining,
        core::HealthStatus::Timeout => HealthStatus::Timeout,
        core::HealthStatus::Degraded => HealthStatus::Degraded,
    }
}

pub(super) fn locality(locality: &core::Locality) -> Locality {
    Locality {
        region: locality.region.as_str().into(),
        zone: locality.zone.as_str().into(),
        sub_zone: locality.sub_zone.as_str().into(),
    }
}
