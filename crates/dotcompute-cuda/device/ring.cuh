// Rings of tagged slots, from the device's side, and inboxes between kernels.
//
// A slot is four chunks of sixteen bytes, each with the lap in which it was written; the slot is
// there when all four laps agree. A chunk is read in one access, so that whoever has its tag has its
// data: no fence, and no second word to poll.
#pragma once

#include "warp.cuh"

// Where the inbox stands among the sources of a seat: after the host's bands.
#define DC_INBOX DC_BANDS
#define DC_SOURCES (DC_BANDS + 1u)

// A record as twelve words, as three of which each chunk carries.
DC_FN uint32_t *dc_words(dc_tagged_record *record) { return reinterpret_cast<uint32_t *>(record); }
DC_FN const uint32_t *dc_words(const dc_tagged_record *record) {
    return reinterpret_cast<const uint32_t *>(record);
}

// How many slots a record of so many bytes takes.
DC_FN uint32_t dc_slots_of(uint32_t bytes) {
    return (bytes + 8 + DC_TAGGED_MORE_BYTES - 1) / DC_TAGGED_MORE_BYTES;
}

// The lap of a position plus one; slots are a power of two, `mask` + 1.
DC_FN uint32_t dc_tag(uint64_t position, uint32_t mask) {
    return uint32_t(position >> dc_count_bits(mask)) + 1;
}

DC_FN dc_tagged_chunk *dc_chunk_at(uint64_t slots, uint32_t mask, uint64_t position,
                                   uint32_t chunk) {
    return &dc_at<dc_tagged_slot>(slots)[position & mask].chunks[chunk];
}

// How many of the slots whose bits (every fourth) are set in `full` follow each other from `first`.
DC_FN uint32_t dc_run_length(uint32_t full, uint32_t first, uint32_t groups) {
    const uint32_t missing = ~(full >> 4 * first) & 0x11111111;
    const uint32_t run = dc_lowest_bit(missing) / 4;
    return run < groups ? run : groups;
}

// The bits of `chunks` (one for each lane) at which all four of a slot are set.
DC_FN uint32_t dc_whole_slots(uint32_t chunks) {
    return chunks & chunks >> 1 & chunks >> 2 & chunks >> 3 & 0x11111111;
}

// How many of `run` slots are those of whole records of so many slots.
DC_FN uint32_t dc_whole_records(uint32_t run, uint32_t slots) {
    return slots == 1 ? run : run - run % slots;
}

// How many staged slots each source has: five bits for each.
DC_FN uint32_t dc_staged(uint32_t source, uint32_t count) { return count << 5 * source; }
DC_FN uint32_t dc_staged_of(uint32_t staged, uint32_t source) { return staged >> 5 * source & 31; }

// Where a band's first record is staged: one each of the bands that are not busiest, then the rest.
DC_FN uint32_t dc_place_of(uint32_t band, uint32_t busiest) {
    return band == busiest ? DC_BANDS - 1 : band - (band > busiest);
}

DC_FN void dc_stage_chunk(dc_tagged_record *record, uint32_t chunk, const dc_chunk &from) {
    for (uint32_t word = 0; word < 3; ++word)
        dc_words(record)[3 * chunk + word] = from.data[word];
}

