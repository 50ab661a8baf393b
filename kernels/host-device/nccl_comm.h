// libnccl: communicators.
//
// A communicator has a thread of its own. It joins the others, and carries calls out when their stream has
// come to them (`calm_host_device_outside`): a call returns at once, and its stream stands still until all
// ranks have come. What goes wrong after that is the communicator's state, which ncclCommGetAsyncError tells
// and every later call returns; the stream goes on, with NaN where data should have come.
#pragma once

#include "nccl.h"

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>

namespace nccl {

struct Comm;

// The calls of one group on one communicator.
struct Job {
    Comm* comm;
    std::vector<Call> calls;
    // Of the stream that waits for it.
    std::shared_ptr<void> work;
};

struct Comm {
    Comm(const UniqueId& id, int ranks, int rank, int device, bool blocking)
        : room(id, ranks, rank, device), blocking(blocking) {}

    Room room;
    const bool blocking;

    // Only one thread queues at a time; taken before the device's lock, `lock` after it.
    std::mutex queueing;
    std::mutex lock;
    std::condition_variable changed;
    Result state = IN_PROGRESS;
    // Calls that their streams have come to; all that are queued and not done; the last of these.
    std::deque<Job*> ready;
    size_t queued = 0;
    std::shared_ptr<void> last;
    // Destroyed or aborted; and then its rank has left the room.
    bool ended = false, aborted = false, left = false;

    void work();
    Result wait_for_joining();
    void end(bool at_once);

  private:
    void run(Job* job);
};

Comm* begin(const UniqueId& id, int ranks, int rank, int device, bool blocking);
// The communicator of a handle, or null after a message.
Comm* find(Comm* comm, const char* who);
// Queues the calls of one group on a stream.
Result queue(Comm* comm, void* stream, std::vector<Call> calls);

}  // namespace nccl
