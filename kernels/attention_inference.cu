// The twins of calm-kernels/src/attention_inference.rs.
//
// cached_attention of a few new positions over a cache, for generation, where a tile of queries would be
// almost empty. (Many new positions: attention.cu with the spans [0, C + t + 1).) Two launches: cached_parts,
// one block a (query, head, part of PART keys), leaves the part's largest score, sum and weighted values;
// cached_sum puts the parts of a query together in order. Sums depend on PART, not on the launch.
//
// branch_attention: attention.cu over the shared keys, which leaves L = ln sum exp s; then add_branches adds
// the query's own keys:
//
//   s_j = q k_j scale     L' = ln(exp L + sum_j exp s_j)     o' = exp(L - L') o + sum_j exp(s_j - L') v_j
#include "attention.cuh"

constexpr uint32_t PART = 256;
// A block has a thread a key of its part.
constexpr uint32_t PART_THREADS = PART;

DEVICE uint32_t part_count(uint32_t keys) { return (keys + PART - 1) / PART; }

// stats [B, T, H, parts, 2]: largest score, sum of exp((score - largest) scale); values [B, T, H, parts, Dh].
// Dh at most PART. Shared memory: Dh floats for the query, PART for the weights, PART for the sums.
template <class T>
DEVICE void cached_parts(const Block& block, const T* q, const T* k, const T* v, const Span* spans,
                         float* stats, float* values, AttentionSizes s, uint32_t dh) {
    float* const query = block.dynamic_shared();
    float* const weights = query + dh;
    float* const sums = weights + PART;
    const uint32_t parts = part_count(s.keys);
    const uint32_t slices = PART_THREADS / dh;
    const uint64_t tasks = uint64_t(s.batch) * s.queries * s.heads * parts;

    for (uint64_t task = block.index(); task < tasks; task += block.grid()) {
        const uint32_t part = uint32_t(task % parts);
        const uint64_t entry = task / parts;
        const uint32_t g = uint32_t(entry % s.heads) / (s.heads / s.kv_heads);
        const uint64_t b = entry / s.heads / s.queries;
        const Span span = spans_of(s, spans, uint32_t(b), g)[entry / s.heads % s.queries];
        const uint64_t stride = uint64_t(s.kv_heads) * dh;
        const uint64_t at =
            (b * s.keys + uint64_t(part) * PART) * stride + uint64_t(g) * dh;

        block.phase([&](uint32_t t) {
            if (t < dh) {
                query[t] = load(q[entry * dh + t]);
            }
        });
        // Scores: sixteen threads a key.
        for (uint32_t first = 0; first < PART; first += PART_THREADS / LANES) {
            Local<float> score;
            block.each([&](uint32_t t) {
                const uint32_t key = first + t / LANES;
                score[t] = 0.0f;
                if (sees(span, part * PART + key)) {
                    for (uint32_t d = t % LANES; d < dh; d += LANES) {
                        score[t] += query[d] * load(k[at + key * stride + d]);
                    }
                }
            });
            lane_sum<LANES>(block, score);
            block.phase([&](uint32_t t) {
                if (t % LANES == 0) {
                    weights[first + t / LANES] = score[t];
                }
            });
        }
        // Thread t now stands for key t of the part.
        Local<float> largest, sum, score;
        block.each([&](uint32_t t) {
            score[t] = weights[t];
            largest[t] = sees(span, part * PART + t) ? larger(-INFINITY, score[t]) : -INFINITY;
        });
        block_combine(block, largest, [](float a, float b) { return larger(a, b); });
        block.phase([&](uint32_t t) {
            const bool seen = sees(span, part * PART + t);
            sum[t] = seen ? exp_f32((score[t] - largest[t]) * s.scale) : 0.0f;
            weights[t] = sum[t];
        });
        block_sum(block, sum);
        // Values: a thread a dimension, the keys dealt out to `slices` groups of dh threads.
        block.phase([&](uint32_t t) {
            const uint32_t slice = t / dh, d = t % dh;
            if (slice < slices) {
                float total = 0.0f;
                for (uint32_t key = slice; key < PART; key += slices) {
                    if (sees(span, part * PART + key)) {
                        total += weights[key] * load(v[at + key * stride + d]);
                    }
                }
                sums[t] = total;
            }
        });
        block.phase([&](uint32_t t) {
            if (t < dh) {
                float total = sums[t];
                for (uint32_t slice = 1; slice < slices; slice++) {
                    total += sums[slice * dh + t];
                }
                values[task * dh + t] = total;
            }
            if (t == 0) {
                stats[2 * task] = largest[t];
                stats[2 * task + 1] = sum[t];
            }
        });
    }
}

