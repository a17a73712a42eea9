//! Values whose type is known only when they are read.

use super::array::Array;
use super::decoder::{Decoder, Kind};
use super::encoder::Encoder;
use super::error::DecodeError;
use super::{WireField, keys};
use crate::id::MessageId;

/// Anything that a message can contain.
///
/// A field of this type takes what comes; [`decode_value`](super::decode_value) reads a whole message
/// as one. Reading and writing keeps the value, but not the size in which a number was written.
///
/// ```
/// use dotcompute_core::wire::{self, Value};
///
/// let value: Value = wire::decode_value(b"\x81\xa7celsius\xca\x41\xac\x00\x00")?;
/// assert_eq!(value.get("celsius"), Some(&Value::Float(21.5)));
/// # Ok::<(), dotcompute_core::wire::DecodeError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No value.
    Nil,
    /// A boolean.
    Bool(bool),
    /// An integer that 64 bits with a sign hold.
    Integer(i64),
    /// A larger integer.
    Unsigned(u64),
    /// A float.
    Float(f64),
    /// A string.
    Str(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// An array of values.
    Array(Vec<Value>),
    /// A map, its entries in their order.
    Map(Vec<(Value, Value)>),
    /// An id: a map with the one key `__uuid_bin__` or `__uuid__`.
    Id(MessageId),
    /// An array of numbers: a map with the three keys `__ndarray__`, `dtype` and `shape`.
    Numbers(Box<Array>),
    /// Bytes with an application's tag.
    Extension(i8, Vec<u8>),
}

impl Value {
    /// The value of a key of a map: the last one, if the key is there more than once.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Value::Map(entries) = self else { return None };
        let is_key = |(name, _): &&(Value, Value)| matches!(name, Value::Str(name) if name == key);
        entries.iter().rev().find(is_key).map(|(_, value)| value)
    }
}

impl WireField for Value {
    fn encode(&self, encoder: &mut Encoder<'_>) {
        match self {
            Value::Nil => encoder.nil(),
            Value::Bool(value) => encoder.bool(*value),
            Value::Integer(value) => encoder.signed(*value),
            Value::Unsigned(value) => encoder.unsigned(*value),
            Value::Float(value) => encoder.f64(*value),
            Value::Str(value) => encoder.str(value),
            Value::Bytes(value) => encoder.bytes(value),
            Value::Array(values) => Value::encode_slice(values, encoder),
            Value::Map(entries) => encoder.map(entries.len(), |encoder| {
                for (key, value) in entries {
                    key.encode(encoder);
                    value.encode(encoder);
                }
            }),
            Value::Id(id) => encoder.id(*id),
            Value::Numbers(array) => array.encode(encoder),
            Value::Extension(tag, value) => encoder.extension(*tag, value),
        }
    }

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(match decoder.kind()? {
            // Of the reserved byte it is the error.
            Kind::Nil | Kind::Reserved => {
                decoder.skip()?;
                Value::Nil
            }
            Kind::Bool => Value::Bool(decoder.bool()?),
            Kind::Integer => {
                let value = decoder.integer::<i128>("an integer")?;
                i64::try_from(value).map_or(Value::Unsigned(value as u64), Value::Integer)
            }
            Kind::Float => Value::Float(decoder.f64()?),
            Kind::Str => Value::Str(String::decode(decoder)?),
            Kind::Bytes => Value::Bytes(Vec::decode(decoder)?),
            Kind::Array => Value::Array(Value::decode_vec(decoder)?),
            Kind::Map => decode_map(decoder)?,
            Kind::Extension => {
                let (tag, bytes) = decoder.extension()?;
                decoder.claim_memory::<u8>(bytes.len())?;
                Value::Extension(tag, bytes.to_vec())
            }
        })
    }

    fn missing() -> Option<Self> {
        Some(Value::Nil)
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Value::Str(value) => value.len(),
            Value::Bytes(value) | Value::Extension(_, value) => value.len(),
            Value::Array(values) => values.heap_bytes(),
            Value::Map(entries) => {
                let own = size_of_val(entries.as_slice());
                let of = |(key, value): &(Value, Value)| key.heap_bytes() + value.heap_bytes();
                own + entries.iter().map(of).sum::<usize>()
            }
            Value::Numbers(array) => array.heap_bytes(),
            _ => 0,
        }
    }
}

fn decode_map(decoder: &mut Decoder<'_>) -> Result<Value, DecodeError> {
    let entries = decoder.map(|decoder, length| {
        decoder.claim_memory::<(Value, Value)>(length)?;
        let mut entries = Vec::with_capacity(length);
        for _ in 0..length {
            entries.push((Value::decode(decoder)?, Value::decode(decoder)?));
        }
        Ok(entries)
    })?;
    Ok(special(&entries).unwrap_or(Value::Map(entries)))
}

/// What a map stands for, if it is exactly one of the forms that stand for something else.
fn special(entries: &[(Value, Value)]) -> Option<Value> {
    match entries {
        [(Value::Str(key), value)] => match (key.as_str(), value) {
            (keys::ID_BYTES, Value::Bytes(bytes)) => {
                Some(Value::Id(MessageId::from_bytes(bytes.as_slice().try_into().ok()?)))
            }
            (keys::ID_TEXT, Value::Str(text)) => Some(Value::Id(text.parse().ok()?)),
            _ => None,
        },
        [_, _, _] => {
            let value = |name| {
                entries.iter().find_map(|(key, value)| match key {
                    Value::Str(key) if key == name => Some(value),
                    _ => None,
                })
            };
            let (Value::Bytes(bytes), Value::Str(dtype), Value::Array(shape)) =
                (value(keys::ARRAY_BYTES)?, value(keys::ARRAY_DTYPE)?, value(keys::ARRAY_SHAPE)?)
            else {
                return None;
            };
            let length = |value: &Value| match value {
                Value::Integer(length) => usize::try_from(*length).ok(),
                _ => None,
            };
            let shape = shape.iter().map(length).collect::<Option<Vec<_>>>()?;
            let array = Array::from_bytes(dtype.clone(), shape, bytes).ok()?;
            Some(Value::Numbers(Box::new(array)))
        }
        _ => None,
    }
}
