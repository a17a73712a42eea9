// One ring kernel, from the moment its grid takes its seat up to the moment it leaves it.
#pragma once

#include "dotcompute.cuh"
#include "ring.cuh"
#include "team.cuh"

// Calls the handler of this number. Defined where the handlers are linked.
DC_HANDLER int32_t dc_dispatch(uint32_t handler, const void *message, void *state, void *reply,
                               rk_ctx *ctx);

// How many empty looks at the host's rings in a row make a seat tell what it has freed, and how many
// make it listen for bells in the device's memory instead of looking over the bus.
#define DC_LOOKS_UNTIL_SETTLED 8u
#define DC_LOOKS_UNTIL_BELLS 64u
#define DC_PAUSE_NS 256u

DC_FN uint32_t dc_command(uint64_t order) { return uint32_t(order) & (DC_ORDER_ASKED - 1); }

// What a handler's functions work on.
struct rk_ctx {
    const dc_seat *seat;
    dc_tagged_record *out;
    const uint64_t *order;
    // The token of the message in hand.
    uint32_t token;
    // Slots of the outbox that are taken, and where those of the reply begin that the handler returns:
    // its last ones.
    uint32_t made;
    uint32_t reply_place;
    // Records that are not of the log, and how many of those were sent.
    uint32_t emitted;
    uint32_t sent;
    int32_t fault;
    uint32_t logs_lost;
    // Where the record goes that begins with a slot: 0 to the host, or the number of an edge plus one.
    uint8_t target[DC_OUTBOX_SLOTS];
#if DC_IS_WIDE
    dc_call call;
#endif
};

// Fails the message in hand, unless it has failed already: the first fault counts. What to return.
DC_FN int32_t dc_fail(rk_ctx *ctx, int32_t code) {
#if DC_IS_WIDE
    dc_be_first(&ctx->fault, code);
#else
    if (ctx->fault == 0)
        ctx->fault = code;
#endif
    return code;
}

// What a seat counts: in registers, but for a wide one, whose threads have few of them. There they are the first
// lane's alone.
struct dc_counts {
    uint64_t processed, faulted, replied, sent, passed, received, handler_ticks;
};
#if DC_IS_WIDE
#define DC_COUNTS(run) (*(run).counts)
#define DC_COUNT_UP(run, what, by) DC_FIRST_LANE DC_COUNTS(run).what += (by)
#else
#define DC_COUNTS(run) (run).counts
#define DC_COUNT_UP(run, what, by) DC_COUNTS(run).what += (by)
#endif

// What a seat keeps in the multiprocessor.
struct dc_stage {
    dc_tagged_record in[DC_WINDOW_SLOTS];
    dc_tagged_record out[DC_OUTBOX_SLOTS];
    // Next positions to read, and what of them the senders know.
    uint64_t heads[DC_SOURCES];
    uint64_t freed[DC_SOURCES];
    rk_ctx context;
#if DC_IS_WIDE
    dc_counts counts;
#endif
};

// What a seat keeps in registers.
struct dc_run {
    const dc_seat *seat;
    dc_seat_mirror *mirror;
    dc_seat_report *report;
    dc_seat_store *store;
    uint64_t reply_tail, reply_head;
#if DC_IS_WIDE
    dc_counts *counts;
#else
    dc_counts counts;
#endif
    uint32_t state;
    int32_t fault;
    uint32_t waiting_on;
    uint32_t fault_token;
    bool busy;
};

