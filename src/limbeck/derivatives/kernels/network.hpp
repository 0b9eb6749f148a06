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
    int64_t at;  // of its parameters in theta: weight (out, in, 3, 3), bias, gamma, beta (out)
    int64_t rows() const { return height + 2 * padding - 2; }
    int64_t columns() const { return width + 2 * padding - 2; }
    Shape shape() const { return {rows(), columns(), out}; }
    int64_t weights() const { return out * in * 9; }
    int64_t gamma() const { return at + weights() + out; }
    int64_t beta() const { return gamma() + out; }
    Map map(int64_t images) const { return {images, height, width}; }
};

// A block's buffers, without allocating.
constexpr int64_t MOST_BLOCKS = 8;
template <class T>
using PerBlock = std::array<T, MOST_BLOCKS>;

// Images that a thread takes through the network together: with fewer the products of matrices are too small, with more
// they leave the cache. Products of 100 images of width 32, two threads: 14 ms by fives, 16 to 20 by tens.
constexpr int64_t PART = 5;
// Images whose terms are held together (Terms) and then summed: with fewer the sums are too short, with more they leave the
// cache.
constexpr int64_t CHUNK = 20;

struct Net {
    PerBlock<Block> blocks;
    int64_t depth, classes, features, at, count;  // of the last layer: its inputs, where its parameters are; length of theta
    double eps;

    // sizes: classes, then in, out, height, width, padding of each block.
    Net(int64_t depth, const int64_t* sizes, double eps)
        : blocks{}, depth(depth), classes(sizes[0]), features(0), at(0), eps(eps) {
        for (int64_t b = 0; b < depth; ++b) {
            const int64_t* s = sizes + 1 + 5 * b;
            blocks[b] = {s[0], s[1], s[2], s[3], s[4], at};
            at += blocks[b].weights() + 3 * s[1];
            features = blocks[b].shape().pooled() * s[1];
        }
        count = at + classes * features + classes;
    }
    // Whether this network can be computed here: whole panels of channels (matrix.hpp), padding 1 after the first block.
    template <class A>
    static bool supports(int64_t depth, const int64_t* sizes) {
        if (depth < 1 || depth > MOST_BLOCKS || sizes[0] < 1) return false;
        for (int64_t b = 0; b < depth; ++b) {
            const int64_t* s = sizes + 1 + 5 * b;
            const int64_t shortest = std::min(s[2], s[3]) + 2 * s[4] - 2;
            if (s[0] < 1 || s[1] < 1 || s[1] % Of<A>::panel || s[4] < 0 || (b && s[4] != 1) || shortest < 2) return false;
            if (b && (s[0] != s[-4] || s[2] != (s[-3] + 2 * s[-1] - 2) / 2 || s[3] != (s[-2] + 2 * s[-1] - 2) / 2))
                return false;
        }
        return true;
    }
    const Block& first() const { return blocks[0]; }
    const Block& last() const { return blocks[depth - 1]; }
    int64_t first_inputs() const { return 9 * first().in; }
    int64_t border_rows() const { return first().height + 2 * first().padding; }
    int64_t border_columns() const { return first().width + 2 * first().padding; }
    int64_t bordered() const { return border_rows() * border_columns() * first().in; }
    int64_t image() const { return first().in * first().height * first().width; }
};

// Parameters, or a direction in their space, as the products take them.
template <class A>
struct Weights {
    const A* theta;
    PerBlock<A*> w_fwd, w_bwd;    // of each block but the first: see winograd.hpp
    A *first, *first_transposed;  // (9 in, out) in panels; (out, padded 9 in)
    A *head, *head_transposed;    // (classes, features), features in NHWC order; (features, padded classes)

    Weights(const Net& net, const A* theta, Room<A>& room) : theta(theta) {
        for (int64_t b = 0; b < net.depth; ++b) {
            const int64_t size = b ? 36 * apart<A>(net.blocks[b].in, net.blocks[b].out) : 0;
            w_fwd[b] = room.take(size);
            w_bwd[b] = room.take(size);
        }
        first = room.take(net.first_inputs() * net.first().out);
        first_transposed = room.take(padded<A>(net.first_inputs()) * net.first().out);
        head = room.take(net.classes * net.features);
        head_transposed = room.take(net.features * padded<A>(net.classes));
    }

    // The work of all threads of a region; they have to wait for each other afterwards.
    void prepare(const Net& net, bool backwards) {
        for (int64_t b = 1; b < net.depth; ++b) {
            const Block& block = net.blocks[b];
            limbeck::prepare<A>(block.in, block.out, theta + block.at, w_fwd[b], backwards ? w_bwd[b] : nullptr);
        }
#pragma omp for nowait
        for (int64_t job = 0; job < 2; ++job) job ? prepare_head(net) : prepare_first(net);
    }

    void prepare_first(const Net& net) {
        const Block& b = net.first();
        constexpr int64_t P = Of<A>::panel;
        const int64_t k = net.first_inputs(), wide = padded<A>(k);
        std::memset(first_transposed, 0, wide * b.out * sizeof(A));
        for (int64_t o = 0; o < b.out; ++o)
            for (int64_t i = 0; i < b.in; ++i)
                for (int64_t t = 0; t < 9; ++t) {
                    const A w = theta[b.at + (o * b.in + i) * 9 + t];
                    first[(o / P * k + t * b.in + i) * P + o % P] = w;
                    first_transposed[o * wide + t * b.in + i] = w;
                }
    }

