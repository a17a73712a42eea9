use super::super::*;
use crate::bands::{PASSED_OVER_MAX, WINDOW_MAX};
use crate::sync::{AtomicUsize, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Wake, Waker};
use std::thread;
use std::time::Duration;

fn send<T: fmt::Debug>(mailbox: &Mailbox<T>, band: Band, value: T) {
    assert!(matches!(mailbox.try_send(band, value), Ok(Admission::Accepted)));
}

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// What the inbox delivers, until it is empty.
fn drain<T: Copy>(inbox: &mut Inbox<T>) -> Vec<T> {
    let mut values = Vec::new();
    while inbox.try_next().is_ok() {
        values.push(*inbox.current().unwrap());
    }
    values
}

#[test]
fn capacity_is_exact() {
    for capacity in [1, 2, 3, 63, 64, 65, 1000] {
        for uses_inbox in [false, true] {
            let mailbox = Mailbox::new(capacity, Backpressure::Reject);
            let mut inbox = uses_inbox.then(|| mailbox.inbox().unwrap());
            let mut sent = 0..;
            let mut expected = 0..;
            for _ in 0..3 {
                while mailbox.len() < capacity {
                    send(&mailbox, Band::Normal, sent.next().unwrap());
                }
                assert!(mailbox.is_full());
                let refused = mailbox.try_send(Band::System, -1);
                assert_eq!(refused, Err(TrySendError::Full(-1)));
                for taken in 1..=capacity.div_ceil(2) {
                    let value = match &mut inbox {
                        None => mailbox.try_receive().unwrap(),
                        Some(inbox) => {
                            inbox.try_next().unwrap();
                            *inbox.current().unwrap()
                        }
                    };
                    assert_eq!(value, expected.next().unwrap());
                    assert_eq!(mailbox.len(), capacity - taken);
                }
            }
            assert_eq!(mailbox.high_water(), capacity);
            assert!(mailbox.books().balance());
        }
    }
}

#[test]
#[should_panic(expected = "at least 1")]
fn a_capacity_of_zero_is_refused() {
    drop(Mailbox::<()>::new(0, Backpressure::Block));
}

#[test]
fn priorities_map_to_bands() {
    let bands = [0, 63, 64, 159, 160, 223, 224, 255].map(Band::from_priority);
    use Band::{High, Low, Normal, System};
    assert_eq!(bands, [Low, Low, Normal, Normal, High, High, System, System]);
}

#[test]
fn a_band_keeps_its_order_and_the_more_urgent_goes_first() {
    let mailbox = Mailbox::new(100, Backpressure::Block);
    let mut inbox = mailbox.inbox().unwrap();
    for value in 0..12 {
        send(&mailbox, Band::ALL[3 - value % 4], value);
    }
    assert_eq!(drain(&mut inbox), [3, 7, 11, 2, 6, 10, 1, 5, 9, 0, 4, 8]);
}

/// The rule: passed over 256 times in a row, then served, while more urgent bands never run dry.
#[test]
fn a_lower_band_is_not_starved() {
    let max = PASSED_OVER_MAX as usize;
    for uses_inbox in [false, true] {
        let mailbox = Mailbox::new(10, Backpressure::Block);
        let mut inbox = uses_inbox.then(|| mailbox.inbox().unwrap());
        send(&mailbox, Band::High, Band::High);
        send(&mailbox, Band::Normal, Band::Normal);
        send(&mailbox, Band::Low, Band::Low);
        let mut delivered = Vec::new();
        for _ in 0..3 * max {
            let band = match &mut inbox {
                None => mailbox.try_receive().unwrap(),
                Some(inbox) => {
                    inbox.try_next().unwrap();
                    *inbox.current().unwrap()
                }
            };
            delivered.push(band);
            send(&mailbox, band, band);
        }
        let at = |wanted| {
            let found = delivered.iter().enumerate().filter(move |(_, band)| **band == wanted);
            found.map(|(index, _)| index).collect::<Vec<_>>()
        };
        assert_eq!(at(Band::Normal), [max, 2 * max + 1]);
        assert_eq!(at(Band::Low), [max + 1, 2 * max + 2]);
    }
}

