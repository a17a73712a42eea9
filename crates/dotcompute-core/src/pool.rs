//! Pools: kernels of one kind behind one name.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use dotcompute_mailbox::sync::{AtomicU64, Ordering};
use dotcompute_mailbox::{self as mailbox, Books, wait};

use crate::context::Context;
use crate::error::{
    AskError, BoxError, ConnectError, KernelId, LaunchError, ReceiveError, SendError, StateError,
};
use crate::handler::Handler;
use crate::kernel::{
    Accept, AnyCell, KernelRef, Next, Output, Spread, Way, connect_stage, sealed, stop_all, types,
};
use crate::lifecycle::KernelState;
use crate::message::{Envelope, Message};
use crate::pipeline::{AnyNext, Stage, key};
use crate::runtime::{KernelBuilder, Shared};
use crate::terminate::{self, Terminate, Termination};
use crate::timer;

type KeyOf<M> = Box<dyn Fn(&M) -> u64 + Send + Sync>;

/// A pool being described, made by [`KernelBuilder::pool`]. What the builder says holds for each of
/// its workers, the capacity too.
#[must_use = "a pool exists once it is launched"]
pub struct PoolBuilder<'a> {
    pub(crate) kernel: KernelBuilder<'a>,
    pub(crate) workers: usize,
}

impl PoolBuilder<'_> {
    /// Launches the workers, each with a clone of `body`; see [`KernelBuilder::launch`].
    ///
    /// # Errors
    ///
    /// See [`LaunchError`]. If a worker cannot be launched, there is no pool.
    pub fn launch<M, R, F>(
        self,
        body: impl FnMut(Context<M, R>) -> F + Clone + Send + 'static,
    ) -> Result<Pool<M, R>, LaunchError>
    where
        M: Message,
        R: Message,
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.launch_each(|worker| worker.launch(body.clone()))
    }

    /// Launches the workers, each with handlers from a clone of `make`; see
    /// [`KernelBuilder::launch_handler`].
    ///
    /// # Errors
    ///
    /// As for [`launch`](Self::launch).
    pub fn launch_handler<H: Handler>(
        self,
        make: impl FnMut() -> H + Clone + Send + 'static,
    ) -> Result<Pool<H::In, H::Out>, LaunchError> {
        self.launch_each(|worker| worker.launch_handler(make.clone()))
    }

    /// Launches the workers, each as `launch` does with its settings.
    ///
    /// # Errors
    ///
    /// As for [`launch`](Self::launch).
    pub fn launch_each<M: Message, R: Message>(
        self,
        mut launch: impl FnMut(KernelBuilder<'_>) -> Result<KernelRef<M, R>, LaunchError>,
    ) -> Result<Pool<M, R>, LaunchError> {
        let Self { kernel, workers } = self;
        let id = kernel.id.clone();
        if workers == 0 {
            return Err(LaunchError::InvalidOption {
                kernel: id,
                option: "workers",
                value: "0".into(),
                expected: "1 or more",
            });
        }
        kernel.options.check(&id)?;
        let output = Output::<R>::new(&kernel.options);
        let mut launched: Vec<KernelRef<M, R>> = Vec::with_capacity(workers);
        for worker in 0..workers {
            let name = format!("{id}/{worker}");
            match launch(kernel.worker(name, Arc::clone(&output) as _)) {
                Ok(worker) => launched.push(worker),
                Err(error) => {
                    launched.iter().for_each(|worker| worker.stop(false));
                    return Err(error);
                }
            }
        }
        let shared = Arc::new(Workers {
            id: id.clone(),
            workers: launched,
            output,
            key: OnceLock::new(),
            turn: AtomicU64::new(0),
            runtime: Arc::downgrade(kernel.runtime.shared()),
        });
        let pool = Pool { shared };
        if let Err(error) = kernel.runtime.shared().add_pool(id, Arc::clone(&pool.shared) as _) {
            pool.shared.workers.iter().for_each(|worker| worker.stop(false));
            return Err(error);
        }
        Ok(pool)
    }
}

impl fmt::Debug for PoolBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder")
            .field("kernel", &self.kernel)
            .field("workers", &self.workers)
            .finish()
    }
}

