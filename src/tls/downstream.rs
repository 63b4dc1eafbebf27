//! TLS towards clients: `DownstreamTlsContext`.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::BytesMut;
use tokio_rustls::rustls;

use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::ServerConfig;

use super::contexts::{Contexts, Made};
use super::expiry::{self, Held};
use super::failure;
use super::identity::Identity;
use super::ocsp::{Action, Policy};
use super::params::Params;
use super::secret::{Content, Secret, Slot};
use super::sessions::{random_tickets, Ticketer};
use super::stats::SslStats;
use super::validation::Validation;
use super::verifier::Clients;
use crate::runtime::client_hello::asks_for_status;
use crate::runtime::tls_stream::{HandshakeError, TlsStream};
use crate::runtime::Stream;

/// Whom a context trusts: what config says, and on top of it what a secret says.
#[derive(Debug, Default)]
pub struct Trust {
    /// `default_validation_context` of a combination.
    pub fixed: Option<Validation>,
    /// The secret.
    pub slot: Option<Arc<Slot>>,
}

/// How sessions are resumed.
#[derive(Debug)]
pub enum Resume {
    /// With tickets of this process.
    Tickets,
    /// With tickets of these keys.
    Keys(Arc<Slot>),
    /// By session ids that are remembered.
    Sessions,
    /// Not at all.
    Never,
}

/// What config says.
#[derive(Debug)]
pub struct DownstreamSpec {
    /// Versions, suites and groups.
    pub params: Params,
    /// Certificates to choose from. Never empty.
    pub certificates: Vec<Arc<Slot>>,
    /// Whom to trust.
    pub trust: Trust,
    /// Protocols to agree on, best first.
    pub alpn: Vec<Vec<u8>>,
    /// A client without a certificate is refused.
    pub require_client_certificate: bool,
    /// A client that names no server is refused.
    pub require_sni: bool,
    /// Look at all certificates when none is for the name that a client asks for.
    pub full_scan: bool,
    /// The client's order of cipher suites counts.
    pub prefer_client_ciphers: bool,
    /// What becomes of certificates without an OCSP response that holds.
    pub staples: Policy,
    /// How sessions are resumed.
    pub resume: Resume,
    /// How long sessions may be resumed.
    pub session_timeout: Option<Duration>,
}

/// TLS towards the clients of a filter chain.
#[derive(Debug)]
pub struct DownstreamTls {
    spec: DownstreamSpec,
    stats: Arc<SslStats>,
    contexts: Contexts<Built>,
}

#[derive(Debug)]
struct Built {
    /// Of the secrets that it is made of.
    ids: Vec<u64>,
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    lenient: bool,
    /// The same without protocols; made for the first client that offers none of ours.
    silent: OnceLock<Arc<ServerConfig>>,
}

impl Made for Built {
    fn secrets(&self) -> &[u64] {
        &self.ids
    }
}

impl expiry::Context for DownstreamTls {
    fn held(&self) -> Held {
        expiry::of_slots(self.slots(), self.spec.trust.fixed.as_ref())
    }
}

/// Why a client got no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum DownstreamError {
    /// A secret has not arrived yet.
    #[error("TLS_error: Secret is not supplied by SDS")]
    NotReady,
    /// As Envoy has it.
    #[error("{}", failure::reason(.0))]
    Handshake(HandshakeError),
}

/// Sessions remembered where they are not in tickets.
const SESSIONS: usize = 1024;
/// Tickets for each connection: a client that keeps one session needs no more.
const TICKETS: usize = 1;

/// The secrets of a context as they are now.
struct Current {
    certificates: Vec<Arc<Secret>>,
    trust: Option<Arc<Secret>>,
    keys: Option<Arc<Secret>>,
}

impl Current {
    fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.certificates.iter().chain(&self.trust).chain(&self.keys).map(|secret| secret.id)
    }
}

impl DownstreamTls {
    /// A context that counts in `stats`.
    pub fn new(spec: DownstreamSpec, stats: Arc<SslStats>) -> Arc<Self> {
        let new = Arc::new(Self { spec, stats, contexts: Contexts::default() });
        expiry::count(new.slots(), &new.stats);
        expiry::register(Arc::downgrade(&new) as _);
        new
    }

    /// Whether all secrets are there.
    pub fn is_ready(&self) -> bool {
        self.current().is_some()
    }

