//! Kernels by name: what both parent and child know of each other's code.

use std::any::{Any, type_name};
use std::collections::HashMap;
use std::env;
use std::fmt;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use dotcompute_core::compiled::{NearSide, RecordMessage, RecordReply, StateReader, StateSource};
use dotcompute_core::{
    BoxError, CompiledHandler, Context, Executor, Fault, Handler, KernelBuilder, KernelId,
    KernelRef, LaunchError, Message, Runtime,
};
use dotcompute_mailbox::sync::{AtomicBool, Ordering};

use crate::arena::GRANULE;
use crate::child::{Session, Start};
use crate::coder::Coder;
use crate::executor::{Desk, ProcessExecutor};
use crate::host::Host;
use crate::memory::Memory;
use crate::output::{self, Output, Sink};
use crate::proxy::{Near, Proxy};
use crate::socket::{ARGS_MAX, Setup};
use crate::state::SharedState;
use crate::{CHILD_OF, EXECUTOR};

/// Whether this process is a child that serves its parent, as it should.
static SERVES: AtomicBool = AtomicBool::new(false);

/// The kernels of a program that can run in processes of their own, by name.
///
/// The child is the same program: it comes to [`child_main`](Self::child_main) with the same
/// kernels registered, and goes no further.
#[must_use = "registered kernels are reached through `child_main`"]
pub struct Kernels {
    entries: HashMap<String, Entry>,
    command: Box<dyn Fn() -> std::io::Result<Command> + Send + Sync>,
    sink: Sink,
    threads: Threads,
    first_step: String,
}

/// Makes what each thread of a kernel keeps until it ends.
pub(crate) type Threads = Arc<dyn Fn() -> Box<dyn Any + Send> + Send + Sync>;

type Serve = Box<dyn Fn(&mut Host) -> Result<(), Fault> + Send + Sync>;

struct Entry {
    /// The `Coders<M, R>` of its messages and replies.
    coders: Box<dyn Any + Send + Sync>,
    types: &'static str,
    /// For the child: runs it.
    serve: Serve,
    /// For the parent, of a compiled handler.
    compiled: Option<Compiled>,
}

type Make = Arc<dyn Fn(&[u8]) -> Result<CompiledHandler, BoxError> + Send + Sync>;

/// What the parent has to know of a compiled handler.
struct Compiled {
    make: Make,
    check: fn(&NearSide, &KernelId) -> Result<(), LaunchError>,
}

struct Coders<M, R> {
    messages: Coder<M>,
    replies: Coder<R>,
}

impl Default for Kernels {
    fn default() -> Self {
        Self::new()
    }
}

impl Kernels {
    /// None yet; children run the program that runs now.
    pub fn new() -> Self {
        Self {
            entries: HashMap::new(),
            command: Box::new(|| Ok(Command::new(env::current_exe()?))),
            sink: Arc::new(output::trace),
            threads: Arc::new(|| Box::new(())),
            first_step: "`Kernels::child_main`, which is to be called first thing in `main`".into(),
        }
    }

    /// Children are started by what `command` makes, instead: a program that comes to
    /// [`child_main`](Self::child_main) with the same kernels. Its standard input is taken.
    pub fn command(
        mut self,
        command: impl Fn() -> std::io::Result<Command> + Send + Sync + 'static,
    ) -> Self {
        self.command = Box::new(command);
        self
    }

