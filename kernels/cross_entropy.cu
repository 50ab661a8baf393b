// Softmax cross-entropy over a vocabulary that comes in chunks, and its argmax-only form: the twin of
// calm-kernels/src/cross_entropy.rs.
//
//   loss_r = ln sum_v exp(h_r e_v) - h_r e_{t_r},   p = softmax(H E^T)
//   slope  = w (p - onehot);   dH = slope E,   dE = slope^T H
//
// The products belong to the matrix library. It writes f32 logits of a block of rows, for the columns first ..
// first + columns of the vocabulary, into a buffer that the next block uses again, so no [R, V] matrix exists.
//
//   loss alone          for each chunk of columns: product, cross_entropy_chunk; then cross_entropy_loss
//   loss and gradients  for each block of rows: product with all columns, cross_entropy_chunk,
//                       cross_entropy_slope, the two products of the gradients; then cross_entropy_loss
//   backward            the gradients times the upstream gradient
//   argmax              for each chunk of columns: product, argmax_chunk
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

// A thread reads this many neighbouring logits of a row at once, and so many of these before it uses them.
constexpr uint32_t FOUR = 4;
constexpr uint32_t AHEAD = 2;

// Takes columns first .. of row r into `largest`, reading each logit once; `before`, `here` and `now` become the
// row's largest logit before, in this chunk, and after, and `sum` the sum of exp(logit - here) over the
// chunk (0 unless WITH_SUM), in every thread.
template <bool WITH_SUM>
DEVICE void take_chunk(const Block& block, const float* logits, uint32_t columns, uint32_t first, uint64_t r,
                       Largest largest, Local<float>& before, Local<float>& here, Local<float>& now,
                       Local<double>& sum) {
    const float* const row = logits + r * columns;
    const bool whole = columns % FOUR == 0 && at_runs(logits);
    Local<float> own, partial;
    Local<uint32_t> id;
    block.each([&](uint32_t t) {
        before[t] = first == 0 ? -INFINITY : largest.logit[r];
        // The thread's largest logit, its lowest id, and the sum of exp(logit - largest) over the thread's logits.
        float top = -INFINITY, total = 0.0f;
        uint32_t at_top = UINT32_MAX;
        for (uint32_t i = FOUR * t; i < columns; i += AHEAD * FOUR * ROW_THREADS) {
            float v[AHEAD][FOUR];
            UNROLL for (uint32_t a = 0; a < AHEAD; a++) {
                const uint32_t at = i + a * FOUR * ROW_THREADS;
                if (whole && at < columns) {
                    load_run(row + at, v[a]);
                } else {
                    UNROLL for (uint32_t j = 0; j < FOUR; j++) {
                        v[a][j] = at + j < columns ? row[at + j] : -INFINITY;
                    }
                }
            }
            const float old = top;
            UNROLL for (uint32_t a = 0; a < AHEAD; a++) {
                UNROLL for (uint32_t j = 0; j < FOUR; j++) {
                    at_top = v[a][j] > top ? first + i + a * FOUR * ROW_THREADS + j : at_top;
                    top = larger(top, v[a][j]);
                }
            }
            if (WITH_SUM) {
                // Without any number above -inf yet there is nothing to shift by; the sum is 0 then, or NaN.
                const float shift = top == -INFINITY ? 0.0f : top;
                total = top > old ? total * exp_f32(old - shift) : total;
                UNROLL for (uint32_t a = 0; a < AHEAD; a++) {
                    if (i + a * FOUR * ROW_THREADS < columns) {
                        UNROLL for (uint32_t j = 0; j < FOUR; j++) {
                            total += exp_f32(v[a][j] - shift);
                        }
                    }
                }
            }
        }
        here[t] = own[t] = top;
        id[t] = at_top;
        partial[t] = total;
    });
    block_combine(block, here, [](float a, float b) { return larger(a, b); });
    block.each([&](uint32_t t) { id[t] = own[t] == here[t] ? id[t] : UINT32_MAX; });
    block_combine(block, id, [](uint32_t a, uint32_t b) { return a < b ? a : b; });
    if (WITH_SUM) {
        block.each([&](uint32_t t) {
            const float shift = here[t] == -INFINITY ? 0.0f : here[t];
            sum[t] = double(partial[t]) * double(exp_f32(own[t] - shift));
        });
        block_sum(block, sum);
    }
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
        Local<float> before, here, now;
        Local<double> sum;
        take_chunk<false>(block, logits, columns, first, r, largest, before, here, now, sum);
    }
}

// e^(a - b) for a total that was summed relative to a and is wanted relative to b >= a; 0 for a = -inf.
DEVICE double shrink(float a, float b) {
    return a == -INFINITY ? 0.0 : (a == b ? 1.0 : exp(double(a) - double(b)));
}

