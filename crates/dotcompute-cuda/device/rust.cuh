// What the C++ needs that is made of a handler in Rust: see `rust.rs`. Integers are unsigned and of the next
// larger type that C++ has, with zeroes above their width; pointers are those of bytes.
#include "dotcompute.cuh"

typedef unsigned __int128 dr_u128;
typedef __int128 dr_i128;
typedef unsigned char *dr_ptr;

// Functions of C's library, which the compiler knows.
#if defined(__CUDACC__)
#define DR_FN static __device__ __forceinline__
#define DR_C(name) ::name
#else
#define DR_FN static inline
#define DR_C(name) __builtin_##name
#endif

// One call of the handler: its context, the fault that it has failed with, and turns of its loops.
struct dr_frame {
    rk_ctx *ctx;
    int32_t fault;
    uint32_t turns;
};

// Before another turn of a loop: whether to go on. It looks every 256 turns.
DR_FN bool dr_goes_on(dr_frame &frame) {
    if ((++frame.turns & 255u) != 0)
        return true;
    frame.fault = rk_tick(frame.ctx);
    return frame.fault == 0;
}

// Fails with the code of a panic, and with what it says.
template <unsigned Bytes>
DR_FN void dr_panic(dr_frame &frame, int32_t code, const char (&text)[Bytes]) {
    frame.fault = rk_fault(frame.ctx, code, text, Bytes - 1);
}

// Memory has no types here: a copy tells the compiler so.
template <class T, unsigned Bytes, unsigned Align> DR_FN T dr_load(const dr_ptr from) {
    T value = {};
    DR_C(memcpy)(&value, __builtin_assume_aligned(from, Align), Bytes);
    return value;
}
template <unsigned Bytes, unsigned Align, class T> DR_FN void dr_store(dr_ptr to, T value) {
    DR_C(memcpy)(__builtin_assume_aligned(to, Align), &value, Bytes);
}
template <class To, class From> DR_FN To dr_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    DR_C(memcpy)(&to, &from, sizeof to);
    return to;
}
DR_FN void dr_move(dr_ptr to, const dr_ptr from, uint64_t bytes) {
    if (to <= from)
        for (uint64_t at = 0; at < bytes; ++at)
            to[at] = from[at];
    else
        for (uint64_t at = bytes; at > 0; --at)
            to[at - 1] = from[at - 1];
}
DR_FN void dr_copy(dr_ptr to, const dr_ptr from, uint64_t bytes) {
    for (uint64_t at = 0; at < bytes; ++at)
        to[at] = from[at];
}
DR_FN void dr_fill(dr_ptr to, uint8_t value, uint64_t bytes) {
    for (uint64_t at = 0; at < bytes; ++at)
        to[at] = value;
}
DR_FN uint32_t dr_compare(const dr_ptr left, const dr_ptr right, uint64_t bytes) {
    for (uint64_t at = 0; at < bytes; ++at)
        if (left[at] != right[at])
            return uint32_t(left[at]) - uint32_t(right[at]);
    return 0;
}

template <class T> struct dr_of;
template <> struct dr_of<uint8_t> { typedef int8_t is; typedef uint32_t wide; };
template <> struct dr_of<uint16_t> { typedef int16_t is; typedef uint32_t wide; };
template <> struct dr_of<uint32_t> { typedef int32_t is; typedef uint32_t wide; };
template <> struct dr_of<uint64_t> { typedef int64_t is; typedef uint64_t wide; };
template <> struct dr_of<dr_u128> { typedef dr_i128 is; typedef dr_u128 wide; };

