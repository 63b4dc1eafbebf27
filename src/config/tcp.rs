//! The TCP proxy's compiled options.

/// A compiled `tcp_proxy`.
#[derive(Debug)]
pub struct TcpProxy {}
