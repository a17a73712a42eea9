// Written by `cargo run -p dotcompute-abi --example generate`. Do not edit.

const DC_ABI_VERSION: u32 = 1u;

// Bytes of a slot, in all formats.
const DC_SLOT_BYTES: u32 = 64u;
// Bytes of payload in a plain slot.
const DC_PLAIN_PAYLOAD_BYTES: u32 = 56u;
// Bytes of payload in a tagged slot.
const DC_TAGGED_PAYLOAD_BYTES: u32 = 40u;
// Chunks of a tagged slot.
const DC_TAGGED_CHUNKS: u32 = 4u;
// Bytes of payload in each further slot of a tagged record.
const DC_TAGGED_MORE_BYTES: u32 = 48u;
// Slots that a tagged record takes at most.
const DC_TAGGED_SLOTS_MAX: u32 = 8u;
// Bytes of the longest tagged record.
const DC_TAGGED_RECORD_BYTES_MAX: u32 = 376u;

// This slot continues the record that the slot before it began.
const DC_FLAG_CONTINUED: u32 = 1u;
// This record is no reply but a line of a kernel's log: its level in four bytes, then text.
const DC_FLAG_LOG: u32 = 2u;
// The record begins with the id of the message that it answers, between processes.
const DC_FLAG_CORRELATED: u32 = 4u;
// The next record, of the same token, goes on with this one's message, between processes.
const DC_FLAG_MORE: u32 = 8u;
// The replies to this message go to the host, also where the kernel's go to another one of the
// device, and not before that one has handled all that was sent to it.
const DC_FLAG_HOME: u32 = 16u;
// This reply comes too late: one before it has answered the message.
const DC_FLAG_LATE: u32 = 32u;
// This record is no reply but the message of another kernel of the device at which this one failed.
const DC_FLAG_FAULTED: u32 = 64u;
// This record is no reply but was sent to the target whose number is in the high byte.
const DC_FLAG_SENT: u32 = 128u;
// The record is the message alone, and what goes beside it is as it mostly is, between processes.
const DC_FLAG_SHORT: u32 = 256u;
// Somebody waits for the answer to this message, between processes.
const DC_FLAG_ASKED: u32 = 512u;
// With this reply its message is processed, and all that were handed over before it, between processes.
const DC_FLAG_SETTLES: u32 = 1024u;
// Behind the message the record says where arrays lie, between processes.
const DC_FLAG_ARRAYS: u32 = 2048u;
// In a lapped ring: the lap in which this slot was written, position divided by slots, is even.
const DC_FLAG_LAP: u32 = 32768u;

// The handler is done and made no reply.
const DC_HANDLER_DONE: i32 = 0;
// The handler is done and wrote a reply.
const DC_HANDLER_REPLY: i32 = 1;

// No fault.
const DC_FAULT_NONE: i32 = 0;
// The last code that a handler may use for itself.
const DC_FAULT_USER_LAST: i32 = -65535;
// The handler panicked or raised an exception.
const DC_FAULT_PANIC: i32 = -65536;
// The handler returned a number above 1.
const DC_FAULT_BAD_RESULT: i32 = -65537;
// A tick inside the handler found that it was told to stop.
const DC_FAULT_DEADLINE: i32 = -65538;
// An index was out of bounds.
const DC_FAULT_BOUNDS: i32 = -65539;
// The handler emitted more messages than it declared.
const DC_FAULT_EMIT_LIMIT: i32 = -65540;
// A record did not have the size that the handler takes.
const DC_FAULT_RECORD_SIZE: i32 = -65541;
// The device or the process under the kernel was lost.
const DC_FAULT_LOST: i32 = -65542;
// The kernel did not answer within its watchdog.
const DC_FAULT_STUCK: i32 = -65543;
// The threads of one handler did not go together: not all of them came to a barrier, or another than
// the first emitted, sent or logged.
const DC_FAULT_DIVERGED: i32 = -65544;

// The first 8 bytes of every slot.
struct DcSlotHeader {
    // Names the delivery: the host keeps ids, bands and askers in a table under this number.
    token: u32,
    // Length of the whole record, over all of its slots.
    payload_bytes_low_flags_high: u32,
}

// A slot between threads or processes. The payload is aligned to 8.
struct DcPlainSlot {
    // The header.
    @align(64) header: DcSlotHeader,
    // The record, or this slot's part of it; zero behind its end.
    payload: array<u32, 14>,
}

// A quarter of a tagged slot. The tag is written after the data.
struct DcTaggedChunk {
    // 12 bytes of the record.
    @align(16) data: array<u32, 3>,
    // The lap in which `data` was written: position divided by slots, plus one, modulo 2^32.
    tag: u32,
}

// A slot between host and device, as it lies in the ring.
struct DcTaggedSlot {
    // The chunks; their data, end to end, are a `TaggedRecord`.
    @align(64) chunks: array<DcTaggedChunk, 4>,
}

// What a tagged slot carries: the data of its chunks without their tags.
struct DcTaggedRecord {
    // The header.
    @align(8) header: DcSlotHeader,
    // The record, or this slot's part of it; zero behind its end.
    payload: array<u32, 10>,
}

