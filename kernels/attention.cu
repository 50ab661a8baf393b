// Attention of queries over the keys they see, without the [T, U] matrix: the forward pass of
// calm-kernels/src/attention.rs, and of attention_inference.rs where many positions are new.
//
//   s_tu = q_t k_u scale       o_t = sum_u exp(s_tu - L_t) v_u,   L_t = ln sum_u exp s_tu
//
// One block a (row, head, tile of queries) goes through the tiles of keys that its queries see, with a
// running maximum and sum for each query. Only L is kept for the backward pass.
//
// For f32 in f32 (attention.cuh); for bf16 with bf16 products and weights rounded to bf16 (attention_matrix
// .cuh), sums and exponents in f32.
#include "attention_matrix.cuh"

// out [B, T, H, DH]; log_sums [B, T, H] or null.
template <uint32_t DH, class T>
DEVICE void attention(const Block& block, const T* q, const T* k, const T* v, const Span* spans, T* out,
                      float* log_sums, AttentionSizes s) {
    float* const queries = block.dynamic_shared();
    float* const keys = queries + ROWS * TILE_STRIDE<DH>;
    float* const values = keys + COLUMNS * TILE_STRIDE<DH>;
    float* const weights = values + COLUMNS * TILE_STRIDE<DH>;
    const uint32_t tiles = (s.queries + ROWS - 1) / ROWS;
    const uint64_t tasks = uint64_t(s.batch) * s.heads * tiles;

    for (uint64_t task = block.index(); task < tasks; task += block.grid()) {
        const uint32_t tile = uint32_t(task % tiles), h = uint32_t(task / tiles % s.heads);
        const uint64_t b = task / tiles / s.heads;
        const uint32_t t0 = tile * ROWS;
        const uint32_t count = s.queries - t0 < ROWS ? s.queries - t0 : ROWS;
        const uint32_t g = h / (s.heads / s.kv_heads);
        const Span* const seen = spans_of(s, spans, uint32_t(b), g) + t0;
        const uint64_t entry = (b * s.queries + t0) * s.heads + h;
        const uint64_t key_stride = uint64_t(s.kv_heads) * DH;
        const uint64_t key_head = b * s.keys * key_stride + uint64_t(g) * DH;

        load_tile<DH>(block, queries, ROWS, q + entry * DH, count, uint64_t(s.heads) * DH);
        // Of each of the thread's rows: span, largest score and sum so far.
        Local<Span> span[EACH];
        Local<float> largest[EACH], sum[EACH], now[EACH], part[EACH], sums[EACH * (DH / SIDE)];
        Local<float> scores[EACH * EACH];
        clear(block, sums);
        block.each([&](uint32_t t) {
            UNROLL for (uint32_t i = 0; i < EACH; i++) {
                span[i][t] = tile_row(t, i) < count ? seen[tile_row(t, i)] : Span{0, 0};
                largest[i][t] = -INFINITY;
                sum[i][t] = 0.0f;
            }
        });

        const uint32_t last = seen[count - 1].end;
        for (uint32_t u0 = seen[0].start; u0 < last; u0 += COLUMNS) {
            const uint32_t columns = last - u0 < COLUMNS ? last - u0 : COLUMNS;
            load_tile<DH>(block, keys, COLUMNS, k + key_head + u0 * key_stride, columns, key_stride);
            load_tile<DH>(block, values, COLUMNS, v + key_head + u0 * key_stride, columns, key_stride);
            tile_scores<DH>(block, queries, keys, scores);
            block.each([&](uint32_t t) {
                UNROLL for (uint32_t i = 0; i < EACH; i++) {
                    now[i][t] = largest[i][t];
                    UNROLL for (uint32_t j = 0; j < EACH; j++) {
                        if (sees(span[i][t], u0 + tile_column(t, j))) {
                            now[i][t] = larger(now[i][t], scores[i * EACH + j][t]);
                        }
                    }
                }
            });
            UNROLL for (uint32_t i = 0; i < EACH; i++) {
                lane_max<SIDE>(block, now[i]);
            }
            block.phase([&](uint32_t t) {
                UNROLL for (uint32_t i = 0; i < EACH; i++) {
                    // Nothing seen yet: nothing to shrink.
                    const float shrink = largest[i][t] == -INFINITY
                                             ? 0.0f
                                             : exp_f32((largest[i][t] - now[i][t]) * s.scale);
                    part[i][t] = 0.0f;
                    UNROLL for (uint32_t j = 0; j < EACH; j++) {
                        const uint32_t column = tile_column(t, j);
                        const float p = sees(span[i][t], u0 + column)
                                            ? exp_f32((scores[i * EACH + j][t] - now[i][t]) * s.scale)
                                            : 0.0f;
                        weights[tile_row(t, i) * WEIGHT_STRIDE + column] = p;
                        part[i][t] += p;
                    }
                    largest[i][t] = now[i][t];
                    sum[i][t] *= shrink;
                    UNROLL for (uint32_t c = 0; c < DH / SIDE; c++) {
                        sums[i * (DH / SIDE) + c][t] *= shrink;
                    }
                }
            });
            UNROLL for (uint32_t i = 0; i < EACH; i++) {
                lane_sum<SIDE>(block, part[i]);
            }
            block.each([&](uint32_t t) {
                UNROLL for (uint32_t i = 0; i < EACH; i++) {
                    sum[i][t] += part[i][t];
                }
            });
            tile_sums<DH>(block, weights, values, sums);
        }

        store_tile<DH>(block, sums, out + entry * DH, count, uint64_t(s.heads) * DH,
                       [&](uint32_t t, uint32_t i) { return 1.0f / sum[i][t]; });
        block.each([&](uint32_t t) {
            UNROLL for (uint32_t i = 0; i < EACH; i++) {
                const uint32_t row = tile_row(t, i);
                if (log_sums != nullptr && t % SIDE == 0 && row < count) {
                    log_sums[entry + uint64_t(row) * s.heads] =
                        largest[i][t] * s.scale + ln_f32(sum[i][t]);
                }
            }
        });
    }
}

