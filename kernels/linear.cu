// The bias of a linear layer, y = x W^T + 1 b^T: the rows that cuBLAS then adds x W^T to, so that a sum in
// bf16 is rounded once.
#include "number.cuh"

// out [rows, columns], each row a copy of `row` [columns].
template <class T>
DEVICE void repeat_row(const Block& block, const T* row, T* out, uint64_t rows, uint32_t columns) {
    const bool whole = columns % RUN<T> == 0 && at_runs(row, out);
    each_run<T>(block, rows, columns, whole, [&](uint64_t r, uint32_t c, auto width) {
        float v[width.value];
        load_run(row + c, v);
        store_run(out + r * columns + c, v);
    });
}

#define REPEAT_ROW(T, suffix)                                                                           \
    KERNEL(repeat_row_##suffix, (const T* row, T* out, uint64_t rows, uint32_t columns),                \
           repeat_row(block, row, out, rows, columns))
REPEAT_ROW(float, f32)
REPEAT_ROW(bf16, bf16)