// Integers of `Width` bits.
template <class T, unsigned Width> struct dr_int {
    typedef typename dr_of<T>::is S;
    typedef typename dr_of<T>::wide W;
    static constexpr unsigned Above = 8 * sizeof(T) - Width;
    DR_FN T cut(T value) { return T(T(value << Above) >> Above); }
    DR_FN S sign(T value) { return S(S(T(value << Above)) >> Above); }
    DR_FN T add(T a, T b) { return cut(T(W(a) + W(b))); }
    DR_FN T sub(T a, T b) { return cut(T(W(a) - W(b))); }
    DR_FN T mul(T a, T b) { return cut(T(W(a) * W(b))); }
    DR_FN T sdiv(T a, T b) { return cut(T(sign(a) / sign(b))); }
    DR_FN T srem(T a, T b) { return cut(T(sign(a) % sign(b))); }
    DR_FN T shl(T a, T b) { return cut(T(W(a) << b)); }
    DR_FN T ashr(T a, T b) { return cut(T(sign(a) >> b)); }
    DR_FN T umin(T a, T b) { return a < b ? a : b; }
    DR_FN T umax(T a, T b) { return a > b ? a : b; }
    DR_FN T smin(T a, T b) { return sign(a) < sign(b) ? a : b; }
    DR_FN T smax(T a, T b) { return sign(a) > sign(b) ? a : b; }
    DR_FN T abs(T a) { return sign(a) < 0 ? sub(0, a) : a; }
    static constexpr T top = T(T(1) << (Width - 1)), most = T(T(~T(0)) >> Above);
    DR_FN bool uadd_over(T a, T b) { return add(a, b) < a; }
    DR_FN bool usub_over(T a, T b) { return a < b; }
    DR_FN bool sadd_over(T a, T b) {
        const T sum = add(a, b);
        return ((a ^ sum) & (b ^ sum) & top) != 0;
    }
    DR_FN bool ssub_over(T a, T b) { return ((a ^ b) & (a ^ sub(a, b)) & top) != 0; }
    DR_FN bool umul_over(T a, T b) { return a != 0 && mul(a, b) / a != b; }
    DR_FN bool smul_over(T a, T b) {
        if (a == 0 || b == 0)
            return false;
        if ((sign(a) == -1 && b == top) || (sign(b) == -1 && a == top))
            return true;
        return sign(mul(a, b)) / sign(b) != sign(a);
    }
    DR_FN T uadd_sat(T a, T b) { return uadd_over(a, b) ? most : add(a, b); }
    DR_FN T usub_sat(T a, T b) { return usub_over(a, b) ? T(0) : sub(a, b); }
    DR_FN T sadd_sat(T a, T b) {
        return sadd_over(a, b) ? (a & top ? top : T(most >> 1)) : add(a, b);
    }
    DR_FN T ssub_sat(T a, T b) {
        return ssub_over(a, b) ? (a & top ? top : T(most >> 1)) : sub(a, b);
    }
    // For widths up to 64.
    DR_FN T ctlz(T a) {
#if defined(__CUDACC__)
        return T(__clzll(int64_t(a)) - (64 - Width));
#else
        return T(a == 0 ? Width : __builtin_clzll(a) - (64 - Width));
#endif
    }
    DR_FN T cttz(T a) {
#if defined(__CUDACC__)
        return T(a == 0 ? Width : __ffsll(int64_t(a)) - 1);
#else
        return T(a == 0 ? Width : __builtin_ctzll(a));
#endif
    }
    DR_FN T ctpop(T a) {
#if defined(__CUDACC__)
        return T(__popcll(a));
#else
        return T(__builtin_popcountll(a));
#endif
    }
    DR_FN T bswap(T a) {
        T swapped = 0;
        for (unsigned at = 0; at < Width; at += 8)
            swapped = T(W(swapped) << 8 | ((a >> at) & 255u));
        return swapped;
    }
    DR_FN T bitreverse(T a) {
        T turned = 0;
        for (unsigned at = 0; at < Width; ++at)
            turned = T(W(turned) << 1 | ((a >> at) & 1u));
        return turned;
    }
    DR_FN T fshl(T a, T b, T by) {
        by %= Width;
        return by == 0 ? a : cut(T(W(a) << by | W(b) >> (Width - by)));
    }
    DR_FN T fshr(T a, T b, T by) {
        by %= Width;
        return by == 0 ? b : cut(T(W(a) << (Width - by) | W(b) >> by));
    }
    // To integers as `as` of Rust does it: what is out of range becomes the nearest, and no number 0.
    template <class F> DR_FN T fptoui_sat(F a) {
        const F end = F(top) * F(2);
        return !(a > F(0)) ? T(0) : a >= end ? most : T(a);
    }
    template <class F> DR_FN T fptosi_sat(F a) {
        if (a != a)
            return 0;
        return a < -F(top) ? top : a >= F(top) ? T(most >> 1) : cut(T(S(a)));
    }
};

// Each operation rounds by itself, as in Rust: a product and a sum are not fused.
#if defined(__CUDACC__)
DR_FN float dr_fadd(float a, float b) { return __fadd_rn(a, b); }
DR_FN float dr_fsub(float a, float b) { return __fsub_rn(a, b); }
DR_FN float dr_fmul(float a, float b) { return __fmul_rn(a, b); }
DR_FN float dr_fdiv(float a, float b) { return __fdiv_rn(a, b); }
DR_FN float dr_sqrt(float a) { return __fsqrt_rn(a); }
DR_FN double dr_fadd(double a, double b) { return __dadd_rn(a, b); }
DR_FN double dr_fsub(double a, double b) { return __dsub_rn(a, b); }
DR_FN double dr_fmul(double a, double b) { return __dmul_rn(a, b); }
DR_FN double dr_fdiv(double a, double b) { return __ddiv_rn(a, b); }
DR_FN double dr_sqrt(double a) { return __dsqrt_rn(a); }
#else
template <class F> DR_FN F dr_fadd(F a, F b) { return a + b; }
template <class F> DR_FN F dr_fsub(F a, F b) { return a - b; }
template <class F> DR_FN F dr_fmul(F a, F b) { return a * b; }
template <class F> DR_FN F dr_fdiv(F a, F b) { return a / b; }
DR_FN float dr_sqrt(float a) { return __builtin_sqrtf(a); }
DR_FN double dr_sqrt(double a) { return __builtin_sqrt(a); }
#endif