// Launch with TILE_THREADS threads, any grid, and shared memory for ROWS + 2 COLUMNS rows of DH + 1 floats
// and ROWS of COLUMNS + 1: 41 KiB for DH = 64, 89 KiB for 160.
#define ATTENTION(T, suffix, dh)                                                                        \
    KERNEL(attention_##dh##_##suffix,                                                                   \
           (const T* q, const T* k, const T* v, const Span* spans, T* out, float* log_sums,             \
            AttentionSizes s),                                                                          \
           attention<dh>(block, q, k, v, spans, out, log_sums, s))
EACH_HEAD_SIZE(ATTENTION, float, f32)

// The scores of the tile of keys at u0 become weights; of each of the thread's rows: largest score and sum of
// its own columns' weights so far, by which the sums of the row shrink. `masked`: some query of the block
// does not see some key of the tile.
template <uint32_t DH, uint32_t STRIPS, uint32_t N>
DEVICE void softmax_step(const Block& block, Sums<STRIPS, N>& scores, Weights<STRIPS, N>& weights,
                         Sums<STRIPS, DH>& sums, Local<float> (&largest)[2 * STRIPS],
                         Local<float> (&sum)[2 * STRIPS], const Span* seen, uint32_t count, uint32_t u0,
                         bool masked, float scale) {
    Local<float> now[2 * STRIPS];
    block.each([&](uint32_t t) {
        UNROLL for (uint32_t r = 0; r < 2 * STRIPS; r++) {
            const uint32_t m = r / 2, half = r % 2;
            if (masked) {
                mask_row(t, m, half, scores, seen, count, u0);
            }
            now[r][t] = largest[r][t];
            UNROLL for (uint32_t i = 0; i < N / 4; i++) {
                now[r][t] = larger_number(now[r][t], scores.of[m][i / 2][2 * half + i % 2][t]);
            }
        }
    });
    UNROLL for (uint32_t r = 0; r < 2 * STRIPS; r++) {
        lane_combine<4>(block, now[r], [](float a, float b) { return larger_number(a, b); });
    }
    block.each([&](uint32_t t) {
        UNROLL for (uint32_t r = 0; r < 2 * STRIPS; r++) {
            const uint32_t m = r / 2, half = r % 2;
            const float shift = now[r][t] * scale;
            // The difference of what is taken from the exponents, rounded as there: equal largest give 1.
            const float shrink = exp2_fast(largest[r][t] * scale - shift);
            largest[r][t] = now[r][t];
            sum[r][t] *= shrink;
            UNROLL for (uint32_t i = 0; i < N / 4; i++) {
                Local<float>& score = scores.of[m][i / 2][2 * half + i % 2];
                score[t] = exp2_fast(fused(score[t], scale, -shift));
                sum[r][t] += score[t];
            }
            round_weights(t, m, half, scores, weights);
            UNROLL for (uint32_t i = 0; i < DH / 4; i++) {
                sums.of[m][i / 2][2 * half + i % 2][t] *= shrink;
            }
        }
    });
}

// The largest score before the first key: below all scores, and finite, so that -inf is as far below it.
constexpr float NOTHING_SEEN = -1e30f;

// Keys of a tile: as many as the registers allow beside DH sums a row.
template <uint32_t DH> constexpr uint32_t FORWARD_KEYS = DH == 64 ? 128 : DH < 128 ? 64 : DH == 128 ? 32 : 16;
constexpr uint32_t FORWARD_STRIPS = 2;
constexpr uint32_t FORWARD_THREADS = STRIP_THREADS<FORWARD_STRIPS>;

