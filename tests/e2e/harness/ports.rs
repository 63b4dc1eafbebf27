//! Free ports for processes that must be told their port beforehand. They are taken below the kernel's ephemeral
//! range, so that an outgoing connection of a test cannot land on one between the check and the use.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;

const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

/// A port that nothing listens on. Never handed out twice by one process; another process may still win the race,
/// which is why whoever starts a server with it tries again with a new one.
pub fn free_port() -> u16 {
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = nanos.map_or(0, |n| n.subsec_nanos()) ^ std::process::id().wrapping_mul(7919);
        AtomicU32::new(seed % COUNT)
    });
    for _ in 0..COUNT {
        let candidate = (FIRST + next.fetch_add(1, Ordering::Relaxed) % COUNT) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, candidate)).is_ok() {
            return candidate;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// A port of a listener whose queue is full: the kernel drops what asks for a connection, as a network does whose host
/// is gone.
pub struct Silent {
    pub port: u16,
    _listener: socket2::Socket,
    _queued: Vec<tokio::net::TcpStream>,
}

impl Silent {
    pub async fn start() -> Silent {
        use socket2::{Domain, SockAddr, Socket, Type};
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any = SockAddr::from(std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        listener.bind(&any).expect("a port");
        listener.listen(0).expect("to listen");
        let address = listener.local_addr().ok().and_then(|found| found.as_socket()).expect("its address");
        let mut queued = Vec::new();
        // What is not answered within half a second is not answered before the client asks again, a second later.
        let patience = std::time::Duration::from_millis(500);
        while let Ok(connected) =
            tokio::time::timeout(patience, tokio::net::TcpStream::connect(address)).await
        {
            queued.push(connected.expect("a connection"));
            assert!(queued.len() < 64, "the queue never fills");
        }
        Silent { port: address.port(), _listener: listener, _queued: queued }
    }
}
