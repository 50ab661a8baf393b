// AdamW and clipping by the global norm over all parameters of a model, in three launches: the twin of
// calm-kernels/src/adamw.rs. Where processes share the optimiser out, `replace` takes over what others updated.
//
//   g = clip grad,   m <- m + (1 - b1)(g - m),   v <- b2 v + (1 - b2) g^2
//   p <- p (1 - lr decay) - lr/(1 - b1^t) m / (sqrt(v)/sqrt(1 - b2^t) + eps)
//
// A table names the parameters; they are cut into chunks of CHUNK elements, numbered through all of them.
// squared_norms leaves each chunk's sum of squares, clip_scale adds them up and leaves the factor where
// adamw reads it, so that nothing waits for the CPU.
#include "number.cuh"

constexpr uint32_t CHUNK = 16384;

// One parameter: values, moments and gradient of `count` elements, in f32.
struct Parameter {
    float* value;
    const float* grad;
    float* m;
    float* v;
    bf16* compute; // a copy in bf16 for the model's products, or null
    uint64_t count;
    uint64_t first_chunk;
    uint64_t group; // its kind
};

// What is the same for all parameters of a kind in a step, with the kind's own learning rate, decay and eps.
struct AdamWGroup {
    float keep; // 1 - lr decay
    float rate; // lr / (1 - b1^t)
    float eps;
};

// What is the same for all of a step; computed on the CPU in double precision.
struct AdamWFactors {
    float first;  // 1 - b1
    float beta2;  // b2
    float second; // 1 - b2
    float root;   // 1 / sqrt(1 - b2^t)
    AdamWGroup groups[8];
};

DEVICE bool is_finite(double x) { return x - x == 0.0; }

// The chunk's parameter, the last one that begins at or before it, and the elements begin .. end in it.
struct Chunk {
    Parameter parameter;
    uint64_t begin;
    uint64_t end;
};

