//! TLS versions, cipher suites and groups by the names that BoringSSL gives them.

use std::sync::Arc;

use tokio_rustls::rustls;

use rustls::crypto::aws_lc_rs::{self, cipher_suite as suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{
    CipherSuite, NamedGroup, ProtocolVersion, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
};

/// `TlsParameters`, with the defaults filled in.
#[derive(Debug, Clone)]
pub struct Params {
    /// Lowest and highest version: 12 or 13.
    pub versions: (u8, u8),
    /// What handshakes are made with.
    pub provider: Arc<CryptoProvider>,
}

/// The suites of TLS 1.2 that Envoy offers unless told otherwise, best first; those of TLS 1.3 are always there.
const SUITES: &[(&str, SupportedCipherSuite)] = &[
    ("ECDHE-ECDSA-AES128-GCM-SHA256", suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES256-GCM-SHA384", suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
];

/// What BoringSSL knows and this TLS library does not: keys that are sent instead of agreed on, blocks in CBC mode.
const LEFT_OUT: &[&str] = &[
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-ECDSA-AES256-SHA384",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-RSA-AES256-SHA384",
];

/// Whether `entry` of `cipher_suites` names one suite that is known and never agreed on.
pub fn is_left_out(entry: &str) -> bool {
    LEFT_OUT.contains(&entry)
}

/// In BoringSSL's order where AES has hardware.
const TLS13: &[SupportedCipherSuite] = &[
    suite::TLS13_AES_128_GCM_SHA256,
    suite::TLS13_AES_256_GCM_SHA384,
    suite::TLS13_CHACHA20_POLY1305_SHA256,
];

const GROUPS: &[(&str, &dyn SupportedKxGroup)] = &[
    ("X25519MLKEM768", kx_group::X25519MLKEM768),
    ("X25519", kx_group::X25519),
    ("P-256", kx_group::SECP256R1),
    ("P-384", kx_group::SECP384R1),
];

impl Params {
    /// For these suites and groups; an empty list stands for the defaults.
    pub fn new(
        versions: (u8, u8),
        suites: &[SupportedCipherSuite],
        groups: Vec<&'static dyn SupportedKxGroup>,
    ) -> Self {
        let all: Vec<_> = SUITES.iter().map(|(_, suite)| *suite).collect();
        let chosen = if suites.is_empty() { all.as_slice() } else { suites };
        let cipher_suites = TLS13.iter().chain(chosen).copied().collect();
        let kx_groups = match groups.is_empty() {
            true => GROUPS.iter().map(|(_, group)| *group).collect(),
            false => groups,
        };
        let provider = CryptoProvider { cipher_suites, kx_groups, ..aws_lc_rs::default_provider() };
        Self { versions, provider: Arc::new(provider) }
    }

    /// The versions as the TLS library has them.
    pub fn protocol_versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let known = [(12, &rustls::version::TLS12), (13, &rustls::version::TLS13)];
        let wanted =
            known.into_iter().filter(|(number, _)| (self.versions.0..=self.versions.1).contains(number));
        wanted.map(|(_, version)| version).collect()
    }
}

impl Default for Params {
    fn default() -> Self {
        Self::new((12, 13), &[], Vec::new())
    }
}

/// The suites that an entry of `cipher_suites` names: one, or several of equal rank in brackets.
///
/// # Errors
/// The first name that is not known.
pub fn suites(entry: &str) -> Result<Vec<SupportedCipherSuite>, &str> {
    let inner = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    inner
        .split('|')
        .map(|name| SUITES.iter().find(|(known, _)| *known == name).map(|(_, suite)| *suite).ok_or(name))
        .collect()
}

/// The group that an entry of `ecdh_curves` names.
pub fn group(name: &str) -> Option<&'static dyn SupportedKxGroup> {
    GROUPS.iter().find(|(known, _)| *known == name).map(|(_, group)| *group)
}

/// A cipher suite as BoringSSL spells it.
pub fn suite_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => SUITES.iter().find(|(_, known)| known.suite() == other).map_or("unknown", |(name, _)| name),
    }
}

/// The number (IANA) of the suite that [`suite_name`] spells so.
pub fn suite_number(name: &str) -> Option<u16> {
    let mut suites =
        TLS13.iter().copied().chain(SUITES.iter().map(|(_, suite)| *suite)).map(|one| one.suite());
    suites.find(|suite| suite_name(*suite) == name).map(u16::from)
}

/// A version as BoringSSL spells it.
pub fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_2 => "TLSv1.2",
        ProtocolVersion::TLSv1_3 => "TLSv1.3",
        _ => "unknown",
    }
}

/// A group as BoringSSL spells it.
pub fn group_name(group: NamedGroup) -> &'static str {
    GROUPS.iter().find(|(_, known)| known.name() == group).map_or("unknown", |(name, _)| name)
}

/// A signature scheme as BoringSSL spells it.
pub fn scheme_name(scheme: SignatureScheme) -> Option<&'static str> {
    Some(match scheme {
        SignatureScheme::RSA_PKCS1_SHA256 => "rsa_pkcs1_sha256",
        SignatureScheme::RSA_PKCS1_SHA384 => "rsa_pkcs1_sha384",
        SignatureScheme::RSA_PKCS1_SHA512 => "rsa_pkcs1_sha512",
        SignatureScheme::RSA_PSS_SHA256 => "rsa_pss_rsae_sha256",
        SignatureScheme::RSA_PSS_SHA384 => "rsa_pss_rsae_sha384",
        SignatureScheme::RSA_PSS_SHA512 => "rsa_pss_rsae_sha512",
        SignatureScheme::ECDSA_NISTP256_SHA256 => "ecdsa_secp256r1_sha256",
        SignatureScheme::ECDSA_NISTP384_SHA384 => "ecdsa_secp384r1_sha384",
        SignatureScheme::ECDSA_NISTP521_SHA512 => "ecdsa_secp521r1_sha512",
        SignatureScheme::ED25519 => "ed25519",
        _ => return None,
    })
}