// out [B, T, H, Dh] from what cached_parts left; entries = B T H.
template <class T>
DEVICE void cached_sum(const Block& block, const float* stats, const float* values, T* out, uint64_t entries,
                       uint32_t keys, uint32_t dh, float scale) {
    const uint32_t parts = part_count(keys);
    each_cell(block, entries, dh, [&](uint64_t entry, uint32_t d) {
        const float* const stat = stats + entry * parts * 2;
        float largest = -INFINITY;
        for (uint32_t part = 0; part < parts; part++) {
            largest = larger(largest, stat[2 * part]);
        }
        float sum = 0.0f, value = 0.0f;
        for (uint32_t part = 0; part < parts; part++) {
            // A part of which nothing is seen has the sum 0; a NaN has to come out.
            if (stat[2 * part + 1] != 0.0f) {
                const float shrink = exp_f32((stat[2 * part] - largest) * scale);
                sum += stat[2 * part + 1] * shrink;
                value += values[(entry * parts + part) * dh + d] * shrink;
            }
        }
        store(out[entry * dh + d], value / sum);
    });
}

// Keys and values that one launch adds, [B, S, Hkv, Dh] each.
constexpr uint32_t BRANCHES = 8;
struct Branches {
    const void* keys[BRANCHES];
    const void* values[BRANCHES];
    uint32_t count;
};

// out [entries, Dh] and log sums [entries] of (b, s, h) with the keys and values at (b, s) of each branch;
// entries = B S H. Left in out, and in `next` unless it is null. Sixteen threads an entry.
template <class T>
DEVICE void add_branches(const Block& block, const T* q, Branches branches, const float* log_sums, float* next,
                         T* out, uint64_t entries, uint32_t group, uint32_t dh, float scale) {
    each_row_batch(block, entries, [&](uint64_t first) {
        Local<float> scores[BRANCHES];
        UNROLL for (uint32_t j = 0; j < BRANCHES; j++) {
            block.each([&](uint32_t t) {
                const uint64_t entry = lane_row(first, t);
                scores[j][t] = 0.0f;
                if (entry < entries && j < branches.count) {
                    const T* const key = static_cast<const T*>(branches.keys[j]) + entry / group * dh;
                    for (uint32_t d = t % LANES; d < dh; d += LANES) {
                        scores[j][t] += load(q[entry * dh + d]) * load(key[d]);
                    }
                }
            });
            lane_sum<LANES>(block, scores[j]);
        }
        block.each([&](uint32_t t) {
            const uint64_t entry = lane_row(first, t);
            if (entry >= entries) {
                return;
            }
            float largest = log_sums[entry];
            UNROLL for (uint32_t j = 0; j < BRANCHES; j++) {
                scores[j][t] *= scale;
                largest = j < branches.count ? larger(largest, scores[j][t]) : largest;
            }
            const float before = exp_f32(log_sums[entry] - largest);
            float sum = before;
            UNROLL for (uint32_t j = 0; j < BRANCHES; j++) {
                scores[j][t] = j < branches.count ? exp_f32(scores[j][t] - largest) : 0.0f;
                sum += scores[j][t];
            }
            for (uint32_t d = t % LANES; d < dh; d += LANES) {
                float value = before * load(out[entry * dh + d]);
                UNROLL for (uint32_t j = 0; j < BRANCHES; j++) {
                    if (j < branches.count) {
                        const T* const values = static_cast<const T*>(branches.values[j]);
                        value += scores[j][t] * load(values[entry / group * dh + d]);
                    }
                }
                store(out[entry * dh + d], value / sum);
            }
            if (next != nullptr && t % LANES == 0) {
                next[entry] = largest + ln_f32(sum);
            }
        });
    });
}

// Launch cached_parts with PART_THREADS threads and dh + 2 PART floats of shared memory, any grid.
#define CACHED(T, suffix)                                                                               \
    KERNEL(cached_parts_##suffix,                                                                       \
           (const T* q, const T* k, const T* v, const Span* spans, float* stats, float* values,         \
            AttentionSizes s, uint32_t dh),                                                             \
           cached_parts(block, q, k, v, spans, stats, values, s, dh))                                   \
    KERNEL(cached_sum_##suffix,                                                                         \
           (const float* stats, const float* values, T* out, uint64_t entries, uint32_t keys,           \
            uint32_t dh, float scale),                                                                  \
           cached_sum(block, stats, values, out, entries, keys, dh, scale))                             \
    KERNEL(add_branches_##suffix,                                                                       \
           (const T* q, Branches branches, const float* log_sums, float* next, T* out,                  \
            uint64_t entries, uint32_t group, uint32_t dh, float scale),                                \
           add_branches(block, q, branches, log_sums, next, out, entries, group, dh, scale))
CACHED(float, f32)
CACHED(bf16, bf16)
