// Driver API: modules, functions and launches, with the checks that make a launch on the host worth
// something: the name, the parameters against the PTX, the block, the shared memory, every pointer.
#include "driver.h"
#include "registry.h"

#include "../block.cuh"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <set>

namespace host_device {
namespace {

constexpr uint32_t SHARED_WITHOUT_ASKING = 48 * 1024;
constexpr uint32_t SHARED_AT_MOST = 227 * 1024;

struct Function {
    const Kernel* kernel;
    uint32_t shared_allowed = SHARED_WITHOUT_ASKING;
};

// A `.param` of a PTX entry.
struct PtxParameter {
    uint32_t size;
};

struct Module {
    // From the line that the stand-in for nvcc writes; empty if the text is another.
    std::string name;
    // Whether the text is PTX of a real compiler, and its entries.
    bool real = false;
    std::map<std::string, std::vector<PtxParameter>> entries;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

std::map<std::string, Kernel>& kernels() {
    static auto& all = *new std::map<std::string, Kernel>;
    return all;
}

std::set<Module*>& modules() {
    static auto& all = *new std::set<Module*>;
    return all;
}

std::set<Function*>& functions() {
    static auto& all = *new std::set<Function*>;
    return all;
}

const std::string MARK = "// calm host device: module ";

// The size of ".param .u64 name" or ".param .align 4 .b8 name[12]".
uint32_t parameter_size(const std::string& text) {
    uint32_t size = 0;
    for (const char* const letter : {".b", ".u", ".s", ".f"}) {
        for (const uint32_t bits : {8, 16, 32, 64}) {
            if (text.find(std::string(letter) + std::to_string(bits) + " ") != std::string::npos) {
                size = bits / 8;
            }
        }
    }
    const size_t bracket = text.find('[');
    return bracket == std::string::npos ? size : size * uint32_t(atoi(text.c_str() + bracket + 1));
}

void read_ptx(Module& module, const std::string& text) {
    if (text.compare(0, MARK.size(), MARK) == 0) {
        module.name = text.substr(MARK.size(), text.find('\n') - MARK.size());
    }
    for (size_t at = text.find(".entry "); at != std::string::npos; at = text.find(".entry ", at)) {
        at += 7;
        const size_t open = text.find_first_of("({;", at);
        if (open == std::string::npos) {
            break;
        }
        module.real = true;
        std::string name = text.substr(at, open - at);
        name.erase(name.find_last_not_of(" \t\r\n") + 1);
        std::vector<PtxParameter>& parameters = module.entries[name];
        if (text[open] != '(') {
            continue;
        }
        const size_t close = text.find(')', open);
        const std::string list = text.substr(open, close - open);
        for (size_t p = list.find(".param"); p != std::string::npos;) {
            const size_t following = list.find(".param", p + 1);
            parameters.push_back({parameter_size(list.substr(p, following - p))});
            p = following;
        }
    }
}

Status check_against_ptx(const Module& module, const Kernel& kernel) {
    const auto entry = module.entries.find(kernel.name);
    if (entry == module.entries.end()) {
        return complain(NOT_FOUND, "%s is not an entry of the PTX", kernel.name.c_str());
    }
    if (entry->second.size() != kernel.parameters.size()) {
        return complain(INVALID_IMAGE, "%s has %zu parameters in the PTX and %zu on the host",
                        kernel.name.c_str(), entry->second.size(), kernel.parameters.size());
    }
    for (size_t i = 0; i < kernel.parameters.size(); i++) {
        if (entry->second[i].size != kernel.parameters[i].size) {
            return complain(INVALID_IMAGE, "%s: parameter %zu has %u bytes in the PTX and %u on the host",
                            kernel.name.c_str(), i, entry->second[i].size, kernel.parameters[i].size);
        }
    }
    return SUCCESS;
}

// A copy of the arguments, each at an address of its own.
struct Arguments {
    std::vector<uint64_t> words;
    std::vector<size_t> starts;

