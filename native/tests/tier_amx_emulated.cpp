// The AMX tier over emulated tile instructions, so that its arithmetic is tested on any AVX-512 machine.
#define OUTPACE_TIER amx_emulated
#include "kernels/simd_avx512.h"

#include "amx_emulated_tiles.h"

#include "kernels/amx_tier.inl"

const outpace::Kernels& amx_emulated_kernels() {
  static const outpace::Kernels table =
      outpace::OUTPACE_TIER::with_tiles(outpace::avx512vnni_kernels(), "amx-emulated");
  return table;
}

int64_t amx_emulated_products() { return amx_emulated_state::num_products; }
