//! The wire format of the types that fields can have.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::mem::{size_of, size_of_val};
use std::sync::Arc;

use super::decoder::{Decoder, Kind};
use super::encoder::Encoder;
use super::error::DecodeError;
use crate::id::MessageId;

/// A type that a field of a message can have.
///
/// Implemented for the types in the table of the [module](super), and by deriving `Message`. For
/// another type, write it in terms of one of them:
///
/// ```
/// use dotcompute_core::wire::{DecodeError, Decoder, Encoder, WireField};
///
/// enum Unit {
///     Celsius,
///     Kelvin,
/// }
///
/// impl WireField for Unit {
///     fn encode(&self, encoder: &mut Encoder<'_>) {
///         encoder.str(match self {
///             Unit::Celsius => "celsius",
///             Unit::Kelvin => "kelvin",
///         });
///     }
///
///     fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
///         let offset = decoder.offset();
///         match decoder.str()? {
///             "celsius" => Ok(Unit::Celsius),
///             "kelvin" => Ok(Unit::Kelvin),
///             _ => Err(decoder.invalid(offset, "`celsius` or `kelvin`")),
///         }
///     }
/// }
/// ```
///
/// A message with a field of any other type does not compile:
///
/// ```compile_fail,E0277
/// #[derive(dotcompute_core::Message)]
/// #[message(crate = "dotcompute_core")]
/// struct Job {
///     started: std::time::Instant,
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no wire format",
    label = "no wire format",
    note = "derive `Message` for it, or implement `WireField`",
    note = "or mark the message `#[message(no_wire)]` if it never leaves its process"
)]
pub trait WireField: Sized {
    /// Writes exactly one value.
    fn encode(&self, encoder: &mut Encoder<'_>);

    /// Reads exactly one value.
    ///
    /// # Errors
    ///
    /// The next value is not of this type.
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError>;

    /// The value of a field that the message lacks; none if that is an error.
    fn missing() -> Option<Self> {
        None
    }

    /// About how much memory this value owns besides its own size, in bytes.
    fn heap_bytes(&self) -> usize {
        0
    }

    /// Writes many: as an array, except that bytes are written as bytes.
    #[doc(hidden)]
    fn encode_slice(values: &[Self], encoder: &mut Encoder<'_>) {
        encoder.array(values.len(), |encoder| {
            for value in values {
                value.encode(encoder);
            }
        });
    }

    /// Reads what `encode_slice` writes.
    #[doc(hidden)]
    fn decode_vec(decoder: &mut Decoder<'_>) -> Result<Vec<Self>, DecodeError> {
        decoder.array(|decoder, length| {
            decoder.claim_memory::<Self>(length)?;
            let mut values = Vec::with_capacity(length);
            for _ in 0..length {
                values.push(Self::decode(decoder)?);
            }
            Ok(values)
        })
    }
}

impl WireField for bool {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.bool(*self);
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.bool()
    }
}

macro_rules! integers {
    ($($method:ident as $wide:ty: $($type:ident)*;)*) => {$($(
        impl WireField for $type {
            #[inline]
            fn encode(&self, encoder: &mut Encoder<'_>) {
                encoder.$method(*self as $wide);
            }

            #[inline]
            fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                decoder.integer(concat!("an integer of type ", stringify!($type)))
            }
        }
    )*)*};
}

integers! {
    unsigned as u64: u16 u32 u64 usize;
    signed as i64: i8 i16 i32 i64 isize;
}

impl WireField for u8 {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.unsigned(u64::from(*self));
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.integer("an integer of type u8")
    }

    fn encode_slice(values: &[Self], encoder: &mut Encoder<'_>) {
        encoder.bytes(values);
    }

    fn decode_vec(decoder: &mut Decoder<'_>) -> Result<Vec<Self>, DecodeError> {
        if decoder.kind()? == Kind::Array {
            return decoder.array(|decoder, length| {
                decoder.claim_memory::<u8>(length)?;
                (0..length).map(|_| u8::decode(decoder)).collect()
            });
        }
        let bytes = decoder.bytes()?;
        decoder.claim_memory::<u8>(bytes.len())?;
        Ok(bytes.to_vec())
    }
}

macro_rules! floats {
    ($($type:ident)*) => {$(
        impl WireField for $type {
            #[inline]
            fn encode(&self, encoder: &mut Encoder<'_>) {
                encoder.$type(*self);
            }

            #[inline]
            fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                decoder.$type()
            }
        }
    )*};
}

floats! { f32 f64 }

impl WireField for String {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.str(self);
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let text = decoder.str()?;
        decoder.claim_memory::<u8>(text.len())?;
        Ok(text.to_owned())
    }

    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

impl WireField for MessageId {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.id(*self);
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.id()
    }
}