#[test]
fn a_band_that_was_empty_starts_its_wait_anew() {
    let max = PASSED_OVER_MAX as usize;
    let mailbox = Mailbox::new(2 * max, Backpressure::Block);
    let mut inbox = mailbox.inbox().unwrap();
    for _ in 0..max {
        send(&mailbox, Band::High, 0);
    }
    for _ in 0..max / 2 {
        inbox.try_next().unwrap();
    }
    send(&mailbox, Band::Low, 1);
    for _ in 0..max / 2 {
        send(&mailbox, Band::High, 0);
    }
    let delivered = drain(&mut inbox);
    assert_eq!(delivered.iter().position(|&value| value == 1), Some(max));
}

#[test]
fn drop_oldest_takes_from_the_least_urgent_band() {
    let mailbox = Mailbox::new(3, Backpressure::DropOldest);
    let mut inbox = mailbox.inbox().unwrap();
    send(&mailbox, Band::Low, 1);
    send(&mailbox, Band::Low, 2);
    send(&mailbox, Band::High, 3);
    assert_eq!(mailbox.try_send(Band::High, 4), Ok(Admission::Evicted(1)));
    assert_eq!(mailbox.try_send(Band::High, 5), Ok(Admission::Evicted(2)));
    assert_eq!(mailbox.try_send(Band::Low, 6), Ok(Admission::Evicted(3)));
    assert_eq!(drain(&mut inbox), [4, 5, 6]);
    let books = mailbox.books();
    assert_eq!((books.accepted, books.dropped_oldest, books.processed), (6, 3, 3));
    assert!(books.balance());
}

#[test]
fn drop_newest_drops_and_counts_the_newcomer() {
    let mailbox = Mailbox::new(1, Backpressure::DropNewest);
    send(&mailbox, Band::Low, 1);
    assert_eq!(mailbox.try_send(Band::System, 2), Ok(Admission::DroppedNewest(2)));
    let books = mailbox.books();
    assert_eq!((books.accepted, books.dropped_newest, books.queued), (2, 1, 1));
    assert!(books.balance());
}

#[test]
fn blocked_senders_are_admitted_by_band_and_then_in_order() {
    let mailbox = Mailbox::new(1, Backpressure::Block);
    send(&mailbox, Band::Normal, 0);
    let bands = [Band::Low, Band::High, Band::Low, Band::System, Band::High];
    let mut sends: Vec<_> = (1..).zip(bands).map(|(value, b)| mailbox.send(b, value)).collect();
    assert!(sends.iter_mut().all(|send| poll_once(send).is_pending()));
    let received: Vec<_> = (0..6).map(|_| mailbox.try_receive().unwrap()).collect();
    assert_eq!(received, [0, 4, 2, 5, 1, 3]);
    assert!(sends.iter_mut().all(|send| poll_once(send) == Poll::Ready(Ok(Admission::Accepted))));
}

#[test]
fn a_batch_leaves_what_is_not_in_the_mailbox() {
    let batch = || VecDeque::from([1, 2, 3]);
    for (policy, accepted, left) in [
        (Backpressure::Block, 2, vec![3]),
        (Backpressure::Reject, 2, vec![3]),
        (Backpressure::DropOldest, 3, vec![1]),
        (Backpressure::DropNewest, 3, vec![3]),
    ] {
        let mailbox = Mailbox::new(2, policy);
        let mut values = batch();
        assert_eq!(mailbox.try_send_batch(Band::Normal, &mut values), Ok(accepted));
        assert_eq!(values, left, "{policy:?}");
        assert!(mailbox.books().balance());
        mailbox.close(Close::Drain);
        let mut values = batch();
        assert_eq!(mailbox.try_send_batch(Band::Normal, &mut values), Err(Closed));
        assert_eq!(values, batch());
    }
}

#[test]
fn a_batch_is_received_in_order() {
    let mailbox = Mailbox::new(10, Backpressure::Block);
    let mut out = vec![-1];
    assert_eq!(mailbox.try_receive_batch(4, &mut out), Err(TryReceiveError::Empty));
    let mut values = (0..6).collect();
    assert_eq!(mailbox.try_send_batch(Band::Normal, &mut values), Ok(6));
    assert_eq!(mailbox.try_receive_batch(4, &mut out), Ok(4));
    assert_eq!(mailbox.receive_batch_blocking(9, &mut out, None), Ok(2));
    assert_eq!(out, [-1, 0, 1, 2, 3, 4, 5]);
    mailbox.close(Close::Drain);
    assert_eq!(mailbox.receive_batch_blocking(9, &mut out, None), Err(ReceiveError::Closed));
}

