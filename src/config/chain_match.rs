//! Filter-chain matching.

/// The compiled index of a listener's filter chains.
#[derive(Debug)]
pub struct ChainIndex {}
