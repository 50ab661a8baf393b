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

// Rows whose elements a thread loads before it uses them.
constexpr uint32_t ROWS_AHEAD = 4;

// f(row, j) for the rows of a part in order, j the place in a batch; load(row, j) for a whole batch before.
template <class L, class F> DEVICE void each_row_of(Part part, L load_row, F f) {
    uint64_t row = part.first;
    for (; row + ROWS_AHEAD <= part.last; row += ROWS_AHEAD) {
        UNROLL for (uint32_t j = 0; j < ROWS_AHEAD; j++) {
            load_row(row + j, j);
        }
        UNROLL for (uint32_t j = 0; j < ROWS_AHEAD; j++) {
            f(row + j, j);
        }
    }
    for (; row < part.last; row++) {
        load_row(row, 0);
        f(row, 0);
    }
}

// x, y [R, N, D], shared [R, D] or null, bias [D].
template <class T>
DEVICE void bias_silu(const Block& block, const T* x, const T* shared, const T* bias, T* y, uint32_t r,
                      uint32_t n, uint32_t d) {
    each_cell(block, uint64_t(r) * n, d, [&](uint64_t sample, uint32_t i) {
        const float b = load(bias[i]);
        const float u = load(x[sample * d + i]) + (shared != nullptr ? load(shared[sample / n * d + i]) + b : b);
        store(y[sample * d + i], u * sigmoid(u));
    });
}

// dx and y [R, N, D], y or null, dshared [R, D]: one thread adds up the samples of a row in order.
template <class T>
DEVICE void shared_bias_silu_backward(const Block& block, const T* x, const T* shared, const T* bias,
                                      const T* dy, T* dx, T* dshared, T* y, uint32_t r, uint32_t n,
                                      uint32_t d) {
    each_cell(block, r, d, [&](uint64_t row, uint32_t i) {
        const float c = load(shared[row * d + i]) + load(bias[i]);
        float xs[ROWS_AHEAD], dys[ROWS_AHEAD], sum = 0.0f;
        each_row_of(
            Part{row, row * n, (row + 1) * n},
            [&](uint64_t sample, uint32_t j) {
                xs[j] = load(x[sample * d + i]);
                dys[j] = load(dy[sample * d + i]);
            },
            [&](uint64_t sample, uint32_t j) {
                const SiluSlope silu = silu_and_slope(xs[j] + c);
                const float slope = dys[j] * silu.slope;
                store(dx[sample * d + i], slope);
                if (y != nullptr) {
                    store(y[sample * d + i], silu.value);
                }
                sum += slope;
            });
        store(dshared[row * d + i], sum);
    });
}

// dx and y [rows, D], y or null; partial [parts, D].
template <class T>
DEVICE void bias_silu_backward(const Block& block, const T* x, const T* bias, const T* dy, T* dx, T* y,
                               float* partial, uint32_t rows, uint32_t d, uint32_t part_rows) {
    each_part(block, rows, d, part_rows, [&](Part part, uint32_t i) {
        const float c = load(bias[i]);
        float xs[ROWS_AHEAD], dys[ROWS_AHEAD], sum = 0.0f;
        each_row_of(
            part,
            [&](uint64_t row, uint32_t j) {
                xs[j] = load(x[row * d + i]);
                dys[j] = load(dy[row * d + i]);
            },
            [&](uint64_t row, uint32_t j) {
                const SiluSlope silu = silu_and_slope(xs[j] + c);
                const float slope = dys[j] * silu.slope;
                store(dx[row * d + i], slope);
                if (y != nullptr) {
                    store(y[row * d + i], silu.value);
                }
                sum += slope;
            });
        partial[part.index * d + i] = sum;
    });
}

// x [rows, 2 H], bias [2 H], y [rows, H].
template <class T>
DEVICE void bias_swiglu(const Block& block, const T* x, const T* bias, T* y, uint64_t rows, uint32_t h) {
    each_cell(block, rows, h, [&](uint64_t row, uint32_t i) {
        const T* const gate = x + row * 2 * h;
        const float g = load(gate[i]) + load(bias[i]);
        store(y[row * h + i], g * sigmoid(g) * (load(gate[h + i]) + load(bias[h + i])));
    });
}

// dy [rows, H], dx [rows, 2 H], y [rows, H] or null; partial [parts, 2 H].
template <class T>
DEVICE void bias_swiglu_backward(const Block& block, const T* x, const T* bias, const T* dy, T* dx, T* y,
                                 float* partial, uint32_t rows, uint32_t h, uint32_t part_rows) {
    each_part(block, rows, h, part_rows, [&](Part part, uint32_t i) {
        const float bias_gate = load(bias[i]), bias_up = load(bias[h + i]);
        float gates[ROWS_AHEAD], ups[ROWS_AHEAD], dys[ROWS_AHEAD], sum_gate = 0.0f, sum_up = 0.0f;
        each_row_of(
            part,
            [&](uint64_t row, uint32_t j) {
                gates[j] = load(x[row * 2 * h + i]);
                ups[j] = load(x[row * 2 * h + h + i]);
                dys[j] = load(dy[row * h + i]);
            },
            [&](uint64_t row, uint32_t j) {
                const SiluSlope silu = silu_and_slope(gates[j] + bias_gate);
                const float up = ups[j] + bias_up;
                const float dgate = dys[j] * up * silu.slope, dup = dys[j] * silu.value;
                store(dx[row * 2 * h + i], dgate);
                store(dx[row * 2 * h + h + i], dup);
                if (y != nullptr) {
                    store(y[row * h + i], silu.value * up);
                }
                sum_gate += dgate;
                sum_up += dup;
            });
        partial[part.index * 2 * h + i] = sum_gate;
        partial[part.index * 2 * h + h + i] = sum_up;
    });
}

// y = x + bias, x and y [rows, D].
template <class T>
DEVICE void add_bias(const Block& block, const T* x, const T* bias, T* y, uint64_t rows, uint32_t d) {
    each_cell(block, rows, d, [&](uint64_t row, uint32_t i) {
        store(y[row * d + i], load(x[row * d + i]) + load(bias[i]));
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
