//! Reads MessagePack that anyone may have written.

use std::fmt;
use std::mem::size_of;

use rmp::Marker;

use super::error::{DecodeError, DecodeErrorKind};
use super::{Limits, MAX_DEPTH, WireField, WireMessage, keys};
use crate::id::MessageId;

/// Reads values in the wire format, within bounds: never deeper than
/// [`MAX_DEPTH`](super::MAX_DEPTH), never more memory than its limit, and no length in the bytes is
/// believed before as many bytes have been seen.
///
/// After an error a decoder stands somewhere inside the message and is of no further use. See
/// [`Encoder`](super::Encoder) for an example of both.
#[derive(Debug)]
pub struct Decoder<'de> {
    bytes: &'de [u8],
    position: usize,
    depth: usize,
    memory_left_bytes: usize,
    memory_limit_bytes: usize,
}

/// The kinds of values on the wire.
///
/// ```
/// use dotcompute_core::wire::{self, DecodeError, Decoder, Encoder, Kind, WireField};
///
/// /// A sensor by its number or by its name.
/// #[derive(Debug, PartialEq)]
/// enum Sensor {
///     Number(u32),
///     Name(String),
/// }
///
/// impl WireField for Sensor {
///     fn encode(&self, encoder: &mut Encoder<'_>) {
///         match self {
///             Sensor::Number(number) => number.encode(encoder),
///             Sensor::Name(name) => name.encode(encoder),
///         }
///     }
///
///     fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
///         match decoder.kind()? {
///             Kind::Str => String::decode(decoder).map(Sensor::Name),
///             _ => u32::decode(decoder).map(Sensor::Number),
///         }
///     }
/// }
///
/// assert_eq!(wire::decode_value(b"\x07"), Ok(Sensor::Number(7)));
/// assert_eq!(wire::decode_value(b"\xa4roof"), Ok(Sensor::Name("roof".into())));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// No value.
    Nil,
    /// A boolean.
    Bool,
    /// An integer, of up to 64 bits.
    Integer,
    /// A float of single or double precision.
    Float,
    /// A string.
    Str,
    /// Bytes.
    Bytes,
    /// An array of values.
    Array,
    /// A map from values to values.
    Map,
    /// Bytes with an application's tag.
    Extension,
    /// The one byte that MessagePack gives no meaning.
    Reserved,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Nil => "nil",
            Kind::Bool => "a boolean",
            Kind::Integer => "an integer",
            Kind::Float => "a float",
            Kind::Str => "a string",
            Kind::Bytes => "bytes",
            Kind::Array => "an array",
            Kind::Map => "a map",
            Kind::Extension => "an extension",
            Kind::Reserved => "the reserved byte 0xc1",
        })
    }
}

fn kind_of(marker: Marker) -> Kind {
    use Marker::*;
    match marker {
        Null => Kind::Nil,
        True | False => Kind::Bool,
        FixPos(_) | FixNeg(_) | U8 | U16 | U32 | U64 | I8 | I16 | I32 | I64 => Kind::Integer,
        F32 | F64 => Kind::Float,
        FixStr(_) | Str8 | Str16 | Str32 => Kind::Str,
        Bin8 | Bin16 | Bin32 => Kind::Bytes,
        FixArray(_) | Array16 | Array32 => Kind::Array,
        FixMap(_) | Map16 | Map32 => Kind::Map,
        FixExt1 | FixExt2 | FixExt4 | FixExt8 | FixExt16 | Ext8 | Ext16 | Ext32 => Kind::Extension,
        Reserved => Kind::Reserved,
    }
}

type Result<T, E = DecodeError> = std::result::Result<T, E>;

impl<'de> Decoder<'de> {
    /// Begins to read a message. For types that are known only at run time;
    /// [`wire::decode`](super::decode) is for all others.
    ///
    /// # Errors
    ///
    /// The message is longer than its limit.
    pub fn new(bytes: &'de [u8], limits: &Limits) -> Result<Self> {
        if bytes.len() > limits.bytes {
            let kind =
                DecodeErrorKind::TooLarge { found_bytes: bytes.len(), limit_bytes: limits.bytes };
            return Err(DecodeError::new(limits.bytes, kind));
        }
        Ok(Self {
            bytes,
            position: 0,
            depth: 0,
            memory_left_bytes: limits.memory_bytes,
            memory_limit_bytes: limits.memory_bytes,
        })
    }

    /// Ends the message.
    ///
    /// # Errors
    ///
    /// Bytes are left.
    pub fn finish(self) -> Result<()> {
        match self.remaining_bytes() {
            0 => Ok(()),
            bytes => Err(DecodeError::new(self.position, DecodeErrorKind::Trailing { bytes })),
        }
    }

