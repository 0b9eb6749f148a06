// 3 x 3 convolutions of padding 1 with 2.25 times fewer products: Winograd's F(2 x 2, 3 x 3) (Lavin and Gray, CVPR 2016).
//
// With fixed small matrices A, B, G, an output tile of 2 x 2 is A^T [sum over channels (G w G^T) (B^T x B)] A, products
// in brackets being element by element. So for each of the 16 elements there is one product of matrices, tiles by
// channels, and the sum of several convolutions is taken before A. The gradient in x is the same convolution with w
// turned round; that in w is G^T [sum over tiles (B^T x B) (A dz A^T)] G, the same matrices transposed.
// Blocks of tiles go from transform to transform within the cache. Memory is NHWC.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int TILES = 42;  // of a block; a multiple of ROWS
#if defined(__AVX512F__)
constexpr int ROWS = 14, WEIGHT_ROWS = 8;  // rows of accumulators: ROWS x 2 vectors, and those of a step, fill the registers
#else
constexpr int ROWS = 3, WEIGHT_ROWS = 4;
#endif

template <class A>
struct Of {
    typedef A vec __attribute__((vector_size(64), aligned(sizeof(A)), may_alias));
    static constexpr int lanes = 64 / sizeof(A), panel = 2 * lanes;
};

template <class A>
inline typename Of<A>::vec load(const A* at) {
    return *reinterpret_cast<const typename Of<A>::vec*>(at);
}
template <class A>
inline void store(A* at, typename Of<A>::vec value) {
    *reinterpret_cast<typename Of<A>::vec*>(at) = value;
}

// c (R rows, one panel wide) = [c +] sum over k of a(row, k) b(k): b is a panel (steps, 2 lanes).
template <int R, class A>
inline void multiply(int64_t steps, const A* a, int64_t row, int64_t step, const A* b, A* c, int64_t wide, bool add) {
    typedef typename Of<A>::vec vec;
    constexpr int L = Of<A>::lanes;
    vec left[R], right[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        left[r] = add ? load(c + r * wide) : vec{};
        right[r] = add ? load(c + r * wide + L) : vec{};
    }
    for (int64_t k = 0; k < steps; ++k) {
        const vec b0 = load(b + k * 2 * L), b1 = load(b + k * 2 * L + L);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const A s = a[r * row + k * step];
            left[r] += s * b0;
            right[r] += s * b1;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        store(c + r * wide, left[r]);
        store(c + r * wide + L, right[r]);
    }
}

struct Map {
    int64_t images, height, width;
    int64_t down() const { return (height + 1) / 2; }
    int64_t across() const { return (width + 1) / 2; }
    int64_t tiles() const { return images * down() * across(); }
};

struct Corner {
    int64_t image, row, column;  // of a tile's first output pixel
};

inline Corner corner(const Map& m, int64_t tile) {
    const int64_t a = m.across(), per = m.down() * a, rest = tile % per;
    return {tile / per, 2 * (rest / a), 2 * (rest % a)};
}

template <class A>
inline typename Of<A>::vec pixel(const Map& m, const A* x, int64_t c, const Corner& at, int64_t row, int64_t column) {
    row += at.row;
    column += at.column;
    const bool inside = row >= 0 && row < m.height && column >= 0 && column < m.width;
    return inside ? load(x + ((at.image * m.height + row) * m.width + column) * c) : typename Of<A>::vec{};
}

