// Checks libnccl and several devices: every case in processes of its own, which may be killed.
// nccl [CASE]: all cases, or one; the environment says whether work runs late.
#include "ranks.h"

#include <cmath>
#include <csignal>
#include <string>

namespace {

// Whole numbers, so that sums are exact in any order.
float value(int rank, size_t i) { return float((i * 7 + size_t(rank) * 3) % 1000) - 500.0f; }

void collectives(Rank& r, size_t n) {
    const int ranks = r.ranks;
    std::vector<float> mine(n), sum(n), all(n * size_t(ranks)), scattered(n * size_t(ranks)), part(n);
    for (size_t i = 0; i < n; i++) {
        mine[i] = value(r.rank, i);
        for (int other = 0; other < ranks; other++) {
            sum[i] += value(other, i);
            all[size_t(other) * n + i] = value(other, i);
            scattered[size_t(other) * n + i] = value(r.rank, i) + float(other);
            part[i] += value(other, i) + float(r.rank);
        }
    }
    const Pointer send = r.put(mine), recv = r.space<float>(n);
    DONE(ncclAllReduce(at(send), at(recv), n, F32, SUM, r.comm, r.stream));
    HOLDS(r.get<float>(recv, n) == sum);
    const int last = ranks - 1;
    DONE(ncclBroadcast(r.rank == last ? at(send) : nullptr, at(recv), n, F32, last, r.comm, r.stream));
    HOLDS(r.get<float>(recv, n) == std::vector<float>(all.end() - long(n), all.end()));
    DONE(ncclReduce(at(send), r.rank == 0 ? at(recv) : nullptr, n, F32, SUM, 0, r.comm, r.stream));
    HOLDS(r.rank != 0 || r.get<float>(recv, n) == sum);

    const Pointer gathered = r.space<float>(n * size_t(ranks));
    DONE(ncclAllGather(at(send), at(gathered), n, F32, r.comm, r.stream));
    HOLDS(r.get<float>(gathered, n * size_t(ranks)) == all);
    const Pointer parts = r.put(scattered);
    DONE(ncclReduceScatter(at(parts), at(recv), n, F32, SUM, r.comm, r.stream));
    HOLDS(r.get<float>(recv, n) == part);

    // In place.
    const Pointer own = parts + size_t(r.rank) * n * sizeof(float);
    DONE(ncclReduceScatter(at(parts), at(own), n, F32, SUM, r.comm, r.stream));
    HOLDS(r.get<float>(own, n) == part);
    DONE(ncclAllGather(at(own), at(parts), n, F32, r.comm, r.stream));
    HOLDS((r.get<float>(parts, n * size_t(ranks))[size_t(ranks - 1) * n]) ==
          part[0] + float(ranks) * float(ranks - 1 - r.rank));
    DONE(ncclAllReduce(at(send), at(send), n, F32, SUM, r.comm, r.stream));
    HOLDS(r.get<float>(send, n) == sum);

    // Round the ring, and to oneself.
    const Pointer there = r.put(mine);
    DONE(ncclGroupStart());
    DONE(ncclSend(at(there), n, F32, (r.rank + 1) % ranks, r.comm, r.stream));
    DONE(ncclRecv(at(recv), n, F32, (r.rank + ranks - 1) % ranks, r.comm, r.stream));
    DONE(ncclSend(at(there), n, F32, r.rank, r.comm, r.stream));
    DONE(ncclRecv(at(send), n, F32, r.rank, r.comm, r.stream));
    DONE(ncclGroupEnd());
    HOLDS(r.get<float>(send, n) == mine);
    HOLDS((r.get<float>(recv, n)[n - 1] == value((r.rank + ranks - 1) % ranks, n - 1)));
    for (const Pointer used : {send, recv, gathered, parts, there}) {
        DONE(cuMemFree_v2(used));
    }
}

template <class T> T reduced(Rank& r, T mine, int type, int operation) {
    const Pointer buffer = r.put(std::vector<T>(3, mine));
    DONE(ncclAllReduce(at(buffer), at(buffer), 3, type, operation, r.comm, r.stream));
    const std::vector<T> result = r.get<T>(buffer, 3);
    EQUAL(result[0], result[2]);
    return result[1];
}

void types(Rank& r) {
    const int k = r.rank;  // of two
    EQUAL(reduced<int8_t>(r, int8_t(-3 + k), I8, SUM), -5);
    EQUAL(reduced<uint8_t>(r, uint8_t(200 + k), U8, MAX), 201);
    EQUAL(reduced<int32_t>(r, -7 - k, I32, MIN), -8);
    EQUAL(reduced<int64_t>(r, (int64_t(1) << 40) + k, I64, SUM), (int64_t(1) << 41) + 1);
    EQUAL(reduced<double>(r, 1.0 + k * 1e-12, F64, SUM), 2.0 + 1e-12);
    EQUAL(reduced<float>(r, 3.0f + float(k), F32, AVG), 3.5f);
    EQUAL(reduced<float>(r, 3.0f + float(k), F32, PROD), 12.0f);
    EQUAL(reduced<uint16_t>(r, uint16_t(k == 0 ? 0x3c00 : 0x4000), F16, SUM), 0x4200);   // 1 + 2 = 3
    EQUAL(reduced<uint16_t>(r, uint16_t(k == 0 ? 0x3f80 : 0x4000), BF16, AVG), 0x3fc0);  // (1 + 2) / 2 = 1.5
    EQUAL(reduced<uint16_t>(r, uint16_t(k == 0 ? 0x3f80 : 0x4000), BF16, MAX), 0x4000);
}

bool several(int ranks) {
    const Id id = new_id();
    return all_well(ranks, [&](int rank) {
        Rank r(rank, ranks, id);
        int count = 0, mine = 0, device = 0;
        DONE(ncclCommCount(r.comm, &count));
        DONE(ncclCommUserRank(r.comm, &mine));
        DONE(ncclCommCuDevice(r.comm, &device));
        HOLDS(count == ranks && mine == rank && device == rank);
        for (const size_t n : {size_t(1), size_t(7), (size_t(1) << 20) + 3}) {
            collectives(r, n);
        }
        if (ranks == 2) {
            types(r);
        }
        if (ranks == 4) {
            // In the order of the ranks: 1 is lost in 2^24, not in 2^24 - 2^24.
            const float terms[] = {0x1p24f, 1.0f, -0x1p24f, 1.0f};
            EQUAL(reduced<float>(r, terms[rank], F32, SUM), 1.0f);
        }
        EQUAL(r.error(), 0);
        DONE(ncclCommDestroy(r.comm));
        EQUAL(ncclCommCount(r.comm, &count), INVALID_ARGUMENT);
    });
}

// What comes before and after a transfer on its stream, while the other rank is late.
bool order() {
    const Id id = new_id();
    Gate gate;
    return all_well(2, [&](int rank) {
        Rank r(rank, 2, id);
        const Pointer send = r.put(std::vector<unsigned>(4, 10)), recv = r.space<unsigned>(4);
        const Pointer other = r.put(std::vector<unsigned>(4, 1));
        if (rank == 1) {
            gate.pass();
        }
        DONE(ncclAllReduce(at(send), at(recv), 4, U32, SUM, r.comm, r.stream));
        DONE(cuMemsetD32Async(send, 1, 4, r.stream));
        if (rank == 0) {
            EQUAL(cuStreamQuery(r.stream), NOT_READY);
            gate.open();
        }
        // On another stream, behind the first one.
        DONE(ncclAllReduce(at(other), at(other), 4, U32, SUM, r.comm, nullptr));
        EQUAL(r.get<unsigned>(recv, 4)[3], 20u);
        DONE(cuStreamSynchronize(nullptr));
        EQUAL(r.get<unsigned>(other, 4)[3], 2u);
        EQUAL(r.get<unsigned>(send, 4)[3], 1u);
        DONE(ncclCommDestroy(r.comm));
    });
}

// A rank that waits for something else than its stream keeps nobody waiting.
bool goes_on_alone() {
    const Id id = new_id();
    Gate gate;
    return all_well(2, [&](int rank) {
        Rank r(rank, 2, id);
        const Pointer buffer = r.put(std::vector<float>(4, 1.0f));
        DONE(ncclAllReduce(at(buffer), at(buffer), 4, F32, SUM, r.comm, r.stream));
        DONE(cuMemsetD32Async(buffer, 0x40400000, 2, r.stream));  // 3
        DONE(ncclAllReduce(at(buffer), at(buffer), 4, F32, SUM, r.comm, r.stream));
        if (rank == 0) {
            gate.pass();
        } else {
            HOLDS(r.get<float>(buffer, 4) == std::vector<float>({6, 6, 4, 4}));
            gate.open();
        }
    });
}

bool killed() {
    const Id id = new_id();
    const std::vector<int> ended = statuses(3, [&](int rank) {
        Rank r(rank, 3, id);
        EQUAL(reduced<float>(r, 1.0f, F32, SUM), 3.0f);
        if (rank == 1) {
            raise(SIGKILL);
        }
        const Pointer buffer = r.put(std::vector<float>(4, 1.0f));
        const auto begun = std::chrono::steady_clock::now();
        const int called = ncclAllReduce(at(buffer), at(buffer), 4, F32, SUM, r.comm, r.stream);
        HOLDS(called == 0 || called == REMOTE_ERROR);
        DONE(cuStreamSynchronize(r.stream));
        HOLDS(std::chrono::steady_clock::now() - begun < std::chrono::seconds(2));
        EQUAL(r.error(), REMOTE_ERROR);
        HOLDS(std::isnan(r.get<float>(buffer, 4)[0]));
        EQUAL(ncclAllReduce(at(buffer), at(buffer), 4, F32, SUM, r.comm, r.stream), REMOTE_ERROR);
        DONE(ncclCommAbort(r.comm));
    });
    return ended[0] == 0 && WIFSIGNALED(ended[1]) && ended[2] == 0;
}

bool aborted() {
    const Id id = new_id();
    Gate gate;
    return all_well(2, [&](int rank) {
        Rank r(rank, 2, id);
        const Pointer buffer = r.put(std::vector<float>(4, 1.0f));
        if (rank == 1) {
            gate.pass();
            // Rank 0 has put its part of the first one down; nobody comes to the second.
            DONE(ncclAllReduce(at(buffer), at(buffer), 4, F32, SUM, r.comm, r.stream));
            DONE(ncclAllReduce(at(buffer), at(buffer), 4, F32, SUM, r.comm, r.stream));
            DONE(cuStreamSynchronize(r.stream));
            EQUAL(r.error(), REMOTE_ERROR);
            return;
        }
        DONE(ncclAllReduce(at(buffer), at(buffer), 4, F32, SUM, r.comm, r.stream));
        EQUAL(cuStreamQuery(r.stream), NOT_READY);
        EQUAL(r.error(), 0);
        std::thread other([&] {
            sleep_ms(100);
            DONE(ncclCommAbort(r.comm));
        });
        DONE(cuStreamSynchronize(r.stream));
        other.join();
        gate.open();
        HOLDS(std::isnan(r.get<float>(buffer, 4)[0]));
        int error = 0;
        EQUAL(ncclCommGetAsyncError(r.comm, &error), INVALID_ARGUMENT);
    });
}

bool duplicate() {
    const Id id = new_id();
    return all_well(2, [&](int rank) {
        use(1);
        Comm comm = nullptr;
        EQUAL(ncclCommInitRank(&comm, 2, id, rank), INVALID_USAGE);
    });
}

// A rank's own device by CUDA_VISIBLE_DEVICES.
bool visible() {
    const Id id = new_id();
    return all_well(2, [&](int rank) {
        setenv("CUDA_VISIBLE_DEVICES", rank == 0 ? "3" : "1,2,9", 1);
        int count = 0;
        use(0);
        DONE(cuDeviceGetCount(&count));
        EQUAL(count, rank == 0 ? 1 : 2);
        Comm comm = nullptr;
        DONE(ncclCommInitRank(&comm, 2, id, rank));
        DONE(ncclCommDestroy(comm));
    });
}

bool jobs() {
    const Id ids[2] = {new_id(), new_id()};
    return all_well(4, [&](int process) {
        const int job = process % 2;
        Rank r(process / 2, 2, ids[job]);
        for (int i = 0; i < 50; i++) {
            EQUAL(reduced<float>(r, float(1 + 10 * job + i), F32, SUM), float(2 + 20 * job + 2 * i));
        }
        DONE(ncclCommDestroy(r.comm));
    });
}

bool threads() {
    return all_well(1, [](int) {
        const Id id = new_id();
        std::vector<std::thread> all;
        for (int rank = 0; rank < 3; rank++) {
            all.emplace_back([=] {
                Rank r(rank, 3, id);
                collectives(r, 1000);
                DONE(ncclCommDestroy(r.comm));
            });
        }
        for (std::thread& one : all) {
            one.join();
        }
    });
}

bool one_thread() {
    return all_well(1, [](int) {
        Comm comms[2];
        Pointer buffers[2];
        DONE(cuInit(0));
        DONE(ncclCommInitAll(comms, 2, nullptr));
        for (int device = 0; device < 2; device++) {
            use(device);
            DONE(cuMemAlloc_v2(&buffers[device], 16));
            DONE(cuMemsetD32Async(buffers[device], unsigned(device + 1), 4, nullptr));
        }
        // Memory of another device is not this communicator's.
        void* const other = at(buffers[1]);
        EQUAL(ncclAllReduce(other, other, 4, I32, SUM, comms[0], nullptr), INVALID_ARGUMENT);
        DONE(ncclGroupStart());
        for (int device = 0; device < 2; device++) {
            use(device);
            void* const own = at(buffers[device]);
            DONE(ncclAllReduce(own, own, 4, I32, SUM, comms[device], nullptr));
        }
        DONE(ncclGroupEnd());
        for (int device = 0; device < 2; device++) {
            use(device);
            int values[4];
            DONE(cuMemcpyDtoHAsync_v2(values, buffers[device], 16, nullptr));
            EQUAL(values[3], 3);
            DONE(ncclCommDestroy(comms[device]));
        }
    });
}

bool mismatch() {
    const Id id = new_id();
    return all_well(2, [&](int rank) {
        Rank r(rank, 2, id);
        const Pointer buffer = r.put(std::vector<float>(8, 1.0f));
        DONE(ncclAllReduce(at(buffer), at(buffer), size_t(4 + rank), F32, SUM, r.comm, r.stream));
        DONE(cuStreamSynchronize(r.stream));
        EQUAL(r.error(), INVALID_USAGE);
    });
}

bool joining() {
    const Id id = new_id(), never = new_id();
    return all_well(2, [&](int rank) {
        use(rank);
        Config config = {sizeof(Config), 0xcafebeef, 22703, 0, {}};
        int error = IN_PROGRESS;
        Comm comm = nullptr;
        sleep_ms(100 * rank);
        EQUAL(ncclCommInitRankConfig(&comm, 2, id, rank, &config), IN_PROGRESS);
        while (error == IN_PROGRESS) {
            sleep_ms(1);
            DONE(ncclCommGetAsyncError(comm, &error));
        }
        EQUAL(error, 0);
        DONE(ncclCommDestroy(comm));
        // Nobody else comes.
        EQUAL(ncclCommInitRankConfig(&comm, 3, never, rank, &config), IN_PROGRESS);
        sleep_ms(50);
        DONE(ncclCommGetAsyncError(comm, &error));
        HOLDS(error == IN_PROGRESS || error == REMOTE_ERROR);
        DONE(ncclCommAbort(comm));
    });
}

bool refused() {
    const Id id = new_id();
    return all_well(2, [&](int rank) {
        use(rank);
        Comm comm = nullptr;
        const int result = ncclCommInitRank(&comm, 2 + rank, id, rank);
        HOLDS(result == INVALID_ARGUMENT || result == REMOTE_ERROR);
    });
}

bool memory() {
    return all_well(1, [](int) {
        size_t free[2], total;
        Pointer buffer = 0;
        use(1);
        DONE(cuMemAlloc_v2(&buffer, 1 << 20));
        for (int device = 0; device < 2; device++) {
            use(device);
            DONE(cuMemGetInfo_v2(&free[device], &total));
        }
        EQUAL(free[0], total);
        EQUAL(free[1], total - (1 << 20));
    });
}

struct Case {
    const char* name;
    std::function<bool()> run;
};

}  // namespace

int main(int count, char** arguments) {
    setenv("CALM_HOST_DEVICES", "4", 1);
    const Case cases[] = {
        {"one process", [] { return several(1); }},
        {"two processes", [] { return several(2); }},
        {"four processes", [] { return several(4); }},
        {"threads", threads},
        {"one thread", one_thread},
        {"order", order},
        {"goes on alone", goes_on_alone},
        {"a killed rank", killed},
        {"abort", aborted},
        {"duplicate device", duplicate},
        {"visible devices", visible},
        {"two jobs", jobs},
        {"mismatch", mismatch},
        {"joining", joining},
        {"refused", refused},
        {"memory", memory},
    };
    int failures = 0;
    for (const Case& one : cases) {
        if (count > 1 && std::string(arguments[1]) != one.name) {
            continue;
        }
        const auto begun = std::chrono::steady_clock::now();
        const bool passed = one.run();
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
        printf("nccl: %s: %s (%.2f s)\n", one.name, passed ? "ok" : "FAILED", took.count());
        fflush(stdout);
        failures += passed ? 0 : 1;
    }
    return failures == 0 ? 0 : 1;
}
