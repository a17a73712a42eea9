//! What a host and a resident GPU grid agree on beyond rings: where things lie, who asks what, who
//! says what.
//!
//! A *seat* is the place on the device in which one ring kernel runs. A grid has many, and one
//! service warp that carries news from the host's memory into the device's, so that idle seats need
//! not read over the bus. A grid runs for a *lease*; its successor takes the seats up where they
//! were, from their [`SeatStore`]s. Addresses are those of the device.

use crate::describe::{Kind, Shared, Struct};
use crate::ring::RingCursor;
use crate::slot::TaggedRecord;

shared_constants! {
    /// The sizes of a seat.
    SEATS: u32;
    /// The bands of a mailbox: SYSTEM, HIGH, NORMAL, LOW.
    BANDS = 4;
    /// Slots that one look at the host's rings reads: one of each band, and the rest of the band
    /// that is busiest. So many records lie in one piece.
    WINDOW_SLOTS = 16;
    /// Slots for what one call of a handler can make: what it emits, sends and logs, and its reply.
    OUTBOX_SLOTS = 16;
    /// Records that one call of a handler can emit and send at most.
    EMITS_MAX = 7;
    /// The bit of an order that asks a seat whether it could leave.
    ORDER_ASKED = 65_536;
    /// The last token that names a delivery to one kernel. Those above it go with what a kernel of the
    /// device sends to the next one, up to the reply that goes to the host.
    TOKEN_LAST = 2_147_483_647;
    /// The token of records that no host's delivery stands behind.
    TOKEN_NONE = 4_294_967_295;
    /// Edges of a seat whose records are counted in its report: its first ones.
    COUNTED_EDGES = 8;
    /// The bit of the call of a team that says that the grid is left.
    TEAM_LEAVES = 2_147_483_648;
}

shared_struct! {
    /// The way to a ring of tagged slots, for one end of it.
    RingPlace: 32 bytes, aligned to 8;
    /// The first slot.
    slots: u64, at 0;
    /// The position that this end publishes; of no use to an end that writes.
    own: u64, at 8;
    /// The position that the other end publishes; of no use to an end that reads.
    peer: u64, at 16;
    /// Slots minus one; they are a power of two.
    mask: u32, at 24;
    /// Messages that fit.
    capacity: u32, at 28;
}

impl Shared for [TaggedRecord; 8] {
    const KIND: Kind = Kind::Many(&TaggedRecord::LAYOUT, 8);
}

impl Shared for [RingPlace; 4] {
    const KIND: Kind = Kind::Many(&RingPlace::LAYOUT, 4);
}

shared_struct! {
    /// A seat, as its kernel finds it. The host writes it, while the seat is empty.
    Seat: 384 bytes, aligned to 128;
    /// The host's rings, most urgent first.
    bands: [RingPlace; 4], at 0;
    /// The ring of replies to the host.
    replies: RingPlace, at 128;
    /// The inbox for other kernels of the device; `slots` is 0 where there is none.
    inbox: RingPlace, at 160;
    /// Its `SeatMirror`.
    mirror: u64, at 192;
    /// Its `SeatReport`, in the host's memory.
    report: u64, at 200;
    /// Its `SeatStore`.
    store: u64, at 208;
    /// The handler's state.
    state: u64, at 216;
    /// Its `Edge`s to other kernels: one for each target of the handler, then that of its replies.
    edges: u64, at 224;
    /// How many targets there are; at most 31.
    edge_count: u32, at 232;
    /// Which handler of the set it runs.
    handler: u32, at 236;
    /// How many records the handler emits and sends for one message at most, besides its reply.
    max_emit: u32, at 240;
    /// The size of a reply, in bytes.
    reply_bytes: u32, at 244;
    /// The edge that its replies take, counted from 1; 0: they go to the host.
    reply_edge: u32, at 248;
    /// How many of `max_emit` it cannot emit, but send.
    send_only: u32, at 252;
    /// How many slots each of its messages takes; at most `TAGGED_SLOTS_MAX`.
    message_slots: u32, at 256;
    /// How many slots a reply takes.
    reply_slots: u32, at 260;
    /// How many slots the longest record takes that it sends.
    send_slots: u32, at 264;
    /// Its `Team`, where it is a team of blocks; else 0.
    team: u64, at 272;
}