// out (16, TILES, c): B^T x B of `count` tiles from tile `first` on.
template <class A>
void patches(const Map& m, const A* x, int64_t c, int64_t first, int64_t count, A* out) {
    typedef typename Of<A>::vec vec;
    for (int64_t t = 0; t < count; ++t) {
        const Corner at = corner(m, first + t);
        for (int64_t k = 0; k < c; k += Of<A>::lanes) {
            vec half[4][4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const vec d0 = pixel(m, x + k, c, at, -1, j - 1), d1 = pixel(m, x + k, c, at, 0, j - 1);
                const vec d2 = pixel(m, x + k, c, at, 1, j - 1), d3 = pixel(m, x + k, c, at, 2, j - 1);
                half[0][j] = d0 - d2;
                half[1][j] = d1 + d2;
                half[2][j] = d2 - d1;
                half[3][j] = d1 - d3;
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                A* o = out + (i * 4 * TILES + t) * c + k;
                store(o, half[i][0] - half[i][2]);
                store(o + TILES * c, half[i][1] + half[i][2]);
                store(o + 2 * TILES * c, half[i][2] - half[i][1]);
                store(o + 3 * TILES * c, half[i][1] - half[i][3]);
            }
        }
    }
}

// out (16, c / panel, TILES, panel): A dz A^T.
template <class A>
void spread(const Map& m, const A* dz, int64_t c, int64_t first, int64_t count, A* out) {
    typedef typename Of<A>::vec vec;
    constexpr int L = Of<A>::lanes;
    for (int64_t t = 0; t < count; ++t) {
        const Corner at = corner(m, first + t);
        for (int64_t k = 0; k < c; k += L) {
            vec half[4][2];
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j) {
                const vec d0 = pixel(m, dz + k, c, at, 0, j), d1 = pixel(m, dz + k, c, at, 1, j);
                half[0][j] = d0;
                half[1][j] = d0 + d1;
                half[2][j] = d0 - d1;
                half[3][j] = -d1;
            }
            A* o = out + ((k / (2 * L)) * TILES + t) * 2 * L + k % (2 * L);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                store(o + (4 * i) * TILES * c, half[i][0]);
                store(o + (4 * i + 1) * TILES * c, half[i][0] + half[i][1]);
                store(o + (4 * i + 2) * TILES * c, half[i][0] - half[i][1]);
                store(o + (4 * i + 3) * TILES * c, -half[i][1]);
            }
        }
    }
}

// z = A^T y A of (16, TILES, c).
template <class A>
void gather(const Map& m, const A* y, int64_t c, int64_t first, int64_t count, A* z) {
    typedef typename Of<A>::vec vec;
    for (int64_t t = 0; t < count; ++t) {
        const Corner at = corner(m, first + t);
        const bool below = at.row + 1 < m.height, beside = at.column + 1 < m.width;
        A* o = z + ((at.image * m.height + at.row) * m.width + at.column) * c;
        for (int64_t k = 0; k < c; k += Of<A>::lanes) {
            vec top[4], bottom[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const A* e = y + (j * TILES + t) * c + k;
                const int64_t line = 4 * TILES * c;
                const vec e1 = load(e + line), e2 = load(e + 2 * line);
                top[j] = load(e) + e1 + e2;
                bottom[j] = e1 - e2 - load(e + 3 * line);
            }
            store(o + k, top[0] + top[1] + top[2]);
            if (beside) store(o + c + k, top[1] - top[2] - top[3]);
            if (below) store(o + m.width * c + k, bottom[0] + bottom[1] + bottom[2]);
            if (below && beside) store(o + (m.width + 1) * c + k, bottom[1] - bottom[2] - bottom[3]);
        }
    }
}

// z (n, h, w, cout) = sum over terms of conv(x_j (n, h, w, cin), w_j); w_j (16, cout / panel, cin, panel) is G w G^T.
template <class A>
void convolve(Map m, int64_t cin, int64_t cout, int terms, const A* const* x, const A* const* w, A* z, int threads) {
    constexpr int P = Of<A>::panel;
    const int64_t blocks = (m.tiles() + TILES - 1) / TILES;
#pragma omp parallel num_threads(threads)
    {
        std::vector<A> seen(16 * TILES * cin), made(16 * TILES * cout);
#pragma omp for
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = block * TILES, left = m.tiles() - first, count = left < TILES ? left : TILES;
            for (int j = 0; j < terms; ++j) {
                patches(m, x[j], cin, first, count, seen.data());
                for (int64_t e = 0; e < 16; ++e)
                    for (int64_t p = 0; p < cout; p += P)
                        for (int64_t t = 0; t < count; t += ROWS)
                            multiply<ROWS>(cin, seen.data() + (e * TILES + t) * cin, cin, 1,
                                           w[j] + (e * cout + p) * cin, made.data() + (e * TILES + t) * cout + p,
                                           cout, j > 0);
            }
            gather(m, made.data(), cout, first, count, z);
        }
    }
}

