//! Filter state: what filters leave on a connection or a request by name, for those after them, for the way upstream,
//! and for logs.
//!
//! Comes in: compiled setters (`set_filter_state`) and a stream. Goes out: [`Objects`], which are read by their
//! names. A request sees its connection's objects beside its own, and cannot set one anew.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use outrigger_control_api::pb::envoy::extensions::filters::common::set_filter_state::v3 as pb;
use outrigger_control_api::pb::google::protobuf::{Any, StringValue, UInt64Value};
use prost::{Message as _, Name as _};
use xxhash_rust::xxh64::xxh64;

use super::access_log::substitution_format;
use super::format::{Format, FormatContext, Style};
use super::stream_info::StreamInfo;
use crate::config::problems::Problems;
use crate::config::Cluster;
use crate::tls::upstream::Names;

/// The cluster that a TCP connection goes to, in place of the proxy's own.
pub const TCP_CLUSTER: &str = "envoy.tcp_proxy.cluster";
/// The idle timeout of a TCP connection in milliseconds, in place of the proxy's own.
pub const TCP_IDLE_TIMEOUT: &str = "envoy.tcp_proxy.per_connection_idle_timeout_ms";
/// The server's name that TLS upstream asks for.
pub const SERVER_NAME: &str = "envoy.network.upstream_server_name";
/// Names of which the upstream's certificate must have one, separated by commas.
pub const SUBJECT_ALT_NAMES: &str = "envoy.network.upstream_subject_alt_names";
/// Protocols that TLS offers to the upstream, separated by commas.
pub const APPLICATION_PROTOCOLS: &str = "envoy.network.application_protocols";
/// Where an `ORIGINAL_DST` cluster connects to.
pub const ORIGINAL_DST: &str = "envoy.network.transport_socket.original_dst_address";
/// Where the client of an internal listener meant to go, and where it came from, for its original-destination filter.
pub const LOCAL_IP: &str = "envoy.filters.listener.original_dst.local_ip";
/// See [`LOCAL_IP`].
pub const REMOTE_IP: &str = "envoy.filters.listener.original_dst.remote_ip";
/// A text.
const TEXT: &str = "envoy.string";
/// A text that hash policies can hash.
const HASHABLE: &str = "envoy.hashable_string";

/// The name, shared.
static OFFER: LazyLock<Arc<str>> = LazyLock::new(|| APPLICATION_PROTOCOLS.into());

/// What an object is made into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Text,
    Hashable,
    /// As [`Kind::Text`], but of a filter's own: no message stands for it in logs.
    Own,
    Address,
    Number,
}

impl Kind {
    /// What is made under this name.
    fn of(factory: &str) -> Option<Self> {
        Some(match factory {
            TEXT => Kind::Text,
            HASHABLE => Kind::Hashable,
            TCP_CLUSTER | SERVER_NAME | SUBJECT_ALT_NAMES | APPLICATION_PROTOCOLS => Kind::Own,
            ORIGINAL_DST | LOCAL_IP | REMOTE_IP => Kind::Address,
            TCP_IDLE_TIMEOUT => Kind::Number,
            _ => return None,
        })
    }
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Object {
    kind: Kind,
    text: Arc<str>,
    /// The JSON of its message, where that is not its text's.
    json: Option<Arc<str>>,
    shared: bool,
    /// It is shared with the upstream's upstream too, where that is in this process.
    onward: bool,
}

impl Object {
    fn own(text: Arc<str>, json: Option<Arc<str>>) -> Self {
        Self { kind: Kind::Own, text, json, shared: false, onward: false }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The hash of it, where it is made to be hashed.
    pub fn hash(&self) -> Option<u64> {
        (self.kind == Kind::Hashable).then(|| xxh64(self.text.as_bytes(), 0))
    }

    /// The message that stands for it in logs, if one does.
    pub(super) fn message(&self) -> Option<Any> {
        let (name, value) = match self.kind {
            Kind::Text | Kind::Hashable => {
                (StringValue::type_url(), StringValue { value: self.text.to_string() }.encode_to_vec())
            }
            Kind::Number => {
                let value = self.text.parse().ok()?;
                (UInt64Value::type_url(), UInt64Value { value }.encode_to_vec())
            }
            Kind::Own | Kind::Address => return None,
        };
        Some(Any { type_url: name, value })
    }

    /// Whether a message stands for it in logs.
    pub(super) fn is_message(&self) -> bool {
        matches!(self.kind, Kind::Text | Kind::Hashable | Kind::Number)
    }
}

/// Objects by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Objects(Vec<(Arc<str>, Object)>);

impl Objects {
    /// The object of this name.
    pub fn get(&self, name: &str) -> Option<&Object> {
        self.0.iter().find(|(own, _)| **own == *name).map(|(_, object)| object)
    }

