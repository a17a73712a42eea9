// PageRank of a graph in the device's memory: one launch for all iterations, without a word of the host
// between them. All blocks have to be resident at once: no more are to be launched than fit.
//
// The graph is its incoming links, row after row: `starts` has one more than there are nodes. A row that
// is short is one thread's, a long one a warp's; the rows are to lie in order of falling length, so that
// threads beside each other have as much to do, and `long_rows` says how many are long.
//
// The mass of nodes without links out is given to all. The sums that decide (how far the ranks moved, and
// what dangles) are added up in one order, so that the result does not depend on chance.
#include "block.cuh"

#define DC_THREADS 256u
#define DC_WARP 32u

struct dc_graph {
    const dc_u32 *starts, *sources;
    // Of each node: one over the number of links out; 0 where there is none.
    const float *inverse;
    dc_u32 nodes, long_rows;
};
struct dc_query {
    double damping, tolerance;
    dc_u32 max_iterations;
};
struct dc_answer {
    double change;
    dc_u32 iterations;
};

// The sum of `values` over the block, the same in every thread: by halves, in one order.
DC_INLINE void dc_sum(double (*values)[DC_THREADS]) {
    for (dc_u32 half = DC_THREADS / 2; half > 0; half /= 2) {
        DC_BLOCK_BARRIER();
        DC_EACH_THREAD(t) {
            if (t < half) {
                values[0][t] += values[0][t + half];
                values[1][t] += values[1][t + half];
            }
        }
    }
    DC_BLOCK_BARRIER();
}

#if defined(__CUDACC__)
// The sum over a warp, in one order.
DC_INLINE float dc_warp_sum(float value) {
    for (dc_u32 half = DC_WARP / 2; half > 0; half /= 2)
        value += __shfl_xor_sync(~0u, value, half);
    return value;
}
#endif

// Gives a node its new rank; what it moved, and what of it dangles, is added to the thread's sums.
DC_INLINE void dc_settle(const dc_graph &graph, float *ranks, float *next, dc_u32 node, float rank,
                         double &moved, double &dangling) {
    const float inverse = graph.inverse[node];
    const double difference = double(rank) - double(ranks[node]);
    moved += difference < 0.0 ? -difference : difference;
    if (inverse == 0.0f)
        dangling += double(rank);
    ranks[node] = rank;
    next[node] = rank * inverse;
}

// Ranks the nodes. `ranks` and both tables of contributions have a number a node, `partials` two numbers
// a block for each of two turns, `barrier` is zero. Blocks of 256 threads.
DC_KERNEL
#if defined(__CUDACC__)
__launch_bounds__(DC_THREADS)
#endif
    pagerank(dc_graph graph, dc_query query, float *ranks, float *contributed, float *next,
             double *partials, dc_u32 *barrier, dc_answer *answer) {
    DC_SHARED double sums[2][DC_THREADS];
    const dc_u32 stride = DC_BLOCKS * DC_THREADS;
    const float even = float(1.0 / double(graph.nodes));
    // What the first turn finds. Of ranks that are all equal nothing has moved yet.
    DC_EACH_THREAD(t) {
        double dangling = 0.0;
        for (dc_u32 node = DC_BLOCK * DC_THREADS + t; node < graph.nodes; node += stride) {
            ranks[node] = even;
            contributed[node] = even * graph.inverse[node];
            if (graph.inverse[node] == 0.0f)
                dangling += double(even);
        }
        sums[0][t] = 0.0;
        sums[1][t] = dangling;
    }
    double change = 1e300;
    dc_u32 iterations = 0;
    for (;;) {
        // Every block adds all blocks' sums up, each in the same order.
        dc_sum(sums);
        double *own = partials + 2 * DC_BLOCKS * (iterations % 2);
        DC_EACH_THREAD(t) {
            if (t < 2)
                own[2 * DC_BLOCK + t] = sums[t][0];
        }
        DC_GRID_BARRIER(barrier);
        DC_EACH_THREAD(t) {
            double moved = 0.0, dangling = 0.0;
            for (dc_u32 block = t; block < DC_BLOCKS; block += DC_THREADS) {
                moved += own[2 * block];
                dangling += own[2 * block + 1];
            }
            sums[0][t] = moved;
            sums[1][t] = dangling;
        }
        dc_sum(sums);
        if (iterations > 0)
            change = sums[0][0];
        const double dangling = sums[1][0];
        if (iterations >= query.max_iterations || change < query.tolerance)
            break;
        DC_BLOCK_BARRIER();
        const float given = float(((1.0 - query.damping) + query.damping * dangling) /
                                  double(graph.nodes));
        const float damping = float(query.damping);
        DC_EACH_THREAD(t) {
            double moved = 0.0, ends = 0.0;
#if defined(__CUDACC__)
            const dc_u32 lane = t % DC_WARP, warps = stride / DC_WARP;
            for (dc_u32 row = (DC_BLOCK * DC_THREADS + t) / DC_WARP; row < graph.long_rows;
                 row += warps) {
                float sum = 0.0f;
                for (dc_u32 link = graph.starts[row] + lane; link < graph.starts[row + 1];
                     link += DC_WARP)
                    sum += contributed[graph.sources[link]];
                sum = dc_warp_sum(sum);
                if (lane == 0)
                    dc_settle(graph, ranks, next, row, given + damping * sum, moved, ends);
            }
            const dc_u32 first = graph.long_rows;
#else
            const dc_u32 first = 0;
#endif
            for (dc_u32 row = first + DC_BLOCK * DC_THREADS + t; row < graph.nodes; row += stride) {
                float sum = 0.0f;
                for (dc_u32 link = graph.starts[row]; link < graph.starts[row + 1]; ++link)
                    sum += contributed[graph.sources[link]];
                dc_settle(graph, ranks, next, row, given + damping * sum, moved, ends);
            }
            sums[0][t] = moved;
            sums[1][t] = ends;
        }
        float *const swap = contributed;
        contributed = next;
        next = swap;
        ++iterations;
    }
    DC_EACH_THREAD(t) {
        if (DC_BLOCK == 0 && t == 0)
            *answer = {change, iterations};
    }
}
