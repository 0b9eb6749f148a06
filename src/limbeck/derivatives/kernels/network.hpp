// The network, and the buffers of a forward and backward pass and of its tangent.
#pragma once

#include <algorithm>
#include <array>

#include "block.hpp"
#include "memory.hpp"
#include "winograd.hpp"

namespace limbeck {

// One block: a convolution of a map (height, width, in), then instance norm, ReLU and pooling of (rows, columns, out).
struct Block {
    int64_t in, out, height, width, padding;
    int64_t offset;  // in theta, of weight (out, in, 3, 3), then bias, gamma and beta (out)
    int64_t rows() const { return height + 2 * padding - 2; }
    int64_t columns() const { return width + 2 * padding - 2; }
    Shape shape() const { return {rows(), columns(), out}; }
    int64_t weights() const { return out * in * 9; }
    int64_t gamma() const { return offset + weights() + out; }
    int64_t beta() const { return gamma() + out; }
    FeatureMap map(int64_t images) const { return {images, height, width}; }
};

// One element per block, without allocating.
constexpr int64_t MAX_BLOCKS = 8;
template <class T>
using PerBlock = std::array<T, MAX_BLOCKS>;

// Images that a thread takes through the network together. With fewer, matrix products are too small; with more, they do
// not fit into the cache. Hessian-vector products of 100 images of width 32, two threads: 14 ms by 5, 16 to 20 ms by 10.
constexpr int64_t IMAGES_PER_PART = 5;
// Images whose terms of the gradient (Terms) are stored before they are summed. With fewer, the sums are too short; with
// more, they do not fit into the cache.
constexpr int64_t IMAGES_PER_CHUNK = 20;

struct Net {
    PerBlock<Block> blocks;
    int64_t depth, classes, features;  // features: inputs of the last layer
    int64_t head_offset, parameters;   // where the last layer begins in theta; the length of theta
    double eps;

    // sizes: classes, then in, out, height, width, padding of each block.
    Net(int64_t depth, const int64_t* sizes, double eps)
        : blocks{}, depth(depth), classes(sizes[0]), features(0), head_offset(0), eps(eps) {
        for (int64_t b = 0; b < depth; ++b) {
            const int64_t* s = sizes + 1 + 5 * b;
            blocks[b] = {s[0], s[1], s[2], s[3], s[4], head_offset};
            head_offset += blocks[b].weights() + 3 * s[1];
            features = blocks[b].shape().pooled() * s[1];
        }
        parameters = head_offset + classes * features + classes;
    }
    // Whether this code can compute the network: channels in whole panels, and padding 1 after the first block.
    template <class A>
    static bool supports(int64_t depth, const int64_t* sizes) {
        if (depth < 1 || depth > MAX_BLOCKS || sizes[0] < 1) return false;
        for (int64_t b = 0; b < depth; ++b) {
            const int64_t* s = sizes + 1 + 5 * b;
            const int64_t shortest = std::min(s[2], s[3]) + 2 * s[4] - 2;
            if (s[0] < 1 || s[1] < 1 || s[1] % Simd<A>::panel || s[4] < 0 || (b && s[4] != 1) || shortest < 2) return false;
            if (b && (s[0] != s[-4] || s[2] != (s[-3] + 2 * s[-1] - 2) / 2 || s[3] != (s[-2] + 2 * s[-1] - 2) / 2))
                return false;
        }
        return true;
    }
    // The features of one image: out = x with channels first where x has them last (`first`), and the reverse.
    template <class A>
    void swap_features(const A* x, A* out, bool first) const {
        const int64_t c = last().out, pixels = features / c;
        for (int64_t k = 0; k < c; ++k)
            for (int64_t p = 0; p < pixels; ++p) {
                const int64_t planar = k * pixels + p, mixed = p * c + k;
                out[first ? planar : mixed] = x[first ? mixed : planar];
            }
    }
    const Block& first() const { return blocks[0]; }
    const Block& last() const { return blocks[depth - 1]; }
    int64_t first_inputs() const { return 9 * first().in; }
    int64_t padded_rows() const { return first().height + 2 * first().padding; }
    int64_t padded_columns() const { return first().width + 2 * first().padding; }
    int64_t padded_size() const { return padded_rows() * padded_columns() * first().in; }
    int64_t image_size() const { return first().in * first().height * first().width; }
};

// Parameters, or a direction in their space, in the layouts of the matrix products.
template <class A>
struct Weights {
    const A* theta;
    PerBlock<A*> w_fwd, w_bwd;    // of each block but the first: see winograd.hpp
    A *first, *first_transposed;  // (9 in, out) in panels; (out, padded 9 in)
    A *head, *head_transposed;    // (classes, features), features in NHWC order; (features, padded classes)

