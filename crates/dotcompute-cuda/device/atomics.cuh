// The memory operations of the device protocol. Each names its scope (`sys`: the other thread may be
// the host's; `gpu`: it is one of this device), and the edge between threads that it is an end of,
// by the name that SYNC comments have in the Rust sources.
//
// On a device they are PTX. Elsewhere they are the same protocol for host threads, so that
// ThreadSanitizer can watch it. That does not follow fences by themselves: there, a store that
// follows a fence releases, a load that a fence follows acquires, and the data of chunks are plain.
#pragma once

#include "dotcompute_abi.h"

// Edges between threads. Those before DC_SYNC_NONE order something.
enum dc_sync {
    // ring.tag: a chunk's data, by its tag; between host and device.
    DC_SYNC_RING_TAG = 1,
    // ring.free: that slots were read, by the reader's position; between host and device.
    DC_SYNC_RING_FREE = 2,
    // device.inbox_tag: as ring.tag, between kernels of the device.
    DC_SYNC_INBOX_TAG = 3,
    // device.inbox_free: as ring.free, between kernels of the device.
    DC_SYNC_INBOX_FREE = 4,
    // device.order: what the host did before it gave a command, by the command.
    DC_SYNC_ORDER = 5,
    // device.report: what a seat reported before its state, by the state.
    DC_SYNC_REPORT = 6,
    // device.left: what a seat stored before it left, by the count of those that left.
    DC_SYNC_LEFT = 7,
    // device.received: what the messages of an inbox led to, by how many were taken out of it.
    DC_SYNC_RECEIVED = 8,
    // seat.meet: what the threads of a seat did before they met; see scope.cuh.
    DC_SYNC_MEET = 9,
    // team.call: the message that the first block of a team shares, by its word; see team.cuh.
    DC_SYNC_TEAM_CALL = 10,
    // team.meet: what the blocks of a team did before they met.
    DC_SYNC_TEAM_MEET = 11,
    // Nothing is ordered by the access: a hint, or a word that says all there is to know.
    DC_SYNC_NONE = 12,
};

// A quarter of a slot, in registers.
struct dc_chunk {
    uint32_t data[3];
    uint32_t tag;
};

// Two words of one line, that need not be of one moment.
struct dc_pair {
    uint64_t low, high;
};

#if defined(__CUDACC__)

#define DC_FN static __device__ __forceinline__

#define DC_SCOPED(scope)                                                                           \
    DC_FN uint64_t dc_load_##scope(dc_sync, const uint64_t *place) {                               \
        uint64_t value;                                                                            \
        asm volatile("ld.relaxed." #scope ".global.u64 %0, [%1];"                                  \
                     : "=l"(value)                                                                 \
                     : "l"(place)                                                                  \
                     : "memory");                                                                  \
        return value;                                                                              \
    }                                                                                              \
    DC_FN uint32_t dc_load_##scope(dc_sync, const uint32_t *place) {                               \
        uint32_t value;                                                                            \
        asm volatile("ld.relaxed." #scope ".global.u32 %0, [%1];"                                  \
                     : "=r"(value)                                                                 \
                     : "l"(place)                                                                  \
                     : "memory");                                                                  \
        return value;                                                                              \
    }                                                                                              \
    DC_FN void dc_store_##scope(dc_sync, uint64_t *place, uint64_t value) {                        \
        asm volatile("st.relaxed." #scope ".global.u64 [%0], %1;" ::"l"(place), "l"(value)         \
                     : "memory");                                                                  \
    }                                                                                              \
    DC_FN void dc_store_##scope(dc_sync, uint32_t *place, uint32_t value) {                        \
        asm volatile("st.relaxed." #scope ".global.u32 [%0], %1;" ::"l"(place), "r"(value)         \
                     : "memory");                                                                  \
    }                                                                                              \
    DC_FN void dc_fence_##scope() { asm volatile("fence.acq_rel." #scope ";" ::: "memory"); }      \
    DC_SCOPED_ONE_WAY(scope)                                                                       \
    DC_SCOPED_CHUNK(scope)

