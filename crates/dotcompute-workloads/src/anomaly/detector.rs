//! The detector: an exponentially weighted mean and variance per key, and a z-score.

use std::sync::Arc;

use super::{Batch, Reading};

/// What makes a reading unusual. Checked on construction.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Settings {
    alpha: f64,
    threshold: f64,
    warm_up: u32,
}

impl Settings {
    /// * `alpha`: weight of the newest reading, between 0 and 1, both excluded. The memory is about
    ///   `1 / alpha` readings long.
    /// * `threshold`: standard deviations from the mean beyond which a reading is unusual, above 0.
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
        Ok(Self { alpha, threshold, warm_up })
    }

    /// Weight of the newest reading.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Standard deviations beyond which a reading is unusual.
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// Readings of a key before the first that may be called unusual.
    pub fn warm_up(&self) -> u32 {
        self.warm_up
    }
}

impl Default for Settings {
    /// `alpha` 0.01, `threshold` 4 standard deviations, `warm_up` 30 readings.
    fn default() -> Self {
        Self { alpha: 0.01, threshold: 4.0, warm_up: 30 }
    }
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
}

/// Why a reading is unusual: what its key had done before it.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Anomaly {
    /// Weighted mean of the earlier readings.
    pub mean: f64,
    /// Weighted standard deviation of the earlier readings.
    pub deviation: f64,
    /// The reading's distance from the mean in standard deviations, negative below it; limited to a
    /// million either way, which is what a key that had never changed gets.
    pub z: f64,
}

const Z_LIMIT: f64 = 1e6;

/// A running mean and variance per key, and the test of each reading against them.
///
/// # Algorithm
///
/// For a key whose readings so far have the mean `m` and the variance `v`, the reading `x` is
/// unusual if `(x - m)² > threshold² · v` and the key has had `warm_up` readings. Unusual or not, it
/// is then taken up, with `d = x - m` and the weight `a`:
///
/// ```text
/// m ← m + a·d          v ← (1 - a)·(v + a·d²)
/// ```
///
/// This is the weighted update of West (1979, "Updating mean and variance estimates: an improved
/// method", CACM 22:9) in the exponential form of Finch (2009, "Incremental calculation of weighted mean
/// and variance", section 9): one pass, no sum of squares to cancel. `a` is `max(alpha, 1/n)` for the
/// key's `n`-th reading. So the first `1/alpha` readings weigh the same, and give their plain mean and
/// (population) variance; there is no arbitrary first value whose influence must fade.
///
/// The same readings give the same bits: f64 throughout, in a fixed order, nothing fused.
///
/// State: 24 bytes per key in a table indexed by the key's number, which grows as keys appear.
#[derive(Clone, Debug)]
pub struct Detector {
    settings: Settings,
    threshold_squared: f64,
    states: Vec<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    count: u64,
    mean: f64,
    variance: f64,
}

impl Detector {
    /// A detector that has seen nothing.
    pub fn new(settings: Settings) -> Self {
        let threshold_squared = settings.threshold * settings.threshold;
        Self { settings, threshold_squared, states: Vec::new() }
    }

    /// Tests `value` against what `key` has done so far, then takes it up.
    ///
    /// `value` must be finite and its square must be; a [`Reading`] of the parser is both. Keys are
    /// dense numbers: the table has a row for every number up to the largest.
    #[inline]
    pub fn observe(&mut self, key: u32, value: f64) -> Option<Anomaly> {
        let key = key as usize;
        if key >= self.states.len() {
            self.states.resize(key + 1, State::default());
        }
        let state = &mut self.states[key];
        let (mean, variance) = (state.mean, state.variance);
        let difference = value - mean;
        let squared = difference * difference;

        let unusual = squared > self.threshold_squared * variance
            && state.count >= u64::from(self.settings.warm_up);
        let anomaly = unusual.then(|| {
            let deviation = variance.sqrt();
            Anomaly { mean, deviation, z: (difference / deviation).clamp(-Z_LIMIT, Z_LIMIT) }
        });

        state.count += 1;
        let weight = self.settings.alpha.max(1.0 / state.count as f64);
        state.mean = mean + weight * difference;
        state.variance = (1.0 - weight) * (variance + weight * squared);
        anomaly
    }

    /// The number of keys in the table.
    pub fn keys(&self) -> usize {
        self.states.len()
    }
}

/// An unusual reading, ready to be written: as JSON,
/// `{"key":"EWR","time":"2013-02-12T08:00Z","value":911.0,"mean":7.8,"deviation":6.1,"z":147.6,"line":3054}`.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Alert {
    /// Name of the key; `all` if the input has no key column.
    pub key: Arc<str>,
    /// Time of the reading as the input wrote it; empty if the input has no time column.
    pub time: String,
    /// The reading.
    pub value: f64,
    /// What it was compared with.
    #[serde(flatten)]
    pub anomaly: Anomaly,
    /// Line of the input, from 1.
    pub line: u64,
}

/// A [`Detector`] that knows the keys' names: turns batches into alerts.
#[derive(Clone, Debug)]
pub struct Scanner {
    detector: Detector,
    names: Vec<Arc<str>>,
}

impl Scanner {
    /// Names and states are taken from the batches of one parser, in their order, from its first.
    pub fn new(detector: Detector) -> Self {
        Self { detector, names: Vec::new() }
    }

    /// Tests every reading of `batch` in turn; the alerts come in input order.
    ///
    /// # Panics
    ///
    /// If a batch of this parser was left out and a reading's key has no name.
    pub fn scan(&mut self, batch: &Batch) -> Vec<Alert> {
        self.names.extend_from_slice(&batch.new_keys);
        let mut alerts = Vec::new();
        for reading in &batch.readings {
            if let Some(anomaly) = self.detector.observe(reading.key, reading.value) {
                alerts.push(self.alert(batch, reading, anomaly));
            }
        }
        alerts
    }

