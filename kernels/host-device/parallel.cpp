// A pool of threads for the blocks of a grid and the tiles of a product: the calling thread and the pool
// take parts of the range in turn. There is one range at a time, because the device's lock is held.
#include "registry.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

namespace host_device {
namespace {

class Pool {
  public:
    explicit Pool(unsigned threads) {
        for (unsigned i = 1; i < threads; i++) {
            std::thread([this] { help(); }).detach();
        }
        helpers = threads - 1;
    }

    void run(uint64_t size, uint64_t step, const std::function<void(uint64_t, uint64_t)>& f) {
        {
            std::lock_guard<std::mutex> held(lock);
            range = &f;
            count = size;
            part = step;
            next = 0;
            pending = helpers;
            job++;
        }
        wake.notify_all();
        take();
        std::unique_lock<std::mutex> held(lock);
        finished.wait(held, [this] { return pending == 0; });
    }

    unsigned helpers = 0;

  private:
    void take() {
        for (;;) {
            const uint64_t first = next.fetch_add(part);
            if (first >= count) {
                return;
            }
            (*range)(first, std::min(first + part, count));
        }
    }

    void help() {
        uint64_t seen = 0;
        for (;;) {
            {
                std::unique_lock<std::mutex> held(lock);
                wake.wait(held, [&] { return job != seen; });
                seen = job;
            }
            take();
            std::lock_guard<std::mutex> held(lock);
            if (--pending == 0) {
                finished.notify_one();
            }
        }
    }

    std::mutex lock;
    std::condition_variable wake, finished;
    const std::function<void(uint64_t, uint64_t)>* range = nullptr;
    uint64_t count = 0, part = 1, job = 0;
    std::atomic<uint64_t> next{0};
    unsigned pending = 0;
};

unsigned pool_size() {
    if (const char* const threads = getenv("CALM_HOST_DEVICE_THREADS")) {
        return std::max(1, atoi(threads));
    }
    return std::min(8u, std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace

void in_parallel_impl(uint64_t count, uint64_t grain,
                      const std::function<void(uint64_t, uint64_t)>& range) {
    // Never destroyed: its threads run until the process ends.
    static Pool& pool = *new Pool(pool_size());
    if (count < 2 * grain || count < 2 || pool.helpers == 0) {
        range(0, count);
        return;
    }
    const uint64_t parts = 4 * (pool.helpers + 1);
    pool.run(count, std::max(grain, (count + parts - 1) / parts), range);
}

}  // namespace host_device
