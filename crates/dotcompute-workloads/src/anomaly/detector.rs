//! The detector: a table of keys, and the alerts of a batch.

use std::sync::Arc;

use super::model::{self, Model, Settings, Verdict, Weights};
use super::{Batch, Reading};

/// Why a reading is unusual: what its key had done before it.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Anomaly {
    /// What was expected: the mean or median of the earlier readings.
    pub expected: f64,
    /// How far these were from it.
    pub deviation: f64,
    /// The reading's distance from what was expected in deviations, negative below it; limited to a
    /// million either way, which is what a key that had never changed gets.
    pub z: f64,
}

/// A table of what each key has done, and the test of each reading against it: see [`Model`].
///
/// The same readings give the same bits, here and in the [handlers](super::handler). The table is
/// indexed by the key's number, and grows as keys appear.
#[derive(Clone, Debug)]
pub struct Detector {
    settings: Settings,
    weights: Weights,
    rows: Vec<f64>,
}

impl Detector {
    /// A detector that has seen nothing.
    pub fn new(settings: Settings) -> Self {
        Self { settings, weights: settings.weights(), rows: Vec::new() }
    }

    /// Tests `value` against what `key` has done so far, then takes it up. `time` is in any unit;
    /// what is no number is no time.
    ///
    /// Keys are dense numbers: the table has a row for every number up to the largest.
    #[inline]
    pub fn observe(&mut self, key: u32, time: f64, value: f64) -> Verdict {
        let model = self.settings.model();
        if let Model::Ewma = model {
            loop {
                if let Some(row) = self.rows.as_chunks_mut::<4>().0.get_mut(key as usize) {
                    return model::ewma(&self.weights, row, time, value);
                }
                self.grow(key);
            }
        }
        let (width, key) = (model.row(), key as usize);
        if self.rows.len() <= key * width {
            self.grow(key as u32);
        }
        let row = &mut self.rows[key * width..][..width];
        match model {
            Model::Robust { .. } => model::robust(&self.weights, row, time, value),
            _ => model::seasonal(&self.weights, row, time, value),
        }
    }

    /// Makes room for the key.
    #[cold]
    fn grow(&mut self, key: u32) {
        self.rows.resize((key as usize + 1) * self.settings.model().row(), 0.0);
    }

    /// The number of keys in the table.
    pub fn keys(&self) -> usize {
        self.rows.len() / self.settings.model().row()
    }
}

/// An unusual reading, ready to be written: as JSON,
/// `{"key":"EWR","time":"2013-02-12T08:00Z","value":911.0,"expected":7.8,"deviation":6.1,"z":147.6,"line":3054}`.
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

