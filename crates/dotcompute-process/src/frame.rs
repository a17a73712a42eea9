//! Messages in the slots of a ring.
//!
//! A message is one *frame*, or several if it is long: a prefix (id, priority, delivery count and,
//! if flagged, the correlation id), then its bytes, then where the arrays lie that go beside it, in
//! the [arena]. A frame's slots carry the token of the delivery
//! that it belongs to; those after the first are flagged as continued, all but the last frame of a
//! message as followed by more. A frame's slots are published together; a reader uses a message
//! once it has its last frame, so that one which was cut off by a death is never seen.
//!
//! [arena]: crate::arena

use std::sync::Arc;

use dotcompute_abi::PlainSlot;
use dotcompute_abi::slot::{
    FLAG_CONTINUED, FLAG_CORRELATED, FLAG_MORE, PLAIN_PAYLOAD_BYTES, SlotHeader,
};
use dotcompute_core::{Envelope, MessageId};
use dotcompute_mailbox::ring::{Consumer, Plain, Polls, Producer};

use crate::arena::{ARRAY_MIN, Arena, BLOCK_BYTES, Block, Lease};
use crate::coder::Outgoing;
use crate::segment::Segment;

/// The bytes of one slot.
const SLOT: usize = PLAIN_PAYLOAD_BYTES as usize;
/// Id, priority, delivery count, whether somebody waits for the answer, how many arrays go beside it,
/// for whom it is, whether the one array is all of it, and a zero.
const PREFIX: usize = 24;
/// Where in it these two stand.
const ARRAYS_AT: usize = 19;
const WHOLE_AT: usize = 22;
/// The most bytes of a frame: what its header can say, and no more than makes a long message flow.
const FRAME_MAX: usize = 32 * 1024;
/// The longest message: the limit of the wire format, and a prefix.
const MESSAGE_MAX: usize = (64 << 20) + 64;

pub(crate) type ToRing = Producer<PlainSlot, Plain, Polls>;
pub(crate) type FromRing = Consumer<PlainSlot, Plain, Polls>;

/// The bytes in a ring are no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes in the ring are no message: {0}")]
pub(crate) struct Broken(pub(crate) &'static str);

/// What travels beside a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) id: MessageId,
    pub(crate) correlation_id: Option<MessageId>,
    pub(crate) priority: u8,
    pub(crate) delivery_count: u8,
    /// Of a message: whether somebody waits for the answer. Of what was sent to a target: whether it
    /// is one record and no batch.
    pub(crate) flag: bool,
    /// 0: for the kernel or, of a reply, for whoever it belongs to; else what a handler sent to its
    /// target of this number, from 1.
    pub(crate) target: u16,
}

impl Prefix {
    pub(crate) fn of<M>(envelope: &Envelope<M>) -> Self {
        Self {
            id: envelope.id,
            correlation_id: envelope.correlation_id,
            priority: envelope.priority,
            delivery_count: envelope.delivery_count(),
            flag: envelope.is_asked(),
            target: 0,
        }
    }

    /// Of what was sent to a target with this message in hand.
    pub(crate) fn to_target(message: MessageId, target: usize, single: bool) -> Self {
        Self {
            id: message,
            correlation_id: None,
            priority: 0,
            delivery_count: 1,
            flag: single,
            target: target as u16 + 1,
        }
    }
}

/// Puts messages into a ring, as it has room for them.
#[derive(Debug)]
pub(crate) struct Writer {
    arena: Arena,
    /// Of the message that is being written.
    blocks: Vec<Block>,
    /// The message that is being written.
    bytes: Vec<u8>,
    written: usize,
    token: u32,
    flags: u16,
    /// Slots that are to be published together.
    staged: Vec<PlainSlot>,
    /// At least so many slots of the ring are free, those for what is staged included. To look anew
    /// for each message would fetch the line that the reader writes.
    room: usize,
}

impl Writer {
    pub(crate) fn new(segment: &Arc<Segment>, direction: usize) -> Self {
        Self {
            arena: Arena::new(segment, direction),
            blocks: Vec::new(),
            bytes: Vec::new(),
            written: 0,
            token: 0,
            flags: 0,
            staged: Vec::new(),
            room: 0,
        }
    }

