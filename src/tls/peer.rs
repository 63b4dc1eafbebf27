//! Who the peer of a TLS connection is, and what was agreed on with it: what logs and headers tell.
//!
//! Certificates are parsed when somebody asks. A mesh has few identities and many connections: all connections of
//! a worker whose peers present the same chain share one [`Peer`].

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{digest, Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use tokio_rustls::rustls::pki_types::CertificateDer;
use xxhash_rust::xxh64::xxh64;

use super::identity::Identity;
use super::name::{hex, rfc2253};
use super::names::names_of;
use super::params::{group_name, suite_name, version_name};
use crate::config::discovery::SanKind;
use crate::runtime::tls_stream::TlsStream;

/// A TLS connection as logs see it.
#[derive(Debug)]
pub struct TlsInfo {
    /// `TLSv1.3`.
    pub version: &'static str,
    /// As BoringSSL spells it.
    pub cipher: &'static str,
    /// Of the key exchange, as BoringSSL spells it; empty where there was none.
    pub group: &'static str,
    /// Who the peer is; `None` if it presented no certificate.
    pub peer: Option<Rc<Peer>>,
    /// What we presented.
    pub local: Option<Arc<Identity>>,
    /// The peer's certificate was accepted whatever it is (`ACCEPT_UNTRUSTED`).
    pub lenient: bool,
}

impl TlsInfo {
    /// Of a connection whose handshake is over.
    pub fn new(stream: &TlsStream, local: Option<Arc<Identity>>) -> Self {
        let (version, cipher, group) = stream.agreed(|state| {
            (
                state.protocol_version().map_or("", version_name),
                state.negotiated_cipher_suite().map_or("", |suite| suite_name(suite.suite())),
                state.negotiated_key_exchange_group().map_or("", |group| group_name(group.name())),
            )
        });
        Self { version, cipher, group, peer: stream.with_peer(Peer::of), local, lenient: false }
    }

    /// Whether the peer has a certificate that was verified.
    pub fn is_verified(&self) -> bool {
        self.peer.is_some() && !self.lenient
    }

    /// What our certificate says.
    pub fn local_facts(&self) -> Option<&Facts> {
        self.local.as_ref().map(|identity| identity.facts())
    }

    /// What the peer's certificate says.
    pub fn peer_facts(&self) -> Option<&Facts> {
        self.peer.as_ref().map(|peer| peer.facts())
    }
}

/// A peer's certificates, its own first; never empty.
pub struct Peer {
    chain: Vec<CertificateDer<'static>>,
    facts: OnceCell<Facts>,
    pem: OnceCell<String>,
    chain_pem: OnceCell<String>,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peer({})", self.facts().subject)
    }
}

/// What a certificate says.
#[derive(Debug, Default)]
pub struct Facts {
    /// Subject alternative names, in their order.
    pub names: Vec<(SanKind, String)>,
    /// RFC 2253.
    pub subject: String,
    /// RFC 2253.
    pub issuer: String,
    /// Lower-case hexadecimal digits.
    pub serial: String,
    /// Hash of the whole certificate, in lower-case hexadecimal digits.
    pub sha256: String,
    /// As `sha256`.
    pub sha1: String,
    /// When it begins to be valid.
    pub not_before: Option<SystemTime>,
    /// When it ends to be valid.
    pub not_after: Option<SystemTime>,
}

impl Facts {
    /// Of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let hash = |algorithm: &'static Algorithm| hex_of(digest(algorithm, certificate).as_ref());
        let hashes = Self { sha256: hash(&SHA256), sha1: hash(&SHA1_FOR_LEGACY_USE_ONLY), ..Self::default() };
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return hashes };
        let time = |seconds: i64| {
            let after = u64::try_from(seconds).ok()?;
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(after))
        };
        let serial = parsed.raw_serial();
        let zeros = serial.iter().take_while(|byte| **byte == 0).count().min(serial.len().saturating_sub(1));
        Self {
            names: names_of(&parsed),
            subject: rfc2253(parsed.subject()),
            issuer: rfc2253(parsed.issuer()),
            serial: hex_of(serial.get(zeros..).unwrap_or_default()),
            not_before: time(parsed.validity().not_before.timestamp()),
            not_after: time(parsed.validity().not_after.timestamp()),
            ..hashes
        }
    }

    /// Names of one kind.
    pub fn of_kind(&self, kind: SanKind) -> impl Iterator<Item = &str> {
        self.names.iter().filter(move |(own, _)| *own == kind).map(|(_, name)| name.as_str())
    }
}

