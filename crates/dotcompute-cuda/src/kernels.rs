//! Kernels by name: handlers, what they take and keep, and the device that runs them.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use dotcompute_abi::slot::TAGGED_RECORD_BYTES_MAX;
use dotcompute_core::compiled::{RecordMessage, RecordReply};
use dotcompute_core::record::RecordLayout;
use dotcompute_core::{
    BoxError, Executor, Fault, FaultKind, KernelBuilder, KernelId, KernelRef, LaunchError, Record,
};
use dotcompute_mailbox::sync::lock;
use dotcompute_mailbox::wait;

use crate::EXECUTOR;
use crate::cache::Cache;
use crate::compute::{ComputeError, Context, Stream};
use crate::direct::Seat;
use crate::driver::{Device, Driver};
use crate::green::{NotApart, Partition, Placement};
use crate::grid::{Counters, SeatPlan, Shape};
use crate::image::{BuildError, Class, CudaHandler, Image, Variant};
use crate::library::{Absent, CallError};
use crate::proxy::Proxy;
use crate::pump::{CudaExecutor, Desk, Pump};
use crate::resident::{Isolation, Residency, Resident, ResidentError};
use crate::set::Set;
use crate::target::{Named, Target};
use crate::toolkit::Toolkit;

/// The code of a kernel with what it takes, keeps and replies with.
///
/// Messages, replies and states are [records](Record); a message and a reply have at most 376
/// bytes, and those of 40 take the least room.
#[derive(Clone, Debug)]
pub struct CudaKernel {
    code: CudaHandler,
    layouts: Layouts,
    state: Vec<u8>,
    state_layout: Option<&'static RecordLayout>,
    targets: Targets,
}

/// What a handler sends to, in the order of the numbers by which it knows them.
pub(crate) type Targets = Vec<Arc<dyn Target>>;

/// What a handler takes and makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layouts {
    pub(crate) input: &'static RecordLayout,
    pub(crate) output: Option<&'static RecordLayout>,
    pub(crate) max_emit: u32,
}

impl CudaKernel {
    /// The handler `code`, which takes records of the layout `input`. Without
    /// [`output`](Self::output) it makes no replies, without [`state`](Self::state) it keeps
    /// nothing.
    pub fn new(code: CudaHandler, input: &'static RecordLayout) -> Self {
        let layouts = Layouts { input, output: None, max_emit: 0 };
        Self { code, layouts, state: Vec::new(), state_layout: None, targets: Vec::new() }
    }

    /// It replies with records of this layout.
    #[must_use]
    pub fn output(mut self, layout: &'static RecordLayout) -> Self {
        self.layouts.output = Some(layout);
        self
    }

    /// Its state is a record that begins, at each (re)start, as `initial`.
    #[must_use]
    pub fn state<S: Record>(self, initial: &S) -> Self {
        self.state_bytes(S::LAYOUT, initial.bytes())
    }

    /// Its state is a record of this layout that begins, at each (re)start, as `initial`.
    ///
    /// # Panics
    ///
    /// If `initial` has another size than the layout.
    #[must_use]
    pub fn state_bytes(mut self, layout: &'static RecordLayout, initial: &[u8]) -> Self {
        assert_eq!(initial.len(), layout.bytes, "the state '{}' has another size", layout.name);
        self.state = initial.to_vec();
        self.state_layout = Some(layout);
        self
    }

    /// Besides the reply that it returns it emits at most so many for one record: 0 by default, at
    /// most 7, and at most 6 where it has targets.
    #[must_use]
    pub fn max_emit(mut self, replies: u32) -> Self {
        self.layouts.max_emit = replies;
        self
    }

    /// It can send records of this layout, as messages of type `S`, to the kernel of this name in
    /// its runtime, wherever that runs: its next target, counted from 0, of 31 at most. What it sends
    /// and emits for one message is 7 records at most; with the reply and what it logs those take 16
    /// slots at most, of which a record of 40 bytes takes one, and each 48 more another.
    ///
    /// To a kernel on the same grid that waits for room, and would not wait for this one in turn,
    /// records go on the device, for the first 8 targets; this is arranged when both are there and
    /// nothing is on its way between them. All others go by the host, in order. Each is a message of
    /// its own, also where the handler was sent a batch.
    #[must_use]
    pub fn target<S: RecordReply>(mut self, kernel: &str, layout: &'static RecordLayout) -> Self {
        let kernel = KernelId::from(kernel);
        self.targets.push(Arc::new(Named::<S> { kernel, layout, message: PhantomData }));
        self
    }

