//! Messages in the slots of a ring.
//!
//! A message is one *frame*, or several if it is long: its bytes, before them a prefix (id, priority,
//! delivery count and, if flagged, the correlation id) where that says anything, and behind them, if
//! flagged, where the arrays lie that go beside it, in the [arena]. Mostly a prefix says nothing: a
//! message that is delivered for the first time, with the priority of its type, or an answer to one. Such
//! a message of up to 56 bytes takes one slot. A frame's slots carry the token of the delivery
//! that it belongs to; those after the first are flagged as continued, all but the last frame of a
//! message as followed by more. A frame's slots are published together; a reader uses a message
//! once it has its last frame, so that one which was cut off by a death is never seen.
//!
//! [arena]: crate::arena

use std::sync::Arc;

use dotcompute_abi::PlainSlot;
use dotcompute_abi::slot::{
    FLAG_ARRAYS, FLAG_ASKED, FLAG_CONTINUED, FLAG_CORRELATED, FLAG_MORE, FLAG_SETTLES, FLAG_SHORT,
    PLAIN_PAYLOAD_BYTES, SlotHeader,
};
use dotcompute_core::{Envelope, Message, MessageId};
use dotcompute_mailbox::ring::{Consumer, Lapped, Polls, Producer};

use crate::arena::{ARRAY_MIN, Arena, BLOCK_BYTES, Block, Lease};
use crate::coder::Outgoing;
use crate::segment::Segment;

/// The bytes of one slot.
const SLOT: usize = PLAIN_PAYLOAD_BYTES as usize;
/// Id, priority, delivery count, for whom it is, whether that is no batch, and zeros.
const PREFIX: usize = 24;
/// How many arrays go beside a message, whether the one is all of it, and zeros: behind where they lie.
const TRAILER: usize = 8;
/// The most bytes of a frame: what its header can say, and no more than makes a long message flow.
const FRAME_MAX: usize = 32 * 1024;
/// The longest message: the limit of the wire format, and a prefix.
const MESSAGE_MAX: usize = (64 << 20) + 64;

pub(crate) type ToRing = Producer<PlainSlot, Lapped, Polls>;
pub(crate) type FromRing = Consumer<PlainSlot, Lapped, Polls>;

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
    /// Of what was sent to a target: whether it is one record and no batch.
    pub(crate) single: bool,
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
            single: false,
            target: 0,
        }
    }

    /// Of a message to the child, which finds its id [elsewhere](Segment::id).
    pub(crate) fn needed<M: Message>(envelope: &Envelope<M>) -> Option<Self> {
        let is_needed = envelope.delivery_count() != 1
            || envelope.priority != envelope.message.default_priority()
            || envelope.correlation_id.is_some();
        is_needed.then(|| Self::of(envelope))
    }

    /// Of what was sent to a target; of which nobody asks more.
    pub(crate) fn to_target(target: usize, single: bool) -> Self {
        Self {
            id: MessageId::from_u128(0),
            correlation_id: None,
            priority: 0,
            delivery_count: 1,
            single,
            target: target as u16 + 1,
        }
    }
}

/// What a message begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// The delivery that it belongs to.
    pub(crate) token: u32,
    /// None: it is as it mostly is.
    pub(crate) prefix: Option<Prefix>,
    /// Of a message: somebody waits for the answer.
    pub(crate) asked: bool,
    /// Of a reply: its message is processed.
    pub(crate) settles: bool,
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
    /// Whether all of it was staged.
    is_idle: bool,
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
            is_idle: true,
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
        head: Head,
        fill: impl FnOnce(&mut Outgoing<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        debug_assert!(self.is_idle, "the message before should have been staged");
        let Head { token, prefix, asked, settles } = head;
        self.bytes.clear();
        self.written = 0;
        self.token = token;
        self.flags = flag(FLAG_ASKED, asked) | flag(FLAG_SETTLES, settles);
        match prefix {
            None => self.flags |= FLAG_SHORT as u16,
            Some(prefix) => {
                self.bytes.extend(prefix.id.to_bytes());
                let [low, high] = prefix.target.to_le_bytes();
                let (priority, deliveries) = (prefix.priority, prefix.delivery_count);
                self.bytes.extend([priority, deliveries, low, high, prefix.single.into(), 0, 0, 0]);
                if let Some(id) = prefix.correlation_id {
                    self.flags |= FLAG_CORRELATED as u16;
                    self.bytes.extend(id.to_bytes());
                }
            }
        }
        let head = self.bytes.len();
        self.blocks.clear();
        let (arena, blocks) = (&mut self.arena, &mut self.blocks);
        let filled = fill(&mut Outgoing { bytes: &mut self.bytes, arena, blocks });
        filled?;
        self.is_idle = false;
        let mut whole = false;
        if blocks.is_empty() && self.bytes.len() - head >= ARRAY_MIN {
            // Long, and its coder knows of no arrays: one copy instead of two, and no ring to wait for.
            if let Some(block) = arena.lend(&self.bytes[head..]) {
                self.bytes.truncate(head);
                whole = true;
                blocks.push(block);
            }
        }
        if !blocks.is_empty() {
            self.flags |= FLAG_ARRAYS as u16;
            blocks.iter().for_each(|block| self.bytes.extend(block.to_bytes()));
            self.bytes.extend([blocks.len() as u8, whole.into(), 0, 0, 0, 0, 0, 0]);
        }
        Ok(())
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
        while !self.is_idle {
            let left = self.bytes.len() - self.written;
            let length = left.min(frame_max);
            let slots = length.div_ceil(SLOT).max(1);
            let needed = self.staged.len() + slots;
            if needed > self.room {
                self.room = ring.free();
                if needed > self.room {
                    return false;
                }
            }
            let flags = self.flags | flag(FLAG_MORE, length < left);
            let mut frame = &self.bytes[self.written..self.written + length];
            for index in 0..slots {
                let mut payload = [0; SLOT];
                match frame.split_first_chunk() {
                    Some((part, rest)) => (payload, frame) = (*part, rest),
                    None => payload[..frame.len()].copy_from_slice(frame),
                }
                let header = SlotHeader {
                    token: self.token,
                    payload_bytes: length as u16,
                    flags: flags | flag(FLAG_CONTINUED, index > 0),
                };
                self.staged.push(PlainSlot { header, payload });
            }
            self.written += length;
            self.is_idle = length == left;
        }
        true
    }

    /// Publishes what is staged, all at once; whether there was anything.
    pub(crate) fn publish(&mut self, ring: &mut ToRing) -> bool {
        if self.staged.is_empty() {
            return false;
        }
        let pushed = ring.push_together(&self.staged);
        debug_assert!(pushed || ring.is_abandoned(), "there should be room for what was staged");
        self.room -= self.staged.len();
        self.staged.clear();
        true
    }
}

