//! Fingerprints of resources. In: a message, typed or encoded. Out: a number that is the same for messages
//! that say the same, however they were written: order of fields and map entries, explicit defaults,
//! repeated fields packed or not, and the bytes inside an `Any` do not count. Nothing is compiled here.

use outrigger_control_api::reflect::{MapKey, Value};
use outrigger_control_api::{expand_any, pool, to_dynamic, DynamicMessage, Expanded};
use prost::{Message, Name};
use xxhash_rust::xxh64::{xxh64, Xxh64};

const ANY: &str = "google.protobuf.Any";
/// Messages inside messages beyond this depth are taken as the bytes that they are.
const MAX_DEPTH: usize = 100;

/// The fingerprint of a message.
pub fn fingerprint<M: Message + Name>(message: &M) -> u64 {
    fingerprint_without(message, &[])
}

/// The fingerprint of a message as it would be without these fields.
pub fn fingerprint_without<M: Message + Name>(message: &M, fields: &[&str]) -> u64 {
    match to_dynamic(message) {
        Some(message) => whole(&message, fields),
        // A type without a descriptor is none of the API's.
        None => xxh64(&message.encode_to_vec(), 0),
    }
}

/// The fingerprint of an encoded message of type `type_name` (its full name, without a URL). Of bytes that
/// are no such message, or of a type that this build does not know: that of the bytes.
pub fn of_encoded(type_name: &str, body: &[u8]) -> u64 {
    let decoded = pool().get_message_by_name(type_name).map(|known| DynamicMessage::decode(known, body));
    match decoded {
        Some(Ok(message)) => whole(&message, &[]),
        _ => xxh64(body, xxh64(type_name.as_bytes(), 0)),
    }
}

fn whole(message: &DynamicMessage, without: &[&str]) -> u64 {
    let mut hash = Hash(Xxh64::new(0));
    hash.text(message.descriptor().full_name());
    hash.message(message, without, 0);
    hash.0.digest()
}

/// What is fed cannot be mistaken for something else: every value has its kind and, where it needs one,
/// its length before it.
struct Hash(Xxh64);

