//! What a script does with one request and its response, as answers to the questions that a processor is asked.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use mlua::{LuaString, MultiValue, Result, Table, Thread, Value};
use outrigger_control_api::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, HeaderValueOption};
use outrigger_control_api::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::{
    BodySendMode, HeaderSendMode,
};
use outrigger_control_api::pb::envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
use outrigger_control_api::pb::envoy::r#type::v3::HttpStatus;
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Ask;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Says;
use outrigger_control_api::pb::google::protobuf::{BoolValue, Struct};

use super::machine::{failed, text_of, Machine};
use super::view::View;
use super::{convert, Chosen, Scripts};
use crate::config::{HeaderKey, HeaderMutate, Known};
use crate::http::call::{self, Call, CallError};
use crate::http::exchange::Exchange;
use crate::http::worker::Worker;

/// Most bytes of an answer to a call.
const MOST: usize = 1 << 20;

type Lines = Vec<(String, Vec<u8>)>;

/// A script at work for one request and its response.
#[derive(Debug)]
pub(in crate::http) struct Run {
    chosen: Chosen,
    worker: Rc<Worker>,
    view: Rc<RefCell<View>>,
    parts: RefCell<[Option<Part>; 2]>,
    /// What scripts want noted, until it is.
    noted: RefCell<Vec<(String, Struct)>>,
}

/// One of its functions.
#[derive(Debug)]
struct Part {
    machine: Rc<Machine>,
    stream: Table,
    thread: Thread,
    /// The head, or the trailers, as they are without the script.
    before: Lines,
    waits: Waits,
    /// The head has gone on.
    continued: bool,
    /// It has its end with the head.
    ends: bool,
}

/// What a function waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Nothing,
    Body,
    Chunk,
    Trailers,
}

/// How far a function has come.
enum Step {
    Waits(Waits),
    /// The request is answered with a status, these headers, and this body.
    Respond(u16, Lines, Vec<u8>),
}

/// What a part is given to go on with.
type Given = MultiValue;

impl Run {
    pub(in crate::http) fn new(chosen: Chosen, worker: Rc<Worker>) -> Self {
        let view = Rc::new(RefCell::new(View::new(&chosen)));
        Self { chosen, worker, view, parts: RefCell::default(), noted: RefCell::default() }
    }

    /// Looks at the stream as it is now, with what is to be `noted` of it.
    pub(in crate::http) fn look(&self, ex: &Exchange<'_>, noted: &[(String, Struct)]) {
        self.view.borrow_mut().look(ex, noted.iter().chain(&*self.noted.borrow()));
    }

    /// What is to be noted of the stream.
    pub(in crate::http) fn take_noted(&self) -> Vec<(String, Struct)> {
        self.noted.take()
    }

    /// What the script makes of a head, a body or trailers.
    pub(in crate::http) async fn ask(&self, scripts: &Scripts, ask: Ask) -> pb::ProcessingResponse {
        let (side, says) = match ask {
            Ask::RequestHeaders(head) => (0, self.head(scripts, 0, head).await),
            Ask::ResponseHeaders(head) => (1, self.head(scripts, 1, head).await),
            Ask::RequestBody(body) => (0, self.body(scripts, 0, body).await),
            Ask::ResponseBody(body) => (1, self.body(scripts, 1, body).await),
            Ask::RequestTrailers(trailers) => (0, self.trailers(scripts, 0, trailers).await),
            Ask::ResponseTrailers(trailers) => (1, self.trailers(scripts, 1, trailers).await),
        };
        self.note(side);
        says
    }

    async fn head(&self, scripts: &Scripts, side: usize, head: pb::HttpHeaders) -> pb::ProcessingResponse {
        let lines = lines_of(head.headers);
        let Some(part) = self.begin(scripts, side, lines, head.end_of_stream) else {
            return of_head(side, pb::CommonResponse::default(), None);
        };
        let step = self.go_on(scripts, side, part, Given::new()).await;
        match step {
            Step::Respond(status, lines, body) => immediate(status, lines, body),
            Step::Waits(waits) => {
                let common = if waits == Waits::Body { None } else { self.changes(side) };
                of_head(side, common.unwrap_or_default(), self.mode(side, waits))
            }
        }
    }

