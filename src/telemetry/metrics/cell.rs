//! Counters and gauges: one atomic each, and the scope they keep alive.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use metrics::{CounterFn, GaugeFn};

use super::Scope;

pub(super) struct CounterCell {
    value: AtomicU64,
    /// Held so that the scope stays listed while a handle lives.
    _scope: Scope,
}

impl CounterCell {
    pub fn new(scope: Scope) -> Self {
        Self { value: AtomicU64::new(0), _scope: scope }
    }

    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    pub fn reset(&self) {
        self.value.store(0, Ordering::Relaxed);
    }
}

impl Scope {
    /// What one of its counters has come to; 0 where it has none of this name.
    pub fn counted(&self, name: &str) -> u64 {
        let series = super::locked(&self.0.series);
        let found = series.iter().find_map(|series| match &series.cell {
            super::WeakCell::Counter(cell) if *series.name == *name => cell.upgrade(),
            _ => None,
        });
        found.map_or(0, |cell| cell.get())
    }
}

impl CounterFn for CounterCell {
    fn increment(&self, value: u64) {
        self.value.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.value.fetch_max(value, Ordering::Relaxed);
    }
}

impl Drop for CounterCell {
    fn drop(&mut self) {
        super::forget_series();
    }
}

pub(super) struct GaugeCell {
    value: AtomicI64,
    used: AtomicBool,
    _scope: Scope,
}

impl GaugeCell {
    pub fn new(scope: Scope) -> Self {
        Self { value: AtomicI64::new(0), used: AtomicBool::new(false), _scope: scope }
    }

    pub fn get(&self) -> i64 {
        self.value.load(Ordering::Relaxed)
    }

    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    fn touch(&self) {
        // Read first: a store on every change would cost more than the change.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }
}

// Envoy's gauges are whole numbers; the facade's floats are truncated (`as` saturates).
impl GaugeFn for GaugeCell {
    fn increment(&self, value: f64) {
        self.value.fetch_add(value as i64, Ordering::Relaxed);
        self.touch();
    }

    fn decrement(&self, value: f64) {
        self.value.fetch_sub(value as i64, Ordering::Relaxed);
        self.touch();
    }

    fn set(&self, value: f64) {
        self.value.store(value as i64, Ordering::Relaxed);
        self.touch();
    }
}

impl Drop for GaugeCell {
    fn drop(&mut self) {
        super::forget_series();
    }
}
