//! `SPIFFECertValidatorConfig`: trust by SPIFFE trust domain.
//!
//! In: a validation context's custom validator. Out: where its bundles are, to be read now and when files change.

use std::collections::BTreeMap;

use outrigger_control_api::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SpiffeCertValidatorConfig,
};
use outrigger_control_api::type_of;

use super::extension;
use super::tls::path_of;
use crate::config::discovery::Material;
use crate::config::problems::Problems;
use crate::tls::spiffe::{Bundle, TrustDomains};

const SPIFFE: &str = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// Where bundles are.
#[derive(Clone)]
pub(super) enum Bundles {
    /// PEM, by trust domain.
    Pem(Vec<(Box<str>, Material)>),
    /// A bundle map.
    Map(Material),
}

impl Bundles {
    /// What they are read from.
    pub(super) fn materials(&self) -> Vec<&Material> {
        match self {
            Bundles::Pem(list) => list.iter().map(|(_, material)| material).collect(),
            Bundles::Map(material) => vec![material],
        }
    }

    /// Reads them.
    ///
    /// # Errors
    /// The trust domain or file, and what is wrong with it.
    pub(super) fn read(&self) -> Result<TrustDomains, String> {
        let read = |material: &Material| material.read().map_err(|error| format!("{material:?}: {error}"));
        match self {
            Bundles::Map(material) => TrustDomains::from_json(&read(material)?, &path_of(material)),
            Bundles::Pem(list) => {
                let mut bundles = BTreeMap::new();
                for (domain, material) in list {
                    let bundle = read(material).and_then(|pem| Bundle::from_pem(&pem, &path_of(material)));
                    let bundle = bundle.map_err(|error| format!("{domain}: {error}"))?;
                    bundles.insert(domain.clone(), bundle);
                }
                Ok(TrustDomains::new(bundles))
            }
        }
    }
}

/// The bundles of a validation context. `None` where it has no validator of its own, or a problem was reported.
pub(super) fn bundles(context: &CertificateValidationContext, problems: &mut Problems) -> Option<Bundles> {
    let custom = context.custom_validator_config.as_ref()?;
    problems.at("custom_validator_config.typed_config", |problems| {
        let Some(any) = &custom.typed_config else {
            problems.report("is required");
            return None;
        };
        if type_of(any) != SPIFFE {
            problems.report(format_args!(
                "the validator {} ({}) is not supported",
                custom.name,
                type_of(any)
            ));
            return None;
        }
        if !context.verify_certificate_hash.is_empty() || !context.verify_certificate_spki.is_empty() {
            problems.report("does not go together with verify_certificate_hash and verify_certificate_spki");
        }
        let config: SpiffeCertValidatorConfig = extension(any, "", problems)?;
        if let Some(map) = &config.trust_bundles {
            return Material::of(map, "trust_bundles", problems).map(Bundles::Map);
        }
        let mut list: Vec<(Box<str>, Material)> = Vec::new();
        for (index, domain) in config.trust_domains.iter().enumerate() {
            problems.at_index("trust_domains", index, |problems| {
                let Some(bundle) = &domain.trust_bundle else { return };
                if list.iter().any(|(known, _)| **known == *domain.name) {
                    problems.report_at("name", format_args!("{:?} is there twice", domain.name));
                }
                let material = Material::of(bundle, "trust_bundle", problems);
                list.extend(material.map(|material| (domain.name.as_str().into(), material)));
            });
        }
        if list.is_empty() {
            problems.report_at("trust_domains", "has no trust domain with a bundle");
        }
        Some(Bundles::Pem(list))
    })
}
