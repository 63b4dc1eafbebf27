//! Whom a peer has to be: `CertificateValidationContext`, and its verdict on a certificate chain.
//!
//! The chain is verified without any name; names are compared afterwards by Envoy's rules, because the
//! certificates of a mesh carry the name of a workload and none of a host.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{digest, SHA256};
use tokio_rustls::rustls;
use webpki::{
    anchor_from_trusted_cert, BorrowedCertRevocationList, CertRevocationList, EndEntityCert,
    ExpirationPolicy, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use rustls::{CertificateError, DistinguishedName};

use super::failure::VerifyFailure;
use super::names::{is_name, names, NameMatcher};
use super::stats::SslCounters;

/// What a peer's certificate has to be. Fields are those of `CertificateValidationContext`.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    /// Who may sign certificates; `None` = the chain is not verified.
    pub roots: Option<Arc<Roots>>,
    /// Names of which the certificate must have one; empty = any.
    pub names: Vec<NameMatcher>,
    /// SHA-256 of certificates that will do.
    pub hashes: Vec<[u8; 32]>,
    /// SHA-256 of public keys (SubjectPublicKeyInfo) that will do.
    pub spkis: Vec<[u8; 32]>,
    /// Revocation lists: of every certificate in the chain the issuer must have one here.
    pub crls: Option<Arc<Crls>>,
    /// Only the peer's own certificate needs a revocation list.
    pub leaf_crl_only: bool,
    /// Whatever is found is counted and has no consequence (`ACCEPT_UNTRUSTED`).
    pub accept_untrusted: bool,
    /// Certificates may be out of date.
    pub allow_expired: bool,
    /// Most certificates between the peer's own and the trusted one. Default 100.
    pub max_depth: Option<u32>,
    /// Clients are not told whose certificates are trusted.
    pub suppress_ca_list: bool,
}

/// Trusted certificates.
pub struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    certificates: Vec<CertificateDer<'static>>,
    subjects: Vec<DistinguishedName>,
}

/// Revocation lists.
pub struct Crls(Vec<CertRevocationList<'static>>);

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} trusted certificates", self.anchors.len())
    }
}

impl std::fmt::Debug for Crls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} revocation lists", self.0.len())
    }
}

impl Roots {
    /// These certificates are trusted.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        let mut anchors = Vec::with_capacity(certificates.len());
        for certificate in &certificates {
            let anchor = anchor_from_trusted_cert(certificate)
                .map_err(|error| format!("holds a certificate that cannot be trusted: {error}"))?;
            anchors.push(anchor.to_owned());
        }
        let subjects = anchors.iter().map(|anchor| DistinguishedName::in_sequence(&anchor.subject)).collect();
        Ok(Self { anchors, certificates, subjects })
    }

    /// What the system trusts; certificates that cannot be used are left out.
    pub fn system() -> Self {
        let mut roots = Self { anchors: Vec::new(), certificates: Vec::new(), subjects: Vec::new() };
        for certificate in rustls_native_certs::load_native_certs().certs {
            if let Ok(anchor) = anchor_from_trusted_cert(&certificate) {
                roots.subjects.push(DistinguishedName::in_sequence(&anchor.subject));
                roots.anchors.push(anchor.to_owned());
            }
        }
        roots
    }

    /// Their names.
    pub fn subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }
}

impl Crls {
    /// These lists count.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn new(lists: &[CertificateRevocationListDer<'static>]) -> Result<Self, String> {
        let parsed: Result<Vec<_>, _> = lists
            .iter()
            .map(|list| BorrowedCertRevocationList::from_der(list).and_then(|list| list.to_owned()))
            .collect();
        let lists: Vec<OwnedCertRevocationList> =
            parsed.map_err(|error| format!("holds a revocation list that cannot be used: {error}"))?;
        Ok(Self(lists.into_iter().map(Into::into).collect()))
    }
}

/// Names that the server meant has.
#[derive(Debug, Clone, Default)]
pub struct ExpectedNames {
    /// Its certificate must have one of them; empty = any will do.
    pub names: Vec<Box<str>>,
    /// It is the request that says so, and not the context's own server name.
    pub by_request: bool,
}

/// What the peer is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It presents a server's certificate.
    Server,
    /// It presents a client's certificate.
    Client,
}

/// BoringSSL's own limit.
const MAX_DEPTH: u32 = 100;

