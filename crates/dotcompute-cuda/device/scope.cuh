// How many threads call a handler, together, for one message: one lane of the seat's warp (the default), the
// whole warp, a block, or a team of blocks (team.cuh). An image is of one scope, and its code for one lane is
// as if there were no other.
//
// A wide seat is one whose handler has several threads. Its first warp is what the protocol knows as the seat:
// it polls, stages and publishes. For a message it writes the call into the context, which all threads share;
// they *meet*, each calls the handler, and they meet until all have returned. A meeting is a barrier that
// tells how many of those who came have returned from the handler already: so one that returns early keeps
// nobody waiting who is at a barrier of the handler's, and the latter learns that it was left.
//
// Edge: seat.meet, from what each thread did before a meeting to what all do after it.
#pragma once

#include "warp.cuh"

#define DC_SCOPE_LANE 0
#define DC_SCOPE_WARP 1
#define DC_SCOPE_BLOCK 2
#define DC_SCOPE_TEAM 3

#if !defined(DC_SCOPE)
#define DC_SCOPE DC_SCOPE_LANE
#endif
#define DC_IS_WIDE (DC_SCOPE != DC_SCOPE_LANE)
#define DC_HAS_BLOCKS (DC_SCOPE >= DC_SCOPE_BLOCK)
#define DC_IS_TEAM (DC_SCOPE == DC_SCOPE_TEAM)
// The blocks of a seat, and the threads of each, or of the seat where it is no block: chosen where the image is
// built, but for those of a warp.
#if !DC_IS_TEAM
#define DC_SEAT_BLOCKS 1u
#endif
#if DC_SCOPE == DC_SCOPE_LANE
#define DC_SEAT_THREADS 1u
#elif DC_SCOPE == DC_SCOPE_WARP
#define DC_SEAT_THREADS 32u
#endif

// How much of a fault's text is kept: as of a line of the log.
#define DC_TEXT_BYTES 36u

#if DC_IS_WIDE

// What the threads of a wide seat share besides the rest of a context.
struct dc_call {
    // The message that they are called for; null: they are to go.
    const dc_tagged_record *message;
    // The kernel's shared memory.
    void *shared;
    // Whether some thread has made a reply.
    uint32_t has_reply;
    // What the thread said that failed first.
    uint32_t text_bytes;
    char text[DC_TEXT_BYTES];
#if DC_IS_TEAM
    // What the blocks of the team share, and which one this is.
    dc_team *team;
    uint32_t block;
    // The last call, as the team's word has it, of the first block; how often the blocks have met; and what
    // their last meeting came to, for the threads of this one.
    uint64_t word;
    uint32_t round;
    uint32_t met;
#endif
#if !defined(__CUDACC__)
    class dc_crew *crew;
#elif DC_SCOPE == DC_SCOPE_WARP
    // Which lanes have returned: each has its byte.
    uint4 returned[2];
#endif
};

#if defined(__CUDACC__)

#if DC_HAS_BLOCKS

DC_FN uint32_t dc_thread() { return threadIdx.x; }
DC_FN void dc_begin_meetings(dc_call &) {}
// SYNC(seat.meet) release, and acquire: what each thread did before, all find after. Scope: the block. Not
// `bar`, which a warp is to come to as one: lanes of it may have returned, and come from elsewhere.
DC_FN uint32_t dc_meet(dc_call &, bool returned) {
    uint32_t count;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; barrier.cta.red.popc.u32 %0, 0, p; }"
                 : "=r"(count)
                 : "r"(uint32_t(returned))
                 : "memory");
    return count;
}

#else

