// One small product by the tensor cores, C = A B, to check that copies, loads and fragments of matrix.cuh
// are what they say: for B with its columns in memory one after the other ([16, K], as keys are for scores)
// and with its rows ([K, 16], as values are for the output).
#include "matrix.cuh"

// a [16, K], c [16, 16], K a multiple of 16. Dynamic shared memory: two tiles of 16 rows of 24 elements.
template <bool ROWS_OF_B>
DEVICE void matrix_product(const Block& block, const bf16* a, const bf16* b, float* c, uint32_t k) {
    // 48 bytes from a row to the next: an odd number of 16, so that eight rows lie in different banks.
    constexpr uint32_t PITCH = 24;
    bf16* const left = reinterpret_cast<bf16*>(block.dynamic_shared());
    bf16* const right = left + 16 * PITCH;
    Local<float> sums[2][4];
    block.each([&](uint32_t t) {
        UNROLL for (uint32_t i = 0; i < 8; i++) {
            sums[i / 4][i % 4][t] = 0.0f;
        }
    });
    for (uint32_t first = 0; first < k; first += 16) {
        block.each([&](uint32_t t) {
            const uint32_t row = t / 2, piece = t % 2 * 8;
            const bf16* const from = ROWS_OF_B ? b + (first + row) * 16 : b + row * k + first;
            copy_async<16>(block, left + row * PITCH + piece, a + row * k + first + piece, true);
            copy_async<16>(block, right + row * PITCH + piece, from + piece, true);
        });
        copies_close(block);
        copies_wait<0>(block);
        block.barrier();
        Local<uint32_t> rows[4], columns[4];
        load_matrices<false>(block, rows,
                             [&](uint32_t t) { return left + t % 16 * PITCH + t / 16 * 8; });
        load_matrices<ROWS_OF_B>(block, columns, [&](uint32_t t) {
            return ROWS_OF_B ? right + t % 16 * PITCH + t / 16 * 8
                             : right + (t / 16 * 8 + t % 8) * PITCH + t / 8 % 2 * 8;
        });
        multiply(block, sums[0], rows, columns[0], columns[1]);
        multiply(block, sums[1], rows, columns[2], columns[3]);
        // The next copies overwrite what is read here.
        block.barrier();
    }
    block.each([&](uint32_t t) {
        UNROLL for (uint32_t i = 0; i < 8; i++) {
            const uint32_t row = t / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
            c[row * 16 + column] = sums[i / 4][i % 4][t];
        }
    });
}

// Launch with one block of a warp and 1536 bytes of shared memory.
KERNEL_OF(32, 1, matrix_product_columns, (const bf16* a, const bf16* b, float* c, uint32_t k),
          matrix_product<false>(block, a, b, c, k))
KERNEL_OF(32, 1, matrix_product_rows, (const bf16* a, const bf16* b, float* c, uint32_t k),
          matrix_product<true>(block, a, b, c, k))
