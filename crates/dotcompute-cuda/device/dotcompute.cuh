// What a handler is written against. Include it, and define
//
//     extern "C" __device__ int32_t name(const In *, State *, Out *, rk_ctx *);
//
// The runtime defines the rk_* functions where the handlers are linked, and they are inlined.
//
// One thread calls a handler, unless it was declared with another scope: then all threads of a warp, of a
// block or of a team of blocks call it for each message, together, with the same message, state and reply, in
// memory that they share. They agree on who writes what, by `rk_thread` and `rk_barrier`, in a team also by
// `rk_block` and `rk_team_barrier`. There is a reply if any of them says so, and a fault if any of them fails:
// the first counts. It is the first thread, of number 0, of the first block that emits, sends and logs: if
// another does, the message has failed.
#pragma once

#include "dotcompute_abi.h"

#if defined(__CUDACC__)
#define DC_HANDLER extern "C" __device__
#else
#define DC_HANDLER extern "C"
#endif

// Emits one more reply before the one that the handler returns: 0, or the fault code to return.
DC_HANDLER int32_t rk_emit(rk_ctx *ctx, const void *record);
// Sends a record to the target of this number, of those declared: 0, or the fault code to return. What
// is emitted and sent for one message is 7 records at most, and with what is logged, and the reply, 16
// slots: 40 bytes are one, and each 48 more another.
DC_HANDLER int32_t rk_send(rk_ctx *ctx, uint32_t target, const void *record);
// Logs a text of so many bytes of UTF-8, at a level of 10 (debug) to 40 (error). What does not fit
// into 36 bytes, or into the outbox of the message in hand, is cut off or counted as lost.
DC_HANDLER void rk_log(rk_ctx *ctx, int32_t level, const char *text, uint64_t bytes);
// Fails the message in hand: return what it returns.
DC_HANDLER int32_t rk_fault(rk_ctx *ctx, int32_t code, const char *text, uint64_t bytes);
// Whether to go on: 0, or the fault code to return. For handlers with long loops.
DC_HANDLER int32_t rk_tick(rk_ctx *ctx);
// To be called before the handler reads memory that a message names, where others may have written since
// the kernel's last message: what they wrote before the message was sent is there then. Of several threads
// one calls it, and then all come to a barrier; of a team, to the team's.
DC_HANDLER void rk_acquire(rk_ctx *ctx);
// The number of this thread among those that the handler was called by, from 0, and how many those are; of a
// team, among those of its block.
DC_HANDLER uint32_t rk_thread(rk_ctx *ctx);
DC_HANDLER uint32_t rk_threads(rk_ctx *ctx);
// Waits for all threads, of a team for those of the block: what each did before, all find after. 0; or, where a
// thread has returned already, or waits at another barrier, the fault code to return, for the message has failed
// then. So nobody waits for good.
DC_HANDLER int32_t rk_barrier(rk_ctx *ctx);
// The number of this block in its team, from 0, and how many those are: 0 and 1 where there is no team.
DC_HANDLER uint32_t rk_block(rk_ctx *ctx);
DC_HANDLER uint32_t rk_blocks(rk_ctx *ctx);
// Waits for all threads of all blocks, as `rk_barrier` does for those of one. Where there is no team it is that.
DC_HANDLER int32_t rk_team_barrier(rk_ctx *ctx);
// The kernel's own memory in the multiprocessor, of as many bytes as were declared, aligned to 16, for all
// threads of the handler, of a team for those of the block. It has no particular values when a message comes.
DC_HANDLER void *rk_shared(rk_ctx *ctx);
// A monotonic clock, in nanoseconds; on some devices it ticks once in a microsecond.
DC_HANDLER uint64_t rk_clock(rk_ctx *ctx);