    /// The names of the secrets that are not there.
    pub fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        let keys = match &self.spec.resume {
            Resume::Keys(slot) => Some(slot),
            _ => None,
        };
        self.spec.certificates.iter().chain(&self.spec.trust.slot).chain(keys)
    }

    /// The server's side of a handshake on `stream`, of which `prefix` was read before. `offered` are the protocols in
    /// it, where they are known: a client that offers none of ours is served without any, as by Envoy.
    ///
    /// # Errors
    /// Why there is no connection; counted.
    pub async fn accept(
        &self,
        stream: Stream,
        prefix: BytesMut,
        offered: &[Box<str>],
    ) -> Result<TlsStream, DownstreamError> {
        let Some(built) = self.context() else {
            self.stats.contexts.downstream_context_secrets_not_ready.increment(1);
            return Err(DownstreamError::NotReady);
        };
        let ours = |name: &str| self.spec.alpn.iter().any(|own| own == name.as_bytes());
        let config = match offered.is_empty() || offered.iter().any(|name| ours(name)) {
            true => &built.config,
            false => built.silent.get_or_init(|| {
                let mut config = ServerConfig::clone(&built.config);
                config.alpn_protocols.clear();
                Arc::new(config)
            }),
        };
        let accepted = TlsStream::accept(stream, prefix.to_vec(), config.clone());
        drop((prefix, built));
        match accepted.await {
            Ok(stream) => {
                self.stats.done(&stream);
                Ok(stream)
            }
            Err(error) => {
                self.stats.failed(&error);
                Err(DownstreamError::Handshake(error))
            }
        }
    }

    /// Whether config says that clients must have a certificate.
    pub fn demands_certificate(&self) -> bool {
        self.spec.require_client_certificate
    }

    /// Whether certificates of clients are accepted whatever they are.
    pub fn is_lenient(&self) -> bool {
        self.context().is_some_and(|built| built.lenient)
    }

    /// The certificate that clients are shown who ask for `server_name`.
    pub fn presented(&self, server_name: Option<&str>) -> Option<Arc<Identity>> {
        let built = self.context()?;
        let found = built.certificates.candidates(server_name).first().map(|found| (*found).clone());
        found
    }

    fn current(&self) -> Option<Current> {
        let certificates: Option<Vec<_>> =
            self.spec.certificates.iter().map(|slot| slot.load().clone()).collect();
        let trust = match &self.spec.trust.slot {
            Some(slot) => Some(slot.load().clone()?),
            None => None,
        };
        let keys = match &self.spec.resume {
            Resume::Keys(slot) => Some(slot.load().clone()?),
            _ => None,
        };
        Some(Current { certificates: certificates?, trust, keys })
    }

    /// The context for what the secrets are now; `None` while one is missing.
    fn context(&self) -> Option<Arc<Built>> {
        let current = self.current()?;
        let renewed = || self.stats.contexts.ssl_context_update_by_sds.increment(1);
        self.contexts.of(|| current.ids(), renewed, || self.build(&current))
    }

    fn build(&self, current: &Current) -> Result<Built, String> {
        let spec = &self.spec;
        let provider = &spec.params.provider;
        let identities = current.certificates.iter().map(|secret| match &secret.content {
            Content::Certificate(identity) => Ok(identity.clone()),
            _ => Err("a secret is no certificate".to_owned()),
        });
        let certificates = Arc::new(Certificates {
            all: identities.collect::<Result<_, _>>()?,
            require_sni: spec.require_sni,
            full_scan: spec.full_scan,
            staples: spec.staples,
            stats: self.stats.clone(),
        });
        for identity in &certificates.all {
            spec.staples.check(identity)?;
        }
        expiry::count(self.slots(), &self.stats);
        let validation = merged(&spec.trust, current.trust.as_deref())?;
        let lenient = validation.as_ref().is_some_and(Validation::is_lenient);
        let context = context_of(&certificates, validation.as_ref());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&spec.params.protocol_versions())
            .map_err(|error| error.to_string())?;
        let builder = match validation {
            Some(validation) if validation.is_active() => {
                let clients = Clients {
                    // As in Envoy: who must have certain names or a certain certificate must have one at all.
                    mandatory: spec.require_client_certificate
                        || validation.domains.is_some()
                        || validation.is_pinned()
                        || !validation.names.is_empty(),
                    validation,
                    provider: provider.clone(),
                    stats: self.stats.clone(),
                };
                builder.with_client_cert_verifier(Arc::new(clients))
            }
            // Nobody is asked for a certificate that nothing could be compared with.
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(certificates.clone());
        config.alpn_protocols.clone_from(&spec.alpn);
        config.ignore_client_order = !spec.prefer_client_ciphers;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = TICKETS;
        match (&spec.resume, &current.keys) {
            (Resume::Tickets, _) => {
                let tickets = random_tickets(spec.session_timeout).map_err(|error| error.to_string())?;
                config.ticketer = Arc::new(tickets);
            }
            (Resume::Keys(_), Some(secret)) => {
                let Content::TicketKeys(keys) = &secret.content else {
                    return Err("a secret holds no ticket keys".to_owned());
                };
                config.ticketer = Arc::new(Ticketer::new(keys.clone(), spec.session_timeout, context));
            }
            (Resume::Sessions, _) => config.session_storage = ServerSessionMemoryCache::new(SESSIONS),
            (Resume::Keys(_) | Resume::Never, _) => config.send_tls13_tickets = 0,
        }
        let silent = OnceLock::new();
        Ok(Built { ids: current.ids().collect(), config: Arc::new(config), certificates, lenient, silent })
    }
}

