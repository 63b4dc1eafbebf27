//! Resources over REST: the state of the world, asked for at intervals.
//!
//! In: requests, of which the newest is posted as JSON. Out: the responses that differ from the one
//! before. There is no way to tell the control plane of a refusal but the next request.

use std::future::{poll_fn, Future};
use std::pin::{pin, Pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Body;
use hyper::client::conn::http1;
use hyper::http::{header, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::addresses::Addresses;
use super::driver::{run, Events, Subscriptions, Transport};
use super::machine::Settings;
use super::services;
use super::sotw::StateOfTheWorld;
use super::transport::{dial, reach, with_sources, Endpoint, Heard, Inbound, TransportError, Watched};
use crate::json::message_to_json;
use crate::load::load;
use crate::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use crate::text::Format;

/// A control plane that is polled (`api_type: REST`).
#[derive(Debug, Clone)]
pub struct Rest {
    /// Where it is. Its [`single_type`](Endpoint::single_type) is the type asked for.
    pub endpoint: Endpoint,
    /// Between two requests: each time a random one from this to twice this.
    pub refresh_delay: Duration,
    /// For a request and its response.
    pub request_timeout: Duration,
}

impl Rest {
    /// Envoy's timeout of 1 s for a request.
    #[must_use]
    pub fn new(mut endpoint: Endpoint, type_url: &str, refresh_delay: Duration) -> Self {
        endpoint.single_type = Some(type_url.to_owned());
        Self { endpoint, refresh_delay, request_timeout: Duration::from_secs(1) }
    }
}

/// A client of a control plane that is polled. [`client`](super::client) says the rest.
pub fn rest_client(
    rest: Rest,
    mut settings: Settings,
    seed: u64,
) -> (Subscriptions, Events, impl Future<Output = ()> + Send) {
    settings.single_type.clone_from(&rest.endpoint.single_type);
    // A response that says nothing new is a sign of life, but none of keepalive.
    settings.doubt_after = None;
    let addresses = Arc::new(Addresses::new(&rest.endpoint, seed));
    run::<StateOfTheWorld, Polled>(Polled { rest, addresses }, settings, seed)
}

/// One control plane and the address of it that answered last.
struct Polled {
    rest: Rest,
    addresses: Arc<Addresses>,
}

impl Transport<StateOfTheWorld> for Polled {
    fn open(
        &self,
        heard: Heard,
        requests: mpsc::Receiver<DiscoveryRequest>,
        inbound: mpsc::Sender<Inbound<DiscoveryResponse>>,
    ) -> Pin<Box<dyn Future<Output = TransportError> + Send>> {
        let (rest, addresses) = (self.rest.clone(), self.addresses.clone());
        Box::pin(async move {
            let error = poll(&rest, &addresses, heard, requests, inbound).await.err();
            error.unwrap_or_else(|| TransportError::Ended { address: rest.endpoint.address.to_string() })
        })
    }

    fn address(&self) -> String {
        self.addresses.current()
    }
}

async fn poll(
    rest: &Rest,
    addresses: &Addresses,
    heard: Heard,
    mut requests: mpsc::Receiver<DiscoveryRequest>,
    inbound: mpsc::Sender<Inbound<DiscoveryResponse>>,
) -> Result<(), TransportError> {
    let url = rest.endpoint.single_type.clone().unwrap_or_default();
    let path = services::rest(&url).ok_or(TransportError::NoService { type_url: url })?;
    // The first exchange is the proof that there is somebody.
    if inbound.send(Inbound::Opened).await.is_err() {
        return Ok(());
    }
    let Some(mut request) = requests.recv().await else { return Ok(()) };
    let mut nonce = 0_u64;
    loop {
        let address = || rest.endpoint.address.to_string();
        let asked = timeout(rest.request_timeout, ask(rest, addresses, path, &request, heard.clone())).await;
        let limit = rest.request_timeout;
        let answer = asked.map_err(|_| {
            let message = format!("no response within request_timeout of {limit:?}");
            TransportError::Rest { address: address(), message }
        })??;
        let known = |response: &DiscoveryResponse| {
            !response.version_info.is_empty() && response.version_info == request.version_info
        };
        let news = match answer {
            Answer::Response(response) if known(&response) => None,
            Answer::Response(mut response) => {
                nonce += 1;
                response.nonce = nonce.to_string();
                Some(Inbound::Response(response))
            }
            Answer::Unreadable(message) => {
                let type_url = request.type_url.clone();
                Some(Inbound::Unreadable { type_url, message: format!("{}: {message}", address()) })
            }
            Answer::Unchanged => None,
        };
        if let Some(news) = news {
            if inbound.send(news).await.is_err() {
                return Ok(());
            }
        }
        let jitter = Duration::from_secs_f64(rest.refresh_delay.as_secs_f64() * fastrand::f64());
        let mut pause = pin!(sleep(rest.refresh_delay.saturating_add(jitter)));
        loop {
            tokio::select! {
                next = requests.recv() => {
                    let Some(next) = next else { return Ok(()) };
                    // A verdict waits for the next time, a change of interest does not.
                    let changed = next.resource_names != request.resource_names;
                    request = next;
                    if changed {
                        break;
                    }
                }
                () = &mut pause => break,
            }
        }
    }
}

enum Answer {
    Response(DiscoveryResponse),
    Unreadable(String),
    /// The control plane has nothing newer.
    Unchanged,
}

/// One request.
async fn ask(
    rest: &Rest,
    addresses: &Addresses,
    path: &'static str,
    request: &DiscoveryRequest,
    heard: Heard,
) -> Result<Answer, TransportError> {
    let reached = reach(&rest.endpoint, addresses, rest.endpoint.connect_timeout, |endpoint| {
        let heard = heard.clone();
        async move { dial(&endpoint, heard, b"http/1.1").await }
    });
    let (endpoint, io) = reached.await?;
    let answer = exchange(rest, &endpoint, io, path, request).await;
    if answer.is_err() {
        // Another may do better.
        addresses.leave(&endpoint.address);
    }
    answer
}

async fn exchange(
    rest: &Rest,
    endpoint: &Endpoint,
    io: Watched,
    path: &'static str,
    request: &DiscoveryRequest,
) -> Result<Answer, TransportError> {
    let address = || endpoint.address.to_string();
    let failed = |message: String| TransportError::Rest { address: address(), message };
    let broken = |error: hyper::Error| failed(with_sources(&error));
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
    let mut post = Request::post(path)
        .header(header::HOST, &rest.endpoint.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json");
    for (name, value) in &rest.endpoint.metadata {
        post = post.header(name, value);
    }
    let post = post.body(message_to_json(request).to_string()).map_err(|error| failed(error.to_string()))?;
    let exchange = async {
        let response = sender.send_request(post).await.map_err(broken)?;
        let status = response.status();
        let limit = rest.endpoint.max_message_size;
        let mut body = pin!(response.into_body());
        let mut bytes = Vec::new();
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            if let Ok(data) = frame.map_err(broken)?.into_data() {
                if bytes.len().saturating_add(data.len()) > limit {
                    let message = format!("more than {limit} bytes");
                    return Err(TransportError::TooLarge { address: address(), limit, message });
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok((status, bytes))
    };
    let mut exchange = pin!(exchange);
    let (status, bytes) = tokio::select! {
        answer = &mut exchange => answer?,
        // What came before its end counts; if that was not enough, the exchange says so.
        _ = connection => exchange.await?,
    };
    match status {
        StatusCode::NOT_MODIFIED => return Ok(Answer::Unchanged),
        StatusCode::OK => {}
        other => return Err(failed(format!("answered {other}"))),
    }
    Ok(match load::<DiscoveryResponse>(&bytes, Format::Json) {
        Ok(loaded) => Answer::Response(loaded.message),
        Err(problems) => {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Answer::Unreadable(problems.join("; "))
        }
    })
}
