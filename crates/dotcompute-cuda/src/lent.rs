//! Device memory that messages name: which a grid may reach, and until when it is kept.

use std::any::Any;
use std::fmt;
use std::mem;
use std::ops::Deref;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use dotcompute_core::compiled::{RecordMessage, Records};
use dotcompute_core::record::RecordLayout;
use dotcompute_core::{BoxError, KernelRef, Message, Record, SendError};
use dotcompute_mailbox::sync::lock;

use crate::compute::{ComputeError, Context, DeviceBuffer, Stream};
use crate::kernels::{Cuda, CudaError, wait_for};
use crate::resident::Isolation;

/// Memory of the device that the kernels of a [`Cuda`] may reach by its address: see [`Cuda::lend`]. It is
/// kept until the last clone, and the last message that holds one, is gone.
#[derive(Clone)]
pub struct Lent(Arc<Kept>);

struct Kept {
    address: u64,
    bytes: usize,
    _owner: Box<dyn Any + Send + Sync>,
}

impl Kept {
    fn end(&self) -> u64 {
        self.address + self.bytes as u64
    }
}

/// All that is lent in this process.
static LENT: Mutex<Vec<Weak<Kept>>> = Mutex::new(Vec::new());

/// Keeps all that is lent for good: a handler that does not come back may use it as long as the process
/// lives.
pub(crate) fn keep_all() {
    lock(&LENT).drain(..).filter_map(|kept| kept.upgrade()).for_each(mem::forget);
}

impl Lent {
    fn new(address: u64, bytes: usize, owner: Box<dyn Any + Send + Sync>) -> Self {
        let kept = Arc::new(Kept { address, bytes, _owner: owner });
        let mut lent = lock(&LENT);
        lent.retain(|kept| kept.strong_count() > 0);
        lent.push(Arc::downgrade(&kept));
        Self(kept)
    }

    /// What is lent at this address, or around it.
    pub fn at(address: u64) -> Option<Self> {
        // Each of them may be the last clone by now, whose owner is not dropped under the lock.
        let mut living: Vec<_> = lock(&LENT).iter().filter_map(Weak::upgrade).collect();
        let has = |kept: &Arc<Kept>| (kept.address..kept.end()).contains(&address);
        living.iter().position(has).map(|found| Self(living.swap_remove(found)))
    }

    /// Where it lies on the device: what a record says to a handler, as a `u64`.
    pub fn address(&self) -> u64 {
        self.0.address
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent")
            .field("address", &format_args!("{:#x}", self.0.address))
            .field("bytes", &self.0.bytes)
            .finish_non_exhaustive()
    }
}

/// A record with the memory that it names, which is kept until the message has been processed, or is a dead
/// letter that is gone too: what is delivered again finds its memory.
///
/// It goes to kernels as the record alone. A record that a kernel passes on to another one on the device
/// holds nothing: what it names is to be kept by who knows when it is done with.
#[derive(Clone, Debug)]
pub struct Holding<M> {
    record: M,
    held: Vec<Lent>,
}

impl<M: Record> Holding<M> {
    /// The record `record`, which names this memory.
    pub fn new(record: M, held: impl IntoIterator<Item = Lent>) -> Self {
        Self { record, held: held.into_iter().collect() }
    }

    /// The memory.
    pub fn held(&self) -> &[Lent] {
        &self.held
    }
}

impl<M> Deref for Holding<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.record
    }
}

impl<M: Record> Message for Holding<M> {
    const TYPE_NAME: &'static str = M::TYPE_NAME;

    fn default_priority(&self) -> u8 {
        self.record.default_priority()
    }

    fn payload_bytes(&self) -> usize {
        self.record.payload_bytes() + self.held.iter().map(Lent::bytes).sum::<usize>()
    }
}

impl<M: Record> RecordMessage for Holding<M> {
    const LAYOUT: Option<&'static RecordLayout> = <M as RecordMessage>::LAYOUT;

