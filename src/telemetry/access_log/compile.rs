//! From `envoy.config.accesslog.v3.AccessLog` to [`AccessLog`].

use outrigger_control_api::pb::envoy::config::accesslog::v3 as pb;
use outrigger_control_api::pb::envoy::config::core::v3::{
    data_source::Specifier, substitution_format_string as source, DataSource, SubstitutionFormatString,
    TypedExtensionConfig,
};
use outrigger_control_api::pb::envoy::extensions::access_loggers::file::v3 as file;
use outrigger_control_api::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use outrigger_control_api::pb::envoy::extensions::access_loggers::stream::v3 as stream;
use outrigger_control_api::pb::envoy::r#type::v3::{fractional_percent::DenominatorType, FractionalPercent};
use outrigger_control_api::pb::google::protobuf::{Any, Struct};
use outrigger_control_api::{message_to_json, type_of, unpack};

use super::filter::{Comparison, LogFilter};
use super::sink::{Sink, Target};
use super::{service, AccessLog, Output};
use crate::config::compile::{cel, rbac};
use crate::config::matcher::HeaderMatcher;
use crate::config::problems::Problems;
use crate::config::{Cluster, Directory};
use crate::telemetry::format::{Format, FormatError, Style};
use crate::telemetry::stream_info::{read_dynamic_metadata, ResponseFlags};

/// Looks up a runtime key that holds a number.
type Runtime<'a> = &'a dyn Fn(&str) -> Option<f64>;

/// Extensions whose operators are always there.
const FORMATTERS: &[&str] = &[
    "envoy.extensions.formatter.cel.v3.Cel",
    "envoy.extensions.formatter.metadata.v3.Metadata",
    "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery",
];
const CEL: &str = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter";
const FILE: &str = "envoy.extensions.access_loggers.file.v3.FileAccessLog";
const STDOUT: &str = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
const STDERR: &str = "envoy.extensions.access_loggers.stream.v3.StderrAccessLog";

impl AccessLog {
    /// Compiles a logger and opens its file. `None` when a problem was reported.
    pub fn compile(
        config: &pb::AccessLog,
        runtime: Runtime<'_>,
        clusters: &Directory<Cluster>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let before = problems.count();
        let filter = config.filter.as_ref().and_then(|filter| {
            problems.at("filter", |problems| LogFilter::compile(filter, runtime, problems))
        });
        let Some(pb::access_log::ConfigType::TypedConfig(any)) = &config.config_type else {
            problems.report_at("typed_config", "an access log needs a logger");
            return None;
        };
        if service::compile::is_service(type_of(any)) {
            let log = problems
                .at("typed_config", |problems| service::compile::service_log(any, clusters, problems))?;
            return (problems.count() == before)
                .then_some(AccessLog { filter, output: Output::Service(log) });
        }
        let (target, format) = problems.at("typed_config", |problems| logger(any, problems))?;
        if problems.count() != before {
            return None;
        }
        match Sink::open(target.clone()) {
            Ok(sink) => Some(AccessLog { filter, output: Output::Lines(format, sink) }),
            Err(error) => {
                let Target::File(path) = target else { return None };
                problems.report_at(
                    "typed_config.path",
                    format_args!("unable to open {}: {error}", path.display()),
                );
                None
            }
        }
    }
}

fn logger(any: &Any, problems: &mut Problems) -> Option<(Target, Format)> {
    match type_of(any) {
        FILE => {
            let config = problems.take(unpack::<file::FileAccessLog>(any))?;
            if config.path.is_empty() {
                problems.report_at("path", "a file access log needs a path");
            }
            let format = match &config.access_log_format {
                None => Some(Format::default_log()),
                Some(file::file_access_log::AccessLogFormat::Format(text)) if text.is_empty() => {
                    Some(Format::default_log())
                }
                Some(file::file_access_log::AccessLogFormat::Format(text)) => {
                    checked(Format::parse(text), "format", problems)
                }
                Some(file::file_access_log::AccessLogFormat::JsonFormat(tree)) => {
                    checked(Format::json(&json(tree), false), "json_format", problems)
                }
                Some(file::file_access_log::AccessLogFormat::TypedJsonFormat(tree)) => {
                    checked(Format::json(&json(tree), false), "typed_json_format", problems)
                }
                Some(file::file_access_log::AccessLogFormat::LogFormat(format)) => {
                    log_format(format, problems)
                }
            };
            Some((Target::of_path(&config.path), format?))
        }
        STDOUT => {
            let config = problems.take(unpack::<stream::StdoutAccessLog>(any))?;
            let format = config.access_log_format.map_or_else(
                || Some(Format::default_log()),
                |stream::stdout_access_log::AccessLogFormat::LogFormat(format)| log_format(&format, problems),
            );
            Some((Target::Stdout, format?))
        }
        STDERR => {
            let config = problems.take(unpack::<stream::StderrAccessLog>(any))?;
            let format = config.access_log_format.map_or_else(
                || Some(Format::default_log()),
                |stream::stderr_access_log::AccessLogFormat::LogFormat(format)| log_format(&format, problems),
            );
            Some((Target::Stderr, format?))
        }
        "" => {
            problems.report("an access log needs a logger");
            None
        }
        other => {
            problems.report(format_args!(
                "access logger {other} is not supported (only file, stdout, stderr, gRPC and OpenTelemetry)"
            ));
            None
        }
    }
}

