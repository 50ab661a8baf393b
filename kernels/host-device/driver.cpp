// Driver API: start, the device and its attributes, contexts, error names; counters and the report at exit.
#include "driver.h"

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <set>
#include <vector>

namespace host_device {

// Never destroyed: threads of the libraries go on until the process ends.
DeviceLock& device_lock = *new DeviceLock;

namespace {

// A context has nothing but its device; a primary one also a count.
struct Context {
    int device;
    int uses;
};

bool initialised = false;
Status failure = SUCCESS;
std::array<Context, MAX_DEVICES> primaries;
std::set<Context*> contexts;
thread_local Context* current = nullptr;

size_t all_used_memory() {
    size_t bytes = 0;
    for (int device = 0; device < MAX_DEVICES; device++) {
        bytes += used_memory(device);
    }
    return bytes;
}

void report() {
    if (switched_on("CALM_HOST_DEVICE_LEAKS") && live_allocations() > 0) {
        fprintf(stderr, "calm host device: %zu allocations never freed (%zu bytes in use)\n",
                live_allocations(), all_used_memory());
    }
    if (switched_on("CALM_HOST_DEVICE_COUNTS")) {
        fprintf(stderr, "calm host device: %llu launches, %llu synchronisations\n",
                (unsigned long long)launches, (unsigned long long)synchronisations);
    }
}

bool is_context(const Context* context) {
    for (const Context& primary : primaries) {
        if (context == &primary) {
            return primary.uses > 0;
        }
    }
    return contexts.count(const_cast<Context*>(context)) > 0;
}

// The devices that the program sees, by their place in the machine: CALM_HOST_DEVICES, and of those what
// CUDA_VISIBLE_DEVICES lists; as with a driver, what follows an unknown one in the list is not seen.
const std::vector<int>& visible_devices() {
    static const std::vector<int> devices = [] {
        const char* const given = getenv("CALM_HOST_DEVICES");
        const int count = given == nullptr ? 1 : std::max(0, std::min(atoi(given), MAX_DEVICES));
        std::vector<int> seen;
        const char* list = getenv("CUDA_VISIBLE_DEVICES");
        for (int i = 0; list == nullptr && i < count; i++) {
            seen.push_back(i);
        }
        while (list != nullptr && *list != '\0') {
            char* end = nullptr;
            const long place = strtol(list, &end, 10);
            if (end == list || place < 0 || place >= count ||
                std::count(seen.begin(), seen.end(), int(place)) > 0) {
                break;
            }
            seen.push_back(int(place));
            list = *end == ',' ? end + 1 : end;
        }
        return seen;
    }();
    return devices;
}

struct ErrorName {
    int status;
    const char* name;
    const char* text;
};

constexpr ErrorName ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {FILE_NOT_FOUND, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {ASSERT, "CUDA_ERROR_ASSERT", "device-side assert triggered"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
};

const ErrorName* error_name(int status) {
    for (const ErrorName& e : ERRORS) {
        if (e.status == status) {
            return &e;
        }
    }
    return nullptr;
}

// The attributes of a device of compute capability 9.0 that a program may plan with.
int attribute(int which) {
    switch (which) {
    case 1: return 1024;              // threads a block
    case 2: case 3: return 1024;      // block, x and y
    case 4: return 64;                // block, z
    case 5: return 2147483647;        // grid, x
    case 6: case 7: return 65535;     // grid, y and z
    case 8: return 48 * 1024;         // shared memory a block
    case 9: return 64 * 1024;         // constant memory
    case 10: return 32;               // warp
    case 12: case 82: return 65536;   // registers a block, a multiprocessor
    case 13: return 1980000;          // kHz
    case 15: case 19: case 31: case 40: case 41: case 78: return 1;
    case 16: return 132;              // multiprocessors
    case 36: return 2619000;          // kHz of the memory
    case 37: return 5120;             // bits of its bus
    case 38: return 50 * 1024 * 1024; // L2 cache
    case 39: return 2048;             // threads a multiprocessor
    case 75: return 9;                // compute capability
    case 76: return 0;
    case 81: return 228 * 1024;       // shared memory a multiprocessor
    case 97: return 227 * 1024;       // shared memory a block that asks for it
    case 106: return 32;              // blocks a multiprocessor
    case 111: return 1024;            // shared memory that the system takes of each block
    case 115: return 1;               // memory pools
    default: return 0;
    }
}

constexpr unsigned char UUID[17] = "calm host device";

#define DEVICE(device)                             \
    if ((device) < 0 || (device) >= device_count()) { \
        return INVALID_DEVICE;                     \
    }

}  // namespace

Status complain(Status status, const char* format, ...) {
    char text[600];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "calm host device: %s\n", text);
    return status;
}

bool switched_on(const char* variable) {
    const char* const value = getenv(variable);
    return value != nullptr && strcmp(value, "1") == 0;
}

void fail_device(Status status) {
    if (failure == SUCCESS) {
        failure = status;
    }
}

Status device_failure() { return failure; }
bool is_initialised() { return initialised; }
bool has_context() { return current != nullptr && is_context(current); }
int device_count() { return int(visible_devices().size()); }
int current_device() { return has_context() ? current->device : 0; }

void DeviceLock::lock() {
    mutex.lock();
    depth++;
}

void DeviceLock::unlock() {
    depth--;
    mutex.unlock();
}

void DeviceLock::wait(const std::function<bool()>& passed) {
    // All that the calling thread holds, as one lock.
    struct Whole {
        DeviceLock& held;
        unsigned depth;
        void lock() {
            for (unsigned i = 0; i < depth; i++) {
                held.lock();
            }
        }
        void unlock() {
            for (unsigned i = 0; i < depth; i++) {
                held.unlock();
            }
        }
    } whole{*this, depth};
    woken.wait(whole, passed);
}

}  // namespace host_device