// sums and at_target [R]. A target outside of all chunks leaves NaN at its place, and so in the loss.
DEVICE void cross_entropy_chunk(const Block& block, const float* logits, const uint32_t* targets,
                                uint32_t rows, uint32_t columns, uint32_t first, Largest largest,
                                double* sums, float* at_target) {
    for (uint64_t r = block.index(); r < rows; r += block.grid()) {
        Local<float> before, here, now;
        Local<double> sum;
        take_chunk<true>(block, logits, columns, first, r, largest, before, here, now, sum);
        block.each([&](uint32_t t) {
            if (t == 0) {
                const double added = here[t] == -INFINITY ? sum[t] : sum[t] * shrink(here[t], now[t]);
                sums[r] = first == 0 ? added : sums[r] * shrink(before[t], now[t]) + added;
                if (targets[r] >= first && targets[r] - first < columns) {
                    at_target[r] = logits[r * columns + (targets[r] - first)];
                } else if (first == 0) {
                    at_target[r] = NAN;
                }
            }
        });
    }
}

// losses [R] in nats (null: none), total [1] = sum of weight * loss; weights [R] or null for all 1. A row
// of weight 0 is left out whatever its logits. One block of ROW_THREADS threads.
DEVICE void cross_entropy_loss(const Block& block, const float* largest, const double* sums,
                               const float* at_target, const float* weights, float* losses, float* total,
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
            total[0] = float(all[t]);
        }
    });
}

// slope [R, columns] = w (p - onehot).
template <class T>
DEVICE void cross_entropy_slope(const Block& block, const float* logits, const uint32_t* targets,
                                const float* weights, const float* largest, const double* sums, T* slope,
                                uint32_t rows, uint32_t columns, uint32_t first) {
    const bool whole = columns % RUN<T> == 0 && at_runs(logits, slope);
    for (uint64_t r = block.index(); r < rows; r += block.grid()) {
        block.each([&](uint32_t t) {
            const float weight = weights != nullptr ? weights[r] : 1.0f;
            const float scale = float(double(weight) / sums[r]), shift = largest[r];
            const uint32_t target = targets[r];
            const auto run = [&](uint32_t i, auto width) {
                float v[width.value] = {};
                if (weight != 0.0f) {
                    load_run(logits + r * columns + i, v);
                    UNROLL for (uint32_t j = 0; j < width.value; j++) {
                        v[j] = exp_f32(v[j] - shift) * scale;
                        v[j] = target == first + i + j ? v[j] - weight : v[j];
                    }
                }
                store_run(slope + r * columns + i, v);
            };
            if (whole) {
                for (uint32_t i = t * RUN<T>; i < columns; i += block.threads() * RUN<T>) {
                    run(i, Width<RUN<T>>{});
                }
            } else {
                for (uint32_t i = t; i < columns; i += block.threads()) {
                    run(i, Width<1>{});
                }
            }
        });
    }
}

// out [count] = kept gradient times the upstream gradient [1], or, to `accumulate`, added to what is there.
template <class T>
DEVICE void cross_entropy_backward(const Block& block, const T* kept, const float* upstream, T* out,
                                   uint64_t count, uint32_t accumulate) {
    each_run_of<T>(block, count, at_runs(kept, out), [&](uint64_t i, auto width) {
        float v[width.value], before[width.value] = {};
        load_run(kept + i, v);
        if (accumulate != 0) {
            load_run(out + i, before);
        }
        UNROLL for (uint32_t j = 0; j < width.value; j++) {
            const float value = v[j] * upstream[0];
            v[j] = accumulate != 0 ? before[j] + value : value;
        }
        store_run(out + i, v);
    });
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
        float* losses, float* total, uint32_t rows),
       cross_entropy_loss(block, largest, sums, at_target, weights, losses, total, rows))

#define CROSS_ENTROPY(T, suffix)                                                                        \
    KERNEL(cross_entropy_slope_##suffix,                                                                \
           (const float* logits, const uint32_t* targets, const float* weights, const float* largest,   \
            const double* sums, T* slope, uint32_t rows, uint32_t columns, uint32_t first),             \
           cross_entropy_slope(block, logits, targets, weights, largest, sums, slope, rows, columns,    \
                               first))                                                                  \
    KERNEL(cross_entropy_backward_##suffix,                                                             \
           (const T* kept, const float* upstream, T* out, uint64_t count, uint32_t accumulate),         \
           cross_entropy_backward(block, kept, upstream, out, count, accumulate))
CROSS_ENTROPY(float, f32)
CROSS_ENTROPY(bf16, bf16)
