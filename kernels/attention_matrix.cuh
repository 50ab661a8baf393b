// Tiles of the attention kernels for bf16: products by the tensor cores (matrix.cuh), scores and weights in
// registers from one product to the next.
//
// A block holds BLOCK_ROWS rows (queries, or keys in the key gradients), each warp STRIPS strips of 16 of
// them, and goes through tiles of N columns (keys, or queries there). Thread t has of a strip m the rows
// strip_row(t, m, 0) and (t, m, 1), of a tile's columns 8j + 2(t mod 4) and the next, for every j.
//
// Tiles lie in shared memory as bf16, 16 bytes of padding a row: a row is then an odd number of 16 bytes, and
// eight rows that a load of an 8x8 matrix reads lie in different banks.
#pragma once

#include "attention.cuh"
#include "matrix.cuh"

constexpr uint32_t BLOCK_ROWS = 128;
template <uint32_t STRIPS> constexpr uint32_t STRIP_THREADS = BLOCK_ROWS / (16 * STRIPS) * 32;

// Elements from a row of a tile to the next.
template <uint32_t DH> constexpr uint32_t PITCH = DH + 8;

// Sums or scores of a warp: STRIPS x COLUMNS/8 fragments C.
template <uint32_t STRIPS, uint32_t COLUMNS> struct Sums {
    Local<float> of[STRIPS][COLUMNS / 8][4];
};

// Weights of a warp: STRIPS x COLUMNS/16 fragments A.
template <uint32_t STRIPS, uint32_t COLUMNS> struct Weights {
    Local<uint32_t> of[STRIPS][COLUMNS / 16][4];
};

// One task of a kernel over tiles of queries: BLOCK_ROWS queries of one head.
struct QueryTask {
    uint32_t count;
    // Of the first query: its span, its (position, head) in [B, T, H]; the first key of its key head.
    const Span* seen;
    uint64_t entry;
    uint64_t key_head;
};

