//! Messages by descriptor: the tables, and the wire form.

use prost::Message as _;

use super::*;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::{Metadata, SocketAddress};
use crate::pb::google::protobuf::{value::Kind as JsonKind, ListValue, Value as JsonValue};
use crate::reflect::{Kind, SetFieldError, Value as Field};
use crate::{descriptor, pool, to_dynamic, DynamicMessage};

#[test]
fn the_tables_are_consistent() {
    let mut fields = 0;
    for message in pool().all_messages() {
        assert_eq!(pool().get_message_by_name(message.full_name()), Some(message.clone()));
        let mut last = 0;
        for field in message.fields() {
            assert!(field.number() > last, "{field:?}");
            last = field.number();
            assert!(!field.json_name().is_empty() && !field.json_name().contains('_'), "{field:?}");
            assert_eq!(message.get_field(field.number()), Some(field.clone()));
            assert_eq!(message.get_field_by_name(field.name()), Some(field.clone()));
            assert_eq!(message.get_field_by_json_name(field.json_name()), Some(field.clone()));
            match field.kind() {
                Kind::Message(inner) if field.is_map() => {
                    assert!(
                        inner.map_entry_key_field().number() == 1
                            && inner.map_entry_value_field().number() == 2
                    );
                }
                Kind::Enum(descriptor) => assert!(descriptor.get_value(0).is_some(), "{descriptor:?}"),
                _ => {}
            }
            if let Some(oneof) = field.containing_oneof() {
                assert!(oneof.fields().any(|f| f == field) && field.supports_presence(), "{field:?}");
            }
            fields += 1;
        }
        for oneof in message.oneofs() {
            assert!(!oneof.name().is_empty() && oneof.fields().count() > 0, "{oneof:?}");
        }
    }
    assert!(fields > 3000, "{fields}");
}

#[test]
fn the_wire_form_is_that_of_the_typed_message() {
    let dynamic = bootstrap().dynamic;
    let typed: Bootstrap = dynamic.transcode_to().unwrap();
    assert_eq!(to_dynamic(&typed).unwrap(), dynamic);
    let bytes = typed.encode_to_vec();
    assert_eq!(DynamicMessage::decode(dynamic.descriptor(), bytes.as_slice()).unwrap(), dynamic);
}

#[test]
fn numbers_of_every_sign_and_size_survive() {
    let address = |port| SocketAddress {
        protocol: -1,
        port_specifier: Some(crate::pb::envoy::config::core::v3::socket_address::PortSpecifier::PortValue(
            port,
        )),
        ..Default::default()
    };
    for port in [0, 1, 127, 128, u32::MAX] {
        let typed = address(port);
        let dynamic = to_dynamic(&typed).unwrap();
        assert_eq!(dynamic.encode_to_vec(), typed.encode_to_vec());
        assert_eq!(dynamic.transcode_to(), Ok(typed));
    }
    let numbers = [0.0, -0.0, 1.5, f64::MIN_POSITIVE, f64::INFINITY]
        .map(|f| JsonValue { kind: Some(JsonKind::NumberValue(f)) });
    let list = ListValue { values: numbers.to_vec() };
    assert_eq!(to_dynamic(&list).unwrap().encode_to_vec(), list.encode_to_vec());
}

#[test]
fn what_comes_twice_is_merged() {
    let first = Cluster { name: "a".to_owned(), metadata: Some(metadata("x")), ..Cluster::default() };
    let second =
        Cluster { alt_stat_name: "b".to_owned(), metadata: Some(metadata("y")), ..Cluster::default() };
    let bytes = [first.encode_to_vec(), second.encode_to_vec()].concat();
    let merged = DynamicMessage::decode(descriptor::<Cluster>().unwrap(), bytes.as_slice()).unwrap();
    assert_eq!(merged.transcode_to(), Cluster::decode(bytes.as_slice()));
    assert_eq!(merged.get_field_by_name("name").as_deref(), Some(&Field::String("a".to_owned())));
}

