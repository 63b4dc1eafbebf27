//! Which virtual host answers for a host name that a client asks for on demand (VHDS).

use std::ops::Bound;
use std::sync::Arc;

use super::snapshot::{Resource, Resources};

/// The virtual host of route table `table` for requests to `host`: as in a route table, its domain is the
/// same, else it has the longest matching wildcard in front, else at the end, else it is `*`.
pub(super) fn find<'a>(
    resources: &'a Resources,
    table: &str,
    host: &str,
) -> Option<(&'a Arc<str>, &'a Resource)> {
    let prefix = format!("{table}/");
    let host = host.to_ascii_lowercase();
    let from: (Bound<&str>, Bound<&str>) = (Bound::Included(&prefix), Bound::Unbounded);
    let mine = resources.range(from).take_while(|(name, _)| name.starts_with(&prefix));
    // Tables may have a slash in their names, hosts have none.
    let mine = mine.filter(|(name, _)| !name[prefix.len()..].contains('/'));
    let ranked = mine.filter_map(|(name, resource)| {
        let rank = resource.domains.iter().filter_map(|domain| rank(domain, &host)).max()?;
        Some((rank, (name, resource)))
    });
    // The first in the order of names, should several match alike.
    ranked.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, found)| found)
}

/// How well a domain matches; more is better.
fn rank(domain: &str, host: &str) -> Option<(u8, usize)> {
    let domain = domain.to_ascii_lowercase();
    if domain == host {
        return Some((3, 0));
    }
    if domain == "*" {
        return Some((0, 0));
    }
    // A wildcard stands for at least one letter.
    if let Some(end) = domain.strip_prefix('*') {
        return (host.len() > end.len() && host.ends_with(end)).then_some((2, end.len()));
    }
    let start = domain.strip_suffix('*')?;
    (host.len() > start.len() && host.starts_with(start)).then_some((1, start.len()))
}
