// RMSNorm over rows of D elements: the twin of calm-kernels/src/rms_norm.rs.
//
//   s = (sum_i x_i^2 / D + eps)^(-1/2)     y = x s w
//   g = dy w      dx = s (g - x s^2 sum_i g_i x_i / D)      dw = sum over rows of dy x s
//
// Sixteen threads a row. The backward pass leaves s [rows] for the sums over rows (column_sums.cu).
#include "column_sums.cuh"

template <class T> DEVICE float square_at(const T* x, uint64_t i) {
    const float v = load(x[i]);
    return v * v;
}

// s from the sum of squares.
DEVICE float inverse_rms(float squares, uint32_t d, float eps) {
    return 1.0f / sqrtf(squares / float(d) + eps);
}

// x, y [rows, D], w [D].
template <class T>
DEVICE void rms_norm(const Block& block, const T* x, const T* w, T* y, uint32_t rows, uint32_t d,
                     float eps) {
    each_row_batch(block, rows, [&](uint64_t first) {
        Local<float> squares;
        block.each([&](uint32_t t) {
            const uint64_t row = lane_row(first, t);
            squares[t] = 0.0f;
            for (uint32_t i = t % LANES; row < rows && i < d; i += LANES) {
                squares[t] += square_at(x, row * d + i);
            }
        });
        lane_sum<LANES>(block, squares);
        block.each([&](uint32_t t) {
            const uint64_t row = lane_row(first, t);
            const float s = inverse_rms(squares[t], d, eps);
            for (uint32_t i = t % LANES; row < rows && i < d; i += LANES) {
                store(y[row * d + i], load(x[row * d + i]) * s * load(w[i]));
            }
        });
    });
}

// dx [rows, D] and s [rows] from x, w and dy.
template <class T>
DEVICE void rms_norm_backward(const Block& block, const T* x, const T* w, const T* dy, T* dx, float* scale,
                              uint32_t rows, uint32_t d, float eps) {
    each_row_batch(block, rows, [&](uint64_t first) {
        Local<float> squares, product;
        block.each([&](uint32_t t) {
            const uint64_t row = lane_row(first, t);
            squares[t] = product[t] = 0.0f;
            for (uint32_t i = t % LANES; row < rows && i < d; i += LANES) {
                const uint64_t at = row * d + i;
                squares[t] += square_at(x, at);
                product[t] += load(dy[at]) * load(w[i]) * load(x[at]);
            }
        });
        lane_sum<LANES>(block, squares);
        lane_sum<LANES>(block, product);
        block.each([&](uint32_t t) {
            const uint64_t row = lane_row(first, t);
            if (row < rows) {
                const float s = inverse_rms(squares[t], d, eps);
                const float c = product[t] * s * s / float(d);
                for (uint32_t i = t % LANES; i < d; i += LANES) {
                    const uint64_t at = row * d + i;
                    store(dx[at], s * (load(dy[at]) * load(w[i]) - load(x[at]) * c));
                }
                if (t % LANES == 0) {
                    scale[row] = s;
                }
            }
        });
    });
}

// partial [parts, D] of dw.
template <class T>
DEVICE void rms_norm_weight_parts(const Block& block, const T* x, const T* dy, const float* scale,
                                  float* partial, uint32_t rows, uint32_t d, uint32_t part_rows) {
    each_part(block, rows, d, part_rows, [&](Part part, uint32_t i) {
        float dw = 0.0f;
        for (uint64_t row = part.first; row < part.last; row++) {
            dw += load(dy[row * d + i]) * (load(x[row * d + i]) * scale[row]);
        }
        partial[part.index * d + i] = dw;
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
