//! The wire format: messages as bytes, for other processes and for Python.
//!
//! A message is one MessagePack map: its fields by name, and beside them the envelope. `nil` stands
//! for no correlation id.
//!
//! ```text
//! { "celsius": 21.5, "message_id": {"__uuid_bin__": 16 bytes}, "priority": 128,
//!   "correlation_id": nil, "__type__": "Reading" }
//! ```
//!
//! ```
//! use dotcompute_core::{Envelope, Message, wire};
//!
//! #[derive(Debug, PartialEq, Message)]
//! #[message(crate = "dotcompute_core")]
//! struct Reading {
//!     sensor: String,
//!     celsius: f64,
//!     humidity: Option<f32>,
//! }
//!
//! let sent = Envelope::new(Reading { sensor: "roof".into(), celsius: 21.5, humidity: None });
//! let bytes = wire::encode(&sent)?;
//! assert_eq!(wire::peek_type(&bytes)?, Some("Reading"));
//!
//! let received = wire::decode::<Reading>(&bytes)?;
//! assert_eq!(received.id, sent.id);
//! assert_eq!(received.message, sent.message);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is written for which type
//!
//! | Rust | MessagePack | also read |
//! |---|---|---|
//! | `bool` | boolean | |
//! | `u8`..`u64`, `i8`..`i64`, `usize`, `isize` | integer in its shortest form | any form, if the type holds the number |
//! | `f64`, `f32` | float of that size | the other size, integers |
//! | `String` | string | |
//! | `Vec<u8>`, `[u8; N]` | bytes (Python's `bytes`) | an array of integers |
//! | `Vec<T>`, `[T; N]`, tuples | array | |
//! | `HashMap<String, T>`, `BTreeMap<String, T>` | map | |
//! | `Option<T>` | the value, or nil | a missing field as `None` |
//! | `Box<T>`, `Arc<T>` | the value | |
//! | [`MessageId`] | `{"__uuid_bin__": 16 bytes}` | `{"__uuid__": text}`, text, 16 bytes |
//! | [`Array`] | `{"__ndarray__": bytes, "dtype": .., "shape": ..}` | |
//! | a struct that derives `Message` | map of its fields, without an envelope | |
//! | [`Value`] | whatever it is | |
//!
//! # What a reader accepts
//!
//! Keys that the type does not know are dropped. A missing field is an error, unless it is an
//! `Option` or marked `#[message(default)]`. Of the envelope everything may be missing: then the
//! message gets a new id and the default priority of its type. A type name other than that of the
//! type asked for is an error.
//!
//! Bytes may come from anyone: reading them never panics, nests no deeper than [`MAX_DEPTH`], and
//! takes no more memory than [`Limits`] allow.

mod array;
mod decoder;
mod encoder;
mod error;
mod field;
mod value;

pub use array::{Array, ArrayError, Element};
pub use decoder::{Decoder, Fields, Kind};
pub use encoder::Encoder;
pub use error::{DecodeError, DecodeErrorKind, EncodeError};
pub use field::WireField;
pub use value::Value;

use crate::id::MessageId;
use crate::message::{Envelope, Message};
use decoder::Header;

/// How deep the values of a message may nest, the message's own map counted.
pub const MAX_DEPTH: usize = 64;

/// The keys of the format.
mod keys {
    pub(super) const ID: &str = "message_id";
    pub(super) const PRIORITY: &str = "priority";
    pub(super) const CORRELATION_ID: &str = "correlation_id";
    pub(super) const TYPE: &str = "__type__";
    pub(super) const ID_BYTES: &str = "__uuid_bin__";
    pub(super) const ID_TEXT: &str = "__uuid__";
    /// What precedes the 16 bytes of an id: a map of one entry, its key, and "16 bytes follow".
    pub(super) const ID_PREFIX: &[u8] = b"\x81\xac__uuid_bin__\xc4\x10";
    pub(super) const ARRAY_BYTES: &str = "__ndarray__";
    pub(super) const ARRAY_DTYPE: &str = "dtype";
    pub(super) const ARRAY_SHAPE: &str = "shape";
    /// What Python's `ArrayMessage` writes instead: arrays inside containers, and all others.
    pub(super) const ARRAY_FALLBACK_BYTES: &str = "data";
    pub(super) const ARRAY_REFERENCE: &str = "__array_ref__";
}

/// How many entries of a message's map are the envelope's: its three fields and the type name.
const ENVELOPE_FIELDS: usize = 4;

