//! TLS contexts and secrets: `envoy.extensions.transport_sockets.tls.v3` in, what [`crate::tls`] works with out.
//!
//! Files are read here: a certificate that cannot be used makes the resource invalid. What a control plane is to
//! send leaves an empty slot, and a note of whom to ask for it.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use base64::prelude::{Engine as _, BASE64_STANDARD as STANDARD};
use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use outrigger_control_api::pb::envoy::r#type::matcher::v3::{
    string_matcher::MatchPattern, StringMatcher as MatcherConfig,
};
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::type_of;

use super::discovery::config_source;
use super::istio::PEER_EXCHANGE;
use super::tls_certificate::certificate_secret;
use super::{bool_or, data_source, duration, extension, generic_secret, spiffe, Environment};
use crate::config::discovery::{Material, SanKind};
use crate::config::matcher::StringMatcher;
use crate::config::pieces::{PieceNeed, SecretPlace};
use crate::config::problems::Problems;
use crate::tls::downstream::{DownstreamSpec, Resume, Trust};
use crate::tls::identity::{certificates, revocation_lists, INLINE};
use crate::tls::names::NameMatcher;
use crate::tls::ocsp::Policy;
use crate::tls::params::{group, is_left_out, suites, Params};
use crate::tls::secret::Content;
use crate::tls::sessions::TicketKeys;
use crate::tls::stats::SslStats;
use crate::tls::upstream::UpstreamSpec;
use crate::tls::validation::{Crls, Roots};
use crate::tls::{DownstreamTls, Secret, Slot, UpstreamTls, Validation};

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const DOWNSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const UPSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";

/// The configuration of a transport socket; `None` for plain text, and when a problem was reported.
fn socket_config<'s>(
    socket: &'s core::TransportSocket,
    wanted: &str,
    problems: &mut Problems,
) -> Option<&'s Any> {
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        if socket.name != "envoy.transport_sockets.raw_buffer" {
            problems.report_at("typed_config", "is required");
        }
        return None;
    };
    if type_of(any) == wanted {
        return Some(any);
    }
    if type_of(any) != RAW_BUFFER {
        let message =
            format!("the transport socket {} ({}) is not supported here", socket.name, type_of(any));
        problems.report_at("typed_config", message);
    }
    None
}

