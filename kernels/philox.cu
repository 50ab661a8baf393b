// Uniform and normal numbers as buffers (the energy score, dropout and the like draw their own).
//
// out [rows, samples, dims]: uniforms in [0, 1) or standard normals; one thread draws a block of four.
#include "philox.cuh"

template <bool NORMAL>
DEVICE void noise(const Block& block, NoiseKey key, const RowId* rows, float* out, uint32_t row_count,
                  uint32_t samples, uint32_t dims) {
    const uint64_t blocks = (dims + 3) / 4;
    const uint64_t tasks = uint64_t(row_count) * samples * blocks;
    block.each([&](uint32_t t) {
        const uint64_t stride = uint64_t(block.grid()) * block.threads();
        for (uint64_t i = uint64_t(block.index()) * block.threads() + t; i < tasks; i += stride) {
            const uint32_t four = uint32_t(i % blocks);
            const uint64_t vector = i / blocks;
            const Words words =
                noise_words(key, rows[vector / samples], uint32_t(vector % samples), four);
            const Four values = NORMAL ? normal_four(words) : uniform_four(words);
            UNROLL for (uint32_t j = 0; j < 4; j++) {
                if (4 * four + j < dims) {
                    out[vector * dims + 4 * four + j] = values.v[j];
                }
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
