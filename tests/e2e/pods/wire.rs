//! What goes over the wire, as the switch sees it.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::mesh::Mesh;

/// Listens on all interfaces of the switch until it is asked.
pub struct Wire {
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    pub fn tap(mesh: &Mesh) -> Wire {
        let every = i32::from((libc::ETH_P_ALL as u16).to_be());
        let socket = mesh.switch.within(move || {
            Socket::new(Domain::from(libc::AF_PACKET), Type::RAW, Some(Protocol::from(every))).expect("a tap")
        });
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        let _ = socket.set_recv_buffer_size(8 << 20);
        let (seen, stop) = (Arc::<Mutex<Vec<Vec<u8>>>>::default(), Arc::<AtomicBool>::default());
        let (all, over) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            loop {
                match (&socket).read(&mut buffer) {
                    Ok(count) => all.lock().expect("packets").push(buffer[..count].to_vec()),
                    // What was sent before is here by now.
                    Err(_) if over.load(Ordering::Acquire) => return,
                    Err(_) => {}
                }
            }
        });
        Wire { seen, stop, thread: Some(thread) }
    }

    /// Whether packets to or from this port carry these bytes, and whether any carry a record of TLS.
    pub fn saw(mut self, marker: &[u8]) -> (bool, bool) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the tap");
        }
        let seen = self.seen.lock().expect("packets");
        let has =
            |needle: &[u8]| seen.iter().any(|packet| packet.windows(needle.len()).any(|at| at == needle));
        // Application data in records of TLS 1.2 and 1.3.
        (has(marker), has(&[0x17, 3, 3]))
    }
}
