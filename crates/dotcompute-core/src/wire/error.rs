//! Why bytes could not be written or read.

use std::fmt;

use super::array::ArrayError;
use super::decoder::Kind;

/// A message has no bytes in the wire format.
///
/// ```
/// use dotcompute_core::wire::{self, EncodeError, Value};
///
/// let nested = (0..100).fold(Value::Nil, |value, _| Value::Array(vec![value]));
/// assert_eq!(wire::encode_value(&nested), Err(EncodeError::TooDeep));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The encoded message would be longer than the limit.
    #[error("the encoded message is longer than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// The limit: [`Limits::bytes`](super::Limits::bytes).
        limit_bytes: usize,
    },
    /// A collection, string or byte string is longer than MessagePack can say.
    #[error("{length} elements or bytes in one value: MessagePack counts to 2^32 - 1")]
    TooLong {
        /// Its number of elements or bytes.
        length: usize,
    },
    /// The message nests deeper than readers accept.
    #[error("the message nests deeper than {} levels", super::MAX_DEPTH)]
    TooDeep,
}

/// Bytes are not the message that they were read as: what is wrong, at which byte, and in which
/// field.
///
/// ```
/// use dotcompute_core::{Message, wire};
///
/// #[derive(Debug, Message)]
/// #[message(crate = "dotcompute_core")]
/// struct Reading {
///     celsius: f64,
/// }
///
/// let bytes = b"\x81\xa7celsius\xa4warm";
/// let error = wire::decode::<Reading>(bytes).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "byte 9: expected a float, found a string (field `celsius` of `Reading`)",
/// );
/// assert_eq!(error.offset(), 9);
/// assert_eq!(error.field(), Some(("Reading", "celsius")));
/// ```
#[derive(Clone, PartialEq)]
pub struct DecodeError(Box<Inner>);

#[derive(Clone, PartialEq)]
struct Inner {
    offset: usize,
    field: Option<(&'static str, &'static str)>,
    kind: DecodeErrorKind,
}

/// What is wrong with bytes that were read.
///
/// ```
/// use dotcompute_core::wire::{self, DecodeErrorKind, Kind};
///
/// let error = wire::decode_value::<u8>(b"\xc3").unwrap_err();
/// let expected = "an integer of type u8";
/// assert_eq!(error.kind(), &DecodeErrorKind::Type { expected, found: Kind::Bool });
/// ```
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// The bytes end inside a value, or a value claims more elements than bytes are left.
    #[error("{missing_bytes} more bytes expected, but the message ends")]
    End {
        /// How many bytes are missing at least.
        missing_bytes: usize,
    },
    /// A value of another type than the field's.
    #[error("expected {expected}, found {found}")]
    Type {
        /// What the field takes.
        expected: &'static str,
        /// What there is.
        found: Kind,
    },
    /// A number that the field's type does not hold.
    #[error("expected {expected}, found the number {found}, which it does not hold")]
    Range {
        /// The type of the field.
        expected: &'static str,
        /// The number.
        found: String,
    },
    /// A string that is not UTF-8.
    #[error("expected a string in UTF-8")]
    Utf8,
    /// An array, byte string or tuple of another length than the field's.
    #[error("expected {expected} elements or bytes, found {found}")]
    Length {
        /// How many the field has.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A value that its type refuses.
    #[error("expected {expected}")]
    Invalid {
        /// What its type accepts.
        expected: &'static str,
    },
    /// A field that has no default is missing.
    #[error("the field `{name}` is missing")]
    MissingField {
        /// The field's key.
        name: &'static str,
    },
    /// The message is of another type.
    #[error("expected a message of type `{expected}`, found `{found}`")]
    TypeName {
        /// The name of the type that was asked for.
        expected: &'static str,
        /// The name in the message.
        found: String,
    },
    /// An array whose type, shape and bytes do not fit together.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// An array that lies in the memory of the process that wrote the message.
    #[error("an array by reference (`__array_ref__`): its data are not in the message")]
    ArrayReference,
    /// The values nest too deep.
    #[error("values nest deeper than {} levels", super::MAX_DEPTH)]
    TooDeep,
    /// The message is longer than the limit.
    #[error("{found_bytes} bytes are more than the limit of {limit_bytes}")]
    TooLarge {
        /// The length of the message.
        found_bytes: usize,
        /// The limit: [`Limits::bytes`](super::Limits::bytes).
        limit_bytes: usize,
    },
    /// The decoded message would take more memory than the limit.
    #[error("the decoded message takes more than the limit of {limit_bytes} bytes of memory")]
    Memory {
        /// The limit: [`Limits::memory_bytes`](super::Limits::memory_bytes).
        limit_bytes: usize,
    },
    /// There are bytes after the message.
    #[error("{bytes} bytes follow the end of the message")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

impl DecodeError {
    #[cold]
    pub(super) fn new(offset: usize, kind: DecodeErrorKind) -> Self {
        Self(Box::new(Inner { offset, field: None, kind }))
    }

    /// Names the field that was being read, unless one inside it has been named already.
    #[cold]
    pub(super) fn in_field(mut self, type_name: &'static str, field: &'static str) -> Self {
        self.0.field.get_or_insert((type_name, field));
        self
    }

    /// Where the value that is wrong begins, in bytes from the start of the message.
    pub fn offset(&self) -> usize {
        self.0.offset
    }

    /// The innermost field that was being read: the name of its type, and its key.
    pub fn field(&self) -> Option<(&'static str, &'static str)> {
        self.0.field
    }

    /// What is wrong.
    pub fn kind(&self) -> &DecodeErrorKind {
        &self.0.kind
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.0.offset, self.0.kind)?;
        if let Some((type_name, field)) = self.0.field {
            write!(f, " (field `{field}` of `{type_name}`)")?;
        }
        Ok(())
    }
}

impl fmt::Debug for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecodeError")
            .field("offset", &self.0.offset)
            .field("field", &self.0.field)
            .field("kind", &self.0.kind)
            .finish()
    }
}

impl std::error::Error for DecodeError {}
