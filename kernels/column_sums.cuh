// Parts of consecutive rows, of which each column is summed by one thread.
#pragma once

#include "number.cuh"

// The rows first .. last of part `index`.
struct Part {
    uint64_t index;
    uint64_t first;
    uint64_t last;
};

// f(part, column) for every part of `part_rows` rows and every column.
template <class F>
DEVICE void each_part(const Block& block, uint32_t rows, uint32_t columns, uint32_t part_rows, F f) {
    const uint64_t parts = (uint64_t(rows) + part_rows - 1) / part_rows;
    each_cell(block, parts, columns, [&](uint64_t part, uint32_t column) {
        const uint64_t first = part * part_rows;
        const uint64_t last = first + part_rows < rows ? first + part_rows : rows;
        f(Part{part, first, last}, column);
    });
}
