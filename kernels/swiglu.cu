// The gate of a SwiGLU layer: the twin of calm-kernels/src/swiglu.rs.
//
//   y = silu(gate) up        dgate = dy up silu'(gate)        dup = dy silu(gate)
//
// Rows of H elements, `stride` apart in gate, up and their gradients: H for two tensors, 2 H (and up =
// gate + H) for the two side by side in one, the packed form.
#include "number.cuh"

// y [rows, H].
template <class T>
DEVICE void swiglu(const Block& block, const T* gate, const T* up, T* y, uint64_t rows, uint32_t h,
                   uint32_t stride) {
    const bool whole = h % RUN<T> == 0 && stride % RUN<T> == 0 && at_runs(gate, up, y);
    each_run<T>(block, rows, h, whole, [&](uint64_t row, uint32_t i, auto width) {
        float g[width.value], u[width.value], s[width.value];
        load_run(gate + row * stride + i, g);
        load_run(up + row * stride + i, u);
        sigmoids<T>(g, s);
        UNROLL for (uint32_t j = 0; j < width.value; j++) {
            g[j] = g[j] * s[j] * u[j];
        }
        store_run(y + row * h + i, g);
    });
}

// dy [rows, H].
template <class T>
DEVICE void swiglu_backward(const Block& block, const T* gate, const T* up, const T* dy, T* dgate, T* dup,
                            uint64_t rows, uint32_t h, uint32_t stride) {
    const bool whole = h % RUN<T> == 0 && stride % RUN<T> == 0 && at_runs(gate, up, dy, dgate, dup);
    each_run<T>(block, rows, h, whole, [&](uint64_t row, uint32_t i, auto width) {
        const uint64_t at = row * stride + i;
        float g[width.value], u[width.value], slope[width.value];
        load_run(gate + at, g);
        load_run(up + at, u);
        load_run(dy + row * h + i, slope);
        const auto silu = silu_and_slopes<T>(g);
        UNROLL for (uint32_t j = 0; j < width.value; j++) {
            g[j] = slope[j] * u[j] * silu.slope[j];
            u[j] = slope[j] * silu.value[j];
        }
        store_run(dgate + at, g);
        store_run(dup + at, u);
    });
}

#define SWIGLU(T, suffix)                                                                               \
    KERNEL(swiglu_##suffix,                                                                             \
           (const T* gate, const T* up, T* y, uint64_t rows, uint32_t h, uint32_t stride),              \
           swiglu(block, gate, up, y, rows, h, stride))                                                 \
    KERNEL(swiglu_backward_##suffix,                                                                    \
           (const T* gate, const T* up, const T* dy, T* dgate, T* dup, uint64_t rows, uint32_t h,       \
            uint32_t stride),                                                                           \
           swiglu_backward(block, gate, up, dy, dgate, dup, rows, h, stride))
SWIGLU(float, f32)
SWIGLU(bf16, bf16)
