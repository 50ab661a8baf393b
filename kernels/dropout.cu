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
    if (d % RUN<T> == 0 && at_runs(x, y)) {
        each_cell(block, row_count, d / RUN<T>, [&](uint64_t row, uint32_t run) {
            float v[RUN<T>];
            load_run(x + row * d + run * RUN<T>, v);
            UNROLL for (uint32_t k = 0; k < RUN<T> / 4; k++) {
                const Four u = uniform_four(noise_words(key, rows[row], 0, run * (RUN<T> / 4) + k));
                UNROLL for (uint32_t j = 0; j < 4; j++) {
                    v[4 * k + j] *= u.v[j] >= p ? keep : 0.0f;
                }
            }
            store_run(y + row * d + run * RUN<T>, v);
        });
        return;
    }
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
