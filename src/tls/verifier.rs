//! The TLS library's verifiers, which ask a [`Validation`].

use std::sync::Arc;

use tokio_rustls::rustls;

use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DistinguishedName, Error, SignatureScheme};

use super::signatures::{signatures, Signatures};
use super::stats::SslStats;
use super::validation::{ExpectedNames, Role, Validation};

/// Of clients.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) validation: Validation,
    /// A client without a certificate is refused.
    pub(super) mandatory: bool,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) stats: Arc<SslStats>,
}

/// Of servers. Without a validation any certificate will do.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) validation: Option<Arc<Validation>>,
    /// Names of which the certificate must have one besides.
    pub(super) names: ExpectedNames,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) stats: Arc<SslStats>,
}

fn chain<'c>(leaf: &CertificateDer<'c>, others: &[CertificateDer<'c>]) -> Vec<CertificateDer<'c>> {
    std::iter::once(leaf).chain(others).cloned().collect()
}

impl Signatures for Clients {
    fn provider(&self) -> &CryptoProvider {
        &self.provider
    }

    fn signed(&self, scheme: SignatureScheme) {
        self.stats.signed(scheme);
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        schemes(&self.provider)
    }
}

impl Signatures for Servers {
    fn provider(&self) -> &CryptoProvider {
        &self.provider
    }

    fn signed(&self, scheme: SignatureScheme) {
        self.stats.signed(scheme);
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        schemes(&self.provider)
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        if self.validation.suppress_ca_list {
            return &[];
        }
        self.validation.subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let algorithms = self.provider.signature_verification_algorithms;
        let chain = chain(end_entity, intermediates);
        self.validation.verify(
            &chain,
            Role::Client,
            &ExpectedNames::default(),
            now,
            algorithms,
            &self.stats.counters,
        )?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(validation) = &self.validation {
            let algorithms = self.provider.signature_verification_algorithms;
            let chain = chain(end_entity, intermediates);
            let counters = &self.stats.counters;
            validation.verify(&chain, Role::Server, &self.names, now, algorithms, counters)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// What peers may sign with, in BoringSSL's order: its first is the one that costs least.
fn schemes(provider: &CryptoProvider) -> Vec<SignatureScheme> {
    const ORDER: &[SignatureScheme] = &[
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::RSA_PSS_SHA256,
        SignatureScheme::RSA_PKCS1_SHA256,
        SignatureScheme::ECDSA_NISTP384_SHA384,
        SignatureScheme::RSA_PSS_SHA384,
        SignatureScheme::RSA_PKCS1_SHA384,
    ];
    let mut all = provider.signature_verification_algorithms.supported_schemes();
    // Stable: what is not in the list stays in its order, behind.
    all.sort_by_key(|scheme| ORDER.iter().position(|known| known == scheme).unwrap_or(ORDER.len()));
    all
}
