// Energy score of model samples against targets drawn from a Gaussian posterior, with its gradient: the
// twin of calm-kernels/src/energy_score.rs (formula and source there).
//
//   loss   = 2/(NM) sum_n sum_m |x_n - z_m|^a - 1/(N(N-1)) sum_{n != k} |x_n - x_k|^a
//   d/dx_n = 2/(NM) sum_m c(x_n - z_m) - 2/(N(N-1)) sum_{k != n} c(x_n - x_k),  c(d) = a |d|^(a-2) d, c(0) = 0
//
// One block a row, in one launch. SAMPLES model samples and their gradients lie in shared memory; the
// others (the targets, then the row's own samples) pass by in tiles of OTHERS: targets are drawn into
// shared memory and nowhere else. Each tile takes three steps:
//
//   distances  16 lanes a pair, element i in lane i mod 16: the order of the CPU's sums
//   powers     one thread a pair: |d|^a into a double-precision total, the slope a |d|^(a-2) aside
//   gradients  one thread a dimension, others in ascending order: again the CPU's order
//
// With more than SAMPLES samples the row is gone through once per tile of samples, and targets are drawn
// again. Sums have one order for every grid.
#include "philox.cuh"

constexpr uint32_t SAMPLES = 8;
constexpr uint32_t OTHERS = 16;
// A thread for every pair of a tile.
constexpr uint32_t ENERGY_THREADS = SAMPLES * OTHERS;
// Smallest positive normal f32: squares below count as coincident points.
constexpr float TINY = 1.17549435e-38f;

// What one other vector's differences to the samples are multiplied by: read 16 bytes at a time.
struct alignas(16) Coefficients {
    float of[SAMPLES];
};

struct Power {
    double value;
    double slope;
};

// |d|^a and a |d|^(a-2) from |d|^2; 0 at coincident points. Written so that NaN comes out.
DEVICE Power power_of(float square, double alpha) {
    if (square < TINY) {
        return {0.0, 0.0};
    }
    if (alpha == 1.0) {
        const float distance = sqrtf(square);
        return {double(distance), double(1.0f / distance)};
    }
    const double value = pow(double(square), 0.5 * alpha);
    return {value, alpha * value / double(square)};
}

// The targets' noise: drawn at (key, rows), or `given` [M, R, L] where that is not null.
struct TargetNoise {
    NoiseKey key;
    const RowId* rows;
    const float* given;
};

