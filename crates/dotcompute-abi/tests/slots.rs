//! Records go through slots unchanged.

use dotcompute_abi::slot::{
    FLAG_CONTINUED, PLAIN_PAYLOAD_BYTES, TAGGED_PAYLOAD_BYTES, TAGGED_RECORD_BYTES_MAX,
    TAGGED_SLOTS_MAX, tagged_slots,
};
use dotcompute_abi::{PlainSlot, TaggedRecord};

#[test]
fn a_tagged_record_survives_its_chunks() {
    let payload: Vec<u8> = (1..=TAGGED_PAYLOAD_BYTES as u8).collect();
    let mut record = TaggedRecord::new(0xdead_beef, &payload).unwrap();
    record.header.flags = FLAG_CONTINUED as u16;
    let chunks = record.to_chunks();
    assert_eq!(chunks[0][0], 0xdead_beef, "the token is the first word");
    assert_eq!(chunks[0][1], 1 << 16 | 40, "then length and flags");
    assert_eq!(chunks[0][2], 0x0403_0201, "then the payload, little-endian");
    let back = TaggedRecord::from_chunks(chunks);
    assert_eq!(back.payload, record.payload);
    assert_eq!(back.header.token, record.header.token);
    assert_eq!(back.header.payload_bytes, 40);
    assert_eq!(back.header.flags, 1);
}

#[test]
fn the_slots_of_a_long_record_are_its_header_and_payload_in_one_piece() {
    let most = TAGGED_RECORD_BYTES_MAX as usize;
    let payload: Vec<u8> = (0..most).map(|at| at as u8 ^ 0x5a).collect();
    for bytes in 0..=most {
        let slots: Vec<_> = TaggedRecord::slots(0xfeed, 0x0810, &payload[..bytes]).collect();
        assert_eq!(slots.len(), tagged_slots(bytes as u32) as usize);
        let header = slots[0].header;
        assert_eq!((header.token, header.flags), (0xfeed, 0x0810));
        assert_eq!(usize::from(header.payload_bytes), bytes);
        // Through the chunks, as a ring carries them.
        let whole =
            slots.iter().flat_map(|slot| TaggedRecord::from_chunks(slot.to_chunks()).bytes());
        let whole: Vec<u8> = whole.collect();
        assert_eq!(&whole[8..8 + bytes], &payload[..bytes]);
        assert!(whole[8 + bytes..].iter().all(|byte| *byte == 0), "zero behind {bytes} bytes");
    }
    assert_eq!(tagged_slots(TAGGED_RECORD_BYTES_MAX), TAGGED_SLOTS_MAX);
    assert_eq!(TaggedRecord::slots(0, 0, &vec![0; most + 1]).len(), 0);
}

#[test]
fn a_slot_takes_what_fits_and_zeroes_the_rest() {
    let slot = PlainSlot::new(1, b"abc").unwrap();
    assert_eq!(&slot.payload[..3], b"abc");
    assert!(slot.payload[3..].iter().all(|&byte| byte == 0));
    assert_eq!(slot.header.payload_bytes, 3);
    let most = [7; PLAIN_PAYLOAD_BYTES as usize + 1];
    assert!(PlainSlot::new(1, &most[1..]).is_some());
    assert!(PlainSlot::new(1, &most).is_none());
    assert!(TaggedRecord::new(1, &most[..TAGGED_PAYLOAD_BYTES as usize + 1]).is_none());
}
