//! Scripts that look at requests and responses and change them (`envoy.filters.http.lua`; envoyproxy.io:
//! http_filters/lua_filter).
//!
//! Comes in: heads, and bodies and trailers where a script asks for them. Goes out: what the script makes of them. To
//! the exchange a script is a processor as a service of `ext_proc` is, only that it is asked in place: a [`run`] answers
//! the same questions. Each worker has a [`machine`] of its own for each script, in which a stream's functions are
//! coroutines; `prelude.lua` is what scripts see.

mod convert;
mod machine;
mod run;
mod view;

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_control_api::pb::google::protobuf::Struct;

pub(in crate::http) use self::run::Run;
use crate::config::route::FilterName;

/// Where the metadata are that a script sees, unless there are some under the filter's own name.
pub(in crate::http) const NAME: &str = "envoy.filters.http.lua";

crate::stats! {
    /// `http.<stat_prefix>.lua.[<stat_prefix>.]`.
    pub struct ScriptStats {
        counters { errors, executions }
        gauges {}
        histograms {}
    }
}

/// A script.
#[derive(Debug)]
pub struct Script {
    code: Box<[u8]>,
    /// It has a function for requests.
    pub(in crate::http) on_request: bool,
    /// It has one for responses.
    pub(in crate::http) on_response: bool,
}

/// The filter's scripts.
#[derive(Debug)]
pub struct Scripts {
    /// Where the route names no other.
    pub default: Option<Arc<Script>>,
    /// Those that routes can name.
    pub named: HashMap<Box<str>, Arc<Script>>,
    /// What scripts see of the filter's configuration.
    pub context: Option<Arc<Struct>>,
    /// Its statistics.
    pub stats: ScriptStats,
}

/// What a route says (`LuaPerRoute`).
#[derive(Debug)]
pub struct PerRoute {
    /// Which script.
    pub choice: Choice,
    /// What it sees of the route's configuration.
    pub context: Option<Arc<Struct>>,
}

/// Which script a route wants.
#[derive(Debug)]
pub enum Choice {
    /// The filter's own.
    Default,
    /// None.
    Off,
    /// One of the filter's.
    Named(Box<str>),
    /// This one.
    Own(Arc<Script>),
}

/// The script of one request, and what it is to know.
#[derive(Debug, Clone)]
pub(in crate::http) struct Chosen {
    pub(in crate::http) script: Arc<Script>,
    pub(in crate::http) name: Arc<str>,
    pub(in crate::http) context: Option<Arc<Struct>>,
}

impl Script {
    /// Loads `code` as workers will.
    ///
    /// # Errors
    /// What the interpreter says is wrong with it.
    pub fn load(code: &[u8]) -> Result<Self, String> {
        let machine = machine::Machine::new(code).map_err(|error| error.to_string())?;
        let (on_request, on_response) = machine.has();
        Ok(Self { code: code.into(), on_request, on_response })
    }
}

impl Scripts {
    /// The script for a request whose route says this to the filter called `name`; `None` if there is none.
    pub(in crate::http) fn choose(&self, said: Option<&PerRoute>, name: &FilterName) -> Option<Chosen> {
        let script = match said.map(|said| &said.choice) {
            None | Some(Choice::Default) => self.default.as_ref(),
            Some(Choice::Off) => None,
            Some(Choice::Named(name)) => self.named.get(name),
            Some(Choice::Own(script)) => Some(script),
        }?;
        let context = said.and_then(|said| said.context.as_ref()).or(self.context.as_ref());
        Some(Chosen { script: script.clone(), name: name.text().clone(), context: context.cloned() })
    }
}
