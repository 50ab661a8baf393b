// The backward pass of attention.cu, from q, k, v, the output o, its gradient do and L:
//
//   p_tu = exp(s_tu - L_t)   dp_tu = do_t v_u   ds_tu = p_tu (dp_tu - do_t o_t) scale
//   dv_u = sum_t p_tu do_t   dq_t = sum_u ds_tu k_u   dk_u = sum_t ds_tu q_t
//
// Three launches: attention_delta leaves do_t o_t; attention_queries computes dq, a block a tile of queries;
// attention_keys computes dk and dv, a block a tile of keys that goes through the query heads of its key
// head in order. Both compute the scores again; nothing is added by several blocks, so that the sums have
// one order. For bf16 the products are bf16 products (attention_matrix.cuh), p and ds rounded to bf16.
#include "attention_matrix.cuh"
#include "rows.cuh"

// Threads of attention_delta that share a row.
constexpr uint32_t DELTA_THREADS = 4;

// delta [entries] = do o, rows of DH elements: a thread has every fourth run of 8 of them.
template <class T>
DEVICE void attention_delta(const Block& block, const T* dout, const T* out, float* delta, uint64_t entries,
                            uint32_t dh) {
    const bool whole = dh % EIGHT == 0 && at_runs(dout, out);
    each_row_batch<DELTA_THREADS>(block, entries, [&](uint64_t first) {
        Local<float> dot;
        block.each([&](uint32_t t) {
            const uint64_t row = lane_row<DELTA_THREADS>(first, t);
            const uint32_t width = row < entries ? dh : 0;
            const T *const a = dout + row * dh, *const b = out + row * dh;
            dot[t] = 0.0f;
            for (uint32_t i = t % DELTA_THREADS * EIGHT; i < width; i += DELTA_THREADS * EIGHT) {
                float u[EIGHT], v[EIGHT];
                if (whole) {
                    read_eight<true>(a + i, EIGHT, u);
                    read_eight<true>(b + i, EIGHT, v);
                } else {
                    read_eight<false>(a + i, dh - i, u);
                    read_eight<false>(b + i, dh - i, v);
                }
                UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                    u[j] *= v[j];
                }
                dot[t] += sum_of_eight(u);
            }
        });
        lane_sum<DELTA_THREADS>(block, dot);
        block.each([&](uint32_t t) {
            const uint64_t row = lane_row<DELTA_THREADS>(first, t);
            if (t % DELTA_THREADS == 0 && row < entries) {
                delta[row] = dot[t];
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
        const uint32_t g = h / (s.heads / s.kv_heads);
        const Span* const seen = spans_of(s, spans, uint32_t(b), g) + t0;
        const uint64_t entry = (b * s.queries + t0) * s.heads + h;
        const uint64_t key_stride = uint64_t(s.kv_heads) * DH;
        const uint64_t key_head = b * s.keys * key_stride + uint64_t(g) * DH;

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
                const Span* const seen = spans_of(s, spans, uint32_t(b), g) + t0;
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

// Strips of a warp, and columns of a tile: as many as the registers allow beside the sums.
template <uint32_t DH> constexpr uint32_t QUERIES_STRIPS = DH < 128 ? 2 : 1;
template <uint32_t DH> constexpr uint32_t QUERIES_COLUMNS = DH == 64 || DH == 128 ? 64 : 32;
template <uint32_t DH> constexpr uint32_t KEYS_STRIPS = DH <= 64 ? 2 : 1;
template <uint32_t DH> constexpr uint32_t KEYS_COLUMNS = DH == 96 ? 64 : 32;

// scores become p = 2^(score scale - log_sum), and dp, from which the mean of its row is taken already,
// becomes ds / scale = p dp; of half a strip of thread t. Element i of a row has log_sum(i).
template <uint32_t STRIPS, uint32_t N, class F>
DEVICE void slopes(uint32_t t, uint32_t m, uint32_t half, Sums<STRIPS, N>& scores, Sums<STRIPS, N>& dp,
                   float scale, F log_sum) {
    UNROLL for (uint32_t i = 0; i < N / 4; i++) {
        float& score = scores.of[m][i / 2][2 * half + i % 2][t];
        score = exp2_fast(fused(score, scale, -log_sum(i)));
        dp.of[m][i / 2][2 * half + i % 2][t] *= score;
    }
}

// dq [B, T, H, DH].
template <uint32_t DH>
DEVICE void matrix_queries(const Block& block, const bf16* q, const bf16* k, const bf16* v,
                           const bf16* dout, const Span* spans, const float* log_sums, const float* delta,
                           bf16* dq, AttentionSizes s) {
    constexpr uint32_t STRIPS = QUERIES_STRIPS<DH>, N = QUERIES_COLUMNS<DH>, THREADS = STRIP_THREADS<STRIPS>;
    constexpr uint32_t TILE = N * PITCH<DH>;
    bf16* const queries = shared_tiles(block);
    bf16* const grads = queries + BLOCK_ROWS * PITCH<DH>;
    // Two tiles of keys and two of values: one is read while the next one comes.
    bf16* const keys = grads + BLOCK_ROWS * PITCH<DH>;
    bf16* const values = keys + 2 * TILE;
    const uint32_t tasks = s.batch * s.heads * block_tiles(s.queries);
    const uint32_t stride = s.heads * DH, key_stride = s.kv_heads * DH;

    for (uint32_t task = block.index(); task < tasks; task += block.grid()) {
        const QueryTask at = query_task<DH>(s, spans, task);
        const uint32_t count = at.count;
        const Span* const seen = at.seen;
        const uint32_t first = seen[0].start, last = seen[count - 1].end;
        const uint32_t common_start = seen[count - 1].start, common_end = seen[0].end;
        auto copy_tile = [&](uint32_t u0, uint32_t place) {
            const uint64_t from = at.key_head + uint64_t(u0) * key_stride;
            copy_rows<DH, N, THREADS>(block, keys + place * TILE, k + from, last - u0, key_stride);
            copy_rows<DH, N, THREADS>(block, values + place * TILE, v + from, last - u0, key_stride);
        };

        copy_rows<DH, BLOCK_ROWS, THREADS>(block, queries, q + at.entry * DH, count, stride);
        copy_rows<DH, BLOCK_ROWS, THREADS>(block, grads, dout + at.entry * DH, count, stride);
        copy_tile(first, 0);
        copies_close(block);
        Sums<STRIPS, DH> sums;
        // Of each of the thread's rows: the log sum in base 2, and do o.
        Local<float> log_sum[2 * STRIPS], mean[2 * STRIPS];
        clear(block, sums);
        block.each([&](uint32_t t) {
            UNROLL for (uint32_t r = 0; r < 2 * STRIPS; r++) {
                const uint32_t row = strip_row<STRIPS>(anew(t), r / 2, r % 2);
                const uint64_t entry = at.entry + uint64_t(row) * s.heads;
                log_sum[r][t] = row < count ? log_sums[entry] * LOG2_E : 0.0f;
                mean[r][t] = row < count ? delta[entry] : 0.0f;
            }
        });

        uint32_t place = 0;
        for (uint32_t u0 = first; u0 < last; u0 += N) {
            // This tile has come, and the place of the next one is no longer read.
            copies_wait<0>(block);
            block.barrier();
            if (u0 + N < last) {
                copy_tile(u0 + N, 1 - place);
                copies_close(block);
            }
            const bool masked = u0 < common_start || u0 + N > common_end;
            Sums<STRIPS, N> scores, dp;
            clear(block, scores);
            block.each([&](uint32_t t) {
                UNROLL for (uint32_t i = 0; i < STRIPS * N / 2; i++) {
                    dp.of[i / (N / 2)][i / 4 % (N / 8)][i % 4][t] = -mean[i / (N / 2) * 2 + i % 4 / 2][t];
                }
            });
            matrix_scores<DH>(block, queries, keys + place * TILE, scores);
            matrix_scores<DH>(block, grads, values + place * TILE, dp);
            Weights<STRIPS, N> weights;
            block.each([&](uint32_t t) {
                UNROLL for (uint32_t r = 0; r < 2 * STRIPS; r++) {
                    const uint32_t m = r / 2, half = r % 2;
                    if (masked) {
                        mask_row(t, m, half, scores, seen, count, u0);
                    }
                    slopes(t, m, half, scores, dp, s.scale * LOG2_E, [&](uint32_t) { return log_sum[r][t]; });
                    round_weights(t, m, half, dp, weights);
                }
            });
            matrix_sums<DH>(block, weights, keys + place * TILE, sums);
            place = 1 - place;
        }
        copies_wait<0>(block);
        block.barrier();

        const QueryTask done = query_task<DH>(s, spans, anew(task));
        store_rows<DH, STRIPS, THREADS>(block, sums, queries, dq + done.entry * DH, done.count, stride,
                                        [&](uint32_t, uint32_t) { return s.scale; });
    }
}

// Which tiles of N queries see keys of u0 .. u0 + count: first .. end; all of whose queries see all of u0 ..
// u0 + BLOCK_ROWS: full_first .. full_end. As spans do not decrease, each is the number of tiles of which
// something holds, of at most 65535; the threads count together.
struct QueryTiles {
    uint32_t first, end, full_first, full_end;
};

template <uint32_t N>
DEVICE QueryTiles query_tiles(const Block& block, const Span* spans, uint32_t queries, uint32_t u0,
                              uint32_t count) {
    Local<uint64_t> counts;
    block.each([&](uint32_t t) {
        counts[t] = 0;
        for (uint32_t first = t * N; first < queries; first += block.threads() * N) {
            const uint32_t last = queries - first < N ? queries - 1 : first + N - 1;
            const Span low = spans[first], high = spans[last];
            counts[t] += uint64_t(high.end <= u0) + (uint64_t(low.start < u0 + count) << 16) +
                         (uint64_t(low.end < u0 + BLOCK_ROWS) << 32) +
                         (uint64_t(high.start <= u0 && last - first == N - 1) << 48);
        }
    });
    block_sum(block, counts);
    // The same in every thread.
    const uint64_t all = counts[0];
    return {uint32_t(all) & 0xffffu, uint32_t(all >> 16) & 0xffffu, uint32_t(all >> 32) & 0xffffu,
            uint32_t(all >> 48)};
}

// One task of matrix_keys: BLOCK_ROWS keys of one key head.
struct KeyTask {
    uint32_t b;
    uint32_t g;
    uint32_t u0;
    uint32_t count;
    // Of the first key, in k and v.
    uint64_t at;
};

template <uint32_t DH> DEVICE KeyTask key_task(const AttentionSizes& s, uint32_t task) {
    const uint32_t tiles = block_tiles(s.keys);
    const uint32_t u0 = task % tiles * BLOCK_ROWS, g = task / tiles % s.kv_heads;
    const uint32_t b = task / tiles / s.kv_heads;
    return {b, g, u0, s.keys - u0 < BLOCK_ROWS ? s.keys - u0 : BLOCK_ROWS,
            uint64_t(b * s.keys + u0) * (s.kv_heads * DH) + g * DH};
}

// dk and dv [B, U, Hkv, DH]. Keys are the rows here: p and ds come transposed out of the products, as the
// sums over queries need them.
template <uint32_t DH>
DEVICE void matrix_keys(const Block& block, const bf16* q, const bf16* k, const bf16* v, const bf16* dout,
                        const Span* spans, const float* log_sums, const float* delta, bf16* dk, bf16* dv,
                        AttentionSizes s) {
    constexpr uint32_t STRIPS = KEYS_STRIPS<DH>, N = KEYS_COLUMNS<DH>, THREADS = STRIP_THREADS<STRIPS>;
    constexpr uint32_t TILE = N * PITCH<DH>;
    bf16* const keys = shared_tiles(block);
    bf16* const values = keys + BLOCK_ROWS * PITCH<DH>;
    // Two tiles of each: one is read while the next one comes.
    bf16* const queries = values + BLOCK_ROWS * PITCH<DH>;
    bf16* const grads = queries + 2 * TILE;
    float* const numbers = reinterpret_cast<float*>(grads + 2 * TILE);
    const uint32_t tasks = s.batch * s.kv_heads * block_tiles(s.keys);
    const uint32_t group = s.heads / s.kv_heads;
    const uint32_t stride = s.heads * DH, key_stride = s.kv_heads * DH;

    for (uint32_t task = block.index(); task < tasks; task += block.grid()) {
        const KeyTask at = key_task<DH>(s, task);
        const Span* const seen = spans_of(s, spans, at.b, at.g);
        copy_rows<DH, BLOCK_ROWS, THREADS>(block, keys, k + at.at, at.count, key_stride);
        copy_rows<DH, BLOCK_ROWS, THREADS>(block, values, v + at.at, at.count, key_stride);
        copies_close(block);
        const QueryTiles tiles = query_tiles<N>(block, seen, s.queries, at.u0, at.count);
        // The heads of the group one after the other, and the tiles of each.
        auto copy_tile = [&](uint32_t h, uint32_t tile, uint32_t place) {
            const uint32_t t0 = tile * N, row = at.b * s.queries + t0;
            const uint64_t entry = uint64_t(row) * s.heads + (at.g * group + h);
            copy_rows<DH, N, THREADS>(block, queries + place * TILE, q + entry * DH, s.queries - t0, stride);
            copy_rows<DH, N, THREADS>(block, grads + place * TILE, dout + entry * DH, s.queries - t0, stride);
            float* const to = numbers + place * (2 * N);
            copy_numbers<N, THREADS>(block, to, log_sums + entry, s.queries - t0, s.heads);
            copy_numbers<N, THREADS>(block, to + N, delta + entry, s.queries - t0, s.heads);
            copies_close(block);
        };
        Sums<STRIPS, DH> key_sums, value_sums;
        clear(block, key_sums);
        clear(block, value_sums);
        if (tiles.first < tiles.end) {
            copy_tile(0, tiles.first, 0);
        }

        uint32_t h = 0, tile = tiles.first, place = 0;
        while (tile < tiles.end && h < group) {
            const bool masked = tile < tiles.full_first || tile >= tiles.full_end;
            const uint32_t t0 = tile * N;
            tile++;
            if (tile == tiles.end) {
                tile = tiles.first;
                h++;
            }
            // This tile has come, and the place of the next one is no longer read.
            copies_wait<0>(block);
            block.barrier();
            if (h < group) {
                copy_tile(h, tile, 1 - place);
            }
            const float* const of_query = numbers + place * (2 * N);
            Sums<STRIPS, N> scores, dp;
            clear(block, scores);
            block.each([&](uint32_t t) {
                UNROLL for (uint32_t i = 0; i < N / 4; i++) {
                    const float mean = of_query[N + strip_column(t, i / 2, i)];
                    UNROLL for (uint32_t m = 0; m < STRIPS; m++) {
                        dp.of[m][i / 2][i % 2][t] = -mean;
                        dp.of[m][i / 2][2 + i % 2][t] = -mean;
                    }
                }
            });
            matrix_scores<DH>(block, keys, queries + place * TILE, scores);
            matrix_scores<DH>(block, values, grads + place * TILE, dp);
            Weights<STRIPS, N> p, ds;
            block.each([&](uint32_t t) {
                if (masked) {
                    UNROLL for (uint32_t i = 0; i < N / 4; i++) {
                        const uint32_t query = t0 + strip_column(anew(t), i / 2, i);
                        const Span span = query < s.queries ? seen[query] : Span{0, 0};
                        UNROLL for (uint32_t r = 0; r < 2 * STRIPS; r++) {
                            float& score = scores.of[r / 2][i / 2][r % 2 * 2 + i % 2][t];
                            const uint32_t key = at.u0 + strip_row<STRIPS>(t, r / 2, r % 2);
                            score = sees(span, key) ? score : -INFINITY;
                        }
                    }
                }
                UNROLL for (uint32_t r = 0; r < 2 * STRIPS; r++) {
                    slopes(t, r / 2, r % 2, scores, dp, s.scale * LOG2_E, [&](uint32_t i) {
                        return of_query[strip_column(t, i / 2, i)] * LOG2_E;
                    });
                    round_weights(t, r / 2, r % 2, scores, p);
                    round_weights(t, r / 2, r % 2, dp, ds);
                }
            });
            matrix_sums<DH>(block, p, grads + place * TILE, value_sums);
            matrix_sums<DH>(block, ds, queries + place * TILE, key_sums);
            place = 1 - place;
        }
        copies_wait<0>(block);
        block.barrier();

        const KeyTask done = key_task<DH>(s, anew(task));
        store_rows<DH, STRIPS, THREADS>(block, value_sums, values, dv + done.at, done.count, key_stride,
                                        [](uint32_t, uint32_t) { return 1.0f; });
        store_rows<DH, STRIPS, THREADS>(block, key_sums, keys, dk + done.at, done.count, key_stride,
                                        [&](uint32_t, uint32_t) { return s.scale; });
    }
}

// Launch both with STRIP_THREADS<strips> threads, any grid (best a block a task: batch * heads * tiles of
// queries, batch * kv_heads * tiles of keys), and shared memory for 2 BLOCK_ROWS + 4 columns rows of DH + 8
// bf16; for the keys also 4 columns floats. All pointers of bf16 at multiples of 16 bytes.
#define ATTENTION_MATRIX_BACKWARD(T, suffix, dh)                                                        \
    KERNEL_OF(STRIP_THREADS<QUERIES_STRIPS<dh>>, QUERIES_STRIPS<dh>, attention_queries_##dh##_##suffix,   \
              (const T* q, const T* k, const T* v, const T* dout, const Span* spans,                    \
               const float* log_sums, const float* delta, T* dq, AttentionSizes s),                     \
              matrix_queries<dh>(block, q, k, v, dout, spans, log_sums, delta, dq, s))                  \
    KERNEL_OF(STRIP_THREADS<KEYS_STRIPS<dh>>, KEYS_STRIPS<dh>, attention_keys_##dh##_##suffix,            \
              (const T* q, const T* k, const T* v, const T* dout, const Span* spans,                    \
               const float* log_sums, const float* delta, T* dk, T* dv, AttentionSizes s),              \
              matrix_keys<dh>(block, q, k, v, dout, spans, log_sums, delta, dk, dv, s))
EACH_HEAD_SIZE(ATTENTION_MATRIX_BACKWARD, bf16, bf16)

#define ATTENTION_DELTA(T, suffix)                                                                      \
    KERNEL(attention_delta_##suffix,                                                                    \
           (const T* dout, const T* out, float* delta, uint64_t entries, uint32_t dh),                  \
           attention_delta(block, dout, out, delta, entries, dh))
ATTENTION_DELTA(float, f32)
ATTENTION_DELTA(bf16, bf16)
