//! Writes MessagePack.

use rmp::Marker;

use super::error::EncodeError;
use super::{MAX_DEPTH, WireField, WireMessage, keys};
use crate::id::MessageId;

/// Writes values in the wire format.
///
/// What cannot be written (see [`EncodeError`]) is kept and reported at the end of the message, so
/// that the methods need no result. One belongs to one thread for one message.
///
/// ```
/// use dotcompute_core::wire::{self, DecodeError, Decoder, Encoder, WireField};
///
/// /// A duration, as an array of seconds and nanoseconds.
/// #[derive(Debug, PartialEq)]
/// struct Took(std::time::Duration);
///
/// impl WireField for Took {
///     fn encode(&self, encoder: &mut Encoder<'_>) {
///         encoder.array(2, |encoder| {
///             encoder.unsigned(self.0.as_secs());
///             encoder.unsigned(self.0.subsec_nanos().into());
///         });
///     }
///
///     fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
///         let offset = decoder.offset();
///         decoder.array(|decoder, length| {
///             if length != 2 {
///                 return Err(decoder.invalid(offset, "seconds and nanoseconds"));
///             }
///             let seconds = decoder.integer("seconds")?;
///             let at = decoder.offset();
///             match decoder.integer("nanoseconds")? {
///                 nanos @ ..1_000_000_000 => Ok(Took(std::time::Duration::new(seconds, nanos))),
///                 _ => Err(decoder.invalid(at, "less than a second in nanoseconds")),
///             }
///         })
///     }
/// }
///
/// let took = Took(std::time::Duration::from_millis(1500));
/// let bytes = wire::encode_value(&took)?;
/// assert_eq!(bytes, b"\x92\x01\xce\x1d\xcd\x65\x00");
/// assert_eq!(wire::decode_value::<Took>(&bytes)?, took);
///
/// let error = wire::decode_value::<Took>(b"\x91\x01").unwrap_err();
/// assert_eq!(error.to_string(), "byte 0: expected seconds and nanoseconds");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Encoder<'out> {
    out: &'out mut Vec<u8>,
    start: usize,
    limit_bytes: usize,
    depth: usize,
    error: Option<EncodeError>,
}

impl<'out> Encoder<'out> {
    /// Begins a message of at most `limit_bytes`, appended to `out`. For types that are known only
    /// at run time; [`wire::encode`](super::encode) is for all others.
    pub fn new(out: &'out mut Vec<u8>, limit_bytes: usize) -> Self {
        let start = out.len();
        Self { out, start, limit_bytes, depth: 0, error: None }
    }

    /// Ends the message; if it failed, takes back what was written.
    ///
    /// # Errors
    ///
    /// The message is too large or nests too deep.
    pub fn finish(self) -> Result<(), EncodeError> {
        let too_large = self.out.len() - self.start > self.limit_bytes;
        let error = self.error.or_else(|| {
            too_large.then_some(EncodeError::TooLarge { limit_bytes: self.limit_bytes })
        });
        match error {
            None => Ok(()),
            Some(error) => {
                self.out.truncate(self.start);
                Err(error)
            }
        }
    }

    /// Writes one entry of the message's map: its key and its value.
    #[inline]
    pub fn field<T: WireField>(&mut self, key: &'static str, value: &T) {
        self.str(key);
        value.encode(self);
    }

    /// Writes "no value".
    #[inline]
    pub fn nil(&mut self) {
        self.put([Marker::Null.to_u8()]);
    }

    /// Writes a boolean.
    #[inline]
    pub fn bool(&mut self, value: bool) {
        self.put([if value { Marker::True } else { Marker::False }.to_u8()]);
    }