impl Validation {
    /// As protobuf merges messages: what `later` sets counts, lists are joined.
    pub fn merged(&self, later: &Self) -> Self {
        let join = |one: &[[u8; 32]], two: &[[u8; 32]]| [one, two].concat();
        Self {
            roots: later.roots.clone().or_else(|| self.roots.clone()),
            names: self.names.iter().chain(&later.names).cloned().collect(),
            hashes: join(&self.hashes, &later.hashes),
            spkis: join(&self.spkis, &later.spkis),
            crls: later.crls.clone().or_else(|| self.crls.clone()),
            leaf_crl_only: self.leaf_crl_only | later.leaf_crl_only,
            accept_untrusted: self.accept_untrusted | later.accept_untrusted,
            allow_expired: self.allow_expired | later.allow_expired,
            max_depth: later.max_depth.or(self.max_depth),
            suppress_ca_list: self.suppress_ca_list | later.suppress_ca_list,
        }
    }

    /// Whether it says anything about certificates.
    pub fn is_active(&self) -> bool {
        self.roots.is_some() || self.is_pinned()
    }

    /// Whether only certain certificates will do, whoever signed them.
    pub fn is_pinned(&self) -> bool {
        !self.hashes.is_empty() || !self.spkis.is_empty()
    }

    /// Verifies `chain`, the peer's own certificate first. `also` are names of which it must have one besides.
    ///
    /// # Errors
    /// Why it will not do; counted in `stats`.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        also: &ExpectedNames,
        now: UnixTime,
        algorithms: WebPkiSupportedAlgorithms,
        stats: &SslCounters,
    ) -> Result<(), VerifyFailure> {
        if let Err(failure) = self.verify_chain(chain, role, now, algorithms) {
            stats.fail_verify_error.increment(1);
            return if self.accept_untrusted { Ok(()) } else { Err(failure) };
        }
        let Some(leaf) = chain.first() else { return Ok(()) };
        let checked = self.verify_leaf(leaf, also, stats);
        if self.accept_untrusted {
            return Ok(());
        }
        checked
    }

    fn verify_leaf(
        &self,
        leaf: &CertificateDer<'_>,
        also: &ExpectedNames,
        stats: &SslCounters,
    ) -> Result<(), VerifyFailure> {
        if !also.names.is_empty() || !self.names.is_empty() {
            let wrong = |presented: Vec<(_, String)>| VerifyFailure::Name {
                presented: presented.into_iter().map(|(_, text)| text).collect(),
            };
            let presented = names(leaf);
            let listed =
                |(kind, text): &(_, String)| also.names.iter().any(|wanted| is_name(*kind, text, wanted));
            if !also.names.is_empty() && !presented.iter().any(listed) {
                stats.fail_verify_san.increment(1);
                return Err(if also.by_request { VerifyFailure::NameList } else { wrong(presented) });
            }
            let fits = |(kind, text): &(_, String)| self.names.iter().any(|name| name.matches(*kind, text));
            if !self.names.is_empty() && !presented.iter().any(fits) {
                stats.fail_verify_san.increment(1);
                return Err(wrong(presented));
            }
        }
        if self.is_pinned() {
            let known = |list: &[[u8; 32]], bytes: &[u8]| {
                let hash = digest(&SHA256, bytes);
                list.iter().any(|pin| pin.as_slice() == hash.as_ref())
            };
            let by_key = || match x509_parser::parse_x509_certificate(leaf) {
                Ok((_, parsed)) => known(&self.spkis, parsed.public_key().raw),
                Err(_) => false,
            };
            if !known(&self.hashes, leaf) && !by_key() {
                stats.fail_verify_cert_hash.increment(1);
                return Err(VerifyFailure::Hash);
            }
        }
        Ok(())
    }

    fn verify_chain(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<(), VerifyFailure> {
        let Some(roots) = &self.roots else { return Ok(()) };
        let Some((leaf, intermediates)) = chain.split_first() else { return Err(VerifyFailure::Empty) };
        // A certificate that is itself trusted needs nobody to sign it.
        if roots.certificates.iter().any(|trusted| trusted == leaf) {
            return match (out_of_date(chain.get(..1).unwrap_or_default(), now), self.allow_expired) {
                (Some(failure), false) => Err(failure),
                _ => Ok(()),
            };
        }
        let result = self.path(roots, leaf, intermediates, role, now, algorithms);
        let result = match result {
            Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. })
                if self.allow_expired =>
            {
                match common_time(chain) {
                    Some(time) => self.path(roots, leaf, intermediates, role, time, algorithms),
                    None => result,
                }
            }
            result => result,
        };
        result.map_err(|error| failure_of(&error, chain, now))
    }

    fn path(
        &self,
        roots: &Roots,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<(), webpki::Error> {
        let certificate = EndEntityCert::try_from(leaf)?;
        let lists: Vec<&CertRevocationList<'_>> = self.crls.iter().flat_map(|crls| &crls.0).collect();
        let depth =
            if self.leaf_crl_only { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            builder
                .with_depth(depth)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let usage = match role {
            Role::Server => KeyUsage::server_auth(),
            Role::Client => KeyUsage::client_auth(),
        };
        let most = usize::try_from(self.max_depth.unwrap_or(MAX_DEPTH)).unwrap_or(usize::MAX);
        let short_enough = |path: &webpki::VerifiedPath<'_>| {
            if path.intermediate_certificates().count() > most {
                return Err(webpki::Error::MaximumPathDepthExceeded);
            }
            Ok(())
        };
        let verified = certificate.verify_for_usage(
            algorithms.all,
            &roots.anchors,
            intermediates,
            now,
            usage,
            revocation,
            Some(&short_enough),
        );
        verified.map(drop)
    }
}

