// Instance normalisation, ReLU and 2 x 2 average pooling as one function, its derivative, and the tangents of both.
//
// Everything is of one image, NHWC and contiguous: z (h, w, c) in, y (h/2, w/2, c) out; an odd last row or column is
// normalised but not pooled. With m, r = mean and 1/sqrt(variance + eps) over h x w, of every channel:
//     n = (z - m) r,   a = gamma n + beta,   y = pool(max(a, 0)).
// A name with a 1 behind it is the tangent (d/dt at t = 0) of the one without, when z, gamma, beta and dy move in given
// directions. Sums go over windows, then over a row, then over rows, which keeps their rounding small. Channels come in
// whole vectors. ReLU of a NaN is NaN, so that a divergence is not hidden.
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

// Calls window(pixels[4], pooled) for pixels that are pooled together, leftover(pixel) for those that are not, and
// end_row() after each row of either.
template <class Window, class Leftover, class EndRow>
inline void for_each_window(const Shape& s, Window window, Leftover leftover, EndRow end_row) {
    const int64_t w = s.width, columns = w / 2, rows = s.height / 2;
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < columns; ++column) {
            const int64_t first = 2 * row * w + 2 * column;
            const int64_t pixels[4] = {first, first + 1, first + w, first + w + 1};
            window(pixels, row * columns + column);
        }
        if (w % 2) {
            leftover(2 * row * w + w - 1);
            leftover((2 * row + 1) * w + w - 1);
        }
        end_row();
    }
    if (s.height % 2) {
        for (int64_t column = 0; column < w; ++column) leftover((s.height - 1) * w + column);
        end_row();
    }
}

// Calls body(first channel) for every vector of channels.
template <class A, class Body>
inline void for_each_vector(int64_t count, Body body) {
    for (int64_t k = 0; k < count; k += Simd<A>::lanes) body(k);
}

// Sums of `count` quantities, by rows.
template <class V, int count>
struct Sums {
    V row[count] = {}, total[count] = {};
    void end_row() {
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
inline V relu_gradient(V a, V d) {  // d where ReLU passes a, else 0
    return a <= V{} ? V{} : d;
}
template <class V, class A>
inline V inverse_root(V variance, A eps) {
    V out;
    for (int i = 0; i < int(Simd<A>::lanes); ++i) out[i] = 1 / std::sqrt(variance[i] + eps);
    return out;
}

// y from z; stats (2, c): m and r.
template <class A>
void forward(const Shape& s, const A* z, const A* gamma, const A* beta, A eps, A* y, A* stats) {
    const int64_t c = s.channels;
    const A inverse_pixels = A(1) / A(s.pixels());
    for_each_vector<A>(c, [&](int64_t k) {
        typedef Vec<A> V;
        const A* zk = z + k;
        Sums<V, 1> acc;
        const auto end_row = [&] { acc.end_row(); };
        for_each_window(s, [&](const int64_t* p, int64_t) {
            acc.row[0] += (load<V>(zk + p[0] * c) + load<V>(zk + p[1] * c)) +
                           (load<V>(zk + p[2] * c) + load<V>(zk + p[3] * c));
        }, [&](int64_t p) { acc.row[0] += load<V>(zk + p * c); }, end_row);
        const V m = inverse_pixels * acc.total[0];
        acc = {};
        const auto square = [&](int64_t p) {
            const V d = load<V>(zk + p * c) - m;
            return d * d;
        };
        for_each_window(s, [&](const int64_t* p, int64_t) {
            acc.row[0] += (square(p[0]) + square(p[1])) + (square(p[2]) + square(p[3]));
        }, [&](int64_t p) { acc.row[0] += square(p); }, end_row);
        const V r = inverse_root(inverse_pixels * acc.total[0], eps);
        store(stats + k, m);
        store(stats + c + k, r);
        const V scale = r * load<V>(gamma + k), shift = load<V>(beta + k) - m * scale;
        const auto active = [&](int64_t p) { return relu<V>(load<V>(zk + p * c) * scale + shift); };
        for_each_window(s, [&](const int64_t* p, int64_t pooled) {
            store(y + pooled * c + k, A(0.25) * ((active(p[0]) + active(p[1])) + (active(p[2]) + active(p[3]))));
        }, [](int64_t) {}, [] {});
    });
}

// The quantities that all derivatives share, for one vector of channels.
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

// dz from dy; sums (2, c): the sums of da and of da n, which are the image's terms of dbeta and dgamma.
template <class A>
void backward(const Shape& s, const A* z, const A* gamma, const A* beta, const A* stats, const A* dy, A* dz, A* sums) {
    const int64_t c = s.channels;
    const A inverse_pixels = A(1) / A(s.pixels());
    for_each_vector<A>(c, [&](int64_t k) {
        typedef Vec<A> V;
        const Channels<A> channel(c, k, z, gamma, beta, stats);
        Sums<V, 2> acc;
        for_each_window(s, [&](const int64_t* p, int64_t pooled) {
            const V quarter = A(0.25) * load<V>(dy + pooled * c + k);
            V sum0 = {}, sum1 = {};
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const V v = channel.at(p[i]), da = relu_gradient<V>(channel.a(v), quarter);
                sum0 += da;
                sum1 += da * channel.n(v);
            }
            acc.row[0] += sum0;
            acc.row[1] += sum1;
        }, [](int64_t) {}, [&] { acc.end_row(); });
        const V s0 = acc.total[0], s1 = acc.total[1];
        store(sums + k, s0);
        store(sums + c + k, s1);
        const auto write = [&](int64_t p, V v, V da) {
            store(dz + p * c + k, V(channel.scale * (da - inverse_pixels * (s0 + channel.n(v) * s1))));
        };
        for_each_window(s, [&](const int64_t* p, int64_t pooled) {
            const V quarter = A(0.25) * load<V>(dy + pooled * c + k);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const V v = channel.at(p[i]);
                write(p[i], v, relu_gradient<V>(channel.a(v), quarter));
            }
        }, [&](int64_t p) { write(p, channel.at(p), V{}); }, [] {});
    });
}

