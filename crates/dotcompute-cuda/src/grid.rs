//! The memory of a resident grid, from the host's side: where everything lies, what it holds before
//! the first launch, and the words by which host and device talk.
//!
//! A grid has two arenas. One is the host's, which the device reaches over the bus: rings, news,
//! reports. The other is the device's: seats, stores, mirrors, inboxes, states. Both are taken
//! before the grid is launched and kept as long as it lives; nothing is allocated while it runs.
//! Nothing here calls the driver.
//!
//! # Edges
//!
//! | name | release | acquire | makes visible |
//! |---|---|---|---|
//! | `ring.tag`, `ring.free` | as in `dotcompute_mailbox::ring` | the device is one of the ends | |
//! | `device.order` | [`Port::command`], the command; `dc_serve`, the order | `dc_serve`, the command; `dc_sit`, the order | what was sent before the command |
//! | `device.report` | `dc_tell_state`, the state; `dc_serve`, `ended` | [`Port::report`]; [`Grid::has_ended`] | the rest of the report; the counters |
//! | `device.received` | `dc_settle`, what was taken out of an inbox | [`Port::report`] | what that led to |
//! | `device.inbox_tag`, `device.inbox_free` | `dc_send`; `dc_free_inbox` | `dc_look_at_inbox`; `dc_send` | a record between kernels; that its slot was read |
//! | `device.left` | `dc_leave` | `dc_serve` | a seat's store |
//! | `seat.meet` | `dc_meet` | `dc_meet` | what the threads of one handler did: the call, their shares, its results |
//! | `team.call` | `dc_tell_team` | `dc_follow_team` | the message that the first block of a team shares |
//! | `team.meet` | `dc_meet_blocks` | `dc_meet_blocks` | as `seat.meet`, between the blocks of a team |

mod port;
mod shape;

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use dotcompute_abi::TaggedRecord;
use dotcompute_abi::control::STATE_STOPPED;
use dotcompute_abi::device as abi;
use dotcompute_abi::ring::{RingCursor, RingHeader};
use dotcompute_abi::slot::{SLOT_BYTES, TAGGED_RECORD_BYTES_MAX, tagged_slots};
use dotcompute_mailbox::ring::{Polls, RawError, RawMemory, Tagged};
use dotcompute_mailbox::sync::{AtomicU32, AtomicU64, Ordering};

use crate::image::Scope;
pub use port::{Counters, Port, PortWords, Report};
pub(crate) use shape::Extent;
pub use shape::Shape;

/// Memory of a grid's that someone else took: where the host finds it, where the device does.
#[derive(Clone)]
pub struct Arena {
    host: NonNull<u8>,
    device: u64,
    bytes: usize,
    _owner: Arc<dyn Send + Sync>,
}

// SAFETY: a place that any thread may use, as `Arena::from_raw` is promised.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// The `bytes` bytes that the host finds at `host` and the device at `device`; `owner` keeps
    /// them.
    ///
    /// # Safety
    ///
    /// - The bytes are zero, aligned to 128, and valid for reads and writes by any thread of the
    ///   host and the device until `owner` is dropped.
    /// - All who have access keep to the protocol.
    pub unsafe fn from_raw(
        host: NonNull<u8>,
        device: u64,
        bytes: usize,
        owner: impl Send + Sync + 'static,
    ) -> Self {
        Self { host, device, bytes, _owner: Arc::new(owner) }
    }

    fn at<T>(&self, offset: usize) -> NonNull<T> {
        assert!(offset + size_of::<T>() <= self.bytes, "{offset} lies behind {}", self.bytes);
        // SAFETY: inside the arena, as just checked.
        unsafe { self.host.add(offset) }.cast()
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// What a kernel needs of its seat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeatPlan {
    /// Which handler of the image it runs.
    pub handler: u32,
    /// What its state is at the start.
    pub state: Vec<u8>,
    /// The size of a message, in bytes; at most 376, as of all records.
    pub message_bytes: u32,
    /// The size of a reply, in bytes.
    pub reply_bytes: u32,
    /// How many records the handler emits and sends for one message at most, besides its reply; at
    /// most 7.
    pub max_emit: u32,
    /// How many of `max_emit` it cannot emit, but send.
    pub send_only: u32,
    /// Where it sends to, by the numbers that the handler knows.
    pub edges: Vec<EdgePlan>,
    /// The size of what it sends, in bytes, to each target beyond those: to the host, until there is
    /// an edge ([`Grid::link`]).
    pub open: Vec<u32>,
}

