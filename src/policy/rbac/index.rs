//! Which policies may match: an index by what each of them demands exactly.
//!
//! Of each policy one demand is chosen that it cannot do without, such as the peer's name being one of three. A
//! request then looks its own values up, and only the policies found so, and those without such a demand, are looked
//! at: in their order, so that the first that matches is the one that a walk over all of them would have found.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::condition::Condition;
use super::facts::{Facts, TextInput, Whose};
use super::ranges::{place, Networks, Ports};
use super::text::TextSet;
use super::Policy;
use crate::config::Known;

/// Up to this many policies are looked at one by one.
const FEW: usize = 8;
/// Most entries that ranges may make, for each policy in them: networks that lie in each other by the hundred would
/// make lists as long as the square of their number.
const MAX_SPREAD: usize = 64;

/// Numbers of policies, ascending.
type Numbers = Box<[u32]>;
/// Policies by a text of theirs.
type ByText = HashMap<Box<[u8]>, Numbers>;

/// The index.
#[derive(Debug, Default)]
pub struct Index {
    texts: Box<[TextIndex]>,
    ranges: Box<[(Dimension, RangeIndex)]>,
    /// Policies without a demand that can be looked up.
    rest: Numbers,
}

#[derive(Debug, Default)]
struct TextIndex {
    input: Option<TextInput>,
    exact: ByText,
    /// By length.
    prefixes: Vec<(usize, ByText)>,
    /// Backwards, by length.
    suffixes: Vec<(usize, ByText)>,
}

/// What ranges are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dimension {
    Ip(Whose),
    Port,
}

/// Where each stretch of numbers begins, and the policies whose ranges cover it.
#[derive(Debug, Default)]
struct RangeIndex {
    v4: Vec<(u128, Numbers)>,
    v6: Vec<(u128, Numbers)>,
}

/// A demand.
#[derive(Clone, Copy)]
enum Key<'c> {
    Text(&'c TextInput, &'c TextSet),
    Ip(Whose, &'c Networks),
    Port(&'c Ports),
}

impl Index {
    /// The index of `policies`.
    pub(super) fn new(policies: &[Policy]) -> Self {
        let numbers = 0..u32::try_from(policies.len()).unwrap_or(u32::MAX);
        if policies.len() <= FEW {
            return Self { rest: numbers.collect(), ..Self::default() };
        }
        let mut rest = Vec::new();
        let mut texts: Vec<TextBuilder<'_>> = Vec::new();
        let mut ranges: Vec<(Dimension, Vec<Range>)> = Vec::new();
        for (number, policy) in numbers.zip(policies) {
            let (dimension, found): (_, Vec<_>) = match key(&policy.condition) {
                None => {
                    rest.push(number);
                    continue;
                }
                Some(Key::Text(input, set)) => {
                    let known = texts.iter().position(|own| own.input == input);
                    let at = known.unwrap_or(texts.len());
                    if at == texts.len() {
                        texts.push(TextBuilder::new(input));
                    }
                    if let Some(builder) = texts.get_mut(at) {
                        builder.add(number, set);
                    }
                    continue;
                }
                Some(Key::Ip(whose, networks)) => (Dimension::Ip(whose), networks.places().collect()),
                Some(Key::Port(ports)) => (Dimension::Port, ports.places().collect()),
            };
            let found = found.into_iter().map(|(v6, first, last)| Range { v6, first, last, number });
            match ranges.iter_mut().find(|(own, _)| *own == dimension) {
                Some((_, list)) => list.extend(found),
                None => ranges.push((dimension, found.collect())),
            }
        }
        let mut indexes = Vec::new();
        for (dimension, list) in ranges {
            match RangeIndex::new(&list) {
                Some(index) => indexes.push((dimension, index)),
                None => rest.extend(list.iter().map(|range| range.number)),
            }
        }
        rest.sort_unstable();
        rest.dedup();
        Self {
            texts: texts.into_iter().map(TextBuilder::build).collect(),
            ranges: indexes.into(),
            rest: rest.into(),
        }
    }

    /// The first policy that may match and does.
    pub(super) fn first(&self, facts: &Facts<'_>, matches: impl Fn(u32) -> bool) -> Option<u32> {
        let mut lists: SmallVec<[&[u32]; 8]> = SmallVec::new();
        lists.push(&self.rest);
        for text in &self.texts {
            text.collect(facts, &mut lists);
        }
        for (dimension, index) in &self.ranges {
            let place = match dimension {
                Dimension::Ip(whose) => facts.ip(*whose).map(place),
                Dimension::Port => facts.destination_port().map(|port| (false, port.into())),
            };
            lists.extend(place.and_then(|(v6, place)| index.at(v6, place)));
        }
        // The lowest number that any list begins with, again and again.
        loop {
            let next = lists.iter().filter_map(|list| list.first()).min().copied()?;
            if matches(next) {
                return Some(next);
            }
            for list in &mut lists {
                if let Some((_, after)) = list.split_first().filter(|(first, _)| **first == next) {
                    *list = after;
                }
            }
        }
    }
}

/// The demand of a condition that singles out most, if there is one.
fn key(condition: &Condition) -> Option<Key<'_>> {
    match condition {
        Condition::Text(input, set) if set.is_plain() => Some(Key::Text(input, set)),
        Condition::Ip(whose, networks) => Some(Key::Ip(*whose, networks)),
        Condition::Port(ports) => Some(Key::Port(ports)),
        Condition::All(parts) => parts.iter().filter_map(key).min_by_key(Key::rank),
        _ => None,
    }
}

