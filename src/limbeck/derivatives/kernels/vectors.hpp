// Vectors as wide as the processor's registers.
#pragma once

#include <cstdint>
#include <cstring>

namespace limbeck {

// A vector that is wider than a register goes through memory: that was four times as slow as no kernels (docs/LOG.md).
// TILE_ROWS is the height of a tile of sums in matrix.hpp. TILE_ROWS x 2 sums, two vectors of the right matrix and one
// broadcast element of the left one fit into the registers: 32 of AVX-512 and NEON, 16 of AVX and SSE.
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, TILE_ROWS = 14;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, TILE_ROWS = 6;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, TILE_ROWS = 12;
#else
constexpr int VECTOR_BYTES = 16, TILE_ROWS = 6;
#endif

// Elements per vector, and channels per panel: two vectors.
template <class A>
struct Simd {
    typedef A vec __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int64_t lanes = VECTOR_BYTES / sizeof(A), panel = 2 * lanes;
};
template <class A>
using Vec = typename Simd<A>::vec;

template <class V, class A>
inline V load(const A* address) {
    V value;
    std::memcpy(&value, address, sizeof value);
    return value;
}
template <class V, class A>
inline void store(A* address, V value) {
    std::memcpy(address, &value, sizeof value);
}

}  // namespace limbeck
