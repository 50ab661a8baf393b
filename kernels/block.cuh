// How a kernel of this folder runs: on a GPU, or as plain C++ on the host (README.md, first page).
//
// A kernel's body is a function of a `Block` and of its arguments. Code that differs between the threads
// of the block stands in lambdas `[&](uint32_t t) { ... }`, t the thread in the block:
//
//   block.each(f)    f(t) for every thread; no barrier behind it, so it must not write shared memory
//   block.phase(f)   f(t) for every thread, then a barrier
//   lane_sum<W>(..)  a value of every thread, summed in groups of W neighbouring threads
//
// On the device every thread runs the body and f is called once, with its own index. On the host the body
// runs once a block and f is called for all threads, one after the other. Hence the rules:
//
//   - outside f the code is the same for all threads: loop bounds, constants, no memory written or read
//     that a thread writes;
//   - what a thread keeps from one f to the next is a `Local<T>`, read and written as `v[t]`;
//   - shared memory is declared with SHARED, or asked of `block.dynamic_shared`, and touched in a phase;
//   - within one phase no thread reads what another one writes. The host can run threads and blocks in
//     reverse order: a body that breaks this rule then gives another result.
//
// KERNEL(name, (parameters), call) makes the entry point: a __global__ function on the device, on the host
// a C function that takes the launch first and runs the blocks one after the other.
#pragma once

#include <cstdint>

// Threads a block has at most, on both sides; a block has a multiple of 32.
constexpr uint32_t MAX_THREADS = 256;

#define UNPACK(...) __VA_ARGS__

#if defined(__CUDACC__)

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

#define KERNEL(name, params, ...)                                              \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1) name params { \
        const Block block;                                                     \
        __VA_ARGS__;                                                           \
    }

#else // the host

#include <cassert>
#include <vector>

#define DEVICE inline
#define SHARED
#define UNROLL

// What a launch chooses; `reversed` runs threads and blocks from the last to the first.
struct Launch {
    uint32_t grid;
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t reversed;
};

struct Block {
    const Launch& launch;
    uint32_t place;
    float* memory;

    uint32_t index() const { return place; }
    uint32_t grid() const { return launch.grid; }
    uint32_t threads() const { return launch.threads; }

    template <class F> void each(F f) const {
        for (uint32_t i = 0; i < launch.threads; i++) {
            f(launch.reversed ? launch.threads - 1 - i : i);
        }
    }

    template <class F> void phase(F f) const { each(f); }

    float* dynamic_shared() const { return memory; }
};

template <class T> struct Local {
    T values[MAX_THREADS];
    T& operator[](uint32_t t) { return values[t]; }
};

template <int W, class T, class F> void lane_combine(const Block& block, Local<T>& v, F combine) {
    for (uint32_t offset = W / 2; offset > 0; offset /= 2) {
        Local<T> before = v;
        block.each([&](uint32_t t) { v[t] = combine(before[t], before[t ^ offset]); });
    }
}

template <class F> void run_blocks(const Launch& launch, F body) {
    assert(launch.threads > 0 && launch.threads <= MAX_THREADS && launch.threads % 32 == 0);
    for (uint32_t i = 0; i < launch.grid; i++) {
        // Of the exact size, so that the address sanitiser sees the first byte too many.
        std::vector<float> memory(launch.shared_bytes / sizeof(float));
        body(Block{launch, launch.reversed ? launch.grid - 1 - i : i, memory.data()});
    }
}

#define KERNEL(name, params, ...)                                             \
    extern "C" void name(Launch launch, UNPACK params) {                      \
        run_blocks(launch, [&](const Block& block) { __VA_ARGS__; });         \
    }

#endif

template <class T> DEVICE T larger(T a, T b) { return b > a ? b : a; }

// Sum over groups of W lanes as a tree: halves added to halves.
template <int W, class T> DEVICE void lane_sum(const Block& block, Local<T>& v) {
    lane_combine<W>(block, v, [](T a, T b) { return a + b; });
}

// Largest over groups of W lanes; no lane may hold a NaN.
template <int W, class T> DEVICE void lane_max(const Block& block, Local<T>& v) {
    lane_combine<W>(block, v, [](T a, T b) { return larger(a, b); });
}

// combine over all threads of the block, in every thread: warps as trees, then the warps in order.
template <class T, class F> DEVICE void block_combine(const Block& block, Local<T>& v, F combine) {
    SHARED T of_warp[MAX_THREADS / 32];
    lane_combine<32>(block, v, combine);
    block.phase([&](uint32_t t) {
        if (t % 32 == 0) {
            of_warp[t / 32] = v[t];
        }
    });
    block.phase([&](uint32_t t) {
        T all = of_warp[0];
        for (uint32_t w = 1; w < block.threads() / 32; w++) {
            all = combine(all, of_warp[w]);
        }
        v[t] = all;
    });
}

template <class T> DEVICE void block_sum(const Block& block, Local<T>& v) {
    block_combine(block, v, [](T a, T b) { return a + b; });
}

// f(i) for every i below count, spread over the whole grid; as `each`, no barrier behind it.
template <class F> DEVICE void each_element(const Block& block, uint64_t count, F f) {
    block.each([&](uint32_t t) {
        const uint64_t stride = uint64_t(block.grid()) * block.threads();
        for (uint64_t i = uint64_t(block.index()) * block.threads() + t; i < count; i += stride) {
            f(i);
        }
    });
}

// f(row, column) for a matrix: a block takes a row at a time, so that nothing is divided.
template <class F> DEVICE void each_cell(const Block& block, uint64_t rows, uint32_t columns, F f) {
    block.each([&](uint32_t t) {
        for (uint64_t row = block.index(); row < rows; row += block.grid()) {
            for (uint32_t column = t; column < columns; column += block.threads()) {
                f(row, column);
            }
        }
    });
}

// Lanes of a sum over a row: element i belongs to lane i mod 16, as on the CPU.
constexpr uint32_t LANES = 16;

// The row of thread t when groups of LANES threads take a row each, of which the block's first is `first`.
DEVICE uint64_t lane_row(uint64_t first, uint32_t t) { return first + t / LANES; }

// step(first) for every batch of rows that the block's groups of LANES threads take together.
template <class F> DEVICE void each_row_batch(const Block& block, uint64_t rows, F step) {
    const uint32_t groups = block.threads() / LANES;
    for (uint64_t first = uint64_t(block.index()) * groups; first < rows;
         first += uint64_t(block.grid()) * groups) {
        step(first);
    }
}
