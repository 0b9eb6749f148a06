// Products of matrices that fit into the cache.
#pragma once

#include <utility>

#include "vectors.hpp"

namespace limbeck {

// The left matrix, by the strides of element (row, line, step). The product sums over lines and steps: with two strides it
// can read the pixels of an image, or of a window of it, without a copy.
template <class A>
struct Left {
    const A* data;
    int64_t row, step, line = 0;
};
// The right matrix in panels of Simd<A>::panel columns, by the strides between rows of a panel and between panels.
template <class A>
struct Right {
    const A* data;
    int64_t row, panel;
};

// c (R rows, V vectors) = sum over lines and steps of left(row, line, step) right(line, step), plus c if `add`.
template <int R, int V, class A>
void tile(int64_t lines, int64_t steps, Left<A> a, Right<A> b, A* c, int64_t wide, bool add) {
    typedef Vec<A> vec;
    constexpr int64_t L = Simd<A>::lanes;
    vec sum[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[r][v] = add ? load<vec>(c + r * wide + v * L) : vec{};
    const A* right = b.data;
    for (int64_t line = 0; line < lines; ++line) {
        const A* left = a.data + line * a.line;
        for (int64_t k = 0; k < steps; ++k, left += a.step, right += b.row) {
            vec row[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) row[v] = load<vec>(right + v * L);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const A factor = left[r * a.row];
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) sum[r][v] = multiply_add(factor, row[v], sum[r][v]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) store(c + r * wide + v * L, sum[r][v]);
}

template <class A>
using Tile = void (*)(int64_t, int64_t, Left<A>, Right<A>, A*, int64_t, bool);

template <int V, class A, int... R>
Tile<A> select_tile(int64_t rows, std::integer_sequence<int, R...>) {
    static constexpr Tile<A> tiles[] = {tile<R + 1, V, A>...};
    return tiles[rows - 1];
}

// c (rows, columns), whose rows are `wide` elements apart, = left right, plus c if `add`. columns is a multiple of
// Simd<A>::lanes.
template <class A>
void product(int64_t rows, int64_t columns, int64_t lines, int64_t steps, Left<A> a, Right<A> b, A* c, int64_t wide,
             bool add) {
    constexpr auto heights = std::make_integer_sequence<int, TILE_ROWS>{};
    const int64_t parts = (rows + TILE_ROWS - 1) / TILE_ROWS;  // of as equal heights as possible
    for (int64_t column = 0; column < columns; column += Simd<A>::panel, b.data += b.panel)
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t first = part * rows / parts, count = (part + 1) * rows / parts - first;
            const Tile<A> run = columns - column >= Simd<A>::panel ? select_tile<2, A>(count, heights)
                                                                   : select_tile<1, A>(count, heights);
            run(lines, steps, {a.data + first * a.row, a.row, a.step, a.line}, b, c + first * wide + column, wide, add);
        }
}

}  // namespace limbeck
