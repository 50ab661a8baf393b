// Device memory: every allocation on pages of its own, so that what a device would let pass shows.
//
// A range of addresses is reserved once and never used twice. An allocation takes the next pages of it; its
// end lies at most 255 bytes (the alignment of cuMemAlloc) before a page that cannot be touched. All bytes
// are 0xFF (NaN) first, and those around the allocation on its pages must stay so. Freed addresses cannot be
// touched either; the memory behind them moves to new ones. A kernel that leaves its memory is ended with a
// message that names both. Dynamic shared memory ends at such a page too.
#include "device.h"
#include "registry.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace host_device {

const char* volatile running = nullptr;

namespace {

constexpr size_t PAGE = 4096;
constexpr size_t ALIGNMENT = 256;
constexpr unsigned char FRESH = 0xFF;
constexpr size_t DEFAULT_MEMORY = size_t(8) << 30;
// Freed memory that waits to be used again: touching new pages is what an allocation costs most.
constexpr size_t KEPT_BYTES = size_t(1) << 30;
constexpr size_t KEPT_BLOCKS = 8192;

struct Allocation {
    size_t bytes;
    uint64_t first_page;
    // Of its pages, without the one behind that cannot be touched.
    size_t pages_bytes;
    int device;
    bool retired;
};

struct Memory {
    uint64_t start = 0, end = 0, next = 0;
    std::array<size_t, MAX_DEVICES> used{};
    size_t total = DEFAULT_MEMORY;
    size_t live = 0;
    std::map<uint64_t, Allocation> allocations;
    std::map<uint64_t, size_t> pinned;
    // Freed blocks by size.
    std::map<size_t, std::vector<uint64_t>> kept;
    size_t kept_bytes = 0, kept_blocks = 0;
};

// Never destroyed: static objects of the program may free memory when it ends.
Memory& memory() {
    static Memory& m = *new Memory;
    return m;
}

struct sigaction previous_handler;

// Dynamic shared memory: a buffer for each thread of the pool, and the page behind it.
constexpr size_t SHARED_BYTES = 228 * 1024;
constexpr size_t MAX_BUFFERS = 64;
std::array<std::atomic<uint64_t>, MAX_BUFFERS> shared_ends;
std::atomic<size_t> shared_count{0};

bool is_behind_shared(uint64_t address) {
    for (size_t i = 0; i < shared_count && i < MAX_BUFFERS; i++) {
        if (address >= shared_ends[i] && address < shared_ends[i] + SHARED_BYTES) {
            return true;
        }
    }
    return false;
}

int remap_to(uint64_t from, size_t bytes, uint64_t to) {
    constexpr int MOVE = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
    void* const target = reinterpret_cast<void*>(to);
    return mremap(reinterpret_cast<void*>(from), bytes, bytes, MOVE, target) == target ? 0 : -1;
}

// Takes the pages behind these addresses away.
void drop_pages(uint64_t first_page, size_t bytes) {
    mmap(reinterpret_cast<void*>(first_page), bytes, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

void print(const char* text) {
    const ssize_t written = write(STDERR_FILENO, text, strlen(text));
    (void)written;
}

void on_fault(int signal, siginfo_t* info, void* context) {
    const uint64_t address = reinterpret_cast<uint64_t>(info->si_addr);
    const Memory& m = memory();
    const char* const who = running == nullptr ? "the host" : running;
    char text[300];
    if (is_behind_shared(address)) {
        snprintf(text, sizeof text, "calm host device: %s touched memory behind its shared memory\n", who);
        print(text);
        std::signal(signal, SIG_DFL);
        return;
    }
    if (address < m.start || address >= m.end) {
        if (previous_handler.sa_flags & SA_SIGINFO) {
            previous_handler.sa_sigaction(signal, info, context);
        } else if (previous_handler.sa_handler != SIG_DFL && previous_handler.sa_handler != SIG_IGN) {
            previous_handler.sa_handler(signal);
        } else {
            std::signal(signal, SIG_DFL);
        }
        return;
    }
    auto at = m.allocations.upper_bound(address);
    const bool known = at != m.allocations.begin();
    if (known) {
        --at;
    }
    if (known && address <= at->second.first_page + at->second.pages_bytes + PAGE) {
        snprintf(text, sizeof text,
                 "calm host device: %s touched %lld bytes past the start of an allocation of %zu bytes\n", who,
                 (long long)(address - at->first), at->second.bytes);
    } else {
        snprintf(text, sizeof text,
                 "calm host device: %s touched %#llx, which is freed or was never allocated\n", who,
                 (unsigned long long)address);
    }
    print(text);
    std::signal(signal, SIG_DFL);
}

bool reserve() {
    Memory& m = memory();
    if (m.start != 0) {
        return true;
    }
    if (const char* const mebibytes = getenv("CALM_HOST_DEVICE_MEMORY")) {
        m.total = size_t(strtoull(mebibytes, nullptr, 10)) << 20;
    }
    for (size_t size = size_t(1) << 45; size >= size_t(1) << 34; size /= 2) {
        void* const at = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at != MAP_FAILED) {
            m.start = m.next = reinterpret_cast<uint64_t>(at);
            m.end = m.start + size;
            struct sigaction action = {};
            action.sa_sigaction = on_fault;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            sigaction(SIGSEGV, &action, &previous_handler);
            return true;
        }
    }
    return false;
}

// The live allocation whose pages hold the address.
std::map<uint64_t, Allocation>::iterator holder(uint64_t pointer) {
    auto& all = memory().allocations;
    auto at = all.upper_bound(pointer);
    if (at == all.begin()) {
        return all.end();
    }
    --at;
    return !at->second.retired && pointer <= at->first + at->second.bytes ? at : all.end();
}

// Memory for the addresses, from a freed block of the size if there is one.
bool provide(uint64_t first_page, size_t bytes) {
    Memory& m = memory();
    const auto at = m.kept.find(bytes);
    if (at != m.kept.end() && !at->second.empty()) {
        const uint64_t old = at->second.back();
        at->second.pop_back();
        m.kept_bytes -= bytes;
        m.kept_blocks--;
        remap_to(old, bytes, first_page);
        // Fresh pages in any case: those that were used once do not join their neighbours, and the system
        // limits the number of separate ranges.
        drop_pages(old, bytes);
    }
    return mprotect(reinterpret_cast<void*>(first_page), bytes, PROT_READ | PROT_WRITE) == 0;
}

void give_back(uint64_t first_page, size_t bytes) {
    Memory& m = memory();
    if (m.kept_bytes + bytes > KEPT_BYTES || m.kept_blocks == KEPT_BLOCKS) {
        drop_pages(first_page, bytes);
        return;
    }
    mprotect(reinterpret_cast<void*>(first_page), bytes, PROT_NONE);
    m.kept[bytes].push_back(first_page);
    m.kept_bytes += bytes;
    m.kept_blocks++;
}

bool is_fresh(uint64_t first, uint64_t last) {
    for (uint64_t i = first; i < last; i++) {
        if (*reinterpret_cast<const unsigned char*>(i) != FRESH) {
            return false;
        }
    }
    return true;
}

bool surroundings_intact(uint64_t base, const Allocation& a) {
    return is_fresh(a.first_page, base) && is_fresh(base + a.bytes, a.first_page + a.pages_bytes);
}

}  // namespace

Status allocate(uint64_t* pointer, size_t bytes, int device) {
    if (bytes == 0) {
        return complain(INVALID_VALUE, "an allocation of 0 bytes");
    }
    if (!reserve()) {
        return complain(OUT_OF_MEMORY, "no address space");
    }
    Memory& m = memory();
    size_t& used = m.used[size_t(device)];
    if (bytes > m.total - used) {
        return complain(OUT_OF_MEMORY, "%zu bytes asked for, %zu of %zu in use", bytes, used, m.total);
    }
    const size_t aligned = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const size_t pages_bytes = (aligned + PAGE - 1) / PAGE * PAGE;
    const uint64_t first_page = m.next;
    if (first_page + pages_bytes + PAGE > m.end) {
        return complain(OUT_OF_MEMORY, "the address space is used up");
    }
    void* const pages = reinterpret_cast<void*>(first_page);
    if (!provide(first_page, pages_bytes)) {
        return complain(OUT_OF_MEMORY, "pages of %zu bytes: %s", bytes, strerror(errno));
    }
    m.next = first_page + pages_bytes + PAGE;
    memset(pages, FRESH, pages_bytes);
    const uint64_t base = first_page + pages_bytes - aligned;
    m.allocations[base] = Allocation{bytes, first_page, pages_bytes, device, false};
    used += bytes;
    m.live++;
    *pointer = base;
    return SUCCESS;
}

Status retire(uint64_t pointer) {
    const auto at = memory().allocations.find(pointer);
    if (at == memory().allocations.end() || at->second.retired) {
        return complain(INVALID_VALUE, "freed %#llx, which is no live allocation",
                        (unsigned long long)pointer);
    }
    at->second.retired = true;
    memory().live--;
    return SUCCESS;
}

void release(uint64_t pointer) {
    Memory& m = memory();
    const auto at = m.allocations.find(pointer);
    const Allocation a = at->second;
    if (!surroundings_intact(pointer, a)) {
        fail_device(complain(ILLEGAL_ADDRESS, "an allocation of %zu bytes was left: found when it was freed",
                             a.bytes));
    }
    m.used[size_t(a.device)] -= a.bytes;
    m.allocations.erase(at);
    give_back(a.first_page, a.pages_bytes);
}

bool is_device_memory(uint64_t pointer, size_t bytes) {
    const auto at = holder(pointer);
    return at != memory().allocations.end() && bytes <= at->first + at->second.bytes - pointer;
}

bool allocation_of(uint64_t pointer, uint64_t* base, size_t* bytes) {
    const auto at = holder(pointer);
    if (at == memory().allocations.end()) {
        return false;
    }
    *base = at->first;
    *bytes = at->second.bytes;
    return true;
}

int device_of(uint64_t pointer) {
    const auto at = holder(pointer);
    return at == memory().allocations.end() ? -1 : at->second.device;
}

void check_surroundings(uint64_t pointer, const char* who) {
    auto at = memory().allocations.upper_bound(pointer);
    if (at == memory().allocations.begin()) {
        return;
    }
    --at;
    if (!surroundings_intact(at->first, at->second)) {
        fail_device(complain(ILLEGAL_ADDRESS, "%s wrote outside an allocation of %zu bytes", who,
                             at->second.bytes));
    }
}

size_t total_memory() {
    reserve();
    return memory().total;
}
size_t used_memory(int device) { return memory().used[size_t(device)]; }
size_t live_allocations() { return memory().live; }

float* shared_memory(size_t bytes) {
    thread_local const uint64_t end = [] {
        const size_t size = (SHARED_BYTES + PAGE - 1) / PAGE * PAGE;
        void* const at = mmap(nullptr, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        const size_t place = shared_count.load();
        if (at == MAP_FAILED || mprotect(at, size, PROT_READ | PROT_WRITE) != 0) {
            abort();
        }
        const uint64_t behind = reinterpret_cast<uint64_t>(at) + size;
        if (place < MAX_BUFFERS) {
            shared_ends[shared_count++ % MAX_BUFFERS] = behind;
        }
        return behind;
    }();
    char* const start = reinterpret_cast<char*>(end) - (bytes + 15) / 16 * 16;
    memset(start, FRESH, reinterpret_cast<char*>(end) - start);
    return reinterpret_cast<float*>(start);
}

Status allocate_pinned(void** pointer, size_t bytes) {
    if (bytes == 0) {
        return complain(INVALID_VALUE, "pinned memory of 0 bytes");
    }
    void* const at = aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
    if (at == nullptr) {
        return OUT_OF_MEMORY;
    }
    memset(at, FRESH, bytes);
    memory().pinned[reinterpret_cast<uint64_t>(at)] = bytes;
    *pointer = at;
    return SUCCESS;
}

Status free_pinned(void* pointer) {
    const Status status = unregister_pinned(pointer);
    if (status == SUCCESS) {
        free(pointer);
    }
    return status;
}

Status register_pinned(void* pointer, size_t bytes) {
    memory().pinned[reinterpret_cast<uint64_t>(pointer)] = bytes;
    return SUCCESS;
}

Status unregister_pinned(void* pointer) {
    if (memory().pinned.erase(reinterpret_cast<uint64_t>(pointer)) == 0) {
        return complain(INVALID_VALUE, "freed %p, which is no pinned memory", pointer);
    }
    return SUCCESS;
}

bool is_pinned(const void* pointer, size_t bytes) {
    const uint64_t address = reinterpret_cast<uint64_t>(pointer);
    auto at = memory().pinned.upper_bound(address);
    if (at == memory().pinned.begin()) {
        return false;
    }
    --at;
    return address + bytes <= at->first + at->second;
}

}  // namespace host_device
