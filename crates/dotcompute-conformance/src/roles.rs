//! What the suite's kernels run, by name, and how a kernel is launched with it wherever it runs.
//!
//! A promise gives its kernels *roles*: functions, with arguments in bytes. On executors that run
//! closures a role is called in this process. On executors that know their kernels by name the
//! role's name is that of its function, under which [`Roles::of_the_suite`] has it in the child too.

use std::any::type_name;
use std::future::Future;
use std::time::Duration;

#[cfg(target_os = "linux")]
use dotcompute::process::{Coder, Kernels, Process, Processes};
use dotcompute::{
    Backpressure, BoxError, Context, Handler, KernelBuilder, KernelRef, LaunchError, Message, Pool,
    Restart,
};

use crate::signals::Portable;
use crate::stage::{Each, Number, Outcome, each_body};

/// Where the kernels of an executor run, which decides what they can be.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// In this process: any closure can be a kernel.
    Here,
    /// In processes of their own, where a kernel is what is registered under its name.
    #[cfg(target_os = "linux")]
    Processes(&'static Processes),
}

/// What a promise is about that not every executor has, by the nature of its [`Place`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The kernel gets the messages themselves, with their destructors, and not copies.
    Messages,
    /// The kernel reaches other kernels, and its runtime.
    Runtime,
    /// The kernel looks into its mailbox itself, so that a wait of no time at all finds what is there.
    Mailbox,
    /// The kernel's own context can be seen from outside, or its replies as they are made.
    Context,
}

impl Need {
    /// Why an executor whose kernels run in other processes cannot have it.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Messages => {
                "a message is in another process as a copy, which has destructors of its own"
            }
            Self::Runtime => {
                "a process has no handles of kernels of another one, and no names of theirs: what \
                 its kernel sends to others goes by `connect`, or by a compiled handler's targets"
            }
            Self::Mailbox => {
                "a message crosses to another process when the kernel there waits for one"
            }
            Self::Context => {
                "a context cannot leave its process; and a reply is made when it is on its way to \
                 the parent, which waits for room there in the kernel's stead"
            }
        }
    }
}

impl Place {
    /// Whether kernels there have what a promise needs.
    pub const fn has(self, _need: Need) -> bool {
        matches!(self, Self::Here)
    }
}

/// A kernel being described, like [`KernelBuilder`], with a role instead of a closure.
#[derive(Debug)]
#[must_use = "a kernel exists once it is launched"]
pub struct Part<'a> {
    builder: KernelBuilder<'a>,
    place: Place,
}

macro_rules! as_the_builder {
    ($($setting:ident($type:ty))*) => {
        $(
            #[doc = concat!("As [`KernelBuilder::", stringify!($setting), "`].")]
            pub fn $setting(self, value: $type) -> Self {
                Self { builder: self.builder.$setting(value), ..self }
            }
        )*
    };
}

impl<'a> Part<'a> {
    pub(crate) fn new(builder: KernelBuilder<'a>, place: Place) -> Self {
        Self { builder, place }
    }

    as_the_builder! {
        executor(&str)
        capacity(usize)
        backpressure(Backpressure)
        reply_capacity(usize)
        reply_backpressure(Backpressure)
        restart(impl Into<Restart>)
        watchdog(Option<Duration>)
        exact_priority(bool)
    }