#[test]
fn blocking_calls_end_at_their_deadline() {
    let mailbox = Mailbox::new(1, Backpressure::Block);
    let deadline = || Some(Instant::now() + Duration::from_millis(5));
    assert_eq!(mailbox.receive_blocking(deadline()), Err(ReceiveError::Timeout));
    send(&mailbox, Band::Normal, 1);
    let late = mailbox.send_blocking(Band::Normal, 2, deadline());
    assert_eq!(late, Err(SendError::Timeout(2)));
    let books = mailbox.books();
    assert_eq!((books.accepted, books.rejected), (1, 1));
    assert_eq!(mailbox.receive_blocking(deadline()), Ok(1));
    assert_eq!(mailbox.receive_blocking(Some(Instant::now())), Err(ReceiveError::Timeout));
}

#[test]
fn a_send_that_is_given_up_says_whether_it_was_admitted() {
    let mailbox = Mailbox::new(1, Backpressure::Block);
    send(&mailbox, Band::Normal, 0);
    let mut sends = [1, 2, 3].map(|value| mailbox.send(Band::Normal, value));
    assert!(sends.iter_mut().all(|send| poll_once(send).is_pending()));
    assert_eq!(mailbox.try_receive(), Ok(0));
    let [first, second, third] = sends;
    assert_eq!(first.give_up(), Ok(Admission::Accepted));
    assert_eq!(second.give_up(), Err(SendError::Timeout(2)));
    mailbox.close(Close::Drain);
    assert_eq!(third.give_up(), Err(SendError::Closed(3)));
}

#[test]
fn blocking_senders_and_an_inbox_lose_nothing() {
    let (senders, each) = (4_u64, if cfg!(miri) { 50 } else { 20_000 });
    for capacity in [1, 2, 100] {
        let mailbox = Mailbox::new(capacity, Backpressure::Block);
        let threads: Vec<_> = (0..senders)
            .map(|sender| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || {
                    for count in 0..each {
                        let band = Band::ALL[(count % 4) as usize];
                        let sent = mailbox.send_blocking(band, (sender, band, count), None);
                        assert_eq!(sent, Ok(Admission::Accepted));
                    }
                })
            })
            .collect();
        let mut inbox = mailbox.inbox().unwrap();
        let mut last = [[None; 4]; 4];
        for _ in 0..senders * each {
            crate::wait::block_on(std::future::poll_fn(|cx| inbox.poll_next(cx))).unwrap();
            let &(sender, band, count) = inbox.current().unwrap();
            let last = &mut last[sender as usize][band as usize];
            assert!(last.is_none_or(|last| last < count), "a sender's band keeps its order");
            *last = Some(count);
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(inbox);
        let books = mailbox.books();
        assert_eq!(books.accepted, senders * each);
        assert!(books.balance());
        assert!(mailbox.high_water() <= capacity);
    }
}

#[test]
fn a_closed_mailbox_is_drained_first_or_not_at_all() {
    for (mode, error) in
        [(Close::Drain, TryReceiveError::Empty), (Close::Now, TryReceiveError::Closed)]
    {
        let mailbox = Mailbox::new(2, Backpressure::Block);
        let mut inbox = mailbox.inbox().unwrap();
        send(&mailbox, Band::Normal, 1);
        send(&mailbox, Band::Normal, 2);
        let mut blocked = mailbox.send(Band::Normal, 3);
        assert!(poll_once(&mut blocked).is_pending());
        mailbox.close(mode);
        assert_eq!(poll_once(&mut blocked), Poll::Ready(Err(SendError::Closed(3))));
        assert_eq!(mailbox.try_send(Band::Normal, 4), Err(TrySendError::Closed(4)));
        if error == TryReceiveError::Empty {
            assert_eq!(drain(&mut inbox), [1, 2]);
        }
        assert_eq!(inbox.try_next(), Err(TryReceiveError::Closed));
        assert_eq!(mailbox.try_receive(), Err(TryReceiveError::Closed));
        let mut left = Vec::new();
        mailbox.take_all(|value| left.push(value));
        assert_eq!(left.is_empty(), mode == Close::Drain);
        assert!(mailbox.books().balance());
    }
}

