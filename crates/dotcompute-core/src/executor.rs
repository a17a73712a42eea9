//! Where a kernel's loop runs.
//!
//! An executor is given the whole supervised life of a kernel as one future and drives it to its
//! end. What it must do, every executor of closures shows by passing the conformance
//! suite.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use dotcompute_mailbox::wait;
use tracing::Span;
use tracing::instrument::{Instrument, Instrumented};

use crate::error::{BoxError, KernelId};

/// The life of one kernel, to be driven until it is ready.
///
/// It never panics: faults of the kernel are caught inside. Dropping it unfinished (because the
/// executor goes away) fails the kernel, and everyone who waits for it is told.
pub struct KernelTask(Instrumented<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl KernelTask {
    /// `span` is entered whenever `future` runs.
    pub(crate) fn new(future: impl Future<Output = ()> + Send + 'static, span: Span) -> Self {
        let future: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(future);
        Self(future.instrument(span))
    }
}

impl Future for KernelTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl fmt::Debug for KernelTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KernelTask")
    }
}

/// Runs kernels somewhere: on tokio's workers, on a thread each, ...
///
/// An executor must drive each task it accepts to its end, or drop it; must poll it again after
/// each wake, wherever the wake comes from; and must not poll one task from two threads at once.
pub trait Executor: Send + Sync + 'static {
    /// The name under which kernels choose it at launch.
    fn name(&self) -> &'static str;

    /// Whether its kernels are Rust closures of this program. Not so where they run elsewhere: it
    /// then drives proxies only ([`KernelBuilder::launch_proxy`](crate::KernelBuilder::launch_proxy)),
    /// and a launch with a closure is refused.
    fn runs_closures(&self) -> bool {
        true
    }

    /// Begins to drive `task`, the life of `kernel`, and returns at once.
    ///
    /// # Errors
    ///
    /// Where it has no room for it (a thread cannot be started, say). The task is dropped then.
    fn start(&self, kernel: &KernelId, task: KernelTask) -> Result<(), BoxError>;
}

/// Lets somebody who waits for a kernel drive it, where its executor can: what is waited for then comes
/// without a thread in between.
pub trait Helper: Send + Sync + 'static {
    /// Calls `f` in the place of the thread that drives the kernel; false, and `f` was not called, if
    /// somebody is in that place. Nobody else drives the kernel meanwhile.
    fn in_place(&self, f: &mut dyn FnMut(&mut dyn Place)) -> bool;
}

/// The place of the thread that drives a kernel.
pub trait Place {
    /// Drives the kernel until `done`, which polls what is waited for; false if `deadline` passed
    /// first, or the kernel has ended.
    fn drive(
        &mut self,
        deadline: Option<Instant>,
        done: &mut dyn FnMut(&mut Context<'_>) -> bool,
    ) -> bool;

    /// [`drive`](Self::drive) for a few microseconds at most, without sleeping.
    fn drive_briefly(&mut self, done: &mut dyn FnMut(&mut Context<'_>) -> bool) -> bool;
}

/// Kernels as tasks on tokio: for many kernels, and for those that wait for other things.
///
/// Uses the tokio runtime that the dotcompute runtime was built in, or else workers of its own,
/// which start with the first kernel.
#[derive(Debug)]
pub(crate) struct AsyncExecutor {
    given: Option<tokio::runtime::Handle>,
    own: OnceLock<Option<tokio::runtime::Runtime>>,
    workers: usize,
}

impl AsyncExecutor {
    pub(crate) fn new(given: Option<tokio::runtime::Handle>, workers: usize) -> Self {
        Self { given, own: OnceLock::new(), workers }
    }
}

impl Executor for AsyncExecutor {
    fn name(&self) -> &'static str {
        "async"
    }

    fn start(&self, _kernel: &KernelId, task: KernelTask) -> Result<(), BoxError> {
        if let Some(handle) = &self.given {
            handle.spawn(task);
            return Ok(());
        }
        let mut error = None;
        let own = self.own.get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(self.workers)
                .thread_name("dotcompute-async")
                .enable_all()
                .build()
                .map_err(|cause| error = Some(cause))
                .ok()
        });
        match own {
            Some(runtime) => {
                runtime.spawn(task);
                Ok(())
            }
            None => Err(match error {
                Some(cause) => cause.into(),
                None => "the worker threads could not be started earlier".into(),
            }),
        }
    }
}

impl Drop for AsyncExecutor {
    fn drop(&mut self) {
        // In the background, since the last handle may go away inside an async task, where tokio
        // forbids to wait. Kernels that still run are dropped, which ends them.
        if let Some(Some(runtime)) = self.own.take() {
            runtime.shutdown_background();
        }
    }
}

/// A thread for each kernel: for compute, and for bodies that block.
#[derive(Debug)]
pub(crate) struct ThreadExecutor;

impl Executor for ThreadExecutor {
    fn name(&self) -> &'static str {
        "thread"
    }

    fn start(&self, kernel: &KernelId, task: KernelTask) -> Result<(), BoxError> {
        // The system keeps 15 bytes of a thread's name.
        let name = format!("rk-{kernel}");
        std::thread::Builder::new().name(name.replace('\0', "?")).spawn(move || {
            let _running = wait::running();
            wait::block_on(task);
        })?;
        Ok(())
    }
}

/// The executors that a runtime offers, by name.
#[derive(Clone)]
pub(crate) struct Executors(Vec<Arc<dyn Executor>>);

impl Executors {
    pub(crate) fn new(executors: Vec<Arc<dyn Executor>>) -> Self {
        Self(executors)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<dyn Executor>> {
        self.0.iter().find(|executor| executor.name() == name)
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = Vec::with_capacity(self.0.len());
        for name in self.0.iter().map(|executor| executor.name()) {
            // The first of a name is the one that is used.
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

impl fmt::Debug for Executors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}
