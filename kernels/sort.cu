// Ids sorted together with their places, by a bitonic network. Keys id * 2^32 + place are all different, so
// there is one sorted order whatever the network does on the way.
//
//   sort_keys                      keys of `count` ids, the rest up to `padded` (a power of two, at least
//                                  SORT_TILE) larger than any
//   sort_tiles(2, SORT_TILE)       sorts tiles of SORT_TILE keys, up and down in turn
//   for k = 2 SORT_TILE, .. padded:
//       for j = k/2, .. SORT_TILE: sort_step(k, j)
//       sort_tiles(k, k)           the steps j below SORT_TILE, in shared memory
#include "block.cuh"

constexpr uint32_t SORT_TILE = 1024;

DEVICE void sort_keys(const Block& block, const uint32_t* ids, uint64_t* keys, uint32_t count,
                      uint32_t padded) {
    each_element(block, padded,
                 [&](uint64_t i) { keys[i] = i < count ? (uint64_t(ids[i]) << 32) | i : ~uint64_t(0); });
}

// Compares and exchanges pair `p` of step (k, j): places i and i + j, i the p-th place whose bit j is 0;
// ascending where bit k of the place is 0. `first` is the place of keys[0].
DEVICE void exchange(uint64_t* keys, uint32_t p, uint32_t k, uint32_t j, uint32_t first) {
    const uint32_t i = ((p & ~(j - 1)) << 1) | (p & (j - 1));
    const uint64_t a = keys[i], b = keys[i + j];
    const bool ascending = ((first + i) & k) == 0;
    if ((a > b) == ascending) {
        keys[i] = b;
        keys[i + j] = a;
    }
}

DEVICE void sort_step(const Block& block, uint64_t* keys, uint32_t padded, uint32_t k, uint32_t j) {
    each_element(block, padded / 2, [&](uint64_t p) { exchange(keys, uint32_t(p), k, j, 0); });
}

DEVICE void sort_tiles(const Block& block, uint64_t* keys, uint32_t padded, uint32_t k_first,
                       uint32_t k_last) {
    SHARED uint64_t tile[SORT_TILE];
    for (uint32_t first = block.index() * SORT_TILE; first < padded; first += block.grid() * SORT_TILE) {
        block.phase([&](uint32_t t) {
            for (uint32_t i = t; i < SORT_TILE; i += block.threads()) {
                tile[i] = keys[first + i];
            }
        });
        for (uint32_t k = k_first; k <= k_last; k *= 2) {
            for (uint32_t j = k / 2 < SORT_TILE / 2 ? k / 2 : SORT_TILE / 2; j > 0; j /= 2) {
                block.phase([&](uint32_t t) {
                    for (uint32_t p = t; p < SORT_TILE / 2; p += block.threads()) {
                        exchange(tile, p, k, j, first);
                    }
                });
            }
        }
        block.phase([&](uint32_t t) {
            for (uint32_t i = t; i < SORT_TILE; i += block.threads()) {
                keys[first + i] = tile[i];
            }
        });
    }
}

KERNEL(sort_keys, (const uint32_t* ids, uint64_t* keys, uint32_t count, uint32_t padded),
       sort_keys(block, ids, keys, count, padded))
KERNEL(sort_step, (uint64_t* keys, uint32_t padded, uint32_t k, uint32_t j),
       sort_step(block, keys, padded, k, j))
KERNEL(sort_tiles, (uint64_t* keys, uint32_t padded, uint32_t k_first, uint32_t k_last),
       sort_tiles(block, keys, padded, k_first, k_last))
