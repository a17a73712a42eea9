use std::pin::pin;
use std::task::Waker;
use std::thread;
use std::time::Duration;

use super::*;
use crate::wait::block_on;

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Reads until the feed has had nothing for a moment of its own choice: until `end` is read.
fn read_until(mut receiver: FeedReceiver<u64>, end: u64, spins: bool) -> Vec<u64> {
    let mut all = Vec::new();
    while all.last() != Some(&end) {
        block_on(poll_fn(|context| receiver.poll_ready(context, spins)));
        receiver.read(7, |records| all.extend_from_slice(records));
    }
    all
}

#[test]
fn records_arrive_in_order_whoever_has_to_wait() {
    // Positions wrap around the ring's end within a chunk, and each side waits for the other.
    for (capacity, spins) in [(1, true), (3, false), (64, true), (64, false)] {
        let (mut sender, receiver) = feed(capacity);
        let count = 2_000 * capacity.min(10) as u64;
        let pusher = thread::spawn(move || {
            for number in 0..count {
                sender.push_blocking(number, None).unwrap();
            }
            sender
        });
        let all = read_until(receiver, count - 1, spins);
        assert!(all.iter().copied().eq(0..count), "capacity {capacity}");
        assert_eq!(pusher.join().unwrap().waiting(), 0);
    }
}

#[test]
fn a_full_feed_gives_the_record_back_or_lets_its_sender_wait() {
    let (mut sender, mut receiver) = feed(2);
    assert_eq!(sender.push_slice(&[1, 2, 3]), 2);
    assert_eq!(sender.try_push(3), Err(PushError::Full(3)));
    let soon = Instant::now() + Duration::from_millis(2);
    assert_eq!(sender.push_blocking(3, Some(soon)), Err(PushError::Full(3)));
    assert_eq!((sender.waiting(), sender.capacity()), (2, 2));
    {
        let mut push = pin!(sender.push(3));
        assert!(push.as_mut().poll(&mut context()).is_pending());
        assert_eq!(receiver.read(1, <[i32]>::to_vec), Some(vec![1]));
        assert_eq!(push.as_mut().poll(&mut context()), Poll::Ready(Ok(())));
    }
    assert_eq!(receiver.read(9, <[i32]>::len), Some(1), "up to the end of the memory");
    assert_eq!(receiver.read(9, <[i32]>::to_vec), Some(vec![3]));
    assert_eq!(receiver.read(9, <[i32]>::to_vec), None);
}

#[test]
fn what_was_pushed_before_a_close_is_read_and_nothing_else() {
    let (mut sender, mut receiver) = feed(8);
    assert_eq!(sender.push_slice(&[1, 2, 3]), 3);
    receiver.close();
    assert_eq!(sender.try_push(4), Err(PushError::Closed(4)));
    assert_eq!(sender.push_slice(&[5, 6]), 0);
    assert_eq!(block_on(sender.push(7)), Err(PushError::Closed(7)));
    assert_eq!(receiver.poll_ready(&mut context(), false), Poll::Ready(()));
    assert_eq!(receiver.read(9, <[i32]>::to_vec), Some(vec![1, 2, 3]));
    assert_eq!(receiver.read(9, <[i32]>::to_vec), None);
    assert_eq!(receiver.poll_ready(&mut context(), false), Poll::Pending);
    let (mut sender, receiver) = feed(8);
    drop(receiver);
    assert_eq!(sender.try_push(1), Err(PushError::Closed(1)));
}

#[test]
fn a_close_wakes_a_sender_that_waits_for_room() {
    let (mut sender, mut receiver) = feed(1);
    sender.try_push(1).unwrap();
    let pusher = thread::spawn(move || sender.push_blocking(2, None));
    receiver.close();
    assert_eq!(pusher.join().unwrap(), Err(PushError::Closed(2)));
}

#[test]
fn a_close_in_the_middle_counts_each_record_once() {
    for round in 0..200 {
        let (mut sender, mut receiver) = feed(16);
        let pusher = thread::spawn(move || {
            let mut accepted = 0_u64;
            while sender.push_blocking(accepted, None).is_ok() {
                accepted += 1;
            }
            accepted
        });
        let mut all = Vec::new();
        while all.len() < round {
            block_on(poll_fn(|context| receiver.poll_ready(context, false)));
            receiver.read(5, |records| all.extend_from_slice(records));
        }
        receiver.close();
        while receiver.read(5, |records| all.extend_from_slice(records)).is_some() {}
        let accepted = pusher.join().unwrap();
        assert!(all.iter().copied().eq(0..accepted), "{} read of {accepted}", all.len());
    }
}

#[test]
fn a_panic_while_it_reads_frees_what_was_read_and_wakes_the_sender() {
    let (mut sender, mut receiver) = feed(2);
    assert_eq!(sender.push_slice(&[1, 2]), 2);
    let pusher = thread::spawn(move || sender.push_blocking(3, None).map(|()| sender.capacity()));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        receiver.read(9, |_| panic!("as it should"));
    }));
    assert!(panicked.is_err());
    assert_eq!(pusher.join().unwrap(), Ok(2));
    assert_eq!(receiver.read(9, <[i32]>::to_vec), Some(vec![3]));
}
