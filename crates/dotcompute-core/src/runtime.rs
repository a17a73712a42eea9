//! The runtime: launches kernels, finds them by name, watches them, and ends them.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Duration;

use dotcompute_mailbox::sync::lock;
use dotcompute_mailbox::{Backpressure, wait};

use crate::compiled::{self, CompiledHandler, FeedOf, RecordMessage, RecordReply};
use crate::context::Context;
use crate::dead_letter::{DeadLetter, DeadLetterCounts, DeadLetters};
use crate::error::{BoxError, ConnectError, KernelId, LaunchError, LookupError};
use crate::executor::{AsyncExecutor, Executor, Executors, KernelTask, ThreadExecutor};
use crate::handler::{self, Handler};
use crate::kernel::{Address, AnyCell, Cell, KernelRef, connect_stage, types};
use crate::lifecycle::KernelState;
use crate::message::Message;
use crate::options::{Options, Restart};
use crate::pipeline::{AnyNext, Pipelines};
use crate::pool::{AnyPool, Pool, PoolBuilder};
use crate::supervision::{BodyFuture, TellWhenDropped, supervise};
use crate::telemetry::{self, KernelTelemetry};
use crate::terminate::{self, Termination};

/// What a runtime and its kernels share.
pub(crate) struct Shared {
    name: String,
    executors: Executors,
    kernels: Mutex<Kernels>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) pipelines: Pipelines,
    monitor: Arc<MonitorSignal>,
    on_stall: Option<OnStall>,
}

#[derive(Default)]
struct Kernels {
    by_id: HashMap<KernelId, Arc<dyn AnyCell>>,
    pools: HashMap<KernelId, Arc<dyn AnyPool>>,
    shutting_down: bool,
    monitored: bool,
}

impl Shared {
    /// Adds a pool under its name.
    pub(crate) fn add_pool(
        &self,
        id: KernelId,
        entry: Arc<dyn AnyPool>,
    ) -> Result<(), LaunchError> {
        let mut kernels = lock(&self.kernels);
        kernels.free(&id)?;
        kernels.pools.insert(id, entry);
        Ok(())
    }

    /// Frees the name of a pool.
    pub(crate) fn remove_pool(&self, id: &KernelId) {
        let removed = lock(&self.kernels).pools.remove(id);
        drop(removed);
    }

    /// Takes `cell` out of the registry, unless its name belongs to another kernel by now.
    pub(crate) fn remove(&self, cell: &dyn AnyCell) {
        let mut kernels = lock(&self.kernels);
        let same = |known: &Arc<dyn AnyCell>| std::ptr::addr_eq(Arc::as_ptr(known), cell);
        if kernels.by_id.get(cell.id()).is_some_and(same) {
            let removed = kernels.by_id.remove(cell.id());
            drop(kernels);
            drop(removed);
        }
    }

    fn all(&self) -> Vec<Arc<dyn AnyCell>> {
        lock(&self.kernels).by_id.values().cloned().collect()
    }
}

impl Kernels {
    /// Whether something new may have this name.
    fn free(&self, id: &KernelId) -> Result<(), LaunchError> {
        if self.shutting_down {
            return Err(LaunchError::ShuttingDown { kernel: id.clone() });
        }
        let kernel = self.by_id.get(id).map(|known| known.state());
        let state = kernel.or_else(|| self.pools.get(id).map(|known| known.state()));
        match state {
            Some(state) => Err(LaunchError::AlreadyExists { kernel: id.clone(), state }),
            None => Ok(()),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for cell in self.all() {
            cell.request_stop(false);
            cell.kill();
        }
        self.monitor.stop();
    }
}

/// Settings for a [`Runtime`].
pub struct RuntimeBuilder {
    name: String,
    workers: Option<usize>,
    tokio: Option<tokio::runtime::Handle>,
    executors: Vec<Arc<dyn Executor>>,
    on_stall: Option<OnStall>,
}

/// Told of a kernel that stalls.
type OnStall = Box<dyn Fn(&KernelId, Duration) + Send + Sync>;

impl RuntimeBuilder {
    /// Calls `report` with each kernel that begins to stall and with its
    /// [watchdog](KernelBuilder::watchdog), besides the log: on the thread that looks for them, which
    /// waits for it.
    #[must_use]
    pub fn on_stall(
        mut self,
        report: impl Fn(&KernelId, Duration) + Send + Sync + 'static,
    ) -> Self {
        self.on_stall = Some(Box::new(report));
        self
    }

