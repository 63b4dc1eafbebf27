//! Discovery over REST: one request, one answer, in JSON.
//!
//! In: `POST /v3/discovery:clusters` and the like, with a `DiscoveryRequest`. Out: a `DiscoveryResponse` with
//! the state of the world, or 304 for a client that has it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hyper::body::Body;
use hyper::http::{header, HeaderValue, Method, Request, Response, StatusCode};
use prost::Message as _;
use tonic::body::{boxed, BoxBody};

use super::kind::ResourceType;
use super::stream::{Protocol, StreamState};
use super::transport::{Server, MAX_REQUEST_BYTES};
use crate::json::message_to_json;
use crate::load::load;
use crate::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use crate::text::Format;

/// Why a single request gets no resources.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The request cannot be answered as it is.
    #[error("{0}")]
    Invalid(String),
    /// There is nothing for this node, yet.
    #[error("there is no snapshot for node key {key:?}")]
    NoSnapshot {
        /// The key of the node.
        key: String,
    },
}

impl Server {
    /// The state of the world that `request` asks for; `None` if that is the version it names.
    ///
    /// # Errors
    /// The request names no node or another type, or there is no snapshot.
    pub fn fetch(
        &self,
        kind: &ResourceType,
        mut request: DiscoveryRequest,
    ) -> Result<Option<DiscoveryResponse>, FetchError> {
        let invalid = |message: String| FetchError::Invalid(message);
        let node = request.node.take().ok_or_else(|| invalid("the request has no node".to_owned()))?;
        let key = self.cache().key_of(&node);
        let Some(snapshot) = self.cache().get(&key) else { return Err(FetchError::NoSnapshot { key }) };
        let version = snapshot.version(kind);
        let everything = request.resource_names.is_empty();
        let has_it = everything && request.version_info == version;
        // Each request stands for itself.
        request.response_nonce.clear();
        request.error_detail = None;
        let limits = self.limits().clone();
        let mut state = StreamState::new(Protocol::StateOfTheWorld, Some(kind.clone()), limits);
        state.set_target(Arc::clone(&snapshot));
        state.on_sotw(request, Instant::now()).map_err(|error| invalid(error.to_string()))?;
        let Some(response) = state.poll(Instant::now()) else {
            let nothing = || {
                let type_url = kind.url().to_owned();
                DiscoveryResponse { version_info: version, type_url, ..DiscoveryResponse::default() }
            };
            return Ok((!has_it).then(nothing));
        };
        let response = DiscoveryResponse::decode(response.encode().as_slice());
        response.map(Some).map_err(|error| invalid(error.to_string()))
    }

    /// Answers `POST /v3/discovery:{what}`.
    pub(super) async fn rest<B>(&self, what: &str, request: Request<B>) -> Response<BoxBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let Some(kind) = kind_of(what) else {
            return answer(StatusCode::NOT_FOUND, format!("there are no {what:?} to discover\n"));
        };
        if request.method() != Method::POST {
            return answer(StatusCode::METHOD_NOT_ALLOWED, "discovery is asked for with POST\n".to_owned());
        }
        let request = match read(request.into_body()).await {
            Ok(request) => request,
            Err((status, message)) => return answer(status, message + "\n"),
        };
        match self.fetch(&kind, request) {
            Ok(Some(response)) => {
                let mut response = answer(StatusCode::OK, message_to_json(&response).to_string());
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                response
            }
            Ok(None) => answer(StatusCode::NOT_MODIFIED, String::new()),
            Err(error @ FetchError::Invalid(_)) => answer(StatusCode::BAD_REQUEST, format!("{error}\n")),
            Err(error @ FetchError::NoSnapshot { .. }) => {
                answer(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
            }
        }
    }
}

async fn read<B>(body: B) -> Result<DiscoveryRequest, (StatusCode, String)>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut body = pin!(body);
    let mut text = Vec::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|error| (StatusCode::BAD_REQUEST, error.into().to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if text.len().saturating_add(data.len()) > MAX_REQUEST_BYTES {
            let message = format!("the request has more than {MAX_REQUEST_BYTES} bytes");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        text.extend_from_slice(&data);
    }
    load::<DiscoveryRequest>(&text, Format::Json).map(|loaded| loaded.message).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        (StatusCode::BAD_REQUEST, problems.join("\n"))
    })
}

fn kind_of(what: &str) -> Option<ResourceType> {
    Some(match what {
        "clusters" => ResourceType::CLUSTER,
        "endpoints" => ResourceType::ENDPOINTS,
        "listeners" => ResourceType::LISTENER,
        "routes" => ResourceType::ROUTE,
        "scoped-routes" => ResourceType::SCOPED_ROUTES,
        "secrets" => ResourceType::SECRET,
        "runtime" => ResourceType::RUNTIME,
        "extension_configs" => ResourceType::EXTENSION,
        _ => return None,
    })
}

pub(super) fn answer(status: StatusCode, text: String) -> Response<BoxBody> {
    let mut response = Response::new(boxed(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