fn metadata(key: &str) -> Metadata {
    Metadata {
        filter_metadata: [(key.to_owned(), crate::pb::google::protobuf::Struct::default())].into(),
        ..Default::default()
    }
}

#[test]
fn unknown_fields_are_kept() {
    let mut bytes = Cluster { name: "a".to_owned(), ..Cluster::default() }.encode_to_vec();
    // Field 1000: a varint, then text.
    bytes.extend([0xc0, 0x3e, 0x05, 0xc2, 0x3e, 0x01, b'x']);
    let message = DynamicMessage::decode(descriptor::<Cluster>().unwrap(), bytes.as_slice()).unwrap();
    assert_eq!(
        message.unknown_fields().map(crate::reflect::UnknownField::number).collect::<Vec<_>>(),
        [1000, 1000]
    );
    assert_eq!(message.encode_to_vec(), bytes);
}

#[test]
fn only_fitting_values_are_stored() {
    let mut message = DynamicMessage::new(descriptor::<Cluster>().unwrap());
    let name = message.descriptor().get_field_by_name("name").unwrap();
    assert_eq!(
        message.try_set_field(&name, Field::Bool(true)),
        Err(SetFieldError::WrongType("envoy.config.cluster.v3.Cluster.name".to_owned()))
    );
    assert_eq!(message.try_set_field_by_number(9999, Field::Bool(true)), Err(SetFieldError::NotFound));
    let foreign = descriptor::<Bootstrap>().unwrap().fields().next().unwrap();
    assert_eq!(message.try_set_field(&foreign, Field::Bool(true)), Err(SetFieldError::NotFound));
    // A default says nothing.
    message.try_set_field(&name, Field::String(String::new())).unwrap();
    assert!(!message.has_field(&name) && message.fields().count() == 0);
    // Of a oneof the last counts.
    for field in ["type", "cluster_type"] {
        let field = message.descriptor().get_field_by_name(field).unwrap();
        message.try_set_field(&field, Field::default_of(&field)).unwrap();
    }
    assert_eq!(message.fields().map(|(field, _)| field.name()).collect::<Vec<_>>(), ["cluster_type"]);
}

#[test]
fn nesting_on_the_wire_is_bounded() {
    let mut bytes = Vec::new();
    for _ in 0..200 {
        let nested = crate::pb::google::protobuf::Any { value: bytes, ..Default::default() };
        // The same bytes read as a list in a list: field 6 of Value, field 1 of ListValue.
        let list = [&[0x0a][..], &length(nested.value.len()), &nested.value].concat();
        bytes = [&[0x32][..], &length(list.len()), &list].concat();
    }
    let error = DynamicMessage::decode(descriptor::<JsonValue>().unwrap(), bytes.as_slice()).unwrap_err();
    assert!(error.to_string().contains("nested too deeply"), "{error}");
}

fn length(length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_varint(length as u64, &mut out);
    out
}

#[test]
fn changed_bytes_never_panic_and_are_judged_as_by_the_typed_decoder() {
    let bytes = bootstrap().dynamic.encode_to_vec();
    let descriptor = descriptor::<Bootstrap>().unwrap();
    let (mut good, mut bad) = (0, 0);
    for seed in 1..=2000 {
        let mut random = Random::new(seed);
        let mut changed = bytes.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(changed.len());
            match random.below(3) {
                0 => changed[at] = random.byte(),
                1 => changed.truncate(at.max(1)),
                _ => changed.insert(at, random.byte()),
            }
        }
        let (dynamic, typed) = (
            DynamicMessage::decode(descriptor.clone(), changed.as_slice()),
            Bootstrap::decode(changed.as_slice()),
        );
        match (dynamic, typed) {
            (Ok(dynamic), typed) => {
                good += 1;
                let _ = (crate::to_json(&dynamic), dynamic.encode_to_vec());
                // Unknown fields are not looked into by the typed form.
                assert!(typed.is_ok(), "seed {seed}: {typed:?}");
            }
            (Err(_), _) => bad += 1,
        }
    }
    assert!(good > 100 && bad > 100, "{good} good, {bad} bad");
}
