// libnccl, what its files share: status codes, the room in which the ranks of a communicator meet, and the
// calls that are carried out there.
#pragma once

#include "device.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

namespace nccl {

// ncclResult_t.
enum Result : int {
    SUCCESS = 0,
    CUDA_ERROR = 1,
    SYSTEM_ERROR = 2,
    INTERNAL_ERROR = 3,
    INVALID_ARGUMENT = 4,
    INVALID_USAGE = 5,
    REMOTE_ERROR = 6,
    IN_PROGRESS = 7,
};

// Prints "calm host device: NCCL: ..." to standard error, keeps it for ncclGetLastError, returns the result.
__attribute__((format(printf, 2, 3))) Result fail(Result result, const char* format, ...);

// ncclUniqueId.
struct UniqueId {
    char internal[128];
};

// ncclDataType_t and ncclRedOp_t, as far as they are here.
enum Type : int { I8, U8, I32, U32, I64, U64, F16, F32, F64, BF16, F8E4M3, F8E5M2, TYPES };
enum Operation : int { SUM, PROD, MAX, MIN, AVG, OPERATIONS };

enum Kind : uint32_t { ALL_REDUCE, REDUCE, BROADCAST, ALL_GATHER, REDUCE_SCATTER, SEND, RECV };
const char* name_of(Kind kind);
const char* name_of(Type type);
size_t size_of(Type type);

// One call. `root` is the peer of SEND and RECV; what a kind does not have is 0.
struct Call {
    Kind kind;
    Type type;
    Operation operation;
    int root;
    // Elements, as the call counts them.
    uint64_t count;
    const void* send;
    void* recv;
};

// ---- nccl_room.cpp ----

struct Header;
struct Seat;

// What all ranks must say alike in a collective.
struct Agreement {
    uint32_t kind, type, operation;
    int32_t root;
    uint64_t count;
};

// A message channel from one rank to another: pieces, as many as PIECES on the way.
constexpr size_t PIECE = 256 << 10;
constexpr uint64_t PIECES = 2;
struct Channel {
    std::atomic<uint64_t> written, read;
    // Of each piece: its bytes and those of the message it belongs to.
    uint64_t bytes[PIECES], message[PIECES];
};

// The shared memory of a communicator, as one rank sees it.
class Room {
  public:
    // What every rank puts down in a turn, at most.
    static constexpr size_t SLOT = 1 << 20;
    static constexpr int MAX_RANKS = 64;

    static Result create(UniqueId* id);

    Room(const UniqueId& id, int ranks, int rank, int device)
        : id(id), ranks(ranks), rank(rank), device(device) {}
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;

    // Waits for all ranks.
    Result join();
    // Ends the waiting of this rank, now and later.
    void abort();
    // Tells the others that this rank has failed.
    void report_failure();
    // Gives the memory back; then this rank has gone. Not at the same time as `abort`.
    void leave();

    // The next turn of a collective: where this rank puts its part down; then all wait for all, and read.
    char* my_slot();
    Result turn(const Agreement& agreement);
    const char* slot_of(int other) const;

    // Between `from` and `to`; `data` of a piece by its number.
    Channel& channel(int from, int to);
    char* data(Channel& channel, uint64_t piece);
    void ring(int other);

    // Until pending(r) is false for every rank r; fails when a rank that it is true for has gone.
    Result wait(const std::function<bool(int)>& pending);

    const UniqueId id;
    const int ranks, rank, device;

  private:
    bool has_gone(int other) const;
    Result enter();
    char* slot(int other, uint64_t turn) const;

    std::atomic<Header*> header{nullptr};
    std::atomic<bool> aborted{false};
    size_t size = 0;
    int file = -1;
    uint64_t turns = 0;
};

// ---- nccl_calls.cpp ----

// Carries the calls of one group out. If that fails, what they should have received is 0xFF, NaN.
Result carry_out(Room& room, const std::vector<Call>& calls);
void spoil(const Room& room, const std::vector<Call>& calls);

}  // namespace nccl
