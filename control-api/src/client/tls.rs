//! TLS to the control plane, with the crypto of aws-lc.

use std::sync::Arc;

use tokio_rustls::rustls::client::ClientConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::RootCertStore;

use super::transport::TransportError;

/// How the control plane proves who it is, and how we do.
#[derive(Debug, Clone)]
pub struct Tls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) server_name: ServerName<'static>,
}

impl Tls {
    /// With a configuration made elsewhere. Its protocols are set to `h2`.
    ///
    /// # Errors
    /// `server_name` is neither a DNS name nor an IP address.
    pub fn new(mut config: ClientConfig, server_name: &str) -> Result<Self, TransportError> {
        config.alpn_protocols = vec![b"h2".to_vec()];
        let server_name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| TransportError::ServerName { name: server_name.to_owned() })?;
        Ok(Self { config: Arc::new(config), server_name })
    }

    /// From PEM text: the roots to trust, and for mutual TLS a certificate chain with its key.
    ///
    /// # Errors
    /// A text holds no usable certificate or key, or the key is not the certificate's.
    pub fn from_pem(
        roots: &[u8],
        identity: Option<(&[u8], &[u8])>,
        server_name: &str,
    ) -> Result<Self, TransportError> {
        let mut store = RootCertStore::empty();
        for certificate in certificates(roots, "trusted CA")? {
            store.add(certificate).map_err(|e| bad("trusted CA", &e))?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad("protocol versions", &e))?
            .with_root_certificates(store);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad("private key", &e))?;
                let chain = certificates(chain, "certificate chain")?;
                builder.with_client_auth_cert(chain, key).map_err(|e| bad("certificate chain", &e))?
            }
        };
        Self::new(config, server_name)
    }
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|e| bad(what, &e))?;
    if found.is_empty() {
        return Err(bad(what, &"no certificate in it"));
    }
    Ok(found)
}

fn bad(what: &'static str, error: &dyn std::fmt::Display) -> TransportError {
    TransportError::Material { what, error: error.to_string() }
}
