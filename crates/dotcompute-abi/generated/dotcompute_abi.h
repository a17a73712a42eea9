// Written by `cargo run -p dotcompute-abi --example generate`. Do not edit.

#ifndef DOTCOMPUTE_ABI_H
#define DOTCOMPUTE_ABI_H

/* NVRTC has no standard headers. */
#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define DC_OFFSET(type, field) __INTADDR__(&((type *)0)->field)
#else
#include <stddef.h>
#include <stdint.h>
#define DC_OFFSET(type, field) offsetof(type, field)
#endif

#ifdef __cplusplus
#define DC_ALIGN(bytes) alignas(bytes)
#define DC_ASSERT(condition, text) static_assert(condition, text)
#else
#define DC_ALIGN(bytes) _Alignas(bytes)
#define DC_ASSERT(condition, text) _Static_assert(condition, text)
#endif

#define DC_ABI_VERSION 1u
#define DC_LINE_BYTES 128u
#define DC_RING_MAGIC 0x676e697263746f64ull

/* Bytes of a slot, in all formats. */
#define DC_SLOT_BYTES 64u
/* Bytes of payload in a plain slot. */
#define DC_PLAIN_PAYLOAD_BYTES 56u
/* Bytes of payload in a tagged slot. */
#define DC_TAGGED_PAYLOAD_BYTES 40u
/* Chunks of a tagged slot. */
#define DC_TAGGED_CHUNKS 4u
/* Bytes of payload in each further slot of a tagged record. */
#define DC_TAGGED_MORE_BYTES 48u
/* Slots that a tagged record takes at most. */
#define DC_TAGGED_SLOTS_MAX 8u
/* Bytes of the longest tagged record. */
#define DC_TAGGED_RECORD_BYTES_MAX 376u

/* This slot continues the record that the slot before it began. */
#define DC_FLAG_CONTINUED 1u
/* This record is no reply but a line of a kernel's log: its level in four bytes, then text. */
#define DC_FLAG_LOG 2u
/* The record begins with the id of the message that it answers, between processes. */
#define DC_FLAG_CORRELATED 4u
/* The next record, of the same token, goes on with this one's message, between processes. */
#define DC_FLAG_MORE 8u
/* The replies to this message go to the host, also where the kernel's go to another one of the */
/* device, and not before that one has handled all that was sent to it. */
#define DC_FLAG_HOME 16u
/* This reply comes too late: one before it has answered the message. */
#define DC_FLAG_LATE 32u
/* This record is no reply but the message of another kernel of the device at which this one failed. */
#define DC_FLAG_FAULTED 64u
/* This record is no reply but was sent to the target whose number is in the high byte. */
#define DC_FLAG_SENT 128u
/* The record is the message alone, and what goes beside it is as it mostly is, between processes. */
#define DC_FLAG_SHORT 256u
/* Somebody waits for the answer to this message, between processes. */
#define DC_FLAG_ASKED 512u
/* With this reply its message is processed, and all that were handed over before it, between processes. */
#define DC_FLAG_SETTLES 1024u
/* Behind the message the record says where arrays lie, between processes. */
#define DC_FLAG_ARRAYS 2048u
/* In a lapped ring: the lap in which this slot was written, position divided by slots, is even. */
#define DC_FLAG_LAP 32768u

/* `format` of a ring of plain slots. */
#define DC_FORMAT_PLAIN 1u
/* `format` of a ring of tagged slots. */
#define DC_FORMAT_TAGGED 2u
/* `format` of a ring of lapped slots. */
#define DC_FORMAT_LAPPED 3u
/* `waiting` of a ring whose ends poll. */
#define DC_WAITING_POLLS 0u
/* `waiting` of a ring whose ends may sleep and ring each other. */
#define DC_WAITING_RINGS 1u

/* Take no message yet, or no more until told otherwise. */
#define DC_COMMAND_HOLD 0u
/* Take messages. */
#define DC_COMMAND_RUN 1u
/* Finish what is in the rings, then stop. */
#define DC_COMMAND_DRAIN 2u
/* Stop after the message in hand. */
#define DC_COMMAND_STOP 3u
/* Stop at the next tick, inside the handler if need be. */
#define DC_COMMAND_KILL 4u

/* Not there yet. */
#define DC_STATE_ABSENT 0u
/* There, holding. */
#define DC_STATE_HOLDING 1u
/* Taking messages. */
#define DC_STATE_RUNNING 2u
/* Gone, as asked or at the end of its lease; its cursors are stored. */
#define DC_STATE_STOPPED 3u
/* Gone after a fault; `fault` says which. */
#define DC_STATE_FAILED 4u

/* The bands of a mailbox: SYSTEM, HIGH, NORMAL, LOW. */
#define DC_BANDS 4u
/* Slots that one look at the host's rings reads: one of each band, and the rest of the band */
/* that is busiest. So many records lie in one piece. */
#define DC_WINDOW_SLOTS 16u
/* Slots for what one call of a handler can make: what it emits, sends and logs, and its reply. */
#define DC_OUTBOX_SLOTS 16u
/* Records that one call of a handler can emit and send at most. */
#define DC_EMITS_MAX 7u
/* The bit of an order that asks a seat whether it could leave. */
#define DC_ORDER_ASKED 65536u
/* The last token that names a delivery to one kernel. Those above it go with what a kernel of the */
/* device sends to the next one, up to the reply that goes to the host. */
#define DC_TOKEN_LAST 2147483647u
/* The token of records that no host's delivery stands behind. */
#define DC_TOKEN_NONE 4294967295u
/* Edges of a seat whose records are counted in its report: its first ones. */
#define DC_COUNTED_EDGES 8u
/* The bit of the call of a team that says that the grid is left. */
#define DC_TEAM_LEAVES 2147483648u