    /// What children write goes to `sink` instead of `tracing`'s target `dotcompute::child`.
    pub fn output(mut self, sink: impl Fn(&KernelId, Output<'_>) + Send + Sync + 'static) -> Self {
        self.sink = Arc::new(sink);
        self
    }

    /// What a child has to come to, for the error that it did not do so
    /// [in time](Process::start_within); `Kernels::child_main` by default. For programs that bring
    /// their own way to find a kernel's code.
    pub fn first_step(mut self, what: impl Into<String>) -> Self {
        self.first_step = what.into();
        self
    }

    /// `keep` is called before a thread of a kernel is started in the parent, and its result dropped
    /// when that thread ends; for runtimes that must know of threads.
    pub fn threads(
        mut self,
        keep: impl Fn() -> Box<dyn Any + Send> + Send + Sync + 'static,
    ) -> Self {
        self.threads = Arc::new(keep);
        self
    }

    /// Registers a handler: `make` is called in the child, with the arguments of the launch, at
    /// each start. The one registered last under a name counts.
    pub fn handler<H: Handler>(
        self,
        name: &str,
        messages: Coder<H::In>,
        replies: Coder<H::Out>,
        make: impl Fn(&[u8]) -> Result<H, BoxError> + Send + Sync + 'static,
    ) -> Self {
        let (message_coder, reply_coder) = (messages.clone(), replies.clone());
        self.host(name, message_coder, reply_coder, move |host| {
            let handler = make(host.args()).map_err(Fault::from_error)?;
            host.run_handler(handler, &messages, &replies)
        })
    }

    /// Registers a body: it is called in the child, with the arguments of the launch, at each
    /// start, and runs there on a thread of its own. Of other kernels it knows only those that its
    /// own process has.
    pub fn body<M: Message, R: Message, F>(
        self,
        name: &str,
        messages: Coder<M>,
        replies: Coder<R>,
        body: impl Fn(Context<M, R>, Vec<u8>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let (message_coder, reply_coder) = (messages.clone(), replies.clone());
        self.host(name, message_coder, reply_coder, move |host| {
            let (body, args) = (body.clone(), host.args().to_vec());
            let runtime = Runtime::builder().name(host.kernel()).build();
            let kernel = runtime
                .kernel(host.kernel())
                .executor("thread")
                .capacity(host.window())
                .watchdog(None)
                .keep_replies()
                .launch(move |context| body(context, args.clone()))
                .map_err(|error| Fault::from_error(error.into()))?;
            host.wait_for_activation();
            kernel.activate().map_err(|error| Fault::from_error(error.into()))?;
            host.run_kernel(&kernel, &messages, &replies)
        })
    }

    /// Registers a kernel that `serve` runs in the child, by the means of [`Host`]: for other
    /// languages.
    pub fn host<M: Message, R: Message>(
        mut self,
        name: &str,
        messages: Coder<M>,
        replies: Coder<R>,
        serve: impl Fn(&mut Host) -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Self {
        let coders = Box::new(Coders { messages, replies });
        let (types, serve) = (type_name::<(M, R)>(), Box::new(serve));
        self.entries.insert(name.into(), Entry { coders, types, serve, compiled: None });
        self
    }

    /// Registers a compiled handler: `make` is called in the child, with the arguments of the
    /// launch, at each start, and once in the parent, for what it says of the handler; there its code
    /// is not run.
    ///
    /// The state lies in shared memory: it is as of the last message that was acknowledged, also
    /// where the child died or the handler failed, and a restart goes on from there. Each
    /// acknowledgement copies it; where it is larger than 4 KiB, that is each message.
    pub fn compiled<M: RecordMessage, R: RecordReply>(
        self,
        name: &str,
        messages: Coder<M>,
        replies: Coder<R>,
        make: impl Fn(&[u8]) -> Result<CompiledHandler, BoxError> + Send + Sync + 'static,
    ) -> Self {
        let (message_coder, reply_coder) = (messages.clone(), replies.clone());
        let make = Arc::new(make);
        let in_child = Arc::clone(&make);
        let mut kernels = self.host(name, message_coder, reply_coder, move |host| {
            let handler = in_child(host.args()).map_err(Fault::from_error)?;
            host.run_compiled(handler, &messages, &replies)
        });
        if let Some(entry) = kernels.entries.get_mut(name) {
            entry.compiled = Some(Compiled { make, check: NearSide::check::<M, R> });
        }
        kernels
    }

    /// In a child: runs the kernel that it was started for, and ends the process. In any other
    /// process: returns, and kernels can be launched.
    ///
    /// To be called first thing in `main`, before there are threads: a child that came to launch
    /// kernels itself would never end.
    #[expect(
        clippy::disallowed_methods,
        reason = "a child must not run on in a `main` that is its parent's"
    )]
    pub fn child_main(self) -> Processes {
        if is_child() {
            std::process::exit(match self.serve() {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!(
                        "this process was started for a ring kernel and cannot run it: {error}"
                    );
                    1
                }
            });
        }
        Processes { kernels: Arc::new(self) }
    }

