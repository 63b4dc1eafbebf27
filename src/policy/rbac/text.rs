//! Sets of texts: equal to one of many, beginning or ending with one of many, or passing another test.

use std::cmp::Ordering;
use std::collections::HashSet;

use crate::config::matcher::StringMatcher;

/// A set of texts.
#[derive(Debug, Default)]
pub struct TextSet {
    exact: Exact,
    /// In order; none begins with another.
    prefixes: Vec<Box<[u8]>>,
    /// Backwards, in order; none begins with another.
    suffixes: Vec<Box<[u8]>>,
    others: Vec<StringMatcher>,
}

/// Up to this many texts are compared one by one.
const FEW: usize = 4;

#[derive(Debug)]
enum Exact {
    Few(Vec<Box<[u8]>>),
    Many(HashSet<Box<[u8]>>),
}

impl Default for Exact {
    fn default() -> Self {
        Exact::Few(Vec::new())
    }
}

impl TextSet {
    /// This text alone.
    pub fn exact(text: &str) -> Self {
        Self { exact: Exact::Few(vec![text.as_bytes().into()]), ..Self::default() }
    }

    /// Texts that begin with this.
    pub fn prefix(text: &str) -> Self {
        Self { prefixes: vec![text.as_bytes().into()], ..Self::default() }
    }

    /// Texts that end with this.
    pub fn suffix(text: &str) -> Self {
        Self { suffixes: vec![text.bytes().rev().collect()], ..Self::default() }
    }

    /// Texts that pass this.
    pub fn other(matcher: StringMatcher) -> Self {
        Self { others: vec![matcher], ..Self::default() }
    }

    /// Takes the texts of `other` in.
    pub fn extend(&mut self, other: Self) {
        match other.exact {
            Exact::Few(texts) => texts.into_iter().for_each(|text| self.exact.insert(text)),
            Exact::Many(texts) => texts.into_iter().for_each(|text| self.exact.insert(text)),
        }
        other.prefixes.into_iter().for_each(|text| insert_free(&mut self.prefixes, text));
        other.suffixes.into_iter().for_each(|text| insert_free(&mut self.suffixes, text));
        self.others.extend(other.others);
    }

    /// Whether `text` is in it.
    pub fn contains(&self, text: &[u8]) -> bool {
        self.exact.contains(text)
            || has_prefix(&self.prefixes, |stored| stored.iter().cmp(text), |stored| text.starts_with(stored))
            || has_prefix(
                &self.suffixes,
                |stored| stored.iter().cmp(text.iter().rev()),
                |stored| stored.len() <= text.len() && stored.iter().eq(text.iter().rev().take(stored.len())),
            )
            || self.others.iter().any(|matcher| matcher.matches(text))
    }

    /// Whether an index can tell: no test but equality, beginnings and ends.
    pub(super) fn is_plain(&self) -> bool {
        self.others.is_empty()
    }

    /// The texts for equality.
    pub(super) fn exact_texts(&self) -> impl Iterator<Item = &[u8]> {
        let (few, many) = match &self.exact {
            Exact::Few(texts) => (Some(texts), None),
            Exact::Many(texts) => (None, Some(texts)),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten()).map(AsRef::as_ref)
    }

    /// The beginnings.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = &[u8]> {
        self.prefixes.iter().map(AsRef::as_ref)
    }

    /// The ends, backwards.
    pub(super) fn suffixes(&self) -> impl Iterator<Item = &[u8]> {
        self.suffixes.iter().map(AsRef::as_ref)
    }
}

impl Exact {
    fn insert(&mut self, text: Box<[u8]>) {
        match self {
            Exact::Few(texts) if texts.contains(&text) => {}
            Exact::Few(texts) if texts.len() < FEW => texts.push(text),
            Exact::Few(texts) => {
                let mut many: HashSet<_> = std::mem::take(texts).into_iter().collect();
                many.insert(text);
                *self = Exact::Many(many);
            }
            Exact::Many(texts) => {
                texts.insert(text);
            }
        }
    }

    fn contains(&self, text: &[u8]) -> bool {
        match self {
            Exact::Few(texts) => texts.iter().any(|own| **own == *text),
            Exact::Many(texts) => texts.contains(text),
        }
    }
}

/// Inserts a beginning, unless a shorter one covers it; drops those it covers.
fn insert_free(list: &mut Vec<Box<[u8]>>, text: Box<[u8]>) {
    if list.iter().any(|own| text.starts_with(own)) {
        return;
    }
    list.retain(|own| !own.starts_with(&text));
    let at = list.partition_point(|own| **own < *text);
    list.insert(at, text);
}

/// Whether one of an ordered list, of which none begins with another, is a beginning of the text that `order` compares
/// with. Only the last one that is not after the text can be: what stands between a beginning and the text begins
/// with that beginning too.
fn has_prefix(
    list: &[Box<[u8]>],
    order: impl Fn(&[u8]) -> Ordering,
    is_start: impl Fn(&[u8]) -> bool,
) -> bool {
    let after = list.partition_point(|stored| order(stored) != Ordering::Greater);
    after.checked_sub(1).and_then(|at| list.get(at)).is_some_and(|stored| is_start(stored))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(exact: &[&str], prefixes: &[&str], suffixes: &[&str]) -> TextSet {
        let mut set = TextSet::default();
        exact.iter().for_each(|text| set.extend(TextSet::exact(text)));
        prefixes.iter().for_each(|text| set.extend(TextSet::prefix(text)));
        suffixes.iter().for_each(|text| set.extend(TextSet::suffix(text)));
        set
    }

    #[test]
    fn equality_beginnings_and_ends() {
        let set = set(&["/a", "/b", "/c", "/d", "/e", "/e", ""], &["/api/", "/admin"], &[".png", "/info"]);
        for text in ["/a", "/e", "", "/api/", "/api/x", "/admins", "x.png", ".png", "/x/info"] {
            assert!(set.contains(text.as_bytes()), "{text}");
        }
        for text in ["/A", "/aa", "/", "/api", "/adm", "png", "x.png/", "/inf"] {
            assert!(!set.contains(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_set_is_what_a_list_would_be() {
        let mut random = fastrand::Rng::with_seed(11);
        let mut word = |most: usize| -> String {
            (0..random.usize(0..most)).map(|_| char::from(b'a' + random.u8(0..2))).collect()
        };
        for _ in 0..500 {
            let list: Vec<(usize, String)> =
                (0..10).map(|at| (at % 3, word(if at % 3 == 0 { 6 } else { 5 }))).collect();
            let of = |kind: usize| -> Vec<&str> {
                list.iter()
                    .filter(|(own, text)| *own == kind && text.len() > 1)
                    .map(|(_, text)| &**text)
                    .collect()
            };
            let set = set(&of(0), &of(1), &of(2));
            for _ in 0..20 {
                let text = word(8);
                let wanted = of(0).contains(&&*text)
                    || of(1).iter().any(|own| text.starts_with(own))
                    || of(2).iter().any(|own| text.ends_with(own));
                assert_eq!(set.contains(text.as_bytes()), wanted, "{text:?} in {list:?}");
            }
        }
    }
}
