//! Objects that config has left on a request by name (`envoy.filters.http.set_filter_state`), for filters after it, for
//! the way upstream, and for logs.

use outrigger_control_api::pb::envoy::extensions::filters::http::set_filter_state::v3 as pb;

use super::chain::{self, At, Step};
use crate::config::problems::Problems;
use crate::config::route::RouteFilter;
use crate::config::HeaderView;
use crate::http::exchange::Exchange;
use crate::telemetry::filter_state::Setters;

/// The filter, or what a route has instead.
#[derive(Debug)]
pub struct Config {
    setters: Setters,
    clear_route_cache: bool,
}

impl Config {
    /// Compiles `config`.
    pub fn compile(config: &pb::Config, problems: &mut Problems) -> Self {
        let setters = Setters::compile(&config.on_request_headers, "on_request_headers", problems);
        Self { setters, clear_route_cache: config.clear_route_cache }
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let config = match at.said() {
            Some(RouteFilter::SetFilterState(own)) => own,
            _ => self,
        };
        let request = ex.request.as_ref().map(|request| request as &dyn HeaderView);
        config.setters.apply(request, &mut ex.info);
        if config.clear_route_cache {
            chain::active(ex).reroute = true;
        }
        Step::Continue
    }
}
