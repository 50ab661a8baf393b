// Inverted dropout whose mask is drawn where it is used: the twin of calm-kernels/src/dropout.rs.
//
//   y = x mask,   mask = [u >= p] / (1 - p),   u the uniform of (row, sample 0, dimension)
//
// The backward pass is the same kernel on dy: the mask is drawn again, never stored.
#include "philox.cuh"

// x, y [rows.., D]; keep = 1 / (1 - p).
template <class T>
DEVICE void dropout(const Block& block, const T* x, NoiseKey key, const RowId* rows, T* y,
                    uint32_t row_count, uint32_t d, float p, float keep) {
    each_cell(block, row_count, (d + 3) / 4, [&](uint64_t row, uint32_t four) {
        const Four u = uniform_four(noise_words(key, rows[row], 0, four));
        UNROLL for (uint32_t j = 0; j < 4; j++) {
            const uint64_t at = row * d + 4 * four + j;
            if (4 * four + j < d) {
                store(y[at], load(x[at]) * (u.v[j] >= p ? keep : 0.0f));
            }
        }
    });
}

#define DROPOUT(T, suffix)                                                                              \
    KERNEL(dropout_##suffix,                                                                            \
           (const T* x, NoiseKey key, const RowId* rows, T* y, uint32_t row_count, uint32_t d, float p, \
            float keep),                                                                                \
           dropout(block, x, key, rows, y, row_count, d, p, keep))
DROPOUT(float, f32)
DROPOUT(bf16, bf16)
