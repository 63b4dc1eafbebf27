//! HTTP/2 between real sockets.

mod abuse;
mod drains;
mod frames;
mod fuzz;
mod h2_client;
mod liars;
mod raw;
mod table;
