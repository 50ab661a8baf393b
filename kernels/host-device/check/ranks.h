// What the cases of nccl.cpp work with: the functions, a rank with its stream, processes that may be killed.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

struct Id {
    char internal[128];
};
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking;
    char rest[100];
};
using Comm = void*;
using Pointer = uint64_t;

extern "C" {
int cuInit(unsigned);
int cuDeviceGetCount(int*);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
int cuMemAlloc_v2(Pointer*, size_t);
int cuMemFree_v2(Pointer);
int cuMemGetInfo_v2(size_t*, size_t*);
int cuMemcpyHtoDAsync_v2(Pointer, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, Pointer, size_t, void*);
int cuMemsetD32Async(Pointer, unsigned, size_t, void*);
int cuStreamCreate(void**, unsigned);
int cuStreamQuery(void*);
int cuStreamSynchronize(void*);
int ncclGetUniqueId(Id*);
int ncclGetVersion(int*);
int ncclCommInitRank(Comm*, int, Id, int);
int ncclCommInitRankConfig(Comm*, int, Id, int, Config*);
int ncclCommInitAll(Comm*, int, const int*);
int ncclCommDestroy(Comm);
int ncclCommAbort(Comm);
int ncclCommGetAsyncError(Comm, int*);
int ncclCommCount(Comm, int*);
int ncclCommUserRank(Comm, int*);
int ncclCommCuDevice(Comm, int*);
int ncclAllReduce(const void*, void*, size_t, int, int, Comm, void*);
int ncclReduce(const void*, void*, size_t, int, int, int, Comm, void*);
int ncclBroadcast(const void*, void*, size_t, int, int, Comm, void*);
int ncclAllGather(const void*, void*, size_t, int, Comm, void*);
int ncclReduceScatter(const void*, void*, size_t, int, int, Comm, void*);
int ncclSend(const void*, size_t, int, int, Comm, void*);
int ncclRecv(void*, size_t, int, int, Comm, void*);
int ncclGroupStart();
int ncclGroupEnd();
}

namespace {

constexpr int INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7, NOT_READY = 600;
enum { I8, U8, I32, U32, I64, U64, F16, F32, F64, BF16 };
enum { SUM, PROD, MAX, MIN, AVG };

#define EQUAL(a, b)                                                                                     \
    do {                                                                                                \
        const auto left = (a);                                                                          \
        const decltype(left) right = (b);                                                               \
        if (!(left == right)) {                                                                         \
            fprintf(stderr, "line %d: %s is %g, not %g\n", __LINE__, #a, double(left), double(right)); \
            _exit(1);                                                                                   \
        }                                                                                               \
    } while (false)
#define HOLDS(a) EQUAL(bool(a), true)
#define DONE(a) EQUAL((a), 0)

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

void use(int device) {
    void* context = nullptr;
    DONE(cuInit(0));
    DONE(cuDevicePrimaryCtxRetain(&context, device));
    DONE(cuCtxSetCurrent(context));
}

// What a rank works with.
struct Rank {
    Comm comm = nullptr;
    void* stream = nullptr;
    int rank, ranks;

    Rank(int rank, int ranks, const Id& id) : rank(rank), ranks(ranks) {
        use(rank);
        DONE(cuStreamCreate(&stream, 1));
        DONE(ncclCommInitRank(&comm, ranks, id, rank));
    }
    template <class T> Pointer put(const std::vector<T>& values) {
        Pointer at = 0;
        DONE(cuMemAlloc_v2(&at, values.size() * sizeof(T)));
        DONE(cuMemcpyHtoDAsync_v2(at, values.data(), values.size() * sizeof(T), stream));
        return at;
    }
    template <class T> Pointer space(size_t count) {
        Pointer at = 0;
        DONE(cuMemAlloc_v2(&at, count * sizeof(T)));
        return at;
    }
    template <class T> std::vector<T> get(Pointer at, size_t count) {
        std::vector<T> values(count);
        DONE(cuMemcpyDtoHAsync_v2(values.data(), at, count * sizeof(T), stream));
        return values;
    }
    int error() {
        int error = 0;
        DONE(ncclCommGetAsyncError(comm, &error));
        return error;
    }
};

void* at(Pointer pointer) { return reinterpret_cast<void*>(pointer); }

// Starts a process for each rank; the body's own end is a success. Returns what each ended with, by rank.
std::vector<int> statuses(int ranks, const std::function<void(int rank)>& body) {
    std::vector<pid_t> processes;
    for (int rank = 0; rank < ranks; rank++) {
        const pid_t process = fork();
        if (process == 0) {
            alarm(30);
            body(rank);
            _exit(0);
        }
        processes.push_back(process);
    }
    // In the order of the ranks: a rank that was killed is not yet taken up while rank 0 looks for it.
    std::vector<int> ended;
    for (const pid_t process : processes) {
        int status = 0;
        waitpid(process, &status, 0);
        ended.push_back(status);
    }
    return ended;
}

bool all_well(int ranks, const std::function<void(int rank)>& body) {
    for (const int status : statuses(ranks, body)) {
        if (status != 0) {
            return false;
        }
    }
    return true;
}

// One process goes on when another one lets it.
class Gate {
  public:
    Gate() { DONE(pipe(ends)); }
    void open() { EQUAL(write(ends[1], "", 1), 1); }
    void pass() {
        char passed;
        EQUAL(read(ends[0], &passed, 1), 1);
    }

  private:
    int ends[2];
};

Id new_id() {
    Id id;
    DONE(ncclGetUniqueId(&id));
    return id;
}

}  // namespace
