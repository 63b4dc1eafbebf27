//! From an authority and a path to a route.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use outrigger::config::route::Selection;

use crate::bootstrap::{compiled, domain};
use crate::heads::request;

/// Looking the last virtual host's last domain up, and one that nobody serves, in tables of different sizes.
pub fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routes/lookup");
    for size in [1, 100, 10_000] {
        let config = compiled(size, 1, "ROUND_ROBIN");
        let table = config.routes.all().first().and_then(|slot| slot.get()).expect("the route table");
        let mut head = request(b"GET /items/42?view=full HTTP/1.1\r\nHost: nobody.test\r\n\r\n").head;
        assert!(matches!(table.select(&head, 0), Selection::NotFound));
        group.bench_with_input(BenchmarkId::new("none", size), &head, |bencher, head| {
            bencher.iter(|| matches!(table.select(black_box(head), 0), Selection::NotFound));
        });
        head.set_authority(domain(size - 1, 3).as_bytes());
        assert!(matches!(table.select(&head, 0), Selection::Found { .. }));
        group.bench_with_input(BenchmarkId::new("last", size), &head, |bencher, head| {
            bencher.iter(|| matches!(table.select(black_box(head), 0), Selection::Found { .. }));
        });
    }
    group.finish();
}
