//! The models: what a key has done so far, and when a reading is far from it.
//!
//! A key's state is a row of `f64`, so that a table of all keys is plain memory: a [`Detector`]
//! grows one, a compiled [handler](super::handler) keeps one in its kernel's state, and the handlers
//! of `pydotcompute.workloads.anomaly` keep the same, byte for byte. Hence the rule of this file: every
//! operation is one of IEEE 754's basic ones, in one order, and none is fused.
//!
//! [`Detector`]: super::Detector

use super::{Anomaly, VALUE_LIMIT};

/// What a reading is compared with, and what its settings are. Checked on construction.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Settings {
    alpha: f64,
    threshold: f64,
    warm_up: u32,
    #[serde(flatten)]
    model: Model,
}

/// What a reading is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
#[serde(tag = "model", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Model {
    /// The exponentially weighted mean and variance of its key's readings.
    ///
    /// For a key whose readings so far have the mean `m` and the variance `v`, the reading `x` is
    /// unusual if `(x - m)² > threshold² · v`. Unusual or not, it is then taken up, with
    /// `d = x - m` and the weight `a`:
    ///
    /// ```text
    /// m ← m + a·d          v ← (1 - a)·(v + a·d²)
    /// ```
    ///
    /// This is the weighted update of West (1979, "Updating mean and variance estimates: an
    /// improved method", CACM 22:9) in the exponential form of Finch (2009, "Incremental calculation
    /// of weighted mean and variance", section 9): one pass, no sum of squares to cancel. `a` is
    /// `max(alpha, 1/n)` for the key's `n`-th reading. So the first `1/alpha` readings weigh the
    /// same, and give their plain mean and (population) variance; there is no arbitrary first value
    /// whose influence must fade. 32 bytes a key.
    #[default]
    Ewma,
    /// The median of its key's last readings, and how far these are from it, in the median: what
    /// up to half of them being wild does not move.
    ///
    /// The deviation is 1.4826 times the median of the distances (MAD), which for a normal
    /// distribution is its standard deviation; where more than half of the readings are equal and
    /// that is 0, it is 1.2533 times their mean, as B. Iglewicz and D. Hoaglin advise ("How to
    /// detect and handle outliers", 1993). 16 bytes a key, and 16 for each reading of the window.
    Robust {
        /// How many readings: 3 to 1024.
        window: u32,
    },
    /// As [`Ewma`](Self::Ewma), apart for each slot of a season: an hour of the day, a day of the
    /// week. A reading's slot is `floor(time / slot) mod slots`, so readings need a time. 16 bytes a
    /// key, and 24 for each slot. The warm-up is counted in each slot.
    Seasonal {
        /// How many slots a season has: 2 to 4096.
        slots: u32,
        /// How long a slot is, in the units of the readings' times (seconds for text).
        slot: f64,
    },
}

/// A setting of the detector is out of its range.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// `alpha` is not between 0 and 1.
    #[error("alpha is {0}; it must be more than 0 and less than 1")]
    Alpha(f64),
    /// `threshold` is not a positive number.
    #[error("the threshold is {0}; it must be a finite number above 0")]
    Threshold(f64),
    /// `warm_up` is below 2: one reading has no variance.
    #[error("the warm-up is {0}; it must be at least 2 readings")]
    WarmUp(u32),
    /// The window has too few or too many readings.
    #[error("the window is {0}; it must be 3 to 1024 readings")]
    Window(u32),
    /// The season has too few or too many slots.
    #[error("the season has {0} slots; it must have 2 to 4096")]
    Slots(u32),
    /// The slot's length is not a positive number.
    #[error("a slot is {0} long; it must be a finite number above 0")]
    Slot(f64),
}

impl Settings {
    /// * `alpha`: weight of the newest reading, between 0 and 1, both excluded. The memory is about
    ///   `1 / alpha` readings long. Not used by [`Model::Robust`].
    /// * `threshold`: deviations from what is expected beyond which a reading is unusual, above 0.
    /// * `warm_up`: readings of a key before the first that may be called unusual, at least 2.
    ///
    /// # Errors
    ///
    /// The first of the three that is out of its range.
    pub fn new(alpha: f64, threshold: f64, warm_up: u32) -> Result<Self, SettingsError> {
        if !(alpha > 0.0 && alpha < 1.0) {
            return Err(SettingsError::Alpha(alpha));
        }
        if !(threshold > 0.0 && threshold.is_finite()) {
            return Err(SettingsError::Threshold(threshold));
        }
        if warm_up < 2 {
            return Err(SettingsError::WarmUp(warm_up));
        }
        Ok(Self { alpha, threshold, warm_up, model: Model::Ewma })
    }

