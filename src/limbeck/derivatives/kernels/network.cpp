// First and second derivatives of cross-entropy of the field's ConvNet, a whole pass in one call. convnet.py has the same
// formulas in Python.
//
// Instance norm looks at one image at a time, so images are independent of each other until their gradients are summed.
// A thread takes a part of a chunk of the batch through the whole network and back, within its cache, and stores the terms
// of the gradient. Then one thread sums each element of the gradient over the images in their order. So the bits do not
// depend on the number of threads, which wait for each other twice per chunk.

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "network.hpp"

using namespace limbeck;

namespace {

// What one thread computes for a part of n images. `start` is the index of the part's first image among the terms.
template <class A>
struct Worker {
    const Net& net;
    Scratch<A> scratch;

    Worker(const Net& net, int64_t max_images, Arena<A>& arena) : net(net), scratch(net, max_images, arena) {
        if (arena.base) std::memset(scratch.zero, 0, (scratch.sink - scratch.zero) * sizeof(A));
    }

    // images (n, in, height, width) -> (n, height + 2 padding, width + 2 padding, in).
    void pad_images(int64_t n, const A* images, A* out) const {
        const Block& b = net.first();
        const int64_t wide = net.padded_columns(), size = net.padded_size();
        std::memset(out, 0, n * size * sizeof(A));
        for (int64_t i = 0; i < n; ++i)
            for (int64_t k = 0; k < b.in; ++k)
                for (int64_t row = 0; row < b.height; ++row) {
                    const A* source = images + ((i * b.in + k) * b.height + row) * b.width;
                    A* target = out + i * size + ((row + b.padding) * wide + b.padding) * b.in + k;
                    for (int64_t column = 0; column < b.width; ++column) target[column * b.in] = source[column];
                }
    }

    // z (rows, columns, out) of the first block, of one image. Three pixels of a row are contiguous in memory.
    void first_forward(const A* padded, const A* first, A* z) const {
        const Block& b = net.first();
        const int64_t line = net.padded_columns() * b.in;
        for (int64_t row = 0; row < b.rows(); ++row)
            product<A>(b.columns(), b.out, 3, 3 * b.in, {padded + row * line, b.in, 1, line},
                       {first, Simd<A>::panel, net.first_inputs() * Simd<A>::panel}, z + row * b.columns() * b.out, b.out,
                       false);
    }

    void first_weight_gradient(const A* padded, const A* dz, A* dw) const {
        const Block& b = net.first();
        const int64_t line = net.padded_columns() * b.in, run = 3 * b.in;
        for (int64_t row = 0; row < 3; ++row)
            product<A>(run, b.out, b.rows(), b.columns(), {padded + row * line, 1, b.in, line},
                       {dz, b.out, Simd<A>::panel}, dw + row * run * b.out, b.out, false);
    }

