// RMSNorm over rows of D elements: the twin of calm-kernels/src/rms_norm.rs.
//
//   s = (sum_i x_i^2 / D + eps)^(-1/2)     y = x s w
//   g = dy w      dx = s (g - x s^2 sum_i g_i x_i / D)      dw = sum over rows of dy x s
//
// A warp a row (rows.cuh). The backward pass leaves s [rows] for the sums over rows (column_sums.cu).
#include "column_sums.cuh"
#include "rows.cuh"

// Loads that a thread keeps of its row, and of each of two rows: rows of 2560 and of 2048 elements in bf16.
constexpr uint32_t KEEP = 10;
constexpr uint32_t KEEP_TWO = 8;

// s from the sum of squares.
DEVICE float inverse_rms(float squares, uint32_t d, float eps) {
    return 1.0f / sqrtf(squares / float(d) + eps);
}

template <bool WHOLE, class T>
DEVICE void scale_rows(const Block& block, const T* x, const T* w, T* y, uint32_t rows, uint32_t d, float eps) {
    each_row_batch<ROW_WARP>(block, rows, [&](uint64_t first) {
        // Of a row that is not there no elements.
        const auto width = [&](uint32_t t) { return lane_row<ROW_WARP>(first, t) < rows ? d : 0; };
        Local<Row<T, WHOLE, KEEP>> row;
        Local<float> squares;
        block.each([&](uint32_t t) {
            row[t].take(x + lane_row<ROW_WARP>(first, t) * d, t, width(t));
            squares[t] = sum_eights(
                t, width(t),
                [](uint32_t, const auto& v, float(&of)[EIGHT]) {
                    UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                        of[j] = v[0][j] * v[0][j];
                    }
                },
                row[t]);
        });
        lane_sum<ROW_WARP>(block, squares);
        block.each([&](uint32_t t) {
            const float s = inverse_rms(squares[t], d, eps);
            T* const out = y + lane_row<ROW_WARP>(first, t) * d;
            each_eight(
                t, width(t),
                [&](uint32_t i, auto& v) {
                    float weight[EIGHT];
                    read_eight<WHOLE>(w + i, d - i, weight);
                    UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                        v[0][j] = v[0][j] * s * weight[j];
                    }
                    write_eight<WHOLE>(out + i, d - i, v[0]);
                },
                row[t]);
        });
    });
}

// x, y [rows, D], w [D].
template <class T>
DEVICE void rms_norm(const Block& block, const T* x, const T* w, T* y, uint32_t rows, uint32_t d,
                     float eps) {
    if (d % EIGHT == 0 && at_runs(x, w, y)) {
        scale_rows<true>(block, x, w, y, rows, d, eps);
    } else {
        scale_rows<false>(block, x, w, y, rows, d, eps);
    }
}

template <bool WHOLE, class T>
DEVICE void scale_rows_backward(const Block& block, const T* x, const T* w, const T* dy, T* dx, float* scale,
                                uint32_t rows, uint32_t d, float eps) {
    each_row_batch<ROW_WARP>(block, rows, [&](uint64_t first) {
        const auto width = [&](uint32_t t) { return lane_row<ROW_WARP>(first, t) < rows ? d : 0; };
        Local<Row<T, WHOLE, KEEP_TWO>> row, slope;
        Local<float> squares, product;
        block.each([&](uint32_t t) {
            const uint64_t at = lane_row<ROW_WARP>(first, t) * d;
            row[t].take(x + at, t, width(t));
            slope[t].take(dy + at, t, width(t));
            float total = 0.0f, total_g = 0.0f;
            // Beyond the row all are 0.
            each_eight(
                t, width(t),
                [&](uint32_t i, auto& v) {
                    float square[EIGHT], g[EIGHT];
                    read_eight<WHOLE>(w + i, d - i, g);
                    UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                        square[j] = v[0][j] * v[0][j];
                        g[j] = v[1][j] * g[j] * v[0][j];
                    }
                    total += sum_of_eight(square);
                    total_g += sum_of_eight(g);
                },
                row[t], slope[t]);
            squares[t] = total;
            product[t] = total_g;
        });
        lane_sum<ROW_WARP>(block, squares);
        lane_sum<ROW_WARP>(block, product);
        block.each([&](uint32_t t) {
            const uint64_t line = lane_row<ROW_WARP>(first, t);
            const float s = inverse_rms(squares[t], d, eps);
            const float c = product[t] * s * s / float(d);
            each_eight(
                t, width(t),
                [&](uint32_t i, auto& v) {
                    float weight[EIGHT];
                    read_eight<WHOLE>(w + i, d - i, weight);
                    UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                        v[0][j] = s * (v[1][j] * weight[j] - v[0][j] * c);
                    }
                    write_eight<WHOLE>(dx + line * d + i, d - i, v[0]);
                },
                row[t], slope[t]);
            if (line < rows && t % ROW_WARP == 0) {
                scale[line] = s;
            }
        });
    });
}

// dx [rows, D] and s [rows] from x, w and dy.
template <class T>
DEVICE void rms_norm_backward(const Block& block, const T* x, const T* w, const T* dy, T* dx, float* scale,
                              uint32_t rows, uint32_t d, float eps) {
    if (d % EIGHT == 0 && at_runs(x, w, dy, dx)) {
        scale_rows_backward<true>(block, x, w, dy, dx, scale, rows, d, eps);
    } else {
        scale_rows_backward<false>(block, x, w, dy, dx, scale, rows, d, eps);
    }
}

// partial [parts, D] of dw.
template <class T>
DEVICE void rms_norm_weight_parts(const Block& block, const T* x, const T* dy, const float* scale,
                                  float* partial, uint32_t rows, uint32_t d, uint32_t part_rows) {
    const bool whole = d % RUN<T> == 0 && at_runs(x, dy, partial);
    each_part<T>(block, rows, d, part_rows, whole, [&](Part part, uint32_t i, auto width) {
        constexpr uint32_t N = decltype(width)::value;
        Run<T, N> xs[ROWS_AHEAD], dys[ROWS_AHEAD];
        float scales[ROWS_AHEAD], dw[N] = {};
        each_row_of<ROWS_AHEAD>(
            part,
            [&](uint64_t row, uint32_t a) {
                xs[a] = read_run<N>(x + row * d + i);
                dys[a] = read_run<N>(dy + row * d + i);
                scales[a] = scale[row];
            },
            [&](uint64_t, uint32_t a) {
                UNROLL for (uint32_t j = 0; j < N; j++) {
                    dw[j] += dys[a][j] * (xs[a][j] * scales[a]);
                }
            });
        store_run(partial + part.index * d + i, dw);
    });
}

#define RMS_NORM(T, suffix)                                                                             \
    KERNEL(rms_norm_##suffix,                                                                           \
           (const T* x, const T* w, T* y, uint32_t rows, uint32_t d, float eps),                        \
           rms_norm(block, x, w, y, rows, d, eps))                                                      \
    KERNEL(rms_norm_backward_##suffix,                                                                  \
           (const T* x, const T* w, const T* dy, T* dx, float* scale, uint32_t rows, uint32_t d,        \
            float eps),                                                                                 \
           rms_norm_backward(block, x, w, dy, dx, scale, rows, d, eps))                                 \
    KERNEL(rms_norm_weight_parts_##suffix,                                                              \
           (const T* x, const T* dy, const float* scale, float* partial, uint32_t rows, uint32_t d,     \
            uint32_t part_rows),                                                                        \
           rms_norm_weight_parts(block, x, dy, scale, partial, rows, d, part_rows))
RMS_NORM(float, f32)
RMS_NORM(bf16, bf16)