    async fn body(&self, scripts: &Scripts, side: usize, body: pb::HttpBody) -> pb::ProcessingResponse {
        let wanted = |part: &mut Part| match part.waits {
            Waits::Body => true,
            // The end of a body in pieces is nothing to look at.
            Waits::Chunk => !body.body.is_empty() || body.end_of_stream,
            Waits::Nothing | Waits::Trailers => false,
        };
        let Some(mut part) = self.parts.borrow_mut()[side].take_if(wanted) else {
            return of_body(side, pb::CommonResponse::default());
        };
        let pieces = std::mem::replace(&mut part.waits, Waits::Nothing) == Waits::Chunk;
        let lua = part.machine.lua.clone();
        let piece = (!body.body.is_empty()).then(|| lua.create_string(&body.body).map(Value::String));
        let given = match piece.transpose() {
            Ok(piece) => Given::from_iter([piece.unwrap_or(Value::Nil)]),
            Err(_) => Given::new(),
        };
        let mut step = self.go_on(scripts, side, part, given).await;
        if body.end_of_stream && matches!(step, Step::Waits(Waits::Chunk)) {
            let part = self.parts.borrow_mut()[side].take();
            if let Some(part) = part {
                step = Box::pin(self.go_on(scripts, side, part, Given::from_iter([Value::Nil]))).await;
            }
        }
        if let Step::Respond(status, lines, body) = step {
            return immediate(status, lines, body);
        }
        let mut common = self.changes(side).unwrap_or_default();
        if let Some(bytes) = self.replaced(side, if pieces { "chunk" } else { "buffer" }) {
            if !pieces {
                self.tell_length(side, bytes.len(), &mut common);
            }
            common.body_mutation = Some(pb::BodyMutation { mutation: Some(Mutation::Body(bytes)) });
        }
        of_body(side, common)
    }

    async fn trailers(
        &self,
        scripts: &Scripts,
        side: usize,
        trailers: pb::HttpTrailers,
    ) -> pb::ProcessingResponse {
        let part = self.parts.borrow_mut()[side].take();
        let Some(mut part) = part.filter(|part| matches!(part.waits, Waits::Chunk | Waits::Trailers)) else {
            return of_trailers(side, None);
        };
        let before = lines_of(trailers.trailers);
        if part.waits == Waits::Chunk {
            part.waits = Waits::Nothing;
            let step = Box::pin(self.go_on(scripts, side, part, Given::from_iter([Value::Nil]))).await;
            let again = self.parts.borrow_mut()[side].take();
            match (step, again) {
                (Step::Waits(Waits::Trailers), Some(next)) => part = next,
                _ => return of_trailers(side, None),
            }
        }
        let list = convert::list(&part.machine.lua, &before).map(Value::Table);
        part.before = before;
        part.waits = Waits::Nothing;
        let given = Given::from_iter([list.unwrap_or(Value::Nil)]);
        let _ = self.go_on(scripts, side, part, given).await;
        let parts = self.parts.borrow();
        let changes = parts[side].as_ref().and_then(|part| {
            let trailers = part.stream.raw_get::<Table>("trailers").ok()?;
            changed(&trailers, &part.before)
        });
        of_trailers(side, changes)
    }

    /// Begins the function of a side.
    fn begin(&self, scripts: &Scripts, side: usize, before: Lines, ends: bool) -> Option<Part> {
        let Some(machine) = Machine::of(&self.chosen.script) else {
            scripts.stats.errors.increment(1);
            return None;
        };
        let entry = if side == 0 { machine.request.clone() } else { machine.response.clone() }?;
        scripts.stats.executions.increment(1);
        let begun = || -> Result<(Table, Thread)> {
            let lua = &machine.lua;
            let view = self.view.clone();
            let look = lua.create_function(move |lua, what: LuaString| {
                view.borrow().tell(lua, &what.to_string_lossy())
            })?;
            self.calls(&machine)?;
            machine.begin.call((entry, convert::list(lua, &before)?, side == 1, look))
        };
        match begun() {
            Ok((stream, thread)) => {
                let waits = Waits::Nothing;
                Some(Part { machine: machine.clone(), stream, thread, before, waits, continued: false, ends })
            }
            Err(error) => {
                scripts.stats.errors.increment(1);
                failed(&error);
                None
            }
        }
    }

    /// Calls whose answers nobody waits for.
    fn calls(&self, machine: &Machine) -> Result<()> {
        if machine.host.raw_get::<Option<mlua::Function>>("call")?.is_some() {
            return Ok(());
        }
        let worker = Rc::downgrade(&self.worker);
        type Wanted = (LuaString, Table, Option<LuaString>, Option<f64>);
        let call = machine.lua.create_function(move |_, (cluster, list, body, timeout): Wanted| {
            let Some(worker) = worker.upgrade() else { return Ok(()) };
            let (slot, call) = prepared(&worker, &cluster, &list, body.as_ref(), timeout)?;
            tokio::task::spawn_local(async move {
                let _ = call.send(worker, slot).await;
            });
            Ok(())
        })?;
        machine.host.raw_set("call", call)
    }

