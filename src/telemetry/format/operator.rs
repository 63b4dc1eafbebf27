//! The operators: how each is written in config and what it reads.

use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use super::coalesce::Coalesce;
use super::metadata;
use super::parse::Token;
use super::time::TimeFormat;
use super::tls;
use super::values::{
    decode_shown, grpc_status, put, put_bytes, put_found, put_grpc_name, put_number, put_query_param,
    put_underscored, split_query, AddressOf, Argument, NumberOf, TextOf, ADDRESSES, KEYS, NEVER, NUMBERS,
    TEXTS,
};
use super::{FormatContext, FormatError};
use crate::config::{HeaderKey, HeaderView};
use crate::policy::cel::{Expression, Subject};
use crate::telemetry::filter_state;
use crate::telemetry::stream_info::{read_dynamic_metadata, StreamInfo, StreamTimes};

/// A parsed operator.
#[derive(Debug)]
pub(super) enum Operator {
    /// Known when parsed: `HOSTNAME`, `ENVIRONMENT`. `None`: no such variable.
    Constant(Option<Box<str>>),
    /// `REQ_WITHOUT_QUERY(name?other)`: up to a question mark.
    RequestBare(Pick),
    /// `REQ(A?B)`.
    Request(Pick),
    /// `RESP(A?B)`.
    Response(Pick),
    /// `TRAILER(A?B)`.
    Trailer(Pick),
    /// `START_TIME(format)`.
    StartTime(TimeFormat),
    /// `EMIT_TIME(format)`.
    EmitTime(TimeFormat),
    /// A whole number.
    Number(NumberOf),
    /// Text that needs no argument.
    Text(TextOf),
    /// An address with its port.
    Address(AddressOf),
    /// An address without its port.
    Ip(AddressOf),
    /// The port of an address.
    Port(AddressOf),
    /// `COMMON_DURATION(from:to:unit)`.
    Between { from: Point, to: Point, unit: TimeUnit },
    /// `PATH(query:which)`.
    Path { query: bool, which: WhichPath },
    /// `QUERY_PARAMS(ORIG)`, or decoded.
    QueryParams { decoded: bool },
    /// An address without its port, up to a length.
    Network(AddressOf, u8),
    /// `QUERY_PARAM(name)`, decoded.
    QueryParam(Box<str>),
    /// `GRPC_STATUS(form)`.
    GrpcStatus(GrpcForm),
    /// `RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES?)`.
    Details { keep_spaces: bool },
    /// `REQUESTED_SERVER_NAME(option)`.
    ServerName(ServerName),
    /// What TLS agreed on, or a certificate says.
    Tls(tls::Side, tls::What),
    /// When a peer's certificate begins or ends to be valid.
    Validity(tls::Side, tls::What, TimeFormat),
    /// `DYNAMIC_METADATA(namespace:key...)` and its like.
    Metadata(metadata::Way),
    /// `CEL(expression)`.
    Cel(Box<Expression>),
    /// `FILTER_STATE(name:form)`.
    FilterState(filter_state::Way),
    /// `COALESCE(operators)`.
    Coalesce(Coalesce),
    /// Accepted, but this proxy has no such value.
    Never(Box<str>),
}

/// The first of two headers that is there.
#[derive(Debug)]
pub(super) struct Pick(HeaderKey, Option<HeaderKey>);