/* The handler is done and made no reply. */
#define DC_HANDLER_DONE (0)
/* The handler is done and wrote a reply. */
#define DC_HANDLER_REPLY (1)

/* No fault. */
#define DC_FAULT_NONE (0)
/* The last code that a handler may use for itself. */
#define DC_FAULT_USER_LAST (-65535)
/* The handler panicked or raised an exception. */
#define DC_FAULT_PANIC (-65536)
/* The handler returned a number above 1. */
#define DC_FAULT_BAD_RESULT (-65537)
/* A tick inside the handler found that it was told to stop. */
#define DC_FAULT_DEADLINE (-65538)
/* An index was out of bounds. */
#define DC_FAULT_BOUNDS (-65539)
/* The handler emitted more messages than it declared. */
#define DC_FAULT_EMIT_LIMIT (-65540)
/* A record did not have the size that the handler takes. */
#define DC_FAULT_RECORD_SIZE (-65541)
/* The device or the process under the kernel was lost. */
#define DC_FAULT_LOST (-65542)
/* The kernel did not answer within its watchdog. */
#define DC_FAULT_STUCK (-65543)
/* The threads of one handler did not go together: not all of them came to a barrier, or another than */
/* the first emitted, sent or logged. */
#define DC_FAULT_DIVERGED (-65544)

/* The first 8 bytes of every slot. */
typedef struct dc_slot_header {
    /* Names the delivery: the host keeps ids, bands and askers in a table under this number. */
    uint32_t token;
    /* Length of the whole record, over all of its slots. */
    uint16_t payload_bytes;
    /* Bits `FLAG_*`. */
    uint16_t flags;
} dc_slot_header;
DC_ASSERT(sizeof(dc_slot_header) == 8, "dc_slot_header");
DC_ASSERT(DC_OFFSET(dc_slot_header, token) == 0, "dc_slot_header.token");
DC_ASSERT(DC_OFFSET(dc_slot_header, payload_bytes) == 4, "dc_slot_header.payload_bytes");
DC_ASSERT(DC_OFFSET(dc_slot_header, flags) == 6, "dc_slot_header.flags");

/* A slot between threads or processes. The payload is aligned to 8. */
typedef struct dc_plain_slot {
    /* The header. */
    DC_ALIGN(64) dc_slot_header header;
    /* The record, or this slot's part of it; zero behind its end. */
    uint8_t payload[56];
} dc_plain_slot;
DC_ASSERT(sizeof(dc_plain_slot) == 64, "dc_plain_slot");
DC_ASSERT(DC_OFFSET(dc_plain_slot, header) == 0, "dc_plain_slot.header");
DC_ASSERT(DC_OFFSET(dc_plain_slot, payload) == 8, "dc_plain_slot.payload");

/* A quarter of a tagged slot. The tag is written after the data. */
typedef struct dc_tagged_chunk {
    /* 12 bytes of the record. */
    DC_ALIGN(16) uint32_t data[3];
    /* The lap in which `data` was written: position divided by slots, plus one, modulo 2^32. */
    uint32_t tag;
} dc_tagged_chunk;
DC_ASSERT(sizeof(dc_tagged_chunk) == 16, "dc_tagged_chunk");
DC_ASSERT(DC_OFFSET(dc_tagged_chunk, data) == 0, "dc_tagged_chunk.data");
DC_ASSERT(DC_OFFSET(dc_tagged_chunk, tag) == 12, "dc_tagged_chunk.tag");

/* A slot between host and device, as it lies in the ring. */
typedef struct dc_tagged_slot {
    /* The chunks; their data, end to end, are a `TaggedRecord`. */
    DC_ALIGN(64) dc_tagged_chunk chunks[4];
} dc_tagged_slot;
DC_ASSERT(sizeof(dc_tagged_slot) == 64, "dc_tagged_slot");
DC_ASSERT(DC_OFFSET(dc_tagged_slot, chunks) == 0, "dc_tagged_slot.chunks");

/* What a tagged slot carries: the data of its chunks without their tags. */
typedef struct dc_tagged_record {
    /* The header. */
    dc_slot_header header;
    /* The record, or this slot's part of it; zero behind its end. */
    uint8_t payload[40];
} dc_tagged_record;
DC_ASSERT(sizeof(dc_tagged_record) == 48, "dc_tagged_record");
DC_ASSERT(DC_OFFSET(dc_tagged_record, header) == 0, "dc_tagged_record.header");
DC_ASSERT(DC_OFFSET(dc_tagged_record, payload) == 8, "dc_tagged_record.payload");