    /// Goes on with a function until it waits for something of the stream, or is over. A function that fails is over.
    async fn go_on(&self, scripts: &Scripts, side: usize, mut part: Part, mut given: Given) -> Step {
        let step = loop {
            let yielded = match part.thread.resume::<MultiValue>(given) {
                Ok(yielded) if part.thread.is_resumable() => yielded,
                Ok(_) => break Step::Waits(Waits::Nothing),
                Err(error) => {
                    scripts.stats.errors.increment(1);
                    failed(&error);
                    break Step::Waits(Waits::Nothing);
                }
            };
            let waits = match asked(&yielded).as_deref() {
                Some("body") => Waits::Body,
                Some("chunk") => Waits::Chunk,
                Some("trailers") => Waits::Trailers,
                Some("call") => {
                    given = match self.call(&part.machine, yielded).await {
                        Ok(given) => given,
                        Err(error) => {
                            let text = part.machine.lua.create_string(text_of(&error));
                            Given::from_iter([Value::Nil, text.map_or(Value::Nil, Value::String)])
                        }
                    };
                    continue;
                }
                Some("respond") => match respond(yielded) {
                    Ok(step) => break step,
                    Err(error) => {
                        scripts.stats.errors.increment(1);
                        failed(&error);
                        break Step::Waits(Waits::Nothing);
                    }
                },
                // A coroutine of the script's own that was not resumed by it.
                _ => break Step::Waits(Waits::Nothing),
            };
            if part.ends || (part.continued && waits == Waits::Body) {
                // There is none.
                given = Given::from_iter([Value::Nil]);
                continue;
            }
            break Step::Waits(waits);
        };
        if let Step::Waits(waits) = step {
            part.waits = waits;
        }
        self.parts.borrow_mut()[side] = Some(part);
        step
    }

    /// What the function has changed of its head, which goes on now. `None` if it has before.
    fn changes(&self, side: usize) -> Option<pb::CommonResponse> {
        let mut parts = self.parts.borrow_mut();
        let part = parts[side].as_mut()?;
        if std::mem::replace(&mut part.continued, true) {
            return None;
        }
        let headers = part.stream.raw_get::<Table>("headers").ok()?;
        let changes = changed(&headers, &part.before);
        let _ = headers.raw_set("frozen", true);
        let asked = part.stream.raw_get::<bool>("reroute").unwrap_or(false);
        let clear_route_cache = side == 0 && (asked || changes.is_some());
        Some(pb::CommonResponse {
            header_mutation: changes,
            clear_route_cache,
            ..pb::CommonResponse::default()
        })
    }

    /// The body, or a piece of it, that the function has set.
    fn replaced(&self, side: usize, what: &str) -> Option<Vec<u8>> {
        let parts = self.parts.borrow();
        let buffer = parts[side].as_ref()?.stream.raw_get::<Option<Table>>(what).ok()??;
        let changed = buffer.raw_get::<bool>("changed").unwrap_or(false);
        buffer.raw_set("changed", false).ok()?;
        let bytes = changed.then(|| buffer.raw_get::<LuaString>("bytes").ok())??;
        Some(bytes.as_bytes().to_vec())
    }

    /// The head says how long the body is, where it has said so before.
    fn tell_length(&self, side: usize, length: usize, common: &mut pb::CommonResponse) {
        let parts = self.parts.borrow();
        let told = |part: &Part| part.before.iter().any(|(name, _)| name == "content-length");
        if parts[side].as_ref().is_some_and(told) {
            let changes = common.header_mutation.get_or_insert_default();
            changes.remove_headers.retain(|name| name != "content-length");
            let is = |option: &HeaderValueOption| {
                option.header.as_ref().is_some_and(|header| header.key == "content-length")
            };
            changes.set_headers.retain(|option| !is(option));
            changes.set_headers.push(option("content-length".into(), length.to_string().into(), false));
        }
    }

