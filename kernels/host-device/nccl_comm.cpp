// libnccl: the life of a communicator, what its thread does, and how calls are queued.
#include "nccl_comm.h"

#include <chrono>
#include <set>
#include <thread>

namespace nccl {
namespace {

// How long the thread of a communicator leaves work alone that lies before a call and that nothing waits for.
constexpr std::chrono::milliseconds PATIENCE{20};

// Communicators are kept when they have ended, so that a handle which is used too long says so.
struct Comms {
    std::mutex lock;
    std::set<Comm*> all;
};
Comms& comms() {
    static Comms& c = *new Comms;
    return c;
}

// Called with the device's lock held.
void start(void* data) {
    Job* const job = static_cast<Job*>(data);
    std::lock_guard<std::mutex> held(job->comm->lock);
    job->comm->ready.push_back(job);
    job->comm->changed.notify_all();
}

}  // namespace

void Comm::run(Job* job) {
    Result result = INVALID_USAGE;
    {
        std::lock_guard<std::mutex> held(lock);
        result = aborted || left ? INVALID_USAGE : state;
    }
    if (result == SUCCESS) {
        result = carry_out(room, job->calls);
        if (result != SUCCESS) {
            room.report_failure();
            std::lock_guard<std::mutex> held(lock);
            state = result;
        }
    }
    if (result != SUCCESS) {
        spoil(room, job->calls);
    }
    calm_host_device_done(job->work.get());
    delete job;
    std::lock_guard<std::mutex> held(lock);
    queued--;
    changed.notify_all();
}

// What the communicator's thread does.
void Comm::work() {
    const Result joined = room.join();
    if (joined != SUCCESS) {
        room.report_failure();
    }
    std::unique_lock<std::mutex> held(lock);
    state = joined;
    changed.notify_all();
    for (;;) {
        const auto called = [&] { return !ready.empty() || (ended && (!left || queued == 0)); };
        if (queued == 0) {
            changed.wait(held, [&] { return called() || queued > 0; });
        } else {
            changed.wait_for(held, PATIENCE, called);
        }
        if (!ready.empty()) {
            Job* const job = ready.front();
            ready.pop_front();
            held.unlock();
            run(job);
            held.lock();
        } else if (ended && !left) {
            room.leave();
            left = true;
            changed.notify_all();
        } else if (ended && queued == 0) {
            return;
        } else if (queued > 0) {
            const std::shared_ptr<void> waiting = last;
            held.unlock();
            calm_host_device_advance(waiting.get());
            held.lock();
        }
    }
}

Result Comm::wait_for_joining() {
    std::unique_lock<std::mutex> held(lock);
    changed.wait(held, [&] { return state != IN_PROGRESS; });
    return state;
}

void Comm::end(bool at_once) {
    std::unique_lock<std::mutex> held(lock);
    ended = true;
    if (at_once) {
        aborted = true;
        room.abort();
    }
    changed.notify_all();
    changed.wait(held, [&] { return left; });
}

Comm* begin(const UniqueId& id, int ranks, int rank, int device, bool blocking) {
    Comm* const comm = new Comm(id, ranks, rank, device, blocking);
    {
        std::lock_guard<std::mutex> held(comms().lock);
        comms().all.insert(comm);
    }
    std::thread([comm] { comm->work(); }).detach();
    return comm;
}

Comm* find(Comm* comm, const char* who) {
    std::lock_guard<std::mutex> held(comms().lock);
    if (comms().all.count(comm) == 0) {
        fail(INVALID_ARGUMENT, "%s: %p is no communicator", who, static_cast<void*>(comm));
        return nullptr;
    }
    std::lock_guard<std::mutex> state(comm->lock);
    if (comm->ended) {
        fail(INVALID_ARGUMENT, "%s: the communicator has been destroyed or aborted", who);
        return nullptr;
    }
    return comm;
}

Result queue(Comm* comm, void* stream, std::vector<Call> calls) {
    std::lock_guard<std::mutex> one(comm->queueing);
    Job* const job = new Job{comm, std::move(calls), nullptr};
    const std::shared_ptr<void> work(calm_host_device_outside(start, job), calm_host_device_forget);
    job->work = work;
    std::shared_ptr<void> before = work;
    {
        std::lock_guard<std::mutex> held(comm->lock);
        comm->queued++;
        std::swap(before, comm->last);
    }
    // The calls of a communicator keep their order on whatever stream.
    const int status = calm_host_device_enqueue_outside(work.get(), comm->room.device, stream, before.get());
    std::lock_guard<std::mutex> held(comm->lock);
    comm->changed.notify_all();
    if (status == 0) {
        return SUCCESS;
    }
    delete job;
    comm->queued--;
    comm->last = before;
    return CUDA_ERROR;
}

}  // namespace nccl