fn hex_of(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    bytes.iter().for_each(|byte| hex(*byte, &mut out));
    out
}

impl Identity {
    /// What the certificate says.
    pub fn facts(&self) -> &Facts {
        self.facts.get_or_init(|| self.key.cert.first().map(Facts::of).unwrap_or_default())
    }
}

/// Where [`Identity`] keeps its facts.
pub(super) type KeptFacts = OnceLock<Facts>;

thread_local! {
    static PEERS: RefCell<HashMap<u64, Weak<Peer>>> = RefCell::default();
}
/// Entries after which those of peers that are gone are looked for.
const SWEEP_AT: usize = 64;

impl Peer {
    /// The peer with this chain; `None` if that is empty.
    pub fn of(chain: &[CertificateDer<'static>]) -> Option<Rc<Self>> {
        let key = chain.iter().fold(chain.len() as u64, |hash, part| xxh64(part, hash));
        PEERS.with_borrow_mut(|peers| {
            // Equal hashes prove nothing.
            if let Some(known) = peers.get(&key).and_then(Weak::upgrade).filter(|peer| peer.chain == chain) {
                return Some(known);
            }
            let peer = Rc::new(Self {
                chain: (!chain.is_empty()).then(|| chain.to_vec())?,
                facts: OnceCell::new(),
                pem: OnceCell::new(),
                chain_pem: OnceCell::new(),
            });
            if peers.len() >= SWEEP_AT && peers.len().is_power_of_two() {
                peers.retain(|_, peer| peer.strong_count() > 0);
            }
            peers.insert(key, Rc::downgrade(&peer));
            Some(peer)
        })
    }

    /// Its certificates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// What its own certificate says.
    pub fn facts(&self) -> &Facts {
        self.facts.get_or_init(|| self.chain.first().map(Facts::of).unwrap_or_default())
    }

    /// Its own certificate, PEM with URL encoding.
    pub fn pem(&self) -> &str {
        self.pem.get_or_init(|| encoded(self.chain.get(..1).unwrap_or_default()))
    }

    /// All of its certificates, PEM with URL encoding.
    pub fn chain_pem(&self) -> &str {
        self.chain_pem.get_or_init(|| encoded(&self.chain))
    }
}

fn encoded(certificates: &[CertificateDer<'_>]) -> String {
    let mut out = String::new();
    for certificate in certificates {
        out.push_str("-----BEGIN%20CERTIFICATE-----%0A");
        for line in base64(certificate).as_bytes().chunks(64) {
            for byte in line {
                match byte {
                    b'+' => out.push_str("%2B"),
                    b'/' => out.push_str("%2F"),
                    b'=' => out.push_str("%3D"),
                    byte => out.push(char::from(*byte)),
                }
            }
            out.push_str("%0A");
        }
        out.push_str("-----END%20CERTIFICATE-----%0A");
    }
    out
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4usize {
            let digit = (word >> (18 - 6 * place)) & 63;
            let digit = DIGITS.get(digit as usize).copied().unwrap_or(b'A');
            out.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, wanted) in cases {
            assert_eq!(base64(plain.as_bytes()), wanted);
        }
    }

    #[test]
    fn equal_chains_are_one_peer() {
        let chain = |text: &str| vec![CertificateDer::from(text.as_bytes().to_vec())];
        let one = Peer::of(&chain("a")).unwrap();
        assert!(Rc::ptr_eq(&one, &Peer::of(&chain("a")).unwrap()));
        assert!(!Rc::ptr_eq(&one, &Peer::of(&chain("b")).unwrap()));
        assert!(Peer::of(&[]).is_none());
    }
}