// Whether there is room for all that one call of the handler can make; tells the host if not. Where
// replies are to go to the host past an edge, `home`, it is to have been worked off.
DC_FN bool dc_has_room(dc_run &run, bool home) {
    const dc_ring_place &ring = run.seat->replies;
    uint32_t lacking = 0;
    if (run.reply_tail + DC_OUTBOX_SLOTS - run.reply_head > ring.capacity) {
        // SYNC(ring.free) acquire: pairs with the release in `Consumer::publish` of the mailbox.
        // Makes visible that the slots before the head were read.
        run.reply_head =
            dc_from_first(dc_load_sys(DC_SYNC_RING_FREE, dc_at<uint64_t>(ring.peer)));
        dc_fence_acquire_sys();
        if (run.reply_tail + DC_OUTBOX_SLOTS - run.reply_head > ring.capacity)
            lacking = 1;
    }
    const uint32_t edges = run.seat->edge_count + (run.seat->reply_edge != 0);
    const uint32_t records = run.seat->max_emit + (run.seat->reply_edge != 0);
    const uint32_t empty = home ? run.seat->reply_edge - 1 : ~0u;
    if (edges != 0 && lacking == 0 &&
        !dc_edges_have_room(dc_at<dc_edge>(run.seat->edges), edges, records, empty))
        lacking = 2;
    if (lacking != run.waiting_on) {
        run.waiting_on = lacking;
        DC_FIRST_LANE dc_store_sys(DC_SYNC_NONE, &run.report->waiting_on, lacking);
    }
    return lacking == 0;
}

// Sends a record of the outbox over the edge of this number, counted from 1.
DC_FN void dc_send_over(dc_run &run, uint32_t number, dc_tagged_record *record, uint32_t token) {
    dc_edge *edge = &dc_at<dc_edge>(run.seat->edges)[number - 1];
    DC_FIRST_LANE {
        record->header.token = token;
        record->header.flags = dc_edge_flags(edge->number);
    }
    dc_sync_warp();
    dc_send(edge, record);
    DC_COUNT_UP(run, sent, 1);
}

DC_FN void dc_clear(dc_tagged_record *record, uint32_t slots) {
    DC_ROLLED for (uint32_t slot = 0; slot < slots; ++slot)
        for (uint32_t word = 0; word < 12; ++word)
            dc_words(&record[slot])[word] = 0;
}

// Makes the context ready for a call; where its reply goes. The first lane does.
DC_FN dc_tagged_record *dc_prepare(const dc_run &run, dc_stage *stage,
                                   const dc_tagged_record *message, uint32_t token) {
    rk_ctx *context = &stage->context;
    context->token = token;
    context->made = 0;
    context->emitted = 0;
    context->sent = 0;
    context->fault = 0;
#if DC_IS_WIDE
    context->call.message = message;
    context->call.has_reply = 0;
    context->call.text_bytes = 0;
    dc_begin_meetings(context->call);
#else
    (void)message;
#endif
    dc_tagged_record *reply = &stage->out[context->reply_place];
    dc_clear(reply, run.seat->reply_slots);
    return reply;
}

// What came of a call, by what the handler returned. The first lane does.
DC_FN int32_t dc_conclude(const dc_run &run, rk_ctx *context, dc_tagged_record *reply,
                          const dc_tagged_record *message, uint32_t token, int32_t result,
                          bool inbox) {
    if (context->fault != 0)
        result = context->fault;
    else if (result > DC_HANDLER_REPLY)
        result = DC_FAULT_BAD_RESULT;
    reply->header.token = token;
    reply->header.payload_bytes = uint16_t(run.seat->reply_bytes);
    context->target[context->reply_place] = 0;
    if (result < 0 && inbox) {
        // Nobody else has it: the host is to.
        const uint32_t words = 12 * run.seat->message_slots;
        DC_ROLLED for (uint32_t word = 0; word < words; ++word)
            dc_words(reply)[word] = dc_words(message)[word];
        reply->header.flags = DC_FLAG_FAULTED;
    }
    return result;
}

#if DC_IS_WIDE

#if DC_IS_TEAM

