// What handlers call: see dotcompute.cuh. What makes records runs on a seat's first thread.
#pragma once

#include "seat.cuh"

// The next place in the outbox, cleared; null if it is full, but for the reply's.
DC_FN dc_tagged_record *dc_next_record(rk_ctx *ctx, uint32_t target, uint16_t bytes,
                                       uint16_t flags) {
    const uint32_t slots = dc_slots_of(bytes);
    if (ctx->made + slots > ctx->reply_place)
        return nullptr;
    dc_tagged_record *record = &ctx->out[ctx->made];
    dc_clear(record, slots);
    record->header.token = ctx->token;
    record->header.payload_bytes = bytes;
    record->header.flags = flags;
    ctx->target[ctx->made] = uint8_t(target);
    ctx->made += slots;
    return record;
}

DC_FN void dc_copy(uint8_t *to, const void *from, uint32_t bytes) {
    const uint8_t *source = static_cast<const uint8_t *>(from);
    if (((reinterpret_cast<uint64_t>(from) | bytes) & 3) == 0) {
        DC_ROLLED for (uint32_t word = 0; word < bytes / 4; ++word)
            reinterpret_cast<uint32_t *>(to)[word] = static_cast<const uint32_t *>(from)[word];
    } else {
        DC_ROLLED for (uint32_t byte = 0; byte < bytes; ++byte)
            to[byte] = source[byte];
    }
}

// Whether this thread is one that may not make records, for which the message has failed then.
DC_FN bool dc_is_another(rk_ctx *ctx) {
#if DC_IS_TEAM
    if (dc_thread() == 0 && ctx->call.block == 0)
        return false;
    dc_fail(ctx, DC_FAULT_DIVERGED);
    return true;
#elif DC_IS_WIDE
    if (dc_thread() == 0)
        return false;
    dc_fail(ctx, DC_FAULT_DIVERGED);
    return true;
#else
    (void)ctx;
    return false;
#endif
}

DC_FN int32_t dc_make(rk_ctx *ctx, uint32_t target, const void *record, uint32_t bytes,
                      uint16_t flags) {
    dc_tagged_record *place = nullptr;
    if (ctx->emitted < ctx->seat->max_emit)
        place = dc_next_record(ctx, target, uint16_t(bytes), flags);
    if (place == nullptr)
        return dc_fail(ctx, DC_FAULT_EMIT_LIMIT);
    ctx->emitted += 1;
    dc_copy(place->payload, record, bytes);
    return 0;
}

DC_HANDLER int32_t rk_emit(rk_ctx *ctx, const void *record) {
    if (dc_is_another(ctx))
        return DC_FAULT_DIVERGED;
    const dc_seat *seat = ctx->seat;
    if (ctx->emitted - ctx->sent >= seat->max_emit - seat->send_only)
        return dc_fail(ctx, DC_FAULT_EMIT_LIMIT);
    return dc_make(ctx, 0, record, seat->reply_bytes, 0);
}

DC_HANDLER int32_t rk_send(rk_ctx *ctx, uint32_t target, const void *record) {
    if (dc_is_another(ctx))
        return DC_FAULT_DIVERGED;
    if (target >= ctx->seat->edge_count)
        return dc_fail(ctx, DC_FAULT_BOUNDS);
    const dc_edge &edge = dc_at<dc_edge>(ctx->seat->edges)[target];
    ctx->sent += 1;
    // Where there is no edge the host sends it on.
    if (edge.slots == 0)
        return dc_make(ctx, 0, record, edge.record_bytes, uint16_t(target << 8 | DC_FLAG_SENT));
    return dc_make(ctx, target + 1, record, edge.record_bytes, 0);
}

// How many slots a handler may still need for records: for all that it may emit, and for one record to
// each of its targets.
DC_FN uint32_t dc_kept(const rk_ctx *ctx) {
    const dc_seat *seat = ctx->seat;
    const uint32_t emits = seat->max_emit - seat->send_only - (ctx->emitted - ctx->sent);
    const uint32_t targets = seat->edge_count > ctx->sent ? seat->edge_count - ctx->sent : 0;
    return emits * seat->reply_slots + targets * seat->send_slots;
}