    /// The same with another model than [`Model::Ewma`].
    ///
    /// # Errors
    ///
    /// What of the model is out of its range.
    pub fn with_model(self, model: Model) -> Result<Self, SettingsError> {
        match model {
            Model::Robust { window } if !(3..=1024).contains(&window) => {
                Err(SettingsError::Window(window))
            }
            Model::Seasonal { slots, .. } if !(2..=4096).contains(&slots) => {
                Err(SettingsError::Slots(slots))
            }
            Model::Seasonal { slot, .. } if !(slot > 0.0 && slot.is_finite()) => {
                Err(SettingsError::Slot(slot))
            }
            _ => Ok(Self { model, ..self }),
        }
    }

    /// Weight of the newest reading.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Deviations beyond which a reading is unusual.
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// Readings of a key before the first that may be called unusual.
    pub fn warm_up(&self) -> u32 {
        self.warm_up
    }

    /// What a reading is compared with.
    pub fn model(&self) -> Model {
        self.model
    }

    pub(super) fn weights(&self) -> Weights {
        let slot = match self.model {
            Model::Seasonal { slot, .. } => slot,
            _ => 0.0,
        };
        Weights {
            alpha: self.alpha,
            threshold: self.threshold,
            warm_up: f64::from(self.warm_up),
            slot,
        }
    }
}

impl Default for Settings {
    /// `alpha` 0.01, `threshold` 4 deviations, `warm_up` 30 readings, [`Model::Ewma`].
    fn default() -> Self {
        Self { alpha: 0.01, threshold: 4.0, warm_up: 30, model: Model::Ewma }
    }
}

impl Model {
    /// How many numbers a key's row has.
    pub(super) fn row(self) -> usize {
        match self {
            Self::Ewma => 4,
            Self::Robust { window } => 2 + 2 * window as usize,
            Self::Seasonal { slots, .. } => 2 + 3 * slots as usize,
        }
    }
}

/// The settings as the steps use them; part of the state of a compiled handler.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Weights {
    pub(super) alpha: f64,
    pub(super) threshold: f64,
    pub(super) warm_up: f64,
    pub(super) slot: f64,
}

/// What a step made of a reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Taken up, and nothing to be said.
    Usual,
    /// Taken up, and far from what its key has done.
    Unusual(Anomaly),
    /// Its time is before that of an earlier reading of its key: not taken up.
    Late,
    /// No value, one beyond [`VALUE_LIMIT`], or no time where one is needed: not taken up.
    Malformed,
}

const Z_LIMIT: f64 = 1e6;

/// A row begins with how many readings were taken up, and the time of the last.
const COUNT: usize = 0;
const TIME: usize = 1;
/// Where the model's own part begins.
const OWN: usize = 2;

/// Of a slot of the season, or of the whole: the mean and the variance. Takes `value` up as the
/// `count`-th; says by how much it was off if that is unusual.
#[inline(always)]
fn weigh(
    weights: &Weights,
    mean: &mut f64,
    variance: &mut f64,
    count: f64,
    value: f64,
) -> Option<Anomaly> {
    let (before, spread) = (*mean, *variance);
    let difference = value - before;
    let squared = difference * difference;
    let unusual =
        squared > weights.threshold * weights.threshold * spread && count > weights.warm_up;
    let even = 1.0 / count;
    let weight = if weights.alpha > even { weights.alpha } else { even };
    *mean = before + weight * difference;
    *variance = (1.0 - weight) * (spread + weight * squared);
    unusual.then(|| Anomaly::new(before, spread.sqrt(), difference))
}

impl Anomaly {
    fn new(expected: f64, deviation: f64, difference: f64) -> Self {
        let z = if deviation > 0.0 {
            (difference / deviation).clamp(-Z_LIMIT, Z_LIMIT)
        } else if difference > 0.0 {
            Z_LIMIT
        } else {
            -Z_LIMIT
        };
        Self { expected, deviation, z }
    }
}

