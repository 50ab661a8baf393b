// libnccl: the functions of the library, what they check, and groups.
#include "nccl_comm.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <string>

EXPORT int cuInit(unsigned flags);
EXPORT int cuDeviceGetCount(int* count);

namespace nccl {
namespace {

constexpr int VERSION = 22703;  // 2.27.3

struct LastError {
    std::mutex lock;
    char text[600] = "";
};
LastError& last_error() {
    static LastError& e = *new LastError;
    return e;
}

// A group of the calling thread.
struct Group {
    int depth = 0;
    Result error = SUCCESS;
    std::vector<Comm*> joining;
    struct Queued {
        Comm* comm;
        void* stream;
        std::vector<Call> calls;
    };
    std::vector<Queued> queued;
};
thread_local Group group;

#define COMM(comm)                                       \
    if (find(comm, __func__) == nullptr) {               \
        return INVALID_ARGUMENT;                         \
    }

// Whether the buffers are the one that the other's place for this rank is, or lie apart.
bool overlap_badly(const Call& call, const Room& room, size_t sent, size_t received) {
    const uintptr_t from = reinterpret_cast<uintptr_t>(call.send);
    const uintptr_t to = reinterpret_cast<uintptr_t>(call.recv);
    if (sent == 0 || received == 0 || from + sent <= to || to + received <= from) {
        return false;
    }
    const size_t own = size_t(room.rank) * std::min(sent, received);
    switch (call.kind) {
    case ALL_GATHER: return from != to + own;
    case REDUCE_SCATTER: return to != from + own;
    default: return from != to;
    }
}

Result check_buffer(const Comm* comm, Kind kind, const void* at, size_t bytes) {
    if (bytes == 0) {
        return SUCCESS;
    }
    if (calm_host_device_check_memory(at, bytes, name_of(kind)) != 0) {
        return INVALID_ARGUMENT;
    }
    const int device = calm_host_device_of(at);
    if (device != comm->room.device) {
        return fail(INVALID_ARGUMENT, "%s: memory of device %d, a communicator of device %d", name_of(kind),
                    device, comm->room.device);
    }
    return SUCCESS;
}

Result check(Comm* comm, const Call& call) {
    const Room& room = comm->room;
    const char* const name = name_of(call.kind);
    {
        std::lock_guard<std::mutex> held(comm->lock);
        if (comm->state == IN_PROGRESS) {
            return fail(INVALID_ARGUMENT, "%s: not all ranks have joined (ncclCommGetAsyncError tells)", name);
        }
        if (comm->state != SUCCESS) {
            return comm->state;
        }
    }
    if (call.root < 0 || call.root >= room.ranks) {
        return fail(INVALID_ARGUMENT, "%s: rank %d of %d", name, call.root, room.ranks);
    }
    if (call.type < 0 || call.type >= TYPES || call.operation < 0 || call.operation >= OPERATIONS) {
        return fail(INVALID_ARGUMENT, "%s: type %d, operation %d", name, call.type, call.operation);
    }
    const bool reduces = call.kind == ALL_REDUCE || call.kind == REDUCE || call.kind == REDUCE_SCATTER;
    if (reduces && size_of(call.type) == 1 && call.type != I8 && call.type != U8) {
        return fail(INVALID_ARGUMENT, "%s: sums in f8 are not there", name);
    }
    const size_t bytes = call.count * size_of(call.type), all = bytes * size_t(room.ranks);
    const bool is_root = room.rank == call.root;
    const bool only_receives = call.kind == RECV || (call.kind == BROADCAST && !is_root);
    const bool only_sends = call.kind == SEND || (call.kind == REDUCE && !is_root);
    const size_t sent = only_receives ? 0 : call.kind == REDUCE_SCATTER ? all : bytes;
    const size_t received = only_sends ? 0 : call.kind == ALL_GATHER ? all : bytes;
    if (const Result result = check_buffer(comm, call.kind, call.send, sent)) {
        return result;
    }
    if (const Result result = check_buffer(comm, call.kind, call.recv, received)) {
        return result;
    }
    return overlap_badly(call, room, sent, received)
               ? fail(INVALID_ARGUMENT, "%s: the buffers overlap and it is not in place", name)
               : SUCCESS;
}

Result submit(Comm* comm, void* stream, const Call& call) {
    if (find(comm, name_of(call.kind)) == nullptr) {
        return INVALID_ARGUMENT;
    }
    Result result = check(comm, call);
    if (result != SUCCESS) {
        group.error = group.depth > 0 && group.error == SUCCESS ? result : group.error;
        return result;
    }
    if (call.count == 0 && call.kind != SEND && call.kind != RECV) {
        return SUCCESS;
    }
    if (group.depth == 0) {
        return queue(comm, stream, {call});
    }
    for (Group::Queued& queued : group.queued) {
        if (queued.comm == comm) {
            if (queued.stream != stream) {
                group.error = fail(INVALID_USAGE, "%s: a group with two streams of one communicator",
                                   name_of(call.kind));
                return group.error;
            }
            // Collectives before messages, on every rank.
            queued.calls.push_back(call);
            return SUCCESS;
        }
    }
    group.queued.push_back(Group::Queued{comm, stream, {call}});
    return SUCCESS;
}

// Waits, at the end of the group, for the ranks that the calling thread has begun to join.
Result finish_joining(const std::vector<Comm*>& joining) {
    Result result = SUCCESS;
    for (Comm* const comm : joining) {
        const Result one = comm->blocking ? comm->wait_for_joining() : IN_PROGRESS;
        if (result == SUCCESS || (result == IN_PROGRESS && one != SUCCESS)) {
            result = one;
        }
    }
    return result;
}

}  // namespace

Result fail(Result result, const char* format, ...) {
    LastError& error = last_error();
    std::lock_guard<std::mutex> held(error.lock);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error.text, sizeof error.text, format, arguments);
    va_end(arguments);
    calm_host_device_complain((std::string("NCCL: ") + error.text).c_str());
    return result;
}

}  // namespace nccl

