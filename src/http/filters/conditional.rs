//! A filter that a matcher skips for some requests (`envoy.extensions.common.matching.v3.ExtensionWithMatcher`).

use super::chain::{At, Step};
use super::rbac::facts;
use crate::config::http::HttpFilter;
use crate::http::exchange::Exchange;
use crate::policy::rbac::tree::Tree;

/// The filter, and when it is skipped.
#[derive(Debug)]
pub struct Config {
    /// A request of which something is found in it does not see the filter.
    pub skips: Tree,
    /// The filter.
    pub filter: HttpFilter,
}

/// Whether a filter of this kind is asked before requests are looked at, so that it cannot be skipped.
pub fn sees_all(filter: &HttpFilter) -> bool {
    matches!(
        filter,
        HttpFilter::HeaderMutation(_)
            | HttpFilter::HeaderToMetadata(_)
            | HttpFilter::AdmissionControl(_)
            | HttpFilter::CustomResponse(_)
            | HttpFilter::BandwidthLimit(_)
            | HttpFilter::Discovered(_)
            | HttpFilter::Conditional(_)
    )
}

impl Config {
    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        // Who has waited was not skipped.
        if !at.resumed && facts(ex, at).is_some_and(|facts| self.skips.finds(&facts)) {
            return Step::Continue;
        }
        super::decode(ex, &self.filter, at)
    }
}