    /// A name, for logs; `dotcompute` by default.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Runs async kernels on this tokio runtime. By default on the one that `build` is called in,
    /// or else on workers of its own.
    #[must_use]
    pub fn tokio(mut self, handle: tokio::runtime::Handle) -> Self {
        self.tokio = Some(handle);
        self
    }

    /// How many workers run async kernels, where the runtime has workers of its own; by default
    /// one for each core that the process may use.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers.max(1));
        self
    }

    /// Adds an executor, which kernels choose by its name. One of the same name as a built-in takes
    /// its place.
    #[must_use]
    pub fn executor(mut self, executor: Arc<dyn Executor>) -> Self {
        self.executors.insert(0, executor);
        self
    }

    /// The runtime. Threads start with the first kernel that needs them.
    pub fn build(self) -> Runtime {
        let tokio = self.tokio.or_else(|| tokio::runtime::Handle::try_current().ok());
        let workers = self.workers.unwrap_or_else(wait::parallelism);
        let mut executors = self.executors;
        executors.push(Arc::new(AsyncExecutor::new(tokio, workers)));
        executors.push(Arc::new(ThreadExecutor));
        Runtime {
            shared: Arc::new(Shared {
                name: self.name,
                executors: Executors::new(executors),
                kernels: Mutex::default(),
                dead_letters: DeadLetters::default(),
                pipelines: Pipelines::default(),
                monitor: Arc::default(),
                on_stall: self.on_stall,
            }),
        }
    }
}

impl fmt::Debug for RuntimeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Launches ring kernels and keeps them by name. Cloning is one reference count.
///
/// When the last handle is dropped the kernels that still run are cancelled, without waiting; call
/// [`shutdown`](Self::shutdown) to end them in order. All methods may be called from any thread.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
}

impl Runtime {
    /// Settings for a runtime.
    pub fn builder() -> RuntimeBuilder {
        RuntimeBuilder {
            name: "dotcompute".into(),
            workers: None,
            tokio: None,
            executors: Vec::new(),
            on_stall: None,
        }
    }

    pub(crate) fn from_shared(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The names of its executors.
    pub fn executors(&self) -> Vec<&'static str> {
        self.shared.executors.names()
    }

