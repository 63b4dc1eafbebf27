//! A model of the slots that configuration is swapped through: the code of `src/config/slot.rs` itself, with primitives
//! of `shuttle` whose interleavings are tried by the thousand. Workers use a cluster while the control thread swaps it,
//! changes its endpoints, and puts it to sleep.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../../src/config/slot.rs"]
#[allow(dead_code)]
mod slot;

/// As `src/config/sync.rs`, for the model.
mod sync {
    use std::ops::Deref;
    use std::sync::Arc;

    pub use shuttle::sync::{Mutex, MutexGuard};
    pub use std::sync::PoisonError;

    /// `arc_swap`'s promise: each operation is one atomic step.
    #[derive(Debug)]
    pub struct ArcSwapOption<T>(Mutex<Option<Arc<T>>>);

    /// A value that was loaded.
    pub struct Guard<T>(T);

    impl<T> Deref for Guard<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }

    impl<T> ArcSwapOption<T> {
        pub fn empty() -> Self {
            Self(Mutex::new(None))
        }

        pub fn load(&self) -> Guard<Option<Arc<T>>> {
            Guard(self.load_full())
        }

        pub fn load_full(&self) -> Option<Arc<T>> {
            self.0.lock().unwrap().clone()
        }

        pub fn store(&self, value: Option<Arc<T>>) {
            self.swap(value);
        }

        pub fn swap(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
            std::mem::replace(&mut *self.0.lock().unwrap(), value)
        }
    }

    impl<T> From<Option<Arc<T>>> for ArcSwapOption<T> {
        fn from(value: Option<Arc<T>>) -> Self {
            Self(Mutex::new(value))
        }
    }
}

use std::sync::Arc;

use shuttle::sync::atomic::{AtomicU32, Ordering};
use shuttle::sync::Mutex;
use shuttle::thread;

use slot::{Directory, Dormant, Slot};

/// Endpoints that are shared by all versions of a cluster, as EDS gave them last.
type Endpoints = Arc<Mutex<u32>>;

/// A cluster awake: its version, and the endpoints it was given.
struct Cluster {
    version: u32,
    endpoints: AtomicU32,
}

/// A cluster asleep.
struct Sleeping {
    version: u32,
    endpoints: Endpoints,
    woken: Arc<AtomicU32>,
}

impl Dormant<Cluster> for Sleeping {
    fn wake(&self) -> Option<Arc<Cluster>> {
        self.woken.fetch_add(1, Ordering::SeqCst);
        let endpoints = *self.endpoints.lock().unwrap();
        Some(Arc::new(Cluster { version: self.version, endpoints: AtomicU32::new(endpoints) }))
    }
}

struct World {
    slot: Arc<Slot<Cluster>>,
    endpoints: Endpoints,
    woken: Arc<AtomicU32>,
    /// The newest version and endpoints of which the control thread has said that they are in force.
    in_force: AtomicU32,
    known: AtomicU32,
}

impl World {
    fn new() -> Arc<World> {
        let directory = Directory::default();
        let world = World {
            slot: directory.slot("cluster"),
            endpoints: Arc::new(Mutex::new(1)),
            woken: Arc::default(),
            in_force: AtomicU32::new(0),
            known: AtomicU32::new(1),
        };
        world.swap(1);
        Arc::new(world)
    }

    /// What CDS does.
    fn swap(&self, version: u32) {
        let (endpoints, woken) = (self.endpoints.clone(), self.woken.clone());
        let sleeping = Arc::new(Sleeping { version, endpoints, woken });
        let new = sleeping.clone();
        self.slot.replace(sleeping, |_| new.wake());
        self.in_force.store(version, Ordering::SeqCst);
    }

    /// What EDS does.
    fn change_endpoints(&self, endpoints: u32) {
        *self.endpoints.lock().unwrap() = endpoints;
        self.slot.while_held(|cluster| {
            if let Some(cluster) = cluster {
                cluster.endpoints.store(endpoints, Ordering::SeqCst);
            }
        });
        self.known.store(endpoints, Ordering::SeqCst);
    }

    /// What a request does: nothing older than what was in force when it came.
    fn request(&self) {
        let (version, endpoints) = (self.in_force.load(Ordering::SeqCst), self.known.load(Ordering::SeqCst));
        let cluster = self.slot.wake().expect("a cluster that was never removed");
        assert!(cluster.version >= version, "version {} after {version}", cluster.version);
        let given = cluster.endpoints.load(Ordering::SeqCst);
        assert!(given >= endpoints, "endpoints {given} after {endpoints}");
    }
}

fn try_all(scenario: impl Fn() + Send + Sync + 'static) {
    shuttle::check_pct(scenario, 20_000, 3);
}

#[test]
fn a_request_never_sees_what_was_replaced_before_it_came() {
    try_all(|| {
        let world = World::new();
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let world = world.clone();
                thread::spawn(move || {
                    world.request();
                    world.request();
                })
            })
            .collect();
        world.swap(2);
        world.change_endpoints(2);
        world.slot.sleep();
        world.change_endpoints(3);
        world.swap(3);
        for worker in workers {
            worker.join().unwrap();
        }
        world.request();
    });
}

#[test]
fn a_cluster_is_woken_once_however_many_ask() {
    try_all(|| {
        let world = World::new();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let world = world.clone();
                thread::spawn(move || world.request())
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(world.woken.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn what_is_in_use_is_not_put_to_sleep_and_removal_is_final() {
    try_all(|| {
        let world = World::new();
        let worker = {
            let world = world.clone();
            thread::spawn(move || {
                let held = world.slot.wake();
                if let Some(held) = held {
                    assert_eq!(held.version, 1);
                    // The worker's own reference: nobody else can wake another one beside it.
                    if let Some(again) = world.slot.wake() {
                        assert!(Arc::ptr_eq(&held, &again));
                    }
                }
            })
        };
        world.slot.sleep();
        world.slot.set(None);
        assert!(world.slot.wake().is_none() && !world.slot.is_filled());
        worker.join().unwrap();
    });
}
