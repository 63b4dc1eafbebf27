//! `local_reply_config`: which local replies get another status, body or headers.

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3::SubstitutionFormatString;
use outrigger_control_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;

use super::{data_source, rooms, Environment};
use crate::config::http::{BodyFormat, LocalReplyMapper, LocalReplyRules};
use crate::config::problems::Problems;
use crate::telemetry::access_log::{substitution_format, LogFilter};
use crate::telemetry::format::Style;

/// The rules, if config has any.
pub(super) fn compile(
    config: Option<&pb::LocalReplyConfig>,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<LocalReplyRules> {
    let config = config?;
    let mut mappers = Vec::with_capacity(config.mappers.len());
    for (index, mapper) in config.mappers.iter().enumerate() {
        mappers.extend(problems.at_index("mappers", index, |problems| map(mapper, environment, problems)));
    }
    let body_format = body_format(config.body_format.as_ref(), "body_format", problems);
    Some(LocalReplyRules { mappers, body_format })
}

fn map(
    mapper: &pb::ResponseMapper,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<LocalReplyMapper> {
    let runtime = |key: &str| environment.compiler.runtime.load().number(key);
    let filter = mapper
        .filter
        .as_ref()
        .and_then(|filter| problems.at("filter", |problems| LogFilter::compile(filter, &runtime, problems)));
    let body =
        mapper.body.as_ref().and_then(|body| problems.at("body", |problems| data_source(body, problems)));
    let headers = rooms::header_ops(&mapper.headers_to_add, "headers_to_add", problems);
    let body_format = body_format(mapper.body_format_override.as_ref(), "body_format_override", problems);
    Some(LocalReplyMapper {
        // The rules of the fields require a filter and bound the status.
        filter: filter?,
        status: mapper.status_code.and_then(|status| u16::try_from(status.value).ok()),
        body,
        headers,
        body_format,
    })
}

fn body_format(
    config: Option<&SubstitutionFormatString>,
    field: &str,
    problems: &mut Problems,
) -> Option<BodyFormat> {
    problems.at(field, |problems| of_format(config?, problems))
}

/// How a body is made. `None` when a problem was reported.
pub(crate) fn of_format(config: &SubstitutionFormatString, problems: &mut Problems) -> Option<BodyFormat> {
    use outrigger_control_api::pb::envoy::config::core::v3::substitution_format_string::Format;
    let format = substitution_format(config, Style::Body, problems)?;
    let content_type = match (&config.format, config.content_type.as_str()) {
        (Some(Format::JsonFormat(_)), "") => "application/json",
        (_, "") => "text/plain",
        (_, set) => set,
    };
    Some(BodyFormat { format, content_type: Bytes::copy_from_slice(content_type.as_bytes()) })
}
