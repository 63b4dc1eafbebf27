//! TLS towards upstreams: `UpstreamTlsContext`.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use tokio_rustls::rustls;

use rustls::client::{ResolvesClientCert, Resumption, Tls12Resumption};
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};

use super::contexts::{Contexts, Made};
use super::downstream::{merged, Trust};
use super::expiry::{self, Held};
use super::failure;
use super::identity::Identity;
use super::params::Params;
use super::peer::TlsInfo;
use super::secret::{Content, Secret, Slot};
use super::sessions::HostSessions;
use super::stats::SslStats;
use super::validation::{ExpectedNames, Validation};
use super::verifier::Servers;
use crate::config::cluster::Address;
use crate::config::Host;
use crate::runtime::proxy_protocol::Ends;
use crate::runtime::tls_stream::{HandshakeError, TlsStream};
use crate::runtime::Stream;
use crate::telemetry::filter_state::Objects;
use crate::telemetry::metrics::Scope;

/// What config says.
#[derive(Debug)]
pub struct UpstreamSpec {
    /// Versions, suites and groups.
    pub params: Params,
    /// Our certificate.
    pub certificate: Option<Arc<Slot>>,
    /// Whom to trust; without anything every certificate is accepted, as in Envoy.
    pub trust: Trust,
    /// Protocols to offer, in place of those that the connection is for.
    pub alpn: Vec<Vec<u8>>,
    /// The server's name to ask for; empty = none.
    pub sni: Box<str>,
    /// Ask for the host's name, where it has one.
    pub auto_host_sni: bool,
    /// The certificate must be for the name asked for.
    pub auto_sni_san_validation: bool,
    /// Sessions kept with each host. Default 1.
    pub max_session_keys: usize,
}

/// TLS towards the hosts of a cluster.
#[derive(Debug)]
pub struct UpstreamTls {
    spec: UpstreamSpec,
    stat_name: Arc<str>,
    /// Made when the first connection is.
    stats: OnceLock<Arc<SslStats>>,
    contexts: Contexts<Built>,
}

#[derive(Debug)]
struct Built {
    ids: Vec<u64>,
    config: ClientConfig,
    identity: Option<Arc<Identity>>,
    validation: Option<Arc<Validation>>,
}

impl Made for Built {
    fn secrets(&self) -> &[u64] {
        &self.ids
    }
}

impl expiry::Context for UpstreamTls {
    fn held(&self) -> Held {
        expiry::of_slots(self.slots(), self.spec.trust.fixed.as_ref())
    }
}

/// What sets the connections for a request apart from others to the same host: names that it asks for (`auto_sni`,
/// `auto_san_validation`), and what of its client the host sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Names {
    /// The server's name to ask for, in place of the context's.
    pub sni: Option<Box<str>>,
    /// Of which the certificate must have one.
    pub sans: Vec<Box<str>>,
    /// Protocols to offer, separated by commas, in place of all others.
    pub alpn: Option<Arc<str>>,
    /// Connections with another number are not shared; 0 = nothing sets them apart.
    pub apart: u64,
    /// The address to connect from, and the mark of the socket.
    pub source: Option<(SocketAddr, u32)>,
    /// Whose connection the PROXY protocol tells of, where it is spoken.
    pub ends: Option<Ends>,
    /// Objects that are passed on to an internal listener.
    pub shared: Option<Arc<Objects>>,
}

/// What a connection is for, which decides about the protocols offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Purpose {
    /// Bytes.
    Tcp,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Either, as the server says.
    Auto,
}

impl Purpose {
    fn alpn(self) -> Vec<Vec<u8>> {
        let list: &[&[u8]] = match self {
            Purpose::Tcp => &[],
            Purpose::Http1 => &[b"http/1.1"],
            Purpose::Http2 => &[b"h2"],
            Purpose::Auto => &[b"h2", b"http/1.1"],
        };
        list.iter().map(|name| name.to_vec()).collect()
    }
}

