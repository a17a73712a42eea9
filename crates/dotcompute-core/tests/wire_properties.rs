//! Whatever the values, reading gives back what was written; whatever the bytes, reading ends in a
//! message or in an error.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::collections::BTreeMap;

use dotcompute_core::wire::{self, Array, Value, WireField};
use dotcompute_core::{Envelope, Message, MessageId};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Clone, Debug, PartialEq, Message)]
#[message(crate = "dotcompute_core")]
struct Inner {
    small: i16,
    ratio: f32,
    words: Vec<Option<String>>,
}

#[derive(Clone, Debug, PartialEq, Message)]
#[message(crate = "dotcompute_core")]
struct Outer {
    flag: bool,
    number: i64,
    natural: u64,
    float: f64,
    text: String,
    blob: Vec<u8>,
    inner: Vec<Inner>,
    table: BTreeMap<String, (u8, Option<i32>)>,
    sender: Option<MessageId>,
    samples: Array,
    rest: Value,
}

/// Floats that equal themselves.
fn float() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("NaN", |value| !value.is_nan())
}

fn array() -> impl Strategy<Value = Array> {
    vec(any::<f32>(), 0..20).prop_map(|values| Array::new(&[values.len(), 1], &values).unwrap())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Integer),
        (1u64 << 63..).prop_map(Value::Unsigned),
        float().prop_map(Value::Float),
        any::<String>().prop_map(Value::Str),
        vec(any::<u8>(), 0..300).prop_map(Value::Bytes),
        any::<u128>().prop_map(|bits| Value::Id(MessageId::from_u128(bits))),
        array().prop_map(|array| Value::Numbers(Box::new(array))),
        (any::<i8>(), vec(any::<u8>(), 0..40)).prop_map(|(tag, b)| Value::Extension(tag, b)),
    ];
    leaf.prop_recursive(5, 100, 20, |element| {
        prop_oneof![
            vec(element.clone(), 0..20).prop_map(Value::Array),
            vec((element.clone(), element), 0..10).prop_map(Value::Map),
        ]
    })
}

fn inner() -> impl Strategy<Value = Inner> {
    let ratio = any::<f32>().prop_filter("NaN", |value| !value.is_nan());
    (any::<i16>(), ratio, vec(any::<Option<String>>(), 0..5))
        .prop_map(|(small, ratio, words)| Inner { small, ratio, words })
}

fn outer() -> impl Strategy<Value = Outer> {
    let numbers = (any::<bool>(), any::<i64>(), any::<u64>(), float());
    let table = btree_map(any::<String>(), any::<(u8, Option<i32>)>(), 0..5);
    let texts = (any::<String>(), vec(any::<u8>(), 0..300), vec(inner(), 0..20), table);
    (numbers, texts, any::<Option<u128>>(), array(), value()).prop_map(
        |((flag, number, natural, float), (text, blob, inner, table), sender, samples, rest)| {
            let sender = sender.map(MessageId::from_u128);
            Outer { flag, number, natural, float, text, blob, inner, table, sender, samples, rest }
        },
    )
}

fn envelope() -> impl Strategy<Value = Envelope<Outer>> {
    (outer(), any::<u128>(), any::<u8>(), any::<Option<u128>>()).prop_map(
        |(message, id, priority, correlation)| {
            let mut envelope =
                Envelope::new(message).with_id(MessageId::from_u128(id)).with_priority(priority);
            envelope.correlation_id = correlation.map(MessageId::from_u128);
            envelope
        },
    )
}

/// Reads bytes from anyone: an error points into them; what is read can be written, and is then
/// read as the same (compared as bytes, since a NaN does not equal itself).
fn read_safely<T: WireField>(bytes: &[u8]) {
    match wire::decode_value::<T>(bytes) {
        Ok(value) => {
            let written = wire::encode_value(&value).unwrap();
            let again = wire::decode_value::<T>(&written).unwrap();
            assert_eq!(wire::encode_value(&again).unwrap(), written);
        }
        Err(error) => assert!(error.offset() <= bytes.len(), "{error}"),
    }
}

fn read_in_every_way(bytes: &[u8]) {
    read_safely::<Value>(bytes);
    read_safely::<Outer>(bytes);
    let type_name = wire::peek_type(bytes);
    match wire::decode::<Outer>(bytes) {
        Ok(read) => {
            assert!(matches!(type_name, Ok(None | Some("Outer"))));
            let again = wire::decode::<Outer>(&wire::encode(&read).unwrap()).unwrap();
            assert_eq!(again.id, read.id);
            assert_eq!(again.priority, read.priority);
        }
        Err(error) => assert!(error.offset() <= bytes.len(), "{error}"),
    }
}

/// One change of some bytes.
#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, Index),
    Cut(Index),
    Repeat(Index, Index),
}

impl Change {
    fn apply(self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let at = |index: Index| index.index(bytes.len());
        let range = |a, b| at(a).min(at(b))..at(a).max(at(b));
        match self {
            Change::Set(index, byte) => {
                let at = at(index);
                bytes[at] = byte;
            }
            Change::Insert(index, more) => {
                let at = at(index);
                bytes.splice(at..at, more);
            }
            Change::Remove(a, b) => drop(bytes.drain(range(a, b))),
            Change::Cut(index) => bytes.truncate(at(index)),
            Change::Repeat(a, b) => {
                let range = range(a, b);
                let part = bytes[range.clone()].to_vec();
                bytes.splice(range.start..range.start, part);
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => any::<(Index, u8)>().prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => (any::<Index>(), vec(any::<u8>(), 1..6)).prop_map(|(at, more)| Change::Insert(at, more)),
        1 => any::<(Index, Index)>().prop_map(|(a, b)| Change::Remove(a, b)),
        1 => any::<Index>().prop_map(Change::Cut),
        1 => any::<(Index, Index)>().prop_map(|(a, b)| Change::Repeat(a, b)),
    ]
}

proptest! {
    #[test]
    fn a_message_comes_back_as_it_was(sent in envelope()) {
        let bytes = wire::encode(&sent).unwrap();
        let read = wire::decode::<Outer>(&bytes).unwrap();
        prop_assert_eq!(read.id, sent.id);
        prop_assert_eq!(read.priority, sent.priority);
        prop_assert_eq!(read.correlation_id, sent.correlation_id);
        prop_assert_eq!(read.message, sent.message);
        prop_assert_eq!(wire::peek_type(&bytes), Ok(Some("Outer")));
    }

    #[test]
    fn a_value_comes_back_as_it_was(sent in value()) {
        let bytes = wire::encode_value(&sent).unwrap();
        prop_assert_eq!(wire::decode_value::<Value>(&bytes), Ok(sent));
    }

    #[test]
    fn a_message_that_is_cut_off_is_an_error(sent in envelope(), end in any::<Index>()) {
        let bytes = wire::encode(&sent).unwrap();
        let cut = &bytes[..end.index(bytes.len())];
        prop_assert!(wire::decode::<Outer>(cut).is_err());
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        read_in_every_way(&bytes);
    }

    #[test]
    fn changed_messages_are_read_or_refused(
        sent in envelope(),
        changes in vec(change(), 1..8),
    ) {
        let mut bytes = wire::encode(&sent).unwrap();
        for change in changes {
            change.apply(&mut bytes);
            read_in_every_way(&bytes);
        }
    }
}
