// Readings that are far from the weighted mean of their key: the detector `ewma` of dotcompute's
// workloads over a batch in the device's memory, whose state stays there. The same bits as on the
// processor: every operation is one of IEEE 754's basic ones, none is fused, and each key's events are
// taken in their order.
//
// A block has a range of the keys. It goes through all events, takes those of its keys into a queue, in
// their order, and each of its threads goes through the queue for the keys that are its own. So nothing
// is sorted, and no two threads touch one key. All blocks read all events, but these come from the
// cache: what a batch costs is about its keys' bytes times the number of blocks.
#include "block.cuh"

#define DC_THREADS 256u
// Events that a thread looks at before the block puts what it found into the queue.
#define DC_RUN 8u
#define DC_QUEUE 4096u
#define DC_TILE (DC_THREADS * DC_RUN)
#define DC_NONE 0xffffffffu

struct dc_event {
    dc_u32 key, sequence;
    double time, value;
};
struct dc_alarm {
    dc_u32 key, sequence;
    double time, value, expected, deviation, z;
};
// The beginning of the state; a row of four numbers for each key follows.
struct dc_head {
    double alpha, threshold, warm_up, slot;
    // Taken up, late, malformed, unusual.
    dc_u64 counts[4];
};
// Readings taken up, time of the last, mean, variance.
struct dc_row {
    double count, time, mean, variance;
};

#if defined(__CUDACC__)
DC_INLINE double dc_times(double a, double b) { return __dmul_rn(a, b); }
DC_INLINE double dc_plus(double a, double b) { return __dadd_rn(a, b); }
DC_INLINE double dc_minus(double a, double b) { return __dsub_rn(a, b); }
DC_INLINE double dc_over(double a, double b) { return __ddiv_rn(a, b); }
DC_INLINE double dc_root(double a) { return __dsqrt_rn(a); }
#else
// Compiled without contraction.
DC_INLINE double dc_times(double a, double b) { return a * b; }
DC_INLINE double dc_plus(double a, double b) { return a + b; }
DC_INLINE double dc_minus(double a, double b) { return a - b; }
DC_INLINE double dc_over(double a, double b) { return a / b; }
DC_INLINE double dc_root(double a) { return std::sqrt(a); }
#endif

enum dc_verdict { DC_USUAL, DC_UNUSUAL, DC_LATE, DC_MALFORMED };

DC_INLINE dc_verdict dc_weigh(const dc_head &head, dc_row *place, const dc_event &event,
                              dc_alarm *alarm) {
    if (!(event.value >= -1e150 && event.value <= 1e150))
        return DC_MALFORMED;
    dc_row row = *place;
    if (event.time < row.time && row.count > 0.0)
        return DC_LATE;
    const double difference = dc_minus(event.value, row.mean), spread = row.variance;
    const double squared = dc_times(difference, difference);
    row.count = dc_plus(row.count, 1.0);
    const bool unusual =
        squared > dc_times(dc_times(head.threshold, head.threshold), spread) &&
        row.count > head.warm_up;
    const double even = dc_over(1.0, row.count), weight = head.alpha > even ? head.alpha : even;
    if (unusual) {
        const double deviation = dc_root(spread);
        double z = difference > 0.0 ? 1e6 : -1e6;
        if (deviation > 0.0) {
            z = dc_over(difference, deviation);
            z = z < -1e6 ? -1e6 : z > 1e6 ? 1e6 : z;
        }
        *alarm = {event.key, event.sequence, event.time, event.value, row.mean, deviation, z};
    }
    row.time = event.time;
    row.mean = dc_plus(row.mean, dc_times(weight, difference));
    row.variance = dc_times(dc_minus(1.0, weight), dc_plus(spread, dc_times(weight, squared)));
    *place = row;
    return unusual ? DC_UNUSUAL : DC_USUAL;
}

// What a block found and has not taken up: an event, and which of the block's keys it is of.
struct dc_found {
    dc_u32 event, key;
};