// Makes what all blocks read of a call, clears what they write to, and tells them. The first block's first warp
// does.
DC_FN void dc_share_call(const dc_seat *seat, rk_ctx *context) {
    dc_team *team = context->call.team;
    const dc_tagged_record *message = context->call.message;
    const uint32_t in = 12 * seat->message_slots, out = 12 * seat->reply_slots;
    DC_EACH_LANE(lane) {
        DC_ROLLED for (uint32_t word = lane; word < in; word += 32)
            dc_words(team->message)[word] = dc_words(message)[word];
        DC_ROLLED for (uint32_t word = lane; word < out; word += 32)
            dc_words(team->reply)[word] = 0;
    }
    dc_sync_warp();
    DC_FIRST_LANE {
        team->fault = 0;
        team->has_reply = 0;
        team->text_bytes = 0;
        dc_tell_team(context->call, false);
    }
}

// Tells the team what this block came to, whose threads have all returned. One of them does.
DC_FN void dc_tell_result(rk_ctx *context) {
    const dc_call &call = context->call;
    if (call.has_reply != 0)
        dc_say_so(&call.team->has_reply);
    if (context->fault != 0 && dc_be_first(&call.team->fault, context->fault)) {
        call.team->text_bytes = call.text_bytes;
        DC_ROLLED for (uint32_t byte = 0; byte < call.text_bytes; ++byte)
            call.team->text[byte] = uint8_t(call.text[byte]);
    }
}

// Takes over what the blocks came to. The first block's first warp does.
DC_FN void dc_gather(const dc_seat *seat, rk_ctx *context) {
    dc_team *team = context->call.team;
    dc_tagged_record *reply = &context->out[context->reply_place];
    const uint32_t words = 12 * seat->reply_slots;
    // The header is the seat's.
    DC_EACH_LANE(lane) {
        DC_ROLLED for (uint32_t word = 2 + lane; word < words; word += 32)
            dc_words(reply)[word] = dc_words(team->reply)[word];
    }
    dc_sync_warp();
    DC_FIRST_LANE {
        context->fault = team->fault;
        context->call.has_reply = team->has_reply;
        context->call.text_bytes = team->text_bytes;
        DC_ROLLED for (uint32_t byte = 0; byte < team->text_bytes; ++byte)
            context->call.text[byte] = char(team->text[byte]);
    }
}

#endif

// One thread's part in a call, once all have met for it: what it returned is told, and it waits for the
// others, as often as they come to a barrier meanwhile.
DC_FN void dc_take_part(const dc_seat *seat, rk_ctx *context) {
#if DC_IS_TEAM
    void *reply = context->call.team->reply[0].payload;
#else
    void *reply = context->out[context->reply_place].payload;
#endif
    const int32_t result = dc_dispatch(seat->handler, context->call.message->payload,
                                       dc_at<void>(seat->state), reply, context);
    if (result < 0)
        dc_fail(context, result);
    else if (result > DC_HANDLER_REPLY)
        dc_fail(context, DC_FAULT_BAD_RESULT);
    else if (result == DC_HANDLER_REPLY)
        dc_say_so(&context->call.has_reply);
#if DC_IS_TEAM
    const auto tell = [context] { dc_tell_result(context); };
    while (dc_meet_team(context->call, true, tell) != DC_SEAT_BLOCKS) {
    }
#else
    while (dc_meet(context->call, true) != DC_SEAT_THREADS) {
    }
#endif
}

// What the threads of a block do that are not of its first warp, up to when it is left.
DC_FN void dc_assist(const dc_seat *seat, rk_ctx *context) {
    for (;;) {
        dc_meet(context->call, false);
        if (context->call.message == nullptr)
            return;
        dc_take_part(seat, context);
    }
}

// Calls the handler by all threads of the block, for what `dc_prepare` made ready, or the first block of a team
// shares.
DC_FN void dc_call_all(const dc_seat *seat, rk_ctx *context) {
#if !defined(__CUDACC__)
    context->call.crew->begin([seat, context] { dc_assist(seat, context); });
#endif
    dc_meet(context->call, false);
    dc_take_part(seat, context);
}

