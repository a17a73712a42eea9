//! Records: layout, slots and bytes.

#![forbid(unsafe_code)]

use dotcompute_core::record::{ElementType, Plain, Record, RecordField};
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