// dw (16, cin, cout), before G: sum over terms of (B^T x_j B) (A dz_j A^T). Each thread sums its own blocks; threads are
// added in order, so that the same number of threads gives the same bits.
template <class A>
void weigh(Map m, int64_t cin, int64_t cout, int terms, const A* const* x, const A* const* dz, A* dw, int threads) {
    constexpr int P = Of<A>::panel;
    const int64_t blocks = (m.tiles() + TILES - 1) / TILES, size = 16 * cin * cout;
    const int64_t parts = threads < blocks ? threads : blocks;
    std::vector<A> rest((parts - 1) * size);
    std::memset(dw, 0, size * sizeof(A));
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int64_t part = 0; part < parts; ++part) {
        A* sum = part == 0 ? dw : rest.data() + (part - 1) * size;
        std::vector<A> seen(16 * TILES * cin), spreaded(16 * TILES * cout);
        for (int64_t block = part * blocks / parts; block < (part + 1) * blocks / parts; ++block) {
            const int64_t first = block * TILES, left = m.tiles() - first, count = left < TILES ? left : TILES;
            for (int j = 0; j < terms; ++j) {
                patches(m, x[j], cin, first, count, seen.data());
                spread(m, dz[j], cout, first, count, spreaded.data());
                for (int64_t e = 0; e < 16; ++e)
                    for (int64_t p = 0; p < cout; p += P)
                        for (int64_t r = 0; r < cin; r += WEIGHT_ROWS)
                            multiply<WEIGHT_ROWS>(count, seen.data() + e * TILES * cin + r, 1, cin,
                                                  spreaded.data() + (e * cout + p) * TILES,
                                                  sum + (e * cin + r) * cout + p, cout, true);
            }
        }
    }
    for (int64_t part = 1; part < parts; ++part)
        for (int64_t k = 0; k < size; ++k) dw[k] += rest[(part - 1) * size + k];
}

// out (16 elements, stride apart): G w G^T of one 3 x 3 weight.
template <class A>
inline void transform(const A* w, A* out, int64_t stride) {
    A half[4][3];
    for (int k = 0; k < 3; ++k) {
        half[0][k] = w[k];
        half[1][k] = A(0.5) * (w[k] + w[3 + k] + w[6 + k]);
        half[2][k] = A(0.5) * (w[k] - w[3 + k] + w[6 + k]);
        half[3][k] = w[6 + k];
    }
    for (int k = 0; k < 4; ++k) {
        out[4 * k * stride] = half[k][0];
        out[(4 * k + 1) * stride] = A(0.5) * (half[k][0] + half[k][1] + half[k][2]);
        out[(4 * k + 2) * stride] = A(0.5) * (half[k][0] - half[k][1] + half[k][2]);
        out[(4 * k + 3) * stride] = half[k][2];
    }
}

