// Driver API: memory, copies, streams, events; and how the other libraries queue their work.
#include "driver.h"

#include <cstring>
#include <set>
#include <vector>

using namespace host_device;

namespace {

uint64_t address(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }
void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

Status check_range(uint64_t at, size_t bytes, const char* what) {
    if (bytes == 0 || is_device_memory(at, bytes)) {
        return SUCCESS;
    }
    return complain(INVALID_VALUE, "%s: %zu bytes at %#llx are not in a live allocation", what, bytes,
                    (unsigned long long)at);
}

#define CHECK(status)                          \
    if (const int checked = (status)) {        \
        return checked;                        \
    }

#define STREAM(name, handle)                                                          \
    const StreamRef name = find_stream(handle);                                       \
    if (name == nullptr) {                                                            \
        return complain(INVALID_HANDLE, "%s: no stream at %p", __func__, handle);     \
    }

int copy_to_device(uint64_t to, const void* from, size_t bytes, const StreamRef& stream) {
    if (bytes > 0 && is_device_memory(address(from), 0)) {
        return complain(INVALID_VALUE, "the source of a copy from the host is device memory");
    }
    if (is_pinned(from, bytes)) {
        enqueue(stream, [=] { memcpy(pointer(to), from, bytes); });
    } else {
        // A device copies pageable memory aside before the call returns.
        const char* const start = static_cast<const char*>(from);
        enqueue(stream, [to, kept = std::vector<char>(start, start + bytes)] {
            memcpy(pointer(to), kept.data(), kept.size());
        });
    }
    return SUCCESS;
}

// What was freed in stream order is in use until its stream has come there.
Status allocate_for(uint64_t* at, size_t bytes) {
    const int device = current_device();
    if (bytes > total_memory() - used_memory(device)) {
        finish_all(device);
    }
    return allocate(at, bytes, device);
}

struct Event {
    bool timing;
    MomentRef moment;
};

std::set<Event*>& events() {
    static std::set<Event*>& all = *new std::set<Event*>;
    return all;
}

#define EVENT(handle)                                                             \
    if (events().count(handle) == 0) {                                            \
        return complain(INVALID_HANDLE, "%s: no event at %p", __func__, static_cast<void*>(handle)); \
    }

constexpr unsigned DISABLE_TIMING = 2;
constexpr unsigned NON_BLOCKING = 1;
// What cuDeviceGetDefaultMemPool gives out; there is only this pool.
char default_pool;

}  // namespace

EXPORT int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    ENTER
    return allocate_for(at, bytes);
}

EXPORT int cuMemAllocAsync(uint64_t* at, size_t bytes, void* stream) {
    ENTER
    STREAM(order, stream)
    if (bytes == 0) {
        // Other than cuMemAlloc, for which this is an error.
        *at = 0;
        return SUCCESS;
    }
    return allocate_for(at, bytes);
}

EXPORT int cuMemAllocFromPoolAsync(uint64_t* at, size_t bytes, void* pool, void* stream) {
    return pool == &default_pool ? cuMemAllocAsync(at, bytes, stream) : int(INVALID_VALUE);
}

EXPORT int cuMemFree_v2(uint64_t at) {
    ENTER
    if (at == 0) {
        return SUCCESS;
    }
    const int device = device_of(at);
    CHECK(retire(at))
    count_synchronisation();
    finish_all(device);
    release(at);
    return device_failure();
}

EXPORT int cuMemFreeAsync(uint64_t at, void* stream) {
    ENTER
    STREAM(order, stream)
    if (at == 0) {
        return SUCCESS;
    }
    CHECK(retire(at))
    enqueue(order, [at] { release(at); });
    return SUCCESS;
}

EXPORT int cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    ENTER
    return allocate_pinned(at, bytes);
}

EXPORT int cuMemAllocHost_v2(void** at, size_t bytes) { return cuMemHostAlloc(at, bytes, 0); }

EXPORT int cuMemFreeHost(void* at) {
    ENTER
    count_synchronisation();
    finish_all(current_device());
    return free_pinned(at);
}

EXPORT int cuMemHostRegister_v2(void* at, size_t bytes, unsigned) {
    ENTER
    return register_pinned(at, bytes);
}

EXPORT int cuMemHostUnregister(void* at) {
    ENTER
    finish_all(current_device());
    return unregister_pinned(at);
}

EXPORT int cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER
    *total = total_memory();
    *free = total_memory() - used_memory(current_device());
    return SUCCESS;
}

