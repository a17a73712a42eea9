//! One monotonic clock for the whole process, as plain integers.

use std::sync::OnceLock;
use std::time::Instant;

/// Nanoseconds since the process first asked for the time; monotonic and never 0, so that 0 can
/// stand for "no time was taken". Any thread may call it; it costs one reading of
/// [`Instant`] (about 25 ns).
#[inline]
pub fn now_ns() -> u64 {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    let since = EPOCH.get_or_init(Instant::now).elapsed();
    // 64 bits of nanoseconds last for 584 years.
    since.as_nanos() as u64 + 1
}