#[test]
fn what_is_diverted_goes_on_in_its_band_and_order_beyond_the_capacity_there() {
    let from = Mailbox::new(3, Backpressure::Block);
    let to = Mailbox::new(1, Backpressure::DropNewest);
    let mut inbox = to.inbox().unwrap();
    for (band, value) in [(Band::Normal, 1), (Band::High, 2), (Band::Normal, 3)] {
        send(&from, band, value);
    }
    send(&to, Band::Normal, 0);
    let mut blocked = from.send(Band::Normal, 4);
    assert!(poll_once(&mut blocked).is_pending());
    let mut receiver = from.receive();
    drop(from.divert(&to).unwrap());
    assert_eq!(poll_once(&mut blocked), Poll::Ready(Err(SendError::Closed(4))));
    assert_eq!(poll_once(&mut receiver), Poll::Ready(Err(Closed)));
    assert_eq!(to.len(), 4);
    assert!(matches!(to.try_send(Band::High, 9), Ok(Admission::DroppedNewest(9))));
    assert_eq!(drain(&mut inbox), [2, 0, 1, 3]);
    let books = from.books();
    assert_eq!((books.accepted, books.forwarded, books.processed), (3, 3, 0));
    assert!(books.balance() && to.books().balance());
    assert_eq!((to.books().accepted, to.books().dropped_newest), (5, 1));
    // Afterwards it is a mailbox again, unless it was closed for good.
    from.reopen();
    send(&from, Band::Normal, 5);
    assert_eq!(from.try_receive(), Ok(5));
    drop(from.divert(&to).unwrap());
    from.close(Close::Drain);
    from.reopen();
    assert!(from.is_closed());
}

#[test]
fn nothing_is_diverted_to_a_closed_mailbox() {
    let [from, to] = [(); 2].map(|()| Mailbox::new(3, Backpressure::Block));
    send(&from, Band::Normal, 1);
    to.close(Close::Drain);
    assert!(from.divert(&to).is_err());
    assert!(!from.is_closed());
    assert_eq!(from.try_receive(), Ok(1));
}

#[test]
fn a_diverted_message_wakes_who_waits_for_it() {
    let [from, to] = [(); 2].map(|()| Mailbox::new(3, Backpressure::Block));
    send(&from, Band::Normal, 1);
    let receiver = Arc::clone(&to);
    let waiting = thread::spawn(move || receiver.receive_blocking(None));
    while to.lock().receivers.waiting() == 0 {
        thread::yield_now();
    }
    drop(from.divert(&to).unwrap());
    assert_eq!(waiting.join().unwrap(), Ok(1));
}

#[test]
fn a_pause_takes_the_window_back() {
    let mailbox = Mailbox::new(5, Backpressure::Block);
    let mut inbox = mailbox.inbox().unwrap();
    for value in 0..5 {
        send(&mailbox, Band::Normal, value);
    }
    inbox.try_next().unwrap();
    assert!(inbox.arriving_more());
    mailbox.pause();
    assert!(mailbox.is_paused());
    assert_eq!(inbox.current(), Some(&0), "what is in hand stays");
    assert_eq!(inbox.try_next(), Err(TryReceiveError::Empty));
    send(&mailbox, Band::Normal, 5);
    assert_eq!(mailbox.try_receive(), Err(TryReceiveError::Empty));
    mailbox.resume();
    assert_eq!(drain(&mut inbox), [1, 2, 3, 4, 5]);
}

#[test]
fn a_message_in_hand_is_settled_put_back_or_left_to_the_next_inbox() {
    let mailbox = Mailbox::new(2, Backpressure::Reject);
    let mut inbox = mailbox.inbox().unwrap();
    assert!(mailbox.inbox().is_none(), "there is one inbox at a time");
    assert_eq!(inbox.settle(Outcome::Processed), None);
    assert!(!inbox.put_back());
    send(&mailbox, Band::Low, 1);
    send(&mailbox, Band::Low, 2);
    inbox.try_next().unwrap();
    send(&mailbox, Band::Low, 3);
    assert!(inbox.put_back(), "also into a full mailbox");
    assert_eq!(mailbox.len(), 3);
    inbox.try_next().unwrap();
    *inbox.current_mut().unwrap() += 10;
    drop(inbox);
    assert_eq!(mailbox.books().in_hand, 1);

    let mut inbox = mailbox.inbox().unwrap();
    assert_eq!(inbox.current(), Some(&11));
    assert_eq!(inbox.settle(Outcome::DeadLettered), Some(11));
    inbox.try_next().unwrap();
    assert_eq!(inbox.take(), Some(2));
    assert!(!inbox.put_back(), "a value that was taken cannot be delivered again");
    assert_eq!(mailbox.books().in_hand, 1);
    assert_eq!(inbox.settle(Outcome::Expired), None);
    inbox.try_next().unwrap();
    assert_eq!(inbox.try_next(), Err(TryReceiveError::Empty));
    let books = mailbox.books();
    assert_eq!((books.processed, books.expired, books.dead_lettered), (1, 1, 1));
    assert_eq!((books.redelivered, books.in_hand, books.queued), (1, 0, 0));
    assert!(books.balance());
}