/// Beginning and end of a certificate's validity, in seconds of Unix time.
fn validity(certificate: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some((parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp()))
}

/// A time at which all of the chain was valid.
fn common_time(chain: &[CertificateDer<'_>]) -> Option<UnixTime> {
    let mut begin = i64::MIN;
    let mut end = i64::MAX;
    for certificate in chain {
        let (from, to) = validity(certificate)?;
        begin = begin.max(from);
        end = end.min(to);
    }
    let seconds = u64::try_from(begin).ok().filter(|_| begin <= end)?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

/// What is wrong with the dates of a chain, from its trusted end on.
fn out_of_date(chain: &[CertificateDer<'_>], now: UnixTime) -> Option<VerifyFailure> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    chain.iter().enumerate().rev().find_map(|(depth, certificate)| {
        let (from, to) = validity(certificate)?;
        let (text, error) = if now < from {
            ("certificate is not yet valid", CertificateError::NotValidYet)
        } else if now > to {
            ("certificate has expired", CertificateError::Expired)
        } else {
            return None;
        };
        Some(VerifyFailure::Chain { depth, text, error })
    })
}

/// An error of the library in the words of BoringSSL.
fn failure_of(error: &webpki::Error, chain: &[CertificateDer<'_>], now: UnixTime) -> VerifyFailure {
    use webpki::Error;
    let top = chain.len().saturating_sub(1);
    let (depth, text, error) = match error {
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } | Error::InvalidCertValidity => {
            return out_of_date(chain, now).unwrap_or(VerifyFailure::Chain {
                depth: top + 1,
                text: "certificate has expired",
                error: CertificateError::Expired,
            });
        }
        Error::UnknownIssuer | Error::CaUsedAsEndEntity => {
            let own = chain.last().is_some_and(is_self_signed);
            let text = match (own, top) {
                (true, 0) => "self signed certificate",
                (true, _) => "self signed certificate in certificate chain",
                (false, _) => "unable to get local issuer certificate",
            };
            (top, text, CertificateError::UnknownIssuer)
        }
        Error::CertRevoked => (0, super::failure::REVOKED, CertificateError::Revoked),
        Error::UnknownRevocationStatus => {
            (0, "unable to get certificate CRL", CertificateError::UnknownRevocationStatus)
        }
        Error::CrlExpired { .. } => (0, "CRL has expired", CertificateError::ExpiredRevocationList),
        Error::InvalidCrlSignatureForPublicKey => {
            (0, "CRL signature failure", CertificateError::UnknownRevocationStatus)
        }
        Error::InvalidSignatureForPublicKey => {
            (top, "certificate signature failure", CertificateError::BadSignature)
        }
        Error::RequiredEkuNotFoundContext(_) => {
            (0, "unsupported certificate purpose", CertificateError::InvalidPurpose)
        }
        Error::NameConstraintViolation => (0, "permitted subtree violation", CertificateError::UnknownIssuer),
        Error::PathLenConstraintViolated => {
            (top, "path length constraint exceeded", CertificateError::UnknownIssuer)
        }
        Error::EndEntityUsedAsCa => (top, "invalid CA certificate", CertificateError::UnknownIssuer),
        Error::MaximumPathDepthExceeded => {
            (top, "certificate chain too long", CertificateError::UnknownIssuer)
        }
        Error::UnsupportedCriticalExtension => {
            (0, "unhandled critical extension", CertificateError::UnhandledCriticalExtension)
        }
        _ => (0, "unspecified certificate verification error", CertificateError::BadEncoding),
    };
    VerifyFailure::Chain { depth, text, error }
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, parsed)| parsed.subject().as_raw() == parsed.issuer().as_raw())
}
