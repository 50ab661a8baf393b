// Tiles of the attention kernels: ROWS rows (queries, or keys in the key gradients) against COLUMNS columns
// (keys, or queries there), by TILE_THREADS threads. Thread t holds the rows 4*(t/8) + i, i < 4, and the
// columns t%8 + 8*j, j < 4: of a tile of scores, 16 values; of a tile [ROWS, DH], 4 * DH/8 sums.
//
// Tiles lie in shared memory as f32 with one element of padding a row, so that the threads of a warp read
// different banks. The two products below are all that a faster product would replace.
#pragma once

#include "number.cuh"

constexpr uint32_t ROWS = 64;
constexpr uint32_t COLUMNS = 32;
constexpr uint32_t TILE_THREADS = 128;
// Threads that share a row, and what a thread holds of a tile of scores in each direction.
constexpr uint32_t SIDE = 8;
constexpr uint32_t EACH = 4;
static_assert(TILE_THREADS / SIDE * EACH == ROWS && SIDE * EACH == COLUMNS, "a tile is covered once");

constexpr uint32_t WEIGHT_STRIDE = COLUMNS + 1;

// One attention: q [B, T, H, DH] over k, v [B, U, Hkv, DH]. Of one set of spans, query t of row b sees the keys
// spans[b][t] = [start, end); neither end decreases from a query to the next. Key head g serves the query heads
// g*H/Hkv .. (g+1)*H/Hkv. Of several sets [sets, B, T] each belongs to as many key heads, one after the other.
struct AttentionSizes {
    uint32_t batch;
    uint32_t queries;
    uint32_t keys;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t sets; // of spans, a divisor of kv_heads
    float scale;   // of the scores, 1 / sqrt(DH)
};

struct Span {
    uint32_t start;
    uint32_t end;
};

// The spans of row b that key head g has, one for each query.
DEVICE const Span* spans_of(const AttentionSizes& s, const Span* spans, uint32_t b, uint32_t g) {
    return spans + (uint64_t(g / (s.kv_heads / s.sets)) * s.batch + b) * s.queries;
}

DEVICE bool sees(Span span, uint32_t key) { return span.start <= key && key < span.end; }

DEVICE uint32_t tile_row(uint32_t t, uint32_t i) { return t / SIDE * EACH + i; }
DEVICE uint32_t tile_column(uint32_t t, uint32_t j) { return t % SIDE + SIDE * j; }

// Floats from a row of a tile to the next.
template <uint32_t DH> constexpr uint32_t TILE_STRIDE = DH + 1;

// `count` rows of DH elements at x, `stride` elements apart, into a tile of `rows`; the others become 0.
template <uint32_t DH, class T>
DEVICE void load_tile(const Block& block, float* tile, uint32_t rows, const T* x, uint32_t count,
                      uint64_t stride) {
    block.phase([&](uint32_t t) {
        for (uint32_t i = t; i < rows * DH; i += TILE_THREADS) {
            const uint32_t row = i / DH, d = i % DH;
            tile[row * TILE_STRIDE<DH> + d] = row < count ? load(x[row * stride + d]) : 0.0f;
        }
    });
}

// scores = rows * columns^T: rows [ROWS, DH], columns [COLUMNS, DH].
template <uint32_t DH>
DEVICE void tile_scores(const Block& block, const float* rows, const float* columns,
                        Local<float> (&scores)[EACH * EACH]) {
    block.phase([&](uint32_t t) {
        UNROLL for (uint32_t i = 0; i < EACH * EACH; i++) {
            scores[i][t] = 0.0f;
        }
        for (uint32_t d = 0; d < DH; d++) {
            float r[EACH], c[EACH];
            UNROLL for (uint32_t i = 0; i < EACH; i++) {
                r[i] = rows[tile_row(t, i) * TILE_STRIDE<DH> + d];
                c[i] = columns[tile_column(t, i) * TILE_STRIDE<DH> + d];
            }
            UNROLL for (uint32_t i = 0; i < EACH * EACH; i++) {
                scores[i][t] = fused(r[i / EACH], c[i % EACH], scores[i][t]);
            }
        }
    });
}

// sums += weights * columns: weights [ROWS, COLUMNS], columns [COLUMNS, DH].
template <uint32_t DH>
DEVICE void tile_sums(const Block& block, const float* weights, const float* columns,
                      Local<float> (&sums)[EACH * (DH / SIDE)]) {
    block.phase([&](uint32_t t) {
        for (uint32_t u = 0; u < COLUMNS; u++) {
            float w[EACH];
            UNROLL for (uint32_t i = 0; i < EACH; i++) {
                w[i] = weights[tile_row(t, i) * WEIGHT_STRIDE + u];
            }
            UNROLL for (uint32_t c = 0; c < DH / SIDE; c++) {
                const float value = columns[u * TILE_STRIDE<DH> + tile_column(t, c)];
                UNROLL for (uint32_t i = 0; i < EACH; i++) {
                    sums[i * (DH / SIDE) + c][t] = fused(w[i], value, sums[i * (DH / SIDE) + c][t]);
                }
            }
        }
    });
}

// factor[row] * sums into `count` rows of DH elements at x, `stride` elements apart.
template <uint32_t DH, class T, class F>
DEVICE void store_tile(const Block& block, Local<float> (&sums)[EACH * (DH / SIDE)], T* x, uint32_t count,
                       uint64_t stride, F factor) {
    block.each([&](uint32_t t) {
        UNROLL for (uint32_t i = 0; i < EACH; i++) {
            const uint32_t row = tile_row(t, i);
            const float f = factor(t, i);
            UNROLL for (uint32_t c = 0; c < DH / SIDE; c++) {
                if (row < count) {
                    store(x[row * stride + tile_column(t, c)], sums[i * (DH / SIDE) + c][t] * f);
                }
            }
        }
    });
}

template <size_t N> DEVICE void clear(const Block& block, Local<float> (&values)[N]) {
    block.each([&](uint32_t t) {
        UNROLL for (size_t i = 0; i < N; i++) {
            values[i][t] = 0.0f;
        }
    });
}

// INSTANCE(T, suffix, head size) for every head size that has kernels: the paper's 48 to 160, and 32.
#define EACH_HEAD_SIZE(INSTANCE, T, suffix) \
    INSTANCE(T, suffix, 32)                 \
    INSTANCE(T, suffix, 48)                 \
    INSTANCE(T, suffix, 64)                 \
    INSTANCE(T, suffix, 96)                 \
    INSTANCE(T, suffix, 128)                \
    INSTANCE(T, suffix, 160)
