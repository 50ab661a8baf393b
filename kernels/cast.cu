// Between the formats of parameters: copies in bf16, and sums of gradients; residual sums of activations.
#include "number.cuh"

// to[i] = from[i], rounded to the format of `to`, as runs of it: whole sectors are written.
template <class T, class F> DEVICE void cast(const Block& block, const F* from, T* to, uint64_t count) {
    each_run_of<T>(block, count, at_runs(from, to), [&](uint64_t i, auto width) {
        float v[width.value];
        load_run(from + i, v);
        store_run(to + i, v);
    });
}

// sum[i] += x[i], rounded once.
template <class T> DEVICE void add(const Block& block, const T* x, T* sum, uint64_t count) {
    each_run_of<T>(block, count, at_runs(x, sum), [&](uint64_t i, auto width) {
        float v[width.value], more[width.value];
        load_run(sum + i, v);
        load_run(x + i, more);
        UNROLL for (uint32_t j = 0; j < width.value; j++) {
            v[j] += more[j];
        }
        store_run(sum + i, v);
    });
}

// sum[i] = x[i] + y[i], rounded once.
template <class T> DEVICE void sum(const Block& block, const T* x, const T* y, T* sum, uint64_t count) {
    each_run_of<T>(block, count, at_runs(x, y, sum), [&](uint64_t i, auto width) {
        float v[width.value], more[width.value];
        load_run(x + i, v);
        load_run(y + i, more);
        UNROLL for (uint32_t j = 0; j < width.value; j++) {
            v[j] += more[j];
        }
        store_run(sum + i, v);
    });
}

KERNEL(narrow_f32_bf16, (const float* from, bf16* to, uint64_t count), cast(block, from, to, count))
KERNEL(widen_bf16_f32, (const bf16* from, float* to, uint64_t count), cast(block, from, to, count))
KERNEL(add_f32, (const float* x, float* sum, uint64_t count), add(block, x, sum, count))
KERNEL(add_bf16, (const bf16* x, bf16* sum, uint64_t count), add(block, x, sum, count))
KERNEL(sum_f32, (const float* x, const float* y, float* to, uint64_t count), sum(block, x, y, to, count))
KERNEL(sum_bf16, (const bf16* x, const bf16* y, bf16* to, uint64_t count), sum(block, x, y, to, count))
