//! Why handshakes fail, in the words that Envoy has from BoringSSL: operators search logs for them.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, OtherError, PeerIncompatible};

use crate::runtime::tls_stream::HandshakeError;
use crate::runtime::Stream;

/// Why a certificate will not do.
#[derive(Clone, PartialEq)]
pub enum VerifyFailure {
    /// There is none.
    Empty,
    /// The chain does not lead to a trusted certificate.
    Chain {
        /// Which certificate; 0 is the peer's own.
        depth: usize,
        /// What is wrong, as BoringSSL says it.
        text: &'static str,
        /// What the peer is told.
        error: CertificateError,
    },
    /// None of its names is one of those that will do.
    Name {
        /// What they are.
        presented: Vec<String>,
    },
    /// None of its names is that of the host meant.
    NameList {
        /// What they may be.
        expected: Vec<String>,
        /// What they are.
        presented: Vec<String>,
    },
    /// It is none of those that are pinned.
    Hash,
    /// It is no certificate that a SPIFFE workload may have.
    NoSvid,
    /// Its SPIFFE trust domain is not known.
    TrustDomain,
    /// None of its SPIFFE names will do.
    SpiffeName,
}

impl VerifyFailure {
    fn is(&self, wanted: &CertificateError) -> bool {
        matches!(self, VerifyFailure::Chain { error, .. } if error == wanted)
    }
}

impl fmt::Display for VerifyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("verify cert failed: ")?;
        match self {
            VerifyFailure::Empty => f.write_str("empty cert chain"),
            VerifyFailure::Chain { depth, text, .. } => {
                write!(f, "X509_verify_cert: certificate verification error at depth {depth}: {text}")
            }
            VerifyFailure::Name { presented } => {
                write!(f, "SAN matcher, certificate SANs are [{}]", presented.join(", "))
            }
            VerifyFailure::NameList { expected, presented } => {
                let (expected, presented) = (expected.join(", "), presented.join(", "));
                write!(f, "verify SAN list, expected SANs: [{expected}], certificate SANs: [{presented}]")
            }
            VerifyFailure::Hash => f.write_str("cert hash and spki"),
            VerifyFailure::NoSvid => f.write_str("cert precheck"),
            VerifyFailure::TrustDomain => f.write_str("no trust bundle store"),
            VerifyFailure::SpiffeName => f.write_str("SAN match"),
        }
    }
}

/// The TLS library shows errors that it does not know in this form.
impl fmt::Debug for VerifyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for VerifyFailure {}

impl From<VerifyFailure> for Error {
    /// In the form that has the library send the alert that belongs to it. Its own kinds of errors carry no words:
    /// those are kept aside for [`reason`].
    fn from(failure: VerifyFailure) -> Self {
        let error = match &failure {
            VerifyFailure::Chain { error, .. } => error.clone(),
            _ => return Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(failure)))),
        };
        LAST.set(Some(failure));
        Error::InvalidCertificate(error)
    }
}

thread_local! {
    /// What the verifier found last. A handshake that fails for it is told of in the same turn of its thread.
    static LAST: Cell<Option<VerifyFailure>> = const { Cell::new(None) };
}

/// BoringSSL's library number of TLS, in the place that its error codes have it.
const LIBRARY: u32 = 16 << 24;

/// Envoy's transport failure reason of a connection that TLS broke after its handshake.
pub fn of_stream(stream: &Stream) -> Option<String> {
    stream.tls()?.failure().map(|error| reason(&HandshakeError::Tls(error)))
}

