//! Notes made of what headers and cookies say (`envoy.filters.http.header_to_metadata`), for filters after it and logs.

use std::sync::Arc;

use base64::alphabet;
use base64::engine::{DecodePaddingMode, Engine as _, GeneralPurpose, GeneralPurposeConfig};
use outrigger_control_api::pb::envoy::extensions::filters::http::header_to_metadata::v3 as pb;
use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::Value;
use prost::Message;

use super::chain::{At, Step};
use crate::config::matcher::{cookie_value, substitution};
use crate::config::problems::Problems;
use crate::config::regex::Substitution;
use crate::config::route::{Override, RouteFilter};
use crate::config::{HeaderKey, HeaderMutate, HeaderView, Known};
use crate::http::exchange::Exchange;
use crate::http::head::ResponseHead;
use crate::telemetry::stream_info::DynamicMetadata;

/// Longer values are not noted.
const MAX_VALUE: usize = 8 * 1024;
/// Where notes go unless a rule says otherwise.
const NAMESPACE: &str = "envoy.filters.http.header_to_metadata";

/// The filter, or what a route has instead.
#[derive(Debug)]
pub struct Config {
    request: Box<[Rule]>,
    response: Box<[Rule]>,
}

#[derive(Debug)]
struct Rule {
    from: From,
    present: Option<Pair>,
    missing: Option<Pair>,
}

#[derive(Debug)]
enum From {
    /// The header; it is removed if so.
    Header(HeaderKey, bool),
    Cookie(Box<str>),
}

#[derive(Debug)]
struct Pair {
    namespace: String,
    key: String,
    value: Box<str>,
    rewrite: Option<Substitution>,
    kind: pb::config::ValueType,
    base64: bool,
}

impl Config {
    /// Compiles `config`, which is of a route if `route`. `None` when a problem was reported.
    pub fn compile(config: &pb::Config, route: bool, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        if route && config.request_rules.is_empty() && config.response_rules.is_empty() {
            problems.report("needs request_rules or response_rules");
        }
        let request = rules(&config.request_rules, "request_rules", problems);
        let response = rules(&config.response_rules, "response_rules", problems);
        (problems.count() == before).then_some(Self { request, response })
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let config = match at.said() {
            Some(RouteFilter::HeaderToMetadata(own)) => own,
            _ => self,
        };
        if let Some(request) = &mut ex.request {
            note(&config.request, request, &mut ex.info.metadata);
        }
        Step::Continue
    }

    /// What notes what the response says; `None` if nothing does.
    pub(super) fn encoder(own: &Arc<Self>, over: Option<&Override>) -> Option<Response> {
        let said = over.and_then(|over| over.levels.first());
        let response = match said.map(|said| (said, &**said)) {
            Some((said, RouteFilter::HeaderToMetadata(config))) if !config.response.is_empty() => {
                Response::Said(said.clone())
            }
            Some((_, RouteFilter::HeaderToMetadata(_))) => return None,
            _ if own.response.is_empty() => return None,
            _ => Response::Own(own.clone()),
        };
        Some(response)
    }
}

/// The filter's rules for responses, or those that a route has instead.
#[derive(Debug)]
pub(super) enum Response {
    Own(Arc<Config>),
    Said(Arc<RouteFilter>),
}

impl Response {
    pub(super) fn on_response(&self, ex: &mut Exchange<'_>, head: &mut ResponseHead) {
        let config = match self {
            Response::Own(config) => config,
            Response::Said(said) => match &**said {
                RouteFilter::HeaderToMetadata(config) => config,
                _ => return,
            },
        };
        note(&config.response, head, &mut ex.info.metadata);
    }
}

fn rules(list: &[pb::config::Rule], field: &str, problems: &mut Problems) -> Box<[Rule]> {
    let each = |(index, config)| problems.at_index(field, index, |problems| rule(config, problems));
    list.iter().enumerate().filter_map(each).collect()
}

fn rule(config: &pb::config::Rule, problems: &mut Problems) -> Option<Rule> {
    let before = problems.count();
    let from = match (config.header.as_str(), config.cookie.as_str()) {
        (header, "") if !header.is_empty() => From::Header(HeaderKey::new(header), config.remove),
        ("", cookie) if !cookie.is_empty() => {
            if config.remove {
                problems.report_at("remove", "a cookie cannot be removed");
            }
            From::Cookie(cookie.into())
        }
        _ => {
            problems.report("needs either header or cookie");
            return None;
        }
    };
    if config.on_header_present.is_none() && config.on_header_missing.is_none() {
        problems.report("needs on_header_present or on_header_missing");
    }
    let present = config.on_header_present.as_ref().and_then(|config| {
        problems.at("on_header_present", |problems| {
            if !config.value.is_empty() && config.regex_value_rewrite.is_some() {
                problems.report_at("value", "cannot be combined with regex_value_rewrite");
            }
            pair(config, problems)
        })
    });
    let missing = config.on_header_missing.as_ref().and_then(|config| {
        problems.at("on_header_missing", |problems| {
            if config.value.is_empty() {
                problems.report_at("value", "is required");
            }
            pair(config, problems)
        })
    });
    (problems.count() == before).then_some(Rule { from, present, missing })
}

