// Philox4x32-10 with the addressing of calm-kernels/src/philox.rs: a number is a function of (stream key,
// step, example, position, sample, dimension); a block of four words serves the dimensions 4b .. 4b+3.
#pragma once

#include "number.cuh"

// Key words of a stream and the training step.
struct NoiseKey {
    uint32_t key0;
    uint32_t key1;
    uint32_t step;
};

// One row of noise: index of the example in the global batch, chunk position in the example.
struct RowId {
    uint32_t example;
    uint32_t position;
};

struct Words {
    uint32_t w[4];
};

struct Four {
    float v[4];
};

DEVICE Words philox4x32(Words c, uint32_t key0, uint32_t key1) {
    UNROLL for (int round = 0; round < 10; round++) {
        const uint64_t p0 = uint64_t(c.w[0]) * 0xD2511F53u;
        const uint64_t p1 = uint64_t(c.w[2]) * 0xCD9E8D57u;
        c = {{uint32_t(p1 >> 32) ^ c.w[1] ^ key0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.w[3] ^ key1,
              uint32_t(p0)}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c;
}

// The words of one sample's dimensions 4*block .. 4*block+3; numbers beyond 16 bits go into the key.
DEVICE Words noise_words(NoiseKey key, RowId row, uint32_t sample, uint32_t block) {
    const uint32_t low = ((sample & 0xffffu) << 16) | (block & 0xffffu);
    return philox4x32({{low, row.position, row.example, key.step}}, key.key0 ^ (block >> 16),
                      key.key1 ^ (sample >> 16));
}

constexpr float UNIT = 1.0f / 16777216.0f;

// (w >> 8) 2^-24, in [0, 1).
DEVICE float unit(uint32_t word) { return float(int32_t(word >> 8)) * UNIT; }

DEVICE Four uniform_four(Words words) {
    return {{unit(words.w[0]), unit(words.w[1]), unit(words.w[2]), unit(words.w[3])}};
}

// Box-Muller on the word pairs (0, 1) and (2, 3).
DEVICE Four normal_four(Words words) {
    Four out;
    UNROLL for (int j = 0; j < 4; j += 2) {
        const float u = float(int32_t((words.w[j] >> 8) + 1u)) * UNIT;
        const float radius = sqrtf(-2.0f * ln_f32(u));
        const SinCos turn = sin_cos_turns_f32(unit(words.w[j + 1]));
        out.v[j] = radius * turn.cos;
        out.v[j + 1] = radius * turn.sin;
    }
    return out;
}
