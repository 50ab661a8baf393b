// Between the formats of parameters: copies in bf16, and sums of gradients; residual sums of activations.
#include "number.cuh"

// to[i] = from[i], rounded to the format of `to`.
template <class T, class F> DEVICE void cast(const Block& block, const F* from, T* to, uint64_t count) {
    each_element(block, count, [&](uint64_t i) { store(to[i], load(from[i])); });
}

// sum[i] += x[i], rounded once.
template <class T> DEVICE void add(const Block& block, const T* x, T* sum, uint64_t count) {
    each_element(block, count, [&](uint64_t i) { store(sum[i], load(sum[i]) + load(x[i])); });
}

KERNEL(narrow_f32_bf16, (const float* from, bf16* to, uint64_t count), cast(block, from, to, count))
KERNEL(widen_bf16_f32, (const bf16* from, float* to, uint64_t count), cast(block, from, to, count))
KERNEL(add_f32, (const float* x, float* sum, uint64_t count), add(block, x, sum, count))
KERNEL(add_bf16, (const bf16* x, bf16* sum, uint64_t count), add(block, x, sum, count))
