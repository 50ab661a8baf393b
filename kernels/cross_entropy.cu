// Softmax cross-entropy over a vocabulary that comes in chunks, and its argmax-only form: the twin of
// calm-kernels/src/cross_entropy.rs.
//
//   loss_r = ln sum_v exp(h_r e_v) - h_r e_{t_r},   p = softmax(H E^T)
//   slope  = w (p - onehot);   dH = slope E,   dE = slope^T H
//
// The products belong to the matrix library: for the columns first .. first + columns of the vocabulary it
// writes f32 logits [R, columns] into a buffer that the next chunk uses again, so no [R, V] matrix exists.
//
//   forward    for each chunk: product, cross_entropy_chunk; then cross_entropy_loss
//   backward   for each chunk: product again, cross_entropy_slope, the two products of the gradients
//   argmax     for each chunk: product, argmax_chunk
//
// What a row carries from chunk to chunk: the largest logit so far and its id, the sum of exp(logit -
// largest) in double precision, and the logit of its target. Chunks come in ascending order, from 0. The
// result depends on the chunks (in its last bits), not on the grid.
#include "number.cuh"

// A block has this many threads, so that sums have one order.
constexpr uint32_t ROW_THREADS = 256;

// Of one row: the largest logit so far (NaNs passed over) and the lowest id that has it.
struct Largest {
    float* logit;  // [R]
    uint32_t* id;  // [R]
};

// Takes columns first .. of row r into `largest`; `before` and `now` become the row's largest logit before
// and after, in every thread.
DEVICE void take_largest(const Block& block, const float* logits, uint32_t columns, uint32_t first,
                         uint64_t r, Largest largest, Local<float>& before, Local<float>& now) {
    const float* const row = logits + r * columns;
    Local<float> here;
    Local<uint32_t> id;
    block.each([&](uint32_t t) {
        before[t] = first == 0 ? -INFINITY : largest.logit[r];
        here[t] = -INFINITY;
        for (uint32_t i = t; i < columns; i += ROW_THREADS) {
            here[t] = larger(here[t], row[i]);
        }
    });
    block_combine(block, here, [](float a, float b) { return larger(a, b); });
    block.each([&](uint32_t t) {
        id[t] = UINT32_MAX;
        for (uint32_t i = t; i < columns && id[t] == UINT32_MAX; i += ROW_THREADS) {
            id[t] = row[i] == here[t] ? first + i : UINT32_MAX;
        }
    });
    block_combine(block, id, [](uint32_t a, uint32_t b) { return a < b ? a : b; });
    block.each([&](uint32_t t) {
        now[t] = larger(before[t], here[t]);
        if (t == 0) {
            if (first == 0) {
                largest.id[r] = id[t] == UINT32_MAX ? 0 : id[t];
            } else if (here[t] > before[t]) {
                largest.id[r] = id[t];
            }
            largest.logit[r] = now[t];
        }
    });
}

DEVICE void argmax_chunk(const Block& block, const float* logits, uint32_t rows, uint32_t columns,
                         uint32_t first, Largest largest) {
    for (uint64_t r = block.index(); r < rows; r += block.grid()) {
        Local<float> before, now;
        take_largest(block, logits, columns, first, r, largest, before, now);
    }
}

// sums and at_target [R].
DEVICE void cross_entropy_chunk(const Block& block, const float* logits, const uint32_t* targets,
                                uint32_t rows, uint32_t columns, uint32_t first, Largest largest,
                                double* sums, float* at_target) {
    for (uint64_t r = block.index(); r < rows; r += block.grid()) {
        const float* const row = logits + r * columns;
        Local<float> before, now;
        take_largest(block, logits, columns, first, r, largest, before, now);
        Local<double> sum;
        block.each([&](uint32_t t) {
            // Without any number above -inf yet there is nothing to shift by.
            const float shift = now[t] == -INFINITY ? 0.0f : now[t];
            float here = 0.0f;
            for (uint32_t i = t; i < columns; i += ROW_THREADS) {
                here += exp_f32(row[i] - shift);
            }
            sum[t] = double(here);
        });
        block_sum(block, sum);
        block.each([&](uint32_t t) {
            if (t == 0) {
                const double shrink = before[t] == -INFINITY ? 0.0 : exp(double(before[t]) - double(now[t]));
                sums[r] = first == 0 ? sum[t] : sums[r] * shrink + sum[t];
                if (targets[r] >= first && targets[r] - first < columns) {
                    at_target[r] = row[targets[r] - first];
                }
            }
        });
    }
}

