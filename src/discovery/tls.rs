//! TLS towards a control plane, as the cluster's `UpstreamTlsContext` says it.
//!
//! In: compiled TLS settings and a control plane's certificate. Out: a handshake, or why there is none, in
//! words for the operator's log. Files are read at each handshake, so that renewed certificates are used
//! without a restart; for the same reason no session is resumed, which would skip the certificates.

use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls;

use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    verify_server_cert_signed_by_trust_anchor, verify_server_name, ResolvesClientCert, Resumption,
};
use rustls::crypto::{aws_lc_rs, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, Error, OtherError, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};

use crate::config::control_secret::ControlSecret;
use crate::config::discovery::{
    ControlIdentity, ControlTls, Material, Roots, SanKind, SanName, SanPattern, Trust,
};
use crate::tls::identity;
use crate::tls::names::{covers, names};
use crate::tls::signatures::{signatures, Signatures};

/// What handshakes with the control plane `target` need. Certificates that cannot be used yet are told in the
/// log; each connection looks at them anew.
///
/// # Errors
/// There is no TLS version to speak.
pub(super) fn client_config(target: &str, config: &ControlTls) -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier {
        trust: config.trust.clone(),
        secret: config.trust_secret.clone(),
        // Without a server name there is none to verify.
        verify_name: config.verify_sni && config.sni.is_some(),
        provider: provider.clone(),
    };
    // What is still to be sent is no error.
    let waits = config.sent().next().is_some();
    let told = |error: String| {
        if !waits {
            tracing::error!("TLS to the control plane {target}: {error}");
        }
    };
    verifier.trust().and_then(|trust| store(&trust.roots)).map_or_else(told, drop);
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
        Some(source) => {
            let identity = Identity { source: source.clone() };
            identity.load().map_or_else(told, drop);
            builder.with_client_cert_resolver(Arc::new(identity))
        }
    };
    made.enable_sni = config.sni.is_some();
    made.resumption = Resumption::disabled();
    Ok(made)
}

/// Our certificate.
#[derive(Debug)]
struct Identity {
    source: ControlIdentity,
}

impl Identity {
    fn load(&self) -> Result<CertifiedKey, String> {
        let (chain, key) = match &self.source {
            ControlIdentity::Given { chain, key } => (chain.clone(), key.clone()),
            ControlIdentity::Secret(secret) => secret.identity()?,
        };
        let certificates = certificates(&chain)?;
        let pem = key.read().map_err(|error| format!("private key {key:?}: {error}"))?;
        let private =
            PrivateKeyDer::from_pem_slice(&pem).map_err(|error| format!("private key {key:?}: {error}"))?;
        identity::wipe(pem);
        identity::certified(certificates, private)
            .map_err(|error| format!("certificate {chain:?} and private key {key:?}: {error}"))
    }
}

impl ResolvesClientCert for Identity {
    /// Without a certificate that can be used the handshake goes on without: whether that will do is the
    /// control plane's to say.
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
    trust: Trust,
    /// A secret that says more of that.
    secret: Option<ControlSecret>,
    /// The certificate must be valid for the server name, in place of `names`.
    verify_name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// What counts for a connection that begins now.
    fn trust(&self) -> Result<Trust, String> {
        match &self.secret {
            None => Ok(self.trust.clone()),
            Some(secret) => Ok(self.trust.clone().merged(secret.trust()?)),
        }
    }
}

impl Signatures for Verifier {
    fn provider(&self) -> &CryptoProvider {
        &self.provider
    }
}

/// `None` where any certificate is taken.
fn store(roots: &Roots) -> Result<Option<RootCertStore>, String> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::Unverified => return Ok(None),
        Roots::System => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Roots::Pem(pem) => {
            for certificate in certificates(pem)? {
                store.add(certificate).map_err(|error| format!("trusted CA {pem:?}: {error}"))?;
            }
        }
    }
    Ok(Some(store))
}