impl Key<'_> {
    /// Lower is better.
    fn rank(&self) -> u32 {
        match self {
            Key::Text(TextInput::Peer, _) => 0,
            Key::Text(TextInput::Path, set) if set.prefixes().next().is_none() => 1,
            Key::Text(TextInput::Header(key), _) if matches!(key.known(), Known::Method | Known::Scheme) => 6,
            Key::Text(..) => 2,
            Key::Ip(Whose::Destination, _) => 4,
            Key::Ip(..) => 3,
            Key::Port(_) => 5,
        }
    }
}

/// Lists that grow.
type Growing = HashMap<Box<[u8]>, Vec<u32>>;

struct TextBuilder<'c> {
    input: &'c TextInput,
    exact: Growing,
    prefixes: Growing,
    suffixes: Growing,
}

impl<'c> TextBuilder<'c> {
    fn new(input: &'c TextInput) -> Self {
        Self { input, exact: Growing::new(), prefixes: Growing::new(), suffixes: Growing::new() }
    }

    fn add(&mut self, number: u32, set: &TextSet) {
        // Policies come in order, so lists are in order.
        for text in set.exact_texts() {
            self.exact.entry(text.into()).or_default().push(number);
        }
        for text in set.prefixes() {
            self.prefixes.entry(text.into()).or_default().push(number);
        }
        for text in set.suffixes() {
            self.suffixes.entry(text.into()).or_default().push(number);
        }
    }

    fn build(self) -> TextIndex {
        let boxed = |(text, numbers): (Box<[u8]>, Vec<u32>)| (text, Numbers::from(numbers));
        let by_length = |growing: Growing| {
            let mut lengths: Vec<(usize, ByText)> = Vec::new();
            for (text, numbers) in growing.into_iter().map(boxed) {
                match lengths.iter_mut().find(|(length, _)| *length == text.len()) {
                    Some((_, map)) => drop(map.insert(text, numbers)),
                    None => lengths.push((text.len(), HashMap::from([(text, numbers)]))),
                }
            }
            lengths.sort_unstable_by_key(|(length, _)| *length);
            lengths
        };
        TextIndex {
            input: Some(self.input.clone()),
            exact: self.exact.into_iter().map(boxed).collect(),
            prefixes: by_length(self.prefixes),
            suffixes: by_length(self.suffixes),
        }
    }
}

impl TextIndex {
    fn collect<'i>(&'i self, facts: &Facts<'_>, lists: &mut SmallVec<[&'i [u32]; 8]>) {
        let Some(input) = &self.input else { return };
        facts.any_text(input, &mut |value| {
            lists.extend(self.exact.get(value).map(AsRef::as_ref));
            for (length, map) in &self.prefixes {
                let Some(start) = value.get(..*length) else { break };
                lists.extend(map.get(start).map(AsRef::as_ref));
            }
            if let Some((longest, _)) = self.suffixes.last() {
                let backwards: SmallVec<[u8; 64]> = value.iter().rev().take(*longest).copied().collect();
                for (length, map) in &self.suffixes {
                    let Some(end) = backwards.get(..*length) else { break };
                    lists.extend(map.get(end).map(AsRef::as_ref));
                }
            }
            false
        });
    }
}

/// A range of one policy.
struct Range {
    v6: bool,
    first: u128,
    last: u128,
    number: u32,
}

impl RangeIndex {
    /// `None` when it would be too big.
    fn new(list: &[Range]) -> Option<Self> {
        let most = list.len().saturating_mul(MAX_SPREAD);
        let mut room = most;
        let v4 = stretches(list.iter().filter(|range| !range.v6), &mut room)?;
        let v6 = stretches(list.iter().filter(|range| range.v6), &mut room)?;
        Some(Self { v4, v6 })
    }

    fn at(&self, v6: bool, place: u128) -> Option<&[u32]> {
        let list = if v6 { &self.v6 } else { &self.v4 };
        let after = list.partition_point(|(begin, _)| *begin <= place);
        list.get(after.checked_sub(1)?).map(|(_, numbers)| numbers.as_ref())
    }
}

/// The line of numbers cut where a range begins or ends.
fn stretches<'r>(list: impl Iterator<Item = &'r Range>, room: &mut usize) -> Option<Vec<(u128, Numbers)>> {
    let mut edges: Vec<(u128, bool, u32)> = Vec::new();
    for range in list {
        edges.push((range.first, true, range.number));
        if let Some(after) = range.last.checked_add(1) {
            edges.push((after, false, range.number));
        }
    }
    edges.sort_unstable();
    let mut open: Vec<u32> = Vec::new();
    let mut out: Vec<(u128, Numbers)> = Vec::new();
    let mut edges = edges.into_iter().peekable();
    while let Some((at, begins, number)) = edges.next() {
        let found = open.binary_search(&number);
        match (begins, found) {
            (true, Err(slot)) => open.insert(slot, number),
            (false, Ok(slot)) => drop(open.remove(slot)),
            // The ranges of one policy do not overlap.
            _ => {}
        }
        if edges.peek().is_none_or(|(next, ..)| *next != at) {
            *room = room.checked_sub(open.len())?;
            out.push((at, open.as_slice().into()));
        }
    }
    Some(out)
}
