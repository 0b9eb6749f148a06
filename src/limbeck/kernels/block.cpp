// Instance normalisation, ReLU and 2 x 2 average pooling as one function, with its derivative and both their tangents.
//
// Everything is NHWC and contiguous: z (n, h, w, c) in, y (n, h/2, w/2, c) out; an odd last row or column is normalised
// but not pooled. With m, r = mean and 1/sqrt(variance + eps) over h x w, of every image and channel:
//     n = (z - m) r,   a = gamma n + beta,   y = pool(max(a, 0)).
// A quantity with a 1 behind its name is the tangent (d/dt at t = 0) of the one without, where z, gamma, beta and dy
// move in given directions. Sums are taken row by row and then over rows, which keeps their rounding small.
// T is how activations are stored, A what is computed with.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bf16 {
    uint16_t bits;
};

// A vector of c stored numbers as what is computed with: in place, or widened into `room`.
inline const float* read(const float* at, float*, int64_t) { return at; }
inline const double* read(const double* at, double*, int64_t) { return at; }
inline const float* read(const bf16* at, float* room, int64_t c) {
    uint32_t* whole = reinterpret_cast<uint32_t*>(room);
#pragma omp simd
    for (int64_t k = 0; k < c; ++k) whole[k] = uint32_t(at[k].bits) << 16;
    return room;
}

