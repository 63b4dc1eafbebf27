//! Spans as OpenTelemetry has them.

use std::rc::Rc;

use bytes::Bytes;
use outrigger_control_api::pb::opentelemetry::proto::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use outrigger_control_api::pb::opentelemetry::proto::common::v1::InstrumentationScope;
use outrigger_control_api::pb::opentelemetry::proto::resource::v1::Resource;
use outrigger_control_api::pb::opentelemetry::proto::trace::v1::span::SpanKind;
use outrigger_control_api::pb::opentelemetry::proto::trace::v1::status::StatusCode;
use outrigger_control_api::pb::opentelemetry::proto::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;

use super::export::OtlpTarget;
use super::{Finished, Kind};
use crate::http::worker::Worker;
use crate::http::{call, logs};
use crate::telemetry::otlp::{nanos, pair, sdk};

const PATH: &[u8] = b"/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// A span.
pub(super) fn span(finished: &Finished<'_>) -> Span {
    let context = finished.context;
    let status = finished.tags.iter().find(|(name, _)| *name == "http.status_code");
    let status: u16 = status.and_then(|(_, code)| code.parse().ok()).unwrap_or_default();
    let failed = status >= if finished.kind == Kind::Client { 400 } else { 500 };
    let message = finished.tags.iter().find(|(name, _)| *name == "grpc.message");
    let bytes = |number: u64| if number == 0 { Vec::new() } else { number.to_be_bytes().to_vec() };
    Span {
        trace_id: context.trace.to_be_bytes().to_vec(),
        span_id: bytes(context.span),
        trace_state: context.state.to_string(),
        parent_span_id: bytes(context.parent),
        flags: 0,
        name: finished.name.clone(),
        kind: match finished.kind {
            Kind::Server => SpanKind::Server.into(),
            Kind::Client => SpanKind::Client.into(),
        },
        start_time_unix_nano: nanos(finished.start),
        end_time_unix_nano: nanos(finished.end),
        attributes: finished.tags.iter().map(|(name, value)| pair(name, value.clone())).collect(),
        dropped_attributes_count: 0,
        status: (failed || message.is_some()).then(|| Status {
            message: message.map(|(_, text)| text.clone()).unwrap_or_default(),
            code: if failed { StatusCode::Error } else { StatusCode::Unset }.into(),
        }),
    }
}

/// Sends spans of the service `service`; whether they were taken.
pub(super) async fn send(worker: &Rc<Worker>, target: &OtlpTarget, service: &str, spans: Vec<Span>) -> bool {
    let attributes = std::iter::once(pair("service.name", service.to_owned())).chain(sdk()).collect();
    let resource = Resource { attributes, dropped_attributes_count: 0 };
    let scope = InstrumentationScope {
        name: "outrigger".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    };
    let scope_spans = ScopeSpans { scope: Some(scope), spans, schema_url: String::new() };
    let all =
        ResourceSpans { resource: Some(resource), scope_spans: vec![scope_spans], schema_url: String::new() };
    let question = ExportTraceServiceRequest { resource_spans: vec![all] };
    match target {
        OtlpTarget::Grpc(target) => {
            let answer: Result<ExportTraceServiceResponse, _> =
                call::unary(worker.clone(), target.clone(), PATH, question).await;
            answer.is_ok()
        }
        OtlpTarget::Http(target, fields) => {
            let body = Bytes::from(question.encode_to_vec());
            logs::post_protobuf(worker, target, fields, body).await.is_some()
        }
    }
}
