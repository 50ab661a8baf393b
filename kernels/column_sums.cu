// Sums over the rows of a matrix, for gradients of weights and biases, in two launches: parts of
// `part_rows` consecutive rows, then the sums of the parts. `part_rows` is a function of the shape alone
// (calm_twins::part_rows), so that the sums do not depend on the launch.
#include "column_sums.cuh"

// x [rows, columns] -> partial [parts, columns].
template <class T>
DEVICE void column_parts(const Block& block, const T* x, float* partial, uint32_t rows, uint32_t columns,
                         uint32_t part_rows) {
    const bool whole = columns % RUN<T> == 0 && at_runs(x, partial);
    each_part<T>(block, rows, columns, part_rows, whole, [&](Part part, uint32_t column, auto width) {
        constexpr uint32_t N = decltype(width)::value, AHEAD = 2 * ROWS_AHEAD;
        Run<T, N> xs[AHEAD];
        float sum[N] = {};
        each_row_of<AHEAD>(
            part, [&](uint64_t row, uint32_t a) { xs[a] = read_run<N>(x + row * columns + column); },
            [&](uint64_t, uint32_t a) {
                UNROLL for (uint32_t j = 0; j < N; j++) {
                    sum[j] += xs[a][j];
                }
            });
        store_run(partial + part.index * columns + column, sum);
    });
}

// Columns that a thread of sum_parts adds up.
constexpr uint32_t FOUR = 4;

// The parts of the columns c .. c + N - 1 from `lane` on, LANES apart.
template <uint32_t N>
DEVICE void add_parts(const float* partial, uint32_t parts, uint32_t columns, uint32_t c, uint32_t lane,
                      float* sums) {
    constexpr uint32_t AHEAD = 2 * ROWS_AHEAD;
    Run<float, N> of[AHEAD];
    each_row_of<AHEAD>(
        Part{0, lane, parts},
        [&](uint64_t part, uint32_t a) { of[a] = read_run<N>(partial + part * columns + c); },
        [&](uint64_t, uint32_t a) {
            UNROLL for (uint32_t j = 0; j < N; j++) {
                sums[j] += of[a][j];
            }
        },
        LANES);
}

// partial [parts, columns] -> out [columns]: four columns take LANES threads, of which each adds every LANES-th
// part in order; then the lanes as a tree.
DEVICE void sum_parts(const Block& block, const float* partial, float* out, uint32_t parts,
                      uint32_t columns) {
    const bool whole = columns % FOUR == 0 && at_runs(partial);
    each_row_batch(block, (uint64_t(columns) + FOUR - 1) / FOUR, [&](uint64_t first) {
        Local<float> sums[FOUR];
        block.each([&](uint32_t t) {
            const uint64_t c = lane_row(first, t) * FOUR;
            float of[FOUR] = {};
            if (whole && c < columns) {
                add_parts<FOUR>(partial, parts, columns, uint32_t(c), t % LANES, of);
            } else {
                for (uint32_t j = 0; j < FOUR && c + j < columns; j++) {
                    add_parts<1>(partial, parts, columns, uint32_t(c) + j, t % LANES, of + j);
                }
            }
            UNROLL for (uint32_t j = 0; j < FOUR; j++) {
                sums[j][t] = of[j];
            }
        });
        UNROLL for (uint32_t j = 0; j < FOUR; j++) {
            lane_sum<LANES>(block, sums[j]);
        }
        block.each([&](uint32_t t) {
            const uint64_t c = lane_row(first, t) * FOUR;
            UNROLL for (uint32_t j = 0; j < FOUR; j++) {
                if (t % LANES == 0 && c + j < columns) {
                    out[c + j] = sums[j][t];
                }
            }
        });
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
