//! Fields that few configurations set, one after the other: each does to requests what it does in Envoy.

mod filters;
mod local_reply;
mod logs;
mod manager;
mod routes;

/// Statistics that are not compared: a version that is not spoken here, and whether the rest of a request that was
/// answered early came before the answer went.
const BUT: &[&str] = &["downstream_rq_http3_total", "downstream_rq_rx_reset"];
