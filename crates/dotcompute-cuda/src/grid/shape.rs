//! How large a grid is, and so where everything lies in its arenas.

use dotcompute_abi::LINE_BYTES;
use dotcompute_abi::device::{
    BANDS, Edge, GridNews, GridReport, Seat, SeatCounters, SeatMirror, SeatNews, SeatReport,
    SeatStore, Team,
};
use dotcompute_abi::ring::RingCursor;
use dotcompute_mailbox::ring::{RawMemory, Tagged};

use crate::image::Scope;

/// How large a grid is: how many seats, and what each has room for. All seats are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Seats; at least 1.
    pub seats: u32,
    /// Slots of messages that each band of a seat holds on its way to the device; at least 1.
    pub window: usize,
    /// Slots of replies that wait for the host; at least 16, what one message can make.
    pub reply_window: usize,
    /// Slots of records that other kernels may have on their way to a seat: a power of two, or 0 for
    /// none.
    pub inbox_capacity: usize,
    /// Edges from a seat, those to its targets and that of its replies; at most 32.
    pub edges: u32,
    /// Edges to a seat; at most 256.
    pub edges_in: u32,
    /// The size of a state, in bytes.
    pub state_bytes: usize,
    /// How many threads call a handler: that of the image.
    pub scope: Scope,
    /// The shared memory of a kernel, of a team's in each block, in bytes; with the scope of a lane 0.
    pub shared_bytes: u32,
}

/// How large a launch of a grid is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) blocks: u32,
    /// Of each block.
    pub(crate) threads: u32,
    /// Of each block, besides what the code itself has.
    pub(crate) shared_bytes: u32,
}

/// An inbox in the device's arena: offsets.
#[derive(Clone, Copy, Debug)]
pub(super) struct InboxAt {
    pub(super) tickets: usize,
    pub(super) head: usize,
    pub(super) returned: usize,
    pub(super) slots: usize,
    pub(super) end: usize,
}

/// The warps of a block, where a seat is a warp.
const BLOCK_WARPS: u32 = 4;

/// More blocks than any device holds at once.
const GRID_BLOCKS_MAX: u64 = 1 << 24;

/// More than any multiprocessor has.
const SHARED_BYTES_MAX: u32 = 1 << 20;

const fn lines(bytes: usize) -> usize {
    bytes.next_multiple_of(LINE_BYTES)
}

impl Default for Shape {
    /// One seat, with windows of 64 messages and no edges.
    fn default() -> Self {
        Self {
            seats: 1,
            window: 64,
            reply_window: 64,
            inbox_capacity: 0,
            edges: 0,
            edges_in: 0,
            state_bytes: LINE_BYTES,
            scope: Scope::Lane,
            shared_bytes: 0,
        }
    }
}

impl Shape {
    pub(super) const GRID_NEWS: usize = 0;
    pub(super) const GRID_REPORT: usize = Self::GRID_NEWS + size_of::<GridNews>();
    pub(super) const CENSUS: usize = Self::GRID_REPORT + size_of::<GridReport>();
    pub(super) const LEFT: usize = 0;

    fn seats(self) -> usize {
        self.seats as usize
    }

    /// How many are to say that they have begun: what serves, and each seat, or each block of it where it is a
    /// team.
    pub(super) fn census(self) -> usize {
        1 + self.seats() * self.scope.blocks() as usize
    }

    // The host's arena.

    pub(super) fn news(self, seat: u32) -> usize {
        Self::CENSUS + lines(4 * self.census()) + seat as usize * size_of::<SeatNews>()
    }

    pub(super) fn report(self, seat: u32) -> usize {
        self.news(self.seats) + seat as usize * size_of::<SeatReport>()
    }

    pub(super) fn counters(self, seat: u32) -> usize {
        self.report(self.seats) + seat as usize * size_of::<SeatCounters>()
    }

    pub(super) fn band(self, seat: u32, band: u32) -> usize {
        let ring = lines(RawMemory::bytes_for::<Tagged>(self.window));
        self.counters(self.seats) + (seat * BANDS + band) as usize * ring
    }

