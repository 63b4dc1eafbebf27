//! Turns the validation rules that Envoy's .proto files carry (`validate.rules` options, in the
//! descriptor set of the `xds-api` crate) into a static table, so that reading a configuration needs
//! no descriptor options at run time. Out: `OUT_DIR/rules.rs`, included by
//! `src/config/support/rules.rs`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, ExtensionDescriptor, MessageDescriptor, Value};
use xds_api::pb::validate::{field_rules::Type, string_rules::WellKnown, FieldRules, StringRules};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    let pool = DescriptorPool::decode(xds_api::FILE_DESCRIPTOR_SET)?;
    let extension = |name: &str| {
        pool.get_extension_by_name(name).ok_or_else(|| format!("xds-api has no extension {name}"))
    };
    let extensions =
        Extensions { rules: extension("validate.rules")?, required: extension("validate.required")? };

    let mut table = BTreeMap::new();
    for message in pool.all_messages().filter(|m| !m.is_map_entry()) {
        let lines = rules_of(&message, &extensions)?;
        if !lines.is_empty() {
            table.insert(message.full_name().to_owned(), lines);
        }
    }
    let mut out = String::from("static RULES: &[(&str, &[FieldRule])] = &[\n");
    for (name, lines) in table {
        writeln!(out, "({name:?}, &[{}]),", lines.join(", "))?;
    }
    out.push_str("];\n");
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("rules.rs"), out)?;
    Ok(())
}

struct Extensions {
    rules: ExtensionDescriptor,
    required: ExtensionDescriptor,
}

fn rules_of(message: &MessageDescriptor, extensions: &Extensions) -> Result<Vec<String>, Box<dyn Error>> {
    let mut lines = Vec::new();
    for field in message.fields() {
        let options: DynamicMessage = field.options();
        if !options.has_extension(&extensions.rules) {
            continue;
        }
        let value = options.get_extension(&extensions.rules).into_owned();
        let Value::Message(rules) = value else { continue };
        let rules = FieldRules::decode(rules.encode_to_vec().as_slice())?;
        let checks = checks(&rules, field.full_name())?;
        if !checks.is_empty() {
            lines.push(format!("FieldRule::Field({}, &[{}])", field.number(), checks.join(", ")));
        }
    }
    for oneof in message.oneofs() {
        let options = oneof.options();
        if options.has_extension(&extensions.required)
            && options.get_extension(&extensions.required).as_bool() == Some(true)
        {
            lines.push(format!("FieldRule::OneOf({:?})", oneof.name()));
        }
    }
    Ok(lines)
}

/// The rules of one field as `Check` expressions. A kind of rule that is not known here fails the
/// build, so that none is lost unnoticed.
fn checks(rules: &FieldRules, field: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let mut out = Vec::new();
    if let Some(message) = &rules.message {
        if message.required() {
            out.push("Check::Required".to_owned());
        }
    }
    macro_rules! number {
        ($rules:expr) => {{
            let r = $rules;
            if r.r#const.is_some() || !r.not_in.is_empty() {
                return Err(format!("{field}: const and not_in of numbers are not handled").into());
            }
            let mut inner = Vec::new();
            range(
                &mut inner,
                r.gt.map(f64::from),
                r.gte.map(f64::from),
                r.lt.map(f64::from),
                r.lte.map(f64::from),
            );
            if !r.r#in.is_empty() {
                let values: Vec<_> = r.r#in.iter().map(|v| format!("{:?}", f64::from(*v))).collect();
                inner.push(format!("Check::NumberIn(&[{}])", values.join(", ")));
            }
            push_unless_empty(&mut out, inner, r.ignore_empty());
        }};
    }
    match &rules.r#type {
        None => {}
        Some(Type::Float(r)) => number!(r),
        Some(Type::Double(r)) => number!(r),
        Some(Type::Int32(r)) => number!(r),
        Some(Type::Uint32(r)) => number!(r),
        Some(Type::Int64(r)) => {
            let mut inner = Vec::new();
            range(&mut inner, float(r.gt), float(r.gte), float(r.lt), float(r.lte));
            push_unless_empty(&mut out, inner, r.ignore_empty());
        }
        Some(Type::Uint64(r)) => {
            let to = |v: Option<u64>| v.map(|v| v as f64);
            let mut inner = Vec::new();
            range(&mut inner, to(r.gt), to(r.gte), to(r.lt), to(r.lte));
            push_unless_empty(&mut out, inner, r.ignore_empty());
        }
        Some(Type::Bool(r)) => {
            if let Some(value) = r.r#const {
                out.push(format!("Check::Bool({value})"));
            }
        }
        Some(Type::String(r)) => {
            let inner = text(r, field)?;
            push_unless_empty(&mut out, inner, r.ignore_empty());
        }
        Some(Type::Bytes(r)) => {
            let mut inner = Vec::new();
            length(&mut inner, "Bytes", r.min_len.or(r.len), r.max_len.or(r.len));
            push_unless_empty(&mut out, inner, r.ignore_empty());
        }
        Some(Type::Enum(r)) => {
            if r.defined_only() {
                out.push("Check::DefinedOnly".to_owned());
            }
            if !r.r#in.is_empty() {
                out.push(format!("Check::EnumIn(&{:?})", r.r#in));
            }
            if !r.not_in.is_empty() {
                out.push(format!("Check::EnumNotIn(&{:?})", r.not_in));
            }
        }
        Some(Type::Repeated(r)) => {
            let mut inner = Vec::new();
            length(&mut inner, "Items", r.min_items, r.max_items);
            if r.unique() {
                inner.push("Check::Unique".to_owned());
            }
            if let Some(items) = &r.items {
                each(&mut inner, "Each", &checks(items, field)?);
            }
            push_unless_empty(&mut out, inner, r.ignore_empty());
        }
        Some(Type::Map(r)) => {
            let mut inner = Vec::new();
            length(&mut inner, "Items", r.min_pairs, r.max_pairs);
            if let Some(keys) = &r.keys {
                each(&mut inner, "Keys", &checks(keys, field)?);
            }
            if let Some(values) = &r.values {
                each(&mut inner, "Values", &checks(values, field)?);
            }
            push_unless_empty(&mut out, inner, r.ignore_empty());
        }
        Some(Type::Any(r)) => {
            if r.required() {
                out.push("Check::Required".to_owned());
            }
            if !r.r#in.is_empty() || !r.not_in.is_empty() {
                return Err(format!("{field}: in and not_in of Any are not handled").into());
            }
        }
        Some(Type::Duration(r)) => {
            if r.required() {
                out.push("Check::Required".to_owned());
            }
            type Duration = xds_api::pb::google::protobuf::Duration;
            let to = |v: &Option<Duration>| v.as_ref().map(|v| v.seconds as f64 + f64::from(v.nanos) / 1e9);
            range(&mut out, to(&r.gt), to(&r.gte), to(&r.lt), to(&r.lte));
        }
        Some(Type::Timestamp(r)) if r.required() => out.push("Check::Required".to_owned()),
        Some(Type::Timestamp(_)) => {}
        Some(other) => return Err(format!("{field}: {other:?} is not handled").into()),
    }
    Ok(out)
}

