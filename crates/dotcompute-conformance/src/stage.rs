//! Where a promise is tested: a runtime, an executor, and the means to know what happens there.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel as std_channel};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use dotcompute::mailbox::sync::lock;
use dotcompute::mailbox::wait;
use dotcompute::{
    BoxError, Context, Handler, HandlerContext, KernelRef, Message, Runtime, RuntimeBuilder,
    Termination,
};

#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::roles::{Part, Place};
use crate::signals::{Portable, Tell, channel};

pub use crate::signals::Gate;

/// How long a test may take before it has failed.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// An executor under test: its name, and how to build a runtime that has it.
#[derive(Clone, Copy, Debug)]
pub struct Fixture {
    /// The name by which kernels choose the executor.
    pub executor: &'static str,
    /// Settings for a runtime that offers it. It must be able to run two blocked kernels of the
    /// executor and go on with others.
    pub builder: fn() -> RuntimeBuilder,
    /// Where its kernels run.
    pub place: Place,
}

/// What a test is given: a fresh runtime and the executor to launch kernels on.
#[derive(Debug)]
pub struct Stage {
    /// The runtime.
    pub runtime: Runtime,
    fixture: Fixture,
}

impl Stage {
    fn new(fixture: Fixture) -> Self {
        Self { runtime: (fixture.builder)().name("conformance").build(), fixture }
    }

    /// Another stage, with a runtime of its own, that the test ends itself.
    pub fn another(&self) -> Self {
        Self::new(self.fixture)
    }

    /// The name of the executor under test.
    pub fn executor(&self) -> &'static str {
        self.fixture.executor
    }

    /// Begins to describe a kernel on the executor under test.
    pub fn kernel(&self, name: &str) -> Part<'_> {
        let builder = self.runtime.kernel(name).executor(self.fixture.executor);
        Part::new(builder, self.fixture.place)
    }

    /// The same on an executor that the runtime has beside the one under test: the one under test
    /// too.
    pub fn kernel_on(&self, executor: &str, name: &str) -> Part<'_> {
        match executor == self.executor() {
            true => self.kernel(name),
            false => Part::new(self.runtime.kernel(name).executor(executor), Place::Here),
        }
    }

    /// How many messages a promise about many sends: fewer where each of them costs switches between
    /// processes, of which a machine with more to do than it can makes some hundred a second.
    pub fn many(&self, messages: u64) -> u64 {
        match self.fixture.place {
            Place::Here => messages,
            #[cfg(target_os = "linux")]
            Place::Processes(_) => messages / 10,
        }
    }

    /// What becomes of a kernel that blocks its thread for ever, at the end of its deadline.
    pub fn end_of_the_blocked(&self) -> Termination {
        match self.fixture.place {
            // A thread cannot be killed.
            Place::Here => Termination::Abandoned,
            #[cfg(target_os = "linux")]
            Place::Processes(_) => Termination::Cancelled,
        }
    }

    /// The test is over: whatever it left running has balanced books, and ends.
    fn close(self) {
        for kernel in self.runtime.telemetry() {
            assert!(kernel.books.balance(), "{}: {:?}", kernel.kernel, kernel.books);
            assert!(kernel.replies.balance(), "{}: {:?}", kernel.kernel, kernel.replies);
        }
        for (kernel, termination) in self.runtime.shutdown_blocking(Duration::from_secs(10)) {
            assert_ne!(termination, Termination::Abandoned, "'{kernel}' did not end");
        }
        assert_eq!(self.runtime.kernel_ids(), [], "kernels after the shutdown");
    }
}

/// Runs the promise `name` on a fresh stage, under a watchdog.
///
/// # Panics
///
/// If the promise is not kept, or not within [`WATCHDOG`].
pub fn run(name: &'static str, fixture: Fixture, promise: fn(&Stage)) {
    let test = move || {
        let stage = Stage::new(fixture);
        promise(&stage);
        stage.close();
    };
    within(name, WATCHDOG, test);
}

/// Runs `test` on a thread of its own and passes its panic on.
///
/// # Panics
///
/// If `test` does, or if it takes longer than `limit`. Its thread is left behind then: a test that
/// hangs must not make the others hang.
pub fn within(name: &str, limit: Duration, test: impl FnOnce() + Send + 'static) {
    let (done, ended) = std_channel::<()>();
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Dropped at the end, also by a panic.
            let _done = done;
            test();
        })
        .expect("a thread for the test");
    match ended.recv_timeout(limit) {
        Err(RecvTimeoutError::Timeout) => panic!("{name} did not end within {limit:?}"),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A number as a message and as a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub u64);

