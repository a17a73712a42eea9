//! The bytes of the wire format: ours by hand, and Python's from the fixtures that
//! `fixtures/make.py` wrote.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use dotcompute_core::wire::{self, Array, DecodeErrorKind, EncodeError, Limits, Value};
use dotcompute_core::{Envelope, Message, MessageId};

const ID: MessageId = MessageId::from_u128(0x0123_4567_89ab_4cde_8f01_2345_6789_abcd);
const ASKED: MessageId = MessageId::from_u128(0xfedc_ba98_7654_4321_8fed_cba9_8765_4321);

#[derive(Clone, Debug, PartialEq, Message)]
#[message(crate = "dotcompute_core")]
struct Reading {
    sensor: String,
    celsius: f64,
    count: u16,
}

fn reading() -> Reading {
    Reading { sensor: "Dach süd".into(), celsius: 21.5, count: 3 }
}

#[derive(Debug, PartialEq, Message)]
#[message(crate = "dotcompute_core")]
struct Nested {
    x: f64,
    y: f32,
}

#[derive(Debug, PartialEq, Message)]
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
    absent: Option<HashMap<String, usize>>,
    #[message(default)]
    defaulted: isize,
}

fn everything() -> Everything {
    let text = |text: &str| Value::Str(text.into());
    Everything {
        flag: true,
        small: -32,
        tall: u64::MAX,
        deep: i64::MIN,
        whole: 7.0,
        single: 0.1,
        text: "ä".repeat(300),
        blob: (0..=255).collect(),
        listed_blob: [1, 2, 255],
        names: vec!["a".into(), "b".into()],
        grid: vec![[1, 2], [3, 4], [5, 6]],
        pair: (1, "one".into()),
        ranks: [("a".into(), 0.25), ("b".into(), 0.75)].into(),
        nested: Box::new(Nested { x: 1.0, y: -2.0 }),
        origin: ASKED,
        matrix: Array::new(&[2, 3], &[0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap(),
        scalar: Arc::new(Array::new(&[], &[2.5f64]).unwrap()),
        anything: Value::Map(vec![
            (
                text("list"),
                Value::Array(vec![
                    Value::Integer(1),
                    Value::Nil,
                    Value::Bytes(b"x".to_vec()),
                    Value::Float(1.5),
                ]),
            ),
            (text("id"), Value::Id(ID)),
            (text("empty"), Value::Map(vec![])),
        ]),
        absent: None,
        defaulted: 0,
    }
}

#[test]
fn a_message_has_the_bytes_of_the_contract() {
    let message = Envelope::new(reading()).with_id(ID).with_priority(200);
    let mut expected = vec![0x87]; // a map of 3 fields and 4 entries of the envelope
    expected.extend(b"\xa6sensor\xa9Dach s\xc3\xbcd");
    expected.extend(b"\xa7celsius\xcb\x40\x35\x80\0\0\0\0\0");
    expected.extend(b"\xa5count\x03");
    expected.extend(b"\xaamessage_id\x81\xac__uuid_bin__\xc4\x10");
    expected.extend(b"\x01\x23\x45\x67\x89\xab\x4c\xde\x8f\x01\x23\x45\x67\x89\xab\xcd");
    expected.extend(b"\xa8priority\xcc\xc8");
    expected.extend(b"\xaecorrelation_id\xc0");
    expected.extend(b"\xa8__type__\xa7Reading");
    assert_eq!(wire::encode(&message).unwrap(), expected);

    let mut appended = b"before".to_vec();
    wire::encode_into(&message, &mut appended).unwrap();
    assert_eq!(appended, [b"before", expected.as_slice()].concat());
}

#[test]
fn a_message_is_written_as_python_writes_it() {
    let message = Envelope::new(reading()).with_id(ID);
    let python: &[u8] = include_bytes!("fixtures/reading.msgpack");
    assert_eq!(wire::encode(&message).unwrap(), python);
}

#[test]
fn every_type_is_read_as_python_writes_it() {
    let python = include_bytes!("fixtures/everything.msgpack");
    let read = wire::decode::<Everything>(python).unwrap();
    assert_eq!(read.id, ID);
    assert_eq!(read.priority, 255);
    assert_eq!(read.correlation_id, Some(ASKED));
    assert_eq!(read.message, everything());

    let again = wire::decode::<Everything>(&wire::encode(&read).unwrap()).unwrap();
    assert_eq!(again.correlation_id, Some(ASKED));
    assert_eq!(again.message, everything());
}

#[test]
fn a_message_of_any_type_is_read_as_a_value() {
    let value: Value = wire::decode_value(include_bytes!("fixtures/everything.msgpack")).unwrap();
    assert_eq!(value.get("message_id"), Some(&Value::Id(ID)));
    assert_eq!(value.get("origin"), Some(&Value::Id(ASKED)));
    assert_eq!(value.get("tall"), Some(&Value::Unsigned(u64::MAX)));
    let numbers = Array::new(&[2, 3], &[0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    assert_eq!(value.get("matrix"), Some(&Value::Numbers(Box::new(numbers))));
    assert!(matches!(value.get("when"), Some(Value::Extension(-1, _))));
    assert_eq!(value.get("nobody"), None);
}

#[test]
fn ids_are_read_in_every_form_that_python_reads() {
    let python = include_bytes!("fixtures/lenient.msgpack");
    let read = wire::decode::<Reading>(python).unwrap();
    assert_eq!(read.id, ID);
    assert_eq!(read.priority, 0);
    assert_eq!(read.correlation_id, Some(ASKED));
    assert_eq!(wire::peek_type(python).unwrap(), None);

    let text = ID.to_string();
    let bytes = ID.to_bytes();
    let forms: [&[u8]; 5] = [
        &[b"\xd9\x24", text.as_bytes()].concat(),
        &[b"\xc4\x10", &bytes[..]].concat(),
        &[b"\x81\xa8__uuid__\xd9\x24", text.as_bytes()].concat(),
        &[b"\x82\xa1?\x90\xac__uuid_bin__\xc4\x10", &bytes[..]].concat(),
        &[b"\x81\xac__uuid_bin__\xc5\x00\x10", &bytes[..]].concat(),
    ];
    for form in forms {
        assert_eq!(wire::decode_value::<MessageId>(form), Ok(ID), "{form:x?}");
    }
    for wrong in [&b"\xa3abc"[..], b"\xc4\x01x", b"\x80", b"\xc0", b"\x81\xac__uuid_bin__\x80"] {
        wire::decode_value::<MessageId>(wrong).unwrap_err();
    }
}

#[derive(Debug, Message)]
#[message(crate = "dotcompute_core")]
struct Matrix {
    matrix: Array,
}

#[test]
fn arrays_of_array_messages_are_read_or_say_why_not() {
    let inline = wire::decode::<Matrix>(include_bytes!("fixtures/fallback.msgpack")).unwrap();
    assert_eq!(inline.message.matrix.view::<i64>().unwrap(), [0, 1, 2]);

    let error = wire::decode::<Matrix>(include_bytes!("fixtures/reference.msgpack")).unwrap_err();
    assert_eq!(error.kind(), &DecodeErrorKind::ArrayReference);
    assert_eq!(error.field(), Some(("Matrix", "matrix")));
}

#[test]
fn arrays_whose_parts_do_not_fit_are_refused() {
    let array = |shape: &[usize], dtype: &str, bytes: &[u8]| {
        Array::from_bytes(dtype.to_owned(), shape.to_vec(), bytes).map(|array| array.bytes().len())
    };
    for (shape, dtype, bytes) in [
        (&[][..], "float64", 8),
        (&[0, usize::MAX, usize::MAX], "float64", 0),
        (&[2], "complex128", 32),
        (&[2], "<U3", 24),
        (&[2], ">f4", 8),
        (&[2], "[('a', '<f4'), ('b', '<i8')]", 24),
    ] {
        assert_eq!(array(shape, dtype, &vec![0; bytes]), Ok(bytes), "{shape:?} {dtype}");
    }
    for (shape, dtype, bytes) in [
        (&[][..], "float64", 7),
        (&[usize::MAX, 2], "uint8", 0),
        (&[usize::MAX / 2], "float64", 0),
        (&[0], "object", 24),
        (&[5], "object", 24),
        (&[1; 65], "uint8", 1),
    ] {
        assert!(array(shape, dtype, &vec![0; bytes]).is_err(), "{shape:?} {dtype}");
    }
}

#[test]
fn keys_that_are_not_known_are_dropped_and_the_last_of_equal_keys_counts() {
    let bytes = b"\x85\xa5count\x01\xa7unknown\x81\x01\x92\xc0\xc3\xa6sensor\xa1a\
                  \xa7celsius\x02\xa5count\x05";
    let read = wire::decode::<Reading>(bytes).unwrap();
    assert_eq!(read.message, Reading { sensor: "a".into(), celsius: 2.0, count: 5 });
    assert_eq!((read.priority, read.correlation_id), (128, None));
}

/// The text of the error of reading `bytes` as a `Reading`.
fn error_of(bytes: &[u8]) -> String {
    wire::decode::<Reading>(bytes).unwrap_err().to_string()
}

#[test]
fn errors_say_what_where_and_what_was_expected() {
    let python = include_bytes!("fixtures/reading.msgpack");
    for (bytes, expected) in [
        (&b""[..], "byte 0: 1 more bytes expected, but the message ends"),
        (b"\x90", "byte 0: expected a map, found an array"),
        (b"\x80", "byte 0: the field `sensor` is missing (field `sensor` of `Reading`)"),
        (b"\x81\x01\x02", "byte 1: expected a string, found an integer"),
        (
            b"\x81\xa5count\xcd\xff\xff",
            "byte 0: the field `sensor` is missing (field `sensor` of `Reading`)",
        ),
        (
            b"\x81\xa5count\xce\x00\x01\x00\x00",
            "byte 7: expected an integer of type u16, found the number 65536, which it does not \
             hold (field `count` of `Reading`)",
        ),
        (
            b"\x81\xa5count\xff",
            "byte 7: expected an integer of type u16, found the number -1, which it does not hold \
             (field `count` of `Reading`)",
        ),
        (
            b"\x81\xa5count\xcb\x40\x08\0\0\0\0\0\0",
            "byte 7: expected an integer of type u16, found a float (field `count` of `Reading`)",
        ),
        (
            b"\x81\xa6sensor\xa2\xff\xfe",
            "byte 8: expected a string in UTF-8 (field `sensor` of `Reading`)",
        ),
        (
            b"\x81\xa6sensor\xdb\xff\xff\xff\xffab",
            "byte 13: 4294967293 more bytes expected, but the message ends \
             (field `sensor` of `Reading`)",
        ),
        (b"\xdf\xff\xff\xff\xff", "byte 0: 8589934590 more bytes expected, but the message ends"),
        (
            b"\x81\xa8priority\xcd\x01\x00",
            "byte 10: expected a priority of 0 to 255, found the number 256, which it does not \
             hold (field `priority` of `Reading`)",
        ),
        (
            b"\x81\xaamessage_id\xc0",
            "byte 12: expected a UUID, found nil (field `message_id` of `Reading`)",
        ),
        (b"\x81\xa1x\xc1", "byte 3: expected a value, found the reserved byte 0xc1"),
        (
            b"\x81\xa8__type__\xa5Other",
            "byte 0: expected a message of type `Reading`, found `Other`",
        ),
        (
            &[&python[..], b"\0\0"].concat(),
            &format!("byte {}: 2 bytes follow the end of the message", python.len()),
        ),
    ] {
        assert_eq!(error_of(bytes), expected, "{bytes:x?}");
    }
}

#[test]
fn the_innermost_field_is_named() {
    let error = wire::decode::<Everything>(b"\x81\xa6nested\x81\xa1x\xc3").unwrap_err();
    assert_eq!(error.field(), Some(("Nested", "x")));
    assert_eq!(error.offset(), 11);
}

#[test]
fn numbers_are_read_from_any_form_that_holds_them() {
    for form in [
        &b"\x07"[..],
        b"\xcc\x07",
        b"\xcd\x00\x07",
        b"\xce\x00\x00\x00\x07",
        b"\xcf\x00\x00\x00\x00\x00\x00\x00\x07",
        b"\xd0\x07",
        b"\xd1\x00\x07",
        b"\xd2\x00\x00\x00\x07",
        b"\xd3\x00\x00\x00\x00\x00\x00\x00\x07",
    ] {
        assert_eq!(wire::decode_value::<u8>(form), Ok(7));
        assert_eq!(wire::decode_value::<i64>(form), Ok(7));
        assert_eq!(wire::decode_value::<f32>(form), Ok(7.0));
    }
    assert_eq!(wire::decode_value::<f64>(b"\xca\x3f\xc0\x00\x00"), Ok(1.5));
    let max = wire::encode_value(&f64::MAX).unwrap();
    assert_eq!(
        wire::decode_value::<f32>(&max).unwrap_err().to_string().split(',').next(),
        Some("byte 0: expected a float of single precision")
    );
    let infinite = wire::encode_value(&f64::NEG_INFINITY).unwrap();
    assert_eq!(wire::decode_value::<f32>(&infinite), Ok(f32::NEG_INFINITY));
}

#[test]
fn integers_are_written_in_their_shortest_form() {
    for (value, bytes) in [
        (0i64, &b"\x00"[..]),
        (127, b"\x7f"),
        (128, b"\xcc\x80"),
        (255, b"\xcc\xff"),
        (256, b"\xcd\x01\x00"),
        (65_536, b"\xce\x00\x01\x00\x00"),
        (1 << 32, b"\xcf\x00\x00\x00\x01\x00\x00\x00\x00"),
        (-1, b"\xff"),
        (-32, b"\xe0"),
        (-33, b"\xd0\xdf"),
        (-128, b"\xd0\x80"),
        (-129, b"\xd1\xff\x7f"),
        (-32_769, b"\xd2\xff\xff\x7f\xff"),
        (i64::MIN, b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00"),
    ] {
        assert_eq!(wire::encode_value(&value).unwrap(), bytes, "{value}");
        assert_eq!(wire::decode_value::<i64>(bytes), Ok(value));
    }
}

#[test]
fn lengths_are_written_in_their_shortest_form() {
    for (length, header) in [
        (0, &b"\xa0"[..]),
        (31, b"\xbf"),
        (32, b"\xd9\x20"),
        (255, b"\xd9\xff"),
        (256, b"\xda\x01\x00"),
        (65_535, b"\xda\xff\xff"),
        (65_536, b"\xdb\x00\x01\x00\x00"),
    ] {
        let text = "x".repeat(length);
        let bytes = wire::encode_value(&text).unwrap();
        assert_eq!(&bytes[..bytes.len() - length], header);
        assert_eq!(wire::decode_value::<String>(&bytes), Ok(text));
    }
    for (length, header) in
        [(15, &b"\x9f"[..]), (16, b"\xdc\x00\x10"), (65_536, b"\xdd\x00\x01\x00\x00")]
    {
        let flags = vec![true; length];
        let bytes = wire::encode_value(&flags).unwrap();
        assert_eq!(&bytes[..bytes.len() - length], header);
        assert_eq!(wire::decode_value::<Vec<bool>>(&bytes), Ok(flags));
    }
    for (length, header) in [
        (0, &b"\xc4\x00"[..]),
        (255, b"\xc4\xff"),
        (256, b"\xc5\x01\x00"),
        (65_536, b"\xc6\x00\x01\x00\x00"),
    ] {
        let bytes = wire::encode_value(&vec![7u8; length]).unwrap();
        assert_eq!(&bytes[..bytes.len() - length], header);
    }
}

/// A message that nests as deep as one likes.
#[derive(Debug, PartialEq, Message)]
#[message(crate = "dotcompute_core")]
struct Chain {
    next: Option<Box<Chain>>,
}

fn chain(links: usize) -> Chain {
    (1..links).fold(Chain { next: None }, |chain, _| Chain { next: Some(Box::new(chain)) })
}

#[test]
fn nesting_ends_at_64_levels_for_writers_and_readers() {
    let deepest = Envelope::new(chain(wire::MAX_DEPTH));
    let bytes = wire::encode(&deepest).unwrap();
    assert_eq!(wire::decode::<Chain>(&bytes).unwrap().message, deepest.message);

    let mut out = b"kept".to_vec();
    let too_deep = Envelope::new(chain(wire::MAX_DEPTH + 1));
    assert_eq!(wire::encode_into(&too_deep, &mut out), Err(EncodeError::TooDeep));
    assert_eq!(out, b"kept");

    let links = b"\x81\xa4next".repeat(65);
    let error = wire::decode::<Chain>(&[&links[..], b"\xc0"].concat()).unwrap_err();
    assert_eq!(error.kind(), &DecodeErrorKind::TooDeep);
}

#[test]
fn depth_bombs_are_refused_as_fields_values_and_unknown_keys() {
    for bomb in [vec![0x91; 1 << 20], b"\x81\xa1k".repeat(1 << 18), b"\x81".repeat(1 << 20)] {
        let error = wire::decode_value::<Value>(&bomb).unwrap_err();
        assert_eq!(error.kind(), &DecodeErrorKind::TooDeep);
        let unknown = [&b"\x81\xa7unknown"[..], &bomb].concat();
        let error = wire::decode::<Reading>(&unknown).unwrap_err();
        assert_eq!(error.kind(), &DecodeErrorKind::TooDeep);
    }
}

#[test]
fn length_bombs_are_refused_before_memory_is_taken() {
    // Each claims 2^32 - 1 elements or bytes and has a few.
    for bomb in [
        &b"\xdd\xff\xff\xff\xff\xc0\xc0"[..],
        b"\xdf\xff\xff\xff\xff\xa1a\xc0",
        b"\xc6\xff\xff\xff\xffabc",
        b"\xdb\xff\xff\xff\xffabc",
        b"\xc9\xff\xff\xff\xff\x01abc",
    ] {
        let is_end = |kind: &DecodeErrorKind| matches!(kind, DecodeErrorKind::End { .. });
        assert!(is_end(wire::decode_value::<Value>(bomb).unwrap_err().kind()));
        let unknown = [&b"\x81\xa7unknown"[..], bomb].concat();
        assert!(is_end(wire::decode::<Reading>(&unknown).unwrap_err().kind()));
    }
}

#[test]
fn elements_that_grow_when_read_are_counted_against_the_memory_limit() {
    // 1 MiB of nils would become 800 MiB of arrays.
    let count = 1u32 << 20;
    let mut bomb = b"\xdd".to_vec();
    bomb.extend(count.to_be_bytes());
    bomb.resize(bomb.len() + count as usize, 0xc0);
    let error = wire::decode_value::<Vec<Option<[u64; 100]>>>(&bomb).unwrap_err();
    assert_eq!(error.kind(), &DecodeErrorKind::Memory { limit_bytes: 256 << 20 });
    assert!(wire::decode_value::<Vec<Option<u64>>>(&bomb).is_ok());
}

#[test]
fn limits_hold_for_writers_and_readers() {
    let message = Envelope::new(Reading { sensor: "x".repeat(1000), celsius: 0.0, count: 0 });
    let bytes = wire::encode(&message).unwrap();
    let tight = Limits { bytes: bytes.len(), ..Limits::default() };
    let short = Limits { bytes: bytes.len() - 1, ..Limits::default() };

    let mut out = Vec::new();
    wire::encode_within(&message, &mut out, &tight).unwrap();
    assert_eq!(out, bytes);
    out.clear();
    let error = wire::encode_within(&message, &mut out, &short);
    assert_eq!(error, Err(EncodeError::TooLarge { limit_bytes: bytes.len() - 1 }));
    assert!(out.is_empty());

    assert!(wire::decode_within::<Reading>(&bytes, &tight).is_ok());
    let error = wire::decode_within::<Reading>(&bytes, &short).unwrap_err();
    let (found_bytes, limit_bytes) = (bytes.len(), bytes.len() - 1);
    assert_eq!(error.kind(), &DecodeErrorKind::TooLarge { found_bytes, limit_bytes });

    let small = Limits { memory_bytes: 999, ..Limits::default() };
    let error = wire::decode_within::<Reading>(&bytes, &small).unwrap_err();
    assert_eq!(error.kind(), &DecodeErrorKind::Memory { limit_bytes: 999 });
}

#[test]
fn names_priorities_keys_and_skipped_fields_are_as_declared() {
    const URGENT: u8 = 230;

    #[derive(Debug, PartialEq, Message)]
    #[message(crate = "dotcompute_core", name = "lab.Alarm", priority = URGENT)]
    struct Alarm {
        #[message(rename = "type")]
        kind: String,
        #[message(default)]
        r#loop: u32,
        #[message(skip)]
        seen: bool,
    }

    #[derive(Debug, PartialEq, Message)]
    #[message(crate = "dotcompute_core")]
    struct Tick;

    let alarm = Envelope::new(Alarm { kind: "fire".into(), r#loop: 7, seen: true });
    assert_eq!(alarm.priority, 230);
    let bytes = wire::encode(&alarm).unwrap();
    let value: Value = wire::decode_value(&bytes).unwrap();
    assert_eq!(value.get("type"), Some(&Value::Str("fire".into())));
    assert_eq!(value.get("loop"), Some(&Value::Integer(7)));
    assert_eq!(value.get("seen"), None);
    assert_eq!(value.get("__type__"), Some(&Value::Str("lab.Alarm".into())));
    let read = wire::decode::<Alarm>(&bytes).unwrap();
    assert_eq!(read.message, Alarm { seen: false, ..alarm.message });

    let read = wire::decode::<Alarm>(b"\x81\xa4type\xa0").unwrap();
    assert_eq!(read.priority, 230, "the default of the type, not of the format");
    assert_eq!(read.message, Alarm { kind: String::new(), r#loop: 0, seen: false });

    let tick = wire::encode(&Envelope::new(Tick)).unwrap();
    assert_eq!(wire::decode::<Tick>(&tick).unwrap().message, Tick);
}

#[test]
fn generic_messages_and_messages_without_a_wire_format() {
    #[derive(Debug, PartialEq, Message)]
    #[message(crate = "dotcompute_core")]
    struct Batch<T> {
        items: Vec<T>,
    }

    #[derive(Message)]
    #[message(no_wire, crate = "dotcompute_core")]
    enum Command<F: Fn()> {
        Run(F),
    }

    let batch = Envelope::new(Batch { items: vec![1u32, 2] });
    let bytes = wire::encode(&batch).unwrap();
    assert_eq!(wire::decode::<Batch<u32>>(&bytes).unwrap().message, batch.message);
    let Command::Run(run) = Envelope::new(Command::Run(|| ())).message;
    run();
}

#[test]
fn payload_bytes_count_what_a_message_owns() {
    let empty = Reading { sensor: String::new(), ..reading() }.payload_bytes();
    assert_eq!(empty, size_of::<Reading>());
    let large = Matrix { matrix: Array::from(&[0.0f64; 1000][..]) };
    assert_eq!(large.payload_bytes(), size_of::<Matrix>() + 8000);
}