using namespace host_device;

EXPORT int cuInit(unsigned flags) {
    Guard guard;
    if (flags != 0) {
        return INVALID_VALUE;
    }
    if (!initialised) {
        initialised = true;
        std::atexit(report);
    }
    return SUCCESS;
}

EXPORT int cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}

EXPORT int cuDeviceGetCount(int* count) {
    ENTER_WITHOUT_CONTEXT
    *count = device_count();
    return SUCCESS;
}

EXPORT int cuDeviceGet(int* device, int ordinal) {
    ENTER_WITHOUT_CONTEXT
    DEVICE(ordinal)
    *device = ordinal;
    return SUCCESS;
}

EXPORT int cuDeviceGetName(char* name, int size, int device) {
    ENTER_WITHOUT_CONTEXT
    DEVICE(device)
    snprintf(name, size_t(size), "CALM host device");
    return SUCCESS;
}

EXPORT int cuDeviceGetUuid_v2(void* uuid, int device) {
    ENTER_WITHOUT_CONTEXT
    DEVICE(device)
    memcpy(uuid, UUID, 16);
    static_cast<unsigned char*>(uuid)[15] = uint8_t(UUID[15] + visible_devices()[size_t(device)]);
    return SUCCESS;
}

EXPORT int cuDeviceGetUuid(void* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

EXPORT int cuDeviceGetPCIBusId(char* id, int size, int device) {
    ENTER_WITHOUT_CONTEXT
    DEVICE(device)
    calm_host_device_bus(device, id, uint64_t(size));
    return SUCCESS;
}

EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    ENTER_WITHOUT_CONTEXT
    DEVICE(device)
    *bytes = total_memory();
    return SUCCESS;
}

EXPORT int cuDeviceGetAttribute(int* value, int which, int device) {
    ENTER_WITHOUT_CONTEXT
    DEVICE(device)
    *value = which == 33 ? visible_devices()[size_t(device)] : attribute(which);  // 33: place on the bus
    return SUCCESS;
}

