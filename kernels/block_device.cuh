// A block on the device: every thread runs the body (block.cuh).
#pragma once

#define DEVICE __device__ __forceinline__
#define SHARED __shared__
#define UNROLL _Pragma("unroll")

struct Block {
    DEVICE uint32_t index() const { return blockIdx.x; }
    DEVICE uint32_t grid() const { return gridDim.x; }
    DEVICE uint32_t threads() const { return blockDim.x; }

    template <class F> DEVICE void each(F f) const { f(threadIdx.x); }

    template <class F> DEVICE void phase(F f) const {
        f(threadIdx.x);
        __syncthreads();
    }

    DEVICE void barrier() const { __syncthreads(); }

    // The bytes of shared memory that the launch asked for.
    DEVICE float* dynamic_shared() const {
        extern __shared__ float4 dynamic_shared_memory[];
        return reinterpret_cast<float*>(dynamic_shared_memory);
    }
};

// A value of each thread that outlives a phase: a register.
template <class T> struct Local {
    T value;
    DEVICE T& operator[](uint32_t) { return value; }
};

// v[t] becomes combine(v[t], v[t ^ W/2]), then with W/4, .. 1: the same bits in all lanes of a group of W.
template <int W, class T, class F> DEVICE void lane_combine(const Block&, Local<T>& v, F combine) {
    static_assert(W <= 32, "lanes of one warp");
    UNROLL for (int offset = W / 2; offset > 0; offset /= 2) {
        v.value = combine(v.value, __shfl_xor_sync(0xffffffffu, v.value, offset));
    }
}

#define KERNEL_OF(most_threads, blocks, name, params, ...)                           \
    extern "C" __global__ void __launch_bounds__(most_threads, blocks) name params { \
        const Block block;                                                           \
        __VA_ARGS__;                                                                 \
    }
#define KERNEL(name, params, ...) KERNEL_OF(MAX_THREADS, 1, name, params, __VA_ARGS__)
