// SiLU, alone and of a sum with a term that a row's samples share: the twin of calm-kernels/src/silu.rs.
//
//   y = silu(x)             dx = dy silu'(x)
//   y = silu(x + c)         dx = dy silu'(x + c)       dc = sum over the row's samples of dx
#include "column_sums.cuh"

template <class T> DEVICE void silu(const Block& block, const T* x, T* y, uint64_t count) {
    each_run_of<T>(block, count, at_runs(x, y), [&](uint64_t i, auto width) {
        float v[width.value], s[width.value];
        load_run(x + i, v);
        sigmoids<T>(v, s);
        UNROLL for (uint32_t j = 0; j < width.value; j++) {
            v[j] = v[j] * s[j];
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
        const auto silu = silu_and_slopes<T>(v);
        UNROLL for (uint32_t j = 0; j < width.value; j++) {
            slope[j] = slope[j] * silu.slope[j];
        }
        store_run(dx + i, slope);
    });
}

// x, y [R, N, D], shared [R, D]; fewer than 2^32 samples.
template <class T>
DEVICE void add_silu(const Block& block, const T* x, const T* shared, T* y, uint32_t r, uint32_t n,
                     uint32_t d) {
    const bool whole = d % RUN<T> == 0 && at_runs(x, shared, y);
    each_run<T>(block, uint64_t(r) * n, d, whole, [&](uint64_t sample, uint32_t i, auto width) {
        float v[width.value], c[width.value], s[width.value];
        load_run(x + sample * d + i, v);
        load_run(shared + uint64_t(uint32_t(sample) / n) * d + i, c);
        UNROLL for (uint32_t j = 0; j < width.value; j++) {
            v[j] = v[j] + c[j];
        }
        sigmoids<T>(v, s);
        UNROLL for (uint32_t j = 0; j < width.value; j++) {
            v[j] = v[j] * s[j];
        }
        store_run(y + sample * d + i, v);
    });
}

// dx [R, N, D] and dshared [R, D]: one thread adds up the samples of a row in order.
template <class T>
DEVICE void add_silu_backward(const Block& block, const T* x, const T* shared, const T* dy, T* dx,
                              T* dshared, uint32_t r, uint32_t n, uint32_t d) {
    const bool whole = d % RUN<T> == 0 && at_runs(x, shared, dy, dx, dshared);
    each_run<T>(block, r, d, whole, [&](uint64_t row, uint32_t i, auto width) {
        constexpr uint32_t N = decltype(width)::value;
        float c[N], sum[N] = {};
        load_run(shared + row * d + i, c);
        Run<T, N> xs[ROWS_AHEAD], dys[ROWS_AHEAD];
        each_row_of<ROWS_AHEAD>(
            Part{row, row * n, (row + 1) * n},
            [&](uint64_t sample, uint32_t a) {
                xs[a] = read_run<N>(x + sample * d + i);
                dys[a] = read_run<N>(dy + sample * d + i);
            },
            [&](uint64_t sample, uint32_t a) {
                float u[N], slope[N];
                UNROLL for (uint32_t j = 0; j < N; j++) {
                    u[j] = xs[a][j] + c[j];
                }
                const auto silu = silu_and_slopes<T>(u);
                UNROLL for (uint32_t j = 0; j < N; j++) {
                    slope[j] = dys[a][j] * silu.slope[j];
                    sum[j] += slope[j];
                }
                store_run(dx + sample * d + i, slope);
            });
        store_run(dshared + row * d + i, sum);
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
