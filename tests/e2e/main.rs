//! End-to-end tests: Outrigger's own binary as a process between real sockets on loopback, beside the real Envoy
//! and other real programs. `tests/run` installs what they need.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod acceptance;
mod balancing;
mod demo;
mod differential;
mod discovery;
mod examples;
mod flags;
mod harness;
mod hbone;
mod health;
mod hostile;
mod http2;
mod inject;
mod inputs;
mod instructions;
mod istio;
mod licences;
mod lifecycle;
mod load;
mod peers;
mod pods;
mod pressure;
mod resilience;
mod tls;
mod upgrade;
