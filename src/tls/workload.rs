//! Identities from the SPIFFE Workload API, in place of SDS: what a workload is called, its certificates, and whom it
//! may trust (spiffe.io: Workload API, X509-SVID).
//!
//! Comes in: encoded `X509SVIDResponse`s. Goes out: secrets by the names that SPIRE gives them for Envoy: `default` and
//! SPIFFE IDs with a path are certificates, `ROOTCA` and trust domains (`spiffe://domain`) are trust, `ALL` is trust by
//! trust domain. An update counts as a whole or not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use tokio::sync::Notify;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use zeroize::Zeroize;

use super::identity::Identity;
use super::names::names_of;
use super::secret::{Content, Secret, Secrets, Slot};
use super::spiffe::{Bundle, TrustDomains};
use super::validation::{Crls, Roots, Validation};
use crate::config::cluster::Address;
use crate::config::discovery::SanKind;

/// The first certificate that the agent names.
const DEFAULT: &str = "default";
/// The trust domain of that.
const ROOT: &str = "ROOTCA";
/// All trust domains.
const ALL: &str = "ALL";
const SCHEME: &str = "spiffe://";

/// `X509SVIDResponse`.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    crl: Vec<Vec<u8>>,
    #[prost(map = "string, bytes", tag = "3")]
    federated_bundles: HashMap<String, Vec<u8>>,
}

/// `X509SVID`.
#[derive(Clone, PartialEq, Message)]
struct Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    /// Certificates in DER, one after the other, the workload's own first.
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    /// PKCS #8 in DER.
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    /// Certificates in DER, one after the other.
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}

/// Why an update is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// No such message.
    #[error("the response does not decode")]
    Malformed,
    /// It names nobody.
    #[error("the response has no X509-SVID")]
    None,
    /// One of the certificates is not what it has to be.
    #[error("the X509-SVID of {0:?}: {1}")]
    Svid(String, String),
    /// A bundle cannot be used.
    #[error("the bundle of {0:?}: {1}")]
    Bundle(String, String),
    /// The revocation lists cannot.
    #[error("the revocation lists: {0}")]
    Lists(String),
}

/// Why a text names no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no endpoint of a Workload API: unix:///PATH or tcp://IP:PORT")]
pub struct EndpointError(pub String);

/// The Workload API's secrets.
#[derive(Debug)]
pub struct Workload {
    /// Where the agent listens.
    pub endpoint: Address,
    secrets: Secrets,
    known: Mutex<Known>,
    /// Told when a secret is wanted that was not before.
    asked: Notify,
}

#[derive(Debug, Default)]
struct Known {
    wanted: BTreeSet<Box<str>>,
    secrets: BTreeMap<Box<str>, Arc<Secret>>,
}

impl Workload {
    /// Of the agent at `endpoint`, as `SPIFFE_ENDPOINT_SOCKET` has it.
    ///
    /// # Errors
    /// That is none.
    pub fn new(endpoint: &str) -> Result<Arc<Self>, EndpointError> {
        let wrong = || EndpointError(endpoint.to_owned());
        let address = match endpoint.split_once(':').ok_or_else(wrong)? {
            ("unix", path) => {
                let path = path.strip_prefix("//").unwrap_or(path);
                if !path.starts_with('/') || path.contains(['?', '#']) {
                    return Err(wrong());
                }
                Address::Pipe(PathBuf::from(path))
            }
            ("tcp", rest) => {
                let address = rest.strip_prefix("//").and_then(|address| address.parse::<SocketAddr>().ok());
                Address::Ip(address.ok_or_else(wrong)?)
            }
            _ => return Err(wrong()),
        };
        Ok(Arc::new(Self {
            endpoint: address,
            secrets: Secrets::default(),
            known: Mutex::default(),
            asked: Notify::new(),
        }))
    }