/* What the ring is; written once, before anyone else sees it. */
typedef struct dc_ring_identity {
    /* `RING_MAGIC`, written last. */
    DC_ALIGN(128) uint64_t magic;
    /* `ABI_VERSION`. */
    uint32_t version;
    /* One of `FORMAT_*`. */
    uint32_t format;
    /* One of `WAITING_*`. */
    uint32_t waiting;
    /* Messages that fit, exactly; at least 1. */
    uint32_t capacity;
    /* Slots that follow the header: `capacity` rounded up to a power of two. */
    uint32_t slots;
} dc_ring_identity;
DC_ASSERT(sizeof(dc_ring_identity) == 128, "dc_ring_identity");
DC_ASSERT(DC_OFFSET(dc_ring_identity, magic) == 0, "dc_ring_identity.magic");
DC_ASSERT(DC_OFFSET(dc_ring_identity, version) == 8, "dc_ring_identity.version");
DC_ASSERT(DC_OFFSET(dc_ring_identity, format) == 12, "dc_ring_identity.format");
DC_ASSERT(DC_OFFSET(dc_ring_identity, waiting) == 16, "dc_ring_identity.waiting");
DC_ASSERT(DC_OFFSET(dc_ring_identity, capacity) == 20, "dc_ring_identity.capacity");
DC_ASSERT(DC_OFFSET(dc_ring_identity, slots) == 24, "dc_ring_identity.slots");

/* A position on a line of its own; written by one end. */
typedef struct dc_ring_cursor {
    /* The position. */
    DC_ALIGN(128) uint64_t position;
} dc_ring_cursor;
DC_ASSERT(sizeof(dc_ring_cursor) == 128, "dc_ring_cursor");
DC_ASSERT(DC_OFFSET(dc_ring_cursor, position) == 0, "dc_ring_cursor.position");

/* The words of one end that seldom change; written by that end. */
typedef struct dc_ring_end {
    /* Counts the times this end asked to be woken. */
    DC_ALIGN(128) uint32_t asks;
    /* The peer's `asks` that this end answered last. The peer sleeps on it. */
    uint32_t rung;
    /* The CPU from which this end last rang, plus one; 0 if unknown. A hint. */
    uint32_t cpu;
    /* 1 once this end is gone. */
    uint32_t closed;
} dc_ring_end;
DC_ASSERT(sizeof(dc_ring_end) == 128, "dc_ring_end");
DC_ASSERT(DC_OFFSET(dc_ring_end, asks) == 0, "dc_ring_end.asks");
DC_ASSERT(DC_OFFSET(dc_ring_end, rung) == 4, "dc_ring_end.rung");
DC_ASSERT(DC_OFFSET(dc_ring_end, cpu) == 8, "dc_ring_end.cpu");
DC_ASSERT(DC_OFFSET(dc_ring_end, closed) == 12, "dc_ring_end.closed");

/* The words of a ring; its slots follow at once. */
typedef struct dc_ring_header {
    /* What the ring is. */
    DC_ALIGN(128) dc_ring_identity identity;
    /* Next position to write; written by the producer. */
    dc_ring_cursor tail;
    /* Next position to read; written by the consumer. */
    dc_ring_cursor head;
    /* Written by the producer. */
    dc_ring_end producer;
    /* Written by the consumer. */
    dc_ring_end consumer;
} dc_ring_header;
DC_ASSERT(sizeof(dc_ring_header) == 640, "dc_ring_header");
DC_ASSERT(DC_OFFSET(dc_ring_header, identity) == 0, "dc_ring_header.identity");
DC_ASSERT(DC_OFFSET(dc_ring_header, tail) == 128, "dc_ring_header.tail");
DC_ASSERT(DC_OFFSET(dc_ring_header, head) == 256, "dc_ring_header.head");
DC_ASSERT(DC_OFFSET(dc_ring_header, producer) == 384, "dc_ring_header.producer");
DC_ASSERT(DC_OFFSET(dc_ring_header, consumer) == 512, "dc_ring_header.consumer");

/* The words of a control block that the host writes. */
typedef struct dc_host_control {
    /* Counts up while the host lives; a kernel whose host fell silent ends itself. */
    DC_ALIGN(128) uint64_t heartbeat;
    /* One of `COMMAND_*`. */
    uint32_t command;
} dc_host_control;
DC_ASSERT(sizeof(dc_host_control) == 128, "dc_host_control");
DC_ASSERT(DC_OFFSET(dc_host_control, heartbeat) == 0, "dc_host_control.heartbeat");
DC_ASSERT(DC_OFFSET(dc_host_control, command) == 8, "dc_host_control.command");

/* The words of a control block that the kernel writes. */
typedef struct dc_kernel_control {
    /* Counts up while the kernel polls. */
    DC_ALIGN(128) uint64_t heartbeat;
    /* Position of the message in hand plus one; 0 while there is none. */
    uint64_t busy_sequence;
    /* Messages finished. */
    uint64_t processed;
    /* One of `STATE_*`. Written after `fault`. */
    uint32_t state;
    /* Why the kernel failed: `FAULT_*`, or a code of the handler's own. */
    int32_t fault;
} dc_kernel_control;
DC_ASSERT(sizeof(dc_kernel_control) == 128, "dc_kernel_control");
DC_ASSERT(DC_OFFSET(dc_kernel_control, heartbeat) == 0, "dc_kernel_control.heartbeat");
DC_ASSERT(DC_OFFSET(dc_kernel_control, busy_sequence) == 8, "dc_kernel_control.busy_sequence");
DC_ASSERT(DC_OFFSET(dc_kernel_control, processed) == 16, "dc_kernel_control.processed");
DC_ASSERT(DC_OFFSET(dc_kernel_control, state) == 24, "dc_kernel_control.state");
DC_ASSERT(DC_OFFSET(dc_kernel_control, fault) == 28, "dc_kernel_control.fault");

