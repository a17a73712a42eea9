//! A feed: a stream of records from one thread into a compiled kernel, past its mailbox.
//!
//! A message that is sent takes the mailbox's lock, gets an id and lies in a slot with it; a record that
//! is fed takes a place in a ring of its kind's size, and nothing else. To the kernel each is a message
//! all the same: its handler sees them in order, and its books count each one. They are in hand from
//! when it takes them to when the handler is done with them; those that wait in the ring are no part of
//! the books. What the mailbox has goes first.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use dotcompute_mailbox::feed::{FeedReceiver, FeedSender};
use dotcompute_mailbox::ring::PushError;
use dotcompute_mailbox::sync::lock;

use super::RecordMessage;
use crate::dead_letter::{DeadLetter, DeadLetterReason};
use crate::kernel::Cell;
use crate::message::{Envelope, Message};
use crate::record::{Record, RecordLayout};
use crate::timer;

/// Feeds a compiled kernel with records, from one thread: made by
/// [`CompiledHandler::feed`](super::CompiledHandler::feed).
///
/// Records that were pushed before the kernel is activated wait for it, as do those that are pushed
/// while it is deactivated or restarts. A kernel that drains handles all that were pushed by then; what
/// one that ends otherwise has not handled becomes dead letters. From then on a push gives its record
/// back.
///
/// A record has no id, priority or asker. What the handler replies to it goes to the kernel's output,
/// and names no message. If it fails, its kernel fails with that one record in hand.
///
/// ```
/// # use dotcompute_core::compiled::CompiledHandler;
/// # use dotcompute_core::{Message, Record, Runtime, Terminate};
/// # use std::ffi::c_void;
/// #[derive(Clone, Copy, Message)]
/// #[message(record, crate = "dotcompute_core")]
/// #[repr(C)]
/// struct Amount {
///     value: i64,
/// }
/// # unsafe extern "C" fn add(
/// #     message: *const c_void,
/// #     state: *mut c_void,
/// #     _: *mut c_void,
/// #     _: *mut dotcompute_core::abi::HandlerContext,
/// # ) -> i32 {
/// #     // SAFETY: the caller passes records of these types.
/// #     unsafe { (*state.cast::<Amount>()).value += (*message.cast::<Amount>()).value };
/// #     0
/// # }
/// // SAFETY: `add` takes an `Amount`, over a state that is one.
/// let handler = unsafe { CompiledHandler::from_raw(add, Amount::LAYOUT) }.state(&Amount { value: 0 });
/// let (handler, mut feed) = handler.feed::<Amount>(1024)?;
/// let total = handler.state_reader();
/// let runtime = Runtime::builder().build();
/// let kernel =
///     runtime.kernel("sum").executor("thread").launch_compiled::<Amount, Amount>(handler)?;
/// kernel.activate()?;
/// for value in 1..=100 {
///     feed.push_blocking(Amount { value }, None)?;
/// }
/// kernel.terminate_blocking(Terminate::drain());
/// assert_eq!(total.read::<Amount>(std::time::Duration::ZERO).unwrap().value, 5050);
/// assert_eq!(kernel.books().processed, 100);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Feed<T: Record>(FeedSender<T>);

/// Why a handler has no such feed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FeedError {
    /// The records have another layout than the handler takes.
    #[error("records of '{fed}' do not have the layout of '{taken}', which the handler takes")]
    Layout {
        /// Those of the feed.
        fed: &'static str,
        /// Those of the handler.
        taken: &'static str,
    },
    /// It has a feed, and a feed has one sender.
    #[error("the handler has a feed already")]
    Taken,
    /// No such capacity.
    #[error("a feed of {0} records: 1 to 2^31 are possible")]
    Capacity(usize),
}

impl<T: Record> Feed<T> {
    /// Pushes a record, if there is room.
    ///
    /// # Errors
    ///
    /// The record comes back: `Full` if there is no room, `Closed` if the kernel takes no more.
    #[inline]
    pub fn try_push(&mut self, record: T) -> Result<(), PushError<T>> {
        self.0.try_push(record)
    }

    /// Pushes a record; waits while there is no room.
    ///
    /// # Errors
    ///
    /// The record comes back: `Closed` if the kernel takes no more.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, the record was not pushed.
    pub async fn push(&mut self, record: T) -> Result<(), PushError<T>> {
        self.0.push(record).await
    }

    /// [`push`](Self::push) that waits on the calling thread, for ever without a `timeout`.
    ///
    /// # Errors
    ///
    /// The record comes back: `Full` if there was no room in time, `Closed` if the kernel takes no more.
    #[inline]
    pub fn push_blocking(
        &mut self,
        record: T,
        timeout: Option<Duration>,
    ) -> Result<(), PushError<T>> {
        match timeout {
            None => self.0.push_blocking(record, None),
            Some(timeout) => self.0.push_blocking(record, timer::after(timeout)),
        }
    }

    /// Pushes as many of `records` as fit, in order and at once; how many, which is 0 also if the kernel
    /// takes no more.
    pub fn push_slice(&mut self, records: &[T]) -> usize {
        self.0.push_slice(records)
    }

    /// How many records the kernel has not handled yet. May have changed when this returns.
    pub fn waiting(&self) -> usize {
        self.0.waiting()
    }

    /// How many records fit.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl<T: Record> fmt::Debug for Feed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("record", &T::LAYOUT.name).finish_non_exhaustive()
    }
}

