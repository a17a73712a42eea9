//! The executor: a thread for each kernel, which keeps the proxy of its process going.

use std::any::Any;
use std::cell::RefCell;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::thread;

use dotcompute_core::{BoxError, Executor, KernelId, KernelTask};
use dotcompute_mailbox::doorbell::Waiting;
use dotcompute_mailbox::sync::{AtomicBool, Ordering, lock};
use dotcompute_mailbox::wait;

use crate::segment::{ParentBell, Segment};

/// Where the driver of one kernel sleeps, and what it looks at before it does.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) bell: Arc<ParentBell>,
    /// A waker of this process said that there is something to do.
    woken: AtomicBool,
    /// What the driver's thread keeps.
    kept: Mutex<Option<Box<dyn Any + Send>>>,
    /// The segment of the child that runs now.
    segment: Mutex<Option<Arc<Segment>>>,
}

thread_local! {
    /// The desk of the kernel that this thread is launching.
    static LAUNCHING: RefCell<Option<Arc<Desk>>> = const { RefCell::new(None) };
}

impl Desk {
    pub(crate) fn new(kept: Box<dyn Any + Send>) -> rustix::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            bell: Arc::new(ParentBell::create()?),
            woken: AtomicBool::new(false),
            kept: Mutex::new(Some(kept)),
            segment: Mutex::default(),
        }))
    }

    /// Calls `launch`, whose kernel is driven at this desk.
    pub(crate) fn launching<T>(self: &Arc<Self>, launch: impl FnOnce() -> T) -> T {
        LAUNCHING.set(Some(Arc::clone(self)));
        let launched = launch();
        LAUNCHING.take();
        launched
    }

    /// From now on news of this child are what the driver waits for.
    pub(crate) fn watch(&self, segment: Option<&Arc<Segment>>) {
        *lock(&self.segment) = segment.cloned();
        // Called while the task is polled, which the driver must do again: it looked at another
        // child's news.
        // SYNC(process.woken) release: as in `wake_by_ref`.
        self.woken.store(true, Ordering::Release);
    }

    /// Wakes the driver because the child came to an end, which may have been while the child was
    /// about to wake it.
    pub(crate) fn wake_at_end(&self) {
        // SYNC(process.woken) release: as in `wake_by_ref`.
        self.woken.store(true, Ordering::Release);
        self.bell.bell().ring_always();
    }

    /// Drives `task` to its end, on the calling thread.
    fn drive(self: &Arc<Self>, task: KernelTask) {
        let waker = Waker::from(Arc::clone(self));
        let mut context = Context::from_waker(&waker);
        let mut task = pin!(task);
        let mut waiting = Waiting::default();
        loop {
            let segment = lock(&self.segment).clone();
            // Before the poll: what comes after this look is news.
            let seen = segment.as_ref().map(|segment| segment.news());
            // SYNC(process.woken) acquire: pairs with the release in `wake`. Makes visible what the
            // waker did before.
            self.woken.swap(false, Ordering::Acquire);
            if task.as_mut().poll(&mut context).is_ready() {
                return;
            }
            self.bell.bell().wait(&mut waiting, None, || {
                // SYNC(process.woken) acquire: as above, where it is taken.
                self.woken.load(Ordering::Acquire)
                    || segment.as_ref().map(|segment| segment.news()) != seen
            });
        }
    }
}

impl Wake for Desk {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // SYNC(process.woken) release: pairs with the acquires in `drive`. Makes visible what the
        // waker did before.
        self.woken.store(true, Ordering::Release);
        self.bell.bell().ring();
    }
}

/// Kernels in processes of their own: `"process"`.
#[derive(Debug)]
pub(crate) struct ProcessExecutor;

impl Executor for ProcessExecutor {
    fn name(&self) -> &'static str {
        crate::EXECUTOR
    }

    fn runs_closures(&self) -> bool {
        false
    }

    fn start(&self, kernel: &KernelId, task: KernelTask) -> Result<(), BoxError> {
        let Some(desk) = LAUNCHING.with_borrow(Clone::clone) else {
            return Err("a kernel in a process is launched by `Processes::launch`".into());
        };
        let name = format!("rk-{kernel}").replace('\0', "?");
        thread::Builder::new().name(name).spawn(move || {
            let kept = lock(&desk.kept).take();
            {
                let _running = wait::running();
                desk.drive(task);
            }
            drop(desk);
            drop(kept);
        })?;
        Ok(())
    }
}
