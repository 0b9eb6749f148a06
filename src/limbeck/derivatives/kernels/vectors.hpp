// Vectors as wide as the processor's registers.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

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

// sum + factor row. Where the processor can, it is rounded once, and always: g++ 13 leaves that out in tiles of one vector,
// so that an image alone in its part had other bits than the same image beside others.
template <class V, class A>
inline V multiply_add(A factor, V row, V sum) {
#if defined(__AVX512F__) && defined(__FMA__)
    if constexpr (sizeof(A) == 4) return _mm512_fmadd_ps(_mm512_set1_ps(factor), row, sum);
    else return _mm512_fmadd_pd(_mm512_set1_pd(factor), row, sum);
#elif defined(__FMA__)
    if constexpr (sizeof(A) == 4) return _mm256_fmadd_ps(_mm256_set1_ps(factor), row, sum);
    else return _mm256_fmadd_pd(_mm256_set1_pd(factor), row, sum);
#elif defined(__aarch64__)
    if constexpr (sizeof(A) == 4) return vfmaq_n_f32(sum, row, factor);
    else return vfmaq_n_f64(sum, row, factor);
#else
    return sum + factor * row;
#endif
}

}  // namespace limbeck
