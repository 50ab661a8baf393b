// What lies between the products of a residual block of the energy head: the twin of
// calm-kernels/src/energy_block.rs (its formula there) together with layer_norm.cu and column_sums.cu.
//
//   u1 = silu(p1 + (c + b1))          p1 [R, N, D], c [R, D]
//   u2 = silu(p2 + b2)                p2 [R N, D]
//   a  = silu(g + bg) (u + bu)        p3 = [g | u] [R N, 2 D], b3 = [bg | bu]
//   y  = x + b4                       to which the last product is added
//
// The products know no biases: these are added here, where the products are read anyway. The backward kernels
// write again what the next product reads (u1, u2, a; null: not wanted), and parts of the biases' sums over
// rows, which sum_parts adds up.
#include "column_sums.cuh"

// Rows of the packed gate's backward pass, which has three inputs, that are under way at a time.
constexpr uint32_t GATE_ROWS_AHEAD = 2;

// x, y [R, N, D], shared [R, D] or null, bias [D]; fewer than 2^32 samples.
template <class T>
DEVICE void bias_silu(const Block& block, const T* x, const T* shared, const T* bias, T* y, uint32_t r,
                      uint32_t n, uint32_t d) {
    const bool whole = d % RUN<T> == 0 && at_runs(x, shared, bias, y);
    each_run<T>(block, uint64_t(r) * n, d, whole, [&](uint64_t sample, uint32_t i, auto width) {
        constexpr uint32_t N = decltype(width)::value;
        float v[N], b[N], s[N];
        load_run(x + sample * d + i, v);
        load_run(bias + i, b);
        if (shared != nullptr) {
            float c[N];
            load_run(shared + uint64_t(uint32_t(sample) / n) * d + i, c);
            UNROLL for (uint32_t j = 0; j < N; j++) {
                b[j] = c[j] + b[j];
            }
        }
        UNROLL for (uint32_t j = 0; j < N; j++) {
            v[j] = v[j] + b[j];
        }
        sigmoids<T>(v, s);
        UNROLL for (uint32_t j = 0; j < N; j++) {
            v[j] = v[j] * s[j];
        }
        store_run(y + sample * d + i, v);
    });
}

// Of the elements from `at` on: dx = dy silu'(x + c), y = silu(x + c) if it is not null; dx is added to sum.
template <class T, uint32_t N>
DEVICE void silu_backward_run(const Run<T, N>& x, const Run<T, N>& dy, const float (&c)[N], T* dx, T* y,
                              uint64_t at, float (&sum)[N]) {
    float u[N], slope[N];
    UNROLL for (uint32_t j = 0; j < N; j++) {
        u[j] = x[j] + c[j];
    }
    const auto silu = silu_and_slopes<T>(u);
    UNROLL for (uint32_t j = 0; j < N; j++) {
        slope[j] = dy[j] * silu.slope[j];
        sum[j] += slope[j];
    }
    store_run(dx + at, slope);
    if (y != nullptr) {
        store_run(y + at, silu.value);
    }
}

// dx and y [R, N, D], y or null, dshared [R, D]: one thread adds up the samples of a row in order.
template <class T>
DEVICE void shared_bias_silu_backward(const Block& block, const T* x, const T* shared, const T* bias,
                                      const T* dy, T* dx, T* dshared, T* y, uint32_t r, uint32_t n,
                                      uint32_t d) {
    const bool whole = d % RUN<T> == 0 && at_runs(x, shared, bias, dy, dx, dshared, y);
    each_run<T>(block, r, d, whole, [&](uint64_t row, uint32_t i, auto width) {
        constexpr uint32_t N = decltype(width)::value;
        float c[N], b[N], sum[N] = {};
        load_run(shared + row * d + i, c);
        load_run(bias + i, b);
        UNROLL for (uint32_t j = 0; j < N; j++) {
            c[j] += b[j];
        }
        Run<T, N> xs[ROWS_AHEAD], dys[ROWS_AHEAD];
        each_row_of<ROWS_AHEAD>(
            Part{row, row * n, (row + 1) * n},
            [&](uint64_t sample, uint32_t a) {
                xs[a] = read_run<N>(x + sample * d + i);
                dys[a] = read_run<N>(dy + sample * d + i);
            },
            [&](uint64_t sample, uint32_t a) {
                silu_backward_run(xs[a], dys[a], c, dx, y, sample * d + i, sum);
            });
        store_run(dshared + row * d + i, sum);
    });
}