    fn set(&mut self, name: &Arc<str>, object: Object) {
        match self.0.iter_mut().find(|(own, _)| own == name) {
            Some((_, there)) => *there = object,
            None => self.0.push((name.clone(), object)),
        }
    }

    /// As they are passed on.
    pub fn onward(&self) -> Self {
        let each = |(name, object): &(Arc<str>, Object)| {
            (name.clone(), Object { shared: object.onward, ..object.clone() })
        };
        Self(self.0.iter().map(each).collect())
    }

    /// Where the connection is to go, if an object says so.
    pub fn original_dst(&self) -> Option<SocketAddr> {
        self.get(ORIGINAL_DST)?.text.parse().ok()
    }

    /// Stands for the objects that set upstream connections apart; 0 = there are none.
    pub fn apart(&self) -> u64 {
        let shared = self.0.iter().filter(|(_, object)| object.shared && object.hash().is_some());
        // The name is the seed, and the order does not matter.
        let each = shared.map(|(name, object)| xxh64(object.text.as_bytes(), xxh64(name.as_bytes(), 0)));
        each.fold(0, |all, one| all ^ one)
    }
}

/// `set_filter_state` filters' lists of objects to set.
#[derive(Debug, Default)]
pub struct Setters(Box<[Setter]>);

#[derive(Debug)]
struct Setter {
    name: Arc<str>,
    kind: Kind,
    format: Format,
    shared: bool,
    onward: bool,
    skip_if_empty: bool,
}

impl Setters {
    /// Compiles `list`, which is the field `field`.
    pub fn compile(list: &[pb::FilterStateValue], field: &str, problems: &mut Problems) -> Self {
        let each = |(index, value)| problems.at_index(field, index, |problems| setter(value, problems));
        Self(list.iter().enumerate().filter_map(each).collect())
    }

    /// Whether there is nothing to set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The objects that `context` gives, each of which sees those before it. `info` is that of `context`.
    pub fn apply(&self, request: Option<&dyn crate::config::HeaderView>, info: &mut StreamInfo) {
        let mut text = Vec::new();
        for setter in &self.0 {
            text.clear();
            let context = FormatContext { request, ..FormatContext::new(info) };
            setter.format.render(&mut text, &context);
            if text.is_empty() && setter.skip_if_empty {
                continue;
            }
            let Some(object) = setter.object(&text) else {
                let shown = String::from_utf8_lossy(&text);
                tracing::error!("Failed to create an object '{}' from value '{shown}'", setter.name);
                continue;
            };
            if info.connection.objects.as_ref().is_some_and(|all| all.get(&setter.name).is_some()) {
                tracing::debug!("the filter state {:?} is the connection's and stays as it is", setter.name);
                continue;
            }
            info.objects.get_or_insert_default().set(&setter.name, object);
        }
    }
}

impl Setter {
    fn object(&self, bytes: &[u8]) -> Option<Object> {
        let text = String::from_utf8_lossy(bytes);
        match self.kind {
            Kind::Address => drop(text.parse::<SocketAddr>().ok()?),
            Kind::Number => drop(text.parse::<u64>().ok()?),
            Kind::Text | Kind::Hashable | Kind::Own => {}
        }
        let Setter { kind, shared, onward, .. } = *self;
        Some(Object { kind, text: text.into(), json: None, shared, onward })
    }
}

fn setter(config: &pb::FilterStateValue, problems: &mut Problems) -> Option<Setter> {
    use pb::filter_state_value::{Key, SharedWithUpstream, Value};
    // A missing key or value, and one that is empty, break field rules.
    let Key::ObjectKey(name) = config.key.as_ref()?;
    let Value::FormatString(format) = config.value.as_ref()?;
    let factory = if config.factory_key.is_empty() { name } else { &config.factory_key };
    let Some(kind) = Kind::of(factory) else {
        problems.report(format!("'{factory}' does not have an object factory"));
        return None;
    };
    let format = problems.at("format_string", |problems| {
        let style = if format.omit_empty_values { Style::Header } else { Style::Body };
        substitution_format(format, style, problems)
    })?;
    Some(Setter {
        name: name.as_str().into(),
        kind,
        format,
        shared: config.shared_with_upstream() != SharedWithUpstream::None,
        onward: config.shared_with_upstream() == SharedWithUpstream::Transitive,
        skip_if_empty: config.skip_if_empty,
    })
}

impl StreamInfo {
    /// The object of this name, of the stream or of its connection.
    pub fn object(&self, name: &str) -> Option<&Object> {
        self.objects().find_map(|objects| objects.get(name))
    }