    /// Where the next value begins, in bytes from the start of the message.
    pub fn offset(&self) -> usize {
        self.position
    }

    /// How many bytes are left.
    pub fn remaining_bytes(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The kind of the next value, which stays unread.
    ///
    /// # Errors
    ///
    /// No byte is left.
    #[inline]
    pub fn kind(&self) -> Result<Kind> {
        match self.bytes.get(self.position) {
            Some(&byte) => Ok(kind_of(Marker::from_u8(byte))),
            None => Err(self.end(1)),
        }
    }

    /// Reads "no value" if that comes next; says whether it did.
    ///
    /// # Errors
    ///
    /// No byte is left.
    #[inline]
    pub fn take_nil(&mut self) -> Result<bool> {
        let is_nil = self.kind()? == Kind::Nil;
        self.position += usize::from(is_nil);
        Ok(is_nil)
    }

    /// Reads these very bytes, one or more whole values, if they come next; says whether they did.
    /// For a key in the form that writers use, compared as one.
    ///
    /// ```
    /// use dotcompute_core::wire::{Decoder, Limits};
    ///
    /// let mut decoder = Decoder::new(b"\xa1x\x07", &Limits::default())?;
    /// assert!(!decoder.take_exactly(b"\xa1y"));
    /// assert!(decoder.take_exactly(b"\xa1x"));
    /// assert_eq!(decoder.integer::<u8>("a number")?, 7);
    /// decoder.finish()?;
    /// # Ok::<(), dotcompute_core::wire::DecodeError>(())
    /// ```
    #[inline]
    pub fn take_exactly(&mut self, values: &[u8]) -> bool {
        let found = self.bytes[self.position..].starts_with(values);
        self.position += if found { values.len() } else { 0 };
        found
    }

    /// Reads a boolean.
    ///
    /// # Errors
    ///
    /// Another value comes next, or the bytes end; and so in all that follow.
    #[inline]
    pub fn bool(&mut self) -> Result<bool> {
        let at = self.position;
        match self.marker()? {
            Marker::True => Ok(true),
            Marker::False => Ok(false),
            other => Err(unexpected(at, "a boolean", other)),
        }
    }

    /// Reads an integer of any size into the type `T`, called `expected` in errors.
    ///
    /// # Errors
    ///
    /// Another value comes next, or an integer that `T` does not hold.
    #[inline]
    pub fn integer<T: TryFrom<i128>>(&mut self, expected: &'static str) -> Result<T> {
        let at = self.position;
        let value = match self.marker()? {
            Marker::FixPos(value) => i128::from(value),
            Marker::FixNeg(value) => i128::from(value),
            Marker::U8 => i128::from(u8::from_be_bytes(self.fixed()?)),
            Marker::U16 => i128::from(u16::from_be_bytes(self.fixed()?)),
            Marker::U32 => i128::from(u32::from_be_bytes(self.fixed()?)),
            Marker::U64 => i128::from(u64::from_be_bytes(self.fixed()?)),
            Marker::I8 => i128::from(i8::from_be_bytes(self.fixed()?)),
            Marker::I16 => i128::from(i16::from_be_bytes(self.fixed()?)),
            Marker::I32 => i128::from(i32::from_be_bytes(self.fixed()?)),
            Marker::I64 => i128::from(i64::from_be_bytes(self.fixed()?)),
            other => return Err(unexpected(at, expected, other)),
        };
        T::try_from(value).map_err(|_| out_of_range(at, expected, &value))
    }

    /// Reads a float. An integer is taken as the nearest float, since Python programs put integers
    /// into float fields.
    ///
    /// # Errors
    ///
    /// Another value comes next.
    #[inline]
    pub fn f64(&mut self) -> Result<f64> {
        let at = self.position;
        match self.marker()? {
            Marker::F64 => Ok(f64::from_be_bytes(self.fixed()?)),
            Marker::F32 => Ok(f64::from(f32::from_be_bytes(self.fixed()?))),
            other if kind_of(other) == Kind::Integer => {
                self.position = at;
                Ok(self.integer::<i128>("a float")? as f64)
            }
            other => Err(unexpected(at, "a float", other)),
        }
    }

    /// Reads a float, rounded to single precision.
    ///
    /// # Errors
    ///
    /// Another value comes next, or a finite one that single precision does not hold.
    #[inline]
    pub fn f32(&mut self) -> Result<f32> {
        let at = self.position;
        let wide = self.f64()?;
        let value = wide as f32;
        if value.is_infinite() && wide.is_finite() {
            return Err(out_of_range(at, "a float of single precision", &wide));
        }
        Ok(value)
    }

    /// Reads a string.
    ///
    /// # Errors
    ///
    /// Another value comes next, or a string that is not UTF-8.
    #[inline]
    pub fn str(&mut self) -> Result<&'de str> {
        let at = self.position;
        let length = match self.marker()? {
            Marker::FixStr(length) => usize::from(length),
            Marker::Str8 => self.length8()?,
            Marker::Str16 => self.length16()?,
            Marker::Str32 => self.length32()?,
            other => return Err(unexpected(at, "a string", other)),
        };
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| DecodeError::new(at, DecodeErrorKind::Utf8))
    }

    /// Reads bytes.
    ///
    /// # Errors
    ///
    /// Another value comes next.
    #[inline]
    pub fn bytes(&mut self) -> Result<&'de [u8]> {
        let at = self.position;
        let length = match self.marker()? {
            Marker::Bin8 => self.length8()?,
            Marker::Bin16 => self.length16()?,
            Marker::Bin32 => self.length32()?,
            other => return Err(unexpected(at, "bytes", other)),
        };
        self.take(length)
    }

    /// Reads bytes with an application's tag.
    ///
    /// # Errors
    ///
    /// Another value comes next.
    pub fn extension(&mut self) -> Result<(i8, &'de [u8])> {
        let at = self.position;
        let length = match self.marker()? {
            Marker::FixExt1 => 1,
            Marker::FixExt2 => 2,
            Marker::FixExt4 => 4,
            Marker::FixExt8 => 8,
            Marker::FixExt16 => 16,
            Marker::Ext8 => self.length8()?,
            Marker::Ext16 => self.length16()?,
            Marker::Ext32 => self.length32()?,
            other => return Err(unexpected(at, "an extension", other)),
        };
        let tag = i8::from_be_bytes(self.fixed()?);
        Ok((tag, self.take(length)?))
    }

    /// Reads an array: `read` is given its length and must read that many values.
    ///
    /// # Errors
    ///
    /// Another value comes next, the array claims more values than bytes are left, values nest too
    /// deep, or `read` fails.
    #[inline]
    pub fn array<T>(&mut self, read: impl FnOnce(&mut Self, usize) -> Result<T>) -> Result<T> {
        let at = self.position;
        let length = match self.marker()? {
            Marker::FixArray(length) => usize::from(length),
            Marker::Array16 => self.length16()?,
            Marker::Array32 => self.length32()?,
            other => return Err(unexpected(at, "an array", other)),
        };
        self.inside(at, length, |decoder| read(decoder, length))
    }

    /// Reads a map: `read` is given its length and must read that many keys, each followed by its
    /// value.
    ///
    /// # Errors
    ///
    /// As of [`array`](Decoder::array).
    #[inline]
    pub fn map<T>(&mut self, read: impl FnOnce(&mut Self, usize) -> Result<T>) -> Result<T> {
        let at = self.position;
        let length = match self.marker()? {
            Marker::FixMap(length) => usize::from(length),
            Marker::Map16 => self.length16()?,
            Marker::Map32 => self.length32()?,
            other => return Err(unexpected(at, "a map", other)),
        };
        self.inside(at, length.saturating_mul(2), |decoder| read(decoder, length))
    }

    /// Reads an id: a map with the key `__uuid_bin__` or `__uuid__`, or the text or the 16 bytes
    /// themselves.
    ///
    /// # Errors
    ///
    /// Another value comes next, or one that is no UUID.
    #[inline]
    pub fn id(&mut self) -> Result<MessageId> {
        // The form that writers use, compared as one.
        if let Some(rest) = self.bytes[self.position..].strip_prefix(keys::ID_PREFIX)
            && let Some(id) = rest.first_chunk()
        {
            self.position += keys::ID_PREFIX.len() + id.len();
            return Ok(MessageId::from_bytes(*id));
        }
        self.id_in_any_form()
    }

    fn id_in_any_form(&mut self) -> Result<MessageId> {
        let at = self.position;
        match self.kind()? {
            Kind::Str => {
                let text = self.str()?;
                text.parse().map_err(|_| invalid(at, "a UUID in text"))
            }
            Kind::Bytes => {
                let bytes = self.bytes()?;
                let bytes = bytes.try_into().map_err(|_| invalid(at, "the 16 bytes of a UUID"))?;
                Ok(MessageId::from_bytes(bytes))
            }
            Kind::Map => self.map(|decoder, length| {
                let mut id = None;
                for _ in 0..length {
                    match decoder.str()? {
                        keys::ID_BYTES | keys::ID_TEXT if decoder.kind()? != Kind::Map => {
                            id = Some(decoder.id_in_any_form()?);
                        }
                        _ => decoder.skip()?,
                    }
                }
                id.ok_or_else(|| invalid(at, "a map with `__uuid_bin__` or `__uuid__`"))
            }),
            found => Err(DecodeError::new(at, DecodeErrorKind::Type { expected: "a UUID", found })),
        }
    }

    /// Reads a message that is the field of another: a map of its fields.
    ///
    /// # Errors
    ///
    /// Another value comes next, or the fields are not those of `M`.
    #[inline]
    pub fn nested<M: WireMessage>(&mut self) -> Result<M> {
        self.fields(None)
    }

    /// Reads a map of the fields of `M`, and of those of its envelope if `header` is there.
    #[inline]
    pub(super) fn fields<M: WireMessage>(&mut self, header: Option<&mut Header<'de>>) -> Result<M> {
        let at = self.position;
        self.map(|decoder, left| {
            let mut fields = Fields { decoder, header, left, at, type_name: M::TYPE_NAME };
            let message = M::decode_fields(&mut fields)?;
            // Of a hand-written reader that stopped early.
            while fields.next_key()?.is_some() {
                fields.skip()?;
            }
            Ok(message)
        })
    }

    /// Reads the next value, whatever it is, and drops it.
    ///
    /// # Errors
    ///
    /// It is not well-formed, or nests too deep.
    pub fn skip(&mut self) -> Result<()> {
        let at = self.position;
        match self.kind()? {
            Kind::Nil | Kind::Bool => self.take(1).map(drop),
            Kind::Integer => self.integer::<i128>("an integer").map(drop),
            Kind::Float => self.f64().map(drop),
            Kind::Str => self.str().map(drop),
            Kind::Bytes => self.bytes().map(drop),
            Kind::Extension => self.extension().map(drop),
            Kind::Array => self.array(|decoder, n| (0..n).try_for_each(|_| decoder.skip())),
            Kind::Map => self.map(|decoder, n| {
                (0..n).try_for_each(|_| decoder.skip().and_then(|()| decoder.skip()))
            }),
            found => {
                Err(DecodeError::new(at, DecodeErrorKind::Type { expected: "a value", found }))
            }
        }
    }

    /// Counts the memory of `count` values of type `T` that are about to be kept, before it is
    /// taken.
    ///
    /// # Errors
    ///
    /// The message would take more than its limit.
    #[inline]
    pub fn claim_memory<T>(&mut self, count: usize) -> Result<()> {
        match self.memory_left_bytes.checked_sub(count.saturating_mul(size_of::<T>())) {
            Some(left) => {
                self.memory_left_bytes = left;
                Ok(())
            }
            None => {
                let kind = DecodeErrorKind::Memory { limit_bytes: self.memory_limit_bytes };
                Err(DecodeError::new(self.position, kind))
            }
        }
    }

    /// An error that says what was expected at `offset`, for types that refuse some values.
    pub fn invalid(&self, offset: usize, expected: &'static str) -> DecodeError {
        invalid(offset, expected)
    }

    pub(super) fn wrong_length(&self, at: usize, expected: usize, found: usize) -> DecodeError {
        DecodeError::new(at, DecodeErrorKind::Length { expected, found })
    }

    #[inline]
    fn inside<T>(
        &mut self,
        at: usize,
        values: usize,
        read: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        if self.depth == MAX_DEPTH {
            return Err(DecodeError::new(at, DecodeErrorKind::TooDeep));
        }
        // Each value takes a byte or more.
        if values > self.remaining_bytes() {
            let missing_bytes = values - self.remaining_bytes();
            return Err(DecodeError::new(at, DecodeErrorKind::End { missing_bytes }));
        }
        self.depth += 1;
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    #[inline]
    fn marker(&mut self) -> Result<Marker> {
        match self.bytes.get(self.position) {
            Some(&byte) => {
                self.position += 1;
                Ok(Marker::from_u8(byte))
            }
            None => Err(self.end(1)),
        }
    }

    #[inline]
    fn take(&mut self, count: usize) -> Result<&'de [u8]> {
        match self.bytes[self.position..].split_at_checked(count) {
            Some((taken, _)) => {
                self.position += count;
                Ok(taken)
            }
            None => Err(self.end(count)),
        }
    }

    #[inline]
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.bytes[self.position..].first_chunk() {
            Some(taken) => {
                self.position += N;
                Ok(*taken)
            }
            None => Err(self.end(N)),
        }
    }

    #[inline]
    fn length8(&mut self) -> Result<usize> {
        Ok(usize::from(u8::from_be_bytes(self.fixed()?)))
    }

    #[inline]
    fn length16(&mut self) -> Result<usize> {
        Ok(usize::from(u16::from_be_bytes(self.fixed()?)))
    }

    #[inline]
    fn length32(&mut self) -> Result<usize> {
        // On a 16-bit machine the value could not be there either: it fails as too long.
        Ok(usize::try_from(u32::from_be_bytes(self.fixed()?)).unwrap_or(usize::MAX))
    }

    #[cold]
    fn end(&self, needed: usize) -> DecodeError {
        let missing_bytes = needed - self.remaining_bytes();
        DecodeError::new(self.position, DecodeErrorKind::End { missing_bytes })
    }
}

