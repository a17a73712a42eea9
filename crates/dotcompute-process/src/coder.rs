//! How messages of a type become bytes and come back.

use std::fmt;
use std::sync::Arc;

use dotcompute_core::compiled::{RecordBatch, RecordMessage};
use dotcompute_core::record::{Record, RecordLayout};
use dotcompute_core::{BoxError, Envelope, Message, WireMessage, wire};

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
    Arc<dyn Fn(&Envelope<T>, &mut Vec<u8>) -> Result<(), BoxError> + Send + Sync>;
type Count<T> = Arc<dyn Fn(&T) -> usize + Send + Sync>;
type Decode<T> = Arc<dyn Fn(&[u8]) -> Result<T, BoxError> + Send + Sync>;

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
    /// Records of this layout, as they are: batches and single ones.
    pub fn records(layout: &'static RecordLayout) -> Self {
        Self::new(
            move |envelope, out| write_records(layout, &envelope.message, out),
            move |bytes| read_records(layout, bytes),
        )
        .counted(RecordBatch::len)
    }
}

/// The bytes of records of this layout, after a word that says whether it is a single one.
pub fn write_records(
    layout: &'static RecordLayout,
    records: &impl RecordMessage,
    out: &mut Vec<u8>,
) -> Result<(), BoxError> {
    let mut scratch = Vec::new();
    let records = records.records(layout, &mut scratch)?;
    out.extend_from_slice(&u64::from(records.single).to_le_bytes());
    out.extend_from_slice(records.bytes);
    Ok(())
}

/// What [`write_records`] wrote.
pub fn read_records(layout: &'static RecordLayout, bytes: &[u8]) -> Result<RecordBatch, BoxError> {
    let read =
        bytes.split_first_chunk::<8>().and_then(|(single, records)| {
            match u64::from_le_bytes(*single) {
                0 => RecordBatch::copied(layout, records),
                _ => RecordBatch::single(layout, records),
            }
        });
    read.ok_or_else(|| {
        let (name, found) = (layout.name, bytes.len());
        format!("{found} bytes are no records of '{name}'").into()
    })
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
        Self { encode: Arc::new(encode), decode: Arc::new(decode), count: None }
    }

    /// The same, of messages that hold as many records as `count` says, for the telemetry.
    #[must_use]
    pub fn counted(mut self, count: impl Fn(&T) -> usize + Send + Sync + 'static) -> Self {
        self.count = Some(Arc::new(count));
        self
    }

    /// The message that `reader` has read, and what travelled beside it.
    pub(crate) fn read(&self, reader: &Reader) -> Result<(Envelope<T>, Prefix), BoxError> {
        let (prefix, bytes) = reader.message()?;
        let Prefix { id, correlation_id, priority, delivery_count, .. } = prefix;
        let mut envelope = Envelope::new((self.decode)(bytes)?)
            .with_id(id)
            .with_priority(priority)
            .with_delivery_count(delivery_count);
        envelope.correlation_id = correlation_id;
        Ok((envelope, prefix))
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
