//! What the floors and the environment take straight from Linux: affinity, futex, resident memory.
//! The crate's only unsafe code.

use std::fs::{self, File};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::thread;

use dotcompute_mailbox::sync::{AtomicU32, Ordering};
use dotcompute_mailbox::wait;

use crate::harness::{Slice, Wrong};

/// Two cores to put threads on: the first allowed one, and the next that is not its twin under
/// hyper-threading. The same core twice where there is only one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cores {
    pub(crate) first: usize,
    pub(crate) second: usize,
}

/// The cores that pinned rows use. Call it from a thread that is not pinned.
pub(crate) fn cores() -> Cores {
    // dotcompute counts the cores when first asked, and honours the affinity of who asks: ask here,
    // before any thread is pinned.
    wait::parallelism();
    let allowed = allowed_cores();
    let first = allowed.first().copied().unwrap_or(0);
    let path = format!("/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list");
    let twins = fs::read_to_string(path).map(|list| parse_list(&list)).unwrap_or_default();
    let second = allowed
        .iter()
        .copied()
        .find(|core| *core != first && !twins.contains(core))
        .or_else(|| allowed.get(1).copied())
        .unwrap_or(first);
    Cores { first, second }
}

/// The cores this process may run on.
fn allowed_cores() -> Vec<usize> {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            Some(parse_list(list))
        })
        .unwrap_or_default()
}

/// Parses a kernel list such as `0-2,5`.
fn parse_list(list: &str) -> Vec<usize> {
    list.trim()
        .split(',')
        .filter_map(|range| {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            Some(from.trim().parse().ok()?..=to.trim().parse().ok()?)
        })
        .flatten()
        .collect()
}

/// Binds the calling thread, and those it starts from now on, to one core.
pub(crate) fn pin(core: usize) {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: `cpu_set_t` is an array of integers, for which all bits zero is a value.
    let set = unsafe { set.assume_init_mut() };
    assert!(core < 8 * size_of::<libc::cpu_set_t>(), "core {core} is beyond a cpu_set_t");
    // SAFETY: `core` lies within the set, as just asserted.
    unsafe { libc::CPU_SET(core, set) };
    // SAFETY: `set` is a live, initialised set of the size passed; 0 names the calling thread.
    let failed = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) };
    assert_eq!(failed, 0, "core {core} is among the allowed ones, so binding to it succeeds");
}

/// Runs `side` on a thread of its own, bound to the first core.
pub(crate) fn pinned(side: impl FnOnce() -> Result<Slice, Wrong> + Send) -> Result<Slice, Wrong> {
    on_core(cores().first, side)
}

/// Runs `start` on a thread that is bound to the second core, as the threads are that it starts:
/// beside what is [`pinned`].
pub(crate) fn beside<T: Send>(start: impl FnOnce() -> Result<T, Wrong> + Send) -> Result<T, Wrong> {
    on_core(cores().second, start)
}

fn on_core<T: Send>(
    core: usize,
    run: impl FnOnce() -> Result<T, Wrong> + Send,
) -> Result<T, Wrong> {
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            pin(core);
            run()
        });
        joined(thread.join())
    })
}

/// How often the calling thread, so far, had to leave its core to another although it could have
/// gone on.
pub(crate) fn preemptions() -> u64 {
    preemptions_of(libc::RUSAGE_THREAD)
}

/// The same for all threads of this process together.
pub(crate) fn preemptions_of_process() -> u64 {
    preemptions_of(libc::RUSAGE_SELF)
}

fn preemptions_of(who: libc::c_int) -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a place for one `rusage`, which the call fills.
    let failed = unsafe { libc::getrusage(who, usage.as_mut_ptr()) };
    assert_eq!(failed, 0, "every thread and process has a usage");
    // SAFETY: integers only, zeroed and then filled.
    let usage = unsafe { usage.assume_init() };
    u64::try_from(usage.ru_nivcsw).unwrap_or(0)
}

/// A thread's result; its panic becomes a wrong result.
pub(crate) fn joined<T>(result: thread::Result<Result<T, Wrong>>) -> Result<T, Wrong> {
    result.unwrap_or_else(|_| Err(Wrong::new("a thread panicked")))
}