    /// Runs the kernel that this child was started for. Whether that went well; how the kernel
    /// ended, its parent is told.
    fn serve(self) -> std::io::Result<()> {
        let mut host = child_host()?;
        let outcome = match self.entries.get(host.entry()) {
            Some(entry) => {
                host.started();
                // What makes a handler may panic too: the parent is told of it as of any fault.
                let serve = AssertUnwindSafe(|| (entry.serve)(&mut host));
                catch_unwind(serve).unwrap_or_else(|panic| Err(Fault::from_panic(panic)))
            }
            None => Err(Fault::new(format!(
                "the program has no kernel '{}' registered for its processes",
                host.entry()
            ))),
        };
        // What was printed comes before the end.
        use std::io::Write;
        std::io::stdout().flush()?;
        host.end(outcome);
        Ok(())
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

/// In a child: its end of what joins it with its parent, for programs that bring their own way to find
/// a kernel's code. To be called once, before there are threads.
///
/// # Errors
///
/// If this process is no child, or was called before.
pub fn child_host() -> std::io::Result<Host> {
    if !is_child() {
        let why = "this process was not started to run a ring kernel";
        return Err(std::io::Error::new(std::io::ErrorKind::NotConnected, why));
    }
    // Relaxed: this thread is the only one so far.
    SERVES.store(true, Ordering::Relaxed);
    Ok(Host::attach(take_socket()?)?)
}

/// The executor `"process"`, for [`RuntimeBuilder::executor`](dotcompute_core::RuntimeBuilder). It
/// runs what [`Processes::launch`] launches.
pub fn executor() -> Arc<dyn Executor> {
    Arc::new(ProcessExecutor)
}

/// Whether this process was started by another one to run a kernel for it.
pub fn is_child() -> bool {
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_pid().to_string());
    // A process that a child starts inherits the variable, but not the parent.
    parent.is_some() && env::var(CHILD_OF).ok() == parent
}

/// The socket that this child was given as its standard input, which is empty from now on.
fn take_socket() -> std::io::Result<OwnedFd> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let nothing = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    Ok(socket)
}

/// How long a child may take to come to its kernel's code, where nothing else is said.
const START_WITHIN: Duration = Duration::from_secs(60);

/// How much room for arrays there is each way, where nothing else is said.
const ARENA_BYTES: usize = 64 << 20;

/// How a kernel is launched in a process of its own.
#[derive(Clone, Debug)]
pub struct Process {
    entry: String,
    args: Vec<u8>,
    window: usize,
    slots: usize,
    granules: usize,
    start_within: Duration,
    memory: Vec<Arc<Memory>>,
}

impl Process {
    /// With the code that is registered under `name`.
    pub fn new(name: &str) -> Self {
        Self {
            entry: name.into(),
            args: Vec::new(),
            window: 1,
            slots: 1024,
            granules: ARENA_BYTES / GRANULE,
            start_within: START_WITHIN,
            memory: Vec::new(),
        }
    }

    /// Arguments for its code, at most 64 KiB.
    #[must_use]
    pub fn args(mut self, args: impl Into<Vec<u8>>) -> Self {
        self.args = args.into();
        self
    }

    /// How many messages are handed over before the first of them is acknowledged: 1 by default.
    ///
    /// With 1 a message leaves the mailbox when the kernel waits for it, and everything is as with
    /// any other executor. With more the two processes need not wait for each other; but the
    /// messages that are handed over count as in hand, no longer towards the capacity, are not
    /// overtaken by more urgent ones, not dropped by a policy, and not held back by a deactivation.
    #[must_use]
    pub fn window(mut self, messages: usize) -> Self {
        self.window = messages.clamp(1, 1 << 16);
        self
    }