DC_HANDLER void rk_log(rk_ctx *ctx, int32_t level, const char *text, uint64_t bytes) {
    if (dc_is_another(ctx))
        return;
    const uint32_t kept = bytes < DC_TEXT_BYTES ? uint32_t(bytes) : DC_TEXT_BYTES;
    const bool room = ctx->made + dc_kept(ctx) < ctx->reply_place;
    dc_tagged_record *place =
        room ? dc_next_record(ctx, 0, uint16_t(4 + kept), DC_FLAG_LOG) : nullptr;
    if (place == nullptr) {
        ctx->logs_lost += 1;
        return;
    }
    dc_copy(place->payload, &level, 4);
    DC_ROLLED for (uint32_t byte = 0; byte < kept; ++byte)
        place->payload[4 + byte] = uint8_t(text[byte]);
}

DC_HANDLER int32_t rk_fault(rk_ctx *ctx, int32_t code, const char *text, uint64_t bytes) {
    const int32_t fault = code < 0 ? code : DC_FAULT_BAD_RESULT;
#if DC_IS_WIDE
    // Any thread may; the first thread logs it, when all have returned.
    if (dc_be_first(&ctx->fault, fault)) {
        ctx->call.text_bytes = bytes < DC_TEXT_BYTES ? uint32_t(bytes) : DC_TEXT_BYTES;
        DC_ROLLED for (uint32_t byte = 0; byte < ctx->call.text_bytes; ++byte)
            ctx->call.text[byte] = text[byte];
    }
    return fault;
#else
    rk_log(ctx, 40, text, bytes);
    return dc_fail(ctx, fault);
#endif
}

DC_HANDLER int32_t rk_tick(rk_ctx *ctx) {
    if (dc_command(dc_load_gpu(DC_SYNC_NONE, ctx->order)) == DC_COMMAND_KILL)
        return dc_fail(ctx, DC_FAULT_DEADLINE);
    return 0;
}

DC_HANDLER uint64_t rk_clock(rk_ctx *) { return dc_clock_ns(); }

// The message's tags were read before, relaxed: with that this synchronises with whoever sent it.
DC_HANDLER void rk_acquire(rk_ctx *) { dc_fence_acquire_sys(); }

#if DC_IS_WIDE

DC_HANDLER uint32_t rk_thread(rk_ctx *) { return dc_thread(); }
DC_HANDLER uint32_t rk_threads(rk_ctx *) { return DC_SEAT_THREADS; }
DC_HANDLER void *rk_shared(rk_ctx *ctx) { return ctx->call.shared; }

DC_HANDLER int32_t rk_barrier(rk_ctx *ctx) {
    if (dc_meet(ctx->call, false) == 0)
        return 0;
    // Some have returned, with a fault, which counts then, or as if there were no barrier; or are at another.
    dc_be_first(&ctx->fault, DC_FAULT_DIVERGED);
    return DC_FAULT_DIVERGED;
}

#if DC_IS_TEAM

DC_HANDLER uint32_t rk_block(rk_ctx *ctx) { return ctx->call.block; }
DC_HANDLER int32_t rk_team_barrier(rk_ctx *ctx) {
    if (dc_meet_team(ctx->call, false, [] {}) == 0)
        return 0;
    dc_be_first(&ctx->fault, DC_FAULT_DIVERGED);
    return DC_FAULT_DIVERGED;
}

#else

DC_HANDLER uint32_t rk_block(rk_ctx *) { return 0; }
DC_HANDLER int32_t rk_team_barrier(rk_ctx *ctx) { return rk_barrier(ctx); }

#endif

#else

DC_HANDLER uint32_t rk_thread(rk_ctx *) { return 0; }
DC_HANDLER uint32_t rk_threads(rk_ctx *) { return DC_SEAT_THREADS; }
DC_HANDLER void *rk_shared(rk_ctx *) { return nullptr; }
DC_HANDLER int32_t rk_barrier(rk_ctx *) { return 0; }
DC_HANDLER uint32_t rk_block(rk_ctx *) { return 0; }
DC_HANDLER int32_t rk_team_barrier(rk_ctx *) { return 0; }

#endif

DC_HANDLER uint32_t rk_blocks(rk_ctx *) { return DC_SEAT_BLOCKS; }