    /// The plan of its seat.
    fn plan(&self, handler: u32, state: Vec<u8>) -> SeatPlan {
        let Layouts { output, max_emit, .. } = self.layouts;
        let most = match self.targets.is_empty() {
            true => max_emit,
            false => EMITS_MAX,
        };
        SeatPlan {
            handler,
            state,
            message_bytes: self.layouts.input.bytes as u32,
            reply_bytes: output.map_or(0, |layout| layout.bytes as u32),
            max_emit: most,
            send_only: most - max_emit,
            edges: Vec::new(),
            open: self.targets.iter().map(|target| target.layout().bytes as u32).collect(),
        }
    }

    /// That the code takes, keeps and makes records of the sizes that are declared, where it says so.
    fn check_sizes(&self, name: &str) -> Result<(), CudaError> {
        let Some(sizes) = self.code.sizes() else { return Ok(()) };
        let Layouts { input, output, .. } = self.layouts;
        let declared = [input.bytes, self.state.len(), output.map_or(0, |layout| layout.bytes)];
        for (what, (bytes, declared)) in
            ["message", "state", "reply"].into_iter().zip(sizes.into_iter().zip(declared))
        {
            if bytes != declared as u64 {
                return Err(CudaError::Size { kernel: name.into(), what, bytes, declared });
            }
        }
        Ok(())
    }

    fn check(&self, name: &str) -> Result<(), CudaError> {
        self.code.check()?;
        self.check_sizes(name)?;
        let most = TAGGED_RECORD_BYTES_MAX as usize;
        let sent = self.targets.iter().map(|target| ("record sent", Some(target.layout())));
        let records = [("message", Some(self.layouts.input)), ("reply", self.layouts.output)];
        for (what, layout) in records.into_iter().chain(sent) {
            if let Some(layout) = layout
                && layout.bytes > most
            {
                let (kernel, record, bytes) = (name.into(), layout.name.into(), layout.bytes);
                return Err(CudaError::TooLarge { kernel, what, record, bytes, most });
            }
        }
        // One place at least for what is sent.
        let most = EMITS_MAX - u32::from(!self.targets.is_empty());
        if self.layouts.max_emit > most {
            let emits = self.layouts.max_emit;
            return Err(CudaError::Emits { kernel: name.into(), emits, most });
        }
        let targets = self.targets.len();
        if targets > TARGETS_MAX {
            return Err(CudaError::Targets { kernel: name.into(), targets, most: TARGETS_MAX });
        }
        Ok(())
    }
}

/// How many records a handler makes for one message at most, besides its reply.
const EMITS_MAX: u32 = dotcompute_abi::device::EMITS_MAX;

/// Targets of a kernel: a seat has so many edges, and one for replies.
const TARGETS_MAX: usize = EDGES as usize - 1;
const EDGES: u32 = 32;

/// How many handlers are linked into one image.
const HANDLERS_MAX: usize = 64;

/// How a device is used.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Which device: its place among those that the process may use, from 0.
    pub ordinal: u32,
    /// The driver; the machine's own by default.
    pub driver: Option<&'static Driver>,
    /// The compiler and the linker; those that [`Toolkit::load`] finds by default.
    pub toolkit: Option<Arc<Toolkit>>,
    /// The kernels registered, linked elsewhere ([`CudaKernels::build`]): then there need not be a
    /// compiler.
    pub image: Option<Image>,
    /// Where images are kept; the user's own cache by default.
    pub cache: Option<Cache>,
    /// Which variant of the protocol.
    pub variant: Variant,
    /// How many kernels a grid has room for; when all are taken, there is one more grid. Where a kernel is a
    /// team of blocks, so many blocks, and one kernel at least.
    pub seats: u32,
    /// How many records of a kernel are on the device at most. They count as in hand: they are not
    /// dropped by a policy, nor held back by a deactivation for longer than it takes to reach the
    /// device.
    pub window: usize,
    /// From how many other kernels of its grid a kernel takes messages on the device, past the host.
    /// Those beyond them send by the host.
    pub senders: u32,
    /// How many records each of them may have on its way there.
    pub share: usize,
    /// How grids stay.
    pub residency: Residency,
    /// Whether their contexts live in this process.
    pub isolation: Isolation,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ordinal: 0,
            driver: None,
            toolkit: None,
            image: None,
            cache: Cache::of_user(),
            variant: Variant::default(),
            seats: 31,
            window: 64,
            senders: 8,
            share: 64,
            residency: Residency::default(),
            isolation: Isolation::default(),
        }
    }
}

