//! Models: every interleaving (with up to three preemptions) of two or three threads.

use super::super::*;
use crate::sync::{AtomicBool, Ordering};
use loom::future::block_on;
use loom::thread;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Waker;

fn model(check: impl Fn() + Sync + std::marker::Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(check);
}

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn send(mailbox: &Mailbox<u32>, value: u32) -> Result<Admission<u32>, TrySendError<u32>> {
    mailbox.try_send(Band::Normal, value)
}

/// The next message of `inbox`, which it keeps in hand.
fn next(inbox: &mut Inbox<u32>) -> Result<u32, Closed> {
    block_on(poll_fn(|context| inbox.poll_next(context)))?;
    Ok(*inbox.current().unwrap())
}

#[test]
fn a_send_wakes_a_receiver() {
    model(|| {
        let mailbox = Mailbox::new(1, Backpressure::Block);
        let sender = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || send(&mailbox, 1).unwrap())
        };
        assert_eq!(block_on(mailbox.receive()), Ok(1));
        let _ = sender.join().unwrap();
        assert!(mailbox.books().balance());
    });
}

#[test]
fn a_send_wakes_an_inbox() {
    model(|| {
        let mailbox = Mailbox::new(2, Backpressure::Block);
        let mut inbox = mailbox.inbox().unwrap();
        let sender = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                let _ = send(&mailbox, 1).unwrap();
                let _ = send(&mailbox, 2).unwrap();
            })
        };
        assert_eq!(next(&mut inbox), Ok(1));
        assert_eq!(next(&mut inbox), Ok(2));
        sender.join().unwrap();
        assert!(mailbox.books().balance());
    });
}

#[test]
fn a_cancelled_receiver_passes_its_message_on() {
    model(|| {
        let mailbox = Mailbox::new(1, Backpressure::Block);
        let mut first = mailbox.receive();
        assert!(poll_once(&mut first).is_pending());
        let second = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || block_on(mailbox.receive()))
        };
        let sender = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || send(&mailbox, 7).unwrap())
        };
        drop(first);
        assert_eq!(second.join().unwrap(), Ok(7));
        let _ = sender.join().unwrap();
    });
}

#[test]
fn a_cancelled_send_is_sent_or_dropped_and_holds_no_one_up() {
    model(|| {
        let mailbox = Mailbox::new(1, Backpressure::Block);
        let _ = send(&mailbox, 0).unwrap();
        let mut cancelled = mailbox.send(Band::Normal, 1);
        assert!(poll_once(&mut cancelled).is_pending());
        let second = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || block_on(mailbox.send(Band::Normal, 2)).unwrap())
        };
        let receiver = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.try_receive().unwrap())
        };
        drop(cancelled);
        assert_eq!(receiver.join().unwrap(), 0);
        let mut received = block_on(mailbox.receive()).unwrap();
        let was_sent = received == 1;
        if was_sent {
            received = block_on(mailbox.receive()).unwrap();
        }
        assert_eq!(received, 2);
        let _ = second.join().unwrap();
        let books = mailbox.books();
        assert_eq!(books.accepted, 2 + u64::from(was_sent));
        assert!(books.balance());
    });
}

#[test]
fn a_close_gives_a_blocked_message_back() {
    model(|| {
        let mailbox = Mailbox::new(1, Backpressure::Block);
        let _ = send(&mailbox, 0).unwrap();
        let sender = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || block_on(mailbox.send(Band::Normal, 1)))
        };
        let receiver = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.try_receive())
        };
        mailbox.close(Close::Drain);
        let sent = sender.join().unwrap();
        assert_eq!(receiver.join().unwrap(), Ok(0));
        match sent {
            Ok(_) => assert_eq!(mailbox.try_receive(), Ok(1)),
            Err(error) => assert_eq!(error, SendError::Closed(1)),
        }
        assert_eq!(mailbox.try_receive(), Err(TryReceiveError::Closed));
        assert!(mailbox.books().balance());
    });
}

