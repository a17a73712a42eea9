// A seat is a warp: 32 lanes that go together. These few words are all that the protocol knows of
// it, so that elsewhere one host thread can take the steps of all lanes in turn.
//
//     DC_PER_LANE(uint32_t, word);               a variable of each lane's own
//     DC_EACH_LANE(lane) { DC_OF(word, lane) = ...; }
//     DC_BALLOT(mask, lane, condition)           inside DC_EACH_LANE: bit `lane` of mask
//     DC_FIRST_LANE { ... }                      one lane alone; others do not see its variables
//     word = dc_from_first(word);                ... until this
//     DC_ROLLED for (...)                        a loop off the hot path, kept small
//     dc_sync_warp();                            what lanes wrote to memory, all lanes see
#pragma once

#include "atomics.cuh"

#if defined(__CUDACC__)

DC_FN uint32_t dc_lane() {
    uint32_t lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}
#define DC_ROLLED _Pragma("unroll 1")
#define DC_PER_LANE(type, name) type name
#define DC_OF(name, lane) name
#define DC_EACH_LANE(lane) if (const uint32_t lane = dc_lane(); true)
#define DC_FIRST_LANE if (dc_lane() == 0)
#define DC_BALLOT(mask, lane, condition) mask = __ballot_sync(~0u, condition)
DC_FN uint32_t dc_from_first(uint32_t value) { return __shfl_sync(~0u, value, 0); }
DC_FN uint64_t dc_from_first(uint64_t value) { return __shfl_sync(~0u, value, 0); }
DC_FN void dc_sync_warp() { __syncwarp(); }
DC_FN uint32_t dc_count_bits(uint32_t bits) { return __popc(bits); }
// The number of the lowest bit that is set; 32 if none is.
DC_FN uint32_t dc_lowest_bit(uint32_t bits) { return __clz(__brev(bits)); }

#else

#include <bit>

#define DC_ROLLED
#define DC_PER_LANE(type, name) type name[32]
#define DC_OF(name, lane) name[lane]
#define DC_EACH_LANE(lane) for (uint32_t lane = 0; lane < 32; ++lane)
#define DC_FIRST_LANE
#define DC_BALLOT(mask, lane, condition) mask |= uint32_t(condition) << lane
template <class T> DC_FN T dc_from_first(T value) { return value; }
DC_FN void dc_sync_warp() {}
DC_FN uint32_t dc_count_bits(uint32_t bits) { return std::popcount(bits); }
DC_FN uint32_t dc_lowest_bit(uint32_t bits) { return std::countr_zero(bits); }

#endif
