// candle's modules reduce and sort: sums and extremes over the last dimensions, argsort of rows.
#include "candle.h"

#include <algorithm>
#include <numeric>

namespace candle {
namespace {

// What a sum is kept in.
template <class T> struct SumOf { using type = Wide<T>; };
template <> struct SumOf<float> { using type = double; };
template <class T> using Sum = typename SumOf<T>::type;

// f(row, walker at its first element), over `rows` rows of `row` elements each.
template <class F>
void each_row(uint64_t rows, size_t row, size_t dims, const size_t* info, F f) {
    host_device::in_parallel_impl(rows, 1 + GRAIN / (row + 1), [&](uint64_t first, uint64_t last) {
        Walker<1> walker(dims, info, first * row);
        for (uint64_t i = first; i < last; i++) {
            f(i, walker);
        }
    });
}

template <class T>
void sum_rows(uint64_t rows, size_t row, size_t dims, const size_t* info, const T* in, T* out) {
    each_row(rows, row, dims, info, [&](uint64_t i, Walker<1>& w) {
        Sum<T> sum = 0;
        for (size_t k = 0; k < row; k++, w.step()) {
            sum += wide(in[w.at(0)]);
        }
        out[i] = narrow<T>(Wide<T>(sum));
    });
}

// A block a row.
template <class T>
void fast_sum(Launch launch, size_t, size_t row, size_t dims, const size_t* info, const T* in, T* out) {
    sum_rows(launch.grid, row, dims, info, in, out);
}

// A thread a row.
template <class T>
void fast_sum_small(Launch, size_t rows, size_t row, size_t dims, const size_t* info, const T* in, T* out) {
    sum_rows(rows, row, dims, info, in, out);
}

template <bool largest, class W> bool beats(W x, W best) { return largest ? x > best : x < best; }

template <class T, bool largest>
void fast_extreme(Launch launch, size_t, size_t row, size_t dims, const size_t* info, const T* in, T* out) {
    each_row(launch.grid, row, dims, info, [&](uint64_t i, Walker<1>& w) {
        using W = Wide<T>;
        using Limits = std::numeric_limits<W>;
        W best = largest ? Limits::lowest() : Limits::max();
        if constexpr (IS_FLOAT<T>) {
            best = largest ? -Limits::infinity() : Limits::infinity();
        }
        for (size_t k = 0; k < row; k++, w.step()) {
            const W x = wide(in[w.at(0)]);
            if constexpr (IS_FLOAT<T>) {
                // A NaN stays in half precision and is passed over otherwise, as with fmax.
                best = beats<largest>(x, best) || (sizeof(T) == 2 && std::isnan(x)) ? x : best;
            } else {
                best = beats<largest>(x, best) ? x : best;
            }
        }
        out[i] = narrow<T>(best);
    });
}

// The place along the last dimension; the first of equals.
template <class T, bool largest>
void fast_place(Launch launch, size_t, size_t row, size_t dims, const size_t* info, const T* in,
                uint32_t* out) {
    each_row(launch.grid, row, dims, info, [&](uint64_t i, Walker<1>& w) {
        Wide<T> best{};
        size_t place = 0;
        for (size_t k = 0; k < row; k++, w.step()) {
            const Wide<T> x = wide(in[w.at(0)]);
            if (k == 0 || beats<largest>(x, best)) {
                best = x;
                place = k;
            }
        }
        out[i] = uint32_t(place % info[dims - 1]);
    });
}

// A block a row; `padded` is the power of two that the shared memory was asked for.
template <class T, bool ascending>
void argsort(Launch launch, const T* in, uint32_t* out, int32_t columns, int32_t) {
    for (uint64_t row = 0; row < launch.grid; row++) {
        const T* const x = in + row * uint64_t(columns);
        uint32_t* const order = out + row * uint64_t(columns);
        std::iota(order, order + columns, 0u);
        std::stable_sort(order, order + columns, [&](uint32_t a, uint32_t b) {
            return ascending ? wide(x[a]) < wide(x[b]) : wide(x[b]) < wide(x[a]);
        });
    }
}

bool add_all() {
    each_element_type([](auto type) {
        using T = typename decltype(type)::type;
        add(name_of<T>("fast_sum"), "reduce", &fast_sum<T>);
        add(name_of<T>("fast_sum_small"), "reduce", &fast_sum_small<T>);
        add(name_of<T>("fast_max"), "reduce", &fast_extreme<T, true>);
        add(name_of<T>("fast_min"), "reduce", &fast_extreme<T, false>);
        add(name_of<T>("fast_argmax"), "reduce", &fast_place<T, true>);
        add(name_of<T>("fast_argmin"), "reduce", &fast_place<T, false>);
        add(name_of<T>("asort_asc"), "sort", &argsort<T, true>);
        add(name_of<T>("asort_desc"), "sort", &argsort<T, false>);
    });
    return true;
}

const bool added = add_all();

}  // namespace
}  // namespace candle
