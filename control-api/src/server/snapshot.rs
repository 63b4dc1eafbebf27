//! What one node, or many, shall have: every resource by type and name.
//!
//! In: typed messages, `Any`s or encoded bytes. Out: one value that is cheap to clone and to share;
//! copies share what they have in common, type by type, and a body is never copied.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::{Message, Name};
use xxhash_rust::xxh64::xxh64;

use super::chunks::Chunks;
use super::kind::ResourceType;
use super::reference::{self, Facts};
use super::virtual_host;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::TypedExtensionConfig;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost};
use crate::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use crate::pb::envoy::service::runtime::v3::Runtime;
use crate::pb::google::protobuf::Any;

/// One resource, encoded once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub(super) version: Arc<str>,
    /// An encoded `google.protobuf.Any`.
    pub(super) any: Bytes,
    /// Names of resources of another type that this one cannot do without.
    pub(super) needs: Arc<[Arc<str>]>,
    /// Sent to those who name it, not to those who ask for everything.
    pub(super) by_name_only: bool,
    /// How long clients may keep it without hearing of it.
    pub(super) ttl: Option<Duration>,
    /// The domains of a virtual host.
    pub(super) domains: Arc<[Arc<str>]>,
}

impl Resource {
    /// The version: as given, else a hash of the content in 16 hexadecimal digits.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// True when a wildcard does not stand for it, see [`Snapshot::serve_by_name_only`].
    #[must_use]
    pub fn is_by_name_only(&self) -> bool {
        self.by_name_only
    }

    /// The resource as an encoded `google.protobuf.Any`.
    #[must_use]
    pub fn encoded_any(&self) -> &Bytes {
        &self.any
    }
}

/// All resources of one type.
#[derive(Debug, Clone, Default)]
pub(super) struct Resources {
    by_name: Chunks,
    /// Sum of the hashes of all names and versions: independent of the order of changes.
    sum: u64,
}

impl Resources {
    pub(super) fn get(&self, name: &str) -> Option<&Resource> {
        self.by_name.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Resource)> {
        self.by_name.iter()
    }

    /// The version of these resources together with `more`.
    pub(super) fn version_with<'a>(
        &self,
        more: impl Iterator<Item = (&'a Arc<str>, &'a Resource)>,
    ) -> String {
        let sum = more.fold(self.sum, |sum, (name, r)| sum.wrapping_add(hash_of(name, &r.version)));
        format!("{sum:016x}")
    }

    pub(super) fn range(
        &self,
        names: (Bound<&str>, Bound<&str>),
    ) -> impl Iterator<Item = (&Arc<str>, &Resource)> {
        self.by_name.range(names)
    }

    fn insert(&mut self, name: &str, resource: Resource) {
        self.sum = self.sum.wrapping_add(hash_of(name, &resource.version));
        if let Some(old) = self.by_name.insert(name, resource) {
            self.sum = self.sum.wrapping_sub(hash_of(name, &old.version));
        }
    }

    fn remove(&mut self, name: &str) -> bool {
        let Some(old) = self.by_name.remove(name) else {
            return false;
        };
        self.sum = self.sum.wrapping_sub(hash_of(name, &old.version));
        true
    }
}

fn hash_of(name: &str, version: &str) -> u64 {
    // Names hold no NUL, so the pair is unambiguous whatever the version holds.
    xxh64(format!("{name}\0{version}").as_bytes(), 0)
}

/// A message that is served as a resource.
pub trait TypedResource: Message + Name {
    /// The name that clients ask for.
    fn resource_name(&self) -> &str;
}

macro_rules! typed_resource {
    ($($type:ty: $field:ident),* $(,)?) => {
        $(impl TypedResource for $type {
            fn resource_name(&self) -> &str {
                &self.$field
            }
        })*

        /// The name in an encoded message of a type that has one.
        fn name_in(type_url: &str, value: &[u8]) -> Option<Result<String, prost::DecodeError>> {
            $(if type_url == <$type>::type_url() {
                return Some(<$type>::decode(value).map(|m| m.$field));
            })*
            None
        }
    };
}

typed_resource! {
    Cluster: name,
    ClusterLoadAssignment: cluster_name,
    Listener: name,
    RouteConfiguration: name,
    Runtime: name,
    ScopedRouteConfiguration: name,
    Secret: name,
    TypedExtensionConfig: name,
    VirtualHost: name,
}

