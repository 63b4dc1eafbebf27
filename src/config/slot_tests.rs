//! Slots alone; `tests/model` tries them with threads.

use std::sync::Arc;

use super::slot::{Directory, Dormant};

struct Number(u32);

impl Dormant<u32> for Number {
    fn wake(&self) -> Option<Arc<u32>> {
        Some(Arc::new(self.0))
    }
}

#[test]
fn a_resource_sleeps_until_it_is_used_and_when_nobody_uses_it() {
    let directory = Directory::<u32>::default();
    let slot = directory.slot("a");
    assert!(slot.wake().is_none() && !slot.is_filled());
    slot.replace(Arc::new(Number(1)), |_| unreachable!("nobody is awake"));
    assert!(slot.get().is_none() && slot.is_filled());
    let value = slot.wake();
    assert_eq!(value.as_deref(), Some(&1));
    assert!(!slot.sleep(), "it is held");
    drop(value);
    assert!(slot.sleep());
    assert!(slot.get().is_none());
    assert_eq!(slot.wake().as_deref(), Some(&1));
    let old = slot.replace(Arc::new(Number(2)), |old| Some(Arc::new(**old + 1)));
    assert_eq!((old.as_deref(), slot.get().as_deref()), (Some(&1), Some(&2)), "it stays awake");
    slot.set(None);
    assert!(slot.wake().is_none() && !slot.is_filled());
}

#[test]
fn names_that_nothing_refers_to_are_forgotten_and_their_numbers_used_again() {
    let directory = Directory::<u32>::default();
    let held = directory.slot("held");
    directory.slot("filled").set(Some(Arc::new(1)));
    for round in 0..100 {
        let index = directory.slot(&format!("passing{round}")).index();
        assert_eq!((index, directory.forget_unused()), (2, 1));
    }
    assert_eq!(directory.all().len(), 2);
    assert!(Arc::ptr_eq(&held, &directory.slot("held")));
}
