// Products of matrices that lie in the cache.
#pragma once

#include <utility>

#include "vectors.hpp"

namespace limbeck {

// Element (row, line, step) of the left matrix. Lines and steps together are what is summed over: two strides, so that
// the pixels of an image, or of a window of it, can be read where they lie.
template <class A>
struct Left {
    const A* at;
    int64_t row, step, line = 0;
};
// The right matrix: rows `next` apart, in panels of Of<A>::panel columns that are `panel` apart.
template <class A>
struct Right {
    const A* at;
    int64_t next, panel;
};

// c (R rows, V vectors wide) = [c +] sum over lines and steps of left(row, line, step) right(line, step).
template <int R, int V, class A>
void tile(int64_t lines, int64_t steps, Left<A> a, Right<A> b, A* c, int64_t wide, bool add) {
    typedef Vec<A> vec;
    constexpr int64_t L = Of<A>::lanes;
    vec sum[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[r][v] = add ? load<vec>(c + r * wide + v * L) : vec{};
    const A* right = b.at;
    for (int64_t line = 0; line < lines; ++line) {
        const A* left = a.at + line * a.line;
        for (int64_t k = 0; k < steps; ++k, left += a.step, right += b.next) {
            vec row[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) row[v] = load<vec>(right + v * L);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const A factor = left[r * a.row];
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) sum[r][v] += factor * row[v];
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
Tile<A> tile_of(int64_t rows, std::integer_sequence<int, R...>) {
    static constexpr Tile<A> tiles[] = {tile<R + 1, V, A>...};
    return tiles[rows - 1];
}

// c (rows, columns), `wide` apart, = [c +] left right; columns are a multiple of Of<A>::lanes.
template <class A>
void product(int64_t rows, int64_t columns, int64_t lines, int64_t steps, Left<A> a, Right<A> b, A* c, int64_t wide,
             bool add) {
    constexpr auto all = std::make_integer_sequence<int, ROWS>{};
    const int64_t parts = (rows + ROWS - 1) / ROWS;  // as even as can be
    for (int64_t column = 0; column < columns; column += Of<A>::panel, b.at += b.panel)
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t first = part * rows / parts, count = (part + 1) * rows / parts - first;
            const Tile<A> of = columns - column >= Of<A>::panel ? tile_of<2, A>(count, all) : tile_of<1, A>(count, all);
            of(lines, steps, {a.at + first * a.row, a.row, a.step, a.line}, b, c + first * wide + column, wide, add);
        }
}

}  // namespace limbeck