// y1 from z1; stats1 (2, c): the means of z1 and of n z1.
template <class A>
void forward_tangent(const Shape& s, const A* z, const A* gamma, const A* beta, const A* stats, const A* z1,
                     const A* gamma1, const A* beta1, A* y1, A* stats1) {
    const int64_t c = s.channels;
    const A inverse_pixels = A(1) / A(s.pixels());
    for_each_vector<A>(c, [&](int64_t k) {
        typedef Vec<A> V;
        const Channels<A> channel(c, k, z, gamma, beta, stats);
        const V g1 = load<V>(gamma1 + k), b1 = load<V>(beta1 + k);
        const auto z1_at = [&](int64_t p) { return load<V>(z1 + p * c + k); };
        Sums<V, 2> acc;
        const auto add = [&](int64_t p) {
            const V v1 = z1_at(p);
            acc.row[0] += v1;
            acc.row[1] += v1 * channel.n(channel.at(p));
        };
        for_each_window(s, [&](const int64_t* p, int64_t) {
            V sum0 = {}, sum1 = {};
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const V v1 = z1_at(p[i]);
                sum0 += v1;
                sum1 += v1 * channel.n(channel.at(p[i]));
            }
            acc.row[0] += sum0;
            acc.row[1] += sum1;
        }, add, [&] { acc.end_row(); });
        const V m1 = inverse_pixels * acc.total[0], q1 = inverse_pixels * acc.total[1];
        store(stats1 + k, m1);
        store(stats1 + c + k, q1);
        for_each_window(s, [&](const int64_t* p, int64_t pooled) {
            V sum = {};
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const V v = channel.at(p[i]), n = channel.n(v), n1 = channel.r * (z1_at(p[i]) - m1 - n * q1);
                sum += relu_gradient<V>(channel.a(v), g1 * n + channel.gamma * n1 + b1);
            }
            store(y1 + pooled * c + k, V(A(0.25) * sum));
        }, [](int64_t) {}, [] {});
    });
}

// dz1 from dy and dy1; sums1 (2, c): the tangents of sums.
template <class A>
void backward_tangent(const Shape& s, const A* z, const A* gamma, const A* beta, const A* stats, const A* dy,
                      const A* sums, const A* z1, const A* gamma1, const A* stats1, const A* dy1, A* dz1, A* sums1) {
    const int64_t c = s.channels;
    const A inverse_pixels = A(1) / A(s.pixels());
    for_each_vector<A>(c, [&](int64_t k) {
        typedef Vec<A> V;
        const Channels<A> channel(c, k, z, gamma, beta, stats);
        const V m1 = load<V>(stats1 + k), q1 = load<V>(stats1 + c + k);
        const V s0 = load<V>(sums + k), s1 = load<V>(sums + c + k);
        const V scale1 = load<V>(gamma1 + k) * channel.r - channel.scale * channel.r * q1;
        const auto n1_of = [&](int64_t p, V n) { return V(channel.r * (load<V>(z1 + p * c + k) - m1 - n * q1)); };
        Sums<V, 2> acc;
        for_each_window(s, [&](const int64_t* p, int64_t pooled) {
            const V quarter = A(0.25) * load<V>(dy + pooled * c + k), quarter1 = A(0.25) * load<V>(dy1 + pooled * c + k);
            V sum0 = {}, sum1 = {};
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const V v = channel.at(p[i]), n = channel.n(v), a = channel.a(v);
                const V da1 = relu_gradient<V>(a, quarter1);
                sum0 += da1;
                sum1 += da1 * n + relu_gradient<V>(a, quarter) * n1_of(p[i], n);
            }
            acc.row[0] += sum0;
            acc.row[1] += sum1;
        }, [](int64_t) {}, [&] { acc.end_row(); });
        const V t0 = acc.total[0], t1 = acc.total[1];
        store(sums1 + k, t0);
        store(sums1 + c + k, t1);
        const auto write = [&](int64_t p, V n, V da, V da1) {
            const V b = da - inverse_pixels * (s0 + n * s1), b1 = da1 - inverse_pixels * (t0 + n1_of(p, n) * s1 + n * t1);
            store(dz1 + p * c + k, V(scale1 * b + channel.scale * b1));
        };
        for_each_window(s, [&](const int64_t* p, int64_t pooled) {
            const V quarter = A(0.25) * load<V>(dy + pooled * c + k), quarter1 = A(0.25) * load<V>(dy1 + pooled * c + k);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const V v = channel.at(p[i]), a = channel.a(v);
                write(p[i], channel.n(v), relu_gradient<V>(a, quarter), relu_gradient<V>(a, quarter1));
            }
        }, [&](int64_t p) { write(p, channel.n(channel.at(p)), V{}, V{}); }, [] {});
    });
}

}  // namespace limbeck
