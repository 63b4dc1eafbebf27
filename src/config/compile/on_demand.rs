//! The filter `envoy.filters.http.on_demand`, and where clusters are asked for that a request names.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::extensions::filters::http::on_demand::v3 as pb;
use outrigger_control_api::pb::google::protobuf::Any;

use super::discovery::config_source;
use super::resource::Compiler;
use super::{duration_or, extension, Environment};
use crate::config::demand::{OnDemand, OnDemandClusters, CLUSTER_PATIENCE};
use crate::config::discovery::Source;
use crate::config::problems::Problems;

/// The type of the filter's configuration.
pub(super) const TYPE: &str = "envoy.extensions.filters.http.on_demand.v3.OnDemand";

/// Compiles the filter `name`. `None` when a problem was reported.
pub(super) fn filter(
    name: &str,
    any: &Any,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<OnDemand> {
    let config: pb::OnDemand = extension(any, "", problems)?;
    let before = problems.count();
    let parent = environment.parent();
    let clusters = config.odcds.as_ref().and_then(|config| {
        problems.at("odcds", |problems| clusters(config, parent.as_ref(), environment.compiler, problems))
    });
    (problems.count() == before).then(|| OnDemand {
        name: name.into(),
        clusters: clusters.map(Arc::new),
        demand: environment.compiler.demand.clone(),
    })
}

/// Where clusters are asked for. `None` when a problem was reported.
pub(super) fn clusters(
    config: &pb::OnDemandCds,
    parent: Option<&Source>,
    compiler: &Compiler,
    problems: &mut Problems,
) -> Option<OnDemandClusters> {
    let timeout = duration_or(&config.timeout, CLUSTER_PATIENCE, "timeout", problems);
    let source = problems.at("source", |problems| {
        // Demanded by a field rule.
        let source = config_source(config.source.as_ref()?, parent, compiler, problems)?;
        if !compiler.is_delta(&source.source) {
            problems.report("clusters on demand need a delta stream (DELTA_GRPC)");
        }
        Some(source)
    })?;
    Some(OnDemandClusters { source, timeout })
}
