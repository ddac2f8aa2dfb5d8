// The tile instructions (AMX-INT8 and AMX-BF16). The native tests put an emulation of the same functions in
// their place.
//
// Assembly of our own, not the compiler's intrinsics: gcc's are macros that want the number of a tile
// spelled out, and gcc 12 does not say that they read memory (of a configuration 8 bytes, of a tile
// none), so the stores that fill a buffer may be dropped or moved behind the instruction that reads it.
#pragma once

#include "amx_config.h"

namespace outpace::OUTPACE_TIER {

// Shapes the tiles and clears them.
OUTPACE_INLINE void configure_tiles(const TileConfig& config) {
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
// Back to the state in which a thread has no tiles to save, and its core may sleep deeply.
OUTPACE_INLINE void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int Tile>
OUTPACE_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
// Rows of the tile's shape from memory, `stride` bytes apart, and back.
template <int Tile>
OUTPACE_INLINE void load_tile(const void* first, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(first), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
OUTPACE_INLINE void store_tile(void* first, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(first), "r"(stride), "i"(Tile) : "memory");
}

// Sum += A . B: i32 [rows, 16] += i8 [rows, depth] . 8-bit weights [depth / 4][16 outputs][4], the weights
// signed or unsigned. Integers wrap; nothing saturates.
template <int Sum, int A, int B>
OUTPACE_INLINE void dot_tiles_signed() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}
template <int Sum, int A, int B>
OUTPACE_INLINE void dot_tiles_unsigned() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}
// Sum += A . B: f32 [rows, 16] += bf16 [rows, depth] . bf16 [depth / 2][16 outputs][2]. Denormals count as
// zero.
template <int Sum, int A, int B>
OUTPACE_INLINE void dot_tiles_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}

}  // namespace outpace::OUTPACE_TIER
