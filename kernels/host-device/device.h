// What the libraries of the host device share: status codes, memory, streams, counters.
//
// One lock guards everything (`Guard`); it is held while work runs, so that work of several host threads
// never overlaps. libcuda.so.1 holds the state; libcublas and libcurand reach it through the exported
// functions at the end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace host_device {

// CUresult.
enum Status : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    FILE_NOT_FOUND = 301,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    ASSERT = 710,
    NOT_SUPPORTED = 801,
};

extern std::recursive_mutex device_lock;
struct Guard {
    std::lock_guard<std::recursive_mutex> held{device_lock};
};

// Prints "calm host device: ..." to standard error and returns the status.
__attribute__((format(printf, 2, 3))) Status complain(Status status, const char* format, ...);

// True if the environment variable is 1.
bool switched_on(const char* variable);

// An error of work that ran: every later call returns it, as on a device. The first one stays.
void fail_device(Status status);
Status device_failure();

// ---- memory.cpp ----

Status allocate(uint64_t* pointer, size_t bytes);
// No later call may name the memory; it is returned by `release`.
Status retire(uint64_t pointer);
void release(uint64_t pointer);
// Whether all of the range lies in one live allocation; bytes may be 0, and then the end is allowed.
bool is_device_memory(uint64_t pointer, size_t bytes);
// Base and size of the live allocation that holds the pointer.
bool allocation_of(uint64_t pointer, uint64_t* base, size_t* bytes);
// Fails the device if the bytes around the allocation of the pointer have been written.
void check_surroundings(uint64_t pointer, const char* who);
size_t total_memory();
size_t used_memory();
size_t live_allocations();

Status allocate_pinned(void** pointer, size_t bytes);
Status free_pinned(void* pointer);
Status register_pinned(void* pointer, size_t bytes);
Status unregister_pinned(void* pointer);
bool is_pinned(const void* pointer, size_t bytes);

// The kernel that runs, for the message when it leaves its memory.
extern const char* volatile running;

// ---- stream.cpp ----

struct Stream;
using StreamRef = std::shared_ptr<Stream>;

// The stream of a CUstream handle: 0 and 1 the legacy default stream, 2 the calling thread's; null if none.
StreamRef find_stream(void* handle);
Status create_stream(void** handle, bool blocking);
Status destroy_stream(void* handle);
// Queues work in stream order; unless CALM_HOST_DEVICE_LATE=1 it runs at once.
void enqueue(const StreamRef& stream, std::function<void()> work);
// Runs what is queued on the stream, or on all of them.
void finish(const StreamRef& stream);
void finish_all();
bool is_finished(const StreamRef& stream);
// Counts a call that waits for the device.
void count_synchronisation();

// A place in a stream's order, with the time when it was passed.
struct Moment;
using MomentRef = std::shared_ptr<Moment>;
MomentRef record(const StreamRef& stream);
void wait_for(const StreamRef& stream, const MomentRef& moment);
void finish(const MomentRef& moment);
bool is_finished(const MomentRef& moment);
double milliseconds(const MomentRef& from, const MomentRef& to);

// Calls that waited for the device: of all threads, and of the calling one.
extern uint64_t synchronisations;
extern thread_local uint64_t synchronisations_here;
extern uint64_t launches;

}  // namespace host_device

// Counters for tests, and what libcublas and libcurand need.
EXPORT uint64_t calm_host_device_synchronisations();
EXPORT uint64_t calm_host_device_synchronisations_here();
EXPORT uint64_t calm_host_device_launches();
EXPORT uint64_t calm_host_device_live_allocations();
EXPORT uint64_t calm_host_device_live_bytes();
// 0 if the stream exists and the device has not failed.
EXPORT int calm_host_device_check_stream(void* stream);
// 0 if the range is live device memory.
EXPORT int calm_host_device_check_memory(const void* pointer, uint64_t bytes, const char* what);
// Queues run(data, size); data is copied.
EXPORT int calm_host_device_enqueue(void* stream, void (*run)(const void*), const void* data, uint64_t size);
// range(context, first, last) over parts of 0..count on the pool's threads.
EXPORT void calm_host_device_parallel(uint64_t count, uint64_t grain,
                                      void (*range)(const void*, uint64_t, uint64_t), const void* context);
EXPORT int calm_host_device_unsupported(const char* name, int status);
EXPORT void calm_host_device_complain(const char* text);
EXPORT void calm_host_device_check_surroundings(const void* pointer, const char* who);
EXPORT void calm_host_device_lock();
EXPORT void calm_host_device_unlock();
// Names the work that runs, for the message when it leaves its memory.
EXPORT void calm_host_device_set_running(const char* name);

namespace host_device {

// The lock, from the other libraries.
struct SharedGuard {
    SharedGuard() { calm_host_device_lock(); }
    ~SharedGuard() { calm_host_device_unlock(); }
    SharedGuard(const SharedGuard&) = delete;
    SharedGuard& operator=(const SharedGuard&) = delete;
};

}  // namespace host_device