    void prepare_head(const Net& net) {
        const int64_t c = net.last().out, pixels = net.features / c, wide = padded<A>(net.classes);
        std::memset(head_transposed, 0, net.features * wide * sizeof(A));
        for (int64_t j = 0; j < net.classes; ++j)
            for (int64_t k = 0; k < c; ++k)
                for (int64_t p = 0; p < pixels; ++p) {
                    const A w = theta[net.at + (j * c + k) * pixels + p];
                    head[j * net.features + p * c + k] = w;
                    head_transposed[(p * c + k) * wide + j] = w;
                }
    }
};

// The terms of the gradient, which is the sum over images of products of these. A forward and backward pass has some, and
// its tangent has others.
template <class A>
struct Terms {
    int64_t images;
    PerBlock<A*> x_tiles, dz_tiles;  // of each block but the first: B^T x B, A dz A^T (winograd.hpp)
    PerBlock<A*> sums;               // of each block, (n, 2, out): see block.hpp
    A *first, *features, *dlogits;   // (n, 9 in, out) of the first block's weight; (n, features); (n, classes)

    // adding: whether a gradient is needed.
    Terms(const Net& net, int64_t n, bool adding, Room<A>& room) : images(n) {
        for (int64_t b = 0; b < net.depth; ++b) {
            const Block& block = net.blocks[b];
            x_tiles[b] = room.take(b ? 36 * stride(block, block.in) : 0);
            dz_tiles[b] = room.take(b && adding ? 36 * stride(block, block.out) : 0);
            sums[b] = room.take(n * block.shape().norms());
        }
        first = room.take(adding ? n * net.first_inputs() * net.first().out : 0);
        features = room.take(n * net.features);
        dlogits = room.take(n * net.classes);
    }
    int64_t tiles(const Block& b) const { return b.map(images).tiles(); }
    int64_t stride(const Block& b, int64_t channels) const { return apart<A>(tiles(b), channels); }
};

// The gradient before its last transformation.
template <class A>
struct Sum {
    PerBlock<A*> weights, norms;  // of each block: before G, the first's (9 in, out); dbeta and dgamma (2, out)
    A *head, *bias;               // (classes, features), (classes)

    Sum(const Net& net, Room<A>& room) {
        for (int64_t b = 0; b < net.depth; ++b) {
            const Block& block = net.blocks[b];
            weights[b] = room.take(b ? 36 * apart<A>(block.in, block.out) : net.first_inputs() * block.out);
            norms[b] = room.take(2 * block.out);
        }
        head = room.take(net.classes * net.features);
        bias = room.take(net.classes);
    }
};

// A forward and backward pass of some images, for its tangent.
template <class A>
struct Tape {
    int64_t images;
    A* bordered;                    // the images (n, height + 2 padding, width + 2 padding, in)
    PerBlock<A*> z, stats, dy, dz;  // of each block: see block.hpp
    A *p, *label_sums;
    int64_t first_dz;  // from one image's dz of the first block to the next's: 0 where no tangent needs it again

    // moving: whether a tangent follows.
    Tape(const Net& net, int64_t n, bool moving, Room<A>& room) : images(n) {
        bordered = room.take(n * net.bordered());
        for (int64_t b = 0; b < net.depth; ++b) {
            const Shape s = net.blocks[b].shape();
            z[b] = room.take(n * s.size());
            dz[b] = room.take((b || moving ? n : 1) * s.size());
            dy[b] = room.take(n * s.pooled_size());
            stats[b] = room.take(n * s.norms());
        }
        p = room.take(n * padded<A>(net.classes));
        label_sums = room.take(n);
        first_dz = moving ? net.first().shape().size() : 0;
    }
};

// The tangent's part of what a tape holds.
template <class A>
struct Tangent {
    PerBlock<A*> z, stats;
    A *dz, *dy, *logits;

    Tangent(const Net& net, int64_t n, Room<A>& room) {
        int64_t largest = 0, pooled = 0;
        for (int64_t b = 0; b < net.depth; ++b) {
            const Shape s = net.blocks[b].shape();
            z[b] = room.take(n * s.size());
            stats[b] = room.take(n * s.norms());
            largest = std::max(largest, (b ? n : 1) * s.size());
            pooled = std::max(pooled, n * s.pooled_size());
        }
        dz = room.take(largest);
        dy = room.take(pooled);
        logits = room.take(n * padded<A>(net.classes));
    }
};

// Room for intermediate results, which the next part overwrites.
template <class A>
struct Scratch {
    A *zero, *sink, *tiles, *product, *y, *columns, *dimage;

    Scratch(const Net& net, int64_t n, Room<A>& room) {
        int64_t size = 0, pooled = 0, widest = 0;
        for (int64_t b = 0; b < net.depth; ++b) {
            const Block& block = net.blocks[b];
            widest = std::max({widest, block.in, block.out});
            pooled = std::max(pooled, n * block.shape().pooled() * block.out);
            if (b) size = std::max(size, 36 * apart<A>(block.map(n).tiles(), std::max(block.in, block.out)));
        }
        zero = room.take(widest);
        sink = room.take(widest);
        tiles = room.take(size);
        product = room.take(size);
        y = room.take(pooled);
        columns = room.take(net.first().columns() * padded<A>(net.first_inputs()));
        dimage = room.take(net.bordered());
    }
};

}  // namespace limbeck
