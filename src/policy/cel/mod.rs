//! Conditions in the Common Expression Language, as Envoy evaluates them.
//!
//! Comes in: an expression as text, or parsed already (`google.api.expr.v1alpha1`, `cel.expr`), when config is
//! compiled; the [`Subject`] it speaks of, for each request, connection or log line. Goes out: whether it is true.
//!
//! Names are resolved when config is compiled, and evaluating copies nothing but what it has to put together. Envoy
//! switches loops off (`all`, `exists`, `map`, `filter`), so the work is bounded by the expression's size; that is
//! bounded in [`parse`]. An evaluation that fails, and one whose result is no truth value, count as false.

mod attribute;
mod compile;
mod eval;
mod function;
mod parse;
#[cfg(test)]
mod tests;
mod value;

use outrigger_control_api::pb::google::api::expr::v1alpha1::Expr;
use outrigger_control_api::pb::google::protobuf as wire;

use self::compile::Node;
use self::value::Value;
use super::rbac::Facts;
use crate::config::HeaderView;
use crate::telemetry::format::FormatContext;
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata, StreamInfo};

/// Why an expression was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CelError {
    /// It does not parse.
    #[error("{0}")]
    Syntax(String),
    /// It is larger or deeper than what is taken.
    #[error("the expression is too large or nested too deeply")]
    TooLarge,
    /// A part of it is empty.
    #[error("a part of the expression is missing")]
    Incomplete,
    /// A loop.
    #[error("all(), exists(), map() and filter() are switched off, as in Envoy")]
    Loop,
    /// A message is made.
    #[error("messages cannot be made")]
    Message,
    /// Something is called that does not exist.
    #[error("the function {0}() with {1} arguments is not supported")]
    Function(String, usize),
    /// A regular expression is wrong.
    #[error("{0}")]
    Regex(String),
    /// Something that Envoy tells, but not this proxy.
    #[error("the attribute {0} is not available here")]
    Attribute(String),
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expression(Node);

/// What an expression speaks of.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The connection.
    pub connection: &'a ConnectionInfo,
    /// The stream, where there is one.
    pub stream: Option<&'a StreamInfo>,
    /// The request's head.
    pub request: Option<&'a dyn HeaderView>,
    /// The response's head.
    pub response: Option<&'a dyn HeaderView>,
    /// The response's trailers.
    pub trailers: Option<&'a dyn HeaderView>,
    /// What filters noted.
    pub dynamic: Option<&'a DynamicMetadata>,
}

impl Expression {
    /// From text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_text(text: &str) -> Result<Self, CelError> {
        Self::of_tree(&parse::parse(text)?)
    }

    /// From a tree.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_tree(tree: &Expr) -> Result<Self, CelError> {
        compile::compile(tree).map(Self)
    }

    /// Whether it is true.
    pub fn is_true(&self, subject: &Subject<'_>) -> bool {
        matches!(self.0.evaluate(subject), Ok(Value::Bool(true)))
    }

    /// Its value as text, in Envoy's form; `None` where it fails.
    pub fn text(&self, subject: &Subject<'_>) -> Option<Box<str>> {
        self.0.evaluate(subject).ok().map(|value| value.text())
    }

    /// What it evaluates to, as a message: truth values, null and numbers as they are, the rest as text. `None` where evaluating fails.
    pub fn message(&self, subject: &Subject<'_>) -> Option<wire::Value> {
        self.0.evaluate(subject).ok().map(|value| value.to_message())
    }

    /// Whether it asks for dynamic metadata.
    pub fn reads_metadata(&self) -> bool {
        self.0.reads_metadata()
    }
}

impl<'a> From<&Facts<'a>> for Subject<'a> {
    fn from(facts: &Facts<'a>) -> Self {
        Self {
            connection: facts.connection,
            stream: facts.stream,
            request: facts.request.map(|request| request as &dyn HeaderView),
            response: None,
            trailers: None,
            dynamic: facts.dynamic,
        }
    }
}

impl<'a> From<&FormatContext<'a>> for Subject<'a> {
    fn from(context: &FormatContext<'a>) -> Self {
        Self {
            connection: &context.info.connection,
            stream: Some(context.info),
            request: context.request,
            response: context.response,
            trailers: context.trailers,
            dynamic: context.info.metadata.as_deref(),
        }
    }
}
