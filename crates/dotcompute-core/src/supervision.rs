//! The supervised life of a kernel: runs its body, catches its faults, restarts it or ends it.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use dotcompute_mailbox::{Inbox, Outcome};

use crate::ask::AskFailure;
use crate::context::Context;
use crate::dead_letter::{self, DeadLetter, DeadLetterReason};
use crate::error::{BoxError, Fault, ReceiveError, Stopped};
use crate::kernel::Cell;
use crate::lent;
use crate::message::{AskToken, Envelope, Message, Taken};
use crate::options::{DELIVERIES_MAX, RestartPolicy};
use crate::telemetry::Telemetry;
use crate::terminate::Running;
use crate::timer;

/// A body in flight.
pub(crate) type BodyFuture = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

mod intensity;
use intensity::Intensity;

/// The longest pause before a restart is the first one doubled so often.
const DOUBLINGS_MAX: u64 = 31;

/// How a body ended.
enum Ended {
    Returned,
    Faulted(Fault),
    Killed,
}

/// The whole life of a kernel, from launch to its end: runs the body again and again, as the restart
/// policy says. `body` is called at each (re)start.
///
/// One future, not one in another, so that what each poll of the kernel reads lies together.
#[expect(clippy::manual_async_fn, reason = "an async function keeps its arguments twice")]
pub(crate) fn supervise<M: Message, R: Message>(
    guard: TellWhenDropped<M, R>,
    mut body: impl FnMut(Context<M, R>) -> BodyFuture + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    async move {
        let Some(cell) = guard.0.clone() else { return };
        if !begins(&cell).await {
            return guard.finish(None);
        }
        let mut restarts = Intensity::of(&cell.options.restart);
        loop {
            let Some(context) = Context::new(&cell) else {
                return guard.finish(Some(Fault::new(
                    "the kernel's previous context is still alive: a body must not let it escape",
                )));
            };
            let ended = Supervised {
                cell: &*cell,
                body: &mut body,
                context: Some(Box::new(context)),
                running: None,
                waker: None,
            }
            .await;
            match after_run(&cell, &mut restarts, ended) {
                Next::End(fault) => return guard.finish(fault),
                Next::Restart(pause) => {
                    // Boxed, as the context is.
                    if !Box::pin(restarts_after(&cell, pause)).await {
                        return guard.finish(None);
                    }
                }
            }
        }
    }
}

/// An executor that drops a kernel unfinished must not leave anyone waiting for it.
pub(crate) struct TellWhenDropped<M: Message, R: Message>(Option<Arc<Cell<M, R>>>);

impl<M: Message, R: Message> TellWhenDropped<M, R> {
    pub(crate) fn new(cell: &Arc<Cell<M, R>>) -> Self {
        Self(Some(Arc::clone(cell)))
    }

    fn finish(mut self, fault: Option<Fault>) {
        if let Some(cell) = self.0.take() {
            if let Some(fault) = &fault {
                tracing::error!(kernel = %cell.id, %fault, "ring kernel failed");
            }
            cell.finish(fault, false);
        }
    }
}

impl<M: Message, R: Message> Drop for TellWhenDropped<M, R> {
    fn drop(&mut self) {
        if let Some(cell) = self.0.take() {
            let fault = Fault::executor(format!(
                "executor '{}' went away while the kernel was running",
                cell.executor
            ));
            // Who asks is told by `finish`, as in `live`.
            drop(settle_message_in_hand(&cell, &Ended::Faulted(fault.clone()), false));
            cell.finish(Some(fault), false);
        }
    }
}

/// Waits until the kernel is activated; `false`: it is to end instead.
async fn begins<M: Message, R: Message>(cell: &Cell<M, R>) -> bool {
    // If both have happened by now and it is to drain first, it has its turn.
    cell.until(|lifecycle| match (lifecycle.opened, lifecycle.stop) {
        (true, None | Some(true)) => Some(true),
        (false, None) => None,
        (_, Some(_)) => Some(false),
    })
    .await
}

/// What follows on a run of the body.
enum Next {
    /// The kernel ends, with this fault.
    End(Option<Fault>),
    /// The body starts anew after this pause.
    Restart(Duration),
}