// losses [R] in nats (null: none), total [1] = sum of weight * loss; weights [R] or null for all 1. A row
// of weight 0 is left out whatever its logits. One block of ROW_THREADS threads.
DEVICE void cross_entropy_loss(const Block& block, const float* largest, const double* sums,
                               const float* at_target, const float* weights, float* losses, double* total,
                               uint32_t rows) {
    Local<double> all;
    block.each([&](uint32_t t) {
        all[t] = 0.0;
        for (uint32_t r = t; r < rows; r += ROW_THREADS) {
            const double loss = double(largest[r]) + log(sums[r]) - double(at_target[r]);
            const double weight = weights != nullptr ? double(weights[r]) : 1.0;
            all[t] += weight == 0.0 ? 0.0 : weight * loss;
            if (losses != nullptr) {
                losses[r] = float(loss);
            }
        }
    });
    block_sum(block, all);
    block.each([&](uint32_t t) {
        if (t == 0) {
            total[0] = all[t];
        }
    });
}

// slope [R, columns] = upstream w (p - onehot); may be the logits' own buffer in f32. upstream [1].
template <class T>
DEVICE void cross_entropy_slope(const Block& block, const float* logits, const uint32_t* targets,
                                const float* weights, const float* upstream, const float* largest,
                                const double* sums, T* slope, uint32_t rows, uint32_t columns,
                                uint32_t first) {
    for (uint64_t r = block.index(); r < rows; r += block.grid()) {
        block.each([&](uint32_t t) {
            const double weight = (weights != nullptr ? double(weights[r]) : 1.0) * double(upstream[0]);
            const float scale = float(weight / sums[r]), shift = largest[r];
            const uint32_t target = targets[r];
            for (uint32_t i = t; i < columns; i += block.threads()) {
                float value = 0.0f;
                if (weight != 0.0) {
                    value = exp_f32(logits[r * columns + i] - shift) * scale;
                    value = target == first + i ? value - float(weight) : value;
                }
                store(slope[r * columns + i], value);
            }
        });
    }
}

KERNEL(argmax_chunk,
       (const float* logits, uint32_t rows, uint32_t columns, uint32_t first, float* largest, uint32_t* id),
       argmax_chunk(block, logits, rows, columns, first, Largest{largest, id}))
KERNEL(cross_entropy_chunk,
       (const float* logits, const uint32_t* targets, uint32_t rows, uint32_t columns, uint32_t first,
        float* largest, uint32_t* id, double* sums, float* at_target),
       cross_entropy_chunk(block, logits, targets, rows, columns, first, Largest{largest, id}, sums,
                           at_target))
KERNEL(cross_entropy_loss,
       (const float* largest, const double* sums, const float* at_target, const float* weights,
        float* losses, double* total, uint32_t rows),
       cross_entropy_loss(block, largest, sums, at_target, weights, losses, total, rows))

#define CROSS_ENTROPY_SLOPE(T, suffix)                                                                  \
    KERNEL(cross_entropy_slope_##suffix,                                                                \
           (const float* logits, const uint32_t* targets, const float* weights, const float* upstream,  \
            const float* largest, const double* sums, T* slope, uint32_t rows, uint32_t columns,        \
            uint32_t first),                                                                            \
           cross_entropy_slope(block, logits, targets, weights, upstream, largest, sums, slope, rows,   \
                               columns, first))
CROSS_ENTROPY_SLOPE(float, f32)
CROSS_ENTROPY_SLOPE(bf16, bf16)
