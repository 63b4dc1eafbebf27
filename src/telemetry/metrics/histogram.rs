//! Log-linear histograms: 90 bins in each decade, so that a value is known to within 10 % at worst
//! and 1 % at best, as in Envoy. Recording is lock-free; a decade's bins are made when a value
//! first falls into it, and a histogram without values is one empty pointer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

use metrics::HistogramFn;

use super::{Scope, Unit};

const BINS: usize = 90;
/// Lower bounds of the decades. Smaller values count as zero, larger ones in the last bin.
const DECADES: [f64; 15] = [1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11];
/// The sum is kept in thousandths: adding is then one atomic operation.
const SUM_SCALE: f64 = 1000.0;

/// Upper bounds of the buckets that Envoy shows by default.
pub const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10000.0,
    30000.0,
    60000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// The quantiles that Envoy shows, and the same in percent.
pub const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0];
pub(super) const PERCENTS: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

pub(super) struct HistogramCell {
    data: OnceLock<Box<Data>>,
    unit: Unit,
    _scope: Scope,
}

#[derive(Default)]
struct Data {
    zero: AtomicU64,
    sum: AtomicU64,
    decades: [OnceLock<Box<[AtomicU64; BINS]>>; DECADES.len()],
}

impl HistogramCell {
    pub fn new(scope: Scope, unit: Unit) -> Self {
        Self { data: OnceLock::new(), unit, _scope: scope }
    }

    pub fn snapshot(&self) -> HistogramSnapshot {
        let unit = self.unit;
        let Some(data) = self.data.get() else { return HistogramSnapshot { unit, ..Default::default() } };
        let mut bins = Vec::new();
        let mut add = |lower: f64, width: f64, count: u64| {
            if count != 0 {
                bins.push(Bin { lower, width, count });
            }
        };
        add(0.0, 0.0, data.zero.load(Ordering::Relaxed));
        for (start, decade) in DECADES.iter().zip(&data.decades) {
            let Some(decade) = decade.get() else { continue };
            for (index, bin) in (10u32..).zip(decade.iter()) {
                add(start * f64::from(index) / 10.0, start / 10.0, bin.load(Ordering::Relaxed));
            }
        }
        let count = bins.iter().map(|bin| bin.count).sum();
        HistogramSnapshot { bins, count, sum: data.sum.load(Ordering::Relaxed) as f64 / SUM_SCALE, unit }
    }
}

/// The decade of `value` and the bin in it; `None` below the first decade.
fn place(value: f64) -> Option<(usize, usize)> {
    let decade = DECADES.partition_point(|start| *start <= value).checked_sub(1)?;
    let start = DECADES.get(decade)?;
    // The nudge keeps 0.29 (which is a little less than 29 hundredths) in its own bin.
    let mantissa = (value / start * 10.0 * (1.0 + 1e-12)) as usize;
    Some((decade, mantissa.saturating_sub(10).min(BINS - 1)))
}

impl HistogramFn for HistogramCell {
    fn record(&self, value: f64) {
        let data = self.data.get_or_init(Box::default);
        // Not a number, negative: `as` makes it 0.
        data.sum.fetch_add((value * SUM_SCALE) as u64, Ordering::Relaxed);
        let bin = place(value).and_then(|(decade, bin)| {
            let bins = data.decades.get(decade)?;
            bins.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0)))).get(bin)
        });
        bin.unwrap_or(&data.zero).fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for HistogramCell {
    fn drop(&mut self) {
        super::forget_series();
    }
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramSnapshot {
    /// Values recorded.
    pub count: u64,
    /// Their sum, to a thousandth.
    pub sum: f64,
    /// What the values are.
    pub unit: Unit,
    pub(super) bins: Vec<Bin>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bin {
    pub lower: f64,
    pub width: f64,
    pub count: u64,
}

impl HistogramSnapshot {
    /// The value below which a share `q` (0 to 1) of the values lies; the values of a bin count as
    /// spread evenly over it. `None` without values.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = ((self.count as f64 * q).ceil() as u64).clamp(1, self.count.max(1));
        let mut before = 0;
        for bin in &self.bins {
            if rank <= before + bin.count {
                let share = (rank - before) as f64 / (bin.count + 1) as f64;
                return Some(bin.lower + bin.width * share);
            }
            before += bin.count;
        }
        None
    }

    /// What has come since `before`; all of it, if that is of another histogram.
    pub fn since(&self, before: &Self) -> Self {
        let mut old = before.bins.iter().peekable();
        let mut bins = Vec::new();
        for bin in &self.bins {
            while old.next_if(|old| old.lower < bin.lower).is_some() {}
            let known = old.next_if(|old| old.lower == bin.lower).map_or(0, |old| old.count);
            match bin.count.checked_sub(known) {
                Some(0) => {}
                Some(count) => bins.push(Bin { count, ..*bin }),
                None => return self.clone(),
            }
        }
        let count = bins.iter().map(|bin| bin.count).sum();
        Self { bins, count, sum: (self.sum - before.sum).max(0.0), unit: self.unit }
    }

    /// The middle of each bin, and how many values are in it.
    pub fn middles(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.bins.iter().map(|bin| (bin.lower + bin.width / 2.0, bin.count))
    }

    /// How many values are at most `bound`. Exact for whole numbers below 100 and for bounds with
    /// two digits; otherwise a bin that holds the bound counts as below it.
    pub fn count_up_to(&self, bound: f64) -> u64 {
        self.bins.iter().take_while(|bin| bin.lower <= bound).map(|bin| bin.count).sum()
    }
}
