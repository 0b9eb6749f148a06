// Where a pass keeps what it works on.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "vectors.hpp"

namespace limbeck {

template <class A>
int64_t padded(int64_t count) {  // to whole vectors
    return (count + Of<A>::lanes - 1) / Of<A>::lanes * Of<A>::lanes;
}

// Room that is handed out piece by piece, in whole vectors; with base = nullptr the same calls only measure.
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
    void give(char* at, size_t size) noexcept {
        const std::lock_guard<std::mutex> lock(mutex);
        try {
            free_ones.push_back({at, size});
        } catch (const std::bad_alloc&) {
            std::free(at);
        }
    }
};
inline Pool pool;

template <class A>
struct Owned {
    size_t size;
    A* at;
    explicit Owned(int64_t count) : size(count * sizeof(A)), at(reinterpret_cast<A*>(pool.take(size))) {}
    ~Owned() { pool.give(reinterpret_cast<char*>(at), size); }
    Owned(const Owned&) = delete;
};

}  // namespace limbeck
