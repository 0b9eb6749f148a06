// Vectors of 64 bytes, or single numbers where channels are left over; and bfloat16, which is computed with as float.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace limbeck {

struct bf16 {
    uint16_t bits;
};

template <class A>
struct Of {
    typedef A vec __attribute__((vector_size(64)));
    static constexpr int64_t lanes = 64 / sizeof(A), panel = 2 * lanes;
};
template <class A>
using Vec = typename Of<A>::vec;

template <class V, class T>
inline V load(const T* at) {
    V value;
    std::memcpy(&value, at, sizeof value);
    return value;
}
template <class V, class T>
inline void store(T* at, V value) {
    std::memcpy(at, &value, sizeof value);
}

// The whole numbers that a V of floats is widened from, and the bits of its floats.
template <class V>
struct Bits {
    typedef uint16_t half __attribute__((vector_size(32)));
    typedef uint32_t whole __attribute__((vector_size(64)));
};
template <>
struct Bits<float> {
    typedef uint16_t half;
    typedef uint32_t whole;
};
template <class To, class From>
inline To converted(From from) {
    if constexpr (std::is_arithmetic_v<From>) {
        return To(from);
    } else {
        return __builtin_convertvector(from, To);
    }
}
template <class V>
inline V load(const bf16* at) {
    const auto whole = converted<typename Bits<V>::whole>(load<typename Bits<V>::half>(&at->bits)) << 16;
    return load<V>(&whole);
}
template <class V>
inline void store(bf16* at, V value) {  // rounded to the nearest, ties to even; a NaN stays one
    typedef typename Bits<V>::whole whole;
    const whole u = load<whole>(&value), one = whole{} + 1;
    const whole rounded = (u + 0x7fff + ((u >> 16) & one)) >> 16;
    const whole nan = whole{} + 0x7fc0;
    store(&at->bits, converted<typename Bits<V>::half>((u & 0x7fffffff) > whole{} + 0x7f800000 ? nan : rounded));
}

}  // namespace limbeck
