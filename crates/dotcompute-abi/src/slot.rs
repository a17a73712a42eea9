//! Message slots: 64 bytes, an 8-byte header first.
//!
//! Three formats, one ring protocol:
//!
//! - **plain** ([`PlainSlot`]), between threads and processes: 56 bytes of payload; the producer's
//!   tail publishes the slot.
//! - **lapped**, between processes: the same slots, each published by its own header, where
//!   [`FLAG_LAP`] tells the lap. A reader that waits looks at the very line that it will read.
//! - **tagged** ([`TaggedSlot`]), between host and device: four chunks of 12 bytes and a lap tag
//!   each, 40 bytes of payload; a reader takes a slot when its four tags agree, so one read per
//!   chunk fetches tag and data at once and no second word need be polled.
//!
//! A record longer than one slot takes several: `payload_bytes` is the whole record's length. Each
//! further plain slot carries [`FLAG_CONTINUED`]; each further tagged one is all payload, 48 bytes, so
//! that a record lies in one piece where its slots are put one after the other. Every slot has tags of its
//! own: a record is there when all of its slots are, and cannot be torn.

use crate::describe::{Kind, Shared, Struct};

shared_constants! {
    /// The sizes of slots.
    SIZES: u32;
    /// Bytes of a slot, in all formats.
    SLOT_BYTES = 64;
    /// Bytes of payload in a plain slot.
    PLAIN_PAYLOAD_BYTES = 56;
    /// Bytes of payload in a tagged slot.
    TAGGED_PAYLOAD_BYTES = 40;
    /// Chunks of a tagged slot.
    TAGGED_CHUNKS = 4;
    /// Bytes of payload in each further slot of a tagged record.
    TAGGED_MORE_BYTES = 48;
    /// Slots that a tagged record takes at most.
    TAGGED_SLOTS_MAX = 8;
    /// Bytes of the longest tagged record.
    TAGGED_RECORD_BYTES_MAX = 376;
}

shared_constants! {
    /// The bits of `flags` in a slot's header; all others are zero. Between kernels of a device, and where
    /// `FLAG_SENT` is set, the high byte is a number: of the edge, by which shares are given back, or of
    /// the target.
    FLAGS: u32;
    /// This slot continues the record that the slot before it began.
    FLAG_CONTINUED = 1;
    /// This record is no reply but a line of a kernel's log: its level in four bytes, then text.
    FLAG_LOG = 2;
    /// The record begins with the id of the message that it answers, between processes.
    FLAG_CORRELATED = 4;
    /// The next record, of the same token, goes on with this one's message, between processes.
    FLAG_MORE = 8;
    /// The replies to this message go to the host, also where the kernel's go to another one of the
    /// device, and not before that one has handled all that was sent to it.
    FLAG_HOME = 16;
    /// This reply comes too late: one before it has answered the message.
    FLAG_LATE = 32;
    /// This record is no reply but the message of another kernel of the device at which this one failed.
    FLAG_FAULTED = 64;
    /// This record is no reply but was sent to the target whose number is in the high byte.
    FLAG_SENT = 128;
    /// The record is the message alone, and what goes beside it is as it mostly is, between processes.
    FLAG_SHORT = 256;
    /// Somebody waits for the answer to this message, between processes.
    FLAG_ASKED = 512;
    /// With this reply its message is processed, and all that were handed over before it, between processes.
    FLAG_SETTLES = 1024;
    /// Behind the message the record says where arrays lie, between processes.
    FLAG_ARRAYS = 2048;
    /// In a lapped ring: the lap in which this slot was written, position divided by slots, is even.
    FLAG_LAP = 32768;
}

shared_struct! {
    /// The first 8 bytes of every slot.
    SlotHeader: 8 bytes, aligned to 4;
    /// Names the delivery: the host keeps ids, bands and askers in a table under this number.
    token: u32, at 0;
    /// Length of the whole record, over all of its slots.
    payload_bytes: u16, at 4;
    /// Bits `FLAG_*`.
    flags: u16, at 6;
}

shared_struct! {
    /// A slot between threads or processes. The payload is aligned to 8.
    PlainSlot: 64 bytes, aligned to 64;
    /// The header.
    header: SlotHeader, at 0;
    /// The record, or this slot's part of it; zero behind its end.
    payload: [u8; 56], at 8;
}

shared_struct! {
    /// A quarter of a tagged slot. The tag is written after the data.
    TaggedChunk: 16 bytes, aligned to 16;
    /// 12 bytes of the record.
    data: [u32; 3], at 0;
    /// The lap in which `data` was written: position divided by slots, plus one, modulo 2^32.
    tag: u32, at 12;
}

impl Shared for [TaggedChunk; 4] {
    const KIND: Kind = Kind::Many(&TaggedChunk::LAYOUT, 4);
}

shared_struct! {
    /// A slot between host and device, as it lies in the ring.
    TaggedSlot: 64 bytes, aligned to 64;
    /// The chunks; their data, end to end, are a `TaggedRecord`.
    chunks: [TaggedChunk; 4], at 0;
}

shared_struct! {
    /// What a tagged slot carries: the data of its chunks without their tags.
    TaggedRecord: 48 bytes, aligned to 8;
    /// The header.
    header: SlotHeader, at 0;
    /// The record, or this slot's part of it; zero behind its end.
    payload: [u8; 40], at 8;
}

