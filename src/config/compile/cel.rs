//! Conditions in CEL: the messages that hold one in, [`Expression`]s of [`crate::policy::cel`] out.

use outrigger_control_api::pb::cel::expr as newer;
use outrigger_control_api::pb::google::api::expr::v1alpha1 as pb;
use outrigger_control_api::pb::xds::r#type::v3::{cel_expression::ExprSpecifier, CelExpression};
use prost::Message;

use crate::config::problems::Problems;
use crate::policy::cel::Expression;
use crate::telemetry::stream_info::read_dynamic_metadata;

/// An expression that is text.
pub(crate) fn text(text: &str, problems: &mut Problems) -> Option<Expression> {
    finish(Expression::of_text(text), problems)
}

/// An expression that was parsed before.
pub(super) fn tree(tree: &pb::Expr, problems: &mut Problems) -> Option<Expression> {
    finish(Expression::of_tree(tree), problems)
}

/// An expression in one of its forms.
pub(super) fn any(config: &CelExpression, problems: &mut Problems) -> Option<Expression> {
    // The two families of messages are the same on the wire.
    let same = |expr: &newer::Expr| pb::Expr::decode(expr.encode_to_vec().as_slice()).ok();
    let found = match (&config.cel_expr_checked, &config.cel_expr_parsed, &config.expr_specifier) {
        (Some(checked), ..) => checked.expr.as_ref().and_then(same),
        (None, Some(parsed), _) => parsed.expr.as_ref().and_then(same),
        (None, None, Some(ExprSpecifier::ParsedExpr(parsed))) => parsed.expr.clone(),
        (None, None, Some(ExprSpecifier::CheckedExpr(checked))) => checked.expr.clone(),
        (None, None, None) if !config.cel_expr_string.is_empty() => {
            return problems.at("cel_expr_string", |problems| text(&config.cel_expr_string, problems));
        }
        (None, None, None) => None,
    };
    let Some(found) = found else {
        problems.report("holds no expression");
        return None;
    };
    tree(&found, problems)
}

fn finish(
    compiled: Result<Expression, crate::policy::cel::CelError>,
    problems: &mut Problems,
) -> Option<Expression> {
    let compiled = problems.take(compiled)?;
    if compiled.reads_metadata() {
        read_dynamic_metadata();
    }
    Some(compiled)
}