shared_struct! {
    /// What the host tells a seat; in the host's memory. The device reads it as chunks of 16 bytes.
    SeatNews: 128 bytes, aligned to 128;
    /// The tails of the host's rings, each stored after the slots before it.
    tails: [u64; 4], at 0;
    /// One of `COMMAND_*`, stored after the tails and slots that it is to cover.
    command: u32, at 32;
}

shared_struct! {
    /// The news, as the service warp passes them on; in the device's memory.
    SeatMirror: 128 bytes, aligned to 128;
    /// As in `SeatNews`.
    tails: [u64; 4], at 0;
    /// In its lowest 16 bits one of `COMMAND_*`; above them `ORDER_ASKED`, if the grid is to be left:
    /// say so in the store. In its high half 0, and then the epoch that is to be left now, since all
    /// seats have said so: store the cursors and go.
    order: u64, at 32;
}

shared_struct! {
    /// What a seat tells the host; in the host's memory. A kernel that hangs, or takes its whole
    /// context down, is named by it.
    SeatReport: 128 bytes, aligned to 128;
    /// Messages handled when the present window was taken, plus one; 0 while there is none.
    busy: u64, at 0;
    /// Messages handled; behind by less than a quarter of a ring while it is busy.
    processed: u64, at 8;
    /// Messages that the handler failed at.
    faulted: u64, at 16;
    /// One of `STATE_*`; written after all the rest.
    state: u32, at 24;
    /// Why it failed.
    fault: i32, at 28;
    /// What it waits for before it takes a message: 0 nothing, 1 room for replies, 2 room at one of
    /// its edges.
    waiting_on: u32, at 32;
    /// The token of the message that it failed at.
    fault_token: u32, at 36;
    /// Messages taken out of the inbox, the one that it failed at included; behind as `processed` is.
    /// What those led to has been published.
    received: u64, at 40;
    /// Replies that went to another kernel of the device; written before what was read is given back.
    passed: u64, at 48;
    /// Records sent over each of its first edges, since the seat was taken; written as `passed` is.
    sent: [u64; 8], at 56;
}

shared_struct! {
    /// What of a seat outlives its grid; in the device's memory. Written by the seat.
    SeatStore: 128 bytes, aligned to 128;
    /// Next positions to read, band by band.
    heads: [u64; 4], at 0;
    /// Next position to write in the ring of replies.
    reply_tail: u64, at 32;
    /// Next position to read in the inbox.
    inbox_head: u64, at 40;
    /// Messages handled.
    processed: u64, at 48;
    /// Messages that the handler failed at.
    faulted: u64, at 56;
    /// Replies made.
    replied: u64, at 64;
    /// Records sent to other kernels of the device.
    sent: u64, at 72;
    /// Clock ticks of the multiprocessor spent in the handler.
    handler_ticks: u64, at 80;
    /// Log records for which there was no room.
    logs_lost: u64, at 88;
    /// One of `STATE_*`; a seat that was stopped or failed stays empty.
    state: u32, at 96;
    /// Why it failed.
    fault: i32, at 100;
    /// Replies that went to another kernel of the device; counted in `sent`, too.
    passed: u64, at 104;
    /// The last epoch in which the seat was asked to leave and was not at work, or is empty.
    ready: u32, at 112;
    /// Messages taken out of the inbox.
    received: u64, at 120;
}

shared_struct! {
    /// The way from one kernel to the inbox of another; in the device's memory. What an edge may
    /// have in flight is its share of the inbox, and the shares sum up to no more than that holds:
    /// so a ticket, once taken, always has a slot.
    Edge: 128 bytes, aligned to 128;
    /// The target's slots; 0 where records go to the host, which sends them on.
    slots: u64, at 0;
    /// The target's `RingCursor` from which all its edges take tickets.
    tickets: u64, at 8;
    /// The target's `RingCursor` of what it has read.
    head: u64, at 16;
    /// This edge's `RingCursor` of what the target has read of it.
    returned: u64, at 24;
    /// Slots minus one.
    mask: u32, at 32;
    /// Messages that the inbox holds.
    capacity: u32, at 36;
    /// How many records of this edge may be in flight.
    share: u32, at 40;
    /// Its number among the target's edges: the token of what it sends.
    number: u32, at 44;
    /// The size of a record, in bytes.
    record_bytes: u32, at 48;
    /// How many slots a record takes: as many as the target's messages do.
    record_slots: u32, at 52;
    /// Records sent; written by the sender.
    sent: u64, at 56;
    /// What `returned` was when last looked at; written by the sender.
    returned_seen: u64, at 64;
    /// What `head` was when last looked at; written by the sender.
    head_seen: u64, at 72;
    /// Records sent over the edges that were in this place before.
    before: u64, at 80;
}