/// A run of the body has ended: settles what it had in hand and decides what follows.
fn after_run<M: Message, R: Message>(
    cell: &Cell<M, R>,
    restarts: &mut Intensity,
    ended: Ended,
) -> Next {
    let restart = &cell.options.restart;
    if let Ended::Faulted(_) = ended {
        Telemetry::count(&cell.telemetry.faults);
    }
    let stop = cell.look(|lifecycle| lifecycle.stop);
    let wanted = match (&ended, restart.policy) {
        (Ended::Killed, _) | (_, RestartPolicy::Never) => false,
        // A drain goes on after a fault; a body that returns has drained its mailbox.
        (Ended::Faulted(_), _) => stop != Some(false),
        (Ended::Returned, policy) => policy == RestartPolicy::Always && stop.is_none(),
    };
    let now = Instant::now();
    let before = restarts.within_window(now);
    let again = wanted && before < u64::from(restart.max_restarts);
    let failed_asks = settle_message_in_hand(cell, &ended, again && restart.redeliver);
    let fault = match ended {
        Ended::Returned => None,
        Ended::Killed => {
            cell.change(|lifecycle| lifecycle.cancelled = true);
            None
        }
        Ended::Faulted(fault) => Some(fault),
    };
    if !again {
        // `finish` tells those who asked, once the state says what they are told.
        return Next::End(match fault {
            // Returning was not a fault; doing so all the time, where it should go on, is.
            None if wanted => Some(Fault::new(format!(
                "restarted {} times within {:?}, which is the most allowed",
                restart.max_restarts, restart.window
            ))),
            fault => fault,
        });
    }
    let doublings = before.min(DOUBLINGS_MAX);
    let pause = restart.backoff.saturating_mul(1 << doublings).min(restart.backoff_max);
    restarts.note(now);
    if let Some(fault) = &fault {
        tracing::warn!(kernel = %cell.id, %fault, ?pause, "ring kernel faulted, restarting");
    }
    let failure = fault.clone().map_or(AskFailure::Stopped, AskFailure::Failed);
    cell.change(|lifecycle| lifecycle.restarting(fault));
    // Whoever is told finds the letter, the fault and the state.
    for token in failed_asks {
        cell.fail_ask(token, failure.clone());
    }
    cell.forget_received_asks();
    Next::Restart(pause)
}

/// Waits for the pause before a restart; `false`: the kernel is to end instead.
async fn restarts_after<M: Message, R: Message>(cell: &Cell<M, R>, pause: Duration) -> bool {
    let stop = cell.until(|lifecycle| lifecycle.stop);
    let stopped = timer::timeout_at(timer::after(pause), stop).await.is_some();
    // A drain that finds the kernel in its back-off still gets its turn.
    if stopped && cell.look(|lifecycle| lifecycle.stop) != Some(true) {
        return false;
    }
    // Also where there is no pause to wait for: a body that fails at once, again and again,
    // must not keep the other kernels of its executor from running.
    let_others_run().await;
    Telemetry::count(&cell.telemetry.restarts);
    cell.change(|lifecycle| lifecycle.restarted());
    true
}

