// Counts what the program allocates; for one source file of a program.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {
std::atomic<int64_t> num_allocations{0};

void* allocate(size_t bytes, size_t alignment) {
  ++num_allocations;
  void* p = nullptr;  // of just so many bytes, that the address sanitizer sees the first one beyond
  if (posix_memalign(&p, alignment, bytes) != 0) throw std::bad_alloc();
  return p;
}
}  // namespace

// Never inlined: a compiler that sees into only one of a pair takes the pair for mismatched.
#define NOINLINE __attribute__((noinline))
NOINLINE void* operator new(size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
NOINLINE void* operator new(size_t bytes, std::align_val_t to) {
  return allocate(bytes, static_cast<size_t>(to));
}
NOINLINE void operator delete(void* p) noexcept { std::free(p); }
NOINLINE void operator delete(void* p, size_t) noexcept { std::free(p); }
NOINLINE void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
NOINLINE void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
