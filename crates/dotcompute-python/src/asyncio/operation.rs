//! What an awaitable does when it is driven.
//!
//! Each operation tries at once first, on the stack; only one that has to wait makes a future.

use std::ffi::c_int;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use dotcompute::mailbox::wait::block_on_until;
use dotcompute::{Envelope, ReceiveError, Receiving, Sleep, sleep_until};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use super::actor::{Actor, Kernel};
use super::context::{ActorContext, ContextCell};
use super::errors;
use super::held::Held;
use super::hub;
use super::message::{PyMessage, plain_envelope};
use super::python;
use super::runtime::NativeRuntime;
use super::scope::scope;
use crate::queues::{QueueOperation, is_main_thread};
use crate::quick::Quick;

/// A future that ends as an awaitable ends.
pub(super) type Pending = Pin<Box<dyn Future<Output = PyResult<Py<PyAny>>> + Send>>;

/// The kernel that is meant.
pub(super) enum Target {
    Actor(Py<Actor>),
    Named(Py<NativeRuntime>, Py<PyAny>),
}

impl Target {
    #[inline]
    fn resolve<'py>(&self, py: Python<'py>) -> Quick<Bound<'py, Actor>> {
        match self {
            Self::Actor(actor) => Ok(actor.bind(py).clone()),
            Self::Named(runtime, id) => runtime.get().find(id.bind(py)),
        }
    }

    /// Drops it where the interpreter is attached, which a `Bound` need not ask for.
    #[inline]
    fn release(self, py: Python<'_>) {
        match self {
            Self::Actor(actor) => drop(actor.into_bound(py)),
            Self::Named(runtime, id) => drop((runtime.into_bound(py), id.into_bound(py))),
        }
    }

    fn held(&self) -> &Arc<Held> {
        match self {
            Self::Actor(actor) => &actor.get().held,
            Self::Named(runtime, _) => &runtime.get().held,
        }
    }

    fn traverse(&self, visit: &mut dyn FnMut(&Py<PyAny>) -> c_int) -> c_int {
        match self {
            Self::Actor(actor) => visit(actor.as_any()),
            Self::Named(runtime, _) => visit(runtime.as_any()),
        }
    }
}

/// See the module.
pub(super) enum Operation {
    Send { target: Target, message: Py<PyAny>, timeout: Option<f64>, waiting: Option<Pending> },
    Receive(Receive),
    Ask { target: Target, message: Py<PyAny>, timeout: Option<f64>, waiting: Option<Pending> },
    ContextReceive(ContextReceive),
    ContextSend { context: Py<ActorContext>, message: Py<PyAny>, waiting: Option<Pending> },
    Queue(QueueOperation),
    Future(Pending),
}

/// A receive that waits: for a reply, and for the end of its time.
struct Wait {
    receiving: Receiving<PyMessage, PyMessage>,
    sleep: Option<Sleep>,
}

/// A receive of a kernel's replies.
pub(super) struct Receive {
    pub(super) target: Target,
    pub(super) timeout: Option<f64>,
    /// The kernel runs beside the interpreter, as was seen at the first try.
    beside: bool,
    /// Boxed, since most receives do not wait, and what they are is moved about.
    waiting: Option<Box<Wait>>,
}

impl Receive {
    #[inline]
    pub(super) fn operation(target: Target, timeout: Option<f64>) -> Operation {
        Operation::Receive(Self { target, timeout, beside: false, waiting: None })
    }
}

/// A receive of an actor, and its place among those of its context.
pub(super) struct ContextReceive {
    /// `None` once it is over.
    pub(super) context: Option<Py<ActorContext>>,
    pub(super) timeout: Option<f64>,
    /// 0: not in line.
    pub(super) ticket: u64,
    /// Boxed, since most receives do not wait, and what they are is moved about.
    pub(super) sleep: Option<Box<Option<Sleep>>>,
}

