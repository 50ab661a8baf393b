// The gate of a SwiGLU layer: the twin of calm-kernels/src/swiglu.rs.
//
//   y = silu(gate) up        dgate = dy up silu'(gate)        dup = dy silu(gate)
//
// Rows of H elements, `stride` apart in gate, up and their gradients: H for two tensors, 2 H (and up =
// gate + H) for the two side by side in one, the packed form.
#include "number.cuh"

// y [rows, H].
template <class T>
DEVICE void swiglu(const Block& block, const T* gate, const T* up, T* y, uint64_t rows, uint32_t h,
                   uint32_t stride) {
    each_cell(block, rows, h, [&](uint64_t row, uint32_t i) {
        const float g = load(gate[row * stride + i]);
        store(y[row * h + i], g * sigmoid(g) * load(up[row * stride + i]));
    });
}

// dy [rows, H].
template <class T>
DEVICE void swiglu_backward(const Block& block, const T* gate, const T* up, const T* dy, T* dgate, T* dup,
                            uint64_t rows, uint32_t h, uint32_t stride) {
    each_cell(block, rows, h, [&](uint64_t row, uint32_t i) {
        const uint64_t at = row * stride + i;
        const float slope = load(dy[row * h + i]);
        const SiluSlope silu = silu_and_slope(load(gate[at]));
        store(dgate[at], slope * load(up[at]) * silu.slope);
        store(dup[at], slope * silu.value);
    });
}

#define SWIGLU(T, suffix)                                                                               \
    KERNEL(swiglu_##suffix,                                                                             \
           (const T* gate, const T* up, T* y, uint64_t rows, uint32_t h, uint32_t stride),              \
           swiglu(block, gate, up, y, rows, h, stride))                                                 \
    KERNEL(swiglu_backward_##suffix,                                                                    \
           (const T* gate, const T* up, const T* dy, T* dgate, T* dup, uint64_t rows, uint32_t h,       \
            uint32_t stride),                                                                           \
           swiglu_backward(block, gate, up, dy, dgate, dup, rows, h, stride))
SWIGLU(float, f32)
SWIGLU(bf16, bf16)
