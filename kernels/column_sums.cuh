// Parts of consecutive rows, of which each column is summed by one thread.
#pragma once

#include "number.cuh"

// The rows first .. last of part `index`.
struct Part {
    uint64_t index;
    uint64_t first;
    uint64_t last;
};

// f(part, column, width) for every part of `part_rows` rows and all columns of a matrix of T, RUN<T> at once where
// `whole` (each_run).
template <class T, class F>
DEVICE void each_part(const Block& block, uint32_t rows, uint32_t columns, uint32_t part_rows, bool whole, F f) {
    const uint64_t parts = (uint64_t(rows) + part_rows - 1) / part_rows;
    each_run<T>(block, parts, columns, whole, [&](uint64_t part, uint32_t column, auto width) {
        const uint64_t first = part * part_rows;
        const uint64_t last = first + part_rows < rows ? first + part_rows : rows;
        f(Part{part, first, last}, column, width);
    });
}

// Rows whose elements a thread loads before it uses them: so many are under way at a time.
constexpr uint32_t ROWS_AHEAD = 4;

// f(row, a) for the rows of a part in order, `step` apart, a the place in a batch of AHEAD rows;
// load_row(row, a) for the whole batch before.
template <uint32_t AHEAD, class L, class F>
DEVICE void each_row_of(Part part, L load_row, F f, uint64_t step = 1) {
    uint64_t row = part.first;
    for (; row + (AHEAD - 1) * step < part.last; row += AHEAD * step) {
        UNROLL for (uint32_t a = 0; a < AHEAD; a++) {
            load_row(row + a * step, a);
        }
        UNROLL for (uint32_t a = 0; a < AHEAD; a++) {
            f(row + a * step, a);
        }
    }
    for (; row < part.last; row += step) {
        load_row(row, 0);
        f(row, 0);
    }
}
