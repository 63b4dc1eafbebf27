//! Whom a peer has to be: `CertificateValidationContext`, and its verdict on a certificate chain.
//!
//! The chain is verified without any name; names are compared afterwards by Envoy's rules, because the
//! certificates of a mesh carry the name of a workload and none of a host.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

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
use super::peer::Facts;
use super::spiffe::TrustDomains;
use super::stats::SslCounters;
use crate::config::discovery::SanKind;

/// What a peer's certificate has to be. Fields are those of `CertificateValidationContext`.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    /// Who may sign certificates; `None` = the chain is not verified.
    pub roots: Option<Arc<Roots>>,
    /// The file that `roots` are from, or `<inline>`.
    pub path: Box<str>,
    /// Who may sign certificates by their trust domain, in place of `roots`.
    pub domains: Option<Arc<TrustDomains>>,
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
    /// When the first of `certificates` expires.
    end: Option<SystemTime>,
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
        let end = certificates.iter().filter_map(|certificate| Facts::of(certificate).not_after).min();
        Ok(Self { anchors, certificates, subjects, end })
    }

    /// What the system trusts; certificates that cannot be used are left out.
    pub fn system() -> Self {
        let mut roots =
            Self { anchors: Vec::new(), certificates: Vec::new(), subjects: Vec::new(), end: None };
        for certificate in rustls_native_certs::load_native_certs().certs {
            if let Ok(anchor) = anchor_from_trusted_cert(&certificate) {
                roots.subjects.push(DistinguishedName::in_sequence(&anchor.subject));
                roots.anchors.push(anchor.to_owned());
            }
        }
        roots
    }

    /// Themselves, but for the system's.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// When the first of them expires.
    pub fn end(&self) -> Option<SystemTime> {
        self.end
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

/// What chains are verified by.
struct Signers<'v> {
    roots: &'v Roots,
    crls: Option<&'v Crls>,
    role: Role,
    algorithms: WebPkiSupportedAlgorithms,
}

/// BoringSSL's own limit.
const MAX_DEPTH: u32 = 100;

