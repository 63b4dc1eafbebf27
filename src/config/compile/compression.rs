//! Coding and decoding of bodies: the messages of `envoy.filters.http.compressor` and `.decompressor`, and of their
//! libraries, in; [`compressor::Config`] and [`decompressor::Config`] out.

use brotli::enc::backward_references::BrotliEncoderMode;
use brotli::enc::BrotliEncoderParams;
use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::extensions::compression::brotli::compressor::v3 as brotli_pb;
use outrigger_control_api::pb::envoy::extensions::compression::brotli::decompressor::v3 as unbrotli_pb;
use outrigger_control_api::pb::envoy::extensions::compression::gzip::compressor::v3 as gzip_pb;
use outrigger_control_api::pb::envoy::extensions::compression::gzip::decompressor::v3 as gunzip_pb;
use outrigger_control_api::pb::envoy::extensions::compression::zstd::compressor::v3 as zstd_pb;
use outrigger_control_api::pb::envoy::extensions::compression::zstd::decompressor::v3 as unzstd_pb;
use outrigger_control_api::pb::envoy::extensions::filters::http::compressor::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::filters::http::decompressor::v3 as de;
use outrigger_control_api::type_of;
use zstd::zstd_safe::Strategy;

use super::{bool_or, extension, u32_or};
use crate::config::problems::Problems;
use crate::config::runtime_value::RuntimeSwitch;
use crate::config::HeaderKey;
use crate::http::coding::{Coding, Library};
use crate::http::filters::compressor::{self, AcceptStats, BodyStats, PerRoute};
use crate::http::filters::decompressor;
use crate::telemetry::metrics::Scope;

/// The compressor's type.
pub(super) const COMPRESSOR: &str = "envoy.extensions.filters.http.compressor.v3.Compressor";
/// The type of what a route says to it.
pub(super) const PER_ROUTE: &str = "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute";
/// The decompressor's type.
pub(super) const DECOMPRESSOR: &str = "envoy.extensions.filters.http.decompressor.v3.Decompressor";

const GZIP: &str = "envoy.extensions.compression.gzip.compressor.v3.Gzip";
const BROTLI: &str = "envoy.extensions.compression.brotli.compressor.v3.Brotli";
const ZSTD: &str = "envoy.extensions.compression.zstd.compressor.v3.Zstd";
const GUNZIP: &str = "envoy.extensions.compression.gzip.decompressor.v3.Gzip";
const UNBROTLI: &str = "envoy.extensions.compression.brotli.decompressor.v3.Brotli";
const UNZSTD: &str = "envoy.extensions.compression.zstd.decompressor.v3.Zstd";

/// Envoy's defaults.
const GZIP_LEVEL: u32 = 6;
const GZIP_WINDOW: u32 = 12;
const BROTLI_QUALITY: u32 = 3;
const BROTLI_WINDOW: u32 = 18;
const BROTLI_BLOCK: u32 = 24;
const ZSTD_LEVEL: u32 = 3;
const GUNZIP_WINDOW: u32 = 15;
const RATIO: u32 = 100;

/// The compressor, which counts below `stats`. `None` when a problem was reported.
pub(super) fn compressor(
    config: &pb::Compressor,
    stats: &Scope,
    problems: &mut Problems,
) -> Option<compressor::Config> {
    // Demanded by a field rule.
    let chosen = config.compressor_library.as_ref()?;
    let library = problems.at("compressor_library", |problems| library(chosen, problems))?;
    let scope = stats.sub("compressor").sub(&chosen.name).sub(library.name());
    let response = config.response_direction_config.as_ref();
    let old = pb::compressor::CommonDirectionConfig {
        enabled: config.runtime_enabled.clone(),
        min_content_length: config.content_length,
        content_type: config.content_type.clone(),
        ..Default::default()
    };
    let common = match response {
        Some(response) => response.common_config.clone().unwrap_or_default(),
        None => old,
    };
    let response_scope = if response.is_some() { scope.sub("response") } else { scope.clone() };
    let request = config.request_direction_config.as_ref();
    let request = request.map(|request| direction(&request.common_config.clone().unwrap_or_default()));
    Some(compressor::Config {
        library,
        choose_first: config.choose_first,
        request,
        request_stats: BodyStats::new(&scope.sub("request")),
        response: direction(&common),
        response_stats: BodyStats::new(&response_scope),
        accept_stats: AcceptStats::new(&scope),
        skip_etag: response.map_or(config.disable_on_etag_header, |one| one.disable_on_etag_header),
        weaken_etag: response.is_some_and(|one| one.weaken_etag_on_compress),
        hide_accept: response
            .map_or(config.remove_accept_encoding_header, |one| one.remove_accept_encoding_header),
        skip_status: response.map(|one| one.uncompressible_response_codes.clone()).unwrap_or_default().into(),
        tell: response.is_some_and(|one| one.status_header_enabled),
    })
}

