//! TLS towards control planes: certificates and trust that are in the bootstrap, in files that it names, or that another
//! control plane sends.
//!
//! In: the transport socket of a control plane's cluster, and secrets from elsewhere at each connection, so that renewed
//! ones are found. Out: [`ControlTls`].

use std::sync::Arc;

use bytes::Bytes;
use outrigger_control_api::client::read_file;
use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use outrigger_control_api::pb::envoy::r#type::matcher::v3::{string_matcher::MatchPattern, StringMatcher};
use outrigger_control_api::{type_of, unpack};
use prost::Message as _;

use super::discovery::config_source;
use super::tls::versions;
use super::{data_source, extension, Environment};
use crate::config::control_secret::{ControlSecret, SecretSource, SentSecret};
use crate::config::discovery::{
    ControlIdentity, ControlTls, Material, Roots, SanKind, SanName, SanPattern, Source, Trust,
};
use crate::config::pieces::PieceNeed;
use crate::config::problems::{Problem, Problems};

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const UPSTREAM_TLS: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";

/// The TLS that a control plane's cluster asks for; `None` = plain text, or a problem was reported.
pub(super) fn transport_socket(
    socket: &core::TransportSocket,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<ControlTls> {
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        if socket.name != "envoy.transport_sockets.raw_buffer" {
            problems.report_at("typed_config", "is required");
        }
        return None;
    };
    problems.at("typed_config", |problems| match type_of(any) {
        RAW_BUFFER => None,
        UPSTREAM_TLS => {
            let context: tls::UpstreamTlsContext = extension(any, "", problems)?;
            let default = tls::CommonTlsContext::default();
            let common = context.common_tls_context.as_ref().unwrap_or(&default);
            problems.at("common_tls_context", |problems| {
                let (trust, trust_secret) = validation(common, environment, problems)?;
                let unverified = trust.roots == Roots::Unverified && trust_secret.is_none();
                if context.auto_sni_san_validation && unverified {
                    let message = "is needed for auto_sni_san_validation";
                    problems.report_at("validation_context.trusted_ca", message);
                }
                Some(ControlTls {
                    trust,
                    trust_secret,
                    identity: identity(common, environment, problems),
                    sni: (!context.sni.is_empty()).then(|| context.sni.as_str().into()),
                    verify_sni: context.auto_sni_san_validation,
                    versions: problems
                        .at("tls_params", |problems| versions(common.tls_params.as_ref(), problems)),
                })
            })
        }
        found => {
            problems.report(format!("the transport socket {} ({found}) is not supported", socket.name));
            None
        }
    })
}

/// Whether some of the secrets of a cluster's TLS come from a control plane.
pub(super) fn asks(socket: &core::TransportSocket) -> bool {
    use core::config_source::ConfigSourceSpecifier as Specifier;
    use tls::common_tls_context::ValidationContextType as Kind;
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return false;
    };
    // What is of another type, or cannot be read, is reported where it is compiled.
    let context =
        (type_of(any) == UPSTREAM_TLS).then(|| unpack::<tls::UpstreamTlsContext>(any).ok()).flatten();
    let Some(common) = context.and_then(|context| context.common_tls_context) else { return false };
    let trust = match &common.validation_context_type {
        Some(Kind::ValidationContextSdsSecretConfig(config)) => Some(config),
        Some(Kind::CombinedValidationContext(both)) => both.validation_context_sds_secret_config.as_ref(),
        _ => None,
    };
    let mut secrets = common.tls_certificate_sds_secret_configs.iter().chain(trust);
    secrets.any(|secret| {
        let source = secret.sds_config.as_ref().and_then(|source| source.config_source_specifier.as_ref());
        matches!(source, Some(Specifier::ApiConfigSource(_)))
    })
}

/// Where `config` says the secret is.
enum Found<'s> {
    Static(&'s tls::secret::Type),
    Elsewhere(ControlSecret),
}