/// The kernel's end, whatever the records are.
trait FeedEnd: Send {
    /// Calls `run` with the bytes of the oldest records, at most `max`, and frees them if it says so;
    /// whether it did.
    fn read(&mut self, max: usize, run: &mut dyn FnMut(&[u8]) -> bool) -> bool;
    fn poll_ready(&mut self, cx: &mut TaskContext<'_>, spins: bool) -> Poll<()>;
    fn close(&mut self);
    fn has_more(&self) -> bool;
}

impl<T: Record> FeedEnd for FeedReceiver<T> {
    fn read(&mut self, max: usize, run: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let run = |records: &[T]| run(bytemuck::cast_slice(records)).then_some(());
        self.read_if(max, run).is_some()
    }

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>, spins: bool) -> Poll<()> {
        FeedReceiver::poll_ready(self, cx, spins)
    }

    fn close(&mut self) {
        FeedReceiver::close(self);
    }

    fn has_more(&self) -> bool {
        FeedReceiver::has_more(self)
    }
}

/// Where the kernel's end lies while no body has it.
pub(crate) struct FeedPlace {
    layout: &'static RecordLayout,
    rest: Mutex<Rest>,
}

enum Rest {
    /// Nobody has it.
    Here(Box<dyn FeedEnd>),
    /// A body has it.
    Out,
    /// The kernel has ended, and whoever has it is to bury what is in it.
    Over,
}

pub(super) fn feed<T: Record>(
    capacity: usize,
    taken: &'static RecordLayout,
) -> Result<(Arc<FeedPlace>, Feed<T>), FeedError> {
    if !T::LAYOUT.agrees_with(taken) {
        return Err(FeedError::Layout { fed: T::LAYOUT.name, taken: taken.name });
    }
    if capacity == 0 || capacity > 1 << 31 {
        return Err(FeedError::Capacity(capacity));
    }
    let (sender, receiver) = dotcompute_mailbox::feed::feed::<T>(capacity);
    let rest = Mutex::new(Rest::Here(Box::new(receiver)));
    Ok((Arc::new(FeedPlace { layout: taken, rest }), Feed(sender)))
}

/// What a kernel knows of its feed.
pub(crate) struct FeedOf<M> {
    place: Arc<FeedPlace>,
    message: fn(&'static RecordLayout, &[u8]) -> M,
}

impl<M: RecordMessage> FeedOf<M> {
    pub(crate) fn new(place: &Arc<FeedPlace>) -> Self {
        Self { place: Arc::clone(place), message: M::from_record }
    }
}

impl<M: Message> FeedOf<M> {
    /// The kernel has ended: closes the feed, and calls `bury` with what is left in it. Where a body
    /// still has the end, that does so when it is gone.
    pub(crate) fn end(&self, bury: &mut dyn FnMut(M)) {
        let rest = std::mem::replace(&mut *lock(&self.place.rest), Rest::Over);
        if let Rest::Here(end) = rest {
            self.bury(end, bury);
        }
    }

    fn bury(&self, mut end: Box<dyn FeedEnd>, bury: &mut dyn FnMut(M)) {
        let layout = self.place.layout;
        end.close();
        let mut each = |records: &[u8]| {
            records.chunks_exact(layout.bytes).for_each(|one| bury((self.message)(layout, one)));
            true
        };
        while end.read(usize::MAX, &mut each) {}
    }
}

/// The kernel's end while a body runs.
pub(super) struct FeedHold<M: Message, R: Message> {
    feed: FeedOf<M>,
    /// None once the kernel has ended.
    end: Option<Box<dyn FeedEnd>>,
    cell: Arc<Cell<M, R>>,
}

impl<M: RecordMessage, R: Message> FeedHold<M, R> {
    /// Takes the end for a body of the kernel.
    pub(super) fn take(place: &Arc<FeedPlace>, cell: &Arc<Cell<M, R>>) -> Self {
        let mut rest = lock(&place.rest);
        let end = match std::mem::replace(&mut *rest, Rest::Out) {
            Rest::Here(end) => Some(end),
            other => {
                *rest = other;
                None
            }
        };
        drop(rest);
        Self { feed: FeedOf::new(place), end, cell: Arc::clone(cell) }
    }
}

impl<M: Message, R: Message> FeedHold<M, R> {
    /// Whether there is something to read; the task is woken when there is.
    pub(super) fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> bool {
        // A kernel that shares its thread with others does not spin in their place.
        let spins = self.cell.executor == "thread";
        self.end.as_mut().is_some_and(|end| end.poll_ready(cx, spins).is_ready())
    }

    /// See [`FeedEnd::read`].
    pub(super) fn read(&mut self, max: usize, run: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.end.as_mut().is_some_and(|end| end.read(max, run))
    }

    /// Takes no more records than were pushed by now; whether there are any.
    pub(super) fn close(&mut self) -> bool {
        let Some(end) = &mut self.end else { return false };
        end.close();
        end.has_more()
    }
}

impl<M: Message, R: Message> Drop for FeedHold<M, R> {
    fn drop(&mut self) {
        let Some(end) = self.end.take() else { return };
        let mut rest = lock(&self.feed.place.rest);
        if !matches!(*rest, Rest::Over) {
            *rest = Rest::Here(end);
            return;
        }
        drop(rest);
        self.feed.bury(end, &mut |message| self.cell.bury_fed(message));
    }
}

impl<M: Message, R: Message> Cell<M, R> {
    /// The kernel has ended.
    pub(crate) fn end_feed(&self) {
        if let Some(feed) = self.feed.get() {
            feed.end(&mut |message| self.bury_fed(message));
        }
    }

    fn bury_fed(&self, message: M) {
        self.mailbox.pass_dead();
        let reason = DeadLetterReason::Undelivered;
        self.dead_letter(DeadLetter::of(&self.id, Envelope::new(message), reason, true));
    }
}
