//! Micro-benchmarks of what every request passes through: `cargo bench --bench micro`, or a part of it by name, as in
//! `cargo bench --bench micro -- routes`. What is compiled from config comes from a bootstrap, through the same
//! compiler as in the proxy. For a whole request see `tests/e2e/instructions.rs` and `outrigger-load`.
#![allow(missing_docs, clippy::expect_used)] // criterion's macro; a benchmark that cannot start says why

mod bootstrap;
mod heads;
mod picks;
mod rbac;
mod routes;

criterion::criterion_group!(
    micro,
    heads::parsing,
    heads::writing,
    routes::lookup,
    picks::picking,
    rbac::deciding
);
criterion::criterion_main!(micro);
