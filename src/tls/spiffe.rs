//! Trust by SPIFFE trust domain (`SPIFFECertValidatorConfig`): each domain has roots of its own, and a certificate is
//! verified by those of the domain that its name is in.
//!
//! In: roots and revocation lists by trust domain; a peer's certificate. Out: which of them count for it, or why none do
//! (spiffe.io: X509-SVID, 5.2 leaf validation).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::prelude::{Engine as _, BASE64_STANDARD};
use serde::Deserialize;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::DistinguishedName;
use x509_parser::certificate::X509Certificate;

use super::failure::VerifyFailure;
use super::identity::{certificates, revocation_lists};
use super::names::names_of;
use super::validation::{Crls, Roots};
use crate::config::discovery::SanKind;

/// The trust domains of a validator.
#[derive(Debug, Default)]
pub struct TrustDomains {
    bundles: BTreeMap<Box<str>, Bundle>,
    subjects: Vec<DistinguishedName>,
}

/// What certificates of one trust domain are verified by.
#[derive(Debug)]
pub struct Bundle {
    /// The file that it is from, or `<inline>`.
    pub path: Box<str>,
    /// Who may sign them.
    pub roots: Arc<Roots>,
    /// Revocation lists, if there are any.
    pub crls: Option<Arc<Crls>>,
}

impl Bundle {
    /// From PEM, of the file `path`: certificates, and revocation lists if there are any.
    ///
    /// # Errors
    /// There is no certificate, or one of them cannot be used.
    pub fn from_pem(pem: &[u8], path: &str) -> Result<Self, String> {
        let roots = Arc::new(Roots::new(certificates(pem)?)?);
        let has_lists = memchr::memmem::find(pem, b"X509 CRL").is_some();
        let crls = has_lists.then(|| revocation_lists(pem).and_then(|lists| Crls::new(&lists)));
        Ok(Self { path: path.into(), roots, crls: crls.transpose()?.map(Arc::new) })
    }
}

/// A bundle map: SPIFFE bundles by trust domain (spiffe.io: SPIFFE Trust Domain and Bundle, 4).
#[derive(Deserialize)]
struct BundleMap {
    trust_domains: HashMap<Box<str>, Jwks>,
}

#[derive(Deserialize)]
struct Jwks {
    #[serde(default)]
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    #[serde(default, rename = "use")]
    usage: String,
    /// Base64 of DER; the first is the certificate.
    #[serde(default)]
    x5c: Vec<String>,
}

impl TrustDomains {
    /// These bundles.
    pub fn new(bundles: BTreeMap<Box<str>, Bundle>) -> Self {
        let mut subjects: Vec<_> =
            bundles.values().flat_map(|bundle| bundle.roots.subjects()).cloned().collect();
        subjects.sort_by(|one, other| one.as_ref().cmp(other.as_ref()));
        subjects.dedup_by(|one, other| one.as_ref() == other.as_ref());
        Self { bundles, subjects }
    }

    /// From a bundle map in JSON, of the file `path`.
    ///
    /// # Errors
    /// It is none, or a certificate in it cannot be used.
    pub fn from_json(json: &[u8], path: &str) -> Result<Self, String> {
        let map: BundleMap =
            serde_json::from_slice(json).map_err(|error| format!("is no map of SPIFFE bundles: {error}"))?;
        let mut bundles = BTreeMap::new();
        for (domain, set) in map.trust_domains {
            let mut found = Vec::new();
            for key in set.keys.iter().filter(|key| key.usage == "x509-svid") {
                let first = key.x5c.first().ok_or_else(|| format!("{domain:?}: a key has no x5c"))?;
                let der =
                    BASE64_STANDARD.decode(first).map_err(|error| format!("{domain:?}: x5c: {error}"))?;
                found.push(CertificateDer::from(der));
            }
            if found.is_empty() {
                return Err(format!("{domain:?} has no key for x509-svid"));
            }
            let roots = Arc::new(Roots::new(found).map_err(|error| format!("{domain:?}: {error}"))?);
            bundles.insert(domain, Bundle { path: path.into(), roots, crls: None });
        }
        Ok(Self::new(bundles))
    }

    /// All bundles, by trust domain.
    pub(super) fn bundles(&self) -> &BTreeMap<Box<str>, Bundle> {
        &self.bundles
    }

    /// The names of all roots.
    pub fn subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    /// What `leaf` is verified by.
    ///
    /// # Errors
    /// It may not be a workload's certificate, or is of no domain that is known.
    pub(super) fn bundle_of(&self, leaf: &CertificateDer<'_>) -> Result<&Bundle, VerifyFailure> {
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_| VerifyFailure::NoSvid)?;
        if may_sign(&parsed) {
            return Err(VerifyFailure::NoSvid);
        }
        let names = names_of(&parsed);
        let name = names.iter().find(|(kind, _)| *kind == SanKind::Uri);
        let domain = name.and_then(|(_, uri)| trust_domain(uri));
        domain.and_then(|domain| self.bundles.get(domain)).ok_or(VerifyFailure::TrustDomain)
    }
}

/// Whether a certificate is for signing others, which a workload's may not be. One that says nothing of its use is
/// for any.
fn may_sign(certificate: &X509Certificate<'_>) -> bool {
    let usage = certificate.key_usage().ok().flatten();
    certificate.is_ca() || usage.is_none_or(|usage| usage.value.key_cert_sign() || usage.value.crl_sign())
}

/// The trust domain of a workload's name; as in Envoy one with a path.
fn trust_domain(uri: &str) -> Option<&str> {
    let (domain, _) = uri.strip_prefix("spiffe://")?.split_once('/')?;
    Some(domain).filter(|domain| !domain.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_name_is() {
        assert_eq!(trust_domain("spiffe://mesh.test/ns/a/sa/b"), Some("mesh.test"));
        for none in ["spiffe://mesh.test", "spiffe:///a", "https://mesh.test/a", "SPIFFE://mesh.test/a", ""] {
            assert_eq!(trust_domain(none), None, "{none}");
        }
    }

    #[test]
    fn bundle_maps_that_cannot_be_used_say_why() {
        for (json, told) in [
            ("", "no map"),
            ("{}", "trust_domains"),
            (r#"{"trust_domains": {"a.test": {"keys": [{"use": "jwt-svid"}]}}}"#, "\"a.test\" has no key"),
            (r#"{"trust_domains": {"a.test": {"keys": [{"use": "x509-svid"}]}}}"#, "no x5c"),
            (r#"{"trust_domains": {"a.test": {"keys": [{"use": "x509-svid", "x5c": ["!"]}]}}}"#, "x5c"),
            (r#"{"trust_domains": {"a.test": {"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}}}"#, "a.test"),
        ] {
            let error = TrustDomains::from_json(json.as_bytes(), "").unwrap_err();
            assert!(error.contains(told), "{json}: {error}");
        }
    }
}
