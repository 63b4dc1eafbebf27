//! Resources by name, in order, in chunks that copies share: to change one resource of ten thousand, or to
//! find the one that differs between two copies, costs about one chunk.

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

use super::snapshot::Resource;

/// A chunk of more is split in halves.
const MOST: usize = 128;

type Named = (Arc<str>, Resource);

/// Chunks in order, none of them empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Chunks {
    list: Vec<Arc<Vec<Named>>>,
    len: usize,
}

impl Chunks {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn get(&self, name: &str) -> Option<&Resource> {
        self.get_key_value(name).map(|(_, resource)| resource)
    }

    pub(super) fn get_key_value(&self, name: &str) -> Option<(&Arc<str>, &Resource)> {
        let chunk = self.list.get(self.chunk_of(name)?)?;
        let at = chunk.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        chunk.get(at).map(|(name, resource)| (name, resource))
    }

    /// Those whose names are between two.
    pub(super) fn range(
        &self,
        (from, to): (Bound<&str>, Bound<&str>),
    ) -> impl Iterator<Item = (&Arc<str>, &Resource)> {
        let first = self.place(|name| match from {
            Bound::Included(from) => name < from,
            Bound::Excluded(from) => name <= from,
            Bound::Unbounded => false,
        });
        let last = self.place(|name| match to {
            Bound::Included(to) => name <= to,
            Bound::Excluded(to) => name < to,
            Bound::Unbounded => true,
        });
        let chunks = self.list.iter().enumerate().take(last.chunk + 1).skip(first.chunk);
        let named = chunks.flat_map(move |(at, chunk)| {
            let start = if at == first.chunk { first.offset } else { 0 };
            let end = if at == last.chunk { last.offset } else { chunk.len() };
            chunk.get(start..end).unwrap_or_default()
        });
        named.map(|(name, resource)| (name, resource))
    }

    /// The first place of which `before` does not hold, which holds of all names up to one.
    fn place(&self, before: impl Fn(&str) -> bool) -> Place {
        // Chunks of which it holds of even the last name.
        let chunk = self.list.partition_point(|chunk| chunk.last().is_some_and(|(last, _)| before(last)));
        let offset = self.list.get(chunk).map_or(0, |all| all.partition_point(|(name, _)| before(name)));
        Place { chunk, offset }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Resource)> {
        self.list.iter().flat_map(|chunk| chunk.iter()).map(|(name, resource)| (name, resource))
    }

    /// Puts a resource in; the one that had its name.
    pub(super) fn insert(&mut self, name: &str, resource: Resource) -> Option<Resource> {
        let index = self.chunk_of(name).unwrap_or(0);
        if self.list.is_empty() {
            self.list.push(Arc::default());
        }
        let chunk = Arc::make_mut(self.list.get_mut(index)?);
        match chunk.binary_search_by(|(known, _)| (**known).cmp(name)) {
            Ok(at) => return chunk.get_mut(at).map(|(_, old)| std::mem::replace(old, resource)),
            Err(at) => chunk.insert(at, (name.into(), resource)),
        }
        self.len += 1;
        if chunk.len() > MOST {
            let half = chunk.split_off(chunk.len() / 2);
            self.list.insert(index + 1, Arc::new(half));
        }
        None
    }

    /// Takes a resource out.
    pub(super) fn remove(&mut self, name: &str) -> Option<Resource> {
        let index = self.chunk_of(name)?;
        let chunk = self.list.get_mut(index)?;
        let at = chunk.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        let chunk = Arc::make_mut(chunk);
        let (_, old) = chunk.remove(at);
        if chunk.is_empty() {
            self.list.remove(index);
        }
        self.len -= 1;
        Some(old)
    }

