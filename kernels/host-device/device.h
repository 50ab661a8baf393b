// What the libraries of the host device share: status codes, memory, streams, counters.
//
// One lock guards everything (`Guard`); it is held while work runs, so that work of several host threads
// never overlaps. It is given up only to wait for work that is done elsewhere, a transfer between devices.
// libcuda.so.1 holds the state; the other libraries reach it through the exported functions at the end.
#pragma once

#include <condition_variable>
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

// A lock that its thread may take several times, and may give up altogether for a while.
class DeviceLock {
  public:
    void lock();
    void unlock();
    // Waits, without the lock, until `passed`, which is asked with the lock held after every `wake`.
    void wait(const std::function<bool()>& passed);
    void wake() { woken.notify_all(); }

  private:
    std::recursive_mutex mutex;
    unsigned depth = 0;
    std::condition_variable_any woken;
};

extern DeviceLock& device_lock;
struct Guard {
    std::lock_guard<DeviceLock> held{device_lock};
};

// Devices are counted from 0, as the program sees them (driver.cpp).
constexpr int MAX_DEVICES = 16;
int device_count();
// Of the calling thread's context; 0 if it has none.
int current_device();

// Prints "calm host device: ..." to standard error and returns the status.
__attribute__((format(printf, 2, 3))) Status complain(Status status, const char* format, ...);

// True if the environment variable is 1.
bool switched_on(const char* variable);

// An error of work that ran: every later call returns it, as on a device. The first one stays.
void fail_device(Status status);
Status device_failure();

// ---- memory.cpp ----

Status allocate(uint64_t* pointer, size_t bytes, int device);
// No later call may name the memory; it is returned by `release`.
Status retire(uint64_t pointer);
void release(uint64_t pointer);
// Whether all of the range lies in one live allocation; bytes may be 0, and then the end is allowed.
bool is_device_memory(uint64_t pointer, size_t bytes);
// Base and size of the live allocation that holds the pointer.
bool allocation_of(uint64_t pointer, uint64_t* base, size_t* bytes);
// The device of the live allocation that holds the pointer; -1 if none does.
int device_of(uint64_t pointer);
// Fails the device if the bytes around the allocation of the pointer have been written.
void check_surroundings(uint64_t pointer, const char* who);
// Of one device; all have the same.
size_t total_memory();
size_t used_memory(int device);
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

// The stream of a CUstream handle: 0 and 1 the device's legacy default stream, 2 the calling thread's; null
// if none.
StreamRef find_stream(void* handle, int device = current_device());
int device_of(const StreamRef& stream);
Status create_stream(void** handle, bool blocking);
Status destroy_stream(void* handle);
// Queues work in stream order and returns its place; unless CALM_HOST_DEVICE_LATE=1 it runs as soon as what
// lies before it has been done.
uint64_t enqueue(const StreamRef& stream, std::function<void()> work);
// Runs what is queued on the stream, or on all of the device's; waits for what is done elsewhere.
void finish(const StreamRef& stream);
void finish_all(int device);
// Runs what can be run without waiting.
void advance(const StreamRef& stream);
bool is_finished(const StreamRef& stream);
// Counts a call that waits for the device.
void count_synchronisation();

// A place in a stream's order, with the time when it was passed.
struct Moment;
using MomentRef = std::shared_ptr<Moment>;
MomentRef record(const StreamRef& stream);
void wait_for(const StreamRef& stream, const MomentRef& moment);
void finish(const MomentRef& moment);
void advance(const MomentRef& moment);
bool is_finished(const MomentRef& moment);
double milliseconds(const MomentRef& from, const MomentRef& to);

// Work that is done elsewhere. `start` is called, with the lock held, when the stream has come there; the
// stream goes on after `done`, which any thread may call.
struct Outside;
using OutsideRef = std::shared_ptr<Outside>;
OutsideRef make_outside(std::function<void()> start);
void enqueue(const StreamRef& stream, const OutsideRef& outside);
void done(const OutsideRef& outside);
// Where it lies in its stream; null before it is queued.
const MomentRef& place_of(const OutsideRef& outside);

// Calls that waited for the device: of all threads, and of the calling one.
extern uint64_t synchronisations;
extern thread_local uint64_t synchronisations_here;
extern uint64_t launches;

}  // namespace host_device

// Counters for tests, and what the other libraries need.
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
// Work that is done elsewhere (`Outside`), given back with `calm_host_device_forget`: start(data) is called
// when the stream has come there, with the lock held, and must not wait; the stream goes on after
// `calm_host_device_done`. It is queued on a stream of the device, behind the work `after` unless null.
EXPORT void* calm_host_device_outside(void (*start)(void*), void* data);
EXPORT int calm_host_device_enqueue_outside(void* work, int device, void* stream, void* after);
EXPORT void calm_host_device_done(void* work);
EXPORT void calm_host_device_forget(void* work);
// Runs what lies before the work: without waiting, or until it is done.
EXPORT void calm_host_device_advance(void* work);
EXPORT void calm_host_device_finish(void* work);
// The device of the calling thread's context, -1 without one; the device of memory, -1 if it is none; the
// address of a device on the bus, which is the same in every process.
EXPORT int calm_host_device_current();
EXPORT int calm_host_device_of(const void* pointer);
EXPORT void calm_host_device_bus(int device, char* address, uint64_t size);
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
