//! TLS towards a control plane, as the cluster's `UpstreamTlsContext` says it.
//!
//! Files are read at each handshake, so that renewed certificates are used without a restart.

use std::sync::Arc;

use tokio_rustls::rustls;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, ResolvesClientCert};
use rustls::crypto::{aws_lc_rs, verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};
use x509_parser::extensions::GeneralName;

use crate::config::discovery::{ControlTls, Material, Roots, SanKind, SanName};

/// What a handshake needs.
///
/// # Errors
/// A certificate or key cannot be read or used, in words for the operator.
pub(super) fn client_config(config: &ControlTls) -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        Verifier { roots: config.roots.clone(), names: config.names.clone(), provider: provider.clone() };
    // Told now, not at the first connection.
    verifier.store()?;
    let versions: Vec<&SupportedProtocolVersion> =
        [(12, &rustls::version::TLS12), (13, &rustls::version::TLS13)]
            .into_iter()
            .filter(|(number, _)| (config.versions.0..=config.versions.1).contains(number))
            .map(|(_, version)| version)
            .collect();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions)
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut made = match &config.identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let identity = Identity { chain: chain.clone(), key: key.clone(), provider };
            identity.load()?;
            builder.with_client_cert_resolver(Arc::new(identity))
        }
    };
    made.enable_sni = config.sni.is_some();
    Ok(made)
}

/// Our certificate.
#[derive(Debug)]
struct Identity {
    chain: Material,
    key: Material,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    fn load(&self) -> Result<CertifiedKey, String> {
        let chain = certificates(&self.chain)?;
        let pem = self.key.read().map_err(|error| format!("private key {:?}: {error}", self.key))?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| format!("private key: {error}"))?;
        CertifiedKey::from_der(chain, key, &self.provider).map_err(|error| format!("certificate: {error}"))
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let loaded =
            self.load().map_err(|error| tracing::error!("no certificate for the control plane: {error}"));
        loaded.ok().map(Arc::new)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Who the control plane may be.
#[derive(Debug)]
struct Verifier {
    roots: Roots,
    names: Vec<SanName>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// `None` where any certificate is taken.
    fn store(&self) -> Result<Option<RootCertStore>, String> {
        let mut store = RootCertStore::empty();
        match &self.roots {
            Roots::Unverified => return Ok(None),
            Roots::System => {
                store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
            Roots::Pem(pem) => {
                for certificate in certificates(pem)? {
                    store.add(certificate).map_err(|error| format!("trusted CA: {error}"))?;
                }
            }
        }
        Ok(Some(store))
    }

    /// Whether one of the certificate's names is among those wanted. Without any wanted, all are.
    fn is_named(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.names.is_empty() {
            return true;
        }
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
        let Ok(Some(names)) = parsed.subject_alternative_name() else { return false };
        names.value.general_names.iter().any(|name| {
            let (kind, text) = match name {
                GeneralName::DNSName(text) => (SanKind::Dns, (*text).to_owned()),
                GeneralName::URI(text) => (SanKind::Uri, (*text).to_owned()),
                GeneralName::RFC822Name(text) => (SanKind::Email, (*text).to_owned()),
                GeneralName::IPAddress(bytes) => match ip(bytes) {
                    Some(ip) => (SanKind::Ip, ip),
                    None => return false,
                },
                _ => return false,
            };
            self.names.iter().any(|wanted| {
                wanted.kind.is_none_or(|wanted| wanted == kind) && wanted.pattern.matches(&text)
            })
        })
    }
}

fn ip(bytes: &[u8]) -> Option<String> {
    let four = <[u8; 4]>::try_from(bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string());
    let sixteen = <[u8; 16]>::try_from(bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string());
    four.or(sixteen).ok()
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(store) = self.store().map_err(Error::General)? {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, &store, intermediates, now, algorithms)?;
        }
        if !self.is_named(end_entity) {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn certificates(pem: &Material) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = pem.read().map_err(|error| format!("certificates {pem:?}: {error}"))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(format!("certificates {pem:?}: there is none")),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("certificates {pem:?}: {error}")),
    }
}
