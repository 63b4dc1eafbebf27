//! What all messages to OpenTelemetry's collectors have in common.

use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_control_api::pb::opentelemetry::proto::common::v1::{any_value, AnyValue, KeyValue};

/// A pair of texts.
pub fn pair(name: &str, text: String) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(text)) };
    KeyValue { key: name.to_owned(), value: Some(value) }
}

/// Nanoseconds since the epoch.
pub fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Who made the message (OpenTelemetry's conventions for resources: `telemetry.sdk.*`).
pub fn sdk() -> [KeyValue; 3] {
    [
        pair("telemetry.sdk.language", "rust".to_owned()),
        pair("telemetry.sdk.name", "outrigger".to_owned()),
        pair("telemetry.sdk.version", env!("CARGO_PKG_VERSION").to_owned()),
    ]
}