// Lets the other threads of the block go.
DC_FN void dc_dismiss(rk_ctx *context) {
#if !defined(__CUDACC__)
    if (!context->call.crew->has_begun())
        return;
#elif DC_SCOPE == DC_SCOPE_WARP
    // There are none.
    return;
#endif
    DC_FIRST_LANE context->call.message = nullptr;
    dc_meet(context->call, false);
}

#if DC_IS_TEAM

// Runs a block of a team that is not its first, up to when the grid is left. Its first warp does.
DC_FN void dc_follow(const dc_grid &grid, const dc_seat *seat, rk_ctx *context) {
    dc_call &call = context->call;
    DC_FIRST_LANE {
        context->seat = seat;
        context->order = &dc_at<dc_seat_mirror>(seat->mirror)->order;
        dc_join_team(call, seat, grid.epoch);
    }
    dc_sync_warp();
    while (dc_follow_team(call)) {
        DC_FIRST_LANE {
            context->fault = 0;
            call.message = call.team->message;
            call.has_reply = 0;
            call.text_bytes = 0;
        }
        dc_call_all(seat, context);
    }
    dc_dismiss(context);
    // The first block stores what the seat has: nothing of this one is to be seen.
    DC_FIRST_LANE dc_count_gpu(DC_SYNC_NONE, dc_at<uint64_t>(grid.left), 1);
}

#endif
#endif

// Calls the handler for one staged record, which came by the inbox or from the host, and publishes
// what it made; false if it failed.
DC_FN bool dc_handle(dc_run &run, dc_stage *stage, const dc_tagged_record *message, bool inbox) {
    int32_t result = 0;
    uint64_t ticks = 0;
    const uint32_t token = message->header.token;
    const bool home = !inbox && (message->header.flags & DC_FLAG_HOME) != 0;
    rk_ctx *context = &stage->context;
#if DC_IS_WIDE
    DC_FIRST_LANE dc_prepare(run, stage, message, token);
    const uint64_t start = dc_clock_ticks();
#if DC_IS_TEAM
    dc_sync_warp();
    dc_share_call(run.seat, context);
#endif
    dc_call_all(run.seat, context);
#if DC_IS_TEAM
    dc_gather(run.seat, context);
#endif
    ticks = dc_clock_ticks() - start;
    DC_FIRST_LANE {
        if (context->call.text_bytes != 0)
            rk_log(context, 40, context->call.text, context->call.text_bytes);
        result = dc_conclude(run, context, &stage->out[context->reply_place], message, token,
                             int32_t(context->call.has_reply), inbox);
    }
#else
    DC_FIRST_LANE {
        dc_tagged_record *reply = dc_prepare(run, stage, message, token);
        const uint64_t start = dc_clock_ticks();
        result = dc_dispatch(run.seat->handler, message->payload, dc_at<void>(run.seat->state),
                             reply->payload, context);
        ticks = dc_clock_ticks() - start;
        result = dc_conclude(run, context, reply, message, token, result, inbox);
    }
#endif
    result = int32_t(dc_from_first(uint32_t(result)));
    ticks = dc_from_first(ticks);
    DC_COUNT_UP(run, handler_ticks, ticks);
    dc_sync_warp();
    const uint32_t reply_edge = home ? 0 : run.seat->reply_edge;
    // The first reply goes on with the token of an ask; those after it are too late for who asked.
    const bool is_awaited = token > DC_TOKEN_LAST && token != DC_TOKEN_NONE;
    bool is_late = false;
    const uint32_t made = stage->context.made, reply_place = stage->context.reply_place;
    uint32_t to_host = 0, published = result < 0 && inbox;
    for (uint32_t record = 0, slots = 0;; record += slots) {
        // Behind all others comes the reply.
        if (record >= made && record < reply_place)
            record = reply_place;
        if (record > reply_place || (record == reply_place && result != DC_HANDLER_REPLY))
            break;
        slots = dc_slots_of(stage->out[record].header.payload_bytes);
        const uint32_t bits = ((1u << slots) - 1) << record;
        uint32_t edge = stage->context.target[record], passes = DC_TOKEN_NONE;
        const uint32_t flags = stage->out[record].header.flags;
        // A fault discards all but the log.
        if (result < 0 && (flags & DC_FLAG_LOG) == 0)
            continue;
        if (flags & (DC_FLAG_LOG | DC_FLAG_SENT)) {
            to_host |= bits;
            published += 1;
            continue;
        }
        if (edge == 0 && reply_edge != 0 && is_late) {
            DC_FIRST_LANE stage->out[record].header.flags = DC_FLAG_LATE;
            dc_sync_warp();
        } else if (edge == 0 && reply_edge != 0) {
            edge = reply_edge;
            passes = is_awaited ? token : DC_TOKEN_NONE;
            is_late = is_awaited;
            DC_COUNT_UP(run, passed, 1);
        }
        if (edge == 0) {
            to_host |= bits;
            published += 1;
        } else {
            dc_send_over(run, edge, &stage->out[record], passes);
        }
    }
    if (result < 0 && inbox)
        to_host |= ((1u << run.seat->message_slots) - 1) << reply_place;
    if (to_host != 0) {
        const uint32_t count = dc_publish(run.seat->replies, run.reply_tail, stage->out, to_host);
        run.reply_tail += count;
        DC_COUNT_UP(run, replied, published);
    }
    DC_COUNT_UP(run, received, inbox);
    if (result < 0) {
        run.fault = result;
        run.fault_token = token;
        DC_COUNT_UP(run, faulted, 1);
        return false;
    }
    DC_COUNT_UP(run, processed, 1);
    return true;
}