/// A way from a kernel that an edge is given to, or taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// That of its replies.
    Replies,
    /// That of this number among [`SeatPlan::open`].
    Target(u32),
}

impl SeatPlan {
    /// The place of a way among the edges of the seat: the replies' is the last.
    pub fn place(&self, way: Way) -> u32 {
        let place = match way {
            Way::Replies => self.open.len(),
            Way::Target(number) => number as usize,
        };
        (self.edges.len() + place) as u32
    }

    /// How many slots a message takes.
    pub fn message_slots(&self) -> u32 {
        tagged_slots(self.message_bytes)
    }

    /// How many targets there are.
    fn targets(&self) -> u32 {
        (self.edges.len() + self.open.len()) as u32
    }
}

/// An edge from a kernel to another one of its grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgePlan {
    /// The seat that it leads to.
    pub to: u32,
    /// Its number among the edges that lead there, from 0.
    pub number: u32,
    /// How many records of it may be in flight: the shares of all edges to one seat sum up to no
    /// more than its inbox holds.
    pub share: u32,
    /// The size of a record, in bytes: that of the target's messages.
    pub record_bytes: u32,
}

impl EdgePlan {
    /// How many slots of the inbox are its share.
    pub fn share_slots(&self) -> u64 {
        u64::from(self.share) * u64::from(tagged_slots(self.record_bytes))
    }
}