// Looks at the host's rings: the next slot of each band, and in the band that is busiest as many
// more as there are lanes for. Two loads are in flight at once, so a look costs one journey over the
// bus. Stages what is there; how many slots of each band. `others`: the bands but the busiest that have
// the beginning of a record which is too long to be staged beside those of the busiest.
DC_FN uint32_t dc_look_once(const dc_seat *seat, dc_tagged_record *in, const uint64_t *heads,
                            uint32_t busiest, uint32_t &others) {
    DC_PER_LANE(dc_chunk, low);
    DC_PER_LANE(dc_chunk, high);
    uint32_t low_full = 0, high_full = 0;
    DC_EACH_LANE(lane) {
        const uint32_t place = lane / 4, chunk = lane % 4;
        const bool single = place < DC_BANDS - 1;
        const uint32_t band = single ? place + (place >= busiest) : busiest;
        const uint64_t position = heads[band] + (single ? 0 : place - (DC_BANDS - 1));
        const uint64_t further = heads[busiest] + place + 8 - (DC_BANDS - 1);
        const dc_ring_place &ring = seat->bands[band], &busy = seat->bands[busiest];
        const uint32_t tag = dc_tag(position, ring.mask), further_tag = dc_tag(further, busy.mask);
        // SYNC(ring.tag) acquire: pairs with the release in `Tagged::write` of the mailbox.
        DC_OF(low, lane) = dc_load_chunk_sys(
            DC_SYNC_RING_TAG, dc_chunk_at(ring.slots, ring.mask, position, chunk), tag);
        DC_OF(high, lane) = dc_load_chunk_sys(
            DC_SYNC_RING_TAG, dc_chunk_at(busy.slots, busy.mask, further, chunk), further_tag);
        DC_BALLOT(low_full, lane, DC_OF(low, lane).tag == tag);
        DC_BALLOT(high_full, lane, DC_OF(high, lane).tag == further_tag);
    }
    others = 0;
    if ((low_full | high_full) == 0)
        return 0;
    low_full = dc_whole_slots(low_full);
    high_full = dc_whole_slots(high_full);
    uint32_t run = dc_run_length(low_full, DC_BANDS - 1, 8 - (DC_BANDS - 1));
    if (run == 8 - (DC_BANDS - 1))
        run += dc_run_length(high_full, 0, 8);
    uint32_t staged = dc_staged(busiest, dc_whole_records(run, seat->message_slots));
    for (uint32_t place = 0; place < DC_BANDS - 1; ++place) {
        const uint32_t band = place + (place >= busiest), single = low_full >> 4 * place & 1;
        if (seat->message_slots == 1)
            staged |= dc_staged(band, single);
        else
            others |= single << band;
    }
    DC_EACH_LANE(lane) {
        dc_stage_chunk(&in[lane / 4], lane % 4, DC_OF(low, lane));
        dc_stage_chunk(&in[8 + lane / 4], lane % 4, DC_OF(high, lane));
    }
    dc_sync_warp();
    return staged;
}

// The same, for messages of any size: long ones are staged of one band at a time, the most urgent.
DC_FN uint32_t dc_look_at_host(const dc_seat *seat, dc_tagged_record *in, const uint64_t *heads,
                               uint32_t &busiest) {
    uint32_t staged = 0, seen = 0;
    // A record whose last slots are not there yet is as if it were not there, and keeps no other back.
    DC_ROLLED for (uint32_t look = 0; look < DC_BANDS; ++look) {
        uint32_t others;
        staged = dc_look_once(seat, in, heads, busiest, others);
        seen |= 1u << busiest;
        if (staged != 0)
            others &= (1u << busiest) - 1;
        others &= ~seen;
        if (others == 0)
            break;
        staged = 0;
        busiest = dc_lowest_bit(others);
    }
    return staged;
}

// Looks at the inbox, as above.
DC_FN uint32_t dc_look_at_inbox(const dc_seat *seat, dc_tagged_record *in, uint64_t head) {
    const dc_ring_place &ring = seat->inbox;
    DC_PER_LANE(dc_chunk, chunks);
    uint32_t full = 0;
    DC_EACH_LANE(lane) {
        const uint64_t position = head + lane / 4;
        const uint32_t tag = dc_tag(position, ring.mask);
        // SYNC(device.inbox_tag) acquire: pairs with the release in `dc_send`.
        DC_OF(chunks, lane) = dc_load_chunk_gpu(
            DC_SYNC_INBOX_TAG, dc_chunk_at(ring.slots, ring.mask, position, lane % 4), tag);
        DC_BALLOT(full, lane, DC_OF(chunks, lane).tag == tag);
    }
    const uint32_t run =
        dc_whole_records(dc_run_length(dc_whole_slots(full), 0, 8), seat->message_slots);
    if (run == 0)
        return 0;
    DC_EACH_LANE(lane) dc_stage_chunk(&in[lane / 4], lane % 4, DC_OF(chunks, lane));
    dc_sync_warp();
    return dc_staged(DC_INBOX, run);
}

// Publishes those slots of `out` whose bits are set, in order, as the next replies after `tail`; how
// many. The caller made sure of the room.
DC_FN uint32_t dc_publish(const dc_ring_place &ring, uint64_t tail, const dc_tagged_record *out,
                          uint32_t slots) {
    DC_ROLLED for (uint32_t first = 0; slots >> first != 0; first += 8) {
        DC_EACH_LANE(lane) {
            const uint32_t slot = first + lane / 4, chunk = lane % 4;
            if (slots >> slot & 1) {
                const uint64_t position = tail + dc_count_bits(slots & ((1u << slot) - 1));
                const uint32_t *words = dc_words(&out[slot]) + 3 * chunk;
                const dc_chunk whole = {{words[0], words[1], words[2]},
                                        dc_tag(position, ring.mask)};
                // SYNC(ring.tag) release: pairs with the acquire in `Tagged::published` of the
                // mailbox.
                dc_store_chunk_sys(DC_SYNC_RING_TAG,
                                   dc_chunk_at(ring.slots, ring.mask, position, chunk), whole);
            }
        }
    }
    return dc_count_bits(slots);
}

