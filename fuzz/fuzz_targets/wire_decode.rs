//! Reads any bytes as a message: that ends in a message or in an error, within its bounds, and what
//! was read can be written and read again.

#![no_main]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use dotcompute_core::wire::{self, Array, Limits, Value, WireField};
use dotcompute_core::{Message, MessageId};
use libfuzzer_sys::fuzz_target;

/// A field of each kind. The names are those of the seeds.
#[derive(Message)]
#[message(crate = "dotcompute_core")]
struct Everything {
    flag: bool,
    small: i8,
    tall: u64,
    deep: i64,
    whole: f64,
    single: f32,
    text: String,
    blob: Vec<u8>,
    listed_blob: [u8; 3],
    names: Vec<String>,
    grid: Vec<[u32; 2]>,
    pair: (i32, String),
    ranks: BTreeMap<String, f64>,
    nested: Box<Nested>,
    origin: MessageId,
    matrix: Array,
    scalar: Arc<Array>,
    anything: Value,
    absent: Option<BTreeMap<String, usize>>,
    #[message(default)]
    defaulted: isize,
}

#[derive(Message)]
#[message(crate = "dotcompute_core")]
struct Nested {
    x: f64,
    y: f32,
    next: Option<Box<Nested>>,
}

/// Reads a value; what is read is written, and then read and written as the same.
fn round_trip<T: WireField>(bytes: &[u8]) {
    match wire::decode_value::<T>(bytes) {
        Ok(value) => {
            let written = wire::encode_value(&value).expect("what was read can be written");
            let again = wire::decode_value::<T>(&written).expect("what was written can be read");
            assert_eq!(wire::encode_value(&again).as_ref(), Ok(&written));
        }
        Err(error) => assert!(error.offset() <= bytes.len(), "{error}"),
    }
}

fuzz_target!(|bytes: &[u8]| {
    round_trip::<Value>(bytes);
    round_trip::<Everything>(bytes);
    round_trip::<Nested>(bytes);
    round_trip::<Vec<Option<Array>>>(bytes);
    // Not compared when written, since it has no order.
    let _ = wire::decode_value::<HashMap<String, Option<u8>>>(bytes);
    let type_name = wire::peek_type(bytes);
    if let Ok(envelope) = wire::decode::<Everything>(bytes) {
        assert!(matches!(type_name, Ok(None | Some("Everything"))));
        wire::encode(&envelope).expect("what was read can be written");
    }
    let tight = Limits { bytes: 4096, memory_bytes: 256 };
    if wire::decode_within::<Everything>(bytes, &tight).is_ok() {
        assert!(wire::decode::<Everything>(bytes).is_ok(), "a tighter limit accepts no more");
    }
});