#[cold]
fn unexpected(at: usize, expected: &'static str, marker: Marker) -> DecodeError {
    DecodeError::new(at, DecodeErrorKind::Type { expected, found: kind_of(marker) })
}

#[cold]
fn out_of_range(at: usize, expected: &'static str, found: &dyn fmt::Display) -> DecodeError {
    DecodeError::new(at, DecodeErrorKind::Range { expected, found: found.to_string() })
}

#[cold]
fn invalid(at: usize, expected: &'static str) -> DecodeError {
    DecodeError::new(at, DecodeErrorKind::Invalid { expected })
}

/// What a message's map says besides its fields.
#[derive(Debug, Default)]
pub(super) struct Header<'de> {
    pub(super) id: Option<MessageId>,
    pub(super) correlation_id: Option<MessageId>,
    pub(super) priority: Option<u8>,
    pub(super) type_name: Option<&'de str>,
}

/// The entries of a message's map, as [`WireMessage::decode_fields`] reads them: each key in turn,
/// then its value.
///
/// The entries of the envelope do not show up here. See [`WireMessage`] for an example.
#[derive(Debug)]
pub struct Fields<'a, 'de> {
    decoder: &'a mut Decoder<'de>,
    header: Option<&'a mut Header<'de>>,
    left: usize,
    at: usize,
    type_name: &'static str,
}