#[test]
fn every_64th_message_is_stamped() {
    let mailbox = Mailbox::new(200, Backpressure::Block);
    let mut inbox = mailbox.inbox().unwrap();
    for value in 0..200 {
        send(&mailbox, Band::Normal, value);
    }
    for value in 0..200 {
        inbox.try_next().unwrap();
        assert_eq!(inbox.take_times().is_some(), value % STAMP_EVERY == 0);
    }
}

#[test]
fn memory_grows_with_the_load_and_is_kept() {
    let mailbox = Mailbox::new(1024, Backpressure::Reject);
    let idle = mailbox.memory_bytes();
    assert!(idle < 1024, "an idle mailbox takes {idle} bytes");
    let mut inbox = mailbox.inbox().unwrap();
    let mut fill_and_drain = || {
        while mailbox.try_send(Band::Normal, [0_u64; 4]).is_ok() {}
        while inbox.try_next().is_ok() {
            let _ = mailbox.len();
        }
        mailbox.memory_bytes()
    };
    let grown = fill_and_drain();
    for _ in 0..10 {
        assert_eq!(fill_and_drain(), grown);
    }
    // 1024 slots of two words beside the value, at most doubled by the last block.
    assert!(grown < 2 * (1024 + WINDOW_MAX) * (32 + 32), "{grown} bytes");
}

/// Counts how many are alive, and panics when a chosen one is dropped.
struct Fragile<'a> {
    alive: &'a AtomicUsize,
    panics: bool,
}

impl<'a> Fragile<'a> {
    fn new(alive: &'a AtomicUsize, panics: bool) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Self { alive, panics }
    }
}

impl Drop for Fragile<'_> {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
        assert!(!self.panics, "a destructor panics");
    }
}

fn panics(run: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(run)).is_err()
}

#[test]
fn a_destructor_that_panics_harms_nobody_else() {
    let alive = AtomicUsize::new(0);
    let mailbox = Mailbox::new(4, Backpressure::Block);
    let send = |panics| {
        let sent = mailbox.try_send(Band::Normal, Fragile::new(&alive, panics));
        assert!(matches!(sent, Ok(Admission::Accepted)));
    };
    let mut inbox = mailbox.inbox().unwrap();
    // With a window (the first two), and without (the last one).
    [true, true, false].into_iter().for_each(send);
    inbox.try_next().unwrap();
    assert!(panics(|| _ = inbox.try_next()));
    assert_eq!(mailbox.books().in_hand, 1, "the message whose destructor panicked");
    assert!(inbox.current().is_none());
    inbox.try_next().unwrap();
    assert!(panics(|| _ = inbox.try_next()));
    inbox.try_next().unwrap();
    assert!(inbox.current().is_some());
    assert_eq!(inbox.try_next(), Err(TryReceiveError::Empty));

    // Cancelled, and taken out.
    for _ in 0..4 {
        send(false);
    }
    let mut blocked = mailbox.send(Band::Normal, Fragile::new(&alive, true));
    assert!(poll_once(&mut blocked).is_pending());
    assert!(panics(|| drop(blocked)));
    mailbox.close(Close::Now);
    assert!(panics(|| mailbox.take_all(|_| panic!("the callback panics"))));
    assert_eq!(mailbox.len(), 3);
    mailbox.take_all(drop);
    let books = mailbox.books();
    assert_eq!((books.processed, books.dead_lettered), (3, 4));
    assert!(books.balance());
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

#[test]
fn a_mailbox_drops_what_it_holds_once() {
    let alive = AtomicUsize::new(0);
    let mailbox = Mailbox::new(3, Backpressure::Block);
    let mut inbox = mailbox.inbox().unwrap();
    for _ in 0..3 {
        let _ = mailbox.try_send(Band::Normal, Fragile::new(&alive, false));
    }
    inbox.try_next().unwrap();
    let _ = mailbox.try_send(Band::Low, Fragile::new(&alive, false));
    let mut blocked = mailbox.send(Band::Normal, Fragile::new(&alive, false));
    assert!(poll_once(&mut blocked).is_pending());
    assert_eq!(alive.load(Ordering::Relaxed), 5);
    drop(blocked);
    assert_eq!(alive.load(Ordering::Relaxed), 4);
    drop(inbox);
    drop(mailbox);
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

/// Notes the order in which several are woken.
struct Bell(usize, Arc<std::sync::Mutex<Vec<usize>>>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.1.lock().unwrap().push(self.0);
    }
}

#[test]
fn receivers_are_told_in_the_order_in_which_they_came_the_inbox_among_them() {
    for inbox_at in 0..4 {
        let mailbox = Mailbox::new(8, Backpressure::Block);
        let mut inbox = mailbox.inbox().unwrap();
        let mut receivers: Vec<_> = (0..4).map(|_| mailbox.receive()).collect();
        let told = Arc::default();
        let mut look = |who: usize| {
            let waker = Arc::new(Bell(who, Arc::clone(&told))).into();
            let context = &mut Context::from_waker(&waker);
            match who == inbox_at {
                true => inbox.poll_next(context).is_ready(),
                false => Pin::new(&mut receivers[who]).poll(context).is_ready(),
            }
        };
        // The second time they were told before, and find nothing.
        for _ in 0..2 {
            assert!((0..4).all(|who| !look(who)));
            for value in 0..4 {
                send(&mailbox, Band::Normal, value);
            }
            assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [0, 1, 2, 3]);
            while mailbox.try_receive().is_ok() {}
        }
        // Whoever was told, found nothing and waits again is behind those who waited meanwhile.
        assert!((0..4).all(|who| !look(who)));
        send(&mailbox, Band::Normal, 0);
        assert_eq!(mailbox.try_receive(), Ok(0));
        assert!(!look(0));
        for value in 0..4 {
            send(&mailbox, Band::Normal, value);
        }
        assert_eq!(*told.lock().unwrap(), [0, 1, 2, 3, 0]);
        assert!((0..4).all(&mut look), "a message for each");
    }
}

