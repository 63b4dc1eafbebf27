//! A control plane drives the proxy while traffic flows.

mod mesh;
mod updates;
