//! Messages taken out of a mailbox for a kernel that runs elsewhere: in another process, on a
//! device.
//!
//! Such a kernel cannot read messages where they lie. Its executor takes them out by
//! [`Inbox::poll_lend`] and hands them on. They stay *in hand*, as many as there are, until each is
//! settled or goes back to the front of its band; the mailbox counts them and the executor holds
//! them.
//!
//! A kernel may also get messages past its mailbox, from others that run where it does. They are
//! adopted when that is known: from then on they are in hand as if they had been lent.
//!
//! The far side is to be given a message only when its kernel waits for one: that a kernel of this
//! process does so, [`Mailbox::books_awaited`] tells.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use crate::bands::Band;
use crate::books::Books;
use crate::error::{Closed, TryReceiveError};
use crate::inbox::{Inbox, Outcome, Times};
use crate::mailbox::{Close, Locked, Mailbox};
use crate::wait_list::Wakes;

/// A message that was taken out of its mailbox and is still in hand.
#[derive(Debug)]
pub struct Lent<T> {
    /// The message.
    pub value: T,
    /// The band that it was queued in, and goes back to.
    pub band: Band,
    /// When it was handed out and how long it was queued, if that was noted: see
    /// [`Inbox::take_times`].
    pub times: Option<Times>,
}

impl<T> Inbox<T> {
    /// Moves up to `max` messages, at least one, to the end of `out`, as what `keep` makes of each; each
    /// is in hand until it is given to [`settle_lent`](Self::settle_lent) or
    /// [`put_back_lent`](Self::put_back_lent). The message in hand of the other kind
    /// ([`poll_next`](Self::poll_next)) is settled as processed.
    ///
    /// `keep` is called under the mailbox's lock.
    ///
    /// Pending while the mailbox is empty or paused; `context`'s task is woken when there may be
    /// more.
    ///
    /// # Errors
    ///
    /// [`Closed`] once the mailbox is closed and hands out nothing more.
    ///
    /// # Panics
    ///
    /// If dropping the settled value panics.
    ///
    /// # Cancel safety
    ///
    /// Messages are taken exactly when this returns ready.
    pub fn poll_lend<K>(
        &mut self,
        max: usize,
        out: &mut VecDeque<K>,
        keep: fn(Lent<T>) -> K,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Closed>> {
        drop(self.take());
        // Not under the lock.
        out.reserve(max.min(self.mailbox.len()).max(1));
        let max = max.min(out.capacity() - out.len());
        let Self { mailbox, end } = self;
        let mut wakes = Wakes::default();
        let mut locked = mailbox.lock();
        end.settle_hand(&mut locked);
        let outcome = locked.lend(max, out, keep, &mut wakes);
        locked.finish_receive(outcome, &mut end.place, context, &mut wakes)
    }

    /// Counts `count` messages that came to the kernel past the mailbox: as accepted, and as lent.
    pub fn adopt(&mut self, count: usize) {
        self.mailbox.lock().adopt(count);
    }

    /// [`adopt`](Self::adopt) of messages that the kernel is about to handle, unless the mailbox is paused
    /// or hands out nothing more; whether it did.
    pub fn try_adopt(&mut self, count: usize) -> bool {
        let mut locked = self.mailbox.lock();
        let goes_on = !locked.paused && locked.closed != Some(Close::Now);
        if goes_on {
            locked.adopt(count);
        }
        goes_on
    }

    /// Whether the mailbox is paused. May have changed when this returns.
    pub fn is_paused(&self) -> bool {
        self.mailbox.is_paused()
    }

    /// Counts `count` messages that were lent as settled by `outcome`; their values are the
    /// caller's.
    ///
    /// # Panics
    ///
    /// If fewer are lent.
    pub fn settle_lent(&mut self, count: usize, outcome: Outcome) {
        let mut locked = self.mailbox.lock();
        locked.give_back(count);
        (0..count).for_each(|_| locked.count(outcome));
    }

    /// Puts a message that was lent back to the front of its band, also when the mailbox is full;
    /// of several, the last one first. `delivered`: its kernel had received it, so that this counts
    /// as a redelivery.
    ///
    /// # Panics
    ///
    /// If none is lent.
    pub fn put_back_lent(&mut self, lent: Lent<T>, delivered: bool) {
        let Self { mailbox, end } = self;
        let mut wakes = Wakes::default();
        let mut locked = mailbox.lock();
        end.settle_hand(&mut locked);
        locked.give_back(1);
        locked.bands.push_front(lent.band, lent.value);
        locked.unprocessed += 1;
        locked.redelivered += u64::from(delivered);
        locked.note_high_water();
        locked.notify_one(&mut wakes);
    }
}

impl<T> Locked<'_, T> {
    fn lend<K>(
        &mut self,
        max: usize,
        out: &mut VecDeque<K>,
        keep: fn(Lent<T>) -> K,
        wakes: &mut Wakes,
    ) -> Result<(), TryReceiveError> {
        self.can_deliver()?;
        for _ in 0..max {
            let Some((value, band, stamp)) = self.bands.lend() else { break };
            self.lent += 1;
            let times = Times::since(stamp);
            out.push_back(keep(Lent { value, band, times }));
        }
        self.admit_blocked(wakes);
        Ok(())
    }

