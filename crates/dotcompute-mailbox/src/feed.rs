//! A ring from one thread into a task: records at the pace of the ring, and either end may sleep.
//!
//! The [`ring`](crate::ring)'s own doorbells ([`Rings`](crate::ring::Rings)) put threads to sleep and
//! cost each publish a fence. Here the ends sleep as tasks do, by a waker, and the fence is paid by
//! whoever goes to sleep, not by whoever publishes: see `heavy_barrier` in `sys.rs`.
//!
//! The receiver's close is exact. A push that succeeded is among what the receiver reads until it finds
//! nothing more; a later one gives its record back.
//!
//! # Who writes what
//!
//! | word | written by | read by |
//! |---|---|---|
//! | `Bed::flags`, ASLEEP | its end sets it; cleared by whoever wakes it, or by itself | both |
//! | `Bed::flags`, CLOSED | the receiver, in its own bed | the sender |
//! | `Bed::waker` | under its lock | under its lock |
//! | `Shared::last` | the receiver, once | the sender, once it saw CLOSED |
//!
//! # Edges
//!
//! | name | release | acquire | makes visible |
//! |---|---|---|---|
//! | `feed.bed` | barrier in `Bed::call` | barrier in `Bed::lie_down`, `FeedReceiver::close` | either the other's news or the wish to be woken, or the close |
//! | `feed.last` | `FeedReceiver::close`, `last` | `FeedSender::heed`, `last` | where the receiver will stop |

use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::ring::{Consumer, Producer, PushError, ring};
use crate::sync::{Arc, AtomicU32, AtomicU64, Mutex, Ordering, lock, spin_loop};
use crate::sys;
use crate::wait::{Spin, block_on_until, let_others_run};

/// A ring of `capacity` records from one sender into one task.
///
/// ```
/// use std::task::{Context, Poll, Waker};
///
/// let (mut sender, mut receiver) = dotcompute_mailbox::feed::feed(4);
/// for number in 0..4 {
///     sender.try_push(number).unwrap();
/// }
/// assert!(sender.try_push(4).unwrap_err().is_full());
/// let sum = receiver.read(16, |numbers| numbers.iter().sum::<i32>());
/// assert_eq!(sum, Some(6));
/// assert_eq!(receiver.poll_ready(&mut Context::from_waker(Waker::noop()), false), Poll::Pending);
/// receiver.close();
/// assert!(!sender.try_push(5).unwrap_err().is_full());
/// ```
///
/// # Panics
///
/// If `capacity` is 0 or above 2^31.
pub fn feed<T: Copy + Send>(capacity: usize) -> (FeedSender<T>, FeedReceiver<T>) {
    sys::prepare_barriers();
    let (producer, consumer) = ring(capacity);
    let shared = Arc::new(Shared {
        receiver: Bed::default(),
        sender: Bed::default(),
        last: AtomicU64::new(OPEN),
    });
    let sender =
        FeedSender { producer, shared: Arc::clone(&shared), ended: false, spin: Spin::default() };
    (sender, FeedReceiver { consumer, shared, last: None, spin: Spin::default() })
}

/// The value of `last` while the feed is open: a position that nobody comes to.
const OPEN: u64 = u64::MAX;

const ASLEEP: u32 = 1;
const CLOSED: u32 = 2;

/// What both ends share beside the ring.
struct Shared {
    receiver: Bed,
    sender: Bed,
    /// How many records the receiver reads in all, once it has closed.
    last: AtomicU64,
}

impl Shared {
    fn is_closed(&self) -> bool {
        // Relaxed: a word by itself, or ordered by the barrier in `lie_down`.
        self.receiver.flags.load(Ordering::Relaxed) & CLOSED != 0
    }
}

/// Where one end sleeps. On a line of its own: the other end looks at it after each publish, and it
/// changes seldom.
#[derive(Default)]
#[repr(align(128))]
struct Bed {
    flags: AtomicU32,
    waker: Mutex<Option<Waker>>,
}

impl Bed {
    /// For the other end, once it has published news: its flags, of which those that matter are rare.
    #[inline(always)]
    fn call(&self) -> u32 {
        // SYNC(feed.bed) release, the store-load race: the news was stored and now the flags are
        // loaded; whoever sleeps or closes stores a flag, passes a barrier and then looks at the news.
        // One of both sees the other. The heavy barrier in `lie_down` and `close` orders this thread
        // too, so that here it is the compiler alone that must not swap the two.
        sys::light_barrier();
        // Relaxed: ordered by the barriers.
        self.flags.load(Ordering::Relaxed)
    }

    /// For the receiver, once it has made room.
    #[inline]
    fn call_and_wake(&self) {
        if self.call() & ASLEEP != 0 {
            self.wake();
        }
    }

