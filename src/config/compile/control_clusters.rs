//! The clusters of a bootstrap that control planes are behind: which they are, and the ways to them.
//!
//! In: the bootstrap, and what of it names control planes. Out: for each such cluster the way to
//! it, or why there is none.

use std::collections::{BTreeSet, HashMap, HashSet};

use outrigger_control_api::pb::envoy::config::cluster::v3::Cluster;
use outrigger_control_api::reflect::Value as Field;
use outrigger_control_api::support::Findings;
use outrigger_control_api::DynamicMessage;

use super::resource::{Compiler, Environment, Needs};
use super::{check, control, control_tls};
use crate::config::problems::{Problem, Problems};
use crate::config::support;

/// Clusters that discovery may ask.
pub(super) struct Control {
    /// Those that gRPC services of the bootstrap name.
    pub(super) named: BTreeSet<String>,
    /// Positions of those among them that only discovery can use.
    pub(super) reserved: HashSet<usize>,
    /// The others, that resources of a control plane may name, with what the table says against them.
    pub(super) others: HashMap<String, Option<Problem>>,
}

/// What the support table says; of clusters that serve discovery and cannot serve requests, what the
/// table of such clusters says.
pub(super) fn check_support(dynamic: &DynamicMessage, named: BTreeSet<String>) -> (Findings, Control) {
    let mut findings = check::support(support::table(), dynamic, "");
    let mut control = Control { named, reserved: HashSet::new(), others: HashMap::new() };
    // Without a control plane nothing more can be named.
    if control.named.is_empty() {
        return (findings, control);
    }
    let resources = dynamic.get_field_by_name("static_resources");
    let clusters = resources
        .as_deref()
        .and_then(Field::as_message)
        .and_then(|resources| resources.get_field_by_name("clusters"));
    let clusters = clusters.as_deref().and_then(Field::as_list).unwrap_or_default();
    for (index, cluster) in clusters.iter().filter_map(Field::as_message).enumerate() {
        let name = cluster.get_field_by_name("name");
        let path = format!("static_resources.clusters[{index}]");
        let inside = |problem: &Problem| check::is_inside(&problem.path, &path);
        let Some(name) = name.as_deref().and_then(Field::as_str) else { continue };
        let is_named = control.named.contains(name);
        if !is_named {
            let found = check::support(support::control_table(), cluster, "");
            control.others.insert(name.to_owned(), found.rejected.into_iter().next());
            continue;
        }
        // Its certificates may be there later than the process: the way to a control plane waits for them.
        let other = has_tls(cluster) || findings.rejected.iter().any(inside);
        if !other {
            continue;
        }
        control.reserved.insert(index);
        findings.rejected.retain(|problem| !inside(problem));
        findings.observed.retain(|problem| !inside(problem));
        let found = check::support(support::control_table(), cluster, &path);
        findings.rejected.extend(found.rejected);
        findings.observed.extend(found.observed);
    }
    (findings, control)
}

/// Whether the connections of a cluster are TLS.
fn has_tls(cluster: &DynamicMessage) -> bool {
    let socket = cluster.get_field_by_name("transport_socket");
    let socket = socket.as_deref().and_then(Field::as_message);
    let config = socket.and_then(|socket| socket.get_field_by_name("typed_config"));
    let config = config.as_deref().and_then(Field::as_message);
    let kind = config.and_then(|config| config.get_field_by_name("type_url"));
    kind.as_deref().and_then(Field::as_str).is_some_and(|kind| kind.ends_with(".UpstreamTlsContext"))
}

/// Gives `compiler` the ways to control planes, and the names of clusters that are none: `None` where that was reported,
/// because the bootstrap asks them, else what is against it. What these ways need of other control planes comes back.
pub(super) fn control_targets(
    clusters: &[Cluster],
    control: &Control,
    compiler: &mut Compiler,
    problems: &mut Problems,
) -> Needs {
    let mut order: Vec<_> = clusters.iter().enumerate().collect();
    // Those that others have their secrets from come first.
    order.sort_by_key(|(_, config)| config.transport_socket.as_ref().is_some_and(control_tls::asks));
    let mut needs = Needs::default();
    for (index, config) in order {
        let environment = Environment::new(compiler);
        let compile = |problems: &mut Problems| control::target(config, &environment, problems);
        let target = if control.named.contains(&config.name) {
            problems.at_index("clusters", index, compile).ok_or(None)
        } else {
            match control.others.get(&config.name) {
                None => continue,
                Some(Some(unsupported)) => Err(Some(unsupported.clone())),
                Some(None) => {
                    let mut own = Problems::new();
                    let target = compile(&mut own);
                    target.ok_or_else(|| own.into_parts().0.into_iter().next())
                }
            }
        };
        let asked = environment.needs.into_inner();
        match target {
            Ok(target) => {
                needs.pieces.extend(asked.pieces);
                compiler.control.insert(config.name.clone(), target);
            }
            Err(why) => drop(compiler.refused_control.insert(config.name.clone(), why)),
        }
    }
    needs
}
