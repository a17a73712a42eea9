//! Models of the parker: no wake-up is lost, and what the waker wrote is seen.

use super::*;
use crate::sync::UnsafeCell;
use loom::thread;
use std::future::poll_fn;

/// A value that a waker's thread writes before it notifies; plain memory, so that loom reports
/// a read that the notification does not order.
struct Parcel {
    value: UnsafeCell<u32>,
    ready: AtomicU32,
    signal: Arc<Signal>,
}

// SAFETY: the models order every access to `value` by the notification under test.
unsafe impl Sync for Parcel {}
// SAFETY: the parts are Send.
unsafe impl Send for Parcel {}

#[test]
fn a_notification_is_neither_lost_nor_early() {
    loom::model(|| {
        let mut parker = Parker::default();
        let parcel = Arc::new(Parcel {
            value: UnsafeCell::new(0),
            ready: AtomicU32::new(0),
            signal: Arc::clone(&parker.signal),
        });
        let waker = {
            let parcel = Arc::clone(&parcel);
            thread::spawn(move || {
                // SAFETY: the owner reads only after the notification below.
                parcel.value.with_mut(|value| unsafe { *value = 7 });
                parcel.signal.notify();
            })
        };
        assert!(parker.park(None));
        // SAFETY: the waker wrote before it notified and writes no more.
        assert_eq!(parcel.value.with(|value| unsafe { *value }), 7);
        waker.join().unwrap();
    });
}

#[test]
fn two_wakers_and_two_conditions() {
    loom::model(|| {
        let mut parker = Parker::default();
        let parcel = Arc::new(Parcel {
            value: UnsafeCell::new(0),
            ready: AtomicU32::new(0),
            signal: Arc::clone(&parker.signal),
        });
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let parcel = Arc::clone(&parcel);
                thread::spawn(move || {
                    // Relaxed: the notification orders it.
                    parcel.ready.fetch_add(1, Ordering::Relaxed);
                    parcel.signal.notify();
                })
            })
            .collect();
        // Relaxed: `park` orders it. A lost wake-up is a deadlock, which loom reports.
        while parcel.ready.load(Ordering::Relaxed) < 2 {
            assert!(parker.park(None));
        }
        for waker in wakers {
            waker.join().unwrap();
        }
    });
}

#[test]
fn block_on_a_future_that_another_thread_completes() {
    loom::model(|| {
        let done = loom::sync::Arc::new(AtomicU32::new(0));
        let slot = loom::sync::Arc::new(crate::sync::Mutex::new(None::<Waker>));
        let other = {
            let (done, slot) = (done.clone(), slot.clone());
            thread::spawn(move || {
                done.store(1, Ordering::Release);
                let waker = slot.lock().unwrap().take();
                if let Some(waker) = waker {
                    waker.wake();
                }
            })
        };
        block_on(poll_fn(|context| {
            *slot.lock().unwrap() = Some(context.waker().clone());
            match done.load(Ordering::Acquire) {
                1 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        }));
        other.join().unwrap();
    });
}