/// Why a GPU cannot be used, or a kernel not launched there.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// One of NVIDIA's libraries is absent or does not do.
    #[error("no CUDA: {0}{hint}", hint = .0.advice().map(|a| format!(" ({a})")).unwrap_or_default())]
    Absent(Absent),
    /// There is no device of that number.
    #[error("no CUDA device {ordinal}: there are {count}")]
    NoDevice {
        /// Which was wanted.
        ordinal: u32,
        /// How many there are.
        count: usize,
    },
    /// The device cannot hold grids that stay.
    #[error("the CUDA device {ordinal}, {name}, has no cooperative launch")]
    NotCooperative {
        /// Which.
        ordinal: u32,
        /// Its name.
        name: String,
    },
    /// What the driver said.
    #[error("CUDA: {0}")]
    Driver(#[from] CallError),
    /// No multiprocessors are set aside for grids, so that there are no others.
    #[error("no multiprocessors are set aside for grids: {0}")]
    NotApart(#[from] NotApart),
    /// The handlers do not compile or link.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The image that was given has no such handler.
    #[error("the image has no handler '{0}'")]
    NotInImage(String),
    /// The grid could not be made or changed.
    #[error("the resident grid: {0}")]
    Resident(#[from] ResidentError),
    /// No kernel of that name is registered.
    #[error("no kernel '{name}' is registered for CUDA; there are: {registered}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that are.
        registered: String,
    },
    /// A record has no room in as many slots as one takes.
    #[error("the {what} '{record}' of '{kernel}' has {bytes} bytes; at most {most} will do")]
    TooLarge {
        /// Of which kernel.
        kernel: String,
        /// Message or reply.
        what: &'static str,
        /// Its type.
        record: String,
        /// Its size.
        bytes: usize,
        /// The largest.
        most: usize,
    },
    /// A handler's code has a record of another size than is declared for it.
    #[error("the handler of '{kernel}' has a {what} of {bytes} bytes; {declared} are declared")]
    Size {
        /// Of which kernel.
        kernel: String,
        /// Message, state or reply.
        what: &'static str,
        /// The size that its code has.
        bytes: u64,
        /// The size that is declared; 0 if there is to be none.
        declared: usize,
    },
    /// A handler emits more than an outbox holds.
    #[error("'{kernel}' declares {emits} emitted records for one message; at most {most} will do")]
    Emits {
        /// Of which kernel.
        kernel: String,
        /// What it declares.
        emits: u32,
        /// What will do.
        most: u32,
    },
    /// A handler with more targets than a seat has edges.
    #[error("'{kernel}' has {targets} targets; at most {most} will do")]
    Targets {
        /// Of which kernel.
        kernel: String,
        /// How many.
        targets: usize,
        /// What will do.
        most: usize,
    },
    /// A target that takes other records than are sent to it.
    #[error("'{kernel}' sends '{sent}' to '{target}', which takes '{taken}'")]
    Target {
        /// The kernel.
        kernel: String,
        /// The one that it sends to.
        target: String,
        /// What it sends.
        sent: String,
        /// What the other takes.
        taken: String,
    },
    /// A state of another size than the kernel's.
    #[error("a state of {bytes} bytes for '{kernel}', whose state has {expected}")]
    State {
        /// Of which kernel.
        kernel: String,
        /// What was given.
        bytes: usize,
        /// What it has.
        expected: usize,
    },
    /// A kernel that has no seat: it never had one, or has ended.
    #[error("ring kernel '{0}' is not on the device")]
    NotSeated(String),
    /// The pump's thread could not be started.
    #[error("the pump cannot be started: {0}")]
    Thread(String),
    /// Memory that the kernels of this device cannot reach: why.
    #[error("this memory cannot be lent to the kernels: {0}")]
    NotReached(String),
    /// What became of other work on the device.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// Not done within the time that was given.
    #[error("the device did not get to it within {0:?}")]
    Timeout(Duration),
}

impl From<Absent> for CudaError {
    fn from(absent: Absent) -> Self {
        Self::Absent(absent)
    }
}

/// Kernels to be linked together, by name.
///
/// ```no_run
/// use dotcompute_core::{Message, Record, Runtime};
/// use dotcompute_cuda::{CudaHandler, CudaKernel, CudaKernels, CudaLaunch, CudaOptions};
///
/// #[derive(Clone, Copy, Message)]
/// #[message(record, crate = "dotcompute_core")]
/// #[repr(C)]
/// struct Amount {
///     value: i64,
/// }
///
/// const SOURCE: &str = r#"
///     #include "dotcompute.cuh"
///     struct Amount { long long value; };
///     extern "C" __device__ int32_t
///     add(const Amount *message, Amount *total, Amount *reply, rk_ctx *) {
///         total->value += message->value;
///         reply->value = total->value;
///         return DC_HANDLER_REPLY;
///     }
/// "#;
///
/// let add = CudaKernel::new(CudaHandler::from_source("add", SOURCE), Amount::LAYOUT)
///     .output(Amount::LAYOUT)
///     .state(&Amount { value: 2 });
/// let cuda = CudaKernels::new().kernel("adder", add).open(CudaOptions::default())?;
/// let runtime = Runtime::builder().executor(cuda.executor()).build();
/// let kernel = cuda.launch::<Amount, Amount>(
///     runtime.kernel("sum").executor("cuda"),
///     CudaLaunch::new("adder"),
/// )?;
/// kernel.activate()?;
/// assert_eq!(kernel.ask_blocking(Amount { value: 40 }, None)?.message.value, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "registered kernels are launched through what `open` returns"]
pub struct CudaKernels {
    entries: Vec<(String, CudaKernel)>,
}

impl CudaKernels {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a kernel. The one registered last under a name counts.
    pub fn kernel(mut self, name: &str, kernel: CudaKernel) -> Self {
        self.entries.retain(|(known, _)| known != name);
        self.entries.push((name.into(), kernel));
        self
    }

    /// Compiles and links the kernels for a device, and makes it ready. The first grid is launched
    /// with the first kernel.
    ///
    /// # Errors
    ///
    /// [`CudaError`]: there is no driver, no device or no compiler; a source does not compile.
    pub fn open(self, options: CudaOptions) -> Result<Cuda, CudaError> {
        let driver = match options.driver {
            Some(driver) => driver,
            None => Driver::get().map_err(Clone::clone)?,
        };
        let devices = driver.devices()?;
        let ordinal = options.ordinal;
        let Some(device) = devices.get(ordinal as usize).cloned() else {
            return Err(CudaError::NoDevice { ordinal, count: devices.len() });
        };
        if !device.cooperative_launch {
            return Err(CudaError::NotCooperative { ordinal, name: device.name });
        }
        let pump = Pump::start().map_err(|error| CudaError::Thread(error.to_string()))?;
        let inner = Inner {
            driver,
            device,
            options: CudaOptions { image: None, ..options.clone() },
            pump,
            registered: Mutex::default(),
            joint: Mutex::default(),
            desks: Mutex::default(),
        };
        let cuda = Cuda { inner: Arc::new(inner) };
        cuda.link(self, options.image)?;
        Ok(cuda)
    }

    /// Links the kernels into an image for devices of this architecture, which
    /// [`CudaOptions::image`] takes: for machines without a compiler. All of them have the same
    /// [scope](CudaHandler::scope).
    ///
    /// # Errors
    ///
    /// As for [`Image::build`].
    pub fn build(
        &self,
        architecture: crate::Version,
        options: &CudaOptions,
    ) -> Result<Image, CudaError> {
        self.check()?;
        build(&self.handlers(), architecture, options)
    }

    fn check(&self) -> Result<(), CudaError> {
        self.entries.iter().try_for_each(|(name, kernel)| kernel.check(name))
    }

    /// The same kernels, those of each class by themselves.
    fn by_class(self) -> Vec<(Class, Self)> {
        let mut classes: Vec<(Class, Self)> = Vec::new();
        for entry in self.entries {
            let class = entry.1.code.class();
            match classes.iter_mut().find(|(known, _)| *known == class) {
                Some((_, of)) => of.entries.push(entry),
                None => classes.push((class, Self { entries: vec![entry] })),
            }
        }
        classes
    }

    fn handlers(&self) -> Vec<CudaHandler> {
        let mut handlers: Vec<CudaHandler> = Vec::new();
        for (_, kernel) in &self.entries {
            // Kernels may share their code.
            if !handlers.contains(&kernel.code) {
                handlers.push(kernel.code.clone());
            }
        }
        handlers
    }
}

fn build(
    handlers: &[CudaHandler],
    architecture: crate::Version,
    options: &CudaOptions,
) -> Result<Image, CudaError> {
    let toolkit = match &options.toolkit {
        Some(toolkit) => Arc::clone(toolkit),
        None => Arc::new(Toolkit::load()?),
    };
    toolkit.linker().map_err(Clone::clone)?;
    let cache = options.cache.as_ref();
    Ok(Image::build(handlers, architecture, options.variant, &toolkit, cache)?)
}

/// How a kernel is launched on a GPU.
#[derive(Clone, Debug)]
pub struct CudaLaunch {
    entry: String,
    state: Option<Vec<u8>>,
}

impl CudaLaunch {
    /// With the code that is registered under `name`.
    pub fn new(name: &str) -> Self {
        Self { entry: name.into(), state: None }
    }

    /// Its state begins as `state`, instead of as was registered, at each (re)start: a snapshot of
    /// an earlier kernel's, say.
    #[must_use]
    pub fn state<S: Record>(self, state: &S) -> Self {
        self.state_bytes(state.bytes())
    }

    /// The same, as bytes.
    #[must_use]
    pub fn state_bytes(mut self, state: &[u8]) -> Self {
        self.state = Some(state.to_vec());
        self
    }
}

/// A GPU, ready for kernels: the executor `"cuda"`. Cloning is one reference count. Kernels go on
/// when the last clone is dropped; new ones cannot be launched then.
#[derive(Clone)]
pub struct Cuda {
    inner: Arc<Inner>,
}

struct Inner {
    driver: &'static Driver,
    device: Device,
    options: CudaOptions,
    pump: Arc<Pump>,
    registered: Mutex<HashMap<String, Registered>>,
    /// The sets that handlers are linked into, one for each class; held while some are.
    joint: Mutex<Vec<(Class, Arc<Set>)>>,
    /// By the kernels' names.
    desks: Mutex<HashMap<KernelId, Weak<Desk>>>,
}

/// Kernels of one class that are linked and not registered yet.
struct Linked {
    class: Class,
    /// By their names, with the numbers of their handlers.
    entries: Vec<(String, CudaKernel, u32)>,
    into: LinkedInto,
}

/// What handlers are linked into.
struct LinkedInto {
    set: Arc<Set>,
    /// What the set is to be linked of, if that is more than before.
    joins: Option<(Vec<CudaHandler>, Image)>,
    /// Whether handlers that come later are to join the set.
    is_joint: bool,
}

#[derive(Clone)]
struct Registered {
    kernel: CudaKernel,
    handler: u32,
    set: Arc<Set>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.pump.close();
    }
}

