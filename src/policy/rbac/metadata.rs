//! Tests of metadata (`envoy.type.matcher.v3.MetadataMatcher`).

use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::{Struct, Value};

use crate::config::matcher::StringMatcher;

/// A test of a value at a place in metadata.
#[derive(Debug)]
pub struct MetadataMatcher {
    /// The filter whose metadata are looked at.
    pub filter: Box<str>,
    /// Keys from the outside in; not empty.
    pub path: Box<[Box<str>]>,
    /// What must be there.
    pub value: ValueMatcher,
    /// The contrary must be there.
    pub invert: bool,
}

/// A test of a value.
#[derive(Debug)]
pub enum ValueMatcher {
    /// Nothing, or null.
    Null,
    /// This number.
    Number(f64),
    /// A number from the first up to, not including, the second.
    Range(f64, f64),
    /// A text.
    Text(StringMatcher),
    /// This truth value.
    Bool(bool),
    /// Something, if that is wanted; else nothing passes.
    Present(bool),
    /// A list of which an element passes.
    OneOf(Box<ValueMatcher>),
    /// One of these.
    Any(Box<[ValueMatcher]>),
}

impl MetadataMatcher {
    /// Whether the metadata of [`MetadataMatcher::filter`] pass; none at all count as empty.
    pub fn matches(&self, metadata: Option<&Struct>) -> bool {
        self.value.matches(self.look_up(metadata)) != self.invert
    }

    /// The value that is looked at.
    pub fn look_up<'m>(&self, metadata: Option<&'m Struct>) -> Option<&'m Value> {
        let mut fields = &metadata?.fields;
        let (last, outer) = self.path.split_last()?;
        for key in outer {
            match &fields.get(&**key)?.kind {
                Some(Kind::StructValue(inner)) => fields = &inner.fields,
                _ => return None,
            }
        }
        fields.get(&**last)
    }
}

impl ValueMatcher {
    /// Whether `value` passes.
    pub fn matches(&self, value: Option<&Value>) -> bool {
        let kind = value.and_then(|value| value.kind.as_ref());
        match (self, kind) {
            // A value that is missing is no null.
            (Self::Null, Some(Kind::NullValue(_))) => true,
            (Self::Number(wanted), Some(Kind::NumberValue(number))) => wanted == number,
            (Self::Range(start, end), Some(Kind::NumberValue(number))) => start <= number && number < end,
            (Self::Text(matcher), Some(Kind::StringValue(text))) => matcher.matches(text.as_bytes()),
            (Self::Bool(wanted), Some(Kind::BoolValue(is))) => wanted == is,
            // To want nothing there is to want the impossible, in Envoy too.
            (Self::Present(wanted), kind) => kind.is_some() && *wanted,
            (Self::OneOf(matcher), Some(Kind::ListValue(list))) => {
                list.values.iter().any(|value| matcher.matches(Some(value)))
            }
            (Self::Any(matchers), _) => matchers.iter().any(|matcher| matcher.matches(value)),
            _ => false,
        }
    }
}