DEVICE uint32_t block_tiles(uint32_t rows) { return (rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }

template <uint32_t DH> DEVICE QueryTask query_task(const AttentionSizes& s, const Span* spans, uint32_t task) {
    const uint32_t tiles = block_tiles(s.queries);
    // Late queries first, which see the most keys: the short tasks are left for the end.
    const uint32_t t0 = (tiles - 1 - task % tiles) * BLOCK_ROWS, h = task / tiles % s.heads;
    // Positions are counted in 32 bits, elements in 64.
    const uint32_t b = task / tiles / s.heads, first = b * s.queries + t0, g = h / (s.heads / s.kv_heads);
    return {s.queries - t0 < BLOCK_ROWS ? s.queries - t0 : BLOCK_ROWS, spans_of(s, spans, b, g) + t0,
            uint64_t(first) * s.heads + h, uint64_t(b * s.keys) * (s.kv_heads * DH) + g * DH};
}

DEVICE bf16* shared_tiles(const Block& block) { return reinterpret_cast<bf16*>(block.dynamic_shared()); }

// Row in the block of thread t: strip m, upper or lower half.
template <uint32_t STRIPS> DEVICE uint32_t strip_row(uint32_t t, uint32_t m, uint32_t half) {
    return t / 32 * (16 * STRIPS) + 16 * m + 8 * half + t % 32 / 4;
}

// Column in the tile of element i of fragment j.
DEVICE uint32_t strip_column(uint32_t t, uint32_t j, uint32_t i) { return 8 * j + 2 * (t % 4) + i % 2; }

// Begins to copy `count` rows of DH elements at x, `stride` elements apart, into a tile of R rows; the others
// become 0. x is at a multiple of 16 bytes.
template <uint32_t DH, uint32_t R, uint32_t THREADS>
DEVICE void copy_rows(const Block& block, bf16* tile, const bf16* x, uint32_t count, uint32_t stride) {
    constexpr uint32_t PIECES = DH / 8;
    constexpr uint32_t ACROSS = PIECES % 8 == 0 ? 8 : PIECES % 4 == 0 ? 4 : 2;
    constexpr uint32_t DOWN = THREADS / ACROSS;
    block.each([&](uint32_t thread) {
        const uint32_t t = anew(thread), piece = t % ACROSS * 8;
        const bf16* from = x + t / ACROSS * uint64_t(stride) + piece;
        UNROLL for (uint32_t first = 0; first < R; first += DOWN) {
            const uint32_t row = first + t / ACROSS;
            UNROLL for (uint32_t i = 0; i < PIECES; i += ACROSS) {
                if (R % DOWN == 0 || row < R) {
                    copy_async<16>(block, tile + row * PITCH<DH> + piece + 8 * i, from + 8 * i, row < count);
                }
            }
            from += uint64_t(DOWN) * anew(stride);
        }
    });
}

// Begins to copy the numbers of `count` entries, `stride` apart, of R; the others become 0.
template <uint32_t R, uint32_t THREADS>
DEVICE void copy_numbers(const Block& block, float* tile, const float* x, uint32_t count, uint32_t stride) {
    block.each([&](uint32_t t) {
        UNROLL for (uint32_t first = 0; first < R; first += THREADS) {
            const uint32_t i = first + t;
            if (R % THREADS == 0 || i < R) {
                copy_async<4>(block, tile + i, x + uint64_t(i) * stride, i < count);
            }
        }
    });
}

template <uint32_t STRIPS, uint32_t COLUMNS>
DEVICE void clear(const Block& block, Sums<STRIPS, COLUMNS>& sums) {
    block.each([&](uint32_t t) {
        UNROLL for (uint32_t i = 0; i < STRIPS * (COLUMNS / 8) * 4; i++) {
            sums.of[i / (COLUMNS / 2)][i / 4 % (COLUMNS / 8)][i % 4][t] = 0.0f;
        }
    });
}

// scores += rows * columns^T: rows [BLOCK_ROWS, DH], columns [N, DH].
template <uint32_t DH, uint32_t STRIPS, uint32_t N>
DEVICE void matrix_scores(const Block& block, const bf16* rows, const bf16* columns,
                          Sums<STRIPS, N>& scores) {
    UNROLL for (uint32_t d = 0; d < DH; d += 16) {
        Local<uint32_t> a[STRIPS][4];
        UNROLL for (uint32_t m = 0; m < STRIPS; m++) {
            load_matrices<false>(block, a[m], [&](uint32_t t) {
                return rows + (t / 32 * (16 * STRIPS) + t % 16) * PITCH<DH> + t % 32 / 16 * 8 +
                       (16 * m * PITCH<DH> + d);
            });
        }
        UNROLL for (uint32_t j = 0; j < N / 8; j += 2) {
            Local<uint32_t> b[4];
            load_matrices<false>(block, b, [&](uint32_t t) {
                return columns + (t % 32 / 16 * 8 + t % 8) * PITCH<DH> + t / 8 % 2 * 8 +
                       (8 * j * PITCH<DH> + d);
            });
            UNROLL for (uint32_t m = 0; m < STRIPS; m++) {
                multiply(block, scores.of[m][j], a[m], b[0], b[1]);
                multiply(block, scores.of[m][j + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// sums += weights * columns: columns [N, DH].
template <uint32_t DH, uint32_t STRIPS, uint32_t N>
DEVICE void matrix_sums(const Block& block, Weights<STRIPS, N>& weights, const bf16* columns,
                        Sums<STRIPS, DH>& sums) {
    UNROLL for (uint32_t i = 0; i < N / 16; i++) {
        UNROLL for (uint32_t j = 0; j < DH / 8; j += 2) {
            Local<uint32_t> b[4];
            load_matrices<true>(block, b, [&](uint32_t t) {
                return columns + t % 16 * PITCH<DH> + t % 32 / 16 * 8 + (16 * i * PITCH<DH> + 8 * j);
            });
            UNROLL for (uint32_t m = 0; m < STRIPS; m++) {
                multiply(block, sums.of[m][j], weights.of[m][i], b[0], b[1]);
                multiply(block, sums.of[m][j + 1], weights.of[m][i], b[2], b[3]);
            }
        }
    }
}

// The scores of keys that a query does not see become -inf, in half a strip of thread t; the tile's first key
// is u0, the block's queries have the spans seen[0 .. count].
template <uint32_t STRIPS, uint32_t N>
DEVICE void mask_row(uint32_t t, uint32_t m, uint32_t half, Sums<STRIPS, N>& scores, const Span* seen,
                     uint32_t count, uint32_t u0) {
    const uint32_t row = strip_row<STRIPS>(anew(t), m, half);
    const Span span = row < count ? seen[row] : Span{0, 0};
    // Counted from the span's start, a key before it is beyond all ends.
    const uint32_t place = anew(u0 + strip_column(t, 0, 0) - span.start);
    UNROLL for (uint32_t i = 0; i < N / 4; i++) {
        float& score = scores.of[m][i / 2][2 * half + i % 2][t];
        score = place + strip_column(0, i / 2, i) < span.end - span.start ? score : -INFINITY;
    }
}

// The scores of thread t in half a strip as weights: rounded in pairs.
template <uint32_t STRIPS, uint32_t N>
DEVICE void round_weights(uint32_t t, uint32_t m, uint32_t half, Sums<STRIPS, N>& scores,
                          Weights<STRIPS, N>& weights) {
    UNROLL for (uint32_t j = 0; j < N / 8; j++) {
        weights.of[m][j / 2][j % 2 * 2 + half][t] =
            pack(scores.of[m][j][2 * half][t], scores.of[m][j][2 * half + 1][t]);
    }
}

// factor(t, 2m + half) * sums into `count` rows of DH elements at x, `stride` elements apart and at a multiple
// of 16 bytes, by way of a tile of which each warp has read only its own rows. A barrier is behind it.
template <uint32_t DH, uint32_t STRIPS, uint32_t THREADS, class F>
DEVICE void store_rows(const Block& block, Sums<STRIPS, DH>& sums, bf16* tile, bf16* x, uint32_t count,
                       uint32_t stride, F factor) {
    block.phase([&](uint32_t thread) {
        const uint32_t t = anew(thread);
        UNROLL for (uint32_t m = 0; m < STRIPS; m++) {
            UNROLL for (uint32_t half = 0; half < 2; half++) {
                const float f = factor(t, 2 * m + half);
                bf16* const row = tile + strip_row<STRIPS>(t, m, half) * PITCH<DH> + strip_column(t, 0, 0);
                UNROLL for (uint32_t j = 0; j < DH / 8; j++) {
                    store_4(row + 8 * j, pack(sums.of[m][j][2 * half][t] * f,
                                              sums.of[m][j][2 * half + 1][t] * f));
                }
            }
        }
    });
    block.phase([&](uint32_t t) {
        for (uint32_t i = anew(t); i < BLOCK_ROWS * (DH / 8); i += THREADS) {
            const uint32_t row = i / (DH / 8), piece = i % (DH / 8) * 8;
            if (row < count) {
                copy_16(x + uint64_t(row) * stride + piece, tile + row * PITCH<DH> + piece);
            }
        }
    });
}
