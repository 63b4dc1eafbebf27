//! HTTP filters of a cluster: they see the heads of each try, after everything that routes do to them.

use super::Attempts;
use crate::config::cluster::{UpstreamFilter, UpstreamFilterKind};
use crate::config::route::RouteFilter;
use crate::http::exchange::{Exchange, Reply};
use crate::http::head::ResponseHead;
use std::sync::Arc;

impl Attempts<'_> {
    /// What the request's route says to a filter.
    fn said(&self, filter: &UpstreamFilter) -> &[Arc<RouteFilter>] {
        let own = self.weighted.and_then(|weighted| weighted.overrides.as_ref());
        let all = own.or(self.route.overrides.as_ref());
        all.and_then(|all| all.find(&filter.name)).map(|over| &*over.levels).unwrap_or_default()
    }

    /// The head of a try goes through the filters. As in Envoy what they add is there in the next try too. An answer where
    /// one of them refuses it.
    pub(super) fn filter_request(&self, ex: &mut Exchange<'_>) -> Option<Box<Reply>> {
        let filters = self.upstream().http.filters.clone();
        for filter in &*filters {
            let request = ex.request.as_mut()?;
            match &filter.filter {
                UpstreamFilterKind::HeaderMutation(config) => {
                    config.change_request(request, &ex.info, self.said(filter));
                }
                UpstreamFilterKind::CredentialInjector(config) => {
                    if let Some(reply) = config.inject(request) {
                        return Some(Box::new(reply));
                    }
                }
            }
        }
        None
    }

    /// The head of its answer does, the other way round.
    #[inline]
    pub(super) fn filter_response(&self, ex: &Exchange<'_>, head: &mut ResponseHead) {
        if self.upstream().http.filters.is_empty() {
            return;
        }
        for filter in self.upstream().http.filters.iter().rev() {
            if let UpstreamFilterKind::HeaderMutation(config) = &filter.filter {
                config.change_response(ex, head, self.said(filter));
            }
        }
    }
}