#[derive(Debug, Clone, Copy)]
pub(super) enum Point {
    Start,
    Of(fn(&StreamTimes) -> Option<Instant>),
    /// A point that nothing sets.
    Never,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum TimeUnit {
    Milli,
    Micro,
    Nano,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum WhichPath {
    Original,
    Current,
    OriginalOrCurrent,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum GrpcForm {
    Camel,
    Snake,
    Number,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum ServerName {
    SniOnly,
    SniFirst,
    HostFirst,
}

impl Operator {
    pub fn new(token: &Token<'_>) -> Result<Self, FormatError> {
        let operator = Self::resolve(token)?;
        let takes_length = match &operator {
            Operator::Request(_)
            | Operator::RequestBare(_)
            | Operator::Response(_)
            | Operator::Trailer(_)
            | Operator::Path { .. }
            | Operator::QueryParam(_)
            | Operator::Metadata(_)
            | Operator::Cel(_)
            | Operator::Coalesce(_)
            | Operator::QueryParams { .. }
            | Operator::FilterState(_)
            | Operator::Never(_) => true,
            Operator::Constant(_) => token.argument.is_some(),
            _ => false,
        };
        if token.limit.is_some() && !takes_length {
            return Err(FormatError::TakesNoLength(token.name.into()));
        }
        Ok(operator)
    }

    fn resolve(token: &Token<'_>) -> Result<Self, FormatError> {
        let wrong = |reason: &str| FormatError::Argument {
            operator: token.name.into(),
            argument: token.argument.unwrap_or_default().into(),
            reason: reason.into(),
        };
        let argument = token.argument.unwrap_or_default();
        let required = || match argument {
            "" => Err(FormatError::NeedsArgument(token.name.into())),
            argument => Ok(argument),
        };
        let none = || match token.argument {
            Some(_) => Err(FormatError::TakesNoArgument(token.name.into())),
            None => Ok(()),
        };
        let pick = || Pick::parse(required()?).map_err(wrong);
        let time = || TimeFormat::parse(argument).map_err(|reason| wrong(&reason));
        Ok(match token.name {
            "REQ" | "REQUEST_HEADER" | "STREAM_INFO_REQ" => Operator::Request(pick()?),
            "COALESCE" => Operator::Coalesce(Coalesce::parse(required()?)?),
            "REQ_WITHOUT_QUERY" => Operator::RequestBare(pick()?),
            "RESP" | "RESPONSE_HEADER" => Operator::Response(pick()?),
            "TRAILER" | "RESPONSE_TRAILER" => Operator::Trailer(pick()?),
            "START_TIME" => Operator::StartTime(time()?),
            "EMIT_TIME" => Operator::EmitTime(time()?),
            "START_TIME_LOCAL" => Operator::StartTime(time()?.local()),
            "EMIT_TIME_LOCAL" => Operator::EmitTime(time()?.local()),
            "COMMON_DURATION" => between(required()?).map_err(wrong)?,
            "PATH" => path(argument).map_err(wrong)?,
            "QUERY_PARAMS" => match argument {
                "" | "ORIG" => Operator::QueryParams { decoded: false },
                "DECODED" => Operator::QueryParams { decoded: true },
                _ => return Err(wrong("must be ORIG or DECODED")),
            },
            "QUERY_PARAM" => Operator::QueryParam(required()?.into()),
            "DYNAMIC_METADATA" => noted(metadata::Whose::Request, required()?),
            "CLUSTER_METADATA" => noted(metadata::Whose::Cluster, required()?),
            "UPSTREAM_METADATA" => noted(metadata::Whose::Host, required()?),
            "METADATA" => match metadata::Way::of_kind(required()?).map_err(wrong)? {
                Some(way) => Operator::Metadata(way),
                None => Operator::Never(format!("METADATA({argument})").into()),
            },
            "CEL" | "TYPED_CEL" => {
                let expression =
                    Expression::of_text(required()?).map_err(|error| wrong(&error.to_string()))?;
                if expression.reads_metadata() {
                    read_dynamic_metadata();
                }
                Operator::Cel(Box::new(expression))
            }
            "FILTER_STATE" => Operator::FilterState(filter_state::Way::parse(required()?).map_err(wrong)?),
            "GRPC_STATUS" => Operator::GrpcStatus(match argument {
                "" | "CAMEL_STRING" => GrpcForm::Camel,
                "SNAKE_STRING" => GrpcForm::Snake,
                "NUMBER" => GrpcForm::Number,
                _ => return Err(wrong("must be CAMEL_STRING, SNAKE_STRING or NUMBER")),
            }),
            "RESPONSE_CODE_DETAILS" => Operator::Details { keep_spaces: argument == "ALLOW_WHITESPACES" },
            "REQUESTED_SERVER_NAME" => Operator::ServerName(match argument.split(':').next().unwrap_or("") {
                "" | "SNI_ONLY" => ServerName::SniOnly,
                "SNI_FIRST" => ServerName::SniFirst,
                "HOST_FIRST" => ServerName::HostFirst,
                _ => return Err(wrong("must be SNI_ONLY, SNI_FIRST or HOST_FIRST")),
            }),
            "ENVIRONMENT" => Operator::Constant(std::env::var(required()?).ok().map(Into::into)),
            "HOSTNAME" => {
                none()?;
                let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
                Operator::Constant(name.map(|name| name.trim().into()))
            }
            name => {
                if let Some((side, what, Argument::Optional)) = tls::operator(name) {
                    return Ok(Operator::Validity(side, what, time()?));
                }
                let operator = by_table(name).ok_or_else(|| FormatError::Unknown(name.into()))?;
                match operator {
                    (operator, Argument::None) => none().map(|()| operator)?,
                    // Envoy takes any text for a length and leaves the address whole.
                    (Operator::Ip(of), Argument::Optional) => match argument.parse() {
                        Ok(length) => Operator::Network(of, length),
                        Err(_) => Operator::Ip(of),
                    },
                    (operator, Argument::Optional) => operator,
                    (operator, Argument::Required) => required().map(|_| operator)?,
                }
            }
        })
    }

    /// Whether values are numbers in JSON.
    pub fn is_number(&self) -> bool {
        matches!(
            self,
            Operator::Number(_)
                | Operator::Port(_)
                | Operator::Between { .. }
                | Operator::GrpcStatus(GrpcForm::Number)
        )
    }

    /// Whether the value for this stream is JSON by itself: a number, a structure.
    pub fn gives_json(&self, ctx: &FormatContext<'_>) -> bool {
        match self {
            Operator::Coalesce(coalesce) => coalesce.gives_json(ctx),
            Operator::Metadata(way) => !way.is_text(ctx.info),
            operator => operator.is_number(),
        }
    }

    /// Appends the value; false when there is none (what was appended is then to be cut off).
    pub fn write(&self, out: &mut Vec<u8>, ctx: &FormatContext<'_>) -> bool {
        let info = ctx.info;
        match self {
            Operator::Constant(value) => put(out, value.as_deref()),
            Operator::Request(pick) => put_found(out, ctx.request.and_then(|view| pick.first(view))),
            Operator::RequestBare(pick) => {
                let value = ctx.request.and_then(|view| pick.first(view));
                put_found(out, value.and_then(|value| value.split(|byte| *byte == b'?').next()))
            }
            Operator::Response(pick) => put_found(out, ctx.response.and_then(|view| pick.first(view))),
            Operator::Trailer(pick) => put_found(out, ctx.trailers.and_then(|view| pick.first(view))),
            Operator::StartTime(format) => {
                format.write(out, info.start_time());
                true
            }
            Operator::EmitTime(format) => {
                format.write(out, SystemTime::now());
                true
            }
            Operator::Number(number) => put_number(out, number(ctx)),
            Operator::Text(text) => text(ctx, out),
            Operator::Address(of) => of(info).is_some_and(|address| write!(out, "{address}").is_ok()),
            Operator::Ip(of) => of(info).is_some_and(|address| write!(out, "{}", address.ip()).is_ok()),
            Operator::Port(of) => put_number(out, of(info).map(|address| address.port().into())),
            Operator::Between { from, to, unit } => {
                let points = from.get(info).zip(to.get(info));
                let value = points.and_then(|(from, to)| to.checked_duration_since(from));
                put_number(out, value.map(|value| unit.of(value)))
            }
            Operator::Path { query, which } => {
                let Some(request) = ctx.request else { return false };
                let path = which.of(request);
                let without = |path| if *query { path } else { split_query(path).0 };
                put_bytes(out, path.map(without))
            }
            Operator::QueryParam(name) => {
                let path = ctx.request.and_then(|request| request.first(&KEYS.path));
                path.is_some_and(|path| put_query_param(out, split_query(path).1, name.as_bytes()))
            }
            Operator::GrpcStatus(form) => match (grpc_status(ctx), form) {
                (Some(status), GrpcForm::Number) => put_number(out, Some(status)),
                (Some(status), form) => put_grpc_name(out, status, *form),
                (None, _) => false,
            },
            Operator::Details { keep_spaces: true } => put(out, Some(&*info.details)),
            Operator::Details { keep_spaces: false } => put_underscored(out, &info.details),
            Operator::ServerName(order) => {
                let sni = || info.connection.server_name.as_deref().map(str::as_bytes);
                let host = || {
                    let authority = ctx.request?.first(&KEYS.authority)?;
                    authority.split(|b| *b == b':').next()
                };
                put_bytes(
                    out,
                    match order {
                        ServerName::SniOnly => sni(),
                        ServerName::SniFirst => sni().or_else(host),
                        ServerName::HostFirst => host().or_else(sni),
                    },
                )
            }
            Operator::Tls(side, what) => tls::write(*side, *what, info, out),
            Operator::Validity(side, what, format) => match tls::time(*side, *what, info) {
                Some(time) => {
                    format.write(out, time);
                    true
                }
                None => false,
            },
            Operator::Metadata(way) => way.write(out, info),
            Operator::Cel(expression) => {
                let text = expression.text(&Subject::from(ctx));
                put_found(out, text.as_deref().map(str::as_bytes))
            }
            Operator::QueryParams { decoded } => {
                let query =
                    ctx.request.and_then(|request| request.first(&KEYS.path)).map(|path| split_query(path).1);
                let start = out.len();
                match (query, decoded) {
                    (Some(query), true) => decode_shown(query, out),
                    (query, _) => out.extend_from_slice(query.unwrap_or_default()),
                }
                out.len() > start
            }
            Operator::Network(of, length) => of(info).is_some_and(|address| {
                let (network, length) = network(address.ip(), *length);
                write!(out, "{network}/{length}").is_ok()
            }),
            Operator::FilterState(way) => way.write(out, info),
            Operator::Coalesce(coalesce) => coalesce.write(out, ctx),
            Operator::Never(_) => false,
        }
    }
}

fn by_table(name: &str) -> Option<(Operator, Argument)> {
    if let Some((_, number)) = NUMBERS.iter().find(|(n, _)| *n == name) {
        return Some((Operator::Number(*number), Argument::None));
    }
    if let Some((_, text)) = TEXTS.iter().find(|(n, _)| *n == name) {
        return Some((Operator::Text(*text), Argument::None));
    }
    for (stem, of) in ADDRESSES {
        match name.strip_prefix(stem) {
            Some("_ADDRESS") => return Some((Operator::Address(*of), Argument::None)),
            Some("_ADDRESS_WITHOUT_PORT") => return Some((Operator::Ip(*of), Argument::Optional)),
            Some("_PORT") => return Some((Operator::Port(*of), Argument::None)),
            _ => {}
        }
    }
    if let Some((side, what, argument)) = tls::operator(name) {
        let operator = match what {
            tls::What::Never => Operator::Never(name.into()),
            what => Operator::Tls(side, what),
        };
        return Some((operator, argument));
    }
    let never = NEVER.iter().find(|(n, _)| *n == name);
    never.map(|(_, argument)| (Operator::Never(name.into()), *argument))
}

impl Pick {
    fn parse(argument: &str) -> Result<Self, &'static str> {
        let mut names = argument.split('?');
        let main = names.next().unwrap_or_default();
        let other = names.next();
        if names.next().is_some() {
            return Err("at most one alternative header");
        }
        let key = |name: &str| {
            let token = name.strip_prefix(':').unwrap_or(name);
            let good = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && b != b':');
            good.then(|| HeaderKey::new(name)).ok_or("not a header name")
        };
        Ok(Pick(key(main)?, other.map(key).transpose()?))
    }

    fn first<'a>(&self, view: &'a dyn HeaderView) -> Option<&'a [u8]> {
        view.first(&self.0).or_else(|| self.1.as_ref().and_then(|other| view.first(other)))
    }
}

