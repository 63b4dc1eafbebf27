//! Services that are asked over HTTP (`http_service`): each question is a request of its own, in protobuf's JSON, and so is
//! its answer.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Says;
use outrigger_control_api::{load_value, message_to_json};
use serde_json::Value;

use super::session::Said;
use super::HttpService;
use crate::config::{HeaderMutate, Known};
use crate::http::call::{self, Call};
use crate::http::worker::Worker;

/// Most bytes of an answer.
const MOST: usize = 1 << 20;

/// Asks the service.
pub(super) async fn ask(
    worker: Rc<Worker>,
    service: Arc<HttpService>,
    question: pb::ProcessingRequest,
) -> Said {
    let target = &service.target;
    let mut question = message_to_json(&question);
    if let Some(fields) = question.as_object_mut() {
        // Which message it is follows from where it is sent.
        fields.remove("@type");
    }
    let body = Bytes::from(question.to_string());
    let mut request = call::head(b"POST", &target.authority, &target.path, b"http");
    request.fields.push_known(Known::ContentType, b"application/json");
    let mut digits = itoa::Buffer::new();
    // As Envoy names them: the stream's number, which here is any.
    request.fields.push_known(Known::XRequestId, digits.format(worker.random()).as_bytes());
    for (key, value) in &service.fields {
        request.append(key, value.as_bytes());
    }
    if let Some(timeout) = target.timeout {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        request.fields.push_known(Known::XEnvoyExpectedRqTimeoutMs, digits.format(millis).as_bytes());
    }
    request.fields.push_known(Known::ContentLength, digits.format(body.len()).as_bytes());
    let call = Call { request, body, timeout: target.timeout, most: MOST, retries: None };
    let answer = match call.send(worker, target.cluster.clone()).await {
        Ok(answer) if answer.head.status == 200 => answer,
        _ => return Said::NotOk,
    };
    read(&answer.body).map_or(Said::NotOk, |answer| Said::Answer(Box::new(answer)))
}

/// An answer in JSON. `None` if it is none.
fn read(body: &[u8]) -> Option<pb::ProcessingResponse> {
    let mut answer: Value = serde_json::from_slice(body).ok()?;
    // A status without a name in the API is one all the same.
    let code = ["/immediate_response/status/code", "/immediateResponse/status/code"]
        .iter()
        .find_map(|path| answer.pointer(path)?.as_i64().map(|code| (*path, code)));
    if let Some(place) = code.and_then(|(path, _)| answer.pointer_mut(path)) {
        *place = Value::from(0);
    }
    let mut answer = load_value::<pb::ProcessingResponse>(&answer).ok()?.message;
    if let (Some((_, code)), Some(Says::ImmediateResponse(said))) = (code, &mut answer.response) {
        said.status.get_or_insert_default().code = i32::try_from(code).ok()?;
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_need_no_name() {
        for (text, wanted) in [
            (r#"{"immediate_response": {"status": {"code": 418}}}"#, Some(418)),
            (r#"{"immediateResponse": {"status": {"code": 403}}}"#, Some(403)),
            (r#"{"immediate_response": {"status": {"code": "Forbidden"}}}"#, Some(403)),
            (r#"{"immediate_response": {"status": {"code": 99999999999}}}"#, None),
            (r#"{"immediate_response": {"unknown": 1}}"#, None),
            (r#"{"request_headers": {}}"#, None),
            ("", None),
        ] {
            let code = match read(text.as_bytes()).and_then(|answer| answer.response) {
                Some(Says::ImmediateResponse(said)) => said.status.map(|status| status.code),
                _ => None,
            };
            assert_eq!(code, wanted, "{text}");
        }
    }
}
