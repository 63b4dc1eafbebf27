//! Signatures in handshakes: the part of a certificate verifier that is the same for every peer.

use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::SignatureScheme;

/// Who verifies signatures with a provider's algorithms; the trait of the TLS library gets it from [`signatures!`].
pub(crate) trait Signatures {
    /// Whose algorithms.
    fn provider(&self) -> &CryptoProvider;

    /// A signature was good.
    fn signed(&self, _scheme: SignatureScheme) {}

    /// What peers may sign with, the best first.
    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The methods about signatures of `ClientCertVerifier` and `ServerCertVerifier`, for who has [`Signatures`].
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &tokio_rustls::rustls::pki_types::CertificateDer<'_>,
            signed: &tokio_rustls::rustls::DigitallySignedStruct,
        ) -> Result<
            tokio_rustls::rustls::client::danger::HandshakeSignatureValid,
            tokio_rustls::rustls::Error,
        > {
            use $crate::tls::signatures::Signatures as _;
            let algorithms = &self.provider().signature_verification_algorithms;
            let verified = tokio_rustls::rustls::crypto::verify_tls12_signature(
                message,
                certificate,
                signed,
                algorithms,
            )?;
            self.signed(signed.scheme);
            Ok(verified)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &tokio_rustls::rustls::pki_types::CertificateDer<'_>,
            signed: &tokio_rustls::rustls::DigitallySignedStruct,
        ) -> Result<
            tokio_rustls::rustls::client::danger::HandshakeSignatureValid,
            tokio_rustls::rustls::Error,
        > {
            use $crate::tls::signatures::Signatures as _;
            let algorithms = &self.provider().signature_verification_algorithms;
            let verified = tokio_rustls::rustls::crypto::verify_tls13_signature(
                message,
                certificate,
                signed,
                algorithms,
            )?;
            self.signed(signed.scheme);
            Ok(verified)
        }

        fn supported_verify_schemes(&self) -> Vec<tokio_rustls::rustls::SignatureScheme> {
            use $crate::tls::signatures::Signatures as _;
            self.schemes()
        }
    };
}
pub(crate) use signatures;
