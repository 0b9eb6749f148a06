// The network, and all that a pass through it and back makes and leaves behind, piece by piece.
#pragma once

#include <algorithm>
#include <vector>

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

struct Net {
    std::vector<Block> blocks;
    int64_t classes, features, at, count;  // of the last layer: its inputs, where its parameters are; length of theta
    double eps;

    // sizes: classes, then in, out, height, width, padding of each block.
    Net(int64_t depth, const int64_t* sizes, double eps) : classes(sizes[0]), features(0), at(0), eps(eps) {
        for (int64_t b = 0; b < depth; ++b) {
            const int64_t* s = sizes + 1 + 5 * b;
            blocks.push_back({s[0], s[1], s[2], s[3], s[4], at});
            at += blocks.back().weights() + 3 * s[1];
            features = blocks.back().shape().pooled() * s[1];
        }
        count = at + classes * features + classes;
    }
    int64_t depth() const { return blocks.size(); }
    const Block& first() const { return blocks.front(); }
    const Block& last() const { return blocks.back(); }
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
    std::vector<A*> rising, falling;  // of each block but the first: see winograd.hpp
    A *first, *first_turned;          // (9 in, out) in panels; (out, padded 9 in)
    A *head, *head_turned;            // (classes, features), features in NHWC order; (features, padded classes)

    Weights(const Net& net, const A* theta, Room<A>& room) : theta(theta) {
        for (const Block& b : net.blocks) {
            const int64_t size = &b == &net.first() ? 0 : 36 * apart<A>(b.in, b.out);
            rising.push_back(room.take(size));
            falling.push_back(room.take(size));
        }
        first = room.take(net.first_inputs() * net.first().out);
        first_turned = room.take(padded<A>(net.first_inputs()) * net.first().out);
        head = room.take(net.classes * net.features);
        head_turned = room.take(net.features * padded<A>(net.classes));
    }

    // The work of all threads of a region; they have to wait for each other afterwards.
    void prepare(const Net& net, bool backwards) {
        for (int64_t b = 1; b < net.depth(); ++b) {
            const Block& block = net.blocks[b];
            limbeck::prepare<A>(block.in, block.out, theta + block.at, rising[b], backwards ? falling[b] : nullptr);
        }
#pragma omp for nowait
        for (int64_t job = 0; job < 2; ++job) job ? prepare_head(net) : prepare_first(net);
    }

    void prepare_first(const Net& net) {
        const Block& b = net.first();
        constexpr int64_t P = Of<A>::panel;
        const int64_t k = net.first_inputs(), wide = padded<A>(k);
        std::memset(first_turned, 0, wide * b.out * sizeof(A));
        for (int64_t o = 0; o < b.out; ++o)
            for (int64_t i = 0; i < b.in; ++i)
                for (int64_t t = 0; t < 9; ++t) {
                    const A w = theta[b.at + (o * b.in + i) * 9 + t];
                    first[(o / P * k + t * b.in + i) * P + o % P] = w;
                    first_turned[o * wide + t * b.in + i] = w;
                }
    }

    void prepare_head(const Net& net) {
        const int64_t c = net.last().out, pixels = net.features / c, wide = padded<A>(net.classes);
        std::memset(head_turned, 0, net.features * wide * sizeof(A));
        for (int64_t j = 0; j < net.classes; ++j)
            for (int64_t k = 0; k < c; ++k)
                for (int64_t p = 0; p < pixels; ++p) {
                    const A w = theta[net.at + (j * c + k) * pixels + p];
                    head[j * net.features + p * c + k] = w;
                    head_turned[(p * c + k) * wide + j] = w;
                }
    }
};

// What a thread adds its parts' gradients up in; the first part overwrites.
template <class A>
struct Sum {
    std::vector<A*> weights, norms;  // of each block: before G, the first's (9 in, out); dbeta and dgamma (2, out)
    A *head, *bias;                  // (classes, features), (classes)
    bool add = false;

    Sum(const Net& net, Room<A>& room) {
        for (const Block& b : net.blocks) {
            weights.push_back(room.take(&b == &net.first() ? net.first_inputs() * b.out : 36 * apart<A>(b.in, b.out)));
            norms.push_back(room.take(2 * b.out));
        }
        head = room.take(net.classes * net.features);
        bias = room.take(net.classes);
    }
};

// A forward and backward pass of some images, for its tangent.
template <class A>
struct Tape {
    int64_t images;
    A* bordered;                                // the images (n, height + 2 padding, width + 2 padding, in)
    std::vector<A*> seen, z, stats, dy, dz, sums;  // of each block: B^T x B (not of the first), and see block.hpp
    A *features, *p, *dlogits, *label_sums;
    int64_t first_dz;  // from one image's dz of the first block to the next's: 0 where nobody will ask for it again

    // kept: whether a tangent follows.
    Tape(const Net& net, int64_t n, bool kept, Room<A>& room) : images(n) {
        bordered = room.take(n * net.bordered());
        for (const Block& b : net.blocks) {
            const Shape s = b.shape();
            seen.push_back(room.take(&b == &net.first() ? 0 : 36 * apart<A>(b.map(n).tiles(), b.in)));
            z.push_back(room.take(n * s.size()));
            dz.push_back(room.take((&b != &net.first() || kept ? n : 1) * s.size()));
            dy.push_back(room.take(n * s.pooled_size()));
            stats.push_back(room.take(n * s.norms()));
            sums.push_back(room.take(n * s.norms()));
        }
        features = room.take(n * net.features);
        p = room.take(n * padded<A>(net.classes));
        dlogits = room.take(n * net.classes);
        label_sums = room.take(n);
        first_dz = kept ? net.first().shape().size() : 0;
    }
};

// The tangent's part of what a tape holds.
template <class A>
struct Moved {
    std::vector<A*> seen, z, stats;
    A *dz, *dy, *sums, *features, *logits, *dlogits;

    Moved(const Net& net, int64_t n, Room<A>& room) {
        int64_t largest = 0, pooled = 0, widest = 0;
        for (const Block& b : net.blocks) {
            const Shape s = b.shape();
            seen.push_back(room.take(&b == &net.first() ? 0 : 36 * apart<A>(b.map(n).tiles(), b.in)));
            z.push_back(room.take(n * s.size()));
            stats.push_back(room.take(n * s.norms()));
            largest = std::max(largest, (&b == &net.first() ? 1 : n) * s.size());
            pooled = std::max(pooled, n * s.pooled_size());
            widest = std::max(widest, s.channels);
        }
        dz = room.take(largest);
        dy = room.take(pooled);
        sums = room.take(n * 2 * widest);
        features = room.take(n * net.features);
        logits = room.take(n * padded<A>(net.classes));
        dlogits = room.take(n * net.classes);
    }
};

// Room that every part needs and none leaves anything in.
template <class A>
struct Scratch {
    A *zero, *nowhere, *turned, *made, *y, *columns, *dimage;

    Scratch(const Net& net, int64_t n, Room<A>& room) {
        int64_t size = 0, pooled = 0, widest = 0;
        for (const Block& b : net.blocks) {
            widest = std::max({widest, b.in, b.out});
            pooled = std::max(pooled, n * b.shape().pooled() * b.out);
            if (&b != &net.first()) size = std::max(size, 36 * apart<A>(b.map(n).tiles(), std::max(b.in, b.out)));
        }
        zero = room.take(widest);
        nowhere = room.take(widest);
        turned = room.take(size);
        made = room.take(size);
        y = room.take(pooled);
        columns = room.take(net.first().columns() * padded<A>(net.first_inputs()));
        dimage = room.take(net.bordered());
    }
};

}  // namespace limbeck