/// What a route says to it; a message without a word, which a field rule forbids, says nothing.
pub(super) fn per_route(config: &pb::CompressorPerRoute, problems: &mut Problems) -> Option<PerRoute> {
    use pb::compressor_per_route::Override;
    match config.r#override.as_ref()? {
        Override::Disabled(_) => Some(PerRoute::Off),
        Override::Overrides(overrides) => {
            let before = problems.count();
            let response = overrides.response_direction_config.as_ref();
            let library = overrides.compressor_library.as_ref().and_then(|chosen| {
                problems.at("overrides.compressor_library", |problems| library(chosen, problems))
            });
            (problems.count() == before).then(|| PerRoute::Overrides {
                on: response.is_some(),
                hide_accept: response
                    .and_then(|one| one.remove_accept_encoding_header)
                    .map(|value| value.value),
                library,
            })
        }
    }
}

fn direction(config: &pb::compressor::CommonDirectionConfig) -> compressor::Direction {
    let types: Vec<Box<str>> = match config.content_type.is_empty() {
        true => compressor::TYPES.iter().map(|kind| Box::from(*kind)).collect(),
        false => config.content_type.iter().map(|kind| kind.to_ascii_lowercase().into()).collect(),
    };
    let least = config.min_content_length.map_or(0, |least| u64::from(least.value));
    compressor::Direction {
        enabled: RuntimeSwitch::of(config.enabled.as_ref()),
        least: if least > 0 { least } else { compressor::LEAST },
        types: types.into(),
    }
}

fn library(chosen: &core::TypedExtensionConfig, problems: &mut Problems) -> Option<Library> {
    problems.at("typed_config", |problems| {
        let Some(any) = &chosen.typed_config else {
            problems.report("is required");
            return None;
        };
        match type_of(any) {
            GZIP => {
                let config: gzip_pb::Gzip = extension(any, "", problems)?;
                let level = u32::try_from(config.compression_level).unwrap_or(0);
                Some(Library::Gzip {
                    level: if level == 0 { GZIP_LEVEL } else { level },
                    window: u8::try_from(u32_or(config.window_bits, GZIP_WINDOW)).unwrap_or(15),
                })
            }
            BROTLI => {
                let config: brotli_pb::Brotli = extension(any, "", problems)?;
                use brotli_pb::brotli::EncoderMode;
                let bits = |value, default| i32::try_from(u32_or(value, default)).unwrap_or(24);
                Some(Library::Brotli(Box::new(BrotliEncoderParams {
                    quality: bits(config.quality, BROTLI_QUALITY),
                    lgwin: bits(config.window_bits, BROTLI_WINDOW),
                    lgblock: bits(config.input_block_bits, BROTLI_BLOCK),
                    mode: match config.encoder_mode() {
                        EncoderMode::Text => BrotliEncoderMode::BROTLI_MODE_TEXT,
                        EncoderMode::Font => BrotliEncoderMode::BROTLI_MODE_FONT,
                        EncoderMode::Default | EncoderMode::Generic => BrotliEncoderMode::BROTLI_MODE_GENERIC,
                    },
                    disable_literal_context_modeling: config.disable_literal_context_modeling.into(),
                    ..BrotliEncoderParams::default()
                })))
            }
            ZSTD => {
                let config: zstd_pb::Zstd = extension(any, "", problems)?;
                Some(Library::Zstd {
                    level: i32::try_from(u32_or(config.compression_level, ZSTD_LEVEL)).unwrap_or(i32::MAX),
                    checksum: config.enable_checksum,
                    strategy: strategy(config.strategy()),
                })
            }
            found => {
                problems.report(format_args!("is of type {found}, which is no coding that is supported"));
                None
            }
        }
    })
}

