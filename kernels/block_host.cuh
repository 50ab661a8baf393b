// A block on the host: the body runs once, each phase is a loop over the threads (block.cuh).
#pragma once

#include <cassert>
#include <vector>

#define SHARED

struct Block {
    const Launch& launch;
    uint32_t place;
    float* memory;
    PendingCopies& pending;

    uint32_t index() const { return place; }
    uint32_t grid() const { return launch.grid; }
    uint32_t threads() const { return launch.threads; }

    template <class F> void each(F f) const {
        for (uint32_t i = 0; i < launch.threads; i++) {
            f(launch.reversed ? launch.threads - 1 - i : i);
        }
    }

    template <class F> void phase(F f) const { each(f); }

    void barrier() const {}

    // The copies that all threads have begun (matrix.cuh).
    PendingCopies& copies() const { return pending; }

    float* dynamic_shared() const { return memory; }
};

template <class T> struct Local {
    T values[MAX_THREADS];
    T& operator[](uint32_t t) { return values[t]; }
};

// f(t, offered by the 32 threads of t's warp): what every exchange between lanes amounts to.
template <class T, class F> void warp_exchange(const Block& block, Local<T>& offered, F f) {
    block.each([&](uint32_t t) { f(t, &offered.values[t / 32 * 32]); });
}

template <int W, class T, class F> void lane_combine(const Block& block, Local<T>& v, F combine) {
    for (uint32_t offset = W / 2; offset > 0; offset /= 2) {
        Local<T> before = v;
        block.each([&](uint32_t t) { v[t] = combine(before[t], before[t ^ offset]); });
    }
}

template <class F> void run_blocks(const Launch& launch, F body) {
    assert(launch.threads > 0 && launch.threads <= MAX_THREADS && launch.threads % 32 == 0);
    const auto run_block = [&](uint32_t i, float* memory) {
        PendingCopies pending{launch.reversed != 0};
        body(Block{launch, launch.reversed ? launch.grid - 1 - i : i, memory, pending});
    };
#if defined(HOST_DEVICE)
    host_device::in_parallel(launch.grid, 1 + 2048 / launch.threads, [&](uint64_t i) {
        run_block(uint32_t(i), host_device::shared_memory(launch.shared_bytes));
    });
#else
    for (uint32_t i = 0; i < launch.grid; i++) {
        // Of the exact size, so that the address sanitiser sees the first byte too many.
        std::vector<float> memory(launch.shared_bytes / sizeof(float));
        run_block(i, memory.data());
    }
#endif
}