impl Drop for ContextReceive {
    fn drop(&mut self) {
        if let Some(context) = &self.context
            && self.ticket != 0
        {
            context.get().cell.leave(self.ticket);
        }
    }
}

/// The end of a wait of so many seconds that begins now; `None`: it has none.
pub(super) fn duration(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    match seconds {
        None => Ok(None),
        Some(seconds) if seconds.is_nan() => {
            Err(PyValueError::new_err("timeout should be a number of seconds, got nan"))
        }
        Some(seconds) if seconds <= 0.0 => Ok(Some(Duration::ZERO)),
        // Longer than the clock can tell: no timeout.
        Some(seconds) => Ok(Duration::try_from_secs_f64(seconds).ok()),
    }
}

fn poll_waiting(
    py: Python<'_>,
    waiting: &mut Option<Pending>,
    cx: &mut Context<'_>,
) -> Poll<Quick<Py<PyAny>>> {
    let Some(future) = waiting else { return Poll::Pending };
    let polled = scope(py, || future.as_mut().poll(cx));
    if polled.is_ready() {
        *waiting = None;
    }
    polled.map_err(Into::into)
}

impl Operation {
    /// What it ends with, if that takes no waiting. After an error it may be tried again.
    #[inline(always)]
    pub(super) fn at_once(&mut self, py: Python<'_>) -> Quick<Option<Py<PyAny>>> {
        match self {
            Self::Queue(operation) => operation.at_once(py),
            Self::Send { target, message, timeout, waiting: None } => {
                send_at_once(py, target, message, *timeout)
            }
            Self::Receive(receive) if receive.waiting.is_none() => receive_at_once(py, receive),
            Self::ContextReceive(receive) => context_receive_at_once(py, receive),
            Self::ContextSend { context, message, waiting } if waiting.is_none() => {
                let cell = &context.get().cell;
                *waiting = cell.start_send(py, message.bind(py))?;
                Ok(waiting.is_none().then(|| py.None()))
            }
            _ => self.polled_once(py),
        }
    }

