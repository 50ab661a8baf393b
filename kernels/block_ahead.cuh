// A block on the host whose threads run as far ahead of each other as barriers let them (block.cuh), to
// show a missing barrier: every thread runs the body on a stack of its own, and goes on until it waits for
// its warp (a shuffle) or for the block (a barrier); only then does the next one start. Threads that wait at
// different places, which would hang or be undefined on the device, stop the program with a message.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <ucontext.h>
#include <vector>

// Shared by the threads of a block; blocks run one after the other.
#define SHARED static

class Team;

struct Block {
    const Launch& launch;
    uint32_t place;
    float* memory;
    Team& team;
    uint32_t thread;

    uint32_t index() const { return place; }
    uint32_t grid() const { return launch.grid; }
    uint32_t threads() const { return launch.threads; }

    template <class F> void each(F f) const { f(thread); }

    template <class F> void phase(F f) const;

    void barrier() const;

    // The copies that this thread has begun (matrix.cuh).
    PendingCopies& copies() const;

    float* dynamic_shared() const { return memory; }
};

// The threads of one block and what each of them waits for.
class Team {
  public:
    enum class Wait { Nothing, Warp, Block, Finished };

    // Runs body(block) on every thread of block `place`.
    void run(const Launch& launch, uint32_t place, float* memory, std::function<void(const Block&)> body) {
        threads = launch.threads;
        pending.assign(threads, PendingCopies{launch.reversed != 0});
        start = [&] { body(Block{launch, place, memory, *this, running}); };
        for (uint32_t t = 0; t < threads; t++) {
            waits[t] = Wait::Nothing;
            exchanges[t] = 0;
            getcontext(&contexts[t]);
            contexts[t].uc_stack.ss_sp = stacks.get() + t * STACK;
            contexts[t].uc_stack.ss_size = STACK;
            contexts[t].uc_link = &scheduler;
            makecontext(&contexts[t], enter, 0);
        }
        const uint32_t warps = threads / 32;
        do {
            release(0, threads, Wait::Block);
            for (uint32_t i = 0; i < warps; i++) {
                run_warp(32 * (launch.reversed ? warps - 1 - i : i), launch.reversed);
            }
        } while (agreed(0, threads) == Wait::Block);
    }

    // Called by a thread: lets the others run until all of its warp, or of the block, wait for the same.
    void wait(Wait what) {
        waits[running] = what;
        swapcontext(&contexts[running], &scheduler);
    }

    // What thread t of the block offers to its warp, and what the 32 threads of the warp have offered. The
    // places of two exchanges alternate: nobody offers a third time before all have taken from the first.
    template <class T> void exchange(uint32_t t, const T& offered, T (&of_warp)[32]) {
        static_assert(sizeof(T) <= OFFER, "the size of an offer");
        auto& place = offers[exchanges[t]++ % 2];
        std::memcpy(place[t], &offered, sizeof(T));
        wait(Wait::Warp);
        for (uint32_t lane = 0; lane < 32; lane++) {
            std::memcpy(&of_warp[lane], place[t / 32 * 32 + lane], sizeof(T));
        }
    }

    PendingCopies& copies_of(uint32_t t) { return pending[t]; }

    // Only one block runs at a time: its shared memory is static, and so is the way into a thread.
    static Team& the_team() {
        static Team team;
        return team;
    }

    std::mutex one_at_a_time;

  private:
    static constexpr size_t STACK = 128 * 1024;
    static constexpr size_t OFFER = 32;

    static void enter() {
        Team& team = the_team();
        team.start();
        team.waits[team.running] = Wait::Finished;
    }

    void run_warp(uint32_t first, bool reversed) {
        do {
            release(first, first + 32, Wait::Warp);
            for (uint32_t i = 0; i < 32; i++) {
                running = first + (reversed ? 31 - i : i);
                swapcontext(&scheduler, &contexts[running]);
            }
        } while (agreed(first, first + 32) == Wait::Warp);
    }

    void release(uint32_t first, uint32_t last, Wait what) {
        for (uint32_t t = first; t < last; t++) {
            waits[t] = waits[t] == what ? Wait::Nothing : waits[t];
        }
    }

    // What all threads of first .. last wait for.
    Wait agreed(uint32_t first, uint32_t last) const {
        for (uint32_t t = first + 1; t < last; t++) {
            if (waits[t] != waits[first]) {
                std::fprintf(stderr, "threads %u and %u of a block wait at different places\n", first, t);
                std::abort();
            }
        }
        return waits[first];
    }

    uint32_t threads = 0;
    uint32_t running = 0;
    std::function<void()> start;
    ucontext_t scheduler;
    std::vector<ucontext_t> contexts{MAX_THREADS};
    Wait waits[MAX_THREADS];
    unsigned char offers[2][MAX_THREADS][OFFER];
    uint32_t exchanges[MAX_THREADS];
    std::vector<PendingCopies> pending;
    std::unique_ptr<char[]> stacks{new char[MAX_THREADS * STACK]};
};

template <class F> void Block::phase(F f) const {
    f(thread);
    barrier();
}

inline void Block::barrier() const { team.wait(Team::Wait::Block); }

inline PendingCopies& Block::copies() const { return team.copies_of(thread); }

template <class T> struct Local {
    T value;
    T& operator[](uint32_t) { return value; }
};

// f(t, offered by the 32 threads of t's warp): what every exchange between lanes amounts to.
template <class T, class F> void warp_exchange(const Block& block, Local<T>& offered, F f) {
    T of_warp[32];
    block.team.exchange(block.thread, offered.value, of_warp);
    f(block.thread, of_warp);
}

template <int W, class T, class F> void lane_combine(const Block& block, Local<T>& v, F combine) {
    T of_warp[32], before[W];
    block.team.exchange(block.thread, v.value, of_warp);
    T* const values = of_warp + block.thread % 32 / W * W;
    for (uint32_t offset = W / 2; offset > 0; offset /= 2) {
        std::memcpy(before, values, sizeof(before));
        for (uint32_t lane = 0; lane < W; lane++) {
            values[lane] = combine(before[lane], before[lane ^ offset]);
        }
    }
    v.value = values[block.thread % W];
}

template <class F> void run_blocks(const Launch& launch, F body) {
    Team& team = Team::the_team();
    const std::lock_guard<std::mutex> lock(team.one_at_a_time);
    for (uint32_t i = 0; i < launch.grid; i++) {
        std::vector<float> memory(launch.shared_bytes / sizeof(float));
        team.run(launch, launch.reversed ? launch.grid - 1 - i : i, memory.data(), body);
    }
}
