// Products of small matrices by the tensor cores, and how to feed them: copies from global into shared
// memory that run beside the computation, and loads of 8x8 matrices from shared memory into the registers
// of a warp. bf16 times bf16, summed in f32.
//
// A warp holds a matrix in pieces, its fragment: lane 4r + c, c < 4, has pairs of neighbouring elements.
//
//   A 16x16 (weights, rows by k)   4 registers: (r, 2c), (r + 8, 2c), (r, 2c + 8), (r + 8, 2c + 8)
//   B 16x8  (k by columns)         2 registers: rows 2c and 2c + 1 of column r, rows 2c + 8 and 2c + 9
//   C 16x8  (sums, rows by columns) 4 floats:   (r, 2c), (r, 2c + 1), (r + 8, 2c), (r + 8, 2c + 1)
//
// So the two C of neighbouring columns, rounded in pairs, are an A of the next product: no lane needs what
// another one has. In what order the tensor cores add the 16 products of a sum, and how they round on the
// way, is not specified; the host adds them one after the other, each rounded to f32.
#pragma once

#include "number.cuh"

constexpr float LOG2_E = 1.44269504088896340736f;

#if defined(__CUDACC__)

DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// c += a b
DEVICE void multiply(const Block&, Local<float> (&c)[4], Local<uint32_t> (&a)[4], Local<uint32_t>& b0,
                     Local<uint32_t>& b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0].value), "+f"(c[1].value), "+f"(c[2].value), "+f"(c[3].value)
        : "r"(a[0].value), "r"(a[1].value), "r"(a[2].value), "r"(a[3].value), "r"(b0.value), "r"(b1.value));
}

// Four 8x8 matrices from shared memory: row(t) is where lane 8j + i finds row i of matrix j, at a multiple
// of 16 bytes. Lane 4r + c gets elements 2c and 2c + 1 of row r of each, or, TRANSPOSED, of column r.
template <bool TRANSPOSED, class F>
DEVICE void load_matrices(const Block&, Local<uint32_t> (&out)[4], F row) {
    const uint32_t address = shared_address(row(threadIdx.x));
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0].value), "=r"(out[1].value), "=r"(out[2].value), "=r"(out[3].value)
                     : "r"(address));
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0].value), "=r"(out[1].value), "=r"(out[2].value), "=r"(out[3].value)
                     : "r"(address));
    }
}

// Begins a copy of 16, 8 or 4 bytes from global to shared memory (addresses multiples of that), or puts
// zeros there. Called by a thread in `each`; the others see it after its wait and a barrier.
template <uint32_t SIZE> DEVICE void copy_async(const Block&, void* to, const void* from, bool real) {
    const uint32_t size = real ? SIZE : 0;
    if constexpr (SIZE == 16) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                     "l"(from), "r"(size));
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from),
                     "n"(SIZE), "r"(size));
    }
}

// Closes the group of copies begun since the last one.
DEVICE void copies_close(const Block&) { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for the thread's own copies but those of the last LEFT groups; the threads then need a barrier.
template <uint32_t LEFT> DEVICE void copies_wait(const Block&) {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// t, of which the compiler does not know where it comes from: what is computed from it stays where it is
// written, and does not wait in registers from before a loop.
DEVICE uint32_t anew(uint32_t t) {
    asm volatile("" : "+r"(t));
    return t;
}

// 2^x to about 22 bits.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The larger of two, a number where one is a NaN: one instruction, unlike larger().
DEVICE float larger_number(float a, float b) { return fmaxf(a, b); }

// 16 and 4 bytes, at a multiple of that many.
DEVICE void copy_16(void* to, const void* from) { *static_cast<uint4*>(to) = *static_cast<const uint4*>(from); }
DEVICE void store_4(void* to, uint32_t x) { *static_cast<uint32_t*>(to) = x; }

#else

DEVICE bool aligned(const void* p, size_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

// The fragments of one lane.
struct Operands {
    uint32_t a[4];
    uint32_t b[2];
};

DEVICE float of_pair(uint32_t pair, uint32_t i) { return of_bits(i == 0 ? pair << 16 : pair & 0xffff0000u); }

DEVICE void multiply(const Block& block, Local<float> (&c)[4], Local<uint32_t> (&a)[4], Local<uint32_t>& b0,
                     Local<uint32_t>& b1) {
    Local<Operands> mine;
    block.each([&](uint32_t t) { mine[t] = {{a[0][t], a[1][t], a[2][t], a[3][t]}, {b0[t], b1[t]}}; });
    warp_exchange(block, mine, [&](uint32_t t, const Operands* warp) {
        const uint32_t r = t % 32 / 4, column = t % 4 * 2;
        // Rows r and r + 8 of A, columns 2c and 2c + 1 of B.
        float rows[2][16], columns[2][16];
        for (uint32_t k = 0; k < 16; k++) {
            const uint32_t lane = k % 8 / 2;
            for (uint32_t i = 0; i < 2; i++) {
                rows[i][k] = of_pair(warp[r * 4 + lane].a[i + k / 8 * 2], k % 2);
                columns[i][k] = of_pair(warp[(column + i) * 4 + lane].b[k / 8], k % 2);
            }
        }
        for (uint32_t i = 0; i < 4; i++) {
            float sum = c[i][t];
            for (uint32_t k = 0; k < 16; k++) {
                sum += rows[i / 2][k] * columns[i % 2][k];
            }
            c[i][t] = sum;
        }
    });
}

template <bool TRANSPOSED, class F>
DEVICE void load_matrices(const Block& block, Local<uint32_t> (&out)[4], F row) {
    Local<const bf16*> places;
    block.each([&](uint32_t t) {
        places[t] = row(t);
        assert(aligned(places[t], 16));
    });
    warp_exchange(block, places, [&](uint32_t t, const bf16* const* rows) {
        const uint32_t r = t % 32 / 4, first = t % 4 * 2;
        for (uint32_t j = 0; j < 4; j++) {
            bf16 pair[2];
            for (uint32_t i = 0; i < 2; i++) {
                const bf16* from = TRANSPOSED ? rows[8 * j + first + i] + r : rows[8 * j + r] + first + i;
                std::memcpy(&pair[i], from, sizeof(bf16));
            }
            out[j][t] = pair[0].bits | uint32_t(pair[1].bits) << 16;
        }
    });
}

template <uint32_t SIZE> DEVICE void copy_async(const Block& block, void* to, const void* from, bool real) {
    assert(aligned(to, SIZE) && aligned(from, SIZE));
    block.copies().begin(to, from, SIZE, real);
}

DEVICE void copies_close(const Block& block) { block.copies().close_group(); }

template <uint32_t LEFT> DEVICE void copies_wait(const Block& block) { block.copies().wait(LEFT); }

DEVICE uint32_t anew(uint32_t t) { return t; }

DEVICE float exp2_fast(float x) { return std::exp2(x); }

DEVICE float larger_number(float a, float b) { return b > a || a != a ? b : a; }

DEVICE void copy_16(void* to, const void* from) {
    assert(aligned(to, 16) && aligned(from, 16));
    std::memcpy(to, from, 16);
}

DEVICE void store_4(void* to, uint32_t x) {
    assert(aligned(to, 4));
    std::memcpy(to, &x, 4);
}

#endif