/// What config and a secret say of trust together; `None` where neither says anything.
pub(super) fn merged(trust: &Trust, secret: Option<&Secret>) -> Result<Option<Validation>, String> {
    let secret = match secret.map(|secret| &secret.content) {
        None => None,
        Some(Content::Validation(validation)) => Some(validation),
        Some(_) => return Err("a secret is no validation context".to_owned()),
    };
    let validation = match (&trust.fixed, secret) {
        (Some(fixed), Some(secret)) => fixed.merged(secret),
        (Some(fixed), None) => fixed.clone(),
        (None, Some(secret)) => Validation::clone(secret),
        (None, None) => return Ok(None),
    };
    if !validation.is_rooted() && !validation.names.is_empty() {
        return Err("subject alternative names are to be matched, but no CA is trusted".to_owned());
    }
    Ok(Some(validation))
}

/// Stands for who we are and whom we trust: sessions of another context are not resumed.
fn context_of(certificates: &Certificates, validation: Option<&Validation>) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    for identity in &certificates.all {
        identity.server_names.iter().for_each(|name| hash.update(name.as_bytes()));
        hash.update(&[0]);
    }
    if let Some(validation) = validation {
        for subject in validation.subjects() {
            hash.update(subject.as_ref());
        }
        hash.update(
            format!("{:?}{:?}{:?}", validation.names, validation.hashes, validation.spkis).as_bytes(),
        );
    }
    hash.finish().as_ref().try_into().unwrap_or_default()
}

/// The certificates of a context.
#[derive(Debug)]
struct Certificates {
    all: Vec<Arc<Identity>>,
    require_sni: bool,
    full_scan: bool,
    staples: Policy,
    stats: Arc<SslStats>,
}

impl Certificates {
    /// Those for clients that ask for `server_name`, best first: by name, by wildcard, any. Without a match the
    /// first alone, unless all are to be looked at.
    fn candidates(&self, server_name: Option<&str>) -> Vec<&Arc<Identity>> {
        let mut found = Vec::new();
        if let Some(name) = server_name {
            let name = name.to_ascii_lowercase();
            found.extend(self.all.iter().filter(|identity| identity.is_named(&name)));
            if found.is_empty() {
                found.extend(self.all.iter().filter(|identity| identity.is_wild_for(&name)));
            }
        }
        if found.is_empty() {
            let all = server_name.is_none() || self.full_scan;
            found.extend(self.all.iter().take(if all { self.all.len() } else { 1 }));
        }
        found.sort_by_key(|identity| !identity.is_ecdsa);
        found
    }
}

impl Certificates {
    /// The certificate for a client that asks for its state.
    fn with_state(&self, chosen: &Identity) -> Option<Arc<CertifiedKey>> {
        let counters = &self.stats.counters;
        counters.ocsp_staple_requests.increment(1);
        let stapled = chosen.stapled.as_ref();
        let staple = stapled.map(|stapled| &stapled.staple);
        match self.staples.action(staple, chosen.must_staple, SystemTime::now()) {
            Action::Staple => {
                counters.ocsp_staple_responses.increment(1);
                stapled.map(|stapled| stapled.key.clone())
            }
            Action::Omit => {
                counters.ocsp_staple_omitted.increment(1);
                Some(chosen.key.clone())
            }
            Action::Fail => {
                counters.ocsp_staple_failed.increment(1);
                None
            }
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if self.require_sni && hello.server_name().is_none() {
            return None;
        }
        let schemes = hello.signature_schemes();
        let candidates = self.candidates(hello.server_name());
        let usable = candidates.iter().find(|identity| identity.key.key.choose_scheme(schemes).is_some());
        let chosen = usable.or(candidates.first())?;
        if !asks_for_status() {
            return Some(chosen.key.clone());
        }
        self.with_state(chosen)
    }
}