    pub(super) fn replies(self, seat: u32) -> usize {
        let ring = lines(RawMemory::bytes_for::<Tagged>(self.reply_window));
        self.band(self.seats, 0) + seat as usize * ring
    }

    /// How many bytes the host's arena takes.
    pub fn host_bytes(self) -> usize {
        self.replies(self.seats)
    }

    // The device's.

    pub(super) fn seat(self, seat: u32) -> usize {
        Self::LEFT + size_of::<RingCursor>() + seat as usize * size_of::<Seat>()
    }

    pub(super) fn mirror(self, seat: u32) -> usize {
        self.seat(self.seats) + seat as usize * size_of::<SeatMirror>()
    }

    pub(super) fn store(self, seat: u32) -> usize {
        self.mirror(self.seats) + seat as usize * size_of::<SeatStore>()
    }

    pub(super) fn edge(self, seat: u32, edge: u32) -> usize {
        self.store(self.seats) + (seat * self.edges + edge) as usize * size_of::<Edge>()
    }

    pub(super) fn inbox(self, seat: u32) -> InboxAt {
        let cursor = size_of::<RingCursor>();
        let returned = self.edges_in as usize * cursor;
        let slots = lines(self.inbox_capacity * dotcompute_abi::slot::SLOT_BYTES as usize);
        let tickets = self.edge(self.seats, 0) + seat as usize * (2 * cursor + returned + slots);
        let (head, returned_at) = (tickets + cursor, tickets + 2 * cursor);
        let slots_at = returned_at + returned;
        InboxAt { tickets, head, returned: returned_at, slots: slots_at, end: slots_at + slots }
    }

    pub(super) fn state(self, seat: u32) -> usize {
        self.inbox(self.seats).tickets + seat as usize * lines(self.state_bytes)
    }

    /// What the blocks of a seat share, where it is a team.
    pub(super) fn team(self, seat: u32) -> usize {
        let bytes = match self.scope {
            Scope::Team { .. } => size_of::<Team>(),
            Scope::Lane | Scope::Warp | Scope::Block { .. } => 0,
        };
        self.state(self.seats) + seat as usize * bytes
    }

    /// How many bytes the device's arena takes.
    pub fn device_bytes(self) -> usize {
        self.team(self.seats)
    }

    /// How it is launched, as `resident.cu` has it: where a seat is a warp, one warp serves and each other
    /// one is a seat; where it is a block, or a team of them, a block serves.
    pub(crate) fn extent(self) -> Extent {
        let shared_bytes = self.shared_bytes.next_multiple_of(16);
        match self.scope {
            Scope::Block { threads } | Scope::Team { threads, .. } => {
                Extent { blocks: self.census() as u32, threads, shared_bytes }
            }
            Scope::Lane | Scope::Warp => Extent {
                blocks: (self.seats + 1).div_ceil(BLOCK_WARPS),
                threads: 32 * BLOCK_WARPS,
                shared_bytes: BLOCK_WARPS * shared_bytes,
            },
        }
    }

    /// Why no grid has this shape; nothing if one can.
    pub fn wrong(self) -> Option<&'static str> {
        if self.seats == 0 {
            return Some("a grid has at least one seat");
        }
        if self.window == 0 {
            return Some("a window holds at least one message");
        }
        if self.reply_window < dotcompute_abi::device::OUTBOX_SLOTS as usize {
            return Some("a reply window holds at least what one message can make, 16");
        }
        if self.inbox_capacity != 0 && !self.inbox_capacity.is_power_of_two() {
            return Some("the capacity of an inbox is a power of two");
        }
        if u64::from(self.seats) * u64::from(self.scope.blocks()) > GRID_BLOCKS_MAX {
            return Some("no device holds so many blocks at once");
        }
        if self.shared_bytes > SHARED_BYTES_MAX {
            return Some("no multiprocessor has so much shared memory");
        }
        (self.edges > 32).then_some("a seat has at most 32 edges")
    }
}
