//! The state of a compiled handler: written by the handler, read from outside between two messages.

use std::cell::UnsafeCell;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use dotcompute_mailbox::sync::{AtomicU32, Ordering, lock};

use super::StateSource;
use crate::record::{Record, RecordLayout};

/// The bytes of a state, and who has them.
///
/// No lock is held while the handler runs: the kernel marks the state as in use before it takes up
/// work and as free when it has none, and makes way between two messages for those who wait.
pub(crate) struct StateCell {
    layout: Option<&'static RecordLayout>,
    initial: Box<[u64]>,
    words: UnsafeCell<Box<[u64]>>,
    gate: Mutex<Gate>,
    changed: Condvar,
    /// As many as `Gate::readers`, for the kernel to look at without the lock.
    wanted: AtomicU32,
    /// Where the state really lies, if its kernel runs elsewhere.
    elsewhere: OnceLock<Arc<dyn StateSource>>,
}

#[derive(Default)]
struct Gate {
    in_use: bool,
    readers: u32,
}

// SAFETY: `words` is touched by the kernel while `in_use`, and by readers under the lock while not.
#[allow(unsafe_code)]
unsafe impl Sync for StateCell {}

impl StateCell {
    pub(crate) fn new(layout: Option<&'static RecordLayout>, initial: &[u8]) -> Self {
        Self {
            layout,
            words: UnsafeCell::new(words_of(initial)),
            initial: words_of(initial),
            gate: Mutex::default(),
            changed: Condvar::new(),
            wanted: AtomicU32::new(0),
            elsewhere: OnceLock::new(),
        }
    }

    /// The bytes of the state at first.
    pub(super) fn initial(&self) -> Vec<u8> {
        let bytes = self.layout.map_or(0, |layout| layout.bytes);
        bytemuck::cast_slice(&self.initial)[..bytes].to_vec()
    }

    pub(super) fn read_from(&self, source: Arc<dyn StateSource>) {
        let _ = self.elsewhere.set(source);
    }

    pub(crate) fn layout(&self) -> Option<&'static RecordLayout> {
        self.layout
    }

    /// The kernel takes up work; waits for those who read.
    fn enter(&self) {
        let gate = lock(&self.gate);
        let reading = |gate: &mut Gate| gate.readers > 0;
        let mut gate = match self.changed.wait_while(gate, reading) {
            Ok(gate) => gate,
            Err(poisoned) => poisoned.into_inner(),
        };
        gate.in_use = true;
    }

    /// The kernel has nothing to do, or makes way.
    fn leave(&self) {
        lock(&self.gate).in_use = false;
        self.changed.notify_all();
    }

    /// Copies the state, between two messages; `None` if the kernel does not get to it in time.
    fn copy(&self, within: Duration) -> Option<Vec<u8>> {
        if let Some(source) = self.elsewhere.get() {
            return source.read(within);
        }
        let deadline = Instant::now().checked_add(within);
        let mut gate = lock(&self.gate);
        gate.readers += 1;
        // Relaxed: a hint that the kernel looks at after each message; the lock orders the rest.
        self.wanted.store(gate.readers, Ordering::Relaxed);
        while gate.in_use {
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => Duration::MAX,
            };
            if left.is_zero() {
                break;
            }
            gate = match self.changed.wait_timeout(gate, left) {
                Ok((gate, _)) => gate,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        let copied = (!gate.in_use).then(|| {
            // SAFETY: not in use, and it stays so while the lock is held.
            #[allow(unsafe_code)]
            let words = unsafe { &*self.words.get() };
            let bytes = self.layout.map_or(0, |layout| layout.bytes);
            bytemuck::cast_slice(words)[..bytes].to_vec()
        });
        gate.readers -= 1;
        // Relaxed: as above.
        self.wanted.store(gate.readers, Ordering::Relaxed);
        drop(gate);
        self.changed.notify_all();
        copied
    }
}

