//! From a cluster to the pool of one of its hosts.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use outrigger::upstream::{PickContext, Upstreams};

use crate::bootstrap::compiled;

/// Picking from few and from many hosts, all of them healthy.
pub fn picking(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("picks");
    for policy in ["ROUND_ROBIN", "RANDOM", "LEAST_REQUEST", "RING_HASH", "MAGLEV"] {
        for hosts in [10, 10_000, 100_000] {
            let config = compiled(1, hosts, policy);
            let slot = config.clusters.find("origin").expect("the cluster");
            let upstreams = Upstreams::default();
            let cluster = upstreams.cluster(&slot).expect("the compiled cluster");
            let context = PickContext::default();
            assert!(cluster.pick(&context).is_ok());
            group.bench_function(BenchmarkId::new(policy.to_ascii_lowercase(), hosts), |bencher| {
                bencher.iter(|| cluster.pick(black_box(&context)));
            });
        }
    }
    group.finish();
}
