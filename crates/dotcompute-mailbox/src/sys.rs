//! The system calls of this crate, all of them, and their portable twin.
//!
//! Linux has a futex; everywhere else, under `--cfg dotcompute_portable` (so that Linux tests it)
//! and under loom (so that the model checker sees the sleep) a table of mutexes and condition
//! variables stands in. Both keep one contract: [`futex_wait`] may return early for no reason, so
//! callers look again at whatever they wait for.
//!
//! Linux also has [`heavy_barrier`], which makes every thread of the process pass a barrier where it
//! stands, so that [`light_barrier`], its partner on the path that is taken often, costs nothing.
//! Elsewhere both are fences.

use std::time::{Duration, Instant};

pub(crate) use imp::{
    current_cpu, futex_wait, futex_wake, heavy_barrier, leave_cpu, light_barrier, prepare_barriers,
};

/// Who may wait on a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Threads of this process only: the kernel need not look up the page behind the address.
    Process,
    /// Threads of every process that maps the word.
    Machine,
}

/// How long it is until `deadline`; `None` once it has passed.
fn time_left(deadline: Instant) -> Option<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
}

#[cfg(all(target_os = "linux", not(any(loom, dotcompute_portable))))]
mod imp {
    use super::{Scope, time_left};
    use crate::sync::{AtomicBool, AtomicU32, Ordering, compiler_fence, fence};
    use std::ptr;
    use std::time::Instant;

    /// Sleeps until `word` is woken, unless it no longer holds `expected`, and at most until
    /// `deadline`. May return early for no reason.
    ///
    /// Comparing and going to sleep are one step with regard to [`futex_wake`].
    pub(crate) fn futex_wait(
        word: &AtomicU32,
        expected: u32,
        deadline: Option<Instant>,
        scope: Scope,
    ) {
        let timeout = match deadline.map(time_left) {
            None => None,
            Some(None) => return,
            Some(Some(left)) => Some(libc::timespec {
                tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }),
        };
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: `word` is a live, aligned u32 for the whole call, and `timeout` is null or points
        // to the timespec above, which lives as long. Every outcome (woken, value changed, timed
        // out, interrupted) is a permitted return, so the result needs no look.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                op(libc::FUTEX_WAIT, scope),
                expected,
                timeout,
            )
        };
    }

    /// Wakes all who sleep on `word`.
    pub(crate) fn futex_wake(word: &AtomicU32, scope: Scope) {
        // SAFETY: the kernel takes the address as a key only; `word` is a live, aligned u32.
        unsafe {
            libc::syscall(libc::SYS_futex, word.as_ptr(), op(libc::FUTEX_WAKE, scope), i32::MAX)
        };
    }

    fn op(op: i32, scope: Scope) -> i32 {
        match scope {
            Scope::Process => op | libc::FUTEX_PRIVATE_FLAG,
            Scope::Machine => op,
        }
    }

    /// Whether the system has no barriers: then they are fences. Set before the first one, if at all.
    static FENCES: AtomicBool = AtomicBool::new(false);

    fn membarrier(command: libc::c_int) -> bool {
        // SAFETY: it takes and gives no memory.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    }

    /// Has to be called before the barriers are.
    pub(crate) fn prepare_barriers() {
        if !membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) {
            // Relaxed: whoever gets to a barrier got what it orders from who called this.
            FENCES.store(true, Ordering::Relaxed);
        }
    }

    /// Of a store before it and a load after it: a thread that stores, passes a [`heavy_barrier`] and
    /// loads, the other way round, sees the one or is seen by the other.
    #[inline(always)]
    pub(crate) fn light_barrier() {
        // Relaxed: as above.
        match FENCES.load(Ordering::Relaxed) {
            false => compiler_fence(Ordering::SeqCst),
            true => fence(Ordering::SeqCst),
        }
    }

    /// The partner of [`light_barrier`]. Takes microseconds.
    pub(crate) fn heavy_barrier() {
        // Relaxed: as above.
        if FENCES.load(Ordering::Relaxed) {
            return fence(Ordering::SeqCst);
        }
        let passed = membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
        assert!(passed, "a process that is registered for barriers should get one");
    }

    /// The CPU on which this thread runs now, if the system tells. A hint: it may change at once.
    pub(crate) fn current_cpu() -> Option<u32> {
        // SAFETY: no arguments, no memory touched; -1 means unsupported.
        u32::try_from(unsafe { libc::sched_getcpu() }).ok()
    }

    /// Moves this thread to another of the CPUs that it may run on, by taking this one from among them
    /// for a moment; false if there is none. Takes about as long as a wake.
    pub(crate) fn leave_cpu() -> bool {
        let mut allowed = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
        let bytes = size_of::<libc::cpu_set_t>();
        // SAFETY: room for so many bytes; 0 is the calling thread.
        if unsafe { libc::sched_getaffinity(0, bytes, allowed.as_mut_ptr()) } != 0 {
            // More CPUs than the set has room for, say.
            return false;
        }
        // SAFETY: a set of CPUs is plain bits, all of them zeroed or written by the call.
        let allowed = unsafe { allowed.assume_init() };
        let Some(here) = current_cpu().filter(|cpu| *cpu < libc::CPU_SETSIZE as u32) else {
            return false;
        };
        let mut others = allowed;
        // SAFETY: a CPU below the size of the set.
        unsafe { libc::CPU_CLR(here as usize, &mut others) };
        // SAFETY: it only reads the set.
        if unsafe { libc::CPU_COUNT(&others) } == 0 {
            return false;
        }
        let run_on = |set: &libc::cpu_set_t| {
            // SAFETY: a whole set, which is read; 0 is the calling thread.
            unsafe { libc::sched_setaffinity(0, bytes, set) == 0 }
        };
        // Should the second fail, what the thread may run on has just been changed by somebody else.
        run_on(&others) && run_on(&allowed)
    }
}

