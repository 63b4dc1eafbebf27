//! Routes.

/// A compiled route configuration.
#[derive(Debug)]
pub struct RouteTable {}

/// Header additions and removals.
#[derive(Debug, Default)]
pub struct HeaderOps {}
