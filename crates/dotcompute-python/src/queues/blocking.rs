//! Waiting on a thread. The GIL is released, and on the main thread Ctrl-C is answered.

use std::cell::Cell;
use std::time::{Duration, Instant};

use dotcompute_mailbox::wait::{block_on_until, parallelism};
use dotcompute_mailbox::{Mailbox, ReceiveError, SendError, TryReceiveError, TrySendError};
use pyo3::prelude::*;

use super::timeout::Timeout;
use super::{Item, PLAIN};

/// How long the main thread waits before it looks for signals.
const SLICE: Duration = Duration::from_millis(50);

/// Takes the next object, waiting for it; spins at least for `spin` before it sleeps.
#[inline]
pub(super) fn get(
    py: Python<'_>,
    mailbox: &Mailbox<Item>,
    timeout: Timeout,
    spin: Duration,
) -> PyResult<Result<Item, ReceiveError>> {
    match mailbox.try_receive() {
        Ok(item) => Ok(Ok(item)),
        Err(TryReceiveError::Closed) => Ok(Err(ReceiveError::Closed)),
        Err(TryReceiveError::Empty) if timeout.is_zero() => Ok(Err(ReceiveError::Timeout)),
        Err(TryReceiveError::Empty) => wait_for_one(py, mailbox, timeout, spin),
    }
}

#[cold]
fn wait_for_one(
    py: Python<'_>,
    mailbox: &Mailbox<Item>,
    timeout: Timeout,
    spin: Duration,
) -> PyResult<Result<Item, ReceiveError>> {
    if !spin.is_zero() && parallelism() > 1 {
        py.detach(|| spin_for(mailbox, spin));
    }
    let mut receive = mailbox.receive();
    let received = wait(py, timeout, |until| block_on_until(&mut receive, until).ok())?;
    Ok(match received {
        Some(Ok(item)) => Ok(item),
        Some(Err(_)) => Err(ReceiveError::Closed),
        None => Err(ReceiveError::Timeout),
    })
}

/// Puts an object in, waiting for room.
pub(super) fn put(
    py: Python<'_>,
    mailbox: &Mailbox<Item>,
    item: Item,
    timeout: Timeout,
) -> PyResult<Result<(), SendError<Item>>> {
    let item = match mailbox.try_send(PLAIN, item) {
        Ok(_) => return Ok(Ok(())),
        Err(TrySendError::Closed(item)) => return Ok(Err(SendError::Closed(item))),
        Err(TrySendError::Full(item)) if timeout.is_zero() => {
            return Ok(Err(SendError::Timeout(item)));
        }
        Err(TrySendError::Full(item)) => item,
    };
    let mut send = mailbox.send(PLAIN, item);
    let sent = wait(py, timeout, |until| block_on_until(&mut send, until).ok())?;
    Ok(sent.unwrap_or_else(|| send.give_up()).map(drop))
}

fn spin_for(mailbox: &Mailbox<Item>, limit: Duration) {
    let start = Instant::now();
    while mailbox.is_empty() && !mailbox.is_closed() && start.elapsed() < limit {
        std::hint::spin_loop();
    }
}

/// Calls `attempt` without the GIL until it has a result or the time is over. `attempt` waits until
/// the time that it is given and may be called again.
fn wait<R: Send>(
    py: Python<'_>,
    timeout: Timeout,
    mut attempt: impl FnMut(Option<Instant>) -> Option<R> + Send,
) -> PyResult<Option<R>> {
    let deadline = timeout.deadline();
    loop {
        let slice = if is_main_thread(py)? { Some(Instant::now() + SLICE) } else { None };
        let until = [deadline, slice].into_iter().flatten().min();
        if let Some(result) = py.detach(|| attempt(until)) {
            return Ok(Some(result));
        }
        py.check_signals()?;
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(None);
        }
    }
}

/// Whether this is the thread that runs Python's signal handlers.
pub(crate) fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    thread_local! {
        static IS_MAIN: Cell<Option<bool>> = const { Cell::new(None) };
    }
    if let Some(known) = IS_MAIN.get() {
        return Ok(known);
    }
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    let is_main = threading.call_method0("get_ident")?.eq(main)?;
    IS_MAIN.set(Some(is_main));
    Ok(is_main)
}
