// Keys that are names: the places of a batch's names in the table of the detector's state, so that the
// kernel of `anomaly.cu` goes on with places as with any keys. The table is that of the processor, byte
// for byte: names get their places in the order of the events.
//
// Two kernels, one after the other. `anomaly_find` looks every name up, which all threads do at once, since
// nothing changes. What it did not find is new, and rare once the names are known: `anomaly_insert` gives
// new names their places, one after the other.
#include "block.cuh"

#define DC_THREADS 256u
#define DC_NONE 0xffffffffu
#define DC_WORDS 6u

struct dc_name {
    dc_u32 words[DC_WORDS];
};
struct dc_named_event {
    dc_name name;
    dc_u64 sequence;
    double time, value;
};
// What `anomaly.cu` takes: the key is a place, and the sequence the number of the event in its batch.
struct dc_placed_event {
    dc_u32 key, sequence;
    double time, value;
};
// How many names the table has, and for how many there is room.
struct dc_fill {
    dc_i64 known, keys;
};

DC_INLINE dc_u32 dc_left(dc_u32 value, dc_u32 bits) { return value << bits | value >> (32 - bits); }

// MurmurHash3 of 32 bits.
DC_INLINE dc_u32 dc_hash(const dc_name &name) {
    dc_u32 hash = 0;
    for (dc_u32 word = 0; word < DC_WORDS; ++word) {
        hash ^= dc_left(name.words[word] * 0xcc9e2d51u, 15) * 0x1b873593u;
        hash = dc_left(hash, 13) * 5u + 0xe6546b64u;
    }
    hash ^= 4 * DC_WORDS;
    hash = (hash ^ hash >> 16) * 0x85ebca6bu;
    hash = (hash ^ hash >> 13) * 0xc2b2ae35u;
    return hash ^ hash >> 16;
}

DC_INLINE bool dc_is_none(const dc_name &name) {
    dc_u32 any = 0;
    for (dc_u32 word = 0; word < DC_WORDS; ++word)
        any |= name.words[word];
    return any == 0;
}

DC_INLINE bool dc_is_same(const dc_name &one, const dc_name &other) {
    dc_u32 differs = 0;
    for (dc_u32 word = 0; word < DC_WORDS; ++word)
        differs |= one.words[word] ^ other.words[word];
    return differs == 0;
}

// The place of the name, or else the free one that would be its own, or `places` if there is neither.
DC_INLINE dc_u32 dc_find(const dc_name *names, dc_u32 places, const dc_name &name, bool *is_known) {
    dc_u32 place = dc_u32(dc_u64(dc_hash(name)) * places >> 32);
    // A free place is always near, unless the state is one that no detector wrote.
    for (dc_u32 tried = 0; tried < places; ++tried) {
        const dc_name kept = names[place];
        *is_known = dc_is_same(kept, name);
        if (*is_known || dc_is_none(kept))
            return place;
        place = place + 1 == places ? 0 : place + 1;
    }
    *is_known = false;
    return places;
}

// Whether an event is of a name, and would be taken up as the first of it.
DC_INLINE bool dc_is_sound(const dc_named_event &event) {
    return event.value >= -1e150 && event.value <= 1e150 && !dc_is_none(event.name);
}

// Writes for each event what `anomaly_ewma` takes, where `keys` of that one is the number of places. What is
// no event of a known name has no key. `unknown`, zero before, says how many of them have new names. Blocks
// of 256 threads, as many as there are.
DC_KERNEL
#if defined(__CUDACC__)
__launch_bounds__(DC_THREADS)
#endif
    anomaly_find(const dc_named_event *events, dc_u32 count, const dc_name *names, dc_u32 places,
                 dc_placed_event *placed, dc_u32 *unknown) {
    for (dc_u64 tile = dc_u64(DC_BLOCK) * DC_THREADS; tile < count;
         tile += dc_u64(DC_BLOCKS) * DC_THREADS) {
        DC_EACH_THREAD(t) {
            const dc_u64 at = tile + t;
            if (at < count) {
                const dc_named_event event = events[at];
                dc_u32 key = DC_NONE;
                if (dc_is_sound(event)) {
                    bool is_known;
                    const dc_u32 place = dc_find(names, places, event.name, &is_known);
                    if (is_known)
                        key = place;
                    else
                        dc_take(unknown);
                }
                placed[at] = {key, dc_u32(at), event.time, event.value};
            }
        }
    }
}

// Gives new names their places, where `unknown` says that there are some; `usable` is then how many events
// come before the first for whose name there is no room: all of them, or those alone are to be gone on with,
// and the processor's detector faults at that one. One block, of which one thread works.
DC_KERNEL anomaly_insert(const dc_named_event *events, dc_u32 count, dc_name *names, dc_u32 places,
                         dc_fill *fill, dc_placed_event *placed, const dc_u32 *unknown,
                         dc_u32 *usable) {
    DC_EACH_THREAD(t) {
        if (t == 0) {
            dc_u32 left = *unknown, at = 0;
            for (; at < count && left > 0; ++at) {
                if (placed[at].key != DC_NONE || !dc_is_sound(events[at]))
                    continue;
                const dc_name name = events[at].name;
                bool is_known;
                const dc_u32 place = dc_find(names, places, name, &is_known);
                if (!is_known) {
                    if (place == places || fill->known >= fill->keys)
                        break;
                    names[place] = name;
                    fill->known += 1;
                }
                placed[at].key = place;
                left -= 1;
            }
            *usable = left > 0 ? at : count;
        }
    }
}