// Tells the senders what was read, and everyone how far the kernel is.
DC_FN void dc_settle(dc_run &run, dc_stage *stage) {
    dc_sync_warp();
    // Whoever finds a message given back finds its replies counted, and what was sent.
    DC_FIRST_LANE dc_store_sys(DC_SYNC_NONE, &run.report->passed, DC_COUNTS(run).passed);
    DC_EACH_LANE(lane) {
        if (lane < run.seat->edge_count && lane < DC_COUNTED_EDGES) {
            const dc_edge &edge = dc_at<dc_edge>(run.seat->edges)[lane];
            dc_store_sys(DC_SYNC_NONE, &run.report->sent[lane], edge.before + edge.sent);
        }
    }
    dc_sync_warp();
    // All that this warp has read and published lies before what follows.
    dc_fence_sys();
    DC_EACH_LANE(lane) {
        if (lane == DC_INBOX)
            stage->freed[lane] = stage->heads[lane];
        if (lane < DC_BANDS && stage->freed[lane] != stage->heads[lane]) {
            stage->freed[lane] = stage->heads[lane];
            // SYNC(ring.free) release: pairs with the acquire in `Producer::room` of the mailbox.
            // Makes visible that the slots before the head were read.
            dc_store_sys(DC_SYNC_RING_FREE, dc_at<uint64_t>(run.seat->bands[lane].own),
                         stage->heads[lane]);
        }
    }
    DC_FIRST_LANE {
        // SYNC(device.received) release: pairs with the host's acquire. Makes visible what the
        // messages of the inbox led to.
        dc_store_sys(DC_SYNC_RECEIVED, &run.report->received, DC_COUNTS(run).received);
        dc_store_sys(DC_SYNC_NONE, &run.report->processed, DC_COUNTS(run).processed);
        dc_store_gpu(DC_SYNC_NONE, &run.store->processed, DC_COUNTS(run).processed);
        dc_store_gpu(DC_SYNC_NONE, &run.store->faulted, DC_COUNTS(run).faulted);
        dc_store_gpu(DC_SYNC_NONE, &run.store->replied, DC_COUNTS(run).replied);
        dc_store_gpu(DC_SYNC_NONE, &run.store->sent, DC_COUNTS(run).sent);
        dc_store_gpu(DC_SYNC_NONE, &run.store->handler_ticks, DC_COUNTS(run).handler_ticks);
        dc_store_gpu(DC_SYNC_NONE, &run.store->logs_lost, uint64_t(stage->context.logs_lost));
    }
}

