// The backward pass of attention.cu, from q, k, v, the output o, its gradient do and L:
//
//   p_tu = exp(s_tu - L_t)   dp_tu = do_t v_u   ds_tu = p_tu (dp_tu - do_t o_t) scale
//   dv_u = sum_t p_tu do_t   dq_t = sum_u ds_tu k_u   dk_u = sum_t ds_tu q_t
//
// Three launches: attention_delta leaves do_t o_t; attention_queries computes dq, a block a tile of queries;
// attention_keys computes dk and dv, a block a tile of keys that goes through the query heads of its key
// head in order. Both compute the scores again; nothing is added by several blocks, so that the sums have
// one order.
#include "attention.cuh"

// delta [entries] = do o, rows of DH elements; sixteen threads a row.
template <class T>
DEVICE void attention_delta(const Block& block, const T* dout, const T* out, float* delta, uint64_t entries,
                            uint32_t dh) {
    each_row_batch(block, entries, [&](uint64_t first) {
        Local<float> dot;
        block.each([&](uint32_t t) {
            const uint64_t row = lane_row(first, t);
            dot[t] = 0.0f;
            for (uint32_t i = t % LANES; row < entries && i < dh; i += LANES) {
                dot[t] += load(dout[row * dh + i]) * load(out[row * dh + i]);
            }
        });
        lane_sum<LANES>(block, dot);
        block.each([&](uint32_t t) {
            if (t % LANES == 0 && lane_row(first, t) < entries) {
                delta[lane_row(first, t)] = dot[t];
            }
        });
    });
}

struct Slope {
    float p;
    float ds;
};

// p and ds of one pair from its score and dp; 0 where the query does not see the key.
DEVICE Slope slope_of(bool seen, float score, float dp, float log_sum, float delta, float scale) {
    if (!seen) {
        return {0.0f, 0.0f};
    }
    const float p = exp_f32(score * scale - log_sum);
    return {p, p * (dp - delta) * scale};
}

// dq [B, T, H, DH].
template <uint32_t DH, class T>
DEVICE void attention_queries(const Block& block, const T* q, const T* k, const T* v, const T* dout,
                              const Span* spans, const float* log_sums, const float* delta, T* dq,
                              AttentionSizes s) {
    float* const queries = block.dynamic_shared();
    float* const grads = queries + ROWS * TILE_STRIDE<DH>;
    float* const keys = grads + ROWS * TILE_STRIDE<DH>;
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
        load_tile<DH>(block, grads, ROWS, dout + entry * DH, count, uint64_t(s.heads) * DH);
        Local<Span> span[EACH];
        Local<float> log_sum[EACH], mean[EACH], sums[EACH * (DH / SIDE)];
        Local<float> scores[EACH * EACH], dp[EACH * EACH];
        clear(block, sums);
        block.each([&](uint32_t t) {
            UNROLL for (uint32_t i = 0; i < EACH; i++) {
                const uint32_t row = tile_row(t, i);
                const uint64_t at = entry + uint64_t(row) * s.heads;
                span[i][t] = row < count ? seen[row] : Span{0, 0};
                log_sum[i][t] = row < count ? log_sums[at] : 0.0f;
                mean[i][t] = row < count ? delta[at] : 0.0f;
            }
        });

        const uint32_t last = seen[count - 1].end;
        for (uint32_t u0 = seen[0].start; u0 < last; u0 += COLUMNS) {
            const uint32_t columns = last - u0 < COLUMNS ? last - u0 : COLUMNS;
            load_tile<DH>(block, keys, COLUMNS, k + key_head + u0 * key_stride, columns, key_stride);
            load_tile<DH>(block, values, COLUMNS, v + key_head + u0 * key_stride, columns, key_stride);
            tile_scores<DH>(block, queries, keys, scores);
            tile_scores<DH>(block, grads, values, dp);
            block.phase([&](uint32_t t) {
                UNROLL for (uint32_t i = 0; i < EACH * EACH; i++) {
                    const uint32_t row = i / EACH, column = tile_column(t, i % EACH);
                    weights[tile_row(t, row) * WEIGHT_STRIDE + column] =
                        slope_of(sees(span[row][t], u0 + column), scores[i][t], dp[i][t], log_sum[row][t],
                                 mean[row][t], s.scale)
                            .ds;
                }
            });
            tile_sums<DH>(block, weights, keys, sums);
        }
        store_tile<DH>(block, sums, dq + entry * DH, count, uint64_t(s.heads) * DH,
                       [](uint32_t, uint32_t) { return 1.0f; });
    }
}