    /// How many slots of 64 bytes each of the two rings has: 1024 by default, at least 16. A
    /// message takes 24 bytes more than its own, 56 to a slot.
    #[must_use]
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = slots.clamp(16, 1 << 20);
        self
    }

    /// How many bytes there are for arrays that are on their way or still in use, each way: 64 MiB by
    /// default. Memory is taken from the system as it is first used, and kept for as long as the
    /// child lives, or what it sent is held.
    ///
    /// Batches of records and other arrays of 32 KiB and more are copied there once and read in place;
    /// where there is no room, they go through the ring.
    #[must_use]
    pub fn arena(mut self, bytes: usize) -> Self {
        self.granules = bytes.div_ceil(GRANULE).min(1 << 20);
        self
    }

    /// How long the program may take, from its start, to come to the kernel's code: a minute by
    /// default. If it does not, it is killed, and the kernel fails.
    ///
    /// For a child of a program that uses [`Kernels::child_main`] that is the time until it is
    /// called; how long a handler takes to be made is its own affair.
    #[must_use]
    pub fn start_within(mut self, time: Duration) -> Self {
        self.start_within = time;
        self
    }

    /// Memory that it shares, one more with each call, of which there can be a few: its code finds it by
    /// [`Host::take_memory`](crate::Host::take_memory), in this order. It is the same for each process that
    /// a restart starts.
    #[must_use]
    pub fn memory(mut self, memory: Arc<Memory>) -> Self {
        self.memory.push(memory);
        self
    }
}

/// Launches the kernels that were registered, each in a process of its own. Cloning is one reference
/// count.
#[derive(Clone, Debug)]
pub struct Processes {
    kernels: Arc<Kernels>,
}

impl Processes {
    /// The executor `"process"`: see [`executor`].
    pub fn executor(&self) -> Arc<dyn Executor> {
        executor()
    }

    /// Launches a kernel in a process of its own, which is started at once. `builder` names an
    /// executor made by [`executor`](Self::executor) and says everything else.
    ///
    /// The process, and with it the kernel's state, is started anew at each restart.
    ///
    /// # Errors
    ///
    /// See [`LaunchError`]; also if the name is not registered, for other types, or the process
    /// cannot be started.
    pub fn launch<M: Message, R: Message>(
        &self,
        builder: KernelBuilder<'_>,
        process: Process,
    ) -> Result<KernelRef<M, R>, LaunchError> {
        self.launch_any(builder, process).map(|(kernel, _)| kernel)
    }

    /// [`launch`](Self::launch) of a [compiled handler](Kernels::compiled), with what reads its state:
    /// also while it runs, without making it wait.
    ///
    /// # Errors
    ///
    /// As for `launch`, and if what is registered under the name is no compiled handler.
    pub fn launch_compiled<M: RecordMessage, R: RecordReply>(
        &self,
        builder: KernelBuilder<'_>,
        process: Process,
    ) -> Result<(KernelRef<M, R>, StateReader), LaunchError> {
        let (kernel, entry) = (builder.id().clone(), process.entry.clone());
        let is_compiled = |found: &Entry| found.compiled.is_some();
        if !self.kernels.entries.get(&entry).is_none_or(is_compiled) {
            let source = format!("'{entry}' is registered, but as no compiled handler").into();
            return Err(LaunchError::Executor { kernel, executor: EXECUTOR, source });
        }
        let (launched, state) = self.launch_any(builder, process)?;
        let state = state.ok_or_else(|| LaunchError::Executor {
            kernel,
            executor: EXECUTOR,
            source: format!("'{entry}' is no compiled handler").into(),
        })?;
        Ok((launched, state))
    }