#[test]
fn a_close_wakes_receivers() {
    model(|| {
        let mailbox = Mailbox::<u32>::new(1, Backpressure::Block);
        let mut inbox = mailbox.inbox().unwrap();
        let receiver = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || block_on(mailbox.receive()))
        };
        let closer = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.close(Close::Now))
        };
        assert_eq!(next(&mut inbox), Err(Closed));
        assert_eq!(receiver.join().unwrap(), Err(Closed));
        closer.join().unwrap();
    });
}

#[test]
fn a_resume_wakes_who_waited_during_the_pause() {
    model(|| {
        let mailbox = Mailbox::new(1, Backpressure::Block);
        let mut inbox = mailbox.inbox().unwrap();
        mailbox.pause();
        let _ = send(&mailbox, 1).unwrap();
        let resumer = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.resume())
        };
        assert_eq!(next(&mut inbox), Ok(1));
        resumer.join().unwrap();
    });
}

/// A mailbox with 0 in hand, and 1 and 2 within reach of the inbox.
fn with_window(backpressure: Backpressure) -> (Arc<Mailbox<u32>>, Inbox<u32>) {
    let mailbox = Mailbox::new(3, backpressure);
    let mut inbox = mailbox.inbox().unwrap();
    for value in 0..3 {
        let _ = send(&mailbox, value).unwrap();
    }
    assert_eq!(inbox.try_next(), Ok(()));
    assert_eq!(inbox.window_remaining(), 2);
    (mailbox, inbox)
}

#[test]
fn a_pause_is_exact_although_a_window_is_open() {
    model(|| {
        let (mailbox, mut inbox) = with_window(Backpressure::Block);
        let pauser = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                mailbox.pause();
                let paused = mailbox.books();
                thread::yield_now();
                let later = mailbox.books();
                assert_eq!(paused.queued, later.queued);
                assert!(paused.balance() && later.balance());
            })
        };
        let steps = [inbox.try_next(), inbox.try_next()];
        pauser.join().unwrap();
        assert!(steps != [Err(TryReceiveError::Empty), Ok(())]);
        assert_eq!(inbox.try_next(), Err(TryReceiveError::Empty));
    });
}

#[test]
fn the_more_urgent_goes_first_although_a_window_is_open() {
    model(|| {
        let (mailbox, mut inbox) = with_window(Backpressure::Block);
        let is_sent = Arc::new(AtomicBool::new(false));
        let sender = {
            let (mailbox, is_sent) = (Arc::clone(&mailbox), Arc::clone(&is_sent));
            thread::spawn(move || {
                let _ = mailbox.try_send(Band::System, 9).unwrap();
                is_sent.store(true, Ordering::Release);
            })
        };
        let mut order = Vec::new();
        for _ in 0..2 {
            let must_be_urgent = is_sent.load(Ordering::Acquire) && !order.contains(&9);
            assert_eq!(inbox.try_next(), Ok(()));
            order.push(*inbox.current().unwrap());
            assert!(!must_be_urgent || order.last() == Some(&9));
        }
        sender.join().unwrap();
        while inbox.try_next().is_ok() {
            order.push(*inbox.current().unwrap());
        }
        let urgent = order.iter().position(|&value| value == 9).unwrap();
        order.remove(urgent);
        assert_eq!(order, [1, 2]);
    });
}

#[test]
fn a_blocked_sender_is_admitted_by_the_very_next_delivery() {
    model(|| {
        let (mailbox, mut inbox) = with_window(Backpressure::Block);
        let _ = send(&mailbox, 3).unwrap();
        assert!(mailbox.is_full());
        let sender = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || block_on(mailbox.send(Band::Normal, 4)).unwrap())
        };
        assert_eq!(inbox.try_next(), Ok(()));
        // The inbox stands still: nothing but that delivery can have let the sender through.
        let _ = sender.join().unwrap();
        assert_eq!(mailbox.len(), 3);
        for expected in 1..=4 {
            assert_eq!(inbox.current(), Some(&expected));
            assert_eq!(inbox.try_next().is_ok(), expected < 4);
        }
        assert!(mailbox.books().balance());
    });
}

