//! The loop around a compiled handler: receives, runs the code, sends what it made.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use super::call::Outbox;
use super::feed::FeedHold;
use super::state::StateHold;
use super::{Call, CompiledHandler, HandlerCode, RecordBatch, RecordMessage, RecordReply};
use crate::context::Context;
use crate::error::{BoxError, Fault, KernelId};
use crate::id::MessageId;
use crate::kernel::Address;
use crate::message::Envelope;
use crate::record::RecordLayout;
use crate::runtime::Runtime;

/// The way to a target.
pub(crate) trait Route: Send + Sync {
    /// What the target takes.
    fn layout(&self) -> &'static RecordLayout;

    /// Begins to send there.
    fn open(&self) -> Box<dyn OpenRoute>;
}

/// A route that one run of a body uses.
pub(crate) trait OpenRoute: Send {
    /// Sends records there; waits for room.
    fn send<'a>(
        &'a mut self,
        runtime: Option<Runtime>,
        records: &'a [u8],
        single: bool,
    ) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send + 'a>>;
}

pub(super) fn route<S: RecordReply>(
    kernel: KernelId,
    layout: &'static RecordLayout,
) -> Box<dyn Route> {
    Box::new(RouteTo::<S> { kernel, layout, address: None })
}

struct RouteTo<S> {
    kernel: KernelId,
    layout: &'static RecordLayout,
    /// Looked up when it is first needed, so that kernels can be launched in any order.
    address: Option<Address<S>>,
}

impl<S: RecordReply> Route for RouteTo<S> {
    fn layout(&self) -> &'static RecordLayout {
        self.layout
    }

    fn open(&self) -> Box<dyn OpenRoute> {
        let Self { kernel, layout, .. } = self;
        Box::new(Self { kernel: kernel.clone(), layout, address: None })
    }
}

impl<S: RecordReply> OpenRoute for RouteTo<S> {
    fn send<'a>(
        &'a mut self,
        runtime: Option<Runtime>,
        records: &'a [u8],
        single: bool,
    ) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send + 'a>> {
        Box::pin(async move {
            let address = match &mut self.address {
                Some(address) => address,
                none => {
                    let runtime = runtime.ok_or("the runtime is gone")?;
                    none.insert(runtime.address::<S>(self.kernel.as_str())?)
                }
            };
            if !single {
                let batch = RecordBatch::copied(self.layout, records)
                    .ok_or("records of a target come out even")?;
                match S::many(batch) {
                    Ok(message) => return Ok(address.send(message).await?),
                    // Each is a message of its own, as below.
                    Err(_batch) => {}
                }
            }
            for record in records.chunks_exact(self.layout.bytes) {
                address.send(S::one(self.layout, record)).await?;
            }
            Ok(())
        })
    }
}

/// The most records of a feed that are in hand at once.
const FED_MAX: usize = 256;

/// What the kernel does next.
enum Next {
    /// It has a message in hand.
    Message,
    /// There is something in its feed.
    Records,
    /// It ends.
    Stop,
}

/// What the handler made of a message, or of records of a feed.
struct Ran {
    outcome: Result<(), BoxError>,
    /// The message, if it was one.
    id: Option<MessageId>,
    /// Which record failed, of how many.
    record: usize,
    count: usize,
    single: bool,
}