// dx and y [rows, D], y or null; partial [parts, D].
template <class T>
DEVICE void bias_silu_backward(const Block& block, const T* x, const T* bias, const T* dy, T* dx, T* y,
                               float* partial, uint32_t rows, uint32_t d, uint32_t part_rows) {
    const bool whole = d % RUN<T> == 0 && at_runs(x, bias, dy, dx, y, partial);
    each_part<T>(block, rows, d, part_rows, whole, [&](Part part, uint32_t i, auto width) {
        constexpr uint32_t N = decltype(width)::value;
        float c[N], sum[N] = {};
        load_run(bias + i, c);
        Run<T, N> xs[ROWS_AHEAD], dys[ROWS_AHEAD];
        each_row_of<ROWS_AHEAD>(
            part,
            [&](uint64_t row, uint32_t a) {
                xs[a] = read_run<N>(x + row * d + i);
                dys[a] = read_run<N>(dy + row * d + i);
            },
            [&](uint64_t row, uint32_t a) { silu_backward_run(xs[a], dys[a], c, dx, y, row * d + i, sum); });
        store_run(partial + part.index * d + i, sum);
    });
}

// x [rows, 2 H], bias [2 H], y [rows, H].
template <class T>
DEVICE void bias_swiglu(const Block& block, const T* x, const T* bias, T* y, uint64_t rows, uint32_t h) {
    const bool whole = h % RUN<T> == 0 && at_runs(x, bias, y);
    each_run<T>(block, rows, h, whole, [&](uint64_t row, uint32_t i, auto width) {
        constexpr uint32_t N = decltype(width)::value;
        const T* const gate = x + row * 2 * h + i;
        float gs[N], ups[N], bias_gate[N], bias_up[N], s[N];
        load_run(gate, gs);
        load_run(gate + h, ups);
        load_run(bias + i, bias_gate);
        load_run(bias + h + i, bias_up);
        UNROLL for (uint32_t j = 0; j < N; j++) {
            gs[j] = gs[j] + bias_gate[j];
        }
        sigmoids<T>(gs, s);
        UNROLL for (uint32_t j = 0; j < N; j++) {
            gs[j] = gs[j] * s[j] * (ups[j] + bias_up[j]);
        }
        store_run(y + row * h + i, gs);
    });
}

