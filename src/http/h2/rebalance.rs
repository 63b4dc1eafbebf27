//! Asks clients to connect anew when the service that this process is one of has grown.
//!
//! Comes in: how many hosts a cluster has, about once a second. Goes out: which share of the connections is to move. A
//! client that holds one HTTP/2 connection for days sends nothing to hosts that were added since, where connections and
//! not requests are balanced before they come here. Of clients that are spread evenly over `n` hosts, `1 - n/m` must move
//! to be spread evenly over `m`; they are told by GOAWAY, one by one over a while, and lose no request.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

/// What `--rebalance-cluster` and `--rebalance-window-s` say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The cluster of which this process is a host.
    pub cluster: Arc<str>,
    /// Over which time the connections move.
    pub window: Duration,
}

/// Watches a cluster grow.
#[derive(Debug)]
pub struct Rebalance {
    /// What to do.
    pub options: Options,
    hosts: Cell<usize>,
}

impl Rebalance {
    /// Nothing is known of the cluster yet.
    pub fn new(options: Options) -> Self {
        Self { options, hosts: Cell::new(0) }
    }

    /// The cluster has so many hosts now: the share of the connections that is to move, from 0 to 1. The first hosts
    /// are no growth, nor are those that come back after all were gone.
    pub fn share(&self, hosts: usize) -> f64 {
        let before = self.hosts.replace(hosts);
        if before == 0 || hosts <= before {
            return 0.0;
        }
        1.0 - before as f64 / hosts as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_growth_moves_connections() {
        let rebalance = Rebalance::new(Options { cluster: "c".into(), window: Duration::from_secs(60) });
        let shares: Vec<f64> =
            [0, 2, 2, 4, 3, 4, 0, 4, 40].into_iter().map(|hosts| rebalance.share(hosts)).collect();
        assert_eq!(shares, [0.0, 0.0, 0.0, 0.5, 0.0, 0.25, 0.0, 0.0, 0.9]);
    }
}
