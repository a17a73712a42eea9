//! Messages in the slots of a ring.
//!
//! A message is one *frame*, or several if it is long: a prefix (id, priority, delivery count and,
//! if flagged, the correlation id), then its bytes. A frame's slots carry the token of the delivery
//! that it belongs to; those after the first are flagged as continued, all but the last frame of a
//! message as followed by more. A frame's slots are published together; a reader uses a message
//! once it has its last frame, so that one which was cut off by a death is never seen.

use dotcompute_abi::PlainSlot;
use dotcompute_abi::slot::{
    FLAG_CONTINUED, FLAG_CORRELATED, FLAG_MORE, PLAIN_PAYLOAD_BYTES, SlotHeader,
};
use dotcompute_core::{Envelope, MessageId};
use dotcompute_mailbox::ring::{Consumer, Plain, Polls, Producer};

/// The bytes of one slot.
const SLOT: usize = PLAIN_PAYLOAD_BYTES as usize;
/// Id, priority, delivery count, whether somebody waits for the answer, for whom it is, and zeros up
/// to a multiple of 8.
const PREFIX: usize = 24;
/// The most bytes of a frame: what its header can say, and no more than makes a long message flow.
const FRAME_MAX: usize = 32 * 1024;
/// The longest message: the limit of the wire format, and a prefix.
const MESSAGE_MAX: usize = (64 << 20) + 64;

pub(crate) type ToRing = Producer<PlainSlot, Plain, Polls>;
pub(crate) type FromRing = Consumer<PlainSlot, Plain, Polls>;

/// The bytes in a ring are no frames.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes in the ring are no message: {0}")]
pub(crate) struct Broken(&'static str);

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
#[derive(Debug, Default)]
pub(crate) struct Writer {
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
    /// Begins a message, of always the same ring; `fill` appends its bytes. The one before must have been staged whole.
    pub(crate) fn begin<E>(
        &mut self,
        token: u32,
        prefix: Prefix,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
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
        let filled = fill(&mut self.bytes);
        if filled.is_err() {
            self.bytes.clear();
        }
        filled
    }

    /// Whether the whole message was staged.
    pub(crate) fn is_idle(&self) -> bool {
        self.written == self.bytes.len()
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
#[derive(Debug, Default)]
pub(crate) struct Reader {
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

    /// The message that is complete.
    pub(crate) fn message(&self) -> Result<(Prefix, &[u8]), Broken> {
        let bytes = self.bytes.as_slice();
        let (prefix, mut rest) =
            bytes.split_first_chunk::<PREFIX>().ok_or(Broken("a message without a prefix"))?;
        let (id, about) =
            prefix.split_first_chunk::<16>().ok_or(Broken("a message without an id"))?;
        let mut correlation_id = None;
        if self.flags & FLAG_CORRELATED as u16 != 0 {
            let (id, behind) =
                rest.split_first_chunk().ok_or(Broken("a message without its correlation id"))?;
            correlation_id = Some(MessageId::from_bytes(*id));
            rest = behind;
        }
        let prefix = Prefix {
            id: MessageId::from_bytes(*id),
            correlation_id,
            priority: about[0],
            delivery_count: about[1],
            flag: about[2] != 0,
            target: u16::from_le_bytes([about[4], about[5]]),
        };
        Ok((prefix, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Segment;

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

    fn send(writer: &mut Writer, token: u32, bytes: &[u8]) {
        let filled: Result<(), ()> = writer.begin(token, prefix(token.into()), |out| {
            out.extend_from_slice(bytes);
            Ok(())
        });
        filled.unwrap();
    }

    #[test]
    fn messages_of_all_sizes_arrive_as_they_were_sent() {
        let (_segment, ring, _back) = Segment::create(16).unwrap();
        let (mut to, mut from) = ring.split();
        let (mut writer, mut reader) = (Writer::default(), Reader::default());
        for (token, size) in [0, 1, 16, 31, 32, 33, 88, 800, 5000, 100_000].into_iter().enumerate()
        {
            let bytes: Vec<u8> = (0..size).map(|byte: u32| byte as u8).collect();
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
            let (found, message) = reader.message().unwrap();
            assert_eq!((reader.token(), found), (token as u32, prefix(token as u128)));
            assert!(message == bytes, "{size} bytes");
        }
    }

    #[test]
    fn a_small_message_takes_one_slot() {
        let (_segment, ring, _back) = Segment::create(4).unwrap();
        let (to, _from) = ring.split();
        let mut writer = Writer::default();
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
            let mut reader = Reader::default();
            assert!(slots.iter().any(|slot| reader.feed(slot).is_err()), "{slots:?}");
        }
        let mut reader = Reader::default();
        assert_eq!(reader.feed(&slot(8, 0)), Ok(true));
        assert!(reader.message().is_err(), "shorter than a prefix");
    }
}