    std::vector<void*> pointers() {
        std::vector<void*> at;
        for (const size_t start : starts) {
            at.push_back(&words[start]);
        }
        return at;
    }
};

// Every pointer must be null or in live memory. The sizes of the arguments are not known to a launch, but
// an argument that is misaligned for its parameter, or that reaches into the next one, was a smaller one.
Status check_arguments(const Kernel& kernel, void* const* given, Arguments& kept) {
    const size_t count = kernel.parameters.size();
    for (size_t i = 0; i < count; i++) {
        const Parameter& p = kernel.parameters[i];
        const uint64_t at = reinterpret_cast<uint64_t>(given[i]);
        if (at == 0) {
            return complain(INVALID_VALUE, "%s: argument %zu is missing", kernel.name.c_str(), i);
        }
        if (at % p.alignment != 0) {
            return complain(INVALID_VALUE, "%s: argument %zu is smaller than its parameter of %u bytes",
                            kernel.name.c_str(), i, p.size);
        }
        for (size_t j = 0; j < count; j++) {
            const uint64_t other = reinterpret_cast<uint64_t>(given[j]);
            if (other > at && other < at + p.size) {
                return complain(INVALID_VALUE, "%s: argument %zu of %u bytes reaches into argument %zu",
                                kernel.name.c_str(), i, p.size, j);
            }
        }
        kept.starts.push_back(kept.words.size());
        kept.words.resize(kept.words.size() + (p.size + 7) / 8);
        memcpy(&kept.words[kept.starts.back()], given[i], p.size);
        const uint64_t value = kept.words[kept.starts.back()];
        if (p.pointer && value != 0 && !is_device_memory(value, 0)) {
            return complain(INVALID_VALUE, "%s: argument %zu, %#llx, is no live device memory",
                            kernel.name.c_str(), i, (unsigned long long)value);
        }
        if (p.pointer && value != 0 && device_of(value) != current_device()) {
            return complain(INVALID_VALUE, "%s: argument %zu is memory of device %d, launched on device %d",
                            kernel.name.c_str(), i, device_of(value), current_device());
        }
    }
    return SUCCESS;
}

Status check_launch(const Function& function, const uint32_t* grid, const uint32_t* block, uint32_t shared) {
    const Kernel& kernel = *function.kernel;
    const char* const name = kernel.name.c_str();
    const uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || threads == 0) {
        return complain(INVALID_VALUE, "%s: a grid of %u x %u x %u blocks of %u x %u x %u threads", name,
                        grid[0], grid[1], grid[2], block[0], block[1], block[2]);
    }
    if (grid[0] > 0x7fffffff || grid[1] != 1 || grid[2] != 1 || block[1] != 1 || block[2] != 1) {
        return complain(INVALID_VALUE, "%s: its grid and blocks have one dimension", name);
    }
    if (threads > kernel.max_threads || (kernel.whole_warps && threads % 32 != 0)) {
        return complain(INVALID_VALUE, "%s: blocks of %u threads; at most %u%s", name, block[0],
                        kernel.max_threads, kernel.whole_warps ? ", whole warps" : "");
    }
    if (shared > function.shared_allowed) {
        return complain(INVALID_VALUE, "%s: %u bytes of shared memory, %u allowed", name, shared,
                        function.shared_allowed);
    }
    return SUCCESS;
}

void run(const Kernel& kernel, const Launch& launch, Arguments& arguments) {
    const std::vector<void*> pointers = arguments.pointers();
    running = kernel.name.c_str();
    kernel.run(launch, pointers.data());
    running = nullptr;
    for (size_t i = 0; i < kernel.parameters.size(); i++) {
        if (kernel.parameters[i].pointer && *static_cast<uint64_t*>(pointers[i]) != 0) {
            check_surroundings(*static_cast<uint64_t*>(pointers[i]), kernel.name.c_str());
        }
    }
}

uint32_t blocks_at_once(uint32_t threads, uint64_t shared) {
    const uint32_t warps = (threads + 31) / 32;
    const uint32_t by_shared = uint32_t(228 * 1024 / (shared + 1024));
    return warps == 0 || shared > SHARED_AT_MOST ? 0 : std::min({32u, 64 / warps, by_shared});
}

#define FUNCTION(handle)                                                             \
    if (functions().count(handle) == 0) {                                            \
        return complain(INVALID_HANDLE, "%s: no function at %p", __func__, static_cast<void*>(handle)); \
    }

}  // namespace

void add_kernel(Kernel kernel) {
    const std::string name = kernel.name;
    if (!kernels().emplace(name, std::move(kernel)).second) {
        fprintf(stderr, "calm host device: two kernels are called %s\n", name.c_str());
        abort();
    }
}

const Kernel* find_kernel(const std::string& name) {
    const auto at = kernels().find(name);
    return at == kernels().end() ? nullptr : &at->second;
}

}  // namespace host_device

using namespace host_device;

EXPORT int cuModuleLoadData(Module** module, const void* image) {
    ENTER
    if (image == nullptr) {
        return INVALID_VALUE;
    }
    auto loaded = std::make_unique<Module>();
    const unsigned char* const bytes = static_cast<const unsigned char*>(image);
    const bool elf = bytes[0] == 0x7f && bytes[1] == 'E';
    const bool fat = bytes[0] == 0x50 && bytes[1] == 0xed;
    if (!elf && !fat) {
        const std::string text = static_cast<const char*>(image);
        if (text.empty()) {
            return complain(INVALID_IMAGE, "an empty module");
        }
        read_ptx(*loaded, text);
    }
    *module = loaded.get();
    modules().insert(loaded.release());
    return SUCCESS;
}

EXPORT int cuModuleLoadDataEx(Module** module, const void* image, unsigned, int*, void**) {
    return cuModuleLoadData(module, image);
}

EXPORT int cuModuleLoad(Module** module, const char* path) {
    FILE* const file = fopen(path, "rb");
    if (file == nullptr) {
        return FILE_NOT_FOUND;
    }
    std::string text;
    for (int c = fgetc(file); c != EOF; c = fgetc(file)) {
        text.push_back(char(c));
    }
    fclose(file);
    return cuModuleLoadData(module, text.c_str());
}