    /// Launches it with a role that is a body.
    ///
    /// # Errors
    ///
    /// As [`KernelBuilder::launch`].
    pub fn launch<M: Message, R: Message, F, B>(
        self,
        body: B,
    ) -> Result<KernelRef<M, R>, LaunchError>
    where
        B: Fn(Context<M, R>) -> F + Send + 'static,
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        match self.place {
            Place::Here => self.builder.launch(body),
            #[cfg(target_os = "linux")]
            Place::Processes(processes) => processes.launch(self.builder, named::<B>("", &())),
        }
    }

    /// The same of a body that has arguments.
    ///
    /// # Errors
    ///
    /// As [`KernelBuilder::launch`].
    pub fn launch_with<M: Message, R: Message, A: Portable + Clone, F, B>(
        self,
        body: B,
        args: A,
    ) -> Result<KernelRef<M, R>, LaunchError>
    where
        B: Fn(Context<M, R>, A) -> F + Send + 'static,
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        match self.place {
            Place::Here => self.builder.launch(move |context| body(context, args.clone())),
            #[cfg(target_os = "linux")]
            Place::Processes(processes) => processes.launch(self.builder, named::<B>("", &args)),
        }
    }

    /// Launches it with a role that makes a handler.
    ///
    /// # Errors
    ///
    /// As [`KernelBuilder::launch_handler`].
    pub fn launch_handler<H: Handler, B>(
        self,
        make: B,
    ) -> Result<KernelRef<H::In, H::Out>, LaunchError>
    where
        B: Fn() -> H + Send + 'static,
    {
        match self.place {
            Place::Here => self.builder.launch_handler(make),
            #[cfg(target_os = "linux")]
            Place::Processes(processes) => processes.launch(self.builder, named::<B>("", &())),
        }
    }

    /// Launches it with a role that makes what is called for each number: see
    /// [`serve`](crate::stage::serve).
    pub(crate) fn launch_serving<A: Portable + Clone, E, B>(
        self,
        form: crate::stage::Form,
        make: B,
        args: A,
    ) -> Result<KernelRef<Number, Number>, LaunchError>
    where
        B: Fn(A) -> E + Send + 'static,
        E: FnMut(u64) -> Outcome + Send + 'static,
    {
        use crate::stage::Form;
        match (self.place, form) {
            (Place::Here, Form::Body) => {
                self.builder.launch(move |context| each_body(context, make(args.clone())))
            }
            (Place::Here, Form::Handler) => {
                self.builder.launch_handler(move || Each(make(args.clone())))
            }
            #[cfg(target_os = "linux")]
            (Place::Processes(processes), form) => {
                processes.launch(self.builder, named::<B>(form.name(), &args))
            }
        }
    }

    /// Launches it with any closure, for promises that are listed as needing that.
    ///
    /// # Panics
    ///
    /// Where kernels are known by name.
    ///
    /// # Errors
    ///
    /// As [`KernelBuilder::launch`].
    pub fn launch_closure<M: Message, R: Message, F>(
        self,
        body: impl FnMut(Context<M, R>) -> F + Send + 'static,
    ) -> Result<KernelRef<M, R>, LaunchError>
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        match self.place {
            Place::Here => self.builder.launch(body),
            #[cfg(target_os = "linux")]
            Place::Processes(_) => panic!("a closure cannot run in another process"),
        }
    }

    /// A pool of such kernels.
    pub fn pool(self, workers: usize) -> PoolPart<'a> {
        PoolPart { part: self, workers }
    }
}

/// A pool being described, like [`PoolBuilder`](dotcompute::PoolBuilder).
#[derive(Debug)]
#[must_use = "a pool exists once it is launched"]
pub struct PoolPart<'a> {
    part: Part<'a>,
    workers: usize,
}

impl PoolPart<'_> {
    /// Launches each worker with a role that is a body.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::launch`](dotcompute::PoolBuilder::launch).
    pub fn launch<M: Message, R: Message, F, B>(self, body: B) -> Result<Pool<M, R>, LaunchError>
    where
        B: Fn(Context<M, R>) -> F + Clone + Send + 'static,
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let Part { builder, place } = self.part;
        let pool = builder.pool(self.workers);
        pool.launch_each(|builder| Part { builder, place }.launch(body.clone()))
    }

    /// The same of a body that has arguments.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::launch`](dotcompute::PoolBuilder::launch).
    pub fn launch_with<M: Message, R: Message, A: Portable + Clone, F, B>(
        self,
        body: B,
        args: A,
    ) -> Result<Pool<M, R>, LaunchError>
    where
        B: Fn(Context<M, R>, A) -> F + Clone + Send + 'static,
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let Part { builder, place } = self.part;
        let pool = builder.pool(self.workers);
        pool.launch_each(|builder| Part { builder, place }.launch_with(body.clone(), args.clone()))
    }
}

