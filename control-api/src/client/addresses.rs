//! Which of a control plane's addresses to try first.
//!
//! In: the addresses of an endpoint, of which names are resolved for each round, and what became of attempts. Out:
//! every address there is, once, in an order that is this client's own and the same in each round, so that many
//! clients spread over all addresses; it begins with the one that worked, or with the one after that which did not.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::timeout;
use xxhash_rust::xxh64::xxh64;

use super::transport::{Address, Endpoint, TransportError};

/// All addresses of one control plane.
#[derive(Debug)]
pub(super) struct Addresses {
    configured: Vec<Address>,
    seed: u64,
    place: Mutex<Place>,
}

/// Where the next round begins.
#[derive(Debug, Default)]
struct Place {
    rank: u64,
    /// At that rank, not after it.
    stays: bool,
    /// The address that was last tried.
    last: Option<Address>,
}

/// What to try.
#[derive(Debug)]
pub(super) struct Round {
    /// In this order.
    pub addresses: Vec<Address>,
    /// Names that could not be resolved.
    pub errors: Vec<TransportError>,
}

impl Addresses {
    /// `seed` decides the order.
    pub fn new(endpoint: &Endpoint, seed: u64) -> Self {
        let configured = std::iter::once(&endpoint.address).chain(&endpoint.others).cloned().collect();
        Self { configured, seed, place: Mutex::default() }
    }

    /// Every address once. A name may take `limit` to be resolved.
    pub async fn round(&self, limit: Duration) -> Round {
        let mut errors = Vec::new();
        let mut ranked = Vec::new();
        let mut lookups = JoinSet::new();
        for address in &self.configured {
            match address {
                Address::Tcp(host, port) if host.parse::<IpAddr>().is_err() => {
                    let (host, port) = (host.clone(), *port);
                    lookups.spawn(resolve(host, port, limit));
                }
                fixed => ranked.push((self.rank(fixed), fixed.clone())),
            }
        }
        while let Some(looked_up) = lookups.join_next().await {
            match looked_up {
                Ok(Ok(found)) => {
                    ranked.extend(found.into_iter().map(|address| (self.rank(&address), address)));
                }
                Ok(Err(error)) => errors.push(error),
                // A lookup neither panics nor is it aborted.
                Err(_) => {}
            }
        }
        ranked.sort_by_key(|(rank, address)| (*rank, address.to_string()));
        ranked.dedup_by(|a, b| a.1 == b.1);
        let place = self.place();
        let before = |rank: u64| if place.stays { rank < place.rank } else { rank <= place.rank };
        let first = ranked.partition_point(|(rank, _)| before(*rank));
        ranked.rotate_left(first);
        Round { addresses: ranked.into_iter().map(|(_, address)| address).collect(), errors }
    }

    /// The next round begins with this one.
    pub fn stay(&self, address: &Address) {
        *self.place() = Place { rank: self.rank(address), stays: true, last: Some(address.clone()) };
    }

    /// The next round begins with the one after this.
    pub fn leave(&self, address: &Address) {
        *self.place() = Place { rank: self.rank(address), stays: false, last: Some(address.clone()) };
    }

    /// For the log: the configured address, or where there are several the one that was last tried.
    pub fn current(&self) -> String {
        match self.configured.as_slice() {
            [only] => only.to_string(),
            all => {
                let last = self.place().last.clone();
                last.or_else(|| all.first().cloned()).map(|address| address.to_string()).unwrap_or_default()
            }
        }
    }

    fn rank(&self, address: &Address) -> u64 {
        xxh64(address.to_string().as_bytes(), self.seed)
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn resolve(host: String, port: u16, limit: Duration) -> Result<Vec<Address>, TransportError> {
    let address = Address::Tcp(host.clone(), port).to_string();
    match timeout(limit, lookup_host((host, port))).await {
        Err(_) => Err(TransportError::ConnectTimeout { address, limit }),
        Ok(Err(error)) => Err(TransportError::Connect { address, error }),
        Ok(Ok(found)) => Ok(found.map(|found| Address::Tcp(found.ip().to_string(), found.port())).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn endpoint(ports: &[u16]) -> Endpoint {
        let address = |port: &u16| Address::Tcp("127.0.0.1".to_owned(), *port);
        let mut endpoint = Endpoint::new(address(&ports[0]));
        endpoint.others = ports[1..].iter().map(address).collect();
        endpoint
    }

    #[tokio::test]
    async fn an_order_of_its_own_that_begins_where_it_worked_or_after_where_it_did_not() {
        let endpoint = endpoint(&[1, 2, 3, 4]);
        let addresses = Addresses::new(&endpoint, 7);
        let first = addresses.round(LIMIT).await.addresses;
        let mut sorted = first.clone();
        sorted.sort_by_key(ToString::to_string);
        assert_eq!(sorted.len(), 4);
        assert_eq!(addresses.round(LIMIT).await.addresses, first, "the same in each round");

        addresses.stay(&first[2]);
        let expected = [2, 3, 0, 1].map(|index: usize| first[index].clone());
        assert_eq!(addresses.round(LIMIT).await.addresses, expected);
        assert_eq!(addresses.current(), first[2].to_string());
        addresses.leave(&first[3]);
        assert_eq!(addresses.round(LIMIT).await.addresses, first, "after the last comes the first");

        // Many clients begin at different addresses.
        let mut begins = std::collections::HashSet::new();
        for seed in 0..64 {
            begins.insert(Addresses::new(&endpoint, seed).round(LIMIT).await.addresses[0].clone());
        }
        assert_eq!(begins.len(), 4);
    }

    #[tokio::test]
    async fn names_become_their_addresses_and_one_that_is_unknown_is_an_error_beside_the_others() {
        let mut endpoint = Endpoint::new(Address::Tcp("localhost".to_owned(), 80));
        endpoint.others.push(Address::Tcp("no-such-name.invalid".to_owned(), 80));
        endpoint.others.push(Address::Tcp("127.0.0.1".to_owned(), 80));
        let round = Addresses::new(&endpoint, 1).round(LIMIT).await;
        let local = Address::Tcp("127.0.0.1".to_owned(), 80);
        assert_eq!(round.addresses.iter().filter(|address| **address == local).count(), 1);
        assert_eq!(round.errors.len(), 1, "{:?}", round.errors);
        assert!(round.errors[0].to_string().contains("no-such-name.invalid:80"), "{:?}", round.errors);
    }
}