    /// TLS offers these protocols to the upstream, unless something else was said before.
    pub fn offer_protocols(&mut self, offer: &Arc<str>) {
        if self.object(APPLICATION_PROTOCOLS).is_none() {
            self.objects.get_or_insert_default().set(&OFFER, Object::own(offer.clone(), None));
        }
    }

    /// Leaves an object of a filter's own: what it is as text, and as the JSON of its message.
    pub fn leave_object(&mut self, name: &Arc<str>, text: &str, json: &str) {
        let object = Object::own(text.into(), Some(json.into()));
        self.objects.get_or_insert_default().set(name, object);
    }

    /// Whether there may be any.
    #[inline]
    pub fn has_objects(&self) -> bool {
        self.objects.is_some() || self.connection.objects.is_some()
    }

    fn objects(&self) -> impl Iterator<Item = &Objects> {
        self.objects.as_deref().into_iter().chain(self.connection.objects.as_deref())
    }

    /// Where an `ORIGINAL_DST` cluster connects to, if an object says so.
    pub fn destination(&self) -> Option<SocketAddr> {
        self.objects().find_map(Objects::original_dst)
    }

    /// Whether the connection upstream is anyhow this client's own: objects say so, or it has the client's address.
    #[inline]
    pub fn has_own_upstream(&self) -> bool {
        self.has_objects() || self.connection.source.is_some()
    }

    /// Those that are shared with the upstream.
    fn shared(&self) -> Option<Arc<Objects>> {
        let mut shared = Objects::default();
        // What the connection has stands first, as it does for a request.
        for (name, object) in
            self.objects().flat_map(|objects| &objects.0).filter(|(_, object)| object.shared)
        {
            if shared.get(name).is_none() {
                shared.set(name, object.clone());
            }
        }
        (!shared.0.is_empty()).then(|| Arc::new(shared))
    }

    /// What sets the connection to `cluster` apart; `tls` says that it has TLS, `announced` that the host is told of
    /// the client.
    pub fn upstream_names(&self, cluster: &Cluster, tls: bool, announced: bool) -> Names {
        let text = |name| self.object(name).map(Object::text).filter(|text| tls && !text.is_empty());
        let sans = text(SUBJECT_ALT_NAMES).into_iter().flat_map(|list| list.split(','));
        Names {
            sni: text(SERVER_NAME).map(Into::into),
            sans: sans.map(|name| name.trim().into()).collect(),
            alpn: self
                .object(APPLICATION_PROTOCOLS)
                .filter(|object| tls && !object.text.is_empty())
                .map(|object| object.text.clone()),
            apart: self.objects().map(Objects::apart).fold(0, |a, b| a ^ b),
            source: self.connection.source,
            ends: self.connection.ends().filter(|_| announced),
            shared: if cluster.passes() { self.shared() } else { None },
        }
    }
}

/// `FILTER_STATE(name:form)`.
#[derive(Debug)]
pub(super) struct Way {
    name: Box<str>,
    plain: bool,
}

impl Way {
    pub(super) fn parse(argument: &str) -> Result<Self, &'static str> {
        let (name, form) = argument.split_once(':').unwrap_or((argument, "TYPED"));
        match form {
            "PLAIN" => Ok(Self { name: name.into(), plain: true }),
            "TYPED" => Ok(Self { name: name.into(), plain: false }),
            _ => Err("the form must be PLAIN or TYPED"),
        }
    }

