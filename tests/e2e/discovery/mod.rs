//! A control plane drives the proxy while traffic flows.

mod churn;
mod clients;
mod loss;
mod mesh;
mod sources;
mod updates;
