// SiLU, alone and of a sum with a term that a row's samples share: the twin of calm-kernels/src/silu.rs.
//
//   y = silu(x)             dx = dy silu'(x)
//   y = silu(x + c)         dx = dy silu'(x + c)       dc = sum over the row's samples of dx
#include "number.cuh"

template <class T> DEVICE void silu(const Block& block, const T* x, T* y, uint64_t count) {
    each_run_of<T>(block, count, at_runs(x, y), [&](uint64_t i, auto width) {
        float v[width.value];
        load_run(x + i, v);
        UNROLL for (float& e : v) {
            e = e * sigmoid(e);
        }
        store_run(y + i, v);
    });
}

template <class T>
DEVICE void silu_backward(const Block& block, const T* x, const T* dy, T* dx, uint64_t count) {
    each_run_of<T>(block, count, at_runs(x, dy, dx), [&](uint64_t i, auto width) {
        float v[width.value], slope[width.value];
        load_run(x + i, v);
        load_run(dy + i, slope);
        UNROLL for (uint32_t j = 0; j < width.value; j++) {
            slope[j] = slope[j] * silu_and_slope(v[j]).slope;
        }
        store_run(dx + i, slope);
    });
}

// x, y [R, N, D], shared [R, D].
template <class T>
DEVICE void add_silu(const Block& block, const T* x, const T* shared, T* y, uint32_t r, uint32_t n,
                     uint32_t d) {
    each_cell(block, uint64_t(r) * n, d, [&](uint64_t sample, uint32_t i) {
        const float u = load(x[sample * d + i]) + load(shared[sample / n * d + i]);
        store(y[sample * d + i], u * sigmoid(u));
    });
}

// dx [R, N, D] and dshared [R, D]: one thread adds up the samples of a row in order.
template <class T>
DEVICE void add_silu_backward(const Block& block, const T* x, const T* shared, const T* dy, T* dx,
                              T* dshared, uint32_t r, uint32_t n, uint32_t d) {
    each_cell(block, r, d, [&](uint64_t row, uint32_t i) {
        const float c = load(shared[row * d + i]);
        float sum = 0.0f;
        for (uint64_t sample = row * n; sample < (row + 1) * n; sample++) {
            const float slope = load(dy[sample * d + i]) * silu_and_slope(load(x[sample * d + i]) + c).slope;
            store(dx[sample * d + i], slope);
            sum += slope;
        }
        store(dshared[row * d + i], sum);
    });
}

#define SILU(T, suffix)                                                                                 \
    KERNEL(silu_##suffix, (const T* x, T* y, uint64_t count), silu(block, x, y, count))                 \
    KERNEL(silu_backward_##suffix, (const T* x, const T* dy, T* dx, uint64_t count),                    \
           silu_backward(block, x, dy, dx, count))                                                      \
    KERNEL(add_silu_##suffix,                                                                           \
           (const T* x, const T* shared, T* y, uint32_t r, uint32_t n, uint32_t d),                     \
           add_silu(block, x, shared, y, r, n, d))                                                      \
    KERNEL(add_silu_backward_##suffix,                                                                  \
           (const T* x, const T* shared, const T* dy, T* dx, T* dshared, uint32_t r, uint32_t n,        \
            uint32_t d),                                                                                \
           add_silu_backward(block, x, shared, dy, dx, dshared, r, n, d))
SILU(float, f32)
SILU(bf16, bf16)