/// What a worker keeps of TLS to one host: the configuration for it, with its sessions.
#[derive(Debug, Default)]
pub struct HostTls {
    kept: RefCell<[Option<Kept>; 4]>,
}

#[derive(Debug)]
struct Kept {
    built: Arc<Built>,
    config: Arc<ClientConfig>,
}

impl UpstreamTls {
    /// A context of the cluster that statistics know as `stat_name`.
    pub fn new(spec: UpstreamSpec, stat_name: Arc<str>) -> Arc<Self> {
        let new = Arc::new(Self { spec, stat_name, stats: OnceLock::new(), contexts: Contexts::default() });
        expiry::register(Arc::downgrade(&new) as _);
        new
    }

    fn stats(&self) -> &Arc<SslStats> {
        self.stats.get_or_init(|| Arc::new(SslStats::client(&Scope::cluster(&self.stat_name))))
    }

    /// Whether all secrets are there.
    pub fn is_ready(&self) -> bool {
        self.current().is_some()
    }

    /// The slots of its secrets.
    pub fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.spec.certificate.iter().chain(&self.spec.trust.slot)
    }

    /// Whether any certificate is verified.
    pub fn has_trust(&self) -> bool {
        self.spec.trust.fixed.is_some() || self.spec.trust.slot.is_some()
    }

    /// Counts a connection that TLS broke after its handshake.
    pub fn broken(&self) {
        self.stats().counters.connection_error.increment(1);
    }

    /// The client's side of a handshake on `stream`, which is connected to `host`.
    ///
    /// # Errors
    /// Envoy's transport failure reason, empty where the host only went away; counted.
    pub async fn connect(
        &self,
        stream: Stream,
        host: &Host,
        names: &Names,
        purpose: Purpose,
        kept: &HostTls,
    ) -> Result<(TlsStream, Rc<TlsInfo>), String> {
        let Some(built) = self.context() else {
            self.stats().contexts.upstream_context_secrets_not_ready.increment(1);
            return Err("TLS_error: Secret is not supplied by SDS".to_owned());
        };
        let config = self.config_for(&built, host, names, purpose, kept);
        let name = self.server_name(host, names).map_or_else(
            || nameless(host),
            |sni| ServerName::try_from(sni.to_owned()).unwrap_or_else(|_| nameless(host)),
        );
        let connected = TlsStream::connect(stream, config, name).await;
        match connected {
            Ok(stream) => {
                self.stats().done(&stream);
                let info = Rc::new(TlsInfo::new(&stream, built.identity.clone()));
                Ok((stream, info))
            }
            Err(error) => {
                self.stats().failed(&error);
                let reason = failure::reason(&error);
                match &error {
                    HandshakeError::Io(_) if reason.is_empty() => Err(String::new()),
                    _ => Err(reason),
                }
            }
        }
    }

    /// What a client of its own needs that connects to `host` once in a while, as health checks do. `None` while
    /// secrets are missing.
    pub fn client(&self, host: &Host, purpose: Purpose) -> Option<(Arc<ClientConfig>, ServerName<'static>)> {
        let built = self.context()?;
        let names = Names::default();
        let config = self.config_for(&built, host, &names, purpose, &HostTls::default());
        let name = self.server_name(host, &names).and_then(|sni| ServerName::try_from(sni.to_owned()).ok());
        Some((config, name.unwrap_or_else(|| nameless(host))))
    }

    /// The server's name to ask for.
    fn server_name<'a>(&'a self, host: &'a Host, names: &'a Names) -> Option<&'a str> {
        if let Some(sni) = &names.sni {
            return Some(sni);
        }
        if self.spec.auto_host_sni && !host.template.hostname.is_empty() {
            return Some(&host.template.hostname);
        }
        Some(&*self.spec.sni).filter(|sni| !sni.is_empty())
    }

    /// The configuration for one host, which has the host's sessions.
    fn config_for(
        &self,
        built: &Arc<Built>,
        host: &Host,
        names: &Names,
        purpose: Purpose,
        kept: &HostTls,
    ) -> Arc<ClientConfig> {
        let mut kept = kept.kept.borrow_mut();
        // There is a place for each purpose.
        let place = &mut kept[purpose as usize];
        if let Some(known) = place.as_ref().filter(|known| Arc::ptr_eq(&known.built, built)) {
            return known.config.clone();
        }
        let mut config = built.config.clone();
        if let Some(offer) = &names.alpn {
            config.alpn_protocols = offer.split(',').map(|name| name.as_bytes().to_vec()).collect();
        } else if config.alpn_protocols.is_empty() {
            config.alpn_protocols = purpose.alpn();
        }
        config.resumption = match self.spec.max_session_keys {
            0 => Resumption::disabled(),
            most => Resumption::store(Arc::new(HostSessions::new(most)))
                .tls12_resumption(Tls12Resumption::SessionIdOrTickets),
        };
        let server_name = self.server_name(host, names);
        config.enable_sni = server_name.is_some();
        let mut wanted = ExpectedNames { names: names.sans.clone(), by_request: true };
        if self.spec.auto_sni_san_validation && wanted.names.is_empty() {
            wanted =
                ExpectedNames { names: server_name.map(Into::into).into_iter().collect(), by_request: false };
        }
        if !wanted.names.is_empty() {
            config.dangerous().set_certificate_verifier(Arc::new(Servers {
                validation: built.validation.clone(),
                names: wanted,
                provider: self.spec.params.provider.clone(),
                stats: self.stats().clone(),
            }));
        }
        let config = Arc::new(config);
        *place = Some(Kept { built: built.clone(), config: config.clone() });
        config
    }

    fn current(&self) -> Option<[Option<Arc<Secret>>; 2]> {
        let load = |slot: &Option<Arc<Slot>>| match slot {
            Some(slot) => slot.load().clone().map(Some),
            None => Some(None),
        };
        Some([load(&self.spec.certificate)?, load(&self.spec.trust.slot)?])
    }

    fn context(&self) -> Option<Arc<Built>> {
        let current = self.current()?;
        let ids = || current.iter().flatten().map(|secret| secret.id);
        let renewed = || self.stats().contexts.ssl_context_update_by_sds.increment(1);
        self.contexts.of(ids, renewed, || self.build(&current, ids().collect()))
    }

    fn build(&self, [certificate, trust]: &[Option<Arc<Secret>>; 2], ids: Vec<u64>) -> Result<Built, String> {
        let spec = &self.spec;
        let provider = spec.params.provider.clone();
        let identity = match certificate.as_ref().map(|secret| &secret.content) {
            None => None,
            Some(Content::Certificate(identity)) => Some(identity.clone()),
            Some(_) => return Err("a secret is no certificate".to_owned()),
        };
        expiry::count(self.slots(), self.stats());
        let validation = merged(&spec.trust, trust.as_deref())?.filter(Validation::is_active).map(Arc::new);
        let verifier = Servers {
            validation: validation.clone(),
            names: ExpectedNames::default(),
            provider: provider.clone(),
            stats: self.stats().clone(),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&spec.params.protocol_versions())
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(Presented(identity.key.clone()))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&spec.alpn);
        // A server that chooses none of what was offered is as good as one that knows no ALPN, as in Envoy.
        config.check_selected_alpn = false;
        Ok(Built { ids, config, identity, validation })
    }
}

/// Our certificate, whoever asks: what the server says of CAs is only a hint.
#[derive(Debug)]
struct Presented(Arc<CertifiedKey>);

impl ResolvesClientCert for Presented {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Where no name is sent the library still wants one, to tell sessions apart.
fn nameless(host: &Host) -> ServerName<'static> {
    match &host.address {
        Address::Ip(address) => ServerName::IpAddress(address.ip().into()),
        Address::Pipe(_) | Address::Internal(_) => {
            ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into())
        }
    }
}
