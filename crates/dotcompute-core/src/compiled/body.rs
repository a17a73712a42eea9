//! The loop around a compiled handler: receives, runs the code, sends what it made.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;

use super::call::Outbox;
use super::state::StateHold;
use super::{Call, CompiledHandler, RecordBatch, RecordMessage, RecordReply};
use crate::context::Context;
use crate::error::{BoxError, Fault, KernelId};
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
    loop {
        if !context.advance() {
            let next = poll_fn(|cx| {
                let next = context.poll_receive(cx);
                if next.is_pending() {
                    state.rest();
                }
                next
            });
            if next.await.is_err() {
                return Ok(());
            }
        }
        state.work();
        let Some(envelope) = context.envelope() else { continue };
        let id = envelope.id;
        let (ran, at, count, single) = {
            let records = envelope.message.records(shape.input, &mut scratch)?;
            let (start, single) = (state.start(), records.single);
            let mut call = Call::new(records.bytes, single, start, state_bytes, &mut outbox);
            (handler.code.run(&mut call), call.record(), call.count(), single)
        };
        if outbox.has_log() {
            for (level, text) in outbox.take_log() {
                handler.code.log(context.id(), level, &text);
            }
        }
        ran.map_err(|error| at_record(error, at, count, single))?;
        context.count_records(count);
        if std::mem::needs_drop::<M>() {
            // Whoever gets the replies may use the memory of the records again.
            drop(context.take());
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
        let Some(layout) = shape.output else { continue };
        let replies = outbox.reply_count();
        let asked = context.in_hand().is_some_and(|(_, ask)| ask.is_some());
        // Whoever asks with a batch gets one, also an empty one.
        if !single && (replies > 0 || asked) {
            let batch = RecordBatch::owned(layout, outbox.take_replies(), replies);
            match R::many(batch) {
                Ok(reply) => {
                    let reply = Envelope::new(reply).with_correlation(id);
                    if !send(&mut context, &mut state, reply).await {
                        return Ok(());
                    }
                }
                Err(batch) => {
                    for record in batch.bytes().chunks_exact(layout.bytes) {
                        let reply = Envelope::new(R::one(layout, record)).with_correlation(id);
                        if !send(&mut context, &mut state, reply).await {
                            return Ok(());
                        }
                    }
                }
            }
            continue;
        }
        for index in 0..replies {
            let at = index * layout.bytes;
            let reply = R::one(layout, &outbox.replies()[at..at + layout.bytes]);
            let reply = Envelope::new(reply).with_correlation(id);
            if !send(&mut context, &mut state, reply).await {
                return Ok(());
            }
        }
    }
}

/// Sends a reply; `false`: the kernel has to stop instead.
#[inline]
async fn send<M: RecordMessage, R: RecordReply>(
    context: &mut Context<M, R>,
    state: &mut StateHold,
    reply: Envelope<R>,
) -> bool {
    let Err(reply) = context.try_send(reply) else { return true };
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