// dy [rows, H], dx [rows, 2 H], y [rows, H] or null; partial [parts, 2 H].
template <class T>
DEVICE void bias_swiglu_backward(const Block& block, const T* x, const T* bias, const T* dy, T* dx, T* y,
                                 float* partial, uint32_t rows, uint32_t h, uint32_t part_rows) {
    const bool whole = h % RUN<T> == 0 && at_runs(x, bias, dy, dx, y, partial);
    each_part<T>(block, rows, h, part_rows, whole, [&](Part part, uint32_t i, auto width) {
        constexpr uint32_t N = decltype(width)::value;
        const Run<T, N> bias_gate = read_run<N>(bias + i), bias_up = read_run<N>(bias + h + i);
        Run<T, N> gates[GATE_ROWS_AHEAD], ups[GATE_ROWS_AHEAD], dys[GATE_ROWS_AHEAD];
        float sum_gate[N] = {}, sum_up[N] = {};
        each_row_of<GATE_ROWS_AHEAD>(
            part,
            [&](uint64_t row, uint32_t a) {
                gates[a] = read_run<N>(x + row * 2 * h + i);
                ups[a] = read_run<N>(x + row * 2 * h + h + i);
                dys[a] = read_run<N>(dy + row * h + i);
            },
            [&](uint64_t row, uint32_t a) {
                float gate[N], dgate[N], dup[N], value[N];
                UNROLL for (uint32_t j = 0; j < N; j++) {
                    gate[j] = gates[a][j] + bias_gate[j];
                }
                const auto silu = silu_and_slopes<T>(gate);
                UNROLL for (uint32_t j = 0; j < N; j++) {
                    const float up = ups[a][j] + bias_up[j];
                    dgate[j] = dys[a][j] * up * silu.slope[j];
                    dup[j] = dys[a][j] * silu.value[j];
                    value[j] = silu.value[j] * up;
                    sum_gate[j] += dgate[j];
                    sum_up[j] += dup[j];
                }
                store_run(dx + row * 2 * h + i, dgate);
                store_run(dx + row * 2 * h + h + i, dup);
                if (y != nullptr) {
                    store_run(y + row * h + i, value);
                }
            });
        store_run(partial + part.index * 2 * h + i, sum_gate);
        store_run(partial + part.index * 2 * h + h + i, sum_up);
    });
}

// y = x + bias, x and y [rows, D].
template <class T>
DEVICE void add_bias(const Block& block, const T* x, const T* bias, T* y, uint64_t rows, uint32_t d) {
    const bool whole = d % RUN<T> == 0 && at_runs(x, bias, y);
    each_run<T>(block, rows, d, whole, [&](uint64_t row, uint32_t i, auto width) {
        float v[decltype(width)::value], b[decltype(width)::value];
        load_run(x + row * d + i, v);
        load_run(bias + i, b);
        UNROLL for (uint32_t j = 0; j < width.value; j++) {
            v[j] += b[j];
        }
        store_run(y + row * d + i, v);
    });
}

#define ENERGY_BLOCK(T, suffix)                                                                         \
    KERNEL(bias_silu_##suffix,                                                                          \
           (const T* x, const T* shared, const T* bias, T* y, uint32_t r, uint32_t n, uint32_t d),      \
           bias_silu(block, x, shared, bias, y, r, n, d))                                               \
    KERNEL(shared_bias_silu_backward_##suffix,                                                          \
           (const T* x, const T* shared, const T* bias, const T* dy, T* dx, T* dshared, T* y,           \
            uint32_t r, uint32_t n, uint32_t d),                                                        \
           shared_bias_silu_backward(block, x, shared, bias, dy, dx, dshared, y, r, n, d))              \
    KERNEL(bias_silu_backward_##suffix,                                                                 \
           (const T* x, const T* bias, const T* dy, T* dx, T* y, float* partial, uint32_t rows,         \
            uint32_t d, uint32_t part_rows),                                                            \
           bias_silu_backward(block, x, bias, dy, dx, y, partial, rows, d, part_rows))                  \
    KERNEL(bias_swiglu_##suffix, (const T* x, const T* bias, T* y, uint64_t rows, uint32_t h),          \
           bias_swiglu(block, x, bias, y, rows, h))                                                     \
    KERNEL(bias_swiglu_backward_##suffix,                                                               \
           (const T* x, const T* bias, const T* dy, T* dx, T* y, float* partial, uint32_t rows,         \
            uint32_t h, uint32_t part_rows),                                                            \
           bias_swiglu_backward(block, x, bias, dy, dx, y, partial, rows, h, part_rows))                \
    KERNEL(add_bias_##suffix, (const T* x, const T* bias, T* y, uint64_t rows, uint32_t d),             \
           add_bias(block, x, bias, y, rows, d))
ENERGY_BLOCK(float, f32)
ENERGY_BLOCK(bf16, bf16)
