// The AMX tier: that of AVX512-VNNI with other products of many rows, over the tile instructions that were
// included before (amx_tiles.h, or the tests' emulation).
#include "f16.h"
#include "kernels.h"

namespace outpace::OUTPACE_TIER {
constexpr int kRegisterSums = 16, kStripsTogether = 1, kUnpackFrom = 0;  // tiles take over before
constexpr int kPrefetch = 6144;                                          // bytes ahead
}  // namespace outpace::OUTPACE_TIER

#include "matmul.inl"
#include "rows.inl"

#include "attention.inl"

#include "amx_matmul.inl"

#include "amx_attention.inl"
#include "amx_bf16.inl"

namespace outpace::OUTPACE_TIER {

// The table of `vnni`, but for the products of many rows.
Kernels with_tiles(Kernels vnni, const char* name) {
  vnni.name = name;
  vnni.dot_peak = tile_peak;
  vnni.matmul_strips = matmul_strips_tiles;
  vnni.attend_rows = attend_rows_tiles;
  vnni.matmul_strip_bf16 = matmul_strip_bf16;
  vnni.round_to_bf16 = round_to_bf16;
  return vnni;
}

}  // namespace outpace::OUTPACE_TIER
