// Memory for large results: on huge pages, and kept for the next result of the same size when it is let go. Fresh pages cost more than the
// arithmetic that fills them: the system hands them out one by one, each zeroed and taken through the page table.
#include "memory.hpp"

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ldm {
namespace {

constexpr std::size_t kPage = std::size_t{1} << 21;       // a huge page
constexpr std::size_t kSmall = std::size_t{1} << 16;      // what smaller results are rounded to
constexpr std::size_t kMostKept = std::size_t{1} << 30;   // of memory that nobody uses

struct Shelf {
    std::mutex lock;
    std::map<std::size_t, std::vector<void*>> blocks;
    std::size_t kept = 0;
};

// Never destroyed: tensors may outlive the module.
Shelf& shelf() {
    static Shelf* one = new Shelf;
    return *one;
}

std::size_t rounded(std::size_t bytes) {
    const std::size_t unit = bytes < kPage ? kSmall : kPage;
    return (bytes + unit - 1) / unit * unit;
}

std::align_val_t alignment(std::size_t size) { return std::align_val_t(size < kPage ? kSmall : kPage); }

}  // namespace

void* take_memory(std::size_t bytes) {
    const std::size_t size = rounded(bytes);
    {
        Shelf& all = shelf();
        const std::lock_guard<std::mutex> held(all.lock);
        const auto found = all.blocks.find(size);
        if (found != all.blocks.end() && !found->second.empty()) {
            void* block = found->second.back();
            found->second.pop_back();
            all.kept -= size;
            return block;
        }
    }
    void* block = ::operator new(size, alignment(size));
#if defined(__linux__)
    if (size >= kPage) (void)madvise(block, size, MADV_HUGEPAGE);
#endif
    return block;
}

void return_memory(void* block, std::size_t bytes) noexcept {
    const std::size_t size = rounded(bytes);
    {
        Shelf& all = shelf();
        const std::lock_guard<std::mutex> held(all.lock);
        if (all.kept + size <= kMostKept) {
            all.blocks[size].push_back(block);
            all.kept += size;
            return;
        }
    }
    ::operator delete(block, alignment(size));
}

std::size_t release_memory() {
    Shelf& all = shelf();
    const std::lock_guard<std::mutex> held(all.lock);
    const std::size_t released = all.kept;
    for (auto& [size, blocks] : all.blocks) {
        for (void* block : blocks) ::operator delete(block, alignment(size));
        blocks.clear();
    }
    all.kept = 0;
    return released;
}

}  // namespace ldm
