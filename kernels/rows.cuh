// Rows that a warp takes each, for sums over them.
//
// The elements of a row are cut into runs of 8; thread t of the warp has the runs t, t + 32, ..: 16 bytes of bf16
// a load, whole lines a warp. A sum over a row has one order, whatever the launch, the type and the alignment:
// the 8 of a run as a tree, a thread's runs one after the other, the threads as a tree.
#pragma once

#include "number.cuh"

constexpr uint32_t ROW_WARP = 32;
constexpr uint32_t EIGHT = 8;
constexpr uint32_t WARP_RUNS = ROW_WARP * EIGHT;

// A thread's runs of a row of d elements. The first HELD are read once and stay in registers, so that all of them
// are under way at a time; what a row has beyond (256 HELD elements) is read again at every use, from the caches.
// KEEP is how many loads of 16 bytes stay. WHOLE: runs can be read as such; otherwise element by element, every time.
template <class T, bool WHOLE, uint32_t KEEP> struct Row {
    static constexpr uint32_t HELD = WHOLE ? KEEP / (EIGHT / RUN<T>) : 0;

    Run<T, EIGHT> held[HELD == 0 ? 1 : HELD];
    const T* x;

    // Of thread t, of a row that begins at `row`.
    DEVICE void take(const T* row, uint32_t t, uint32_t d) {
        x = row;
        if constexpr (WHOLE) {
            UNROLL for (uint32_t c = 0; c < HELD; c++) {
                const uint32_t i = first(t) + c * WARP_RUNS;
                if (i < d) {
                    held[c] = read_run<EIGHT>(row + i);
                }
            }
        }
    }

    // The first element of thread t's first run.
    static DEVICE uint32_t first(uint32_t t) { return t % ROW_WARP * EIGHT; }
};

// The 8 elements from x on, of which `count` are there; the others are 0.
template <bool WHOLE, class T> DEVICE void read_eight(const T* x, uint32_t count, float (&v)[EIGHT]) {
    if constexpr (WHOLE) {
        load_run(x, v);
    } else {
        UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
            v[j] = j < count ? load(x[j]) : 0.0f;
        }
    }
}

template <bool WHOLE, class T> DEVICE void write_eight(T* x, uint32_t count, const float (&v)[EIGHT]) {
    if constexpr (WHOLE) {
        store_run(x, v);
    } else {
        UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
            if (j < count) {
                store(x[j], v[j]);
            }
        }
    }
}

DEVICE float sum_of_eight(const float (&v)[EIGHT]) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// f(i, v ..) for thread t's runs of rows of d elements, i the first element, v the 8 of each row.
template <class F, class T, bool WHOLE, uint32_t KEEP, class... R>
DEVICE void each_eight(uint32_t t, uint32_t d, F f, const Row<T, WHOLE, KEEP>& row, const R&... others) {
    constexpr uint32_t HELD = Row<T, WHOLE, KEEP>::HELD;
    if constexpr (WHOLE) {
        const auto held = [](const auto& of, uint32_t c, float (&v)[EIGHT]) {
            UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                v[j] = of.held[c][j];
            }
        };
        UNROLL for (uint32_t c = 0; c < HELD; c++) {
            const uint32_t i = row.first(t) + c * WARP_RUNS;
            if (i < d) {
                float v[1 + sizeof...(R)][EIGHT];
                held(row, c, v[0]);
                uint32_t k = 1;
                (held(others, c, v[k++]), ...);
                f(i, v);
            }
        }
    }
    for (uint32_t i = row.first(t) + HELD * WARP_RUNS; i < d; i += WARP_RUNS) {
        float v[1 + sizeof...(R)][EIGHT];
        read_eight<WHOLE>(row.x + i, d - i, v[0]);
        uint32_t k = 1;
        (read_eight<WHOLE>(others.x + i, d - i, v[k++]), ...);
        f(i, v);
    }
}

// The sum of thread t's runs of the values that value(i, v, j) gives for element i + j, v[k][j] of the k-th row.
template <class F, class T, bool WHOLE, uint32_t KEEP, class... R>
DEVICE float sum_eights(uint32_t t, uint32_t d, F value, const Row<T, WHOLE, KEEP>& row, const R&... others) {
    float total = 0.0f;
    each_eight(
        t, d,
        [&](uint32_t i, const auto& v) {
            float of[EIGHT];
            value(i, v, of);
            UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                of[j] = WHOLE || i + j < d ? of[j] : 0.0f;
            }
            total += sum_of_eight(of);
        },
        row, others...);
    return total;
}