/// The bytes in words. Pages of zeros are left as the system gives them, which is without memory: of a large
/// state most are such.
fn words_of(bytes: &[u8]) -> Box<[u64]> {
    const PAGE: usize = 4096;
    let mut words = vec![0_u64; bytes.len().div_ceil(8)].into_boxed_slice();
    let copies = bytemuck::cast_slice_mut::<u64, u8>(&mut words).chunks_mut(PAGE);
    for (copy, page) in copies.zip(bytes.chunks(PAGE)) {
        if page.iter().any(|byte| *byte != 0) {
            copy[..page.len()].copy_from_slice(page);
        }
    }
    words
}

/// The kernel's hold of its state, for one run of its body.
pub(super) struct StateHold {
    cell: Arc<StateCell>,
    working: bool,
}

impl StateHold {
    /// The state as it is at first.
    pub(super) fn new(cell: &Arc<StateCell>) -> Self {
        cell.enter();
        // SAFETY: in use by this hold: an earlier run of the body is gone, as its context is.
        #[allow(unsafe_code)]
        let words = unsafe { &mut *cell.words.get() };
        words.copy_from_slice(&cell.initial);
        Self { cell: Arc::clone(cell), working: true }
    }

    /// Where the state lies; to be written through only while this hold works.
    pub(super) fn start(&self) -> *mut u8 {
        debug_assert!(self.working, "a handler runs only while the state is held");
        // SAFETY: in use by this hold, and no reference of a reader is alive.
        #[allow(unsafe_code)]
        let words = unsafe { &mut *self.cell.words.get() };
        words.as_mut_ptr().cast()
    }

    /// Before a message is handled; makes way first for those who want to read.
    #[inline]
    pub(super) fn work(&mut self) {
        // Relaxed: a hint, as in `copy`.
        if self.working && self.cell.wanted.load(Ordering::Relaxed) > 0 {
            self.rest();
        }
        if !self.working {
            self.cell.enter();
            self.working = true;
        }
    }

    /// Before the kernel waits.
    #[inline]
    pub(super) fn rest(&mut self) {
        if self.working {
            self.working = false;
            self.cell.leave();
        }
    }
}

impl Drop for StateHold {
    fn drop(&mut self) {
        self.rest();
    }
}

/// Reads the state of a compiled handler, also while its kernel runs: always as it was between two
/// messages. Cloning is one reference count.
#[derive(Clone)]
pub struct StateReader(Arc<StateCell>);

impl StateReader {
    pub(super) fn new(cell: &Arc<StateCell>) -> Self {
        Self(Arc::clone(cell))
    }

    /// The layout of the state; none where the handler has none.
    pub fn layout(&self) -> Option<&'static RecordLayout> {
        self.0.layout()
    }

    /// The bytes of the state: before the kernel is activated the initial ones, after its end the
    /// last ones. `None` if the kernel works on one message for longer than `within`. Blocks the
    /// calling thread.
    pub fn bytes(&self, within: Duration) -> Option<Vec<u8>> {
        self.0.copy(within)
    }

    /// The state as a record; `None` also where `S` has another layout.
    pub fn read<S: Record>(&self, within: Duration) -> Option<S> {
        let layout = self.0.layout()?;
        match S::LAYOUT.agrees_with(layout) {
            true => S::from_bytes(&self.bytes(within)?),
            false => None,
        }
    }
}

impl fmt::Debug for StateReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateReader({:?})", self.0.layout().map(|layout| layout.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_bytes_whichever_pages_are_zeros() {
        for length in [0, 1, 4096, 20_001] {
            for at in [0, 1, 4095, 4096, 12_345, 20_000] {
                let mut bytes = vec![0_u8; length];
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = 7;
                }
                let words = words_of(&bytes);
                assert_eq!(bytemuck::cast_slice::<u64, u8>(&words)[..length], bytes, "{at}");
                assert_eq!(words.len(), length.div_ceil(8));
            }
        }
    }
}