/// A word alone on its cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Line<T>(pub(crate) T);

/// Two words that several processes map.
#[derive(Debug)]
pub(crate) struct SharedWords {
    page: NonNull<[Line<AtomicU32>; 2]>,
    file: File,
}

// SAFETY: a mapping belongs to no thread, and what is in it are atomics.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Two zeros, in a file without a name.
    pub(crate) fn create() -> io::Result<Self> {
        // SAFETY: the name is a string that ends with a zero.
        let file = unsafe { libc::memfd_create(c"words".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and nobody else's.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(file) });
        file.set_len(size_of::<[Line<AtomicU32>; 2]>() as u64)?;
        Self::map(file)
    }

    /// The words that another process of this user made.
    pub(crate) fn attach(path: &Path) -> io::Result<Self> {
        Self::map(File::options().read(true).write(true).open(path)?)
    }

    fn map(file: File) -> io::Result<Self> {
        let (bytes, access) =
            (size_of::<[Line<AtomicU32>; 2]>(), libc::PROT_READ | libc::PROT_WRITE);
        let file_number = file.as_raw_fd();
        // SAFETY: a fresh mapping, placed by the system, over nothing of ours.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, access, libc::MAP_SHARED, file_number, 0) };
        match NonNull::new(start.cast()) {
            Some(page) if start != libc::MAP_FAILED => Ok(Self { page, file }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Where others find them, as long as this is kept.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    pub(crate) fn words(&self) -> &[Line<AtomicU32>; 2] {
        // SAFETY: aligned to a page, as long as the file, never unmapped; any bytes are words, which are
        // atomics.
        unsafe { self.page.as_ref() }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, once; whoever uses the words borrows `self`.
        unsafe { libc::munmap(self.page.as_ptr().cast(), size_of::<[Line<AtomicU32>; 2]>()) };
    }
}

/// Whose threads sleep on a word.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Within {
    Process,
    Machine,
}

impl Within {
    fn flag(self) -> libc::c_int {
        match self {
            Self::Process => libc::FUTEX_PRIVATE_FLAG,
            Self::Machine => 0,
        }
    }
}

/// Sleeps while `word` holds `value`; may return early.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32, within: Within) {
    // SAFETY: `word` is a live, aligned 32-bit word for the whole call; a null timeout means none.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | within.flag(),
            value,
            std::ptr::null::<libc::timespec>(),
        )
    };
}

/// Wakes one thread that sleeps on `word`.
pub(crate) fn futex_wake(word: &AtomicU32, within: Within) {
    // SAFETY: the address of `word` only names a wait queue; the call does not access the word.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | within.flag(), 1) };
}

/// Publishes `value` in `word` and wakes whoever waits for it.
pub(crate) fn futex_post(word: &AtomicU32, value: u32, within: Within) {
    // SYNC(bench-futex) release: the acquire load in `futex_await` sees what came before.
    word.store(value, Ordering::Release);
    futex_wake(word, within);
}

/// Sleeps until `word` holds `value`.
pub(crate) fn futex_await(word: &AtomicU32, value: u32, within: Within) {
    loop {
        // SYNC(bench-futex) acquire: pairs with the release store in `futex_post`.
        let found = word.load(Ordering::Acquire);
        if found == value {
            return;
        }
        futex_wait(word, found, within);
    }
}

/// The most resident memory that this process has had, in bytes.
pub(crate) fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.and_then(|peak| peak.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Resident memory of this process in bytes.
pub(crate) fn resident_bytes() -> u64 {
    // SAFETY: `sysconf` takes no pointer; the name is one that libc defines.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let pages: u64 = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0);
    pages * u64::try_from(page_bytes).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_parse() {
        assert_eq!(parse_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(parse_list("\t3"), [3]);
        assert_eq!(parse_list(""), Vec::<usize>::new());
    }

    #[test]
    fn a_pinned_thread_stays_on_its_core() {
        let core = cores().first;
        pinned(|| {
            assert_eq!(allowed_of_thread(), [core]);
            Ok(Slice::default())
        })
        .unwrap();
    }

    fn allowed_of_thread() -> Vec<usize> {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        parse_list(status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap())
    }
}
