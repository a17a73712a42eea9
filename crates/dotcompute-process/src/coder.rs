//! How messages of a type become bytes and come back.

use std::fmt;
use std::sync::Arc;

use dotcompute_core::record::Record;
use dotcompute_core::{BoxError, Envelope, Message, WireMessage, wire};

use crate::frame::{Prefix, Reader};

/// How messages of type `T` travel between processes: [as they are](Self::record), or [in the wire
/// format](Self::wire).
pub struct Coder<T> {
    pub(crate) encode: Encode<T>,
    decode: Decode<T>,
}

pub(crate) type Encode<T> =
    Arc<dyn Fn(&Envelope<T>, &mut Vec<u8>) -> Result<(), BoxError> + Send + Sync>;
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
        Self { encode: Arc::new(encode), decode: Arc::new(decode) }
    }

    /// The message that `reader` has read.
    pub(crate) fn read(&self, reader: &Reader) -> Result<Envelope<T>, BoxError> {
        let (Prefix { id, correlation_id, priority, delivery_count }, bytes) = reader.message()?;
        let mut envelope = Envelope::new((self.decode)(bytes)?)
            .with_id(id)
            .with_priority(priority)
            .with_delivery_count(delivery_count);
        envelope.correlation_id = correlation_id;
        Ok(envelope)
    }
}

impl<T> Clone for Coder<T> {
    fn clone(&self) -> Self {
        Self { encode: Arc::clone(&self.encode), decode: Arc::clone(&self.decode) }
    }
}

impl<T: Message> fmt::Debug for Coder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Coder<{}>", T::TYPE_NAME)
    }
}
