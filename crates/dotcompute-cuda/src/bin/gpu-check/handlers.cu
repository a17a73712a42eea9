// The handlers of the check. Their names are those that `handlers.rs` knows.
#include "dotcompute.cuh"

struct five {
    unsigned long long words[5];
};
struct span {
    unsigned long long first, count;
};
struct ball {
    long long left, hops;
};
struct number {
    long long value;
};
struct sum {
    long long total, count;
};