    /// Of one that is a future by now.
    fn polled_once(&mut self, py: Python<'_>) -> Quick<Option<Py<PyAny>>> {
        match self.poll(py, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => outcome.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Goes on as far as it can; the waker is woken when there is more.
    #[inline]
    pub(super) fn poll(&mut self, py: Python<'_>, cx: &mut Context<'_>) -> Poll<Quick<Py<PyAny>>> {
        match self {
            Self::Send { target, message, timeout, waiting } => {
                if waiting.is_none() {
                    match wait_to_send(py, target, message, *timeout) {
                        Ok(future) => *waiting = Some(future),
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
                poll_waiting(py, waiting, cx)
            }
            Self::Receive(receive) => match poll_receive(py, receive, cx) {
                Ok(polled) => polled.map(Ok),
                Err(error) => Poll::Ready(Err(error)),
            },
            Self::Ask { target, message, timeout, waiting } => {
                if waiting.is_none() {
                    let (kernel, future) = match ask(py, target, message, *timeout) {
                        Ok(asked) => asked,
                        Err(error) => return Poll::Ready(Err(error)),
                    };
                    let future = waiting.insert(future);
                    if let Some(answered) = scope(py, || at_once(&kernel, future)) {
                        *waiting = None;
                        return Poll::Ready(answered.map_err(Into::into));
                    }
                }
                poll_waiting(py, waiting, cx)
            }
            Self::ContextReceive(receive) => poll_context_receive(py, receive, cx),
            Self::ContextSend { context, message, waiting } => {
                if waiting.is_none() {
                    match context.get().cell.start_send(py, message.bind(py)) {
                        Ok(None) => return Poll::Ready(Ok(py.None())),
                        Ok(Some(future)) => *waiting = Some(future),
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
                poll_waiting(py, waiting, cx)
            }
            Self::Queue(operation) => operation.poll(py, cx),
            Self::Future(future) => scope(py, || future.as_mut().poll(cx)).map_err(Into::into),
        }
    }

    /// Drops it where the interpreter is attached.
    #[inline]
    pub(super) fn release(self, py: Python<'_>) {
        match self {
            Self::Send { target, message, waiting: None, .. } => {
                target.release(py);
                drop(message.into_bound(py));
            }
            Self::Receive(Receive { target, waiting: None, .. }) => target.release(py),
            Self::ContextReceive(mut receive) if receive.ticket == 0 => {
                drop(receive.context.take().map(|context| context.into_bound(py)));
            }
            Self::ContextSend { context, message, waiting: None } => {
                drop((context.into_bound(py), message.into_bound(py)));
            }
            Self::Queue(operation) => operation.release(py),
            other => drop(other),
        }
    }

    /// Whether an error at once is raised only after the loop had its turn, so that a body that
    /// tries again and again cannot starve it.
    pub(super) fn suspends_before_it_raises(&self) -> bool {
        matches!(self, Self::Receive(_) | Self::ContextReceive(_) | Self::Queue(_))
    }

    /// Whether it helps: those outside do, who wait for what an actor makes. An actor that waits for
    /// more waits cheaply, and lets them.
    pub(super) fn may_help(&self) -> bool {
        matches!(self, Self::Receive(_) | Self::Ask { .. } | Self::Queue(_))
    }

    /// Whether what it waits for may come within microseconds from a kernel that needs nothing of the
    /// interpreter: then the loop looks out for it instead of going to sleep.
    pub(super) fn looks_out(&self, py: Python<'_>) -> bool {
        match self {
            Self::Receive(receive) => receive.beside,
            Self::Ask { target, .. } => {
                target.resolve(py).is_ok_and(|actor| actor.get().runs_beside())
            }
            _ => false,
        }
    }

    /// What holds those who wait for this.
    pub(super) fn held(&self) -> Option<&Arc<Held>> {
        match self {
            Self::Send { target, .. } | Self::Ask { target, .. } => Some(target.held()),
            Self::Receive(receive) => Some(receive.target.held()),
            Self::ContextReceive(receive) => Some(&receive.context.as_ref()?.get().held),
            Self::ContextSend { context, .. } => Some(&context.get().held),
            Self::Queue(operation) => Some(operation.held()),
            Self::Future(_) => None,
        }
    }

    pub(super) fn traverse(&self, visit: &mut dyn FnMut(&Py<PyAny>) -> c_int) -> c_int {
        let both = |first: c_int, second: &mut dyn FnMut() -> c_int| match first {
            0 => second(),
            first => first,
        };
        match self {
            Self::Send { target, message, .. } | Self::Ask { target, message, .. } => {
                both(visit(message), &mut || target.traverse(visit))
            }
            Self::Receive(receive) => receive.target.traverse(visit),
            Self::ContextReceive(receive) => {
                receive.context.as_ref().map_or(0, |context| visit(context.as_any()))
            }
            Self::ContextSend { context, message, .. } => {
                both(visit(message), &mut || visit(context.as_any()))
            }
            Self::Queue(operation) => operation.traverse(visit),
            Self::Future(_) => 0,
        }
    }
}

#[inline]
fn send_at_once(
    py: Python<'_>,
    target: &Target,
    message: &Py<PyAny>,
    timeout: Option<f64>,
) -> Quick<Option<Py<PyAny>>> {
    let actor = target.resolve(py)?;
    let actor = actor.get();
    let message = message.bind(py);
    let kernel = actor.kernel(py, "send message")?;
    let offered = match actor.plain_priority(message)? {
        // Made where it is put: to move it there costs more.
        Some(priority) => scope(py, || match kernel.offer(plain_envelope(message, priority)) {
            Ok(None) => Ok(None),
            refused => Err(Box::new(refused)),
        })
        .or_else(|refused| *refused),
        None => {
            let envelope = actor.envelope(message, false)?;
            scope(py, || kernel.offer(envelope))
        }
    };
    match offered {
        Ok(None) => Ok(Some(py.None())),
        Err(error) => Err(errors::send(py, error, timeout, actor.capacity()).into()),
        Ok(Some(_)) if duration(timeout)? == Some(Duration::ZERO) => {
            Err(errors::stayed_full(py, kernel.id().as_str(), actor.capacity(), 0.0).into())
        }
        Ok(Some(_)) => Ok(None),
    }
}

/// A send that waits for room.
fn wait_to_send(
    py: Python<'_>,
    target: &Target,
    message: &Py<PyAny>,
    timeout: Option<f64>,
) -> Quick<Pending> {
    let actor = target.resolve(py)?;
    let actor = actor.get();
    let kernel = actor.kernel(py, "send message")?;
    let envelope = actor.envelope(message.bind(py), false)?;
    let (kernel, capacity) = (kernel.clone(), actor.capacity());
    let within = duration(timeout)?;
    Ok(Box::pin(async move {
        let sent = match within {
            Some(within) => kernel.send_timeout(envelope, within).await,
            None => kernel.send(envelope).await,
        };
        Python::attach(|py| match sent {
            Ok(()) => Ok(py.None()),
            Err(error) => Err(errors::send(py, error, timeout, capacity)),
        })
    }))
}

/// What a receive finds.
enum Received {
    Object(Quick<Py<PyAny>>),
    Other(Box<Result<Option<Envelope<PyMessage>>, ReceiveError>>),
}

#[inline]
fn receive_at_once(py: Python<'_>, receive: &mut Receive) -> Quick<Option<Py<PyAny>>> {
    let timeout = receive.timeout;
    let actor = receive.target.resolve(py)?;
    receive.beside = actor.get().runs_beside();
    let kernel = actor.get().kernel(py, "receive message")?;
    // Taken apart in there: to move it costs more.
    let received = scope(py, || match kernel.receive_now() {
        Ok(Some(envelope)) if envelope.message.batch().is_none() => {
            Received::Object(PyMessage::into_object(envelope, py, None))
        }
        other => Received::Other(Box::new(other)),
    });
    let received = match received {
        Received::Object(object) => return object.map(Some),
        Received::Other(other) => *other,
    };
    match received {
        Ok(Some(envelope)) => {
            let reply = PyMessage::into_object(envelope, py, actor.get().reply_record());
            Ok(Some(reply?))
        }
        Ok(None) => {
            if timeout.is_some() && duration(timeout)? == Some(Duration::ZERO) {
                return Err(errors::timed_out(py, kernel.id().as_str(), 0.0, "receive").into());
            }
            Ok(None)
        }
        Err(error) => Err(errors::receive(py, error, timeout).into()),
    }
}

fn poll_receive(
    py: Python<'_>,
    receive: &mut Receive,
    cx: &mut Context<'_>,
) -> Quick<Poll<Py<PyAny>>> {
    let timeout = receive.timeout;
    let Wait { receiving, sleep } = match &mut receive.waiting {
        Some(waiting) => &mut **waiting,
        None => {
            let actor = receive.target.resolve(py)?;
            let kernel = actor.get().kernel(py, "receive message")?;
            let wait = Wait { receiving: kernel.receiving(), sleep: None };
            &mut **receive.waiting.insert(Box::new(wait))
        }
    };
    match scope(py, || Pin::new(receiving).poll(cx)) {
        Poll::Ready(Ok(envelope)) => {
            let actor = receive.target.resolve(py)?;
            let reply = PyMessage::into_object(envelope, py, actor.get().reply_record());
            Ok(Poll::Ready(reply?))
        }
        Poll::Ready(Err(error)) => Err(errors::receive(py, error, timeout).into()),
        Poll::Pending if expired(py, sleep, timeout, cx) => {
            let actor = receive.target.resolve(py)?;
            let (kernel, seconds) = (actor.get().id(), timeout.unwrap_or_default());
            Err(errors::timed_out(py, kernel, seconds, "receive").into())
        }
        Poll::Pending => Ok(Poll::Pending),
    }
}

/// Whether so many seconds are over since this was first asked.
#[inline]
fn expired(
    py: Python<'_>,
    sleep: &mut Option<Sleep>,
    timeout: Option<f64>,
    cx: &mut Context<'_>,
) -> bool {
    if timeout.is_none() {
        return false;
    }
    if sleep.is_none() {
        // A timeout that is no number has been refused before; one beyond the clock is none.
        let within = duration(timeout).ok().flatten();
        *sleep = within.and_then(|within| Instant::now().checked_add(within)).map(sleep_until);
    }
    match sleep {
        Some(sleep) => scope(py, || Pin::new(sleep).poll(cx).is_ready()),
        None => false,
    }
}

fn ask(
    py: Python<'_>,
    target: &Target,
    message: &Py<PyAny>,
    timeout: Option<f64>,
) -> Quick<(Kernel, Pending)> {
    let actor = target.resolve(py)?;
    let actor = actor.get();
    let message = message.bind(py);
    let kernel = actor.kernel(py, "send message")?.clone();
    actor.shared.set_asked();
    let envelope = actor.envelope(message, true)?;
    let record = actor.reply_record().map(|record| record.clone_ref(py));
    let within = duration(timeout)?;
    let capacity = actor.capacity();
    let asked = kernel.clone();
    let future: Pending = Box::pin(async move {
        let answered = match within {
            Some(within) => kernel.ask_timeout(envelope, within).await,
            None => kernel.ask(envelope).await,
        };
        Python::attach(|py| match answered {
            Ok(envelope) => Ok(PyMessage::into_object(envelope, py, record.as_ref())?),
            Err(error) => Err(errors::ask(py, error, timeout, capacity)),
        })
    });
    Ok((asked, future))
}

/// The answer of a kernel in another process, if that comes within microseconds: this thread drives
/// the kernel so long, so that no thread has to be woken and the loop has no turn in between. Only
/// for an ask that is alone: of several, the loop sends the next one meanwhile.
///
/// The loop waits for 50 us at most, and that only as long as such waits end with the answer; see
/// [`hub::charge`] for many in a row.
fn at_once(kernel: &Kernel, future: &mut Pending) -> Option<PyResult<Py<PyAny>>> {
    if !kernel.is_driven_by_guests() {
        return None;
    }
    let books = kernel.books();
    if books.queued + books.in_hand > 0 {
        return None;
    }
    let mut answered = None;
    let since = Instant::now();
    kernel.in_place(&mut |place| {
        // It sends the message when it is polled first.
        let mut poll = |cx: &mut Context<'_>| {
            if let Poll::Ready(outcome) = future.as_mut().poll(cx) {
                answered = Some(outcome);
            }
            answered.is_some()
        };
        if !poll(&mut Context::from_waker(Waker::noop())) {
            place.drive_briefly(&mut poll);
        }
    });
    hub::charge(since.elapsed());
    answered
}

/// How long the main thread waits before it looks for signals.
const SLICE: Duration = Duration::from_millis(50);

/// Asks a kernel and waits on the calling thread, without the interpreter. Where the kernel's executor
/// lets it, the thread drives the kernel meanwhile, so that none has to be woken in between.
pub(super) fn ask_blocking(
    py: Python<'_>,
    actor: &Actor,
    message: &Bound<'_, PyAny>,
    timeout: Option<f64>,
) -> PyResult<Py<PyAny>> {
    if !python::names(py)?.running_loop.bind(py).call0()?.is_none() {
        return Err(PyRuntimeError::new_err(
            "ask_blocking would stop the event loop that runs on this thread: await \
             send_and_receive, or call it on another thread (asyncio.to_thread)",
        ));
    }
    let kernel = actor.kernel(py, "send message")?;
    let within = duration(timeout)?;
    actor.shared.set_asked();
    let envelope = actor.envelope(message, true)?;
    let mut asking = pin!(async {
        match within {
            Some(within) => kernel.ask_timeout(envelope, within).await,
            None => kernel.ask(envelope).await,
        }
    });
    let is_main = is_main_thread(py)?;
    loop {
        let until = is_main.then(|| Instant::now() + SLICE);
        // Not in a scope: an event loop that has to go on for the answer is told at once.
        if let Some(answered) = py.detach(|| wait_for(kernel, asking.as_mut(), until)) {
            return match answered {
                Ok(reply) => Ok(PyMessage::into_object(reply, py, actor.reply_record())?),
                Err(error) => Err(errors::ask(py, error, timeout, actor.capacity())),
            };
        }
        py.check_signals()?;
    }
}

/// The end of an ask; none if `until` has passed.
fn wait_for<F: Future>(
    kernel: &Kernel,
    mut asking: Pin<&mut F>,
    until: Option<Instant>,
) -> Option<F::Output> {
    let mut answered = None;
    kernel.in_place(&mut |place| {
        let mut poll = |cx: &mut Context<'_>| {
            if let Poll::Ready(outcome) = asking.as_mut().poll(cx) {
                answered = Some(outcome);
            }
            answered.is_some()
        };
        // In the place before the message is sent, which else would wake who drives the kernel.
        if !poll(&mut Context::from_waker(Waker::noop())) {
            place.drive(until, &mut poll);
        }
    });
    match answered {
        Some(_) => answered,
        // Somebody else drives it, or it has ended.
        None => block_on_until(asking, until).ok(),
    }
}

#[inline]
fn context_receive_at_once(
    py: Python<'_>,
    receive: &mut ContextReceive,
) -> Quick<Option<Py<PyAny>>> {
    let Some(context) = &receive.context else { return Ok(None) };
    let cell = &context.get().cell;
    let mut now = Context::from_waker(Waker::noop());
    if let Some(received) = received(py, cell, &mut receive.ticket, &mut now, false) {
        return received.map(Some);
    }
    match receive.timeout {
        Some(seconds) if duration(Some(seconds))? == Some(Duration::ZERO) => {
            Err(errors::timed_out(py, cell.id(), seconds, "receive").into())
        }
        _ => Ok(None),
    }
}

#[inline]
fn poll_context_receive(
    py: Python<'_>,
    receive: &mut ContextReceive,
    cx: &mut Context<'_>,
) -> Poll<Quick<Py<PyAny>>> {
    let Some(context) = &receive.context else { return Poll::Pending };
    let cell = &context.get().cell;
    if let Some(received) = received(py, cell, &mut receive.ticket, cx, true) {
        return Poll::Ready(received);
    }
    let Some(seconds) = receive.timeout else { return Poll::Pending };
    match expired(py, receive.sleep.get_or_insert_default(), receive.timeout, cx) {
        true => Poll::Ready(Err(errors::timed_out(py, cell.id(), seconds, "receive").into())),
        false => Poll::Pending,
    }
}

/// What an actor has received, if there is something.
#[inline]
fn received(
    py: Python<'_>,
    cell: &ContextCell,
    ticket: &mut u64,
    cx: &mut Context<'_>,
    wait: bool,
) -> Option<Quick<Py<PyAny>>> {
    match cell.poll_receive(py, ticket, cx, wait) {
        Poll::Ready(Ok(Some(message))) => Some(Ok(message)),
        Poll::Ready(Ok(None)) => {
            Some(Err(errors::stopped(py, cell.id(), "receive message").into()))
        }
        Poll::Ready(Err(error)) => Some(Err(error)),
        Poll::Pending => None,
    }
}