    // dimage (in, height, width) of the sum of two transposed convolutions, or of one where dz1 is null.
    void first_backward(const A* dz, const A* transposed, const A* dz1, const A* transposed1, A* dimage) const {
        const Block& b = net.first();
        const int64_t k = net.first_inputs(), wide = round_up<A>(k), run = 3 * b.in, line = net.padded_columns() * b.in;
        std::memset(scratch.dimage, 0, net.padded_rows() * line * sizeof(A));
        for (int64_t row = 0; row < b.rows(); ++row) {
            const int64_t offset = row * b.columns() * b.out;
            product<A>(b.columns(), wide, 1, b.out, {dz + offset, b.out, 1}, {transposed, wide, Simd<A>::panel},
                       scratch.columns, wide, false);
            if (dz1)
                product<A>(b.columns(), wide, 1, b.out, {dz1 + offset, b.out, 1}, {transposed1, wide, Simd<A>::panel},
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

    // Where the tiles of a block's input begin for image `start`.
    A* x_tiles(const Terms<A>& terms, int64_t b, int64_t start) const {
        const Block& block = net.blocks[b];
        return terms.x_tiles[b] + start * block.map(1).tiles() * block.in;
    }
    void store_dz_tiles(const Terms<A>& terms, int64_t b, int64_t start, int64_t n, const A* dz) const {
        const Block& block = net.blocks[b];
        const int64_t tiles = terms.tiles(block);
        scatter<A>(block.map(n), dz, block.out, scratch.zero,
                   terms.dz_tiles[b] + start * block.map(1).tiles() * Simd<A>::panel, tiles,
                   tile_stride<A>(tiles, block.out));
    }
    A* first_term(const Terms<A>& terms, int64_t image) const {
        return terms.first + image * net.first_inputs() * net.first().out;
    }

    // y of the block from x (n, height, width, in) in scratch.y; also stores z, x_tiles and stats. The first block's z is
    // the largest: it is processed image by image, so that it is still in the cache.
    void forward_block(const Weights<A>& w, int64_t b, const Tape<A>& tape, const Terms<A>& terms, int64_t start,
                       A* y) const {
        const Block& block = net.blocks[b];
        const Shape s = block.shape();
        if (b) {
            const FeatureMap map = block.map(tape.images);
            const int64_t stride = terms.stride(block, block.in);
            A* tiles = x_tiles(terms, b, start);
            transform_input<A>(map, scratch.y, block.in, scratch.zero, tiles, stride);
            convolve<A>(map.tiles(), block.in, block.out, tiles, stride, w.w_fwd[b], scratch.product, false);
            gather<A>(map, scratch.product, block.out, scratch.sink, tape.z[b]);
        }
        for (int64_t i = 0; i < tape.images; ++i) {
            A* z = tape.z[b] + i * s.size();
            if (b == 0) first_forward(tape.padded + i * net.padded_size(), w.first, z);
            forward<A>(s, z, w.theta + block.gamma(), w.theta + block.beta(), A(net.eps), y + i * s.pooled_size(),
                       tape.stats[b] + i * s.norms());
        }
    }

    // logits (n, classes rounded up), without bias, of features (n, features); plus logits if `add`.
    void head(int64_t n, const A* features, const A* transposed, A* logits, bool add) const {
        const int64_t wide = round_up<A>(net.classes);
        product<A>(n, wide, 1, net.features, {features, net.features, 1}, {transposed, wide, Simd<A>::panel}, logits, wide,
                   add);
    }

    // out (n, features) = dlogits (n, classes) weight, plus out if `add`.
    void head_backward(int64_t n, const A* dlogits, const A* weight, A* out, bool add) const {
        product<A>(n, net.features, 1, net.classes, {dlogits, net.classes, 1}, {weight, net.features, Simd<A>::panel},
                   out, net.features, add);
    }

    // scratch.product = the gradient in the block's input from dz, before A; plus scratch.product if `add`.
    void backward_block(int64_t b, int64_t n, const A* dz, const A* w_bwd, bool add) const {
        const Block& block = net.blocks[b];
        const FeatureMap map = block.map(n);
        const int64_t stride = tile_stride<A>(map.tiles(), block.out);
        transform_input<A>(map, dz, block.out, scratch.zero, scratch.tiles, stride);
        convolve<A>(map.tiles(), block.out, block.in, scratch.tiles, stride, w_bwd, scratch.product, add);
    }

    // The forward pass up to the features.
    void features(const Weights<A>& w, const A* images, const Tape<A>& tape, const Terms<A>& terms, int64_t start) const {
        pad_images(tape.images, images, tape.padded);
        for (int64_t b = 0; b < net.depth; ++b)
            forward_block(w, b, tape, terms, start,
                          b + 1 < net.depth ? scratch.y : terms.features + start * net.features);
    }

    // The adjoint of the features of n images: dfeatures (n, features), channels first -> dimages (n, in, height, width).
    void features_adjoint(const Weights<A>& w, const A* dfeatures, const Tape<A>& tape, const Terms<A>& terms,
                          int64_t start, A* dimages) const {
        const int64_t n = tape.images;
        for (int64_t i = 0; i < n; ++i)
            net.swap_features(dfeatures + i * net.features, tape.dy[net.depth - 1] + i * net.features, false);
        for (int64_t b = net.depth - 1; b >= 0; --b) {
            const Block& block = net.blocks[b];
            const Shape s = block.shape();
            for (int64_t i = 0; i < n; ++i) {
                A* dz = tape.dz[b] + i * (b ? s.size() : tape.first_dz);
                backward<A>(s, tape.z[b] + i * s.size(), w.theta + block.gamma(), w.theta + block.beta(),
                            tape.stats[b] + i * s.norms(), tape.dy[b] + i * s.pooled_size(), dz,
                            terms.sums[b] + (start + i) * s.norms());
                if (b == 0) first_backward(dz, w.first_transposed, nullptr, nullptr, dimages + i * net.image_size());
            }
            if (b == 0) break;
            backward_block(b, n, tape.dz[b], w.w_bwd[b], false);
            gather<A>(block.map(n), scratch.product, block.in, scratch.sink, tape.dy[b - 1]);
        }
    }

    // The forward pass; writes the logits to tape.probabilities (n, classes rounded up).
    void logits(const Weights<A>& w, const A* images, const Tape<A>& tape, const Terms<A>& terms, int64_t start) const {
        features(w, images, tape, terms, start);
        head(tape.images, terms.features + start * net.features, w.head_transposed, tape.probabilities, false);
        const A* bias = w.theta + net.head_offset + net.classes * net.features;
        for (int64_t i = 0; i < tape.images; ++i)
            for (int64_t j = 0; j < net.classes; ++j) tape.probabilities[i * round_up<A>(net.classes) + j] += bias[j];
    }

    // The forward and backward pass of a part of a batch of `count` images; labels (n, classes).
    void pass(const Weights<A>& w, const A* images, const A* labels, int64_t count, const Tape<A>& tape,
              const Terms<A>& terms, int64_t start, bool with_gradient, bool with_first) const {
        const int64_t n = tape.images, wide = round_up<A>(net.classes);
        A* dlogits = terms.dlogits + start * net.classes;
        logits(w, images, tape, terms, start);
        for (int64_t i = 0; i < n; ++i) {
            A *p = tape.probabilities + i * wide, largest = -INFINITY, total = 0, label_sum = 0;
            const A* y = labels + i * net.classes;
            for (int64_t j = 0; j < net.classes; ++j) largest = std::max(largest, p[j]);
            for (int64_t j = 0; j < net.classes; ++j) total += p[j] = std::exp(p[j] - largest);
            for (int64_t j = 0; j < net.classes; ++j) label_sum += y[j];
            tape.label_sums[i] = label_sum;
            for (int64_t j = 0; j < net.classes; ++j) {
                p[j] /= total;
                dlogits[i * net.classes + j] = (p[j] * label_sum - y[j]) / A(count);
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
                            terms.sums[b] + (start + i) * s.norms());
                if (b == 0 && with_first)
                    first_weight_gradient(tape.padded + i * net.padded_size(), dz, first_term(terms, start + i));
            }
            if (b == 0) break;
            if (with_gradient) store_dz_tiles(terms, b, start, n, tape.dz[b]);
            backward_block(b, n, tape.dz[b], w.w_bwd[b], false);
            gather<A>(block.map(n), scratch.product, block.in, scratch.sink, tape.dy[b - 1]);
        }
    }

    // The tangent of `features` where theta moves in the direction of w1.
    void features_tangent(const Weights<A>& w, const Weights<A>& w1, const Tape<A>& tape, const Tangent<A>& tangent,
                          const Terms<A>& terms, const Terms<A>& terms1, int64_t start) const {
        const int64_t n = tape.images, deepest = net.depth - 1;
        for (int64_t b = 0; b < net.depth; ++b) {
            const Block& block = net.blocks[b];
            const FeatureMap map = block.map(n);
            const Shape s = block.shape();
            if (b) {
                const int64_t stride = terms.stride(block, block.in);
                A* tiles1 = x_tiles(terms1, b, start);
                convolve<A>(map.tiles(), block.in, block.out, x_tiles(terms, b, start), stride, w1.w_fwd[b],
                            scratch.product, false);
                transform_input<A>(map, scratch.y, block.in, scratch.zero, tiles1, stride);
                convolve<A>(map.tiles(), block.in, block.out, tiles1, stride, w.w_fwd[b], scratch.product, true);
                gather<A>(map, scratch.product, block.out, scratch.sink, tangent.z[b]);
            }
            A* y1 = b < deepest ? scratch.y : terms1.features + start * net.features;
            for (int64_t i = 0; i < n; ++i) {
                A* z1 = tangent.z[b] + i * s.size();
                if (b == 0) first_forward(tape.padded + i * net.padded_size(), w1.first, z1);
                forward_tangent<A>(s, tape.z[b] + i * s.size(), w.theta + block.gamma(), w.theta + block.beta(),
                                   tape.stats[b] + i * s.norms(), z1, w1.theta + block.gamma(), w1.theta + block.beta(),
                                   y1 + i * s.pooled_size(), tangent.stats[b] + i * s.norms());
            }
        }
    }

    // The tangent of the loss: dlogits, dlabels (n, classes), and each image's term of direction . gradient (n).
    void loss_tangent(const Weights<A>& w, const Weights<A>& w1, int64_t count, const Tape<A>& tape, A* logits1,
                      const Terms<A>& terms, const Terms<A>& terms1, int64_t start, A* dlabels, double* directional) const {
        const int64_t n = tape.images, wide = round_up<A>(net.classes);
        head(n, terms1.features + start * net.features, w.head_transposed, logits1, false);
        head(n, terms.features + start * net.features, w1.head_transposed, logits1, true);
        const A* bias1 = w1.theta + net.head_offset + net.classes * net.features;
        for (int64_t i = 0; i < n; ++i) {
            directional[i] = 0;
            const A *p = tape.probabilities + i * wide, *dlogits = terms.dlogits + (start + i) * net.classes;
            A *row = logits1 + i * wide, mean = 0;
            for (int64_t j = 0; j < net.classes; ++j) mean += p[j] * (row[j] += bias1[j]);
            for (int64_t j = 0; j < net.classes; ++j) {
                const A centred = row[j] - mean;
                directional[i] += double(dlogits[j]) * double(row[j]);
                terms1.dlogits[(start + i) * net.classes + j] = p[j] * centred * tape.label_sums[i] / A(count);
                dlabels[i * net.classes + j] = -centred / A(count);
            }
        }
    }

    // The tangent of `pass`. dimages (n, in, height, width) is null where it is not needed.
    void pass_tangent(const Weights<A>& w, const Weights<A>& w1, int64_t count, const Tape<A>& tape,
                      const Tangent<A>& tangent, const Terms<A>& terms, const Terms<A>& terms1, int64_t start,
                      bool with_gradient, A* dimages, A* dlabels, double* directional) const {
        const int64_t n = tape.images;
        features_tangent(w, w1, tape, tangent, terms, terms1, start);
        loss_tangent(w, w1, count, tape, tangent.logits, terms, terms1, start, dlabels, directional);
        head_backward(n, terms1.dlogits + start * net.classes, w.head, tangent.dy, false);
        head_backward(n, terms.dlogits + start * net.classes, w1.head, tangent.dy, true);
        for (int64_t b = net.depth - 1; b >= 0; --b) {
            const Block& block = net.blocks[b];
            const Shape s = block.shape();
            for (int64_t i = 0; i < n; ++i) {
                const A *dz = tape.dz[b] + i * s.size(), *padded = tape.padded + i * net.padded_size();
                A* dz1 = tangent.dz + (b ? i * s.size() : 0);
                backward_tangent<A>(s, tape.z[b] + i * s.size(), w.theta + block.gamma(), w.theta + block.beta(),
                                    tape.stats[b] + i * s.norms(), tape.dy[b] + i * s.pooled_size(),
                                    terms.sums[b] + (start + i) * s.norms(), tangent.z[b] + i * s.size(),
                                    w1.theta + block.gamma(), tangent.stats[b] + i * s.norms(),
                                    tangent.dy + i * s.pooled_size(), dz1, terms1.sums[b] + (start + i) * s.norms());
                if (b) continue;
                if (with_gradient) first_weight_gradient(padded, dz1, first_term(terms1, start + i));
                if (dimages)
                    first_backward(dz, w1.first_transposed, dz1, w.first_transposed, dimages + i * net.image_size());
            }
            if (b == 0) break;
            if (with_gradient) store_dz_tiles(terms1, b, start, n, tangent.dz);
            backward_block(b, n, tangent.dz, w.w_bwd[b], false);
            backward_block(b, n, tape.dz[b], w1.w_bwd[b], true);
            gather<A>(block.map(n), scratch.product, block.in, scratch.sink, tangent.dy);
        }
    }
};

// sum = the gradient from its terms (terms1 is null), or its tangent; plus sum if `add`. All threads of the enclosing
// region share the work: one of them sums each element over the images in their order, so that any number of threads gives
// the same bits.
template <class A>
void sum_terms(const Net& net, const Terms<A>& terms, const Terms<A>* terms1, const GradientSum<A>& sum, bool add) {
    const Terms<A>& last = terms1 ? *terms1 : terms;
    const int64_t elements = 36 * (net.depth - 1), panels = net.features / Simd<A>::panel;
#pragma omp for nowait schedule(static, 1)
    for (int64_t job = 0; job < elements; ++job) {
        const int64_t b = 1 + job / 36, e = job % 36, tiles = terms.tiles(net.blocks[b]);
        const Block& block = net.blocks[b];
        correlate<A>(e, tiles, block.in, block.out, terms.x_tiles[b], last.dz_tiles[b], sum.weights[b], add);
        if (terms1)
            correlate<A>(e, tiles, block.in, block.out, terms1->x_tiles[b], terms.dz_tiles[b], sum.weights[b], true);
    }
    const auto head = [&](const A* dlogits, const A* features, int64_t panel, bool add) {
        const int64_t column = panel * Simd<A>::panel;
        product<A>(net.classes, Simd<A>::panel, 1, terms.images, {dlogits, 1, net.classes},
                   {features + column, net.features, Simd<A>::panel}, sum.head + column, net.features, add);
    };
#pragma omp for nowait
    for (int64_t panel = 0; panel < panels; ++panel) {
        head(last.dlogits, terms.features, panel, add);
        if (terms1) head(terms.dlogits, terms1->features, panel, true);
    }
    const auto rows = [&](const A* source, int64_t wide, A* target) {
        for (int64_t k = 0; k < wide; ++k) {
            A total = add ? target[k] : A(0);
            for (int64_t i = 0; i < terms.images; ++i) total += source[i * wide + k];
            target[k] = total;
        }
    };
#pragma omp for nowait
    for (int64_t job = 0; job < net.depth + 2; ++job) {
        if (job < net.depth) rows(last.sums[job], 2 * net.blocks[job].out, sum.norms[job]);
        if (job == net.depth) rows(last.dlogits, net.classes, sum.bias);
        if (job > net.depth) rows(last.first, net.first_inputs() * net.first().out, sum.weights[0]);
    }
}

// out (P) = the sum as a vector like theta. All threads of the enclosing region share the work.
template <class A>
void write_gradient(const Net& net, const GradientSum<A>& sum, A* out) {
    for (int64_t b = 1; b < net.depth; ++b)
        transform_gradient<A>(net.blocks[b].in, net.blocks[b].out, sum.weights[b], out + net.blocks[b].offset);
#pragma omp for nowait
    for (int64_t job = 0; job < 2; ++job) {
        if (job == 0) {
            const Block& first = net.first();
            for (int64_t o = 0; o < first.out; ++o)
                for (int64_t i = 0; i < first.in; ++i)
                    for (int64_t t = 0; t < 9; ++t)
                        out[first.offset + (o * first.in + i) * 9 + t] = sum.weights[0][(t * first.in + i) * first.out + o];
            for (int64_t b = 0; b < net.depth; ++b) {
                const Block& block = net.blocks[b];
                for (int64_t k = 0; k < block.out; ++k) {
                    out[block.offset + block.weights() + k] = 0;  // instance norm subtracts a bias again with the mean
                    out[block.gamma() + k] = sum.norms[b][block.out + k];
                    out[block.beta() + k] = sum.norms[b][k];
                }
            }
        } else {
            const int64_t c = net.last().out, pixels = net.features / c;
            for (int64_t j = 0; j < net.classes; ++j) {
                for (int64_t k = 0; k < c; ++k)
                    for (int64_t p = 0; p < pixels; ++p)
                        out[net.head_offset + (j * c + k) * pixels + p] = sum.head[j * net.features + p * c + k];
                out[net.head_offset + net.classes * net.features + j] = sum.bias[j];
            }
        }
    }
}

// The inputs and outputs of a call; an output that is not needed is null.
template <class A>
struct Request {
    int64_t count;
    const A *theta, *images, *labels, *direction, *dfeatures;
    A *features, *logits, *gradient, *dtheta, *dimages, *dlabels;
    double* directional;

    // Whether every buffer has the length that the network and the batch need, and outputs have their inputs.
    bool fits(const Net& net, const int64_t* lengths) const {
        const int64_t images_size = count * net.image_size(), labels_size = count * net.classes;
        const int64_t features_size = count * net.features;
        const std::pair<const void*, int64_t> buffers[] = {
            {theta, net.parameters},    {images, images_size},     {labels, labels_size},  {direction, net.parameters},
            {dfeatures, features_size}, {features, features_size}, {logits, labels_size},  {gradient, net.parameters},
            {dtheta, net.parameters},   {dimages, images_size},    {dlabels, labels_size}, {directional, 1},
        };
        for (const auto& [buffer, length] : buffers)
            if (const int64_t actual = *lengths++; buffer && actual != length) return false;
        const bool differentiates = gradient || direction;
        if (features || dfeatures)  // of the blocks alone
            return theta && images && count > 0 && !labels && !direction && !logits && !gradient && !dtheta && !dlabels &&
                   !directional && !dfeatures == !dimages;
        return theta && images && count > 0 && (labels || !differentiates) && (!direction || (dlabels && directional)) &&
               (logits || differentiates) && !(gradient && direction) && !(dtheta && !direction);
    }
};

template <class A>
struct Computation {
    const Net& net;
    const Request<A>& request;
    bool with_tangent, with_gradient;
    const Weights<A>&w, &w1;
    double* directional;

    // Compute a part of n images, from image `start` of the chunk that begins at image `chunk` of the batch.
    void run(const Worker<A>& worker, const Terms<A>& terms, const Terms<A>& terms1, int64_t chunk, int64_t start,
             int64_t n, Arena<A> arena) const {
        const int64_t image = chunk + start, label = image * net.classes;
        const A* images = request.images + image * net.image_size();
        const Tape<A> tape(net, n, with_tangent, arena);
        if (request.features || request.dfeatures) {
            worker.features(w, images, tape, terms, start);
            for (int64_t i = 0; request.features && i < n; ++i)
                net.swap_features(terms.features + (start + i) * net.features,
                                  request.features + (image + i) * net.features, true);
            if (request.dfeatures)
                worker.features_adjoint(w, request.dfeatures + image * net.features, tape, terms, start,
                                        request.dimages + image * net.image_size());
            return;
        }
        if (request.logits) {
            worker.logits(w, images, tape, terms, start);
            for (int64_t i = 0; i < n; ++i)
                std::memcpy(request.logits + label + i * net.classes, tape.probabilities + i * round_up<A>(net.classes),
                            net.classes * sizeof(A));
        }
        if (!request.gradient && !with_tangent) return;
        worker.pass(w, images, request.labels + label, request.count, tape, terms, start, with_gradient, request.gradient);
        if (!with_tangent) return;
        const Tangent<A> tangent(net, n, arena);
        worker.pass_tangent(w, w1, request.count, tape, tangent, terms, terms1, start, with_gradient,
                            request.dimages ? request.dimages + image * net.image_size() : nullptr,
                            request.dlabels + label, directional + image);
    }
};

template <class A>
void compute(const Net& net, const Request<A>& request, int threads) {
    const bool with_tangent = request.direction, with_gradient = request.gradient || request.dtheta;
    const int64_t longest = std::min(request.count, IMAGES_PER_CHUNK);
    threads = std::clamp<int64_t>(threads, 1, longest);
    const int64_t part = std::min((longest + threads - 1) / threads, IMAGES_PER_PART);
    Arena<A> thread_arena{nullptr}, shared_arena{nullptr};
    Worker<A>(net, part, thread_arena);
    Tape<A>(net, part, with_tangent, thread_arena);
    if (with_tangent) Tangent<A>(net, part, thread_arena);
    const auto layout = [&](Arena<A>& arena) {
        struct Shared {
            Weights<A> w, w1;
            GradientSum<A> sum;
        };
        Arena<A> none{nullptr};
        return Shared{Weights<A>(net, request.theta, arena),
                      Weights<A>(net, request.direction, with_tangent ? arena : none),
                      GradientSum<A>(net, with_gradient ? arena : none)};
    };
    layout(shared_arena);
    const int64_t before_terms = shared_arena.used;
    Terms<A>(net, longest, with_gradient, shared_arena);
    if (with_tangent) Terms<A>(net, longest, with_gradient, shared_arena);
    const Buffer<A> shared_buffer(shared_arena.used), thread_buffer(threads * thread_arena.used);
    std::vector<double> directional(with_tangent ? request.count : 0);
    Arena<A> arena{shared_buffer.data};
    auto shared = layout(arena);
    const Computation<A> computation{net, request, with_tangent, with_gradient, shared.w, shared.w1,
                                     directional.data()};
    // Nothing below allocates: an exception cannot leave a parallel region.
#pragma omp parallel num_threads(threads)
    {
        shared.w.prepare(net, request.gradient || request.dfeatures || with_tangent);
        if (with_tangent) shared.w1.prepare(net, true);
        const int64_t chunks = (request.count + IMAGES_PER_CHUNK - 1) / IMAGES_PER_CHUNK;
        for (int64_t c = 0; c < chunks; ++c) {
            const int64_t begin = c * request.count / chunks, n = (c + 1) * request.count / chunks - begin;
            Arena<A> terms_arena{shared_buffer.data, before_terms}, none{nullptr};
            const Terms<A> terms(net, n, with_gradient, terms_arena);
            const Terms<A> terms1(net, n, with_gradient, with_tangent ? terms_arena : none);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t thread = 0; thread < threads; ++thread) {
                Arena<A> arena{thread_buffer.data + thread * thread_arena.used};
                const Worker<A> worker(net, part, arena);
                const int64_t end = (thread + 1) * n / threads, first = thread * n / threads;
                const int64_t parts = (end - first + part - 1) / part;
                for (int64_t k = 0; k < parts; ++k) {
                    const int64_t start = first + k * (end - first) / parts;
                    computation.run(worker, terms, terms1, begin, start, first + (k + 1) * (end - first) / parts - start,
                                    arena);
                }
            }
            if (with_gradient) sum_terms<A>(net, terms, with_tangent ? &terms1 : nullptr, shared.sum, c > 0);
        }
#pragma omp barrier
        if (with_gradient) write_gradient<A>(net, shared.sum, request.gradient ? request.gradient : request.dtheta);
    }
    if (with_tangent) {
        *request.directional = 0;
        for (const double term : directional) *request.directional += term;
    }
}

}  // namespace

// Everything else is hidden (-fvisibility): two of these libraries in one process must not share their templates' tables.
#define VISIBLE extern "C" __attribute__((visibility("default")))

// Returns 0 on success, 1 where memory is short, 2 where a buffer does not fit the network, 3 for an unsupported network.
#define EXPORT(NAME, A)                                                                                                \
    VISIBLE int compute_##NAME(int64_t depth, const int64_t* sizes, double eps, int64_t count, const int64_t* lengths, \
                               const A* theta, const A* images, const A* labels, const A* direction,                   \
                               const A* dfeatures, A* features, A* logits, A* gradient, A* dtheta, A* dimages,         \
                               A* dlabels, double* directional, int threads) {                                         \
        if (!Net::supports<A>(depth, sizes)) return 3;                                                                 \
        try {                                                                                                          \
            const Net net(depth, sizes, eps);                                                                          \
            const Request<A> request{count,  theta,    images, labels,  direction, dfeatures,  features,               \
                                     logits, gradient, dtheta, dimages, dlabels,   directional};                       \
            if (!request.fits(net, lengths)) return 2;                                                                 \
            compute<A>(net, request, threads);                                                                         \
        } catch (const std::bad_alloc&) {                                                                              \
            return 1;                                                                                                  \
        }                                                                                                              \
        return 0;                                                                                                      \
    }                                                                                                                  \
    VISIBLE int panel_##NAME() { return Simd<A>::panel; }

EXPORT(float32, float)
EXPORT(float64, double)