fn strategy(strategy: zstd_pb::zstd::Strategy) -> Option<Strategy> {
    use zstd_pb::zstd::Strategy as Said;
    Some(match strategy {
        Said::Default => return None,
        Said::Fast => Strategy::ZSTD_fast,
        Said::Dfast => Strategy::ZSTD_dfast,
        Said::Greedy => Strategy::ZSTD_greedy,
        Said::Lazy => Strategy::ZSTD_lazy,
        Said::Lazy2 => Strategy::ZSTD_lazy2,
        Said::Btlazy2 => Strategy::ZSTD_btlazy2,
        Said::Btopt => Strategy::ZSTD_btopt,
        Said::Btultra => Strategy::ZSTD_btultra,
        Said::Btultra2 => Strategy::ZSTD_btultra2,
    })
}

/// The decompressor, which counts below `stats`. `None` when a problem was reported.
pub(super) fn decompressor(
    config: &de::Decompressor,
    stats: &Scope,
    problems: &mut Problems,
) -> Option<decompressor::Config> {
    // Demanded by a field rule.
    let chosen = config.decompressor_library.as_ref()?;
    let (coding, ratio) = problems.at("decompressor_library", |problems| coding(chosen, problems))?;
    let scope = stats.sub("decompressor").sub(&chosen.name).sub(coding.name());
    let errors = scope.sub("decompressor_library");
    let (error, overflow) = match coding {
        Coding::Gzip { .. } => ("zlib_data_error", "zlib_data_error"),
        Coding::Brotli => ("brotli_error", "brotli_output_overflow"),
        Coding::Zstd => ("zstd_generic_error", "zstd_generic_error"),
    };
    let request = config.request_direction_config.as_ref();
    let common = request.and_then(|request| request.common_config.as_ref());
    let of = |common: Option<&de::decompressor::CommonDirectionConfig>, name| decompressor::Direction {
        enabled: RuntimeSwitch::of(common.and_then(|common| common.enabled.as_ref())),
        always: common.is_some_and(|common| common.ignore_no_transform_header),
        stats: decompressor::BodyStats::new(&scope.sub(name)),
    };
    let response = config.response_direction_config.as_ref();
    let size = |what| HeaderKey::new(&format!("x-envoy-decompressor-{}-{what}", chosen.name));
    Some(decompressor::Config {
        coding,
        ratio: ratio as usize,
        advertise: bool_or(request.and_then(|request| request.advertise_accept_encoding), true),
        request: of(common, "request"),
        response: of(response.and_then(|response| response.common_config.as_ref()), "response"),
        errors: errors.counter(error),
        overflows: errors.counter(overflow),
        sizes: [size("compressed-bytes"), size("uncompressed-bytes")],
    })
}

/// What is decoded, and how far a piece may grow.
fn coding(chosen: &core::TypedExtensionConfig, problems: &mut Problems) -> Option<(Coding, u32)> {
    if !chosen.name.bytes().all(crate::config::token::is_token) {
        problems.report_at("name", "is part of the names of trailers: it must be a token");
        return None;
    }
    problems.at("typed_config", |problems| {
        let Some(any) = &chosen.typed_config else {
            problems.report("is required");
            return None;
        };
        match type_of(any) {
            GUNZIP => {
                let config: gunzip_pb::Gzip = extension(any, "", problems)?;
                let window = u8::try_from(u32_or(config.window_bits, GUNZIP_WINDOW)).unwrap_or(15);
                Some((Coding::Gzip { window }, u32_or(config.max_inflate_ratio, RATIO)))
            }
            UNBROTLI => {
                let _: unbrotli_pb::Brotli = extension(any, "", problems)?;
                Some((Coding::Brotli, RATIO))
            }
            UNZSTD => {
                let _: unzstd_pb::Zstd = extension(any, "", problems)?;
                Some((Coding::Zstd, RATIO))
            }
            found => {
                problems.report(format_args!("is of type {found}, which is no coding that is supported"));
                None
            }
        }
    })
}
