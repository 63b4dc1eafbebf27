//! Whether the clusters that a route configuration names exist (`validate_clusters`).

use std::cell::RefCell;
use std::collections::HashSet;

use outrigger_control_api::pb::envoy::config::route::v3 as pb;

use super::Environment;
use crate::config::problems::Problems;

/// Reports clusters in `config` where they are first named: with `validate`, those that are not there;
/// in a table of the bootstrap also those that serve discovery only. Names taken from a request's
/// header are looked up when it arrives.
pub(super) fn check(
    config: &pb::RouteConfiguration,
    validate: bool,
    environment: &Environment<'_>,
    problems: &mut Problems,
) {
    let reserved = !environment.dynamic && !environment.compiler.discovery_only.is_empty();
    if !validate && !reserved {
        return;
    }
    let check = Check { validate, reserved, environment, reported: RefCell::default() };
    check.mirrors(&config.request_mirror_policies, problems);
    for (index, host) in config.virtual_hosts.iter().enumerate() {
        problems.at_index("virtual_hosts", index, |problems| {
            check.mirrors(&host.request_mirror_policies, problems);
            for (index, route) in host.routes.iter().enumerate() {
                let Some(pb::route::Action::Route(action)) = &route.action else { continue };
                problems.at_index("routes", index, |problems| {
                    problems.at("route", |problems| check.action(action, problems));
                });
            }
        });
    }
}

struct Check<'a> {
    validate: bool,
    reserved: bool,
    environment: &'a Environment<'a>,
    reported: RefCell<HashSet<String>>,
}

impl Check<'_> {
    fn action(&self, action: &pb::RouteAction, problems: &mut Problems) {
        use pb::route_action::ClusterSpecifier;
        match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => self.name(name, "cluster", problems),
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                problems.at("weighted_clusters", |problems| {
                    for (index, cluster) in weighted.clusters.iter().enumerate() {
                        problems.at_index("clusters", index, |problems| {
                            self.name(&cluster.name, "name", problems);
                        });
                    }
                });
            }
            _ => {}
        }
        self.mirrors(&action.request_mirror_policies, problems);
    }

    fn mirrors(&self, policies: &[pb::route_action::RequestMirrorPolicy], problems: &mut Problems) {
        for (index, policy) in policies.iter().enumerate() {
            problems.at_index("request_mirror_policies", index, |problems| {
                self.name(&policy.cluster, "cluster", problems);
            });
        }
    }

    fn name(&self, name: &str, field: &str, problems: &mut Problems) {
        // An empty name breaks a field rule, or stands for a name in a header.
        if name.is_empty() || self.reported.borrow().contains(name) {
            return;
        }
        let mut wrong = self.reserved && self.environment.check_reserved(name, field, problems);
        if !wrong && self.validate && !(self.environment.known)(name) {
            problems.report_at(field, format!("there is no cluster {name:?}"));
            wrong = true;
        }
        if wrong {
            self.reported.borrow_mut().insert(name.to_owned());
        }
    }
}