    /// Appends the object: as it is, or as the JSON of its message. False when there is none.
    pub(super) fn write(&self, out: &mut Vec<u8>, info: &StreamInfo) -> bool {
        let Some(object) = info.object(&self.name) else { return false };
        if self.plain {
            out.extend_from_slice(object.text.as_bytes());
            return true;
        }
        if let Some(json) = &object.json {
            out.extend_from_slice(json.as_bytes());
            return true;
        }
        // Text is always valid JSON.
        object.is_message() && serde_json::to_writer(out, object.text()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::fixtures;
    use outrigger_control_api::pb::envoy::config::core::v3::substitution_format_string::Format as Source;
    use outrigger_control_api::pb::envoy::config::core::v3::SubstitutionFormatString;

    fn value(key: &str, factory: &str, format: &str) -> pb::FilterStateValue {
        #[allow(deprecated)] // The shortest form.
        let format = SubstitutionFormatString {
            format: Some(Source::TextFormat(format.to_owned())),
            ..SubstitutionFormatString::default()
        };
        pb::FilterStateValue {
            key: Some(pb::filter_state_value::Key::ObjectKey(key.to_owned())),
            factory_key: factory.to_owned(),
            value: Some(pb::filter_state_value::Value::FormatString(format)),
            ..pb::FilterStateValue::default()
        }
    }

    #[test]
    fn objects_are_set_in_order() {
        let mut problems = Problems::new();
        let list = [
            value("a", TEXT, "one"),
            value("a", TEXT, "%FILTER_STATE(a:PLAIN)% and two"),
            value("b", TEXT, "first"),
            // As in Envoy, that it should stay has no effect.
            pb::FilterStateValue { read_only: true, ..value("b", TEXT, "second") },
            value("b", HASHABLE, "%FILTER_STATE(a)%"),
            value(ORIGINAL_DST, "", "127.0.0.1:8080"),
            value("c", ORIGINAL_DST, "nowhere"),
            pb::FilterStateValue { skip_if_empty: true, ..value("d", TEXT, "") },
            pb::FilterStateValue { shared_with_upstream: 1, ..value("e", HASHABLE, "e") },
        ];
        let setters = Setters::compile(&list, "on_new_connection", &mut problems);
        assert_eq!(problems.list(), [], "all are good");
        let mut info = fixtures::stream();
        setters.apply(None, &mut info);
        let text = |name: &str| info.object(name).map(|object| object.text().to_owned());
        assert_eq!(text("a").as_deref(), Some("one and two"));
        assert_eq!(text("b").as_deref(), Some("\"one and two\""));
        assert_eq!((text("c"), text("d")), (None, None));
        assert_eq!(info.object("a").and_then(Object::hash), None);
        assert_eq!(info.object("b").and_then(Object::hash), Some(xxh64(b"\"one and two\"", 0)));
        let objects = info.objects.as_ref().expect("objects");
        assert_eq!(objects.original_dst(), Some(([127, 0, 0, 1], 8080).into()));
        assert_ne!(objects.apart(), 0, "e is shared");
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let mut problems = Problems::new();
        let setters = Setters::compile(&[value("my.key", "", "x")], "on_new_connection", &mut problems);
        assert!(setters.is_empty());
        let problem = &problems.list()[0];
        assert_eq!(problem.path, "on_new_connection[0]");
        assert_eq!(problem.message, "'my.key' does not have an object factory");
    }
}
