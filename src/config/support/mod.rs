//! Which fields of the messages we read are implemented, observed only, or refused.

pub mod accesslog;