/// About how many bytes an envelope takes, with some keys.
const ENVELOPE_BYTES: usize = 192;

/// A message with a wire format. Derived with [`Message`], unless that is told
/// `#[message(no_wire)]`.
///
/// By hand:
///
/// ```
/// use dotcompute_core::wire::{self, DecodeError, Encoder, Fields, WireMessage};
/// use dotcompute_core::{Envelope, Message};
///
/// #[derive(Debug, PartialEq)]
/// struct Reading {
///     kelvin: f64,
/// }
///
/// impl Message for Reading {
///     const TYPE_NAME: &'static str = "Reading";
/// }
///
/// /// Degrees Celsius on the wire.
/// impl WireMessage for Reading {
///     const FIELDS: &'static [&'static str] = &["celsius"];
///
///     fn encode_fields(&self, encoder: &mut Encoder<'_>) {
///         encoder.field("celsius", &(self.kelvin - 273.15));
///     }
///
///     fn decode_fields(fields: &mut Fields<'_, '_>) -> Result<Self, DecodeError> {
///         let mut celsius = None;
///         while let Some(key) = fields.next_key()? {
///             match key {
///                 "celsius" => celsius = Some(fields.value::<f64>("celsius")?),
///                 _ => fields.skip()?,
///             }
///         }
///         Ok(Reading { kelvin: fields.require("celsius", celsius)? + 273.15 })
///     }
/// }
///
/// let bytes = wire::encode(&Envelope::new(Reading { kelvin: 300.0 }))?;
/// assert_eq!(wire::decode::<Reading>(&bytes)?.message, Reading { kelvin: 300.0 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait WireMessage: Message {
    /// The keys of the fields, in the order in which they are written.
    const FIELDS: &'static [&'static str];

    /// Writes each of [`FIELDS`](Self::FIELDS) with [`Encoder::field`].
    fn encode_fields(&self, encoder: &mut Encoder<'_>);

    /// Reads the entries of a map, in whatever order they come.
    ///
    /// # Errors
    ///
    /// The entries are not the fields of this type.
    fn decode_fields(fields: &mut Fields<'_, '_>) -> Result<Self, DecodeError>;
}

/// How large a message on the wire may be.
///
/// ```
/// # use dotcompute_core::Message;
/// # #[derive(Debug, Message)]
/// # #[message(crate = "dotcompute_core")]
/// # struct Reading { celsius: f64 }
/// use dotcompute_core::wire::{self, Limits};
///
/// let limits = Limits { bytes: 1024, ..Limits::default() };
/// let error = wire::decode_within::<Reading>(&[0; 2000], &limits).unwrap_err();
/// assert_eq!(error.to_string(), "byte 1024: 2000 bytes are more than the limit of 1024");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The length of the encoded message, in bytes: 64 MiB by default.
    pub bytes: usize,
    /// The memory that the decoded message may take, in bytes: 256 MiB by default. Some types take
    /// more memory than bytes on the wire, such as a `Vec<Option<[f64; 100]>>` of nils.
    pub memory_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 20, memory_bytes: 256 << 20 }
    }
}

/// The bytes of a message, within the default [`Limits`].
///
/// # Errors
///
/// The message is too large or nests too deep.
#[inline]
pub fn encode<M: WireMessage>(envelope: &Envelope<M>) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    encode_into(envelope, &mut out)?;
    Ok(out)
}

/// Appends the bytes of a message to `out`, within the default [`Limits`]. For a caller that uses
/// its memory again.
///
/// # Errors
///
/// The message is too large or nests too deep; `out` is then as it was.
///
/// ```
/// # use dotcompute_core::{Envelope, Message, wire};
/// # #[derive(Message)]
/// # #[message(crate = "dotcompute_core")]
/// # struct Reading { celsius: f64 }
/// let mut out = Vec::new();
/// for celsius in [21.5, 22.0] {
///     out.clear();
///     wire::encode_into(&Envelope::new(Reading { celsius }), &mut out)?;
///     assert_eq!(wire::decode::<Reading>(&out)?.message.celsius, celsius);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[inline]
pub fn encode_into<M: WireMessage>(
    envelope: &Envelope<M>,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    encode_within(envelope, out, &Limits::default())
}

