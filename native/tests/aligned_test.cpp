// Vectors that kernels read by lines.
#include "aligned.h"

#include <cstdint>

#include "check.h"

namespace {

template <class T>
void check_address(size_t n, uint64_t alignment) {
  outpace::LineVector<T> v(n, T{1});
  CHECK(reinterpret_cast<uintptr_t>(v.data()) % alignment == 0, "%d elements", static_cast<int>(n));
  v.resize(2 * n);  // moves what it holds
  CHECK(reinterpret_cast<uintptr_t>(v.data()) % outpace::kCacheLine == 0 && v[n - 1] == T{1} && v[n] == T{});
}

TEST(every_size_starts_at_a_line) {
  for (const size_t n : {size_t{1}, size_t{63}, size_t{1000}, size_t{200000}}) {
    check_address<int8_t>(n, outpace::kCacheLine);
    check_address<float>(n, outpace::kCacheLine);
  }
}

TEST(large_ones_start_at_a_huge_page) {
  check_address<int8_t>(outpace::kHugePage, outpace::kHugePage);
  check_address<int16_t>(outpace::kHugePage + 5, outpace::kHugePage);
}

}  // namespace