/// One run of the body of a compiled handler's kernel.
pub(crate) async fn run<M: RecordMessage, R: RecordReply>(
    handler: Arc<CompiledHandler>,
    mut context: Context<M, R>,
) -> Result<(), BoxError> {
    let shape = handler.shape;
    let state_bytes = handler.state.layout().map_or(0, |layout| layout.bytes);
    let mut state = StateHold::new(&handler.state);
    let mut routes: Vec<_> = handler.routes.iter().map(|route| route.open()).collect();
    let layouts = handler.routes.iter().map(|route| route.layout());
    let mut outbox = Outbox::new(shape, layouts, Box::new(context.must_stop()));
    let mut scratch = Vec::new();
    let mut feed = handler.feed.as_ref().map(|place| FeedHold::take(place, &context.cell));
    // What a record of a feed has sent before it fails has to be told from what others have.
    let alone = shape.max_emit > 0 || !routes.is_empty();
    loop {
        let next = match context.advance() {
            true => Next::Message,
            false => poll_fn(|cx| next(&mut context, &mut feed, &mut state, cx)).await,
        };
        state.work();
        let ran = match (next, &mut feed) {
            (Next::Message, _) => {
                let Some(envelope) = context.envelope() else { continue };
                let records = envelope.message.records(shape.input, &mut scratch)?;
                let (start, single) = (state.start(), records.single);
                let mut call = Call::new(records.bytes, single, start, state_bytes, &mut outbox);
                let outcome = handler.code.run(&mut call);
                let (record, count) = (call.record(), call.count());
                Ran { outcome, id: Some(envelope.id), record, count, single }
            }
            (Next::Records, Some(feed)) => {
                let mut ran = None;
                feed.read(if alone { 1 } else { FED_MAX }, &mut |bytes| {
                    let start = state.start();
                    let mut call = Call::new(bytes, alone, start, state_bytes, &mut outbox);
                    ran = run_fed(&*handler.code, &mut context, &mut call);
                    ran.is_some()
                });
                let Some(ran) = ran else { continue };
                ran
            }
            (Next::Records, None) => continue,
            (Next::Stop, _) => return Ok(()),
        };
        let Ran { outcome, id, record, count, single } = ran;
        let mut failed = None;
        if outbox.has_log() {
            for (level, text) in outbox.take_log() {
                handler.code.log(context.id(), level, &text);
            }
        }
        match (id, &outcome) {
            (Some(_), _) => {
                outcome.map_err(|error| at_record(error, record, count, single))?;
                context.count_records(count);
                if std::mem::needs_drop::<M>() {
                    // Whoever gets the replies may use the memory of the records again.
                    drop(context.take());
                }
            }
            (None, Err(_)) if alone => return outcome,
            (None, _) => failed = outcome.err(),
        }
        let runtime = || context.runtime();
        for (target, route) in routes.iter_mut().enumerate() {
            let sent = outbox.sent(target);
            if !sent.is_empty() {
                let mut send = route.send(runtime(), sent, single);
                poll_fn(|cx| {
                    let sent = send.as_mut().poll(cx);
                    if sent.is_pending() {
                        state.rest();
                    }
                    sent
                })
                .await?;
            }
        }
        let replies = outbox.reply_count();
        let asked = context.in_hand().is_some_and(|(_, ask)| ask.is_some());
        match shape.output {
            None => {}
            // Whoever asks with a batch gets one, also an empty one.
            Some(layout) if !single && (replies > 0 || asked) => {
                let batch = RecordBatch::owned(layout, outbox.take_replies(), replies);
                match R::many(batch) {
                    Ok(reply) => {
                        if !send(&mut context, &mut state, reply, id).await {
                            return Ok(());
                        }
                    }
                    Err(batch) => {
                        for record in batch.bytes().chunks_exact(layout.bytes) {
                            let reply = R::one(layout, record);
                            if !send(&mut context, &mut state, reply, id).await {
                                return Ok(());
                            }
                        }
                    }
                }
            }
            Some(layout) => {
                for index in 0..replies {
                    let at = index * layout.bytes;
                    let reply = R::one(layout, &outbox.replies()[at..at + layout.bytes]);
                    if !send(&mut context, &mut state, reply, id).await {
                        return Ok(());
                    }
                }
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
    }
}

/// Waits for a message, or for records of a feed.
fn next<M: RecordMessage, R: RecordReply>(
    context: &mut Context<M, R>,
    feed: &mut Option<FeedHold<M, R>>,
    state: &mut StateHold,
    cx: &mut TaskContext<'_>,
) -> Poll<Next> {
    let received = match feed {
        None => context.poll_receive(cx).map_ok(|()| true),
        Some(feed) => context.poll_either(cx, |cx| feed.poll_ready(cx)),
    };
    Poll::Ready(match received {
        Poll::Pending => {
            state.rest();
            return Poll::Pending;
        }
        Poll::Ready(Ok(true)) => Next::Message,
        Poll::Ready(Ok(false)) => Next::Records,
        // Of a drain what was pushed by now, and nothing more.
        Poll::Ready(Err(_)) => match feed {
            Some(feed) => match !context.must_stop()() && feed.close() {
                true => Next::Records,
                false => Next::Stop,
            },
            None => Next::Stop,
        },
    })
}

/// Runs records of a feed, which are in hand meanwhile; none if the kernel is not to have them. Of the one that fails the kernel's restart policy
/// has to say what becomes; those after it are queued in the mailbox.
fn run_fed<M: RecordMessage, R: RecordReply>(
    code: &dyn HandlerCode,
    context: &mut Context<M, R>,
    call: &mut Call<'_>,
) -> Option<Ran> {
    let (count, single, layout) = (call.count(), call.is_single(), call.shape().input);
    if !context.take_fed(count) {
        return None;
    }
    let ran = catch_unwind(AssertUnwindSafe(|| code.run(call)));
    let record = call.record().min(count - 1);
    let done = if let Ok(Ok(())) = ran { count } else { record };
    context.settle_fed(done);
    for (at, record) in call.input().chunks_exact(layout.bytes).enumerate().skip(done) {
        context.give_back(M::from_record(layout, record), at == done);
    }
    let outcome = ran.unwrap_or_else(|panic| resume_unwind(panic));
    Some(Ran { outcome, id: None, record, count, single })
}

/// Sends a reply to the message `id`, if it was one; `false`: the kernel has to stop instead.
#[inline]
async fn send<M: RecordMessage, R: RecordReply>(
    context: &mut Context<M, R>,
    state: &mut StateHold,
    reply: R,
    id: Option<MessageId>,
) -> bool {
    let mut reply = Envelope::new(reply);
    reply.correlation_id = id;
    let sent = match id {
        Some(_) => context.try_send(reply),
        None => context.try_send_unasked(reply),
    };
    let Err(reply) = sent else { return true };
    // The handler is done with the message: its state can be read while the reply waits for room.
    state.rest();
    context.output(reply).await.is_ok()
}

/// Says of which record of a batch an error is.
pub(super) fn at_record(error: BoxError, record: usize, count: usize, single: bool) -> BoxError {
    match single {
        true => error,
        false => Fault::from_error(error).within(format!("record {record} of {count}")).into(),
    }
}
