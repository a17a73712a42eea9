// What a kernel of this folder knows of a block and a grid, in few words, so that elsewhere one host
// thread can take the steps of all threads in turn:
//
//     DC_EACH_THREAD(t) { ... }   every thread of the block; variables outside are shared or the same
//                                 for all
//     DC_BLOCK_BARRIER();            between two of them: what one wrote, the next reads
//     DC_GRID_BARRIER(barrier);      the same for all blocks, which have to be resident at once
//
// On a host a grid is one block after the other; where the grid is to sync there can be one only.
#pragma once

typedef unsigned char dc_u8;
typedef unsigned int dc_u32;
typedef unsigned long long dc_u64;
typedef long long dc_i64;

#if defined(__CUDACC__)

#define DC_KERNEL extern "C" __global__ void
#define DC_SHARED __shared__
#define DC_INLINE __device__ __forceinline__
#define DC_EACH_THREAD(t) if (const dc_u32 t = threadIdx.x; true)
#define DC_BLOCK_BARRIER() __syncthreads()
#define DC_BLOCK blockIdx.x
#define DC_BLOCKS gridDim.x
DC_INLINE void dc_add(dc_u64 *to, dc_u64 value) { atomicAdd(to, value); }
DC_INLINE dc_u32 dc_take(dc_u32 *from) { return atomicAdd(from, 1u); }

// All blocks of the grid. `barrier` is zero at launch, and counts arrivals from then on: with each sync
// every block adds one. Gpu scope: what a block wrote before, others read after.
DC_INLINE void dc_grid_barrier(dc_u32 *barrier) {
    __syncthreads();
    if (threadIdx.x == 0) {
        dc_u32 before, seen;
        // SYNC(block.grid) release: pairs with the acquire below, in other blocks. Makes visible what the
        // block wrote. Scope: gpu.
        asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
                     : "=r"(before) : "l"(barrier) : "memory");
        const dc_u32 last = (before / gridDim.x + 1) * gridDim.x;
        // SYNC(block.grid) acquire: pairs with the release above. Makes visible what all blocks wrote.
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                         : "=r"(seen) : "l"(barrier) : "memory");
        } while (int(seen - last) < 0);
    }
    __syncthreads();
}
#define DC_GRID_BARRIER(barrier) dc_grid_barrier(barrier)

#else

#include <cmath>

struct dc_place {
    dc_u32 block, blocks;
};
// Where the host is in a grid, and how it gets there.
static thread_local dc_place dc_here = {0, 1};
extern "C" void dc_twin_at(dc_u32 block, dc_u32 blocks) { dc_here = {block, blocks}; }

#define DC_KERNEL extern "C" void
#define DC_SHARED static thread_local
#define DC_INLINE static inline
#define DC_EACH_THREAD(t) for (dc_u32 t = 0; t < DC_THREADS; ++t)
#define DC_BLOCK_BARRIER()
#define DC_BLOCK dc_here.block
#define DC_BLOCKS dc_here.blocks
DC_INLINE void dc_add(dc_u64 *to, dc_u64 value) { *to += value; }
DC_INLINE dc_u32 dc_take(dc_u32 *from) { return (*from)++; }
#define DC_GRID_BARRIER(barrier) (void)(barrier)

#endif
