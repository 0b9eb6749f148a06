// 3 x 3 convolutions of padding 1 with a quarter of the products: Winograd's F(4 x 4, 3 x 3) (Lavin and Gray, CVPR 2016).
//
// With fixed small matrices A, B, G, an output tile of 4 x 4 is A^T [sum over channels (G w G^T) (B^T x B)] A, where the
// products in brackets are element by element. So each of the 36 elements needs one matrix product, tiles by channels, and
// several convolutions are summed before A. The gradient in x is the same convolution with w flipped; that in w is
// G^T [sum over tiles (B^T x B) (A dz A^T)] G, with the same matrices transposed.
// The matrices are those of polynomials at 0, +-sqrt(1/2), +-sqrt(2) and infinity: with the usual 0, +-1, +-2 rounding is
// twice as large (1.0e-6 against 2.0e-6 in float32, 128 channels; a sum of 1152 products by itself 1.6e-7 to 6e-7).
// Memory is NHWC. c is a multiple of Simd<A>::panel. The 36 elements of a transform are `stride` apart, which leaves room
// for tiles of more images than one call transforms.
#pragma once

#include "matrix.hpp"

namespace limbeck {

struct FeatureMap {
    int64_t images, height, width;
    int64_t tile_rows() const { return (height + 3) / 4; }
    int64_t tile_columns() const { return (width + 3) / 4; }
    int64_t tiles() const { return images * tile_rows() * tile_columns(); }
};

// The stride between the 36 elements. It is no power of two: then all 36 addresses would share one set of the cache.
template <class A>
constexpr int64_t tile_stride(int64_t rows, int64_t c) {
    return rows * c + Simd<A>::lanes;
}

template <class A>
struct Points {  // a, b, and numbers that follow from them
    static constexpr A a = A(0.70710678118654752440), b = A(1.41421356237309504880);
    static constexpr A aa = A(0.5), bb = A(2), sum = A(2.5);        // a^2, b^2, a^2 + b^2; a^2 b^2 is 1
    static constexpr A na = A(-1.0 / 1.5), nb = A(1.0 / 6);        // 1 / (2 a^2 (a^2 - b^2)), 1 / (2 b^2 (b^2 - a^2))
};

// The values at the points +-a and +-b, from their even and odd parts.
template <class V>
inline void store_plus_minus(V even_a, V odd_a, V even_b, V odd_b, V* out) {
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
}

// B^T x: six values to six.
template <class A, class V>
inline void to_patches(const V* x, V* out) {
    typedef Points<A> P;
    const V even_a = x[4] - P::bb * x[2], odd_a = P::a * (x[3] - P::bb * x[1]);
    const V even_b = x[4] - P::aa * x[2], odd_b = P::b * (x[3] - P::aa * x[1]);
    out[0] = x[0] - P::sum * x[2] + x[4];
    store_plus_minus<V>(even_a, odd_a, even_b, odd_b, out);
    out[5] = x[1] - P::sum * x[3] + x[5];
}
// A^T y: six values to four.
template <class A, class V>
inline void to_tile(const V* y, V* out) {
    typedef Points<A> P;
    const V even_a = y[1] + y[2], odd_a = P::a * (y[1] - y[2]), even_b = y[3] + y[4], odd_b = P::b * (y[3] - y[4]);
    out[0] = y[0] + even_a + even_b;
    out[1] = odd_a + odd_b;
    out[2] = P::aa * even_a + P::bb * even_b;
    out[3] = P::aa * odd_a + P::bb * odd_b + y[5];
}
// A d: four values to six.
template <class A, class V>
inline void from_tile(const V* d, V* out) {
    typedef Points<A> P;
    const V even_a = d[0] + P::aa * d[2], odd_a = P::a * (d[1] + P::aa * d[3]);
    const V even_b = d[0] + P::bb * d[2], odd_b = P::b * (d[1] + P::bb * d[3]);
    out[0] = d[0];
    store_plus_minus<V>(even_a, odd_a, even_b, odd_b, out);
    out[5] = d[3];
}
// G w: three values to six.
template <class A, class V>
inline void from_weight(const V* w, V* out) {
    typedef Points<A> P;
    const V even_a = P::na * (w[0] + P::aa * w[2]), odd_a = P::na * P::a * w[1];
    const V even_b = P::nb * (w[0] + P::bb * w[2]), odd_b = P::nb * P::b * w[1];
    out[0] = w[0];
    store_plus_minus<V>(even_a, odd_a, even_b, odd_b, out);
    out[5] = w[2];
}
// G^T y: six values to three.
template <class A, class V>
inline void to_weight(const V* y, V* out) {
    typedef Points<A> P;
    const V even_a = P::na * (y[1] + y[2]), even_b = P::nb * (y[3] + y[4]);
    out[0] = y[0] + even_a + even_b;
    out[1] = P::na * P::a * (y[1] - y[2]) + P::nb * P::b * (y[3] - y[4]);
    out[2] = P::aa * even_a + P::bb * even_b + y[5];
}

// One of these transforms on both sides of a matrix, from `in` x `in` to `out` x `out`, which get(row, column) reads and
// put(row, column, value) writes.
template <int in, int out, class V, class Transform, class Get, class Put>
inline void transform_2d(Transform transform, Get get, Put put) {
    V half[out][in], column[in], result[out];
#pragma GCC unroll 6
    for (int j = 0; j < in; ++j) {
#pragma GCC unroll 6
        for (int i = 0; i < in; ++i) column[i] = get(i, j);
        transform(column, result);
#pragma GCC unroll 6
        for (int i = 0; i < out; ++i) half[i][j] = result[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < out; ++i) {
        transform(half[i], result);
#pragma GCC unroll 6
        for (int j = 0; j < out; ++j) put(i, j, result[j]);
    }
}

// The addresses of a window of `side` x `side` pixels that begins `offset` pixels above and left of tile t; `outside` is
// the address of pixels beyond the map.
template <int side, class A>
inline void window(const FeatureMap& m, A* x, int64_t c, int64_t t, int64_t offset, A* outside, A* (*address)[side]) {
    const int64_t columns = m.tile_columns(), per_image = m.tile_rows() * columns, image = t / per_image;
    const int64_t top = 4 * (t % per_image / columns) - offset, left = 4 * (t % columns) - offset;
    for (int64_t i = 0; i < side; ++i)
        for (int64_t j = 0; j < side; ++j) {
            const int64_t row = top + i, column = left + j;
            const bool inside = row >= 0 && row < m.height && column >= 0 && column < m.width;
            address[i][j] = inside ? x + ((image * m.height + row) * m.width + column) * c : outside;
        }
}

// out (36, tiles, c): B^T x B. `zero` is c zeros.
template <class A>
void transform_input(const FeatureMap& m, const A* x, int64_t c, const A* zero, A* out, int64_t stride) {
    typedef Vec<A> V;
    const int64_t tiles = m.tiles();
    const A* address[6][6];
    for (int64_t t = 0; t < tiles; ++t) {
        window<6, const A>(m, x, c, t, 1, zero, address);
        for (int64_t k = 0; k < c; k += Simd<A>::lanes) {
            A* target = out + t * c + k;
            transform_2d<6, 6, V>([](const V* a, V* b) { to_patches<A>(a, b); },
                                  [&](int i, int j) { return load<V>(address[i][j] + k); },
                                  [&](int i, int j, V value) { store(target + (6 * i + j) * stride, value); });
        }
    }
}

// out (36, c / panel, total, panel): A dz A^T for the tiles of the map, which begin at `out` among `total` tiles.
template <class A>
void scatter(const FeatureMap& m, const A* dz, int64_t c, const A* zero, A* out, int64_t total, int64_t stride) {
    typedef Vec<A> V;
    constexpr int64_t P = Simd<A>::panel;
    const int64_t tiles = m.tiles();
    const A* address[4][4];
    for (int64_t t = 0; t < tiles; ++t) {
        window<4, const A>(m, dz, c, t, 0, zero, address);
        for (int64_t k = 0; k < c; k += Simd<A>::lanes) {
            A* target = out + (k / P * total + t) * P + k % P;
            transform_2d<4, 6, V>([](const V* a, V* b) { from_tile<A>(a, b); },
                                  [&](int i, int j) { return load<V>(address[i][j] + k); },
                                  [&](int i, int j, V value) { store(target + (6 * i + j) * stride, value); });
        }
    }
}

// z = A^T y A of y (36, tiles, c). Values outside the map are written to `sink` (c).
template <class A>
void gather(const FeatureMap& m, const A* y, int64_t c, A* sink, A* z) {
    typedef Vec<A> V;
    const int64_t tiles = m.tiles(), stride = tile_stride<A>(tiles, c);
    A* address[4][4];
    for (int64_t t = 0; t < tiles; ++t) {
        window<4, A>(m, z, c, t, 0, sink, address);
        for (int64_t k = 0; k < c; k += Simd<A>::lanes) {
            const A* source = y + t * c + k;
            transform_2d<6, 4, V>([](const V* a, V* b) { to_tile<A>(a, b); },
                                  [&](int i, int j) { return load<V>(source + (6 * i + j) * stride); },
                                  [&](int i, int j, V value) { store(address[i][j] + k, value); });
        }
    }
}

// y (36, tiles, out) = x_tiles (36, tiles, in), with `stride`, times w (36, in, out in panels); plus y if `add`.
template <class A>
void convolve(int64_t tiles, int64_t in, int64_t out, const A* x_tiles, int64_t stride, const A* w, A* y, bool add) {
    for (int64_t e = 0; e < 36; ++e)
        product<A>(tiles, out, 1, in, {x_tiles + e * stride, in, 1},
                   {w + e * tile_stride<A>(in, out), Simd<A>::panel, in * Simd<A>::panel},
                   y + e * tile_stride<A>(tiles, out), out, add);
}

// Element e of dw (36, in, out) = sum over tiles of x_tiles (36, tiles, in) dz_tiles (36, tiles in panels, out), before G;
// plus dw if `add`.
template <class A>
void correlate(int64_t e, int64_t tiles, int64_t in, int64_t out, const A* x_tiles, const A* dz_tiles, A* dw, bool add) {
    product<A>(in, out, 1, tiles, {x_tiles + e * tile_stride<A>(tiles, in), 1, in},
               {dz_tiles + e * tile_stride<A>(tiles, out), Simd<A>::panel, tiles * Simd<A>::panel},
               dw + e * tile_stride<A>(in, out), out, add);
}

// From w (out, in, 3, 3): w_fwd (36, in, out in panels) = G w G^T, for convolve; and w_bwd (36, out, in in panels), the
// same of w flipped, with which convolve computes dx from dz. All threads of the enclosing region share the work.
template <class A>
void transform_weights(int64_t in, int64_t out, const A* w, A* w_fwd, A* w_bwd) {
    typedef Vec<A> V;
    constexpr int64_t P = Simd<A>::panel, L = Simd<A>::lanes;
    const int64_t stride = tile_stride<A>(in, out);
    const auto transform_1d = [](const V* a, V* b) { from_weight<A>(a, b); };
    const auto transform = [&](const A(*weights)[P], bool flipped, A* target) {
        for (int64_t l = 0; l < P; l += L)
            transform_2d<3, 6, V>(transform_1d,
                                  [&](int i, int j) { return load<V>(weights[flipped ? 8 - 3 * i - j : 3 * i + j] + l); },
                                  [&](int i, int j, V value) { store(target + (6 * i + j) * stride + l, value); });
    };
    A weights[9][P];
#pragma omp for nowait
    for (int64_t o = 0; o < out; o += P)
        for (int64_t i = 0; i < in; ++i) {
            for (int64_t l = 0; l < P; ++l)
                for (int t = 0; t < 9; ++t) weights[t][l] = w[((o + l) * in + i) * 9 + t];
            transform(weights, false, w_fwd + o * in + i * P);
        }
    if (w_bwd) {
#pragma omp for nowait
        for (int64_t o = 0; o < out; ++o)
            for (int64_t i = 0; i < in; i += P) {
                for (int64_t l = 0; l < P; ++l)
                    for (int t = 0; t < 9; ++t) weights[t][l] = w[(o * in + i + l) * 9 + t];
                transform(weights, true, w_bwd + i * out + o * P);
            }
    }
}

// dw (out, in, 3, 3) = G^T y G of y (36, in, out). All threads of the enclosing region share the work.
template <class A>
void transform_gradient(int64_t in, int64_t out, const A* y, A* dw) {
    typedef Vec<A> V;
    constexpr int64_t L = Simd<A>::lanes;
    const int64_t stride = tile_stride<A>(in, out);
    A weights[9][L];
#pragma omp for nowait
    for (int64_t o = 0; o < out; o += L)
        for (int64_t i = 0; i < in; ++i) {
            const A* source = y + i * out + o;
            transform_2d<6, 3, V>([](const V* a, V* b) { to_weight<A>(a, b); },
                                  [&](int r, int s) { return load<V>(source + (6 * r + s) * stride); },
                                  [&](int r, int s, V value) { store(weights[3 * r + s], value); });
            for (int64_t l = 0; l < L; ++l)
                for (int t = 0; t < 9; ++t) dw[((o + l) * in + i) * 9 + t] = weights[t][l];
        }
}

}  // namespace limbeck
