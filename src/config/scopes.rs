//! Scoped routes: which route table serves a request, by a key made of its headers.
//!
//! In: a request's head. Out: the slot of a table. A lookup hashes the key's fragments where they stand
//! in the head, and allocates nothing for keys of up to four fragments. Connection managers with one
//! table never come here.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;
use xxhash_rust::xxh64::xxh64;

use super::headers::{HeaderKey, HeaderView};
use super::route::RouteTable;
use super::Slot;

/// A connection manager's scopes: how keys are made, and what they lead to.
#[derive(Debug)]
pub struct ScopedRoutes {
    /// How keys are made.
    pub builder: KeyBuilder,
    /// The scopes: inline ones, or those that a control plane gave; empty until it did.
    pub scopes: Arc<Slot<ScopeTable>>,
}

/// The fragments of one request's key, in order.
pub type RequestKey<'r> = SmallVec<[&'r [u8]; 4]>;

/// The fragments of a scope's key, in order.
pub type ScopeKey = Box<[Box<[u8]>]>;

/// `ScopeKeyBuilder`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyBuilder {
    /// One for each fragment.
    pub fragments: Box<[FragmentBuilder]>,
}

/// `HeaderValueExtractor`: a part of the header's first value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FragmentBuilder {
    /// The header.
    pub header: HeaderKey,
    /// What stands between the value's elements; empty = the value is one element.
    pub separator: Box<[u8]>,
    /// Which element.
    pub extract: Extract,
}

/// Which element of a header becomes a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extract {
    /// The one at this position.
    Index(usize),
    /// What follows `separator` in the first element that has `key` before it.
    Element {
        /// Between key and value.
        separator: Box<[u8]>,
        /// The key.
        key: Box<[u8]>,
    },
}

impl KeyBuilder {
    /// The key of `request`; `None` if one of its fragments is missing.
    pub fn key<'r, R: HeaderView>(&self, request: &'r R) -> Option<RequestKey<'r>> {
        self.fragments.iter().map(|fragment| fragment.of(request.first(&fragment.header)?)).collect()
    }
}

impl FragmentBuilder {
    fn of<'v>(&self, value: &'v [u8]) -> Option<&'v [u8]> {
        let mut elements = Elements { rest: Some(value), separator: &self.separator };
        match &self.extract {
            Extract::Index(index) => elements.nth(*index),
            Extract::Element { separator, key } => elements.find_map(|element| {
                let (name, value) = cut(element, separator).unwrap_or((element, b""));
                (*name == **key).then_some(value)
            }),
        }
    }
}

/// What stands between the occurrences of a separator.
struct Elements<'v, 's> {
    rest: Option<&'v [u8]>,
    separator: &'s [u8],
}

impl<'v> Iterator for Elements<'v, '_> {
    type Item = &'v [u8];

    fn next(&mut self) -> Option<&'v [u8]> {
        let rest = self.rest.take()?;
        match cut(rest, self.separator) {
            Some((element, after)) => {
                self.rest = Some(after);
                Some(element)
            }
            None => Some(rest),
        }
    }
}

/// What is before and after the first `separator`; nothing is cut by an empty one.
fn cut<'v>(text: &'v [u8], separator: &[u8]) -> Option<(&'v [u8], &'v [u8])> {
    let at = match separator {
        [] => return None,
        [byte] => memchr::memchr(*byte, text)?,
        bytes => memchr::memmem::find(text, bytes)?,
    };
    Some((text.get(..at)?, text.get(at + separator.len()..)?))
}

/// One scope.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Its name.
    pub name: Arc<str>,
    /// Its key.
    pub key: ScopeKey,
    /// Its table; empty until that came.
    pub routes: Arc<Slot<RouteTable>>,
    /// The table is asked for when the first request wants it.
    pub on_demand: bool,
}

/// Scopes by their keys.
#[derive(Debug, Default)]
pub struct ScopeTable {
    /// Sorted by the hashes of their keys.
    scopes: Box<[(u64, Scope)]>,
}

impl ScopeTable {
    /// The table of scopes whose keys differ ([`conflict`]).
    pub fn new(scopes: impl IntoIterator<Item = Scope>) -> Self {
        let mut scopes: Vec<_> =
            scopes.into_iter().map(|scope| (hash(scope.key.iter().map(|part| &**part)), scope)).collect();
        scopes.sort_by_key(|(hash, _)| *hash);
        Self { scopes: scopes.into() }
    }

