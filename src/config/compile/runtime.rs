//! Runtime values: the layers of the bootstrap, flattened. Later layers win. Static layers have their
//! values from the start; a control plane fills others ([`Runtime::with_layer`]).

use std::collections::BTreeMap;

use outrigger_control_api::pb::envoy::config::bootstrap::v3::{
    runtime_layer::LayerSpecifier, LayeredRuntime,
};
use outrigger_control_api::pb::google::protobuf::{value::Kind, Struct};

use crate::config::matcher::Fraction;
use crate::config::problems::Problems;

/// Runtime keys and their values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Runtime {
    values: BTreeMap<String, Value>,
    /// Names of the layers, in order.
    layers: Vec<String>,
    /// What each of them says.
    by_layer: Vec<BTreeMap<String, Value>>,
}

/// What keys of maintenance begin with.
const MAINTENANCE: &str = "upstream.maintenance_mode.";

/// The most that `drop_overloads` may refuse, in percent.
pub const DROP_OVERLOAD_LIMIT: &str = "load_balancing_policy.drop_overload_limit";

/// One runtime value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number.
    Number(f64),
    /// A switch.
    Bool(bool),
    /// Anything else.
    Text(String),
    /// A fractional percent: numerator and denominator.
    Fraction(u32, u32),
}

impl Runtime {
    /// Flattens the layers. Only static ones have values; the others are judged by the support table.
    pub(super) fn compile(layered: Option<&LayeredRuntime>, problems: &mut Problems) -> Self {
        let mut runtime = Self::default();
        let mut admin = false;
        for (index, layer) in layered.iter().flat_map(|layered| &layered.layers).enumerate() {
            if !layer.name.is_empty() && runtime.layers.contains(&layer.name) {
                problems.at_index("layers", index, |problems| {
                    problems.report_at("name", format!("duplicate runtime layer {:?}", layer.name));
                });
            }
            runtime.layers.push(layer.name.clone());
            if matches!(layer.layer_specifier, Some(LayerSpecifier::AdminLayer(_))) {
                if admin {
                    problems.report_at(
                        format_args!("layers[{index}].admin_layer"),
                        "there can be one admin layer",
                    );
                }
                admin = true;
            }
            let mut values = BTreeMap::new();
            if let Some(LayerSpecifier::StaticLayer(layer)) = &layer.layer_specifier {
                flatten("", layer, &mut values);
            }
            runtime.by_layer.push(values);
        }
        runtime.merge();
        runtime
    }

    /// One layer of these values.
    #[cfg(test)]
    pub(crate) fn of(values: &Struct) -> Self {
        let mut layer = BTreeMap::new();
        flatten("", values, &mut layer);
        let mut runtime = Self { by_layer: vec![layer], layers: vec!["test".into()], ..Self::default() };
        runtime.merge();
        runtime
    }

    /// The same with other values in `layer`.
    #[must_use]
    pub fn with_layer(&self, layer: &str, values: &Struct) -> Self {
        let mut runtime = self.clone();
        let place = self.layers.iter().position(|name| name == layer);
        if let Some(place) = place.and_then(|index| runtime.by_layer.get_mut(index)) {
            place.clear();
            flatten("", values, place);
        }
        runtime.merge();
        runtime
    }

    fn merge(&mut self) {
        self.values.clear();
        for layer in &self.by_layer {
            self.values.extend(layer.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
    }

    /// The number under `key`.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.values.get(key)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The switch under `key`.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        match self.values.get(key)? {
            Value::Bool(on) => Some(*on),
            _ => None,
        }
    }

    /// The share of a cluster's requests that is refused (`upstream.maintenance_mode.<cluster>`), in percent.
    pub fn maintenance(&self, cluster: &str) -> u32 {
        // Saturates; more than all is all.
        self.number(&format!("{MAINTENANCE}{cluster}")).map_or(0, |percent| (percent as u32).min(100))
    }

    /// The share under `key`: a number is a percentage, as in Envoy.
    pub fn fraction(&self, key: &str) -> Option<Fraction> {
        match self.values.get(key)? {
            Value::Fraction(numerator, denominator) => Some(Fraction::new(*numerator, *denominator)),
            // Saturates; what is negative is none.
            Value::Number(number) => Some(Fraction::new(*number as u32, 100)),
            _ => None,
        }
    }

    /// Every key with its value, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The layers' names.
    pub fn layers(&self) -> &[String] {
        &self.layers
    }
}

impl Value {
    fn of_text(text: &str) -> Self {
        match text {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => text.parse().map_or_else(|_| Value::Text(text.to_owned()), Value::Number),
        }
    }
}

fn flatten(prefix: &str, values: &Struct, into: &mut BTreeMap<String, Value>) {
    for (key, value) in &values.fields {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let value = match &value.kind {
            Some(Kind::NumberValue(number)) => Value::Number(*number),
            Some(Kind::BoolValue(on)) => Value::Bool(*on),
            Some(Kind::StringValue(text)) => Value::of_text(text),
            Some(Kind::StructValue(inner)) => match fraction(inner) {
                Some(fraction) => fraction,
                None => {
                    flatten(&key, inner, into);
                    continue;
                }
            },
            Some(Kind::ListValue(_) | Kind::NullValue(_)) | None => continue,
        };
        into.insert(key, value);
    }
}

/// A structure of the shape of `FractionalPercent`.
fn fraction(fields: &Struct) -> Option<Value> {
    let only = |key: &String| key == "numerator" || key == "denominator";
    let numerator = match fields.fields.get("numerator")?.kind.as_ref()? {
        Kind::NumberValue(number) if fields.fields.keys().all(only) => *number as u32,
        _ => return None,
    };
    let denominator = match fields.fields.get("denominator").and_then(|value| value.kind.as_ref()) {
        None => 100,
        Some(Kind::StringValue(name)) => match name.as_str() {
            "HUNDRED" => 100,
            "TEN_THOUSAND" => 10_000,
            "MILLION" => 1_000_000,
            _ => return None,
        },
        Some(_) => return None,
    };
    Some(Value::Fraction(numerator, denominator))
}

/// Whether a value under `key` changes anything here.
pub(super) fn is_used(key: &str) -> bool {
    key == "upstream.healthy_panic_threshold"
        || key == DROP_OVERLOAD_LIMIT
        || key.starts_with(MAINTENANCE)
        || key.starts_with("circuit_breakers.")
        || key.starts_with("outlier_detection.")
        || matches!(key, "health_check.min_interval" | "health_check.max_interval")
}
