//! Fields that few configurations set, one after the other: each does to requests what it does in Envoy.

mod balancing;
mod clusters;
mod counted;
mod dns_clusters;
mod early;
mod filters;
mod health;
mod local_reply;
mod logs;
mod manager;
mod matchers;
mod outliers;
mod routes;
mod sessions;
mod table;
mod tries;

/// Statistics that are not compared: a version that is not spoken here, and errors of one library.
const BUT: &[&str] = &["downstream_rq_http3_total", "upstream_rq_rx_reset_no_error", "library.zlib_"];