    fn launch_any<M: Message, R: Message>(
        &self,
        builder: KernelBuilder<'_>,
        process: Process,
    ) -> Result<(KernelRef<M, R>, Option<StateReader>), LaunchError> {
        let kernel = builder.id().clone();
        let refuse = |source: BoxError| LaunchError::Executor {
            kernel: kernel.clone(),
            executor: EXECUTOR,
            source,
        };
        // Relaxed: set before there were threads, or never.
        if is_child() && !SERVES.load(Ordering::Relaxed) {
            return Err(refuse(
                "this process is itself a child that was to run one kernel: call `child_main` first \
                 thing in `main`"
                    .into(),
            ));
        }
        let Coders { messages, replies } =
            self.coders::<M, R>(&process.entry).map_err(|error| refuse(error.into()))?;
        let (messages, replies) = (messages.clone(), replies.clone());
        if process.args.len() > ARGS_MAX {
            let length = process.args.len();
            return Err(refuse(format!("{length} bytes of arguments: 65536 are allowed").into()));
        }
        let (mut near, mut reader) = (None, None);
        if let Some(compiled) =
            self.kernels.entries.get(&process.entry).and_then(|e| e.compiled.as_ref())
        {
            let handler = (compiled.make)(&process.args).map_err(refuse)?;
            reader = Some(handler.state_reader());
            let side = NearSide::of(handler);
            (compiled.check)(&side, &kernel)?;
            let initial = side.initial_state();
            let state = initial.map(|initial| SharedState::create(&initial)).transpose();
            let state = state.map_err(|error| refuse(error.into()))?;
            if let Some(state) = &state {
                side.read_state_from(Arc::clone(state) as Arc<dyn StateSource>);
            }
            near = Some(Arc::new(Near { side, state }));
        }
        let desk = Desk::new((self.kernels.threads)()).map_err(|error| refuse(error.into()))?;
        let starter = Starter {
            kernels: Arc::clone(&self.kernels),
            kernel: kernel.clone(),
            process,
            desk: Arc::clone(&desk),
            near,
        };
        // Launch takes the resources: the first process runs before the kernel is activated.
        let mut first = Some(starter.start().map_err(|error| refuse(error.into()))?);
        let launched = desk.launching(|| {
            builder.launch_proxy(move |context| {
                let session = first.take().map_or_else(|| starter.start(), Ok);
                let desk = Arc::clone(&starter.desk);
                let (coders, near) = ((messages.clone(), replies.clone()), starter.near.clone());
                let window = starter.process.window;
                async move { Proxy::new(context, session?, desk, coders, window, near).await }
            })
        });
        let launched = launched?;
        launched.help_with(desk);
        Ok((launched, reader))
    }

    fn coders<M: Message, R: Message>(&self, entry: &str) -> Result<&Coders<M, R>, String> {
        let Some(found) = self.kernels.entries.get(entry) else {
            return Err(format!("no kernel '{entry}' is registered for processes"));
        };
        found.coders.downcast_ref().ok_or_else(|| {
            let (types, asked) = (found.types, type_name::<(M, R)>());
            format!("'{entry}' is registered for messages and replies {types}, not {asked}")
        })
    }
}

/// Starts the processes of one kernel.
struct Starter {
    kernels: Arc<Kernels>,
    kernel: KernelId,
    process: Process,
    desk: Arc<Desk>,
    near: Option<Arc<Near>>,
}

impl Starter {
    fn start(&self) -> std::io::Result<Session> {
        let state = self.near.as_ref().and_then(|near| near.state.as_deref());
        let setup = Setup {
            entry: self.process.entry.clone(),
            kernel: self.kernel.as_str().into(),
            args: self.process.args.clone(),
            window: self.process.window as u32,
            log_level: output::level(),
            state_bytes: state.map(|state| state.bytes() as u64),
        };
        let command = (self.kernels.command)()?;
        let start = Start {
            within: self.process.start_within,
            first_step: self.kernels.first_step.clone(),
            sink: Arc::clone(&self.kernels.sink),
            kept: (self.kernels.threads)(),
        };
        let sizes = (self.process.slots, self.process.granules);
        let lent: Vec<&Memory> = state
            .map(SharedState::memory)
            .into_iter()
            .chain(self.process.memory.iter().map(|it| &**it))
            .collect();
        Session::spawn(command, &setup, sizes, &self.desk, &lent, start)
    }
}
