// A team: the blocks, of one grid, that call a handler together.
//
// The first block is what the protocol knows as the seat: its first warp polls, stages and publishes, as where
// the seat is one block. The others *follow*: their first warps wait for the word by which the first block tells
// of a call, or that the grid is left. For a call the message is copied into memory that all blocks reach, where
// the reply is made too. The blocks are done when they have *met* as blocks that have returned; they also meet
// where all threads of each come to a barrier of the team. As between threads (scope.cuh), a meeting tells how
// many of those who came have returned, and nobody waits for one that has.
//
// Edges: team.call, from what the first block shared to the others; team.meet, from what each block did before a
// meeting to what all do after it. One thread of a block is their end: between it and the others the block's own
// barrier is, and what that orders such a thread's fences pass on.
#pragma once

#include "scope.cuh"

#if DC_IS_TEAM

// How long a block waits between two looks at a word of its team.
#define DC_TEAM_PAUSE_NS 32u
#define DC_TEAM_CALLS (DC_TEAM_LEAVES - 1)

// Makes a block of a team ready for a lease. The first lane does.
DC_FN void dc_join_team(dc_call &call, const dc_seat *seat, uint32_t epoch) {
    call.team = dc_at<dc_team>(seat->team);
    call.word = uint64_t(epoch) << 32;
    // It cannot change before this block has come to a meeting.
    call.round = uint32_t(dc_load_gpu(DC_SYNC_NONE, &call.team->round.position));
}

// Tells the other blocks of the next call, or that the grid is left. The first lane of the first block does.
DC_FN void dc_tell_team(dc_call &call, bool leaves) {
    const uint32_t calls = leaves ? DC_TEAM_LEAVES : uint32_t(call.word + 1) & DC_TEAM_CALLS;
    call.word = (call.word & ~uint64_t(~0u)) | calls;
    dc_fence_gpu();
    // SYNC(team.call) release: pairs with the acquire in `dc_follow_team`. Makes visible the message, and that
    // nobody has failed at it yet.
    dc_store_gpu(DC_SYNC_TEAM_CALL, &call.team->call.position, call.word);
}

// Waits for the next call; false if the grid is left. The first warp of another block does.
DC_FN bool dc_follow_team(dc_call &call) {
    const uint64_t before = call.word;
    uint64_t word;
    for (;;) {
        // SYNC(team.call) acquire: pairs with the release in `dc_tell_team`. Of another lease is what
        // the first block has not replaced yet.
        word = dc_from_first(dc_load_gpu(DC_SYNC_TEAM_CALL, &call.team->call.position));
        if (word != before && word >> 32 == before >> 32)
            break;
        dc_pause(DC_TEAM_PAUSE_NS);
    }
    dc_fence_acquire_gpu();
    DC_FIRST_LANE call.word = word;
    return (word & DC_TEAM_LEAVES) == 0;
}

// The blocks meet: how many of them have returned. One thread of each does.
DC_FN uint32_t dc_meet_blocks(dc_call &call, bool returned) {
    const uint64_t mine = returned ? uint64_t(1) << 32 | 1 : 1;
    dc_fence_gpu();
    // SYNC(team.meet) release, and acquire: the last to come has what all others did, and its store gives it
    // to them.
    uint64_t round = dc_count_gpu(DC_SYNC_TEAM_MEET, &call.team->here.position, mine) + mine;
    if (uint32_t(round) == DC_SEAT_BLOCKS) {
        // Before anybody comes to the next one.
        dc_store_gpu(DC_SYNC_NONE, &call.team->here.position, uint64_t(0));
        round = (round >> 32) << 32 | uint32_t(call.round + 1);
        dc_fence_gpu();
        dc_store_gpu(DC_SYNC_TEAM_MEET, &call.team->round.position, round);
    } else {
        for (;;) {
            round = dc_load_gpu(DC_SYNC_TEAM_MEET, &call.team->round.position);
            if (uint32_t(round) != call.round)
                break;
            dc_pause(DC_TEAM_PAUSE_NS);
        }
        dc_fence_acquire_gpu();
    }
    call.round = uint32_t(round);
    return uint32_t(round >> 32);
}

// What a thread learns where those of its block did not come to the same barrier.
#define DC_APART (~0u)

// Meets all threads of the team: how many of its blocks have returned, or `DC_APART`. `result` is what this block
// came to, once its threads have returned.
template <class Result> DC_FN uint32_t dc_meet_team(dc_call &call, bool returned, Result result) {
    // Who is at a barrier of the block alone comes as one that has not returned.
    if (dc_meet(call, true) != DC_SEAT_THREADS)
        return DC_APART;
    const uint32_t back = dc_meet(call, returned);
    if (back != 0 && back != DC_SEAT_THREADS)
        return DC_APART;
    if (dc_thread() == 0) {
        if (returned)
            result();
        call.met = dc_meet_blocks(call, returned);
    }
    dc_meet(call, false);
    // Nobody writes to it before all have come once more.
    return call.met;
}

#endif