    Weights(const Net& net, const A* theta, Arena<A>& arena) : theta(theta) {
        for (int64_t b = 0; b < net.depth; ++b) {
            const int64_t size = b ? 36 * tile_stride<A>(net.blocks[b].in, net.blocks[b].out) : 0;
            w_fwd[b] = arena.allocate(size);
            w_bwd[b] = arena.allocate(size);
        }
        first = arena.allocate(net.first_inputs() * net.first().out);
        first_transposed = arena.allocate(round_up<A>(net.first_inputs()) * net.first().out);
        head = arena.allocate(net.classes * net.features);
        head_transposed = arena.allocate(net.features * round_up<A>(net.classes));
    }

    // All threads of the enclosing region share the work, and have to wait for each other afterwards.
    void prepare(const Net& net, bool with_backward) {
        for (int64_t b = 1; b < net.depth; ++b) {
            const Block& block = net.blocks[b];
            limbeck::transform_weights<A>(block.in, block.out, theta + block.offset, w_fwd[b],
                                          with_backward ? w_bwd[b] : nullptr);
        }
#pragma omp for nowait
        for (int64_t job = 0; job < 2; ++job) job ? prepare_head(net) : prepare_first(net);
    }

    void prepare_first(const Net& net) {
        const Block& b = net.first();
        constexpr int64_t P = Simd<A>::panel;
        const int64_t k = net.first_inputs(), wide = round_up<A>(k);
        std::memset(first_transposed, 0, wide * b.out * sizeof(A));
        for (int64_t o = 0; o < b.out; ++o)
            for (int64_t i = 0; i < b.in; ++i)
                for (int64_t t = 0; t < 9; ++t) {
                    const A w = theta[b.offset + (o * b.in + i) * 9 + t];
                    first[(o / P * k + t * b.in + i) * P + o % P] = w;
                    first_transposed[o * wide + t * b.in + i] = w;
                }
    }

    void prepare_head(const Net& net) {
        const int64_t c = net.last().out, pixels = net.features / c, wide = round_up<A>(net.classes);
        std::memset(head_transposed, 0, net.features * wide * sizeof(A));
        for (int64_t j = 0; j < net.classes; ++j)
            for (int64_t k = 0; k < c; ++k)
                for (int64_t p = 0; p < pixels; ++p) {
                    const A w = theta[net.head_offset + (j * c + k) * pixels + p];
                    head[j * net.features + p * c + k] = w;
                    head_transposed[(p * c + k) * wide + j] = w;
                }
    }
};

// The factors of each image's terms of the gradient: a forward and backward pass leaves one set, its tangent another.
template <class A>
struct Terms {
    int64_t images;
    PerBlock<A*> x_tiles, dz_tiles;  // of each block but the first: B^T x B, A dz A^T (winograd.hpp)
    PerBlock<A*> sums;               // of each block, (n, 2, out): see block.hpp
    A *first, *features, *dlogits;   // (n, 9 in, out) of the first block's weight; (n, features); (n, classes)