fn pair(config: &pb::config::KeyValuePair, problems: &mut Problems) -> Option<Pair> {
    let namespace = if config.metadata_namespace.is_empty() { NAMESPACE } else { &config.metadata_namespace };
    let rewrite = match &config.regex_value_rewrite {
        None => None,
        Some(config) => Some(problems.at("regex_value_rewrite", |problems| substitution(config, problems))?),
    };
    Some(Pair {
        namespace: namespace.to_owned(),
        key: config.key.clone(),
        value: config.value.as_str().into(),
        rewrite,
        kind: config.r#type(),
        base64: config.encode() == pb::config::ValueEncode::Base64,
    })
}

impl Pair {
    /// The value to note for what was found.
    fn value(&self, found: Vec<u8>) -> Option<Value> {
        let mut value = match (&*self.value, &self.rewrite) {
            ("", None) => found,
            ("", Some(rewrite)) => rewrite.replace_all(&found),
            (value, _) => value.as_bytes().to_vec(),
        };
        if value.is_empty() || value.len() >= MAX_VALUE {
            return None;
        }
        if self.base64 {
            value = BASE64.decode(&value).ok().filter(|value| !value.is_empty())?;
        }
        use pb::config::ValueType;
        let kind = match self.kind {
            ValueType::String => Kind::StringValue(String::from_utf8_lossy(&value).into_owned()),
            ValueType::Number => {
                let number = std::str::from_utf8(&value).ok()?.trim().parse().ok()?;
                Kind::NumberValue(number)
            }
            ValueType::ProtobufValue => return Value::decode(value.as_slice()).ok(),
        };
        Some(Value { kind: Some(kind) })
    }
}

/// Base64, padded or not; bits that do not fill a byte are nobody's.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn note<H: HeaderMutate>(rules: &[Rule], head: &mut H, metadata: &mut Option<Box<DynamicMetadata>>) {
    let mut notes: Vec<(&str, &str, Value)> = Vec::new();
    for rule in rules {
        let found = rule.from.take(head);
        let noted = match (found, &rule.present, &rule.missing) {
            (Some(found), Some(pair), _) => pair.value(found).map(|value| (pair, value)),
            (None, _, Some(pair)) => pair.value(Vec::new()).map(|value| (pair, value)),
            _ => None,
        };
        notes.extend(noted.map(|(pair, value)| (&*pair.namespace, &*pair.key, value)));
    }
    for (namespace, key, value) in notes {
        let all = metadata.get_or_insert_default();
        let fields = all.entry(namespace.to_owned()).or_default();
        fields.fields.insert(key.to_owned(), value);
    }
}

impl From {
    fn take<H: HeaderMutate>(&self, head: &mut H) -> Option<Vec<u8>> {
        match self {
            From::Header(key, remove) => {
                let mut all: Option<Vec<u8>> = None;
                HeaderView::values(head, key, &mut |value| match &mut all {
                    Some(all) => {
                        all.push(b',');
                        all.extend_from_slice(value);
                    }
                    None => all = Some(value.to_vec()),
                });
                if *remove && all.is_some() {
                    head.remove(key);
                }
                all
            }
            From::Cookie(name) => {
                let mut found = None;
                head.values(&Known::Cookie.into(), &mut |pairs| {
                    if found.is_none() {
                        found = cookie_value(pairs, name.as_bytes()).map(<[u8]>::to_vec);
                    }
                });
                found.filter(|value: &Vec<u8>| !value.is_empty())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_with_and_without_padding() {
        for (text, wanted) in [
            ("", Some("")),
            ("YQ==", Some("a")),
            ("YQ", Some("a")),
            ("YWI=", Some("ab")),
            ("YWJj", Some("abc")),
            ("YWJjZA", Some("abcd")),
            ("Y", None),
            ("Y!==", None),
        ] {
            assert_eq!(BASE64.decode(text).ok().as_deref(), wanted.map(str::as_bytes), "{text}");
        }
    }
}