/// Why a resource cannot be part of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// Clients could not ask for it.
    #[error("a resource of type {type_url} has no name")]
    NoName {
        /// Its type.
        type_url: String,
    },
    /// Only types with a known name field can be inserted without a name.
    #[error("the name of a resource of type {type_url} cannot be told: give it with insert_encoded")]
    UnknownType {
        /// Its type.
        type_url: String,
    },
    /// The bytes are no such message.
    #[error("the bytes are no valid {type_url}: {error}")]
    Invalid {
        /// The type that it claims.
        type_url: String,
        /// What the decoder says.
        error: String,
    },
}

/// A name that a resource points at and that no resource has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{from_type} {from:?} needs {to_type} {to:?}, which the snapshot lacks")]
pub struct Dangling {
    /// The type of the resource that points.
    pub from_type: ResourceType,
    /// Its name.
    pub from: String,
    /// The type of the one that is missing.
    pub to_type: ResourceType,
    /// Its name.
    pub to: String,
}

/// Every resource that a node shall have. Clones share their content.
#[derive(Clone, Default)]
pub struct Snapshot {
    types: BTreeMap<ResourceType, Arc<Resources>>,
}

impl Snapshot {
    /// A snapshot without resources.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a resource; its version is a hash of its content. Maps are encoded in the order
    /// of their keys, so that equal content has equal bytes; an `Any` inside is taken as it is.
    ///
    /// # Errors
    /// The resource has no name.
    pub fn insert<R: TypedResource>(&mut self, resource: &R) -> Result<(), ResourceError> {
        let name = resource.resource_name().to_owned();
        let sorted = crate::typed::to_dynamic(resource).map(|dynamic| dynamic.encode_to_vec());
        let value = sorted.unwrap_or_else(|| resource.encode_to_vec());
        self.insert_encoded(&R::type_url(), &name, value.into(), None)
    }

    /// Like [`insert`](Self::insert), for a resource packed as clients get it.
    ///
    /// # Errors
    /// It has no name, its type has no known name field, or its bytes are no such message.
    pub fn insert_any(&mut self, any: Any) -> Result<(), ResourceError> {
        let Any { type_url, value } = any;
        match name_in(&type_url, &value) {
            None => Err(ResourceError::UnknownType { type_url }),
            Some(Err(e)) => Err(ResourceError::Invalid { type_url, error: e.to_string() }),
            Some(Ok(name)) => self.insert_encoded(&type_url, &name, value.into(), None),
        }
    }

    /// Like [`insert`](Self::insert), for any type, with the message encoded. Without a `version` it is a
    /// hash of the bytes; a version given must change whenever the content does.
    ///
    /// # Errors
    /// The name is empty, or the bytes of a cluster or listener cannot be decoded.
    pub fn insert_encoded(
        &mut self,
        type_url: &str,
        name: &str,
        value: Bytes,
        version: Option<&str>,
    ) -> Result<(), ResourceError> {
        if name.is_empty() {
            return Err(ResourceError::NoName { type_url: type_url.to_owned() });
        }
        let kind = ResourceType::from_url(type_url);
        let invalid = |e: prost::DecodeError| ResourceError::Invalid {
            type_url: type_url.to_owned(),
            error: e.to_string(),
        };
        let Facts { needs, domains } = reference::of(&kind, &value).map_err(invalid)?;
        let version = version.map_or_else(|| format!("{:016x}", xxh64(&value, 0)), str::to_owned);
        let any = Any { type_url: type_url.to_owned(), value: value.into() }.encode_to_vec();
        let resource = Resource {
            version: version.into(),
            any: any.into(),
            needs: needs.into(),
            by_name_only: false,
            ttl: None,
            domains: domains.into(),
        };
        Arc::make_mut(self.types.entry(kind).or_default()).insert(name, resource);
        Ok(())
    }

    /// Leaves a resource out of what clients get that ask for everything of its type: only those who ask
    /// for it by name get it. So listeners for gRPC, which names them, do not bother proxies, which do
    /// not. False when there is none of that name. Inserting it anew ends this.
    pub fn serve_by_name_only(&mut self, kind: &ResourceType, name: &str) -> bool {
        self.amend(kind, name, |resource| resource.by_name_only = true)
    }

    /// Gives a resource a time to live: clients that know of such (they say so in their `client_features`)
    /// drop it when they have not heard of it for so long. They hear of it twice in that time as long as
    /// their stream is open. False when there is none of that name. Inserting it anew ends this.
    pub fn set_ttl(&mut self, kind: &ResourceType, name: &str, ttl: Option<Duration>) -> bool {
        self.amend(kind, name, |resource| resource.ttl = ttl.filter(|ttl| !ttl.is_zero()))
    }

