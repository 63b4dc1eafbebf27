//! The support table and the field rules over encoded bytes, without building values.
//!
//! In: a message as a control plane sent it. Out: what the full checks would say of it, if that is
//! "fine", with the fields that are accepted without effect; else `None`, and the full checks run.
//! Whatever is out of the ordinary (unknown fields, fields out of order, `TypedStruct`s) counts as not
//! fine, so that the answer is the same both ways. What is looked up in tables by name is looked up
//! once for each message type.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{OnceLock, PoisonError, RwLock};

use outrigger_control_api::reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};
use outrigger_control_api::support::{MessageSupport, Standing};
use outrigger_control_api::{pool, Problem};

use super::rules::{wrong, Check, FieldRule, BY_NAME};
use super::table;

/// Deepest nesting that is followed here.
const MAX_DEPTH: usize = 48;
/// Most fields of a message type that is looked at here: one bit for each.
const MAX_FIELDS: usize = 128;

const VARINT: u8 = 0;
const EIGHT_BYTES: u8 = 1;
const LENGTH: u8 = 2;
const FOUR_BYTES: u8 = 5;

/// See [`super::scan`].
pub(super) fn scan(descriptor: &MessageDescriptor, bytes: &[u8]) -> Option<Vec<Problem>> {
    let mut scan = Scan { steps: Vec::with_capacity(32), in_map: 0, observed: Vec::new() };
    scan.message(plan(descriptor)?, bytes, true, 0)?;
    Some(scan.observed)
}

/// What the tables say of one message type.
struct Plan {
    descriptor: MessageDescriptor,
    /// The standing of the whole message: nothing to say, without effect, or not fine.
    whole: Verdict,
    /// By number.
    fields: Vec<Field>,
    /// Fields that must be there.
    required: u128,
    /// Of each of these groups one must be there.
    one_of: Vec<u128>,
    /// Of each of these groups at most one is usual.
    exclusive: Vec<u128>,
}