/* The control block of one kernel: a line per writer. */
typedef struct dc_control_block {
    /* Written by the host only. */
    DC_ALIGN(128) dc_host_control host;
    /* Written by the kernel only. */
    dc_kernel_control kernel;
} dc_control_block;
DC_ASSERT(sizeof(dc_control_block) == 256, "dc_control_block");
DC_ASSERT(DC_OFFSET(dc_control_block, host) == 0, "dc_control_block.host");
DC_ASSERT(DC_OFFSET(dc_control_block, kernel) == 128, "dc_control_block.kernel");

/* The way to a ring of tagged slots, for one end of it. */
typedef struct dc_ring_place {
    /* The first slot. */
    uint64_t slots;
    /* The position that this end publishes; of no use to an end that writes. */
    uint64_t own;
    /* The position that the other end publishes; of no use to an end that reads. */
    uint64_t peer;
    /* Slots minus one; they are a power of two. */
    uint32_t mask;
    /* Messages that fit. */
    uint32_t capacity;
} dc_ring_place;
DC_ASSERT(sizeof(dc_ring_place) == 32, "dc_ring_place");
DC_ASSERT(DC_OFFSET(dc_ring_place, slots) == 0, "dc_ring_place.slots");
DC_ASSERT(DC_OFFSET(dc_ring_place, own) == 8, "dc_ring_place.own");
DC_ASSERT(DC_OFFSET(dc_ring_place, peer) == 16, "dc_ring_place.peer");
DC_ASSERT(DC_OFFSET(dc_ring_place, mask) == 24, "dc_ring_place.mask");
DC_ASSERT(DC_OFFSET(dc_ring_place, capacity) == 28, "dc_ring_place.capacity");

/* A seat, as its kernel finds it. The host writes it, while the seat is empty. */
typedef struct dc_seat {
    /* The host's rings, most urgent first. */
    DC_ALIGN(128) dc_ring_place bands[4];
    /* The ring of replies to the host. */
    dc_ring_place replies;
    /* The inbox for other kernels of the device; `slots` is 0 where there is none. */
    dc_ring_place inbox;
    /* Its `SeatMirror`. */
    uint64_t mirror;
    /* Its `SeatReport`, in the host's memory. */
    uint64_t report;
    /* Its `SeatStore`. */
    uint64_t store;
    /* The handler's state. */
    uint64_t state;
    /* Its `Edge`s to other kernels: one for each target of the handler, then that of its replies. */
    uint64_t edges;
    /* How many targets there are; at most 31. */
    uint32_t edge_count;
    /* Which handler of the set it runs. */
    uint32_t handler;
    /* How many records the handler emits and sends for one message at most, besides its reply. */
    uint32_t max_emit;
    /* The size of a reply, in bytes. */
    uint32_t reply_bytes;
    /* The edge that its replies take, counted from 1; 0: they go to the host. */
    uint32_t reply_edge;
    /* How many of `max_emit` it cannot emit, but send. */
    uint32_t send_only;
    /* How many slots each of its messages takes; at most `TAGGED_SLOTS_MAX`. */
    uint32_t message_slots;
    /* How many slots a reply takes. */
    uint32_t reply_slots;
    /* How many slots the longest record takes that it sends. */
    uint32_t send_slots;
    /* Its `Team`, where it is a team of blocks; else 0. */
    uint64_t team;
} dc_seat;
DC_ASSERT(sizeof(dc_seat) == 384, "dc_seat");
DC_ASSERT(DC_OFFSET(dc_seat, bands) == 0, "dc_seat.bands");
DC_ASSERT(DC_OFFSET(dc_seat, replies) == 128, "dc_seat.replies");
DC_ASSERT(DC_OFFSET(dc_seat, inbox) == 160, "dc_seat.inbox");
DC_ASSERT(DC_OFFSET(dc_seat, mirror) == 192, "dc_seat.mirror");
DC_ASSERT(DC_OFFSET(dc_seat, report) == 200, "dc_seat.report");
DC_ASSERT(DC_OFFSET(dc_seat, store) == 208, "dc_seat.store");
DC_ASSERT(DC_OFFSET(dc_seat, state) == 216, "dc_seat.state");
DC_ASSERT(DC_OFFSET(dc_seat, edges) == 224, "dc_seat.edges");
DC_ASSERT(DC_OFFSET(dc_seat, edge_count) == 232, "dc_seat.edge_count");
DC_ASSERT(DC_OFFSET(dc_seat, handler) == 236, "dc_seat.handler");
DC_ASSERT(DC_OFFSET(dc_seat, max_emit) == 240, "dc_seat.max_emit");
DC_ASSERT(DC_OFFSET(dc_seat, reply_bytes) == 244, "dc_seat.reply_bytes");
DC_ASSERT(DC_OFFSET(dc_seat, reply_edge) == 248, "dc_seat.reply_edge");
DC_ASSERT(DC_OFFSET(dc_seat, send_only) == 252, "dc_seat.send_only");
DC_ASSERT(DC_OFFSET(dc_seat, message_slots) == 256, "dc_seat.message_slots");
DC_ASSERT(DC_OFFSET(dc_seat, reply_slots) == 260, "dc_seat.reply_slots");
DC_ASSERT(DC_OFFSET(dc_seat, send_slots) == 264, "dc_seat.send_slots");
DC_ASSERT(DC_OFFSET(dc_seat, team) == 272, "dc_seat.team");