    /// The scope with this key.
    pub fn find(&self, key: &[&[u8]]) -> Option<&Scope> {
        let hash = hash(key.iter().copied());
        let first = self.scopes.partition_point(|(other, _)| *other < hash);
        let same = self.scopes.get(first..)?.iter().take_while(|(other, _)| *other == hash);
        let is_it = |scope: &Scope| {
            scope.key.len() == key.len() && scope.key.iter().zip(key).all(|(own, part)| **own == **part)
        };
        same.map(|(_, scope)| scope).find(|scope| is_it(scope))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.scopes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.scopes.is_empty()
    }
}

fn hash<'k>(fragments: impl Iterator<Item = &'k [u8]>) -> u64 {
    // The length of each goes in, so that ("a", "bc") and ("ab", "c") differ.
    fragments.fold(0, |hash: u64, part| xxh64(part, hash.rotate_left(7) ^ part.len() as u64))
}

/// The first two in order that have the same key.
pub fn conflict<'s, N>(scopes: impl IntoIterator<Item = (N, &'s ScopeKey)>) -> Option<(N, N)>
where
    N: Copy,
{
    let mut seen: HashMap<&ScopeKey, N> = HashMap::new();
    scopes.into_iter().find_map(|(name, key)| Some((seen.insert(key, name)?, name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Directory;

    fn fragment(separator: &str, extract: Extract) -> FragmentBuilder {
        FragmentBuilder { header: HeaderKey::new("x-scope"), separator: separator.as_bytes().into(), extract }
    }

    fn element(separator: &str, key: &str) -> Extract {
        Extract::Element { separator: separator.as_bytes().into(), key: key.as_bytes().into() }
    }

    #[test]
    fn fragments_are_taken_by_position_or_by_key() {
        for (separator, extract, value, wanted) in [
            ("", Extract::Index(0), "a,b", Some("a,b")),
            ("", Extract::Index(0), "", Some("")),
            (",", Extract::Index(0), "a,b", Some("a")),
            (",", Extract::Index(1), "a,b", Some("b")),
            (",", Extract::Index(1), "a,", Some("")),
            (",", Extract::Index(2), "a,b", None),
            (", ", Extract::Index(1), "a, b,c, d", Some("b,c")),
            (";", element("=", "k"), "a=1;k=2;k=3", Some("2")),
            (";", element("=", "k"), "a=1;k=2=3", Some("2=3")),
            (";", element("=", "k"), "a=1;k", Some("")),
            (";", element("=", "k"), "a=1;K=2", None),
            ("", element("=>", "k"), "k=>v", Some("v")),
        ] {
            let found = fragment(separator, extract.clone()).of(value.as_bytes());
            assert_eq!(found, wanted.map(str::as_bytes), "{value:?} {separator:?} {extract:?}");
        }
    }

    fn key(parts: &[&str]) -> ScopeKey {
        parts.iter().map(|part| part.as_bytes().into()).collect()
    }

    fn scope(name: &str, parts: &[&str]) -> Scope {
        let routes = Directory::default().slot(name);
        Scope { name: name.into(), key: key(parts), routes, on_demand: false }
    }

    #[test]
    fn scopes_are_found_by_all_fragments_of_their_key() {
        let table = ScopeTable::new([
            scope("one", &["a", "bc"]),
            scope("two", &["ab", "c"]),
            scope("three", &["a"]),
            scope("empty", &[""]),
        ]);
        let find = |parts: &[&str]| {
            let parts: Vec<_> = parts.iter().map(|part| part.as_bytes()).collect();
            table.find(&parts).map(|scope| scope.name.to_string())
        };
        assert_eq!(find(&["a", "bc"]).as_deref(), Some("one"));
        assert_eq!(find(&["ab", "c"]).as_deref(), Some("two"));
        assert_eq!(find(&["a"]).as_deref(), Some("three"));
        assert_eq!(find(&[""]).as_deref(), Some("empty"));
        assert_eq!((find(&[]), find(&["bc", "a"]), find(&["a", "bc", ""])), (None, None, None));
        let many = ScopeTable::new((0..1000).map(|nth| scope(&nth.to_string(), &[&nth.to_string()])));
        for nth in 0..1000 {
            let found = many.find(&[nth.to_string().as_bytes()]).map(|scope| scope.name.to_string());
            assert_eq!(found, Some(nth.to_string()));
        }
        assert!(many.find(&[b"1000"]).is_none() && ScopeTable::default().find(&[b"1"]).is_none());
    }

    #[test]
    fn two_scopes_with_one_key_are_told_apart_by_name() {
        let keys = [key(&["a"]), key(&["b"]), key(&["a", ""]), key(&["b"])];
        let named: Vec<_> = ["1", "2", "3", "4"].into_iter().zip(&keys).collect();
        assert_eq!(conflict(named.iter().copied()), Some(("2", "4")));
        assert_eq!(conflict(named.into_iter().take(3)), None);
    }
}