// Takes up `count` events. `state` is as on the processor. Alarms go to `alarms`, of which there is room
// for one an event, in no order, each with its event's number in `order`; `made`, zero before, says how
// many there are. Blocks of 256 threads; a good number of blocks is one a multiprocessor.
DC_KERNEL
#if defined(__CUDACC__)
__launch_bounds__(DC_THREADS)
#endif
    anomaly_ewma(const dc_event *events, dc_u32 count, dc_head *state, dc_u32 keys,
                 dc_alarm *alarms, dc_u32 *order, dc_u32 *made) {
    DC_SHARED dc_found queue[DC_QUEUE];
    DC_SHARED dc_u32 before[2][DC_THREADS];
    DC_SHARED dc_u64 totals[4];
    const dc_head head = *state;
    dc_row *rows = reinterpret_cast<dc_row *>(state + 1);
    // Whose keys begin at `first`; the last block also has what is no key.
    const dc_u32 each = keys / DC_BLOCKS + (keys % DC_BLOCKS != 0);
    const dc_u64 first = dc_u64(each) * DC_BLOCK, end = first + each;
    const bool is_last = DC_BLOCK == DC_BLOCKS - 1;
    DC_EACH_THREAD(t) {
        if (t < 4)
            totals[t] = 0;
    }
    dc_u32 queued = 0;
    for (dc_u64 tile = 0;; tile += DC_TILE) {
        const bool is_over = tile >= count;
        if (is_over || queued > DC_QUEUE - DC_TILE) {
            DC_BLOCK_BARRIER();
            DC_EACH_THREAD(t) {
                dc_u64 counts[4] = {0, 0, 0, 0};
                for (dc_u32 at = 0; at < queued; ++at) {
                    const dc_found found = queue[at];
                    if (found.key % DC_THREADS != t)
                        continue;
                    const dc_event event = events[found.event];
                    dc_alarm alarm;
                    const dc_verdict verdict =
                        event.key < keys ? dc_weigh(head, rows + event.key, event, &alarm)
                                         : DC_MALFORMED;
                    counts[0] += verdict == DC_USUAL || verdict == DC_UNUSUAL;
                    counts[1] += verdict == DC_LATE;
                    counts[2] += verdict == DC_MALFORMED;
                    if (verdict == DC_UNUSUAL) {
                        counts[3] += 1;
                        const dc_u32 place = dc_take(made);
                        alarms[place] = alarm;
                        order[place] = found.event;
                    }
                }
                for (dc_u32 kind = 0; kind < 4; ++kind)
                    if (counts[kind] != 0)
                        dc_add(&totals[kind], counts[kind]);
            }
            queued = 0;
            if (is_over)
                break;
            DC_BLOCK_BARRIER();
        }
        // How many of its run each thread has found; then how many those before it have.
        DC_EACH_THREAD(t) {
            dc_u32 own = 0;
            for (dc_u32 step = 0; step < DC_RUN; ++step) {
                const dc_u64 at = tile + t * DC_RUN + step;
                const dc_u64 key = at < count ? events[at].key : ~0ull;
                own += at < count && ((key >= first && key < end && key < keys) ||
                                      (is_last && key >= keys));
            }
            before[0][t] = own;
        }
        DC_BLOCK_BARRIER();
        dc_u32 now = 0;
        for (dc_u32 step = 1; step < DC_THREADS; step *= 2, now ^= 1) {
            DC_EACH_THREAD(t) {
                before[now ^ 1][t] = before[now][t] + (t >= step ? before[now][t - step] : 0);
            }
            DC_BLOCK_BARRIER();
        }
        DC_EACH_THREAD(t) {
            dc_u32 place = queued + (t > 0 ? before[now][t - 1] : 0);
            for (dc_u32 step = 0; step < DC_RUN; ++step) {
                const dc_u64 at = tile + t * DC_RUN + step;
                if (at >= count)
                    break;
                const dc_u64 key = events[at].key;
                if (key >= first && key < end && key < keys)
                    queue[place++] = {dc_u32(at), dc_u32(key - first)};
                else if (is_last && key >= keys)
                    queue[place++] = {dc_u32(at), dc_u32(key)};
            }
        }
        queued += before[now][DC_THREADS - 1];
        DC_BLOCK_BARRIER();
    }
    DC_BLOCK_BARRIER();
    DC_EACH_THREAD(t) {
        if (t < 4 && totals[t] != 0)
            dc_add(&state->counts[t], totals[t]);
    }
}
