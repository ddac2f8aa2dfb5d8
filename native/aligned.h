// Vectors whose elements start at a cache line, and large ones in huge pages.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "memory.h"

namespace outpace {

constexpr size_t kCacheLine = 64;

template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}  // NOLINT: a container makes one of its own type from it

  T* allocate(size_t n) {
    const size_t bytes = n * sizeof(T);
    void* p = ::operator new(bytes, alignment(bytes));
    if (bytes >= kHugePage) madvise(p, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // a wish
    return static_cast<T*>(p);
  }
  void deallocate(T* p, size_t n) { ::operator delete(p, alignment(n * sizeof(T))); }
  bool operator==(const LineAllocator&) const = default;

 private:
  static std::align_val_t alignment(size_t bytes) {
    return std::align_val_t{bytes >= kHugePage ? kHugePage : kCacheLine};
  }
};

// For what kernels read by lines, row by row. malloc aligns to 16 bytes and puts large blocks 16 bytes behind
// the start of a page, so each line of 64 bytes would lie in two: an AMX tile of 16 such rows takes twice as
// long to load. Rows of activations are kilobytes apart, so in pages of 4 kB each row of a tile also costs a
// miss of the first-level TLB.
template <class T>
using LineVector = std::vector<T, LineAllocator<T>>;

// Elements from the start of a row to the start of the next, for rows whose same columns are read together:
// an odd number of lines, so that neighbours lie in different sets of the first level. Rows of 4096 bytes all
// lie in one set, of 8 or 12 lines: 16 of them took up to 1.2 (int8) or 1.8 times (float) as long to
// multiply.
template <class T>
constexpr int64_t row_stride(int64_t width) {
  constexpr int64_t line = kCacheLine / sizeof(T);
  return line * ((width + line - 1) / line | 1);
}

}  // namespace outpace
