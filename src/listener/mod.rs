//! Accepting connections and deciding which filter chain serves each.

pub mod accept;
pub mod inspect;
pub mod live;
pub mod permissive;
pub mod sessions;