EXPORT int cuModuleUnload(Module* module) {
    ENTER
    if (modules().erase(module) == 0) {
        return complain(INVALID_HANDLE, "no module at %p", static_cast<void*>(module));
    }
    for (const auto& function : module->functions) {
        functions().erase(function.second.get());
    }
    delete module;
    return SUCCESS;
}

EXPORT int cuModuleGetFunction(Function** function, Module* module, const char* name) {
    ENTER
    if (modules().count(module) == 0) {
        return complain(INVALID_HANDLE, "no module at %p", static_cast<void*>(module));
    }
    auto& known = module->functions[name];
    if (known == nullptr) {
        const Kernel* const kernel = find_kernel(name);
        if (kernel == nullptr) {
            module->functions.erase(name);
            return complain(NOT_FOUND, "there is no kernel %s", name);
        }
        if (!module->name.empty() && module->name != kernel->module) {
            module->functions.erase(name);
            return complain(NOT_FOUND, "%s is in module %s, not in %s", name, kernel->module.c_str(),
                            module->name.c_str());
        }
        if (module->real) {
            if (const Status status = check_against_ptx(*module, *kernel)) {
                module->functions.erase(name);
                return status;
            }
        }
        known = std::make_unique<Function>(Function{kernel});
        functions().insert(known.get());
    }
    *function = known.get();
    return SUCCESS;
}

EXPORT int cuFuncGetAttribute(int* value, int which, Function* function) {
    ENTER
    FUNCTION(function)
    switch (which) {
    case 0: *value = int(function->kernel->max_threads); break;
    case 4: *value = 64; break;
    case 5: case 6: *value = 90; break;
    case 8: *value = int(function->shared_allowed); break;
    default: *value = 0;
    }
    return SUCCESS;
}

EXPORT int cuFuncSetAttribute(Function* function, int which, int value) {
    ENTER
    FUNCTION(function)
    if (which == 8) {
        if (value < 0 || uint32_t(value) > SHARED_AT_MOST) {
            return complain(INVALID_VALUE, "%s: %d bytes of shared memory asked for, %u at most",
                            function->kernel->name.c_str(), value, SHARED_AT_MOST);
        }
        function->shared_allowed = uint32_t(value);
    }
    return SUCCESS;
}

EXPORT int cuFuncSetCacheConfig(Function* function, int) {
    ENTER
    FUNCTION(function)
    return SUCCESS;
}

EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function, int threads,
                                                       size_t shared) {
    ENTER
    FUNCTION(function)
    *blocks = int(blocks_at_once(uint32_t(threads), shared));
    return SUCCESS;
}

EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Function* function, int threads,
                                                                size_t shared, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}

EXPORT int cuOccupancyMaxPotentialBlockSize(int* grid, int* threads, Function* function,
                                            size_t (*shared_of)(int), size_t shared, int limit) {
    ENTER
    FUNCTION(function)
    const int most = int(function->kernel->max_threads);
    *threads = limit > 0 && limit < most ? limit : most;
    const size_t bytes = shared_of == nullptr ? shared : shared_of(*threads);
    *grid = int(132 * blocks_at_once(uint32_t(*threads), bytes));
    return SUCCESS;
}

EXPORT int cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, Function* function, int blocks, int) {
    ENTER
    FUNCTION(function)
    *bytes = blocks < 1 ? 0 : std::min<size_t>(SHARED_AT_MOST, 228 * 1024 / size_t(blocks) - 1024);
    return SUCCESS;
}

EXPORT int cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                          unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared, void* stream,
                          void** arguments, void** extra) {
    ENTER
    FUNCTION(function)
    const StreamRef order = find_stream(stream);
    if (order == nullptr) {
        return complain(INVALID_HANDLE, "%s: no stream at %p", __func__, stream);
    }
    if (device_of(order) != current_device()) {
        return complain(INVALID_HANDLE, "%s: a stream of device %d, launched on device %d",
                        function->kernel->name.c_str(), device_of(order), current_device());
    }
    if (extra != nullptr || (arguments == nullptr && !function->kernel->parameters.empty())) {
        return complain(INVALID_VALUE, "%s: arguments come as an array of pointers",
                        function->kernel->name.c_str());
    }
    const uint32_t grid[3] = {grid_x, grid_y, grid_z};
    const uint32_t block[3] = {block_x, block_y, block_z};
    if (const Status status = check_launch(*function, grid, block, shared)) {
        return status;
    }
    Arguments kept;
    if (const Status status = check_arguments(*function->kernel, arguments, kept)) {
        return status;
    }
    launches++;
    static const bool reversed = switched_on("CALM_HOST_DEVICE_REVERSED");
    const Launch launch = {grid_x, block_x, shared, reversed ? 1u : 0u};
    enqueue(order, [kernel = function->kernel, launch, kept]() mutable { run(*kernel, launch, kept); });
    return SUCCESS;
}

EXPORT void calm_host_device_parallel(uint64_t count, uint64_t grain,
                                      void (*range)(const void*, uint64_t, uint64_t), const void* context) {
    in_parallel_impl(count, grain,
                     [=](uint64_t first, uint64_t last) { range(context, first, last); });
}
