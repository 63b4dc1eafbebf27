//! Requests that are complete before anything of them goes on (`envoy.filters.http.buffer`).

use outrigger_control_api::pb::envoy::extensions::filters::http::buffer::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::filters::http::buffer::v3::buffer_per_route::Override as Said;

use super::chain::{At, Step, Wait};
use crate::config::route::RouteFilter;
use crate::http::exchange::Exchange;

/// The filter.
#[derive(Debug)]
pub struct Config {
    max: usize,
}

/// `BufferPerRoute`.
#[derive(Debug)]
pub enum PerRoute {
    /// Nothing is collected.
    Off,
    /// At most so many bytes.
    Max(usize),
}

fn max(config: &pb::Buffer) -> usize {
    // Demanded by a field rule.
    config.max_request_bytes.map_or(0, |max| max.value as usize)
}

impl PerRoute {
    /// Compiles `config`. `None` where it says nothing, which a field rule forbids.
    pub fn compile(config: &pb::BufferPerRoute) -> Option<Self> {
        match config.r#override.as_ref()? {
            Said::Disabled(_) => Some(PerRoute::Off),
            Said::Buffer(config) => Some(PerRoute::Max(max(config))),
        }
    }
}

impl Config {
    /// Compiles `config`.
    pub fn compile(config: &pb::Buffer) -> Self {
        Self { max: max(config) }
    }

    pub(super) fn on_request(&self, ex: &Exchange<'_>, at: &At<'_>) -> Step {
        let max = match at.said() {
            Some(RouteFilter::Buffer(PerRoute::Off)) => return Step::Continue,
            Some(RouteFilter::Buffer(PerRoute::Max(max))) => *max,
            _ => self.max,
        };
        // Without a body there is nothing to wait for, and the rest of what was waited for is there.
        if at.resumed || super::is_over(ex) {
            return Step::Continue;
        }
        Step::Wait(Wait::Body(max))
    }
}
