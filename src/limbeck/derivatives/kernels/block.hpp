// Instance normalisation, ReLU and 2 x 2 average pooling as one function, with its derivative and both their tangents.
//
// Everything is of one image, NHWC and contiguous: z (h, w, c) in, y (h/2, w/2, c) out; an odd last row or column is
// normalised but not pooled. With m, r = mean and 1/sqrt(variance + eps) over h x w, of every channel:
//     n = (z - m) r,   a = gamma n + beta,   y = pool(max(a, 0)).
// A quantity with a 1 behind its name is the tangent (d/dt at t = 0) of the one without, where z, gamma, beta and dy
// move in given directions. Sums are taken of windows, then of rows, then over rows, which keeps their rounding small.
// Channels are whole vectors. Where ReLU is given a NaN it gives one, so that a divergence shows.
#pragma once

#include <cmath>

#include "vectors.hpp"

namespace limbeck {

struct Shape {
    int64_t height, width, channels;
    int64_t pixels() const { return height * width; }
    int64_t pooled() const { return (height / 2) * (width / 2); }
    int64_t size() const { return pixels() * channels; }
    int64_t pooled_size() const { return pooled() * channels; }
    int64_t norms() const { return 2 * channels; }  // numbers of stats and of sums
};

// window(pixels[4], place) for what is pooled together, rest(pixel) for what is not, line() after each row.
template <class Window, class Rest, class Line>
inline void over(const Shape& s, Window window, Rest rest, Line line) {
    const int64_t w = s.width, across = w / 2, down = s.height / 2;
    for (int64_t row = 0; row < down; ++row) {
        for (int64_t column = 0; column < across; ++column) {
            const int64_t first = 2 * row * w + 2 * column;
            const int64_t pixels[4] = {first, first + 1, first + w, first + w + 1};
            window(pixels, row * across + column);
        }
        if (w % 2) {
            rest(2 * row * w + w - 1);
            rest((2 * row + 1) * w + w - 1);
        }
        line();
    }
    if (s.height % 2) {
        for (int64_t column = 0; column < w; ++column) rest((s.height - 1) * w + column);
        line();
    }
}

// body(first channel) for every vector of channels.
template <class A, class Body>
inline void channels(int64_t count, Body body) {
    for (int64_t k = 0; k < count; k += Of<A>::lanes) body(k);
}

// Sums of `count` quantities.
template <class V, int count>
struct Sums {
    V row[count] = {}, total[count] = {};
    void line() {
        for (int i = 0; i < count; ++i) {
            total[i] += row[i];
            row[i] = V{};
        }
    }
};

template <class V>
inline V relu(V a) {
    return a < V{} ? V{} : a;
}
template <class V>
inline V passed(V a, V d) {  // d where ReLU passes a on
    return a <= V{} ? V{} : d;
}
template <class V, class A>
inline V inverse_root(V variance, A eps) {
    V out;
    for (int i = 0; i < int(Of<A>::lanes); ++i) out[i] = 1 / std::sqrt(variance[i] + eps);
    return out;
}

// stats: m (c), r (c).
template <class A>
void forward(const Shape& s, const A* z, const A* gamma, const A* beta, A eps, A* y, A* stats) {
    const int64_t c = s.channels;
    const A share = A(1) / A(s.pixels());
    channels<A>(c, [&](int64_t k) {
        typedef Vec<A> V;
        const A* zk = z + k;
        Sums<V, 1> sums;
        const auto line = [&] { sums.line(); };
        over(s, [&](const int64_t* p, int64_t) {
            sums.row[0] += (load<V>(zk + p[0] * c) + load<V>(zk + p[1] * c)) +
                           (load<V>(zk + p[2] * c) + load<V>(zk + p[3] * c));
        }, [&](int64_t p) { sums.row[0] += load<V>(zk + p * c); }, line);
        const V m = share * sums.total[0];
        sums = {};
        const auto square = [&](int64_t p) {
            const V d = load<V>(zk + p * c) - m;
            return d * d;
        };
        over(s, [&](const int64_t* p, int64_t) {
            sums.row[0] += (square(p[0]) + square(p[1])) + (square(p[2]) + square(p[3]));
        }, [&](int64_t p) { sums.row[0] += square(p); }, line);
        const V r = inverse_root(share * sums.total[0], eps);
        store(stats + k, m);
        store(stats + c + k, r);
        const V scale = r * load<V>(gamma + k), shift = load<V>(beta + k) - m * scale;
        const auto active = [&](int64_t p) { return relu<V>(load<V>(zk + p * c) * scale + shift); };
        over(s, [&](const int64_t* p, int64_t place) {
            store(y + place * c + k, A(0.25) * ((active(p[0]) + active(p[1])) + (active(p[2]) + active(p[3]))));
        }, [](int64_t) {}, [] {});
    });
}

// What all derivatives start from, in one vector of channels.
template <class A>
struct Channels {
    typedef Vec<A> V;
    V m, r, gamma, scale, shift;
    int64_t c;
    const A* z;
    Channels(int64_t c, int64_t k, const A* z, const A* gamma_, const A* beta, const A* stats)
        : m(load<V>(stats + k)), r(load<V>(stats + c + k)), gamma(load<V>(gamma_ + k)), scale(r * gamma),
          shift(load<V>(beta + k) - m * scale), c(c), z(z + k) {}
    V at(int64_t p) const { return load<V>(z + p * c); }
    V n(V v) const { return (v - m) * r; }
    V a(V v) const { return v * scale + shift; }
};

// dz from dy; sums: sum of da (c), sum of da n (c): the image's part of dbeta and dgamma.
template <class A>
void backward(const Shape& s, const A* z, const A* gamma, const A* beta, const A* stats, const A* dy, A* dz, A* sums) {
    const int64_t c = s.channels;
    const A share = A(1) / A(s.pixels());
    channels<A>(c, [&](int64_t k) {
        typedef Vec<A> V;
        const Channels<A> here(c, k, z, gamma, beta, stats);
        Sums<V, 2> of;
        over(s, [&](const int64_t* p, int64_t place) {
            const V quarter = A(0.25) * load<V>(dy + place * c + k);
            V sum0 = {}, sum1 = {};
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const V v = here.at(p[i]), da = passed<V>(here.a(v), quarter);
                sum0 += da;
                sum1 += da * here.n(v);
            }
            of.row[0] += sum0;
            of.row[1] += sum1;
        }, [](int64_t) {}, [&] { of.line(); });
        const V s0 = of.total[0], s1 = of.total[1];
        store(sums + k, s0);
        store(sums + c + k, s1);
        const auto write = [&](int64_t p, V v, V da) {
            store(dz + p * c + k, V(here.scale * (da - share * (s0 + here.n(v) * s1))));
        };
        over(s, [&](const int64_t* p, int64_t place) {
            const V quarter = A(0.25) * load<V>(dy + place * c + k);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const V v = here.at(p[i]);
                write(p[i], v, passed<V>(here.a(v), quarter));
            }
        }, [&](int64_t p) { write(p, here.at(p), V{}); }, [] {});
    });
}

