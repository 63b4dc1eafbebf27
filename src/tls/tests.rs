//! Verdicts on certificates, and contexts whose secrets come and go.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rcgen::{
    date_time_ymd, BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::downstream::{DownstreamError, DownstreamSpec, Resume, Trust};
use super::failure::VerifyFailure;
use super::identity::Identity;
use super::names::NameMatcher;
use super::params::Params;
use super::secret::Content;
use super::stats::{SslCounters, SslStats};
use super::upstream::{HostTls, Names, Purpose, UpstreamSpec};
use super::validation::{ExpectedNames, Role, Roots};
use super::{DownstreamTls, Secret, Secrets, Slot, UpstreamTls, Validation};
use crate::config::cluster::{Address, HostTemplate};
use crate::config::discovery::SanKind;
use crate::config::matcher::StringMatcher;
use crate::config::Host;
use crate::runtime::Stream;
use crate::telemetry::metrics::Scope;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn root() -> Issuer {
    CertifiedIssuer::self_signed(authority("root"), key()).unwrap()
}

fn leaf(issuer: &Issuer, until: i32) -> (CertificateDer<'static>, String, String) {
    let mut params = CertificateParams::new(["host.test".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI("spiffe://mesh/a".try_into().unwrap()));
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    let key = key();
    let certificate = params.signed_by(&key, issuer).unwrap();
    (certificate.der().clone(), certificate.pem(), key.serialize_pem())
}

fn trusting(certificates: &[&CertificateDer<'static>]) -> Validation {
    let roots = Roots::new(certificates.iter().map(|certificate| (*certificate).clone()).collect()).unwrap();
    Validation { roots: Some(Arc::new(roots)), ..Validation::default() }
}

/// In the year 2030.
fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_893_456_000))
}