impl Cuda {
    /// The device.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// The executor `"cuda"`, for a runtime: it runs what [`launch`](Self::launch) launches.
    pub fn executor(&self) -> Arc<dyn Executor> {
        executor()
    }

    /// Compiles more kernels and links them with those of before, with which they share grids. Kernels
    /// that run go on; those registered before under the same names stay what they are for them.
    ///
    /// Handlers that cannot be linked with the others, since their functions have the same names, run
    /// on grids of their own, and so do those beyond 64, and those of each [scope](CudaHandler::scope) and
    /// each size of shared memory.
    ///
    /// # Errors
    ///
    /// As for [`CudaKernels::open`]. None of the kernels is registered then.
    pub fn register(&self, kernels: CudaKernels) -> Result<(), CudaError> {
        self.link(kernels, None)
    }

    fn link(&self, kernels: CudaKernels, image: Option<Image>) -> Result<(), CudaError> {
        if kernels.entries.is_empty() {
            return Ok(());
        }
        kernels.check()?;
        let mut joint = lock(&self.inner.joint);
        // All that can fail, for each class, before anything changes.
        let linked: Vec<Linked> = kernels
            .by_class()
            .into_iter()
            .map(|(class, kernels)| self.link_class(&joint, class, kernels, image.clone()))
            .collect::<Result<_, _>>()?;
        for Linked { class, entries, into } in linked {
            let LinkedInto { set, joins, is_joint } = into;
            let state_bytes = entries.iter().map(|(_, kernel, _)| kernel.state.len()).max();
            set.make_room(state_bytes.unwrap_or(0));
            if let Some((handlers, image)) = joins {
                set.join(handlers, image);
            }
            if is_joint {
                joint.retain(|(of, _)| *of != class);
                joint.push((class, Arc::clone(&set)));
            }
            let mut registered = lock(&self.inner.registered);
            for (name, kernel, handler) in entries {
                registered.insert(name, Registered { kernel, handler, set: Arc::clone(&set) });
            }
        }
        Ok(())
    }

