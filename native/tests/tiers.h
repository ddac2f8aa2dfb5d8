// The tiers that this machine can run, and memory as their kernels want it.
#pragma once

#include <new>
#include <vector>

#include "cpu.h"

#if defined(OUTPACE_AMX_EMULATED)
const outpace::Kernels& amx_emulated_kernels();
int64_t amx_emulated_products();  // tile products that they took on this thread so far
#endif

namespace check {

// As the kernels want their memory: aligned to 64 bytes, and not a byte more than asked for.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t{64}); }
  bool operator==(const Aligned&) const { return true; }
};
template <class T>
using Array = std::vector<T, Aligned<T>>;

// The tiers of this machine, and after them the one whose tiles are emulated, where a test asks for it.
inline const std::vector<const outpace::Kernels*>& tiers() {
  static const std::vector<const outpace::Kernels*> all = [] {
    std::vector<const outpace::Kernels*> found;
    for (const std::string& name : outpace::available_tiers()) {
      found.push_back(&outpace::select_kernels(name));
#if defined(OUTPACE_AMX_EMULATED)
      if (name == "avx512vnni") found.push_back(&amx_emulated_kernels());
#endif
    }
    return found;
  }();
  return all;
}

}  // namespace check
