//! Reading load reports: `endpoint-load-metrics` with a text, JSON or an encoded message, and gRPC's
//! `endpoint-load-metrics-bin` (envoyproxy.io: client-side weighted round robin; gRPC proposal A51).
//!
//! Comes in: what an upstream wrote. Goes out: a report, or why it is none; half a report is none.

use std::collections::{BTreeSet, HashMap};

use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, Engine as _, GeneralPurpose, GeneralPurposeConfig};
pub use outrigger_control_api::pb::xds::data::orca::v3::OrcaLoadReport;
use prost::Message as _;
use serde_json::Value;

/// As gRPC sends it: with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A map of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// `named_metrics`.
    Named,
    /// `utilization`.
    Utilization,
    /// `request_cost`.
    Cost,
}

impl Map {
    /// The map and key that a name like `named_metrics.queue` stands for.
    pub fn of(name: &str) -> Option<(Self, &str)> {
        [Map::Named, Map::Utilization, Map::Cost]
            .into_iter()
            .find_map(|map| Some((map, name.strip_prefix(map.prefix())?)))
    }

    /// What names of its entries begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Map::Named => "named_metrics.",
            Map::Utilization => "utilization.",
            Map::Cost => "request_cost.",
        }
    }

    /// What a report has in it.
    pub fn entries(self, report: &OrcaLoadReport) -> &HashMap<String, f64> {
        match self {
            Map::Named => &report.named_metrics,
            Map::Utilization => &report.utilization,
            Map::Cost => &report.request_cost,
        }
    }

    fn entries_mut(self, report: &mut OrcaLoadReport) -> &mut HashMap<String, f64> {
        match self {
            Map::Named => &mut report.named_metrics,
            Map::Utilization => &mut report.utilization,
            Map::Cost => &mut report.request_cost,
        }
    }
}

/// Why something is no load report.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReportError {
    /// It begins with none of the forms.
    #[error("a load report is TEXT, JSON or BIN")]
    Form,
    /// Not base64.
    #[error("the load report is not base64")]
    Base64,
    /// Not an encoded message.
    #[error("the load report is no OrcaLoadReport")]
    Message,
    /// Not JSON of such a message.
    #[error("the load report is no JSON of an OrcaLoadReport: {0}")]
    Json(Box<str>),
    /// A metric without a usable value.
    #[error("the load report says nothing that is a number of {0:?}")]
    Value(Box<str>),
    /// A metric that there is not.
    #[error("the load report has {0:?}, which is no metric")]
    Unknown(Box<str>),
    /// A metric more than once.
    #[error("the load report has {0:?} twice")]
    Twice(Box<str>),
}

/// Reads the report in the two fields that may have one, `endpoint-load-metrics-bin` before the other; `None` where
/// neither is there.
///
/// # Errors
/// There is one, but it cannot be read.
pub fn read(plain: Option<&[u8]>, binary: Option<&[u8]>) -> Result<Option<OrcaLoadReport>, ReportError> {
    if let Some(binary) = binary {
        return decode(binary).map(Some);
    }
    let Some(plain) = plain else { return Ok(None) };
    let report = if let Some(text) = plain.strip_prefix(b"TEXT ") {
        of_text(text)
    } else if let Some(json) = plain.strip_prefix(b"JSON ") {
        of_json(json)
    } else if let Some(encoded) = plain.strip_prefix(b"BIN ") {
        decode(encoded)
    } else {
        Err(ReportError::Form)
    };
    report.map(Some)
}

fn decode(encoded: &[u8]) -> Result<OrcaLoadReport, ReportError> {
    let bytes = BASE64.decode(encoded).map_err(|_| ReportError::Base64)?;
    OrcaLoadReport::decode(&*bytes).map_err(|_| ReportError::Message)
}

/// `cpu_utilization=0.3,named_metrics.queue=2`; a colon is as good as an equals sign.
fn of_text(text: &[u8]) -> Result<OrcaLoadReport, ReportError> {
    let text = std::str::from_utf8(text).map_err(|_| ReportError::Form)?;
    let mut report = OrcaLoadReport::default();
    let mut seen = BTreeSet::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once(['=', ':']).unwrap_or((pair, ""));
        if !seen.insert(name) {
            return Err(ReportError::Twice(name.into()));
        }
        let value = value.trim().parse().ok().filter(|value: &f64| value.is_finite());
        let value = value.ok_or_else(|| ReportError::Value(name.into()))?;
        match Map::of(name) {
            Some((map @ (Map::Named | Map::Utilization), key)) if !key.is_empty() => {
                map.entries_mut(&mut report).insert(key.to_owned(), value);
            }
            _ => *scalar(&mut report, name).ok_or_else(|| ReportError::Unknown(name.into()))? = value,
        }
    }
    Ok(report)
}

fn scalar<'r>(report: &'r mut OrcaLoadReport, name: &str) -> Option<&'r mut f64> {
    match name {
        "cpu_utilization" => Some(&mut report.cpu_utilization),
        "mem_utilization" => Some(&mut report.mem_utilization),
        "application_utilization" => Some(&mut report.application_utilization),
        "eps" => Some(&mut report.eps),
        "rps_fractional" => Some(&mut report.rps_fractional),
        _ => None,
    }
}

/// Protobuf's JSON form, names in either case.
fn of_json(text: &[u8]) -> Result<OrcaLoadReport, ReportError> {
    let fields: serde_json::Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| ReportError::Json(error.to_string().into()))?;
    let mut report = OrcaLoadReport::default();
    for (name, value) in &fields {
        if value.is_null() {
            continue;
        }
        let map = match name.as_str() {
            "named_metrics" | "namedMetrics" => Map::Named,
            "utilization" => Map::Utilization,
            "request_cost" | "requestCost" => Map::Cost,
            // It has given way to rps_fractional; nobody reads it.
            "rps" => {
                number(name, value)?;
                continue;
            }
            _ => {
                let known = match name.as_str() {
                    "cpuUtilization" => "cpu_utilization",
                    "memUtilization" => "mem_utilization",
                    "applicationUtilization" => "application_utilization",
                    "rpsFractional" => "rps_fractional",
                    name => name,
                };
                let place = scalar(&mut report, known).ok_or_else(|| ReportError::Unknown(known.into()))?;
                *place = number(name, value)?;
                continue;
            }
        };
        let entries = value.as_object().ok_or_else(|| ReportError::Value(name.as_str().into()))?;
        for (key, value) in entries {
            let value = number(key, value)?;
            map.entries_mut(&mut report).insert(key.clone(), value);
        }
    }
    Ok(report)
}

fn number(name: &str, value: &Value) -> Result<f64, ReportError> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| ReportError::Value(name.into()))
}
