//! A control plane drives the proxy while traffic flows.

mod beside;
mod blocking;
mod calls;
mod churn;
pub mod clients;
mod dumps;
mod extensions;
mod generic;
mod groups;
mod health;
mod loads;
mod loss;
pub mod mesh;
mod misbehaviour;
mod on_demand;
mod resends;
mod scale;
mod scopes;
mod scripted;
mod secrets;
mod secure;
mod sources;
mod status;
mod updates;