// dk and dv [B, U, Hkv, DH].
template <uint32_t DH, class T>
DEVICE void attention_keys(const Block& block, const T* q, const T* k, const T* v, const T* dout,
                           const Span* spans, const float* log_sums, const float* delta, T* dk, T* dv,
                           AttentionSizes s) {
    float* const keys = block.dynamic_shared();
    float* const values = keys + ROWS * TILE_STRIDE<DH>;
    float* const queries = values + ROWS * TILE_STRIDE<DH>;
    float* const grads = queries + COLUMNS * TILE_STRIDE<DH>;
    float* const weights = grads + COLUMNS * TILE_STRIDE<DH>;
    const uint32_t tiles = (s.keys + ROWS - 1) / ROWS;
    const uint32_t group = s.heads / s.kv_heads;
    const uint64_t tasks = uint64_t(s.batch) * s.kv_heads * tiles;

    for (uint64_t task = block.index(); task < tasks; task += block.grid()) {
        const uint32_t tile = uint32_t(task % tiles), g = uint32_t(task / tiles % s.kv_heads);
        const uint64_t b = task / tiles / s.kv_heads;
        const uint32_t u0 = tile * ROWS;
        const uint32_t count = s.keys - u0 < ROWS ? s.keys - u0 : ROWS;
        const uint64_t at = ((b * s.keys + u0) * s.kv_heads + g) * DH;
        const uint64_t stride = uint64_t(s.kv_heads) * DH;
        load_tile<DH>(block, keys, ROWS, k + at, count, stride);
        load_tile<DH>(block, values, ROWS, v + at, count, stride);
        Local<float> key_sums[EACH * (DH / SIDE)], value_sums[EACH * (DH / SIDE)];
        Local<float> scores[EACH * EACH], dp[EACH * EACH];
        clear(block, key_sums);
        clear(block, value_sums);

        for (uint32_t h = g * group; h < (g + 1) * group; h++) {
            for (uint32_t t0 = 0; t0 < s.queries; t0 += COLUMNS) {
                const uint32_t columns = s.queries - t0 < COLUMNS ? s.queries - t0 : COLUMNS;
                const Span* const seen = spans + b * s.queries + t0;
                if (seen[columns - 1].end <= u0 || seen[0].start >= u0 + count) {
                    continue;
                }
                const uint64_t entry = (b * s.queries + t0) * s.heads + h;
                const uint64_t query_stride = uint64_t(s.heads) * DH;
                load_tile<DH>(block, queries, COLUMNS, q + entry * DH, columns, query_stride);
                load_tile<DH>(block, grads, COLUMNS, dout + entry * DH, columns, query_stride);
                tile_scores<DH>(block, keys, queries, scores);
                tile_scores<DH>(block, values, grads, dp);
                // p for the values; ds stays aside in dp.
                block.phase([&](uint32_t t) {
                    UNROLL for (uint32_t j = 0; j < EACH; j++) {
                        const uint32_t column = tile_column(t, j);
                        const uint64_t of = entry + uint64_t(column) * s.heads;
                        const bool real = column < columns;
                        const Span span = real ? seen[column] : Span{0, 0};
                        const float log_sum = real ? log_sums[of] : 0.0f;
                        const float mean = real ? delta[of] : 0.0f;
                        UNROLL for (uint32_t i = 0; i < EACH; i++) {
                            const uint32_t row = tile_row(t, i);
                            const Slope slope = slope_of(sees(span, u0 + row), scores[i * EACH + j][t],
                                                         dp[i * EACH + j][t], log_sum, mean, s.scale);
                            weights[row * WEIGHT_STRIDE + column] = slope.p;
                            dp[i * EACH + j][t] = slope.ds;
                        }
                    }
                });
                tile_sums<DH>(block, weights, grads, value_sums);
                block.phase([&](uint32_t t) {
                    UNROLL for (uint32_t i = 0; i < EACH * EACH; i++) {
                        weights[tile_row(t, i / EACH) * WEIGHT_STRIDE + tile_column(t, i % EACH)] = dp[i][t];
                    }
                });
                tile_sums<DH>(block, weights, queries, key_sums);
            }
        }
        auto one = [](uint32_t, uint32_t) { return 1.0f; };
        store_tile<DH>(block, key_sums, dk + at, count, stride, one);
        store_tile<DH>(block, value_sums, dv + at, count, stride, one);
    }
}

// Launch the last two with TILE_THREADS threads, any grid, and shared memory for 2 ROWS + 2 COLUMNS rows of
// DH + 1 floats and ROWS of COLUMNS + 1: 57 KiB for DH = 64, 129 KiB for 160.
#define ATTENTION_BACKWARD(T, suffix, dh)                                                               \
    KERNEL(attention_queries_##dh##_##suffix,                                                           \
           (const T* q, const T* k, const T* v, const T* dout, const Span* spans,                       \
            const float* log_sums, const float* delta, T* dq, AttentionSizes s),                        \
           attention_queries<dh>(block, q, k, v, dout, spans, log_sums, delta, dq, s))                  \
    KERNEL(attention_keys_##dh##_##suffix,                                                              \
           (const T* q, const T* k, const T* v, const T* dout, const Span* spans,                       \
            const float* log_sums, const float* delta, T* dk, T* dv, AttentionSizes s),                 \
           attention_keys<dh>(block, q, k, v, dout, spans, log_sums, delta, dk, dv, s))
EACH_HEAD_SIZE(ATTENTION_BACKWARD, float, f32)
EACH_HEAD_SIZE(ATTENTION_BACKWARD, bf16, bf16)

#define ATTENTION_DELTA(T, suffix)                                                                      \
    KERNEL(attention_delta_##suffix,                                                                    \
           (const T* dout, const T* out, float* delta, uint64_t entries, uint32_t dh),                  \
           attention_delta(block, dout, out, delta, entries, dh))
ATTENTION_DELTA(float, f32)
ATTENTION_DELTA(bf16, bf16)