    /// Names that only one of the two has, or that have different versions, in order.
    pub(super) fn differences(&self, other: &Self) -> Vec<Arc<str>> {
        let mut found = Vec::new();
        let (mut ours, mut theirs) = (Place::default(), Place::default());
        loop {
            // A chunk that both share, at whose beginning both are.
            if let (Some(one), Some(other_one)) = (ours.whole(&self.list), theirs.whole(&other.list)) {
                if Arc::ptr_eq(one, other_one) {
                    ours.chunk += 1;
                    theirs.chunk += 1;
                    continue;
                }
            }
            let (one, other_one) = (ours.at(&self.list), theirs.at(&other.list));
            let order = match (one, other_one) {
                (None, None) => return found,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((name, _)), Some((other_name, _))) => name.cmp(other_name),
            };
            let differs = match (one, other_one) {
                (Some((_, one)), Some((_, other))) if order.is_eq() => one.version != other.version,
                _ => true,
            };
            if differs {
                let named = if order.is_le() { one } else { other_one };
                found.extend(named.map(|(name, _)| name.clone()));
            }
            if order.is_le() {
                ours.step(&self.list);
            }
            if order.is_ge() {
                theirs.step(&other.list);
            }
        }
    }

    /// The chunk that has the name, if any has it.
    fn chunk_of(&self, name: &str) -> Option<usize> {
        let after =
            self.list.partition_point(|chunk| chunk.first().is_some_and(|(first, _)| **first <= *name));
        (!self.list.is_empty()).then(|| after.saturating_sub(1))
    }
}

/// A place in a list of chunks.
#[derive(Default)]
struct Place {
    chunk: usize,
    offset: usize,
}

impl Place {
    fn at<'a>(&self, list: &'a [Arc<Vec<Named>>]) -> Option<&'a Named> {
        list.get(self.chunk)?.get(self.offset)
    }

    /// The chunk, at its beginning.
    fn whole<'a>(&self, list: &'a [Arc<Vec<Named>>]) -> Option<&'a Arc<Vec<Named>>> {
        list.get(self.chunk).filter(|_| self.offset == 0)
    }

    fn step(&mut self, list: &[Arc<Vec<Named>>]) {
        self.offset += 1;
        if list.get(self.chunk).is_none_or(|chunk| self.offset >= chunk.len()) {
            self.chunk += 1;
            self.offset = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::kind::ResourceType;
    use super::*;

    fn resource(version: u64) -> Resource {
        let mut snapshot = super::super::snapshot::Snapshot::new();
        let kind = ResourceType::RUNTIME;
        let version = version.to_string();
        snapshot.insert_encoded(kind.url(), "any", bytes::Bytes::new(), Some(&version)).unwrap();
        snapshot.get(&kind, "any").unwrap().clone()
    }

    #[test]
    fn says_what_a_sorted_map_would_say() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut chunks, mut map) = (Chunks::default(), BTreeMap::new());
        for round in 0..20 {
            let (old, old_map) = (chunks.clone(), map.clone());
            for step in 0..200 {
                let name = format!("{}", random.u32(..2000));
                if random.u32(..3) == 0 {
                    let removed = chunks.remove(&name).map(|old| old.version);
                    assert_eq!(removed, map.remove(&name).map(|old: Resource| old.version));
                } else {
                    let new = resource(random.u64(..3) + step / 100);
                    let before = chunks.insert(&name, new.clone()).map(|old| old.version);
                    assert_eq!(before, map.insert(name, new).map(|old| old.version), "round {round}");
                }
            }
            assert_eq!(chunks.len(), map.len());
            assert!(chunks
                .iter()
                .map(|(name, r)| (&**name, &r.version))
                .eq(map.iter().map(|(n, r)| (&**n, &r.version))));
            let bounds = (Bound::Excluded("3"), Bound::Included("55"));
            let ours: Vec<_> = chunks.range(bounds).map(|(name, _)| &**name).collect();
            let theirs: Vec<_> = map.range::<str, _>(bounds).map(|(name, _)| name.as_str()).collect();
            assert_eq!(ours, theirs);
            let version = |map: &BTreeMap<String, Resource>, name: &str| {
                map.get(name).map(|r: &Resource| r.version.clone())
            };
            let all: std::collections::BTreeSet<_> = map.keys().chain(old_map.keys()).collect();
            let wanted: Vec<_> =
                all.into_iter().filter(|name| version(&map, name) != version(&old_map, name)).collect();
            let found = old.differences(&chunks);
            assert!(
                found.iter().map(|name| &**name).eq(wanted.iter().map(|name| name.as_str())),
                "round {round}"
            );
        }
    }

    #[test]
    fn one_change_among_many_copies_one_chunk() {
        let mut chunks = Chunks::default();
        for index in 0..10_000 {
            chunks.insert(&format!("{index:05}"), resource(0));
        }
        let mut changed = chunks.clone();
        changed.insert("05000", resource(1));
        let shared = chunks.list.iter().zip(&changed.list).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!((chunks.list.len() - shared, chunks.differences(&changed)), (1, vec!["05000".into()]));
    }
}