/// As [`encode_into`], within other limits.
///
/// # Errors
///
/// The message is too large or nests too deep; `out` is then as it was.
pub fn encode_within<M: WireMessage>(
    envelope: &Envelope<M>,
    out: &mut Vec<u8>,
    limits: &Limits,
) -> Result<(), EncodeError> {
    out.reserve(envelope.message.payload_bytes().min(limits.bytes) + ENVELOPE_BYTES);
    let mut encoder = Encoder::new(out, limits.bytes);
    encoder.map(M::FIELDS.len() + ENVELOPE_FIELDS, |encoder| {
        envelope.message.encode_fields(encoder);
        encoder.field(keys::ID, &envelope.id);
        encoder.field(keys::PRIORITY, &envelope.priority);
        encoder.field(keys::CORRELATION_ID, &envelope.correlation_id);
        encoder.str(keys::TYPE);
        encoder.str(M::TYPE_NAME);
    });
    encoder.finish()
}

/// Reads a message, within the default [`Limits`].
///
/// # Errors
///
/// The bytes are not one message of type `M`.
#[inline]
pub fn decode<M: WireMessage>(bytes: &[u8]) -> Result<Envelope<M>, DecodeError> {
    decode_within(bytes, &Limits::default())
}

/// As [`decode`], within other limits.
///
/// # Errors
///
/// The bytes are not one message of type `M`, or exceed a limit.
pub fn decode_within<M: WireMessage>(
    bytes: &[u8],
    limits: &Limits,
) -> Result<Envelope<M>, DecodeError> {
    let mut decoder = Decoder::new(bytes, limits)?;
    let mut header = Header::default();
    // The type name comes last, so a message of another type mostly fails before it is seen.
    let message =
        decoder.fields::<M>(Some(&mut header)).map_err(|error| {
            match peek_type_within(bytes, limits) {
                Ok(Some(found)) => check_type::<M>(found).err().unwrap_or(error),
                _ => error,
            }
        })?;
    decoder.finish()?;
    if let Some(found) = header.type_name {
        check_type::<M>(found)?;
    }
    let id = header.id.unwrap_or_else(MessageId::next);
    let priority = header.priority.unwrap_or_else(|| message.default_priority());
    Ok(Envelope::with_parts(id, header.correlation_id, priority, message))
}

fn check_type<M: Message>(found: &str) -> Result<(), DecodeError> {
    if found == M::TYPE_NAME {
        return Ok(());
    }
    let kind = DecodeErrorKind::TypeName { expected: M::TYPE_NAME, found: found.into() };
    Err(DecodeError::new(0, kind))
}

/// The bytes of one value without an envelope, within the default [`Limits`].
///
/// # Errors
///
/// It is too large or nests too deep.
///
/// ```
/// use dotcompute_core::wire;
/// let bytes = wire::encode_value(&(1u8, Some(true), None::<f64>))?;
/// assert_eq!(bytes, b"\x93\x01\xc3\xc0");
/// assert_eq!(wire::decode_value::<(u8, Option<bool>, Option<f64>)>(&bytes)?, (1, Some(true), None));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn encode_value<T: WireField>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, Limits::default().bytes);
    value.encode(&mut encoder);
    encoder.finish()?;
    Ok(out)
}

/// Reads one value without an envelope, within the default [`Limits`].
///
/// # Errors
///
/// The bytes are not exactly one value of type `T`.
pub fn decode_value<T: WireField>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut decoder = Decoder::new(bytes, &Limits::default())?;
    let value = T::decode(&mut decoder)?;
    decoder.finish()?;
    Ok(value)
}

/// The name of the type of a message, without reading the message; none if it says none.
///
/// # Errors
///
/// The bytes are not a map, or not a well-formed one.
///
/// ```
/// use dotcompute_core::wire;
///
/// let bytes = b"\x82\xa7celsius\xcb\x40\x35\x80\0\0\0\0\0\xa8__type__\xa7Reading";
/// assert_eq!(wire::peek_type(bytes), Ok(Some("Reading")));
/// assert_eq!(wire::peek_type(b"\x80"), Ok(None));
/// ```
pub fn peek_type(bytes: &[u8]) -> Result<Option<&str>, DecodeError> {
    peek_type_within(bytes, &Limits::default())
}

fn peek_type_within<'de>(
    bytes: &'de [u8],
    limits: &Limits,
) -> Result<Option<&'de str>, DecodeError> {
    Decoder::new(bytes, limits)?.map(|decoder, length| {
        let mut name = None;
        for _ in 0..length {
            if decoder.str()? == keys::TYPE {
                name = Some(decoder.str()?);
            } else {
                decoder.skip()?;
            }
        }
        Ok(name)
    })
}
