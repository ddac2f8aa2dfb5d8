#define OUTPACE_TIER amx
#include "simd_avx512.h"

#include "amx_tiles.h"
#include "f16.h"
#include "kernels.h"

namespace outpace::OUTPACE_TIER {
constexpr int kMaxRows = 16;     // rows whose accumulators fit the registers
constexpr int kPrefetch = 6144;  // bytes ahead
}  // namespace outpace::OUTPACE_TIER

#include "matmul.inl"
#include "rows.inl"

#include "attention.inl"

#include "amx_matmul.inl"

#include "amx_attention.inl"

const outpace::Kernels& outpace::amx_kernels() {
  static const Kernels table = OUTPACE_TIER::with_tiles(avx512vnni_kernels(), "amx");
  return table;
}