/// A plan that a grid of its shape cannot keep.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// A number is larger than the grid's shape or the protocol allows.
    TooLarge {
        /// Of what.
        what: &'static str,
        /// The number.
        wanted: u64,
        /// The largest that will do.
        most: u64,
    },
    /// An edge may have fewer records in flight than one message can make, so it never could be
    /// used.
    ShareTooSmall {
        /// The edge's place.
        edge: usize,
        /// Its share.
        share: u32,
        /// The least that will do.
        least: u32,
    },
    /// The shares of all edges to one seat are more than its inbox holds: a ticket might find no slot.
    SharesTooLarge {
        /// The seat.
        to: u32,
        /// The sum of the shares.
        shares: u64,
        /// What its inbox holds.
        capacity: usize,
    },
    /// Two edges to one seat have the same number, by which shares are given back.
    EdgeTaken {
        /// The seat.
        to: u32,
        /// The number.
        number: u32,
    },
    /// No edge to the seat is free, or none whose records have all been read.
    NoEdge {
        /// The seat.
        to: u32,
    },
    /// The kernels of a cycle of edges could come to wait for each other for ever.
    Cycle {
        /// The seat that the edge is to lead to.
        to: u32,
        /// The one that it leads from.
        from: u32,
    },
    /// Nobody sits there.
    Vacant {
        /// The seat.
        seat: u32,
    },
    /// A seat that a kernel which has begun sends to: what was on its way there would be lost.
    Target {
        /// The seat.
        seat: u32,
        /// The kernel that sends there.
        from: u32,
    },
    /// The memory suits no ring.
    Ring(RawError),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { what, wanted, most } => {
                write!(f, "{what}: {wanted} is more than {most}")
            }
            Self::ShareTooSmall { edge, share, least } => {
                write!(f, "edge {edge} has a share of {share} and needs {least}")
            }
            Self::SharesTooLarge { to, shares, capacity } => {
                write!(
                    f,
                    "the edges to seat {to} share {shares} places of an inbox with {capacity}"
                )
            }
            Self::EdgeTaken { to, number } => {
                write!(f, "two edges to seat {to} have the number {number}")
            }
            Self::NoEdge { to } => write!(f, "no edge to seat {to} is free"),
            Self::Cycle { to, from } => {
                write!(f, "an edge from seat {from} to seat {to} closes a cycle")
            }
            Self::Vacant { seat } => write!(f, "nobody sits on seat {seat}"),
            Self::Target { seat, from } => {
                write!(
                    f,
                    "seat {seat} is to be taken before seat {from}, which sends to it, begins"
                )
            }
            Self::Ring(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PlanError {}

/// `GridNews`, as atomics.
#[repr(C, align(128))]
struct NewsWords {
    heartbeat: AtomicU64,
    quiesce: AtomicU32,
}

/// `GridReport`, as atomics.
#[repr(C, align(128))]
struct ReportWords {
    rounds: AtomicU64,
    ended: AtomicU32,
}

/// Loom's atomics are larger than the words they stand for.
#[cfg(not(loom))]
const _: () = {
    use std::mem::offset_of;

    assert!(size_of::<NewsWords>() == size_of::<abi::GridNews>());
    assert!(offset_of!(NewsWords, heartbeat) == offset_of!(abi::GridNews, heartbeat));
    assert!(offset_of!(NewsWords, quiesce) == offset_of!(abi::GridNews, quiesce));
    assert!(size_of::<ReportWords>() == size_of::<abi::GridReport>());
    assert!(offset_of!(ReportWords, rounds) == offset_of!(abi::GridReport, rounds));
    assert!(offset_of!(ReportWords, ended) == offset_of!(abi::GridReport, ended));
};

/// Bytes for the device's memory, and where they go: an offset in its arena.
pub type Write = (usize, Vec<u8>);

/// The memory of one grid.
#[derive(Debug)]
pub struct Grid {
    shape: Shape,
    host: Arena,
    /// Where the device's arena begins, as the device sees it.
    device: u64,
}

impl Grid {
    /// A grid of `shape` over `host`, of [`Shape::host_bytes`], and memory of the device's at
    /// `device`, zeroed, of [`Shape::device_bytes`].
    ///
    /// # Panics
    ///
    /// If `host` is too small.
    pub fn new(shape: Shape, host: Arena, device: u64) -> Self {
        let needed = shape.host_bytes();
        assert!(host.bytes >= needed, "{} bytes where {needed} are needed", host.bytes);
        Self { shape, host, device }
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Takes a seat anew, for a kernel: its port, and what must be written to the device's memory
    /// before the next launch. The seat's rings begin empty.
    ///
    /// # Errors
    ///
    /// If the shape has no room for `plan`.
    ///
    /// # Safety
    ///
    /// - No grid runs on this memory, and none is launched before the writes are done.
    /// - No earlier port of this seat is used any more.
    pub unsafe fn seat(&self, seat: u32, plan: &SeatPlan) -> Result<(Port, Vec<Write>), PlanError> {
        self.check(seat, plan)?;
        let shape = self.shape;
        let mut bands = Vec::new();
        let mut band_places = [EMPTY_PLACE; abi::BANDS as usize];
        for (band, place) in band_places.iter_mut().enumerate() {
            let offset = shape.band(seat, band as u32);
            let ring = self.ring(offset, shape.window)?;
            bands.push(ring.producer());
            *place = self.ring_place(offset, shape.window);
        }
        let Ok(bands) = bands.try_into() else { unreachable!("one for each band") };
        let replies_at = shape.replies(seat);
        let replies = self.ring(replies_at, shape.reply_window)?.consumer();
        let inbox = shape.inbox(seat);
        let has_inbox = shape.inbox_capacity > 0;
        let descriptor = abi::Seat {
            bands: band_places,
            replies: self.ring_place(replies_at, shape.reply_window),
            inbox: abi::RingPlace {
                slots: if has_inbox { self.device + inbox.slots as u64 } else { 0 },
                own: self.device + inbox.head as u64,
                peer: self.device + inbox.returned as u64,
                mask: (shape.inbox_capacity.max(1) - 1) as u32,
                capacity: shape.inbox_capacity as u32,
            },
            mirror: self.device + shape.mirror(seat) as u64,
            report: self.host.device + shape.report(seat) as u64,
            store: self.device + shape.store(seat) as u64,
            state: self.device + shape.state(seat) as u64,
            edges: self.device + shape.edge(seat, 0) as u64,
            edge_count: plan.targets(),
            handler: plan.handler,
            max_emit: plan.max_emit,
            reply_bytes: plan.reply_bytes,
            reply_edge: 0,
            send_only: plan.send_only,
            message_slots: plan.message_slots(),
            reply_slots: tagged_slots(plan.reply_bytes),
            send_slots: {
                let edges = plan.edges.iter().map(|edge| edge.record_bytes);
                let all = edges.chain(plan.open.iter().copied());
                all.map(tagged_slots).max().unwrap_or(0)
            },
            team: self.team(seat),
        };
        let mut state = plan.state.clone();
        state.resize(shape.state_bytes, 0);
        let mut writes = vec![
            (shape.seat(seat), bytes_of_seat(&descriptor)),
            (shape.mirror(seat), vec![0; size_of::<abi::SeatMirror>()]),
            (shape.store(seat), vec![0; size_of::<abi::SeatStore>()]),
            (shape.state(seat), state),
        ];
        if has_inbox {
            // Cursors and slots alike: no lap has tag 0.
            writes.push((inbox.tickets, vec![0; inbox.end - inbox.tickets]));
        }
        for (number, edge) in plan.edges.iter().enumerate() {
            writes.push((shape.edge(seat, number as u32), self.edge(edge, 0)));
        }
        for (number, bytes) in plan.open.iter().enumerate() {
            let place = plan.place(Way::Target(number as u32));
            writes.push((shape.edge(seat, place), no_edge(*bytes, 0)));
        }
        let port = Port::new(&self.host, shape, seat, bands, replies);
        Ok((port, writes))
    }

    /// What must be written to the device's memory before the first launch: that nobody sits
    /// anywhere.
    pub fn vacant(&self) -> Vec<Write> {
        let shape = self.shape;
        let mut bytes = vec![0; shape.device_bytes()];
        for seat in 0..shape.seats {
            let descriptor = abi::Seat {
                bands: [EMPTY_PLACE; abi::BANDS as usize],
                replies: EMPTY_PLACE,
                inbox: EMPTY_PLACE,
                mirror: self.device + shape.mirror(seat) as u64,
                report: self.host.device + shape.report(seat) as u64,
                store: self.device + shape.store(seat) as u64,
                state: 0,
                edges: 0,
                edge_count: 0,
                handler: 0,
                max_emit: 0,
                reply_bytes: 0,
                reply_edge: 0,
                send_only: 0,
                message_slots: 1,
                reply_slots: 1,
                send_slots: 0,
                team: self.team(seat),
            };
            let at = shape.seat(seat);
            bytes[at..at + size_of::<abi::Seat>()].copy_from_slice(&bytes_of_seat(&descriptor));
            let (state, stopped) = self.vacate(seat);
            bytes[state..state + stopped.len()].copy_from_slice(&stopped);
        }
        vec![(0, bytes)]
    }

    /// What makes this seat one that nobody sits on; no grid runs.
    pub fn vacate(&self, seat: u32) -> Write {
        let state = self.shape.store(seat) + std::mem::offset_of!(abi::SeatStore, state);
        (state, STATE_STOPPED.to_le_bytes().to_vec())
    }

    fn check(&self, seat: u32, plan: &SeatPlan) -> Result<(), PlanError> {
        let shape = self.shape;
        let payload = u64::from(TAGGED_RECORD_BYTES_MAX);
        let at_most = |what, wanted: u64, most: u64| match wanted <= most {
            true => Ok(()),
            false => Err(PlanError::TooLarge { what, wanted, most }),
        };
        at_most("the seat", u64::from(seat), u64::from(shape.seats) - 1)?;
        at_most("bytes of a message", u64::from(plan.message_bytes), payload)?;
        at_most("slots of a message", u64::from(plan.message_slots()), shape.window as u64)?;
        at_most("bytes of a reply", u64::from(plan.reply_bytes), payload)?;
        at_most("records emitted", u64::from(plan.max_emit), u64::from(abi::EMITS_MAX))?;
        at_most("bytes of state", plan.state.len() as u64, shape.state_bytes as u64)?;
        at_most("records only sent", u64::from(plan.send_only), u64::from(plan.max_emit))?;
        at_most("edges", u64::from(plan.targets()), u64::from(shape.edges))?;
        for bytes in &plan.open {
            at_most("bytes of a record", u64::from(*bytes), payload)?;
        }
        for (number, edge) in plan.edges.iter().enumerate() {
            at_most("the seat of an edge", u64::from(edge.to), u64::from(shape.seats) - 1)?;
            at_most("bytes of a record", u64::from(edge.record_bytes), payload)?;
            let most = u64::from(shape.edges_in.min(256));
            at_most("edges to a seat", u64::from(edge.number) + 1, most)?;
            at_most("the share of an edge", edge.share_slots(), shape.inbox_capacity as u64)?;
            let least = plan.max_emit.max(1);
            if edge.share < least {
                let share = edge.share;
                return Err(PlanError::ShareTooSmall { edge: number, share, least });
            }
        }
        Ok(())
    }

    /// Gives a kernel that is seated with `plan` an edge: what must be written to the device's memory
    /// before the next launch. `before`: how many records it has sent by that way over earlier edges.
    ///
    /// # Errors
    ///
    /// If the shape has no room for the edge.
    pub fn link(
        &self,
        seat: u32,
        plan: &SeatPlan,
        way: Way,
        edge: EdgePlan,
        before: u64,
    ) -> Result<Vec<Write>, PlanError> {
        let place = plan.place(way);
        let edges = plan.edges.iter().copied().chain([edge]).collect();
        let (share, least) = (edge.share, plan.max_emit + u32::from(way == Way::Replies));
        self.check(seat, &SeatPlan { edges, open: Vec::new(), ..plan.clone() })?;
        let most = self.shape.edges;
        if place >= most {
            let wanted = u64::from(place) + 1;
            return Err(PlanError::TooLarge { what: "edges", wanted, most: u64::from(most) });
        }
        if share < least {
            return Err(PlanError::ShareTooSmall { edge: place as usize, share, least });
        }
        let returned = self.returned(&edge);
        let mut writes = vec![
            (self.shape.edge(seat, place), self.edge(&edge, before)),
            (returned, vec![0; size_of::<RingCursor>()]),
        ];
        if way == Way::Replies {
            writes.push(self.reply_edge(seat, place + 1));
        }
        Ok(writes)
    }

    /// Takes an edge from a kernel again, as [`link`](Self::link).
    pub fn unlink(&self, seat: u32, plan: &SeatPlan, way: Way, before: u64) -> Write {
        match way {
            Way::Replies => self.reply_edge(seat, 0),
            Way::Target(number) => {
                let bytes = plan.open[number as usize];
                (self.shape.edge(seat, plan.place(way)), no_edge(bytes, before))
            }
        }
    }

    fn reply_edge(&self, seat: u32, reply_edge: u32) -> Write {
        let at = self.shape.seat(seat) + std::mem::offset_of!(abi::Seat, reply_edge);
        (at, reply_edge.to_le_bytes().into())
    }

    /// Where the inbox of a seat lies in the device's arena, cursors and slots, and how many bytes it
    /// has: what [`unread`](Self::unread) takes.
    pub fn inbox(&self, seat: u32) -> (usize, usize) {
        let inbox = self.shape.inbox(seat);
        (inbox.tickets, inbox.end - inbox.tickets)
    }

    /// The slots of the records of an inbox that nobody has taken, in order, by the bytes that it has
    /// while no grid runs; the first of each with the number of its edge in the high byte of its flags.
    /// A record takes so many `slots`.
    pub fn unread(&self, inbox: &[u8], record_slots: u32) -> Vec<Vec<TaggedRecord>> {
        let capacity = self.shape.inbox_capacity;
        let slots = inbox.len() - capacity * SLOT_BYTES as usize;
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| inbox[at + byte]));
        let (tickets, head) = (long(0), long(size_of::<RingCursor>()));
        let slot = |position: u64| {
            let at = slots + position as usize % capacity * SLOT_BYTES as usize;
            let chunk = |chunk: usize| {
                let word = |word: usize| {
                    let at = at + 16 * chunk + 4 * word;
                    u32::from_le_bytes(std::array::from_fn(|byte| inbox[at + byte]))
                };
                [word(0), word(1), word(2)]
            };
            TaggedRecord::from_chunks(std::array::from_fn(chunk))
        };
        let all: Vec<_> = (head..tickets).map(slot).collect();
        all.chunks(record_slots as usize).map(<[_]>::to_vec).collect()
    }

    /// Takes what came by the edge `number` out of the inbox of a seat, by the bytes that it has while
    /// no grid runs: those records, as [`unread`](Self::unread) gives them, and what must be written to
    /// the device's memory before the next launch.
    pub fn take_out(
        &self,
        seat: u32,
        inbox: &[u8],
        number: u32,
        record_slots: u32,
    ) -> (Vec<Vec<TaggedRecord>>, Vec<Write>) {
        let came_by = |record: &Vec<TaggedRecord>| u32::from(record[0].header.flags) >> 8 == number;
        let (taken, kept): (Vec<_>, Vec<_>) =
            self.unread(inbox, record_slots).into_iter().partition(came_by);
        if taken.is_empty() {
            return (taken, Vec::new());
        }
        let kept = kept.concat();
        let places = self.shape.inbox(seat);
        let head = inbox[size_of::<RingCursor>()..].first_chunk().copied();
        let head = u64::from_le_bytes(head.unwrap_or_default());
        let capacity = self.shape.inbox_capacity as u64;
        let mut writes = vec![(places.tickets, (head + kept.len() as u64).to_le_bytes().into())];
        // The others move up; a slot that nobody wrote to in its lap has an older tag, or none.
        let kept = kept
            .iter()
            .map(Some)
            .chain(std::iter::repeat_n(None, taken.len() * record_slots as usize));
        for (position, record) in (head..).zip(kept) {
            let at = places.slots + (position % capacity) as usize * SLOT_BYTES as usize;
            let mut bytes = Bytes::new(SLOT_BYTES as usize);
            for chunk in record.map(TaggedRecord::to_chunks).into_iter().flatten() {
                chunk.into_iter().for_each(|word| bytes.word(word));
                bytes.word((position / capacity) as u32 + 1);
            }
            writes.push((at, bytes.done()));
        }
        (taken, writes)
    }

    fn ring(
        &self,
        offset: usize,
        capacity: usize,
    ) -> Result<dotcompute_mailbox::ring::RawRing<Tagged, Polls>, PlanError> {
        let bytes = RawMemory::bytes_for::<Tagged>(capacity);
        let start = self.host.at::<RingHeader>(offset).cast();
        // SAFETY: inside the arena, which its owner keeps; the shape gives these bytes to this ring
        // alone, whose other end is the device's; this end is the only one, as `seat` is promised.
        let memory = unsafe { RawMemory::from_raw(start, bytes, self.host.clone()) };
        memory.create(capacity).map_err(PlanError::Ring)
    }

    /// A ring of the host's arena as the device sees it: it reads the bands and writes replies, and
    /// in both cases it is the head that the reader publishes.
    fn ring_place(&self, offset: usize, capacity: usize) -> abi::RingPlace {
        let start = self.host.device + offset as u64;
        let head = start + std::mem::offset_of!(RingHeader, head) as u64;
        abi::RingPlace {
            slots: start + size_of::<RingHeader>() as u64,
            own: head,
            peer: head,
            mask: (capacity.next_power_of_two() - 1) as u32,
            capacity: capacity as u32,
        }
    }

    /// Where the device finds what the blocks of a seat share; 0 where it is no team.
    fn team(&self, seat: u32) -> u64 {
        match self.shape.scope {
            Scope::Team { .. } => self.device + self.shape.team(seat) as u64,
            Scope::Lane | Scope::Warp | Scope::Block { .. } => 0,
        }
    }

    fn returned(&self, plan: &EdgePlan) -> usize {
        self.shape.inbox(plan.to).returned + plan.number as usize * size_of::<RingCursor>()
    }

    fn edge(&self, plan: &EdgePlan, before: u64) -> Vec<u8> {
        let inbox = self.shape.inbox(plan.to);
        let returned = self.returned(plan);
        bytes_of_edge(&abi::Edge {
            slots: self.device + inbox.slots as u64,
            tickets: self.device + inbox.tickets as u64,
            head: self.device + inbox.head as u64,
            returned: self.device + returned as u64,
            mask: (self.shape.inbox_capacity - 1) as u32,
            capacity: self.shape.inbox_capacity as u32,
            share: plan.share,
            number: plan.number,
            record_bytes: plan.record_bytes,
            record_slots: tagged_slots(plan.record_bytes),
            before,
            ..NO_EDGE
        })
    }

    /// What the grid is launched with. `epoch` counts launches on this memory, from 1. The grid ends
    /// by itself after `lease`, and when the host's heartbeat stood still for `silence`.
    pub fn parameters(
        &self,
        epoch: u32,
        lease: Option<Duration>,
        silence: Option<Duration>,
    ) -> abi::Grid {
        let shape = self.shape;
        let ns = |time: Option<Duration>| {
            time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1))
        };
        abi::Grid {
            seats: self.device + shape.seat(0) as u64,
            news: self.host.device + shape.news(0) as u64,
            counters: self.host.device + shape.counters(0) as u64,
            grid_news: self.host.device + Shape::GRID_NEWS as u64,
            report: self.host.device + Shape::GRID_REPORT as u64,
            left: self.device + Shape::LEFT as u64,
            census: self.host.device + Shape::CENSUS as u64,
            lease_ns: ns(lease),
            silence_ns: ns(silence),
            seat_count: shape.seats,
            epoch,
        }
    }

    /// What must be written to the device's memory before each launch: that no seat has left yet.
    pub fn before_launch(&self) -> Write {
        (Shape::LEFT, vec![0; size_of::<RingCursor>()])
    }

    /// Where the state of a seat lies in the device's arena, and how many bytes it has.
    pub fn state(&self, seat: u32) -> (usize, usize) {
        (self.shape.state(seat), self.shape.state_bytes)
    }

    fn news(&self) -> &NewsWords {
        // SAFETY: inside the arena, which `self` keeps; words that both sides reach as atomics.
        unsafe { self.host.at(Shape::GRID_NEWS).as_ref() }
    }

    fn report(&self) -> &ReportWords {
        // SAFETY: as above.
        unsafe { self.host.at(Shape::GRID_REPORT).as_ref() }
    }

    /// Says that the host lives. One thread calls it.
    pub fn beat(&self) {
        let heartbeat = &self.news().heartbeat;
        // Relaxed, both: a word that says all there is to know, with one writer.
        heartbeat.store(heartbeat.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Asks the grids up to this epoch to end now, also those not yet begun. One thread calls it.
    pub fn quiesce(&self, epoch: u32) {
        // Relaxed: nothing is ordered by it.
        self.news().quiesce.store(epoch, Ordering::Relaxed);
    }

    /// Whether every warp of the grid of this epoch is there, or every block where seats are blocks.
    pub fn is_resident(&self, epoch: u32) -> bool {
        (0..self.shape.census()).all(|place| {
            let word = self.host.at::<AtomicU32>(Shape::CENSUS + 4 * place);
            // SAFETY: inside the arena; a word that both sides reach as an atomic.
            let word = unsafe { word.as_ref() };
            // Relaxed: nothing is ordered by it.
            word.load(Ordering::Relaxed) == epoch
        })
    }

    /// Whether all seats have left the grid of this epoch; then their counters are exact.
    pub fn has_ended(&self, epoch: u32) -> bool {
        // SYNC(device.report) acquire: pairs with the release in `dc_serve`. Makes visible the
        // counters of all seats.
        self.report().ended.load(Ordering::Acquire) == epoch
    }

    /// The last epoch whose seats have all left; 0 before the first.
    pub fn ended(&self) -> u32 {
        // SYNC(device.report) acquire: as in `has_ended`.
        self.report().ended.load(Ordering::Acquire)
    }

    /// How many rounds the grid's service warp has made: while it lives they go up.
    pub fn rounds(&self) -> u64 {
        // Relaxed: nothing is ordered by it.
        self.report().rounds.load(Ordering::Relaxed)
    }
}

const EMPTY_PLACE: abi::RingPlace =
    abi::RingPlace { slots: 0, own: 0, peer: 0, mask: 0, capacity: 0 };

const NO_EDGE: abi::Edge = abi::Edge {
    slots: 0,
    tickets: 0,
    head: 0,
    returned: 0,
    mask: 0,
    capacity: 0,
    share: 0,
    number: 0,
    record_bytes: 0,
    record_slots: 0,
    sent: 0,
    returned_seen: 0,
    head_seen: 0,
    before: 0,
};

/// What stands in the place of an edge to a target where there is none.
fn no_edge(record_bytes: u32, before: u64) -> Vec<u8> {
    bytes_of_edge(&abi::Edge { record_bytes, before, ..NO_EDGE })
}

fn bytes_of_edge(edge: &abi::Edge) -> Vec<u8> {
    let mut bytes = Bytes::new(size_of::<abi::Edge>());
    for long in [edge.slots, edge.tickets, edge.head, edge.returned] {
        bytes.long(long);
    }
    for word in [edge.mask, edge.capacity, edge.share, edge.number, edge.record_bytes] {
        bytes.word(word);
    }
    bytes.word(edge.record_slots);
    for long in [edge.sent, edge.returned_seen, edge.head_seen, edge.before] {
        bytes.long(long);
    }
    bytes.done()
}

/// The bytes of a descriptor, field by field: what the asserted offsets say, without padding that
/// was never written.
fn bytes_of_seat(seat: &abi::Seat) -> Vec<u8> {
    let mut bytes = Bytes::new(size_of::<abi::Seat>());
    for place in seat.bands.iter().chain([&seat.replies, &seat.inbox]) {
        bytes.long(place.slots);
        bytes.long(place.own);
        bytes.long(place.peer);
        bytes.word(place.mask);
        bytes.word(place.capacity);
    }
    for long in [seat.mirror, seat.report, seat.store, seat.state, seat.edges] {
        bytes.long(long);
    }
    for word in [seat.edge_count, seat.handler, seat.max_emit, seat.reply_bytes] {
        bytes.word(word);
    }
    bytes.word(seat.reply_edge);
    for word in [seat.send_only, seat.message_slots, seat.reply_slots, seat.send_slots] {
        bytes.word(word);
    }
    // What lies before the next one.
    bytes.word(0);
    bytes.long(seat.team);
    bytes.done()
}

/// A struct in the making: fields without gaps, then zeros.
struct Bytes {
    bytes: Vec<u8>,
    size: usize,
}

impl Bytes {
    fn new(size: usize) -> Self {
        Self { bytes: Vec::with_capacity(size), size }
    }

    fn long(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn word(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn done(mut self) -> Vec<u8> {
        assert!(self.bytes.len() <= self.size, "{} of {}", self.bytes.len(), self.size);
        self.bytes.resize(self.size, 0);
        self.bytes
    }
}
