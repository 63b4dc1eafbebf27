//! Envoy's rules for messages of HTTP filters that this project's own .proto files define.

use super::rules::{Check, FieldRule};

const NAMED: &[Check] = &[Check::MinChars(1)];
/// Names of headers that are looked up or written.
const HEADER: &[Check] = &[Check::UnlessEmpty(&[Check::HeaderName { strict: true }])];
const NO_CONTROL: &str = r"^[^\x00-\x1f\x7f]*$";
/// Room for what comes out of a coding, in bytes.
const CHUNK: &[Check] = &[Check::AtLeast(4096.0), Check::AtMost(65536.0)];

/// As [`super::rules`] has them.
pub(super) static FILTERS: &[(&str, &[FieldRule])] = &[
    (
        "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig",
        &[FieldRule::Field(1, &[Check::MinChars(1), Check::MaxChars(256)])],
    ),
    (
        "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
        &[FieldRule::Field(1, &[Check::MinChars(1), Check::MaxChars(256)])],
    ),
    (
        "envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy",
        &[FieldRule::Field(3, &[Check::AtLeast(200.0), Check::Below(600.0)])],
    ),
    (
        "envoy.extensions.http.custom_response.redirect_policy.v3.RedirectPolicy",
        &[
            FieldRule::OneOf("redirect_action_specifier"),
            FieldRule::Field(1, NAMED),
            FieldRule::Field(3, &[Check::AtLeast(100.0), Check::AtMost(599.0)]),
        ],
    ),
    (
        "envoy.extensions.filters.http.basic_auth.v3.BasicAuth",
        &[
            FieldRule::Field(2, HEADER),
            FieldRule::Field(3, HEADER),
            FieldRule::Field(6, &[Check::Pattern(NO_CONTROL)]),
        ],
    ),
    (
        "envoy.extensions.filters.http.basic_auth.v3.BasicAuthPerRoute",
        &[FieldRule::Field(1, &[Check::Required]), FieldRule::Field(2, &[Check::Pattern(NO_CONTROL)])],
    ),
    (
        "envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit",
        &[
            FieldRule::Field(1, NAMED),
            FieldRule::Field(2, &[Check::DefinedOnly]),
            FieldRule::Field(3, &[Check::AtLeast(1.0)]),
            FieldRule::Field(4, &[Check::AtLeast(0.02), Check::AtMost(1.0)]),
        ],
    ),
    (
        "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
        &[FieldRule::Field(3, &[Check::Required])],
    ),
    (
        "envoy.extensions.http.injected_credentials.generic.v3.Generic",
        &[FieldRule::Field(1, &[Check::Required]), FieldRule::Field(2, HEADER)],
    ),
    ("envoy.extensions.filters.http.jwt_authn.v3.JwtProvider", &[FieldRule::OneOf("jwks_source_specifier")]),
    ("envoy.extensions.filters.http.jwt_authn.v3.RemoteJwks", &[FieldRule::Field(1, &[Check::Required])]),
    (
        "envoy.extensions.filters.http.jwt_authn.v3.JwtHeader",
        &[FieldRule::Field(1, &[Check::MinChars(1), Check::HeaderName { strict: false }])],
    ),
    (
        "envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader",
        &[FieldRule::Field(1, &[Check::MinChars(1), Check::HeaderName { strict: false }])],
    ),
    (
        "envoy.extensions.filters.http.jwt_authn.v3.RequirementRule",
        &[FieldRule::Field(1, &[Check::Required])],
    ),
    (
        "envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementOrList",
        &[FieldRule::Field(1, &[Check::MinItems(2)])],
    ),
    (
        "envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementAndList",
        &[FieldRule::Field(1, &[Check::MinItems(2)])],
    ),
    (
        "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig",
        &[
            FieldRule::OneOf("requirement_specifier"),
            FieldRule::Field(1, &[Check::Bool(true)]),
            FieldRule::Field(2, NAMED),
        ],
    ),
    (
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        &[FieldRule::OneOf("services"), FieldRule::Field(12, &[Check::DefinedOnly])],
    ),
    (
        "envoy.extensions.filters.http.ext_authz.v3.BufferSettings",
        &[FieldRule::Field(1, &[Check::Above(0.0)])],
    ),
    (
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
        &[FieldRule::OneOf("override"), FieldRule::Field(1, &[Check::Bool(true)])],
    ),
    (
        "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        &[
            FieldRule::Field(10, &[Check::AtLeast(0.0), Check::AtMost(3600.0)]),
            FieldRule::Field(7, &[Check::AtLeast(0.0), Check::AtMost(3600.0)]),
            FieldRule::Field(18, &[Check::DefinedOnly]),
        ],
    ),
    (
        "envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
        &[FieldRule::OneOf("override"), FieldRule::Field(1, &[Check::Bool(true)])],
    ),
    ("envoy.extensions.filters.http.lua.v3.LuaPerRoute", &[FieldRule::Field(1, &[Check::Bool(true)])]),
    ("envoy.extensions.filters.http.compressor.v3.Compressor", &[FieldRule::Field(6, &[Check::Required])]),
    (
        "envoy.extensions.filters.http.compressor.v3.Compressor.ResponseDirectionConfig",
        &[FieldRule::Field(4, &[Check::Unique, Check::Each(&[Check::AtLeast(200.0), Check::Below(600.0)])])],
    ),
    (
        "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute",
        &[FieldRule::OneOf("override"), FieldRule::Field(1, &[Check::Bool(true)])],
    ),
    (
        "envoy.extensions.filters.http.decompressor.v3.Decompressor",
        &[FieldRule::Field(1, &[Check::Required])],
    ),
    (
        "envoy.extensions.compression.gzip.compressor.v3.Gzip",
        &[
            FieldRule::Field(1, &[Check::AtLeast(1.0), Check::AtMost(9.0)]),
            FieldRule::Field(2, &[Check::DefinedOnly]),
            FieldRule::Field(3, &[Check::DefinedOnly]),
            FieldRule::Field(4, &[Check::AtLeast(9.0), Check::AtMost(15.0)]),
            FieldRule::Field(5, CHUNK),
        ],
    ),
    (
        "envoy.extensions.compression.gzip.decompressor.v3.Gzip",
        &[
            FieldRule::Field(1, &[Check::AtLeast(9.0), Check::AtMost(15.0)]),
            FieldRule::Field(2, CHUNK),
            FieldRule::Field(3, &[Check::AtLeast(1.0), Check::AtMost(1024.0)]),
        ],
    ),
    (
        "envoy.extensions.compression.brotli.compressor.v3.Brotli",
        &[
            FieldRule::Field(1, &[Check::AtMost(11.0)]),
            FieldRule::Field(2, &[Check::DefinedOnly]),
            FieldRule::Field(3, &[Check::AtLeast(10.0), Check::AtMost(24.0)]),
            FieldRule::Field(4, &[Check::AtLeast(16.0), Check::AtMost(24.0)]),
            FieldRule::Field(5, CHUNK),
        ],
    ),
    ("envoy.extensions.compression.brotli.decompressor.v3.Brotli", &[FieldRule::Field(2, CHUNK)]),
    (
        "envoy.extensions.compression.zstd.compressor.v3.Zstd",
        &[FieldRule::Field(3, &[Check::DefinedOnly]), FieldRule::Field(5, CHUNK)],
    ),
    ("envoy.extensions.compression.zstd.decompressor.v3.Zstd", &[FieldRule::Field(2, CHUNK)]),
    (
        "envoy.extensions.filters.http.oauth2.v3.OAuth2Config",
        &[
            FieldRule::Field(2, NAMED),
            FieldRule::Field(3, &[Check::Required]),
            FieldRule::Field(4, NAMED),
            FieldRule::Field(5, &[Check::Required]),
            FieldRule::Field(6, &[Check::Required]),
            FieldRule::Field(11, &[Check::DefinedOnly]),
        ],
    ),
    (
        "envoy.extensions.filters.http.oauth2.v3.OAuth2Credentials",
        &[FieldRule::Field(1, NAMED), FieldRule::OneOf("token_formation")],
    ),
    ("envoy.extensions.filters.http.oauth2.v3.OAuth2TokenForwarding", &[FieldRule::Field(1, NAMED)]),
    (
        "envoy.extensions.filters.http.ratelimit.v3.RateLimit",
        &[
            FieldRule::Field(1, NAMED),
            FieldRule::Field(2, &[Check::AtMost(10.0)]),
            FieldRule::Field(3, &[Check::TextIn(&["internal", "external", "both", ""])]),
            FieldRule::Field(7, &[Check::Required]),
        ],
    ),
];