EXPORT int cuMemGetAddressRange_v2(uint64_t* base, size_t* bytes, uint64_t at) {
    ENTER
    uint64_t found = 0;
    size_t size = 0;
    if (!allocation_of(at, &found, &size)) {
        return NOT_FOUND;
    }
    if (base != nullptr) {
        *base = found;
    }
    if (bytes != nullptr) {
        *bytes = size;
    }
    return SUCCESS;
}

EXPORT int cuDeviceGetDefaultMemPool(void** pool, int) {
    ENTER_WITHOUT_CONTEXT
    *pool = &default_pool;
    return SUCCESS;
}

EXPORT int cuDeviceGetMemPool(void** pool, int device) { return cuDeviceGetDefaultMemPool(pool, device); }

EXPORT int cuMemPoolSetAttribute(void* pool, int, void*) {
    return pool == &default_pool ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuMemPoolGetAttribute(void* pool, int, uint64_t* value) {
    *value = 0;
    return pool == &default_pool ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuMemPoolTrimTo(void* pool, size_t) { return pool == &default_pool ? SUCCESS : INVALID_VALUE; }

EXPORT int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void* stream) {
    ENTER
    STREAM(order, stream)
    CHECK(check_range(at, bytes, __func__))
    enqueue(order, [=] { memset(pointer(at), value, bytes); });
    return SUCCESS;
}

EXPORT int cuMemsetD8_v2(uint64_t at, unsigned char value, size_t bytes) {
    return cuMemsetD8Async(at, value, bytes, nullptr);
}

EXPORT int cuMemsetD32Async(uint64_t at, unsigned value, size_t count, void* stream) {
    ENTER
    STREAM(order, stream)
    CHECK(check_range(at, 4 * count, __func__))
    enqueue(order, [=] {
        for (size_t i = 0; i < count; i++) {
            static_cast<unsigned*>(pointer(at))[i] = value;
        }
    });
    return SUCCESS;
}

EXPORT int cuMemsetD32_v2(uint64_t at, unsigned value, size_t count) {
    return cuMemsetD32Async(at, value, count, nullptr);
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    ENTER
    STREAM(order, stream)
    CHECK(check_range(to, bytes, __func__))
    return copy_to_device(to, from, bytes, order);
}

EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    ENTER
    CHECK(check_range(to, bytes, __func__))
    const StreamRef stream = find_stream(nullptr);
    CHECK(copy_to_device(to, from, bytes, stream))
    count_synchronisation();
    finish(stream);
    return device_failure();
}

EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    ENTER
    STREAM(order, stream)
    CHECK(check_range(from, bytes, __func__))
    if (bytes > 0 && is_device_memory(address(to), 0)) {
        return complain(INVALID_VALUE, "the destination of a copy to the host is device memory");
    }
    enqueue(order, [=] { memcpy(to, pointer(from), bytes); });
    if (!is_pinned(to, bytes)) {
        // A copy to pageable memory returns when it is complete.
        count_synchronisation();
        finish(order);
    }
    return device_failure();
}

EXPORT int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    ENTER
    CHECK(check_range(from, bytes, __func__))
    const StreamRef stream = find_stream(nullptr);
    enqueue(stream, [=] { memcpy(to, pointer(from), bytes); });
    count_synchronisation();
    finish(stream);
    return device_failure();
}

EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    ENTER
    STREAM(order, stream)
    CHECK(check_range(to, bytes, __func__))
    CHECK(check_range(from, bytes, __func__))
    if (to < from + bytes && from < to + bytes) {
        return complain(INVALID_VALUE, "%s: source and destination overlap", __func__);
    }
    enqueue(order, [=] { memcpy(pointer(to), pointer(from), bytes); });
    return SUCCESS;
}

EXPORT int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
}

EXPORT int cuMemcpyPeerAsync(uint64_t to, void*, uint64_t from, void*, size_t bytes, void* stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}

EXPORT int cuStreamCreate(void** stream, unsigned flags) {
    ENTER
    return create_stream(stream, (flags & NON_BLOCKING) == 0);
}

EXPORT int cuStreamCreateWithPriority(void** stream, unsigned flags, int) {
    return cuStreamCreate(stream, flags);
}

EXPORT int cuStreamDestroy_v2(void* stream) {
    ENTER
    return destroy_stream(stream);
}

EXPORT int cuStreamSynchronize(void* stream) {
    ENTER
    STREAM(order, stream)
    count_synchronisation();
    finish(order);
    return device_failure();
}

EXPORT int cuStreamQuery(void* stream) {
    ENTER
    STREAM(order, stream)
    if (is_finished(order)) {
        return SUCCESS;
    }
    // A device goes on while the host asks.
    advance(order);
    return NOT_READY;
}

