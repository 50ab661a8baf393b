// Embedding lookup and its deterministic backward pass: the twin of calm-kernels/src/embedding.rs.
//
//   out_i = table[id_i],   dtable[v] = sum over {i: id_i = v} of dout_i
//
// Backward: the places i are sorted by (id, i) (sort.cu), so that every id's places are neighbours, and the
// sorted list is cut into tiles of TILE places. An id whose places lie in one tile is summed in the order of
// i, as on the CPU. One that reaches over several (a frequent token) is the sum of its tiles' parts in
// order, so that no thread adds more than TILE rows and then one row a tile.
#include "column_sums.cuh"

constexpr uint32_t TILE = 64;

DEVICE uint32_t id_of(uint64_t key) { return uint32_t(key >> 32); }
DEVICE uint64_t place_of(uint64_t key) { return key & 0xffffffffu; }

// out [count, D] from table [V, D]; the row of an id that is not below V is NaN.
template <class F, class T>
DEVICE void embedding(const Block& block, const uint32_t* ids, const F* table, T* out, uint64_t count,
                      uint32_t d, uint32_t v_count) {
    const bool whole = d % RUN<T> == 0 && at_runs(table, out);
    each_run<T>(block, count, d, whole, [&](uint64_t i, uint32_t c, auto width) {
        const uint32_t id = ids[i];
        float v[width.value];
        if (id < v_count) {
            load_run(table + uint64_t(id) * d + c, v);
        } else {
            UNROLL for (float& e : v) {
                e = of_bits(0x7fc00000u);
            }
        }
        store_run(out + i * d + c, v);
    });
}

// first[v]: where the places of id v begin in the sorted keys; first [V + 1].
DEVICE void embedding_first(const Block& block, const uint64_t* keys, uint32_t* first, uint32_t count,
                            uint32_t v_count) {
    each_element(block, uint64_t(v_count) + 1, [&](uint64_t v) {
        uint32_t low = 0, high = count;
        while (low < high) {
            const uint32_t middle = low + (high - low) / 2;
            if (id_of(keys[middle]) < v) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        first[v] = low;
    });
}

// Sums of the rows of dout at the sorted places from .. to, columns c .. c + N - 1.
template <uint32_t N, class T>
DEVICE void sum_places(const uint64_t* keys, const T* dout, uint32_t from, uint32_t to, uint32_t d,
                       uint32_t c, float (&sum)[N]) {
    Run<T, N> of[ROWS_AHEAD];
    UNROLL for (float& e : sum) {
        e = 0.0f;
    }
    each_row_of<ROWS_AHEAD>(
        Part{0, from, to},
        [&](uint64_t i, uint32_t a) { of[a] = read_run<N>(dout + place_of(keys[i]) * d + c); },
        [&](uint64_t, uint32_t a) {
            UNROLL for (uint32_t j = 0; j < N; j++) {
                sum[j] += of[a][j];
            }
        });
}

// parts [tiles, 2, D]: of each tile the part of the id that reaches in from the tile before (entry 0), and
// of the id that starts here and reaches into the tile behind (entry 1); others stay as they are.
template <class T>
DEVICE void embedding_parts(const Block& block, const uint64_t* keys, const uint32_t* first, const T* dout,
                            float* parts, uint32_t count, uint32_t d, uint32_t v_count) {
    const uint32_t tiles = (count + TILE - 1) / TILE;
    const bool whole = d % RUN<T> == 0 && at_runs(dout, parts);
    each_run<T>(block, 2 * uint64_t(tiles), d, whole, [&](uint64_t part, uint32_t c, auto width) {
        const uint32_t begin = uint32_t(part / 2) * TILE;
        const uint32_t end = count - begin < TILE ? count : begin + TILE;
        const uint32_t id = id_of(keys[part % 2 == 0 ? begin : end - 1]);
        if (id >= v_count) {
            return;
        }
        const uint32_t from = first[id], to = first[id + 1];
        const bool wanted = part % 2 == 0 ? from < begin : from >= begin && to > end;
        if (wanted) {
            float sum[width.value];
            sum_places(keys, dout, from > begin ? from : begin, to < end ? to : end, d, c, sum);
            store_run(parts + part * d + c, sum);
        }
    });
}

// dtable [V, D] in f32: = the gradient, or += it if `accumulate` is not 0 (then rows without places are not
// touched). The row `frozen` (V or more for none) has a gradient of 0; ids that are not below V have none.
template <class T>
DEVICE void embedding_backward(const Block& block, const uint64_t* keys, const uint32_t* first,
                               const T* dout, const float* parts, float* dtable, uint32_t v_count,
                               uint32_t d, uint32_t frozen, uint32_t accumulate) {
    const bool whole = d % RUN<T> == 0 && at_runs(dout, parts, dtable);
    each_run<T>(block, v_count, d, whole, [&](uint64_t v, uint32_t c, auto width) {
        const uint32_t from = first[v], to = first[v + 1];
        const bool any = v != frozen && from < to;
        float sum[width.value] = {}, more[width.value];
        if (any) {
            const uint64_t tile = from / TILE, last = (to - 1) / TILE;
            if (tile == last) {
                sum_places(keys, dout, from, to, d, c, sum);
            } else {
                load_run(parts + (2 * tile + 1) * d + c, sum);
                for (uint64_t next = tile + 1; next <= last; next++) {
                    load_run(parts + 2 * next * d + c, more);
                    UNROLL for (uint32_t j = 0; j < width.value; j++) {
                        sum[j] += more[j];
                    }
                }
            }
        }
        if (accumulate == 0) {
            store_run(dtable + v * d + c, sum);
        } else if (any) {
            load_run(dtable + v * d + c, more);
            UNROLL for (uint32_t j = 0; j < width.value; j++) {
                more[j] += sum[j];
            }
            store_run(dtable + v * d + c, more);
        }
    });
}

#define LOOKUP(F, T, suffix)                                                                            \
    KERNEL(embedding_##suffix,                                                                          \
           (const uint32_t* ids, const F* table, T* out, uint64_t count, uint32_t d, uint32_t v_count), \
           embedding(block, ids, table, out, count, d, v_count))
LOOKUP(float, float, f32)
LOOKUP(bf16, bf16, bf16)
LOOKUP(float, bf16, f32_bf16)

#define EMBEDDING(T, suffix)                                                                            \
    KERNEL(embedding_parts_##suffix,                                                                    \
           (const uint64_t* keys, const uint32_t* first, const T* dout, float* parts, uint32_t count,   \
            uint32_t d, uint32_t v_count),                                                              \
           embedding_parts(block, keys, first, dout, parts, count, d, v_count))                         \
    KERNEL(embedding_backward_##suffix,                                                                 \
           (const uint64_t* keys, const uint32_t* first, const T* dout, const float* parts,             \
            float* dtable, uint32_t v_count, uint32_t d, uint32_t frozen, uint32_t accumulate),         \
           embedding_backward(block, keys, first, dout, parts, dtable, v_count, d, frozen, accumulate))
EMBEDDING(float, f32)
EMBEDDING(bf16, bf16)
KERNEL(embedding_first, (const uint64_t* keys, uint32_t* first, uint32_t count, uint32_t v_count),
       embedding_first(block, keys, first, count, v_count))