/// The transport socket of a filter chain; `None` for plain text, and when a problem was reported.
pub(super) fn downstream(
    socket: &core::TransportSocket,
    stats: &dyn Fn() -> Arc<SslStats>,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Arc<DownstreamTls>> {
    use pb::downstream_tls_context::SessionTicketKeysType as Keys;
    let any = socket_config(socket, DOWNSTREAM, problems)?;
    problems.at("typed_config", |problems| {
        let before = problems.count();
        let context: pb::DownstreamTlsContext = extension(any, "", problems)?;
        let common = common(context.common_tls_context.as_ref(), environment, problems);
        if common.certificates.is_empty() && problems.count() == before {
            problems.report_at("common_tls_context.tls_certificates", "a listener needs a certificate");
        }
        let resume = match &context.session_ticket_keys_type {
            Some(Keys::SessionTicketKeys(keys)) => problems
                .at("session_ticket_keys", |problems| ticket_keys(keys, problems))
                .map_or(Resume::Never, |secret| Resume::Keys(Slot::anonymous(secret))),
            Some(Keys::SessionTicketKeysSdsSecretConfig(config)) => problems
                .at("session_ticket_keys_sds_secret_config", |problems| secret(config, environment, problems))
                .map_or(Resume::Never, Resume::Keys),
            Some(Keys::DisableStatelessSessionResumption(true))
                if context.disable_stateful_session_resumption =>
            {
                Resume::Never
            }
            Some(Keys::DisableStatelessSessionResumption(true)) => Resume::Sessions,
            Some(Keys::DisableStatelessSessionResumption(false)) | None => Resume::Tickets,
        };
        let staples = match context.ocsp_staple_policy() {
            pb::downstream_tls_context::OcspStaplePolicy::LenientStapling => Policy::Lenient,
            pb::downstream_tls_context::OcspStaplePolicy::StrictStapling => Policy::Strict,
            pb::downstream_tls_context::OcspStaplePolicy::MustStaple => Policy::Must,
        };
        // Those that are still to come are looked at when they are there.
        for slot in &common.certificates {
            if let Some(Content::Certificate(identity)) = slot.load().as_ref().map(|secret| &secret.content) {
                if let Err(error) = staples.check(identity) {
                    problems.report_at("common_tls_context.tls_certificates", error);
                }
            }
        }
        let spec = DownstreamSpec {
            params: common.params,
            certificates: common.certificates,
            trust: common.trust,
            alpn: common.alpn,
            require_client_certificate: bool_or(context.require_client_certificate, false),
            require_sni: bool_or(context.require_sni, false),
            full_scan: bool_or(context.full_scan_certs_on_sni_mismatch, false),
            prefer_client_ciphers: context.prefer_client_ciphers,
            staples,
            resume,
            session_timeout: duration(&context.session_timeout, "session_timeout", problems),
        };
        (problems.count() == before).then(|| DownstreamTls::new(spec, stats()))
    })
}

/// The transport socket of a cluster; `None` for plain text, and when a problem was reported.
pub(super) fn upstream(
    socket: &core::TransportSocket,
    stat_name: &Arc<str>,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Arc<UpstreamTls>> {
    let any = socket_config(socket, UPSTREAM, problems)?;
    problems.at("typed_config", |problems| {
        let before = problems.count();
        let context: pb::UpstreamTlsContext = extension(any, "", problems)?;
        let common = common(context.common_tls_context.as_ref(), environment, problems);
        if common.certificates.len() > 1 {
            problems
                .report_at("common_tls_context.tls_certificates", "upstreams are shown one certificate only");
        }
        if context.sni.len() > 255 {
            problems.report_at("sni", "has more than 255 bytes");
        }
        let has_trust = common.trust.fixed.is_some() || common.trust.slot.is_some();
        if context.auto_sni_san_validation && !has_trust {
            problems.report_at("auto_sni_san_validation", "needs a validation context");
        }
        let spec = UpstreamSpec {
            params: common.params,
            certificate: common.certificates.into_iter().next(),
            trust: common.trust,
            alpn: common.alpn,
            sni: context.sni.as_str().into(),
            auto_host_sni: context.auto_host_sni,
            auto_sni_san_validation: context.auto_sni_san_validation,
            max_session_keys: context.max_session_keys.map_or(1, |most| most.value as usize),
        };
        (problems.count() == before).then(|| UpstreamTls::new(spec, stat_name.clone()))
    })
}

/// The parts that both contexts have.
struct Common {
    params: Params,
    certificates: Vec<Arc<Slot>>,
    trust: Trust,
    alpn: Vec<Vec<u8>>,
}

fn common(
    context: Option<&pb::CommonTlsContext>,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Common {
    let default = pb::CommonTlsContext::default();
    let context = context.unwrap_or(&default);
    problems.at("common_tls_context", |problems| {
        let params = problems.at("tls_params", |problems| params(context.tls_params.as_ref(), problems));
        let mut found = Vec::new();
        for (index, certificate) in context.tls_certificates.iter().enumerate() {
            let secret = problems
                .at_index("tls_certificates", index, |problems| certificate_secret(certificate, problems));
            found.extend(secret.map(Slot::anonymous));
        }
        for (index, config) in context.tls_certificate_sds_secret_configs.iter().enumerate() {
            found.extend(problems.at_index("tls_certificate_sds_secret_configs", index, |problems| {
                secret(config, environment, problems)
            }));
        }
        let mut alpn = Vec::new();
        for (index, name) in context.alpn_protocols.iter().enumerate() {
            // Envoy lets one entry name several, separated by commas.
            for name in name.split(',') {
                if name.is_empty() || name.len() > 255 {
                    let message = format!("{name:?} is no name of a protocol: it must have 1 to 255 bytes");
                    problems.at_index("alpn_protocols", index, |problems| problems.report(message));
                }
                if name == PEER_EXCHANGE {
                    let message =
                        "istio-peer-exchange is never agreed on: TCP peers are not told of each other";
                    problems.note(format_args!("alpn_protocols[{index}]"), message);
                    continue;
                }
                alpn.push(name.as_bytes().to_vec());
            }
        }
        Common { params, certificates: found, trust: trust(context, environment, problems), alpn }
    })
}

fn params(params: Option<&pb::TlsParameters>, problems: &mut Problems) -> Params {
    let Some(given) = params else { return Params::default() };
    let (low, high) = versions(params, problems);
    let mut chosen = Vec::new();
    for (index, entry) in given.cipher_suites.iter().enumerate() {
        match suites(entry) {
            Ok(found) => chosen.extend(found),
            Err(name)
                if is_left_out(name) && given.cipher_suites.iter().any(|other| suites(other).is_ok()) =>
            {
                let message = format!("{name} is never agreed on; the other suites are");
                problems.note(format_args!("cipher_suites[{index}]"), message);
            }
            Err(name) => {
                let message = format!("{name:?} is not supported");
                problems.at_index("cipher_suites", index, |problems| problems.report(message));
            }
        }
    }
    let mut groups = Vec::new();
    for (index, name) in given.ecdh_curves.iter().enumerate() {
        match group(name) {
            Some(found) => groups.push(found),
            None => problems.at_index("ecdh_curves", index, |problems| {
                problems.report(format!("{name:?} is not supported"));
            }),
        }
    }
    Params::new((low, high), &chosen, groups)
}

/// The lowest and the highest TLS version: 12 or 13.
pub(super) fn versions(params: Option<&pb::TlsParameters>, problems: &mut Problems) -> (u8, u8) {
    use pb::tls_parameters::TlsProtocol;
    let Some(params) = params else { return (12, 13) };
    let low = match params.tls_minimum_protocol_version() {
        TlsProtocol::TlSv13 => 13,
        // Older versions than 1.2 are never spoken.
        _ => 12,
    };
    let high = match params.tls_maximum_protocol_version() {
        TlsProtocol::TlsAuto | TlsProtocol::TlSv13 => 13,
        TlsProtocol::TlSv12 => 12,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
            problems.report_at("tls_maximum_protocol_version", "TLS before 1.2 is not supported");
            12
        }
    };
    if low > high {
        problems.report("the lowest TLS version is above the highest");
    }
    (low, high)
}

/// The slot of a secret that has a name: one of the bootstrap's, or one that a control plane is asked for.
pub(super) fn secret(
    config: &pb::SdsSecretConfig,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Arc<Slot>> {
    let compiler = environment.compiler;
    let Some(source) = &config.sds_config else {
        let name = &config.name;
        if let Some(found) = compiler.secrets.get(name) {
            return Some(found);
        }
        let Some(known) = compiler.static_secrets.0.get(name) else {
            let issued = compiler.workload.as_ref().and_then(|workload| workload.slot(name));
            if issued.is_none() {
                problems.report_at("name", format!("there is no static secret {name:?}"));
            }
            return issued;
        };
        let mut of_secret = Problems::new();
        let compiled = secret_content(known, &mut of_secret);
        for problem in of_secret.list() {
            let message = format!("the static secret {name:?}: {}: {}", problem.path, problem.message);
            problems.report_at("name", message);
        }
        let slot = compiler.secrets.slot(name, name);
        slot.put(Some(compiled?));
        return Some(slot);
    };
    let parent = environment.parent();
    let source =
        problems.at("sds_config", |problems| config_source(source, parent.as_ref(), compiler, problems))?;
    let slot = compiler.secret_slot(&source.source, &config.name);
    let name: Arc<str> = config.name.as_str().into();
    let piece = Arc::new(SecretPlace { name: name.clone(), slot: slot.clone() });
    environment.needs.borrow_mut().pieces.push(PieceNeed { source, name, piece, optional: false });
    Some(slot)
}

fn trust(context: &pb::CommonTlsContext, environment: &Environment<'_>, problems: &mut Problems) -> Trust {
    use pb::common_tls_context::ValidationContextType as Kind;
    match &context.validation_context_type {
        Some(Kind::ValidationContext(context)) => problems.at("validation_context", |problems| {
            if !context.match_typed_subject_alt_names.is_empty() && !has_roots(context) {
                problems.report_at("trusted_ca", "is required to match subject alternative names");
            }
            let slot = validation_secret(context, problems).map(Slot::anonymous);
            Trust { fixed: None, slot }
        }),
        Some(Kind::ValidationContextSdsSecretConfig(config)) => {
            let slot = problems
                .at("validation_context_sds_secret_config", |problems| secret(config, environment, problems));
            Trust { fixed: None, slot }
        }
        Some(Kind::CombinedValidationContext(combined)) => {
            problems.at("combined_validation_context", |problems| {
                let fixed = combined.default_validation_context.as_ref().and_then(|context| {
                    // The CA may be the secret's.
                    let mut context = context.clone();
                    let allow_expired = std::mem::take(&mut context.allow_expired_certificate);
                    let mut fixed = problems
                        .at("default_validation_context", |problems| validation(&context, problems))?;
                    fixed.allow_expired = allow_expired;
                    Some(fixed)
                });
                let slot = combined.validation_context_sds_secret_config.as_ref().and_then(|config| {
                    problems.at("validation_context_sds_secret_config", |problems| {
                        secret(config, environment, problems)
                    })
                });
                Trust { fixed, slot }
            })
        }
        // Others are refused by the support table.
        _ => Trust::default(),
    }
}

fn has_roots(context: &pb::CertificateValidationContext) -> bool {
    context.trusted_ca.is_some()
        || context.system_root_certs.is_some()
        || context.custom_validator_config.is_some()
}

/// Compiles a secret: one of the bootstrap's, or one that a control plane sent. `None` when a problem was
/// reported.
pub fn secret_content(secret: &pb::Secret, problems: &mut Problems) -> Option<Arc<Secret>> {
    use pb::secret::Type;
    match &secret.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            problems.at("tls_certificate", |problems| certificate_secret(certificate, problems))
        }
        Some(Type::ValidationContext(context)) => {
            problems.at("validation_context", |problems| validation_secret(context, problems))
        }
        Some(Type::SessionTicketKeys(keys)) => {
            problems.at("session_ticket_keys", |problems| ticket_keys(keys, problems))
        }
        Some(Type::GenericSecret(config)) => {
            problems.at("generic_secret", |problems| generic_secret::compile(config, problems))
        }
        None => {
            problems.report(
                "has neither a certificate nor a validation context nor ticket keys nor a generic secret",
            );
            None
        }
    }
}

fn ticket_keys(keys: &pb::TlsSessionTicketKeys, problems: &mut Problems) -> Option<Arc<Secret>> {
    let mut found = Vec::new();
    for (index, key) in keys.keys.iter().enumerate() {
        found.extend(problems.at_index("keys", index, |problems| data_source(key, problems)));
    }
    if found.len() != keys.keys.len() {
        return None;
    }
    match TicketKeys::new(found.iter().map(|key| &**key)) {
        Ok(keys) => Some(Secret::new(Content::TicketKeys(Arc::new(keys)))),
        Err((index, error)) => {
            problems.at_index("keys", index, |problems| problems.report(error));
            None
        }
    }
}

/// The files among `sources`.
pub(super) fn paths(sources: &[&Material]) -> Vec<PathBuf> {
    let path = |source: &&Material| match source {
        Material::File(path) => Some(path.clone()),
        Material::Inline(_) => None,
    };
    sources.iter().filter_map(path).collect()
}

/// The directories to watch for `sources`: the one that config names. Without one files are read once.
pub(super) fn watched(directory: Option<&core::WatchedDirectory>, sources: &[&Material]) -> Vec<PathBuf> {
    let has_files = sources.iter().any(|source| matches!(source, Material::File(_)));
    directory.filter(|_| has_files).map(|directory| PathBuf::from(&directory.path)).into_iter().collect()
}

fn validation_secret(
    context: &pb::CertificateValidationContext,
    problems: &mut Problems,
) -> Option<Arc<Secret>> {
    let compiled = validation(context, problems)?;
    let material = |source: &Option<core::DataSource>, field: &str, problems: &mut Problems| {
        source.as_ref().and_then(|source| Material::of(source, field, problems))
    };
    let ca = material(&context.trusted_ca, "trusted_ca", problems);
    let crl = material(&context.crl, "crl", problems);
    let bundles = spiffe::bundles(context, &mut Problems::new());
    let in_bundles = bundles.iter().flat_map(spiffe::Bundles::materials);
    let files: Vec<_> = ca.iter().chain(&crl).chain(in_bundles).collect();
    let (directories, paths) = (watched(context.watched_directory.as_ref(), &files), paths(&files));
    let content = Content::Validation(Arc::new(compiled.clone()));
    if directories.is_empty() {
        return Some(Secret::new(content));
    }
    let read = move || {
        let read = |material: &Material| material.read().map_err(|error| format!("{material:?}: {error}"));
        let mut renewed = compiled.clone();
        if let Some(ca) = &ca {
            renewed.roots = Some(Arc::new(Roots::new(certificates(&read(ca)?)?)?));
        }
        if let Some(crl) = &crl {
            renewed.crls = Some(Arc::new(Crls::new(&revocation_lists(&read(crl)?)?)?));
        }
        if let Some(bundles) = &bundles {
            renewed.domains = Some(Arc::new(bundles.read()?));
        }
        Ok(Content::Validation(Arc::new(renewed)))
    };
    Some(Secret::from_files(content, paths, directories, Box::new(read)))
}

/// As Envoy names what a certificate is from.
pub(super) fn path_of(material: &Material) -> Box<str> {
    match material {
        Material::File(path) => path.to_string_lossy().into(),
        Material::Inline(_) => INLINE.into(),
    }
}

fn trusted_path(context: &pb::CertificateValidationContext) -> Box<str> {
    match context.trusted_ca.as_ref().and_then(|ca| ca.specifier.as_ref()) {
        Some(core::data_source::Specifier::Filename(path)) => path.as_str().into(),
        _ => INLINE.into(),
    }
}

/// What the system trusts, read once.
static SYSTEM: LazyLock<Arc<Roots>> = LazyLock::new(|| Arc::new(Roots::system()));

fn validation(context: &pb::CertificateValidationContext, problems: &mut Problems) -> Option<Validation> {
    use pb::certificate_validation_context::TrustChainVerification;
    let before = problems.count();
    let bytes = |source: &Option<core::DataSource>, field: &str, problems: &mut Problems| -> Option<Bytes> {
        let source = source.as_ref()?;
        problems.at(field, |problems| data_source(source, problems))
    };
    let roots = match bytes(&context.trusted_ca, "trusted_ca", problems) {
        Some(pem) => problems.at("trusted_ca", |problems| {
            problems.take(certificates(&pem).and_then(Roots::new)).map(Arc::new)
        }),
        None => context.system_root_certs.map(|_| SYSTEM.clone()),
    };
    let crls = bytes(&context.crl, "crl", problems).and_then(|pem| {
        problems.at("crl", |problems| {
            problems.take(revocation_lists(&pem).and_then(|lists| Crls::new(&lists))).map(Arc::new)
        })
    });
    let domains = spiffe::bundles(context, problems).and_then(|bundles| {
        problems.at("custom_validator_config.typed_config", |problems| {
            problems.take(bundles.read()).map(Arc::new)
        })
    });
    let mut names = Vec::new();
    for (index, matcher) in context.match_typed_subject_alt_names.iter().enumerate() {
        problems.at_index("match_typed_subject_alt_names", index, |problems| {
            names.extend(name_matcher(matcher, problems));
        });
    }
    for (index, config) in context.match_subject_alt_names.iter().enumerate() {
        names.extend(
            problems.at_index("match_subject_alt_names", index, |problems| name(None, config, problems)),
        );
    }
    let mut pins = |list: &[String], field: &str, decode: fn(&str) -> Option<[u8; 32]>| {
        let mut found = Vec::new();
        for (index, text) in list.iter().enumerate() {
            match decode(text) {
                Some(hash) => found.push(hash),
                None => problems.at_index(field, index, |problems| {
                    problems.report(format!("{text:?} is no SHA-256 hash in the form wanted here"));
                }),
            }
        }
        found
    };
    let hashes = pins(&context.verify_certificate_hash, "verify_certificate_hash", hash_of_hex);
    let spkis = pins(&context.verify_certificate_spki, "verify_certificate_spki", hash_of_base64);
    if context.trust_chain_verification() == TrustChainVerification::VerifyTrustChain
        && context.allow_expired_certificate
        && context.trusted_ca.is_none()
        && context.system_root_certs.is_none()
    {
        problems.report_at("allow_expired_certificate", "needs a trusted CA");
    }
    (problems.count() == before).then(|| Validation {
        roots,
        path: trusted_path(context),
        domains,
        names,
        hashes,
        spkis,
        crls,
        leaf_crl_only: context.only_verify_leaf_cert_crl,
        accept_untrusted: context.trust_chain_verification() == TrustChainVerification::AcceptUntrusted,
        allow_expired: context.allow_expired_certificate,
        max_depth: context.max_verify_depth.map(|depth| depth.value),
        suppress_ca_list: context.suppress_client_ca_list,
    })
}

/// A name of one kind.
pub(super) fn name_matcher(
    matcher: &pb::SubjectAltNameMatcher,
    problems: &mut Problems,
) -> Option<NameMatcher> {
    use pb::subject_alt_name_matcher::SanType;
    let kind = match matcher.san_type() {
        SanType::Dns => SanKind::Dns,
        SanType::Uri => SanKind::Uri,
        SanType::Email => SanKind::Email,
        SanType::IpAddress => SanKind::Ip,
        SanType::Unspecified => {
            problems.report_at("san_type", "is required");
            return None;
        }
    };
    // A missing matcher breaks a field rule.
    problems.at("matcher", |problems| name(Some(kind), matcher.matcher.as_ref()?, problems))
}

fn name(kind: Option<SanKind>, config: &MatcherConfig, problems: &mut Problems) -> Option<NameMatcher> {
    let exact = match &config.match_pattern {
        Some(MatchPattern::Exact(text)) => Some(text.as_str().into()),
        _ => None,
    };
    Some(NameMatcher { kind, exact, matcher: StringMatcher::compile(config, problems)? })
}

/// 64 hexadecimal digits, or 32 pairs of them with colons between.
fn hash_of_hex(text: &str) -> Option<[u8; 32]> {
    let digits: String = match text.len() {
        64 => text.to_owned(),
        95 => text.split(':').filter(|pair| pair.len() == 2).collect(),
        _ => return None,
    };
    let mut hash = [0; 32];
    if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(hash)
}

/// 44 digits of base 64.
fn hash_of_base64(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_in_all_their_forms() {
        let plain = "0f".repeat(32);
        assert_eq!(hash_of_hex(&plain), Some([0x0f; 32]));
        assert_eq!(hash_of_hex(&vec!["0F"; 32].join(":")), Some([0x0f; 32]));
        for wrong in [&plain[1..], "", &"zz".repeat(32), &vec!["0"; 48].join(":")] {
            assert_eq!(hash_of_hex(wrong), None, "{wrong}");
        }
        assert_eq!(hash_of_base64("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), Some([0; 32]));
        assert_eq!(hash_of_base64("//////////////////////////////////////////8="), Some([255; 32]));
        assert_eq!(hash_of_base64("AAAA"), None);
    }
}
