// candle's module indexing. An index that is out of range is an assertion that fails on a device: the device
// is lost. The largest value of the index type stands for no element.
#include "candle.h"
#include "device.h"

namespace candle {
namespace {

template <class I> bool is_nothing(I index) { return index == std::numeric_limits<I>::max(); }

// False, and the device fails, for an index out of range.
template <class I> bool is_within(I index, size_t size) {
    if (index >= 0 && uint64_t(index) < size) {
        return true;
    }
    host_device::fail_device(host_device::complain(host_device::ASSERT, "%s: index %lld of %zu",
                                                   host_device::running, (long long)index, size));
    return false;
}

bool is_contiguous(size_t dims, const size_t* info) {
    size_t stride = 1;
    for (size_t d = dims; d-- > 0; stride *= info[d]) {
        if (info[d] > 1 && info[dims + d] != stride) {
            return false;
        }
    }
    return true;
}

// `info` holds the dimensions and strides of the indices, but candle's kernel applies them to the source:
// with indices that are not contiguous it reads the wrong elements.
template <class T, class I>
void index_select(Launch, size_t, size_t dims, const size_t* info, const I* ids, const T* in, T* out,
                  size_t left, size_t source, size_t count, size_t right) {
    if (!is_contiguous(dims, info)) {
        host_device::fail_device(host_device::complain(
            host_device::ASSERT, "%s: candle reads the wrong elements for indices that are not contiguous",
            host_device::running));
        return;
    }
    in_parallel(left * count, 1 + GRAIN / (right + 1), [&](uint64_t row) {
        const I id = ids[row % count];
        T* const to = out + row * right;
        if (is_nothing(id)) {
            std::fill(to, to + right, T{});
        } else if (is_within(id, source)) {
            std::copy_n(in + (row / count * source + uint64_t(id)) * right, right, to);
        }
    });
}

template <class T, class I>
void gather(Launch, size_t total, const I* ids, const T* in, T* out, size_t, size_t source, size_t count,
            size_t right) {
    for (uint64_t i = 0; i < total; i++) {
        const I id = ids[i];
        if (is_nothing(id)) {
            out[i] = T{};
        } else if (is_within(id, source)) {
            out[i] = in[(i / (right * count) * source + uint64_t(id)) * right + i % right];
        }
    }
}

template <bool sum, class T> void put(T& to, T x) {
    to = sum ? narrow<T>(Wide<T>(wide(to) + wide(x))) : x;
}

// One index a row of the source.
template <class T, class I>
void index_add(Launch, const I* ids, size_t count, const T* in, T* out, size_t left, size_t, size_t target,
               size_t right) {
    for (uint64_t row = 0; row < left * count; row++) {
        const I id = ids[row % count];
        if (is_nothing(id) || !is_within(id, target)) {
            continue;
        }
        T* const to = out + (row / count * target + uint64_t(id)) * right;
        for (size_t i = 0; i < right; i++) {
            put<true>(to[i], in[row * right + i]);
        }
    }
}

// One index an element of the source.
template <class T, class I, bool sum>
void scatter(Launch, const I* ids, const T* in, T* out, size_t left, size_t source, size_t target,
             size_t right) {
    for (uint64_t i = 0; i < left * source * right; i++) {
        const I id = ids[i];
        if (!is_nothing(id) && is_within(id, target)) {
            put<sum>(out[(i / (source * right) * target + uint64_t(id)) * right + i % right], in[i]);
        }
    }
}

bool add_all() {
    each_element_type([](auto type) {
        using T = typename decltype(type)::type;
        each_index_type([](auto index) {
            using I = typename decltype(index)::type;
            const auto name = [](const char* root) {
                return std::string(root) + "_" + suffix<I>() + "_" + suffix<T>();
            };
            add(name("is"), "indexing", &index_select<T, I>);
            add(name("gather"), "indexing", &gather<T, I>);
            add(name("ia"), "indexing", &index_add<T, I>);
            add(name("s"), "indexing", &scatter<T, I, false>);
            add(name("sa"), "indexing", &scatter<T, I, true>);
        });
    });
    return true;
}

const bool added = add_all();

}  // namespace
}  // namespace candle