/// The flag, or nothing.
fn flag(flag: u32, is_set: bool) -> u16 {
    if is_set { flag as u16 } else { 0 }
}

/// What begins a message, if anything does, its bytes, and the arrays beside it.
pub(crate) type Found<'a> = (Option<Prefix>, &'a [u8], Vec<Lease>);

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
            let may_be_empty = self.has(FLAG_SHORT) && !self.more;
            if (self.left == 0 && !may_be_empty) || self.bytes.len() + self.left > MESSAGE_MAX {
                return Err(Broken("a message is empty or too long"));
            }
        }
        match self.left {
            left if left < SLOT => self.bytes.extend_from_slice(&slot.payload[..left]),
            _ => self.bytes.extend_from_slice(&slot.payload),
        }
        self.left = self.left.saturating_sub(SLOT);
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

    /// Whether somebody waits for the answer to the message that is complete.
    pub(crate) fn is_asked(&self) -> bool {
        self.has(FLAG_ASKED)
    }

    /// Whether the message is processed that this one, which is complete, replies to.
    pub(crate) fn settles(&self) -> bool {
        self.has(FLAG_SETTLES)
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag as u16 != 0
    }

    /// For whom the message that is complete is: see [`Prefix::target`].
    pub(crate) fn target(&self) -> u16 {
        match self.bytes.get(18..20) {
            Some(&[low, high]) if !self.has(FLAG_SHORT) => u16::from_le_bytes([low, high]),
            _ => 0,
        }
    }

    /// The message that is complete; once, since the arrays become the caller's.
    pub(crate) fn message(&mut self) -> Result<Found<'_>, Broken> {
        let (prefix, start) = match self.has(FLAG_SHORT) {
            true => (None, 0),
            false => self.prefix().map(|(prefix, start)| (Some(prefix), start))?,
        };
        if !self.has(FLAG_ARRAYS) {
            return Ok((prefix, &self.bytes[start..], Vec::new()));
        }
        let wrong = Broken("a message without its arrays");
        let (bytes, trailer) = self.bytes[start..].split_last_chunk::<TRAILER>().ok_or(wrong)?;
        let (arrays, whole) = (usize::from(trailer[0]), trailer[1] != 0);
        let end = bytes.len().checked_sub(arrays * BLOCK_BYTES).ok_or(wrong)?;
        let blocks = bytes[end..].chunks_exact(BLOCK_BYTES).map(Block::from_bytes);
        let end = start + end;
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

    /// The prefix of the message that is complete, and where the message begins.
    fn prefix(&self) -> Result<(Prefix, usize), Broken> {
        let bytes = self.bytes.as_slice();
        let prefix = bytes.first_chunk::<PREFIX>().ok_or(Broken("a message without a prefix"))?;
        let (id, about) =
            prefix.split_first_chunk::<16>().ok_or(Broken("a message without an id"))?;
        let mut start = PREFIX;
        let mut correlation_id = None;
        if self.has(FLAG_CORRELATED) {
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
            target: self.target(),
            single: about[4] != 0,
        };
        Ok((prefix, start))
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
            single: true,
            target: 300,
        }
    }

    fn ends(slots: usize, granules: usize) -> (ToRing, FromRing, Writer, Reader) {
        let (segment, ring, _back) = Segment::create(slots, granules).unwrap();
        let (to, from) = ring.split();
        (to, from, Writer::new(&segment, TO_CHILD), Reader::new(&segment, TO_CHILD))
    }

    fn head(token: u32, has_prefix: bool) -> Head {
        let prefix = has_prefix.then(|| prefix(token.into()));
        Head { token, prefix, asked: token % 3 == 1, settles: token % 3 == 2 }
    }

    fn send(writer: &mut Writer, head: Head, bytes: &[u8]) {
        let filled: Result<(), ()> = writer.begin(head, |out| {
            out.bytes.extend_from_slice(bytes);
            Ok(())
        });
        filled.unwrap();
    }

    #[test]
    fn messages_of_all_sizes_arrive_as_they_were_sent_with_an_arena_or_without() {
        for (granules, has_prefix) in [(0, true), (20, true), (0, false), (20, false)] {
            let (mut to, mut from, mut writer, mut reader) = ends(64, granules);
            for (token, size) in [0, 1, 32, 33, 0, 56, 57, 500, 3_000, 40_000, 300_000, 70_000]
                .into_iter()
                .enumerate()
            {
                let bytes: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
                let head = head(token as u32, has_prefix);
                send(&mut writer, head, &bytes);
                loop {
                    let idle = writer.stage(&to);
                    assert!(writer.publish(&mut to), "there is room for a frame");
                    if reader.next(&mut from).unwrap() {
                        assert!(idle);
                        break;
                    }
                }
                let target = if has_prefix { 300 } else { 0 };
                assert_eq!((reader.token(), reader.target()), (token as u32, target));
                assert_eq!((reader.is_asked(), reader.settles()), (head.asked, head.settles));
                let (found, message, arrays) = reader.message().unwrap();
                assert_eq!((found, arrays.len()), (head.prefix, 0));
                assert!(message == bytes, "{size} bytes");
                assert_eq!(writer.arena.lent(), 0);
            }
        }
    }

    #[test]
    fn arrays_go_beside_their_message_while_there_is_room() {
        let (mut to, mut from, mut writer, mut reader) = ends(64, 10);
        let array = |value| vec![value; 50_000];
        let filled: Result<(), ()> = writer.begin(head(1, true), |out| {
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
        assert_eq!((found, bytes), (Some(prefix(1)), b"text".as_slice()));
        assert!(*arrays[0] == array(1) && *arrays[1] == array(2) && arrays.len() == 2);
        assert_eq!(writer.arena.lent(), 2);
        drop(arrays);
        assert_eq!(writer.arena.lent(), 0);
    }

    #[test]
    fn a_small_message_takes_one_slot() {
        for (has_prefix, bytes) in [(true, 32), (false, 56)] {
            let (to, _from, mut writer, _reader) = ends(4, 0);
            send(&mut writer, head(2, has_prefix), &vec![7; bytes]);
            assert!(writer.stage(&to));
            assert_eq!(writer.staged(), 1);
        }
    }

    #[test]
    fn slots_that_are_no_frames_are_refused() {
        let slot = |payload_bytes, flags| PlainSlot {
            header: SlotHeader { token: 1, payload_bytes, flags },
            payload: [0; SLOT],
        };
        let continued = FLAG_CONTINUED as u16;
        let (short, more) = (FLAG_SHORT as u16, FLAG_MORE as u16);
        for slots in [
            vec![slot(8, continued)],
            vec![slot(0, 0)],
            vec![slot(0, short | more)],
            vec![slot(60, 0), slot(60, 0)],
        ] {
            let (.., mut reader) = ends(4, 0);
            assert!(slots.iter().any(|slot| reader.feed(slot).is_err()), "{slots:?}");
        }
        let (.., mut reader) = ends(4, 4);
        assert_eq!(reader.feed(&slot(8, 0)), Ok(true));
        assert!(reader.message().is_err(), "shorter than a prefix");
        let arrays = FLAG_ARRAYS as u16;
        assert_eq!(reader.feed(&slot(7, short | arrays)), Ok(true));
        assert!(reader.message().is_err(), "shorter than its end");
        let mut with_arrays = slot(TRAILER as u16 + 10, short | arrays);
        with_arrays.payload[10] = 1;
        assert_eq!(reader.feed(&with_arrays), Ok(true));
        assert!(reader.message().is_err(), "arrays that it does not name");
        with_arrays.header.payload_bytes = (BLOCK_BYTES + TRAILER) as u16;
        let block = Block { first: 4, turn: 1, bytes: 1 };
        with_arrays.payload[..BLOCK_BYTES].copy_from_slice(&block.to_bytes());
        with_arrays.payload[BLOCK_BYTES] = 1;
        assert_eq!(reader.feed(&with_arrays), Ok(true));
        assert!(reader.message().is_err(), "an array outside the arena");
    }
}
