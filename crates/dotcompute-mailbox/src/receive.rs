//! Receives that wait for a message.

use crate::error::Closed;
use crate::mailbox::Mailbox;
use crate::receivers::Place;
use crate::wait_list::Wakes;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A receive in progress, made by [`Mailbox::receive`].
#[must_use = "a receive does nothing unless it is awaited"]
pub struct Receive<'a, T> {
    wait: Wait<'a, T>,
}

impl<'a, T> Receive<'a, T> {
    pub(crate) fn new(mailbox: &'a Mailbox<T>) -> Self {
        Self { wait: Wait { mailbox, place: None } }
    }
}

impl<T> Future for Receive<'_, T> {
    type Output = Result<T, Closed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut wakes = Wakes::default();
        let Wait { mailbox, place } = &mut self.wait;
        let mut locked = mailbox.lock();
        let outcome = locked.deliver(&mut wakes);
        locked.finish_receive(outcome, place, context, &mut wakes)
    }
}

impl<T> fmt::Debug for Receive<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receive").finish_non_exhaustive()
    }
}

/// A receive in progress that owns its share of the mailbox, made by [`Mailbox::receive_owned`]: for
/// those who cannot borrow it for as long as they wait.
#[must_use = "a receive does nothing unless it is polled"]
pub struct ReceiveOwned<T> {
    mailbox: Arc<Mailbox<T>>,
    place: Option<Place>,
}

/// Nothing in it is ever pinned.
impl<T> Unpin for ReceiveOwned<T> {}

impl<T> ReceiveOwned<T> {
    pub(crate) fn new(mailbox: &Arc<Mailbox<T>>) -> Self {
        Self { mailbox: Arc::clone(mailbox), place: None }
    }
}

impl<T> Future for ReceiveOwned<T> {
    type Output = Result<T, Closed>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut wakes = Wakes::default();
        let Self { mailbox, place } = &mut *self;
        let mut locked = mailbox.lock();
        let outcome = locked.deliver(&mut wakes);
        locked.finish_receive(outcome, place, context, &mut wakes)
    }
}

impl<T> Drop for ReceiveOwned<T> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            let mut wakes = Wakes::default();
            self.mailbox.lock().cancel_receive(place, &mut wakes);
        }
    }
}

impl<T> fmt::Debug for ReceiveOwned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveOwned").finish_non_exhaustive()
    }
}

/// A receive of several messages in progress, made by [`Mailbox::receive_batch`].
#[must_use = "a receive does nothing unless it is awaited"]
pub struct ReceiveBatch<'a, T> {
    wait: Wait<'a, T>,
    max: usize,
    out: &'a mut Vec<T>,
}

impl<'a, T> ReceiveBatch<'a, T> {
    pub(crate) fn new(mailbox: &'a Mailbox<T>, max: usize, out: &'a mut Vec<T>) -> Self {
        Self { wait: Wait { mailbox, place: None }, max, out }
    }
}

impl<T> Future for ReceiveBatch<'_, T> {
    type Output = Result<usize, Closed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { wait: Wait { mailbox, place }, max, out } = &mut *self;
        let room = mailbox.reserve_batch(*max, out);
        let mut wakes = Wakes::default();
        let mut locked = mailbox.lock();
        let outcome = locked.deliver_batch(room, out, &mut wakes);
        locked.finish_receive(outcome, place, context, &mut wakes)
    }
}

impl<T> fmt::Debug for ReceiveBatch<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveBatch").field("max", &self.max).finish_non_exhaustive()
    }
}

/// A place in the line of receivers, given up on drop.
struct Wait<'a, T> {
    mailbox: &'a Mailbox<T>,
    place: Option<Place>,
}

impl<T> Drop for Wait<'_, T> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            let mut wakes = Wakes::default();
            self.mailbox.lock().cancel_receive(place, &mut wakes);
        }
    }
}