    #[cold]
    fn alert(&self, batch: &Batch, reading: &Reading, anomaly: Anomaly) -> Alert {
        Alert {
            key: Arc::clone(&self.names[reading.key as usize]),
            time: batch.time(reading).to_owned(),
            value: reading.value,
            anomaly,
            line: reading.line,
        }
    }

    /// The number of keys seen so far.
    pub fn keys(&self) -> usize {
        self.names.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn detector(alpha: f64, threshold: f64, warm_up: u32) -> Detector {
        Detector::new(Settings::new(alpha, threshold, warm_up).unwrap())
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for alpha in [0.0, 1.0, -0.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(Settings::new(alpha, 3.0, 30), Err(SettingsError::Alpha(_))));
        }
        for threshold in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(Settings::new(0.1, threshold, 30), Err(SettingsError::Threshold(_))));
        }
        assert_eq!(Settings::new(0.1, 3.0, 1), Err(SettingsError::WarmUp(1)));
        let default = Settings::default();
        let (alpha, threshold, warm_up) = (default.alpha(), default.threshold(), default.warm_up());
        assert_eq!(Settings::new(alpha, threshold, warm_up), Ok(default));
    }

    #[test]
    fn nothing_is_unusual_before_the_warm_up_is_over() {
        let mut detector = detector(0.1, 3.0, 5);
        for value in [1.0, -1e9, 1e9, 0.0, 5e12] {
            assert_eq!(detector.observe(0, value), None);
        }
        assert!(detector.observe(0, 1e15).is_some());
    }

    #[test]
    fn a_constant_is_never_unusual_and_leaving_it_always_is() {
        let mut detector = detector(0.02, 4.0, 10);
        for _ in 0..10_000 {
            assert_eq!(detector.observe(0, 0.1), None);
        }
        let below = detector.observe(0, 0.1 - 1e-12).unwrap();
        assert_eq!((below.deviation, below.z), (0.0, -Z_LIMIT));
    }

    #[test]
    fn a_series_that_settles_is_quiet() {
        // The mean stops short of the constant by a rounding error; the variance must not shrink
        // below it, or the constant itself becomes unusual.
        let mut detector = detector(0.05, 4.0, 10);
        for i in 0..100 {
            detector.observe(0, f64::from(i % 7));
        }
        for i in 0..100_000 {
            assert_eq!(detector.observe(0, 3.3), None, "reading {i}");
        }
    }

    #[test]
    fn a_long_memory_gives_the_plain_mean_and_variance() {
        let values = [4.0, 7.0, 13.0, 16.0, -2.5];
        let mut detector = detector(1e-9, 1e-9, 2);
        for value in values {
            detector.observe(3, value);
        }
        let found = detector.observe(3, 100.0).unwrap();
        let mean = values.iter().sum::<f64>() / 5.0;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 5.0;
        assert!((found.mean - mean).abs() < 1e-12);
        assert!((found.deviation - variance.sqrt()).abs() < 1e-12);
        assert_eq!(detector.keys(), 4);
    }

    #[test]
    fn the_limits_of_a_value_do_not_poison_the_state() {
        let mut detector = detector(0.5, 4.0, 2);
        for i in 0..2000 {
            let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
            if let Some(found) = detector.observe(0, sign * crate::anomaly::VALUE_LIMIT) {
                assert!(found.z.is_finite() && found.mean.is_finite());
            }
        }
        for _ in 0..10_000 {
            detector.observe(0, 1.0);
        }
        assert!(detector.observe(0, 2.0).is_some_and(|found| (found.mean - 1.0).abs() < 1e-9));
    }

    /// The definition, without recurrence: the weights of all readings so far, then mean and
    /// variance as weighted sums.
    fn by_definition(alpha: f64, values: &[f64]) -> (f64, f64) {
        let mut weights: Vec<f64> = Vec::new();
        for n in 1..=values.len() {
            let newest = alpha.max(1.0 / n as f64);
            weights.iter_mut().for_each(|w| *w *= 1.0 - newest);
            weights.push(newest);
        }
        let mean: f64 = weights.iter().zip(values).map(|(w, x)| w * x).sum();
        let variance = weights.iter().zip(values).map(|(w, x)| w * (x - mean).powi(2)).sum();
        (mean, variance)
    }

    proptest! {
        #[test]
        fn the_recurrence_is_the_weighted_mean_and_variance(
            alpha in 0.001..0.9f64,
            values in proptest::collection::vec(-1e3..1e3f64, 2..200),
        ) {
            let mut detector = detector(alpha, 1e-12, 2);
            for value in &values {
                detector.observe(0, *value);
            }
            let found = detector.observe(0, 1e6).unwrap();
            let (mean, variance) = by_definition(alpha, &values);
            prop_assert!((found.mean - mean).abs() < 1e-9 * 1e3);
            prop_assert!((found.deviation.powi(2) - variance).abs() < 1e-9 * 1e6);
        }

        #[test]
        fn keys_do_not_touch_one_another(
            events in proptest::collection::vec((0u32..5, -1e3..1e3f64), 0..300),
        ) {
            let mut together = detector(0.1, 1.5, 3);
            let mut apart: Vec<_> = (0..5).map(|_| detector(0.1, 1.5, 3)).collect();
            for (key, value) in events {
                prop_assert_eq!(
                    together.observe(key, value),
                    apart[key as usize].observe(0, value)
                );
            }
        }
    }
}
