//! Named, hot-swappable places for compiled resources.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwapOption, Guard};

/// The place of one named resource. Created when the name is first referenced, filled when the
/// resource arrives, emptied when it is removed. Compiled values that refer to the resource hold
/// the slot, so that the data path never looks anything up by name.
#[derive(Debug)]
pub struct Slot<T> {
    name: Arc<str>,
    index: u32,
    value: ArcSwapOption<T>,
}

impl<T> Slot<T> {
    /// A filled slot of its own that no [`Directory`] knows. Its index is [`u32::MAX`].
    pub fn anonymous(value: Arc<T>) -> Arc<Self> {
        Arc::new(Self { name: "".into(), index: u32::MAX, value: ArcSwapOption::new(Some(value)) })
    }

    /// The resource's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// A small number, unique among the slots of one [`Directory`]: workers index their own state
    /// for the resource by it.
    pub fn index(&self) -> usize {
        self.index as usize
    }

    /// The current value, if the resource is there. Wait-free.
    pub fn load(&self) -> Guard<Option<Arc<T>>> {
        self.value.load()
    }

    /// The current value as an owned reference.
    pub fn get(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }

    /// Swaps the value in (or out, with `None`) and returns the old one. Control thread only.
    pub fn set(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
        self.value.swap(value)
    }
}

/// All slots of one kind of resource, by name. Used while compiling, never on the data path.
#[derive(Debug)]
pub struct Directory<T> {
    slots: Mutex<HashMap<Arc<str>, Arc<Slot<T>>>>,
    next: AtomicU32,
}

impl<T> Default for Directory<T> {
    fn default() -> Self {
        Self { slots: Mutex::new(HashMap::new()), next: AtomicU32::new(0) }
    }
}

impl<T> Directory<T> {
    /// The slot of `name`, created empty when this is the first mention of it.
    pub fn slot(&self, name: &str) -> Arc<Slot<T>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(name) {
            return slot.clone();
        }
        let name: Arc<str> = name.into();
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot { name: name.clone(), index, value: ArcSwapOption::empty() });
        slots.insert(name, slot.clone());
        slot
    }

    /// The slot of `name` if anything has referred to it.
    pub fn find(&self, name: &str) -> Option<Arc<Slot<T>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Every slot, sorted by name.
    pub fn all(&self) -> Vec<Arc<Slot<T>>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = slots.values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}
