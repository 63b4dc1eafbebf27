//! Accepting connections and deciding which filter chain serves each.

pub mod accept;
pub mod adopt;
mod connection;
mod counsel;
pub mod destinations;
mod dialler;
pub mod filters;
pub mod inspect;
pub mod limit;
pub mod live;
pub mod permissive;
pub mod race;
pub mod sessions;
mod tunnel;
pub mod udp;