    /// Begins to describe a kernel of this name.
    pub fn kernel(&self, name: impl Into<KernelId>) -> KernelBuilder<'_> {
        KernelBuilder {
            runtime: self,
            id: name.into(),
            executor: "async".into(),
            options: Options::default(),
        }
    }

    /// The kernel of this name that takes `M` and replies with `R`.
    ///
    /// # Errors
    ///
    /// If there is none, or it works on other types: the error names both.
    pub fn get<M: Message, R: Message>(&self, name: &str) -> Result<KernelRef<M, R>, LookupError> {
        let cell = self.find(name)?;
        let found = cell.types();
        match cell.as_any().downcast::<Cell<M, R>>() {
            Ok(cell) => Ok(KernelRef { cell }),
            Err(_) => Err(LookupError::WrongType {
                kernel: name.into(),
                expected: types::<M, R>(),
                found,
            }),
        }
    }

    /// The pool of this name that takes `M` and replies with `R`.
    ///
    /// # Errors
    ///
    /// If there is none, or it works on other types: the error names both.
    pub fn pool<M: Message, R: Message>(&self, name: &str) -> Result<Pool<M, R>, LookupError> {
        let kernels = lock(&self.shared.kernels);
        let Some(entry) = kernels.pools.get(name) else {
            return Err(LookupError::NotFound { kernel: name.into() });
        };
        Pool::from_any(Arc::clone(entry).as_any()).ok_or_else(|| LookupError::WrongType {
            kernel: name.into(),
            expected: types::<M, R>(),
            found: entry.types(),
        })
    }

    /// The address of the kernel of this name that takes `M`, whatever it replies with.
    ///
    /// # Errors
    ///
    /// If there is none, or it takes another type: the error names both.
    pub fn address<M: Message>(&self, name: &str) -> Result<Address<M>, LookupError> {
        let cell = self.find(name)?;
        let found = cell.types();
        let address: Box<dyn Any> = cell.address();
        match address.downcast::<Address<M>>() {
            Ok(address) => Ok(*address),
            Err(_) => Err(LookupError::WrongType {
                kernel: name.into(),
                expected: format!("messages of {}", std::any::type_name::<M>()),
                found,
            }),
        }
    }

    /// Connects two kernels or pools by their names: see [`KernelRef::connect`], where the types are
    /// checked by the compiler.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`]. If the one does not take what the other replies with, the error names
    /// the types of both.
    pub fn connect(&self, from: &str, to: &str) -> Result<(), ConnectError> {
        connect_stage(&self.stage(from)?.stage.cells, &self.stage(to)?, false)
    }

    /// [`connect`](Self::connect) that allows a cycle of kernels that wait for room: see
    /// [`KernelRef::connect_allowing_cycle`].
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn connect_allowing_cycle(&self, from: &str, to: &str) -> Result<(), ConnectError> {
        connect_stage(&self.stage(from)?.stage.cells, &self.stage(to)?, true)
    }

    /// Disconnects the kernel or the pool of this name from the next one: see
    /// [`KernelRef::disconnect`].
    ///
    /// # Errors
    ///
    /// If there is no kernel of this name.
    pub fn disconnect(&self, name: &str) -> Result<bool, LookupError> {
        let cells = self.stage(name)?.stage.cells;
        let disconnect = |cell| self.shared.pipelines.disconnect(cell);
        Ok(cells.iter().fold(false, |any, cell| disconnect(cell) | any))
    }

    /// The kernel or the pool of this name.
    fn stage(&self, name: &str) -> Result<AnyNext, LookupError> {
        let pool = lock(&self.shared.kernels).pools.get(name).cloned();
        match pool {
            Some(pool) => Ok(pool.next()),
            None => Ok(self.find(name)?.next()),
        }
    }

    fn find(&self, name: &str) -> Result<Arc<dyn AnyCell>, LookupError> {
        let found = lock(&self.shared.kernels).by_id.get(name).cloned();
        found.ok_or_else(|| LookupError::NotFound { kernel: name.into() })
    }

    /// The names of all kernels, in order; also of those that have ended and were not terminated.
    pub fn kernel_ids(&self) -> Vec<KernelId> {
        let mut ids: Vec<_> = lock(&self.shared.kernels).by_id.keys().cloned().collect();
        ids.sort();
        ids
    }

    /// The state of the kernel of this name.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn state(&self, name: &str) -> Result<KernelState, LookupError> {
        Ok(self.find(name)?.state())
    }

    /// What each kernel has done so far, by name.
    pub fn telemetry(&self) -> Vec<KernelTelemetry> {
        let mut all: Vec<_> = self.shared.all().iter().map(|cell| cell.snapshot()).collect();
        all.sort_by(|a, b| a.kernel.cmp(&b.kernel));
        all
    }

    /// Publishes the telemetry of all kernels through the `metrics` facade, to whatever recorder
    /// the program has installed.
    pub fn publish_metrics(&self) {
        self.telemetry().iter().for_each(telemetry::publish);
        let letters = self.dead_letter_counts();
        metrics::counter!("dotcompute_dead_letters_total").absolute(letters.total);
        metrics::gauge!("dotcompute_dead_letters_kept").set(letters.kept as f64);
    }

    /// How many dead letters there are and were.
    pub fn dead_letter_counts(&self) -> DeadLetterCounts {
        self.shared.dead_letters.counts()
    }

    /// Calls `look` with each dead letter, oldest first. `look` must not send messages.
    pub fn dead_letters(&self, look: impl FnMut(&DeadLetter)) {
        self.shared.dead_letters.for_each(look);
    }

    /// Takes out the dead letters that `wanted` chooses, oldest first.
    pub fn take_dead_letters(&self, wanted: impl FnMut(&DeadLetter) -> bool) -> Vec<DeadLetter> {
        self.shared.dead_letters.take(wanted)
    }

    /// Sends the dead letters that `wanted` chooses again, each to the kernel of the name that it
    /// was for, oldest first, without waiting. Each counts as accepted anew. Those that cannot be
    /// sent (no such kernel, another type, mailbox full, a reply) stay dead letters. How many were
    /// sent.
    pub fn replay(&self, mut wanted: impl FnMut(&DeadLetter) -> bool) -> usize {
        let chosen =
            self.shared.dead_letters.take(|letter| letter.is_replayable() && wanted(letter));
        let mut sent = 0;
        for letter in chosen {
            let kept = match self.find(letter.kernel.as_str()) {
                Ok(cell) => cell.replay(letter),
                Err(_) => Err(letter),
            };
            match kept {
                Ok(()) => sent += 1,
                Err(letter) => self.shared.dead_letters.restore(letter),
            }
        }
        sent
    }

    /// Ends all kernels at once, each handed nothing more, within `within` for all together, and
    /// launches no more. How each ended.
    ///
    /// # Cancel safety
    ///
    /// The request stands; only the deadline is then no longer enforced.
    pub async fn shutdown(&self, within: Duration) -> Vec<(KernelId, Termination)> {
        let (cells, pools): (Vec<_>, _) = {
            let mut kernels = lock(&self.shared.kernels);
            kernels.shutting_down = true;
            (kernels.by_id.values().cloned().collect(), std::mem::take(&mut kernels.pools))
        };
        drop(pools);
        for cell in &cells {
            cell.request_stop(false);
            cell.remove_when_ended();
        }
        let outcomes = terminate::end_all(&cells, within).await;
        cells.iter().map(|cell| cell.id().clone()).zip(outcomes).collect()
    }

    /// [`shutdown`](Self::shutdown) that waits on the calling thread.
    pub fn shutdown_blocking(&self, within: Duration) -> Vec<(KernelId, Termination)> {
        wait::block_on(self.shutdown(within))
    }

    fn launch<M: Message, R: Message>(
        &self,
        id: KernelId,
        executor: &str,
        options: Options,
        kind: BodyKind,
        body: impl FnMut(Context<M, R>) -> BodyFuture + Send + 'static,
    ) -> Result<KernelRef<M, R>, LaunchError> {
        options.check(&id)?;
        let Some(executor) = self.shared.executors.get(executor) else {
            return Err(LaunchError::UnknownExecutor {
                kernel: id,
                executor: executor.into(),
                available: self.executors().join(", "),
            });
        };
        if executor.runs_closures() != (kind == BodyKind::Closure) {
            let source = match kind {
                BodyKind::Closure => "it runs no closures of this program, only kernels by name",
                BodyKind::Proxy => "it runs closures of this program only",
            };
            let (executor, source) = (executor.name(), source.into());
            return Err(LaunchError::Executor { kernel: id, executor, source });
        }
        let watched = options.watchdog.is_some();
        let cell = Cell::<M, R>::new(id.clone(), options, executor.name(), &self.shared);
        // Before anyone can find it and ask it to end.
        cell.change(|lifecycle| lifecycle.launched());
        {
            let mut kernels = lock(&self.shared.kernels);
            kernels.free(&id)?;
            kernels.by_id.insert(id.clone(), cell.clone());
            if watched && !kernels.monitored {
                kernels.monitored = true;
                monitor(&self.shared);
            }
        }
        if watched {
            self.shared.monitor.wake();
        }
        let guard = TellWhenDropped::new(&cell);
        let span = tracing::info_span!("ring_kernel", kernel = %id, executor = executor.name());
        let task = KernelTask::new(supervise(guard, body), span);
        if let Err(source) = executor.start(&id, task) {
            self.shared.remove(&*cell);
            return Err(LaunchError::Executor { kernel: id, executor: executor.name(), source });
        }
        tracing::debug!(kernel = %id, executor = executor.name(), "ring kernel launched");
        Ok(KernelRef { cell })
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("name", &self.shared.name)
            .field("kernels", &lock(&self.shared.kernels).by_id.len())
            .field("executors", &self.shared.executors)
            .finish()
    }
}