// pred [R, N, L]; mean, log_std [R, L] in f32; loss [R]; gradient [R, N, L] or null (then none is computed).
template <class T>
DEVICE void energy_score(const Block& block, const T* pred, const float* mean, const float* log_std,
                         TargetNoise noise, float* loss, T* gradient, uint32_t r_count, uint32_t n_count,
                         uint32_t m_count, uint32_t l, double alpha) {
    SHARED Coefficients coefficient[OTHERS];
    const uint32_t width = (l + LANES - 1) / LANES * LANES;
    float* const x = block.dynamic_shared();
    float* const g = x + SAMPLES * width;
    float* const z = g + SAMPLES * width;
    float* const center = z + OTHERS * width;
    float* const deviation = center + width;
    const double to_target = 2.0 / (double(n_count) * double(m_count));
    const double to_sample = -2.0 / (double(n_count) * (double(n_count) - 1.0));

    for (uint32_t r = block.index(); r < r_count; r += block.grid()) {
        const T* const row = pred + uint64_t(r) * n_count * l;
        Local<double> attraction, repulsion;
        // The posterior, once a row: every target needs it.
        block.phase([&](uint32_t t) {
            attraction[t] = repulsion[t] = 0.0;
            for (uint32_t d = t; d < l; d += ENERGY_THREADS) {
                center[d] = mean[uint64_t(r) * l + d];
                deviation[d] = exp_f32(log_std[uint64_t(r) * l + d]);
            }
        });

        for (uint32_t first = 0; first < n_count; first += SAMPLES) {
            const uint32_t samples = n_count - first < SAMPLES ? n_count - first : SAMPLES;
            block.phase([&](uint32_t t) {
                for (uint32_t i = t; i < SAMPLES * width; i += ENERGY_THREADS) {
                    const uint32_t n = i / width, d = i % width;
                    x[i] = n < samples && d < l ? load(row[uint64_t(first + n) * l + d]) : 0.0f;
                    g[i] = 0.0f;
                }
            });

            // The three steps for the `others` vectors in z; `counts(sample, other)` says whether a
            // pair's distance belongs to the total.
            auto pull = [&](uint32_t others, double weight, Local<double>& total, auto counts) {
                constexpr uint32_t EACH = OTHERS / (ENERGY_THREADS / LANES);
                Local<float> sums[EACH * SAMPLES];
                block.each([&](uint32_t t) {
                    const float* const zs = z + t / LANES * EACH * width;
                    UNROLL for (uint32_t i = 0; i < EACH * SAMPLES; i++) {
                        sums[i][t] = 0.0f;
                    }
                    for (uint32_t d = t % LANES; d < width; d += LANES) {
                        UNROLL for (uint32_t i = 0; i < EACH * SAMPLES; i++) {
                            const float difference = x[i % SAMPLES * width + d] - zs[i / SAMPLES * width + d];
                            sums[i][t] += difference * difference;
                        }
                    }
                });
                UNROLL for (uint32_t i = 0; i < EACH * SAMPLES; i++) {
                    lane_sum<LANES>(block, sums[i]);
                }
                block.phase([&](uint32_t t) {
                    float square = 0.0f;
                    UNROLL for (uint32_t i = 0; i < EACH * SAMPLES; i++) {
                        square = t % LANES == i ? sums[i][t] : square;
                    }
                    const uint32_t n = t % SAMPLES, other = t / SAMPLES;
                    Power power = power_of(square, alpha);
                    if (n < samples && other < others && counts(n, other)) {
                        total[t] += power.value;
                    }
                    coefficient[other].of[n] = float(power.slope * weight);
                });
                if (gradient != nullptr) {
                    block.phase([&](uint32_t t) {
                        for (uint32_t d = t; d < l; d += ENERGY_THREADS) {
                            float xs[SAMPLES], gs[SAMPLES];
                            UNROLL for (uint32_t n = 0; n < SAMPLES; n++) {
                                xs[n] = x[n * width + d];
                                gs[n] = g[n * width + d];
                            }
                            for (uint32_t other = 0; other < others; other++) {
                                const float zd = z[other * width + d];
                                UNROLL for (uint32_t n = 0; n < SAMPLES; n++) {
                                    gs[n] += coefficient[other].of[n] * (xs[n] - zd);
                                }
                            }
                            UNROLL for (uint32_t n = 0; n < SAMPLES; n++) {
                                g[n * width + d] = gs[n];
                            }
                        }
                    });
                }
            };

            for (uint32_t m = 0; m < m_count; m += OTHERS) {
                const uint32_t targets = m_count - m < OTHERS ? m_count - m : OTHERS;
                block.phase([&](uint32_t t) {
                    const uint32_t fours = width / 4;
                    for (uint32_t i = t; i < OTHERS * fours; i += ENERGY_THREADS) {
                        const uint32_t target = i / fours, four = i % fours;
                        const bool drawn = target < targets && 4 * four < l && noise.given == nullptr;
                        Four normals{};
                        if (drawn) {
                            normals = normal_four(noise_words(noise.key, noise.rows[r], m + target, four));
                        }
                        UNROLL for (uint32_t j = 0; j < 4; j++) {
                            const uint32_t d = 4 * four + j;
                            float value = 0.0f;
                            if (target < targets && d < l) {
                                const uint64_t at = uint64_t(r) * l + d;
                                const float eps =
                                    drawn ? normals.v[j]
                                          : noise.given[uint64_t(m + target) * r_count * l + at];
                                value = center[d] + eps * deviation[d];
                            }
                            z[target * width + d] = value;
                        }
                    }
                });
                pull(targets, to_target, attraction, [](uint32_t, uint32_t) { return true; });
            }

            for (uint32_t k = 0; k < n_count; k += OTHERS) {
                const uint32_t others = n_count - k < OTHERS ? n_count - k : OTHERS;
                block.phase([&](uint32_t t) {
                    for (uint32_t i = t; i < OTHERS * width; i += ENERGY_THREADS) {
                        const uint32_t other = i / width, d = i % width;
                        z[i] = other < others && d < l ? load(row[uint64_t(k + other) * l + d]) : 0.0f;
                    }
                });
                pull(others, to_sample, repulsion,
                     [&](uint32_t n, uint32_t other) { return first + n < k + other; });
            }

            block.phase([&](uint32_t t) {
                for (uint32_t i = t; gradient != nullptr && i < samples * l; i += ENERGY_THREADS) {
                    store(gradient[(uint64_t(r) * n_count + first) * l + i], g[i / l * width + i % l]);
                }
            });
        }

        block_sum(block, attraction);
        block_sum(block, repulsion);
        block.each([&](uint32_t t) {
            if (t == 0) {
                loss[r] = float(to_target * attraction[t] + to_sample * repulsion[t]);
            }
        });
    }
}

// out [R, N, L] = kept gradient times the row's upstream gradient [R]; row = N*L elements.
template <class T>
DEVICE void scale_rows(const Block& block, const T* kept, const float* upstream, T* out, uint32_t rows,
                       uint32_t row) {
    each_cell(block, rows, row, [&](uint64_t r, uint32_t i) {
        store(out[r * row + i], load(kept[r * row + i]) * upstream[r]);
    });
}

// Launch with ENERGY_THREADS threads, any grid, and shared memory for 2 SAMPLES + OTHERS + 2 vectors of L
// floats, L rounded up to a multiple of LANES: 17 KiB for 128, 136 KiB for 1024.
#define ENERGY_SCORE(T, suffix)                                                                         \
    KERNEL_OF(ENERGY_THREADS, 8, energy_score_##suffix,                                                 \
           (const T* pred, const float* mean, const float* log_std, NoiseKey key, const RowId* rows,    \
            const float* given, float* loss, T* gradient, uint32_t r, uint32_t n, uint32_t m,           \
            uint32_t l, double alpha),                                                                  \
           energy_score(block, pred, mean, log_std, TargetNoise{key, rows, given}, loss, gradient, r, n, \
                        m, l, alpha))                                                                   \
    KERNEL(energy_score_backward_##suffix,                                                              \
           (const T* kept, const float* upstream, T* out, uint32_t rows, uint32_t row),                 \
           scale_rows(block, kept, upstream, out, rows, row))
ENERGY_SCORE(float, f32)
ENERGY_SCORE(bf16, bf16)
