//! Substitution formats.

/// A compiled format string.
#[derive(Debug, Clone)]
pub struct Format {}