    /// The slot of the secret `name`: the same each time; `None` where there never is one of that name.
    pub fn slot(&self, name: &str) -> Option<Arc<Slot>> {
        let good = [DEFAULT, ROOT, ALL].contains(&name)
            || name.strip_prefix(SCHEME).is_some_and(|id| !id.is_empty());
        if !good {
            return None;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = self.secrets.slot(name, name);
        if known.wanted.insert(name.into()) {
            slot.put(known.secrets.get(name).cloned());
            self.asked.notify_one();
        }
        Some(slot)
    }

    /// Returns when something wants a secret; for one waiter.
    pub async fn wanted(&self) {
        while !self.is_wanted() {
            self.asked.notified().await;
        }
    }

    fn is_wanted(&self) -> bool {
        !self.known.lock().unwrap_or_else(PoisonError::into_inner).wanted.is_empty()
    }

    /// Takes what the agent has sent. Handshakes from now on use it.
    ///
    /// # Errors
    /// Why nothing of it is used.
    pub fn take(&self, message: &[u8]) -> Result<(), WorkloadError> {
        let mut response = Response::decode(message).map_err(|_| WorkloadError::Malformed)?;
        let made = secrets(&response);
        response.svids.iter_mut().for_each(|svid| svid.x509_svid_key.zeroize());
        let made = made?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &known.wanted {
            let slot = self.secrets.slot(name, name);
            match made.get(name) {
                // One that the agent speaks of no longer is not to be used on.
                None => slot.put(None),
                Some(secret) if is_as_before(known.secrets.get(name), secret) => {}
                Some(secret) => slot.put(Some(secret.clone())),
            }
        }
        // What is as before keeps its number: contexts made of it stay.
        for (name, secret) in made {
            if !is_as_before(known.secrets.get(&name), &secret) {
                known.secrets.insert(name, secret);
            }
        }
        Ok(())
    }
}

/// Whether a certificate is the one that was there.
fn is_as_before(before: Option<&Arc<Secret>>, now: &Arc<Secret>) -> bool {
    match (before.map(|secret| &secret.content), &now.content) {
        (Some(Content::Certificate(before)), Content::Certificate(now)) => before.key.cert == now.key.cert,
        _ => false,
    }
}

/// All secrets of a response.
fn secrets(response: &Response) -> Result<BTreeMap<Box<str>, Arc<Secret>>, WorkloadError> {
    let crls = match response.crl.as_slice() {
        [] => None,
        lists => {
            let lists: Vec<_> =
                lists.iter().map(|list| CertificateRevocationListDer::from(list.clone())).collect();
            Some(Arc::new(Crls::new(&lists).map_err(WorkloadError::Lists)?))
        }
    };
    let mut made = BTreeMap::new();
    let mut bundles: BTreeMap<Box<str>, Arc<Roots>> = BTreeMap::new();
    for (index, svid) in response.svids.iter().enumerate() {
        let id = &svid.spiffe_id;
        let wrong = |reason: String| WorkloadError::Svid(id.clone(), reason);
        let identity = Arc::new(svid.identity().map_err(wrong)?);
        let secret = Secret::new(Content::Certificate(identity));
        let domain = domain_of(id).ok_or_else(|| wrong("is no SPIFFE ID".to_owned()))?;
        let roots = roots(&svid.bundle).map_err(|error| WorkloadError::Bundle(domain.to_owned(), error))?;
        if index == 0 {
            made.insert(DEFAULT.into(), secret.clone());
            made.insert(ROOT.into(), trust(roots.clone(), crls.as_ref()));
        }
        made.entry(id.as_str().into()).or_insert(secret);
        bundles.entry(domain.into()).or_insert(roots);
    }
    if made.is_empty() {
        return Err(WorkloadError::None);
    }
    for (id, bundle) in &response.federated_bundles {
        let domain = domain_of(id).unwrap_or(id);
        let roots = roots(bundle).map_err(|error| WorkloadError::Bundle(domain.to_owned(), error))?;
        bundles.entry(domain.into()).or_insert(roots);
    }
    for (domain, roots) in &bundles {
        made.insert(format!("{SCHEME}{domain}").into(), trust(roots.clone(), crls.as_ref()));
    }
    let bundles = bundles.into_iter().map(|(domain, roots)| {
        let bundle = Bundle { path: PATH.into(), roots, crls: crls.clone() };
        (domain, bundle)
    });
    let domains = Some(Arc::new(TrustDomains::new(bundles.collect())));
    let all = Validation { domains, path: PATH.into(), ..Validation::default() };
    made.insert(ALL.into(), Secret::new(Content::Validation(Arc::new(all))));
    Ok(made)
}

/// Where certificates are from, as `/certs` shows it.
const PATH: &str = "<workload API>";

fn trust(roots: Arc<Roots>, crls: Option<&Arc<Crls>>) -> Arc<Secret> {
    let validation =
        Validation { roots: Some(roots), path: PATH.into(), crls: crls.cloned(), ..Validation::default() };
    Secret::new(Content::Validation(Arc::new(validation)))
}

/// The trust domain of a SPIFFE ID, with a path or without.
fn domain_of(id: &str) -> Option<&str> {
    let domain = id.strip_prefix(SCHEME)?.split('/').next()?;
    Some(domain).filter(|domain| !domain.is_empty())
}

fn roots(der: &[u8]) -> Result<Arc<Roots>, String> {
    let all = split(der)?;
    if all.is_empty() {
        return Err("is empty".to_owned());
    }
    Roots::new(all).map(Arc::new)
}

/// Certificates in DER, one after the other.
fn split(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = x509_parser::parse_x509_certificate(der)
            .map_err(|error| format!("holds a malformed certificate: {error}"))?;
        let one = der.len().checked_sub(rest.len()).and_then(|length| der.get(..length));
        found.push(CertificateDer::from(one.unwrap_or_default().to_vec()));
        der = rest;
    }
    Ok(found)
}

