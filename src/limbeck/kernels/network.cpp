// The derivatives of cross-entropy of the field's ConvNet, a whole pass in one call: what pearlmutter.py says in Python.
//
// Instance norm looks at one image at a time. So images are independent of each other until their gradients are added
// up: a batch is cut into parts, a thread takes a part through the whole network and back, in the cache, and threads wait
// for each other twice, after preparing the weights and before adding up. Parts depend on the number of threads alone, and
// are added in order: the same number of threads gives the same bits.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include <sys/mman.h>

#include "block.hpp"
#include "winograd.hpp"

using namespace limbeck;

namespace {

template <class A>
int64_t padded(int64_t count) {  // to whole vectors
    return (count + Of<A>::lanes - 1) / Of<A>::lanes * Of<A>::lanes;
}

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

// Room that is handed out piece by piece, in whole vectors; the same calls without any measure how much is needed.
template <class A>
struct Room {
    A* base;
    int64_t used = 0;
    A* take(int64_t count) {
        A* piece = base ? base + used : nullptr;
        used += padded<A>(count);
        return piece;
    }
};

// Memory in pages of 2 MB where the system has them: a pass walks through tens of MB in strides, and where each page is has
// to be looked up (width 128, 100 images: 78 ms with pages of 4 KB, 67 with these). What is given back is there, page by
// page, for the next call.
class Pool {
    struct Piece {
        char* at;
        size_t size;
    };
    std::mutex mutex;
    std::vector<Piece> free_ones;

   public:
    // At least `size` bytes; makes it what was taken.
    char* take(size_t& size) {
        constexpr size_t page = 2 << 20;
        size = (size + page) / page * page;
        const std::lock_guard<std::mutex> lock(mutex);
        auto best = free_ones.end();
        for (auto each = free_ones.begin(); each != free_ones.end(); ++each)
            if (each->size >= size && (best == free_ones.end() || each->size < best->size)) best = each;
        if (best != free_ones.end()) {
            const Piece found = *best;
            free_ones.erase(best);
            size = found.size;
            return found.at;
        }
        for (const Piece& each : free_ones) std::free(each.at);  // all too small: for another network
        free_ones.clear();
        char* at = static_cast<char*>(std::aligned_alloc(page, size));
        if (!at) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        madvise(at, size, MADV_HUGEPAGE);
#endif
        return at;
    }
    void give(char* at, size_t size) {
        const std::lock_guard<std::mutex> lock(mutex);
        free_ones.push_back({at, size});
    }
};
Pool pool;

template <class A>
struct Owned {
    size_t size;
    A* at;
    explicit Owned(int64_t count) : size(count * sizeof(A)), at(reinterpret_cast<A*>(pool.take(size))) {}
    ~Owned() { pool.give(reinterpret_cast<char*>(at), size); }
    Owned(const Owned&) = delete;
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

// One thread at work on a part of n images.
template <class A>
struct Worker {
    const Net& net;
    Scratch<A> scratch;

    Worker(const Net& net, int64_t most, Room<A>& room) : net(net), scratch(net, most, room) {
        if (room.base) std::memset(scratch.zero, 0, (scratch.nowhere - scratch.zero) * sizeof(A));
    }

    // images (n, in, height, width) -> (n, height + 2 padding, width + 2 padding, in).
    void border(int64_t n, const A* images, A* out) const {
        const Block& b = net.first();
        const int64_t wide = net.border_columns(), each = net.bordered();
        std::memset(out, 0, n * each * sizeof(A));
        for (int64_t i = 0; i < n; ++i)
            for (int64_t k = 0; k < b.in; ++k)
                for (int64_t row = 0; row < b.height; ++row) {
                    const A* from = images + ((i * b.in + k) * b.height + row) * b.width;
                    A* to = out + i * each + ((row + b.padding) * wide + b.padding) * b.in + k;
                    for (int64_t column = 0; column < b.width; ++column) to[column * b.in] = from[column];
                }
    }

