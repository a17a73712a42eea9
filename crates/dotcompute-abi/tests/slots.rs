//! Records go through slots unchanged.

use dotcompute_abi::slot::{FLAG_CONTINUED, PLAIN_PAYLOAD_BYTES, TAGGED_PAYLOAD_BYTES};
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