fn between(argument: &str) -> Result<Operator, &'static str> {
    let mut parts = argument.split(':');
    let (from, to) = match (parts.next(), parts.next()) {
        (Some(from), Some(to)) if !from.is_empty() && !to.is_empty() => (from, to),
        _ => return Err("must be <start>:<end> or <start>:<end>:<unit>"),
    };
    let unit = match parts.next() {
        None | Some("ms") => TimeUnit::Milli,
        Some("us") => TimeUnit::Micro,
        Some("ns") => TimeUnit::Nano,
        Some(_) => return Err("the unit must be ms, us or ns"),
    };
    let point = |name| match name {
        "DS_RX_BEG" => Point::Start,
        "DS_RX_END" => Point::Of(|t| t.request_complete),
        "US_TX_BEG" => Point::Of(|t| t.first_upstream_tx),
        "US_TX_END" => Point::Of(StreamTimes::upstream_tx_end),
        "US_RX_BEG" => Point::Of(|t| t.first_upstream_rx),
        "US_RX_END" => Point::Of(|t| t.last_upstream_rx),
        "DS_TX_BEG" => Point::Of(|t| t.first_downstream_tx),
        "DS_TX_END" => Point::Of(|t| t.last_downstream_tx),
        // Envoy takes other names for points that filters set.
        _ => Point::Never,
    };
    Ok(Operator::Between { from: point(from), to: point(to), unit })
}

