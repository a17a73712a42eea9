//! What may be held and shared where, checked when this is compiled.

use dotcompute::mailbox::ring::{Consumer, Producer};
use dotcompute::mailbox::{Inbox, Mailbox, Receive, Send as Sending};
use dotcompute::{
    Address, AskError, Context, DeadLetter, Envelope, Fault, KernelBuilder, KernelId, KernelRef,
    KernelTask, KernelTelemetry, Message, MessageId, Runtime, RuntimeBuilder, ScopedKernel,
    SendError, Sleep, Stopped, Termination,
};

struct Number;

impl Message for Number {
    const TYPE_NAME: &'static str = "Number";
}

fn shared<T: Send + Sync>() {}
fn moved<T: Send>() {}
fn copied<T: Clone>() {}
fn error<T: std::error::Error + Send + Sync + 'static>() {}
fn future<T: Future + Send>(_: impl FnOnce(&'static KernelRef<Number, Number>) -> T) {}

#[test]
fn handles_may_be_shared_between_threads_and_futures_sent() {
    shared::<Runtime>();
    shared::<RuntimeBuilder>();
    shared::<KernelBuilder<'static>>();
    shared::<KernelRef<Number, Number>>();
    shared::<ScopedKernel<Number, Number>>();
    shared::<Address<Number>>();
    shared::<Context<Number, Number>>();
    shared::<Envelope<Number>>();
    shared::<DeadLetter>();
    shared::<Fault>();
    shared::<KernelTelemetry>();
    shared::<Mailbox<Number>>();
    shared::<Inbox<Number>>();
    shared::<Sleep>();
    moved::<KernelTask>();
    moved::<Receive<'static, Number>>();
    moved::<Sending<'static, Number>>();
    moved::<Producer<Number>>();
    moved::<Consumer<Number>>();
    copied::<Runtime>();
    copied::<KernelRef<Number, Number>>();
    copied::<Address<Number>>();
    copied::<Envelope<u32>>();
    copied::<(KernelId, MessageId, Fault, KernelTelemetry, Termination)>();
    error::<SendError<Number>>();
    error::<AskError<Number>>();
    error::<Stopped>();
    error::<Fault>();
    future(|kernel| kernel.send(Number));
    future(|kernel| kernel.ask(Number));
    future(|kernel| kernel.receive());
    future(|kernel| kernel.terminate(dotcompute::Terminate::now()));
    future(|kernel| kernel.ended());
}
