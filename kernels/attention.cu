// Attention of queries over the keys they see, without the [T, U] matrix: the forward pass of
// calm-kernels/src/attention.rs, and of attention_inference.rs where many positions are new.
//
//   s_tu = q_t k_u scale       o_t = sum_u exp(s_tu - L_t) v_u,   L_t = ln sum_u exp s_tu
//
// One block a (row, head, tile of queries) goes through the tiles of keys that its queries see, with a
// running maximum and sum for each query. Only L is kept for the backward pass.
#include "attention.cuh"

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
        const Span* const seen = spans + b * s.queries + t0;
        const uint64_t entry = (b * s.queries + t0) * s.heads + h;
        const uint64_t key_stride = uint64_t(s.kv_heads) * DH;
        const uint64_t key_head = b * s.keys * key_stride + uint64_t(h / (s.heads / s.kv_heads)) * DH;

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
EACH_HEAD_SIZE(ATTENTION, bf16, bf16)
