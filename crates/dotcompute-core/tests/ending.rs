//! The end of timeouts, which is one of the whole process.

use std::time::{Duration, Instant};

use dotcompute_core::{sleep_until, stop_timeouts};
use dotcompute_mailbox::wait::block_on;

#[test]
fn once_timeouts_are_stopped_nothing_waits_for_a_time() {
    let far = Instant::now() + Duration::from_secs(3600);
    let set_before = sleep_until(far);
    stop_timeouts();
    block_on(set_before);
    block_on(sleep_until(far));
    assert!(Instant::now() < far);
}
