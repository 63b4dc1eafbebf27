//! Endpoints of a load assignment: hosts with addresses, or names to resolve.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::{core::v3 as core, endpoint::v3 as endpoint};

use super::{port, u32_or};
use crate::config::cluster::{Address, DnsName, Health, HostTemplate, Locality};
use crate::config::problems::Problems;
use crate::config::Host;

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
    let mut hosts = Vec::new();
    endpoints(assignment, problems, |address, template, problems| {
        let Some(address) = address else { return problems.report("is required") };
        let address = match address {
            core::address::Address::SocketAddress(socket) => {
                let Ok(ip) = socket.address.parse::<IpAddr>() else {
                    let message = format!(
                        "{:?} is not an IP address; a cluster with host names needs type STRICT_DNS or LOGICAL_DNS",
                        socket.address
                    );
                    return problems.report_at("socket_address.address", message);
                };
                let Some(port) = port(socket, problems) else { return };
                Address::Ip(SocketAddr::new(ip, port))
            }
            core::address::Address::Pipe(pipe) => Address::Pipe(pipe.path.as_str().into()),
            core::address::Address::EnvoyInternalAddress(_) => return,
        };
        hosts.push(Host::new(address, template));
    });
    hosts
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
            let locality = group.locality.as_ref().map(locality).unwrap_or_default();
            let locality = Arc::new(locality);
            for (index, entry) in group.lb_endpoints.iter().enumerate() {
                problems.at_index("lb_endpoints", index, |problems| {
                    endpoint(entry, group.priority, &locality, assignment, problems, &mut each);
                });
            }
        });
    }
}

fn endpoint(
    entry: &endpoint::LbEndpoint,
    priority: u32,
    locality: &Arc<Locality>,
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
            priority,
            locality: locality.clone(),
            health: health(entry.health_status()),
        };
        problems.at("address", |problems| each(address, template, problems));
    });
}

fn health(status: core::HealthStatus) -> Health {
    match status {
        core::HealthStatus::Unknown | core::HealthStatus::Healthy => Health::Healthy,
        core::HealthStatus::Degraded => Health::Degraded,
        core::HealthStatus::Unhealthy | core::HealthStatus::Draining | core::HealthStatus::Timeout => {
            Health::Unhealthy
        }
    }
}

pub(super) fn locality(locality: &core::Locality) -> Locality {
    Locality {
        region: locality.region.as_str().into(),
        zone: locality.zone.as_str().into(),
        sub_zone: locality.sub_zone.as_str().into(),
    }
}