/// Kernels of one kind behind one name, the *workers*; each has a mailbox of its own, and they share
/// their output. Cloning is one reference count.
///
/// Messages go to the workers in turn, and one whose mailbox is full is passed over while another
/// has room; or, after [`by_key`](Self::by_key), to the worker that their key says, where messages of
/// a key keep their order. A worker is also a kernel by its own name, `pool/0` and so on.
///
/// A worker that restarts keeps its messages, and its keys. One that has ended, or failed for good,
/// is passed over; where messages go by their keys, those of its keys are refused with its fault, and
/// all others go on. Receiving ends when all workers have ended.
///
/// ```
/// use dotcompute_core::{Context, Message, Runtime, Terminate};
///
/// struct Order {
///     customer: u64,
///     amount: u64,
/// }
/// impl Message for Order {
///     const TYPE_NAME: &'static str = "Order";
/// }
/// struct Sum(u64);
/// impl Message for Sum {
///     const TYPE_NAME: &'static str = "Sum";
/// }
///
/// let runtime = Runtime::builder().build();
/// let sums = runtime.kernel("sums").executor("thread").pool(4).launch(
///     |mut context: Context<Order, Sum>| async move {
///         let mut sums = std::collections::HashMap::new();
///         while let Ok(order) = context.receive().await {
///             let sum = sums.entry(order.customer).or_insert(0);
///             *sum += order.amount;
///             let sum = Sum(*sum);
///             context.reply(sum).await?;
///         }
///         Ok(())
///     },
/// )?;
/// let sums = sums.by_key(|order| order.customer);
/// sums.activate()?;
/// sums.ask_blocking(Order { customer: 7, amount: 2 }, None)?;
/// assert_eq!(sums.ask_blocking(Order { customer: 7, amount: 3 }, None)?.message.0, 5);
/// assert_eq!(sums.ask_blocking(Order { customer: 8, amount: 3 }, None)?.message.0, 3);
/// sums.terminate_blocking(Terminate::drain());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pool<M: Message, R: Message> {
    shared: Arc<Workers<M, R>>,
}

struct Workers<M: Message, R: Message> {
    id: KernelId,
    workers: Vec<KernelRef<M, R>>,
    output: Arc<Output<R>>,
    key: OnceLock<KeyOf<M>>,
    turn: AtomicU64,
    runtime: Weak<Shared>,
}

