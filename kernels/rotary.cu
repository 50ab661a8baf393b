// Rotary position embedding, rotate-half form: the twin of calm-kernels/src/rotary.rs.
//
//   y_i        = x_i cos a_i - x_{i+Dh/2} sin a_i,        a_i = position theta^(-2i/Dh),  i < Dh/2
//   y_{i+Dh/2} = x_{i+Dh/2} cos a_i + x_i sin a_i
//
// Cosines and sines come from a table, computed in double precision: here from the positions, or by the CPU.
// The backward pass is the same with -a: sign = -1.
#include "number.cuh"

// table [rows, 2, Dh/2] (cosines, then sines) of positions [rows] and frequency [Dh/2] = theta^(-2i/Dh).
DEVICE void rotary_turns(const Block& block, const uint32_t* positions, const double* frequency,
                         float* table, uint64_t rows, uint32_t half) {
    each_cell(block, rows, half, [&](uint64_t row, uint32_t i) {
        const double angle = double(positions[row]) * frequency[i];
        table[row * 2 * half + i] = float(cos(angle));
        table[row * 2 * half + half + i] = float(sin(angle));
    });
}

// x, y [rows, H, Dh], index [rows] into table [.., 2, Dh/2]; without an index (null) a row of the table for
// each row.
template <class T>
DEVICE void rotary(const Block& block, const T* x, const uint32_t* index, const float* table, T* y,
                   uint64_t rows, uint32_t heads, uint32_t dh, float sign) {
    const uint32_t half = dh / 2;
    const bool whole = half % RUN<T> == 0 && at_runs(x, table, y);
    each_run<T>(block, rows, heads * half, whole, [&](uint64_t row, uint32_t cell, auto width) {
        const uint32_t head = cell / half, i = cell % half;
        const float* const turn = table + (index != nullptr ? uint64_t(index[row]) : row) * dh;
        const uint64_t at = (row * heads + head) * dh + i;
        float x1[width.value], x2[width.value], c[width.value], s[width.value];
        load_run(x + at, x1);
        load_run(x + at + half, x2);
        load_run(turn + i, c);
        load_run(turn + half + i, s);
        UNROLL for (uint32_t j = 0; j < width.value; j++) {
            const float sine = sign * s[j], first = x1[j] * c[j] - x2[j] * sine;
            x2[j] = x2[j] * c[j] + x1[j] * sine;
            x1[j] = first;
        }
        store_run(y + at, x1);
        store_run(y + at + half, x2);
    });
}

#define ROTARY(T, suffix)                                                                               \
    KERNEL(rotary_##suffix,                                                                             \
           (const T* x, const uint32_t* index, const float* table, T* y, uint64_t rows, uint32_t heads, \
            uint32_t dh, float sign),                                                                   \
           rotary(block, x, index, table, y, rows, heads, dh, sign))
ROTARY(float, f32)
ROTARY(bf16, bf16)
KERNEL(rotary_turns,
       (const uint32_t* positions, const double* frequency, float* table, uint64_t rows, uint32_t half),
       rotary_turns(block, positions, frequency, table, rows, half))