// Whether a quarter of some ring was read since the senders were told, or the host.
DC_FN bool dc_should_settle(const dc_run &run, const dc_stage *stage) {
    uint32_t due = 0;
    DC_EACH_LANE(lane) {
        const uint32_t capacity =
            lane < DC_BANDS ? run.seat->bands[lane].capacity : run.seat->inbox.capacity;
        const bool is_due =
            lane < DC_SOURCES && stage->heads[lane] - stage->freed[lane] > capacity / 4;
        DC_BALLOT(due, lane, is_due);
    }
    return due != 0;
}

DC_FN void dc_tell_busy(dc_run &run, bool busy) {
    if (run.busy != busy) {
        run.busy = busy;
        const uint64_t word = busy ? DC_COUNTS(run).processed + 1 : 0;
        DC_FIRST_LANE dc_store_sys(DC_SYNC_NONE, &run.report->busy, word);
    }
}

// Tells the host of a new state, after all else that it is to find.
DC_FN void dc_tell_state(dc_run &run, uint32_t state) {
    if (run.state != state) {
        run.state = state;
        DC_FIRST_LANE {
            dc_store_sys(DC_SYNC_NONE, &run.report->faulted, DC_COUNTS(run).faulted);
            dc_store_sys(DC_SYNC_NONE, reinterpret_cast<uint32_t *>(&run.report->fault),
                         uint32_t(run.fault));
            dc_store_sys(DC_SYNC_NONE, &run.report->fault_token, run.fault_token);
            dc_fence_sys();
            // SYNC(device.report) release: pairs with the host's acquire of the state. Makes
            // visible the rest of the report.
            dc_store_sys(DC_SYNC_REPORT, &run.report->state, state);
        }
    }
}

// Whether the service warp has passed on that a band has more than was read.
DC_FN bool dc_bells_ring(const dc_run &run, const dc_stage *stage) {
    uint32_t ringing = 0;
    DC_EACH_LANE(lane) {
        // The slots themselves say what is there; a bell only says where to look.
        const bool rings = lane < DC_BANDS && dc_load_gpu(DC_SYNC_NONE, &run.mirror->tails[lane]) !=
                                                  stage->heads[lane];
        DC_BALLOT(ringing, lane, rings);
    }
    return ringing != 0;
}

// Handles what is staged, most urgent first; false if the handler failed. Stops early where there is
// no room, and one message after the order is no longer `order`: what was not handled stays in its
// ring.
DC_FN bool dc_handle_staged(dc_run &run, dc_stage *stage, uint32_t staged, uint32_t busiest,
                            uint64_t order) {
    uint32_t left = staged;
    bool good = true, is_new = false;
    while (left != 0 && good && !is_new) {
        // Not waited for before the handler has run.
        const uint64_t now = dc_load_gpu(DC_SYNC_NONE, &run.mirror->order);
        const uint32_t source = dc_lowest_bit(left) / 5;
        const uint32_t number = dc_staged_of(staged, source) - dc_staged_of(left, source);
        const bool inbox = source == DC_INBOX;
        const uint32_t place = number + (inbox ? 0 : dc_place_of(source, busiest));
        const dc_tagged_record *message = &stage->in[place];
        const bool home = !inbox && (message->header.flags & DC_FLAG_HOME) != 0;
        if (!dc_has_room(run, home && run.seat->reply_edge != 0))
            break;
        good = dc_handle(run, stage, message, inbox);
        // The host's message that the handler failed at never counts as done: the host may see so
        // before it sees the failure, and would take it for processed.
        const uint32_t slots = run.seat->message_slots;
        if (good || inbox)
            DC_FIRST_LANE stage->heads[source] += slots;
        dc_sync_warp();
        left -= dc_staged(source, slots);
        is_new = dc_from_first(now) != order;
    }
    const uint32_t taken = dc_staged_of(staged, DC_INBOX) - dc_staged_of(left, DC_INBOX);
    if (taken != 0)
        dc_free_inbox(run.seat->inbox, stage->heads[DC_INBOX], stage->in, taken,
                      run.seat->message_slots);
    return good;
}