impl Validation {
    /// As protobuf merges messages: what `later` sets counts, lists are joined.
    pub fn merged(&self, later: &Self) -> Self {
        let join = |one: &[[u8; 32]], two: &[[u8; 32]]| [one, two].concat();
        Self {
            roots: later.roots.clone().or_else(|| self.roots.clone()),
            path: if later.roots.is_some() { later.path.clone() } else { self.path.clone() },
            domains: later.domains.clone().or_else(|| self.domains.clone()),
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
        self.is_rooted() || self.is_pinned()
    }

    /// Whether anything will do. As Envoy's, a validator of trust domains knows no lenience.
    pub fn is_lenient(&self) -> bool {
        self.accept_untrusted && self.domains.is_none()
    }

    /// Whether chains are verified.
    pub fn is_rooted(&self) -> bool {
        self.roots.is_some() || self.domains.is_some()
    }

    /// The names of those who may sign.
    pub fn subjects(&self) -> &[DistinguishedName] {
        match (&self.domains, &self.roots) {
            (Some(domains), _) => domains.subjects(),
            (None, Some(roots)) => roots.subjects(),
            (None, None) => &[],
        }
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
        let lenient = self.is_lenient();
        if let Err(failure) = self.verify_chain(chain, role, now, algorithms) {
            stats.fail_verify_error.increment(1);
            return if lenient { Ok(()) } else { Err(failure) };
        }
        let Some(leaf) = chain.first() else { return Ok(()) };
        if self.domains.is_some() {
            return self.verify_spiffe_name(leaf, stats);
        }
        let checked = self.verify_leaf(leaf, also, stats);
        if lenient {
            return Ok(());
        }
        checked
    }

    /// As Envoy: of the names that will do those of other kinds, and what the request says, are not looked at.
    fn verify_spiffe_name(
        &self,
        leaf: &CertificateDer<'_>,
        stats: &SslCounters,
    ) -> Result<(), VerifyFailure> {
        let is_uri = |name: &&NameMatcher| name.kind.is_none_or(|kind| kind == SanKind::Uri);
        let wanted: Vec<_> = self.names.iter().filter(is_uri).collect();
        let presented = names(leaf);
        let fits = |(kind, text): &(SanKind, String)| {
            *kind == SanKind::Uri && wanted.iter().any(|name| name.matches(*kind, text))
        };
        if wanted.is_empty() || presented.iter().any(fits) {
            return Ok(());
        }
        stats.fail_verify_san.increment(1);
        Err(VerifyFailure::SpiffeName)
    }

    fn verify_leaf(
        &self,
        leaf: &CertificateDer<'_>,
        also: &ExpectedNames,
        stats: &SslCounters,
    ) -> Result<(), VerifyFailure> {
        if !also.names.is_empty() || !self.names.is_empty() {
            let texts = |presented: Vec<(_, String)>| presented.into_iter().map(|(_, text)| text).collect();
            let wrong = |presented| VerifyFailure::Name { presented: texts(presented) };
            let presented = names(leaf);
            let listed =
                |(kind, text): &(_, String)| also.names.iter().any(|wanted| is_name(*kind, text, wanted));
            if !also.names.is_empty() && !presented.iter().any(listed) {
                stats.fail_verify_san.increment(1);
                if !also.by_request {
                    return Err(wrong(presented));
                }
                let expected = also.names.iter().map(ToString::to_string).collect();
                return Err(VerifyFailure::NameList { expected, presented: texts(presented) });
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
        if !self.is_rooted() {
            return Ok(());
        }
        let Some((leaf, intermediates)) = chain.split_first() else { return Err(VerifyFailure::Empty) };
        let (roots, crls) = match (&self.domains, &self.roots) {
            (Some(domains), _) => {
                let bundle = domains.bundle_of(leaf)?;
                (&*bundle.roots, &bundle.crls)
            }
            (None, Some(roots)) => (&**roots, &self.crls),
            (None, None) => return Ok(()),
        };
        let signers = Signers { roots, crls: crls.as_deref(), role, algorithms };
        // A certificate that is itself trusted needs nobody to sign it.
        if roots.certificates.iter().any(|trusted| trusted == leaf) {
            return match (out_of_date(chain.get(..1).unwrap_or_default(), now), self.allow_expired) {
                (Some(failure), false) => Err(failure),
                _ => Ok(()),
            };
        }
        let result = self.path(&signers, leaf, intermediates, now);
        let result = match result {
            Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. })
                if self.allow_expired =>
            {
                match common_time(chain) {
                    Some(time) => self.path(&signers, leaf, intermediates, time),
                    None => result,
                }
            }
            result => result,
        };
        result.map_err(|error| failure_of(&error, chain, now))
    }

    fn path(
        &self,
        &Signers { roots, crls, role, algorithms }: &Signers<'_>,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let certificate = EndEntityCert::try_from(leaf)?;
        let lists: Vec<&CertRevocationList<'_>> = crls.iter().flat_map(|crls| &crls.0).collect();
        let revoked =
            if self.leaf_crl_only { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            builder
                .with_depth(revoked)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let usage = match role {
            Role::Server => KeyUsage::server_auth(),
            Role::Client => KeyUsage::client_auth(),
        };
        // Of clients Envoy takes one less for a chain's length, but no less than none.
        let depth = match role {
            Role::Server => self.max_depth.unwrap_or(MAX_DEPTH),
            Role::Client => self.max_depth.map_or(MAX_DEPTH, |depth| depth.saturating_sub(1)),
        };
        let most = usize::try_from(depth).unwrap_or(usize::MAX);
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
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| {
        // As BoringSSL: one that may not sign certificates has not signed itself.
        let signs =
            parsed.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()));
        signs && parsed.subject().as_raw() == parsed.issuer().as_raw()
    })
}
