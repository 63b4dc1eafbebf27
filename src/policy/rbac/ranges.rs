//! Sets of addresses and ports: sorted ranges that do not overlap.

use std::net::IpAddr;

/// Networks of both families.
#[derive(Debug, Clone, Default)]
pub struct Networks {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

/// Ports.
#[derive(Debug, Clone, Default)]
pub struct Ports(Ranges<u16>);

/// Ranges, both ends included, in order, with gaps between them.
#[derive(Debug, Clone, Default)]
struct Ranges<T>(Vec<(T, T)>);

impl<T: Copy + Ord> Ranges<T> {
    fn insert(&mut self, first: T, last: T) {
        // What the new range touches becomes a part of it.
        let start = self.0.partition_point(|(_, end)| *end < first);
        let end = self.0.partition_point(|(begin, _)| *begin <= last).max(start);
        let touched = self.0.get(start..end).unwrap_or_default();
        let first = touched.first().map_or(first, |(begin, _)| first.min(*begin));
        let last = touched.last().map_or(last, |(_, finish)| last.max(*finish));
        self.0.splice(start..end, [(first, last)]);
    }

    fn contains(&self, value: T) -> bool {
        let after = self.0.partition_point(|(begin, _)| *begin <= value);
        after.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|(_, end)| value <= *end)
    }
}

impl Networks {
    /// The network that `ip` is in when its first `length` bits count.
    pub fn one(ip: IpAddr, length: u8) -> Self {
        let mut networks = Self::default();
        match ip {
            IpAddr::V4(ip) => {
                let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
                let ip = u32::from(ip);
                networks.v4.insert(ip & !host, ip | host);
            }
            IpAddr::V6(ip) => {
                let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
                let ip = u128::from(ip);
                networks.v6.insert(ip & !host, ip | host);
            }
        }
        networks
    }

    /// Takes the networks of `other` in.
    pub fn extend(&mut self, other: Self) {
        other.v4.0.into_iter().for_each(|(first, last)| self.v4.insert(first, last));
        other.v6.0.into_iter().for_each(|(first, last)| self.v6.insert(first, last));
    }

    /// Whether `ip` is in one of them. An IPv4 address is in no IPv6 network, mapped or not.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.v4.contains(ip.into()),
            IpAddr::V6(ip) => self.v6.contains(ip.into()),
        }
    }

    /// The ranges of both families, on one line of numbers (see [`place`]).
    pub(super) fn places(&self) -> impl Iterator<Item = (bool, u128, u128)> + '_ {
        let v4 = self.v4.0.iter().map(|(first, last)| (false, (*first).into(), (*last).into()));
        v4.chain(self.v6.0.iter().map(|(first, last)| (true, *first, *last)))
    }
}

/// An address as a number of its family (`true`: IPv6).
pub(super) fn place(ip: IpAddr) -> (bool, u128) {
    match ip {
        IpAddr::V4(ip) => (false, u32::from(ip).into()),
        IpAddr::V6(ip) => (true, ip.into()),
    }
}

impl Ports {
    /// From `first` to `last`, both included.
    pub fn range(first: u16, last: u16) -> Self {
        let mut ports = Self::default();
        ports.0.insert(first, last.max(first));
        ports
    }

    /// Takes the ports of `other` in.
    pub fn extend(&mut self, other: Self) {
        other.0 .0.into_iter().for_each(|(first, last)| self.0.insert(first, last));
    }

    /// Whether `port` is one of them.
    pub fn contains(&self, port: u16) -> bool {
        self.0.contains(port)
    }

    /// The ranges.
    pub(super) fn places(&self) -> impl Iterator<Item = (bool, u128, u128)> + '_ {
        self.0 .0.iter().map(|(first, last)| (false, (*first).into(), (*last).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(list: &[(&str, u8)]) -> Networks {
        let mut all = Networks::default();
        list.iter().for_each(|(ip, length)| all.extend(Networks::one(ip.parse().unwrap(), *length)));
        all
    }

    #[test]
    fn networks_at_their_edges() {
        let set = networks(&[("10.1.2.3", 8), ("192.168.0.0", 16), ("1.2.3.4", 32), ("fd00::1", 8)]);
        for (ip, inside) in [
            ("9.255.255.255", false),
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("192.168.255.255", true),
            ("192.169.0.0", false),
            ("1.2.3.4", true),
            ("1.2.3.3", false),
            ("1.2.3.5", false),
            ("fd00::", true),
            ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true),
            ("fe00::", false),
            ("::ffff:10.0.0.1", false),
        ] {
            assert_eq!(set.contains(ip.parse().unwrap()), inside, "{ip}");
        }
    }

    #[test]
    fn a_length_of_zero_is_the_whole_family() {
        let v4 = networks(&[("10.0.0.0", 0)]);
        assert!(v4.contains("0.0.0.0".parse().unwrap()) && v4.contains("255.255.255.255".parse().unwrap()));
        assert!(!v4.contains("::1".parse().unwrap()));
        let v6 = networks(&[("::", 0)]);
        assert!(v6.contains("ffff::".parse().unwrap()) && !v6.contains("1.1.1.1".parse().unwrap()));
    }

    #[test]
    fn ports_at_their_edges() {
        let mut ports = Ports::range(80, 80);
        ports.extend(Ports::range(8000, 8009));
        ports.extend(Ports::range(65535, 65535));
        ports.extend(Ports::range(8005, 8020));
        ports.extend(Ports::range(0, 0));
        let inside = [0, 80, 8000, 8009, 8010, 8020, 65535];
        let outside = [1, 79, 81, 7999, 8021, 65534];
        assert!(inside.iter().all(|port| ports.contains(*port)));
        assert!(!outside.iter().any(|port| ports.contains(*port)));
    }

    /// Whatever order ranges come in, the set is that of a plain list.
    #[test]
    fn ranges_are_the_union_of_what_was_inserted() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..300 {
            let mut set: Ranges<u16> = Ranges::default();
            let list: Vec<(u16, u16)> = (0..random.usize(1..12))
                .map(|_| {
                    let first = random.u16(0..100);
                    (first, first + random.u16(0..20))
                })
                .collect();
            list.iter().for_each(|(first, last)| set.insert(*first, *last));
            for value in 0..130 {
                let wanted = list.iter().any(|(first, last)| (*first..=*last).contains(&value));
                assert_eq!(set.contains(value), wanted, "{value} in {list:?} as {set:?}");
            }
            assert!(set.0.windows(2).all(|pair| pair[0].1 < pair[1].0), "{set:?}");
        }
    }
}
