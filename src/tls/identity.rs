//! Certificates that we present, and PEM.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::SignatureAlgorithm;

use super::names::names_of;
use crate::config::discovery::SanKind;

/// A certificate chain with its private key.
pub struct Identity {
    /// Ready to sign.
    pub key: Arc<CertifiedKey>,
    /// The names that clients may ask for: the DNS names of the certificate, or without any its common name. In
    /// lower case.
    pub server_names: Vec<Box<str>>,
    /// The key is one of elliptic curves.
    pub is_ecdsa: bool,
    /// The file that it is from, or `<inline>`.
    pub path: Box<str>,
    pub(super) facts: super::peer::KeptFacts,
}

/// The path of what is in no file.
pub const INLINE: &str = "<inline>";

/// Never shows the key.
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("server_names", &self.server_names).finish_non_exhaustive()
    }
}

impl Identity {
    /// From PEM text. Errors never quote it.
    ///
    /// # Errors
    /// One of them is no PEM, or the key is not the certificate's; the field of `TlsCertificate` and what is wrong.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, (&'static str, String)> {
        let chain = certificates(chain).map_err(|error| ("certificate_chain", error))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| ("private_key", "holds no private key in PEM form".to_owned()))?;
        let provider = aws_lc_rs::default_provider();
        let server_names = chain.first().map(server_names).unwrap_or_default();
        let key = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|error| ("private_key", format!("does not fit the certificate: {error}")))?;
        let is_ecdsa = key.key.algorithm() == SignatureAlgorithm::ECDSA;
        let (path, facts) = (INLINE.into(), super::peer::KeptFacts::new());
        Ok(Self { key: Arc::new(key), server_names, is_ecdsa, path, facts })
    }

    /// The same, from the file `path`.
    #[must_use]
    pub fn at(self, path: &str) -> Self {
        Self { path: path.into(), ..self }
    }

    /// Whether clients that ask for `name` (in lower case) mean this certificate by that very name.
    pub fn is_named(&self, name: &str) -> bool {
        self.server_names.iter().any(|own| &**own == name)
    }

    /// Whether a wildcard of the certificate stands for `name` (in lower case).
    pub fn is_wild_for(&self, name: &str) -> bool {
        let Some((_, domain)) = name.split_once('.') else { return false };
        self.server_names.iter().any(|own| own.strip_prefix("*.") == Some(domain))
    }
}

fn server_names(certificate: &CertificateDer<'static>) -> Vec<Box<str>> {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return Vec::new() };
    let names = names_of(&parsed).into_iter().filter(|(kind, _)| *kind == SanKind::Dns);
    let names: Vec<Box<str>> = names.map(|(_, name)| name.to_ascii_lowercase().into()).collect();
    if !names.is_empty() {
        return names;
    }
    let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    common.map(|name| name.to_ascii_lowercase().into()).collect()
}

/// The certificates of a PEM text, at least one.
///
/// # Errors
/// There is none, or one is malformed.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("holds no certificate in PEM form".to_owned()),
        Ok(found) => match found.iter().find_map(|der| x509_parser::parse_x509_certificate(der).err()) {
            Some(error) => Err(format!("holds a malformed certificate: {error}")),
            None => Ok(found),
        },
        Err(error) => Err(error.to_string()),
    }
}

/// The revocation lists of a PEM text, at least one.
///
/// # Errors
/// There is none, or one is malformed.
pub fn revocation_lists(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("holds no revocation list in PEM form".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}