// Puts a record into the inbox of another kernel. The caller made sure that the edge has its share:
// then a slot is free, or was freed and this warp is about to see so.
DC_FN void dc_send(dc_edge *edge, const dc_tagged_record *record) {
    const uint32_t slots = edge->record_slots;
    uint64_t position = 0;
    DC_FIRST_LANE {
        position = dc_count_gpu(DC_SYNC_NONE, dc_at<uint64_t>(edge->tickets), slots);
        if (position + slots - edge->head_seen > edge->capacity) {
            uint64_t head;
            do
                // SYNC(device.inbox_free) acquire: pairs with the release in `dc_free_inbox`. Makes
                // visible that the slots before the head were read.
                head = dc_load_gpu(DC_SYNC_INBOX_FREE, dc_at<uint64_t>(edge->head));
            while (position + slots - head > edge->capacity);
            dc_fence_acquire_gpu();
            edge->head_seen = head;
        }
        edge->sent += 1;
    }
    position = dc_from_first(position);
    dc_sync_warp();
    DC_EACH_LANE(lane) {
        if (lane < 4 * slots) {
            const uint64_t place = position + lane / 4;
            const uint32_t *words = dc_words(record) + 3 * lane;
            const dc_chunk whole = {{words[0], words[1], words[2]}, dc_tag(place, edge->mask)};
            // SYNC(device.inbox_tag) release: pairs with the acquire in `dc_look_at_inbox`.
            dc_store_chunk_gpu(DC_SYNC_INBOX_TAG,
                               dc_chunk_at(edge->slots, edge->mask, place, lane % 4), whole);
        }
    }
}

// The edge that a record came by: see `DC_FLAG_*`.
DC_FN uint16_t dc_edge_flags(uint32_t number) { return uint16_t(number << 8); }
DC_FN uint32_t dc_edge_number(const dc_tagged_record &record) { return record.header.flags >> 8; }

// Whether every edge has room for `records` more, or for its whole share where that is less; and
// whether the edge of number `empty`, if there is one, is worked off.
DC_FN bool dc_edges_have_room(dc_edge *edges, uint32_t count, uint32_t records, uint32_t empty) {
    uint32_t lacking = 0;
    DC_EACH_LANE(lane) {
        bool lacks = false;
        if (lane < count) {
            dc_edge *edge = &edges[lane];
            const uint32_t wanted =
                records < edge->share && lane != empty ? records : edge->share;
            if (edge->sent + wanted - edge->returned_seen > edge->share) {
                edge->returned_seen = dc_load_gpu(DC_SYNC_NONE, dc_at<uint64_t>(edge->returned));
                lacks = edge->sent + wanted - edge->returned_seen > edge->share;
            }
        }
        DC_BALLOT(lacking, lane, lacks);
    }
    return lacking == 0;
}

// Gives back what was read of the inbox: the `run` slots staged last, of records of so many `slots`,
// up to `head`. First the slots, for whoever has a ticket for them; then each edge's share, for whoever
// may take one.
DC_FN void dc_free_inbox(const dc_ring_place &ring, uint64_t head, const dc_tagged_record *in,
                         uint32_t run, uint32_t slots) {
    DC_FIRST_LANE {
        dc_fence_gpu();
        // SYNC(device.inbox_free) release: pairs with the acquire in `dc_send`. Makes visible that
        // the slots before the head were read.
        dc_store_gpu(DC_SYNC_INBOX_FREE, dc_at<uint64_t>(ring.own), head);
        DC_ROLLED for (uint32_t record = 0; record < run; record += slots) {
            dc_ring_cursor *returned = &dc_at<dc_ring_cursor>(ring.peer)[dc_edge_number(in[record])];
            const uint64_t before = dc_load_gpu(DC_SYNC_NONE, &returned->position);
            dc_store_gpu(DC_SYNC_NONE, &returned->position, before + 1);
        }
    }
    dc_sync_warp();
}