impl Svid {
    fn identity(&self) -> Result<Identity, String> {
        let chain = split(&self.x509_svid)?;
        let (leaf, issuers) = chain.split_first().ok_or("has no certificate")?;
        check_leaf(leaf, &self.spiffe_id)?;
        for issuer in issuers {
            let (_, parsed) =
                x509_parser::parse_x509_certificate(issuer).map_err(|error| error.to_string())?;
            if !parsed.is_ca() {
                return Err("a certificate of its chain is no CA".to_owned());
            }
        }
        let key = PrivateKeyDer::try_from(self.x509_svid_key.clone())
            .map_err(|_| "its private key is not PKCS #8 in DER form".to_owned())?;
        let identity =
            Identity::from_der(chain, key).map_err(|(_, error)| format!("its private key {error}"))?;
        Ok(identity.at(PATH))
    }
}

/// What a workload's certificate has to be: one name, that of the workload, and of no use for signing others
/// (X509-SVID, 2 to 5).
fn check_leaf(leaf: &CertificateDer<'_>, id: &str) -> Result<(), String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|error| error.to_string())?;
    let names: Vec<_> = names_of(&parsed).into_iter().filter(|(kind, _)| *kind == SanKind::Uri).collect();
    match names.as_slice() {
        [(_, name)] if *name == id => {}
        [(_, name)] => return Err(format!("is for {name:?}")),
        list => return Err(format!("has {} URIs as names, must have one", list.len())),
    }
    check_usage(&parsed)
}

