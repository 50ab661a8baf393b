// LayerNorm over rows of D elements: the twin of calm-kernels/src/layer_norm.rs. w and b may be null.
//
//   m = sum_i x_i / D    s = (sum_i (x_i - m)^2 / D + eps)^(-1/2)    h = s (x - m)    y = h w + b
//   g = dy w             dx = s (g - sum_i g_i / D - h sum_i g_i h_i / D)
//   dw = sum over rows of dy h         db = sum over rows of dy
//
// A warp a row (rows.cuh). The backward pass leaves m and s [rows, 2] for the sums over rows.
#include "column_sums.cuh"
#include "rows.cuh"

// Loads that a thread keeps of its row, and of each of two rows, so that 24 and 16 warps fit: rows of 2560 and of
// 2048 elements in bf16.
constexpr uint32_t KEEP = 10;
constexpr uint32_t KEEP_TWO = 8;

// mean[t] and scale[t] (m and s) of thread t's row, which has `width(t)` elements: d, or 0 if there is none.
template <class R, class W>
DEVICE void row_statistics(const Block& block, Local<R>& x, W width, uint32_t d, float eps,
                           Local<float>& mean, Local<float>& scale) {
    block.each([&](uint32_t t) {
        mean[t] = sum_eights(
            t, width(t),
            [](uint32_t, const auto& v, float(&of)[EIGHT]) {
                UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                    of[j] = v[0][j];
                }
            },
            x[t]);
    });
    lane_sum<ROW_WARP>(block, mean);
    block.each([&](uint32_t t) {
        const float m = mean[t] = mean[t] / float(d);
        scale[t] = sum_eights(
            t, width(t),
            [m](uint32_t, const auto& v, float(&of)[EIGHT]) {
                UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                    const float difference = v[0][j] - m;
                    of[j] = difference * difference;
                }
            },
            x[t]);
    });
    lane_sum<ROW_WARP>(block, scale);
    block.each([&](uint32_t t) { scale[t] = 1.0f / sqrtf(scale[t] / float(d) + eps); });
}

// v w + b of the 8 elements from i on; w and b may be null.
template <bool WHOLE, class T>
DEVICE void affine(const T* w, const T* b, uint32_t i, uint32_t d, float (&v)[EIGHT]) {
    float p[EIGHT];
    if (w != nullptr) {
        read_eight<WHOLE>(w + i, d - i, p);
        UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
            v[j] *= p[j];
        }
    }
    if (b != nullptr) {
        read_eight<WHOLE>(b + i, d - i, p);
        UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
            v[j] += p[j];
        }
    }
}

template <bool WHOLE, class T>
DEVICE void normalise(const Block& block, const T* x, const T* w, const T* b, T* y, uint32_t rows, uint32_t d,
                      float eps) {
    each_row_batch<ROW_WARP>(block, rows, [&](uint64_t first) {
        const auto width = [&](uint32_t t) { return lane_row<ROW_WARP>(first, t) < rows ? d : 0; };
        Local<Row<T, WHOLE, KEEP>> row;
        Local<float> mean, scale;
        block.each([&](uint32_t t) { row[t].take(x + lane_row<ROW_WARP>(first, t) * d, t, width(t)); });
        row_statistics(block, row, width, d, eps, mean, scale);
        block.each([&](uint32_t t) {
            const float m = mean[t], s = scale[t];
            T* const out = y + lane_row<ROW_WARP>(first, t) * d;
            each_eight(
                t, width(t),
                [&](uint32_t i, auto& v) {
                    UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                        v[0][j] = (v[0][j] - m) * s;
                    }
                    affine<WHOLE>(w, b, i, d, v[0]);
                    write_eight<WHOLE>(out + i, d - i, v[0]);
                },
                row[t]);
        });
    });
}

// x, y [rows, D]; w, b [D] or null.
template <class T>
DEVICE void layer_norm(const Block& block, const T* x, const T* w, const T* b, T* y, uint32_t rows,
                       uint32_t d, float eps) {
    if (d % EIGHT == 0 && at_runs(x, w, b, y)) {
        normalise<true>(block, x, w, b, y, rows, d, eps);
    } else {
        normalise<false>(block, x, w, b, y, rows, d, eps);
    }
}

// What stands beside a LayerNorm in a residual block; each may be null.
template <class T> struct Beside {
    // b [D], and y [rows, D] to be written once more.
    const T* b;
    T* y;
    // [rows, D], added to dx.
    const T* residual;
};

