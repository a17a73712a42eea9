// The device's side of the protocol for host threads, with the handlers of the tests.
#include "../../device/twin.cpp"

struct number {
    int64_t value;
};
struct sum {
    int64_t total, value;
};

// Replies with the sum of all values so far.
static int32_t add(const number *message, sum *state, sum *reply, rk_ctx *) {
    state->total += message->value;
    reply->total = state->total;
    reply->value = message->value;
    return DC_HANDLER_REPLY;
}

// Sends each value on to one of its targets, in turn.
static int32_t deal(const number *message, sum *state, sum *, rk_ctx *ctx) {
    const uint32_t targets = ctx->seat->edge_count;
    return rk_send(ctx, uint32_t(state->total++ % targets), message);
}

// Does what the value says.
static int32_t obey(const number *message, sum *state, sum *reply, rk_ctx *ctx) {
    state->total += 1;
    reply->total = state->total;
    reply->value = message->value;
    switch (message->value) {
    case 1: // emits two, then replies
        rk_emit(ctx, reply);
        rk_emit(ctx, reply);
        return DC_HANDLER_REPLY;
    case 2: // emits one, and fails
        rk_emit(ctx, reply);
        return rk_fault(ctx, -22, "as it was told", 14);
    case 3: // emits more than it declared, and goes on
        for (int emitted = 0; emitted < 3; ++emitted)
            rk_emit(ctx, reply);
        return DC_HANDLER_REPLY;
    case 4:
        return 17;
    case 5: // until it is killed
        for (;;)
            if (int32_t fault = rk_tick(ctx))
                return fault;
    case 6:
        rk_log(ctx, 20, "a line of the log that is longer than its record", 48);
        return DC_HANDLER_DONE;
    case 7:
        return rk_send(ctx, 99, reply);
    case 8: // as long as it is to run
        while (dc_command(dc_load_gpu(DC_SYNC_NONE, ctx->order)) == DC_COMMAND_RUN)
            dc_pause(100);
        return DC_HANDLER_DONE;
    default:
        return DC_HANDLER_DONE;
    }
}

struct span {
    int64_t numbers[25];
};

// Replies with a hundred more each, and sends that to its targets; fails where they do not follow each
// other, or begin below zero.
static int32_t shift(const span *message, sum *state, span *reply, rk_ctx *ctx) {
    state->total += 1;
    for (int at = 0; at < 25; ++at) {
        if (message->numbers[at] != message->numbers[0] + at)
            return rk_fault(ctx, -33, "a torn record", 13);
        reply->numbers[at] = message->numbers[at] + 100;
    }
    if (message->numbers[0] < 0)
        return -34;
    for (uint32_t target = 0; target < ctx->seat->edge_count; ++target)
        if (int32_t fault = rk_send(ctx, target, reply))
            return fault;
    return DC_HANDLER_REPLY;
}

// Of what each thread made of the value, first the sum of each block.
struct shares {
    sum all;
    int64_t of[16];
};

// Adds up what each thread made of the value, for which they meet three times.
static int32_t share(const number *message, shares *state, sum *reply, rk_ctx *ctx) {
    const uint32_t thread = rk_thread(ctx), threads = rk_threads(ctx);
    const uint32_t block = rk_block(ctx), blocks = rk_blocks(ctx);
    if (threads * blocks == 1)
        return DC_FAULT_BOUNDS;
    auto parts = static_cast<int64_t *>(rk_shared(ctx));
    parts[thread] = message->value + block * threads + thread;
    if (int32_t fault = rk_barrier(ctx))
        return fault;
    if (thread == threads - 1) {
        state->of[block] = 0;
        for (uint32_t part = 0; part < threads; ++part)
            state->of[block] += parts[part];
    }
    if (int32_t fault = rk_team_barrier(ctx))
        return fault;
    if (thread == threads - 1 && block == blocks - 1) {
        state->all.total += 1;
        for (uint32_t part = 0; part < blocks; ++part)
            state->all.value += state->of[part];
    }
    if (int32_t fault = rk_team_barrier(ctx))
        return fault;
    if (thread != 0 || block != 0)
        return DC_HANDLER_DONE;
    *reply = state->all;
    state->all.value = 0;
    return DC_HANDLER_REPLY;
}

extern "C" int32_t dc_dispatch(uint32_t handler, const void *message, void *state, void *reply,
                               rk_ctx *ctx) {
    auto in = static_cast<const number *>(message);
    auto kept = static_cast<sum *>(state), out = static_cast<sum *>(reply);
    switch (handler) {
    case 0:
        return add(in, kept, out, ctx);
    case 1:
        return deal(in, kept, out, ctx);
    case 2:
        return obey(in, kept, out, ctx);
    case 3:
        return shift(static_cast<const span *>(message), kept, static_cast<span *>(reply), ctx);
    case 4:
        return share(in, static_cast<shares *>(state), out, ctx);
    default:
        return DC_FAULT_BOUNDS;
    }
}