// Where to write a vector that is then `written`: in place, or in `room`, from where it is rounded to the nearest.
inline float* target(float* at, float*) { return at; }
inline double* target(double* at, double*) { return at; }
inline float* target(bf16*, float* room) { return room; }
inline void written(float*, const float*, int64_t) {}
inline void written(double*, const double*, int64_t) {}
inline void written(bf16* at, const float* room, int64_t c) {
    const uint32_t* whole = reinterpret_cast<const uint32_t*>(room);
#pragma omp simd
    for (int64_t k = 0; k < c; ++k) {
        const uint32_t u = whole[k], nan = (u & 0x7fffffff) > 0x7f800000;
        at[k].bits = uint16_t(nan ? 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }
}

struct Shape {
    int64_t images, height, width, channels;
    int64_t pixels() const { return height * width; }
    int64_t pooled() const { return (height / 2) * (width / 2); }
};

// Whether ReLU passes a on. A NaN is passed on, so that what diverges is seen to.
template <class A>
inline bool on(A a) {
    return !(a <= 0);
}

// Where pixel (row, column) is pooled to, or -1.
inline int64_t place(const Shape& s, int64_t row, int64_t column) {
    return row / 2 < s.height / 2 && column / 2 < s.width / 2 ? (row / 2) * (s.width / 2) + column / 2 : -1;
}

// total (count vectors of c) = sum over all pixels of body(pixel, place, partial), taken row by row.
template <class A, class Body>
void sum_over_pixels(const Shape& s, A* total, A* partial, int count, Body body) {
    const int64_t size = count * s.channels;
    std::memset(total, 0, size * sizeof(A));
    for (int64_t row = 0; row < s.height; ++row) {
        std::memset(partial, 0, size * sizeof(A));
        for (int64_t column = 0; column < s.width; ++column)
            body(row * s.width + column, place(s, row, column), partial);
        for (int64_t k = 0; k < size; ++k) total[k] += partial[k];
    }
}

// y = pool of what body(pixel, sum) adds to sum (c).
template <class T, class A, class Body>
void pool(const Shape& s, T* y, A* room, Body body) {
    const int64_t c = s.channels, w = s.width;
    for (int64_t row = 0; row < s.height / 2; ++row)
        for (int64_t column = 0; column < w / 2; ++column) {
            const int64_t first = 2 * row * w + 2 * column;
            T* at = y + (row * (w / 2) + column) * c;
            A* out = target(at, room);
            std::memset(out, 0, c * sizeof(A));
            for (const int64_t p : {first, first + 1, first + w, first + w + 1}) body(p, out);
#pragma omp simd
            for (int64_t k = 0; k < c; ++k) out[k] *= A(0.25);
            written(at, out, c);
        }
}

// scale, shift: a = scale z + shift.
template <class A>
void affine(int64_t c, const A* m, const A* r, const A* gamma, const A* beta, A* scale, A* shift) {
    for (int64_t k = 0; k < c; ++k) {
        scale[k] = r[k] * gamma[k];
        shift[k] = beta[k] - m[k] * scale[k];
    }
}

// stats: per image m (c), r (c).
template <class T, class A>
void forward(Shape s, const T* z, const A* gamma, const A* beta, A eps, T* y, A* stats, int threads) {
    const int64_t c = s.channels;
#pragma omp parallel num_threads(threads)
    {
        std::vector<A> room(5 * c);
        A *partial = room.data(), *scale = partial + c, *shift = scale + c, *room0 = shift + c, *room1 = room0 + c;
#pragma omp for
        for (int64_t i = 0; i < s.images; ++i) {
            const T* zi = z + i * s.pixels() * c;
            A *m = stats + i * 2 * c, *r = m + c;
            sum_over_pixels(s, m, partial, 1, [&](int64_t p, int64_t, A* sum) {
                const A* v = read(zi + p * c, room0, c);
#pragma omp simd
                for (int64_t k = 0; k < c; ++k) sum[k] += v[k];
            });
            for (int64_t k = 0; k < c; ++k) m[k] /= A(s.pixels());
            sum_over_pixels(s, r, partial, 1, [&](int64_t p, int64_t, A* sum) {
                const A* v = read(zi + p * c, room0, c);
#pragma omp simd
                for (int64_t k = 0; k < c; ++k) sum[k] += (v[k] - m[k]) * (v[k] - m[k]);
            });
            for (int64_t k = 0; k < c; ++k) r[k] = 1 / std::sqrt(r[k] / A(s.pixels()) + eps);
            affine(c, m, r, gamma, beta, scale, shift);
            pool(s, y + i * s.pooled() * c, room1, [&](int64_t p, A* out) {
                const A* v = read(zi + p * c, room0, c);
#pragma omp simd
                for (int64_t k = 0; k < c; ++k) {
                    const A a = v[k] * scale[k] + shift[k];
                    out[k] += a < 0 ? A(0) : a;  // a NaN stays one
                }
            });
        }
    }
}

// dz from dy; sums: per image sum of da (c), sum of da n (c): the image's part of dbeta and dgamma.
template <class T, class A>
void backward(Shape s, const T* z, const A* gamma, const A* beta, const A* stats, const T* dy, T* dz, A* sums,
              int threads) {
    const int64_t c = s.channels;
    const A share = A(1) / A(s.pixels());
    const std::vector<T> zero(c, T{});
#pragma omp parallel num_threads(threads)
    {
        std::vector<A> room(7 * c);
        A *partial = room.data(), *scale = partial + 2 * c, *shift = scale + c;
        A *room0 = shift + c, *room1 = room0 + c, *room2 = room1 + c;
#pragma omp for
        for (int64_t i = 0; i < s.images; ++i) {
            const T *zi = z + i * s.pixels() * c, *dyi = dy + i * s.pooled() * c;
            T* dzi = dz + i * s.pixels() * c;
            const A *m = stats + i * 2 * c, *r = m + c;
            A *s0 = sums + i * 2 * c, *s1 = s0 + c;
            affine(c, m, r, gamma, beta, scale, shift);
            sum_over_pixels(s, s0, partial, 2, [&](int64_t p, int64_t q, A* sum) {
                if (q < 0) return;
                const A *v = read(zi + p * c, room0, c), *d = read(dyi + q * c, room1, c);
                A *sum0 = sum, *sum1 = sum + c;
#pragma omp simd
                for (int64_t k = 0; k < c; ++k) {
                    const A n = (v[k] - m[k]) * r[k], quarter = A(0.25) * d[k];
                    const A da = on(v[k] * scale[k] + shift[k]) ? quarter : A(0);
                    sum0[k] += da;
                    sum1[k] += da * n;
                }
            });
            for (int64_t row = 0; row < s.height; ++row)
                for (int64_t column = 0; column < s.width; ++column) {
                    const int64_t p = row * s.width + column, q = place(s, row, column);
                    const A* v = read(zi + p * c, room0, c);
                    const A* d = read(q < 0 ? zero.data() : dyi + q * c, room1, c);
                    A* out = target(dzi + p * c, room2);
#pragma omp simd
                    for (int64_t k = 0; k < c; ++k) {
                        const A n = (v[k] - m[k]) * r[k], quarter = A(0.25) * d[k];
                        const A da = on(v[k] * scale[k] + shift[k]) ? quarter : A(0);
                        out[k] = scale[k] * (da - share * (s0[k] + n * s1[k]));
                    }
                    written(dzi + p * c, out, c);
                }
        }
    }
}

// y1 from z1; stats1: per image mean of z1 (c), mean of n z1 (c).
template <class T, class A>
void forward_tangent(Shape s, const T* z, const A* gamma, const A* beta, const A* stats, const T* z1, const A* gamma1,
                     const A* beta1, T* y1, A* stats1, int threads) {
    const int64_t c = s.channels;
#pragma omp parallel num_threads(threads)
    {
        std::vector<A> room(7 * c);
        A *partial = room.data(), *scale = partial + 2 * c, *shift = scale + c;
        A *room0 = shift + c, *room1 = room0 + c, *room2 = room1 + c;
#pragma omp for
        for (int64_t i = 0; i < s.images; ++i) {
            const T *zi = z + i * s.pixels() * c, *z1i = z1 + i * s.pixels() * c;
            const A *m = stats + i * 2 * c, *r = m + c;
            A *m1 = stats1 + i * 2 * c, *q1 = m1 + c;
            affine(c, m, r, gamma, beta, scale, shift);
            sum_over_pixels(s, m1, partial, 2, [&](int64_t p, int64_t, A* sum) {
                const A* v = read(zi + p * c, room0, c);
                const A* v1 = read(z1i + p * c, room1, c);
                A *sum0 = sum, *sum1 = sum + c;
#pragma omp simd
                for (int64_t k = 0; k < c; ++k) {
                    sum0[k] += v1[k];
                    sum1[k] += v1[k] * ((v[k] - m[k]) * r[k]);
                }
            });
            for (int64_t k = 0; k < c; ++k) {
                m1[k] /= A(s.pixels());
                q1[k] /= A(s.pixels());
            }
            pool(s, y1 + i * s.pooled() * c, room2, [&](int64_t p, A* out) {
                const A *v = read(zi + p * c, room0, c), *v1 = read(z1i + p * c, room1, c);
#pragma omp simd
                for (int64_t k = 0; k < c; ++k) {
                    const A n = (v[k] - m[k]) * r[k], n1 = r[k] * (v1[k] - m1[k] - n * q1[k]);
                    const A a1 = gamma1[k] * n + gamma[k] * n1 + beta1[k];
                    out[k] += on(v[k] * scale[k] + shift[k]) ? a1 : A(0);
                }
            });
        }
    }
}

// dz1 from dy and dy1; sums1: tangents of `sums` of backward.
template <class T, class A>
void backward_tangent(Shape s, const T* z, const A* gamma, const A* beta, const A* stats, const T* dy, const A* sums,
                      const T* z1, const A* gamma1, const A* stats1, const T* dy1, T* dz1, A* sums1, int threads) {
    const int64_t c = s.channels;
    const A share = A(1) / A(s.pixels());
    const std::vector<T> zero(c, T{});
#pragma omp parallel num_threads(threads)
    {
        std::vector<A> room(10 * c);
        A *partial = room.data(), *scale = partial + 2 * c, *shift = scale + c, *scale1 = shift + c;
        A *room0 = scale1 + c, *room1 = room0 + c, *room2 = room1 + c, *room3 = room2 + c, *room4 = room3 + c;
#pragma omp for
        for (int64_t i = 0; i < s.images; ++i) {
            const int64_t full = i * s.pixels() * c, small = i * s.pooled() * c;
            const T *zi = z + full, *z1i = z1 + full, *dyi = dy + small, *di = dy1 + small;
            const A *m = stats + i * 2 * c, *r = m + c, *m1 = stats1 + i * 2 * c, *q1 = m1 + c;
            const A *s0 = sums + i * 2 * c, *s1 = s0 + c;
            A *t0 = sums1 + i * 2 * c, *t1 = t0 + c;
            affine(c, m, r, gamma, beta, scale, shift);
            for (int64_t k = 0; k < c; ++k) scale1[k] = gamma1[k] * r[k] - gamma[k] * r[k] * r[k] * q1[k];
            sum_over_pixels(s, t0, partial, 2, [&](int64_t p, int64_t q, A* sum) {
                if (q < 0) return;
                const A *v = read(zi + p * c, room0, c), *v1 = read(z1i + p * c, room1, c);
                const A *d = read(dyi + q * c, room2, c), *d1 = read(di + q * c, room3, c);
                A *sum0 = sum, *sum1 = sum + c;
#pragma omp simd
                for (int64_t k = 0; k < c; ++k) {
                    const A n = (v[k] - m[k]) * r[k], n1 = r[k] * (v1[k] - m1[k] - n * q1[k]);
                    const A quarter = A(0.25) * d[k], quarter1 = A(0.25) * d1[k];
                    const bool is_on = on(v[k] * scale[k] + shift[k]);
                    const A da = is_on ? quarter : A(0), da1 = is_on ? quarter1 : A(0);
                    sum0[k] += da1;
                    sum1[k] += da1 * n + da * n1;
                }
            });
            for (int64_t row = 0; row < s.height; ++row)
                for (int64_t column = 0; column < s.width; ++column) {
                    const int64_t p = row * s.width + column, q = place(s, row, column);
                    const A *v = read(zi + p * c, room0, c), *v1 = read(z1i + p * c, room1, c);
                    const A* d = read(q < 0 ? zero.data() : dyi + q * c, room2, c);
                    const A* d1 = read(q < 0 ? zero.data() : di + q * c, room3, c);
                    A* out = target(dz1 + full + p * c, room4);
#pragma omp simd
                    for (int64_t k = 0; k < c; ++k) {
                        const A n = (v[k] - m[k]) * r[k], n1 = r[k] * (v1[k] - m1[k] - n * q1[k]);
                        const A quarter = A(0.25) * d[k], quarter1 = A(0.25) * d1[k];
                        const bool is_on = on(v[k] * scale[k] + shift[k]);
                        const A da = is_on ? quarter : A(0), da1 = is_on ? quarter1 : A(0);
                        const A b = da - share * (s0[k] + n * s1[k]);
                        const A b1 = da1 - share * (t0[k] + n1 * s1[k] + n * t1[k]);
                        out[k] = scale1[k] * b + scale[k] * b1;
                    }
                    written(dz1 + full + p * c, out, c);
                }
        }
    }
}

// The image gradient of a 3 x 3 convolution from columns (n, oh, ow, 9, c), by adding up what each pixel was part of.
template <class A>
void fold(int64_t images, int64_t height, int64_t width, int64_t channels, int64_t padding, const A* columns, A* dx,
          int threads) {
    const int64_t oh = height + 2 * padding - 2, ow = width + 2 * padding - 2;
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < images; ++i)
        for (int64_t row = 0; row < height; ++row)
            for (int64_t column = 0; column < width; ++column)
                for (int64_t k = 0; k < channels; ++k) {
                    A sum = 0;
                    for (int64_t dr = 0; dr < 3; ++dr)
                        for (int64_t dc = 0; dc < 3; ++dc) {
                            const int64_t y = row + padding - dr, x = column + padding - dc;
                            if (y >= 0 && y < oh && x >= 0 && x < ow)
                                sum += columns[(((i * oh + y) * ow + x) * 9 + dr * 3 + dc) * channels + k];
                        }
                    dx[((i * height + row) * width + column) * channels + k] = sum;
                }
}

}  // namespace

