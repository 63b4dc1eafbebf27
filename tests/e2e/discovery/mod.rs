//! A control plane drives the proxy while traffic flows.

mod beside;
mod blocking;
mod churn;
mod clients;
mod groups;
mod loads;
mod loss;
mod mesh;
mod misbehaviour;
mod on_demand;
mod scale;
mod scopes;
mod scripted;
mod secure;
mod sources;
mod status;
mod updates;