/// What a launch brings.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyKind {
    /// The code of the kernel.
    Closure,
    /// What stands for it where its code is not.
    Proxy,
}

/// A kernel being described; [`launch`](Self::launch) makes it.
#[must_use = "a kernel exists once it is launched"]
pub struct KernelBuilder<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) id: KernelId,
    executor: String,
    pub(crate) options: Options,
}

impl<'a> KernelBuilder<'a> {
    /// Describes a pool of so many kernels of this kind, 1 or more, behind this name: see [`Pool`].
    pub fn pool(self, workers: usize) -> PoolBuilder<'a> {
        PoolBuilder { kernel: self, workers }
    }

    /// The same for a worker of a pool with that output.
    pub(crate) fn worker(&self, name: String, output: Arc<dyn Any + Send + Sync>) -> Self {
        let options = Options { output: Some(output), ..self.options.clone() };
        let executor = self.executor.clone();
        Self { runtime: self.runtime, id: name.into(), executor, options }
    }
}

impl KernelBuilder<'_> {
    /// Which executor runs it: `"async"` (the default), `"thread"`, or one that was added to the
    /// runtime.
    pub fn executor(mut self, name: &str) -> Self {
        self.executor = name.into();
        self
    }

    /// Its name.
    pub fn id(&self) -> &KernelId {
        &self.id
    }

    /// How many messages its mailbox holds: 1 to 16777216, 1024 by default. Memory grows with use.
    pub fn capacity(mut self, messages: usize) -> Self {
        self.options.capacity = messages;
        self
    }

    /// What happens to a message for a full mailbox: senders wait ([`Backpressure::Block`]) by
    /// default.
    pub fn backpressure(mut self, policy: Backpressure) -> Self {
        self.options.backpressure = policy;
        self
    }

    /// How many replies that nobody asked for its output mailbox holds: 1024 by default.
    pub fn reply_capacity(mut self, messages: usize) -> Self {
        self.options.reply_capacity = messages;
        self
    }

    /// What happens to a reply for a full output mailbox: the kernel waits by default.
    pub fn reply_backpressure(mut self, policy: Backpressure) -> Self {
        self.options.reply_backpressure = policy;
        self
    }

    /// Whether and how it is started again when it ends by itself: never by default.
    pub fn restart(mut self, restart: impl Into<Restart>) -> Self {
        self.options.restart = restart.into();
        self
    }

    /// After how long with one message in hand it is reported as stalled: 30 s by default; `None`:
    /// never.
    pub fn watchdog(mut self, after: Option<Duration>) -> Self {
        self.options.watchdog = after;
        self
    }

    /// At which distance messages have their times taken: every 64th by default, 1 for each one,
    /// which suits large messages.
    pub fn sample_every(mut self, messages: u64) -> Self {
        self.options.sample_every = messages;
        self
    }

    /// Keeps the replies that nobody has read when the kernel is asked to end, until it has ended
    /// and they are read; otherwise they become dead letters. For the far side of a proxy, whose
    /// reader is another process.
    pub fn keep_replies(mut self) -> Self {
        self.options.keep_replies = true;
        self
    }

    /// Whether all 256 priorities count, of messages and of replies, and not only the four bands: no
    /// by default. Then each delivery takes the mailbox's lock.
    pub fn exact_priority(mut self, exact: bool) -> Self {
        self.options.exact_priority = exact;
        self
    }

    /// Launches the kernel with `body`, which is called at its activation and at each restart. The
    /// kernel has its resources then, and waits to be activated.
    ///
    /// # Errors
    ///
    /// See [`LaunchError`].
    pub fn launch<M, R, F>(
        self,
        mut body: impl FnMut(Context<M, R>) -> F + Send + 'static,
    ) -> Result<KernelRef<M, R>, LaunchError>
    where
        M: Message,
        R: Message,
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let body = move |context| -> BodyFuture { Box::pin(body(context)) };
        self.runtime.launch(self.id, &self.executor, self.options, BodyKind::Closure, body)
    }

    /// Launches a kernel that runs elsewhere, with a proxy for a body: see
    /// [`Context::poll_lend`]. For executors that do not
    /// [run closures](crate::Executor::runs_closures); their users call them, not this.
    ///
    /// # Errors
    ///
    /// See [`LaunchError`].
    pub fn launch_proxy<M, R, F>(
        self,
        mut proxy: impl FnMut(Context<M, R>) -> F + Send + 'static,
    ) -> Result<KernelRef<M, R>, LaunchError>
    where
        M: Message,
        R: Message,
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let proxy = move |context| -> BodyFuture { Box::pin(proxy(context)) };
        self.runtime.launch(self.id, &self.executor, self.options, BodyKind::Proxy, proxy)
    }

    /// Launches a kernel whose code is a compiled handler, which is the same at each restart; its
    /// state begins anew. `M` and `R` are records of its layouts, or batches of them.
    ///
    /// # Errors
    ///
    /// See [`LaunchError`]; `Layout` if a type has another layout than the handler.
    pub fn launch_compiled<M: RecordMessage, R: RecordReply>(
        self,
        handler: CompiledHandler,
    ) -> Result<KernelRef<M, R>, LaunchError> {
        handler.check::<M, R>(&self.id)?;
        let handler = Arc::new(handler);
        let feed = handler.feed.as_ref().map(FeedOf::new);
        let body = move |context| -> BodyFuture {
            Box::pin(compiled::run::<M, R>(Arc::clone(&handler), context))
        };
        let kernel =
            self.runtime.launch(self.id, &self.executor, self.options, BodyKind::Closure, body)?;
        if let Some(feed) = feed {
            let _ = kernel.cell.feed.set(feed); // the first, as the kernel is new
            // The runtime may have ended it before it had one.
            if kernel.cell.look(|lifecycle| lifecycle.finished) {
                kernel.cell.end_feed();
            }
        }
        Ok(kernel)
    }

    /// Launches a kernel whose code is the [`Handler`] that `make` returns, at its activation and
    /// at each restart.
    ///
    /// # Errors
    ///
    /// See [`LaunchError`].
    pub fn launch_handler<H: Handler>(
        self,
        mut make: impl FnMut() -> H + Send + 'static,
    ) -> Result<KernelRef<H::In, H::Out>, LaunchError> {
        let body = move |context| -> BodyFuture { Box::pin(handler::run(make(), context)) };
        self.runtime.launch(self.id, &self.executor, self.options, BodyKind::Closure, body)
    }
}