impl Message for Number {
    const TYPE_NAME: &'static str = "Number";
}

crate::portable!(Number { 0 });

/// A message that counts the living of its kind, and panics when it is dropped if it was armed.
#[derive(Debug)]
pub struct Token {
    /// What it says.
    pub number: u64,
    /// Whether dropping it panics.
    pub armed: bool,
    alive: Arc<Mutex<i64>>,
}

impl Token {
    /// A token that counts in `alive`.
    pub fn new(number: u64, alive: &Arc<Mutex<i64>>) -> Self {
        *lock(alive) += 1;
        Self { number, armed: false, alive: Arc::clone(alive) }
    }

    /// The same, which panics when it is dropped.
    #[must_use]
    pub fn armed(mut self) -> Self {
        self.armed = true;
        self
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        *lock(&self.alive) -= 1;
        // Never during another panic: that would abort the process.
        if self.armed && !std::thread::panicking() {
            panic!("token {} dropped", self.number);
        }
    }
}

impl Message for Token {
    const TYPE_NAME: &'static str = "Token";
}

/// In another process it counts for itself.
impl Portable for Token {
    fn put(&self, out: &mut Vec<u8>) {
        (self.number, self.armed).put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        let (number, armed): (u64, bool) = Portable::take(from)?;
        let token = Self::new(number, &Arc::default());
        Some(if armed { token.armed() } else { token })
    }
}

/// The two ways to write a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An async function over a [`Context`].
    Body,
    /// A [`Handler`].
    Handler,
}

impl Form {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Body, Self::Handler];

    /// What a role of this form adds to its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Body => " as a body",
            Self::Handler => " as a handler",
        }
    }
}

/// What a kernel made by [`serve`] does with a number: `Some` reply, none, or a fault.
pub type Outcome = Result<Option<u64>, BoxError>;

/// Launches and activates a kernel that calls, per message, the function that `make` returns at
/// each of its starts.
pub fn serve<A: Portable + Clone, E>(
    part: Part<'_>,
    form: Form,
    make: impl Fn(A) -> E + Send + 'static,
    args: A,
) -> KernelRef<Number, Number>
where
    E: FnMut(u64) -> Outcome + Send + 'static,
{
    let kernel = part.launch_serving(form, make, args).unwrap();
    kernel.activate().unwrap();
    kernel
}

pub(crate) async fn each_body<E: FnMut(u64) -> Outcome>(
    mut context: Context<Number, Number>,
    mut each: E,
) -> Result<(), BoxError> {
    while let Ok(&Number(number)) = context.receive().await {
        if let Some(reply) = each(number)? {
            context.reply(Number(reply)).await?;
        }
    }
    Ok(())
}

pub(crate) struct Each<F>(pub(crate) F);

impl<F: FnMut(u64) -> Outcome + Send + 'static> Handler for Each<F> {
    type In = Number;
    type Out = Number;

    fn handle(
        &mut self,
        message: &Number,
        _context: &mut HandlerContext<Number>,
    ) -> Result<Option<Number>, BoxError> {
        Ok((self.0)(message.0)?.map(Number))
    }
}

/// A kernel that waits at a gate with each message in hand.
#[derive(Debug)]
pub struct Gated {
    /// The kernel, active.
    pub kernel: KernelRef<Number, Number>,
    /// Each message as it is delivered.
    pub arrived: Receiver<u64>,
    /// What it waits at.
    pub gate: Gate,
}

impl Gated {
    /// Launches it with a message of its own in hand, number 0, so that it takes no other until
    /// the gate opens.
    pub fn busy(part: Part<'_>) -> Self {
        let gated = Self::idle(part);
        gated.kernel.try_send(Number(0)).unwrap();
        gated.arrives(0);
        gated
    }

    /// Launches it with nothing in hand.
    pub fn idle(part: Part<'_>) -> Self {
        let gate = Gate::default();
        let (tell, arrived) = channel();
        let kernel = launch_with(part, stop_and_go, (tell, gate));
        Self { kernel, arrived, gate }
    }

    /// Waits for the next message to be delivered: it is `number`.
    pub fn arrives(&self, number: u64) {
        assert_eq!(self.arrived.recv(), Ok(number), "the next message");
    }

    /// Opens the gate for good; the numbers that are delivered, in order, once `count` are.
    pub fn release(&self, count: usize) -> Vec<u64> {
        self.gate.remove();
        self.arrived.iter().take(count).collect()
    }
}

