//! Text to a tree. The parser is a crate's; its tree becomes the one that config may also hold as it is, so that there is
//! one compiler.

use cel::common::ast::{EntryExpr, Expr as Parsed, IdedExpr, LiteralValue};
use cel::parser::Parser;
use outrigger_control_api::pb::google::api::expr::v1alpha1 as pb;
use pb::constant::ConstantKind;
use pb::expr::create_struct::entry::KeyKind;
use pb::expr::create_struct::Entry;
use pb::expr::{Call, CreateList, CreateStruct, ExprKind, Ident, Select};

use super::CelError;

/// Longer texts are refused, in bytes.
const MAX_TEXT: usize = 16 << 10;
/// Deeper nesting is refused.
pub(super) const MAX_DEPTH: u16 = 64;

/// Parses `text`.
pub(super) fn parse(text: &str) -> Result<pb::Expr, CelError> {
    // The parser goes as deep as the text does before it counts.
    let openings =
        text.bytes().filter(|byte| matches!(byte, b'(' | b'[' | b'{' | b'!' | b'-' | b'?')).count();
    if text.len() > MAX_TEXT || openings > 4 * usize::from(MAX_DEPTH) {
        return Err(CelError::TooLarge);
    }
    let parsed = Parser::new().max_recursion_depth(MAX_DEPTH).parse(text).map_err(|errors| {
        // It draws the text and an arrow; the first line says what is wrong.
        let said = errors.to_string();
        CelError::Syntax(said.lines().next().unwrap_or_default().to_owned())
    })?;
    tree(&parsed, 0)
}

fn tree(parsed: &IdedExpr, depth: u16) -> Result<pb::Expr, CelError> {
    if depth > 4 * MAX_DEPTH {
        return Err(CelError::TooLarge);
    }
    let inner = |parsed: &IdedExpr| tree(parsed, depth + 1);
    let list = |all: &[IdedExpr]| all.iter().map(inner).collect::<Result<Vec<_>, _>>();
    let kind = match &parsed.expr {
        Parsed::Unspecified => return Err(CelError::Incomplete),
        Parsed::Comprehension(_) => return Err(CelError::Loop),
        Parsed::Struct(_) => return Err(CelError::Message),
        Parsed::Ident(name) => ExprKind::IdentExpr(Ident { name: name.clone() }),
        Parsed::Select(select) => ExprKind::SelectExpr(Box::new(Select {
            operand: Some(Box::new(inner(&select.operand)?)),
            field: select.field.clone(),
            test_only: select.test,
        })),
        Parsed::Call(call) => ExprKind::CallExpr(Box::new(Call {
            target: call.target.as_deref().map(inner).transpose()?.map(Box::new),
            function: call.func_name.clone(),
            args: list(&call.args)?,
        })),
        Parsed::List(found) => {
            ExprKind::ListExpr(CreateList { elements: list(&found.elements)?, ..CreateList::default() })
        }
        Parsed::Map(map) => {
            let entry = |entry: &EntryExpr| match entry {
                EntryExpr::MapEntry(entry) => Ok(Entry {
                    value: Some(inner(&entry.value)?),
                    key_kind: Some(KeyKind::MapKey(inner(&entry.key)?)),
                    ..Entry::default()
                }),
                EntryExpr::StructField(_) => Err(CelError::Message),
            };
            let entries = map.entries.iter().map(|found| entry(&found.expr)).collect::<Result<_, _>>()?;
            ExprKind::StructExpr(CreateStruct { entries, ..CreateStruct::default() })
        }
        Parsed::Literal(literal) => {
            ExprKind::ConstExpr(pb::Constant { constant_kind: Some(constant(literal)) })
        }
    };
    Ok(pb::Expr { expr_kind: Some(kind), ..pb::Expr::default() })
}

fn constant(literal: &LiteralValue) -> ConstantKind {
    match literal {
        LiteralValue::Null => ConstantKind::NullValue(0),
        LiteralValue::Boolean(is) => ConstantKind::BoolValue(*is.inner()),
        LiteralValue::Int(number) => ConstantKind::Int64Value(*number.inner()),
        LiteralValue::UInt(number) => ConstantKind::Uint64Value(*number.inner()),
        LiteralValue::Double(number) => ConstantKind::DoubleValue(*number.inner()),
        LiteralValue::String(text) => ConstantKind::StringValue(text.inner().to_owned()),
        LiteralValue::Bytes(bytes) => ConstantKind::BytesValue(bytes.inner().to_vec()),
    }
}
