// Uniform and normal numbers as buffers (the energy score, dropout and the like draw their own).
//
// out [rows, samples, dims]: uniforms in [0, 1) or standard normals; one thread draws a block of four.
#include "philox.cuh"

template <bool NORMAL>
DEVICE void noise(const Block& block, NoiseKey key, const RowId* rows, float* out, uint32_t row_count,
                  uint32_t samples, uint32_t dims) {
    each_cell(block, uint64_t(row_count) * samples, (dims + 3) / 4, [&](uint64_t vector, uint32_t four) {
        const Words words =
            noise_words(key, rows[vector / samples], uint32_t(vector % samples), four);
        const Four values = NORMAL ? normal_four(words) : uniform_four(words);
        UNROLL for (uint32_t j = 0; j < 4; j++) {
            if (4 * four + j < dims) {
                out[vector * dims + 4 * four + j] = values.v[j];
            }
        }
    });
}

#define NOISE(name, normal)                                                                             \
    KERNEL(name,                                                                                        \
           (NoiseKey key, const RowId* rows, float* out, uint32_t row_count, uint32_t samples,          \
            uint32_t dims),                                                                             \
           noise<normal>(block, key, rows, out, row_count, samples, dims))
NOISE(noise_uniform, false)
NOISE(noise_normal, true)
