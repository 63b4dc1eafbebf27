//! Values of protobuf's `Struct` as scripts have them, and back; header lists as tables.

use std::collections::HashMap;

use mlua::{Error, Lua, Result, Table, Value};
use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::{ListValue, Struct, Value as Json};

/// Deepest nesting of a value that a script sets.
const DEEPEST: usize = 32;

/// A table of the fields.
pub(super) fn table(lua: &Lua, fields: &Struct) -> Result<Table> {
    let table = lua.create_table_with_capacity(0, fields.fields.len())?;
    for (name, value) in &fields.fields {
        table.raw_set(name.as_str(), to_lua(lua, value)?)?;
    }
    Ok(table)
}

fn to_lua(lua: &Lua, value: &Json) -> Result<Value> {
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Nil,
        Some(Kind::BoolValue(flag)) => Value::Boolean(*flag),
        Some(Kind::NumberValue(number)) => Value::Number(*number),
        Some(Kind::StringValue(text)) => Value::String(lua.create_string(text)?),
        Some(Kind::StructValue(fields)) => Value::Table(table(lua, fields)?),
        Some(Kind::ListValue(list)) => {
            let items = lua.create_table_with_capacity(list.values.len(), 0)?;
            for (index, item) in list.values.iter().enumerate() {
                items.raw_set(index + 1, to_lua(lua, item)?)?;
            }
            Value::Table(items)
        }
    })
}

/// What a script's value is.
///
/// # Errors
/// It is none that a `Struct` can hold, or too deep.
pub(super) fn from_lua(value: &Value) -> Result<Json> {
    of_depth(value, 0)
}

fn of_depth(value: &Value, depth: usize) -> Result<Json> {
    if depth > DEEPEST {
        return Err(Error::runtime("the value is nested too deeply"));
    }
    let kind = match value {
        Value::Nil => Kind::NullValue(0),
        Value::Boolean(flag) => Kind::BoolValue(*flag),
        Value::Integer(number) => Kind::NumberValue(*number as f64),
        Value::Number(number) => Kind::NumberValue(*number),
        Value::String(text) => Kind::StringValue(text.to_string_lossy()),
        Value::Table(table) if table.raw_len() > 0 => {
            let values = table.sequence_values::<Value>().map(|item| of_depth(&item?, depth + 1));
            Kind::ListValue(ListValue { values: values.collect::<Result<_>>()? })
        }
        Value::Table(table) => {
            let mut fields = HashMap::new();
            for pair in table.pairs::<mlua::LuaString, Value>() {
                let (name, value) = pair?;
                fields.insert(name.to_string_lossy(), of_depth(&value, depth + 1)?);
            }
            Kind::StructValue(Struct { fields: fields.into_iter().collect() })
        }
        other => return Err(Error::runtime(format!("unexpected type {} in metadata", other.type_name()))),
    };
    Ok(Json { kind: Some(kind) })
}

/// Lines of a head, name and value in turn.
pub(super) fn list(lua: &Lua, lines: &[(String, Vec<u8>)]) -> Result<Table> {
    let list = lua.create_table_with_capacity(lines.len() * 2, 0)?;
    for (index, (name, value)) in lines.iter().enumerate() {
        list.raw_set(2 * index + 1, lua.create_string(name)?)?;
        list.raw_set(2 * index + 2, lua.create_string(value)?)?;
    }
    Ok(list)
}

/// The lines of such a list.
pub(super) fn lines(list: &Table) -> Result<Vec<(String, Vec<u8>)>> {
    let mut lines = Vec::new();
    let mut pieces = list.sequence_values::<mlua::LuaString>();
    while let (Some(name), Some(value)) = (pieces.next(), pieces.next()) {
        lines.push((name?.to_string_lossy(), value?.as_bytes().to_vec()));
    }
    Ok(lines)
}
