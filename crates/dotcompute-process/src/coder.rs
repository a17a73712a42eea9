//! How messages of a type become bytes and come back.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use dotcompute_core::compiled::{RecordBatch, RecordMessage};
use dotcompute_core::record::{Record, RecordLayout};
use dotcompute_core::{BoxError, Envelope, Message, WireMessage, wire};

use crate::arena::{ARRAY_MIN, Arena, Block, Lease};
use crate::frame::{Prefix, Reader};

/// How messages of type `T` travel between processes: [as they are](Self::record), [many at once](Coder::records), or [in the wire
/// format](Self::wire).
pub struct Coder<T> {
    pub(crate) encode: Encode<T>,
    decode: Decode<T>,
    /// How many records a message holds, where that is not 1.
    pub(crate) count: Option<Count<T>>,
}

pub(crate) type Encode<T> =
    Arc<dyn Fn(&Envelope<T>, &mut Outgoing<'_>) -> Result<(), BoxError> + Send + Sync>;
type Count<T> = Arc<dyn Fn(&T) -> usize + Send + Sync>;
type Decode<T> = Arc<dyn Fn(Incoming<'_>) -> Result<T, BoxError> + Send + Sync>;

/// A message that is being written.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Its bytes so far, to be appended to.
    pub bytes: &'a mut Vec<u8>,
    pub(crate) arena: &'a mut Arena,
    pub(crate) blocks: &'a mut Vec<Block>,
}

impl Outgoing<'_> {
    /// Copies an array into memory that the other process shares, where it is read in place; its number
    /// among those of the message. `None`: it is shorter than 32 KiB, or there is no room, and it has
    /// to go with the bytes.
    pub fn array(&mut self, array: &[u8]) -> Option<usize> {
        if array.len() < ARRAY_MIN || self.blocks.len() == u8::MAX.into() {
            return None;
        }
        self.blocks.push(self.arena.lend(array)?);
        Some(self.blocks.len() - 1)
    }
}

/// A message as it came.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Its arrays, in order.
    pub arrays: Vec<Lease>,
}

impl<T: Record> Coder<T> {
    /// The bytes of a record, without encoding.
    pub fn record() -> Self {
        Self::new(
            |envelope, out| {
                out.extend_from_slice(envelope.message.bytes());
                Ok(())
            },
            |bytes| {
                T::from_bytes(bytes).ok_or_else(|| {
                    let (name, expected, found) = (T::TYPE_NAME, size_of::<T>(), bytes.len());
                    format!("a {name} has {expected} bytes, not {found}").into()
                })
            },
        )
    }
}

impl Coder<RecordBatch> {
    /// Records of this layout, as they are: batches and single ones. Batches of 32 KiB and more are
    /// copied once, into shared memory, and read there.
    pub fn records(layout: &'static RecordLayout) -> Self {
        Self::with_arrays(
            move |envelope, out| write_records(layout, &envelope.message, out),
            move |incoming| read_records(layout, incoming),
        )
        .counted(RecordBatch::len)
    }
}

/// The bytes of records of this layout, after a word that says whether it is a single one; or beside
/// it.
pub fn write_records(
    layout: &'static RecordLayout,
    records: &impl RecordMessage,
    out: &mut Outgoing<'_>,
) -> Result<(), BoxError> {
    let mut scratch = Vec::new();
    let records = records.records(layout, &mut scratch)?;
    out.bytes.extend_from_slice(&u64::from(records.single).to_le_bytes());
    if out.array(records.bytes).is_none() {
        out.bytes.extend_from_slice(records.bytes);
    }
    Ok(())
}

/// What [`write_records`] wrote. Of a long batch the records are those in shared memory, which it holds.
pub fn read_records(
    layout: &'static RecordLayout,
    incoming: Incoming<'_>,
) -> Result<RecordBatch, BoxError> {
    let Incoming { bytes, mut arrays } = incoming;
    let wrong = |found: usize| format!("{found} bytes are no records of '{}'", layout.name);
    let (single, records) = bytes.split_first_chunk::<8>().ok_or_else(|| wrong(bytes.len()))?;
    let single = u64::from_le_bytes(*single) != 0;
    let Some(lease) = arrays.pop() else {
        let read = match single {
            false => RecordBatch::copied(layout, records),
            true => RecordBatch::single(layout, records),
        };
        return Ok(read.ok_or_else(|| wrong(records.len()))?);
    };
    if single {
        return Ok(RecordBatch::single(layout, &lease).ok_or_else(|| wrong(lease.len()))?);
    }
    let count = lease.len() / layout.bytes;
    if count * layout.bytes != lease.len()
        || !lease.as_ptr().addr().is_multiple_of(layout.align_bytes)
    {
        return Err(wrong(lease.len()).into());
    }
    let (start, keep): (_, Box<dyn Any + Send + Sync>) = (lease.as_ptr(), Box::new(lease));
    // SAFETY: so many records lie there, aligned, as was just checked. The lease keeps them, and nobody
    // writes to them meanwhile: its sender by the protocol, its holder since it is in the box.
    Ok(unsafe { RecordBatch::from_foreign(layout, start, count, keep) })
}

impl<T: WireMessage> Coder<T> {
    /// MessagePack: see [`wire`].
    pub fn wire() -> Self {
        Self::new(
            |envelope, out| Ok(wire::encode_into(envelope, out)?),
            |bytes| Ok(wire::decode::<T>(bytes)?.message),
        )
    }
}

impl<T: Message> Coder<T> {
    /// Another way: `encode` appends the bytes of a message, `decode` reads them.
    ///
    /// Either may be called by any thread of its process.
    pub fn new(
        encode: impl Fn(&Envelope<T>, &mut Vec<u8>) -> Result<(), BoxError> + Send + Sync + 'static,
        decode: impl Fn(&[u8]) -> Result<T, BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self::with_arrays(
            move |envelope, out| encode(envelope, out.bytes),
            move |incoming| decode(incoming.bytes),
        )
    }

    /// [`new`](Self::new) for messages with arrays, which go beside them: `encode` hands each to
    /// [`Outgoing::array`], and `decode` finds them in their order.
    pub fn with_arrays(
        encode: impl Fn(&Envelope<T>, &mut Outgoing<'_>) -> Result<(), BoxError> + Send + Sync + 'static,
        decode: impl Fn(Incoming<'_>) -> Result<T, BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self { encode: Arc::new(encode), decode: Arc::new(decode), count: None }
    }

    /// The same, of messages that hold as many records as `count` says, for the telemetry.
    #[must_use]
    pub fn counted(mut self, count: impl Fn(&T) -> usize + Send + Sync + 'static) -> Self {
        self.count = Some(Arc::new(count));
        self
    }

    /// The message that `reader` has read, and what travelled beside it, if anything did.
    pub(crate) fn read(&self, reader: &mut Reader) -> Result<(T, Option<Prefix>), BoxError> {
        let (prefix, bytes, arrays) = reader.message()?;
        Ok(((self.decode)(Incoming { bytes, arrays })?, prefix))
    }
}

impl<T> Clone for Coder<T> {
    fn clone(&self) -> Self {
        let (encode, decode) = (Arc::clone(&self.encode), Arc::clone(&self.decode));
        Self { encode, decode, count: self.count.clone() }
    }
}

impl<T: Message> fmt::Debug for Coder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Coder<{}>", T::TYPE_NAME)
    }
}
