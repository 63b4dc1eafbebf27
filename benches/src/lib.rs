//! Load generator.
pub mod result;
