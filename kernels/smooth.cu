// Smoothing of a row's concepts, a moving average over M: the twin of calm-kernels/src/smooth.rs.
//
//   y_k = p_k z_k + (1 - p_k) y_{k-1}         p_k = 1 where a document begins
//   g_k = dy_k + (1 - p_{k+1}) g_{k+1}        dz_k = p_k g_k        dp_k = sum_i g_ki (z_ki - y_{k-1,i})
//
// A thread takes a few columns of a row and goes through its concepts one after the other, with several of them under
// way. The backward pass leaves g in f32; then a warp takes a concept (rows.cuh), so that its sum does not wait for
// others.
#include "column_sums.cuh"
#include "rows.cuh"

// Concepts whose numbers are under way at a time.
constexpr uint32_t AHEAD = 8;

// Whether a run of equal ids begins at concept k of a row whose first is at `first`.
DEVICE bool begins(const uint32_t* documents, uint64_t first, uint32_t k) {
    return k == 0 || documents[first + k] != documents[first + k - 1];
}

// z, y [B, M, D], p, documents [B, M].
template <class T>
DEVICE void smooth(const Block& block, const T* z, const float* p, const uint32_t* documents, T* y, uint32_t b,
                   uint32_t m, uint32_t d) {
    each_run<T>(block, b, d, d % RUN<T> == 0 && at_runs(z, y), [&](uint64_t row, uint32_t i, auto width) {
        constexpr uint32_t N = decltype(width)::value;
        const uint64_t first = row * m;
        float average[N] = {};
        Run<T, N> zs[AHEAD];
        float ps[AHEAD];
        bool anew[AHEAD];
        each_row_of<AHEAD>(
            Part{row, 0, m},
            [&](uint64_t k, uint32_t a) {
                zs[a] = read_run<N>(z + (first + k) * d + i);
                ps[a] = p[first + k];
                anew[a] = begins(documents, first, uint32_t(k));
            },
            [&](uint64_t k, uint32_t a) {
                const float keep = 1.0f - ps[a];
                UNROLL for (uint32_t j = 0; j < N; j++) {
                    average[j] = anew[a] ? zs[a][j] : ps[a] * zs[a][j] + keep * average[j];
                }
                store_run(y + (first + k) * d + i, average);
            });
    });
}

// g [B, M, D] of dy [B, M, D], from the last concept to the first.
template <class T>
DEVICE void smooth_slopes(const Block& block, const T* dy, const float* p, const uint32_t* documents, float* g,
                          uint32_t b, uint32_t m, uint32_t d) {
    each_run<T>(block, b, d, d % RUN<T> == 0 && at_runs(dy, g), [&](uint64_t row, uint32_t i, auto width) {
        constexpr uint32_t N = decltype(width)::value;
        const uint64_t first = row * m;
        float slope[N] = {};
        Run<T, N> dys[AHEAD];
        float keep[AHEAD];
        bool last[AHEAD];
        each_row_of<AHEAD>(
            Part{row, 0, m},
            [&](uint64_t back, uint32_t a) {
                const uint32_t k = m - 1 - uint32_t(back);
                dys[a] = read_run<N>(dy + (first + k) * d + i);
                last[a] = k + 1 == m || begins(documents, first, k + 1);
                keep[a] = last[a] ? 0.0f : 1.0f - p[first + k + 1];
            },
            [&](uint64_t back, uint32_t a) {
                UNROLL for (uint32_t j = 0; j < N; j++) {
                    slope[j] = last[a] ? dys[a][j] : dys[a][j] + keep[a] * slope[j];
                }
                store_run(g + (first + m - 1 - back) * d + i, slope);
            });
    });
}

template <bool WHOLE, class T>
DEVICE void each_concept(const Block& block, const T* z, const float* p, const uint32_t* documents, const T* y,
                         const float* g, T* dz, float* dp, uint64_t concepts, uint32_t m, uint32_t d) {
    each_row_batch<ROW_WARP>(block, concepts, [&](uint64_t first) {
        Local<float> product;
        block.each([&](uint32_t t) {
            product[t] = 0.0f;
            const uint64_t concept_row = lane_row<ROW_WARP>(first, t);
            if (concept_row < concepts) {
                const uint32_t k = uint32_t(concept_row % m);
                const bool anew = begins(documents, concept_row - k, k);
                const float take = anew ? 1.0f : p[concept_row];
                Row<float, WHOLE, 0> slope;
                Row<T, WHOLE, 0> own, before;
                slope.take(g + concept_row * d, t, d);
                own.take(z + concept_row * d, t, d);
                // Of a first concept its own average, whose part is not taken.
                before.take(y + (concept_row - (anew ? 0 : 1)) * d, t, d);
                T* const out = dz + concept_row * d;
                const float sum = sum_eights(
                    t, d,
                    [&](uint32_t i, const auto& v, float(&of)[EIGHT]) {
                        float taken[EIGHT];
                        UNROLL for (uint32_t j = 0; j < EIGHT; j++) {
                            taken[j] = take * v[0][j];
                            of[j] = v[0][j] * (v[1][j] - v[2][j]);
                        }
                        write_eight<WHOLE>(out + i, d - i, taken);
                    },
                    slope, own, before);
                product[t] = anew ? 0.0f : sum;
            }
        });
        lane_sum<ROW_WARP>(block, product);
        block.each([&](uint32_t t) {
            const uint64_t concept_row = lane_row<ROW_WARP>(first, t);
            if (t % ROW_WARP == 0 && concept_row < concepts) {
                dp[concept_row] = product[t];
            }
        });
    });
}

// dz [B, M, D], dp [B, M] of z, y, g [B, M, D].
template <class T>
DEVICE void smooth_backward(const Block& block, const T* z, const float* p, const uint32_t* documents, const T* y,
                            const float* g, T* dz, float* dp, uint32_t b, uint32_t m, uint32_t d) {
    const uint64_t concepts = uint64_t(b) * m;
    if (d % EIGHT == 0 && at_runs(z, y, g, dz)) {
        each_concept<true>(block, z, p, documents, y, g, dz, dp, concepts, m, d);
    } else {
        each_concept<false>(block, z, p, documents, y, g, dz, dp, concepts, m, d);
    }
}

#define SMOOTH(T, suffix)                                                                                  \
    KERNEL(smooth_##suffix,                                                                                \
           (const T* z, const float* p, const uint32_t* documents, T* y, uint32_t b, uint32_t m,           \
            uint32_t d),                                                                                   \
           smooth(block, z, p, documents, y, b, m, d))                                                     \
    KERNEL(smooth_slopes_##suffix,                                                                         \
           (const T* dy, const float* p, const uint32_t* documents, float* g, uint32_t b, uint32_t m,      \
            uint32_t d),                                                                                   \
           smooth_slopes(block, dy, p, documents, g, b, m, d))                                             \
    KERNEL(smooth_backward_##suffix,                                                                       \
           (const T* z, const float* p, const uint32_t* documents, const T* y, const float* g, T* dz,      \
            float* dp, uint32_t b, uint32_t m, uint32_t d),                                                \
           smooth_backward(block, z, p, documents, y, g, dz, dp, b, m, d))
SMOOTH(float, f32)
SMOOTH(bf16, bf16)