    /// Wakes who sleeps here.
    #[cold]
    fn wake(&self) {
        // Relaxed: the waker is under the lock.
        self.flags.fetch_and(!ASLEEP, Ordering::Relaxed);
        let waker = lock(&self.waker).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// From here on the task of `context` is woken by the next news. The caller has to look once more.
    fn lie_down(&self, context: &Context<'_>) {
        let before = lock(&self.waker).replace(context.waker().clone());
        drop(before);
        // Relaxed: ordered by the barrier.
        self.flags.fetch_or(ASLEEP, Ordering::Relaxed);
        // SYNC(feed.bed) acquire: see `call`.
        sys::heavy_barrier();
    }

    /// There was news after all.
    fn get_up(&self) {
        // Relaxed: a wake-up that is under way all the same does no harm.
        self.flags.fetch_and(!ASLEEP, Ordering::Relaxed);
        let waker = lock(&self.waker).take();
        drop(waker);
    }
}

/// The end of a feed that pushes. There is one; it may move to another thread.
pub struct FeedSender<T> {
    producer: Producer<T>,
    shared: Arc<Shared>,
    /// The receiver has closed.
    ended: bool,
    spin: Spin,
}

impl<T: Copy + Send> FeedSender<T> {
    /// Pushes `value`, if there is room.
    ///
    /// # Errors
    ///
    /// The value comes back if the feed is full, or closed.
    #[inline]
    pub fn try_push(&mut self, value: T) -> Result<(), PushError<T>> {
        if self.ended {
            return Err(PushError::Closed(value));
        }
        if let Err(error) = self.producer.try_push(value) {
            self.ended = self.shared.is_closed();
            return Err(if self.ended { PushError::Closed(value) } else { error });
        }
        match self.shared.receiver.call() {
            0 => Ok(()),
            flags if self.heed(flags, 1) == 1 => Ok(()),
            _ => Err(PushError::Closed(value)),
        }
    }

    /// Pushes as many of `values` as fit, in order, and publishes them all at once; how many, which is
    /// 0 also if the feed is closed.
    pub fn push_slice(&mut self, values: &[T]) -> usize {
        if self.ended {
            return 0;
        }
        match self.producer.push_slice(values) {
            0 => 0,
            pushed => match self.shared.receiver.call() {
                0 => pushed,
                flags => self.heed(flags, pushed),
            },
        }
    }

    /// Pushes `value`; waits while the feed is full.
    ///
    /// # Errors
    ///
    /// The value comes back if the feed is closed.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, the value was not pushed.
    pub async fn push(&mut self, value: T) -> Result<(), PushError<T>> {
        loop {
            match self.try_push(value) {
                Err(PushError::Full(_)) => poll_fn(|context| self.poll_room(context)).await,
                done => return done,
            }
        }
    }

    /// [`push`](Self::push) that waits on the calling thread, at most until `deadline`.
    ///
    /// # Errors
    ///
    /// The value comes back if the feed is closed, or was full until then.
    #[inline]
    pub fn push_blocking(
        &mut self,
        value: T,
        deadline: Option<Instant>,
    ) -> Result<(), PushError<T>> {
        match self.try_push(value) {
            Err(PushError::Full(_)) => self.wait_for_room(value, deadline),
            done => done,
        }
    }

    #[cold]
    fn wait_for_room(&mut self, value: T, deadline: Option<Instant>) -> Result<(), PushError<T>> {
        let Self { producer, shared, spin, .. } = self;
        let mut ready = || producer.free() > 0 || shared.is_closed();
        let _ = spin.until(&mut ready) || let_others_run(ready);
        let push = std::pin::pin!(self.push(value));
        block_on_until(push, deadline).unwrap_or(Err(PushError::Full(value)))
    }