#define SHAPE Shape{n, h, w, c}
#define SIZES int64_t n, int64_t h, int64_t w, int64_t c
#define EXPORT(NAME, T, A)                                                                                             \
    extern "C" void forward_##NAME(SIZES, const T* z, const A* gamma, const A* beta, double eps, T* y, A* stats,        \
                                   int threads) {                                                                      \
        forward<T, A>(SHAPE, z, gamma, beta, A(eps), y, stats, threads);                                               \
    }                                                                                                                  \
    extern "C" void backward_##NAME(SIZES, const T* z, const A* gamma, const A* beta, const A* stats, const T* dy,      \
                                    T* dz, A* sums, int threads) {                                                     \
        backward<T, A>(SHAPE, z, gamma, beta, stats, dy, dz, sums, threads);                                           \
    }                                                                                                                  \
    extern "C" void forward_tangent_##NAME(SIZES, const T* z, const A* gamma, const A* beta, const A* stats,            \
                                           const T* z1, const A* gamma1, const A* beta1, T* y1, A* stats1,             \
                                           int threads) {                                                              \
        forward_tangent<T, A>(SHAPE, z, gamma, beta, stats, z1, gamma1, beta1, y1, stats1, threads);                   \
    }                                                                                                                  \
    extern "C" void backward_tangent_##NAME(SIZES, const T* z, const A* gamma, const A* beta, const A* stats,           \
                                            const T* dy, const A* sums, const T* z1, const A* gamma1,                  \
                                            const A* stats1, const T* dy1, T* dz1, A* sums1, int threads) {            \
        backward_tangent<T, A>(SHAPE, z, gamma, beta, stats, dy, sums, z1, gamma1, stats1, dy1, dz1, sums1, threads);  \
    }

EXPORT(float32, float, float)
EXPORT(float64, double, double)
EXPORT(bfloat16, bf16, float)

extern "C" void fold_float32(SIZES, int64_t padding, const float* columns, float* dx, int threads) {
    fold<float>(n, h, w, c, padding, columns, dx, threads);
}
extern "C" void fold_float64(SIZES, int64_t padding, const double* columns, double* dx, int threads) {
    fold<double>(n, h, w, c, padding, columns, dx, threads);
}
