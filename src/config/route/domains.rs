//! Which virtual host serves an authority: exact name, then the longest `*suffix`, then the longest
//! `prefix*`, then `*`.
//!
//! The cost of a lookup is one hash probe plus one for each distinct wildcard length, whatever the
//! number of virtual hosts. Names are lower-cased on the stack.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use smallvec::SmallVec;
use xxhash_rust::xxh64::xxh64;

/// Index of a virtual host in its table.
type VirtualHostIndex = u32;

type Names = HashMap<Box<[u8]>, VirtualHostIndex, BuildHasherDefault<NameHasher>>;

/// Domains and the virtual hosts they lead to.
#[derive(Debug, Default)]
pub(super) struct Domains {
    exact: Names,
    suffixes: Wildcards,
    prefixes: Wildcards,
    any: Option<VirtualHostIndex>,
}

/// Wildcards by the length of their fixed part, longest first.
type Wildcards = Vec<(usize, Names)>;

/// A domain that is already there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the domain {0:?} occurs twice in this route configuration (domains are compared in lower case)")]
pub struct DuplicateDomain(pub String);

impl Domains {
    /// Leads `domain` to the virtual host `index`.
    pub(super) fn insert(&mut self, domain: &str, index: VirtualHostIndex) -> Result<(), DuplicateDomain> {
        let domain = domain.to_ascii_lowercase();
        let name = domain.as_bytes();
        let previous = match (name.strip_prefix(b"*"), name.strip_suffix(b"*")) {
            (Some(b""), _) => self.any.replace(index),
            (Some(suffix), _) => insert_wildcard(&mut self.suffixes, suffix, index),
            (None, Some(prefix)) => insert_wildcard(&mut self.prefixes, prefix, index),
            (None, None) => self.exact.insert(name.into(), index),
        };
        previous.map_or(Ok(()), |_| Err(DuplicateDomain(domain)))
    }

    /// Gives back what was kept for more domains.
    pub(super) fn shrink(&mut self) {
        self.exact.shrink_to_fit();
        for (_, names) in self.suffixes.iter_mut().chain(&mut self.prefixes) {
            names.shrink_to_fit();
        }
    }

    /// The virtual host of `authority`, whose port must have been cut off if it is not to count.
    pub(super) fn find(&self, authority: &[u8]) -> Option<VirtualHostIndex> {
        self.find_counting(authority, &mut 0)
    }

    /// [`Domains::find`], adding the number of hash probes to `probes`.
    fn find_counting(&self, authority: &[u8], probes: &mut usize) -> Option<VirtualHostIndex> {
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any;
        }
        // Longer names than this do not occur in the DNS; they cost an allocation.
        let mut host: SmallVec<[u8; 256]> = SmallVec::from_slice(authority);
        host.make_ascii_lowercase();
        *probes += 1;
        if let Some(found) = self.exact.get(host.as_slice()) {
            return Some(*found);
        }
        let mut search = |wildcards: &Wildcards, part: fn(&[u8], usize) -> Option<&[u8]>| {
            // The wildcard stands for at least one character.
            wildcards.iter().filter(|(length, _)| *length < host.len()).find_map(|(length, names)| {
                *probes += 1;
                names.get(part(&host, *length)?).copied()
            })
        };
        search(&self.suffixes, |host, length| host.get(host.len() - length..))
            .or_else(|| search(&self.prefixes, |host, length| host.get(..length)))
            .or(self.any)
    }
}

fn insert_wildcard(
    wildcards: &mut Wildcards,
    fixed: &[u8],
    index: VirtualHostIndex,
) -> Option<VirtualHostIndex> {
    let place = wildcards.binary_search_by(|(length, _)| fixed.len().cmp(length));
    let place = place.unwrap_or_else(|place| {
        wildcards.insert(place, (fixed.len(), Names::default()));
        place
    });
    wildcards.get_mut(place)?.1.insert(fixed.into(), index)
}

/// `authority` without its port, brackets of IPv6 addresses kept.
pub(super) fn without_port(authority: &[u8]) -> &[u8] {
    let colon = memchr::memrchr(b':', authority);
    let bracket = memchr::memrchr(b']', authority);
    match (colon, bracket) {
        (Some(colon), None) => authority.get(..colon).unwrap_or(authority),
        (Some(colon), Some(bracket)) if bracket < colon => authority.get(..colon).unwrap_or(authority),
        _ => authority,
    }
}

