// Numbers: bf16 and f32 in memory, f32 in registers; exponential, logarithm, sine and cosine as the same
// polynomials as the CPU's (calm-kernels, simd.rs). Everything is compiled without contraction of a
// product and a sum into one rounding (nvcc --fmad=false, g++ -ffp-contract=off) and without fast-math, so
// that these functions, square roots and divisions give the CPU's bits.
#pragma once

#include "block.cuh"
#include <cmath>

DEVICE uint32_t bits_of(float x) {
#if defined(__CUDACC__)
    return __float_as_uint(x);
#else
    return __builtin_bit_cast(uint32_t, x);
#endif
}

DEVICE float of_bits(uint32_t bits) {
#if defined(__CUDACC__)
    return __uint_as_float(bits);
#else
    return __builtin_bit_cast(float, bits);
#endif
}

// The upper half of an f32.
struct bf16 {
    uint16_t bits;
};

DEVICE float load(float x) { return x; }
DEVICE float load(bf16 x) { return of_bits(uint32_t(x.bits) << 16); }

DEVICE void store(float& out, float x) { out = x; }

// To the nearest, ties to even; a NaN stays one.
DEVICE void store(bf16& out, float x) {
    const uint32_t bits = bits_of(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out.bits = uint16_t(nan ? (bits >> 16) | 0x40u : rounded);
}

// Elements of 16 bytes, which one load or store moves.
template <class T> constexpr uint32_t RUN = 16 / sizeof(T);
template <uint32_t N> struct Width {
    static constexpr uint32_t value = N;
};

// N elements from x or to it: RUN, at a multiple of 16 bytes, or one.
template <uint32_t N, class T> DEVICE void load_run(const T* x, float (&values)[N]) {
    static_assert(N == 1 || N == RUN<T>, "one element or 16 bytes");
    struct alignas(N * sizeof(T)) Run {
        T of[N];
    };
    const Run run = *reinterpret_cast<const Run*>(x);
    UNROLL for (uint32_t i = 0; i < N; i++) {
        values[i] = load(run.of[i]);
    }
}

template <uint32_t N, class T> DEVICE void store_run(T* x, const float (&values)[N]) {
    static_assert(N == 1 || N == RUN<T>, "one element or 16 bytes");
    struct alignas(N * sizeof(T)) Run {
        T of[N];
    } run;
    UNROLL for (uint32_t i = 0; i < N; i++) {
        store(run.of[i], values[i]);
    }
#if defined(__CUDACC__)
    // An assignment may be taken apart into elements again.
    if constexpr (N > 1) {
        __stcg(reinterpret_cast<uint4*>(x), *reinterpret_cast<const uint4*>(&run));
        return;
    }
#endif
    *reinterpret_cast<Run*>(x) = run;
}

// Whether all of these are at multiples of 16 bytes.
template <class... P> DEVICE bool at_runs(const P*... pointers) {
    return ((reinterpret_cast<uintptr_t>(pointers) | ...) % 16) == 0;
}

// f(row, column, width) for a matrix of T: RUN<T> columns at once where `whole`, which asks for columns,
// strides and pointers at multiples of a run, otherwise one.
template <class T, class F>
DEVICE void each_run(const Block& block, uint64_t rows, uint32_t columns, bool whole, F f) {
    if (whole) {
        each_cell(block, rows, columns / RUN<T>,
                  [&](uint64_t row, uint32_t i) { f(row, i * RUN<T>, Width<RUN<T>>{}); });
    } else {
        each_cell(block, rows, columns, [&](uint64_t row, uint32_t i) { f(row, i, Width<1>{}); });
    }
}

// f(i, width) for every i below count: as runs, and what is left one by one.
template <class T, class F> DEVICE void each_run_of(const Block& block, uint64_t count, bool whole, F f) {
    const uint64_t runs = whole ? count / RUN<T> : 0;
    each_element(block, runs, [&](uint64_t i) { f(i * RUN<T>, Width<RUN<T>>{}); });
    each_element(block, count - runs * RUN<T>, [&](uint64_t i) { f(runs * RUN<T> + i, Width<1>{}); });
}

// 1.5*2^23: adding it to a float below 2^22 rounds to the nearest integer, which then stands in the low bits.
constexpr float ROUND = 12582912.0f;
constexpr uint32_t ROUND_BITS = 0x4b400000u;
// ln 2 in two parts, the first short enough that small integers times it are exact.
constexpr float LN2_HI = 0.6933594f;
constexpr float LN2_LO = -2.1219444e-4f;

// e^x: x = n ln 2 + r, e^r = 1 + r + r^2 P(r); 2^n as two factors.
DEVICE float exp_f32(float x) {
    x = x > 90.0f ? 90.0f : x;
    x = x < -105.0f ? -105.0f : x;
    const float shifted = x * 1.44269504088896340736f + ROUND;
    const int32_t n = int32_t(bits_of(shifted) - ROUND_BITS);
    const float nf = shifted - ROUND;
    const float r = (x - nf * LN2_HI) - nf * LN2_LO;
    float p = 1.9890981e-4f;
    p = p * r + 1.393364e-3f;
    p = p * r + 8.333311e-3f;
    p = p * r + 4.1666465e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    const float y = (p * (r * r) + r) + 1.0f;
    const int32_t half = n >> 1;
    const float a = of_bits((uint32_t(half) + 127u) << 23);
    const float b = of_bits((uint32_t(n) - uint32_t(half) + 127u) << 23);
    return (y * a) * b;
}

// ln x of a positive normal number: x = 2^e m, f = m - 1, ln m = f - f^2/2 + f^3 P(f).
DEVICE float ln_f32(float x) {
    constexpr uint32_t SQRT_HALF = 0x3f3504f3u;
    const uint32_t bits = bits_of(x);
    const int32_t e = int32_t(bits - SQRT_HALF) >> 23;
    const float f = of_bits(bits - (uint32_t(e) << 23)) - 1.0f;
    const float ef = float(e);
    float p = 6.971612e-2f;
    p = p * f - 1.1479734e-1f;
    p = p * f + 1.168542e-1f;
    p = p * f - 1.2425687e-1f;
    p = p * f + 1.4249058e-1f;
    p = p * f - 1.6667802e-1f;
    p = p * f + 2.0000716e-1f;
    p = p * f - 2.4999997e-1f;
    p = p * f + 3.333333e-1f;
    const float f2 = f * f;
    const float tail = (p * f) * f2 + ef * LN2_LO;
    return ((tail - 0.5f * f2) + f) + ef * LN2_HI;
}

struct SinCos {
    float sin;
    float cos;
};

// sin and cos of 2 pi u, u in [0, 1]: u is a quarter turn q plus r; q then swaps and negates.
DEVICE SinCos sin_cos_turns_f32(float u) {
    const float shifted = u * 4.0f + ROUND;
    const uint32_t q = bits_of(shifted) - ROUND_BITS;
    const float r = u - (shifted - ROUND) * 0.25f;
    const float r2 = r * r;
    float s = 4.147283e1f;
    s = s * r2 - 7.669787e1f;
    s = s * r2 + 8.16052e1f;
    s = s * r2 - 4.13417e1f;
    s = s * r2 + 6.28318530717958647693f;
    s = s * r;
    float c = 5.9424106e1f;
    c = c * r2 - 8.544882e1f;
    c = c * r2 + 6.493937e1f;
    c = c * r2 - 1.9739209e1f;
    c = c * r2 + 1.0f;
    const bool swap = (q & 1u) == 1u;
    const float sin = swap ? c : s;
    const float cos = swap ? s : c;
    return {of_bits(bits_of(sin) ^ ((q & 2u) << 30)), of_bits(bits_of(cos) ^ (((q + 1u) & 2u) << 30))};
}

// 1 / (1 + e^-x)
DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp_f32(-x)); }

// a b + c rounded once, for long products. The host goes through double precision (many times faster than
// its fmaf without the instruction), which rounds a rare sum differently.
DEVICE float fused(float a, float b, float c) {
#if defined(__CUDACC__)
    return fmaf(a, b, c);
#else
    return float(double(a) * double(b) + double(c));
#endif
}

struct SiluSlope {
    float value;
    float slope;
};

// x s and its derivative s (1 + x (1 - s)), s the sigmoid of x.
DEVICE SiluSlope silu_and_slope(float x) {
    const float s = sigmoid(x);
    return {x * s, s * (1.0f + x * (1.0f - s))};
}