/// What the readings of a batch came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scanned {
    /// The unusual ones, in input order.
    pub alerts: Vec<Alert>,
    /// How many were left out since their key has had a reading of a later time.
    pub late: u64,
    /// How many were left out since the model needs a time and they have none that is a number or
    /// an ISO 8601 date.
    pub untimed: u64,
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

    /// Tests every reading of `batch` in turn.
    ///
    /// # Panics
    ///
    /// If a batch of this parser was left out and a reading's key has no name.
    pub fn scan(&mut self, batch: &Batch) -> Scanned {
        self.names.extend_from_slice(&batch.new_keys);
        let mut scanned = Scanned::default();
        for reading in &batch.readings {
            let time = reading.at.unwrap_or(f64::NAN);
            match self.detector.observe(reading.key, time, reading.value) {
                Verdict::Usual => {}
                Verdict::Unusual(anomaly) => {
                    scanned.alerts.push(self.alert(batch, reading, anomaly));
                }
                Verdict::Late => scanned.late += 1,
                // The parser has looked at the value.
                Verdict::Malformed => scanned.untimed += 1,
            }
        }
        scanned
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
    use crate::anomaly::SettingsError;

    const NAN: f64 = f64::NAN;

    fn unusual(verdict: Verdict) -> Option<Anomaly> {
        match verdict {
            Verdict::Unusual(anomaly) => Some(anomaly),
            _ => None,
        }
    }

    fn with(model: Model, threshold: f64, warm_up: u32) -> Detector {
        let settings = Settings::new(0.01, threshold, warm_up).unwrap().with_model(model).unwrap();
        Detector::new(settings)
    }

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
    fn models_out_of_range_are_refused() {
        let refused = |model| Settings::default().with_model(model).unwrap_err();
        assert_eq!(refused(Model::Robust { window: 2 }), SettingsError::Window(2));
        assert_eq!(refused(Model::Seasonal { slots: 1, slot: 1.0 }), SettingsError::Slots(1));
        assert_eq!(refused(Model::Seasonal { slots: 2, slot: 0.0 }), SettingsError::Slot(0.0));
        assert!(matches!(
            refused(Model::Seasonal { slots: 2, slot: NAN }),
            SettingsError::Slot(slot) if slot.is_nan()
        ));
    }

    #[test]
    fn what_is_late_or_cannot_be_used_leaves_the_state_alone() {
        for model in
            [Model::Ewma, Model::Robust { window: 5 }, Model::Seasonal { slots: 3, slot: 10.0 }]
        {
            let mut detector = with(model, 3.0, 2);
            for (time, value) in [(10.0, 1.0), (10.0, 2.0), (20.0, 1.5)] {
                assert_eq!(detector.observe(1, time, value), Verdict::Usual);
            }
            let before = detector.rows.clone();
            assert_eq!(detector.observe(1, 19.0, 1e9), Verdict::Late);
            for value in [NAN, f64::INFINITY, -1e151] {
                assert_eq!(detector.observe(1, 30.0, value), Verdict::Malformed);
            }
            if matches!(model, Model::Seasonal { .. }) {
                assert_eq!(detector.observe(1, NAN, 1.0), Verdict::Malformed);
                assert_eq!(detector.observe(1, 1e300, 1.0), Verdict::Malformed);
            }
            assert_eq!(detector.rows, before);
            // Another key's time is its own.
            assert_eq!(detector.observe(0, -5.0, 1.0), Verdict::Usual);
        }
    }

    #[test]
    fn a_season_has_a_mean_for_each_slot() {
        let mut detector = with(Model::Seasonal { slots: 24, slot: 3600.0 }, 4.0, 5);
        let noise = |hour: i32| f64::from(hour.div_euclid(24).rem_euclid(3)) / 2.0;
        for hour in -240_i32..240 {
            let value = if hour.rem_euclid(24) == 12 { 100.0 } else { 0.0 } + noise(hour);
            assert_eq!(detector.observe(0, f64::from(hour) * 3600.0, value), Verdict::Usual);
        }
        // 100 at noon is usual, at one it is not; and the other way round.
        let mut again = detector.clone();
        assert_eq!(again.observe(0, 252.0 * 3600.0, 100.5), Verdict::Usual);
        assert!(
            unusual(again.observe(0, 253.0 * 3600.0, 100.5)).is_some_and(|found| found.z > 4.0)
        );
        let cold = unusual(detector.observe(0, 252.5 * 3600.0, 0.5)).unwrap();
        assert!(cold.z < -4.0 && (cold.expected - 100.5).abs() < 1.0);
    }

    #[test]
    fn up_to_half_of_the_window_can_be_wild() {
        let mut detector = with(Model::Robust { window: 9 }, 5.0, 9);
        for value in [10.0, 11.0, 9.0, 10.5, 9.5, 1e6, -1e6, 1e7, -1e7] {
            detector.observe(0, NAN, value);
        }
        let found = unusual(detector.observe(0, NAN, 20.0)).unwrap();
        assert_eq!(found.expected, 10.0);
        assert!((found.deviation - 1.482602218505602).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn where_most_readings_are_equal_their_mean_distance_counts() {
        let mut detector = with(Model::Robust { window: 8 }, 3.0, 8);
        for value in [5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 13.0] {
            detector.observe(0, NAN, value);
        }
        assert_eq!(detector.clone().observe(0, NAN, 8.0), Verdict::Usual);
        let found = unusual(detector.observe(0, NAN, 9.0)).unwrap();
        assert!((found.deviation - 1.2533141373155003).abs() < 1e-12, "{found:?}");
        let mut constant = with(Model::Robust { window: 4 }, 3.0, 4);
        (0..9).for_each(|_| assert_eq!(constant.observe(0, NAN, 0.1), Verdict::Usual));
        assert!(unusual(constant.observe(0, NAN, 0.2)).is_some_and(|found| found.z == 1e6));
    }

    #[test]
    fn nothing_is_unusual_before_the_warm_up_is_over() {
        let mut detector = detector(0.1, 3.0, 5);
        for value in [1.0, -1e9, 1e9, 0.0, 5e12] {
            assert_eq!(detector.observe(0, NAN, value), Verdict::Usual);
        }
        assert!(unusual(detector.observe(0, NAN, 1e15)).is_some());
    }

    #[test]
    fn a_constant_is_never_unusual_and_leaving_it_always_is() {
        let mut detector = detector(0.02, 4.0, 10);
        for _ in 0..10_000 {
            assert_eq!(detector.observe(0, NAN, 0.1), Verdict::Usual);
        }
        let below = unusual(detector.observe(0, NAN, 0.1 - 1e-12)).unwrap();
        assert_eq!((below.deviation, below.z), (0.0, -1e6));
    }

    #[test]
    fn a_series_that_settles_is_quiet() {
        // The mean stops short of the constant by a rounding error; the variance must not shrink
        // below it, or the constant itself becomes unusual.
        let mut detector = detector(0.05, 4.0, 10);
        for i in 0..100 {
            detector.observe(0, NAN, f64::from(i % 7));
        }
        for i in 0..100_000 {
            assert_eq!(detector.observe(0, NAN, 3.3), Verdict::Usual, "reading {i}");
        }
    }

    #[test]
    fn a_long_memory_gives_the_plain_mean_and_variance() {
        let values = [4.0, 7.0, 13.0, 16.0, -2.5];
        let mut detector = detector(1e-9, 1e-9, 2);
        for value in values {
            detector.observe(3, NAN, value);
        }
        let found = unusual(detector.observe(3, NAN, 100.0)).unwrap();
        let mean = values.iter().sum::<f64>() / 5.0;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 5.0;
        assert!((found.expected - mean).abs() < 1e-12);
        assert!((found.deviation - variance.sqrt()).abs() < 1e-12);
        assert_eq!(detector.keys(), 4);
    }

    #[test]
    fn the_limits_of_a_value_do_not_poison_the_state() {
        let mut detector = detector(0.5, 4.0, 2);
        for i in 0..2000 {
            let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
            let verdict = detector.observe(0, NAN, sign * crate::anomaly::VALUE_LIMIT);
            if let Some(found) = unusual(verdict) {
                assert!(found.z.is_finite() && found.expected.is_finite());
            }
        }
        for _ in 0..10_000 {
            detector.observe(0, NAN, 1.0);
        }
        assert!(
            unusual(detector.observe(0, NAN, 2.0))
                .is_some_and(|found| (found.expected - 1.0).abs() < 1e-9)
        );
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

    /// The definition: sort what the window holds, sort the distances.
    fn median_and_deviation(window: &[f64]) -> (f64, f64) {
        let median = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            let middle = values.len() / 2;
            match values.len() % 2 {
                0 => 0.5 * (values[middle - 1] + values[middle]),
                _ => values[middle],
            }
        };
        let centre = median(&mut window.to_vec());
        let distances: Vec<f64> = window.iter().map(|value| (value - centre).abs()).collect();
        match 1.482602218505602 * median(&mut distances.clone()) {
            0.0 => {
                let mean = distances.iter().sum::<f64>() / window.len() as f64;
                (centre, 1.2533141373155003 * mean)
            }
            deviation => (centre, deviation),
        }
    }

    proptest! {
        #[test]
        fn the_window_is_of_the_last_readings_and_its_median_true(
            size in 3u32..12,
            // Few different values, so that many are equal.
            values in proptest::collection::vec((-3i32..4).prop_map(f64::from), 2..60),
        ) {
            let mut detector = with(Model::Robust { window: size }, 1e-9, 2);
            for (index, value) in values.iter().enumerate() {
                let found = unusual(detector.observe(0, NAN, *value));
                if index < 2 {
                    continue;
                }
                let window = &values[index.saturating_sub(size as usize)..index];
                let (median, deviation) = median_and_deviation(window);
                match found {
                    Some(found) => {
                        prop_assert_eq!(found.expected, median);
                        prop_assert!((found.deviation - deviation).abs() < 1e-12);
                    }
                    None => prop_assert!((value - median).abs() <= 1e-9 * deviation),
                }
            }
        }

        #[test]
        fn the_recurrence_is_the_weighted_mean_and_variance(
            alpha in 0.001..0.9f64,
            values in proptest::collection::vec(-1e3..1e3f64, 2..200),
        ) {
            let mut detector = detector(alpha, 1e-12, 2);
            for value in &values {
                detector.observe(0, NAN, *value);
            }
            let found = unusual(detector.observe(0, NAN, 1e6)).unwrap();
            let (mean, variance) = by_definition(alpha, &values);
            prop_assert!((found.expected - mean).abs() < 1e-9 * 1e3);
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
                    together.observe(key, NAN, value),
                    apart[key as usize].observe(0, NAN, value)
                );
            }
        }
    }
}
