//! The load generator and origin of Outrigger. A [`generate::run::Plan`] goes in, a [`result::RunResult`] comes out;
//! [`serve::Server`] is what it can be pointed at. Protocols are written without I/O, once for both sides; one loop
//! around `epoll` drives clients, another one servers.

pub mod cli;
pub mod clock;
pub mod compare;
pub mod generate;
pub mod http1;
pub mod http2;
pub mod link;
pub mod out;
pub mod record;

pub mod report;
pub mod result;
pub mod schedule;
pub mod serve;
pub mod tls;
pub mod units;
pub mod websocket;
