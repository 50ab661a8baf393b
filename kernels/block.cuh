// How a kernel of this folder runs: on a GPU, or as plain C++ on the host (README.md, first page).
//
// A kernel's body is a function of a `Block` and of its arguments. Code that differs between the threads
// of the block stands in lambdas `[&](uint32_t t) { ... }`, t the thread in the block:
//
//   block.each(f)    f(t) for every thread; no barrier behind it, so it must not write shared memory
//   block.phase(f)   f(t) for every thread, then a barrier
//   block.barrier()  a barrier alone
//   lane_sum<W>(..)  a value of every thread, summed in groups of W neighbouring threads; matrix.cuh has
//                    the other things that a warp does together
//
// On the device every thread runs the body and f is called once, with its own index. On the host the body
// runs once a block and f is called for all threads, one after the other. Hence the rules:
//
//   - outside f the code is the same for all threads: loop bounds, constants, no memory written or read
//     that a thread writes;
//   - what a thread keeps from one f to the next is a `Local<T>`, read and written as `v[t]`;
//   - shared memory is declared with SHARED, or asked of `block.dynamic_shared`, and touched in a phase;
//   - within one phase no thread reads what another one writes.
//
// The host shows what breaks them: it can run threads and blocks in reverse order, and (block_ahead.cuh)
// each thread as far ahead of the others as barriers let it; the results must be the same.
//
// KERNEL(name, (parameters), call) makes the entry point: a __global__ function on the device, on the host
// a C function that takes the launch first and runs the blocks one after the other. KERNEL_OF(threads,
// blocks, name, ..) is one for blocks of exactly so many threads, of which a multiprocessor is to hold
// `blocks` at once: it bounds the registers of a thread.
//
// This file holds what both sides share; block_device.cuh, block_host.cuh and block_ahead.cuh what a block
// is on the device, on the host, and on the host when each thread runs as far ahead as barriers let it.
#pragma once

#include <cstdint>

// Threads a block has at most, on both sides; a block has a multiple of 32.
constexpr uint32_t MAX_THREADS = 256;

#define UNPACK(...) __VA_ARGS__

#if defined(__CUDACC__)
#include "block_device.cuh"
#else
#include <cassert>
#include <cstring>
#include <vector>

#define DEVICE inline
#define UNROLL

// What a launch chooses; `reversed` runs threads and blocks from the last to the first.
struct Launch {
    uint32_t grid;
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t reversed;
};

// In the host device (host-device/README.md) a kernel is also found by its name.
#if defined(HOST_DEVICE)
#include "host-device/registry.h"
#define REGISTER(name, most_threads, params)                                                    \
    static const host_device::Registered registered_##name(#name, __FILE__, most_threads,       \
                                                           static_cast<void (*)(Launch, UNPACK params)>(name));
#else
#define REGISTER(name, most_threads, params)
#endif

// Copies that threads have begun and may still be under way (matrix.cuh). They are made when they are
// waited for, which shows a missing wait; with reversed threads when they begin, which shows a place
// overwritten too early.
class PendingCopies {
  public:
    explicit PendingCopies(bool at_once) : at_once(at_once) {}

    // `size` bytes, or zeros.
    void begin(void* to, const void* from, uint32_t size, bool real) {
        const Copy copy{to, from, size, real};
        if (at_once) {
            make(copy);
        } else {
            groups.back().push_back(copy);
        }
    }

    void close_group() { groups.emplace_back(); }

    // Makes all copies but those of the last `left` groups that were closed.
    void wait(uint32_t left) {
        while (groups.size() > left + 1) {
            for (const Copy& copy : groups.front()) {
                make(copy);
            }
            groups.erase(groups.begin());
        }
    }

  private:
    struct Copy {
        void* to;
        const void* from;
        uint32_t size;
        bool real;
    };

    static void make(const Copy& copy) {
        if (copy.real) {
            std::memcpy(copy.to, copy.from, copy.size);
        } else {
            std::memset(copy.to, 0, copy.size);
        }
    }

    bool at_once;
    std::vector<std::vector<Copy>> groups{1};
};

#if defined(RUN_AHEAD)
#include "block_ahead.cuh"
#else
#include "block_host.cuh"
#endif

#define KERNEL(name, params, ...)                                     \
    extern "C" void name(Launch launch, UNPACK params) {              \
        run_blocks(launch, [&](const Block& block) { __VA_ARGS__; }); \
    }                                                                 \
    REGISTER(name, MAX_THREADS, params)
#define KERNEL_OF(most_threads, blocks, name, params, ...)            \
    extern "C" void name(Launch launch, UNPACK params) {              \
        assert(launch.threads == most_threads);                       \
        run_blocks(launch, [&](const Block& block) { __VA_ARGS__; }); \
    }                                                                 \
    REGISTER(name, most_threads, params)
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

// f(row, column) for a matrix, spread over the whole grid as each_element: a thread divides twice, before its
// first cell. A launch has fewer than 2^32 threads, a row fewer than 2^31 cells.
template <class F> DEVICE void each_cell(const Block& block, uint64_t rows, uint32_t columns, F f) {
    if (columns == 0) {
        return;
    }
    block.each([&](uint32_t t) {
        const uint32_t stride = block.grid() * block.threads();
        const uint32_t first = block.index() * block.threads() + t;
        const uint32_t rows_on = stride / columns, columns_on = stride % columns;
        uint64_t row = first / columns;
        uint32_t column = first % columns;
        while (row < rows) {
            f(row, column);
            row += rows_on;
            column += columns_on;
            if (column >= columns) {
                column -= columns;
                row++;
            }
        }
    });
}

// Lanes of a sum over a row: element i belongs to lane i mod 16, as on the CPU.
constexpr uint32_t LANES = 16;

// The row of thread t when groups of W threads take a row each, of which the block's first is `first`.
template <uint32_t W = LANES> DEVICE uint64_t lane_row(uint64_t first, uint32_t t) { return first + t / W; }

// step(first) for every batch of rows that the block's groups of W threads take together.
template <uint32_t W = LANES, class F> DEVICE void each_row_batch(const Block& block, uint64_t rows, F step) {
    const uint32_t groups = block.threads() / W;
    for (uint64_t first = uint64_t(block.index()) * groups; first < rows;
         first += uint64_t(block.grid()) * groups) {
        step(first);
    }
}
