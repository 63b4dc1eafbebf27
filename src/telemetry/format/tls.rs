//! Operators that tell of TLS: each for the client's side and for the upstream's.

use std::rc::Rc;
use std::time::SystemTime;

use tokio_rustls::rustls::pki_types::CertificateDer;

use super::values::{put, Argument};
use crate::config::discovery::SanKind;
use crate::telemetry::stream_info::StreamInfo;
use crate::tls::peer::Facts;
use crate::tls::TlsInfo;

/// Whose connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Downstream,
    Upstream,
}

/// Whose certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Local,
    Peer,
}

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Names(Whose, SanKind),
    Subject(Whose),
    Issuer,
    Serial,
    /// Of the certificate above the peer's, if the peer sent that.
    IssuerSerial,
    IssuerFingerprint256,
    Fingerprint256,
    Fingerprint1,
    Cert,
    Version,
    Cipher,
    Group,
    /// Of all certificates of the chain.
    ChainFingerprints256,
    ChainFingerprints1,
    ChainSerials,
    /// When the peer's certificate begins and ends to be valid.
    Begin,
    End,
    /// There is no such value here.
    Never,
}

const OPERATORS: &[(&str, What)] = &[
    ("LOCAL_DNS_SAN", What::Names(Whose::Local, SanKind::Dns)),
    ("LOCAL_EMAIL_SAN", What::Names(Whose::Local, SanKind::Email)),
    ("LOCAL_IP_SAN", What::Names(Whose::Local, SanKind::Ip)),
    ("LOCAL_URI_SAN", What::Names(Whose::Local, SanKind::Uri)),
    ("LOCAL_SUBJECT", What::Subject(Whose::Local)),
    ("PEER_DNS_SAN", What::Names(Whose::Peer, SanKind::Dns)),
    ("PEER_EMAIL_SAN", What::Names(Whose::Peer, SanKind::Email)),
    ("PEER_IP_SAN", What::Names(Whose::Peer, SanKind::Ip)),
    ("PEER_URI_SAN", What::Names(Whose::Peer, SanKind::Uri)),
    ("PEER_SUBJECT", What::Subject(Whose::Peer)),
    ("PEER_ISSUER", What::Issuer),
    ("PEER_SERIAL", What::Serial),
    ("PEER_ISSUER_SERIAL", What::IssuerSerial),
    ("PEER_ISSUER_FINGERPRINT_256", What::IssuerFingerprint256),
    ("PEER_FINGERPRINT_256", What::Fingerprint256),
    ("PEER_FINGERPRINT_1", What::Fingerprint1),
    ("PEER_CERT", What::Cert),
    ("PEER_CERT_V_START", What::Begin),
    ("PEER_CERT_V_END", What::End),
    ("PEER_CHAIN_FINGERPRINTS_256", What::ChainFingerprints256),
    ("PEER_CHAIN_FINGERPRINTS_1", What::ChainFingerprints1),
    ("PEER_CHAIN_SERIALS", What::ChainSerials),
    ("TLS_VERSION", What::Version),
    ("TLS_CIPHER", What::Cipher),
    ("TLS_GROUP", What::Group),
    // The TLS library keeps these to itself, or certificates rarely have them.
    ("TLS_SESSION_ID", What::Never),
    ("LOCAL_OTHERNAME_SAN", What::Never),
    ("PEER_OTHERNAME_SAN", What::Never),
];

/// The operator `name`, and whether it takes an argument.
pub(super) fn operator(name: &str) -> Option<(Side, What, Argument)> {
    let down = name.strip_prefix("DOWNSTREAM_").map(|rest| (Side::Downstream, rest));
    let (side, rest) = down.or_else(|| name.strip_prefix("UPSTREAM_").map(|rest| (Side::Upstream, rest)))?;
    let (_, what) = OPERATORS.iter().find(|(known, _)| *known == rest)?;
    let argument = match what {
        What::Begin | What::End => Argument::Optional,
        _ => Argument::None,
    };
    Some((side, *what, argument))
}

fn info(side: Side, info: &StreamInfo) -> Option<&Rc<TlsInfo>> {
    match side {
        Side::Downstream => info.connection.tls.as_ref(),
        Side::Upstream => info.upstream_tls.as_ref(),
    }
}

/// The time that `what` names.
pub(super) fn time(side: Side, what: What, stream: &StreamInfo) -> Option<SystemTime> {
    let facts = info(side, stream)?.peer_facts()?;
    match what {
        What::Begin => facts.not_before,
        What::End => facts.not_after,
        _ => None,
    }
}

/// Appends the value; false when there is none.
pub(super) fn write(side: Side, what: What, stream: &StreamInfo, out: &mut Vec<u8>) -> bool {
    let Some(tls) = info(side, stream) else { return false };
    let facts = |whose| match whose {
        Whose::Local => tls.local_facts(),
        Whose::Peer => tls.peer_facts(),
    };
    let peer = |value: fn(&Facts) -> &str| facts(Whose::Peer).map(value);
    match what {
        What::Names(whose, kind) => list(facts(whose).into_iter().flat_map(|facts| facts.of_kind(kind)), out),
        What::Subject(whose) => put(out, facts(whose).map(|facts| facts.subject.as_str())),
        What::Issuer => put(out, peer(|facts| &facts.issuer)),
        What::Serial => put(out, peer(|facts| &facts.serial)),
        What::Fingerprint256 => put(out, peer(|facts| &facts.sha256)),
        What::Fingerprint1 => put(out, peer(|facts| &facts.sha1)),
        What::Cert => put(out, tls.peer.as_ref().map(|peer| peer.pem())),
        What::Version => put(out, Some(tls.version)),
        What::Cipher => put(out, Some(tls.cipher)),
        What::Group => put(out, Some(tls.group)),
        What::IssuerSerial => put(out, issuer(tls).map(|facts| facts.serial).as_deref()),
        What::IssuerFingerprint256 => put(out, issuer(tls).map(|facts| facts.sha256).as_deref()),
        What::ChainFingerprints256 => chain(tls, |facts| facts.sha256, out),
        What::ChainFingerprints1 => chain(tls, |facts| facts.sha1, out),
        What::ChainSerials => chain(tls, |facts| facts.serial, out),
        What::Begin | What::End | What::Never => false,
    }
}

/// What the certificate above the peer's says.
fn issuer(tls: &TlsInfo) -> Option<Facts> {
    tls.peer.as_ref()?.chain().get(1).map(Facts::of)
}

fn chain(tls: &TlsInfo, value: fn(Facts) -> String, out: &mut Vec<u8>) -> bool {
    let certificates: &[CertificateDer<'_>] = tls.peer.as_ref().map(|peer| peer.chain()).unwrap_or_default();
    let values: Vec<String> = certificates.iter().map(|certificate| value(Facts::of(certificate))).collect();
    list(values.iter().map(String::as_str), out)
}

fn list<'a>(values: impl Iterator<Item = &'a str>, out: &mut Vec<u8>) -> bool {
    let mut any = false;
    for value in values {
        if std::mem::replace(&mut any, true) {
            out.push(b',');
        }
        out.extend_from_slice(value.as_bytes());
    }
    any
}