/* What the host tells a seat; in the host's memory. The device reads it as chunks of 16 bytes. */
typedef struct dc_seat_news {
    /* The tails of the host's rings, each stored after the slots before it. */
    DC_ALIGN(128) uint64_t tails[4];
    /* One of `COMMAND_*`, stored after the tails and slots that it is to cover. */
    uint32_t command;
} dc_seat_news;
DC_ASSERT(sizeof(dc_seat_news) == 128, "dc_seat_news");
DC_ASSERT(DC_OFFSET(dc_seat_news, tails) == 0, "dc_seat_news.tails");
DC_ASSERT(DC_OFFSET(dc_seat_news, command) == 32, "dc_seat_news.command");

/* The news, as the service warp passes them on; in the device's memory. */
typedef struct dc_seat_mirror {
    /* As in `SeatNews`. */
    DC_ALIGN(128) uint64_t tails[4];
    /* In its lowest 16 bits one of `COMMAND_*`; above them `ORDER_ASKED`, if the grid is to be left: */
    /* say so in the store. In its high half 0, and then the epoch that is to be left now, since all */
    /* seats have said so: store the cursors and go. */
    uint64_t order;
} dc_seat_mirror;
DC_ASSERT(sizeof(dc_seat_mirror) == 128, "dc_seat_mirror");
DC_ASSERT(DC_OFFSET(dc_seat_mirror, tails) == 0, "dc_seat_mirror.tails");
DC_ASSERT(DC_OFFSET(dc_seat_mirror, order) == 32, "dc_seat_mirror.order");

/* What a seat tells the host; in the host's memory. A kernel that hangs, or takes its whole */
/* context down, is named by it. */
typedef struct dc_seat_report {
    /* Messages handled when the present window was taken, plus one; 0 while there is none. */
    DC_ALIGN(128) uint64_t busy;
    /* Messages handled; behind by less than a quarter of a ring while it is busy. */
    uint64_t processed;
    /* Messages that the handler failed at. */
    uint64_t faulted;
    /* One of `STATE_*`; written after all the rest. */
    uint32_t state;
    /* Why it failed. */
    int32_t fault;
    /* What it waits for before it takes a message: 0 nothing, 1 room for replies, 2 room at one of */
    /* its edges. */
    uint32_t waiting_on;
    /* The token of the message that it failed at. */
    uint32_t fault_token;
    /* Messages taken out of the inbox, the one that it failed at included; behind as `processed` is. */
    /* What those led to has been published. */
    uint64_t received;
    /* Replies that went to another kernel of the device; written before what was read is given back. */
    uint64_t passed;
    /* Records sent over each of its first edges, since the seat was taken; written as `passed` is. */
    uint64_t sent[8];
} dc_seat_report;
DC_ASSERT(sizeof(dc_seat_report) == 128, "dc_seat_report");
DC_ASSERT(DC_OFFSET(dc_seat_report, busy) == 0, "dc_seat_report.busy");
DC_ASSERT(DC_OFFSET(dc_seat_report, processed) == 8, "dc_seat_report.processed");
DC_ASSERT(DC_OFFSET(dc_seat_report, faulted) == 16, "dc_seat_report.faulted");
DC_ASSERT(DC_OFFSET(dc_seat_report, state) == 24, "dc_seat_report.state");
DC_ASSERT(DC_OFFSET(dc_seat_report, fault) == 28, "dc_seat_report.fault");
DC_ASSERT(DC_OFFSET(dc_seat_report, waiting_on) == 32, "dc_seat_report.waiting_on");
DC_ASSERT(DC_OFFSET(dc_seat_report, fault_token) == 36, "dc_seat_report.fault_token");
DC_ASSERT(DC_OFFSET(dc_seat_report, received) == 40, "dc_seat_report.received");
DC_ASSERT(DC_OFFSET(dc_seat_report, passed) == 48, "dc_seat_report.passed");
DC_ASSERT(DC_OFFSET(dc_seat_report, sent) == 56, "dc_seat_report.sent");