    // z (rows, columns, out) of the first block, of one image; a window of 3 pixels of a row lies in one piece.
    void first_forward(const A* bordered, const A* first, A* z) const {
        const Block& b = net.first();
        const int64_t line = net.border_columns() * b.in;
        for (int64_t row = 0; row < b.rows(); ++row)
            product<A>(b.columns(), b.out, 3, 3 * b.in, {bordered + row * line, b.in, 1, line},
                       {first, Of<A>::panel, net.first_inputs() * Of<A>::panel}, z + row * b.columns() * b.out, b.out,
                       false);
    }

    void first_weigh(const A* bordered, const A* dz, A* dw, bool add) const {
        const Block& b = net.first();
        const int64_t line = net.border_columns() * b.in, run = 3 * b.in;
        for (int64_t row = 0; row < 3; ++row)
            product<A>(run, b.out, b.rows(), b.columns(), {bordered + row * line, 1, b.in, line},
                       {dz, b.out, Of<A>::panel}, dw + row * run * b.out, b.out, add);
    }

    // dimage (in, height, width) of the sum of two transposed convolutions.
    void first_backward(const A* dz, const A* turned, const A* dz1, const A* turned1, A* dimage) const {
        const Block& b = net.first();
        const int64_t k = net.first_inputs(), wide = padded<A>(k), run = 3 * b.in, line = net.border_columns() * b.in;
        std::memset(scratch.dimage, 0, net.border_rows() * line * sizeof(A));
        for (int64_t row = 0; row < b.rows(); ++row) {
            const int64_t at = row * b.columns() * b.out;
            product<A>(b.columns(), wide, 1, b.out, {dz + at, b.out, 1}, {turned, wide, Of<A>::panel}, scratch.columns,
                       wide, false);
            product<A>(b.columns(), wide, 1, b.out, {dz1 + at, b.out, 1}, {turned1, wide, Of<A>::panel},
                       scratch.columns, wide, true);
            for (int64_t column = 0; column < b.columns(); ++column)
                for (int64_t t = 0; t < 3; ++t)
                    for (int64_t r = 0; r < run; ++r)
                        scratch.dimage[(row + t) * line + column * b.in + r] +=
                            scratch.columns[column * wide + t * run + r];
        }
        for (int64_t c = 0; c < b.in; ++c)
            for (int64_t row = 0; row < b.height; ++row)
                for (int64_t column = 0; column < b.width; ++column)
                    dimage[(c * b.height + row) * b.width + column] =
                        scratch.dimage[(row + b.padding) * line + (column + b.padding) * b.in + c];
    }

    // x (n, height, width, in), in scratch.y, becomes y of the block; z, seen and stats are left behind. What the first
    // block makes is the largest, so that it is taken on while an image's is in the cache.
    void rise(const Weights<A>& w, int64_t b, const Tape<A>& tape, A* y) const {
        const Block& block = net.blocks[b];
        const Shape s = block.shape();
        if (b) {
            const Map map = block.map(tape.images);
            patches<A>(map, scratch.y, block.in, scratch.zero, tape.seen[b]);
            convolve<A>(map.tiles(), block.in, block.out, tape.seen[b], w.rising[b], scratch.made, false);
            gather<A>(map, scratch.made, block.out, scratch.nowhere, tape.z[b]);
        }
        for (int64_t i = 0; i < tape.images; ++i) {
            A* z = tape.z[b] + i * s.size();
            if (b == 0) first_forward(tape.bordered + i * net.bordered(), w.first, z);
            forward<A, A>(s, z, w.theta + block.gamma(), w.theta + block.beta(), A(net.eps), y + i * s.pooled_size(),
                          tape.stats[b] + i * s.norms());
        }
    }

    // logits (n, padded classes), without bias, of features (n, features).
    void head(int64_t n, const A* features, const A* turned, A* logits, bool add) const {
        const int64_t wide = padded<A>(net.classes);
        product<A>(n, wide, 1, net.features, {features, net.features, 1}, {turned, wide, Of<A>::panel}, logits, wide, add);
    }

    // features' part (n, features) = [+] of dlogits (n, classes) and the last layer's weight.
    void head_backward(int64_t n, const A* dlogits, const A* weight, A* out, bool add) const {
        product<A>(n, net.features, 1, net.classes, {dlogits, net.classes, 1}, {weight, net.features, Of<A>::panel}, out,
                   net.features, add);
    }

