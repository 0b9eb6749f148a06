// A call of the compiled network from a file, so that it can be run for other processors than this one, under an emulator.
//
//     main INPUT OUTPUT THREADS
//
// INPUT: int64 bytes of a number (4 or 8), depth, count, parameters, images, labels, features (numbers of each), then double
// eps, sizes (1 + 5 depth int64), theta, images, labels, direction, dfeatures. OUTPUT: gradient, logits, dtheta, dimages,
// dlabels, features, the adjoint of the features; directional.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define DECLARE(NAME, A)                                                                                             \
    extern "C" int compute_##NAME(int64_t, const int64_t*, double, int64_t, const int64_t*, const A*, const A*,      \
                                  const A*, const A*, const A*, A*, A*, A*, A*, A*, A*, double*, int);               \
    int compute(int64_t depth, const int64_t* sizes, double eps, int64_t count, const int64_t* lengths, const A* t,  \
                const A* x, const A* y, const A* v, const A* df, A* f, A* l, A* g, A* dt, A* dx, A* dy, double* d,   \
                int threads) {                                                                                       \
        return compute_##NAME(depth, sizes, eps, count, lengths, t, x, y, v, df, f, l, g, dt, dx, dy, d, threads);   \
    }
DECLARE(float32, float)
DECLARE(float64, double)

template <class T>
std::vector<T> read(std::FILE* file, int64_t count) {
    std::vector<T> values(count);
    if (std::fread(values.data(), sizeof(T), count, file) != size_t(count)) std::exit(3);
    return values;
}

template <class A>
int run(std::FILE* in, std::FILE* out, const std::vector<int64_t>& head, int threads) {
    const int64_t depth = head[1], count = head[2], p = head[3], n = head[4], m = head[5], f = head[6];
    const double eps = read<double>(in, 1)[0];
    const auto sizes = read<int64_t>(in, 1 + 5 * depth);
    const auto theta = read<A>(in, p), images = read<A>(in, n), labels = read<A>(in, m), direction = read<A>(in, p);
    const auto dfeatures = read<A>(in, f);
    std::vector<A> gradient(p), logits(m), dtheta(p), dimages(n), dlabels(m), features(f), adjoint(n);
    double directional = 0;
    const int64_t of_gradient[] = {p, n, m, 0, 0, 0, m, p, 0, 0, 0, 0};
    const int64_t of_products[] = {p, n, m, p, 0, 0, 0, 0, p, n, m, 1}, of_features[] = {p, n, 0, 0, f, f, 0, 0, 0, n, 0, 0};
    int code = compute(depth, sizes.data(), eps, count, of_gradient, theta.data(), images.data(), labels.data(),
                       (const A*)nullptr, nullptr, nullptr, logits.data(), gradient.data(), nullptr, nullptr, nullptr,
                       nullptr, threads);
    if (code) return code;
    code = compute(depth, sizes.data(), eps, count, of_products, theta.data(), images.data(), labels.data(),
                   direction.data(), nullptr, nullptr, nullptr, nullptr, dtheta.data(), dimages.data(), dlabels.data(),
                   &directional, threads);
    if (code) return code;
    code = compute(depth, sizes.data(), eps, count, of_features, theta.data(), images.data(), nullptr, nullptr,
                   dfeatures.data(), features.data(), nullptr, nullptr, nullptr, adjoint.data(), nullptr, nullptr, threads);
    if (code) return code;
    for (const auto* values : {&gradient, &logits, &dtheta, &dimages, &dlabels, &features, &adjoint})
        std::fwrite(values->data(), sizeof(A), values->size(), out);
    std::fwrite(&directional, sizeof directional, 1, out);
    return 0;
}

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    std::FILE *in = std::fopen(argv[1], "rb"), *out = std::fopen(argv[2], "wb");
    if (!in || !out) return 2;
    const auto head = read<int64_t>(in, 7);
    const int code = head[0] == 4 ? run<float>(in, out, head, std::atoi(argv[3])) : run<double>(in, out, head, std::atoi(argv[3]));
    std::fclose(out);
    return code;
}