/// Envoy's transport failure reason; empty where the peer only went away.
pub fn reason(error: &HandshakeError) -> String {
    let HandshakeError::Tls(error) = error else { return String::new() };
    let (code, name, more): (u32, &str, Option<String>) = match error {
        Error::InvalidCertificate(error) => {
            let text = match error {
                CertificateError::Other(other) => other.to_string(),
                other => match LAST.take() {
                    Some(last) if last.is(other) => last.to_string(),
                    _ => VerifyFailure::Chain { depth: 0, text: plain(other), error: other.clone() }
                        .to_string(),
                },
            };
            (125, "CERTIFICATE_VERIFY_FAILED", Some(text))
        }
        Error::NoCertificatesPresented => {
            let text = "peer did not provide required client certificate";
            (192, "PEER_DID_NOT_RETURN_A_CERTIFICATE", Some(text.to_owned()))
        }
        Error::AlertReceived(alert) => {
            let (number, name) = alert_name(*alert);
            (1000 + number, name, None)
        }
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => (247, "WRONG_VERSION_NUMBER", None),
        Error::PeerIncompatible(why) => match why {
            PeerIncompatible::NoCipherSuitesInCommon => (184, "NO_SHARED_CIPHER", None),
            PeerIncompatible::NoKxGroupsInCommon => (187, "NO_SHARED_GROUP", None),
            PeerIncompatible::NoSignatureSchemesInCommon
            | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => {
                (253, "NO_COMMON_SIGNATURE_ALGORITHMS", None)
            }
            _ => (240, "UNSUPPORTED_PROTOCOL", None),
        },
        Error::NoApplicationProtocol => (307, "NO_APPLICATION_PROTOCOL", None),
        Error::DecryptError => (137, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC", None),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            (223, "UNEXPECTED_MESSAGE", None)
        }
        Error::InvalidMessage(_) | Error::PeerMisbehaved(_) => (137, "DECODE_ERROR", None),
        _ => (68, "INTERNAL_ERROR", None),
    };
    let more = more.map(|text| format!(":{text}")).unwrap_or_default();
    format!("TLS_error:|{}:SSL routines:OPENSSL_internal:{name}{more}:TLS_error_end", LIBRARY | code)
}

/// What BoringSSL says of a revoked certificate, and Envoy before it.
pub(super) const REVOKED: &str =
    "certificate revocation check against provided CRLs failed: certificate revoked";

fn plain(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::BadSignature => "certificate signature failure",
        CertificateError::Expired => "certificate has expired",
        CertificateError::NotValidYet => "certificate is not yet valid",
        CertificateError::Revoked => REVOKED,
        CertificateError::UnknownIssuer => "unable to get local issuer certificate",
        CertificateError::UnknownRevocationStatus => "unable to get certificate CRL",
        CertificateError::ExpiredRevocationList => "CRL has expired",
        CertificateError::InvalidPurpose => "unsupported certificate purpose",
        _ => "unspecified certificate verification error",
    }
}

fn alert_name(alert: AlertDescription) -> (u32, &'static str) {
    let name = match alert {
        AlertDescription::CloseNotify => "SSLV3_ALERT_CLOSE_NOTIFY",
        AlertDescription::UnexpectedMessage => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        AlertDescription::BadRecordMac => "SSLV3_ALERT_BAD_RECORD_MAC",
        AlertDescription::RecordOverflow => "TLSV1_ALERT_RECORD_OVERFLOW",
        AlertDescription::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        AlertDescription::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
        AlertDescription::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        AlertDescription::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        AlertDescription::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        AlertDescription::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        AlertDescription::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        AlertDescription::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
        AlertDescription::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
        AlertDescription::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
        AlertDescription::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
        AlertDescription::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
        AlertDescription::InsufficientSecurity => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        AlertDescription::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
        AlertDescription::UserCanceled => "TLSV1_ALERT_USER_CANCELLED",
        AlertDescription::UnsupportedExtension => "TLSV1_ALERT_UNSUPPORTED_EXTENSION",
        AlertDescription::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        AlertDescription::UnknownPSKIdentity => "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
        AlertDescription::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        AlertDescription::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        _ => "SSLV3_ALERT_UNKNOWN",
    };
    (u32::from(u8::from(alert)), name)
}
