// The floors beside which the check measures: what it costs to do less than the runtime does. Words of
// the host's are read and written as in the protocol, relaxed and of system scope.
typedef unsigned int word;

__device__ word load(const word *place) {
    word value;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(place) : "memory");
    return value;
}
__device__ void store(word *place, word value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(place), "r"(value) : "memory");
}
__device__ unsigned long long now() {
    unsigned long long ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

extern "C" __global__ void floor_null() {}

// Answers a word with one more.
extern "C" __global__ void floor_answer(const word *in, word *out) { store(out, load(in) + 1); }

// Stays, and answers each new word up to `last` with itself.
extern "C" __global__ void floor_ping(const word *in, word *out, word last) {
    for (word next = 1; next <= last; ++next) {
        while (load(in) < next) {
        }
        store(out, next);
    }
}

// How long so many reads of the host's memory take, each after the one before; in nanoseconds.
extern "C" __global__ void floor_reads(const word *in, word *out, word reads) {
    const unsigned long long start = now();
    word place = 0;
    for (word read = 0; read < reads; ++read)
        place = load(in + place);
    store(out, word(now() - start) + place);
}

__device__ word load_here(const word *place) {
    word value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(place) : "memory");
    return value;
}
__device__ void store_here(word *place, word value) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(place), "r"(value) : "memory");
}

// Pairs of warps, a block each, that answer each other in the device's memory: two lines for a pair.
extern "C" __global__ void floor_hops(word *lines, word turns) {
    word *there = lines + 64 * blockIdx.x, *back = there + 32;
    if (threadIdx.x % 32 != 0)
        return;
    for (word turn = 1; turn <= turns; ++turn) {
        if (threadIdx.x == 0) {
            store_here(there, turn);
            while (load_here(back) < turn) {
            }
        } else {
            while (load_here(there) < turn) {
            }
            store_here(back, turn);
        }
    }
}

__device__ word multiprocessor() {
    word number;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(number));
    return number;
}

// On which multiprocessor each block runs; they stay a little, so that all are there at once.
extern "C" __global__ void floor_where(word *out) {
    const unsigned long long end = now() + 20000;
    while (now() < end) {
    }
    if (threadIdx.x == 0)
        out[blockIdx.x] = multiprocessor();
}

// Whether so many blocks are there at once: each counts in the first word and waits for the others, for 50 ms
// at most; how many it has missed then is the second word.
extern "C" __global__ void floor_fill(word *arrived, word blocks) {
    if (threadIdx.x != 0)
        return;
    atomicAdd(arrived, 1);
    const unsigned long long end = now() + 50000000;
    while (load_here(arrived) < blocks && now() < end) {
    }
    atomicMax(arrived + 1, blocks - load_here(arrived));
}

// Each warp reads records of 64 bytes of the host's, eight for each load, from 4 KiB of its own; with
// `answers` it writes as many back.
extern "C" __global__ void floor_take(const uint4 *in, uint4 *out, word rounds, word answers) {
    const unsigned long long thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned long long mine = thread / 32 * 256 + thread % 32;
    uint4 sum = {0, 0, 0, 0};
    for (word round = 0; round < rounds; ++round) {
        const unsigned long long at = mine + round % 8 * 32;
        uint4 value;
        asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                     : "l"(in + at)
                     : "memory");
        sum.x ^= value.x, sum.y ^= value.y, sum.z ^= value.z, sum.w ^= value.w;
        if (answers)
            out[at] = sum;
    }
    out[mine] = sum;
}