/// Whether a reading can be taken up at all.
#[inline(always)]
fn check(row: &[f64], time: f64, value: f64) -> Option<Verdict> {
    let sound = (-VALUE_LIMIT..=VALUE_LIMIT).contains(&value);
    if !sound {
        return Some(Verdict::Malformed);
    }
    // What is not a number is neither late nor makes another one late.
    (time < row[TIME] && row[COUNT] > 0.0).then_some(Verdict::Late)
}

#[inline(always)]
pub(super) fn ewma(weights: &Weights, row: &mut [f64; 4], time: f64, value: f64) -> Verdict {
    if let Some(refused) = check(row, time, value) {
        return refused;
    }
    let [count, last, mean, variance] = row;
    *count += 1.0;
    *last = time;
    weigh(weights, mean, variance, *count, value).map_or(Verdict::Usual, Verdict::Unusual)
}

/// The largest number of slots since time 0 that is told apart for sure.
const SLOTS_LIMIT: f64 = 1_099_511_627_776.0;

pub(super) fn seasonal(weights: &Weights, row: &mut [f64], time: f64, value: f64) -> Verdict {
    if let Some(refused) = check(row, time, value) {
        return refused;
    }
    let slots = (row.len() - OWN) / 3;
    let since = (time / weights.slot).floor();
    if !(-SLOTS_LIMIT..=SLOTS_LIMIT).contains(&since) {
        return Verdict::Malformed;
    }
    let seasons = (since / slots as f64).floor();
    let slot = (since - seasons * slots as f64) as usize;
    row[COUNT] += 1.0;
    row[TIME] = time;
    let [count, mean, variance] = &mut row[OWN..].as_chunks_mut::<3>().0[slot];
    *count += 1.0;
    weigh(weights, mean, variance, *count, value).map_or(Verdict::Usual, Verdict::Unusual)
}

pub(super) fn robust(weights: &Weights, row: &mut [f64], time: f64, value: f64) -> Verdict {
    if let Some(refused) = check(row, time, value) {
        return refused;
    }
    let (head, own) = row.split_at_mut(OWN);
    let window = own.len() / 2;
    let (ring, sorted) = own.split_at_mut(window);
    let taken = head[COUNT] as usize;
    let count = taken.min(window);
    let mut verdict = Verdict::Usual;
    if head[COUNT] >= weights.warm_up {
        let sorted = &sorted[..count];
        let middle = count / 2;
        let median = match count % 2 {
            0 => 0.5 * (sorted[middle - 1] + sorted[middle]),
            _ => sorted[middle],
        };
        let difference = value - median;
        let deviation = deviation(sorted, median);
        if difference.abs() > weights.threshold * deviation {
            verdict = Verdict::Unusual(Anomaly::new(median, deviation, difference));
        }
    }
    head[COUNT] += 1.0;
    head[TIME] = time;
    let place = &mut ring[taken % window];
    let oldest = std::mem::replace(place, value);
    let full = count == window;
    let mut at =
        if full { sorted.iter().position(|kept| *kept == oldest).unwrap_or(0) } else { count };
    while at > 0 && sorted[at - 1] > value {
        sorted[at] = sorted[at - 1];
        at -= 1;
    }
    while full && at + 1 < count && sorted[at + 1] < value {
        sorted[at] = sorted[at + 1];
        at += 1;
    }
    sorted[at] = value;
    verdict
}

/// How far the sorted values are from their median: see [`Model::Robust`].
fn deviation(sorted: &[f64], median: f64) -> f64 {
    let count = sorted.len();
    // The distances in rising order come from the middle outwards.
    let (mut left, mut right) = (count / 2, count / 2);
    let (mut previous, mut current) = (0.0, 0.0);
    for _ in 0..=count / 2 {
        previous = current;
        if right < count && (left == 0 || sorted[right] - median <= median - sorted[left - 1]) {
            current = sorted[right] - median;
            right += 1;
        } else {
            left -= 1;
            current = median - sorted[left];
        }
    }
    let middle = if count.is_multiple_of(2) { 0.5 * (previous + current) } else { current };
    if middle > 0.0 {
        return 1.482602218505602 * middle;
    }
    let mut total = 0.0;
    for value in sorted {
        total += (value - median).abs();
    }
    1.2533141373155003 * (total / count as f64)
}
