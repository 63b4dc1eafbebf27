//! What people see of results: lines while a run goes on, text and pages afterwards, and the search for a rate.

pub mod html;
pub(crate) mod plots;
pub mod search;
pub mod show;
pub mod text;
