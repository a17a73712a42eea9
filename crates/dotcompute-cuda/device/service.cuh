// The service warp: carries the host's news to the seats and their counters to the host, so that
// seats with nothing to do need not use the bus; and ends the grid when it is time.
#pragma once

#include "seat.cuh"

#define DC_ROUND_PAUSE_NS 1000u
#define DC_COUNTERS_EVERY_NS 1000000u

// Copies the counters of all seats.
DC_FN void dc_copy_counters(const dc_grid &grid) {
    DC_EACH_LANE(lane) {
        DC_ROLLED for (uint32_t number = lane; number < grid.seat_count; number += 32) {
            const dc_seat &seat = dc_at<const dc_seat>(grid.seats)[number];
            const dc_seat_store *store = dc_at<const dc_seat_store>(seat.store);
            dc_seat_counters *counters = &dc_at<dc_seat_counters>(grid.counters)[number];
            // Each is exact; they need not be of one moment, unless the seat has left.
            const uint64_t *from = &store->processed;
            uint64_t *to = &counters->processed;
            DC_ROLLED for (uint32_t word = 0; word < 6; ++word)
                dc_store_sys(DC_SYNC_NONE, to + word, dc_load_gpu(DC_SYNC_NONE, from + word));
        }
    }
}

// Whether all seats are between two messages, or were when they were asked whether they could leave.
DC_FN bool dc_are_ready(const dc_grid &grid) {
    uint32_t busy = 0;
    DC_ROLLED for (uint32_t first = 0; first < grid.seat_count; first += 32) {
        DC_EACH_LANE(lane) {
            const uint32_t number = first + lane;
            bool is_busy = false;
            if (number < grid.seat_count) {
                const dc_seat &seat = dc_at<const dc_seat>(grid.seats)[number];
                const uint32_t *ready = &dc_at<const dc_seat_store>(seat.store)->ready;
                is_busy = dc_load_gpu(DC_SYNC_NONE, ready) != grid.epoch;
            }
            uint32_t found = 0;
            DC_BALLOT(found, lane, is_busy);
            busy |= found;
        }
    }
    return busy == 0;
}

// Passes on the news of all seats: 16 bytes for each lane, two lanes for the tails and one for the
// command, so that eight seats are one load. `asked`: whether they are to say that they could leave;
// `leave` is the epoch to leave, or one that is past.
DC_FN void dc_pass_news_on(const dc_grid &grid, bool asked, uint32_t leave) {
    DC_ROLLED for (uint32_t first = 0; first < grid.seat_count; first += 8) {
        DC_PER_LANE(dc_pair, pair);
        uint32_t changed = 0;
        DC_EACH_LANE(lane) {
            const uint32_t number = first + lane / 4, part = lane % 4;
            bool differs = false;
            if (number < grid.seat_count && part < 3) {
                const dc_seat_news *news = &dc_at<const dc_seat_news>(grid.news)[number];
                // SYNC(device.order) acquire: pairs with the host's release of the command.
                DC_OF(pair, lane) = dc_load_pair_sys(DC_SYNC_ORDER, &news->tails[0] + 2 * part);
                if (part == 2) {
                    const dc_seat &seat = dc_at<const dc_seat>(grid.seats)[number];
                    const uint32_t command =
                        uint32_t(DC_OF(pair, lane).low) | (asked ? DC_ORDER_ASKED : 0);
                    const uint64_t order = command | uint64_t(leave) << 32;
                    DC_OF(pair, lane).low = order;
                    differs = order != dc_load_gpu(DC_SYNC_NONE,
                                                   &dc_at<dc_seat_mirror>(seat.mirror)->order);
                }
            }
            DC_BALLOT(changed, lane, differs);
        }
        if (changed != 0)
            dc_fence_sys();
        DC_EACH_LANE(lane) {
            const uint32_t number = first + lane / 4, part = lane % 4;
            if (number < grid.seat_count && part < 3) {
                const dc_seat &seat = dc_at<const dc_seat>(grid.seats)[number];
                dc_seat_mirror *mirror = dc_at<dc_seat_mirror>(seat.mirror);
                if (part < 2) {
                    dc_store_gpu(DC_SYNC_NONE, &mirror->tails[2 * part], DC_OF(pair, lane).low);
                    dc_store_gpu(DC_SYNC_NONE, &mirror->tails[2 * part + 1],
                                 DC_OF(pair, lane).high);
                } else if (changed >> lane & 1) {
                    // SYNC(device.order) release: pairs with the acquire in `dc_sit`. Makes visible
                    // what the host did before it gave the command.
                    dc_store_gpu(DC_SYNC_ORDER, &mirror->order, DC_OF(pair, lane).low);
                }
            }
        }
    }
}

// Serves the grid until all seats have left, with all their blocks.
DC_FN void dc_serve(const dc_grid &grid) {
    dc_grid_news *news = dc_at<dc_grid_news>(grid.grid_news);
    dc_grid_report *report = dc_at<dc_grid_report>(grid.report);
    const uint64_t start = dc_clock_ns();
    uint64_t heard = start, copied = start, heartbeat = 0, rounds = 0;
    uint32_t leave = 0;
    bool asked = false;
    for (;;) {
        const uint64_t now = dc_from_first(dc_clock_ns());
        const uint64_t beat = dc_from_first(dc_load_sys(DC_SYNC_NONE, &news->heartbeat));
        const uint32_t quiesce = dc_from_first(dc_load_sys(DC_SYNC_NONE, &news->quiesce));
        if (beat != heartbeat) {
            heartbeat = beat;
            heard = now;
        }
        const bool over = grid.lease_ns != 0 && now - start >= grid.lease_ns;
        const bool alone = grid.silence_ns != 0 && now - heard >= grid.silence_ns;
        // Epochs wrap; of two that are near each other, the later one is the larger.
        const bool quiesced = quiesce != 0 && quiesce - grid.epoch < 1u << 31;
        // A handler that does not come back keeps the grid, but not the other kernels from their work.
        if (asked && dc_are_ready(grid))
            leave = grid.epoch;
        asked = asked || over || alone || quiesced;
        dc_pass_news_on(grid, asked, leave);
        if (now - copied >= DC_COUNTERS_EVERY_NS) {
            copied = now;
            dc_copy_counters(grid);
        }
        rounds += 1;
        DC_FIRST_LANE dc_store_sys(DC_SYNC_NONE, &report->rounds, rounds);
        // SYNC(device.left) acquire: pairs with the release in `dc_leave`. Makes visible the stores
        // of the seats that have left.
        if (dc_from_first(dc_load_gpu(DC_SYNC_LEFT, dc_at<uint64_t>(grid.left))) ==
            uint64_t(grid.seat_count) * DC_SEAT_BLOCKS)
            break;
        dc_pause(DC_ROUND_PAUSE_NS);
    }
    dc_fence_acquire_gpu();
    dc_copy_counters(grid);
    dc_sync_warp();
    dc_fence_sys();
    // SYNC(device.report) release: pairs with the host's acquire. Makes visible the counters.
    DC_FIRST_LANE dc_store_sys(DC_SYNC_REPORT, &report->ended, grid.epoch);
}
