//! The end of timeouts, which is one of the whole process.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use dotcompute_core::{sleep_until, stop_timeouts};
use dotcompute_mailbox::wait::block_on;

#[derive(Default)]
struct Count(AtomicU64);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        // Relaxed: a count.
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn soon(milliseconds: u64) -> Instant {
    Instant::now() + Duration::from_millis(milliseconds)
}

#[test]
fn once_timeouts_are_stopped_those_of_before_wake_nobody_and_later_ones_fire() {
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut before = pin!(sleep_until(soon(1500)));
    assert!(before.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    stop_timeouts();
    block_on(sleep_until(soon(1600)));
    // Relaxed: as above.
    assert_eq!(count.0.load(Ordering::Relaxed), 0);
    assert!(before.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    // Also a second time.
    stop_timeouts();
    block_on(sleep_until(soon(1)));
}
