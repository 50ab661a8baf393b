// What a position sees of its row: its segment, the run of equal ids that it stands in, up to itself. The twin
// of segment_spans in calm-kernels/src/attention.rs.
#include "attention.cuh"

// spans [rows, s] of segments [rows, s]. A block takes a row, each thread a part of it; any number of threads.
DEVICE void segment_spans(const Block& block, const uint32_t* segments, Span* spans, uint32_t rows,
                          uint32_t s) {
    // Where the last segment that begins in a thread's part does; 0 where none does.
    SHARED uint32_t begins[MAX_THREADS];
    const uint32_t each = (s + block.threads() - 1) / block.threads();
    for (uint32_t row = block.index(); row < rows; row += block.grid()) {
        const uint32_t* const ids = segments + uint64_t(row) * s;
        Span* const out = spans + uint64_t(row) * s;
        block.phase([&](uint32_t t) {
            uint32_t start = 0;
            for (uint32_t u = t * each; u < (t + 1) * each && u < s; u++) {
                start = u > 0 && ids[u] != ids[u - 1] ? u : start;
            }
            begins[t] = start;
        });
        block.phase([&](uint32_t t) {
            uint32_t start = 0;
            for (uint32_t before = 0; before < t; before++) {
                start = larger(start, begins[before]);
            }
            for (uint32_t u = t * each; u < (t + 1) * each && u < s; u++) {
                start = u > 0 && ids[u] != ids[u - 1] ? u : start;
                out[u] = {start, u + 1};
            }
        });
    }
}

KERNEL(segment_spans, (const uint32_t* segments, Span* spans, uint32_t rows, uint32_t s),
       segment_spans(block, segments, spans, rows, s))