impl Hash {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn message(&mut self, message: &DynamicMessage, without: &[&str], depth: usize) {
        let descriptor = message.descriptor();
        if depth > MAX_DEPTH {
            return self.bytes(&message.encode_to_vec());
        }
        if descriptor.full_name() == ANY {
            match expand_any(message, "") {
                Expanded::Message(inner) | Expanded::Opaque { message: inner, .. } => {
                    self.text(inner.descriptor().full_name());
                    return self.message(&inner, &[], depth + 1);
                }
                // As it came.
                Expanded::Empty | Expanded::Unknown(_) | Expanded::Invalid(_) => {}
            }
        }
        for (field, value) in message.fields().filter(|(field, _)| !without.contains(&field.name())) {
            self.number(field.number().into());
            self.value(value, depth + 1);
        }
        if message.unknown_fields().next().is_some() {
            self.bytes(&message.encode_to_vec());
        }
        // No field has this number.
        self.number(0);
    }

    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Bool(value) => self.scalar(1, u64::from(*value)),
            Value::I32(value) => self.scalar(2, i64::from(*value) as u64),
            Value::I64(value) => self.scalar(3, *value as u64),
            Value::U32(value) => self.scalar(4, u64::from(*value)),
            Value::U64(value) => self.scalar(5, *value),
            Value::F32(value) => self.scalar(6, u64::from(value.to_bits())),
            Value::F64(value) => self.scalar(7, value.to_bits()),
            Value::EnumNumber(value) => self.scalar(8, i64::from(*value) as u64),
            Value::String(value) => {
                self.0.update(&[9]);
                self.text(value);
            }
            Value::Bytes(value) => {
                self.0.update(&[10]);
                self.bytes(value);
            }
            Value::Message(value) => {
                self.0.update(&[11]);
                self.message(value, &[], depth);
            }
            Value::List(values) => {
                self.scalar(12, values.len() as u64);
                for value in values {
                    self.value(value, depth);
                }
            }
            Value::Map(entries) => {
                self.scalar(13, entries.len() as u64);
                for (key, value) in entries {
                    self.key(key);
                    self.value(value, depth);
                }
            }
        }
    }

    fn scalar(&mut self, kind: u8, value: u64) {
        self.0.update(&[kind]);
        self.number(value);
    }

    fn key(&mut self, key: &MapKey) {
        match key {
            MapKey::Bool(key) => self.number(u64::from(*key)),
            MapKey::I32(key) => self.number(i64::from(*key) as u64),
            MapKey::I64(key) => self.number(*key as u64),
            MapKey::U32(key) => self.number(u64::from(*key)),
            MapKey::U64(key) => self.number(*key),
            MapKey::String(key) => self.text(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_control_api::load_value;
    use outrigger_control_api::pb::envoy::config::listener::v3::Listener;
    use serde_json::{json, Value as Json};

    use super::*;

    fn listener(value: &Json) -> Listener {
        load_value(value).map(|loaded| loaded.message).unwrap()
    }

    fn base() -> Json {
        json!({
            "name": "l",
            "metadata": {"filter_metadata": {"a": {"x": 1}, "b": {"y": [true, null]}}},
            "filter_chains": [{"name": "c", "filters": [{"name": "tcp", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "t", "cluster": "one"}}]}],
        })
    }

    fn changed(pointer: &str, value: Json) -> Listener {
        let mut json = base();
        *json.pointer_mut(pointer).unwrap() = value;
        listener(&json)
    }

    #[test]
    fn what_is_written_differently_and_says_the_same_is_the_same() {
        let plain = listener(&base());
        let print = fingerprint(&plain);
        assert_eq!(print, of_encoded(&Listener::full_name(), &plain.encode_to_vec()));

        // Fields in another order.
        let name = Listener { name: "l".to_owned(), ..Listener::default() };
        let rest = Listener { name: String::new(), ..plain.clone() };
        let swapped = [rest.encode_to_vec(), name.encode_to_vec()].concat();
        assert_ne!(swapped, plain.encode_to_vec());
        assert_eq!(print, of_encoded(&Listener::full_name(), &swapped));

        // The bytes of an `Any` in another order (the cluster is field 2, the prefix field 1), under
        // another URL, and as a TypedStruct.
        let mut other = plain.clone();
        {
            use outrigger_control_api::pb::envoy::config::listener::v3::filter::ConfigType;
            let Some(ConfigType::TypedConfig(any)) = &mut other.filter_chains[0].filters[0].config_type
            else {
                panic!()
            };
            assert_eq!(any.value, b"\x0a\x01t\x12\x03one");
            any.value = b"\x12\x03one\x0a\x01t".to_vec();
            any.type_url = any.type_url.replace("type.googleapis.com", "type.example");
        }
        assert_eq!(print, fingerprint(&other));
        let structured = changed(
            "/filter_chains/0/filters/0/typed_config",
            json!({"@type": "type.googleapis.com/xds.type.v3.TypedStruct",
                "type_url": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "value": {"stat_prefix": "t", "cluster": "one"}}),
        );
        assert_eq!(print, fingerprint(&structured));
    }

    #[test]
    fn every_difference_counts() {
        let print = fingerprint(&listener(&base()));
        let changes = [
            ("/name", json!("m")),
            ("/metadata/filter_metadata/a/x", json!(2)),
            ("/metadata/filter_metadata/b/y", json!([true, false])),
            ("/filter_chains/0/name", json!("d")),
            ("/filter_chains/0/filters/0/typed_config/cluster", json!("two")),
            ("/filter_chains/0/filters", json!([])),
        ];
        for (pointer, value) in changes {
            assert_ne!(print, fingerprint(&changed(pointer, value)), "{pointer}");
        }
        // An unknown field (number 999, a varint) counts too.
        let unknown = [listener(&base()).encode_to_vec(), vec![0xb8, 0x3e, 1]].concat();
        assert_ne!(print, of_encoded(&Listener::full_name(), &unknown));
        assert_ne!(of_encoded("a.b", b"x"), of_encoded("a.c", b"x"));
        assert_ne!(of_encoded(&Listener::full_name(), b"\xff"), of_encoded(&Listener::full_name(), b"\xfe"));
    }

    #[test]
    fn fields_can_be_left_out() {
        let without = |listener: &Listener| fingerprint_without(listener, &["filter_chains"]);
        let plain = listener(&base());
        let other = changed("/filter_chains/0/name", json!("d"));
        assert_eq!(without(&plain), without(&other));
        assert_eq!(without(&plain), fingerprint(&Listener { filter_chains: Vec::new(), ..plain.clone() }));
        assert_ne!(without(&plain), without(&changed("/name", json!("m"))));
    }
}