// y1 from z1; stats1: mean of z1 (c), mean of n z1 (c).
template <class A>
void forward_tangent(const Shape& s, const A* z, const A* gamma, const A* beta, const A* stats, const A* z1,
                     const A* gamma1, const A* beta1, A* y1, A* stats1) {
    const int64_t c = s.channels;
    const A share = A(1) / A(s.pixels());
    channels<A>(c, [&](int64_t k) {
        typedef Vec<A> V;
        const Channels<A> here(c, k, z, gamma, beta, stats);
        const V g1 = load<V>(gamma1 + k), b1 = load<V>(beta1 + k);
        const auto at1 = [&](int64_t p) { return load<V>(z1 + p * c + k); };
        Sums<V, 2> of;
        const auto add = [&](int64_t p) {
            const V v1 = at1(p);
            of.row[0] += v1;
            of.row[1] += v1 * here.n(here.at(p));
        };
        over(s, [&](const int64_t* p, int64_t) {
            V sum0 = {}, sum1 = {};
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const V v1 = at1(p[i]);
                sum0 += v1;
                sum1 += v1 * here.n(here.at(p[i]));
            }
            of.row[0] += sum0;
            of.row[1] += sum1;
        }, add, [&] { of.line(); });
        const V m1 = share * of.total[0], q1 = share * of.total[1];
        store(stats1 + k, m1);
        store(stats1 + c + k, q1);
        over(s, [&](const int64_t* p, int64_t place) {
            V sum = {};
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const V v = here.at(p[i]), n = here.n(v), n1 = here.r * (at1(p[i]) - m1 - n * q1);
                sum += passed<V>(here.a(v), g1 * n + here.gamma * n1 + b1);
            }
            store(y1 + place * c + k, V(A(0.25) * sum));
        }, [](int64_t) {}, [] {});
    });
}

// dz1 from dy and dy1; sums1: tangents of `sums` of backward.
template <class A>
void backward_tangent(const Shape& s, const A* z, const A* gamma, const A* beta, const A* stats, const A* dy,
                      const A* sums, const A* z1, const A* gamma1, const A* stats1, const A* dy1, A* dz1, A* sums1) {
    const int64_t c = s.channels;
    const A share = A(1) / A(s.pixels());
    channels<A>(c, [&](int64_t k) {
        typedef Vec<A> V;
        const Channels<A> here(c, k, z, gamma, beta, stats);
        const V m1 = load<V>(stats1 + k), q1 = load<V>(stats1 + c + k);
        const V s0 = load<V>(sums + k), s1 = load<V>(sums + c + k);
        const V scale1 = load<V>(gamma1 + k) * here.r - here.scale * here.r * q1;
        const auto n1_of = [&](int64_t p, V n) { return V(here.r * (load<V>(z1 + p * c + k) - m1 - n * q1)); };
        Sums<V, 2> of;
        over(s, [&](const int64_t* p, int64_t place) {
            const V quarter = A(0.25) * load<V>(dy + place * c + k), quarter1 = A(0.25) * load<V>(dy1 + place * c + k);
            V sum0 = {}, sum1 = {};
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const V v = here.at(p[i]), n = here.n(v), a = here.a(v);
                const V da1 = passed<V>(a, quarter1);
                sum0 += da1;
                sum1 += da1 * n + passed<V>(a, quarter) * n1_of(p[i], n);
            }
            of.row[0] += sum0;
            of.row[1] += sum1;
        }, [](int64_t) {}, [&] { of.line(); });
        const V t0 = of.total[0], t1 = of.total[1];
        store(sums1 + k, t0);
        store(sums1 + c + k, t1);
        const auto write = [&](int64_t p, V n, V da, V da1) {
            const V b = da - share * (s0 + n * s1), b1 = da1 - share * (t0 + n1_of(p, n) * s1 + n * t1);
            store(dz1 + p * c + k, V(scale1 * b + here.scale * b1));
        };
        over(s, [&](const int64_t* p, int64_t place) {
            const V quarter = A(0.25) * load<V>(dy + place * c + k), quarter1 = A(0.25) * load<V>(dy1 + place * c + k);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const V v = here.at(p[i]), a = here.a(v);
                write(p[i], here.n(v), passed<V>(a, quarter), passed<V>(a, quarter1));
            }
        }, [&](int64_t p) { write(p, here.n(here.at(p)), V{}, V{}); }, [] {});
    });
}

}  // namespace limbeck
