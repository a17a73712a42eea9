// The device's side on host threads: what a warp does, one thread does.
#define DC_DEVICE_TWIN
#include "calls.cuh"
#include "service.cuh"

extern "C" void dc_twin_seat(const dc_grid *grid, uint32_t number) {
    dc_stage stage = {};
    dc_sit(*grid, dc_at<const dc_seat>(grid->seats) + number, &stage);
}

extern "C" void dc_twin_service(const dc_grid *grid) { dc_serve(*grid); }
