//! How often a kernel was restarted within a window of time, in bounded memory.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::options::Restart;

/// So many restarts are told apart; where more are put up with, those that lie closer together than
/// this part of the window count as one moment, the earliest.
const MOMENTS_MAX: u32 = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Intensity {
    window: Duration,
    /// How long a moment lasts.
    moment: Duration,
    /// When restarts were, and how many, in order.
    moments: VecDeque<(Instant, u64)>,
}

impl Intensity {
    pub(crate) fn of(restart: &Restart) -> Self {
        let window = restart.window;
        let exact = restart.max_restarts <= MOMENTS_MAX;
        let moment = if exact { Duration::ZERO } else { window / MOMENTS_MAX };
        Self { window, moment, moments: VecDeque::new() }
    }

    /// How many restarts were noted in the window that ends `now`.
    pub(crate) fn within_window(&mut self, now: Instant) -> u64 {
        let is_past = |at: &Instant| now.duration_since(*at) > self.window;
        while self.moments.front().is_some_and(|(at, _)| is_past(at)) {
            self.moments.pop_front();
        }
        self.moments.iter().map(|(_, restarts)| restarts).sum()
    }

    /// Notes a restart `now`, not before the last one.
    pub(crate) fn note(&mut self, now: Instant) {
        match self.moments.back_mut() {
            Some((at, restarts)) if now.duration_since(*at) < self.moment => *restarts += 1,
            _ => self.moments.push_back((now, 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intensity(max_restarts: u32, window: Duration) -> Intensity {
        Intensity::of(&Restart { max_restarts, window, ..Restart::default() })
    }

    #[test]
    fn a_few_restarts_are_counted_to_the_instant() {
        let mut restarts = intensity(3, Duration::from_secs(5));
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for ms in [0, 1, 4000] {
            restarts.note(at(ms));
        }
        for (ms, expected) in [(4000, 3), (5000, 3), (5001, 2), (5002, 1), (9000, 1), (9001, 0)] {
            assert_eq!(restarts.within_window(at(ms)), expected, "after {ms} ms");
        }
    }

    #[test]
    fn however_many_restarts_are_allowed_they_take_bounded_memory() {
        let window = Duration::from_secs(1024);
        for max_restarts in [1025, u32::MAX - 1, u32::MAX] {
            let mut restarts = intensity(max_restarts, window);
            let start = Instant::now();
            // A hundred a second, for three windows.
            for hundredth in 0..3 * 102_400 {
                let now = start + Duration::from_millis(10 * hundredth);
                let counted = restarts.within_window(now);
                let real = hundredth.min(102_400);
                assert!(counted.abs_diff(real) <= 100, "{counted} of {real} restarts");
                restarts.note(now);
                assert!(restarts.moments.len() <= 1 + MOMENTS_MAX as usize);
            }
        }
    }
}
