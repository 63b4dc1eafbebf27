//! A TCP server that does what the first line of a connection tells it: `echo`, `count` (reads to the end, then says how
//! many bytes that were), `early` (says `bye`, ends its direction, reads to the end), `reset`, `source N` (sends N bytes
//! and closes). A connection that begins with anything else is echoed.

use super::{eventually, DEADLINE};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A running server; it and its connections end when it is dropped.
pub struct TcpOrigin {
    pub port: u16,
    ends: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl TcpOrigin {
    pub async fn start() -> TcpOrigin {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let ends: Arc<Mutex<Vec<String>>> = Arc::default();
        let shared = ends.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                connections.spawn(async move {
                    let end = serve(stream).await;
                    shared.lock().expect("ends").push(end);
                });
            }
        });
        TcpOrigin { port, ends, task }
    }

    /// How the next connection to end has ended.
    pub async fn end(&self) -> String {
        let any = || std::future::ready(!self.ends.lock().expect("ends").is_empty());
        if eventually(DEADLINE / 2, any).await {
            self.ends.lock().expect("ends").remove(0)
        } else {
            "no connection ended".to_string()
        }
    }
}

impl Drop for TcpOrigin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream) -> String {
    let _ = stream.set_nodelay(true);
    let mut first = Vec::new();
    let mut byte = [0u8];
    // The command, or what is no command.
    loop {
        match stream.read(&mut byte).await {
            Ok(0) => return format!("ended after {:?}", String::from_utf8_lossy(&first)),
            Ok(_) => first.push(byte[0]),
            Err(_) => return "reset before a command".to_string(),
        }
        if byte[0] == b'\n' || first[0] < b' ' {
            break;
        }
    }
    let command = String::from_utf8_lossy(&first).trim_end().to_string();
    match command.split(' ').collect::<Vec<_>>()[..] {
        ["count"] => {
            let end = drain(&mut stream).await;
            let _ = stream.write_all(end.as_bytes()).await;
            let _ = stream.shutdown().await;
            end
        }
        ["early"] => {
            let _ = stream.write_all(b"bye").await;
            let _ = stream.shutdown().await;
            drain(&mut stream).await
        }
        ["reset"] => {
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            "did reset".to_string()
        }
        ["source", size] => {
            let mut left: usize = size.parse().unwrap_or(0);
            let chunk: Vec<u8> = (0..=255).collect();
            while left > 0 {
                let part = &chunk[..left.min(chunk.len())];
                if stream.write_all(part).await.is_err() {
                    return format!("could not send {left} bytes");
                }
                left -= part.len();
            }
            let _ = stream.shutdown().await;
            drain(&mut stream).await
        }
        _ => {
            if command != "echo" && stream.write_all(&first).await.is_err() {
                return "reset".to_string();
            }
            let mut bytes = vec![0u8; 64 * 1024];
            let mut count = 0;
            loop {
                match stream.read(&mut bytes).await {
                    Ok(0) => break,
                    Ok(n) if stream.write_all(&bytes[..n]).await.is_ok() => count += n,
                    _ => return "reset".to_string(),
                }
            }
            let _ = stream.shutdown().await;
            format!("{count} bytes, then the end")
        }
    }
}

/// Reads to the end.
async fn drain(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0u8; 64 * 1024];
    let mut count = 0;
    loop {
        match stream.read(&mut bytes).await {
            Ok(0) => return format!("{count} bytes, then the end"),
            Ok(n) => count += n,
            Err(_) => return "reset".to_string(),
        }
    }
}