    fn records<'a>(
        &'a self,
        wanted: &'static RecordLayout,
        scratch: &'a mut Vec<u64>,
    ) -> Result<Records<'a>, BoxError> {
        self.record.records(wanted, scratch)
    }

    fn from_record(layout: &'static RecordLayout, bytes: &[u8]) -> Self {
        Self { record: M::from_record(layout, bytes), held: Vec::new() }
    }
}

/// Why a message was not sent behind a stream's work.
#[derive(Debug, thiserror::Error)]
pub enum StreamSendError<M> {
    /// The work before it failed: the message comes back.
    #[error("what the stream was given before failed: {error}")]
    Stream {
        /// What it failed with.
        #[source]
        error: ComputeError,
        /// The message.
        message: M,
    },
    /// The kernel did not take it.
    #[error(transparent)]
    Send(#[from] SendError<M>),
}

impl Cuda {
    /// Lets the kernels of this device reach a buffer by its address, until the last [`Lent`] of it is
    /// dropped; for messages that hold it ([`Holding`]).
    ///
    /// What a grid may reach is promised for memory that was taken before its launch alone: all grids begin a
    /// new lease behind what the buffer's stream was given, which is a pause of theirs. So lend a buffer
    /// once, and use it often. A handler calls `rk_acquire` before it reads what others wrote there since its
    /// last message. Blocks the calling thread, for `within` at most.
    ///
    /// If a handler of this process never comes back, what is lent then is kept for good.
    ///
    /// # Errors
    ///
    /// [`CudaError::NotReached`] if the memory is another device's or none, or the kernels' contexts are
    /// those of other processes; what the driver said; [`CudaError::Timeout`].
    pub fn lend(&self, buffer: DeviceBuffer, within: Duration) -> Result<Lent, CudaError> {
        // It is there once its stream came to it.
        buffer.stream().synchronize()?;
        let (address, bytes) = (buffer.address(), buffer.bytes());
        // SAFETY: the buffer's own bytes, which it keeps.
        unsafe { self.lend_foreign(address, bytes, buffer, within) }
    }

    /// The same for memory that another library took, on the same device: `owner` keeps it.
    ///
    /// # Errors
    ///
    /// As for `lend`.
    ///
    /// # Safety
    ///
    /// - The `bytes` bytes at `address` are memory of this device, and of this process's primary context,
    ///   until `owner` is dropped; whatever makes it memory has been done.
    pub unsafe fn lend_foreign(
        &self,
        address: u64,
        bytes: usize,
        owner: impl Any + Send + Sync,
        within: Duration,
    ) -> Result<Lent, CudaError> {
        if !matches!(self.isolation(), Isolation::Thread) {
            let why = "the kernels' context is another process's (Isolation::Process)";
            return Err(CudaError::NotReached(why.to_owned()));
        }
        let ours = self.device().ordinal;
        let why = match Context::of(self.driver(), ours)?.device_at(address)? {
            Some(theirs) if theirs == ours => None,
            Some(theirs) => Some(format!(
                "it lies on device {theirs}, and the kernels run on device {ours}: copy it there"
            )),
            None => Some(format!("no device has memory at {address:#x}: was it freed?")),
        };
        if let Some(why) = why {
            return Err(CudaError::NotReached(why));
        }
        wait_for(self.begin_new_leases(), within)??;
        Ok(Lent::new(address, bytes, Box::new(owner)))
    }

    /// Sends a message once all is done that `stream` was given before this call, so that the handler
    /// finds what that wrote (where it calls `rk_acquire` first).
    ///
    /// # Errors
    ///
    /// [`StreamSendError::Stream`] if that failed; [`StreamSendError::Send`] as for
    /// [`KernelRef::send`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, the message is sent or it is not.
    pub async fn send_on_stream<M: Message, R: Message>(
        &self,
        kernel: &KernelRef<M, R>,
        message: M,
        stream: &Stream,
    ) -> Result<(), StreamSendError<M>> {
        if let Err(error) = stream.done().await {
            return Err(StreamSendError::Stream { error, message });
        }
        Ok(kernel.send(message).await?)
    }
}
