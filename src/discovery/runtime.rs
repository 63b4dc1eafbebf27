//! Runtime layers: RTDS.
//!
//! In: encoded `Runtime` resources. Out: the values that clusters are compiled with. Discovered clusters
//! are compiled anew when a value changes; those of the bootstrap, and access-log filters, keep the
//! values of the moment they were compiled.

use std::sync::Arc;

use outrigger_control_api::client::{Rejection, Resource};
use outrigger_control_api::pb::envoy::service::runtime::v3::Runtime as PbRuntime;
use outrigger_control_api::pb::google::protobuf::Struct;
use prost::Message as _;

use super::effects::{Effects, RTDS};
use super::resource::{Refused, Stored};
use super::sources::{Sources, StreamId};
use crate::config::compile::resource::Compiler;
use crate::config::discovery::RtdsLayer;
use crate::config::Problem;
use crate::telemetry::metrics::Scope;

crate::stats! {
    /// `runtime.`.
    pub(super) struct RuntimeStats {
        counters { load_success, load_error }
        gauges { num_keys, num_layers }
        histograms {}
    }
}

/// The layers that control planes fill.
pub(super) struct Layers {
    compiler: Arc<Compiler>,
    layers: Vec<Layer>,
    stats: RuntimeStats,
}

struct Layer {
    /// Its name in the bootstrap.
    layer: Arc<str>,
    /// The resource's.
    name: Arc<str>,
    stream: StreamId,
    stored: Option<Stored>,
    values: Option<Struct>,
    answered: bool,
}

impl Layers {
    /// Asks for them.
    pub(super) fn new(
        compiler: Arc<Compiler>,
        layers: &[RtdsLayer],
        sources: &mut Sources,
        effects: &mut Effects,
    ) -> Self {
        let layer = |layer: &RtdsLayer| {
            let stream = sources.stream(&layer.source.source, None, RTDS);
            effects.subscribe(stream, RTDS, &layer.name, layer.source.initial_fetch_timeout);
            let (layer, name) = (layer.layer.clone(), layer.name.clone());
            Layer { layer, name, stream, stored: None, values: None, answered: false }
        };
        let stats = RuntimeStats::new(&Scope::raw("runtime"));
        let layers = Self { layers: layers.iter().map(layer).collect(), compiler, stats };
        layers.publish();
        layers
    }

    /// Takes a layer; true if that changes a value.
    pub(super) fn update(&mut self, resource: &Resource, stream: StreamId) -> Result<bool, Rejection> {
        let layer =
            self.layers.iter_mut().find(|layer| *layer.name == *resource.name && layer.stream == stream);
        let Some(layer) = layer else { return Ok(false) };
        layer.answered = true;
        if let Some(stored) = layer.stored.as_mut().filter(|stored| stored.is(resource)) {
            stored.confirm(resource);
            return Ok(false);
        }
        let refuse = |problem: Problem| Refused::new(resource, &[problem]).rejection(&resource.name);
        let read = match PbRuntime::decode(&*resource.body) {
            Ok(read) if read.name == resource.name => read,
            Ok(read) => {
                self.stats.load_error.increment(1);
                let message =
                    format!("the resource is called {:?} and the layer {:?}", resource.name, read.name);
                return Err(refuse(Problem::new("name", message)));
            }
            Err(error) => {
                self.stats.load_error.increment(1);
                return Err(refuse(Problem::new("", format!("the bytes are no valid Runtime: {error}"))));
            }
        };
        layer.stored = Some(Stored::new(resource));
        layer.values = read.layer;
        let (name, values) = (layer.layer.clone(), layer.values.clone());
        Ok(self.set(&name, &values.unwrap_or_default()))
    }

    /// The control plane has no such layer, or took it away: it has no values.
    pub(super) fn absent(&mut self, name: &str, stream: StreamId, removed: bool) -> bool {
        let layer = self.layers.iter_mut().find(|layer| *layer.name == *name && layer.stream == stream);
        let Some(layer) = layer else { return false };
        layer.answered = true;
        if !removed || layer.stored.take().is_none() {
            return false;
        }
        layer.values = None;
        let name = layer.layer.clone();
        self.set(&name, &Struct::default())
    }

    fn set(&self, layer: &str, values: &Struct) -> bool {
        let old = self.compiler.runtime.load_full();
        let new = old.with_layer(layer, values);
        let changed = !new.iter().eq(old.iter());
        self.compiler.runtime.store(Arc::new(new));
        if changed {
            self.maintain();
        }
        self.stats.load_success.increment(1);
        self.publish();
        changed
    }

    /// Clusters that are awake go into maintenance, or come out of it.
    fn maintain(&self) {
        let runtime = self.compiler.runtime.load();
        for cluster in self.compiler.clusters.all().iter().filter_map(|slot| slot.get()) {
            cluster.drops.maintain(runtime.maintenance(&cluster.name));
        }
    }

    fn publish(&self) {
        let runtime = self.compiler.runtime.load();
        self.stats.num_keys.set(runtime.iter().count() as f64);
        self.stats.num_layers.set(runtime.layers().len() as f64);
    }

    /// Whether all layers came, or were waited for long enough.
    pub(super) fn are_answered(&self) -> bool {
        self.layers.iter().all(|layer| layer.answered)
    }

    /// Each layer's name in the bootstrap with its values now.
    pub(super) fn values(&self) -> impl Iterator<Item = (&Arc<str>, &Struct)> {
        self.layers.iter().filter_map(|layer| Some((&layer.layer, layer.values.as_ref()?)))
    }
}