/// One of the certificate's names must be among those wanted. Without any wanted, all will do.
fn check_names(wanted: &[SanName], certificate: &CertificateDer<'_>) -> Result<(), Error> {
    let presented = names(certificate);
    let fits = |(kind, text): &(SanKind, String)| wanted.iter().any(|name| fits(name, *kind, text));
    if wanted.is_empty() || presented.iter().any(fits) {
        return Ok(());
    }
    let wrong = WrongName { wanted: wanted.to_vec(), presented };
    Err(CertificateError::Other(OtherError(Arc::new(wrong))).into())
}

/// The certificate is valid, and somebody else's.
struct WrongName {
    wanted: Vec<SanName>,
    presented: Vec<(SanKind, String)>,
}

impl fmt::Display for WrongName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let presented = self.presented.iter().map(|(kind, text)| format!("{kind:?} {text:?}")).collect();
        let wanted = self.wanted.iter().map(|name| match name.kind {
            Some(kind) => format!("{kind:?} {:?}", name.pattern),
            None => format!("{:?}", name.pattern),
        });
        write!(
            f,
            "the certificate's subject alternative names ({}) are none of those wanted ({})",
            list(presented),
            list(wanted.collect())
        )
    }
}

/// The TLS library shows errors that it does not know in this form.
impl fmt::Debug for WrongName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for WrongName {}

/// Whether a name of a certificate is one that is wanted. As in Envoy, a DNS name that is wanted exactly may be
/// covered by a wildcard, and its letters may be of either case.
fn fits(wanted: &SanName, kind: SanKind, text: &str) -> bool {
    if wanted.kind.is_some_and(|wanted| wanted != kind) {
        return false;
    }
    match &wanted.pattern {
        SanPattern::Exact(name) if kind == SanKind::Dns => covers(text, name),
        pattern => pattern.matches(text),
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let trust = self.trust().map_err(Error::General)?;
        // Where nothing is trusted nothing is verified, unless there are names to verify.
        let roots = store(&trust.roots).map_err(Error::General)?;
        if roots.is_none() && (!trust.names.is_empty() || self.verify_name) {
            return Err(Error::General("no trusted CA to verify the control plane's names by".to_owned()));
        }
        if let Some(store) = roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, &store, intermediates, now, algorithms)?;
            if self.verify_name {
                verify_server_name(&certificate, server_name)?;
            } else {
                check_names(&trust.names, end_entity)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

fn certificates(pem: &Material) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = pem.read().map_err(|error| format!("certificates {pem:?}: {error}"))?;
    identity::certificates(&text).map_err(|error| format!("certificates {pem:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_fit() {
        let name = |kind, pattern| SanName { kind, pattern };
        let exact = |text: &str| SanPattern::Exact(text.into());
        let dns = name(Some(SanKind::Dns), exact("xds.mesh.test"));
        for covered in ["xds.mesh.test", "XDS.Mesh.test", "*.mesh.test"] {
            assert!(fits(&dns, SanKind::Dns, covered), "{covered}");
        }
        for other in ["*.test", "*", "mesh.test", "*.xds.mesh.test", "*.mesh.test.org", "x*.mesh.test", ""] {
            assert!(!fits(&dns, SanKind::Dns, other), "{other}");
        }
        assert!(!fits(&dns, SanKind::Uri, "xds.mesh.test"), "of another kind");
        assert!(
            !fits(&name(None, exact("mesh.test")), SanKind::Dns, "*.test"),
            "a wildcard for all of a suffix"
        );
        let spiffe = name(Some(SanKind::Uri), SanPattern::Prefix("spiffe://mesh/".into()));
        assert!(fits(&spiffe, SanKind::Uri, "spiffe://mesh/control"));
        assert!(!fits(&spiffe, SanKind::Uri, "spiffe://other/control"));
        assert!(fits(&name(None, exact("10.0.0.1")), SanKind::Ip, "10.0.0.1"));
    }

    #[test]
    fn a_wrong_name_says_what_was_wanted() {
        let wanted =
            vec![SanName { kind: Some(SanKind::Uri), pattern: SanPattern::Exact("spiffe://a".into()) }];
        let wrong = WrongName { wanted, presented: vec![(SanKind::Dns, "b.test".to_owned())] };
        let text = Error::from(CertificateError::Other(OtherError(Arc::new(wrong)))).to_string();
        assert!(text.contains("Dns \"b.test\"") && text.contains("spiffe://a"), "{text}");
    }
}