    fn amend(&mut self, kind: &ResourceType, name: &str, change: impl FnOnce(&mut Resource)) -> bool {
        let Some(mut resource) = self.get(kind, name).cloned() else { return false };
        change(&mut resource);
        if let Some(resources) = self.types.get_mut(kind) {
            Arc::make_mut(resources).insert(name, resource);
        }
        true
    }

    /// Takes over all resources of `other`, which replace those of the same type and name.
    pub fn merge(&mut self, other: &Self) {
        for (kind, resources) in &other.types {
            let mine = Arc::make_mut(self.types.entry(kind.clone()).or_default());
            for (name, resource) in resources.iter() {
                mine.insert(name, resource.clone());
            }
        }
    }

    /// The types of which there are resources, in the order of sending.
    pub fn types(&self) -> impl Iterator<Item = &ResourceType> {
        self.types.iter().filter(|(_, resources)| !resources.by_name.is_empty()).map(|(kind, _)| kind)
    }

    /// Takes a resource out; false when there is none of that name.
    pub fn remove(&mut self, kind: &ResourceType, name: &str) -> bool {
        self.types.get_mut(kind).is_some_and(|r| r.get(name).is_some() && Arc::make_mut(r).remove(name))
    }

    /// One resource.
    #[must_use]
    pub fn get(&self, kind: &ResourceType, name: &str) -> Option<&Resource> {
        self.types.get(kind)?.get(name)
    }

    /// The names of all resources of a type, sorted.
    pub fn names(&self, kind: &ResourceType) -> impl Iterator<Item = &str> {
        self.types.get(kind).into_iter().flat_map(|r| r.by_name.iter().map(|(name, _)| &**name))
    }

    /// The number of resources of a type.
    #[must_use]
    pub fn count(&self, kind: &ResourceType) -> usize {
        self.types.get(kind).map_or(0, |r| r.by_name.len())
    }

    /// The version of a type: a hash of the names and versions of its resources.
    #[must_use]
    pub fn version(&self, kind: &ResourceType) -> String {
        format!("{:016x}", self.types.get(kind).map_or(0, |r| r.sum))
    }

    /// Checks that what clusters and listeners take from the control plane is there: the endpoints of EDS
    /// clusters, the route tables of listeners.
    ///
    /// # Errors
    /// Every name that is missing.
    pub fn validate(&self) -> Result<(), Vec<Dangling>> {
        let pairs = [
            (ResourceType::CLUSTER, ResourceType::ENDPOINTS),
            (ResourceType::LISTENER, ResourceType::ROUTE),
            (ResourceType::SCOPED_ROUTES, ResourceType::ROUTE),
        ];
        let mut missing = Vec::new();
        for (from_type, to_type) in pairs {
            for (from, resource) in self.types.get(&from_type).into_iter().flat_map(|r| r.iter()) {
                for to in resource.needs.iter().filter(|to| self.get(&to_type, to).is_none()) {
                    missing.push(Dangling {
                        from_type: from_type.clone(),
                        from: from.to_string(),
                        to_type: to_type.clone(),
                        to: to.to_string(),
                    });
                }
            }
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(missing)
        }
    }

    /// The resource that answers to `name`, with its own name, which is another where a virtual host is
    /// asked for by a host name of its (`table/host`).
    pub(super) fn answering(&self, kind: &ResourceType, name: &str) -> Option<(&Arc<str>, &Resource)> {
        let resources = self.types.get(kind)?;
        resources.by_name.get_key_value(name).or_else(|| {
            let (table, host) = name.rsplit_once('/').filter(|_| *kind == ResourceType::VIRTUAL_HOST)?;
            virtual_host::find(resources, table, host)
        })
    }

    pub(super) fn of(&self, kind: &ResourceType) -> Option<&Arc<Resources>> {
        self.types.get(kind)
    }

    /// The names whose resources of a type differ between `self` and `newer`.
    pub(super) fn changed(&self, newer: &Self, kind: &ResourceType) -> Vec<Arc<str>> {
        let none = Arc::new(Resources::default());
        let old = self.types.get(kind).unwrap_or(&none);
        let new = newer.types.get(kind).unwrap_or(&none);
        if Arc::ptr_eq(old, new) {
            return Vec::new();
        }
        old.by_name.differences(&new.by_name)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.types.iter().map(|(k, r)| (k.to_string(), r.by_name.len()))).finish()
    }
}
