// candle's own CUDA kernels, written again for the host from what they do: names, argument lists, element
// types and the order of dimensions are those of candle-kernels 0.11, the code is not. Here: element types
// and strided arrays.
//
// The number of blocks matters only where a kernel derives a size from it; otherwise all elements are done.
#pragma once

#include "registry.h"

#include "../number.cuh"

#include <array>
#include <cmath>
#include <limits>

namespace candle {

using host_device::add_kernel;
using host_device::in_parallel;

struct f16 {
    uint16_t bits;
};

inline float half_to_float(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1fu;
    const uint32_t fraction = bits & 0x3ffu;
    if (exponent == 31) {
        return of_bits(sign | 0x7f800000u | (fraction << 13));
    }
    if (exponent == 0) {
        const float tiny = float(fraction) * 0x1p-24f;
        return sign == 0 ? tiny : -tiny;
    }
    return of_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
}

inline uint16_t float_to_half(float x) {
    const uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
    const float size = std::fabs(x);
    if (std::isnan(x)) {
        return uint16_t(sign | 0x7e00u);
    }
    if (size >= 65520.0f) {
        return uint16_t(sign | 0x7c00u);
    }
    if (size < 0x1p-14f) {
        return uint16_t(sign | uint32_t(std::nearbyint(size * 0x1p24f)));
    }
    const uint32_t bits = bits_of(size);
    return uint16_t(sign | ((bits + 0xfffu + ((bits >> 13) & 1u) - (112u << 23)) >> 13));
}

// The type that arithmetic is done in.
template <class T> struct WideOf { using type = T; };
template <> struct WideOf<bf16> { using type = float; };
template <> struct WideOf<f16> { using type = float; };
template <class T> using Wide = typename WideOf<T>::type;

template <class T> Wide<T> wide(T x) {
    if constexpr (std::is_same_v<T, bf16>) {
        return load(x);
    } else if constexpr (std::is_same_v<T, f16>) {
        return half_to_float(x.bits);
    } else {
        return x;
    }
}

template <class T> T narrow(Wide<T> x) {
    if constexpr (std::is_same_v<T, bf16>) {
        bf16 out;
        store(out, x);
        return out;
    } else if constexpr (std::is_same_v<T, f16>) {
        return f16{float_to_half(x)};
    } else {
        return x;
    }
}

// Rounds as storing it would.
template <class T> Wide<T> rounded(Wide<T> x) { return wide(narrow<T>(x)); }

template <class T> constexpr bool IS_FLOAT = !std::is_integral_v<T>;

template <class T> const char* suffix() {
    if constexpr (std::is_same_v<T, float>) return "f32";
    if constexpr (std::is_same_v<T, double>) return "f64";
    if constexpr (std::is_same_v<T, bf16>) return "bf16";
    if constexpr (std::is_same_v<T, f16>) return "f16";
    if constexpr (std::is_same_v<T, uint8_t>) return "u8";
    if constexpr (std::is_same_v<T, uint32_t>) return "u32";
    if constexpr (std::is_same_v<T, int64_t>) return "i64";
}

template <class T> struct Type { using type = T; };
template <class... T, class F> void each_type(F f) { (f(Type<T>{}), ...); }

template <class F> void each_element_type(F f) {
    each_type<float, double, bf16, f16, uint8_t, uint32_t, int64_t>(f);
}
template <class F> void each_float_type(F f) { each_type<float, double, bf16, f16>(f); }
template <class F> void each_index_type(F f) { each_type<uint8_t, uint32_t, int64_t>(f); }

// A kernel named ROOT_TYPE of a module of candle-kernels.
template <class... A> void add(std::string name, const char* module, void (*body)(Launch, A...)) {
    add_kernel(std::move(name), module, 1024, false, body);
}

template <class T> std::string name_of(const char* root) { return std::string(root) + "_" + suffix<T>(); }

// Walks N strided arrays of one shape in row-major order. `info` holds the dimensions, then the strides of
// each array; null stands for contiguous ones.
template <size_t N> class Walker {
  public:
    Walker(size_t dims, const size_t* info, uint64_t first) : count(dims), shape(info) {
        offsets.fill(first);
        if (info == nullptr) {
            return;
        }
        offsets.fill(0);
        place.resize(dims);
        for (size_t d = dims; d-- > 0;) {
            place[d] = first % shape[d];
            first /= shape[d];
            for (size_t n = 0; n < N; n++) {
                offsets[n] += place[d] * stride(n, d);
            }
        }
    }

    uint64_t at(size_t n) const { return offsets[n]; }

    void step() {
        if (shape == nullptr) {
            for (uint64_t& offset : offsets) {
                offset++;
            }
            return;
        }
        for (size_t d = count; d-- > 0;) {
            place[d]++;
            for (size_t n = 0; n < N; n++) {
                offsets[n] += stride(n, d);
            }
            if (place[d] < shape[d]) {
                return;
            }
            place[d] = 0;
            for (size_t n = 0; n < N; n++) {
                offsets[n] -= shape[d] * stride(n, d);
            }
        }
    }

  private:
    size_t stride(size_t n, size_t d) const { return shape[(n + 1) * count + d]; }

    size_t count;
    const size_t* shape;
    std::vector<size_t> place;
    std::array<uint64_t, N> offsets;
};

// Elements that a thread takes at least.
constexpr uint64_t GRAIN = 16384;

// f(i, walker) for the elements 0..count of N strided arrays.
template <size_t N, class F> void each_strided(uint64_t count, size_t dims, const size_t* info, F f) {
    host_device::in_parallel_impl(count, GRAIN, [&](uint64_t first, uint64_t last) {
        Walker<N> walker(dims, info, first);
        for (uint64_t i = first; i < last; i++) {
            f(i, walker);
            walker.step();
        }
    });
}

}  // namespace candle