fn log_format(format: &SubstitutionFormatString, problems: &mut Problems) -> Option<Format> {
    problems.at("log_format", |problems| substitution_format(format, Style::Log, problems))
}

/// Compiles a format of a log line ([`Style::Log`]) or of a local reply's body ([`Style::Body`]).
/// Its `content_type` is the caller's business.
pub fn substitution_format(
    config: &SubstitutionFormatString,
    style: Style,
    problems: &mut Problems,
) -> Option<Format> {
    formatters(&config.formatters, problems);
    let text_style = match (style, config.omit_empty_values) {
        (Style::Log, true) => Style::LogOmitEmpty,
        (Style::Body, true) => Style::BodyOmitEmpty,
        (style, _) => style,
    };
    match &config.format {
        None => {
            problems.report("needs text_format_source or json_format");
            None
        }
        Some(source::Format::TextFormat(text)) => {
            checked(Format::parse_as(text, text_style), "text_format", problems)
        }
        Some(source::Format::TextFormatSource(text)) => {
            let text = problems.at("text_format_source", |problems| read(text, problems))?;
            checked(Format::parse_as(&text, text_style), "text_format_source", problems)
        }
        Some(source::Format::JsonFormat(tree)) => {
            checked(Format::json(&json(tree), config.omit_empty_values), "json_format", problems)
        }
    }
}

/// Checks the formatter extensions that a format may use.
pub(super) fn formatters(list: &[TypedExtensionConfig], problems: &mut Problems) {
    for (index, formatter) in list.iter().enumerate() {
        let found = formatter.typed_config.as_ref().map(type_of).unwrap_or_default();
        if FORMATTERS.contains(&found) {
            continue;
        }
        problems.at_index("formatters", index, |problems| {
            problems.report(format_args!("formatter extension {:?} is not supported", formatter.name));
        });
    }
}

/// The format, with a note of the operators that will never have a value.
fn checked(
    format: Result<Format, FormatError>,
    field: &'static str,
    problems: &mut Problems,
) -> Option<Format> {
    let format = problems.at(field, |problems| problems.take(format))?;
    for name in format.never_filled() {
        problems.note(field, format_args!("%{name}% has no value here and is written as a missing one"));
    }
    Some(format)
}

fn json(tree: &Struct) -> serde_json::Value {
    // A well-known type's own JSON stands under `value`.
    match message_to_json(tree) {
        serde_json::Value::Object(mut fields) => fields.remove("value").unwrap_or_default(),
        other => other,
    }
}

fn read(source: &DataSource, problems: &mut Problems) -> Option<String> {
    let utf8 = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned());
    let text = match source.specifier.as_ref() {
        None => Err("needs one of inline_string, filename, inline_bytes, environment_variable".to_owned()),
        Some(Specifier::InlineString(text)) => Ok(text.clone()),
        Some(Specifier::InlineBytes(bytes)) => utf8(bytes.clone()),
        Some(Specifier::Filename(path)) => {
            std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}")).and_then(utf8)
        }
        Some(Specifier::EnvironmentVariable(name)) => {
            std::env::var(name).map_err(|error| format!("environment variable {name}: {error}"))
        }
    };
    problems.take(text)
}

