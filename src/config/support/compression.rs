//! Support of the filters that code and decode bodies, and of their libraries.

use outrigger_control_api::support::MessageSupport;

use super::whole;

const ROOM: (&str, &str) = ("chunk_size", "buffers have a size of their own");
const DICTIONARY: &str = "dictionaries are not supported";

pub(super) const MESSAGES: &[MessageSupport] = &[
    whole("envoy.extensions.filters.http.compressor.v3.Compressor"),
    MessageSupport {
        message: "envoy.extensions.filters.http.compressor.v3.Compressor.CommonDirectionConfig",
        implemented: &["enabled", "min_content_length", "content_type"],
        observe: &[],
        rejected: &[("content_type_matcher", "not supported yet; content_type is")],
    },
    whole("envoy.extensions.filters.http.compressor.v3.Compressor.RequestDirectionConfig"),
    whole("envoy.extensions.filters.http.compressor.v3.Compressor.ResponseDirectionConfig"),
    whole("envoy.extensions.filters.http.compressor.v3.CompressorPerRoute"),
    whole("envoy.extensions.filters.http.compressor.v3.CompressorOverrides"),
    whole("envoy.extensions.filters.http.compressor.v3.ResponseDirectionOverrides"),
    whole("envoy.extensions.filters.http.decompressor.v3.Decompressor"),
    whole("envoy.extensions.filters.http.decompressor.v3.Decompressor.CommonDirectionConfig"),
    whole("envoy.extensions.filters.http.decompressor.v3.Decompressor.RequestDirectionConfig"),
    whole("envoy.extensions.filters.http.decompressor.v3.Decompressor.ResponseDirectionConfig"),
    MessageSupport {
        message: "envoy.extensions.compression.gzip.compressor.v3.Gzip",
        implemented: &["compression_level", "window_bits"],
        observe: &[
            ("memory_level", "the library has no such choice"),
            ("compression_strategy", "the library has no such choice"),
            ROOM,
        ],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.compression.gzip.decompressor.v3.Gzip",
        implemented: &["window_bits", "max_inflate_ratio"],
        observe: &[ROOM],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.compression.brotli.compressor.v3.Brotli",
        implemented: &[
            "quality",
            "encoder_mode",
            "window_bits",
            "input_block_bits",
            "disable_literal_context_modeling",
        ],
        observe: &[ROOM],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.compression.brotli.decompressor.v3.Brotli",
        implemented: &[],
        observe: &[("disable_ring_buffer_reallocation", "the library has no such choice"), ROOM],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.compression.zstd.compressor.v3.Zstd",
        implemented: &["compression_level", "enable_checksum", "strategy"],
        observe: &[ROOM],
        rejected: &[("dictionary", DICTIONARY)],
    },
    MessageSupport {
        message: "envoy.extensions.compression.zstd.decompressor.v3.Zstd",
        implemented: &[],
        observe: &[ROOM],
        rejected: &[("dictionaries", DICTIONARY)],
    },
];