#[derive(Clone, Copy)]
enum Verdict {
    Fine,
    Observed(&'static str),
    /// Only the full check can tell.
    Ask,
}

struct Field {
    descriptor: FieldDescriptor,
    number: u32,
    wire: u8,
    repeated: bool,
    /// Absence and the default value differ.
    presence: bool,
    verdict: Verdict,
    content: Content,
    rules: Rules,
    /// What the support table says inside does not count.
    unsupported_inside: bool,
}

enum Content {
    /// Nothing inside, or nothing that has rules.
    Plain,
    Text,
    /// Numbers that are fine.
    Enum(Vec<i32>),
    Message(MessageDescriptor, OnceLock<Option<&'static Plan>>),
    /// A map to messages.
    Map(MessageDescriptor, OnceLock<Option<&'static Plan>>),
    Any,
}

enum Rules {
    None,
    /// At least this many bytes of text.
    NotEmpty,
    /// Between these, inclusive.
    Range(u64, u64),
    /// So many entries, inclusive.
    Count(u64, u64),
    /// Anything else: the value is built.
    Full(&'static [Check]),
}

/// The plan of a message type; `None` if it has too many fields.
fn plan(descriptor: &MessageDescriptor) -> Option<&'static Plan> {
    static PLANS: RwLock<Option<HashMap<&'static str, Option<&'static Plan>>>> = RwLock::new(None);
    let name = descriptor.full_name();
    let plans = PLANS.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(plan) = plans.as_ref().and_then(|plans| plans.get(name)) {
        return *plan;
    }
    drop(plans);
    let made = make(descriptor);
    let mut plans = PLANS.write().unwrap_or_else(PoisonError::into_inner);
    // There are as many plans as message types in use; they are kept as long as the process runs.
    *plans.get_or_insert_default().entry(name).or_insert_with(|| made.map(|plan| &*Box::leak(Box::new(plan))))
}

fn make(descriptor: &MessageDescriptor) -> Option<Plan> {
    if descriptor.fields().len() > MAX_FIELDS {
        return None;
    }
    let name = descriptor.full_name();
    let entry = table().message(name);
    let rules = BY_NAME.get(name).copied().unwrap_or_default();
    let whole = match entry.map(MessageSupport::whole) {
        None | Some(Some(Standing::Rejected(_) | Standing::Absent)) => Verdict::Ask,
        Some(Some(Standing::Observed(reason))) => Verdict::Observed(reason),
        Some(Some(Standing::Implemented) | None) => Verdict::Fine,
    };
    let mut plan = Plan {
        descriptor: descriptor.clone(),
        whole,
        fields: Vec::new(),
        required: 0,
        one_of: Vec::new(),
        exclusive: Vec::new(),
    };
    for (index, field) in descriptor.fields().enumerate() {
        let verdict = match entry.map(|entry| entry.standing(&field)) {
            Some(Standing::Implemented) => Verdict::Fine,
            Some(Standing::Observed(reason)) => Verdict::Observed(reason),
            _ => Verdict::Ask,
        };
        let find = |rule: &FieldRule| match rule {
            FieldRule::Field(number, checks) if *number == field.number() => Some(*checks),
            _ => None,
        };
        let checks: &'static [Check] = rules.iter().find_map(find).unwrap_or_default();
        let absent_is_wrong = if field.supports_presence() {
            field.containing_oneof().is_none() && checks.iter().any(|check| matches!(check, Check::Required))
        } else {
            let default = Value::default_of(&field);
            checks.iter().any(|check| wrong(check, &default, &field).is_some())
        };
        plan.required |= u128::from(absent_is_wrong) << index;
        let content = content(&field, entry.map(|entry| (entry.observe, entry.rejected)));
        plan.fields.push(Field {
            number: field.number(),
            wire: wire(&field),
            repeated: field.is_list() || field.is_map(),
            presence: field.supports_presence(),
            verdict,
            rules: rules_of(&field, checks),
            content,
            unsupported_inside: name == "envoy.config.cluster.v3.LoadBalancingPolicy",
            descriptor: field,
        });
    }
    let mask = |oneof: &outrigger_control_api::reflect::OneofDescriptor| {
        let member = |number: u32| oneof.fields().any(|field| field.number() == number);
        let bits = plan.fields.iter().enumerate().filter(|(_, field)| member(field.number));
        bits.fold(0u128, |mask, (index, _)| mask | 1 << index)
    };
    let demanded = |name: &str| rules.iter().any(|rule| matches!(rule, FieldRule::OneOf(n) if *n == name));
    let exclusive: Vec<_> = descriptor.oneofs().map(|oneof| (mask(&oneof), demanded(oneof.name()))).collect();
    plan.one_of = exclusive.iter().filter(|(_, demanded)| *demanded).map(|(mask, _)| *mask).collect();
    plan.exclusive = exclusive.into_iter().map(|(mask, _)| mask).collect();
    Some(plan)
}

type Reasons = &'static [(&'static str, &'static str)];

fn content(field: &FieldDescriptor, entry: Option<(Reasons, Reasons)>) -> Content {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => match entry.map_entry_value_field().kind() {
            Kind::Message(_) => Content::Map(entry, OnceLock::new()),
            _ => Content::Plain,
        },
        Kind::Message(inner) if inner.full_name() == "google.protobuf.Any" => Content::Any,
        Kind::Message(inner) if is_well_known(inner.full_name()) => Content::Plain,
        Kind::Message(inner) => Content::Message(inner, OnceLock::new()),
        Kind::String => Content::Text,
        Kind::Enum(kind) => {
            let (observe, rejected) = entry.unwrap_or_default();
            let named = |name: &str| {
                let name = format!("{}={name}", field.name());
                observe.iter().chain(rejected).any(|(listed, _)| *listed == name)
            };
            // Of several names of one number the first counts.
            let first = |number| kind.get_value(number).is_some_and(|value| named(value.name()));
            let numbers = kind.values().map(|value| value.number());
            Content::Enum(numbers.filter(|number| !first(*number)).collect())
        }
        _ => Content::Plain,
    }
}

fn is_well_known(name: &str) -> bool {
    let Some(name) = name.strip_prefix("google.protobuf.") else { return false };
    matches!(name, "Duration" | "Timestamp" | "Struct" | "FieldMask" | "Empty") || name.ends_with("Value")
}

fn wire(field: &FieldDescriptor) -> u8 {
    match field.kind() {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => EIGHT_BYTES,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => FOUR_BYTES,
        Kind::String | Kind::Bytes | Kind::Message(_) => LENGTH,
        _ => VARINT,
    }
}

fn rules_of(field: &FieldDescriptor, checks: &'static [Check]) -> Rules {
    let is = |what: fn(&Check) -> bool| checks.iter().all(what);
    if is(|check| matches!(check, Check::Required)) {
        return Rules::None;
    }
    if field.is_list() || field.is_map() {
        let bounds = checks.iter().try_fold((0, u64::MAX), |(low, high), check| match check {
            Check::Required => Some((low, high)),
            Check::MinItems(min) => Some((low.max(*min), high)),
            Check::MaxItems(max) => Some((low, high.min(*max))),
            _ => None,
        });
        return bounds.map_or(Rules::Full(checks), |(low, high)| Rules::Count(low, high));
    }
    let unsigned = matches!(field.kind(), Kind::Uint32 | Kind::Uint64);
    let most = if matches!(field.kind(), Kind::Uint32) { u32::MAX.into() } else { u64::MAX };
    match (field.kind(), checks) {
        (Kind::String, [Check::MinChars(1) | Check::MinBytes(1)]) => Rules::NotEmpty,
        (_, [Check::AtMost(high)]) if unsigned && *high >= 0.0 => Rules::Range(0, *high as u64),
        (_, [Check::AtLeast(low)]) if unsigned && *low >= 0.0 => Rules::Range(low.ceil() as u64, most),
        _ => Rules::Full(checks),
    }
}

#[derive(Clone, Copy)]
enum Step {
    Field(&'static str),
    Index(usize),
}

struct Scan {
    steps: Vec<Step>,
    /// How many maps the present place is in: the order of what is observed there is not known here.
    in_map: usize,
    observed: Vec<Problem>,
}

impl Scan {
    fn observe(&mut self, reason: &str) -> Option<()> {
        if self.in_map > 0 {
            return None;
        }
        let mut path = String::new();
        for step in &self.steps {
            // Writing to a String cannot fail.
            let _ = match step {
                Step::Field(name) if path.is_empty() => path.write_str(name),
                Step::Field(name) => write!(path, ".{name}"),
                Step::Index(index) => write!(path, "[{index}]"),
            };
        }
        self.observed.push(Problem { path, message: reason.to_owned() });
        Some(())
    }