impl Point {
    fn get(self, info: &StreamInfo) -> Option<Instant> {
        match self {
            Point::Start => Some(info.start),
            Point::Of(of) => of(&info.times),
            Point::Never => None,
        }
    }
}

impl TimeUnit {
    pub fn of(self, value: Duration) -> u64 {
        let value = match self {
            TimeUnit::Milli => value.as_millis(),
            TimeUnit::Micro => value.as_micros(),
            TimeUnit::Nano => value.as_nanos(),
        };
        u64::try_from(value).unwrap_or(u64::MAX)
    }
}

fn path(argument: &str) -> Result<Operator, &'static str> {
    let (query, which) = argument.split_once(':').unwrap_or((argument, ""));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        _ => return Err("the first option must be WQ or NQ"),
    };
    let which = WhichPath::parse(which).ok_or("the second option must be ORIG, PATH or ORIG_OR_PATH")?;
    Ok(Operator::Path { query, which })
}

impl WhichPath {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "ORIG" => Some(WhichPath::Original),
            "PATH" => Some(WhichPath::Current),
            "" | "ORIG_OR_PATH" => Some(WhichPath::OriginalOrCurrent),
            _ => None,
        }
    }

    fn of(self, request: &dyn HeaderView) -> Option<&[u8]> {
        let original = || request.first(&KEYS.original_path);
        let current = || request.first(&KEYS.path);
        match self {
            WhichPath::Original => original(),
            WhichPath::Current => current(),
            WhichPath::OriginalOrCurrent => original().or_else(current),
        }
    }
}

/// The network of this length that an address is in; a longer one is the address itself.
fn network(address: IpAddr, length: u8) -> (IpAddr, u8) {
    match address {
        IpAddr::V4(address) => {
            let length = length.min(32);
            let mask = u32::MAX.checked_shl(u32::from(32 - length)).unwrap_or(0);
            (IpAddr::V4((address.to_bits() & mask).into()), length)
        }
        IpAddr::V6(address) => {
            let length = length.min(128);
            let mask = u128::MAX.checked_shl(u32::from(128 - length)).unwrap_or(0);
            (IpAddr::V6((address.to_bits() & mask).into()), length)
        }
    }
}

/// What is noted under a name.
fn noted(whose: metadata::Whose, argument: &str) -> Operator {
    Operator::Metadata(metadata::Way::parse(whose, argument))
}
