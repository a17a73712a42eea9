// The grid: its first warp serves, each other one is a seat.
#include "calls.cuh"
#include "service.cuh"

#define DC_WARPS 4

extern "C" __global__ void __launch_bounds__(32 * DC_WARPS, 1)
    dc_resident(const __grid_constant__ dc_grid grid) {
    __shared__ dc_stage stages[DC_WARPS];
    const uint32_t warp = threadIdx.x / 32, number = blockIdx.x * DC_WARPS + warp;
    // The host counts on no seat before it has seen that every warp is there.
    if (number <= grid.seat_count) {
        DC_FIRST_LANE dc_store_sys(DC_SYNC_NONE, dc_at<uint32_t>(grid.census) + number, grid.epoch);
    }
    if (number == 0)
        dc_serve(grid);
    else if (number <= grid.seat_count)
        dc_sit(grid, dc_at<const dc_seat>(grid.seats) + (number - 1), &stages[warp]);
}
