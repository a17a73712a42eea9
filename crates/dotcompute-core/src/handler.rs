//! Kernels as handlers: one call per message, no waiting inside.

use std::fmt;
use std::sync::{Arc, Weak};

use crate::context::Context;
use crate::error::{BoxError, LookupError};
use crate::id::MessageId;
use crate::kernel::Address;
use crate::message::{Envelope, Message};
use crate::runtime::{Runtime, Shared};

/// A kernel whose code runs once per message and never waits: `self` is its state, made anew at
/// each (re)start.
///
/// ```
/// use dotcompute_core::{BoxError, Handler, HandlerContext, Message};
///
/// struct Add(i64);
/// impl Message for Add {
///     const TYPE_NAME: &'static str = "Add";
/// }
/// struct Sum(i64);
/// impl Message for Sum {
///     const TYPE_NAME: &'static str = "Sum";
/// }
///
/// #[derive(Default)]
/// struct Adder(i64);
///
/// impl Handler for Adder {
///     type In = Add;
///     type Out = Sum;
///
///     fn handle(
///         &mut self,
///         message: &Add,
///         _context: &mut HandlerContext<Sum>,
///     ) -> Result<Option<Sum>, BoxError> {
///         self.0 = self.0.checked_add(message.0).ok_or("the sum is too large")?;
///         Ok(Some(Sum(self.0)))
///     }
/// }
///
/// let runtime = dotcompute_core::Runtime::builder().build();
/// let adder = runtime.kernel("adder").launch_handler(Adder::default).unwrap();
/// adder.activate().unwrap();
/// adder.ask_blocking(Add(2), None).unwrap();
/// let sum = adder.ask_blocking(Add(40), None).unwrap();
/// assert_eq!(sum.message.0, 42);
/// ```
pub trait Handler: Send + 'static {
    /// What it takes.
    type In: Message;
    /// What it replies with.
    type Out: Message;

    /// Handles one message: `Some` reply, or `None`.
    ///
    /// # Errors
    ///
    /// An error fails the kernel (see [`RestartPolicy`](crate::RestartPolicy)); what it emitted for
    /// this message is discarded.
    fn handle(
        &mut self,
        message: &Self::In,
        context: &mut HandlerContext<Self::Out>,
    ) -> Result<Option<Self::Out>, BoxError>;
}

/// What a handler can do besides returning one reply.
pub struct HandlerContext<R> {
    message: Named,
    delivery_count: u8,
    emitted: Vec<Made<R>>,
    /// The runtime that the kernel lives in, where the handler runs in its process.
    runtime: Weak<Shared>,
}

/// What a handler made of the message at hand.
#[derive(Debug)]
pub enum Made<R> {
    /// A reply to it, which gets its envelope where it is sent from.
    Reply(R),
    /// What says itself what it belongs to.
    Sent(Envelope<R>),
}

impl<R: Message> Made<R> {
    fn into_envelope(self, message: MessageId) -> Envelope<R> {
        match self {
            Self::Reply(reply) => Envelope::new(reply).with_correlation(message),
            Self::Sent(envelope) => envelope,
        }
    }
}

/// The name of a message that a kernel elsewhere has at hand, by the number of its delivery.
pub type FindId = Arc<dyn Fn(u64) -> MessageId + Send + Sync>;

/// The name of the message at hand.
enum Named {
    Id(MessageId),
    /// Few handlers ask for it, and elsewhere it has to be fetched.
    Delivery(u64, FindId),
}

impl<R: Message> HandlerContext<R> {
    /// Replies once more to the message at hand; what is emitted goes out in order, before the
    /// reply that the handler returns, and only if it does not fail. The first reply to an asked
    /// message answers the ask.
    pub fn emit(&mut self, reply: R) {
        self.emitted.push(Made::Reply(reply));
    }

    /// Sends a reply that says itself what it belongs to, as [`Context::send`] does.
    pub fn send(&mut self, reply: impl Into<Envelope<R>>) {
        self.emitted.push(Made::Sent(reply.into()));
    }