EXPORT int cuStreamIsCapturing(void* stream, int* capturing) {
    ENTER
    STREAM(order, stream)
    *capturing = 0;
    return SUCCESS;
}

EXPORT int cuStreamWaitEvent(void* stream, Event* event, unsigned) {
    ENTER
    STREAM(order, stream)
    EVENT(event)
    if (event->moment != nullptr) {
        wait_for(order, event->moment);
    }
    return SUCCESS;
}

EXPORT int cuLaunchHostFunc(void* stream, void (*f)(void*), void* data) {
    ENTER
    STREAM(order, stream)
    enqueue(order, [=] { f(data); });
    return SUCCESS;
}

EXPORT int cuEventCreate(Event** event, unsigned flags) {
    ENTER
    *event = *events().insert(new Event{(flags & DISABLE_TIMING) == 0, nullptr}).first;
    return SUCCESS;
}

EXPORT int cuEventDestroy_v2(Event* event) {
    ENTER
    EVENT(event)
    events().erase(event);
    delete event;
    return SUCCESS;
}

EXPORT int cuEventRecord(Event* event, void* stream) {
    ENTER
    STREAM(order, stream)
    EVENT(event)
    event->moment = record(order);
    return SUCCESS;
}

EXPORT int cuEventSynchronize(Event* event) {
    ENTER
    EVENT(event)
    count_synchronisation();
    if (event->moment != nullptr) {
        finish(event->moment);
    }
    return device_failure();
}

EXPORT int cuEventQuery(Event* event) {
    ENTER
    EVENT(event)
    if (event->moment == nullptr || is_finished(event->moment)) {
        return SUCCESS;
    }
    advance(event->moment);
    return NOT_READY;
}

EXPORT int cuEventElapsedTime_v2(float* time, Event* from, Event* to) {
    ENTER
    EVENT(from)
    EVENT(to)
    if (!from->timing || !to->timing || from->moment == nullptr || to->moment == nullptr) {
        return complain(INVALID_HANDLE, "the time between events that keep none or were not recorded");
    }
    if (!is_finished(from->moment) || !is_finished(to->moment)) {
        return NOT_READY;
    }
    *time = float(milliseconds(from->moment, to->moment));
    return SUCCESS;
}

EXPORT int cuEventElapsedTime(float* time, Event* from, Event* to) {
    return cuEventElapsedTime_v2(time, from, to);
}

EXPORT int calm_host_device_check_stream(void* stream) {
    ENTER
    STREAM(order, stream)
    return SUCCESS;
}

EXPORT int calm_host_device_check_memory(const void* at, uint64_t bytes, const char* what) {
    Guard guard;
    return check_range(address(at), bytes, what);
}

EXPORT void calm_host_device_check_surroundings(const void* at, const char* who) {
    Guard guard;
    check_surroundings(address(at), who);
}

EXPORT int calm_host_device_enqueue(void* stream, void (*run)(const void*), const void* data, uint64_t size) {
    ENTER
    STREAM(order, stream)
    const char* const start = static_cast<const char*>(data);
    launches++;
    enqueue(order, [run, kept = std::vector<char>(start, start + size)] { run(kept.data()); });
    return SUCCESS;
}

EXPORT void* calm_host_device_outside(void (*start)(void*), void* data) {
    return new OutsideRef(make_outside([=] { start(data); }));
}

EXPORT int calm_host_device_enqueue_outside(void* work, int device, void* stream, void* after) {
    ENTER_WITHOUT_CONTEXT
    const StreamRef order = find_stream(stream, device);
    if (order == nullptr || device_of(order) != device) {
        return complain(INVALID_HANDLE, "no stream of device %d at %p", device, stream);
    }
    if (after != nullptr) {
        wait_for(order, place_of(*static_cast<OutsideRef*>(after)));
    }
    launches++;
    enqueue(order, *static_cast<OutsideRef*>(work));
    return SUCCESS;
}

EXPORT void calm_host_device_done(void* work) {
    Guard guard;
    done(*static_cast<OutsideRef*>(work));
}

EXPORT void calm_host_device_forget(void* work) {
    Guard guard;
    delete static_cast<OutsideRef*>(work);
}

EXPORT void calm_host_device_advance(void* work) {
    Guard guard;
    if (const MomentRef& place = place_of(*static_cast<OutsideRef*>(work))) {
        advance(place);
    }
}

EXPORT void calm_host_device_finish(void* work) {
    Guard guard;
    if (const MomentRef& place = place_of(*static_cast<OutsideRef*>(work))) {
        finish(place);
    }
}

EXPORT int calm_host_device_of(const void* at) {
    Guard guard;
    return device_of(address(at));
}
