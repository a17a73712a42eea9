use super::*;
use std::future::{pending, poll_fn, ready};
use std::sync::Mutex;
use std::sync::mpsc;

/// The budget is the process's, and so shared by the tests of this file.
static BUDGET: Mutex<()> = Mutex::new(());

#[test]
fn a_ready_future_does_not_wait() {
    assert_eq!(block_on(ready(3)), 3);
    assert_eq!(block_on_until(ready(3), Some(Instant::now())).ok(), Some(3));
}

#[test]
fn a_deadline_gives_the_future_back() {
    let start = Instant::now();
    let deadline = start + Duration::from_millis(20);
    let back = block_on_until(pending::<()>(), Some(deadline));
    assert!(back.is_err());
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn a_busy_future_does_not_outlive_its_deadline() {
    let deadline = Some(Instant::now() + Duration::from_millis(5));
    let busy = poll_fn(|context| {
        context.waker().wake_by_ref();
        Poll::<()>::Pending
    });
    assert!(block_on_until(busy, deadline).is_err());
}

#[test]
fn another_thread_wakes() {
    let (wakers, woken) = mpsc::channel::<Waker>();
    let other = thread::spawn(move || woken.into_iter().for_each(Waker::wake));
    for _ in 0..2_000 {
        let mut asked = false;
        block_on(poll_fn(|context| {
            if asked {
                return Poll::Ready(());
            }
            asked = true;
            wakers.send(context.waker().clone()).unwrap();
            Poll::Pending
        }));
    }
    drop(wakers);
    other.join().unwrap();
}

#[test]
fn a_nested_wait_leaves_the_outer_notification_alone() {
    let mut polls = 0;
    block_on(poll_fn(|context| {
        polls += 1;
        if polls == 2 {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        let soon = Some(Instant::now() + Duration::from_millis(5));
        assert!(block_on_until(pending::<()>(), soon).is_err());
        Poll::Pending
    }));
    assert_eq!(polls, 2);
}

#[test]
fn running_threads_use_up_the_budget() {
    let _alone = BUDGET.lock().unwrap();
    if parallelism() == 1 {
        assert!(!budget::has_room());
        return;
    }
    // Other tests spin for moments; the marks below are exact all the same, since they stay.
    let (marked, all_marked) = mpsc::channel();
    thread::scope(|scope| {
        let mut holds = Vec::new();
        for _ in 0..parallelism() {
            let (hold, held) = mpsc::channel::<()>();
            let marked = marked.clone();
            scope.spawn(move || {
                let _running = running();
                let _nested = running();
                marked.send(()).unwrap();
                let _ = held.recv();
            });
            holds.push(hold);
        }
        for _ in 0..parallelism() {
            all_marked.recv().unwrap();
        }
        assert!(!budget::has_room(), "all cores run kernels");
        assert!(!budget::has_another_core(), "so no kernel has one to go to");
        assert!(!Spin::default().until(|| true), "so nobody else spins");
    });
}

#[test]
fn spinning_that_does_not_pay_stops_and_is_tried_again() {
    let _alone = BUDGET.lock().unwrap();
    if parallelism() == 1 {
        return;
    }
    let mut spin = Spin::default();
    for _ in 0..4 * PROBE_EVERY {
        spin.until(|| false);
    }
    // Whether a single spin found room depends on the other tests; the limit has decayed anyway.
    assert!(spin.limit < SPIN_MAX);
    let found = (0..100_000).any(|_| spin.until(|| true));
    assert!(found);
    assert_eq!(spin.limit, SPIN_MAX);
}

#[test]
fn a_thread_moves_after_many_short_waits_in_a_row_and_ever_less_often_in_vain() {
    let mut apart = Apart::default();
    let (short, long) = (Duration::from_micros(5), Duration::from_millis(1));
    let waits_until_due = |apart: &mut Apart| {
        (1..).find(|_| {
            apart.waited(short);
            apart.is_due()
        })
    };
    for _ in 0..SHORT_WAITS - 1 {
        apart.waited(short);
    }
    apart.waited(long);
    assert_eq!(waits_until_due(&mut apart), Some(SHORT_WAITS), "a long one begins anew");
    assert_eq!(waits_until_due(&mut apart), Some(2 * SHORT_WAITS));
    for _ in 0..20 {
        waits_until_due(&mut apart);
    }
    assert_eq!(waits_until_due(&mut apart), Some(SHORT_WAITS_MAX));
    for _ in 0..2 * SHORT_WAITS_MAX {
        apart.spun();
    }
    assert_eq!(waits_until_due(&mut apart), Some(SHORT_WAITS), "where spinning pays");
}

#[cfg(all(target_os = "linux", not(dotcompute_portable)))]
#[test]
fn a_thread_that_has_left_its_cpu_may_run_on_all_that_it_could() {
    let allowed = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:"));
        line.unwrap().trim().to_owned()
    };
    let before = allowed();
    let moved = sys::leave_cpu();
    // A container may have a share of one CPU of several.
    assert!(moved || std::thread::available_parallelism().unwrap().get() == 1);
    assert_eq!(allowed(), before);
}
