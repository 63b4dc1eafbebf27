//! Role-based access control of requests (`envoy.filters.http.rbac`).
//!
//! Comes in: a request's head, its connection and its route. Goes out: 403, or nothing; dynamic metadata that tell what
//! was decided. The rules are [`crate::policy::rbac`]'s.

use super::chain::{At, Step};
use crate::config::route::RouteFilter;
use crate::http::exchange::{Exchange, Reply};
use crate::policy::rbac::{Facts, Filter};
use crate::telemetry::stream_info::{dynamic_metadata_are_read, DynamicMetadata};

/// Whose metadata they are, whatever the filter is called.
const NAMESPACE: &str = "envoy.filters.http.rbac";

/// Those of a route that has none.
static NO_METADATA: DynamicMetadata = DynamicMetadata::new();

/// What is known of a request; `None` while there is none.
pub(super) fn facts<'a>(ex: &'a Exchange<'_>, at: &'a At<'_>) -> Option<Facts<'a>> {
    Some(Facts {
        connection: &ex.info.connection,
        stream: Some(&ex.info),
        request: Some(ex.request.as_ref()?),
        dynamic: ex.info.metadata.as_deref(),
        route: at.course.route().map(|route| route.metadata.as_deref().unwrap_or(&NO_METADATA)),
    })
}

/// The filter's turn.
pub(super) fn on_request(filter: &Filter, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
    let rules = match at.said() {
        Some(RouteFilter::Rbac(rules)) => rules,
        _ => &filter.rules,
    };
    let Some(facts) = facts(ex, at) else { return Step::Continue };
    let mut verdict = filter.judge(rules, &facts, dynamic_metadata_are_read());
    if verdict.tells() {
        verdict.write(NAMESPACE, ex.info.metadata.get_or_insert_default());
    }
    if verdict.allowed {
        return Step::Continue;
    }
    Step::Reply(Reply::new(403, verdict.details).body("RBAC: access denied"))
}
