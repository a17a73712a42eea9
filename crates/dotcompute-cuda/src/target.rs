//! The kernels that a handler sends to: any of its runtime, by name.
//!
//! What a handler sends goes to the host, whose proxy sends it on, as the body of a compiled handler
//! does elsewhere. Where the target sits on the same grid, the proxy has an edge made to it and the
//! records take that.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;

use dotcompute_core::compiled::RecordReply;
use dotcompute_core::record::RecordLayout;
use dotcompute_core::{
    Address, BoxError, Envelope, KernelId, KernelKey, LookupError, NextStage, Runtime,
};

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A target, as it was declared.
pub(crate) trait Target: fmt::Debug + Send + Sync {
    fn kernel(&self) -> &KernelId;

    /// What is sent there.
    fn layout(&self) -> &'static RecordLayout;

    /// Begins to send there.
    fn open(&self) -> Box<dyn OpenTarget>;
}

/// A target, for one run of the kernel that sends to it.
pub(crate) trait OpenTarget: Send {
    fn kernel(&self) -> &KernelId;

    /// What is sent there.
    fn layout(&self) -> &'static RecordLayout;

    /// Looks for the kernel if it has not been found yet: which it is, if it is there. Fails where
    /// it takes another type.
    fn find(&mut self, runtime: Option<Runtime>) -> Result<Option<KernelKey>, BoxError>;

    /// Whether those who send to it wait for room.
    fn waits_for_room(&self) -> bool;

    /// Whether it takes messages, and has none in its mailbox or in hand.
    fn is_quiet(&self) -> bool;

    /// Sends a record there: what is left to wait for, if it is not there yet.
    fn send(
        &mut self,
        runtime: Option<Runtime>,
        record: &[u8],
    ) -> Result<Option<Boxed<Result<(), BoxError>>>, BoxError>;

    /// A record that was on its way there when it ended.
    fn bury(&self, record: &[u8]);
}

/// Records of `layout` as messages of type `S`, to the kernel of this name.
pub(crate) struct Named<S> {
    pub(crate) kernel: KernelId,
    pub(crate) layout: &'static RecordLayout,
    pub(crate) message: PhantomData<fn() -> S>,
}

impl<S> fmt::Debug for Named<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, layout, .. } = self;
        f.debug_struct("Target").field("kernel", kernel).field("layout", layout).finish()
    }
}

impl<S: RecordReply> Target for Named<S> {
    fn kernel(&self) -> &KernelId {
        &self.kernel
    }

    fn layout(&self) -> &'static RecordLayout {
        self.layout
    }

    fn open(&self) -> Box<dyn OpenTarget> {
        let (kernel, layout) = (self.kernel.clone(), self.layout);
        Box::new(Open::<S> { kernel, layout, found: None })
    }
}

struct Open<S> {
    kernel: KernelId,
    layout: &'static RecordLayout,
    /// Looked up when it is first there, so that kernels can be launched in any order.
    found: Option<(Address<S>, NextStage<S>)>,
}

impl<S: RecordReply> Open<S> {
    fn look_up(&mut self, runtime: Option<Runtime>) -> Result<&Address<S>, BoxError> {
        let (address, _) = match &mut self.found {
            Some(found) => found,
            none => {
                let runtime = runtime.ok_or("the runtime is gone")?;
                let address = runtime.address::<S>(self.kernel.as_str())?;
                let stage = address.stage();
                none.insert((address, stage))
            }
        };
        Ok(address)
    }
}

impl<S: RecordReply> OpenTarget for Open<S> {
    fn kernel(&self) -> &KernelId {
        &self.kernel
    }

    fn layout(&self) -> &'static RecordLayout {
        self.layout
    }

    fn find(&mut self, runtime: Option<Runtime>) -> Result<Option<KernelKey>, BoxError> {
        if self.found.is_none() && runtime.is_none() {
            return Ok(None);
        }
        match self.look_up(runtime) {
            Ok(_) => Ok(self.found.as_ref().map(|(_, stage)| stage.key())),
            Err(error) => match error.downcast_ref::<LookupError>() {
                Some(LookupError::NotFound { .. }) => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn waits_for_room(&self) -> bool {
        self.found.as_ref().is_some_and(|(_, stage)| stage.waits_for_room())
    }

    fn is_quiet(&self) -> bool {
        self.found.as_ref().is_some_and(|(_, stage)| stage.is_open() && stage.is_quiet())
    }

    fn send(
        &mut self,
        runtime: Option<Runtime>,
        record: &[u8],
    ) -> Result<Option<Boxed<Result<(), BoxError>>>, BoxError> {
        let message = S::one(self.layout, record);
        let address = self.look_up(runtime)?;
        let Some(message) = address.offer(message)? else { return Ok(None) };
        let address = address.clone();
        Ok(Some(Box::pin(async move { Ok(address.send(message).await?) })))
    }

    fn bury(&self, record: &[u8]) {
        match &self.found {
            Some((_, stage)) => stage.bury(Envelope::new(S::one(self.layout, record))),
            None => unreachable!("there was an edge to it"),
        }
    }
}
