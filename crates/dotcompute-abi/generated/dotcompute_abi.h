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

/* Bytes of a slot, in both formats. */
#define DC_SLOT_BYTES 64u
/* Bytes of payload in a plain slot. */
#define DC_PLAIN_PAYLOAD_BYTES 56u
/* Bytes of payload in a tagged slot. */
#define DC_TAGGED_PAYLOAD_BYTES 40u
/* Chunks of a tagged slot. */
#define DC_TAGGED_CHUNKS 4u

/* This slot continues the record that the slot before it began. */
#define DC_FLAG_CONTINUED 1u

/* `format` of a ring of plain slots. */
#define DC_FORMAT_PLAIN 1u
/* `format` of a ring of tagged slots. */
#define DC_FORMAT_TAGGED 2u
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

/* What a handler can call, from inside: see `rk_*` below. */
typedef struct rk_ctx rk_ctx;

/* A compiled handler: DC_HANDLER_REPLY if it wrote a reply, DC_HANDLER_DONE if not, or a negative
   fault code. `reply` is zeroed before each call. It never blocks and keeps none of its pointers. */
typedef int32_t (*rk_handler)(const void *message, void *state, void *reply, rk_ctx *ctx);

#ifndef __CUDACC__
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