    /// Notes what the function has set of the stream's metadata.
    fn note(&self, side: usize) {
        let parts = self.parts.borrow();
        let Some(part) = &parts[side] else { return };
        let Ok(set) = part.stream.raw_get::<Table>("set") else { return };
        for entry in set.sequence_values::<Table>().flatten() {
            let named = |at: usize| entry.raw_get::<LuaString>(at).map(|text| text.to_string_lossy());
            let value = entry.raw_get::<Value>(3).and_then(|value| convert::from_lua(&value));
            if let (Ok(filter), Ok(key), Ok(value)) = (named(1), named(2), value) {
                let fields = Struct { fields: [(key, value)].into_iter().collect() };
                self.noted.borrow_mut().push((filter, fields));
            }
        }
        let _ = set.clear();
    }

    /// What is to be looked at where a function waits for that.
    fn mode(&self, side: usize, waits: Waits) -> Option<ProcessingMode> {
        if waits == Waits::Nothing {
            return None;
        }
        let body = match waits {
            Waits::Body => BodySendMode::Buffered,
            Waits::Chunk => BodySendMode::Streamed,
            Waits::Nothing | Waits::Trailers => BodySendMode::None,
        };
        // What is not said is as for any script.
        let head = if self.chosen.script.on_response { HeaderSendMode::Send } else { HeaderSendMode::Skip };
        let mut mode = ProcessingMode { response_header_mode: head.into(), ..ProcessingMode::default() };
        let (bodies, trailers) = match side {
            0 => (&mut mode.request_body_mode, &mut mode.request_trailer_mode),
            _ => (&mut mode.response_body_mode, &mut mode.response_trailer_mode),
        };
        (*bodies, *trailers) = (body.into(), HeaderSendMode::Send.into());
        Some(mode)
    }

    /// Calls a cluster, and waits for its answer.
    async fn call(&self, machine: &Machine, yielded: MultiValue) -> Result<Given> {
        type Wanted = (LuaString, LuaString, Table, Option<LuaString>, Option<f64>);
        let (_, cluster, list, body, timeout): Wanted =
            mlua::FromLuaMulti::from_lua_multi(yielded, &machine.lua)?;
        let (slot, call) = prepared(&self.worker, &cluster, &list, body.as_ref(), timeout)?;
        let (lines, body) = match call.send(self.worker.clone(), slot).await {
            Ok(answer) => {
                (crate::http::filters::ext_proc::mutation::response_lines(&answer.head), answer.body)
            }
            Err(error) => {
                let (status, text) = match error {
                    CallError::TimedOut => ("504", "upstream request timeout"),
                    CallError::Unavailable => ("503", "no healthy upstream"),
                    _ => ("503", "upstream failure"),
                };
                (vec![(":status".to_owned(), status.into())], Bytes::from_static(text.as_bytes()))
            }
        };
        let list = convert::list(&machine.lua, &lines)?;
        let body =
            if body.is_empty() { Value::Nil } else { Value::String(machine.lua.create_string(&body)?) };
        Ok(Given::from_iter([Value::Table(list), body]))
    }
}

type Prepared = (std::sync::Arc<crate::config::Slot<crate::config::Cluster>>, Call);

/// A call as a script wants it.
fn prepared(
    worker: &Worker,
    cluster: &LuaString,
    list: &Table,
    body: Option<&LuaString>,
    timeout: Option<f64>,
) -> Result<Prepared> {
    let name = cluster.to_string_lossy();
    let slot = worker.clusters.find(&name).filter(|slot| worker.upstreams.cluster(slot).is_some());
    let slot = slot.ok_or_else(|| mlua::Error::runtime("http call cluster invalid. Must be configured"))?;
    let lines = convert::lines(list)?;
    let pseudo =
        |wanted: &str| lines.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_slice());
    let (Some(method), Some(path), Some(authority)) =
        (pseudo(":method"), pseudo(":path"), pseudo(":authority"))
    else {
        let missing = "http call headers must include ':path', ':method', and ':authority'";
        return Err(mlua::Error::runtime(missing));
    };
    let mut request = call::head(method, authority, path, b"http");
    for (name, value) in lines.iter().filter(|(name, _)| !name.starts_with(':')) {
        let valid = crate::config::token::is_field_name(name.as_bytes())
            && crate::config::token::is_field_value(value);
        if !valid {
            return Err(mlua::Error::runtime(format!("{name} is no header of a call")));
        }
        request.append(&HeaderKey::new(name), value);
    }
    let body = body.map(|body| Bytes::copy_from_slice(&body.as_bytes())).unwrap_or_default();
    request.fields.remove_known(Known::ContentLength);
    if !body.is_empty() {
        request.fields.push_known(Known::ContentLength, body.len().to_string().as_bytes());
    }
    let timeout = timeout.filter(|millis| *millis > 0.0).map(|millis| Duration::from_millis(millis as u64));
    call::sign(&mut request, worker, timeout);
    Ok((slot, Call { request, body, timeout, most: MOST, retries: None }))
}