fn float(value: Option<i64>) -> Option<f64> {
    value.map(|v| v as f64)
}

fn range(out: &mut Vec<String>, gt: Option<f64>, gte: Option<f64>, lt: Option<f64>, lte: Option<f64>) {
    if let Some(low) = gt {
        out.push(format!("Check::Above({low:?})"));
    }
    if let Some(low) = gte {
        out.push(format!("Check::AtLeast({low:?})"));
    }
    if let Some(high) = lt {
        out.push(format!("Check::Below({high:?})"));
    }
    if let Some(high) = lte {
        out.push(format!("Check::AtMost({high:?})"));
    }
}

fn length(out: &mut Vec<String>, what: &str, min: Option<u64>, max: Option<u64>) {
    if let Some(min) = min {
        out.push(format!("Check::Min{what}({min})"));
    }
    if let Some(max) = max {
        out.push(format!("Check::Max{what}({max})"));
    }
}

fn each(out: &mut Vec<String>, what: &str, inner: &[String]) {
    if !inner.is_empty() {
        out.push(format!("Check::{what}(&[{}])", inner.join(", ")));
    }
}

fn push_unless_empty(out: &mut Vec<String>, inner: Vec<String>, ignore_empty: bool) {
    if ignore_empty {
        each(out, "UnlessEmpty", &inner);
    } else {
        out.extend(inner);
    }
}

fn text(r: &StringRules, field: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let mut out = Vec::new();
    length(&mut out, "Chars", r.min_len.or(r.len), r.max_len.or(r.len));
    length(&mut out, "Bytes", r.min_bytes.or(r.len_bytes), r.max_bytes.or(r.len_bytes));
    if let Some(pattern) = &r.pattern {
        out.push(format!("Check::Pattern({pattern:?})"));
    }
    if let Some(prefix) = &r.prefix {
        out.push(format!("Check::Prefix({prefix:?})"));
    }
    if let Some(suffix) = &r.suffix {
        out.push(format!("Check::Suffix({suffix:?})"));
    }
    if !r.r#in.is_empty() {
        out.push(format!("Check::TextIn(&{:?})", r.r#in));
    }
    if !r.not_in.is_empty() {
        out.push(format!("Check::TextNotIn(&{:?})", r.not_in));
    }
    if r.r#const.is_some() || r.contains.is_some() || r.not_contains.is_some() {
        return Err(format!("{field}: const, contains and not_contains are not handled").into());
    }
    match &r.well_known {
        None => {}
        Some(WellKnown::WellKnownRegex(kind)) => {
            let kind = if *kind == 1 { "HeaderName" } else { "HeaderValue" };
            out.push(format!("Check::{kind} {{ strict: {} }}", r.strict.unwrap_or(true)));
        }
        Some(WellKnown::Ip(true)) => out.push("Check::Ip".to_owned()),
        Some(WellKnown::Uri(true) | WellKnown::UriRef(true)) => out.push("Check::Uri".to_owned()),
        Some(WellKnown::Hostname(true) | WellKnown::Address(true)) => {
            out.push("Check::MinBytes(1)".to_owned());
        }
        Some(other) => return Err(format!("{field}: {other:?} is not handled").into()),
    }
    Ok(out)
}