impl LogFilter {
    /// Compiles a filter.
    pub fn compile(
        config: &pb::AccessLogFilter,
        runtime: Runtime<'_>,
        problems: &mut Problems,
    ) -> Option<Self> {
        use pb::access_log_filter::FilterSpecifier as Spec;
        let Some(spec) = &config.filter_specifier else {
            problems.report("an access-log filter needs one of its kinds");
            return None;
        };
        let nested = |field: &str, filters: &[pb::AccessLogFilter], problems: &mut Problems| {
            let compiled: Vec<_> = filters
                .iter()
                .enumerate()
                .filter_map(|(index, filter)| {
                    let at = format!("{field}.filters[{index}]");
                    problems.at(at, |problems| LogFilter::compile(filter, runtime, problems))
                })
                .collect();
            if filters.len() < 2 {
                problems.report_at(format_args!("{field}.filters"), "needs at least 2 filters");
            }
            (compiled.len() == filters.len()).then_some(compiled)
        };
        match spec {
            Spec::StatusCodeFilter(filter) => {
                comparison(filter.comparison.as_ref(), "status_code_filter", runtime, problems)
                    .map(LogFilter::StatusCode)
            }
            Spec::DurationFilter(filter) => {
                comparison(filter.comparison.as_ref(), "duration_filter", runtime, problems)
                    .map(LogFilter::Duration)
            }
            Spec::NotHealthCheckFilter(_) => Some(LogFilter::NotHealthCheck),
            Spec::TraceableFilter(_) => Some(LogFilter::Traceable),
            Spec::RuntimeFilter(filter) => {
                let percent = filter.percent_sampled.as_ref();
                let denominator = denominator(percent);
                let numerator = runtime(&filter.runtime_key)
                    .map(|value| value as u64)
                    .or_else(|| percent.map(|percent| percent.numerator.into()));
                let independent = filter.use_independent_randomness;
                Some(LogFilter::Sampled { numerator: numerator.unwrap_or(0), denominator, independent })
            }
            Spec::AndFilter(filter) => nested("and_filter", &filter.filters, problems).map(LogFilter::And),
            Spec::OrFilter(filter) => nested("or_filter", &filter.filters, problems).map(LogFilter::Or),
            // Demanded by a field rule.
            Spec::HeaderFilter(filter) => filter
                .header
                .as_ref()
                .and_then(|header| {
                    problems.at("header_filter.header", |problems| HeaderMatcher::compile(header, problems))
                })
                .map(LogFilter::Header),
            Spec::ResponseFlagFilter(filter) => response_flags(&filter.flags, problems),
            Spec::GrpcStatusFilter(filter) => {
                let statuses = bits(&filter.statuses, 16, "grpc_status_filter.statuses", problems)?;
                Some(LogFilter::GrpcStatus { statuses, exclude: filter.exclude })
            }
            Spec::LogTypeFilter(filter) => {
                let types = bits(&filter.types, 13, "log_type_filter.types", problems)?;
                Some(LogFilter::LogType { types, exclude: filter.exclude })
            }
            Spec::ExtensionFilter(filter) => {
                problems.at("extension_filter", |problems| extension_filter(filter, problems))
            }
            Spec::MetadataFilter(filter) => {
                read_dynamic_metadata();
                let absent = filter.match_if_key_not_found.is_none_or(|wanted| wanted.value);
                problems.at("metadata_filter", |problems| match &filter.matcher {
                    Some(matcher) => {
                        let matcher = problems.at("matcher", |problems| rbac::metadata(matcher, problems))?;
                        Some(LogFilter::Metadata(Box::new(matcher), absent))
                    }
                    None => Some(LogFilter::And(Vec::new())),
                })
            }
        }
    }
}

fn extension_filter(config: &pb::ExtensionFilter, problems: &mut Problems) -> Option<LogFilter> {
    let Some(pb::extension_filter::ConfigType::TypedConfig(any)) = &config.config_type else {
        problems.report_at("typed_config", "is required");
        return None;
    };
    problems.at("typed_config", |problems| match type_of(any) {
        CEL => {
            let config = problems.take(unpack::<ExpressionFilter>(any))?;
            let compiled = problems.at("expression", |problems| cel::text(&config.expression, problems))?;
            Some(LogFilter::Expression(Box::new(compiled)))
        }
        found => {
            problems.report(format_args!("the access-log filter {} ({found}) is not supported", config.name));
            None
        }
    })
}

fn comparison(
    config: Option<&pb::ComparisonFilter>,
    field: &str,
    runtime: Runtime<'_>,
    problems: &mut Problems,
) -> Option<Comparison> {
    let field = format!("{field}.comparison");
    let Some(config) = config else {
        problems.report_at(field, "is required");
        return None;
    };
    let default = config.value.as_ref().map_or(0, |value| value.default_value.into());
    let key = config.value.as_ref().map_or("", |value| value.runtime_key.as_str());
    let value = runtime(key).map_or(default, |value| value as u64);
    match config.op {
        0 => Some(Comparison::Equal(value)),
        1 => Some(Comparison::AtLeast(value)),
        2 => Some(Comparison::AtMost(value)),
        3 => Some(Comparison::NotEqual(value)),
        other => {
            problems.report_at(format_args!("{field}.op"), format_args!("unknown operation {other}"));
            None
        }
    }
}

fn denominator(percent: Option<&FractionalPercent>) -> u64 {
    match percent.map(FractionalPercent::denominator) {
        None | Some(DenominatorType::Hundred) => 100,
        Some(DenominatorType::TenThousand) => 10_000,
        Some(DenominatorType::Million) => 1_000_000,
    }
}

fn response_flags(names: &[String], problems: &mut Problems) -> Option<LogFilter> {
    let mut any = ResponseFlags::NONE;
    for (index, name) in names.iter().enumerate() {
        match ResponseFlags::ALL.iter().find(|(_, short, _)| short == name) {
            Some((flag, ..)) => any.insert(*flag),
            None => {
                let at = format!("response_flag_filter.flags[{index}]");
                problems.report_at(at, format_args!("unknown response flag {name:?}"));
                return None;
            }
        }
    }
    if names.is_empty() {
        any = ResponseFlags(u32::MAX);
    }
    Some(LogFilter::ResponseFlags(any))
}

fn bits(numbers: &[i32], last: i32, field: &str, problems: &mut Problems) -> Option<u32> {
    let mut bits = 0;
    for number in numbers {
        if !(0..=last).contains(number) {
            problems.report_at(field, format_args!("unknown value {number}"));
            return None;
        }
        bits |= 1 << number;
    }
    Some(bits)
}
