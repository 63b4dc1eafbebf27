//! Values of config that runtime may change: a switch, a number, a percentage.
//!
//! Comes in: their protobuf form. Goes out: what holds at the moment a request asks.

use arc_swap::ArcSwap;
use outrigger_control_api::pb::envoy::config::core::v3 as pb;

use super::compile::runtime::Runtime;

/// A switch (`RuntimeFeatureFlag`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeSwitch {
    key: Option<Box<str>>,
    default: bool,
}

impl RuntimeSwitch {
    /// Reads `config`; absent means on.
    pub fn of(config: Option<&pb::RuntimeFeatureFlag>) -> Self {
        Self {
            key: key(config.map(|config| &*config.runtime_key)),
            default: config.and_then(|config| config.default_value).is_none_or(|value| value.value),
        }
    }

    /// Whether it is on now.
    pub fn now(&self, runtime: &ArcSwap<Runtime>) -> bool {
        self.key.as_ref().and_then(|key| runtime.load().boolean(key)).unwrap_or(self.default)
    }
}

/// A number within bounds: `RuntimeDouble`, `RuntimePercent`, `RuntimeUInt32`.
#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeNumber {
    key: Option<Box<str>>,
    default: f64,
    most: f64,
}

impl RuntimeNumber {
    /// Reads `config`; absent means `default`.
    pub fn of(config: Option<&pb::RuntimeDouble>, default: f64) -> Self {
        Self {
            key: key(config.map(|config| &*config.runtime_key)),
            default: config.map_or(default, |config| config.default_value),
            most: f64::MAX,
        }
    }

    /// Reads `config`, in percent; absent means `default`.
    pub fn of_percent(config: Option<&pb::RuntimePercent>, default: f64) -> Self {
        Self {
            key: key(config.map(|config| &*config.runtime_key)),
            default: config.and_then(|config| config.default_value).map_or(default, |percent| percent.value),
            most: 100.0,
        }
    }

    /// Reads `config`; absent means `default`.
    pub fn of_integer(config: Option<&pb::RuntimeUInt32>, default: u32) -> Self {
        Self {
            key: key(config.map(|config| &*config.runtime_key)),
            default: f64::from(config.map_or(default, |config| config.default_value)),
            most: f64::from(u32::MAX),
        }
    }

    /// What config says, unless runtime does.
    pub fn default(&self) -> f64 {
        self.default
    }

    /// The number as it is now; one of runtime's that is negative or too large does not count.
    pub fn now(&self, runtime: &ArcSwap<Runtime>) -> f64 {
        let number = self.key.as_ref().and_then(|key| runtime.load().number(key));
        number.filter(|number| (0.0..=self.most).contains(number)).unwrap_or(self.default)
    }
}

/// An empty key is none.
fn key(key: Option<&str>) -> Option<Box<str>> {
    key.filter(|key| !key.is_empty()).map(Into::into)
}

#[cfg(test)]
mod tests {
    use outrigger_control_api::pb::google::protobuf::{value::Kind, Struct, Value};

    use super::*;

    fn runtime(values: &[(&str, Kind)]) -> ArcSwap<Runtime> {
        let value = |kind: &Kind| Value { kind: Some(kind.clone()) };
        let fields = values.iter().map(|(key, kind)| ((*key).to_owned(), value(kind))).collect();
        ArcSwap::from_pointee(Runtime::of(&Struct { fields }))
    }

    #[test]
    fn runtime_goes_before_config_where_it_fits() {
        let flag = pb::RuntimeFeatureFlag { default_value: None, runtime_key: "on".into() };
        let on = RuntimeSwitch::of(Some(&flag));
        assert!(RuntimeSwitch::of(None).now(&runtime(&[])) && on.now(&runtime(&[])));
        assert!(!on.now(&runtime(&[("on", Kind::BoolValue(false))])));
        assert!(on.now(&runtime(&[("on", Kind::NumberValue(0.0))])), "a number is no switch");
        let percent = pb::RuntimePercent { default_value: None, runtime_key: "share".into() };
        let percent = RuntimeNumber::of_percent(Some(&percent), 95.0);
        for (set, expected) in [(50.0, 50.0), (100.5, 95.0), (-1.0, 95.0), (0.0, 0.0)] {
            assert_eq!(percent.now(&runtime(&[("share", Kind::NumberValue(set))])), expected);
        }
        assert_eq!(percent.now(&runtime(&[("other", Kind::NumberValue(1.0))])), 95.0);
    }
}
