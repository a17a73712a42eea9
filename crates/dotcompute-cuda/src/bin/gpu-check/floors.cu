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