    // with_gradient: whether the gradient is needed.
    Terms(const Net& net, int64_t n, bool with_gradient, Arena<A>& arena) : images(n) {
        for (int64_t b = 0; b < net.depth; ++b) {
            const Block& block = net.blocks[b];
            x_tiles[b] = arena.allocate(b ? 36 * stride(block, block.in) : 0);
            dz_tiles[b] = arena.allocate(b && with_gradient ? 36 * stride(block, block.out) : 0);
            sums[b] = arena.allocate(n * block.shape().norms());
        }
        first = arena.allocate(with_gradient ? n * net.first_inputs() * net.first().out : 0);
        features = arena.allocate(n * net.features);
        dlogits = arena.allocate(n * net.classes);
    }
    int64_t tiles(const Block& b) const { return b.map(images).tiles(); }
    int64_t stride(const Block& b, int64_t channels) const { return tile_stride<A>(tiles(b), channels); }
};

// The sum of all terms: the gradient before its last transformation.
template <class A>
struct GradientSum {
    PerBlock<A*> weights, norms;  // of each block: before G, the first's (9 in, out); dbeta and dgamma (2, out)
    A *head, *bias;               // (classes, features), (classes)

    GradientSum(const Net& net, Arena<A>& arena) {
        for (int64_t b = 0; b < net.depth; ++b) {
            const Block& block = net.blocks[b];
            weights[b] = arena.allocate(b ? 36 * tile_stride<A>(block.in, block.out) : net.first_inputs() * block.out);
            norms[b] = arena.allocate(2 * block.out);
        }
        head = arena.allocate(net.classes * net.features);
        bias = arena.allocate(net.classes);
    }
};

// What the tangent needs of a forward and backward pass of some images.
template <class A>
struct Tape {
    int64_t images;
    A* padded;                      // the images (n, height + 2 padding, width + 2 padding, in)
    PerBlock<A*> z, stats, dy, dz;  // of each block: see block.hpp
    A *probabilities, *label_sums;  // (n, classes rounded up); (n)
    int64_t first_dz;               // the stride between images of the first block's dz: 0 where no tangent needs it

    // with_tangent: whether a tangent follows.
    Tape(const Net& net, int64_t n, bool with_tangent, Arena<A>& arena) : images(n) {
        padded = arena.allocate(n * net.padded_size());
        for (int64_t b = 0; b < net.depth; ++b) {
            const Shape s = net.blocks[b].shape();
            z[b] = arena.allocate(n * s.size());
            dz[b] = arena.allocate((b || with_tangent ? n : 1) * s.size());
            dy[b] = arena.allocate(n * s.pooled_size());
            stats[b] = arena.allocate(n * s.norms());
        }
        probabilities = arena.allocate(n * round_up<A>(net.classes));
        label_sums = arena.allocate(n);
        first_dz = with_tangent ? net.first().shape().size() : 0;
    }
};

// What the tangent of a pass writes.
template <class A>
struct Tangent {
    PerBlock<A*> z, stats;
    A *dz, *dy, *logits;

    Tangent(const Net& net, int64_t n, Arena<A>& arena) {
        int64_t largest = 0, pooled = 0;
        for (int64_t b = 0; b < net.depth; ++b) {
            const Shape s = net.blocks[b].shape();
            z[b] = arena.allocate(n * s.size());
            stats[b] = arena.allocate(n * s.norms());
            largest = std::max(largest, (b ? n : 1) * s.size());
            pooled = std::max(pooled, n * s.pooled_size());
        }
        dz = arena.allocate(largest);
        dy = arena.allocate(pooled);
        logits = arena.allocate(n * round_up<A>(net.classes));
    }
};

// Intermediate results of a part, which the next part overwrites.
template <class A>
struct Scratch {
    A *zero, *sink, *tiles, *product, *y, *columns, *dimage;

    Scratch(const Net& net, int64_t n, Arena<A>& arena) {
        int64_t size = 0, pooled = 0, widest = 0;
        for (int64_t b = 0; b < net.depth; ++b) {
            const Block& block = net.blocks[b];
            widest = std::max({widest, block.in, block.out});
            pooled = std::max(pooled, n * block.shape().pooled() * block.out);
            if (b) size = std::max(size, 36 * tile_stride<A>(block.map(n).tiles(), std::max(block.in, block.out)));
        }
        zero = arena.allocate(widest);
        sink = arena.allocate(widest);
        tiles = arena.allocate(size);
        product = arena.allocate(size);
        y = arena.allocate(pooled);
        columns = arena.allocate(net.first().columns() * round_up<A>(net.first_inputs()));
        dimage = arena.allocate(net.padded_size());
    }
};

}  // namespace limbeck