/// No test leaves a kernel waiting for it.
impl Drop for Gated {
    fn drop(&mut self) {
        self.gate.remove();
    }
}

async fn stop_and_go(
    mut context: Context<Number, Number>,
    (tell, gate): (Tell<u64>, Gate),
) -> Result<(), BoxError> {
    while let Ok(&Number(number)) = context.receive().await {
        // The test may have stopped to listen.
        let _ = tell.send(number);
        gate.pass().await;
    }
    Ok(())
}

/// A body that replies to each number with the same number.
///
/// # Errors
///
/// None: it ends when its kernel does.
pub async fn echo(mut context: Context<Number, Number>) -> Result<(), BoxError> {
    while let Ok(&number) = context.receive().await {
        context.reply(number).await?;
    }
    Ok(())
}

/// Launches and activates a kernel with `body`.
pub fn launch<M: Message, R: Message, F>(
    part: Part<'_>,
    body: impl Fn(Context<M, R>) -> F + Send + 'static,
) -> KernelRef<M, R>
where
    F: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    active(part.launch(body))
}

/// Launches and activates a kernel with a body that has arguments.
pub fn launch_with<M: Message, R: Message, A: Portable + Clone, F>(
    part: Part<'_>,
    body: impl Fn(Context<M, R>, A) -> F + Send + 'static,
    args: A,
) -> KernelRef<M, R>
where
    F: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    active(part.launch_with(body, args))
}

/// Launches and activates a kernel with any closure: see [`Part::launch_closure`].
pub fn launch_closure<M: Message, R: Message, F>(
    part: Part<'_>,
    body: impl FnMut(Context<M, R>) -> F + Send + 'static,
) -> KernelRef<M, R>
where
    F: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    active(part.launch_closure(body))
}

fn active<M: Message, R: Message>(
    launched: Result<KernelRef<M, R>, dotcompute::LaunchError>,
) -> KernelRef<M, R> {
    let kernel = launched.unwrap();
    kernel.activate().unwrap();
    kernel
}

/// The roles that many promises have.
#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles.body(echo).body_with(stop_and_go)
}

/// Polls `future` once, without anyone to be woken.
pub fn poll_once<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
    future.as_mut().poll(&mut TaskContext::from_waker(Waker::noop()))
}

/// A future that waits on a thread of its own.
#[derive(Debug)]
pub struct Waiter<T>(JoinHandle<T>);

impl<T: Send + 'static> Waiter<T> {
    /// Starts `future`, and returns when it waits.
    pub fn start(future: impl Future<Output = T> + Send + 'static) -> Self {
        let (tell, polled) = std_channel();
        let mut future = Box::pin(future);
        let told = std::future::poll_fn(move |cx| {
            let outcome = future.as_mut().poll(cx);
            let _ = tell.send(());
            outcome
        });
        let thread = std::thread::spawn(move || wait::block_on(told));
        polled.recv().unwrap();
        Self(thread)
    }

    /// Waits for its end.
    pub fn join(self) -> T {
        match self.0.join() {
            Ok(output) => output,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Waits for what no event tells of, by looking every millisecond; the watchdog bounds it.
pub fn eventually(mut condition: impl FnMut() -> bool) {
    while !condition() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Waits until the kernel has settled all that it accepted; both books balance then.
pub fn quiet<M: Message, R: Message>(kernel: &KernelRef<M, R>) {
    eventually(|| {
        let books = kernel.books();
        books.queued == 0 && books.in_hand == 0
    });
    balanced(kernel);
}

/// Asserts that both books balance.
pub fn balanced<M: Message, R: Message>(kernel: &KernelRef<M, R>) {
    let (books, replies) = (kernel.books(), kernel.reply_books());
    assert!(books.balance(), "{:?}: {books:?}", kernel.id());
    assert!(replies.balance(), "{:?}: {replies:?}", kernel.id());
    assert!(books.in_hand <= 1, "{:?}: {books:?}", kernel.id());
}

/// Looks at the books of kernels all the time, from a thread of its own: they balance at every
/// instant, not only at the end.
#[derive(Debug)]
pub struct Auditor {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Auditor {
    /// Begins to look.
    pub fn watch<M: Message, R: Message>(kernels: Vec<KernelRef<M, R>>) -> Self {
        let (stop, stopped) = std_channel();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_micros(50)) == Err(RecvTimeoutError::Timeout)
            {
                kernels.iter().for_each(balanced);
            }
        });
        Self { stop, thread }
    }

    /// Ends it; what it found is passed on.
    pub fn end(self) {
        drop(self.stop);
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}
