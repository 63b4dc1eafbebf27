//! One probe, asked of the application.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Grpc, Handler, HttpGet, Original, TcpSocket};
use crate::http::server_stream::{self, Call, Io};
use crate::tls::unverified;

/// Largest head of an answer.
const MAX_HEAD: usize = 64 << 10;
/// Largest message of a gRPC health check.
const MAX_MESSAGE: usize = 4 << 10;
const HEALTH: &str = "/grpc.health.v1.Health/Check";
/// `SERVING` in `grpc.health.v1.HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct Health {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks; `Ok` is the status of an HTTP answer, or 200 where all is well.
///
/// # Errors
/// Why there is no answer, in words.
pub(super) async fn ask(original: &Original) -> Result<u16, String> {
    let patience = Duration::from_secs(original.timeout_seconds);
    let asked = async {
        match &original.handler {
            Handler::HttpGet(get) => http(get).await,
            Handler::TcpSocket(TcpSocket { port }) => connect(*port).await.map(|_| 200),
            Handler::Grpc(wanted) => grpc(wanted).await,
        }
    };
    timeout(patience, asked).await.unwrap_or_else(|_| Err(format!("no answer in {patience:?}")))
}

/// To the application, wherever on the loopback interfaces it listens.
async fn connect(port: u16) -> Result<TcpStream, String> {
    let hosts = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let addresses = hosts.map(|host| SocketAddr::new(host, port));
    TcpStream::connect(&addresses[..]).await.map_err(|error| format!("port {port}: {error}"))
}

async fn http(get: &HttpGet) -> Result<u16, String> {
    let stream = connect(get.port).await?;
    if get.scheme.eq_ignore_ascii_case("https") {
        let secured = unverified::connect(stream).await.map_err(|error| format!("TLS: {error}"))?;
        return exchange(Box::new(secured), get).await;
    }
    exchange(Box::new(stream), get).await
}

async fn exchange(mut stream: Box<dyn Io>, get: &HttpGet) -> Result<u16, String> {
    let clean = |text: &str| !text.bytes().any(|byte| byte < b' ' || byte == 0x7f);
    let mut request = format!("GET {} HTTP/1.1\r\n", get.path);
    let named = |wanted: &str| get.http_headers.iter().any(|header| header.name.eq_ignore_ascii_case(wanted));
    if !clean(&get.path) || get.path.contains(' ') {
        return Err(format!("the path {:?} cannot be asked for", get.path));
    }
    if !named("host") {
        request += &format!("host: localhost:{}\r\n", get.port);
    }
    if !named("user-agent") {
        request += "user-agent: kube-probe/outrigger\r\n";
    }
    for header in &get.http_headers {
        if !clean(&header.name) || !clean(&header.value) || header.name.contains([':', ' ']) {
            return Err(format!("the header {:?} cannot be sent", header.name));
        }
        request += &format!("{}: {}\r\n", header.name, header.value);
    }
    request += "accept: */*\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut input = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 128];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&input) {
            // What is said before the answer is none.
            Ok(httparse::Status::Complete(length)) if response.code.is_some_and(|code| code < 200) => {
                input.drain(..length);
                continue;
            }
            Ok(httparse::Status::Complete(_)) => return Ok(response.code.unwrap_or(500)),
            Ok(httparse::Status::Partial) if input.len() < MAX_HEAD => {}
            Ok(httparse::Status::Partial) => return Err("the answer's head is too large".to_owned()),
            Err(error) => return Err(format!("the answer is not HTTP: {error}")),
        }
        let read = stream.read_buf(&mut input).await.map_err(|error| error.to_string())?;
        if read == 0 {
            return Err("the connection was closed without an answer".to_owned());
        }
    }
}

async fn grpc(wanted: &Grpc) -> Result<u16, String> {
    let stream = connect(wanted.port).await?;
    let message = Question { service: wanted.service.clone() }.encode_to_vec();
    let authority = format!("localhost:{}", wanted.port);
    let call =
        Call { authority: &authority, method: HEALTH, metadata: &[], message: &message, most: MAX_MESSAGE };
    let said = Arc::new(std::sync::Mutex::new(None));
    let heard = said.clone();
    let mut each = move |message: Bytes| {
        let health = Health::decode(message).map_or(0, |health| health.status);
        *heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(health);
    };
    server_stream::call(Box::new(stream), call, &mut each).await.map_err(|end| end.to_string())?;
    let status = *said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match status {
        Some(SERVING) => Ok(200),
        Some(other) => Err(format!("gRPC health is {other}, not SERVING")),
        None => Err("there was no answer".to_owned()),
    }
}