    /// Looks through the fields of a message; without `support` only the field rules count.
    fn message(&mut self, plan: &Plan, bytes: &[u8], mut support: bool, depth: usize) -> Option<()> {
        if depth >= MAX_DEPTH {
            return None;
        }
        if support {
            match plan.whole {
                Verdict::Fine => {}
                Verdict::Ask => return None,
                Verdict::Observed(reason) => {
                    self.observe(reason)?;
                    support = false;
                }
            }
        }
        let mut seen = 0u128;
        let mut position = 0;
        let mut rest = bytes;
        while !rest.is_empty() {
            let start = rest;
            let (number, wire) = key(&mut rest)?;
            // Fields come in the order of their numbers, so the search goes on where it was.
            while plan.fields.get(position).is_some_and(|field| field.number < number) {
                position += 1;
            }
            let Some(field) = plan.fields.get(position).filter(|field| field.number == number) else {
                // An unknown field, or one out of order. The full check tells.
                return None;
            };
            // Lists of numbers may be packed.
            let packed = field.repeated && wire == LENGTH && field.wire != LENGTH;
            if packed
                && !matches!((&field.content, &field.rules), (Content::Plain, Rules::None | Rules::Full(_)))
                || !packed && wire != field.wire
            {
                return None;
            }
            seen |= 1 << position;
            let mut count = 0;
            self.steps.push(Step::Field(field.descriptor.name()));
            let inside = match field.verdict {
                _ if !support => false,
                Verdict::Fine => !field.unsupported_inside,
                Verdict::Ask => return None,
                Verdict::Observed(reason) => {
                    self.observe(reason)?;
                    false
                }
            };
            loop {
                if field.repeated {
                    self.steps.push(Step::Index(count));
                }
                if packed {
                    length_delimited(&mut rest)?;
                } else {
                    self.value(field, &mut rest, inside, depth)?;
                }
                if field.repeated {
                    self.steps.pop();
                }
                count += 1;
                // The next entry of a list.
                let mut next = rest;
                if rest.is_empty() || key(&mut next)? != (number, wire) {
                    break;
                }
                if !field.repeated {
                    return None;
                }
                rest = next;
            }
            self.steps.pop();
            match &field.rules {
                Rules::Count(low, high) if !(*low..=*high).contains(&(count as u64)) => return None,
                Rules::Full(checks) => {
                    let run = start.get(..start.len() - rest.len())?;
                    let message = DynamicMessage::decode(plan.descriptor.clone(), run).ok()?;
                    let value = message.get_field(&field.descriptor);
                    if checks.iter().any(|check| wrong(check, &value, &field.descriptor).is_some()) {
                        return None;
                    }
                }
                _ => {}
            }
            position += 1;
        }
        let fine = plan.required & !seen == 0
            && plan.one_of.iter().all(|group| group & seen != 0)
            && plan.exclusive.iter().all(|group| (group & seen).count_ones() <= 1);
        fine.then_some(())
    }