// The band with most staged records; `busiest` where there are none.
DC_FN uint32_t dc_busiest(uint32_t staged, uint32_t busiest) {
    for (uint32_t band = 0; band < DC_BANDS; ++band)
        if (dc_staged_of(staged, band) > dc_staged_of(staged, busiest))
            busiest = band;
    return busiest;
}

DC_FN void dc_take_counts(dc_counts &counts, const dc_seat_store *store) {
    counts.processed = store->processed;
    counts.faulted = store->faulted;
    counts.replied = store->replied;
    counts.sent = store->sent;
    counts.passed = store->passed;
    counts.received = store->received;
    counts.handler_ticks = store->handler_ticks;
}

DC_FN void dc_sit_down(dc_run &run, dc_stage *stage, const dc_seat *seat) {
    run.seat = seat;
    run.mirror = dc_at<dc_seat_mirror>(seat->mirror);
    run.report = dc_at<dc_seat_report>(seat->report);
    run.store = dc_at<dc_seat_store>(seat->store);
    run.reply_tail = run.store->reply_tail;
    // As if the ring were full: the first message looks.
    run.reply_head = run.reply_tail - seat->replies.capacity;
#if DC_IS_WIDE
    run.counts = &stage->counts;
    DC_FIRST_LANE dc_take_counts(stage->counts, run.store);
    dc_sync_warp();
#else
    dc_take_counts(run.counts, run.store);
#endif
    run.state = run.store->state;
    run.fault = run.store->fault;
    run.waiting_on = 0;
    run.fault_token = DC_TOKEN_NONE;
    run.busy = false;
    DC_FIRST_LANE {
        for (uint32_t band = 0; band < DC_BANDS; ++band)
            stage->heads[band] = stage->freed[band] = run.store->heads[band];
        stage->heads[DC_INBOX] = stage->freed[DC_INBOX] = run.store->inbox_head;
        stage->context.seat = seat;
        stage->context.out = stage->out;
        // The message goes there, where the kernel fails at it.
        const uint32_t last = seat->message_slots > seat->reply_slots ? seat->message_slots
                                                                      : seat->reply_slots;
        stage->context.reply_place = DC_OUTBOX_SLOTS - last;
        stage->context.order = &run.mirror->order;
        stage->context.logs_lost = uint32_t(run.store->logs_lost);
    }
    dc_sync_warp();
}

// Stores what the next grid needs, and says that the seat is empty.
DC_FN void dc_leave(dc_run &run, dc_stage *stage, uint64_t *left, uint32_t epoch) {
    DC_FIRST_LANE {
        for (uint32_t band = 0; band < DC_BANDS; ++band)
            run.store->heads[band] = stage->heads[band];
        run.store->inbox_head = stage->heads[DC_INBOX];
        run.store->reply_tail = run.reply_tail;
        run.store->passed = DC_COUNTS(run).passed;
        run.store->received = DC_COUNTS(run).received;
        run.store->state = run.state;
        run.store->fault = run.fault;
        // Others need not wait for it.
        dc_store_gpu(DC_SYNC_NONE, &run.store->ready, epoch);
        dc_fence_gpu();
        // SYNC(device.left) release: pairs with the acquire in `dc_serve`. Makes visible the store.
        dc_count_gpu(DC_SYNC_LEFT, left, 1);
    }
}