template <bool WHOLE, class T>
DEVICE void normalise_backward(const Block& block, const T* x, const T* w, const T* dy, T* dx,
                               float* statistics, uint32_t rows, uint32_t d, float eps, Beside<T> beside) {
    each_row_batch<ROW_WARP>(block, rows, [&](uint64_t first) {
        const auto width = [&](uint32_t t) { return lane_row<ROW_WARP>(first, t) < rows ? d : 0; };
        Local<Row<T, WHOLE, KEEP_TWO>> row, slope;
        Local<float> mean, scale, sum_g, sum_gh;
        block.each([&](uint32_t t) {
            const uint64_t at = lane_row<ROW_WARP>(first, t) * d;
            row[t].take(x + at, t, width(t));
            slope[t].take(dy + at, t, width(t));
        });
        row_statistics(block, row, width, d, eps, mean, scale);
        block.each([&](uint32_t t) {
            const float m = mean[t], s = scale[t];
            float total_g = 0.0f, total_gh = 0.0f;
            // Beyond the row g is 0, and so is what it adds.
            each_eight(
                t, width(t),
                [&](uint32_t i, auto& v) {
                    affine<WHOLE, T>(w, nullptr, i, d, v[1]);
                    total_g += sum_of_eight(v[1]);
                    UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                        v[1][j] *= (v[0][j] - m) * s;
                    }
                    total_gh += sum_of_eight(v[1]);
                },
                row[t], slope[t]);
            sum_g[t] = total_g;
            sum_gh[t] = total_gh;
        });
        lane_sum<ROW_WARP>(block, sum_g);
        lane_sum<ROW_WARP>(block, sum_gh);
        block.each([&](uint32_t t) {
            const uint64_t line = lane_row<ROW_WARP>(first, t);
            const float m = mean[t], s = scale[t];
            const float mean_g = sum_g[t] / float(d), mean_gh = sum_gh[t] / float(d);
            each_eight(
                t, width(t),
                [&](uint32_t i, auto& v) {
                    const uint64_t at = line * d + i;
                    float g[EIGHT];
                    UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                        g[j] = v[1][j];
                        v[0][j] = (v[0][j] - m) * s;
                    }
                    affine<WHOLE, T>(w, nullptr, i, d, g);
                    UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                        g[j] = s * (g[j] - mean_g - v[0][j] * mean_gh);
                    }
                    if (beside.residual != nullptr) {
                        float residual[EIGHT];
                        read_eight<WHOLE>(beside.residual + at, d - i, residual);
                        UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                            g[j] += residual[j];
                        }
                    }
                    write_eight<WHOLE>(dx + at, d - i, g);
                    if (beside.y != nullptr) {
                        affine<WHOLE>(w, beside.b, i, d, v[0]);
                        write_eight<WHOLE>(beside.y + at, d - i, v[0]);
                    }
                },
                row[t], slope[t]);
            if (line < rows && t % ROW_WARP == 0) {
                statistics[2 * line] = m;
                statistics[2 * line + 1] = s;
            }
        });
    });
}

// dx [rows, D] and statistics [rows, 2] = (m, s) from x, w (or null) and dy.
template <class T>
DEVICE void layer_norm_backward(const Block& block, const T* x, const T* w, const T* dy, T* dx,
                                float* statistics, uint32_t rows, uint32_t d, float eps, Beside<T> beside) {
    if (d % EIGHT == 0 && at_runs(x, w, dy, dx, beside.b, beside.y, beside.residual)) {
        normalise_backward<true>(block, x, w, dy, dx, statistics, rows, d, eps, beside);
    } else {
        normalise_backward<false>(block, x, w, dy, dx, statistics, rows, d, eps, beside);
    }
}

// partial [parts, 2 D]: dw, then db.
template <class T>
DEVICE void layer_norm_weight_parts(const Block& block, const T* x, const T* dy, const float* statistics,
                                    float* partial, uint32_t rows, uint32_t d, uint32_t part_rows) {
    const bool whole = d % RUN<T> == 0 && at_runs(x, dy, partial);
    each_part<T>(block, rows, d, part_rows, whole, [&](Part part, uint32_t i, auto width) {
        constexpr uint32_t N = decltype(width)::value;
        Run<T, N> xs[ROWS_AHEAD], dys[ROWS_AHEAD];
        float means[ROWS_AHEAD], scales[ROWS_AHEAD], dw[N] = {}, db[N] = {};
        each_row_of<ROWS_AHEAD>(
            part,
            [&](uint64_t row, uint32_t a) {
                xs[a] = read_run<N>(x + row * d + i);
                dys[a] = read_run<N>(dy + row * d + i);
                means[a] = statistics[2 * row];
                scales[a] = statistics[2 * row + 1];
            },
            [&](uint64_t, uint32_t a) {
                UNROLL for (uint32_t j = 0; j < N; j++) {
                    dw[j] += dys[a][j] * ((xs[a][j] - means[a]) * scales[a]);
                    db[j] += dys[a][j];
                }
            });
        store_run(partial + part.index * 2 * d + i, dw);
        store_run(partial + part.index * 2 * d + d + i, db);
    });
}

#define LAYER_NORM(T, suffix)                                                                           \
    KERNEL(layer_norm_##suffix,                                                                         \
           (const T* x, const T* w, const T* b, T* y, uint32_t rows, uint32_t d, float eps),            \
           layer_norm(block, x, w, b, y, rows, d, eps))                                                 \
    KERNEL(layer_norm_backward_##suffix,                                                                \
           (const T* x, const T* w, const T* dy, T* dx, float* statistics, uint32_t rows, uint32_t d,   \
            float eps),                                                                                 \
           layer_norm_backward(block, x, w, dy, dx, statistics, rows, d, eps,                           \
                               Beside<T>{nullptr, nullptr, nullptr}))                                   \
    KERNEL(layer_norm_residual_backward_##suffix,                                                       \
           (const T* x, const T* w, const T* b, const T* dy, const T* residual, T* dx, T* y,            \
            float* statistics, uint32_t rows, uint32_t d, float eps),                                   \
           layer_norm_backward(block, x, w, dy, dx, statistics, rows, d, eps,                           \
                               Beside<T>{b, y, residual}))                                              \
    KERNEL(layer_norm_weight_parts_##suffix,                                                            \
           (const T* x, const T* dy, const float* statistics, float* partial, uint32_t rows,            \
            uint32_t d, uint32_t part_rows),                                                            \
           layer_norm_weight_parts(block, x, dy, statistics, partial, rows, d, part_rows))
LAYER_NORM(float, f32)
LAYER_NORM(bf16, bf16)