    /// Links the kernels of one class, of which nobody knows yet.
    fn link_class(
        &self,
        joint: &[(Class, Arc<Set>)],
        class: Class,
        kernels: CudaKernels,
        image: Option<Image>,
    ) -> Result<Linked, CudaError> {
        let handlers = kernels.handlers();
        let into = match image {
            Some(image) if image.scope() != class.scope => {
                let first = kernels.entries.first().map(|(_, kernel)| kernel.code.function());
                let (function, others) = (first.unwrap_or_default().into(), image.scope());
                return Err(BuildError::Scopes { function, scope: class.scope, others }.into());
            }
            Some(image) => {
                let set = self.set(class, handlers, image)?;
                LinkedInto { set, joins: None, is_joint: false }
            }
            None => self.join(joint, class, handlers)?,
        };
        let image = match &into.joins {
            Some((_, image)) => Arc::new(image.clone()),
            None => into.set.image(),
        };
        let numbered = |(name, kernel): (String, CudaKernel)| {
            let function = kernel.code.function();
            let handler = image.handler(function);
            let handler = handler.ok_or_else(|| CudaError::NotInImage(function.into()))?;
            Ok((name, kernel, handler))
        };
        let entries =
            kernels.entries.into_iter().map(numbered).collect::<Result<_, CudaError>>()?;
        Ok(Linked { class, entries, into })
    }