/// What a coroutine asks for.
fn asked(yielded: &MultiValue) -> Option<String> {
    match yielded.iter().next() {
        Some(Value::String(text)) => Some(text.to_string_lossy()),
        _ => None,
    }
}

fn respond(yielded: MultiValue) -> Result<Step> {
    let mut values = yielded.into_iter().skip(1);
    let (status, list, body) = (values.next(), values.next(), values.next());
    let status = match status {
        Some(Value::Integer(status)) => u16::try_from(status).ok(),
        // Checked to be one of a response.
        Some(Value::Number(status)) => Some(status as u16),
        _ => None,
    };
    let (Some(status), Some(Value::Table(list))) = (status, list) else {
        return Err(mlua::Error::runtime("respond has no status"));
    };
    let body = match body {
        Some(Value::String(body)) => body.as_bytes().to_vec(),
        _ => Vec::new(),
    };
    Ok(Step::Respond(status, convert::lines(&list)?, body))
}

fn lines_of(map: Option<HeaderMap>) -> Lines {
    map.unwrap_or_default().headers.into_iter().map(|header| (header.key, header.raw_value)).collect()
}

#[allow(deprecated)] // As in Envoy, the newer field is not read.
fn option(key: String, raw_value: Vec<u8>, append: bool) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key, raw_value, ..HeaderValue::default() }),
        append: Some(BoolValue { value: append }),
        ..HeaderValueOption::default()
    }
}

/// What makes of the lines `before` those that a script has left; `None` if they are the same.
fn changed(headers: &Table, before: &Lines) -> Option<pb::HeaderMutation> {
    if !headers.raw_get::<bool>("changed").unwrap_or(false) {
        return None;
    }
    let after = convert::lines(&headers.raw_get("list").ok()?).ok()?;
    let mut changes = pb::HeaderMutation::default();
    let mut seen: Vec<&str> = Vec::new();
    for (name, _) in before.iter().chain(&after) {
        if seen.contains(&name.as_str()) {
            continue;
        }
        seen.push(name);
        let of = |lines: &'_ Lines| -> Vec<Vec<u8>> {
            lines.iter().filter(|(other, _)| other == name).map(|(_, value)| value.clone()).collect()
        };
        let (was, is) = (of(before), of(&after));
        if was == is {
            continue;
        }
        if is.is_empty() {
            changes.remove_headers.push(name.clone());
        }
        for (index, value) in is.into_iter().enumerate() {
            changes.set_headers.push(option(name.clone(), value, index > 0));
        }
    }
    (changes != pb::HeaderMutation::default()).then_some(changes)
}

fn says(response: Says, mode_override: Option<ProcessingMode>) -> pb::ProcessingResponse {
    pb::ProcessingResponse { response: Some(response), mode_override, ..pb::ProcessingResponse::default() }
}

fn of_head(side: usize, common: pb::CommonResponse, mode: Option<ProcessingMode>) -> pb::ProcessingResponse {
    let head = pb::HeadersResponse { response: Some(common) };
    says(if side == 0 { Says::RequestHeaders(head) } else { Says::ResponseHeaders(head) }, mode)
}

fn of_body(side: usize, common: pb::CommonResponse) -> pb::ProcessingResponse {
    let body = pb::BodyResponse { response: Some(common) };
    says(if side == 0 { Says::RequestBody(body) } else { Says::ResponseBody(body) }, None)
}

fn of_trailers(side: usize, header_mutation: Option<pb::HeaderMutation>) -> pb::ProcessingResponse {
    let trailers = pb::TrailersResponse { header_mutation };
    says(if side == 0 { Says::RequestTrailers(trailers) } else { Says::ResponseTrailers(trailers) }, None)
}

fn immediate(status: u16, lines: Lines, body: Vec<u8>) -> pb::ProcessingResponse {
    let set_headers = lines.into_iter().map(|(name, value)| option(name, value, true)).collect();
    let said = pb::ImmediateResponse {
        status: Some(HttpStatus { code: status.into() }),
        headers: Some(pb::HeaderMutation { set_headers, ..pb::HeaderMutation::default() }),
        body,
        details: "lua_response".into(),
        ..pb::ImmediateResponse::default()
    };
    says(Says::ImmediateResponse(said), None)
}