/// Gives the executor back once.
async fn let_others_run() {
    let mut had_their_turn = false;
    poll_fn(|cx| match std::mem::replace(&mut had_their_turn, true) {
        true => Poll::Ready(()),
        false => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

/// The body is gone; what it had in hand is settled as its end says. The asks that this fails: they
/// are to be told once the kernel's state says the same.
fn settle_message_in_hand<M: Message, R: Message>(
    cell: &Cell<M, R>,
    ended: &Ended,
    redeliver: bool,
) -> Vec<AskToken> {
    // Where the context escaped from the body, its message stays in hand with it.
    let Some(mut inbox) = cell.mailbox.inbox() else { return Vec::new() };
    let taken = cell.taken();
    let fault = match ended {
        Ended::Returned => None,
        Ended::Faulted(fault) => Some(fault.clone()),
        Ended::Killed => {
            Some(Fault::new("the kernel was terminated while it had the message in hand"))
        }
    };
    let mut failed = lent::settle(cell, &mut inbox, fault.as_ref(), redeliver);
    let is_answered = matches!(ended, Ended::Killed) && was_answered(&inbox, taken.as_ref());
    let Some(fault) = fault.filter(|_| !is_answered) else {
        dead_letter::discard(inbox.settle(Outcome::Processed));
        return failed;
    };
    if redeliver
        && let Some(envelope) = inbox.current_mut()
        && envelope.delivery_count < DELIVERIES_MAX
    {
        envelope.delivery_count += 1;
        envelope.answered = false;
        inbox.put_back();
        return failed;
    }
    let (ask, letter) = match inbox.settle(Outcome::DeadLettered) {
        Some(envelope) => {
            let ask = envelope.ask;
            let reason = DeadLetterReason::Faulted(fault.clone());
            (ask, DeadLetter::of(&cell.id, envelope, reason, true))
        }
        // The body had taken the message out of its envelope: only its data are left.
        None => {
            let Some(taken) = taken else { return failed };
            let reason = DeadLetterReason::Faulted(fault.clone());
            (taken.ask, DeadLetter::without_payload::<M>(&cell.id, &taken, reason))
        }
    };
    cell.dead_letter(letter);
    failed.extend(ask);
    failed
}

/// Whether the message in hand was replied to: it is done with, though nobody asked for the next.
fn was_answered<M>(inbox: &Inbox<Envelope<M>>, taken: Option<&Taken>) -> bool {
    let taken = taken.is_some_and(|taken| taken.answered);
    inbox.current().map_or(taken, |envelope| envelope.answered)
}

/// Drives one run of the body: catches its panics, and drops it when it is killed.
#[repr(C)] // In the order of use: first what every poll reads.
struct Supervised<'a, M: Message, R: Message, B> {
    running: Option<BodyFuture>,
    /// The waker that a kill knows of.
    waker: Option<Waker>,
    cell: &'a Cell<M, R>,
    body: &'a mut B,
    /// For the body, until it is called. Boxed, since it would lie unused between what every poll
    /// reads.
    context: Option<Box<Context<M, R>>>,
}

impl<M, R, B> Future for Supervised<'_, M, R, B>
where
    M: Message,
    R: Message,
    B: FnMut(Context<M, R>) -> BodyFuture,
{
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Ended> {
        let this = self.get_mut();
        if !this.waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            this.cell.runner_is(cx.waker());
            this.waker = Some(cx.waker().clone());
        }
        let _running = Running::enter(std::ptr::from_ref(this.cell).cast());
        // After the waker is registered, so that no kill goes unseen.
        let polled = if this.cell.is_killed() {
            Poll::Ready(Ended::Killed)
        } else {
            // An error's text is the user's code too.
            catch_unwind(AssertUnwindSafe(|| match this.step(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(())) => Poll::Ready(Ended::Returned),
                Poll::Ready(Err(error)) => Poll::Ready(this.returned(error)),
            }))
            .unwrap_or_else(|panic| Poll::Ready(Ended::Faulted(Fault::from_panic(panic))))
        };
        let Poll::Ready(mut ended) = polled else { return Poll::Pending };
        // The destructors of what the body holds are its code too.
        let dropped = catch_unwind(AssertUnwindSafe(|| {
            this.running = None;
            this.context = None;
        }));
        if let Err(panic) = dropped {
            let fault = Fault::from_panic(panic);
            if let Ended::Returned = ended {
                ended = Ended::Faulted(fault);
            }
        }
        Poll::Ready(ended)
    }
}

impl<M, R, B> Supervised<'_, M, R, B>
where
    M: Message,
    R: Message,
    B: FnMut(Context<M, R>) -> BodyFuture,
{
    fn step(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), BoxError>> {
        if let Some(context) = self.context.take() {
            self.running = Some((self.body)(*context));
        }
        match &mut self.running {
            Some(running) => running.as_mut().poll(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// That the kernel was stopped is no fault of its body.
    fn returned(&self, error: BoxError) -> Ended {
        let stopped = match (error.downcast_ref(), error.downcast_ref()) {
            (Some(Stopped { kernel }), _) | (_, Some(ReceiveError::Stopped { kernel })) => {
                *kernel == self.cell.id
            }
            _ => false,
        };
        match stopped {
            true => Ended::Returned,
            false => Ended::Faulted(Fault::from_error(error)),
        }
    }
}