fn secret<'s>(
    config: &tls::SdsSecretConfig,
    environment: &'s Environment<'_>,
    problems: &mut Problems,
) -> Option<Found<'s>> {
    use core::config_source::ConfigSourceSpecifier as Specifier;
    let name: Arc<str> = config.name.as_str().into();
    let elsewhere = |source| Some(Found::Elsewhere(ControlSecret { name: name.clone(), source }));
    let file = |path: &str| elsewhere(SecretSource::File(path.into()));
    match config.sds_config.as_ref().map(|source| (source, &source.config_source_specifier)) {
        None => {}
        Some((_, Some(Specifier::Path(path)))) => return file(path),
        Some((_, Some(Specifier::PathConfigSource(source)))) => return file(&source.path),
        Some((source, _)) => {
            let source = problems.at("sds_config", |problems| {
                let source = config_source(source, None, environment.compiler, problems)?;
                if matches!(source.source, Source::Ads) {
                    problems.report_at("ads", "cannot bring what is needed before there is a control plane");
                    return None;
                }
                Some(source)
            })?;
            let sent = SentSecret::new(name.clone(), source.initial_fetch_timeout);
            let piece = Arc::new(sent.clone());
            let need = PieceNeed { source, name: name.clone(), piece, optional: false };
            environment.needs.borrow_mut().pieces.push(need);
            return elsewhere(SecretSource::Sent(sent));
        }
    }
    let found = environment.compiler.static_secrets.0.get(&config.name);
    if found.is_none() {
        problems.report_at("name", format!("there is no static secret {:?}", config.name));
    }
    found?.r#type.as_ref().map(Found::Static)
}