    /// The address of another kernel that takes `N`, by its name. A handler must not wait:
    /// [`Address::try_send`] says whether there was room. What is sent there stays sent if the handler
    /// fails afterwards.
    ///
    /// # Errors
    ///
    /// If there is no such kernel, or it takes another type; also where the handler runs outside the
    /// process of its runtime.
    pub fn address_of<N: Message>(&self, kernel: &str) -> Result<Address<N>, LookupError> {
        match self.runtime.upgrade() {
            Some(runtime) => Runtime::from_shared(runtime).address(kernel),
            None => Err(LookupError::NotFound { kernel: kernel.into() }),
        }
    }

    /// The id of the message at hand.
    pub fn message_id(&self) -> MessageId {
        match &self.message {
            Named::Id(id) => *id,
            Named::Delivery(number, find) => find(*number),
        }
    }

    /// Which delivery of the message this is: more than 1 after a fault.
    pub fn delivery_count(&self) -> u8 {
        self.delivery_count
    }
}

impl<R> fmt::Debug for HandlerContext<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerContext")
            .field("emitted", &self.emitted.len())
            .finish_non_exhaustive()
    }
}

/// A handler called message by message, for executors whose kernels run elsewhere: there they have
/// loops of their own.
pub struct HandlerCalls<H: Handler> {
    handler: H,
    context: HandlerContext<H::Out>,
}

impl<H: Handler> HandlerCalls<H> {
    /// Calls of `handler`, which is its state; `find` is asked for a message's name if the handler asks.
    pub fn new(handler: H, find: FindId) -> Self {
        Self {
            handler,
            context: HandlerContext {
                message: Named::Delivery(0, find),
                delivery_count: 1,
                emitted: Vec::new(),
                runtime: Weak::new(),
            },
        }
    }

    /// Handles one message, delivered for the `delivery_count`th time, in the delivery of this number;
    /// appends what it made, in order, to `made`.
    ///
    /// # Errors
    ///
    /// The handler's; it made nothing then.
    pub fn call(
        &mut self,
        message: &H::In,
        delivery: u64,
        delivery_count: u8,
        made: &mut Vec<Made<H::Out>>,
    ) -> Result<(), BoxError> {
        let context = &mut self.context;
        if let Named::Delivery(number, _) = &mut context.message {
            *number = delivery;
        }
        context.delivery_count = delivery_count;
        let outcome = self.handler.handle(message, context);
        if outcome.is_err() {
            context.emitted.clear();
        }
        made.append(&mut context.emitted);
        made.extend(outcome?.map(Made::Reply));
        Ok(())
    }
}

impl<H: Handler> fmt::Debug for HandlerCalls<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerCalls").finish_non_exhaustive()
    }
}

/// The loop around a handler.
pub(crate) async fn run<H: Handler>(
    mut handler: H,
    mut context: Context<H::In, H::Out>,
) -> Result<(), BoxError> {
    let mut out = HandlerContext {
        message: Named::Id(MessageId::from_u128(0)),
        delivery_count: 1,
        emitted: Vec::new(),
        runtime: context.weak_runtime(),
    };
    loop {
        if context.next().await.is_err() {
            return Ok(());
        }
        let Some(envelope) = context.envelope() else { continue };
        let id = envelope.id;
        out.message = Named::Id(id);
        out.delivery_count = envelope.delivery_count();
        let reply = handler.handle(&envelope.message, &mut out)?;
        if out.emitted.is_empty() {
            let Some(reply) = reply else { continue };
            context.reply(reply).await?;
            continue;
        }
        let mut stopped = false;
        for made in out.emitted.drain(..).chain(reply.map(Made::Reply)) {
            let reply = made.into_envelope(id);
            match stopped {
                false => stopped = context.send(reply).await.is_err(),
                true => context.bury(reply),
            }
        }
        if stopped {
            return Ok(());
        }
    }
}