// From w (cout, cin, 3, 3): rising (16, cout / panel, cin, panel), G w G^T, for convolve; and falling
// (16, cin / panel, cout, panel), the same of w turned round, by which convolve takes dz to dx.
template <class A>
void prepare(int64_t cout, int64_t cin, const A* w, A* rising, A* falling, int threads) {
    constexpr int P = Of<A>::panel;
    const int64_t size = cin * cout;
    // w turned round: its first row is the last, and the sums with +- in the middle stay as they are
    static const int turned[4] = {3, 1, 2, 0};
#pragma omp parallel num_threads(threads)
    {
        A panel[16 * P];
#pragma omp for nowait
        for (int64_t o = 0; o < cout; o += P)
            for (int64_t i = 0; i < cin; ++i) {
                for (int l = 0; l < P; ++l) transform(w + ((o + l) * cin + i) * 9, panel + l, P);
                for (int e = 0; e < 16; ++e)
                    std::memcpy(rising + e * size + o * cin + i * P, panel + e * P, P * sizeof(A));
            }
#pragma omp for
        for (int64_t o = 0; o < cout; ++o)
            for (int64_t i = 0; i < cin; i += P) {
                for (int l = 0; l < P; ++l) transform(w + (o * cin + i + l) * 9, panel + l, P);
                for (int r = 0; r < 4; ++r)
                    for (int k = 0; k < 4; ++k)
                        std::memcpy(falling + (4 * r + k) * size + i * cout + o * P,
                                    panel + (4 * turned[r] + turned[k]) * P, P * sizeof(A));
            }
    }
}

// dw (cout, cin, 3, 3) = G^T y G of y (16, cin, cout).
template <class A>
void finish(int64_t cout, int64_t cin, const A* y, A* dw, int threads) {
    const int64_t size = cin * cout;
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < cin; ++i)
        for (int64_t o = 0; o < cout; ++o) {
            const A* at = y + i * cout + o;
            A* out = dw + (o * cin + i) * 9;
            A half[3][4];
            for (int k = 0; k < 4; ++k) {
                const A e0 = at[k * size], e1 = at[(4 + k) * size], e2 = at[(8 + k) * size], e3 = at[(12 + k) * size];
                half[0][k] = e0 + A(0.5) * (e1 + e2);
                half[1][k] = A(0.5) * (e1 - e2);
                half[2][k] = A(0.5) * (e1 + e2) + e3;
            }
            for (int r = 0; r < 3; ++r) {
                out[3 * r] = half[r][0] + A(0.5) * (half[r][1] + half[r][2]);
                out[3 * r + 1] = A(0.5) * (half[r][1] - half[r][2]);
                out[3 * r + 2] = A(0.5) * (half[r][1] + half[r][2]) + half[r][3];
            }
        }
}

}  // namespace

#define EXPORT(NAME, A)                                                                                                \
    extern "C" void convolve_##NAME(int64_t n, int64_t h, int64_t w, int64_t cin, int64_t cout, const A* x0,            \
                                    const A* w0, const A* x1, const A* w1, A* z, int threads) {                        \
        const A *x[2] = {x0, x1}, *weights[2] = {w0, w1};                                                              \
        convolve<A>(Map{n, h, w}, cin, cout, x1 ? 2 : 1, x, weights, z, threads);                                      \
    }                                                                                                                  \
    extern "C" void weigh_##NAME(int64_t n, int64_t h, int64_t w, int64_t cin, int64_t cout, const A* x0,               \
                                 const A* dz0, const A* x1, const A* dz1, A* dw, int threads) {                        \
        const A *x[2] = {x0, x1}, *dz[2] = {dz0, dz1};                                                                 \
        weigh<A>(Map{n, h, w}, cin, cout, x1 ? 2 : 1, x, dz, dw, threads);                                             \
    }                                                                                                                  \
    extern "C" void prepare_##NAME(int64_t cout, int64_t cin, const A* w, A* rising, A* falling, int threads) {         \
        prepare<A>(cout, cin, w, rising, falling, threads);                                                            \
    }                                                                                                                  \
    extern "C" void finish_##NAME(int64_t cout, int64_t cin, const A* y, A* dw, int threads) {                          \
        finish<A>(cout, cin, y, dw, threads);                                                                          \
    }

EXPORT(float32, float)
EXPORT(float64, double)