    fn adopt(&mut self, count: usize) {
        self.accepted += count as u64;
        self.adopted += count as u64;
        self.lent += count as u64;
    }

    fn give_back(&mut self, count: usize) {
        let left = self.lent.checked_sub(count as u64);
        self.lent = left.expect("messages that are settled should be lent");
    }

    /// The inbox found nothing, or something: whoever wants to know is told of the former.
    #[inline]
    pub(crate) fn set_awaited(&mut self, is_awaited: bool, wakes: &mut Wakes) {
        if self.is_awaited != is_awaited {
            self.is_awaited = is_awaited;
            if is_awaited {
                wakes.push(self.awaiter.take());
            }
        }
    }
}

impl<T> Mailbox<T> {
    /// Counts a message that was to come past the mailbox, and ends undelivered: as accepted and as
    /// dead-lettered.
    pub fn pass_dead(&self) {
        let mut locked = self.lock();
        locked.accepted += 1;
        locked.dead_lettered += 1;
    }

    /// The books, and whether the inbox waits for a message or found none when it looked last; both
    /// as of one instant. When it begins to wait anew, the task of `context` is woken; of several,
    /// the one that asked last.
    pub fn books_awaited(&self, context: &mut Context<'_>) -> (Books, bool) {
        let mut wakes = Wakes::default();
        let mut locked = self.lock();
        wakes.discard(locked.awaiter.replace(context.waker().clone()));
        (locked.books(), locked.is_awaited)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::mailbox::Backpressure;
    use std::future::Future;
    use std::task::Waker;

    fn lent(inbox: &mut Inbox<u32>, max: usize) -> Vec<Lent<u32>> {
        let mut out = VecDeque::new();
        let _ =
            inbox.poll_lend(max, &mut out, |lent| lent, &mut Context::from_waker(Waker::noop()));
        out.into()
    }

    fn values(lent: &[Lent<u32>]) -> Vec<u32> {
        lent.iter().map(|lent| lent.value).collect()
    }

    #[test]
    fn what_is_lent_is_in_hand_until_it_is_settled_or_goes_back_in_order() {
        let mailbox = Mailbox::new(4, Backpressure::Reject);
        for (band, value) in [(Band::Normal, 1), (Band::Normal, 2), (Band::High, 0), (Band::Low, 3)]
        {
            let _ = mailbox.try_send(band, value).unwrap();
        }
        let mut inbox = mailbox.inbox().unwrap();
        let first = lent(&mut inbox, 3);
        assert_eq!(values(&first), [0, 1, 2]);
        let books = mailbox.books();
        assert!(books.balance() && (books.in_hand, books.queued) == (3, 1), "{books:?}");
        inbox.settle_lent(1, Outcome::Processed);
        // It is full, and takes back what is its own.
        for value in 4..7 {
            let _ = mailbox.try_send(Band::Normal, value).unwrap();
        }
        for lent in first.into_iter().skip(1).rev() {
            let delivered = lent.value == 1;
            inbox.put_back_lent(lent, delivered);
        }
        let books = mailbox.books();
        assert_eq!((books.in_hand, books.queued, books.processed), (0, 6, 1));
        assert_eq!(books.redelivered, 1);
        assert!(books.balance(), "{books:?}");
        assert_eq!(values(&lent(&mut inbox, 10)), [1, 2, 4, 5, 6, 3]);
        inbox.settle_lent(4, Outcome::DeadLettered);
        inbox.settle_lent(2, Outcome::Expired);
        let books = mailbox.books();
        assert_eq!((books.dead_lettered, books.expired, books.in_hand), (4, 2, 0));
        assert!(books.balance(), "{books:?}");
    }

    #[test]
    fn what_came_past_the_mailbox_is_in_its_books_once_it_is_adopted() {
        let mailbox = Mailbox::new(1, Backpressure::Block);
        let _ = mailbox.try_send(Band::Normal, 1).unwrap();
        let mut inbox = mailbox.inbox().unwrap();
        let first = lent(&mut inbox, 1);
        assert!(inbox.try_adopt(3));
        let books = mailbox.books();
        assert_eq!((books.accepted, books.in_hand, books.processed), (4, 4, 0));
        inbox.settle_lent(2, Outcome::Processed);
        inbox.settle_lent(1, Outcome::DeadLettered);
        first.into_iter().for_each(|lent| inbox.put_back_lent(lent, false));
        let books = mailbox.books();
        assert_eq!((books.processed, books.dead_lettered, books.queued), (2, 1, 1));
        assert!(books.balance(), "{books:?}");
        // One that is adopted can go into the mailbox: to be delivered again.
        inbox.adopt(1);
        inbox.put_back_lent(Lent { value: 5, band: Band::High, times: None }, true);
        assert_eq!(values(&lent(&mut inbox, 9)), [5, 1]);
        assert!(mailbox.books().balance());
        // None that is to be handled at once, where nothing is to be.
        mailbox.pause();
        assert!(!inbox.try_adopt(1));
        mailbox.resume();
        mailbox.close(Close::Drain);
        assert!(inbox.try_adopt(1));
        mailbox.close(Close::Now);
        assert!(!inbox.try_adopt(1));
        assert_eq!(mailbox.books().accepted, 6);
    }

    #[test]
    fn what_is_lent_makes_room_and_outlives_its_inbox() {
        let mailbox = Mailbox::new(1, Backpressure::Block);
        let _ = mailbox.try_send(Band::Normal, 1).unwrap();
        let mut send = mailbox.send(Band::Normal, 2);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(std::pin::Pin::new(&mut send).poll(&mut cx).is_pending());
        let mut inbox = mailbox.inbox().unwrap();
        let first = lent(&mut inbox, 1);
        assert!(std::pin::Pin::new(&mut send).poll(&mut cx).is_ready(), "there is room");
        drop(inbox);
        assert_eq!(mailbox.books().in_hand, 1);
        let mut inbox = mailbox.inbox().unwrap();
        first.into_iter().for_each(|lent| inbox.put_back_lent(lent, false));
        assert_eq!(values(&lent(&mut inbox, 9)), [1, 2]);
        mailbox.close(Close::Drain);
        let closed = inbox.poll_lend(1, &mut VecDeque::new(), |lent| lent, &mut cx);
        assert_eq!(closed, Poll::Ready(Err(Closed)));
    }

    #[test]
    fn that_a_message_is_awaited_is_told_each_time() {
        struct Count(crate::sync::AtomicU64);
        impl std::task::Wake for Count {
            fn wake(self: std::sync::Arc<Self>) {
                // Relaxed: one thread.
                self.0.fetch_add(1, crate::sync::Ordering::Relaxed);
            }
        }
        let count = std::sync::Arc::new(Count(crate::sync::AtomicU64::new(0)));
        let waker = Waker::from(std::sync::Arc::clone(&count));
        let mut watch = Context::from_waker(&waker);
        let mailbox = Mailbox::new(4, Backpressure::Reject);
        let mut inbox = mailbox.inbox().unwrap();
        let mut told = |expected: u64| {
            let (books, awaited) = mailbox.books_awaited(&mut watch);
            assert_eq!(count.0.load(crate::sync::Ordering::Relaxed), expected);
            (books.processed, awaited)
        };
        assert_eq!(told(0), (0, false));
        for turn in 1..=3 {
            assert_eq!(inbox.try_next(), Err(TryReceiveError::Empty));
            assert_eq!(told(turn), (turn - 1, true));
            let _ = mailbox.try_send(Band::Normal, 7).unwrap();
            assert_eq!(told(turn), (turn - 1, true), "it has not looked again");
            assert_eq!(inbox.try_next(), Ok(()));
            assert_eq!(told(turn), (turn - 1, false));
        }
    }
}