impl<T: WireField> WireField for Option<T> {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        match self {
            Some(value) => value.encode(encoder),
            None => encoder.nil(),
        }
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        if decoder.take_nil()? { Ok(None) } else { T::decode(decoder).map(Some) }
    }

    fn missing() -> Option<Self> {
        Some(None)
    }

    fn heap_bytes(&self) -> usize {
        self.as_ref().map_or(0, T::heap_bytes)
    }
}

macro_rules! pointers {
    ($($pointer:ident)*) => {$(
        impl<T: WireField> WireField for $pointer<T> {
            #[inline]
            fn encode(&self, encoder: &mut Encoder<'_>) {
                T::encode(self, encoder);
            }

            #[inline]
            fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                decoder.claim_memory::<T>(1)?;
                T::decode(decoder).map($pointer::new)
            }

            fn missing() -> Option<Self> {
                T::missing().map($pointer::new)
            }

            fn heap_bytes(&self) -> usize {
                size_of::<T>() + T::heap_bytes(self)
            }
        }
    )*};
}

pointers! { Box Arc }

impl<T: WireField> WireField for Vec<T> {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        T::encode_slice(self, encoder);
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        T::decode_vec(decoder)
    }

    fn heap_bytes(&self) -> usize {
        size_of_val(self.as_slice()) + self.iter().map(T::heap_bytes).sum::<usize>()
    }
}

impl<T: WireField, const N: usize> WireField for [T; N] {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        T::encode_slice(self, encoder);
    }

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let at = decoder.offset();
        T::decode_vec(decoder)?
            .try_into()
            .map_err(|values: Vec<T>| decoder.wrong_length(at, N, values.len()))
    }

    fn heap_bytes(&self) -> usize {
        self.iter().map(T::heap_bytes).sum()
    }
}

fn encode_map<'a, T: WireField + 'a>(
    entries: impl ExactSizeIterator<Item = (&'a String, &'a T)>,
    encoder: &mut Encoder<'_>,
) {
    encoder.map(entries.len(), |encoder| {
        for (key, value) in entries {
            encoder.str(key);
            value.encode(encoder);
        }
    });
}

fn decode_map<T: WireField, C: Extend<(String, T)>>(
    decoder: &mut Decoder<'_>,
    with_capacity: impl FnOnce(usize) -> C,
) -> Result<C, DecodeError> {
    decoder.map(|decoder, length| {
        // Twice, since both maps keep part of their places empty.
        decoder.claim_memory::<[(String, T); 2]>(length)?;
        let mut map = with_capacity(length);
        for _ in 0..length {
            let key = String::decode(decoder)?;
            map.extend([(key, T::decode(decoder)?)]);
        }
        Ok(map)
    })
}

fn map_heap_bytes<'a, T: WireField + 'a>(
    entries: impl Iterator<Item = (&'a String, &'a T)>,
) -> usize {
    entries.map(|(key, value)| size_of::<(String, T)>() + key.len() + value.heap_bytes()).sum()
}

impl<T: WireField, S: BuildHasher + Default> WireField for HashMap<String, T, S> {
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encode_map(self.iter(), encoder);
    }

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decode_map(decoder, |length| HashMap::with_capacity_and_hasher(length, S::default()))
    }

    fn heap_bytes(&self) -> usize {
        map_heap_bytes(self.iter())
    }
}

impl<T: WireField> WireField for BTreeMap<String, T> {
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encode_map(self.iter(), encoder);
    }

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decode_map(decoder, |_| BTreeMap::new())
    }

    fn heap_bytes(&self) -> usize {
        map_heap_bytes(self.iter())
    }
}

macro_rules! tuples {
    ($($length:literal: $($type:ident $index:tt)*;)*) => {$(
        impl<$($type: WireField),*> WireField for ($($type,)*) {
            fn encode(&self, encoder: &mut Encoder<'_>) {
                encoder.array($length, |encoder| {
                    $(self.$index.encode(encoder);)*
                });
            }

            fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                let at = decoder.offset();
                decoder.array(|decoder, length| {
                    if length != $length {
                        return Err(decoder.wrong_length(at, $length, length));
                    }
                    Ok(($($type::decode(decoder)?,)*))
                })
            }

            fn heap_bytes(&self) -> usize {
                0 $(+ self.$index.heap_bytes())*
            }
        }
    )*};
}

tuples! {
    1: A 0;
    2: A 0 B 1;
    3: A 0 B 1 C 2;
    4: A 0 B 1 C 2 D 3;
    5: A 0 B 1 C 2 D 3 E 4;
    6: A 0 B 1 C 2 D 3 E 4 F 5;
    7: A 0 B 1 C 2 D 3 E 4 F 5 G 6;
    8: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7;
}
