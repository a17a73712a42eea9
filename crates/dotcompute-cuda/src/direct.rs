//! Which kernels of a device send to each other there, and what goes with that past the host.
//!
//! A kernel that is connected to another one of its grid gets an edge to it for its replies
//! (`Resident::link`); its proxy asks for that and does away with it as the connection, or the seat of the
//! next kernel, changes. Here is what the proxies of two kernels share for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::task::Wake;

use dotcompute_core::record::RecordLayout;
use dotcompute_core::{KernelKey, Passage};
use dotcompute_mailbox::sync::{AtomicU64, Ordering, lock};

use crate::pump::Desk;
use crate::resident::{Resident, Seated};

/// The seat that a kernel has, for those who send to it on the device.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) resident: Arc<Resident>,
    pub(crate) number: u32,
    /// What it takes.
    pub(crate) input: &'static RecordLayout,
    /// How many messages others have sent to it there, as far as the host knows.
    sent: Arc<AtomicU64>,
    desk: Weak<Desk>,
}

impl Seat {
    /// The seat of the kernel at `desk`.
    pub(crate) fn new(desk: &Arc<Desk>, seated: &Seated, input: &'static RecordLayout) -> Self {
        let (resident, desk) = (Arc::clone(seated.resident()), Arc::downgrade(desk));
        Self { resident, number: seated.number(), input, sent: Arc::default(), desk }
    }

    /// Whether it is the same seat, taken for the same run of the kernel.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.sent, &other.sent)
    }

    pub(crate) fn sent(&self) -> u64 {
        // Relaxed: a count, of which whoever counts tells the kernel's proxy by a wake.
        self.sent.load(Ordering::Relaxed)
    }

    /// Counts what somebody has sent there; what was taken back counts as less than none.
    pub(crate) fn add_sent(&self, messages: u64) {
        // Relaxed: as above.
        self.sent.fetch_add(messages, Ordering::Relaxed);
        if let Some(desk) = self.desk.upgrade() {
            desk.wake_by_ref();
        }
    }
}

/// What all proxies of a pump share.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    desks: Mutex<HashMap<KernelKey, Weak<Desk>>>,
    passages: Mutex<Passages>,
}

/// The asks that are on their way on the device, by the tokens of their records.
#[derive(Debug, Default)]
struct Passages {
    last: u32,
    open: HashMap<u32, Passage>,
}

impl Directory {
    /// Lets others find the desk of this kernel: those that send to it may have looked in vain.
    pub(crate) fn enter(&self, kernel: KernelKey, desk: &Arc<Desk>) {
        let others: Vec<_> = {
            let mut desks = lock(&self.desks);
            desks.retain(|_, desk| desk.strong_count() > 0);
            desks.insert(kernel, Arc::downgrade(desk));
            desks.values().filter_map(Weak::upgrade).collect()
        };
        others.iter().filter(|other| other.has_targets()).for_each(Wake::wake_by_ref);
    }

    pub(crate) fn desk(&self, kernel: KernelKey) -> Option<Arc<Desk>> {
        lock(&self.desks).get(&kernel)?.upgrade()
    }

    /// A token for an ask that goes on past the kernel that it is given to.
    pub(crate) fn depart(&self, passage: Passage) -> u32 {
        let mut passages = lock(&self.passages);
        loop {
            passages.last = passages.last.wrapping_add(1) | FIRST_PASSING;
            let token = passages.last;
            if token != TOKEN_NONE && !passages.open.contains_key(&token) {
                passages.open.insert(token, passage);
                return token;
            }
        }
    }

    /// The ask of this token has arrived.
    pub(crate) fn arrive(&self, token: u32) -> Option<Passage> {
        if !passes(token) {
            return None;
        }
        lock(&self.passages).open.remove(&token)
    }

    /// Whether somebody waits for the answer to the ask of this token; if not, it is forgotten.
    pub(crate) fn is_awaited(&self, token: u32) -> bool {
        let given_up = {
            let mut passages = lock(&self.passages);
            match passages.open.get(&token) {
                None => return false,
                Some(passage) if passage.is_awaited() => return true,
                Some(_) => passages.open.remove(&token),
            }
        };
        // Not under the lock: it may be the last that has its kernel.
        drop(given_up);
        false
    }
}

const TOKEN_NONE: u32 = dotcompute_abi::device::TOKEN_NONE;
const FIRST_PASSING: u32 = dotcompute_abi::device::TOKEN_LAST + 1;

/// Whether it is a token of an ask that goes on past the kernel that it is given to.
pub(crate) fn passes(token: u32) -> bool {
    (FIRST_PASSING..TOKEN_NONE).contains(&token)
}