using namespace nccl;

EXPORT int ncclGetVersion(int* version) {
    *version = VERSION;
    return SUCCESS;
}

EXPORT int ncclGetUniqueId(UniqueId* id) { return Room::create(id); }

EXPORT const char* ncclGetErrorString(int result) {
    constexpr const char* TEXTS[] = {"no error",         "unhandled CUDA error", "unhandled system error",
                                     "internal error",   "invalid argument",     "invalid usage",
                                     "a remote process has exited or there was an error on its side",
                                     "in progress"};
    return result >= 0 && result <= IN_PROGRESS ? TEXTS[result] : "unknown result code";
}

EXPORT const char* ncclGetLastError(Comm*) { return last_error().text; }

// ncclConfig_t, as far as it is read.
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking;
};

EXPORT int ncclCommInitRankConfig(Comm** comm, int ranks, UniqueId id, int rank, const Config* config) {
    constexpr unsigned MAGIC = 0xcafebeef;
    if (config != nullptr && config->magic != MAGIC) {
        return fail(INVALID_ARGUMENT, "a configuration that does not begin like NCCL_CONFIG_INITIALIZER");
    }
    if (ranks < 1 || ranks > Room::MAX_RANKS || rank < 0 || rank >= ranks) {
        return fail(INVALID_ARGUMENT, "rank %d of %d; at most %d ranks", rank, ranks, Room::MAX_RANKS);
    }
    const int device = calm_host_device_current();
    if (device < 0) {
        return fail(CUDA_ERROR, "%s without a current context", __func__);
    }
    const bool blocking = config == nullptr || config->blocking != 0;
    *comm = begin(id, ranks, rank, device, blocking);
    if (group.depth > 0) {
        group.joining.push_back(*comm);
        return SUCCESS;
    }
    return finish_joining({*comm});
}

EXPORT int ncclCommInitRank(Comm** comm, int ranks, UniqueId id, int rank) {
    return ncclCommInitRankConfig(comm, ranks, id, rank, nullptr);
}

EXPORT int ncclCommInitRankScalable(Comm** comm, int ranks, int rank, int ids, const UniqueId* id,
                                    const Config* config) {
    return ids < 1 ? int(INVALID_ARGUMENT) : ncclCommInitRankConfig(comm, ranks, *id, rank, config);
}

EXPORT int ncclCommInitAll(Comm** all, int count, const int* devices) {
    int there = 0;
    UniqueId id;
    if (cuInit(0) != 0 || cuDeviceGetCount(&there) != 0) {
        return CUDA_ERROR;
    }
    if (count < 1 || count > there) {
        return fail(INVALID_ARGUMENT, "%d communicators for %d devices", count, there);
    }
    for (int i = 0; devices != nullptr && i < count; i++) {
        if (devices[i] < 0 || devices[i] >= there) {
            return fail(INVALID_ARGUMENT, "device %d of %d", devices[i], there);
        }
    }
    if (const Result result = Room::create(&id)) {
        return result;
    }
    for (int i = 0; i < count; i++) {
        all[i] = begin(id, count, i, devices == nullptr ? i : devices[i], true);
    }
    return finish_joining(std::vector<Comm*>(all, all + count));
}

