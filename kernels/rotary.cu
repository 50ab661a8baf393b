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
    each_cell(block, rows, heads * half, [&](uint64_t row, uint32_t cell) {
        const uint32_t head = cell / half, i = cell % half;
        const float* const turn = table + (index != nullptr ? uint64_t(index[row]) : row) * dh;
        const float c = turn[i], s = sign * turn[half + i];
        const uint64_t at = (row * heads + head) * dh + i;
        const float x1 = load(x[at]), x2 = load(x[at + half]);
        store(y[at], x1 * c - x2 * s);
        store(y[at + half], x2 * c + x1 * s);
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
