//! An interpreter with one script, as one worker has it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use mlua::{Function, Lua, LuaString, Result, Table, Value};

use super::{convert, Script};

const PRELUDE: &str = include_str!("prelude.lua");
const REQUEST: &str = "envoy_on_request";
const RESPONSE: &str = "envoy_on_response";

/// The interpreter.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) lua: Lua,
    /// Makes a stream and its coroutine.
    pub(super) begin: Function,
    pub(super) request: Option<Function>,
    pub(super) response: Option<Function>,
    /// What the prelude knows of the host.
    pub(super) host: Table,
}

/// By their scripts; `None` where one could not be loaded.
type Machines = HashMap<*const Script, (Weak<Script>, Option<Rc<Machine>>)>;

thread_local! {
    /// This worker's.
    static MACHINES: RefCell<Machines> = RefCell::default();
}

impl Machine {
    /// Loads a script.
    pub(super) fn new(code: &[u8]) -> Result<Self> {
        let lua = Lua::new();
        let host = lua.create_table()?;
        host.raw_set(
            "log",
            lua.create_function(|_, (level, text): (String, LuaString)| {
                log(&level, &text.to_string_lossy());
                Ok(())
            })?,
        )?;
        host.raw_set(
            "now",
            lua.create_function(|_, micros: bool| {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                // Exact for some hundred years.
                Ok(if micros { now.as_micros() as f64 } else { now.as_millis() as f64 })
            })?,
        )?;
        host.raw_set(
            "base64",
            lua.create_function(|_, bytes: LuaString| Ok(STANDARD.encode(bytes.as_bytes())))?,
        )?;
        host.raw_set("value", lua.create_function(|_, value: Value| convert::from_lua(&value).map(|_| ()))?)?;
        let begin = lua.load(PRELUDE).set_name("=prelude").call(host.clone())?;
        let name: String = String::from_utf8_lossy(code).chars().filter(|c| *c != '\0').take(60).collect();
        lua.load(code).set_name(name).exec()?;
        let globals = lua.globals();
        let (request, response) = (globals.get(REQUEST)?, globals.get(RESPONSE)?);
        Ok(Self { lua, begin, request, response, host })
    }

    /// Whether it has a function for requests, and one for responses.
    pub(super) fn has(&self) -> (bool, bool) {
        (self.request.is_some(), self.response.is_some())
    }

    /// This worker's for `script`, made when it is first asked for. `None` if it cannot be loaded, which is logged then.
    pub(super) fn of(script: &Arc<Script>) -> Option<Rc<Self>> {
        MACHINES.with_borrow_mut(|machines| {
            if let Some((_, machine)) = machines.get(&Arc::as_ptr(script)) {
                return machine.clone();
            }
            // Scripts that no configuration has any more are let go.
            machines.retain(|_, (script, _)| script.strong_count() > 0);
            let made = Machine::new(&script.code);
            let machine = made.inspect_err(failed).ok().map(Rc::new);
            machines.insert(Arc::as_ptr(script), (Arc::downgrade(script), machine.clone()));
            machine
        })
    }
}

/// Logs what a script says.
fn log(level: &str, text: &str) {
    match level {
        "Trace" => tracing::trace!("script log: {text}"),
        "Debug" => tracing::debug!("script log: {text}"),
        "Info" => tracing::info!("script log: {text}"),
        "Warn" => tracing::warn!("script log: {text}"),
        _ => tracing::error!("script log: {text}"),
    }
}

/// Logs what has gone wrong in a script.
pub(super) fn failed(error: &mlua::Error) {
    tracing::error!("script log: {}", text_of(error));
}

/// What has gone wrong, and where, without the stack.
pub(super) fn text_of(error: &mlua::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("runtime error: ").unwrap_or(&text);
    text.lines().next().unwrap_or_default().to_owned()
}