impl<'de> Fields<'_, 'de> {
    /// The next key, or none after the last entry. Read its value next, or skip it.
    ///
    /// # Errors
    ///
    /// The next key is not a string, or an entry of the envelope is wrong.
    #[inline]
    pub fn next_key(&mut self) -> Result<Option<&'de str>> {
        while self.left > 0 {
            self.left -= 1;
            let key = self.decoder.str()?;
            let Some(header) = &mut self.header else { return Ok(Some(key)) };
            let decoder = &mut *self.decoder;
            let read = match key {
                keys::ID => decoder.id().map(|id| header.id = Some(id)),
                keys::PRIORITY => {
                    decoder.integer("a priority of 0 to 255").map(|p| header.priority = Some(p))
                }
                keys::CORRELATION_ID => decoder.take_nil().and_then(|is_nil| {
                    header.correlation_id = if is_nil { None } else { Some(decoder.id()?) };
                    Ok(())
                }),
                keys::TYPE => decoder.str().map(|name| header.type_name = Some(name)),
                _ => return Ok(Some(key)),
            };
            read.map_err(|error| match key {
                keys::ID => error.in_field(self.type_name, keys::ID),
                keys::PRIORITY => error.in_field(self.type_name, keys::PRIORITY),
                keys::CORRELATION_ID => error.in_field(self.type_name, keys::CORRELATION_ID),
                _ => error.in_field(self.type_name, keys::TYPE),
            })?;
        }
        Ok(None)
    }

    /// Reads the value of the field `name`.
    ///
    /// # Errors
    ///
    /// It is not a `T`; the error names the field.
    #[inline]
    pub fn value<T: WireField>(&mut self, name: &'static str) -> Result<T> {
        T::decode(self.decoder).map_err(|error| error.in_field(self.type_name, name))
    }

    /// Drops the value of a key that is not known.
    ///
    /// # Errors
    ///
    /// It is not well-formed.
    #[inline]
    pub fn skip(&mut self) -> Result<()> {
        self.decoder.skip()
    }

    /// The value of the field `name` after all entries have been read: what was found, or what its
    /// type is when missing.
    ///
    /// # Errors
    ///
    /// It was not found, and its type has no value for that.
    #[inline]
    pub fn require<T: WireField>(&self, name: &'static str, found: Option<T>) -> Result<T> {
        match found.or_else(T::missing) {
            Some(value) => Ok(value),
            None => {
                let error = DecodeError::new(self.at, DecodeErrorKind::MissingField { name });
                Err(error.in_field(self.type_name, name))
            }
        }
    }
}
