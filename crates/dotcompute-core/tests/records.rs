//! Records: layout, slots and bytes.

#![forbid(unsafe_code)]

use dotcompute_core::record::{ElementType, Plain, Record, RecordField, RecordLayout};
use dotcompute_core::{Envelope, Message, wire};

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(crate = "dotcompute_core", record, name = "sim.Body")]
#[repr(C)]
struct Body {
    position: [f64; 3],
    id: u32,
    kind: u8,
    #[message(skip)]
    _padding: [u8; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(crate = "dotcompute_core", record)]
#[repr(C)]
struct Collision {
    bodies: [Body; 2],
    impulse: f32,
    r#type: i32,
}

fn collision() -> Collision {
    let body = |id| Body { position: [1.0, -2.0, 0.5], id, kind: 3, _padding: [0; 3] };
    Collision { bodies: [body(1), body(2)], impulse: 0.25, r#type: -7 }
}

#[test]
fn the_layout_names_every_field_and_its_place() {
    const ROW: ElementType = ElementType::Array { element: &ElementType::F64, length: 3 };
    const PADDING: ElementType = ElementType::Array { element: &ElementType::U8, length: 3 };
    let layout = Body::LAYOUT;
    assert_eq!(layout.name, "sim.Body");
    assert_eq!((layout.bytes, layout.align_bytes), (32, 8));
    assert_eq!(
        layout.fields,
        [
            RecordField { name: "position", element: ROW, offset: 0, bytes: 24 },
            RecordField { name: "id", element: ElementType::U32, offset: 24, bytes: 4 },
            RecordField { name: "kind", element: ElementType::U8, offset: 28, bytes: 1 },
            RecordField { name: "_padding", element: PADDING, offset: 29, bytes: 3 },
        ]
    );
    let [bodies, _, kind] = Collision::LAYOUT.fields else { panic!() };
    let ElementType::Array { element, length: 2 } = bodies.element else { panic!() };
    assert_eq!(*element, ElementType::Record(Body::LAYOUT));
    assert_eq!(*element, Body::ELEMENT);
    assert_eq!((kind.name, kind.offset), ("type", 68));
}

#[test]
fn slots_are_counted_by_56_bytes_of_payload() {
    #[derive(Clone, Copy, Message)]
    #[message(crate = "dotcompute_core", record, no_wire)]
    #[repr(C)]
    struct Full {
        bytes: [u8; 56],
    }

    #[derive(Clone, Copy, Message)]
    #[message(crate = "dotcompute_core", record, no_wire)]
    #[repr(C)]
    struct OneMore {
        bytes: [u8; 57],
    }

    assert_eq!(Full { bytes: [0; 56] }.bytes().len(), 56);
    assert_eq!(OneMore { bytes: [0; 57] }.bytes().len(), 57);
    assert_eq!((Full::SLOTS, OneMore::SLOTS), (1, 2));
    assert_eq!(Body::SLOTS, 1);
    assert_eq!(Collision::SLOTS, 2);
}

#[test]
fn bytes_come_back_as_the_record_from_any_address() {
    let record = collision();
    assert_eq!(record.bytes().len(), 72);
    let mut shifted = vec![0];
    shifted.extend_from_slice(record.bytes());
    assert_eq!(Collision::from_bytes(&shifted[1..]), Some(record));
    assert_eq!(Collision::from_bytes(&shifted), None);
    assert_eq!(Collision::from_bytes(&[]), None);
}

#[test]
fn a_record_has_the_wire_format_too() {
    let bytes = wire::encode(&Envelope::new(collision())).unwrap();
    assert_eq!(wire::decode::<Collision>(&bytes).unwrap().message, collision());
}

/// Gaps filled by hand, as a derived record must.
#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, no_wire, crate = "dotcompute_core")]
#[repr(C)]
struct Event {
    kind: u8,
    _gap: [u8; 3],
    weight: f32,
    at: i64,
    grid: [[u16; 3]; 2],
    _end: [u8; 4],
}

#[test]
fn a_layout_made_by_the_rules_of_c_agrees_with_the_derived_one() {
    let grid = ElementType::U16.array_of(3).array_of(2);
    let event = RecordLayout::c(
        "Event",
        &[
            ("kind", ElementType::U8),
            ("weight", ElementType::F32),
            ("at", ElementType::I64),
            ("grid", grid),
        ],
    )
    .unwrap();
    assert!(event.agrees_with(Event::LAYOUT));
    assert!(Event::LAYOUT.agrees_with(event));
    let other = RecordLayout::c("Event", &[("kind", ElementType::I8)]).unwrap();
    assert!(!other.agrees_with(event));
}

#[test]
fn equal_layouts_are_one() {
    let fields = [("a", ElementType::I64), ("b", ElementType::F64.array_of(2))];
    let first = RecordLayout::c("One", &fields).unwrap();
    assert!(std::ptr::eq(first, RecordLayout::c("One", &fields).unwrap()));
    assert!(!std::ptr::eq(first, RecordLayout::c("Two", &fields).unwrap()));
}

#[test]
fn a_layout_that_cannot_be_says_where_and_why() {
    let refused =
        |fields: &[(&str, ElementType)]| RecordLayout::c("Bad", fields).unwrap_err().to_string();
    assert_eq!(refused(&[]), "record 'Bad' has no fields");
    assert_eq!(
        refused(&[("a", ElementType::U8), ("a", ElementType::U8)]),
        "record 'Bad' has two fields 'a'"
    );
    assert!(refused(&[("_a", ElementType::U8)]).starts_with("record 'Bad', field '_a': a name"));
    assert!(refused(&[("é", ElementType::U8)]).starts_with("record 'Bad', field 'é': a name"));
    let none = ElementType::F64.array_of(0);
    assert!(refused(&[("a", none)]).contains("field 'a': an array has at least one element"));
    let huge = ElementType::F64.array_of(1 << 40);
    assert!(refused(&[("a", huge)]).contains("larger than 1 GiB at field 'a'"));
}

/// The text asserts size and offsets itself, so compiling it is the test.
#[test]
fn the_struct_of_c_has_the_size_and_offsets_of_the_layout() {
    let body =
        RecordLayout::c("Body", &[("x", ElementType::F32), ("n", ElementType::U64)]).unwrap();
    let world = RecordLayout::c(
        "a.World",
        &[
            ("bodies", ElementType::Record(body).array_of(3)),
            ("double", ElementType::U8),
            ("names", ElementType::U8.array_of(5).array_of(7)),
            ("last", ElementType::Record(body)),
        ],
    )
    .unwrap();
    let header =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../dotcompute-abi/generated/dotcompute_abi.h");
    let text = format!("#include \"{header}\"\n{}\n{}", world.c_struct(), Event::LAYOUT.c_struct());
    assert_eq!(text.matches("typedef struct Body").count(), 1);
    for (language, standard) in [("c", "-std=c11"), ("c++", "-std=c++17")] {
        let mut compiler = std::process::Command::new(std::env::var("CC").unwrap_or("cc".into()))
            .args(["-x", language, standard, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut compiler.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(compiler.wait().unwrap().success(), "{text}");
    }
}