    /// Writes an integer in the shortest form that holds it.
    #[inline]
    pub fn unsigned(&mut self, value: u64) {
        if value < 128 {
            self.put([value as u8]);
        } else if let Ok(value) = u8::try_from(value) {
            self.put([Marker::U8.to_u8(), value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.marked(Marker::U16, value.to_be_bytes());
        } else if let Ok(value) = u32::try_from(value) {
            self.marked(Marker::U32, value.to_be_bytes());
        } else {
            self.marked(Marker::U64, value.to_be_bytes());
        }
    }

    /// Writes an integer in the shortest form that holds it.
    #[inline]
    pub fn signed(&mut self, value: i64) {
        if let Ok(value) = u64::try_from(value) {
            self.unsigned(value);
        } else if value >= -32 {
            self.put([value as u8]);
        } else if let Ok(value) = i8::try_from(value) {
            self.marked(Marker::I8, value.to_be_bytes());
        } else if let Ok(value) = i16::try_from(value) {
            self.marked(Marker::I16, value.to_be_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.marked(Marker::I32, value.to_be_bytes());
        } else {
            self.marked(Marker::I64, value.to_be_bytes());
        }
    }

    /// Writes a float of single precision.
    #[inline]
    pub fn f32(&mut self, value: f32) {
        self.marked(Marker::F32, value.to_be_bytes());
    }

    /// Writes a float of double precision.
    #[inline]
    pub fn f64(&mut self, value: f64) {
        self.marked(Marker::F64, value.to_be_bytes());
    }

    /// Writes a string.
    #[inline]
    pub fn str(&mut self, value: &str) {
        if value.len() < 32 {
            self.put([Marker::FixStr(value.len() as u8).to_u8()]);
        } else if !self.length(value.len(), Some(Marker::Str8), Marker::Str16, Marker::Str32) {
            return;
        }
        self.out.extend_from_slice(value.as_bytes());
    }

    /// Writes bytes.
    #[inline]
    pub fn bytes(&mut self, value: &[u8]) {
        if self.length(value.len(), Some(Marker::Bin8), Marker::Bin16, Marker::Bin32) {
            self.out.extend_from_slice(value);
        }
    }

    /// Writes bytes with an application's tag.
    pub fn extension(&mut self, tag: i8, value: &[u8]) {
        if self.length(value.len(), Some(Marker::Ext8), Marker::Ext16, Marker::Ext32) {
            self.put(tag.to_be_bytes());
            self.out.extend_from_slice(value);
        }
    }

    /// Writes an array: `write` must write exactly `length` values.
    #[inline]
    pub fn array(&mut self, length: usize, write: impl FnOnce(&mut Self)) {
        if length < 16 {
            self.put([Marker::FixArray(length as u8).to_u8()]);
        } else if !self.length(length, None, Marker::Array16, Marker::Array32) {
            return;
        }
        self.inside(write);
    }

    /// Writes a map: `write` must write exactly `length` keys, each followed by its value.
    #[inline]
    pub fn map(&mut self, length: usize, write: impl FnOnce(&mut Self)) {
        if length < 16 {
            self.put([Marker::FixMap(length as u8).to_u8()]);
        } else if !self.length(length, None, Marker::Map16, Marker::Map32) {
            return;
        }
        self.inside(write);
    }

    /// Writes an id: a map with one entry, as the Python package does.
    #[inline]
    pub fn id(&mut self, value: MessageId) {
        self.out.extend_from_slice(keys::ID_PREFIX);
        self.put(value.to_bytes());
    }

    /// Writes a message as the field of another: a map of its fields, without an envelope.
    #[inline]
    pub fn nested<M: WireMessage>(&mut self, message: &M) {
        self.map(M::FIELDS.len(), |encoder| message.encode_fields(encoder));
    }

    #[inline]
    fn inside(&mut self, write: impl FnOnce(&mut Self)) {
        if self.depth == MAX_DEPTH {
            self.fail(EncodeError::TooDeep);
            return;
        }
        self.depth += 1;
        write(self);
        self.depth -= 1;
    }

    #[inline]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.out.extend_from_slice(&bytes);
    }

    #[inline]
    fn marked<const N: usize>(&mut self, marker: Marker, bytes: [u8; N]) {
        self.put([marker.to_u8()]);
        self.put(bytes);
    }

    /// Writes a length in the shortest of the forms; false if the value must be left out, because
    /// the message has failed.
    fn length(&mut self, length: usize, in8: Option<Marker>, in16: Marker, in32: Marker) -> bool {
        // Each element takes a byte or more, so what this refuses would not fit.
        if self.error.is_some() || length > self.limit_bytes {
            self.fail(EncodeError::TooLarge { limit_bytes: self.limit_bytes });
            return false;
        }
        if let (Some(marker), Ok(length)) = (in8, u8::try_from(length)) {
            self.marked(marker, length.to_be_bytes());
        } else if let Ok(length) = u16::try_from(length) {
            self.marked(in16, length.to_be_bytes());
        } else if let Ok(length) = u32::try_from(length) {
            self.marked(in32, length.to_be_bytes());
        } else {
            self.fail(EncodeError::TooLong { length });
            return false;
        }
        true
    }

    /// Keeps the first error.
    #[cold]
    fn fail(&mut self, error: EncodeError) {
        self.error.get_or_insert(error);
    }
}