fn identity(
    common: &tls::CommonTlsContext,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<ControlIdentity> {
    let count = common.tls_certificates.len() + common.tls_certificate_sds_secret_configs.len();
    if count > 1 {
        problems.report_at("tls_certificates", "one certificate is enough for a control plane");
    }
    if let Some(certificate) = common.tls_certificates.first() {
        return problems.at_index("tls_certificates", 0, |problems| key_pair(certificate, problems));
    }
    let config = common.tls_certificate_sds_secret_configs.first()?;
    problems.at_index("tls_certificate_sds_secret_configs", 0, |problems| {
        match secret(config, environment, problems)? {
            Found::Elsewhere(secret) => Some(ControlIdentity::Secret(secret)),
            Found::Static(kind) => certificate_of(kind, &config.name, problems),
        }
    })
}

fn certificate_of(kind: &tls::secret::Type, name: &str, problems: &mut Problems) -> Option<ControlIdentity> {
    match kind {
        tls::secret::Type::TlsCertificate(certificate) => key_pair(certificate, problems),
        _ => {
            problems.report_at("name", format!("the secret {name:?} is no certificate"));
            None
        }
    }
}

fn trust_of(kind: &tls::secret::Type, name: &str, problems: &mut Problems) -> Option<Trust> {
    match kind {
        tls::secret::Type::ValidationContext(context) => validation_context(context, problems),
        _ => {
            problems.report_at("name", format!("the secret {name:?} is no validation context"));
            None
        }
    }
}

fn key_pair(certificate: &tls::TlsCertificate, problems: &mut Problems) -> Option<ControlIdentity> {
    let known = tls::TlsCertificate {
        certificate_chain: certificate.certificate_chain.clone(),
        private_key: certificate.private_key.clone(),
        watched_directory: certificate.watched_directory.clone(),
        ..Default::default()
    };
    if *certificate != known {
        problems.report("only certificate_chain and private_key are supported");
    }
    let (Some(chain), Some(key)) = (&certificate.certificate_chain, &certificate.private_key) else {
        problems.report("needs certificate_chain and private_key");
        return None;
    };
    let chain = Material::of(chain, "certificate_chain", problems);
    let (chain, key) = chain.zip(Material::of(key, "private_key", problems))?;
    Some(ControlIdentity::Given { chain, key })
}

fn validation(
    common: &tls::CommonTlsContext,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<(Trust, Option<ControlSecret>)> {
    use tls::common_tls_context::ValidationContextType as Kind;
    let of_secret =
        |config: &tls::SdsSecretConfig, problems: &mut Problems| match secret(config, environment, problems)?
        {
            Found::Elsewhere(secret) => Some((Trust::default(), Some(secret))),
            Found::Static(kind) => trust_of(kind, &config.name, problems).map(|trust| (trust, None)),
        };
    match &common.validation_context_type {
        None => Some((Trust::default(), None)),
        Some(Kind::ValidationContext(context)) => {
            let trust =
                problems.at("validation_context", |problems| validation_context(context, problems))?;
            trust.check(problems, "validation_context.trusted_ca");
            Some((trust, None))
        }
        Some(Kind::ValidationContextSdsSecretConfig(config)) => {
            problems.at("validation_context_sds_secret_config", |problems| of_secret(config, problems))
        }
        Some(Kind::CombinedValidationContext(combined)) => {
            problems.at("combined_validation_context", |problems| {
                let default = match &combined.default_validation_context {
                    Some(context) => problems
                        .at("default_validation_context", |problems| validation_context(context, problems))?,
                    None => Trust::default(),
                };
                let (more, secret) = match &combined.validation_context_sds_secret_config {
                    Some(config) => problems
                        .at("validation_context_sds_secret_config", |problems| of_secret(config, problems))?,
                    None => (Trust::default(), None),
                };
                let trust = default.merged(more);
                if secret.is_none() {
                    trust.check(problems, "default_validation_context.trusted_ca");
                }
                Some((trust, secret))
            })
        }
        // Refused by the support table.
        Some(_) => None,
    }
}

fn validation_context(context: &tls::CertificateValidationContext, problems: &mut Problems) -> Option<Trust> {
    let known = tls::CertificateValidationContext {
        trusted_ca: context.trusted_ca.clone(),
        system_root_certs: context.system_root_certs,
        watched_directory: context.watched_directory.clone(),
        match_typed_subject_alt_names: context.match_typed_subject_alt_names.clone(),
        match_subject_alt_names: context.match_subject_alt_names.clone(),
        ..Default::default()
    };
    if *context != known {
        problems.report("only trusted_ca, system_root_certs and subject alternative names are supported");
    }
    let roots = match (&context.trusted_ca, &context.system_root_certs) {
        (Some(ca), _) => Roots::Pem(Material::of(ca, "trusted_ca", problems)?),
        (None, Some(_)) => Roots::System,
        (None, None) => Roots::Unverified,
    };
    let mut names = Vec::new();
    for (index, matcher) in context.match_typed_subject_alt_names.iter().enumerate() {
        problems.at_index("match_typed_subject_alt_names", index, |problems| {
            use tls::subject_alt_name_matcher::SanType;
            let kind = match matcher.san_type() {
                SanType::Dns => Some(SanKind::Dns),
                SanType::Uri => Some(SanKind::Uri),
                SanType::Email => Some(SanKind::Email),
                SanType::IpAddress => Some(SanKind::Ip),
                SanType::Unspecified => {
                    return problems.report_at("san_type", "is not supported");
                }
            };
            let Some(matcher) = &matcher.matcher else { return };
            let pattern = problems.at("matcher", |problems| san_pattern(matcher, problems));
            names.extend(pattern.map(|pattern| SanName { kind, pattern }));
        });
    }
    for (index, matcher) in context.match_subject_alt_names.iter().enumerate() {
        let pattern =
            problems.at_index("match_subject_alt_names", index, |problems| san_pattern(matcher, problems));
        names.extend(pattern.map(|pattern| SanName { kind: None, pattern }));
    }
    Some(Trust { roots, names })
}

fn san_pattern(matcher: &StringMatcher, problems: &mut Problems) -> Option<SanPattern> {
    if matcher.ignore_case {
        problems.report_at("ignore_case", "is not supported here");
    }
    match matcher.match_pattern.as_ref()? {
        MatchPattern::Exact(text) => Some(SanPattern::Exact(text.as_str().into())),
        MatchPattern::Prefix(text) => Some(SanPattern::Prefix(text.as_str().into())),
        MatchPattern::Suffix(text) => Some(SanPattern::Suffix(text.as_str().into())),
        MatchPattern::Contains(text) => Some(SanPattern::Contains(text.as_str().into())),
        MatchPattern::SafeRegex(_) | MatchPattern::Custom(_) => {
            problems.report("only exact, prefix, suffix and contains are supported here");
            None
        }
    }
}

impl Trust {
    /// The messages are merged: what the second sets counts.
    pub(crate) fn merged(mut self, more: Trust) -> Trust {
        if more.roots != Roots::Unverified {
            self.roots = more.roots;
        }
        self.names.extend(more.names);
        self
    }

    /// Names are matched only in certificates that are verified.
    fn check(&self, problems: &mut Problems, field: &str) {
        if !self.names.is_empty() && self.roots == Roots::Unverified {
            problems.report_at(field, "is required to match subject alternative names");
        }
    }
}

/// The secret that an encoded resource is, if connections to control planes can use it.
///
/// # Errors
/// Every problem found.
pub(crate) fn sent(body: &[u8]) -> Result<tls::Secret, Vec<Problem>> {
    use tls::secret::Type;
    let bad = |error: prost::DecodeError| vec![Problem::new("", error.to_string())];
    let secret = tls::Secret::decode(body).map_err(bad)?;
    let mut problems = Problems::new();
    match &secret.r#type {
        Some(Type::TlsCertificate(certificate)) => problems.at("tls_certificate", |problems| {
            key_pair(certificate, problems);
        }),
        Some(Type::ValidationContext(context)) => problems.at("validation_context", |problems| {
            validation_context(context, problems);
        }),
        _ => problems.report("is neither a certificate nor a validation context"),
    }
    match problems.into_parts() {
        (problems, _) if problems.is_empty() => Ok(secret),
        (problems, _) => Err(problems),
    }
}

impl ControlSecret {
    /// The certificate and key that it has now.
    ///
    /// # Errors
    /// In words: it is not there, cannot be read, or is none.
    pub(crate) fn identity(&self) -> Result<(Material, Material), String> {
        match self.read(certificate_of)? {
            ControlIdentity::Given { chain, key } => Ok((chain, key)),
            ControlIdentity::Secret(_) => Err(self.told("names another")),
        }
    }

    /// Whom it says to trust now.
    ///
    /// # Errors
    /// In words: it is not there, cannot be read, or says nothing of that.
    pub(crate) fn trust(&self) -> Result<Trust, String> {
        self.read(trust_of)
    }

    fn told(&self, what: impl std::fmt::Display) -> String {
        match &self.source {
            SecretSource::File(path) => format!("{}: the secret {:?}: {what}", path.display(), self.name),
            SecretSource::Sent(_) => format!("the secret {:?}: {what}", self.name),
        }
    }

    fn read<T>(
        &self,
        compile: impl FnOnce(&tls::secret::Type, &str, &mut Problems) -> Option<T>,
    ) -> Result<T, String> {
        let kind = match &self.source {
            SecretSource::File(path) => {
                let response = read_file(path).map_err(|error| format!("{}: {error}", path.display()))?;
                let secrets = response.resources.iter().filter_map(|any| unpack::<tls::Secret>(any).ok());
                let found = secrets.into_iter().find(|secret| *secret.name == *self.name);
                found.and_then(|secret| secret.r#type).map(Arc::new)
            }
            SecretSource::Sent(sent) => sent.current(),
        };
        let kind = kind.ok_or_else(|| self.told("is not there"))?;
        let mut problems = Problems::new();
        let compiled = compile(&kind, &self.name, &mut problems).filter(|_| problems.is_empty());
        compiled.ok_or_else(|| {
            let told: Vec<_> = problems.into_parts().0.iter().map(ToString::to_string).collect();
            self.told(told.join("; "))
        })
    }
}

impl Material {
    /// The bytes or the file that `source`, which stands in `field`, names.
    pub(super) fn of(source: &core::DataSource, field: &str, problems: &mut Problems) -> Option<Self> {
        use core::data_source::Specifier;
        match source.specifier.as_ref()? {
            Specifier::Filename(path) => Some(Material::File(path.into())),
            Specifier::InlineBytes(bytes) => Some(Material::Inline(Bytes::copy_from_slice(bytes))),
            Specifier::InlineString(_) | Specifier::EnvironmentVariable(_) => {
                problems.at(field, |problems| data_source(source, problems)).map(Material::Inline)
            }
        }
    }
}