// out [B, T, H, DH]; log_sums [B, T, H] or null.
template <uint32_t DH>
DEVICE void attention_matrix(const Block& block, const bf16* q, const bf16* k, const bf16* v,
                             const Span* spans, bf16* out, float* log_sums, AttentionSizes s) {
    constexpr uint32_t STRIPS = FORWARD_STRIPS, N = FORWARD_KEYS<DH>, THREADS = FORWARD_THREADS;
    bf16* const queries = shared_tiles(block);
    bf16* const keys = queries + BLOCK_ROWS * PITCH<DH>;
    bf16* const values = keys + N * PITCH<DH>;
    const uint32_t tasks = s.batch * s.heads * block_tiles(s.queries);
    const uint32_t stride = s.heads * DH, key_stride = s.kv_heads * DH;

    for (uint32_t task = block.index(); task < tasks; task += block.grid()) {
        const QueryTask at = query_task<DH>(s, spans, task);
        const uint32_t count = at.count;
        const Span* const seen = at.seen;
        const uint32_t first = seen[0].start, last = seen[count - 1].end;

        // All queries see the keys common_start .. common_end.
        const uint32_t common_start = seen[count - 1].start, common_end = seen[0].end;
        Sums<STRIPS, DH> sums;
        Local<float> largest[2 * STRIPS], sum[2 * STRIPS];
        clear(block, sums);
        block.each([&](uint32_t t) {
            UNROLL for (uint32_t r = 0; r < 2 * STRIPS; r++) {
                largest[r][t] = NOTHING_SEEN;
                sum[r][t] = 0.0f;
            }
        });
        auto copy_tile = [&](bf16* to, const bf16* x, uint32_t u0) {
            copy_rows<DH, N, THREADS>(block, to, x + at.key_head + uint64_t(u0) * key_stride, last - u0,
                                      key_stride);
            copies_close(block);
        };

        copy_rows<DH, BLOCK_ROWS, THREADS>(block, queries, q + at.entry * DH, count, stride);
        copy_tile(keys, k, first);
        for (uint32_t u0 = first; u0 < last; u0 += N) {
            // The keys have come, and the values of the last tile are no longer read.
            copies_wait<0>(block);
            block.barrier();
            copy_tile(values, v, u0);
            // `masked`: some query of the block does not see some key of the tile.
            const bool masked = u0 < common_start || u0 + N > common_end;
            Sums<STRIPS, N> scores;
            clear(block, scores);
            matrix_scores<DH>(block, queries, keys, scores);
            // The values have come, and these keys are no longer read.
            copies_wait<0>(block);
            block.barrier();
            if (u0 + N < last) {
                copy_tile(keys, k, u0 + N);
            }
            Weights<STRIPS, N> weights;
            softmax_step<DH>(block, scores, weights, sums, largest, sum, seen, count, u0, masked,
                             s.scale * LOG2_E);
            matrix_sums<DH>(block, weights, values, sums);
        }
        copies_wait<0>(block);
        block.barrier();

        UNROLL for (uint32_t r = 0; r < 2 * STRIPS; r++) {
            lane_sum<4>(block, sum[r]);
        }
        const QueryTask done = query_task<DH>(s, spans, anew(task));
        store_rows<DH, STRIPS, THREADS>(block, sums, queries, out + done.entry * DH, done.count, stride,
                                        [&](uint32_t t, uint32_t r) { return 1.0f / sum[r][t]; });
        block.each([&](uint32_t t) {
            UNROLL for (uint32_t r = 0; r < 2 * STRIPS; r++) {
                const uint32_t row = strip_row<STRIPS>(anew(t), r / 2, r % 2);
                if (log_sums != nullptr && t % 4 == 0 && row < done.count) {
                    log_sums[done.entry + uint64_t(row) * s.heads] =
                        largest[r][t] * s.scale + ln_f32(sum[r][t]);
                }
            }
        });
    }
}

// Launch with FORWARD_THREADS threads, any grid (best a block for each of the batch * heads * tiles tasks),
// and shared memory for BLOCK_ROWS + 2 FORWARD_KEYS rows of DH + 8 bf16. All pointers at multiples of 16
// bytes.
#define ATTENTION_MATRIX(T, suffix, dh)                                                                 \
    KERNEL_OF(FORWARD_THREADS, 2, attention_##dh##_##suffix,                                            \
              (const T* q, const T* k, const T* v, const Span* spans, T* out, float* log_sums,          \
               AttentionSizes s),                                                                       \
              attention_matrix<dh>(block, q, k, v, spans, out, log_sums, s))
EACH_HEAD_SIZE(ATTENTION_MATRIX, bf16, bf16)
