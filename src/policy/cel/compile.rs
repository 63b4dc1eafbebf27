//! A tree to nodes: names are looked up, calls resolved, patterns compiled.

use std::borrow::Cow;

use outrigger_control_api::pb::google::api::expr::v1alpha1 as pb;
use pb::constant::ConstantKind;
use pb::expr::create_struct::entry::KeyKind;
use pb::expr::{Call, ExprKind, Select};

use super::attribute::{Attribute, Head};
use super::function::Function;
use super::parse::MAX_DEPTH;
use super::value::Value;
use super::CelError;
use crate::config::regex::Search;
use crate::config::HeaderKey;

/// More nodes are refused.
const MAX_NODES: usize = 4096;

/// A part of an expression.
#[derive(Debug)]
pub(super) enum Node {
    Constant(Constant),
    /// A name that nothing has.
    Unknown,
    Attribute(Attribute),
    /// A field of a head.
    Header(Head, HeaderKey),
    Field(Box<Node>, Box<str>),
    Index(Box<Node>, Box<Node>),
    HasAttribute(Attribute),
    Has(Box<Node>, Box<str>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Not(Box<Node>),
    Choice(Box<Node>, Box<Node>, Box<Node>),
    Compare(Comparison, Box<Node>, Box<Node>),
    /// `in` with a list as it is written.
    OneOf(Box<Node>, Vec<Node>),
    In(Box<Node>, Box<Node>),
    Arithmetic(Arithmetic, Box<Node>, Box<Node>),
    Negative(Box<Node>),
    Matches(Box<Node>, Search),
    Call(Function, Vec<Node>),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

#[derive(Debug)]
pub(super) enum Constant {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
    Duration(i64),
    Time(i64),
}

impl Constant {
    pub(super) fn value(&self) -> Value<'_> {
        match self {
            Constant::Null => Value::Null,
            Constant::Bool(is) => Value::Bool(*is),
            Constant::Int(number) => Value::Int(*number),
            Constant::Uint(number) => Value::Uint(*number),
            Constant::Double(number) => Value::Double(*number),
            Constant::Text(text) => Value::Text(Cow::Borrowed(text)),
            Constant::Bytes(bytes) => Value::Bytes(Cow::Borrowed(bytes)),
            Constant::Duration(nanos) => Value::Duration(*nanos),
            Constant::Time(nanos) => Value::Time(*nanos),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Different,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// Compiles `tree`.
pub(super) fn compile(tree: &pb::Expr) -> Result<Node, CelError> {
    let mut compiler = Compiler { nodes: 0, depth: 0 };
    compiler.node(tree)
}

struct Compiler {
    nodes: usize,
    depth: u16,
}

impl Compiler {
    fn node(&mut self, tree: &pb::Expr) -> Result<Node, CelError> {
        self.nodes += 1;
        self.depth += 1;
        if self.nodes > MAX_NODES || self.depth > 4 * MAX_DEPTH {
            return Err(CelError::TooLarge);
        }
        let node = match tree.expr_kind.as_ref().ok_or(CelError::Incomplete)? {
            ExprKind::ConstExpr(constant) => Node::Constant(of_constant(constant)?),
            ExprKind::IdentExpr(ident) => match Attribute::find(&ident.name, None)? {
                Some(attribute) => Node::Attribute(attribute),
                None => Node::Unknown,
            },
            ExprKind::SelectExpr(select) => self.select(select)?,
            ExprKind::CallExpr(call) => self.call(call)?,
            ExprKind::ListExpr(list) => Node::List(self.list(&list.elements)?),
            ExprKind::StructExpr(made) if made.message_name.is_empty() => {
                let mut entries = Vec::with_capacity(made.entries.len());
                for entry in &made.entries {
                    let Some(KeyKind::MapKey(key)) = &entry.key_kind else { return Err(CelError::Message) };
                    let value = entry.value.as_ref().ok_or(CelError::Incomplete)?;
                    entries.push((self.node(key)?, self.node(value)?));
                }
                Node::Map(entries)
            }
            ExprKind::StructExpr(_) => return Err(CelError::Message),
            ExprKind::ComprehensionExpr(_) => return Err(CelError::Loop),
        };
        self.depth -= 1;
        Ok(node)
    }

    fn boxed(&mut self, tree: Option<&pb::Expr>) -> Result<Box<Node>, CelError> {
        self.node(tree.ok_or(CelError::Incomplete)?).map(Box::new)
    }

    fn list(&mut self, list: &[pb::Expr]) -> Result<Vec<Node>, CelError> {
        list.iter().map(|element| self.node(element)).collect()
    }

    /// `whole.field` or `has(whole.field)`.
    fn select(&mut self, select: &Select) -> Result<Node, CelError> {
        let whole = select.operand.as_deref().ok_or(CelError::Incomplete)?;
        if let Some(attribute) = attribute(whole, &select.field)? {
            return Ok(match select.test_only {
                true => Node::HasAttribute(attribute),
                false => Node::Attribute(attribute),
            });
        }
        let whole = self.node(whole)?;
        Ok(match (whole, select.test_only) {
            (Node::Attribute(Attribute::Headers(head)), false) => {
                Node::Header(head, HeaderKey::new(&select.field))
            }
            (whole, false) => Node::Field(Box::new(whole), select.field.as_str().into()),
            (whole, true) => Node::Has(Box::new(whole), select.field.as_str().into()),
        })
    }

    fn call(&mut self, call: &Call) -> Result<Node, CelError> {
        let target = call.target.as_deref();
        let unknown = || {
            let arguments = call.args.len() + usize::from(target.is_some());
            CelError::Function(call.function.clone(), arguments)
        };
        let compare = |name: &str| {
            Some(match name {
                "_==_" => Comparison::Equal,
                "_!=_" => Comparison::Different,
                "_<_" => Comparison::Less,
                "_<=_" => Comparison::AtMost,
                "_>_" => Comparison::Greater,
                "_>=_" => Comparison::AtLeast,
                _ => return None,
            })
        };
        let calculate = |name: &str| {
            Some(match name {
                "_+_" => Arithmetic::Add,
                "_-_" => Arithmetic::Subtract,
                "_*_" => Arithmetic::Multiply,
                "_/_" => Arithmetic::Divide,
                "_%_" => Arithmetic::Remainder,
                _ => return None,
            })
        };
        match (call.function.as_str(), target, &*call.args) {
            ("_&&_", None, [one, other]) => Ok(Node::And(self.boxed(Some(one))?, self.boxed(Some(other))?)),
            ("_||_", None, [one, other]) => Ok(Node::Or(self.boxed(Some(one))?, self.boxed(Some(other))?)),
            ("!_", None, [inner]) => Ok(Node::Not(self.boxed(Some(inner))?)),
            ("-_", None, [inner]) => Ok(Node::Negative(self.boxed(Some(inner))?)),
            ("_?_:_", None, [condition, yes, no]) => {
                Ok(Node::Choice(self.boxed(Some(condition))?, self.boxed(Some(yes))?, self.boxed(Some(no))?))
            }
            ("_[_]", None, [whole, key]) => self.index(whole, key),
            ("@in" | "_in_" | "in", None, [wanted, whole]) => {
                let wanted = self.boxed(Some(wanted))?;
                match self.node(whole)? {
                    Node::List(list) => Ok(Node::OneOf(wanted, list)),
                    whole => Ok(Node::In(wanted, Box::new(whole))),
                }
            }
            ("matches", Some(text), [pattern]) | ("matches", None, [text, pattern]) => {
                let Some(ExprKind::ConstExpr(pattern)) = &pattern.expr_kind else {
                    return Err(CelError::Regex("the pattern of matches() must be written out".to_owned()));
                };
                let Constant::Text(pattern) = of_constant(pattern)? else { return Err(unknown()) };
                let pattern = Search::new(&pattern).map_err(|error| CelError::Regex(error.to_string()))?;
                Ok(Node::Matches(self.boxed(Some(text))?, pattern))
            }
            (name, None, [one, other]) if compare(name).is_some() => {
                let how = compare(name).ok_or_else(unknown)?;
                Ok(Node::Compare(how, self.boxed(Some(one))?, self.boxed(Some(other))?))
            }
            (name, None, [one, other]) if calculate(name).is_some() => {
                let how = calculate(name).ok_or_else(unknown)?;
                Ok(Node::Arithmetic(how, self.boxed(Some(one))?, self.boxed(Some(other))?))
            }
            (name, target, rest) => {
                let count = rest.len() + usize::from(target.is_some());
                let function = Function::find(name, count).ok_or_else(unknown)?;
                let mut arguments = Vec::with_capacity(count);
                for argument in target.into_iter().chain(rest) {
                    arguments.push(self.node(argument)?);
                }
                Ok(Node::Call(function, arguments))
            }
        }
    }

    /// `whole[key]`.
    fn index(&mut self, whole: &pb::Expr, key: &pb::Expr) -> Result<Node, CelError> {
        let Some(ExprKind::ConstExpr(constant)) = &key.expr_kind else {
            return Ok(Node::Index(self.boxed(Some(whole))?, self.boxed(Some(key))?));
        };
        let constant = of_constant(constant)?;
        let Constant::Text(name) = &constant else {
            return Ok(Node::Index(self.boxed(Some(whole))?, Box::new(Node::Constant(constant))));
        };
        if let Some(attribute) = attribute(whole, name)? {
            return Ok(Node::Attribute(attribute));
        }
        Ok(match self.node(whole)? {
            Node::Attribute(Attribute::Headers(head)) => Node::Header(head, HeaderKey::new(name)),
            whole => Node::Field(Box::new(whole), name.clone()),
        })
    }
}

/// The attribute `whole.field`, if that is what they are.
fn attribute(whole: &pb::Expr, field: &str) -> Result<Option<Attribute>, CelError> {
    match &whole.expr_kind {
        Some(ExprKind::IdentExpr(group)) => Attribute::find(&group.name, Some(field)),
        _ => Ok(None),
    }
}

fn of_constant(constant: &pb::Constant) -> Result<Constant, CelError> {
    #[allow(deprecated)] // Two of its kinds are, but they are what they are.
    Ok(match constant.constant_kind.as_ref().ok_or(CelError::Incomplete)? {
        ConstantKind::NullValue(_) => Constant::Null,
        ConstantKind::BoolValue(is) => Constant::Bool(*is),
        ConstantKind::Int64Value(number) => Constant::Int(*number),
        ConstantKind::Uint64Value(number) => Constant::Uint(*number),
        ConstantKind::DoubleValue(number) => Constant::Double(*number),
        ConstantKind::StringValue(text) => Constant::Text(text.as_str().into()),
        ConstantKind::BytesValue(bytes) => Constant::Bytes(bytes.as_slice().into()),
        ConstantKind::DurationValue(duration) => Constant::Duration(nanos(duration.seconds, duration.nanos)),
        ConstantKind::TimestampValue(time) => Constant::Time(nanos(time.seconds, time.nanos)),
    })
}

fn nanos(seconds: i64, nanos: i32) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos.into())
}

impl Node {
    /// Whether dynamic metadata are asked for somewhere in it.
    pub(super) fn reads_metadata(&self) -> bool {
        match self {
            Node::Attribute(attribute) | Node::HasAttribute(attribute) => *attribute == Attribute::Metadata,
            Node::Constant(_) | Node::Unknown | Node::Header(..) => false,
            Node::Field(inner, _)
            | Node::Has(inner, _)
            | Node::Not(inner)
            | Node::Negative(inner)
            | Node::Matches(inner, _) => inner.reads_metadata(),
            Node::Index(one, other)
            | Node::And(one, other)
            | Node::Or(one, other)
            | Node::Compare(_, one, other)
            | Node::In(one, other)
            | Node::Arithmetic(_, one, other) => one.reads_metadata() || other.reads_metadata(),
            Node::Choice(one, two, three) => [one, two, three].iter().any(|node| node.reads_metadata()),
            Node::OneOf(wanted, list) => wanted.reads_metadata() || list.iter().any(Node::reads_metadata),
            Node::Call(_, list) | Node::List(list) => list.iter().any(Node::reads_metadata),
            Node::Map(entries) => {
                entries.iter().any(|(key, value)| key.reads_metadata() || value.reads_metadata())
            }
        }
    }
}
