//! The client's end of discovery: asks a control plane for resources and keeps up with what it says.
//!
//! In: changes of interest, verdicts on updates, and a control plane's responses. Out: [`Update`]s with
//! resources that are still encoded, and requests. Two layers: [`Delta`] and [`Sotw`] are state machines
//! that know the whole protocol and neither sockets nor clocks; [`client`] joins one with a gRPC stream
//! and gives the user [`Subscriptions`] to say what is wanted and [`Events`] to hear what came.
//!
//! ```no_run
//! # use outrigger_control_api::client::*;
//! # async fn example() {
//! let endpoint = Endpoint::new(Address::Tcp("127.0.0.1".to_owned(), 18000));
//! let (subscriptions, mut events, run) = client::<Incremental>(endpoint, Settings::new(Default::default()), 1);
//! tokio::spawn(run);
//! subscriptions.subscribe_all(type_url::CLUSTER, Wildcard::Legacy);
//! while let Some(event) = events.next().await {
//!     if let Event::Update(update) = event {
//!         // Compile `update.added`, then:
//!         subscriptions.accept(update.id);
//!     }
//! }
//! # }
//! ```
//!
//! [`file_client`] and [`rest_client`] are used in the same way, for resources in a file and for a control
//! plane that is polled. [`load_reports`] goes the other way: it tells a control plane what load there is.
//!
//! What the user may rely on: each update is delivered once and in order within its type; what was
//! refused stays at its last good version and is reported so on the next stream; nothing is removed but
//! by the control plane's word, an expired time to live, or the user's own change.

mod addresses;
mod delta;
mod driver;
mod exchange;
mod file;
mod guard;
mod link;
mod load_report;
mod machine;
mod pace;
mod quiet;
mod rest;
mod services;
mod sotw;
mod timers;
mod tls;
mod topic;
mod transport;
mod types;

pub use delta::{Delta, Incremental};
pub use driver::{client, Events, Subscriptions};
pub use file::{file_client, read_file, File};
pub use load_report::{load_reports, LoadEvent, LoadReporter, Loads};
pub use machine::{Machine, Settings, Variant};
pub use pace::{Backoff, Bucket, RateLimit};
pub use rest::{rest_client, Rest};
pub use services::{aggregated, of_type, Method};
pub use sotw::{Sotw, StateOfTheWorld};
pub use tls::Tls;
pub use transport::{Address, Endpoint, Keepalive, TransportError};
pub use types::{
    absence_deletes, type_url, warming_order, Cause, Change, Event, Rejection, Resource, Status, TypeStatus,
    Update, Verdict, Wildcard,
};

use crate::pb::envoy::config::core::v3::Node;

/// Adds to `node` what this client can do, for a control plane that asks: times to live in both variants.
pub fn add_client_features(node: &mut Node) {
    for feature in ["xds.config.supports-resource-ttl", "xds.config.supports-resource-in-sotw"] {
        if !node.client_features.iter().any(|known| known == feature) {
            node.client_features.push(feature.to_owned());
        }
    }
}

#[cfg(test)]
mod tests;
