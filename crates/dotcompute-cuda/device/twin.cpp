// The device's side on host threads: what a warp does, one thread does; a handler of several threads has as
// many.
#define DC_DEVICE_TWIN
#include "calls.cuh"
#include "service.cuh"

// By its number among the blocks of all seats, where they are teams.
extern "C" void dc_twin_seat(const dc_grid *grid, uint32_t number, uint32_t shared_bytes) {
    dc_stage stage = {};
    const dc_seat *seat = dc_at<const dc_seat>(grid->seats) + number / DC_SEAT_BLOCKS;
#if DC_IS_WIDE
    // Aligned to 16, as memory is that was just taken.
    std::vector<uint8_t> shared(shared_bytes + 1);
    dc_crew crew;
    stage.context.call.shared = shared.data();
    stage.context.call.crew = &crew;
#else
    (void)shared_bytes;
#endif
#if DC_IS_TEAM
    stage.context.call.block = number % DC_SEAT_BLOCKS;
    if (stage.context.call.block != 0)
        return dc_follow(*grid, seat, &stage.context);
#endif
    dc_sit(*grid, seat, &stage);
}

extern "C" void dc_twin_service(const dc_grid *grid) { dc_serve(*grid); }
