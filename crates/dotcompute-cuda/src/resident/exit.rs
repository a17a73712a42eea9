//! What happens to grids when the process exits.
//!
//! The driver's own hooks, which it registered when it was initialised, wait for what is resident.
//! Those that are registered later run earlier: ours asks all grids to end.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use dotcompute_mailbox::sync::lock;

use super::Request;

struct Grids {
    next: u64,
    launchers: BTreeMap<u64, Sender<Request>>,
}

static GRIDS: Mutex<Grids> = Mutex::new(Grids { next: 0, launchers: BTreeMap::new() });

/// How long an exit waits for all grids together; then the driver waits for what is stuck.
const WITHIN: Duration = Duration::from_secs(2);

/// Remembers a grid, for which the driver has been initialised. The number to forget it by.
pub(super) fn register(launcher: &Sender<Request>) -> u64 {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        #[cfg(unix)]
        // SAFETY: a function of this program that takes and returns nothing. Where there is no room
        // for one more hook, grids end for want of a heartbeat.
        let _ = unsafe { libc::atexit(end_all) };
    });
    let mut grids = lock(&GRIDS);
    let number = grids.next;
    grids.next += 1;
    grids.launchers.insert(number, launcher.clone());
    number
}

pub(super) fn forget(number: u64) {
    lock(&GRIDS).launchers.remove(&number);
}

#[cfg_attr(not(unix), expect(dead_code, reason = "hooks are registered on Unix"))]
extern "C" fn end_all() {
    let launchers = std::mem::take(&mut lock(&GRIDS).launchers);
    let deadline = Instant::now() + WITHIN;
    let ask = |launcher: Sender<Request>| {
        let (answer, answered) = mpsc::channel();
        launcher.send(Request::End { answer: Some(answer), within: WITHIN }).ok().map(|()| answered)
    };
    let answers: Vec<_> = launchers.into_values().filter_map(ask).collect();
    for answered in answers {
        // The process ends in any case.
        let _ = answered.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}
