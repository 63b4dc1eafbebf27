//! Evaluation.

use std::cmp::Ordering;

use super::compile::{Arithmetic, Comparison, Node};
use super::value::{header, Failed, Outcome, Value};
use super::Subject;

impl Node {
    /// Its value.
    pub(super) fn evaluate<'a>(&'a self, subject: &Subject<'a>) -> Outcome<'a> {
        match self {
            Node::Constant(constant) => Ok(constant.value()),
            Node::Unknown => Err(Failed),
            Node::Attribute(attribute) => attribute.value(subject),
            Node::Header(whose, key) => header(whose.head(subject).ok_or(Failed)?, key),
            Node::Field(whole, name) => whole.evaluate(subject)?.field(name),
            Node::Index(whole, key) => {
                let whole = whole.evaluate(subject)?;
                whole.entry(&key.evaluate(subject)?)
            }
            Node::HasAttribute(attribute) => Ok(Value::Bool(attribute.value(subject).is_ok())),
            Node::Has(whole, name) => {
                let whole = whole.evaluate(subject)?;
                if whole.is_map() {
                    Ok(Value::Bool(whole.field(name).is_ok()))
                } else {
                    Err(Failed)
                }
            }
            Node::And(one, other) => both(one, other, false, subject),
            Node::Or(one, other) => both(one, other, true, subject),
            Node::Not(inner) => match inner.evaluate(subject)? {
                Value::Bool(is) => Ok(Value::Bool(!is)),
                _ => Err(Failed),
            },
            Node::Choice(condition, yes, no) => match condition.evaluate(subject)? {
                Value::Bool(true) => yes.evaluate(subject),
                Value::Bool(false) => no.evaluate(subject),
                _ => Err(Failed),
            },
            Node::Compare(how, one, other) => {
                let (one, other) = (one.evaluate(subject)?, other.evaluate(subject)?);
                how.holds(&one, &other).map(Value::Bool)
            }
            Node::OneOf(wanted, list) => one_of(&wanted.evaluate(subject)?, list, subject),
            Node::In(wanted, whole) => {
                let wanted = wanted.evaluate(subject)?;
                whole.evaluate(subject)?.contains(&wanted).map(Value::Bool)
            }
            Node::Arithmetic(how, one, other) => {
                how.result(&one.evaluate(subject)?, &other.evaluate(subject)?)
            }
            Node::Negative(inner) => match inner.evaluate(subject)? {
                Value::Int(number) => number.checked_neg().map(Value::Int).ok_or(Failed),
                Value::Double(number) => Ok(Value::Double(-number)),
                Value::Duration(nanos) => nanos.checked_neg().map(Value::Duration).ok_or(Failed),
                _ => Err(Failed),
            },
            Node::Matches(text, pattern) => match text.evaluate(subject)? {
                Value::Text(text) => Ok(Value::Bool(pattern.finds(text.as_bytes()))),
                _ => Err(Failed),
            },
            Node::Call(function, arguments) => function.call(arguments, subject),
            Node::List(elements) => {
                let elements = elements.iter().map(|element| element.evaluate(subject));
                elements.collect::<Result<_, _>>().map(Value::List)
            }
            Node::Map(entries) => {
                let entries =
                    entries.iter().map(|(key, value)| Ok((key.evaluate(subject)?, value.evaluate(subject)?)));
                entries.collect::<Result<_, _>>().map(Value::Map)
            }
        }
    }
}

/// `&&` (which `false` decides) and `||` (which `true` decides): what decides counts even where the other side fails.
fn both<'a>(one: &'a Node, other: &'a Node, decisive: bool, subject: &Subject<'a>) -> Outcome<'a> {
    let truth = |node: &'a Node| match node.evaluate(subject) {
        Ok(Value::Bool(is)) => Ok(is),
        _ => Err(Failed),
    };
    match truth(one) {
        Ok(is) if is == decisive => Ok(Value::Bool(decisive)),
        one => match (one, truth(other)) {
            (_, Ok(is)) if is == decisive => Ok(Value::Bool(decisive)),
            (Ok(_), Ok(is)) => Ok(Value::Bool(is)),
            _ => Err(Failed),
        },
    }
}

/// `x in [a, b]`. Every element has to have a value.
fn one_of<'a>(wanted: &Value<'a>, list: &'a [Node], subject: &Subject<'a>) -> Outcome<'a> {
    let mut found = false;
    for element in list {
        let element = element.evaluate(subject)?;
        found = found || element.equals(wanted);
    }
    Ok(Value::Bool(found))
}

impl Comparison {
    fn holds(self, one: &Value<'_>, other: &Value<'_>) -> Result<bool, Failed> {
        Ok(match self {
            Comparison::Equal => one.equals(other),
            Comparison::Different => !one.equals(other),
            Comparison::Less => one.order(other)? == Ordering::Less,
            Comparison::AtMost => one.order(other)? != Ordering::Greater,
            Comparison::Greater => one.order(other)? == Ordering::Greater,
            Comparison::AtLeast => one.order(other)? != Ordering::Less,
        })
    }
}

impl Arithmetic {
    fn result<'a>(self, one: &Value<'a>, other: &Value<'a>) -> Outcome<'a> {
        use Arithmetic::{Add, Divide, Multiply, Remainder, Subtract};
        let value = match (one, other) {
            (Value::Int(a), Value::Int(b)) => match self {
                Add => a.checked_add(*b),
                Subtract => a.checked_sub(*b),
                Multiply => a.checked_mul(*b),
                Divide => a.checked_div(*b),
                Remainder => a.checked_rem(*b),
            }
            .map(Value::Int),
            (Value::Uint(a), Value::Uint(b)) => match self {
                Add => a.checked_add(*b),
                Subtract => a.checked_sub(*b),
                Multiply => a.checked_mul(*b),
                Divide => a.checked_div(*b),
                Remainder => a.checked_rem(*b),
            }
            .map(Value::Uint),
            (Value::Double(a), Value::Double(b)) => match self {
                Add => Some(a + b),
                Subtract => Some(a - b),
                Multiply => Some(a * b),
                Divide => Some(a / b),
                Remainder => None,
            }
            .map(Value::Double),
            (Value::Duration(a), Value::Duration(b)) => match self {
                Add => a.checked_add(*b),
                Subtract => a.checked_sub(*b),
                _ => None,
            }
            .map(Value::Duration),
            (Value::Time(a), Value::Duration(b)) => match self {
                Add => a.checked_add(*b),
                Subtract => a.checked_sub(*b),
                _ => None,
            }
            .map(Value::Time),
            (Value::Duration(a), Value::Time(b)) if self == Add => a.checked_add(*b).map(Value::Time),
            (Value::Time(a), Value::Time(b)) if self == Subtract => a.checked_sub(*b).map(Value::Duration),
            // Texts are put together nowhere in Envoy unless it is asked to; lists are not either.
            _ => None,
        };
        value.ok_or(Failed)
    }
}
