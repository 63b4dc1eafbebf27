//! Certificates that we present, and PEM.

use std::sync::Arc;

use bytes::Bytes;
use tokio_rustls::rustls::crypto::aws_lc_rs::sign::any_supported_type;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error, InconsistentKeys, SignatureAlgorithm};
use x509_parser::certificate::X509Certificate;
use zeroize::Zeroize;

use super::names::names_of;
use super::ocsp::{self, Staple};
use super::renewal::Validity;
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
    /// What is shown with it to who asks for its state.
    pub stapled: Option<Stapled>,
    /// It demands to be shown with a response.
    pub must_staple: bool,
    pub(super) facts: super::peer::KeptFacts,
}

/// A certificate with an OCSP response.
pub struct Stapled {
    /// The response.
    pub staple: Staple,
    /// The certificate that is shown with it.
    pub key: Arc<CertifiedKey>,
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
        Self::from_der(chain, key)
    }

    /// From what PEM holds.
    ///
    /// # Errors
    /// As [`Identity::from_pem`].
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, (&'static str, String)> {
        let server_names = chain.first().map(server_names).unwrap_or_default();
        let key = certified(chain, key)
            .map_err(|error| ("private_key", format!("does not fit the certificate: {error}")))?;
        let is_ecdsa = key.key.algorithm() == SignatureAlgorithm::ECDSA;
        let (path, facts) = (INLINE.into(), super::peer::KeptFacts::new());
        let key = Arc::new(key);
        let must_staple = parsed(&key).is_some_and(|certificate| ocsp::is_demanded(&certificate));
        Ok(Self { key, server_names, is_ecdsa, path, stapled: None, must_staple, facts })
    }

    /// The same, shown with the OCSP response `der`; empty = with none.
    ///
    /// # Errors
    /// That is no response for this certificate.
    pub fn with_staple(self, der: &[u8]) -> Result<Self, String> {
        if der.is_empty() {
            return Ok(self);
        }
        let staple = Staple::parse(der).map_err(|error| error.to_string())?;
        if !parsed(&self.key).is_some_and(|certificate| staple.is_for(certificate.raw_serial())) {
            return Err("OCSP response does not match its TLS certificate".to_owned());
        }
        let key = CertifiedKey { ocsp: Some(staple.der.clone()), ..CertifiedKey::clone(&self.key) };
        Ok(Self { stapled: Some(Stapled { staple, key: Arc::new(key) }), ..self })
    }

    /// The same, from the file `path`.
    #[must_use]
    pub fn at(self, path: &str) -> Self {
        Self { path: path.into(), ..self }
    }

    /// From when until when it is valid, as far as that can be said.
    pub fn validity(&self) -> Option<Validity> {
        let facts = self.facts();
        Some(Validity { from: facts.not_before?, until: facts.not_after? })
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

/// A certificate chain ready to sign with `key`, of which nothing is left in memory but what signs.
///
/// # Errors
/// The key is of no known kind, or not the certificate's.
pub fn certified(
    chain: Vec<CertificateDer<'static>>,
    mut key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, Error> {
    let signs = any_supported_type(&key);
    key.zeroize();
    let made = CertifiedKey::new(chain, signs?);
    match made.keys_match() {
        // Not every kind of key can be compared.
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(made),
        Err(error) => Err(error),
    }
}

/// Overwrites the text of a private key that was read, where nobody else has it.
pub fn wipe(text: Bytes) {
    if let Ok(mut own) = text.try_into_mut() {
        own.as_mut().zeroize();
    }
}

/// The certificate of `key`.
fn parsed(key: &CertifiedKey) -> Option<X509Certificate<'_>> {
    x509_parser::parse_x509_certificate(key.cert.first()?).ok().map(|(_, parsed)| parsed)
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