DEVICE Chunk chunk_of(const Parameter* parameters, uint32_t count, uint64_t chunk) {
    uint32_t low = 0, high = count - 1;
    while (low < high) {
        const uint32_t middle = low + (high - low + 1) / 2;
        if (parameters[middle].first_chunk <= chunk) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    const Parameter parameter = parameters[low];
    const uint64_t begin = (chunk - parameter.first_chunk) * CHUNK;
    const uint64_t end = begin + CHUNK < parameter.count ? begin + CHUNK : parameter.count;
    return {parameter, begin, end};
}

// Elements that a thread reads at once, threads that share the sum of a chunk (each has FOUR of the LANES), and
// runs that are under way at a time.
constexpr uint32_t FOUR = 4;
constexpr uint32_t NORM_THREADS = LANES / FOUR;
constexpr uint32_t AHEAD = 8;

// Adds the squares of thread t's lanes of x [count], in the CPU's order: element i belongs to lane i mod LANES.
DEVICE void add_squares(const float* x, uint32_t count, uint32_t t, double (&sum)[FOUR]) {
    const auto add = [&](uint32_t j, float x) {
        const double g = double(x);
        sum[j] += g * g;
    };
    uint32_t i = t % NORM_THREADS * FOUR;
    if (at_runs(x)) {
        for (; i + (AHEAD - 1) * LANES + FOUR <= count; i += AHEAD * LANES) {
            Run<float, FOUR> of[AHEAD];
            UNROLL for (uint32_t a = 0; a < AHEAD; a++) {
                of[a] = read_run<FOUR>(x + i + a * LANES);
            }
            UNROLL for (uint32_t a = 0; a < AHEAD; a++) {
                UNROLL for (uint32_t j = 0; j < FOUR; j++) {
                    add(j, of[a][j]);
                }
            }
        }
    }
    for (; i < count; i += LANES) {
        UNROLL for (uint32_t j = 0; j < FOUR; j++) {
            if (i + j < count) {
                add(j, x[i + j]);
            }
        }
    }
}

// norms [chunks]: the sum of each chunk's squared gradients in double precision, in the CPU's order.
DEVICE void squared_norms(const Block& block, const Parameter* parameters, uint32_t count, uint32_t chunks,
                          double* norms) {
    each_row_batch<NORM_THREADS>(block, chunks, [&](uint64_t first) {
        Local<double> squares[FOUR];
        block.each([&](uint32_t t) {
            const uint64_t index = lane_row<NORM_THREADS>(first, t);
            double sum[FOUR] = {};
            if (index < chunks) {
                const Chunk chunk = chunk_of(parameters, count, index);
                add_squares(chunk.parameter.grad + chunk.begin, uint32_t(chunk.end - chunk.begin), t, sum);
            }
            UNROLL for (uint32_t j = 0; j < FOUR; j++) {
                squares[j][t] = sum[j];
            }
        });
        // The lanes as a tree: halves and quarters between threads, the rest inside one.
        UNROLL for (uint32_t j = 0; j < FOUR; j++) {
            lane_sum<NORM_THREADS>(block, squares[j]);
        }
        block.each([&](uint32_t t) {
            const uint64_t index = lane_row<NORM_THREADS>(first, t);
            if (t % NORM_THREADS == 0 && index < chunks) {
                norms[index] = (squares[0][t] + squares[2][t]) + (squares[1][t] + squares[3][t]);
            }
        });
    });
}

// out [3]: the global norm before clipping, the gradients' factor (1, or max_norm / norm above it), and how
// many norms were not finite so far, of which adamw lets the steps out. One block of MAX_THREADS threads.
DEVICE void clip_scale(const Block& block, const double* norms, uint32_t chunks, double max_norm,
                       double* out) {
    Local<double> squares;
    block.each([&](uint32_t t) {
        squares[t] = 0.0;
        for (uint32_t i = t; i < chunks; i += MAX_THREADS) {
            squares[t] += norms[i];
        }
    });
    block_sum(block, squares);
    block.each([&](uint32_t t) {
        if (t == 0) {
            const double norm = sqrt(squares[t]);
            out[0] = norm;
            out[1] = norm > max_norm ? max_norm / norm : 1.0;
            out[2] += is_finite(norm) ? 0.0 : 1.0;
        }
    });
}

// The elements of a chunk, FOUR at a time where their addresses allow it: step(i, their number).
template <class Step> DEVICE void each_of(const Block& block, const Chunk& chunk, bool whole, Step step) {
    const uint64_t runs = whole ? (chunk.end - chunk.begin) / FOUR * FOUR : 0;
    block.each([&](uint32_t t) {
        for (uint64_t i = chunk.begin + FOUR * t; i < chunk.begin + runs; i += FOUR * block.threads()) {
            step(i, Width<FOUR>{});
        }
        for (uint64_t i = chunk.begin + runs + t; i < chunk.end; i += block.threads()) {
            step(i, Width<1>{});
        }
    });
}

// Updates values, moments and bf16 copies; `clip` is what clip_scale left. Nothing changes if the norm was
// not finite: the CPU hears of it later, and finds the parameters as they were.
DEVICE void adamw(const Block& block, const Parameter* parameters, uint32_t count, uint32_t chunks,
                  AdamWFactors f, const double* clip) {
    if (!is_finite(clip[0])) {
        return;
    }
    const float scale = float(clip[1]);
    for (uint32_t c = block.index(); c < chunks; c += block.grid()) {
        const Chunk chunk = chunk_of(parameters, count, c);
        const Parameter& p = chunk.parameter;
        const AdamWGroup own = f.groups[p.group];
        const auto step = [&](uint64_t i, auto width) {
            float value[width.value], g[width.value], m[width.value], v[width.value];
            load_run(p.value + i, value);
            load_run(p.grad + i, g);
            load_run(p.m + i, m);
            load_run(p.v + i, v);
            UNROLL for (uint32_t j = 0; j < width.value; j++) {
                g[j] = g[j] * scale;
                m[j] = m[j] + (g[j] - m[j]) * f.first;
                v[j] = v[j] * f.beta2 + (g[j] * g[j]) * f.second;
                value[j] = value[j] * own.keep - own.rate * (m[j] / (sqrtf(v[j]) * f.root + own.eps));
            }
            store_run(p.m + i, m);
            store_run(p.v + i, v);
            store_run(p.value + i, value);
            if (p.compute != nullptr) {
                store_run(p.compute + i, value);
            }
        };
        each_of(block, chunk, at_runs(p.value, p.grad, p.m, p.v, p.compute), step);
    }
}

// Values and bf16 copies become what lies where the gradients do.
DEVICE void replace(const Block& block, const Parameter* parameters, uint32_t count, uint32_t chunks) {
    for (uint32_t c = block.index(); c < chunks; c += block.grid()) {
        const Chunk chunk = chunk_of(parameters, count, c);
        const Parameter& p = chunk.parameter;
        const auto step = [&](uint64_t i, auto width) {
            float value[width.value];
            load_run(p.grad + i, value);
            store_run(p.value + i, value);
            if (p.compute != nullptr) {
                store_run(p.compute + i, value);
            }
        };
        each_of(block, chunk, at_runs(p.value, p.grad, p.compute), step);
    }
}

KERNEL(squared_norms, (const Parameter* parameters, uint32_t count, uint32_t chunks, double* norms),
       squared_norms(block, parameters, count, chunks, norms))
KERNEL(clip_scale, (const double* norms, uint32_t chunks, double max_norm, double* out),
       clip_scale(block, norms, chunks, max_norm, out))
KERNEL(adamw,
       (const Parameter* parameters, uint32_t count, uint32_t chunks, AdamWFactors f, const double* clip),
       adamw(block, parameters, count, chunks, f, clip))
KERNEL(replace, (const Parameter* parameters, uint32_t count, uint32_t chunks),
       replace(block, parameters, count, chunks))