/* What of a seat outlives its grid; in the device's memory. Written by the seat. */
typedef struct dc_seat_store {
    /* Next positions to read, band by band. */
    DC_ALIGN(128) uint64_t heads[4];
    /* Next position to write in the ring of replies. */
    uint64_t reply_tail;
    /* Next position to read in the inbox. */
    uint64_t inbox_head;
    /* Messages handled. */
    uint64_t processed;
    /* Messages that the handler failed at. */
    uint64_t faulted;
    /* Replies made. */
    uint64_t replied;
    /* Records sent to other kernels of the device. */
    uint64_t sent;
    /* Clock ticks of the multiprocessor spent in the handler. */
    uint64_t handler_ticks;
    /* Log records for which there was no room. */
    uint64_t logs_lost;
    /* One of `STATE_*`; a seat that was stopped or failed stays empty. */
    uint32_t state;
    /* Why it failed. */
    int32_t fault;
    /* Replies that went to another kernel of the device; counted in `sent`, too. */
    uint64_t passed;
    /* The last epoch in which the seat was asked to leave and was not at work, or is empty. */
    uint32_t ready;
    /* Messages taken out of the inbox. */
    uint64_t received;
} dc_seat_store;
DC_ASSERT(sizeof(dc_seat_store) == 128, "dc_seat_store");
DC_ASSERT(DC_OFFSET(dc_seat_store, heads) == 0, "dc_seat_store.heads");
DC_ASSERT(DC_OFFSET(dc_seat_store, reply_tail) == 32, "dc_seat_store.reply_tail");
DC_ASSERT(DC_OFFSET(dc_seat_store, inbox_head) == 40, "dc_seat_store.inbox_head");
DC_ASSERT(DC_OFFSET(dc_seat_store, processed) == 48, "dc_seat_store.processed");
DC_ASSERT(DC_OFFSET(dc_seat_store, faulted) == 56, "dc_seat_store.faulted");
DC_ASSERT(DC_OFFSET(dc_seat_store, replied) == 64, "dc_seat_store.replied");
DC_ASSERT(DC_OFFSET(dc_seat_store, sent) == 72, "dc_seat_store.sent");
DC_ASSERT(DC_OFFSET(dc_seat_store, handler_ticks) == 80, "dc_seat_store.handler_ticks");
DC_ASSERT(DC_OFFSET(dc_seat_store, logs_lost) == 88, "dc_seat_store.logs_lost");
DC_ASSERT(DC_OFFSET(dc_seat_store, state) == 96, "dc_seat_store.state");
DC_ASSERT(DC_OFFSET(dc_seat_store, fault) == 100, "dc_seat_store.fault");
DC_ASSERT(DC_OFFSET(dc_seat_store, passed) == 104, "dc_seat_store.passed");
DC_ASSERT(DC_OFFSET(dc_seat_store, ready) == 112, "dc_seat_store.ready");
DC_ASSERT(DC_OFFSET(dc_seat_store, received) == 120, "dc_seat_store.received");

/* The way from one kernel to the inbox of another; in the device's memory. What an edge may */
/* have in flight is its share of the inbox, and the shares sum up to no more than that holds: */
/* so a ticket, once taken, always has a slot. */
typedef struct dc_edge {
    /* The target's slots; 0 where records go to the host, which sends them on. */
    DC_ALIGN(128) uint64_t slots;
    /* The target's `RingCursor` from which all its edges take tickets. */
    uint64_t tickets;
    /* The target's `RingCursor` of what it has read. */
    uint64_t head;
    /* This edge's `RingCursor` of what the target has read of it. */
    uint64_t returned;
    /* Slots minus one. */
    uint32_t mask;
    /* Messages that the inbox holds. */
    uint32_t capacity;
    /* How many records of this edge may be in flight. */
    uint32_t share;
    /* Its number among the target's edges: the token of what it sends. */
    uint32_t number;
    /* The size of a record, in bytes. */
    uint32_t record_bytes;
    /* How many slots a record takes: as many as the target's messages do. */
    uint32_t record_slots;
    /* Records sent; written by the sender. */
    uint64_t sent;
    /* What `returned` was when last looked at; written by the sender. */
    uint64_t returned_seen;
    /* What `head` was when last looked at; written by the sender. */
    uint64_t head_seen;
    /* Records sent over the edges that were in this place before. */
    uint64_t before;
} dc_edge;
DC_ASSERT(sizeof(dc_edge) == 128, "dc_edge");
DC_ASSERT(DC_OFFSET(dc_edge, slots) == 0, "dc_edge.slots");
DC_ASSERT(DC_OFFSET(dc_edge, tickets) == 8, "dc_edge.tickets");
DC_ASSERT(DC_OFFSET(dc_edge, head) == 16, "dc_edge.head");
DC_ASSERT(DC_OFFSET(dc_edge, returned) == 24, "dc_edge.returned");
DC_ASSERT(DC_OFFSET(dc_edge, mask) == 32, "dc_edge.mask");
DC_ASSERT(DC_OFFSET(dc_edge, capacity) == 36, "dc_edge.capacity");
DC_ASSERT(DC_OFFSET(dc_edge, share) == 40, "dc_edge.share");
DC_ASSERT(DC_OFFSET(dc_edge, number) == 44, "dc_edge.number");
DC_ASSERT(DC_OFFSET(dc_edge, record_bytes) == 48, "dc_edge.record_bytes");
DC_ASSERT(DC_OFFSET(dc_edge, record_slots) == 52, "dc_edge.record_slots");
DC_ASSERT(DC_OFFSET(dc_edge, sent) == 56, "dc_edge.sent");
DC_ASSERT(DC_OFFSET(dc_edge, returned_seen) == 64, "dc_edge.returned_seen");
DC_ASSERT(DC_OFFSET(dc_edge, head_seen) == 72, "dc_edge.head_seen");
DC_ASSERT(DC_OFFSET(dc_edge, before) == 80, "dc_edge.before");