EXPORT int cuDeviceComputeCapability(int* major, int* minor, int device) {
    ENTER_WITHOUT_CONTEXT
    DEVICE(device)
    *major = 9;
    *minor = 0;
    return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRetain(void** context, int device) {
    ENTER_WITHOUT_CONTEXT
    DEVICE(device)
    Context& primary = primaries[size_t(device)];
    primary.device = device;
    primary.uses++;
    *context = &primary;
    return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER_WITHOUT_CONTEXT
    DEVICE(device)
    Context& primary = primaries[size_t(device)];
    if (primary.uses == 0) {
        return INVALID_CONTEXT;
    }
    primary.uses--;
    return SUCCESS;
}

EXPORT int cuCtxCreate_v4(void** context, void*, unsigned, int device) {
    ENTER_WITHOUT_CONTEXT
    DEVICE(device)
    current = *contexts.insert(new Context{device, 1}).first;
    *context = current;
    return SUCCESS;
}

EXPORT int cuCtxDestroy_v2(Context* context) {
    ENTER_WITHOUT_CONTEXT
    if (contexts.erase(context) == 0) {
        return INVALID_CONTEXT;
    }
    if (current == context) {
        current = nullptr;
    }
    delete context;
    return SUCCESS;
}

EXPORT int cuCtxGetCurrent(Context** context) {
    Guard guard;
    *context = current;
    return initialised ? SUCCESS : NOT_INITIALIZED;
}

EXPORT int cuCtxSetCurrent(Context* context) {
    ENTER_WITHOUT_CONTEXT
    if (context != nullptr && !is_context(context)) {
        return complain(INVALID_CONTEXT, "no context at %p", static_cast<void*>(context));
    }
    current = context;
    return SUCCESS;
}

EXPORT int cuCtxGetDevice(int* device) {
    ENTER
    *device = current_device();
    return SUCCESS;
}

EXPORT int cuCtxSetFlags(unsigned) {
    ENTER
    return SUCCESS;
}

EXPORT int cuCtxSynchronize() {
    ENTER
    count_synchronisation();
    finish_all(current_device());
    return device_failure();
}

EXPORT int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}

EXPORT int cuGetErrorName(int status, const char** name) {
    const ErrorName* const found = error_name(status);
    *name = found == nullptr ? "CUDA_ERROR_UNKNOWN" : found->name;
    return SUCCESS;
}

EXPORT int cuGetErrorString(int status, const char** text) {
    const ErrorName* const found = error_name(status);
    *text = found == nullptr ? "unknown error" : found->text;
    return SUCCESS;
}

EXPORT int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* found) {
    const std::string base = name;
    void* const self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    *function = nullptr;
    for (const char* const version : {"_v4", "_v3", "_v2", ""}) {
        if (*function == nullptr) {
            *function = dlsym(self, (base + version).c_str());
        }
    }
    if (found != nullptr) {
        *found = *function == nullptr ? 1 : 0;
    }
    return *function == nullptr ? NOT_FOUND : SUCCESS;
}

EXPORT int cuProfilerStart() { return SUCCESS; }
EXPORT int cuProfilerStop() { return SUCCESS; }

EXPORT uint64_t calm_host_device_synchronisations() {
    Guard guard;
    return synchronisations;
}

EXPORT uint64_t calm_host_device_synchronisations_here() { return synchronisations_here; }

EXPORT uint64_t calm_host_device_launches() {
    Guard guard;
    return launches;
}

EXPORT uint64_t calm_host_device_live_allocations() {
    Guard guard;
    return live_allocations();
}

EXPORT uint64_t calm_host_device_live_bytes() {
    Guard guard;
    return all_used_memory();
}

EXPORT int calm_host_device_current() {
    Guard guard;
    return has_context() ? current_device() : -1;
}

EXPORT void calm_host_device_bus(int device, char* address, uint64_t size) {
    snprintf(address, size, "0000:%02x:00.0", unsigned(visible_devices()[size_t(device)]));
}

EXPORT int calm_host_device_unsupported(const char* name, int status) {
    static std::set<std::string>& said = *new std::set<std::string>;
    Guard guard;
    if (said.insert(name).second) {
        fprintf(stderr, "calm host device: %s is not supported\n", name);
    }
    return status;
}

EXPORT void calm_host_device_complain(const char* text) { complain(SUCCESS, "%s", text); }

EXPORT void calm_host_device_lock() { device_lock.lock(); }
EXPORT void calm_host_device_unlock() { device_lock.unlock(); }
EXPORT void calm_host_device_set_running(const char* name) { running = name; }
