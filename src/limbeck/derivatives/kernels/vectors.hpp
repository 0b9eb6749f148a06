// Vectors as wide as the processor's registers, and how many of them a panel of channels has.
#pragma once

#include <cstdint>
#include <cstring>

namespace limbeck {

// A vector that is wider than a register goes through memory: four times as slow as no kernels at all (docs/LOG.md).
// ROWS: of a tile of sums (matrix.hpp), so that ROWS x 2 sums, two vectors of the right matrix and a broadcast number of
// the left one fit into the registers: 32 of AVX-512 and of NEON, 16 of AVX and of SSE.
#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 14;
#elif defined(__AVX__)
constexpr int BYTES = 32, ROWS = 6;
#elif defined(__aarch64__)
constexpr int BYTES = 16, ROWS = 12;
#else
constexpr int BYTES = 16, ROWS = 6;
#endif

template <class A>
struct Of {
    typedef A vec __attribute__((vector_size(BYTES)));
    static constexpr int64_t lanes = BYTES / sizeof(A), panel = 2 * lanes;
};
template <class A>
using Vec = typename Of<A>::vec;

template <class V, class A>
inline V load(const A* at) {
    V value;
    std::memcpy(&value, at, sizeof value);
    return value;
}
template <class V, class A>
inline void store(A* at, V value) {
    std::memcpy(at, &value, sizeof value);
}

}  // namespace limbeck