/* What the blocks of a team share, which call a handler together; in the device's memory. The */
/* first three are words, each on a line of its own. */
typedef struct dc_team {
    /* In its high half the epoch of the grid. Below it how many calls there were in that, in 31 bits, or */
    /* `TEAM_LEAVES`. Written by the first block, after what is shared for the call. */
    DC_ALIGN(128) dc_ring_cursor call;
    /* How many blocks have come to the present meeting; in the high half, how many of them have returned */
    /* from the handler. 0 while no grid runs. */
    dc_ring_cursor here;
    /* How many meetings there were, in 32 bits; in the high half, how many had returned of those who came */
    /* to the last one. Written by the block that came last. */
    dc_ring_cursor round;
    /* Why the call has failed: the first cause; 0: it has not. */
    int32_t fault;
    /* Whether some thread has made a reply. */
    uint32_t has_reply;
    /* What was said of the fault, in bytes; 36 at most. */
    uint32_t text_bytes;
    /* It. */
    uint8_t text[36];
    /* The message of the call, in as many slots as it takes. */
    dc_tagged_record message[8];
    /* The reply that is made, likewise. */
    dc_tagged_record reply[8];
} dc_team;
DC_ASSERT(sizeof(dc_team) == 1280, "dc_team");
DC_ASSERT(DC_OFFSET(dc_team, call) == 0, "dc_team.call");
DC_ASSERT(DC_OFFSET(dc_team, here) == 128, "dc_team.here");
DC_ASSERT(DC_OFFSET(dc_team, round) == 256, "dc_team.round");
DC_ASSERT(DC_OFFSET(dc_team, fault) == 384, "dc_team.fault");
DC_ASSERT(DC_OFFSET(dc_team, has_reply) == 388, "dc_team.has_reply");
DC_ASSERT(DC_OFFSET(dc_team, text_bytes) == 392, "dc_team.text_bytes");
DC_ASSERT(DC_OFFSET(dc_team, text) == 396, "dc_team.text");
DC_ASSERT(DC_OFFSET(dc_team, message) == 432, "dc_team.message");
DC_ASSERT(DC_OFFSET(dc_team, reply) == 816, "dc_team.reply");

/* What a grid is launched with. */
typedef struct dc_grid {
    /* The first `Seat`. */
    DC_ALIGN(128) uint64_t seats;
    /* The first `SeatNews`, in the host's memory. */
    uint64_t news;
    /* The first `SeatCounters`, in the host's memory. */
    uint64_t counters;
    /* The `GridNews`, in the host's memory. */
    uint64_t grid_news;
    /* The `GridReport`, in the host's memory. */
    uint64_t report;
    /* A `RingCursor` that counts the seats that have left, or the blocks where those are teams; 0 at launch. */
    uint64_t left;
    /* One word of four bytes for what serves and for each seat, or each block of it where it is a team, in */
    /* the host's memory: the epoch in which it began. */
    uint64_t census;
    /* How long the grid stays, in nanoseconds; 0: until it is told. */
    uint64_t lease_ns;
    /* For how long the host's heartbeat may stand still, in nanoseconds; 0: for ever. */
    uint64_t silence_ns;
    /* How many seats there are. */
    uint32_t seat_count;
    /* Which lease this is, counted from 1. */
    uint32_t epoch;
} dc_grid;
DC_ASSERT(sizeof(dc_grid) == 128, "dc_grid");
DC_ASSERT(DC_OFFSET(dc_grid, seats) == 0, "dc_grid.seats");
DC_ASSERT(DC_OFFSET(dc_grid, news) == 8, "dc_grid.news");
DC_ASSERT(DC_OFFSET(dc_grid, counters) == 16, "dc_grid.counters");
DC_ASSERT(DC_OFFSET(dc_grid, grid_news) == 24, "dc_grid.grid_news");
DC_ASSERT(DC_OFFSET(dc_grid, report) == 32, "dc_grid.report");
DC_ASSERT(DC_OFFSET(dc_grid, left) == 40, "dc_grid.left");
DC_ASSERT(DC_OFFSET(dc_grid, census) == 48, "dc_grid.census");
DC_ASSERT(DC_OFFSET(dc_grid, lease_ns) == 56, "dc_grid.lease_ns");
DC_ASSERT(DC_OFFSET(dc_grid, silence_ns) == 64, "dc_grid.silence_ns");
DC_ASSERT(DC_OFFSET(dc_grid, seat_count) == 72, "dc_grid.seat_count");
DC_ASSERT(DC_OFFSET(dc_grid, epoch) == 76, "dc_grid.epoch");

/* What the host tells a grid; in the host's memory. Read as one chunk of 16 bytes. */
typedef struct dc_grid_news {
    /* Counts up while the host lives. */
    DC_ALIGN(128) uint64_t heartbeat;
    /* The last epoch that is to end before its lease does, as all before it. */
    uint32_t quiesce;
} dc_grid_news;
DC_ASSERT(sizeof(dc_grid_news) == 128, "dc_grid_news");
DC_ASSERT(DC_OFFSET(dc_grid_news, heartbeat) == 0, "dc_grid_news.heartbeat");
DC_ASSERT(DC_OFFSET(dc_grid_news, quiesce) == 8, "dc_grid_news.quiesce");