// Fences that order one way only came with sm_90; an older assembler's output for them is not to be
// trusted, which is why the architecture is asked and not the assembler.
#if __CUDA_ARCH__ >= 900
#define DC_SCOPED_ONE_WAY(scope)                                                                   \
    DC_FN void dc_fence_acquire_##scope() { asm volatile("fence.acquire." #scope ";" ::: "memory"); }
#else
#define DC_SCOPED_ONE_WAY(scope)                                                                   \
    DC_FN void dc_fence_acquire_##scope() { dc_fence_##scope(); }
#endif

#if !defined(DC_FENCED)
// Sixteen bytes in one access: whoever sees the tag has the data.
#define DC_SCOPED_CHUNK(scope)                                                                     \
    DC_FN dc_chunk dc_load_chunk_##scope(dc_sync, const void *place, uint32_t) {                   \
        uint64_t low, high;                                                                        \
        asm volatile("{ .reg .b128 t; ld.relaxed." #scope                                          \
                     ".global.b128 t, [%2]; mov.b128 {%0, %1}, t; }"                               \
                     : "=l"(low), "=l"(high)                                                       \
                     : "l"(place)                                                                  \
                     : "memory");                                                                  \
        return {{uint32_t(low), uint32_t(low >> 32), uint32_t(high)}, uint32_t(high >> 32)};       \
    }                                                                                              \
    DC_FN void dc_store_chunk_##scope(dc_sync, void *place, dc_chunk chunk) {                      \
        const uint64_t low = chunk.data[0] | uint64_t(chunk.data[1]) << 32;                        \
        const uint64_t high = chunk.data[2] | uint64_t(chunk.tag) << 32;                           \
        asm volatile("{ .reg .b128 t; mov.b128 t, {%1, %2}; st.relaxed." #scope                    \
                     ".global.b128 [%0], t; }" ::"l"(place),                                       \
                     "l"(low), "l"(high)                                                           \
                     : "memory");                                                                  \
    }
#else
// The fallback, should sixteen bytes turn out to be torn: the tag alone is trusted, between fences.
#define DC_SCOPED_CHUNK(scope)                                                                     \
    DC_FN dc_chunk dc_load_chunk_##scope(dc_sync edge, const void *place, uint32_t tag) {          \
        const uint32_t *words = static_cast<const uint32_t *>(place);                              \
        dc_chunk chunk = {{0, 0, 0}, dc_load_##scope(edge, words + 3)};                            \
        if (chunk.tag == tag) {                                                                    \
            dc_fence_acquire_##scope();                                                            \
            for (uint32_t word = 0; word < 3; ++word)                                              \
                chunk.data[word] = dc_load_##scope(edge, words + word);                            \
        }                                                                                          \
        return chunk;                                                                              \
    }                                                                                              \
    DC_FN void dc_store_chunk_##scope(dc_sync edge, void *place, dc_chunk chunk) {                 \
        uint32_t *words = static_cast<uint32_t *>(place);                                          \
        for (uint32_t word = 0; word < 3; ++word)                                                  \
            dc_store_##scope(edge, words + word, chunk.data[word]);                                \
        dc_fence_##scope();                                                                        \
        dc_store_##scope(edge, words + 3, chunk.tag);                                              \
    }
#endif

DC_SCOPED(sys)
DC_SCOPED(gpu)

// Counts up by so many; what was there before.
DC_FN uint64_t dc_count_gpu(dc_sync, uint64_t *place, uint64_t count) {
    uint64_t before;
    asm volatile("atom.relaxed.gpu.global.add.u64 %0, [%1], %2;"
                 : "=l"(before)
                 : "l"(place), "l"(count)
                 : "memory");
    return before;
}