fn verdict(validation: &Validation, chain: &[CertificateDer<'_>]) -> Result<(), VerifyFailure> {
    verdict_of(Role::Server, validation, chain)
}

fn verdict_of(
    role: Role,
    validation: &Validation,
    chain: &[CertificateDer<'_>],
) -> Result<(), VerifyFailure> {
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    let counters = SslCounters::new(&Scope::raw("tls_tests"));
    validation.verify(chain, role, &ExpectedNames::default(), now(), algorithms, &counters)
}

fn text(result: Result<(), VerifyFailure>) -> String {
    result.map_or_else(|failure| failure.to_string(), |()| "good".to_owned())
}

fn uri(exact: &str) -> NameMatcher {
    NameMatcher { kind: Some(SanKind::Uri), exact: Some(exact.into()), matcher: StringMatcher::exact(exact) }
}

#[test]
fn chains_and_their_lengths() {
    let root = root();
    let middle = CertifiedIssuer::signed_by(authority("middle"), key(), &root).unwrap();
    let (leaf, ..) = leaf(&middle, 2100);
    let whole = [leaf.clone(), middle.der().clone()];
    let trust = trusting(&[root.der()]);
    assert_eq!(text(verdict(&trust, &whole)), "good");
    let missing = text(verdict(&trust, &whole[..1]));
    assert!(missing.ends_with("at depth 0: unable to get local issuer certificate"), "{missing}");
    let of = |depth| Validation { max_depth: Some(depth), ..trust.clone() };
    assert!(verdict(&of(0), &whole).is_err());
    assert_eq!(text(verdict(&of(1), &whole)), "good");
    assert!(verdict_of(Role::Client, &of(1), &whole).is_err());
    assert_eq!(text(verdict_of(Role::Client, &of(2), &whole)), "good");
    // A certificate between may be trusted itself, and so may the peer's own.
    assert_eq!(text(verdict(&trusting(&[middle.der()]), &whole)), "good");
    assert_eq!(text(verdict(&trusting(&[&leaf]), &whole)), "good");
    assert_eq!(text(verdict(&Validation::default(), &whole)), "good");
}

#[test]
fn dates_count_unless_they_do_not() {
    let root = root();
    let (old, ..) = leaf(&root, 2020);
    let trust = trusting(&[root.der()]);
    let told = text(verdict(&trust, std::slice::from_ref(&old)));
    assert!(told.ends_with("at depth 0: certificate has expired"), "{told}");
    assert_eq!(
        text(verdict(&Validation { allow_expired: true, ..trust.clone() }, std::slice::from_ref(&old))),
        "good"
    );
    assert_eq!(
        text(verdict(&Validation { accept_untrusted: true, ..trust }, std::slice::from_ref(&old))),
        "good"
    );
    assert!(verdict(&trusting(&[&old]), std::slice::from_ref(&old)).is_err(), "trusted itself, but expired");
}

#[test]
fn names_and_pins() {
    let root = root();
    let (certificate, ..) = leaf(&root, 2100);
    let chain = [certificate.clone()];
    let trust = trusting(&[root.der()]);
    let named = |name: &str| Validation { names: vec![uri(name)], ..trust.clone() };
    assert_eq!(text(verdict(&named("spiffe://mesh/a"), &chain)), "good");
    assert_eq!(
        text(verdict(&named("spiffe://mesh/b"), &chain)),
        "verify cert failed: SAN matcher, certificate SANs are [host.test, spiffe://mesh/a]"
    );
    let pin = |hash: [u8; 32]| Validation { hashes: vec![hash], ..Validation::default() };
    let own = aws_lc_rs_digest(&certificate);
    assert_eq!(text(verdict(&pin(own), &chain)), "good");
    assert_eq!(text(verdict(&pin([0; 32]), &chain)), "verify cert failed: cert hash and spki");
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
    let spki = aws_lc_rs_digest(parsed.public_key().raw);
    let by_key = Validation { hashes: vec![[0; 32]], spkis: vec![spki], ..Validation::default() };
    assert_eq!(text(verdict(&by_key, &chain)), "good");
}

fn aws_lc_rs_digest(bytes: &[u8]) -> [u8; 32] {
    ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, bytes).as_ref().try_into().unwrap()
}

#[test]
fn a_secret_adds_to_what_config_says() {
    let root = root();
    let fixed = Validation { names: vec![uri("spiffe://mesh/a")], ..Validation::default() };
    let merged = fixed.merged(&trusting(&[root.der()]));
    assert!(merged.roots.is_some() && merged.names.len() == 1);
    let trust = Trust { fixed: Some(fixed), slot: None };
    assert!(super::downstream::merged(&trust, None).is_err(), "names without a CA prove nothing");
}

/// Client and server with what is in these slots.
async fn shake(
    server: &DownstreamTls,
    client: &UpstreamTls,
) -> (Result<(), DownstreamError>, Result<(), String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let far = TcpStream::connect(address).await.unwrap();
    let near = Stream::from(listener.accept().await.unwrap().0);
    let host = Host::new(Address::Ip(address), HostTemplate::default());
    let (names, kept) = (Names::default(), HostTls::default());
    let (accepted, connected) = tokio::join!(
        server.accept(near, BytesMut::new(), &[]),
        client.connect(far.into(), &host, &names, Purpose::Http1, &kept)
    );
    (accepted.map(drop), connected.map(drop))
}

#[tokio::test]
async fn contexts_wait_for_their_secrets_and_follow_them() {
    let secrets = Secrets::default();
    let (certificate, trusted) = (secrets.slot("own", "own"), secrets.slot("ca", "ca"));
    let stats = Arc::new(SslStats::server(&Scope::listener("tls_tests_contexts")));
    let spec = DownstreamSpec {
        params: Params::default(),
        certificates: vec![certificate.clone()],
        trust: Trust::default(),
        alpn: vec![b"http/1.1".to_vec()],
        require_client_certificate: false,
        require_sni: false,
        full_scan: false,
        prefer_client_ciphers: false,
        staples: crate::tls::ocsp::Policy::Lenient,
        resume: Resume::Tickets,
        session_timeout: None,
    };
    let server = DownstreamTls::new(spec, stats);
    let spec = UpstreamSpec {
        params: Params::default(),
        certificate: None,
        trust: Trust { fixed: None, slot: Some(trusted.clone()) },
        alpn: Vec::new(),
        sni: "host.test".into(),
        auto_host_sni: false,
        auto_sni_san_validation: true,
        max_session_keys: 1,
    };
    let client = UpstreamTls::new(spec, "tls_tests_contexts".into());
    assert!(!server.is_ready() && !client.is_ready());
    let (accepted, connected) = shake(&server, &client).await;
    assert!(matches!(accepted, Err(DownstreamError::NotReady)), "{accepted:?}");
    assert_eq!(connected.unwrap_err(), "TLS_error: Secret is not supplied by SDS");

    let (one, other) = (root(), root());
    let present = |issuer: &Issuer| {
        let (_, pem, key) = leaf(issuer, 2100);
        Secret::new(Content::Certificate(Arc::new(
            Identity::from_pem(pem.as_bytes(), key.as_bytes()).unwrap(),
        )))
    };
    let trust = |issuer: &Issuer| Secret::new(Content::Validation(Arc::new(trusting(&[issuer.der()]))));
    certificate.put(Some(present(&one)));
    trusted.put(Some(trust(&one)));
    let (accepted, connected) = shake(&server, &client).await;
    assert!(accepted.is_ok() && connected.is_ok(), "{accepted:?} {connected:?}");

    certificate.put(Some(present(&other)));
    let (accepted, connected) = shake(&server, &client).await;
    assert!(connected.unwrap_err().contains("CERTIFICATE_VERIFY_FAILED"));
    assert!(accepted.unwrap_err().to_string().contains("ALERT"));
    trusted.put(Some(trust(&other)));
    let (accepted, connected) = shake(&server, &client).await;
    assert!(accepted.is_ok() && connected.is_ok(), "{accepted:?} {connected:?}");

    // What nothing holds is forgotten.
    assert!(secrets.sweep().is_empty());
    drop((server, certificate));
    assert_eq!(secrets.sweep(), [Box::from("own")]);
}

#[test]
fn slots_show_no_secret() {
    let root = root();
    let (_, pem, key) = leaf(&root, 2100);
    let identity = Identity::from_pem(pem.as_bytes(), key.as_bytes()).unwrap();
    let slot = Slot::anonymous(Secret::new(Content::Certificate(Arc::new(identity))));
    let shown = format!("{slot:?}");
    assert!(shown.contains("host.test") && shown.len() < 400, "{shown}");
    let (_, error) = Identity::from_pem(
        pem.as_bytes(),
        b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----",
    )
    .unwrap_err();
    assert!(!error.contains("secret") && !error.contains("c2Vj"), "{error}");
}