/* What a grid tells the host; in the host's memory. Written by the service warp. */
typedef struct dc_grid_report {
    /* Counts the rounds of the service warp. */
    DC_ALIGN(128) uint64_t rounds;
    /* The last epoch whose seats have all left, its counters being exact. */
    uint32_t ended;
} dc_grid_report;
DC_ASSERT(sizeof(dc_grid_report) == 128, "dc_grid_report");
DC_ASSERT(DC_OFFSET(dc_grid_report, rounds) == 0, "dc_grid_report.rounds");
DC_ASSERT(DC_OFFSET(dc_grid_report, ended) == 8, "dc_grid_report.ended");

/* The counters of a seat, as the service warp copies them into the host's memory: about once a */
/* millisecond, and exactly once its seat has left. */
typedef struct dc_seat_counters {
    /* As in `SeatStore`. */
    DC_ALIGN(128) uint64_t processed;
    /* As in `SeatStore`. */
    uint64_t faulted;
    /* As in `SeatStore`. */
    uint64_t replied;
    /* As in `SeatStore`. */
    uint64_t sent;
    /* As in `SeatStore`. */
    uint64_t handler_ticks;
    /* As in `SeatStore`. */
    uint64_t logs_lost;
} dc_seat_counters;
DC_ASSERT(sizeof(dc_seat_counters) == 128, "dc_seat_counters");
DC_ASSERT(DC_OFFSET(dc_seat_counters, processed) == 0, "dc_seat_counters.processed");
DC_ASSERT(DC_OFFSET(dc_seat_counters, faulted) == 8, "dc_seat_counters.faulted");
DC_ASSERT(DC_OFFSET(dc_seat_counters, replied) == 16, "dc_seat_counters.replied");
DC_ASSERT(DC_OFFSET(dc_seat_counters, sent) == 24, "dc_seat_counters.sent");
DC_ASSERT(DC_OFFSET(dc_seat_counters, handler_ticks) == 32, "dc_seat_counters.handler_ticks");
DC_ASSERT(DC_OFFSET(dc_seat_counters, logs_lost) == 40, "dc_seat_counters.logs_lost");

/* What a handler can call, from inside: see `rk_*` below. */
typedef struct rk_ctx rk_ctx;

/* A compiled handler: DC_HANDLER_REPLY if it wrote a reply, DC_HANDLER_DONE if not, or a negative
   fault code. `reply` is zeroed before each call. It never blocks and keeps none of its pointers. */
typedef int32_t (*rk_handler)(const void *message, void *state, void *reply, rk_ctx *ctx);

#if !defined(__CUDACC__) && !defined(DC_DEVICE_TWIN)
typedef struct rk_calls {
    int32_t (*emit)(rk_ctx *, const void *);
    int32_t (*send)(rk_ctx *, uint32_t, const void *);
    void (*log)(rk_ctx *, int32_t, const char *, uint64_t);
    int32_t (*fault)(rk_ctx *, int32_t, const char *, uint64_t);
    int32_t (*tick)(rk_ctx *);
    uint64_t (*clock)(rk_ctx *);
    int32_t (*reply)(rk_ctx *, const void *);
} rk_calls;
struct rk_ctx {
    const rk_calls *calls;
    uint64_t record;
    int32_t fault;
};
DC_ASSERT(DC_OFFSET(struct rk_ctx, record) == 8, "rk_ctx.record");
DC_ASSERT(DC_OFFSET(struct rk_ctx, fault) == 16, "rk_ctx.fault");
DC_ASSERT(DC_OFFSET(rk_calls, send) == sizeof(void *), "rk_calls.send");
DC_ASSERT(DC_OFFSET(rk_calls, log) == 2 * sizeof(void *), "rk_calls.log");
DC_ASSERT(DC_OFFSET(rk_calls, fault) == 3 * sizeof(void *), "rk_calls.fault");
DC_ASSERT(DC_OFFSET(rk_calls, tick) == 4 * sizeof(void *), "rk_calls.tick");
DC_ASSERT(DC_OFFSET(rk_calls, clock) == 5 * sizeof(void *), "rk_calls.clock");
DC_ASSERT(DC_OFFSET(rk_calls, reply) == 6 * sizeof(void *), "rk_calls.reply");

/* Emits one more reply before the one that the handler returns: 0, or the fault code to return. */
static inline int32_t rk_emit(rk_ctx *ctx, const void *record) {
    return ctx->calls->emit(ctx, record);
}
/* Sends a record to the target of this number, of those declared: 0, or the fault code to return. */
static inline int32_t rk_send(rk_ctx *ctx, uint32_t target, const void *record) {
    return ctx->calls->send(ctx, target, record);
}
/* Logs a text of so many bytes of UTF-8, at a level of 10 (debug) to 40 (error). */
static inline void rk_log(rk_ctx *ctx, int32_t level, const char *text, uint64_t bytes) {
    ctx->calls->log(ctx, level, text, bytes);
}
/* Fails the message in hand: return what it returns. */
static inline int32_t rk_fault(rk_ctx *ctx, int32_t code, const char *text, uint64_t bytes) {
    return ctx->calls->fault(ctx, code, text, bytes);
}
/* Whether to go on: 0, or the fault code to return. For handlers with long loops. */
static inline int32_t rk_tick(rk_ctx *ctx) { return ctx->calls->tick(ctx); }
/* A monotonic clock, in nanoseconds. */
static inline uint64_t rk_clock(rk_ctx *ctx) { return ctx->calls->clock(ctx); }
#endif

#endif
