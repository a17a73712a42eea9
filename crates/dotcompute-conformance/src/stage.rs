//! Where a promise is tested: a runtime, an executor, and the means to know what happens there.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use dotcompute::mailbox::sync::lock;
use dotcompute::mailbox::wait;
use dotcompute::{
    BoxError, Context, Handler, HandlerContext, KernelBuilder, KernelRef, Message, Runtime,
    RuntimeBuilder, Termination,
};
use tokio::sync::Semaphore;

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
    pub fn kernel(&self, name: &str) -> KernelBuilder<'_> {
        self.runtime.kernel(name).executor(self.fixture.executor)
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
    let (done, ended) = channel::<()>();
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

/// Lets whoever passes it wait until it is opened, a given number of times.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

impl Gate {
    /// Lets `times` passes through.
    pub fn open(&self, times: usize) {
        self.0.add_permits(times);
    }

    /// Lets every pass through, from now on.
    pub fn remove(&self) {
        self.0.close();
    }

    /// Waits until the gate is open for this pass.
    pub async fn pass(&self) {
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }

    /// Waits on the calling thread, which is blocked.
    pub fn pass_blocking(&self) {
        wait::block_on(self.pass());
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
}

/// What a kernel made by [`serve`] does with a number: `Some` reply, none, or a fault.
pub type Outcome = Result<Option<u64>, BoxError>;

/// Launches and activates a kernel that calls, per message, the function that `make` returns at
/// each of its starts.
pub fn serve<F>(
    builder: KernelBuilder<'_>,
    form: Form,
    mut make: impl FnMut() -> F + Send + 'static,
) -> KernelRef<Number, Number>
where
    F: FnMut(u64) -> Outcome + Send + 'static,
{
    let kernel = match form {
        Form::Body => builder.launch(move |mut context: Context<Number, Number>| {
            let mut each = make();
            async move {
                while let Ok(&Number(number)) = context.receive().await {
                    if let Some(reply) = each(number)? {
                        context.reply(Number(reply)).await?;
                    }
                }
                Ok(())
            }
        }),
        Form::Handler => builder.launch_handler(move || Each(make())),
    };
    let kernel = kernel.unwrap();
    kernel.activate().unwrap();
    kernel
}

struct Each<F>(F);

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
    pub fn busy(builder: KernelBuilder<'_>) -> Self {
        let gated = Self::idle(builder);
        gated.kernel.try_send(Number(0)).unwrap();
        gated.arrives(0);
        gated
    }

    /// Launches it with nothing in hand.
    pub fn idle(builder: KernelBuilder<'_>) -> Self {
        let gate = Gate::default();
        let (tell, arrived) = channel();
        let inside = gate.clone();
        let kernel = builder
            .launch(move |context: Context<Number, Number>| {
                stop_and_go(context, tell.clone(), inside.clone())
            })
            .unwrap();
        kernel.activate().unwrap();
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
    tell: Sender<u64>,
    gate: Gate,
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
    builder: KernelBuilder<'_>,
    body: impl FnMut(Context<M, R>) -> F + Send + 'static,
) -> KernelRef<M, R>
where
    F: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let kernel = builder.launch(body).unwrap();
    kernel.activate().unwrap();
    kernel
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
        let (tell, polled) = channel();
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
        let (stop, stopped) = channel();
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
