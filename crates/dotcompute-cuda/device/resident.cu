// The grid: one warp serves, and each kernel has a seat. That is a warp, of a handler of one lane or of a
// warp; or a block; or a team of blocks, which follow each other.
#include "calls.cuh"
#include "service.cuh"

// What of a block's shared memory is its own: the host counts on it (`OWN_SHARED_BYTES`).
#define DC_OWN_SHARED_BYTES 8192

#if DC_HAS_BLOCKS

static_assert(sizeof(dc_stage) <= DC_OWN_SHARED_BYTES, "what is a kernel's begins behind it");

// The first block serves, by its first warp.
extern "C" __global__ void __launch_bounds__(DC_SEAT_THREADS, 1)
    dc_resident(const __grid_constant__ dc_grid grid) {
    __shared__ dc_stage stage;
    extern __shared__ uint4 shared[];
    const uint32_t number = blockIdx.x;
    // The host counts on no seat before it has seen that every block is there.
    if (threadIdx.x == 0) {
        stage.context.call.shared = shared;
        dc_store_sys(DC_SYNC_NONE, dc_at<uint32_t>(grid.census) + number, grid.epoch);
    }
    if (number == 0) {
        if (threadIdx.x < 32)
            dc_serve(grid);
        return;
    }
    const dc_seat *seat = dc_at<const dc_seat>(grid.seats) + (number - 1) / DC_SEAT_BLOCKS;
#if DC_IS_TEAM
    // Others see it as they meet for the first call.
    const uint32_t block = (number - 1) % DC_SEAT_BLOCKS;
    if (threadIdx.x == 0)
        stage.context.call.block = block;
    if (threadIdx.x < 32 && block != 0)
        return dc_follow(grid, seat, &stage.context);
#endif
    if (threadIdx.x < 32)
        dc_sit(grid, seat, &stage);
    else
        dc_assist(seat, &stage.context);
}

#else

#define DC_WARPS 4
static_assert(sizeof(dc_stage) * DC_WARPS <= DC_OWN_SHARED_BYTES, "what is a kernel's begins behind it");

// The first warp serves.
extern "C" __global__ void __launch_bounds__(32 * DC_WARPS, 1)
    dc_resident(const __grid_constant__ dc_grid grid) {
    __shared__ dc_stage stages[DC_WARPS];
    const uint32_t warp = threadIdx.x / 32, number = blockIdx.x * DC_WARPS + warp;
#if DC_IS_WIDE
    extern __shared__ uint4 shared[];
    uint32_t shared_bytes;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(shared_bytes));
    DC_FIRST_LANE stages[warp].context.call.shared =
        shared + warp * (shared_bytes / DC_WARPS / sizeof(uint4));
#endif
    // The host counts on no seat before it has seen that every warp is there.
    if (number <= grid.seat_count) {
        DC_FIRST_LANE dc_store_sys(DC_SYNC_NONE, dc_at<uint32_t>(grid.census) + number, grid.epoch);
    }
    if (number == 0)
        dc_serve(grid);
    else if (number <= grid.seat_count)
        dc_sit(grid, dc_at<const dc_seat>(grid.seats) + (number - 1), &stages[warp]);
}

#endif