fn check_usage(leaf: &X509Certificate<'_>) -> Result<(), String> {
    if leaf.is_ca() {
        return Err("is a CA".to_owned());
    }
    let usage = leaf.key_usage().map_err(|error| error.to_string())?.ok_or("has no key usage")?.value;
    if !usage.digital_signature() {
        return Err("is not for digital signatures".to_owned());
    }
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err("is for signing certificates or revocation lists".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

    const ID: &str = "spiffe://mesh.test/workload";

    struct Agent {
        issuer: Issuer<'static, KeyPair>,
        ca: Vec<u8>,
    }

    impl Agent {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca = params.self_signed(&key).unwrap().der().to_vec();
            Self { issuer: Issuer::new(params, key), ca }
        }

        /// A certificate with these names, changed so.
        fn svid(&self, names: &[&str], change: impl Fn(&mut CertificateParams)) -> Svid {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            for name in names {
                params.subject_alt_names.push(SanType::URI((*name).try_into().unwrap()));
            }
            change(&mut params);
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            Svid {
                spiffe_id: ID.to_owned(),
                x509_svid: certificate.der().to_vec(),
                x509_svid_key: key.serialize_der(),
                bundle: self.ca.clone(),
            }
        }
    }

    fn response(svids: Vec<Svid>) -> Vec<u8> {
        Response { svids, ..Response::default() }.encode_to_vec()
    }

    #[test]
    fn endpoints() {
        for (text, address) in [
            ("unix:///run/agent.sock", Address::Pipe("/run/agent.sock".into())),
            ("unix:/run/agent.sock", Address::Pipe("/run/agent.sock".into())),
            ("tcp://127.0.0.1:8081", Address::Ip(([127, 0, 0, 1], 8081).into())),
        ] {
            assert_eq!(Workload::new(text).unwrap().endpoint, address);
        }
        for text in
            ["", "/run/agent.sock", "unix://agent.sock", "tcp://agent:1", "http://127.0.0.1:1", "unix:///a?b"]
        {
            assert_eq!(Workload::new(text).unwrap_err(), EndpointError(text.to_owned()));
        }
    }

    #[test]
    fn secrets_have_spires_names() {
        let agent = Agent::new();
        let other = Agent::new();
        let workload = Workload::new("unix:///agent").unwrap();
        assert!(!workload.is_wanted());
        let slot = |name: &str| workload.slot(name).unwrap();
        let early = slot("default");
        assert!(workload.is_wanted() && early.load().is_none());
        assert!(workload.slot("nonsense").is_none() && workload.slot("spiffe://").is_none());
        let svid = agent.svid(&[ID], |_| {});
        let federated = HashMap::from([("spiffe://other.test".to_owned(), other.ca.clone())]);
        let message = Response { svids: vec![svid], crl: Vec::new(), federated_bundles: federated };
        workload.take(&message.encode_to_vec()).unwrap();
        let content = |name: &str| slot(name).load().as_ref().map(|secret| secret.content.clone());
        let first = early.load().as_ref().map(|secret| secret.id).unwrap();
        assert_eq!(slot(ID).load().as_ref().map(|secret| secret.id), Some(first));
        for name in ["ROOTCA", "spiffe://mesh.test", "spiffe://other.test"] {
            assert!(matches!(content(name), Some(Content::Validation(trust)) if trust.is_rooted()), "{name}");
        }
        let Some(Content::Validation(all)) = content("ALL") else { panic!("no trust") };
        assert_eq!(all.domains.as_ref().unwrap().bundles().len(), 2);
        assert!(content("spiffe://mesh.test/other").is_none(), "not this workload's");
        // The same certificate again changes nothing; another does.
        workload.take(&message.encode_to_vec()).unwrap();
        assert_eq!(early.load().as_ref().map(|secret| secret.id), Some(first));
        workload.take(&response(vec![agent.svid(&[ID], |_| {})])).unwrap();
        assert_ne!(early.load().as_ref().map(|secret| secret.id), Some(first));
        assert!(content("spiffe://other.test").is_none(), "no longer federated");
    }

    #[test]
    fn what_is_no_svid_is_refused_and_the_last_one_stays() {
        let agent = Agent::new();
        let workload = Workload::new("unix:///agent").unwrap();
        let slot = workload.slot("default").unwrap();
        workload.take(&response(vec![agent.svid(&[ID], |_| {})])).unwrap();
        let first = slot.load().as_ref().map(|secret| secret.id);
        let foreign =
            Svid { x509_svid_key: agent.svid(&[ID], |_| {}).x509_svid_key, ..agent.svid(&[ID], |_| {}) };
        let cases = [
            (agent.svid(&[], |_| {}), "has 0 URIs"),
            (agent.svid(&[ID, "spiffe://mesh.test/b"], |_| {}), "has 2 URIs"),
            (agent.svid(&["spiffe://mesh.test/b"], |_| {}), "is for \"spiffe://mesh.test/b\""),
            (agent.svid(&[ID], |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "is a CA"),
            (agent.svid(&[ID], |params| params.key_usages.clear()), "has no key usage"),
            (
                agent.svid(&[ID], |params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
                "not for digital signatures",
            ),
            (agent.svid(&[ID], |params| params.key_usages.push(KeyUsagePurpose::CrlSign)), "is for signing"),
            (foreign, "its private key"),
            (Svid { x509_svid_key: b"no key".to_vec(), ..agent.svid(&[ID], |_| {}) }, "PKCS #8"),
            (Svid { x509_svid: Vec::new(), ..agent.svid(&[ID], |_| {}) }, "has no certificate"),
            (Svid { bundle: Vec::new(), ..agent.svid(&[ID], |_| {}) }, "is empty"),
        ];
        for (svid, told) in cases {
            let error = workload.take(&response(vec![svid])).unwrap_err().to_string();
            assert!(error.contains(told), "{error}, not {told}");
        }
        assert_eq!(workload.take(&response(vec![])), Err(WorkloadError::None));
        assert_eq!(workload.take(b"\xff"), Err(WorkloadError::Malformed));
        assert_eq!(slot.load().as_ref().map(|secret| secret.id), first);
    }
}
