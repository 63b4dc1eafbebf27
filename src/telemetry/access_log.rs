//! Access logs.

/// A compiled access logger.
#[derive(Debug)]
pub struct AccessLog {}

/// A compiled access-log filter.
#[derive(Debug)]
pub struct LogFilter {}