/// A pool without its message types, as its runtime has it.
pub(crate) trait AnyPool: Send + Sync {
    fn types(&self) -> String;
    fn state(&self) -> KernelState;
    fn cells(&self) -> Vec<Arc<dyn AnyCell>>;
    /// What kernels are connected to.
    fn next(self: Arc<Self>) -> AnyNext;
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<M: Message, R: Message> AnyPool for Workers<M, R> {
    fn types(&self) -> String {
        types::<M, R>()
    }

    fn state(&self) -> KernelState {
        self.workers[0].state()
    }

    fn cells(&self) -> Vec<Arc<dyn AnyCell>> {
        self.workers.iter().map(|worker| Arc::clone(&worker.cell) as _).collect()
    }

    fn next(self: Arc<Self>) -> AnyNext {
        let stage = Stage { id: self.id.clone(), place: key(&*self.output), cells: self.cells() };
        AnyNext { stage, types: types::<M, R>(), way: Box::new(Way::<M>::Pool(self)) }
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl<M: Message, R: Message> Spread<M> for Workers<M, R> {
    fn id(&self) -> &KernelId {
        &self.id
    }

    fn worker_for(&self, message: &M) -> &dyn Accept<M> {
        &*self.worker(message).cell
    }

    fn takes_turns(&self) -> bool {
        self.key.get().is_none()
    }

    fn is_living(&self) -> bool {
        self.workers.iter().any(|worker| !worker.is_stopping())
    }

    fn has_failed(&self) -> bool {
        self.workers.iter().any(|worker| worker.state() == KernelState::Failed)
    }
}

impl<M: Message, R: Message> Next<M> for Pool<M, R> {
    type Reply = R;
}

impl<M: Message, R: Message> sealed::Next<M> for Pool<M, R> {
    #[allow(private_interfaces, reason = "sealed")]
    fn next(&self) -> (Way<M>, Stage) {
        (Way::Pool(Arc::clone(&self.shared) as _), Arc::clone(&self.shared).next().stage)
    }
}

impl<M: Message, R: Message> Workers<M, R> {
    /// The worker that the message goes to.
    fn worker(&self, message: &M) -> &KernelRef<M, R> {
        let workers = &self.workers;
        let count = workers.len() as u64;
        if let Some(key) = self.key.get() {
            // By the high bits of a product with the golden ratio, which spreads small keys too
            // (Knuth, The Art of Computer Programming, 6.4).
            let spread = key(message).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            return &workers[((u128::from(spread) * u128::from(count)) >> 64) as usize];
        }
        // Relaxed: a turn; who gets which does not matter.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = |step: u64| &workers[((turn.wrapping_add(step)) % count) as usize];
        let living = || (0..count).map(in_turn).filter(|worker| !worker.is_stopping());
        let with_room = living().find(|worker| !worker.cell.mailbox.is_full());
        with_room.or_else(|| living().next()).unwrap_or_else(|| in_turn(0))
    }
}

impl<M: Message, R: Message> Pool<M, R> {
    pub(crate) fn from_any(pool: Arc<dyn Any + Send + Sync>) -> Option<Self> {
        let shared = pool.downcast::<Workers<M, R>>().ok()?;
        Some(Self { shared })
    }

    /// Sends messages to the workers by their keys from now on: equal keys to one worker. `key` runs
    /// in whoever sends, or replies where that is connected to the pool; it should be quick. If it
    /// panics, it does so there: a kernel that replies fails, and the reply is a dead letter. A batch
    /// of records goes to one worker as a whole: [`RecordBatch::key`](crate::RecordBatch::key) says
    /// the key of all its records, or that they do not agree. To be called before the pool is used: the first `key`
    /// that is given holds.
    #[must_use]
    pub fn by_key(self, key: impl Fn(&M) -> u64 + Send + Sync + 'static) -> Self {
        let _ = self.shared.key.set(Box::new(key));
        self
    }

    /// Its name.
    pub fn id(&self) -> &KernelId {
        &self.shared.id
    }

    /// Its workers, in order.
    pub fn workers(&self) -> &[KernelRef<M, R>] {
        &self.shared.workers
    }

    /// Starts all workers: see [`KernelRef::activate`].
    ///
    /// # Errors
    ///
    /// The first that a worker has; the others are started.
    pub fn activate(&self) -> Result<(), StateError> {
        self.each(KernelRef::activate)
    }

    /// Pauses all workers: see [`KernelRef::deactivate`].
    ///
    /// # Errors
    ///
    /// The first that a worker has; the others are paused.
    pub fn deactivate(&self) -> Result<(), StateError> {
        self.each(KernelRef::deactivate)
    }

    /// Lets all workers go on: see [`KernelRef::reactivate`].
    ///
    /// # Errors
    ///
    /// The first that a worker has; the others go on.
    pub fn reactivate(&self) -> Result<(), StateError> {
        self.each(KernelRef::reactivate)
    }

    fn each<E>(&self, step: impl Fn(&KernelRef<M, R>) -> Result<(), E>) -> Result<(), E> {
        self.workers().iter().map(step).fold(Ok(()), Result::and)
    }

    /// The worker that the message goes to.
    fn worker_for(&self, message: &M) -> &KernelRef<M, R> {
        self.shared.worker(message)
    }

    /// Whether a message that came back may go to another worker: this one has ended meanwhile.
    fn may_go_elsewhere(&self, error: &SendError<M>) -> bool {
        matches!(error, SendError::Stopped { .. } | SendError::Failed { .. })
            && self.shared.key.get().is_none()
            && self.workers().iter().any(|worker| !worker.is_stopping())
    }

    /// As [`KernelRef::send`].
    ///
    /// # Errors
    ///
    /// See [`SendError`], which names the worker.
    pub async fn send(&self, message: impl Into<Envelope<M>>) -> Result<(), SendError<M>> {
        self.send_until(message.into(), None).await
    }

    /// As [`KernelRef::send_timeout`].
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub async fn send_timeout(
        &self,
        message: impl Into<Envelope<M>>,
        timeout: Duration,
    ) -> Result<(), SendError<M>> {
        self.send_until(message.into(), timer::after(timeout)).await
    }

    async fn send_until(
        &self,
        mut envelope: Envelope<M>,
        deadline: Option<Instant>,
    ) -> Result<(), SendError<M>> {
        loop {
            let worker = self.worker_for(&envelope.message);
            let sent = match deadline {
                None => worker.send(envelope).await,
                Some(deadline) => worker.send_timeout(envelope, left(deadline)).await,
            };
            match sent {
                Err(error) if self.may_go_elsewhere(&error) => envelope = error.into_envelope(),
                sent => return sent,
            }
        }
    }

    /// As [`KernelRef::try_send`].
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub fn try_send(&self, message: impl Into<Envelope<M>>) -> Result<(), SendError<M>> {
        let mut envelope = message.into();
        loop {
            match self.worker_for(&envelope.message).try_send(envelope) {
                Err(error) if self.may_go_elsewhere(&error) => envelope = error.into_envelope(),
                sent => return sent,
            }
        }
    }

    /// As [`KernelRef::send_blocking`].
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub fn send_blocking(
        &self,
        message: impl Into<Envelope<M>>,
        timeout: Option<Duration>,
    ) -> Result<(), SendError<M>> {
        let deadline = timeout.and_then(timer::after);
        let mut envelope = message.into();
        loop {
            let worker = self.worker_for(&envelope.message);
            match worker.send_blocking(envelope, deadline.map(left)) {
                Err(error) if self.may_go_elsewhere(&error) => envelope = error.into_envelope(),
                sent => return sent,
            }
        }
    }

    /// As [`KernelRef::ask`]: the worker that the message goes to answers.
    ///
    /// # Errors
    ///
    /// See [`AskError`], which names the worker.
    ///
    /// # Cancel safety
    ///
    /// As for [`KernelRef::ask`].
    pub async fn ask(&self, message: impl Into<Envelope<M>>) -> Result<Envelope<R>, AskError<M>> {
        self.ask_until(message.into(), None).await
    }

    /// [`ask`](Self::ask) that gives up after `timeout`, sending included.
    ///
    /// # Errors
    ///
    /// See [`AskError`].
    pub async fn ask_timeout(
        &self,
        message: impl Into<Envelope<M>>,
        timeout: Duration,
    ) -> Result<Envelope<R>, AskError<M>> {
        self.ask_until(message.into(), timer::after(timeout)).await
    }

    /// [`ask`](Self::ask) that waits on the calling thread, for ever without a `timeout`.
    ///
    /// # Errors
    ///
    /// See [`AskError`].
    pub fn ask_blocking(
        &self,
        message: impl Into<Envelope<M>>,
        timeout: Option<Duration>,
    ) -> Result<Envelope<R>, AskError<M>> {
        wait::block_on(self.ask_until(message.into(), timeout.and_then(timer::after)))
    }

    async fn ask_until(
        &self,
        mut envelope: Envelope<M>,
        deadline: Option<Instant>,
    ) -> Result<Envelope<R>, AskError<M>> {
        loop {
            let worker = self.worker_for(&envelope.message);
            let answer = match deadline {
                None => worker.ask(envelope).await,
                Some(deadline) => worker.ask_timeout(envelope, left(deadline)).await,
            };
            match answer {
                Err(AskError::NotSent(error)) if self.may_go_elsewhere(&error) => {
                    envelope = error.into_envelope();
                }
                answer => return answer,
            }
        }
    }

    /// The next reply of any worker that no ask has claimed.
    ///
    /// # Errors
    ///
    /// See [`ReceiveError`]; once all workers have ended and every reply was read, the fault of the
    /// first that has failed, if one has.
    ///
    /// # Cancel safety
    ///
    /// A reply is taken exactly when the future is ready.
    pub async fn receive(&self) -> Result<Envelope<R>, ReceiveError> {
        self.shared.output.replies.receive().await.map_err(|_closed| self.no_reply())
    }

    /// [`receive`](Self::receive) that gives up after `timeout`.
    ///
    /// # Errors
    ///
    /// See [`ReceiveError`].
    pub async fn receive_timeout(&self, timeout: Duration) -> Result<Envelope<R>, ReceiveError> {
        match timer::timeout_at(timer::after(timeout), self.receive()).await {
            Some(outcome) => outcome,
            None => Err(ReceiveError::Timeout { kernel: self.id().clone() }),
        }
    }

    /// The next reply of any worker, without waiting.
    ///
    /// # Errors
    ///
    /// See [`ReceiveError`]; `Empty` if there is none now.
    pub fn try_receive(&self) -> Result<Envelope<R>, ReceiveError> {
        self.shared.output.replies.try_receive().map_err(|error| match error {
            mailbox::TryReceiveError::Empty => ReceiveError::Empty { kernel: self.id().clone() },
            mailbox::TryReceiveError::Closed => self.no_reply(),
        })
    }

    /// [`receive`](Self::receive) that waits on the calling thread, for ever without a `timeout`.
    ///
    /// # Errors
    ///
    /// See [`ReceiveError`].
    pub fn receive_blocking(&self, timeout: Option<Duration>) -> Result<Envelope<R>, ReceiveError> {
        let deadline = timeout.and_then(timer::after);
        self.shared.output.replies.receive_blocking(deadline).map_err(|error| match error {
            mailbox::ReceiveError::Timeout => ReceiveError::Timeout { kernel: self.id().clone() },
            mailbox::ReceiveError::Closed => self.no_reply(),
        })
    }

    fn no_reply(&self) -> ReceiveError {
        let kernel = self.id().clone();
        if self.workers().iter().any(|worker| worker.cell.is_connected()) {
            return ReceiveError::Connected { kernel };
        }
        match self.workers().iter().find_map(KernelRef::fault) {
            Some(fault) => ReceiveError::Failed { kernel, fault },
            None => ReceiveError::Stopped { kernel },
        }
    }

    /// Connects every worker to `next`: see [`KernelRef::connect`]. Between workers the order of
    /// their replies is that of their work.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`]; no worker is connected then. A worker that has ended is passed over.
    pub fn connect<N: Next<R>>(&self, next: &N) -> Result<(), ConnectError> {
        let (way, stage) = next.next();
        let next = AnyNext { stage, way: Box::new(way), types: String::new() };
        connect_stage(&self.shared.cells(), &next, false)
    }

    /// Disconnects every worker from the next kernel: see [`KernelRef::disconnect`].
    pub fn disconnect(&self) -> bool {
        self.workers().iter().fold(false, |any, worker| worker.disconnect() | any)
    }

    /// The books of all workers together. Each worker's part is exact; the sum is not of one instant.
    pub fn books(&self) -> Books {
        self.workers().iter().map(KernelRef::books).fold(Books::default(), |sum, books| Books {
            accepted: sum.accepted + books.accepted,
            processed: sum.processed + books.processed,
            dropped_oldest: sum.dropped_oldest + books.dropped_oldest,
            dropped_newest: sum.dropped_newest + books.dropped_newest,
            expired: sum.expired + books.expired,
            dead_lettered: sum.dead_lettered + books.dead_lettered,
            forwarded: sum.forwarded + books.forwarded,
            in_hand: sum.in_hand + books.in_hand,
            queued: sum.queued + books.queued,
            rejected: sum.rejected + books.rejected,
            redelivered: sum.redelivered + books.redelivered,
        })
    }

    /// The books of the output that the workers share.
    pub fn reply_books(&self) -> Books {
        let forwarded: u64 = self.workers().iter().map(|worker| worker.cell.forwarded()).sum();
        let mut books = self.shared.output.replies.books();
        books.accepted += forwarded;
        books.forwarded += forwarded;
        books
    }

    /// Ends all workers at once, as `how` says, within its time for all of them together; how each
    /// ended. The names are free then.
    ///
    /// # Cancel safety
    ///
    /// The request stands; only the deadline is then no longer enforced.
    pub async fn terminate(&self, how: Terminate) -> Vec<Termination> {
        let cells = self.shared.cells();
        stop_all(&cells, how.drain);
        let outcomes = terminate::end_all(&cells, how.within).await;
        if let Some(runtime) = self.shared.runtime.upgrade() {
            runtime.remove_pool(self.id());
        }
        outcomes
    }

    /// [`terminate`](Self::terminate) that waits on the calling thread.
    pub fn terminate_blocking(&self, how: Terminate) -> Vec<Termination> {
        wait::block_on(self.terminate(how))
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

impl<M: Message, R: Message> Clone for Pool<M, R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M: Message, R: Message> fmt::Debug for Pool<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("id", self.id()).field("workers", &self.workers()).finish()
    }
}