DC_FN uint32_t dc_thread() { return dc_lane(); }
DC_FN void dc_begin_meetings(dc_call &call) {
    call.returned[0] = call.returned[1] = make_uint4(0, 0, 0, 0);
}
// SYNC(seat.meet) release, and acquire: as for a block. Scope: the warp. Nobody writes to what is counted
// between the two.
DC_FN uint32_t dc_meet(dc_call &call, bool returned) {
    if (returned)
        reinterpret_cast<volatile uint8_t *>(call.returned)[dc_lane()] = 1;
    __syncwarp();
    const uint4 low = call.returned[0], high = call.returned[1];
    __syncwarp();
    return __popc(low.x) + __popc(low.y) + __popc(low.z) + __popc(low.w) + __popc(high.x) +
           __popc(high.y) + __popc(high.z) + __popc(high.w);
}

#endif

// Writes a word of the context, if nobody did before; whether it was this thread.
DC_FN bool dc_be_first(int32_t *word, int32_t value) { return atomicCAS(word, 0, value) == 0; }
DC_FN void dc_say_so(uint32_t *word) { *reinterpret_cast<volatile uint32_t *>(word) = 1; }

#else

#include <vector>

// The number of this thread among those of its block, or seat: that which sits is the first.
inline thread_local uint32_t dc_thread_number = 0;
DC_FN uint32_t dc_thread() { return dc_thread_number; }
DC_FN void dc_begin_meetings(dc_call &) {}

// Thrown to all threads of a seat when one of them has ended otherwise than by returning.
struct dc_crew_lost {};

// The threads of a wide seat, or of a block of its team, on a host: begun with the first call.
class dc_crew {
    std::vector<std::thread> others;
    std::atomic<uint32_t> round = 0, here = 0, back = 0;
    std::atomic<bool> lost = false;
    // How many had returned, of the round before and of this one.
    uint32_t counts[2] = {};

    static constexpr bool is_broken = DC_BUG == DC_SYNC_MEET;

  public:
    template <class Work> void begin(Work work) {
        if (!others.empty())
            return;
        for (uint32_t number = 1; number < DC_SEAT_THREADS; ++number) {
            others.emplace_back([this, work, number] {
                dc_thread_number = number;
                try {
                    work();
                } catch (...) {
                    lose();
                }
            });
        }
    }
    bool has_begun() const { return !others.empty(); }
    // Lets all go who wait; the round is never again what they wait for it to change from.
    void lose() {
        if (lost.exchange(true))
            return;
        round += 1u << 31;
        round.notify_all();
    }
    uint32_t meet(bool returned) {
        constexpr auto in = is_broken ? std::memory_order_relaxed : std::memory_order_acquire;
        constexpr auto both = is_broken ? std::memory_order_relaxed : std::memory_order_acq_rel;
        constexpr auto out = is_broken ? std::memory_order_relaxed : std::memory_order_release;
        // It cannot change before this thread has come.
        const uint32_t now = round.load(std::memory_order_relaxed);
        if (returned)
            back.fetch_add(1, std::memory_order_relaxed);
        // SYNC(seat.meet) release, and acquire: the last to come has what all others did, and its store
        // gives it to them.
        if (here.fetch_add(1, both) + 1 == DC_SEAT_THREADS) {
            std::atomic_ref(counts[now & 1])
                .store(back.exchange(0, std::memory_order_relaxed), std::memory_order_relaxed);
            here.store(0, std::memory_order_relaxed);
            round.fetch_add(1, out);
            round.notify_all();
        } else {
            while (round.load(in) == now && !lost)
                round.wait(now, in);
        }
        if (lost)
            throw dc_crew_lost{};
        return std::atomic_ref(counts[now & 1]).load(std::memory_order_relaxed);
    }
    ~dc_crew() {
        if (has_begun())
            lose();
        for (auto &other : others)
            other.join();
    }
};

DC_FN uint32_t dc_meet(dc_call &call, bool returned) { return call.crew->meet(returned); }
DC_FN bool dc_be_first(int32_t *word, int32_t value) {
    int32_t before = 0;
    return std::atomic_ref(*word).compare_exchange_strong(before, value,
                                                          std::memory_order_relaxed);
}
DC_FN void dc_say_so(uint32_t *word) {
    std::atomic_ref(*word).store(1, std::memory_order_relaxed);
}

#endif
#endif