    fn value(&mut self, field: &Field, rest: &mut &[u8], support: bool, depth: usize) -> Option<()> {
        match field.wire {
            VARINT => {
                let value = varint(rest)?;
                // A default value that is written all the same does not count as set.
                if value == 0 && !field.presence && !field.repeated {
                    return None;
                }
                if let Rules::Range(low, high) = &field.rules {
                    if !(*low..=*high).contains(&value) {
                        return None;
                    }
                }
                match &field.content {
                    // Protobuf truncates enum numbers to 32 bits.
                    Content::Enum(fine) if support && !fine.contains(&(value as i32)) => None,
                    _ => Some(()),
                }
            }
            LENGTH => {
                let bytes = length_delimited(rest)?;
                if bytes.is_empty()
                    && !field.presence
                    && !field.repeated
                    && matches!(field.descriptor.kind(), Kind::String | Kind::Bytes)
                {
                    return None;
                }
                match &field.content {
                    Content::Text => {
                        let text = std::str::from_utf8(bytes).ok()?;
                        (!text.is_empty() || !matches!(field.rules, Rules::NotEmpty)).then_some(())
                    }
                    Content::Message(descriptor, inner) => {
                        let inner = (*inner.get_or_init(|| plan(descriptor)))?;
                        self.message(inner, bytes, support, depth + 1)
                    }
                    Content::Any => self.any(bytes, support, depth + 1),
                    Content::Map(entry, value_plan) => {
                        self.in_map += 1;
                        let done = self.entry(entry, value_plan, bytes, support, depth + 1);
                        self.in_map -= 1;
                        done
                    }
                    Content::Plain | Content::Enum(_) => Some(()),
                }
            }
            EIGHT_BYTES => number(field, rest, 8),
            _ => number(field, rest, 4),
        }
    }

    /// An entry of a map to messages: its key, then its value.
    fn entry(
        &mut self,
        entry: &MessageDescriptor,
        value_plan: &OnceLock<Option<&'static Plan>>,
        mut bytes: &[u8],
        support: bool,
        depth: usize,
    ) -> Option<()> {
        let Kind::Message(value) = entry.map_entry_value_field().kind() else { return None };
        if !matches!(entry.map_entry_key_field().kind(), Kind::String) || key(&mut bytes)? != (1, LENGTH) {
            return None;
        }
        std::str::from_utf8(length_delimited(&mut bytes)?).ok()?;
        if key(&mut bytes)? != (2, LENGTH) {
            return None;
        }
        let inner = length_delimited(&mut bytes)?;
        if !bytes.is_empty() {
            return None;
        }
        match value.full_name() {
            "google.protobuf.Any" => self.any(inner, support, depth),
            name if is_well_known(name) => Some(()),
            _ => self.message((*value_plan.get_or_init(|| plan(&value)))?, inner, support, depth),
        }
    }

    /// What an `Any` holds: a message of a known type, or nothing.
    fn any(&mut self, mut bytes: &[u8], support: bool, depth: usize) -> Option<()> {
        if bytes.is_empty() {
            return Some(());
        }
        if key(&mut bytes)? != (1, LENGTH) {
            return None;
        }
        let url = std::str::from_utf8(length_delimited(&mut bytes)?).ok()?;
        let mut inner: &[u8] = &[];
        if !bytes.is_empty() {
            if key(&mut bytes)? != (2, LENGTH) {
                return None;
            }
            inner = length_delimited(&mut bytes)?;
        }
        let name = url.rsplit('/').next().filter(|name| !name.is_empty() && bytes.is_empty())?;
        let descriptor = pool().get_message_by_name(name)?;
        // Structures are converted, and what is written specially in JSON is not looked into.
        if name.starts_with("google.protobuf.") || name.ends_with(".TypedStruct") {
            return None;
        }
        self.message(plan(&descriptor)?, inner, support, depth)
    }
}

/// A field's number and wire type.
fn key(rest: &mut &[u8]) -> Option<(u32, u8)> {
    let key = u32::try_from(varint(rest)?).ok()?;
    let number = key >> 3;
    (number > 0).then_some((number, (key & 7) as u8))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let (first, tail) = rest.split_first()?;
    if *first < 0x80 {
        *rest = tail;
        return Some((*first).into());
    }
    let mut value = 0u64;
    for (index, byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * index as u32)?;
        if *byte < 0x80 {
            *rest = rest.get(index + 1..)?;
            return Some(value);
        }
    }
    None
}

fn length_delimited<'b>(rest: &mut &'b [u8]) -> Option<&'b [u8]> {
    let length = usize::try_from(varint(rest)?).ok()?;
    let (bytes, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(bytes)
}

/// A number of fixed size; one that has the default value without need is out of the ordinary.
fn number(field: &Field, rest: &mut &[u8], length: usize) -> Option<()> {
    let (bytes, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    (field.presence || field.repeated || bytes.iter().any(|byte| *byte != 0)).then_some(())
}