EXPORT int ncclCommFinalize(Comm* comm) {
    COMM(comm)
    std::shared_ptr<void> last;
    {
        std::lock_guard<std::mutex> held(comm->lock);
        last = comm->last;
    }
    if (last != nullptr) {
        calm_host_device_finish(last.get());
    }
    return SUCCESS;
}

EXPORT int ncclCommDestroy(Comm* comm) {
    if (const int result = ncclCommFinalize(comm)) {
        return result;
    }
    // One that is still joining does not come to an end by itself.
    bool joining;
    {
        std::lock_guard<std::mutex> held(comm->lock);
        joining = comm->state == IN_PROGRESS;
    }
    comm->end(joining);
    return SUCCESS;
}

EXPORT int ncclCommAbort(Comm* comm) {
    COMM(comm)
    comm->end(true);
    return SUCCESS;
}

EXPORT int ncclCommGetAsyncError(Comm* comm, int* error) {
    *error = INVALID_ARGUMENT;
    COMM(comm)
    std::lock_guard<std::mutex> held(comm->lock);
    *error = comm->state;
    return SUCCESS;
}

EXPORT int ncclCommCount(Comm* comm, int* count) {
    COMM(comm)
    *count = comm->room.ranks;
    return SUCCESS;
}

EXPORT int ncclCommCuDevice(Comm* comm, int* device) {
    COMM(comm)
    *device = comm->room.device;
    return SUCCESS;
}

EXPORT int ncclCommUserRank(Comm* comm, int* rank) {
    COMM(comm)
    *rank = comm->room.rank;
    return SUCCESS;
}

EXPORT int ncclGroupStart() {
    group.depth++;
    return SUCCESS;
}

EXPORT int ncclGroupEnd() {
    if (group.depth == 0) {
        return fail(INVALID_USAGE, "ncclGroupEnd without ncclGroupStart");
    }
    if (--group.depth > 0) {
        return SUCCESS;
    }
    const Group ended = std::move(group);
    group = Group();
    Result result = ended.error;
    for (const Group::Queued& queued : ended.queued) {
        if (result == SUCCESS) {
            result = queue(queued.comm, queued.stream, queued.calls);
        }
    }
    const Result joined = finish_joining(ended.joining);
    return result == SUCCESS ? joined : result;
}

EXPORT int ncclAllReduce(const void* send, void* recv, size_t count, Type type, Operation operation,
                         Comm* comm, void* stream) {
    return submit(comm, stream, Call{ALL_REDUCE, type, operation, 0, count, send, recv});
}

EXPORT int ncclReduce(const void* send, void* recv, size_t count, Type type, Operation operation, int root,
                      Comm* comm, void* stream) {
    return submit(comm, stream, Call{REDUCE, type, operation, root, count, send, recv});
}

EXPORT int ncclBroadcast(const void* send, void* recv, size_t count, Type type, int root, Comm* comm,
                         void* stream) {
    return submit(comm, stream, Call{BROADCAST, type, SUM, root, count, send, recv});
}

EXPORT int ncclBcast(void* buffer, size_t count, Type type, int root, Comm* comm, void* stream) {
    return ncclBroadcast(buffer, buffer, count, type, root, comm, stream);
}

EXPORT int ncclAllGather(const void* send, void* recv, size_t count, Type type, Comm* comm, void* stream) {
    return submit(comm, stream, Call{ALL_GATHER, type, SUM, 0, count, send, recv});
}

EXPORT int ncclReduceScatter(const void* send, void* recv, size_t count, Type type, Operation operation,
                             Comm* comm, void* stream) {
    return submit(comm, stream, Call{REDUCE_SCATTER, type, operation, 0, count, send, recv});
}

EXPORT int ncclSend(const void* send, size_t count, Type type, int peer, Comm* comm, void* stream) {
    return submit(comm, stream, Call{SEND, type, SUM, peer, count, send, nullptr});
}

EXPORT int ncclRecv(void* recv, size_t count, Type type, int peer, Comm* comm, void* stream) {
    return submit(comm, stream, Call{RECV, type, SUM, peer, count, nullptr, recv});
}