    void head_weigh(int64_t n, const A* dlogits, const A* features, Sum<A>& sum, bool add) const {
        product<A>(net.classes, net.features, 1, n, {dlogits, 1, net.classes}, {features, net.features, Of<A>::panel},
                   sum.head, net.features, add);
    }

    void add_bias(int64_t n, const A* dlogits, Sum<A>& sum) const {
        for (int64_t j = 0; j < net.classes; ++j) {
            A total = sum.add ? sum.bias[j] : A(0);
            for (int64_t i = 0; i < n; ++i) total += dlogits[i * net.classes + j];
            sum.bias[j] = total;
        }
    }

    void add_norms(int64_t n, int64_t b, const A* sums, Sum<A>& sum) const {
        const int64_t wide = 2 * net.blocks[b].out;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t k = 0; k < wide; ++k)
                sum.norms[b][k] = sum.add || i ? sum.norms[b][k] + sums[i * wide + k] : sums[k];
    }

    // The gradient in the weight of a block but the first, of x and dz.
    void weigh_block(int64_t b, int64_t n, const A* seen, const A* dz, Sum<A>& sum, bool add) const {
        const Block& block = net.blocks[b];
        const Map map = block.map(n);
        spread<A>(map, dz, block.out, scratch.zero, scratch.turned);
        weigh<A>(map.tiles(), block.in, block.out, seen, scratch.turned, sum.weights[b], add);
    }

    // made = [made +] what dz gives the block's input, before A.
    void fall(int64_t b, int64_t n, const A* dz, const A* falling, bool add) const {
        const Block& block = net.blocks[b];
        const Map map = block.map(n);
        patches<A>(map, dz, block.out, scratch.zero, scratch.turned);
        convolve<A>(map.tiles(), block.out, block.in, scratch.turned, falling, scratch.made, add);
    }

    // Forwards.
    void features(const Weights<A>& w, const A* images, Tape<A>& tape) const {
        border(tape.images, images, tape.bordered);
        for (int64_t b = 0; b < net.depth(); ++b)
            rise(w, b, tape, b + 1 < net.depth() ? scratch.y : tape.features);
    }

    void logits(const Weights<A>& w, const A* images, Tape<A>& tape, A* out) const {
        features(w, images, tape);
        head(tape.images, tape.features, w.head_turned, tape.p, false);
        const A* bias = w.theta + net.at + net.classes * net.features;
        for (int64_t i = 0; i < tape.images; ++i)
            for (int64_t j = 0; j < net.classes; ++j)
                out[i * net.classes + j] = tape.p[i * padded<A>(net.classes) + j] + bias[j];
    }

    // Forwards and backwards; labels (n, classes) are of a batch of `count` images. sum: for the gradient, or null.
    void pass(const Weights<A>& w, const A* images, const A* labels, int64_t count, Tape<A>& tape, Sum<A>* sum) const {
        const int64_t n = tape.images, wide = padded<A>(net.classes);
        features(w, images, tape);
        head(n, tape.features, w.head_turned, tape.p, false);
        const A* bias = w.theta + net.at + net.classes * net.features;
        for (int64_t i = 0; i < n; ++i) {
            A *p = tape.p + i * wide, most = -INFINITY, total = 0, labelled = 0;
            const A* y = labels + i * net.classes;
            for (int64_t j = 0; j < net.classes; ++j) most = std::max(most, p[j] += bias[j]);
            for (int64_t j = 0; j < net.classes; ++j) total += p[j] = std::exp(p[j] - most);
            for (int64_t j = 0; j < net.classes; ++j) labelled += y[j];
            tape.label_sums[i] = labelled;
            for (int64_t j = 0; j < net.classes; ++j) {
                p[j] /= total;
                tape.dlogits[i * net.classes + j] = (p[j] * labelled - y[j]) / A(count);
            }
        }
        if (sum) {
            head_weigh(n, tape.dlogits, tape.features, *sum, sum->add);
            add_bias(n, tape.dlogits, *sum);
        }
        head_backward(n, tape.dlogits, w.head, tape.dy[net.depth() - 1], false);
        for (int64_t b = net.depth() - 1; b >= 0; --b) {
            const Block& block = net.blocks[b];
            const Shape s = block.shape();
            for (int64_t i = 0; i < n; ++i) {
                A* dz = tape.dz[b] + i * (b ? s.size() : tape.first_dz);
                backward<A, A>(s, tape.z[b] + i * s.size(), w.theta + block.gamma(), w.theta + block.beta(),
                               tape.stats[b] + i * s.norms(), tape.dy[b] + i * s.pooled_size(), dz,
                               tape.sums[b] + i * s.norms());
                if (sum && b == 0)
                    first_weigh(tape.bordered + i * net.bordered(), dz, sum->weights[0], sum->add || i);
            }
            if (sum) add_norms(n, b, tape.sums[b], *sum);
            if (sum && b) weigh_block(b, n, tape.seen[b], tape.dz[b], *sum, sum->add);
            if (b) {
                fall(b, n, tape.dz[b], w.falling[b], false);
                gather<A>(block.map(n), scratch.made, block.in, scratch.nowhere, tape.dy[b - 1]);
            }
        }
        if (sum) sum->add = true;
    }