/// The role of this function, in this form, in a process.
#[cfg(target_os = "linux")]
fn named<B>(form: &str, args: &impl Portable) -> Process {
    Process::new(&name::<B>(form)).args(args.bytes())
}

/// No two functions have the same name, and this program is that of its children.
#[cfg(target_os = "linux")]
fn name<B>(form: &str) -> String {
    format!("{}{form}", type_name::<B>())
}

/// All roles of the suite, for executors whose kernels have names.
#[cfg(target_os = "linux")]
#[derive(Debug)]
#[must_use = "what is registered is reached through `Kernels::child_main`"]
pub struct Roles(Kernels);

#[cfg(target_os = "linux")]
impl Roles {
    /// The executor's kernels with all that the suite's promises launch. The children of `kernels`
    /// can tell tests of this process what they do.
    ///
    /// `command` makes a program that comes to the same call, and to `child_main`.
    pub fn of_the_suite(
        command: impl Fn() -> std::io::Result<std::process::Command> + Send + Sync + 'static,
    ) -> Kernels {
        let kernels = Kernels::new().command(move || {
            let (variable, value) = crate::signals::far::answer_children()?;
            let mut command = command()?;
            command.env(variable, value);
            Ok(command)
        });
        [
            crate::stage::roles,
            crate::asks::roles,
            crate::backpressure::roles,
            crate::dead_letters::roles,
            crate::delivery::roles,
            crate::faults::roles,
            crate::handlers::roles,
            crate::lifecycle::roles,
            crate::pipelines::roles,
            crate::pools::roles,
            crate::restarts::roles,
            crate::telemetry::roles,
            crate::termination::roles,
        ]
        .into_iter()
        .fold(Self(kernels), |roles, more| more(roles))
        .0
    }

    /// A body.
    pub(crate) fn body<M, R, F, B>(self, body: B) -> Self
    where
        M: Message + Portable,
        R: Message + Portable,
        B: Fn(Context<M, R>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        Self(self.0.body(&name::<B>(""), coder(), coder(), move |context, _| body(context)))
    }

    /// A body that has arguments.
    pub(crate) fn body_with<M, R, A: Portable, F, B>(self, body: B) -> Self
    where
        M: Message + Portable,
        R: Message + Portable,
        B: Fn(Context<M, R>, A) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        Self(self.0.body(&name::<B>(""), coder(), coder(), move |context, args| {
            body(context, read(&args))
        }))
    }

    /// What makes a handler.
    pub(crate) fn handler<H: Handler, B>(self, make: B) -> Self
    where
        H::In: Portable,
        H::Out: Portable,
        B: Fn() -> H + Send + Sync + 'static,
    {
        Self(self.0.handler(&name::<B>(""), coder(), coder(), move |_| Ok(make())))
    }

    /// What makes a function that is called for each number, in both forms.
    pub(crate) fn serving<A: Portable, E, B>(self, make: B) -> Self
    where
        B: Fn(A) -> E + Clone + Send + Sync + 'static,
        E: FnMut(u64) -> Outcome + Send + 'static,
    {
        use crate::stage::Form;
        let again = make.clone();
        let kernels =
            self.0.body(&name::<B>(Form::Body.name()), coder(), coder(), move |context, args| {
                each_body(context, make(read(&args)))
            });
        Self(kernels.handler(&name::<B>(Form::Handler.name()), coder(), coder(), move |args| {
            Ok(Each(again(A::from_bytes(args)?)))
        }))
    }
}

#[cfg(target_os = "linux")]
fn read<A: Portable>(args: &[u8]) -> A {
    A::from_bytes(args).unwrap()
}

#[cfg(target_os = "linux")]
fn coder<T: Message + Portable>() -> Coder<T> {
    Coder::new(
        |envelope, out| {
            envelope.message.put(out);
            Ok(())
        },
        T::from_bytes,
    )
}
