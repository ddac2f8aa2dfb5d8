#define OUTPACE_TIER amx
#include "simd_avx512.h"

#include "amx_tiles.h"

#include "amx_tier.inl"

const outpace::Kernels& outpace::amx_kernels() {
  static const Kernels table = OUTPACE_TIER::with_tiles(avx512vnni_kernels(), "amx");
  return table;
}