impl fmt::Debug for KernelBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelBuilder")
            .field("id", &self.id)
            .field("executor", &self.executor)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Wakes the monitor early, and ends it.
#[derive(Debug, Default)]
struct MonitorSignal {
    state: Mutex<MonitorState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct MonitorState {
    stopped: bool,
    woken: bool,
}

impl MonitorSignal {
    fn wake(&self) {
        lock(&self.state).woken = true;
        self.changed.notify_one();
    }

    fn stop(&self) {
        lock(&self.state).stopped = true;
        self.changed.notify_one();
    }

    /// Waits for `pause` or a signal; `false`: it is over.
    fn pause(&self, pause: Duration) -> bool {
        let idle = |state: &mut MonitorState| !state.stopped && !state.woken;
        let mut state = match self.changed.wait_timeout_while(lock(&self.state), pause, idle) {
            Ok((state, _)) => state,
            Err(poisoned) => poisoned.into_inner().0,
        };
        state.woken = false;
        !state.stopped
    }
}

/// Starts the thread that looks for stalled kernels. It costs the message path nothing: it compares
/// two readings of each kernel's books.
fn monitor(shared: &Arc<Shared>) {
    let signal = Arc::clone(&shared.monitor);
    let weak = Arc::downgrade(shared);
    let started = std::thread::Builder::new()
        .name("dotcompute-watch".into())
        .stack_size(128 * 1024)
        .spawn(move || watch(&weak, &signal));
    if let Err(error) = started {
        tracing::error!(%error, "no thread for the watchdog: stalled kernels go unreported");
    }
}

fn watch(shared: &Weak<Shared>, signal: &MonitorSignal) {
    loop {
        let Some(runtime) = shared.upgrade() else { return };
        let mut shortest = Duration::from_secs(40);
        for cell in runtime.all() {
            let Some(watchdog) = cell.options().watchdog else { continue };
            shortest = shortest.min(watchdog);
            if cell.telemetry().watch(&cell.books(), watchdog) {
                tracing::warn!(kernel = %cell.id(), ?watchdog, "ring kernel stalled");
                if let Some(report) = &runtime.on_stall {
                    report(cell.id(), watchdog);
                }
            }
        }
        drop(runtime);
        if !signal.pause((shortest / 4).max(Duration::from_millis(1))) {
            return;
        }
    }
}
