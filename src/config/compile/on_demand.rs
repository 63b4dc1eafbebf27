//! The filter `envoy.filters.http.on_demand`, and where clusters are asked for that a request names.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::route::v3 as route;
use outrigger_control_api::pb::envoy::extensions::filters::http::on_demand::v3 as pb;
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::{type_of, unpack};

use super::discovery::config_source;
use super::resource::Compiler;
use super::{duration, duration_or, extension, Environment};
use crate::config::demand::{OnDemand, OnDemandClusters, RouteOnDemand, CLUSTER_PATIENCE};
use crate::config::discovery::Source;
use crate::config::problems::{Problem, Problems};

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

/// The type of a route's options for the filter.
pub(crate) const PER_ROUTE: &str = "envoy.extensions.filters.http.on_demand.v3.PerRouteConfig";

/// The field that holds options of filters.
const FIELD: &str = "typed_per_filter_config";

/// A route's own options for the filter, in `typed_per_filter_config`. What is wrong with them is found by
/// [`check_host`].
pub(crate) fn of_route(options: &HashMap<String, Any>) -> Option<Arc<RouteOnDemand>> {
    let (filter, any) = options.iter().find(|(_, any)| type_of(any) == PER_ROUTE)?;
    let config: pb::PerRouteConfig = unpack(any).ok()?;
    let timeout =
        config.odcds.as_ref().and_then(|odcds| duration(&odcds.timeout, "timeout", &mut Problems::new()));
    Some(Arc::new(RouteOnDemand {
        filter: filter.as_str().into(),
        clusters: config.odcds,
        timeout: timeout.unwrap_or(CLUSTER_PATIENCE),
    }))
}

/// Checks the options of a virtual host and its routes for the filter.
pub(super) fn check_host(host: &route::VirtualHost, compiler: &Compiler, problems: &mut Problems) {
    check(&host.typed_per_filter_config, compiler, problems);
    for (index, route) in host.routes.iter().enumerate() {
        if !route.typed_per_filter_config.is_empty() {
            problems.at_index("routes", index, |problems| {
                check(&route.typed_per_filter_config, compiler, problems);
            });
        }
    }
}

/// Checks options for the filter.
pub(super) fn check(options: &HashMap<String, Any>, compiler: &Compiler, problems: &mut Problems) {
    for (name, any) in options.iter().filter(|(_, any)| type_of(any) == PER_ROUTE) {
        problems.at(format_args!("{FIELD}[{name:?}]"), |problems| {
            let config: pb::PerRouteConfig = match unpack(any) {
                Ok(config) => config,
                Err(error) => return problems.report(error),
            };
            let Some(odcds) = &config.odcds else { return };
            problems.at("odcds", |problems| {
                if odcds.source.is_none() {
                    problems.report_at("source", "is required");
                }
                if !odcds.resources_locator.is_empty() {
                    problems.report_at("resources_locator", "xdstp collections are not supported");
                }
                let parent = Source::SameAsParent;
                let _ = clusters(odcds, Some(&parent), compiler, problems);
            });
        });
    }
}

impl Compiler {
    /// Where a route that was checked has its clusters asked for.
    ///
    /// # Errors
    /// Every problem found.
    pub fn route_clusters(&self, route: &RouteOnDemand) -> Result<Option<OnDemandClusters>, Vec<Problem>> {
        let Some(config) = &route.clusters else { return Ok(None) };
        let mut problems = Problems::new();
        let parent = self.lds.clone().unwrap_or(Source::SameAsParent);
        let compiled = clusters(config, Some(&parent), self, &mut problems);
        match compiled {
            Some(compiled) if problems.is_empty() => Ok(Some(compiled)),
            _ => Err(problems.into_parts().0),
        }
    }
}
