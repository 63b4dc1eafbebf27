//! The configuration in force as the admin port shows it (`envoy.admin.v3.ConfigDump`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use outrigger_control_api::client::TypeStatus;
use outrigger_control_api::{message_to_json, pool, to_json, DynamicMessage};
use serde_json::{json, Map, Value};

use super::clusters::endpoints::Endpoints;
use super::effects::{ECDS, SDS};
use super::manager::Manager;
use super::resource::{Refused, Stored};
use super::sources::{Origin, StreamId};
use super::watch::{self, Board};

/// Shows a [`Discovery`](super::Discovery)'s configuration.
#[derive(Clone)]
pub struct View {
    manager: Arc<Mutex<Manager>>,
    board: Arc<Mutex<Board>>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("View")
    }
}

/// The dynamic parts of one message of the dump: field names and their elements.
pub type Parts = Vec<(&'static str, Vec<Value>)>;

impl View {
    pub(super) fn new(manager: Arc<Mutex<Manager>>, board: Arc<Mutex<Board>>) -> Self {
        Self { manager, board }
    }

    /// Every stream, its types, and what went wrong with them: what `/discovery` shows.
    pub fn streams(&self) -> Vec<StreamView> {
        let now = Instant::now();
        // Never both locks at once.
        let names: Vec<_> = {
            let board = watch::lock(&self.board);
            let streams: Vec<_> = board.keys().copied().collect();
            drop(board);
            self.with(|manager| {
                let label = |stream| manager.sources.origin(stream).and_then(Origin::label);
                streams.into_iter().map(|stream| (stream, label(stream).unwrap_or_default())).collect()
            })
        };
        let board = watch::lock(&self.board);
        let view = |(stream, source): (StreamId, String)| {
            let line = board.get(&stream)?;
            let age = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
            let status = line.status.as_ref();
            let types = status.map(|status| status.types.as_slice()).unwrap_or_default();
            Some(StreamView {
                source,
                connected: match line.ends {
                    0 => line.open.is_some() || status.is_some_and(|status| status.connected),
                    _ => line.open.is_some(),
                },
                silence: age(status.and_then(|status| status.heard)),
                ends: line.ends,
                last_end: line.last_end.as_ref().map(|(at, reason)| (time(*at), reason.clone())),
                rate_limited: status.map_or(0, |status| status.rate_limited),
                types: types.iter().map(|t| (age(t.accepted), t.clone())).collect(),
            })
        };
        names.into_iter().filter_map(view).collect()
    }

    fn with<R>(&self, look: impl FnOnce(&Manager) -> R) -> R {
        look(&self.manager.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `ClustersConfigDump`: its version, and the dynamic clusters.
    pub fn clusters(&self) -> (String, Parts) {
        self.with(|manager| {
            let (mut active, mut warming) = (Vec::new(), Vec::new());
            for (name, entry) in manager.clusters.entries() {
                let refused = entry.refused.as_deref();
                if let Some(version) = &entry.active {
                    active.push((name.clone(), state(CLUSTER, "cluster", &version.stored, refused)));
                }
                if let Some(version) = &entry.warming {
                    warming.push((name.clone(), state(CLUSTER, "cluster", &version.stored, None)));
                }
            }
            let version = manager.cds.as_ref().map(|cds| cds.version.clone()).unwrap_or_default();
            let parts = vec![
                ("dynamic_active_clusters", sorted(active)),
                ("dynamic_warming_clusters", sorted(warming)),
            ];
            (version, parts)
        })
    }

    /// What EDS gave, as elements of `EndpointsConfigDump`, by name.
    pub fn endpoints(&self) -> HashMap<Arc<str>, Value> {
        self.with(|manager| {
            let shown = |(name, _, endpoints): (&Arc<str>, _, &Endpoints)| {
                let (stored, refused) = (endpoints.stored.as_ref()?, endpoints.refused.as_deref());
                Some((name.clone(), state(ENDPOINTS, "endpoint_config", stored, refused)))
            };
            manager.clusters.endpoints().filter_map(shown).collect()
        })
    }

    /// `ListenersConfigDump`: its version, and the dynamic listeners.
    pub fn listeners(&self) -> (String, Parts) {
        self.with(|manager| {
            let mut all = Vec::new();
            for (name, entry) in manager.listeners.entries() {
                let mut shown = Map::new();
                shown.insert("name".into(), (**name).into());
                let mut put = |field: &str, stored: &Stored| {
                    shown.insert(field.into(), state(LISTENER, "listener", stored, None));
                };
                if let Some(version) = &entry.active {
                    put("active_state", &version.stored);
                }
                if let Some((version, _)) = &entry.warming {
                    put("warming_state", &version.stored);
                }
                if let Some(refused) = &entry.refused {
                    shown.insert("error_state".into(), error(LISTENER, refused));
                }
                shown.insert("client_status".into(), status(entry.refused.is_some()).into());
                all.push((name.clone(), Value::from(shown)));
            }
            let version = manager.lds.as_ref().map(|lds| lds.version.clone()).unwrap_or_default();
            (version, vec![("dynamic_listeners", sorted(all))])
        })
    }

    /// `ScopedRoutesConfigDump`.
    pub fn scopes(&self) -> Parts {
        self.with(|manager| {
            let mut all = Vec::new();
            for (_, feed) in manager.scopes.feeds() {
                let scopes: Vec<_> =
                    feed.held.values().map(|held| decoded(SCOPE, &held.stored.body)).collect();
                for name in feed.names() {
                    let mut shown = Map::new();
                    shown.insert("name".into(), (**name).into());
                    shown.insert("version_info".into(), feed.version.clone().into());
                    shown.insert("scoped_route_configs".into(), scopes.clone().into());
                    if let Some(updated) = feed.updated {
                        shown.insert("last_updated".into(), time(updated).into());
                    }
                    // Of several that were refused, one.
                    if let Some(refused) = feed.refused.values().next() {
                        shown.insert("error_state".into(), error(SCOPE, refused));
                    }
                    shown.insert("client_status".into(), status(!feed.refused.is_empty()).into());
                    all.push((name.clone(), Value::from(shown)));
                }
            }
            vec![("dynamic_scoped_route_configs", sorted(all))]
        })
    }

    /// `EcdsConfigDump`.
    pub fn extensions(&self) -> Parts {
        self.with(|manager| {
            let mut all = Vec::new();
            for ((_, type_url, name), piece) in manager.pieces.entries() {
                if let Some(stored) = piece.stored.as_ref().filter(|_| *type_url == ECDS) {
                    all.push((name.clone(), state(EXTENSION, "ecds_filter", stored, piece.refused.as_ref())));
                }
            }
            vec![("ecds_filters", sorted(all))]
        })
    }

    /// `SecretsConfigDump`. What is private in it is left to who shows it.
    pub fn secrets(&self) -> Parts {
        self.with(|manager| {
            let (mut active, mut warming) = (Vec::new(), Vec::new());
            for ((_, _, name), piece) in manager.pieces.entries().filter(|((_, kind, _), _)| *kind == SDS) {
                let (list, stored) = match &piece.stored {
                    Some(stored) => (&mut active, stored.clone()),
                    None => (&mut warming, Stored::none()),
                };
                let mut shown = state(SECRET, "secret", &stored, piece.refused.as_ref());
                shown["name"] = (**name).into();
                list.push((name.clone(), shown));
            }
            vec![("dynamic_active_secrets", sorted(active)), ("dynamic_warming_secrets", sorted(warming))]
        })
    }

    /// `RoutesConfigDump`.
    pub fn routes(&self) -> Parts {
        self.with(|manager| {
            let mut all = Vec::new();
            for (name, _, table) in manager.routes.tables() {
                if let Some(stored) = &table.stored {
                    let mut stored = stored.clone();
                    stored.body = table.merged.clone().unwrap_or(stored.body);
                    all.push((name.clone(), state(ROUTE, "route_config", &stored, table.refused.as_ref())));
                }
            }
            vec![("dynamic_route_configs", sorted(all))]
        })
    }

    /// Discovered runtime layers: their names in the bootstrap, and their values as JSON.
    pub fn runtime(&self) -> Vec<(Arc<str>, Value)> {
        let shown = |(layer, values): (&Arc<str>, &_)| (layer.clone(), message_to_json(values));
        self.with(|manager| manager.layers.values().map(shown).collect())
    }

    /// What `/ready?verbose` says besides the state: one line each.
    pub fn readiness(&self) -> Vec<String> {
        self.with(Manager::readiness)
    }
}

/// One stream.
#[derive(Debug)]
pub struct StreamView {
    /// Where its resources come from.
    pub source: String,
    /// Whether it is open.
    pub connected: bool,
    /// Since when the control plane gave no sign of life; `None` if it never did.
    pub silence: Option<Duration>,
    /// How often it ended or could not be opened.
    pub ends: u64,
    /// When and why the last time.
    pub last_end: Option<(String, String)>,
    /// How often requests waited for the rate limit.
    pub rate_limited: u64,
    /// Each type with the age of its content; `None` if nothing was accepted.
    pub types: Vec<(Option<Duration>, TypeStatus)>,
}

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const SCOPE: &str = "envoy.config.route.v3.ScopedRouteConfiguration";
const EXTENSION: &str = "envoy.config.core.v3.TypedExtensionConfig";
const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";
const ROUTE: &str = "envoy.config.route.v3.RouteConfiguration";

fn sorted(mut named: Vec<(Arc<str>, Value)>) -> Vec<Value> {
    named.sort_by(|a, b| a.0.cmp(&b.0));
    named.into_iter().map(|(_, value)| value).collect()
}

/// One version of a resource, and what was refused after it.
fn state(type_name: &str, field: &str, stored: &Stored, refused: Option<&Refused>) -> Value {
    let mut shown = Map::new();
    shown.insert("version_info".into(), (*stored.version).into());
    shown.insert(field.into(), decoded(type_name, &stored.body));
    shown.insert("last_updated".into(), time(stored.updated).into());
    if let Some(refused) = refused {
        shown.insert("error_state".into(), error(type_name, refused));
    }
    shown.insert("client_status".into(), status(refused.is_some()).into());
    shown.into()
}

fn status(refused: bool) -> &'static str {
    if refused {
        "NACKED"
    } else {
        "ACKED"
    }
}

/// `envoy.admin.v3.UpdateFailureState`.
fn error(type_name: &str, refused: &Refused) -> Value {
    json!({
        "failed_configuration": decoded(type_name, &refused.stored.body),
        "last_update_attempt": time(refused.stored.updated),
        "details": refused.details,
        "version_info": *refused.stored.version,
    })
}

fn decoded(type_name: &str, body: &[u8]) -> Value {
    let message = pool()
        .get_message_by_name(type_name)
        .and_then(|descriptor| DynamicMessage::decode(descriptor, body).ok());
    let mut shown = Map::new();
    shown.insert("@type".into(), format!("type.googleapis.com/{type_name}").into());
    if let Some(Value::Object(fields)) = message.as_ref().map(to_json) {
        shown.extend(fields.into_iter().filter(|(name, _)| name != "@type"));
    }
    shown.into()
}

fn time(at: SystemTime) -> String {
    let at = Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH);
    at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}
