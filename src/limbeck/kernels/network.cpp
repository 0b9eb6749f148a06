// The derivatives of cross-entropy of the field's ConvNet, a whole pass in one call: what pearlmutter.py says in Python.
//
// Instance norm looks at one image at a time. So images are independent of each other until their gradients are added
// up: a batch is cut into parts, a thread takes a part through the whole network and back, in the cache, and threads wait
// for each other twice, after preparing the weights and before adding up. Parts depend on the number of threads alone, and
// are added in order: the same number of threads gives the same bits.

#include <algorithm>
#include <cmath>
#include <vector>

#include "network.hpp"

using namespace limbeck;

namespace {

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

    // The tangent of `features` where theta moves along w1.
    void features_tangent(const Weights<A>& w, const Weights<A>& w1, const Tape<A>& tape, Moved<A>& moved) const {
        const int64_t n = tape.images, deepest = net.depth() - 1;
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
    }

    // That of the loss: moved.dlogits, and dlabels (n, classes) of a batch of `count` images. Returns direction . gradient.
    double loss_tangent(const Weights<A>& w, const Weights<A>& w1, int64_t count, const Tape<A>& tape, Moved<A>& moved,
                        A* dlabels) const {
        const int64_t n = tape.images, wide = padded<A>(net.classes);
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
        return along;
    }

    // The tangent of `pass`. sum, dimages (n, in, height, width): null where not asked for. Returns direction . gradient.
    double tangent(const Weights<A>& w, const Weights<A>& w1, int64_t count, const Tape<A>& tape, Moved<A>& moved,
                   Sum<A>* sum, A* dimages, A* dlabels) const {
        const int64_t n = tape.images;
        features_tangent(w, w1, tape, moved);
        const double along = loss_tangent(w, w1, count, tape, moved, dlabels);
        if (sum) {
            head_weigh(n, moved.dlogits, tape.features, *sum, sum->add);
            head_weigh(n, tape.dlogits, moved.features, *sum, true);
            add_bias(n, moved.dlogits, *sum);
        }
        head_backward(n, moved.dlogits, w.head, moved.dy, false);
        head_backward(n, tape.dlogits, w1.head, moved.dy, true);
        for (int64_t b = net.depth() - 1; b >= 0; --b) {
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
    const Owned<A> own(threads * measured.used);
    Room<A> here{weights.at}, there{moving ? weights.at + for_weights.used : nullptr};
    Weights<A> w(net, ask.theta, here), w1(net, ask.direction, there);
    std::vector<double> along(ask.parts, 0.0);
#pragma omp parallel num_threads(threads)
    {
        w.prepare(net, ask.gradient || moving);
        if (moving) w1.prepare(net, true);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; ++thread) {
            Room<A> mine{own.at + thread * measured.used};
            const Worker<A> worker(net, most, mine);
            A* tape_here = ask.tapes ? nullptr : mine.take(tape);
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
    extern "C" int answer_##NAME(int64_t depth, const int64_t* sizes, double eps, int64_t count, int64_t parts,         \
                                 const A* theta, const A* images, const A* labels, const A* direction, A* tapes,       \
                                 A* logits, A* gradient, A* dtheta, A* dimages, A* dlabels, double* along,              \
                                 int threads) {                                                                        \
        try {                                                                                                          \
            answer<A>(Net(depth, sizes, eps),                                                                          \
                      {count, parts, theta, images, labels, direction, tapes, logits, gradient, dtheta, dimages,       \
                       dlabels, along},                                                                                \
                      threads);                                                                                        \
        } catch (const std::bad_alloc&) {                                                                              \
            return 1;                                                                                                  \
        }                                                                                                              \
        return 0;                                                                                                      \
    }

EXPORT(float32, float)
EXPORT(float64, double)
