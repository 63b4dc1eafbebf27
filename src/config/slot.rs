//! Named, hot-swappable places for compiled resources.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::sync::{ArcSwapOption, Guard, Mutex, MutexGuard, PoisonError};

/// The compact form of a resource that is compiled when it is first used.
pub trait Dormant<T>: Send + Sync {
    /// Compiles it. `None` where that fails, which the check on arrival has ruled out.
    fn wake(&self) -> Option<Arc<T>>;
}

/// The place of one named resource. Created when the name is first referenced, filled when the
/// resource arrives, emptied when it is removed. Compiled values that refer to the resource hold
/// the slot, so that the data path never looks anything up by name.
///
/// A slot may hold its resource in its [`Dormant`] form, and so costs what its bytes cost until
/// somebody asks for it with [`Slot::wake`].
pub struct Slot<T> {
    name: Arc<str>,
    index: u32,
    value: ArcSwapOption<T>,
    /// What `value` is made from, where it can be made again. Locked by whoever changes `value`.
    dormant: Mutex<Option<Arc<dyn Dormant<T>>>>,
}

impl<T> Slot<T> {
    /// A slot that no [`Directory`] knows.
    pub fn anonymous(value: Arc<T>) -> Arc<Self> {
        Arc::new(Self {
            name: "".into(),
            index: u32::MAX,
            value: ArcSwapOption::from(Some(value)),
            dormant: Mutex::new(None),
        })
    }

    fn empty(name: Arc<str>, index: u32) -> Self {
        Self { name, index, value: ArcSwapOption::empty(), dormant: Mutex::new(None) }
    }

    /// The resource's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// A small number, unique among the slots of one [`Directory`]: workers index their own state
    /// for the resource by it. That of a slot that nothing refers to any more is given out again.
    pub fn index(&self) -> usize {
        self.index as usize
    }

    /// The current value, if the resource is there and awake. Wait-free.
    pub fn load(&self) -> Guard<Option<Arc<T>>> {
        self.value.load()
    }

    /// The current value as an owned reference.
    pub fn get(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }

    /// The value; compiled now where this is its first use. What is awake costs no lock.
    pub fn wake(&self) -> Option<Arc<T>> {
        if let Some(value) = self.get() {
            return Some(value);
        }
        let dormant = self.lock();
        // Another thread may have been first.
        if let Some(value) = self.get() {
            return Some(value);
        }
        let value = dormant.as_ref()?.wake()?;
        self.value.store(Some(value.clone()));
        Some(value)
    }

    /// The value without waking it: made for the caller alone where it sleeps. For admin pages.
    pub fn peek(&self) -> Option<Arc<T>> {
        self.get().or_else(|| {
            let dormant = self.lock().clone();
            dormant?.wake()
        })
    }

    /// Whether the resource is there, awake or not.
    pub fn is_filled(&self) -> bool {
        self.value.load().is_some() || self.lock().is_some()
    }

    /// Swaps the value in (or out, with `None`) and returns the old one. Control thread only.
    pub fn set(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
        let mut dormant = self.lock();
        *dormant = None;
        self.value.swap(value)
    }

    /// Swaps a resource in by its compact form. Where the old one is awake, `compile` gives the new
    /// value, and what it was comes back. Control thread only.
    pub fn replace(
        &self,
        new: Arc<dyn Dormant<T>>,
        compile: impl FnOnce(&Arc<T>) -> Option<Arc<T>>,
    ) -> Option<Arc<T>> {
        let mut dormant = self.lock();
        *dormant = Some(new);
        let old = self.get()?;
        self.value.swap(compile(&old))
    }

    /// Runs `change` while nobody can wake or swap the value. For what a resource shares with others,
    /// such as a cluster's endpoints.
    pub fn while_held<R>(&self, change: impl FnOnce(Option<&Arc<T>>) -> R) -> R {
        let _held = self.lock();
        change(self.get().as_ref())
    }

    /// Back to the compact form, where there is one and nobody else holds the value. True if so.
    pub fn sleep(&self) -> bool {
        let dormant = self.lock();
        if dormant.is_none() {
            return false;
        }
        // Taken out first, so that the count is that of whoever holds it. Who asks in this moment waits
        // in `wake`.
        let Some(value) = self.value.swap(None) else { return false };
        let idle = Arc::strong_count(&value) == 1;
        if !idle {
            self.value.store(Some(value));
        }
        idle
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<dyn Dormant<T>>>> {
        self.dormant.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: fmt::Debug> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("name", &self.name).field("value", &*self.load()).finish()
    }
}

/// All slots of one kind of resource, by name. Used while compiling, never on the data path.
#[derive(Debug)]
pub struct Directory<T> {
    slots: Mutex<Slots<T>>,
}

#[derive(Debug)]
struct Slots<T> {
    by_name: HashMap<Arc<str>, Arc<Slot<T>>>,
    next: u32,
    free: Vec<u32>,
}

impl<T> Default for Directory<T> {
    fn default() -> Self {
        Self { slots: Mutex::new(Slots { by_name: HashMap::new(), next: 0, free: Vec::new() }) }
    }
}

impl<T> Directory<T> {
    /// The slot of `name`, created empty when this is the first mention of it.
    pub fn slot(&self, name: &str) -> Arc<Slot<T>> {
        let mut slots = self.lock();
        if let Some(slot) = slots.by_name.get(name) {
            return slot.clone();
        }
        let name: Arc<str> = name.into();
        let index = slots.free.pop().unwrap_or_else(|| {
            slots.next += 1;
            slots.next - 1
        });
        let slot = Arc::new(Slot::empty(name.clone(), index));
        slots.by_name.insert(name, slot.clone());
        slot
    }

    /// The slot of `name` if anything has referred to it.
    pub fn find(&self, name: &str) -> Option<Arc<Slot<T>>> {
        self.lock().by_name.get(name).cloned()
    }

    /// Every slot, sorted by name.
    pub fn all(&self) -> Vec<Arc<Slot<T>>> {
        let slots = self.lock();
        let mut all: Vec<_> = slots.by_name.values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Forgets empty slots that nothing refers to: a control plane that invents names must not make
    /// memory grow without end. Says how many were forgotten.
    pub fn forget_unused(&self) -> usize {
        let mut slots = self.lock();
        let Slots { by_name, free, .. } = &mut *slots;
        let before = by_name.len();
        by_name.retain(|_, slot| {
            let used = Arc::strong_count(slot) > 1 || slot.is_filled();
            if !used {
                free.push(slot.index);
            }
            used
        });
        before - by_name.len()
    }

    fn lock(&self) -> MutexGuard<'_, Slots<T>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
