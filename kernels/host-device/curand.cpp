// libcurand: uniform and normal numbers. Any generator type gives the same counter-based generator; its
// numbers are not those of a device.
#include "device.h"

#include <cmath>
#include <set>

namespace {

// curandStatus_t.
enum Rand : int { DONE = 0, NO_GENERATOR = 101, OUT_OF_RANGE = 104, NOT_MULTIPLE = 105, FAILED = 201 };

struct Generator {
    void* stream = nullptr;
    uint64_t seed = 0;
    uint64_t offset = 0;
};

std::set<Generator*>& generators() {
    static auto& all = *new std::set<Generator*>;
    return all;
}

#define GENERATOR(generator)                  \
    host_device::SharedGuard guard;           \
    if (generators().count(generator) == 0) { \
        return NO_GENERATOR;                  \
    }

// Mixes the bits of a counter.
uint64_t mixed(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// In (0, 1].
double uniform(uint64_t seed, uint64_t i) {
    return double((mixed(mixed(seed) + i) >> 40) + 1) * 0x1p-24;
}

enum Kind { UNIFORM, NORMAL };

struct Request {
    void* out;
    uint64_t count, seed, offset;
    double mean, deviation;
    Kind kind;
};

template <class T> void generate(const void* data) {
    const Request& r = *static_cast<const Request*>(data);
    T* const out = static_cast<T*>(r.out);
    for (uint64_t i = 0; i < r.count; i++) {
        const uint64_t at = r.offset + i;
        if (r.kind == UNIFORM) {
            out[i] = T(uniform(r.seed, at));
            continue;
        }
        // Two uniform numbers give a pair of normal ones.
        const double radius = std::sqrt(-2.0 * std::log(uniform(r.seed, at & ~uint64_t(1))));
        const double angle = 2.0 * M_PI * uniform(r.seed, at | 1);
        out[i] = T(r.mean + r.deviation * radius * ((at & 1) == 0 ? std::cos(angle) : std::sin(angle)));
    }
}

template <class T> int request(Generator* generator, T* out, size_t count, Request r) {
    GENERATOR(generator)
    if (r.kind == NORMAL && count % 2 != 0) {
        return NOT_MULTIPLE;
    }
    if (count == 0) {
        return DONE;
    }
    if (calm_host_device_check_memory(out, count * sizeof(T), "cuRAND") != 0) {
        return FAILED;
    }
    r.out = out;
    r.count = count;
    r.seed = generator->seed;
    r.offset = generator->offset;
    generator->offset += count;
    return calm_host_device_enqueue(generator->stream, generate<T>, &r, sizeof r) == 0 ? DONE : FAILED;
}

}  // namespace

EXPORT int curandCreateGenerator(Generator** generator, int) {
    host_device::SharedGuard guard;
    *generator = *generators().insert(new Generator).first;
    return DONE;
}

EXPORT int curandDestroyGenerator(Generator* generator) {
    GENERATOR(generator)
    generators().erase(generator);
    delete generator;
    return DONE;
}

EXPORT int curandSetStream(Generator* generator, void* stream) {
    GENERATOR(generator)
    generator->stream = stream;
    return calm_host_device_check_stream(stream) == 0 ? DONE : OUT_OF_RANGE;
}

EXPORT int curandSetPseudoRandomGeneratorSeed(Generator* generator, unsigned long long seed) {
    GENERATOR(generator)
    generator->seed = seed;
    generator->offset = 0;
    return DONE;
}

EXPORT int curandSetGeneratorOffset(Generator* generator, unsigned long long offset) {
    GENERATOR(generator)
    generator->offset = offset;
    return DONE;
}

EXPORT int curandGenerateUniform(Generator* generator, float* out, size_t count) {
    return request(generator, out, count, Request{nullptr, 0, 0, 0, 0.0, 1.0, UNIFORM});
}

EXPORT int curandGenerateUniformDouble(Generator* generator, double* out, size_t count) {
    return request(generator, out, count, Request{nullptr, 0, 0, 0, 0.0, 1.0, UNIFORM});
}

EXPORT int curandGenerateNormal(Generator* generator, float* out, size_t count, float mean, float deviation) {
    return request(generator, out, count, Request{nullptr, 0, 0, 0, mean, deviation, NORMAL});
}

EXPORT int curandGenerateNormalDouble(Generator* generator, double* out, size_t count, double mean,
                                      double deviation) {
    return request(generator, out, count, Request{nullptr, 0, 0, 0, mean, deviation, NORMAL});
}
