// The kernels that the host device can launch, by name: their parameters and how to run them.
//
// A kernel is a C++ function that takes the launch first and then what a __global__ function would take.
// `Registered` and `add_kernel` read the parameters' sizes from its type and unpack the array of pointers
// that cuLaunchKernel gets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

struct Launch;

namespace host_device {

struct Parameter {
    uint32_t size;
    uint32_t alignment;
    bool pointer;
};

struct Kernel {
    std::string name;
    // The file it comes from, without folder and extension: what its PTX is called.
    std::string module;
    std::vector<Parameter> parameters;
    // Threads a block has at most, and whether it must be whole warps.
    uint32_t max_threads;
    bool whole_warps;
    // Runs all blocks; `arguments` holds the address of each argument's copy.
    std::function<void(const Launch&, void* const* arguments)> run;
};

void add_kernel(Kernel kernel);
// Null if there is none; `module` may be empty: then any.
const Kernel* find_kernel(const std::string& name);

template <class... A, size_t... I>
void call(void (*body)(Launch, A...), const Launch& launch, void* const* arguments,
          std::index_sequence<I...>) {
    body(launch, *static_cast<const A*>(arguments[I])...);
}

template <class... A>
void add_kernel(std::string name, std::string module, uint32_t max_threads, bool whole_warps,
                void (*body)(Launch, A...)) {
    add_kernel(Kernel{std::move(name), std::move(module),
                      {Parameter{uint32_t(sizeof(A)), uint32_t(alignof(A)), std::is_pointer_v<A>}...},
                      max_threads, whole_warps,
                      [body](const Launch& launch, void* const* arguments) {
                          call(body, launch, arguments, std::index_sequence_for<A...>{});
                      }});
}

// "kernels/silu.cu" -> "silu".
inline std::string module_of(const char* file) {
    std::string name = file;
    name = name.substr(name.find_last_of('/') + 1);
    return name.substr(0, name.find('.'));
}

// What the KERNEL macro leaves behind in a host-device build.
struct Registered {
    template <class... A>
    Registered(const char* name, const char* file, uint32_t max_threads, void (*body)(Launch, A...)) {
        add_kernel(name, module_of(file), max_threads, true, body);
    }
};

// Dynamic shared memory for a block that runs on the calling thread: NaN, and behind it nothing.
float* shared_memory(size_t bytes);

// f(i) for every i below count on all threads of the pool; serial below two units of work of `grain`.
void in_parallel_impl(uint64_t count, uint64_t grain, const std::function<void(uint64_t, uint64_t)>& range);

template <class F> void in_parallel(uint64_t count, uint64_t grain, F f) {
    in_parallel_impl(count, grain, [&](uint64_t first, uint64_t last) {
        for (uint64_t i = first; i < last; i++) {
            f(i);
        }
    });
}

}  // namespace host_device
