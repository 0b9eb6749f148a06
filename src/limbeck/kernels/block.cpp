// The functions of block.hpp on a batch, one by one, for networks, types and widths that network.cpp does not have.

#include "block.hpp"

using namespace limbeck;

namespace {

template <class Body>
void images(int64_t count, int threads, Body body) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < count; ++i) body(i);
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

#define SIZES int64_t n, int64_t h, int64_t w, int64_t c
#define EACH(ARRAY, SIZE) ARRAY + i * s.SIZE()
#define EXPORT(NAME, T, A)                                                                                             \
    extern "C" void forward_##NAME(SIZES, const T* z, const A* gamma, const A* beta, double eps, T* y, A* stats,        \
                                   int threads) {                                                                      \
        const Shape s{h, w, c};                                                                                        \
        images(n, threads, [&](int64_t i) {                                                                            \
            forward<T, A>(s, EACH(z, size), gamma, beta, A(eps), EACH(y, pooled_size), EACH(stats, norms));            \
        });                                                                                                            \
    }                                                                                                                  \
    extern "C" void backward_##NAME(SIZES, const T* z, const A* gamma, const A* beta, const A* stats, const T* dy,      \
                                    T* dz, A* sums, int threads) {                                                     \
        const Shape s{h, w, c};                                                                                        \
        images(n, threads, [&](int64_t i) {                                                                            \
            backward<T, A>(s, EACH(z, size), gamma, beta, EACH(stats, norms), EACH(dy, pooled_size), EACH(dz, size),   \
                           EACH(sums, norms));                                                                         \
        });                                                                                                            \
    }                                                                                                                  \
    extern "C" void forward_tangent_##NAME(SIZES, const T* z, const A* gamma, const A* beta, const A* stats,            \
                                           const T* z1, const A* gamma1, const A* beta1, T* y1, A* stats1,             \
                                           int threads) {                                                              \
        const Shape s{h, w, c};                                                                                        \
        images(n, threads, [&](int64_t i) {                                                                            \
            forward_tangent<T, A>(s, EACH(z, size), gamma, beta, EACH(stats, norms), EACH(z1, size), gamma1, beta1,    \
                                  EACH(y1, pooled_size), EACH(stats1, norms));                                         \
        });                                                                                                            \
    }                                                                                                                  \
    extern "C" void backward_tangent_##NAME(SIZES, const T* z, const A* gamma, const A* beta, const A* stats,           \
                                            const T* dy, const A* sums, const T* z1, const A* gamma1,                  \
                                            const A* stats1, const T* dy1, T* dz1, A* sums1, int threads) {            \
        const Shape s{h, w, c};                                                                                        \
        images(n, threads, [&](int64_t i) {                                                                            \
            backward_tangent<T, A>(s, EACH(z, size), gamma, beta, EACH(stats, norms), EACH(dy, pooled_size),           \
                                   EACH(sums, norms), EACH(z1, size), gamma1, EACH(stats1, norms),                     \
                                   EACH(dy1, pooled_size), EACH(dz1, size), EACH(sums1, norms));                       \
        });                                                                                                            \
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
