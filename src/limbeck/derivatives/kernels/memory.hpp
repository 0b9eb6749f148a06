// Memory of a pass.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "vectors.hpp"

namespace limbeck {

template <class A>
int64_t round_up(int64_t count) {  // to whole vectors of elements
    return (count + Simd<A>::lanes - 1) / Simd<A>::lanes * Simd<A>::lanes;
}

// Allocates one buffer piece by piece, in whole vectors. With base = nullptr the same calls only measure.
template <class A>
struct Arena {
    A* base;
    int64_t used = 0;
    A* allocate(int64_t count) {
        A* piece = base ? base + used : nullptr;
        used += round_up<A>(count);
        return piece;
    }
};

// Memory in pages of 2 MB where the system has them, because a pass walks through tens of MB in strides and the address of
// each page has to be looked up (width 128, 100 images: 78 ms with pages of 4 KB, 67 with these). A region that is released
// keeps its pages for the next call.
class Pool {
    struct Region {
        char* address;
        size_t size;
    };
    std::mutex mutex;
    std::vector<Region> free_regions;

   public:
    // A region of at least `size` bytes; `size` becomes that of the region. Throws std::bad_alloc.
    char* acquire(size_t& size) {
        constexpr size_t page = 2 << 20;
        size = (size + page) / page * page;
        const std::lock_guard<std::mutex> lock(mutex);
        auto best = free_regions.end();
        for (auto region = free_regions.begin(); region != free_regions.end(); ++region)
            if (region->size >= size && (best == free_regions.end() || region->size < best->size)) best = region;
        if (best != free_regions.end()) {
            const Region region = *best;
            free_regions.erase(best);
            size = region.size;
            return region.address;
        }
        for (const Region& region : free_regions) std::free(region.address);  // too small: of another network
        free_regions.clear();
        char* address = static_cast<char*>(std::aligned_alloc(page, size));
        if (!address) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        madvise(address, size, MADV_HUGEPAGE);
#endif
        return address;
    }
    void release(char* address, size_t size) noexcept {
        const std::lock_guard<std::mutex> lock(mutex);
        try {
            free_regions.push_back({address, size});
        } catch (const std::bad_alloc&) {
            std::free(address);
        }
    }
};
inline Pool pool;

// Memory from the pool for the time of a scope.
template <class A>
struct Buffer {
    size_t size;
    A* data;
    explicit Buffer(int64_t count) : size(count * sizeof(A)), data(reinterpret_cast<A*>(pool.acquire(size))) {}
    ~Buffer() { pool.release(reinterpret_cast<char*>(data), size); }
    Buffer(const Buffer&) = delete;
};

}  // namespace limbeck
