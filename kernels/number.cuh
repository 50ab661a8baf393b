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
#if defined(__CUDACC__)
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
    const uint32_t bits = bits_of(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out.bits = uint16_t(nan ? (bits >> 16) | 0x40u : rounded);
#endif
}

// Elements of 16 bytes, which one load or store moves.
template <class T> constexpr uint32_t RUN = 16 / sizeof(T);
template <uint32_t N> struct Width {
    static constexpr uint32_t value = N;
};

// N neighbouring elements as they lie in memory, in registers; N == 1 or a multiple of 8 bytes.
template <class T, uint32_t N> struct Run {
    static constexpr uint32_t WORDS = N * sizeof(T) / 4;
    uint32_t words[WORDS];

    DEVICE float operator[](uint32_t i) const {
        if constexpr (sizeof(T) == 2) {
            return of_bits(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
        } else {
            return of_bits(words[i]);
        }
    }
};
template <class T> struct Run<T, 1> {
    T element;
    DEVICE float operator[](uint32_t) const { return load(element); }
};

// Whether a run of N begins at a multiple of its loads, which the host checks.
template <uint32_t N, class T> DEVICE bool run_at(const T* x) {
    constexpr uint32_t BYTES = N * sizeof(T) < 16 ? N * sizeof(T) : 16;
    return N == 1 || reinterpret_cast<uintptr_t>(x) % BYTES == 0;
}

// N elements from x or to it: one, or 8 bytes or a multiple of 16 at a multiple of that (at most 16).
template <uint32_t N, class T> DEVICE Run<T, N> read_run(const T* x) {
    if constexpr (N == 1) {
        return {*x};
    } else {
        static_assert(N * sizeof(T) == 8 || N * sizeof(T) % 16 == 0, "a run is loads of 8 or 16 bytes");
        Run<T, N> run;
#if defined(__CUDACC__)
        if constexpr (run.WORDS == 2) {
            const uint2 two = *reinterpret_cast<const uint2*>(x);
            run.words[0] = two.x, run.words[1] = two.y;
        } else {
            UNROLL for (uint32_t i = 0; i < run.WORDS / 4; i++) {
                const uint4 four = reinterpret_cast<const uint4*>(x)[i];
                run.words[4 * i] = four.x, run.words[4 * i + 1] = four.y;
                run.words[4 * i + 2] = four.z, run.words[4 * i + 3] = four.w;
            }
        }
#else
        assert(run_at<N>(x));
        std::memcpy(run.words, x, sizeof(run.words));
#endif
        return run;
    }
}

template <uint32_t N, class T> DEVICE void load_run(const T* x, float (&values)[N]) {
    const Run<T, N> run = read_run<N>(x);
    UNROLL for (uint32_t i = 0; i < N; i++) {
        values[i] = run[i];
    }
}

// Two floats, each rounded to the nearest bf16, as neighbours: `low` first in memory.
DEVICE uint32_t pack(float low, float high) {
#if defined(__CUDACC__)
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    bf16 pair[2];
    store(pair[0], low), store(pair[1], high);
    return uint32_t(pair[0].bits) | uint32_t(pair[1].bits) << 16;
#endif
}

template <uint32_t N, class T> DEVICE void store_run(T* x, const float (&values)[N]) {
    if constexpr (N == 1) {
        store(*x, values[0]);
    } else {
        static_assert(N * sizeof(T) == 8 || N * sizeof(T) % 16 == 0, "a run is stores of 8 or 16 bytes");
        Run<T, N> run;
        UNROLL for (uint32_t i = 0; i < run.WORDS; i++) {
            if constexpr (sizeof(T) == 2) {
                run.words[i] = pack(values[2 * i], values[2 * i + 1]);
            } else {
                run.words[i] = bits_of(values[i]);
            }
        }
#if defined(__CUDACC__)
        // Past the first-level cache: what is written is not read again soon.
        if constexpr (run.WORDS == 2) {
            __stcg(reinterpret_cast<uint2*>(x), make_uint2(run.words[0], run.words[1]));
        } else {
            UNROLL for (uint32_t i = 0; i < run.WORDS; i += 4) {
                __stcg(reinterpret_cast<uint4*>(x) + i / 4, make_uint4(run.words[i], run.words[i + 1],
                                                                       run.words[i + 2], run.words[i + 3]));
            }
        }
#else
        assert(run_at<N>(x));
        std::memcpy(x, run.words, sizeof(run.words));
#endif
    }
}

// Whether all of these are at multiples of 16 bytes.
template <class... P> DEVICE bool at_runs(const P*... pointers) {
    return ((reinterpret_cast<uintptr_t>(pointers) | ...) % 16) == 0;
}

// f(row, column, width) for a matrix of T (the narrowest type of its elements): RUN<T> columns at once where
// `whole`, which asks for columns, strides and pointers at multiples of a run, otherwise one.
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

// s = 1 / (1 + e^-x) of N numbers that are of type T in memory. On the device, where T is bf16, to about 20 bits.
template <class T, uint32_t N> DEVICE void sigmoids(const float (&x)[N], float (&s)[N]) {
#if defined(__CUDACC__)
    if constexpr (sizeof(T) == 2) {
        UNROLL for (uint32_t j = 0; j < N; j++) {
            float e;
            asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x[j] * -1.44269504088896340736f));
            asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s[j]) : "f"(1.0f + e));
        }
        return;
    }
#endif
    UNROLL for (uint32_t j = 0; j < N; j++) {
        s[j] = 1.0f + exp_f32(-x[j]);
    }
#if defined(__CUDACC__)
    // For each division the compiler asks whether the result is a normal number, and if it is, takes an
    // approximation and corrects it once. This is the same, with one question for all N.
    float top = s[0];
    UNROLL for (uint32_t j = 1; j < N; j++) {
        top = fmaxf(top, s[j]);
    }
    if (top < 0x1p126f) {
        UNROLL for (uint32_t j = 0; j < N; j++) {
            float near;
            asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(near) : "f"(s[j]));
            s[j] = fmaf(near, -fmaf(s[j], near, -1.0f), near);
        }
        return;
    }
#endif
    UNROLL for (uint32_t j = 0; j < N; j++) {
        s[j] = 1.0f / s[j];
    }
}

// a b + c rounded once, for long products. The host goes through double precision (many times faster than
// its fmaf without the instruction), which rounds a rare sum differently.
DEVICE float fused(float a, float b, float c) {
#if defined(__CUDACC__)
    return fmaf(a, b, c);
#else
    return float(double(a) * double(b) + double(c));
#endif
}

template <uint32_t N> struct SiluSlopes {
    float value[N];
    float slope[N];
};

// x s and its derivative s (1 + x (1 - s)), s the sigmoid of x.
template <class T, uint32_t N> DEVICE SiluSlopes<N> silu_and_slopes(const float (&x)[N]) {
    float s[N];
    SiluSlopes<N> silu;
    sigmoids<T>(x, s);
    UNROLL for (uint32_t j = 0; j < N; j++) {
        silu.value[j] = x[j] * s[j];
        silu.slope[j] = s[j] * (1.0f + x[j] * (1.0f - s[j]));
    }
    return silu;
}