#[test]
fn an_eviction_is_exact_although_a_window_is_open() {
    model(|| {
        let (mailbox, mut inbox) = with_window(Backpressure::DropOldest);
        let _ = send(&mailbox, 3).unwrap();
        let sender = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                let admission = send(&mailbox, 4).unwrap();
                assert!(mailbox.len() <= 3);
                admission
            })
        };
        let mut delivered = Vec::new();
        for _ in 0..2 {
            assert_eq!(inbox.try_next(), Ok(()));
            delivered.push(*inbox.current().unwrap());
        }
        let admission = sender.join().unwrap();
        while inbox.try_next().is_ok() {
            delivered.push(*inbox.current().unwrap());
        }
        match admission {
            Admission::Accepted => assert_eq!(delivered, [1, 2, 3, 4]),
            Admission::Evicted(1) => assert_eq!(delivered, [2, 3, 4]),
            Admission::Evicted(2) => assert_eq!(delivered, [1, 3, 4]),
            other => panic!("{other:?} after {delivered:?}"),
        }
        assert!(mailbox.books().balance());
    });
}

#[test]
fn a_receive_beside_an_inbox_takes_from_its_window() {
    model(|| {
        let (mailbox, mut inbox) = with_window(Backpressure::Block);
        let receiver = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.try_receive().unwrap())
        };
        assert_eq!(inbox.try_next(), Ok(()));
        let ours = *inbox.current().unwrap();
        let theirs = receiver.join().unwrap();
        assert!(matches!((ours, theirs), (1, 2) | (2, 1)));
        assert!(mailbox.books().balance());
    });
}

#[test]
fn an_emptied_mailbox_leaves_the_inbox_only_what_it_has_in_hand() {
    model(|| {
        let (mailbox, mut inbox) = with_window(Backpressure::Block);
        let emptier = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                mailbox.close(Close::Now);
                let mut taken = Vec::new();
                mailbox.take_all(|value| taken.push(value));
                assert!(mailbox.books().balance());
                taken
            })
        };
        let mut delivered = Vec::new();
        while inbox.try_next().is_ok() {
            delivered.push(inbox.take().unwrap());
        }
        drop(inbox);
        delivered.extend(emptier.join().unwrap());
        assert_eq!(delivered, [1, 2]);
        let books = mailbox.books();
        assert_eq!((books.queued, books.in_hand), (0, 0));
        assert!(books.balance());
    });
}

#[test]
fn a_dropped_inbox_leaves_its_messages_to_others() {
    model(|| {
        let (mailbox, mut inbox) = with_window(Backpressure::Block);
        let receiver = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || block_on(mailbox.receive()).unwrap())
        };
        assert!(inbox.put_back());
        drop(inbox);
        let theirs = receiver.join().unwrap();
        let mut rest = Vec::new();
        while let Ok(value) = mailbox.try_receive() {
            rest.push(value);
        }
        rest.push(theirs);
        rest.sort_unstable();
        assert_eq!(rest, [0, 1, 2]);
        assert!(mailbox.books().balance());
    });
}

#[test]
fn a_receiver_waits_behind_an_inbox_that_is_dropped() {
    model(|| {
        let mailbox = Mailbox::new(1, Backpressure::Block);
        let mut inbox = mailbox.inbox().unwrap();
        let waker = Waker::noop();
        assert!(inbox.poll_next(&mut Context::from_waker(waker)).is_pending());
        let sender = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || send(&mailbox, 5).unwrap())
        };
        let dropper = thread::spawn(move || drop(inbox));
        assert_eq!(block_on(mailbox.receive()), Ok(5));
        let _ = sender.join().unwrap();
        dropper.join().unwrap();
    });
}