struct Bomb(AtomicUsize);

impl Wake for Bomb {
    fn wake(self: Arc<Self>) {
        assert!(self.0.fetch_add(1, Ordering::Relaxed) > 0, "the first wake-up panics");
    }
}

#[test]
fn a_waker_that_panics_keeps_nobody_asleep() {
    let mailbox = Mailbox::<u32>::new(1, Backpressure::Block);
    let bomb = Arc::new(Bomb(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&bomb));
    let mut receives: Vec<_> = (0..5).map(|_| mailbox.receive()).collect();
    for receive in &mut receives {
        assert!(Pin::new(receive).poll(&mut Context::from_waker(&waker)).is_pending());
    }
    assert!(panics(|| mailbox.close(Close::Drain)));
    assert_eq!(bomb.0.load(Ordering::Relaxed), 5);
    assert!(receives.iter_mut().all(|receive| poll_once(receive) == Poll::Ready(Err(Closed))));
}

#[test]
fn the_ends_cross_threads() {
    fn is_send<T: std::marker::Send>() {}
    fn is_sync<T: Sync>() {}
    is_send::<Mailbox<Vec<u8>>>();
    is_sync::<Mailbox<Vec<u8>>>();
    is_send::<Inbox<Vec<u8>>>();
    is_sync::<Inbox<Vec<u8>>>();
    is_send::<Send<'static, Vec<u8>>>();
    is_send::<Receive<'static, Vec<u8>>>();
}

#[test]
fn inspect_sees_what_is_queued_and_who_waits_with_what() {
    let mailbox = Mailbox::new(3, Backpressure::Block);
    send(&mailbox, Band::Low, 1);
    send(&mailbox, Band::Normal, 2);
    send(&mailbox, Band::Normal, 3);
    let mut blocked = mailbox.send(Band::High, 4);
    assert!(poll_once(&mut blocked).is_pending());
    let look = || {
        let mut seen = Vec::new();
        mailbox.inspect(|band, &value| seen.push((band, value)));
        seen
    };
    let (low, normal) = (Some(Band::Low), Some(Band::Normal));
    assert_eq!(look(), [(normal, 2), (normal, 3), (low, 1), (None, 4)]);

    // What an inbox has in hand is left out; what it was lent is not.
    let mut inbox = mailbox.inbox().unwrap();
    assert_eq!(inbox.try_next(), Ok(()));
    assert_eq!(look(), [(Some(Band::High), 4), (normal, 3), (low, 1)]);
    assert_eq!(drain(&mut inbox), [4, 3, 1]);
    assert_eq!(look(), []);
}