    /// Links handlers into the set of those before them, if they fit there.
    fn join(
        &self,
        joint: &[(Class, Arc<Set>)],
        class: Class,
        handlers: Vec<CudaHandler>,
    ) -> Result<LinkedInto, CudaError> {
        let Inner { device, options, .. } = &*self.inner;
        let build = |handlers: &[CudaHandler]| build(handlers, device.compute_capability, options);
        if let Some((_, set)) = joint.iter().find(|(of, _)| *of == class) {
            let mut all = set.handlers();
            let before = all.len();
            all.extend(handlers.iter().filter(|one| !set.handlers().contains(one)).cloned());
            if all.len() == before {
                let set = Arc::clone(set);
                return Ok(LinkedInto { set, joins: None, is_joint: true });
            }
            if all.len() <= HANDLERS_MAX {
                match build(&all) {
                    Ok(image) => {
                        let (set, joins) = (Arc::clone(set), Some((all, image)));
                        return Ok(LinkedInto { set, joins, is_joint: true });
                    }
                    Err(CudaError::Build(
                        error @ (BuildError::Duplicate { .. } | BuildError::Link(_)),
                    )) => {
                        let image = build(&handlers)?;
                        tracing::info!(%error, "these handlers run on grids of their own");
                        let set = self.set(class, handlers, image)?;
                        return Ok(LinkedInto { set, joins: None, is_joint: false });
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        let image = build(&handlers)?;
        let set = self.set(class, handlers, image)?;
        Ok(LinkedInto { set, joins: None, is_joint: true })
    }

    fn set(
        &self,
        class: Class,
        handlers: Vec<CudaHandler>,
        image: Image,
    ) -> Result<Arc<Set>, CudaError> {
        let Inner { driver, options, .. } = &*self.inner;
        let shape = Shape {
            seats: (options.seats / class.scope.blocks()).max(1),
            window: options.window.next_power_of_two(),
            // What a whole window leads to, where each message leads to one reply.
            reply_window: (2 * options.window).next_power_of_two().max(64),
            inbox_capacity: match (options.senders as usize) * options.share {
                0 => 0,
                records => records.next_power_of_two(),
            },
            edges: EDGES,
            edges_in: options.senders,
            // As the set says.
            state_bytes: 1,
            scope: class.scope,
            shared_bytes: class.shared_bytes,
        };
        if let Some(wrong) = shape.wrong() {
            return Err(ResidentError::Shape(wrong).into());
        }
        let (isolation, linked) = (options.isolation.clone(), (handlers, image));
        let (ordinal, residency) = (options.ordinal, options.residency);
        Ok(Arc::new(Set::new(isolation, driver, ordinal, linked, shape, residency)))
    }

    /// Launches a kernel on the device; it has its seat then. `builder` names an executor made by
    /// [`executor`](Self::executor) and says everything else. Its state is made anew at each
    /// restart.
    ///
    /// Blocks the calling thread for the milliseconds that a change between two leases takes, or
    /// longer where something else occupies the device; a deadline holds.
    ///
    /// # Errors
    ///
    /// See [`LaunchError`]: of its variant `Executor` the source is a [`CudaError`].
    pub fn launch<M: RecordMessage, R: RecordReply>(
        &self,
        builder: KernelBuilder<'_>,
        launch: CudaLaunch,
    ) -> Result<KernelRef<M, R>, LaunchError> {
        let id = builder.id().clone();
        let refuse = |error: CudaError| LaunchError::Executor {
            kernel: id.clone(),
            executor: EXECUTOR,
            source: error.into(),
        };
        let Registered { kernel, handler, set } = self.find(&launch.entry).map_err(refuse)?;
        check_type(&id, "messages", M::LAYOUT, Some(kernel.layouts.input))?;
        check_type(&id, "replies", R::LAYOUT, kernel.layouts.output)?;
        let state = launch.state.unwrap_or_else(|| kernel.state.clone());
        if state.len() != kernel.state.len() {
            let (bytes, expected) = (state.len(), kernel.state.len());
            return Err(refuse(CudaError::State { kernel: launch.entry, bytes, expected }));
        }
        self.check_targets(&launch.entry, &kernel).map_err(refuse)?;
        let (layouts, targets) = (kernel.layouts, kernel.targets.clone());
        let plan = kernel.plan(handler, state);
        // Launch takes the resources: a seat before the kernel is activated.
        let residency = set.residency();
        let within = 2 * (residency.census + residency.overdue);
        let first = wait_for(set.seat(plan.clone()), within).map_err(refuse)?;
        let first = first.map_err(|error| refuse(error.into()))?;
        let desk = Desk::new(&self.inner.pump, plan.state.len(), !plan.open.is_empty());
        desk.set_seat(Some(Seat::new(&desk, &first, layouts.input)));
        let mut first = Some(first);
        let window = self.inner.options.window;
        let at = Arc::clone(&desk);
        let launched = desk.launching(|| {
            builder.launch_proxy(move |context| {
                let (first, desk) = (first.take(), Arc::clone(&at));
                let (set, plan, targets) = (Arc::clone(&set), plan.clone(), targets.clone());
                let stopped = context.stop_at_once();
                async move {
                    let seated = match first {
                        Some(seated) => Some(seated),
                        None => {
                            unless(stopped, set.seat(plan)).await.transpose().map_err(no_seat)?
                        }
                    };
                    match seated {
                        Some(seated) => {
                            Proxy::new(context, desk, seated, layouts, &targets, window).await
                        }
                        None => Ok(()),
                    }
                }
            })
        })?;
        desk.directory().enter(launched.key(), &desk);
        let mut desks = lock(&self.inner.desks);
        desks.retain(|_, desk| desk.strong_count() > 0);
        desks.insert(id, Arc::downgrade(&desk));
        Ok(launched)
    }

    pub(crate) fn driver(&self) -> &'static Driver {
        self.inner.driver
    }

    pub(crate) fn isolation(&self) -> &Isolation {
        &self.inner.options.isolation
    }

    fn sets(&self) -> Vec<Arc<Set>> {
        let mut sets: Vec<Arc<Set>> = Vec::new();
        for Registered { set, .. } in lock(&self.inner.registered).values() {
            if !sets.iter().any(|known| Arc::ptr_eq(known, set)) {
                sets.push(Arc::clone(set));
            }
        }
        sets
    }

    /// Where the grids run that are there: one entry each.
    pub fn placements(&self) -> Vec<Placement> {
        self.sets().iter().flat_map(|set| set.placements()).collect()
    }

    /// A stream whose work runs on the multiprocessors that are not set aside for grids, and so does not wait
    /// for those that hold kernels: for a product of matrices, say. Each call makes one, which is kept as
    /// long as the process; other libraries take it by its [handle](Stream::handle). What it names belongs to
    /// the primary context, as what they allocate does. It may wait for what is resident: call it early.
    ///
    /// # Errors
    ///
    /// [`CudaError::NotApart`] where none are set aside: why.
    pub fn ring_free_sms(&self) -> Result<FreeSms, CudaError> {
        let options = &self.inner.options;
        let aside = options.residency.ring_multiprocessors.ok_or(NotApart::NotWanted)?;
        if !matches!(options.isolation, Isolation::Thread) {
            return Err(NotApart::OtherProcess.into());
        }
        self.inner.driver.set_aside()?;
        let context = Context::of(self.inner.driver, options.ordinal)?;
        let found = context.with_current(|| {
            Partition::of(self.inner.driver, options.ordinal.cast_signed(), aside)?.free_stream()
        });
        let (stream, multiprocessors) = found??;
        // SAFETY: a stream that was just made, on the device's primary context, and never is destroyed.
        let stream = unsafe { Stream::foreign(&context, stream.expose_provenance()) };
        Ok(FreeSms { multiprocessors, stream })
    }

    /// All grids begin a new lease.
    pub(crate) async fn begin_new_leases(&self) -> Result<(), CudaError> {
        for set in self.sets() {
            set.begin_new_leases().await?;
        }
        Ok(())
    }

    /// That those targets which are on the device take what is sent to them.
    fn check_targets(&self, name: &str, kernel: &CudaKernel) -> Result<(), CudaError> {
        for target in &kernel.targets {
            let desk = lock(&self.inner.desks).get(target.kernel()).and_then(Weak::upgrade);
            if let Some(seat) = desk.and_then(|desk| desk.seat()) {
                check_target(name, target.kernel(), target.layout(), seat.input)?;
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<Registered, CudaError> {
        let registered = lock(&self.inner.registered);
        registered.get(name).cloned().ok_or_else(|| {
            let mut names: Vec<&str> = registered.keys().map(String::as_str).collect();
            names.sort_unstable();
            CudaError::Unknown { name: name.into(), registered: names.join(", ") }
        })
    }

    /// The layouts of what is registered under a name: of messages, of replies and of the state.
    ///
    /// # Errors
    ///
    /// [`CudaError::Unknown`].
    pub fn layouts(&self, name: &str) -> Result<CudaLayouts, CudaError> {
        let Registered { kernel, .. } = self.find(name)?;
        let (input, output) = (kernel.layouts.input, kernel.layouts.output);
        Ok(CudaLayouts { input, output, state: kernel.state_layout })
    }

    fn place(&self, kernel: &str) -> Result<(Arc<Resident>, u32), CudaError> {
        let desk = lock(&self.inner.desks).get(&KernelId::from(kernel)).and_then(Weak::upgrade);
        let seat = desk.and_then(|desk| desk.seat());
        let seat = seat.ok_or_else(|| CudaError::NotSeated(kernel.into()))?;
        Ok((seat.resident, seat.number))
    }

    /// A snapshot of the state of this kernel, as it is between two messages: the bytes of the
    /// record. All kernels of its grid make a pause for it. Blocks the calling thread, for `within`
    /// at most.
    ///
    /// # Errors
    ///
    /// If the kernel is not on the device (it has ended, say), or a handler of its grid does not
    /// come back in time.
    pub fn state_bytes(&self, kernel: &str, within: Duration) -> Result<Vec<u8>, CudaError> {
        let (resident, seat) = self.place(kernel)?;
        let mut state = wait_for(resident.state(seat), within)??;
        // A seat has room for the largest state of its grid.
        state.truncate(self.state_size(kernel, state.len()));
        Ok(state)
    }

    fn state_size(&self, kernel: &str, most: usize) -> usize {
        let desk = lock(&self.inner.desks).get(&KernelId::from(kernel)).and_then(Weak::upgrade);
        desk.map_or(most, |desk| desk.state_bytes().min(most))
    }

    /// The same as a record.
    ///
    /// # Errors
    ///
    /// As for [`state_bytes`](Self::state_bytes), or if the state is no `S`.
    pub fn state<S: Record>(&self, kernel: &str, within: Duration) -> Result<S, CudaError> {
        let bytes = self.state_bytes(kernel, within)?;
        S::from_bytes(&bytes).ok_or_else(|| {
            let (bytes, expected) = (size_of::<S>(), bytes.len());
            CudaError::State { kernel: kernel.into(), bytes, expected }
        })
    }

    /// The counters of this kernel's seat, since it was seated: behind by about a millisecond, and
    /// exact at the end of each lease.
    ///
    /// # Errors
    ///
    /// If the kernel is not on the device.
    pub fn counters(&self, kernel: &str) -> Result<Counters, CudaError> {
        let (resident, seat) = self.place(kernel)?;
        resident.counters(seat).ok_or_else(|| CudaError::NotSeated(kernel.into()))
    }
}

/// The multiprocessors that are not set aside for grids: see [`Cuda::ring_free_sms`].
#[derive(Clone, Debug)]
pub struct FreeSms {
    /// How many they are.
    pub multiprocessors: u32,
    /// A stream whose work runs there.
    pub stream: Stream,
}

/// The layouts of a kernel that is registered.
#[derive(Clone, Copy, Debug)]
pub struct CudaLayouts {
    /// Of messages.
    pub input: &'static RecordLayout,
    /// Of replies, if it makes any.
    pub output: Option<&'static RecordLayout>,
    /// Of its state, if it has one.
    pub state: Option<&'static RecordLayout>,
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda").field("device", &self.inner.device).finish_non_exhaustive()
    }
}

/// The executor `"cuda"`: it runs what [`Cuda::launch`] launches.
pub fn executor() -> Arc<dyn Executor> {
    Arc::new(CudaExecutor)
}

/// That a target takes what is sent to it.
pub(crate) fn check_target(
    kernel: &str,
    target: &KernelId,
    sent: &RecordLayout,
    taken: &RecordLayout,
) -> Result<(), CudaError> {
    if sent.agrees_with(taken) {
        return Ok(());
    }
    let (sent, taken) = (sent.name.into(), taken.name.into());
    Err(CudaError::Target { kernel: kernel.into(), target: target.to_string(), sent, taken })
}

fn check_type(
    kernel: &KernelId,
    what: &'static str,
    typed: Option<&RecordLayout>,
    handlers: Option<&RecordLayout>,
) -> Result<(), LaunchError> {
    match (typed, handlers) {
        (Some(typed), Some(handlers)) if !typed.agrees_with(handlers) => Err(LaunchError::Layout {
            kernel: kernel.clone(),
            what,
            typed: typed.name.into(),
            handlers: handlers.name.into(),
        }),
        _ => Ok(()),
    }
}

/// What `future` comes to; nothing if `stopped` was ready first.
async fn unless<T>(
    stopped: impl Future<Output = ()>,
    future: impl Future<Output = T>,
) -> Option<T> {
    let (mut stopped, mut future) = (std::pin::pin!(stopped), std::pin::pin!(future));
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending => stopped.as_mut().poll(cx).map(|()| None),
    })
    .await
}

pub(crate) fn wait_for<T>(
    future: impl Future<Output = T>,
    within: Duration,
) -> Result<T, CudaError> {
    let deadline = Instant::now() + within;
    let future = std::pin::pin!(future);
    wait::block_on_until(future, Some(deadline)).map_err(|_| CudaError::Timeout(within))
}

fn no_seat(error: ResidentError) -> BoxError {
    Fault::reported(FaultKind::Executor, format!("no seat on the device: {error}")).into()
}