/// Hashes a whole name at once. Names come from config, so nobody can fill a bucket on purpose.
#[derive(Default)]
struct NameHasher(u64);

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh64(bytes, self.0);
    }

    fn write_usize(&mut self, length: usize) {
        self.0 ^= length as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(names: &[&str]) -> Domains {
        let mut domains = Domains::default();
        for (index, name) in names.iter().enumerate() {
            domains.insert(name, index as u32).unwrap();
        }
        domains
    }

    #[test]
    fn exact_then_longest_suffix_then_longest_prefix_then_any() {
        let names = [
            "foo.com",
            "foo.com:80",
            "*.foo.com",
            "*-bar.foo.com",
            "foo.*",
            "foo.bar.*",
            "*",
            "UPPER.example",
            "a*b.com",
        ];
        let domains = domains(&names);
        let found = |host: &str| domains.find(host.as_bytes()).map(|index| names[index as usize]);
        for (host, wanted) in [
            ("foo.com", "foo.com"),
            ("FOO.com", "foo.com"),
            ("foo.com:80", "foo.com:80"),
            ("foo.com:81", "foo.*"),
            ("a.foo.com", "*.foo.com"),
            ("x-bar.foo.com", "*-bar.foo.com"),
            ("-bar.foo.com", "*.foo.com"),
            (".foo.com", "*"),
            ("foo.org", "foo.*"),
            ("foo.bar.org", "foo.bar.*"),
            ("foo.", "*"),
            ("foo.bar.", "foo.*"),
            ("foo.com.", "foo.*"),
            ("upper.EXAMPLE", "UPPER.example"),
            ("a*b.com", "a*b.com"),
            ("axb.com", "*"),
            ("", "*"),
        ] {
            assert_eq!(found(host), Some(wanted), "{host}");
        }
        let long = format!("{}.foo.com", "a".repeat(5000));
        assert_eq!(found(&long), Some("*.foo.com"));
    }

    #[test]
    fn nothing_serves_an_unknown_host() {
        assert_eq!(domains(&["a", "*.b"]).find(b"c"), None);
        assert_eq!(Domains::default().find(b"c"), None);
        assert_eq!(domains(&["*"]).find(b""), Some(0));
    }

    #[test]
    fn refuses_a_domain_twice() {
        for name in ["a.b", "*.a.b", "a.*", "*"] {
            let mut domains = domains(&["a.b", "*.a.b", "a.*", "*"]);
            assert_eq!(domains.insert(&name.to_uppercase(), 9), Err(DuplicateDomain(name.to_owned())));
        }
    }

    #[test]
    fn ten_thousand_virtual_hosts_cost_as_many_probes_as_ten() {
        let table = |count: usize| {
            let mut domains = Domains::default();
            for index in 0..count {
                domains.insert(&format!("service-{index:05}.mesh.local"), index as u32).unwrap();
                domains.insert(&format!("*.service-{index:05}.mesh.local"), index as u32).unwrap();
                domains.insert(&format!("service-{index:05}.*"), index as u32).unwrap();
            }
            domains
        };
        let (few, many) = (table(10), table(10_000));
        for (host, wanted) in [
            ("service-00007.mesh.local", Some(7)),
            ("x.service-00003.mesh.local", Some(3)),
            ("service-00009.elsewhere", Some(9)),
            ("nobody.example.com", None),
        ] {
            let (mut cheap, mut dear) = (0, 0);
            assert_eq!(few.find_counting(host.as_bytes(), &mut cheap), wanted);
            assert_eq!(many.find_counting(host.as_bytes(), &mut dear), wanted);
            assert_eq!(cheap, dear, "{host}");
            assert!(dear <= 3, "{host}: {dear} probes");
        }
    }

    #[test]
    fn ports_are_cut_off() {
        for (authority, wanted) in
            [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a:", "a"), ("", "")]
        {
            assert_eq!(without_port(authority.as_bytes()), wanted.as_bytes());
        }
    }
}