#[cfg(any(loom, dotcompute_portable, not(target_os = "linux")))]
mod imp {
    use super::{Scope, time_left};
    use crate::sync::{AtomicU32, Condvar, Mutex, Ordering, fence, lock};
    use std::time::{Duration, Instant};

    /// How long a wait on a word that other processes may wake lasts at most: they cannot reach
    /// this table, so such a wait looks again by itself.
    const MACHINE_LOOK: Duration = Duration::from_millis(1);

    /// The sleepers of all words that share this bucket.
    struct Bucket {
        lock: Mutex<()>,
        woken: Condvar,
    }

    #[cfg(not(loom))]
    fn bucket(word: &AtomicU32) -> &'static Bucket {
        static TABLE: [Bucket; 64] =
            [const { Bucket { lock: Mutex::new(()), woken: Condvar::new() } }; 64];
        let address = std::ptr::from_ref(word).addr();
        // Words lie on lines of their own (128 bytes): the bits below say little.
        &TABLE[(address >> 7 ^ address >> 2) % TABLE.len()]
    }

    #[cfg(loom)]
    fn bucket(_word: &AtomicU32) -> &'static Bucket {
        loom::lazy_static! {
            static ref BUCKET: Bucket = Bucket { lock: Mutex::new(()), woken: Condvar::new() };
        }
        &BUCKET
    }

    /// Sleeps until `word` is woken, unless it no longer holds `expected`, and at most until
    /// `deadline`. May return early for no reason.
    ///
    /// Comparing and going to sleep are one step with regard to [`futex_wake`].
    pub(crate) fn futex_wait(
        word: &AtomicU32,
        expected: u32,
        deadline: Option<Instant>,
        scope: Scope,
    ) {
        let timeout = match deadline.map(time_left) {
            None => None,
            Some(None) => return,
            Some(left) => left,
        };
        let timeout = match scope {
            Scope::Process => timeout,
            Scope::Machine => Some(timeout.unwrap_or(MACHINE_LOOK).min(MACHINE_LOOK)),
        };
        let bucket = bucket(word);
        let guard = lock(&bucket.lock);
        // Relaxed: a wake locks the bucket after the word changed, so a sleeper who still sees the
        // old value under the lock is asleep before that wake looks. Callers order their own data.
        if word.load(Ordering::Relaxed) != expected {
            return;
        }
        match timeout {
            None => drop(bucket.woken.wait(guard)),
            Some(timeout) => drop(bucket.woken.wait_timeout(guard, timeout)),
        }
    }

    /// Wakes all who sleep on `word`, and maybe others, who then look and sleep again.
    pub(crate) fn futex_wake(word: &AtomicU32, _scope: Scope) {
        let bucket = bucket(word);
        let guard = lock(&bucket.lock);
        bucket.woken.notify_all();
        drop(guard);
    }

    /// Nothing to prepare here.
    pub(crate) fn prepare_barriers() {}

    /// A fence, as its partner.
    #[inline(always)]
    pub(crate) fn light_barrier() {
        fence(Ordering::SeqCst);
    }

    /// A fence.
    pub(crate) fn heavy_barrier() {
        fence(Ordering::SeqCst);
    }

    /// Unknown here.
    pub(crate) fn current_cpu() -> Option<u32> {
        None
    }

    /// Not here.
    pub(crate) fn leave_cpu() -> bool {
        false
    }
}
