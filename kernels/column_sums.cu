// Sums over the rows of a matrix, for gradients of weights and biases, in two launches: parts of
// `part_rows` consecutive rows, then the parts in order. `part_rows` is a function of the shape alone
// (calm_twins::part_rows), so that the sums do not depend on the launch.
#include "column_sums.cuh"

// x [rows, columns] -> partial [parts, columns].
template <class T>
DEVICE void column_parts(const Block& block, const T* x, float* partial, uint32_t rows, uint32_t columns,
                         uint32_t part_rows) {
    each_part(block, rows, columns, part_rows, [&](Part part, uint32_t column) {
        float sum = 0.0f;
        for (uint64_t row = part.first; row < part.last; row++) {
            sum += load(x[row * columns + column]);
        }
        partial[part.index * columns + column] = sum;
    });
}

// partial [parts, columns] -> out [columns].
DEVICE void sum_parts(const Block& block, const float* partial, float* out, uint32_t parts,
                      uint32_t columns) {
    each_element(block, columns, [&](uint64_t column) {
        float sum = 0.0f;
        for (uint64_t part = 0; part < parts; part++) {
            sum += partial[part * columns + column];
        }
        out[column] = sum;
    });
}

#define COLUMN_PARTS(T, suffix)                                                                         \
    KERNEL(column_parts_##suffix,                                                                       \
           (const T* x, float* partial, uint32_t rows, uint32_t columns, uint32_t part_rows),           \
           column_parts(block, x, partial, rows, columns, part_rows))
COLUMN_PARTS(float, f32)
COLUMN_PARTS(bf16, bf16)
KERNEL(sum_parts, (const float* partial, float* out, uint32_t parts, uint32_t columns),
       sum_parts(block, partial, out, parts, columns))
