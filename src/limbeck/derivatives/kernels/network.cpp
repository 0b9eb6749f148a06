// The derivatives of cross-entropy of the field's ConvNet, a whole pass in one call: pearlmutter.py has the same in Python.
//
// Instance norm looks at one image at a time, so images are independent of each other until their gradients are summed.
// A thread takes a part of a chunk of the batch through the whole network and back, in its cache, and leaves behind the
// terms of the gradient. Then every number of the gradient is summed by one thread, over the images in their order. So the
// bits do not depend on the number of threads, which wait for each other twice a chunk.

#include <algorithm>
#include <cmath>
#include <utility>
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
        if (room.base) std::memset(scratch.zero, 0, (scratch.sink - scratch.zero) * sizeof(A));
    }

    // images (n, in, height, width) -> (n, height + 2 padding, width + 2 padding, in).
    void border(int64_t n, const A* images, A* out) const {
        const Block& b = net.first();
        const int64_t wide = net.border_columns(), size = net.bordered();
        std::memset(out, 0, n * size * sizeof(A));
        for (int64_t i = 0; i < n; ++i)
            for (int64_t k = 0; k < b.in; ++k)
                for (int64_t row = 0; row < b.height; ++row) {
                    const A* from = images + ((i * b.in + k) * b.height + row) * b.width;
                    A* to = out + i * size + ((row + b.padding) * wide + b.padding) * b.in + k;
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

    void first_weight_gradient(const A* bordered, const A* dz, A* dw) const {
        const Block& b = net.first();
        const int64_t line = net.border_columns() * b.in, run = 3 * b.in;
        for (int64_t row = 0; row < 3; ++row)
            product<A>(run, b.out, b.rows(), b.columns(), {bordered + row * line, 1, b.in, line},
                       {dz, b.out, Of<A>::panel}, dw + row * run * b.out, b.out, false);
    }

    // dimage (in, height, width) of the sum of two transposed convolutions.
    void first_backward(const A* dz, const A* transposed, const A* dz1, const A* transposed1, A* dimage) const {
        const Block& b = net.first();
        const int64_t k = net.first_inputs(), wide = padded<A>(k), run = 3 * b.in, line = net.border_columns() * b.in;
        std::memset(scratch.dimage, 0, net.border_rows() * line * sizeof(A));
        for (int64_t row = 0; row < b.rows(); ++row) {
            const int64_t at = row * b.columns() * b.out;
            product<A>(b.columns(), wide, 1, b.out, {dz + at, b.out, 1}, {transposed, wide, Of<A>::panel}, scratch.columns,
                       wide, false);
            product<A>(b.columns(), wide, 1, b.out, {dz1 + at, b.out, 1}, {transposed1, wide, Of<A>::panel},
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

    // Tiles of a block that belong to images `at` of the terms and those behind it.
    A* x_tiles(const Terms<A>& terms, int64_t b, int64_t at) const {
        const Block& block = net.blocks[b];
        return terms.x_tiles[b] + at * block.map(1).tiles() * block.in;
    }
    void put_dz(const Terms<A>& terms, int64_t b, int64_t at, int64_t n, const A* dz) const {
        const Block& block = net.blocks[b];
        const int64_t tiles = terms.tiles(block);
        scatter<A>(block.map(n), dz, block.out, scratch.zero,
                   terms.dz_tiles[b] + at * block.map(1).tiles() * Of<A>::panel, tiles, apart<A>(tiles, block.out));
    }
    A* first_term(const Terms<A>& terms, int64_t image) const {
        return terms.first + image * net.first_inputs() * net.first().out;
    }

    // x (n, height, width, in), in scratch.y, becomes y of the block; z, x_tiles and stats are left behind. The first
    // block's z is the largest, so that it is taken on while an image's is in the cache.
    void forward_block(const Weights<A>& w, int64_t b, const Tape<A>& tape, const Terms<A>& terms, int64_t at,
                       A* y) const {
        const Block& block = net.blocks[b];
        const Shape s = block.shape();
        if (b) {
            const Map map = block.map(tape.images);
            const int64_t stride = terms.stride(block, block.in);
            A* tiles = x_tiles(terms, b, at);
            patches<A>(map, scratch.y, block.in, scratch.zero, tiles, stride);
            convolve<A>(map.tiles(), block.in, block.out, tiles, stride, w.w_fwd[b], scratch.product, false);
            gather<A>(map, scratch.product, block.out, scratch.sink, tape.z[b]);
        }
        for (int64_t i = 0; i < tape.images; ++i) {
            A* z = tape.z[b] + i * s.size();
            if (b == 0) first_forward(tape.bordered + i * net.bordered(), w.first, z);
            forward<A>(s, z, w.theta + block.gamma(), w.theta + block.beta(), A(net.eps), y + i * s.pooled_size(),
                       tape.stats[b] + i * s.norms());
        }
    }

    // logits (n, padded classes), without bias, of features (n, features).
    void head(int64_t n, const A* features, const A* transposed, A* logits, bool add) const {
        const int64_t wide = padded<A>(net.classes);
        product<A>(n, wide, 1, net.features, {features, net.features, 1}, {transposed, wide, Of<A>::panel}, logits, wide, add);
    }

    // features' part (n, features) = [+] of dlogits (n, classes) and the last layer's weight.
    void head_backward(int64_t n, const A* dlogits, const A* weight, A* out, bool add) const {
        product<A>(n, net.features, 1, net.classes, {dlogits, net.classes, 1}, {weight, net.features, Of<A>::panel}, out,
                   net.features, add);
    }

    // scratch.product = [that +] what dz gives the block's input, before A.
    void backward_block(int64_t b, int64_t n, const A* dz, const A* w_bwd, bool add) const {
        const Block& block = net.blocks[b];
        const Map map = block.map(n);
        const int64_t stride = apart<A>(map.tiles(), block.out);
        patches<A>(map, dz, block.out, scratch.zero, scratch.tiles, stride);
        convolve<A>(map.tiles(), block.out, block.in, scratch.tiles, stride, w_bwd, scratch.product, add);
    }

    // Forwards; the part's images are those from `at` on of the terms.
    void features(const Weights<A>& w, const A* images, const Tape<A>& tape, const Terms<A>& terms, int64_t at) const {
        border(tape.images, images, tape.bordered);
        for (int64_t b = 0; b < net.depth; ++b)
            forward_block(w, b, tape, terms, at,
                          b + 1 < net.depth ? scratch.y : terms.features + at * net.features);
    }

    // tape.p (n, padded classes) becomes the logits.
    void logits(const Weights<A>& w, const A* images, const Tape<A>& tape, const Terms<A>& terms, int64_t at) const {
        features(w, images, tape, terms, at);
        head(tape.images, terms.features + at * net.features, w.head_transposed, tape.p, false);
        const A* bias = w.theta + net.at + net.classes * net.features;
        for (int64_t i = 0; i < tape.images; ++i)
            for (int64_t j = 0; j < net.classes; ++j) tape.p[i * padded<A>(net.classes) + j] += bias[j];
    }

    // Forwards and backwards; labels (n, classes) are of a batch of `count` images.
    void pass(const Weights<A>& w, const A* images, const A* labels, int64_t count, const Tape<A>& tape,
              const Terms<A>& terms, int64_t at, bool adding, bool firsts) const {
        const int64_t n = tape.images, wide = padded<A>(net.classes);
        A* dlogits = terms.dlogits + at * net.classes;
        logits(w, images, tape, terms, at);
        for (int64_t i = 0; i < n; ++i) {
            A *p = tape.p + i * wide, most = -INFINITY, total = 0, labelled = 0;
            const A* y = labels + i * net.classes;
            for (int64_t j = 0; j < net.classes; ++j) most = std::max(most, p[j]);
            for (int64_t j = 0; j < net.classes; ++j) total += p[j] = std::exp(p[j] - most);
            for (int64_t j = 0; j < net.classes; ++j) labelled += y[j];
            tape.label_sums[i] = labelled;
            for (int64_t j = 0; j < net.classes; ++j) {
                p[j] /= total;
                dlogits[i * net.classes + j] = (p[j] * labelled - y[j]) / A(count);
            }
        }
        head_backward(n, dlogits, w.head, tape.dy[net.depth - 1], false);
        for (int64_t b = net.depth - 1; b >= 0; --b) {
            const Block& block = net.blocks[b];
            const Shape s = block.shape();
            for (int64_t i = 0; i < n; ++i) {
                A* dz = tape.dz[b] + i * (b ? s.size() : tape.first_dz);
                backward<A>(s, tape.z[b] + i * s.size(), w.theta + block.gamma(), w.theta + block.beta(),
                            tape.stats[b] + i * s.norms(), tape.dy[b] + i * s.pooled_size(), dz,
                            terms.sums[b] + (at + i) * s.norms());
                if (b == 0 && firsts)
                    first_weight_gradient(tape.bordered + i * net.bordered(), dz, first_term(terms, at + i));
            }
            if (b == 0) break;
            if (adding) put_dz(terms, b, at, n, tape.dz[b]);
            backward_block(b, n, tape.dz[b], w.w_bwd[b], false);
            gather<A>(block.map(n), scratch.product, block.in, scratch.sink, tape.dy[b - 1]);
        }
    }

    // The tangent of `features` where theta moves along w1.
    void features_tangent(const Weights<A>& w, const Weights<A>& w1, const Tape<A>& tape, const Tangent<A>& tangent,
                          const Terms<A>& terms, const Terms<A>& terms1, int64_t at) const {
        const int64_t n = tape.images, deepest = net.depth - 1;
        for (int64_t b = 0; b < net.depth; ++b) {
            const Block& block = net.blocks[b];
            const Map map = block.map(n);
            const Shape s = block.shape();
            if (b) {
                const int64_t stride = terms.stride(block, block.in);
                A* tiles1 = x_tiles(terms1, b, at);
                convolve<A>(map.tiles(), block.in, block.out, x_tiles(terms, b, at), stride, w1.w_fwd[b], scratch.product,
                            false);
                patches<A>(map, scratch.y, block.in, scratch.zero, tiles1, stride);
                convolve<A>(map.tiles(), block.in, block.out, tiles1, stride, w.w_fwd[b], scratch.product, true);
                gather<A>(map, scratch.product, block.out, scratch.sink, tangent.z[b]);
            }
            A* y1 = b < deepest ? scratch.y : terms1.features + at * net.features;
            for (int64_t i = 0; i < n; ++i) {
                A* z1 = tangent.z[b] + i * s.size();
                if (b == 0) first_forward(tape.bordered + i * net.bordered(), w1.first, z1);
                forward_tangent<A>(s, tape.z[b] + i * s.size(), w.theta + block.gamma(), w.theta + block.beta(),
                                   tape.stats[b] + i * s.norms(), z1, w1.theta + block.gamma(), w1.theta + block.beta(),
                                   y1 + i * s.pooled_size(), tangent.stats[b] + i * s.norms());
            }
        }
    }

    // That of the loss: dlogits, dlabels (n, classes) of a batch of `count` images, and what every image adds to
    // direction . gradient.
    void loss_tangent(const Weights<A>& w, const Weights<A>& w1, int64_t count, const Tape<A>& tape, A* logits1,
                      const Terms<A>& terms, const Terms<A>& terms1, int64_t at, A* dlabels, double* directional) const {
        const int64_t n = tape.images, wide = padded<A>(net.classes);
        head(n, terms1.features + at * net.features, w.head_transposed, logits1, false);
        head(n, terms.features + at * net.features, w1.head_transposed, logits1, true);
        const A* bias1 = w1.theta + net.at + net.classes * net.features;
        for (int64_t i = 0; i < n; ++i) {
            directional[i] = 0;
            const A *p = tape.p + i * wide, *dlogits = terms.dlogits + (at + i) * net.classes;
            A *row = logits1 + i * wide, mean = 0;
            for (int64_t j = 0; j < net.classes; ++j) mean += p[j] * (row[j] += bias1[j]);
            for (int64_t j = 0; j < net.classes; ++j) {
                const A centred = row[j] - mean;
                directional[i] += double(dlogits[j]) * double(row[j]);
                terms1.dlogits[(at + i) * net.classes + j] = p[j] * centred * tape.label_sums[i] / A(count);
                dlabels[i * net.classes + j] = -centred / A(count);
            }
        }
    }

    // The tangent of `pass`. dimages (n, in, height, width): null where not asked for.
    void pass_tangent(const Weights<A>& w, const Weights<A>& w1, int64_t count, const Tape<A>& tape,
                      const Tangent<A>& tangent, const Terms<A>& terms, const Terms<A>& terms1, int64_t at, bool adding,
                      A* dimages, A* dlabels, double* directional) const {
        const int64_t n = tape.images;
        features_tangent(w, w1, tape, tangent, terms, terms1, at);
        loss_tangent(w, w1, count, tape, tangent.logits, terms, terms1, at, dlabels, directional);
        head_backward(n, terms1.dlogits + at * net.classes, w.head, tangent.dy, false);
        head_backward(n, terms.dlogits + at * net.classes, w1.head, tangent.dy, true);
        for (int64_t b = net.depth - 1; b >= 0; --b) {
            const Block& block = net.blocks[b];
            const Shape s = block.shape();
            for (int64_t i = 0; i < n; ++i) {
                const A *dz = tape.dz[b] + i * s.size(), *bordered = tape.bordered + i * net.bordered();
                A* dz1 = tangent.dz + (b ? i * s.size() : 0);
                backward_tangent<A>(s, tape.z[b] + i * s.size(), w.theta + block.gamma(), w.theta + block.beta(),
                                    tape.stats[b] + i * s.norms(), tape.dy[b] + i * s.pooled_size(),
                                    terms.sums[b] + (at + i) * s.norms(), tangent.z[b] + i * s.size(),
                                    w1.theta + block.gamma(), tangent.stats[b] + i * s.norms(),
                                    tangent.dy + i * s.pooled_size(), dz1, terms1.sums[b] + (at + i) * s.norms());
                if (b) continue;
                if (adding) first_weight_gradient(bordered, dz1, first_term(terms1, at + i));
                if (dimages)
                    first_backward(dz, w1.first_transposed, dz1, w.first_transposed, dimages + i * net.image());
            }
            if (b == 0) break;
            if (adding) put_dz(terms1, b, at, n, tangent.dz);
            backward_block(b, n, tangent.dz, w.w_bwd[b], false);
            backward_block(b, n, tape.dz[b], w1.w_bwd[b], true);
            gather<A>(block.map(n), scratch.product, block.in, scratch.sink, tangent.dy);
        }
    }
};

// sum = [sum +] products of terms: of the gradient (terms1 null), or of its tangent. The work of all threads of a region:
// every number is summed by one of them, over images in their order, so that any number of threads gives the same bits.
template <class A>
void add_up(const Net& net, const Terms<A>& terms, const Terms<A>* terms1, const Sum<A>& sum, bool add) {
    const Terms<A>& last = terms1 ? *terms1 : terms;
    const int64_t elements = 36 * (net.depth - 1), panels = net.features / Of<A>::panel;
#pragma omp for nowait schedule(static, 1)
    for (int64_t job = 0; job < elements; ++job) {
        const int64_t b = 1 + job / 36, e = job % 36, tiles = terms.tiles(net.blocks[b]);
        const Block& block = net.blocks[b];
        correlate<A>(e, tiles, block.in, block.out, terms.x_tiles[b], last.dz_tiles[b], sum.weights[b], add);
        if (terms1) correlate<A>(e, tiles, block.in, block.out, terms1->x_tiles[b], terms.dz_tiles[b], sum.weights[b], true);
    }
    const auto head = [&](const A* dlogits, const A* features, int64_t panel, bool add) {
        const int64_t column = panel * Of<A>::panel;
        product<A>(net.classes, Of<A>::panel, 1, terms.images, {dlogits, 1, net.classes},
                   {features + column, net.features, Of<A>::panel}, sum.head + column, net.features, add);
    };
#pragma omp for nowait
    for (int64_t panel = 0; panel < panels; ++panel) {
        head(last.dlogits, terms.features, panel, add);
        if (terms1) head(terms.dlogits, terms1->features, panel, true);
    }
    const auto rows = [&](const A* from, int64_t wide, A* to) {
        for (int64_t k = 0; k < wide; ++k) {
            A total = add ? to[k] : A(0);
            for (int64_t i = 0; i < terms.images; ++i) total += from[i * wide + k];
            to[k] = total;
        }
    };
#pragma omp for nowait
    for (int64_t job = 0; job < net.depth + 2; ++job) {
        if (job < net.depth) rows(last.sums[job], 2 * net.blocks[job].out, sum.norms[job]);
        if (job == net.depth) rows(last.dlogits, net.classes, sum.bias);
        if (job > net.depth) rows(last.first, net.first_inputs() * net.first().out, sum.weights[0]);
    }
}

// out (theta's length) of the sum. The work of all threads of a region.
template <class A>
void write_gradient(const Net& net, const Sum<A>& sum, A* out) {
    for (int64_t b = 1; b < net.depth; ++b)
        finish<A>(net.blocks[b].in, net.blocks[b].out, sum.weights[b], out + net.blocks[b].at);
#pragma omp for nowait
    for (int64_t job = 0; job < 2; ++job) {
        if (job == 0) {
            const Block& first = net.first();
            for (int64_t o = 0; o < first.out; ++o)
                for (int64_t i = 0; i < first.in; ++i)
                    for (int64_t t = 0; t < 9; ++t)
                        out[first.at + (o * first.in + i) * 9 + t] = sum.weights[0][(t * first.in + i) * first.out + o];
            for (int64_t b = 0; b < net.depth; ++b) {
                const Block& block = net.blocks[b];
                for (int64_t k = 0; k < block.out; ++k) {
                    out[block.at + block.weights() + k] = 0;  // the norm subtracts a bias again
                    out[block.gamma() + k] = sum.norms[b][block.out + k];
                    out[block.beta() + k] = sum.norms[b][k];
                }
            }
        } else {
            const int64_t c = net.last().out, pixels = net.features / c;
            for (int64_t j = 0; j < net.classes; ++j) {
                for (int64_t k = 0; k < c; ++k)
                    for (int64_t p = 0; p < pixels; ++p)
                        out[net.at + (j * c + k) * pixels + p] = sum.head[j * net.features + p * c + k];
                out[net.at + net.classes * net.features + j] = sum.bias[j];
            }
        }
    }
}

// The inputs of a call and its outputs; null stands for an output that is not needed.
template <class A>
struct Request {
    int64_t count;
    const A *theta, *images, *labels, *direction;
    A *logits, *gradient, *dtheta, *dimages, *dlabels;
    double* directional;

    // Whether every buffer is as long as the network and the batch say.
    bool fits(const Net& net, const int64_t* lengths) const {
        const int64_t images_size = count * net.image(), labels_size = count * net.classes;
        const std::pair<const void*, int64_t> buffers[] = {
            {theta, net.count},     {images, images_size}, {labels, labels_size},   {direction, net.count},
            {logits, labels_size},  {gradient, net.count}, {dtheta, net.count},     {dimages, images_size},
            {dlabels, labels_size}, {directional, 1},
        };
        for (const auto& [buffer, length] : buffers)
            if (const int64_t actual = *lengths++; buffer && actual != length) return false;
        const bool differentiates = gradient || direction;
        return theta && images && count > 0 && (labels || !differentiates) && (!direction || (dlabels && directional)) &&
               (logits || differentiates) && !(gradient && direction) && !(dtheta && !direction);
    }
};

template <class A>
struct Computation {
    const Net& net;
    const Request<A>& ask;
    bool moving, adding;
    const Weights<A>&w, &w1;
    double* directional;

    // A part of n images: those from `at` on of a chunk that begins at image `chunk`.
    void run(const Worker<A>& worker, const Terms<A>& terms, const Terms<A>& terms1, int64_t chunk, int64_t at, int64_t n,
             Room<A> room) const {
        const int64_t image = chunk + at, label = image * net.classes;
        const A* images = ask.images + image * net.image();
        const Tape<A> tape(net, n, moving, room);
        if (ask.logits) {
            worker.logits(w, images, tape, terms, at);
            for (int64_t i = 0; i < n; ++i)
                std::memcpy(ask.logits + label + i * net.classes, tape.p + i * padded<A>(net.classes),
                            net.classes * sizeof(A));
        }
        if (!ask.gradient && !moving) return;
        worker.pass(w, images, ask.labels + label, ask.count, tape, terms, at, adding, ask.gradient);
        if (!moving) return;
        const Tangent<A> tangent(net, n, room);
        worker.pass_tangent(w, w1, ask.count, tape, tangent, terms, terms1, at, adding,
                            ask.dimages ? ask.dimages + image * net.image() : nullptr, ask.dlabels + label,
                            directional + image);
    }
};

template <class A>
void compute(const Net& net, const Request<A>& ask, int threads) {
    const bool moving = ask.direction, adding = ask.gradient || ask.dtheta;
    const int64_t longest = std::min(ask.count, CHUNK);
    threads = std::clamp<int64_t>(threads, 1, longest);
    const int64_t part = std::min((longest + threads - 1) / threads, PART);
    Room<A> for_thread{nullptr}, for_all{nullptr};
    Worker<A>(net, part, for_thread);
    Tape<A>(net, part, moving, for_thread);
    if (moving) Tangent<A>(net, part, for_thread);
    const auto layout = [&](Room<A>& room) {
        struct All {
            Weights<A> w, w1;
            Sum<A> sum;
        };
        Room<A> none{nullptr};
        return All{Weights<A>(net, ask.theta, room), Weights<A>(net, ask.direction, moving ? room : none),
                   Sum<A>(net, adding ? room : none)};
    };
    layout(for_all);
    const int64_t before_terms = for_all.used;
    Terms<A>(net, longest, adding, for_all);
    if (moving) Terms<A>(net, longest, adding, for_all);
    const Owned<A> shared(for_all.used), own(threads * for_thread.used);
    std::vector<double> directional(moving ? ask.count : 0);
    Room<A> room{shared.at};
    auto all = layout(room);
    const Computation<A> computation{net, ask, moving, adding, all.w, all.w1, directional.data()};
    // Nothing below allocates: an exception cannot leave a parallel region.
#pragma omp parallel num_threads(threads)
    {
        all.w.prepare(net, ask.gradient || moving);
        if (moving) all.w1.prepare(net, true);
        const int64_t chunks = (ask.count + CHUNK - 1) / CHUNK;
        for (int64_t c = 0; c < chunks; ++c) {
            const int64_t begin = c * ask.count / chunks, n = (c + 1) * ask.count / chunks - begin;
            Room<A> for_terms{shared.at, before_terms}, none{nullptr};
            const Terms<A> terms(net, n, adding, for_terms), terms1(net, n, adding, moving ? for_terms : none);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t thread = 0; thread < threads; ++thread) {
                Room<A> workspace{own.at + thread * for_thread.used};
                const Worker<A> worker(net, part, workspace);
                const int64_t end = (thread + 1) * n / threads, first = thread * n / threads;
                const int64_t parts = (end - first + part - 1) / part;
                for (int64_t k = 0; k < parts; ++k) {
                    const int64_t at = first + k * (end - first) / parts;
                    computation.run(worker, terms, terms1, begin, at, first + (k + 1) * (end - first) / parts - at,
                                    workspace);
                }
            }
            if (adding) add_up<A>(net, terms, moving ? &terms1 : nullptr, all.sum, c > 0);
        }
#pragma omp barrier
        if (adding) write_gradient<A>(net, all.sum, ask.gradient ? ask.gradient : ask.dtheta);
    }
    if (moving) {
        *ask.directional = 0;
        for (const double term : directional) *ask.directional += term;
    }
}

}  // namespace

// All else is hidden (-fvisibility): two of these libraries in one process must not share their templates' tables.
#define VISIBLE extern "C" __attribute__((visibility("default")))

// Returns 0; or 1: too little memory, 2: a buffer does not fit the network, 3: the network is not supported.
#define EXPORT(NAME, A)                                                                                                \
    VISIBLE int compute_##NAME(int64_t depth, const int64_t* sizes, double eps, int64_t count, const int64_t* lengths, \
                               const A* theta, const A* images, const A* labels, const A* direction, A* logits,        \
                               A* gradient, A* dtheta, A* dimages, A* dlabels, double* directional, int threads) {     \
        if (!Net::supports<A>(depth, sizes)) return 3;                                                                      \
        try {                                                                                                          \
            const Net net(depth, sizes, eps);                                                                          \
            const Request<A> ask{count,    theta,  images,  labels,  direction,   logits,                              \
                                 gradient, dtheta, dimages, dlabels, directional};                                     \
            if (!ask.fits(net, lengths)) return 2;                                                                     \
            compute<A>(net, ask, threads);                                                                             \
        } catch (const std::bad_alloc&) {                                                                              \
            return 1;                                                                                                  \
        }                                                                                                              \
        return 0;                                                                                                      \
    }                                                                                                                  \
    VISIBLE int panel_##NAME() { return Of<A>::panel; }

EXPORT(float32, float)
EXPORT(float64, double)