    fn poll_room(&mut self, context: &Context<'_>) -> Poll<()> {
        let Self { producer, shared, .. } = self;
        let ready = || producer.free() > 0 || shared.is_closed();
        if ready() {
            return Poll::Ready(());
        }
        shared.sender.lie_down(context);
        if ready() {
            shared.sender.get_up();
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// The receiver sleeps or has closed; how many of the last `pushed` records count.
    #[cold]
    fn heed(&mut self, flags: u32, pushed: usize) -> usize {
        if flags & ASLEEP != 0 {
            self.shared.receiver.wake();
        }
        if flags & CLOSED == 0 {
            return pushed;
        }
        self.ended = true;
        let last = loop {
            // SYNC(feed.last) acquire: pairs with the release in `FeedReceiver::close`.
            match self.shared.last.load(Ordering::Acquire) {
                // It is between two lines of `close`.
                OPEN if cfg!(loom) => spin_loop(),
                OPEN => std::thread::yield_now(),
                last => break last,
            }
        };
        let beyond = self.producer.position().wrapping_sub(last);
        pushed.saturating_sub(usize::try_from(beyond).unwrap_or(usize::MAX))
    }

    /// How many records the receiver has not taken yet.
    pub fn waiting(&self) -> usize {
        self.producer.capacity() - self.producer.free()
    }

    /// How many records fit.
    pub fn capacity(&self) -> usize {
        self.producer.capacity()
    }
}

impl<T> fmt::Debug for FeedSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeedSender").field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// The end of a feed that reads. Dropping it closes the feed; what it has not read is lost then.
pub struct FeedReceiver<T> {
    consumer: Consumer<T>,
    shared: Arc<Shared>,
    /// Where it stops, once it has closed.
    last: Option<u64>,
    spin: Spin,
}

impl<T> FeedReceiver<T> {
    /// Whether there is something to read.
    #[inline]
    pub fn has_more(&self) -> bool {
        self.readable(1) > 0
    }

    /// How many records can be read, at most `max`.
    fn readable(&self, max: usize) -> usize {
        let left = match self.last {
            None => max,
            Some(last) => {
                max.min(usize::try_from(last.wrapping_sub(self.consumer.position())).unwrap_or(max))
            }
        };
        self.consumer.len().min(left)
    }

    /// Calls `f` with the oldest records, at most `max`, where they lie, and frees them, also if it
    /// panics; `None` if there is none.
    #[cfg(not(loom))]
    #[inline]
    pub fn read<R>(&mut self, max: usize, f: impl FnOnce(&[T]) -> R) -> Option<R> {
        self.read_if(max, |records| Some(f(records)))
    }

    /// [`read`](Self::read) of what `f` has a use for: if it returns `None`, all stay where they are.
    #[cfg(not(loom))]
    #[inline]
    pub fn read_if<R>(&mut self, max: usize, f: impl FnOnce(&[T]) -> Option<R>) -> Option<R> {
        let most = self.readable(max);
        let chunk = (most > 0).then(|| self.consumer.read_chunk(most))?.ok()?;
        let count = chunk.as_slices().0.len();
        let mut taking = Taking { chunk, count, sender: &self.shared.sender };
        let result = f(taking.chunk.as_slices().0);
        if result.is_none() {
            taking.count = 0;
        }
        result
    }

    /// Takes the oldest record.
    #[cfg(loom)]
    pub fn pop(&mut self) -> Option<T> {
        if !self.has_more() {
            return None;
        }
        let value = self.consumer.try_pop().ok();
        self.shared.sender.call_and_wake();
        value
    }

    /// Ready once there is something to read. Otherwise the task of `context` is woken when there is;
    /// with `spins` only after a spin and some turns of others, as [`wait`](crate::wait) does it, for a task that has a thread
    /// to itself.
    pub fn poll_ready(&mut self, context: &mut Context<'_>, spins: bool) -> Poll<()> {
        if self.has_more() {
            return Poll::Ready(());
        }
        if spins {
            let consumer = &self.consumer;
            let mut ready = || !consumer.is_empty();
            let came = self.spin.until(&mut ready) || let_others_run(ready);
            if came && self.has_more() {
                return Poll::Ready(());
            }
        }
        self.shared.receiver.lie_down(context);
        if self.has_more() {
            self.shared.receiver.get_up();
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Takes no more records than were pushed by now.
    pub fn close(&mut self) {
        if self.last.is_some() {
            return;
        }
        // Relaxed: ordered by the barrier.
        self.shared.receiver.flags.fetch_or(CLOSED, Ordering::Relaxed);
        // SYNC(feed.bed) acquire: see `Bed::call`. A push that does not see the flag is seen here.
        sys::heavy_barrier();
        let last = self.consumer.position().wrapping_add(self.consumer.len() as u64);
        self.last = Some(last);
        // SYNC(feed.last) release: pairs with the acquire in `FeedSender::heed`.
        self.shared.last.store(last, Ordering::Release);
        // It may wait for room that nobody makes any more.
        self.shared.sender.wake();
    }
}

/// Frees so many records of a chunk when it is dropped.
#[cfg(not(loom))]
struct Taking<'a, T> {
    chunk: crate::ring::ReadChunk<'a, T>,
    count: usize,
    sender: &'a Bed,
}

#[cfg(not(loom))]
impl<T> Drop for Taking<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if self.count > 0 {
            self.chunk.free(self.count);
            self.sender.call_and_wake();
        }
    }
}

impl<T> Drop for FeedReceiver<T> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<T> fmt::Debug for FeedReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeedReceiver").field("closed", &self.last.is_some()).finish_non_exhaustive()
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