// Runs the ring kernel of a seat until it is told to end, fails, or the grid leaves.
DC_FN void dc_sit(const dc_grid &grid, const dc_seat *seat, dc_stage *stage) {
    dc_run run;
    dc_sit_down(run, stage, seat);
#if DC_IS_TEAM
    DC_FIRST_LANE dc_join_team(stage->context.call, seat, grid.epoch);
#endif
    const bool has_inbox = seat->inbox.slots != 0;
    uint32_t busiest = DC_BANDS / 2, looks = 0, turn = 0;
    bool draining = false, leaves = false, is_ready = false;
    while (run.state != DC_STATE_STOPPED && run.state != DC_STATE_FAILED && !leaves) {
        // Not waited for before the looks below are under way, too.
        // SYNC(device.order) acquire: pairs with the release in `dc_serve`. Makes visible what the
        // host sent before it gave the command.
        uint64_t order = dc_load_gpu(DC_SYNC_ORDER, &run.mirror->order);
        // The host's rings and the inbox begin in turn, so that neither keeps the other waiting.
        const bool over_bus = draining || looks < DC_LOOKS_UNTIL_BELLS || dc_bells_ring(run, stage);
        uint32_t staged = 0;
        for (uint32_t look = 0; look < 2 && staged == 0; ++look) {
            if (has_inbox && (look ^ turn) != 0)
                staged = dc_look_at_inbox(seat, stage->in, stage->heads[DC_INBOX]);
            else if (over_bus && (look ^ turn) == 0)
                staged = dc_look_at_host(seat, stage->in, stage->heads, busiest);
        }
        turn ^= 1;
        order = dc_from_first(order);
        const uint32_t command = dc_command(order);
        leaves = uint32_t(order >> 32) == grid.epoch;
        // Whoever is at work for long does not get here, and the others go on meanwhile. What the grid
        // before was asked may stand there still, with its epoch.
        if (!is_ready && (order & DC_ORDER_ASKED) != 0 && order >> 32 == 0) {
            is_ready = true;
            DC_FIRST_LANE dc_store_gpu(DC_SYNC_NONE, &run.store->ready, grid.epoch);
        }
        uint32_t state = DC_STATE_RUNNING;
        bool settles = false, busy = run.busy;
        if (leaves || command == DC_COMMAND_HOLD || command >= DC_COMMAND_STOP) {
            state = command >= DC_COMMAND_STOP   ? DC_STATE_STOPPED
                    : command == DC_COMMAND_HOLD ? DC_STATE_HOLDING
                                                 : run.state;
            settles = leaves || state != run.state;
            busy = false;
            looks = 0;
        } else if (staged != 0) {
            dc_tell_busy(run, true);
            busy = true;
            if (!dc_handle_staged(run, stage, staged, busiest, order)) {
                state = DC_STATE_FAILED;
                settles = true;
                busy = false;
            } else {
                busiest = dc_busiest(staged, busiest);
                settles = dc_should_settle(run, stage);
            }
            looks = run.waiting_on == 0 ? 0 : looks + (looks <= DC_LOOKS_UNTIL_BELLS);
        } else if (draining) {
            // This look began after the command was seen: nothing that it covers is left.
            state = DC_STATE_STOPPED;
            settles = true;
            busy = false;
        } else {
            looks += looks <= DC_LOOKS_UNTIL_BELLS;
        }
        if (looks == DC_LOOKS_UNTIL_SETTLED) {
            settles = true;
            busy = run.waiting_on != 0;
        }
        if (settles)
            dc_settle(run, stage);
        dc_tell_busy(run, busy);
        dc_tell_state(run, state);
        if (command == DC_COMMAND_DRAIN && !draining) {
            draining = true;
            dc_fence_acquire_sys();
        }
        if (looks > DC_LOOKS_UNTIL_BELLS || state == DC_STATE_HOLDING)
            dc_pause(DC_PAUSE_NS);
    }
#if DC_IS_TEAM
    DC_FIRST_LANE dc_tell_team(stage->context.call, true);
#endif
#if DC_IS_WIDE
    dc_dismiss(&stage->context);
#endif
    dc_leave(run, stage, dc_at<uint64_t>(grid.left), grid.epoch);
}
