// LayerNorm over rows of D elements: the twin of calm-kernels/src/layer_norm.rs. w and b may be null.
//
//   m = sum_i x_i / D    s = (sum_i (x_i - m)^2 / D + eps)^(-1/2)    h = s (x - m)    y = h w + b
//   g = dy w             dx = s (g - sum_i g_i / D - h sum_i g_i h_i / D)
//   dw = sum over rows of dy h         db = sum over rows of dy
//
// Sixteen threads a row. The backward pass leaves m and s [rows, 2] for the sums over rows.
#include "column_sums.cuh"

// Adds to sum[t] the values value(i) of the elements of thread t's lane, then sums the lanes.
template <class F>
DEVICE void row_sum(const Block& block, uint64_t first, uint64_t rows, uint32_t d, Local<float>& sum, F value) {
    block.each([&](uint32_t t) {
        const uint64_t row = lane_row(first, t);
        float total = 0.0f;
        for (uint32_t i = t % LANES; row < rows && i < d; i += LANES) {
            total += value(t, row * d + i, i);
        }
        sum[t] = total;
    });
    lane_sum<LANES>(block, sum);
}

// mean[t] and scale[t] (m and s) of thread t's row.
template <class T>
DEVICE void row_statistics(const Block& block, const T* x, uint64_t first, uint64_t rows, uint32_t d,
                           float eps, Local<float>& mean, Local<float>& scale) {
    row_sum(block, first, rows, d, mean, [&](uint32_t, uint64_t at, uint32_t) { return load(x[at]); });
    block.each([&](uint32_t t) { mean[t] = mean[t] / float(d); });
    row_sum(block, first, rows, d, scale, [&](uint32_t t, uint64_t at, uint32_t) {
        const float difference = load(x[at]) - mean[t];
        return difference * difference;
    });
    block.each([&](uint32_t t) { scale[t] = 1.0f / sqrtf(scale[t] / float(d) + eps); });
}

// x, y [rows, D]; w, b [D] or null.
template <class T>
DEVICE void layer_norm(const Block& block, const T* x, const T* w, const T* b, T* y, uint32_t rows,
                       uint32_t d, float eps) {
    each_row_batch(block, rows, [&](uint64_t first) {
        Local<float> mean, scale;
        row_statistics(block, x, first, rows, d, eps, mean, scale);
        block.each([&](uint32_t t) {
            const uint64_t row = lane_row(first, t);
            for (uint32_t i = t % LANES; row < rows && i < d; i += LANES) {
                float value = (load(x[row * d + i]) - mean[t]) * scale[t];
                value = w != nullptr ? value * load(w[i]) : value;
                value = b != nullptr ? value + load(b[i]) : value;
                store(y[row * d + i], value);
            }
        });
    });
}

// What stands beside a LayerNorm in a residual block; each may be null.
template <class T> struct Beside {
    // b [D], and y [rows, D] to be written once more.
    const T* b;
    T* y;
    // [rows, D], added to dx.
    const T* residual;
};

// dx [rows, D] and statistics [rows, 2] = (m, s) from x, w (or null) and dy.
template <class T>
DEVICE void layer_norm_backward(const Block& block, const T* x, const T* w, const T* dy, T* dx,
                                float* statistics, uint32_t rows, uint32_t d, float eps, Beside<T> beside) {
    each_row_batch(block, rows, [&](uint64_t first) {
        Local<float> mean, scale, sum_g, sum_gh;
        row_statistics(block, x, first, rows, d, eps, mean, scale);
        auto g = [&](uint64_t at, uint32_t i) {
            return w != nullptr ? load(dy[at]) * load(w[i]) : load(dy[at]);
        };
        auto h = [&](uint32_t t, uint64_t at) { return (load(x[at]) - mean[t]) * scale[t]; };
        row_sum(block, first, rows, d, sum_g, [&](uint32_t, uint64_t at, uint32_t i) { return g(at, i); });
        row_sum(block, first, rows, d, sum_gh,
                [&](uint32_t t, uint64_t at, uint32_t i) { return g(at, i) * h(t, at); });
        block.each([&](uint32_t t) {
            const uint64_t row = lane_row(first, t);
            const float mean_g = sum_g[t] / float(d), mean_gh = sum_gh[t] / float(d);
            for (uint32_t i = t % LANES; row < rows && i < d; i += LANES) {
                const uint64_t at = row * d + i;
                const float normal = h(t, at);
                const float slope = scale[t] * (g(at, i) - mean_g - normal * mean_gh);
                store(dx[at], beside.residual != nullptr ? slope + load(beside.residual[at]) : slope);
                if (beside.y != nullptr) {
                    const float value = w != nullptr ? normal * load(w[i]) : normal;
                    store(beside.y[at], beside.b != nullptr ? value + load(beside.b[i]) : value);
                }
            }
            if (row < rows && t % LANES == 0) {
                statistics[2 * row] = mean[t];
                statistics[2 * row + 1] = scale[t];
            }
        });
    });
}

// partial [parts, 2 D]: dw, then db.
template <class T>
DEVICE void layer_norm_weight_parts(const Block& block, const T* x, const T* dy, const float* statistics,
                                    float* partial, uint32_t rows, uint32_t d, uint32_t part_rows) {
    each_part(block, rows, d, part_rows, [&](Part part, uint32_t i) {
        float dw = 0.0f, db = 0.0f;
        for (uint64_t row = part.first; row < part.last; row++) {
            const float slope = load(dy[row * d + i]);
            dw += slope * ((load(x[row * d + i]) - statistics[2 * row]) * statistics[2 * row + 1]);
            db += slope;
        }
        partial[part.index * 2 * d + i] = dw;
        partial[part.index * 2 * d + d + i] = db;
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
