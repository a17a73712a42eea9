//! Messages taken out of a mailbox for a kernel that runs elsewhere: in another process, on a
//! device.
//!
//! Such a kernel cannot read messages where they lie. Its executor takes them out by
//! [`Inbox::poll_lend`] and hands them on. They stay *in hand*, as many as there are, until each is
//! settled or goes back to the front of its band; the mailbox counts them and the executor holds
//! them.
//!
//! The far side is to be given a message only when its kernel waits for one: that a kernel of this
//! process does so, [`Mailbox::poll_awaited`] tells.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use crate::bands::Band;
use crate::clock::now_ns;
use crate::error::{Closed, TryReceiveError};
use crate::inbox::{Inbox, Outcome};
use crate::mailbox::{Locked, Mailbox};
use crate::wait_list::Wakes;

/// A message that was taken out of its mailbox and is still in hand.
#[derive(Debug)]
pub struct Lent<T> {
    /// The message.
    pub value: T,
    /// The band that it was queued in, and goes back to.
    pub band: Band,
    /// How long it was queued, in nanoseconds, if that was noted: see [`Inbox::queued_ns`].
    pub queued_ns: Option<u64>,
}

/// Whether the inbox waits for a message, as it found out when it looked last.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    is_awaited: bool,
    waker: Option<Waker>,
}

impl<T> Inbox<T> {
    /// Moves up to `max` messages to the end of `out`, at least one; each is in hand until it is
    /// given to [`settle_lent`](Self::settle_lent) or [`put_back_lent`](Self::put_back_lent). The
    /// message in hand of the other kind ([`poll_next`](Self::poll_next)) is settled as processed.
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
    pub fn poll_lend(
        &mut self,
        max: usize,
        out: &mut VecDeque<Lent<T>>,
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
        let outcome = locked.lend(max, out, &mut wakes);
        locked.finish_receive(outcome, &mut end.key, context, &mut wakes)
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
    fn lend(
        &mut self,
        max: usize,
        out: &mut VecDeque<Lent<T>>,
        wakes: &mut Wakes,
    ) -> Result<(), TryReceiveError> {
        self.can_deliver()?;
        for _ in 0..max {
            let Some((value, band, stamp)) = self.bands.lend() else { break };
            self.lent += 1;
            let queued_ns = (stamp != 0).then(|| now_ns().saturating_sub(stamp));
            out.push_back(Lent { value, band, queued_ns });
        }
        self.admit_blocked(wakes);
        Ok(())
    }

    fn give_back(&mut self, count: usize) {
        let left = self.lent.checked_sub(count as u64);
        self.lent = left.expect("messages that are settled should be lent");
    }

    /// The inbox found nothing, or something: whoever wants to know is told of the former.
    #[inline]
    pub(crate) fn set_awaited(&mut self, is_awaited: bool, wakes: &mut Wakes) {
        if self.awaited.is_awaited != is_awaited {
            self.awaited.is_awaited = is_awaited;
            if is_awaited {
                wakes.push(self.awaited.waker.take());
            }
        }
    }
}

impl<T> Mailbox<T> {
    /// Ready while the inbox waits for a message, or found none when it looked last. Otherwise the
    /// task of `context` is woken when that happens; of several, the one that polled last.
    pub fn poll_awaited(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut wakes = Wakes::default();
        let mut locked = self.lock();
        if locked.awaited.is_awaited {
            return Poll::Ready(());
        }
        wakes.discard(locked.awaited.waker.replace(context.waker().clone()));
        Poll::Pending
    }
}