// Both words of a pair aligned to 16 bytes, in one access.
DC_FN dc_pair dc_load_pair_sys(dc_sync, const uint64_t *place) {
    dc_pair pair;
    asm volatile("{ .reg .b128 t; ld.relaxed.sys.global.b128 t, [%2]; mov.b128 {%0, %1}, t; }"
                 : "=l"(pair.low), "=l"(pair.high)
                 : "l"(place)
                 : "memory");
    return pair;
}

DC_FN uint64_t dc_clock_ns() {
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}
DC_FN uint64_t dc_clock_ticks() { return clock64(); }
DC_FN void dc_pause(uint32_t ns) { asm volatile("nanosleep.u32 %0;" ::"r"(ns)); }

#else

#include <atomic>
#include <chrono>
#include <thread>

#define DC_FN static inline

// A seeded mistake: the edge of this number orders nothing. Only tests of the tests set it.
#if !defined(DC_BUG)
#define DC_BUG 0
#endif

DC_FN constexpr std::memory_order dc_loads(dc_sync edge) {
    return edge == DC_SYNC_NONE || edge == DC_BUG ? std::memory_order_relaxed
                                                  : std::memory_order_acquire;
}
DC_FN constexpr std::memory_order dc_stores(dc_sync edge) {
    return edge == DC_SYNC_NONE || edge == DC_BUG ? std::memory_order_relaxed
                                                  : std::memory_order_release;
}

template <class T> DC_FN T dc_load(dc_sync edge, const T *place) {
    return std::atomic_ref<T>(*const_cast<T *>(place)).load(dc_loads(edge));
}
template <class T> DC_FN void dc_store(dc_sync edge, T *place, T value) {
    std::atomic_ref<T>(*place).store(value, dc_stores(edge));
}
DC_FN dc_chunk dc_load_chunk(dc_sync edge, const void *place, uint32_t tag) {
    const uint32_t *words = static_cast<const uint32_t *>(place);
    dc_chunk chunk = {{0, 0, 0}, dc_load(edge, words + 3)};
    if (chunk.tag == tag)
        for (uint32_t word = 0; word < 3; ++word)
            chunk.data[word] = words[word];
    return chunk;
}
DC_FN void dc_store_chunk(dc_sync edge, void *place, dc_chunk chunk) {
    uint32_t *words = static_cast<uint32_t *>(place);
    for (uint32_t word = 0; word < 3; ++word)
        words[word] = chunk.data[word];
    dc_store(edge, words + 3, chunk.tag);
}
#define dc_load_sys dc_load
#define dc_load_gpu dc_load
#define dc_store_sys dc_store
#define dc_store_gpu dc_store
#define dc_load_chunk_sys dc_load_chunk
#define dc_load_chunk_gpu dc_load_chunk
#define dc_store_chunk_sys dc_store_chunk
#define dc_store_chunk_gpu dc_store_chunk
DC_FN void dc_fence_sys() {}
DC_FN void dc_fence_gpu() {}
DC_FN void dc_fence_acquire_sys() {}
DC_FN void dc_fence_acquire_gpu() {}

DC_FN uint64_t dc_count_gpu(dc_sync edge, uint64_t *place, uint64_t count) {
    // Where blocks meet it is the end of both kinds for the last of them.
    const bool is_both = edge == DC_SYNC_TEAM_MEET && edge != DC_BUG;
    return std::atomic_ref<uint64_t>(*place).fetch_add(
        count, is_both ? std::memory_order_acq_rel : dc_stores(edge));
}

DC_FN dc_pair dc_load_pair_sys(dc_sync edge, const uint64_t *place) {
    return {dc_load(edge, place), dc_load(edge, place + 1)};
}

DC_FN uint64_t dc_clock_ns() {
    using namespace std::chrono;
    return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}
DC_FN uint64_t dc_clock_ticks() { return dc_clock_ns(); }
DC_FN void dc_pause(uint32_t) { std::this_thread::yield(); }

#endif

template <class T> DC_FN T *dc_at(uint64_t address) { return reinterpret_cast<T *>(address); }