    /// Begins a message, of always the same ring; `fill` appends its bytes. The one before must have
    /// been staged whole. After an error nothing more is to be written: arrays may have been lent.
    pub(crate) fn begin<E>(
        &mut self,
        token: u32,
        prefix: Prefix,
        fill: impl FnOnce(&mut Outgoing<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        debug_assert!(self.is_idle(), "the message before should have been staged");
        self.bytes.clear();
        self.written = 0;
        self.token = token;
        self.flags = 0;
        self.bytes.extend(prefix.id.to_bytes());
        let [low, high] = prefix.target.to_le_bytes();
        let (priority, deliveries) = (prefix.priority, prefix.delivery_count);
        self.bytes.extend([priority, deliveries, prefix.flag.into(), 0, low, high, 0, 0]);
        if let Some(id) = prefix.correlation_id {
            self.flags |= FLAG_CORRELATED as u16;
            self.bytes.extend(id.to_bytes());
        }
        let head = self.bytes.len();
        self.blocks.clear();
        let (arena, blocks) = (&mut self.arena, &mut self.blocks);
        let filled = fill(&mut Outgoing { bytes: &mut self.bytes, arena, blocks });
        if filled.is_err() {
            self.bytes.clear();
            return filled;
        }
        if blocks.is_empty() && self.bytes.len() - head >= ARRAY_MIN {
            // Long, and its coder knows of no arrays: one copy instead of two, and no ring to wait for.
            if let Some(block) = arena.lend(&self.bytes[head..]) {
                self.bytes.truncate(head);
                self.bytes[WHOLE_AT] = 1;
                blocks.push(block);
            }
        }
        self.bytes[ARRAYS_AT] = blocks.len() as u8;
        blocks.iter().for_each(|block| self.bytes.extend(block.to_bytes()));
        Ok(())
    }

    /// Whether the whole message was staged.
    pub(crate) fn is_idle(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Whether an array goes beside the message that was begun last.
    pub(crate) fn has_lent(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// How many slots are staged.
    pub(crate) fn staged(&self) -> usize {
        self.staged.len()
    }

    /// Stages as many frames of the message as `ring` has room for; whether that is all of it.
    pub(crate) fn stage(&mut self, ring: &ToRing) -> bool {
        let frame_max = FRAME_MAX.min(ring.capacity() * SLOT);
        while !self.is_idle() {
            let left = self.bytes.len() - self.written;
            let length = left.min(frame_max);
            let needed = self.staged.len() + length.div_ceil(SLOT);
            if needed > self.room {
                self.room = ring.free();
                if needed > self.room {
                    return false;
                }
            }
            let more = if length < left { FLAG_MORE as u16 } else { 0 };
            let frame = &self.bytes[self.written..self.written + length];
            for (index, part) in frame.chunks(SLOT).enumerate() {
                let continued = if index > 0 { FLAG_CONTINUED as u16 } else { 0 };
                let mut payload = [0; SLOT];
                payload[..part.len()].copy_from_slice(part);
                let header = SlotHeader {
                    token: self.token,
                    payload_bytes: length as u16,
                    flags: self.flags | more | continued,
                };
                self.staged.push(PlainSlot { header, payload });
            }
            self.written += length;
        }
        true
    }

    /// Publishes what is staged, all at once; whether there was anything.
    pub(crate) fn publish(&mut self, ring: &mut ToRing) -> bool {
        let pushed = ring.push_slice(&self.staged);
        debug_assert_eq!(pushed, self.staged.len(), "there should be room for what was staged");
        self.staged.clear();
        self.room -= pushed;
        pushed > 0
    }
}

/// Takes messages out of a ring.
#[derive(Debug)]
pub(crate) struct Reader {
    segment: Arc<Segment>,
    direction: usize,
    token: u32,
    flags: u16,
    /// The message so far.
    bytes: Vec<u8>,
    /// Bytes of the frame that are still to come.
    left: usize,
    /// Whether the message has further frames.
    more: bool,
    complete: bool,
}

impl Reader {
    pub(crate) fn new(segment: &Arc<Segment>, direction: usize) -> Self {
        Self {
            segment: Arc::clone(segment),
            direction,
            token: 0,
            flags: 0,
            bytes: Vec::new(),
            left: 0,
            more: false,
            complete: false,
        }
    }

    /// Reads slots until a message is complete; false if the ring is empty before.
    pub(crate) fn next(&mut self, ring: &mut FromRing) -> Result<bool, Broken> {
        while let Ok(slot) = ring.try_pop() {
            if self.feed(&slot)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn feed(&mut self, slot: &PlainSlot) -> Result<bool, Broken> {
        let SlotHeader { token, payload_bytes, flags } = slot.header;
        if std::mem::take(&mut self.complete) {
            self.bytes.clear();
        }
        let is_continued = flags & FLAG_CONTINUED as u16 != 0;
        if is_continued != (self.left > 0) {
            return Err(Broken("a frame does not begin where the one before ends"));
        }
        if self.left == 0 {
            if self.more && token != self.token {
                return Err(Broken("another message begins inside one"));
            }
            self.token = token;
            self.flags = flags;
            self.left = payload_bytes.into();
            self.more = flags & FLAG_MORE as u16 != 0;
            if self.left == 0 || self.bytes.len() + self.left > MESSAGE_MAX {
                return Err(Broken("a message is empty or too long"));
            }
        }
        let length = self.left.min(SLOT);
        self.bytes.extend_from_slice(&slot.payload[..length]);
        self.left -= length;
        self.complete = self.left == 0 && !self.more;
        Ok(self.complete)
    }

    /// Whether a message has begun and is not complete.
    pub(crate) fn is_inside(&self) -> bool {
        self.left > 0 || self.more
    }

    /// The token of the message that is complete.
    pub(crate) fn token(&self) -> u32 {
        self.token
    }

    /// For whom the message that is complete is: see [`Prefix::target`].
    pub(crate) fn target(&self) -> u16 {
        self.bytes.get(20..22).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// The message that is complete; once, since the arrays become the caller's.
    pub(crate) fn message(&mut self) -> Result<(Prefix, &[u8], Vec<Lease>), Broken> {
        let bytes = self.bytes.as_slice();
        let prefix = bytes.first_chunk::<PREFIX>().ok_or(Broken("a message without a prefix"))?;
        let (id, about) =
            prefix.split_first_chunk::<16>().ok_or(Broken("a message without an id"))?;
        let (arrays, whole) = (usize::from(prefix[ARRAYS_AT]), prefix[WHOLE_AT] != 0);
        let mut start = PREFIX;
        let mut correlation_id = None;
        if self.flags & FLAG_CORRELATED as u16 != 0 {
            let id = bytes[start..].first_chunk();
            let id = id.ok_or(Broken("a message without its correlation id"))?;
            correlation_id = Some(MessageId::from_bytes(*id));
            start += id.len();
        }
        let prefix = Prefix {
            id: MessageId::from_bytes(*id),
            correlation_id,
            priority: about[0],
            delivery_count: about[1],
            flag: about[2] != 0,
            target: self.target(),
        };
        if arrays == 0 {
            return Ok((prefix, &self.bytes[start..], Vec::new()));
        }
        let end = bytes.len().checked_sub(arrays * BLOCK_BYTES).filter(|end| *end >= start);
        let end = end.ok_or(Broken("a message without its arrays"))?;
        let blocks = bytes[end..].chunks_exact(BLOCK_BYTES).map(Block::from_bytes);
        let lease = |block| Lease::new(&self.segment, self.direction, block);
        let leases = blocks.map(lease).collect::<Result<Vec<_>, _>>()?;
        if !whole {
            return Ok((prefix, &self.bytes[start..end], leases));
        }
        // It will be parsed, and so must not change meanwhile, whatever the other side does.
        self.bytes.clear();
        leases.iter().for_each(|lease| self.bytes.extend_from_slice(lease));
        Ok((prefix, &self.bytes, Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::TO_CHILD;

    fn prefix(number: u128) -> Prefix {
        Prefix {
            id: MessageId::from_u128(number),
            correlation_id: (number % 2 == 1).then(|| MessageId::from_u128(number + 1)),
            priority: 200,
            delivery_count: 2,
            flag: true,
            target: 300,
        }
    }

    fn ends(slots: usize, granules: usize) -> (ToRing, FromRing, Writer, Reader) {
        let (segment, ring, _back) = Segment::create(slots, granules).unwrap();
        let (to, from) = ring.split();
        (to, from, Writer::new(&segment, TO_CHILD), Reader::new(&segment, TO_CHILD))
    }

    fn send(writer: &mut Writer, token: u32, bytes: &[u8]) {
        let filled: Result<(), ()> = writer.begin(token, prefix(token.into()), |out| {
            out.bytes.extend_from_slice(bytes);
            Ok(())
        });
        filled.unwrap();
    }

    #[test]
    fn messages_of_all_sizes_arrive_as_they_were_sent_with_an_arena_or_without() {
        for granules in [0, 20] {
            let (mut to, mut from, mut writer, mut reader) = ends(64, granules);
            for (token, size) in
                [0, 1, 32, 33, 500, 3_000, 40_000, 300_000, 70_000].into_iter().enumerate()
            {
                let bytes: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
                send(&mut writer, token as u32, &bytes);
                loop {
                    writer.stage(&to);
                    let idle = writer.is_idle();
                    assert!(writer.publish(&mut to), "there is room for a frame");
                    if reader.next(&mut from).unwrap() {
                        assert!(idle);
                        break;
                    }
                }
                assert_eq!((reader.token(), reader.target()), (token as u32, 300));
                let (found, message, arrays) = reader.message().unwrap();
                assert_eq!((found, arrays.len()), (prefix(token as u128), 0));
                assert!(message == bytes, "{size} bytes");
                assert_eq!(writer.arena.lent(), 0);
            }
        }
    }

    #[test]
    fn arrays_go_beside_their_message_while_there_is_room() {
        let (mut to, mut from, mut writer, mut reader) = ends(64, 10);
        let array = |value| vec![value; 50_000];
        let filled: Result<(), ()> = writer.begin(1, prefix(1), |out| {
            assert_eq!(out.array(&[1; 100]), None, "too short");
            assert_eq!((out.array(&array(1)), out.array(&array(2))), (Some(0), Some(1)));
            assert_eq!(out.array(&array(3)), None, "no room");
            out.bytes.extend_from_slice(b"text");
            Ok(())
        });
        filled.unwrap();
        assert!(writer.stage(&to) && writer.staged() <= 4);
        writer.publish(&mut to);
        assert!(reader.next(&mut from).unwrap());
        let (found, bytes, arrays) = reader.message().unwrap();
        assert_eq!((found, bytes), (prefix(1), b"text".as_slice()));
        assert!(*arrays[0] == array(1) && *arrays[1] == array(2) && arrays.len() == 2);
        assert_eq!(writer.arena.lent(), 2);
        drop(arrays);
        assert_eq!(writer.arena.lent(), 0);
    }

    #[test]
    fn a_small_message_takes_one_slot() {
        let (to, _from, mut writer, _reader) = ends(4, 0);
        send(&mut writer, 2, &[7; 32]);
        assert!(writer.stage(&to));
        assert_eq!(writer.staged(), 1);
    }

    #[test]
    fn slots_that_are_no_frames_are_refused() {
        let slot = |payload_bytes, flags| PlainSlot {
            header: SlotHeader { token: 1, payload_bytes, flags },
            payload: [0; SLOT],
        };
        let continued = FLAG_CONTINUED as u16;
        for slots in [vec![slot(8, continued)], vec![slot(0, 0)], vec![slot(60, 0), slot(60, 0)]] {
            let (.., mut reader) = ends(4, 0);
            assert!(slots.iter().any(|slot| reader.feed(slot).is_err()), "{slots:?}");
        }
        let (.., mut reader) = ends(4, 4);
        assert_eq!(reader.feed(&slot(8, 0)), Ok(true));
        assert!(reader.message().is_err(), "shorter than a prefix");
        let mut with_arrays = slot(PREFIX as u16 + 10, 0);
        with_arrays.payload[ARRAYS_AT] = 1;
        assert_eq!(reader.feed(&with_arrays), Ok(true));
        assert!(reader.message().is_err(), "arrays that it does not name");
        with_arrays.header.payload_bytes = (PREFIX + BLOCK_BYTES) as u16;
        let block = Block { first: 4, turn: 1, bytes: 1 };
        with_arrays.payload[PREFIX..][..BLOCK_BYTES].copy_from_slice(&block.to_bytes());
        assert_eq!(reader.feed(&with_arrays), Ok(true));
        assert!(reader.message().is_err(), "an array outside the arena");
    }
}