    // The tangent of `pass` where theta moves along w1. sum, dimages (n, in, height, width): null where not asked for;
    // dlabels (n, classes). Returns direction . gradient.
    double tangent(const Weights<A>& w, const Weights<A>& w1, int64_t count, const Tape<A>& tape, Moved<A>& moved,
                   Sum<A>* sum, A* dimages, A* dlabels) const {
        const int64_t n = tape.images, wide = padded<A>(net.classes), deepest = net.depth() - 1;
        for (int64_t b = 0; b < net.depth(); ++b) {
            const Block& block = net.blocks[b];
            const Map map = block.map(n);
            const Shape s = block.shape();
            if (b) {
                convolve<A>(map.tiles(), block.in, block.out, tape.seen[b], w1.rising[b], scratch.made, false);
                patches<A>(map, scratch.y, block.in, scratch.zero, moved.seen[b]);
                convolve<A>(map.tiles(), block.in, block.out, moved.seen[b], w.rising[b], scratch.made, true);
                gather<A>(map, scratch.made, block.out, scratch.nowhere, moved.z[b]);
            }
            A* y1 = b < deepest ? scratch.y : moved.features;
            for (int64_t i = 0; i < n; ++i) {
                A* z1 = moved.z[b] + i * s.size();
                if (b == 0) first_forward(tape.bordered + i * net.bordered(), w1.first, z1);
                forward_tangent<A, A>(s, tape.z[b] + i * s.size(), w.theta + block.gamma(), w.theta + block.beta(),
                                      tape.stats[b] + i * s.norms(), z1, w1.theta + block.gamma(),
                                      w1.theta + block.beta(), y1 + i * s.pooled_size(),
                                      moved.stats[b] + i * s.norms());
            }
        }
        head(n, moved.features, w.head_turned, moved.logits, false);
        head(n, tape.features, w1.head_turned, moved.logits, true);
        const A* bias1 = w1.theta + net.at + net.classes * net.features;
        double along = 0;
        for (int64_t i = 0; i < n; ++i) {
            const A* p = tape.p + i * wide;
            A *logits1 = moved.logits + i * wide, mean = 0;
            for (int64_t j = 0; j < net.classes; ++j) mean += p[j] * (logits1[j] += bias1[j]);
            for (int64_t j = 0; j < net.classes; ++j) {
                const int64_t at = i * net.classes + j;
                const A centred = logits1[j] - mean;
                along += double(tape.dlogits[at]) * double(logits1[j]);
                moved.dlogits[at] = p[j] * centred * tape.label_sums[i] / A(count);
                dlabels[at] = -centred / A(count);
            }
        }
        if (sum) {
            head_weigh(n, moved.dlogits, tape.features, *sum, sum->add);
            head_weigh(n, tape.dlogits, moved.features, *sum, true);
            add_bias(n, moved.dlogits, *sum);
        }
        head_backward(n, moved.dlogits, w.head, moved.dy, false);
        head_backward(n, tape.dlogits, w1.head, moved.dy, true);
        for (int64_t b = deepest; b >= 0; --b) {
            const Block& block = net.blocks[b];
            const Shape s = block.shape();
            for (int64_t i = 0; i < n; ++i) {
                const A *dz = tape.dz[b] + i * s.size(), *bordered = tape.bordered + i * net.bordered();
                A* dz1 = moved.dz + (b ? i * s.size() : 0);
                backward_tangent<A, A>(s, tape.z[b] + i * s.size(), w.theta + block.gamma(), w.theta + block.beta(),
                                       tape.stats[b] + i * s.norms(), tape.dy[b] + i * s.pooled_size(),
                                       tape.sums[b] + i * s.norms(), moved.z[b] + i * s.size(),
                                       w1.theta + block.gamma(), moved.stats[b] + i * s.norms(),
                                       moved.dy + i * s.pooled_size(), dz1, moved.sums + i * s.norms());
                if (sum && b == 0) first_weigh(bordered, dz1, sum->weights[0], sum->add || i);
                if (dimages && b == 0)
                    first_backward(dz, w1.first_turned, dz1, w.first_turned, dimages + i * net.image());
            }
            if (sum) add_norms(n, b, moved.sums, *sum);
            if (b == 0) continue;
            if (sum) {
                weigh_block(b, n, tape.seen[b], moved.dz, *sum, sum->add);
                weigh_block(b, n, moved.seen[b], tape.dz[b], *sum, true);
            }
            fall(b, n, moved.dz, w.falling[b], false);
            fall(b, n, tape.dz[b], w1.falling[b], true);
            gather<A>(block.map(n), scratch.made, block.in, scratch.nowhere, moved.dy);
        }
        if (sum) sum->add = true;
        return along;
    }
};

// out (theta's length) of the threads' sums, `next` numbers apart. The work of all threads of a region.
template <class A>
void join(const Net& net, const Sum<A>& sum, int64_t threads, int64_t next, A* out) {
    const auto total = [&](const A* at) {
        A value = *at;
        for (int64_t part = 1; part < threads; ++part) value += at[part * next];
        return value;
    };
    for (int64_t b = 1; b < net.depth(); ++b)
        finish<A>(net.blocks[b].in, net.blocks[b].out, sum.weights[b], threads, next, out + net.blocks[b].at);
#pragma omp for nowait
    for (int64_t job = 0; job < 2; ++job) {
        if (job == 0) {
            const Block& first = net.first();
            for (int64_t o = 0; o < first.out; ++o)
                for (int64_t i = 0; i < first.in; ++i)
                    for (int64_t t = 0; t < 9; ++t)
                        out[first.at + (o * first.in + i) * 9 + t] =
                            total(sum.weights[0] + (t * first.in + i) * first.out + o);
            for (int64_t b = 0; b < net.depth(); ++b) {
                const Block& block = net.blocks[b];
                for (int64_t k = 0; k < block.out; ++k) {
                    out[block.at + block.weights() + k] = 0;  // the norm takes a bias out again
                    out[block.gamma() + k] = total(sum.norms[b] + block.out + k);
                    out[block.beta() + k] = total(sum.norms[b] + k);
                }
            }
        } else {
            const int64_t c = net.last().out, pixels = net.features / c;
            for (int64_t j = 0; j < net.classes; ++j) {
                for (int64_t k = 0; k < c; ++k)
                    for (int64_t p = 0; p < pixels; ++p)
                        out[net.at + (j * c + k) * pixels + p] = total(sum.head + j * net.features + p * c + k);
                out[net.at + net.classes * net.features + j] = total(sum.bias + j);
            }
        }
    }
}

template <class A>
int64_t tape_size(const Net& net, int64_t n, bool kept) {
    Room<A> room{nullptr};
    Tape<A>(net, n, kept, room);
    return room.used;
}

// What is asked of a batch; null is for what is not. tapes: `parts` of them, tape_size apart, written by a call with
// `gradient` and read by one with `direction`; without any a tape lasts as long as its part.
template <class A>
struct Asked {
    int64_t count, parts;
    const A *theta, *images, *labels, *direction;
    A *tapes, *logits, *gradient, *dtheta, *dimages, *dlabels;
    double* along;
};

template <class A>
void answer(const Net& net, const Asked<A>& ask, int threads) {
    threads = std::min<int64_t>(threads, ask.parts);
    const bool moving = ask.direction, adding = ask.gradient || ask.dtheta, kept = moving || ask.tapes;
    const int64_t most = (ask.count + ask.parts - 1) / ask.parts, tape = tape_size<A>(net, most, kept);
    const auto layout = [&](Room<A>& room) {  // a thread's own
        Worker<A> worker(net, most, room);
        if (!ask.tapes) room.take(tape);
        if (moving) Moved<A>(net, most, room);
    };
    Room<A> measured{nullptr}, for_weights{nullptr}, for_sums{nullptr};
    layout(measured);
    Weights<A>(net, ask.theta, for_weights);
    Sum<A>(net, for_sums);
    const Owned<A> weights((moving ? 2 : 1) * for_weights.used), sums(adding ? threads * for_sums.used : 0);
    Room<A> here{weights.at}, there{moving ? weights.at + for_weights.used : nullptr};
    Weights<A> w(net, ask.theta, here), w1(net, ask.direction, there);
    std::vector<double> along(ask.parts, 0.0);
#pragma omp parallel num_threads(threads)
    {
        w.prepare(net, ask.gradient || moving);
        if (moving) w1.prepare(net, true);
        const Owned<A> own(measured.used);
        Room<A> mine{own.at};
        const Worker<A> worker(net, most, mine);
        A* tape_here = ask.tapes ? nullptr : mine.take(tape);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; ++thread) {
            Room<A> where{adding ? sums.at + thread * for_sums.used : nullptr};
            Sum<A> sum(net, where);
            for (int64_t part = thread * ask.parts / threads; part < (thread + 1) * ask.parts / threads; ++part) {
                const int64_t first = part * ask.count / ask.parts, n = (part + 1) * ask.count / ask.parts - first;
                Room<A> reel{ask.tapes ? ask.tapes + part * tape : tape_here};
                Tape<A> taped(net, n, kept, reel);
                const A *images = ask.images + first * net.image(), *labels = ask.labels + first * net.classes;
                if (ask.logits) worker.logits(w, images, taped, ask.logits + first * net.classes);
                if (ask.gradient || (moving && !ask.tapes))
                    worker.pass(w, images, labels, ask.count, taped, ask.gradient ? &sum : nullptr);
                if (!moving) continue;
                Room<A> rest = mine;
                Moved<A> moved(net, n, rest);
                along[part] = worker.tangent(w, w1, ask.count, taped, moved, ask.dtheta ? &sum : nullptr,
                                             ask.dimages ? ask.dimages + first * net.image() : nullptr,
                                             ask.dlabels + first * net.classes);
            }
        }
        if (adding) {
            Room<A> where{sums.at};
            const Sum<A> sum(net, where);
            join<A>(net, sum, threads, for_sums.used, ask.gradient ? ask.gradient : ask.dtheta);
        }
    }
    if (ask.along) {
        *ask.along = 0;
        for (const double each : along) *ask.along += each;
    }
}

}  // namespace

#define EXPORT(NAME, A)                                                                                                \
    extern "C" void tape_size_##NAME(int64_t depth, const int64_t* sizes, int64_t n, int64_t* size, int) {             \
        *size = tape_size<A>(Net(depth, sizes, 0), n, true);                                                           \
    }                                                                                                                  \
    extern "C" void answer_##NAME(int64_t depth, const int64_t* sizes, double eps, int64_t count, int64_t parts,        \
                                  const A* theta, const A* images, const A* labels, const A* direction, A* tapes,      \
                                  A* logits, A* gradient, A* dtheta, A* dimages, A* dlabels, double* along,             \
                                  int threads) {                                                                       \
        answer<A>(Net(depth, sizes, eps),                                                                              \
                  {count, parts, theta, images, labels, direction, tapes, logits, gradient, dtheta, dimages, dlabels,  \
                   along},                                                                                             \
                  threads);                                                                                            \
    }

EXPORT(float32, float)
EXPORT(float64, double)