shared_struct! {
    /// What the blocks of a team share, which call a handler together; in the device's memory. The
    /// first three are words, each on a line of its own.
    Team: 1280 bytes, aligned to 128;
    /// In its high half the epoch of the grid. Below it how many calls there were in that, in 31 bits, or
    /// `TEAM_LEAVES`. Written by the first block, after what is shared for the call.
    call: RingCursor, at 0;
    /// How many blocks have come to the present meeting; in the high half, how many of them have returned
    /// from the handler. 0 while no grid runs.
    here: RingCursor, at 128;
    /// How many meetings there were, in 32 bits; in the high half, how many had returned of those who came
    /// to the last one. Written by the block that came last.
    round: RingCursor, at 256;
    /// Why the call has failed: the first cause; 0: it has not.
    fault: i32, at 384;
    /// Whether some thread has made a reply.
    has_reply: u32, at 388;
    /// What was said of the fault, in bytes; 36 at most.
    text_bytes: u32, at 392;
    /// It.
    text: [u8; 36], at 396;
    /// The message of the call, in as many slots as it takes.
    message: [TaggedRecord; 8], at 432;
    /// The reply that is made, likewise.
    reply: [TaggedRecord; 8], at 816;
}

shared_struct! {
    /// What a grid is launched with.
    Grid: 128 bytes, aligned to 128;
    /// The first `Seat`.
    seats: u64, at 0;
    /// The first `SeatNews`, in the host's memory.
    news: u64, at 8;
    /// The first `SeatCounters`, in the host's memory.
    counters: u64, at 16;
    /// The `GridNews`, in the host's memory.
    grid_news: u64, at 24;
    /// The `GridReport`, in the host's memory.
    report: u64, at 32;
    /// A `RingCursor` that counts the seats that have left, or the blocks where those are teams; 0 at launch.
    left: u64, at 40;
    /// One word of four bytes for what serves and for each seat, or each block of it where it is a team, in
    /// the host's memory: the epoch in which it began.
    census: u64, at 48;
    /// How long the grid stays, in nanoseconds; 0: until it is told.
    lease_ns: u64, at 56;
    /// For how long the host's heartbeat may stand still, in nanoseconds; 0: for ever.
    silence_ns: u64, at 64;
    /// How many seats there are.
    seat_count: u32, at 72;
    /// Which lease this is, counted from 1.
    epoch: u32, at 76;
}

shared_struct! {
    /// What the host tells a grid; in the host's memory. Read as one chunk of 16 bytes.
    GridNews: 128 bytes, aligned to 128;
    /// Counts up while the host lives.
    heartbeat: u64, at 0;
    /// The last epoch that is to end before its lease does, as all before it.
    quiesce: u32, at 8;
}

shared_struct! {
    /// What a grid tells the host; in the host's memory. Written by the service warp.
    GridReport: 128 bytes, aligned to 128;
    /// Counts the rounds of the service warp.
    rounds: u64, at 0;
    /// The last epoch whose seats have all left, its counters being exact.
    ended: u32, at 8;
}

shared_struct! {
    /// The counters of a seat, as the service warp copies them into the host's memory: about once a
    /// millisecond, and exactly once its seat has left.
    SeatCounters: 128 bytes, aligned to 128;
    /// As in `SeatStore`.
    processed: u64, at 0;
    /// As in `SeatStore`.
    faulted: u64, at 8;
    /// As in `SeatStore`.
    replied: u64, at 16;
    /// As in `SeatStore`.
    sent: u64, at 24;
    /// As in `SeatStore`.
    handler_ticks: u64, at 32;
    /// As in `SeatStore`.
    logs_lost: u64, at 40;
}

/// The structs of this module, parts first.
pub const STRUCTS: &[Struct] = &[
    RingPlace::LAYOUT,
    Seat::LAYOUT,
    SeatNews::LAYOUT,
    SeatMirror::LAYOUT,
    SeatReport::LAYOUT,
    SeatStore::LAYOUT,
    Edge::LAYOUT,
    Team::LAYOUT,
    Grid::LAYOUT,
    GridNews::LAYOUT,
    GridReport::LAYOUT,
    SeatCounters::LAYOUT,
];

const _: () = assert!(size_of::<TaggedRecord>() == 48, "a seat stages records as 12 words");