/// The structs of this module, parts first.
pub const STRUCTS: &[Struct] = &[
    SlotHeader::LAYOUT,
    PlainSlot::LAYOUT,
    TaggedChunk::LAYOUT,
    TaggedSlot::LAYOUT,
    TaggedRecord::LAYOUT,
];

const RECORD_BYTES_MAX: usize = TAGGED_RECORD_BYTES_MAX as usize;

/// How many slots a tagged record of so many bytes takes.
pub const fn tagged_slots(payload_bytes: u32) -> u32 {
    (payload_bytes + 8).div_ceil(TAGGED_MORE_BYTES)
}

const _: () = {
    assert!(tagged_slots(TAGGED_PAYLOAD_BYTES) == 1);
    assert!(tagged_slots(TAGGED_PAYLOAD_BYTES + 1) == 2);
    assert!(tagged_slots(TAGGED_RECORD_BYTES_MAX) == TAGGED_SLOTS_MAX);
    assert!(tagged_slots(TAGGED_RECORD_BYTES_MAX + 1) > TAGGED_SLOTS_MAX);
};

impl SlotHeader {
    /// The header of a record of `payload_bytes` bytes.
    pub const fn new(token: u32, payload_bytes: u16) -> Self {
        Self { token, payload_bytes, flags: 0 }
    }
}

impl PlainSlot {
    /// A slot that holds the whole of `payload`; `None` if that is longer than
    /// [`PLAIN_PAYLOAD_BYTES`].
    pub fn new(token: u32, payload: &[u8]) -> Option<Self> {
        let (header, payload) = whole(token, payload)?;
        Some(Self { header, payload })
    }
}

impl TaggedRecord {
    /// A record that holds the whole of `payload`; `None` if that is longer than
    /// [`TAGGED_PAYLOAD_BYTES`].
    pub fn new(token: u32, payload: &[u8]) -> Option<Self> {
        let (header, payload) = whole(token, payload)?;
        Some(Self { header, payload })
    }

    /// The slots of a record of up to [`TAGGED_RECORD_BYTES_MAX`] bytes, in order; none of a longer one.
    pub fn slots(
        token: u32,
        flags: u16,
        payload: &[u8],
    ) -> impl ExactSizeIterator<Item = Self> + Clone {
        let count = match payload.len() {
            0..=RECORD_BYTES_MAX => tagged_slots(payload.len() as u32),
            _ => 0,
        };
        (0..count).map(move |slot| {
            let mut bytes = [0; TAGGED_MORE_BYTES as usize];
            let (from, at) = match slot {
                0 => {
                    bytes[..4].copy_from_slice(&token.to_le_bytes());
                    bytes[4..6].copy_from_slice(&(payload.len() as u16).to_le_bytes());
                    bytes[6..8].copy_from_slice(&flags.to_le_bytes());
                    (0, 8)
                }
                more => ((TAGGED_MORE_BYTES * more) as usize - 8, 0),
            };
            let part = &payload[from..];
            let part = &part[..part.len().min(bytes.len() - at)];
            bytes[at..at + part.len()].copy_from_slice(part);
            Self::from_bytes(&bytes)
        })
    }

    /// The bytes that this slot carries: of a further slot of a record all are payload.
    pub fn bytes(&self) -> [u8; TAGGED_MORE_BYTES as usize] {
        let mut bytes = [0; TAGGED_MORE_BYTES as usize];
        for (quad, word) in bytes.chunks_exact_mut(4).zip(self.to_chunks().as_flattened()) {
            quad.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; TAGGED_MORE_BYTES as usize]) -> Self {
        let (quads, []) = bytes.as_chunks::<4>() else { unreachable!("48 is 12 words") };
        let mut chunks = [[0; 3]; 4];
        for (word, quad) in chunks.as_flattened_mut().iter_mut().zip(quads) {
            *word = u32::from_le_bytes(*quad);
        }
        Self::from_chunks(chunks)
    }

    /// The data of the chunks that carry this record, in order.
    pub fn to_chunks(&self) -> [[u32; 3]; 4] {
        let SlotHeader { token, payload_bytes, flags } = self.header;
        let mut words = [0; 12];
        words[0] = token;
        words[1] = u32::from(payload_bytes) | u32::from(flags) << 16;
        let (quads, []) = self.payload.as_chunks::<4>() else { unreachable!("40 is 10 words") };
        for (word, bytes) in words[2..].iter_mut().zip(quads) {
            *word = u32::from_le_bytes(*bytes);
        }
        let mut chunks = [[0; 3]; 4];
        for (chunk, data) in chunks.iter_mut().zip(words.chunks_exact(3)) {
            chunk.copy_from_slice(data);
        }
        chunks
    }

    /// The record that chunks with these data carry.
    pub fn from_chunks(chunks: [[u32; 3]; 4]) -> Self {
        let words = chunks.as_flattened();
        let mut payload = [0; 40];
        for (bytes, word) in payload.chunks_exact_mut(4).zip(&words[2..]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let [low0, low1, high0, high1] = words[1].to_le_bytes();
        let header = SlotHeader {
            token: words[0],
            payload_bytes: u16::from_le_bytes([low0, low1]),
            flags: u16::from_le_bytes([high0, high1]),
        };
        Self { header, payload }
    }
}

fn whole<const N: usize>(token: u32, payload: &[u8]) -> Option<(SlotHeader, [u8; N])> {
    let mut bytes = [0; N];
    bytes.get_mut(..payload.len())?.copy_from_slice(payload);
    Some((SlotHeader::new(token, u16::try_from(payload.len()).ok()?), bytes))
}
